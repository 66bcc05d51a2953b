"""Threads that use SQLite, so that the event loop never waits for the disk."""

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from chargegate.storage.unavailable import Unavailable

T = TypeVar("T")

Work = Callable[[sqlite3.Connection], T]


class ConnectionThreads:
    """Threads with a connection each. Work that is handed to them goes to the first one that is free."""

    def __init__(self, connect: Callable[[], sqlite3.Connection], count: int = 1) -> None:
        """Each thread makes its connection at once, so that later work needs no file that is not open yet; where that
        fails, with its first work, which raises the reason."""
        self._connect = connect
        self._loop = asyncio.get_running_loop()
        self._inbox: queue.SimpleQueue[tuple[Work[Any], asyncio.Future[Any]] | None] = queue.SimpleQueue()
        self._closed = False
        self._threads = [threading.Thread(target=self._main, name="sqlite", daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    async def run(self, work: Work[T]) -> T:
        """What the work returns or raises. Raises ``Unavailable`` after ``close``."""
        if self._closed:
            raise Unavailable("closed")
        answer: asyncio.Future[T] = self._loop.create_future()
        self._inbox.put((work, answer))
        return await answer

    def _main(self) -> None:
        connection: sqlite3.Connection | None = None
        with contextlib.suppress(Exception):  # the first work tries again, and says why it fails
            connection = self._connect()
        while (job := self._inbox.get()) is not None:
            work, answer = job
            result, error = None, None
            try:
                connection = connection or self._connect()
                result = work(connection)
            except Exception as raised:  # noqa: BLE001 - raised where the work is waited for
                error = raised
            try:
                self._loop.call_soon_threadsafe(_settle, answer, result, error)
            except RuntimeError:  # the event loop is closed, and nobody waits any more
                continue
        if connection is not None:
            connection.close()

    async def close(self) -> None:
        """Finish what was handed over, and close the connections. May be called twice."""
        if not self._closed:
            self._closed = True
            for _ in self._threads:
                self._inbox.put(None)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)


def _settle(answer: "asyncio.Future[Any]", result: Any, error: Exception | None) -> None:
    if answer.done():
        return
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)
