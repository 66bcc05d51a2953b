"""A durable queue in one SQLite file, for one process.

What was committed is handed on in memory. Past a bounded window the backlog stays on disk and is paged in, so that
a request costs the same whether ten or a million wait. ``_cursor`` is the row up to which all rows were handed to
the window; ``_newest`` is the newest row known. Rows in between are only on disk.
"""

import asyncio
import contextlib
import sqlite3
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from chargegate.engines import SQLITE
from chargegate.engines.sqlite.batches import Operation
from chargegate.engines.sqlite.connection import SqliteStore, StorePart
from chargegate.engines.sqlite.queries import insert_new, run_many, select, select_one
from chargegate.engines.sqlite.statements import QUEUE
from chargegate.model import now_ms
from chargegate.queues.base import (
    AFTER_ALL,
    Delivery,
    Depth,
    Listed,
    Message,
    QueueFull,
    QueueUnavailable,
    Stored,
    Waiting,
    queue_unavailable,
)

_WINDOW: Final = 2048
_PAGE: Final = 512
_WATCH_S: Final = 0.5


class SqliteQueue:
    """Keeps the promises of ``Queue`` across crashes. One process receives; others may put (a replay, a move)."""

    capabilities = SQLITE.capabilities

    def __init__(
        self,
        store: SqliteStore,
        max_size: int,
        waiting: int,
        newest: int,
        on_close: Callable[[], Awaitable[None]] | None,
    ) -> None:
        self._store = StorePart(store, queue_unavailable)
        self._on_close = on_close
        self._max_size = max_size
        self._waiting = waiting
        self._window: deque[Delivery] = deque()
        self._cursor = 0
        self._newest = newest
        self._opened_at = newest  # rows up to here may have been handed out before a crash
        self._arrival = asyncio.Event()
        self._paging = asyncio.Lock()
        self._insert = Operation(_insert, landed=self._stored)
        self._look = Operation(_look, landed=self._saw_newest)
        self._watcher = asyncio.create_task(self._watch())
        self._closed = False

    @classmethod
    async def open(
        cls, store: SqliteStore, max_size: int, *, on_close: Callable[[], Awaitable[None]] | None = None
    ) -> "SqliteQueue":
        """Take up what an earlier process left. ``on_close`` is awaited once, at the end of ``close``. Raises
        ``Unavailable``."""

        def state(connection: sqlite3.Connection) -> tuple[int, int]:
            count, newest = connection.execute(QUEUE["count"]).fetchone()
            return count, max(newest, _newest(connection))

        return cls(store, max_size, *await store.read(state), on_close)

    async def put(self, message: Message) -> None:
        if self._waiting >= self._max_size:
            raise QueueFull
        self._waiting += 1
        try:
            await self._store.write(self._insert, message)
        except Exception:
            self._waiting -= 1
            raise

    def put_then(self, message: Message, done: Stored) -> None:
        if self._waiting >= self._max_size:
            done(QueueFull())
            return
        self._waiting += 1

        def told(answer: Any) -> None:
            if isinstance(answer, Exception):
                self._waiting -= 1
                done(self._store.as_raised(answer))
            else:
                done(None)

        try:
            self._store.notify(self._insert, message, told)
        except QueueUnavailable as error:
            told(error)

    def _stored(self, stored: list[tuple[Message, int]]) -> None:
        """Messages were committed, in the order of their rows."""
        first, last = stored[0][1], stored[-1][1]
        only_ours = first == self._newest + 1 and last - first + 1 == len(stored)
        window_has_all = self._cursor == self._newest and len(self._window) + len(stored) <= _WINDOW
        if only_ours and window_has_all:
            self._newest = self._cursor = last
            self._window.extend(Delivery(message, row, fresh=True) for message, row in stored)
            self._arrival.set()
        else:
            self._left_on_disk(last, own=len(stored))

    @property
    def waiting(self) -> int:
        """Messages that nobody has taken yet, with those that are being committed."""
        return self._waiting

    def skip(self, rows: Sequence[int]) -> None:
        """Messages were committed that are taken already, in the order of their rows. Where others lie on disk before
        them, they are handed out again, and the ledger says what became of them."""
        if rows[0] == self._newest + 1 and self._cursor == self._newest and rows[-1] - rows[0] + 1 == len(rows):
            self._newest = self._cursor = rows[-1]
        else:
            self._left_on_disk(rows[-1], own=0)

    def _saw_newest(self, looks: list[tuple[None, int]]) -> None:
        self._left_on_disk(looks[-1][1], own=0)

    def _left_on_disk(self, newest: int, own: int) -> None:
        """Rows up to ``newest`` are on disk. ``own`` of them are counted already; other processes put the rest."""
        if newest > self._newest:
            self._waiting += max(0, newest - self._newest - own)
            self._newest = newest
            self._arrival.set()

    async def receive(self, limit: int) -> list[Delivery]:
        while not self._window:
            if self._cursor < self._newest:
                await self._page_in()
            else:
                self._arrival.clear()
                await self._arrival.wait()
        taken = [self._window.popleft() for _ in range(min(limit, len(self._window)))]
        self._waiting -= len(taken)
        return taken

    async def _page_in(self) -> None:
        async with self._paging:
            if self._window or self._cursor >= self._newest:
                return
            cursor, newest = self._cursor, self._newest
            rows = await self._store.read(select(_numbered, QUEUE["page"], (cursor, newest, _PAGE)))
            self._window.extend(Delivery(message, seq, fresh=seq > self._opened_at) for seq, message in rows)
            self._cursor = rows[-1][0] if rows else newest

    async def ack(self, delivery: Delivery) -> None:
        self._store.post(_DELETE, delivery.handle)

    async def find(self, request_id: str) -> Waiting | None:
        row = await self._store.read(select_one(tuple, QUEUE["find"], (request_id,)))
        if row is None:
            return None
        return Waiting(_text(row[1]), row[2], row[0] < self._first_waiting, row[3])

    @property
    def _first_waiting(self) -> int:
        return self._window[0].handle if self._window else self._cursor + 1

    async def unacked(self, limit: int, after: str | None) -> Sequence[Listed]:
        rows = await self._store.read(select(_numbered, QUEUE["unacked"], (after or AFTER_ALL, limit)))
        first = self._first_waiting
        return [
            Listed(m.request_id, m.request_id, Waiting(m.station_id, m.accepted_at, seq < first, m.body))
            for seq, m in rows
        ]

    async def depth(self) -> Depth:
        oldest: int | None = None
        if self._window:
            oldest = self._window[0].message.accepted_at
        elif self._cursor < self._newest:
            oldest = await self._store.read(select_one(lambda row: int(row[0]), QUEUE["oldest"], (self._cursor,)))
        return Depth(self._waiting, max(0, now_ms() - oldest) if oldest else 0)

    async def check(self) -> None:
        await self._store.check()

    async def _watch(self) -> None:
        """Notice what other processes put."""
        while True:
            await asyncio.sleep(_WATCH_S)
            with contextlib.suppress(QueueUnavailable):
                await self._store.write(self._look, None)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
            if self._on_close is not None:
                await self._on_close()


def _numbered(row: tuple[int, bytes, bytes, int, bytes]) -> tuple[int, Message]:
    number, request_id, station_id, accepted_at, body = row
    return number, Message(_text(request_id), _text(station_id), accepted_at, body)


def _text(stored: bytes) -> str:
    return stored.decode(errors="replace")


def row_of(message: Message) -> tuple[str, str, int, bytes]:
    """What is stored of a message."""
    return message.request_id, message.station_id, message.accepted_at, message.body


def _insert(connection: sqlite3.Connection, messages: list[Message]) -> Sequence[int]:
    return insert_new(connection, QUEUE["insert"], [row_of(message) for message in messages])


def delete(connection: sqlite3.Connection, rows: list[int]) -> None:
    run_many(connection, QUEUE["delete"], [(row,) for row in rows])


_DELETE: Final = Operation(delete)


def _newest(connection: sqlite3.Connection) -> int:
    row = connection.execute(QUEUE["last_number"]).fetchone()
    return row[0] if row else 0


def _look(connection: sqlite3.Connection, items: list[None]) -> Sequence[int]:
    return [_newest(connection)] * len(items)
