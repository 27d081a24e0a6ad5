"""Fingerprints in Redis: all of one scope in one slot, in hashes so small that Redis packs them.

A scope has two tables: of digests, with the numbers of up to three sessions that said it, or nothing where anybody may
say it; and of sessions, each under a number made from its key, with its end and its owner. Where a session is not in
the second any more, what it said is nobody's, and sweeping takes it out of the first some hashes at a time. Each table
grows by one hash whenever there are 64 fields to each (linear hashing), so that a small scope takes little room too.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

import msgspec

from cloister.errors import IntegrityError
from cloister.model import Owner, SealedSession
from cloister.sealing import fields
from cloister.stores.base import MOST_CLAIMS, Fingerprint

LIBRARY = """
local function opened(meta, kind)
    local known = redis.call('HMGET', meta, kind, kind .. ' count')
    local t = {meta = meta, kind = kind, base = string.sub(meta, 1, -2) .. kind, buckets = tonumber(known[1] or 1),
               count = tonumber(known[2] or 0), half = 1}
    while t.half * 2 <= t.buckets do t.half = t.half * 2 end
    return t
end
local function place(t, key)
    local one, two = string.byte(key, 1, 2)
    local n = (one + 256 * two) % (t.half * 2)
    return t.base .. (n < t.buckets and n or n - t.half)
end
local function saved(t)
    redis.call('HSET', t.meta, t.kind, t.buckets, t.kind .. ' count', t.count)
end
local function put(t, key, value)
    t.count = t.count + redis.call('HSET', place(t, key), key, value)
    while t.count > 64 * t.buckets and t.buckets < 65536 do
        local from = t.base .. (t.buckets - t.half)
        local held = redis.call('HGETALL', from)
        t.buckets = t.buckets + 1
        if t.buckets == t.half * 2 then t.half = t.buckets end
        for n = 1, #held, 2 do
            local to = place(t, held[n])
            if to ~= from then
                redis.call('HSET', to, held[n], held[n + 1])
                redis.call('HDEL', from, held[n])
            end
        end
    end
end
local function drop(t, key)
    t.count = t.count - redis.call('HDEL', place(t, key), key)
end
local function move(meta, id, value)
    local at = place(opened(meta, 's'), id)
    if redis.call('HEXISTS', at, id) == 1 then redis.call('HSET', at, id, value) end
end
local function speakers(meta)
    -- Gives who said what lies under a number, for as long as it lives.
    local s, known = opened(meta, 's'), {}
    return s, function(id, now)
        if known[id] == nil then
            local value = redis.call('HGET', place(s, id), id)
            local said = value and cmsgpack.unpack(value)
            known[id] = said and (said[1] == 0 or said[1] > now) and said or false
        end
        return known[id]
    end
end
local function claim(meta, id, value, now, first, last)
    -- The fingerprints ARGV[first] to ARGV[last], each behind a letter. Says what there was before, to undo it.
    local d, s, whose = opened(meta, 'd'), speakers(meta)
    local me, claims, undo = cmsgpack.unpack(value), false, {}
    for n = first, last do
        local how, digest = string.sub(ARGV[n], 1, 1), string.sub(ARGV[n], 2)
        local held = redis.call('HGET', place(d, digest), digest)
        if held ~= '' then
            local others = {}
            for k = 1, #(held or ''), 8 do
                local other = string.sub(held, k, k + 7)
                local who = other ~= id and whose(other, now)
                if who and not (who[3] == me[3] and who[4] == me[4]) then others[#others + 1] = other end
            end
            local new = table.concat(others) .. id
            if how == 'c' or (#others >= MOST and how ~= 'u') then
                new = ''
            elseif #others >= MOST then
                new = held
            else
                claims = true
            end
            if new ~= held then
                put(d, digest, new)
                undo[#undo + 1] = digest
                undo[#undo + 1] = held and '+' .. held or '-'
                undo[#undo + 1] = new
            end
        end
    end
    local before = redis.call('HGET', place(s, id), id)
    if claims or before then put(s, id, value) end
    saved(d)
    saved(s)
    return claims or before ~= false, undo, before and '+' .. before or '-'
end
local function spoken(plain, first, key)
    -- ARGV[first]: the session's number, or '' in a cluster, where its fingerprints are elsewhere; what lies under it;
    -- in a cluster the tags of the scopes in which it is. Else now, the beginning of all scopes' keys and, for each of
    -- KEYS from `key` on, how many fingerprints there are and these. Says in which scopes the session is.
    local before = redis.call('HGET', plain, 'prints') or ''
    local tags, id, value = before, ARGV[first], ARGV[first + 1]
    local function add(tag)
        if not string.find(tags, tag, 1, true) then tags = tags .. tag .. ' ' end
    end
    if id == '' then
        for tag in string.gmatch(value, '%S+') do add(tag) end
    else
        local n = first + 4
        for k = key, #KEYS do
            local count = tonumber(ARGV[n])
            if claim(KEYS[k], id, value, tonumber(ARGV[first + 2]), n + 1, n + count) then
                add(string.match(KEYS[k], '{f:(%x+)}:n$'))
            end
            n = n + 1 + count
        end
        for tag in string.gmatch(before, '%S+') do move(ARGV[first + 3] .. tag .. '}:n', id, value) end
    end
    if tags ~= before then redis.call('HSET', plain, 'prints', tags) end
    return tags
end
local function silenced(plain, due, digest)
    -- Where a session was that is over: for whoever asked to see to, and for sweeping, should they not come to it.
    local tags = redis.call('HGET', plain, 'prints')
    if not tags then return '' end
    for tag in string.gmatch(tags, '%S+') do
        redis.call('SADD', string.sub(due, 1, -4) .. 'gone', string.sub(digest, 1, 16) .. ' ' .. tag)
    end
    redis.call('HDEL', plain, 'prints')
    return tags
end
""".replace("MOST", str(MOST_CLAIMS))

# In all of them KEYS is the key of a scope with how large its tables are, and ARGV[1] the nonce.

# ARGV: number, what lies under it, now, fingerprints. Says whether the session is in this scope now, and what was.
CLAIM = (
    LIBRARY
    + """
local there, undo, before = claim(KEYS[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), 5, #ARGV)
return {ARGV[1], there and 1 or 0, before, undo}
"""
)

# ARGV: number, what lies under it, what did before, and for each fingerprint that was changed three: which, what there
# was before, what after. What somebody else changed since stays, without this number.
UNCLAIM = (
    LIBRARY
    + """
local d, s, id = opened(KEYS[1], 'd'), opened(KEYS[1], 's'), ARGV[2]
local function back(t, key, before)
    if before == '-' then drop(t, key) else put(t, key, string.sub(before, 2)) end
end
for n = #ARGV - 2, 5, -3 do -- the last first: one may have been changed twice
    local now = redis.call('HGET', place(d, ARGV[n]), ARGV[n])
    if now == ARGV[n + 2] then
        back(d, ARGV[n], ARGV[n + 1])
    elseif now and not string.find(ARGV[n + 1], id, 2, true) then
        local others = {}
        for k = 1, #now, 8 do
            local other = string.sub(now, k, k + 7)
            if other ~= id then others[#others + 1] = other end
        end
        if now ~= '' then back(d, ARGV[n], #others > 0 and '+' .. table.concat(others) or '-') end
    end
end
if redis.call('HGET', place(s, id), id) == ARGV[3] then back(s, id, ARGV[4]) end
saved(d)
saved(s)
return {ARGV[1], 'done'}
"""
)

# ARGV: number, what lies under it
MOVE = (
    LIBRARY
    + """
move(KEYS[1], ARGV[2], ARGV[3])
return {ARGV[1], 'done'}
"""
)

# ARGV: numbers
FORGET = (
    LIBRARY
    + """
local s = opened(KEYS[1], 's')
for n = 2, #ARGV do drop(s, ARGV[n]) end
saved(s)
return {ARGV[1], 'done'}
"""
)

# ARGV: digests
SEED = (
    LIBRARY
    + """
local d, new = opened(KEYS[1], 'd'), 0
for n = 2, #ARGV do
    if redis.call('HGET', place(d, ARGV[n]), ARGV[n]) ~= '' then
        put(d, ARGV[n], '')
        new = new + 1
    end
end
saved(d)
return {ARGV[1], new}
"""
)

# ARGV: digests. Says for each what lies under its numbers, '' for what is common, and how many there are in all.
WHOSE = (
    LIBRARY
    + """
local d, s, found = opened(KEYS[1], 'd'), opened(KEYS[1], 's'), {}
for n = 2, #ARGV do
    local held = redis.call('HGET', place(d, ARGV[n]), ARGV[n])
    found[n - 1] = held
    if held and held ~= '' then
        local said = {}
        for k = 1, #held, 8 do
            local id = string.sub(held, k, k + 7)
            said[#said + 1] = redis.call('HGET', place(s, id), id) or nil
        end
        found[n - 1] = said
    end
end
return {ARGV[1], d.count, found}
"""
)

SIZES = (
    LIBRARY
    + """
local d, s = opened(KEYS[1], 'd'), opened(KEYS[1], 's')
return {ARGV[1], d.buckets, d.count, s.buckets, s.count}
"""
)

# ARGV: now, first and last hash of the table of sessions. Takes out those that are over; says when the others began.
OVER = (
    LIBRARY
    + """
local s, left = opened(KEYS[1], 's'), {}
for n = tonumber(ARGV[3]), tonumber(ARGV[4]) do
    local held = redis.call('HGETALL', s.base .. n)
    for k = 1, #held, 2 do
        local said = cmsgpack.unpack(held[k + 1])
        if said[1] ~= 0 and said[1] <= tonumber(ARGV[2]) then
            drop(s, held[k])
        else
            left[#left + 1] = held[k]
            left[#left + 1] = said[2]
        end
    end
end
saved(s)
return {ARGV[1], left}
"""
)

# ARGV: now, first and last hash of the table of digests, how many common ones may go too. Takes out what is nobody's,
# and says how many common ones went, and for what is left under how many fingerprints which number is.
CLEAR = (
    LIBRARY
    + """
local d, s, whose = opened(KEYS[1], 'd'), speakers(KEYS[1])
local now, spare, went, counts = tonumber(ARGV[2]), tonumber(ARGV[5]), 0, {}
for n = tonumber(ARGV[3]), tonumber(ARGV[4]) do
    local held = redis.call('HGETALL', d.base .. n)
    for k = 1, #held, 2 do
        local key, value, left = held[k], held[k + 1], {}
        for at = 1, #value, 8 do
            local id = string.sub(value, at, at + 7)
            if whose(id, now) then
                left[#left + 1] = id
                counts[id] = (counts[id] or 0) + 1
            end
        end
        if value == '' and went < spare then
            drop(d, key)
            went = went + 1
        elseif value ~= '' and #left == 0 then
            drop(d, key)
        elseif #left * 8 < #value then
            put(d, key, table.concat(left))
        end
    end
end
saved(d)
local flat = {}
for id, count in pairs(counts) do
    flat[#flat + 1] = id
    flat[#flat + 1] = count
end
return {ARGV[1], went, flat}
"""
)

_AT_ONCE = 8
"""How many hashes a script goes through while all others wait."""
_SCRIPTS = 64
_PART = 16
_SEED = 500
_KNOWN_SECONDS = 600.0
_KNOWN_AT_MOST = 10_000
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[int, int, str, str]).decode

Script = Callable[[str, Sequence[bytes], Sequence[Any]], Awaitable[list[Any]]]


class Undo(NamedTuple):
    """Be what has to be done if a turn is refused whose fingerprints are there already."""

    key: bytes
    args: Sequence[Any]


class Prints:
    """Keep fingerprints by scripts that *script* runs, under keys that begin with *prefix*."""

    def __init__(self, prefix: str, script: Script) -> None:
        self._prefix = prefix
        self._script = script
        self._registry = f"{prefix}{{prints}}".encode()
        self._known: dict[bytes, float] = {}
        self._next: dict[tuple[bytes, str], int] = {}

    def key(self, scope: str) -> bytes:
        """Name the key of a scope, in whose slot its fingerprints lie."""
        return self._of(sha256(fields(scope)).hexdigest()[:16].encode())

    def _of(self, tag: bytes) -> bytes:
        return self._prefix.encode() + b"{f:" + tag + b"}:n"

    async def keys(self, fingerprints: Iterable[Fingerprint]) -> dict[bytes, list[bytes]]:
        """Give what the scripts are told of *fingerprints*, by the keys of their scopes, which sweeping knows then."""
        found: dict[bytes, list[bytes]] = {}
        for one in fingerprints:
            how = b"c" if one.common else b"u" if one.unique else b"-"
            found.setdefault(self.key(one.scope), []).append(how + one.digest)
        for key in found:
            await self._register(key)
        return found

    async def _register(self, key: bytes) -> None:
        if self._known.get(key, 0.0) < time.monotonic():
            await self._script(_CALL, [self._registry], ["SADD", _tag(key)])
            if len(self._known) > _KNOWN_AT_MOST:
                self._known.clear()
            self._known[key] = time.monotonic() + _KNOWN_SECONDS

    def args(self, session: SealedSession, number: bytes, said: dict[bytes, list[bytes]]) -> list[Any]:
        """Give the arguments with which the script that stores *session* files *said* too."""
        args: list[Any] = [number, _under(session), session.updated_at, f"{self._prefix}{{f:"]
        for prints in said.values():
            args += [len(prints), *prints]
        return args

    # --- in a cluster, where the scopes lie in slots of their own -----------------------------------------------------

    async def claim(self, session: SealedSession, number: bytes, said: dict[bytes, list[bytes]]) -> list[Undo]:
        """File *said* before *session* is stored."""
        undo = []
        under = _under(session)
        for key, prints in said.items():
            there, before, changed = await self._script(CLAIM, [key], [number, under, session.updated_at, *prints])
            if there:
                undo.append(Undo(key, [number, under, before, *changed]))
            elif changed:
                undo.append(Undo(key, [number, b"", b"-", *changed]))
        return undo

    async def undo(self, undo: Sequence[Undo]) -> None:
        """Take back what `claim` did."""
        for one in undo:
            await self._script(UNCLAIM, [one.key], one.args)

    @staticmethod
    def args_apart(undo: Sequence[Undo]) -> list[Any]:
        """Give the arguments that tell the script that stores a session where its fingerprints are."""
        return ["", b" ".join(_tag(one.key) for one in undo if one.args[1])]

    async def move(self, session: SealedSession, number: bytes, tags: bytes, done: Iterable[bytes]) -> None:
        """Move the end of what was said in *session* in scopes that were not *done* with this turn."""
        for key in {self._of(tag) for tag in tags.split()} - set(done):
            await self._script(MOVE, [key], [number, _under(session)])

    # --- everywhere ---------------------------------------------------------------------------------------------------

    async def forget(self, number: bytes, tags: bytes) -> None:
        """Let what was said in a session be nobody's."""
        for tag in tags.split():
            await self._script(FORGET, [self._of(tag)], [number])

    async def whose(self, scope: str, digests: Sequence[bytes], now: int) -> tuple[dict[bytes, tuple[Owner, ...]], int]:
        """Say whose *digests* are, and how many fingerprints the scope has."""
        size, said = await self._script(WHOSE, [self.key(scope)], digests)
        found: dict[bytes, tuple[Owner, ...]] = {}
        for digest, values in zip(digests, said, strict=True):
            if values == b"":
                found[digest] = ()
            elif values is not None:
                under = [_read(value) for value in values]
                owners = dict.fromkeys(owner for until, owner in under if until == 0 or until > now)
                if owners:
                    found[digest] = tuple(owners)
        return found, size

    async def seed(self, scope: str, digests: Sequence[bytes]) -> int:
        """Make *digests* common; give how many were not."""
        key, new = self.key(scope), 0
        await self._register(key)
        for first in range(0, len(digests), _SEED):
            new += (await self._script(SEED, [key], digests[first : first + _SEED]))[0]
        return new

    async def sweep(self, now: int, most: int) -> int:
        """Take out some of what is over and, of more than *most*, all of it and the oldest; give how many of these."""
        (tags,) = await self._script(_CALL, [self._registry], ["SMEMBERS"])
        keys = sorted(self._of(tag) for tag in tags)
        total = 0
        for key in keys:
            digests, _, speakers, _ = await self._script(SIZES, [key], [])
            await self._over(key, now, *self._part(key, "s", speakers))
            await self._clear(key, now, *self._part(key, "d", digests))
            total += (await self._script(SIZES, [key], []))[1]
        return await self._drop(keys, now, most) if total > most else 0

    def _part(self, key: bytes, kind: str, buckets: int) -> tuple[int, int]:
        """Say which of the hashes of a table are next: all, or a part of very many."""
        count = max(_SCRIPTS * _AT_ONCE, buckets // _PART)
        first = self._next.get((key, kind), 0)
        first = first if first < buckets else 0
        self._next[key, kind] = first + count
        return first, min(first + count, buckets)

    async def _over(self, key: bytes, now: int, first: int, end: int) -> list[tuple[int, bytes]]:
        left: list[tuple[int, bytes]] = []
        for at in range(first, end, _AT_ONCE):
            (said,) = await self._script(OVER, [key], [now, at, min(at + _AT_ONCE, end) - 1])
            left += zip(said[1::2], said[::2], strict=True)
        return left

    async def _clear(self, key: bytes, now: int, first: int, end: int, spare: int = 0) -> tuple[int, Counter[bytes]]:
        went, counts = 0, Counter[bytes]()
        for at in range(first, end, _AT_ONCE):
            gone, said = await self._script(CLEAR, [key], [now, at, min(at + _AT_ONCE, end) - 1, spare - went])
            went += gone
            counts.update(dict(zip(said[::2], said[1::2], strict=True)))
        return went, counts

    async def _drop(self, keys: Sequence[bytes], now: int, most: int) -> int:
        """Drop what the sessions said that began first, and what is common if that is all there is left."""
        held: list[tuple[int, bytes, bytes, int]] = []
        for key in keys:
            digests, _, speakers, _ = await self._script(SIZES, [key], [])
            began = await self._over(key, now, 0, speakers)
            _, counts = await self._clear(key, now, 0, digests)
            held += ((since, key, number, counts[number]) for since, number in began)
        before = await self._total(keys)
        beyond = before - most
        for _, key, number, count in sorted(held):
            if beyond <= 0:
                break
            await self._script(FORGET, [key], [number])
            beyond -= count
        for key in keys:
            digests = (await self._script(SIZES, [key], []))[0]
            beyond -= (await self._clear(key, now, 0, digests, max(beyond, 0)))[0]
        return before - await self._total(keys)

    async def _total(self, keys: Sequence[bytes]) -> int:
        return sum([(await self._script(SIZES, [key], []))[1] for key in keys])


# KEYS: the names of all scopes; ARGV: nonce, command, arguments behind the key
_CALL = """
local command = {ARGV[2], KEYS[1]}
for n = 3, #ARGV do command[n] = ARGV[n] end
return {ARGV[1], redis.call(unpack(command))}
"""


def _tag(key: bytes) -> bytes:
    return key[key.rindex(b"{f:") + 3 : -3]


def _under(session: SealedSession) -> bytes:
    """Give what lies under a session's number: when it ends, or 0, when it began, in seconds, and whose it is."""
    tenant = session.owner.tenant or ""
    return _encode((session.expires_at or 0, session.created_at // 1_000_000, tenant, session.owner.user))


def _read(value: bytes) -> tuple[int, Owner]:
    try:
        until, _, tenant, user = _decode(value)
        return until, Owner(tenant or None, user)
    except (msgspec.MsgspecError, ValueError):
        raise IntegrityError("a fingerprint's row in the store was changed; see the audit log") from None
