"""One SQLite file, many waiters: group commit.

A lane is a thread with a connection of its own. Whatever gathers while it is busy goes to it as one batch: the
writing lane makes a batch one transaction, commits it with ``synchronous=FULL``, and only then wakes all its
waiters; the looking lane answers a batch with one query. So durability costs one sync for many rows, and a row
costs the same alone or in company.
"""

import asyncio
import contextlib
import fcntl
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from chargegate.telemetry import log

T = TypeVar("T")

_RETRY_S = 1.0
_SCAN_S = 10.0
_MAX_ROWS = 128  # of one statement; a batch is cut into powers of two so that few statements are prepared
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


class StoreUnavailable(Exception):
    """The file cannot be written or read now, and nothing changed. The message is SQLite's, which holds no values."""


class StoreError(Exception):
    """The file cannot be used at all: in use by another process, not writable, or made by a newer release."""


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
        except BaseException as error:
            if lock is not None:
                os.close(lock)
            if isinstance(error, sqlite3.Error):
                raise StoreError(f"{path}: {error}") from None
            if isinstance(error, OSError):
                raise StoreError(f"{path}: {error.strerror}") from None
            raise
        return cls(path, lock)

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


def _migrate(path: Path, migrations: Mapping[str, Sequence[str]]) -> None:
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
