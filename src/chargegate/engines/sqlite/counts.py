"""Counts of decisions in SQLite."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from chargegate.engines.sqlite.connection import SqliteStore, StorePart
from chargegate.engines.sqlite.counting import COUNT, DROP, RECOUNT
from chargegate.engines.sqlite.queries import select, select_one
from chargegate.engines.sqlite.statements import COUNTS
from chargegate.ledger.base import ledger_unavailable
from chargegate.ledger.counts import (
    HOUR_MS,
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
from chargegate.ledger.spans import parts_of, spans_since
from chargegate.model import Status

_OF_ALL: Final = COUNTS["by_station"].replace("{page}", COUNTS["page_of_stations"]).replace("{compare}", ">")
_OF_ONE: Final = COUNTS["by_station"].replace("{page}", COUNTS["one_station"]).replace("{compare}", "=")
_ENDLESS: Final = 2**63 - 1
_NO_LIMIT: Final = -1


class SqliteCounts:
    """Keeps the promises of ``DecisionCounts``."""

    step = 50  # these hold up commits for about a millisecond

    def __init__(self, store: SqliteStore) -> None:
        self._store = StorePart(store, ledger_unavailable)

    async def count_more(self, limit: int) -> int:
        counted: int = await self._store.write(COUNT, limit)
        return counted

    async def uncounted_since(self) -> int | None:
        return await self._store.read(select_one(_first, COUNTS["uncounted_since"]))

    async def total(self, since: int | None, until: int | None) -> TotalCounts:
        values = _values(since, until, UNITS)
        return await self._store.scan(select_one(total_of, COUNTS["total"], values)) or total_of([])

    async def by_unit(
        self, unit_ms: int, since: int | None, until: int | None, limit: int, before: int | None
    ) -> Sequence[UnitCounts]:
        end = min(bound for bound in (until, before, _ENDLESS) if bound is not None)
        values = (unit_ms, max(since or 0, 0), end, limit)
        return await self._store.scan(select(lambda row: UnitCounts(*row), COUNTS["by_unit"], values))

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
        if station_id is not None:
            if after is not None and station_id.lower() <= after.lower():
                return []
            return await self._store.scan(select(_of_station, _OF_ONE, (*values, station_id.lower(), 1)))
        page = ((after or "").lower(), _NO_LIMIT if limit is None else limit)
        return await self._store.scan(select(_of_station, _OF_ALL, (*values, *page)))

    async def top_stations(self, since: int, now: int, *, fewest: int, limit: int) -> TopStations:
        values = (json.dumps(spans_since(since, now)), since, fewest, limit)
        rows = await self._store.scan(select(_of_station, COUNTS["top_stations"], values))
        return top_of(rows, fewest, limit)

    async def latest(self, since: int) -> Mapping[str, int]:
        return dict(await self._store.scan(select(tuple, COUNTS["latest"], (since, json.dumps(list(Status))))))

    async def callbacks(self, since: int) -> Sequence[CallbackCounts]:
        start = since // HOUR_MS * HOUR_MS
        return await self._store.read(select(lambda row: CallbackCounts(*row), COUNTS["callbacks"], (start,)))

    async def drop_before(self, at: int, limit: int) -> int:
        dropped: int = await self._store.write(DROP, (at, limit))
        return dropped

    async def recount(self) -> None:
        while await self.count_more(STEP) >= STEP:
            pass
        await self._store.write(RECOUNT, None)


def _values(since: int | None, until: int | None, units: Sequence[int]) -> tuple[Any, ...]:
    parts = parts_of(since, until, units)
    return json.dumps(parts.spans), json.dumps(parts.edges), parts.counted_from, parts.counted_to


def _first(row: Sequence[Any]) -> Any:
    return row[0]


def _of_station(row: Sequence[Any]) -> StationCounts:
    return StationCounts(*row)
