-- KEYS: one for each claim. ARGV: claim and time to live in ms of each.
for i = 1, #KEYS do redis.call('SET', KEYS[i], ARGV[2 * i - 1], 'PX', ARGV[2 * i]) end
