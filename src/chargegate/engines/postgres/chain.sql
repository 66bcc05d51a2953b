-- name: writers
SELECT DISTINCT writer FROM audit_chain ORDER BY 1

-- name: last
SELECT number, sequence, mac FROM audit_chain WHERE writer = $1 ORDER BY number DESC LIMIT 1

-- name: add
INSERT INTO audit_chain SELECT $1, * FROM unnest($2::bigint[], $3::bigint[], $4::bytea[]) ON CONFLICT DO NOTHING

-- name: links
-- The pages of all writers, cut where another one begins: of a table that was not analyzed yet, the planner takes one
-- writer's links for few, and would sort all of them for each page.
SELECT number, sequence, mac FROM (
    SELECT * FROM audit_chain WHERE (writer, number) > ($1::text, $2::bigint) ORDER BY writer, number LIMIT $3) c
WHERE writer = $1 ORDER BY number

-- name: old
-- A month that has begun stays, and so its first moment is the limit.
SELECT c.writer, c.number, c.sequence, c.mac
FROM (SELECT writer, max(sequence) AS last FROM authorization_audit WHERE timestamp < $1 GROUP BY writer) AS o
JOIN LATERAL (
    SELECT * FROM audit_chain WHERE writer = o.writer AND sequence <= o.last ORDER BY sequence DESC LIMIT 1
) AS c ON true

-- name: drop
DELETE FROM audit_chain WHERE writer = $1 AND number < $2 AND number NOT IN (
    SELECT k.number - d.back
    FROM authorization_audit a JOIN audit_chain k ON k.writer = a.writer AND k.sequence = a.sequence,
        (VALUES (0), (1)) AS d (back)
    WHERE a.writer = $1 AND a.sequence <= $3
)
