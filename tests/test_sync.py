"""The synchronous cloister: the same calls, from any thread, across a fork, and never inside a loop."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister import (
    Cloister,
    ConfigurationError,
    Keyring,
    Offline,
    SessionExpired,
    SessionNotFound,
    current,
)
from cloister.stores.base import every_entry
from cloister.testing import FakeClock


@pytest.fixture(params=["memory://", "sqlite:///{}/chats.db"])
def cloister(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cloister]:
    with Cloister.open(request.param.format(tmp_path), provider="offline") as cloister:
        yield cloister


def test_two_people_are_apart(cloister: Cloister) -> None:
    """What Ana said is not known to Ben, and her session is not there for him."""
    ana, ben = cloister.user("ana").start(), cloister.user("ben").start()
    ana.send("My name is Ana.")
    assert "Ana" in ana.send("What is my name?").text
    assert "Ana" not in ben.send("What is my name?").text
    with pytest.raises(SessionNotFound):
        cloister.user("ben").resume(ana.id)


def test_every_call_of_a_session(cloister: Cloister) -> None:
    """A session is started, streamed, appended to, described, hidden from, read, listed, exported, ended and erased."""
    ana = cloister.user("ana")
    session = ana.start(title="first", system="Be kind.", metadata={"a": "b"})
    with session.stream("My name is Ana.") as stream:
        text = "".join(stream)
    assert stream.reply.text == text
    assert stream.reply.session is session
    session.append({"role": "user", "content": "by the way"})
    session.update(title="second")
    assert (session.title, session.metadata, session.version) == ("second", {"a": "b"}, 4)
    items = session.history()
    session.hide(items[1].id)
    assert len(session.history()) == len(items) - 1
    assert [each.id for each in ana.sessions()] == [session.id]
    assert len(list(ana.export())) == 1 + len(items)
    session.end()
    with pytest.raises(SessionExpired):
        session.send("again")
    ana.start()
    assert ana.end_all() == 1
    assert ana.erase().sessions == 2
    assert cloister.sweep() == 0


def test_own_model_whole_and_streamed(cloister: Cloister) -> None:
    """A turn takes a synchronous client's answer, whole or in chunks; a stream that is left stores nothing."""
    session = cloister.user("ana").start()
    with session.turn("one") as turn:
        assert turn.chat() == {"messages": [{"role": "user", "content": "one"}]}
        assert turn.finish("whole").text == "whole"
    with session.turn("two") as turn:
        assert list(turn.stream(iter(["in. ", "parts"]))) == ["in. ", "parts"]
    assert turn.reply.text == "in. parts"
    with session.turn("three") as turn:
        next(iter(turn.stream(iter(["left ", "early"]))))
    with pytest.raises(RuntimeError):
        _ = turn.reply
    assert [item.text for item in session.history()] == ["one", "whole", "two", "in. parts"]


def test_an_error_leaves_the_block(cloister: Cloister) -> None:
    """An exception inside the block of a turn comes out of it, and nothing is stored."""
    session = cloister.user("ana").start()
    with pytest.raises(ZeroDivisionError), session.turn("one"):
        _ = 1 // 0
    assert session.history() == []
    assert session.send("next").text


def test_repeats_under_a_key(cloister: Cloister) -> None:
    """An idempotency key gives the stored reply, streamed too."""
    session = cloister.user("ana").start()
    reply = session.send("one", idempotency_key="k")
    with session.stream("one", idempotency_key="k") as stream:
        assert "".join(stream) == reply.text
    assert session.version == 2


def test_renews() -> None:
    """Whoever comes too late goes on in a new session, which the reply carries."""
    clock = FakeClock()
    with Cloister.open("memory://", provider="offline", clock=clock) as cloister:
        session = cloister.user("ana").start()
        assert session.expires_at is not None
        clock.forward(session.expires_at - clock.now)
        reply = session.send("hello")
        assert reply.renewed
        assert reply.session.id != session.id
        assert reply.session.send("again").renewed is False


def test_many_threads(cloister: Cloister) -> None:
    """Threads share a cloister: turns of one session are serialised, and scopes stay with their threads."""
    session = cloister.user("ana").start()
    seen = []

    def work(name: str) -> None:
        own = cloister.user(name).start()
        with own.scope():
            session.send(f"hello from {name}")
            own.send(f"My name is {name}.")
            seen.append((name, current().owner.user, own.history()[0].text))

    threads = [threading.Thread(target=work, args=(f"user{number}",)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == sorted((name, name, f"My name is {name}.") for name, _, _ in seen)
    assert len(seen) == 12
    texts = [item.text for item in session.history()]
    assert len(texts) == 24
    assert all(text.startswith("hello from") for text in texts[::2])


def test_refuses_inside_a_loop(cloister: Cloister) -> None:
    """Inside a running event loop each call says what to use instead."""
    session = cloister.user("ana").start()

    async def inside() -> None:
        with pytest.raises(ConfigurationError, match="AsyncCloister"):
            session.send("hello")
        with pytest.raises(ConfigurationError, match="AsyncCloister"):
            Cloister.open("memory://").__enter__()

    asyncio.run(inside())
    assert session.send("hello").text


def test_refuses_when_closed() -> None:
    """Outside its block a cloister says how to open it."""
    cloister = Cloister.open("memory://")
    with pytest.raises(ConfigurationError, match="with Cloister"):
        cloister.user("ana")
    with cloister:
        session = cloister.user("ana").start()
    with pytest.raises(ConfigurationError, match="with Cloister"):
        session.history()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("url", ["sqlite", "redis", "postgres", "cluster"], indirect=True)
def test_works_after_a_fork(url: str) -> None:
    """A child opens the store again by itself, with a chain of its own; parent and child lose nothing of each other."""
    with Cloister.open(url, provider="offline", keyring=Keyring.generate()) as cloister:
        session = cloister.user("ana").start()
        session.send("before")

        async def writers() -> set[str]:
            return {entry.writer async for entry in every_entry(cloister.inner.store)}

        own = cloister.run(writers())
        child = os.fork()
        if child == 0:
            code = 1
            try:
                session.send("in the child")
                code = 0 if len(session.history()) == 4 else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        session.send("after")
        said = [item.text for item in session.history() if item.role == "user"]
        assert said == ["before", "in the child", "after"]
        assert len(cloister.run(writers())) > len(own)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_memory_does_not_cross_a_fork() -> None:
    """A store in memory is not shared with a child, which is told so instead of finding it empty."""
    with Cloister.open("memory://", provider=Offline()) as cloister:
        session = cloister.user("ana").start()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                session.history()
            except ConfigurationError:
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert session.history() == []
