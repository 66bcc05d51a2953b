"""What the HTTP surface is built from."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from chargegate.api.dashboard_sessions import Sessions
from chargegate.keys import AccessKeys, Keyring
from chargegate.ledger.anomalies import Anomalies
from chargegate.ledger.base import AccessList, Ledger, SharedClaims
from chargegate.ledger.counts import DecisionCounts
from chargegate.model import IPAddress
from chargegate.observe import NO_TRACING, Metrics, Tracing
from chargegate.operations.busy_stations import BusyStations
from chargegate.operations.health import Component
from chargegate.operations.overview import Overviews
from chargegate.queues.base import Queue, Stored
from chargegate.queues.envelope import Carried


@dataclass(slots=True, kw_only=True)
class Parts:
    """The parts of a process that its HTTP surface works with, and the values that it needs.

    ``components`` are the checks for ``/health``; one of them is called queue. ``check_address`` raises
    ``http1.AddressBlocked`` for an address that may not be called. ``access_changed`` is told the token hashes whose
    cached decisions must go. ``claims`` is None where no cache is shared. One client may hold ``queue_share`` of the
    ``queue_size`` requests that may wait. ``at_once`` takes a message
    that needs no turn in the queue, as ``Queue.put_then`` would, or returns False and does nothing; it is None where
    all messages go into the queue. ``sessions``, ``overview`` and ``stations`` are None where there is no
    dashboard.
    """

    queue: Queue
    ledger: Ledger
    counts: DecisionCounts
    anomalies: Anomalies
    access_list: AccessList
    keyring: Keyring
    metrics: Metrics
    claims: SharedClaims | None
    components: Mapping[str, Callable[[], Awaitable[Component]]]
    draining: Callable[[], bool]
    check_address: Callable[[IPAddress], None]
    access_changed: Callable[[frozenset[str]], None]
    access_keys: AccessKeys
    queue_size: int
    queue_share: float
    require_https: bool
    max_body_bytes: int
    rate_limit_per_second: float
    rate_limit_burst: int
    metrics_enabled: bool
    health_enabled: bool
    allowed_hosts: Sequence[str] = ()
    allowed_origins: Sequence[str] = ()
    tracing: Tracing = NO_TRACING
    at_once: Callable[[Carried, Stored], bool] | None = None
    sessions: Sessions | None = None
    overview: Overviews | None = None
    stations: BusyStations | None = None
