"""Budgets: nobody spends more than was allowed, whatever becomes of a turn, and however many run at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from tests.fakes import House, opened

from cloister import Budget, Prices, Tenant
from cloister.audit import Event
from cloister.costs import Price, from_nanos
from cloister.errors import (
    BudgetExceeded,
    ConfigurationError,
    ProviderAuth,
    ProviderError,
    ProviderTimeout,
)
from cloister.stores.base import Account
from cloister.telemetry import UNWATCHED, Unwatched, Wait

PARROT = Price(
    provider="parrot",
    model="parrot-1",
    input=Decimal(1_000),  # a thousandth for each token
    output=Decimal(1_000),
    source="made up",
    as_of=date(2025, 1, 1),
)
PRICES = Prices.default().over([PARROT])
DAY = "2026-01-01"
_CHAT = {
    "model": "parrot-1",
    "choices": [{"message": {"role": "assistant", "content": "Fine."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 11, "completion_tokens": 3},
}
COST = Decimal("0.014")


def budgeted(url: str, budget: Budget, **options: Any) -> contextlib.AbstractAsyncContextManager[House]:
    return opened(url, budget=budget, prices=PRICES, **options)


async def spent(house: House, user: str | None = "ana", tenant: str | None = None, period: str = DAY) -> Decimal:
    """Give what an account stands at, reservations included."""
    vault = house.cloister.vault
    answer = await vault.ask(vault.store.spent, [Account(tenant, user, period)])
    return from_nanos(answer.amounts[0])


async def test_a_turn_settles_at_what_it_used(url: str) -> None:
    """What was reserved gives way to what the provider told, on every account, in the session and in the entry."""
    async with budgeted(url, Budget(user_daily="9", tenant_monthly="90")) as house:
        house.provider.answer = _CHAT
        session = await house.ana.start()
        reply = await session.send("Hello")
        assert reply.cost == session.cost == COST
        assert await spent(house) == await spent(house, user=None, period="2026-01") == COST
        entry = [entry for entry in await house.entries() if entry.event == "turn.committed"][-1]
        detail = json.loads(entry.detail)
        assert (detail["cost"], detail["currency"]) == ("0.014", "USD")
        assert (await session.history())[-1].text == "Fine."


async def test_a_used_up_budget_refuses_before_the_model(url: str) -> None:
    """The turn that would go beyond it asks nobody, stores nothing, is on record, and may be taken the next day."""
    async with budgeted(url, Budget(user_daily="0.06", reply_tokens=3)) as house:
        house.provider.answer = _CHAT
        session = await house.ana.start()
        await session.send("Hello")
        await session.send("Hello")
        with pytest.raises(BudgetExceeded, match=r"0\.028 of 0\.06 USD.*2026-01-02 00:00 UTC"):
            await session.send("Hello")
        assert len(house.provider.requests) == 2
        assert session.item_count == 4
        events = await house.events()
        assert events.count("budget.exceeded") == events.count("turn.refused") == 1
        assert await spent(house) == COST * 2
        assert (await (await house.ben.start()).send("Hello")).text == "Fine."
        house.clock.move(hours=12)
        assert (await (await house.ana.start()).send("Hello")).text == "Fine."


async def test_a_tenants_budget_is_shared_and_tells_no_figures(url: str) -> None:
    """Users of one tenant spend together, others apart; a refusal does not tell what the others spent."""
    async with budgeted(url, Budget(tenant_daily="0.035", reply_tokens=3), tenancy="required") as house:
        house.provider.answer = _CHAT
        for user in ("ana", "ben"):
            await (await house.cloister.user(user, tenant="acme").start()).send("Hello")
        with pytest.raises(BudgetExceeded, match="the tenant's budget") as caught:
            await (await house.cloister.user("ana", tenant="acme").start()).send("Hello")
        assert "0.0" not in str(caught.value)
        assert (await (await house.cloister.user("ana", tenant="other").start()).send("Hello")).text == "Fine."


async def test_a_sessions_budget(url: str) -> None:
    """A session that has spent its own says so, and another one of the same user goes on."""
    async with budgeted(url, Budget(session="0.06", reply_tokens=3)) as house:
        house.provider.answer = _CHAT
        session = await house.ana.start()
        await session.send("Hello")
        await session.send("Hello")
        with pytest.raises(BudgetExceeded, match="start a new session"):
            await session.send("Hello")
        assert (await (await house.ana.start()).send("Hello")).text == "Fine."


async def test_turns_at_once_never_go_beyond(url: str) -> None:
    """Of many turns at once just so many are admitted as can be paid, and what they settle at is within the limit."""
    async with budgeted(url, Budget(user_daily="0.1", reply_tokens=4), scrub=None, leaks=None) as house:
        house.provider.answer = _CHAT
        house.provider.gate = asyncio.Event()
        sessions = [await house.ana.start() for _ in range(200)]
        turns = [asyncio.create_task(session.send("Hello")) for session in sessions]
        refused = 0
        while len(house.provider.requests) + refused < len(turns):
            await asyncio.wait(turns, timeout=0.01)
            refused = sum(turn.done() for turn in turns)
        admitted = len(house.provider.requests)
        reserved = await spent(house)
        assert 0 < admitted < len(turns)
        assert reserved <= Decimal("0.1")
        assert reserved + reserved / admitted > Decimal("0.1")  # one more would have been too many
        house.provider.gate.set()
        done = await asyncio.gather(*turns, return_exceptions=True)
        assert Counter(map(type, done))[BudgetExceeded] == refused == len(turns) - admitted
        assert await spent(house) == COST * admitted


@pytest.mark.parametrize("failure", [ProviderError("down"), ProviderTimeout("slow"), asyncio.CancelledError()])
async def test_unknown_usage_settles_at_the_reservation(url: str, failure: BaseException) -> None:
    """A call that breaks off is not free: nobody tells what it used, so it counts as what was reserved."""
    async with budgeted(url, Budget(user_daily="9", reply_tokens=50)) as house:
        session = await house.ana.start()
        house.provider.answer = failure
        with pytest.raises(type(failure)):
            await session.send("Hello")
        assert await spent(house) >= Decimal("0.05")
        entry = [entry for entry in await house.entries() if entry.event == "turn.failed"][-1]
        assert Decimal(json.loads(entry.detail)["cost"]) == await spent(house) == (await again(house, session.id)).cost


async def again(house: House, session_id: str) -> Any:
    """Read a session anew."""
    return await house.ana.resume(session_id)


async def test_what_the_provider_refused_is_free(url: str) -> None:
    """A call that the provider did not take up has cost nothing."""
    async with budgeted(url, Budget(user_daily="9")) as house:
        session = await house.ana.start()
        house.provider.answer = ProviderAuth("no such key")
        with pytest.raises(ProviderAuth):
            await session.send("Hello")
        assert await spent(house) == 0


async def test_a_turn_that_asked_nobody_is_free(url: str) -> None:
    """Leaving a turn before its request was handed out gives back what was reserved."""
    async with budgeted(url, Budget(user_daily="9")) as house:
        session = await house.ana.start()
        async with session.turn("Hello"):
            assert await spent(house) > 0
        assert await spent(house) == 0
        with pytest.raises(BudgetExceeded):
            await session.send("long " * 100_000)
        assert await spent(house) == 0


async def test_a_stream_that_is_left_is_paid_for(url: str) -> None:
    """Nobody tells what it took: what was sent and heard is an estimate, and the bill is what was reserved."""
    async with budgeted(url, Budget(user_daily="9", reply_tokens=50)) as house:
        session = await house.ana.start()
        async with session.stream("one two three four") as stream:
            async for _ in stream:
                break
        assert Decimal("0.05") < await spent(house) < Decimal("0.1")
        seen = await again(house, session.id)
        assert seen.cost == await spent(house)
        assert seen.usage.estimated
        assert 0 < seen.usage.output_tokens < 50


async def test_ones_own_model_is_paid_for(url: str) -> None:
    """A turn that calls the model itself names it, and is booked by its price; an unknown one is refused."""
    async with budgeted(url, Budget(user_daily="9")) as house:
        session = await house.ana.start()
        async with session.turn("Hello") as turn:
            turn.chat()
            await turn.finish(_CHAT)
        assert await spent(house) == COST
        with pytest.raises(ConfigurationError, match="no price is known for the model parrot-9"):
            async with session.turn("Hello", model="parrot-9"):
                pass
        assert await spent(house) == COST


async def test_renewals_are_paid_for(url: str) -> None:
    """A session that comes in the place of another, found alive or gone, settles like any other; or is refused."""
    async with budgeted(url, Budget(user_daily="0.05", reply_tokens=3)) as house:
        house.provider.answer = _CHAT
        first, second, third = [await house.ana.start() for _ in range(3)]
        house.clock.move(hours=1)
        assert (await first.send("Hello")).renewed
        assert await spent(house) == COST
        await house.cloister.sweep()
        assert (await second.send("Hello")).renewed
        assert await spent(house) == COST * 2
        assert (await third.send("Hello")).renewed
        with pytest.raises(BudgetExceeded):
            await (await house.ana.start()).send("Hello")
        assert await spent(house) == COST * 3


async def test_a_repeated_request_is_paid_once(url: str) -> None:
    """The same idempotency key again costs nothing."""
    async with budgeted(url, Budget(user_daily="9")) as house:
        house.provider.answer = _CHAT
        session = await house.ana.start()
        for _ in range(3):
            await session.send("Hello", idempotency_key="one")
        assert await spent(house) == COST


class Counting:
    """Count round trips to the store."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def recorded(self, events: Any) -> None:
        assert all(isinstance(one, Event) for one in events)

    def waited(self, on: Wait, seconds: float, name: str, failed: str | None) -> None:
        if on == "store":
            self.calls[name] += 1

    def turn(self) -> Unwatched:
        return UNWATCHED


async def test_a_budget_adds_no_request(url: str) -> None:
    """A turn with a budget asks the store for just what one without asks for."""
    seen = []
    for budget in (None, Budget(user_daily="9", user_monthly="90", tenant_daily="9", session="9")):
        counting = Counting()
        async with opened(url, budget=budget, prices=PRICES, telemetry=[counting]) as house:
            session = await house.ana.start()
            counting.calls.clear()
            await session.send("Hello")
            await session.send("Hello")
        seen.append(counting.calls)
    assert seen[0] == seen[1]


async def test_a_tenant_may_have_a_budget_of_its_own() -> None:
    """One tenant's budget binds its users and nobody else's."""
    own = {"acme": Tenant(budget=Budget(user_daily="0.001"))}
    async with opened("memory://", tenancy="required", tenants=own, prices=PRICES) as house:
        with pytest.raises(BudgetExceeded):
            await (await house.cloister.user("ana", tenant="acme").start()).send("Hello")
        await (await house.cloister.user("ana", tenant="other").start()).send("Hello")


async def test_a_budget_needs_a_price() -> None:
    """A model whose price is not known is not asked where a budget has to be kept."""
    async with opened("memory://", budget=Budget(user_daily="9")) as house:
        with pytest.raises(ConfigurationError, match="CLOISTER_PRICES"):
            await (await house.ana.start()).send("Hello")
        assert not house.provider.requests


async def test_tokens_without_a_ledger_keep_no_budget() -> None:
    """Nothing would remember what was spent."""
    async with budgeted("token://?allow_replay=1", Budget(user_daily="9")) as house:
        with pytest.raises(ConfigurationError, match="ledger"):
            await (await house.ana.start()).send("Hello")


async def test_without_a_price_nothing_is_made_up(url: str) -> None:
    """Where no price is known, neither reply nor entry says a cost; where it is, no budget is needed."""
    async with opened(url) as house:
        reply = await (await house.ana.start()).send("Hello")
        assert reply.cost is None
        entry = [entry for entry in await house.entries() if entry.event == "turn.committed"][-1]
        assert "cost" not in json.loads(entry.detail)
    async with opened(url, prices=PRICES) as house:
        house.provider.answer = _CHAT
        assert (await (await house.ana.start()).send("Hello")).cost == COST


@pytest.fixture
async def blocked(url: str) -> AsyncIterator[House]:
    async with budgeted(url, Budget(user_daily="9")) as house:
        yield house


async def test_a_withheld_reply_is_paid_for(blocked: House) -> None:
    """A reply that carries another user's details was made all the same."""
    house = blocked
    bens = await house.ben.start()
    house.provider.answer = "Noted."
    await bens.send("My card is 4929 1184 0573 2216 and my mail ben.kovacs@mailbox.example")
    house.provider.answer = {
        **_CHAT,
        "choices": [
            {
                "message": {"role": "assistant", "content": "It is 4929 1184 0573 2216, ben.kovacs@mailbox.example"},
                "finish_reason": "stop",
            }
        ],
    }
    reply = await (await house.ana.start()).send("Which card?")
    assert reply.blocked
    assert await spent(house) == COST
