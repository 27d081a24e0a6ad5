"""Destinations beside turns: nobody waits for them, they miss nothing, and nothing reaches them that should not."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
from pathlib import Path

import msgspec
import pytest
from tests.fakes import Clock, House, Watched, opened
from tests.killing import keys, killed
from tests.shipped import Receiver, Taker, identities, status, until, without_doubles

from cloister import Cloister, ConfigurationError, Keyring, SessionNotFound, exports, shipping
from cloister.audit import AuditKey, Entry, read_heads, verify
from cloister.errors import ProviderError
from cloister.sinks import LineFile, LogSink, Webhook, verify_webhook
from cloister.stores.base import every_entry
from cloister.stores.memory import MemoryStore

SECRET = "canary-of-the-webhook-secret"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what takes seconds take milliseconds."""
    for name, seconds in {"POLL": 0.002, "PATIENCE": 0.4, "_FIRST": 0.001, "_LONGEST": 0.004}.items():
        monkeypatch.setattr(shipping, name, seconds)


async def intrude(house: House, user: str, session_id: str) -> None:
    with pytest.raises(SessionNotFound):
        await house.cloister.user(user).resume(session_id)


def shipped(house: House) -> shipping.Shipper:
    assert house.cloister.shipper is not None
    return house.cloister.shipper


# --- nobody waits -----------------------------------------------------------------------------------------------------


async def test_no_turn_waits_for_a_destination() -> None:
    """While a destination has taken a delivery and does not come back, turns and refusals complete as ever."""
    sink = Taker(gate=asyncio.Event())
    async with opened("memory://", sinks=[sink]) as house:
        session = await house.ana.start()
        shipped(house).kick()
        await until(lambda: sink.waiting == 1)
        for number in range(50):
            await session.send(f"hello {number}")
            await intrude(house, f"user {number}", session.id)
        assert (sink.waiting, sink.tries, sink.taken) == (1, 1, [])
        assert sink.gate is not None
        sink.gate.set()
    assert identities(sink.entries) == identities(await house.entries())


async def test_a_turn_asks_the_store_no_more_for_destinations() -> None:
    """A turn makes the same requests whether there are destinations or not."""
    asked = []
    for sinks in ([], [Taker(), Taker("other", "alert")]):
        watched = Watched(MemoryStore())
        async with opened(watched.store, sinks=sinks) as house:
            session = await house.ana.start()
            watched.calls.clear()
            await session.send("hello")
            asked.append([name for name in watched.names if name != "trail"])
    assert asked[0] == asked[1] == ["load", "commit"]


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("steps", [10, pytest.param(834, marks=pytest.mark.soak)])
async def test_a_webhook_that_does_everything_wrong_gets_each_alarm_in_order(tmp_path: Path, steps: int) -> None:
    """It fails, hangs, hangs up, refuses, talks nonsense and comes back, under two turns and a breach in each step.

    Each alarm comes at least once, in the order in which it was put on record, and is signed.
    """
    receiver = Receiver()
    hook = Webhook(await receiver.start(), SECRET)
    async with opened(f"sqlite:///{tmp_path}/x.db?synchronous=normal", sinks=[hook]) as house:
        session = await house.ana.start()
        for number, answer in enumerate((status(500), "hang", None, status(404), b"ICY", status(200))):
            receiver.answer = answer
            asked = receiver.asked
            for step in range(steps):
                await session.send("hello")
                await intrude(house, f"user {number} {step}", session.id)
                await session.send("again")
            await until(lambda asked=asked: receiver.asked > asked + 1)  # type: ignore[misc]
        on_record = [entry for entry in await house.entries() if entry.event == "access.foreign"]
        await until(lambda: len(receiver.requests) >= 6 * steps, 5_000 + 100 * steps)
    alarms = [body["alarm"] for body in receiver.bodies]
    came = list(dict.fromkeys((alarm["writer"], alarm["number"]) for alarm in alarms))
    assert came == identities(on_record)
    assert len(came) == 6 * steps
    for _, headers, body in receiver.requests:
        signed_at = float(headers["cloister-signature"].partition(",")[0].removeprefix("t="))
        verify_webhook(SECRET, headers["cloister-signature"], body, now=signed_at)
    await receiver.stop()


async def test_closing_takes_no_longer_than_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A destination that hangs holds up the end of a cloister for a bounded time, and what it missed is in the log."""
    monkeypatch.setattr(shipping, "CLOSING", 0.02)
    sink = Taker(gate=asyncio.Event())
    async with asyncio.timeout(20), opened("memory://", sinks=[sink]) as house:
        await (await house.ana.start()).send("hello")
        shipped(house).kick()
        await until(lambda: sink.waiting == 1)
    assert sink.waiting == 0


# --- nothing is missed ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")
def test_killed_anywhere_everything_arrives(tmp_path: Path) -> None:
    """Killed before or after whatever makes a file last, the next process delivers what is missing, in order."""
    urls = f"sqlite:///{tmp_path}/{{number}}.db?synchronous=normal"

    async def check(number: int) -> int:
        file = tmp_path / f"{number}.jsonl"
        before = len(_lines(file))
        sink = LineFile(file)
        url = urls.replace("{number}", str(number))
        async with opened(url, keyring=keys(tmp_path), sinks=[sink]) as house:
            on_record = await house.entries()
        entries = [msgspec.json.decode(each, type=Entry) for each in _lines(file) if each.startswith(b'{"writer"')]
        assert without_doubles(entries) == identities(on_record)
        assert verify(dict.fromkeys(entries), {}).faults == []
        alarms = [json.loads(each)["alarm"]["rule"] for each in _lines(file) if each.startswith(b'{"alarm"')]
        assert "access.foreign" in alarms or "access.foreign" not in [entry.event for entry in on_record]
        return before

    missing = [asyncio.run(check(number)) for number in killed(urls, tmp_path, "ship")]
    assert min(missing) < max(missing)


def _lines(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines() if file.exists() else []


async def test_what_happens_while_nothing_is_delivered_comes_later(tmp_path: Path) -> None:
    """Entries of processes without destinations are delivered by the next one that has some."""
    url, sink = f"sqlite:///{tmp_path}/x.db", LineFile(tmp_path / "x.jsonl")
    async with opened(url, sinks=[sink]):
        pass
    async with opened(url) as house:
        await (await house.ana.start()).send("hello")
    async with opened(url, sinks=[sink]) as house:
        pass
    async with opened(url) as house:
        on_record = await house.entries()
    found = [json.loads(each) for each in _lines(sink.path)]
    assert [(each["writer"], each["number"]) for each in found if "writer" in each] == identities(on_record)


async def test_a_file_verifies_from_where_it_begins(tmp_path: Path) -> None:
    """With a new store it is the whole log; with one that was there before, its first line says since when."""
    for before, name in ((False, "new"), (True, "old")):
        url, sink, clock = f"sqlite:///{tmp_path}/{name}.db", LineFile(tmp_path / f"{name}.jsonl"), Clock()
        key, settings = AuditKey.generate(), {"keyring": Keyring.generate()}
        if before:
            async with opened(url, clock=clock, audit_key=key, **settings) as house:
                await (await house.ana.start()).send("hello")
        clock.move(seconds=1)
        for _ in range(2):
            async with opened(url, clock=clock, audit_key=key, sinks=[sink], leaks=None, **settings) as house:
                await (await house.ana.start()).send("hello")
        file = exports.File(sink.path)
        known = exports.evidence_about(file, [], key.public)
        report, faults = exports.verify_file(file, known)
        assert (faults, report.unsigned, bool(file.window.since)) == ([], 0, before)
        assert report.entries == 2 * 3
        lines = _lines(sink.path)
        second = [line for line in lines if b'"number":' in line][1]  # signed heads come when they are there
        sink.path.write_bytes(b"\n".join([*[line for line in lines if line != second], b""]))
        assert exports.verify_file(exports.File(sink.path), known)[1] != []


async def test_signed_heads_show_that_the_log_was_cut(tmp_path: Path) -> None:
    """The last signed line that went elsewhere says more than a log whose end was cut off, heads and all."""
    url, sink = f"sqlite:///{tmp_path}/x.db", Taker()
    key = AuditKey.generate()
    async with opened(url, sinks=[sink], audit_key=key) as house:
        session = await house.ana.start()
        await session.send("hello")
        house.cloister.sign_heads()
        cut = await house.entries()
        await session.send("what somebody would like to be unsaid")
    signed = read_heads(sink.heads, key.public)
    assert not signed.problems
    assert verify(sink.entries, signed.heads).faults == []
    (fault,) = verify(cut, signed.heads).faults
    assert "cut off" in fault.problem


@pytest.mark.parametrize("url", ["redis", "postgres"], indirect=True)
async def test_a_store_on_a_server_keeps_progress_where_it_is_named(url: str, tmp_path: Path) -> None:
    """With a folder nothing is missed over a restart; without one a destination begins when it is opened."""
    for folder, expected in ((tmp_path / "state", 1), (None, 0)):
        sink, clock = Taker(), Clock()
        clock.move(hours=0 if folder else 1)
        async with opened(url, clock=clock, sinks=[sink], sinks_state=folder):
            clock.move(seconds=1)
        async with opened(url, clock=clock) as house:
            await house.ana.start()
            clock.move(seconds=1)
        async with opened(url, clock=clock, sinks=[sink], sinks_state=folder):
            pass
        assert [entry.event for entry in sink.entries].count("session.started") == expected


@pytest.mark.parametrize("url", ["memory", "sqlite", "redis", "postgres", "token"], indirect=True)
async def test_every_store_is_followed(url: str, tmp_path: Path) -> None:
    """Whatever the store, what is on record is delivered: all of it, each writer's in order."""
    sink = Taker()
    async with opened(url, sinks=[sink], sinks_state=tmp_path / "state") as house:
        sessions = [await house.cloister.user(f"user {number}").start() for number in range(5)]
        await asyncio.gather(*(session.send("hello") for session in sessions))
        shipped(house).kick()
        await until(lambda: len(sink.entries) >= 10)
        on_record = [entry async for entry in every_entry(house.cloister.store)]
    assert sorted(identities(sink.entries)) == sorted(identities(on_record))
    assert verify(sink.entries, {}).faults == []


async def test_a_log_in_a_file_is_followed(tmp_path: Path) -> None:
    """So is the log of tokens without a ledger, where it lies in a file."""
    url, sink = f"token://?allow_replay=1&audit={tmp_path}/audit.jsonl", Taker()
    async with opened(url, keyring=Keyring.generate(), sinks=[sink], sinks_state=tmp_path / "state") as house:
        await (await house.ana.start()).send("hello")
        on_record = await house.entries()
    assert identities(sink.entries) == identities(on_record)
    assert len(on_record) >= 3


async def test_a_log_in_standard_logging_cannot_be_delivered() -> None:
    """Where cloister cannot read its own log, whoever names a destination is told."""
    with pytest.raises(ConfigurationError, match="audit="):
        async with opened("token://?allow_replay=1", keyring=Keyring.generate(), sinks=[Taker()]):
            pass


def test_the_synchronous_cloister_delivers_too(tmp_path: Path) -> None:
    """So it does from a loop in a thread, and after a fork in the new process."""
    sink = LineFile(tmp_path / "x.jsonl")
    with Cloister.open(f"sqlite:///{tmp_path}/x.db", provider="offline", sinks=[sink]) as cloister:
        cloister.user("ana").start().send("hello")
    assert [json.loads(each)["event"] for each in _lines(sink.path) if b'"event"' in each] == [
        "session.started",
        "turn.committed",
    ]


# --- nothing goes out that should not ---------------------------------------------------------------------------------


async def test_nothing_private_is_in_any_destination(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """What was said, ids, keys and secrets are in no file, webhook, log record, repr or state (rows 45 to 47)."""
    caplog.set_level(logging.DEBUG)
    receiver = Receiver()
    hook = Webhook(f"{await receiver.start()}?canary-address", SECRET, "info")
    failing = Webhook("http://127.0.0.1:9/canary-address", SECRET, "info")
    file = LineFile(tmp_path / "x.jsonl")
    key = b"canary-of-the-master-key-".ljust(32, b"-")
    sinks = [hook, failing, file, LogSink("info")]
    async with opened(f"sqlite:///{tmp_path}/x.db", keyring=Keyring({"k": key}), sinks=sinks) as house:
        session = await house.cloister.user("canary-user").start(title="canary-title", system="canary-system")
        await session.send("canary-text\n\x1b[2J", idempotency_key="canary-idempotency")
        await intrude(house, "canary-other", session.id)
        await until(lambda: "cannot be reached" in caplog.text)
        house.provider.answer = RuntimeError("canary-model")
        with pytest.raises(ProviderError):
            await session.send("canary-more")
        await house.cloister.vault.settle()
        shown = [repr(each) + each.name for each in (hook, failing, file)] + [repr(house.cloister.shipper)]
    await receiver.stop()
    state = [path.read_text() for path in (tmp_path / "x.db.sinks").iterdir()]
    posted = [f"{headers} {body.decode()}" for _, headers, body in receiver.requests]
    everything = "\n".join([*shown, *caplog.messages, file.path.read_text(), *posted, *state, *capfd.readouterr()])
    for expected in ("access.foreign", "turn.failed", "sink.failed", "v1=", "w_"):
        assert expected in everything
    assert not [record for record in caplog.records if record.exc_info]
    assert "canary" not in everything
    for secret in (session.id, base64.b64encode(key).decode()[:30], base64.urlsafe_b64encode(SECRET.encode()).decode()):
        assert secret not in everything
