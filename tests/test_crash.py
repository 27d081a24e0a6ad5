"""Processes that are killed at every statement they send to the database."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from tests.fakes import House, opened, told
from tests.killing import BUDGET, RESERVED, keys, killed, user_of
from tests.test_budgets import PRICES, spent

from cloister.audit import verify
from cloister.errors import SessionBusy, SessionExpired, SessionNotFound
from cloister.model import Limits
from cloister.sinks import HeadFile, audit_key
from cloister.user import User

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")

NOT_WAITING = Limits(turn_wait=timedelta(0))


def crashed(folder: Path, action: str) -> dict[Path, str]:
    """Give the databases of processes that were killed before their first, second … statement; the last one lived."""
    sessions = killed(f"sqlite:///{folder}/{{number}}.db?synchronous=normal", folder, action)
    return {folder / f"{number}.db": session for number, session in sessions.items()}


@contextlib.asynccontextmanager
async def reopened(file: Path) -> AsyncIterator[tuple[House, User]]:
    """Open the database of a process that was killed, for whom it acted."""
    async with opened(f"sqlite:///{file}", keyring=keys(file.parent), limits=NOT_WAITING) as house:
        yield house, user_of(house, int(file.stem))


def let_time_pass(file: Path) -> None:
    """Make every lease as old as one is that nobody has renewed for its whole life."""
    with contextlib.closing(sqlite3.connect(f"{file}.leases")) as leases, leases:
        leases.execute("UPDATE leases SET until = until - 8")


async def verified(house: House, file: Path) -> list[str]:
    """Give all events on record, once they have been verified against the heads that were signed."""
    signed = HeadFile(Path(f"{file}.heads"), audit_key(Path(f"{file}.audit-key"))).read()
    entries = await house.entries()
    assert signed.problems == ()
    assert verify(entries, signed).faults == []
    return [entry.event for entry in entries]


def test_a_turn_killed_anywhere_is_whole_or_absent(tmp_path: Path) -> None:
    """Question, answer, record of the key and audit entry are there together or not at all (row 33)."""

    async def check(file: Path, known: str) -> bool:
        async with reopened(file) as (house, ana):
            session = await ana.resume(known)
            said = await told(session)
            assert said[:3] == ["Be kind.", "before", "You said: before"]
            assert said[3:] in ([], ["question", "You said: question"]), f"half a turn in {file.name}"
            whole = len(said) == 5
            assert (await verified(house, file)).count("turn.committed") == 1 + whole
            with contextlib.suppress(SessionBusy):  # while the lease of the dead process lives
                await session.send("question", idempotency_key="k")
            let_time_pass(file)
            await session.send("question", idempotency_key="k")
            assert (await told(session))[3:] == ["question", "You said: question"]
            assert len(house.provider.requests) == (not whole)
            await session.send("next")
            return whole

    outcomes = [asyncio.run(check(*one)) for one in crashed(tmp_path, "send").items()]
    assert outcomes == sorted(outcomes), "stored first and then not"
    assert set(outcomes) == {False, True}


def test_a_renewal_killed_anywhere_is_whole_or_absent(tmp_path: Path) -> None:
    """The new session is there with its first turn or not at all; the old one's content never is beside it."""

    async def check(file: Path, known: str) -> bool:
        async with reopened(file) as (house, ana):
            house.clock.move(hours=1)
            events = await verified(house, file)
            let_time_pass(file)
            listed = [await told(session) for session in await ana.sessions()]
            assert listed in ([], [["Be kind.", "question", "You said: question"]]), file.name
            assert events.count("session.renewed") == len(listed)
            old = await ana.resume(known)
            assert (await old.send("next")).renewed
            assert house.provider.requests[0].messages[0]["content"] == "Be kind."
            with pytest.raises(SessionExpired):
                await old.history()
            return bool(listed)

    outcomes = [asyncio.run(check(*one)) for one in crashed(tmp_path, "renew").items()]
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {False, True}


@pytest.mark.parametrize("action", ["end", "erase"])
def test_destruction_killed_anywhere_is_whole_or_absent(tmp_path: Path, action: str) -> None:
    """A session is there as it was, or it is gone, and then its bytes are gone too once the store is opened again."""

    def sealed(file: Path) -> list[bytes]:
        with contextlib.closing(sqlite3.connect(file)) as db:
            rows = [*db.execute("SELECT sealed FROM items"), *db.execute("SELECT wrapped FROM sessions")]
        return [blob for (blob,) in rows if blob]

    async def check(file: Path, known: str) -> bool:
        async with reopened(file) as (house, ana):
            events = await verified(house, file)
            gone = "session.ended" in events or "owner.erased" in events
            assert len(sealed(file)) == (0 if gone else 4)
            if not gone:
                await (await ana.resume(known)).send("all is well")
                return False
            with pytest.raises(SessionExpired if action == "end" else SessionNotFound):
                await ana.resume(known)
            # Whatever is sealed begins with the format and, for a secret, the name of its key.
            name = house.cloister.vault.keys.names[-1].encode()  # type: ignore[attr-defined]
            there = b"".join(path.read_bytes() for path in (file, Path(f"{file}-wal")) if path.exists())
            assert there.count(b"\x01" + bytes([len(name)]) + name) == 0
            return True

    outcomes = [asyncio.run(check(*one)) for one in crashed(tmp_path, action).items()]
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {False, True}


def test_what_was_asked_is_paid_for_wherever_a_turn_is_killed(tmp_path: Path) -> None:
    """An account loses nothing that was settled, and keeps what was reserved once a model was asked (row 78)."""

    async def check(file: Path, known: str) -> tuple[bool, Decimal]:
        async with opened(f"sqlite:///{file}", keyring=keys(file.parent), budget=BUDGET, prices=PRICES) as house:
            ana = user_of(house, int(file.stem))
            session = await ana.resume(known)
            first = Decimal("0.001") * session.usage.total_tokens
            asked = (file.parent / f"{file.stem}.asked").read_text().splitlines()
            assert asked in (["before"], ["before", "question"])
            stands = await spent(house, None)
            assert stands == await spent(house, ana.owner.user)
            if len(await told(session)) == 5:
                assert stands >= first == session.cost
            elif len(asked) == 2:
                assert stands >= first + RESERVED
            assert first <= stands <= first + RESERVED * 2
            let_time_pass(file)
            await session.send("question", idempotency_key="k")
            assert await spent(house, ana.owner.user) >= session.cost
            return len(asked) == 2, stands - first

    done = [asyncio.run(check(*one)) for one in crashed(tmp_path, "spend").items()]
    assert {asked for asked, _ in done} == {True, False}
    assert done[-1] == (True, Decimal(0)), "the one that lived"
    assert max(more for _, more in done) >= RESERVED
