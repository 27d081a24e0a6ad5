"""Anything that two people may do, in any order, on every store, against one plain model."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.fakes import Clock, House, opened, told

from cloister.alarms import Alarms
from cloister.audit import AuditKey, verify
from cloister.errors import SessionExpired, SessionNotFound
from cloister.keyring import Keyring
from cloister.model import Limits
from cloister.session import Session
from cloister.stores.memory import MemoryStore
from cloister.stores.postgres_schema import _TABLES
from cloister.testing import entries_of
from cloister.user import User

T = TypeVar("T")

OWNERS = ("ana", "ben")
PATIENT = Alarms(suspend_after=1_000_000)  # the machine asks for others' sessions again and again
LIMITS = Limits()
TEXTS = st.text(max_size=40)


@dataclass
class Conversation:
    """What a session ought to be. ``ids`` names it in each store."""

    owner: str
    system: str | None
    created: datetime
    active: datetime
    ids: list[str]
    said: list[str] = field(default_factory=list)
    hidden: set[int] = field(default_factory=set)
    title: str | None = None
    ended: str | None = None

    def alive(self, now: datetime) -> bool:
        assert LIMITS.idle_timeout is not None
        assert LIMITS.absolute_timeout is not None
        until = min(self.active + LIMITS.idle_timeout, self.created + LIMITS.absolute_timeout)
        return self.ended is None and now < until

    @property
    def shown(self) -> list[str]:
        return [text for position, text in enumerate(self.said) if position not in self.hidden]


class Bench:
    """One store, whichever cloister is open on it, and those that were abandoned."""

    def __init__(self, where: str | MemoryStore, clock: Clock) -> None:
        self._where, self._clock = where, clock
        # What is in memory, or on a server, outlives a cloister only together with its keys.
        self._keys: dict[str, Any] = {}
        if not isinstance(where, str) or not where.startswith("sqlite"):
            self._keys["keyring"] = Keyring.generate()
        if not isinstance(where, str):
            self._keys["audit_key"] = AuditKey.generate()
        self._open: list[contextlib.AbstractAsyncContextManager[House]] = []
        self.house: House

    async def open(self) -> None:
        self._open.append(opened(self._where, clock=self._clock, limits=LIMITS, alarms=PATIENT, **self._keys))
        self.house = await self._open[-1].__aenter__()

    async def close(self) -> None:
        await self._open.pop().__aexit__(None, None, None)

    async def close_all(self) -> None:
        while self._open:
            await self.close()

    def user(self, name: str) -> User:
        return self.house.cloister.user(name)


class Cloisters(RuleBasedStateMachine):
    """Two people on one or more stores, and a model of what they ought to see."""

    def stores(self) -> list[str | MemoryStore]:
        return [MemoryStore(), f"sqlite:///{self.folder}/x.db?synchronous=normal"]

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.runner = asyncio.Runner()
        self.clock = Clock()
        self.talks: list[Conversation] = []
        self.benches = [Bench(store, self.clock) for store in self.stores()]
        for bench in self.benches:
            self.run(bench.open())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def on_each(self, work: Callable[[Bench], Awaitable[T]]) -> list[T]:
        """Do *work* on every store, and give what it came to on each."""

        async def one(bench: Bench) -> T:
            return await work(bench)

        return [self.run(one(bench)) for bench in self.benches]

    async def session(self, bench: Bench, talk: Conversation) -> Session:
        return await bench.user(talk.owner).resume(talk.ids[self.benches.index(bench)])

    def pick(self, data: st.DataObject) -> Conversation | None:
        """Draw a session, mostly one that is alive, or that has timed out and nobody noticed."""
        found = [talk for talk in self.talks if talk.ended is None]
        if not found or data.draw(st.integers(0, 3), label="any") == 0:
            found = self.talks
        return data.draw(st.sampled_from(found), label="session") if found else None

    # --- what people do -----------------------------------------------------------------------------------------------

    @rule(owner=st.sampled_from(OWNERS), system=st.none() | st.just("Be kind."), given=st.lists(TEXTS, max_size=3))
    def start(self, owner: str, system: str | None, given: list[str]) -> None:
        texts = [f"{owner}: {text}" for text in given]
        items = [{"role": "user", "content": text} for text in texts]
        started = self.on_each(lambda bench: bench.user(owner).start(system=system, title=owner, items=items))
        said = ([system] if system is not None else []) + texts
        now = self.clock.now
        self.talks.append(
            Conversation(owner, system, now, now, [session.id for session in started], said, set(), owner)
        )

    @rule(text=TEXTS, streamed=st.booleans(), key=st.booleans(), data=st.data())
    def send(self, text: str, streamed: bool, key: bool, data: st.DataObject) -> None:
        if (picked := self.pick(data)) is None:
            return
        talk: Conversation = picked
        said = f"{talk.owner} says: {text}"
        known = f"key {len(self.talks)} {len(talk.said)} {self.clock.now}" if key else None

        async def ask(bench: Bench) -> Any:
            try:
                session = await self.session(bench, picked)
            except SessionExpired as error:
                return error.reason
            if not streamed:
                replies = [await session.send(said, idempotency_key=known) for _ in range(1 + key)]
            else:
                async with session.stream(said, idempotency_key=known) as stream:
                    assert "".join([piece async for piece in stream]) == stream.reply.text
                replies = [stream.reply]
            assert len({(reply.text, reply.session.id, reply.renewed) for reply in replies}) == 1
            return replies[0]

        alive, before = talk.alive(self.clock.now), talk.ended
        replies = self.on_each(ask)
        if before == "ended":
            assert set(replies) == {"ended"}
            return
        assert {reply.renewed for reply in replies} == {not alive}
        assert len({reply.text for reply in replies}) == 1
        if not alive:
            talk.ended = "expired"
            now, first = self.clock.now, [talk.system] if talk.system is not None else []
            talk = Conversation(talk.owner, talk.system, now, now, [reply.session.id for reply in replies], list(first))
            self.talks.append(talk)
        talk.said += [said, replies[0].text]
        talk.active = self.clock.now

    def change(self, talk: Conversation, work: Callable[[Session], Awaitable[Any]]) -> bool:
        """Do *work* on a session, which raises where it is over; say if it was done."""

        async def attempt(bench: Bench) -> str | None:
            try:
                await work(await self.session(bench, talk))
            except SessionExpired as error:
                return error.reason
            return None

        alive = talk.alive(self.clock.now)
        if not alive and talk.ended is None:
            talk.ended = "expired"
        assert set(self.on_each(attempt)) == {None if alive else talk.ended}
        return alive

    @rule(given=st.lists(TEXTS, min_size=1, max_size=3), data=st.data())
    def append(self, given: list[str], data: st.DataObject) -> None:
        talk = self.pick(data)
        if talk is None:
            return
        texts = [f"{talk.owner} adds: {text}" for text in given]
        items = [{"role": "assistant", "content": text} for text in texts]
        if self.change(talk, lambda session: session.append(items)):
            talk.said += texts
            talk.active = self.clock.now

    @rule(data=st.data())
    def hide(self, data: st.DataObject) -> None:
        talk = self.pick(data)
        if talk is None or not talk.shown:
            return
        visible = [position for position in range(len(talk.said)) if position not in talk.hidden]
        index = data.draw(st.integers(0, len(visible) - 1), label="item")

        async def work(session: Session) -> None:
            await session.hide((await session.history(limit=1_000))[index].id)

        if self.change(talk, work):
            talk.hidden.add(visible[index])

    @rule(title=st.text(max_size=20), data=st.data())
    def update(self, title: str, data: st.DataObject) -> None:
        talk = self.pick(data)
        if talk and self.change(talk, lambda session: session.update(title=title)):
            talk.title = title

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        talk = self.pick(data)
        if talk and talk.alive(self.clock.now):
            self.change(talk, lambda session: session.end())
            talk.ended = "ended"

    @rule(owner=st.sampled_from(OWNERS))
    def erase(self, owner: str) -> None:
        mine = [talk for talk in self.talks if talk.owner == owner]

        async def work(bench: Bench) -> int:
            return (await bench.user(owner).erase()).sessions

        self.on_each(work)
        self.talks = [talk for talk in self.talks if talk.owner != owner]

        async def gone(bench: Bench) -> None:
            for talk in mine:
                with pytest.raises(SessionNotFound):
                    await self.session(bench, talk)

        self.on_each(gone)

    @rule(data=st.data())
    def look_at_anothers(self, data: st.DataObject) -> None:
        talk = self.pick(data)
        if talk is None:
            return
        other = OWNERS[1 - OWNERS.index(talk.owner)]

        async def work(bench: Bench) -> None:
            known = talk.ids[self.benches.index(bench)]
            own = await bench.user(other).start()
            forged = Session(bench.house.cloister.services, own.owner, known, own.head)
            attempts = [bench.user(other).resume(known), bench.user(other).sessions(after=known)]
            for attempt in [*attempts, forged.history(), forged.send("?"), forged.update(title="?"), forged.end()]:
                with pytest.raises(SessionNotFound):
                    await attempt
            await own.end()

        self.on_each(work)

    # --- what happens to them -----------------------------------------------------------------------------------------

    @rule(by=st.sampled_from([1, 15, 20, 29, 30, 60 * 12]))
    def let_time_pass(self, by: int) -> None:
        self.clock.move(minutes=by)

    @rule()
    def set_the_clock_back_and_forth(self) -> None:
        self.clock.move(hours=-3)
        self.look()
        self.clock.move(hours=3)

    @rule()
    def sweep(self) -> None:
        now = self.clock.now
        timed_out = [talk for talk in self.talks if talk.ended is None and not talk.alive(now)]
        assert set(self.on_each(lambda bench: bench.house.cloister.sweep())) == {len(timed_out)}
        for talk in timed_out:
            talk.ended = "expired"

    @precondition(lambda self: max(len(bench._open) for bench in self.benches) < 4)
    @rule(crash=st.booleans())
    def reopen(self, crash: bool) -> None:
        for bench in self.benches:
            if not crash:  # otherwise the one that was open is left as it is
                self.run(bench.close())
            self.run(bench.open())

    # --- what must be true after each of these ------------------------------------------------------------------------

    @invariant()
    def look(self) -> None:
        if not hasattr(self, "benches"):
            return
        now = self.clock.now

        async def compare(bench: Bench) -> None:
            which = self.benches.index(bench)
            for owner in OWNERS:
                mine = {talk.ids[which]: talk for talk in self.talks if talk.owner == owner and talk.alive(now)}
                listed = await bench.user(owner).sessions(limit=1_000)
                assert {session.id for session in listed} == set(mine)
                assert [session.created_at for session in listed] == sorted(
                    (talk.created for talk in mine.values()), reverse=True
                )
                for session in listed:
                    talk = mine[session.id]
                    assert (session.item_count, session.title) == (len(talk.said), talk.title)
                    assert await told(session) == talk.shown

        self.on_each(compare)

    def teardown(self) -> None:
        if not hasattr(self, "benches"):
            return

        async def audited(bench: Bench) -> None:
            entries = await entries_of(bench.house.cloister.store)
            assert verify(entries, {}).faults == []
            assert "integrity.failed" not in [entry.event for entry in entries]

        try:
            self.on_each(audited)
        finally:
            for bench in self.benches:
                self.run(bench.close_all())
            self.runner.close()
            shutil.rmtree(self.folder)


TestCloisters = Cloisters.TestCase
TestCloisters.settings = settings(max_examples=max(20, settings().max_examples // 20), stateful_step_count=35)


async def _emptied(url: str) -> str:
    """Give *url* back, or one beside it, of a store that has nothing in it."""
    if url.startswith("redis"):
        return url.partition("prefix=")[0] + f"prefix={secrets.token_hex(4)}:"
    driver = await asyncpg.connect(url.replace("cloister_app@", "owner@").partition("?")[0], statement_cache_size=0)
    await driver.execute("TRUNCATE " + ", ".join(f"cloister.{table}" for table in _TABLES if table != "meta"))
    await driver.close()
    return url


@pytest.mark.parametrize("url", ["redis", "postgres", "pooler", "cluster"], indirect=True)
def test_on_a_server(url: str) -> None:
    """The same on each store that is on a network, alone: hundreds of steps of it take minutes."""

    class Served(Cloisters):
        def stores(self) -> list[str | MemoryStore]:
            return [self.run(_emptied(url))]

    examples = max(4 if "cluster" in url else 8, settings().max_examples // 50)
    run_state_machine_as_test(Served, settings=settings(max_examples=examples, stateful_step_count=25))
