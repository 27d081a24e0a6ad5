"""Names and words: what is rare by itself, or as two words together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import compress
from string import ascii_letters, ascii_uppercase

from cloister.leaks.forms import CODE_CUES, SENTENCE, WITHIN
from cloister.leaks.known import KNOWN
from cloister.leaks.spoken import IS_CUE, Feature, Spoken, up_to, where
from cloister.leaks.words import UNLISTED

RARE = 36
"""A word this common or less says something by itself."""
STRESSED_RARE = 45
"""A word this common or less does so if it was announced as a code, in capitals."""
ORDINARY = 58
"""A word more common than this is part of no pair."""
PAIR_MOST = 106
"""Two words together more common than this say nothing, whatever they stand for."""
PLAIN_MOST = 100
"""Likewise for two words in lower case, with only a space between them."""
PROSE_MOST = 75
"""Two words in lower case that are rarer than this are claimed by whoever says them in passing."""
CUED = 6
"""How many words behind one that announces them are announced."""

FAR = 1_000
"""Nothing else is announced over so many characters that are no words."""

_WITHIN = frozenset(["", *filter(WITHIN.fullmatch, map(chr, range(0x3000)))])
"""What `WITHIN` may begin with: a set is quicker than the pattern."""
_TELLING = up_to(STRESSED_RARE)
_IN_PAIRS = up_to(ORDINARY)
_CAPITALS = ascii_uppercase.encode()
_LETTERS = ascii_letters.encode()


class Names:
    """Find rare words and pairs.

    Without *claims* nothing is found out about who owns them. *decoded* gives what an encoded word says.
    """

    def __init__(
        self, spoke: Spoken, claims: bool, found: list[Feature], decoded: Callable[[int], list[Feature]]
    ) -> None:
        self._spoke = spoke
        self._claims = claims
        self._found = found
        self._decoded = decoded
        cues = list(where(spoke.marks, IS_CUE))
        self._coded = _announced(spoke, (n for n in cues if spoke.folded[n] in CODE_CUES))
        self.cued = self._coded | _announced(spoke, cues) if claims else self._coded
        # Whoever shouts, or writes a heading, stresses nothing by it.
        self.shouting = claims and len(spoke) > 4 and _shouts(spoke.text[:2_000])

    def words(self) -> None:
        """Find words that say something by themselves."""
        spoke, add, coded = self._spoke, self._found.append, self._coded
        text, folded, all_tenths, starts, ends = spoke.text, spoke.folded, spoke.tenths, spoke.starts, spoke.ends
        for n in compress(range(len(folded)), spoke.no_more_common(_TELLING)):
            word, tenths = folded[n], all_tenths[n]
            if len(word) < 5:
                continue
            start, end = starts[n], ends[n]
            if tenths > RARE:
                if n in coded or (text[start].isupper() and n not in spoke.merged):
                    claim = n in coded and spoke.capital(n) and not self.shouting
                    add(Feature(word, "code", 3, start, end, claim))
                continue
            if not spoke.letters[n]:
                if tenths == UNLISTED:
                    self._found += self._decoded(n)
                continue
            stressed = self._claims and self._singled_out(n)
            if n in spoke.merged:
                self._trimmed(n)
            level = 0 if tenths == UNLISTED else 1 if tenths <= 32 else 2
            add(Feature(word, "code", level, start, end, stressed))
            add(Feature("~" + word, "word", level, start, end, not stressed))
            if tenths == UNLISTED:
                if text[start:end] != word:
                    self._found += self._decoded(n)
                if len(word) >= 6:
                    add(Feature(word[::-1], "reversed", 0, start, end, False))

    def _singled_out(self, n: int) -> bool:
        """Say whether word *n* is announced, spelled or in capitals."""
        if n in self._coded or n in self._spoke.merged:
            return True
        # Five capitals and fewer are an abbreviation.
        return len(self._spoke.folded[n]) > 5 and not self.shouting and self._spoke.written(n).isupper()

    def _trimmed(self, n: int) -> None:
        """Read what was spelled without the word, of a single character, before or behind it: "N I G H T I think"."""
        word = self._spoke.folded[n]
        for less in {word[word[0] in "ai" :], word[: -1 if word[-1] in "aiy" else None]} - {word}:
            if len(less) >= 5:
                self._found.append(self._spoke.feature(less, "code", 0, n, n, False))

    def pairs(self) -> None:
        """Find two words that say something together."""
        spoke, add, merged = self._spoke, self._found.append, self._spoke.merged
        text, folded, tenths, starts, ends = spoke.text, spoke.folded, spoke.tenths, spoke.starts, spoke.ends
        possible = int.from_bytes(spoke.no_more_common(_IN_PAIRS), "little") & int.from_bytes(spoke.letters, "little")
        for n in compress(range(len(folded)), (possible & possible >> 8).to_bytes(len(folded), "little")):
            total = tenths[n] + tenths[n + 1]
            if total > PAIR_MOST:
                continue
            start, behind = starts[n], starts[n + 1]
            between = text[ends[n] : behind]
            capital = text[start].isupper() and text[behind].isupper()
            if capital and merged:
                capital = n not in merged and n + 1 not in merged
            plain = between == " "
            if plain:
                if total > PLAIN_MOST and not capital:
                    continue
            elif (between[:1] not in _WITHIN or WITHIN.fullmatch(between) is None) and not (
                capital and between == ", "
            ):
                continue
            one, two = folded[n], folded[n + 1]
            if len(one) < 2 or len(two) < 2 or len(one) + len(two) < 6:
                continue
            end, level = ends[n + 1], _rarity(total)
            if between == ", ":
                add(Feature(two + one, "name", level, start, end, False))
                continue
            said = one + two
            if said in KNOWN:
                continue
            kind = "name" if capital else "joined" if not plain and " " not in between else "pair"
            stressed = self._claims and self._stresses(n, capital)
            add(Feature(said, kind, level, start, end, stressed))
            if total <= PROSE_MOST:
                add(Feature("~" + said, "phrase", level, start, end, not stressed))

    def _stresses(self, n: int, capital: bool) -> bool:
        """Say whether words *n* and the next are written as a name, and are not a turn of speech."""
        if n in self.cued and n + 1 in self.cued:
            return True
        if not capital or self.shouting:
            return False
        # The first word of a sentence is capitalised in any case.
        opens = n == 0 or SENTENCE.search(self._spoke.before(n)) is not None
        alone = len(self._spoke) == 2
        return alone or not (opens and self._spoke.tenths[n] >= 50 and self._spoke.written(n).istitle())


def _announced(spoke: Spoken, cues: Iterable[int]) -> set[int]:
    """Give the words that one of *cues*, as in "my codename is", points to."""
    cued: set[int] = set()
    for n in cues:
        for ahead in range(n + 1, min(n + 1 + CUED, len(spoke))):
            between = spoke.before(ahead)
            if len(between) > FAR or SENTENCE.search(between):
                break
            cued.add(ahead)
    return cued


def _shouts(text: str) -> bool:
    """Say whether more than half of the letters are capitals."""
    plain = text.encode("ascii", "ignore")
    others = "" if len(plain) == len(text) else "".join(each for each in text if not each.isascii())
    capitals = len(plain) - len(plain.translate(None, _CAPITALS)) + sum(map(str.isupper, others))
    letters = len(plain) - len(plain.translate(None, _LETTERS)) + sum(map(str.isalpha, others))
    return capitals * 2 > letters


def _rarity(total: int) -> int:
    """Give the level of two words by how common they are together."""
    return 0 if total <= 60 else 1 if total <= 75 else 2 if total <= 88 else 3 if total <= 95 else 4
