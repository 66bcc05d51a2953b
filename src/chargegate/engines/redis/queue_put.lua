-- Stores messages as long as there is room, and returns how many were stored.
-- KEYS: stream, hash of request ids. ARGV: group; how many may wait; then of each message its request id, station id,
-- time, body and traceparent. The stream and its group may be missing, because the server lost its data.
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1])
if pending.err then
  redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
  pending = {0}
end
local room = ARGV[2] - redis.call('XLEN', KEYS[1]) + pending[1]
local stored = 0
for i = 3, #ARGV, 5 do
  if stored >= room then break end
  local entry = redis.call('XADD', KEYS[1], '*', 'request_id', ARGV[i], 'station_id', ARGV[i + 1],
    'accepted_at', ARGV[i + 2], 'body', ARGV[i + 3], 'traceparent', ARGV[i + 4])
  redis.call('HSET', KEYS[2], ARGV[i], entry)
  stored = stored + 1
end
return stored
