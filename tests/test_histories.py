"""Turns and reads of several processes at once, on every store: nothing is lost, doubled, reordered or made up."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot
from tests.fakes import opened, told
from tests.histories import Event, answer_to, ask, problems, read
from tests.servers import Cluster, running_cluster, until

from cloister import Keyring
from cloister.audit import verify
from cloister.errors import SessionBusy
from cloister.sessions import place_of
from cloister.stores.memory import MemoryStore

ROOT = Path(__file__).parent.parent
SHARED = 3  # sessions, in which all take turns


# --- the checker itself -----------------------------------------------------------------------------------------------


def _history(*questions: str, unknown: str = "") -> list[Event]:
    """One who asks these one after the other, and hears nothing of the *unknown* one."""
    events = []
    for at, text in enumerate(questions):
        events.append(Event("asked", "s", at, text))
        what, said = ("refused", []) if text == unknown else ("answered", [answer_to(text)])
        events.append(Event(what, "s", at + 0.5, text, at, said))  # type: ignore[arg-type]
    return events


def _stored(*questions: str) -> dict[str, list[str]]:
    return {"s": [text for said in questions for text in (said, answer_to(said))]}


def _seen(at: float, *questions: str) -> Event:
    return Event("read", "s", at + 0.1, "", at, _stored(*questions)["s"])


def test_the_checker_finds_each_fault() -> None:
    """Lost, doubled, reordered, phantom, crossed and mismatched turns are each named, and so are wrong reads."""
    events = _history("a", "b", "c", unknown="b")
    assert problems(events, _stored("a", "b", "c")) == problems(events, _stored("a", "c")) == []
    assert problems(events, _stored("a", "b")) == ["lost: c"]
    assert problems(events, _stored("a", "a", "c")) == ["doubled: a"]
    assert problems(events, _stored("c", "a")) == ["reordered: c"]
    assert problems(events, _stored("a", "x", "c")) == ["phantom: x"]
    assert problems(events, {**_stored("a", "c"), "t": ["x", answer_to("x")]}) == ["phantom: x"]
    assert problems(events, {"s": ["a", answer_to("b"), "c", answer_to("c")]}) == ["mismatched: a"]
    assert problems(events, {"s": [*_stored("a", "c")["s"], "b"]})[0] == "mismatched: b"
    bens = Event("answered", "s", 4, "d", 3, [answer_to("ben's")])
    assert problems([*events, Event("asked", "s", 3, "d"), bens], _stored("a", "c", "d")) == ["crossed: d"]
    good, stored = _seen(1, "a"), _stored("a", "c")
    assert problems([*events, good], stored) == []
    assert problems([*events, _seen(1.1, "a", "b")], stored) == ["a read showed what is not stored"]
    assert problems([*events, _seen(4, "a")], stored) == ["a read missed: c"]
    assert problems([*events, _seen(1, "a", "c")], stored) == ["a read foresaw: c"]


_FAULTS = ("lost", "doubled", "reordered", "phantom")


@given(st.integers(2, 12), st.sampled_from(_FAULTS), st.data())
def test_the_checker_finds_a_fault_anywhere(count: int, fault: str, data: st.DataObject) -> None:
    """Wherever one turn of a right history is dropped, repeated, moved or made up, the checker says which it was."""
    questions = [f"q{n}" for n in range(count)]
    assert problems(_history(*questions), _stored(*questions)) == []
    at = data.draw(st.integers(0, count - 1))
    kept = list(questions)
    if fault == "lost":
        del kept[at]
    elif fault == "doubled":
        kept.insert(data.draw(st.integers(0, count)), kept[at])
    elif fault == "reordered":
        kept.insert(data.draw(st.sampled_from([n for n in range(count) if n != at])), kept.pop(at))
    else:
        kept.insert(at, "never asked")
    assert fault in {found.partition(":")[0] for found in problems(_history(*questions), _stored(*kept))}


# --- several processes ------------------------------------------------------------------------------------------------


class Talkers:
    """Processes that take turns in sessions of Ana's and Ben's, and write down what they saw."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.keyring = Keyring.create_file(folder / "keys")
        self.sessions: dict[str, str] = {}
        self._processes: list[subprocess.Popen[str]] = []

    async def begin(self) -> None:
        """Start the sessions that all share."""
        async with opened(self.url, keyring=self.keyring) as house:
            for number in range(SHARED):
                user = ("ana", "ben")[number % 2]
                self.sessions[(await house.cloister.user(user).start()).id] = user

    def start(self, names: str, turns: int, workers: int = 3) -> None:
        paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
        for name in names:
            where = [self.url, str(self.folder), name, str(turns), str(workers)]
            given = [f"{user}={session}" for session, user in self.sessions.items()]
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.talker", *where, *given],
                    stderr=subprocess.PIPE,
                    text=True,
                    cwd=ROOT,
                    env={**os.environ, "PYTHONPATH": paths},
                )
            )

    def join(self, seconds: float = 100) -> None:
        """Wait for all, none of which may fail."""
        for process in self._processes:
            _, errors = process.communicate(timeout=seconds)
            assert process.returncode == 0, errors

    def stop(self) -> None:
        (self.folder / "stop").touch()

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()

    def events(self) -> list[Event]:
        lines = [line for path in self.folder.glob("*.log") for line in path.read_bytes().splitlines(keepends=True)]
        # What stands behind the last whole line was being written when a process died.
        return [msgspec.json.decode(line, type=Event) for line in lines if line.endswith(b"\n")]

    async def check(self, *, complete: bool = False) -> list[Event]:
        """Compare what was seen with what is stored, and verify the log; give what was seen."""
        events = self.events()
        async with opened(self.url, keyring=self.keyring) as house:
            stored = {
                session: await told(await house.cloister.user(user).resume(session))
                for session, user in self.sessions.items()
            }
            entries = await house.entries()
        assert problems(events, stored) == []
        assert verify(entries, {}).faults == []
        kept = sum(len(texts) for texts in stored.values()) // 2
        assert [entry.event for entry in entries].count("turn.committed") == kept
        answered = [event for event in events if event.what == "answered"]
        assert len(answered) == kept if complete else 0 < len(answered) <= kept
        return events


@pytest.fixture
def talkers(url: str, tmp_path: Path) -> Iterator[Talkers]:
    (tmp_path / "talk").mkdir()
    talkers = Talkers(tmp_path / "talk", url)
    yield talkers
    talkers.kill()


@pytest.mark.parametrize(
    ("url", "turns"),
    [("sqlite", 200), ("redis", 120), ("postgres", 120), ("pooler", 60), ("cluster", 60)],
    indirect=["url"],
)
async def test_processes_lose_and_cross_nothing(talkers: Talkers, turns: int) -> None:
    """Turns and reads of two processes in three shared sessions: each is there once, in order, for all to see."""
    await talkers.begin()
    await asyncio.to_thread(talkers.start, "xy", turns)
    await asyncio.to_thread(talkers.join)
    events = await talkers.check(complete=True)
    assert sum(event.what == "answered" for event in events) == 2 * turns
    assert sum(event.what == "read" for event in events) > turns / 10


async def test_cloisters_on_one_memory_lose_and_cross_nothing() -> None:
    """The same of two cloisters in one process, whose store is nowhere but in memory."""
    store, keyring, events = MemoryStore(), Keyring.generate(), list[Event]()
    async with opened(store, keyring=keyring) as one, opened(store, keyring=keyring) as other:
        sessions = [await one.ana.start(), await one.ben.start()]

        async def talk(name: int) -> None:
            for number in range(20):
                session = sessions[number % 2]
                there = await (one, other)[name % 2].cloister.user(session.owner.user).resume(session.id)
                with contextlib.suppress(SessionBusy):
                    await ask(events.append, there, f"{name} {number}")
                await read(events.append, there)

        await asyncio.gather(*map(talk, range(6)))
        assert problems(events, {session.id: await told(session) for session in sessions}) == []


# --- failover ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[Cluster]:
    """A cluster of which a test may kill a node."""
    with running_cluster() as cluster:
        yield cluster


async def test_a_failover_loses_nothing_that_was_acknowledged(own_cluster: Cluster, tmp_path: Path) -> None:
    """A primary is killed under the load of two processes: they go on, and nothing that was answered is lost.

    With wait=1, what was answered lies on a replica. What was not may be there or not, but once, and in order.
    """
    talkers = Talkers(tmp_path, f"redis+cluster://{own_cluster.hosts}?wait=1")
    try:
        await talkers.begin()
        slot = key_slot(f"{{{place_of(next(iter(talkers.sessions))):02x}}}".encode())
        victim = own_cluster.primary_of(slot)

        def answered() -> Counter[tuple[str, str]]:
            return Counter((event.session, event.question[0]) for event in talkers.events() if event.what == "answered")

        def went_on(before: Counter[tuple[str, str]]) -> bool:
            now = answered()
            return all(now[pair] >= before[pair] + 3 for pair in itertools.product(talkers.sessions, "xy"))

        def promoted() -> bool:
            with contextlib.suppress(LookupError):
                return own_cluster.primary_of(slot) is not victim
            return False

        def fail() -> None:
            talkers.start("xy", 100_000, workers=4)
            until(lambda: went_on(Counter()), "a load")
            victim.kill()
            until(promoted, "a new primary")
            victim.start()  # as a replica, without which wait=1 accepts nothing
            before = answered()
            until(lambda: went_on(before), "the cluster")
            talkers.stop()
            talkers.join()

        await asyncio.to_thread(fail)
        events = await talkers.check()
        assert any(event.what == "refused" for event in events), "nothing was ever refused: no primary was killed"
    finally:
        talkers.kill()
