"""Processes that are killed at every statement they send to the database."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from tests.fakes import House, opened, told

from cloister.audit import verify
from cloister.errors import SessionBusy, SessionExpired, SessionNotFound
from cloister.model import Limits
from cloister.sinks import HeadFile, audit_key

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")

NOT_WAITING = Limits(turn_wait=timedelta(0))
MOST_STATEMENTS = 80

# Every statement on every connection of the child is counted, and the process is killed before number N of what it is
# told to do. A fresh fork of one prepared process for each N: no interpreter has to start.
_KILLED = """
import asyncio, os, signal, sqlite3, sys
from tests.fakes import opened

folder, action, most = sys.argv[1], sys.argv[2], int(sys.argv[3])
connect, left = sqlite3.connect, None

def count(_):
    global left
    if left is not None:
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

def counting(*arguments, **options):
    connection = connect(*arguments, **options)
    connection.set_trace_callback(count)
    return connection

sqlite3.connect = counting

async def run(number):
    global left
    async with opened(f"sqlite:///{folder}/{number}.db?synchronous=normal") as house:
        session = await house.ana.start(system="Be kind.")
        await session.send("before")
        with open(f"{folder}/{number}.id", "w") as file:
            file.write(session.id)
        left = number
        if action == "send":
            await session.send("question", idempotency_key="k")
        elif action == "renew":
            house.clock.move(hours=1)
            await session.send("question")
        elif action == "end":
            await session.end()
        elif action == "erase":
            await house.ana.erase()
        left = None

for number in range(1, most):
    child = os.fork()
    if not child:
        asyncio.run(run(number))
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != -signal.SIGKILL:
        print(number, status)
        break
"""


def _environment() -> dict[str, str]:
    root = Path(__file__).parent.parent
    paths = os.pathsep.join([str(root / "src"), str(root), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": paths}


def killed(folder: Path, action: str) -> list[Path]:
    """Give the databases of processes that were killed before their first, second … statement; the last one lived."""
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(folder), action, str(MOST_STATEMENTS)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=_environment(),
    )
    assert done.stdout.split()[1:] == ["0"], done.stderr
    return [folder / f"{number}.db" for number in range(1, int(done.stdout.split()[0]) + 1)]


def session_of(file: Path) -> str:
    return file.with_suffix(".id").read_text()


def let_time_pass(file: Path) -> None:
    """Make every lease as old as one is that nobody has renewed for its whole life."""
    with contextlib.closing(sqlite3.connect(f"{file}.leases")) as leases, leases:
        leases.execute("UPDATE leases SET until = until - 8")


async def verified(house: House, file: Path) -> list[str]:
    """Give all events on record, once they have been verified against the heads that were signed."""
    heads, problems = HeadFile(Path(f"{file}.heads"), audit_key(Path(f"{file}.audit-key"))).read()
    entries = await house.entries()
    assert problems == []
    assert verify(entries, heads).faults == []
    return [entry.event for entry in entries]


def test_a_turn_killed_anywhere_is_whole_or_absent(tmp_path: Path) -> None:
    """Question, answer, record of the key and audit entry are there together or not at all (row 33)."""

    async def check(file: Path) -> bool:
        async with opened(f"sqlite:///{file}", limits=NOT_WAITING) as house:
            session = await house.ana.resume(session_of(file))
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

    outcomes = [asyncio.run(check(file)) for file in killed(tmp_path, "send")]
    assert outcomes == sorted(outcomes), "stored first and then not"
    assert set(outcomes) == {False, True}


def test_a_renewal_killed_anywhere_is_whole_or_absent(tmp_path: Path) -> None:
    """The new session is there with its first turn or not at all; the old one's content never is beside it."""

    async def check(file: Path) -> bool:
        async with opened(f"sqlite:///{file}", limits=NOT_WAITING) as house:
            house.clock.move(hours=1)
            events = await verified(house, file)
            let_time_pass(file)
            listed = [await told(session) for session in await house.ana.sessions()]
            assert listed in ([], [["Be kind.", "question", "You said: question"]]), file.name
            assert events.count("session.renewed") == len(listed)
            old = await house.ana.resume(session_of(file))
            assert (await old.send("next")).renewed
            assert house.provider.requests[0].messages[0]["content"] == "Be kind."
            with pytest.raises(SessionExpired):
                await old.history()
            return bool(listed)

    outcomes = [asyncio.run(check(file)) for file in killed(tmp_path, "renew")]
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {False, True}


@pytest.mark.parametrize("action", ["end", "erase"])
def test_destruction_killed_anywhere_is_whole_or_absent(tmp_path: Path, action: str) -> None:
    """A session is there as it was, or it is gone, and then its bytes are gone too once the store is opened again."""

    def sealed(file: Path) -> list[bytes]:
        with contextlib.closing(sqlite3.connect(file)) as db:
            rows = [*db.execute("SELECT sealed FROM items"), *db.execute("SELECT wrapped FROM sessions")]
        return [blob for (blob,) in rows if blob]

    async def check(file: Path) -> bool:
        async with opened(f"sqlite:///{file}", limits=NOT_WAITING) as house:
            events = await verified(house, file)
            gone = "session.ended" in events or "owner.erased" in events
            assert len(sealed(file)) == (0 if gone else 4)
            if not gone:
                await (await house.ana.resume(session_of(file))).send("all is well")
                return False
            with pytest.raises(SessionExpired if action == "end" else SessionNotFound):
                await house.ana.resume(session_of(file))
            # Whatever is sealed begins with the format and, for a secret, the name of its key.
            name = house.cloister.vault.keys.names[-1].encode()  # type: ignore[attr-defined]
            there = b"".join(path.read_bytes() for path in (file, Path(f"{file}-wal")) if path.exists())
            assert there.count(b"\x01" + bytes([len(name)]) + name) == 0
            return True

    outcomes = [asyncio.run(check(file)) for file in killed(tmp_path, action)]
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {False, True}
