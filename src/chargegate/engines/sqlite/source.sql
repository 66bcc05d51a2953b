-- name: requests
SELECT {of_request}, {stored}
FROM charging_requests r LEFT JOIN authorization_audit a USING (request_id)
WHERE r.request_id > ? ORDER BY r.request_id LIMIT ?

-- name: waiting
SELECT seq, request_id, station_id, accepted_at, CAST(body AS BLOB) FROM queue WHERE seq > ? ORDER BY seq LIMIT ?

-- name: claims
SELECT key_digest, {claim} FROM idempotency_keys
WHERE key_digest > ? AND created_at > ? ORDER BY key_digest LIMIT ?

-- name: values
SELECT name, value FROM service_facts
