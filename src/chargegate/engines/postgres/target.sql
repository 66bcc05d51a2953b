-- name: put_requests
INSERT INTO charging_requests AS held ({stored})
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[],
    $8::text[], $9::bigint[], $10::bigint[], $11::bigint[], $12::integer[], $13::integer[], $14::text[], $15::bytea[],
    $16::text[], $17::text[])
ON CONFLICT (request_id) DO UPDATE SET ({stored}) = ROW({excluded})
WHERE held.decision IS NULL AND excluded.decision IS NOT NULL
    OR (held.decision, held.decided_at) = (excluded.decision, excluded.decided_at)
        AND coalesce(held.processed_at, held.started_at) < coalesce(excluded.processed_at, excluded.started_at)

-- name: put_audit
INSERT INTO authorization_audit (writer, sequence, {decision})
SELECT 'embedded', d.sequence, {decided}
FROM unnest($1::bigint[], $2::text[], $3::bigint[]) AS d (sequence, id, at)
JOIN charging_requests ON request_id = d.id AND decided_at = d.at
WHERE NOT EXISTS (SELECT FROM authorization_audit a WHERE a.timestamp = d.at AND a.request_id = d.id)

-- name: put_audit_alone
INSERT INTO authorization_audit (writer, sequence, {decision})
SELECT 'embedded', d.* FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
    $7::bigint[], $8::bigint[]) AS d (sequence, id, station, hash, status, reason, took, at)
WHERE NOT EXISTS (SELECT FROM authorization_audit a WHERE a.timestamp = d.at AND a.request_id = d.id)

-- name: put_claims
INSERT INTO idempotency_keys SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[])
ON CONFLICT DO NOTHING

-- name: put_of_all
INSERT INTO decision_counts AS held (unit, start, status, {of_all})
SELECT unit, d.at - d.at % unit, d.status, {sums_of_all}
FROM unnest($1::bigint[], $2::text[], {arrays_of_all}) AS d (at, status, {of_all})
CROSS JOIN unnest({units_of_all}::bigint[]) AS unit
GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
ON CONFLICT (unit, start, status) DO UPDATE SET {add_of_all}

-- name: put_of_stations
WITH counts AS MATERIALIZED (
    SELECT * FROM unnest($1::bigint[], $2::text[], {arrays_of_station}) AS d (at, station_id, {of_station})
), known AS (
    INSERT INTO known_stations SELECT DISTINCT station_id FROM counts ORDER BY 1 ON CONFLICT DO NOTHING
)
INSERT INTO station_counts AS held (unit, start, station_id, {of_station})
SELECT unit, at - at % unit, station_id, {sums_of_station}
FROM counts CROSS JOIN unnest({units_of_station}::bigint[]) AS unit
GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
ON CONFLICT (unit, start, station_id) DO UPDATE SET {add_of_station}

-- name: put_values
INSERT INTO service_facts SELECT * FROM unnest($1::text[], $2::text[]) ON CONFLICT DO NOTHING
