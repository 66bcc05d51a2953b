-- Returns how many entries no consumer holds, and when the first of them was accepted.
-- KEYS: stream. ARGV: group. Both may be missing.
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
if groups.err then return {0, 0} end
local last, pending = '0-0', 0
for _, flat in ipairs(groups) do
  local group = {}
  for i = 1, #flat, 2 do group[flat[i]] = flat[i + 1] end
  if group.name == ARGV[1] then last, pending = group['last-delivered-id'], group.pending end
end
local first = redis.call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', 1)[1]
return {redis.call('XLEN', KEYS[1]) - pending, first and tonumber(first[2][6]) or 0}
