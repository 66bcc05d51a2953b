"""One connection to PostgreSQL, and what its faults mean."""

import asyncio
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit

import asyncpg  # type: ignore[import-untyped]  # it ships no types

from chargegate.storage.budget import STORE_S
from chargegate.storage.tasks import observed
from chargegate.storage.unavailable import Unavailable, Unusable

Connection = Any
"""A ``Session``, or a connection of somebody else's."""

_BAD_VALUE: Final = (ValueError, asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)
_BROKEN: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.ReadOnlySQLTransactionError,  # a failover made a standby of the server
    asyncpg.FeatureNotSupportedError,  # what a standby says to BEGIN READ WRITE
)
_UNDONE: Final = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
_ENCODING: Final = "UTF8"


class Session(asyncpg.Connection):  # type: ignore[misc]  # it ships no types
    """A connection of ours. ``direct``: it has one session of the server for itself, so that what is set and prepared
    there stays. Behind a pooler each transaction may get another session."""

    direct: bool | None = None
    """None until ``settle`` has seen it."""

    async def fetch_often(self, statement: str, *values: Any) -> Any:
        """As ``fetch``, for one of the few statements that every request needs: a session of ours prepares it once."""
        if not self.direct:
            return await self.fetch(statement, *values)
        prepared = self._prepared.get(statement)
        if prepared is None:
            prepared = await self.prepare(statement, name=f"chargegate_{len(self._prepared)}")
            self._prepared[statement] = prepared
        return await prepared.fetch(*values)

    async def settle(self) -> None:
        """See whether it is ``direct``, and set there what our transactions need."""
        self._prepared: dict[str, Any] = {}
        await self.execute("BEGIN READ ONLY")
        own = await self.fetchval("SELECT pg_backend_pid()")
        await self.execute("COMMIT")
        # A pooler gives its clients numbers of its own, because a cancel request goes to the pooler.
        self.direct = own == self.get_server_pid()
        if self.direct:
            await self.execute(
                "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED, NOT DEFERRABLE"
                + limits(self, STORE_S, local=False)
            )


def limits(connection: Connection, within: float, *, local: bool) -> str:
    """The settings of a transaction, or of a session of ours, that may take so many seconds: each after a semicolon."""
    settings = {
        # Few rows are touched, which takes less time than to compile a statement whose cost is overestimated, or to
        # start processes for it.
        "jit": "off",
        "max_parallel_workers_per_gather": "0",
        "statement_timeout": f"{within * 1000:.0f}",
        "lock_timeout": "0",
        # A host that dies must not hold its row locks until TCP notices.
        "idle_in_transaction_session_timeout": f"{within * 1000 + 1000:.0f}",
    }
    if connection.get_server_version().major >= 17:
        settings["transaction_timeout"] = "0"
    scope = "LOCAL" if local else "SESSION"
    return "".join(f"; SET {scope} {name} = {value}" for name, value in settings.items())


def split_url(url: str, own: Iterable[str]) -> tuple[str, dict[str, str]]:
    """The URL as asyncpg takes it, and those of its options that are ours."""
    parts = urlsplit(url)
    options = parse_qsl(parts.query, keep_blank_values=True)
    theirs = urlencode([option for option in options if option[0] not in own])
    return parts._replace(query=theirs).geturl(), {key: value for key, value in options if key in own}


async def connect(url: str, within: float = STORE_S) -> Connection:
    """A connection without a statement cache, to a database that keeps every text as it is. ``within`` is in seconds.
    Raises ``Unavailable`` or ``Unusable``."""
    connection = await _connected(url, within)
    encoding = getattr(connection.get_settings(), "server_encoding", _ENCODING)
    if encoding != _ENCODING:
        connection.terminate()
        raise Unusable(f"the database's encoding is {encoding} and must be UTF8; make one with ENCODING 'UTF8'")
    return connection


async def _connected(url: str, within: float) -> Connection:
    try:
        return await asyncpg.connect(
            url,
            timeout=within,
            statement_cache_size=0,
            connection_class=Session,
            server_settings={"application_name": "chargegate"},
        )
    except TimeoutError:
        raise Unavailable("no connection in time") from None
    except OSError as error:
        raise Unavailable(error.strerror or "no connection") from None
    except ValueError:
        raise Unusable("not the URL of a PostgreSQL database") from None
    except asyncpg.PostgresError as error:  # its message names the user, the database or the option, and no value
        raise Unavailable(error.message or type(error).__name__) from None
    except Exception as error:  # noqa: BLE001 - asyncpg raises many kinds where something else answers than PostgreSQL
        raise Unavailable(type(error).__name__) from None


async def answers(connection: Connection, within: float) -> bool:
    """Whether the server still answers on a connection, within so many seconds. Nothing is done there.

    An empty statement would do for the server, but asyncpg raises ``AttributeError`` at the answer to one.
    """
    asking = observed(asyncio.ensure_future(connection.execute("SELECT 1")))
    await asyncio.wait((asking,), timeout=within)
    return asking.done() and asking.exception() is None


def is_undone(error: BaseException) -> bool:
    """Whether the server undid the transaction because of another one's, and asks for it to be run again. Between our
    own transactions only a deadlock could do this; a standby undoes what its primary's changes contradict."""
    return isinstance(error, _UNDONE)


def is_broken(error: BaseException) -> bool:
    """Whether the connection is the cause, so that a new one may do better. Errors that the server did not send have
    no common class: asyncpg, the system, a parser, and uvloop on a transport that just closed raise their own."""
    if isinstance(error, asyncpg.PostgresError):
        return isinstance(error, _BROKEN)
    return isinstance(error, Exception) and not isinstance(error, (ValueError, Unavailable, Unusable))


def is_worth_repeating(error: Exception) -> bool:
    """Whether a transaction that failed may succeed on another connection, in the time that is left."""
    if isinstance(error, asyncpg.CheckViolationError):
        return True  # no partition for a row: the database was emptied, and another process made the tables anew
    return is_undone(error) or (is_broken(error) and not isinstance(error, TimeoutError))


def meaning_of(error: Exception) -> Exception:
    """What a caller is told: ``Unavailable``, ``Unusable``, or ``ValueError`` for a value that the tables do not take.
    No message repeats a value, as asyncpg's do."""
    if isinstance(error, (Unavailable, Unusable)):
        return error
    if isinstance(error, TimeoutError):
        return Unavailable("no answer in time")
    if isinstance(error, _BAD_VALUE):
        return ValueError("a value that the tables do not take")
    return Unavailable(type(error).__name__)
