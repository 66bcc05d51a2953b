"""Counts of decisions in PostgreSQL, for any number of processes, of which one at a time counts."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from chargegate.engines.postgres.connection import Connection
from chargegate.engines.postgres.statements import COUNTS
from chargegate.engines.postgres.store import PostgresStore, rows_changed
from chargegate.ledger.counts import (
    HOUR_MS,
    LONGEST_MS,
    STATION_UNITS,
    STEP,
    UNITS,
    CallbackCounts,
    StationCounts,
    TopStations,
    TotalCounts,
    UnitCounts,
    top_of,
    total_of,
)
from chargegate.ledger.spans import day_of, parts_of, spans_since, whole_days
from chargegate.model import Status

_OF_ALL: Final = COUNTS["by_station"].replace("{page}", COUNTS["page_of_stations"]).replace("{compare}", ">")
_OF_ONE: Final = COUNTS["by_station"].replace("{page}", COUNTS["one_station"]).replace("{compare}", "=")
_ENDLESS: Final = 2**63 - 1
_COUNT_S: Final = 30.0
_LIST_S: Final = 10.0
_RECOUNT_S: Final = 600.0
_PAGE: Final = 10_000
_NOTES: Final = 2000
"""At most so many ranges of rows are counted at once, as the statement says: fewer rows were all that there were."""


class PostgresCounts:
    """Keeps the promises of ``DecisionCounts``, on a store that raises ``LedgerUnavailable``."""

    step = STEP  # nobody else waits for a transaction that counts

    def __init__(self, store: PostgresStore) -> None:
        self._store = store

    async def count_more(self, limit: int) -> int:
        return await self._store.transaction(partial(_count, limit), within=_COUNT_S)

    async def uncounted_since(self) -> int | None:
        rows = await self._store.read(COUNTS["uncounted_since"])
        return rows[0][0] if rows else None

    async def total(self, since: int | None, until: int | None) -> TotalCounts:
        return total_of((await self._list(COUNTS["total"], *_values(since, until, UNITS)))[0])

    async def by_unit(
        self, unit_ms: int, since: int | None, until: int | None, limit: int, before: int | None
    ) -> Sequence[UnitCounts]:
        end = min(bound for bound in (until, before, _ENDLESS) if bound is not None)
        return [
            UnitCounts(*row) for row in await self._list(COUNTS["by_unit"], unit_ms, max(since or 0, 0), end, limit)
        ]

    async def by_station(
        self,
        since: int | None,
        until: int | None,
        *,
        station_id: str | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> Sequence[StationCounts]:
        values = _values(since, until, STATION_UNITS)
        if station_id is None:
            rows = await self._list(_OF_ALL, *values, (after or "").lower(), limit)
        elif after is None or station_id.lower() > after.lower():
            rows = await self._list(_OF_ONE, *values, station_id.lower(), 1)
        else:
            rows = []
        return [StationCounts(*row) for row in rows]

    async def top_stations(self, since: int, now: int, *, fewest: int, limit: int) -> TopStations:
        spans = [list(column) for column in zip(*spans_since(since, now), strict=True)]
        rows = await self._list(COUNTS["top_stations"], *spans, since, fewest, limit)
        return top_of([StationCounts(*row) for row in rows], fewest, limit)

    async def latest(self, since: int) -> Mapping[str, int]:
        found = {row[0]: int(row[1]) for row in await self._list(COUNTS["latest"], since)}
        return {status.value: found.get(status, 0) for status in Status}

    async def callbacks(self, since: int) -> Sequence[CallbackCounts]:
        rows = await self._store.read(COUNTS["callbacks"], since // HOUR_MS * HOUR_MS)
        return [CallbackCounts(*row) for row in rows]

    async def drop_before(self, at: int, limit: int) -> int:
        return await self._store.transaction(partial(_drop, at, limit), within=_LIST_S)

    async def recount(self) -> None:
        await self._store.transaction(_recount, within=_RECOUNT_S)

    async def _list(self, query: str, *values: Any) -> list[Any]:
        return await self._store.read(query, *values, within=_LIST_S)


def _values(since: int | None, until: int | None, units: Sequence[int]) -> tuple[Any, ...]:
    parts = parts_of(since, until, units)
    spans = [list(column) for column in zip(*parts.spans, strict=True)] or [[], [], []]
    edges = [list(column) for column in zip(*parts.edges, strict=True)] or [[], []]
    return (*spans, *edges, parts.counted_from, parts.counted_to)


async def _count(limit: int, connection: Connection, _repeated: bool) -> int:
    if not await connection.fetchval(COUNTS["one_at_a_time"]):
        return 0
    await connection.execute(COUNTS["keep_months"])
    counted: int = await connection.fetchval(COUNTS["count_more"], limit, STATION_UNITS, UNITS)
    return counted


async def _drop(at: int, limit: int, connection: Connection, _repeated: bool) -> int:
    dropped = rows_changed(await connection.execute(COUNTS["drop_callbacks"], HOUR_MS, at, limit))
    for statement, units, by in (("drop_all", UNITS, at), ("drop_stations", STATION_UNITS, day_of(at))):
        left = limit
        for unit in units:
            gone = rows_changed(await connection.execute(COUNTS[statement], unit, by, left))
            dropped, left = dropped + gone, left - gone
    return dropped


async def count_rest(connection: Connection) -> None:
    """Count all that was not counted yet when it was called, within a transaction, after which nobody else does before
    its end. What is recorded meanwhile may stay."""
    await connection.execute(COUNTS["wait_for_turn"])
    await connection.execute(COUNTS["keep_months"])
    while await connection.fetchval(COUNTS["count_more"], _PAGE, STATION_UNITS, UNITS) >= _NOTES:
        pass


async def _recount(connection: Connection, _repeated: bool) -> None:
    await count_rest(connection)
    since = whole_days(await connection.fetchval(COUNTS["rows_since"]) or 0)
    for statement in ("take_back", "take_back_stations"):
        await connection.execute(COUNTS[statement], since)
    for statement in ("restore_all", "restore_stations"):
        await connection.execute(COUNTS[statement], LONGEST_MS, since)
    await connection.execute(COUNTS["all_uncounted"], since)
