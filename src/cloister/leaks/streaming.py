"""Judge a reply while it arrives, and let out what can be no part of a detail that has not been judged."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Protocol

from cloister.leaks.arriving import LONGEST, Arriving
from cloister.leaks.evidence import Case, Verdict
from cloister.leaks.features import IN_ORDER, features
from cloister.leaks.readings import Looked, begun, beyond
from cloister.leaks.spoken import Feature
from cloister.leaks.words import Frequencies
from cloister.model import Owner

MUCH = 64
"""Where more than so many characters are held back, they are not looked at again with each piece."""


class Marks(Protocol):
    """Makes and finds canaries."""

    def canary(self, session_id: str) -> str: ...

    def canaries(self, text: str) -> list[tuple[str, int, int]]: ...


def hidden(marks: Marks, text: str, looked: Looked) -> list[tuple[str, int, int]]:
    """Find canaries in *text*, however it is written: what, from where, to where."""
    found = marks.canaries(text)
    reading, passages = looked
    # In the text as it is written they are found whatever stands between their characters.
    if reading is not None and list(filter(str.isalnum, text)) != list(filter(str.isalnum, reading.text)):
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
        self._words = words
        self._marks = marks
        self._look = look
        self._wary = wary
        self._arriving = Arriving(words)
        self._again = 0  # how much there is when it is looked at again
        self._settled = 0  # up to where features that begin before have been judged
        self._until = 0
        self._waiting: list[Feature] = []  # those that begin behind what is settled, and before `_until`
        self._own: list[tuple[int, int]] = []
        self._last = False
        self._held = ""

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
        self._arriving.text = text
        self.finish()
        return self.verdict

    def finish(self) -> str:
        """Say that there is no more; give the rest that may be shown."""
        self.take("", last=True)
        return self.give()

    def take(self, piece: str, *, last: bool = False) -> list[str]:
        """Take the next piece; give the features whose owners must be known before `give`."""
        if self.blocked:
            return []
        arriving = self._arriving
        if last:
            arriving.text += piece
            self._last, until = True, len(arriving.text)
            return self._wait(features(arriving.text, self._words, claims=False), until, Looked.at(arriving.text))
        if arriving.grows(piece):
            arriving.lengthen(piece)
            return []
        arriving.add(piece)
        size = len(arriving.text)
        if arriving.base + size < self._again:
            return []
        looked = Looked.at(arriving.text)
        until = self._open(looked)
        held = size - until
        # What goes on and on, as single letters do, is looked at by the lot, or each piece would cost as much as all.
        self._again = arriving.base + size + held // 8 if held > MUCH else 0
        return self._wait(arriving.features(self._settled, until), until, looked) if until > self._settled else []

    def _open(self, looked: Looked) -> int:
        """Say from where on features may begin that are not complete, however they are written."""
        text, reading = self._arriving.text, looked.reading
        tail = max(self._settled, len(text) - LONGEST)
        until = self._arriving.open(self._settled)
        other = begun(text, tail)
        if reading is not None:
            first = bisect_left(reading.starts, tail)
            read = Arriving(self._words)
            read.add(reading.text[first:])
            there = first + read.open(0)
            other = min(other, reading.starts[there]) if there < len(reading.text) else other
        return max(min(until, max(other, tail)), self._settled)

    def _wait(self, found: list[Feature], until: int, looked: Looked) -> list[str]:
        """Keep those of *found*, and of what else the text says, that begin before *until*; give what they say."""
        self._until = until
        every = self._planted(self._arriving.text, found, looked)
        self._waiting = [feature for feature in every if self._settled <= feature.start < until]
        return [feature.text for feature in self._waiting if feature.kind != "canary"]

    def give(self) -> str:
        """Judge what was taken; give what of it may be shown."""
        before, until = self._settled, self._until
        if self.blocked or (until <= before and not self._held):
            return ""
        for feature in self._waiting:
            if self._tips(feature):
                until = feature.start
                break
        shown = self._without_own(before, until)
        if self._wary and self.verdict.action != "pass":
            alarming = self.verdict.evidence[0].start - self._arriving.base
            kept = self._without_own(min(max(alarming, before), until), until)
            shown, self._held = shown[: len(shown) - len(kept)], self._held + kept
        if self._last and not self.blocked:
            shown, self._held = shown + self._held, ""
        self._settled = self._until = until if self._last else until - self._arriving.forget(until)
        self._waiting = []
        return shown

    def _tips(self, feature: Feature) -> bool:
        base, start, end = self._arriving.base, feature.start, feature.end
        if feature.kind == "canary":
            return self._case.canary(start + base, end + base)
        owners = self._look(feature.text)
        if not owners:
            return False
        place = feature._replace(start=start + base, end=end + base)
        return self._case.hear(place, owners, self._arriving.text[start:end])

    def _without_own(self, start: int, end: int) -> str:
        """Give the text from *start* to *end* without the receiver's own canary, which is nobody's to read."""
        text, shown, at = self._arriving.text, "", start
        for first, last in self._own:
            if start <= first and last <= end:
                shown, at = shown + text[at:first], last
        return shown + text[at:end]

    def _planted(self, text: str, found: list[Feature], looked: Looked) -> list[Feature]:
        """Add what is written in another way and the canaries of others; leave out what is of the receiver's own."""
        planted = hidden(self._marks, text, looked)
        self._own = []
        if not planted:
            more = beyond(looked, self._words)
            return sorted([*found, *more], key=IN_ORDER) if more else found
        own = self._case.context.session_id
        mine = self._marks.canary(own) if own is not None else None
        for canary, start, end in planted:
            if canary == mine:
                self._own.append((start, end))
                found = [each for each in found if each.end <= start or each.start >= end]
        found = found + [
            Feature(canary, "canary", 0, start, end, False) for canary, start, end in planted if canary != mine
        ]
        # What stands around the receiver's own canary is read together: so it is shown.
        more = beyond(Looked.at(text, self._own) if self._own else looked, self._words)
        return sorted([*found, *more], key=IN_ORDER)
