"""Look words up in the packed lists: is it likelier a name, a word, a place?

The lists are built by ``scripts/pack_lists.py``; ``data/NOTICE`` says from what. They are read when first used.
"""

from __future__ import annotations

import sys
import unicodedata
import zlib
from array import array
from bisect import bisect_left
from functools import cache
from importlib.resources import files

PART, TOWN, CITY, COUNTRY, OTHER = 1, 2, 3, 4, 5


class Lists:
    """The packed lists, in memory."""

    __slots__ = ("_begins", "_bits", "_keys", "chat", "ordinary")

    def __init__(self) -> None:
        folder = files("cloister.scrub") / "data"
        packed = memoryview((folder / "words.bin").read_bytes())
        count = int.from_bytes(packed[:4], "little")
        self._keys, self._bits = array("I"), array("H")
        self._keys.frombytes(packed[4 : 4 + 4 * count])
        self._bits.frombytes(packed[4 + 4 * count :])
        if sys.byteorder == "big":
            self._keys.byteswap()
            self._bits.byteswap()
        # Where the keys of each first twelve bits begin, so that few are left to search.
        self._begins = [bisect_left(self._keys, first << 20) for first in range(1 << 12)] + [count]
        # First names that stand out in text without capitals.
        self.chat = self._words("chat")
        # Common words that are nobody's name, whatever stands around them.
        self.ordinary = self._words("ordinary")

    @staticmethod
    def _words(name: str) -> frozenset[str]:
        return frozenset((files("cloister.scrub") / f"data/{name}.txt").read_text(encoding="utf-8").split("\n"))

    def bits(self, word: str) -> int:
        """Give what is packed for *word*, which is in lower case; 0 for a word in no list."""
        key = zlib.crc32(word.encode("utf-8", "replace"))
        stop = self._begins[(key >> 20) + 1]
        at = bisect_left(self._keys, key, self._begins[key >> 20], stop)
        if at < stop and self._keys[at] == key:
            return self._bits[at]
        if not word.isascii():
            bare = "".join(c for c in unicodedata.normalize("NFD", word) if not unicodedata.combining(c))
            if bare != word:
                return self.bits(bare)
        return 0


@cache
def load() -> Lists:
    """Give the packed lists, which the first call reads."""
    return Lists()
