"""A request that comes twice is one turn: under a key, as a client's own retry, and where it made its session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.fakes import House, Watched, opened, told
from tests.test_cancellation import MOST_WAITS, NOT_WAITING, When, _cancelled

from cloister import stores
from cloister.errors import KeyReused, ProviderError, SessionBusy, SessionConflict, SessionExpired
from cloister.idempotency import door, secret_of
from cloister.model import Owner
from cloister.session import Session
from cloister.sessions import place_of

BODY = b'{"model": "m", "input": "question"}'
OTHER = b'{"model": "n", "input": "question"}'


@pytest.fixture
async def house(url: str) -> AsyncIterator[House]:
    """Open a store."""
    async with opened(url) as house:
        yield house


def asked(house: House) -> int:
    """How often a model was asked."""
    return len(house.provider.requests)


# --- keys -------------------------------------------------------------------------------------------------------------


async def test_a_key_with_another_body_is_refused(house: House) -> None:
    """Even where the words are the same: another model, other options; and it is an error of its own."""
    session = await house.ana.start()
    first = await session.send("question", idempotency_key="k", request=BODY)
    assert (await session.send("question", idempotency_key="k", request=BODY)).items[-1] == first.items[-1]
    for body in (OTHER, None, b""):
        with pytest.raises(KeyReused):
            await session.send("question", idempotency_key="k", request=body)
    assert issubclass(KeyReused, ValueError)
    assert asked(house) == 1


async def test_a_key_outlives_its_delivery(house: House) -> None:
    """What lies under a caller's key is found for a day, whoever has read it."""
    session = await house.ana.start()
    first = await session.send("question", idempotency_key="k", request=BODY)
    await session.delivered(first)
    await session.send("next")
    assert (await session.send("question", idempotency_key="k", request=BODY)).text == first.text
    assert asked(house) == 2


async def test_a_first_turn_under_a_key_makes_one_session(house: House) -> None:
    """Whoever begins again under the same key gets the session that the first attempt made."""
    one, two, three = [await house.ana.begin() for _ in range(3)]
    first = await one.send("question", idempotency_key="k", request=BODY)
    again = await two.send("question", idempotency_key="k", request=BODY)
    assert again.session.stable_id == first.session.stable_id
    assert again.items == first.items[-1:]
    with pytest.raises(KeyReused):
        await three.send("question", idempotency_key="k", request=OTHER)
    assert len(await house.ana.sessions()) == asked(house) == 1
    assert await told(again.session) == ["question", first.text]
    await again.session.send("next")
    async with (await house.ana.begin()).stream("question", idempotency_key="k", request=BODY) as stream:
        assert stream.turn.repeated
        assert stream.turn.session_id == one.stable_id


async def test_a_key_is_its_owners(house: House) -> None:
    """The same key of another user makes another session; it tells nothing of the first."""
    first = await (await house.ana.begin()).send("question", idempotency_key="k", request=BODY)
    other = await (await house.ben.begin()).send("question", idempotency_key="k", request=OTHER)
    assert other.session.stable_id != first.session.stable_id
    assert other.session.owner == house.ben.owner


async def test_two_first_turns_under_a_key_at_once(house: House) -> None:
    """The second waits for the first, asks no model, and gets its answer."""
    house.provider.gate = asyncio.Event()
    begun = [await house.ana.begin() for _ in range(2)]
    both = [asyncio.create_task(one.send("question", idempotency_key="k", request=BODY)) for one in begun]
    await house.provider.asked.wait()
    house.provider.gate.set()
    one, two = await asyncio.gather(*both)
    assert one.session.stable_id == two.session.stable_id
    assert asked(house) == 1


@pytest.mark.parametrize("key", ["k", None])
async def test_two_processes_at_one_request(url: str, key: str | None) -> None:
    """The second to commit stores nothing, and finds the first one's answer when it asks again; without a key too."""
    if url == "memory://":
        return
    same: dict[str, Any] = {"idempotency_key": key, "request": BODY}
    async with opened(url) as one, opened(url) as two:
        first = await one.ana.begin()
        async with (await two.ana.begin()).turn("question", **same, retry=True) as turn:
            reply = await first.send("question", **same)
            with pytest.raises(SessionConflict):
                await turn.finish("late")
        again = await (await two.ana.begin()).send("question", **same, retry=True)
        assert again.session.stable_id == reply.session.stable_id
        assert len(await two.ana.sessions()) == 1


@pytest.mark.parametrize("url", ["sqlite", "redis", "postgres"], indirect=True)
async def test_a_first_attempt_that_is_late_gives_way_to_its_retry(url: str) -> None:
    """Two processes at a first turn: what its retry has stored meanwhile is the turn, and the first attempt is none."""
    async with opened(url) as one, opened(url, clock=one.clock) as two:
        one.provider.gate = asyncio.Event()
        session = await one.ana.begin()
        first = asyncio.create_task(session.send("Hello.", request=b"body"))
        await one.provider.asked.wait()
        one.clock.move(seconds=1)
        retried = await (await two.ana.begin()).send("Hello.", request=b"body", retry=True)
        one.provider.gate.set()
        with pytest.raises(SessionConflict):
            await first
        assert [each.id for each in await two.ana.sessions()] == [retried.session.id]
        # Long before or after it, the same words are another conversation.
        one.clock.move(seconds=1)
        await (await one.ana.begin()).send("Hello.", request=b"body")
        assert len(await two.ana.sessions()) == 2


@pytest.mark.parametrize("url", ["sqlite", "redis", "postgres"], indirect=True)
@pytest.mark.parametrize("renewing", [False, True])
@pytest.mark.parametrize("before", [False, True])
async def test_a_first_attempt_that_is_late_gives_way_to_what_was_delivered(
    url: str, renewing: bool, before: bool
) -> None:
    """Also where nobody is left to ask for the retry's answer again; where the same was said before as well."""
    async with opened(url) as one, opened(url, clock=one.clock) as two:
        old = (await (await one.ana.begin()).send("Before.")).session.id
        if renewing:
            one.clock.move(hours=1)
            with pytest.raises(SessionExpired):
                await (await one.ana.at(old)).history()

        async def handle(house: House) -> Session:
            return await house.ana.at(old) if renewing else await house.ana.begin()

        if before:
            said = await (await handle(one)).send("Hello.", request=b"body")
            await said.session.delivered(said)
        there = len(await one.ana.sessions())
        one.provider.gate, one.provider.asked = asyncio.Event(), asyncio.Event()
        first = asyncio.create_task((await handle(one)).send("Hello.", request=b"body"))
        await one.provider.asked.wait()
        retried = await (await handle(two)).send("Hello.", request=b"body", retry=True)
        await retried.session.delivered(retried)
        one.provider.gate.set()
        with pytest.raises(SessionConflict):
            await first
        assert len(await two.ana.sessions()) == there + 1
        again = await (await handle(two)).send("Hello.", request=b"body")
        assert again.session.stable_id != retried.session.stable_id


@pytest.mark.parametrize("url", ["sqlite", "redis", "postgres"], indirect=True)
async def test_what_is_delivered_while_the_same_is_said_again(url: str) -> None:
    """Whoever begins another conversation with the same words, before it is noted that they had the first, has two."""
    async with opened(url) as house:
        reply = await (await house.ana.begin()).send("Hello.", request=b"body")
        async with (await house.ana.begin()).turn("Hello.", request=b"body") as turn:
            await reply.session.delivered(reply)
            other = await turn.finish("Hello to you.")
        await reply.session.delivered(reply)
        again = await (await house.ana.begin()).send("Hello.", request=b"body", retry=True)
        assert again.session.stable_id == other.session.stable_id
        assert len(await house.ana.sessions()) == 2


async def test_who_goes_on_has_had_the_answer(house: House) -> None:
    """A retry of the same first words is no retry of what its user has gone on from: it makes a session of its own."""
    first = await (await house.ana.begin()).send("question", request=BODY)
    await first.session.send("next")
    again = await (await house.ana.begin()).send("question", request=BODY, retry=True)
    assert again.session.stable_id != first.session.stable_id
    assert await told(again.session) == ["question", again.text]
    keyed = await (await house.ana.begin()).send("question", request=BODY, idempotency_key="k")
    await keyed.session.send("next")
    same = await (await house.ana.begin()).send("question", request=BODY, idempotency_key="k")
    assert same.session.stable_id == keyed.session.stable_id


async def test_a_key_of_an_erased_owner_is_free(house: House) -> None:
    """What was erased takes along what was filed with it: nothing is found, and no alarm is raised."""
    await (await house.ana.begin()).send("question", idempotency_key="k", request=BODY)
    await house.ana.erase()
    reply = await (await house.ana.begin()).send("question", idempotency_key="k", request=BODY)
    assert await told(reply.session) == ["question", reply.text]
    assert "integrity.failed" not in await house.events()


async def test_a_begun_session_that_was_ended_stays_ended(house: House) -> None:
    """A retry of its first turn says so, and makes no other."""
    reply = await (await house.ana.begin()).send("question", idempotency_key="k", request=BODY)
    await reply.session.end()
    with pytest.raises(SessionExpired):
        await (await house.ana.begin()).send("question", idempotency_key="k", request=BODY)
    assert await house.ana.sessions() == []


@pytest.mark.plain_ids
async def test_a_session_lies_beside_its_door(house: House) -> None:
    """A cluster keeps what is stored at once in one place; nobody is ever given the id of a door."""
    owner = Owner(None, "ana")
    at = door(await secret_of(house.cloister.vault.keys, owner), owner)
    begun = [await house.ana.begin() for _ in range(5)]
    assert {place_of(one.id) for one in begun} == {place_of(at)}
    assert len({at, *(one.id for one in begun)}) == 6
    assert at != door(await secret_of(house.cloister.vault.keys, house.ben.owner), house.ben.owner)


@pytest.mark.parametrize("url", ["cluster", "pooler"], indirect=True)
async def test_first_turns_where_the_store_is_divided(house: House) -> None:
    """On a cluster, whose parts commit each for itself, and behind a pooler: one session, found again in both ways."""
    ways: list[dict[str, Any]] = [{"idempotency_key": "k", "request": BODY}, {"request": BODY}]
    for same in ways:
        first = await (await house.ana.begin(system="Be kind.")).send("question", **same)
        again = await (await house.ana.begin()).send("question", **same, retry=True)
        assert again.items == first.items[-1:]
        await again.session.delivered(again)
        await again.session.send("next", request=BODY)
    assert len(await house.ana.sessions()) == 2
    assert (await house.ana.erase()).sessions == 2
    reply = await (await house.ana.begin()).send("question", idempotency_key="k", request=BODY)
    assert await told(reply.session) == ["question", reply.text]
    assert "integrity.failed" not in await house.events()


# --- retries ----------------------------------------------------------------------------------------------------------


async def test_a_retry_is_answered_by_the_first_attempt(house: House) -> None:
    """Whose answer never arrived: no model is asked, nothing is stored, and the reply is the same."""
    session = await house.ana.start(system="Be kind.")
    await session.send("before", request=b"before")
    held = session.id
    first = await session.send("question", request=BODY)
    late = await house.ana.resume(held)
    again = await late.send("question", request=BODY, retry=True)
    assert (again.text, again.items) == (first.text, first.items[-1:])
    assert asked(house) == 2
    assert (await told(again.session))[-2:] == ["question", first.text]
    assert (await house.events()).count("turn.committed") == 2


@pytest.mark.parametrize("why", ["not a retry", "another body", "delivered", "ten minutes", "not the last", "changed"])
async def test_what_is_no_retry_is_a_new_turn(house: House, why: str) -> None:
    """Somebody who says the same again means it: only an undelivered answer of the last turn stands for it."""
    session = await house.ana.start()
    first = await session.send("question", request=BODY)
    if why == "delivered":
        await session.delivered(first)
    if why == "ten minutes":
        house.clock.move(minutes=10, seconds=1)
    if why == "not the last":
        await session.send("next", request=OTHER)
    if why == "changed":
        await session.update(title="x")
    before = asked(house)
    body = OTHER if why == "another body" else BODY
    reply = await session.send("question", request=body, retry=why != "not a retry")
    assert asked(house) == before + 1
    assert (await told(session))[-2:] == ["question", reply.text]
    assert (await told(session))[0] == "question"


async def test_a_retry_finds_only_its_own_session(house: House) -> None:
    """The same request to another session of the same user is another turn there."""
    one, two = await house.ana.start(), await house.ana.start()
    await one.send("question", request=BODY)
    await two.send("question", request=BODY, retry=True)
    assert asked(house) == 2
    ben = await house.ben.start()
    await ben.send("question", request=BODY, retry=True)
    assert asked(house) == 3


async def test_a_retry_of_a_renewal(house: House) -> None:
    """Whoever was renewed and never heard of it comes with the old id, and gets the new session again."""
    session = await house.ana.start(system="Be kind.")
    await session.send("before")
    held = session.id
    house.clock.move(hours=1)
    first = await session.send("question", request=BODY)
    assert first.renewed
    again = await (await house.ana.resume(held)).send("question", request=BODY, retry=True)
    assert again.renewed
    assert again.session.stable_id == first.session.stable_id
    assert asked(house) == 2
    await session.delivered(first)
    later = await (await house.ana.resume(held)).send("question", request=BODY, retry=True)
    assert later.session.stable_id != first.session.stable_id


async def test_a_retry_of_a_first_turn_makes_no_other_session(house: House) -> None:
    """The session that the first attempt made is found by the body alone, until its answer was delivered."""
    first = await (await house.ana.begin()).send("question", request=BODY)
    again = await (await house.ana.begin()).send("question", request=BODY, retry=True)
    assert again.session.stable_id == first.session.stable_id
    assert len(await house.ana.sessions()) == asked(house) == 1
    other = await (await house.ben.begin()).send("question", request=BODY, retry=True)
    assert other.session.owner == house.ben.owner
    assert asked(house) == 2
    await again.session.delivered(again)
    await (await house.ana.begin()).send("question", request=BODY, retry=True)
    assert len(await house.ana.sessions()) == 2


async def test_the_same_first_words_twice_are_two_sessions(house: House) -> None:
    """Two conversations that begin alike, neither delivered yet, do not get into each other's way."""
    one, two = [await (await house.ana.begin()).send("question", request=BODY) for _ in range(2)]
    assert one.session.stable_id != two.session.stable_id
    again = await (await house.ana.begin()).send("question", request=BODY, retry=True)
    assert again.session.stable_id == two.session.stable_id
    assert asked(house) == 2


async def test_a_late_retry_of_a_first_turn_begins_anew(house: House) -> None:
    """What lay there for more than ten minutes makes room."""
    await (await house.ana.begin()).send("question", request=BODY)
    house.clock.move(minutes=11)
    await (await house.ana.begin()).send("question", request=BODY, retry=True)
    assert len(await house.ana.sessions()) == asked(house) == 2


async def test_a_retry_while_the_first_attempt_runs(house: House) -> None:
    """Waits for it, asks no model, and gets its answer; in a session and where one begins."""
    for begin in (False, True):
        handles = [await house.ana.begin() for _ in range(2)] if begin else [await house.ana.start()] * 2
        house.provider.gate, house.provider.asked = asyncio.Event(), asyncio.Event()
        before = asked(house)
        first = asyncio.create_task(handles[0].send("question", request=BODY))
        await house.provider.asked.wait()
        again = asyncio.create_task(handles[1].send("question", request=BODY, retry=True))
        await asyncio.sleep(0)
        house.provider.gate.set()
        one, two = await asyncio.gather(first, again)
        assert one.session.stable_id == two.session.stable_id
        assert asked(house) == before + 1
        await one.session.delivered(one)


async def test_a_retry_of_what_failed_is_a_new_turn(house: House) -> None:
    """Nothing was stored, so nothing is found."""
    session = await house.ana.start()
    house.provider.answer = ZeroDivisionError()
    with pytest.raises(ProviderError):
        await session.send("question", request=BODY)
    house.provider.answer = None
    reply = await session.send("question", request=BODY, retry=True)
    assert await told(session) == ["question", reply.text]


@pytest.mark.parametrize("when", ["before", "after", "twice"])
@pytest.mark.parametrize("begin", [False, True])
async def test_cancelled_anywhere_a_retry_makes_it_one_turn(url: str, when: When, begin: bool) -> None:
    """Wherever the first attempt was cancelled, its retry leaves one turn, in one session."""
    async with opened(url, limits=NOT_WAITING) as house:
        for at in range(1, MOST_WAITS):
            session = await house.ana.begin() if begin else await house.ana.start()
            reached = await _cancelled(_stream(session), at, when)
            if when == "twice":
                await asyncio.sleep(0)
            again = await house.ana.begin() if begin else session
            reply = await again.send("question", request=BODY, retry=True)
            assert (await told(reply.session))[:1] == ["question"]
            assert len(await told(reply.session)) == 2, f"after wait {at}"
            assert len(await house.ana.sessions()) == 1, f"after wait {at}"
            await house.ana.end_all()
            await reply.session.delivered(reply)
            if not reached:
                break
        else:
            pytest.fail(f"still waiting after {MOST_WAITS} times")


async def _stream(session: Session) -> None:
    async with session.stream("question", request=BODY) as stream:
        _ = [text async for text in stream]


async def test_what_is_on_file_says_nothing() -> None:
    """Neither place nor digest of a request tells the store what was asked: both are keyed."""
    found = []
    for _ in range(2):
        watched = Watched(stores.connect("memory://"))
        async with opened(watched.store) as house:
            await (await house.ana.begin()).send("question", request=BODY)
            (record,) = [options["record"] for name, _, options in watched.calls if name == "create"]
            found += [record.session, record.key]
    assert len(set(found)) == 4


async def test_a_turn_without_a_request_files_nothing() -> None:
    """Who asks for nothing of the kind pays for nothing of it; a retry costs one read more."""
    watched = Watched(stores.connect("memory://"))
    async with opened(watched.store) as house:
        session = await house.ana.start()
        await session.send("question")
        assert all(args[0].record is None for name, args, _ in watched.calls if name == "commit")
        await session.send("question", request=BODY)
        watched.calls.clear()
        await session.send("question", request=BODY, retry=True)
        assert [name for name in watched.names if name != "items"] == ["load", "load", "release"]


@pytest.mark.parametrize("wrong", ["text", 1])
async def test_a_request_is_bytes(house: House, wrong: Any) -> None:
    """Anything else is refused, before a model is asked."""
    with pytest.raises(ValueError, match="request="):
        await (await house.ana.start()).send("question", request=wrong)
    assert asked(house) == 0


async def test_a_busy_session_is_busy_for_a_retry_too(url: str) -> None:
    """Where the first attempt does not come to its end in time."""
    async with opened(url, limits=NOT_WAITING) as house:
        session = await house.ana.start()
        async with session.turn("question", request=BODY) as turn:
            with pytest.raises(SessionBusy):
                await session.send("question", request=BODY, retry=True)
            await turn.finish("done")
        assert (await session.send("question", request=BODY, retry=True)).text == "done"
