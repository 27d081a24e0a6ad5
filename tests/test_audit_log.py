"""The audit log as operators and auditors use it: followed, exported, verified elsewhere, and pruned."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from tests.fakes import Clock, House, opened

from cloister import retention, stores
from cloister.audit import AuditKey, Entry, Signed, event, verify
from cloister.audit.chain import digest
from cloister.auditing import Evidence, read_signed
from cloister.cli import main
from cloister.errors import ConfigurationError, StoreUnavailable
from cloister.exports import File, evidence_about, first_lines, line, verify_file
from cloister.model import Owner
from cloister.sinks import HeadFile
from cloister.stores.base import Store
from cloister.stores.sqlite import SqliteStore
from cloister.testing import START, entries_of, nonce

Run = Callable[..., Result]
URL = "sqlite:///x.db"
KEY = AuditKey(bytes(range(32)))
DAY = timedelta(days=1)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `cloister audit …` in a folder with a store in which Ben tried to resume Ana's session."""
    monkeypatch.chdir(tmp_path)
    asyncio.run(told())

    def invoke(*arguments: str, said: str | None = None, store: str = URL) -> Result:
        arguments = ("audit", *arguments, *(("--store", store) if store else ()))
        return CliRunner().invoke(main, arguments, input=said, catch_exceptions=False)

    return invoke


async def told(url: str = URL) -> None:
    async with opened(url) as house:
        session = await house.ana.start()
        await session.send("My name is NIGHTHAWK.")
        with pytest.raises(KeyError):
            await house.ben.resume(session.id)


def events(text: str) -> list[str]:
    return [json.loads(one)["event"] for one in text.splitlines() if "event" in json.loads(one)]


def public() -> str:
    return HeadFile(Path("x.db.heads"), AuditKey.from_text(Path("x.db.audit-key").read_text())).key.public


class TestTail:
    def test_shows_what_is_severe(self, run: Run) -> None:
        """Of the whole log the newest entries of a severity come, however many others lie behind them."""
        assert events(run("tail", "--json", "--severity", "alert").stdout) == ["access.foreign"]
        assert events(run("tail", "--json", "-n", "1", "--severity", "warning").stdout) == ["access.foreign"]
        assert run("tail", "--json", "-n", "0").stdout == ""
        assert len(events(run("tail", "--json", "-n", "2").stdout)) == 2

    @pytest.mark.skipif(os.name != "posix", reason="needs signals")
    async def test_follows_until_it_is_stopped(self, run: Run, tmp_path: Path) -> None:
        """New entries appear as they are committed, with names; Ctrl-C ends it, and that is no error."""
        command = (sys.executable, "-m", "cloister", "audit", "tail", "-f", "-n", "1", "--json", "--severity", "notice")
        process = await asyncio.create_subprocess_exec(
            *command, "--store", URL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=tmp_path
        )
        assert process.stdout is not None

        async def shown() -> dict[str, Any]:
            async with asyncio.timeout(30):
                assert process.stdout is not None
                found: dict[str, Any] = json.loads(await process.stdout.readline())
                return found

        assert (await shown())["event"] == "access.foreign"
        async with opened(URL) as house:
            zoe = house.cloister.user("zoe")
            session = await zoe.start()
            await house.cloister.note_operator(zoe.owner, "look", "ticket 4711")
            await session.end()
        found = await shown()
        assert (found["event"], found["owner"]["user"]) == ("operator.access", "zoe")
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(30):
            _, errors = await process.communicate()
        assert (process.returncode, errors) == (0, b"")


class TestExport:
    def test_verifies_elsewhere(self, run: Run, tmp_path: Path) -> None:
        """In an empty folder, without store, settings or secrets, an export verifies, and a changed one does not."""
        assert run("export", "-o", "out.jsonl").exit_code == 0
        text, key = Path("out.jsonl").read_text(), public()
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        os.chdir(elsewhere)
        Path("out.jsonl").write_text(text)
        result = run("verify", "--export", "out.jsonl", "--public-key", key, store="")
        assert (result.exit_code, "the audit log is whole" in result.stdout) == (0, True)
        Path("out.jsonl").write_text(text.replace('"severity":"alert"', '"severity":"info"'))
        result = run("verify", "--export", "out.jsonl", "--public-key", key, store="")
        assert result.exit_code == 1
        assert "was changed" in result.stdout
        assert os.listdir() == ["out.jsonl"]

    def test_is_on_record(self, run: Run) -> None:
        """An export says so in the log first, with what was asked for; the entry is signed for and in the export."""
        text = run("export", "--since", "7d", "--reason", "quarterly", "--severity", "notice").stdout
        assert events(text)[-1] == "audit.exported"
        (said,) = [one for one in run("tail", "--json").stdout.splitlines() if "audit.exported" in one]
        detail = json.loads(json.loads(said)["detail"])
        assert detail["since"][:4] == str(datetime.now(UTC).year) or detail["since"]
        assert {name: detail[name] for name in ("format", "reason", "severity")} == {
            "format": "jsonl",
            "reason": "quarterly",
            "severity": "notice",
        }
        assert "names" not in detail
        assert "0 not signed for yet" in run("verify").stdout

    @pytest.mark.parametrize("form", ["jsonl", "ocsf"])
    def test_names_nobody_by_itself(self, run: Run, form: str) -> None:
        """Users leave under audit ids; their names only where that is asked for with a reason, which is on record."""
        text = run("export", "--format", form).stdout
        assert '"ana"' not in text
        assert '"ben"' not in text
        assert "NIGHTHAWK" not in text
        assert run("export", "--format", form, "--names").exit_code == 2
        named = run("export", "--format", form, "--names", "--reason", "ticket").stdout
        assert '"ana"' in named
        assert '"ben"' in named
        assert "NIGHTHAWK" not in named
        assert '\\"names\\": true' in run("tail", "--json").stdout.replace('\\"names\\":true', '\\"names\\": true')

    def test_overwrites_nothing(self, run: Run) -> None:
        """A file that is there stays as it is, and nothing goes on record."""
        Path("out").write_text("mine")
        assert run("export", "-o", "out").exit_code == 1
        assert Path("out").read_text() == "mine"
        assert "audit.exported" not in run("tail", "--json").stdout

    def test_is_for_its_owner_alone(self, run: Run) -> None:
        """The file is made so that nobody else can read it, and how many entries it has is said."""
        result = run("export", "-o", "out")
        assert "wrote 5 entries" in result.stderr
        if os.name == "posix":
            assert Path("out").stat().st_mode & 0o777 == 0o600

    @pytest.mark.parametrize("when", ["yesterday", "7", "-1d", "2026-13-01", "7d ago"])
    def test_a_moment_that_is_none_is_refused(self, run: Run, when: str) -> None:
        """What is no time is said to be none, with what one looks like."""
        result = run("export", "--since", when)
        assert result.exit_code == 2
        assert "2026-01-31" in result.stderr

    def test_a_part_verifies_as_such(self, run: Run) -> None:
        """An export since some time says so when it is verified, and one of some severity is refused."""
        run("export", "--since", "2026-01-01T12:00", "--until", "2027-01-01", "-o", "part")
        result = run("verify", "--export", "part", "--public-key", public(), store="")
        assert result.exit_code == 0
        assert "it begins at 2026-01-01 12:00:00Z" in result.stdout
        assert "it ends at 2027-01-01" in result.stdout
        run("export", "--severity", "alert", "-o", "alerts")
        result = CliRunner().invoke(main, ["audit", "verify", "--export", "alerts", "--public-key", public()])
        assert result.exit_code == 1
        assert "--severity" in result.stderr

    def test_copies_are_held_against_each_other(self, run: Run) -> None:
        """Of several exports each is verified, and what contradicts is named."""
        run("export", "-o", "one")
        run("export", "-o", "two")
        result = run("verify", "--export", "one", "--export", "two", "--public-key", public(), store="")
        assert result.exit_code == 0
        asyncio.run(told("sqlite:///y.db"))
        lines = [line(entry) for entry in asyncio.run(_entries("sqlite:///y.db"))]
        mine = json.loads(Path("one").read_text().splitlines()[1])["writer"]
        Path("other").write_text("".join(f"{one}\n" for one in _chained(lines, mine)))
        result = run("verify", "--export", "one", "--export", "other", "--public-key", public(), store="")
        assert result.exit_code == 1
        assert f"writer {mine}, entry 1: is another one in the other copy" in result.stdout


async def _entries(url: str) -> list[Entry]:
    store = stores.connect(url)
    await store.open()
    try:
        return await entries_of(store)
    finally:
        await store.close()


def _chained(lines: list[str], writer: str) -> list[str]:
    """Write a chain anew under another writer's name."""
    found, previous = [], b""
    for one in lines:
        entry = msgspec.json.decode(one, type=Entry)
        entry = msgspec.structs.replace(entry, writer=writer, previous=previous)
        entry = msgspec.structs.replace(entry, hash=digest(entry))
        found.append(line(entry))
        previous = entry.hash
    return found


class TestVerify:
    def test_heads_that_were_kept_elsewhere(self, run: Run) -> None:
        """Where log and heads were cut back together, a copy of the heads from elsewhere shows it."""
        Path("kept").write_bytes(Path("x.db.heads").read_bytes())
        with closing(sqlite3.connect("x.db")) as db, db:
            db.execute("DELETE FROM audit WHERE rowid > 2")
        key, entries = AuditKey.from_text(Path("x.db.audit-key").read_text()), asyncio.run(_entries(URL))
        Path("x.db.heads").write_text(key.sign({entries[1].writer: (2, entries[1].hash.hex())}, START) + "\n")
        assert run("verify").exit_code == 0
        result = run("verify", "--heads", "kept")
        assert result.exit_code == 1
        assert "entry 3: cut off or removed" in result.stdout

    def test_a_writer_that_nobody_signed_for_is_said(self, run: Run) -> None:
        """Entries of a writer of whom no signed head knows are pointed out: anybody may have made them up."""
        asyncio.run(_recorded(URL))
        result = run("verify")
        assert result.exit_code == 0
        assert "1 not signed for yet" in result.stdout
        assert "of 1 writers no signed head says anything" in result.stdout


async def _recorded(url: str) -> None:
    store = stores.connect(url)
    await store.open()
    await store.record([event("turn.failed", START, Owner(None, "eve"))], nonce=nonce())
    await store.close()


# --- retention --------------------------------------------------------------------------------------------------------


class TestPrune:
    def test_drops_what_is_old(self, run: Run) -> None:
        """Old entries go, the rest verifies and says so; a log cut in the same way without a statement does not."""
        before = Path("x.db.heads").read_bytes()
        result = run("prune", "--before", "2026-01-02", "--yes")
        assert result.exit_code == 0
        assert "dropped 4 entries" in result.stdout
        assert events(run("tail", "--json").stdout) == ["audit.pruned"]
        result = run("verify")
        assert result.exit_code == 0
        assert "4 older ones were dropped, as a signed statement says\n" in result.stdout
        Path("x.db.heads").write_bytes(before)
        result = run("verify")
        assert result.exit_code == 1
        assert "entry 1: cut off or removed" in result.stdout

    def test_keeps_what_is_not(self, run: Run) -> None:
        """Where nothing is old, nothing is dropped, signed or put on record."""
        before = Path("x.db.heads").read_bytes()
        result = run("prune", "--before", "2025-12-31", "--yes")
        assert "nothing was dropped" in result.stdout
        assert Path("x.db.heads").read_bytes() == before
        assert run("prune", "--keep", "36500d", "--yes").exit_code == 0
        assert len(events(run("tail", "--json").stdout)) == 4

    def test_asks_first(self, run: Run) -> None:
        """Without --yes it asks, and no answer is no."""
        for said in ("n\n", ""):
            assert run("prune", "--keep", "1d", said=said).exit_code == 1
        assert len(events(run("tail", "--json").stdout)) == 4
        assert run("prune", "--keep", "1d", said="y\n").exit_code == 0

    @pytest.mark.parametrize(
        "arguments", [(), ("--keep", "1d", "--before", "2026-01-01"), ("--keep", "soon"), ("--before", "soon")]
    )
    def test_must_be_told_what_is_old(self, run: Run, arguments: tuple[str, ...]) -> None:
        """One of --before and --keep is named, and is a time."""
        assert run("prune", "--yes", *arguments).exit_code == 2

    def test_needs_the_audit_key(self, run: Run) -> None:
        """Without the key that signs, nothing is dropped: nobody could tell it from a removal."""
        Path("x.db.audit-key").rename("elsewhere")
        result = CliRunner().invoke(main, ["audit", "prune", "--keep", "0s", "--yes", "--store", URL])
        assert result.exit_code == 1
        assert "audit key" in result.stderr
        assert not Path("x.db.audit-key").exists()
        assert len(asyncio.run(_entries(URL))) == 4

    def test_drops_nothing_of_a_log_that_is_not_whole(self, run: Run) -> None:
        """Where an entry was changed or is missing, all stays: it is what somebody has to look at."""
        with closing(sqlite3.connect("x.db")) as db, db:
            db.execute("UPDATE audit SET severity = 'info' WHERE rowid = 4")
        result = CliRunner().invoke(main, ["audit", "prune", "--keep", "0s", "--yes", "--store", URL])
        assert result.exit_code == 1
        assert "entry 4: was changed" in result.stderr
        assert len(asyncio.run(_entries(URL))) == 4


def _signs(folder: Path) -> HeadFile:
    return HeadFile(folder / "heads", KEY)


@asynccontextmanager
async def lived(url: str, folder: Path, clock: Clock) -> AsyncIterator[House]:
    """Open a house whose heads are signed, with an entry for each of some days, by several writers."""
    async with opened(url, clock=clock, audit_key=KEY, audit_heads=folder / "heads") as house:
        yield house


async def _connected(url: str) -> Store:
    store = stores.connect(url)
    await store.open()
    return store


@pytest.mark.parametrize("url", ["sqlite", "redis", "cluster", "postgres", "token"], indirect=True)
@pytest.mark.plain_ids
async def test_every_store_can_be_pruned(url: str, tmp_path: Path) -> None:
    """On each store old entries of all writers go while it is in use, and what is written later goes on from there."""
    clock, sink = Clock(), _signs(tmp_path)
    async with lived(url, tmp_path, clock) as house:
        sessions = [await house.ana.start() for _ in range(5)]
        for _ in range(4):
            for session in sessions:
                await session.send("hello")
            clock.move(days=1)
        house.cloister.sign_heads()
        before = clock.now - timedelta(days=2, hours=1)
        store = await _connected(url)
        try:
            old = await retention.older(store, Evidence(sink.read()), before)
            entries = await entries_of(store)
            assert old.count == sum(entry.at < before.timestamp() * 1e6 for entry in entries) > 5
            assert await retention.prune(store, sink, old, before, clock.now) == old.count
            left = await entries_of(store)
            assert len(left) == len(entries) - old.count + 1
            await sessions[0].send("hello")
            house.cloister.sign_heads()
            left = await entries_of(store)
            signed = sink.read()
            report = verify(left, signed)
            assert (report.faults, report.unsigned, signed.entries) == ([], 0, old.count)
            assert verify(left, Signed.of(signed.heads)).faults, "without the statement it shows"
            assert verify(left[1:], signed).faults
            again = await retention.older(store, Evidence(signed), clock.now + DAY)
            assert again.count == len(left)
            assert await retention.prune(store, sink, again, clock.now, clock.now) == again.count
            assert [entry.event for entry in await entries_of(store)] == ["audit.pruned"]
            assert verify(await entries_of(store), sink.read()).faults == []
        finally:
            await store.close()


async def test_a_prune_that_was_broken_off_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between statement and end the log verifies, and says that entries are still there; the next time they go."""
    url, clock, sink = f"sqlite:///{tmp_path / 'x.db'}", Clock(), _signs(tmp_path)
    monkeypatch.setattr("cloister.stores.sqlite._AT_ONCE", 2)
    async with lived(url, tmp_path, clock) as house:
        for _ in range(6):
            await (await house.ana.start()).send("hello")
        house.cloister.sign_heads()
    for broken_after in (0, 1, 3):
        store = await _connected(url)
        assert isinstance(store, SqliteStore)
        old = await retention.older(store, Evidence(sink.read()), clock.now + DAY)
        rounds = 0

        async def broken(work: Any, write: Any = store._writer.write, most: int = broken_after) -> Any:
            nonlocal rounds
            rounds += 1
            if rounds > 1 + most:  # the first is the entry
                raise StoreUnavailable("the disk is gone")
            return await write(work)

        monkeypatch.setattr(store._writer, "write", broken)
        with pytest.raises(StoreUnavailable):
            await retention.prune(store, sink, old, clock.now + DAY, clock.now)
        monkeypatch.undo()
        monkeypatch.setattr("cloister.stores.sqlite._AT_ONCE", 2)
        report = verify(await entries_of(store), sink.read())
        assert report.faults == []
        assert report.left > 0
        await store.close()
    store = await _connected(url)
    old = await retention.older(store, Evidence(sink.read()), clock.now + DAY)
    await retention.prune(store, sink, old, clock.now + DAY, clock.now)
    left = await entries_of(store)
    report = verify(left, sink.read())
    assert (report.faults, report.left, [entry.event for entry in left]) == ([], 0, ["audit.pruned"])
    await store.close()


async def test_a_log_of_which_a_statement_was_not_kept_is_refused(tmp_path: Path) -> None:
    """A log whose beginning is missing is not pruned further: that would cover up the removal."""
    url, clock = f"sqlite:///{tmp_path / 'x.db'}", Clock()
    async with lived(url, tmp_path, clock) as house:
        await (await house.ana.start()).send("hello")
    store = await _connected(url)
    with closing(sqlite3.connect(tmp_path / "x.db")) as db, db:
        db.execute("DELETE FROM audit WHERE rowid = 1")
    with pytest.raises(ConfigurationError, match="entry 1: was removed"):
        await retention.older(store, Evidence(_signs(tmp_path).read()), clock.now + DAY)
    await store.close()


# --- erasure, several processes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["sqlite", "redis", "postgres"], indirect=True)
@pytest.mark.plain_ids
async def test_erasure_takes_the_name_and_leaves_the_chain(url: str, tmp_path: Path) -> None:
    """Exports from before and after an erasure both verify and agree; who the audit id was is gone from the second."""
    clock, sink = Clock(), _signs(tmp_path)
    async with lived(url, tmp_path, clock) as house:
        store = house.cloister.store

        async def export(name: str) -> tuple[File, dict[str, Owner]]:
            house.cloister.sign_heads()
            newest = (tmp_path / "heads").read_text().splitlines()[-1]
            from cloister.exports import Window

            lines = [*first_lines(Window(), newest), *(line(entry) for entry in await entries_of(store))]
            (tmp_path / name).write_text("".join(f"{one}\n" for one in lines))
            return File(tmp_path / name), await store.audit_owners()

        await (await house.ana.start()).send("hello")
        await (await house.ben.start()).send("hello")
        one, names = await export("before")
        assert {owner.user for owner in names.values()} == {"ana", "ben"}
        clock.move(minutes=1)
        await house.ana.erase()
        two, left = await export("after")
        assert {owner.user for owner in left.values()} == {"ben"}
        for file in (one, two):
            report, wrong = verify_file(file, evidence_about(file, [tmp_path / "heads"], KEY.public))
            assert (wrong, report.unsigned) == ([], 0)
        assert '"ana"' not in two.path.read_text()
    assert verify(await _entries(url), sink.read()).faults == []


@pytest.mark.parametrize("url", ["sqlite", "redis", "cluster", "postgres"], indirect=True)
@pytest.mark.plain_ids
async def test_each_process_signs_for_its_own(url: str, tmp_path: Path) -> None:
    """Of two that sign into files of their own, both files together cover the log; either alone finds no fault."""
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    async with lived(url, folders[0], Clock()) as one, lived(url, folders[1], Clock()) as two:
        await (await one.ana.start()).send("hello")
        await (await two.ben.start()).send("hello")
    entries = await _entries(url)
    signed = [_signs(folder).read() for folder in folders]
    for each in signed:
        report = verify(entries, each)
        assert report.faults == []
        assert 0 < report.unsigned < len(entries)
        assert report.unnamed > 0
    both = read_signed([folder / "heads" for folder in folders], KEY.public)
    report = verify(entries, both)
    assert (report.faults, report.unsigned, report.unnamed) == ([], 0, 0)
    assert len(verify([], both).faults) == report.writers


async def test_dead_writers_stay_signed_for(tmp_path: Path) -> None:
    """The newest line alone, of a file into which many processes wrote one after the other, covers all of them."""
    url = f"sqlite:///{tmp_path / 'x.db'}"
    for _ in range(4):
        async with lived(url, tmp_path, Clock()) as house:
            await (await house.ana.start()).send("hello")
    newest = (tmp_path / "heads").read_text().splitlines()[-1]
    (tmp_path / "heads").write_text(newest + "\n")
    entries = await _entries(url)
    report = verify(entries, _signs(tmp_path).read())
    assert (report.faults, report.unsigned, report.writers) == ([], 0, 4)
    for writer in {entry.writer for entry in entries}:
        rest = [entry for entry in entries if entry.writer != writer]
        assert verify(rest, _signs(tmp_path).read()).faults[0].writer == writer
