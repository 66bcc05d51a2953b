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

-- name: gone_of_all
-- What is counted of rows that were dropped: all counts before the first row, less those of rows that stayed.
SELECT c.start, c.status, {gone_of_all} FROM decision_counts c LEFT JOIN (
    SELECT timestamp - timestamp % {minute} AS start, status, {rows_of_all} FROM authorization_audit
    WHERE timestamp < ?1 - ?1 % {minute} + {minute} GROUP BY 1, 2
) r ON r.start = c.start AND r.status = c.status
WHERE c.unit = {minute} AND c.start < ?1 AND (c.start, c.status) > (?2, ?3) AND c.decisions > ifnull(r.decisions, 0)
ORDER BY c.start, c.status LIMIT ?4

-- name: gone_of_stations
SELECT c.start, c.station_id, {gone_of_station} FROM station_counts c LEFT JOIN (
    SELECT timestamp - timestamp % {hour} AS start, lower(station_id) AS station_id, {rows_of_station}
    FROM authorization_audit WHERE timestamp < ?1 - ?1 % {hour} + {hour} GROUP BY 1, 2
) r ON r.start = c.start AND r.station_id = c.station_id
WHERE c.unit = {hour} AND c.start < ?1 AND (c.start, c.station_id) > (?2, ?3) AND c.decisions > ifnull(r.decisions, 0)
ORDER BY c.start, c.station_id LIMIT ?4

-- name: values
SELECT name, value FROM service_facts
