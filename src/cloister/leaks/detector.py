"""The detector as a whole: what is registered, and the verdict on a reply."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime

from cloister.leaks.evidence import NUMBERS, Case, Context, Thresholds, Verdict, room_of
from cloister.leaks.fingerprints import COMMON, Digests, Index, unique
from cloister.leaks.readings import claimed
from cloister.leaks.spoken import Feature
from cloister.leaks.streaming import StreamCheck
from cloister.leaks.words import Frequencies, packed
from cloister.model import Owner, Role, to_micros

HARD = frozenset(["email", "number", "identifier", "amount", "price", "place"])
"""What is registered from the assistant's own words too. Of the rest it makes common what nobody has claimed."""

PASSING = frozenset(["pair", "phrase", "word", "public"])
"""What becomes common as soon as the assistant says it to anybody else. A name that slipped through does so only with
its fourth owner, or one alert would be the last.
"""


class LeakDetector:
    """Notice replies that carry somebody else's details, with an index in this process.

    ::

        detector = LeakDetector()
        detector.register(ana, session_id, "user", "My project is called NIGHTHAWK.")
        context = detector.context()
        context.add("Which projects are there?")
        detector.check(ben, context, "One is called Nighthawk.").action  # "alert"
    """

    def __init__(
        self,
        key: bytes | None = None,
        *,
        words: Frequencies | None = None,
        thresholds: Thresholds | None = None,
        index: Index | None = None,
    ) -> None:
        self._words = words or packed()
        self._digests = Digests(key or secrets.token_bytes(32))
        self._thresholds = thresholds or Thresholds()
        self.index = index or Index()
        self._counts = [0] * 17

    def register(
        self,
        owner: Owner,
        session_id: str,
        role: Role,
        text: str,
        *,
        now: datetime | None = None,
        expires_at: datetime | None = None,
    ) -> None:
        """Remember whose details *text* carries. What a tool or the system says is nobody's."""
        if role not in ("user", "assistant"):
            return
        claim, at = None, _micros(now)
        planted = self._digests.canaries(text)
        for feature in _once(claimed(text, self._words)):
            if any(feature.start < end and start < feature.end for _, start, end in planted):
                continue
            soft = role == "assistant" and feature.kind not in HARD
            if not feature.claim and not soft:
                continue
            digest = self._digests.of(feature.text)
            if soft:
                owners = self.index.owners(digest, at)
                if owners is None:
                    if feature.claim:
                        self.index.add(digest, COMMON, at)
                    continue
                if owner in owners or not owners:
                    continue
                if feature.kind in PASSING:
                    self.index.add(digest, COMMON, at)
                    continue
            if claim is None:
                claim = self.index.claim(owner, session_id, _micros(expires_at))
            new = self.index.add(digest, claim, at, unique(feature))
            if new and feature.kind in NUMBERS:
                self._counts[room_of(feature)] += 1

    def seed(self, text: str) -> None:
        """Make what *text* says common knowledge: a catalogue, a system prompt, the hotline's number."""
        for feature in claimed(text, self._words):
            self.index.add(self._digests.of(feature.text), COMMON, None)

    def canary(self, session_id: str) -> str:
        """Give the canary to plant in a session: wherever else it turns up, the reply is blocked."""
        return self._digests.canary(session_id)

    def context(self, session_id: str | None = None) -> Context:
        """Begin what a receiver knows; *session_id* is whose canary may be there."""
        return Context(self._words, session_id)

    def check(self, owner: Owner, context: Context, text: str, *, now: datetime | None = None) -> Verdict:
        """Judge a reply to *owner*. Registers nothing."""
        return self.stream(owner, context, now=now).whole(text)

    def stream(self, owner: Owner, context: Context, *, now: datetime | None = None) -> StreamCheck:
        """Judge a reply to *owner* while it arrives."""
        case = Case(owner, context, self._thresholds, self._counts.__getitem__)
        return StreamCheck(case, self._words, self._digests, self._look(now))

    def forget(self, owner: Owner) -> None:
        """Erase everything of *owner*."""
        self.index.erase(owner)

    def owners(self, feature: str, now: datetime | None = None) -> tuple[Owner, ...] | None:
        """Say whose a feature is: nobody's (None), common knowledge (empty), or these owners'."""
        return self.index.owners(self._digests.of(feature), _micros(now))

    def _look(self, now: datetime | None) -> Callable[[str], tuple[Owner, ...] | None]:
        of, owners, at = self._digests.of, self.index.owners, _micros(now)
        return lambda text: owners(of(text), at)


def _micros(moment: datetime | None) -> int | None:
    return None if moment is None else to_micros(moment)


def _once(found: list[Feature]) -> list[Feature]:
    """Give each feature once, claimed if it is anywhere."""
    return list({feature.text: feature for feature in sorted(found, key=lambda each: each.claim)}.values())
