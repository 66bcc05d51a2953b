-- Returns a request's station id, its time, 1 if a consumer holds it, and its body.
-- KEYS: stream, hash of request ids. ARGV: group; request id. The group may be missing.
local entry = redis.call('HGET', KEYS[2], ARGV[2])
local found = entry and redis.call('XRANGE', KEYS[1], entry, entry)[1]
if not found then return false end
local taken = #redis.pcall('XPENDING', KEYS[1], ARGV[1], entry, entry, 1) > 0
return {found[2][4], found[2][6], taken and 1 or 0, found[2][8]}
