-- A request's decision is in its audit row only. {decision}, {recorded}, … are the fields of the records.

-- name: insert_audit
INSERT INTO authorization_audit ({decision}) VALUES {rows}
ON CONFLICT (request_id) DO NOTHING RETURNING request_id, sequence

-- name: insert_new_audit
INSERT INTO authorization_audit ({decision}) VALUES {rows}

-- name: insert_requests
-- A conflict is with a request that was only accepted: one that was decided has its audit row, and is left out before.
INSERT INTO charging_requests (request_id, station_id, driver_token_hash, created_at, started_at, status, client)
VALUES {rows}
ON CONFLICT (request_id) DO UPDATE SET station_id = excluded.station_id,
    driver_token_hash = excluded.driver_token_hash, started_at = excluded.started_at, status = excluded.status,
    client = ifnull(nullif(excluded.client, ''), client)

-- name: accept
INSERT INTO charging_requests (request_id, station_id, driver_token_hash, created_at, started_at, status, client)
VALUES {rows}
ON CONFLICT (request_id) DO NOTHING

-- name: recorded
-- A request that is old was dropped, and its audit row stays: it has its decision, and its callback has ended.
SELECT {of_audit}, {recorded} FROM authorization_audit a LEFT JOIN charging_requests r USING (request_id)
WHERE a.request_id = ?

-- name: restart
UPDATE charging_requests SET status = 'PROCESSING', started_at = ?, processed_at = NULL, attempts = 0,
    last_status_code = NULL, last_error = NULL, history = ifnull(?, history)
WHERE request_id = ?

-- name: attempted
UPDATE charging_requests SET attempts = ?, last_status_code = ?, last_error = ?, history = ? WHERE request_id = ?

-- name: finish
WITH done ({finished}) AS (VALUES {rows})
UPDATE charging_requests SET status = done.status, processed_at = done.at, attempts = done.attempts,
    last_status_code = done.status_code, last_error = done.error, sealed = done.sealed, history = done.history
FROM done WHERE charging_requests.request_id = done.request_id

-- name: fail_lost
UPDATE charging_requests SET status = 'FAILED', processed_at = ?, last_error = 'lost_with_the_queue'
WHERE status = 'PROCESSING' AND request_id NOT IN (SELECT value FROM json_each(?))

-- name: find
SELECT {of_request}, {request} FROM charging_requests r LEFT JOIN authorization_audit a USING (request_id)
WHERE r.request_id = ?

-- name: find_all
SELECT {of_request}, {request} FROM charging_requests r LEFT JOIN authorization_audit a USING (request_id)
WHERE r.request_id IN (SELECT value FROM json_each(?))

-- name: queued
SELECT {of_request}, {request} FROM charging_requests r LEFT JOIN authorization_audit a USING (request_id)
WHERE r.status = 'QUEUED' AND r.request_id < ? ORDER BY r.request_id DESC LIMIT ?

-- name: decisions
SELECT {of_audit} FROM {rows} WHERE {conditions} ORDER BY {place}.timestamp DESC, {place}.request_id DESC LIMIT ?

-- name: decision_some_way_back
SELECT {place}.timestamp FROM {rows} WHERE {conditions} ORDER BY {place}.timestamp DESC LIMIT 1 OFFSET ?

-- name: station_stats
SELECT lower(a.station_id), count(*), {counts} FROM {rows} WHERE {conditions}
GROUP BY a.station_id ORDER BY {order}

-- name: latest_delivered
SELECT processed_at - created_at FROM charging_requests INDEXED BY finished_requests
WHERE processed_at NOTNULL AND sealed ISNULL AND processed_at >= ? AND +status <> 'FAILED'
ORDER BY processed_at DESC LIMIT ?

-- name: dead_letters
SELECT {dead_letter} FROM charging_requests r JOIN authorization_audit a USING (request_id)
WHERE r.status = 'FAILED' AND r.sealed NOTNULL AND {conditions}
ORDER BY r.processed_at DESC, r.request_id DESC LIMIT ?

-- name: count_dead_letters
SELECT ifnull(sum(letters), 0) FROM dead_letter_counts

-- name: discard
UPDATE charging_requests SET sealed = NULL WHERE request_id = ? AND status = 'FAILED' AND sealed NOTNULL

-- name: sealed_prefixes
SELECT DISTINCT ifnull(substr(CAST(sealed_with AS BLOB), 1, ?), x'') FROM dead_letter_counts WHERE letters > 0

-- name: audit_after
SELECT a.sequence, {of_audit} FROM authorization_audit a WHERE a.sequence > ? ORDER BY a.sequence LIMIT ?

-- name: audit_beside
-- All rows of each millisecond that has more rows than were given. The index by time counts them: it is read in order,
-- while the index by station would be read in many places.
WITH crowded AS MATERIALIZED (
    SELECT CAST(key AS INTEGER) AS at FROM json_each(?)
    WHERE value < (SELECT count(*) FROM authorization_audit WHERE timestamp = CAST(key AS INTEGER))
)
SELECT a.sequence, {of_audit} FROM crowded CROSS JOIN authorization_audit a ON a.timestamp = at LIMIT ?

-- name: audit_between
SELECT a.sequence, {of_audit} FROM authorization_audit a WHERE {conditions} ORDER BY a.timestamp, a.request_id LIMIT ?

-- name: count_old
SELECT count(*) FROM authorization_audit a LEFT JOIN charging_requests r USING (request_id)
WHERE a.timestamp < ? AND +a.sequence <= ?
    AND (r.request_id ISNULL OR r.processed_at NOTNULL AND r.sealed ISNULL)

-- name: old_rows
-- Rows that are not counted yet stay.
SELECT a.timestamp, a.sequence, a.request_id, (r.request_id ISNULL OR r.processed_at NOTNULL AND r.sealed ISNULL)
    AND (a.sequence <= ? OR a.sequence > (SELECT ifnull(max(sequence), 0) FROM audit_chain))
FROM authorization_audit a LEFT JOIN charging_requests r USING (request_id)
WHERE (a.timestamp, a.sequence) > (?, ?) AND a.timestamp < ? AND +a.sequence <= ?
    AND a.sequence < (SELECT min(first) FROM uncounted_decisions)
ORDER BY a.timestamp, a.sequence LIMIT ?

-- name: drop_rows
DELETE FROM authorization_audit WHERE sequence IN ({rows})

-- name: drop_requests
DELETE FROM charging_requests WHERE request_id IN ({rows})

-- name: sink_position
SELECT sequence FROM sink_positions WHERE sink = ?

-- name: save_sink_position
INSERT OR REPLACE INTO sink_positions VALUES (?, ?)

-- name: drop_old_claims
DELETE FROM idempotency_keys WHERE key_digest IN
    (SELECT key_digest FROM idempotency_keys WHERE created_at <= ? ORDER BY created_at LIMIT ?)

-- name: put_claim
INSERT INTO idempotency_keys (key_digest, {claim}) VALUES (?, {claim_values})
ON CONFLICT (key_digest) DO UPDATE SET ({claim}) = ({excluded_claim}) WHERE created_at <= ?

-- name: claim
SELECT {claim} FROM idempotency_keys WHERE key_digest = ?

-- name: release
DELETE FROM idempotency_keys WHERE key_digest = ? AND request_id = ?

-- name: replace
UPDATE idempotency_keys SET ({claim}) = ({claim_values}) WHERE key_digest = ? AND ({claim}) = ({claim_values})

-- name: put_value_if_absent
INSERT INTO service_facts VALUES (?, ?) ON CONFLICT DO NOTHING

-- name: put_value
INSERT OR REPLACE INTO service_facts VALUES (?, ?)

-- name: value
SELECT value FROM service_facts WHERE name = ?

-- name: values_of
SELECT name, value FROM service_facts WHERE substr(name, 1, length(?1)) = ?1

-- name: drop_value
DELETE FROM service_facts WHERE name = ?
