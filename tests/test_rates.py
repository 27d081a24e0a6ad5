"""How many requests a minute a user and a tenant have, over all workers of one store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from tests.fakes import Clock, House, Watched, opened

from cloister.errors import RateLimited, StoreUnavailable
from cloister.model import Owner
from cloister.server.rates import Rates
from cloister.stores.memory import MemoryStore

ANA, BEN = Owner("acme", "ana"), Owner("acme", "ben")
CARO = Owner("globex", "caro")


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with opened("memory://", tenancy="required") as house:
        yield house


async def passed(rates: Rates, owner: Owner, times: int) -> int:
    """Ask so many times; say how many were let through."""
    through = 0
    for _ in range(times):
        with contextlib.suppress(RateLimited):
            await rates.tenant(owner.tenant or "")
            await rates.user(owner)
            through += 1
    return through


@pytest.mark.parametrize("limit", [1, 3, 19, 20, 21, 60, 100])
async def test_exactly_so_many_pass_in_a_minute(house: House, limit: int) -> None:
    """One worker lets through as many as the limit says, and in the next minute as many again."""
    rates = Rates(house.cloister.vault, limit, None)
    assert await passed(rates, ANA, limit + 30) == limit
    house.clock.move(minutes=1)
    assert await passed(rates, ANA, limit + 30) == limit


async def test_workers_share_a_limit(url: str) -> None:
    """Two workers over one store let through no more than the limit together, and nearly all of it."""
    async with opened(url, tenancy="required") as house, contextlib.AsyncExitStack() as stack:
        second = house.cloister.vault
        if not url.startswith("memory"):
            second = (
                await stack.enter_async_context(opened(url, tenancy="required", clock=house.clock))
            ).cloister.vault
        one, two = Rates(house.cloister.vault, 40, None), Rates(second, 40, None)
        through = 0
        for _ in range(60):
            through += await passed(one, ANA, 1) + await passed(two, ANA, 1)
        assert 36 <= through <= 40


async def test_many_at_once_are_no_more(house: House) -> None:
    """Requests that come at the same moment do not pass each other at the count."""
    rates = Rates(house.cloister.vault, 30, None)
    outcomes = await asyncio.gather(*[rates.user(ANA) for _ in range(100)], return_exceptions=True)
    assert outcomes.count(None) == 30


async def test_a_users_flood_is_that_users(house: House) -> None:
    """Who is over the limit says nothing about a neighbour."""
    rates = Rates(house.cloister.vault, 5, None)
    await passed(rates, ANA, 50)
    assert await passed(rates, BEN, 5) == 5


async def test_a_tenants_flood_is_that_tenants(house: House) -> None:
    """All users of a tenant share its limit, and other tenants have theirs."""
    rates = Rates(house.cloister.vault, 100, 20)
    users = [Owner("acme", f"user{number}") for number in range(10)]
    assert sum([await passed(rates, user, 5) for user in users]) == 20
    assert await passed(rates, CARO, 5) == 5


async def test_a_flood_does_not_reach_the_store() -> None:
    """Who is over the limit is refused from memory, and stands on record once a minute."""
    watched = Watched(MemoryStore())
    async with opened(watched.store, tenancy="required") as house:
        rates = Rates(house.cloister.vault, 3, None)
        await passed(rates, ANA, 4)
        before = len(watched.calls)
        assert await passed(rates, ANA, 500) == 0
        assert len(watched.calls) == before
        assert (await house.events()).count("rate.limited") == 1


async def test_who_asked_is_forgotten_with_the_minute(house: House) -> None:
    """No name stays in memory for longer than its minute and the next request: an erasure does not reach there."""
    rates = Rates(house.cloister.vault, 5, 100)
    await passed(rates, ANA, 8)
    house.clock.move(minutes=1)
    await passed(rates, BEN, 1)
    assert {user for _, user in rates._taken} == {None, "ben"}


async def test_it_says_when_to_come_back(house: House) -> None:
    """The refusal names the seconds to the next minute, in which the request passes."""
    house.clock.move(seconds=42)
    rates = Rates(house.cloister.vault, 1, None)
    await rates.user(ANA)
    with pytest.raises(RateLimited) as raised:
        await rates.user(ANA)
    assert raised.value.retry_after == timedelta(seconds=18)
    house.clock.move(seconds=18)
    await rates.user(ANA)


async def test_a_clock_that_goes_back_gives_nothing_back(house: House) -> None:
    """To set the clock back does not open a new minute."""
    rates = Rates(house.cloister.vault, 2, None)
    assert await passed(rates, ANA, 9) == 2
    house.clock.move(hours=-1)
    assert await passed(rates, ANA, 9) == 0


async def test_without_a_store_nothing_passes() -> None:
    """Where nobody can count, nobody is let through."""
    watched = Watched(MemoryStore())

    async def down(*_: object) -> None:
        raise StoreUnavailable("down")

    async with opened(watched.store, tenancy="required", clock=Clock()) as house:
        rates = Rates(house.cloister.vault, 2, None)
        watched.answers["charge"] = down
        with pytest.raises(StoreUnavailable):
            await rates.user(ANA)
        del watched.answers["charge"]
        assert await passed(rates, ANA, 9) == 2
