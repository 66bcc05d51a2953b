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

from chargegate.ledger.anomalies import Anomalies
from chargegate.ledger.base import AccessList, Ledger, Retention
from chargegate.ledger.chain import AuditChain
from chargegate.ledger.counts import DecisionCounts
from chargegate.ledger.exports import AuditExports
from chargegate.ledger.records import AuditRow
from chargegate.ledger.transfer import LedgerSource, LedgerTarget
from chargegate.queues.base import Capabilities, Message, Queue

Part = Literal["queue", "database", "cache"]


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the table. ``name`` is also that of the engine's folder.

    ``urls``: how its URLs begin, or with ``whole_url`` all of its URLs. ``offers``: which parts of the service it can
    be. ``extra``: what to install, as in ``chargegate[extra]``; empty where nothing is needed. ``file``: the file in
    ``data_dir`` that holds all that it holds; empty for an engine that keeps nothing there. ``capabilities`` are those
    of its queue. ``shortest_lease_ms``: the least that ``queue.lease_ms`` may be. ``keeps_size``: a queue keeps for
    ever the bound that it was made with. ``keeps_delivered``: messages stay readable after their ack, for
    ``chargegate replay``. ``has_registry``: it has a clock to ask, and can tell which processes are alive.
    ``together``: where it is the queue and the database, one commit changes both.
    """

    name: str
    urls: tuple[str, ...]
    offers: frozenset[Part]
    capabilities: Capabilities
    whole_url: bool = False
    extra: str = ""
    file: str = ""
    shortest_lease_ms: int = 1000
    keeps_size: bool = False
    keeps_delivered: bool = False
    has_registry: bool = False
    together: bool = False

    @property
    def in_folder(self) -> bool:
        """What it holds lies in ``data_dir``."""
        return bool(self.file)

    @property
    def within_process(self) -> bool:
        """What it holds is in the memory of the process that opened it, and no other process can reach it."""
        return not (self.in_folder or self.capabilities.shared)

    def is_named_by(self, url: str) -> bool:
        if self.whole_url:
            return url in self.urls
        return any(url.startswith(beginning) and url != beginning for beginning in self.urls)

    def load(self) -> "EngineModule":
        """Import the engine's folder. Raises ``ImportError`` where its extra is not installed."""
        return cast("EngineModule", import_module(f"{__name__}.{self.name}"))


class Place(msgspec.Struct, kw_only=True):
    """The process that opens an engine, as far as an engine must know it.

    ``folder`` is ``data_dir``, and exists. ``exclusive``: no other process may use what an engine keeps there, because
    this one decides. ``process`` is a name that no other process has and that this one gets again after a restart; it
    is empty for a process that shares nothing. ``patient``: no client waits for this process, and so it may wait for
    others. ``opened`` belongs to the engines: what one keeps there, its queue and its database share in this process.
    """

    folder: Path
    exclusive: bool
    process: str = ""
    patient: bool = False
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
    counts: DecisionCounts
    anomalies: Anomalies
    retention: Retention
    chain: AuditChain
    exports: AuditExports

    async def close(self) -> None: ...


class Registry(Protocol):
    """What processes on several machines see of each other at a server that they share: its clock, and which names
    are taken. Every method but ``close`` raises ``Unavailable``."""

    async def server_ms(self) -> int:
        """The server's wall clock, in Unix milliseconds."""
        ...

    async def claim(self, name: str, holder: str, lease_ms: int) -> int:
        """Have a name for so long, or for so long again: 0. If another holder has it, nothing changes, and the answer
        is for how many milliseconds yet."""
        ...

    async def release(self, name: str, holder: str) -> None:
        """The name is free, if this holder had it."""

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
        """What processes remember together: it is an ``authorizers.shared.SharedCache`` and a
        ``ledger.base.SharedClaims``, with ``check`` to bring its ``failure`` up to date, and ``close``."""

    def open_registry(self, url: str) -> Registry:
        """Of an engine that has one. A server that is away is no error yet."""
        ...

    def messages_from(self, url: str, start: int | datetime) -> AsyncGenerator[Message, None]:
        """What a queue that ``keeps_delivered`` still holds, from an offset or a time up to its end as it is now."""
        ...

    def join(self, place: Place, queue: Queue, database: Database) -> Any:
        """What is changed in both at once: a ``together.Together``."""

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
    urls=("sqlite",),
    offers=frozenset({"queue", "database"}),
    capabilities=Capabilities(durable=True, shared=False, find=True),
    whole_url=True,
    file="chargegate.db",
    together=True,
)
MEMORY: Final = Engine(
    name="memory",
    urls=("memory://",),
    offers=frozenset({"queue", "cache"}),
    capabilities=Capabilities(durable=False, shared=False, find=True),
    whole_url=True,
)
POSTGRES: Final = Engine(
    name="postgres",
    urls=("postgresql://", "postgres://"),
    offers=frozenset({"queue", "database"}),
    capabilities=Capabilities(durable=True, shared=True, find=True),
    extra="postgres",
    has_registry=True,
)
REDIS: Final = Engine(
    name="redis",
    urls=("redis://", "rediss://", "redis+sentinel://", "rediss+sentinel://", "redis+cluster://", "rediss+cluster://"),
    offers=frozenset({"queue", "cache"}),
    capabilities=Capabilities(durable=True, shared=True, find=True),
    extra="redis",
    has_registry=True,
)
KAFKA: Final = Engine(
    name="kafka",
    urls=("kafka://",),
    offers=frozenset({"queue"}),
    capabilities=Capabilities(durable=True, shared=True, find=False),
    extra="kafka",
    shortest_lease_ms=10_000,  # six tenths of it are the group's session, and brokers refuse one of less than 6 s
    keeps_delivered=True,
)
RABBITMQ: Final = Engine(
    name="rabbitmq",
    urls=("amqp://", "amqps://"),
    offers=frozenset({"queue"}),
    capabilities=Capabilities(durable=True, shared=True, find=False),
    extra="rabbitmq",
    keeps_size=True,
)
ENGINES: Final = (SQLITE, MEMORY, POSTGRES, REDIS, KAFKA, RABBITMQ)
EMBEDDED: Final = SQLITE
"""The engine whose database lies in ``data_dir``."""


def engine_of(url: str) -> Engine:
    """The engine that a URL names. Raises ``ValueError``; the message does not repeat the URL."""
    for engine in ENGINES:
        if engine.is_named_by(url):
            return engine
    raise ValueError("no engine has such a URL")
