"""Daily exports, on both databases: each row in one file, whoever makes it and whenever it was written."""

from __future__ import annotations

import asyncio
import csv
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from chargegate.audit.chain import Chain
from chargegate.audit.life.compressing import opened
from chargegate.audit.life.exporting import Exporter
from chargegate.audit.life.files import ExportFiles, LifeBusy, name_of_day
from chargegate.audit.life.heads import Heads
from chargegate.audit.life.steps import Ages, Life
from chargegate.audit.life.verifying import verify
from chargegate.ledger.base import LedgerUnavailable
from chargegate.ledger.exports import ExportedFile
from chargegate.ledger.records import Finished
from chargegate.model import RequestStatus
from chargegate.operations.audit_life import export_days

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from chargegate.ledger.base import Ledger
    from chargegate.model import Decision
    from databases import Database, Run

    Decide = Callable[..., Decision]

DAY = 86_400_000
START = 20_000 * DAY  # in October 2024
HOUR = DAY // 24


class Quiet:
    """Remembers what was done."""

    def __init__(self) -> None:
        self.all_done: list[str] = []
        self.failures: list[str] = []

    def planned(self, step: str, count: int) -> None:
        pass

    def done(self, done: Any) -> None:
        self.all_done.append(done.to or done.file)

    def failed(self, step: str, file: str, error: str) -> None:
        self.failures.append(f"{step} {file}: {error}")


def exporter(database: Database, folder: Path, origin: str = "one") -> Exporter:
    folder.mkdir(exist_ok=True)
    heads = Heads(folder, Chain(b"k" * 32))
    return Exporter(database.ledger(), database.exports(), ExportFiles(folder), origin, after_ms=HOUR, heads=heads)


async def export(database: Database, folder: Path, now: int, origin: str = "one", **options: Any) -> list[str]:
    quiet = Quiet()
    await export_days(exporter(database, folder, origin), database.exports(), now, quiet, **options)
    assert not quiet.failures
    return quiet.all_done


def held(*folders: Path) -> Counter[str]:
    found: Counter[str] = Counter()
    for folder in folders:
        for path in ExportFiles(folder).rotated():
            with opened(path.path) as file:
                _, *rows = csv.reader(line.decode() for line in file)
            found.update(row[1] for row in rows)
    return found


async def recorded(ledger: Ledger, decide: Decide, *times: int) -> list[str]:
    made = [decide(timestamp=at) for at in times]
    for each in made:
        await ledger.record(each, each.timestamp)
        finished = Finished(each.request_id, RequestStatus.COMPLETED, 1, 200, None, each.timestamp, None)
        await ledger.finish(finished)
    return [each.request_id for each in made]


def test_a_day_is_exported_once_it_has_ended_for_long_enough(run: Run, decide: Decide, tmp_path: Path) -> None:
    async def scenario(database: Database) -> None:
        ids = await recorded(database.ledger(), decide, START, START + DAY - 1, START + DAY)
        assert await export(database, tmp_path, START + DAY + HOUR - 1) == []
        name = f"authorization_audit_rows.{name_of_day(START)}.csv.zst"
        assert await export(database, tmp_path, START + DAY + HOUR, dry_run=True) == [name]
        assert held(tmp_path) == Counter()
        assert await export(database, tmp_path, START + DAY + HOUR) == [name]
        assert await export(database, tmp_path, START + DAY + HOUR) == []
        assert held(tmp_path) == Counter(ids[:2])

    run(scenario)


def test_rows_of_several_writers_and_late_ones_are_each_in_one_file(run: Run, decide: Decide, tmp_path: Path) -> None:
    async def scenario(database: Database) -> None:
        drawn = random.Random(1)
        ledgers = [database.ledger(writer=name) for name in ("a", "b", "c")]
        ids: list[str] = []
        for day in range(12):
            now = START + day * DAY
            for ledger in ledgers[: day % 3 + 1]:
                late = now - drawn.randrange(5 * DAY)
                ids += await recorded(ledger, decide, late, *(now + drawn.randrange(DAY) for _ in range(3)))
            await export(database, tmp_path, now + HOUR, every=drawn.random() < 0.4)
            assert max(held(tmp_path).values(), default=1) == 1
        ids += await recorded(ledgers[0], decide, START + 12 * DAY)
        await export(database, tmp_path, START + 20 * DAY)
        assert held(tmp_path) == Counter(ids)

    run(scenario)


def test_services_that_share_a_database_export_no_row_twice(postgres_run: Run, decide: Decide, tmp_path: Path) -> None:
    """One has the turn; and where both believe that they have it, one of them makes the file."""
    one, two = tmp_path / "one", tmp_path / "two"

    async def scenario(database: Database) -> None:
        ids = await recorded(database.ledger(), decide, *(START + day * DAY for day in range(6)))
        first, second = exporter(database, one, "one"), exporter(database, two, "two")
        await export(database, one, START + DAY + HOUR, "one")
        with pytest.raises(LifeBusy):
            await export(database, two, START + 9 * DAY, "two")
        now = START + 9 * DAY
        for _ in range(5):
            days = [await each.next_day(now) for each in (first, second)]
            assert days[0] is not None
            assert days[0] == days[1]
            files = await asyncio.gather(first.export(days[0], now), second.export(days[0], now))
            assert sum(file is not None for file in files) == 1
        assert held(one, two) == Counter(ids)
        assert ExportFiles(one).drafts() == ExportFiles(two).drafts() == []

    postgres_run(scenario)


def test_a_draft_counts_if_the_database_says_so(run: Run, decide: Decide, tmp_path: Path) -> None:
    """The answer to the commit was lost, before or after it happened."""

    async def scenario(database: Database) -> None:
        ids = await recorded(database.ledger(), decide, *(START + day * DAY for day in range(4)))
        for arrives in (True, False, True):
            exports = database.exports()
            add = exports.add

            async def lost(file: ExportedFile, add: Any = add, arrives: bool = arrives) -> bool:
                if arrives:
                    await add(file)
                raise LedgerUnavailable("no answer")

            exports.add = lost  # type: ignore[method-assign]  # an answer that gets lost
            files = ExportFiles(tmp_path)
            broken = Exporter(database.ledger(), exports, files, "one", after_ms=0)
            day = await broken.next_day(START + 9 * DAY)
            assert day is not None
            with pytest.raises(LedgerUnavailable):
                await broken.export(day, START + 9 * DAY)
            assert day.file in files.drafts()
        await export(database, tmp_path, START + 9 * DAY)
        assert held(tmp_path) == Counter(ids)

    run(scenario)


def test_no_row_is_dropped_before_it_is_exported(run: Run, decide: Decide, tmp_path: Path) -> None:
    month = 31 * DAY

    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        await recorded(ledger, decide, START, START + month)
        before = START + 5 * month

        async def dropped() -> int:
            planned = await ledger.audit_before(before, exported=True)
            done = await ledger.drop_audit_before(before, exported=True)
            assert planned == done
            return len(done.tables) + done.rows

        assert await dropped() == 0
        await export(database, tmp_path, START + DAY + HOUR)
        first = await dropped()  # PostgreSQL drops months, and this one has a row yet that is not exported
        await export(database, tmp_path, START + 2 * month)
        late = await recorded(ledger, decide, START + 2, START + month + 2)  # as a clock that was wrong has it
        assert first + await dropped() in (0, 2)
        kept = {row.decision.request_id for row in await ledger.audit_after(0, 10)}
        assert set(late) <= kept
        last = await recorded(ledger, decide, START + 2 * month)
        await export(database, tmp_path, START + 4 * month)
        assert await dropped() > 0
        assert {row.decision.request_id for row in await ledger.audit_after(0, 10)} <= set(last)

    run(scenario)


def test_the_chain_goes_through_all_files(run: Run, decide: Decide, tmp_path: Path) -> None:
    async def scenario(database: Database) -> None:
        await recorded(database.ledger(), decide, *(START + hour * 7 * HOUR for hour in range(30)))
        await export(database, tmp_path, START + 20 * DAY)
        heads = Heads(tmp_path, Chain(b"k" * 32))
        life = Life(ExportFiles(tmp_path), Ages(0, 0, 0, 0, 0), None, "one", heads=heads)

        async def problems() -> set[str]:
            return {each.what for each in (await verify(life, heads, lambda _done, _all: None)).problems}

        assert await problems() == set()
        files = [file.path for file in life.files.rotated()]
        assert len(files) == 9
        kept = files[4].read_bytes()
        files[4].unlink()
        assert await problems() == {"missing"}
        files[4].write_bytes(kept)
        files[8].unlink()
        assert await problems() == {"end_missing"}

    run(scenario)


def test_a_day_of_many_rows(sqlite_run: Run, decide: Decide, tmp_path: Path) -> None:
    async def scenario(database: Database) -> None:
        ledger = database.ledger()
        made = [decide(timestamp=START + number) for number in range(9000)]
        await asyncio.gather(*(ledger.record(each, START) for each in made))
        await export(database, tmp_path, START + 2 * DAY)
        assert held(tmp_path) == Counter(each.request_id for each in made)
        (file,) = ExportFiles(tmp_path).rotated()
        newest = await database.exports().newest()
        assert newest is not None
        assert (newest.rows, newest.bytes) == (9000, file.size)

    sqlite_run(scenario)
