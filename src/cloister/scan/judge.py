"""Every reply of a transcript, judged with what had been said before it and nothing else."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from cloister.leaks import Context, Index, LeakDetector, Verdict, features, packed
from cloister.model import Owner
from cloister.scan.files import Done, Place, Said, Survey
from cloister.scan.transcripts import Message

Scope = Literal["tenant", "all"]

MOST_KNOWN = 16_000_000
"""How many characters of conversations that go on are known as their receivers' own, at about 15 bytes for each."""
MOST_FOUND = 10_000
"""How many replies are listed: the worst."""
AROUND = 60
"""How many characters are quoted before and behind a detail."""


@dataclass(slots=True)
class Quote:
    """Be a detail in the words around it."""

    before: str
    said: str
    behind: str


@dataclass(slots=True)
class Piece:
    """Be one piece of evidence, where it is in the reply, and where its owner said it first."""

    kind: str
    weight: float
    start: int
    end: int
    quote: Quote
    texts: frozenset[str] = frozenset()
    origin: Place | None = None
    original: Quote | None = None


@dataclass(slots=True)
class Finding:
    """Be a reply that was alerted or would have been blocked."""

    verdict: Verdict
    said: Said
    characters: int
    pieces: list[Piece]
    whose: Message | None = None
    """The first message of the other owner that has one of the details."""


@dataclass
class Scan:
    """Play what was said through the detector: what would have been alerted, and what blocked."""

    survey: Survey
    scope: Scope = "tenant"
    seeds: tuple[str, ...] = ()
    most_known: int = MOST_KNOWN
    alerted: int = 0
    blocked: int = 0
    forgotten: int = 0
    """How often a conversation that was going on was forgotten to make room."""
    findings: list[Finding] = field(default_factory=list)
    index: Index = field(default_factory=Index)
    _detectors: dict[str | None, LeakDetector] = field(default_factory=dict)
    _known: OrderedDict[tuple[int, Owner], Context] = field(default_factory=OrderedDict)
    _sizes: dict[tuple[int, Owner], int] = field(default_factory=dict)
    _size: int = 0

    def judge(self, done: Done) -> None:
        """Judge every reply."""
        left = dict(self.survey.left)
        for said in self.survey.replay(done):
            self._hear(said)
            left[said.conversation] -= 1
            if not left[said.conversation]:
                del left[said.conversation]
                self._drop((said.conversation, said.owner))
        self._keep_the_worst()

    def _hear(self, said: Said) -> None:
        role, text = said.message.role, said.message.text
        detector = self._detector(said.owner.tenant)
        context = self._context(said, detector)
        if role == "assistant":
            verdict = detector.check(said.owner, context, text)
            if verdict.action != "pass":
                self._found(said, verdict)
            if verdict.action == "block":
                # As the guard would have done it: what was blocked is nobody's own.
                return
        if role == "user":
            context.add(text, document=False)
        else:
            context.add(text, document=None if role == "assistant" else True)
        detector.register(said.owner, f"{said.conversation:x}", role, text)

    def _detector(self, tenant: str | None) -> LeakDetector:
        """Give the detector of a tenant. All share one index, in which the digests of one mean nothing to another."""
        if self.scope == "all":
            tenant = None
        detector = self._detectors.get(tenant)
        if detector is None:
            detector = self._detectors[tenant] = LeakDetector(index=self.index)
            for text in self.seeds:
                detector.seed(text)
        return detector

    # --- what receivers know ------------------------------------------------------------------------------------------

    def _context(self, said: Said, detector: LeakDetector) -> Context:
        key = (said.conversation, said.owner)
        context = self._known.get(key)
        if context is None:
            context = self._known[key] = detector.context()
        else:
            self._known.move_to_end(key)
        size = 100 + len(said.message.text)
        self._sizes[key] = self._sizes.get(key, 0) + size
        self._size += size
        while self._size > self.most_known and self._known:
            self._drop(next(iter(self._known)))
            self.forgotten += 1
        return context

    def _drop(self, key: tuple[int, Owner]) -> None:
        if self._known.pop(key, None) is not None:
            self._size -= self._sizes.pop(key)

    # --- what was found -----------------------------------------------------------------------------------------------

    def _found(self, said: Said, verdict: Verdict) -> None:
        if verdict.action == "block":
            self.blocked += 1
        else:
            self.alerted += 1
        text = said.message.text
        spots: dict[tuple[str, int, int], set[str]] = {}
        for feature in features(text, packed(), claims=False):
            spots.setdefault((feature.kind, feature.start, feature.end), set()).add(feature.text)
        pieces = [
            Piece(
                each.kind,
                each.weight,
                each.start,
                each.end,
                _quote(text, each.start, each.end),
                frozenset(spots.get((each.kind, each.start, each.end), ())),
            )
            for each in verdict.evidence
        ]
        bare = said._replace(message=said.message._replace(text=""))
        self.findings.append(Finding(verdict, bare, len(text), pieces))
        if len(self.findings) >= 2 * MOST_FOUND:
            self._keep_the_worst()

    def _keep_the_worst(self) -> None:
        self.findings.sort(key=lambda finding: -finding.verdict.score)
        del self.findings[MOST_FOUND:]

    def trace(self, done: Done) -> None:
        """Find where the details that were found had been said first, by the one whose they are."""
        wanted: dict[Owner, dict[str, list[tuple[Finding, Piece]]]] = {}
        for finding in self.findings:
            owner = finding.verdict.owner
            assert owner is not None  # only a canary has none, and nothing is planted here
            for piece in finding.pieces:
                for text in piece.texts:
                    wanted.setdefault(owner, {}).setdefault(text, []).append((finding, piece))
        for said in self.survey.replay(done) if wanted else ():
            missing = wanted.get(said.owner)
            if missing and said.message.role in ("user", "assistant"):
                self._trace(said, missing)

    def _trace(self, said: Said, missing: dict[str, list[tuple[Finding, Piece]]]) -> None:
        text = said.message.text
        for feature in features(text, packed(), claims=False):
            for finding, piece in missing.pop(feature.text, ()):
                if piece.origin is None:
                    piece.origin = said.place
                    piece.original = _quote(text, feature.start, feature.end)
                finding.whose = finding.whose or said.message._replace(text="")


def _quote(text: str, start: int, end: int) -> Quote:
    return Quote(text[max(0, start - AROUND) : start], text[start:end][: 4 * AROUND], text[end : end + AROUND])


def seeds(texts: Iterable[str]) -> tuple[str, ...]:
    """Take common knowledge apart into lines, so that nothing reaches from one into the next."""
    return tuple(line for text in texts for line in text.splitlines() if line.strip())
