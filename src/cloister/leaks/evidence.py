"""How much a reply says about somebody else: evidence per other owner, and the verdict on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import msgspec
from msgspec.structs import replace

from cloister.leaks.features import features, figures
from cloister.leaks.forms import WORD
from cloister.leaks.numbers import room
from cloister.leaks.readings import Looked, beyond, plain
from cloister.leaks.spoken import Feature
from cloister.leaks.weights import CAPS, SEEN, WEIGHTS
from cloister.leaks.words import Frequencies, fold
from cloister.model import Owner

Action = Literal["pass", "alert", "block"]

CERTAIN = 99.0
"""What a canary weighs."""
MOST_OWN = 400
"""How many features one text of one's own exempts: whoever pastes a telephone book exempts none of the rest."""
MOST_DOCUMENT = 4_000
"""How many features, and how many words, a document exempts."""
MOST_KEYS = 30
"""How many fingerprints are looked up for one reply."""
CROWD = 1_000
"""How many registered numbers of each length are assumed where nobody counts them."""

LEAST_CROWD = 100
"""How many are assumed at least: numbers that people use are not spread evenly."""


class Evidence(msgspec.Struct, frozen=True):
    """Be one piece of evidence: what it is, never the words, and where it is in the reply."""

    kind: str
    weight: float
    start: int
    end: int


class Verdict(msgspec.Struct, frozen=True):
    """Say what is to be done with a reply, whose details it carries, and why.

    ``cut`` is where the detail that tips the verdict begins; None unless the reply is blocked.
    """

    action: Action = "pass"
    score: float = 0.0
    owner: Owner | None = None
    evidence: tuple[Evidence, ...] = ()
    cut: int | None = None


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From which evidence on to alert, and to block."""

    alert: float = 6.0
    block: float = 11.0


class Context:
    """Hold what the receiver of a reply has said and been shown: it is no evidence.

    Only whole features are exempt, and of each text a bounded number. ``session_id`` names the session whose canary
    may be in its own context.
    """

    def __init__(self, words: Frequencies, session_id: str | None = None) -> None:
        self._words = words
        self.session_id = session_id
        self._own: set[str] = set()
        self._shown: list[frozenset[str]] = []

    def add(self, text: str, *, document: bool | None = None) -> None:
        """Exempt what *text* says. In a *document* a name may lie in two fields; unless said, JSON is taken for one.

        Say False of what a user typed: a list of all first and all last names would exempt every name.
        """
        if document is None:
            document = text[:1] in ("{", "[")
        most = MOST_DOCUMENT if document else MOST_OWN
        found = figures(text, self._words) if document else features(text, self._words, claims=False)
        reads = plain(text)
        if reads is not text:
            found = [
                *found[:most],
                *(figures(reads, self._words) if document else beyond(Looked.at(text), self._words))[:most],
            ]
            most *= 2
        self._own.update(feature.text for feature in found[:most] if feature.kind != "reversed")
        if document:
            self._shown.append(frozenset(map(fold, WORD.findall(reads)[:most])))

    def exempts(self, feature: Feature) -> bool:
        """Say whether the receiver knows *feature* as a whole."""
        return feature.text in self._own

    def shows(self, said: str) -> bool:
        """Say whether all words of *said* are in one of the documents."""
        parts = {fold(word) for word in WORD.findall(said)}
        return any(parts <= shown for shown in self._shown)


NUMBERS = frozenset(["number", "identifier", "amount", "price"])
"""The kinds of which a random one may meet a registered one."""


def room_of(feature: Feature) -> int:
    """Say how much room there is for numbers like *feature*, in digits."""
    if feature.kind == "identifier":
        return feature.level
    return room(feature.text.rstrip("c") if feature.kind in ("amount", "price") else feature.text)


def weigh(feature: Feature, registered: Callable[[int], int] | None = None) -> float:
    """Give what *feature* weighs: how unlikely it is in a reply that leaks nothing.

    *registered* says how many numbers there are of a length, for a random one meets one of them more often the more
    there are.
    """
    kind, level = feature.kind, feature.level
    if kind in NUMBERS:
        size = room_of(feature)
        crowd = max(registered(size), LEAST_CROWD) if registered else CROWD
        likely = min(1.0, crowd / 10 ** min(size, 12))
        return min(-math.log(SEEN[kind] * likely), CAPS[kind])
    row = WEIGHTS[kind]
    return row[min(level, len(row) - 1)]


def keys(candidates: Sequence[Feature], context: Context | None = None, most: int = MOST_KEYS) -> list[str]:
    """Choose what to look up: of all that is not exempt, the most telling."""
    best: dict[str, float] = {}
    for feature in candidates:
        if context is None or not context.exempts(feature):
            best[feature.text] = max(best.get(feature.text, 0.0), weigh(feature))
    if len(best) <= most:
        return list(best)
    return sorted(best, key=best.__getitem__, reverse=True)[:most]


FAINT = frozenset(["word", "phrase"])
"""Kinds that say what somebody spoke of, and not who it was."""
FAINT_MOST = 5.0
"""What these weigh together at most: two people with the same hobby share many rare words."""


class _Chain(NamedTuple):
    """Be pieces that do not overlap, and what they weigh."""

    end: int
    strong: float
    faint: float
    pieces: tuple[Evidence, ...]

    @property
    def total(self) -> float:
        return self.strong + min(self.faint, FAINT_MOST)


@dataclass(slots=True)
class Case:
    """Gather the evidence of one reply, in the order in which it is said.

    For each other owner, the heaviest chain of pieces that do not overlap counts; the heaviest of all decides.
    """

    receiver: Owner
    context: Context
    thresholds: Thresholds
    registered: Callable[[int], int] | None = None
    verdict: Verdict = field(default_factory=Verdict)
    telling: str = field(default="", repr=False)
    """The detail that led to the verdict."""
    _heard: set[str] = field(default_factory=set, repr=False)
    _chains: dict[Owner | None, list[_Chain]] = field(default_factory=dict, repr=False)

    def hear(self, feature: Feature, owners: Iterable[Owner], said: str) -> bool:
        """Weigh *feature*, *said* so and owned by *owners*; say whether the verdict is to block."""
        others = tuple(owners)
        if not others or self.receiver in others or self.context.exempts(feature) or feature.text in self._heard:
            return False
        if self.context.shows(said):
            return False
        self._heard.add(feature.text)
        weight = weigh(feature, self.registered)
        piece = Evidence(feature.kind, round(weight, 2), feature.start, feature.end)
        before = self.verdict
        for owner in others:
            self._count(owner, piece, weight)
        if self.verdict is not before:
            self.telling = feature.text
        return self.verdict.action == "block"

    def canary(self, start: int, end: int) -> bool:
        """Count the canary of another session, which blocks by itself."""
        self._count(None, Evidence("canary", CERTAIN, start, end), CERTAIN)
        if self.verdict.action != "block":
            self.verdict = replace(self.verdict, action="block", cut=start)
        return True

    def _count(self, owner: Owner | None, piece: Evidence, weight: float) -> None:
        chains = self._chains.setdefault(owner, [])
        best = _Chain(0, 0.0, 0.0, ())
        for chain in chains:
            if chain.end <= piece.start and chain.total > best.total:
                best = chain
        # Pieces come in the order in which they begin, so of the chains that have ended only the best is needed.
        chains[:] = [best, *(chain for chain in chains if chain.end > piece.start)]
        faint = piece.kind in FAINT
        made = _Chain(
            piece.end,
            best.strong + (0 if faint else weight),
            best.faint + (weight if faint else 0),
            (*best.pieces, piece),
        )
        chains.append(made)
        total = made.total
        if total > self.verdict.score and self.verdict.action != "block":
            limits = self.thresholds
            action: Action = "block" if total >= limits.block else "alert" if total >= limits.alert else "pass"
            cut = piece.start if action == "block" else None
            self.verdict = Verdict(action, round(total, 2), owner, made.pieces, cut)


def judge(
    text: str,
    candidates: Sequence[Feature],
    found: Mapping[str, Sequence[Owner]],
    receiver: Owner,
    context: Context,
    thresholds: Thresholds | None = None,
    registered: Callable[[int], int] | None = None,
) -> Verdict:
    """Judge a reply by the features of it that are known, whose they are, and what its *receiver* knows anyway.

    An empty entry of *found* is common knowledge.
    """
    case = Case(receiver, context, thresholds or Thresholds(), registered)
    for feature in candidates:
        owners = found.get(feature.text)
        if owners and case.hear(feature, owners, text[feature.start : feature.end]):
            break
    return case.verdict
