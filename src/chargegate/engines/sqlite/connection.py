"""One SQLite file: its tables, who may open it, and what is written, looked up and read in it."""

import asyncio
import contextlib
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from chargegate.engines.sqlite.group_commit import Lane, Operation, StoreUnavailable
from chargegate.observe import log
from chargegate.storage.unavailable import Unusable

T = TypeVar("T")

_SCAN_S = 10.0
_MAX_ROWS = 128  # of one statement; a batch is cut into powers of two so that few statements are prepared


class StoreError(Unusable):
    """The file cannot be used at all: in use by another process, not writable, or made by a newer release."""


class SqliteStore:
    """A database file: a lane that writes, a lane that looks things up, and threads for longer reads."""

    def __init__(self, path: Path, lock: int | None) -> None:
        self.path = path
        self._lock = lock
        self._writer = Lane(self._connect, transactions=True)
        self._looker = Lane(self._connect, transactions=False)
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="sqlite-read")
        self._scanner = ThreadPoolExecutor(1, thread_name_prefix="sqlite-scan")
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self.submit = self._writer.submit
        self.post = self._writer.post
        self.look_up = self._looker.submit

    @classmethod
    async def open(cls, path: Path, migrations: Mapping[str, Sequence[str]], *, exclusive: bool) -> "SqliteStore":
        """Open or make the file and bring its tables up to date.

        ``migrations`` maps a component to its scripts, oldest first; each is run once, in a transaction of its own.
        With ``exclusive`` no other process may open it so: raises ``StoreError`` that says who has it.
        """
        lock = _take_lock(path.with_name(path.name + ".lock")) if exclusive else None
        try:
            await asyncio.to_thread(_migrate, path, migrations)
        except BaseException:
            if lock is not None:
                os.close(lock)
            raise
        return cls(path, lock)

    async def migrate(self, migrations: Mapping[str, Sequence[str]]) -> None:
        """Bring tables up to date, as ``open`` does. Raises ``StoreError``."""
        await asyncio.to_thread(_migrate, self.path, migrations)

    def _connect(self) -> sqlite3.Connection:
        return _connect(self.path)

    async def check(self) -> None:
        """Raises ``StoreUnavailable`` unless a write reaches the disk now."""
        await self.submit(_PROBE, None)

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Run a query in a reading thread. Raises ``StoreUnavailable``."""
        return await self._in(self._readers, query)

    async def scan(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Run a query that may look at very many rows, in a thread of its own so that nobody else waits for it. It is
        given up after ten seconds. Raises ``StoreUnavailable``."""

        def limited(connection: sqlite3.Connection) -> T:
            end = time.monotonic() + _SCAN_S
            connection.set_progress_handler(lambda: time.monotonic() > end, 100_000)
            return query(connection)

        return await self._in(self._scanner, limited)

    async def _in(self, threads: ThreadPoolExecutor, query: Callable[[sqlite3.Connection], T]) -> T:
        try:
            answer = asyncio.get_running_loop().run_in_executor(threads, self._read, query)
        except RuntimeError:
            raise StoreUnavailable("closed") from None
        return await answer

    def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        try:
            connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
            if connection is None:
                connection = self._local.connection = self._connect()
                self._connections.append(connection)
            return query(connection)
        except sqlite3.Error as error:
            raise StoreUnavailable(str(error)) from None

    async def close(self) -> None:
        """Commit what is waiting and let go of the file. May be called twice."""
        await self._writer.close()
        await self._looker.close()
        self._readers.shutdown()
        self._scanner.shutdown()
        while self._connections:
            self._connections.pop().close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "cache_size=-16000",
        "wal_autocheckpoint=4000",
        "journal_size_limit=67108864",
        "temp_store=MEMORY",
    ):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _take_lock(path: Path) -> int:
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.read(lock, 20).decode("ascii", "replace").strip()
        os.close(lock)
        raise StoreError(
            f"{path.parent}: another process{f' (pid {owner})' if owner else ''} uses this database already"
        ) from None
    os.truncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    return lock


def read_once(path: Path, query: str) -> list[Any]:
    """All rows that a query gives, from a file that need not be open. Raises ``StoreUnavailable``."""
    try:
        with contextlib.closing(_connect(path)) as connection:
            return connection.execute(query).fetchall()
    except sqlite3.Error as error:
        raise StoreUnavailable(str(error)) from None


def _migrate(path: Path, migrations: Mapping[str, Sequence[str]]) -> None:
    try:
        _run_migrations(path, migrations)
    except sqlite3.Error as error:
        raise StoreError(f"{path}: {error}") from None
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None


def _run_migrations(path: Path, migrations: Mapping[str, Sequence[str]]) -> None:
    # Never opened where it exists: closing it again would drop this process's locks (sqlite.org/howtocorrupt, 2.2).
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    connection = _connect(path)
    try:
        connection.execute("CREATE TABLE IF NOT EXISTS schema_versions (component TEXT PRIMARY KEY, version INTEGER)")
        for component, scripts in migrations.items():
            connection.execute("BEGIN IMMEDIATE")
            row = connection.execute("SELECT version FROM schema_versions WHERE component = ?", (component,)).fetchone()
            version = row[0] if row else 0
            if version > len(scripts):
                connection.execute("ROLLBACK")
                raise StoreError(f"{path}: made by a newer release ({component} tables have version {version})")
            for script in scripts[version:]:
                for statement in script.split(";\n"):
                    connection.execute(statement)
            if version < len(scripts):
                log.info("tables migrated", component=component, version_from=version, version_to=len(scripts))
            connection.execute("INSERT OR REPLACE INTO schema_versions VALUES (?, ?)", (component, len(scripts)))
            connection.execute("COMMIT")
    finally:
        connection.close()


def _probe(connection: sqlite3.Connection, _items: list[None]) -> None:
    """Change a number in the file's head that nobody reads: SQLite does not write what stays the same."""
    number = connection.execute("PRAGMA user_version").fetchone()[0]
    connection.execute(f"PRAGMA user_version = {(number + 1) % 1_000_000}")


_PROBE = Operation(_probe)


def many(
    connection: sqlite3.Connection, before: str, row: str, after: str, rows: Sequence[Iterable[Any]]
) -> Iterator[tuple[sqlite3.Cursor, int]]:
    """Run ``before row, row, … after`` with as many rows a statement as fit, and yield each cursor with its count.

    One statement for many rows is one call into SQLite, and so one release of the interpreter's lock.
    """
    start = 0
    while start < len(rows):
        count = min(_MAX_ROWS, 1 << (len(rows) - start).bit_length() - 1)
        values = [value for item in rows[start : start + count] for value in item]
        yield connection.execute(_statement(before, row, after, count), values), count
        start += count


_statements: dict[tuple[str, str, str, int], str] = {}


def _statement(before: str, row: str, after: str, count: int) -> str:
    key = (before, row, after, count)
    text = _statements.get(key)
    if text is None:
        text = _statements[key] = f"{before} {', '.join([row] * count)} {after}"
    return text
