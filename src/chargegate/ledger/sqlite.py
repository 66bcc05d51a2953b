"""The ledger in SQLite. A request's row and its audit row are inserted in one commit; the request id is unique."""

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import msgspec

from chargegate.audit.base import AuditRow
from chargegate.ledger.base import (
    CLAIM_MS,
    CallbackRecord,
    Claim,
    DeadLetter,
    DecisionFilter,
    Finished,
    LedgerUnavailable,
    Recorded,
    RequestRecord,
    StationStats,
)
from chargegate.model import Decision, RequestStatus, Status
from chargegate.sqlite import Operation, SqliteStore, StoreUnavailable, many

T = TypeVar("T")

_PURGE = 200

_AUDIT = "a.request_id, a.station_id, a.driver_token_hash, a.status, a.reason, a.processing_time_ms, a.timestamp"
_RECORDED = f"""
SELECT {_AUDIT}, r.attempts, r.started_at, r.processed_at, r.status
FROM authorization_audit a JOIN charging_requests r USING (request_id) WHERE a.request_id = ?"""  # noqa: S608 - constant
_DEAD = """
SELECT r.request_id, r.station_id, r.driver_token_hash, a.status, a.reason, r.created_at, r.processed_at, r.attempts,
    r.last_status_code, r.last_error, r.sealed
FROM charging_requests r JOIN authorization_audit a USING (request_id)
WHERE r.status = 'FAILED' AND r.sealed NOTNULL"""


class _Entry(msgspec.Struct, frozen=True):
    decision: Decision
    created_at: int


class _Written(msgspec.Struct, frozen=True):
    recorded: Recorded
    sequence: int  # 0: the request had its decision already


class SqliteLedger:
    """Keeps the promises of ``Ledger``."""

    def __init__(self, store: SqliteStore, on_audit: Callable[[list[AuditRow]], None] | None = None) -> None:
        """``on_audit`` is told of committed audit rows, in the writing thread and before anyone who waits for them."""
        self._store = store
        self._on_audit = on_audit
        self._record = Operation(_record, committed=self._committed)

    def _committed(self, written: Sequence[_Written]) -> None:
        if self._on_audit is not None:
            rows = [AuditRow(w.sequence, w.recorded.decision) for w in written if w.sequence]
            if rows:
                self._on_audit(rows)

    async def record(self, decision: Decision, created_at: int) -> Recorded:
        written: _Written = await self._write(self._record, _Entry(decision, created_at))
        return written.recorded

    async def recorded(self, request_id: str) -> Recorded | None:
        return await self._read(lambda connection: _one_recorded(connection, request_id))

    async def restart(self, request_id: str, at: int) -> None:
        await self._write(_RESTART, (RequestStatus.PROCESSING.value, at, request_id))

    async def attempted(self, request_id: str, attempts: int, status_code: int | None, error: str | None) -> None:
        await self._write(_ATTEMPTED, (attempts, status_code, error, request_id))

    async def finish(self, finished: Finished) -> None:
        await self._write(_FINISH, finished)

    async def find(self, request_id: str) -> RequestRecord | None:
        def query(connection: sqlite3.Connection) -> RequestRecord | None:
            row = connection.execute(
                f"SELECT {_AUDIT}, r.status, r.created_at, r.processed_at, r.attempts, r.last_status_code, r.last_error"  # noqa: S608 - constant
                " FROM charging_requests r JOIN authorization_audit a USING (request_id) WHERE r.request_id = ?",
                (request_id,),
            ).fetchone()
            if row is None:
                return None
            status, created_at, processed_at, attempts, code, error = row[7:]
            delivered = status in (RequestStatus.COMPLETED, RequestStatus.TIMEOUT)
            callback = CallbackRecord(attempts, code, error, processed_at if delivered else None)
            return RequestRecord(
                row[0],
                row[1],
                RequestStatus(status),
                created_at,
                processed_at,
                _decision(row),
                callback if attempts or processed_at else None,
            )

        return await self._read(query)

    async def decisions(self, which: DecisionFilter, limit: int, after: tuple[int, str] | None) -> Sequence[Decision]:
        where, values = _conditions(which)
        if after is not None:
            where.append("(a.timestamp, a.request_id) < (?, ?)")
            values.extend(after)
        query = f"SELECT {_AUDIT} FROM authorization_audit a{_where(where)}"  # noqa: S608 - constants and placeholders
        order = " ORDER BY a.timestamp DESC, a.request_id DESC LIMIT ?"
        return await self._scan(
            lambda connection: [_decision(row) for row in connection.execute(query + order, (*values, limit))]
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
        discarded: int = await self._write(_DISCARD, request_ids)
        return discarded

    async def fail_lost(self, kept: Iterable[str], at: int) -> int:
        failed: int = await self._write(_FAIL_LOST, (json.dumps(list(kept)), at))
        return failed

    async def audit_after(self, sequence: int, limit: int) -> list[AuditRow]:
        query = f"SELECT {_AUDIT}, a.sequence FROM authorization_audit a WHERE sequence > ? ORDER BY sequence LIMIT ?"  # noqa: S608 - constant
        return await self._read(
            lambda connection: [
                AuditRow(row[7], _decision(row)) for row in connection.execute(query, (sequence, limit))
            ]
        )

    async def sink_position(self, sink: str) -> int:
        query = "SELECT sequence FROM sink_positions WHERE sink = ?"
        row = await self._read(lambda connection: connection.execute(query, (sink,)).fetchone())
        return int(row[0]) if row else 0

    async def save_sink_position(self, sink: str, sequence: int) -> None:
        await self._write(_SINK, (sink, sequence))

    async def claim(self, key_digest: str, claim: Claim) -> Claim:
        holds: Claim = await self._write(_CLAIM, (key_digest, claim))
        return holds

    async def fact(self, name: str, value: str) -> str:
        """Remember a fact about this database the first time; later, what was remembered then."""
        remembered: str = await self._write(_FACT, (name, value))
        return remembered

    async def last_fact(self, name: str) -> str | None:
        """What ``replace_fact`` remembered last."""
        query = "SELECT value FROM service_facts WHERE name = ?"
        row = await self._read(lambda connection: connection.execute(query, (name,)).fetchone())
        return row[0] if row else None

    async def replace_fact(self, name: str, value: str) -> None:
        await self._write(_REPLACE_FACT, (name, value))

    async def sealed_prefixes(self, length: int) -> frozenset[bytes]:
        """The different beginnings of everything sealed that is kept, to see early whether it can be opened."""
        query = "SELECT DISTINCT substr(sealed, 1, ?) FROM charging_requests WHERE status = 'FAILED' AND sealed NOTNULL"
        return await self._read(lambda connection: frozenset(row[0] for row in connection.execute(query, (length,))))

    async def check(self) -> None:
        try:
            await self._store.check()
        except StoreUnavailable as error:
            raise LedgerUnavailable(str(error)) from None

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


def _decision(row: Sequence[Any]) -> Decision:
    return Decision(row[0], row[1], row[2], Status(row[3]), row[4], row[5], row[6])


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


def _one_recorded(connection: sqlite3.Connection, request_id: str) -> Recorded | None:
    row = connection.execute(_RECORDED, (request_id,)).fetchone()
    return Recorded(_decision(row), row[7], row[8], row[9], RequestStatus(row[10])) if row else None


def _record(connection: sqlite3.Connection, entries: list[_Entry]) -> list[_Written]:
    inserted: dict[str, int] = {}
    for cursor, _ in many(
        connection,
        "INSERT INTO authorization_audit (timestamp, request_id, station_id, driver_token_hash, status, reason,"
        " processing_time_ms) VALUES",
        "(?, ?, ?, ?, ?, ?, ?)",
        "ON CONFLICT (request_id) DO NOTHING RETURNING request_id, sequence",
        [_audit_values(entry.decision) for entry in entries],
    ):
        inserted.update(cursor.fetchall())
    _insert_requests(connection, [entry for entry in entries if entry.decision.request_id in inserted])
    written = []
    for entry in entries:
        decision = entry.decision
        sequence = inserted.pop(decision.request_id, 0)
        recorded = (
            Recorded(decision, 0, decision.timestamp, None, RequestStatus.PROCESSING)
            if sequence
            else _one_recorded(connection, decision.request_id)
        )
        if recorded is None:
            raise sqlite3.DatabaseError("an audit row without its request")
        written.append(_Written(recorded, sequence))
    return written


def _audit_values(decision: Decision) -> tuple[Any, ...]:
    return (
        decision.timestamp,
        decision.request_id,
        decision.station_id,
        decision.driver_token_hash,
        decision.status,
        decision.reason,
        decision.processing_time_ms,
    )


def _insert_requests(connection: sqlite3.Connection, entries: list[_Entry]) -> None:
    rows = [
        (
            entry.decision.request_id,
            entry.decision.station_id,
            entry.decision.driver_token_hash,
            entry.created_at,
            entry.decision.timestamp,
        )
        for entry in entries
    ]
    for _ in many(
        connection,
        "INSERT INTO charging_requests (request_id, station_id, driver_token_hash, created_at, started_at, status)"
        " VALUES",
        "(?, ?, ?, ?, ?, 'PROCESSING')",
        "",
        rows,
    ):
        pass


def _finish(connection: sqlite3.Connection, items: list[Finished]) -> None:
    rows = [(f.request_id, f.status, f.at, f.attempts, f.status_code, f.error, f.sealed) for f in items]
    for _ in many(
        connection,
        "WITH done (id, status, at, attempts, code, error, sealed) AS (VALUES",
        "(?, ?, ?, ?, ?, ?, ?)",
        ") UPDATE charging_requests SET status = done.status, processed_at = done.at, attempts = done.attempts,"
        " last_status_code = done.code, last_error = done.error, sealed = done.sealed"
        " FROM done WHERE request_id = done.id",
        rows,
    ):
        pass


def _each(statement: str) -> Operation:
    """An operation that runs one statement an item: for what happens seldom."""

    def apply(connection: sqlite3.Connection, items: list[Any]) -> None:
        connection.executemany(statement, items)

    return Operation(apply)


def _claim(connection: sqlite3.Connection, items: list[tuple[str, Claim]]) -> list[Claim]:
    holding = []
    for digest, claim in items:
        oldest = claim.created_at - CLAIM_MS
        connection.execute(
            "DELETE FROM idempotency_keys WHERE key_digest IN"
            " (SELECT key_digest FROM idempotency_keys WHERE created_at <= ? ORDER BY created_at LIMIT ?)",
            (oldest, _PURGE),
        )
        connection.execute(
            "INSERT INTO idempotency_keys VALUES (?, ?, ?, ?) ON CONFLICT (key_digest) DO UPDATE SET"
            " body_digest = excluded.body_digest, request_id = excluded.request_id, created_at = excluded.created_at"
            " WHERE created_at <= ?",
            (digest, claim.body_digest, claim.request_id, claim.created_at, oldest),
        )
        row = connection.execute(
            "SELECT body_digest, request_id, created_at FROM idempotency_keys WHERE key_digest = ?", (digest,)
        ).fetchone()
        holding.append(Claim(*row))
    return holding


def _fact(connection: sqlite3.Connection, items: list[tuple[str, str]]) -> list[str]:
    connection.executemany("INSERT INTO service_facts VALUES (?, ?) ON CONFLICT DO NOTHING", items)
    return [
        connection.execute("SELECT value FROM service_facts WHERE name = ?", (name,)).fetchone()[0] for name, _ in items
    ]


def _discard(connection: sqlite3.Connection, items: list[Sequence[str]]) -> list[int]:
    return [
        connection.executemany(
            "UPDATE charging_requests SET sealed = NULL WHERE request_id = ? AND status = 'FAILED' AND sealed NOTNULL",
            [(request_id,) for request_id in request_ids],
        ).rowcount
        for request_ids in items
    ]


def _fail_lost(connection: sqlite3.Connection, items: list[tuple[str, int]]) -> list[int]:
    return [
        connection.execute(
            "UPDATE charging_requests SET status = 'FAILED', processed_at = ?, last_error = 'lost_with_the_queue'"
            " WHERE status = 'PROCESSING' AND request_id NOT IN (SELECT value FROM json_each(?))",
            (at, kept),
        ).rowcount
        for kept, at in items
    ]


_RESTART = _each(
    "UPDATE charging_requests SET status = ?, started_at = ?, processed_at = NULL, attempts = 0,"
    " last_status_code = NULL, last_error = NULL WHERE request_id = ?"
)
_ATTEMPTED = _each(
    "UPDATE charging_requests SET attempts = ?, last_status_code = ?, last_error = ? WHERE request_id = ?"
)
_SINK = _each("INSERT OR REPLACE INTO sink_positions VALUES (?, ?)")
_FINISH = Operation(_finish)
_CLAIM = Operation(_claim)
_FACT = Operation(_fact)
_REPLACE_FACT = _each("INSERT OR REPLACE INTO service_facts VALUES (?, ?)")
_DISCARD = Operation(_discard)
_FAIL_LOST = Operation(_fail_lost)
