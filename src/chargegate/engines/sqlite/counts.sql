-- {of_station} are the counts of a station, {of_all} those of all decisions. The "+" before a column keeps its index
-- from being used: the other one is known to be better.

-- name: uncounted_since
SELECT (SELECT timestamp FROM authorization_audit WHERE sequence BETWEEN u.first AND u.last ORDER BY sequence LIMIT 1)
FROM uncounted_decisions u ORDER BY last LIMIT 1

-- name: total
SELECT {by_status}, {buckets} FROM (
    SELECT c.status, {of_all}
    FROM json_each(?1) s CROSS JOIN decision_counts c
    WHERE c.unit = json_extract(s.value, '$[0]') AND c.start >= json_extract(s.value, '$[1]') AND c.start < json_extract(s.value, '$[2]')
    UNION ALL
    SELECT status, {row_of_all} FROM json_each(?2) e CROSS JOIN authorization_audit
    WHERE timestamp >= json_extract(e.value, '$[0]') AND timestamp < json_extract(e.value, '$[1]')
    UNION ALL
    SELECT status, {row_of_all} FROM uncounted_decisions u CROSS JOIN authorization_audit a
    WHERE a.sequence BETWEEN u.first AND u.last AND +a.timestamp >= max(u.since, ?3) AND +a.timestamp < ?4
)

-- name: by_unit
WITH uncounted AS MATERIALIZED (
    SELECT timestamp - timestamp % ?1 AS start, status, {row_of_all}
    FROM uncounted_decisions u CROSS JOIN authorization_audit a
    WHERE a.sequence BETWEEN u.first AND u.last AND +a.timestamp >= u.since
        AND a.timestamp - a.timestamp % ?1 >= ?2 AND a.timestamp - a.timestamp % ?1 < ?3
), wanted AS MATERIALIZED (
    SELECT DISTINCT start FROM decision_counts WHERE unit = ?1 AND start >= ?2 AND start < ?3 ORDER BY start DESC LIMIT ?4
)
SELECT start, {by_status} FROM (
    SELECT c.start, c.status, {of_all} FROM wanted w CROSS JOIN decision_counts c
    WHERE c.unit = ?1 AND c.start = w.start
    UNION ALL
    SELECT * FROM uncounted
) GROUP BY start ORDER BY start DESC LIMIT ?4

-- name: by_station
-- For the stations of a page, and those with rows that are not counted yet: counts, rows at the ends of the range, and
-- rows that are not counted yet. Longer units have the hours up to one and, in that hour, the stations up to one ("after");
-- the rest is added from the hours. There are hundreds of slots at most; the limit tells the planner so.
WITH spans(unit, low, high, is_rest) AS MATERIALIZED (
    SELECT json_extract(e.value, '$[0]'), json_extract(e.value, '$[1]'), json_extract(e.value, '$[2]'), 0 FROM json_each(?1) e
    UNION ALL
    SELECT {hour}, max(json_extract(e.value, '$[1]'), r.start), json_extract(e.value, '$[2]'), 1
    FROM json_each(?1) e CROSS JOIN stations_added_up r WHERE json_extract(e.value, '$[0]') > {hour}
), slots(unit, start, after) AS MATERIALIZED (
    SELECT DISTINCT c.unit, c.start, CASE WHEN s.is_rest AND c.start = r.start THEN r.station_id END
    FROM spans s CROSS JOIN stations_added_up r CROSS JOIN decision_counts c
    WHERE c.unit = s.unit AND c.start >= s.low AND c.start < s.high LIMIT 10000
), edges(low, high) AS MATERIALIZED (
    SELECT json_extract(e.value, '$[0]'), json_extract(e.value, '$[1]') FROM json_each(?2) e
), uncounted AS MATERIALIZED (
    SELECT lower(a.station_id) AS station_id, timestamp, status, reason, processing_time_ms
    FROM uncounted_decisions u CROSS JOIN authorization_audit a
    WHERE a.sequence BETWEEN u.first AND u.last AND +a.timestamp >= u.since AND +a.station_id {compare} ?5
        AND (a.timestamp >= ?3 AND a.timestamp < ?4
            OR EXISTS (SELECT 1 FROM edges WHERE a.timestamp >= low AND a.timestamp < high))
), page(station_id) AS MATERIALIZED ({page}), stations(station_id) AS MATERIALIZED (
    SELECT station_id FROM page UNION SELECT station_id FROM uncounted
)
SELECT station_id, {sums_of_station} FROM (
    SELECT p.station_id, {of_station} FROM stations p CROSS JOIN slots s CROSS JOIN station_counts c
    WHERE c.unit = s.unit AND c.start = s.start AND c.station_id = p.station_id
        AND (s.after ISNULL OR c.station_id > s.after)
    UNION ALL
    SELECT p.station_id, {row_of_station} FROM stations p CROSS JOIN edges e CROSS JOIN authorization_audit a
    WHERE a.station_id = p.station_id COLLATE NOCASE AND a.timestamp >= e.low AND a.timestamp < e.high
    UNION ALL
    SELECT station_id, {row_of_station} FROM uncounted WHERE timestamp >= ?3 AND timestamp < ?4
) GROUP BY station_id ORDER BY station_id LIMIT ?6

-- name: page_of_stations
SELECT k.station_id FROM known_stations k
    WHERE k.station_id > ?5 AND (EXISTS (
        SELECT 1 FROM slots s CROSS JOIN station_counts c
        WHERE c.unit = s.unit AND c.start = s.start AND c.station_id = k.station_id
    ) OR EXISTS (
        SELECT 1 FROM edges e CROSS JOIN authorization_audit a
        WHERE a.station_id = k.station_id COLLATE NOCASE AND a.timestamp >= e.low AND a.timestamp < e.high))
    ORDER BY k.station_id LIMIT ?6

-- name: one_station
SELECT ?5

-- name: top_stations
-- All stations are ranked by two sums, and only the first of them get all sums.
WITH spans(unit, low, high, sign, is_rest) AS MATERIALIZED (
    SELECT json_extract(e.value, '$[0]'), json_extract(e.value, '$[1]'), json_extract(e.value, '$[2]'),
        json_extract(e.value, '$[3]'), 0 FROM json_each(?1) e
    UNION ALL
    SELECT {hour}, max(json_extract(e.value, '$[1]'), r.start), json_extract(e.value, '$[2]'), json_extract(e.value, '$[3]'), 1
    FROM json_each(?1) e CROSS JOIN stations_added_up r WHERE json_extract(e.value, '$[0]') > {hour}
), uncounted AS MATERIALIZED (
    SELECT lower(a.station_id) AS station_id, status, reason, processing_time_ms
    FROM uncounted_decisions u CROSS JOIN authorization_audit a
    WHERE a.sequence BETWEEN u.first AND u.last AND +a.timestamp >= max(u.since, ?2)
), slots(unit, start, after, sign) AS MATERIALIZED (
    SELECT DISTINCT c.unit, c.start, CASE WHEN s.is_rest AND c.start = r.start THEN r.station_id END, s.sign
    FROM spans s CROSS JOIN stations_added_up r CROSS JOIN decision_counts c
    WHERE c.unit = s.unit AND c.start >= s.low AND c.start < s.high LIMIT 10000
), ranked AS MATERIALIZED (
    SELECT station_id, sum(decisions) AS decisions, sum(errors) AS errors FROM (
        SELECT c.station_id, s.sign * c.decisions AS decisions, s.sign * (c.unknown + c.invalid) AS errors
        FROM slots s CROSS JOIN station_counts c
        WHERE c.unit = s.unit AND c.start = s.start AND (s.after ISNULL OR c.station_id > s.after)
        UNION ALL
        SELECT station_id, 1, status IN ('unknown', 'invalid') FROM uncounted
    ) GROUP BY station_id HAVING sum(decisions) > 0
), top(station_id) AS MATERIALIZED (
    SELECT * FROM (SELECT station_id FROM ranked ORDER BY decisions DESC, station_id LIMIT ?4)
    UNION
    SELECT * FROM (SELECT station_id FROM ranked WHERE decisions >= ?3 AND errors > 0
        ORDER BY round(1.0 * errors / decisions, 4) DESC, decisions DESC, station_id LIMIT ?4)
)
SELECT station_id, {sums_of_station} FROM (
    SELECT t.station_id, {signed_of_station} FROM top t CROSS JOIN slots s CROSS JOIN station_counts c
    WHERE c.unit = s.unit AND c.start = s.start AND c.station_id = t.station_id
        AND (s.after ISNULL OR c.station_id > s.after)
    UNION ALL
    SELECT station_id, {row_of_station} FROM uncounted JOIN top USING (station_id)
) GROUP BY station_id

-- name: latest
SELECT s.value, (SELECT count(*) FROM authorization_audit WHERE status = s.value AND timestamp >= ?1) FROM json_each(?2) s

-- name: callbacks
SELECT client, sum(delivered), sum(failed) FROM callback_counts WHERE start >= ? GROUP BY client ORDER BY client

-- name: rows_since
SELECT value FROM service_facts WHERE name = '{rows_since}'
