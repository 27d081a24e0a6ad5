"""How many turns run at once, of a user and of a tenant: counted in the store, and given back on every way out."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.fakes import House, Watched, opened
from tests.test_budgets import PRICES
from tests.test_cancellation import MOST_WAITS, NOT_WAITING, When, _cancelled

from cloister import stores
from cloister.costs import Budget
from cloister.errors import ConfigurationError, ProviderError, RateLimited
from cloister.rates import Rates
from cloister.services import Tenant
from cloister.session import Session
from cloister.stores.base import Account


async def running(house: House, user: str | None = "ana", tenant: str | None = None) -> int:
    """How many turns are counted now."""
    (slots,) = Rates(turns_per_user=1).slots(house.clock.now)
    vault = house.cloister.vault
    return (await vault.ask(vault.store.spent, [Account(tenant, user, slots.period)])).amounts[0]


async def test_one_turn_too_many_is_refused(url: str) -> None:
    """Before a model is asked, with when to try again, and on record; once one is over, the next may begin."""
    async with opened(url, rates=Rates(turns_per_user=2)) as house:
        one, two, three = [await house.ana.start() for _ in range(3)]
        async with one.turn("a") as first, two.turn("b") as second:
            with pytest.raises(RateLimited, match="2 turns of this user") as refused:
                await three.send("c")
            assert refused.value.retry_after == timedelta(seconds=1)
            for begun in (house.ana.passing(), await house.ana.begin()):
                with pytest.raises(RateLimited):
                    await begun.send("c")
            await (await house.ben.start()).send("another user's")
            await first.finish("done")
            await second.finish("done")
        await three.send("c")
        assert len(house.provider.requests) == 2
        assert await running(house) == 0
        entries = [entry for entry in await house.entries() if entry.event == "rate.limited"]
        assert [entry.detail for entry in entries] == ['{"limit":"turns_per_user","seconds":1}'] * 3


async def test_a_tenants_turns_are_counted_together(url: str) -> None:
    """Over its users, and not with those of another tenant; the refusal tells no figures."""
    async with opened(url, tenancy="required", rates=Rates(turns_per_tenant=1)) as house:
        ana, ben = (house.cloister.user(name, tenant="acme") for name in ("ana", "ben"))
        session, other = await ana.start(), await ben.start()
        async with session.turn("a") as turn:
            with pytest.raises(RateLimited, match="too many turns of this tenant's users") as refused:
                await other.send("b")
            assert "1 " not in str(refused.value)
            await (await house.cloister.user("ana", tenant="globex").start()).send("c")
            await turn.finish("done")
        await other.send("b")


async def test_a_tenant_may_have_rates_of_its_own() -> None:
    """As with budgets: for its users alone."""
    own = {"acme": Tenant(rates=Rates(turns_per_user=1))}
    async with opened("memory://", tenancy="required", tenants=own) as house:
        for tenant, allowed in (("acme", False), ("globex", True)):
            user = house.cloister.user("ana", tenant=tenant)
            async with (await user.start()).turn("a"):
                with contextlib.nullcontext() if allowed else pytest.raises(RateLimited):
                    await (await user.start()).send("b")


async def test_it_costs_no_round_trip() -> None:
    """What is reserved goes with the load, and what is given back with the commit."""
    watched = Watched(stores.connect("memory://"))
    async with opened(watched.store, rates=Rates(turns_per_user=1)) as house:
        session = await house.ana.start()
        watched.calls.clear()
        await session.send("question")
        assert [name for name in watched.names if name != "claims"] == ["load", "commit"]


async def test_with_a_budget_both_are_settled(url: str) -> None:
    """Money stays spent, and the turn is over; the money's account does not count turns."""
    async with opened(url, rates=Rates(1, 1), budget=Budget(user_daily="9"), prices=PRICES) as house:
        session = await house.ana.start()
        reply = await session.send("question")
        assert reply.cost
        assert reply.cost > 0
        assert await running(house) == await running(house, user=None) == 0
        await session.send("question")


@pytest.mark.parametrize("kind", ["start", "begin", "passing"])
async def test_what_fails_gives_its_place_back(url: str, kind: str) -> None:
    """A provider's error, an error of the application's, and a block that is left."""
    async with opened(url, rates=Rates(turns_per_user=1), budget=Budget(user_daily="9"), prices=PRICES) as house:
        made: Any = house.ana.passing() if kind == "passing" else await getattr(house.ana, kind)()
        house.provider.answer = ZeroDivisionError()
        with pytest.raises(ProviderError):
            await made.send("a")
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async with made.turn("b") as turn:
                turn.chat()
                _ = 1 // 0
        async with made.turn("c") as turn:
            turn.chat()
        assert await running(house) == 0


@pytest.mark.parametrize("when", ["before", "after", "twice"])
@pytest.mark.parametrize("kind", ["start", "begin", "passing"])
async def test_cancelled_anywhere_a_turn_gives_its_place_back(url: str, when: When, kind: str) -> None:
    """Wherever it is cancelled, no place stays taken."""
    async with opened(url, limits=NOT_WAITING, rates=Rates(turns_per_user=1)) as house:
        for at in range(1, MOST_WAITS):
            made: Session = house.ana.passing() if kind == "passing" else await getattr(house.ana, kind)()
            reached = await _cancelled(_stream(made), at, when)
            await house.cloister.vault.settle()
            for _ in range(3):
                await asyncio.sleep(0)
            assert await running(house) == 0, f"after wait {at}"
            if not reached:
                break
        else:
            pytest.fail(f"still waiting after {MOST_WAITS} times")


async def _stream(session: Session) -> None:
    async with session.stream("question") as stream:
        _ = [text async for text in stream]


async def test_it_counts_over_processes(tmp_path: Path) -> None:
    """What runs in one is known to the other, and a place that nobody gave back is free ten minutes later."""
    url = f"sqlite:///{tmp_path}/x.db"
    async with opened(url, rates=Rates(turns_per_user=1)) as one, opened(url, rates=Rates(turns_per_user=1)) as two:
        session, other = await one.ana.start(), await two.ana.start()
        async with session.turn("a"):
            with pytest.raises(RateLimited):
                await other.send("b")
            two.clock.move(minutes=10)  # as if the first process had died
            await other.send("b")


async def test_a_repeated_turn_takes_no_place(url: str) -> None:
    """An answer that is there already needs no model, and is given whoever else is at work."""
    async with opened(url, rates=Rates(turns_per_user=1)) as house:
        one, two = await house.ana.start(), await house.ana.start()
        first = await one.send("a", idempotency_key="k")
        async with two.turn("b"):
            assert (await one.send("a", idempotency_key="k")).text == first.text


@pytest.mark.parametrize("wrong", [{}, {"turns_per_user": 0}, {"turns_per_tenant": 1.5}, {"turns_per_user": True}])
def test_rates_that_are_none(wrong: dict[str, Any]) -> None:
    """Nothing to bound, or no whole number from 1 on."""
    with pytest.raises(ValueError, match=r"rates bound something|whole number"):
        Rates(**wrong)


async def test_sealed_tokens_need_a_ledger() -> None:
    """Without one nothing counts, and nothing pretends to."""
    async with opened("token://?allow_replay=1", rates=Rates(turns_per_user=1)) as house:
        for made in (await house.ana.start(), await house.ana.begin()):
            with pytest.raises(ConfigurationError, match="ledger"):
                await made.send("question")
