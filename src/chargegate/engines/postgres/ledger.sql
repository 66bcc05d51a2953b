-- Rows go in as one array a column. {decided} are a decision's columns in charging_requests, {decision} those in
-- authorization_audit.

-- name: record
-- What was decided before is left out rather than left to the conflict: a conflict locks its row, in no order that an
-- UPDATE elsewhere would keep to. The rest is inserted by all processes in one order. The writer's turn $12 ends with the
-- transaction, see last_sequence; if another one had it, nothing is written.
WITH turn AS (
    UPDATE service_facts SET value = value::bigint + 1 WHERE name = 'audit turn ' || $10 AND value = $12::bigint::text
    RETURNING name
), decided AS (
    INSERT INTO charging_requests AS held ({decided}, created_at, client, started_at, status)
    SELECT d.*, d.at, 'PROCESSING' FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[],
        $6::bigint[], $7::bigint[], $8::bigint[], $9::text[])
        AS d (id, station, hash, decision, reason, took, at, created, client)
        CROSS JOIN turn
    WHERE NOT EXISTS (SELECT FROM charging_requests WHERE request_id = d.id AND decision IS NOT NULL)
    ORDER BY d.id COLLATE "C"
    ON CONFLICT (request_id) DO UPDATE
    SET ({decided}, started_at, status, client) = ROW({excluded}, excluded.started_at, excluded.status,
        coalesce(nullif(excluded.client, ''), held.client))
    WHERE held.decision IS NULL
    RETURNING *
)
INSERT INTO authorization_audit (writer, sequence, {decision})
SELECT $10, $11 + row_number() OVER (ORDER BY request_id), {decided} FROM decided RETURNING request_id, sequence

-- name: turn
-- Wait until no transaction of this writer is under way, and let none that was given up begin later. Releases before
-- 0011 had the lock instead.
INSERT INTO service_facts AS held SELECT 'audit turn ' || $1, '1'
FROM (SELECT pg_advisory_xact_lock(hashtext('audit writer'), hashtext($1::text)) OFFSET 0) AS older
ON CONFLICT (name) DO UPDATE SET value = held.value::bigint + 1 RETURNING value::bigint

-- name: last_sequence
-- In the writer's turn: a commit whose answer was lost may still be under way, and its numbers are not seen before.
SELECT greatest(0, (SELECT max(sequence) FROM authorization_audit WHERE writer = $1),
    (SELECT max(sequence) FROM sink_positions WHERE writer = $1))

-- name: audit_after
SELECT {decision}, sequence FROM authorization_audit WHERE writer = $1 AND sequence > $2 ORDER BY sequence LIMIT $3

-- name: audit_beside
WITH moments AS MATERIALIZED (
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::bigint[]) AS m (station, at, decided, given)
    WHERE given < (
        SELECT count(*) FROM authorization_audit WHERE lower(station_id) = station AND timestamp = at AND status = decided
    )
)
SELECT {decision}, sequence, writer FROM moments JOIN authorization_audit
ON lower(station_id) = station AND timestamp = at AND status = decided LIMIT $5

-- name: audit_between
SELECT {decision}, sequence, writer FROM authorization_audit a
WHERE ($2::bigint IS NULL OR timestamp >= $2) AND ($3::bigint IS NULL OR timestamp < $3)
    AND ($4::bigint IS NULL OR timestamp >= $4 AND (timestamp, request_id) > ($4, $5::text))
    AND NOT EXISTS (SELECT FROM sink_positions p
        WHERE p.writer = a.writer AND p.sink = $1::text AND p.sequence < a.sequence)
ORDER BY timestamp, request_id LIMIT $6

-- name: old_months
-- A partition that somebody else attached has another name.
SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'authorization_audit'::regclass AND c.relname < $1
    AND c.relname ~ '^authorization_audit_[0-9]{4}_[0-9]{2}$'
ORDER BY 1

-- name: sink_position
SELECT sequence FROM sink_positions WHERE writer = $1 AND sink = $2

-- name: save_sink_position
INSERT INTO sink_positions VALUES ($1, $2, $3)
ON CONFLICT (writer, sink) DO UPDATE SET sequence = excluded.sequence

-- name: accept
-- $5 is for synchronous_commit: where it is off, nobody waits for the disk, and a crash may undo it.
INSERT INTO charging_requests (request_id, station_id, created_at, client, started_at, status)
SELECT d.*, d.created, 'QUEUED'
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[]) AS d (id, station, created, client)
    CROSS JOIN (SELECT set_config('synchronous_commit', coalesce($5, current_setting('synchronous_commit')), true)
        OFFSET 0) AS waits
ORDER BY d.id COLLATE "C" ON CONFLICT (request_id) DO NOTHING

-- name: recorded
SELECT {decided}, {recorded} FROM charging_requests
WHERE request_id = ANY($1::text[]) AND decision IS NOT NULL

-- name: restart
UPDATE charging_requests r SET status = 'PROCESSING', started_at = d.at, processed_at = NULL, attempts = 0,
    last_status_code = NULL, last_error = NULL, history = coalesce(d.history, r.history)
FROM unnest($1::text[], $2::bigint[], $3::text[]) AS d (id, at, history) WHERE r.request_id = d.id

-- name: attempted
UPDATE charging_requests SET attempts = d.attempts, last_status_code = d.code, last_error = d.error,
    history = d.history
FROM unnest($1::text[], $2::integer[], $3::integer[], $4::text[], $5::text[]) AS d (id, attempts, code, error, history)
WHERE request_id = d.id

-- name: finish
UPDATE charging_requests SET status = d.status, attempts = d.attempts, last_status_code = d.code,
    last_error = d.error, processed_at = d.at, sealed = d.sealed, history = d.history
FROM unnest($1::text[], $2::text[], $3::integer[], $4::integer[], $5::text[], $6::bigint[], $7::bytea[], $8::text[])
    AS d (id, status, attempts, code, error, at, sealed, history)
WHERE request_id = d.id

-- name: fail_lost
UPDATE charging_requests r SET status = 'FAILED', processed_at = $3, last_error = 'lost_with_the_queue'
FROM authorization_audit a
WHERE r.status = 'PROCESSING' AND NOT EXISTS (SELECT FROM unnest($2::text[]) AS kept (id) WHERE id = r.request_id)
    AND a.timestamp = r.decided_at AND a.request_id = r.request_id AND a.writer = $1

-- name: find
SELECT {decided}, {request} FROM charging_requests WHERE request_id = $1

-- name: find_all
SELECT {decided}, {request} FROM charging_requests WHERE request_id = ANY($1::text[])

-- name: queued
SELECT {decided}, {request} FROM charging_requests
WHERE status = 'QUEUED' AND request_id < $1 ORDER BY request_id DESC LIMIT $2

-- name: decisions
-- An audit row does not say whose it is; its request does.
SELECT {decision} FROM authorization_audit a
WHERE ($1::text IS NULL OR lower(station_id) = lower($1)) AND ($2::text IS NULL OR status = $2)
    AND ($3::bigint IS NULL OR timestamp >= $3) AND ($4::bigint IS NULL OR timestamp < $4)
    AND ($5::text IS NULL OR reason = $5)
    AND ($6::text IS NULL
        OR EXISTS (SELECT FROM charging_requests r WHERE r.request_id = a.request_id AND r.client = $6))
    AND ($7::bigint IS NULL OR timestamp <= $7 AND (timestamp, request_id) < ($7, $8::text))
ORDER BY timestamp DESC, request_id DESC LIMIT $9

-- name: decisions_of_client
-- As above, by the index of the client.
SELECT {of_audit} FROM charging_requests r CROSS JOIN LATERAL (
    SELECT * FROM authorization_audit WHERE timestamp = r.decided_at AND request_id = r.request_id OFFSET 0) a
WHERE r.client = $6::text AND r.client <> '' AND r.decided_at IS NOT NULL
    AND ($1::text IS NULL OR lower(a.station_id) = lower($1)) AND ($2::text IS NULL OR a.status = $2)
    AND ($3::bigint IS NULL OR r.decided_at >= $3) AND ($4::bigint IS NULL OR r.decided_at < $4)
    AND ($5::text IS NULL OR a.reason = $5)
    AND ($7::bigint IS NULL OR r.decided_at <= $7 AND (r.decided_at, r.request_id) < ($7, $8::text))
ORDER BY r.decided_at DESC, r.request_id DESC LIMIT $9

-- name: client_is_rarer
-- Whether the client's decisions are fewer than those that match the other filters: the newest 200 reach further back.
SELECT coalesce((
    SELECT decided_at FROM charging_requests
    WHERE client = $5::text AND client <> '' AND decided_at IS NOT NULL AND ($4::bigint IS NULL OR decided_at < $4)
    ORDER BY decided_at DESC OFFSET 200 LIMIT 1
), -1) <= coalesce((
    SELECT timestamp FROM authorization_audit
    WHERE ($1::text IS NULL OR lower(station_id) = lower($1)) AND ($2::text IS NULL OR status = $2)
        AND ($3::text IS NULL OR reason = $3) AND ($4::bigint IS NULL OR timestamp < $4)
    ORDER BY timestamp DESC OFFSET 200 LIMIT 1
), -1)

-- name: station_stats
-- Without a limit the busiest station comes first.
SELECT lower(station_id), count(*), {counts_by_status} FROM authorization_audit a
WHERE ($1::bigint IS NULL OR timestamp >= $1) AND ($2::bigint IS NULL OR timestamp < $2)
    AND ($3::text IS NULL OR lower(station_id) = lower($3)) AND ($4::text IS NULL OR lower(station_id) > lower($4))
    AND ($6::text IS NULL
        OR EXISTS (SELECT FROM charging_requests r WHERE r.request_id = a.request_id AND r.client = $6))
GROUP BY lower(station_id) ORDER BY CASE WHEN $5::bigint IS NULL THEN count(*) END DESC, 1 LIMIT $5

-- name: latest_delivered
SELECT processed_at - created_at FROM charging_requests
WHERE processed_at IS NOT NULL AND sealed IS NULL AND processed_at >= $1 AND status <> 'FAILED'
ORDER BY processed_at DESC, request_id DESC LIMIT $2

-- name: dead_letters
SELECT {dead_letter} FROM charging_requests WHERE status = 'FAILED' AND sealed IS NOT NULL
    AND ($1::bigint IS NULL OR processed_at >= $1) AND ($2::bigint IS NULL OR processed_at < $2)
    AND ($3::bigint IS NULL OR (processed_at, request_id) < ($3, $4::text)) AND ($6::text IS NULL OR client = $6)
ORDER BY processed_at DESC, request_id DESC LIMIT $5

-- name: dead_letter
SELECT {dead_letter} FROM charging_requests WHERE status = 'FAILED' AND sealed IS NOT NULL AND request_id = $1

-- name: count_dead_letters
SELECT coalesce(sum(letters), 0)::bigint FROM dead_letter_counts

-- name: discard
UPDATE charging_requests SET sealed = NULL
WHERE request_id = ANY($1::text[]) AND status = 'FAILED' AND sealed IS NOT NULL

-- name: sealed_prefixes
SELECT substring(sealed_with FROM 1 FOR $1::integer) FROM dead_letter_counts GROUP BY 1 HAVING sum(letters) > 0

-- name: claim
-- Claims that ran out before $5 are dropped, at most $6 of them.
WITH old AS (
    DELETE FROM idempotency_keys WHERE key_digest IN (
        SELECT key_digest FROM idempotency_keys WHERE created_at <= $5 AND key_digest <> ALL($1::text[])
        ORDER BY created_at LIMIT $6 FOR UPDATE SKIP LOCKED)
)
INSERT INTO idempotency_keys AS held (key_digest, {claim})
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[])
ON CONFLICT (key_digest) DO UPDATE
SET body_digest = excluded.body_digest, request_id = excluded.request_id, created_at = excluded.created_at
WHERE held.created_at <= excluded.created_at - {claim_ms}

-- name: claims
SELECT key_digest, {claim} FROM idempotency_keys WHERE key_digest = ANY($1::text[])

-- name: release
DELETE FROM idempotency_keys USING unnest($1::text[], $2::text[]) AS d (digest, id)
WHERE key_digest = d.digest AND request_id = d.id

-- name: replace
UPDATE idempotency_keys SET body_digest = $2, request_id = $3, created_at = $4
WHERE key_digest = $1 AND (body_digest, request_id, created_at) = ($5, $6, $7)

-- name: put_value_if_absent
INSERT INTO service_facts VALUES ($1, $2) ON CONFLICT DO NOTHING

-- name: value
SELECT value FROM service_facts WHERE name = $1

-- name: put_value
INSERT INTO service_facts VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value

-- name: values_of
SELECT name, value FROM service_facts WHERE starts_with(name, $1)

-- name: drop_values
DELETE FROM service_facts WHERE name = ANY ($1::text[])
