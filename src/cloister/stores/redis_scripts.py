"""What Redis does for one request, all at once: a Lua script for each phase.

Every script is given a nonce and answers with it first, then with what became of the request. All keys of a script lie
in one slot. Expiry is never Redis' decision: a key's time to live only collects garbage, and is relative, with grace.
"""

from __future__ import annotations

import hashlib
from functools import cache

from cloister.stores import redis_accounts as accounts
from cloister.stores.redis_prints import LIBRARY

# KEYS of a session, in this order wherever one is meant: what outlives it, what is destroyed with it, items, lease,
# records, and where its place keeps what is due, what is over, all there is, whose an id is, the log, and when records
# end. Before them all, ARGV[1] is the nonce.
_NAMES = """
local plain, live, items, lease, records = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local due, over, all, whose, log, ends = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local nonce = ARGV[1]
local function write(first, count)
    -- The moment before which the first entry must not lie, then the entries; says the moment of the last.
    local moment = ARGV[first]
    for n = first + 1, first + count - 1 do
        local id = redis.call('XADD', log, '*', 'e', ARGV[n])
        if tonumber(string.match(id, '^%d+')) < tonumber(moment) then -- the clock was set back
            redis.call('XDEL', log, id)
            id = redis.call('XADD', log, moment .. '-0', 'e', ARGV[n])
        end
        moment = string.match(id, '^%d+')
    end
    return moment
end
local function live_for(seconds, longer)
    for _, key in ipairs({live, items, records}) do redis.call('PEXPIRE', key, seconds) end
    for _, key in ipairs({plain, whose}) do redis.call('PEXPIRE', key, longer) end
end
local function again()
    -- Written once more as it is, so that waiting for replicas waits for what was there already.
    redis.call('HSET', live, 'turn', redis.call('HGET', live, 'turn'))
    return 'repeated'
end
local function state()
    local s = redis.call('HMGET', plain, 'id', 'tenant', 'user', 'created', 'updated', 'expires', 'carry', 'ended',
                         'version')
    local h = redis.call('HMGET', live, 'wrapped', 'head', 'count', 'tokens', 'turn')
    -- The secret has been collected before anybody ended the session: that is an expiry too.
    if s[1] and not s[8] and not h[1] then s[8] = 'expired' end
    return s, h
end
"""

LOAD = (
    _NAMES
    + """
-- ARGV: nonce, lease or '', its life in ms, budget, record or ''
local s, h = state()
local record = ARGV[5] ~= '' and redis.call('HGET', records, ARGV[5]) or false
if not s[1] or s[8] then return {nonce, s[1] and 'over' or 'none', s, h, record} end
if ARGV[2] ~= '' then
    local holder = redis.call('GET', lease)
    if holder and holder ~= ARGV[2] then return {nonce, 'busy'} end
    -- reserved here
    redis.call('SET', lease, ARGV[2], 'PX', ARGV[3])
end
local found, left, at = {}, tonumber(ARGV[4]), redis.call('LLEN', items)
while at > 0 and left >= 0 do
    local first = math.max(at - 48, 0)
    local part = redis.call('LRANGE', items, first, at - 1)
    for n = #part, 1, -1 do
        if left < 0 then break end
        found[#found + 1] = part[n]
        at = at - 1
        left = left - tonumber(string.match(part[n], '^%d+'))
    end
end
local before = at > 0 and string.sub(redis.call('LINDEX', items, at - 1), -16) or ''
return {nonce, 'live', s, h, record, at, before, found}
"""
)

PAGE = (
    _NAMES
    + """
-- ARGV: nonce, first position, last position
local s, h = state()
return {nonce, 'live', s, h, redis.call('LRANGE', items, ARGV[2], ARGV[3])}
"""
)

RENEW = (
    _NAMES
    + """
-- ARGV: nonce, lease, its life in ms
if redis.call('GET', lease) ~= ARGV[2] then return {nonce, 'lease'} end
redis.call('PEXPIRE', lease, ARGV[3])
return {nonce, 'done'}
"""
)

RELEASE = (
    _NAMES
    + """
-- ARGV: nonce, lease
if redis.call('GET', lease) == ARGV[2] then redis.call('DEL', lease) end
return {nonce, 'done'}
"""
)

# ARGV: nonce, times to live in ms (secret and tombstone or '', record), count of entries, of items, 'instead' or '',
# the record's field, value, end and whose it is, the value that it replaces and what may be left of that, then `plain`
# and `live` as they are to be, entries, items, what was
# said. KEYS has what it comes instead of, where the record is filed, and scopes behind those of the session.
CREATE = (
    _NAMES
    + LIBRARY
    + """
local instead, filed = KEYS[12], KEYS[13]
local n = 13
local fields = {}
for k = 1, 9 do fields[k] = ARGV[n + k] end
n = n + 9
local values = {}
for k = 1, 5 do values[k] = ARGV[n + k] end
n = n + 5
local s, h = state()
if s[1] then return {nonce, h[5] == values[5] and again() or 'taken'} end
if ARGV[7] == 'instead' then
    local before = redis.call('HMGET', instead, 'id', 'ended')
    if not before[1] or before[2] == 'ended' then return {nonce, 'ended'} end
end
if ARGV[8] ~= '' then
    local there = redis.call('HGET', filed, ARGV[8])
    if there and there ~= ARGV[12] and there ~= ARGV[13] then return {nonce, 'record'} end
    redis.call('HSET', filed, ARGV[8], ARGV[9])
    redis.call('PEXPIRE', filed, ARGV[4])
    redis.call('ZADD', ends, ARGV[10], ARGV[11] .. ' ' .. ARGV[8])
end
local names = {'id', 'tenant', 'user', 'created', 'updated', 'expires', 'carry', 'version', 'digest'}
for k, name in ipairs(names) do
    if fields[k] ~= '' or name == 'tenant' then redis.call('HSET', plain, name, fields[k]) end
end
redis.call('HSET', live, 'wrapped', values[1], 'head', values[2], 'count', values[3], 'tokens', values[4], 'turn',
           values[5])
local entries, rows = tonumber(ARGV[5]), tonumber(ARGV[6])
local moment = write(n + 1, entries)
for k = n + entries + 1, n + entries + rows do redis.call('RPUSH', items, ARGV[k]) end
redis.call('SET', whose, fields[9])
redis.call('ZADD', all, 0, fields[9])
if fields[6] ~= '' then redis.call('ZADD', due, fields[6], fields[9]) end
local said = spoken(plain, n + entries + rows + 1, 14) -- settled here
if ARGV[2] ~= '' then live_for(ARGV[2], ARGV[3]) end
return {nonce, 'stored', moment, said}
"""
)

# ARGV: nonce, version read, lease, turn, times to live (secret, tombstone, records), version, count, tokens, updated,
# expires, head, digest, record's field, record's value, count of entries, of items, the record's end, entries, items,
# what was said. KEYS has scopes behind those of the session.
COMMIT = (
    _NAMES
    + LIBRARY
    + """
local s, h = state()
if not s[1] or s[8] then return {nonce, 'ended'} end
if h[5] == ARGV[4] then return {nonce, again()} end
if redis.call('GET', lease) ~= ARGV[3] then return {nonce, 'lease'} end
if s[9] ~= ARGV[2] then return {nonce, 'version'} end
local appended = tonumber(ARGV[18])
if appended > 0 and redis.call('LLEN', items) + appended ~= tonumber(ARGV[9]) then return {nonce, 'version'} end
if ARGV[15] ~= '' then
    if redis.call('HSETNX', records, ARGV[15], ARGV[16]) == 0 then return {nonce, 'record'} end
    redis.call('PEXPIRE', records, ARGV[7])
    redis.call('ZADD', ends, ARGV[19], ARGV[14] .. ' ' .. ARGV[15])
end
redis.call('HSET', plain, 'version', ARGV[8], 'updated', ARGV[11])
redis.call('HSET', live, 'count', ARGV[9], 'tokens', ARGV[10], 'turn', ARGV[4], 'head', ARGV[13])
if ARGV[12] ~= '' then
    redis.call('HSET', plain, 'expires', ARGV[12])
    redis.call('ZADD', due, ARGV[12], ARGV[14])
else
    redis.call('HDEL', plain, 'expires')
    redis.call('ZREM', due, ARGV[14])
end
local entries, rows = tonumber(ARGV[17]), tonumber(ARGV[18])
local moment = write(20, entries)
for k = 20 + entries, 19 + entries + rows do redis.call('RPUSH', items, ARGV[k]) end
local said = spoken(plain, 20 + entries + rows, 12) -- settled here
if ARGV[5] ~= '' then
    live_for(ARGV[5], ARGV[6])
else
    for _, key in ipairs({plain, live, items, whose}) do redis.call('PERSIST', key) end
end
redis.call('DEL', lease)
return {nonce, 'stored', moment, said}
"""
)

# The same with charges, behind all other arguments. The keys of accounts come before those of scopes.
CHARGED = {
    LOAD: accounts.LIBRARY
    + LOAD.replace(
        "-- reserved here",
        """if not record then
        local full = reserve(12)
        if full > 0 then return {nonce, 'full', full} end
    end""",
    ),
    CREATE: accounts.LIBRARY + CREATE.replace("14) -- settled here", "17)\nsettle(14)"),
    COMMIT: accounts.LIBRARY + COMMIT.replace("12) -- settled here", "15)\nsettle(12)"),
}

# ARGV: nonce, 'expired' or 'ended', now, version or '', lease or '', digest, count of entries, entries
END = (
    _NAMES
    + LIBRARY
    + """
local s, h = state()
if not s[1] or (not h[1] and (s[8] == 'ended' or redis.call('HGET', plain, 'ended') == ARGV[2])) then
    return {nonce, 'nothing'}
end
if ARGV[4] ~= '' then
    local holder = redis.call('GET', lease)
    if s[9] ~= ARGV[4] or (holder and holder ~= ARGV[5]) then return {nonce, 'nothing'} end
end
redis.call('DEL', live, items, lease)
local said = silenced(plain, due, ARGV[6])
redis.call('HSET', plain, 'ended', ARGV[2])
if ARGV[2] ~= 'expired' then redis.call('HDEL', plain, 'carry') end
redis.call('ZREM', due, ARGV[6])
redis.call('ZADD', over, ARGV[3], ARGV[6])
local moment = write(8, tonumber(ARGV[7]))
return {nonce, 'stored', moment, said}
"""
)

# ARGV: nonce, digest
DESTROY = (
    _NAMES
    + LIBRARY
    + """
local there, said = redis.call('EXISTS', plain), silenced(plain, due, ARGV[2])
redis.call('DEL', plain, live, items, lease, records, whose)
for _, key in ipairs({due, over, all}) do redis.call('ZREM', key, ARGV[2]) end
return {nonce, 'done', there, said}
"""
)

# ARGV: nonce, old wrapped, old carry, wrapped, carry; each as '+bytes', or '-' for none
REWRAP = (
    _NAMES
    + """
local s, h = state()
local function tagged(value) return value and '+' .. value or '-' end
if not s[1] or tagged(h[1]) ~= ARGV[2] or tagged(s[7]) ~= ARGV[3] then return {nonce, 'nothing'} end
if ARGV[4] ~= '-' then redis.call('HSET', live, 'wrapped', string.sub(ARGV[4], 2)) end
if ARGV[5] ~= '-' then
    redis.call('HSET', plain, 'carry', string.sub(ARGV[5], 2))
else
    redis.call('HDEL', plain, 'carry')
end
return {nonce, 'stored'}
"""
)

# ARGV: nonce, the record's field, the session's digest, the record, what is left of it or ''
UNRECORD = (
    _NAMES
    + """
if redis.call('HGET', records, ARGV[2]) ~= ARGV[4] then return {nonce, 0} end
if ARGV[5] ~= '' then
    redis.call('HSET', records, ARGV[2], ARGV[5])
else
    redis.call('ZREM', ends, ARGV[3] .. ' ' .. ARGV[2])
    redis.call('HDEL', records, ARGV[2])
end
return {nonce, 1}
"""
)

# KEYS as of a session, of which only the log counts; ARGV: nonce, entries
RECORD = (
    _NAMES
    + """
return {nonce, 'stored', write(2, #ARGV - 1)}
"""
)

# KEYS: an owner's name in the log; ARGV: nonce, proposed id or '', salt, tenant, user
NAME = """
local known = redis.call('HGET', KEYS[1], 'id')
if not known and ARGV[2] ~= '' then
    redis.call('HSET', KEYS[1], 'id', ARGV[2], 'salt', ARGV[3], 'tenant', ARGV[4], 'user', ARGV[5])
    known = ARGV[2]
end
return {ARGV[1], known or ''}
"""

# KEYS: the mark; ARGV: nonce, what is wanted, what may be replaced or ''
SETTLE = """
local mark = redis.call('GET', KEYS[1])
if not mark or (ARGV[3] ~= '' and mark == ARGV[3]) then
    redis.call('SET', KEYS[1], ARGV[2])
    mark = ARGV[2]
end
return {ARGV[1], mark}
"""

# KEYS: what is over, when records end, all there is, what ended sessions said, when accounts end, when credentials end,
# all credentials; of one place. ARGV: nonce, now, what tombstones are older than, the beginning of the keys of this
# place. Says whose they were, what they said, and which credentials went.
SWEEP = (
    accounts.SWEEP
    + """
local gone, whose = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. ARGV[3]), {}
for n, digest in ipairs(gone) do
    whose[n] = redis.call('HMGET', ARGV[4] .. 'p:' .. digest, 'tenant', 'user', 'id')
    if whose[n][3] then redis.call('DEL', ARGV[4] .. 'w:' .. redis.sha1hex(whose[n][3])) end
    for _, kind in ipairs({'p:', 'h:', 'i:', 'l:', 'r:'}) do redis.call('DEL', ARGV[4] .. kind .. digest) end
    redis.call('ZREM', KEYS[1], digest)
    redis.call('ZREM', KEYS[3], digest)
end
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', ARGV[2])) do
    local digest, field = string.match(member, '^(%S+) (%S+)$')
    redis.call('HDEL', ARGV[4] .. 'r:' .. digest, field)
    redis.call('ZREM', KEYS[2], member)
end
local ended = {}
for n, digest in ipairs(redis.call('ZRANGEBYSCORE', KEYS[6], '-inf', ARGV[2])) do
    ended[n] = redis.call('HMGET', ARGV[4] .. 'c:' .. digest, 'tenant', 'user', 'kind', 'id', 'digest')
    redis.call('DEL', ARGV[4] .. 'c:' .. digest)
    redis.call('ZREM', KEYS[6], digest)
    redis.call('ZREM', KEYS[7], digest)
end
return {ARGV[1], 'done', whose, redis.call('SMEMBERS', KEYS[4]), ended}
"""
)

# Of a credential, KEYS are its row, where its place keeps all there are and when they end, and, as of a session, the
# log. ARGV: nonce, its digest in letters, how long it lives in ms or '', count of entries, what the row is to have, in
# the order of the names, entries
ENROL = (
    _NAMES
    + """
local names = {'kind', 'tenant', 'user', 'id', 'created', 'expires', 'sealed', 'digest'}
local row, all, ends = KEYS[1], KEYS[2], KEYS[3]
local known = redis.call('HMGET', row, unpack(names))
if known[8] then
    for n = 1, 6 do
        if known[n] ~= ARGV[4 + n] then return {nonce, 'credential'} end
    end
    redis.call('HSET', row, 'digest', known[8])
    return {nonce, 'repeated'}
end
for n, name in ipairs(names) do redis.call('HSET', row, name, ARGV[4 + n]) end
redis.call('ZADD', all, 0, ARGV[2])
if ARGV[10] ~= '' then redis.call('ZADD', ends, ARGV[10], ARGV[2]) end
if ARGV[3] ~= '' then redis.call('PEXPIRE', row, ARGV[3]) end
return {nonce, 'stored', write(13, tonumber(ARGV[4]))}
"""
)

# KEYS as above. ARGV: nonce, its digest in letters, count of entries, entries, then names and what they must have
REVOKE = (
    _NAMES
    + """
local row, all, ends = KEYS[1], KEYS[2], KEYS[3]
local entries = tonumber(ARGV[3])
for n = 4 + entries, #ARGV, 2 do
    if redis.call('HGET', row, ARGV[n]) ~= ARGV[n + 1] then return {nonce, 'nothing'} end
end
redis.call('DEL', row)
redis.call('ZREM', all, ARGV[2])
redis.call('ZREM', ends, ARGV[2])
return {nonce, 'stored', write(4, entries)}
"""
)

# KEYS: a row; ARGV: nonce, what is sealed from now on, then names and what they must have
RESEAL = """
for n = 3, #ARGV, 2 do
    if redis.call('HGET', KEYS[1], ARGV[n]) ~= ARGV[n + 1] then return {ARGV[1], 0} end
end
redis.call('HSET', KEYS[1], 'sealed', ARGV[2])
return {ARGV[1], 1}
"""

# KEYS: a list; ARGV: nonce, a member, between what those with its id lie. Says whether it is new there; -1: the id is
# another's.
ENLIST = """
local there = redis.call('ZRANGEBYLEX', KEYS[1], ARGV[3], ARGV[4])
if there[1] and there[1] ~= ARGV[2] then return {ARGV[1], -1} end
return {ARGV[1], redis.call('ZADD', KEYS[1], 0, ARGV[2])}
"""

# KEYS: what is due; ARGV: nonce, the digest of a session that is not there any more
FORGET = """
redis.call('ZREM', KEYS[1], ARGV[2])
return {ARGV[1], 'done'}
"""

# KEYS: logs; ARGV: nonce, how many entries of each, where to begin and to end in each
TRAIL = """
local found = {}
for n, log in ipairs(KEYS) do
    found[n] = redis.call('XRANGE', log, ARGV[2 * n + 1], ARGV[2 * n + 2], 'COUNT', ARGV[2])
end
return {ARGV[1], found}
"""

# KEYS: logs; ARGV: nonce, how many entries of each. The newest first.
TAIL = """
local found = {}
for n, log in ipairs(KEYS) do found[n] = redis.call('XREVRANGE', log, '+', '-', 'COUNT', ARGV[2]) end
return {ARGV[1], found}
"""

# KEYS: a log; ARGV: nonce, entries to drop
DROP = """
return {ARGV[1], redis.call('XDEL', KEYS[1], unpack(ARGV, 2))}
"""

# A read of one key, with the nonce back. KEYS: one; ARGV: nonce, command, arguments behind the key
READ = """
local command = {ARGV[2], KEYS[1]}
for n = 3, #ARGV do command[n] = ARGV[n] end
return {ARGV[1], redis.call(unpack(command))}
"""


@cache
def name_of(script: str) -> bytes:
    """Give the name under which the server keeps *script*, which Redis makes of its text by SHA-1."""
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest().encode()
