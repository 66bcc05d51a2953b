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
"""asyncpg's connection."""

_BAD_VALUE: Final = (ValueError, asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)
_BROKEN: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.ReadOnlySQLTransactionError,  # a failover made a standby of the server
    asyncpg.FeatureNotSupportedError,  # what a standby says to BEGIN READ WRITE
)
_UNDONE: Final = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
_ENCODING: Final = "UTF8"


def split_url(url: str, own: Iterable[str]) -> tuple[str, dict[str, str]]:
    """The URL as asyncpg takes it, and those of its options that are ours."""
    parts = urlsplit(url)
    options = parse_qsl(parts.query, keep_blank_values=True)
    theirs = urlencode([option for option in options if option[0] not in own])
    return parts._replace(query=theirs).geturl(), {key: value for key, value in options if key in own}


async def connect(url: str, within: float = STORE_S, kind: type[Connection] = asyncpg.Connection) -> Connection:
    """A connection without a statement cache, to a database that keeps every text as it is. ``within`` is in seconds.
    Raises ``Unavailable`` or ``Unusable``."""
    connection = await _connected(url, within, kind)
    encoding = getattr(connection.get_settings(), "server_encoding", _ENCODING)
    if encoding != _ENCODING:
        connection.terminate()
        raise Unusable(f"the database's encoding is {encoding} and must be UTF8; make one with ENCODING 'UTF8'")
    return connection


async def _connected(url: str, within: float, kind: type[Connection]) -> Connection:
    try:
        return await asyncpg.connect(
            url,
            timeout=within,
            statement_cache_size=0,
            connection_class=kind,
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
