-- Removes a claim, unless another one was made. KEYS: the claim's. ARGV: claim.
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
