"""Attempts on budgets: to get tokens for nothing, to lose somebody's money, to learn or change what others spent."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import decimal
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from tests.fakes import House, Watched, opened, pieces
from tests.test_budgets import PARROT, PRICES, budgeted, spent

from cloister import Alarms, Budget, Limits, OpenAICompatible
from cloister.costs import from_nanos
from cloister.costs.report import Report
from cloister.errors import (
    BudgetExceeded,
    ConfigurationError,
    ProviderError,
    RateLimited,
    ReplyBlocked,
    SessionBusy,
    SessionConflict,
    SessionNotFound,
    StoreUnavailable,
)
from cloister.session import Session
from cloister.stores.memory import MemoryStore
from cloister.window import Estimate

MOST_WAITS = 150
_USAGE = {"prompt_tokens": 5, "completion_tokens": 3}
CHAT = {
    "model": "parrot-1",
    "choices": [{"message": {"role": "assistant", "content": "Fine."}, "finish_reason": "stop"}],
    "usage": _USAGE,
}
COST = Decimal("0.008")
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
ASKS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
CALLS = {**CHAT, "choices": [{"message": ASKS, "finish_reason": "tool_calls"}]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "r"}


class Slow(Watched):
    """A store that lets others run before and after all that it does, as one over a network."""

    def __getattr__(self, name: str) -> Any:
        real = super().__getattr__(name)
        if not asyncio.iscoroutinefunction(real):
            return real

        async def ask(*args: Any, **options: Any) -> Any:
            await asyncio.sleep(0)
            answer = await real(*args, **options)
            await asyncio.sleep(0)
            return answer

        return ask


class Interrupted:
    """Await *work*, and cancel the task that does so at its wait number *at*, and at so many after it."""

    def __init__(self, work: Coroutine[Any, Any, Any], at: int, times: int) -> None:
        self._work = work
        self._waits = range(at, at + times)
        self.reached = False

    def __await__(self) -> Generator[Any, Any, Any]:
        task = asyncio.current_task()
        assert task is not None
        running, waits, thrown = self._work.__await__(), 0, None
        while True:
            try:
                waited = running.throw(thrown) if thrown else next(running)
            except StopIteration as stop:
                return stop.value
            waits += 1
            if waits in self._waits:
                self.reached = True
                task.cancel()
            thrown = None
            try:
                yield waited
            except BaseException as error:  # noqa: BLE001 - handed on to whom it is for
                thrown = error

    async def over(self) -> bool:
        """Wait until it is over; False if it was before it was cancelled."""

        async def run() -> None:
            await self

        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.create_task(run())
        return self.reached


async def _send(house: House, session: Session) -> None:
    await session.send("question", idempotency_key="k")


async def _stream(house: House, session: Session) -> None:
    async with session.stream("question") as stream:
        async for _ in stream:
            await asyncio.sleep(0)


async def _own_model(house: House, session: Session) -> None:
    async with session.turn("question", on_expired="renew") as turn:
        for answer in (CALLS, CHAT):
            await house.provider.complete(turn.request())
            if answer is CALLS:
                turn.add(answer)
                turn.add(RESULT)
        await turn.finish(CHAT)


FLOWS: dict[str, Callable[[House, Session], Coroutine[Any, Any, None]]] = {
    "send": _send,
    "stream": _stream,
    "own model, twice": _own_model,
}


@pytest.mark.parametrize("times", [1, 2, 5])
@pytest.mark.parametrize("renewal", [False, True])
@pytest.mark.parametrize("flow", FLOWS)
async def test_cancelled_anywhere_a_turn_is_paid_for(flow: str, renewal: bool, times: int) -> None:
    """Wherever and however often it is cancelled: what was asked of a model counts, and nothing where nothing was."""
    store = Slow(MemoryStore()).store
    budget = Budget(user_daily="900", tenant_daily="900", session="900", reply_tokens=3)
    async with opened(store, budget=budget, prices=PRICES) as house:
        house.provider.answer = "one two" if flow == "stream" else CHAT
        total = Decimal(0)
        for at in range(1, MOST_WAITS):
            user, asked = house.cloister.user(f"ana {at}"), len(house.provider.requests)
            session = await user.start()
            if renewal:
                house.clock.move(hours=1)
            reached = await Interrupted(FLOWS[flow](house, session), at, times).over()
            await house.cloister.vault.settle()
            for _ in range(3):
                await asyncio.sleep(0)
            asked = len(house.provider.requests) - asked
            stands = await spent(house, user.owner.user)
            assert stands >= COST * asked, f"free after wait {at}"
            assert stands <= COST * 4 * asked, f"lost after wait {at}"
            if not renewal:
                assert (await user.resume(session.id)).cost == stands
            total += stands
            if not reached:
                break
            house.clock.now = house.clock.now.replace(hour=12, minute=0)
        else:
            pytest.fail(f"still waiting after {MOST_WAITS} times")
        assert await spent(house, None) == total > 0


@pytest.mark.parametrize("failures", [1, 99])
async def test_a_fault_while_settling_is_told_beside_the_first(failures: int) -> None:
    """What was reserved is given back at the second attempt; if that fails too, why the turn failed is still told."""
    watched = Watched(MemoryStore())
    left = failures

    async def fail(real: Any, args: Any, options: Any) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            raise StoreUnavailable("the store cannot be reached")
        return await real(*args, **options)

    async with opened(watched.store, budget=Budget(user_daily="90"), prices=PRICES) as house:
        session = await house.ana.start()
        watched.answers["charge"] = fail
        with pytest.raises(BudgetExceeded, match="too long for a window") as raised:
            await session.send("long " * 10_000)
        assert (await spent(house) == 0) == (failures == 1)
        notes = getattr(raised.value, "__notes__", [])
        assert [note for note in notes if "stays reserved" in note] == notes
        assert len(notes) == (failures > 1)


async def test_whoever_is_suspended_asks_nothing_of_the_store() -> None:
    """A user who is refused for a while has nothing to settle either."""
    watched = Watched(MemoryStore())
    alarms = Alarms(suspend_after=1)
    async with opened(watched.store, budget=Budget(user_daily="9"), prices=PRICES, alarms=alarms) as house:
        session = await house.ben.start()
        with pytest.raises(SessionNotFound):
            await house.ben.resume("x")
        await house.cloister.vault.settle()
        watched.calls.clear()
        with pytest.raises(RateLimited):
            await session.send("Hello")
        assert watched.names == []


async def test_the_applications_decimals_change_no_bill(url: str) -> None:
    """Whatever precision and traps an application sets for its own sums, a bill is exact, and is refused alike."""
    used = {"prompt_tokens": 1_011, "completion_tokens": 33_333}
    with decimal.localcontext(prec=3, rounding=decimal.ROUND_DOWN) as context:
        context.traps[decimal.Inexact] = True
        async with budgeted(url, Budget(user_daily="78.123456789", reply_tokens=33_333)) as house:
            house.provider.answer = {**CHAT, "usage": used}
            session = await house.ana.start()
            for _ in range(2):
                reply = await session.send("Hello")
                assert reply.cost == Decimal("34.344")
            assert await spent(house) == session.cost == Decimal("68.688")
            with pytest.raises(BudgetExceeded, match=r"68\.69 of 78\.12"):
                await session.send("Hello")


async def test_another_currency_is_no_way_out() -> None:
    """Where the model that answered is paid in another currency, the turn costs what the one that was asked does."""
    euros = dataclasses.replace(PARROT, model="parrot-2", currency="EUR")
    async with opened("memory://", budget=Budget(user_daily="9"), prices=PRICES.over([euros])) as house:
        house.provider.answer = {**CHAT, "model": "parrot-2"}
        reply = await (await house.ana.start()).send("Hello")
        assert reply.cost == await spent(house) == COST


async def test_what_is_paid_in_another_currency_is_on_record_in_it() -> None:
    """Without a budget nothing is held against it: the entry has it as it is, and sums in dollars are left alone."""
    euros = dataclasses.replace(PARROT, currency="EUR")
    dollars = dataclasses.replace(PARROT, model="parrot-2")
    async with opened("memory://", prices=PRICES.over([euros, dollars])) as house:
        house.provider.answer = CHAT
        session = await house.ana.start()
        reply = await session.send("Hello")
        assert reply.cost is None
        assert session.cost == 0
        async with session.turn("Hello", model="parrot-1") as turn:
            turn.add(CALLS)
            turn.add(RESULT)
            await turn.finish({**CHAT, "model": "parrot-2"})
        assert session.cost == COST
        report = Report("user", {})
        for entry in await house.entries():
            report.add(entry)
        assert report.total.money == {"EUR": COST}
        assert report.total.unpriced_turns == 1, "in two currencies at once"


@pytest.mark.parametrize(
    "odd",
    [
        {"max_tokens": "5000"},
        {"max_tokens": True},
        {"max_tokens": -1},
        {"max_completion_tokens": float("nan")},
        {"max_tokens": [1]},
        {"n": 50},
        {"n": "50"},
    ],
)
async def test_an_option_that_may_bound_nothing_is_refused(odd: dict[str, Any]) -> None:
    """What a service might read as a longer reply, or as several, than was reserved for is not sent to it."""
    async with budgeted("memory://", Budget(user_daily="9")) as house:
        with pytest.raises(ConfigurationError, match=f"the option {next(iter(odd))} must be"):
            await (await house.ana.start()).send("Hello", options=odd)
        assert not house.provider.requests
        assert await spent(house) == 0


@pytest.mark.parametrize("many", [10**30, 10**90, 1e300, float("inf")])
async def test_a_reply_of_any_length_is_no_crash(many: float) -> None:
    """A length beyond all reason comes to more than any budget holds."""
    async with budgeted("memory://", Budget(user_daily="9")) as house:
        with pytest.raises(BudgetExceeded):
            await (await house.ana.start()).send("Hello", options={"max_tokens": many})


async def test_a_length_with_a_point_bounds_as_well() -> None:
    """5000.0 is 5000 tokens to a service, and to the budget."""
    async with budgeted("memory://", Budget(user_daily="9")) as house:
        house.provider.answer = ProviderError("down")
        with pytest.raises(ProviderError):
            await (await house.ana.start()).send("Hello", options={"max_tokens": 5000.0, "max_completion_tokens": None})
        assert 5 <= await spent(house) < Decimal("5.1")


async def held(house: House, send: Coroutine[Any, Any, Any]) -> Decimal:
    """Give what is reserved for a turn while its model is asked."""
    house.provider.gate = asyncio.Event()
    turn = asyncio.create_task(send)
    asked = asyncio.create_task(house.provider.asked.wait())
    await asyncio.wait([turn, asked], return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    reserved = await spent(house)
    house.provider.gate.set()
    await turn
    return reserved


LONG = "word " * 1_000


@pytest.mark.parametrize(
    "more",
    [
        {"system": LONG},
        {"options": {"tools": [{"type": "function", "function": {"name": "f", "description": LONG}}]}},
        {"options": {"response_format": {"type": "json_schema", "json_schema": {"description": LONG}}}},
    ],
)
async def test_all_that_is_sent_is_reserved_for(more: dict[str, Any]) -> None:
    """System text, tools and the form of the reply are paid for as well as the question."""
    async with budgeted("memory://", Budget(user_daily="90", reply_tokens=1)) as house:
        session = await house.ana.start()
        assert await held(house, session.send("Hello", **more)) > 1


async def test_a_long_question_is_counted_once_and_reserved_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """To count a long text takes long, and holds up every other task: a budget does not do it a second time."""
    long = secrets.token_hex(20_000)  # of which nearly every letter is a token
    counted = 0

    def count(self: Estimate, text: str) -> int:
        nonlocal counted
        counted += text.count(long)
        return len(text)

    monkeypatch.setattr(Estimate, "count", count)
    async with budgeted("memory://", Budget(user_daily="90"), leaks=None, scrub=None, context_tokens=90_000) as house:
        session = await house.ana.start()
        house.provider.answer = CHAT
        assert await held(house, session.send(long)) > 40
        assert counted == 1


@pytest.mark.parametrize("budget", [Budget(user_daily="2", session="2"), Budget(user_daily=1), Budget(session=1)])
async def test_what_came_elsewhere_is_reserved_for(url: str, budget: Budget) -> None:
    """A session that grew behind the back of whoever sends costs what it is by now; or is refused, and nobody asked."""
    options = {"max_tokens": 1}
    async with budgeted(url, budget, leaks=None) as house:
        session = await house.ana.start()
        same = await house.ana.resume(session.id)
        await same.append([{"role": "user", "content": LONG}, {"role": "assistant", "content": "Fine."}])
        session.id = same.id  # which moves on where it is a token
        house.provider.answer = CHAT
        if budget.user_daily == 2:
            assert 1 < await held(house, session.send("Hello", options=options)) < 2
            assert await spent(house) == COST
            return
        with pytest.raises(BudgetExceeded):
            await session.send("Hello", options=options)
        assert not house.provider.requests
        assert await spent(house) == 0
        events = await house.events()
        assert events.count("budget.exceeded") == events.count("turn.refused") == 1
        assert "turn.failed" not in events


EMPTY = {**CHAT, "choices": [{"message": {"role": "assistant", "content": ""}, "finish_reason": "length"}]}
UNTOLD = {name: value for name, value in EMPTY.items() if name != "usage"}


@pytest.mark.parametrize("answer", ["", UNTOLD, {"choices": []}, {"error": {"code": "overloaded"}}])
async def test_an_answer_that_cannot_be_taken_is_not_free(answer: Any) -> None:
    """Where it does not say what it took either, it counts as what was reserved for it."""
    async with budgeted("memory://", Budget(user_daily="9", reply_tokens=50)) as house:
        house.provider.answer = answer
        session = await house.ana.start()
        with pytest.raises(ProviderError):
            await session.send("Hello")
        assert await spent(house) >= Decimal("0.05")


@pytest.mark.parametrize("refused", [EMPTY, UNTOLD])
async def test_calls_of_a_turn_that_were_tried_again_are_paid_for(refused: Any) -> None:
    """An answer that could not be taken, and the one that was taken instead of it, both count."""
    async with budgeted("memory://", Budget(user_daily="9", reply_tokens=3)) as house:
        for added in (True, False):
            before = await spent(house)
            session = await house.ana.start()
            async with session.turn("Hello") as turn:
                turn.chat()
                with pytest.raises(ProviderError):
                    _ = turn.add(refused) if added else await turn.finish(refused)
                turn.chat()
                await turn.finish(CHAT)
            assert await spent(house) >= before + COST * 2


async def broken() -> AsyncGenerator[str, None]:
    """Stream something, and break off."""
    yield "word " * 100
    raise ProviderError("gone")


@pytest.mark.parametrize("again", [True, False])
async def test_a_stream_that_broke_off_is_paid_for_beside_the_next(again: bool) -> None:
    """What was heard of the first attempt counts, however the turn comes to its answer in the end."""
    async with budgeted("memory://", Budget(user_daily="9", reply_tokens=3)) as house:
        session = await house.ana.start()
        async with session.turn("Hello") as turn:
            turn.chat()
            with pytest.raises(ProviderError):
                assert [text async for text in turn.stream(broken())]
            if again:
                assert [text async for text in turn.stream(pieces("Fine."))]
            else:
                await turn.finish(CHAT)
        assert await spent(house) > Decimal("0.1") + COST
        assert turn.reply.usage.estimated


async def test_calls_of_tools_are_paid_for_though_nobody_says_what_they_took() -> None:
    """The message of an SDK's answer alone does not say it: then it is estimated, and marked so."""
    async with budgeted("memory://", Budget(user_daily="9", reply_tokens=3)) as house:
        session = await house.ana.start()
        async with session.turn("Hello") as turn:
            for _ in range(5):
                turn.chat()
                turn.add(ASKS)
                turn.add(RESULT)
            turn.chat()
            reply = await turn.finish(CHAT)
        assert await spent(house) > COST * 6
        assert reply.usage.estimated


@pytest.mark.parametrize("how", ["left", "cancelled", "broken off", "withheld"])
async def test_nobody_thinks_for_nothing(how: str) -> None:
    """Whoever lets a model think and goes away at its first word pays for what it may have thought."""
    async with budgeted("memory://", Budget(user_daily="9")) as house:
        mail = "ben.kovacs@mailbox.example and 4929 1184 0573 2216"
        house.provider.answer = "Noted."
        await (await house.ben.start()).send(f"I am {mail}")
        before = await spent(house)
        house.provider.answer = f"word {mail} word" if how == "withheld" else "word " * 50
        session = await house.ana.start()

        async def read() -> None:
            async with session.stream("Hello", options={"max_completion_tokens": 4_000}) as stream:
                async for _ in stream:
                    if how == "left":
                        break
                    if how == "cancelled":
                        raise asyncio.CancelledError
                    if how == "broken off":
                        raise ProviderError("gone")

        with contextlib.suppress(asyncio.CancelledError, ProviderError):
            await read()
        assert await spent(house) >= before + 4


async def test_a_service_that_cannot_be_reached_costs_nothing() -> None:
    """Nobody's allowance is used up by an outage, nor by an option that the service does not have."""

    async def at_once(_: float) -> None:
        pass

    own = OpenAICompatible("vllm", base_url="http://127.0.0.1:1/v1", model="own", sleep=at_once)
    price = dataclasses.replace(PARROT, provider="vllm", model="own")
    budget = Budget(user_daily="9")
    async with opened("memory://", provider=own, budget=budget, prices=PRICES.over([price])) as house:
        session = await house.ana.start()
        for options in ({}, {"no_such_option": 1}):
            with pytest.raises((ProviderError, ConfigurationError)):
                await session.send("Hello", options=options)
            with pytest.raises((ProviderError, ConfigurationError)):
                async with session.stream("Hello", options=options) as stream:
                    assert [text async for text in stream]
        assert await spent(house) == session.cost == 0


@pytest.mark.parametrize(
    "told",
    [
        None,
        [1],
        {},
        {"prompt_tokens": -5, "completion_tokens": 3},
        {"prompt_tokens": 5, "completion_tokens": -3},
        {"prompt_tokens": "5", "completion_tokens": 3},
        {"prompt_tokens": float("nan"), "completion_tokens": float("inf")},
        {"prompt_tokens": True, "completion_tokens": None},
        {"completion_tokens": 3},
        {"input_tokens": 5, "output_tokens": 3},
        {"prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": -(10**30)}},
        {"prompt_tokens": 5, "completion_tokens": 3, "completion_tokens_details": {"reasoning_tokens": 10**30}},
        {"prompt_tokens": 10**30, "completion_tokens": 10**30},
    ],
)
async def test_whatever_a_service_says_that_it_took_is_no_credit(told: Any) -> None:
    """Nonsense, or half of it, fails no turn, gives nothing back, and counts the question and the reply at least."""
    async with budgeted("memory://", Budget(user_daily="3000000", session="3000000", reply_tokens=3)) as house:
        house.provider.answer = {**CHAT, "usage": told}
        session = await house.ana.start()
        stands = Decimal(0)
        for _ in range(2):
            reply = await session.send("Hello")
            assert reply.cost is not None
            assert reply.cost >= COST
            stands += min(reply.cost, from_nanos(1 << 52))
            assert await spent(house) == session.cost == stands
            if stands > 3_000_000:
                break


MEANWHILE: dict[str, Callable[[House, Session], Awaitable[object]]] = {
    "ended": lambda _, session: session.end(),
    "erased": lambda house, _: house.ana.erase(),
    "timed out": lambda house, _: _pass(house, hours=1),
    "the next day": lambda house, _: _pass(house, hours=13),
    "the day before": lambda house, _: _pass(house, hours=-13),
}


async def _pass(house: House, hours: float) -> None:
    house.clock.move(hours=hours)
    await house.cloister.sweep()


@pytest.mark.parametrize("what", MEANWHILE)
async def test_whatever_happens_meanwhile_the_day_on_which_it_began_pays(url: str, what: str) -> None:
    """A turn counts in the accounts in which it was reserved; an erased user's goes, and the tenant's stays right."""
    async with budgeted(url, Budget(user_daily="9", tenant_daily="9", reply_tokens=3)) as house:
        house.provider.answer = CHAT
        session = await house.ana.start()
        house.provider.gate = asyncio.Event()
        turn = asyncio.create_task(session.send("Hello"))
        await house.provider.asked.wait()
        await MEANWHILE[what](house, session)
        house.provider.gate.set()
        with contextlib.suppress(SessionConflict):
            await turn
        for day, stands in (("2025-12-31", 0), ("2026-01-01", COST), ("2026-01-02", 0)):
            assert await spent(house, None, period=day) == stands
            assert await spent(house, period=day) == (0 if what == "erased" else stands)


NOT_ASKED: dict[str, Callable[[House, Session], Awaitable[object]]] = {
    "another text under a key": lambda _, session: session.send("Hello", idempotency_key="k"),
    "busy": lambda _, session: _inside(session),
    "a document of another's": lambda house, session: _planted(house, session),
    "too long": lambda _, session: session.send("long " * 10_000),
    "no text": lambda _, session: session.send("\ud800"),
    "no tools": lambda _, session: session.send("Hello", options={"tools": [object()]}),
}


async def _inside(session: Session) -> None:
    async with session.turn("Hello"):
        await session.send("Hello")


async def _planted(house: House, session: Session) -> None:
    async with (await house.ben.start()).turn("Hello") as turn:
        canary = turn.canary
    await session.send("Hello", documents=[canary])


@pytest.mark.parametrize("what", NOT_ASKED)
async def test_where_nobody_was_asked_nothing_is_lost(url: str, what: str) -> None:
    """Whatever refuses a turn after its money was reserved, the money is there again."""
    limits = Limits(turn_wait=timedelta(0))
    async with budgeted(url, Budget(user_daily="90"), limits=limits) as house:
        house.provider.answer = CHAT
        session = await house.ana.start()
        await session.send("first", idempotency_key="k")
        with pytest.raises((ValueError, TypeError, BudgetExceeded, SessionBusy, ReplyBlocked)):
            await NOT_ASKED[what](house, session)
        assert len(house.provider.requests) == 1
        assert await spent(house) == COST
