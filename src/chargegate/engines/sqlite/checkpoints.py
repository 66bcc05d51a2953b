"""Copies what was committed from SQLite's log into the database file, beside the commits.

By itself SQLite does this within a commit, once its log (the WAL) has some thousand pages: that commit, and whoever
waits for it, waits for two syncs and all these pages. Here another connection copies, in a thread of its own, and holds
nobody up: a passive checkpoint takes no lock that a commit needs. Only the log cannot begin anew while commits go on
behind the copying, so that now and then the writing thread copies the few pages that are left.

SQLite before 3.51.3 may lose pages where a checkpoint begins while all of the log is copied already, and another
connection's commit has the log begin anew in that instant (sqlite.org/wal.html, "The WAL-Reset Bug"). So a checkpoint
begins here only behind a commit that began after the last one had ended: then something is left to copy, and the log
goes on until this checkpoint ends.
"""

import asyncio
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NamedTuple

from chargegate.engines.sqlite.threads import ConnectionThreads, Work
from chargegate.observe import log
from chargegate.storage.unavailable import Unusable

_PAGES: Final = 4000
"""After about so many more pages in the log they are copied."""
_LONG: Final = 8000
"""A log with more pages is to begin anew, well within ``journal_size_limit``."""
_FEW: Final = 200
"""So many pages are copied fast enough for a commit to wait for it."""
_PASSES: Final = 3
_LEAST_CHANGES: Final = 200
_MOST_CHANGES: Final = 50_000
_RETRY_S: Final = 1.0


class Copied(NamedTuple):
    """What a checkpoint found and did, in pages. Both are -1 where another connection is at it."""

    in_log: int
    copied: int


def copy_log(connection: sqlite3.Connection) -> Copied:
    """Copy what no reader still needs in the log, without waiting for anybody."""
    _, in_log, copied = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return Copied(in_log, copied)


class Checkpoints:
    """Keeps the log short while one connection writes."""

    def __init__(
        self,
        path: Path,
        connect: Callable[[], sqlite3.Connection],
        write: Callable[[Work[Copied]], Awaitable[Copied]],
    ) -> None:
        """``write`` runs something in the writing thread, between two commits. Raises ``Unusable`` where the file
        cannot be opened."""
        self._loop = asyncio.get_running_loop()
        # SQLite syncs the database file only behind the last page of the log, which is the writing thread's. What was
        # copied before is synced through this descriptor, so that the writing thread finds little left.
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise Unusable(f"{path}: {error.strerror}") from None
        self._thread = ConnectionThreads(connect)
        self._write = write
        self._due = asyncio.Event()
        self._told = False
        self._began = 0  # when the newest of all commits that have ended, and changed anything, began
        self._ended = 0  # when the newest checkpoint ended
        self._changes = self._noted = self._changed = 0  # in changed rows
        self._every = _PAGES // 2  # so many changed rows make about as many pages as are copied at once
        self._in_log = 0
        self._failing = False
        self._task = asyncio.create_task(self._run())

    def committed(self, began: int, changes: int) -> None:
        """The writer has committed what it began at that time (``monotonic_ns``), and has changed so many rows since it
        was opened. The writing thread calls it."""
        if changes == self._changes:
            return  # it wrote nothing into the log
        self._began, self._changes = began, changes
        if changes - self._noted >= self._every and not self._told:
            self._told = True
            self._changed, self._noted = changes - self._noted, changes
            try:
                self._loop.call_soon_threadsafe(self._due.set)
            except RuntimeError:  # the event loop is closed, and who closes the file last copies everything
                return

    async def _run(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            changed, self._told = self._changed, False
            try:
                await self._turn(changed)
                self._failing = False
            except Exception as error:  # noqa: BLE001 - whatever it is: if this task ended, the log would grow for ever
                if not self._failing:
                    log.warning("the database's log cannot be copied, and grows", error=str(error))
                self._failing = True
                await asyncio.sleep(_RETRY_S)

    async def _turn(self, changed: int) -> None:
        found = await self._thread.run(self._copy)
        if found is None:
            return
        grown = found.in_log - self._in_log if found.in_log >= self._in_log else found.in_log
        every = min(2 * changed, changed * _PAGES // max(1, grown))
        self._every = min(_MOST_CHANGES, max(_LEAST_CHANGES, every))
        self._in_log = found.in_log
        if found.in_log >= _LONG and found.in_log - found.copied <= _FEW:
            last = await self._write(self._copy_last)
            self._in_log = 0 if last.in_log == last.copied else last.in_log

    def _copy(self, connection: sqlite3.Connection) -> Copied | None:
        """Copy and sync; a long log again, until only what is being committed is left. None where nothing was done."""
        found = None
        for _ in range(_PASSES):
            if self._began <= self._ended:  # the log may begin anew at any moment
                break
            copied = copy_log(connection)
            self._ended = time.monotonic_ns()
            if copied.in_log < 0:
                break
            os.fdatasync(self._file)
            found = copied
            if found.in_log < _LONG:
                break
        return found

    def _copy_last(self, connection: sqlite3.Connection) -> Copied:
        """In the writing thread nobody can have the log begin anew."""
        copied = copy_log(connection)
        self._ended = time.monotonic_ns()
        return copied

    async def close(self) -> None:
        """Copy nothing more. May be called twice."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._thread.close()

    def close_file(self) -> None:
        """To be called once no connection is open: it drops this process's locks (sqlite.org/howtocorrupt, 2.2). May be
        called twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
