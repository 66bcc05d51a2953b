"""What ``RedisQueue`` has the server do in one step, in Lua.

KEYS: the stream, the hash of request ids, the dead stream. ARGV begins with the group. ``pcall`` where the stream or
its group may be missing, because the server lost its data.
"""

from typing import Final

# ARGV: the most that may wait; request id, station id, time, body, traceparent of each message. How many were stored.
PUT: Final = """
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1])
if pending.err then
  redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
  pending = {0}
end
local room = ARGV[2] - redis.call('XLEN', KEYS[1]) + pending[1]
local stored = 0
for i = 3, #ARGV, 5 do
  if stored >= room then break end
  local entry = redis.call('XADD', KEYS[1], '*', 'request_id', ARGV[i], 'station_id', ARGV[i + 1],
    'accepted_at', ARGV[i + 2], 'body', ARGV[i + 3], 'traceparent', ARGV[i + 4])
  redis.call('HSET', KEYS[2], ARGV[i], entry)
  stored = stored + 1
end
return stored
"""

# ARGV: the consumer; the idle time in ms after which a consumer that holds nothing is forgotten.
# The newest entry's id; whether the server has XACKDEL (Redis 8.2).
PREPARE: Final = """
if redis.pcall('XPENDING', KEYS[1], ARGV[1]).err then
  redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
end
local function fields(flat)
  local named = {}
  for i = 1, #flat, 2 do named[flat[i]] = flat[i + 1] end
  return named
end
for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local consumer = fields(flat)
  if consumer.pending == 0 and consumer.idle > tonumber(ARGV[3]) and consumer.name ~= ARGV[2] then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
  end
end
local newest = fields(redis.call('XINFO', 'STREAM', KEYS[1]))['last-generated-id']
local tried = redis.pcall('XACKDEL', KEYS[1], ARGV[1], 'IDS', 1, '0-1')
return {newest, tried.err and 0 or 1}
"""

# ARGV: whether to use XACKDEL; entry and request id of each. A request put twice is found until the later is acked.
ACK: Final = """
for i = 3, #ARGV, 2 do
  if ARGV[2] == '1' then
    redis.call('XACKDEL', KEYS[1], ARGV[1], 'IDS', 1, ARGV[i])
  else
    redis.call('XACK', KEYS[1], ARGV[1], ARGV[i])
    redis.call('XDEL', KEYS[1], ARGV[i])
  end
  if redis.call('HGET', KEYS[2], ARGV[i + 1]) == ARGV[i] then redis.call('HDEL', KEYS[2], ARGV[i + 1]) end
end
"""

# ARGV: the most that the dead stream keeps, about; entries that are no messages. They go there as they came, up to 500
# fields: Lua's stack has a limit. Those that did; of the others only their claim was left.
BURY: Final = """
local buried = {}
for i = 3, #ARGV do
  local found = redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i])[1]
  if found then
    redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[2], '*', unpack(found[2], 1, math.min(#found[2], 1000)))
    buried[#buried + 1] = ARGV[i]
  end
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[i])
  redis.call('XDEL', KEYS[1], ARGV[i])
end
return buried
"""

# ARGV: the consumer; the idle time in ms that its claims get; entries. Those that are no longer the consumer's.
RENEW: Final = """
local lost = {}
for i = 4, #ARGV do
  if #redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2]) > 0 then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'IDLE', ARGV[3], 'JUSTID')
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
"""

# ARGV: a request id. Station id, time, and 1 if a consumer has it.
FIND: Final = """
local entry = redis.call('HGET', KEYS[2], ARGV[2])
local found = entry and redis.call('XRANGE', KEYS[1], entry, entry)[1]
if not found then return false end
local taken = #redis.pcall('XPENDING', KEYS[1], ARGV[1], entry, entry, 1) > 0
return {found[2][4], found[2][6], taken and 1 or 0}
"""

# How many no consumer has, and when the first of them was accepted.
DEPTH: Final = """
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
"""

# Written, because a server may answer and yet take nothing: out of memory, a full disk, a replica.
CHECK: Final = """
redis.call('HSET', KEYS[2], '', '')
return redis.call('HDEL', KEYS[2], '')
"""
