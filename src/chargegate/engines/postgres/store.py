"""One PostgreSQL database: its tables, and transactions.

Every statement runs inside an explicit transaction, is prepared without a name, and leaves nothing in its session, so
that a transaction-mode pooler may stand between.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeVar

import asyncpg  # type: ignore[import-untyped]  # it ships no types

from chargegate.engines.postgres.connection import Connection, is_worth_repeating, meaning_of
from chargegate.engines.postgres.pool import CONNECTIONS, Pool
from chargegate.engines.postgres.schema import Migrations, migrate
from chargegate.observe import log
from chargegate.storage.budget import STORE_S
from chargegate.storage.unavailable import Unavailable, Unusable

T = TypeVar("T")

Work = Callable[[Connection, bool], Awaitable[T]]
"""``work(connection, repeated)`` runs inside a transaction. ``repeated``: a first attempt failed, and may have been
committed although its answer was lost, so the work must be one that can be done twice."""

MIGRATING_S: Final = 60.0
_DISK_FULL_S: Final = 5.0


class PostgresStore:
    """A database: a few connections, and the tables in it.

    Times are in seconds. Every method raises ``unavailable``, the kind of ``Unavailable`` that its owner promises,
    and ``ValueError`` for a value that the tables do not take.
    """

    def __init__(self, url: str, migrations: Migrations, unavailable: type[Unavailable] = Unavailable) -> None:
        self._pool = Pool(url)
        self._migrations = migrations
        self._unavailable = unavailable
        self._long_reads = asyncio.Semaphore(CONNECTIONS // 4)
        self._migrating = asyncio.Lock()
        self._disk_full_until = float("-inf")
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def open(
        cls, url: str, migrations: Migrations, unavailable: type[Unavailable] = Unavailable
    ) -> "PostgresStore":
        """A store whose tables are up to date. Raises also ``Unusable``."""
        store = cls(url, migrations, unavailable)
        await store.prepare()
        return store

    async def prepare(self, within: float = MIGRATING_S) -> None:
        """Bring the tables up to date; one process at a time does so. Raises also ``Unusable``."""
        async with self._migrating:
            try:
                await self._run(partial(migrate, self._migrations), _begin(within), self._loop.time() + within)
            except Exception as error:  # noqa: BLE001 - whatever it is, the caller is told what it means
                raise self._told(error) from None

    async def transaction(
        self, work: Work[T], *, within: float = STORE_S, read_only: bool = False, durable: bool = True
    ) -> T:
        """Run ``work`` and commit. A connection that breaks is replaced once, and tables that are missing are made
        once. Without ``durable`` a crash of the server may undo it."""
        begin = _begin(within, read_only=read_only, durable=durable)
        deadline = self._loop.time() + within
        try:
            try:
                return await self._run(work, begin, deadline)
            except asyncpg.UndefinedTableError:
                log.warning("tables are missing and made anew: the database was emptied")
                await self.prepare(self._pool.left(deadline))
                return await self._attempt(work, True, begin, deadline)
        except Unusable as error:  # It could be used when it was opened. A file that its URL names may be gone.
            raise self._unavailable(str(error)) from None
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller is told what it means
            raise self._told(error) from None

    def _told(self, error: Exception) -> Exception:
        meaning = meaning_of(error)
        return self._unavailable(str(meaning)) if isinstance(meaning, Unavailable) else meaning

    async def _run(self, work: Work[T], begin: str, deadline: float) -> T:
        try:
            return await self._attempt(work, False, begin, deadline)
        except Exception as error:
            if not is_worth_repeating(error):
                raise
        return await self._attempt(work, True, begin, deadline)

    async def _attempt(self, work: Work[T], repeated: bool, begin: str, deadline: float) -> T:
        async def whole(connection: Connection) -> T:
            await connection.execute(begin)
            result = await work(connection, repeated)
            await connection.execute("COMMIT")
            return result

        try:
            return await self._pool.use(whole, deadline)
        except asyncpg.DiskFullError:
            self._disk_full_until = self._loop.time() + _DISK_FULL_S
            raise

    async def read(self, query: str, *values: Any, within: float = STORE_S) -> list[Any]:
        """The rows of a query."""

        async def fetch(connection: Connection, _repeated: bool) -> list[Any]:
            rows: list[Any] = await connection.fetch(query, *values)
            return rows

        if within <= STORE_S:
            return await self.transaction(fetch, read_only=True)
        async with self._long_reads:  # they must not take every connection from those who write
            return await self.transaction(fetch, within=within, read_only=True)

    async def execute(self, statement: str, *values: Any, within: float = STORE_S, durable: bool = True) -> int:
        """How many rows a statement changed. If the answer to a first commit was lost, that commit's count."""
        counts: list[int] = []

        async def change(connection: Connection, _repeated: bool) -> None:
            counts.append(rows_changed(await connection.execute(statement, *values)))

        await self.transaction(change, within=within, durable=durable)
        return max(counts)

    async def check(self) -> None:
        """Raises unless a commit reaches the disk now and the tables are there; also for some seconds after a table
        could not grow, because on a full disk the write-ahead log may still have room."""
        if self._loop.time() < self._disk_full_until:
            raise self._unavailable("the database's disk is full")
        await self.transaction(_probe)

    async def close(self) -> None:
        """May be called twice."""
        await self._pool.close()


def rows_changed(tag: str) -> int:
    """From the server's answer to a statement, such as ``INSERT 0 3``."""
    return int(tag.rpartition(" ")[2])


async def _probe(connection: Connection, _repeated: bool) -> None:
    # A record in the write-ahead log that nobody reads is flushed at the commit, and leaves nothing to clean up.
    ((_, _, read_only),) = await connection.fetch(
        "SELECT pg_logical_emit_message(true, 'chargegate', ''), count(*),"
        " current_setting('transaction_read_only') FROM schema_versions"
    )
    if read_only == "on":  # as providers set it when the disk is nearly full
        raise Unavailable("the database is read-only")


def _begin(within: float, *, read_only: bool = False, durable: bool = True) -> str:
    return (
        f"BEGIN{' READ ONLY' if read_only else ''}; SET LOCAL statement_timeout = {within * 1000:.0f};"
        # A host that dies must not hold its row locks until TCP notices.
        f" SET LOCAL idle_in_transaction_session_timeout = {within * 1000 + 1000:.0f}"
        f"{'' if durable else '; SET LOCAL synchronous_commit = off'}"
    )
