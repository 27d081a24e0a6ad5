"""Make a text plain for the search: full-width digits, invisible marks, %40, accents in two parts.

What a person reads as ``ana@example.com`` may be written with characters that no pattern expects, by accident (copied
from a web page) or to get past a filter. The search looks at the plain form, and what it finds is mapped back.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from itertools import chain

# Marks that show nothing; letters followed by accents of their own; bytes as URLs write them.
_INVISIBLE = "\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\U000e0000-\U000e007f"
_PARTS = re.compile(rf"[{_INVISIBLE}]{{1,64}}|%[2-7][0-9A-Fa-f]|[^\W\d_][\u0300-\u036f]{{1,8}}")
# What may have a plainer form: all but Latin letters with accents.
_FOREIGN = re.compile("[\u00a0\u00ad\u00b4\u0130\u02bc\u0300-\U0010ffff]")
_MIXED = re.compile("[A-Za-z][\u0370-\u052f]|[\u0370-\u052f][A-Za-z]")
_WORD = re.compile(r"[^\W\d_]{1,64}")
_TWINS = str.maketrans("аеіјорсухАВЕІЈКМНОРСТХαεικνοτυΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "aeijopcyxABEIJKMHOPCTXaeiknotuABEZHIKMNOPTYX")


class Plain:
    """A text in its plain form, which knows where each of its characters was."""

    __slots__ = ("_ends", "_starts", "text")

    def __init__(self, original: str) -> None:
        self.text = original
        self._starts: list[int] | None = None
        self._ends: list[int] | None = None
        foreign = not original.isascii() and _FOREIGN.search(original)
        if foreign:
            self.text = original.translate(_table())
            if _MIXED.search(self.text):
                self.text = _WORD.sub(_untwin, self.text)
        if (foreign or "%" in original) and _PARTS.search(self.text):
            self._take_out()

    def _take_out(self) -> None:
        """Replace what takes several characters by the one that it shows, or by none."""
        pieces: list[str] = []
        starts: list[range | list[int]] = []
        ends: list[range | list[int]] = []
        at = 0
        for match in _PARTS.finditer(self.text):
            start, end = match.span()
            shown = _shown(match.group())
            pieces += (self.text[at:start], shown)
            starts += (range(at, start), [start] * len(shown))
            ends += (range(at + 1, start + 1), [end] * len(shown))
            at = end
        size = len(self.text)
        pieces.append(self.text[at:])
        starts.append(range(at, size))
        ends.append(range(at + 1, size + 1))
        self.text = "".join(pieces)
        self._starts, self._ends = list(chain.from_iterable(starts)), list(chain.from_iterable(ends))

    @property
    def moved(self) -> bool:
        """Tell whether any character is at another place than in the original."""
        return self._starts is not None

    def original(self, start: int, end: int) -> tuple[int, int]:
        """Give where the characters from *start* up to *end* were."""
        if self._starts is None or self._ends is None:
            return start, end
        return self._starts[start], self._ends[end - 1]


def _shown(part: str) -> str:
    if part[0] == "%":
        return chr(int(part[1:], 16))
    if part[0].isalpha():
        composed = unicodedata.normalize("NFC", part)
        return composed if len(composed) == 1 else part[0]
    return ""


def _untwin(match: re.Match[str]) -> str:
    """Give a word that mixes alphabets in Latin letters."""
    word = match.group()
    return word.translate(_TWINS) if _MIXED.search(word) else word


def words(low: str) -> list[str]:
    """Give the words of a plain text, which is in lower case."""
    if low.isascii():  # several times as fast as an expression
        return low.translate(_SPACES).split()
    return _LETTERS.findall(low)


_SPACES = {code: " " for code in range(0x80) if not chr(code).isalpha()}
_LETTERS = re.compile(r"[^\W\d_]+")


@cache
def _table() -> dict[int, str]:
    """Give what each character is that has a plainer form of one character."""
    table = {0x130: "I"}  # the one letter that has two in lower case
    table |= dict.fromkeys(map(ord, "\u00a0\u1680\u202f\u205f\u3000"), " ")
    table |= dict.fromkeys(range(0x2000, 0x200B), " ")
    table |= dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63"), "-")
    table |= dict.fromkeys(map(ord, "\u2018\u2019\u201b\u02bc\u2032\u00b4"), "'")
    for code in chain(range(0x660, 0x1E00), range(0xA620, 0xABFA), range(0xFF01, 0xFF5F), range(0x1D400, 0x1D800)):
        char = chr(code)
        plain = str(digit) if (digit := unicodedata.decimal(char, -1)) >= 0 else char
        if code >= 0xFF01:
            plain = unicodedata.normalize("NFKC", char)
        if plain != char and len(plain) == 1:
            table[code] = plain
    return table
