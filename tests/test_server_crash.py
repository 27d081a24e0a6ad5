"""Processes killed at every request they send to a server, and servers killed under load."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import Awaitable, Callable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.databases import forget_leases, made_database
from tests.fakes import House, opened, told
from tests.histories import Event, ask, problems
from tests.killing import BUDGET, RESERVED, keys, killed, user_of
from tests.servers import Server, running_postgres, running_redis, talk
from tests.test_budgets import PRICES, spent

from cloister import Keyring
from cloister.errors import (
    CloisterError,
    IntegrityError,
    SessionBusy,
    SessionConflict,
    SessionExpired,
    SessionNotFound,
    StoreUnavailable,
)
from cloister.model import Limits
from cloister.session import Session
from cloister.sessions import digest
from cloister.stores.postgres_schema import migrate

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")

NOT_WAITING = Limits(turn_wait=timedelta(0))


async def at_last(house: House, url: str, work: Callable[[], Awaitable[Any]]) -> Any:
    """Do *work* as soon as nobody holds it up: what a dead process had sent may still be at work in the server."""
    for _ in range(200):
        try:
            return await work()
        except SessionBusy:
            await asyncio.sleep(0.01)
            await forget_leases(house, url)
    raise TimeoutError("somebody still is at work")


async def events_of(house: House, session_id: str) -> list[str]:
    return [entry.event for entry in await house.entries() if entry.session == digest(session_id)]


_SERVERS = pytest.mark.parametrize("url", ["redis", "postgres", "cluster", "pooler"], indirect=True)


def in_order(url: str, outcomes: list[bool]) -> bool:
    """Say whether a later kill never left less behind.

    On a cluster it may: on which nodes the keys of a session lie is chance, and so is how many requests come before.
    """
    return "cluster" in url or outcomes == sorted(outcomes)


@_SERVERS
def test_a_turn_killed_anywhere_is_whole_or_absent(url: str, tmp_path: Path) -> None:
    """Question, answer, record of the key and audit entry are there together or not at all (row 33)."""

    async def check() -> list[bool]:
        outcomes = []
        for number, known in killed_sessions.items():
            async with opened(url, keyring=keys(tmp_path), limits=NOT_WAITING) as house:
                session = await user_of(house, number).resume(known)

                async def send(session: Session = session) -> None:
                    await session.send("question", idempotency_key="k")

                said = await told(session)
                assert said[:3] == ["Be kind.", "before", "You said: before"]
                assert said[3:] in ([], ["question", "You said: question"]), f"half a turn at request {number}"
                await at_last(house, url, send)
                assert (await told(session))[3:] == ["question", "You said: question"]
                assert (await events_of(house, known)).count("turn.committed") == 2
                outcomes.append(not house.provider.requests)
                await session.send("next")
                assert (await house.audited()).faults == []
        return outcomes

    killed_sessions = killed(url, tmp_path, "send")
    outcomes = asyncio.run(check())
    assert in_order(url, outcomes), "stored first and then not"
    assert set(outcomes) == {False, True}


@_SERVERS
def test_what_was_asked_is_paid_for_wherever_a_turn_is_killed(url: str, tmp_path: Path) -> None:
    """An account loses nothing that was settled, and keeps what was reserved once a model was asked (row 78)."""

    async def check() -> list[tuple[bool, Decimal]]:
        done = []
        async with opened(url, keyring=keys(tmp_path), budget=BUDGET, prices=PRICES) as house:
            for number, known in killed_sessions.items():
                ana = user_of(house, number)
                session = await ana.resume(known)
                first = Decimal("0.001") * session.usage.total_tokens
                asked = (tmp_path / f"{number}.asked").read_text().splitlines()
                stands = await spent(house, ana.owner.user)
                if len(await told(session)) == 5:
                    assert stands >= first == session.cost
                elif len(asked) == 2:
                    assert stands >= first + RESERVED, f"free at request {number}"
                assert first <= stands <= first + RESERVED * 2
                done.append((len(asked) == 2, stands - first))
        return done

    killed_sessions = killed(url, tmp_path, "spend")
    done = asyncio.run(check())
    assert {asked for asked, _ in done} == {True, False}
    assert done[-1] == (True, Decimal(0)), "the one that lived"
    assert max(more for _, more in done) >= RESERVED


@_SERVERS
def test_a_renewal_killed_anywhere_is_whole_or_absent(url: str, tmp_path: Path) -> None:
    """The new session is there with its first turn or not at all; the old one's content never is beside it."""

    async def check() -> list[bool]:
        outcomes = []
        for number, known in killed_sessions.items():
            async with opened(url, keyring=keys(tmp_path), limits=NOT_WAITING) as house:
                house.clock.move(hours=1)
                user = user_of(house, number)
                listed = [await told(session) for session in await user.sessions()]
                assert listed in ([], [["Be kind.", "question", "You said: question"]]), f"at request {number}"
                old = await user.resume(known)
                assert (await at_last(house, url, lambda old=old: old.send("next"))).renewed  # type: ignore[misc]
                assert house.provider.requests[0].messages[0]["content"] == "Be kind."
                with pytest.raises(SessionExpired):
                    await old.history()
                assert (await house.audited()).faults == []
                outcomes.append(bool(listed))
        return outcomes

    killed_sessions = killed(url, tmp_path, "renew")
    outcomes = asyncio.run(check())
    assert in_order(url, outcomes)
    assert set(outcomes) == {False, True}


@_SERVERS
@pytest.mark.parametrize("action", ["end", "erase"])
def test_destruction_killed_anywhere_is_whole_or_to_be_repeated(url: str, tmp_path: Path, action: str) -> None:
    """A session is there as it was, or it is gone, whether or not its owner was told; done again, it is gone."""

    async def check() -> list[bool]:
        outcomes = []
        for number, known in killed_sessions.items():
            async with opened(url, keyring=keys(tmp_path), limits=NOT_WAITING) as house:
                user = user_of(house, number)
                gone = SessionExpired if action == "end" else SessionNotFound
                try:
                    session = await user.resume(known)
                    await at_last(house, url, lambda session=session: session.send("all is well"))  # type: ignore[misc]
                    assert (await told(session))[-1] == "You said: all is well"
                    outcomes.append(False)
                except gone:
                    outcomes.append(True)
                    assert await user.sessions() == []
                await (user.end_all() if action == "end" else user.erase())
                with pytest.raises(gone):
                    await user.resume(known)
                assert (await house.audited()).faults == []
        return outcomes

    killed_sessions = killed(url, tmp_path, action)
    outcomes = asyncio.run(check())
    assert in_order(url, outcomes)
    assert set(outcomes) == {False, True}


# --- the server -------------------------------------------------------------------------------------------------------


async def _killed_under_load(server: Server, url: str, how: signal.Signals) -> None:
    """Let six people talk while the server is killed twice; nothing that any of them was told may be lost."""
    events: list[Event] = []
    async with opened(url, keyring=Keyring.generate()) as house:
        chats = [await house.cloister.user(f"{name} {n}").start() for n in range(3) for name in ("ana", "ben")]
        over = asyncio.Event()
        refused: list[CloisterError] = []

        async def talk_on(chat: Session, n: int) -> None:
            for turn in range(100_000):
                if over.is_set():
                    return
                try:
                    await ask(events.append, chat, f"{n}: {turn}")
                except CloisterError as error:
                    refused.append(error)
                    await asyncio.sleep(0.05)

        async def all_go_on() -> None:
            before = len(events)
            for _ in range(3_000):
                answered = {event.session for event in events[before:] if event.what == "answered"}
                if len(answered) == len(chats):
                    return
                await asyncio.sleep(0.01)
            raise TimeoutError(f"the server did not come back: {refused[-1:]}")

        async def fail() -> None:
            try:
                for _ in range(2):
                    await all_go_on()
                    await asyncio.to_thread(server.stop, how)
                    await asyncio.to_thread(server.start)
                    if not url.startswith("postgresql"):  # whose leases end with it
                        await forget_leases(house, url)
                await all_go_on()
            finally:
                over.set()

        await asyncio.gather(fail(), *(talk_on(chat, n) for n, chat in enumerate(chats)))
        assert refused, "nothing was ever refused: no server was killed"
        # Leases of PostgreSQL end with a crash, and those of Redis were forgotten here: who had one is told.
        assert {type(error) for error in refused} <= {StoreUnavailable, SessionConflict, SessionBusy}
        assert problems(events, {chat.id: await told(chat) for chat in chats}) == []
        assert (await house.audited()).faults == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGQUIT])
async def test_a_postgresql_killed_under_load_loses_nothing(how: signal.Signals) -> None:
    """After a crash and recovery all that was answered is there, once and in order, and the same cloister goes on."""
    with running_postgres() as server:
        made = await made_database(f"postgresql://owner@127.0.0.1:{server.port}", "t_" + secrets.token_hex(6))
        async with made.connected() as driver:
            await migrate(driver, "cloister_app")
        await _killed_under_load(server, made.url(), how)


async def test_a_redis_killed_under_load_loses_nothing() -> None:
    """The same of a Redis that keeps an append-only file and waits for it."""
    with running_redis("--appendonly", "yes", "--appendfsync", "always") as server:
        await _killed_under_load(server, f"redis://127.0.0.1:{server.port}", signal.SIGKILL)


async def test_a_server_that_comes_back_older_is_refused() -> None:
    """A Redis that lost its last turns and comes back as it was before is refused by whoever has seen them."""
    with running_redis() as server:
        url = f"redis://127.0.0.1:{server.port}"
        async with opened(url) as house:
            session, other = await house.ana.start(), await house.ben.start()
            await session.send("kept")
            await asyncio.to_thread(talk, server.port, "SAVE")
            await session.send("lost")
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            for attempt in (session.send("again"), session.history(), house.ana.sessions()):
                with pytest.raises(IntegrityError):
                    await attempt
            await other.send("nothing of mine was lost")
            assert "integrity.failed" in await house.events()
