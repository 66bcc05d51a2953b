"""The database that another one is copied into."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from chargegate.engines.postgres import statements as sql
from chargegate.engines.postgres.access_list import PostgresAccessList
from chargegate.engines.postgres.connection import Connection, PostgresStore
from chargegate.engines.postgres.months import Months
from chargegate.ledger.base import AccessList, ledger_unavailable
from chargegate.ledger.transfer import KeptClaim, StoredRequest, WaitingRequest

T = TypeVar("T")

_PAGE_S: Final = 60.0
_COLUMNS: Final = (
    "request_id, station_id, driver_token_hash, decision, reason, processing_time_ms, decided_at, status, created_at,"
    " started_at, processed_at, attempts, last_status_code, last_error, sealed"
)
_PUT_REQUESTS: Final = f"""
INSERT INTO charging_requests AS held ({_COLUMNS})
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[],
    $8::text[], $9::bigint[], $10::bigint[], $11::bigint[], $12::integer[], $13::integer[], $14::text[], $15::bytea[])
ON CONFLICT (request_id) DO UPDATE
SET ({_COLUMNS}) = ROW({", ".join("excluded." + column.strip() for column in _COLUMNS.split(","))})
WHERE held.decision IS NULL AND excluded.decision IS NOT NULL
    OR (held.decision, held.decided_at) = (excluded.decision, excluded.decided_at)
        AND coalesce(held.processed_at, held.started_at) < coalesce(excluded.processed_at, excluded.started_at)"""  # noqa: S608 - constants
_PUT_AUDIT: Final = f"""
INSERT INTO authorization_audit (writer, sequence, {sql.AUDIT})
SELECT 'embedded', d.sequence, {sql.DECIDED}
FROM unnest($1::bigint[], $2::text[], $3::bigint[]) AS d (sequence, id, at)
JOIN charging_requests ON request_id = d.id AND decided_at = d.at
WHERE NOT EXISTS (SELECT FROM authorization_audit a WHERE a.timestamp = d.at AND a.request_id = d.id)"""  # noqa: S608 - constants
_PUT_CLAIMS: Final = """
INSERT INTO idempotency_keys SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[])
ON CONFLICT DO NOTHING"""
_PUT_VALUES: Final = """
INSERT INTO service_facts SELECT * FROM unnest($1::text[], $2::text[]) ON CONFLICT DO NOTHING"""


class PostgresTarget:
    """Keeps the promises of ``LedgerTarget``."""

    def __init__(self, store: PostgresStore) -> None:
        self._store = store
        self._months = Months()
        self.access_list: AccessList = PostgresAccessList(store)

    async def put_requests(self, requests: Sequence[StoredRequest]) -> tuple[int, int]:
        rows = [_row(request) for request in requests]
        decided = [(r.sequence, r.request_id, r.decision.timestamp) for r in requests if r.decision is not None]

        async def work(connection: Connection, again: bool) -> tuple[int, int]:
            if again:
                self._months.forget()
            changed = _count(await connection.execute(_PUT_REQUESTS, *_columns(rows)))
            if not decided:
                return changed, 0
            await self._months.provide(connection, [at for _, _, at in decided])
            return changed, _count(await connection.execute(_PUT_AUDIT, *_columns(decided)))

        return await self._page(work)

    async def put_waiting(self, requests: Sequence[WaitingRequest]) -> int:
        return await self._insert(sql.ACCEPT, [(r.request_id, r.station_id, r.accepted_at) for r in requests])

    async def put_claims(self, claims: Sequence[KeptClaim]) -> int:
        rows = [(k.key_digest, k.claim.body_digest, k.claim.request_id, k.claim.created_at) for k in claims]
        return await self._insert(_PUT_CLAIMS, rows)

    async def put_values(self, values: Sequence[tuple[str, str]]) -> int:
        return await self._insert(_PUT_VALUES, values)

    async def _insert(self, statement: str, rows: Sequence[Sequence[Any]]) -> int:
        async def work(connection: Connection, _again: bool) -> int:
            return _count(await connection.execute(statement, *_columns(rows)))

        return await self._page(work) if rows else 0

    async def _page(self, work: Callable[[Connection, bool], Awaitable[T]]) -> T:
        with ledger_unavailable:
            return await self._store.transaction(work, within=_PAGE_S)

    async def close(self) -> None:
        await self._store.close()


def _row(request: StoredRequest) -> tuple[Any, ...]:
    r, d = request, request.decision
    decided = (None,) * 5 if d is None else (d.driver_token_hash, d.status, d.reason, d.processing_time_ms, d.timestamp)
    return (
        *(r.request_id, r.station_id, *decided, r.status, r.created_at, r.started_at, r.processed_at, r.attempts),
        *(r.last_status_code, r.last_error, r.sealed),
    )


def _columns(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """PostgreSQL holds no NUL in a text."""
    return [
        [value.replace("\0", "\ufffd") if isinstance(value, str) else value for value in column]
        for column in zip(*rows, strict=True)
    ]


def _count(tag: str) -> int:
    """How many rows an ``INSERT 0 n`` wrote."""
    return int(tag.rpartition(" ")[2])
