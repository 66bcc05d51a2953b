-- name: insert
INSERT INTO queue ({message}) VALUES {rows}

-- name: delete
DELETE FROM queue WHERE seq IN ({rows})

-- name: count
SELECT count(*), ifnull(max(seq), 0) FROM queue

-- name: last_number
-- It grows on where rows were deleted: a number is never used again.
SELECT seq FROM sqlite_sequence WHERE name = 'queue'

-- name: page
SELECT seq, {message} FROM queue WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?

-- name: find
SELECT seq, station_id, accepted_at, body FROM queue WHERE request_id = ? ORDER BY seq LIMIT 1

-- name: oldest
SELECT accepted_at FROM queue WHERE seq > ? ORDER BY seq LIMIT 1
