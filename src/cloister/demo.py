"""The story that cloister comes from, scene by scene: ``cloister demo``.

Ana and Ben talk to one model. Each scene shows what happened and gives verdicts. A verdict rests on the messages that
the model was sent and on what the store holds, never on how a model puts things.

Read it as an example, too: apart from tampering with the database file, everything goes through the public library.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import msgspec

from cloister import auditing, demo_server, stores, terminal, wire
from cloister.alarms import Alarms
from cloister.audit import verify
from cloister.client import AsyncCloister
from cloister.costs import Budget, Price, Prices
from cloister.errors import (
    BudgetExceeded,
    IntegrityError,
    ProviderError,
    RateLimited,
    SessionExpired,
    SessionNotFound,
)
from cloister.model import Item, Owner
from cloister.providers.base import Provider, Request
from cloister.providers.offline import Offline
from cloister.scope import current
from cloister.session import Session
from cloister.sessions import new_id
from cloister.settings import Settings
from cloister.stores.base import Page, Store, every_entry
from cloister.user import User

ANA_SAYS = "My name is Ana Lopez and my order number is 48213."
BEN_ASKS = "What is my name, and what is my order number?"
ANA_ASKS = "What is my name?"
BEN_ASKS_AGAIN = "And where is my order?"
WINDOW = 300


class Recorder:
    """Pass everything on to a provider, and remember what it was sent, and for whom."""

    def __init__(self, provider: Provider) -> None:
        self.name = provider.name
        self.model = provider.model
        self.provider = provider
        self.sent: list[tuple[str, list[dict[str, Any]]]] = []

    async def complete(self, request: Request) -> Any:
        self._remember(request)
        return await self.provider.complete(request)

    def stream(self, request: Request) -> AsyncIterator[Any]:
        self._remember(request)
        return self.provider.stream(request)

    async def close(self) -> None:
        await self.provider.close()

    def _remember(self, request: Request) -> None:
        self.sent.append((current().owner.user, request.messages))

    def last_for(self, user: str, *, system: bool = False) -> list[str]:
        """Give the messages that the model was sent for *user* last, with the *system* text if that is asked for."""
        requests = [messages for whose, messages in self.sent if whose == user]
        last = requests[-1] if requests else []
        return [str(message["content"]) for message in last if system or message["role"] != "system"]


@dataclass
class Stage:
    """Be where the story is played: the store, the names of the two, the model, and what went wrong so far."""

    settings: Settings
    model: Callable[[], Provider]
    ana: str = "ana"
    ben: str = "ben"
    session_id: str = ""
    """Ana's session, from scene 1 on."""
    folder: Path | None = None
    """Where files of ours may lie, where the store is ours."""
    failed: list[str] = field(default_factory=list)

    @property
    def database(self) -> Path | None:
        """The file with the rows, where there is one to tamper with."""
        return self.settings.connect().path

    def open(self, provider: Provider, store: Store | None = None, **options: Any) -> AsyncCloister:
        """Open the store as an application would."""
        return AsyncCloister.open(
            store or self.settings.store,
            provider=provider,
            keyring=self.settings.keyring(),
            tenancy=self.settings.tenancy,
            audit_key=self.settings.audit_key(),
            audit_heads=self.settings.heads_path(),
            **options,
        )

    def user(self, cloister: AsyncCloister, name: str) -> User:
        """Give the door to what belongs to *name*, in a tenant of our own where the store has tenants."""
        return cloister.user(name, tenant="cloister-demo" if cloister.tenancy == "required" else None)

    def happened(self, text: str) -> None:
        terminal.say(f"   {text}")

    def verdict(self, statement: str, holds: bool) -> None:
        """Say whether *statement* holds."""
        if not holds:
            self.failed.append(statement)
        terminal.say(f"   {'PASS' if holds else 'FAIL'}  {statement}", "green" if holds else "bold red")


Scene = Callable[[Stage], Awaitable[None]]


async def say(session: Session, text: str) -> str:
    """Say *text* and give what the model answers. The scope tells the recorder for whom it is."""
    with session.scope():
        return (await session.send(text)).text


async def said_in(session: Session) -> list[str]:
    """Give what the store holds of *session*: what was said by its user."""
    return [item.text for item in await session.history() if item.role == "user"]


async def masked_in(session: Session) -> list[str]:
    """Give all that the store holds of *session*, with placeholders in the place of personal data."""
    return [item.text for item in await session.history(masked=True)]


# --- the scenes -------------------------------------------------------------------------------------------------------


async def the_bug(stage: Stage) -> None:
    """0. The bug: one list for everybody"""
    model = stage.model()
    shared: list[dict[str, Any]] = []  # what many a first version does

    async def naive_chat(text: str) -> tuple[list[str], str]:
        shared.append({"role": "user", "content": text})
        sent = [message["content"] for message in shared]
        answer = wire.read(await model.complete(Request(list(shared)))).text
        shared.append({"role": "assistant", "content": answer})
        return sent, answer

    await naive_chat(ANA_SAYS)
    sent, answer = await naive_chat(BEN_ASKS)
    await model.close()
    stage.happened(f"Ana tells the naive chat: {ANA_SAYS}")
    stage.happened(f"Ben asks it: {BEN_ASKS}")
    stage.happened(f"It answers Ben: {answer}")
    stage.verdict("the naive chat sent Ana's name and order number along with Ben's question", ANA_SAYS in sent)

    recorder = Recorder(stage.model())
    async with stage.open(recorder) as cloister:
        ana = await stage.user(cloister, stage.ana).start()
        ben = await stage.user(cloister, stage.ben).start()
        await say(ana, ANA_SAYS)
        answer = await say(ben, BEN_ASKS)
        stage.happened(f"The same through cloister, which answers Ben: {answer}")
        sent = recorder.last_for(stage.ben)
        stage.verdict("through cloister, nothing was sent but Ben's question", sent == [BEN_ASKS])
        await ana.end()
        await ben.end()


async def two_at_once(stage: Stage) -> None:
    """1. Ana and Ben talk at the same time"""
    recorder = Recorder(stage.model())
    pieces: list[str] = []

    async def stream(who: str, session: Session, text: str) -> str:
        said = ""
        with session.scope():
            async with session.stream(text) as reply:
                async for piece in reply:
                    pieces.append(who)
                    said += piece
        return said

    async with stage.open(recorder) as cloister:
        ana = await stage.user(cloister, stage.ana).start()
        ben = await stage.user(cloister, stage.ben).start()
        first = await asyncio.gather(stream("A", ana, ANA_SAYS), stream("b", ben, BEN_ASKS))
        second = await asyncio.gather(stream("A", ana, ANA_ASKS), stream("b", ben, BEN_ASKS_AGAIN))
        stage.happened(f"Ana: {ANA_SAYS} → {first[0]}")
        stage.happened(f"Ben, meanwhile: {BEN_ASKS} → {first[1]}")
        stage.happened(f"Ana: {ANA_ASKS} → {second[0]}")
        stage.happened(f"Ben, meanwhile: {BEN_ASKS_AGAIN} → {second[1]}")
        stage.happened(f"Whose words came when (A: for Ana, b: for Ben): {''.join(pieces)}")
        sent_for_ana, sent_for_ben = recorder.last_for(stage.ana), recorder.last_for(stage.ben)
        his, hers = (await masked_in(ben))[:-1], (await masked_in(ana))[:-1]
        stage.verdict("for Ben was sent what he had said and been told, and nothing else", sent_for_ben == his)
        stage.verdict("for Ana was sent what she had said and been told, and nothing else", sent_for_ana == hers)
        stage.verdict(
            "each one's session holds what that one said, and nothing else",
            await said_in(ana) == [ANA_SAYS, ANA_ASKS] and await said_in(ben) == [BEN_ASKS, BEN_ASKS_AGAIN],
        )
        stage.session_id = ana.id


async def remembered(stage: Stage) -> None:
    """2. The program stops and starts again"""
    recorder = Recorder(stage.model())
    async with stage.open(recorder) as cloister:  # scene 1 has closed the store
        ana = await stage.user(cloister, stage.ana).resume(stage.session_id)
        before = await masked_in(ana)
        stage.happened(f"Ana: {ANA_ASKS} → {await say(ana, ANA_ASKS)}")
    sent = recorder.last_for(stage.ana)
    stage.verdict("what was said before the restart was sent with her question", bool(before) and sent[:-1] == before)


async def foreign(stage: Stage) -> None:
    """3. Ben tries Ana's session id"""
    absent = "cs_" + secrets.token_urlsafe(32)

    async def refusal(ben: User, session_id: str) -> str:
        try:
            await ben.resume(session_id)
        except SessionNotFound as error:
            return f"{type(error).__name__}: {error}"
        return "no refusal"

    async with stage.open(Offline()) as cloister:
        ben = stage.user(cloister, stage.ben)
        hers, nobodys = await refusal(ben, stage.session_id), await refusal(ben, absent)
    stage.happened(f"Ana's id:        {hers}")
    stage.happened(f"an id of nobody: {nobodys}")
    stage.verdict("both are refused, in the same words", hers == nobodys and hers.startswith("SessionNotFound"))
    async with stage.open(Offline()) as cloister:
        owners = {audit_id: owner.user for audit_id, owner in (await cloister.store.audit_owners()).items()}
        entries = [entry for entry in (await cloister.store.audit_tail(50)).entries if entry.event == "access.foreign"]
    seen = [(stage.ben, owners.get(entry.other)) for entry in entries if owners.get(entry.owner) == stage.ben]
    for asked, whose in seen:
        stage.happened(f"on record: access.foreign, asked by {asked}, whose session it is: {whose}")
    stage.verdict("the audit log names both, for that attempt alone", seen == [(stage.ben, stage.ana)])


class Misled:
    """Be a store that puts Ana's first row in the place of Ben's, as a crossed reply or a careless repair would."""

    def __init__(self, store: Store, ben: Owner, ana: Owner, session_id: str) -> None:
        self._store = store
        self._ben, self._ana, self._session_id = ben, ana, session_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def items(self, owner: Owner, session_id: str, **options: Any) -> Page:
        page = await self._store.items(owner, session_id, **options)
        if owner != self._ben:
            return page
        hers = await self._store.items(self._ana, self._session_id, **options)
        return Page(page.echo, page.session, [hers.items[0], *page.items[1:]], page.before)


async def moved_row(stage: Stage) -> None:
    """4. A row is copied into another user's session"""
    async with stage.open(Offline()) as cloister:
        door = stage.user(cloister, stage.ben)
        ben = await door.start()
        await say(ben, "My order number is 77001.")
        ana = stage.user(cloister, stage.ana).owner
    if stage.database is None:
        misled = Misled(stage.settings.connect(), door.owner, ana, stage.session_id)
        stage.happened("the store is made to hand out Ana's first row in the place of Ben's")
        await reads_a_strange_row(stage, ben.id, cast(Store, misled))
        return
    ours = (stage.ben, ben.id)
    with database(stage.database) as db:
        (before,) = db.execute(
            "SELECT sealed FROM items WHERE user = ? AND session = ? AND position = 0", ours
        ).fetchone()
        (hers,) = db.execute(
            "SELECT sealed FROM items WHERE user = ? AND session = ? AND position = 0", (stage.ana, stage.session_id)
        ).fetchone()
        db.execute("UPDATE items SET sealed = ? WHERE user = ? AND session = ? AND position = 0", (hers, *ours))
    stage.happened("in the database file, Ana's first row now stands in Ben's session")
    await reads_a_strange_row(stage, ben.id)
    with database(stage.database) as db:
        db.execute("UPDATE items SET sealed = ? WHERE user = ? AND session = ? AND position = 0", (before, *ours))
    async with stage.open(Offline()) as cloister:
        again = await said_in(await stage.user(cloister, stage.ben).resume(ben.id))
    stage.verdict("with the row put back, Ben's session opens again", again == ["My order number is 77001."])


async def reads_a_strange_row(stage: Stage, session_id: str, store: Store | None = None) -> None:
    """Let Ben read his session, in which a row is Ana's."""
    opened: list[str] = []
    problem = ""
    async with stage.open(Offline(), store) as cloister:
        try:
            opened = await said_in(await stage.user(cloister, stage.ben).resume(session_id))
        except IntegrityError as error:
            problem = str(error)
        recorded = [entry.event for entry in (await cloister.store.audit_tail(5)).entries]
        stage.happened(f"Ben reads his history: {problem or opened}")
        stage.verdict("the row does not open, and nothing of it is shown", bool(problem) and not opened)
        stage.verdict("the audit log has the alarm", "integrity.failed" in recorded)


async def model_failure(stage: Stage) -> None:
    """5. The model fails in the middle of an answer"""
    model = Offline(cut=2, fail=True)
    async with stage.open(Recorder(model)) as cloister:
        ana = await stage.user(cloister, stage.ana).resume(stage.session_id)
        before = await ana.history()
        shown, problem = "", ""
        try:
            with ana.scope():
                async with ana.stream("Please remember the code X-99.") as reply:
                    async for piece in reply:
                        shown += piece
        except ProviderError as error:
            problem = str(error)
        after = await ana.history()
        stage.happened(f"Ana sees {shown!r}, and then: {problem}")
        stage.verdict("the turn failed, and her session is as it was before it", bool(problem) and after == before)
        model.cut, model.fail = None, False
        answer = await say(ana, "Please remember the code X-99.")
        stage.happened(f"Ana says it again: {answer}")
        said = await said_in(ana)
        stage.verdict("said again, it is stored once", said.count("Please remember the code X-99.") == 1)


async def expiry(stage: Stage) -> None:
    """6. Ana comes back too late"""
    now = datetime.now(UTC) - timedelta(minutes=31)  # the clock is ours; it ends at the real time
    recorder = Recorder(Offline())
    async with stage.open(recorder, clock=lambda: now) as cloister:
        ana = stage.user(cloister, stage.ana)
        session = await ana.start(system="Answer politely.")
        old_id = session.id
        await say(session, "My locker code is 5150.")
        now += timedelta(minutes=31)
        with session.scope():
            reply = await session.send("What is my locker code?")
        stage.happened(f"31 minutes later, Ana asks for her locker code: {reply.text}")
        stage.happened(f"She is told: {reply.notice}")
        sent = recorder.last_for(stage.ana, system=True)
        stage.verdict("she went on in a new session, and was told so", reply.renewed and reply.session.id != old_id)
        stage.verdict(
            "the application's system text went along; nothing that she had said did",
            sent == ["Answer politely.", "What is my locker code?"],
        )
        gone = False
        try:
            await (await ana.resume(old_id)).history()
        except SessionExpired:
            gone = True
        left = await cloister.vault.ask(cloister.store.load, ana.owner, old_id, budget=10_000)
    items, secret = len(left.items), left.session and left.session.wrapped
    if stage.database is not None:
        with database(stage.database) as db:
            whose = (stage.ana, old_id)
            (items,) = db.execute("SELECT count(*) FROM items WHERE user = ? AND session = ?", whose).fetchone()
            (secret,) = db.execute("SELECT wrapped FROM sessions WHERE user = ? AND session = ?", whose).fetchone()
    stage.happened(f"in the store, the old session has {items} items and {'a' if secret else 'no'} secret")
    stage.verdict(
        "the old content is gone, and so is what could open a copy of it", gone and not items and secret is None
    )


async def small_window(stage: Stage) -> None:
    """7. A long conversation in a small window"""
    recorder = Recorder(Offline())
    turns = 30
    async with stage.open(recorder, context_tokens=WINDOW) as cloister:
        session = await stage.user(cloister, stage.ana).start(system="You are the help desk of a book shop.")
        for number in range(turns):
            await say(session, f"Note {number}: the parcel of day {number} has arrived, and nothing was missing in it.")
        counted = cloister.services.counted
        sizes = [sum(counted(Item(**message)).tokens for message in sent) for _, sent in recorder.sent]
        held = session.token_count
        stored = len(await session.history())
    firsts = {sent[0]["content"] for _, sent in recorder.sent}
    newest = [sent[-1]["content"].startswith(f"Note {number}:") for number, (_, sent) in enumerate(recorder.sent)]
    stage.happened(f"{turns} turns, {held} tokens in all; the window is {WINDOW}")
    stage.happened(f"the largest request had {max(sizes)} tokens, the last one {len(recorder.sent[-1][1])} messages")
    stage.verdict("no request was larger than the window", max(sizes) <= WINDOW < held)
    stage.verdict(
        "every request held the system text and the newest question",
        firsts == {"You are the help desk of a book shop."} and all(newest),
    )
    stage.verdict("nothing was lost from what is stored", stored == 2 * turns + 1)


async def personal_data(stage: Stage) -> None:
    """9. What the model and the database learn of Ana's personal data"""
    recorder = Recorder(Offline())
    data = ("Ana Lopez", "ana.lopez@example.org", "+1 415 555 2671", "4111 1111 1111 1111")
    name, mail, phone, card = data
    async with stage.open(recorder) as cloister:
        session = await stage.user(cloister, stage.ana).start()
        said = f"My name is {name}. My e-mail is {mail}. My phone is {phone}. My card is {card}."
        await say(session, said)
        answer = ""
        with session.scope():
            async with session.stream("What is my name?") as reply:
                async for piece in reply:
                    answer += piece
        for question in ("What is my e-mail?", "What is my card?"):
            answer += " " + await say(session, question)
        stored = await masked_in(session)
        own = await said_in(session)
    sent = recorder.last_for(stage.ana)
    stage.happened(f"Ana says:           {said}")
    stage.happened(f"the model was sent: {sent[0]}")
    stage.happened(f"the store holds:    {stored[0]}")
    stage.happened(f"Ana reads:          {answer}")
    stage.verdict("the model was sent none of it", bool(sent) and not any(one in "".join(sent) for one in data))
    stage.verdict("the store holds none of it but sealed", not any(one in "".join(stored) for one in data))
    if stage.database is not None:
        files = [stage.database, *stage.database.parent.glob(stage.database.name + "-*")]
        raw = b"".join([file.read_bytes() for file in files if file.is_file()])
        stage.verdict("no byte of it stands in the database file", not any(one.encode() in raw for one in data))
    stage.verdict("the replies carry her own data again", all(one in answer for one in (name, mail, card)))
    stage.verdict("and so does her history", own[0] == said)


async def misbehaving_model(stage: Stage) -> None:
    """10. The model tells Ben of Ana's project"""
    project, code = "NIGHTHAWK", "NH-4827-X"
    told = (
        f"Project {project} has the code {code}.",
        "It is nh 4827 x, of the project night-hawk.",
        "The code reads N H 4 8 2 7 X, and the name is NightHawk.",
    )
    model = Offline()
    shown: list[str] = []
    async with stage.open(model) as cloister:
        ana, ben = [await stage.user(cloister, who).start() for who in (stage.ana, stage.ben)]
        await say(ana, f"My project is called {project} and its code is {code}.")
        for said in told:
            model.leak = said
            whole = await say(ben, "Which projects do you know?")
            with ben.scope():
                async with ben.stream("Which projects do you know?") as reply:
                    streamed = "".join([piece async for piece in reply])
            stage.happened(f"the model says:     {said}")
            stage.happened(f"Ben reads:          {whole}")
            stage.happened(f"streamed, he reads: {' '.join(streamed.split())}")
            shown += [whole, streamed]
        model.leak = None
        ordinary = await say(ben, "My order number is 55120. What is my order number?")
        kept = [item.text for item in await ben.history()]
        owners = {audit_id: owner.user for audit_id, owner in (await cloister.store.audit_owners()).items()}
        alarms = [entry for entry in (await cloister.store.audit_tail(50)).entries if entry.event == "reply.blocked"]
    seen = [(owners.get(entry.owner), owners.get(entry.other)) for entry in alarms]
    stage.happened(f"on record: {len(alarms)} times reply.blocked, {alarms[-1].detail if alarms else ''}")

    def clean(text: str) -> bool:
        plain = "".join(character for character in text.lower() if character.isalnum())
        return not any(secret in plain for secret in ("nighthawk", "4827"))

    stage.verdict("no byte of name or code left, whole or streamed word by word", all(map(clean, shown)))
    stage.verdict("nor was it kept in Ben's history", all(map(clean, kept)))
    stage.verdict("the audit log has every alarm, and whose it was", seen == [(stage.ben, stage.ana)] * 2 * len(told))
    stage.verdict("an ordinary question is answered", "55120" in ordinary)


async def spent_and_refused(stage: Stage) -> None:
    """11. Ana's allowance is used up, and Ben guesses session ids"""
    price = Price(
        provider="offline", model="*", input=Decimal(100), output=Decimal(100), source="made up", as_of=date(2026, 1, 1)
    )
    recorder = Recorder(Offline())
    allowed = Budget(user_daily="0.02", reply_tokens=10)
    limits: dict[str, Any] = {
        "alarms": Alarms(suspend_after=5),
        "budget": allowed,
        "prices": Prices.default().over([price]),
    }
    refused, guesses, stopped = "", 0, ""
    async with stage.open(recorder, **limits) as cloister:
        ana, ben = [await stage.user(cloister, who).start() for who in (stage.ana, stage.ben)]
        while not refused and len(recorder.sent) < 100:
            try:
                await say(ana, "My parcel has not arrived.")
            except BudgetExceeded as error:
                refused = str(error)
        asked = len(recorder.sent)
        answered = await say(ben, "My order number is 55120.")
        while not stopped and guesses < 100:
            try:
                await stage.user(cloister, stage.ben).resume(new_id())
            except SessionNotFound:
                guesses += 1
            except RateLimited as error:
                stopped = str(error)
        hers = len(await ana.history())
        entries = (await cloister.store.audit_tail(50)).entries
    noted = [entry.event for entry in entries]
    stage.happened(f"after {asked} questions for {ana.cost} USD Ana reads: {refused}")
    stage.happened(f"after {guesses} guesses Ben reads: {stopped}")
    within = ana.cost <= Decimal("0.02") and noted.count("budget.exceeded") == 1
    stage.verdict(
        "nobody spends more than was allowed, and the model is not asked", within and len(recorder.sent) == asked + 1
    )
    stage.verdict("others are not held up by it", bool(answered) and hers == asked * 2)
    stage.verdict("who guesses is refused for a while, and on record", guesses == 5 and "access.suspended" in noted)


async def over_http(stage: Stage) -> None:
    """12. The same through a running server, with OpenAI's own client"""
    with contextlib.ExitStack() as left:
        folder = stage.folder or Path(left.enter_context(tempfile.TemporaryDirectory(prefix="cloister-demo-")))
        await demo_server.play(folder, stage.happened, stage.verdict)


async def audit_log(stage: Stage) -> None:
    """8. Somebody changes one byte of the audit log"""

    known = auditing.evidence(stage.settings, stage.settings.connect())

    async def check(url: str) -> list[str]:
        store = stores.connect(url)
        await store.open()
        try:
            return (await auditing.verify(store, known))[1]
        finally:
            await store.close()

    stage.verdict("the audit log verifies", not await check(stage.settings.store))
    if stage.database is None:
        await one_changed_byte(stage, known)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.db"
        with database(stage.database) as db, database(copy) as other:
            db.backup(other)
        with database(copy) as db:
            (detail,) = db.execute("SELECT detail FROM audit WHERE rowid = 1").fetchone()
            changed = detail[:-1] + ("]" if detail.endswith("}") else "}")
            db.execute("UPDATE audit SET detail = ? WHERE rowid = 1", (changed,))
        found = await check(f"sqlite:///{quote(str(copy))}")
    for fault in found:
        stage.happened(f"in a copy with one byte changed: {fault}")
    stage.verdict("after one changed byte it does not, and the entry is named", any("entry 1:" in one for one in found))


async def one_changed_byte(stage: Stage, known: auditing.Evidence) -> None:
    """Change a byte of the log as it is read: of a store on a server there is no file to copy."""
    async with stage.open(Offline()) as cloister:
        entries = [entry async for entry in every_entry(cloister.store)]
    changed = msgspec.structs.replace(entries[0], detail=entries[0].detail[:-1] + "]")
    found = [str(fault) for fault in verify([changed, *entries[1:]], known.signed).faults]
    stage.happened(f"read with one byte changed: {found[0] if found else 'nothing is found'}")
    named = any(f"writer {changed.writer}, entry {changed.number}:" in one for one in found)
    stage.verdict("after one changed byte it does not, and the entry is named", named)


SCENES: tuple[Scene, ...] = (
    the_bug, two_at_once, remembered, foreign, moved_row, model_failure, expiry, small_window, audit_log,
    personal_data, misbehaving_model, spent_and_refused, over_http,
)  # fmt: skip


# --- the play ---------------------------------------------------------------------------------------------------------


async def play(settings: Settings | None, model: Callable[[], Provider | None] | None = None) -> bool:
    """Play all scenes in the store of *settings*, or in a new folder, and say whether every verdict holds.

    *model* makes the provider that scenes 0 to 2 talk to; the offline one without it.
    """

    def provider() -> Provider:
        return (model() if model else None) or Offline()

    first = provider()  # a missing key shows here, before anything is made
    await first.close()
    if settings is None:
        folder = _folder()
        stage = Stage(Settings(store=f"sqlite:///{quote(folder)}/demo.db"), provider, folder=Path(folder))
        terminal.say(f"Ana and Ben talk to one model. Their store: {stage.settings.store}")
    else:
        stamp = secrets.token_hex(3)
        stage = Stage(settings, provider, ana=f"ana-{stamp}", ben=f"ben-{stamp}")
        terminal.say(
            f"Ana and Ben talk to one model, as {stage.ana} and {stage.ben}, in {stage.settings.connect().url}"
        )
    terminal.say(f"The model of scenes 0 to 2: {first.name}, {first.model}")
    try:
        for scene in SCENES:
            terminal.say()
            terminal.say(scene.__doc__ or "", "bold")
            await scene(stage)
    finally:
        if settings is not None:
            await leave(stage)
    terminal.say()
    for statement in stage.failed:
        terminal.say(f"does NOT hold: {statement}", "bold red")
    if not stage.failed:
        terminal.say("Every verdict holds.", "bold green")
    if settings is None:
        terminal.say(f"Look at it: cloister audit tail --store {stage.settings.store}. The folder can be deleted.")
    return not stage.failed


async def leave(stage: Stage) -> None:
    """Erase the two users from a store that is not ours."""
    async with stage.open(Offline()) as cloister:
        for name in (stage.ana, stage.ben):
            await stage.user(cloister, name).erase()
    terminal.say()
    terminal.say(f"Erased {stage.ana} and {stage.ben}; the alarms that scenes 3 and 4 raised stay in the audit log.")


@contextlib.contextmanager
def database(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the database file behind cloister's back."""
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        yield db


def _folder() -> str:
    """Make a folder in the working folder, or among temporary ones if nothing can be made there."""
    try:
        return tempfile.mkdtemp(prefix="cloister-demo-", dir=os.getcwd())
    except OSError:
        return tempfile.mkdtemp(prefix="cloister-demo-")
