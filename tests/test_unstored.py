"""Turns that pass: guarded, billed and on record as any other, and never stored."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.fakes import House, Watched, opened
from tests.test_budgets import _CHAT, COST, budgeted, spent
from tests.test_cancellation import MOST_WAITS, When, _cancelled

from cloister import stores
from cloister.alarms import Alarms
from cloister.costs import Budget
from cloister.errors import BudgetExceeded, ProviderError, RateLimited, ReplyBlocked, SessionNotFound, StoreUnavailable
from cloister.leaks.settings import LeakGuard

IBAN = "DE89 3704 0044 0532 0130 00"
CALL = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"for": "it"}'}}
CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be kind."},
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": "first"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c", "content": "42"},
    {"role": "assistant", "content": "It is 42."},
    {"role": "user", "content": "second"},
]


@pytest.fixture
async def house(url: str) -> AsyncIterator[House]:
    """Open a store."""
    async with opened(url) as house:
        yield house


async def test_nothing_of_a_passing_turn_is_stored(house: House) -> None:
    """There is a reply, and no session, no item, and no way to resume what it was."""
    session = house.ana.passing()
    reply = await session.send("My secret is plum.")
    assert reply.text == "You said: My secret is plum."
    assert reply.session is session
    assert await house.ana.sessions() == []
    assert [line async for line in house.ana.export()] == []
    with pytest.raises(SessionNotFound if "token" not in house.cloister.store.url else Exception):
        await house.ana.resume(session.id)
    await session.send("What is my secret?")
    assert "plum" not in str(house.provider.requests[-1].messages)


async def test_a_passing_turn_writes_only_its_entries() -> None:
    """Beside looking up whose details they are, the store is asked one thing: to put the turn on record."""
    watched = Watched(stores.connect("memory://"))
    async with opened(watched.store) as house:
        session = house.ana.passing()
        watched.calls.clear()
        await session.send("question")
        assert [name for name in watched.names if name != "claims"] == ["record"]


async def test_a_passing_turn_is_on_record(house: House) -> None:
    """One entry says that it was, what it took, and not that anything was stored."""
    await house.ana.passing().send("question")
    entries = await house.entries()
    assert [entry.event for entry in entries if entry.event.startswith(("turn", "session"))] == ["turn.passed"]
    (entry,) = (entry for entry in entries if entry.event == "turn.passed")
    assert '"provider":"parrot"' in entry.detail
    assert "question" not in entry.detail


async def test_a_whole_chat_is_sent_in_order(house: House) -> None:
    """System messages head it, calls stay with their results, the question is last."""
    await house.ana.passing().send(CHAT)
    sent = house.provider.requests[-1].messages
    assert sent[0] == {"role": "system", "content": "Be kind.\n\nBe brief."}
    assert [message["role"] for message in sent[1:]] == ["user", "assistant", "tool", "assistant", "user"]
    assert sent[2]["tool_calls"] == [CALL]
    assert sent[-1]["content"] == "second"


@pytest.mark.parametrize(
    "chat",
    [
        [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Hi."}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "And then I"}],
        [{"role": "system", "content": "Only this."}],
        [*CHAT[2:5]],
    ],
)
async def test_chats_of_other_shapes_are_sent_as_they_are(chat: list[dict[str, Any]]) -> None:
    """A greeting, the beginning of an answer, a system message alone, the result of a tool at the end."""
    async with opened("memory://") as house:
        house.provider.answer = "ok"
        await house.ana.passing().send(chat)
        assert house.provider.requests[-1].messages == chat


async def test_a_long_chat_fits_the_window() -> None:
    """The oldest turns are left out, and no call parts from its result."""
    long = [*CHAT[:2]]
    for number in range(60):
        call = {**CALL, "id": f"c{number}"}
        long += [
            {"role": "user", "content": f"question {number} " + "word " * 20},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": f"c{number}", "content": "42"},
            {"role": "assistant", "content": "It is 42."},
        ]
    async with opened("memory://", context_tokens=1_000) as house:
        async with house.ana.passing().turn([*long, {"role": "user", "content": "last"}]) as turn:
            assert turn.tokens <= 1_000
            sent = turn.messages
            await turn.finish("done")
        assert sent[0]["content"] == "Be kind.\n\nBe brief."
        assert sent[-1]["content"] == "last"
        assert 10 < len(sent) < len(long)
        calls = [call["id"] for message in sent for call in message.get("tool_calls", ())]
        assert calls == [message["tool_call_id"] for message in sent if message["role"] == "tool"]
        with pytest.raises(BudgetExceeded):
            await house.ana.passing().send([*long, {"role": "user", "content": "last " * 2_000}])


async def test_personal_data_of_a_passing_turn_reaches_no_model(house: House) -> None:
    """It is replaced in the history too, and put back in the reply."""
    chat = [
        {"role": "user", "content": f"My account is {IBAN}."},
        {"role": "assistant", "content": "Noted."},
        {"role": "user", "content": "Which is it?"},
    ]
    house.provider.answer = lambda request: str(request.messages[1]["content"])
    reply = await house.ana.passing().send(chat)
    assert IBAN not in house.provider.seen
    assert reply.text == f"My account is {IBAN}."
    assert "data.replaced" in await house.events()


@pytest.mark.parametrize("streamed", [False, True])
async def test_another_users_details_do_not_pass(house: House, streamed: bool) -> None:
    """What somebody else said in a stored session is withheld from a passing turn too."""
    ben = await house.ben.start()
    await ben.send(f"My account is {IBAN}, card 4111 1111 1111 1111, mail ben.miller@example.org")
    house.provider.answer = f"It is {IBAN}, with card 4111 1111 1111 1111, and mail ben.miller@example.org"
    session = house.ana.passing()
    if streamed:
        async with session.stream("Whose is it?") as stream:
            said = "".join([text async for text in stream])
        reply = stream.reply
    else:
        reply = await session.send("Whose is it?")
        said = reply.text
    assert reply.blocked
    assert "4111" not in said + reply.text
    assert "reply.blocked" in await house.events()


async def test_one_slip_in_the_chat_is_not_for_good(house: House) -> None:
    """An answer in the given history exempts nothing, as in a stored session; what its owner said does."""
    ben = await house.ben.start()
    await ben.send(f"My account is {IBAN}, mail ben.miller@example.org")
    house.provider.answer = f"As I said: {IBAN}, ben.miller@example.org"
    chat = [
        {"role": "user", "content": "Whose?"},
        {"role": "assistant", "content": f"{IBAN}, ben.miller@example.org"},
        {"role": "user", "content": "Again?"},
    ]
    assert (await house.ana.passing().send(chat)).blocked
    chat[0]["content"] = f"Whose are {IBAN}, ben.miller@example.org?"
    assert not (await house.ana.passing().send(chat)).blocked


async def test_what_was_planted_elsewhere_is_not_taken() -> None:
    """A result of a tool in the given history that carries another session's canary stops the turn."""
    async with opened("memory://", leaks=LeakGuard(plant=True)) as house:
        other = await house.ben.start()
        async with other.turn("x") as turn:
            canary = turn.canary
            await turn.finish("y")
        for role, more in (("tool", {"tool_call_id": "c"}), ("assistant", {})):
            chat = [*CHAT[2:4], *([] if role == "tool" else [CHAT[4]]), {"role": role, "content": canary, **more}]
            with pytest.raises(ReplyBlocked):
                await house.ana.passing().send([*chat, {"role": "user", "content": "go on"}])


async def test_a_passing_turn_is_paid_for(url: str) -> None:
    """It is reserved on the user's budget, settled at what it came to, and refused beyond it."""
    async with budgeted(url, Budget(user_daily="0.03", reply_tokens=3)) as house:
        house.provider.answer = _CHAT
        session = house.ana.passing()
        assert (await session.send("Hello")).cost == await spent(house) == COST
        await session.send("Hello")
        with pytest.raises(BudgetExceeded):
            await session.send("Hello")
        assert len(house.provider.requests) == 2
        assert await spent(house) == 2 * COST


@pytest.mark.parametrize("asked", [False, True])
async def test_what_a_failed_passing_turn_reserved(url: str, asked: bool) -> None:
    """Is given back where no model was asked, and stays where nobody will tell what it came to."""
    async with budgeted(url, Budget(user_daily="9")) as house:
        house.provider.answer = ZeroDivisionError()
        with pytest.raises(ProviderError if asked else ZeroDivisionError):  # noqa: PT012
            if asked:
                await house.ana.passing().send("Hello")
            async with house.ana.passing().turn("Hello"):
                _ = 1 // 0
        assert (await spent(house) > 0) is asked
        assert (await house.events())[-1] == "turn.failed"


async def test_who_is_suspended_passes_nothing(house: House) -> None:
    """A user who is refused for a while is refused passing turns as well."""
    async with opened("memory://", alarms=Alarms(suspend_after=1)) as strict:
        with pytest.raises(SessionNotFound):
            await strict.ana.resume("cs_" + "A" * 43)
        with pytest.raises(RateLimited):
            await strict.ana.passing().send("question")
        assert not strict.provider.requests


async def test_without_a_record_there_is_no_reply() -> None:
    """Where the entry cannot be written, the reply does not come."""
    watched = Watched(stores.connect("memory://"))

    async def down(*_: Any) -> Any:
        raise StoreUnavailable("down")

    async with opened(watched.store) as house:
        session = house.ana.passing()
        watched.answers["record"] = down
        with pytest.raises(StoreUnavailable):
            await session.send("question")
        watched.answers.clear()


@pytest.mark.parametrize("when", ["before", "after", "twice"])
async def test_cancelled_anywhere_a_passing_turn_is_on_record_once(house: House, when: When) -> None:
    """Wherever it is cancelled: passed or failed, never both, and no stream is left open."""
    for at in range(1, MOST_WAITS):
        seen = len(await house.entries())

        async def flow() -> None:
            async with house.ana.passing().stream("question") as stream:
                _ = [text async for text in stream]

        reached = await _cancelled(flow(), at, when)
        events = [entry.event for entry in (await house.entries())[seen:]]
        assert events.count("turn.passed") + events.count("turn.failed") <= 1, f"{events} after wait {at}"
        assert house.provider.open_streams == 0
        if not reached:
            assert "turn.passed" in events
            break
    else:
        pytest.fail(f"still waiting after {MOST_WAITS} times")
    assert await house.ana.sessions() == []


async def test_what_needs_a_stored_session_is_refused_a_passing_one(house: House) -> None:
    """Without asking the store for an id that it cannot have, which would count as an attempt."""
    session = house.ana.passing()
    for call in (session.history, session.end, lambda: session.update(title="x"), lambda: session.append(CHAT[2])):
        with pytest.raises(RuntimeError, match="nothing of this session"):
            await call()
    with pytest.raises(ValueError, match="key"):
        await session.send("question", idempotency_key="k")
    assert "access.refused" not in await house.events()


async def test_passing_turns_do_not_wait_for_each_other(house: House) -> None:
    """Two at once on one passing session are two conversations."""
    session = house.ana.passing()
    async with session.turn("a") as one, session.turn("b") as two:
        assert one.session_id != two.session_id
        assert [(await one.finish("1")).text, (await two.finish("2")).text] == ["1", "2"]
