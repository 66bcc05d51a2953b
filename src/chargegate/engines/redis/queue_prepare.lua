-- Makes the group where it is missing, and drops the consumers that hold nothing and were idle for long.
-- Returns the newest entry's id, and 1 if the server has XACKDEL (Redis 8.2).
-- KEYS: stream. ARGV: group; this consumer; the idle time in ms after which another is dropped.
if redis.pcall('XPENDING', KEYS[1], ARGV[1]).err then
  redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
end
local function fields(flat)
  local named = {}
  for i = 1, #flat, 2 do named[flat[i]] = flat[i + 1] end
  return named
end
for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local consumer = fields(flat)
  if consumer.pending == 0 and consumer.idle > tonumber(ARGV[3]) and consumer.name ~= ARGV[2] then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
  end
end
local newest = fields(redis.call('XINFO', 'STREAM', KEYS[1]))['last-generated-id']
local tried = redis.pcall('XACKDEL', KEYS[1], ARGV[1], 'IDS', 1, '0-1')
return {newest, tried.err and 0 or 1}
