import asyncio
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from chargegate.engines.sqlite.file import connect
from chargegate.engines.sqlite.threads import ConnectionThreads

COUNT = 3
LIMIT_S = 20


def refusing(path: Path, refused: Callable[[int], bool]) -> tuple[Callable[[], sqlite3.Connection], list[int]]:
    """What makes connections but for those whose turn is refused, and a list with one entry for each that was asked
    for."""
    asked: list[int] = []
    lock = threading.Lock()

    def made() -> sqlite3.Connection:
        with lock:
            asked.append(len(asked))
            turn = asked[-1]
        if refused(turn):
            raise sqlite3.OperationalError("unable to open database file")
        return connect(path)

    return made, asked


def one(connection: sqlite3.Connection) -> object:
    return connection.execute("SELECT 1").fetchone()


async def all_asked(asked: list[int]) -> None:
    while len(asked) < COUNT:
        await asyncio.sleep(0.01)


def test_work_needs_no_connection_that_is_not_there_yet(tmp_path: Path) -> None:
    made, asked = refusing(tmp_path / "test.db", lambda turn: turn >= COUNT)
    together = threading.Barrier(COUNT, timeout=LIMIT_S)  # each thread has a part of it

    def work(connection: sqlite3.Connection) -> object:
        together.wait()
        return one(connection)

    async def main() -> None:
        threads = ConnectionThreads(made, COUNT)
        async with asyncio.timeout(LIMIT_S):
            await all_asked(asked)
            assert await asyncio.gather(*(threads.run(work) for _ in range(COUNT))) == [(1,)] * COUNT
        await threads.close()

    uvloop.run(main())


def test_what_could_not_be_opened_at_once_is_opened_with_the_first_work(tmp_path: Path) -> None:
    made, asked = refusing(tmp_path / "test.db", lambda turn: turn < COUNT + 1)

    async def main() -> None:
        threads = ConnectionThreads(made, COUNT)
        async with asyncio.timeout(LIMIT_S):
            await all_asked(asked)
            with pytest.raises(sqlite3.OperationalError, match="unable to open"):
                await threads.run(one)
            assert await threads.run(one) == (1,)
        await threads.close()

    uvloop.run(main())
