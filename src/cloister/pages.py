"""Read a session's items in pages, from either end: each costs the same, however long the session is."""

from __future__ import annotations

from cloister import sessions
from cloister.model import Head, Item
from cloister.vault import Handle, Vault

_AT_ONCE = 100


def place(item_id: object, what: str = "after=") -> int:
    """Give the position that an item id names; `ValueError` for what is none."""
    position = sessions.position_of(item_id)
    if position is None:
        raise ValueError(f"{what} takes the id of an item of this session")
    return position


async def onward(vault: Vault, session: Handle, first: int, limit: int) -> tuple[Head, list[Item]]:
    """Give up to *limit* items that are not hidden, from position *first* on."""
    found: list[Item] = []
    while True:
        wanted = limit - len(found)
        head, first, items = await vault.history(session, first, wanted)
        found += [item for position, item in enumerate(items, first) if position not in head.hidden]
        first += len(items)
        if len(items) < wanted or len(found) == limit:
            return head, found


async def back(
    vault: Vault, session: Handle, end: int | None, limit: int, count: int = 0
) -> tuple[Head, list[Item], int]:
    """Give up to *limit* items that are not hidden, newest first, from before position *end*, or from the newest on.

    *count* says how many items there were when somebody last looked. Gives the position of the oldest too.
    """
    found: list[Item] = []
    upto = count if end is None else end
    while True:
        first = max(0, upto - (limit - len(found)))
        head, at, items = await vault.history(session, first, max(upto - first, 1))
        if end is None and head.count > upto:  # more was said meanwhile
            end = upto = head.count
            continue
        end = upto
        page = [(position, item) for position, item in enumerate(items, at) if position < upto]
        found += [item for position, item in reversed(page) if position not in head.hidden]
        upto = first
        if not first or at > first or len(found) == limit:
            return head, found, at


async def one(vault: Vault, session: Handle, item_id: object) -> tuple[Head, Item]:
    """Give the item of that id; `ValueError` if this session has none, or has hidden it."""
    position = sessions.position_of(item_id)
    if position is not None:
        head, first, items = await vault.history(session, position, 1)
        if items and first == position and items[0].id == item_id and position not in head.hidden:
            return head, items[0]
    raise ValueError("this session has no such item; ids come from history() and reply items")


async def fitting(vault: Vault, session: Handle, first: int, end: int, tokens: int) -> list[Item]:
    """Give the newest items before position *end*, and not before *first*, that fit so many *tokens*, oldest first.

    Where older ones are left out, they begin with what a user said.
    """
    found: list[Item] = []
    oldest = end
    while first < end:
        _, page, oldest = await back(vault, session, end, min(_AT_ONCE, end - first))
        for item in page:
            tokens -= item.tokens
            if tokens < 0 or place(item.id) < first:
                break
            found.append(item)
        if tokens < 0 or oldest >= end:
            break
        end = oldest
    found.reverse()
    while oldest > first and found and found[0].role != "user":
        del found[0]
    return found
