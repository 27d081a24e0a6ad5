"""Attacks of one user on another: by ids that are foreign, guessed or malformed, by look-alike names, by lists."""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterator
from typing import Any

import msgspec

from cloister import sessions
from cloister.audit import Entry, verify
from cloister.errors import ConfigurationError, SessionConflict, StoreError
from cloister.model import Owner
from cloister.probe.attack import Attack, Beyond, House, Leak, absent_id, must_refuse, refusal
from cloister.session import Session
from cloister.stores.base import Commit, Loaded, Page, Record
from cloister.user import User

_REFUSED = ("SessionNotFound", "TokenInvalid")
_TAIL = 5_000


async def foreign(attack: Attack) -> str:
    """Another's session id and an id of nobody are refused alike, to every request, and do nothing"""
    async with attack.opened() as house:
        hers = await house.planted(house.a)
        before, absent = await house.told(hers), absent_id(hers)
        calls = 0
        for call in ("resume", "after", "history", "turn", "append", "update", "hide", "end"):
            foreign, nobodys = [await refusal(_as(house, house.b, call, name, hers)) for name in (hers.id, absent)]
            _alike(call, foreign, nobodys)
            calls += 1
        if not attack.keeps:
            await _unharmed(house, hers, before)
            return f"{calls} calls, each with either id"
        foreign_rows, nobodys_rows = [await _answers(house, attack.b, name) for name in (hers.stable_id, absent)]
        if foreign_rows != nobodys_rows:
            raise Leak("the store answers another's id otherwise than one that nobody has")
        if any(answer.session is not None or answer.items for answer in foreign_rows):
            raise Leak("the store hands out rows of a session to another owner")
        await _unharmed(house, hers, before)
        return f"{calls} calls and {len(foreign_rows)} requests to the store itself, each with either id"


async def guessed(attack: Attack) -> str:
    """An id that is nearly right is absent, for its owner as for others"""
    async with attack.opened() as house:
        hers = await house.planted(house.a, turns=1)
        near = list(_near(hers.stable_id))
        for guess in near:
            for user in (house.a, house.b):
                kind, _ = await refusal(user.resume(guess))
                if kind not in _REFUSED:
                    raise Leak(f"an id with one difference opens something ({kind or 'no refusal'})")
                if (await house.load(user.owner, guess)).session is not None:
                    raise Leak("the store finds a session under an id that is nearly its own")
        return f"{len(near)} guesses: one changed character, other bits behind the last, the next place, other case"


async def malformed(attack: Attack) -> str:
    """What is no id is refused like an absent one, and is nothing but text to the store"""
    async with attack.opened() as house:
        hers = await house.planted(house.a, turns=1)
        before = await house.told(hers)
        expected = await refusal(house.b.resume(absent_id(hers)))
        shapes = [*_shapes(hers.id), None, 7, hers.id.encode()]
        for shape in shapes:
            given: Any = shape
            found = await refusal(house.b.resume(given))
            if found != expected:
                raise Leak(f"an id of another shape is refused otherwise: {found[0] or 'not at all'}")
        asked = 0
        for shape in _patterns(hers.stable_id) if attack.keeps else ():
            for owner in attack.owners:
                try:
                    answer = await house.load(owner, shape)
                except ConfigurationError:
                    raise
                except (StoreError, ValueError, LookupError):  # it cannot even be asked for
                    continue
                asked += 1
                if answer.session is not None:
                    raise Leak("the store takes an id for a pattern or a statement")
        await _unharmed(house, hers, before)
        return f"{len(shapes)} shapes; {asked} patterns to the store itself"


async def names(attack: Attack) -> str:
    """Owners whose names look alike, or are patterns, share nothing"""
    async with attack.opened() as house:
        hers = await house.planted(house.a, turns=1)
        alike = list(_lookalikes(attack.a))
        for owner in alike:
            if (await house.load(owner, hers.stable_id)).session is not None:
                raise Leak(f"the store takes {owner.user.replace(attack.run, '…')!r} for another user")
        return f"{len(alike)} names: longer, shorter, in other case, with wildcards and quotes"


async def lists(attack: Attack) -> str:
    """Everybody is listed what is theirs, and ending all of that ends nothing else"""
    async with attack.opened() as house:
        hers = [await house.planted(house.a, turns=1) for _ in range(3)]
        his = [await house.planted(house.b, turns=1) for _ in range(2)]
        for user, own in ((house.a, hers), (house.b, his)):
            listed = {session.stable_id for session in await user.sessions()}
            if not {session.stable_id for session in own} <= listed:
                raise Leak("a session is not listed to its owner")
            vault = house.cloister.vault
            rows = (await vault.ask(vault.store.sessions, user.owner, limit=100, before=None)).sessions
            if any(row.owner != user.owner for row in rows):
                raise Leak("the store lists sessions to another owner")
        ended = await house.b.end_all()
        if len(await house.a.sessions()) < len(hers):
            raise Leak("ending all sessions of one owner ended another's")
        return f"3 and 2 sessions; then all {ended} of one were ended"


async def touches(attack: Attack) -> str:
    """Nobody renews, gives back, re-wraps, ends, overwrites or replaces what is another's"""
    async with attack.opened() as house:
        hers, his = await house.planted(house.a), await house.planted(house.b)
        before = await house.told(hers)
        vault, lease = house.cloister.vault, secrets.token_bytes(16)
        row = (await house.load(attack.a, hers.stable_id, lease=lease)).session
        assert row is not None
        theirs = msgspec.structs.replace(row, owner=attack.b)
        ask, store, name = vault.ask, vault.store, hers.stable_id
        await must_refuse(ask(store.renew, attack.b, name, lease), SessionConflict, "another's lease was renewed")
        await ask(store.release, attack.b, name, lease)
        if not (await house.load(attack.a, name, lease=secrets.token_bytes(16))).busy:
            raise Leak("another's lease was given back")
        commit = Commit(row.version, lease, msgspec.structs.replace(theirs, version=row.version + 1, turn=b"x" * 16))
        await must_refuse(ask(store.commit, commit), SessionConflict, "a turn was stored in another's session")
        if (await ask(store.rewrap, theirs, b"x" * 61, None)).count:
            raise Leak("another's secret was replaced")
        if (await ask(store.end, attack.b, name, ended="ended", now=row.updated_at)).count:
            raise Leak("another's session was ended")
        beside = sessions.new_id(name)
        successor = msgspec.structs.replace(theirs, id=beside, turn=b"y" * 16)
        await must_refuse(
            ask(store.create, successor, instead_of=name), SessionConflict, "a session came in another's place"
        )
        kept = Record(his.stable_id, his.stable_id, secrets.token_bytes(32), b"sealed", row.created_at + (1 << 50))
        beside_his = msgspec.structs.replace(theirs, id=sessions.new_id(his.stable_id), turn=b"z" * 16)
        await ask(store.create, beside_his, record=kept)
        if (await house.load(attack.a, his.stable_id, record=kept.key)).record is not None:
            raise Leak("another's idempotency record was found")
        await ask(store.end, attack.b, beside_his.id, ended="ended", now=row.updated_at)  # it was no true session
        await ask(store.release, attack.a, name, lease)
        await _unharmed(house, hers, before)
        return "7 requests in another's name"


async def log(attack: Attack) -> str:
    """The audit log tells a foreign id from an absent one, in entries that follow each other"""
    async with attack.opened() as house:
        hers = await house.planted(house.a, turns=1)
        absent = absent_id(hers)
        for name in (hers.id, absent):
            await refusal(house.b.resume(name))
        await house.cloister.vault.settle()
        store, heads = house.cloister.store, house.cloister.store.heads()
        try:
            tail = (await store.audit_tail(_TAIL)).entries
        except ConfigurationError as error:
            raise Beyond(f"the log cannot be read here: {error}") from None
        entries = sorted((entry for entry in tail if entry.writer in heads), key=lambda entry: entry.number)
        faults = verify(entries, heads).faults
        if faults:
            raise Leak(f"the entries of this run do not verify: {faults[0].problem}")
        absence = "access.absent" if attack.keeps else "token.damaged"  # which no ledger has
        found = {entry.event: entry for entry in entries if entry.event in ("access.foreign", absence)}
        if set(found) != {"access.foreign", absence}:
            raise Leak(f"on record for a foreign and an absent id: {', '.join(sorted(found)) or 'nothing'}")
        _check_alarm(found["access.foreign"], hers.stable_id)
        attack.audit_ids |= {found["access.foreign"].owner, found["access.foreign"].other}
        return f"{len(entries)} entries; the foreign id is an alert that names both, the absent one is none"


def _check_alarm(entry: Entry, session_id: str) -> None:
    named = entry.owner and entry.other and entry.owner != entry.other
    if entry.severity != "alert" or not named or entry.session != sessions.digest(session_id):
        raise Leak("the alarm does not say who tried whose session")


# --- attempts ---------------------------------------------------------------------------------------------------------


async def _as(house: House, user: User, call: str, name: str, hers: Session) -> None:
    """Make a call with another's id, or with one that nobody has."""
    borrowed = Session(
        house.cloister.services, user.owner, name, hers.head, hers.stable_id if name == hers.id else name
    )
    match call:
        case "resume":
            await user.resume(name)
        case "after":
            await user.sessions(after=name)
        case "history":
            await borrowed.history()
        case "turn":
            await house.talk(borrowed)
        case "append":
            await borrowed.append({"role": "user", "content": house.attack.words(user.owner)})
        case "update":
            await borrowed.update(title="mine")
        case "hide":
            await borrowed.hide(sessions.new_item_id(0))
        case _:
            await borrowed.end()


def _alike(call: str, foreign: tuple[str, str], nobodys: tuple[str, str]) -> None:
    if foreign != nobodys:
        raise Leak(f"{call}: another's id gives {foreign[0] or 'no refusal'}, one of nobody {nobodys[0] or 'none'}")
    if foreign[0] not in _REFUSED and (call, foreign[0]) != ("end", "ConfigurationError"):  # a token alone has no end
        raise Leak(f"{call}: another's id gives {foreign[0] or 'no refusal'}")


async def _answers(house: House, owner: Owner, name: str) -> list[Loaded | Page]:
    """Ask the store itself for a session in every way, and give the answers without their echoes."""
    vault, lease = house.cloister.vault, secrets.token_bytes(16)
    answers: list[Loaded | Page] = [await house.load(owner, name), await house.load(owner, name, lease=lease)]
    answers.append(await vault.ask(vault.store.items, owner, name, first=0, limit=100))
    return [msgspec.structs.replace(answer, echo=b"", items=tuple(answer.items)) for answer in answers]


async def _unharmed(house: House, session: Session, before: list[str]) -> None:
    if await house.told(session) != before:
        raise Leak("the session that was attacked is not what it was")


def _near(session_id: str) -> Iterator[str]:
    alphabet = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
    for at in (3, 4, 24, len(session_id) - 2, len(session_id) - 1):
        for other in (1, 16, 63):
            character = alphabet[(alphabet.index(session_id[at]) + other) % 64]
            yield session_id[:at] + character + session_id[at + 1 :]
    # The last character has two bits more than the id: another one there may stand for the same bytes.
    yield session_id[:-1] + alphabet[alphabet.index(session_id[-1]) ^ 1]
    if (other_case := session_id[:3] + session_id[3:].swapcase()) != session_id:
        yield other_case
    yield session_id[:3] + session_id[3:][::-1]


def _shapes(session_id: str) -> list[str]:
    return [
        *_patterns(session_id),
        "",
        " " + session_id,
        session_id + "\n",
        session_id.upper(),
        session_id[3:],
        session_id + "\x00",
        "cs_" + "\udcff" * 43,
        "cs_" + "ａ" * 43,
        "cs_" + "a" * 1_000_000,
        "../" + session_id,
    ]


def _patterns(session_id: str) -> list[str]:
    return [
        "*",
        "%",
        "cs_%",
        "cs_*",
        "cs_" + "_" * 43,
        "cs_" + "?" * 43,
        session_id[:-1] + "?",
        session_id[:-1] + "%",
        session_id[:-1],
        session_id + "' OR '1'='1",
        "' OR 1=1 --",
        "{" + session_id + "}",
        session_id + "\r\nKEYS *",
    ]


def _lookalikes(owner: Owner) -> Iterator[Owner]:
    user = owner.user
    for name in (
        user.upper().replace(user[15:31].upper(), user[15:31]),
        user + "a",
        user[:-1],
        user[:-1] + "%",
        user[:-1] + "_",
        user[:-1] + "*",
        user[:-1] + "?",
        user[:-1] + "[a]",
        user[:-1] + "{a}",
        user + "'--",
        user[:-1] + "ａ",
        user + ":",
        user + " a",
    ):
        yield Owner(owner.tenant, name)
