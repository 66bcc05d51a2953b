"""The access list in SQLite. Tokens stand in it only as keyed hashes; every change is numbered, so that a running
service sees what another process changed."""

import sqlite3
from collections.abc import Sequence
from typing import Final

from chargegate.engines.sqlite.batches import Operation
from chargegate.engines.sqlite.connection import SqliteStore, StorePart
from chargegate.engines.sqlite.queries import many, run_many, select
from chargegate.engines.sqlite.statements import ACCESS_LIST
from chargegate.ledger.base import ledger_unavailable
from chargegate.ledger.records import AccessEntry
from chargegate.ledger.rows import entry_of, entry_values

_NAMED: Final = 1000  # more entries changed at once are noted as one change of everything
_REMEMBERED: Final = 100_000


class SqliteAccessList:
    """Keeps the promises of ``AccessList``."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = StorePart(store, ledger_unavailable)

    async def entry(self, token_hash: str) -> AccessEntry | None:
        found: AccessEntry | None = await self._store.look_up(_ENTRY, token_hash)
        return found

    async def put(self, entries: Sequence[AccessEntry]) -> None:
        await self._store.write(_PUT, entries)

    async def remove(self, token_hash: str) -> bool:
        return bool(await self._store.write(_REMOVE, token_hash))

    async def entries(self, limit: int, after: str | None) -> Sequence[AccessEntry]:
        return await self._store.read(select(entry_of, ACCESS_LIST["page"], (after or "", limit)))

    async def changes(self, since: int) -> tuple[int, frozenset[str] | None]:
        rows = await self._store.read(select(tuple[int, str | None], ACCESS_LIST["changes"], (since,)))
        newest = max((number for number, _ in rows), default=since)
        hashes = [token_hash for _, token_hash in rows if token_hash is not None]
        if len(hashes) < len(rows) or (rows and rows[0][0] > since + 1):
            return newest, None
        return newest, frozenset(hashes)


def _look_up(connection: sqlite3.Connection, hashes: list[str]) -> list[AccessEntry | None]:
    found: dict[str, AccessEntry] = {}
    for cursor, _ in many(connection, ACCESS_LIST["look_up"], [(token_hash,) for token_hash in hashes]):
        found.update((entry.driver_token_hash, entry) for entry in map(entry_of, cursor))
    return [found.get(token_hash) for token_hash in hashes]


def _put(connection: sqlite3.Connection, groups: list[Sequence[AccessEntry]]) -> list[None]:
    for entries in groups:
        run_many(connection, ACCESS_LIST["put"], [entry_values(entry) for entry in entries])
        _note_change(connection, [entry.driver_token_hash for entry in entries])
    return [None] * len(groups)


def _remove(connection: sqlite3.Connection, hashes: list[str]) -> list[bool]:
    removed = []
    for token_hash in hashes:
        cursor = connection.execute(ACCESS_LIST["remove"], (token_hash,))
        removed.append(cursor.rowcount > 0)
        if cursor.rowcount:
            _note_change(connection, [token_hash])
    return removed


def _note_change(connection: sqlite3.Connection, hashes: Sequence[str]) -> None:
    noted: list[tuple[str | None]] = [(None,)] if len(hashes) > _NAMED else [(token_hash,) for token_hash in hashes]
    connection.executemany(ACCESS_LIST["note_change"], noted)
    connection.execute(ACCESS_LIST["forget_changes"], (_REMEMBERED,))


_ENTRY: Final = Operation(_look_up)
_PUT: Final = Operation(_put)
_REMOVE: Final = Operation(_remove)
