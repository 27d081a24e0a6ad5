"""Reading answers and writing requests, in three formats."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import anthropic.types
import openai.types.chat
import openai.types.responses
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter

from cloister import wire
from cloister.errors import ProviderError
from cloister.model import Item, Usage

CALL = {"id": "call_1", "type": "function", "function": {"name": "lookup", "arguments": '{"order": 48291}'}}
CHAT_USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 5,
    "total_tokens": 15,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 2},
}
RESPONSE_USAGE = {
    "input_tokens": 10,
    "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
    "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 2},
    "total_tokens": 15,
}
ANTHROPIC_USAGE = {
    "input_tokens": 6,
    "cache_read_input_tokens": 4,
    "output_tokens": 5,
    "output_tokens_details": {"thinking_tokens": 2},
}
USAGE = Usage(10, 5, 4, 2)

Chunks = list[dict[str, Any]]


# The same answer in three formats, whole and streamed. A text is given as the pieces it is cut into.


def chat_whole(text: str, calls: Chunks, reasoning: str = "", **message: Any) -> dict[str, Any]:
    said = {"role": "assistant", "content": text or None, **message}
    if calls:
        said["tool_calls"] = calls
    if reasoning:
        said["reasoning_content"] = reasoning
    finish = "tool_calls" if calls else "stop"
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": said, "finish_reason": finish}],
        "usage": CHAT_USAGE,
    }


def chat_chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **more}


def chat_stream(text: list[str], calls: Chunks, cut: Callable[[str], list[str]], reasoning: str = "") -> Chunks:
    chunks = [chat_chunk({"role": "assistant", "content": ""})]
    chunks += [chat_chunk({"reasoning_content": piece}) for piece in cut(reasoning)]
    chunks += [chat_chunk({"content": piece}) for piece in text]
    for index, call in enumerate(calls):
        function = call["function"]
        head = {"index": index, "id": call["id"], "type": "function", "function": {"name": function["name"]}}
        chunks.append(chat_chunk({"tool_calls": [head]}))
        for piece in cut(function["arguments"]):
            chunks.append(chat_chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]}))
    chunks.append(chat_chunk({}, "tool_calls" if calls else "stop"))
    chunks.append({**chat_chunk({}, usage=CHAT_USAGE), "choices": []})
    return chunks


def response_whole(text: str, calls: Chunks, **more: Any) -> dict[str, Any]:
    output: Chunks = []
    if text:
        part = {"type": "output_text", "text": text, "annotations": []}
        output.append({"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [part]})
    for call in calls:
        output.append({"type": "function_call", "id": "f", "call_id": call["id"], **call["function"]})
    return {
        "id": "r",
        "object": "response",
        "created_at": 1,
        "model": "m",
        "status": "completed",
        "output": output,
        "usage": RESPONSE_USAGE,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        **more,
    }


def response_stream(text: list[str], calls: Chunks, cut: Callable[[str], list[str]]) -> Chunks:
    final = response_whole("".join(text), calls)
    events: Chunks = [{"type": "response.created", "response": {**final, "status": "in_progress", "output": []}}]
    for index, entry in enumerate(final["output"]):
        events.append({"type": "response.output_item.added", "output_index": index, "item": entry})
        if entry["type"] == "message":
            where = {"output_index": index, "content_index": 0, "item_id": "m", "logprobs": []}
            events += [{"type": "response.output_text.delta", "delta": piece, **where} for piece in text]
        else:
            where = {"output_index": index, "item_id": "f"}
            kind = "response.function_call_arguments.delta"
            events += [{"type": kind, "delta": piece, **where} for piece in cut(entry["arguments"])]
        events.append({"type": "response.output_item.done", "output_index": index, "item": entry})
    events.append({"type": "response.completed", "response": final})
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


def anthropic_whole(text: str, calls: Chunks, **more: Any) -> dict[str, Any]:
    content: Chunks = [{"type": "text", "text": text}] if text else []
    for call in calls:
        entry = {"type": "tool_use", "id": call["id"], "name": call["function"]["name"]}
        content.append({**entry, "input": json.loads(call["function"]["arguments"])})
    return {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": content,
        "stop_reason": "tool_use" if calls else "end_turn",
        "stop_sequence": None,
        "usage": ANTHROPIC_USAGE,
        **more,
    }


def anthropic_stream(text: list[str], calls: Chunks, cut: Callable[[str], list[str]]) -> Chunks:
    final = anthropic_whole("".join(text), calls)
    begun = {**final, "content": [], "stop_reason": None, "usage": {**ANTHROPIC_USAGE, "output_tokens": 1}}
    events: Chunks = [{"type": "message_start", "message": begun}, {"type": "ping"}]
    for index, block in enumerate(final["content"]):
        if block["type"] == "text":
            start, kind, field, pieces = {**block, "text": ""}, "text_delta", "text", text
        else:
            start, kind, field = {**block, "input": {}}, "input_json_delta", "partial_json"
            pieces = cut(calls[index - bool(text)]["function"]["arguments"])
        events.append({"type": "content_block_start", "index": index, "content_block": start})
        for piece in pieces:
            delta = {"type": kind, field: piece}
            events.append({"type": "content_block_delta", "index": index, "delta": delta})
        events.append({"type": "content_block_stop", "index": index})
    delta = {"stop_reason": final["stop_reason"]}
    events.append({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 5}})
    events.append({"type": "message_stop"})
    return events


WHOLE: dict[str, Callable[..., dict[str, Any]]] = {
    "chat": chat_whole,
    "responses": response_whole,
    "anthropic": anthropic_whole,
}
STREAM: dict[str, Callable[..., Chunks]] = {
    "chat": chat_stream,
    "responses": response_stream,
    "anthropic": anthropic_stream,
}
SDK_WHOLE: dict[str, type[BaseModel]] = {
    "chat": openai.types.chat.ChatCompletion,
    "responses": openai.types.responses.Response,
    "anthropic": anthropic.types.Message,
}
SDK_CHUNK: dict[str, TypeAdapter[Any]] = {
    "chat": TypeAdapter(openai.types.chat.ChatCompletionChunk),
    "responses": TypeAdapter(openai.types.responses.ResponseStreamEvent),
    "anthropic": TypeAdapter(anthropic.types.RawMessageStreamEvent),
}
formats = pytest.mark.parametrize("format", list(WHOLE))


def one(text: str) -> list[str]:
    return [text] if text else []


def drink(chunks: list[Any]) -> tuple[wire.Answer, dict[str, str]]:
    reader = wire.Reader()
    said = {"text": "", "reasoning": "", "refusal": "", "tool": ""}
    for chunk in chunks:
        for channel, piece in reader.feed(chunk):
            said[channel] += piece
    return reader.finish(), said


# Whole answers


@formats
@pytest.mark.parametrize("sdk", [False, True])
def test_whole(format: str, sdk: bool) -> None:
    """Text, tool calls, usage, model and end are read alike from each format, from dicts and from the SDKs' objects."""
    raw = WHOLE[format]("Hello Ana", [CALL])
    answer = wire.read(SDK_WHOLE[format].model_validate(raw) if sdk else raw)
    assert answer.text == "Hello Ana"
    assert json.loads(answer.tool_calls[0]["function"]["arguments"]) == {"order": 48291}
    assert (answer.tool_calls[0]["id"], answer.tool_calls[0]["function"]["name"]) == ("call_1", "lookup")
    assert (answer.usage, answer.model, answer.finish_reason) == (USAGE, "m", "tool_calls")


CHAT, RESPONSES, ANTHROPIC = chat_whole("x", []), response_whole("x", []), anthropic_whole("x", [])
DETAILS = "prompt_tokens_details"


@pytest.mark.parametrize(
    ("answer", "usage", "expected"),
    [
        # OpenAI, chat and Responses: what was cached, written to the cache and thought is part of the whole.
        (CHAT, {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}, Usage(9, 5)),
        (
            CHAT,
            {"prompt_tokens": 9, "completion_tokens": 5, DETAILS: {"cached_tokens": 4, "cache_write_tokens": 3}},
            Usage(9, 5, 4, cache_write_tokens=3),
        ),
        (
            RESPONSES,
            {
                "input_tokens": 9,
                "output_tokens": 5,
                "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 3},
                "output_tokens_details": {"reasoning_tokens": 2},
            },
            Usage(9, 5, 4, 2, cache_write_tokens=3),
        ),
        # DeepSeek says the same in two ways, and older versions only in its own.
        (CHAT, {"prompt_tokens": 9, "completion_tokens": 5, "prompt_cache_hit_tokens": 4}, Usage(9, 5, 4)),
        (
            CHAT,
            {
                "prompt_tokens": 9,
                "completion_tokens": 5,
                "prompt_cache_hit_tokens": 4,
                "prompt_cache_miss_tokens": 5,
                DETAILS: {"cached_tokens": 4},
                "completion_tokens_details": {"reasoning_tokens": 2},
            },
            Usage(9, 5, 4, 2),
        ),
        # Others put it beside the rest, or count what was thought in the total alone.
        (CHAT, {"prompt_tokens": 9, "completion_tokens": 5, "cached_tokens": 4}, Usage(9, 5, 4)),
        (
            CHAT,
            {
                "prompt_tokens": 9,
                "completion_tokens": 5,
                "total_tokens": 21,
                "completion_tokens_details": {"reasoning_tokens": 7},
            },
            Usage(9, 12, 0, 7),
        ),
        (CHAT, {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 21}, Usage(9, 12, 0, 7)),
        (CHAT, {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 3}, Usage(9, 5)),
        # Anthropic counts its cache beside the rest of the input.
        (
            ANTHROPIC,
            {
                "input_tokens": 2,
                "cache_read_input_tokens": 4,
                "cache_creation_input_tokens": 3,
                "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 0},
                "output_tokens": 5,
            },
            Usage(9, 5, 4, cache_write_tokens=3),
        ),
        (
            ANTHROPIC,
            {"input_tokens": 9, "cache_read_input_tokens": None, "output_tokens": 5},
            Usage(9, 5),
        ),
        # No call takes nothing: this one was not counted, and is to be estimated.
        (CHAT, {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, None),
        (CHAT, {}, None),
        (CHAT, None, None),
        (RESPONSES, {"input_tokens": None, "output_tokens": None}, None),
        (ANTHROPIC, {"input_tokens": 0, "output_tokens": 0}, None),
        (CHAT, {"prompt_tokens": "9", "completion_tokens": True, "total_tokens": -3}, None),
    ],
)
def test_usage(answer: dict[str, Any], usage: dict[str, Any] | None, expected: Usage | None) -> None:
    """Cached tokens are part of the input and reasoning part of the output, however a provider counts them."""
    assert wire.read({**answer, "usage": usage}).usage == expected
    assert wire.spent({**answer, "usage": usage}) == (expected or Usage())
    if expected is not None:
        assert expected.cached_tokens + expected.cache_write_tokens <= expected.input_tokens
        assert expected.reasoning_tokens <= expected.output_tokens


def test_usage_adds_up() -> None:
    """Two calls' usage is added part by part, and estimated if either is."""
    assert Usage(9, 5, 4, 2, True, 3) + Usage(1, 2, 3, 4, False, 5) == Usage(10, 7, 7, 6, True, 8)


@formats
def test_stop(format: str) -> None:
    """An answer without tool calls ends with stop."""
    assert wire.read(WHOLE[format]("Hello", [])).finish_reason == "stop"


def test_plain_text() -> None:
    """Text is an answer too."""
    assert wire.read("Hello") == wire.Answer("Hello", finish_reason="stop")


def test_length_is_kept() -> None:
    """An answer that hit the token limit is an answer, and says so, in each format."""
    chat = chat_whole("Hel", [])
    chat["choices"][0]["finish_reason"] = "length"
    for raw in (
        chat,
        response_whole("Hel", [], status="incomplete", incomplete_details={"reason": "max_output_tokens"}),
        anthropic_whole("Hel", [], stop_reason="max_tokens"),
    ):
        assert wire.read(raw).finish_reason == "length"


def test_refusals() -> None:
    """The text of a refusal is the refusal."""
    part = {"type": "refusal", "refusal": "I will not"}
    message = {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [part]}
    for raw in (
        chat_whole("", [], refusal="I will not"),
        response_whole("", [], output=[message]),
        anthropic_whole("", [], stop_reason="refusal", stop_details={"type": "refusal", "explanation": "I will not"}),
    ):
        answer = wire.read(raw)
        assert answer.text == "I will not"
        assert answer.channels["refusal"] == "I will not"
        assert answer.channels["text"] == ""


@pytest.mark.parametrize(
    "broken",
    [
        "",
        {},
        None,
        7,
        {"error": {"message": "my name is Ana", "code": "server_error"}},
        {"object": "error", "message": "my name is Ana", "type": "BadRequest"},
        {"choices": []},
        {"choices": None},
        {"choices": "x"},
        {"choices": [{"message": None, "finish_reason": "stop"}]},
        {"choices": [{"message": {"content": 7}, "finish_reason": "stop"}]},
        {"choices": [{"message": {"content": "x"}, "finish_reason": None}]},
        {"choices": [{"message": {"content": "x"}, "finish_reason": "abort"}]},
        {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}] * 2},
        {"choices": [{"message": {"content": "", "reasoning": "hm"}, "finish_reason": "length"}]},
        {"choices": [{"message": {"content": None}, "finish_reason": "content_filter"}]},
        {"choices": [{"message": {"tool_calls": [{"type": "function"}]}, "finish_reason": "tool_calls"}]},
        {"choices": [{"message": {"content": "x", "function_call": {"name": "f"}}, "finish_reason": "stop"}]},
        response_whole("x", [], status="failed"),
        response_whole("x", [], status="in_progress"),
        response_whole("x", [], status="incomplete", incomplete_details=None),
        response_whole("", []),
        response_whole("x", [], output=[{"type": "computer_call"}]),
        anthropic_whole("x", [], stop_reason="pause_turn"),
        anthropic_whole("x", [], stop_reason=None),
        anthropic_whole("", []),
        anthropic_whole("x", [], content=None),
        {"type": "error", "error": {"type": "overloaded_error", "message": "my name is Ana"}},
    ],
)
def test_broken_answers(broken: object) -> None:
    """A malformed, empty, incomplete or ambiguous answer is an error, never a short answer; it quotes no text."""
    with pytest.raises(ProviderError) as caught:
        wire.read(broken)
    assert "Ana" not in str(caught.value)


def test_repr_hides() -> None:
    """The repr of an answer shows nothing of what was said."""
    answer = wire.read(chat_whole("secret", [CALL], "secret"))
    assert "secret" not in repr(answer)
    assert "48291" not in repr(answer)


def test_surrogates_are_mended() -> None:
    """A half of a surrogate pair becomes U+FFFD, and two halves become their character."""
    assert wire.read("a\ud83db \ud83d\ude00").text == "a\ufffdb \U0001f600"


# Streams


@formats
@pytest.mark.parametrize("sdk", [False, True])
@settings(max_examples=25)
@given(data=st.data(), text=st.text(), second=st.booleans())
def test_any_cut(format: str, sdk: bool, data: st.DataObject, text: str, second: bool) -> None:
    """A stream that is cut anywhere reads as the whole answer does, and gives out all of it."""
    calls = [CALL, {**CALL, "id": "call_2"}] if second or not text else []

    def cut(whole: str) -> list[str]:
        at = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=4)))
        return [whole[i:j] for i, j in zip([0, *at], [*at, len(whole)], strict=True)]

    chunks: list[Any] = STREAM[format](cut(text), calls, cut)
    if sdk:
        chunks = [SDK_CHUNK[format].validate_python(chunk) for chunk in chunks if chunk.get("type") != "ping"]
    answer, said = drink(chunks)
    whole = wire.read(WHOLE[format](text, calls))
    assert (answer.text, answer.usage, answer.model) == (whole.text, whole.usage, whole.model)
    assert answer.finish_reason == whole.finish_reason
    assert [json.loads(call["function"]["arguments"]) for call in answer.tool_calls] == [{"order": 48291}] * len(calls)
    assert said == answer.channels


@given(st.lists(st.text(st.characters(codec=None))))
def test_text_pieces(pieces: list[str]) -> None:
    """Pieces of text read as their sum, surrogates or not."""
    whole = "".join(pieces)
    reader = wire.Reader()
    given = "".join(text for piece in pieces for _, text in reader.feed(piece))
    if not whole:
        with pytest.raises(ProviderError):
            reader.finish()
    else:
        assert reader.finish() == wire.read(whole)
        assert wire.read(whole).text.removesuffix("\ufffd") in (given, given.removesuffix("\ufffd"))


def test_pair_over_two_chunks() -> None:
    """A character whose surrogates came in two chunks is whole, and is given out once."""
    answer, said = drink([chat_chunk({"content": "a\ud83d"}), chat_chunk({"content": "\ude00"}, "stop")])
    assert answer.text == said["text"] == "a\U0001f600"


def test_half_a_pair_at_the_end() -> None:
    """A half that stays alone is given out as U+FFFD with the finish marker."""
    answer, said = drink([chat_chunk({"content": "a\ud83d"}), chat_chunk({}, "stop")])
    assert answer.text == said["text"] == "a\ufffd"


@formats
def test_cut_off(format: str) -> None:
    """A stream that lacks its end, however long, is an error."""
    chunks = STREAM[format](["Hel", "lo"], [], one)
    marker = {"chat": -2, "responses": -1, "anthropic": -1}[format]
    for length in range(len(chunks) + marker + 1):
        with pytest.raises(ProviderError):
            drink(chunks[:length])


@formats
def test_mixed(format: str) -> None:
    """Chunks of two formats in one stream are an error."""
    reader = wire.Reader()
    reader.feed("Hello")
    with pytest.raises(ProviderError, match="mixes"):
        reader.feed(STREAM[format](["x"], [], one)[0])


@pytest.mark.parametrize(
    "chunks",
    [
        [{"error": {"message": "my name is Ana", "type": "server_error"}}],
        [{"type": "error", "message": "my name is Ana", "code": "server_error", "sequence_number": 1}],
        [{"type": "response.failed", "response": {"status": "failed", "error": {"code": "server_error"}}}],
        [{"type": "response.failed", "response": {}}],
        [{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x"}}],
        [chat_chunk({"content": "x"}, "stop"), chat_chunk({"content": "Ana"})],
        [{"choices": [{"index": 1, "delta": {"content": "x"}, "finish_reason": "stop"}]}],
        [{"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}] * 2}],
        [{"choices": [{"index": 0, "message": {"content": "x"}, "finish_reason": "stop"}]}],
        [chat_chunk({"content": ["Ana"]}, "stop")],
        [chat_chunk({}, "stop")],
        [chat_chunk({"content": "x"}, "error")],
        [chat_chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}, "tool_calls")],
        [{"hello": "Ana"}],
        [object()],
        [],
        [*anthropic_stream(["x"], [], one), {"type": "content_block_start", "index": 9, "content_block": {}}],
    ],
)
def test_broken_streams(chunks: list[Any]) -> None:
    """Errors, several choices, malformed chunks, and text after the end are errors, which quote no text."""
    with pytest.raises(ProviderError) as caught:
        drink(chunks)
    assert "Ana" not in str(caught.value)


def test_end_contradicts() -> None:
    """A Responses stream whose last event says other than what was streamed is refused."""
    chunks = response_stream(["Hello"], [], one)
    chunks[-1]["response"] = response_whole("Something else", [])
    with pytest.raises(ProviderError, match="contradicts"):
        drink(chunks)


def test_end_says_more() -> None:
    """What only the last event of a Responses stream says is given out too: nothing is kept that was not shown."""
    chunks = response_stream(["Hel"], [], one)
    chunks[-1]["response"] = response_whole("Hello", [CALL])
    answer, said = drink(chunks)
    assert said == answer.channels
    assert answer.text == "Hello"


def test_too_long() -> None:
    """A stream longer than the cap is an error, and chunks without text count too."""
    reader = wire.Reader(max_chars=10)
    reader.feed("1234567890")
    with pytest.raises(ProviderError, match="10 characters"):
        reader.feed("1")
    reader = wire.Reader(max_chars=10)
    for _ in range(10):
        reader.feed(chat_chunk({}))
    with pytest.raises(ProviderError, match="10 characters"):
        reader.feed(chat_chunk({}))


def test_bad_arguments_are_kept() -> None:
    """Arguments that are not JSON are carried as the model wrote them."""
    part = {"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"a": '}}
    answer, _ = drink([chat_chunk({"tool_calls": [part]}, "length")])
    assert answer.tool_calls[0]["function"]["arguments"] == '{"a": '


def test_calls_without_index() -> None:
    """Tool calls of servers that send no index are told apart by their ids."""
    parts = [{"id": id, "function": {"name": "f", "arguments": "{}"}} for id in "ab"]
    answer, _ = drink([chat_chunk({"tool_calls": [part]}) for part in parts] + [chat_chunk({}, "tool_calls")])
    assert [call["id"] for call in answer.tool_calls] == ["a", "b"]


def test_thinking_is_kept() -> None:
    """Anthropic's thinking is read with its signature, and sent back as it was."""
    block = {"type": "thinking", "thinking": "Hm, Ana", "signature": "c2ln"}
    events = [
        {"type": "message_start", "message": anthropic_whole("", [], stop_reason=None)},
        {"type": "content_block_start", "index": 0, "content_block": {**block, "thinking": "", "signature": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Hm, "}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Ana"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "c2ln"}},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": "Hi"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ]
    answer, said = drink(events)
    assert said["reasoning"] == answer.channels["reasoning"] == "Hm, Ana"
    whole = wire.read(anthropic_whole("", [], content=[block, {"type": "text", "text": "Hi"}]))
    assert answer.extra == whole.extra == {"thinking_blocks": [block]}
    sent = wire.anthropic([wire.answer_item(answer)])
    assert sent["messages"] == [{"role": "assistant", "content": [block, {"type": "text", "text": "Hi"}]}]


def test_encrypted_reasoning_is_kept() -> None:
    """A Responses reasoning item is sent back only where its content is in it."""
    sealed = {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "xyz"}
    bare = {"type": "reasoning", "id": "rs2", "summary": [{"type": "summary_text", "text": "Hm"}]}
    raw = response_whole("Hi", [])
    raw["output"] = [sealed, bare, *raw["output"]]
    answer = wire.read(raw)
    assert answer.channels["reasoning"] == "Hm"
    sent = wire.responses([wire.answer_item(answer)])
    assert sent == {"input": [sealed, {"role": "assistant", "content": "Hi"}]}


def test_sdk_helper_events() -> None:
    """What the SDKs' stream helpers say beside the chunks is not read twice."""

    class Echo:
        type = "content.delta"

    class Chunk:
        type = "chunk"
        chunk = chat_chunk({"content": "Hi"}, "stop")

    assert drink([Echo(), Chunk(), Echo()])[0].text == "Hi"
    events = anthropic_stream(["Hi"], [], one)
    assert drink([*events[:3], {"type": "text", "text": "Hi", "snapshot": "Hi"}, *events[3:]])[0].text == "Hi"


# Requests

texts = st.text(st.characters(codec="utf-8"), max_size=20)
calls = st.lists(st.builds(lambda args: {**CALL, "function": {"name": "f", "arguments": args}}, texts), min_size=1)
parts = st.lists(
    st.one_of(
        st.builds(lambda text: {"type": "text", "text": text}, texts),
        st.just({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}),
    ),
    min_size=1,
    max_size=3,
)
extras = st.one_of(st.none(), st.fixed_dictionaries({"name": texts}))
items = st.one_of(
    st.builds(Item, st.just("system"), texts, extra=extras),
    st.builds(Item, st.just("user"), st.one_of(texts, parts), extra=extras),
    st.builds(Item, st.just("assistant"), texts, extra=extras),
    st.builds(Item, st.just("assistant"), st.one_of(st.none(), texts), tool_calls=calls),
    st.builds(Item, st.just("tool"), st.one_of(texts, parts), tool_call_id=st.just("call_1")),
)


@given(st.lists(items))
def test_round_trip(given: list[Item]) -> None:
    """Items that become messages become the same items again."""
    assert [wire.item(wire.message(one)) for one in given] == given


def test_calls_in_items_of_their_own_are_one_message() -> None:
    """Calls that were stored one by one go into the message before them, as the chat format wants them."""
    first, second = ({"id": name, "type": "function", "function": {"name": "f", "arguments": "{}"}} for name in "ab")
    asked = [
        Item("assistant", "I look."),
        Item("assistant", tool_calls=[first]),
        Item("assistant", tool_calls=[second]),
    ]
    results = [Item("tool", "1", tool_call_id="a"), Item("tool", "2", tool_call_id="b")]
    one, *rest = wire.chat([*asked, *results])
    assert one == {"role": "assistant", "content": "I look.", "tool_calls": [first, second]}
    assert [message["tool_call_id"] for message in rest] == ["a", "b"]
    assert asked[1].tool_calls == [first]


def test_what_is_only_kept_is_in_no_request() -> None:
    """An item without words or calls is sent in no format; one that holds a refusal alone is."""
    kept = wire.item({"role": "assistant", "content": None, "api": {"type": "web_search_call", "query": "secret"}})
    refused = Item("assistant", extra={"refusal": "I must not."})
    for form in (wire.chat, wire.responses, wire.anthropic):
        assert form([kept]) == form([])
        assert "secret" not in str(form([Item("user", "hello"), kept, refused]))
        assert "must not" in str(form([Item("user", "hello"), kept, refused]))


@given(st.lists(items))
def test_requests_are_json(given: list[Item]) -> None:
    """What is to be sent is JSON in each format, and roles alternate for Anthropic."""
    json.dumps(wire.chat(given))
    json.dumps(wire.responses(given))
    roles = [message["role"] for message in wire.anthropic(given)["messages"]]
    assert all(a != b for a, b in itertools.pairwise(roles))


def test_nothing_is_shared() -> None:
    """Changing messages does not change the items they were made of, nor the other way round."""
    message = {"role": "user", "content": [{"type": "text", "text": "Hi"}]}
    kept = wire.item(message)
    message["content"][0]["text"] = "changed"  # type: ignore[index]
    wire.chat([kept])[0]["content"][0]["text"] = "changed"
    assert kept.text == "Hi"


def test_extra_is_kept_and_not_sent() -> None:
    """Unknown keys of a message are kept verbatim, and only keys of the chat format are sent."""
    kept = wire.item({"role": "user", "content": "Hi", "name": "ana", "x_trace": {"a": [None, 1]}})
    assert kept.extra == {"name": "ana", "x_trace": {"a": [None, 1]}}
    assert wire.chat([kept]) == [{"role": "user", "content": "Hi", "name": "ana"}]


def test_sdk_message() -> None:
    """An SDK's message object can be put into a history as it is."""
    completion = openai.types.chat.ChatCompletion.model_validate(chat_whole("", [CALL]))
    kept = wire.item(completion.choices[0].message)
    assert (kept.role, kept.content, kept.tool_calls, kept.extra) == ("assistant", None, [CALL], None)


def test_developer_is_system() -> None:
    """OpenAI's newer name for the system role is understood, and text alone is a user's."""
    assert wire.item({"role": "developer", "content": "Be kind"}).role == "system"
    assert wire.item("Hi") == Item("user", "Hi")


@pytest.mark.parametrize(
    "message",
    [
        7,
        {},
        {"role": "function", "content": "Ana"},
        {"role": ["user"], "content": "Ana"},
        {"role": "user"},
        {"role": "user", "content": None},
        {"role": "user", "content": 7},
        {"role": "user", "content": []},
        {"role": "user", "content": ["Ana"]},
        {"role": "user", "content": [{"text": "Ana"}]},
        {"role": "user", "content": [{"type": "text"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": "Ana"}]},
        {"role": "user", "content": "Ana \ud83d"},
        {"role": "user", "content": "x", "Ana\ud83d": 1},
        {"role": "user", "content": "x", "extra": {"a": [float("nan")]}},
        {"role": "user", "content": "x", "extra": {1: 2}},
        {"role": "user", "content": "x", "extra": 2**70},
        {"role": "user", "content": "x", "extra": object()},
        {"role": "user", "content": "x", "name": 7},
        {"role": "user", "content": "x", "tool_calls": [CALL]},
        {"role": "user", "content": "x", "tool_call_id": "call_1"},
        {"role": "tool", "content": "x"},
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant", "tool_calls": ["Ana"]},
        {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f"}}]},
    ],
)
def test_bad_messages(message: object) -> None:
    """A message that is none is a ValueError that says what is wrong, and repeats nothing of it."""
    with pytest.raises(ValueError, match=r"\w+ \w+") as caught:
        wire.item(message)
    assert "Ana" not in str(caught.value)


def test_deep_message() -> None:
    """A message that is nested without end is refused before anything recurses through it."""
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(ValueError, match="deeper"):
        wire.item({"role": "user", "content": "x", "extra": deep})


CONVERSATION = [
    Item("system", "Be kind."),
    Item("system", "Be brief."),
    Item(
        "user",
        [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        ],
    ),
    Item("assistant", None, tool_calls=[CALL]),
    Item("tool", "late", tool_call_id="call_1"),
    Item("user", "And now?"),
    Item("assistant", "It is late."),
]


def test_responses() -> None:
    """The Responses format gets instructions, typed parts, calls and their outputs."""
    assert wire.responses(CONVERSATION) == {
        "instructions": "Be kind.\n\nBe brief.",
        "input": [
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "What is this?"},
                    {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "auto"},
                ],
            },
            {"type": "function_call", "call_id": "call_1", "name": "lookup", "arguments": '{"order": 48291}'},
            {"type": "function_call_output", "call_id": "call_1", "output": "late"},
            {"role": "user", "content": "And now?"},
            {"role": "assistant", "content": "It is late."},
        ],
    }


def test_anthropic() -> None:
    """The Anthropic format gets a system text, blocks, and the tool's result before what the user said next."""
    assert wire.anthropic(CONVERSATION) == {
        "system": "Be kind.\n\nBe brief.",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                ],
            },
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "call_1", "name": "lookup", "input": {"order": 48291}}],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "call_1", "content": "late"},
                    {"type": "text", "text": "And now?"},
                ],
            },
            {"role": "assistant", "content": "It is late."},
        ],
    }


def test_unsendable_part() -> None:
    """A part that a format cannot carry is refused, not dropped."""
    sound = Item("user", [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}])
    for convert in (wire.responses, wire.anthropic):
        with pytest.raises(ValueError, match="input_audio"):
            convert([sound])


def test_answer_item() -> None:
    """An answer becomes the assistant's item; a refusal is not sent back twice."""
    assert wire.answer_item(wire.read(chat_whole("", [CALL]))) == Item(
        "assistant", None, tool_calls=[CALL], usage=USAGE
    )
    refused = wire.answer_item(wire.read(chat_whole("", [], refusal="No.")))
    assert wire.chat([refused]) == [{"role": "assistant", "content": "No."}]
