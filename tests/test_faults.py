"""Stores on a network behind answers that are crossed, repeated, stale, cut and lost, with turns cancelled at random.

Nothing crosses between owners, nothing is stored twice or lost, and whatever was refused says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from tests.fakes import House, Parrot, opened, told
from tests.histories import Event, ask, problems, read
from tests.servers import running_cluster

from cloister import Keyring
from cloister.audit import Entry, Report, verify
from cloister.errors import IntegrityError, SessionBusy, SessionConflict, StoreUnavailable
from cloister.model import Limits, Owner, SealedSession
from cloister.opened import Opened
from cloister.probe.proxy import Faults, Kind, Proxy
from cloister.providers.base import Request
from cloister.session import Session
from cloister.stores.base import Loaded, Page
from cloister.stores.pool import Pool
from cloister.stores.postgres_schema import migrate
from cloister.vault import Vault

_OFTEN: tuple[Kind, ...] = ("swap", "repeat", "stale", "truncate")
KINDS: tuple[Kind, ...] = (*_OFTEN * 5, "drop")  # one that is lost costs the store's deadline
LIMITS, NOT_WAITING = Limits(), Limits(turn_wait=timedelta(0))
# Besides the two that the promise names: a lease whose release was lost keeps others out until it ends (`SessionBusy`),
# and a turn whose lease ran out while an answer was missing is not stored (`SessionConflict`).
REFUSALS = IntegrityError, StoreUnavailable, SessionBusy, SessionConflict


@dataclass
class Behind:
    """A store: its URL, and the one that goes through the proxies."""

    direct: str
    faulty: str
    proxies: Sequence[Proxy]


@pytest.fixture(params=["postgres", "redis"])
async def behind(request: pytest.FixtureRequest) -> AsyncIterator[Behind]:
    server: str = request.getfixturevalue(request.param)
    address = server.rpartition("@")[2]
    host, _, port = address.partition(":")
    if request.param == "redis":
        async with Proxy(host, int(port), "resp") as proxy:
            rest = f"/0?prefix={secrets.token_hex(4)}:"
            yield Behind(f"redis://{address}{rest}", f"redis://127.0.0.1:{proxy.port}{rest}", [proxy])
        return
    name = f"faults_{secrets.token_hex(6)}"
    owner = await asyncpg.connect(f"{server}/postgres")
    await owner.execute(f"CREATE DATABASE {name}")
    inside = await asyncpg.connect(f"{server}/{name}")
    await migrate(inside, "cloister_app")
    await inside.close()
    async with Proxy(host, int(port), "postgres") as proxy:
        app = "postgresql://cloister_app@"
        yield Behind(f"{app}{address}/{name}", f"{app}127.0.0.1:{proxy.port}/{name}", [proxy])
    await owner.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await owner.close()


@pytest.fixture
async def behind_cluster() -> AsyncIterator[Behind]:
    """A cluster of one's own, each node of which has a proxy that it names to clients."""
    with running_cluster() as cluster:
        async with contextlib.AsyncExitStack() as stack:
            opening = [Proxy("127.0.0.1", node.port, "resp") for node in cluster.nodes]
            proxies = [await stack.enter_async_context(proxy) for proxy in opening]
            ports = {node.port: proxy.port for node, proxy in zip(cluster.nodes, proxies, strict=True)}
            await asyncio.to_thread(cluster.announce, ports)
            url = "redis+cluster://" + ",".join(f"127.0.0.1:{proxy.port}" for proxy in proxies)
            yield Behind(url, url, proxies)


class Witness(Parrot):
    """Keeps no request, but remembers whose words it was shown together."""

    def __init__(self) -> None:
        super().__init__()
        self.crossed: list[str] = []

    async def complete(self, request: Request) -> Any:
        whose = {message["content"].removeprefix("You said: ").partition(" says ")[0] for message in request.messages}
        if len(whose) != 1:
            self.crossed.append(f"seen: {whose}")
        answer = await super().complete(request)
        self.requests.clear()
        return answer


async def _talk(
    house: House,
    session: Session,
    user: str,
    turns: int,
    refused: Counter[str],
    chance: random.Random,
    tolerated: tuple[type[Exception], ...],
) -> list[Event]:
    events: list[Event] = []
    for number in range(turns):
        said = f"{user} says {number} in {secrets.token_hex(4)}"
        turn = asyncio.create_task(ask(events.append, session, said))
        if chance.random() < 0.1:
            asyncio.get_running_loop().call_later(chance.random() * 0.02, turn.cancel)
        try:
            await turn
            if chance.random() < 0.1:
                await read(events.append, session)
        except asyncio.CancelledError:
            refused["cancelled"] += 1
        except tolerated as error:
            refused[type(error).__name__] += 1
    return events


@dataclass
class Outcome:
    """What came of a storm."""

    problems: list[str]
    refused: Counter[str]
    answered: int
    entries: list[Entry]
    log: Report


async def _storm(
    behind: Behind,
    turns: int,
    seed: int = 1,
    rate: float = 0.05,
    kinds: Sequence[Kind] = KINDS,
    tolerated: tuple[type[Exception], ...] = REFUSALS,
    limits: Limits = LIMITS,
) -> Outcome:
    users = [f"{name}-{number}" for number in range(4) for name in ("ana", "ben")] * 4
    keyring, refused, chance = Keyring.generate(), Counter[str](), random.Random(seed)
    witness = Witness()
    async with opened(behind.faulty, keyring=keyring, provider=witness, limits=limits) as house:
        sessions = [await house.cloister.user(user).start() for user in users]
        for proxy in behind.proxies:
            proxy.faults = Faults(rate, kinds, seed)
        seen = await asyncio.gather(
            *(
                _talk(house, session, user, turns // len(users) + 1, refused, chance, tolerated)
                for session, user in zip(sessions, users, strict=True)
            )
        )
        for proxy in behind.proxies:
            proxy.faults = None
        await house.cloister.vault.settle()
        heads = house.cloister.store.heads()
    injected = sum((proxy.injected for proxy in behind.proxies), Counter[str]())
    assert set(injected) >= set(kinds), injected
    assert sum(injected.values()) > turns * rate, injected
    events = [event for history in seen for event in history]
    async with opened(behind.direct, keyring=keyring) as house:
        stored = {
            session.id: await told(await house.cloister.user(user).resume(session.id))
            for session, user in zip(sessions, users, strict=True)
        }
        entries = await house.entries()
        log = verify(entries, {**heads, **house.cloister.store.heads()})
    answered = sum(event.what == "answered" for event in events)
    return Outcome(problems(events, stored) + witness.crossed, refused, answered, entries, log)


async def _withstands(behind: Behind, turns: int, seed: int = 1, rate: float = 0.05) -> None:
    outcome = await _storm(behind, turns, seed, rate)
    assert outcome.problems == []
    assert outcome.log.faults == []
    assert outcome.refused["IntegrityError"]
    assert "integrity.failed" in [entry.event for entry in outcome.entries]
    assert outcome.answered > turns / 2


async def test_hundreds_of_turns_with_faults(behind: Behind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four hundred turns nothing crosses, is lost or stored twice, and the log names what was found."""
    monkeypatch.setitem(Pool.__init__.__kwdefaults__ or {}, "deadline", timedelta(seconds=2))
    await _withstands(behind, 400, rate=0.12)


@pytest.mark.soak
async def test_a_cluster_with_faults(behind_cluster: Behind) -> None:
    """Nor on a cluster with a proxy in front of each node."""
    await _withstands(behind_cluster, 1_000, seed=3)


@pytest.mark.soak
async def test_twenty_thousand_turns_with_faults(behind: Behind) -> None:
    """Nor of twenty thousand."""
    await _withstands(behind, 20_000, seed=2)


class _Careless:
    """Finds that any two nonces are the same."""

    @staticmethod
    def compare_digest(one: bytes, other: bytes) -> bool:
        return True


class _Trusting(Vault):
    """Takes a row to be whose it says it is, instead of whose it was asked to be."""

    async def _present(self, owner: Owner, session_id: str, loaded: Loaded | Page) -> SealedSession:
        return loaded.session or await self.refuse(owner, session_id)

    async def _unseal(self, row: SealedSession, owner: Owner, session_id: str) -> Opened:
        return await super()._unseal(row, row.owner, row.id)


@pytest.mark.parametrize(
    ("turns", "rate", "kinds"), [(200, 0.3, ("swap",)), pytest.param(1_000, 0.05, KINDS, marks=pytest.mark.soak)]
)
async def test_the_storm_finds_a_leak(
    behind: Behind, turns: int, rate: float, kinds: Sequence[Kind], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same storm names what crosses, once nonces are not compared and rows are taken at their word."""
    for module in ("stores.redis_wire", "stores.postgres_wire", "vault"):
        monkeypatch.setattr(f"cloister.{module}.hmac", _Careless)
    monkeypatch.setattr("cloister.client.Vault", _Trusting)
    monkeypatch.setitem(Pool.__init__.__kwdefaults__ or {}, "deadline", timedelta(seconds=1))
    for seed in range(10):
        outcome = await _storm(behind, turns, seed, rate, kinds, tolerated=(Exception,), limits=NOT_WAITING)
        if "seen" in {found.partition(":")[0] for found in outcome.problems}:
            return
    pytest.fail("ten storms without a leak")
