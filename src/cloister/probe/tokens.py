"""Attacks on sealed tokens: another's, changed ones, and those that were used before."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from cloister.errors import CloisterError, TokenInvalid
from cloister.probe.attack import Attack, House, Leak, must_refuse, refusal
from cloister.session import Session

_PLACES = 40


async def changed(attack: Attack) -> str:
    """A token with anything changed, cut off or added is refused, in the words in which another's is"""
    async with attack.opened() as house:
        hers = await house.planted(house.a)
        before, token = await house.told(hers), hers.id
        expected = await refusal(house.b.resume(token))
        if expected[0] != "TokenInvalid":
            raise Leak(f"another's token gives {expected[0] or 'no refusal'}")
        made = list(_changed(token))
        for other in made:
            for user in (house.a, house.b):
                found = await refusal(
                    _read(house, Session(house.cloister.services, user.owner, other, hers.head, hers.stable_id))
                )
                if found != expected:
                    raise Leak(f"a token that was changed gives {found[0] or 'no refusal'}")
        if await house.told(await house.a.resume(token)) != before:
            raise Leak("the session is not what it was")
        return f"{len(made)} changed tokens of {len(token)} characters, to both"


async def used(attack: Attack) -> str:
    """A token that was used is refused, each attempt an alert; of two turns with one token, one is stored"""
    async with attack.opened() as house:
        hers = await house.planted(house.a)
        old = await house.a.resume(hers.id)
        first = await house.talk(hers)
        alerts = attack.witness.events["token.replayed"]
        await must_refuse(house.talk(old), TokenInvalid, "another turn was taken with a token that was used before")
        await must_refuse(house.told(old), TokenInvalid, "a history was read with a token that was used before")
        await must_refuse(house.a.resume(old.id), TokenInvalid, "a token that was used before was resumed")
        await house.cloister.vault.settle()
        if attack.witness.events["token.replayed"] != alerts + 3:
            raise Leak("that a token was used again is not on record each time")
        twins = [await house.a.resume(hers.id) for _ in range(2)]
        done = await asyncio.gather(*map(house.talk, twins), return_exceptions=True)
        won = [(twin, said) for twin, said in zip(twins, done, strict=True) if isinstance(said, str)]
        if len(won) != 1 or not all(isinstance(said, str | CloisterError) for said in done):
            raise Leak(f"of two turns with one token {len(won)} were stored")
        ((twin, said),) = won
        told = await house.told(twin)
        if told.count(first) != 1 or told[-2] != said:
            raise Leak("the conversation does not go on from the turn that was stored")
        return "one used before, to a turn, a reader and to resume; one used twice at once"


async def _read(house: House, session: Session) -> None:
    await house.told(session)


def _changed(token: str) -> Iterator[str]:
    for at in range(0, len(token), max(1, len(token) // _PLACES)):
        yield token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
    yield from (
        token[:-1],
        token[:-4],
        token[: len(token) // 2],
        token[4:],
        token + "AAAA",
        token + token,
        token.swapcase(),
    )
