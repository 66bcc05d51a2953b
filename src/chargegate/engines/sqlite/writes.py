"""What the ledger in SQLite writes: each function takes all items of one kind in a batch, in one transaction."""

import sqlite3
from collections.abc import Sequence
from typing import Any

import msgspec

from chargegate.engines.sqlite.connection import many
from chargegate.engines.sqlite.group_commit import Operation
from chargegate.ledger.accepted import Accepted
from chargegate.ledger.records import CLAIM_MS, Claim, Finished, Recorded
from chargegate.ledger.rows import recorded_of
from chargegate.model import Decision, RequestStatus

_PURGE = 200

AUDIT = "a.request_id, a.station_id, a.driver_token_hash, a.status, a.reason, a.processing_time_ms, a.timestamp"
_RECORDED = f"""
SELECT {AUDIT}, r.attempts, r.started_at, r.processed_at, r.status
FROM authorization_audit a JOIN charging_requests r USING (request_id) WHERE a.request_id = ?"""  # noqa: S608 - constant


class Entry(msgspec.Struct, frozen=True):
    decision: Decision
    created_at: int


class Written(msgspec.Struct, frozen=True):
    recorded: Recorded
    sequence: int  # 0: the request had its decision already


def one_recorded(connection: sqlite3.Connection, request_id: str) -> Recorded | None:
    row = connection.execute(_RECORDED, (request_id,)).fetchone()
    return recorded_of(row) if row else None


def record(connection: sqlite3.Connection, entries: list[Entry]) -> list[Written]:
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
            else one_recorded(connection, decision.request_id)
        )
        if recorded is None:
            raise sqlite3.DatabaseError("an audit row without its request")
        written.append(Written(recorded, sequence))
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


def _insert_requests(connection: sqlite3.Connection, entries: list[Entry]) -> None:
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
        # of a request that was only accepted; any other has its audit row, and does not come here
        "ON CONFLICT (request_id) DO UPDATE SET station_id = excluded.station_id,"
        " driver_token_hash = excluded.driver_token_hash, started_at = excluded.started_at, status = excluded.status",
        rows,
    ):
        pass


def _accept(connection: sqlite3.Connection, batches: list[list[Accepted]]) -> None:
    rows = [(request_id, station_id, at, at) for batch in batches for request_id, station_id, at in batch]
    for _ in many(
        connection,
        "INSERT INTO charging_requests (request_id, station_id, driver_token_hash, created_at, started_at, status)"
        " VALUES",
        "(?, ?, '', ?, ?, 'QUEUED')",
        "ON CONFLICT (request_id) DO NOTHING",
        rows,
    ):
        pass


def finish(connection: sqlite3.Connection, items: list[Finished]) -> None:
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


RESTART = _each(
    "UPDATE charging_requests SET status = ?, started_at = ?, processed_at = NULL, attempts = 0,"
    " last_status_code = NULL, last_error = NULL WHERE request_id = ?"
)
ATTEMPTED = _each(
    "UPDATE charging_requests SET attempts = ?, last_status_code = ?, last_error = ? WHERE request_id = ?"
)
SINK = _each("INSERT OR REPLACE INTO sink_positions VALUES (?, ?)")
ACCEPT = Operation(_accept)
FINISH = Operation(finish)
CLAIM = Operation(_claim)
FACT = Operation(_fact)
REPLACE_FACT = _each("INSERT OR REPLACE INTO service_facts VALUES (?, ?)")
DISCARD = Operation(_discard)
FAIL_LOST = Operation(_fail_lost)
