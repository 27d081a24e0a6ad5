"""How a worker's time is shared between tenants: who floods it waits, and nobody else does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from tests.firm import firm
from tests.serving import UNRATED

from cloister.client import AsyncCloister
from cloister.errors import RateLimited
from cloister.model import Owner
from cloister.server.app import Application
from cloister.server.headers import Headers
from cloister.server.identity import Caller
from cloister.server.routes import Call, Route
from cloister.server.settings import ServerSettings
from cloister.server.shares import Shares

LONG = 0.005
"""How many seconds a step takes that uses up a round of the loop."""


class Work:
    """Work of so many steps, each of which takes a while; it says who went on when."""

    def __init__(self, takes: float = LONG) -> None:
        self.takes = takes
        self.now = 0.0
        self.went: list[str] = []
        self.shares = Shares(lambda: self.now)

    def step(self, name: str) -> None:
        self.went.append(name)
        self.now += self.takes

    async def steps(self, name: str, many: int) -> str:
        for _ in range(many):
            self.step(name)
            await asyncio.sleep(0)
        return name

    async def until(self, many: int) -> None:
        """Wait until so many steps were taken."""
        for _ in range(10_000):
            if len(self.went) >= many:
                return
            await asyncio.sleep(0)
        raise AssertionError(f"only {len(self.went)} steps were taken")

    async def request(self, tenant: str, many: int, name: str = "") -> str:
        return await self.shares.of(tenant).steps(self.steps(name or tenant, many))


async def test_a_flood_waits_for_itself() -> None:
    """With forty requests of one tenant under way, another's single one takes every second step."""
    work = Work()
    async with asyncio.TaskGroup() as group:
        for _ in range(40):
            group.create_task(work.request("acme", 10))
        await work.until(20)
        before = len(work.went)
        assert await work.request("globex", 10) == "globex"
        assert len(work.went) - before <= 22
    assert work.went.count("acme") == 400


async def test_who_has_had_least_goes_on_at_once() -> None:
    """Behind a flood that waits, another tenant's step waits for nothing but the step that goes on already."""
    work = Work()
    async with asyncio.TaskGroup() as group:
        for _ in range(40):
            group.create_task(work.request("acme", 5))
        await work.until(20)
        for _ in range(5):
            before = len(work.went)
            group.create_task(work.request("globex", 1))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert "globex" in work.went[before : before + 2]


async def test_what_has_begun_is_finished_first() -> None:
    """Of one tenant's requests the oldest goes on: no more than a few are under way, and hold what others need."""
    work = Work(takes=0.0025)
    await asyncio.gather(*[work.request("acme", 5, f"request {number}") for number in range(16)])
    begun, most = set[str](), 0
    for at, name in enumerate(work.went):
        begun.add(name)
        most = max(most, len({one for one in begun if one in work.went[at:]}))
    assert len(work.went) == 80
    assert most <= 4


async def test_who_needs_little_waits_for_nothing() -> None:
    """Short steps go on as they come, dozens in one round of the loop."""
    work = Work(takes=0.0001)
    await work.request("acme", 100)
    del work.went[:]
    names = [f"request {number}" for number in range(60)]
    await asyncio.gather(*[work.request("acme", 3, name) for name in names])
    assert work.went == names * 3


async def test_who_is_alone_goes_on_in_longer_rounds() -> None:
    """While nobody else has come for a second, ten times as much goes on in a round; whoever comes then shares."""
    work = Work()
    await work.request("globex", 1)
    await work.request("acme", 300)  # which takes a second and a half
    del work.went[:]
    async with asyncio.TaskGroup() as group:
        for number in range(40):
            group.create_task(work.request("acme", 40, f"request {number}"))
        await work.until(4)
        assert work.went[:4] == [f"request {number}" for number in range(4)]
        before = len(work.went)
        await work.request("globex", 10)
        assert len(work.went) - before <= 40


async def test_short_steps_that_wait_go_on_together() -> None:
    """Behind a long step many short ones wait, and go on as many in a round of the loop as fit into it."""
    work = Work(takes=0.0001)
    await asyncio.gather(*[work.request("acme", 1) for _ in range(50)])
    work.takes = LONG
    long = asyncio.create_task(work.request("globex", 1))
    await work.until(51)
    work.takes = 0.0001
    tasks = [asyncio.create_task(work.request("acme", 1)) for _ in range(100)]
    for _ in range(20):
        await asyncio.sleep(0)
    assert all(task.done() for task in (long, *tasks))


async def test_what_was_not_used_is_not_saved_up() -> None:
    """Who asked for nothing for long is ahead by a moment, and shares alike from then on."""
    work = Work()
    await work.request("globex", 1)
    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(work.request("acme", 500))
        await work.until(1_000)
        del work.went[:]
        for _ in range(4):
            group.create_task(work.request("globex", 100))
        await work.until(110)
        assert 50 <= work.went[:100].count("globex") <= 60


async def test_three_tenants_have_a_third_each() -> None:
    """However many requests each has under way, tenants get alike of the time that they all want."""
    work = Work()
    async with asyncio.TaskGroup() as group:
        for tenant, many in (("acme", 30), ("globex", 3), ("initech", 1)):
            for _ in range(many):
                group.create_task(work.request(tenant, 300 // many))
        await work.until(90)
        assert {work.went[:90].count(tenant) for tenant in ("acme", "globex", "initech")} <= set(range(25, 36))


@pytest.mark.parametrize("waits_for", ["its turn", "a model"])
async def test_who_is_cancelled_leaves_at_once(waits_for: str) -> None:
    """A request needs no turn to be cancelled, whatever it waits for; what it leaves behind is in order."""
    work, left = Work(), []

    async def leaving() -> None:
        try:
            if waits_for == "a model":
                await asyncio.Event().wait()
            await work.steps("leaving", 1_000)
        finally:
            left.append("left")

    shares = [work.shares.of("acme") for _ in range(10)]
    task = asyncio.create_task(_awaiting(work.shares.of("acme").steps(leaving())))
    shares += [work.shares.of("acme") for _ in range(10)]
    tasks = [asyncio.create_task(_awaiting(share.steps(work.steps("acme", 20)))) for share in shares]
    await work.until(20)
    task.cancel()
    before = len(work.went)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left == ["left"]
    assert len(work.went) - before <= 3
    await asyncio.wait_for(asyncio.gather(*tasks), 10)
    assert work.went.count("acme") == 400


async def _awaiting(work: Any) -> Any:
    return await work


async def test_it_is_one_task_and_fails_as_it_does() -> None:
    """Deadlines end what waits for its turn, and what is raised arrives."""
    work = Work()

    async def fails() -> None:
        async with asyncio.timeout(0.01):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                work.went.append("cancelled")
                raise

    with pytest.raises(TimeoutError):
        await work.shares.of("acme").steps(fails())
    assert work.went == ["cancelled"]


async def test_no_more_than_so_many_wait() -> None:
    """Who comes to a tenant's full queue is refused at once, with seconds to come back; others are not."""
    work = Work()
    work.shares = Shares(lambda: work.now, most=5)
    asked = [*["acme"] * 9, "globex"]
    done = await asyncio.gather(*[work.request(tenant, 20) for tenant in asked], return_exceptions=True)
    assert (done.count("acme"), done.count("globex")) == (6, 1)
    refused = [one for one in done if isinstance(one, RateLimited)]
    assert len(refused) == 3
    assert refused[0].retry_after.total_seconds() >= 1


# --- behind the door --------------------------------------------------------------------------------------------------


class Known:
    """Believe whoever says so: the name of a tenant is its key."""

    async def caller(self, headers: Headers, source: str) -> Caller:
        tenant = headers["authorization"]
        return Caller("service", tenant, None, tenant)

    async def owner(self, caller: Caller, headers: Headers, *named: str) -> Owner:
        return Owner(caller.tenant, "ana")

    async def close(self) -> None: ...


@contextlib.asynccontextmanager
async def behind_doors(work: Work) -> AsyncIterator[httpx2.AsyncClient]:
    async def steps(call: Call) -> Any:
        return {"done": await work.steps(str(call.caller.tenant), 10)}

    routes = [Route("GET", "/v1/list", steps, "List"), Route("GET", "/v1/ask", steps, "Ask", waits=True)]
    app = Application(
        lambda: AsyncCloister.open("memory://", provider="offline", tenancy="required"),
        UNRATED,
        routes=routes,
        identities=lambda _: Known(),
    )
    async with app.opened():
        app.behind().shares = work.shares
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://server") as client:
            yield client


@pytest.mark.parametrize("path", ["/v1/list", "/v1/ask"])
async def test_requests_are_worked_on_in_turns(path: str) -> None:
    """While one tenant floods a worker, another's request is worked on as often as all of the flood (row 55)."""
    work = Work()
    async with behind_doors(work) as client:
        flood = [asyncio.create_task(client.get(path, headers={"authorization": "acme"})) for _ in range(40)]
        await work.until(20)
        before = len(work.went)
        answer = await client.get(path, headers={"authorization": "globex"})
        assert answer.json() == {"done": "globex"}
        assert len(work.went) - before <= 40
        assert {one.status_code for one in await asyncio.gather(*flood)} == {200}


async def test_a_full_queue_is_a_429() -> None:
    """Over HTTP whoever finds too many waiting is told when to come back, before the request is worked on."""
    work = Work()
    work.shares = Shares(most=0)
    async with behind_doors(work) as client:
        answer = await client.get("/v1/list", headers={"authorization": "acme"})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert work.went == []


async def test_who_is_named_by_a_key_floods_for_themselves() -> None:
    """A user whom a service names, over their limit, counts no more for the tenant, nor is their body read."""
    async with firm(ServerSettings(requests_per_minute_user=5, requests_per_minute_tenant=20)) as house:
        paths = (("POST", "/responses", "no object"), ("GET", "/conversations?limit=no", None))
        flood = [(await house.ask("ben", *paths[number % 2])).status_code for number in range(60)]
        assert flood == [400] * 5 + [429] * 55
        assert [(await house.turn("ana")).status_code for _ in range(5)] == [200] * 5
