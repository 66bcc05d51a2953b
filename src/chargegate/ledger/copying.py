"""Copies the embedded ledger into PostgreSQL, page by page, each page one transaction.

Nothing is taken from what is there: run again, it goes on, or changes nothing. A request that is there without a
decision gets the one that was made; one that is there with the same decision gets the end that it came to since.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

from chargegate.engines.postgres import statements as sql
from chargegate.engines.postgres.access_list import PostgresAccessList
from chargegate.engines.postgres.connection import Connection, PostgresStore
from chargegate.engines.postgres.months import Months
from chargegate.engines.sqlite.access_list import SqliteAccessList
from chargegate.engines.sqlite.connection import SqliteStore
from chargegate.ledger.records import CLAIM_MS
from chargegate.model import now_ms

KINDS: Final = ("requests", "audit_rows", "access_list_entries", "idempotency_keys")

_PAGE: Final = 2000
_WITHIN_S: Final = 60.0
_COLUMNS: Final = (
    "request_id, station_id, driver_token_hash, decision, reason, processing_time_ms, decided_at, status, created_at,"
    " started_at, processed_at, attempts, last_status_code, last_error, sealed"
)
_READ_REQUESTS: Final = """
SELECT r.request_id, r.station_id, nullif(r.driver_token_hash, ''), a.status, a.reason, a.processing_time_ms,
    a.timestamp, r.status, r.created_at, r.started_at, r.processed_at, r.attempts, r.last_status_code, r.last_error,
    r.sealed, a.sequence
FROM charging_requests r LEFT JOIN authorization_audit a USING (request_id)
WHERE r.request_id > ? ORDER BY r.request_id LIMIT ?"""
_WRITE_REQUESTS: Final = f"""
INSERT INTO charging_requests AS held ({_COLUMNS})
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[],
    $8::text[], $9::bigint[], $10::bigint[], $11::bigint[], $12::integer[], $13::integer[], $14::text[], $15::bytea[])
ON CONFLICT (request_id) DO UPDATE
SET ({_COLUMNS}) = ROW({", ".join("excluded." + column.strip() for column in _COLUMNS.split(","))})
WHERE held.decision IS NULL AND excluded.decision IS NOT NULL
    OR (held.decision, held.decided_at) = (excluded.decision, excluded.decided_at)
        AND coalesce(held.processed_at, held.started_at) < coalesce(excluded.processed_at, excluded.started_at)"""  # noqa: S608 - constants
_WRITE_AUDIT: Final = f"""
INSERT INTO authorization_audit (writer, sequence, {sql.AUDIT})
SELECT 'embedded', d.sequence, {sql.DECIDED}
FROM unnest($1::bigint[], $2::text[], $3::bigint[]) AS d (sequence, id, at)
JOIN charging_requests ON request_id = d.id AND decided_at = d.at
WHERE NOT EXISTS (SELECT FROM authorization_audit a WHERE a.timestamp = d.at AND a.request_id = d.id)"""  # noqa: S608 - constants
_READ_WAITING: Final = "SELECT seq, request_id, station_id, accepted_at FROM queue WHERE seq > ? ORDER BY seq LIMIT ?"
_READ_KEYS: Final = """
SELECT key_digest, body_digest, request_id, created_at FROM idempotency_keys
WHERE key_digest > ? AND created_at > ? ORDER BY key_digest LIMIT ?"""
_WRITE_KEYS: Final = """
INSERT INTO idempotency_keys SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[])
ON CONFLICT DO NOTHING"""
_WRITE_FACTS: Final = """
INSERT INTO service_facts SELECT * FROM unnest($1::text[], $2::text[]) ON CONFLICT DO NOTHING"""

Told = Callable[[str, int], None]


async def copy(source: SqliteStore, target: PostgresStore, on_copied: Told) -> None:
    """``on_copied`` is told which of ``KINDS``, and how many more of it are in the target now; at first none of each.
    Raises ``PostgresUnavailable``, ``StoreUnavailable`` or ``LedgerUnavailable``, and ``ValueError`` for a value that
    the target's tables do not take."""
    for kind in KINDS:
        on_copied(kind, 0)
    await _requests(source, target, on_copied)
    await _waiting(source, target, on_copied)
    await _access_list(source, target, on_copied)
    await _keys(source, target, on_copied)
    # Last: one of them says that a file's entries are in the access list.
    facts = await source.read(lambda connection: connection.execute("SELECT name, value FROM service_facts").fetchall())
    if facts:
        await _write(target, _WRITE_FACTS, facts)


async def _requests(source: SqliteStore, target: PostgresStore, on_copied: Told) -> None:
    months = Months()
    async for rows in _pages(source, _READ_REQUESTS, ""):
        columns = _columns(rows)[:-1]
        decided = [(row[15], row[0], row[6]) for row in rows if row[6] is not None]

        async def work(
            connection: Connection, again: bool, columns: list[Any] = columns, decided: list[Any] = decided
        ) -> tuple[int, int]:
            if again:
                months.forget()
            requests = _count(await connection.execute(_WRITE_REQUESTS, *columns))
            if not decided:
                return requests, 0
            numbers, ids, times = _columns(decided)
            await months.provide(connection, times)
            return requests, _count(await connection.execute(_WRITE_AUDIT, numbers, ids, times))

        requests, audited = await target.transaction(work, within=_WITHIN_S)
        on_copied("requests", requests)
        on_copied("audit_rows", audited)


async def _waiting(source: SqliteStore, target: PostgresStore, on_copied: Told) -> None:
    """What waits in the same file's queue is listed, because the queue that it goes to may not find it."""
    async for rows in _pages(source, _READ_WAITING, 0):
        on_copied("requests", await _write(target, sql.ACCEPT, [row[1:] for row in rows]))


async def _access_list(source: SqliteStore, target: PostgresStore, on_copied: Told) -> None:
    ours, theirs = SqliteAccessList(source), PostgresAccessList(target)
    after = None
    while page := await ours.entries(_PAGE, after):
        after = page[-1].driver_token_hash
        held = await asyncio.gather(*(theirs.entry(entry.driver_token_hash) for entry in page))
        new = [entry for entry, known in zip(page, held, strict=True) if known is None]
        await theirs.put(new)
        on_copied("access_list_entries", len(new))


async def _keys(source: SqliteStore, target: PostgresStore, on_copied: Told) -> None:
    async for rows in _pages(source, _READ_KEYS, "", now_ms() - CLAIM_MS):
        on_copied("idempotency_keys", await _write(target, _WRITE_KEYS, rows))


async def _pages(source: SqliteStore, query: str, after: str | int, *values: Any) -> AsyncIterator[list[Any]]:
    """``query`` continues after the first column of the last row."""
    while True:

        def read(connection: sqlite3.Connection, after: str | int = after) -> list[Any]:
            return connection.execute(query, (after, *values, _PAGE)).fetchall()

        rows = await source.read(read)
        if not rows:
            return
        yield rows
        after = rows[-1][0]


async def _write(target: PostgresStore, statement: str, rows: Sequence[Sequence[Any]]) -> int:
    async def work(connection: Connection, _again: bool) -> int:
        return _count(await connection.execute(statement, *_columns(rows)))

    return await target.transaction(work, within=_WITHIN_S)


def _columns(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """PostgreSQL holds no NUL in a text."""
    return [
        [value.replace("\0", "\ufffd") if isinstance(value, str) else value for value in column]
        for column in zip(*rows, strict=True)
    ]


def _count(tag: str) -> int:
    """How many rows an ``INSERT 0 n`` wrote."""
    return int(tag.rpartition(" ")[2])
