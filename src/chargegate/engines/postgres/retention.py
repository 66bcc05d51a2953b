"""Drops in PostgreSQL what is past its retention, beside other processes that do so too."""

from functools import partial
from typing import Any

from chargegate.engines.postgres.connection import Connection
from chargegate.engines.postgres.statements import RETENTION
from chargegate.engines.postgres.store import PostgresStore, rows_changed
from chargegate.ledger.records import DroppedLetters
from chargegate.ledger.retention import excess_by_client


class PostgresRetention:
    """Keeps the promises of ``Retention``, on a store that raises ``LedgerUnavailable``."""

    def __init__(self, store: PostgresStore) -> None:
        self._store = store
        self._finished_from = 0  # all that was finished before is dropped

    async def drop_dead_letters(self, before: int, most: int, limit: int) -> DroppedLetters:
        return await self._store.transaction(partial(_drop_letters, before, most, limit))

    async def drop_finished(self, before: int, limit: int) -> int:
        since = self._finished_from
        self._finished_from = 0  # unless there is more, the next step begins at the oldest again

        async def drop(connection: Connection, _repeated: bool) -> list[Any]:
            rows: list[Any] = await connection.fetch(RETENTION["drop_finished"], since, before, limit)
            return rows

        rows = await self._store.transaction(drop)
        if len(rows) == limit:
            self._finished_from = max(row[0] for row in rows)
        return len(rows)


async def _drop_letters(before: int, most: int, limit: int, connection: Connection, _repeated: bool) -> DroppedLetters:
    if not await connection.fetchval(RETENTION["alone"]):
        return DroppedLetters(0, 0)
    old = rows_changed(await connection.execute(RETENTION["drop_old"], before, limit))
    held = dict(await connection.fetch(RETENTION["by_client"]))
    excess = 0
    for client, letters in excess_by_client(held, most, limit - old).items():
        excess += rows_changed(await connection.execute(RETENTION["drop_oldest"], client, letters))
    return DroppedLetters(old, excess)
