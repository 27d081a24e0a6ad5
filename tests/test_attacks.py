"""Attacks that succeeded once, against the library as an application uses it."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.fakes import Parrot, Watched, opened, told

from cloister import (
    AsyncCloister,
    BudgetExceeded,
    ConfigurationError,
    IntegrityError,
    Keyring,
    Limits,
    ProviderError,
    SessionConflict,
    SessionExpired,
    SessionNotFound,
    StoreUnavailable,
    stores,
    upkeep,
)
from cloister.sinks import HeadFile
from cloister.stores.memory import MemoryStore
from cloister.testing import FakeClock

HOUR = timedelta(hours=1)


def edit(file: Path, sql: str, *values: object) -> None:
    with closing(sqlite3.connect(file)) as db, db:
        db.execute(sql, values)


async def test_a_raised_token_count_hides_nothing(tmp_path: Path) -> None:
    """Whoever raises the count beside an item makes the session fail to open, instead of hiding what was before it."""
    file = tmp_path / "x.db"
    async with opened(f"sqlite:///{file}", context_tokens=60) as house:
        session = await house.ana.start()
        for number in range(8):
            await session.send(f"this is question number {number}")
        edit(file, "UPDATE items SET token_count = 1000000 WHERE session = ? AND position = 15", session.id)
        with pytest.raises(IntegrityError):
            await session.send("and what was said before?")


async def test_what_was_ended_does_not_come_back(tmp_path: Path) -> None:
    """A process that ended or erased a session refuses it when its rows are put back."""
    file = tmp_path / "x.db"
    for destroy in ("end", "erase"):
        async with opened(f"sqlite:///{file}") as house:
            session = await house.ana.start()
            await session.send("a secret")
            with closing(sqlite3.connect(file)) as db:
                rows = {table: db.execute(f"SELECT * FROM {table}").fetchall() for table in ("sessions", "items")}
            await (session.end() if destroy == "end" else house.ana.erase())
            with closing(sqlite3.connect(file)) as db, db:
                for table, kept in rows.items():
                    marks = ", ".join("?" * len(kept[0]))
                    db.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", kept)
            for attempt in (house.ana.resume(session.id), session.history(), session.send("hello")):
                with pytest.raises(IntegrityError):
                    await attempt
            with pytest.raises(IntegrityError):
                await house.ana.sessions()


async def test_leaving_while_it_is_stored_harms_nothing(tmp_path: Path) -> None:
    """A block that is left while another task stores its turn waits for that, and records no failure beside it."""
    for url in ("memory://", f"sqlite:///{tmp_path}/x.db"):
        async with opened(url) as house:
            session = await house.ana.start()
            async with session.turn("hello") as turn:
                storing = asyncio.create_task(turn.finish("world"))
                await asyncio.sleep(0)
            await storing
            assert len(await told(session)) == 2
            assert "turn.failed" not in await house.events()


async def test_a_left_renewal_is_not_stored(tmp_path: Path) -> None:
    """Who goes on reading a stream after its block was left is refused, and no renewed session comes to be."""
    async with opened("memory://") as house:
        session = await house.ana.start()
        house.clock.move(hours=1)

        async def words() -> object:
            yield "one. "
            yield "two"

        async with session.turn("hello", on_expired="renew") as turn:
            stream = turn.stream(words())  # type: ignore[arg-type]
            await anext(stream)
        with pytest.raises((RuntimeError, AttributeError)):
            _ = [text async for text in stream]
        assert await house.ana.sessions() == []


async def test_ending_stops_a_renewal() -> None:
    """A session that is ended while a turn renews it does not live on in another one."""
    async with opened("memory://") as house:
        session = await house.ana.start()
        house.clock.move(hours=1)
        with pytest.raises(SessionConflict):  # noqa: PT012
            async with session.turn("hello", on_expired="renew") as turn:
                await session.end()
                await turn.finish("late")
        assert await house.ana.sessions() == []
        with pytest.raises(SessionExpired):
            await session.send("again")


async def test_busy_sessions_do_not_stop_the_sweep() -> None:
    """However many sessions somebody keeps busy, the others are swept."""
    clock, store = FakeClock(), MemoryStore()
    async with AsyncCloister.open(store, provider="offline", clock=clock) as cloister:
        bens = [await cloister.user("ben").start() for _ in range(120)]
        anas = [await cloister.user("ana").start() for _ in range(130)]
        held = [session.turn("hello") for session in bens]
        for turn in held:
            await turn.__aenter__()
        clock.forward(HOUR)
        assert await cloister.sweep() == len(anas)
        for turn in held:
            await turn.__aexit__(None, None, None)


async def test_a_record_cannot_be_moved(tmp_path: Path) -> None:
    """An idempotency record that was copied to another session, or points to another one, is an integrity error."""
    file = tmp_path / "x.db"
    async with opened(f"sqlite:///{file}") as house:
        one, two, bens = await house.ana.start(), await house.ana.start(), await house.ben.start()
        await one.send("hello", idempotency_key="k")
        edit(file, "UPDATE records SET session = ?", two.id)
        with pytest.raises(IntegrityError):
            await two.send("hello", idempotency_key="k")
        edit(file, "UPDATE records SET session = ?, holder = ?", one.id, bens.id)
        with pytest.raises(IntegrityError):
            await one.send("hello", idempotency_key="k")
        assert "access.foreign" not in await house.events()


async def test_a_live_row_marked_as_ended_is_noticed(tmp_path: Path) -> None:
    """A row that says it has ended and still holds its secret is refused, and ending it destroys the secret."""
    file = tmp_path / "x.db"
    async with opened(f"sqlite:///{file}") as house:
        session = await house.ana.start()
        edit(file, "UPDATE sessions SET ended = 'ended' WHERE session = ?", session.id)
        for attempt in (house.ana.resume(session.id), session.history(), session.send("hello")):
            with pytest.raises(IntegrityError):
                await attempt
        await session.end()
        with closing(sqlite3.connect(file)) as db:
            assert db.execute("SELECT wrapped FROM sessions").fetchall() == [(None,)]


async def test_a_renewal_outlives_a_rotation() -> None:
    """A session that comes to be after its key was rotated away and retired is under the newest key."""
    keyring, clock = Keyring.generate(), FakeClock()
    async with AsyncCloister.open("memory://", provider="offline", keyring=keyring, clock=clock) as cloister:
        session = await cloister.user("ana").start(system="Be kind.")
        clock.forward(HOUR)
        async with session.turn("hello", on_expired="renew") as turn:
            old = keyring.names[0]
            keyring.add()
            await upkeep.rewrap_all(cloister.vault, lambda _: None)
            assert await upkeep.count_under(cloister.vault, old) == 0
            keyring.remove(old)
            reply = await turn.finish("world")
        assert len(await reply.session.history()) == 3


async def test_blame_cannot_be_swapped(tmp_path: Path) -> None:
    """An audit id that was given to another owner names nobody."""
    file = tmp_path / "x.db"
    async with opened(f"sqlite:///{file}") as house:
        session = await house.ana.start()
        with pytest.raises(SessionNotFound):
            await house.ben.resume(session.id)
        await house.cloister.vault.settle()
        assert {owner.user for owner in (await house.cloister.store.audit_owners()).values()} == {"ana", "ben"}
        edit(file, "UPDATE audit_owners SET user = iif(user = 'ana', 'x', 'ana')")
        edit(file, "UPDATE audit_owners SET user = 'ben' WHERE user = 'x'")
        assert await house.cloister.store.audit_owners() == {}


async def test_a_lost_audit_key_is_not_replaced(tmp_path: Path) -> None:
    """A store whose heads were signed does not open without the key that signed them, nor lose what it signed."""
    url = f"sqlite:///{tmp_path}/x.db"
    async with opened(url) as house:
        await house.ana.start()
    (tmp_path / "x.db.audit-key").rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="audit-key"):
        async with AsyncCloister.open(url):
            pass
    assert not (tmp_path / "x.db.audit-key").exists()


async def test_leases_name_nobody(tmp_path: Path) -> None:
    """The file of leases, which erasure does not reach, holds neither names nor session ids."""
    async with opened(f"sqlite:///{tmp_path}/x.db") as house:
        session = await house.cloister.user("anastasia").start()
        async with session.turn("hello"):
            files = [(tmp_path / f"x.db.leases{suffix}").read_bytes() for suffix in ("", "-wal")]
            assert not any(b"anastasia" in data or session.id.encode() in data for data in files)


async def test_a_long_text_is_not_counted() -> None:
    """A text far beyond any window is refused without its tokens being counted one by one."""
    async with opened("memory://") as house:
        session = await house.ana.start()
        with pytest.raises(BudgetExceeded, match="tokens"):
            await session.send("a1 B2 " * 1_000_000)
        assert await told(session) == []


async def test_housekeeping_outlives_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Heads that cannot be signed are logged, and sweeping goes on."""
    monkeypatch.setattr("cloister.client._HOUSEKEEPING", timedelta(milliseconds=1))
    swept = asyncio.Event()
    failures: list[None] = []

    def refuse(*_: object) -> None:
        failures.append(None)
        raise StoreUnavailable("the disk is full")

    async with AsyncCloister.open(f"sqlite:///{tmp_path}/x.db") as cloister:
        with monkeypatch.context() as patch, caplog.at_level(logging.ERROR, "cloister"):
            patch.setattr(HeadFile, "keep", refuse)

            async def sweep() -> int:
                if len(failures) > 2:
                    swept.set()
                return 0

            patch.setattr(cloister, "sweep", sweep)
            await asyncio.wait_for(swept.wait(), 10)
    assert "the disk is full" in caplog.text


async def test_a_listed_session_is_no_older_than_seen() -> None:
    """A listing refuses a state older than this process has seen, as a load does."""
    store = MemoryStore()
    async with AsyncCloister.open(store, provider=Parrot()) as cloister:
        ana = cloister.user("ana")
        session = await ana.start(title="first")
        (kept,) = store._sessions.values()
        old = kept.session
        await session.update(title="second")
        kept.session = msgspec.structs.replace(old)
        with pytest.raises(IntegrityError):
            await ana.sessions()


async def test_a_refused_answer_is_booked() -> None:
    """An answer that is not whole is refused, and what it says that it took is booked and on record."""
    async with opened("memory://") as house:
        session = await house.ana.start()
        house.provider.answer = {
            "object": "chat.completion",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "half"}, "finish_reason": None}],
            "usage": {"prompt_tokens": 11, "completion_tokens": 7},
        }
        with pytest.raises(ProviderError):
            await session.send("hello")
        usage = (await house.ana.resume(session.id)).usage
        assert (usage.input_tokens, usage.output_tokens) == (11, 7)
        (failed,) = [entry for entry in await house.entries() if entry.event == "turn.failed"]
        assert '"input_tokens":11' in failed.detail


async def test_a_renewal_that_fails_is_on_record_with_what_it_took() -> None:
    """Where a turn fails that was to renew a session, there is none to book on: the log has what was spent."""
    async with opened("memory://") as house:
        session = await house.ana.start()
        house.clock.move(hours=1)
        house.provider.answer = {
            "object": "chat.completion",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "half"}, "finish_reason": None}],
            "usage": {"prompt_tokens": 11, "completion_tokens": 7},
        }
        with pytest.raises(ProviderError):
            await session.send("hello")
        assert await house.ana.sessions() == []
        (failed,) = [entry for entry in await house.entries() if entry.event == "turn.failed"]
        assert '"input_tokens":11' in failed.detail
        assert '"output_tokens":7' in failed.detail


@pytest.mark.parametrize("swept", [False, True])
async def test_end_all_ends_what_is_alive(swept: bool) -> None:
    """A session that was destroyed at its expiry is not there to be ended; one that is yet to be destroyed is."""
    async with opened("memory://") as house:
        session = await house.ana.start()
        house.clock.move(hours=1)
        if swept:
            assert await house.cloister.sweep() == 1
        assert await house.ana.end_all() == (0 if swept else 1)
        if swept:
            assert (await session.send("hello")).renewed
        else:
            with pytest.raises(SessionExpired):
                await session.send("hello")


# --- what is switched off ---


@pytest.mark.parametrize(
    ("options", "limits", "off"),
    [
        ("", Limits.strict(), []),
        ("", Limits.keep(days=30), []),
        ("?synchronous=normal", Limits.strict(), ["durability"]),
        ("?synchronous=normal", Limits(None, None), ["durability", "limits"]),
    ],
)
async def test_what_is_switched_off_is_on_record(tmp_path: Path, options: str, limits: Limits, off: list[str]) -> None:
    """Whoever opens a store without one of its protections is on record with it, before anything is said there."""
    async with opened(f"sqlite:///{tmp_path}/chats.db{options}", limits=limits) as house:
        await house.ana.start()
        entries = await house.entries()
    noted = [entry for entry in entries if entry.event == "protection.off"]
    assert [json.loads(entry.detail)["what"] for entry in noted] == off
    assert entries[: len(off)] == noted
    assert {entry.severity for entry in noted} <= {"warning"}


async def test_no_record_no_opening(tmp_path: Path) -> None:
    """A store in which it cannot be put on record that a protection is off does not open."""
    store = Watched(stores.connect(f"sqlite:///{tmp_path}/chats.db?synchronous=normal"))

    async def full(*_: Any) -> Any:
        raise StoreUnavailable("the disk is full")

    store.answers["record"] = full
    with pytest.raises(StoreUnavailable):
        async with opened(store.store):
            pass
