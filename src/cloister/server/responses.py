"""Responses: turns of sessions, by the API's name for them, whole or streamed, and what was stored of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable

from cloister.model import Item as Stored
from cloister.server import items, response_options, turns
from cloister.server.door import sse
from cloister.server.events import Event
from cloister.server.refusals import invalid, unsupported
from cloister.server.response_objects import Remembered
from cloister.server.response_shapes import (
    Compaction,
    CountTokens,
    InputPaging,
    InputTokens,
    NewResponse,
    Reading,
    Response,
    ResponseDeleted,
)
from cloister.server.response_turns import (
    Streaming,
    again,
    asking_of,
    found,
    input_of,
    position,
    position_of,
    session_of,
    whole,
)
from cloister.server.routes import Answer, Call, Route, Stream
from cloister.server.shapes import Item, Page
from cloister.session import Session
from cloister.sessions import new_item_id


async def create(call: Call, body: NewResponse) -> Answer | Stream:
    """Answer, and store question and answer unless the request says otherwise."""
    asking = await asking_of(call, body)
    if body.stream:
        streaming = Streaming(call, asking)
        return Stream(streaming.pieces(), streaming.headers, asking.question.delivered)
    with response_options.named():
        reply = turns.had(asking.question, await asking.put(call, lambda session, given: session.send(**given)))
    headers = turns.headers(reply) if asking.memory.store else {}
    response = whole(reply.session.stable_id, reply.items[-1])
    return Answer(response, headers=headers, written=asking.question.delivered)


async def get(call: Call) -> Answer | Stream:
    """Give a response that is stored, or its events from a number on."""
    reading: Reading = call.query
    for value in reading.include or ():
        response_options.check_include(value)
    if reading.starting_after is not None and not reading.stream:
        raise invalid("this goes with stream=true alone", "starting_after")
    session, answer, _ = await found(call, call.path["response"])
    headers = turns.said(session.id)
    if not reading.stream:
        return Answer(whole(session.stable_id, answer), headers=headers)
    after = -1 if reading.starting_after is None else reading.starting_after
    events = [event for event in again(session.stable_id, answer) if event["sequence_number"] > after]
    return Stream(_all(events), lambda: headers)


async def delete(call: Call) -> ResponseDeleted:
    """Leave a response and its input out of their conversation from now on."""
    session, answer, memory = await found(call, call.path["response"])
    asked = await _inputs(session, answer, memory)
    try:
        await session.hide(*[item.id for item in asked], answer.id)
    except ValueError as error:  # too many were
        raise invalid(str(error), code="too_many_deleted") from None
    return ResponseDeleted(id=call.path["response"])


async def cancel(call: Call) -> Response:
    """Refuse to cancel: a response that can be named is finished."""
    await found(call, call.path["response"])
    raise unsupported("background responses, and only those can be cancelled")


async def input_items(call: Call) -> Page[Item]:
    """List what came in with a response."""
    paging: InputPaging = call.query
    for value in paging.include or ():
        response_options.check_include(value)
    session, answer, memory = await found(call, call.path["response"])
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
    session, _, after = await session_of(call, body)
    if after is not None and session.item_count != position_of(after) + 1:
        session = await session.branch(after, model=turns.named(call, body.model))
    counted = await session.count(
        await input_of(call, session, body),
        model=turns.named(call, body.model),
        options=response_options.options(body),
        system=turns.instructed(call, body.instructions, "instructions"),
    )
    return InputTokens(input_tokens=counted)


async def compact(call: Call, body: Compaction) -> Response:
    """Refuse to compact: the window is fitted anew with every turn."""
    raise unsupported("compaction; it fits each conversation into the model's window by itself")


async def _inputs(session: Session, answer: Stored, memory: Remembered) -> list[Stored]:
    """Give the items that came in with a response, without those that are hidden."""
    last = position(answer)
    first = last - memory.inputs
    if not memory.inputs or first < 0:
        return []
    before = new_item_id(first - 1) if first else None
    listed = await session.history(limit=memory.inputs, after=before)
    return [item for item in listed if first <= position(item) < last]


async def _all(events: Iterable[Event]) -> AsyncGenerator[bytes, None]:
    for event in events:
        yield sse(event, event["type"])


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
