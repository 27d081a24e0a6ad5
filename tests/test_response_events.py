"""The events of streamed responses: their order, numbers and replay, and what becomes of a stream that fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes import Parrot
from tests.serving import Served, credentials, served
from tests.test_responses import MODEL, WEATHER, check_item, check_response, completion

from cloister import LeakGuard, wire
from cloister.errors import ProviderError, StoreUnavailable
from cloister.model import Item
from cloister.providers.base import Request
from cloister.providers.offline import Offline
from cloister.server.events import Event, Events, cut, replayed
from cloister.server.response_objects import MOST_PIECES, Remembered, begun, described, message_id
from cloister.server.response_shapes import Response

SESSION = "cs_" + "A" * 43
ANSWER = "item_1_0123456789ab"
_LASTS = ("response.completed", "response.incomplete", "response.failed")


class Chunks(Parrot):
    """A provider that streams the chunks it is given; an exception among them is raised there."""

    def __init__(self, *chunks: Any) -> None:
        super().__init__()
        self.chunks = chunks

    async def stream(self, request: Request) -> AsyncIterator[Any]:  # type: ignore[override]
        self.requests.append(request)
        self.open_streams += 1
        try:
            for chunk in self.chunks:
                await asyncio.sleep(0)
                if isinstance(chunk, BaseException):
                    raise chunk
                yield chunk
        finally:
            self.open_streams -= 1


def calling(*calls: dict[str, Any]) -> list[dict[str, Any]]:
    """Chunks of an answer that says something and calls tools."""
    told = [{"index": number, **call} for number, call in enumerate(calls)]
    return [chunk(content="Let me look that up."), chunk(tool_calls=told), chunk("tool_calls")]


WEATHER_CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"a": "Paris"}'}}


def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    """One chunk of the chat format."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"object": "chat.completion.chunk", "model": "m-1", "choices": [choice]}


def check_events(events: list[dict[str, Any]]) -> None:
    """Raise AssertionError unless these are the events of one response, from the first to the last, in order."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] in _LASTS or kinds[-2:] == ["response.failed", "error"]
    lives = [event["response"] for event in events if "response" in event]
    assert len({response["id"] for response in lives}) == 1
    for response in lives:
        check_response(response)
    open_items: dict[int, dict[str, Any]] = {}
    open_parts: dict[tuple[int, int], str] = {}
    done: dict[int, dict[str, Any]] = {}
    for event in events[2:]:
        kind, index = event["type"], event.get("output_index", -1)
        if kind == "response.output_item.added":
            assert index not in open_items
            assert index not in done
            open_items[index] = event["item"]
            assert not event["item"].get("content")
        elif kind == "response.output_item.done":
            assert open_items.pop(index)["id"] == event["item"]["id"]
            assert not [place for place in open_parts if place[0] == index]
            check_item(event["item"])
            done[index] = event["item"]
        elif index >= 0:
            assert open_items[index]["id"] == event["item_id"]
            place = (index, event.get("content_index", event.get("summary_index", 0)))
            _check_part(event, kind, place, open_parts)
    last = next(event for event in reversed(events) if event["type"] in _LASTS)
    if last["type"] != "response.failed":
        assert not open_items
        assert [done[index] for index in sorted(done)] == last["response"]["output"]
        assert last["response"]["status"] == last["type"].removeprefix("response.")


def _check_part(event: Event, kind: str, place: tuple[int, int], open_parts: dict[tuple[int, int], str]) -> None:
    call = "_call" in kind
    if kind.endswith("part.added"):
        assert place not in open_parts
        open_parts[place] = ""
    elif kind.endswith(".delta"):
        assert call or place in open_parts
        open_parts[place] = open_parts.get(place, "") + event["delta"]
    elif kind.endswith("part.done"):
        assert open_parts.pop(place) == "done"
    else:
        text = next(event[name] for name in ("text", "refusal", "arguments", "input") if name in event)
        assert open_parts.pop(place).endswith(text)
        if not call:
            open_parts[place] = "done"


async def events_of(server: Served, given: Any = "Hello, how are you?", **more: Any) -> list[dict[str, Any]]:
    """Everything that a streamed response says, as it came."""
    answer = await server.ask("POST", "/responses", {"model": MODEL, "input": given, "stream": True, **more})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream"
    return parsed(answer.text)


def parsed(text: str) -> list[dict[str, Any]]:
    """The events in a body; each says its name twice."""
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event: dict[str, Any] = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


def deltas(events: list[dict[str, Any]], kind: str = "output_text") -> str:
    return "".join(event["delta"] for event in events if event["type"] == f"response.{kind}.delta")


async def test_the_checker_rejects_what_is_out_of_order() -> None:
    """Events that are missing, repeated or swapped, or a done that says other than its deltas, are found out."""
    async with served() as server:
        events = await events_of(server)
        check_events(events)
        for number in range(len(events) - 1):
            rest = [{**event} for event in events[:number] + events[number + 1 :]]
            for at, event in enumerate(rest):
                event["sequence_number"] = at
            if events[number]["type"] != "response.output_text.delta":
                with pytest.raises((AssertionError, KeyError)):
                    check_events(rest)
        wrong = [{**event, "text": "else"} if event["type"].endswith("text.done") else event for event in events]
        with pytest.raises(AssertionError):
            check_events(wrong)
        with pytest.raises(AssertionError):
            check_events([*events[:-1], {**events[-1], "sequence_number": 0}])


# --- as it is written -------------------------------------------------------------------------------------------------


async def test_text_comes_in_pieces_and_makes_the_whole() -> None:
    """The deltas joined are the text of the response, which is the same when it is asked for later."""
    async with served() as server:
        events = await events_of(server, instructions="Be kind.", metadata={"a": "b"})
        check_events(events)
        assert len([event for event in events if event["type"].endswith("text.delta")]) > 1
        response = events[-1]["response"]
        assert deltas(events) == response["output"][0]["content"][0]["text"] == "You said: Hello, how are you? "
        assert (await server.ask("GET", f"/responses/{response['id']}")).json() == response
        assert events[0]["response"]["instructions"] == "Be kind."
        assert events[0]["response"]["usage"] is None


async def test_the_stream_helper_of_the_sdk_is_content() -> None:
    """It accepts every event, and its final response is the stored one."""
    for chunks in (
        [chunk(content="Four."), chunk("stop")],
        calling(WEATHER_CALL),
        [chunk(reasoning_content="Two and two."), chunk(content="Four."), chunk("stop")],
    ):
        async with served(provider=Chunks(*chunks)) as server:
            client = server.client()
            async with client.responses.stream(model=MODEL, input="Hello.", tools=[WEATHER]) as stream:
                async for _ in stream:
                    pass
                final = await stream.get_final_response()
            stored = await client.responses.retrieve(final.id)
            assert [getattr(item, "id", "") for item in final.output] == [
                getattr(item, "id", 0) for item in stored.output
            ]
            assert final.output_text == stored.output_text


async def test_tool_calls_come_whole_behind_the_text() -> None:
    """A call has events of its own, before the response is complete."""
    async with served(provider=Chunks(*calling(WEATHER_CALL))) as server:
        events = await events_of(server, tools=[WEATHER])
        check_events(events)
        kinds = [event["type"] for event in events]
        assert deltas(events) == "Let me look that up."
        assert deltas(events, "function_call_arguments") == '{"a": "Paris"}'
        assert kinds.index("response.output_text.delta") < kinds.index("response.function_call_arguments.delta")
        assert [item["type"] for item in events[-1]["response"]["output"]] == ["message", "function_call"]


@pytest.mark.parametrize("thinks_first", [True, False])
async def test_what_a_model_thinks_stands_where_it_thought_it(thinks_first: bool) -> None:
    """Reasoning comes when it was judged, behind the text, and has its place before or behind it all the same."""
    thought, text = chunk(reasoning_content="Two and two."), chunk(content="That is an easy one, it is four.")
    order = [thought, text] if thinks_first else [text, thought]
    async with served(provider=Chunks(*order, chunk("stop"))) as server:
        events = await events_of(server)
        check_events(events)
        assert deltas(events, "reasoning_text") == "Two and two."
        output = events[-1]["response"]["output"]
        assert [item["type"] for item in output] == ["reasoning", "message"][:: 1 if thinks_first else -1]
        again = await server.ask("GET", f"/responses/{events[-1]['response']['id']}?stream=true")
        assert parsed(again.text) == events


async def test_a_refusal_is_streamed_as_one() -> None:
    """What a model refuses with is a part of its own kind from the first piece on."""
    async with served(provider=Chunks(chunk(refusal="I will "), chunk(refusal="not."), chunk("stop"))) as server:
        events = await events_of(server)
        check_events(events)
        assert deltas(events, "refusal") == "I will not."
        assert not deltas(events)
        assert events[-1]["response"]["output"][0]["content"] == [{"type": "refusal", "refusal": "I will not."}]


async def test_a_stream_that_the_model_cut_off_is_incomplete() -> None:
    """It ends with response.incomplete, and says why."""
    async with served(provider=Chunks(chunk(content="It is"), chunk("length"))) as server:
        events = await events_of(server)
        check_events(events)
        assert events[-1]["type"] == "response.incomplete"
        assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


@pytest.mark.parametrize("hold", ["feature", "reply"])
async def test_nothing_of_anothers_details_is_streamed(hold: Any) -> None:
    """The safe text follows what was said before; it alone is in the response, with tools in the question too."""
    secret = ["The order ", "QX-77", "31-84 is ", "for Sarah ", "Kowalczyk."]
    async with served(leaks=LeakGuard(hold=hold)) as server:
        await server.client("ana").responses.create(model=MODEL, input="My order is QX-7731-84, I am Sarah Kowalczyk.")
        server.provider.answer = "".join(secret)
        call: Any = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"}
        output: Any = {"type": "function_call_output", "call_id": "call_1", "output": "7731"}
        for question in ("Whose?", [{"role": "user", "content": "Whose?"}, call, output], [call, output]):
            body: Any = {"model": MODEL, "input": question, "stream": True}
            answer = await server.ask("POST", "/responses", body, user="ben")
            assert "7731" not in answer.text
            assert "Kowalczyk" not in answer.text
            events = parsed(answer.text)
            check_events(events)
            assert events[-1]["type"] == "response.incomplete"
            assert events[-1]["response"]["incomplete_details"] == {"reason": "content_filter"}
            name = events[-1]["response"]["id"]
            again = await server.ask("GET", f"/responses/{name}?stream=true", user="ben")
            replay = parsed(again.text)
            check_events(replay)
            assert [event["type"] for event in replay] == [event["type"] for event in events]
            assert replay[-1] == events[-1]
            assert "7731" not in again.text


# --- once more --------------------------------------------------------------------------------------------------------


async def test_a_stream_is_replayed_as_it_was() -> None:
    """The same events with the same numbers, and from any number on only those behind it."""
    provider, events = Chunks(), list[dict[str, Any]]()
    async with served(provider=provider) as server:
        for chunks in (
            [chunk(content=f"This is part {number}, and it is long. ") for number in range(5)] + [chunk("stop")],
            calling(WEATHER_CALL),
            [chunk(reasoning_content="Hm."), chunk(content="I do not know."), chunk("stop")],
        ):
            provider.chunks = tuple(chunks)
            events = await events_of(server)
            one = f"/responses/{events[0]['response']['id']}?stream=true"
            assert parsed((await server.ask("GET", one)).text) == events
            for number in range(len(events) - 1):
                rest = await server.ask("GET", f"{one}&starting_after={number}")
                assert parsed(rest.text) == events[number + 1 :]
            assert not (await server.ask("GET", f"{one}&starting_after=999")).content
        alone = await server.ask("GET", f"/responses/{events[0]['response']['id']}?starting_after=1")
        assert alone.json()["error"]["code"] == "invalid_value"


async def test_a_response_that_was_not_streamed_can_be() -> None:
    """Each of its items comes in one piece: text, reasoning, calls of functions and of custom tools."""
    async with served() as server:
        custom = {"id": "call_2", "type": "custom", "custom": {"name": "sql", "input": "SELECT 1"}}
        said = {"content": "Wait.", "reasoning_content": "Hm.", "tool_calls": [WEATHER_CALL, custom, WEATHER_CALL]}
        server.provider.answer = completion(said, "tool_calls")
        response = await server.client().responses.create(model=MODEL, input="Hello.", tools=[WEATHER])
        events = parsed((await server.ask("GET", f"/responses/{response.id}?stream=true")).text)
        check_events(events)
        assert (deltas(events), deltas(events, "reasoning_text")) == ("Wait.", "Hm.")
        assert deltas(events, "custom_tool_call_input") == "SELECT 1"
        kinds = [item["type"] for item in events[-1]["response"]["output"]]
        assert kinds == ["reasoning", "message", "function_call", "custom_tool_call", "function_call"]


async def test_nobody_resumes_anothers_stream() -> None:
    """Ben, with Ana's id and number, is answered as if there were none."""
    async with served() as server:
        name = (await events_of(server))[0]["response"]["id"]
        theirs = await server.ask("GET", f"/responses/{name}?stream=true&starting_after=2", user="ben")
        absent = await server.ask("GET", "/responses/resp_x?stream=true&starting_after=2", user="ben")
        assert (theirs.status_code, theirs.content) == (404, absent.content)


@given(st.lists(st.text(min_size=1), min_size=1, max_size=8), st.integers(0, 9))
def test_wherever_a_text_is_cut_it_is_the_same(pieces: list[str], extra: int) -> None:
    """Events of a text in any pieces are in order, come to the same response, and are the same in the replay."""
    text = "".join(pieces)
    memory = Remembered(created_at=1, model="m", pieces=[len(piece) for piece in pieces], spoken=0)
    kept = remembered(memory)
    whole = described(kept, SESSION, stored(text))
    events = Events(begun(kept, SESSION, ANSWER), message_id(ANSWER))
    first = [*events.begin(), *[event for piece in pieces for event in events.piece(piece, 0)], *events.end(whole)]
    assert plain(first) == plain(replay(kept, whole))
    check_events(plain(first))
    assert deltas(plain(first)) == text
    assert "".join(cut(text, [*kept.pieces, *[1] * extra])) == text


def test_a_text_in_very_many_pieces_keeps_its_numbers() -> None:
    """Beyond a bound the rest of the pieces is one, and what follows has the numbers that it had."""
    count = MOST_PIECES + 100
    memory = Remembered(created_at=1, model="m", pieces=[2] * count)
    kept = remembered(memory)
    assert len(kept.pieces) == MOST_PIECES
    whole = described(kept, SESSION, stored("ab" * count))
    events = plain(replay(kept, whole))
    assert deltas(events) == "ab" * count
    assert events[-1]["sequence_number"] == 4 + count + 3


def remembered(memory: Remembered) -> Remembered:
    """What is read back of what is stored."""
    kept = Remembered.of(Item("assistant", "", extra={"response": memory.kept(wire.Answer("", finish_reason="stop"))}))
    assert kept is not None
    return kept


def stored(text: str) -> Item:
    return Item("assistant", text, id=ANSWER, usage=None)


def replay(kept: Remembered, whole: Response) -> Iterator[Event]:
    return replayed(begun(kept, SESSION, ANSWER), whole, message_id(ANSWER), kept.pieces, kept.more)


def plain(events: Any) -> list[dict[str, Any]]:
    """Events as a client reads them; a usage of nothing is not what a model comes to."""
    from cloister.server.door import sse

    read = [json.loads(sse(event)[6:]) for event in events]
    for event in read:
        if event.get("response", {}).get("usage"):
            event["response"]["usage"] |= {"input_tokens": 1, "total_tokens": 1}
    return read


# --- when it fails ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [ProviderError("canary"), RuntimeError("canary"), {"error": {"code": "canary"}}, {"choices": 7}, None],
    ids=["500", "dropped", "error", "malformed", "truncated"],
)
async def test_a_stream_that_breaks_off_says_so_and_leaves_nothing(fault: Any) -> None:
    """After the first piece a failure is an event that clients raise; no end of the text is made up, nothing stored."""
    said = [chunk(content=f"This is part {number}, and it is long. ") for number in range(3)]
    chunks = [*said, *([fault] if fault is not None else [])]
    async with served(provider=Chunks(*chunks)) as server:
        client = server.client()
        conversation = (await client.conversations.create()).id
        events = await events_of(server, conversation=conversation)
        check_events(events)
        assert [event["type"] for event in events[-2:]] == ["response.failed", "error"]
        assert events[-2]["response"]["error"]["code"] == "provider_error"
        assert "canary" not in str(events)
        assert not (await client.conversations.items.list(conversation)).data
        with pytest.raises(openai.APIError):
            async for _ in await client.responses.create(
                model=MODEL, input="Again.", stream=True, conversation=conversation
            ):
                pass
        missing = await server.ask("GET", f"/responses/{events[0]['response']['id']}")
        assert missing.status_code == 404


async def test_a_response_is_complete_only_when_it_is_stored() -> None:
    """A commit that fails after the last word is a failure, never `response.completed`."""
    async with served() as server:

        async def down(*_: Any) -> Any:
            raise StoreUnavailable("down")

        server.store.answers["create"] = down
        events = await events_of(server)
        check_events(events)
        assert events[-2]["response"]["error"]["code"] == "store_unavailable"


async def test_an_endless_stream_ends_when_its_reader_goes() -> None:
    """A client that goes away ends the model's call; nothing of the turn is stored, and what was spent is booked."""
    async with served(provider=Offline(cut=2, hang=True)) as server:
        offline: Any = server.provider
        user = server.cloister.user("ana", tenant="acme")
        session = await user.start()
        name = "conv_" + session.id.removeprefix("cs_")
        body = json.dumps({"model": "x", "input": "My name is Ana.", "stream": True, "conversation": name}).encode()
        gone, sent = asyncio.Event(), list[bytes]()
        messages: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message.get("body", b""))

        headers = {
            **{
                "authorization": f"Bearer {credentials('acme')}",
                "cloister-user": "ana",
                "content-type": "application/json",
            },
        }
        scope: dict[str, Any] = {
            **{"type": "http", "method": "POST", "path": "/v1/responses", "raw_path": b"/v1/responses"},
            **{"query_string": b"", "scheme": "http", "client": ("127.0.0.1", 1), "root_path": ""},
            "headers": [(key.encode(), value.encode()) for key, value in headers.items()],
        }
        request = asyncio.create_task(server.app(scope, receive, send))
        await asyncio.wait_for(offline.hanging.wait(), 10)
        gone.set()
        await asyncio.wait_for(request, 10)
        assert not offline.hanging.is_set()
        assert b"response.completed" not in b"".join(sent)
        session = await user.resume(session.id)
        assert session.item_count == 0
        assert session.usage.output_tokens > 0
        assert "turn.failed" in [entry.event for entry in await server.entries()]
        offline.hang, offline.cut = False, None
        again = await server.ask("POST", "/responses", {"model": "x", "input": "Hello.", "conversation": name})
        assert again.status_code == 200  # the lease was given back
