"""Stations' hours are added to longer units later. Answers are those of the rows at any moment, whatever comes when."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chargegate.engines.sqlite.connection import SqliteStore
from chargegate.engines.sqlite.counts import SqliteCounts
from chargegate.engines.sqlite.ledger import SqliteLedger
from chargegate.engines.sqlite.statements import ALL_TABLES, COUNTING
from chargegate.ledger.base import LedgerUnavailable
from chargegate.ledger.counts import DAY_MS, HOUR_MS, LONGEST_MS, MINUTE_MS, STATION_UNITS, UNITS
from chargegate.model import Decision, Reason, Status, new_request_id, now_ms
from databases import Database, Run
from scenario import run as run_to_its_end

STATIONS = [f"{number:08x}-0000-4000-8000-00000000000a" for number in range(1, 5)]
NOW = now_ms()
HOUR = NOW - NOW % HOUR_MS
LONGER = f"unit > {HOUR_MS}"


def made(at: int, station: int = 0, status: Status = Status.ALLOWED) -> Decision:
    reason = Reason.TIMEOUT if status is Status.UNKNOWN else ""
    return Decision(new_request_id(), STATIONS[station], "0" * 16, status, reason, 7, at)


async def record(ledger: SqliteLedger, decisions: Sequence[Decision]) -> None:
    for decision in decisions:
        await ledger.record(decision, 0, "north")


def clock(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    monkeypatch.setattr("chargegate.engines.sqlite.counting.now_ms", lambda: at)


def in_rows(decisions: Sequence[Decision], since: int, until: int) -> list[tuple[Any, ...]]:
    """A count over the rows: station, decisions, unknown ones."""
    found = []
    for station in STATIONS:
        theirs = [d for d in decisions if d.station_id == station and since <= d.timestamp < until]
        if theirs:
            found.append((station, len(theirs), sum(d.status is Status.UNKNOWN for d in theirs)))
    return found


async def check(counts: SqliteCounts, decisions: Sequence[Decision]) -> None:
    for since, until in (
        (None, None),
        (HOUR - 3 * DAY_MS, None),
        (HOUR - 40 * DAY_MS + 5, HOUR - HOUR_MS + 1),
        (HOUR - HOUR_MS, HOUR),
        (HOUR - DAY_MS, HOUR + HOUR_MS),
        (None, HOUR - 30 * MINUTE_MS),
    ):
        expected = in_rows(decisions, since or 0, until or 2**62)
        answer = await counts.by_station(since, until)
        assert [(c.station_id, c.total, c.unknown) for c in answer] == expected, (since, until)
        one = await counts.by_station(since, until, station_id=STATIONS[1])
        assert [(c.station_id, c.total, c.unknown) for c in one] == [row for row in expected if row[0] == STATIONS[1]]
    for hours in (0, 5, 23, 24, 167, 2000):
        since = HOUR - hours * HOUR_MS
        top = await counts.top_stations(since, NOW, fewest=1, limit=3)
        expected = sorted(in_rows(decisions, since, 2**62), key=lambda row: (-row[1], row[0]))[:3]
        assert [(c.station_id, c.total, c.unknown) for c in top.busiest] == expected, hours


async def rows_of(store: SqliteStore, query: str) -> list[tuple[Any, ...]]:
    return await store.read(lambda connection: connection.execute(query).fetchall())


async def check_units(store: SqliteStore) -> None:
    """Each longer unit is the sum of the hours that it should have, and of no others."""
    [place] = await rows_of(store, "SELECT start, station_id FROM stations_added_up")
    rows = await rows_of(store, "SELECT unit, start, station_id, decisions, time_ms FROM station_counts")
    for unit in STATION_UNITS[1:]:
        expected: dict[tuple[int, str], tuple[int, int]] = {}
        for length, start, station, decisions, time_ms in rows:
            if length == HOUR_MS and (start, station) <= place:
                had = expected.get((start - start % unit, station), (0, 0))
                expected[start - start % unit, station] = had[0] + decisions, had[1] + time_ms
        assert {(start, station): tuple(rest) for length, start, station, *rest in rows if length == unit} == expected


AT = st.one_of(
    st.integers(HOUR - 3 * HOUR_MS, HOUR + HOUR_MS - 1),
    st.integers(HOUR - 3 * DAY_MS, HOUR + 2 * DAY_MS),
    st.integers(HOUR - 100 * DAY_MS, HOUR - DAY_MS),
)
RECORD = st.tuples(
    st.just("record"),
    st.lists(
        st.builds(made, AT, st.integers(0, 3), st.sampled_from([Status.ALLOWED, Status.UNKNOWN])),
        min_size=1,
        max_size=8,
    ),
)
STEPS = st.lists(
    st.one_of(
        RECORD,
        st.tuples(st.just("count"), st.integers(1, 6)),
        st.tuples(st.just("clock"), st.integers(NOW - 50 * DAY_MS, NOW + 50 * DAY_MS)),
        st.tuples(st.just("recount"), st.none()),
    ),
    min_size=3,
    max_size=14,
)


@given(STEPS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_answers_are_those_of_the_rows_whatever_comes_when(steps: list[tuple[str, Any]]) -> None:
    """Also under a clock that jumps, with rows that come late or are of the future, and when all is counted again."""

    async def scenario(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = await SqliteStore.open(folder / "counts.db", ALL_TABLES, exclusive=False)
        ledger, counts = SqliteLedger(store), SqliteCounts(store)
        decisions: list[Decision] = []
        for step, value in steps:
            if step == "record":
                decisions += value
                await record(ledger, value)
            elif step == "count":
                await counts.count_more(value)
            elif step == "clock":
                clock(monkeypatch, value)
            else:
                await counts.recount()
            await check_units(store)
        await check(counts, decisions)
        for _ in range(40):
            await counts.count_more(5)
        await check_units(store)
        await check(counts, decisions)
        await store.close()

    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
        run_to_its_end(scenario(Path(folder), monkeypatch), 60)


def test_a_decision_changes_its_hour_until_that_is_over(sqlite_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    decisions = [made(HOUR + number, number) for number in range(4)]

    async def scenario(database: Database) -> None:
        ledger, counts, store = database.ledger(), database.counts(), database._store  # type: ignore[attr-defined]  # its rows are looked at
        clock(monkeypatch, HOUR + HOUR_MS - 1)
        await record(ledger, decisions)
        assert await counts.count_more(50) == 4
        assert await rows_of(store, f"SELECT 1 FROM station_counts WHERE {LONGER}") == []
        clock(monkeypatch, HOUR + HOUR_MS + 6 * MINUTE_MS)
        assert await counts.count_more(50) == 0
        assert await rows_of(store, f"SELECT 1 FROM station_counts WHERE {LONGER}") == []  # nothing follows it yet
        later = [made(HOUR + HOUR_MS + 1)]
        await record(ledger, later)
        for limit, done in ((1, 1), (2, 3), (2, 4)):  # as many stations at a time as decisions
            await counts.count_more(limit)
            units = await rows_of(store, f"SELECT unit, count(*) FROM station_counts WHERE {LONGER} GROUP BY unit")
            assert units == [(unit, done) for unit in STATION_UNITS[1:]]
            await check(counts, decisions + later)
        await check_units(store)

    sqlite_run(scenario)


def test_a_database_that_was_counted_in_all_units_at_once_goes_on(tmp_path: Path) -> None:
    """As releases did before the table of what is added up."""
    path = tmp_path / "old.db"
    old = [made(at, number % 4) for number, at in enumerate([HOUR - 40 * DAY_MS, HOUR - DAY_MS, HOUR + 1, HOUR + 2])]
    uncounted = [made(HOUR + 3), made(HOUR - 2 * DAY_MS, 1)]

    async def scenario() -> None:
        store = await SqliteStore.open(path, {**ALL_TABLES, "ledger": ALL_TABLES["ledger"][:9]}, exclusive=False)
        await record(SqliteLedger(store), old + uncounted)
        await store.close()
        with closing(sqlite3.connect(path)) as connection:
            page = (1, len(old), 0)
            connection.execute(COUNTING["count_stations"], page)
            connection.execute(COUNTING["count_late"], (*page, f"[{DAY_MS}, {LONGEST_MS}]", 2**62, ""))
            connection.execute(COUNTING["count_all"], (*page, str(list(UNITS))))
            connection.execute(COUNTING["know_stations"], page)
            connection.execute("UPDATE uncounted_decisions SET first = ?", (len(old) + 1,))
            connection.commit()
        store = await SqliteStore.open(path, ALL_TABLES, exclusive=False)
        counts = SqliteCounts(store)
        await check_units(store)
        await check(counts, old + uncounted)
        more = [made(HOUR + 4, 2), made(HOUR + HOUR_MS + 5, 3)]
        await record(SqliteLedger(store), more)
        while await counts.count_more(2):
            await check_units(store)
            await check(counts, old + uncounted + more)
        await store.close()

    run_to_its_end(scenario(), 60)


def test_an_hour_that_is_dropped_was_added_up_before(sqlite_run: Run) -> None:
    """So that the longer unit that it is part of keeps its count."""
    month = (HOUR // LONGEST_MS - 3) * LONGEST_MS
    decisions = [made(month + number * HOUR_MS, number) for number in range(4)]
    followed = [*decisions, made(HOUR)]

    async def scenario(database: Database) -> None:
        ledger, counts = database.ledger(), database.counts()
        await record(ledger, followed)
        assert await counts.count_more(5) == 5
        await database.execute("DELETE FROM station_counts WHERE unit > 3600000")
        await database.execute("UPDATE stations_added_up SET start = -1, station_id = ''")
        for _ in range(6):
            while await counts.drop_before(month + 3 * DAY_MS, 10):
                pass
            assert [c.total for c in await counts.by_station(month, month + LONGEST_MS)] == [1, 1, 1, 1]
            await counts.count_more(1)
        assert await database.execute(f"SELECT 1 FROM station_counts WHERE unit = {HOUR_MS} AND start < {HOUR}") == []

    sqlite_run(scenario)


def test_a_step_that_is_undone_leaves_all_as_it_was(tmp_path: Path) -> None:
    """The counts, and what says that they were made, are of one transaction."""
    path = tmp_path / "undone.db"
    decisions = [made(HOUR - (60 - number) * HOUR_MS, number % 4) for number in range(60)]

    async def scenario() -> None:
        store = await SqliteStore.open(path, ALL_TABLES, exclusive=False)
        counts = SqliteCounts(store)
        await record(SqliteLedger(store), decisions)
        tables = "station_counts", "decision_counts", "known_stations", "uncounted_decisions", "stations_added_up"
        refused = 0
        for table in tables:
            for moment in ("INSERT", "UPDATE"):
                trigger = f"CREATE TRIGGER broken AFTER {moment} ON {table} BEGIN SELECT raise(ABORT, 'broken'); END"
                with closing(sqlite3.connect(path)) as connection:
                    connection.execute(trigger)
                try:
                    await counts.count_more(3)
                except LedgerUnavailable:
                    refused += 1
                with closing(sqlite3.connect(path)) as connection:
                    connection.execute("DROP TRIGGER broken")
                await check_units(store)
                await check(counts, decisions)
                await counts.count_more(1)
        assert refused >= len(tables)
        for _ in range(40):
            await counts.count_more(3)
        await check_units(store)
        await check(counts, decisions)
        await store.close()

    run_to_its_end(scenario(), 60)
