import asyncio
import os
import resource
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from chargegate.engines.sqlite.batches import Operation
from chargegate.engines.sqlite.connection import SqliteStore
from chargegate.engines.sqlite.queries import many
from chargegate.storage.unavailable import Unavailable, Unusable
from databases import run_on_sqlite

TABLE: dict[str, Sequence[str]] = {"test": ("CREATE TABLE test (value INTEGER NOT NULL UNIQUE, padding BLOB)",)}
LIMIT_S = 20

Scenario = Callable[[SqliteStore], Coroutine[Any, Any, None]]


def insert(connection: sqlite3.Connection, values: list[Any]) -> list[int]:
    connection.executemany("INSERT INTO test (value) VALUES (?)", [(value,) for value in values])
    return [value * 10 for value in values]


def pad(connection: sqlite3.Connection, values: list[int]) -> None:
    connection.executemany("INSERT INTO test VALUES (?, zeroblob(20000))", [(value,) for value in values])


INSERT = Operation(insert)
PAD = Operation(pad)


def run(folder: Path, scenario: Scenario) -> None:
    run_on_sqlite(folder / "test.db", TABLE, scenario, LIMIT_S)


def stored(folder: Path) -> list[int]:
    """What another process would find."""
    with closing(sqlite3.connect(folder / "test.db")) as connection:
        return [row[0] for row in connection.execute("SELECT value FROM test ORDER BY value")]


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """No file may grow beyond what the largest here is now: every write that needs room fails."""
    size = max(file.stat().st_size for file in folder.iterdir())
    before = resource.prlimit(0, resource.RLIMIT_FSIZE)
    resource.prlimit(0, resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.prlimit(0, resource.RLIMIT_FSIZE, before)


class Held:
    """An operation whose first batch waits in the thread until it is let go."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.batches: list[list[int]] = []
        self.operation = Operation(self._apply)

    def _apply(self, connection: sqlite3.Connection, values: list[int]) -> list[int]:
        self.batches.append(list(values))
        self.entered.set()
        assert self.gate.wait(LIMIT_S)
        return insert(connection, values)


def test_what_gathers_in_one_turn_is_one_commit(tmp_path: Path) -> None:
    async def scenario(store: SqliteStore) -> None:
        commits: list[int] = []
        operation = Operation(insert, committed=lambda answers: commits.append(len(answers)))
        assert await asyncio.gather(*(store.submit(operation, n) for n in range(300))) == [n * 10 for n in range(300)]
        assert commits == [300]
        assert stored(tmp_path) == list(range(300))

    run(tmp_path, scenario)


def test_what_gathers_while_a_batch_is_under_way_is_the_next_commit(tmp_path: Path) -> None:
    async def scenario(store: SqliteStore) -> None:
        held = Held()
        waiters = [store.submit(held.operation, 0)]
        assert await asyncio.to_thread(held.entered.wait, LIMIT_S)
        for turn in range(1, 41):
            waiters.append(store.submit(held.operation, turn))
            await asyncio.sleep(0)
        assert not any(waiter.done() for waiter in waiters)
        held.gate.set()
        await asyncio.gather(*waiters)
        assert held.batches == [[0], list(range(1, 41))]

    run(tmp_path, scenario)


def test_nobody_is_woken_before_the_commit(tmp_path: Path) -> None:
    async def scenario(store: SqliteStore) -> None:
        for value in range(20):
            await store.submit(INSERT, value)
            assert stored(tmp_path)[-1] == value

    run(tmp_path, scenario)


def test_landed_is_told_of_what_succeeded_before_any_waiter_is_woken(tmp_path: Path) -> None:
    async def scenario(store: SqliteStore) -> None:
        events: list[object] = []

        operation = Operation(insert, landed=events.extend)
        waiters = [store.submit(operation, value) for value in (4, None, 5)]
        for waiter in waiters:
            waiter.add_done_callback(lambda _: events.append("woken"))
        await asyncio.gather(*waiters, return_exceptions=True)
        await asyncio.sleep(0)
        assert events == [(4, 40), (5, 50), "woken", "woken", "woken"]

    run(tmp_path, scenario)


@pytest.mark.parametrize("bad", [None, 2**63, {}], ids=["refused", "too large", "no value"])
def test_one_bad_item_does_not_fail_its_company(tmp_path: Path, bad: object) -> None:
    async def scenario(store: SqliteStore) -> None:
        await store.submit(INSERT, 7)
        outcomes = await asyncio.gather(
            *(store.submit(INSERT, value) for value in (1, bad, 2, 7, 3)),
            store.submit(Operation(insert), 4),
            return_exceptions=True,
        )
        assert [outcomes[place] for place in (0, 2, 4, 5)] == [10, 20, 30, 40]
        assert isinstance(outcomes[1], Exception)
        assert isinstance(outcomes[3], Unavailable)
        assert stored(tmp_path) == [1, 2, 3, 4, 7]

    run(tmp_path, scenario)


def test_what_apply_raises_reaches_its_waiter_and_nobody_else(tmp_path: Path) -> None:
    async def scenario(store: SqliteStore) -> None:
        def picky(connection: sqlite3.Connection, values: list[int]) -> list[int]:
            if 13 in values:
                raise LookupError("thirteen")
            return insert(connection, values)

        operation = Operation(picky)
        good, bad = store.submit(operation, 1), store.submit(operation, 13)
        assert await good == 10
        with pytest.raises(LookupError, match="thirteen"):
            await bad

    run(tmp_path, scenario)


def test_a_listener_that_fails_does_not_undo_a_commit(tmp_path: Path) -> None:
    async def scenario(store: SqliteStore) -> None:
        def fail(_answers: Sequence[Any]) -> None:
            raise RuntimeError("listener")

        assert await store.submit(Operation(insert, committed=fail), 1) == 10
        assert stored(tmp_path) == [1]

    run(tmp_path, scenario)


def test_a_waiter_that_gave_up_disturbs_nobody(tmp_path: Path) -> None:
    async def scenario(store: SqliteStore) -> None:
        gone, stays = store.submit(INSERT, 1), store.submit(INSERT, 2)
        gone.cancel()
        assert await stays == 20
        assert stored(tmp_path) == [1, 2]

    run(tmp_path, scenario)


def test_look_ups_of_one_turn_are_one_query(tmp_path: Path) -> None:
    async def scenario(store: SqliteStore) -> None:
        batches = []

        def squares(connection: sqlite3.Connection, values: list[int]) -> list[int]:
            batches.append(len(values))
            return [connection.execute("SELECT ? * ?", (value, value)).fetchone()[0] for value in values]

        operation = Operation(squares)
        assert await asyncio.gather(*(store.look_up(operation, n) for n in range(5))) == [0, 1, 4, 9, 16]
        assert batches == [5]

    run(tmp_path, scenario)


def test_a_full_disk_is_unavailable_and_changes_nothing_until_there_is_room(tmp_path: Path) -> None:
    async def scenario(store: SqliteStore) -> None:
        await store.submit(INSERT, 1)
        with full_disk(tmp_path):
            for attempt in range(3):
                outcomes = await asyncio.gather(
                    *(store.submit(PAD, 100 * attempt + n) for n in range(10, 20)), return_exceptions=True
                )
                assert [type(outcome) for outcome in outcomes] == [Unavailable] * 10
            assert stored(tmp_path) == [1]
            assert await store.read(lambda c: c.execute("SELECT count(*) FROM test").fetchone()[0]) == 1
        await asyncio.gather(*(store.submit(PAD, n) for n in range(10, 20)))
        assert stored(tmp_path) == [1, *range(10, 20)]

    run(tmp_path, scenario)
    assert stored(tmp_path) == [1, *range(10, 20)]


def test_what_was_posted_on_a_full_disk_is_done_once_there_is_room(tmp_path: Path) -> None:
    async def scenario(store: SqliteStore) -> None:
        with full_disk(tmp_path):
            store.post(PAD, 1)
            with pytest.raises(Unavailable):
                await store.submit(PAD, 2)
        while stored(tmp_path) != [1]:
            await asyncio.sleep(0.05)

    run(tmp_path, scenario)


def test_a_read_that_fails_is_unavailable_and_the_file_goes_on(tmp_path: Path) -> None:
    async def scenario(store: SqliteStore) -> None:
        with pytest.raises(Unavailable):
            await store.read(lambda connection: connection.execute("SELECT * FROM missing"))
        assert await store.submit(INSERT, 1) == 10

    run(tmp_path, scenario)


def test_close_commits_what_is_waiting(tmp_path: Path) -> None:
    async def main() -> None:
        store = await SqliteStore.open(tmp_path / "test.db", TABLE, exclusive=True)
        held = Held()
        waiters = [store.submit(held.operation, 1)]
        assert await asyncio.to_thread(held.entered.wait, LIMIT_S)
        waiters += [store.submit(INSERT, n) for n in range(2, 50)]
        store.post(INSERT, 50)
        closing_twice = [asyncio.ensure_future(store.close()), asyncio.ensure_future(store.close())]
        await asyncio.sleep(0)
        held.gate.set()
        await asyncio.gather(*closing_twice)
        assert all(waiter.done() for waiter in waiters)
        await store.close()
        with pytest.raises(Unavailable):
            store.submit(INSERT, 51)

    uvloop.run(main())
    assert stored(tmp_path) == list(range(1, 51))


def test_a_second_process_is_refused_and_told_who_has_the_file(tmp_path: Path) -> None:
    script = """
import asyncio, sys, time
from pathlib import Path
from chargegate.engines.sqlite.connection import SqliteStore
async def main():
    await SqliteStore.open(Path(sys.argv[1]), {}, exclusive=True)
    print("open", flush=True)
    time.sleep(600)
asyncio.run(main())
"""
    path = tmp_path / "test.db"
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"open\n"
        with pytest.raises(Unusable, match=rf"\(pid {child.pid}\)"):
            uvloop.run(SqliteStore.open(path, TABLE, exclusive=True))
        run_beside = SqliteStore.open(path, TABLE, exclusive=False)
        uvloop.run(opened_and_closed(run_beside))
        child.kill()
    uvloop.run(opened_and_closed(SqliteStore.open(path, TABLE, exclusive=True)))


async def opened_and_closed(opening: Coroutine[Any, Any, SqliteStore]) -> None:
    await (await opening).close()


def open_once(path: Path, migrations: dict[str, Sequence[str]], *, exclusive: bool = True) -> None:
    uvloop.run(opened_and_closed(SqliteStore.open(path, migrations, exclusive=exclusive)))


def test_each_step_runs_once_and_a_later_release_adds_its_own(tmp_path: Path) -> None:
    path = tmp_path / "test.db"
    steps = ("CREATE TABLE a (x);\nINSERT INTO a VALUES (1)", "INSERT INTO a VALUES (2)")
    for migrations in (steps[:1], steps[:1], steps, steps):
        open_once(path, {"one": migrations})
    open_once(path, {"one": steps, "two": ("CREATE TABLE b (x)",)})
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT x FROM a").fetchall() == [(1,), (2,)]
        versions = connection.execute("SELECT component, version FROM schema_versions ORDER BY 1").fetchall()
    assert versions == [("one", 2), ("two", 1)]


def test_tables_of_a_newer_release_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "test.db"
    open_once(path, {"one": ("CREATE TABLE a (x)", "CREATE TABLE b (x)")})
    with pytest.raises(Unusable, match=r"newer release \(one tables have version 2\)"):
        open_once(path, {"one": ("CREATE TABLE a (x)",)})


def test_a_step_that_fails_leaves_the_tables_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "test.db"
    open_once(path, {"one": ("CREATE TABLE a (x)",)})
    with pytest.raises(Unusable):
        open_once(path, {"one": ("CREATE TABLE a (x)", "CREATE TABLE b (x);\nCREATE TABLE a (x)")}, exclusive=False)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT version FROM schema_versions").fetchone() == (1,)
        assert connection.execute("SELECT name FROM sqlite_master WHERE name = 'b'").fetchone() is None


def test_an_open_that_was_refused_holds_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "test.db"
    open_once(path, {"one": ("CREATE TABLE a (x)", "CREATE TABLE b (x)")})
    with pytest.raises(Unusable, match="newer release"):
        open_once(path, {"one": ("CREATE TABLE a (x)",)})
    open_once(path, {"one": ("CREATE TABLE a (x)", "CREATE TABLE b (x)")})


@pytest.mark.parametrize("exclusive", [True, False])
def test_what_cannot_be_opened_is_one_line_that_names_the_file(tmp_path: Path, exclusive: bool) -> None:
    folder = tmp_path / "folder.db"
    folder.mkdir()
    text = tmp_path / "text.db"
    text.write_bytes(b"not a database at all\n" * 100)
    for path in (tmp_path / "missing" / "x.db", folder, text):
        with pytest.raises(Unusable) as caught:
            open_once(path, TABLE, exclusive=exclusive)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        run(tmp_path, lambda store: store.submit(INSERT, 1))  # type: ignore[arg-type,return-value]  # a future is awaited as well
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert modes
    assert not any(mode & 0o077 for mode in modes.values()), modes


@pytest.mark.parametrize("count", [0, 1, 2, 127, 128, 129, 1000])
def test_many_rows_in_few_statements(count: int) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE t (a, b)")
        rows = [(n, str(n)) for n in range(count)]
        counts = [n for _, n in many(connection, "INSERT INTO t VALUES {rows}", rows)]
        assert sum(counts) == count
        assert len(counts) <= count // 128 + 7
        assert connection.execute("SELECT a, b FROM t ORDER BY a").fetchall() == rows
