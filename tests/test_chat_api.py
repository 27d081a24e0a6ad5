"""Chat completions over HTTP, asked by the client that people have: in sessions, without one, and when things fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import Clock, told
from tests.serving import UNRATED, Listening, Served, served
from tests.talks import Talker, Wire, at, call, completion
from tests.upstreams import Reply, Upstream, chunk, drop, endless, hang, http, refusal, stream

from cloister import wire
from cloister.errors import ProviderError, StoreUnavailable
from cloister.leaks.settings import SAFE_TEXT
from cloister.providers.http import Retries, Timeouts
from cloister.providers.offline import Offline
from cloister.providers.openai import OpenAICompatible
from cloister.pseudonyms import FIELDS
from cloister.server import turns
from cloister.server.settings import Policy

SESSION, RENEWED = "cloister-session", "cloister-renewed"
MODEL = "parrot-1"
TOOL: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
HEADERS: tuple[dict[str, Any], ...] = ({}, {SESSION: "new"})
HELLO: Any = [{"role": "user", "content": "Hello"}]


@pytest.fixture
async def house() -> AsyncIterator[Served]:
    async with served(provider=Talker()) as house:
        yield house


async def say(house: Served, *said: Any, user: str = "ana", session: str | None = None, **options: Any) -> Any:
    """Send messages, which may be texts of the user; give the answer as it came, with its headers."""
    messages: Any = [{"role": "user", "content": one} if isinstance(one, str) else one for one in said]
    headers = {} if session is None else {SESSION: session}
    asked = house.client(user).chat.completions.with_raw_response
    return await asked.create(model=MODEL, messages=messages, extra_headers=headers, **options)


async def begin(house: Served, *said: Any, user: str = "ana", **options: Any) -> str:
    """Start a session; give its name."""
    answer = await say(house, *said, user=user, session="new", **options)
    return str(answer.headers[SESSION])


def heard(house: Served) -> list[tuple[str, Any]]:
    """What the model was sent last."""
    return [(one["role"], one["content"]) for one in house.provider.requests[-1].messages]


async def kept(house: Served, user: str = "ana") -> list[list[str]]:
    """What is stored of a user, session by session."""
    found = await house.cloister.user(user, tenant="acme").sessions()
    return [await told(session) for session in found]


# --- in a session -----------------------------------------------------------------------------------------------------


async def test_only_what_is_new_is_sent(house: Served) -> None:
    """A session that the header names has the history; the answer names the session, and it is the same one."""
    session = await begin(house, "I like figs.")
    answer = await say(house, "And plums.", session=session)
    assert answer.headers[SESSION] == session
    assert RENEWED not in answer.headers
    assert answer.parse().choices[0].message.content == "You said: And plums."
    assert heard(house) == [("user", "I like figs."), ("assistant", "You said: I like figs."), ("user", "And plums.")]
    conversation = await house.client().conversations.retrieve(session)
    assert conversation.id == session


async def test_a_session_begins_with_its_first_turn(house: Served) -> None:
    """A first turn that fails leaves no session behind."""
    house.provider.answer = ProviderError("no")
    with pytest.raises(openai.InternalServerError):
        await begin(house, "Hello")
    assert await kept(house) == []
    house.provider.answer = None
    await begin(house, "Hello", metadata={"topic": "figs"})
    (session,) = await house.cloister.user("ana", tenant="acme").sessions()
    assert session.metadata == {"topic": "figs"}


async def test_a_leading_system_message_is_this_turns(house: Served) -> None:
    """The application's instructions head the request of their turn, and are not stored."""
    session = await begin(house, {"role": "system", "content": "Be brief."}, "Hello")
    assert heard(house)[0] == ("system", "Be brief.")
    await say(house, {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]}, "Bye", session=session)
    assert heard(house)[0] == ("system", "Be kind.")
    assert "Be brief." not in str(heard(house))
    assert await kept(house) == [["Hello", "You said: Hello", "Bye", "You said: Bye"]]


async def test_a_session_that_timed_out_is_renewed(house: Served) -> None:
    """The answer names the new session and says so, whole and streamed; nothing of the old one is sent."""
    for streamed in (False, True):
        house.clock.move(days=-1)
        session = await begin(house, "My colour is teal.")
        house.clock.move(minutes=31)
        answer = await say(house, "Which colour?", session=session, stream=streamed)
        if streamed:
            assert [piece async for piece in answer.parse()]
        assert answer.headers[RENEWED] == "true"
        assert answer.headers[SESSION] != session
        assert "teal" not in str(heard(house))
        again = await say(house, "Still?", session=answer.headers[SESSION])
        assert RENEWED not in again.headers


async def test_foreign_looks_missing(house: Served) -> None:
    """Another's session, one of another tenant, a missing one and no id at all are the same 404, whole and streamed."""
    anas = await begin(house, "I like figs.")
    requests = len(house.provider.requests)

    async def refused(name: str, tenant: str, streamed: bool) -> tuple[int, str, dict[str, str]]:
        body = {"model": MODEL, "messages": HELLO, "stream": streamed}
        answer = await house.ask("POST", "/chat/completions", body, user="ben", tenant=tenant, **at(name))
        return answer.status_code, answer.text, {**answer.headers, "x-request-id": ""}

    names = [anas, "conv_" + "A" * 43, "conv_short", anas.removeprefix("conv_"), "cs_" + anas[5:], "ct_x", "", "NEW"]
    found = [
        await refused(name, tenant, streamed)
        for name in names
        for tenant in ("acme", "globex")
        for streamed in (False, True)
    ]
    assert found == [found[0]] * len(found)
    assert found[0][0] == 404
    assert json.loads(found[0][1])["error"]["code"] == "not_found"
    assert len(house.provider.requests) == requests
    assert (await say(house, "Mine.", session=anas)).status_code == 200


async def test_sessions_are_kept_apart(house: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever session Ben names, no word of Ana's is sent for him; a server that forgets the owner is noticed."""
    anas = await begin(house, "My colour is teal.")

    async def apart() -> bool:
        asked = len(house.provider.requests)
        for name in (anas, "new"):
            try:
                await say(house, "Which colour?", user="ben", session=name)
            except openai.NotFoundError:
                continue
        return "teal" not in str([one.messages for one in house.provider.requests[asked:]])

    assert await apart()

    async def leaky(_: Any, name: str) -> Any:
        return await house.cloister.user("ana", tenant="acme").resume("cs_" + name.removeprefix("conv_"))

    monkeypatch.setattr(turns, "at", leaky)
    assert not await apart()


async def test_a_session_that_is_a_token(tmp_path: Path) -> None:
    """Where the store gives out tokens, each answer brings the next one: in the header, or at the end of a stream."""
    store = f"token://?ledger=sqlite:///{tmp_path / 'ledger.db'}"
    async with served(store, provider=Talker()) as house:
        first = await begin(house, "I like figs.")
        assert first.startswith("ct_")
        answer = await say(house, "And plums.", session=first, stream=True)
        assert SESSION not in answer.headers
        last = [piece async for piece in answer.parse()][-1]
        token = last.model_extra["cloister_session"]
        assert token not in (first, "")
        await say(house, "Which?", session=token)
        assert [text for role, text in heard(house) if role == "user"] == ["I like figs.", "And plums.", "Which?"]
        messages = {"model": MODEL, "max_tokens": 9, "messages": HELLO, "stream": True}
        events = (await house.ask("POST", "/messages", messages, **at("new"))).text
        assert '"cloister_session":"ct_' in events


# --- without one ------------------------------------------------------------------------------------------------------


async def test_nothing_is_stored_without_a_session(house: Served) -> None:
    """A whole history is sent on as it came; nothing of it is stored, and that a model was asked is on record."""
    history = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "I like figs."},
        {"role": "assistant", "content": "Noted."},
    ]
    answer = await say(house, *history, "And plums.")
    assert SESSION not in answer.headers
    assert heard(house) == [*[(one["role"], one["content"]) for one in history], ("user", "And plums.")]
    assert await kept(house) == []
    assert not {"commit", "load"} & set(house.store.names)
    (entry,) = [one for one in await house.entries() if one.event == "turn.passed"]
    assert json.loads(entry.detail)["output_tokens"]


async def test_personal_data_passes_as_a_placeholder(house: Served) -> None:
    """Without a session too, the model sees no personal data, and its owner reads it in the answer."""
    answer = await say(house, "My mail is ana.lovelace@example.org.")
    assert "ana.lovelace" not in house.provider.seen
    assert "ana.lovelace@example.org" in answer.parse().choices[0].message.content


async def test_a_reply_with_her_details_is_withheld(house: Served) -> None:
    """Ben reads the safe text and why, whole and streamed, in a session and without one."""
    await begin(house, "I am Sarah Kowalczyk, and my order is QX-7731-84.")
    house.provider.answer = completion("Your order QX-7731-84 has left the house.")
    for session in (None, "new"):
        whole = (await say(house, "Where is it?", user="ben", session=session)).parse().choices[0]
        assert (whole.message.content, whole.finish_reason) == (SAFE_TEXT, "content_filter")
        chunks = await streamed(house, "Where is it?", user="ben", session=session)
        assert "QX-7731" not in text_of(chunks)
        assert SAFE_TEXT in text_of(chunks)
        assert chunks[-1].choices[0].finish_reason == "content_filter"


# --- answers ----------------------------------------------------------------------------------------------------------


async def streamed(house: Served, *said: Any, **options: Any) -> list[Any]:
    """The chunks of an answer."""
    answer = await say(house, *said, stream=True, **options)
    return [piece async for piece in answer.parse()]


def text_of(chunks: list[Any]) -> str:
    return "".join(piece.choices[0].delta.content or "" for piece in chunks if piece.choices)


async def test_a_whole_answer(house: Served) -> None:
    """An answer says everything that the API's does, usage with its details included."""
    house.provider.answer = completion("Plums.", "length")
    answer = (await say(house, "Which?")).parse()
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "m-1"
    (choice,) = answer.choices
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == ("Plums.", None, "length")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (9, 5, 14)
    assert answer.usage.prompt_tokens_details.cached_tokens == 4
    assert answer.usage.completion_tokens_details.reasoning_tokens == 2


async def test_a_refusal_of_the_model(house: Served) -> None:
    """What the model refuses is a refusal in the answer, and no content."""
    house.provider.answer = completion(refusal="I would rather not.")
    (choice,) = (await say(house, "Which?")).parse().choices
    assert (choice.message.content, choice.message.refusal) == (None, "I would rather not.")
    chunks = await streamed(house, "Which?")
    assert "".join(piece.choices[0].delta.refusal or "" for piece in chunks) == "I would rather not."
    assert text_of(chunks) == ""


async def test_a_streamed_answer(house: Served) -> None:
    """The role comes first, then what is said, then why it ended, then usage if it was asked for."""
    house.provider.answer = completion("Figs and plums.")
    chunks = await streamed(house, "Which?", stream_options={"include_usage": True})
    assert chunks[0].choices[0].delta.role == "assistant"
    assert text_of(chunks) == "Figs and plums."
    assert [piece.choices[0].finish_reason for piece in chunks if piece.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 14
    assert all(piece.usage is None for piece in chunks[:-1])
    assert len({piece.id for piece in chunks}) == 1
    assert not any("usage" in piece.model_fields_set for piece in await streamed(house, "Which?"))


@settings(max_examples=20)
@given(text=st.text(min_size=1, max_size=60).filter(str.strip), tools=st.booleans())
def test_deltas_add_up(text: str, tools: bool) -> None:
    """Whatever a model says, the deltas of the streamed answer are the whole one."""
    text = wire.read(text).text

    async def compare() -> None:
        async with served(provider=Talker()) as house:
            calls: dict[str, Any] = {"tool_calls": [call(fruit=text), call("keep", "call_2")]} if tools else {}
            house.provider.answer = completion(text, "tool_calls" if tools else "stop", **calls)
            (whole,) = (await say(house, "Which?", tools=[TOOL])).parse().choices
            chunks = await streamed(house, "Which?", tools=[TOOL])
            assert text_of(chunks) == whole.message.content == text
            deltas: list[Any] = [piece.choices[0].delta.tool_calls or [] for piece in chunks]
            given = [(one.id, one.function.name, one.function.arguments) for each in deltas for one in each]
            wanted = [(one.id, one.function.name, one.function.arguments) for one in whole.message.tool_calls or ()]
            assert given == wanted
            assert chunks[-1].choices[0].finish_reason == whole.finish_reason

    asyncio.run(compare())


async def test_the_stream_helper(house: Served) -> None:
    """The SDK's own helper reads a stream to the completion that it stands for."""
    house.provider.answer = completion("Let me look.", "tool_calls", tool_calls=[call(fruit="fig")])
    client = house.client()
    async with client.chat.completions.stream(model=MODEL, messages=HELLO, tools=[TOOL]) as answer:
        kinds = [event.type async for event in answer]
        final = await answer.get_final_completion()
    assert "content.delta" in kinds
    (choice,) = final.choices
    assert choice.message.content == "Let me look."
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls
    assert choice.message.tool_calls[0].function.arguments == '{"fruit": "fig"}'


async def test_tools_go_round(house: Served) -> None:
    """Calls come out, results go in, and the model sees both, in a session and without one."""
    for session in ("new", None):
        house.provider.answer = completion(finish="tool_calls", tool_calls=[call(fruit="fig")])
        answer = await say(house, "Look it up.", session=session, tools=[TOOL], tool_choice="auto")
        said = answer.parse().choices[0].message
        assert said.content is None
        assert house.provider.requests[-1].options.items() >= {"tools": [TOOL], "tool_choice": "auto"}.items()
        house.provider.answer = "It is ripe."
        result = {"role": "tool", "tool_call_id": said.tool_calls[0].id, "content": "ripe"}
        before = [] if session else ["Look it up.", said.model_dump()]
        name = answer.headers.get(SESSION)
        final = (await say(house, *before, result, session=name)).parse()
        assert final.choices[0].message.content == "It is ripe."
        sent = house.provider.requests[-1].messages
        assert [one["role"] for one in sent] == ["user", "assistant", "tool"]
        assert sent[1]["tool_calls"] == [call(fruit="fig")]
        assert (sent[2]["tool_call_id"], sent[2]["content"]) == ("call_1", "ripe")


async def test_parts_arrive_as_they_were(house: Served) -> None:
    """Images, sound, files and names reach the model as they were sent, without what is meant for a cache."""
    house.provider.answer = "Nice."
    parts: list[dict[str, Any]] = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBOR", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "https://example.org/fig.png"}},
        {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}},
    ]
    hinted = [{**parts[0], "prompt_cache_breakpoint": {"mode": "explicit"}}, *parts[1:]]
    refused = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    await say(house, {"role": "user", "content": hinted, "name": "fan"}, refused, "Please")
    sent = house.provider.requests[-1].messages
    assert sent[0] == {"role": "user", "content": parts, "name": "fan"}
    assert sent[1] == refused


# --- the same request twice -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_key_takes_one_turn(house: Served, streamed: bool) -> None:
    """The same body under the same key has one answer, another body is refused, and others' keys are their own."""
    session = await begin(house, "Hello")
    body = {"model": MODEL, "messages": HELLO, "stream": streamed}
    key: Any = {"idempotency-key": "k-1"}
    answers = [await house.ask("POST", "/chat/completions", body, **at(session), **key) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert all("Hello" in answer.text for answer in answers)
    assert len(house.provider.requests) == 2
    other = {**body, "messages": [{"role": "user", "content": "Other"}]}
    answer = await house.ask("POST", "/chat/completions", other, **at(session), **key)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "idempotency_key_reused")
    for user in ("ana", "ben"):
        answer = await house.ask("POST", "/chat/completions", other, user=user, **at("new"), **key)
        assert answer.status_code == 200
        assert "Other" in answer.text
    assert len(house.provider.requests) == 4
    passing = await house.ask("POST", "/chat/completions", body, **key)
    assert (passing.status_code, passing.json()["error"]["param"]) == (400, "idempotency-key")


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("session", [True, False])
async def test_a_retry_of_the_sdk_takes_one_turn(house: Served, streamed: bool, session: bool) -> None:
    """What an SDK sends again, since it got no answer, is the same turn; what it asks again after one is another."""
    name = await begin(house, "Hi") if session else "new"
    asked = len(house.provider.requests)
    body = {"model": MODEL, "messages": HELLO, "stream": streamed}
    for tries in ("0", "1"):
        headers = {SESSION: name, "x-stainless-retry-count": tries}
        lost = Wire(house, "/v1/chat/completions", body, headers, breaks=b'"finish_reason":"stop"')
        with pytest.raises(ConnectionResetError):
            await lost.ask()
    answer = Wire(house, "/v1/chat/completions", body, {SESSION: name, "x-stainless-retry-count": "2"})
    await answer.ask()
    assert b"Hello" in answer.sent
    assert len(house.provider.requests) == asked + 1
    again = Wire(house, "/v1/chat/completions", body, {SESSION: name, "x-stainless-retry-count": "3"})
    await again.ask()
    assert len(house.provider.requests) == asked + 2


# --- what is asked for ------------------------------------------------------------------------------------------------


async def test_options_reach_the_model(house: Served) -> None:
    """Every option that is forwarded arrives as it was given, and who the user is does not."""
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}, "strict": True}}
    options: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 50,
        "max_completion_tokens": 60,
        "stop": ["end"],
        "seed": 7,
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
        "logit_bias": {"50256": -100.0},
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
        "verbosity": "low",
        "service_tier": "flex",
        "tools": [TOOL, {"type": "custom", "custom": {"name": "free", "format": {"type": "text"}}}],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "response_format": form,
    }
    silent: dict[str, Any] = {
        "user": "ana",
        "safety_identifier": "ana",
        "prompt_cache_key": "ana",
        "metadata": {"a": "b"},
    }
    plain: dict[str, Any] = {"n": 1, "store": False, "logprobs": False, "modalities": ["text"]}
    await say(house, "Hello", **options, **silent, **plain)
    sent = dict(house.provider.requests[-1].options)
    assert {sent.pop(name) for name in FIELDS} not in ({"ana"}, {None})
    assert sent == options


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"n": 2}, "n"),
        ({"store": True}, "store"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x", "format": "wav"}}, "audio"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"moderation": {"model": "m"}}, "moderation"),
        ({"background": True}, "background"),
        ({"prompt_cache_retention": "24h"}, "prompt_cache_retention"),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file_1"}}]}]}, None),
        ({"messages": [{"role": "assistant", "content": "x", "audio": {"id": "audio_1"}}]}, None),
        ({"messages": [{"role": "assistant", "function_call": {"name": "f", "arguments": ""}}]}, None),
    ],
)
async def test_what_is_not_offered_is_refused(house: Served, given: dict[str, Any], param: str | None) -> None:
    """What the API has and this server has not is a 400 that says so; nobody is asked."""
    answer = await house.ask("POST", "/chat/completions", {"model": MODEL, "messages": HELLO, **given})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "unsupported")
    assert error["param"] == param or (param is None and error["param"].startswith("messages[0]"))
    assert house.provider.requests == []


@pytest.mark.parametrize(
    "given",
    [
        {"messages": []},
        {"messages": [{"role": "owner", "content": "x"}]},
        {"messages": [{"content": "x"}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "user", "content": []}]},
        {"messages": [{"role": "assistant"}]},
        {"messages": [{"role": "user", "content": "x", "tool_calls": [call()]}]},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "tool", "content": "x", "tool_call_id": ""}]},
        {"messages": [{"role": "user", "content": [{"type": "item_reference", "id": "x"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "file_id": "y"}]}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}
            ]
        },
        {"messages": [{"role": "assistant", "content": "x", "response": {"id": "resp_1"}}]},
        {"messages": [{"role": "assistant", "content": "x", "thinking_blocks": [{"type": "thinking"}]}]},
        {"messages": HELLO, "previous_response_id": "resp_1"},
        {"messages": HELLO, "conversation": "conv_1"},
        {"messages": HELLO, "extra_body": {}},
        {"messages": HELLO, "tools": [{"type": "web_search"}]},
        {"messages": HELLO, "tools": [{"type": "mcp", "server_url": "https://example.org"}]},
        {"messages": HELLO, "tool_choice": {"type": "file_search"}},
        {"messages": HELLO, "response_format": {"type": "xml"}},
        {"messages": HELLO, "max_tokens": 0},
        {"messages": HELLO, "temperature": "hot"},
        {"messages": HELLO, "stream_options": {"include_usage": True}},
        {"messages": HELLO, "model": ""},
    ],
)
async def test_what_is_malformed_is_refused(house: Served, given: dict[str, Any]) -> None:
    """A body that is none of the API's is a 400 in its shape, in a session too; nobody is asked."""
    for headers in HEADERS:
        answer = await house.ask("POST", "/chat/completions", given, **headers)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["type"] == "invalid_request_error"
    assert house.provider.requests == []
    assert await kept(house) == []


async def test_messages_are_bounded() -> None:
    """A request with more messages than the server takes is refused, in both formats, before anything is looked at."""
    async with served(provider=Talker(), options=replace(UNRATED, max_items=2)) as house:
        for path, more in (("/chat/completions", {}), ("/messages", {"max_tokens": 9})):
            body = {"messages": HELLO * 3, **more}
            assert (await house.ask("POST", path, body)).status_code == 400
            assert (await house.ask("POST", path, {**body, "messages": HELLO * 2})).status_code == 200
        called = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
        calls = [{"role": "assistant", "tool_calls": [called] * 3}, *HELLO]
        assert "at most 2" in (await house.ask("POST", "/chat/completions", {"messages": calls})).text
    assert len(house.provider.requests) == 2


@pytest.mark.parametrize("role", ["system", "developer", "assistant", "tool"])
async def test_end_users_speak_for_themselves(role: str) -> None:
    """An end user's own token sends words of the user and nothing else, unless the tenant's policy says otherwise."""
    said = {"role": role, "content": "Obey.", **({"tool_call_id": "call_1"} if role == "tool" else {})}
    messages = [said, {"role": "user", "content": "Hello"}]
    for may, status in (((), 403), ((role,), 200)):
        async with served(provider=Talker(), options=replace(UNRATED, default=Policy(end_users_may=may))) as house:
            for headers in HEADERS:
                body = {"model": MODEL, "messages": messages}
                answer = await house.ask("POST", "/chat/completions", body, token=True, **headers)
                assert answer.status_code == status, answer.text
                if status == 403:
                    assert answer.json()["error"]["code"] == "role_not_allowed"
                    assert house.provider.requests == []
            assert (await house.ask("POST", "/chat/completions", {"messages": HELLO}, token=True)).status_code == 200


async def test_models(house: Served) -> None:
    """The models that may be named are listed, alike for all users; others are not found, whoever asks."""
    views = [await house.ask("GET", "/models", user=user) for user in ("ana", "ben")]
    assert views[0].content == views[1].content
    assert [one.id async for one in await house.client().models.list()] == [MODEL]
    assert (await house.client().models.retrieve(MODEL)).owned_by == "cloister"
    for asked in (
        await house.ask("GET", "/models/gpt-9"),
        await house.ask("POST", "/chat/completions", {"model": "gpt-9", "messages": HELLO}),
    ):
        assert (asked.status_code, asked.json()["error"]["code"]) == (404, "model_not_found")
    assert house.provider.requests == []


async def test_models_that_are_listed() -> None:
    """A list of models takes the place of the provider's own; names may have slashes."""
    names = ("vendor/model-a", "model-b")
    async with served(options=replace(UNRATED, default=Policy(models=names))) as house:
        client = house.client()
        assert [one.id async for one in await client.models.list()] == list(names)
        assert (await client.models.retrieve("vendor/model-a")).id == "vendor/model-a"
        await client.chat.completions.create(model="model-b", messages=HELLO)
        assert house.provider.requests[-1].model == "model-b"
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model=MODEL, messages=HELLO)


async def test_the_offline_model_answers_under_any_name() -> None:
    """What is made for a model's name works with the offline model, which says what it is."""
    async with served(provider=Offline()) as house:
        client = house.client()
        answer = await client.chat.completions.create(model="any-model", messages=HELLO)
        assert answer.model == "cloister-offline-demo"
        assert [one.id async for one in await client.models.list()] == ["cloister-offline-demo"]


async def test_both_ways_without_async(server: Listening) -> None:
    """The synchronous client is answered over a real connection, whole and streamed, in a session and without one."""
    with server.client() as client:
        answer = client.chat.completions.with_raw_response.create(
            model=MODEL, messages=HELLO, extra_headers={SESSION: "new"}
        )
        session = answer.headers[SESSION]
        assert answer.parse().choices[0].message.content == "You said: Hello"
        for headers in ({}, {SESSION: session}):
            chunks = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True, extra_headers=headers)
            assert text_of(list(chunks)).strip() == "You said: Hello"


# --- when things fail -------------------------------------------------------------------------------------------------


FAULTS: list[tuple[str, Reply, int, str]] = [
    ("429", refusal("429 Too Many", "retry-after: 7"), 429, "provider_busy"),
    ("500", refusal("500 X", message="secret stack"), 502, "provider_error"),
    ("401", refusal("401 X", message="secret key"), 502, "provider_refused"),
    ("400", refusal("400 X", message="secret prompt"), 502, "provider_error"),
    ("hang", hang, 504, "provider_timeout"),
    ("drop", drop, 502, "provider_error"),
    ("malformed", http("200 OK", b"{not json"), 502, "provider_error"),
]


@pytest.mark.parametrize(("fault", "status", "code"), [one[1:] for one in FAULTS], ids=[one[0] for one in FAULTS])
async def test_a_bad_upstream(upstream: Upstream, fault: Reply, status: int, code: str) -> None:
    """Each fault has its status, whole and streamed, before the first word; nothing internal is said or stored."""
    upstream.replies = [fault]
    async with distant(upstream) as house:
        for body in ({"messages": HELLO}, {"messages": HELLO, "stream": True}):
            for headers in HEADERS:
                answer = await house.ask("POST", "/chat/completions", body, **headers)
                error = answer.json()["error"]
                assert (answer.status_code, error["code"]) == (status, code)
                assert answer.headers.get("retry-after") == ("7" if status == 429 else None)
                assert "secret" not in answer.text
                assert "127.0.0.1" not in answer.text
        assert await kept(house) == []


SAID = [chunk("Hello. "), *[chunk("And so on, ") for _ in range(20)]]
BREAKS: list[tuple[str, Reply]] = [
    ("truncated", stream(*SAID)),
    ("unfinished", stream(*SAID, b"data: [DONE]\n\n")),
    ("dropped", stream(*SAID, end=b"", close=True)),
    ("malformed", stream(*SAID, b"data: {not json\n\n")),
    ("error", stream(*SAID, b'data: {"error": {"message": "secret"}}\n\n')),
    ("silent", stream(*SAID, end=b"")),
    ("endless", endless(chunk("Hello. " * 200))),
]


@pytest.mark.parametrize("fault", [one[1] for one in BREAKS], ids=[one[0] for one in BREAKS])
async def test_a_stream_that_breaks(upstream: Upstream, fault: Reply) -> None:
    """After the first words a fault is an event that the client raises; there is no end marker, and nothing stored."""
    upstream.replies = [fault]
    async with distant(upstream) as house:
        for headers in HEADERS:
            answer = await house.ask("POST", "/chat/completions", {"messages": HELLO, "stream": True}, **headers)
            assert answer.status_code == 200
            assert "Hello." in answer.text
            assert "[DONE]" not in answer.text
            assert "secret" not in answer.text
            assert json.loads(answer.text.strip().rpartition("data: ")[2])["error"]["type"] == "server_error"
        with pytest.raises(openai.APIError):
            async for _ in await house.client().chat.completions.create(model="m", messages=HELLO, stream=True):
                pass
        assert await kept(house) == []


def distant(upstream: Upstream) -> Any:
    """Serve with a provider that speaks to *upstream*, and has little patience."""
    provider = OpenAICompatible(
        base_url=upstream.url,
        api_key="sk-0123456789abcdef",
        model="m",
        timeout=Timeouts(idle=timedelta(seconds=0.6), total=timedelta(seconds=1)),
        retries=Retries(attempts=1),
    )
    return served(provider=provider)


async def test_an_option_that_the_model_lacks(upstream: Upstream) -> None:
    """An option that the provider does not take is the client's mistake, and does not name the provider."""
    async with distant(upstream) as house:
        for stream in (False, True):
            body = {"messages": HELLO, "verbosity": "low", "stream": stream}
            answer = await house.ask("POST", "/chat/completions", body)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"], error["param"]) == (400, "unsupported", "verbosity")
            assert "127.0.0.1" not in answer.text
    assert upstream.requests == []


async def test_a_commit_that_fails_ends_a_stream(house: Served) -> None:
    """What could not be stored is no answer: the stream ends with an error, and not with its marker."""
    session = await begin(house, "Hello")

    async def fail(*_: Any) -> Any:
        raise StoreUnavailable("the disk is full")

    house.store.answers["commit"] = fail
    answer = await house.ask("POST", "/chat/completions", {"messages": HELLO, "stream": True}, **at(session))
    assert "[DONE]" not in answer.text
    assert '"finish_reason":"stop"' not in answer.text
    assert "store_unavailable" in answer.text
    assert "disk" not in answer.text


@pytest.mark.parametrize("streamed", [False, True])
async def test_whoever_goes_away_ends_the_call(house: Served, streamed: bool) -> None:
    """A client that goes away cancels the call of the model, and nothing is stored."""
    house.provider.gate = asyncio.Event()
    asked = Wire(house, "/v1/chat/completions", {"messages": HELLO, "stream": streamed}, {SESSION: "new"})
    task = asyncio.create_task(asked.ask())
    await asyncio.wait_for(house.provider.asked.wait(), 5)
    asked.gone.set()
    await asyncio.wait_for(task, 5)
    assert (asked.status, asked.sent) == (0, b"")
    assert house.provider.open_streams == 0
    assert await kept(house) == []
    assert "turn.failed" in [entry.event for entry in await house.entries()]


async def test_whoever_goes_away_in_the_middle_ends_the_call(upstream: Upstream) -> None:
    """A client that goes away after the first words closes the connection to the model, and nothing is stored."""
    upstream.replies = [endless(chunk("word "))]
    provider = OpenAICompatible(base_url=upstream.url, api_key="sk-0123456789abcdef", model="m")
    async with served(provider=provider) as house:
        asked = Wire(house, "/v1/chat/completions", {"messages": HELLO, "stream": True}, {SESSION: "new"})
        task = asyncio.create_task(asked.ask())
        await asyncio.wait_for(asked.wrote.wait(), 5)
        asked.gone.set()
        await asyncio.wait_for(task, 5)
        await asyncio.wait_for(upstream.gone.wait(), 5)
        assert asked.status == 200
        assert not asked.ended
        assert await kept(house) == []


async def test_time_stands_in_the_servers_hands() -> None:
    """A session that was ended is said to be over, by its own code, and never renewed."""
    async with served(provider=Talker(), clock=Clock()) as house:
        session = await begin(house, "Hello")
        await house.client().conversations.delete(session)
        with pytest.raises(openai.NotFoundError) as caught:
            await say(house, "Again", session=session)
        assert caught.value.code == "session_expired"
