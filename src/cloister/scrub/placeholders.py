"""What stands in the place of personal data, and how it comes back to its owner.

    Ana's card is 4111 …   →   [PERSON~k7qm2x9a~w4tz]'s card is [CARD~0c3xw8jd~h2nq] …

A placeholder says its kind, 40 bits that belong to the value in this session, and 20 bits that only this session's key
makes: one of another session, or one that a model made up, is known by that. It is put back in one pass by one grammar,
never by likeness, and never where a browser would send it somewhere: in links, in targets of links and images, in tags.
"""

from __future__ import annotations

import hmac
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from hashlib import sha256

from cloister.scrub.spans import UNSEARCHED

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
LABELS: Mapping[str, str] = {
    "PERSON": "PERSON",
    "EMAIL": "EMAIL",
    "PHONE": "PHONE",
    "CREDIT_CARD": "CARD",
    "US_SSN": "SSN",
    "ZIP": "ZIP",
    "IBAN": "IBAN",
    "IP": "IP",
    "URL": "URL",
    "DATE_OF_BIRTH": "BIRTHDATE",
    "STREET_ADDRESS": "ADDRESS",
}
"""How the kinds of personal data are called in a placeholder: one word, without what Markdown would take for markup."""
TYPED = "TEXT"
"""The label of what somebody typed that looks like a placeholder and is none of this session's."""

_OTHER = "DATA"
_KNOWN = (*LABELS.values(), TYPED, _OTHER)
_LABEL = r"[A-Za-z]{2,12}"
_LETTERS = "[0-9a-hjkmnp-tv-zA-HJKMNP-TV-Z]"
_BEHIND = f"~({_LETTERS}{{8}})~({_LETTERS}{{4}})"
# In brackets of any label; without, as models sometimes write it, of those that are ours.
_GRAMMAR = re.compile(rf"\\?\[[ ]?({_LABEL}){_BEHIND}[ ]?\\?\]|(?<![\w~])((?i:{'|'.join(_KNOWN)})){_BEHIND}(?![\w~])")
# What may still become one with the characters to come, or needs them to see what it stands in.
_REST = r"~[0-9A-Za-z]{0,8}(?:(?<=[0-9A-Za-z]{8})~[0-9A-Za-z]{0,4}[ ]?\\?\]?\.?)?"
_BEGUN = re.compile(rf"(?:\\|\\?\[[ ]?(?:[A-Za-z]{{0,12}}|[A-Za-z]{{2,12}}{_REST})|(?i:{'|'.join(_KNOWN)}){_REST})\Z")
_PREFIXES = frozenset(label[:size] for label in _KNOWN for size in range(1, len(label) + 1))
MOST = 1 << 20
"""How many characters are put back into one answer: more than any model writes."""
LONGEST = 2 + 1 + 12 + 1 + 8 + 1 + 4 + 1 + 2 + 1
"""The longest that a placeholder, with what is looked at behind it, can be: what a stream holds back at most."""


class Placeholders:
    """Make the placeholders of one session, and know them again. *key* is the session's, for this purpose alone."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, kind: str, value: str) -> str:
        """Give the placeholder of *value*, the same for each spelling of it."""
        label = LABELS.get(kind, kind if re.fullmatch(_LABEL, kind) else _OTHER).upper()
        number = self._letters(8, "value", label, _normal(label, value))
        return f"[{label}~{number}~{self._letters(4, 'check', label, number)}]"

    def whose(self, match: re.Match[str]) -> str | None:
        """Give the placeholder that *match* is, as we write it; None if it is none of this session's."""
        label, number, check = (group for group in match.groups() if group is not None)
        label, number = label.upper(), number.lower()
        if not hmac.compare_digest(check.lower(), self._letters(4, "check", label, number)):
            return None
        return f"[{label}~{number}~{check.lower()}]"

    def _letters(self, count: int, *parts: str) -> str:
        digest = hmac.digest(self._key, "\x00".join(parts).encode("utf-8", "surrogatepass"), sha256)
        number = int.from_bytes(digest[:8], "big")
        return "".join(ALPHABET[number >> 5 * place & 31] for place in range(count))

    def __repr__(self) -> str:
        return "Placeholders(…)"


def _normal(label: str, value: str) -> str:
    if label in ("PHONE", "CARD", "SSN", "IBAN"):
        return "".join(character for character in unicodedata.normalize("NFKC", value) if character.isalnum()).upper()
    if label in (TYPED, UNSEARCHED):
        return value
    return " ".join(unicodedata.normalize("NFKC", value).casefold().split())


def typed(text: str) -> list[tuple[int, int, str]]:
    """Find what in *text* has the form of a placeholder."""
    return [(*match.span(), TYPED) for match in _GRAMMAR.finditer(text)] if "~" in text else []


def replace(
    text: str,
    found: Iterable[tuple[int, int, str]],
    placeholders: Placeholders,
    meaning: Callable[[str], str] = str,
) -> tuple[str, list[str]]:
    """Put placeholders in the place of what was *found*; give the text, and what each of its placeholders stands for.

    *meaning* gives the value of what is written otherwise. *found* is sorted and disjoint. What looks like another
    session's placeholder becomes one that stands for itself.
    The second value has one entry for each placeholder of the text, in their order.
    """
    spans: list[tuple[int, int, str]] = []
    for start, end, kind in sorted([*found, *typed(text)]):
        if not spans or start >= spans[-1][1]:
            spans.append((start, end, kind))
        elif end > spans[-1][1] or spans[-1][2] == TYPED:  # overlapping ones are one
            begin, stop, first = spans[-1]
            inside = first == TYPED and end <= stop
            spans[-1] = (begin, max(end, stop), first if inside or first != TYPED else kind)
    parts: list[str] = []
    values: list[str] = []
    at = 0
    for start, end, kind in spans:
        original = text[start:end]
        match = _GRAMMAR.fullmatch(original) if kind == TYPED else None
        own = match is not None and placeholders.whose(match) is not None
        parts += [text[at:start], original if own else placeholders.of(kind, meaning(original))]
        values.append(original)
        at = end
    replaced = "".join([*parts, text[at:]])
    if put_back(replaced, values) != text or len(_GRAMMAR.findall(replaced)) != len(values):
        # Something beside a placeholder has become one: the whole text is one value, then.
        return placeholders.of(TYPED, text), [text]
    return replaced, values


def put_back(text: str, values: Iterable[str]) -> str:
    """Undo `replace` exactly: for the owner's own words, and for nobody else's. Takes an iterator only as far."""
    if "~" not in text:
        return text
    left = iter(values)
    return _GRAMMAR.sub(lambda match: next(left, match[0]), text)


def stands_for(text: str, values: Iterable[str], placeholders: Placeholders) -> dict[str, str]:
    """Say what the placeholders of a replaced *text* stand for, as we write them. Takes an iterator only as far."""
    found: dict[str, str] = {}
    if "~" not in text:
        return found
    for match, value in zip(_GRAMMAR.finditer(text), values, strict=False):
        own = placeholders.whose(match)
        if own is not None and own != value:  # one that was typed, or left as it was, stands for itself
            found[own] = value
    return found


class Restorer:
    """Put personal data back into what a model writes, however it is cut into pieces.

    *values* says what placeholders stand for. One that is none of this session's never gets out: only its kind does,
    and ``foreign`` counts it. ``unknown`` counts those of this session whose value is not among *values*. ``restored``
    says of each value that was put back how its kind is called. *room* bounds in characters what is put back: a model
    that repeats the placeholder of a long text need not write much to fill the memory.
    """

    def __init__(self, placeholders: Placeholders, values: Mapping[str, str], room: int = MOST) -> None:
        self.room = room
        self._placeholders = placeholders
        self._values = values
        self._held, self._shown = "", 0
        self._place = _Place()
        self._unread = "\n"  # as if a line had just begun
        self.foreign = self.unknown = 0
        self.restored: dict[str, str] = {}

    def feed(self, text: str) -> str:
        """Take the next piece, and give what can be shown by now."""
        text = self._held + text
        return self._show(text, _undecided(text, self._shown))

    def finish(self) -> str:
        """Give what was held back, once there is no more."""
        return self._show(self._held, len(self._held))

    def _show(self, text: str, cut: int) -> str:
        """Give *text* up to *cut*, but for what was shown of it before, and hold the rest."""
        parts: list[str] = []
        at = self._shown
        for match in _GRAMMAR.finditer(text, at) if "~" in text else ():
            if match.start() >= cut:
                break
            self._read(text[at : match.start()])
            parts += [text[at : match.start()], self._instead(match, text[match.end() : match.end() + 2])]
            self._read(parts[-1])
            at = match.end()
        self._read(text[at:cut])
        parts.append(text[at:cut])
        self._shown = min(cut, 1)  # one character stays: whether a placeholder begins depends on the one before it
        self._held = text[cut - self._shown :]
        return "".join(parts)

    def _instead(self, match: re.Match[str], behind: str) -> str:
        own = self._placeholders.whose(match)
        if own is None:
            self.foreign += 1
            label = next(group for group in match.groups() if group is not None)
            return f"[{label.upper()}]"
        if own not in self._values:
            self.unknown += 1
            return own
        value = self._values[own]
        if len(value) > self.room or _part_of_a_name(behind) or self._taboo():
            return own
        self.room -= len(value)
        self.restored[value] = own[1 : own.index("~")]
        return value

    def _read(self, text: str) -> None:
        """Remember in what place the text is by now, all but its end, where a mark may just begin."""
        self._unread += text
        if len(self._unread) > 4 * _AHEAD:
            self._unread = self._unread[self._place.read(self._unread, len(self._unread) - _AHEAD) :]

    def _taboo(self) -> bool:
        place = copy(self._place)
        place.read(self._unread, len(self._unread))
        return place.taboo


def restore(text: str, placeholders: Placeholders, values: Mapping[str, str]) -> str:
    """Put personal data back into a whole text."""
    restorer = Restorer(placeholders, values)
    return restorer.feed(text) + restorer.finish()


def strangers(text: str, placeholders: Placeholders, known: Collection[str] = ()) -> int:
    """Count the placeholders in *text* that are none of this session's, nor *known* to have been typed in it."""
    found = _GRAMMAR.finditer(text)
    return sum(placeholders.whose(match) is None and match[0] not in known for match in found)


def _undecided(text: str, at: int) -> int:
    """Give the position, from *at* on, behind which *text* may still change its meaning by what follows."""
    for start in range(max(len(text) - LONGEST, at), len(text)):
        first, before = text[start], text[max(start - 1, 0) : start]
        begins = first in "[\\" or (first.isalpha() and not (before.isalnum() or before in ("_", "~")))
        if begins and (_BEGUN.match(text, start) or text[start:].upper() in _PREFIXES):
            return start
    return len(text)


# --- where nothing is put back ----------------------------------------------------------------------------------------

_AHEAD = 40  # characters: no mark is longer
_MARK = re.compile(
    r"(?P<attribute>(?:href|src|srcset|action|poster|data|cite|background|ping|style)[ \t]{0,4}=[ \t]{0,4}[\"'])"
    r"|(?P<target>\]\([ \t]{0,4}<?|url\()"
    r"|(?P<link>//|www\.|[a-z0-9-]\.[a-z]{2,24}[/?#:]"
    r"|(?:mailto|tel|sms|data|javascript|vbscript|file|blob|geo|intent|whatsapp|skype|facetime|xmpp|magnet):(?!\s))"
    r"|(?P<label>\n[ ]{0,3}\[)|(?P<definition>\]:[ \t]{0,4})|(?P<tag><[a-z/!?])|(?P<end>[\s<>\"'`)])",
    re.IGNORECASE,
)


@dataclass(slots=True)
class _Place:
    """Say whether a program that shows text would send what comes next somewhere, with the address it stands in.

    ``link`` lasts to the next space or ``<``, or to the end of the attribute or tag around it, ``target`` to the
    parenthesis or the end of the line, ``tag`` to ``>``, ``quote`` is the one that ends an attribute, ``label`` means
    that the line begins as a definition of a link.
    """

    link: bool = False
    target: bool = False
    tag: bool = False
    quote: str = ""
    label: bool = False

    @property
    def taboo(self) -> bool:
        return self.link or self.target or self.tag or bool(self.quote)

    def read(self, text: str, stop: int) -> int:
        """Go on over the marks that begin before *stop*; give where the next one may begin."""
        at = 0
        for match in _MARK.finditer(text):
            if match.start() >= stop:
                break
            at = match.end()
            mark = match[0]
            match match.lastgroup:
                case "attribute":
                    self.quote = mark[-1]
                case "target":
                    self.target = self.link = True
                    self.tag = self.tag or mark.endswith("<")
                case "link":
                    self.link = True
                case "label":
                    self._end("\n")
                    self.label = True
                case "definition":
                    self.link = self.link or self.label
                case "tag":
                    self._end("<")
                    self.tag = True
                case _:
                    self._end(mark)
        return max(at, stop)

    def _end(self, mark: str) -> None:
        if mark == ")":
            self.target = False
            return
        if mark.isspace() or mark == "<" or (mark == ">" and self.tag) or mark == self.quote:
            self.link = False
        if mark == "\n":
            self.target = self.label = False
        elif mark == ">":
            self.tag = False
        elif mark == self.quote:
            self.quote = ""


def _part_of_a_name(behind: str) -> bool:
    """Say whether what follows makes a host name of it, which programs turn into a link by themselves."""
    return len(behind) == 2 and behind[0] == "." and behind[1].isalnum()
