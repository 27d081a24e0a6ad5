"""The words of a text that arrives in pieces, and what among them may not be shown yet."""

from __future__ import annotations

import re
from bisect import bisect_left
from functools import partial
from itertools import islice
from string import ascii_letters, digits

from cloister.leaks.features import IN_ORDER, decoded, features
from cloister.leaks.forms import ENDS, SPELLING, WORD
from cloister.leaks.names import CUED, FAR, ORDINARY, STRESSED_RARE, Names
from cloister.leaks.numbers import REACH
from cloister.leaks.spoken import (
    ANNOUNCING,
    IS_AT,
    IS_CUE,
    IS_DOT,
    IS_SPELLED,
    LONGEST_WORD,
    MOST_SINGLES,
    THREE,
    Feature,
    Spoken,
    marks_of,
)
from cloister.leaks.words import Frequencies, fold

BACK = 10
"""How many words before the first that is not settled are looked at again, for what they say about those behind."""
LONGEST = 400
"""How much text without a space is held back at most, and how far back a canary in pieces is looked for."""
TOKEN = ascii_letters + digits + "_.+/=@'’-"
"""What addresses and base64 are made of."""

JOINS = "._+-@/="
"""What stands between the words of these."""

_GAP = r"[ \[\](){}<>]{1,3}"
_DOT = rf"{_GAP}(?:dot|punkt|punto|point){_GAP}[\w.+'’-]{{1,64}}"
NEXT = frozenset(
    word[:size] for word in ("dot", "punkt", "punto", "point", "at", "arroba", "arobase") for size in range(1, 8)
)
"""What an address that is being spelled out may go on with, and how that begins."""
SPELLED = re.compile(
    rf"(?<![\w.+'’-])[\w.+'’-]{{1,64}}(?:{_DOT}){{0,3}}"
    rf"(?:{_GAP}(?:at|arroba|arobase){_GAP}[\w.'’-]{{1,64}}(?:{_DOT}){{0,3}})?"
    rf"(?:{_GAP}(?:(?:{'|'.join(sorted(NEXT))})(?:{_GAP})?)?)?\Z",
    re.IGNORECASE,
)
CANARY_BEGUN = re.compile(r"z(?:q[a-z2-7]{0,15})?\Z")


class Arriving:
    """Be the end of a text that arrives, as far as it says something about what is to come.

    The last word may still grow. Places are those in ``text``, which begins at ``base`` of the whole.
    """

    def __init__(self, words: Frequencies) -> None:
        self._words = words
        self.text = ""
        self.base = 0
        self.folded: list[str] = []
        self.tenths: list[int] = []
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.marks = bytearray()
        self.letters = bytearray()
        self._stale = False  # whether the last word was made longer since it was looked at

    def grows(self, piece: str) -> bool:
        """Say whether *piece* only makes the last word longer."""
        return (
            bool(self.ends)
            and self.ends[-1] == len(self.text)
            and piece.isalnum()
            and self.ends[-1] + len(piece) - self.starts[-1] <= LONGEST_WORD
        )

    def lengthen(self, piece: str) -> None:
        """Take a *piece* that only makes the last word longer, and do not look at it yet."""
        self.text += piece
        self.ends[-1] += len(piece)
        self._stale = True

    def add(self, piece: str) -> None:
        """Take the next *piece* apart into words."""
        at = len(self.text)
        self.text += piece
        if self.ends and at - self.ends[-1] <= 1 and (self._stale or self._continues(at)):
            at = self.starts.pop()
            for each in (self.ends, self.folded, self.tenths, self.marks, self.letters):
                each.pop()
        self._stale = False
        fresh = []
        for match in WORD.finditer(self.text, at):
            word = match[0]
            fresh.append(word.lower() if word.isascii() and word.isalnum() else fold(word))
            self.starts.append(match.start())
            self.ends.append(match.end())
        if fresh:
            marks, tenths = marks_of(fresh), self._words.tenths(fresh)
            if IS_CUE in marks:
                tenths = [ANNOUNCING if mark == IS_CUE else common for mark, common in zip(marks, tenths, strict=True)]
            self.folded += fresh
            self.tenths += tenths
            self.marks += marks
            self.letters += bytes(map(str.isalpha, fresh))

    def _continues(self, at: int) -> bool:
        """Say whether what comes at *at* may belong to the last word, as a letter behind an apostrophe does."""
        if self.ends[-1] == at:
            return self.text[at : at + 1].isalnum() or self.text[at : at + 1] in "'’"
        return self.text[at - 1] in "'’"

    def token(self, until: int) -> int:
        """Give where the address, base64 or the like begins that goes up to *until*."""
        piece = self.text[max(0, until - LONGEST) : until]
        return until - len(piece) + len(piece.rstrip(TOKEN))

    def open(self, settled: int) -> int:
        """Say from where on, behind *settled*, features may begin that are not complete."""
        size = len(self.text)
        hold = self.token(size)
        last = len(self.starts) - 1
        if last >= 0 and self.starts[last] >= settled and size - self.ends[last] <= LONGEST:
            behind = self.text[self.ends[last] :]
            if not _ends(behind):
                hold = min(hold, self.starts[self._first_open(last)], self._address(last, behind))
        return max(min(hold, self._canary()), settled)

    def _first_open(self, last: int) -> int:
        """Give the first word at which something may begin that the end of the *last* one completes."""
        first = last
        run = distance = 0
        number = False
        while first > 0 and last - first < 4 * MOST_SINGLES:
            # What is spelled is one word, and may be a number.
            run = run + 1 if self._single(first) else 0
            distance += run <= 1
            number = number or run >= 3 or (first < last and not self.letters[first])
            between = self.text[self.ends[first - 1] : self.starts[first]]
            if _ends(between) or not self._may_begin(first - 1, distance, number):
                break
            first -= 1
        return first

    def _may_begin(self, n: int, distance: int, number: bool) -> bool:
        """Say whether at word *n* something may begin that reaches *distance* words further, with a *number* in it."""
        if self._single(n):
            return True
        if distance >= 3:
            return distance < REACH and (number or not self.letters[n])
        return len(self.folded[n]) <= 6 or not self.letters[n] or self.tenths[n] <= ORDINARY

    def _single(self, n: int) -> bool:
        return self.marks[n] == IS_SPELLED or len(self.folded[n]) <= 1

    def _address(self, last: int, behind: str) -> int:
        """Give where an address begins that is being spelled out."""
        if behind.strip(JOINS) and not SPELLING.fullmatch(behind):
            return len(self.text)
        n = last
        while n > 0 and self.starts[last] - self.starts[n - 1] <= LONGEST and self._joined(n):
            n -= 1
        if self.folded[last] in NEXT or self._spelling(last):
            begun = SPELLED.search(self.text, max(0, len(self.text) - LONGEST))
            if begun:
                return min(begun.start(), self.starts[n])
        return self.starts[n]

    def _joined(self, n: int) -> bool:
        """Say whether word *n* and the one before it may be one piece of an address."""
        return not self.text[self.ends[n - 1] : self.starts[n]].strip(JOINS)

    def _spelling(self, last: int) -> bool:
        """Say cheaply whether one of the last two pieces may be behind an "at" or a "dot"."""
        if IS_AT not in self.marks and IS_DOT not in self.marks:
            return False
        pieces = 0
        for n in range(last, -1, -1):
            if self.marks[n] in (IS_AT, IS_DOT):
                return True
            pieces += n == 0 or not self._joined(n)
            if pieces > 2 or self.starts[last] - self.starts[n] > LONGEST:
                break
        return False

    def _canary(self) -> int:
        """Give where a canary begins of which more may come."""
        text, size = self.text, len(self.text)
        tail = max(0, size - LONGEST)
        if text.find("z", tail) < 0 and text.find("Z", tail) < 0:
            return size
        places = list(islice((n for n in range(size - 1, tail - 1, -1) if text[n].isalnum()), 17))[::-1]
        begun = CANARY_BEGUN.search("".join(text[n].lower()[:1] for n in places))
        return places[begun.start()] if begun else size

    def features(self, settled: int, until: int) -> list[Feature]:
        """Find at least what begins from *settled* to before *until*."""
        first, behind = bisect_left(self.starts, settled), bisect_left(self.starts, until)
        if not self._plain(first, settled):
            return features(self.text, self._words, claims=False)
        if not any(map(self._says, range(first, behind))):
            return []
        those = slice(first, behind + 1)
        spoke = Spoken(
            self.text,
            self.folded[those],
            self.tenths[those],
            self.starts[those],
            self.ends[those],
            bytes(self.marks[those]),
            bytes(self.letters[those]),
            frozenset(),
        )
        found: list[Feature] = []
        names = Names(spoke, False, found, partial(decoded, spoke, self._words))
        names.words()
        names.pairs()
        found.sort(key=IN_ORDER)
        return found

    def _says(self, n: int) -> bool:
        """Say whether word *n*, or it and the next, may be rare enough to say anything."""
        tenths = self.tenths
        if tenths[n] <= STRESSED_RARE:
            return True
        return tenths[n] <= ORDINARY and n + 1 < len(tenths) and tenths[n + 1] <= ORDINARY

    def _plain(self, first: int, settled: int) -> bool:
        """Say whether from word *first* on there are but letters, and nothing that changes how they are read."""
        text, marks = self.text, self.marks
        return (
            self.letters.find(0, first) < 0
            and THREE not in marks
            and marks.find(IS_CUE, max(0, first - CUED)) < 0
            and text.find("@", settled) < 0
            and (marks.find(IS_AT, first) < 0 or (marks.find(IS_DOT, first) < 0 and text.find(".", settled) < 0))
            and not (("z" in text or "Z" in text) and ("q" in text or "Q" in text))
        )

    def forget(self, settled: int) -> int:
        """Drop what says nothing any more about the words from *settled* on; give how much that is."""
        known = bisect_left(self.starts, settled)
        first = known - BACK
        if known == len(self.starts) and settled - (self.ends[-1] if known else 0) > FAR:
            cut = settled
        elif first > BACK or (first > 0 and settled > 3 * LONGEST):
            while first > 0 and known - first < 4 * MOST_SINGLES and self._single(first):
                first -= 1
            cut = self.token(self.starts[first])
        else:
            return 0
        kept = bisect_left(self.starts, cut)
        self.text = self.text[cut:]
        self.base += cut
        self.starts = [start - cut for start in self.starts[kept:]]
        self.ends = [end - cut for end in self.ends[kept:]]
        del self.folded[:kept], self.tenths[:kept], self.marks[:kept], self.letters[:kept]
        return cut


def _ends(between: str) -> bool:
    """Say whether nothing reaches over what stands between two words; a colon may be in a time."""
    return between not in ("", " ", ":") and ENDS.search(between) is not None
