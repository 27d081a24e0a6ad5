"""Whoever waits for a turn may be cancelled wherever it waits: the turn is whole or absent, nothing stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from tests.fakes import House, opened, pieces, told

from cloister.errors import SessionExpired, StoreUnavailable
from cloister.model import Limits
from cloister.session import Session

NOT_WAITING = Limits(turn_wait=timedelta(0))
MOST_WAITS = 60
When = Literal["before", "after", "twice"]


class Cancelling:
    """Await *work*, and cancel the task that does so at its wait number *at*.

    ``before`` what it waits for has begun to answer, ``after`` that is over but nobody has looked at it, or ``twice``:
    once more while it cleans up after the first time.
    """

    def __init__(self, work: Coroutine[Any, Any, Any], at: int, when: When) -> None:
        self._work = work
        self._at = at
        self._when = when
        self.reached = False

    def __await__(self) -> Generator[Any, Any, Any]:
        task = asyncio.current_task()
        assert task is not None
        running = self._work.__await__()
        waits, thrown = 0, None
        while True:
            try:
                waited = running.throw(thrown) if thrown else next(running)
            except StopIteration as stop:
                return stop.value
            waits += 1
            if waits == self._at or (self._when == "twice" and waits == self._at + 1):
                self.reached = True
                if self._when == "after" and waited is not None:
                    waited.add_done_callback(lambda _: task.cancel())
                else:
                    task.cancel()
            thrown = None
            try:
                yield waited
            except BaseException as error:  # noqa: BLE001 - handed on to whom it is for
                thrown = error


async def _send(house: House, session: Session) -> None:
    await session.send("question")


async def _send_with_key(house: House, session: Session) -> None:
    await session.send("question", idempotency_key="k")


async def _stream(house: House, session: Session) -> None:
    async with session.stream("question") as stream:
        async for _ in stream:
            await asyncio.sleep(0)


async def _stream_in_part(house: House, session: Session) -> None:
    async with session.stream("question") as stream:
        async for _ in stream:
            break


async def _turn(house: House, session: Session) -> None:
    async with session.turn("question") as turn:
        await asyncio.sleep(0)
        await turn.finish("You said: question")


async def _free_turn(house: House, session: Session) -> None:
    message = {"role": "assistant", "content": "You said: question"}
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    async with session.turn("question") as turn:
        await turn.finish({"choices": [{"index": 0, "finish_reason": "stop", "message": message}], "usage": usage})


async def _turn_with_stream(house: House, session: Session) -> None:
    async with session.turn("question") as turn:
        async for _ in turn.stream(pieces("You said:", " question")):
            await asyncio.sleep(0)


async def _append(house: House, session: Session) -> None:
    await session.append(
        [{"role": "user", "content": "question"}, {"role": "assistant", "content": "You said: question"}]
    )


FLOWS: dict[str, Callable[[House, Session], Coroutine[Any, Any, None]]] = {
    "send": _send,
    "send with a key": _send_with_key,
    "stream": _stream,
    "stream in part": _stream_in_part,
    "turn": _turn,
    "turn that cost nothing": _free_turn,
    "turn with a stream": _turn_with_stream,
    "append": _append,
}


@pytest.fixture(scope="module", autouse=True)
def _others() -> None:
    """Leave what other tests keep out of the collections of garbage that these ask for."""
    gc.collect()
    gc.freeze()


@pytest.fixture
async def house(url: str) -> AsyncIterator[House]:
    """Open a store, and fail if a task or an error was forgotten about."""
    forgotten: list[dict[str, Any]] = []

    def handler(_: object, context: dict[str, Any]) -> None:
        # asyncpg's own future, when a connection is given up after TCP and before it has asked for TLS.
        if str(context.get("exception")) != "unexpected connection_lost() call":
            forgotten.append(context)

    asyncio.get_running_loop().set_exception_handler(handler)
    async with opened(url, limits=NOT_WAITING) as house:
        before = asyncio.all_tasks()  # whoever keeps house, and this
        yield house
        await house.cloister.vault.settle()
        for _ in range(3):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() - before - {asyncio.current_task()} == set(), "a task is still running"
    gc.collect()
    await asyncio.sleep(0)
    assert forgotten == []


async def _cancelled(work: Coroutine[Any, Any, Any], at: int, when: When) -> bool:
    """Run *work* and cancel it; False if it was over before."""
    cancelling = Cancelling(work, at, when)

    async def run() -> None:
        await cancelling

    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.create_task(run())
    return cancelling.reached


@pytest.mark.parametrize("when", ["before", "after", "twice"])
@pytest.mark.parametrize("flow", list(FLOWS))
async def test_cancelled_anywhere_a_turn_is_whole_or_absent(house: House, flow: str, when: When) -> None:
    """Wherever a turn is cancelled: all or nothing is stored, the lease is free, the record agrees (row 30)."""
    whole = 0
    for at in range(1, MOST_WAITS):
        session = await house.ana.start(system="Be kind.")
        seen = len(await house.entries())
        reached = await _cancelled(FLOWS[flow](house, session), at, when)
        if when == "twice":
            await asyncio.sleep(0)  # giving the lease back goes on by itself
        said = await told(session)
        assert said in (["Be kind."], ["Be kind.", "question", "You said: question"]) or (
            said == ["Be kind.", "question", "You said: question "]  # the parrot streams a space behind each word
        ), f"half a turn after wait {at}: {said}"
        stored = len(said) > 1
        whole += stored
        events = [entry.event for entry in (await house.entries())[seen:]]
        assert events.count("turn.committed") + events.count("items.appended") == stored, f"{events} after wait {at}"
        assert not (stored and "turn.failed" in events), f"a stored turn is on record as failed after wait {at}"
        assert house.provider.open_streams == 0, f"the provider's stream is open after wait {at}"
        await session.send("next")
        if not reached:
            break
    else:
        pytest.fail(f"still waiting after {MOST_WAITS} times")
    assert flow == "stream in part" or whole, "no run came to its end"
    assert not (await house.audited()).faults


@pytest.mark.parametrize("when", ["before", "after", "twice"])
@pytest.mark.plain_ids
async def test_cancelled_anywhere_a_renewal_is_whole_or_absent(house: House, when: When) -> None:
    """Wherever a late message is cancelled, the new session is there with its first turn, or not at all."""
    for at in range(1, MOST_WAITS):
        session = await house.ana.start(system="Be kind.")
        house.clock.move(hours=1)
        reached = await _cancelled(_send(house, session), at, when)
        listed = await house.ana.sessions()
        assert [await told(each) for each in listed] in ([], [["Be kind.", "question", "You said: question"]])
        with pytest.raises(SessionExpired):
            await session.history()
        assert (await session.send("next")).renewed
        await house.ana.end_all()
        if not reached:
            break
    else:
        pytest.fail(f"still waiting after {MOST_WAITS} times")


@pytest.mark.parametrize("when", ["before", "after", "twice"])
@pytest.mark.plain_ids
async def test_cancelled_anywhere_a_start_is_whole_or_absent(house: House, when: When) -> None:
    """A session whose start is cancelled is there with everything that it was given, or not at all."""
    given = [{"role": "user", "content": str(number)} for number in range(3)]
    for at in range(1, MOST_WAITS):
        reached = await _cancelled(house.ana.start(system="Be kind.", title="t", items=given), at, when)
        for session in await house.ana.sessions():
            assert await told(session) == ["Be kind.", "0", "1", "2"]
        await house.ana.erase()
        if not reached:
            break
    else:
        pytest.fail(f"still waiting after {MOST_WAITS} times")


async def test_a_key_is_answered_after_a_cancelled_turn(house: House) -> None:
    """Sent again under its key, a cancelled turn is stored once, wherever it was cancelled."""
    for at in range(1, MOST_WAITS):
        session = await house.ana.start()
        reached = await _cancelled(_send_with_key(house, session), at, "before")
        reply = await session.send("question", idempotency_key="k")
        assert await told(session) == ["question", reply.text]
        if not reached:
            break


async def test_nothing_crosses_when_many_are_cancelled(house: House) -> None:
    """Of many turns of two owners at once, cancelled at all places, none gets the other's words."""
    owners = {"ana": house.ana, "ben": house.ben}

    async def one(name: str, at: int) -> None:
        session = await owners[name].start()
        await _cancelled(session.send(f"{name} {at}"), at % 12 + 1, "before")
        again = await session.send(f"{name} again")
        assert again.text == f"You said: {name} again"
        assert all(name in text for text in await told(session))

    await asyncio.gather(*(one(name, at) for at in range(24) for name in owners))
    assert not (await house.audited()).faults
    assert not any(event in ("integrity.failed", "access.refused") for event in await house.events())


async def test_cancelling_one_who_waits_disturbs_nobody(url: str) -> None:
    """A turn that is cancelled while it waits for the one before leaves the queue, and the others get through."""
    async with opened(url) as house:
        session = await house.ana.start()
        house.provider.gate = asyncio.Event()
        first = asyncio.create_task(session.send("first"))
        await house.provider.asked.wait()
        second, third = (asyncio.create_task(session.send(text)) for text in ("second", "third"))
        await asyncio.sleep(0)
        second.cancel()
        house.provider.gate.set()
        assert [isinstance(outcome, asyncio.CancelledError) for outcome in await _outcomes(first, second, third)] == [
            False,
            True,
            False,
        ]
        assert (await told(session))[::2] == ["first", "third"]


async def _outcomes(*tasks: Awaitable[Any]) -> list[Any]:
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_cancelling_one_who_waits_for_another_process(tmp_path: Path) -> None:
    """A turn that is cancelled while another process has the lease leaves that lease alone."""
    url = f"sqlite:///{tmp_path}/x.db"
    async with opened(url) as one, opened(url) as two:
        session = await one.ana.start()
        there = await two.ana.resume(session.id)
        async with session.turn("first") as turn:
            for at in range(1, 4):
                assert await _cancelled(there.send("second"), at, "before")
            await turn.finish("done")
        await there.send("third")
        assert (await told(session))[::2] == ["first", "third"]


async def test_a_client_that_goes_away_closes_the_call(house: House) -> None:
    """Leaving a stream in the middle closes the provider's stream at once and stores nothing (row 29)."""
    session = await house.ana.start()
    async with session.stream("question") as stream:
        async for _ in stream:
            assert house.provider.open_streams == 1
            break
    assert house.provider.open_streams == 0
    assert await told(session) == []


async def test_an_error_of_the_reader_closes_the_call(house: House) -> None:
    """An exception in the loop that shows the reply cancels the call too."""
    session = await house.ana.start()
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with session.stream("question") as stream:
            async for _ in stream:
                _ = 1 // 0
    assert house.provider.open_streams == 0
    assert await told(session) == []
    await session.send("next")


async def test_a_stream_that_fails_to_close_gives_the_lease_back(house: House) -> None:
    """A provider whose stream raises on being closed costs its own turn, and not the session."""

    class Stubborn:
        def __aiter__(self) -> Stubborn:
            return self

        async def __anext__(self) -> str:
            return "word "

        async def aclose(self) -> None:
            raise StoreUnavailable("the connection is gone")  # any error will do

    session = await house.ana.start()
    real = house.provider.stream
    house.provider.stream = lambda request: Stubborn()  # type: ignore[assignment, method-assign, return-value]
    with pytest.raises(StoreUnavailable):  # noqa: PT012
        async with session.stream("question") as stream:
            async for _ in stream:
                break
    house.provider.stream = real  # type: ignore[method-assign]
    assert await told(session) == []
    await session.send("next")


async def test_a_stream_of_ones_own_is_closed(house: House) -> None:
    """Closing `turn.stream` early closes the SDK's stream that it reads."""
    closed: list[bool] = []

    async def source() -> AsyncIterator[str]:
        try:
            yield "words. "
            yield "and more"
        finally:
            closed.append(True)

    session = await house.ana.start()
    async with session.turn("question") as turn:
        reading = turn.stream(source())
        async for _ in reading:
            break
        await reading.aclose()
    assert closed == [True]
    assert await told(session) == []
