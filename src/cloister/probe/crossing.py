"""An attack by the network: answers that arrive at the wrong caller, come twice, or come late.

The fault injector (`cloister.probe.proxy`) stands between this process and the server, on this machine, for the
connections of this check alone. Nobody else's go through it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from cloister import stores
from cloister.errors import (
    CloisterError,
    ConfigurationError,
    IntegrityError,
    SessionBusy,
    SessionConflict,
    StoreUnavailable,
)
from cloister.probe.attack import Attack, Beyond, House, Leak, NotRun
from cloister.probe.lifetimes import check_history
from cloister.probe.proxy import Choose, Kind, Proxy, Reply
from cloister.session import Session

_KINDS: tuple[Kind, ...] = ("swap", "repeat", "swap", "stale")
_APART = 10, 30
"""Between two faults there are so many answers: one in twenty, and never by luck none at all."""
# Besides the two that the promise names: a lease whose release was crossed keeps others out until it ends, and a turn
# whose lease ran out meanwhile is not stored. Both say that nothing was.
REFUSALS = IntegrityError, StoreUnavailable, SessionBusy, SessionConflict
_SESSIONS = 8


@dataclass
class _History:
    said: list[str] = field(default_factory=list)
    confirmed: list[str] = field(default_factory=list)


async def crossed(attack: Attack) -> str:
    """Answers that the network swaps, repeats or brings late reach nobody else, and no turn is lost or stored twice"""
    refused: Counter[str] = Counter()
    async with _between(attack) as (proxy, url), attack.opened(connect=lambda: stores.connect(url)) as house:
        users = [user for _ in range(_SESSIONS // 2) for user in (house.a, house.b)]
        sessions = [await house.planted(user, turns=0) for user in users]
        histories = [_History() for _ in sessions]
        proxy.faults = _faults()
        turns = -(-attack.turns // _SESSIONS)
        with _driver_hushed():
            async with asyncio.TaskGroup() as tasks:
                for session, history in zip(sessions, histories, strict=True):
                    tasks.create_task(_talk(house, session, history, turns, refused))
            await house.cloister.vault.settle()
        proxy.faults = None
    async with attack.opened() as house:
        for session, history in zip(sessions, histories, strict=True):
            user = house.a if session.owner == attack.a else house.b
            told = await house.told(await user.resume(session.id))
            check_history(told, history.said, history.confirmed)
    swapped, confirmed = proxy.injected["swap"], sum(len(history.confirmed) for history in histories)
    if not swapped:
        raise Leak("no answer was swapped, so that nothing was tried; take more turns")
    faults = ", ".join(f"{count} {kind}" for kind, count in sorted(proxy.injected.items()))
    refusals = ", ".join(f"{count} {kind}" for kind, count in sorted(refused.items())) or "none"
    return f"{proxy.replies} answers, of which {faults}; {confirmed} turns stored, refused: {refusals}"


def _faults() -> Choose:
    kinds, due = itertools.cycle(_KINDS), 0

    def choose(reply: Reply) -> Kind | None:
        nonlocal due
        if reply.number < due:
            return None
        least, most = _APART
        due = reply.number + least + secrets.randbelow(most - least + 1)
        return next(kinds)

    return choose


@contextlib.contextmanager
def _driver_hushed() -> Iterator[None]:
    """Keep to ourselves what a driver reports to the event loop about answers that it never asked for."""
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda *_: None)
    try:
        yield
    finally:
        loop.set_exception_handler(before)


async def _talk(house: House, session: Session, history: _History, turns: int, refused: Counter[str]) -> None:
    for number in range(turns):
        said = house.attack.words(session.owner)
        history.said.append(said)
        try:
            await house.talk(session, said)
            history.confirmed.append(said)
            if number % 4 == 0:
                await house.told(session)
        except REFUSALS as error:
            refused[type(error).__name__] += 1
        except CloisterError as error:
            raise Leak(f"a crossed answer was taken for {type(error).__name__}") from error


@contextlib.asynccontextmanager
async def _between(attack: Attack) -> AsyncIterator[tuple[Proxy, str]]:
    """Stand between this process and the server; give the injector, and the store's URL through it."""
    protocol: Literal["resp", "postgres"]
    if attack.kind in ("postgresql", "postgres"):
        from cloister.probe.database import check_injectable

        protocol, port = "postgres", 5432
        await check_injectable(attack.url)
    elif attack.kind == "redis":
        protocol, port = "resp", 6379
    elif attack.kind == "rediss":
        raise Beyond("the connection is encrypted, and the fault injector does not look into it")
    elif attack.kind.endswith("+cluster"):
        raise Beyond("the nodes of a cluster tell clients their own addresses, past the fault injector")
    elif attack.in_tokens and attack.keeps:
        raise NotRun("what goes over a network is the ledger: attack that by itself, with --store and its URL")
    else:
        raise NotRun("nothing of this store goes over a network")
    parts = urlsplit(attack.url)
    who, at, host = parts.netloc.rpartition("@")
    if "," in host or not parts.hostname:
        raise Beyond("the fault injector stands before one server, and the URL names several, or none")
    async with Proxy(parts.hostname, parts.port or port, protocol) as proxy:
        url = urlunsplit(parts._replace(netloc=f"{who}{at}127.0.0.1:{proxy.port}"))
        try:
            async with attack.opened(connect=lambda: stores.connect(url)):
                pass
        except ConfigurationError as error:  # that it opens otherwise was seen before
            raise Beyond(f"the server does not let us in through the fault injector: {error}") from None
        yield proxy, url


async def describe(url: str) -> str:
    """Say which Redis this is."""
    from redis.asyncio import Redis

    client = Redis.from_url(urlunsplit(urlsplit(url)._replace(query="")), protocol=2)
    try:
        return f"Redis {(await client.info('server'))['redis_version']}"
    finally:
        await client.aclose()
