-- Keeps values whose epoch is still the current one.
-- KEYS: state; then the hash of each value's token. ARGV: epoch, station, value and time to live in ms of each.
local state = redis.call('HMGET', KEYS[1], 'generation', 'epoch')
for i = 2, #KEYS do
  local at = 4 * i - 7
  if state[1] and state[2] == ARGV[at] then
    redis.call('HSET', KEYS[i], ARGV[at + 1], state[1] .. ARGV[at + 2])
    if redis.call('PTTL', KEYS[i]) < tonumber(ARGV[at + 3]) then redis.call('PEXPIRE', KEYS[i], ARGV[at + 3]) end
  end
end
