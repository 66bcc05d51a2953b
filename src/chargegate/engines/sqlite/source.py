"""The embedded database as the source of a copy."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from chargegate.engines.sqlite.access_list import SqliteAccessList
from chargegate.engines.sqlite.connection import SqliteStore
from chargegate.engines.sqlite.group_commit import StoreUnavailable
from chargegate.ledger.base import LedgerUnavailable
from chargegate.ledger.records import Claim
from chargegate.ledger.rows import decision_of
from chargegate.ledger.transfer import KeptClaim, StoredRequest, WaitingRequest

_REQUESTS: Final = """
SELECT r.request_id, r.station_id, a.driver_token_hash, a.status, a.reason, a.processing_time_ms, a.timestamp, r.status,
    r.created_at, r.started_at, r.processed_at, r.attempts, r.last_status_code, r.last_error, r.sealed, a.sequence
FROM charging_requests r LEFT JOIN authorization_audit a USING (request_id)
WHERE r.request_id > ? ORDER BY r.request_id LIMIT ?"""
_WAITING: Final = "SELECT seq, request_id, station_id, accepted_at FROM queue WHERE seq > ? ORDER BY seq LIMIT ?"
_CLAIMS: Final = """
SELECT key_digest, body_digest, request_id, created_at FROM idempotency_keys
WHERE key_digest > ? AND created_at > ? ORDER BY key_digest LIMIT ?"""


class SqliteSource:
    """Keeps the promises of ``LedgerSource``."""

    def __init__(self, store: SqliteStore, *, on_close: Callable[[], Awaitable[None]]) -> None:
        self._store = store
        self._on_close: Callable[[], Awaitable[None]] | None = on_close
        self.access_list = SqliteAccessList(store)

    async def requests(self, after: str, limit: int) -> Sequence[StoredRequest]:
        rows = await self._read(_REQUESTS, after, limit)
        return [StoredRequest(row[0], row[1], None if row[3] is None else decision_of(row), *row[7:]) for row in rows]

    async def waiting(self, after: int, limit: int) -> Sequence[WaitingRequest]:
        return [WaitingRequest(*row) for row in await self._read(_WAITING, after, limit)]

    async def claims(self, after: str, limit: int, since: int) -> Sequence[KeptClaim]:
        return [KeptClaim(row[0], Claim(*row[1:])) for row in await self._read(_CLAIMS, after, since, limit)]

    async def values(self) -> Sequence[tuple[str, str]]:
        return await self._read("SELECT name, value FROM service_facts")

    async def _read(self, query: str, *values: Any) -> list[Any]:
        try:
            return await self._store.read(lambda connection: connection.execute(query, values).fetchall())
        except StoreUnavailable as error:
            raise LedgerUnavailable(str(error)) from None

    async def close(self) -> None:
        if self._on_close is not None:
            release, self._on_close = self._on_close, None
            await release()
