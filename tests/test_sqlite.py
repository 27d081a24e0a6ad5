"""The embedded store as an attacker with the file open finds it, and as an operator with a broken disk does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fakes import House, opened, told

from cloister import stores
from cloister.errors import (
    CloisterError,
    ConfigurationError,
    IntegrityError,
    ProviderError,
    SessionExpired,
    SessionNotFound,
    StoreError,
    StoreUnavailable,
)
from cloister.model import Limits
from cloister.stores.base import Fingerprint
from cloister.stores.sqlite import _held
from cloister.testing import entries_of

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX files")
not_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "x.db"


def at(file: Path) -> str:
    return f"sqlite:///{file}?synchronous=normal"


@contextlib.contextmanager
def database(file: Path) -> Iterator[sqlite3.Connection]:
    """Open the file as anybody with access to the disk can, and commit."""
    with contextlib.closing(sqlite3.connect(file)) as db, db:
        db.execute("PRAGMA ignore_check_constraints = ON")
        yield db


def change(file: Path, sql: str, *values: Any) -> None:
    with database(file) as db:
        assert db.execute(sql, values).rowcount, f"nothing to change: {sql}"


def read(file: Path) -> bytes:
    return file.read_bytes()


def write(file: Path, data: bytes) -> None:
    file.write_bytes(data)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def dump(file: Path) -> list[str]:
    with database(file) as db:
        return list(db.iterdump())


# --- rows that were moved or changed ----------------------------------------------------------------------------------


async def two_sessions(house: House) -> tuple[Any, Any, Any]:
    """Give two sessions of ana's and one of ben's, alike in everything that lies in clear."""
    one, two = await house.ana.start(system="Be kind."), await house.ana.start(system="Be kind.")
    bens = await house.ben.start(system="Be kind.")
    for session, name in ((one, "one"), (two, "two"), (bens, "ben")):
        await session.send(f"said in {name} first")
        await session.send(f"said in {name} later")
    return one, two, bens


async def refused(house: House, session: Any) -> None:
    """Say that neither resuming, reading nor talking to *session* gives anything, and that the alarm was raised."""
    before = (await house.events()).count("integrity.failed")
    asked = len(house.provider.requests)
    attempts = session.send("what?"), session.history(), house.ana.resume(session.id)
    outcomes = [(await asyncio.gather(attempt, return_exceptions=True))[0] for attempt in attempts]
    wrong = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert wrong, "nobody noticed"
    assert {type(error) for error in wrong} == {IntegrityError}
    assert not any(session.id in str(error) or "said in" in str(error) for error in wrong)
    assert len(house.provider.requests) == asked, "the model was asked"
    assert (await house.events()).count("integrity.failed") - before == len(wrong), "an alarm is missing"


OF = "tenant = '' AND user = ? AND session = ?"
COPIED = "version, item_count, token_count, created_at, updated_at, expires_at, turn, wrapped, head, carry"


@pytest.mark.parametrize("source", ["two", "ben"], ids=["own other session", "foreign session"])
@pytest.mark.parametrize("what", ["everything", "secret and items", "head", "one item", "last item", "items", "system"])
async def test_rows_of_another_session_do_not_open(file: Path, source: str, what: str) -> None:
    """Whatever is copied over from another session, of the same owner or not, does not open (row 22)."""
    async with opened(at(file)) as house:
        one, two, bens = await two_sessions(house)
        other = two if source == "two" else bens
        whence, whither = (other.owner.user, other.id), (one.owner.user, one.id)
        with database(file) as db:

            def copy(columns: str) -> None:
                marks = ", ".join(f"{name} = ?" for name in columns.split(", "))
                values = db.execute(f"SELECT {columns} FROM sessions WHERE {OF}", whence).fetchone()
                db.execute(f"UPDATE sessions SET {marks} WHERE {OF}", (*values, *whither))

            def copy_items(where: str = "1") -> None:
                rows = db.execute(
                    f"SELECT position, role, token_count, sealed FROM items WHERE {OF} AND {where}", whence
                ).fetchall()
                for row in rows:
                    db.execute("INSERT OR REPLACE INTO items VALUES ('', ?, ?, ?, ?, ?, ?)", (*whither, *row))

            if what == "everything":
                copy(COPIED)
            if what == "secret and items":
                copy("wrapped")
            if what == "head":
                copy("head")
            if what == "system":
                copy("carry")
            if what in ("everything", "secret and items", "items"):
                copy_items()
            if what == "one item":
                copy_items("position = 1")
            if what == "last item":
                copy_items("position = 4")
        await refused(house, one)
        assert len(await told(other)) == 5, "the other session is as it was"


async def test_a_session_relabelled_for_another_user_does_not_open(file: Path) -> None:
    """Renaming the owner of all rows hands nothing over."""
    async with opened(at(file)) as house:
        await house.ana.start()
        bens = await house.ben.start()
        await bens.send("said in ben")
        for table in ("sessions", "items"):
            change(file, f"UPDATE {table} SET user = 'ana' WHERE session = ?", bens.id)
        with pytest.raises(IntegrityError):
            await house.ana.resume(bens.id)
        with pytest.raises(IntegrityError):
            await house.ana.sessions()
        with pytest.raises(IntegrityError):
            _ = [line async for line in house.ana.export()]
        with pytest.raises(SessionNotFound):
            await house.ben.resume(bens.id)


TAMPERING = {
    "deleted first item": "DELETE FROM items WHERE {of} AND position = 0",
    "deleted middle item": "DELETE FROM items WHERE {of} AND position = 2",
    "truncated tail": "DELETE FROM items WHERE {of} AND position >= 3",
    "deleted all items": "DELETE FROM items WHERE {of}",
    "other role": "UPDATE items SET role = 'system' WHERE {of} AND position = 1",
    "unknown role": "UPDATE items SET role = 'root' WHERE {of} AND position = 1",
    "role of another type": "UPDATE items SET role = x'75736572' WHERE {of} AND position = 1",
    "fewer tokens": "UPDATE items SET token_count = 0 WHERE {of} AND position = 1",
    "negative tokens": "UPDATE items SET token_count = -1000000 WHERE {of} AND position = 1",
    "tokens of another type": "UPDATE items SET token_count = 'many' WHERE {of} AND position = 1",
    "changed bytes": "UPDATE items SET sealed = CAST(substr(sealed, 1, 20) ||"
    " iif(substr(sealed, 21, 1) = x'00', x'01', x'00') || substr(sealed, 22) AS BLOB) WHERE {of} AND position = 1",
    "unknown format": "UPDATE items SET sealed = CAST(x'02' || substr(sealed, 2) AS BLOB) WHERE {of} AND position = 4",
    "undecodable item": "UPDATE items SET sealed = CAST(x'fffe' AS TEXT) WHERE {of} AND position = 4",
    "undecodable role": "UPDATE items SET role = CAST(x'fffe' AS TEXT) WHERE {of} AND position = 4",
    "undecodable end": "UPDATE sessions SET ended = CAST(x'fffe' AS TEXT) WHERE {of}",
    "emptied item": "UPDATE items SET sealed = x'' WHERE {of} AND position = 1",
    "item of another type": "UPDATE items SET sealed = 'text' WHERE {of} AND position = 1",
    "huge position": "UPDATE items SET position = 9223372036854775807 WHERE {of} AND position = 4",
    "negative position": "UPDATE items SET position = -1 WHERE {of} AND position = 0",
    "position of another type": "UPDATE items SET position = 'last' WHERE {of} AND position = 4",
    "higher version": "UPDATE sessions SET version = version + 1 WHERE {of}",
    "lower version": "UPDATE sessions SET version = version - 1 WHERE {of}",
    "version of another type": "UPDATE sessions SET version = 'new' WHERE {of}",
    "fewer items": "UPDATE sessions SET item_count = item_count - 1 WHERE {of}",
    "other token count": "UPDATE sessions SET token_count = 0 WHERE {of}",
    "older": "UPDATE sessions SET created_at = created_at - 1 WHERE {of}",
    "created at another type": "UPDATE sessions SET created_at = x'00' WHERE {of}",
    "fresher": "UPDATE sessions SET updated_at = updated_at + 1 WHERE {of}",
    "longer life": "UPDATE sessions SET expires_at = expires_at + 1000000 WHERE {of}",
    "endless life": "UPDATE sessions SET expires_at = NULL WHERE {of}",
    "life of another type": "UPDATE sessions SET expires_at = 'never' WHERE {of}",
    "other turn": "UPDATE sessions SET turn = x'00' WHERE {of}",
    "turn of another type": "UPDATE sessions SET turn = 'turn' WHERE {of}",
    "no secret": "UPDATE sessions SET wrapped = NULL WHERE {of}",
    "empty secret": "UPDATE sessions SET wrapped = x'' WHERE {of}",
    "cut secret": "UPDATE sessions SET wrapped = substr(wrapped, 1, 40) WHERE {of}",
    "secret of another type": "UPDATE sessions SET wrapped = 'secret' WHERE {of}",
    "no head": "UPDATE sessions SET head = NULL WHERE {of}",
    "empty head": "UPDATE sessions SET head = x'' WHERE {of}",
    "uncommitted head": "UPDATE sessions SET head = CAST(zeroblob(32) || substr(head, 33) AS BLOB) WHERE {of}",
    "head of another type": "UPDATE sessions SET head = 7 WHERE {of}",
    "no system text": "UPDATE sessions SET carry = NULL WHERE {of}",
    "cut system text": "UPDATE sessions SET carry = substr(carry, 1, 30) WHERE {of}",
    "system text of another type": "UPDATE sessions SET carry = 'Be evil.' WHERE {of}",
}


@pytest.mark.parametrize("how", list(TAMPERING))
async def test_a_changed_row_is_noticed(file: Path, how: str) -> None:
    """Deleted, moved, cut or retyped: every change of a session's rows is an integrity error and an alarm (row 23)."""
    async with opened(at(file)) as house:
        one, two, _ = await two_sessions(house)
        change(file, TAMPERING[how].format(of=OF), one.owner.user, one.id)
        await refused(house, one)
        assert len(await told(two)) == 5, "the other session is as it was"


@pytest.mark.parametrize("ended", ["live", "renamed"])
async def test_a_tombstone_does_not_come_back_to_life(file: Path, ended: str) -> None:
    """Declaring an ended session alive gives nothing back; its secret is gone."""
    async with opened(at(file)) as house:
        one, _, _ = await two_sessions(house)
        await one.end()
        change(file, "UPDATE sessions SET ended = ? WHERE session = ?", None if ended == "live" else "x", one.id)
        with pytest.raises((IntegrityError, SessionExpired)):
            await one.history()
        with pytest.raises((IntegrityError, SessionExpired)):
            await one.send("what?", on_expired="raise")


async def test_swapped_items_are_noticed(file: Path) -> None:
    """Two items that changed places, clear columns and all, do not open."""
    async with opened(at(file)) as house:
        one, _, _ = await two_sessions(house)
        with database(file) as db:
            for before, after in ((1, 99), (3, 1), (99, 3)):
                db.execute(f"UPDATE items SET position = ? WHERE {OF} AND position = ?", (after, "ana", one.id, before))
        await refused(house, one)


async def test_an_item_of_an_earlier_state_is_noticed(file: Path) -> None:
    """A row that once stood at the same place of the same session does not fit what came after it."""
    async with opened(at(file)) as house:
        one, _, _ = await two_sessions(house)
        with database(file) as db:
            losing = db.execute(f"SELECT sealed FROM items WHERE {OF} AND position = 2", ("ana", one.id)).fetchone()
        change(
            file, f"UPDATE items SET sealed = ?, role = 'assistant' WHERE {OF} AND position = 4", *losing, "ana", one.id
        )
        await refused(house, one)


async def test_an_older_copy_of_a_session_is_refused_by_a_live_process(file: Path) -> None:
    """Rows of a session as they were some turns ago do not fool the process that saw the newer ones (row 23)."""
    async with opened(at(file)) as house:
        one, _, _ = await two_sessions(house)
        with database(file) as db:
            row = db.execute(f"SELECT {COPIED} FROM sessions WHERE {OF}", ("ana", one.id)).fetchone()
        await one.send("and more")
        with database(file) as db:
            marks = ", ".join(f"{name} = ?" for name in COPIED.split(", "))
            db.execute(f"UPDATE sessions SET {marks} WHERE {OF}", (*row, "ana", one.id))
            db.execute(f"DELETE FROM items WHERE {OF} AND position >= 5", ("ana", one.id))
        await refused(house, one)


async def test_another_turn_at_the_same_version_is_refused(file: Path, tmp_path: Path) -> None:
    """A fork of the store, in which the session went on otherwise, is not taken for this process's own (row 17)."""
    async with opened(at(file)) as house:
        one, _, _ = await two_sessions(house)
        with database(file) as db, contextlib.closing(sqlite3.connect(tmp_path / "y.db")) as copy:
            db.backup(copy)
        (tmp_path / "y.db.keys").write_bytes((tmp_path / "x.db.keys").read_bytes())
        (tmp_path / "y.db.keys").chmod(0o600)
        await one.send("and here")
        async with opened(at(tmp_path / "y.db")) as fork:
            await (await fork.ana.resume(one.id)).send("and there")
        with database(file) as db:
            db.execute("ATTACH ? AS fork", (str(tmp_path / "y.db"),))
            for table in ("sessions", "items"):
                db.execute(f"INSERT OR REPLACE INTO {table} SELECT * FROM fork.{table} WHERE session = ?", (one.id,))
            db.commit()
            db.execute("DETACH fork")
        await refused(house, one)


@pytest.mark.parametrize("how", ["another session's", "garbage", "text"])
async def test_a_changed_idempotency_record_is_noticed(file: Path, how: str) -> None:
    """A record that was put in place of another one answers nothing, and raises the alarm."""
    async with opened(at(file)) as house:
        one, bens = await house.ana.start(), await house.ben.start()
        await one.send("hello", idempotency_key="k")
        await bens.send("hello", idempotency_key="k")
        with database(file) as db:
            (foreign,) = db.execute("SELECT sealed FROM records WHERE session = ?", (bens.id,)).fetchone()
        value = {"another session's": foreign, "garbage": b"\x01garbage", "text": "text"}[how]
        change(file, "UPDATE records SET sealed = ? WHERE session = ?", value, one.id)
        with pytest.raises(IntegrityError):
            await one.send("hello", idempotency_key="k")
        assert "integrity.failed" in await house.events()
        await one.send("hello", idempotency_key="another")


async def test_one_damaged_row_does_not_stop_the_sweep(file: Path) -> None:
    """Retention goes on for everybody else when one session's row was changed."""
    async with opened(at(file)) as house:
        one, two, _ = await two_sessions(house)
        change(file, "UPDATE sessions SET version = 'new' WHERE session = ?", one.id)
        house.clock.move(hours=1)
        with contextlib.suppress(CloisterError):
            await house.cloister.sweep()
        with database(file) as db:
            (left,) = db.execute("SELECT count(*) FROM items WHERE session = ?", (two.id,)).fetchone()
        assert left == 0


async def test_a_changed_audit_entry_is_named(file: Path) -> None:
    """An entry that was edited, moved or removed is named by the verification; so is a cut-off tail (row 53)."""
    async with opened(at(file)) as house:
        await two_sessions(house)
    for sql in (
        "UPDATE audit SET detail = '{}' WHERE rowid = 5",
        "UPDATE audit SET number = 'x' WHERE rowid = 5",
        "UPDATE audit SET event = x'ff' WHERE rowid = 5",
        "UPDATE audit SET owner = 'a_0' WHERE rowid = 5",
        "DELETE FROM audit WHERE rowid = 5",
        "DELETE FROM audit WHERE rowid > 5",
        "DELETE FROM audit",
    ):
        kept = read(file)
        change(file, sql)
        store = stores.connect(at(file))
        await store.open()
        try:
            signed = _signed(file)
            assert signed.problems == ()
            report = _verified(await entries_of(store), signed)
            assert report.faults, sql
        finally:
            await store.close()
        write(file, kept)


def _signed(file: Path) -> Any:
    from cloister.sinks import HeadFile, audit_key

    key = audit_key(file.with_name(file.name + ".audit-key"))
    return HeadFile(file.with_name(file.name + ".heads"), key).read()


def _verified(entries: Any, heads: Any) -> Any:
    from cloister.audit import verify

    return verify(entries, heads)


# --- broken disks and files -------------------------------------------------------------------------------------------


def _child(script: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parent.parent
    paths = os.pathsep.join([str(root / "src"), str(root), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
        **options,
    )


@posix
def test_a_full_disk_is_an_error_and_harms_nothing(file: Path) -> None:
    """With no space left a turn raises `StoreUnavailable` and stores nothing; with space it works again (row 36)."""
    done = _child(
        """
        import asyncio, resource, signal, sys
        from cloister.errors import StoreUnavailable
        from tests.fakes import opened, told

        async def main(url):
            async with opened(url, context_tokens=10_000_000) as house:
                session = await house.ana.start()
                await session.send("before")
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
                stored = refused = 0
                for number in range(20):
                    try:
                        await session.send(f"{number} " + "x" * 100_000)
                        stored += 1
                    except StoreUnavailable as error:
                        refused += 1
                        assert "nothing was stored" in str(error) or "cannot be" in str(error), error
                assert refused > 2, (stored, refused)
                assert len(await told(session)) == 2 + 2 * stored
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                await session.send("after")
                assert (await told(session))[-2:] == ["after", "You said: after"]
                assert not (await house.audited()).faults
                assert "writer.replaced" in await house.events()
                print(session.id, stored)

        asyncio.run(main(sys.argv[1]))
        """,
        at(file),
    )
    assert done.returncode == 0, done.stderr
    session_id, stored = done.stdout.split()

    async def again() -> None:
        async with opened(at(file)) as house:
            session = await house.ana.resume(session_id)
            assert len(await told(session)) == 4 + 2 * int(stored)
            assert not (await house.audited()).faults

    asyncio.run(again())
    with database(file) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """A folder that does not exist is a matter of set-up, and no folder is made."""
    with pytest.raises(ConfigurationError, match="folder"):
        async with opened(f"sqlite:///{tmp_path}/nowhere/x.db"):
            pass
    assert names(tmp_path) == []


async def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    """A path that is a folder is an error that names it."""
    (tmp_path / "x.db").mkdir()
    with pytest.raises((StoreUnavailable, ConfigurationError)):
        async with opened(at(tmp_path / "x.db")):
            pass


@posix
@not_root
async def test_a_read_only_file_is_refused(file: Path) -> None:
    """A file that may not be written is said to be so, at once."""
    async with opened(at(file)) as house:
        await house.ana.start()
    os.chmod(file, 0o400)
    with pytest.raises(StoreUnavailable):
        async with opened(at(file)):
            pass


@posix
@not_root
async def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    """A folder in which nothing can be created is said to be so."""
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises((StoreUnavailable, ConfigurationError)):
        async with opened(at(tmp_path / "locked" / "x.db")):
            pass


async def test_a_text_file_is_no_database(file: Path) -> None:
    """A file of another kind is refused and left as it is."""
    write(file, b"Dear diary, " * 500)
    (file.parent / "x.db.keys").write_text("")
    kept = read(file)
    with pytest.raises((StoreError, ConfigurationError)):
        async with opened(at(file)):
            pass
    assert read(file) == kept


async def test_another_database_is_left_alone(file: Path) -> None:
    """A database of some other application is neither used nor changed."""
    from cloister.keyring import Keyring

    with database(file) as db:
        db.execute("CREATE TABLE theirs (x)")
        db.execute("INSERT INTO theirs VALUES (1)")
    with pytest.raises(ConfigurationError):
        async with opened(at(file), keyring=Keyring.generate()):
            pass
    with database(file) as db:
        assert [name for (name,) in db.execute("SELECT name FROM sqlite_schema")] == ["theirs"]
        assert db.execute("SELECT * FROM theirs").fetchall() == [(1,)]


async def test_a_newer_version_is_refused(file: Path) -> None:
    """A store that a later version wrote is not touched."""
    async with opened(at(file)) as house:
        await house.ana.start()
    with database(file) as db:
        db.execute("PRAGMA user_version = 99")
    before = dump(file)
    with pytest.raises(ConfigurationError, match="99"):
        async with opened(at(file)):
            pass
    assert dump(file) == before


async def test_a_damaged_file_is_an_error(file: Path) -> None:
    """Pages of garbage are a fault of the store, never an empty one."""
    async with opened(at(file)) as house:
        session = await house.ana.start(items=[{"role": "user", "content": "x" * 5_000} for _ in range(20)])
    kept = read(file)
    write(file, kept[:4096] + b"\xff" * (len(kept) - 4096))
    with pytest.raises(StoreError) as raised:
        async with opened(at(file)) as house:
            await (await house.ana.resume(session.id)).history()
    assert "damaged" in str(raised.value)


async def test_a_cut_file_is_an_error(file: Path) -> None:
    """A file that lost its end is a fault of the store, never an empty one."""
    async with opened(at(file)) as house:
        session = await house.ana.start(items=[{"role": "user", "content": "x" * 5_000} for _ in range(20)])
    write(file, read(file)[: 4096 * 3])
    with pytest.raises(StoreError):
        async with opened(at(file)) as house:
            await (await house.ana.resume(session.id)).history()


async def test_a_damaged_side_file_says_what_to_do(file: Path) -> None:
    """The file of leases holds nothing that lasts: a damaged one may be deleted, and the error says so."""
    async with opened(at(file)) as house:
        session = await house.ana.start()
    side = file.with_name("x.db.leases")
    side.write_bytes(b"garbage" * 1000)
    with pytest.raises(StoreError, match=r"delete that file"):
        async with opened(at(file)):
            pass
    side.unlink()
    async with opened(at(file)) as house:
        await (await house.ana.resume(session.id)).send("all is well again")


async def test_a_store_that_another_process_locks(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that is held too long is an error that says so; once it is given back, all is well."""
    for module in ("sqlite_file", "sqlite_writer"):
        monkeypatch.setattr(f"cloister.stores.{module}.BUSY_SECONDS", 0.01)
    async with opened(at(file)) as house:
        session = await house.ana.start()
        with contextlib.closing(sqlite3.connect(file)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable, match="locked"):
                await session.send("blocked")
            with pytest.raises(StoreUnavailable, match="locked"):
                await told(session)  # what cannot be put on record is not shown
            other.execute("ROLLBACK")
        await session.send("all is well again")
        assert len(await told(session)) == 2
        assert not (await house.audited()).faults


async def test_leases_that_another_process_locks(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without leases there are no turns; reading goes on."""
    monkeypatch.setattr("cloister.stores.sqlite_file.LEASE_SECONDS", 0.01)
    async with opened(at(file)) as house:
        session = await house.ana.start()
        with contextlib.closing(sqlite3.connect(file.with_name("x.db.leases"))) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable):
                await session.send("blocked")
            assert await told(session) == []
            other.execute("ROLLBACK")
        await session.send("all is well again")


async def test_a_lease_from_before_a_reboot_does_not_count(file: Path) -> None:
    """The clock of leases starts anew with the machine: one that lies further ahead than any we grant is void."""
    async with opened(at(file), limits=Limits(turn_wait=Limits().turn_wait * 0)) as house:
        session = await house.ana.start()
        with database(file.with_name("x.db.leases")) as db:
            db.execute("INSERT INTO leases VALUES (?, x'00', 1e12)", (_held(("", "ana", session.id)),))
        await session.send("all is well")
        assert len(await told(session)) == 2


@pytest.mark.parametrize(
    ("url", "names"),
    [
        ("mysql://x", "memory://, sqlite://"),
        ("x.db", "memory://, sqlite://"),
        ("", "memory://, sqlite://"),
        ("sqlite://x.db", "sqlite:///"),
        ("sqlite:///", "sqlite:///"),
        ("sqlite:///x.db?fast=1", "synchronous"),
        ("sqlite:///x.db?synchronous=off", "full, normal"),
        ("memory://name", "no name"),
        ("memory://?x=1", "none"),
    ],
)
def test_a_wrong_url_names_what_there_is(url: str, names: str) -> None:
    """Unknown schemes and options are refused by naming the known ones."""
    with pytest.raises(ConfigurationError) as raised:
        stores.connect(url)
    assert names in str(raised.value)


def test_a_wrong_url_is_not_repeated() -> None:
    """A URL may hold a password, so that errors do not show it."""
    with pytest.raises(ConfigurationError) as raised:
        stores.connect("postgres+asyncpg://ana:hunter2@db/x")
    assert "hunter2" not in str(raised.value)


async def test_a_missing_key_file_is_an_error(file: Path) -> None:
    """An existing store whose key file is gone gets no new keys: nothing could be opened with them."""
    async with opened(at(file)) as house:
        session = await house.ana.start()
    keys = file.with_name("x.db.keys")
    kept = keys.read_bytes()
    keys.unlink()
    with pytest.raises(ConfigurationError, match="key file"):
        async with opened(at(file)):
            pass
    assert not keys.exists()
    keys.write_bytes(kept)
    keys.chmod(0o644)
    if os.name == "posix":
        with pytest.raises(ConfigurationError, match="chmod 600"):
            async with opened(at(file)):
                pass
    keys.chmod(0o600)
    async with opened(at(file)) as house:
        await house.ana.resume(session.id)


async def test_another_key_opens_nothing_and_is_no_alarm(file: Path) -> None:
    """A session under a key that the keyring lacks is a matter of set-up, for that session alone; sweeping goes on."""
    from cloister.keyring import Keyring

    async with opened(at(file)) as house:
        old = await house.ana.start(system="x")
    clock = house.clock
    async with opened(at(file), keyring=Keyring.generate(), clock=clock) as house:
        with pytest.raises(ConfigurationError, match="master key"):
            await house.ana.resume(old.id)
        await (await house.ben.start()).send("not concerned")
        assert "integrity.failed" not in await house.events()
        clock.move(hours=1)
        assert await house.cloister.sweep() == 2


async def test_one_file_opened_twice_in_a_process(file: Path) -> None:
    """Two cloisters on one file in one process share its sessions, and neither disturbs the other's chain."""
    async with opened(at(file)) as one, opened(at(file)) as two:
        session = await one.ana.start()
        there = await two.ana.resume(session.id)
        for number in range(5):
            await asyncio.gather(session.send(f"here {number}"), there.send(f"there {number}"))
        said = await told(session)
        assert len(said) == 20
        assert all(said[n + 1] == f"You said: {said[n]}" for n in range(0, 20, 2))
        assert not (await one.audited()).faults
        assert (await one.audited()).writers == 2


@posix
@pytest.mark.parametrize("which", ["", ".leases"])
async def test_another_process_that_closes_the_file_leaves_us_our_log(file: Path, which: str) -> None:
    """Whoever opens the store beside us, and ends, takes the write-ahead log from nobody who is still at work.

    SQLite deletes it with the last one who closes the file, which it knows by the locks of all others; and a process
    loses all of its own with any descriptor of the file that it closes.
    """
    place = file.with_name(file.name + which)
    look = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('PRAGMA table_list'); db.close()"
    async with opened(at(file)) as house, opened(at(file)):
        await (await house.ana.start()).send("hello")
        log = place.with_name(place.name + "-wal")
        before = log.stat().st_ino
        await asyncio.to_thread(subprocess.run, [sys.executable, "-c", look, str(place)], check=True, timeout=60)
        assert log.exists()
        assert log.stat().st_ino == before


async def test_use_after_close_is_an_error(file: Path) -> None:
    """A session value that outlives its cloister raises; nothing hangs and nothing is written."""
    async with opened(at(file)) as house:
        session = await house.ana.start()
    before = dump(file)
    for attempt in (session.send("late"), session.history(), house.ana.start(), house.ana.sessions(), session.end()):
        with pytest.raises(CloisterError):
            await attempt
    assert dump(file) == before


# --- what lies on the disk --------------------------------------------------------------------------------------------


@posix
async def test_files_are_for_their_owner_alone(file: Path) -> None:
    """Everything that is created beside the store has mode 0600, from the beginning."""
    old = os.umask(0)
    try:
        async with opened(at(file)) as house:
            await (await house.ana.start()).send("hello")
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()}
    finally:
        os.umask(old)
    assert {"x.db", "x.db-wal", "x.db.keys", "x.db.leases", "x.db.audit-key"} <= set(modes)
    assert {name for name, mode in modes.items() if mode != 0o600} == set()


def _everything(file: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(file.parent.iterdir()))


async def test_no_plaintext_reaches_the_disk(file: Path) -> None:
    """Text, title, metadata, system text, tool calls and keys of requests lie in no file, while open or after."""
    canary = "CANARY-5f1e"
    call = {"id": canary, "type": "function", "function": {"name": canary, "arguments": canary}}
    async with opened(at(file), keep_failed=True) as house:
        session = await house.ana.start(system=f"{canary} system", title=f"{canary} title", metadata={canary: canary})
        await session.send(f"{canary} text", idempotency_key=f"{canary} key", documents=[f"{canary} document"])
        async with session.turn([{"type": "text", "text": canary}]) as turn:
            turn.add({"role": "assistant", "content": None, "tool_calls": [call]})
            turn.add({"role": "tool", "tool_call_id": canary, "content": canary, "name": canary})
            await turn.finish(canary)
        house.provider.answer = RuntimeError(canary)
        with pytest.raises(ProviderError):
            await session.send(canary)
        house.clock.move(hours=1)
        house.provider.answer = None
        reply = await session.send(f"{canary} renewed")
        assert canary in str(await told(reply.session))
        assert canary.encode() not in _everything(file)
        assert session.id not in [entry.session for entry in await house.entries()]
    assert canary.encode() not in _everything(file)


async def _secrets(file: Path, session_id: str) -> list[bytes]:
    """Give the wrapped secret, the head and all sealed items of a session, as they lie in the file."""
    with database(file) as db:
        found = list(db.execute("SELECT wrapped, head FROM sessions WHERE session = ?", (session_id,)).fetchone())
        found += [sealed for (sealed,) in db.execute("SELECT sealed FROM items WHERE session = ?", (session_id,))]
    return found


@pytest.mark.parametrize("how", ["end", "erase", "expire", "sweep", "end_all"])
async def test_what_is_destroyed_is_gone_from_the_disk(file: Path, how: str) -> None:
    """Neither the database nor its log holds any byte string of a session that was ended, erased or has expired."""
    async with opened(at(file)) as house:
        session, bens = await house.ana.start(system="Be kind."), await house.ben.start()
        for number in range(5):
            await session.send(f"{number} " + "x" * 3_000)
            await bens.send("hello")
        secrets = await _secrets(file, session.id)
        assert all(secret in _everything(file) for secret in secrets[:2])
        ways: dict[str, Callable[[], Any]] = {
            "end": session.end,
            "erase": house.ana.erase,
            "end_all": house.ana.end_all,
            "expire": lambda: house.ana.resume(session.id),
            "sweep": house.cloister.sweep,
        }
        if how in ("expire", "sweep"):
            house.clock.move(hours=1)
        await ways[how]()
        on_disk = _everything(file)
        # Pieces, since a long value is spread over pages.
        left = [n for n, secret in enumerate(secrets) if secret[-48:] in on_disk or secret[:48] in on_disk]
        assert left == [], "still on the disk"
    assert not any(secret[-48:] in _everything(file) for secret in secrets)


async def test_records_and_tombstones_go_with_the_sweep(file: Path) -> None:
    """Idempotency records after a day, tombstones after thirty: their bytes leave the disk as well."""
    async with opened(at(file)) as house:
        session = await house.ana.start(system="Be kind.")
        await session.send("hello", idempotency_key="k")
        with database(file) as db:
            (record,) = db.execute("SELECT sealed FROM records").fetchone()
            (carry,) = db.execute("SELECT carry FROM sessions").fetchone()
        house.clock.move(hours=25)
        await house.cloister.sweep()
        assert record not in _everything(file)
        assert carry in _everything(file), "a renewal needs it"
        house.clock.move(days=31)
        await house.cloister.sweep()
        assert carry not in _everything(file)


async def test_what_an_owner_said_goes_with_the_erasure(file: Path) -> None:
    """Ending a session, and erasing its owner, destroys the rows of its fingerprints at once, and nobody else's."""
    async with opened(at(file)) as house:
        vault = house.cloister.vault
        for owner in (house.ana.owner, house.ben.owner):
            started = vault.begin(owner)
            prints = [Fingerprint("", b"12345678"), Fingerprint("", f"of {owner.user}".encode().rjust(8))]
            await vault.commit(started, fingerprints=prints)
        with database(file) as db:
            assert db.execute("SELECT count(*) FROM fingerprints").fetchone() == (4,)
        await house.ana.erase()
        with database(file) as db:
            assert db.execute("SELECT count(*) FROM fingerprints").fetchone() == (2,)
            assert db.execute("SELECT user FROM claims").fetchall() == [("ben",)]
        await house.ben.end_all()
        with database(file) as db:
            assert db.execute("SELECT count(*) FROM fingerprints").fetchone() == (0,)


async def test_destroyed_secrets_leave_the_log_after_a_reader(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While somebody reads, the log cannot be emptied, and nobody waits for that: the next commit sees to it."""
    for module in ("sqlite_file", "sqlite_writer"):  # whoever waited for the reader would do so for ever
        monkeypatch.setattr(f"cloister.stores.{module}.BUSY_SECONDS", 3_600.0)
    async with opened(at(file)) as house:
        session, bens = await house.ana.start(), await house.ben.start()
        await session.send("hello")
        secrets = await _secrets(file, session.id)
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM sessions").fetchone()
            await session.end()
            await bens.send("hello")
            reader.execute("COMMIT")
        await bens.send("hello")
        assert not any(secret in _everything(file) for secret in secrets)
