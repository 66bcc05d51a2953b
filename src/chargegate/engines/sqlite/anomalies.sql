-- name: take_turn
INSERT INTO turns VALUES ('analysis', ?1, ?2 + ?3)
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until
WHERE holder = ?1 OR until <= ?2 OR until > ?2 + ?3

-- name: has_turn
SELECT 1 FROM turns WHERE name = 'analysis' AND holder = ?

-- name: erring_stations
SELECT station_id, sum(unknown + invalid) AS wrong FROM station_counts WHERE unit = {hour} AND start >= ?
GROUP BY station_id HAVING wrong >= ? ORDER BY wrong DESC, station_id LIMIT ?

-- name: silent_stations
SELECT c.station_id, sum(c.decisions) AS usual
FROM json_each(?1) h CROSS JOIN station_counts c
WHERE c.unit = {hour} AND c.start = h.value
GROUP BY c.station_id
HAVING usual >= ?4 * json_array_length(?1) / json_array_length(?2)
    AND ?4 <= (SELECT ifnull(sum(w.decisions), 0) FROM json_each(?2) h CROSS JOIN station_counts w
        WHERE w.unit = {hour} AND w.start = h.value AND w.station_id = c.station_id)
    AND NOT EXISTS (SELECT 1 FROM json_each(?3) h CROSS JOIN station_counts n
        WHERE n.unit = {hour} AND n.start = h.value AND n.station_id = c.station_id)
ORDER BY usual DESC, c.station_id LIMIT ?5

-- name: denied_tokens
SELECT driver_token_hash, count(DISTINCT lower(station_id)) AS stations, max(request_id) FROM (
    SELECT driver_token_hash, station_id, request_id FROM authorization_audit
    WHERE status = 'not_allowed' AND timestamp >= ? AND timestamp < ? ORDER BY timestamp DESC LIMIT 100000)
GROUP BY driver_token_hash HAVING stations >= ? ORDER BY stations DESC, driver_token_hash LIMIT ?

-- name: latest_request
SELECT request_id FROM authorization_audit WHERE station_id = ? ORDER BY timestamp DESC LIMIT 1

-- name: open
SELECT {anomaly} FROM anomalies WHERE until IS NULL

-- name: begin
INSERT INTO anomalies ({anomaly}, told) VALUES ({values}, ?) ON CONFLICT DO NOTHING

-- name: go_on
UPDATE anomalies SET description = ?, value = ?, threshold = ? WHERE id = ? AND until IS NULL

-- name: end
UPDATE anomalies SET until = ?, told = CASE WHEN ? THEN told ELSE 2 END WHERE id = ? AND until IS NULL

-- name: untold
SELECT {anomaly}, told FROM anomalies WHERE told = 0 OR (told = 1 AND until IS NOT NULL) ORDER BY since, id LIMIT ?

-- name: told
UPDATE anomalies SET told = ?1 WHERE id = ?2 AND told < ?1

-- name: list
SELECT {anomaly} FROM anomalies WHERE {conditions} ORDER BY since DESC, id DESC LIMIT ?

-- name: count_open
SELECT type, count(*) FROM anomalies WHERE until IS NULL GROUP BY type

-- name: drop_ended
DELETE FROM anomalies WHERE id IN (SELECT id FROM anomalies WHERE until IS NOT NULL AND until < ? ORDER BY until LIMIT ?)
