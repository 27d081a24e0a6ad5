"""What was said in a conversation: read, added to, taken out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from cloister.server import items
from cloister.server.conversations import MOST_ITEMS, ONE, Conversation, described, named
from cloister.server.refusals import Refused, invalid
from cloister.server.routes import Call, Route
from cloister.server.shapes import Body, Given, Item, Page, Paging, Query
from cloister.session import Session

MOST_BYTES = 4 << 20
"""How long a page may be: behind that it ends, before its limit, and says that more follows."""
_AT_ONCE = 21  # what is asked for where nobody says how many, and one more


class NewItems(Body):
    items: Annotated[list[Given], msgspec.Meta(min_length=1, max_length=MOST_ITEMS)]


class Including(Query):
    """Say what else is wanted: there is nothing that is left out."""

    include: list[str] | None = None


async def create(call: Call, body: NewItems) -> Page[Item]:
    """Add items to a conversation without asking a model."""
    call.bound(body.items, "items")
    session = await named(call)
    given = await items.resolved(session, body.items)
    items.allowed(call, given)
    stored = await session.append(items.taken(given))
    return _page([entry for item in stored for entry in items.shown(item)], more=False)


async def listed(call: Call) -> Page[Item]:
    """List the items of a conversation."""
    session = await named(call)
    return await page(session, call.query)


async def get(call: Call) -> Item:
    """Give one item of a conversation."""
    return (await items.found(await named(call), call.path["item"]))[1]


async def delete(call: Call) -> Conversation:
    """Take an item out of a conversation: no list has it from now on, and no model is sent it.

    What a model answered is one thing, however many items it is: with one of them it leaves as a whole.
    """
    session = await named(call)
    item, _ = await items.found(session, call.path["item"])
    try:
        await session.hide(item.id)
    except ValueError as error:  # too many were
        raise invalid(str(error), code="too_many_deleted") from None
    return described(session)


async def page(session: Session, paging: Paging) -> Page[Item]:
    """Give one page of what was said in a session."""
    newest_first = paging.order == "desc"
    entries: list[dict[str, Any]] = []
    after = None
    if paging.after is not None:
        try:
            item, last = await items.found(session, paging.after)
        except Refused:
            raise invalid("there is no such item in this conversation to go on behind", "after") from None
        rest = _ordered(items.shown(item), newest_first)
        entries, after = rest[rest.index(last) + 1 :], item.id
    fits = _fitting(entries)
    while fits == len(entries) <= paging.limit:
        at_once = min(paging.limit + 1 - len(entries), _AT_ONCE)
        found = await session.history(limit=at_once, after=after, order=paging.order)
        for item in found:
            entries += _ordered(items.shown(item), newest_first)
            after = item.id
        fits = _fitting(entries)
        if len(found) < at_once:
            break
    fits = min(fits, paging.limit)
    return _page(entries[:fits], more=len(entries) > fits)


def _fitting(entries: Sequence[Item]) -> int:
    """Say how many of *entries* a page has room for: one at least."""
    size = 0
    for number, entry in enumerate(entries):
        size += len(msgspec.json.encode(entry))
        if size > MOST_BYTES and number:
            return number
    return len(entries)


def _ordered(entries: list[dict[str, Any]], newest_first: bool) -> list[dict[str, Any]]:
    return entries[::-1] if newest_first else entries


def _page(entries: list[dict[str, Any]], *, more: bool) -> Page[Item]:
    first, last = (entries[0]["id"], entries[-1]["id"]) if entries else (None, None)
    return Page(data=entries, first_id=first, last_id=last, has_more=more)


ITEMS = ONE + "/items"
ITEM = ITEMS + "/{item}"
ROUTES = (
    Route("POST", ITEMS, create, "Add items", body=NewItems, query=Including, answer=Page[Item]),
    Route("GET", ITEMS, listed, "List the items of a conversation", query=Paging, answer=Page[Item]),
    Route("GET", ITEM, get, "Read an item", query=Including, answer=Item),
    Route("DELETE", ITEM, delete, "Take an item out of a conversation", answer=Conversation),
)
