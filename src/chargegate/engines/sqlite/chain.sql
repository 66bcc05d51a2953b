-- name: last
SELECT number, sequence, mac FROM audit_chain ORDER BY number DESC LIMIT 1

-- name: add
INSERT OR IGNORE INTO audit_chain VALUES {rows}

-- name: links
SELECT number, sequence, mac FROM audit_chain WHERE number > ? ORDER BY number LIMIT ?

-- name: old
SELECT number, sequence, mac FROM audit_chain
WHERE sequence <= (SELECT max(sequence) FROM authorization_audit WHERE timestamp < ?) ORDER BY sequence DESC LIMIT 1

-- name: drop
DELETE FROM audit_chain WHERE number <= ?
