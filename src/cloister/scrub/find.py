"""The search: every rule looks at the plain form of a text, and what overlaps is settled."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from cloister.scrub import addresses, digits, links, lists, names
from cloister.scrub.plain import Plain
from cloister.scrub.plain import words as plain_words
from cloister.scrub.spans import UNSEARCHED, Found, Span, Unsearchable

TYPES = "PERSON EMAIL PHONE CREDIT_CARD US_SSN ZIP IBAN IP URL DATE_OF_BIRTH STREET_ADDRESS".split()
_BASE64 = re.compile(r"[A-Za-z0-9+/](?<![\w+/=.].)[A-Za-z0-9+/]{11,399}+={0,2}(?![\w+/=@.])")
_SHORTEST = 12  # of base64 that could hold personal data
_DIGIT = re.compile(r"\d")
_CHECKED, _LIKELY = ("CREDIT_CARD", "US_SSN"), ("IP", "PHONE")
_TYPE = re.compile(r"[A-Z][A-Z0-9_]{0,39}")

# What stands where personal data was is none: [EMAIL], and what `cloister.scrub.placeholders` makes.
_LABELS = "|".join((*TYPES, UNSEARCHED, *"NAME CARD SSN ADDRESS BIRTHDATE TEXT DATA".split()))
_LABELLED = re.compile(rf"\[(?:{_LABELS})\]")
_STANDS = re.compile(
    rf"\[ ?[A-Za-z]{{2,12}}~[0-9A-Za-z]{{8}}~[0-9A-Za-z]{{4}} ?\\?\]|{_LABELLED.pattern}"
    rf"|(?<![\w~])(?i:{_LABELS})~[0-9A-Za-z]{{8}}~[0-9A-Za-z]{{4}}(?![\w~])"
)


class Detector(Protocol):
    """Finds personal data by rules of its own; give such objects to `Scrub` or `Scrubber`."""

    def find(self, text: str) -> Iterable[Span]:
        """Give what of *text* is personal data, by offsets in it."""
        ...


class Finder:
    """Find personal data in text."""

    def __init__(self, *detectors: Detector, limit: int = 1_000_000) -> None:
        self._detectors = detectors
        self._limit = limit

    def find(self, text: str) -> list[Span]:
        """Give the personal data in *text*, sorted and apart from each other."""
        return [Span(start, end, kind) for start, end, kind, _ in self.explain(text)]

    def explain(self, text: str) -> list[Found]:
        """Give the same as `find`, each with the reason."""
        if len(text) > self._limit:
            return [Found(0, len(text), UNSEARCHED, f"longer than {self._limit:,} characters, so all of it")]
        found = [_checked(span, text, detector) for detector in self._detectors for span in detector.find(text)]
        pattern = _STANDS if "~" in text else _LABELLED if "]" in text else None
        stands = [match.span() for match in pattern.finditer(text)] if pattern else ()
        plain = Plain(_blanked(text, stands) if stands else text)
        try:
            searched = _search(plain.text)
        except Unsearchable as refused:
            return [Found(0, len(text), UNSEARCHED, f"{refused}, so all of it")]
        if plain.moved:
            searched = [Found(*plain.original(hit.start, hit.end), hit.type, hit.why) for hit in searched]
        return _settled(found + searched, len(text), stands)


def _encoded(text: str) -> Iterator[Found]:
    """Find base64 that holds personal data."""
    tokens = text.split()
    if max(map(len, tokens), default=0) < _SHORTEST:
        return
    if not any([len(word) >= _SHORTEST and word[1:] != word[1:].lower() for word in tokens]):
        return
    for match in _BASE64.finditer(text):
        value = match.group()
        if len(value) % 4 or value.islower() or value.isupper() or value[1:].islower():
            continue
        try:
            held = base64.b64decode(value, validate=True).decode()
        except ValueError:
            continue
        if held.isprintable() and (found := _search(held, deep=False)):
            yield Found(match.start(), match.end(), found[0].type, f"base64 of this: {found[0].why}")


def _search(text: str, deep: bool = True) -> list[Found]:
    """Run all rules on the plain form of a text; those whose findings win come first."""
    known = lists.load()
    low = text.lower()
    words = plain_words(low)
    found: list[Found] = []
    if "@" in text or "at" in low:
        found += links.emails(text, low)
    digit = _DIGIT.search(text) is not None
    numbers = digits.numbers(text, words) if digit else []
    if digit:
        found += digits.ibans(text)
        found += [hit for hit in numbers if hit.type in _CHECKED] if numbers else ()
    if "." in text:
        found += links.urls(text, low)
    if ":" in text:
        found += links.ip6(text)
    if digit:
        found += digits.birth_dates(text, low, words)
        found += [hit for hit in numbers if hit.type in _LIKELY]
        found += addresses.addresses(text, low, known)
        found += [hit for hit in numbers if hit.type == "ZIP"]
        found += digits.postcodes(text)
    if deep:
        found += _encoded(text)
    found += names.names(text, low, words, known)
    return found


def _blanked(text: str, stands: Sequence[tuple[int, int]]) -> str:
    """Put into the place of placeholders what no rule finds anything in or beyond."""
    parts: list[str] = []
    at = 0
    for start, end in stands:
        parts += (text[at:start], "\x1a" * (end - start))
        at = end
    return "".join((*parts, text[at:]))


def _settled(found: Sequence[Found], size: int, stands: Sequence[tuple[int, int]] = ()) -> list[Found]:
    """Take what comes first where findings overlap; of what comes later, its longest part that is still free."""
    if len(found) < 2 and not stands:
        return list(found)
    taken = bytearray(size)
    for start, end in stands:
        taken[start:end] = b"\1" * (end - start)
    kept: list[Found] = []
    for hit in found:
        start, end = hit.start, hit.end
        if taken.find(1, start, end) >= 0:
            start, end = max(_free(taken, start, end), key=lambda part: part[1] - part[0], default=(start, start))
            if end - start < 3:
                continue
            hit = hit._replace(start=start, end=end)
        taken[start:end] = b"\1" * (end - start)
        kept.append(hit)
    return sorted(kept)


def _free(taken: bytearray, start: int, end: int) -> Iterable[tuple[int, int]]:
    """Give the parts of *start* to *end* that nothing has taken."""
    while start < end:
        stop = taken.find(1, start, end)
        if stop < 0:
            stop = end
        if stop > start:
            yield start, stop
        start = taken.find(0, stop, end) if stop < end else end
        if start < 0:
            return


def _checked(span: Span, text: str, detector: Detector) -> Found:
    """Refuse what a detector of the user's cannot have found."""
    start, end, kind = span
    if not (0 <= start < end <= len(text)) or not _TYPE.fullmatch(kind):
        raise ValueError(
            f"{type(detector).__name__} found something outside the text, or of a type not like EMPLOYEE_ID"
        )
    return Found(start, end, kind, f"found by {type(detector).__name__}")
