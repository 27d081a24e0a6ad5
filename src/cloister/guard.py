"""Other users' details on the path of a turn: what is looked up when, what is withheld, and what is remembered.

A turn's `Check` is told what is said and shown (`hears`, `takes`), judges the answer (`judge`, or `stream` while it
arrives), and says what goes with the commit (`fingerprints`, `events`). Its rules are those of `cloister.leaks`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import TypeVar

import msgspec

from cloister import looking, window
from cloister.audit import Event
from cloister.errors import IntegrityError, ReplyBlocked, StoreUnavailable
from cloister.leaks.detector import HARD, PASSING
from cloister.leaks.evidence import CROWD, Case, Context, Thresholds, Verdict, keys, weigh
from cloister.leaks.features import features, figures
from cloister.leaks.fingerprints import Digests, unique
from cloister.leaks.readings import Looked, beyond, claimed
from cloister.leaks.settings import LeakGuard
from cloister.leaks.spoken import Feature
from cloister.leaks.streaming import StreamCheck, hidden
from cloister.model import Item, Owner, to_micros
from cloister.opened import Opened
from cloister.scrub.texts import Kind, mapped, readable
from cloister.sealing import MasterKeys, tenant_keys
from cloister.stores.base import Fingerprint
from cloister.vault import Vault

T = TypeVar("T")

_MOST_REGISTERED = 400  # of one turn: nobody is to push others' details out of the index
_MOST_OF_DOCUMENT = 30
_MOST_TEXT = 200_000  # characters of what somebody says or is shown: no more of it is remembered, or exempt
_LARGE = 4_000  # characters: of a longer document the numbers alone are looked up
_LONG = 20_000  # characters: beyond, they are looked at beside the loop
_SEEDED_AT_ONCE = 1_000
_ASKED_AT_ONCE = 5_000  # features: no usual reply has more, so one request it is
_OWNERS_AT_MOST = 10_000
# How many of all fingerprints are numbers with so many digits of room, counted in 3,000 dialogues of support.
_SHARES, _REST = {4: 0.1, 5: 0.04, 6: 0.015}, 0.01
_KEYS = 2  # the newest master keys, under which fingerprints are written and looked up


class Marks:
    """Make fingerprints and canaries in the scope of one owner, under each key of its tenant that is in use."""

    def __init__(self, scope: str, derived: Sequence[bytes]) -> None:
        self.scope = scope
        self._digests = [Digests(key) for key in derived]

    @classmethod
    async def derive(cls, master: MasterKeys, guard: LeakGuard, tenant: str | None) -> Marks:
        """Derive the keys of *tenant*, or of the whole deployment."""
        if guard.scope == "all":
            return cls("", list((await master.derive("fingerprints")).values())[-_KEYS:])
        derived = await tenant_keys(master, tenant, "fingerprints")
        return cls(tenant or "", list(derived.values())[-_KEYS:])

    def of(self, feature: str) -> list[bytes]:
        """Give the digests of *feature*: one under each key."""
        return [digests.of(feature) for digests in self._digests]

    def prints(self, found: Iterable[Feature], *, common: bool = False) -> list[Fingerprint]:
        """Give the fingerprints of features, under each key."""
        return [
            Fingerprint(self.scope, digest, common, not common and unique(feature))
            for feature in found
            for digest in self.of(feature.text)
        ]

    def canary(self, session_id: str) -> str:
        """Give the canary of a session, under the newest key."""
        return self._digests[-1].canary(session_id)

    def canaries(self, text: str) -> list[tuple[str, int, int]]:
        """Find canaries of any of the keys: what, from where, to where."""
        return [found for digests in self._digests for found in digests.canaries(text)]


class Watch:
    """Keep what a cloister's checks have in common: the settings, and to whom how much was withheld lately."""

    def __init__(self, guard: LeakGuard | None, vault: Vault) -> None:
        self.guard = guard
        self.vault = vault
        self._withheld: OrderedDict[Owner, deque[tuple[datetime, bytes]]] = OrderedDict()
        self._alerted: OrderedDict[Owner, deque[tuple[datetime, bytes]]] = OrderedDict()

    def withheld(self, owner: Owner) -> None:
        """Count a reply that was withheld from *owner*."""
        self._count(self._withheld, owner, b"")

    def alerted(self, owner: Owner, detail: bytes) -> None:
        """Count a reply that was shown to *owner* and alerted for a *detail*: again for the same one is once."""
        if all(detail != known for _, known in self._alerted.get(owner, ())):
            self._count(self._alerted, owner, detail)

    def _count(self, counts: OrderedDict[Owner, deque[tuple[datetime, bytes]]], owner: Owner, detail: bytes) -> None:
        assert self.guard is not None
        counts.setdefault(owner, deque(maxlen=self.guard.most_blocks)).append((self.vault.now(), detail))
        counts.move_to_end(owner)
        if len(counts) > _OWNERS_AT_MOST:
            counts.popitem(last=False)

    def capped(self, owner: Owner) -> bool:
        """Say whether so much was withheld from *owner* that all is, for a while."""
        return self._full(self._withheld.get(owner))

    def suspects(self, owner: Owner) -> bool:
        """Say whether *owner* was shown so many details that only alert that no more of them are, for a while."""
        return self._full(self._alerted.get(owner))

    def _full(self, counted: deque[tuple[datetime, bytes]] | None) -> bool:
        guard = self.guard
        if counted is None or guard is None or len(counted) < guard.most_blocks:
            return False
        return counted[0][0] > self.vault.now() - guard.block_window

    async def seed(self, text: str, tenant: str | None) -> int:
        """Make what *text* says common knowledge of *tenant*; give how much of it was not yet."""
        assert self.guard is not None
        marks = await Marks.derive(self.vault.keys, self.guard, tenant)
        words = self.guard.frequencies()
        found = await asyncio.to_thread(lambda: {feature.text for feature in claimed(text, words)})
        digests = [digest for feature in sorted(found) for digest in marks.of(feature)]
        parts = [digests[at : at + _SEEDED_AT_ONCE] for at in range(0, len(digests), _SEEDED_AT_ONCE)]
        return sum([(await self.vault.ask(self.vault.store.seed, marks.scope, part)).count for part in parts])

    def forget(self, owner: Owner) -> None:
        """Forget an owner who was erased."""
        self._withheld.pop(owner, None)
        self._alerted.pop(owner, None)


class Check:
    """Watch over one turn of one session. Without a guard it lets everything pass and remembers nothing."""

    def __init__(self, watch: Watch, opened: Opened, marks: Marks | None) -> None:
        self.guard = watch.guard
        self.events: list[Event] = []
        """What is to be put on record, whether or not the turn is stored."""
        self._watch = watch
        self._owner = opened.owner
        self._session = opened.id
        self.verdict = Verdict()
        """What was found in the answer."""
        self._marks = marks
        self._claimed: dict[str, Feature] = {}
        self._known: dict[str, tuple[Owner, ...] | None] = {}
        self._size = 0
        self._unchecked = False
        self._telling = ""
        self._said: list[Item] = []
        self._documents: list[str] = []
        self._looked_at: dict[str, list[Feature]] = {}  # what was looked at once is wanted again for the commit
        self._read: tuple[str, Looked] = ("", Looked(None, []))
        self._own: list[tuple[str, bool]] = []
        self._before: Callable[[], Iterable[Item]] = tuple
        if self.guard is not None:
            self._words = self.guard.frequencies()
            self._context = Context(self._words, opened.id)
            """What this owner said and was shown: it is no evidence."""
            self._typed = Context(self._words, opened.id)
            """What this owner said: of a document it is no evidence."""

    @classmethod
    async def over(cls, watch: Watch, opened: Opened, before: Callable[[], Iterable[Item]] = tuple) -> Check:
        """Begin the check of a turn of *opened*; *before* gives what was said and shown before, if it is wanted."""
        guard = watch.guard
        marks = None if guard is None else await Marks.derive(watch.vault.keys, guard, opened.owner.tenant)
        check = cls(watch, opened, marks)
        check._before = before
        return check

    # --- what is said and shown ---------------------------------------------------------------------------------------

    async def hears(self, items: Sequence[Item], documents: Sequence[str] = ()) -> None:
        """Take note of what goes into the session, before personal data is replaced, and of *documents*."""
        if self.guard is not None:
            size = sum(len(item.text) for item in items) + sum(map(len, documents))
            await self._apart(size, lambda: self._hear(items, documents))

    def _hear(self, items: Sequence[Item], documents: Sequence[str]) -> None:
        for item in items:
            self.takes(item)
        for document in documents:
            self._shows(document)

    def takes(self, item: Item) -> None:
        """Take note of one item; `ReplyBlocked` for what a tool or model said with another session's canary in it."""
        if self.guard is None:
            return
        if item.role == "tool":
            self._shows(item.text)
        elif item.role == "assistant":
            strangers = self._strangers(readable(item))
            if strangers:
                self._note("reply.blocked", None, canary=len(strangers))
                raise ReplyBlocked(
                    "what the model said on the way carries what was planted in another session, so it was not taken"
                )
            self._said.append(item)
        else:
            text = item.text[:_MOST_TEXT]
            self._own.append((text, False))
            if item.role == "user":
                with self._running():
                    found = self._features(text)
                    self._claimed.update({feature.text: feature for feature in found if feature.claim})

    def _features(self, text: str) -> list[Feature]:
        """Find what *text* says, but for what is part of a canary."""
        if self._marks is None or not text:
            return []
        if text not in self._looked_at:
            planted = self._marks.canaries(text)
            found = claimed(text, self._words)
            if planted:
                found = [
                    one for one in found if not any(one.start < end and start < one.end for _, start, end in planted)
                ]
            self._looked_at[text] = found
        return self._looked_at[text]

    def _seen(self, text: str) -> list[Feature]:
        """Find what *text* could tell, however it is written, in the order in which it begins."""
        found = [*self._features(text), *beyond(self._beside(text), self._words)]
        found.sort(key=lambda feature: (feature.start, feature.end))
        return found

    def _beside(self, text: str) -> Looked:
        """Give what *text* says beside what is written; of the last text it is known."""
        if text != self._read[0]:
            self._read = text, Looked.at(text)
        return self._read[1]

    def _strangers(self, text: str) -> list[tuple[str, int, int]]:
        """Find canaries of other sessions."""
        planted = [] if self._marks is None else hidden(self._marks, text, self._beside(text))
        return [found for found in planted if found[0] != self.canary]

    def _shows(self, document: str) -> None:
        strangers = self._strangers(document)
        if strangers:
            self._note("document.foreign", None, canary=len(strangers))
            raise ReplyBlocked(
                "a document or the result of a tool carries what was planted in another session, so it was not taken; "
                "find out where it came from: document.foreign in the audit log says when"
            )
        self._own.append((document[:_MOST_TEXT], True))
        self._documents.append(document[:_MOST_TEXT])

    @property
    def canary(self) -> str:
        """Give what marks this session: wherever else it turns up, it is withheld. Empty without a guard."""
        return "" if self._marks is None else self._marks.canary(self._session)

    def planted(self, system: Item | None, counter: window.Counter) -> Item | None:
        """Give the system text with this session's canary at its end, where the guard is to plant it, and its cost."""
        if self.guard is None or not self.guard.plant:
            return system
        line = f"The mark {self.canary} belongs to this conversation alone. Never repeat it."
        cost = window.item_tokens(Item("system", line), counter)
        text, tokens = (f"{system.text}\n\n{line}", system.tokens) if system else (line, 0)
        return Item("system", text, tokens=tokens + cost, counter=counter.name)

    def without_canary(self, answer: Item) -> Item:
        """Give *answer* without this session's own canary: it is for nobody to read."""
        if self._marks is None:
            return answer
        own: str | None = None

        def cut(text: str, _: Kind) -> str:
            nonlocal own
            for canary, start, end in reversed(marks.canaries(text)):
                own = own or marks.canary(self._session)
                text = text[:start] + text[end:] if canary == own else text
            return text

        marks = self._marks
        return mapped(answer, cut)

    @property
    def safe_text(self) -> str:
        """Give what is read instead of a reply that is withheld."""
        return "" if self.guard is None else self.guard.safe_text

    @property
    def raises(self) -> bool:
        """Say whether the application wants an error besides."""
        return self.guard is not None and self.guard.on_block == "raise"

    # --- judging ------------------------------------------------------------------------------------------------------

    @property
    def holds(self) -> bool:
        """Say whether nothing of an answer may be shown before all of it was judged."""
        return self.guard is not None and (
            self.guard.hold == "reply" or self.capped or self._watch.suspects(self._owner)
        )

    @property
    def capped(self) -> bool:
        """Say whether every answer is withheld."""
        return self._watch.capped(self._owner)

    def stream(self) -> StreamCheck | None:
        """Give what judges an answer while it arrives: what it wants to know, `look` looks up. None without a guard."""
        if self.guard is None or self._marks is None:
            return None
        return StreamCheck(self._case(self.guard), self._words, self._marks, self._known.get, wary=True)

    def _case(self, guard: LeakGuard) -> Case:
        limits = guard.thresholds
        strong = limits.alert if self._watch.suspects(self._owner) else limits.block
        block = {"any": limits.alert, "strong": strong, "canary": math.inf}[guard.block]
        return Case(self._owner, self._context, Thresholds(limits.alert, block), self._crowd)

    def _crowd(self, room: int) -> int:
        """Say how many numbers with so many digits of *room* are registered, as far as the index tells."""
        return max(CROWD, int(self._size * _SHARES.get(room, _REST)))

    async def look(self, wanted: Iterable[str]) -> None:
        """Look up *wanted* features, and those of the documents that came since, in one round trip.

        Raises `StoreUnavailable` if that cannot be done, unless the guard was told to go on.
        """
        with self._running():
            documents, self._documents = self._documents, []
            looked = [(text, await self._apart(len(text), partial(self._found, text))) for text in documents]
            chosen = [text for _, found in looked for text in keys(found, most=_MOST_OF_DOCUMENT)]
            texts = {*wanted, *chosen} - self._known.keys()
            if texts:
                await self._ask(texts)
            if any(self._foreign(text) for text in texts) or (texts and self._watch.suspects(self._owner)):
                await self._fill()
            for text, found in looked:
                self._judge_document(text, found)

    def _found(self, document: str) -> list[Feature]:
        if len(document) > _LARGE:
            return figures(document, self._words)
        return features(document, self._words, claims=False)

    async def _ask(self, texts: set[str]) -> None:
        assert self._marks is not None
        vault = self._watch.vault
        scope, now, wanted = self._marks.scope, to_micros(vault.now()), sorted(texts)
        for at in range(0, len(wanted), _ASKED_AT_ONCE):
            if at:
                await asyncio.sleep(0)  # some stores answer at once: then nobody else came to anything meanwhile
            part = wanted[at : at + _ASKED_AT_ONCE]
            whose = {digest: text for text in part for digest in self._marks.of(text)}
            claims = await vault.ask(vault.store.claims, scope, list(whose), now=now)
            self._size = claims.size
            self._known.update(dict.fromkeys(part))
            for digest, owners in claims.owners.items():
                before = self._known[whose[digest]]
                # What is common under one key is so under each.
                common = before == () or not owners
                self._known[whose[digest]] = () if common else tuple({*(before or ()), *owners})

    def _foreign(self, text: str) -> bool:
        owners = self._known.get(text)
        return bool(owners) and self._owner not in (owners or ())

    async def _fill(self) -> None:
        """Exempt what this owner said and was shown; the assistant's words do not count, or one slip would be for good.

        Only now: it takes longer than all the rest, and hardly ever is anything foreign found.
        """
        own = [
            *self._own,
            *((item.text[:_MOST_TEXT], item.role == "tool") for item in self._before() if item.role != "assistant"),
        ]
        self._own, self._before = [], tuple
        await self._apart(sum(len(text) for text, _ in own), lambda: self._exempt(own))

    def _exempt(self, own: Iterable[tuple[str, bool]]) -> None:
        for text, document in own:
            self._context.add(text, document=document)
            if not document:
                self._typed.add(text, document=False)

    def _judge_document(self, text: str, found: Sequence[Feature]) -> None:
        """Raise an alarm for a document that says several things of one other owner."""
        assert self.guard is not None
        limits = self.guard.thresholds
        case = Case(self._owner, self._typed, Thresholds(limits.alert, math.inf), self._crowd)
        for feature in found:
            owners = self._known.get(feature.text)
            if owners:
                case.hear(feature, owners, text[feature.start : feature.end])
        if case.verdict.score >= limits.block and len(case.verdict.evidence) > 1:
            self._note("document.foreign", case.verdict)

    async def judge(self, answer: Item) -> bool:
        """Judge an *answer* as its owner would see it, with all that the model said in this turn; True to withhold it.

        Raises `StoreUnavailable` if that cannot be done, unless the guard was told to go on.
        """
        if self.guard is None:
            return False
        if self.capped:
            self._note("reply.blocked", None, reason="limit")
            return True
        return self.settle(await self.weigh(answer), self._telling)

    async def weigh(self, answer: Item) -> Verdict:
        """Give the verdict on *answer*; nothing is counted or put on record but that it could not be had."""
        assert self.guard is not None
        said = "\n".join(readable(item) for item in (*self._said, answer))
        case = self._case(self.guard)
        with self._running():
            found, strangers = await self._apart(len(said), lambda: (self._seen(said), self._strangers(said)))
            await self.look([feature.text for feature in found])
            for _, start, end in strangers:
                case.canary(start, end)
            for feature in found:
                owners = self._known.get(feature.text)
                if owners and case.hear(feature, owners, said[feature.start : feature.end]):
                    break
        self.verdict, self._telling = case.verdict, case.telling
        return case.verdict

    def settle(self, verdict: Verdict, telling: str) -> bool:
        """Put a *verdict*, to which the *telling* detail led, on record; say whether the reply is withheld."""
        self.verdict = verdict
        if verdict.action == "block":
            self._watch.withheld(self._owner)
            self._note("reply.blocked", verdict)
        elif verdict.action == "alert":
            assert self._marks is not None
            self._watch.alerted(self._owner, self._marks.of(telling)[-1])
            self._note("reply.alerted", verdict)
        return verdict.action == "block"

    # --- what goes with the commit ------------------------------------------------------------------------------------

    async def fingerprints(self, answer: Item | None = None) -> list[Fingerprint]:
        """Give what is remembered of this turn: what its owner said, and of the *answer* unless it was withheld."""
        if self._marks is None:
            return []
        # What nobody could look up may be somebody else's.
        answers = [] if answer is None or self._unchecked else [*self._said, answer]
        return await self._apart(sum(len(item.text) for item in answers), partial(self._prints, self._marks, answers))

    def _prints(self, marks: Marks, answers: Sequence[Item]) -> list[Fingerprint]:
        claimed, common = dict(self._claimed), []
        with self._running():
            for item in answers:
                for feature in self._answered(item.text):
                    if feature.kind in HARD:
                        claimed.setdefault(feature.text, feature)
                    elif feature.text not in claimed:
                        common.append(feature)
        most = sorted(claimed.values(), key=weigh, reverse=True)[:_MOST_REGISTERED]
        found = {one.digest: one for one in marks.prints(common[:_MOST_REGISTERED], common=True)}
        found.update({one.digest: one for one in marks.prints(most)})
        return list(found.values())

    def _answered(self, text: str) -> Iterator[Feature]:
        """Give what an answer that is shown makes its owner's, or common: nothing that is somebody else's already.

        Its identifiers, addresses and amounts are its owner's; names and words that nobody claimed are everybody's.
        """
        for feature in self._features(text):
            owners = self._known.get(feature.text)
            foreign = bool(owners) and self._owner not in (owners or ())
            if feature.kind in HARD:
                if feature.claim and (not foreign or self._context.exempts(feature)):
                    yield feature
            elif foreign:
                if feature.kind in PASSING and self.verdict.action == "pass":
                    yield feature
            elif owners is None and feature.claim and feature.text in self._known:
                yield feature

    def forget(self) -> None:
        """Let go of all texts and keys: whoever keeps a turn does not keep them."""
        self._own, self._said, self._documents, self._before = [], [], [], tuple
        self._claimed, self._known, self._marks, self._looked_at = {}, {}, None, {}
        self._read = "", Looked(None, [])
        self._telling = ""

    # --- helpers ------------------------------------------------------------------------------------------------------

    async def _apart(self, size: int, look: Callable[[], T]) -> T:
        """Look at texts of so many characters; at long ones beside the loop, so that nobody else has to wait for it."""
        return await looking.beside(self._owner, size, look) if size > _LONG else look()

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """Refuse, or go on and say so, where the check itself fails: without one there is no reply."""
        failed = ""
        try:
            yield
        except (IntegrityError, ReplyBlocked):
            raise
        except StoreUnavailable:
            if self._refuses:
                raise
            failed = StoreUnavailable.__name__
        except Exception as error:  # noqa: BLE001 - of a plug-in for words too, whose message may be the text's
            failed = type(error).__name__
        if failed and self._refuses:
            refused = StoreUnavailable(
                f"the search for other users' details failed with {failed}, so there is no reply; try again, or see "
                "LeakGuard(on_failure=…)"
            )
            try:
                raise refused
            except StoreUnavailable:
                refused.__context__ = None  # an error that may name the text does not hang on ours
                raise
        if failed:
            self._unchecked = True
            self._note("reply.unchecked", None, problem=failed)

    @property
    def _refuses(self) -> bool:
        return self.guard is None or self.guard.on_failure == "refuse"

    def _note(self, kind: str, verdict: Verdict | None, **detail: str | int) -> None:
        """Put on record what was found: whose it is, how much it weighs, and of which kinds; never the words."""
        if verdict is not None:
            kinds = Counter(piece.kind for piece in verdict.evidence)
            detail = {"score": min(round(verdict.score), 999), **kinds, **detail}
        noted = self._watch.vault.event(kind, self._owner, self._session, **detail)
        self.events.append(msgspec.structs.replace(noted, other=verdict.owner if verdict else None))

    def __repr__(self) -> str:
        return "Check(…)"


async def remembered(watch: Watch, opened: Opened, items: Sequence[Item]) -> list[Fingerprint]:
    """Give what is remembered of *items* that are stored without a turn; no model had part in them."""
    check = await Check.over(watch, opened)
    await check.hears([item for item in items if item.role != "tool"])
    return await check.fingerprints(Item("assistant"))
