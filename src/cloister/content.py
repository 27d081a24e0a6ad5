"""What callers may say: text, parts, messages, items, made into items that can be stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from cloister import sessions, wire
from cloister.model import REMEMBERED, Item

Content: TypeAlias = "str | Item | Mapping[str, Any] | Sequence[Item | Mapping[str, Any]]"
"""What a user says: text, a list of content parts, a message, or several (tool results before the next question)."""


Remember: TypeAlias = "Mapping[str, Any] | Callable[[wire.Answer], Mapping[str, Any]]"
"""What an application remembers of an answer: JSON values, looked at when the turn is stored."""

MOST_AT_ONCE = 20_000
MOST_REMEMBERED = 65_536
"""How long what is remembered of an answer may be, as JSON: it is read with every turn that reads the answer."""


def checked(message: object) -> Item:
    """Take a message as an item, checked; what only a commit may set is left out."""
    if isinstance(message, Item):
        sessions.check_text(message.text)
        message = {**(message.extra or {}), **wire.message(message)}
    return wire.item(message)


def several(messages: object) -> list[Item]:
    """Give the items of one message or several; `ValueError` for text, which would be taken apart by its letters."""
    if isinstance(messages, str | bytes):
        raise ValueError('pass messages, such as {"role": "user", "content": "…"}, instead of bare text')
    if isinstance(messages, Item | Mapping) or hasattr(messages, "model_dump"):
        return [checked(messages)]
    if not isinstance(messages, Iterable):
        raise ValueError(f"messages are dicts of the OpenAI chat format, not {type(messages).__name__}")
    given = list(messages)
    if len(given) > MOST_AT_ONCE:
        raise ValueError(f"at most {MOST_AT_ONCE:,} messages are taken at once; these are {len(given):,}")
    return [checked(message) for message in given]


def said(content: Content | object) -> list[Item]:
    """Give the items that *content* stands for, none for an empty list; `ValueError` for what is nothing to say."""
    if isinstance(content, str):
        sessions.check_text(content)
        return [Item("user", content)]
    if isinstance(content, Item | Mapping):
        return [checked(content)]
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise ValueError(f"what is said must be text, parts or messages, not {type(content).__name__}")
    given = list(content)
    if given and not any(not isinstance(part, Mapping) or "role" in part for part in given):
        return [checked({"role": "user", "content": given})]
    return [checked(message) for message in given]


def memory_of(given: Remember, answer: wire.Answer | None = None) -> dict[str, Any]:
    """Give what an application remembers of an answer, checked, as a copy of its own; `ValueError` for no JSON."""
    values = given(answer or wire.Answer("")) if callable(given) else given
    if not isinstance(values, Mapping):
        raise ValueError(f"what is remembered of a reply is a mapping of JSON values, not {type(values).__name__}")
    said = wire.item({"role": "assistant", "content": "", REMEMBERED: dict(values)})
    kept: dict[str, Any] = (said.extra or {})[REMEMBERED]
    if (length := len(msgspec.json.encode(kept))) > MOST_REMEMBERED:
        raise ValueError(f"at most {MOST_REMEMBERED:,} bytes are remembered of a reply; these are {length:,}")
    return kept
