-- Writes something, because a server may answer and yet store nothing: out of memory, a full disk, a replica.
-- KEYS: stream, hash of request ids.
redis.call('HSET', KEYS[2], '', '')
return redis.call('HDEL', KEYS[2], '')
