"""Who asks for one session after another that is not theirs is refused for a while (rows 2 and 79)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import pytest
from tests.fakes import House, Watched, opened

from cloister import sessions
from cloister.alarms import Alarms
from cloister.errors import RateLimited, SessionNotFound, TokenInvalid
from cloister.session import Session
from cloister.stores.memory import MemoryStore
from cloister.user import User

FEW = Alarms(suspend_after=4)
REFUSED = (SessionNotFound, TokenInvalid)


@pytest.fixture
async def house(url: str) -> AsyncIterator[House]:
    async with opened(url, alarms=FEW) as house:
        yield house


async def probe(user: User, ids: list[str]) -> None:
    for session_id in ids:
        with pytest.raises(REFUSED):
            await user.resume(session_id)


async def exhausted(user: User, house: House) -> None:
    """Bring *user* to where everything is refused."""
    await probe(user, [sessions.new_id() for _ in range(4)])
    await house.cloister.vault.settle()


async def test_the_default_is_twenty_in_ten_minutes() -> None:
    """Unless set otherwise, the twentieth attempt within ten minutes is one too many, for ten minutes."""
    async with opened("memory://") as house:
        await probe(house.ben, [sessions.new_id() for _ in range(19)])
        await house.ben.start()
        await probe(house.ben, [sessions.new_id()])
        with pytest.raises(RateLimited) as raised:
            await house.ben.start()
        assert raised.value.retry_after == timedelta(minutes=10)


@pytest.mark.parametrize("url", ["memory", "sqlite", "token"], indirect=True)
@pytest.mark.parametrize("kind", ["absent", "foreign", "malformed", "mixed"])
async def test_absent_foreign_and_malformed_count_alike(house: House, kind: str) -> None:
    """It takes as many attempts whatever ids they name, so that the refusal tells nothing of what exists."""
    anas = [(await house.ana.start()).id for _ in range(4)]
    absent, malformed = [sessions.new_id() for _ in range(4)], ["", "cs_x", "'--", "x" * 300]
    ids = {
        "absent": absent,
        "foreign": anas,
        "malformed": malformed,
        "mixed": [anas[0], absent[0], malformed[0], anas[1]],
    }
    await probe(house.ben, ids[kind])
    with pytest.raises(RateLimited):
        await house.ben.resume(anas[3])
    events = await house.events()
    assert (events.count("access.refused"), events.count("access.suspended")) == (4, 1)


CALLS: dict[str, Callable[[User, Session], Awaitable[object]]] = {
    "start": lambda user, _: user.start(),
    "resume own": lambda user, own: user.resume(own.id),
    "resume absent": lambda user, _: user.resume(sessions.new_id()),
    "resume malformed": lambda user, _: user.resume("x"),
    "list": lambda user, _: user.sessions(),
    "list after": lambda user, own: user.sessions(after=own.id),
    "end all": lambda user, _: user.end_all(),
    "export": lambda user, _: anext(user.export()),
    "erase": lambda user, _: user.erase(),
    "send": lambda _, own: own.send("hello"),
    "stream": lambda _, own: own.stream("hello").__aenter__(),
    "turn": lambda _, own: own.turn("hello").__aenter__(),
    "append": lambda _, own: own.append({"role": "user", "content": "x"}),
    "update": lambda _, own: own.update(title="x"),
    "hide": lambda _, own: own.hide("it_0000000000_000000000000"),
    "history": lambda _, own: own.history(),
    "check": lambda _, own: own.check("hello"),
    "end": lambda _, own: own.end(),
}


@pytest.mark.parametrize("call", CALLS)
async def test_every_call_is_refused_before_the_store_is_asked(call: str) -> None:
    """A suspended user gets `RateLimited` for everything, and the store never hears of it."""
    watched = Watched(MemoryStore())
    async with opened(watched.store, alarms=FEW) as house:
        own = await house.ben.start()
        await exhausted(house.ben, house)
        watched.calls.clear()
        with pytest.raises(RateLimited):
            await CALLS[call](house.ben, own)
        await house.cloister.vault.settle()
        assert watched.names == []


@pytest.mark.parametrize("url", ["memory", "sqlite", "token"], indirect=True)
async def test_others_and_turns_under_way_go_on(house: House) -> None:
    """Whoever else is there notices nothing, and a turn that was admitted is committed."""
    anas, bens = await house.ana.start(), await house.ben.start()
    async with bens.turn("hello") as turn:
        await exhausted(house.ben, house)
        await turn.finish("hello yourself")
    await anas.send("good morning")
    await house.ana.resume(anas.id)
    house.clock.move(minutes=10)
    assert len(await bens.history()) == 2


@pytest.mark.parametrize("url", ["memory", "sqlite", "token"], indirect=True)
async def test_own_success_does_not_begin_the_count_anew(house: House) -> None:
    """Who uses a session of their own between attempts gains nothing by it."""
    own = await house.ben.start()
    for _ in range(3):
        await probe(house.ben, [sessions.new_id()])
        await own.send("hello")
    await probe(house.ben, [sessions.new_id()])
    with pytest.raises(RateLimited):
        await own.send("hello")


@pytest.mark.parametrize("url", ["memory", "sqlite", "token"], indirect=True)
async def test_a_suspension_is_on_record_and_ends(house: House) -> None:
    """The alert names who it was, how often they tried and for how long it holds; then they are heard again."""
    await exhausted(house.ben, house)
    (entry,) = [entry for entry in await house.entries() if entry.event == "access.suspended"]
    owners = await house.cloister.store.audit_owners()
    assert (owners[entry.owner], entry.severity, entry.detail) == (
        house.ben.owner,
        "alert",
        '{"attempts":4,"seconds":600}',
    )
    house.clock.move(minutes=9.9)
    with pytest.raises(RateLimited):
        await house.ben.start()
    house.clock.move(minutes=0.1)
    await house.ben.start()


@pytest.mark.parametrize("url", ["token"], indirect=True)
async def test_a_token_used_twice_is_no_attempt(house: House) -> None:
    """A client that sends its own old token again is refused each time, and not suspended."""
    session = await house.ben.start()
    old = session.id
    await session.send("hello")
    for _ in range(10):
        with pytest.raises(TokenInvalid):
            await house.ben.resume(old)
    await session.send("still here")


async def test_it_can_be_switched_off_and_that_is_on_record() -> None:
    """Without alarms nobody is suspended, and whoever opens a store so cannot do it unseen."""
    async with opened("memory://", alarms=None) as house:
        await probe(house.ben, [sessions.new_id() for _ in range(50)])
        await house.ben.start()
        assert '{"option":"alarms=None","what":"alarms"}' in [entry.detail for entry in await house.entries()]


async def test_a_refusal_says_nothing_of_what_exists() -> None:
    """To a suspended user a session of somebody else's, none and their own are refused in the same words."""
    async with opened("memory://", alarms=FEW) as house:
        anas, bens = await house.ana.start(), await house.ben.start()
        await exhausted(house.ben, house)
        said = set()
        for session_id in (anas.id, bens.id, sessions.new_id(), "malformed"):
            with pytest.raises(RateLimited) as raised:
                await house.ben.resume(session_id)
            said.add((str(raised.value), raised.value.retry_after))
        assert len(said) == 1
