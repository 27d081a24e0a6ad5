"""Numbers: amounts of money, identifiers, and places that have a number; dates, times and measures are none."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from cloister.leaks.forms import (
    COUNTED,
    DATE,
    ENDS,
    FIGURE,
    MADE_UP,
    MEASURE,
    PRICED_BEFORE,
    PUBLIC,
    WAYS,
    WITHIN_NUMBER,
)
from cloister.leaks.spoken import Feature, Spoken, where
from cloister.leaks.words import UNLISTED

REACH = 5
"""How many words, itself included, a feature consists of at most; runs of single characters count as one."""
LINKS = 58
"""A word of one or two letters that is less common than this may be a piece of an identifier."""
WAY_MOST = 60
"""A word this common or less is the name of a street or a codeword, if it has a number."""
CLEARLY_MOST = 50
"""Such a word says something together with the number alone."""
BEFORE_MOST = 45
"""Likewise before the number."""
PLACE_MOST = 112
"""Two words behind a number that are together more common than this say nothing."""
PAIR_MOST = 106
"""Likewise for two words anywhere else."""

_ENDS_PRICE = frozenset("$€£¥ dDrRpPfF")
"""What may stand before a figure that is an amount."""
_ALONE = frozenset("aeiouyAI")
"""Letters that are words: the frequencies know none of one letter, and take them for rare."""
_ORDINAL = re.compile(r"\d{1,2}(?:st|nd|rd|th)")
_WITHIN_DATE = frozenset("-./:")


def bearing(spoke: Spoken) -> list[int]:
    """Give the words that are not of letters alone."""
    return list(where(spoke.letters, 0))


# --- amounts and dates ------------------------------------------------------------------------------------------------


def amounts(spoke: Spoken, bears: Sequence[int], found: list[Feature]) -> set[int]:
    """Find amounts; give the words of these and of dates and times, which belong to no identifier."""
    taken: set[int] = set()
    text = spoke.text
    for n in bears:
        start = spoke.starts[n]
        figure = FIGURE.match(text, start)
        if figure is None:
            continue
        # The character says cheaply where there is no currency.
        before = start > 0 and text[start - 1] in _ENDS_PRICE and PRICED_BEFORE.search(text, max(0, start - 5), start)
        if not before and not figure[2]:
            continue
        covered = spoke.covered(before.start() if before else start, figure.end())
        taken.update(covered)
        value = cents(figure[1])
        if covered and value % 500 and value >= 1_000:
            # 19.99 and the like are prices, which many replies name.
            kind = "price" if value % 100 in (0, 49, 50, 90, 95, 99) else "amount"
            found.append(spoke.feature(f"{value}c", kind, 0, covered[0], covered[-1], True))
    for n in bears:
        # In a date the first number is followed by a mark.
        date = text[spoke.ends[n] : spoke.ends[n] + 1] in _WITHIN_DATE and DATE.match(text, spoke.starts[n])
        if date:
            taken.update(spoke.covered(*date.span()))
    return taken


def cents(number: str) -> int:
    """Read an amount, however its thousands and decimals are marked."""
    digits = re.sub(r"\D", "", number)[:15]
    decimals = re.search(r"[.,](\d{1,2})$", number.rstrip(".,'"))
    return int(digits) * 10 ** (2 - len(decimals[1])) if decimals else int(digits) * 100


# --- identifiers ------------------------------------------------------------------------------------------------------


class Identifiers:
    """Find runs of chunks that bear digits, with the short letters beside them.

    *decoded* gives what an encoded word says.
    """

    def __init__(
        self, spoke: Spoken, taken: set[int], found: list[Feature], decoded: Callable[[int], list[Feature]]
    ) -> None:
        self._spoke = spoke
        self._taken = taken
        self._found = found
        self._decoded = decoded

    def find(self, numbers: Sequence[int]) -> None:
        digits = set(numbers)
        size = len(self._spoke)
        done = -1
        for n in numbers:
            if n <= done or self._measures(n):
                continue
            first = n
            while first > done + 1 and n - first < 2 and self._joins(first, first - 1, digits):
                first -= 1
            last = n
            while last + 1 < size and self._joins(last + 1, last + 1, digits):
                last += 1
            done = last
            self._pieces(first, last)

    def _measures(self, n: int) -> bool:
        """Say whether word *n* is a measure, as 20kg."""
        written = self._spoke.written(n)
        return not written.isdecimal() and MEASURE.fullmatch(written) is not None

    def _joins(self, border: int, n: int, digits: set[int]) -> bool:
        """Say whether word *n* belongs to the identifier on the other side of what stands before word *border*."""
        if n in self._taken:
            return False
        between = self._spoke.before(border)
        if between == " ":
            if self._apart(border, n):
                return False
        elif WITHIN_NUMBER.fullmatch(between) is None or ENDS.search(between):
            return False
        if self._links(n, digits):
            return True
        word = self._spoke.folded[n]
        hyphened = bool(between) and " " not in between and "." not in between and "/" not in between
        return hyphened and len(word) <= 6 and word.isalnum() and _ORDINAL.fullmatch(word) is None

    def _apart(self, border: int, n: int) -> bool:
        """Say whether the space before word *border* parts word *n* from a number: a 12, 12 I; 12 pm, 20 kg."""
        written = self._spoke.written(n)
        if written in _ALONE:
            return True
        number = self._spoke.written(n - 1) if border == n else ""
        if len(number) == 4 and len(written) == 1:  # more likely the end of a code than a measure
            return False
        return bool(number) and MEASURE.fullmatch(number + written) is not None

    def _links(self, n: int, digits: set[int]) -> bool:
        """Say whether word *n*, which is beside a number, may be a piece of the same identifier."""
        if n in digits:
            return not self._measures(n)
        word = self._spoke.folded[n]
        size = len(word)
        if size > 6 or not word.isascii() or not word.isalpha():
            return False
        if size <= 4:
            tenths = self._spoke.tenths[n]
            return tenths == UNLISTED or (size <= 2 and tenths < LINKS) or self._spoke.written(n).isupper()
        return self._spoke.tenths[n] == UNLISTED and self._spoke.written(n).isupper()

    def _pieces(self, first: int, last: int) -> None:
        """Add the pieces of a run up to `REACH` words long; who says it claims the whole and its plain parts."""
        folded = self._spoke.folded
        if first == last:
            if len(folded[first]) >= 4:
                self._piece(folded[first], first, first, True)
            return
        claimed = self._groups(first, last)
        if last - first < REACH:
            claimed.add((first, last))
        for start in range(first, last + 1):
            joined = ""
            for end in range(start, min(start + REACH, last + 1)):
                joined += folded[end]
                if (
                    len(joined) < 4
                    or (end >= start + 2 and "".join(folded[start : start + 3]).isalpha())
                    or joined.isalpha()
                ):
                    continue
                alone = start == end and len(joined) >= 5
                self._piece(joined, start, end, alone or (start, end) in claimed)

    def _groups(self, first: int, last: int) -> set[tuple[int, int]]:
        """Give the parts of a run between its spaces."""
        groups = set()
        start = first
        for n in range(first + 1, last + 2):
            if n > last or " " in self._spoke.before(n):
                if n - start <= REACH:
                    groups.add((start, n - 1))
                start = n
        return groups

    def _piece(self, joined: str, first: int, last: int, claim: bool) -> None:
        if len(joined) > LONGEST or joined.isalpha():
            return
        if joined.isdecimal():
            if _says_nothing(joined):
                return
            same = standard(joined)
            kind = "public" if len(joined) >= 9 and PUBLIC.fullmatch(joined) else "number"
            self._add(same, kind, min(len(same), 16), first, last, claim)
        else:
            self._add(joined, "identifier", self._room(joined, first, last), first, last, claim)
        if first != last:
            return
        if first in self._spoke.merged and (joined[0] in "ai" or joined[-1] in "ai"):
            for less in {joined.strip("ai"), joined.rstrip("ai"), joined.lstrip("ai")} - {joined}:
                if len(less) >= 4:
                    self._add(standard(less), "identifier", room(less), first, last, False)
        if len(joined) >= 5:
            self._found += self._decoded(first)
            back = standard(joined[::-1])
            self._add(back, "number" if back.isdecimal() else "identifier", room(back), first, last, False)

    def _room(self, joined: str, first: int, last: int) -> int:
        """Say how much room there is for what words *first* to *last* say: of a known word or a year, next to none."""
        if first == last:
            return room(joined)
        spoke = self._spoke
        digits = letters = 0
        for n in range(first, last + 1):
            word = spoke.folded[n]
            alone = (n == first or spoke.before(n) == " ") and (n == last or spoke.before(n + 1) == " ")
            known = alone and (spoke.tenths[n] != UNLISTED if word.isalpha() else _YEAR.fullmatch(word) is not None)
            size = sum(map(str.isdecimal, word))
            digits += 1 if known and size else size
            letters += 1 if known and not size else len(word) - size
        return min(digits + min(letters, 4), 16)

    def _add(self, text: str, kind: str, level: int, first: int, last: int, claim: bool) -> None:
        self._found.append(self._spoke.feature(text, kind, level, first, last, claim))


LONGEST = 64
"""How long an identifier is at most."""
_YEAR = re.compile("(?:19|20)[0-9]{2}")


def _says_nothing(number: str) -> bool:
    """Say whether *number* is a year, a round or a made-up one."""
    size = len(number)
    return (
        (size == 4 and number[:2] in ("19", "20"))
        or (size <= 6 and number.endswith("00"))
        or number in "01234567890123456789"
        or number in "98765432109876543210"
        or MADE_UP.fullmatch(number) is not None
    )


def standard(joined: str) -> str:
    """Give an identifier as it is compared: a telephone number without its prefix, whichever that was."""
    return joined[-9:] if 10 <= len(joined) <= 13 and joined.isdecimal() else joined


def room(identifier: str) -> int:
    """Say how much room there is for identifiers like this, in decimal digits."""
    digits = sum(map(str.isdecimal, identifier))
    return min(digits + min(len(identifier) - digits, 4), 16)


# --- places -----------------------------------------------------------------------------------------------------------


def places(spoke: Spoken, numbers: Sequence[int], cued: set[int], shouting: bool, found: list[Feature]) -> None:
    """Find a number with the words beside it: 742 Evergreen Terrace, Night Hawk 42."""
    folded, tenths = spoke.folded, spoke.tenths

    def word(n: int, border: int) -> bool:
        if not 0 <= n < len(folded):
            return False
        word = folded[n]
        return (
            (tenths[n] <= WAY_MOST or word in WAYS)
            and len(word) >= 3
            and word.isalpha()
            and word not in COUNTED
            and spoke.before(border) in (" ", "-", "_", " #", "")
        )

    for n in numbers:
        number = folded[n]
        if not number.isdecimal() or len(number) > 6:
            continue
        if word(n + 1, n + 1):
            named = spoke.capital(n + 1) and not shouting
            two = word(n + 2, n + 2)
            way = two and folded[n + 2].removesuffix("s") in WAYS
            if tenths[n + 1] <= CLEARLY_MOST:
                level = 3 if len(number) >= 3 else 4
                claim = (way or named) and len(number) > 1
                found.append(spoke.feature(number + folded[n + 1], "place", level, n, n + 1, claim))
            if two and (way or tenths[n + 1] + tenths[n + 2] <= PLACE_MOST):
                capital = spoke.capital(n + 1)
                level = 2 if len(number) == 1 else 0 if way or capital or spoke.before(n + 2) != " " else 1
                said = number + folded[n + 1] + folded[n + 2]
                found.append(spoke.feature(said, "place", level, n, n + 2, way or named))
        if len(number) > 1 and word(n - 1, n):
            named = (spoke.capital(n - 1) and not shouting) or n in cued
            if tenths[n - 1] <= BEFORE_MOST:
                level = 3 if len(number) >= 3 else 4
                found.append(spoke.feature(folded[n - 1] + number, "place", level, n - 1, n, named))
            if word(n - 2, n - 1) and tenths[n - 1] + tenths[n - 2] <= PAIR_MOST:
                capital = spoke.capital(n - 1) and spoke.capital(n - 2)
                level = 0 if capital or spoke.before(n) != " " else 2
                said = folded[n - 2] + folded[n - 1] + number
                found.append(spoke.feature(said, "place", level, n - 2, n, named))
