-- KEYS[1] has the last id of the newest batch that was written, ARGV[1] is that of this one, ARGV[2] are its rows. A process that
-- was held up, and comes with what it read before others went on, is refused: what it has may be old. The same batch
-- again is not.
local function parts(id)  -- without leading zeros: of two numbers the longer one is greater
  return string.match(id, '^0*(%d*)%-0*(%d*)$')
end

local function less(a, b)
  return #a < #b or (#a == #b and a < b)
end

local newest = redis.call('GET', KEYS[1]) or '0-0'
local newest_ms, newest_seq = parts(newest)
local ms, seq = parts(ARGV[1])
if less(ms, newest_ms) or (ms == newest_ms and less(seq, newest_seq)) then
  return redis.error_reply('ERR batch ' .. ARGV[1] .. ' is older than ' .. newest .. ', which was written already')
end

for key, fields in string.gmatch(ARGV[2], '([^\t\n]+)\t([^\n]*)\n') do
  redis.call('FT.DEL', 'products', key, 'DD')  -- with its fields, which REPLACE would leave
  if fields ~= '' then
    redis.call('FT.ADD', 'products', key, '1', 'FIELDS', unpack(cjson.decode(fields)))
  end
end
redis.call('SET', KEYS[1], ARGV[1])
