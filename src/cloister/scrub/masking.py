"""What stands between one session and everybody else: personal data leaves its items here, and comes back.

    what was said → hide → stored, sent → what the model answers → answered → shown to its owner, hidden and stored

An item takes along what its placeholders stand for, in the order in which they stand in its texts. So nothing that
could be mixed up is kept beside it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import msgspec

from cloister.errors import CloisterError, ConfigurationError
from cloister.model import Head, Item
from cloister.scrub.placeholders import Placeholders, Restorer, put_back, replace, restore_json, stands_for, strangers
from cloister.scrub.settings import Scrub
from cloister.scrub.spans import UNSEARCHED

NOTICE = (
    "Some personal data has been replaced by placeholders in square brackets: a kind and two codes, joined by tildes. "
    "Write each exactly as it stands wherever you would write the data. Never alter, shorten, explain or invent one."
)
"""What a model is told that is sent placeholders."""

# What machines read: ids, addresses, media, and what a provider has signed or encrypted.
_LEFT = frozenset(
    "type id call_id item_id tool_call_id url data file_data file_id encrypted_content signature detail format"
    " media_type mime_type role status".split()
)
_SIGNED = ("thinking_blocks", "reasoning_items")

_LITERAL = re.compile(r'"((?:[^"\\]++|\\.)*+)(?:"|\Z)', re.DOTALL)
_ESCAPE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\.|[^\\]", re.DOTALL
)

_PASSES = 5

Change = Callable[[str, bool], str]
"""Takes a text of an item, and whether it is JSON; gives what comes in its place."""


class Mask:
    """Mask one session's items. *key* gives the session's key for placeholders."""

    def __init__(self, scrub: Scrub, key: Callable[[], bytes]) -> None:
        self._scrub = scrub
        self._key: Callable[[], bytes] | None = key
        self._made: Placeholders | None = None
        self._sent: Sequence[Item] = ()
        self._values: dict[str, str] | None = {}
        self._restored: dict[str, str] = {}
        self.replaced: Counter[str] = Counter()
        """How much was replaced, by type."""
        self.foreign = 0
        """How many placeholders the model wrote that are none of this session's."""

    # --- on the way in ------------------------------------------------------------------------------------------------

    def hide(self, item: Item) -> Item:
        """Give *item* as it is stored: with placeholders in place of personal data, which it takes along."""
        if self._scrub.where == "off":
            return item
        return self._hidden(item, self.replaced)

    def sent(self, item: Item) -> Item:
        """Give a stored *item* as the model gets it."""
        if self._scrub.where != "model":
            return shown(item)
        # One without values was said while nothing was replaced.
        return item if item.values is not None else self._hidden(item, Counter())

    def describe(self, head: Head) -> Head:
        """Give *head* with title and metadata as they are stored."""
        if self._scrub.where == "off":
            return head
        values: list[str] = []
        change = self._into(values, self.replaced)
        title = head.title and change(head.title, False)
        metadata = {key: change(value, False) for key, value in head.metadata.items()}
        return msgspec.structs.replace(head, title=title, metadata=metadata, values=tuple(values))

    def _hidden(self, item: Item, counts: Counter[str]) -> Item:
        values: list[str] = []
        return msgspec.structs.replace(_mapped(item, self._into(values, counts)), values=values)

    def _into(self, values: list[str], counts: Counter[str]) -> Change:
        def change(text: str, is_json: bool) -> str:
            text, held = self.text(text, is_json, counts)
            values.extend(held)
            return text

        return change

    def text(self, text: str, is_json: bool = False, counts: Counter[str] | None = None) -> tuple[str, list[str]]:
        """Give *text* with placeholders in the place of personal data, and what they stand for, in their order."""
        said, is_json = text, is_json and _is_json(text)
        held: list[str] = []
        for attempt in range(_PASSES):
            found = list(_in_json(text, self._found) if is_json else self._found(text))
            if not found and (attempt or "~" not in text):
                return text, held
            if counts is not None:
                counts.update(kind for start, end, kind in found if text[start:end] not in self._restored)
            text, found = self._redacted(text, found)
            # Beside a placeholder something may show that its words had hidden, so the result is searched again.
            text, more = replace(text, found, self._placeholders)
            left = iter(held)
            held = [put_back(value, left) for value in more]
        return replace(said, [(0, len(said), UNSEARCHED)], self._placeholders)

    def _found(self, text: str) -> list[tuple[int, int, str]]:
        """Find what is to be replaced: what the search finds, and what was just put back."""
        scrub = self._scrub
        try:
            found = [(span.start, span.end, span.type) for span in scrub.finder.find(text)]
        except CloisterError:
            raise
        except Exception as error:  # noqa: BLE001 - of a detector, whoever wrote it; its words may be the text's
            raise ConfigurationError(f"the search for personal data failed with {type(error).__name__}") from None
        found = [span for span in found if scrub.action(span[2]) != "allow"]
        for value, kind in self._restored.items():
            at = text.find(value)
            while at >= 0:
                found.append((at, at + len(value), kind))
                at = text.find(value, at + len(value))
        return sorted(found)

    def _redacted(self, text: str, found: list[tuple[int, int, str]]) -> tuple[str, list[tuple[int, int, str]]]:
        """Leave nothing of what is redacted but its label; give what else was found, where it lies then."""
        scrub = self._scrub
        if not any(scrub.action(kind) == "redact" for _, _, kind in found):
            return text, found
        parts: list[str] = []
        rest: list[tuple[int, int, str]] = []
        at = size = 0
        for start, end, kind in found:
            if start < at:  # both a value that was put back and found; the first counts
                continue
            label = scrub.label(kind) if scrub.action(kind) == "redact" else text[start:end]
            size += start - at
            if scrub.action(kind) != "redact":
                rest.append((size, size + len(label), kind))
            parts += [text[at:start], label]
            size += len(label)
            at = end
        return "".join([*parts, text[at:]]), rest

    # --- on the way out -----------------------------------------------------------------------------------------------

    def note(self, items: Sequence[Item]) -> bool:
        """Take note of what the model is *sent*; say whether it has to be told what placeholders are."""
        self._sent, self._values = items, None
        return self._scrub.where == "model" and any(item.values for item in items)

    def restorer(self, *, allowed: bool = True) -> Restorer | None:
        """Give what puts data back into an answer as it comes; None if the model was sent no placeholders.

        Where it is not *allowed* nothing comes back, but what is foreign still goes.
        """
        if self._scrub.where != "model":
            return None
        return Restorer(self._placeholders, self._known() if allowed else {})

    def seen(self, restorer: Restorer) -> None:
        """Take note of what *restorer* met."""
        self.foreign += restorer.foreign
        self._restored.update(restorer.restored)

    def answered(self, item: Item) -> Item:
        """Give the model's answer as its owner is shown it: with the owner's own data back in its place."""
        if self._scrub.where != "model":
            return item
        item = _mapped(item, lambda text, _: self._restore(text), self._call)
        signed = {name: item.extra[name] for name in _SIGNED if name in item.extra} if item.extra else {}
        foreign = strangers(json.dumps(signed, ensure_ascii=False), self._placeholders) if signed else 0
        if foreign and item.extra:  # nothing in there can be altered
            self.foreign += foreign
            item = msgspec.structs.replace(
                item, extra={name: value for name, value in item.extra.items() if name not in _SIGNED}
            )
        return item

    def _restore(self, text: str, allowed: bool = True) -> str:
        restorer = self.restorer(allowed=allowed) if "~" in text else None
        if restorer is None:
            return text
        text = restorer.feed(text) + restorer.finish()
        self.seen(restorer)
        return text

    def _call(self, name: str, text: str, is_json: bool) -> str:
        """Give the arguments of a call of the tool *name*, with the data only where that tool may have it."""
        if "~" not in text:
            return text
        allowed = name in self._scrub.restore_tools
        return (
            restore_json(text, lambda value: self._restore(value, allowed)) if is_json else self._restore(text, allowed)
        )

    def _known(self) -> Mapping[str, str]:
        """Give what the placeholders stand for that the model was sent."""
        if self._values is None:
            self._values = {}
            for item in self._sent:
                if item.values:
                    self._values.update(self._meant(item))
        return self._values

    def _meant(self, item: Item) -> dict[str, str]:
        left = iter(item.values or ())
        meant: dict[str, str] = {}

        def learn(text: str, is_json: bool) -> str:
            known = stands_for(text, left, self._placeholders)
            meant.update({mark: _unescaped(value) for mark, value in known.items()} if is_json else known)
            return text

        _mapped(item, learn)
        return meant

    @property
    def _placeholders(self) -> Placeholders:
        if self._made is None:
            if self._key is None:
                raise RuntimeError("this turn is over")
            self._made = Placeholders(self._key())
        return self._made

    def forget(self) -> None:
        """Let go of the key and of all data: whoever keeps a turn does not keep them."""
        self._key = self._made = None
        self._sent, self._values, self._restored = (), {}, {}

    def __repr__(self) -> str:
        return "Mask(…)"


def shown(item: Item) -> Item:
    """Give a stored *item* as its owner said or read it."""
    if item.values is None:
        return item
    if item.values:
        left = iter(item.values)
        item = _mapped(item, lambda text, _: put_back(text, left))
    return msgspec.structs.replace(item, values=None)


def described(head: Head) -> Head:
    """Give *head* with title and metadata as their owner knows them."""
    if not head.values:
        return head
    left = iter(head.values)
    title = head.title and put_back(head.title, left)
    metadata = {key: put_back(value, left) for key, value in head.metadata.items()}
    return msgspec.structs.replace(head, title=title, metadata=metadata, values=())


# --- the texts of an item ---------------------------------------------------------------------------------------------


def _mapped(item: Item, change: Change, call: Callable[[str, str, bool], str] | None = None) -> Item:
    """Give *item* with each of its texts changed, in the same order always; arguments of tools by *call* if given."""
    content, calls, extra = item.content, item.tool_calls, item.extra
    if type(content) is str:
        content = change(content, False)
        if not (calls or extra):
            return item if content is item.content else msgspec.structs.replace(item, content=content)
    elif content:
        content = [_walked(part, change) for part in content]
    if calls:
        calls = [_called(one, change, call) for one in calls]
    if extra:
        extra = {name: value if name in _SIGNED else _entry(name, value, change) for name, value in extra.items()}
    return msgspec.structs.replace(item, content=content, tool_calls=calls, extra=extra)


def _walked(value: Any, change: Change) -> Any:
    if isinstance(value, str):
        return value if value.startswith("data:") else change(value, False)
    if isinstance(value, list):
        return [_walked(one, change) for one in value]
    if isinstance(value, dict):
        return {name: _entry(name, one, change) for name, one in value.items()}
    return value


def _entry(name: str, value: Any, change: Change) -> Any:
    return value if name in _LEFT and isinstance(value, str) else _walked(value, change)


def _called(call: dict[str, Any], change: Change, instead: Callable[[str, str, bool], str] | None) -> dict[str, Any]:
    kind = call["type"]
    body, field, is_json = call[kind], "arguments" if kind == "function" else "input", kind == "function"
    text = body[field]
    text = change(text, is_json) if instead is None else instead(body["name"], text, is_json)
    return {**call, kind: {**body, field: text}}


# --- texts in JSON ----------------------------------------------------------------------------------------------------


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _in_json(text: str, find: Callable[[str], Iterable[tuple[int, int, str]]]) -> Iterator[tuple[int, int, str]]:
    """Find in each string of a JSON document; give where it lies in the document as it is written."""
    for literal in _LITERAL.finditer(text):
        pieces = _ESCAPE.findall(literal[1])
        starts = list(accumulate(map(len, pieces), initial=literal.start(1)))
        for start, end, kind in find("".join(map(_unescaped, pieces))):
            yield starts[start], starts[end], kind


def _unescaped(text: str) -> str:
    """Give what stands between the quotes of a JSON string as the text that it means."""
    if "\\" not in text:
        return text
    try:
        return str(json.loads(f'"{text}"', strict=False))
    except ValueError:
        return text
