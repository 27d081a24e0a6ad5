"""Attacks of a store, a cache or a pool on what it keeps: answers that are not what was stored.

The store in use answers truly, and a wrapper changes the answer on its way. Each change has to be noticed, with nothing
shown and an alarm on record, and the session must be the same as before once the answers are true again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import msgspec

from cloister.errors import IntegrityError, SessionNotFound
from cloister.model import SealedItem, SealedSession
from cloister.probe.attack import Attack, House, Leak, must_refuse
from cloister.session import Session
from cloister.stores.base import Loaded, Page

Answer = Loaded | Page
Changes = Mapping[str, Callable[[Any], Any]]
"""What is done to an answer, by what that is called."""
_replace = msgspec.structs.replace


async def swapped(attack: Attack) -> str:
    """Another user's row in the place of one's own does not open"""

    def changes(hers: Answer, his: Answer) -> Changes:
        return {
            "one row": lambda answer: _with_item(answer, 2, hers.items[2].sealed),
            "the newest row": lambda answer: _with_item(answer, -1, hers.items[-1].sealed),
            "all rows": lambda answer: _replace(answer, items=hers.items),
            "all rows and the head": lambda answer: _replace(
                answer, items=hers.items, session=_replace(answer.session, head=_session(hers).head)
            ),
        }

    return await _attacked(attack, changes)


async def substituted(attack: Attack) -> str:
    """Another user's session in the place of one's own does not open, whatever name is put on it"""

    def changes(hers: Answer, his: Answer) -> Changes:
        mine, whole = _session(his), _session(hers)
        return {
            "as it is": lambda answer: _replace(answer, session=whole, items=hers.items),
            "under one's own name": lambda answer: _replace(
                answer, session=_replace(whole, owner=mine.owner), items=hers.items
            ),
            "under one's own name and id": lambda answer: _replace(
                answer, session=_replace(whole, owner=mine.owner, id=mine.id), items=hers.items
            ),
            "with one's own head": lambda answer: _replace(
                answer, session=_replace(mine, wrapped=whole.wrapped), items=hers.items
            ),
        }

    return await _attacked(attack, changes)


async def replayed(attack: Attack) -> str:
    """A row that comes twice, or in the place of a later one, is noticed"""

    def changes(hers: Answer, his: Answer) -> Changes:
        return {
            "in a later place": lambda answer: _with_item(answer, -1, answer.items[-3].sealed),
            "in the place of its neighbour": lambda answer: _with_item(answer, 1, answer.items[0].sealed),
            "once more at the end": lambda answer: _replace(answer, items=[*answer.items, answer.items[-1]]),
            "once more, with the next number": lambda answer: _replace(
                answer, items=[*answer.items, _replace(answer.items[-1], position=answer.items[-1].position + 1)]
            ),
        }

    return await _attacked(attack, changes)


async def reordered(attack: Attack) -> str:
    """Rows in another order are noticed, renumbered or not"""

    def changes(hers: Answer, his: Answer) -> Changes:
        return {
            "backwards": lambda answer: _replace(answer, items=list(reversed(answer.items))),
            "backwards and renumbered": lambda answer: _replace(answer, items=_renumbered(answer.items[::-1])),
            "two questions exchanged": lambda answer: _with_item(
                _with_item(answer, 0, answer.items[2].sealed), 2, answer.items[0].sealed
            ),
            "the newest two exchanged": lambda answer: _replace(
                answer, items=_renumbered([*answer.items[:-2], answer.items[-1], answer.items[-2]])
            ),
        }

    return await _attacked(attack, changes)


async def removed(attack: Attack) -> str:
    """Rows that are left out are noticed, the newest too, and no row never means a new session"""

    def changes(hers: Answer, his: Answer) -> Changes:
        return {
            "the oldest": lambda answer: _replace(answer, items=answer.items[1:]),
            "one in the middle": lambda answer: _replace(answer, items=[*answer.items[:2], *answer.items[3:]]),
            "one, and the others moved up": lambda answer: _replace(
                answer, items=_renumbered([*answer.items[:2], *answer.items[3:]])
            ),
            "the newest": lambda answer: _replace(answer, items=answer.items[:-1]),
            "the last turn, with the counts made to fit": lambda answer: _replace(
                answer, items=answer.items[:-2], session=_replace(answer.session, count=answer.session.count - 2)
            ),
            "all": lambda answer: _replace(answer, items=[]),
        }

    said = await _attacked(attack, changes)
    async with attack.opened() as house:
        his = await house.planted(house.b)
        before, count = await house.told(his), len(await house.b.sessions())
        for request in ("load", "items"):
            house.tampered.changes = {request: lambda answer: _replace(answer, session=None, items=[])}
            await must_refuse(_use(house, his, request), SessionNotFound, "a session that was withheld was made anew")
        house.tampered.changes = {}
        if await house.told(his) != before or len(await house.b.sessions()) != count:
            raise Leak("a session that was withheld is not what it was, or another came to be")
    return f"{said}; withheld altogether, it is refused and not made anew"


async def changed(attack: Attack) -> str:
    """No changed byte opens, and no clear column can be edited unnoticed"""

    def changes(hers: Answer, his: Answer) -> Changes:
        made: dict[str, Callable[[Any], Any]] = {}
        for part in ("wrapped", "head", "carry"):
            for at in (0, -20, -1):  # format, sealed text, tag
                made[f"{part}, byte {at}"] = _column(part, partial(_flipped, at=at))
        for column in ("version", "count", "tokens", "created_at", "updated_at", "expires_at"):
            made[column] = _column(column, lambda value: value + 1)
        made["turn"] = _column("turn", partial(_flipped, at=0))
        if not his.items:  # they are in the token
            return made
        for at in (0, 5, 13, -1):  # format, nonce, sealed text, tag
            made[f"a row, byte {at}"] = partial(_flipped_item, at=at)
        made["a row's role"] = lambda answer: _items(
            answer, 1, role="user" if answer.items[1].role != "user" else "tool"
        )
        made["a row's tokens"] = lambda answer: _items(answer, 1, tokens=answer.items[1].tokens + 1)
        return made

    said = await _attacked(attack, changes)
    async with attack.opened() as house:
        his = await house.planted(house.b)
        house.tampered.changes = {"load": _column("ended", lambda _: "ended")}
        await must_refuse(house.b.resume(his.id), IntegrityError, "a live session was taken for one that has ended")
    return said


async def older(attack: Attack) -> str:
    """An older state of a session is refused by a process that has seen a newer one"""
    async with attack.opened() as house:
        his = await house.planted(house.b)
        asked = {request: await _rows(house, his, request) for request in _requests(attack)}
        await house.talk(his)
        before = await house.told(his)
        for request, old in asked.items():
            await _must_notice(house, his, request, "an older state", partial(_like, other=old))
        await _same_again(house, his, before)
        return f"a state of one turn before, whole and in itself true, to {_asked_by(attack)}"


async def echoes(attack: Attack) -> str:
    """An answer to another request is refused: an earlier one, another user's, one without its mark"""
    async with attack.opened() as house:
        hers, his = await house.planted(house.a), await house.planted(house.b)
        count = 0
        for request in (*_requests(attack), "commit"):
            seen: list[Any] = []
            house.tampered.changes = {request: _kept_in(seen)}
            await _use(house, his, request)
            await _use(house, hers, request)
            house.tampered.changes = {}
            for what, change in (
                ("an earlier answer", lambda _, seen=seen: seen[0]),
                ("another user's answer", lambda _, seen=seen: seen[-1]),
                ("an answer without its mark", lambda answer: _replace(answer, echo=b"")),
            ):
                # Storing is carried out, and whoever asked is told that this is not known: each time another session.
                session = his if request != "commit" else await house.planted(house.b, turns=1)
                await _must_notice(house, session, request, what, change)
                count += 1
        await _same_again(house, his, await house.told(his))
        return f"{count} answers, to {_asked_by(attack)} and to storing"


# --- how it is done ---------------------------------------------------------------------------------------------------


def _requests(attack: Attack) -> tuple[str, ...]:
    """Give the requests whose answers are opened: that of a turn, and of a reader where items lie in the store."""
    return ("load",) if attack.in_tokens else ("load", "items")


def _asked_by(attack: Attack) -> str:
    return "a turn" if attack.in_tokens else "a turn and a reader"


async def _attacked(attack: Attack, changes: Callable[[Answer, Answer], Changes]) -> str:
    """Make each change to what answers a turn and a reader; give in words how many were noticed."""
    async with attack.opened() as house:
        hers, his = await house.planted(house.a), await house.planted(house.b)
        before = await house.told(his)
        count = 0
        for request in _requests(attack):
            rows = [await _rows(house, session, request) for session in (hers, his)]
            for what, change in changes(*rows).items():
                await _must_notice(house, his, request, what, change)
                count += 1
        await _same_again(house, his, before)
        return f"{count} changed answers, to {_asked_by(attack)}; each raised the alarm"


async def _must_notice(house: House, session: Session, request: str, what: str, change: Callable[[Any], Any]) -> None:
    """Raise `Leak` unless an answer so changed is an `IntegrityError`, put on record."""
    alarms, done = house.attack.witness.events["integrity.failed"], house.tampered.done
    house.tampered.changes = {request: change}
    try:
        await must_refuse(_use(house, session, request), IntegrityError, f"{what}: this was not noticed")
    finally:
        house.tampered.changes = {}
    if house.tampered.done == done:
        raise Leak(f"{what}: the answer came out as it was, so that nothing was tried")
    if house.attack.witness.events["integrity.failed"] == alarms:
        raise Leak(f"{what}: no alarm was put on record")


async def _use(house: House, session: Session, request: str) -> None:
    """Do with a session what makes that request."""
    if request == "items":
        await house.told(session)
    else:
        await house.talk(session)


async def _rows(house: House, session: Session, request: str) -> Answer:
    """Give what the store truly answers."""
    if request == "load":
        return await house.load(session.owner, session.stable_id)
    vault = house.cloister.vault
    return await vault.ask(vault.store.items, session.owner, session.stable_id, first=0, limit=1_000)


async def _same_again(house: House, session: Session, before: list[str]) -> None:
    if await house.told(session) != before:
        raise Leak("with true answers again, the session is not what it was")
    await house.talk(session)


def _session(answer: Answer) -> SealedSession:
    assert answer.session is not None
    return answer.session


def _like(answer: Answer, other: Answer) -> Answer:
    return _replace(answer, session=other.session, items=other.items, before=other.before)


def _column(name: str, edit: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Give a change that edits one column of the session's row."""

    def change(answer: Answer) -> Answer:
        row = _session(answer)
        return _replace(answer, session=_replace(row, **{name: edit(getattr(row, name))}))

    return change


def _flipped_item(answer: Answer, at: int) -> Answer:
    return _with_item(answer, 1, _flipped(answer.items[1].sealed, at))


def _items(answer: Answer, at: int, **columns: Any) -> Answer:
    items = list(answer.items)
    items[at] = _replace(items[at], **columns)
    return _replace(answer, items=items)


def _with_item(answer: Answer, at: int, sealed: bytes) -> Answer:
    return _items(answer, at, sealed=sealed)


def _renumbered(items: Any) -> list[SealedItem]:
    return list(_numbered(items))


def _numbered(items: Any) -> Iterator[SealedItem]:
    first = min(item.position for item in items)
    for position, item in enumerate(items, first):
        yield _replace(item, position=position)


def _kept_in(seen: list[Any]) -> Callable[[Any], Any]:
    """Give a change that changes nothing, and puts each answer into *seen*."""

    def keep(answer: Any) -> Any:
        seen.append(answer)
        return answer

    return keep


def _flipped(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)
