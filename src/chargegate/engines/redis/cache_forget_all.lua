-- Forgets everything: no value of another generation is read. KEYS: state. ARGV: the new generation and epoch.
redis.call('HSET', KEYS[1], 'generation', ARGV[1], 'epoch', ARGV[1])
