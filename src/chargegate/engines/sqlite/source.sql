-- name: requests
-- A request that is old was dropped, and its audit row stays.
SELECT {of_request}, {stored}
FROM (
    SELECT request_id FROM charging_requests WHERE request_id > ?1
    UNION SELECT request_id FROM authorization_audit WHERE request_id > ?1 ORDER BY request_id LIMIT ?2
) page
LEFT JOIN charging_requests r USING (request_id) LEFT JOIN authorization_audit a USING (request_id)
ORDER BY page.request_id

-- name: waiting
SELECT seq, request_id, station_id, accepted_at, CAST(body AS BLOB) FROM queue WHERE seq > ? ORDER BY seq LIMIT ?

-- name: claims
SELECT key_digest, {claim} FROM idempotency_keys
WHERE key_digest > ? AND created_at > ? ORDER BY key_digest LIMIT ?

-- name: values
SELECT name, value FROM service_facts
