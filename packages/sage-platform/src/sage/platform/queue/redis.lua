-- What every script of RedisQueue starts with. KEYS[1] is the prefix, which holds a hash tag: all keys of a queue
-- live on one node, whose clock is the clock of the queue. Times are in milliseconds.
--   :message:<id>     hash   body priority state attempts token reason entry (its place in a stream) key
--   :stream:<level>   stream of ids, group "consumers"; what is leased, or was, is in the group's pending list
--   :back:<level>     sorted set by id: pending, and free to be leased again
--   :leases :delays   sorted sets by the time when the lease or the delay ends
--   :dead             stream of ids     :levels  priorities that were ever used     :total  items, bytes
--   :key:<key>        the id for an idempotency key      :wake :room  lists on which gets and puts wait
local P = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local GROUP = 'consumers'

local function message(id) return P .. ':message:' .. id end
local function stream(level) return P .. ':stream:' .. level end

-- One token per possible waiter, at most 64: who finds nothing after waking empties the list.
local function tell(list)
  if redis.call('LLEN', P .. list) < 64 then redis.call('LPUSH', P .. list, 1) end
end

local function count(items, bytes)
  redis.call('HINCRBY', P .. ':total', 'items', items)
  redis.call('HINCRBY', P .. ':total', 'bytes', bytes + 0) -- Lua would write a negative zero as "-0"
end

local function append(id, level)
  if redis.call('ZADD', P .. ':levels', level, level) == 1 then
    redis.call('XGROUP', 'CREATE', stream(level), GROUP, '0', 'MKSTREAM')
  end
  local entry = redis.call('XADD', stream(level), '*', 'id', id)
  redis.call('HSET', message(id), 'state', 'ready', 'entry', entry)
  tell(':wake')
end

local function back(id, level)
  redis.call('HSET', message(id), 'state', 'back')
  redis.call('ZADD', P .. ':back:' .. level, id, id)
  tell(':wake')
end

-- An attempt at a leased message has failed.
local function failed(id, max_attempts, delay, reason)
  local m = redis.call('HMGET', message(id), 'priority', 'attempts', 'entry', 'body')
  redis.call('ZREM', P .. ':leases', id)
  redis.call('HSET', message(id), 'reason', reason)
  if tonumber(m[2]) >= max_attempts then
    redis.call('XACK', stream(m[1]), GROUP, m[3])
    redis.call('XDEL', stream(m[1]), m[3])
    redis.call('HSET', message(id), 'state', 'dead', 'entry', redis.call('XADD', P .. ':dead', '*', 'id', id))
    count(-1, -#m[4])
    tell(':room')
  elseif delay > 0 then
    redis.call('HSET', message(id), 'state', 'delayed again')
    redis.call('ZADD', P .. ':delays', now + delay, id)
  else
    back(id, m[1])
  end
end

-- Delays and leases that are over; at most 1,000 of each, so that no script holds the server for long.
local function sweep(max_attempts)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. ':delays', '-inf', now, 'LIMIT', 0, 1000)) do
    redis.call('ZREM', P .. ':delays', id)
    local m = redis.call('HMGET', message(id), 'state', 'priority')
    if m[1] == 'delayed' then append(id, m[2]) else back(id, m[2]) end
  end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. ':leases', '-inf', now, 'LIMIT', 0, 1000)) do
    failed(id, max_attempts, 0, 'the lease ended')
  end
end

local function held(id, token)
  local ends = redis.call('ZSCORE', P .. ':leases', id)
  return ends and tonumber(ends) > now and redis.call('HGET', message(id), 'token') == token
end
