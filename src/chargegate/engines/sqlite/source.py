"""The embedded database as the source of a copy."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from chargegate.engines.sqlite.access_list import SqliteAccessList
from chargegate.engines.sqlite.connection import SqliteStore, StorePart
from chargegate.engines.sqlite.exports import exported_of
from chargegate.engines.sqlite.queries import select, select_one
from chargegate.engines.sqlite.statements import CHAIN, COUNTS, EXPORTS, SOURCE
from chargegate.ledger.base import AccessList, ledger_unavailable
from chargegate.ledger.chain import RowLink
from chargegate.ledger.exports import ExportedFile
from chargegate.ledger.records import Claim
from chargegate.ledger.rows import stored_of
from chargegate.ledger.transfer import CountKind, KeptClaim, StoredRequest, WaitingRequest


class SqliteSource:
    """Keeps the promises of ``LedgerSource``."""

    def __init__(self, store: SqliteStore, on_close: Callable[[], Awaitable[None]] | None = None) -> None:
        """``on_close`` is awaited once, by ``close``."""
        self._store = StorePart(store, ledger_unavailable)
        self._on_close = on_close
        self.access_list: AccessList = SqliteAccessList(store)

    async def requests(self, after: str, limit: int) -> Sequence[StoredRequest]:
        return await self._store.read(select(stored_of, SOURCE["requests"], (after, limit)))

    async def waiting(self, after: int, limit: int) -> Sequence[WaitingRequest]:
        return await self._store.read(select(_waiting, SOURCE["waiting"], (after, limit)))

    async def claims(self, after: str, limit: int, since: int) -> Sequence[KeptClaim]:
        return await self._store.read(select(_claim, SOURCE["claims"], (after, since, limit)))

    async def values(self) -> Sequence[tuple[str, str]]:
        return await self._store.read(select(lambda row: (row[0], row[1]), SOURCE["values"]))

    async def links(self, after: int, limit: int) -> Sequence[RowLink]:
        return await self._store.read(select(_row_link, CHAIN["links"], (after, limit)))

    async def exports(self, after: int, limit: int) -> Sequence[ExportedFile]:
        return await self._store.read(select(exported_of, EXPORTS["page"], (after, limit)))

    async def gone_counts(self, kind: CountKind, after: tuple[int, str], limit: int) -> Sequence[tuple[Any, ...]]:
        since = await self._store.read(select_one(_first, COUNTS["rows_since"]))
        if since is None:
            return []
        return await self._store.scan(select(tuple, SOURCE[f"gone_{kind}"], (int(since), *after, limit)))

    async def close(self) -> None:
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            await on_close()


def _first(row: Sequence[Any]) -> Any:
    return row[0]


def _row_link(row: Sequence[Any]) -> RowLink:
    return RowLink(*row)


def _waiting(row: Sequence[Any]) -> WaitingRequest:
    return WaitingRequest(*row)


def _claim(row: Sequence[Any]) -> KeptClaim:
    return KeptClaim(row[0], Claim(*row[1:]))
