"""A text taken apart into words, and what a piece of it may be."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, compress, count, repeat
from operator import add, sub
from typing import NamedTuple

from cloister.leaks.forms import APOSTROPHE, AT, CUES, DIGITS, DOT, ENDS, SPELLED, TENS
from cloister.leaks.words import Frequencies, fold

MOST_SINGLES = 64
"""How many single characters in a row are read as one word."""
LONGEST_WORD = 200
"""Longer ones are cut."""
ANNOUNCING = 99
"""How common a word is taken to be that announces a detail: it is part of none."""

IS_SPELLED, IS_CUE, IS_AT, IS_DOT = 1, 2, 3, 4
THREE = bytes([IS_SPELLED]) * 3
_MARKS = {
    word: mark for mark, words in ((IS_SPELLED, SPELLED), (IS_CUE, CUES), (IS_AT, AT), (IS_DOT, DOT)) for word in words
}


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


@dataclass(slots=True)
class Spoken:
    """Be the words of a text: folded, how common, where they are, and which of them have a part of their own.

    What is asked of few words, as how they are written, is taken from the text when it is asked.
    """

    text: str
    folded: list[str]
    tenths: list[int]
    starts: list[int]
    ends: list[int]
    marks: bytes
    letters: bytes
    merged: frozenset[int]

    def __len__(self) -> int:
        return len(self.folded)

    def written(self, n: int) -> str:
        """Give word *n* as it is written; what was spelled is written in small letters."""
        return self.folded[n] if n in self.merged else self.text[self.starts[n] : self.ends[n]]

    def before(self, n: int) -> str:
        """Give what stands between word *n* and the one before it."""
        return self.text[self.ends[n - 1] if n else 0 : self.starts[n]]

    def capital(self, n: int) -> bool:
        """Say whether word *n* begins with a capital."""
        return self.text[self.starts[n]].isupper() and n not in self.merged

    def covered(self, start: int, end: int) -> range:
        """Give the words between two places of the text."""
        return range(bisect_left(self.starts, start), bisect_right(self.ends, end))

    def no_more_common(self, table: bytes) -> bytes:
        """Give for each word whether it is as common as *table*, made by `up_to`, says or less."""
        try:
            return bytes(self.tenths).translate(table)
        except ValueError:  # another's frequencies
            return bytes(min(max(tenths, 0), 255) for tenths in self.tenths).translate(table)

    def feature(self, text: str, kind: str, level: int, first: int, last: int, claim: bool) -> Feature:
        """Say that words *first* to *last* may be a detail."""
        return Feature(text, kind, level, self.starts[first], self.ends[last], claim)


def up_to(most: int) -> bytes:
    """Make the table of what is as common as *most* or less."""
    return bytes(tenths <= most for tenths in range(256))


class Letters(dict[int, str]):
    """Read letters and digits, but for those given, as themselves, and all else as blanks."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        plain = character if character.isalnum() else " "
        if len(self) < 4_096:
            self[code] = plain
        return plain


_PLAIN = Letters({code: chr(code).lower() if chr(code).isalnum() else " " for code in range(128)})
_PLAIN[ord("'")] = _PLAIN[ord("’")] = "'"


def words_of(text: str) -> tuple[list[str], list[int], list[int]]:
    """Give the folded words of *text* and where each begins and ends.

    A word is letters and digits, and an apostrophe between two of them unless a digit follows.
    """
    plain = text.translate(_PLAIN)
    apostrophes = "'" in plain
    if apostrophes:
        plain = APOSTROPHE.sub(" ", plain)
    pieces = plain.split(" ")
    sizes = list(map(len, pieces))
    behind = list(map(add, accumulate(sizes), count()))
    words = list(filter(None, pieces))
    starts = list(compress(map(sub, behind, sizes), pieces))
    ends = list(compress(behind, pieces))
    if max(sizes) > LONGEST_WORD:
        places = [
            (at, min(at + LONGEST_WORD, end))
            for start, end in zip(starts, ends, strict=True)
            for at in range(start, end, LONGEST_WORD)
        ]
        starts, ends = [start for start, _ in places], [end for _, end in places]
        words = [plain[start:end] for start, end in places]
    if apostrophes or not text.isascii():
        words = [fold(word) if "'" in word or not word.isascii() else word for word in words]
    return words, starts, ends


def where(marks: bytes, mark: int) -> Iterator[int]:
    """Give the words that bear *mark*."""
    at = marks.find(mark)
    while at >= 0:
        yield at
        at = marks.find(mark, at + 1)


def spoken(text: str, words: Frequencies) -> Spoken:
    """Take *text* apart into words; runs of single characters and digits in words become one."""
    folded, starts, ends = words_of(text)
    marks = marks_of(folded)
    merged: frozenset[int] = frozenset()
    if THREE in marks:
        runs = _runs(text, marks, starts, ends)
        if runs:
            rows, merged = _merge(runs, list(zip(folded, starts, ends, strict=True)))
            folded, starts, ends = (list(column) for column in zip(*rows, strict=True))
            marks = marks_of(folded)
    tenths = list(words.tenths(folded))
    for n in where(marks, IS_CUE):
        tenths[n] = ANNOUNCING
    return Spoken(text, folded, tenths, starts, ends, marks, bytes(map(str.isalpha, folded)), merged)


def marks_of(folded: Iterable[str]) -> bytes:
    return bytes(map(_MARKS.get, folded, repeat(0)))


def _runs(text: str, marks: bytes, starts: Sequence[int], ends: Sequence[int]) -> list[tuple[int, int]]:
    """Give the runs, of three and more, of neighbours that may be spelled: first and behind the last."""
    runs = []
    single = [n for n, mark in enumerate(marks) if mark == IS_SPELLED]
    first = last = single[0]
    between = ""
    for n in [*single[1:], -1]:
        near = n == last + 1 and n - first < MOST_SINGLES and starts[n] - ends[last] <= 3
        if near:
            gap = text[ends[last] : starts[n]]
            # "N I G H T, I think": whoever spells does not change the separator.
            near = not ENDS.search(gap) and (last == first or gap == between)
            between = gap
        if not near:
            if last - first >= 2:
                runs.append((first, last + 1))
            first = n
        last = n
    return runs


_Row = tuple[str, int, int]
"""Folded, and where."""


def _merge(runs: Sequence[tuple[int, int]], rows: Sequence[_Row]) -> tuple[list[_Row], frozenset[int]]:
    """Make one word of each run; say which words are such."""
    out: list[_Row] = []
    merged = set()
    at = 0
    for first, behind in runs:
        out += rows[at:first]
        joined = _joined([folded for folded, *_ in rows[first:behind]])
        if len(joined) >= 4:
            merged.add(len(out))
            out.append((joined, rows[first][1], rows[behind - 1][2]))
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
