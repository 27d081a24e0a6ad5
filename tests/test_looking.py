"""Looks at long texts: whose they are waits for them, and nobody else does for long."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from tests.fakes import opened
from tests.test_masking import Rule

from cloister import looking, window
from cloister.errors import RateLimited
from cloister.model import Owner
from cloister.scrub import Scrub, Span

ANA, BEN = Owner(None, "ana"), Owner(None, "ben")
LONG, HUGE = 30_000, 300_000


class Looks:
    """Look until told to stop; know which looks have begun."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.go = threading.Event()
        self.known = threading.Condition()

    def __call__(self, name: str) -> Callable[[], str]:
        def look() -> str:
            with self.known:
                self.begun.append(name)
                self.known.notify_all()
            assert self.go.wait(10)
            return name

        return look

    async def until(self, *names: str) -> None:
        """Wait until all of these have begun, and give others time to begin that would."""

        def there() -> bool:
            with self.known:
                return self.known.wait_for(lambda: {*names} <= {*self.begun}, 10)

        assert await asyncio.to_thread(there)
        for _ in range(100):
            await asyncio.sleep(0)


@pytest.fixture
async def looks() -> AsyncIterator[Looks]:
    made = Looks()
    yield made
    made.go.set()


async def test_one_of_an_owners_at_a_time(looks: Looks) -> None:
    """Of one owner's texts one is looked at, and the next behind it; another owner's meanwhile."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(looking.beside(ANA, LONG, looks(f"ana {n}"))) for n in range(5)]
        tasks.append(group.create_task(looking.beside(BEN, LONG, looks("ben"))))
        await looks.until("ana 0", "ben")
        assert looks.begun == ["ana 0", "ben"]
        looks.go.set()
    assert [task.result() for task in tasks] == [*[f"ana {n}" for n in range(5)], "ben"]


async def test_what_takes_seconds_keeps_no_long_one_waiting(looks: Looks) -> None:
    """Huge texts are looked at one by one, beside the long ones, of which two have a thread at once."""
    async with asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(looking.beside(Owner(None, f"huge {number}"), HUGE, looks(f"huge {number}")))
            group.create_task(looking.beside(Owner(None, f"long {number}"), LONG, looks(f"long {number}")))
        await looks.until("huge 0", "long 0", "long 1")
        assert sorted(looks.begun) == ["huge 0", "long 0", "long 1"]
        looks.go.set()
    assert len(looks.begun) == 6


async def test_who_leaves_while_waiting_is_not_looked_at(looks: Looks) -> None:
    """A look that nobody waits for any more does not begin, and those behind it do."""
    first = asyncio.create_task(looking.beside(ANA, LONG, looks("first")))
    left = asyncio.create_task(looking.beside(ANA, LONG, looks("left")))
    last = asyncio.create_task(looking.beside(ANA, LONG, looks("last")))
    await looks.until("first")
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    looks.go.set()
    assert [await first, await last] == ["first", "last"]
    assert looks.begun == ["first", "last"]


async def test_what_waits_is_bounded(looks: Looks) -> None:
    """Beyond so many characters of an owner's nothing new is taken; what was begun before goes on, and others do."""
    size = looking._MOST // 2 + 1
    begun = [asyncio.create_task(looking.beside(ANA, size, looks(name), begins=True)) for name in ("first", "second")]
    await looks.until("first")
    with pytest.raises(RateLimited) as refused:
        await looking.beside(ANA, LONG, looks("third"), begins=True)
    assert refused.value.retry_after > timedelta(0)
    went_on = asyncio.create_task(looking.beside(ANA, LONG, looks("an answer")))
    ben = asyncio.create_task(looking.beside(BEN, LONG, looks("ben"), begins=True))
    await looks.until("ben")
    looks.go.set()
    assert [await task for task in (*begun, went_on, ben)] == ["first", "second", "an answer", "ben"]
    assert await looking.beside(ANA, LONG, looks("again"), begins=True) == "again"


async def test_long_texts_of_one_user_that_pile_up_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sends more than is looked at is told to wait, before a model is asked; those before are looked at."""
    monkeypatch.setattr(looking, "_MOST", 60_000)
    asked, go = threading.Event(), threading.Event()

    def find(text: str) -> Iterator[Span]:
        asked.set()
        assert go.wait(30)
        return iter(())

    async with opened("memory://", scrub=Scrub(detectors=[Rule(find)]), context_tokens=1 << 20) as house:
        given = [{"role": "user", "content": "stuck " * 5_000}]
        stuck = [asyncio.create_task(house.ana.start(items=given)) for _ in range(3)]
        try:
            assert await asyncio.to_thread(asked.wait, 10)
            session = await house.ana.start()
            for way in (house.ana.start(items=given), session.append(given), session.send("stuck " * 5_000)):
                with pytest.raises(RateLimited):
                    await way
        finally:
            go.set()
        assert len(await asyncio.gather(*stuck)) == 3


async def test_a_look_knows_where_it_is() -> None:
    """What it raises reaches the caller, and context variables are the caller's."""
    where = contextvars.ContextVar("where", default="nowhere")
    where.set("here")
    assert await looking.beside(ANA, LONG, where.get) == "here"
    with pytest.raises(ZeroDivisionError):
        await looking.beside(ANA, LONG, lambda: 1 / 0)


async def test_many_long_texts_of_one_user_keep_nobody_else_waiting() -> None:
    """Ana's texts take for ever, a dozen at once; Ben's, as long as hers, is searched and answered."""
    asked, go = threading.Event(), threading.Event()

    def find(text: str) -> Iterator[Span]:
        if "stuck" in text:
            asked.set()
            assert go.wait(30)
        return iter(())

    async with opened("memory://", scrub=Scrub(detectors=[Rule(find)]), context_tokens=1 << 20) as house:
        anas = [await house.ana.start() for _ in range(12)]
        stuck = [asyncio.create_task(session.send("stuck " * 5_000)) for session in anas]
        try:
            assert await asyncio.to_thread(asked.wait, 10)
            async with asyncio.timeout(10):
                reply = await (await house.ben.start()).send("word " * 5_000)
            assert reply.text.startswith("You said: word")
        finally:
            go.set()
        assert len(await asyncio.gather(*stuck)) == 12


async def test_a_turn_lets_others_go_on_between_its_parts() -> None:
    """Opening a session, fitting it to the window and remembering what was said are steps of their own."""
    rounds = 0
    loop = asyncio.get_running_loop()

    def count() -> None:
        nonlocal rounds
        rounds += 1
        loop.call_soon(count)

    async with opened("memory://") as house:  # a store that never waits
        session = await house.ana.start()
        house.provider.answer = lambda request: str(rounds)
        before = int((await session.send("Hello.")).text)
        loop.call_soon(count)
        asked = int((await session.send("Hello again.")).text)
    assert (before, asked) == (0, 3)  # one of them is the provider's


async def test_long_tools_are_counted_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte of tools takes half a second to count for the window: nobody else waits for it."""
    threads: list[bool] = []
    counted = window.options_tokens

    def count(*given: Any) -> int:
        threads.append(threading.current_thread() is threading.main_thread())
        return counted(*given)

    monkeypatch.setattr(window, "options_tokens", count)
    async with opened("memory://", context_tokens=1 << 20) as house:
        session = await house.ana.start()
        for length in (100, LONG):
            function = {"name": "look", "description": "a" * length, "parameters": {}}
            await session.send("Hello.", options={"tools": [{"type": "function", "function": function}]})
    assert threads == [True, False]
