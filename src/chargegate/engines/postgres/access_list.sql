-- name: look_up
SELECT {entry} FROM access_list WHERE driver_token_hash = ANY($1::text[])

-- name: page
SELECT {entry} FROM access_list WHERE driver_token_hash > $1 ORDER BY driver_token_hash LIMIT $2

-- name: lock_changes
-- One change after another: a number must not be seen before a smaller one.
LOCK TABLE access_list_changes IN SHARE ROW EXCLUSIVE MODE

-- name: put
INSERT INTO access_list ({entry}) SELECT * FROM
unnest($1::text[], $2::boolean[], $3::bigint[], $4::bigint[], $5::text[], $6::text[], $7::text[])
ON CONFLICT (driver_token_hash) DO UPDATE SET ({entry}) = ROW({excluded})

-- name: remove
DELETE FROM access_list WHERE driver_token_hash = $1 RETURNING 1

-- name: note_changes
INSERT INTO access_list_changes
SELECT (SELECT coalesce(max(number), 0) FROM access_list_changes) + place, hash
FROM unnest($1::text[]) WITH ORDINALITY AS changed (hash, place)

-- name: forget_changes
DELETE FROM access_list_changes WHERE number <= (SELECT max(number) FROM access_list_changes) - $1

-- name: changes
SELECT newest, number, driver_token_hash
FROM (SELECT coalesce(max(number), 0) AS newest FROM access_list_changes) AS latest
LEFT JOIN access_list_changes ON number > $1 ORDER BY number
