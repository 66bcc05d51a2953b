-- Removes entries. A request that was put twice is found until the later entry is acked.
-- KEYS: stream, hash of request ids. ARGV: group; 1 to use XACKDEL; then each entry and its request id.
for i = 3, #ARGV, 2 do
  if ARGV[2] == '1' then
    redis.call('XACKDEL', KEYS[1], ARGV[1], 'IDS', 1, ARGV[i])
  else
    redis.call('XACK', KEYS[1], ARGV[1], ARGV[i])
    redis.call('XDEL', KEYS[1], ARGV[i])
  end
  if redis.call('HGET', KEYS[2], ARGV[i + 1]) == ARGV[i] then redis.call('HDEL', KEYS[2], ARGV[i + 1]) end
end
