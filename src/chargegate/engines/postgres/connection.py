"""One PostgreSQL database: its tables, and transactions on a few connections.

Every statement runs inside an explicit transaction, is prepared without a name, and leaves nothing in its session, so
that a transaction-mode pooler may stand between. asyncpg's pool and its timeouts are not used: they end in a cancel
request that waits without limit for a server that is gone (asyncpg issue 1326). A connection that is late, or on
which anything failed, is cut off here, and the next one is made anew.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit

import asyncpg  # type: ignore[import-untyped]  # it ships no types

from chargegate.observe import log
from chargegate.storage.unavailable import Unavailable, Unusable

T = TypeVar("T")

Connection = Any  # asyncpg's

LIMIT_S: Final = 1.8  # a caller is told within two seconds
_CONNECT_S: Final = 10.0
_CONNECTIONS: Final = 8
MIGRATING_S: Final = 60.0
_CLOSE_S: Final = 1.0
_FULL_S: Final = 5.0
_LOCK: Final = 0x63686172676567  # "chargeg": this service's advisory lock
_REFUSED: Final = (ValueError, asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)
_BROKEN: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.DeadlockDetectedError,
    asyncpg.ReadOnlySQLTransactionError,  # it was the primary
)


def _broken(error: BaseException) -> bool:
    """Whether a connection made anew may do better. What is no answer of the server's has no one kind: asyncpg's, the
    system's, uvloop's of a transport that just closed, a parser's."""
    if isinstance(error, asyncpg.PostgresError):
        return isinstance(error, _BROKEN)
    return isinstance(error, Exception) and not isinstance(error, (ValueError, PostgresUnavailable, PostgresUnusable))


class PostgresUnavailable(Unavailable):
    """The database does not answer now, or cannot write; what was asked for may be asked for again. The message holds
    no value and no password."""


class PostgresUnusable(Unusable):
    """The URL is no database's, or the tables were made by a newer release."""


def split_url(url: str, own: Iterable[str]) -> tuple[str, dict[str, str]]:
    """The URL as asyncpg takes it, and those of its options that are ours."""
    parts = urlsplit(url)
    options = parse_qsl(parts.query, keep_blank_values=True)
    theirs = urlencode([option for option in options if option[0] not in own])
    return parts._replace(query=theirs).geturl(), {key: value for key, value in options if key in own}


async def connect(url: str, within: float = LIMIT_S) -> Connection:
    """A connection without a statement cache. Raises ``PostgresUnavailable`` or ``PostgresUnusable``."""
    try:
        return await asyncpg.connect(
            url, timeout=within, statement_cache_size=0, server_settings={"application_name": "chargegate"}
        )
    except TimeoutError:
        raise PostgresUnavailable("no connection in time") from None
    except OSError as error:
        raise PostgresUnavailable(error.strerror or "no connection") from None
    except ValueError:
        raise PostgresUnusable("not the URL of a PostgreSQL database") from None
    except asyncpg.PostgresError as error:  # it names the user, the database or the option, and no value of ours
        raise PostgresUnavailable(error.message or type(error).__name__) from None
    except Exception as error:  # noqa: BLE001 - see _broken
        raise PostgresUnavailable(type(error).__name__) from None


class PostgresStore:
    """A database: a few connections, made when needed and again when lost, and the tables in it."""

    def __init__(self, url: str, migrations: Mapping[str, Sequence[str]]) -> None:
        self._url = url
        self._migrations = migrations
        self._idle: list[Connection] = []
        self._room = asyncio.Semaphore(_CONNECTIONS)
        self._slow = asyncio.Semaphore(_CONNECTIONS // 4)
        self._migrating = asyncio.Lock()
        self._full_until = float("-inf")
        self._closed = False

    @classmethod
    async def open(cls, url: str, migrations: Mapping[str, Sequence[str]]) -> "PostgresStore":
        """A store whose tables are up to date. ``migrations`` maps a component to its scripts, oldest first. Raises
        ``PostgresUnavailable`` or ``PostgresUnusable``."""
        store = cls(url, migrations)
        await store.prepare()
        return store

    async def prepare(self, within: float = MIGRATING_S) -> None:
        """Bring the tables up to date; one process at a time does so. Raises as ``open``."""
        async with self._migrating:
            await self.transaction(self._migrate, within=within)

    async def _migrate(self, connection: Connection, _again: bool) -> None:
        await connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_versions (component text PRIMARY KEY, version integer NOT NULL)"
        )
        for component, scripts in self._migrations.items():
            version = await connection.fetchval("SELECT version FROM schema_versions WHERE component = $1", component)
            if (version or 0) > len(scripts):
                raise PostgresUnusable(f"made by a newer release ({component} tables have version {version})")
            if version == len(scripts):
                continue
            for script in scripts[version or 0 :]:
                await connection.execute(script)
            await connection.execute(
                "INSERT INTO schema_versions VALUES ($1, $2) ON CONFLICT (component) DO UPDATE SET version = $2",
                component,
                len(scripts),
            )
            log.info("tables migrated", component=component, version_from=version or 0, version_to=len(scripts))

    async def transaction(
        self,
        work: Callable[[Connection, bool], Awaitable[T]],
        *,
        within: float = LIMIT_S,
        read_only: bool = False,
        lazy: bool = False,
    ) -> T:
        """Run ``work(connection, again)`` and commit. ``lazy``: a crash of the server may undo it.

        A connection that breaks is replaced once, and ``again`` is True then: the first commit may have happened
        although its answer was lost, so ``work`` must be one that can be repeated. Raises ``PostgresUnavailable``,
        and ``ValueError`` for a value that the tables do not take.
        """
        begin = (
            f"BEGIN{' READ ONLY' if read_only else ''}; SET LOCAL statement_timeout = {within * 1000:.0f};"
            # a host that dies must not hold its row locks until TCP notices
            f" SET LOCAL idle_in_transaction_session_timeout = {within * 1000 + 1000:.0f}"
            f"{'; SET LOCAL synchronous_commit = off' if lazy else ''}"
        )
        loop = asyncio.get_running_loop()
        ends = loop.time() + within
        again = False
        while True:
            if self._closed:
                raise PostgresUnavailable("closed")
            left = max(0.1, ends - loop.time())
            try:
                return await self._attempt(work, again, begin, left)
            except asyncpg.UndefinedTableError as error:
                if again:
                    raise PostgresUnavailable(type(error).__name__) from None
                await self._make_again(left)
            except Exception as error:  # noqa: BLE001 - see _broken
                if isinstance(error, asyncpg.DiskFullError):
                    self._full_until = loop.time() + _FULL_S
                if failure := _failure(error, again=again, opening=work == self._migrate):
                    raise failure from None
            again = True

    async def _make_again(self, within: float) -> None:
        log.warning("tables are missing and made anew: the database was emptied")
        try:
            await self.prepare(within)
        except PostgresUnusable as error:
            raise PostgresUnavailable(str(error)) from None

    async def _attempt(
        self, work: Callable[[Connection, bool], Awaitable[T]], again: bool, begin: str, within: float
    ) -> T:
        loop = asyncio.get_running_loop()
        ends = loop.time() + within
        async with asyncio.timeout(within):
            await self._room.acquire()
        try:
            connection = await self._connection(max(0.1, ends - loop.time()))
            task = asyncio.ensure_future(_whole(connection, begin, work, again))
            try:
                await asyncio.wait((task,), timeout=max(0.1, ends - loop.time()))
                if not task.done():
                    raise TimeoutError
                result = task.result()
            except BaseException as error:
                connection.terminate()
                task.add_done_callback(_retrieved)
                if _broken(error):
                    self._hang_up()  # its sisters are hardly better off
                raise
            if self._closed:
                connection.terminate()
            else:
                self._idle.append(connection)
            return result
        finally:
            self._room.release()

    async def _connection(self, within: float) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return await connect(self._url, min(within, _CONNECT_S))

    def _hang_up(self) -> None:
        while self._idle:
            self._idle.pop().terminate()

    async def read(self, query: str, *values: Any, within: float = LIMIT_S) -> list[Any]:
        """The rows of a query. Raises ``PostgresUnavailable``."""

        async def fetch(connection: Connection, _again: bool) -> list[Any]:
            rows: list[Any] = await connection.fetch(query, *values)
            return rows

        if within <= LIMIT_S:
            return await self.transaction(fetch, read_only=True)
        async with self._slow:  # those who list must not keep those who write from a connection
            return await self.transaction(fetch, within=within, read_only=True)

    async def check(self) -> None:
        """Raises ``PostgresUnavailable`` unless a commit reaches the disk now and the tables are there; also for some
        seconds after a table could not grow, because on a full disk the log may still have room."""
        if asyncio.get_running_loop().time() < self._full_until:
            raise PostgresUnavailable("the database's disk is full")

        async def probe(connection: Connection, _again: bool) -> None:
            # a record in the write-ahead log that nobody reads: flushed at the commit, and nothing to clean up
            ((_, _, read_only),) = await connection.fetch(
                "SELECT pg_logical_emit_message(true, 'chargegate', ''), count(*),"
                " current_setting('transaction_read_only') FROM schema_versions"
            )
            if read_only == "on":  # as providers set it when the disk is nearly full
                raise PostgresUnavailable("the database is read-only")

        await self.transaction(probe)

    async def close(self) -> None:
        """May be called twice."""
        self._closed = True
        idle, self._idle = self._idle, []
        await asyncio.gather(*(connection.close(timeout=_CLOSE_S) for connection in idle), return_exceptions=True)


def _failure(error: Exception, *, again: bool, opening: bool) -> Exception | None:
    """What to raise; None where another attempt may do better."""
    if isinstance(error, TimeoutError):
        return PostgresUnavailable("no answer in time")
    if isinstance(error, PostgresUnusable) and not opening:  # it was usable: a file that its URL names is gone
        return PostgresUnavailable(str(error))
    if isinstance(error, (PostgresUnavailable, PostgresUnusable)):
        return error
    # No partition for a row: the database was emptied, and another process has made the tables anew.
    if not again and (_broken(error) or isinstance(error, asyncpg.CheckViolationError)):
        return None
    if isinstance(error, _REFUSED):
        return ValueError("a value that the tables do not take")  # their message would repeat the value
    return PostgresUnavailable(type(error).__name__)


async def _whole(
    connection: Connection, begin: str, work: Callable[[Connection, bool], Awaitable[T]], again: bool
) -> T:
    await connection.execute(begin)
    result = await work(connection, again)
    await connection.execute("COMMIT")
    return result


def _retrieved(task: "asyncio.Future[Any]") -> None:
    if not task.cancelled():
        task.exception()
