"""The ledger's statements in PostgreSQL. Rows go in as one array a column."""

from typing import Final

from chargegate.ledger.records import CLAIM_MS
from chargegate.model import Status

DECIDED: Final = "request_id, station_id, driver_token_hash, decision, reason, processing_time_ms, decided_at"
AUDIT: Final = "request_id, station_id, driver_token_hash, status, reason, processing_time_ms, timestamp"
# What was decided before is left out rather than left to the conflict: a conflict locks its row, in no order that an
# UPDATE elsewhere would keep to. What is left is inserted in one order by all.
RECORD: Final = """
WITH decided AS (
    INSERT INTO charging_requests AS held (request_id, station_id, driver_token_hash, decision, reason,
        processing_time_ms, decided_at, created_at, started_at, status)
    SELECT d.*, d.at, 'PROCESSING' FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[],
        $6::bigint[], $7::bigint[], $8::bigint[]) AS d (id, station, hash, decision, reason, took, at, created)
    WHERE NOT EXISTS (SELECT FROM charging_requests WHERE request_id = d.id AND decision IS NOT NULL)
    ORDER BY d.id COLLATE "C"
    ON CONFLICT (request_id) DO UPDATE SET station_id = excluded.station_id,
        driver_token_hash = excluded.driver_token_hash, decision = excluded.decision, reason = excluded.reason,
        processing_time_ms = excluded.processing_time_ms, decided_at = excluded.decided_at,
        started_at = excluded.started_at, status = excluded.status
    WHERE held.decision IS NULL
    RETURNING *
)
INSERT INTO authorization_audit (writer, sequence, timestamp, request_id, station_id, driver_token_hash, status,
    reason, processing_time_ms)
SELECT $9, $10 + row_number() OVER (ORDER BY request_id), decided_at, request_id, station_id, driver_token_hash,
    decision, reason, processing_time_ms
FROM decided RETURNING request_id, sequence"""
ACCEPT: Final = """
INSERT INTO charging_requests (request_id, station_id, created_at, started_at, status)
SELECT d.*, d.created, 'QUEUED' FROM unnest($1::text[], $2::text[], $3::bigint[]) AS d (id, station, created)
ORDER BY d.id COLLATE "C" ON CONFLICT (request_id) DO NOTHING"""
LAST: Final = """
SELECT greatest(0, (SELECT max(sequence) FROM authorization_audit WHERE writer = $1),
    (SELECT max(sequence) FROM sink_positions WHERE writer = $1))"""
AUDIT_AFTER: Final = f"""
SELECT {AUDIT}, sequence FROM authorization_audit WHERE writer = $1 AND sequence > $2 ORDER BY sequence LIMIT $3"""  # noqa: S608 - constant
RECORDED: Final = f"""
SELECT {DECIDED}, attempts, started_at, processed_at, status FROM charging_requests
WHERE request_id = ANY($1::text[]) AND decision IS NOT NULL"""  # noqa: S608 - constant
FIND: Final = f"""
SELECT {DECIDED}, status, created_at, processed_at, attempts, last_status_code, last_error FROM charging_requests
WHERE request_id = $1"""  # noqa: S608 - constant
DECISIONS: Final = f"""
SELECT {AUDIT} FROM authorization_audit
WHERE ($1::text IS NULL OR lower(station_id) = lower($1)) AND ($2::text IS NULL OR status = $2)
    AND ($3::text IS NULL OR reason = $3) AND ($4::bigint IS NULL OR timestamp >= $4)
    AND ($5::bigint IS NULL OR timestamp < $5)
    AND ($6::bigint IS NULL OR timestamp <= $6 AND (timestamp, request_id) < ($6, $7::text))
ORDER BY timestamp DESC, request_id DESC LIMIT $8"""  # noqa: S608 - constant
_STATS: Final = f"""
SELECT lower(station_id), count(*), {", ".join(f"count(*) FILTER (WHERE status = '{status}')" for status in Status)}
FROM authorization_audit WHERE ($1::bigint IS NULL OR timestamp >= $1) AND ($2::bigint IS NULL OR timestamp < $2)
    AND ($3::text IS NULL OR lower(station_id) = lower($3)) AND ($4::text IS NULL OR lower(station_id) > lower($4))
GROUP BY lower(station_id)"""  # noqa: S608 - constants
STATS: Final = _STATS + " ORDER BY count(*) DESC, 1"
STATS_PAGE: Final = _STATS + " ORDER BY 1 LIMIT $5"
DEAD: Final = """
SELECT request_id, station_id, driver_token_hash, decision, reason, created_at, processed_at, attempts,
    last_status_code, last_error, sealed
FROM charging_requests WHERE status = 'FAILED' AND sealed IS NOT NULL"""
DEAD_PAGE: Final = (
    DEAD
    + """ AND ($1::bigint IS NULL OR processed_at >= $1) AND ($2::bigint IS NULL OR processed_at < $2)
    AND ($3::bigint IS NULL OR (processed_at, request_id) < ($3, $4::text))
ORDER BY processed_at DESC, request_id DESC LIMIT $5"""
)
RESTART: Final = """
UPDATE charging_requests SET status = 'PROCESSING', started_at = d.at, processed_at = NULL, attempts = 0,
    last_status_code = NULL, last_error = NULL
FROM unnest($1::text[], $2::bigint[]) AS d (id, at) WHERE request_id = d.id"""
ATTEMPTED: Final = """
UPDATE charging_requests SET attempts = d.attempts, last_status_code = d.code, last_error = d.error
FROM unnest($1::text[], $2::integer[], $3::integer[], $4::text[]) AS d (id, attempts, code, error)
WHERE request_id = d.id"""
FINISH: Final = """
UPDATE charging_requests SET status = d.status, attempts = d.attempts, last_status_code = d.code,
    last_error = d.error, processed_at = d.at, sealed = d.sealed
FROM unnest($1::text[], $2::text[], $3::integer[], $4::integer[], $5::text[], $6::bigint[], $7::bytea[])
    AS d (id, status, attempts, code, error, at, sealed)
WHERE request_id = d.id"""
CLAIM: Final = f"""
WITH old AS (
    DELETE FROM idempotency_keys WHERE key_digest IN (
        SELECT key_digest FROM idempotency_keys WHERE created_at <= $5 AND key_digest <> ALL($1::text[])
        ORDER BY created_at LIMIT $6 FOR UPDATE SKIP LOCKED)
)
INSERT INTO idempotency_keys AS held
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[])
ON CONFLICT (key_digest) DO UPDATE
SET body_digest = excluded.body_digest, request_id = excluded.request_id, created_at = excluded.created_at
WHERE held.created_at <= excluded.created_at - {CLAIM_MS}"""  # noqa: S608 - a number
HELD: Final = """
SELECT key_digest, body_digest, request_id, created_at FROM idempotency_keys WHERE key_digest = ANY($1::text[])"""
SINK_POSITION: Final = "SELECT sequence FROM sink_positions WHERE writer = $1 AND sink = $2"
SAVE_SINK_POSITION: Final = """
INSERT INTO sink_positions VALUES ($1, $2, $3)
ON CONFLICT (writer, sink) DO UPDATE SET sequence = excluded.sequence"""
REMEMBER: Final = "INSERT INTO service_facts VALUES ($1, $2) ON CONFLICT DO NOTHING"
FACT: Final = "SELECT value FROM service_facts WHERE name = $1"
REPLACE_FACT: Final = (
    "INSERT INTO service_facts VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
)
SEALED: Final = """
SELECT DISTINCT substring(sealed FROM 1 FOR $1::integer) FROM charging_requests
WHERE status = 'FAILED' AND sealed IS NOT NULL"""
DEAD_LETTERS: Final = "SELECT count(*) FROM charging_requests WHERE status = 'FAILED' AND sealed IS NOT NULL"
DISCARD: Final = """
UPDATE charging_requests SET sealed = NULL
WHERE request_id = ANY($1::text[]) AND status = 'FAILED' AND sealed IS NOT NULL RETURNING request_id"""
FAIL_LOST: Final = """
UPDATE charging_requests r SET status = 'FAILED', processed_at = $3, last_error = 'lost_with_the_queue'
FROM authorization_audit a
WHERE r.status = 'PROCESSING' AND NOT EXISTS (SELECT FROM unnest($2::text[]) AS kept (id) WHERE id = r.request_id)
    AND a.timestamp = r.decided_at AND a.request_id = r.request_id AND a.writer = $1
RETURNING r.request_id"""
