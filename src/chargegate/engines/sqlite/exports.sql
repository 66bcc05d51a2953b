-- name: take_turn
INSERT INTO turns VALUES ('export', ?1, ?2 + ?3)
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until
WHERE holder = ?1 OR until <= ?2 OR until > ?2 + ?3

-- name: newest
SELECT {exported} FROM audit_exports WHERE ?1 ISNULL OR origin = ?1 ORDER BY number DESC LIMIT 1

-- name: held
SELECT file, sha256 FROM audit_exports WHERE origin = ? AND file IN (SELECT value FROM json_each(?))

-- name: position
SELECT max(sequence) FROM authorization_audit

-- name: late_rows
SELECT sequence, {decision} FROM authorization_audit
WHERE sequence > ? AND sequence <= ? AND +timestamp < ? ORDER BY sequence LIMIT ?

-- name: add
INSERT INTO audit_exports ({exported}) VALUES {values} ON CONFLICT DO NOTHING

-- name: page
SELECT {exported} FROM audit_exports WHERE number > ? ORDER BY number LIMIT ?
