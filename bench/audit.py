"""The audit with many decisions: how long queries take with more and more of them, and what counting costs.

Usage: audit.py [--rows 10000 1000000 10000000] [--databases sqlite postgres]

Rows are made inside the database, over 60 days, for 2,000 stations. One of the stations has 2 % of the decisions, and
2 % of the decisions are timeouts, so that each page is full at every size. A time is the median of some runs. The table
goes to standard error, and all figures as JSON to standard output.
"""

import argparse
import asyncio
import contextlib
import json
import sqlite3
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import asyncpg  # type: ignore[import-untyped]  # it ships no types
import uvloop
from rich.console import Console
from rich.table import Table

from chargegate.engines import SQLITE, Place, engine_of
from chargegate.ledger.counts import DAY_MS, HOUR_MS, STEP
from chargegate.ledger.records import DecisionFilter
from chargegate.model import Reason, month_start, to_iso
from chargegate.observe import configure_logging
from processes import new_folder

sys.path.append(str(Path(__file__).parent.parent / "tests"))  # for the servers of the tests

from servers import engines as servers  # type: ignore[import-not-found]

DAYS: Final = 60
START: Final = month_start(1_740_000_000_000)
BUSY: Final = "00000000-0000-4000-8000-000000000000"
RUNS: Final = 15
CHUNK: Final = 250_000

# The n-th of so many decisions. Ids begin with the time, as those of the service do.
AT: Final = f"({START} + {DAYS * DAY_MS} / {{rows}} * n)"
STATION: Final = f"CASE WHEN n % 50 = 7 THEN '{BUSY}' ELSE {{hex}} || '-0000-4000-8000-00000000000a' END"
STATUS: Final = "CASE WHEN n % 50 = 3 THEN 'unknown' WHEN n % 5 = 1 THEN 'not_allowed' ELSE 'allowed' END"
REASON: Final = "CASE WHEN n % 50 = 3 THEN 'authorization_timeout' WHEN n % 5 = 1 THEN 'driver_not_in_acl' ELSE '' END"


def fill_sqlite(folder: Path, rows: int) -> None:
    """Fill the file that the service has made."""
    at = AT.format(rows=rows)
    request_id = f"printf('%08x-%04x-7000-8000-%012x', {at} >> 16, {at} & 65535, n)"
    station = STATION.format(hex="printf('%08x', n * 2654435761 % 1999)")
    with contextlib.closing(sqlite3.connect(folder / SQLITE.file, isolation_level=None)) as database:
        database.execute("PRAGMA synchronous = OFF")
        database.execute("PRAGMA cache_size = -400000")
        for first in range(0, rows, CHUNK):
            numbers = (
                f"WITH RECURSIVE numbers(n) AS (VALUES ({first}) UNION ALL"
                f" SELECT n + 1 FROM numbers WHERE n < {min(rows, first + CHUNK) - 1})"
            )
            database.execute("BEGIN")
            database.execute(
                f"{numbers} INSERT INTO authorization_audit (timestamp, request_id, station_id, driver_token_hash,"
                f" status, reason, processing_time_ms) SELECT {at}, {request_id}, {station}, '0123456789abcdef',"
                f" {STATUS}, {REASON}, n % 300 FROM numbers"
            )
            database.execute(
                f"{numbers} INSERT INTO charging_requests (request_id, station_id, driver_token_hash, status,"
                f" created_at, started_at, processed_at, attempts) SELECT {request_id}, {station}, '0123456789abcdef',"
                f" 'COMPLETED', {at}, {at}, {at}, 1 FROM numbers"
            )
            database.execute("COMMIT")


async def fill_postgres(url: str, rows: int) -> None:
    """Fill the tables that the service has made."""
    at = AT.format(rows=rows)
    hexes = [f"lpad(to_hex({value}), {digits}, '0')" for value, digits in ((f"{at} >> 16", 8), (f"{at} & 65535", 4))]
    request_id = f"{hexes[0]} || '-' || {hexes[1]} || '-7000-8000-' || lpad(to_hex(n), 12, '0')"
    station = STATION.format(hex="lpad(to_hex(n * 2654435761 % 1999), 8, '0')")
    connection = await asyncpg.connect(url)
    await connection.execute("SET synchronous_commit = off")
    for month in {month_start(START + day * DAY_MS) for day in range(DAYS + 1)}:
        name, end = to_iso(month)[:7].replace("-", "_"), month_start(month + 32 * DAY_MS)
        await connection.execute(
            f"CREATE TABLE authorization_audit_{name} PARTITION OF authorization_audit"
            f" FOR VALUES FROM ({month}) TO ({end})"
        )
    for first in range(0, rows, CHUNK):
        numbers = f"generate_series({first}::bigint, {min(rows, first + CHUNK) - 1}) AS n"
        await connection.execute(
            f"INSERT INTO authorization_audit (writer, sequence, timestamp, request_id, station_id, driver_token_hash,"
            f" status, reason, processing_time_ms) SELECT 'bench', n + 1, {at}, {request_id}, {station},"
            f" '0123456789abcdef', {STATUS}, {REASON}, n % 300 FROM {numbers}"
        )
        await connection.execute(
            f"INSERT INTO charging_requests (request_id, station_id, driver_token_hash, decision, reason,"
            f" processing_time_ms, decided_at, status, created_at, started_at, processed_at, attempts)"
            f" SELECT {request_id}, {station}, '0123456789abcdef', {STATUS}, {REASON}, n % 300, {at}, 'COMPLETED',"
            f" {at}, {at}, {at}, 1 FROM {numbers}"
        )
    await connection.close()
    await vacuum(url)


async def vacuum(url: str) -> None:
    """Clean up, and learn what the tables hold."""
    connection = await asyncpg.connect(url)
    await connection.execute("VACUUM ANALYZE")
    await connection.close()


@asynccontextmanager
async def filled(kind: str, rows: int, folder: Path, postgres: Any) -> AsyncIterator[Any]:
    """An open database with so many decisions."""
    url = "sqlite"
    if kind == "postgres":
        connection = await asyncpg.connect(postgres.url)
        await connection.execute(f"CREATE DATABASE audit{rows}")
        await connection.close()
        url = f"{postgres.url.rpartition('/')[0]}/audit{rows}"
    place = Place(folder=folder, exclusive=False, process="bench")
    database = await engine_of(url).load().open_database(url, place, None, needed=True)
    try:
        if kind == "postgres":
            await fill_postgres(url, rows)
        else:
            await asyncio.to_thread(fill_sqlite, folder, rows)
        yield database, url
    finally:
        await database.close()


async def median_ms(query: Callable[[], Awaitable[Any]]) -> float:
    """The first runs only fill caches."""
    times = []
    for run in range(RUNS + 3):
        started = time.perf_counter()
        found = await query()
        if run >= 3:
            times.append((time.perf_counter() - started) * 1e3)
        if not found:
            raise SystemExit("a query found nothing")
    return statistics.median(times)


async def count(database: Any, rows: int) -> dict[str, float]:
    """Counting, in µs a decision, and its longest step in ms."""
    started, slowest = time.perf_counter(), 0.0
    while True:
        step = time.perf_counter()
        if not await database.counts.count_more(STEP):
            break
        slowest = max(slowest, time.perf_counter() - step)
    taken = (time.perf_counter() - started) / rows * 1e6
    return {"counting, µs a decision": taken, "longest step of counting": slowest * 1e3}


async def measure(database: Any) -> dict[str, float]:
    """Every query of the audit, in ms."""
    ledger, counts = database.ledger, database.counts
    middle = START + DAYS // 2 * DAY_MS
    [one] = await ledger.decisions(DecisionFilter(until=middle), 1, None)
    week = (middle, middle + 7 * DAY_MS)
    ragged = (week[0] + HOUR_MS // 3, week[1] + HOUR_MS // 3)
    queries: dict[str, Callable[[], Awaitable[Any]]] = {
        "the newest page": lambda: ledger.decisions(DecisionFilter(), 50, None),
        "a page in the middle": lambda: ledger.decisions(DecisionFilter(), 50, (middle, "")),
        "station and range": lambda: ledger.decisions(DecisionFilter(BUSY, until=middle), 50, None),
        "status and range": lambda: ledger.decisions(DecisionFilter(status="unknown", until=middle), 50, None),
        "timeouts in a range": lambda: ledger.decisions(DecisionFilter(until=middle, reason=Reason.TIMEOUT), 50, None),
        "one request": lambda: ledger.find(one.request_id),
        "statistics, all": lambda: counts.total(None, None),
        "statistics, a week": lambda: counts.total(*week),
        "statistics, a ragged week": lambda: counts.total(*ragged),
        "series by hour": lambda: counts.by_unit(HOUR_MS, None, None, 50, None),
        "one station, all": lambda: counts.by_station(None, None, station_id=BUSY),
        "one station, a ragged week": lambda: counts.by_station(*ragged, station_id=BUSY),
        "stations, all": lambda: counts.by_station(None, None, limit=100),
        "stations, a week": lambda: counts.by_station(*week, limit=100),
        "stations, a ragged week": lambda: counts.by_station(*ragged, limit=100),
    }
    return {name: await median_ms(query) for name, query in queries.items()}


async def run(kind: str, sizes: list[int], postgres: Any) -> dict[int, dict[str, float]]:
    """The figures of a database, by its number of decisions."""
    figures = {}
    for rows in sizes:
        with new_folder() as folder:
            async with filled(kind, rows, folder, postgres) as (database, url):
                counting = await count(database, rows)
                if kind == "postgres":  # as autovacuum does in time
                    await vacuum(url)
                figures[rows] = await measure(database) | counting
    return figures


def show(kind: str, figures: dict[int, dict[str, float]], console: Console) -> None:
    """Print times in ms, and the largest size's in proportion to the smallest size's."""
    sizes = list(figures)
    table = Table("query, ms", *(f"{rows:,}" for rows in sizes), "ratio", title=kind)
    for name in figures[sizes[0]]:
        times = [figures[rows][name] for rows in sizes]
        table.add_row(name, *(f"{one:.2f}" for one in times), f"{times[-1] / times[0]:.1f}")
    console.print(table)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--databases", nargs="+", choices=["sqlite", "postgres"], default=["sqlite", "postgres"])
    options = parser.parse_args()
    configure_logging("error")
    postgres = servers.Postgres() if "postgres" in options.databases else None
    results = {}
    try:
        if postgres is not None:
            postgres.start()
        for kind in options.databases:
            results[kind] = uvloop.run(run(kind, options.rows, postgres))
            show(kind, results[kind], Console(stderr=True, width=120))
    finally:
        if postgres is not None:
            postgres.close()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
