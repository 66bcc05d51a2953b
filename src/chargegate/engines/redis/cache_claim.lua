-- Returns the earlier claim, or false where this one was kept. KEYS: the claim's. ARGV: claim; time to live in ms.
return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'GET', 'PX', ARGV[2])
