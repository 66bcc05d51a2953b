-- Returns the epoch, and the value kept for each question, or false.
-- KEYS: state; then the hash of each question's token. ARGV: what the generation and the epoch become where they are
-- missing; then each question's station.
local state = redis.call('HMGET', KEYS[1], 'generation', 'epoch')
if not (state[1] and state[2]) then
  state = {ARGV[1], ARGV[1]}
  redis.call('HSET', KEYS[1], 'generation', ARGV[1], 'epoch', ARGV[1])
end
local answers = {state[2]}
for i = 2, #KEYS do
  local value = redis.call('HGET', KEYS[i], ARGV[i])
  local current = value and string.sub(value, 1, #state[1]) == state[1]
  answers[i] = current and string.sub(value, #state[1] + 1)
end
return answers
