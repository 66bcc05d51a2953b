-- name: look_up
SELECT {entry} FROM access_list WHERE driver_token_hash IN ({rows})

-- name: page
SELECT {entry} FROM access_list WHERE driver_token_hash > ? ORDER BY driver_token_hash LIMIT ?

-- name: put
INSERT OR REPLACE INTO access_list ({entry}) VALUES {rows}

-- name: remove
DELETE FROM access_list WHERE driver_token_hash = ?

-- name: changes
SELECT number, driver_token_hash FROM access_list_changes WHERE number > ? ORDER BY number

-- name: note_change
INSERT INTO access_list_changes (driver_token_hash) VALUES (?)

-- name: forget_changes
DELETE FROM access_list_changes WHERE number <= (SELECT max(number) FROM access_list_changes) - ?
