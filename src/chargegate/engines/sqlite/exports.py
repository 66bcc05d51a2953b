"""What was exported of the audit, in SQLite."""

import json
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from msgspec.structs import astuple

from chargegate.engines.sqlite.batches import Operation
from chargegate.engines.sqlite.chain import EMBEDDED_WRITER
from chargegate.engines.sqlite.connection import SqliteStore, StorePart
from chargegate.engines.sqlite.queries import select, select_one
from chargegate.engines.sqlite.statements import EXPORTS
from chargegate.ledger.base import ledger_unavailable
from chargegate.ledger.exports import ExportedFile
from chargegate.ledger.records import AuditRow
from chargegate.ledger.rows import decision_of


class SqliteExports:
    """Keeps the promises of ``AuditExports``."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = StorePart(store, ledger_unavailable)

    async def take_turn(self, holder: str, now: int, for_ms: int) -> bool:
        return bool(await self._store.write(_RUN, ("take_turn", (holder, now, for_ms))))

    async def newest(self, origin: str | None = None) -> ExportedFile | None:
        return await self._store.read(select_one(exported_of, EXPORTS["newest"], (origin,)))

    async def held(self, origin: str, files: Collection[str]) -> Mapping[str, str]:
        values = (origin, json.dumps(list(files)))
        return dict(await self._store.read(select(tuple, EXPORTS["held"], values)))

    async def positions(self) -> dict[str, int]:
        newest = await self._store.read(select_one(_first, EXPORTS["position"]))
        return {} if newest is None else {EMBEDDED_WRITER: newest}

    async def late_rows(self, writer: str, after: int, upto: int, before: int, limit: int) -> Sequence[AuditRow]:
        if writer != EMBEDDED_WRITER:
            return []
        return await self._store.scan(select(_row, EXPORTS["late_rows"], (after, upto, before, limit)))

    async def add(self, file: ExportedFile) -> bool:
        return bool(await self._store.write(_RUN, ("add", astuple(file))))


def exported_of(row: Sequence[Any]) -> ExportedFile:
    return ExportedFile(*row)


def _row(row: Sequence[Any]) -> AuditRow:
    return AuditRow(row[0], decision_of(row[1:]))


def _first(row: Sequence[Any]) -> Any:
    return row[0]


def _run(connection: sqlite3.Connection, items: list[tuple[str, tuple[Any, ...]]]) -> list[int]:
    return [connection.execute(EXPORTS[name], values).rowcount for name, values in items]


_RUN: Final = Operation(_run)
