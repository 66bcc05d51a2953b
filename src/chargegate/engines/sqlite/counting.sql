-- {of_station} are the counts of a station, {of_all} those of all decisions. The "+" before a column keeps its index
-- from being used: the other one is known to be better.

-- name: uncounted
SELECT first, last, since FROM uncounted_decisions ORDER BY last LIMIT 1

-- name: page_end
SELECT max(sequence), count(*), min(timestamp) FROM (
    SELECT sequence, timestamp FROM authorization_audit WHERE sequence BETWEEN ? AND ? ORDER BY sequence LIMIT ?)

-- name: count_stations
INSERT INTO station_counts AS held (unit, start, station_id, {of_station})
SELECT {hour}, timestamp - timestamp % {hour}, lower(station_id), {rows_of_station}
FROM authorization_audit WHERE sequence BETWEEN ? AND ? AND +timestamp >= ? GROUP BY 2, 3
ON CONFLICT DO UPDATE SET {add_of_station}

-- name: count_late
-- Rows of hours that are in the longer units already. One unit after the other, because rows that are next to each other
-- are found quickly.
WITH g AS MATERIALIZED (
    SELECT timestamp - timestamp % {hour} AS at, lower(station_id) AS station_id, {rows_of_station}
    FROM authorization_audit WHERE sequence BETWEEN ? AND ? AND +timestamp >= ? GROUP BY 1, 2
)
INSERT INTO station_counts AS held (unit, start, station_id, {of_station})
SELECT u.value, g.at - g.at % u.value, g.station_id, {of_station}
FROM json_each(?) u CROSS JOIN g
WHERE (g.at, g.station_id) <= (?, ?)
ON CONFLICT DO UPDATE SET {add_of_station}

-- name: count_all
INSERT INTO decision_counts AS held (unit, start, status, {of_all})
SELECT u.value, g.at - g.at % u.value, g.status, {of_all}
FROM (SELECT timestamp - timestamp % {minute} AS at, status, {rows_of_all}
    FROM authorization_audit WHERE sequence BETWEEN ? AND ? AND +timestamp >= ? GROUP BY 1, 2) g
CROSS JOIN json_each(?) u
WHERE true
ON CONFLICT DO UPDATE SET {add_of_all}

-- name: know_stations
INSERT INTO known_stations SELECT DISTINCT lower(station_id) FROM authorization_audit
WHERE sequence BETWEEN ? AND ? AND +timestamp >= ? ON CONFLICT DO NOTHING

-- name: counted_to
UPDATE uncounted_decisions SET first = ? WHERE last = ?

-- name: counted
DELETE FROM uncounted_decisions WHERE last = ?

-- name: added_up
SELECT start, station_id FROM stations_added_up

-- name: newest_hour
SELECT max(start) FROM station_counts WHERE unit = {hour} AND start <= ?

-- name: last_to_add
SELECT start, station_id FROM (
    SELECT start, station_id FROM station_counts WHERE unit = {hour} AND (start, station_id) > (?, ?) AND start < ?
    ORDER BY start, station_id LIMIT ?
) ORDER BY start DESC, station_id DESC LIMIT 1

-- name: add_up
INSERT INTO station_counts AS held (unit, start, station_id, {of_station})
SELECT u.value, start - start % u.value, station_id, {of_station}
FROM json_each(?) u CROSS JOIN station_counts
WHERE unit = {hour} AND (start, station_id) > (?, ?) AND (start, station_id) <= (?, ?)
ON CONFLICT DO UPDATE SET {add_of_station}

-- name: added_up_to
UPDATE stations_added_up SET start = ?, station_id = ?

-- name: drop_all
-- Hours stay until those of their stations are in the longer units, and so do those of stations.
DELETE FROM decision_counts WHERE (unit, start, status) IN (
    SELECT unit, start, status FROM decision_counts WHERE unit = ?1 AND start <= ?2 - ?1
        AND (unit <> {hour} OR start < (SELECT start FROM stations_added_up))
    ORDER BY start LIMIT ?3)

-- name: drop_stations
DELETE FROM station_counts WHERE (unit, start, station_id) IN (
    SELECT unit, start, station_id FROM station_counts WHERE unit = ?1 AND start <= ?2 - ?1
        AND (unit > {hour} OR (start, station_id) <= (SELECT start, station_id FROM stations_added_up))
    ORDER BY start LIMIT ?3)

-- name: drop_callbacks
DELETE FROM callback_counts WHERE (start, client) IN (
    SELECT start, client FROM callback_counts WHERE start <= ?2 - ?1 ORDER BY start LIMIT ?3)

-- name: take_back
-- The rows from before a time are gone, and their counts stay; the units that it falls into are counted again from
-- shorter ones.
DELETE FROM decision_counts WHERE start + unit > ?

-- name: take_back_stations
DELETE FROM station_counts WHERE start + unit > ?

-- name: restore_all
INSERT INTO decision_counts (unit, start, status, {of_all})
SELECT ?1, start - start % ?1, status, {sums_of_all} FROM decision_counts
WHERE unit = {day} AND start >= ?2 - ?2 % ?1 AND start < ?2 GROUP BY 2, 3

-- name: restore_stations
INSERT INTO station_counts (unit, start, station_id, {of_station})
SELECT ?1, start - start % ?1, station_id, {sums_of_station} FROM station_counts
WHERE unit = {day} AND start >= ?2 - ?2 % ?1 AND start < ?2 GROUP BY 2, 3

-- name: not_added_up
UPDATE stations_added_up SET start = ?1 - 1, station_id = '' WHERE start >= ?1

-- name: all_uncounted
INSERT INTO uncounted_decisions SELECT 1, max(first) - 1, ? FROM uncounted_decisions
