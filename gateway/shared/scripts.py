"""The Lua scripts by which Redis decides for all gateways, and how they are called.

Each is one atomic step on Redis' own clock (TIME), so that the gateways' clocks do not matter. What a limit has let
pass is one value a scope (MessagePack, some 50 bytes): the time, the TAT and the interval of requests, the TAT and the
interval of tokens, the TAT of the last mark and the last number given, then three numbers a mark. It is `gateway/
limits/gcra.py` line by line, with four differences:

* There are at most MARKS_MAX marks. Beyond, the two neighbours are made one whose difference is least, and the marks
  behind them take the higher TAT. A refund goes down to the TAT of the next mark and no further, so a higher one gives
  back less: never more passes than the shipped class would let pass, only, among more than MARKS_MAX requests in flight
  of a caller that outruns its limit, less.
* A reservation's number holds the time (microseconds), so one of before Redis was emptied is never taken for another.
* A gateway that is silent has its share left to it: for the others each interval is longer by that.
* Where the clock went back since a scope was used (it was set, or another machine is the primary now), its TATs go back
  as far: nobody is locked out by it, and nothing is handed out twice.

A value is forgotten a second after all that it knows is paid off. What is no value of ours counts as none.

Pure values: no state, no lock, no I/O.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from gateway.shared.redislink import Command

MARKS_MAX = 64
PLACE_BYTES = 12
"""With which a gateway's name begins."""

CLOCK = """
local a = {struct.unpack('>' .. string.rep('d', #ARGV[1] / 8), ARGV[1])}
local now = a[1]
if now < 0 then
  local t = redis.call('TIME')
  now = (t[1] - 1750000000) + t[2] / 1000000
end
"""

_LIMITS = """
local MOST = 7 + 3 * MARKS_MAX
local function read(key)
  local value = redis.call('GET', key)
  if value then
    local ok, s = pcall(cmsgpack.unpack, value)
    ok = ok and type(s) == 'table' and #s >= 7 and #s % 3 == 1
    for i = 1, ok and #s or 0 do ok = ok and type(s[i]) == 'number' and s[i] - s[i] == 0 end
    if ok then
      local back = s[1] - now
      if back > 0 then
        s[2], s[4], s[6] = s[2] - back, s[4] - back, s[6] - back
      end
      s[1] = now
      return s, back > 0
    end
  end
  return {now, now, 0, now, 0, now, 0}, false
end
local function write(key, s)
  local ahead = math.max(s[2], s[4]) - now
  redis.call('SET', key, cmsgpack.pack(s), 'PX', math.ceil(math.max(ahead, 0) * 1000) + 1000)
end
local function size(s, requests, tokens)
  local changes = (requests > 0 and requests ~= s[3]) or (tokens > 0 and tokens ~= s[5])
  if requests > 0 and requests ~= s[3] then
    if s[3] > 0 and s[2] > now then s[2] = now + (s[2] - now) * requests / s[3] end
    s[3] = requests
  end
  if tokens > 0 and tokens ~= s[5] then
    if s[5] > 0 then
      local ratio = tokens / s[5]
      for i = 9, #s, 3 do s[i] = s[i] * ratio end
      s[6] = now + (s[6] - now) * ratio
      s[4] = now + math.max(s[4] - now, 0) * ratio
    end
    s[5] = tokens
  end
  return changes
end
local function drop(s, at)
  for i = at, #s - 3 do s[i] = s[i + 3] end
  local n = #s
  s[n], s[n - 1], s[n - 2] = nil, nil, nil
end
local function bound(s)
  local least = 11
  for i = 14, #s - 3, 3 do
    if s[i + 1] < s[least + 1] then least = i end
  end
  local gap = s[least + 1]
  s[least - 1] = s[least - 1] + s[least + 2]
  drop(s, least)
  if least + 2 == #s then s[6] = s[6] + gap else s[least + 1] = s[least + 1] + gap end
end
local function add(s, amount, open)
  local number = math.max(s[7] + 1, math.floor(now * 1000000))
  local seconds = amount * s[5]
  s[7] = number
  if s[4] <= now or #s < 10 then
    for i = #s, 11, -1 do s[i] = nil end
    s[4] = math.max(s[4], now) + seconds
    s[6], s[8], s[9], s[10] = s[4], number, 0, open
    return number
  end
  while #s > 10 and s[6] <= now do
    local n = #s
    s[n - 3] = s[n - 3] + s[n]
    s[6] = s[6] + s[n - 4]
    drop(s, n - 2)
  end
  local n = #s
  if s[n] > 0 then
    s[n - 1] = s[6] - now
    s[6] = now + seconds
    s[n + 1], s[n + 2], s[n + 3] = number, 0, open
    if n + 3 > MOST then bound(s) end
  else
    s[n] = open
    s[6] = s[6] + seconds
  end
  s[4] = s[4] + seconds
  return number
end
local function lower(s, at, by)
  if at == #s - 2 then
    s[6], s[4] = s[6] - by, s[4] - by
    return at
  end
  while at >= 8 and s[at + 1] <= by do
    local gap, open = s[at + 1], s[at + 2]
    drop(s, at)
    by, s[4] = by - gap, s[4] - gap
    at = at - 3
    if at >= 8 then s[at + 2] = s[at + 2] + open end
  end
  if at >= 8 then
    s[at + 1], s[4] = s[at + 1] - by, s[4] - by
  end
  return at
end
local function merge(s, at)
  if at + 3 > #s then return end
  local last = at + 5 == #s
  s[at + 2] = s[at + 5]
  if last then s[6] = s[6] + s[at + 1] else s[at + 1] = s[at + 1] + s[at + 4] end
  drop(s, at + 3)
end
local function settle(s, number, reserved, real)
  local at = #s - 2
  while at >= 8 and s[at] > number do at = at - 3 end
  if at >= 8 then
    s[at + 2] = math.max(s[at + 2] - 1, 0)
    if real < reserved then at = lower(s, at, (reserved - real) * s[5]) end
    if at >= 8 and s[at + 2] == 0 then merge(s, at) end
  end
  if real > reserved then add(s, real - reserved, 0) end
end
""".replace("MARKS_MAX", str(MARKS_MAX))

# KEYS: a scope each, the places (where there is a limit of them), the gateways. ARGV: the time (-1: Redis' own), the
# tokens, the places, the seconds for which one is held, then five numbers a scope; the name of the place.
# A gateway that is silent may go on by its share (`_BEAT`), so the others have what is left: the intervals are longer.
# Replies: how many gateways there are, how long to wait (0: it passes), for which limit, whether the places are full;
# then for each scope how far its TATs are ahead (in seconds of the whole limit), and the reservation's number.
_ADMIT = """
local function wait_for(ahead, amount, interval, burst, largest)
  if amount <= burst then
    ahead = ahead + (amount - burst) * interval
  elseif amount > largest then
    return math.huge
  end
  if ahead > 0.000001 then return ahead end
  return 0
end
local tokens, places = a[2], a[3]
local count = (#a - 5) / 5
local known = redis.call('ZCARD', KEYS[#KEYS])
local here = math.max(redis.call('ZCOUNT', KEYS[#KEYS], now, '+inf'), 1)
local longer = 1 + math.max(math.min(known - here, here + 1), 0) / here
local scopes, changed, longest, which, full = {}, {}, 0, 0, 0
for i = 1, count do
  local at = 5 * i
  a[at], a[at + 2] = a[at] * longer, a[at + 2] * longer
  local s, moved = read(KEYS[i])
  scopes[i] = s
  changed[i] = size(s, a[at], a[at + 2]) or moved
  if a[at] > 0 then
    local wait = wait_for(math.max(s[2] - now, 0), 1, a[at], a[at + 1], a[at + 1])
    if wait > longest then longest, which = wait, 2 * i - 1 end
  end
  if a[at + 2] > 0 then
    local wait = wait_for(math.max(s[4] - now, 0), tokens, a[at + 2], a[at + 3], a[at + 4])
    if wait > longest then longest, which = wait, 2 * i end
  end
end
local held = KEYS[count + 1]
if places > 0 and redis.call('ZCARD', held) >= places then
  redis.call('ZREMRANGEBYSCORE', held, '-inf', now)
  redis.call('ZREMRANGEBYSCORE', held, now + 2 * a[4], '+inf')
  if redis.call('ZCARD', held) >= places then full = 1 end
end
local passes = longest == 0 and full == 0
local out = {known, longest, which, full}
for i = 1, count do
  local at, s, number = 5 * i, scopes[i], 0
  if passes then
    if a[at] > 0 then s[2] = math.max(s[2], now) + a[at] end
    if a[at + 2] > 0 then number = add(s, tokens, 1) end
  end
  if passes or changed[i] then write(KEYS[i], s) end
  out[#out + 1] = math.max(s[2] - now, 0) / longer
  out[#out + 1] = math.max(s[4] - now, 0) / longer
  out[#out + 1] = number
end
if passes and places > 0 then
  redis.call('ZADD', held, now + a[4], ARGV[2])
  redis.call('EXPIRE', held, 2 * a[4])
end
return struct.pack('>' .. string.rep('d', #out), unpack(out))
"""

# KEYS: a scope each. ARGV: the time, the tokens reserved, those used, then for each scope its interval and the number.
_SETTLE = """
for i = 1, #KEYS do
  local interval, number = a[2 + 2 * i], a[3 + 2 * i]
  local s = read(KEYS[i])
  if #s > 7 or a[3] > a[2] then
    if s[5] == 0 then s[5] = interval end
    settle(s, number, a[2], a[3])
    write(KEYS[i], s)
  end
end
"""

# What has passed without Redis. KEYS: a scope. ARGV: the time, the intervals of requests and of tokens, how many
# seconds' worth of each has passed, and how far the TATs are ahead at least without that.
_CHARGE = """
local s = read(KEYS[1])
size(s, a[2], a[3])
if a[2] > 0 then s[2] = math.max(s[2], now + a[6]) + a[4] end
if a[3] > 0 then
  local seconds = math.max(now + a[7] - math.max(s[4], now), 0) + a[5]
  if seconds > 0 then add(s, seconds / a[3], 0) end
end
write(KEYS[1], s)
"""

# KEYS: the places of a key. ARGV: the time, the seconds for which they are held; their names.
_RENEW = """
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], now + a[2], ARGV[i]) end
redis.call('EXPIRE', KEYS[1], 2 * a[2])
"""

# KEYS: the gateways. ARGV: the time, the seconds until one counts as silent, those until it is forgotten then; its
# name, which begins with its place: a silent one of the same place has ended, and this one has come for it. Replies how
# many there are, silent ones too. A score is until when one is not silent.
_BEAT = """
for _, silent in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do
  if string.sub(silent, 1, PLACE_BYTES) == string.sub(ARGV[2], 1, PLACE_BYTES) then
    redis.call('ZREM', KEYS[1], silent)
  end
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - a[3])
redis.call('ZREMRANGEBYSCORE', KEYS[1], now + 5 * a[2], '+inf')
redis.call('ZADD', KEYS[1], now + a[2], ARGV[2])
redis.call('EXPIRE', KEYS[1], math.ceil(2 * a[2] + a[3]))
return redis.call('ZCARD', KEYS[1])
""".replace("PLACE_BYTES", str(PLACE_BYTES))


class Script:
    """A script, known to Redis by its digest once it has been sent whole."""

    __slots__ = ("_sha", "_text")

    def __init__(self, text: str) -> None:
        self._text = text.encode("ascii")
        self._sha = hashlib.sha1(self._text).hexdigest().encode()  # how Redis names it

    def command(self, keys: Sequence[bytes], arguments: Sequence[Any], whole: bool = False) -> Command:
        """Call it; `whole`: Redis does not know it yet."""
        head = (b"EVAL", self._text) if whole else (b"EVALSHA", self._sha)
        return (*head, len(keys), *keys, *arguments)


ADMIT = Script(CLOCK + _LIMITS + _ADMIT)
SETTLE = Script(CLOCK + _LIMITS + _SETTLE)
CHARGE = Script(CLOCK + _LIMITS + _CHARGE)
RENEW = Script(CLOCK + _RENEW)
BEAT = Script(CLOCK + _BEAT)
