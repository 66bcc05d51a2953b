"""The table of engines: one row for each database, broker or cache that the service can stand on.

Nothing else in the package compares a scheme, a URL or an engine's name: what others must know of an engine is a
column here. An engine's folder has the row's name and is imported only when a URL picks it, so that an extra which is
not installed costs nothing. A new engine is a folder, a row, and a line in the fixture of the suite.
"""

from collections.abc import AsyncGenerator, Callable
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal, Protocol, cast

import msgspec

from chargegate.ledger.base import AccessList, Ledger
from chargegate.ledger.records import AuditRow
from chargegate.ledger.transfer import LedgerSource, LedgerTarget
from chargegate.queues.base import Capabilities, Message, Queue

Part = Literal["queue", "database", "cache"]


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the table. ``name`` is also that of the engine's folder.

    ``offers``: which parts of the service it can be. ``extra``: what to install, as in ``chargegate[extra]``; empty
    where nothing is needed. ``bare``: its URL is the scheme alone, without ``://``. ``without_host``: its URL ends
    with ``://``. ``in_folder``: what it holds lies in ``data_dir``. ``capabilities`` are those of its queue.
    ``shortest_lease_ms``: the least that ``queue.lease_ms`` may be. ``keeps_size``: a queue keeps for ever the bound
    that it was made with. ``keeps_delivered``: messages stay readable after their ack, for ``chargegate replay``.
    """

    name: str
    schemes: tuple[str, ...]
    offers: frozenset[Part]
    capabilities: Capabilities
    extra: str = ""
    bare: bool = False
    without_host: bool = False
    in_folder: bool = False
    shortest_lease_ms: int = 1000
    keeps_size: bool = False
    keeps_delivered: bool = False

    def load(self) -> "EngineModule":
        """Import the engine's folder. Raises ``ImportError`` where its extra is not installed."""
        return cast("EngineModule", import_module(f"{__name__}.{self.name}"))


class Place(msgspec.Struct, kw_only=True):
    """The process that opens an engine, as far as an engine must know it.

    ``folder`` is ``data_dir``, and exists. ``exclusive``: no other process may use what an engine keeps there, because
    this one decides. ``process`` is a name that no other process has and that this one gets again after a restart; it
    is empty for a process that shares nothing. ``opened`` belongs to the engines: what one keeps there, its queue and
    its database share in this process.
    """

    folder: Path
    exclusive: bool
    process: str = ""
    opened: dict[str, Any] = msgspec.field(default_factory=dict)


class QueueLimits(msgspec.Struct, frozen=True, kw_only=True):
    """``max_size``: messages that may wait. ``lease_ms``: within it others have what a dead process held.
    ``prefetch``: messages that may be fetched ahead."""

    max_size: int
    lease_ms: int
    prefetch: int


class Database(Protocol):
    """An open database. ``close`` may be called twice."""

    ledger: Ledger
    access_list: AccessList

    async def close(self) -> None: ...


class EngineModule(Protocol):
    """What an engine's folder offers, as far as its row says so.

    Opening raises ``Unavailable`` where the server is away, and ``Unusable`` or ``ValueError`` where a setting or the
    server must be changed first. A message of these is one line without a secret.
    """

    async def open_queue(self, url: str, place: Place, limits: QueueLimits) -> Queue: ...

    async def open_database(
        self, url: str, place: Place, on_audit: Callable[[list[AuditRow]], None] | None, *, needed: bool
    ) -> Database:
        """``on_audit`` is told, in another thread, of the audit rows that this process committed, before anyone who
        waits for them. Without ``needed`` a server that is away is no error: the database is used once it is back."""
        ...

    def open_cache(self, url: str, *, ttl_ms: int) -> Any:
        """What processes remember together; see ``authorizers.cache.SharedCache``."""

    def messages_from(self, url: str, start: int | datetime) -> AsyncGenerator[Message, None]:
        """What a queue that ``keeps_delivered`` still holds, from an offset or a time up to its end as it is now."""
        ...

    async def source(self, place: Place) -> LedgerSource:
        """The database in the folder, to be copied into another."""
        ...

    async def target(self, url: str) -> LedgerTarget:
        """A database that another is copied into."""
        ...

    async def waiting_in_folder(self, place: Place, *, decided: bool = False) -> frozenset[str]:
        """The ids of the requests that wait in the folder's queue, whichever queue is in use; with ``decided`` only
        those that the folder's database has a decision of."""
        ...

    async def sealed_prefixes_in_folder(self, place: Place, length: int) -> frozenset[bytes]:
        """The different beginnings of the bodies that wait in the folder's queue, to see early whether they can be
        opened."""
        ...


SQLITE: Final = Engine(
    name="sqlite",
    schemes=("sqlite",),
    offers=frozenset({"queue", "database"}),
    capabilities=Capabilities(durable=True, shared=False, find=True),
    bare=True,
    in_folder=True,
)
MEMORY: Final = Engine(
    name="memory",
    schemes=("memory",),
    offers=frozenset({"queue", "cache"}),
    capabilities=Capabilities(durable=False, shared=False, find=True),
    without_host=True,
)
POSTGRES: Final = Engine(
    name="postgres",
    schemes=("postgresql", "postgres"),
    offers=frozenset({"queue", "database"}),
    capabilities=Capabilities(durable=True, shared=True, find=True),
    extra="postgres",
)
REDIS: Final = Engine(
    name="redis",
    schemes=("redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"),
    offers=frozenset({"queue", "cache"}),
    capabilities=Capabilities(durable=True, shared=True, find=True),
    extra="redis",
)
KAFKA: Final = Engine(
    name="kafka",
    schemes=("kafka",),
    offers=frozenset({"queue"}),
    capabilities=Capabilities(durable=True, shared=True, find=False),
    extra="kafka",
    shortest_lease_ms=10_000,  # six tenths of it are the group's session, and brokers refuse one of less than 6 s
    keeps_delivered=True,
)
RABBITMQ: Final = Engine(
    name="rabbitmq",
    schemes=("amqp", "amqps"),
    offers=frozenset({"queue"}),
    capabilities=Capabilities(durable=True, shared=True, find=False),
    extra="rabbitmq",
    keeps_size=True,
)
ENGINES: Final = (SQLITE, MEMORY, POSTGRES, REDIS, KAFKA, RABBITMQ)


def engine_of(url: str) -> Engine:
    """The engine that a URL names. Raises ``ValueError``; the message does not repeat the URL."""
    scheme = url.partition("://")[0]
    for engine in ENGINES:
        if scheme in engine.schemes:
            return engine
    raise ValueError("no engine has this scheme")
