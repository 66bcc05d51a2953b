"""What the analysis found, in SQLite."""

import json
import sqlite3
from collections.abc import Sequence
from typing import Any, Final

from msgspec.structs import astuple

from chargegate.engines.sqlite.batches import Operation
from chargegate.engines.sqlite.connection import SqliteStore, StorePart
from chargegate.engines.sqlite.queries import select, select_one
from chargegate.engines.sqlite.statements import ANOMALIES
from chargegate.ledger.anomalies import Anomaly, Change, Look, Suspect
from chargegate.ledger.base import ledger_unavailable
from chargegate.ledger.counts import HOUR_MS
from chargegate.ledger.rows import anomaly_of, change_of


class SqliteAnomalies:
    """Keeps the promises of ``Anomalies``."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = StorePart(store, ledger_unavailable)

    async def take_turn(self, holder: str, now: int, for_ms: int) -> bool:
        return bool(await self._store.write(_RUN, ("take_turn", (holder, now, for_ms))))

    async def erring_stations(self, since: int, least_errors: int, limit: int) -> Sequence[Suspect]:
        return await self._suspects("erring_stations", since // HOUR_MS * HOUR_MS, least_errors, limit)

    async def silent_stations(
        self, usual: Sequence[int], week_before: Sequence[int], now: Sequence[int], least: float, limit: int
    ) -> Sequence[Suspect]:
        return await self._suspects("silent_stations", *map(json.dumps, (usual, week_before, now)), least, limit)

    async def denied_tokens(self, since: int, until: int, least_stations: int, limit: int) -> Sequence[Suspect]:
        return await self._suspects("denied_tokens", since, until, least_stations, limit)

    async def latest_request(self, station_id: str) -> str:
        return await self._store.read(select_one(_first, ANOMALIES["latest_request"], (station_id,))) or ""

    async def open(self) -> Sequence[Anomaly]:
        return await self._store.read(select(anomaly_of, ANOMALIES["open"]))

    async def change(self, holder: str, look: Look, *, tell: bool) -> bool:
        changed: bool = await self._store.write(_CHANGE, (holder, look, tell))
        return changed

    async def untold(self, limit: int) -> Sequence[Change]:
        return await self._store.read(select(change_of, ANOMALIES["untold"], (limit,)))

    async def told(self, change: Change) -> None:
        await self._store.write(_RUN, ("told", (2 if change.resolved else 1, change.anomaly.id)))

    async def list(
        self, type_: str | None, open_: bool | None, limit: int, after: tuple[int, str] | None
    ) -> Sequence[Anomaly]:
        conditions, values = ["true"], list[Any]()
        if type_ is not None:
            conditions.append("type = ?")
            values.append(type_)
        if open_ is not None:
            conditions.append("until IS NULL" if open_ else "until IS NOT NULL")
        if after is not None:
            conditions.append("(since, id) < (?, ?)")
            values += after
        query = ANOMALIES["list"].replace("{conditions}", " AND ".join(conditions))
        return await self._store.read(select(anomaly_of, query, (*values, limit)))

    async def count_open(self) -> dict[str, int]:
        return dict(await self._store.read(select(tuple, ANOMALIES["count_open"])))

    async def drop_ended(self, before: int, limit: int) -> int:
        dropped: int = await self._store.write(_RUN, ("drop_ended", (before, limit)))
        return dropped

    async def _suspects(self, name: str, *values: Any) -> Sequence[Suspect]:
        return await self._store.scan(select(lambda row: Suspect(*row), ANOMALIES[name], values))


def _first(row: Sequence[Any]) -> Any:
    return row[0]


def _run(connection: sqlite3.Connection, items: list[tuple[str, tuple[Any, ...]]]) -> list[int]:
    return [connection.execute(ANOMALIES[name], values).rowcount for name, values in items]


def _change(connection: sqlite3.Connection, items: list[tuple[Any, ...]]) -> list[bool]:
    return [_change_once(connection, *item) for item in items]


def _change_once(connection: sqlite3.Connection, holder: str, look: Look, tell: bool) -> bool:
    if connection.execute(ANOMALIES["has_turn"], (holder,)).fetchone() is None:
        return False
    connection.executemany(ANOMALIES["end"], [(one.until, tell, one.id) for one in look.ended])
    connection.executemany(
        ANOMALIES["go_on"], [(one.description, one.value, one.threshold, one.id) for one in look.goes_on]
    )
    connection.executemany(ANOMALIES["begin"], [(*astuple(one), 0 if tell else 1) for one in look.began])
    return True


_RUN: Final = Operation(_run)
_CHANGE: Final = Operation(_change)
