"""Conversations: the sessions of one user, by the API's name for them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from cloister.server import ids
from cloister.server.routes import Call, Route
from cloister.server.shapes import Body, Item, Metadata
from cloister.session import Session


class NewConversation(Body):
    items: Annotated[list[Item], msgspec.Meta(max_length=20)] | None = None
    metadata: Metadata | None = None


class ConversationUpdate(Body):
    metadata: Metadata


class Conversation(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["conversation"] = "conversation"
    created_at: int
    metadata: dict[str, str]


class ConversationDeleted(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["conversation.deleted"] = "conversation.deleted"
    deleted: bool = True


def described(session: Session) -> Conversation:
    """Give a session as the API describes it."""
    created = int(session.created_at.timestamp())
    return Conversation(id=ids.conversation(session.stable_id), created_at=created, metadata=session.metadata)


async def create(call: Call, body: NewConversation) -> Conversation:
    """Start a conversation."""
    return described(await call.user.start(metadata=body.metadata))


async def get(call: Call) -> Conversation:
    """Give a conversation of the caller's."""
    return described(await named(call))


async def update(call: Call, body: ConversationUpdate) -> Conversation:
    """Replace the metadata of a conversation."""
    session = await named(call)
    await session.update(metadata=body.metadata)
    return described(session)


async def delete(call: Call) -> ConversationDeleted:
    """End a conversation: its content is destroyed at once."""
    session = await named(call)
    await session.end()
    return ConversationDeleted(id=call.path["conversation"])


async def named(call: Call) -> Session:
    """Give the session that the path names."""
    return await call.user.resume(ids.session(call.path["conversation"]))


ONE = "/v1/conversations/{conversation}"
ROUTES = (
    Route("POST", "/v1/conversations", create, "Start a conversation", body=NewConversation, answer=Conversation),
    Route("GET", ONE, get, "Read a conversation", answer=Conversation),
    Route("POST", ONE, update, "Change a conversation's metadata", body=ConversationUpdate, answer=Conversation),
    Route("DELETE", ONE, delete, "End a conversation and destroy its content", answer=ConversationDeleted),
)
