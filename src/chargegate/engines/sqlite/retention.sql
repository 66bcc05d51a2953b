-- name: by_client
SELECT client, sum(letters) FROM dead_letter_counts GROUP BY client HAVING sum(letters) > 0

-- name: drop_old
UPDATE charging_requests SET sealed = NULL WHERE request_id IN (
    SELECT request_id FROM charging_requests
    WHERE status = 'FAILED' AND sealed NOTNULL AND processed_at < ? ORDER BY processed_at, request_id LIMIT ?)

-- name: drop_oldest
UPDATE charging_requests SET sealed = NULL WHERE request_id IN (
    SELECT request_id FROM charging_requests
    WHERE status = 'FAILED' AND sealed NOTNULL AND client = ? ORDER BY processed_at, request_id LIMIT ?)

-- name: drop_finished
DELETE FROM charging_requests WHERE request_id IN (
    SELECT request_id FROM charging_requests
    WHERE processed_at NOTNULL AND sealed ISNULL AND processed_at < ? ORDER BY processed_at, request_id LIMIT ?)
