"""Anthropic's Messages over HTTP, asked by the client that people have."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import anthropic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import told
from tests.serving import UNRATED, Listening, Served, served
from tests.talks import Talker, Wire, at, call, claude, completion, message
from tests.upstreams import Upstream, hang, http, refusal, stream

from cloister import wire
from cloister.errors import ProviderError
from cloister.leaks.settings import SAFE_TEXT
from cloister.providers.anthropic import Anthropic
from cloister.providers.http import Retries
from cloister.pseudonyms import FIELDS
from cloister.server.settings import Policy

SESSION, RENEWED = "cloister-session", "cloister-renewed"
MODEL = "parrot-1"
TOOL: Any = {"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}
HELLO: Any = [{"role": "user", "content": "Hello"}]
THOUGHT = {"type": "thinking", "thinking": "Figs, surely.", "signature": "c2lnbmVk"}
SECRET = {"type": "redacted_thinking", "data": "c2VjcmV0"}


@pytest.fixture
async def house() -> AsyncIterator[Served]:
    async with served(provider=Talker()) as house:
        yield house


async def say(house: Served, *said: Any, user: str = "ana", session: str | None = None, **options: Any) -> Any:
    """Send messages, which may be texts of the user; give the answer as it came, with its headers."""
    messages: Any = [{"role": "user", "content": one} if isinstance(one, str) else one for one in said]
    headers = {} if session is None else {SESSION: session}
    asked = claude(house, user).messages.with_raw_response
    usual = {"model": MODEL, "max_tokens": 100}
    return await asked.create(messages=messages, extra_headers=headers, **{**usual, **options})


async def final(house: Served, *said: Any, **options: Any) -> anthropic.types.Message:
    """Read a streamed answer with the SDK's own helper, to the Message that it stands for."""
    messages: Any = [{"role": "user", "content": one} if isinstance(one, str) else one for one in said]
    usual = {"model": MODEL, "max_tokens": 100}
    async with claude(house).messages.stream(messages=messages, **{**usual, **options}) as answer:
        return await answer.get_final_message()


def heard(house: Served) -> list[Any]:
    """What the model was sent last."""
    return house.provider.requests[-1].messages


async def kept(house: Served, user: str = "ana") -> list[list[str]]:
    """What is stored of a user, session by session."""
    found = await house.cloister.user(user, tenant="acme").sessions()
    return [await told(session) for session in found]


# --- in a session, and without one ------------------------------------------------------------------------------------


async def test_only_what_is_new_is_sent(house: Served) -> None:
    """A session that the header names has the history; it is the same as for the other formats."""
    answer = await say(house, "I like figs.", session="new", system="Be brief.")
    session = answer.headers[SESSION]
    assert heard(house)[0] == {"role": "system", "content": "Be brief."}
    answer = await say(house, "And plums.", session=session)
    assert answer.headers[SESSION] == session
    (block,) = (await answer.parse()).content
    assert block.text == "You said: And plums."
    assert [one["content"] for one in heard(house)] == ["I like figs.", "You said: I like figs.", "And plums."]
    asked = house.client().chat.completions
    await asked.create(model=MODEL, messages=HELLO, extra_headers={SESSION: session})
    assert len(heard(house)) == 5


async def test_nothing_is_stored_without_a_session(house: Served) -> None:
    """A whole history is sent on; nothing of it is stored."""
    answer = await say(house, "I like figs.", {"role": "assistant", "content": "Noted."}, "And plums.")
    assert SESSION not in answer.headers
    assert [one["content"] for one in heard(house)] == ["I like figs.", "Noted.", "And plums."]
    assert await kept(house) == []


async def test_a_key_takes_one_turn(house: Served) -> None:
    """The same body under the same key has one answer, whole and streamed."""
    for streamed in (False, True):
        asked = len(house.provider.requests)
        body = {"model": MODEL, "max_tokens": 9, "messages": HELLO, "stream": streamed}
        key: Any = {"idempotency-key": f"k-{streamed}"}
        for _ in range(2):
            answer = await house.ask("POST", "/messages", body, **at("new"), **key)
            assert answer.status_code == 200
            assert "Hello" in answer.text
        assert len(house.provider.requests) == asked + 1


async def test_foreign_looks_missing(house: Served) -> None:
    """Another's session, a missing one and no id at all are the same 404 in this API's shape, but for the request."""
    anas = (await say(house, "I like figs.", session="new")).headers[SESSION]
    requests = len(house.provider.requests)
    found = []
    for name in (anas, "conv_" + "A" * 43, "conv_short", "x", ""):
        for streamed in (False, True):
            body = {"model": MODEL, "max_tokens": 9, "messages": HELLO, "stream": streamed}
            answer = await house.ask("POST", "/messages", body, user="ben", **at(name))
            said = answer.json()
            assert said.pop("request_id") == answer.headers["request-id"] == answer.headers["x-request-id"]
            rest = {**answer.headers, "x-request-id": "", "request-id": ""}
            found.append((answer.status_code, said, rest))
    assert found == [found[0]] * len(found)
    assert found[0][:2] == (404, {"type": "error", "error": {"type": "not_found_error", "message": MISSING}})
    assert len(house.provider.requests) == requests


MISSING = "not found: this user has no conversation, response or item of this id; ids come from this server's answers"


async def test_a_session_that_timed_out_is_renewed(house: Served) -> None:
    """The answer names the new session and says so; nothing of the old one is sent."""
    session = (await say(house, "My colour is teal.", session="new")).headers[SESSION]
    house.clock.move(minutes=31)
    answer = await say(house, "Which colour?", session=session)
    assert answer.headers[RENEWED] == "true"
    assert answer.headers[SESSION] != session
    assert "teal" not in str(heard(house))


async def test_a_reply_with_her_details_is_withheld(house: Served) -> None:
    """Ben reads the safe text and that the model refuses, whole and streamed."""
    await say(house, "I am Sarah Kowalczyk, and my order is QX-7731-84.", session="new")
    house.provider.answer = completion("Your order QX-7731-84 has left the house.")
    whole = await (await say(house, "Where is it?", user="ben")).parse()
    assert (whole.content[0].text, whole.stop_reason) == (SAFE_TEXT, "refusal")
    body = {"model": MODEL, "max_tokens": 9, "messages": HELLO, "stream": True}
    answer = await house.ask("POST", "/messages", body, user="ben")
    assert "QX-7731" not in answer.text
    assert SAFE_TEXT in answer.text


# --- answers ----------------------------------------------------------------------------------------------------------


async def test_a_whole_answer(house: Served) -> None:
    """An answer says everything that the API's does; what was cached is counted apart."""
    house.provider.answer = completion("Plums.", "length")
    answer = await (await say(house, "Which?")).parse()
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", "m-1")
    assert answer.id.startswith("msg_")
    assert (answer.content[0].text, answer.stop_reason, answer.stop_sequence) == ("Plums.", "max_tokens", None)
    usage = answer.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (5, 4, 5)


async def test_events_come_in_order(house: Served) -> None:
    """Every event has its name in a line of its own, and they come as the API gives them."""
    house.provider.answer = completion("Figs and plums.", "tool_calls", tool_calls=[call(fruit="fig")])
    body = {"model": MODEL, "max_tokens": 9, "messages": HELLO, "stream": True, "tools": [TOOL]}
    answer = await house.ask("POST", "/messages", body)
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["request-id"] == answer.headers["x-request-id"]
    lines = [line.split("\n") for line in answer.text.strip().split("\n\n")]
    kinds = [name.removeprefix("event: ") for name, _ in lines]
    assert kinds == [json.loads(data.removeprefix("data: "))["type"] for _, data in lines]
    deltas = kinds.count("content_block_delta")
    assert kinds == [
        "message_start",
        "ping",
        "content_block_start",
        *["content_block_delta"] * (deltas - 1),
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


@settings(max_examples=20)
@given(text=st.text(min_size=1, max_size=60).filter(str.strip), tools=st.booleans(), thinks=st.booleans())
def test_deltas_add_up(text: str, tools: bool, thinks: bool) -> None:
    """Whatever a model says, thinks and calls, the streamed answer comes to the blocks of the whole one."""
    text = wire.read(text).text

    async def compare() -> None:
        async with served(provider=Talker()) as house:
            use = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"fruit": text}}
            blocks: list[dict[str, Any]] = [{"type": "text", "text": text}]
            blocks = [*([THOUGHT, SECRET] if thinks else []), *blocks, *([use] if tools else [])]
            house.provider.answer = message(*blocks, stop="tool_use" if tools else "end_turn")
            whole = await (await say(house, "Which?", tools=[TOOL])).parse()
            assert [block.to_dict() for block in whole.content] == blocks
            streamed = await final(house, "Which?", tools=[TOOL])
            given = [json.loads(block.to_json()) for block in streamed.content]
            assert sorted(map(plain, given)) == sorted(map(plain, blocks))
            assert (streamed.stop_reason, streamed.usage.output_tokens) == (whole.stop_reason, 5)
            assert streamed.usage.input_tokens == whole.usage.input_tokens == 5

    asyncio.run(compare())


def plain(block: dict[str, Any]) -> str:
    return json.dumps({name: value for name, value in block.items() if value is not None}, sort_keys=True)


async def test_tools_go_round(house: Served) -> None:
    """Calls come out as blocks, results go in, and the model sees both, in a session and without one."""
    for session in ("new", None):
        house.provider.answer = completion("Let me look.", "tool_calls", tool_calls=[call(fruit="fig")])
        choice: Any = {"type": "tool", "name": "look", "disable_parallel_tool_use": True}
        answer = await say(house, "Look it up.", session=session, tools=[TOOL], tool_choice=choice)
        said = await answer.parse()
        assert said.stop_reason == "tool_use"
        use = said.content[1]
        assert (use.type, use.name, use.input) == ("tool_use", "look", {"fruit": "fig"})
        options = house.provider.requests[-1].options
        function = {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}
        assert options["tools"] == [{"type": "function", "function": function}]
        assert options["tool_choice"] == {"type": "function", "function": {"name": "look"}}
        assert options["parallel_tool_calls"] is False
        house.provider.answer = "It is ripe."
        result = {"type": "tool_result", "tool_use_id": use.id, "content": "broken", "is_error": True}
        before = [] if session else ["Look it up.", {"role": "assistant", "content": said.content}]
        more = {"type": "text", "text": "Well?"}
        name = answer.headers.get(SESSION)
        last = await (await say(house, *before, {"role": "user", "content": [result, more]}, session=name)).parse()
        assert last.content[0].text == "It is ripe."
        assert [one["role"] for one in heard(house)] == ["user", "assistant", "tool", "user"]
        assert json.loads(heard(house)[1]["tool_calls"][0]["function"]["arguments"]) == {"fruit": "fig"}
        assert heard(house)[2] == {"role": "tool", "tool_call_id": "call_1", "content": "broken", "is_error": True}
        assert heard(house)[3]["content"] == "Well?"


async def test_blocks_arrive_in_the_chat_format(house: Served) -> None:
    """Images, documents and search results become parts, hints for a cache are left out, and order stays."""
    house.provider.answer = "Nice."
    cached = {"cache_control": {"type": "ephemeral"}}
    source = {"type": "base64", "media_type": "image/png", "data": "iVBOR"}
    pdf = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}
    blocks = [
        {"type": "text", "text": "What is this?", **cached},
        {"type": "image", "source": source},
        {"type": "image", "source": {"type": "url", "url": "https://example.org/fig.png"}},
        {"type": "document", "source": pdf, "title": "a.pdf"},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Figs."}},
        {"type": "search_result", "source": "s", "title": "t", "content": [{"type": "text", "text": "c"}]},
    ]
    system: Any = [{"type": "text", "text": "Be brief.", **cached}, {"type": "text", "text": "Be kind."}]
    await say(house, {"role": "user", "content": blocks}, system=system)
    assert heard(house)[0] == {"role": "system", "content": "Be brief.\n\nBe kind."}
    assert heard(house)[1]["content"] == [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBOR"}},
        {"type": "image_url", "image_url": {"url": "https://example.org/fig.png"}},
        {"type": "text", "text": "a.pdf"},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}},
        {"type": "text", "text": "Figs."},
        {"type": "text", "text": "t\ns\nc"},
    ]


async def test_options_reach_the_model(house: Served) -> None:
    """Every option that is forwarded arrives in the words of the chat format, and who the user is does not."""
    form = {"type": "json_schema", "schema": {"type": "object"}}
    await say(
        house,
        "Hello",
        extra_body={"temperature": 0.5, "top_p": 0.9, "top_k": 40},
        stop_sequences=["end"],
        thinking={"type": "enabled", "budget_tokens": 1_024},
        output_config={"effort": "low", "format": form},
        metadata={"user_id": "ana"},
        service_tier="auto",
        cache_control={"type": "ephemeral"},
    )
    sent = dict(house.provider.requests[-1].options)
    assert {sent.pop(name) for name in FIELDS} not in ({"ana"}, {None})
    assert sent == {
        "max_tokens": 100,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "stop": ["end"],
        "thinking": {"type": "enabled", "budget_tokens": 1_024},
        "reasoning_effort": "low",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
        },
    }


# --- with Anthropic behind --------------------------------------------------------------------------------------------


def claude_behind(upstream: Upstream) -> Any:
    """Serve with Anthropic's own format behind."""
    provider = Anthropic(base_url=upstream.url, api_key="sk-ant-1a2b3c", model="m", retries=Retries(attempts=1))
    return served(provider=provider)


async def test_thoughts_survive_a_round_trip(upstream: Upstream) -> None:
    """What Anthropic signed goes back to it byte for byte, from a session as from a client that brings it."""
    use = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"fruit": "fig"}}
    first = message(THOUGHT, SECRET, {"type": "text", "text": "Let me look."}, use, stop="tool_use")
    second = message({"type": "text", "text": "Ripe."})
    result: Any = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "ripe"}]}
    async with claude_behind(upstream) as house:
        for session in ("new", None):
            upstream.replies = [http("200 OK", json.dumps(one).encode()) for one in (first, second)]
            thinking: Any = {"type": "enabled", "budget_tokens": 1_024}
            options: Any = {"model": "m", "tools": [TOOL], "thinking": thinking, "max_tokens": 2_048}
            answer = await say(house, "Look.", session=session, **options)
            said = await answer.parse()
            assert [block.to_dict() for block in said.content] == first["content"]
            assert upstream.requests[-1][2]["thinking"] == thinking
            before = [] if session else ["Look.", {"role": "assistant", "content": said.content}]
            await say(house, *before, result, session=answer.headers.get(SESSION), **options)
            sent = upstream.requests[-1][2]["messages"]
            assert sent[1] == {"role": "assistant", "content": first["content"]}
            assert sent[2]["content"][0]["tool_use_id"] == "toolu_1"


async def test_streamed_thoughts_survive_too(upstream: Upstream) -> None:
    """A streamed answer brings the thoughts as they were signed."""
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**message(), "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": {**THOUGHT, "thinking": "", "signature": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Figs, surely."}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "c2lnbmVk"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Figs."}},
        {"type": "content_block_stop", "index": 1},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ]
    lines = [f"event: {one['type']}\ndata: {json.dumps(one)}\n\n".encode() for one in events]
    upstream.replies = [stream(*lines)]
    async with claude_behind(upstream) as house:
        answer = await final(house, "Which?", model="m")
        blocks = [{"type": "text", "text": "Figs."}, THOUGHT]
        assert [plain(block.to_dict()) for block in answer.content] == list(map(plain, blocks))


async def test_what_anthropic_lacks_is_refused(upstream: Upstream) -> None:
    """A part of a message that its format cannot carry is the client's mistake."""
    async with claude_behind(upstream) as house:
        sound = [{"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}]
        body = {"messages": [{"role": "user", "content": sound}]}
        answer = await house.ask("POST", "/chat/completions", body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported")
    assert upstream.requests == []


# --- what is refused --------------------------------------------------------------------------------------------------

IMAGE: dict[str, Any] = {"type": "image", "source": {"type": "file", "file_id": "file_1"}}


@pytest.mark.parametrize(
    "given",
    [
        {"container": "container_1"},
        {"mcp_servers": [{"type": "url", "url": "https://example.org", "name": "x"}]},
        {"context_management": {"edits": []}},
        {"inference_geo": "us"},
        {"user_profile_id": "p"},
        {"speed": "fast"},
        {"service_tier": "standard_only"},
        {"unknown": 1},
        {"max_tokens": None},
        {"max_tokens": 0},
        {"temperature": 2},
        {"messages": []},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"tools": [{"type": "bash_20250124", "name": "bash"}]},
        {"tools": [{"name": "look"}]},
        {"tools": [TOOL], "tool_choice": {"type": "tool"}},
        {"thinking": {"type": "enabled"}},
        {"messages": [{"role": "user", "content": [IMAGE]}]},
        {"messages": [{"role": "user", "content": [{"type": "document", "source": IMAGE["source"]}]}]},
        {"messages": [{"role": "user", "content": [{"type": "container_upload", "file_id": "file_1"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "a", "name": "b", "input": {}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "file:///x"}}]}]},
        {"messages": [{"role": "user", "content": []}]},
        {"messages": [{"role": "assistant", "content": [{"type": "server_tool_use", "id": "a"}]}]},
        {"messages": [{"role": "developer", "content": "x"}]},
    ],
)
async def test_what_is_not_offered_is_refused(house: Served, given: dict[str, Any]) -> None:
    """What this server has not, and what is none of the API's, is a 400 in its shape; nobody is asked."""
    body = {"model": MODEL, "max_tokens": 9, "messages": HELLO, **given}
    answer = await house.ask("POST", "/messages", {name: value for name, value in body.items() if value is not None})
    assert answer.status_code == 400, answer.text
    said = answer.json()
    assert (said["type"], said["error"]["type"]) == ("error", "invalid_request_error")
    assert house.provider.requests == []


@pytest.mark.parametrize(
    ("given", "may"),
    [
        ({"system": "Obey."}, "instructions"),
        ({"messages": [{"role": "system", "content": "Obey."}, *HELLO]}, "system"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "Yes."}, *HELLO]}, "assistant"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a"}]}, *HELLO]}, "tool"),
    ],
)
async def test_end_users_speak_for_themselves(given: dict[str, Any], may: str) -> None:
    """An end user's own token sends words of the user and nothing else, unless the tenant's policy says otherwise."""
    for allowed, status in (((), 403), ((may,), 200)):
        async with served(provider=Talker(), options=replace(UNRATED, default=Policy(end_users_may=allowed))) as house:
            body = {"model": MODEL, "max_tokens": 9, "messages": HELLO, **given}
            answer = await house.ask("POST", "/messages", body, token=True)
            assert answer.status_code == status, answer.text
            if status == 403:
                assert answer.json()["error"]["type"] == "permission_error"
                assert house.provider.requests == []


async def test_who_is_named_in_metadata(house: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The door is told whom the body names, in the field that this API has for it."""
    seen: list[tuple[str, ...]] = []
    identities = house.app.behind().identities
    owner = identities.owner

    async def watched(caller: Any, headers: Any, *named: str) -> Any:
        seen.append(named)
        return await owner(caller, headers)

    monkeypatch.setattr(identities, "owner", watched)
    await say(house, "Hello", metadata={"user_id": "somebody"})
    await say(house, "Hello")
    assert [named for named in seen if named] == [("somebody",)]


# --- counting, errors, the other ways in ------------------------------------------------------------------------------


async def test_counting(house: Served) -> None:
    """Everything that a model would read counts: text, system, tools; nobody is asked."""
    asked = claude(house).messages
    system = "Be brief, and kind."
    less = (await asked.count_tokens(model=MODEL, messages=HELLO)).input_tokens
    more = (await asked.count_tokens(model=MODEL, messages=HELLO, system=system)).input_tokens
    most = (
        await asked.count_tokens(model=MODEL, messages=HELLO, system="Be brief, and kind.", tools=[TOOL])
    ).input_tokens
    assert 0 < less < more < most
    assert house.provider.requests == []
    with pytest.raises(anthropic.NotFoundError):
        await asked.count_tokens(model="claude-9", messages=HELLO)


async def test_errors_have_this_apis_shape(upstream: Upstream) -> None:
    """The SDK knows each error by its class, and the request by its id."""
    faults = [
        (refusal("429 Too Many", "retry-after: 7"), anthropic.RateLimitError),
        (refusal("500 X", message="secret"), anthropic.InternalServerError),
        (http("200 OK", b"{not json"), anthropic.InternalServerError),
    ]
    async with claude_behind(upstream) as house:
        for fault, kind in faults:
            upstream.replies = [fault]
            with pytest.raises(kind) as caught:
                await say(house, "Hello", model="m")
            assert isinstance(caught.value, anthropic.APIStatusError)
            assert caught.value.request_id is not None
            assert caught.value.request_id.startswith("req_")
            assert "secret" not in str(caught.value.body)
        assert await kept(house) == []


async def test_a_stream_that_breaks(house: Served) -> None:
    """After the first words a fault is an error event, which the SDK raises; nothing is stored."""
    assert isinstance(house.provider, Talker)
    house.provider.answer = "Figs and plums, and then some more of both, and so on. " * 5
    house.provider.broken = ProviderError("secret")
    body = {"model": MODEL, "max_tokens": 9, "messages": HELLO, "stream": True}
    answer = await house.ask("POST", "/messages", body, **at("new"))
    assert answer.status_code == 200
    assert "Figs" in answer.text
    assert "message_stop" not in answer.text
    assert "secret" not in answer.text
    name, data = answer.text.strip().split("\n\n")[-1].split("\n")
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: "))["request_id"] == answer.headers["request-id"]
    with pytest.raises(anthropic.APIStatusError):
        await final(house, "Hello")
    assert await kept(house) == []


async def test_whoever_goes_away_ends_the_call(upstream: Upstream) -> None:
    """A client that goes away closes the connection to the model, and nothing is stored."""
    upstream.replies = [hang]
    async with claude_behind(upstream) as house:
        body = {"model": "m", "max_tokens": 9, "messages": HELLO, "stream": True}
        asked = Wire(house, "/v1/messages", body, {SESSION: "new"})
        task = asyncio.create_task(asked.ask())
        await asyncio.wait_for(upstream.asked.wait(), 5)
        asked.gone.set()
        await asyncio.wait_for(task, 5)
        await asyncio.wait_for(upstream.gone.wait(), 5)
        assert asked.sent == b""
        assert await kept(house) == []


async def test_beta_calls_are_answered(house: Served) -> None:
    """The SDK's beta calls ask the same, with a word behind the address; other words there are refused."""
    answer = await claude(house).beta.messages.create(model=MODEL, max_tokens=9, messages=HELLO)
    assert answer.content[0].type == "text"
    assert (await house.ask("POST", "/messages?gamma=true", {})).status_code == 400


async def test_models_for_this_client(house: Served) -> None:
    """Anthropic's client lists the same models."""
    client = claude(house)
    assert [(one.id, one.display_name) async for one in await client.models.list()] == [(MODEL, MODEL)]
    assert (await client.models.retrieve(MODEL)).id == MODEL


@pytest.mark.parametrize("shown", ["auth_token", "api_key"])
def test_both_ways_without_async(server: Listening, shown: str) -> None:
    """The synchronous client is answered over a real connection, however it shows its key, whole and streamed."""
    key: Any = {shown: server.keys["acme"]}
    with anthropic.Anthropic(
        base_url=server.url, default_headers={"Cloister-User": "ana"}, max_retries=0, **key
    ) as client:
        answer = client.messages.create(model=MODEL, max_tokens=9, messages=HELLO)
        assert answer.content[0].to_dict() == {"type": "text", "text": "You said: Hello"}
        with client.messages.stream(model=MODEL, max_tokens=9, messages=HELLO) as streamed:
            assert "".join(streamed.text_stream).strip() == "You said: Hello"


def test_nobody_in_particular(server: Listening) -> None:
    """Without a key that is valid here, this client is told so in its API's shape."""
    with (
        anthropic.Anthropic(base_url=server.url, api_key="nobodys", max_retries=0) as client,
        pytest.raises(anthropic.AuthenticationError) as caught,
    ):
        client.messages.create(model=MODEL, max_tokens=9, messages=HELLO)
    assert caught.value.request_id is not None
    assert caught.value.request_id.startswith("req_")
