"""Judge a reply while it arrives, and let out what can be no part of a detail that has not been judged."""

from __future__ import annotations

import re
from collections.abc import Callable

from cloister.leaks.evidence import Case, Verdict
from cloister.leaks.features import features
from cloister.leaks.fingerprints import Digests
from cloister.leaks.forms import DIGITS, TENS, WORD
from cloister.leaks.names import ORDINARY
from cloister.leaks.numbers import REACH
from cloister.leaks.spoken import MOST_SINGLES, Feature
from cloister.leaks.words import Frequencies, fold
from cloister.model import Owner

BACK = 10
"""How many words before the first that is not settled are looked at again, for what they say about those behind."""
LONGEST = 400
"""How much text without a space is held back at most, and how far back a canary in pieces is looked for."""

BREAK = re.compile(r"[\n\r!?;:]|\.\s")
TOKEN = re.compile(r"[A-Za-z0-9_.+/=@'’-]{1,400}\Z")
_GAP = r"[ \[\](){}<>]{1,3}"
_DOT = rf"{_GAP}(?:dot|punkt|punto|point){_GAP}[\w.+-]{{1,64}}"
_NEXT = (
    r"(?:d|do|dot|p|pu|pun|punk|punkt|punt|punto|po|poi|poin|point|a|at|ar|arr|arro|arrob|arroba|aro|arob|aroba\w{0,2})"
)
SPELLED = re.compile(
    rf"(?<![\w.+-])[\w.+-]{{1,64}}(?:{_DOT}){{0,3}}(?:{_GAP}(?:at|arroba|arobase){_GAP}[\w.-]{{1,64}}(?:{_DOT}){{0,3}})?"
    rf"(?:{_GAP}(?:{_NEXT}(?:{_GAP})?)?)?\Z",
    re.IGNORECASE,
)
CANARY_BEGUN = re.compile(r"z(?:q[a-z2-7]{0,15})?\Z")


class StreamCheck:
    """Take a reply in pieces and give back what may be shown by now.

    However the reply is cut, the verdict is that on the whole. Once it is to block, nothing of the detail that tipped
    it, or after it, is given back.
    """

    def __init__(
        self, case: Case, words: Frequencies, digests: Digests, look: Callable[[str], tuple[Owner, ...] | None]
    ) -> None:
        self._case = case
        self._words = words
        self._digests = digests
        self._look = look
        self._window = ""
        self._base = 0  # where in the reply the window begins
        self._settled = 0  # up to where features that begin before have been judged

    @property
    def verdict(self) -> Verdict:
        """Give the verdict on what was settled so far."""
        return self._case.verdict

    def feed(self, piece: str) -> str:
        """Take the next piece; give what may be shown."""
        if self.verdict.action == "block":
            return ""
        self._window += piece
        shown = self._settle(self._base + self._open())
        self._forget()
        return shown

    def whole(self, text: str) -> Verdict:
        """Give the verdict on a reply that is there as a whole."""
        self._window = text
        self._settle(len(text))
        return self.verdict

    def finish(self) -> str:
        """Say that there is no more; give the rest that may be shown."""
        return "" if self.verdict.action == "block" else self._settle(self._base + len(self._window))

    def _settle(self, until: int) -> str:
        """Judge all features that begin before *until*; give the text up to there, or to the cut."""
        before = self._settled
        if until <= before:
            return ""
        offset = self._base
        exempts, look = self._case.context.exempts, self._look
        for feature in self._candidates():
            start = feature.start + offset
            if not before <= start < until:
                continue
            owners = None
            if feature.kind != "canary" and (exempts(feature) or not (owners := look(feature.text))):
                continue
            if self._tips(feature._replace(start=start, end=feature.end + offset), owners or ()):
                self._settled = start
                return self._window[before - offset : start - offset]
        self._settled = until
        return self._window[before - offset : until - offset]

    def _candidates(self) -> list[Feature]:
        found = features(self._window, self._words, claims=False)
        planted = self._digests.canaries(self._window)
        if planted:
            own = self._case.context.session_id
            mine = self._digests.canary(own) if own is not None else None
            for text, start, end in planted:
                if text == mine:
                    found = [each for each in found if each.end <= start or each.start >= end]
            found += [Feature(text, "canary", 0, start, end, False) for text, start, end in planted if text != mine]
            found.sort(key=lambda feature: (feature.start, feature.end))
        return found

    def _tips(self, feature: Feature, owners: tuple[Owner, ...]) -> bool:
        """Weigh what is known; say whether the verdict is to block."""
        if feature.kind == "canary":
            return self._case.canary(feature.start, feature.end)
        return self._case.hear(feature, owners, self._window[feature.start - self._base : feature.end - self._base])

    def _forget(self) -> None:
        """Drop what no longer says anything about the words to come."""
        at = self._settled - self._base
        if at < 12 * BACK:
            return
        words = list(WORD.finditer(self._window, 0, at))
        first = len(words) - BACK
        while first > 0 and len(words) - first < 4 * MOST_SINGLES and _single(words[first][0]):
            first -= 1
        if first > 0:
            cut = words[first].start()
            token = TOKEN.search(self._window, max(0, cut - LONGEST), cut)
            cut = token.start() if token else cut
            self._window = self._window[cut:]
            self._base += cut

    def _open(self) -> int:
        """Say from where in the window on features may begin that are not complete."""
        window, size = self._window, len(self._window)
        low = self._settled - self._base
        tail = max(0, size - LONGEST)
        hold = size
        words = list(WORD.finditer(window, max(0, min(low, size) - 1) if low else 0))
        if words and not BREAK.search(window, words[-1].end()):
            hold = words[self._first_open(words)].start()
            token = TOKEN.search(window, tail)
            hold = min(hold, token.start()) if token else hold
            spelled = SPELLED.search(window, tail) if " " in window[tail:] else None
            hold = min(hold, spelled.start()) if spelled else hold
        if "z" in window[tail:] or "Z" in window[tail:]:
            places = [n for n in range(tail, size) if window[n].isalnum()]
            flat = "".join(window[n].lower()[:1] for n in places)
            begun = CANARY_BEGUN.search(flat)
            hold = min(hold, places[begun.start()]) if begun else hold
        return max(hold, low)

    def _first_open(self, words: list[re.Match[str]]) -> int:
        """Give the first of *words* at which something may begin that the end of the last one completes."""
        last = first = len(words) - 1
        text = self._window
        while (
            first > 0
            and last - first < 4 * MOST_SINGLES
            and not BREAK.search(text, words[first - 1].end(), words[first].start())
        ):
            word = words[first - 1][0]
            distance = last - first + 1
            if not self._may_begin(word, distance, words[first - 1 : last]):
                break
            first -= 1
        return first

    def _may_begin(self, word: str, distance: int, rest: list[re.Match[str]]) -> bool:
        if _single(word):
            return True
        if distance >= REACH:
            return False
        if distance >= 3:
            return any(not each[0].isalpha() for each in rest)
        folded = fold(word)
        return len(folded) <= 6 or not folded.isalpha() or self._words.tenths([folded])[0] <= ORDINARY


def _single(word: str) -> bool:
    folded = fold(word)
    return len(folded) <= 1 or folded in DIGITS or folded in TENS
