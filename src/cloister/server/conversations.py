"""Conversations: the sessions of one user, by the API's name for them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from cloister.errors import SessionNotFound
from cloister.server import ids, items
from cloister.server.refusals import invalid, unsupported
from cloister.server.routes import Call, Route
from cloister.server.shapes import Body, Given, Metadata, Page, Query
from cloister.session import Session

MOST_ITEMS = 20
"""How many items one call takes, as at OpenAI."""


class NewConversation(Body):
    items: Annotated[list[Given], msgspec.Meta(max_length=MOST_ITEMS)] | None = None
    metadata: Metadata | None = None


class ConversationUpdate(Body):
    metadata: Metadata | None
    """None leaves nothing of it."""


class Conversation(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["conversation"] = "conversation"
    created_at: int
    metadata: dict[str, str]


class ConversationDeleted(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["conversation.deleted"] = "conversation.deleted"
    deleted: bool = True


class Conversations(Query):
    """Say which page of the conversations."""

    after: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=100)] = 20


def described(session: Session) -> Conversation:
    """Give a session as the API describes it."""
    created = int(session.created_at.timestamp())
    return Conversation(id=ids.conversation(session.stable_id), created_at=created, metadata=session.metadata)


async def create(call: Call, body: NewConversation) -> Conversation:
    """Start a conversation."""
    _check_kept(call)
    call.bound(body.items or [], "items")
    given = await items.resolved(None, body.items or [])
    items.allowed(call, given)
    return described(await call.user.start(metadata=body.metadata, items=items.taken(given)))


async def get(call: Call) -> Conversation:
    """Give a conversation of the caller's."""
    return described(await named(call))


async def update(call: Call, body: ConversationUpdate) -> Conversation:
    """Replace the metadata of a conversation."""
    session = await named(call)
    await session.update(metadata=body.metadata or {})
    return described(session)


async def delete(call: Call) -> ConversationDeleted:
    """End a conversation: its content is destroyed at once."""
    session = await named(call)
    await session.end()
    return ConversationDeleted(id=call.path["conversation"])


async def listed(call: Call) -> Page[Conversation]:
    """List the caller's conversations that are not over, latest started first."""
    _check_kept(call)
    paging: Conversations = call.query
    after = None if paging.after is None else ids.session(paging.after)
    try:
        sessions = await call.user.sessions(limit=paging.limit + 1, after=after)
    except SessionNotFound:
        raise invalid("there is no such conversation to go on behind", "after") from None
    found = [described(session) for session in sessions[: paging.limit]]
    return Page(
        data=found,
        first_id=found[0].id if found else None,
        last_id=found[-1].id if found else None,
        has_more=len(sessions) > paging.limit,
    )


async def named(call: Call) -> Session:
    """Give the session that the path names; `SessionExpired` if its time is up."""
    _check_kept(call)
    return await call.user.resume(ids.session(call.path["conversation"]), on_expired="raise")


def _check_kept(call: Call) -> None:
    if call.carried:
        raise unsupported("conversations: its sessions lie in tokens that change; go on with header Cloister-Session")


ALL = "/v1/conversations"
ONE = ALL + "/{conversation}"
ROUTES = (
    Route("POST", ALL, create, "Start a conversation", body=NewConversation, answer=Conversation),
    Route("GET", ALL, listed, "List the user's conversations", query=Conversations, answer=Page[Conversation]),
    Route("GET", ONE, get, "Read a conversation", answer=Conversation),
    Route("POST", ONE, update, "Change a conversation's metadata", body=ConversationUpdate, answer=Conversation),
    Route("DELETE", ONE, delete, "End a conversation and destroy its content", answer=ConversationDeleted),
)
