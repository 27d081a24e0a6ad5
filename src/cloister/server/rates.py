"""How many requests a minute: of one user, and of all users of a tenant, over all workers and machines of one store.

What is counted lies in the store's accounts (`Store.charge`), a minute of UTC each. A worker takes from them some
requests at a time and gives those out by itself; so a request seldom waits for the store, no more than the limit ever
pass, and what a worker took and did not give out is lost until the next minute. Who is over it is refused from memory:
all that a flood reaches in the store is the look at who asks. Around the turn of a minute, twice the limit can pass
within sixty seconds.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from datetime import timedelta

from cloister.errors import RateLimited
from cloister.model import Owner, to_micros
from cloister.stores.base import Account, Charge
from cloister.vault import Vault

_MINUTE = 60_000_000
_SHARE = 20
"""Into how many parts a limit is divided, one of which is taken at a time."""
_MOST = 50_000
"""How many users and tenants are known in one minute; whoever comes back later takes anew."""


@dataclass(slots=True)
class _Taken:
    """Be what is left of what a worker took for one minute."""

    minute: int
    left: int = 0
    used_up: bool = False
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)


class Rates:
    """Count the requests of users and tenants. None for a limit that is not there."""

    def __init__(self, vault: Vault, per_user: int | None, per_tenant: int | None) -> None:
        self._vault = vault
        self._limits = per_user, per_tenant
        self._minute = 0
        self._taken: dict[tuple[str | None, str | None], _Taken] = {}
        """Of this minute: names are not kept for longer, and erasures need not look here."""

    async def tenant(self, tenant: str) -> None:
        """Count a request of *tenant*; raise `RateLimited` if there were too many in this minute: that is on record.

        Before its user is known, or what it says was read: a flood over many users ends here.
        """
        await self._count(tenant, None, self._limits[1])

    async def user(self, owner: Owner) -> None:
        """Count a request of *owner*; raise `RateLimited` likewise."""
        await self._count(owner.tenant, owner.user, self._limits[0])

    async def _count(self, tenant: str | None, user: str | None, limit: int | None) -> None:
        if limit is None:
            return
        now = to_micros(self._vault.now())
        key, minute = (tenant, user), now // _MINUTE
        if minute > self._minute:
            self._minute = minute
            self._taken.clear()
        taken = self._taken.get(key) or self._begin(key)
        if taken.left <= 0 and not taken.used_up:
            async with taken.asking:
                if taken.left <= 0 and not taken.used_up:
                    await self._take(taken, Account(tenant, user, f"requests-{taken.minute}"), limit)
        if taken.left <= 0:
            raise RateLimited("there were too many requests in this minute", _rest(taken.minute, now))
        taken.left -= 1

    def _begin(self, key: tuple[str | None, str | None]) -> _Taken:
        taken = self._taken[key] = _Taken(self._minute)
        if len(self._taken) > _MOST:
            del self._taken[next(iter(self._taken))]
        return taken

    async def _take(self, taken: _Taken, account: Account, limit: int) -> None:
        """Take a share of what *account* has left, or else one request; put on record that there is none."""
        vault = self._vault
        # Whose of a tenant's users it is counted for makes no difference to the tenant's own account.
        owner = Owner(account.tenant, account.user or "anybody")
        until = (taken.minute + 2) * _MINUTE
        for amount in dict.fromkeys((max(1, limit // _SHARE), 1)):
            charge = Charge(account, amount, limit, until)
            receipt = await vault.ask(vault.store.charge, owner, secrets.token_bytes(16), [charge])
            if receipt.over is None:
                taken.left += amount
                return
        taken.used_up = True
        seconds = round(_rest(taken.minute, to_micros(vault.now())).total_seconds())
        if account.user is None:
            named = account.tenant or ""
            noted = vault.event("rate.limited", limit="requests_per_minute_tenant", seconds=seconds, tenant=named)
        else:
            noted = vault.event("rate.limited", owner, limit="requests_per_minute_user", seconds=seconds)
        await vault.note([noted])


def _rest(minute: int, now: int) -> timedelta:
    return max(timedelta(microseconds=(minute + 1) * _MINUTE - now), timedelta(seconds=1))
