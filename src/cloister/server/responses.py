"""Responses: turns of sessions, by the API's name for them, whole or streamed, and what was stored of them."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from cloister import wire
from cloister.content import memory_of
from cloister.model import Item as Stored
from cloister.model import Reply
from cloister.server import errors, ids, items, response_options, turns
from cloister.server.door import sse
from cloister.server.events import Event, Events, replayed
from cloister.server.refusals import Refused, invalid, unsupported
from cloister.server.response_objects import MOST_ECHO, Remembered, begun, described, message_id
from cloister.server.response_shapes import (
    Asked,
    Compaction,
    CountTokens,
    InputPaging,
    InputTokens,
    NewResponse,
    Reading,
    Response,
    ResponseDeleted,
)
from cloister.server.routes import Answer, Call, Route, Stream
from cloister.server.shapes import Item, Page
from cloister.session import OnExpired, Session
from cloister.sessions import new_item_id
from cloister.turn import Turn

_log = logging.getLogger("cloister.server")


@dataclass(slots=True)
class _Asking:
    """Be one request for a response: what is asked, where, and what is remembered of it."""

    session: Session
    question: turns.Question
    on_expired: OnExpired
    memory: Remembered
    truncate: bool
    after: str | None
    pieces: list[int] = field(default_factory=list)

    def arguments(self, call: Call) -> dict[str, Any]:
        given = self.question.arguments(call, on_expired=self.on_expired)
        return {**given, "truncate": self.truncate, "after": self.after}

    def remember(self, answer: wire.Answer) -> Mapping[str, Any]:
        self.memory.pieces = self.pieces
        return self.memory.kept(answer)


async def create(call: Call, body: NewResponse) -> Answer | Stream:
    """Answer, and store question and answer unless the request says otherwise."""
    asking = await _asking(call, body)
    if body.stream:
        streaming = _Streaming(call, asking)
        return Stream(streaming.pieces(), streaming.headers, asking.question.delivered)
    reply = await asking.session.send(asking.question.content, **asking.arguments(call))
    asking.question.reply = reply
    headers = turns.headers(reply) if asking.memory.store else {}
    body_of = _described(reply.session.stable_id, _answer(reply))
    return Answer(body_of, headers=headers, written=asking.question.delivered)


async def _asking(call: Call, body: NewResponse) -> _Asking:
    response_options.check(body)
    session, on_expired, after = await _session(call, body)
    taken = await _input(call, session, body)
    memory = Remembered(
        created_at=int(time.time()),
        model=body.model or call.model or "default",
        asked=response_options.echo(body),
        conversation=on_expired == "renew" or body.conversation is not None,
        inputs=len(taken),
        store=body.store is not False,
    )
    question = turns.Question(
        taken,
        model=body.model,
        options=response_options.options(body),
        system=turns.instructed(call, body.instructions, "instructions"),
        kept=memory.store,
    )
    _check_kept(memory)
    asking = _Asking(session, question, on_expired, memory, body.truncation != "disabled", after)
    question.remember = asking.remember
    return asking


def _check_kept(memory: Remembered) -> None:
    """Raise `Refused` for what could not be stored with an answer, before there is one."""
    kept = memory.kept(wire.Answer(""))
    try:
        memory_of(kept)
    except ValueError as error:
        raise invalid(str(error)) from None
    if len(msgspec.json.encode(kept)) > 2 * MOST_ECHO:  # the lengths of a streamed text are to find room besides
        raise invalid("this takes too much room to be stored with the answer", "metadata")


async def _session(call: Call, body: Asked) -> tuple[Session, OnExpired, str | None]:
    """Give the session in which the request goes on, or a new one; what is to be done if its time is up; and its end.

    The end is the item behind which the request stands, where that matters.
    """
    conversation, previous = body.conversation, body.previous_response_id
    header = call.headers.get(turns.SESSION)
    turns.one_of(("conversation", conversation), ("previous_response_id", previous), (turns.SESSION, header))
    if isinstance(body, NewResponse) and body.store is False:
        if conversation is not None or previous is not None or header is not None:
            raise unsupported("turns of a stored conversation that are not stored themselves", "store")
        return call.user.passing(), "raise", None
    if conversation is not None:
        name = conversation if isinstance(conversation, str) else conversation.id
        return await turns.resumed(call.user, name), "raise", None
    if previous is not None:
        session, answer, _ = await _found(call, previous)
        if session.item_count == _position(answer) + 1:
            return session, "raise", answer.id
        if await _answered(call, session):
            return session, "raise", answer.id
        # Not the last: it goes on in a session of its own, from what stood there then.
        return await session.branch(answer.id, model=turns.named(call, body.model)), "raise", None
    if header is not None:
        return await turns.resumed(call.user, header), "renew", None
    if isinstance(body, CountTokens):
        return call.user.passing(), "raise", None
    return await call.user.begin(), "raise", None


async def _answered(call: Call, session: Session) -> bool:
    """Say whether what went on behind a response is this very request, sent once before."""
    known = turns.once(call)
    if not known or ("idempotency_key" not in known and not known["retry"]):
        return False
    return await session.answered(known["request"], idempotency_key=known.get("idempotency_key"))


async def _input(call: Call, session: Session, body: Asked) -> list[Stored]:
    if not body.input:
        raise invalid("there is nothing to answer", "input", "missing_required_parameter")
    given = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    if len(given) > call.most_items:
        raise invalid(f"a request brings at most {call.most_items} items here", "input")
    known = None if body.conversation is None and body.previous_response_id is None else session
    given = await items.resolved(known, given, "input")
    items.allowed(call, given, "input")
    taken = items.taken(given, "input")
    if all(item.unsent for item in taken):
        raise invalid("nothing of this is what a model is sent", "input")
    return taken


class _Streaming:
    """Be a response while it is written."""

    def __init__(self, call: Call, asking: _Asking) -> None:
        self._call = call
        self._asking = asking
        self._turn: Turn[Session] | None = None
        self._events: Events | None = None

    def headers(self) -> Mapping[str, str]:
        """Say in which session the answer will lie; a token is known when it is stored, and not before."""
        turn, session = self._turn, self._asking.session
        if turn is None or session.id.startswith("ct_") or not self._asking.memory.store:
            return {}
        renewed = {turns.RENEWED: "true"} if turn.renewed and self._asking.on_expired == "renew" else {}
        return {turns.SESSION: ids.conversation(turn.session_id), **renewed}

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Give the events. Nothing comes before the first text, or the end: until then, a failure has a status."""
        asking, call = self._asking, self._call
        try:
            async with asking.session.stream(asking.question.content, **asking.arguments(call)) as stream:
                turn = self._turn = stream.turn
                if not turn.repeated:
                    async for text in stream.texts():
                        if text:
                            yield _said(self._piece(turn, text))
            asking.question.reply = stream.reply
            answer = _answer(stream.reply)
            if turn.repeated:
                yield _said(_again(turn.session_id, answer))
                return
            response = _described(turn.session_id, answer)
            yield _said([*self._begin(turn), *self._made(turn).end(response)])
        except Exception as error:
            if self._events is None:
                raise
            refused = errors.refusal(error)
            _log.error("%s failed while it was streamed: %s", call.request_id, type(error).__name__)
            yield _said(self._events.fail(refused.code, refused.message))

    def _piece(self, turn: Turn[Session], text: str) -> Iterable[Event]:
        yield from self._begin(turn)
        asking = self._asking
        if asking.memory.spoken is None:
            asking.memory.spoken = 1 if turn.thought else 0
        asking.pieces.append(len(text))
        kind = "refusal" if isinstance(text, wire.Refusal) else "output_text"
        yield from self._made(turn).piece(str(text), asking.memory.spoken, kind)

    def _begin(self, turn: Turn[Session]) -> Iterable[Event]:
        if self._events is None:
            yield from self._made(turn).begin()

    def _made(self, turn: Turn[Session]) -> Events:
        if self._events is None:
            nothing = begun(self._asking.memory, turn.session_id, turn.answer_id)
            self._events = Events(nothing, message_id(turn.answer_id))
        return self._events


async def get(call: Call) -> Answer | Stream:
    """Give a response that is stored, or its events from a number on."""
    reading: Reading = call.query
    for value in reading.include or ():
        response_options.check_include(value)
    if reading.starting_after is not None and not reading.stream:
        raise invalid("this goes with stream=true alone", "starting_after")
    session, answer, _ = await _found(call, call.path["response"])
    headers = turns.said(session.id)
    if not reading.stream:
        return Answer(_described(session.stable_id, answer), headers=headers)
    after = -1 if reading.starting_after is None else reading.starting_after
    events = [event for event in _again(session.stable_id, answer) if event["sequence_number"] > after]
    return Stream(_all(events), lambda: headers)


async def delete(call: Call) -> ResponseDeleted:
    """Leave a response and its input out of their conversation from now on."""
    session, answer, memory = await _found(call, call.path["response"])
    asked = await _inputs(session, answer, memory)
    try:
        await session.hide(*[item.id for item in asked], answer.id)
    except ValueError as error:  # too many were
        raise invalid(str(error), code="too_many_deleted") from None
    return ResponseDeleted(id=call.path["response"])


async def cancel(call: Call) -> Response:
    """Refuse to cancel: a response that can be named is finished."""
    await _found(call, call.path["response"])
    raise unsupported("background responses, and only those can be cancelled")


async def input_items(call: Call) -> Page[Item]:
    """List what came in with a response."""
    paging: InputPaging = call.query
    for value in paging.include or ():
        response_options.check_include(value)
    session, answer, memory = await _found(call, call.path["response"])
    listed = [entry for item in await _inputs(session, answer, memory) for entry in items.shown(item)]
    if paging.order == "desc":
        listed.reverse()
    if paging.after is not None:
        names = [entry["id"] for entry in listed]
        if paging.after not in names:
            raise invalid("there is no such item in this input to go on behind", "after")
        listed = listed[names.index(paging.after) + 1 :]
    page = listed[: paging.limit]
    first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    return Page(data=page, first_id=first, last_id=last, has_more=len(listed) > len(page))


async def count(call: Call, body: CountTokens) -> InputTokens:
    """Count what a request would send to the model, as this server counts; no model is asked."""
    response_options.check(body)
    session, *_ = await _session(call, body)
    counted = await session.count(
        await _input(call, session, body),
        model=turns.named(call, body.model),
        options=response_options.options(body),
        system=turns.instructed(call, body.instructions, "instructions"),
    )
    return InputTokens(input_tokens=counted)


async def compact(call: Call, body: Compaction) -> Response:
    """Refuse to compact: the window is fitted anew with every turn."""
    raise unsupported("compaction; it fits each conversation into the model's window by itself")


async def _found(call: Call, name: str) -> tuple[Session, Stored, Remembered]:
    """Give a response of the caller's: its session, its answer, what is remembered of it."""
    session_id, item_id = ids.turn(name)
    session = await call.user.resume(session_id, on_expired="raise")
    try:
        answer = await session.item(item_id)
    except ValueError:
        raise _absent() from None
    memory = Remembered.of(answer) if answer.role == "assistant" else None
    if memory is None:
        raise _absent()
    return session, answer, memory


async def _inputs(session: Session, answer: Stored, memory: Remembered) -> list[Stored]:
    """Give the items that came in with a response, without those that are hidden."""
    last = _position(answer)
    first = last - memory.inputs
    if not memory.inputs or first < 0:
        return []
    before = new_item_id(first - 1) if first else None
    listed = await session.history(limit=memory.inputs, after=before)
    return [item for item in listed if first <= _position(item) < last]


def _answer(reply: Reply[Session]) -> Stored:
    """Give the item of an answer; `Refused` where the turn was taken before, and its answer deleted since."""
    if not reply.items:
        raise _absent()
    return reply.items[-1]


def _position(item: Stored) -> int:
    return int(item.id.split("_")[1])


def _absent() -> Refused:
    return Refused(404, "invalid_request_error", "not_found", errors.NOT_FOUND)


def _described(session_id: str, answer: Stored) -> Response:
    memory = Remembered.of(answer)
    assert memory is not None
    return described(memory, session_id, answer)


def _again(session_id: str, answer: Stored) -> Iterable[Event]:
    """Give the events of a stored response once more."""
    memory = Remembered.of(answer)
    assert memory is not None
    nothing, response = begun(memory, session_id, answer.id), described(memory, session_id, answer)
    return replayed(nothing, response, message_id(answer.id), memory.pieces, memory.more)


async def _all(events: Iterable[Event]) -> AsyncGenerator[bytes, None]:
    for event in events:
        yield sse(event, event["type"])


def _said(events: Iterable[Event]) -> bytes:
    return b"".join(sse(event, event["type"]) for event in events)


ALL = "/v1/responses"
ONE = "/v1/responses/{response}"
ROUTES = (
    Route("POST", ALL, create, "Ask for a response", body=NewResponse, answer=Response, waits=True, streams=True),
    # Before those of one response, whose path they would match too.
    Route("POST", f"{ALL}/input_tokens", count, "Count the tokens of a request", body=CountTokens, answer=InputTokens),
    Route("POST", f"{ALL}/compact", compact, "Not offered", body=Compaction, answer=Response),
    Route("GET", ONE, get, "Read a response", query=Reading, answer=Response, streams=True),
    Route("DELETE", ONE, delete, "Leave a response out of its conversation", answer=ResponseDeleted),
    Route(
        "POST", f"{ONE}/cancel", cancel, "Not offered: only background responses could be cancelled", answer=Response
    ),
    Route(
        "GET", f"{ONE}/input_items", input_items, "List the input of a response", query=InputPaging, answer=Page[Item]
    ),
)
