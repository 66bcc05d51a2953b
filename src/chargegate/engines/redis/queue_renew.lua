-- Renews a consumer's claims. Returns the entries that it no longer holds.
-- KEYS: stream. ARGV: group; consumer; the idle time in ms that the claims get; entries. The stream and its group may
-- be missing, because the server lost its data.
local lost = {}
for i = 4, #ARGV do
  if #redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2]) > 0 then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'IDLE', ARGV[3], 'JUSTID')
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
