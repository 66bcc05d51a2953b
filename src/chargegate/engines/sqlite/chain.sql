-- name: last
SELECT number, sequence, mac FROM audit_chain ORDER BY number DESC LIMIT 1

-- name: add
INSERT OR IGNORE INTO audit_chain VALUES {rows}

-- name: held
SELECT count(*) FROM authorization_audit WHERE sequence BETWEEN ? AND ?

-- name: links
SELECT number, sequence, mac FROM audit_chain WHERE number > ? ORDER BY number LIMIT ?

-- name: old
SELECT number, sequence, mac FROM audit_chain
WHERE sequence <= (
    SELECT max(a.sequence) FROM authorization_audit a LEFT JOIN charging_requests r USING (request_id)
    WHERE a.timestamp < ? AND (r.request_id ISNULL OR r.processed_at NOTNULL AND r.sealed ISNULL)
) ORDER BY sequence DESC LIMIT 1

-- name: first
SELECT min(number) FROM audit_chain WHERE number > ?

-- name: drop
DELETE FROM audit_chain WHERE number >= ?1 AND number < ?2 AND number NOT IN (
    SELECT k.number - d.value FROM authorization_audit a JOIN audit_chain k USING (sequence), json_each('[0, 1]') d
    WHERE a.sequence <= ?3
)
