"""What callers may say: text, parts, messages, items, made into items that can be stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from cloister import sessions, wire
from cloister.model import Item

Content: TypeAlias = "str | Item | Mapping[str, Any] | Sequence[Item | Mapping[str, Any]]"
"""What a user says: text, a list of content parts, a message, or several (tool results before the next question)."""


def checked(message: object) -> Item:
    """Take a message as an item, checked; what only a commit may set is left out."""
    if isinstance(message, Item):
        sessions.check_text(message.text)
        message = {**(message.extra or {}), **wire.chat([message])[0]}
    return wire.item(message)


def said(content: Content) -> list[Item]:
    """Give the items that *content* stands for; `ValueError` for what is none."""
    if isinstance(content, str):
        sessions.check_text(content)
        return [Item("user", content)]
    if isinstance(content, Item | Mapping):
        return [checked(content)]
    given = list(content)
    if given and not any(isinstance(part, Item) or "role" in part for part in given):
        return [checked({"role": "user", "content": given})]
    if not given:
        raise ValueError("there is nothing to say: pass text, or messages")
    return [checked(message) for message in given]
