-- name: server_ms
SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint

-- name: claim
-- Names that nobody had for a day are forgotten: a process in a container may have a new one at each start.
WITH old AS (DELETE FROM process_names WHERE held_until < now() - interval '1 day' AND name <> $1)
INSERT INTO process_names AS held VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3))
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, held_until = excluded.held_until
WHERE held.holder = excluded.holder OR held.held_until <= clock_timestamp()
RETURNING 0

-- name: left
SELECT greatest(1, extract(epoch FROM held_until - clock_timestamp()) * 1000)::bigint FROM process_names WHERE name = $1

-- name: release
DELETE FROM process_names WHERE name = $1 AND holder = $2
