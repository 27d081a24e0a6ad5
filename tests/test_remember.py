"""What an application remembers of an answer, and what a reply says of where it was stored."""

from __future__ import annotations

from typing import Any

import pytest
from tests.fakes import House, opened, told

from cloister.content import MOST_REMEMBERED
from cloister.model import Limits
from cloister.scrub.settings import Scrub

MAIL = "ana.smith@example.org"
IBAN = "DE89 3704 0044 0532 0130 00"


async def test_what_is_remembered_comes_back_with_the_answer(url: str) -> None:
    """It stands in the answer's item, in history and reply alike."""
    async with opened(url) as house:
        session = await house.ana.start()
        reply = await session.send("question", remember={"instructions": "Be kind.", "n": [1, None, 2.5]})
        (_, answer) = await session.history()
        assert answer.extra == {"response": {"instructions": "Be kind.", "n": [1, None, 2.5]}}
        assert reply.items[-1] == answer


async def test_what_is_remembered_reaches_no_model_and_no_window(url: str) -> None:
    """The next request is the same as without it, and the answer costs the same in a window."""
    async with opened(url) as house:
        plain, session = await house.ana.start(), await house.ana.start()
        await plain.send("question")
        await session.send("question", remember={"secret": "never to be sent " * 50})
        assert plain.token_count == session.token_count
        await plain.send("next")
        await session.send("next")
        assert "never to be sent" not in house.provider.seen
        assert house.provider.requests[-1].messages == house.provider.requests[-2].messages
        branch = await session.branch((await session.history())[1].id)
        await branch.send("next")
        assert branch.token_count == session.token_count
        async with session.turn("once more") as turn:
            for asked in (turn.chat(), turn.responses(), turn.anthropic()):
                assert "never to be sent" not in str(asked)


@pytest.mark.parametrize("where", ["model", "store", "off"])
async def test_personal_data_in_it_is_replaced_before_it_is_stored(where: Any) -> None:
    """Whatever is done with personal data, its owner reads it as it was, and an operator does not."""
    async with opened("memory://", scrub=Scrub(where=where)) as house:
        house.provider.answer = {
            "type": "message",
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": f"Write to {IBAN}?", "signature": "c2lnbmVk"},
                {"type": "text", "text": "Done."},
            ],
            "stop_reason": "end_turn",
            "usage": {"input_tokens": 1, "output_tokens": 1},
        }
        session = await house.ana.start()
        await session.send(f"My account is {IBAN}.", remember={"instructions": f"Write to {MAIL}."})
        (_, shown), (_, masked) = await session.history(), await session.history(masked=True)
        assert (shown.extra or {})["response"] == {"instructions": f"Write to {MAIL}."}
        assert f"Write to {IBAN}?" in str((shown.extra or {})["thinking_blocks"])
        assert (MAIL in str((masked.extra or {})["response"])) == (where == "off")


async def test_it_may_be_completed_until_the_turn_is_stored(url: str) -> None:
    """A mapping that grows while the stream is read, or a function, is looked at when the turn is stored."""
    async with opened(url) as house:
        session = await house.ana.start()
        lengths: list[int] = []
        async with session.stream("question", remember={"lengths": lengths}) as stream:
            async for text in stream:
                lengths.append(len(text))
        assert len(lengths) > 1
        assert (stream.reply.items[-1].extra or {})["response"] == {"lengths": lengths}
        reply = await session.send("next", remember=lambda answer: {"ended": answer.finish_reason})
        assert (reply.items[-1].extra or {})["response"] == {"ended": "stop"}


@pytest.mark.parametrize(
    "wrong", [{"a": object()}, {"a": float("nan")}, {1: "a"}, ["a"], {"a": "x" * MOST_REMEMBERED}, {"a": "\ud800"}]
)
async def test_what_cannot_be_remembered_is_refused_before_a_model_is_asked(wrong: Any) -> None:
    """No JSON, or too much of it, is a ValueError; from a function, when it has given it, and nothing is stored."""
    async with opened("memory://") as house:
        session = await house.ana.start()
        with pytest.raises(ValueError, match=r"remembered|JSON|text|surrogate|message"):
            await session.send("question", remember=wrong)
        assert not house.provider.requests
        with pytest.raises(ValueError, match=r"remembered|JSON|text|surrogate|message"):
            await session.send("question", remember=lambda _: wrong)
        assert await told(session) == []


async def test_a_reply_carries_what_was_stored_with_it(url: str) -> None:
    """Its items have the ids and times of history, tool items between them, the answer last."""
    async with opened(url, limits=Limits()) as house:
        session = await house.ana.start()
        await session.send("before")
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        async with session.turn(f"My account is {IBAN}.") as turn:
            turn.add({"role": "assistant", "content": None, "tool_calls": [call]})
            turn.add({"role": "tool", "tool_call_id": "c", "content": "1"})
            reply = await turn.finish("Thanks.")
        assert list(reply.items) == (await session.history())[2:]
        assert [item.role for item in reply.items] == ["user", "assistant", "tool", "assistant"]
        assert reply.items[0].text == f"My account is {IBAN}."


async def test_a_repeated_reply_carries_its_answer(url: str) -> None:
    """Under an idempotency key that was answered before, the items are the answer alone."""
    async with opened(url) as house:
        session = await house.ana.start()
        first = await session.send("question", idempotency_key="k", remember={"a": 1})
        again = await session.send("question", idempotency_key="k", remember={"a": 2})
        assert again.items == (first.items[-1],)


@pytest.mark.parametrize("late", [False, True])
async def test_a_stream_knows_beforehand_where_its_reply_will_be(url: str, late: bool) -> None:
    """Session and answer have their ids before the first text, and whether a new session takes the place is known."""
    async with opened(url) as house:
        session = await house.ana.start(system="Be kind.")
        await session.send("before")
        if late:
            house.clock.move(hours=1)
        async with session.stream("question") as stream:
            named, renewed, answer = stream.turn.session_id, stream.turn.renewed, stream.turn.answer_id
            _ = [text async for text in stream]
        assert renewed is late
        assert (named, answer) == (stream.reply.session.stable_id, stream.reply.items[-1].id)
        assert (named == session.stable_id) is not late
        assert (await stream.reply.session.history())[-1].id == answer


async def test_a_repeated_turn_knows_where_its_reply_is(url: str) -> None:
    """Under an idempotency key the ids are those of the first time."""
    async with opened(url) as house:
        session = await house.ana.start()
        reply = await session.send("question", idempotency_key="k")
        async with session.stream("question", idempotency_key="k") as stream:
            assert stream.turn.repeated
            assert (stream.turn.session_id, stream.turn.answer_id) == (session.stable_id, reply.items[-1].id)


async def test_options_of_a_turn_take_room_in_its_window(house: House) -> None:
    """Tools that a turn's own call will send are counted, so that what is given fits beside them."""
    session = await house.ana.start()
    tool = {"type": "function", "function": {"name": "f", "description": "words " * 100, "parameters": {}}}
    async with session.turn("question") as plain:
        without = plain.tokens
        await plain.finish("a")
    other = await house.ana.start()
    async with other.turn("question", options={"tools": [tool]}) as turn:
        assert turn.tokens > without + 100
        await turn.finish("a")


@pytest.fixture
async def house() -> Any:
    """Open a store in memory."""
    async with opened("memory://") as house:
        yield house
