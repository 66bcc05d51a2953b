"""What was exported of the audit, in PostgreSQL."""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Final

from msgspec.structs import astuple

from chargegate.engines.postgres.connection import Connection
from chargegate.engines.postgres.recording import audit_row_of
from chargegate.engines.postgres.statements import EXPORTS
from chargegate.engines.postgres.store import PostgresStore, rows_changed
from chargegate.ledger.exports import ExportedFile
from chargegate.ledger.records import AuditRow

_SCAN_S: Final = 60.0


class PostgresExports:
    """Keeps the promises of ``AuditExports``, on a store that raises ``LedgerUnavailable``."""

    def __init__(self, store: PostgresStore) -> None:
        self._store = store

    async def take_turn(self, holder: str, now: int, for_ms: int) -> bool:
        return bool(await self._store.execute(EXPORTS["take_turn"], holder, now, for_ms))

    async def newest(self, origin: str | None = None) -> ExportedFile | None:
        rows = await self._store.read(EXPORTS["newest"], origin)
        return ExportedFile(*rows[0]) if rows else None

    async def held(self, origin: str, files: Collection[str]) -> Mapping[str, str]:
        return {row[0]: row[1] for row in await self._store.read(EXPORTS["held"], origin, list(files))}

    async def positions(self) -> dict[str, int]:
        return {row[0]: row[1] for row in await self._store.read(EXPORTS["positions"], within=_SCAN_S)}

    async def late_rows(self, writer: str, after: int, upto: int, before: int, limit: int) -> Sequence[AuditRow]:
        rows = await self._store.read(EXPORTS["late_rows"], writer, after, upto, before, limit, within=_SCAN_S)
        return [audit_row_of(row, writer) for row in rows]

    async def add(self, file: ExportedFile) -> bool:
        return await self._store.transaction(partial(_add, file))


async def _add(file: ExportedFile, connection: Connection, _repeated: bool) -> bool:
    added = rows_changed(await connection.execute(EXPORTS["add"], *astuple(file)))
    # Where an earlier attempt was committed and its answer lost, it is there already.
    return bool(added or await connection.fetchval(EXPORTS["same"], file.number, file.origin, file.sha256))
