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
from dataclasses import dataclass, field

import asyncpg
import pytest
from tests.fakes import House, opened, told
from tests.servers import running_cluster

from cloister import Keyring
from cloister.audit import verify
from cloister.errors import IntegrityError, SessionBusy, SessionConflict, StoreUnavailable
from cloister.probe.proxy import Faults, Kind, Proxy
from cloister.stores.postgres_schema import migrate
from cloister.user import Session

_OFTEN: tuple[Kind, ...] = ("swap", "repeat", "stale", "truncate")
KINDS: tuple[Kind, ...] = (*_OFTEN * 5, "drop")  # one that is lost costs the store's deadline of 5 s
# Besides the two that the promise names: a lease whose release was lost keeps others out until it ends (`SessionBusy`),
# and a turn whose lease ran out while an answer was missing is not stored (`SessionConflict`).
REFUSALS = IntegrityError, StoreUnavailable, SessionBusy, SessionConflict


def answer_to(said: str) -> str:
    """Give what the parrot answers."""
    return f"You said: {said}"


@dataclass
class History:
    """What one session was told, in order, what of it was confirmed, and what reads showed meanwhile."""

    said: list[str] = field(default_factory=list)
    confirmed: list[str] = field(default_factory=list)
    reads: list[list[str]] = field(default_factory=list)

    def problems(self, stored: Sequence[str]) -> list[str]:
        """Name everything that *stored* should not be."""
        found = []
        questions, answers = stored[::2], stored[1::2]
        places = {text: place for place, text in enumerate(self.said)}
        if [answer_to(text) for text in questions] != list(answers):
            found.append("an answer does not belong to its question")
        found += [f"lost: {text}" for text in self.confirmed if text not in questions]
        found += [f"doubled: {text}" for text, count in Counter(questions).items() if count > 1]
        found += [f"phantom: {text}" for text in questions if text not in places]
        order = [places[text] for text in questions if text in places]
        if order != sorted(order):
            found.append("reordered")
        found += ["a read showed what was not stored" for read in self.reads if read != list(stored[: len(read)])]
        return found


def test_the_checker_finds_what_is_wrong() -> None:
    """Histories that are lost, doubled, reordered, foreign or mismatched are told from one that is right."""
    history = History(["a", "b", "c"], ["a", "c"], [["a", answer_to("a")]])

    def problems(*questions: str) -> str:
        return " ".join(history.problems([text for said in questions for text in (said, answer_to(said))]))

    assert problems("a", "c") == problems("a", "b", "c") == ""
    assert "lost: c" in problems("a", "b")
    assert "doubled: a" in problems("a", "a", "c")
    assert "phantom: x" in problems("a", "x", "c")
    assert "reordered" in problems("c", "a")
    assert "a read" in problems("b", "a", "c")
    assert "an answer" in history.problems(["a", answer_to("b"), "c", answer_to("c")])[0]


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


async def _talk(
    house: House, session: Session, user: str, turns: int, refused: Counter[str], chance: random.Random
) -> History:
    history = History()
    for number in range(turns):
        said = f"{user} says {number} in {secrets.token_hex(4)}"
        history.said.append(said)
        turn = asyncio.create_task(session.send(said))
        if chance.random() < 0.1:
            asyncio.get_running_loop().call_later(chance.random() * 0.02, turn.cancel)
        try:
            reply = await turn
            assert reply.text == answer_to(said)
            assert reply.session.id == session.id
            history.confirmed.append(said)
            if chance.random() < 0.1:
                history.reads.append(await told(session))
        except asyncio.CancelledError:
            refused["cancelled"] += 1
        except REFUSALS as error:
            refused[type(error).__name__] += 1
    return history


async def _storm(behind: Behind, turns: int, seed: int = 1) -> None:
    users = [f"{name}-{number}" for number in range(4) for name in ("ana", "ben")] * 4
    keyring, refused, chance = Keyring.generate(), Counter[str](), random.Random(seed)
    async with opened(behind.faulty, keyring=keyring) as house:
        sessions = [await house.cloister.user(user).start() for user in users]
        for proxy in behind.proxies:
            proxy.faults = Faults(0.05, KINDS, seed)
        histories = await asyncio.gather(
            *(
                _talk(house, session, user, turns // len(users) + 1, refused, chance)
                for session, user in zip(sessions, users, strict=True)
            )
        )
        for proxy in behind.proxies:
            proxy.faults = None
        await house.cloister.vault.settle()
        heads = house.cloister.store.heads()
    injected = sum((proxy.injected for proxy in behind.proxies), Counter[str]())
    assert set(injected) >= set(KINDS), injected
    assert sum(injected.values()) > turns * 0.05, injected
    async with opened(behind.direct, keyring=keyring) as house:
        for session, user, history in zip(sessions, users, histories, strict=True):
            stored = await told(await house.cloister.user(user).resume(session.id))
            assert all(text.removeprefix("You said: ").startswith(f"{user} says ") for text in stored)
            assert history.problems(stored) == []
        entries = await house.entries()
        assert verify(entries, {**heads, **house.cloister.store.heads()}).faults == []
    assert refused["IntegrityError"]
    assert "integrity.failed" in [entry.event for entry in entries]
    assert sum(len(history.confirmed) for history in histories) > turns / 2


async def test_a_thousand_turns_with_faults(behind: Behind) -> None:
    """Of a thousand turns nothing crosses, is lost or stored twice, and the log names what was found."""
    await _storm(behind, 1_000)


@pytest.mark.soak
async def test_a_cluster_with_faults(behind_cluster: Behind) -> None:
    """Nor on a cluster with a proxy in front of each node."""
    await _storm(behind_cluster, 1_000, seed=3)


@pytest.mark.soak
async def test_twenty_thousand_turns_with_faults(behind: Behind) -> None:
    """Nor of twenty thousand."""
    await _storm(behind, 20_000, seed=2)
