"""Accounts in Redis: all of a tenant in one slot, so that a turn is reserved in each of its accounts or in none.

Whoever spends, a user or all of a tenant's, has one hash: under each period what it stands at, and under period and
lease how much of that is reserved. Which of them are to be swept when stands in the sorted set of their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from cloister.model import Owner
from cloister.sealing import fields
from cloister.stores.base import Account, Charge

# Both are told behind all other arguments: five for each charge, the lease, and how many charges there are. KEYS from
# `key` on: the owner's hash, their tenant's, and when accounts are to be swept.
LIBRARY = """
local function charges(key)
    local lease, found = ARGV[#ARGV - 1], {}
    for n = #ARGV - 1 - 5 * tonumber(ARGV[#ARGV]), #ARGV - 2, 5 do
        local holder, period = KEYS[key + tonumber(ARGV[n])], ARGV[n + 1]
        local field = period .. ' ' .. lease
        local known = redis.call('HMGET', holder, period, field)
        found[#found + 1] = {holder = holder, period = period, field = field, stands = known[1], reserved = known[2],
                             amount = ARGV[n + 2], limit = tonumber(ARGV[n + 3]), ends = ARGV[n + 4],
                             more = tonumber(ARGV[n + 2]) - tonumber(known[2] or 0)}
    end
    return found
end
local function add(charge)
    redis.call('HINCRBY', charge.holder, charge.period, string.format('%.0f', charge.more))
end
local function reserve(key)
    -- Says which is the first account that would come beyond its limit, or 0.
    local wanted = charges(key)
    for n, charge in ipairs(wanted) do
        if charge.limit and charge.more > 0 and tonumber(charge.stands or 0) + charge.more > charge.limit then
            return n
        end
    end
    for _, charge in ipairs(wanted) do
        add(charge)
        redis.call('HSET', charge.holder, charge.field, charge.amount)
        if not charge.stands then
            local digest = string.match(charge.holder, '%x+$')
            redis.call('ZADD', KEYS[key + 2], charge.ends, digest .. ' ' .. charge.period)
        end
    end
    return 0
end
local function settle(key)
    for _, charge in ipairs(charges(key)) do
        if charge.reserved then
            add(charge)
            redis.call('HDEL', charge.holder, charge.field)
        end
    end
end
"""

RESERVE = (
    LIBRARY
    + """
return {ARGV[1], reserve(1)}
"""
)

SETTLE = (
    LIBRARY
    + """
settle(1)
return {ARGV[1], 'settled'}
"""
)

# KEYS: a hash for each account; ARGV: nonce, periods
SPENT = """
local found = {}
for n, holder in ipairs(KEYS) do found[n] = redis.call('HGET', holder, ARGV[n + 1]) or '0' end
return {ARGV[1], found}
"""

# KEYS: whose accounts go, and when accounts are to be swept; ARGV: nonce
ERASE = """
local digest = string.match(KEYS[1], '%x+$')
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do redis.call('ZREM', KEYS[2], digest .. ' ' .. field) end
redis.call('DEL', KEYS[1])
return {ARGV[1], 'done'}
"""

# A part of the script that sweeps a place. KEYS[5]: when accounts are to be swept; ARGV: as it has them.
SWEEP = """
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', ARGV[2])) do
    local digest, period = string.match(member, '^(%S+) (%S+)$')
    local holder = ARGV[4] .. 'a:' .. digest
    for _, field in ipairs(redis.call('HKEYS', holder)) do
        if field == period or string.sub(field, 1, #period + 1) == period .. ' ' then
            redis.call('HDEL', holder, field)
        end
    end
    redis.call('ZREM', KEYS[5], member)
end
"""


class Accounts:
    """Name the keys of accounts, which begin with *prefix*, and what scripts are told of charges."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def keys(self, owner: Owner) -> list[bytes]:
        """Give the keys of all accounts that *owner* can be charged in, and of when they are to be swept."""
        tenant = owner.tenant or ""
        return [self._holder(tenant, owner.user), self._holder(tenant, ""), self._place(tenant) + b"until"]

    def holder(self, account: Account) -> bytes:
        """Give the key of the hash in which *account* is."""
        return self._holder(account.tenant or "", account.user or "")

    def _holder(self, tenant: str, user: str) -> bytes:
        return self._place(tenant) + b"a:" + sha256(fields(tenant, user)).hexdigest()[:32].encode()

    def _place(self, tenant: str) -> bytes:
        return f"{self._prefix}{{{sha256(fields(tenant)).hexdigest()[:2]}}}:".encode()

    @staticmethod
    def args(lease: bytes | None, charges: Sequence[Charge]) -> list[Any]:
        """Give the arguments that come last, behind all others."""
        found: list[Any] = []
        for charge in charges:
            limit = "" if charge.limit is None else charge.limit
            shared = int(charge.account.user is None)
            found += [shared, charge.account.period, charge.amount, limit, charge.until]
        return [*found, lease or b"", len(charges)]
