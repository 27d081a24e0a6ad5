"""Personal data on the path of a turn: what is masked when, beside the loop where it takes long, and at what cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import msgspec

from cloister import looking, window
from cloister.audit import Event
from cloister.model import Item, Owner
from cloister.opened import Opened
from cloister.scrub.masking import NOTICE, Mask, shown
from cloister.scrub.settings import Scrub

T = TypeVar("T")

_SHORT = 20_000  # characters: they are searched in some milliseconds


class Counting(Protocol):
    """Counts what items cost."""

    def counted(self, item: Item, model: str | None = None) -> Item: ...


def mask_of(scrub: Scrub, opened: Opened) -> Mask:
    """Give what masks the items of *opened*."""
    return Mask(scrub, lambda: opened.keys.placeholder_key())


def counted(cloister: Counting, mask: Mask, item: Item, model: str | None = None) -> Item:
    """Give an *item* that is to be stored with its cost in a window.

    That is what the model gets; or, where a long text lies behind a placeholder, what reading it with every turn costs.
    """
    sent = cloister.counted(mask.sent(item), model)
    tokens = max(sent.tokens, sum(map(len, item.values)) // 4) if item.values else sent.tokens
    return msgspec.structs.replace(item, tokens=tokens, counter=sent.counter)


async def masked(
    cloister: Counting, mask: Mask, owner: Owner, items: Sequence[Item], model: str | None = None
) -> list[Item]:
    """Give *items* of *owner*'s as they are stored: with placeholders, and with their cost.

    Raises `RateLimited` where too many long ones wait already.
    """
    return await looked(owner, items, lambda item: counted(cloister, mask, mask.hide(item), model), begins=True)


def said_before(opened: Opened) -> list[Item]:
    """Give what was said before, as far as it was loaded and may be sent."""
    head, items = opened.head, opened.items
    first = head.count - len(items)
    # The system text, which is item 0, comes by itself, from beside the head.
    without = head.hidden if head.system is None else (0, *head.hidden)
    if without:
        items = [item for position, item in enumerate(items, first) if position not in without]
    return [item for item in [*items, *opened.brought] if item.error is None]


def shown_before(opened: Opened) -> list[Item]:
    """Give what was said before, and the system text, as the owner knows them."""
    return [*([opened.system] if opened.system else []), *map(shown, said_before(opened))]


async def ready(mask: Mask, opened: Opened, system: Item | None) -> None:
    """See to it that what was said while nothing was replaced, and *system*, can be sent at once."""
    items = [*said_before(opened), *([system] if system else [])]
    await looked(opened.owner, [item for item in items if item.values is None], mask.sent)


async def looked(owner: Owner, items: Sequence[Item], look: Callable[[Item], T], *, begins: bool = False) -> list[T]:
    """Look at *items* of *owner*'s; at long ones beside the loop: other tasks, and the renewing of leases, go on."""
    size = sum(map(_size, items))
    if size > _SHORT:
        return await looking.beside(owner, size, lambda: [look(item) for item in items], begins=begins)
    return [look(item) for item in items]


def _size(item: Item) -> int:
    plain = isinstance(item.content, str) and not (item.tool_calls or item.extra)
    return len(item.text) if plain else len(msgspec.msgpack.encode(item))


_notice: dict[str, int] = {}


def noticed(system: Item | None, counter: window.Counter) -> Item:
    """Give the system text with the line that tells a model what placeholders are, and with its cost."""
    if counter.name not in _notice:
        _notice[counter.name] = window.item_tokens(Item("system", NOTICE), counter)
    text, tokens = (f"{system.text}\n\n{NOTICE}", system.tokens) if system else (NOTICE, 0)
    return Item("system", text, tokens=tokens + _notice[counter.name], counter=counter.name)


def replaced(noted: Event, mask: Mask) -> list[Event]:
    """Give the entry that goes with *noted* where personal data was replaced: how often, by type."""
    counts, source = +mask.replaced, noted.detail.get("source")
    detail = {**counts, "source": source} if source else dict(counts)
    return [msgspec.structs.replace(noted, kind="data.replaced", detail=detail)] if counts else []
