-- name: writers
SELECT DISTINCT writer FROM audit_chain ORDER BY 1

-- name: last
SELECT number, sequence, mac FROM audit_chain WHERE writer = $1 ORDER BY number DESC LIMIT 1

-- name: lock
-- Before the rows are looked for: who drops rows holds EXCLUSIVE from before it looks for their links to its end.
LOCK TABLE audit_chain IN ROW EXCLUSIVE MODE

-- name: lock_alone
LOCK TABLE audit_chain IN EXCLUSIVE MODE

-- name: held
SELECT count(*) FROM authorization_audit WHERE writer = $1 AND sequence BETWEEN $2 AND $3

-- name: add
INSERT INTO audit_chain SELECT $1, * FROM unnest($2::bigint[], $3::bigint[], $4::bytea[]) ON CONFLICT DO NOTHING

-- name: links
-- The pages of all writers, cut where another one begins: of a table that was not analyzed yet, the planner takes one
-- writer's links for few, and would sort all of them for each page.
SELECT number, sequence, mac FROM (
    SELECT * FROM audit_chain WHERE (writer, number) > ($1::text, $2::bigint) ORDER BY writer, number LIMIT $3) c
WHERE writer = $1 ORDER BY number

-- name: old
-- A month that has begun stays, and so its first moment is the limit. Each writer's newest row is found by the index;
-- a list of the rows by writer would read all of them.
WITH RECURSIVE writers AS (
    (SELECT writer FROM audit_chain ORDER BY writer LIMIT 1)
    UNION ALL
    SELECT (SELECT c.writer FROM audit_chain c WHERE c.writer > w.writer ORDER BY c.writer LIMIT 1)
    FROM writers w WHERE w.writer IS NOT NULL
)
SELECT c.writer, c.number, c.sequence, c.mac
FROM writers w
CROSS JOIN LATERAL (
    SELECT max(a.sequence) AS last FROM authorization_audit a WHERE a.writer = w.writer AND a.timestamp < $1
) AS o
CROSS JOIN LATERAL (
    SELECT * FROM audit_chain WHERE writer = w.writer AND sequence <= o.last ORDER BY sequence DESC LIMIT 1
) AS c

-- name: drop
DELETE FROM audit_chain WHERE writer = $1 AND number < $2 AND number NOT IN (
    SELECT k.number - d.back
    FROM authorization_audit a JOIN audit_chain k ON k.writer = a.writer AND k.sequence = a.sequence,
        (VALUES (0), (1)) AS d (back)
    WHERE a.writer = $1 AND a.sequence <= $3
)
