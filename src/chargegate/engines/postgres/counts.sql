-- {of_station} are the counts of a station, {of_all} those of all decisions.

-- name: count_more
-- Ranges of a writer that follow each other are read as one. The month of the rows is known from their times, so that
-- no other partition is looked at.
WITH taken AS MATERIALIZED (
    SELECT id, writer, first, last, least(last, first + $1::bigint - 1) AS upto, earliest, latest, since
    FROM (SELECT *, sum(last - first + 1) OVER (ORDER BY id) - (last - first + 1) AS before
        FROM (SELECT * FROM uncounted_decisions ORDER BY id LIMIT 2000) u) u
    WHERE before < $1
), ranges AS MATERIALIZED (
    SELECT writer, min(first) AS first, max(upto) AS upto, min(earliest) AS earliest, max(latest) AS latest, since
    FROM (SELECT *, first - sum(upto - first + 1)
            OVER (PARTITION BY writer, since ORDER BY first ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS run
        FROM taken) t
    GROUP BY writer, since, run
), fresh AS MATERIALIZED (
    SELECT a.timestamp, lower(a.station_id) AS station_id, a.status, a.reason, a.processing_time_ms
    FROM ranges r CROSS JOIN LATERAL (
        SELECT * FROM authorization_audit a
        WHERE a.writer = r.writer AND a.sequence BETWEEN r.first AND r.upto
            AND a.timestamp BETWEEN greatest(r.earliest, r.since) AND r.latest
        OFFSET 0) a
), stations AS (
    INSERT INTO station_counts AS held (unit, start, station_id, {of_station})
    SELECT unit, g.at - g.at % unit, g.station_id, {sums_of_station}
    FROM (SELECT timestamp - timestamp % {hour} AS at, station_id, {rows_of_station} FROM fresh GROUP BY 1, 2) g
    CROSS JOIN unnest($2::bigint[]) AS unit
    GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
    ON CONFLICT (unit, start, station_id) DO UPDATE SET {add_of_station}
), totals AS (
    INSERT INTO decision_counts AS held (unit, start, status, {of_all})
    SELECT unit, g.at - g.at % unit, g.status, {sums_of_all}
    FROM (SELECT timestamp - timestamp % {minute} AS at, status, {rows_of_all} FROM fresh GROUP BY 1, 2) g
    CROSS JOIN unnest($3::bigint[]) AS unit
    GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
    ON CONFLICT (unit, start, status) DO UPDATE SET {add_of_all}
), known AS (
    INSERT INTO known_stations SELECT DISTINCT station_id FROM fresh ORDER BY 1 ON CONFLICT DO NOTHING
), ended AS (
    DELETE FROM uncounted_decisions WHERE id IN (SELECT id FROM taken WHERE upto = last)
), shortened AS (
    UPDATE uncounted_decisions u SET first = t.upto + 1 FROM taken t WHERE u.id = t.id AND t.upto < t.last
)
SELECT coalesce(sum(upto - first + 1), 0)::bigint FROM taken

-- name: one_at_a_time
SELECT pg_try_advisory_xact_lock(hashtext('uncounted_decisions'))

-- name: wait_for_turn
SELECT pg_advisory_xact_lock(hashtext('uncounted_decisions'))

-- name: keep_months
-- A month that is attached between the planning of a statement and its snapshot would have notes that are seen, and rows
-- that are not.
LOCK TABLE authorization_audit IN SHARE UPDATE EXCLUSIVE MODE

-- name: uncounted_since
SELECT earliest FROM uncounted_decisions ORDER BY id LIMIT 1

-- name: total
SELECT {by_status}, {buckets} FROM (
    SELECT c.status, {of_all}
    FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS s (unit, low, high) CROSS JOIN LATERAL (
        SELECT * FROM decision_counts WHERE unit = s.unit AND start >= s.low AND start < s.high OFFSET 0) c
    UNION ALL
    SELECT status, {row_of_all} FROM unnest($4::bigint[], $5::bigint[]) AS e (low, high) CROSS JOIN LATERAL (
        SELECT * FROM authorization_audit WHERE timestamp >= e.low AND timestamp < e.high OFFSET 0) a
    UNION ALL
    SELECT status, {row_of_all} FROM ({uncounted_since_6}) a WHERE timestamp < $7
) counted

-- name: by_unit
SELECT start, {by_status} FROM (
    SELECT c.start, c.status, {of_all} FROM (
        SELECT DISTINCT start FROM decision_counts
        WHERE unit = $1::bigint AND start >= $2::bigint AND start < $3::bigint ORDER BY start DESC LIMIT $4::bigint
    ) w CROSS JOIN LATERAL (SELECT * FROM decision_counts WHERE unit = $1 AND start = w.start OFFSET 0) c
    UNION ALL
    SELECT timestamp - timestamp % $1, status, {row_of_all} FROM ({uncounted_since_2}) a
    WHERE timestamp - timestamp % $1 >= $2 AND timestamp - timestamp % $1 < $3
) counted GROUP BY start ORDER BY start DESC LIMIT $4

-- name: by_station
-- For the stations of a page, and those with rows that are not counted yet: counts, rows at the ends of the range, and
-- rows that are not counted yet.
WITH slots AS MATERIALIZED (
    SELECT DISTINCT c.unit, c.start FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS s (unit, low, high)
    CROSS JOIN LATERAL (SELECT unit, start FROM decision_counts
        WHERE unit = s.unit AND start >= s.low AND start < s.high OFFSET 0) c
), edges AS MATERIALIZED (
    SELECT * FROM unnest($4::bigint[], $5::bigint[]) AS e (low, high)
), uncounted AS MATERIALIZED (
    SELECT lower(station_id) AS station_id, timestamp, status, reason, processing_time_ms FROM ({uncounted}) a
    WHERE lower(station_id) {compare} $8::text AND (timestamp >= $6 AND timestamp < $7
        OR EXISTS (SELECT FROM edges WHERE timestamp >= low AND timestamp < high))
), page AS MATERIALIZED ({page}), stations AS MATERIALIZED (
    SELECT station_id FROM page UNION SELECT station_id FROM uncounted
)
SELECT station_id, {sums_of_station} FROM (
    SELECT c.* FROM stations p CROSS JOIN slots s CROSS JOIN LATERAL (
        SELECT station_id, {of_station} FROM station_counts c
        WHERE c.unit = s.unit AND c.start = s.start AND c.station_id = p.station_id OFFSET 0) c
    UNION ALL
    SELECT p.station_id, {row_of_station} FROM stations p CROSS JOIN edges e CROSS JOIN LATERAL (
        SELECT status, reason, processing_time_ms FROM authorization_audit
        WHERE lower(station_id) = p.station_id AND timestamp >= e.low AND timestamp < e.high OFFSET 0) a
    UNION ALL
    SELECT station_id, {row_of_station} FROM uncounted WHERE timestamp >= $6 AND timestamp < $7
) counted GROUP BY station_id ORDER BY station_id LIMIT $9::bigint

-- name: page_of_stations
SELECT k.station_id FROM known_stations k
    WHERE k.station_id > $8 AND (EXISTS (
        SELECT FROM slots s CROSS JOIN LATERAL (SELECT FROM station_counts c
            WHERE c.unit = s.unit AND c.start = s.start AND c.station_id = k.station_id OFFSET 0) c
    ) OR EXISTS (
        SELECT FROM edges e CROSS JOIN LATERAL (SELECT FROM authorization_audit
            WHERE lower(station_id) = k.station_id AND timestamp >= e.low AND timestamp < e.high OFFSET 0) a))
    ORDER BY k.station_id LIMIT $9

-- name: one_station
SELECT $8 AS station_id

-- name: top_stations
-- All stations are ranked by two sums, and only the first of them get all sums.
WITH spans AS MATERIALIZED (
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[]) AS s (unit, low, high, sign)
), uncounted AS MATERIALIZED (
    SELECT lower(station_id) AS station_id, status, reason, processing_time_ms FROM ({uncounted_since_5}) a
), ranked AS MATERIALIZED (
    SELECT station_id, sum(decisions)::bigint AS decisions, sum(errors)::bigint AS errors FROM (
        SELECT c.station_id, s.sign * c.decisions AS decisions, s.sign * (c.unknown + c.invalid) AS errors
        FROM spans s CROSS JOIN LATERAL (SELECT station_id, decisions, unknown, invalid FROM station_counts
            WHERE unit = s.unit AND start >= s.low AND start < s.high OFFSET 0) c
        UNION ALL
        SELECT station_id, 1, (status IN ('unknown', 'invalid'))::int FROM uncounted
    ) counted GROUP BY station_id HAVING sum(decisions) > 0
), top AS MATERIALIZED (
    (SELECT station_id FROM ranked ORDER BY decisions DESC, station_id LIMIT $7::bigint)
    UNION
    (SELECT station_id FROM ranked WHERE decisions >= $6::bigint AND errors > 0
    ORDER BY round(errors::numeric / decisions, 4) DESC, decisions DESC, station_id LIMIT $7)
), slots AS MATERIALIZED (
    SELECT DISTINCT c.unit, c.start, s.sign FROM spans s CROSS JOIN LATERAL (SELECT unit, start FROM decision_counts
        WHERE unit = s.unit AND start >= s.low AND start < s.high OFFSET 0) c
)
SELECT station_id, {sums_of_station} FROM (
    SELECT t.station_id, {signed_of_station} FROM top t CROSS JOIN slots s CROSS JOIN LATERAL (
        SELECT * FROM station_counts c
        WHERE c.unit = s.unit AND c.start = s.start AND c.station_id = t.station_id OFFSET 0) c
    UNION ALL
    SELECT station_id, {row_of_station} FROM uncounted JOIN top USING (station_id)
) counted GROUP BY station_id

-- name: latest
SELECT status, count(*) FROM authorization_audit WHERE timestamp >= $1 GROUP BY status

-- name: callbacks
SELECT client, sum(delivered)::bigint, sum(failed)::bigint FROM callback_counts WHERE start >= $1
GROUP BY client ORDER BY client

-- name: drop_all
DELETE FROM decision_counts WHERE (unit, start, status) IN (
    SELECT unit, start, status FROM decision_counts
    WHERE unit = $1::bigint AND start <= $2::bigint - $1 ORDER BY start LIMIT $3)

-- name: drop_stations
DELETE FROM station_counts WHERE (unit, start, station_id) IN (
    SELECT unit, start, station_id FROM station_counts
    WHERE unit = $1::bigint AND start <= $2::bigint - $1 ORDER BY start LIMIT $3)

-- name: drop_callbacks
DELETE FROM callback_counts WHERE (start, client, slot) IN (
    SELECT start, client, slot FROM callback_counts WHERE start <= $2::bigint - $1::bigint ORDER BY start LIMIT $3)

-- name: rows_since
SELECT value::bigint FROM service_facts WHERE name = '{rows_since}'

-- name: take_back
-- The rows from before a time are gone, and their counts stay; the units that it falls into are counted again from
-- shorter ones.
DELETE FROM decision_counts WHERE start + unit > $1

-- name: take_back_stations
DELETE FROM station_counts WHERE start + unit > $1

-- name: restore_all
INSERT INTO decision_counts (unit, start, status, {of_all})
SELECT $1::bigint, start - start % $1, status, {sums_of_all} FROM decision_counts
WHERE unit = {day} AND start >= $2::bigint - $2 % $1 AND start < $2 GROUP BY 2, 3

-- name: restore_stations
INSERT INTO station_counts (unit, start, station_id, {of_station})
SELECT $1::bigint, start - start % $1, station_id, {sums_of_station} FROM station_counts
WHERE unit = {day} AND start >= $2::bigint - $2 % $1 AND start < $2 GROUP BY 2, 3

-- name: all_uncounted
-- What is noted already is in one snapshot with the rows. A note that reaches back before the time stays as it is.
WITH noted AS (DELETE FROM uncounted_decisions WHERE earliest >= $1)
INSERT INTO uncounted_decisions (writer, first, last, earliest, latest, since)
SELECT writer, min(sequence), max(sequence), min(timestamp), max(timestamp), $1::bigint
FROM (SELECT *, sequence - row_number() OVER (PARTITION BY writer ORDER BY sequence) AS run
    FROM authorization_audit a WHERE timestamp >= $1 AND NOT EXISTS (
        SELECT FROM uncounted_decisions u
        WHERE u.earliest < $1 AND u.writer = a.writer AND a.sequence BETWEEN u.first AND u.last)) w
GROUP BY writer, run
