"""Judge a reply while it arrives, and let out what can be no part of a detail that has not been judged."""

from __future__ import annotations

from collections.abc import Callable

from cloister.leaks.arriving import Arriving
from cloister.leaks.evidence import Case, Verdict
from cloister.leaks.features import IN_ORDER, features
from cloister.leaks.fingerprints import Digests
from cloister.leaks.spoken import Feature
from cloister.leaks.words import Frequencies
from cloister.model import Owner

MUCH = 64
"""Where more than so many characters are held back, they are not looked at again with each piece."""


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
        self._arriving = Arriving(words)
        self._again = 0  # how much there is when it is looked at again
        self._settled = 0  # up to where features that begin before have been judged

    @property
    def verdict(self) -> Verdict:
        """Give the verdict on what was settled so far."""
        return self._case.verdict

    def feed(self, piece: str) -> str:
        """Take the next piece; give what may be shown."""
        if self.verdict.action == "block":
            return ""
        arriving = self._arriving
        if arriving.grows(piece):
            arriving.lengthen(piece)
            return ""
        arriving.add(piece)
        size = len(arriving.text)
        if arriving.base + size < self._again:
            return ""
        until = arriving.open(self._settled)
        held = size - until
        # What goes on and on, as single letters do, is looked at by the lot, or each piece would cost as much as all.
        self._again = arriving.base + size + held // 8 if held > MUCH else 0
        if until <= self._settled:
            return ""
        shown = self._settle(arriving.text, arriving.features(self._settled, until), until)
        self._settled -= arriving.forget(self._settled)
        return shown

    def whole(self, text: str) -> Verdict:
        """Give the verdict on a reply that is there as a whole."""
        self._settle(text, features(text, self._words, claims=False), len(text))
        return self.verdict

    def finish(self) -> str:
        """Say that there is no more; give the rest that may be shown."""
        if self.verdict.action == "block":
            return ""
        text = self._arriving.text
        return self._settle(text, features(text, self._words, claims=False), len(text))

    def _settle(self, text: str, found: list[Feature], until: int) -> str:
        """Judge all of *found* that begin before *until*; give the text up to there, or to the cut."""
        before, base = self._settled, self._arriving.base
        exempts, look = self._case.context.exempts, self._look
        for feature in self._planted(text, found):
            start, end = feature.start, feature.end
            if not before <= start < until:
                continue
            if feature.kind == "canary":
                tips = self._case.canary(start + base, end + base)
            elif not exempts(feature) and (owners := look(feature.text)):
                tips = self._case.hear(feature._replace(start=start + base, end=end + base), owners, text[start:end])
            else:
                continue
            if tips:
                until = start
                break
        self._settled = until
        return text[before:until]

    def _planted(self, text: str, found: list[Feature]) -> list[Feature]:
        """Add the canaries of others, and leave out what is of the receiver's own."""
        planted = self._digests.canaries(text)
        if not planted:
            return found
        own = self._case.context.session_id
        mine = self._digests.canary(own) if own is not None else None
        for canary, start, end in planted:
            if canary == mine:
                found = [each for each in found if each.end <= start or each.start >= end]
        found = found + [
            Feature(canary, "canary", 0, start, end, False) for canary, start, end in planted if canary != mine
        ]
        return sorted(found, key=IN_ORDER)
