"""What the HTTP surface is built from."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from chargegate.keys import AccessKeys, Keyring
from chargegate.ledger.base import AccessList, Ledger, SharedClaims
from chargegate.ledger.records import DeadLetter
from chargegate.model import IPAddress
from chargegate.observe import Metrics
from chargegate.operations.health import Component
from chargegate.queues.base import Queue


@dataclass(slots=True, kw_only=True)
class Watched:
    """What health and metrics are told of. ``components`` are checked for ``/health``; one is called queue."""

    queue: Queue
    ledger: Ledger
    metrics: Metrics
    components: Mapping[str, Callable[[], Awaitable[Component]]]
    draining: Callable[[], bool]
    metrics_enabled: bool
    health_enabled: bool


@dataclass(slots=True, kw_only=True)
class Parts(Watched):
    """The parts, and the values they need.

    ``check_address`` raises ``http1.AddressBlocked`` for an address that may not be called. ``access_changed`` is
    told the token hashes whose cached decisions must go. ``replay`` puts a dead letter back on its way, or raises
    ``QueueFull`` or ``QueueUnavailable``. ``claims`` is None where no cache is shared.
    """

    access_list: AccessList
    keyring: Keyring
    access_keys: AccessKeys
    check_address: Callable[[IPAddress], None]
    access_changed: Callable[[frozenset[str]], None]
    replay: Callable[[DeadLetter], Awaitable[None]]
    claims: SharedClaims | None
    require_https: bool
    max_body_bytes: int
    rate_limit_per_second: float
    rate_limit_burst: int
