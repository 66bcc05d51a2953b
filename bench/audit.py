"""The audit with very many decisions: how long queries take beside a small one, and what dropping old rows costs.

Usage: audit.py [--rows SMALL LARGE] [--databases sqlite postgres] [--keep FOLDER]

Both databases are open at once, and the same query is asked of one and of the other in turns, so that the noise of a
shared machine falls on both. Pages are in the operating system's cache, as far as it has room for them. A time is a
median. Then a month is dropped from the larger one while decisions are recorded in it at a steady rate, and the time
that recording takes is compared with that of the seconds before. The table goes to standard error, and all figures as
JSON to standard output. ``--keep`` fills the databases in a folder that stays, or uses those that are there; then no
month is dropped.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import uvloop
from rich.console import Console
from rich.table import Table

import decisions
from chargegate.ledger.counts import DAY_MS, HOUR_MS, STEP
from chargegate.ledger.records import DecisionFilter, Finished
from chargegate.model import Decision, Reason, RequestStatus, Status, month_start, new_request_id, now_ms
from chargegate.observe import configure_logging
from decisions import BUSY, RARE_CLIENT, Filled

RUNS: Final = 41
RATE: Final = 200
CALM_S: Final = 15
LONGEST_S: Final = 150

Query = Callable[[], Awaitable[Any]]


async def queries(filled: Filled, database: Any) -> dict[str, Query]:
    """Every query of the audit, each of which finds something."""
    ledger, counts = database.ledger, database.counts
    middle = filled.end - decisions.DAYS // 2 * DAY_MS
    [one] = await ledger.decisions(DecisionFilter(until=middle), 1, None)
    day = middle // DAY_MS * DAY_MS
    week = (day, day + 7 * DAY_MS)
    ragged = (week[0] + HOUR_MS // 3, week[1] + HOUR_MS // 3)

    def page(**which: Any) -> Query:
        return lambda: ledger.decisions(DecisionFilter(**which), 50, None)

    def stations(since: int | None, until: int | None, **which: Any) -> Query:
        return lambda: counts.by_station(since, until, **which)

    return {
        "the newest page": page(),
        "a page in the middle": lambda: ledger.decisions(DecisionFilter(), 50, (middle, "")),
        "station and range": page(station_id=BUSY, until=middle),
        "status and range": page(status="unknown", until=middle),
        "timeouts in a range": page(reason=Reason.TIMEOUT, until=middle),
        "timeouts of a station": page(reason=Reason.TIMEOUT, station_id=BUSY),
        "a rare reason": page(reason=Reason.CIRCUIT_OPEN),
        "a rare reason at a station": page(reason=Reason.CIRCUIT_OPEN, station_id=BUSY),
        "a station and a status": page(station_id=BUSY, status="not_allowed"),
        "a client with few decisions": page(client=RARE_CLIENT),
        "a client with many, and a rare reason": page(client="usual", reason=Reason.CIRCUIT_OPEN),
        "a client that is not there": page(client="nobody"),
        "one request": lambda: ledger.find(one.request_id),
        "dead letters": lambda: ledger.dead_letters(None, None, 50, None),
        "statistics, all": lambda: counts.total(None, None),
        "statistics, a week": lambda: counts.total(*week),
        "statistics, a ragged week": lambda: counts.total(*ragged),
        "series by hour": lambda: counts.by_unit(HOUR_MS, None, None, 50, None),
        "one station, all": stations(None, None, station_id=BUSY),
        "one station, a week": stations(*week, station_id=BUSY),
        "one station, a ragged week": stations(*ragged, station_id=BUSY),
        "100 stations, all": stations(None, None, limit=100),
        "100 stations, a week": stations(*week, limit=100),
        "100 stations, a ragged week": stations(*ragged, limit=100),
        "all stations, a day": stations(week[1] - DAY_MS, None),
    }


class Sizes(NamedTuple):
    """A query's times in ms in the small database and in the large one, and how many rows it found in each."""

    small: float
    large: float
    found: list[int]

    @property
    def ratio(self) -> float:
        return self.large / self.small


async def compare(small: Filled, large: Filled, runs: int = RUNS) -> dict[str, Sizes]:
    """Every query of both in turns. The first runs only fill caches."""
    opened = [await decisions.opened(each) for each in (small, large)]
    try:
        for database in opened:
            while await database.counts.count_more(STEP):
                pass
        asked = [await queries(each, database) for each, database in zip((small, large), opened, strict=True)]
        return {name: await _in_turns([each[name] for each in asked], runs) for name in asked[0]}
    finally:
        for database in opened:
            await database.close()


async def _in_turns(pair: list[Query], runs: int) -> Sizes:
    times: list[list[float]] = [[], []]
    found = [0, 0]
    for run in range(runs + 3):
        for which in (0, 1) if run % 2 else (1, 0):
            started = time.perf_counter()
            answer = await pair[which]()
            if run >= 3:
                times[which].append((time.perf_counter() - started) * 1e3)
            found[which] = len(answer) if isinstance(answer, list) else 1
    return Sizes(statistics.median(times[0]), statistics.median(times[1]), found)


class Writer:
    """Records decisions at a steady rate, and notes how long each took to be on the disk."""

    def __init__(self, database: Any) -> None:
        self._ledger = database.ledger
        self._under_way: set[asyncio.Task[None]] = set()
        self.times: list[float] = []
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        started, sent = time.perf_counter(), 0
        while True:
            await asyncio.sleep(max(0.0, started + sent / RATE - time.perf_counter()))
            task = asyncio.create_task(self._one(sent))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
            sent += 1

    async def _one(self, number: int) -> None:
        request_id, now = new_request_id(), now_ms()
        station = f"{number % 2000:08x}-0000-4000-8000-00000000000a"
        started = time.perf_counter()
        await self._ledger.record(Decision(request_id, station, "0123456789abcdef", Status.ALLOWED, "", 5, now), now)
        self.times.append((time.perf_counter() - started) * 1e3)
        self._ledger.finish_soon(
            Finished(request_id, RequestStatus.COMPLETED, 1, 200, None, now, None), lambda *_: None
        )

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.gather(*self._under_way)

    def taken(self) -> dict[str, float]:
        """Median and 99th percentile since the last call, in ms, and the longest."""
        times, self.times = sorted(self.times), []
        return {"p50": times[len(times) // 2], "p99": times[len(times) * 99 // 100], "longest": times[-1]}


async def drop_month(filled: Filled) -> dict[str, float]:
    """Drop what is older than the newest month, for ``LONGEST_S`` at most, while decisions are recorded."""
    database = await decisions.opened(filled)
    writer = Writer(database)
    try:
        await asyncio.sleep(2)
        writer.taken()
        await asyncio.sleep(CALM_S)
        calm = writer.taken()
        started, dropped = time.perf_counter(), [0]
        task = asyncio.create_task(
            database.ledger.drop_audit_before(month_start(filled.end), lambda rows: dropped.__setitem__(0, rows))
        )
        await asyncio.wait([task], timeout=LONGEST_S)
        taken_s = time.perf_counter() - started
        while time.perf_counter() - started < 1:  # so that there are times to speak of
            await asyncio.sleep(0.05)
        beside = writer.taken()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        else:
            result = task.result()
            dropped[0] = max(dropped[0], result.rows)
        return {
            **{f"calm_{name}_ms": value for name, value in calm.items()},
            **{f"dropping_{name}_ms": value for name, value in beside.items()},
            "ratio_p50": beside["p50"] / calm["p50"],
            "ratio_p99": beside["p99"] / calm["p99"],
            "seconds": taken_s,
            "rows": dropped[0],
            "all": float(task.done() and not task.cancelled()),
        }
    finally:
        await writer.close()
        await database.close()


def show(kind: str, sizes: list[int], figures: dict[str, Sizes], console: Console) -> None:
    """Print the times in ms. Where the small database has fewer rows to find, the ratio says little."""
    table = Table("query, ms", *(f"{rows:,}" for rows in sizes), "ratio", "rows found", title=kind)
    for name, times in figures.items():
        few, many = times.found
        found = f"{many}" if few == many else f"{few}, {many}"
        table.add_row(name, f"{times.small:.2f}", f"{times.large:.2f}", f"{times.ratio:.2f}", found)
    console.print(table)


def show_dropping(kind: str, figures: dict[str, float], console: Console) -> None:
    """Print what dropping a month cost those who write."""
    table = Table("recording a decision, ms", "median", "p99", "longest", title=f"{kind}: dropping old months")
    for name in ("calm", "dropping"):
        table.add_row(name, *(f"{figures[f'{name}_{which}_ms']:.1f}" for which in ("p50", "p99", "longest")))
    table.add_row("ratio", f"{figures['ratio_p50']:.2f}", f"{figures['ratio_p99']:.2f}", "")
    rows = f"{figures['rows']:,.0f} rows" if figures["rows"] else "whole months"
    table.caption = f"{rows} in {figures['seconds']:.1f} s{'' if figures['all'] else ', not all yet'}"
    console.print(table)


class Audit:
    """One run, over all databases."""

    def __init__(self, kinds: list[str], sizes: list[int], console: Console) -> None:
        self.kinds = kinds
        self.sizes = sizes
        self.console = console
        self.figures: dict[str, Any] = {}

    def run(self, filled: dict[tuple[str, int], Filled], *, drop: bool) -> None:
        """Measure each database, and print."""
        for kind in self.kinds:
            small, large = (filled[kind, rows] for rows in self.sizes)
            times = uvloop.run(compare(small, large))
            show(kind, self.sizes, times, self.console)
            self.figures[kind] = {name: {**each._asdict(), "ratio": each.ratio} for name, each in times.items()}
            if drop:
                dropping = uvloop.run(drop_month(large))
                show_dropping(kind, dropping, self.console)
                self.figures[kind]["dropping old months"] = dropping


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs=2, default=[10_000, 1_000_000])
    parser.add_argument("--databases", nargs="+", choices=decisions.KINDS, default=decisions.KINDS)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    configure_logging("error")
    console = Console(stderr=True, width=120)
    audit = Audit(options.databases, options.rows, console)
    with decisions.databases(options.databases, options.rows, options.keep, console) as filled:
        audit.run(filled, drop=options.keep is None)
    print(json.dumps(audit.figures))


if __name__ == "__main__":
    main()
