"""The access list in SQLite. Tokens stand in it only as keyed hashes; every change is numbered, so that a running
service sees what another process changed."""

import json
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from chargegate.engines.sqlite.connection import SqliteStore, many
from chargegate.engines.sqlite.group_commit import Operation, StoreUnavailable
from chargegate.ledger.base import LedgerUnavailable
from chargegate.ledger.records import AccessEntry

T = TypeVar("T")

_COLUMNS: Final = "driver_token_hash, blocked, valid_from, valid_until, allowed_stations, denied_stations, note"
_NAMED: Final = 1000  # more entries changed at once are noted as one change of everything
_REMEMBERED: Final = 100_000


class SqliteAccessList:
    """Keeps the promises of ``AccessList``."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store

    async def entry(self, token_hash: str) -> AccessEntry | None:
        try:
            found: AccessEntry | None = await self._store.look_up(_ENTRY, token_hash)
        except StoreUnavailable as error:
            raise LedgerUnavailable(str(error)) from None
        return found

    async def put(self, entries: Sequence[AccessEntry]) -> None:
        await self._write(_PUT, entries)

    async def remove(self, token_hash: str) -> bool:
        return bool(await self._write(_REMOVE, token_hash))

    async def entries(self, limit: int, after: str | None) -> Sequence[AccessEntry]:
        return await self._read(
            f"SELECT {_COLUMNS} FROM access_list WHERE driver_token_hash > ? ORDER BY driver_token_hash LIMIT ?",  # noqa: S608 - constant
            (after or "", limit),
            lambda rows: [_entry(row) for row in rows],
        )

    async def changes(self, since: int) -> tuple[int, frozenset[str] | None]:
        def known(rows: list[Any]) -> tuple[int, frozenset[str] | None]:
            newest = max((row[0] for row in rows), default=since)
            if any(row[1] is None for row in rows) or (rows and rows[0][0] > since + 1):
                return newest, None
            return newest, frozenset(row[1] for row in rows)

        return await self._read(
            "SELECT number, driver_token_hash FROM access_list_changes WHERE number > ? ORDER BY number",
            (since,),
            known,
        )

    async def _read(self, query: str, values: Sequence[Any], shape: Callable[[list[Any]], T]) -> T:
        try:
            return await self._store.read(lambda connection: shape(connection.execute(query, values).fetchall()))
        except StoreUnavailable as error:
            raise LedgerUnavailable(str(error)) from None

    async def _write(self, operation: Operation, item: Any) -> Any:
        try:
            return await self._store.submit(operation, item)
        except StoreUnavailable as error:
            raise LedgerUnavailable(str(error)) from None


def _entry(row: Sequence[Any]) -> AccessEntry:
    allowed, denied = (frozenset(json.loads(text)) if text != "[]" else frozenset() for text in row[4:6])
    return AccessEntry(row[0], bool(row[1]), row[2], row[3], allowed, denied, row[6])


def _look_up(connection: sqlite3.Connection, hashes: list[str]) -> list[AccessEntry | None]:
    found: dict[str, AccessEntry] = {}
    for cursor, _ in many(
        connection,
        f"SELECT {_COLUMNS} FROM access_list WHERE driver_token_hash IN (",  # noqa: S608 - constant
        "?",
        ")",
        [(token_hash,) for token_hash in hashes],
    ):
        found.update((row[0], _entry(row)) for row in cursor)
    return [found.get(token_hash) for token_hash in hashes]


def _put(connection: sqlite3.Connection, groups: list[Sequence[AccessEntry]]) -> list[None]:
    for entries in groups:
        connection.executemany(
            "INSERT OR REPLACE INTO access_list VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    e.driver_token_hash,
                    e.blocked,
                    e.valid_from,
                    e.valid_until,
                    json.dumps(sorted(e.allowed_stations)),
                    json.dumps(sorted(e.denied_stations)),
                    e.note,
                )
                for e in entries
            ),
        )
        _note_change(connection, [e.driver_token_hash for e in entries])
    return [None] * len(groups)


def _remove(connection: sqlite3.Connection, hashes: list[str]) -> list[bool]:
    removed = []
    for token_hash in hashes:
        cursor = connection.execute("DELETE FROM access_list WHERE driver_token_hash = ?", (token_hash,))
        removed.append(cursor.rowcount > 0)
        if cursor.rowcount:
            _note_change(connection, [token_hash])
    return removed


def _note_change(connection: sqlite3.Connection, hashes: Sequence[str]) -> None:
    noted: list[tuple[str | None]] = [(None,)] if len(hashes) > _NAMED else [(token_hash,) for token_hash in hashes]
    connection.executemany("INSERT INTO access_list_changes (driver_token_hash) VALUES (?)", noted)
    connection.execute(
        "DELETE FROM access_list_changes WHERE number <= (SELECT max(number) FROM access_list_changes) - ?",
        (_REMEMBERED,),
    )


_ENTRY = Operation(_look_up)
_PUT = Operation(_put)
_REMOVE = Operation(_remove)
