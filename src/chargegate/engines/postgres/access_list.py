"""The access list in PostgreSQL. Tokens stand in it only as keyed hashes. Changes are numbered without gaps in the
order of their commits, whichever process makes them, so that whoever follows the numbers misses none."""

from collections.abc import Sequence
from functools import partial
from typing import Final

from chargegate.engines.postgres.connection import Connection
from chargegate.engines.postgres.statements import ACCESS_LIST, arrays
from chargegate.engines.postgres.store import PostgresStore
from chargegate.ledger.records import AccessEntry
from chargegate.ledger.rows import entry_of, entry_values
from chargegate.storage.group_commit import GroupCommit

_MOST_NAMED: Final = 1000
"""More entries that are changed at once are noted as one change of everything."""

_CHANGES_KEPT: Final = 100_000
_WHOLE_LIST_S: Final = 60.0


class PostgresAccessList:
    """Keeps the promises of ``AccessList``, on a store that raises ``LedgerUnavailable``."""

    def __init__(self, store: PostgresStore) -> None:
        self._store = store
        self._lookups: GroupCommit[str, AccessEntry | None] = GroupCommit(self._look_up)

    async def entry(self, token_hash: str) -> AccessEntry | None:
        return await self._lookups.submit(token_hash)

    async def _look_up(self, hashes: list[str]) -> list[AccessEntry | None]:
        found = {row[0]: entry_of(row) for row in await self._store.read(ACCESS_LIST["look_up"], hashes)}
        return [found.get(token_hash) for token_hash in hashes]

    async def put(self, entries: Sequence[AccessEntry]) -> None:
        if not entries:
            return await self._store.check()
        last = {entry.driver_token_hash: entry for entry in entries}
        return await self._store.transaction(partial(_put, last), within=_WHOLE_LIST_S)

    async def remove(self, token_hash: str) -> bool:
        return await self._store.transaction(partial(_remove, token_hash), within=_WHOLE_LIST_S)

    async def entries(self, limit: int, after: str | None) -> Sequence[AccessEntry]:
        return [entry_of(row) for row in await self._store.read(ACCESS_LIST["page"], after or "", limit)]

    async def changes(self, since: int) -> tuple[int, frozenset[str] | None]:
        rows = await self._store.read(ACCESS_LIST["changes"], since)
        newest = rows[0][0]
        numbered = [row[1:] for row in rows if row[1] is not None]
        if newest < since:
            return newest, None  # the database was emptied
        if any(row[1] is None for row in numbered) or (numbered and numbered[0][0] > since + 1):
            return newest, None
        return newest, frozenset(row[1] for row in numbered)


async def _put(entries: dict[str, AccessEntry], connection: Connection, _repeated: bool) -> None:
    await connection.execute(ACCESS_LIST["lock_changes"])
    await connection.execute(ACCESS_LIST["put"], *arrays(map(entry_values, entries.values())))
    await _note_changes(connection, list(entries))


async def _remove(token_hash: str, connection: Connection, repeated: bool) -> bool:
    await connection.execute(ACCESS_LIST["lock_changes"])
    removed = await connection.fetch(ACCESS_LIST["remove"], token_hash)
    if removed:
        await _note_changes(connection, [token_hash])
    return bool(removed) or repeated  # the first attempt, whose answer was lost, may have removed it


async def _note_changes(connection: Connection, hashes: list[str]) -> None:
    await connection.execute(ACCESS_LIST["note_changes"], [None] if len(hashes) > _MOST_NAMED else hashes)
    await connection.execute(ACCESS_LIST["forget_changes"], _CHANGES_KEPT)
