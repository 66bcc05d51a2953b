-- Returns entries, newest first: of each its id, its request id, its station id, its time, 1 if a consumer holds it, and
-- its body.
-- KEYS: stream. ARGV: group; the entry after which the list goes on, or nothing; how many. The group may be missing.
local from = ARGV[2] == '' and '+' or '(' .. ARGV[2]
local listed = {}
for at, found in ipairs(redis.call('XREVRANGE', KEYS[1], from, '-', 'COUNT', ARGV[3])) do
  local taken = #redis.pcall('XPENDING', KEYS[1], ARGV[1], found[1], found[1], 1) > 0
  listed[at] = {found[1], found[2][2], found[2][4], found[2][6], taken and 1 or 0, found[2][8]}
end
return listed
