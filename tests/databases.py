"""What the ledger's tests share: an open database, and decisions to put into it."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest

from chargegate.engines.postgres.access_list import PostgresAccessList
from chargegate.engines.postgres.anomalies import PostgresAnomalies
from chargegate.engines.postgres.chain import PostgresChain
from chargegate.engines.postgres.counts import PostgresCounts
from chargegate.engines.postgres.exports import PostgresExports
from chargegate.engines.postgres.ledger import PostgresLedger
from chargegate.engines.postgres.retention import PostgresRetention
from chargegate.engines.postgres.statements import LEDGER_TABLES
from chargegate.engines.postgres.store import PostgresStore
from chargegate.engines.sqlite.access_list import SqliteAccessList
from chargegate.engines.sqlite.anomalies import SqliteAnomalies
from chargegate.engines.sqlite.chain import SqliteChain
from chargegate.engines.sqlite.connection import SqliteStore
from chargegate.engines.sqlite.counts import SqliteCounts
from chargegate.engines.sqlite.exports import SqliteExports
from chargegate.engines.sqlite.ledger import SqliteLedger
from chargegate.engines.sqlite.retention import SqliteRetention
from chargegate.engines.sqlite.statements import ALL_TABLES
from chargegate.ledger.anomalies import Anomalies
from chargegate.ledger.base import AccessList, Ledger, LedgerUnavailable, Retention
from chargegate.ledger.chain import AuditChain
from chargegate.ledger.counts import DecisionCounts
from chargegate.ledger.exports import AuditExports
from chargegate.ledger.records import AuditRow
from chargegate.model import Decision, Status, new_request_id
from scenario import run as run_to_its_end

STATION = "123e4567-e89b-12d3-a456-426614174000"
LIMIT_S = 20


def run_on_sqlite(
    path: Path,
    tables: Mapping[str, Sequence[str]],
    scenario: Callable[[SqliteStore], Coroutine[Any, Any, None]],
    limit_s: float,
) -> None:
    """Run the scenario on a file that is this process's alone, and close it."""

    async def main() -> None:
        store = await SqliteStore.open(path, tables, exclusive=True)
        try:
            await scenario(store)
        finally:
            await store.close()

    run_to_its_end(main(), limit_s)


class Database(Protocol):
    """An open database: what the contract promises of it, and a way around that."""

    ledger: Callable[..., Ledger]
    access_list: Callable[[], AccessList]
    counts: Callable[[], DecisionCounts]
    anomalies: Callable[[], Anomalies]
    retention: Callable[[], Retention]
    chain: Callable[..., AuditChain]
    exports: Callable[[], AuditExports]

    async def execute(self, statement: str) -> list[tuple[Any, ...]]: ...

    def refusing(self) -> AbstractAsyncContextManager[None]:
        """While it lasts, the database takes no request."""
        ...

    async def close(self) -> None: ...


class Sqlite:
    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.access_list = partial(SqliteAccessList, store)
        self.counts = partial(SqliteCounts, store)
        self.anomalies = partial(SqliteAnomalies, store)
        self.retention = partial(SqliteRetention, store)
        self.chain = lambda _writer="": SqliteChain(store)
        self.exports = partial(SqliteExports, store)

    def ledger(self, on_audit: Callable[[list[AuditRow]], None] | None = None, writer: str = "") -> SqliteLedger:
        """Of one process, and so of one writer, whatever its name."""
        return SqliteLedger(self._store, on_audit)

    @asynccontextmanager
    async def refusing(self) -> AsyncIterator[None]:
        await self.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON charging_requests BEGIN SELECT raise(FAIL, 'no'); END"
        )
        yield
        await self.execute("DROP TRIGGER refuse")

    async def execute(self, statement: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self._store.path)) as connection, connection:
            return connection.execute(statement).fetchall()

    async def close(self) -> None:
        await self._store.close()


class Postgres:
    def __init__(self, store: PostgresStore) -> None:
        self._store = store
        self.access_list = partial(PostgresAccessList, store)
        self.counts = partial(PostgresCounts, store)
        self.anomalies = partial(PostgresAnomalies, store)
        self.retention = partial(PostgresRetention, store)
        self.chain = lambda writer="test": PostgresChain(store, writer)
        self.exports = partial(PostgresExports, store)

    def ledger(self, on_audit: Callable[[list[AuditRow]], None] | None = None, writer: str = "test") -> PostgresLedger:
        return PostgresLedger(self._store, writer, on_audit)

    @asynccontextmanager
    async def refusing(self) -> AsyncIterator[None]:
        await self.execute("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$")
        await self.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON charging_requests FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
        yield
        await self.execute("DROP TRIGGER refuse ON charging_requests")

    async def execute(self, statement: str) -> list[tuple[Any, ...]]:
        rows = await self._store.transaction(lambda connection, _: connection.fetch(statement))
        return [tuple(row) for row in rows]

    @asynccontextmanager
    async def holding(self, lock: str, last: str = "SELECT 1") -> AsyncIterator[None]:
        """In the ``with`` block another transaction has the lock that a statement takes. It ends with another one."""
        held, over = asyncio.Event(), asyncio.Event()

        async def work(connection: Any, _repeated: bool) -> None:
            await connection.execute(lock)
            held.set()
            await over.wait()
            await connection.execute(last)

        task = asyncio.create_task(self._store.transaction(work, within=30))
        await held.wait()
        try:
            yield
        finally:
            over.set()
            await task

    async def close(self) -> None:
        await self._store.close()


Run = Callable[[Callable[[Database], Coroutine[Any, Any, None]]], None]


def running(opened: Callable[[], Coroutine[Any, Any, Database]]) -> Run:
    """Runs a scenario with the database open; each run opens it anew."""

    def run(scenario: Callable[[Database], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            database = await opened()
            try:
                await scenario(database)
            finally:
                await database.close()

        run_to_its_end(main(), 6 * LIMIT_S)  # some scenarios have thousands of steps

    return run


@pytest.fixture
def sqlite_run(tmp_path: Path) -> Run:
    async def opened() -> Database:
        path = tmp_path / "ledger.db"
        return Sqlite(await SqliteStore.open(path, ALL_TABLES, exclusive=False))

    return running(opened)


@pytest.fixture
def postgres_run(postgres_url: str) -> Run:
    async def opened() -> Database:
        return Postgres(await PostgresStore.open(postgres_url, LEDGER_TABLES, LedgerUnavailable))

    return running(opened)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.servers)])
def run(request: pytest.FixtureRequest) -> Run:
    """Each database in turn."""
    chosen: Run = request.getfixturevalue(f"{request.param}_run")
    return chosen


@pytest.fixture(scope="session")
def decide() -> Callable[..., Decision]:
    def made(
        timestamp: int = 2_000,
        *,
        request_id: str = "",
        station: str = STATION,
        status: Status = Status.ALLOWED,
        reason: str = "",
    ) -> Decision:
        return Decision(request_id or new_request_id(), station, "0123456789abcdef", status, reason, 12, timestamp)

    return made
