"""Attacks in time: on sessions that are over, on turns that are taken at once or twice, on what lies at rest."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from cloister.errors import ConfigurationError, IntegrityError, SessionConflict, SessionExpired
from cloister.model import Owner, to_micros
from cloister.probe.attack import LIMITS, Attack, Clock, House, Leak, absent_id, answer_to, must_refuse, now
from cloister.session import Session
from cloister.stores.base import Commit, Receipt, Record

_AT_ONCE = 24
_ALL_AT_MOST = 5_000
_LARGEST = 4 << 30
_CHUNK = 1 << 20


# --- sessions that are over -------------------------------------------------------------------------------------------


async def expired(attack: Attack) -> str:
    """A session whose time is up is refused to the second, and its secret and words are gone from the store"""
    assert LIMITS.idle_timeout is not None
    second = timedelta(seconds=1)
    clock = Clock(now() - LIMITS.idle_timeout)  # it ends at the real time: nothing of it lies in the future
    async with attack.opened(clock=clock) as house:
        hers = await house.planted(house.a)
        kept = (await house.secret(hers), await _late_commit(house, hers)) if attack.keeps else None
        clock.now += LIMITS.idle_timeout - second
        await house.told(hers)
        clock.now += second
        for call in (house.told(hers), house.talk(hers)):
            await must_refuse(call, SessionExpired, "a session went on after its time")
        if kept is not None:
            await _over(house, hers, "expired", [kept[0]], kept[1])
        async with hers.turn("hello", on_expired="renew") as turn:
            for message in turn.messages[:-1]:
                if "planted" in str(message["content"]):
                    raise Leak("a renewed session begins with words of the one that timed out")
        return "one second before it is read; at the second it is over; a turn that comes late is not stored"


async def ended(attack: Attack) -> str:
    """A session that was ended is over at once, is never renewed, and a turn under way does not bring it back"""
    async with attack.opened() as house:
        hers = await house.planted(house.a)
        wrapped = await house.secret(hers)

        async def ended_meanwhile() -> None:
            async with hers.turn(attack.words(attack.a)) as turn:
                await hers.end()
                await turn.finish("too late")

        late = await _late_commit(house, hers)
        await must_refuse(ended_meanwhile(), SessionConflict, "a turn was stored in a session that was ended")
        await must_refuse(house.a.resume(hers.id), SessionExpired, "a session that was ended was resumed")
        renewed = house.talk(hers, on_expired="renew")
        await must_refuse(renewed, SessionExpired, "a session that was ended was renewed")
        await _over(house, hers, "ended", [wrapped], late)
        return "ended during a turn; neither that nor another late one is stored"


async def erased(attack: Attack) -> str:
    """After an erasure no answer of the store holds the owner's words or wrapped secrets, and nobody else lost any"""
    async with attack.opened() as house:
        hers = [await house.planted(house.a) for _ in range(2)]
        his = await house.planted(house.b)
        kept: list[Record] = []

        async def remembered(commit: Commit, **options: Any) -> Receipt:
            kept.extend([commit.record] if commit.record else [])
            receipt: Receipt = await genuine(commit, **options)
            return receipt

        genuine = house.cloister.vault.store.commit
        with _instead(house.cloister.vault.store, "commit", remembered):
            await house.talk(hers[0], idempotency_key="once")
        before = await house.told(his)
        wrapped = [await house.secret(session) for session in hers]
        late = await _late_commit(house, hers[0])

        async def erased_meanwhile() -> None:
            async with hers[1].turn(attack.words(attack.a)) as turn:
                await house.a.erase()
                await turn.finish("too late")

        await must_refuse(erased_meanwhile(), SessionConflict, "a turn was stored after its owner was erased")
        for session in hers:
            await _over(house, session, None, wrapped, late)
        if await house.a.sessions() or await house.told(his) != before:
            raise Leak("the erasure left a session of its owner, or took another's")
        for record in kept:
            if (await house.load(attack.a, record.session, record=record.key)).record is not None:
                raise Leak("the store still has an idempotency record of an owner who was erased")
        asked, every = await _everything(house, [session.stable_id for session in hers], wrapped)
        return f"{asked} answers searched{every}"


async def _late_commit(house: House, session: Session) -> Commit:
    """Make a turn that was under way when a session ended, and comes in after."""
    row = (await house.load(session.owner, session.stable_id)).session
    if row is None:
        raise Leak("the store does not have what was planted a moment before")
    return Commit(row.version, b"l" * 16, msgspec.structs.replace(row, version=row.version + 1, turn=b"t" * 16))


async def _over(house: House, session: Session, ended: str | None, wrapped: Sequence[bytes], late: Commit) -> None:
    """Raise `Leak` unless a session is gone, but for a tombstone that says *ended* where that is not None."""
    vault, owner, name = house.cloister.vault, session.owner, session.stable_id
    await must_refuse(
        vault.ask(vault.store.commit, late),
        SessionConflict,
        "a turn that came late was stored in a session that is over",
    )
    loaded = await house.load(owner, name)
    page = await vault.ask(vault.store.items, owner, name, first=0, limit=1_000)
    for answer in (loaded, page):
        row = answer.session
        if answer.items:
            raise Leak("the store still has rows of a session that is over")
        if (row and row.ended) != ended:
            raise Leak(f"the store says of a session that is over: {row.ended if row else 'no row'}")
        if row is not None and (row.wrapped is not None or row.head is not None):
            raise Leak("the store still has the secret of a session that is over")
        if any(secret in msgspec.msgpack.encode(answer) for secret in wrapped):
            raise Leak("the store still has the secret of a session that is over")
    listing = await vault.ask(vault.store.sessions, owner, limit=1_000, before=None)
    if any(row.id == name for row in listing.sessions):
        raise Leak("the store lists a session that is over")


async def _everything(house: House, names: Sequence[str], wrapped: Sequence[bytes]) -> tuple[int, str]:
    """Search all answers about an erased owner; give how many, and in words how far all sessions could be searched."""
    attack, store = house.attack, house.cloister.store
    answers: list[object] = [await store.owner_of(name) for name in names]
    answers += [await house.load(attack.a, name) for name in names]
    answers.append(await store.expired(now=to_micros(now() + timedelta(days=1)), limit=1_000, skip=0))
    every = ""
    try:
        looked, after = 0, b""
        while looked < _ALL_AT_MOST:
            batch = await store.all(after=after, limit=500)
            mine = [row for row in batch.sessions if row.owner == attack.a]
            answers.append(mine)
            if mine:
                raise Leak("the store still goes through sessions of an owner who was erased")
            looked, after = looked + len(batch.sessions), batch.after
            if not after:
                break
        more = " first" if after else ""
        every = f"; of the{more} {looked} sessions in the store none is the owner's"
    except ConfigurationError:
        every = "; going through all sessions is beyond this role, as it should be"
    except IntegrityError as error:
        raise Leak(f"going through all sessions: {error}") from error
    for answer in answers:
        data = msgspec.msgpack.encode(answer)
        if answer in attack.owners or any(secret in data for secret in wrapped):
            raise Leak("an answer of the store still holds what was erased")
    return len(answers), every


# --- turns at once, and twice -----------------------------------------------------------------------------------------


async def concurrent(attack: Attack) -> str:
    """Turns that are taken at once, over two connections as two processes would, are each stored once and in order"""
    async with contextlib.AsyncExitStack() as stack:
        houses = [await stack.enter_async_context(attack.opened()) for _ in range(2)]
        started = [await houses[0].planted(user, turns=0) for user in (houses[0].a, houses[0].b)]
        said: dict[Owner, list[str]] = {owner: [] for owner in attack.owners}

        async def one(house: House, session: Session) -> None:
            user = house.a if session.owner == attack.a else house.b
            mine = await user.resume(session.id)
            for _ in range(_AT_ONCE // 4):
                said[session.owner].append(await house.talk(mine))

        async with asyncio.TaskGroup() as tasks:
            for house in houses:
                for session in started * 2:
                    tasks.create_task(one(house, session))
        for session in started:
            check_history(await houses[1].told(session), said[session.owner], said[session.owner])
        return f"{_AT_ONCE} turns of each of the two, in one session each"


async def repeated(attack: Attack) -> str:
    """A turn that is sent twice is stored once, and an idempotency key is one turn, of one owner and session"""
    async with attack.opened() as house:
        hers, his = await house.planted(house.a), await house.planted(house.b)
        before = await house.told(hers)
        sent: list[tuple[Receipt, Receipt]] = []
        vault, store = house.cloister.vault, house.cloister.vault.store
        genuine = store.commit

        async def twice(commit: Commit, **options: Any) -> Receipt:
            sent.append((await genuine(commit, **options), await genuine(commit, **options)))
            return sent[-1][0]

        with _instead(vault.store, "commit", twice):
            said = await house.talk(hers)
        if [receipt.repeated for receipt in sent[0]] != [False, True]:
            raise Leak("the store does not know a turn that it has")
        if await house.told(hers) != [*before, said, answer_to(said)]:
            raise Leak("a turn that was sent twice is not there once")
        for session in (hers, his):
            before = await house.told(session)
            said = await house.talk(session, idempotency_key="once")
            await house.talk(session, said, idempotency_key="once")
            if await house.told(session) != [*before, said, answer_to(said)]:
                raise Leak("turns under one idempotency key are not one turn")
        return "one commit sent twice; one idempotency key twice by each of the two"


@contextlib.contextmanager
def _instead(store: object, name: str, call: Any) -> Iterator[None]:
    """Let *call* answer a request for as long as the block lasts."""
    setattr(store, name, call)
    try:
        yield
    finally:
        delattr(store, name)


def check_history(told: Sequence[str], said: Sequence[str], confirmed: Sequence[str]) -> None:
    """Raise `Leak` unless *told* is questions of *said* with their answers, and all that was *confirmed*."""
    questions, answers = told[::2], told[1::2]
    if [answer_to(text) for text in questions] != list(answers):
        raise Leak("an answer does not belong to the question before it")
    if doubled := [text for text, count in Counter(questions).items() if count > 1]:
        raise Leak(f"{len(doubled)} turns were stored twice")
    if lost := set(confirmed) - set(questions):
        raise Leak(f"{len(lost)} turns that were answered are lost")
    if set(questions) - set(said):
        raise Leak("turns that nobody took are there")


# --- what lies at rest ------------------------------------------------------------------------------------------------


async def sealed(attack: Attack) -> str:
    """No answer of the store holds a planted word in clear, nor does a file of an embedded one"""
    store, witness = attack.connect(), attack.witness
    async with attack.opened() as house:
        hers = await house.planted(house.a)
        await hers.update(title=attack.words(attack.a), metadata={"note": attack.words(attack.a)})
        if attack.keeps:
            await house.a.sessions()
            await house.load(attack.a, absent_id(hers))
        files = [] if store.path is None else sorted(store.path.parent.glob(store.path.name + "*"))
        size = sum(file.stat().st_size for file in files)
        for file in files if size <= _LARGEST else []:
            if await asyncio.to_thread(_holds, file, witness.marker):
                raise Leak(f"a word of a conversation lies readable in {file.name}")
    if witness.readable:
        raise Leak(f"words came back in clear from {', '.join(sorted(set(witness.readable)))}")
    where = f"; {len(files)} files, {size // 1024} KiB" if files else ""
    return f"{witness.answers} answers of this run searched{where if size <= _LARGEST else '; files too large'}"


def _holds(file: Path, wanted: bytes) -> bool:
    """Say whether a file holds some bytes, wherever."""
    with contextlib.suppress(FileNotFoundError), file.open("rb") as data:  # logs come and go
        rest = b""
        while chunk := data.read(_CHUNK):
            if wanted in rest + chunk:
                return True
            rest = chunk[-len(wanted) :]
    return False
