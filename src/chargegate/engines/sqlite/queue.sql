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
-- A value of another type, or text that is not UTF-8, can only come from somebody else, and must not stop the others.
SELECT seq, CAST(request_id AS BLOB), CAST(station_id AS BLOB), CAST(accepted_at AS INTEGER), CAST(body AS BLOB)
FROM queue WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?

-- name: find
SELECT seq, CAST(station_id AS BLOB), CAST(accepted_at AS INTEGER), CAST(body AS BLOB) FROM queue WHERE request_id = ? ORDER BY seq LIMIT 1

-- name: unacked
SELECT seq, CAST(request_id AS BLOB), CAST(station_id AS BLOB), CAST(accepted_at AS INTEGER), CAST(body AS BLOB)
FROM queue WHERE request_id < ? ORDER BY request_id DESC LIMIT ?

-- name: oldest
SELECT CAST(accepted_at AS INTEGER) FROM queue WHERE seq > ? ORDER BY seq LIMIT 1
