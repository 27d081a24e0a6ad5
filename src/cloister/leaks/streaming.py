"""Judge a reply while it arrives, and let out what can be no part of a detail that has not been judged."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable
from typing import Protocol

from cloister.leaks.evidence import Case, Verdict
from cloister.leaks.features import MOST_SINGLES, ORDINARY, REACH, Feature, features
from cloister.leaks.forms import DIGITS, TENS, WORD
from cloister.leaks.readings import Looked, begun, beyond
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


class Marks(Protocol):
    """Makes and finds canaries."""

    def canary(self, session_id: str) -> str: ...

    def canaries(self, text: str) -> list[tuple[str, int, int]]: ...


def hidden(marks: Marks, text: str, looked: Looked) -> list[tuple[str, int, int]]:
    """Find canaries in *text*, however it is written: what, from where, to where."""
    found = marks.canaries(text)
    reading, passages = looked
    if reading is not None:
        starts, ends = reading.starts, reading.ends
        there = {end for _, _, end in found}
        read = [(canary, starts[start], ends[end - 1]) for canary, start, end in marks.canaries(reading.text)]
        found += [one for one in read if one[2] not in there]
    for start, end, said in passages:
        found += [(canary, start, end) for canary, _, _ in marks.canaries(said)]
    return found


class StreamCheck:
    """Take a reply in pieces and give back what may be shown by now.

    However the reply is cut, the verdict is that on the whole. Once it is to block, nothing of the detail that tipped
    it, or after it, is given back. A *wary* check gives back nothing from where a reply begins to alert, until its end
    shows that it does not tip.
    """

    def __init__(
        self,
        case: Case,
        words: Frequencies,
        marks: Marks,
        look: Callable[[str], tuple[Owner, ...] | None],
        *,
        wary: bool = False,
    ) -> None:
        self._case = case
        self._wary = wary
        self._held = ""
        self._last = False
        self._words = words
        self._marks = marks
        self._look = look
        self._window = ""
        self._looked = Looked(None, [])
        self._base = 0  # where in the reply the window begins
        self._settled = 0  # up to where features that begin before have been judged
        self._until = 0
        self._waiting: list[Feature] = []  # those that begin behind what is settled, and before `_until`
        self._own: list[tuple[int, int]] = []

    @property
    def verdict(self) -> Verdict:
        """Give the verdict on what was settled so far."""
        return self._case.verdict

    @property
    def telling(self) -> str:
        """Give the detail that led to the verdict, as it is compared."""
        return self._case.telling

    @property
    def blocked(self) -> bool:
        """Say whether it tipped: nothing more is taken or given."""
        return self._case.verdict.action == "block"

    def feed(self, piece: str) -> str:
        """Take the next piece; give what may be shown."""
        self.take(piece)
        return self.give()

    def whole(self, text: str) -> Verdict:
        """Give the verdict on a reply that is there as a whole."""
        self.take(text, last=True)
        self.give()
        return self.verdict

    def finish(self) -> str:
        """Say that there is no more; give the rest that may be shown."""
        self.take("", last=True)
        return self.give()

    def take(self, piece: str, *, last: bool = False) -> list[str]:
        """Take the next piece; give the features whose owners must be known before `give`."""
        if self.blocked:
            return []
        self._window += piece
        self._looked = Looked.at(self._window)
        self._last = last
        self._until = self._base + (len(self._window) if last else self._open())
        if self._until <= self._settled:
            self._waiting = []
            return []
        low, high = self._settled - self._base, self._until - self._base
        self._waiting = [feature for feature in self._candidates() if low <= feature.start < high]
        return [feature.text for feature in self._waiting if feature.kind != "canary"]

    def give(self) -> str:
        """Judge what was taken; give what of it may be shown."""
        before, until, offset = self._settled, self._until, self._base
        if self.blocked or (until <= before and not self._held):
            return ""
        for feature in self._waiting:
            if self._tips(feature, offset):
                until = feature.start + offset
                break
        self._settled, self._waiting = until, []
        shown = self._without_own(before - offset, until - offset)
        if self._wary and self.verdict.action != "pass":
            from_here = max(self.verdict.evidence[0].start, before)
            alarming = self._without_own(min(from_here, until) - offset, until - offset)
            shown, self._held = shown[: len(shown) - len(alarming)], self._held + alarming
        if self._last and not self.blocked:
            shown, self._held = shown + self._held, ""
        self._forget()
        return shown

    def _without_own(self, start: int, end: int) -> str:
        """Give the window from *start* to *end* without the receiver's own canary, which is nobody's to read."""
        shown, at = "", start
        for first, last in self._own:
            if start <= first and last <= end:
                shown, at = shown + self._window[at:first], last
        return shown + self._window[at:end]

    def _candidates(self) -> list[Feature]:
        window = self._window
        found = features(window, self._words, claims=False)
        looked = self._looked
        planted = hidden(self._marks, window, looked)
        self._own = []
        if planted:
            own = self._case.context.session_id
            mine = self._marks.canary(own) if own is not None else None
            for text, start, end in planted:
                if text == mine:
                    self._own.append((start, end))
                    found = [each for each in found if each.end <= start or each.start >= end]
            found += [Feature(text, "canary", 0, start, end, False) for text, start, end in planted if text != mine]
        # What stands around the receiver's own canary is read together: so it is shown.
        more = beyond(Looked.at(window, self._own) if self._own else looked, self._words)
        if planted or more:
            found += more
            found.sort(key=lambda feature: (feature.start, feature.end))
        return found

    def _tips(self, feature: Feature, offset: int) -> bool:
        if feature.kind == "canary":
            place = feature._replace(start=feature.start + offset, end=feature.end + offset)
            return self._case.canary(place.start, place.end)
        owners = self._look(feature.text)
        if not owners:
            return False
        place = feature._replace(start=feature.start + offset, end=feature.end + offset)
        return self._case.hear(place, owners, self._window[feature.start : feature.end])

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
        """Say from where in the window on features may begin that are not complete, however they are written."""
        window = self._window
        low = self._settled - self._base
        hold = min(self._open_in(window, low), begun(window, max(0, len(window) - LONGEST)))
        reading = self._looked.reading
        if reading is not None and reading.text:
            first = bisect_left(reading.starts, low)
            inside = self._open_in(reading.text, first)
            hold = min(hold, reading.starts[inside]) if inside < len(reading.text) else hold
        return max(hold, low)

    def _open_in(self, window: str, low: int) -> int:
        """Say from where in *window* on, and not before *low*, features may begin that are not complete."""
        size = len(window)
        tail = max(0, size - LONGEST)
        hold = size
        words = list(WORD.finditer(window, max(0, min(low, size) - 1) if low else 0))
        if words and not BREAK.search(window, words[-1].end()):
            hold = words[self._first_open(window, words)].start()
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

    def _first_open(self, text: str, words: list[re.Match[str]]) -> int:
        """Give the first of *words* at which something may begin that the end of the last one completes."""
        last = first = len(words) - 1
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
