"""What in a text could be somebody's detail: identifiers, amounts, addresses, names, rare words, and where they are.

All features share one name space of strings without separators, so that "night hawk", "Night-Hawk" and "NIGHTHAWK", or
"48-291" and "48291", are the same feature without any fuzzy matching. A feature begins and ends at words, never
reaches over a sentence's end, and depends on no word further away than `REACH`, so that a text can be judged while it
arrives.
"""

from __future__ import annotations

import base64
import binascii
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate, islice
from operator import add, itemgetter
from typing import NamedTuple

from cloister.leaks.forms import (
    ASCII_WORD,
    AT,
    CODE_CUES,
    COUNTED,
    CUES,
    DATE,
    DIGIT,
    DIGITS,
    DOT,
    EMAIL,
    ENCODED,
    ENDS,
    FIGURE,
    MADE_UP,
    MEASURE,
    NAME_CUES,
    OFFICE,
    PRICED_BEFORE,
    PRICED_BEHIND,
    PUBLIC,
    SENTENCE,
    SPELLED,
    SPELLING,
    TENS,
    WAYS,
    WITHIN,
    WITHIN_NUMBER,
    WORD,
)
from cloister.leaks.known import KNOWN
from cloister.leaks.words import UNLISTED, Frequencies, fold

REACH = 5
"""How many words, itself included, a feature consists of at most; runs of single characters count as one."""
MOST_SINGLES = 64
"""How many single characters in a row are read as one word."""

RARE = 36
"""A word this common or less says something by itself."""
STRESSED_RARE = 45
"""A word this common or less does so if it was announced as a code, in capitals."""
ORDINARY = 58
"""A word more common than this is part of no pair."""
PAIR_MOST = 106
"""Two words together more common than this say nothing, whatever they stand for."""
PLACE_MOST = 112
"""Likewise for two words behind a number."""
PLAIN_MOST = 100
"""Likewise for two words in lower case, with only a space between them."""
PROSE_MOST = 75
"""Two words in lower case that are rarer than this are claimed by whoever says them in passing."""


class Feature(NamedTuple):
    """Be something in a text that may be a detail of somebody's.

    ``kind`` and ``level`` say what it is and how telling; ``start`` and ``end`` where it is in the text. ``claim``:
    whoever says it owns it.
    """

    text: str
    kind: str
    level: int
    start: int
    end: int
    claim: bool


def features(text: str, words: Frequencies, *, claims: bool = True) -> list[Feature]:
    """Find everything in *text* that could be a detail, in the order in which it begins and ends.

    Without *claims*, which is cheaper, ``claim`` says nothing: for a reply that is only to be judged.
    """
    found = _Scan(text, words, claims).run()
    found.sort(key=itemgetter(3, 4))
    return found


def figures(text: str, words: Frequencies) -> list[Feature]:
    """Find the numbers, identifiers and amounts alone: of a long document the words are enough for all else."""
    return _Scan(text, words, False).figures()


class Spoken(NamedTuple):
    """Be the words of a text: as written, folded, how common, what stands before each, and where they are."""

    written: list[str]
    folded: list[str]
    tenths: list[int]
    before: list[str]
    starts: list[int]
    ends: list[int]
    merged: frozenset[int]


_Row = tuple[str, str, str, int, int]
"""As written, folded, what stands before, and where."""


def spoken(text: str, words: Frequencies) -> Spoken:
    """Take *text* apart into words; runs of single characters and digits in words become one."""
    ascii_only = text.isascii()
    parts = (WORD if not ascii_only or "'" in text else ASCII_WORD).split(text)
    written = parts[1::2]
    before = parts[0::2]
    ends_of = list(accumulate(map(len, parts)))
    starts = ends_of[0::2][: len(written)]
    ends = ends_of[1::2]
    if ascii_only:
        folded = "\n".join(written).lower().split("\n") if written else []
        if "'" in text:
            folded = [fold(word) if "'" in word else word for word in folded]
    else:
        folded = [fold(word) for word in written]
    merged: frozenset[int] = frozenset()
    single = [n for n, word in enumerate(folded) if word in SPELLED]
    if len(single) >= 3:
        runs = _runs(single, before)
        if runs:
            rows, merged = _merge(runs, list(zip(written, folded, before[:-1], starts, ends, strict=True)))
            written, folded, before, starts, ends = (list(column) for column in zip(*rows, strict=True))
    tenths = words.tenths(folded)
    if not CUES.isdisjoint(folded):
        tenths = [99 if word in CUES else common for word, common in zip(folded, tenths, strict=True)]
    return Spoken(written, folded, tenths, before, starts, ends, merged)


def _runs(single: Sequence[int], before: Sequence[str]) -> list[tuple[int, int]]:
    """Give the runs, of three and more, of neighbours in *single*: first and behind the last."""
    runs = []
    first = last = single[0]
    for n in [*single[1:], -1]:
        near = n == last + 1 and n - first < MOST_SINGLES and len(before[n]) <= 3 and not ENDS.search(before[n])
        # "N I G H T, I think": whoever spells does not change the separator.
        if not near or (last > first and before[n] != before[last]):
            if last - first >= 2:
                runs.append((first, last + 1))
            first = n
        last = n
    return runs


def _merge(runs: Sequence[tuple[int, int]], rows: Sequence[_Row]) -> tuple[list[_Row], frozenset[int]]:
    """Make one word of each run; say which words are such."""
    out: list[_Row] = []
    merged = set()
    at = 0
    for first, behind in runs:
        out += rows[at:first]
        joined = _joined([folded for _, folded, *_ in rows[first:behind]])
        if len(joined) >= 4:
            merged.add(len(out))
            out.append((joined, joined, rows[first][2], rows[first][3], rows[behind - 1][4]))
        else:
            out += rows[first:behind]
        at = behind
    return [*out, *rows[at:]], frozenset(merged)


def _joined(words: Sequence[str]) -> str:
    """Read single characters, and digits in words, as one: "four eight twenty one" is 4821."""
    joined = ""
    tens = False
    for word in words:
        digit = DIGITS.get(word, word)
        if tens and digit in "123456789":
            joined = joined[:-1] + digit
        else:
            joined += TENS.get(word, digit)
        tens = word in TENS and word != "ten"
    return joined


def standard(joined: str) -> str:
    """Give an identifier as it is compared: a telephone number without its prefix, whichever that was."""
    return joined[-9:] if 10 <= len(joined) <= 13 and joined.isdecimal() else joined


def cents(number: str) -> int:
    """Read an amount, however its thousands and decimals are marked."""
    digits = re.sub(r"\D", "", number)[:15]
    decimals = re.search(r"[.,](\d{1,2})$", number.rstrip(".,'"))
    return int(digits) * 10 ** (2 - len(decimals[1])) if decimals else int(digits) * 100


def _shouts(text: str) -> bool:
    return sum(map(str.isupper, text)) * 2 > sum(map(str.isalpha, text))


class _Scan:
    """Go through one text once."""

    def __init__(
        self, text: str, words: Frequencies, claims: bool = True, inside: tuple[int, int] | None = None
    ) -> None:
        self._text = text
        self._words = words
        self._claims = claims
        self._inside = inside
        self._found: list[Feature] = []
        spoke = spoken(text, words)
        self._spoken = spoke
        self._folded, self._tenths, self._before = spoke.folded, spoke.tenths, spoke.before
        # Whoever shouts, or writes a heading, stresses nothing by it.
        self._shouting = claims and len(spoke.folded) > 4 and _shouts(text[:2_000])

    def _add(self, text: str, kind: str, level: int, first: int, last: int, claim: bool) -> None:
        if self._inside:
            start, end = self._inside
        else:
            start, end = self._spoken.starts[first], self._spoken.ends[last]
        self._found.append(Feature(text, kind, level, start, end, claim))

    def run(self) -> list[Feature]:
        numbers = self._numbers()
        if "@" in self._text:
            self._emails()
        self._coded = self._after(CODE_CUES)
        self._cued = self._coded | self._after(NAME_CUES) if self._claims else self._coded
        self._addresses_in_words()
        self._singles()
        self._pairs()
        if numbers:
            self._places(numbers)
        return self._found

    def figures(self) -> list[Feature]:
        self._numbers()
        return self._found

    def _numbers(self) -> list[int]:
        """Find numbers of every kind; give the words that bear digits and belong to no amount, date or time."""
        bears: list[int] = []
        if self._spoken.merged or DIGIT.search(self._text):
            bears = [n for n, plain in enumerate(map(str.isalpha, self._folded)) if not plain]
        taken = self._amounts_and_dates(bears) if bears else set()
        numbers = [n for n in bears if n not in taken and self._folded[n]]
        if numbers:
            self._identifiers(numbers, taken)
        return numbers

    # --- amounts, dates, addresses ------------------------------------------------------------------------------------

    def _covered(self, start: int, end: int) -> range:
        """Give the words between two places of the text."""
        return range(bisect_left(self._spoken.starts, start), bisect_right(self._spoken.ends, end))

    def _amounts_and_dates(self, bears: Sequence[int]) -> set[int]:
        """Find amounts; give the words of these and of dates and times, which belong to no identifier."""
        taken: set[int] = set()
        text, starts = self._text, self._spoken.starts
        begins = [starts[n] for n in bears]
        for match in filter(None, (FIGURE.match(text, start) for start in begins)):
            start, end = match.span()
            priced = PRICED_BEFORE.search(text, max(0, start - 5), start)
            behind = PRICED_BEHIND.match(text, end)
            if not priced and not behind:
                continue
            covered = self._covered(priced.start() if priced else start, behind.end() if behind else end)
            taken.update(covered)
            value = cents(match[0])
            if covered and value % 500 and value >= 1_000:
                # 19.99 and the like are prices, which many replies name.
                price = value % 100 in (0, 49, 50, 90, 95, 99)
                self._add(f"{value}c", "price" if price else "amount", 0, covered[0], covered[-1], True)
        for match in filter(None, (DATE.match(text, start) for start in begins)):
            taken.update(self._covered(*match.span()))
        return taken

    def _emails(self) -> None:
        for match in EMAIL.finditer(self._text):
            said = "".join(map(fold, WORD.findall(match[0])))
            start, end = self._inside or match.span()
            kind = "public" if OFFICE.match(match[0]) else "email"
            self._found.append(Feature(said, kind, 0, start, end, True))

    def _addresses_in_words(self) -> None:
        """Find addresses that are spelled out: "ana dot lee at example dot com"."""
        folded, size = self._folded, len(self._folded)
        if AT.isdisjoint(folded) or (DOT.isdisjoint(folded) and "." not in self._before):
            return
        for at in [n for n, word in enumerate(folded) if word in AT and 0 < n < size - 1]:
            if not (self._spells(at) and self._spells(at + 1)):
                continue
            last = self._dotted(at + 1, 1)
            if last == at + 1:
                continue
            first = self._dotted(at - 1, -1)
            names = [folded[n] for n in range(first, last + 1) if n != at and folded[n] not in DOT]
            self._add("".join(names), "email", 0, first, last, True)

    def _dotted(self, n: int, step: int) -> int:
        """Go on from word *n* as long as there is a dot, and give the last word."""
        for _ in range(3):
            near, far = n + step, n + 2 * step
            if not 0 <= near < len(self._folded):
                break
            if self._before[max(n, near)] in (".", "-", "_"):
                n = near
            elif (
                0 <= far < len(self._folded)
                and self._folded[near] in DOT
                and self._spells(max(n, near))
                and self._spells(max(near, far))
            ):
                n = far
            else:
                break
        return n

    def _spells(self, n: int) -> bool:
        """Say whether word *n* and the one before it may be pieces of an address that is spelled out."""
        return SPELLING.fullmatch(self._before[n]) is not None

    # --- words and pairs ----------------------------------------------------------------------------------------------

    def _after(self, cues: frozenset[str]) -> set[int]:
        """Give the words that one of *cues*, as in "my codename is", points to."""
        cued: set[int] = set()
        if cues.isdisjoint(self._folded):
            return cued
        for n, word in enumerate(self._folded):
            if word in cues:
                for ahead in range(n + 1, min(n + 7, len(self._folded))):
                    between = self._before[ahead]
                    if SENTENCE.search(between):
                        break
                    cued.add(ahead)
        return cued

    def _singles(self) -> None:
        written, merged = self._spoken.written, self._spoken.merged
        for n in [n for n, tenths in enumerate(self._tenths) if tenths <= STRESSED_RARE]:
            tenths = self._tenths[n]
            if tenths > RARE:
                if len(self._folded[n]) >= 5 and (n in self._coded or written[n][0].isupper()):
                    claim = n in self._coded and written[n][0].isupper() and not self._shouting
                    self._add(self._folded[n], "code", 3, n, n, claim)
                continue
            word = self._folded[n]
            if len(word) < 5 or not word.isalpha():
                if tenths == UNLISTED and len(word) >= 5:
                    self._decoded(n)
                continue
            if n in merged:
                self._trimmed(n)
            # Five capitals and fewer are an abbreviation.
            stressed = (
                n in self._coded or n in merged or (len(word) > 5 and written[n].isupper() and not self._shouting)
            )
            level = 0 if tenths == UNLISTED else 1 if tenths <= 32 else 2
            self._add(word, "code", level, n, n, stressed)
            self._add("~" + word, "word", level, n, n, not stressed)
            if tenths == UNLISTED:
                self._decoded(n)
                if len(word) >= 6:
                    self._add(word[::-1], "reversed", 0, n, n, False)

    def _trimmed(self, n: int) -> None:
        """Read what was spelled without the word, of a single character, before or behind it: "N I G H T I think"."""
        word = self._folded[n]
        for less in {word[word[0] in "ai" :], word[: -1 if word[-1] in "aiy" else None]} - {word}:
            if len(less) >= 5:
                self._add(less, "code", 0, n, n, False)

    def _decoded(self, n: int) -> None:
        """Look into base64."""
        written = self._spoken.written[n]
        start = self._spoken.starts[n]
        if self._inside or len(written) < 4 or (written.isalpha() and (written.islower() or written.istitle())):
            return
        token = ENCODED.match(self._text, start)
        if token is None or (start and (self._text[start - 1].isalnum() or self._text[start - 1] in "+/=_-")):
            return
        raw = token[0].rstrip("=").replace("-", "+").replace("_", "/")
        try:
            said = base64.b64decode(raw + "=" * (-len(raw) % 4), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return
        if said.isprintable():
            last = (self._covered(start, token.end()) or [n])[-1]  # none where letters of another alphabet go on
            inside = (start, self._spoken.ends[last])
            for feature in _Scan(said, self._words, False, inside).run():
                self._found.append(feature._replace(claim=False))

    def _pairs(self) -> None:
        folded, tenths, before, written = self._folded, self._tenths, self._before, self._spoken.written
        totals = list(map(add, tenths, islice(tenths, 1, None)))
        for n in [n for n, total in enumerate(totals) if total <= PAIR_MOST]:
            if tenths[n] > ORDINARY or tenths[n + 1] > ORDINARY:
                continue
            total = totals[n]
            between = before[n + 1]
            plain = between == " "
            capital = written[n][0].isupper() and written[n + 1][0].isupper()
            if plain and total > PLAIN_MOST and not capital:
                continue
            one, two = folded[n], folded[n + 1]
            if len(one) < 2 or len(two) < 2 or len(one) + len(two) < 6 or not (one.isalpha() and two.isalpha()):
                continue
            if between == ", " and capital:
                self._add(two + one, "name", _rarity(total), n, n + 1, False)
                continue
            if not plain and WITHIN.fullmatch(between) is None:
                continue
            joined = not plain and " " not in between
            if one + two in KNOWN:
                continue
            kind = "name" if capital else "joined" if joined else "pair"
            stressed = self._claims and self._stresses(n, capital)
            self._add(one + two, kind, _rarity(total), n, n + 1, stressed)
            if total <= PROSE_MOST:
                self._add("~" + one + two, "phrase", _rarity(total), n, n + 1, not stressed)

    def _stresses(self, n: int, capital: bool) -> bool:
        """Say whether words *n* and the next are written as a name, and are not a turn of speech."""
        if n in self._cued and n + 1 in self._cued:
            return True
        if not capital or self._shouting:
            return False
        # The first word of a sentence is capitalised in any case.
        opens = n == 0 or SENTENCE.search(self._before[n]) is not None
        alone = len(self._folded) == 2
        return alone or not (opens and self._tenths[n] >= 50 and self._spoken.written[n].istitle())

    # --- numbers ------------------------------------------------------------------------------------------------------

    def _links(self, n: int, numbers: set[int]) -> bool:
        """Say whether word *n*, which is beside a number, may be a piece of the same identifier."""
        word, written = self._folded[n], self._spoken.written[n]
        if n in numbers:
            return MEASURE.fullmatch(written) is None
        if not word.isascii() or len(word) > 6 or not word.isalpha():
            return False
        if self._tenths[n] == UNLISTED and (len(word) <= 4 or written.isupper()):
            return True
        return len(word) <= 4 and (written.isupper() or (len(word) <= 2 and self._tenths[n] < 58))

    def _hyphened(self, n: int) -> bool:
        """Say whether word *n* is joined to the one before it by more than a space."""
        between = self._before[n]
        return bool(between) and " " not in between and "." not in between and "/" not in between

    def _identifiers(self, numbers: Sequence[int], taken: set[int]) -> None:
        """Find runs of chunks that bear digits, with the short letters beside them."""
        digits = set(numbers)
        folded = self._folded
        done = -1
        for n in numbers:
            if n <= done or MEASURE.fullmatch(self._spoken.written[n]):
                continue
            first = n
            while first > done + 1 and n - first < 2 and self._joins(first, first - 1, digits, taken):
                first -= 1
            last = n
            while last + 1 < len(folded) and self._joins(last + 1, last + 1, digits, taken):
                last += 1
            done = last
            self._runs_of(first, last)

    def _joins(self, border: int, n: int, digits: set[int], taken: set[int]) -> bool:
        if n in taken or WITHIN_NUMBER.fullmatch(self._before[border]) is None or ENDS.search(self._before[border]):
            return False
        if self._links(n, digits):
            return True
        return self._hyphened(border) and len(self._folded[n]) <= 6 and self._folded[n].isalnum()

    def _runs_of(self, first: int, last: int) -> None:
        """Add the pieces of a run up to `REACH` words long; who says it claims the whole and its plain parts."""
        folded, size = self._folded, last - first + 1
        whole = (first, last) if size <= REACH else None
        claimed = {whole} | set(self._groups(first, last))
        for start in range(first, last + 1):
            joined = ""
            for end in range(start, min(start + REACH, last + 1)):
                joined += folded[end]
                if (
                    len(joined) < 4
                    or len(joined) > 64
                    or joined.isalpha()
                    or (folded[start + 2 : end + 1] and ("".join(folded[start : start + 3]).isalpha()))
                ):
                    continue
                alone = start == end and len(joined) >= 5
                self._identifier(joined, start, end, alone or (start, end) in claimed)

    def _groups(self, first: int, last: int) -> list[tuple[int, int]]:
        """Give the parts of a run between its spaces."""
        groups = []
        start = first
        for n in range(first + 1, last + 2):
            if n > last or " " in self._before[n]:
                if n - start <= REACH:
                    groups.append((start, n - 1))
                start = n
        return groups

    def _identifier(self, joined: str, first: int, last: int, claim: bool) -> None:
        if joined.isdecimal():
            if (len(joined) == 4 and joined[:2] in ("19", "20")) or (len(joined) <= 6 and joined.endswith("00")):
                return
            if MADE_UP.fullmatch(joined) or joined in "01234567890123456789" or joined in "98765432109876543210":
                return
            same = standard(joined)
            kind = "public" if PUBLIC.fullmatch(joined) else "number"
            self._add(same, kind, min(len(same), 16), first, last, claim)
        else:
            same = joined
            self._add(same, "identifier", room(same), first, last, claim)
        if first == last and first in self._spoken.merged and (joined[0] in "ai" or joined[-1] in "ai"):
            for less in {joined.strip("ai"), joined.rstrip("ai"), joined.lstrip("ai")} - {joined}:
                if len(less) >= 4:
                    self._add(standard(less), "identifier", room(less), first, last, False)
        if first == last and len(joined) >= 5:
            self._decoded(first)
            back = standard(joined[::-1])
            self._add(back, "number" if back.isdecimal() else "identifier", room(back), first, last, False)

    def _places(self, numbers: Sequence[int]) -> None:
        """Find a number with the words beside it: 742 Evergreen Terrace, Night Hawk 42."""
        folded, tenths, written = self._folded, self._tenths, self._spoken.written

        def word(n: int, border: int) -> bool:
            return (
                0 <= n < len(folded)
                and self._before[border] in (" ", "-", "_", " #", "")
                and len(folded[n]) >= 3
                and folded[n].isalpha()
                and (tenths[n] <= 60 or folded[n] in WAYS)
                and folded[n] not in COUNTED
            )

        for n in numbers:
            number = folded[n]
            if not number.isdecimal() or len(number) > 6:
                continue
            if word(n + 1, n + 1):
                named = written[n + 1][0].isupper() and not self._shouting
                two = word(n + 2, n + 2)
                way = two and folded[n + 2].removesuffix("s") in WAYS
                if tenths[n + 1] <= 50:
                    level = 3 if len(number) >= 3 else 4
                    self._add(number + folded[n + 1], "place", level, n, n + 1, (way or named) and len(number) > 1)
                if two and (way or tenths[n + 1] + tenths[n + 2] <= PLACE_MOST):
                    capital = written[n + 1][0].isupper()
                    level = 2 if len(number) == 1 else 0 if way or capital or self._before[n + 2] != " " else 1
                    self._add(number + folded[n + 1] + folded[n + 2], "place", level, n, n + 2, way or named)
            if word(n - 1, n) and len(number) > 1:
                named = (written[n - 1][0].isupper() and not self._shouting) or n in self._cued
                if tenths[n - 1] <= 45:
                    level = 3 if len(number) >= 3 else 4
                    self._add(folded[n - 1] + number, "place", level, n - 1, n, named)
                if word(n - 2, n - 1) and tenths[n - 1] + tenths[n - 2] <= PAIR_MOST:
                    capital = written[n - 1][0].isupper() and written[n - 2][0].isupper()
                    level = 0 if capital or self._before[n] != " " else 2
                    self._add(folded[n - 2] + folded[n - 1] + number, "place", level, n - 2, n, named)


def room(identifier: str) -> int:
    """Say how much room there is for identifiers like this, in decimal digits."""
    digits = sum(map(str.isdecimal, identifier))
    return min(digits + min(len(identifier) - digits, 4), 16)


def _rarity(total: int) -> int:
    """Give the level of two words by how common they are together."""
    return 0 if total <= 60 else 1 if total <= 75 else 2 if total <= 88 else 3 if total <= 95 else 4
