"""The path of a turn: a fake clock, a fake provider, two owners, and a store that misbehaves."""

from __future__ import annotations

import asyncio
import json
import os
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from tests.fakes import House, Parrot, Watched, opened, pieces, told

from cloister import sessions, stores
from cloister.client import AsyncCloister
from cloister.errors import (
    BudgetExceeded,
    CloisterError,
    ConfigurationError,
    IntegrityError,
    OptionRefused,
    ProviderError,
    ProviderTimeout,
    SessionBusy,
    SessionConflict,
    SessionExpired,
    SessionNotFound,
    StoreUnavailable,
)
from cloister.keyring import Keyring
from cloister.model import Item, Limits, Usage
from cloister.session import Session
from cloister.stores.base import LEASE, Listing, Loaded, Receipt, Store
from cloister.stores.memory import MemoryStore
from cloister.user import User

NOT_WAITING = Limits(turn_wait=timedelta(0))


@pytest.fixture
async def house(url: str) -> AsyncIterator[House]:
    async with opened(url) as house:
        yield house


# --- who says what to whom --------------------------------------------------------------------------------------------


async def test_the_model_sees_one_owner_only(house: House) -> None:
    """However two owners' turns interleave, a request holds words of one of them."""
    ana, ben = await house.ana.start(system="Be kind."), await house.ben.start()
    for number in range(3):
        await asyncio.gather(ana.send(f"cats say {number}"), ben.send(f"dogs say {number}"))
    assert len(house.provider.requests) == 6
    for request in house.provider.requests:
        said = str(request.messages)
        assert ("cats say" in said) != ("dogs say" in said)
    assert all("cats" in text or text == "Be kind." for text in await told(ana))
    assert all("dogs" in text for text in await told(ben))


async def test_a_request_is_system_history_question(house: House) -> None:
    """The model is sent the system text, the turns before, and the question, in this order."""
    session = await house.ana.start(system="Be kind.", items=[{"role": "user", "content": "earlier"}])
    await session.send("first")
    await session.send("second")
    assert house.provider.requests[-1].messages == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "earlier"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "You said: first"},
        {"role": "user", "content": "second"},
    ]


async def test_system_text_of_one_turn_is_not_kept(house: House) -> None:
    """`system=` of a turn takes the place of the session's for that turn, and is not stored."""
    session = await house.ana.start(system="Be kind.")
    await session.send("first", system="Be brief.")
    await session.send("second")
    systems = [request.messages[0]["content"] for request in house.provider.requests]
    assert systems == ["Be brief.", "Be kind."]
    assert "Be brief." not in await told(session)


async def test_documents_are_neither_sent_nor_stored(house: House) -> None:
    """`documents=` only exempt evidence."""
    session = await house.ana.start()
    await session.send("first", documents=["a retrieved page"])
    async with session.stream("second", documents=["a retrieved page"]) as stream:
        assert [text async for text in stream]
    async with session.turn("third", documents=["a retrieved page"]) as turn:
        await turn.finish("yes")
    assert "retrieved" not in house.provider.seen
    assert "retrieved" not in str(await told(session))


async def test_stream_gives_pieces_and_then_the_reply(house: House) -> None:
    """A streamed reply is stored once it has been read to its end."""
    session = await house.ana.start()
    async with session.stream("hello there") as stream:
        with pytest.raises(RuntimeError, match="no reply yet"):
            _ = stream.reply
        read = [text async for text in stream]
    assert "".join(read) == stream.reply.text
    assert await told(session) == ["hello there", stream.reply.text]
    assert house.provider.open_streams == 0


async def test_without_a_provider_only_send_and_stream_are_missing(url: str) -> None:
    """A cloister without a model takes whole turns from the caller and refuses to answer by itself."""
    async with AsyncCloister.open(url, keyring=Keyring.generate()) as cloister:
        session = await cloister.user("ana").start()
        with pytest.raises(ConfigurationError, match="provider="):
            await session.send("hello")
        with pytest.raises(ConfigurationError, match="provider="):
            session.stream("hello")
        async with session.turn("hello") as turn:
            assert (await turn.finish("hi")).text == "hi"


# --- bring your own model call ----------------------------------------------------------------------------------------

_CHAT: dict[str, Any] = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-4.1",
    "choices": [
        {"index": 0, "finish_reason": "stop", "logprobs": None, "message": {"role": "assistant", "content": "Hi there"}}
    ],
    "usage": {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14},
}
_RESPONSE: dict[str, Any] = {
    "id": "r",
    "object": "response",
    "created_at": 1,
    "model": "gpt-4.1",
    "status": "completed",
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": 1,
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1,
    "output": [
        {
            "type": "message",
            "id": "m",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Hi there", "annotations": []}],
        }
    ],
    "usage": {
        "input_tokens": 11,
        "output_tokens": 3,
        "total_tokens": 14,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    },
}
_MESSAGE: dict[str, Any] = {
    "id": "m",
    "type": "message",
    "role": "assistant",
    "model": "claude",
    "content": [{"type": "text", "text": "Hi there"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 11, "output_tokens": 3},
}


@pytest.mark.parametrize(
    "answer",
    [
        "Hi there",
        _CHAT,
        ChatCompletion.model_validate(_CHAT),
        Response.model_validate(_RESPONSE),
        Message.model_validate(_MESSAGE),
    ],
    ids=["text", "dict", "openai chat", "openai response", "anthropic"],
)
async def test_any_whole_answer_finishes_a_turn(house: House, answer: object) -> None:
    """`turn.finish` takes text, a dict or any SDK's response object."""
    session = await house.ana.start()
    async with session.turn("I am hungry") as turn:
        assert turn.chat() == {"messages": [{"role": "user", "content": "I am hungry"}]}
        assert "input" in turn.responses()
        assert "messages" in turn.anthropic()
        reply = await turn.finish(answer)
    assert (reply.text, turn.reply) == ("Hi there", reply)
    assert await told(session) == ["I am hungry", "Hi there"]
    if isinstance(answer, str):
        assert reply.usage.estimated
        assert reply.usage.input_tokens > 0
    else:
        assert reply.usage == Usage(11, 3)
    assert (await house.ana.resume(session.id)).usage == reply.usage == session.usage


def _chat_chunk(delta: dict[str, Any], finish: str | None = None) -> ChatCompletionChunk:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    shape = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4.1", "choices": [choice]}
    return ChatCompletionChunk.model_validate(shape)


_CHAT_CHUNKS: list[Any] = [
    _chat_chunk({"role": "assistant", "content": "Hi "}),
    _chat_chunk({"content": "there"}),
    _chat_chunk({}, "stop"),
]
_ANTHROPIC_EVENTS: list[Any] = [
    TypeAdapter(RawMessageStreamEvent).validate_python(event)
    for event in (
        {"type": "message_start", "message": {**_MESSAGE, "content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi "}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "there"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}},
        {"type": "message_stop"},
    )
]
_PART = {"item_id": "m", "output_index": 0, "content_index": 0}
_RESPONSE_SHAPES: list[dict[str, Any]] = [
    {"type": "response.created", "response": {**_RESPONSE, "status": "in_progress", "output": []}},
    {"type": "response.output_text.delta", **_PART, "delta": "Hi ", "logprobs": []},
    {"type": "response.output_text.delta", **_PART, "delta": "there", "logprobs": []},
    {"type": "response.completed", "response": _RESPONSE},
]
_RESPONSE_EVENTS: list[Any] = [
    TypeAdapter(ResponseStreamEvent).validate_python({**shape, "sequence_number": number})
    for number, shape in enumerate(_RESPONSE_SHAPES)
]


@pytest.mark.parametrize(
    "chunks",
    [["Hi ", "there"], _CHAT_CHUNKS, _RESPONSE_EVENTS, _ANTHROPIC_EVENTS],
    ids=["text", "openai chat", "openai response", "anthropic"],
)
async def test_any_streamed_answer_finishes_a_turn(house: House, chunks: list[Any]) -> None:
    """`turn.stream` takes an iterator of text or any SDK's stream, and stores the turn at its end."""
    session = await house.ana.start()
    async with session.turn("I am hungry") as turn:
        shown = [text async for text in turn.stream(pieces(*chunks))]
    assert "".join(shown) == turn.reply.text == "Hi there"
    assert await told(session) == ["I am hungry", "Hi there"]


@pytest.mark.parametrize(
    "chunks", [[], _CHAT_CHUNKS[:2], _RESPONSE_EVENTS[:3], _ANTHROPIC_EVENTS[:-1]], ids=["none", "chat", "resp", "anth"]
)
async def test_a_stream_without_its_end_is_a_failure(house: House, chunks: list[Any]) -> None:
    """A stream that ends before its finish marker is no short reply: nothing is stored."""
    session = await house.ana.start()
    with pytest.raises(ProviderError):  # noqa: PT012
        async with session.turn("I am hungry") as turn:
            async for _ in turn.stream(pieces(*chunks)):
                pass
    assert await told(session) == []


async def test_tool_calls_and_results_are_part_of_the_turn(house: House) -> None:
    """What `add` records between question and answer is sent next, and stored with them."""
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    said = {"role": "assistant", "content": None, "tool_calls": [call]}
    asked = {**_CHAT, "choices": [{"index": 0, "finish_reason": "tool_calls", "message": said}]}
    session = await house.ana.start()
    async with session.turn("Is it cold?") as turn:
        turn.chat()
        turn.add(asked)
        turn.add({"role": "tool", "tool_call_id": "call_1", "content": "-3"})
        sent = turn.chat()["messages"]
        reply = await turn.finish(_CHAT)
    assert [message["role"] for message in sent] == ["user", "assistant", "tool"]
    assert sent[1]["tool_calls"] == [call]
    assert [item.role for item in await session.history()] == ["user", "assistant", "tool", "assistant"]
    assert (await session.history())[1].tool_calls == [call]
    assert reply.usage == Usage(22, 6), "both calls were paid for"


@pytest.mark.parametrize("wrong", [3, {"role": "nobody", "content": "x"}, {"role": "tool", "content": "x"}, object()])
async def test_what_is_no_message_is_refused(house: House, wrong: object) -> None:
    """`add` and `append` refuse what is not a message; nothing is stored."""
    session = await house.ana.start()
    with pytest.raises((ValueError, ProviderError)):
        async with session.turn("hello") as turn:
            turn.add(wrong)
    with pytest.raises(ValueError, match="message"):
        await session.append([wrong])  # type: ignore[list-item]
    assert await told(session) == []


async def test_leaving_without_finish_stores_nothing(house: House) -> None:
    """A block that is left without an answer leaves nothing but a note on record."""
    session = await house.ana.start()
    async with session.turn("never answered"):
        pass
    async with session.stream("never read"):
        pass
    async with session.stream("read in part") as stream:
        async for _ in stream:
            break
    assert await told(session) == []
    assert house.provider.open_streams == 0
    assert (await house.events()).count("turn.failed") == 3


async def test_a_turn_is_finished_once(house: House) -> None:
    """Whoever finishes or adds to a finished turn is told, and nothing more is stored."""
    session = await house.ana.start()
    async with session.turn("hello") as turn:
        await turn.finish("hi")
        with pytest.raises(RuntimeError, match="finished"):
            await turn.finish("hi again")
        with pytest.raises(RuntimeError, match="finished"):
            turn.add({"role": "assistant", "content": "and again"})
        with pytest.raises(RuntimeError, match="finished"):
            _ = [text async for text in turn.stream(pieces("and again"))]
    assert await told(session) == ["hello", "hi"]


async def test_of_two_finishes_at_once_one_is_stored(house: House) -> None:
    """Two tasks that finish one turn together store one answer, and the session stays whole."""
    session = await house.ana.start()
    async with session.turn("hello") as turn:
        outcomes = await asyncio.gather(turn.finish("one"), turn.finish("two"), return_exceptions=True)
    wrong = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert len(wrong) == 1
    assert isinstance(wrong[0], RuntimeError | SessionConflict), repr(wrong[0])
    assert len(await told(session)) == 2


@pytest.mark.parametrize("timed_out", [False, True])
@pytest.mark.plain_ids
async def test_a_turn_cannot_be_finished_after_its_block(house: House, timed_out: bool) -> None:
    """An answer that comes after the block was left is refused, and stored nowhere."""
    session = await house.ana.start()
    if timed_out:
        house.clock.move(hours=1)
    async with session.turn("hello", on_expired="renew") as turn:
        pass
    with pytest.raises((RuntimeError, SessionConflict)):
        await turn.finish("late")
    assert [await told(each) for each in await house.ana.sessions()] == ([] if timed_out else [[]])


async def test_items_kept_verbatim(house: House) -> None:
    """Parts, extra fields and text of every kind come back as they were said."""
    said = {
        "role": "user",
        "content": [
            {"type": "text", "text": "café \0 \N{WINKING FACE}"},
            {"type": "image_url", "image_url": {"url": "x:"}},
        ],
        "name": "guest-7",
    }
    session = await house.ana.start()
    async with session.turn(said) as turn:
        sent = turn.messages
        await turn.finish("ok")
    assert sent == [said]
    assert (await session.history())[0].content == said["content"]
    assert (await session.history())[0].extra == {"name": "guest-7"}


# --- idempotency ------------------------------------------------------------------------------------------------------


async def test_the_same_key_is_one_turn(house: House) -> None:
    """A repeated key answers what the first time did, without asking the model or storing anything."""
    session = await house.ana.start()
    first = await session.send("hello", idempotency_key="k")
    again = await session.send("hello", idempotency_key="k")
    async with session.stream("hello", idempotency_key="k") as stream:
        streamed = "".join([text async for text in stream])
    async with session.turn("hello", idempotency_key="k") as turn:
        assert turn.repeated
        taken = await turn.finish("something else")
    assert first.text == again.text == streamed == stream.reply.text == taken.text
    assert again.usage == first.usage
    assert len(house.provider.requests) == 1
    assert len(await told(session)) == 2
    assert session.version == 2


async def test_the_same_key_at_once_is_one_turn(house: House) -> None:
    """Requests with one key that come at the same time are one turn too."""
    session = await house.ana.start()
    replies = await asyncio.gather(*(session.send("hello", idempotency_key="k") for _ in range(5)))
    assert len({reply.text for reply in replies}) == 1
    assert len(house.provider.requests) == 1
    assert len(await told(session)) == 2


async def test_the_same_key_with_other_text_is_refused(house: House) -> None:
    """A key stands for one text: another one under it is an error, and not the first one's answer."""
    session = await house.ana.start()
    await session.send("hello", idempotency_key="k")
    with pytest.raises(ValueError, match="idempotency key"):
        await session.send("something else", idempotency_key="k")
    with pytest.raises(ValueError, match="idempotency key"):
        await session.send("hello", idempotency_key="k", system="and other instructions")
    assert len(await told(session)) == 2


async def test_a_key_belongs_to_owner_and_session(house: House) -> None:
    """The same key in another session, or of another owner, is another turn."""
    mine, other, bens = await house.ana.start(), await house.ana.start(), await house.ben.start()
    for number, session in enumerate((mine, other, bens)):
        reply = await session.send(f"hello {number}", idempotency_key="k")
        assert reply.text == f"You said: hello {number}"
    assert len(house.provider.requests) == 3


async def test_a_key_holds_across_a_renewal(house: House) -> None:
    """A request that renewed its session and is sent again is answered from the new one, and not a third."""
    session = await house.ana.start(system="Be kind.")
    house.clock.move(hours=1)
    first = await session.send("hello", idempotency_key="k")
    again = await (await house.ana.resume(session.id)).send("hello", idempotency_key="k")
    assert first.renewed
    assert again.renewed
    assert first.session.id == again.session.id
    assert (first.text, first.notice) == (again.text, again.notice)
    assert len(await house.ana.sessions()) == 1
    assert len(house.provider.requests) == 1


async def test_a_failed_turn_leaves_its_key_free(house: House) -> None:
    """A key under which nothing was stored can be tried again."""
    session = await house.ana.start()
    house.provider.answer = ProviderTimeout("too slow")
    with pytest.raises(ProviderTimeout):
        await session.send("hello", idempotency_key="k")
    house.provider.answer = None
    assert (await session.send("hello", idempotency_key="k")).text == "You said: hello"


@pytest.mark.parametrize("key", ["", "x" * 257, "\ud800", 7])
async def test_a_key_is_a_short_text(house: House, key: Any) -> None:
    """What is not a text of 1 to 256 characters is no key."""
    session = await house.ana.start()
    with pytest.raises(ValueError, match="idempotency key"):
        await session.send("hello", idempotency_key=key)


# --- time -------------------------------------------------------------------------------------------------------------


async def test_a_session_times_out_to_the_second(house: House) -> None:
    """A session is alive until its idle time, and not at it."""
    session = await house.ana.start()
    house.clock.move(minutes=30, seconds=-1)
    await session.send("just in time")
    assert session.expires_at == house.clock.now + timedelta(minutes=30)
    house.clock.move(minutes=30)
    with pytest.raises(SessionExpired):
        await session.history()


async def test_activity_never_moves_the_absolute_limit(house: House) -> None:
    """However busy, a session ends when its absolute time is up."""
    session = await house.ana.start()
    for _ in range(35):
        house.clock.move(minutes=20)
        await session.send("still here")
    house.clock.move(minutes=20)
    reply = await session.send("past twelve hours")
    assert reply.renewed


async def test_only_what_is_said_moves_the_idle_time(house: House) -> None:
    """Reading, describing, hiding and failing do not keep a session alive."""
    session = await house.ana.start()
    await session.send("hello")
    ends = session.expires_at
    house.clock.move(minutes=20)
    first, _ = await session.history()
    await session.update(title="a title")
    await session.hide(first.id)
    house.provider.answer = ProviderTimeout("too slow")
    with pytest.raises(ProviderTimeout):
        await session.send("hello?")
    assert (await house.ana.resume(session.id)).expires_at == ends


@pytest.mark.plain_ids
async def test_a_timed_out_session_is_renewed_by_send(house: House) -> None:
    """The reply to a late message comes from a new session and says so; only the application's text is carried over."""
    session = await house.ana.start(system="Be kind.", title="my secret title", metadata={"a": "b"})
    await session.send("my secret")
    house.clock.move(hours=1)
    reply = await session.send("hello again")
    assert reply.renewed
    assert reply.notice
    assert reply.session.id != session.id
    assert house.provider.requests[-1].messages == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "hello again"},
    ]
    assert await told(reply.session) == ["Be kind.", "hello again", reply.text]
    assert reply.session.title is None
    with pytest.raises(SessionExpired):
        await session.history()
    assert [each.id for each in await house.ana.sessions()] == [reply.session.id]
    following = await reply.session.send("and on")
    assert not following.renewed
    assert house.provider.requests[-1].messages[0]["content"] == "Be kind."
    events = await house.events()
    assert events.count("session.renewed") == events.count("session.expired") == 1


async def test_a_swept_session_is_renewed_with_its_system_text(house: House) -> None:
    """Sweeping destroys the content and leaves what a renewal needs."""
    session = await house.ana.start(system="Be kind.")
    await session.send("my secret")
    house.clock.move(hours=1)
    assert await house.cloister.sweep() == 1
    resumed = await house.ana.resume(session.id)
    async with resumed.stream("hello again") as stream:
        _ = [text async for text in stream]
    assert stream.reply.renewed
    assert house.provider.requests[-1].messages[0] == {"role": "system", "content": "Be kind."}
    assert "my secret" not in str(house.provider.requests[-1].messages)


async def test_a_turn_is_not_renewed_unless_asked(house: House) -> None:
    """`turn`, `history`, `append`, `update` and `hide` of a timed-out session raise, and `turn` renews on request."""
    session = await house.ana.start()
    (item,) = await session.append({"role": "user", "content": "hello"})
    house.clock.move(hours=1)
    resumed = await house.ana.resume(session.id)
    attempts: list[Callable[[], Awaitable[Any]]] = [
        lambda: resumed.turn("late").__aenter__(),
        lambda: resumed.history(),
        lambda: resumed.append({"role": "user", "content": "late"}),
        lambda: resumed.update(title="late"),
        lambda: resumed.hide(item.id),
        lambda: resumed.send("late", on_expired="raise"),
    ]
    for attempt in attempts:
        with pytest.raises(SessionExpired) as raised:
            await attempt()
        assert raised.value.reason == "expired"
    async with resumed.turn("late", on_expired="renew") as turn:
        reply = await turn.finish("welcome back")
    assert reply.renewed


async def test_an_ended_session_is_never_renewed(house: House) -> None:
    """What its owner ended stays ended, for `resume` and for every call of a value that is still around."""
    session = await house.ana.start(system="Be kind.")
    await session.send("hello")
    await session.end()
    for attempt in (session.send("again"), session.history(), house.ana.resume(session.id), session.update(title="x")):
        with pytest.raises(SessionExpired) as raised:
            await attempt
        assert raised.value.reason == "ended"
    with pytest.raises(SessionExpired):
        async with session.turn("again", on_expired="renew"):
            pass
    house.clock.move(days=1)
    with pytest.raises(SessionExpired):
        await session.send("again")
    assert await house.ana.sessions() == []


@pytest.mark.parametrize("swept", [False, True])
async def test_ending_a_timed_out_session_is_final(house: House, swept: bool) -> None:
    """Who ends a session that has timed out is done with it, whether it was swept yet or not."""
    session = await house.ana.start(system="Be kind.")
    house.clock.move(hours=1)
    if swept:
        await house.cloister.sweep()
    await session.end()
    with pytest.raises(SessionExpired) as raised:
        await session.send("again")
    assert raised.value.reason == "ended"


@pytest.mark.plain_ids
async def test_a_tombstone_is_forgotten_after_thirty_days(house: House) -> None:
    """Owners are told for 30 days that a session is over; then it never was."""
    session = await house.ana.start()
    await session.end()
    house.clock.move(days=29)
    await house.cloister.sweep()
    with pytest.raises(SessionExpired):
        await house.ana.resume(session.id)
    house.clock.move(days=2)
    await house.cloister.sweep()
    with pytest.raises(SessionNotFound):
        await house.ana.resume(session.id)


async def test_a_renewal_that_fails_leaves_no_session(house: House) -> None:
    """The new session comes to be with its first turn, or not at all."""
    session = await house.ana.start(system="Be kind.")
    house.clock.move(hours=1)
    house.provider.answer = ProviderTimeout("too slow")
    with pytest.raises(ProviderTimeout):
        await session.send("hello")
    assert await house.ana.sessions() == []
    house.provider.answer = None
    assert (await session.send("hello")).renewed


async def test_an_admitted_turn_may_commit_late(house: House) -> None:
    """A turn that began in time is stored, even if sweeping comes by when the session's time is up."""
    session = await house.ana.start()
    async with session.turn("in time") as turn:
        house.clock.move(hours=1)
        assert await house.cloister.sweep() == 0
        await turn.finish("thanks")
    assert await told(session) == ["in time", "thanks"]


async def test_time_never_runs_backwards(house: House) -> None:
    """A clock that was set back neither prolongs a session nor makes its items older than those before."""
    session = await house.ana.start()
    await session.send("first")
    ends = session.expires_at
    house.clock.move(hours=-5)
    await session.send("second")
    assert session.expires_at == ends
    times = [item.time for item in await session.history() if item.time]
    assert times == sorted(times)
    house.clock.move(hours=5, minutes=30)
    with pytest.raises(SessionExpired):
        await session.history()


async def test_a_session_keeps_the_limits_it_began_with(tmp_path: Path) -> None:
    """Limits that change between two runs concern new sessions only."""
    url = f"sqlite:///{tmp_path}/x.db"
    async with opened(url, limits=Limits.keep(days=30)) as house:
        clock, old = house.clock, await house.ana.start()
        forever = Limits(idle_timeout=None, absolute_timeout=None)
    async with opened(url, clock=clock, limits=forever) as house:
        endless = await house.ana.start()
        assert endless.expires_at is None
    clock.move(days=29)
    async with opened(url, clock=clock) as house:
        assert not (await (await house.ana.resume(old.id)).send("still here")).renewed
        clock.move(days=31)
        await house.cloister.sweep()
        assert not (await (await house.ana.resume(endless.id)).send("still here")).renewed
        assert (await (await house.ana.resume(old.id)).send("too late")).renewed


async def test_a_clock_without_a_zone_is_refused(url: str) -> None:
    """A naive clock would expire sessions by the hour of the place."""
    async with opened(url) as house:
        house.clock.now = house.clock.now.replace(tzinfo=None)
        with pytest.raises(ConfigurationError, match="aware"):
            await house.ana.start()
        house.clock.now = house.clock.now.replace(tzinfo=UTC)


# --- what a session and a user can do ---------------------------------------------------------------------------------


async def test_append_and_import_are_one_commit(house: House) -> None:
    """Items come in whole, in order and with ids; one that is wrong keeps all of them out."""
    session = await house.ana.start(items=[{"role": "system", "content": "Be kind."}, {"role": "user", "content": "a"}])
    stored = await session.append([Item("assistant", "b"), {"role": "user", "content": "c"}])
    assert await told(session) == ["Be kind.", "a", "b", "c"]
    assert [item.id for item in (await session.history())[2:]] == [item.id for item in stored]
    assert len({item.id for item in await session.history()}) == 4
    version = session.version
    assert await session.append([]) == []
    with pytest.raises(ValueError, match="role"):
        await session.append([{"role": "user", "content": "fine"}, {"role": "x", "content": "wrong"}])
    with pytest.raises(ValueError, match="surrogate"):
        await session.append({"role": "user", "content": "\ud800"})
    assert (await house.ana.resume(session.id)).version == version
    assert len(await told(session)) == 4


async def test_what_was_appended_is_answered_without_more(house: House) -> None:
    """An empty list adds nothing to a turn: the model answers what waits for it, and nothing where nothing does."""
    session = await house.ana.start(system="Be kind.")
    for _ in range(2):
        with pytest.raises(OptionRefused):
            await session.send([])
        await session.append([{"role": "user", "content": "How are you?"}, {"role": "system", "content": "Be brief."}])
        reply = await session.send([])
        assert [item.role for item in reply.items] == ["assistant"]
        assert [said["content"] for said in house.provider.requests[-1].messages[-2:]] == [
            "How are you?",
            "Be brief.",
        ]
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    await session.append({"role": "assistant", "tool_calls": [call]})
    with pytest.raises(OptionRefused):
        await session.send([])
    await session.append({"role": "tool", "content": "Rain.", "tool_call_id": "call_1"})
    async with session.stream([]) as stream:
        assert "".join([text async for text in stream]) == stream.reply.text
    assert house.provider.requests[-1].messages[-1]["content"] == "Rain."
    assert len(house.provider.requests) == 3
    begun = await house.ana.begin(items=[{"role": "user", "content": "Hello."}])
    await begun.send([])
    assert begun.item_count == 2


async def test_update_sets_what_is_given(house: House) -> None:
    """Title and metadata change alone, within their bounds."""
    session = await house.ana.start(title="one", metadata={"a": "1"})
    await session.update(title="two")
    assert (session.title, session.metadata) == ("two", {"a": "1"})
    await session.update(metadata={})
    again = await house.ana.resume(session.id)
    assert (again.title, again.metadata) == ("two", {})
    too_much: list[dict[str, Any]] = [
        {"title": "x" * 257},
        {"metadata": {"a": "x" * 513}},
        {"metadata": {str(n): "" for n in range(17)}},
    ]
    for wrong in too_much:
        with pytest.raises(ValueError, match="at most"):
            await session.update(**wrong)


async def test_a_hidden_item_is_not_shown_or_sent(house: House) -> None:
    """Hiding leaves an item out of history and window, and concerns this session's items alone."""
    session, other = await house.ana.start(), await house.ana.start()
    await session.send("forget this")
    await other.send("something else")
    first, second = await session.history()
    foreign, _ = await other.history()
    await session.hide(first.id)
    await session.hide(first.id)
    assert await told(session) == [second.text]
    await session.send("what did I say?")
    assert "forget this" not in str(house.provider.requests[-1].messages[0])
    for wrong in (foreign.id, "item_9_000000000000", "item_0", "", "x" * 1000):
        with pytest.raises(ValueError, match="no such item"):
            await session.hide(wrong)


async def test_hidden_system_text_is_not_sent(house: House) -> None:
    """System text that was hidden leaves the window too, though it lies beside the session."""
    session = await house.ana.start(system="Answer in French.")
    await session.send("hello")
    assert "French" in house.provider.seen
    house.provider.requests.clear()
    await session.hide((await session.history())[0].id)
    await session.send("and now?")
    assert "French" not in house.provider.seen
    assert "Answer in French." not in await told(session)


async def test_a_session_may_be_wanted_only_while_it_lives(house: House) -> None:
    """Whoever asks to be told gets no timed-out session to go on with, whether or not it was noticed before."""
    session = await house.ana.start()
    assert (await house.ana.resume(session.id, on_expired="raise")).id == session.id
    house.clock.move(hours=1)
    for _ in range(2):
        with pytest.raises(SessionExpired) as caught:
            await house.ana.resume(session.id, on_expired="raise")
        assert caught.value.reason == "expired"
    assert (await house.ana.resume(session.id)).stable_id == session.stable_id


async def test_history_comes_in_pages(house: House) -> None:
    """Pages are joined by the last item's id, hidden items left out."""
    session = await house.ana.start(items=[{"role": "user", "content": str(n)} for n in range(10)])
    await session.hide((await session.history())[4].id)
    read: list[str] = []
    after = None
    while page := await session.history(limit=4, after=after):
        read += [item.text for item in page]
        assert len(page) <= 4
        after = page[-1].id
    assert read == [str(n) for n in range(10) if n != 4]
    for limit in (0, -1, 1_001):
        with pytest.raises(ValueError, match="limit"):
            await session.history(limit=limit)
    with pytest.raises(ValueError, match="after="):
        await session.history(after="something")
    assert await session.history(after="item_99999999_000000000000") == []


@pytest.mark.plain_ids
async def test_listing_comes_in_pages(house: House) -> None:
    """Sessions are listed latest first, joined by the last one's id, and only the owner's."""
    started = []
    for _ in range(5):
        started.append((await house.ana.start()).id)
        await house.ben.start()
        house.clock.move(seconds=1)
    listed: list[str] = []
    after = None
    while page := await house.ana.sessions(limit=2, after=after):
        listed += [session.id for session in page]
        after = page[-1].id
    assert listed == started[::-1]


@pytest.mark.parametrize("limit", [0, 1_001, 1.5, True, "5", None])
async def test_a_page_has_a_size(house: House, limit: Any) -> None:
    """What is no number of items or sessions is refused alike over every store."""
    session = await house.ana.start()
    for attempt in (house.ana.sessions(limit=limit), session.history(limit=limit)):
        with pytest.raises(ValueError, match="from 1 to 1000"):
            await attempt


@pytest.mark.plain_ids
async def test_listing_goes_past_timed_out_sessions(house: House) -> None:
    """A page is as full as there are live sessions, even if some that have timed out were not swept yet."""
    old = await house.ana.start()
    house.clock.move(seconds=1)
    await house.ana.start()
    house.clock.move(minutes=20)
    await old.send("still here")
    house.clock.move(minutes=20)
    assert [session.id for session in await house.ana.sessions(limit=1)] == [old.id]


@pytest.mark.plain_ids
async def test_export_goes_past_timed_out_sessions(house: House) -> None:
    """An export holds every live session, however many have timed out beside it."""
    old = await house.ana.start()
    house.clock.move(seconds=1)
    for _ in range(100):
        await house.ana.start()
    house.clock.move(minutes=20)
    await old.send("still here")
    house.clock.move(minutes=20)
    assert "still here" in "".join([line async for line in house.ana.export()])


@pytest.mark.plain_ids
async def test_a_cursor_of_another_list_is_unknown(house: House) -> None:
    """Ben's session as Ana's cursor looks like one that never was (row 80)."""
    bens = await house.ben.start()
    raised = []
    for cursor in (bens.id, sessions.new_id(), "not an id"):
        with pytest.raises(SessionNotFound) as error:
            await house.ana.sessions(after=cursor)
        raised.append((error.value.args, str(error.value), repr(error.value)))
    assert len(set(raised)) == 1


@pytest.mark.plain_ids
async def test_export_holds_all_that_is_the_owners(house: House) -> None:
    """An export is JSON lines of every session and item of one owner, and of nobody else."""
    session = await house.ana.start(system="Be kind.", title="a title", metadata={"a": "b"})
    await session.send("from ana")
    await (await house.ben.start()).send("from ben")
    lines = [json.loads(line) async for line in house.ana.export()]
    assert lines[0]["session"] == session.id
    assert (lines[0]["title"], lines[0]["metadata"]) == ("a title", {"a": "b"})
    assert [line["content"] for line in lines[1:]] == ["Be kind.", "from ana", "You said: from ana"]
    assert "ben" not in str(lines)
    assert "owner.exported" in await house.events()


@pytest.mark.plain_ids
async def test_erase_takes_everything_of_one_owner(house: House) -> None:
    """Erasure leaves neither sessions, tombstones, records nor the name behind an audit id; others keep theirs."""
    session, ended, bens = await house.ana.start(), await house.ana.start(), await house.ben.start()
    await session.send("hello", idempotency_key="k")
    await ended.end()
    await bens.send("hello")
    receipt = await house.ana.erase()
    assert (receipt.owner, receipt.sessions) == (house.ana.owner, 2)
    assert receipt.remains
    owners = await house.cloister.store.audit_owners()
    assert set(owners.values()) == {house.ben.owner}
    for each in (session, ended):
        with pytest.raises(SessionNotFound):
            await house.ana.resume(each.id)
    assert await told(bens) == ["hello", "You said: hello"]
    assert not (await house.audited()).faults


async def test_end_all_leaves_no_survivor(house: House) -> None:
    """All of an owner's sessions end, timed-out ones too, and nobody else's."""
    mine = [await house.ana.start() for _ in range(3)]
    house.clock.move(hours=1)
    mine.append(await house.ana.start())
    bens = await house.ben.start()
    assert await house.ana.end_all() == 4
    assert await house.ana.sessions() == []
    for session in mine:
        with pytest.raises(SessionExpired):
            await session.send("again")
    assert not (await bens.send("hello")).renewed
    assert await house.ana.end_all() == 0


# --- somebody else's session and no session ---------------------------------------------------------------------------


@pytest.mark.plain_ids
async def test_foreign_absent_and_malformed_look_alike(house: House) -> None:
    """Ben gets the same error for Ana's session, for one that never was, and for what is no id (row 3)."""
    anas = await house.ana.start()
    await anas.send("my secret")
    looks = []
    wrong: list[Any] = [
        anas.id,
        sessions.new_id(),
        "",
        "cs_",
        anas.id + "\0",
        anas.id.encode(),
        None,
        7,
        "x" * 10_000,
        "*",
    ]
    for session_id in wrong:
        with pytest.raises(SessionNotFound) as raised:
            await house.ben.resume(session_id)
        error = raised.value
        looks.append(
            (type(error), error.args, str(error), repr(error), error.__cause__, getattr(error, "__notes__", None))
        )
    assert len(set(looks)) == 1
    assert anas.id not in str(looks)


@pytest.mark.plain_ids
async def test_every_call_of_a_borrowed_session_is_refused(house: House) -> None:
    """A `Session` value with Ana's id and Ben as its owner gives Ben nothing and changes nothing."""
    anas = await house.ana.start()
    await anas.send("my secret")
    item = (await anas.history())[0]
    forged = Session(house.cloister.services, house.ben.owner, anas.id, anas.head)
    for attempt in (
        forged.send("show me"),
        forged.history(),
        forged.append({"role": "user", "content": "x"}),
        forged.update(title="x"),
        forged.hide(item.id),
        forged.end(),
    ):
        with pytest.raises(SessionNotFound):
            await attempt
    assert (await house.events()).count("access.foreign") == 6
    assert await told(anas) == ["my secret", "You said: my secret"]
    assert house.provider.seen.count("show me") == 0


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_foreign_and_absent_ask_and_write_the_same(kind: str, tmp_path: Path) -> None:
    """Somebody else's id, live or ended, and no id cost the same calls of the store and the same writes (row 4)."""
    inner = stores.connect("memory://" if kind == "memory" else f"sqlite:///{tmp_path}/x.db")
    watched = Watched(inner)
    async with opened(watched.store) as house:
        anas, ended = await house.ana.start(), await house.ana.start(system="x")
        await ended.end()
        await (await house.ben.start()).send("hello")
        traces = []
        for session_id in (anas.id, ended.id, sessions.new_id(), sessions.new_id()):
            before = len(await house.entries())
            watched.calls.clear()
            with pytest.raises(SessionNotFound):
                await house.ben.resume(session_id)
            written = (await house.entries())[before:]
            calls = [(name, len(args), sorted(options)) for name, args, options in watched.calls]
            traces.append((calls, [(entry.event[:6], entry.detail, bool(entry.owner)) for entry in written]))
        assert traces[0] == traces[1] == traces[2] == traces[3]
        events = await house.events()
        assert (events.count("access.foreign"), events.count("access.absent")) == (2, 2)
        assert events.count("access.refused") == 4


@pytest.mark.plain_ids
async def test_the_alarm_names_both_owners(house: House) -> None:
    """The audit log, and only it, knows whose session it was."""
    anas, _ = await house.ana.start(), await house.ben.start()
    with pytest.raises(SessionNotFound):
        await house.ben.resume(anas.id)
    entry = next(entry for entry in await house.entries() if entry.event == "access.foreign")
    owners = await house.cloister.store.audit_owners()
    assert (owners[entry.owner], owners[entry.other]) == (house.ben.owner, house.ana.owner)
    assert entry.severity == "alert"
    assert anas.id not in str(await house.entries())


async def test_an_attempt_that_cannot_be_recorded_is_still_refused() -> None:
    """Where the audit entry cannot be written, foreign and absent fail alike, and closed."""
    watched = Watched(MemoryStore())
    async with opened(watched.store) as house:
        anas = await house.ana.start()
        watched.answers["record"] = _down
        errors = []
        for session_id in (anas.id, sessions.new_id(), "malformed"):
            with pytest.raises(StoreUnavailable) as raised:
                await house.ben.resume(session_id)
            errors.append(str(raised.value))
        assert len(set(errors)) == 1
        await house.cloister.vault.settle()


# --- usage and window -------------------------------------------------------------------------------------------------


async def test_usage_adds_up(house: House) -> None:
    """A session's usage is the sum over its turns, and says if any of it was estimated."""
    session = await house.ana.start()
    house.provider.answer = _CHAT
    await session.send("one")
    await session.send("two")
    assert session.usage == Usage(22, 6)
    house.provider.answer = None
    reply = await session.send("three")
    assert reply.usage.estimated
    assert session.usage == Usage(22, 6) + reply.usage
    assert (await session.history())[1].usage == Usage(11, 3)


async def test_the_window_is_respected(url: str) -> None:
    """Whole turns leave oldest first; the system text and the newest question stay, in every request."""
    async with opened(url, context_tokens=120) as house:
        session = await house.ana.start(system="Be kind.")
        for number in range(12):
            await session.send(f"number {number} " + "and some words " * 3)
        counted = house.cloister.services.counter()
        for request in house.provider.requests:
            assert request.messages[0] == {"role": "system", "content": "Be kind."}
            assert request.messages[1]["role"] == "user"
            assert sum(counted.count(message["content"]) for message in request.messages) <= 120
        assert "number 0 " not in str(house.provider.requests[-1].messages)
        assert "number 11 " in str(house.provider.requests[-1].messages)
        assert len(await told(session)) == 25
        with pytest.raises(BudgetExceeded):
            await session.send("too many words " * 100)
        assert len(await told(session)) == 25


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [ProviderTimeout("too slow"), "", {"choices": []}, {"error": {"message": "no"}}])
async def test_a_failed_turn_leaves_nothing(house: House, answer: Any) -> None:
    """No question dangles after a model that failed; the failure is on record (row 63)."""
    session = await house.ana.start()
    await session.send("before")
    house.provider.answer = answer
    with pytest.raises(ProviderError):
        await session.send("lost")
    with pytest.raises(ProviderError):
        async with session.stream("lost") as stream:
            _ = [text async for text in stream]
    assert await told(session) == ["before", "You said: before"]
    house.provider.answer = None
    await session.send("after")
    assert "lost" not in house.provider.seen.rpartition("after")[0].rpartition("[{")[2]
    entries = [entry for entry in await house.entries() if entry.event == "turn.failed"]
    assert len(entries) == 2
    assert "Provider" in entries[0].detail
    assert "lost" not in str(await house.entries())


async def test_keep_failed_keeps_the_question(url: str) -> None:
    """With `keep_failed` the question stays in the history, marked, and no model sees it again."""
    async with opened(url, keep_failed=True) as house:
        session = await house.ana.start()
        house.provider.answer = ProviderTimeout("too slow")
        with pytest.raises(ProviderTimeout):
            await session.send("unanswered")
        house.provider.answer = None
        await session.send("answered")
        question = (await session.history())[0]
        assert (question.text, question.error) == ("unanswered", "ProviderTimeout")
        assert "unanswered" not in str(house.provider.requests[-1].messages)


async def test_an_error_of_the_application_fails_the_turn(house: House) -> None:
    """Whatever is raised inside the block leaves nothing stored, and comes out as it is."""
    session = await house.ana.start()
    with pytest.raises(ZeroDivisionError):
        async with session.turn("hello"):
            _ = 1 // 0
    assert await told(session) == []
    assert [entry.detail for entry in await house.entries() if entry.event == "turn.failed"] == [
        '{"input_tokens":0,"output_tokens":0,"reason":"ZeroDivisionError"}'
    ]


async def test_usage_of_a_failed_turn_is_booked(house: House) -> None:
    """What a turn has spent before it failed counts, even though nothing is stored."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    said = {"role": "assistant", "content": None, "tool_calls": [call]}
    session = await house.ana.start()
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with session.turn("hello") as turn:
            turn.add({**_CHAT, "choices": [{"index": 0, "finish_reason": "tool_calls", "message": said}]})
            _ = 1 // 0
    again = await house.ana.resume(session.id)
    assert again.usage == Usage(11, 3)
    assert await told(again) == []


async def test_usage_of_a_stream_that_is_left_is_booked(house: House) -> None:
    """A client that goes away in the middle has spent what was sent and streamed so far (rows 29, 78)."""
    session = await house.ana.start()
    async with session.stream("tell me a long story") as stream:
        async for _ in stream:
            break
    usage = (await house.ana.resume(session.id)).usage
    assert usage.estimated
    assert usage.input_tokens > 0


# --- two at once ------------------------------------------------------------------------------------------------------


async def test_two_turns_at_once_are_serialised(house: House) -> None:
    """Turns of one session run one after the other, and each sees those before it (rows 32, 64)."""
    session = await house.ana.start()
    await asyncio.gather(*(session.send(f"question {number}") for number in range(5)))
    said = await told(session)
    assert len(said) == 10
    assert all(said[n + 1] == f"You said: {said[n]}" for n in range(0, 10, 2))
    assert [len(request.messages) for request in house.provider.requests] == [1, 3, 5, 7, 9]


async def test_a_busy_session_says_so(url: str) -> None:
    """With nothing to wait for, a second turn raises at once; other sessions do not notice."""
    async with opened(url, limits=NOT_WAITING) as house:
        session, other, bens = await house.ana.start(), await house.ana.start(), await house.ben.start()
        async with session.turn("first") as turn:
            with pytest.raises(SessionBusy):
                await session.send("second")
            with pytest.raises(SessionBusy):
                await session.append({"role": "user", "content": "second"})
            await other.send("hello")
            await bens.send("hello")
            await turn.finish("done")
        await session.send("third")
        assert (await told(session))[::2] == ["first", "third"]


async def test_a_session_is_busy_over_processes(tmp_path: Path) -> None:
    """A second cloister on the same file waits for the lease of the first, and takes it once it is given back."""
    url = f"sqlite:///{tmp_path}/x.db"
    async with opened(url) as one, opened(url, limits=NOT_WAITING) as two:
        session = await one.ana.start()
        there = await two.ana.resume(session.id)
        async with session.turn("first") as turn:
            with pytest.raises(SessionBusy):
                await there.send("second")
            await turn.finish("done")
        await there.send("second")
        await session.send("third")
        assert (await told(session))[::2] == (await told(there))[::2] == ["first", "second", "third"]
        assert not (await one.audited()).faults


@pytest.mark.plain_ids
async def test_a_lost_lease_stores_nothing(house: House) -> None:
    """A turn whose lease went to another cannot overwrite what that one stored; the failure is on record."""
    session = await house.ana.start()
    with pytest.raises(SessionConflict):  # noqa: PT012
        async with session.turn("too slow") as turn:
            vault = house.cloister.vault
            await vault.ask(vault.store.release, house.ana.owner, session.id, turn._opened.lease)
            await turn.finish("late")
    assert await told(session) == []
    assert "turn.failed" in await house.events()


async def test_the_lease_is_renewed_while_the_model_works() -> None:
    """A turn that takes longer than a lease keeps it."""
    watched = Watched(MemoryStore())
    async with opened(watched.store) as house:
        session = await house.ana.start()
        vault, now = house.cloister.vault, asyncio.get_running_loop().time()
        async with session.turn("slow") as turn:
            vault.leases.renew_due(now)
            await vault.settle()
            assert "renew" not in watched.names  # it was taken just now
            vault.leases.renew_due(now + LEASE.total_seconds() / 2)
            await vault.settle()
            assert watched.names.count("renew") == 1
            await turn.finish("done")
        vault.leases.renew_due(now + LEASE.total_seconds() * 2)
        await vault.settle()
        assert watched.names.count("renew") == 1  # and is not held any more


async def test_leases_are_renewed_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """One timer renews the leases of all turns while there are any, and rests when there are none."""
    monkeypatch.setattr("cloister.leases._RENEW_SECONDS", 0.001)
    watched = Watched(MemoryStore())
    async with opened(watched.store) as house:
        one, other = await house.ana.start(), await house.ben.start()
        renewed = {house.ana.owner: asyncio.Event(), house.ben.owner: asyncio.Event()}

        async def noticed(real: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
            renewed[args[0]].set()
            return await real(*args, **options)

        watched.answers["renew"] = noticed
        async with one.turn("slow"), other.turn("slow too"), asyncio.timeout(10):
            for _ in range(2):
                for event in renewed.values():
                    event.clear()
                await asyncio.gather(*(event.wait() for event in renewed.values()))
        assert not house.cloister.vault.leases


async def test_ending_during_a_turn_wins(house: House) -> None:
    """A session that is ended while the model thinks takes no late answer."""
    session = await house.ana.start()
    with pytest.raises(SessionConflict):  # noqa: PT012
        async with session.turn("hello") as turn:
            await session.end()
            await turn.finish("late")
    with pytest.raises(SessionExpired):
        await session.history()


@pytest.mark.parametrize("timed_out", [False, True], ids=["alive", "being renewed"])
async def test_erasing_during_a_turn_wins(house: House, timed_out: bool) -> None:
    """A user who is erased while the model thinks comes back in no form (row 54)."""
    session = await house.ana.start()
    await session.send("hello")
    if timed_out:
        house.clock.move(hours=1)
    with pytest.raises(CloisterError):  # noqa: PT012
        async with session.turn("hello", on_expired="renew") as turn:
            await house.ana.erase()
            await turn.finish("late")
    assert await house.ana.sessions() == []
    assert [owner async for owner in _owners(house)] == []


async def _owners(house: House) -> AsyncIterator[str]:
    for row in (await house.cloister.store.all(after=b"", limit=100)).sessions:
        yield row.owner.user


# --- a store that lies ------------------------------------------------------------------------------------------------


async def _down(*_: Any) -> Any:
    raise StoreUnavailable("the store is down")


async def _echoless(real: Callable[..., Awaitable[Any]], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    return msgspec.structs.replace(await real(*args, **options), echo=b"")


async def _crossed(real: Callable[..., Awaitable[Any]], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    return msgspec.structs.replace(await real(*args, **options), echo=os.urandom(16))


_CALLS: dict[str, Callable[[User, Session], Awaitable[Any]]] = {
    "create": lambda ana, session: ana.start(),
    "load": lambda ana, session: session.send("hello"),
    "commit": lambda ana, session: session.send("hello"),
    "items": lambda ana, session: session.history(),
    "sessions": lambda ana, session: ana.sessions(),
    "end": lambda ana, session: session.end(),
    "erase": lambda ana, session: ana.erase(),
    "record": lambda ana, session: ana.resume("malformed"),
}


@pytest.mark.parametrize("answer", [_echoless, _crossed], ids=["missing", "crossed"])
@pytest.mark.parametrize("method", list(_CALLS))
async def test_an_answer_to_another_request_is_refused(method: str, answer: Any) -> None:
    """A reply without the request's own echo is an integrity error, and its connection is dropped (row 24)."""
    watched = Watched(MemoryStore())
    async with opened(watched.store) as house:
        session = await house.ana.start()
        watched.calls.clear()
        watched.answers[method] = answer
        with pytest.raises(IntegrityError):
            await _CALLS[method](house.ana, session)
        watched.answers.clear()
        assert "distrust" in watched.names
        if method not in ("end", "erase"):
            await session.send("all is well again")


async def test_a_wrong_echo_raises_the_alarm() -> None:
    """A crossed reply is an alert in the audit log, as any integrity error is."""
    watched = Watched(MemoryStore())
    async with opened(watched.store) as house:
        session = await house.ana.start()
        watched.answers["load"] = _crossed
        with pytest.raises(IntegrityError):
            await session.send("hello")
        watched.answers.clear()
        assert "integrity.failed" in await house.events()


async def _damaged(real: Callable[..., Awaitable[Loaded]], args: tuple[Any, ...], options: dict[str, Any]) -> Loaded:
    """Answer a load with a head of which one byte was changed."""
    loaded = await real(*args, **options)
    assert loaded.session is not None
    assert loaded.session.head is not None
    head = loaded.session.head[:-1] + bytes([loaded.session.head[-1] ^ 1])
    return msgspec.structs.replace(loaded, session=msgspec.structs.replace(loaded.session, head=head))


async def test_what_fails_to_open_twice_is_in_quarantine() -> None:
    """A session that does not open over a second connection either is reported, once, and no other is touched."""
    watched = Watched(MemoryStore())
    async with opened(watched.store) as house:
        anas, bens = await house.ana.start(), await house.ben.start()
        watched.answers["load"] = _damaged
        for _ in range(4):
            with pytest.raises(IntegrityError, match="does not open"):
                await anas.send("hello")
        watched.answers.clear()
        entries = [entry for entry in await house.entries() if entry.severity == "alert"]
        assert [entry.event for entry in entries].count("integrity.failed") == 4
        assert [entry.session for entry in entries if entry.event == "session.quarantined"] == [
            sessions.digest(anas.id)
        ]
        await bens.send("hello")
        await anas.send("the store was mended")


async def test_one_failure_is_forgiven() -> None:
    """An answer that was crossed once costs one error: what opens the next time is not in quarantine later."""
    watched = Watched(MemoryStore())
    async with opened(watched.store) as house:
        session = await house.ana.start()
        for _ in range(3):
            watched.answers["load"] = _damaged
            with pytest.raises(IntegrityError):
                await session.send("hello")
            watched.answers.clear()
            await session.send("hello")
        assert "session.quarantined" not in await house.events()


async def test_a_stale_reply_is_refused() -> None:
    """The same session's earlier reply, delivered again, is not the answer to this request."""
    watched = Watched(MemoryStore())
    async with opened(watched.store) as house:
        session = await house.ana.start()
        kept: list[Any] = []

        async def stale(real: Callable[..., Awaitable[Any]], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
            kept.append(await real(*args, **options))
            return kept[0]

        watched.answers["items"] = stale
        await session.history()
        with pytest.raises(IntegrityError):
            await session.history()


@pytest.mark.parametrize("disguised", [False, True], ids=["as it is", "relabelled"])
async def test_another_owners_rows_do_not_open(disguised: bool) -> None:
    """A store that hands Ben's rows to Ana, even under her name and id, gives her an error and an alarm (row 22)."""
    watched = Watched(MemoryStore())
    async with opened(watched.store) as house:
        anas, bens = await house.ana.start(), await house.ben.start()
        await anas.send("from ana")
        await bens.send("from ben")

        async def swap(real: Callable[..., Awaitable[Any]], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
            given = await real(
                house.ben.owner, bens.id, **{**options, "lease": None} if "lease" in options else options
            )
            if disguised and given.session is not None:
                mine = msgspec.structs.replace(given.session, owner=house.ana.owner, id=anas.id)
                given = msgspec.structs.replace(given, session=mine)
            return given

        async def list_bens(real: Callable[..., Awaitable[Any]], _: tuple[Any, ...], options: dict[str, Any]) -> Any:
            listing: Listing = await real(house.ben.owner, **options)
            rows = [msgspec.structs.replace(row, owner=house.ana.owner) for row in listing.sessions]
            return Listing(listing.echo, rows if disguised else listing.sessions)

        watched.answers = {"load": swap, "items": swap, "sessions": list_bens}
        before = len(house.provider.requests)
        for attempt in (anas.send("what?"), anas.history(), house.ana.resume(anas.id), house.ana.sessions()):
            with pytest.raises(IntegrityError):
                await attempt
        watched.answers.clear()
        assert len(house.provider.requests) == before
        assert (await house.events()).count("integrity.failed") == 4
        await anas.send("all is well again")


async def test_an_older_state_is_refused_by_a_live_process() -> None:
    """A whole, consistent, but older copy of a session is not taken for the newest (row 23)."""
    watched = Watched(MemoryStore())
    async with opened(watched.store) as house:
        session = await house.ana.start()
        await session.send("first")
        old_loads = {
            budget: await watched.inner.load(house.ana.owner, session.id, nonce=b"", budget=budget)
            for budget in (0, house.cloister.services.window())
        }
        old_page = await watched.inner.items(house.ana.owner, session.id, nonce=b"", first=0, limit=100)
        await session.send("second")

        async def load(_: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Loaded:
            return msgspec.structs.replace(old_loads[options["budget"]], echo=options["nonce"])

        async def items(_: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
            return msgspec.structs.replace(old_page, echo=options["nonce"])

        watched.answers = {"load": load, "items": items}
        for attempt in (session.send("third"), session.history(), session.append(Item("user", "third"))):
            with pytest.raises(IntegrityError, match="older"):
                await attempt
        watched.answers.clear()
        assert (await house.events()).count("integrity.failed") == 3
        assert len(await told(session)) == 4


@pytest.mark.parametrize("drop", ["first", "middle", "last", "all", "swap", "repeat"])
async def test_items_left_out_or_reordered_are_noticed(drop: str) -> None:
    """Whatever a store leaves out, repeats or reorders, the history does not open (row 23)."""
    watched = Watched(MemoryStore())
    async with opened(watched.store) as house:
        session = await house.ana.start()
        for number in range(3):
            await session.send(str(number))

        def cut(rows: list[Any]) -> list[Any]:
            return {
                "first": rows[1:],
                "middle": [*rows[:2], *rows[3:]],
                "last": rows[:-1],
                "all": [],
                "swap": [rows[1], rows[0], *rows[2:]],
                "repeat": [*rows[:-1], rows[-2]],
            }[drop]

        async def tamper(real: Callable[..., Awaitable[Any]], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
            given = await real(*args, **options)
            return msgspec.structs.replace(given, items=cut(list(given.items)))

        watched.answers = {"load": tamper, "items": tamper}
        with pytest.raises(IntegrityError):
            await session.send("next")
        with pytest.raises(IntegrityError):
            await session.history()
        assert len(house.provider.requests) == 3


async def test_no_row_never_makes_a_session() -> None:
    """A store that wrongly knows nothing of a session gets no new one in its place (row 39)."""
    watched = Watched(MemoryStore())
    async with opened(watched.store) as house:
        session = await house.ana.start(system="Be kind.")
        await session.send("hello")

        async def nothing(_: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Loaded:
            return Loaded(options["nonce"])

        watched.calls.clear()
        watched.answers["load"] = nothing
        for attempt in (session.send("again"), session.append(Item("user", "again")), house.ana.resume(session.id)):
            with pytest.raises(SessionNotFound):
                await attempt
        assert not {"create", "commit", "end", "erase"} & set(watched.names)
        watched.answers.clear()
        assert len(await told(session)) == 3


@pytest.mark.parametrize("method", ["load", "commit", "create", "items", "sessions", "end", "erase"])
async def test_a_store_that_is_down_is_an_error(method: str) -> None:
    """No call is answered without its store, and none falls back to another way."""
    watched = Watched(MemoryStore())
    async with opened(watched.store) as house:
        session = await house.ana.start()
        watched.answers[method] = _down
        with pytest.raises(StoreUnavailable, match="the store is down"):
            await _CALLS[method](house.ana, session)
        if method == "load":
            assert house.provider.requests == [], "the model is not asked before the session is there"
        watched.answers.clear()
        assert await told(session) == []
        await session.send("all is well again")


async def test_a_store_that_fails_after_storing_stores_once() -> None:
    """A commit whose outcome got lost is sent again, and recognised: one turn (row 34)."""
    watched = Watched(MemoryStore())
    async with opened(watched.store) as house:
        lost = []

        async def lose(real: Callable[..., Awaitable[Any]], args: tuple[Any, ...], options: dict[str, Any]) -> Receipt:
            receipt: Receipt = await real(*args, **options)
            lost.append(receipt)
            if len(lost) % 2:
                raise StoreUnavailable("the answer got lost")
            return receipt

        watched.answers = {"commit": lose, "create": lose}
        session = await house.ana.start()
        reply = await session.send("hello")
        watched.answers.clear()
        assert [receipt.repeated for receipt in lost] == [False, True, False, True]
        assert await told(session) == ["hello", reply.text]
        assert (await house.events()).count("turn.committed") == 1


# --- tenants, forks ---------------------------------------------------------------------------------------------------


async def test_tenancy_is_named_or_not_at_all(url: str) -> None:
    """Without tenants none may be named; with them every user needs one."""
    async with opened(url) as house:
        with pytest.raises(ConfigurationError, match="no tenants"):
            house.cloister.user("ana", tenant="acme")
    with pytest.raises(ConfigurationError, match="tenancy"):
        AsyncCloister.open(url, tenancy="loose")  # type: ignore[arg-type]


@pytest.mark.plain_ids
async def test_one_name_in_two_tenants_is_two_owners(url: str) -> None:
    """Users of the same name in two tenants share nothing (row 5)."""
    async with opened(url, tenancy="required") as house:
        with pytest.raises(ConfigurationError, match="tenant"):
            house.cloister.user("ana")
        one, two = house.cloister.user("ana", tenant="acme"), house.cloister.user("ana", tenant="acme2")
        session = await one.start()
        await session.send("acme's secret", idempotency_key="k")
        with pytest.raises(SessionNotFound):
            await two.resume(session.id)
        assert await two.sessions() == []
        assert (await two.erase()).sessions == 0
        assert len(await told(session)) == 2


async def test_a_store_with_tenants_refuses_tenantless_use(tmp_path: Path) -> None:
    """Nothing is filed under no tenant beside real ones, whatever the set-up says."""
    url = f"sqlite:///{tmp_path}/x.db"
    async with opened(url, tenancy="required") as house:
        await house.cloister.user("ana", tenant="acme").start()
    async with opened(url) as house:
        with pytest.raises(ConfigurationError, match="tenant"):
            house.cloister.user("ana")
        assert len(await house.cloister.user("ana", tenant="acme").sessions()) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
async def test_a_cloister_does_not_survive_a_fork(house: House) -> None:
    """A forked process must open its own: connections and counters are not shared (row 51)."""
    session = await house.ana.start()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a process with threads is forked: just what is tried here
        child = os.fork()
    if not child:
        code = 1
        try:
            asyncio.run(session.send("from the child"))
        except ConfigurationError as error:
            code = 0 if "fork" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0  # noqa: ASYNC222 - nothing else runs here
    await session.send("from the parent")
    assert len(await told(session)) == 2


async def test_a_closed_cloister_refuses(url: str) -> None:
    """Before and after its block a cloister says that it is not open; its provider is closed with it."""
    provider = Parrot()
    cloister = AsyncCloister.open(url, provider=provider, keyring=Keyring.generate())
    with pytest.raises(ConfigurationError, match="not open"):
        await cloister.user("ana").start()
    async with cloister:
        await cloister.user("ana").start()
    assert provider.closed
    with pytest.raises(ConfigurationError, match="open"):
        await cloister.__aenter__()


async def test_a_store_of_ones_own_needs_a_keyring() -> None:
    """A store that is neither in memory nor a file gets no keys by itself."""

    class Remote(MemoryStore):
        volatile = False

    with pytest.raises(ConfigurationError, match="keyring="):
        async with opened(Remote()):
            pass
    store: Store = Remote()
    async with opened(store, keyring=Keyring.generate()) as house:
        assert (await (await house.ana.start()).send("hello")).text == "You said: hello"
