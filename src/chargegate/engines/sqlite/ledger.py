"""The ledger in SQLite. A request's row and its audit row are inserted in one commit; the request id is unique."""

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from chargegate.engines.sqlite import writes
from chargegate.engines.sqlite.connection import SqliteStore
from chargegate.engines.sqlite.group_commit import Operation, StoreUnavailable
from chargegate.ledger.accepted import Accepted, AcceptedRequests
from chargegate.ledger.base import LedgerUnavailable
from chargegate.ledger.records import (
    AuditRow,
    Claim,
    DeadLetter,
    DecisionFilter,
    Finished,
    Recorded,
    RequestRecord,
    StationStats,
)
from chargegate.ledger.rows import decision_of, request_of
from chargegate.model import Decision, RequestStatus, Status
from chargegate.storage.unavailable import Unusable

T = TypeVar("T")


_FIND = """
SELECT r.request_id, r.station_id, r.driver_token_hash, a.status, a.reason, a.processing_time_ms, a.timestamp, r.status,
    r.created_at, r.processed_at, r.attempts, r.last_status_code, r.last_error
FROM charging_requests r LEFT JOIN authorization_audit a USING (request_id) WHERE r.request_id = ?"""
_DEAD = """
SELECT r.request_id, r.station_id, r.driver_token_hash, a.status, a.reason, r.created_at, r.processed_at, r.attempts,
    r.last_status_code, r.last_error, r.sealed
FROM charging_requests r JOIN authorization_audit a USING (request_id)
WHERE r.status = 'FAILED' AND r.sealed NOTNULL"""


class SqliteLedger:
    """Keeps the promises of ``Ledger``."""

    def __init__(self, store: SqliteStore, on_audit: Callable[[list[AuditRow]], None] | None = None) -> None:
        """``on_audit`` is told of committed audit rows, in the writing thread and before anyone who waits for them."""
        self._store = store
        self._on_audit = on_audit
        self._record = Operation(writes.record, committed=self._committed)
        self._accepted = AcceptedRequests(self._accept)

    def _committed(self, written: Sequence[writes.Written]) -> None:
        if self._on_audit is not None:
            rows = [AuditRow(w.sequence, w.recorded.decision) for w in written if w.sequence]
            if rows:
                self._on_audit(rows)

    def accepted(self, request_id: str, station_id: str, created_at: int) -> None:
        self._accepted.add(request_id, station_id, created_at)

    async def _accept(self, batch: list[Accepted]) -> None:
        await self._write(writes.ACCEPT, batch)

    async def record(self, decision: Decision, created_at: int) -> Recorded:
        written: writes.Written = await self._write(self._record, writes.Entry(decision, created_at))
        return written.recorded

    async def recorded(self, request_id: str) -> Recorded | None:
        return await self._read(lambda connection: writes.one_recorded(connection, request_id))

    async def restart(self, request_id: str, at: int) -> None:
        await self._write(writes.RESTART, (RequestStatus.PROCESSING.value, at, request_id))

    async def attempted(self, request_id: str, attempts: int, status_code: int | None, error: str | None) -> None:
        await self._write(writes.ATTEMPTED, (attempts, status_code, error, request_id))

    async def finish(self, finished: Finished) -> None:
        await self._write(writes.FINISH, finished)

    async def find(self, request_id: str) -> RequestRecord | None:
        row = await self._read(lambda connection: connection.execute(_FIND, (request_id,)).fetchone())
        return request_of(row) if row else None

    async def decisions(self, which: DecisionFilter, limit: int, after: tuple[int, str] | None) -> Sequence[Decision]:
        where, values = _conditions(which)
        if after is not None:
            where.append("(a.timestamp, a.request_id) < (?, ?)")
            values.extend(after)
        query = f"SELECT {writes.AUDIT} FROM authorization_audit a{_where(where)}"  # noqa: S608 - constants and placeholders
        order = " ORDER BY a.timestamp DESC, a.request_id DESC LIMIT ?"
        return await self._scan(
            lambda connection: [decision_of(row) for row in connection.execute(query + order, (*values, limit))]
        )

    async def station_stats(
        self,
        since: int | None,
        until: int | None,
        *,
        station_id: str | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> Sequence[StationStats]:
        where, values = _conditions(DecisionFilter(station_id, since=since, until=until))
        if after is not None:
            where.append("a.station_id > ?")
            values.append(after)
        order = "count(*) DESC, 1" if limit is None else "a.station_id LIMIT ?"
        if limit is not None:
            values.append(limit)
        counts = ", ".join(f"sum(a.status = '{status}')" for status in Status)
        query = (
            f"SELECT lower(a.station_id), count(*), {counts} FROM authorization_audit a{_where(where)}"  # noqa: S608 - constants
            f" GROUP BY a.station_id ORDER BY {order}"
        )
        return await self._scan(lambda connection: [StationStats(*row) for row in connection.execute(query, values)])

    async def dead_letters(
        self, since: int | None, until: int | None, limit: int, after: tuple[int, str] | None
    ) -> Sequence[DeadLetter]:
        query, values = _DEAD, list[Any]()
        if since is not None:
            query, values = query + " AND r.processed_at >= ?", [*values, since]
        if until is not None:
            query, values = query + " AND r.processed_at < ?", [*values, until]
        if after is not None:
            query, values = query + " AND (r.processed_at, r.request_id) < (?, ?)", [*values, *after]
        query += " ORDER BY r.processed_at DESC, r.request_id DESC LIMIT ?"
        return await self._scan(
            lambda connection: [DeadLetter(*row) for row in connection.execute(query, (*values, limit))]
        )

    async def dead_letter(self, request_id: str) -> DeadLetter | None:
        query = _DEAD + " AND r.request_id = ?"
        row = await self._read(lambda connection: connection.execute(query, (request_id,)).fetchone())
        return DeadLetter(*row) if row else None

    async def count_dead_letters(self) -> int:
        query = "SELECT count(*) FROM charging_requests WHERE status = 'FAILED' AND sealed NOTNULL"
        return await self._read(lambda connection: int(connection.execute(query).fetchone()[0]))

    async def discard(self, request_ids: Sequence[str]) -> int:
        discarded: int = await self._write(writes.DISCARD, request_ids)
        return discarded

    async def fail_lost(self, kept: Iterable[str], at: int) -> int:
        failed: int = await self._write(writes.FAIL_LOST, (json.dumps(list(kept)), at))
        return failed

    async def audit_after(self, sequence: int, limit: int) -> list[AuditRow]:
        query = (
            f"SELECT {writes.AUDIT}, a.sequence FROM authorization_audit a WHERE sequence > ? ORDER BY sequence LIMIT ?"  # noqa: S608 - constant
        )
        return await self._read(
            lambda connection: [
                AuditRow(row[7], decision_of(row)) for row in connection.execute(query, (sequence, limit))
            ]
        )

    async def drop_audit_before(self, at: int) -> list[str]:  # noqa: ARG002 - the protocol's
        raise Unusable("the embedded database keeps all months in one table; only PostgreSQL's can be dropped")

    async def sink_position(self, sink: str) -> int:
        query = "SELECT sequence FROM sink_positions WHERE sink = ?"
        row = await self._read(lambda connection: connection.execute(query, (sink,)).fetchone())
        return int(row[0]) if row else 0

    async def save_sink_position(self, sink: str, sequence: int) -> None:
        await self._write(writes.SINK, (sink, sequence))

    async def claim(self, key_digest: str, claim: Claim) -> Claim:
        holds: Claim = await self._write(writes.CLAIM, (key_digest, claim))
        return holds

    async def put_value_if_absent(self, name: str, value: str) -> str:
        remembered: str = await self._write(writes.FACT, (name, value))
        return remembered

    async def value(self, name: str) -> str | None:
        query = "SELECT value FROM service_facts WHERE name = ?"
        row = await self._read(lambda connection: connection.execute(query, (name,)).fetchone())
        return row[0] if row else None

    async def put_value(self, name: str, value: str) -> None:
        await self._write(writes.REPLACE_FACT, (name, value))

    async def sealed_prefixes(self, length: int) -> frozenset[bytes]:
        query = "SELECT DISTINCT substr(sealed, 1, ?) FROM charging_requests WHERE status = 'FAILED' AND sealed NOTNULL"
        return await self._read(lambda connection: frozenset(row[0] for row in connection.execute(query, (length,))))

    async def check(self) -> None:
        try:
            await self._store.check()
        except StoreUnavailable as error:
            raise LedgerUnavailable(str(error)) from None

    async def close(self) -> None:
        await self._accepted.close()

    async def _write(self, operation: Operation, item: Any) -> Any:
        try:
            return await self._store.submit(operation, item)
        except StoreUnavailable as error:
            raise LedgerUnavailable(str(error)) from None

    async def _scan(self, query: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await self._store.scan(query)
        except StoreUnavailable as error:
            raise LedgerUnavailable(str(error)) from None

    async def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await self._store.read(query)
        except StoreUnavailable as error:
            raise LedgerUnavailable(str(error)) from None


def _conditions(which: DecisionFilter) -> tuple[list[str], list[Any]]:
    named = {
        "a.station_id = ?": which.station_id,
        "a.status = ?": which.status,
        "a.reason = ?": which.reason,
        "a.timestamp >= ?": which.since,
        "a.timestamp < ?": which.until,
    }
    return [condition for condition, value in named.items() if value is not None], [
        value for value in named.values() if value is not None
    ]


def _where(conditions: list[str]) -> str:
    return " WHERE " + " AND ".join(conditions) if conditions else ""
