-- name: alone
-- Two processes that drop what is too much at once would both drop it.
SELECT pg_try_advisory_xact_lock(hashtext('dead_letter_counts'), -1)

-- name: by_client
SELECT client, sum(letters)::bigint FROM dead_letter_counts GROUP BY client HAVING sum(letters) > 0

-- name: drop_old
UPDATE charging_requests SET sealed = NULL WHERE request_id = ANY(ARRAY(
    SELECT request_id FROM charging_requests
    WHERE status = 'FAILED' AND sealed IS NOT NULL AND processed_at < $1
    ORDER BY processed_at, request_id LIMIT $2 FOR UPDATE SKIP LOCKED))

-- name: drop_oldest
UPDATE charging_requests SET sealed = NULL WHERE request_id = ANY(ARRAY(
    SELECT request_id FROM charging_requests
    WHERE status = 'FAILED' AND sealed IS NOT NULL AND client = $1
    ORDER BY processed_at, request_id LIMIT $2 FOR UPDATE SKIP LOCKED))

-- name: drop_finished
-- It begins at a time before which nothing is left: the index keeps its entries of dropped rows until a vacuum.
DELETE FROM charging_requests WHERE request_id = ANY(ARRAY(
    SELECT request_id FROM charging_requests
    WHERE processed_at IS NOT NULL AND sealed IS NULL AND processed_at >= $1 AND processed_at < $2
    ORDER BY processed_at, request_id LIMIT $3 FOR UPDATE SKIP LOCKED))
RETURNING processed_at
