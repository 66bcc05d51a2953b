"""Group commit in SQLite: what gathers while one batch is under way is the next, whatever kinds of work are in it."""

import asyncio
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any, Final, TypeVar

import msgspec

from chargegate.engines.sqlite.threads import ConnectionThreads, Work
from chargegate.observe import log
from chargegate.storage.group_commit import Done, GroupCommit, Then
from chargegate.storage.unavailable import Unavailable

T = TypeVar("T")

_MAX_ITEMS: Final = 10_000
_ENVIRONMENT: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_NOMEM,
    }
)


class Operation(msgspec.Struct, frozen=True, eq=False):
    """What is done with all items of one kind in a batch.

    ``apply`` runs in the thread and returns an answer per item, or None for no answers. ``committed`` runs in the
    thread after the commit with the answers, ``landed`` in the event loop with items and answers, in the order of the
    commits and before any waiter is woken.
    """

    apply: Callable[[sqlite3.Connection, list[Any]], Sequence[Any] | None]
    committed: Callable[[Sequence[Any]], None] | None = None
    landed: Callable[[list[tuple[Any, Any]]], None] | None = None


Items = dict[Operation, list[Any]]
Answers = list[Sequence[Any] | None]
_Run = Callable[[sqlite3.Connection, Items], Answers]


def look_up(connection: sqlite3.Connection, batch: Items) -> Answers:
    return [operation.apply(connection, items) for operation, items in batch.items()]


def commit(connection: sqlite3.Connection, batch: Items) -> Answers:
    """All of a batch in one transaction."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        answers = [operation.apply(connection, items) for operation, items in batch.items()]
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    for operation, answered in zip(batch, answers, strict=True):
        if operation.committed is not None and answered is not None:
            try:
                operation.committed(answered)
            except Exception:  # noqa: BLE001 - what is committed stays committed
                log.exception("after a commit")
    return answers


class Batches:
    """A thread that does operations, batch after batch. All methods are called from one event loop."""

    def __init__(self, connect: Callable[[], sqlite3.Connection], run: _Run, *, linger_s: float = 0.0) -> None:
        """``run`` is ``commit``, or ``look_up`` where nothing is written. ``linger_s``: see ``GroupCommit``."""
        self._run = run
        self._thread = ConnectionThreads(connect)
        self._group: GroupCommit[tuple[Operation, Any], Any] = GroupCommit(
            self._batch, max_items=_MAX_ITEMS, linger_s=linger_s
        )

    def submit(self, operation: Operation, item: Any) -> "asyncio.Future[Any]":
        """The future of the item's answer. It raises ``Unavailable``, or what ``apply`` raised."""
        return self._group.submit((operation, item))

    def notify(self, operation: Operation, item: Any, done: Done) -> None:
        """As ``submit``, for one that is no coroutine: ``done`` is called with what the future would have."""
        self._group.notify((operation, item), done)

    def post(self, operation: Operation, item: Any, then: Then | None = None) -> None:
        """Do it soon; nobody waits. While the file is unavailable it is tried again every second. ``then`` is called
        once it is done."""
        self._group.post((operation, item), then)

    async def between(self, work: Work[T]) -> T:
        """What the work returns or raises. It is done in the thread between two batches."""
        return await self._thread.run(work)

    async def _batch(self, submitted: list[tuple[Operation, Any]]) -> Sequence[Any] | None:
        batch: defaultdict[Operation, list[Any]] = defaultdict(list)
        for operation, item in submitted:
            batch[operation].append(item)
        try:
            answers = await self._thread.run(lambda connection: self._run(connection, batch))
        except sqlite3.Error as error:
            if len(submitted) == 1 or _is_environment(error):
                raise Unavailable(str(error)) from None
            raise
        next_answer = {}
        for (operation, items), answered in zip(batch.items(), answers, strict=True):
            if operation.landed is not None and answered is not None:
                operation.landed(list(zip(items, answered, strict=True)))
            next_answer[operation] = repeat(None).__next__ if answered is None else iter(answered).__next__
        if len(batch) == 1:
            return answers[0]
        return [next_answer[operation]() for operation, _ in submitted]

    async def close(self) -> None:
        """Do what has gathered, then end the thread. May be called twice."""
        await self._group.close()
        await self._thread.close()


def _is_environment(error: sqlite3.Error) -> bool:
    """Whether the file or the machine is at fault, and not one item."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _ENVIRONMENT
