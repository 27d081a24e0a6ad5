"""Sessions that come to be with their first turn: whole or absent, with an id beforehand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.fakes import House, Watched, opened, texts, told
from tests.test_budgets import _CHAT, COST, budgeted, spent
from tests.test_cancellation import MOST_WAITS, When, _cancelled

from cloister import stores
from cloister.costs import Budget
from cloister.errors import ProviderError, StoreUnavailable
from cloister.leaks.settings import LeakGuard
from cloister.session import Session

IBAN = "DE89 3704 0044 0532 0130 00"
HISTORY = [{"role": "user", "content": "first"}, {"role": "assistant", "content": "one"}]


@pytest.fixture
async def house(url: str) -> AsyncIterator[House]:
    """Open a store."""
    async with opened(url) as house:
        yield house


async def test_a_session_begins_with_its_first_turn(house: House) -> None:
    """Nothing is there before it; then everything is, as in any session, and it goes on as one."""
    session = await house.ana.begin(system="Be kind.", title="t", metadata={"a": "b"}, items=HISTORY)
    named = session.stable_id
    assert await house.ana.sessions() == []
    reply = await session.send("second")
    assert reply.session is session
    assert not reply.renewed
    assert session.stable_id == named
    assert [item.role for item in reply.items] == ["system", "user", "assistant", "user", "assistant"]
    await session.send("third")
    again = await house.ana.resume(session.id)
    assert (again.title, again.metadata, again.stable_id) == ("t", {"a": "b"}, named)
    assert await told(again) == [
        "Be kind.", "first", "one", "second", "You said: second", "third", "You said: third",
    ]  # fmt: skip
    assert [message["content"] for message in house.provider.requests[-1].messages] == (await told(again))[:-1]
    events = [event for event in await house.events() if event.startswith(("session", "turn"))]
    assert events == ["session.started", "turn.committed", "turn.committed"]


@pytest.mark.plain_ids
async def test_its_id_is_known_before_it_is_there(house: House) -> None:
    """So that whoever streams can say beforehand where the reply will be found."""
    session = await house.ana.begin()
    named = session.id
    async with session.stream("question") as stream:
        assert stream.turn.session_id == named
        assert not stream.turn.renewed
        answer = stream.turn.answer_id
        _ = [text async for text in stream]
    assert (await (await house.ana.resume(named)).history())[-1].id == answer


async def test_a_turn_on_it_is_one_write() -> None:
    """The first turn creates everything at once; nothing is loaded, and no lease taken."""
    watched = Watched(stores.connect("memory://"))
    async with opened(watched.store) as house:
        watched.calls.clear()
        session = await house.ana.begin(items=HISTORY)
        await session.send("question")
        assert [name for name in watched.names if name != "claims"] == ["create"]
        await session.send("next")
        assert [name for name in watched.names if name != "claims"] == ["create", "load", "commit"]


async def test_what_comes_to_nothing_leaves_nothing(house: House) -> None:
    """A first turn that fails makes no session; the next one on the same handle does."""
    session = await house.ana.begin(system="Be kind.", items=HISTORY)
    house.provider.answer = ZeroDivisionError()
    with pytest.raises(ProviderError):
        await session.send("question")
    async with session.turn("left") as turn:
        turn.chat()
    assert await house.ana.sessions() == []
    house.provider.answer = None
    await session.send("question")
    assert await told(session) == ["Be kind.", "first", "one", "question", "You said: question"]


@pytest.mark.parametrize("when", ["before", "after", "twice"])
async def test_cancelled_anywhere_it_is_whole_or_absent(house: House, when: When) -> None:
    """Wherever the first turn is cancelled, the session is there with all of it, or not at all, and can go on."""
    whole = ["Be kind.", "first", "one", "question"]
    for at in range(1, MOST_WAITS):
        session = await house.ana.begin(system="Be kind.", items=HISTORY)
        seen = len(await house.entries())
        reached = await _cancelled(_streamed(session), at, when)
        listed = await house.ana.sessions()
        stored = session.version > 0
        assert len(listed) == stored, f"after wait {at}"
        if stored:
            assert (await told(session))[:4] == whole
        events = [entry.event for entry in (await house.entries())[seen:]]
        assert events.count("turn.committed") == events.count("session.started") == stored
        assert not (stored and "turn.failed" in events)
        await session.send("next")
        assert (await told(session))[-2:] == ["next", "You said: next"]
        await house.ana.end_all()
        if not reached:
            break
    else:
        pytest.fail(f"still waiting after {MOST_WAITS} times")
    assert not (await house.audited()).faults


async def test_two_first_turns_at_once_are_two_turns_of_one_session(house: House) -> None:
    """The second waits for the first, and is told what was said in it."""
    session = await house.ana.begin()
    house.provider.gate = asyncio.Event()
    first = asyncio.create_task(session.send("first"))
    await house.provider.asked.wait()
    second = asyncio.create_task(session.send("second"))
    await asyncio.sleep(0)
    house.provider.gate.set()
    await asyncio.gather(first, second)
    assert await told(session) == ["first", "You said: first", "second", "You said: second"]
    assert len(await house.ana.sessions()) == 1


async def test_a_history_said_at_once_is_stored_in_order(house: House) -> None:
    """Several messages as a first turn: those up to the last answer are history, and all are stored as given."""
    session = await house.ana.begin()
    chat = [{"role": "system", "content": "Be kind."}, *HISTORY, {"role": "user", "content": f"I have {IBAN}."}]
    reply = await session.send(chat)
    assert texts(reply.items) == ["Be kind.", "first", "one", f"I have {IBAN}.", reply.text]
    assert texts(await session.history()) == texts(reply.items)
    assert IBAN not in house.provider.seen
    await session.send("next")
    assert house.provider.requests[-1].messages[0] == {"role": "system", "content": "Be kind."} or (
        "Be kind." in str(house.provider.requests[-1].messages[0])
    )


async def test_instructions_that_came_with_the_first_question_stay(house: House) -> None:
    """A system message right before the oldest question that fits is not lost with the second turn."""
    session = await house.ana.begin(system="Be kind.")
    await session.send([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "first"}])
    await session.send("second")
    sent = [message["content"] for message in house.provider.requests[-1].messages]
    assert sent == ["Be kind.", "Be brief.", "first", "You said: first", "second"]


async def test_a_begun_session_is_billed(url: str) -> None:
    """Its first turn is reserved before the model is asked, and settled with what it makes."""
    async with budgeted(url, Budget(user_daily="9", session="0.03", reply_tokens=3)) as house:
        house.provider.answer = _CHAT
        session = await house.ana.begin()
        await session.send("Hello")
        assert session.cost == COST == await spent(house)
        house.provider.answer = ZeroDivisionError()
        other = await house.ana.begin()
        with pytest.raises(ZeroDivisionError):
            async with other.turn("Hello"):
                _ = 1 // 0
        assert await spent(house) == COST


async def test_what_it_begins_with_is_its_owners(house: House) -> None:
    """The leak guard knows details of an imported history, as of one that a session was started with."""
    session = await house.ana.begin(items=[{"role": "user", "content": f"{IBAN}, ana.smith@example.org"}])
    await session.send("Hello")
    house.provider.answer = f"That is {IBAN}, ana.smith@example.org"
    assert not (await session.send("Mine?")).blocked
    ben = await house.ben.start()
    assert (await ben.send("Whose?")).blocked


async def test_what_needs_a_stored_session_waits_for_the_first_turn(house: House) -> None:
    """It is refused without a word to the store, which would count it as an attempt on a foreign session."""
    session = await house.ana.begin()
    for call in (session.history, session.end, lambda: session.update(title="x"), lambda: session.append(HISTORY)):
        with pytest.raises(RuntimeError, match="before its first turn"):
            await call()
    assert "access.refused" not in await house.events()


@pytest.mark.parametrize(
    "wrong", [{"title": "x" * 257}, {"metadata": {"a": 1}}, {"items": "text"}, {"system": "\ud800"}]
)
async def test_what_it_cannot_begin_with_is_refused_at_once(house: House, wrong: dict[str, Any]) -> None:
    """As with `start`: before anything is said."""
    with pytest.raises(ValueError, match=r"."):
        await house.ana.begin(**wrong)


async def test_a_store_that_fails_makes_no_session() -> None:
    """Where it cannot be created there is no reply."""
    watched = Watched(stores.connect("memory://"))

    async def down(*_: Any) -> Any:
        raise StoreUnavailable("down")

    async with opened(watched.store, leaks=LeakGuard()) as house:
        session = await house.ana.begin()
        watched.answers["create"] = down
        with pytest.raises(StoreUnavailable):
            await session.send("question")
        assert session.version == 0
        watched.answers.clear()
        await session.send("question")
        assert await told(session) == ["question", "You said: question"]


async def _streamed(session: Session) -> None:
    async with session.stream("question") as stream:
        _ = [text async for text in stream]
