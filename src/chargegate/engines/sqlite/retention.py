"""Drops in SQLite what is past its retention. Each step is part of a batch of the writing thread."""

import sqlite3
from typing import Final, NamedTuple

from chargegate.engines.sqlite.batches import Operation
from chargegate.engines.sqlite.connection import SqliteStore, StorePart
from chargegate.engines.sqlite.statements import RETENTION
from chargegate.ledger.base import ledger_unavailable
from chargegate.ledger.records import DroppedLetters
from chargegate.ledger.retention import excess_by_client


class SqliteRetention:
    """Keeps the promises of ``Retention``."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = StorePart(store, ledger_unavailable)

    async def drop_dead_letters(self, before: int, most: int, limit: int) -> DroppedLetters:
        dropped: DroppedLetters = await self._store.write(_DROP_LETTERS, _Letters(before, most, limit))
        return dropped

    async def drop_finished(self, before: int, limit: int) -> int:
        dropped: int = await self._store.write(_DROP_FINISHED, (before, limit))
        return dropped


class _Letters(NamedTuple):
    before: int
    most: int
    limit: int


def _drop_letters(connection: sqlite3.Connection, items: list[_Letters]) -> list[DroppedLetters]:
    return [_drop_letters_once(connection, item) for item in items]


def _drop_letters_once(connection: sqlite3.Connection, item: _Letters) -> DroppedLetters:
    old = connection.execute(RETENTION["drop_old"], (item.before, item.limit)).rowcount
    held = dict(connection.execute(RETENTION["by_client"]).fetchall())
    excess = excess_by_client(held, item.most, item.limit - old)
    return DroppedLetters(old, connection.executemany(RETENTION["drop_oldest"], excess.items()).rowcount)


def _drop_finished(connection: sqlite3.Connection, items: list[tuple[int, int]]) -> list[int]:
    return [connection.execute(RETENTION["drop_finished"], item).rowcount for item in items]


_DROP_LETTERS: Final = Operation(_drop_letters)
_DROP_FINISHED: Final = Operation(_drop_finished)
