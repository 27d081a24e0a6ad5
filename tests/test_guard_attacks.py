"""Ben tries to read what Ana said in spite of the guard, and to turn the guard against others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.fakes import House, Watched, opened, pieces, told
from tests.test_guard import ana_speaks, on_record

from cloister import stores
from cloister.errors import ProviderError, ReplyBlocked, StoreUnavailable
from cloister.leaks import LeakGuard
from cloister.leaks.settings import SAFE_TEXT
from cloister.stores.base import Claims

LEAK = "It is order QX-7731-84."


@pytest.fixture
async def home() -> AsyncIterator[House]:
    async with opened("memory://") as house:
        yield house


def calling(name: str = "mail", arguments: str = "{}", call_id: str = "c1", **extra: Any) -> dict[str, Any]:
    """Be an assistant's message that calls a tool."""
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": "Done.", "tool_calls": [call], **extra}


def whole(message: dict[str, Any]) -> dict[str, Any]:
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"object": "chat.completion", "choices": [choice]}


# --- streams ----------------------------------------------------------------------------------------------------------


async def test_a_cap_that_runs_out_in_a_stream_shows_nothing_unseen(home: House) -> None:
    """A stream that began while all was withheld from Ben is withheld to its end, though his hour ends meanwhile."""
    ana = await ana_speaks(home)
    ben = await home.ben.start()
    home.provider.answer = LEAK
    for _ in range(10):
        assert (await ben.send("Which?")).blocked

    async def source() -> AsyncIterator[str]:
        yield "Good morning. "
        home.clock.move(minutes=10)
        yield "It is QX-7731-84. "
        yield "Is there anything else?"

    for _ in range(2):
        home.clock.move(minutes=28)
        await ana.send("I am still here.")
    ben = await home.ben.start()
    async with ben.turn("Which?") as turn:
        read = "".join([piece async for piece in turn.stream(source())])
    assert read == SAFE_TEXT
    assert json.loads((await on_record(home, "reply.blocked"))[-1].detail) != {"reason": "limit"}


@pytest.mark.parametrize("way", ["left", "broken", "cut"])
async def test_an_alarm_outlives_its_stream(home: House, way: str) -> None:
    """What was found in a stream that did not come to its end is on record: Ben does not guess for nothing."""
    await ana_speaks(home)
    ben = await home.ben.start()
    held = asyncio.Event()

    async def source() -> AsyncIterator[Any]:
        for text in ("Hello, you. ", "It is NIGHTHAWK. ", "And more. "):
            yield {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": text}}]}
        held.set()
        if way == "broken":
            raise ProviderError("the line is dead")
        if way == "left":
            await asyncio.Event().wait()

    read: list[str] = []

    async def ask() -> None:
        async with ben.turn("Which?") as turn:
            read.extend([piece async for piece in turn.stream(source())])

    asking = asyncio.create_task(ask())
    await held.wait()
    if way == "left":
        asking.cancel()
    with pytest.raises(asyncio.CancelledError if way == "left" else ProviderError):
        await asking
    assert "NIGHT" not in "".join(read)
    assert len(await on_record(home, "reply.alerted")) == 1
    assert await told(ben) == []


# --- nothing stays ----------------------------------------------------------------------------------------------------


async def test_a_failed_turn_keeps_nothing_that_nobody_looked_at() -> None:
    """With keep_failed Ben's question is kept, not what a model said or called for before the turn failed."""
    async with opened("memory://", keep_failed=True) as house:
        await ana_speaks(house)
        ben = await house.ben.start()
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what fails
            async with ben.turn("Which?") as turn:
                turn.add(calling("find", '{"order": "QX-7731-84"}'))
                turn.add({"role": "tool", "tool_call_id": "c1", "content": "nothing"})
                raise ZeroDivisionError
        assert await told(ben) == ["Which?"]


async def test_what_was_not_looked_up_is_not_made_his_own() -> None:
    """A reply that passed since the index was away, as the operator chose, does not make her details Ben's."""
    store = Watched(stores.connect("memory://"))
    async with opened(store.store, leaks=LeakGuard(on_failure="alert")) as house:
        await ana_speaks(house)
        ben = await house.ben.start()
        house.provider.answer = LEAK
        store.answers["claims"] = _away
        assert not (await ben.send("Which?")).blocked
        del store.answers["claims"]
        assert (await ben.send("Which?")).blocked


async def _away(real: object, args: object, options: object) -> Claims:
    raise StoreUnavailable("the index is away")


# --- not only in the words of a reply ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        calling(name="find_QX-7731-84"),
        calling(call_id="QX-7731-84"),
        {"role": "assistant", "content": "See there.", "annotations": [{"type": "url_citation", "url": "/QX-7731-84"}]},
        {"role": "assistant", "content": "See there.", "annotations": [{"type": "url_citation", "id": "QX-7731-84"}]},
    ],
)
async def test_names_ids_and_links_are_looked_at(home: House, message: dict[str, Any]) -> None:
    """What a reply carries beside its words, meant for machines, is read by whoever gets it."""
    await ana_speaks(home)
    ben = await home.ben.start()
    async with ben.turn("Which?") as turn:
        assert (await turn.finish(whole(message))).blocked
    assert "7731" not in str(await ben.history())


async def test_no_tool_is_called_with_a_canary(home: House) -> None:
    """What a model calls a tool with is not handed out if it carries what was planted in another session."""
    ana, ben = await home.ana.start(), await home.ben.start()
    async with ana.turn("Hello.") as turn:
        canary = turn.canary
        await turn.finish("Hello.")
    with pytest.raises(ReplyBlocked):
        async with ben.turn("Mail it.") as turn:
            turn.add(calling("mail", json.dumps({"body": canary})))
    assert len(await on_record(home, "reply.blocked")) == 1
    assert await told(ben) == []


# --- neither oracle nor weapon ----------------------------------------------------------------------------------------


async def test_asking_for_a_verdict_counts_for_nobody(home: House) -> None:
    """`check` explains as often as it is asked; no reply of Ben's is withheld for it, and a cap does not blind it."""
    await ana_speaks(home)
    ben = await home.ben.start()
    for _ in range(12):
        assert (await ben.check(LEAK)).action == "block"
    home.provider.answer = "Hello."
    assert not (await ben.send("Hello.")).blocked
    home.provider.answer = LEAK
    for _ in range(10):
        assert (await ben.send("Which?")).blocked
    assert (await ben.check(LEAK)).action == "block"


async def test_many_different_alerts_end_in_silence(home: House) -> None:
    """Who is shown ten details that only alert has the next withheld, and sees from no stream where it halts."""
    of = [f"{first} Kowalczyk" for first in ("Aurelia", "Benedikt", "Cordula", "Dietlinde", "Egmont", "Friedhelm")]
    of += [f"{first} Wisniewski" for first in ("Gundula", "Hartmut", "Isolde", "Jaromir", "Kunigunde", "Leopoldine")]
    for name in of:
        await ana_speaks(home, f"My name is {name}.")
    ben = await home.ben.start()
    blocked = []
    for name in of:
        home.provider.answer = f"It was {name}, I think."
        blocked.append((await ben.send("Who?")).blocked)
    assert blocked == [False] * 10 + [True] * 2
    async with ben.turn("And?") as turn:
        assert [piece async for piece in turn.stream(pieces("Good ", "morning. ", "Fine."))] == ["Good morning. Fine."]


async def test_the_same_alert_again_and_again_is_one(home: House) -> None:
    """A false alarm that comes with every reply, as of a product that nobody seeded, never ends in silence."""
    await ana_speaks(home)
    ben = await home.ben.start()
    home.provider.answer = "The project is called NIGHTHAWK, I think."
    for _ in range(15):
        assert not (await ben.send("And?")).blocked
