-- name: take_turn
INSERT INTO turns AS held VALUES ('analysis', $1::text, $2::bigint + $3::bigint)
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until
WHERE held.holder = $1 OR held.until <= $2 OR held.until > $2 + $3

-- name: has_turn
SELECT true FROM turns WHERE name = 'analysis' AND holder = $1 FOR UPDATE

-- name: erring_stations
SELECT station_id, sum(unknown + invalid)::bigint FROM station_counts WHERE unit = {hour} AND start >= $1
GROUP BY station_id HAVING sum(unknown + invalid) >= $2 ORDER BY 2 DESC, 1 LIMIT $3

-- name: silent_stations
WITH usual AS MATERIALIZED (
    SELECT c.station_id, sum(c.decisions)::bigint AS decisions,
        sum(c.decisions) FILTER (WHERE h.start = ANY($2::bigint[])) AS week_before
    FROM unnest($1::bigint[]) AS h (start) JOIN station_counts c ON c.unit = {hour} AND c.start = h.start
    GROUP BY c.station_id
)
SELECT u.station_id, u.decisions FROM usual u
WHERE u.decisions >= $4::float8 * cardinality($1) / cardinality($2) AND u.week_before >= $4
    AND NOT EXISTS (SELECT FROM unnest($3::bigint[]) AS h (start) CROSS JOIN LATERAL (
        SELECT FROM station_counts n
        WHERE n.unit = {hour} AND n.start = h.start AND n.station_id = u.station_id OFFSET 0) n)
ORDER BY 2 DESC, 1 LIMIT $5

-- name: denied_tokens
SELECT driver_token_hash, count(DISTINCT lower(station_id)), max(request_id COLLATE "C") FROM (
    SELECT driver_token_hash, station_id, request_id FROM authorization_audit
    WHERE status = 'not_allowed' AND timestamp >= $1 AND timestamp < $2 ORDER BY timestamp DESC LIMIT 100000) d
GROUP BY driver_token_hash HAVING count(DISTINCT lower(station_id)) >= $3 ORDER BY 2 DESC, 1 LIMIT $4

-- name: latest_request
SELECT request_id FROM authorization_audit WHERE lower(station_id) = lower($1) ORDER BY timestamp DESC LIMIT 1

-- name: open
SELECT {anomaly} FROM anomalies WHERE until IS NULL

-- name: begin
INSERT INTO anomalies ({anomaly}, told) VALUES ({values}, $10) ON CONFLICT DO NOTHING

-- name: go_on
UPDATE anomalies SET description = $1, value = $2, threshold = $3 WHERE id = $4 AND until IS NULL

-- name: end
UPDATE anomalies SET until = $1, told = CASE WHEN $2::boolean THEN told ELSE 2 END WHERE id = $3 AND until IS NULL

-- name: untold
SELECT {anomaly}, told FROM anomalies WHERE told = 0 OR (told = 1 AND until IS NOT NULL) ORDER BY since, id LIMIT $1

-- name: told
UPDATE anomalies SET told = $1 WHERE id = $2 AND told < $1

-- name: list
SELECT {anomaly} FROM anomalies
WHERE ($1::text IS NULL OR type = $1) AND ($2::boolean IS NULL OR (until IS NULL) = $2)
    AND ($3::bigint IS NULL OR (since, id) < ($3, $4::text))
ORDER BY since DESC, id DESC LIMIT $5

-- name: count_open
SELECT type, count(*) FROM anomalies WHERE until IS NULL GROUP BY type

-- name: drop_ended
DELETE FROM anomalies WHERE id IN (
    SELECT id FROM anomalies WHERE until IS NOT NULL AND until < $1 ORDER BY until LIMIT $2)
