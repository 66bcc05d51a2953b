-- Moves entries that are no messages to the dead stream as they came, with up to 500 fields: Lua's stack has a limit.
-- Returns those that were moved; of the others only their claim was left.
-- KEYS: stream, hash of request ids, dead stream. ARGV: group; about how many entries the dead stream keeps; entries.
local moved = {}
for i = 3, #ARGV do
  local found = redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i])[1]
  if found then
    redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[2], '*', unpack(found[2], 1, math.min(#found[2], 1000)))
    moved[#moved + 1] = ARGV[i]
  end
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[i])
  redis.call('XDEL', KEYS[1], ARGV[i])
end
return moved
