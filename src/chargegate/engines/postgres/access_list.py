"""The access list in PostgreSQL. Tokens stand in it only as keyed hashes. Changes are numbered without gaps in the
order of their commits, whichever process makes them, so that whoever follows the numbers misses none."""

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from chargegate.engines.postgres.connection import Connection, PostgresStore
from chargegate.engines.postgres.group_commit import Gatherer
from chargegate.engines.postgres.ledger import answered
from chargegate.ledger.records import AccessEntry

T = TypeVar("T")

_NAMED: Final = 1000  # more entries changed at once are noted as one change of everything
_REMEMBERED: Final = 100_000
_WRITE_S: Final = 60.0  # a whole list may come in one commit
_COLUMNS: Final = "driver_token_hash, blocked, valid_from, valid_until, allowed_stations, denied_stations, note"
_LOOK_UP: Final = f"SELECT {_COLUMNS} FROM access_list WHERE driver_token_hash = ANY($1::text[])"  # noqa: S608 - constant
_PAGE: Final = f"SELECT {_COLUMNS} FROM access_list WHERE driver_token_hash > $1 ORDER BY driver_token_hash LIMIT $2"  # noqa: S608 - constant
_PUT: Final = """
INSERT INTO access_list SELECT * FROM
unnest($1::text[], $2::boolean[], $3::bigint[], $4::bigint[], $5::text[], $6::text[], $7::text[])
ON CONFLICT (driver_token_hash) DO UPDATE SET blocked = excluded.blocked, valid_from = excluded.valid_from,
    valid_until = excluded.valid_until, allowed_stations = excluded.allowed_stations,
    denied_stations = excluded.denied_stations, note = excluded.note"""
# One change after another: a number must not be seen before a smaller one.
_LOCK: Final = "LOCK TABLE access_list_changes IN SHARE ROW EXCLUSIVE MODE"
_NOTE: Final = """
INSERT INTO access_list_changes
SELECT (SELECT coalesce(max(number), 0) FROM access_list_changes) + place, hash
FROM unnest($1::text[]) WITH ORDINALITY AS changed (hash, place)"""
_TRIM: Final = "DELETE FROM access_list_changes WHERE number <= (SELECT max(number) FROM access_list_changes) - $1"
_CHANGES: Final = """
SELECT newest, number, driver_token_hash
FROM (SELECT coalesce(max(number), 0) AS newest FROM access_list_changes) AS latest
LEFT JOIN access_list_changes ON number > $1 ORDER BY number"""


class PostgresAccessList:
    """Keeps the promises of ``AccessList``."""

    def __init__(self, store: PostgresStore) -> None:
        self._store = store
        self._entries: Gatherer[str, AccessEntry | None] = Gatherer(store, _look_up, read_only=True)

    async def entry(self, token_hash: str) -> AccessEntry | None:
        return await answered(self._entries.submit(token_hash))

    async def put(self, entries: Sequence[AccessEntry]) -> None:
        last = {entry.driver_token_hash: entry for entry in entries}

        async def work(connection: Connection, _again: bool) -> None:
            await connection.execute(_LOCK)
            rows = [_row(entry) for entry in last.values()]
            await connection.execute(_PUT, *map(list, zip(*rows, strict=True)))
            await _note_change(connection, list(last))

        if last:
            await self._write(work)
        else:
            await answered(self._store.check())

    async def remove(self, token_hash: str) -> bool:
        async def work(connection: Connection, again: bool) -> bool:
            await connection.execute(_LOCK)
            removed = await connection.fetch(
                "DELETE FROM access_list WHERE driver_token_hash = $1 RETURNING 1", token_hash
            )
            if removed:
                await _note_change(connection, [token_hash])
            return bool(removed) or again  # the first attempt, whose answer was lost, may have removed it

        return await self._write(work)

    async def entries(self, limit: int, after: str | None) -> Sequence[AccessEntry]:
        return [_entry(row) for row in await answered(self._store.read(_PAGE, after or "", limit))]

    async def changes(self, since: int) -> tuple[int, frozenset[str] | None]:
        rows = await answered(self._store.read(_CHANGES, since))
        newest = rows[0][0]
        numbered = [row[1:] for row in rows if row[1] is not None]
        if newest < since:
            return newest, None  # the database was emptied
        if any(row[1] is None for row in numbered) or (numbered and numbered[0][0] > since + 1):
            return newest, None
        return newest, frozenset(row[1] for row in numbered)

    async def _write(self, work: Callable[[Connection, bool], Awaitable[T]]) -> T:
        return await answered(self._store.transaction(work, within=_WRITE_S))


def _row(entry: AccessEntry) -> tuple[Any, ...]:
    return (
        entry.driver_token_hash,
        entry.blocked,
        entry.valid_from,
        entry.valid_until,
        json.dumps(sorted(entry.allowed_stations)),
        json.dumps(sorted(entry.denied_stations)),
        entry.note.replace("\0", "\ufffd"),  # PostgreSQL holds no NUL
    )


def _entry(row: Sequence[Any]) -> AccessEntry:
    allowed, denied = (frozenset(json.loads(text)) if text != "[]" else frozenset() for text in row[4:6])
    return AccessEntry(row[0], row[1], row[2], row[3], allowed, denied, row[6])


async def _look_up(connection: Connection, hashes: list[str], _again: bool) -> list[AccessEntry | None]:
    found = {row[0]: _entry(row) for row in await connection.fetch(_LOOK_UP, hashes)}
    return [found.get(token_hash) for token_hash in hashes]


async def _note_change(connection: Connection, hashes: list[str]) -> None:
    await connection.execute(_NOTE, [None] if len(hashes) > _NAMED else hashes)
    await connection.execute(_TRIM, _REMEMBERED)
