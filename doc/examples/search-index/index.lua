-- KEYS[1] has the last id of the newest batch that was written, ARGV[1] is that of this one, ARGV[2] are its rows. What ends
-- before that is ignored: a process that was held up comes with rows that it read before others went on. No error, since a
-- batch that was written and not committed may come again as a smaller one, whose rows are there already. The same batch
-- again is written.
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
  return 'ignored'
end

for key, fields in string.gmatch(ARGV[2], '([^\t\n]+)\t([^\n]*)\n') do
  redis.call('FT.DEL', 'products', key, 'DD')  -- with its fields, which REPLACE would leave
  if fields ~= '' then
    redis.call('FT.ADD', 'products', key, '1', 'FIELDS', unpack(cjson.decode(fields)))
  end
end
redis.call('SET', KEYS[1], ARGV[1])
