"""Copying sessions from one store to another: whole, verified, resumable, and nothing overwritten."""

from __future__ import annotations

import secrets
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.fakes import Clock, opened, told

from cloister import AsyncCloister, Keyring, Limits, copying
from cloister.cli import main
from cloister.errors import SessionNotFound, StoreUnavailable
from cloister.keyring import Keyring as Keys


def _nothing(_: int) -> None:
    """Follow no progress."""


async def _copied(source: str, target: str, keys: Keys, clock: Clock | None = None) -> copying.Copied:
    clock = clock or Clock()
    async with (
        AsyncCloister.open(source, keyring=keys, clock=clock) as here,
        AsyncCloister.open(target, keyring=keys, clock=clock) as there,
    ):
        return await copying.copy(here.vault, there.vault, _nothing)


async def _filled(url: str, keys: Keys) -> dict[str, list[str]]:
    """Let Ana and Ben talk; give what each of their sessions holds."""
    async with opened(url, keyring=keys) as house:
        held = {}
        for user in (house.ana, house.ben, house.ana):
            session = await user.start(title="a title", system="Be kind.")
            for n in range(3):
                await session.send(f"{user.owner.user} says {n}")
            held[session.id] = await told(session)
        long = await house.ana.start(items=[{"role": "user", "content": f"line {n}"} for n in range(1_203)])
        held[long.id] = [f"line {n}" for n in range(1_203)]
        return held


async def _holds(url: str, keys: Keys, held: dict[str, list[str]]) -> None:
    """See that every session is there, for its owner and for nobody else."""
    async with opened(url, keyring=keys) as house:
        for session_id, texts in held.items():
            owner, other = (house.ben, house.ana) if "ben says 0" in texts else (house.ana, house.ben)
            session = await owner.resume(session_id)
            found = await session.history(limit=1_000)
            found += await session.history(limit=1_000, after=found[-1].id)
            assert [item.text for item in found] == texts
            with pytest.raises(SessionNotFound):
                await other.resume(session_id)
        session = await house.ben.resume(next(one for one, texts in held.items() if "ben says 0" in texts))
        assert (await session.send("and on")).text == "You said: and on"


@pytest.fixture(params=["sqlite", "redis", "postgres"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store to copy to."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/target.db"
    if request.param == "redis":
        return f"redis://{request.getfixturevalue('redis')}/0?prefix={secrets.token_hex(4)}:"
    return str(request.getfixturevalue("database").url())


async def test_everything_arrives(tmp_path: Path, target: str) -> None:
    """All that was said is there for whoever said it, under the same ids; done twice it changes nothing."""
    source, keys = f"sqlite:///{tmp_path}/source.db", Keyring.generate()
    held = await _filled(source, keys)
    assert await _copied(source, target, keys) == copying.Copied(copied=4)
    assert await _copied(source, target, keys) == copying.Copied(there=4)
    await _holds(target, keys, held)


async def test_the_log_knows_whose_it_is(tmp_path: Path, target: str) -> None:
    """What was copied is on record for each session, and whoever reads it there is named at once."""
    source, keys = f"sqlite:///{tmp_path}/source.db", Keyring.generate()
    held = await _filled(source, keys)
    await _copied(source, target, keys)
    async with opened(target, keyring=keys) as house:
        await (await house.ana.resume(next(iter(held)))).history()
        entries = await house.entries()
        owners = await house.cloister.store.audit_owners()
    assert [entry.event for entry in entries].count("operator.access") == 4
    assert owners[entries[-1].owner] == house.ana.owner
    assert entries[-1].event == "history.read"


async def test_and_back(tmp_path: Path, target: str) -> None:
    """What was copied can be copied on, into a store that was empty."""
    source, keys = f"sqlite:///{tmp_path}/source.db", Keyring.generate()
    held = await _filled(source, keys)
    await _copied(source, target, keys)
    back = f"sqlite:///{tmp_path}/back.db"
    assert await _copied(target, back, keys) == copying.Copied(copied=4)
    await _holds(back, keys, held)


async def test_an_interrupted_copy_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken off half-way and begun again, it copies what is missing."""
    source, target = f"sqlite:///{tmp_path}/source.db", f"sqlite:///{tmp_path}/target.db"
    keys = Keyring.generate()
    held = await _filled(source, keys)
    real, calls = copying._copy_one, 0

    async def breaks(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise StoreUnavailable("the cable was pulled")
        await real(*args)

    monkeypatch.setattr(copying, "_copy_one", breaks)
    with pytest.raises(StoreUnavailable):
        await _copied(source, target, keys)
    monkeypatch.undo()
    assert await _copied(source, target, keys) == copying.Copied(copied=2, there=2)
    await _holds(target, keys, held)


async def test_a_damaged_session_is_left_behind(tmp_path: Path) -> None:
    """One that does not open is counted and put on record, and the others go on."""
    source, target = f"sqlite:///{tmp_path}/source.db", f"sqlite:///{tmp_path}/target.db"
    keys = Keyring.generate()
    held = await _filled(source, keys)
    damaged = next(iter(held))
    with closing(sqlite3.connect(tmp_path / "source.db")) as db, db:
        db.execute("UPDATE items SET sealed = zeroblob(40) WHERE session = ? AND position = 1", (damaged,))
    assert await _copied(source, target, keys) == copying.Copied(copied=3, failed=1)
    async with opened(source, keyring=keys) as house:
        assert "integrity.failed" in await house.events()
    async with opened(target, keyring=keys) as house:
        with pytest.raises(SessionNotFound):
            await house.ana.resume(damaged)
    del held[damaged]
    await _holds(target, keys, held)


async def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """A session that went on in the target stays as it is there, and is counted."""
    source, target = f"sqlite:///{tmp_path}/source.db", f"sqlite:///{tmp_path}/target.db"
    keys = Keyring.generate()
    held = await _filled(source, keys)
    await _copied(source, target, keys)
    await _holds(target, keys, held)  # in which Ben says more
    assert await _copied(source, target, keys) == copying.Copied(there=3, failed=1)
    async with opened(target, keyring=keys) as house:
        bens = await house.ben.resume(next(one for one, texts in held.items() if "ben says 0" in texts))
        assert (await told(bens))[-1] == "You said: and on"


async def test_what_is_over_is_not_copied(tmp_path: Path) -> None:
    """A session whose time is up stays behind, and one that was ended too; the census says so before."""
    source, target = f"sqlite:///{tmp_path}/source.db", f"sqlite:///{tmp_path}/target.db"
    keys, clock = Keyring.generate(), Clock()
    async with opened(source, keyring=keys, clock=clock) as house:
        await (await house.ana.start()).end()
        await house.ana.start()
    async with opened(source, keyring=keys, clock=clock, limits=Limits.keep(days=30)) as house:
        await house.ben.start()
        clock.move(minutes=10)
        assert await copying.count(house.cloister.vault) == copying.Census(live=2, soon=1, over=1)
        clock.move(minutes=21)
        assert await copying.count(house.cloister.vault) == copying.Census(live=1, soon=0, over=2)
    assert await _copied(source, target, keys, clock) == copying.Copied(copied=1, over=2)


def test_by_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`cloister copy` asks where something would be lost, and refuses a target whose own keys would not do."""
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    assert run(main, ["chat", "--user", "ana", "--store", "sqlite:///one.db"], input="My name is Ana.\n").exit_code == 0
    there = ["copy", "--from", "sqlite:///one.db", "--to", "sqlite:///two.db"]
    refused = run(main, there)
    assert refused.exit_code == 1
    assert "two.db.keys" in refused.output
    (tmp_path / "two.db.keys").write_bytes((tmp_path / "one.db.keys").read_bytes())
    (tmp_path / "two.db.keys").chmod(0o600)
    asked = run(main, there)  # half an hour to live
    assert asked.exit_code == 1
    assert "--yes" in asked.output
    copied = run(main, [*there, "--yes"])
    assert copied.exit_code == 0, copied.output
    assert "copied 1 session" in copied.output
    noted = run(main, ["audit", "tail", "--store", "sqlite:///one.db"]).output.splitlines()
    assert sum("operator.access" in line and "sqlite:///two.db" in line for line in noted) == 1
    said = run(main, ["chat", "--user", "ana", "--store", "sqlite:///two.db"], input="What is my name?\n")
    assert "Your name is Ana." in said.output
    same = run(main, ["copy", "--from", "sqlite:///one.db", "--to", "sqlite:///one.db"])
    assert same.exit_code == 1
    missing = run(main, ["copy", "--from", "sqlite:///none.db", "--to", "sqlite:///two.db"])
    assert missing.exit_code == 1
