"""One SQLite file: its tables, who may open it, and what is written, looked up and read in it."""

import asyncio
import os
import sqlite3
import time
from collections.abc import Awaitable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from chargegate.engines.sqlite import batches
from chargegate.engines.sqlite.batches import Answers, Batches, Items, Operation
from chargegate.engines.sqlite.checkpoints import Checkpoints
from chargegate.engines.sqlite.file import PATIENT_S, connect, migrate, take_lock
from chargegate.engines.sqlite.threads import ConnectionThreads, Work
from chargegate.storage.budget import LOCK_S
from chargegate.storage.group_commit import Done, Then
from chargegate.storage.unavailable import RaisedAs, Unavailable

T = TypeVar("T")

_SCAN_S: Final = 10.0
_LINGER_S: Final = 0.01  # of the ends of callbacks and of acks, which nobody waits for


class SqliteStore:
    """A database file: a thread that writes, one that looks things up, and threads for longer reads."""

    def __init__(self, path: Path, lock: int | None, lock_s: float = LOCK_S) -> None:
        self.path = path
        self._lock = lock
        new_connection = partial(connect, path, lock_s)
        self._checkpoints = Checkpoints(path, new_connection, self._between)
        self._writer = Batches(new_connection, self._commit, linger_s=_LINGER_S)
        self._looker = Batches(new_connection, batches.look_up)
        self._readers = ConnectionThreads(new_connection, 2)
        self._scanner = ConnectionThreads(new_connection)
        self.submit = self._writer.submit
        self.notify = self._writer.notify
        self.post = self._writer.post
        self.look_up = self._looker.submit

    @classmethod
    async def open(
        cls, path: Path, migrations: Mapping[str, Sequence[str]], *, exclusive: bool, patient: bool = False
    ) -> "SqliteStore":
        """Open or make the file and bring its tables up to date.

        ``migrations`` maps a component to its scripts, oldest first; each is run once, in a transaction of its own.
        With ``exclusive`` no other process may open it so. With ``patient`` operations wait longer for a lock that
        another program holds; else no longer than a client may wait. Raises ``Unusable`` where the file is in use by
        another process, which the message names, cannot be written, or was made by a newer release.
        """
        lock = take_lock(path.with_name(path.name + ".lock")) if exclusive else None
        try:
            await asyncio.to_thread(migrate, path, migrations)
            return cls(path, lock, PATIENT_S if patient else LOCK_S)
        except BaseException:
            if lock is not None:
                os.close(lock)
            raise

    def _commit(self, connection: sqlite3.Connection, batch: Items) -> Answers:
        began = time.monotonic_ns()
        answers = batches.commit(connection, batch)
        self._checkpoints.committed(began, connection.total_changes)
        return answers

    async def _between(self, work: Work[T]) -> T:
        return await self._writer.between(work)

    async def migrate(self, migrations: Mapping[str, Sequence[str]]) -> None:
        """Bring tables up to date, as ``open`` does. Raises ``Unusable``."""
        await asyncio.to_thread(migrate, self.path, migrations)

    async def check(self) -> None:
        """Raises ``Unavailable`` unless a write reaches the disk now."""
        await self.submit(_PROBE, None)

    async def read(self, query: Work[T]) -> T:
        """Run a query in a reading thread. Raises ``Unavailable``."""
        return await _available(self._readers.run(query))

    async def scan(self, query: Work[T]) -> T:
        """Run a query that may look at very many rows, in a thread of its own so that nobody else waits for it. It is
        given up after ten seconds. Raises ``Unavailable``."""

        def limited(connection: sqlite3.Connection) -> T:
            end = time.monotonic() + _SCAN_S
            connection.set_progress_handler(lambda: time.monotonic() > end, 100_000)
            return query(connection)

        return await _available(self._scanner.run(limited))

    async def close(self) -> None:
        """Commit what is waiting and let go of the file. May be called twice."""
        for threads in (self._checkpoints, self._writer, self._looker, self._readers, self._scanner):
            await threads.close()
        self._checkpoints.close_file()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class StorePart:
    """The store as the queue or the ledger uses it: where the file fails, the part's own kind of ``Unavailable`` is
    raised."""

    def __init__(self, store: SqliteStore, raised_as: RaisedAs) -> None:
        self._store = store
        self._raised_as = raised_as

    async def write(self, operation: Operation, item: Any) -> Any:
        try:  # as this is called several times for each request, nothing is entered where nothing fails
            return await self._store.submit(operation, item)
        except Unavailable:
            with self._raised_as:
                raise

    def notify(self, operation: Operation, item: Any, done: Done) -> None:
        """As ``write``, for one that is no coroutine: ``done`` is called with the answer, or with an exception, to be
        seen ``as_raised``."""
        try:  # as above
            self._store.notify(operation, item, done)
        except Unavailable:
            with self._raised_as:
                raise

    def as_raised(self, error: Exception) -> Exception:
        """The part's own kind of an exception that ``notify`` answered."""
        try:
            with self._raised_as:
                raise error
        except Exception as raised:  # noqa: BLE001 - it is handed on
            return raised

    def post(self, operation: Operation, item: Any, then: Then | None = None) -> None:
        try:  # as above
            self._store.post(operation, item, then)
        except Unavailable:
            with self._raised_as:
                raise

    async def look_up(self, operation: Operation, item: Any) -> Any:
        try:  # as above
            return await self._store.look_up(operation, item)
        except Unavailable:
            with self._raised_as:
                raise

    async def read(self, query: Work[T]) -> T:
        with self._raised_as:
            return await self._store.read(query)

    async def scan(self, query: Work[T]) -> T:
        with self._raised_as:
            return await self._store.scan(query)

    async def check(self) -> None:
        with self._raised_as:
            await self._store.check()


async def _available(answer: Awaitable[T]) -> T:
    try:
        return await answer
    except sqlite3.Error as error:
        raise Unavailable(str(error)) from None


def _probe(connection: sqlite3.Connection, _items: list[None]) -> None:
    """Change a number in the file's head that nobody reads: SQLite does not write what stays the same."""
    number = connection.execute("PRAGMA user_version").fetchone()[0]
    connection.execute(f"PRAGMA user_version = {(number + 1) % 1_000_000}")


_PROBE = Operation(_probe)
