-- name: insert
-- A replay has its request's id and another time.
INSERT INTO {table} (request_id, station_id, accepted_at, body, deliveries)
SELECT *, $5 FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bytea[]) ON CONFLICT DO NOTHING

-- name: count
SELECT count(*) FROM (SELECT FROM {table} WHERE lease_until IS NULL LIMIT $1) AS free

-- name: take
WITH late AS (
    SELECT seq FROM {table} WHERE lease_until < now() AND $4 ORDER BY lease_until LIMIT $1 FOR UPDATE SKIP LOCKED
), free AS (
    SELECT seq FROM {table} WHERE lease_until IS NULL ORDER BY seq LIMIT $1 - (SELECT count(*) FROM late)
    FOR UPDATE SKIP LOCKED
)
UPDATE {table} SET lease_until = now() + make_interval(secs => $2), lease = $3, deliveries = deliveries + 1
WHERE seq = ANY(ARRAY(SELECT seq FROM late UNION ALL SELECT seq FROM free))
RETURNING seq, request_id, station_id, accepted_at, body, deliveries

-- name: taken
SELECT seq, request_id, station_id, accepted_at, body, deliveries FROM {table}
WHERE lease = $1 AND lease_until IS NOT NULL

-- name: delete
DELETE FROM {table} WHERE (seq, lease) IN (SELECT * FROM unnest($1::bigint[], $2::uuid[]))
AND lease_until IS NOT NULL

-- name: renew
UPDATE {table} SET lease_until = now() + make_interval(secs => $3)
WHERE (seq, lease) IN (SELECT * FROM unnest($1::bigint[], $2::uuid[])) AND lease_until IS NOT NULL
RETURNING seq, lease

-- name: release
UPDATE {table} SET lease_until = NULL, deliveries = deliveries - $3::integer
WHERE (seq, lease) IN (SELECT * FROM unnest($1::bigint[], $2::uuid[])) AND lease_until IS NOT NULL

-- name: notify
NOTIFY {table}

-- name: find
SELECT station_id, accepted_at, coalesce(lease_until >= now(), false), seq, body FROM {table}
WHERE request_id = $1 ORDER BY accepted_at LIMIT 1

-- name: unacked
SELECT request_id, station_id, accepted_at, coalesce(lease_until >= now(), false), seq, body FROM {table}
WHERE request_id < $1 ORDER BY request_id DESC LIMIT $2

-- name: depth
SELECT count(*), min(accepted_at) FROM {table} WHERE lease_until IS NULL OR lease_until < now()
