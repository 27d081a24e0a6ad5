"""What stands between one session and everybody else: personal data leaves its items here, and comes back.

    what was said → hide → stored, sent → what the model answers → answered → shown to its owner, hidden and stored

An item takes along what its placeholders stand for, in the order in which they stand in its texts. So nothing that
could be mixed up is kept beside it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from cloister.errors import CloisterError, ConfigurationError
from cloister.model import Head, Item
from cloister.scrub.placeholders import (
    LABELS,
    MOST,
    TYPED,
    Placeholders,
    Restorer,
    put_back,
    replace,
    stands_for,
    strangers,
)
from cloister.scrub.settings import Scrub
from cloister.scrub.spans import UNSEARCHED, Occurrences
from cloister.scrub.texts import SIGNED, Change, Kind, change_json, in_json, is_json, is_signed, mapped, unescaped

NOTICE = (
    "Some personal data has been replaced by placeholders in square brackets: a kind and two codes, joined by tildes. "
    "Write each exactly as it stands wherever you would write the data. Never alter, shorten, explain or invent one."
)
"""What a model is told that is sent placeholders."""

_PASSES = 5
_TYPES = {label: kind for kind, label in LABELS.items()}


class Mask:
    """Mask one session's items. *key* gives the session's key for placeholders."""

    def __init__(self, scrub: Scrub, key: Callable[[], bytes]) -> None:
        self._scrub = scrub
        self._key: Callable[[], bytes] | None = key
        self._made: Placeholders | None = None
        self._sent: Sequence[Item] = ()
        self._values: dict[str, str] | None = {}
        self._restored: dict[str, str] = {}
        self._again: Occurrences | None = None
        self._looked: dict[int, tuple[Item, Item]] = {}
        self._room = MOST
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

    def join(self, kept: Item, said: Item, more: Item) -> Item:
        """Give *kept*, which is *said* as it is stored, with what *more*, hidden by itself, has beside its content."""
        extra = {**(kept.extra or {}), **(more.extra or {})}
        if kept.values is None:
            return msgspec.structs.replace(kept, extra=extra)
        if any(name in SIGNED for name in extra):  # what stands in it for something comes last
            whole = msgspec.structs.replace(said, extra={**(said.extra or {}), **(shown(more).extra or {})})
            hidden = self._hidden(whole, Counter())
            return msgspec.structs.replace(kept, content=hidden.content, extra=hidden.extra, values=hidden.values)
        return msgspec.structs.replace(kept, extra=extra, values=[*kept.values, *(more.values or ())])

    def sent(self, item: Item) -> Item:
        """Give a stored *item* as the model gets it."""
        if self._scrub.where != "model":
            return shown(item)
        if item.values is None:  # it was said while nothing was replaced
            if id(item) not in self._looked:
                self._looked[id(item)] = item, self._hidden(item, Counter())
            return self._looked[id(item)][1]
        return _unsigned(item) if item.extra and item.values else item

    def describe(self, head: Head, *, title: bool = True, metadata: bool = True) -> Head:
        """Give *head* with title and metadata as they are stored; what was set before does not count again."""
        if self._scrub.where == "off":
            return head
        values: list[str] = []
        change = self._into(values, self.replaced if title else Counter())
        name = head.title and change(head.title, "text")
        change = self._into(values, self.replaced if metadata else Counter())
        kept: dict[str, str] = {}
        for key, value in head.metadata.items():
            key = change(key, "name")
            while key in kept:  # both were redacted
                key += "'"
            kept[key] = change(value, "text")
        return msgspec.structs.replace(head, title=name, metadata=kept, values=tuple(values))

    def _hidden(self, item: Item, counts: Counter[str]) -> Item:
        values: list[str] = []
        refused = bool(item.extra) and bool(item.content) and (item.extra or {}).get("refusal") == item.content
        change = self._into(values, counts, twice=item.content if refused and isinstance(item.content, str) else None)
        return msgspec.structs.replace(mapped(item, change, signed=self._scrub.where == "store"), values=values)

    def _into(self, values: list[str], counts: Counter[str], twice: str | None = None) -> Change:
        """Give what replaces, and gathers *values*; a text that comes *twice* is counted once."""
        seen = False

        def change(text: str, kind: Kind) -> str:
            nonlocal seen
            again, seen = seen and text == twice, seen or text == twice
            changed, held = self.text(text, kind == "json", Counter() if again else counts)
            if kind == "name" and held:  # as a whole: two spellings of a value must not become one name
                changed, held = replace(text, [(0, len(text), TYPED)], self._placeholders)
            values.extend(held)
            return changed

        return change

    def text(self, text: str, document: bool = False, counts: Counter[str] | None = None) -> tuple[str, list[str]]:
        """Give *text* with placeholders in the place of personal data, and what they stand for, in their order."""
        said, document = text, document and is_json(text)
        held: list[str] = []
        for attempt in range(_PASSES):
            found = self._spans(text, document)
            if not found and (attempt or "~" not in text):
                return text, held
            if counts is not None:
                counts.update(kind for start, end, kind in found if text[start:end] not in self._restored)
            text, found = self._redacted(text, found)
            # Beside a placeholder something may show that its words had hidden, so the result is searched again.
            text, more = replace(text, found, self._placeholders, unescaped if document or "\\" in text else str)
            left = iter(held)
            held = [put_back(value, left) for value in more]
        return replace(said, [(0, len(said), UNSEARCHED)], self._placeholders)

    def _spans(self, text: str, document: bool) -> list[tuple[int, int, str]]:
        """Find what is to be replaced, sorted and disjoint; in JSON, in its strings alone."""
        found = [] if document else self._found(text)
        if document or ("\\" in text and '"' in text and len(text) <= self._scrub.limit):
            # Words in what may be JSON, as results of tools are, are hidden by its escapes.
            found += in_json(text, self._found)
        merged: list[tuple[int, int, str]] = []
        for start, end, kind in sorted(found):
            if not merged or start >= merged[-1][1]:
                merged.append((start, end, kind))
                continue
            begin, stop, first = merged[-1]
            merged[-1] = (begin, max(end, stop), kind if end - start > stop - begin else first)
        return merged

    def _found(self, text: str) -> list[tuple[int, int, str]]:
        """Find what is to be replaced: what the search finds, and what was just put back."""
        scrub, problem = self._scrub, ""
        found: list[tuple[int, int, str]] = []
        try:
            found = [(span.start, span.end, span.type) for span in scrub.finder.find(text)]
        except CloisterError:
            raise
        except Exception as error:  # noqa: BLE001 - of a detector, whoever wrote it; its words may be the text's
            problem = type(error).__name__
        if problem:  # out here, where the detector's error does not hang on ours
            raise ConfigurationError(f"the search for personal data failed with {problem}")
        found = [span for span in found if scrub.action(span[2]) != "allow"]
        if self._restored and len(text) <= scrub.limit:  # a longer one is replaced as a whole
            if self._again is None:
                self._again = Occurrences(self._restored)
            found += self._again.find(text)
        return found

    def _redacted(self, text: str, found: list[tuple[int, int, str]]) -> tuple[str, list[tuple[int, int, str]]]:
        """Leave nothing of what is redacted but its label; give what else was found, where it lies then."""
        scrub = self._scrub
        if not any(scrub.action(kind) == "redact" for _, _, kind in found):
            return text, found
        parts: list[str] = []
        rest: list[tuple[int, int, str]] = []
        at = size = 0
        for start, end, kind in found:
            # What was put back has been shown, so its owner is to find it again.
            redact = scrub.action(kind) == "redact" and text[start:end] not in self._restored
            label = scrub.label(kind) if redact else text[start:end]
            size += start - at
            if not redact:
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
        return Restorer(self._placeholders, self._known() if allowed else {}, self._room)

    def seen(self, restorer: Restorer) -> None:
        """Take note of what *restorer* met."""
        self.foreign += restorer.foreign
        self._again = None
        self._restored.update({value: _TYPES.get(label, label) for value, label in restorer.restored.items()})

    def answered(self, item: Item) -> Item:
        """Give the model's answer as its owner is shown it: with the owner's own data back in its place."""
        if self._scrub.where != "model":
            return item
        self._room = MOST
        refusal = (item.extra or {}).get("refusal")
        if refusal is not None and refusal == item.content:  # it is the text: neither read nor counted twice
            text = self._restore(refusal)
            rest = {name: value for name, value in (item.extra or {}).items() if name != "refusal"}
            item = self.answered(msgspec.structs.replace(item, content=None, extra=rest))
            return msgspec.structs.replace(item, content=text, extra={**(item.extra or {}), "refusal": text})
        # An address is none any less where the field alone says that it is one.
        item = mapped(item, lambda text, kind: self._restore(text, allowed=kind in ("text", "json")), self._call)
        if item.tool_calls:
            item = msgspec.structs.replace(item, tool_calls=[self._named(call) for call in item.tool_calls])
        blocks = [block for name in SIGNED for block in (item.extra or {}).get(name) or () if is_signed(block)]
        foreign = strangers(json.dumps(blocks, ensure_ascii=False), self._placeholders) if blocks else 0
        if foreign and item.extra:  # nothing in there can be altered
            self.foreign += foreign
            item = msgspec.structs.replace(
                item, extra={name: value for name, value in item.extra.items() if name not in SIGNED}
            )
        return item

    def brought(self, item: Item) -> None:
        """Take note of placeholders of other sessions in *item*, if it is what a tool gave.

        Nobody typed them here, so they come from elsewhere; the model gets others in their place.
        """
        if self._scrub.where != "model" or item.role != "tool":
            return
        typed = {value for one in self._sent if one.role in ("user", "system") for value in one.values or ()}

        def count(text: str, _: Kind) -> str:
            if "~" in text:
                self.foreign += strangers(text, self._placeholders, typed)
            return text

        mapped(item, count)

    def _restore(self, text: str, allowed: bool = True) -> str:
        restorer = self.restorer(allowed=allowed) if "~" in text else None
        if restorer is None:
            return text
        text = restorer.feed(text) + restorer.finish()
        self.seen(restorer)
        self._room = restorer.room
        return text

    def _call(self, name: str, text: str, kind: Kind) -> str:
        """Give the arguments of a call of the tool *name*, with the data only where that tool may have it."""
        allowed = name in self._scrub.restore_tools
        if kind == "json" and ("~" in text or "\\" in text):
            return change_json(text, lambda value: self._restore(value, allowed))
        return self._restore(text, allowed)

    def _named(self, call: dict[str, Any]) -> dict[str, Any]:
        """Give *call* with no placeholder of another session in its id or its tool's name."""
        kind = call["type"]
        body = {**call[kind], "name": self._restore(call[kind]["name"], allowed=False)}
        return {**call, "id": self._restore(call["id"], allowed=False), kind: body}

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

        def learn(text: str, kind: Kind) -> str:
            known = stands_for(text, left, self._placeholders)
            escaped = any("\\" in value for value in known.values()) and is_json(text)
            meant.update({mark: unescaped(value) for mark, value in known.items()} if escaped else known)
            return text

        mapped(item, learn, signed=True)
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
        self._sent, self._values, self._restored, self._again = (), {}, {}, None
        self._looked = {}

    def __repr__(self) -> str:
        return "Mask(…)"


def shown(item: Item) -> Item:
    """Give a stored *item* as its owner said or read it."""
    if item.values is None:
        return item
    if item.values:
        left = iter(item.values)
        item = mapped(item, lambda text, _: put_back(text, left), signed=True)
    return msgspec.structs.replace(item, values=None)


def described(head: Head) -> Head:
    """Give *head* with title and metadata as their owner knows them."""
    if not head.values:
        return head
    left = iter(head.values)
    title = head.title and put_back(head.title, left)
    metadata = {put_back(key, left): put_back(value, left) for key, value in head.metadata.items()}
    return msgspec.structs.replace(head, title=title, metadata=metadata, values=())


def _unsigned(item: Item) -> Item:
    """Leave out what a provider signed, if something in it was replaced since: it would be refused."""
    extra = item.extra or {}
    if not any(is_signed(block) for name in SIGNED for block in extra.get(name) or ()):
        return item
    left = iter(item.values or ())
    mapped(item, lambda text, _: put_back(text, left))
    if next(left, None) is None:
        return item
    return msgspec.structs.replace(item, extra={name: value for name, value in extra.items() if name not in SIGNED})
