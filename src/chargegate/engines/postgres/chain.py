"""The chain of audit rows in PostgreSQL: one for each writer."""

from collections.abc import Sequence
from typing import Final

from msgspec.structs import astuple

from chargegate.engines.postgres.connection import Connection
from chargegate.engines.postgres.months import first_kept
from chargegate.engines.postgres.recording import audit_row_of
from chargegate.engines.postgres.statements import CHAIN, LEDGER, arrays
from chargegate.engines.postgres.store import PostgresStore
from chargegate.ledger.chain import RowLink
from chargegate.ledger.records import AuditRow

_SCAN_S: Final = 60.0


class PostgresChain:
    """Keeps the promises of ``AuditChain``, on a store that raises ``LedgerUnavailable``."""

    def __init__(self, store: PostgresStore, writer: str) -> None:
        self._store = store
        self.writer = writer

    async def writers(self) -> Sequence[str]:
        return [row[0] for row in await self._store.read(CHAIN["writers"], within=_SCAN_S)]

    async def last_link(self) -> RowLink | None:
        rows = await self._store.read(CHAIN["last"], self.writer)
        return RowLink(*rows[0]) if rows else None

    async def add(self, links: Sequence[RowLink]) -> bool:
        if not links:
            return True

        async def add(connection: Connection, _repeated: bool) -> bool:
            await connection.execute(CHAIN["lock"])
            held = await connection.fetchval(CHAIN["held"], self.writer, links[0].sequence, links[-1].sequence)
            if held < len(links):
                return False
            await connection.execute(CHAIN["add"], self.writer, *arrays(map(astuple, links)))
            return True

        return await self._store.transaction(add)

    async def links(self, writer: str, after: int, limit: int) -> Sequence[RowLink]:
        rows = await self._store.read(CHAIN["links"], writer, after, limit, within=_SCAN_S)
        return [RowLink(*row) for row in rows]

    async def rows(self, writer: str, after: int, limit: int) -> Sequence[AuditRow]:
        rows = await self._store.read(LEDGER["audit_after"], writer, after, limit, within=_SCAN_S)
        return [audit_row_of(row, writer) for row in rows]

    async def old_links(self, at: int) -> Sequence[tuple[str, RowLink]]:
        rows = await self._store.read(CHAIN["old"], first_kept(at), within=_SCAN_S)
        return [(row[0], RowLink(*row[1:])) for row in rows]

    async def drop(self, writer: str, last: RowLink) -> None:
        await self._store.execute(CHAIN["drop"], writer, last.number, last.sequence, within=_SCAN_S)
