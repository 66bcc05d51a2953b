-- Puts a claim in another one's place. Returns 1 if the claim is there now.
-- KEYS: the claim's. ARGV: the one that was there; claim; time to live in ms.
local held = redis.call('GET', KEYS[1])
if held == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return (held == ARGV[1] or held == ARGV[2]) and 1 or 0
