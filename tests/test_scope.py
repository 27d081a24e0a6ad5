"""The scope: whom a task works for, wherever it was started, and never somebody else."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import random
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from cloister import NoScope, ScopeClosed, current
from cloister.model import Owner
from cloister.scope import Scope, open_scope

ANA = Scope(Owner(None, "ana"), "cs_ana")
BEN = Scope(Owner(None, "ben"), "cs_ben")


def seen() -> Scope | str:
    """Give the current scope, or the name of what refuses it."""
    try:
        return current()
    except (NoScope, ScopeClosed) as error:
        return type(error).__name__


async def test_is_there_inside_and_nowhere_else() -> None:
    """Inside the block the scope is current; before and after there is none."""
    assert seen() == "NoScope"
    with open_scope(ANA) as scope:
        assert scope is ANA
        assert current() is ANA
    assert seen() == "NoScope"


async def test_nests() -> None:
    """An inner block shadows the outer one and gives it back, after an error too."""
    with open_scope(ANA):
        with open_scope(BEN):
            assert current() is BEN
        assert current() is ANA
        with pytest.raises(ZeroDivisionError), open_scope(BEN):
            _ = 1 / 0
        assert current() is ANA
    assert seen() == "NoScope"


async def test_reaches_tasks_and_threads_started_inside() -> None:
    """Tasks, groups and `asyncio.to_thread` started in the block have its scope."""

    async def look() -> Scope | str:
        await asyncio.sleep(0)
        return seen()

    with open_scope(ANA):
        assert await asyncio.create_task(look()) is ANA
        assert set(await asyncio.gather(look(), look())) == {ANA}
        assert await asyncio.to_thread(seen) is ANA
        async with asyncio.TaskGroup() as group:
            task = group.create_task(look())
        assert task.result() is ANA


async def test_does_not_reach_a_thread_that_did_not_copy_it() -> None:
    """A pool's thread has no scope, and not the one of whoever used the thread before."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as pool:
        with open_scope(ANA):
            copied = contextvars.copy_context()
            assert await loop.run_in_executor(pool, copied.run, seen) is ANA
            assert await loop.run_in_executor(pool, seen) == "NoScope"
        with open_scope(BEN):
            assert await loop.run_in_executor(pool, seen) == "NoScope"
            assert await asyncio.to_thread(seen) is BEN
        assert await loop.run_in_executor(pool, copied.run, seen) == "ScopeClosed"


async def test_a_task_that_outlives_its_block_is_told() -> None:
    """A task started inside finds the scope closed when the block has ended, and never a later one."""
    go_on = asyncio.Event()

    async def late() -> list[Scope | str]:
        before = seen()
        await go_on.wait()
        return [before, seen()]

    with open_scope(ANA):
        task = asyncio.create_task(late())
        await asyncio.sleep(0)
    with open_scope(BEN):
        go_on.set()
        assert await task == [ANA, "ScopeClosed"]
        assert current() is BEN


async def test_an_inner_block_that_ended_is_not_replaced_by_the_outer_one() -> None:
    """A task of an inner block finds it closed while the outer one is still open: that one is somebody else's."""
    go_on = asyncio.Event()

    async def late() -> Scope | str:
        await go_on.wait()
        return seen()

    with open_scope(ANA):
        with open_scope(BEN):
            task = asyncio.create_task(late())
        go_on.set()
        assert await task == "ScopeClosed"


async def test_a_late_task_can_open_its_own() -> None:
    """A task that outlived its block may open a scope of its own, and is back at the closed one after it."""

    async def late(block_ended: asyncio.Event) -> list[Scope | str]:
        await block_ended.wait()
        with open_scope(BEN):
            inside = seen()
        return [inside, seen()]

    ended = asyncio.Event()
    with open_scope(ANA):
        task = asyncio.create_task(late(ended))
    ended.set()
    assert await task == [BEN, "ScopeClosed"]


async def test_a_late_task_that_opened_its_own_is_not_back_at_an_outer_one() -> None:
    """After a scope of its own, a task of an ended inner block finds that closed, not the outer one, still open."""
    ended = asyncio.Event()

    async def late() -> Scope | str:
        await ended.wait()
        with open_scope(Scope(BEN.owner, "cs_other")):
            pass
        return seen()

    with open_scope(ANA):
        with open_scope(BEN):
            task = asyncio.create_task(late())
        ended.set()
        assert await task == "ScopeClosed"


async def test_callbacks_run_in_the_scope_they_were_made_in() -> None:
    """A callback of the loop has the scope in which it was scheduled, closed by the time it runs."""
    found: list[Scope | str] = []
    loop = asyncio.get_running_loop()
    with open_scope(ANA):
        loop.call_soon(lambda: found.append(seen()))
    with open_scope(BEN):
        await asyncio.sleep(0)
    assert found == ["ScopeClosed"]


async def test_a_cancelled_task_closes_its_scope() -> None:
    """Cancelling a task inside its block closes the scope for everything it started."""
    inside = asyncio.Event()
    children: list[asyncio.Task[Scope | str]] = []
    go_on = asyncio.Event()

    async def child() -> Scope | str:
        await go_on.wait()
        return seen()

    async def work() -> None:
        with open_scope(ANA):
            children.append(asyncio.create_task(child()))
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    assert await children[0] == "ScopeClosed"


def test_a_generator_finalised_elsewhere_closes_its_scope() -> None:
    """A generator whose block is ended in another context raises nothing, and its scope is over everywhere."""

    def words() -> Iterator[Scope | str]:
        with open_scope(ANA):
            yield seen()
            yield seen()

    first = contextvars.copy_context()
    generator = words()
    assert first.run(next, generator) is ANA
    contextvars.copy_context().run(generator.close)  # type: ignore[attr-defined] # a generator has close()
    assert first.run(seen) == "ScopeClosed"
    assert seen() == "NoScope"


def test_a_generator_finalised_in_a_task_of_its_block_uncovers_nobody() -> None:
    """A task started inside a generator's block that finalises it is in a closed scope, not in the one around it."""

    def words() -> Generator[None, None, None]:
        with open_scope(BEN):
            yield

    def run() -> Scope | str:
        with open_scope(ANA):
            generator = words()
            next(generator)
            task = contextvars.copy_context()
            task.run(generator.close)
            return task.run(seen)

    assert contextvars.copy_context().run(run) == "ScopeClosed"


async def test_an_async_generator_finalised_by_the_loop_closes_its_scope() -> None:
    """An abandoned async generator, finalised by the loop in another task, leaves no open scope behind."""

    async def words() -> AsyncIterator[Scope | str]:
        with open_scope(ANA):
            yield seen()
            yield seen()

    async def start() -> Callable[[], Scope | str]:
        generator = words()
        assert await anext(generator) is ANA
        here = contextvars.copy_context()
        return lambda: here.run(seen)

    look = await asyncio.create_task(start())
    for _ in range(5):
        gc.collect()
        await asyncio.sleep(0)
    assert look() == "ScopeClosed"
    assert seen() == "NoScope"


def test_blocks_left_out_of_order_uncover_nobody() -> None:
    """When an outer block is left before an inner one, the inner one stays current: not whoever was before both."""

    def run() -> None:
        outermost, outer, inner = (open_scope(Scope(Owner(None, name), "")) for name in ("zoe", "ana", "ben"))
        outermost.__enter__()
        outer.__enter__()
        ben = inner.__enter__()
        outer.__exit__(None, None, None)
        assert seen() in (ben, "ScopeClosed")
        inner.__exit__(None, None, None)
        assert seen() != ben
        outermost.__exit__(None, None, None)
        assert seen() in ("NoScope", "ScopeClosed")

    contextvars.copy_context().run(run)


async def test_a_thousand_interleaved_tasks_see_only_their_own() -> None:
    """A thousand tasks that take turns, nest, hop threads and outlive blocks never see another's scope."""
    dice = random.Random(62)
    turns = [dice.randrange(1, 6) for _ in range(1_000)]
    wrong: list[object] = []

    async def work(number: int) -> None:
        mine = Scope(Owner(f"tenant {number % 7}", f"user {number}"), f"cs_{number}")
        await asyncio.sleep(0)
        with open_scope(mine):
            for turn in range(turns[number]):
                await asyncio.sleep(0)
                wrong.extend([] if seen() is mine else [number])
                inner = Scope(mine.owner, f"cs_{number}_{turn}")
                with open_scope(inner):
                    await asyncio.sleep(0)
                    found = await asyncio.create_task(look())
                    wrong.extend([] if found is inner else [number])
            if number % 50 == 0:
                wrong.extend([] if await asyncio.to_thread(seen) is mine else [number])
        wrong.extend([] if seen() == "NoScope" else [number])

    async def look() -> Scope | str:
        await asyncio.sleep(0)
        return seen()

    await asyncio.gather(*(work(number) for number in range(1_000)))
    assert wrong == []


def test_threads_do_not_share_a_scope() -> None:
    """A scope opened in a thread is that thread's alone."""
    both = threading.Barrier(2)
    found: dict[str, Scope | str] = {}

    def work(name: str, scope: Scope) -> None:
        with open_scope(scope):
            both.wait(10)
            found[name] = seen()
            both.wait(10)

    threads = [threading.Thread(target=work, args=item) for item in (("ana", ANA), ("ben", BEN))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == {"ana": ANA, "ben": BEN}
    assert seen() == "NoScope"


def test_hides_the_session_id() -> None:
    """The repr of a scope names the owner, not the session id."""
    assert "cs_ana" not in repr(ANA)
    assert "ana" in repr(ANA)


def test_a_block_cannot_be_entered_twice() -> None:
    """A scope's block is used once: an object kept for the next user does not open again."""
    block = open_scope(ANA)
    with block:
        pass
    with pytest.raises((RuntimeError, AttributeError)):
        block.__enter__()
    assert seen() == "NoScope"
