"""Counts of rows that retention has dropped come along when the embedded database is moved to PostgreSQL."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from tests.ledger.test_copying import Both, Run, run  # noqa: F401 - fixtures

from chargegate.engines.postgres.counts import PostgresCounts
from chargegate.engines.postgres.target import PostgresTarget
from chargegate.engines.sqlite.counts import SqliteCounts
from chargegate.engines.sqlite.exports import SqliteExports
from chargegate.engines.sqlite.source import SqliteSource
from chargegate.ledger import copying
from chargegate.ledger.base import LedgerUnavailable
from chargegate.ledger.counts import UNITS
from chargegate.ledger.exports import ExportedFile
from chargegate.ledger.records import Finished
from chargegate.model import RequestStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from chargegate.ledger.counts import DecisionCounts

START = 1_768_000_000_123
DAY = 86_400_000
STATIONS = [f"123e4567-e89b-12d3-a456-4266141740{number:02}" for number in range(7)]


async def everything(counts: DecisionCounts) -> list[Any]:
    """All units of all lengths, and all stations, in all and by days."""
    while await counts.count_more(10_000):
        pass
    found: list[Any] = [await counts.by_unit(unit, None, None, 10_000, None) for unit in UNITS]
    found.append(await counts.total(None, None))
    for day in range(-1, 60):
        since = (START // DAY + day) * DAY
        found += [await counts.total(since, since + DAY), await counts.by_station(since, since + DAY)]
    return found


async def filled(both: Both, decide: Callable[..., Any], dropped: float) -> None:
    """Fifty days with decisions, of which some have not ended; then a part of the days is dropped."""
    drawn = random.Random(4)
    for _ in range(300):
        at = START + drawn.randrange(50 * DAY)
        made = decide(at, station=drawn.choice(STATIONS))
        await both.ours.record(made, at)
        if drawn.random() < 0.9:
            await both.ours.finish(Finished(made.request_id, RequestStatus.COMPLETED, 1, 200, None, at, None))
    before = START + int(dropped * 50 * DAY)
    assert (await both.ours.drop_audit_before(before)).rows > 0


@pytest.mark.servers
@pytest.mark.parametrize("dropped", [0.37, 0.99])
def test_all_counts_are_the_same_after_a_move(run: Run, decide: Callable[..., Any], dropped: float) -> None:  # noqa: F811 - the fixture
    async def scenario(both: Both) -> None:
        await filled(both, decide, dropped)
        ours = await everything(SqliteCounts(both.source))
        for _ in range(2):
            await both.copy()
            assert await everything(PostgresCounts(both.target)) == ours

    run(scenario)


@pytest.mark.servers
def test_a_move_that_was_interrupted_adds_no_count_twice(
    run: Run,  # noqa: F811 - the fixture
    decide: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(copying, "_PAGE", 40)

    async def scenario(both: Both) -> None:
        await filled(both, decide, 0.8)
        ours = await everything(SqliteCounts(both.source))
        put = PostgresTarget.put_counts
        for nth in range(1, 4):
            left = nth

            async def break_off(target: PostgresTarget, kind: Any, counts: Any) -> int:
                nonlocal left
                left -= 1
                changed = await put(target, kind, counts)
                if not left:
                    raise LedgerUnavailable("the answer was lost")
                return changed

            monkeypatch.setattr(PostgresTarget, "put_counts", break_off)
            with pytest.raises(LedgerUnavailable):
                await both.copy()
        monkeypatch.setattr(PostgresTarget, "put_counts", put)
        await both.copy()
        assert await everything(PostgresCounts(both.target)) == ours

    run(scenario)


@pytest.mark.servers
def test_what_was_exported_is_known_there_too(run: Run) -> None:  # noqa: F811 - the fixture
    async def scenario(both: Both) -> None:
        file = ExportedFile(1, "file", "origin", 5, '{"embedded":3}', 3, 10, "0" * 64, "", 6)
        assert await SqliteExports(both.source).add(file)
        assert list(await SqliteSource(both.source).exports(0, 10)) == [file]
        for _ in range(2):
            await both.copy()
            assert await both.rows("SELECT number, positions FROM audit_exports") == [(1, '{"embedded":3}')]

    run(scenario)
