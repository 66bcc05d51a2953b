"""How the databases go about the audit's queries: by an index, whatever the number of rows."""

import asyncio
import re
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from chargegate.engines.postgres.counts import PostgresCounts
from chargegate.engines.postgres.ledger import PostgresLedger
from chargegate.engines.postgres.statements import LEDGER_TABLES
from chargegate.engines.postgres.store import PostgresStore
from chargegate.engines.sqlite.connection import SqliteStore
from chargegate.engines.sqlite.counts import SqliteCounts
from chargegate.engines.sqlite.ledger import SqliteLedger
from chargegate.engines.sqlite.statements import ALL_TABLES
from chargegate.ledger.base import Ledger, LedgerUnavailable
from chargegate.ledger.counts import HOUR_MS, MINUTE_MS, OF_ALL, DecisionCounts
from chargegate.ledger.records import DecisionFilter
from chargegate.model import Decision, Reason, Status, new_request_id
from scenario import run as run_to_its_end

START = 1_700_000_000_000
STATION = "0a1b2c3d-0000-4000-8000-00000000000a"
RANGE = {"since": START + 1, "until": START + 5 * HOUR_MS}

Query = Callable[[Ledger, DecisionCounts], Awaitable[Any]]
QUERIES: dict[str, Query] = {
    "newest": lambda ledger, _: ledger.decisions(DecisionFilter(), 50, None),
    "next_page": lambda ledger, _: ledger.decisions(DecisionFilter(), 50, (START + 9, "0")),
    "station": lambda ledger, _: ledger.decisions(DecisionFilter(STATION, **RANGE), 50, (START + 9, "0")),
    "status": lambda ledger, _: ledger.decisions(DecisionFilter(status="unknown", **RANGE), 50, None),
    "timeouts": lambda ledger, _: ledger.decisions(DecisionFilter(reason=Reason.TIMEOUT, **RANGE), 50, None),
    "timeouts_of_station": lambda ledger, _: ledger.decisions(
        DecisionFilter(STATION, reason=Reason.TIMEOUT, **RANGE), 50, None
    ),
    "reason": lambda ledger, _: ledger.decisions(DecisionFilter(reason=Reason.CIRCUIT_OPEN, **RANGE), 50, None),
    "status_of_station": lambda ledger, _: ledger.decisions(DecisionFilter(STATION, "unknown", **RANGE), 50, None),
    "client": lambda ledger, _: ledger.decisions(DecisionFilter(client="seldom", **RANGE), 50, (START + 9, "0")),
    "status_of_client": lambda ledger, _: ledger.decisions(DecisionFilter(status="allowed", client="seldom"), 50, None),
    "reason_of_client": lambda ledger, _: ledger.decisions(
        DecisionFilter(reason=Reason.CIRCUIT_OPEN, client="often"), 50, None
    ),
    "request": lambda ledger, _: ledger.find("0"),
    "several_requests": lambda ledger, _: ledger.find_all(["0", "1"]),
    "queued": lambda ledger, _: ledger.queued(50, None),
    "total": lambda _, counts: counts.total(START + 1, START + 900 * HOUR_MS + 1),
    "series": lambda _, counts: counts.by_unit(HOUR_MS, START, None, 50, None),
    "stations": lambda _, counts: counts.by_station(START + 1, START + 900 * HOUR_MS + 1, limit=50),
    "one_station": lambda _, counts: counts.by_station(START + 1, START + 900 * HOUR_MS + 1, station_id=STATION),
    "top_stations": lambda _, counts: counts.top_stations(
        (START // HOUR_MS + 880) * HOUR_MS, START + 900 * HOUR_MS, fewest=1, limit=9
    ),
    "stats": lambda ledger, _: ledger.station_stats(None, None, limit=50),
    "callbacks": lambda _, counts: counts.callbacks(START),
}
MADE = "[eprstuw](?!\\w)|edges|slots|wanted|page|stations|uncounted|ranked|top|json_each"
SMALL = f"SCAN (a USING INDEX audit_by_time$|CONSTANT ROW|{MADE})"
Asked = list[tuple[str, tuple[Any, ...]]]
queries = pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)


async def fill(ledger: Ledger, counts: DecisionCounts) -> None:
    decisions = [
        Decision(
            new_request_id(), f"{n % 40:08x}-0000-4000-8000-00000000000a", "0" * 16,
            Status.UNKNOWN if n % 5 == 0 else Status.ALLOWED,
            Reason.TIMEOUT if n % 10 == 0 else Reason.CIRCUIT_OPEN if n % 100 == 5 else "", n, START + n * 400_000,
        )
        for n in range(4000)
    ]  # fmt: skip
    clients = {0: "seldom", 1: ""}
    await asyncio.gather(*(ledger.record(each, 0, clients.get(n % 50, "often")) for n, each in enumerate(decisions)))
    while await counts.count_more(1000):
        pass


@pytest.fixture(scope="module")
def sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plans") / "plans.db"

    async def made() -> None:
        store = await SqliteStore.open(path, ALL_TABLES, exclusive=False)
        await fill(SqliteLedger(store), SqliteCounts(store))
        await store.close()

    run_to_its_end(made(), 60)
    return path


@queries
def test_sqlite_searches_and_never_scans_a_table(
    query: Query, sqlite_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    selects = sqlite_asked(query, sqlite_file, monkeypatch)
    with closing(sqlite3.connect(sqlite_file)) as connection:
        for select in selects:
            plan = [row[3] for row in connection.execute("EXPLAIN QUERY PLAN " + select)]
            for step in plan:
                # Rows in the order of an index end with the page; what has a virtual table, or is made by the query
                # itself, is small.
                assert not re.match(r"SCAN (\w+)", step) or re.match(SMALL, step), plan
            if "FROM authorization_audit a WHERE" in select or "FROM client_decisions" in select:
                assert "USE TEMP B-TREE FOR ORDER BY" not in plan


@queries
def test_sqlite_reads_no_whole_table_for_a_filter_once_it_knows_how_many_rows_there_are(
    query: Query, sqlite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once ANALYZE was run, SQLite may make a filter of all rows of a table, where it expects many searches."""
    path = tmp_path / "analyzed.db"
    with closing(sqlite3.connect(sqlite_file)) as source, closing(sqlite3.connect(path)) as copy:
        source.backup(copy)
        copy.execute("ANALYZE")
        copy.execute("UPDATE sqlite_stat1 SET stat = '3000000 1000000 2000 1' WHERE tbl = 'station_counts'")
        copy.execute("UPDATE sqlite_stat1 SET stat = '300000 100000 3 1' WHERE tbl = 'decision_counts'")
        copy.execute(
            "UPDATE sqlite_stat1 SET stat = '10000000' || substr(stat, instr(stat, ' '))"
            " WHERE tbl IN ('authorization_audit', 'charging_requests', 'client_decisions')"
        )
        copy.commit()
    selects = sqlite_asked(query, path, monkeypatch)
    with closing(sqlite3.connect(path)) as connection:
        for select in selects:
            plan = [row[3] for row in connection.execute("EXPLAIN QUERY PLAN " + select)]
            assert not [step for step in plan if step.startswith("BLOOM FILTER")], plan


def sqlite_asked(query: Query, path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements that the query runs."""
    asked: list[str] = []

    def traced(connect: Callable[..., sqlite3.Connection]) -> Callable[..., sqlite3.Connection]:
        def connected(*arguments: Any) -> sqlite3.Connection:
            connection = connect(*arguments)
            connection.set_trace_callback(asked.append)
            return connection

        return connected

    monkeypatch.setattr("chargegate.engines.sqlite.connection.connect", traced(sqlite3_connect()))

    async def scenario() -> None:
        store = await SqliteStore.open(path, ALL_TABLES, exclusive=False)
        await query(SqliteLedger(store), SqliteCounts(store))
        await store.close()

    run_to_its_end(scenario(), 20)
    selects = [text for text in asked if re.search(r"\bFROM\b", text) and "sqlite_master" not in text]
    assert selects
    return selects


def sqlite3_connect() -> Callable[..., sqlite3.Connection]:
    from chargegate.engines.sqlite.file import connect

    return connect


@pytest.fixture(scope="module")
def postgres_filled(postgres_server: Any) -> str:
    schema = "plans" + new_request_id().replace("-", "")
    url = f"{postgres_server.url}?search_path={schema}"

    async def made() -> None:
        connection = await asyncpg.connect(postgres_server.url)
        await connection.execute(f"CREATE SCHEMA {schema}")
        store = await PostgresStore.open(url, LEDGER_TABLES, LedgerUnavailable)
        await fill(PostgresLedger(store, "w"), PostgresCounts(store))
        await store.close()
        await connection.execute(f"SET search_path = {schema}; ANALYZE")
        await connection.close()

    run_to_its_end(made(), 60)
    return url


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """The queries that PostgreSQL is asked, each with its values."""
    asked: Asked = []
    read = PostgresStore.read

    async def traced(store: PostgresStore, text: str, *values: Any, **options: Any) -> list[Any]:
        asked.append((text, values))
        return await read(store, text, *values, **options)

    monkeypatch.setattr(PostgresStore, "read", traced)
    return asked


@queries
def test_postgres_looks_at_few_rows(query: Query, postgres_filled: str, asked: Asked) -> None:
    """With 4,000 decisions the planner may well scan; where scans are dear, it must have another way."""

    async def scenario() -> None:
        store = await PostgresStore.open(postgres_filled, LEDGER_TABLES, LedgerUnavailable)
        await query(PostgresLedger(store, "w"), PostgresCounts(store))
        await store.close()
        connection = await asyncpg.connect(postgres_filled, statement_cache_size=0)
        await connection.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
        for text, values in asked:
            rows = await connection.fetch("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) " + text, *values)
            plan = "\n".join(row[0] for row in rows)
            assert not re.search(r"Seq Scan on (authorization_audit|station_counts|decision_counts|charging)", plan), (
                plan
            )
            read_rows = [int(n) for n in re.findall(r"Index (?:Only )?Scan .* on \S+.*\(actual rows=(\d+) ", plan)]
            assert max(read_rows, default=0) <= 400, plan
            removed = [int(n) for n in re.findall(r"Rows Removed by Filter: (\d+)", plan)]
            assert max(removed, default=0) <= 200, plan
        await connection.close()

    run_to_its_end(scenario(), 30)
    assert asked


def test_postgres_reads_a_day_of_a_year_by_its_key(postgres_server: Any, asked: Asked) -> None:
    """A join was a scan of all counts, because the planner takes a day for a large part of them."""
    schema = "year" + new_request_id().replace("-", "")
    url = f"{postgres_server.url}?search_path={schema}"

    async def scenario() -> None:
        connection = await asyncpg.connect(postgres_server.url)
        await connection.execute(f"CREATE SCHEMA {schema}")
        store = await PostgresStore.open(url, LEDGER_TABLES, LedgerUnavailable)
        await connection.execute(f"SET search_path = {schema}")
        counts = ", ".join(["1"] * (len(OF_ALL)))
        await connection.execute(
            f"INSERT INTO decision_counts (unit, start, status, {', '.join(OF_ALL)})"
            f" SELECT {MINUTE_MS}, n / 3 * {MINUTE_MS}, (array['allowed', 'invalid', 'unknown'])[n % 3 + 1], {counts}"
            f" FROM generate_series(0::bigint, {3 * 60 * 24 * 60}) AS n"
        )
        await connection.execute("ANALYZE; SET random_page_cost = 8")  # where a scan seems cheap
        days = PostgresCounts(store)
        assert len(await days.by_unit(MINUTE_MS, 59 * 24 * HOUR_MS, None, 1445, None)) == 1441
        await store.close()
        for text, values in asked:
            plan = "\n".join(row[0] for row in await connection.fetch("EXPLAIN " + text, *values))
            assert "Seq Scan on decision_counts" not in plan, plan
        await connection.close()

    run_to_its_end(scenario(), 60)
    assert asked
