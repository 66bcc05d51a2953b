import asyncio
import io
import sqlite3
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvloop

from chargegate.engines.sqlite import checkpoints
from chargegate.engines.sqlite.batches import Operation
from chargegate.engines.sqlite.checkpoints import Checkpoints, Copied
from chargegate.engines.sqlite.connection import SqliteStore
from chargegate.engines.sqlite.file import connect, migrate
from chargegate.engines.sqlite.threads import Work
from chargegate.observe import configure_logging
from databases import run_on_sqlite

TABLE: dict[str, Sequence[str]] = {"test": ("CREATE TABLE test (value INTEGER NOT NULL UNIQUE, padding BLOB)",)}
LIMIT_S = 60
PAGE = 4096
PAGES, LONG = 40, 120

Scenario = Callable[[SqliteStore], Coroutine[Any, Any, None]]


def pad(connection: sqlite3.Connection, values: list[int]) -> None:
    connection.executemany("INSERT INTO test VALUES (?, zeroblob(8000))", [(value,) for value in values])


PAD = Operation(pad)


@pytest.fixture(autouse=True)
def short_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_PAGES", PAGES)
    monkeypatch.setattr(checkpoints, "_LONG", LONG)
    monkeypatch.setattr(checkpoints, "_LEAST_CHANGES", 1)


def run(folder: Path, scenario: Scenario) -> None:
    run_on_sqlite(folder / "test.db", TABLE, scenario, LIMIT_S)


def log_size(folder: Path) -> int:
    return (folder / "test.db-wal").stat().st_size


def test_the_log_stays_short_while_commits_go_on(tmp_path: Path) -> None:
    rows, writers = 4000, 4

    async def scenario(store: SqliteStore) -> None:
        async def write(first: int) -> None:
            for value in range(first, rows, writers):
                await store.submit(PAD, value)

        await asyncio.gather(*(write(number) for number in range(writers)))
        assert log_size(tmp_path) < rows * 2 * PAGE / 4  # each row has two pages of its own

    run(tmp_path, scenario)
    with closing(sqlite3.connect(tmp_path / "test.db")) as connection:
        assert connection.execute("SELECT count(*) FROM test").fetchone() == (rows,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_the_log_gets_short_again_after_a_long_read(tmp_path: Path) -> None:
    async def scenario(store: SqliteStore) -> None:
        value = 0

        async def write_until(condition: Callable[[], bool]) -> None:
            nonlocal value
            while not condition():
                await store.submit(PAD, value)
                value += 1

        await store.submit(PAD, -1)
        with closing(sqlite3.connect(tmp_path / "test.db", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            assert reader.execute("SELECT count(*) FROM test").fetchone() == (1,)
            await write_until(lambda: log_size(tmp_path) > 4 * LONG * PAGE)
            assert reader.execute("SELECT count(*) FROM test").fetchone() == (1,)
        began, size, pages = value, log_size(tmp_path), 40 * LONG
        await write_until(lambda: value >= began + pages / 2)  # each row has two pages of its own
        assert log_size(tmp_path) < size + pages * PAGE / 2

    run(tmp_path, scenario)


def test_copying_begins_only_behind_a_commit_that_began_after_the_last_copying(tmp_path: Path) -> None:
    """Otherwise the log may begin anew meanwhile, and SQLite's releases before 3.51.3 could lose pages then."""
    path = tmp_path / "test.db"
    migrate(path, TABLE)

    async def never(_work: Work[Copied]) -> Copied:
        raise AssertionError("the log is not long")

    async def main() -> None:
        copying = Checkpoints(path, partial(connect, path), never)
        with closing(connect(path)) as copier, closing(connect(path)) as writer:

            def commit(value: int, began: int) -> None:
                pad(writer, [value])
                copying.committed(began, writer.total_changes)

            assert copying._copy(copier) is None
            early = time.monotonic_ns()
            commit(1, early)
            found = copying._copy(copier)
            assert found is not None
            assert found.in_log == found.copied > 0
            assert copying._copy(copier) is None
            commit(2, early)
            assert copying._copy(copier) is None
            copying.committed(time.monotonic_ns(), writer.total_changes)  # of a commit without a change
            assert copying._copy(copier) is None
            commit(3, time.monotonic_ns())
            assert copying._copy(copier) is not None
        await copying.close()
        copying.close_file()
        copying.close_file()

    uvloop.run(main())


def test_a_failure_is_told_once_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = io.BytesIO()
    configure_logging("info", "json", lines)
    monkeypatch.setattr(checkpoints, "_RETRY_S", 0.01)
    failures = 0

    def failing(connection: sqlite3.Connection) -> Copied:
        nonlocal failures
        failures += 1
        raise sqlite3.OperationalError("disk I/O error")

    async def scenario(store: SqliteStore) -> None:
        value = 0
        with monkeypatch.context() as broken:
            broken.setattr(checkpoints, "copy_log", failing)
            while failures < 3:
                await store.submit(PAD, value)
                value += 1
        began, size, pages = value, log_size(tmp_path), 40 * LONG
        while value < began + pages / 2:
            await store.submit(PAD, value)
            value += 1
        assert log_size(tmp_path) < size + pages * PAGE / 2

    try:
        run(tmp_path, scenario)
    finally:
        configure_logging("info")
    assert lines.getvalue().count(b"cannot be copied") == 1
