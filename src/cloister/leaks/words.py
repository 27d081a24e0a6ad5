"""How common words are: the difference between a detail and ordinary speech."""

from __future__ import annotations

import unicodedata
import zlib
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Protocol

PACKED = Path(__file__).with_name("words.bin")
"""English, German, Spanish and French, made by ``scripts/pack_words.py``; NOTICE says from what."""
UNLISTED = 22
"""How common a word is taken to be that is not listed."""


class Frequencies(Protocol):
    """Say how common words are. Another language plugs in here, for itself or in front of the packed table."""

    def tenths(self, words: Iterable[str]) -> list[int]:
        """Give ten times the logarithm of how often each folded word comes in a thousand million; `UNLISTED` if it
        is not known.
        """
        ...


def fold(word: str) -> str:
    """Give *word* as it is compared: compatible forms made the same, no case, no accents, letters and digits only.

    An English genitive is the word itself.
    """
    if word[-2:] in ("'s", "’s", "'S", "’S"):
        word = word[:-2]
    if word.isascii():
        return word.casefold().replace("'", "")
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", word).casefold())
    return "".join(character for character in plain if character.isalnum())


class Table:
    """Be frequencies held in a dictionary."""

    def __init__(self, known: Mapping[str, int]) -> None:
        self._known = known

    def tenths(self, words: Iterable[str]) -> list[int]:
        get = self._known.get
        return list(map(get, words, repeat(UNLISTED)))

    def __len__(self) -> int:
        return len(self._known)


@cache
def packed() -> Table:
    """Read the table that comes with cloister, once for the process."""
    known: dict[str, int] = {}
    for line in zlib.decompress(PACKED.read_bytes()).decode().split("\n"):
        tenths, *words = line.split(" ")
        known.update(dict.fromkeys(words, int(tenths)))
    return Table(known)
