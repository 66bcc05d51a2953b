"""One PostgreSQL database: its tables, and transactions.

Every statement runs inside an explicit transaction, is prepared without a name, and leaves nothing in its session, so
that a transaction-mode pooler may stand between; where none does, the few statements that every request needs run
alone. Each transaction says itself what it needs: what a role or a database
has as its defaults (isolation level, read only, time limits) changes nothing.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, TypeVar

import asyncpg  # type: ignore[import-untyped]  # it ships no types

from chargegate.engines.postgres.alone import Alone, OwnSession, OwnSessions
from chargegate.engines.postgres.connection import Connection, is_broken, is_undone, is_worth_repeating, meaning_of
from chargegate.engines.postgres.pool import CONNECTIONS, Pool
from chargegate.engines.postgres.schema import Migrations, migrate
from chargegate.observe import log
from chargegate.storage.budget import STORE_S
from chargegate.storage.unavailable import Unavailable, Unusable

T = TypeVar("T")

Work = Callable[[Connection, bool], Awaitable[T]]
"""``work(connection, repeated)`` runs inside a transaction. ``repeated``: a first attempt failed, and may have been
committed although its answer was lost, so the work must be one that can be done twice."""

MIGRATING_S: Final = 600.0
_DISK_FULL_S: Final = 5.0
_ON_OFF: Final = ("off", "on")
_AGAIN_S: Final = 0.05
_READ_ONLY_BY_DEFAULT: Final = (
    "SELECT setting = 'on' AND source IN ('database', 'user', 'database user', 'client') FROM pg_settings"
    " WHERE name = 'default_transaction_read_only'"
)


class PostgresStore:
    """A database: a few connections, and the tables in it.

    Times are in seconds. Every method raises ``unavailable``, the kind of ``Unavailable`` that its owner promises,
    and ``ValueError`` for a value that the tables do not take.
    """

    def __init__(self, url: str, migrations: Migrations, unavailable: type[Unavailable] = Unavailable) -> None:
        self._pool = Pool(url)
        self._own = OwnSessions(url)
        self._migrations = migrations
        self._unavailable = unavailable
        self._long_reads = asyncio.Semaphore(CONNECTIONS // 4)
        self._migrating = asyncio.Lock()
        self._disk_full_until = float("-inf")
        self._read_write = False  # whether BEGIN must say so, because the role's or the database's default is another
        self._synchronous = True  # whether a commit reaches the disk without our asking for it
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
            deadline = self._loop.time() + within
            try:
                await self._run(partial(migrate, self._migrations), _Begin(within), deadline)
                self._synchronous = await self._run(_commits_reach_the_disk, _Begin(within), deadline)
            except Exception as error:  # noqa: BLE001 - whatever it is, the caller is told what it means
                raise self._told(error) from None

    async def transaction(
        self,
        work: Work[T],
        *,
        within: float = STORE_S,
        read_only: bool = False,
        durable: bool = True,
        alone: Alone[T] | None = None,
    ) -> T:
        """Run ``work`` and commit. A connection that breaks is replaced once, tables that are missing are made once,
        and what the server undid because of another transaction is run again until the time is over. Without
        ``durable`` a crash of the server may undo it.

        ``alone`` does the same with one statement, or gives None where one is not enough. It is tried first, and once.
        Its statement must be one that changes nothing more when it happens later, after ``work`` did.
        """
        begin = _Begin(within, read_only=read_only, durable=durable)
        deadline = self._loop.time() + within
        try:
            try:
                return await self._run(work, begin, deadline, alone)
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

    async def _run(self, work: Work[T], begin: "_Begin", deadline: float, alone: Alone[T] | None = None) -> T:
        repeated = False
        while True:
            try:
                if alone is not None and (done := await self._alone(alone, deadline)) is not None:
                    return done
                return await self._attempt(work, repeated, begin, deadline)
            except Exception as error:
                alone = None
                if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
                    await self._see_why_read_only(deadline)
                if not is_worth_repeating(error) or (repeated and not is_undone(error)):
                    raise
                if not is_undone(error):
                    repeated = True
                elif self._loop.time() >= deadline:
                    raise
                else:
                    await asyncio.sleep(random.uniform(0, _AGAIN_S))  # noqa: S311 - so that two do not meet again

    async def _attempt(self, work: Work[T], repeated: bool, begin: "_Begin", deadline: float) -> T:
        async def whole(connection: Connection) -> T:
            await connection.execute(begin.text(connection, read_write=self._read_write, synchronous=self._synchronous))
            result = await work(connection, repeated)
            await connection.execute("COMMIT")
            return result

        with self._seeing_full_disks():
            return await self._pool.use(whole, deadline)

    async def _alone(self, alone: Alone[T], deadline: float) -> T | None:
        if self._read_write or not self._synchronous or not self._own.possible:
            return None
        try:
            with self._seeing_full_disks():
                return await self._own.use(alone, deadline)
        except Exception as error:
            if is_broken(error):
                self._pool.close_idle()  # its connections are probably broken too
            raise

    @contextmanager
    def _seeing_full_disks(self) -> Iterator[None]:
        try:
            yield
        except asyncpg.DiskFullError:
            self._disk_full_until = self._loop.time() + _DISK_FULL_S
            raise

    async def _see_why_read_only(self, deadline: float) -> None:
        """Only what was set for our role or our database is overruled. A server that as a whole takes no writes is a
        standby, or has a disk that is nearly full: its operator means it."""

        async def ask(connection: Connection) -> bool:
            return bool(await connection.fetchval(_READ_ONLY_BY_DEFAULT))

        self._read_write = await self._pool.use(ask, deadline)
        if self._read_write:
            log.info("the role or the database is read only by default; our transactions say READ WRITE")

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

    async def change(self, statement: str, *values: Any) -> None:
        """A statement that every request needs, and that changes nothing more when it happens again."""

        async def alone(session: OwnSession) -> bool:
            await session.run(statement, *values)
            return True

        async def work(connection: Connection, _repeated: bool) -> bool:
            await connection.execute(statement, *values)
            return True

        await self.transaction(work, alone=alone)

    async def check(self) -> None:
        """Raises unless a commit reaches the disk now and the tables are there; also for some seconds after a table
        could not grow, because on a full disk the write-ahead log may still have room."""
        if self._loop.time() < self._disk_full_until:
            raise self._unavailable("the database's disk is full")
        await self.transaction(_probe)

    async def close(self) -> None:
        """May be called twice."""
        await asyncio.gather(self._pool.close(), self._own.close())


def rows_changed(tag: str) -> int:
    """From the server's answer to a statement, such as ``INSERT 0 3``."""
    return int(tag.rpartition(" ")[2])


async def _commits_reach_the_disk(connection: Connection, _repeated: bool) -> bool:
    waits = await connection.fetchval("SELECT current_setting('synchronous_commit') <> 'off'")
    if not waits:
        log.warning("synchronous_commit is off by default; our transactions that must not be lost say on")
    return bool(waits)


async def _probe(connection: Connection, _repeated: bool) -> None:
    # A record in the write-ahead log that nobody reads is flushed at the commit, and leaves nothing to clean up.
    ((_, _, read_only),) = await connection.fetch(
        "SELECT pg_logical_emit_message(true, 'chargegate', ''), count(*),"
        " current_setting('transaction_read_only') FROM schema_versions"
    )
    if read_only == "on":  # as providers set it when the disk is nearly full
        raise Unavailable("the database is read-only")


class _Begin:
    """How a transaction begins."""

    def __init__(self, within: float, *, read_only: bool = False, durable: bool = True) -> None:
        self._access = " READ ONLY" if read_only else ""
        self._limits = (
            # Few rows are touched, which takes less time than to compile a statement whose cost is overestimated, or
            # to start processes for it.
            "; SET LOCAL jit = off; SET LOCAL max_parallel_workers_per_gather = 0"
            # Every request is one statement or a few on rows of its own: what a higher level adds is only failures.
            f"; SET LOCAL statement_timeout = {within * 1000:.0f}; SET LOCAL lock_timeout = 0"
            # A host that dies must not hold its row locks until TCP notices.
            f"; SET LOCAL idle_in_transaction_session_timeout = {within * 1000 + 1000:.0f}"
        )
        self._durable = durable

    def text(self, connection: Connection, *, read_write: bool, synchronous: bool) -> str:
        access = self._access or (" READ WRITE" if read_write else "")
        newer = "; SET LOCAL transaction_timeout = 0" if connection.get_server_version().major >= 17 else ""
        commit = "" if self._durable == synchronous else f"; SET LOCAL synchronous_commit = {_ON_OFF[self._durable]}"
        return f"BEGIN ISOLATION LEVEL READ COMMITTED{access}{self._limits}{newer}{commit}"
