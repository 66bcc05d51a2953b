-- name: take_turn
INSERT INTO turns AS held VALUES ('export', $1::text, $2::bigint + $3::bigint)
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until
WHERE held.holder = $1 OR held.until <= $2 OR held.until > $2 + $3

-- name: newest
SELECT {exported} FROM audit_exports WHERE $1::text IS NULL OR origin = $1 ORDER BY number DESC LIMIT 1

-- name: held
SELECT file, sha256 FROM audit_exports WHERE origin = $1 AND file = ANY($2::text[])

-- name: positions
-- Each writer is found by the index, after the one before it, rather than by a scan.
WITH RECURSIVE writers (writer) AS (
    SELECT min(writer) FROM authorization_audit
    UNION ALL
    SELECT (SELECT min(a.writer) FROM authorization_audit a WHERE a.writer > w.writer) FROM writers w
    WHERE w.writer IS NOT NULL
)
SELECT writer, (SELECT max(sequence) FROM authorization_audit a WHERE a.writer = w.writer) FROM writers w
WHERE writer IS NOT NULL

-- name: late_rows
SELECT {decision}, sequence FROM authorization_audit
WHERE writer = $1 AND sequence > $2 AND sequence <= $3 AND timestamp < $4 ORDER BY sequence LIMIT $5

-- name: add
INSERT INTO audit_exports ({exported}) VALUES ({values}) ON CONFLICT DO NOTHING

-- name: same
SELECT true FROM audit_exports WHERE number = $1 AND origin = $2 AND sha256 = $3

-- name: others
-- Whether other files have these numbers.
SELECT EXISTS (SELECT FROM audit_exports e JOIN unnest($1::bigint[], $2::text[], $3::text[]) AS f (number, origin, sha256)
    ON e.number = f.number WHERE (e.origin, e.sha256) <> (f.origin, f.sha256))

-- name: not_exported
-- Whether a month has rows that are in no file. Each writer is found by the index, as above.
WITH RECURSIVE writers (writer) AS (
    SELECT min(writer) FROM {month}
    UNION ALL
    SELECT (SELECT min(a.writer) FROM {month} a WHERE a.writer > w.writer) FROM writers w WHERE w.writer IS NOT NULL
)
SELECT EXISTS (
    SELECT FROM writers w WHERE w.writer IS NOT NULL AND EXISTS (
        SELECT FROM {month} a
        WHERE a.writer = w.writer AND a.sequence > coalesce(($1::jsonb ->> w.writer)::bigint, 0)))
