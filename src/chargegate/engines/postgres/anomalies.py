"""What the analysis found, in PostgreSQL."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from msgspec.structs import astuple

from chargegate.engines.postgres.connection import Connection
from chargegate.engines.postgres.statements import ANOMALIES
from chargegate.engines.postgres.store import PostgresStore
from chargegate.ledger.anomalies import Anomaly, Change, Look, Suspect
from chargegate.ledger.counts import HOUR_MS
from chargegate.ledger.rows import anomaly_of, change_of

_LIST_S: Final = 10.0


class PostgresAnomalies:
    """Keeps the promises of ``Anomalies``, on a store that raises ``LedgerUnavailable``."""

    def __init__(self, store: PostgresStore) -> None:
        self._store = store

    async def take_turn(self, holder: str, now: int, for_ms: int) -> bool:
        return bool(await self._store.execute(ANOMALIES["take_turn"], holder, now, for_ms))

    async def erring_stations(self, since: int, least_errors: int, limit: int) -> Sequence[Suspect]:
        return await self._suspects("erring_stations", since // HOUR_MS * HOUR_MS, least_errors, limit)

    async def silent_stations(
        self, usual: Sequence[int], week_before: Sequence[int], now: Sequence[int], least: float, limit: int
    ) -> Sequence[Suspect]:
        return await self._suspects("silent_stations", list(usual), list(week_before), list(now), least, limit)

    async def denied_tokens(self, since: int, until: int, least_stations: int, limit: int) -> Sequence[Suspect]:
        return await self._suspects("denied_tokens", since, until, least_stations, limit)

    async def latest_request(self, station_id: str) -> str:
        rows = await self._store.read(ANOMALIES["latest_request"], station_id)
        return rows[0][0] if rows else ""

    async def open(self) -> Sequence[Anomaly]:
        return [anomaly_of(row) for row in await self._store.read(ANOMALIES["open"])]

    async def change(self, holder: str, look: Look, *, tell: bool) -> bool:
        return await self._store.transaction(partial(_change, holder, look, tell), within=_LIST_S)

    async def untold(self, limit: int) -> Sequence[Change]:
        return [change_of(row) for row in await self._store.read(ANOMALIES["untold"], limit)]

    async def told(self, change: Change) -> None:
        await self._store.execute(ANOMALIES["told"], 2 if change.resolved else 1, change.anomaly.id)

    async def list(
        self, type_: str | None, open_: bool | None, limit: int, after: tuple[int, str] | None
    ) -> Sequence[Anomaly]:
        values = (type_, open_, *(after or (None, None)), limit)
        return [anomaly_of(row) for row in await self._store.read(ANOMALIES["list"], *values, within=_LIST_S)]

    async def count_open(self) -> dict[str, int]:
        return {row[0]: row[1] for row in await self._store.read(ANOMALIES["count_open"])}

    async def drop_ended(self, before: int, limit: int) -> int:
        return await self._store.execute(ANOMALIES["drop_ended"], before, limit)

    async def _suspects(self, name: str, *values: Any) -> Sequence[Suspect]:
        return [Suspect(*row) for row in await self._store.read(ANOMALIES[name], *values, within=_LIST_S)]


async def _change(holder: str, look: Look, tell: bool, connection: Connection, _repeated: bool) -> bool:
    if not await connection.fetchval(ANOMALIES["has_turn"], holder):
        return False
    for one in look.ended:
        await connection.execute(ANOMALIES["end"], one.until, tell, one.id)
    for one in look.goes_on:
        await connection.execute(ANOMALIES["go_on"], one.description, one.value, one.threshold, one.id)
    for one in look.began:
        await connection.execute(ANOMALIES["begin"], *astuple(one), 0 if tell else 1)
    return True
