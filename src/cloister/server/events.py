"""The events of a streamed response: numbered, in the API's order, and the same again when they are asked for later.

Text goes out as it comes. Everything else (what the model thought, which tools it called, a refusal's form) is known
once the whole answer was judged, and so comes behind the text, before ``response.completed``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from cloister.server.response_shapes import Response, ResponseError
from cloister.server.shapes import Item

Event = dict[str, Any]

_CALLS = {
    "function_call": ("arguments", "response.function_call_arguments"),
    "custom_tool_call": ("input", "response.custom_tool_call_input"),
}
_PARTS = {
    "output_text": ("text", "response.output_text"),
    "refusal": ("refusal", "response.refusal"),
    "reasoning_text": ("text", "response.reasoning_text"),
}
_FIELDS: dict[str, dict[str, Any]] = {
    "output_text": {"text": "", "annotations": [], "logprobs": []},
    "refusal": {"refusal": ""},
}
_ENDS = {
    "completed": "response.completed",
    "incomplete": "response.incomplete",
    "failed": "response.failed",
}


class Events:
    """Make the events of one response, each once and in order."""

    def __init__(self, begun: Response, message_id: str) -> None:
        self._begun = begun
        self._message_id = message_id
        self._number = 0
        self._index: int | None = None
        self._kind = "output_text"

    def begin(self) -> Iterator[Event]:
        """Say that the response has begun."""
        yield self._event("response.created", response=self._begun)
        yield self._event("response.in_progress", response=self._begun)

    def piece(self, text: str, index: int, kind: str = "output_text", more: int = 0) -> Iterator[Event]:
        """Say a piece of the message, which is the *index*th item; *kind* and *index* count when it begins.

        It may stand for so many *more*, whose numbers it takes along.
        """
        if self._index is None:
            self._index, self._kind = index, kind
            item = {"id": self._message_id, "type": "message", "status": "in_progress", "role": "assistant"}
            yield self._item("added", index, {**item, "content": []})
            yield self._part("added", self._message_id, index, 0, {"type": kind, **_FIELDS[kind]})
        self._number += more
        yield self._delta(self._kind, self._message_id, self._index, 0, text)

    def end(self, response: Response) -> Iterator[Event]:
        """Say the rest of a *response* that is whole and stored."""
        told = self._index
        for item in response.output:
            if told is not None and item["id"] == self._message_id:
                yield from self._message(item, told, begun=True)
        for index, item in enumerate(response.output):
            if told is None or item["id"] != self._message_id:
                yield from self._whole(item, index)
        yield self._event(_ENDS[response.status], response=response)

    def fail(self, code: str, message: str) -> Iterator[Event]:
        """Say that there will be no whole response: once as a response, and once so that clients raise an error."""
        error = ResponseError(code=code, message=message)
        failed = msgspec.structs.replace(self._begun, status="failed", error=error)
        yield self._event("response.failed", response=failed)
        said = {"type": "server_error", "code": code, "message": message, "param": None}
        yield self._event("error", code=code, message=message, param=None, error=said)

    def _whole(self, item: Item, index: int) -> Iterator[Event]:
        """Say an item of which nothing was said before."""
        kind = item["type"]
        if kind == "message":
            yield self._item("added", index, {**item, "status": "in_progress", "content": []})
            yield from self._message(item, index, begun=False)
        elif kind in _CALLS:
            yield from self._call(item, index, *_CALLS[kind])
        elif kind == "reasoning":
            yield from self._reasoning(item, index)
        else:
            yield self._item("added", index, item)
            yield self._item("done", index, item)

    def _message(self, item: Item, index: int, *, begun: bool) -> Iterator[Event]:
        for number, part in enumerate(item["content"]):
            yield from self._content(item["id"], index, number, part, begun=begun and number == 0)
        yield self._item("done", index, item)

    def _content(self, item_id: str, index: int, number: int, part: Item, *, begun: bool) -> Iterator[Event]:
        kind = part["type"]
        if kind not in _PARTS:
            return
        field, name = _PARTS[kind]
        if not begun:
            yield self._part("added", item_id, index, number, {**part, field: ""})
            yield self._delta(kind, item_id, index, number, part[field])
        place = {"item_id": item_id, "output_index": index, "content_index": number}
        beside: Event = {"logprobs": []} if kind == "output_text" else {}
        yield self._event(f"{name}.done", **place, **beside, **{field: part[field]})
        yield self._part("done", item_id, index, number, part)

    def _call(self, item: Item, index: int, field: str, name: str) -> Iterator[Event]:
        place = {"item_id": item["id"], "output_index": index}
        yield self._item("added", index, {**item, "status": "in_progress", field: ""})
        yield self._event(f"{name}.delta", **place, delta=item[field])
        beside = {"name": item["name"]} if field == "arguments" else {}
        yield self._event(f"{name}.done", **place, **beside, **{field: item[field]})
        yield self._item("done", index, item)

    def _reasoning(self, item: Item, index: int) -> Iterator[Event]:
        bare = {name: value for name, value in item.items() if name not in ("content", "status")}
        yield self._item("added", index, {**bare, "status": "in_progress", "summary": []})
        for number, part in enumerate(item.get("summary") or ()):
            place = {"item_id": item["id"], "output_index": index, "summary_index": number}
            yield self._event("response.reasoning_summary_part.added", **place, part={**part, "text": ""})
            yield self._event("response.reasoning_summary_text.delta", **place, delta=part["text"])
            yield self._event("response.reasoning_summary_text.done", **place, text=part["text"])
            yield self._event("response.reasoning_summary_part.done", **place, part=part)
        for number, part in enumerate(item.get("content") or ()):
            yield from self._content(item["id"], index, number, part, begun=False)
        yield self._item("done", index, item)

    def _item(self, what: str, index: int, item: Item) -> Event:
        return self._event(f"response.output_item.{what}", output_index=index, item=item)

    def _part(self, what: str, item_id: str, index: int, number: int, part: Item) -> Event:
        place = {"item_id": item_id, "output_index": index, "content_index": number}
        return self._event(f"response.content_part.{what}", **place, part=part)

    def _delta(self, kind: str, item_id: str, index: int, number: int, text: str) -> Event:
        place = {"item_id": item_id, "output_index": index, "content_index": number}
        beside: Event = {"logprobs": []} if kind == "output_text" else {}
        return self._event(f"{_PARTS[kind][1]}.delta", **place, **beside, delta=text)

    def _event(self, kind: str, **said: Any) -> Event:
        event = {"type": kind, "sequence_number": self._number, **said}
        self._number += 1
        return event


def replayed(
    begun: Response, response: Response, message_id: str, lengths: Sequence[int], more: int = 0
) -> Iterator[Event]:
    """Give the events of a stored response once more, its text in pieces of the same *lengths*.

    The last piece stands for itself and so many *more*, so that what follows has the numbers that it had.
    """
    events = Events(begun, message_id)
    yield from events.begin()
    index = next((index for index, item in enumerate(response.output) if item["id"] == message_id), None)
    if index is not None and lengths:
        part = response.output[index]["content"][0]
        pieces = list(cut(part[_PARTS[part["type"]][0]], lengths))
        for piece in pieces[:-1]:
            yield from events.piece(piece, index, part["type"])
        yield from events.piece(pieces[-1], index, part["type"], more)
    yield from events.end(response)


def cut(text: str, lengths: Sequence[int]) -> Iterator[str]:
    """Cut *text* into pieces of these *lengths*, the last of which takes what is left."""
    position = 0
    for number, length in enumerate(lengths, 1):
        end = len(text) if number == len(lengths) else position + length
        yield text[position:end]
        position = end
