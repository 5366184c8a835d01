"""The Lua scripts of `RedisQueue`: each is one step that is done as a whole or not at all."""

from __future__ import annotations

from pathlib import Path

__all__ = ["scripts"]

# ARGV: max_items, max_bytes, max_attempts, then body, priority, delay, key (with a "k" in front; "" is none)
_PUT = """
local ids, fresh, seen, size = {}, {}, {}, 0
for at = 4, #ARGV, 4 do
  local key, place = ARGV[at + 3], (at - 4) / 4 + 1
  ids[place] = key ~= '' and (seen[key] or redis.call('GET', P .. ':key:' .. key)) or nil
  if not ids[place] then
    table.insert(fresh, at)
    size = size + #ARGV[at]
    ids[place] = -#fresh
    if key ~= '' then seen[key] = -#fresh end
  end
end
local function fits()
  local total = redis.call('HMGET', P .. ':total', 'items', 'bytes')
  local items, bytes = tonumber(total[1] or 0), tonumber(total[2] or 0)
  return items + #fresh <= tonumber(ARGV[1]) and bytes + size <= tonumber(ARGV[2])
end
if #fresh > 0 and not fits() then
  sweep(tonumber(ARGV[3]))
  if not fits() then
    redis.call('DEL', P .. ':room')
    return false
  end
end
if #fresh == 0 then return ids end
local base = redis.call('INCRBY', P .. ':last', #fresh) - #fresh
for place, id in ipairs(ids) do
  if type(id) == 'number' then ids[place] = string.format('%.0f', base - id) end
end
for number, at in ipairs(fresh) do
  local id, level, key = string.format('%.0f', base + number), ARGV[at + 1], ARGV[at + 3]
  redis.call('HSET', message(id), 'body', ARGV[at], 'priority', level, 'attempts', 0, 'token', 0,
    'reason', '', 'key', key, 'state', 'delayed')
  if key ~= '' then redis.call('SET', P .. ':key:' .. key, id) end
  if tonumber(ARGV[at + 2]) > 0 then
    redis.call('ZADD', P .. ':delays', now + ARGV[at + 2], id)
  else
    append(id, level)
  end
end
count(#fresh, size)
return ids
"""

# ARGV: max_attempts, limit, lease, consumer
_TAKE = """
sweep(tonumber(ARGV[1]))
local limit, ends, consumer, found = tonumber(ARGV[2]), now + ARGV[3], ARGV[4], {}
local function lease(id, level)
  local attempts = redis.call('HINCRBY', message(id), 'attempts', 1)
  local token = redis.call('HINCRBY', message(id), 'token', 1)
  local m = redis.call('HMGET', message(id), 'body', 'reason')
  redis.call('HSET', message(id), 'state', 'leased')
  redis.call('ZADD', P .. ':leases', ends, id)
  table.insert(found, {id, m[1], tonumber(level), attempts, ends, token, m[2]})
end
for _, level in ipairs(redis.call('ZREVRANGE', P .. ':levels', 0, -1)) do
  if #found >= limit then break end
  for _, id in ipairs(redis.call('ZRANGE', P .. ':back:' .. level, 0, limit - #found - 1)) do
    redis.call('ZREM', P .. ':back:' .. level, id)
    local entry = redis.call('HGET', message(id), 'entry')
    redis.call('XCLAIM', stream(level), GROUP, consumer, 0, entry, 'JUSTID')
    lease(id, level)
  end
  if #found < limit then
    local read = redis.call('XREADGROUP', 'GROUP', GROUP, consumer, 'COUNT', limit - #found,
      'STREAMS', stream(level), '>')
    for _, entry in ipairs(read and read[1][2] or {}) do lease(entry[2][2], level) end
  end
end
local next = -1
if #found == 0 then
  redis.call('DEL', P .. ':wake')
  for _, set in ipairs({':leases', ':delays'}) do
    local first = redis.call('ZRANGE', P .. set, 0, 0, 'WITHSCORES')[2]
    if first and (next < 0 or first - now < next) then next = first - now end
  end
end
return {found, next}
"""

# ARGV: remember, then id, token; returns the ids that were not held
_ACK = """
local missing, items, bytes = {}, 0, 0
for at = 2, #ARGV, 2 do
  local id = ARGV[at]
  if held(id, ARGV[at + 1]) then
    local m = redis.call('HMGET', message(id), 'priority', 'entry', 'body', 'key')
    redis.call('XACK', stream(m[1]), GROUP, m[2])
    redis.call('XDEL', stream(m[1]), m[2])
    redis.call('ZREM', P .. ':leases', id)
    redis.call('DEL', message(id))
    if m[4] ~= '' then redis.call('PEXPIRE', P .. ':key:' .. m[4], ARGV[1]) end
    items, bytes = items + 1, bytes + #m[3]
    tell(':room')
  else
    table.insert(missing, id)
  end
end
if items > 0 then count(-items, -bytes) end
return missing
"""

# ARGV: max_attempts, id, token, delay, reason
_NACK = """
if not held(ARGV[2], ARGV[3]) then return 0 end
failed(ARGV[2], tonumber(ARGV[1]), tonumber(ARGV[4]), ARGV[5])
return 1
"""

# ARGV: id, token, lease
_EXTEND = """
if not held(ARGV[1], ARGV[2]) then return 0 end
redis.call('ZADD', P .. ':leases', now + ARGV[3], ARGV[1])
return now + ARGV[3]
"""

# ARGV: id, token, …; a cancelled get: as if it had never been, but for the token, which is not given twice
_GIVE_BACK = """
for at = 1, #ARGV, 2 do
  if held(ARGV[at], ARGV[at + 1]) then
    redis.call('ZREM', P .. ':leases', ARGV[at])
    redis.call('HINCRBY', message(ARGV[at]), 'attempts', -1)
    back(ARGV[at], redis.call('HGET', message(ARGV[at]), 'priority'))
  end
end
"""

# ARGV: max_attempts
_STATS = """
sweep(tonumber(ARGV[1]))
local total = redis.call('HMGET', P .. ':total', 'items', 'bytes')
local leased, delayed = redis.call('ZCARD', P .. ':leases'), redis.call('ZCARD', P .. ':delays')
return {tonumber(total[1] or 0) - leased - delayed, delayed, leased, redis.call('XLEN', P .. ':dead'),
  tonumber(total[2] or 0)}
"""

# ARGV: max_attempts, limit
_DEAD_LETTERS = """
sweep(tonumber(ARGV[1]))
local found = {}
for _, entry in ipairs(redis.call('XRANGE', P .. ':dead', '-', '+', 'COUNT', ARGV[2])) do
  local m = redis.call('HMGET', message(entry[2][2]), 'body', 'priority', 'attempts', 'reason')
  table.insert(found, {entry[2][2], m[1], tonumber(m[2]), tonumber(m[3]), m[4]})
end
return found
"""

# ARGV: max_attempts, then the ids, or none for all
_REQUEUE = """
sweep(tonumber(ARGV[1]))
local ids, done = {unpack(ARGV, 2)}, 0
if #ids == 0 then
  for _, entry in ipairs(redis.call('XRANGE', P .. ':dead', '-', '+')) do table.insert(ids, entry[2][2]) end
end
for _, id in ipairs(ids) do
  local m = redis.call('HMGET', message(id), 'state', 'priority', 'entry', 'body')
  if m[1] == 'dead' then
    redis.call('XDEL', P .. ':dead', m[3])
    redis.call('HSET', message(id), 'attempts', 0, 'reason', '')
    append(id, m[2])
    count(1, #m[4])
    done = done + 1
  end
end
return done
"""

_SCRIPTS = {
    "put": _PUT,
    "take": _TAKE,
    "ack": _ACK,
    "nack": _NACK,
    "extend": _EXTEND,
    "give_back": _GIVE_BACK,
    "stats": _STATS,
    "dead_letters": _DEAD_LETTERS,
    "requeue": _REQUEUE,
}


def scripts() -> dict[str, str]:
    """The whole text of each script by its name."""
    prelude = Path(__file__).with_name("redis.lua").read_text(encoding="utf-8")
    # A server without memory refuses a put before its first step; consumers may go on, for that makes room.
    return {
        name: ("#!lua\n" if name == "put" else "#!lua flags=allow-oom\n") + prelude + text
        for name, text in _SCRIPTS.items()
    }
