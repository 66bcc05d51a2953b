"""One suite for the counts of every database: they are what a count over the rows gives, always."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chargegate.engines.postgres.counts import PostgresCounts
from chargegate.engines.postgres.statements import LEDGER_TABLES
from chargegate.engines.postgres.store import PostgresStore
from chargegate.engines.postgres.target import PostgresTarget
from chargegate.engines.sqlite.connection import SqliteStore
from chargegate.engines.sqlite.statements import ALL_TABLES
from chargegate.ledger.base import LedgerUnavailable
from chargegate.ledger.counts import (
    BUCKETS_MS,
    DAY_MS,
    HOUR_MS,
    LONGEST_MS,
    MINUTE_MS,
    REASONS,
    STATION_UNITS,
    UNITS,
    DecisionCounts,
    quantile,
)
from chargegate.ledger.records import DecisionFilter, DroppedAudit, Finished, StationStats
from chargegate.ledger.spans import parts_of
from chargegate.ledger.transfer import StoredRequest
from chargegate.model import Decision, Reason, RequestStatus, Status, month_start, new_request_id
from databases import Database, Postgres, Run, Sqlite
from scenario import run as run_to_its_end

STATIONS = [f"{number:08x}-0000-4000-8000-00000000000a" for number in range(1, 6)]
START = 1_700_000_000_000
RANGES = [
    (None, None),
    (START, None),
    (None, START + 40 * DAY_MS),
    (START - START % HOUR_MS, START - START % HOUR_MS + 31 * DAY_MS),
    (START + 3, START + 65 * DAY_MS + 17),
    (START + 5 * MINUTE_MS + 1, START + 2 * HOUR_MS),
    (START + 20, START + 40),
    (START, START),
    (START + DAY_MS, START),
]


def made(number: int) -> Decision:
    """Decisions that differ in everything: of several stations, over three months, of every status and reason."""
    status = list(Status)[number % 4]
    reason = "" if status is not Status.UNKNOWN else list(REASONS.values())[number // 4 % 4].value
    station = STATIONS[number % len(STATIONS)]
    at = START + (number * 7_919_333 + number * number * 13) % (95 * DAY_MS)
    took = (number * 37) % 40_000
    return Decision(new_request_id(), station.upper() if number % 3 else station, "0" * 16, status, reason, took, at)


async def record(database: Database, decisions: list[Decision], **writer: str) -> None:
    ledger = database.ledger(**writer)
    await asyncio.gather(*(ledger.record(decision, 0, "north") for decision in decisions))


async def count_all(counts: DecisionCounts, limit: int = 1000) -> int:
    counted = 0
    while some := await counts.count_more(limit):
        counted += some
    return counted


def counted(decisions: list[Decision]) -> tuple[int, ...]:
    by = Counter(decision.status for decision in decisions)
    reasons = Counter(decision.reason for decision in decisions)
    return (
        len(decisions),
        *(by[status] for status in Status),
        *(reasons[reason] for reason in REASONS.values()),
        sum(decision.processing_time_ms for decision in decisions),
    )


async def check(counts: DecisionCounts, decisions: list[Decision]) -> None:
    """The counts of every range are those of the decisions."""
    for since, until in RANGES:
        within = [d for d in decisions if (since or 0) <= d.timestamp < (until or 2**62)]
        total = await counts.total(since, until)
        assert (
            total.total, total.allowed, total.not_allowed, total.unknown, total.invalid, total.timeouts, total.errors,
            total.circuit_open, total.expired_in_queue, total.processing_time_ms,
        ) == counted(within)  # fmt: skip
        assert total.buckets == tuple(sum(d.processing_time_ms <= bound for d in within) for bound in BUCKETS_MS)
        of_station = {station: [d for d in within if d.station_id.lower() == station] for station in STATIONS}
        expected = [(station, *counted(theirs)) for station, theirs in of_station.items() if theirs]
        found = [tuple(getattr(c, f) for f in c.__struct_fields__) for c in await counts.by_station(since, until)]
        assert found == expected
        paged: list[Any] = []
        while page := await counts.by_station(since, until, limit=2, after=paged[-1].station_id if paged else None):
            paged += page
        assert [c.station_id for c in paged] == [row[0] for row in expected]
        one = await counts.by_station(since, until, station_id=STATIONS[2].upper())
        assert [tuple(getattr(c, f) for f in c.__struct_fields__) for c in one] == [
            row for row in expected if row[0] == STATIONS[2]
        ]
        if until is None:
            by = Counter(decision.status for decision in within)
            assert await counts.latest(since or 0) == {status.value: by[status] for status in Status}
            await check_top(counts, decisions, (since or 0) // HOUR_MS * HOUR_MS)
        for unit in UNITS:
            starts: dict[int, list[Decision]] = {}
            for d in decisions:
                start = d.timestamp - d.timestamp % unit
                if (since or 0) <= start < (until or 2**62):
                    starts.setdefault(start, []).append(d)
            units: list[Any] = []
            while page := await counts.by_unit(unit, since, until, 50, units[-1].start if units else None):
                units += page
            assert [(u.start, u.total, u.timeouts) for u in units] == [
                (start, len(ds), sum(d.reason == Reason.TIMEOUT for d in ds))
                for start, ds in sorted(starts.items(), reverse=True)
            ]


async def check_top(counts: DecisionCounts, decisions: list[Decision], since: int) -> None:
    """The busiest stations, and those with most errors, are those that sorting finds."""
    within = [d for d in decisions if d.timestamp >= since]
    theirs = [(station, [d for d in within if d.station_id.lower() == station]) for station in STATIONS]
    rows = [(station, *counted(decided)) for station, decided in theirs if decided]

    def share(row: tuple[Any, ...]) -> float:
        return round((row[4] + row[5]) / row[1], 4)

    def shown(found: Sequence[Any]) -> list[tuple[Any, ...]]:
        return [tuple(getattr(one, field) for field in one.__struct_fields__) for one in found]

    for limit in (2, 100):
        for fewest in (1, sorted(row[1] for row in rows)[len(rows) // 2] if rows else 1):
            for now in (since, since + 3 * HOUR_MS, since + 40 * HOUR_MS):
                found = await counts.top_stations(since, now, fewest=fewest, limit=limit)
                assert shown(found.busiest) == sorted(rows, key=lambda row: (-row[1], row[0]))[:limit]
                worst = [row for row in rows if row[1] >= fewest and share(row) > 0]
                assert shown(found.worst) == sorted(worst, key=lambda row: (-share(row), -row[1], row[0]))[:limit]


def test_counts_are_those_of_the_rows_before_while_and_after_they_are_counted(run: Run) -> None:
    decisions = [made(number) for number in range(300)]

    async def scenario(database: Database) -> None:
        counts = database.counts()
        assert await counts.count_more(10) == 0
        assert await counts.uncounted_since() is None
        await record(database, decisions[:200])
        assert await counts.uncounted_since() is not None
        await check(counts, decisions[:200])
        assert 0 < await counts.count_more(50) < 200
        await check(counts, decisions[:200])
        await record(database, decisions[200:])
        await count_all(counts, 70)
        assert await counts.uncounted_since() is None
        await check(counts, decisions)
        assert await counts.count_more(10) == 0

    run(scenario)


def test_several_writers_and_counters_at_once_count_each_row_once(postgres_run: Run) -> None:
    decisions = [made(number) for number in range(600)]

    async def scenario(database: Database) -> None:
        counts = [database.counts() for _ in range(4)]
        done = asyncio.Event()

        async def keep_counting(mine: DecisionCounts) -> None:
            while not done.is_set():
                await mine.count_more(25)

        counting = [asyncio.create_task(keep_counting(mine)) for mine in counts]
        for start in range(0, 600, 100):
            some = decisions[start : start + 100]
            await asyncio.gather(*(record(database, some[n::3], writer=f"w{n}") for n in range(3)))
        done.set()
        await asyncio.gather(*counting)
        await count_all(counts[0])
        await check(counts[0], decisions)

    postgres_run(scenario)


def test_a_transaction_that_commits_late_is_not_passed_over(postgres_run: Run) -> None:
    """A row of a smaller number, and of an earlier time, becomes visible after later ones were counted."""
    decisions = [made(number) for number in range(40)]

    async def scenario(database: Database) -> None:
        counts, late = database.counts(), asyncio.Event()
        store = database._store  # type: ignore[attr-defined]  # a transaction that is held open

        async def slow(connection: Any, _repeated: bool) -> None:
            d = decisions[0]
            await connection.execute(
                "INSERT INTO authorization_audit VALUES ('slow', 1, $1, $2, $3, $4, $5, $6, $7)",
                d.timestamp, d.request_id, d.station_id, d.driver_token_hash, d.status, d.reason, d.processing_time_ms,
            )  # fmt: skip
            await late.wait()

        await record(database, decisions[1:2])
        months = database.ledger()
        await months.record(made(0), 0)  # makes the month of the row that follows
        holding = asyncio.create_task(store.transaction(slow, within=10))
        await record(database, decisions[2:], writer="fast")
        assert await count_all(counts) == 40
        late.set()
        await holding
        assert await count_all(counts) == 1

    postgres_run(scenario)


def test_counts_are_made_again_from_the_rows(run: Run) -> None:
    decisions = [made(number) for number in range(250)]

    async def scenario(database: Database) -> None:
        counts = database.counts()
        await record(database, decisions[:200])
        await count_all(counts)
        await database.execute("UPDATE station_counts SET decisions = decisions + 5, allowed = 0")
        await database.execute("DELETE FROM decision_counts WHERE status = 'unknown'")
        await counts.recount()
        await check(counts, decisions[:200])
        await record(database, decisions[200:])
        await counts.count_more(30)
        await check(counts, decisions)
        await counts.recount()
        await counts.recount()
        await count_all(counts)
        await check(counts, decisions)

    run(scenario)


def test_stats_of_the_ledger_ask_the_counts(run: Run) -> None:
    decisions = [made(number) for number in range(60)]

    async def scenario(database: Database) -> None:
        ledger, counts = database.ledger(), database.counts()
        await record(database, decisions)
        before = await ledger.station_stats(None, None)
        await count_all(counts)
        assert await ledger.station_stats(None, None) == before
        assert sum(stats.total for stats in before) == 60
        assert before == await ledger.station_stats(None, None, client="north")
        assert all(isinstance(stats, StationStats) for stats in before)

    run(scenario)


def test_counts_that_are_old_go_in_steps(run: Run) -> None:
    decisions = [made(number) for number in range(200)]
    until = START - START % LONGEST_MS + 2 * LONGEST_MS

    async def scenario(database: Database) -> None:
        counts = database.counts()
        await record(database, decisions)
        await count_all(counts)
        dropped = 0
        while some := await counts.drop_before(until, 7):
            assert some <= 3 * 7
            dropped += some
        assert dropped
        kept = [d for d in decisions if d.timestamp >= until]
        assert (await counts.total(until, None)).total == len(kept)
        assert (await counts.total(None, None)).total == len(kept)

    run(scenario)


def test_dropped_months_keep_their_counts_also_when_all_are_made_again(run: Run) -> None:
    decisions = [made(number) for number in range(1200)]
    month = month_start(START + 70 * DAY_MS)

    async def scenario(database: Database) -> None:
        ledger, counts = database.ledger(), database.counts()
        await record(database, decisions)
        waiting = min(decisions, key=lambda decision: decision.timestamp)
        ended = [decision.request_id for decision in decisions if decision is not waiting]
        await asyncio.gather(
            *(ledger.finish(Finished(one, RequestStatus.COMPLETED, 1, 200, None, START, None)) for one in ended)
        )
        totals = await counts.total(None, None), await counts.by_station(None, None)
        for before in (month_start(month - 1), month):
            assert await ledger.audit_before(before) == await ledger.drop_audit_before(before) != DroppedAudit([], 0)
            assert await ledger.drop_audit_before(month_start(month - 1)) == DroppedAudit([], 0)
        assert (await counts.total(None, None), await counts.by_station(None, None)) == totals
        left = await ledger.decisions(DecisionFilter(), 2000, None)
        assert {d.request_id for d in left} - {waiting.request_id} == {
            d.request_id for d in decisions if d.timestamp >= month
        }
        assert await ledger.recorded(waiting.request_id) is not None
        for _ in range(2):
            await counts.recount()
            assert (await counts.total(None, None), await counts.by_station(None, None)) == totals
            await count_all(counts)
            assert (await counts.total(None, None), await counts.by_station(None, None)) == totals
        late = made(5)  # of a month that was dropped
        await ledger.record(late, 0)
        await count_all(counts)
        await counts.recount()
        await count_all(counts)
        assert (await counts.total(None, None)).total == 1201

    run(scenario)


@pytest.mark.parametrize("name", ["sqlite", pytest.param("postgres", marks=pytest.mark.servers)])
def test_decisions_of_an_older_release_are_counted(tmp_path: Path, request: pytest.FixtureRequest, name: str) -> None:
    decisions = [made(number) for number in range(120)]
    url = request.getfixturevalue("postgres_url") if name == "postgres" else ""

    async def scenario() -> None:
        if name == "sqlite":
            tables, wrapped = ALL_TABLES, Sqlite

            async def opening(migrations: Mapping[str, Sequence[str]]) -> Any:
                return await SqliteStore.open(tmp_path / "old.db", migrations, exclusive=False)
        else:
            tables, wrapped = LEDGER_TABLES, Postgres

            async def opening(migrations: Mapping[str, Sequence[str]]) -> Any:
                return await PostgresStore.open(url, migrations, LedgerUnavailable)

        store = await opening({**tables, "ledger": tables["ledger"][:3]})
        await record(wrapped(store), decisions)
        await store.close()
        store = await opening(tables)
        database = wrapped(store)
        await check(database.counts(), decisions)
        assert await count_all(database.counts(), 50) == 120
        await check(database.counts(), decisions)
        await store.close()

    run_to_its_end(scenario(), 60)


def test_decisions_that_were_copied_are_counted_once(postgres_url: str) -> None:
    """Their numbers are those of another database, and come in the order of request ids."""
    decisions = [made(number) for number in range(60)]

    async def scenario() -> None:
        store = await PostgresStore.open(postgres_url, LEDGER_TABLES, LedgerUnavailable)
        target, counts = PostgresTarget(store), PostgresCounts(store)
        stored = [
            StoredRequest(
                one.request_id,
                one.station_id,
                one,
                "COMPLETED",
                1,
                1,
                2,
                1,
                200,
                None,
                None,
                "",
                "",
                (number * 37) % 60 + 1,
            )
            for number, one in enumerate(decisions)
        ]
        for start in (0, 20, 0, 40):  # a page that is copied again changes nothing
            await target.put_requests(stored[start : start + 20])
            await counts.count_more(7)
        await check(counts, decisions)
        await count_all(counts)
        await check(counts, decisions)
        await store.close()

    run_to_its_end(scenario(), 60)


def test_callbacks_are_counted_once_for_each_end(run: Run) -> None:
    decisions = [made(number) for number in range(4)]

    async def scenario(database: Database) -> None:
        ledger, counts = database.ledger(), database.counts()
        await record(database, decisions)
        first, second, third, fourth = (decision.request_id for decision in decisions)
        at = START + 1234
        failed = Finished(first, RequestStatus.FAILED, 3, 500, "http_500", at, b"sealed")
        await ledger.finish(failed)
        await ledger.finish(failed)
        await ledger.finish(Finished(second, RequestStatus.COMPLETED, 1, 200, None, at, None))
        await ledger.finish(Finished(third, RequestStatus.TIMEOUT, 1, 200, None, at + 2 * HOUR_MS, None))
        await ledger.finish(Finished(fourth, RequestStatus.FAILED, 0, None, "malformed_request", at, b"sealed"))
        [counted] = await counts.callbacks(START)
        assert (counted.client, counted.delivered, counted.failed) == ("north", 2, 1)
        await ledger.restart(first, at)
        await ledger.finish(Finished(first, RequestStatus.COMPLETED, 1, 200, None, at + 5, None))
        [counted] = await counts.callbacks(START)
        assert (counted.delivered, counted.failed) == (3, 1)
        [counted] = await counts.callbacks(START + 2 * HOUR_MS)
        assert (counted.delivered, counted.failed) == (1, 0)

    run(scenario)


@given(st.integers(0, 3 * LONGEST_MS), st.integers(0, 3 * LONGEST_MS), st.sampled_from([UNITS, STATION_UNITS]))
@settings(max_examples=500)
def test_the_parts_of_a_range_are_the_range(since: int, until: int, units: tuple[int, ...]) -> None:
    parts = parts_of(START + since, START + until, units)
    pieces = sorted([(low, high) for _, low, high in parts.spans] + parts.edges)
    if since >= until:
        assert not pieces
        return
    assert pieces[0][0] == START + since
    assert pieces[-1][1] == START + until
    assert all(one[1] == following[0] for one, following in pairwise(pieces))
    assert all(low % unit == 0 and high % unit == 0 and low < high for unit, low, high in parts.spans)
    assert len(parts.spans) <= 2 * len(units) - 1
    assert all(high - low < units[0] for low, high in parts.edges) or not parts.spans


def test_a_quantile_is_the_bound_that_a_share_kept_to(sqlite_run: Run) -> None:
    async def scenario(database: Database) -> None:
        assert quantile(await database.counts().total(None, None), 0.5) is None
        times = [1] * 50 + [90] * 45 + [700] * 4 + [40_000]
        decisions = [Decision(new_request_id(), STATIONS[0], "0" * 16, Status.ALLOWED, "", t, START) for t in times]
        await record(database, decisions)
        total = await database.counts().total(None, None)
        assert [quantile(total, share) for share in (0.5, 0.95, 0.99, 1)] == [1, 100, 1000, None]

    sqlite_run(scenario)
