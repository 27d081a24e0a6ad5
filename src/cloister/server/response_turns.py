"""A turn, asked for as a response: where it goes on, what comes in, and its events while it is written."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from cloister import wire
from cloister.content import memory_of
from cloister.errors import OptionRefused, SessionConflict
from cloister.model import Item as Stored
from cloister.server import errors, ids, items, response_options, turns
from cloister.server.door import sse
from cloister.server.events import Event, Events, replayed
from cloister.server.refusals import Refused, invalid, unsupported
from cloister.server.response_objects import MOST_ECHO, Remembered, begun, described, message_id
from cloister.server.response_shapes import (
    Asked,
    CountTokens,
    NewResponse,
    Response,
)
from cloister.server.routes import Call
from cloister.session import OnExpired, Session
from cloister.stream import ReplyStream
from cloister.turn import Turn

ResultT = TypeVar("ResultT")


@dataclass(slots=True)
class Asking:
    """Be one request for a response: what is asked, where, and what is remembered of it."""

    session: Session
    question: turns.Question
    on_expired: OnExpired
    known: Mapping[str, Any]
    """By what the request is known again."""
    memory: Remembered
    truncate: bool
    after: str | None
    otherwise: Callable[[], Awaitable[Session]] | None = None
    """Gives where it goes on instead, if it has not come before and the session has gone on."""
    pieces: list[int] = field(default_factory=list)

    def arguments(self, call: Call) -> dict[str, Any]:
        given = self.question.arguments(call, self.known, on_expired=self.on_expired)
        return {**given, "content": self.question.content, "truncate": self.truncate, "after": self.after}

    async def put(self, call: Call, way: Callable[[Session, dict[str, Any]], Awaitable[ResultT]]) -> ResultT:
        """Ask in its session, *way* says how; where that has gone on, and there is another to go on in, in that."""
        try:
            return await way(self.session, self.arguments(call))
        except SessionConflict:
            if self.otherwise is None:
                raise
        except OptionRefused as error:
            if self.question.content or error.option != "messages":
                raise
            raise nothing() from None
        self.session, self.after, self.otherwise = await self.otherwise(), None, None
        return await way(self.session, self.arguments(call))

    def remember(self, answer: wire.Answer) -> Mapping[str, Any]:
        self.memory.pieces = self.pieces
        return self.memory.kept(answer)


async def asking_of(call: Call, body: NewResponse) -> Asking:
    """Take a request, and find where it goes on; `Refused` for what is not offered or not to be stored."""
    response_options.check(body)
    known = turns.once(call, kept=body.store is not False)
    session, on_expired, after = await session_of(call, body)
    otherwise = None
    if after is not None and session.item_count != position_of(after) + 1:
        # Not the last: it goes on in a session of its own, from what stood there then; or this request is what came
        # behind it, and comes once more.
        branch = functools.partial(session.branch, after, model=turns.named(call, body.model))
        if known.get("idempotency_key") or known.get("retry"):
            otherwise = branch
        else:
            session, after = await branch(), None
    taken = await input_of(call, session, body)
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
    whole = body.truncation == "disabled"
    asking = Asking(session, question, on_expired, known, memory, not whole, after, otherwise)
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


async def session_of(call: Call, body: Asked) -> tuple[Session, OnExpired, str | None]:
    """Give the session in which the request goes on, or a new one; what is to be done if its time is up; and its end.

    The end is the item behind which the request stands, where that matters; the session may have gone on.
    """
    conversation, previous = body.conversation, body.previous_response_id
    reach = turns.resumed if isinstance(body, CountTokens) else turns.at
    header = call.headers.get(turns.SESSION)
    turns.one_of(("conversation", conversation), ("previous_response_id", previous), (turns.SESSION, header))
    if isinstance(body, NewResponse) and body.store is False:
        if conversation is not None or previous is not None or header is not None:
            raise unsupported("turns of a stored conversation that are not stored themselves", "store")
        return call.user.passing(), "raise", None
    if conversation is not None:
        name = conversation if isinstance(conversation, str) else conversation.id
        return await reach(call.user, name), "raise", None
    if previous is not None:
        session, answer, _ = await found(call, previous)
        return session, "raise", answer.id
    if header is not None and header != turns.NEW:
        return await reach(call.user, header), "renew", None
    if isinstance(body, CountTokens):
        return call.user.passing(), "raise", None
    return await call.user.begin(), "raise", None


async def input_of(call: Call, session: Session, body: Asked) -> list[Stored]:
    if not body.input:
        there = body.conversation is not None or call.headers.get(turns.SESSION, turns.NEW) != turns.NEW
        if isinstance(body, CountTokens) or (there and body.input != ""):
            return []  # what is there without it
        raise nothing()
    given = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    call.bound(given, "input")
    known = None if body.conversation is None and body.previous_response_id is None else session
    given = await items.resolved(known, given, "input")
    items.allowed(call, given, "input")
    taken = items.taken(given, "input")
    if all(item.unsent for item in taken):
        raise invalid("nothing of this is what a model is sent", "input")
    return taken


def nothing() -> Refused:
    """Give the refusal of a request without input, where nothing was said before that waits for an answer."""
    said = "there is nothing to answer: give an input, or a conversation whose newest items were not answered yet"
    return invalid(said, "input", "missing_required_parameter")


class Streaming:
    """Be a response while it is written."""

    def __init__(self, call: Call, asking: Asking) -> None:
        self._call = call
        self._asking = asking
        self._stream: ReplyStream[Session] | None = None
        self._events: Events | None = None

    def headers(self) -> Mapping[str, str]:
        """Say in which session the answer will lie; a token is known when it is stored, and not before."""
        if self._stream is None or not self._asking.memory.store:
            return {}
        return turns.headers_of(self._call, self._stream)

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Give the events. Nothing comes before the first text, or the end: until then, a failure has a status."""
        try:
            async with contextlib.AsyncExitStack() as stack:
                stack.enter_context(response_options.named())
                stream = self._stream = await self._asking.put(
                    self._call, lambda session, given: stack.enter_async_context(session.stream(**given))
                )
                turn = stream.turn
                if not turn.repeated:
                    async for text in stream.texts():
                        if text:
                            yield _said(self._piece(turn, text))
            answer = turns.had(self._asking.question, stream.reply).items[-1]
            if turn.repeated:
                yield _said(again(turn.session_id, answer))
                return
            response = whole(turn.session_id, answer)
            yield _said([*self._begin(turn), *self._made(turn).end(response)])
        except Exception as error:
            if self._events is None:
                raise
            refused = errors.refusal(error)
            errors.log(error, self._call.request_id, refused.status, streamed=True)
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


async def found(call: Call, name: str) -> tuple[Session, Stored, Remembered]:
    """Give a response of the caller's: its session, its answer, what is remembered of it."""
    session_id, item_id = ids.turn(name)
    session = await call.user.at(session_id)
    try:
        answer = await session.item(item_id)
    except ValueError:
        raise _absent() from None
    memory = Remembered.of(answer) if answer.role == "assistant" else None
    if memory is None:
        raise _absent()
    return session, answer, memory


def position(item: Stored) -> int:
    return position_of(item.id)


def position_of(item_id: str) -> int:
    return int(item_id.split("_")[1])


def _absent() -> Refused:
    return Refused(404, "invalid_request_error", "not_found", errors.NOT_FOUND)


def whole(session_id: str, answer: Stored) -> Response:
    memory = Remembered.of(answer)
    assert memory is not None
    return described(memory, session_id, answer)


def again(session_id: str, answer: Stored) -> Iterable[Event]:
    """Give the events of a stored response once more."""
    memory = Remembered.of(answer)
    assert memory is not None
    nothing, response = begun(memory, session_id, answer.id), described(memory, session_id, answer)
    return replayed(nothing, response, message_id(answer.id), memory.pieces, memory.more)


def _said(events: Iterable[Event]) -> bytes:
    return b"".join(sse(event, event["type"]) for event in events)
