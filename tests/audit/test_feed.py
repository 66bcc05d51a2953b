"""The feed from a real ledger to a real CSV log, also when the process is killed."""

import asyncio
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from chargegate.audit import feed
from chargegate.audit.csv_shards import CsvShards
from chargegate.audit.feed import AuditFeed
from chargegate.engines.sqlite.connection import SqliteStore
from chargegate.engines.sqlite.ledger import SqliteLedger
from chargegate.engines.sqlite.statements import ALL_TABLES
from chargegate.ledger.base import LedgerUnavailable
from chargegate.ledger.records import AuditRow
from chargegate.model import Decision
from chargegate.observe import Metrics
from outside import eventually

LIMIT_S = 30

Decide = Callable[..., Decision]
ReadLog = Callable[[Path], list[list[str]]]
Limit = Callable[[int], AbstractContextManager[None]]


class Audited:
    """A ledger and its CSV log, joined as in the service."""

    def __init__(self, store: SqliteStore, path: Path, notes: Path | None) -> None:
        self.metrics = Metrics()
        self.feed = AuditFeed(CsvShards(path, notes=notes), self.metrics)
        self.ledger = SqliteLedger(store, self.feed.offer)

    async def record(self, *decisions: Decision) -> None:
        await asyncio.gather(*(self.ledger.record(decision, 0) for decision in decisions))

    async def ids(self) -> list[str]:
        return [row.decision.request_id for row in await self.ledger.audit_after(0, 1_000_000)]


@asynccontextmanager
async def audited(folder: Path, notes: Path | None = None) -> AsyncIterator[Audited]:
    store = await SqliteStore.open(folder / "ledger.db", ALL_TABLES, exclusive=True)
    parts = Audited(store, folder / "audit.log", notes)
    try:
        async with asyncio.timeout(LIMIT_S):
            await parts.feed.start(parts.ledger)
            yield parts
    finally:
        await parts.feed.close()
        await store.close()


def logged(read_log: ReadLog, folder: Path) -> list[str]:
    return [record[1] for record in read_log(folder / "audit.log")]


def test_a_decision_is_in_the_log_when_its_record_returns(tmp_path: Path, decide: Decide, read_log: ReadLog) -> None:
    async def main() -> None:
        async with audited(tmp_path) as parts:
            for _ in range(5):
                decisions = [decide() for _ in range(10)]
                await parts.record(*decisions)
                assert set(logged(read_log, tmp_path)) >= {decision.request_id for decision in decisions}
            await parts.record(decisions[0])
            assert logged(read_log, tmp_path) == await parts.ids()
            assert parts.metrics.registry.get_sample_value("audit_log_entries_total", {"sink": "csv"}) == 50
            assert parts.feed.failure is None

    uvloop.run(main())


def test_the_position_is_saved_on_close_and_nothing_is_written_again(
    tmp_path: Path, decide: Decide, read_log: ReadLog
) -> None:
    async def main() -> None:
        async with audited(tmp_path) as parts:
            await parts.record(*(decide() for _ in range(10)))
        (tmp_path / "audit.log").unlink()
        async with audited(tmp_path) as parts:
            assert await parts.ledger.sink_position("csv") == 10
            await parts.record(decide("new"))
        assert logged(read_log, tmp_path) == ["new"]

    uvloop.run(main())


def test_what_was_recorded_without_the_sink_is_caught_up_on_start(
    tmp_path: Path, decide: Decide, read_log: ReadLog
) -> None:
    async def main() -> None:
        store = await SqliteStore.open(tmp_path / "ledger.db", ALL_TABLES, exclusive=True)
        ledger = SqliteLedger(store)
        await asyncio.gather(*(ledger.record(decide(), 0) for _ in range(2_500)))
        await store.close()
        async with audited(tmp_path) as parts:
            assert logged(read_log, tmp_path) == await parts.ids()
            await parts.record(decide("new"))
            assert logged(read_log, tmp_path)[2_500:] == ["new"]

    uvloop.run(main())


def test_a_start_does_not_wait_for_all_that_the_sink_lacks(
    tmp_path: Path, decide: Decide, read_log: ReadLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may lack millions, where it was turned on late; an end in the middle loses and doubles nothing."""
    monkeypatch.setattr(feed, "_AT_START_S", 0.0)

    async def main() -> None:
        store = await SqliteStore.open(tmp_path / "ledger.db", ALL_TABLES, exclusive=True)
        ledger = SqliteLedger(store)
        await asyncio.gather(*(ledger.record(decide(), 0) for _ in range(5_500)))
        await store.close()
        async with audited(tmp_path) as parts:
            assert len(logged(read_log, tmp_path)) < 5_500
            assert parts.feed.lag_s > 0
            await parts.record(decide("new"))
        async with audited(tmp_path) as parts:
            while parts.feed.lag_s or len(logged(read_log, tmp_path)) < 5_501:
                await asyncio.sleep(0.02)
            assert logged(read_log, tmp_path) == await parts.ids()

    uvloop.run(main())


def test_catching_up_ends_while_decisions_go_on_coming(tmp_path: Path, decide: Decide, read_log: ReadLog) -> None:
    class Busy(SqliteLedger):
        """One more decision comes whenever rows were read."""

        async def audit_after(self, sequence: int, limit: int) -> list[AuditRow]:
            rows = await super().audit_after(sequence, limit)
            await self.record(decide(), 0)
            return rows

    async def main() -> None:
        store = await SqliteStore.open(tmp_path / "ledger.db", ALL_TABLES, exclusive=True)
        earlier = SqliteLedger(store)
        await asyncio.gather(*(earlier.record(decide(), 0) for _ in range(1_500)))
        feed = AuditFeed(CsvShards(tmp_path / "audit.log"), Metrics())
        busy = Busy(store, feed.offer)
        async with asyncio.timeout(LIMIT_S):
            await feed.start(busy)
            await busy.record(decide("last"), 0)
            while feed.lag_s:
                await asyncio.sleep(0.02)
            rows = await earlier.audit_after(0, 1_000_000)
            assert logged(read_log, tmp_path) == [row.decision.request_id for row in rows]
        await feed.close()
        await store.close()

    uvloop.run(main())


def test_a_full_disk_is_caught_up_once_there_is_room(
    tmp_path: Path, decide: Decide, read_log: ReadLog, no_file_beyond: Limit
) -> None:
    """The log is the largest file, so that only the log reaches the limit."""
    log = tmp_path / "audit.log"

    async def main() -> None:
        async with audited(tmp_path) as parts:
            await parts.record(decide("first"))
            with log.open("ab") as file:
                file.write(b"2026-01-01T00:00:00.123Z,old,s,0123456789abcdef,allowed,,1\n" * 40_000)
            before = log.stat().st_size
            with no_file_beyond(before):
                await parts.record(*(decide(f"waits-{n}") for n in range(20)))
                assert parts.feed.failure
                await parts.record(*(decide(f"waits-too-{n}") for n in range(20)))
                assert log.stat().st_size == before
            while parts.feed.failure:
                await asyncio.sleep(0.05)
            await parts.record(decide("last"))
            while logged(read_log, tmp_path)[-1] != "last":
                await asyncio.sleep(0.05)
            assert [each for each in logged(read_log, tmp_path) if each != "old"] == await parts.ids()
            assert parts.metrics.registry.get_sample_value("audit_log_entries_total", {"sink": "csv"}) == 42

    uvloop.run(main())


async def lose_the_end(parts: Audited, folder: Path, decide: Decide) -> None:
    """Record decisions, cut off the end of their log, and record one more, which finds it."""
    path = folder / "audit.log"
    await parts.record(*(decide() for _ in range(10)))
    os.truncate(path, path.stat().st_size - 100)
    await parts.record(decide("last"))


def test_an_end_while_it_finds_out_what_was_lost_loses_nothing(
    tmp_path: Path, decide: Decide, read_log: ReadLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task is cancelled, and the thread that looks into the file goes on."""
    looking = threading.Event()
    resume = CsvShards.resume

    async def main() -> None:
        async with audited(tmp_path, tmp_path / "notes") as parts:

            def until_the_task_is_cancelled(self: CsvShards, *values: Any) -> int:
                found = resume(self, *values)
                looking.set()
                eventually(lambda: parts.feed._task is None, LIMIT_S)
                return found

            monkeypatch.setattr(CsvShards, "resume", until_the_task_is_cancelled)
            await lose_the_end(parts, tmp_path, decide)
            await asyncio.to_thread(looking.wait, LIMIT_S)
        monkeypatch.undo()
        async with audited(tmp_path, tmp_path / "notes") as parts:
            assert Counter(logged(read_log, tmp_path)) == Counter(await parts.ids())

    uvloop.run(main())


def test_a_database_that_is_away_while_it_finds_out_what_was_lost_doubles_nothing(
    tmp_path: Path, decide: Decide, read_log: ReadLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    audit_after = SqliteLedger.audit_after

    async def away(self: SqliteLedger, position: int, limit: int) -> Any:
        asked.append(position)
        if len(asked) == 2:  # the first asks whether the ledger has the row that the notes name
            raise LedgerUnavailable
        return await audit_after(self, position, limit)

    async def main() -> None:
        async with audited(tmp_path, tmp_path / "notes") as parts:
            monkeypatch.setattr(SqliteLedger, "audit_after", away)
            await lose_the_end(parts, tmp_path, decide)
            while len(asked) < 2 or parts.feed.lag_s:
                await asyncio.sleep(0.02)
            monkeypatch.undo()
            assert Counter(logged(read_log, tmp_path)) == Counter(await parts.ids())

    uvloop.run(main())


def test_a_log_that_was_renamed_while_running_loses_nothing(tmp_path: Path, decide: Decide, read_log: ReadLog) -> None:
    async def main() -> None:
        async with audited(tmp_path) as parts:
            for number in range(4):
                await parts.record(*(decide() for _ in range(5)))
                (tmp_path / "audit.log").rename(tmp_path / f"audit.log.{number}")
            await parts.record(decide())
            found = [record[1] for number in range(4) for record in read_log(tmp_path / f"audit.log.{number}")]
            assert found + logged(read_log, tmp_path) == await parts.ids()

    uvloop.run(main())


def test_recording_never_fails_for_the_sink(tmp_path: Path, decide: Decide) -> None:
    class Broken(CsvShards):
        def write(self, rows: list[AuditRow]) -> None:
            raise OSError(5, "Input/output error")

    async def main() -> None:
        store = await SqliteStore.open(tmp_path / "ledger.db", ALL_TABLES, exclusive=True)
        feed = AuditFeed(Broken(tmp_path / "audit.log"), Metrics())
        ledger = SqliteLedger(store, feed.offer)
        decision = decide()
        await ledger.record(decision, 0)
        await feed.start(ledger)
        assert (await ledger.record(decide(), 0)).finished_at is None
        assert feed.failure == "Input/output error"
        await feed.close()
        assert await ledger.sink_position("csv") == 0
        await store.close()

    uvloop.run(main())


DYING = """
import asyncio, os, signal, sys
from pathlib import Path
from chargegate.audit import feed
from chargegate.audit.csv_shards import CsvShards
from chargegate.audit.feed import AuditFeed
from chargegate.engines.sqlite.ledger import SqliteLedger
from chargegate.engines.sqlite.statements import ALL_TABLES
from chargegate.model import Decision, Status, new_request_id
from chargegate.engines.sqlite.connection import SqliteStore
from chargegate.observe import Metrics

folder, moment = Path(sys.argv[1]), sys.argv[2]

class Dying(CsvShards):
    writes = 0
    def write(self, rows):
        self.writes += 1
        if self.writes == 4:
            if moment == "torn":
                os.write(self._files[0]._file, b"2026-01-01T00:00:00.123Z,half-a-request-id")
            if moment == "part":
                super().write(rows[:1])
            if moment == "after":
                super().write(rows)
            os.kill(os.getpid(), signal.SIGKILL)
        super().write(rows)

async def main():
    store = await SqliteStore.open(folder / "ledger.db", ALL_TABLES, exclusive=True)
    feed = AuditFeed(Dying(folder / "audit.log"), Metrics())
    ledger = SqliteLedger(store, feed.offer)
    await feed.start(ledger)
    while True:
        made = [Decision(new_request_id(), "s", "h", Status.ALLOWED, "", 1, 1) for _ in range(3)]
        await asyncio.gather(*(ledger.record(decision, 0) for decision in made))
asyncio.run(main())
"""


@pytest.mark.parametrize("moment", ["before", "torn", "part", "after"])
def test_no_line_is_lost_or_doubled_by_a_death_between_commit_and_write(
    tmp_path: Path, read_log: ReadLog, moment: str
) -> None:
    for deaths in (1, 2):
        process = subprocess.run([sys.executable, "-c", DYING, str(tmp_path), moment], check=False, timeout=LIMIT_S)
        assert process.returncode == -9

        async def main() -> None:
            async with audited(tmp_path) as parts:
                assert logged(read_log, tmp_path) == await parts.ids()

        if deaths == 2:
            uvloop.run(main())
