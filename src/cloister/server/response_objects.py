"""A response, made from the answer that is stored: the same whenever it is asked for.

A response is a turn. Its text, calls and usage are those of the answer's item; what the API wants to know besides lies
sealed in that item, as `Remembered`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from cloister import wire
from cloister.model import REMEMBERED, Usage
from cloister.model import Item as Stored
from cloister.server import ids, items
from cloister.server.response_shapes import (
    ConversationId,
    Echo,
    IncompleteDetails,
    InputDetails,
    OutputDetails,
    Response,
    ResponseUsage,
    Status,
)
from cloister.server.shapes import Item

MOST_PIECES = 8_192
"""How many pieces of a streamed text are remembered one by one; what came after them is given as the last one."""
MOST_ECHO = 12_288
"""How long, as JSON, instructions and tools may be to be remembered: every turn that reads the answer reads them."""

_ENDS: dict[str | None, tuple[Status, str | None]] = {
    "length": ("incomplete", "max_output_tokens"),
    "content_filter": ("incomplete", "content_filter"),
}


class Remembered(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Be what is stored of a response beside the answer."""

    created_at: int
    model: str
    """What was asked for, as far as it was named."""
    answered_by: str | None = None
    finish_reason: str | None = None
    asked: Echo = msgspec.field(default_factory=Echo)
    conversation: bool = False
    inputs: int = 0
    """How many items came in, which stand before the answer."""
    pieces: list[int] = []
    more: int = 0
    """How many pieces were streamed besides, which are given as part of the last."""
    spoken: int | None = None
    """Which of the output the message is, where it was streamed before the rest was known."""
    store: bool = True

    def kept(self, answer: wire.Answer) -> dict[str, Any]:
        """Give it, with what became of the answer, as it is stored."""
        kept = msgspec.structs.replace(
            self,
            answered_by=answer.model,
            finish_reason=answer.finish_reason,
            asked=_short(self.asked),
            pieces=_bounded(self.pieces),
            more=max(0, len(self.pieces) - MOST_PIECES),
        )
        values: dict[str, Any] = msgspec.to_builtins(kept)
        return values

    @classmethod
    def of(cls, answer: Stored) -> Remembered | None:
        """Read it from a stored answer; None for an item that is no response's."""
        try:
            return msgspec.convert((answer.extra or {}).get(REMEMBERED), cls)
        except msgspec.ValidationError:
            return None


def begun(memory: Remembered, session_id: str, answer_id: str) -> Response:
    """Give a response to which nothing was said yet."""
    return _made(memory, session_id, answer_id, status="in_progress", model=memory.model)


def described(memory: Remembered, session_id: str, answer: Stored) -> Response:
    """Give the response that ended with the stored *answer*."""
    status, reason = _ENDS.get(memory.finish_reason, ("completed", None))
    return _made(
        memory,
        session_id,
        answer.id,
        status=status,
        model=memory.answered_by or memory.model,
        completed_at=max(memory.created_at, int(answer.time.timestamp()) if answer.time else 0),
        incomplete_details=None if reason is None else IncompleteDetails(reason=reason),  # type: ignore[arg-type]
        output=_ordered([_marked(item, status) for item in items.shown(answer)], memory.spoken),
        usage=_used(answer.usage or Usage()),
    )


def message_id(answer_id: str) -> str:
    """Give the id that the message of an answer has."""
    return items.message_id(answer_id)


def _made(memory: Remembered, session_id: str, answer_id: str, **known: Any) -> Response:
    echoed = {name: getattr(memory.asked, name) for name in memory.asked.__struct_fields__}
    # What was streamed is said with one default for each, so it is complete whatever was remembered.
    return Response(
        **echoed,
        id=ids.response(session_id, answer_id),
        created_at=memory.created_at,
        store=memory.store,
        conversation=ConversationId(id=ids.conversation(session_id)) if memory.conversation else None,
        **known,
    )


def _ordered(output: list[Item], spoken: int | None) -> list[Item]:
    """Put the message where it stood in the stream."""
    at = next((index for index, item in enumerate(output) if item["type"] == "message"), None)
    if at is not None and spoken is not None:
        output.insert(min(spoken, len(output) - 1), output.pop(at))
    return output


def _marked(item: Item, status: Status) -> Item:
    return {**item, "status": "incomplete"} if status == "incomplete" and item["type"] == "message" else item


def _used(usage: Usage) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=usage.input_tokens,
        input_tokens_details=InputDetails(
            cached_tokens=usage.cached_tokens, cache_write_tokens=usage.cache_write_tokens
        ),
        output_tokens=usage.output_tokens,
        output_tokens_details=OutputDetails(reasoning_tokens=usage.reasoning_tokens),
        total_tokens=usage.total_tokens,
    )


def _short(asked: Echo) -> Echo:
    """Leave out what is too long to be stored with every answer: it is the client's own, which has it."""
    for name, empty in (("tools", []), ("text", None), ("instructions", None), ("tool_choice", "auto")):
        if len(msgspec.json.encode(asked)) <= MOST_ECHO:
            break
        asked = msgspec.structs.replace(asked, **{name: Echo().text if name == "text" else empty})
    return asked


def _bounded(pieces: Sequence[int]) -> list[int]:
    if len(pieces) <= MOST_PIECES:
        return list(pieces)
    return [*pieces[: MOST_PIECES - 1], sum(pieces[MOST_PIECES - 1 :])]
