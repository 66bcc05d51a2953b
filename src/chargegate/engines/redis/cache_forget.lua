-- Forgets tokens. KEYS: state; then the hash of each token. ARGV: the new epoch.
redis.call('HSET', KEYS[1], 'epoch', ARGV[1])
for i = 2, #KEYS do redis.call('DEL', KEYS[i]) end
