"""Group commit: a thread with a connection of its own, and many that wait for it.

Whatever gathers while the thread is busy goes to it as one batch. A lane that writes makes a batch one transaction,
commits it with ``synchronous=FULL``, and only then wakes all its waiters; a lane that looks things up answers a batch
with one query. So durability costs one sync for many rows, and a row costs the same alone or in company.
"""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from chargegate.observe import log
from chargegate.storage.unavailable import Unavailable

_RETRY_S = 1.0
_ENVIRONMENT = frozenset(
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


class StoreUnavailable(Unavailable):
    """The file cannot be written or read now, and nothing changed. The message is SQLite's, which holds no values."""


class Operation(msgspec.Struct, frozen=True, eq=False):
    """What a lane does with all items of one kind in a batch.

    ``apply`` runs in the lane's thread and returns a result per item, or None for no results. ``committed`` runs in
    the thread, ``landed`` in the event loop with what succeeded, in the order of the commits and before any waiter
    is woken.
    """

    apply: Callable[[sqlite3.Connection, list[Any]], Sequence[Any] | None]
    committed: Callable[[Sequence[Any]], None] | None = None
    landed: Callable[[list[tuple[Any, Any]]], None] | None = None


_Waiters = list["asyncio.Future[Any] | None"]
_Batch = dict[Operation, tuple[list[Any], _Waiters]]
_Results = dict[Operation, Sequence[Any] | Exception | None]


class Lane:
    """A thread that answers batches. All its methods are called from one event loop."""

    def __init__(self, connect: Callable[[], sqlite3.Connection], *, transactions: bool) -> None:
        self._connect = connect
        self._transactions = transactions
        self._loop = asyncio.get_running_loop()
        self._gathered: _Batch = {}
        self._busy = False
        self._closing: asyncio.Future[None] | None = None
        self._inbox: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="sqlite", daemon=True)
        self._thread.start()

    def submit(self, operation: Operation, item: Any) -> "asyncio.Future[Any]":
        """The future of the item's result. It raises ``StoreUnavailable``, or what ``apply`` raised."""
        waiter: asyncio.Future[Any] = self._loop.create_future()
        self._add(operation, item, waiter)
        return waiter

    def post(self, operation: Operation, item: Any) -> None:
        """Do it soon. While the file cannot be written it is tried again."""
        self._add(operation, item, None)

    def _add(self, operation: Operation, item: Any, waiter: "asyncio.Future[Any] | None") -> None:
        if self._closing is not None:
            raise StoreUnavailable("closed")
        if not self._gathered and not self._busy:
            self._loop.call_soon(self._hand_over)  # after all that this turn of the loop will add
        group = self._gathered.get(operation)
        if group is None:
            group = self._gathered[operation] = ([], [])
        group[0].append(item)
        group[1].append(waiter)

    def _hand_over(self) -> None:
        if self._gathered and not self._busy:
            batch, self._gathered = self._gathered, {}
            self._busy = True
            self._inbox.put(batch)

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        while (batch := self._inbox.get()) is not None:
            try:
                connection = connection or self._connect()
                results = self._execute(connection, batch)
            except sqlite3.Error as error:
                results = dict.fromkeys(batch, StoreUnavailable(str(error)))
            self._loop.call_soon_threadsafe(self._done, batch, results)
        if connection is not None:
            connection.close()

    def _execute(self, connection: sqlite3.Connection, batch: _Batch) -> _Results:
        try:
            return self._attempt(connection, {operation: items for operation, (items, _) in batch.items()})
        except sqlite3.Error as error:
            if _is_environment(error):
                raise
        except Exception:  # noqa: BLE001, S110 - a defect in one item; found again and reported below
            pass
        # One item broke a rule; its company shall not suffer for it.
        results: _Results = {}
        for operation, (items, _) in batch.items():
            results[operation] = [self._alone(connection, operation, item) for item in items]
        return results

    def _alone(self, connection: sqlite3.Connection, operation: Operation, item: Any) -> Any:
        try:
            answers = self._attempt(connection, {operation: [item]})[operation]
        except Exception as error:  # noqa: BLE001 - handed to the waiter
            return StoreUnavailable(str(error)) if isinstance(error, sqlite3.Error) else error
        return answers[0] if isinstance(answers, Sequence) else None

    def _attempt(self, connection: sqlite3.Connection, work: dict[Operation, list[Any]]) -> _Results:
        if not self._transactions:
            return {operation: operation.apply(connection, items) for operation, items in work.items()}
        try:
            connection.execute("BEGIN IMMEDIATE")
            results: _Results = {operation: operation.apply(connection, items) for operation, items in work.items()}
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        for operation, answers in results.items():
            if operation.committed is not None and isinstance(answers, Sequence):
                try:
                    operation.committed(answers)
                except Exception:  # noqa: BLE001 - committed is committed
                    log.exception("after a commit")
        return results

    def _done(self, batch: _Batch, results: _Results) -> None:
        for operation, (items, waiters) in batch.items():
            answers = results[operation]
            if isinstance(answers, Exception):
                answers = [answers] * len(items)
            elif answers is None:
                answers = [None] * len(items)
            elif operation.landed is not None:
                done = [(item, a) for item, a in zip(items, answers, strict=True) if not isinstance(a, Exception)]
                if done:
                    operation.landed(done)
            for item, waiter, answer in zip(items, waiters, answers, strict=True):
                if waiter is not None:
                    _wake(waiter, answer)
                elif isinstance(answer, Exception):
                    self._failed(operation, item, answer)
        self._busy = False
        self._hand_over()
        if self._closing is not None and not self._busy and not self._closing.done():
            self._closing.set_result(None)

    def _failed(self, operation: Operation, item: Any, error: Exception) -> None:
        if isinstance(error, StoreUnavailable):
            self._loop.call_later(_RETRY_S, self._post_again, operation, item)
        else:
            log.error("a write was given up", error=type(error).__name__)

    def _post_again(self, operation: Operation, item: Any) -> None:
        if self._closing is None:
            self.post(operation, item)

    async def close(self) -> None:
        """Do what has gathered, then end the thread."""
        if self._closing is None:
            self._closing = self._loop.create_future()
            self._hand_over()
            if self._busy:
                await self._closing
            self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)


def _wake(waiter: "asyncio.Future[Any]", answer: Any) -> None:
    if waiter.done():
        return
    if isinstance(answer, Exception):
        waiter.set_exception(answer)
    else:
        waiter.set_result(answer)


def _is_environment(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _ENVIRONMENT
