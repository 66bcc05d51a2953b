"""The chain of audit rows in SQLite."""

import sqlite3
from collections.abc import Sequence
from typing import Any, Final

from msgspec.structs import astuple

from chargegate.engines.sqlite.batches import Operation
from chargegate.engines.sqlite.connection import SqliteStore, StorePart
from chargegate.engines.sqlite.queries import run_many, select, select_one
from chargegate.engines.sqlite.statements import CHAIN, LEDGER
from chargegate.ledger.base import ledger_unavailable
from chargegate.ledger.chain import RowLink
from chargegate.ledger.records import AuditRow
from chargegate.ledger.rows import decision_of

_STEP: Final = 2000

EMBEDDED_WRITER: Final = "embedded"
"""What its rows' writer is called after they were copied into another database."""


class SqliteChain:
    """Keeps the promises of ``AuditChain``."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = StorePart(store, ledger_unavailable)
        self.writer = EMBEDDED_WRITER

    async def writers(self) -> Sequence[str]:
        return [] if await self.last_link() is None else [self.writer]

    async def last_link(self) -> RowLink | None:
        return await self._store.read(select_one(_link, CHAIN["last"]))

    async def add(self, links: Sequence[RowLink]) -> bool:
        added: bool = await self._store.write(_ADD, links)
        return added

    async def links(self, writer: str, after: int, limit: int) -> Sequence[RowLink]:
        return await self._store.scan(select(_link, CHAIN["links"], (after, limit))) if writer == self.writer else []

    async def rows(self, writer: str, after: int, limit: int) -> Sequence[AuditRow]:
        if writer != self.writer:
            return []
        return await self._store.scan(select(_row, LEDGER["audit_after"], (after, limit)))

    async def old_links(self, at: int) -> Sequence[tuple[str, RowLink]]:
        link = await self._store.scan(select_one(_link, CHAIN["old"], (at,)))
        return [] if link is None else [(self.writer, link)]

    async def drop(self, writer: str, last: RowLink) -> None:
        """Some at a time, so that others write in between."""
        first = await self._first_after(0) if writer == self.writer else None
        while first is not None and first < last.number:
            end = min(first + _STEP, last.number)
            await self._store.write(_DROP, (first, end, last.sequence))
            first = await self._first_after(end - 1)

    async def _first_after(self, number: int) -> int | None:
        return await self._store.read(select_one(_number, CHAIN["first"], (number,)))


def _link(row: Sequence[Any]) -> RowLink:
    return RowLink(*row)


def _row(row: Sequence[Any]) -> AuditRow:
    return AuditRow(row[0], decision_of(row[1:]))


def _number(row: Sequence[Any]) -> int | None:
    number: int | None = row[0]
    return number


def _add(connection: sqlite3.Connection, groups: list[Sequence[RowLink]]) -> list[bool]:
    return [_add_all(connection, links) for links in groups]


def _add_all(connection: sqlite3.Connection, links: Sequence[RowLink]) -> bool:
    held = connection.execute(CHAIN["held"], (links[0].sequence, links[-1].sequence)).fetchone()[0] if links else 0
    if held < len(links):
        return False
    run_many(connection, CHAIN["add"], [astuple(link) for link in links])
    return True


def _drop(connection: sqlite3.Connection, items: list[tuple[int, int, int]]) -> None:
    connection.executemany(CHAIN["drop"], items)


_ADD: Final = Operation(_add)
_DROP: Final = Operation(_drop)
