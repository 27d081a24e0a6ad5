"""Master keys: where they come from, how they change, and that they show nowhere."""

from __future__ import annotations

import base64
import copy
import os
import pickle
import re
import stat
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cloister
from cloister import files
from cloister.errors import ConfigurationError, IntegrityError
from cloister.keyring import Keyring
from cloister.sealing import subkey

KEY = bytes(range(200, 232))
TEXT = base64.urlsafe_b64encode(KEY).decode()
BARE = TEXT.rstrip("=")
OTHER = base64.b64encode(b"\xfb\xff" * 16).decode()

Result = TypeVar("Result")

posix = pytest.mark.skipif(os.name != "posix", reason="file modes are those of POSIX")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cloister.keys"


def done(work: Coroutine[Any, Any, Result]) -> Result:
    """Give what *work* comes to: a keyring of ours never waits, so it needs no event loop."""
    with pytest.raises(StopIteration) as stopped:
        work.send(None)
    result: Result = stopped.value.value
    return result


def write(path: Path, content: str | bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return path


class TestFile:
    def test_is_made_for_its_owner_alone(self, path: Path) -> None:
        """A new key file holds one random key, can be read by its owner only, and has nothing beside it."""
        ring = Keyring.create_file(path)
        assert len(ring.names) == 1
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        name, text = lines[0].split(" ")
        assert len(lines) == 1
        assert ring.names == (name,)
        assert len(base64.urlsafe_b64decode(text)) == 32
        assert os.listdir(path.parent) == [path.name]
        if os.name == "posix":
            assert stat.S_IMODE(path.stat().st_mode) == 0o600

    @posix
    def test_is_private_whatever_the_umask(self, path: Path) -> None:
        """A careless umask does not open the file, when made and when rewritten."""
        before = os.umask(0)
        try:
            Keyring.create_file(path).add()
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_is_never_replaced_by_a_new_one(self, path: Path) -> None:
        """Making a file where there is one fails and leaves it as it is, a dangling link included."""
        write(path, f"a {TEXT}\n")
        with pytest.raises(FileExistsError, match="left as it is"):
            Keyring.create_file(path)
        assert path.read_text() == f"a {TEXT}\n"
        assert os.listdir(path.parent) == [path.name]
        link = path.with_name("link")
        link.symlink_to(path.with_name("elsewhere"))
        with pytest.raises(FileExistsError):
            Keyring.create_file(link)
        assert not path.with_name("elsewhere").exists()

    def test_is_made_by_one_of_many(self, path: Path) -> None:
        """Of many that make the file at the same moment one succeeds, and everybody reads its key."""
        barrier = threading.Barrier(8)
        outcomes: list[str] = []

        def make() -> None:
            barrier.wait(10)
            try:
                Keyring.create_file(path)
                outcomes.append("made")
            except FileExistsError:
                outcomes.append("there")
            outcomes.append(Keyring.from_file(path).names[0])

        in_threads([make] * 8)
        assert sorted(outcomes)[-8:] == sorted(["made", *["there"] * 7])
        assert len(set(outcomes)) == 3
        assert os.listdir(path.parent) == [path.name]

    def test_is_read_as_written(self, path: Path) -> None:
        """Comments, empty lines, either line ending and either base64 alphabet are read; the last key is the newest."""
        write(path, f"# mine\r\n\r\na {TEXT}\r\nb {OTHER}\r\n")
        assert Keyring.from_file(path).names == ("a", "b")

    @pytest.mark.parametrize(
        "content",
        [
            "",
            "# nothing\n",
            "\n\n",
            f"a {TEXT[:-8]}\n",
            f"a {base64.b64encode(bytes(31)).decode()}\n",
            f"a {base64.b64encode(bytes(33)).decode()}\n",
            "a\n",
            "a \n",
            f"a {TEXT} extra\n",
            f"a {TEXT}\na {OTHER}\n",
            f"a {TEXT}\nb {TEXT}!\n",
            f"a {TEXT}\n\xe9 {TEXT}\n",
            b"\xff\xfe" + f"a {TEXT}\n".encode("utf-16-le"),
            b"\xef\xbb\xbf" + f"a {TEXT}\n".encode(),
            f"{'a' * 65} {TEXT}\n",
            f"a\x1b[2J {TEXT}\n",
            f"a\0 {TEXT}\n",
            f"../a {TEXT}\n",
            f" {TEXT}\n",
            TEXT,
            BARE,
            f"a:{TEXT}",
            f"{TEXT} a\n",
            f"{BARE} abcd\n",
            b"\0" * 1000,
        ],
    )
    def test_is_refused_when_malformed(self, path: Path, content: str | bytes) -> None:
        """A malformed file is refused by one clear line, which shows no part of a key."""
        write(path, content)
        with pytest.raises(ConfigurationError) as caught:
            Keyring.from_file(path)
        refuses_in_words(caught.value)

    def test_is_refused_when_too_long_to_be_read_whole(self, path: Path) -> None:
        """A file of which only a part would be read is refused: the rest may hold the newest key."""
        filler = "#" * 100 + "\n"
        write(path, f"a {TEXT}\n" + filler * 11_000 + f"b {OTHER}\n")
        try:
            ring = Keyring.from_file(path)
        except ConfigurationError:
            return
        assert ring.names == ("a", "b")

    @posix
    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644, 0o666, 0o777])
    def test_is_refused_when_others_may_touch_it(self, path: Path, mode: int) -> None:
        """A file that anybody else may read or write is refused, and the error says what to run."""
        write(path, f"a {TEXT}\n", mode)
        with pytest.raises(ConfigurationError, match="chmod 600"):
            Keyring.from_file(path)

    def test_is_refused_when_missing_or_unreadable(self, path: Path) -> None:
        """Missing files, folders, dangling and endless links are named by the error; nothing takes their place."""
        folder, dangling, endless = (path.with_name(name) for name in ("folder", "dangling", "endless"))
        folder.mkdir()
        dangling.symlink_to(path)
        endless.symlink_to(endless)
        for place, words in (
            (path, "does not exist: put it back from a copy, .* make one: cloister keys new$"),
            (dangling, "does not exist"),
            (folder, "cannot be read"),
            (endless, "cannot be read"),
            (path.with_name("x" * 300), "cannot be read"),
        ):
            with pytest.raises(ConfigurationError, match=words) as caught:
                Keyring.from_file(place)
            assert str(place) in str(caught.value)
        assert not path.exists()

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
    def test_is_refused_when_not_allowed(self, path: Path) -> None:
        """A file that this user may not read is named by the error."""
        write(path, f"a {TEXT}\n", 0)
        with pytest.raises(ConfigurationError, match="cannot be read"):
            Keyring.from_file(path)

    @pytest.mark.parametrize("content", ["", "# nothing\n", "garbage\n", f"a {TEXT[:20]}\n"])
    def test_without_a_whole_key_is_named(self, path: Path, content: str) -> None:
        """Where a file lost its keys the error says which, and not to make another: nothing would open with that."""
        write(path, content)
        with pytest.raises(ConfigurationError, match=f"^the key file {re.escape(str(path))}: .* from a copy$"):
            Keyring.from_file(path)

    def test_in_a_missing_folder_is_a_clear_error(self, path: Path) -> None:
        """A file cannot be made in a folder that is not there, and the error says so."""
        with pytest.raises(ConfigurationError, match="cannot be written"):
            Keyring.create_file(path / "x")


class TestEnvironment:
    def test_is_taken_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Keys are read from ``CLOISTER_KEYS`` and the variable is gone, for child processes too."""
        monkeypatch.setenv("CLOISTER_KEYS", f"a:{TEXT}, b:{OTHER}")
        assert Keyring.from_env().names == ("a", "b")
        assert "CLOISTER_KEYS" not in os.environ
        script = "import os; print('CLOISTER_KEYS' in os.environ)"
        assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "False\n"

    @pytest.mark.parametrize("value", [None, "", f"{TEXT}:a"])
    def test_is_taken_out_even_when_wrong(self, value: str | None) -> None:
        """A missing or malformed variable is refused, and does not stay for children to inherit."""
        environ = {} if value is None else {"CLOISTER_KEYS": value}
        with pytest.raises(ConfigurationError, match="CLOISTER_KEYS"):
            Keyring.from_env(environ)
        assert environ == {}

    @pytest.mark.parametrize(
        "value",
        [
            TEXT,
            BARE,
            f"a {TEXT}",
            f"a:{TEXT},",
            f"a:{TEXT},{BARE}",
            f"a:{TEXT},{TEXT}",
            f"{TEXT}:a",
            f"{BARE}:abcd",
            f"{BARE}:{OTHER},{BARE}:{OTHER}",
            f"a:{BARE}",
            f"a:{TEXT}:b",
            f"a:{TEXT};b:{TEXT}",
            f"a:{TEXT},a:{OTHER}",
            "a:\xe9",
            "a:\ud800",
        ],
    )
    def test_a_mistake_does_not_show_a_key(self, value: str) -> None:
        """Forgetting the name, swapping the two, or another separator is refused without showing any part of a key."""
        with pytest.raises(ConfigurationError) as caught:
            Keyring.from_env({"CLOISTER_KEYS": value})
        refuses_in_words(caught.value)


class TestChange:
    def test_adding_seals_with_the_new_key_and_opens_with_all(self, path: Path) -> None:
        """A key that was added seals at once, and what older ones sealed still opens, also when read again."""
        ring = Keyring.create_file(path)
        sealed = {ring.names[-1]: done(ring.wrap(b"secret", b""))}
        for _ in range(3):
            name = ring.add()
            assert ring.names[-1] == name
            sealed[name] = done(ring.wrap(b"secret", b""))
        assert list(sealed) == list(ring.names) == list(Keyring.from_file(path).names)
        for reader in (ring, Keyring.from_file(path)):
            assert [done(reader.unwrap(wrapped, b"")) for wrapped in sealed.values()] == [b"secret"] * 4
        assert os.listdir(path.parent) == [path.name]

    def test_removing_destroys(self, path: Path) -> None:
        """A removed key is gone from memory and file, and what it sealed never opens again."""
        ring = Keyring.create_file(path)
        old = ring.names[0]
        sealed, text = done(ring.wrap(b"secret", b"")), path.read_text().split(" ")[-1].strip()
        ring.add()
        ring.remove(old)
        assert old not in ring.names
        assert old not in path.read_text()
        assert text not in path.read_text()
        for reader in (ring, Keyring.from_file(path)):
            with pytest.raises(ConfigurationError, match=old):
                done(reader.unwrap(sealed, b""))
        assert set(done(ring.derive("x"))) == set(ring.names)

    def test_removing_through_a_link_destroys_too(self, path: Path) -> None:
        """A key file reached through a link is itself rewritten: a retired key does not live on behind the link."""
        old = Keyring.create_file(path).names[0]
        link = path.with_name("link")
        link.symlink_to(path)
        ring = Keyring.from_file(link)
        new = ring.add()
        ring.remove(old)
        assert old not in path.read_text()
        assert new in path.read_text()
        assert link.is_symlink()

    @pytest.mark.parametrize("kind", ["memory", "file"])
    def test_the_newest_and_the_unknown_are_not_removed(self, path: Path, kind: str) -> None:
        """The key that seals cannot be removed, nor one that is not there; nothing changes."""
        ring = Keyring.generate() if kind == "memory" else Keyring.create_file(path)
        newest = ring.names[-1]
        with pytest.raises(ConfigurationError, match="newest"):
            ring.remove(newest)
        with pytest.raises(ConfigurationError, match="holds no key"):
            ring.remove("nobody")
        assert ring.names == (newest,)
        ring.add()
        ring.remove(newest)
        assert len(ring.names) == 1

    def test_another_process_is_followed(self, path: Path) -> None:
        """Keys that another keyring adds to the file, or removes, count here from the next call on."""
        ring = Keyring.create_file(path)
        other = Keyring.from_file(path)
        old = ring.names[0]
        name = other.add()
        sealed = done(other.wrap(b"secret", b""))
        assert done(ring.unwrap(sealed, b"")) == b"secret"
        assert (done(ring.wrap(b"", b"")))[2 : 2 + len(name)].decode() == name
        other.remove(old)
        assert set(done(ring.derive("x"))) == {name}
        assert ring.names == (name,)

    def test_changes_at_the_same_moment_are_followed(self, path: Path) -> None:
        """Two changes within a tick of the file system's clock are both seen."""
        for _ in range(20):
            path.unlink(missing_ok=True)
            ring = Keyring.create_file(path)
            other = Keyring.from_file(path)
            other.add()
            other.add()
            assert tuple(done(ring.derive("x"))) == other.names

    def test_a_file_that_went_away_changes_nothing(self, path: Path) -> None:
        """A running process goes on with the keys it has when the file is out of reach, but changes none."""
        ring = Keyring.create_file(path)
        path.unlink()
        assert done(ring.unwrap(done(ring.wrap(b"secret", b"")), b"")) == b"secret"
        with pytest.raises(ConfigurationError, match="does not exist"):
            ring.add()
        assert os.listdir(path.parent) == []

    def test_a_file_that_was_broken_is_refused_each_time(self, path: Path) -> None:
        """A key file that was made unreadable is dealt with the same way at every call, not only at the first."""
        ring = Keyring.create_file(path)
        path.unlink()
        write(path, "rubbish, and longer than before" * 9)
        outcomes: list[type[object]] = []
        for _ in range(3):
            try:
                outcomes.append(type(done(ring.wrap(b"", b""))))
            except ConfigurationError as error:
                outcomes.append(type(error))
        assert len(set(outcomes)) == 1

    def test_a_key_is_not_named_before_it_can_seal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another thread that seals while a key is being added uses a key that is ready."""
        ring = Keyring.generate()
        names: list[str] = []

        def meanwhile(secret: bytes, label: str) -> bytes:
            if label == "wrap":
                done(ring.wrap(b"secret", b""))  # as another thread would at this very moment
                names.extend(ring.names)
            return subkey(secret, label)

        monkeypatch.setattr("cloister.keyring.subkey", meanwhile)
        ring.add()
        assert names


class TestTogether:
    def test_threads_lose_no_key(self, path: Path) -> None:
        """Threads that add keys to one file each get theirs in, or a clear error, and none is lost."""
        Keyring.create_file(path)
        added: list[str] = []

        def work() -> None:
            ring = Keyring.from_file(path)
            for _ in range(4):
                added.append(insist(ring.add))

        in_threads([work] * 4)
        assert len(added) == len(set(added)) == 16
        assert set(added) < set(Keyring.from_file(path).names)
        assert len(Keyring.from_file(path).names) == 17
        assert os.listdir(path.parent) == [path.name]

    def test_processes_lose_no_key(self, path: Path) -> None:
        """Processes that add keys to one file each get theirs in, and none is lost."""
        Keyring.create_file(path)
        script = (
            "import sys\nfrom cloister import ConfigurationError, Keyring\nring = Keyring.from_file(sys.argv[1])\n"
            "added = 0\nfor _ in range(200_000):\n    try:\n        ring.add()\n        added += 1\n"
            "    except ConfigurationError as error:\n        assert 'another process' in str(error), error\n"
            "    if added == 4:\n        sys.exit(0)\nsys.exit(1)"
        )
        environ = {**os.environ, "PYTHONPATH": str(Path(cloister.__file__).parent.parent)}
        command = [sys.executable, "-c", script, str(path)]
        processes = [subprocess.Popen(command, env=environ, stderr=subprocess.PIPE) for _ in range(3)]
        assert [process.communicate(timeout=60)[1] for process in processes] == [b""] * 3
        assert [process.returncode for process in processes] == [0] * 3
        assert len(Keyring.from_file(path).names) == 13

    def test_a_lock_left_behind_is_a_clear_error(self, path: Path) -> None:
        """After a crash while changing keys the error names the file to delete; reading goes on meanwhile."""
        ring = Keyring.create_file(path)
        lock = path.with_name(path.name + ".lock")
        lock.touch()
        for change in (ring.add, lambda: ring.remove("a")):
            with pytest.raises(ConfigurationError, match="another process") as caught:
                change()
            assert str(lock) in str(caught.value)
        assert lock.exists()
        assert Keyring.from_file(path).names == ring.names
        lock.unlink()
        ring.add()
        assert not lock.exists()

    def test_a_failed_change_gives_the_lock_back(self, path: Path) -> None:
        """A change that was refused, or failed, does not keep others from changing keys."""
        ring = Keyring.create_file(path)
        with pytest.raises(ConfigurationError, match="holds no key"):
            ring.remove("nobody")
        ring.add()
        assert os.listdir(path.parent) == [path.name]

    def test_a_lock_that_someone_deleted_is_no_failure(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """If the lock is deleted by hand while keys change, as its error suggests, the change still succeeds."""
        ring = Keyring.create_file(path)
        overwrite = files.overwrite

        def helpful(target: Path, data: bytes) -> None:
            target.with_name(target.name + ".lock").unlink()
            overwrite(target, data)

        monkeypatch.setattr(files, "overwrite", helpful)
        assert ring.add() in Keyring.from_file(path).names

    def test_a_folder_that_cannot_be_written_is_a_clear_error(self, path: Path) -> None:
        """Where no lock can be made, as on a read-only mount, the error is one of ours and says so."""
        folder = path.parent / "mounted"
        folder.mkdir()
        ring = Keyring.create_file(folder / path.name)
        (folder / path.name).unlink()
        folder.rmdir()
        with pytest.raises(ConfigurationError, match=path.name):
            ring.add()


class TestFullDisk:
    @pytest.fixture
    def full(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", refuse)

    @pytest.fixture
    def ring(self, path: Path) -> Keyring:
        return Keyring.create_file(path)

    def test_keeps_the_old_file(self, path: Path, ring: Keyring, full: None) -> None:
        """A change that cannot be written leaves file and keyring as they were."""
        before, names = path.read_bytes(), ring.names
        with pytest.raises((ConfigurationError, OSError)):
            ring.add()
        assert path.read_bytes() == before
        assert ring.names == names == Keyring.from_file(path).names

    def test_leaves_no_copy_of_the_keys(self, path: Path, ring: Keyring, full: None) -> None:
        """What was half written is deleted: it holds all the master keys."""
        with pytest.raises((ConfigurationError, OSError)):
            ring.add()
        assert os.listdir(path.parent) == [path.name]

    def test_is_a_clear_error(self, path: Path, ring: Keyring, full: None) -> None:
        """The error is one of ours and names the file."""
        with pytest.raises(ConfigurationError, match=path.name):
            ring.add()


class TestKeys:
    @pytest.mark.parametrize("size", [0, 1, 16, 31, 33, 64])
    def test_have_256_bits(self, size: int) -> None:
        """A key of another length is refused."""
        with pytest.raises(ConfigurationError, match="32"):
            Keyring({"a": bytes(size)})

    @pytest.mark.parametrize(
        "name", ["", "a b", "a:b", "a,b", "a/b", "a\n", "\xe9", "\u0661", "a" * 65, "-", "#a", "a="]
    )
    def test_have_plain_names(self, name: str) -> None:
        """A name that could not be written to a file and read back is refused."""
        with pytest.raises(ConfigurationError, match="name"):
            Keyring({name: KEY})

    def test_are_needed(self) -> None:
        """A keyring without any key is refused."""
        with pytest.raises(ConfigurationError, match="at least one key"):
            Keyring({})

    @given(
        st.dictionaries(
            st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9_-]{0,63})", fullmatch=True),
            st.binary(min_size=32, max_size=32),
            min_size=1,
            max_size=5,
        )
    )
    def test_survive_file_and_environment(
        self, tmp_path_factory: pytest.TempPathFactory, keys: dict[str, bytes]
    ) -> None:
        """Any names and keys come back from file and environment, in their order."""
        path = tmp_path_factory.mktemp("keys") / "keys"
        write(path, "".join(f"{name} {base64.b64encode(key).decode()}\n" for name, key in keys.items()))
        environ = {"CLOISTER_KEYS": ",".join(f"{name}:{base64.b64encode(key).decode()}" for name, key in keys.items())}
        for ring in (Keyring.from_file(path), Keyring.from_env(environ)):
            assert ring._material() == keys  # what is under test
            assert ring.names == tuple(keys)

    def test_are_random(self) -> None:
        """No two generated keys, nor their names, are the same."""
        rings = [Keyring.generate() for _ in range(100)]
        assert len({key for ring in rings for key in done(ring.derive("x")).values()}) == 100
        assert len({name for ring in rings for name in ring.names}) == 100

    async def test_are_not_interchangeable_between_rings(self) -> None:
        """What one ring wrapped under a name does not open in a ring whose key of that name is another."""
        wrapped = await Keyring({"a": KEY}).wrap(b"secret", b"")
        with pytest.raises(IntegrityError):
            await Keyring({"a": bytes(32)}).unwrap(wrapped, b"")

    async def test_derive_gives_one_key_per_master_key(self) -> None:
        """Derived keys have 32 bytes, differ by label and master key, and are none of the master keys."""
        ring = Keyring({"a": KEY, "b": bytes(32)})
        derived = [*(await ring.derive("x")).values(), *(await ring.derive("y")).values()]
        assert list(await ring.derive("x")) == ["a", "b"]
        assert len({*derived, KEY, bytes(32)}) == 6
        assert {len(key) for key in derived} == {32}


class TestSecrecy:
    def test_names_show_and_keys_do_not(self, path: Path) -> None:
        """The repr shows names, so that operators can tell keys apart, and no part of a key."""
        ring = Keyring({"a": KEY})
        assert f"{ring!r} {ring} {[ring]}" == "Keyring(a) Keyring(a) [Keyring(a)]"

    @pytest.mark.parametrize("travel", [pickle.dumps, copy.copy, copy.deepcopy])
    def test_keys_do_not_travel(self, travel: Callable[[object], Any]) -> None:
        """A keyring can be neither pickled nor copied."""
        with pytest.raises(TypeError, match="master keys"):
            travel(Keyring({"a": KEY}))

    async def test_errors_show_no_key(self, path: Path) -> None:
        """The traceback of anything that a keyring refuses shows no part of a key."""
        write(path, f"a {TEXT}\n")
        ring = Keyring.from_file(path)
        refusals: list[BaseException] = []
        for change in (lambda: ring.remove("a"), lambda: ring.remove("b"), lambda: Keyring({"a": KEY + b"x"})):
            with pytest.raises(ConfigurationError) as caught:
                change()
            refusals.append(caught.value)
        for error in refusals:
            refuses_in_words(error)


def refuses_in_words(error: BaseException) -> None:
    """Check that *error*, with its traceback, is one line of plain words and holds no part of a key."""
    assert str(error).isprintable()
    assert len(str(error)) < 500
    shown = "".join(traceback.format_exception(error))
    lines = [line for line in shown.splitlines() if not line.startswith("  ")]  # the source of tests is no leak
    forms = (TEXT, BARE, OTHER, KEY.hex(), repr(KEY)[2:-1])
    pieces = {form[start : start + 12] for form in forms for start in range(0, len(form) - 12, 4)}
    assert not [piece for piece in pieces if piece in "\n".join(lines)]


def insist(change: Callable[[], str]) -> str:
    """Change keys while others do, as the error suggests: by trying again."""
    for _ in range(200_000):
        try:
            return change()
        except ConfigurationError as error:
            assert "another process" in str(error)  # noqa: PT017 - any other is a failure
    raise AssertionError("the lock was never free")


def in_threads(work: list[Callable[[], None]]) -> None:
    failed: list[BaseException] = []

    def run(one: Callable[[], None]) -> None:
        try:
            one()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            failed.append(error)

    threads = [threading.Thread(target=run, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failed == []
