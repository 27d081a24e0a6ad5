"""Connections to a server: lent to one request at a time, and cut at the least doubt."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from cloister import audit
from cloister.audit import Entry, event
from cloister.errors import SessionConflict, StoreUnavailable
from cloister.model import Owner
from cloister.stores.pool import Lent, Pool, named
from cloister.testing import START

ANA = Owner(None, "ana")


class Wire:
    """Be a connection that remembers what was done to it."""

    def __init__(self) -> None:
        self.dirty = self.cut = self.closed = False

    def usable(self) -> bool:
        return not self.dirty

    def abort(self) -> None:
        self.cut = True

    async def close(self) -> None:
        self.closed = True


class Wires:
    """Make connections, and remember them."""

    def __init__(self) -> None:
        self.made: list[Wire] = []

    async def connect(self) -> Wire:
        self.made.append(Wire())
        return self.made[-1]

    def pool(self, size: int = 2, wait: float = 5, deadline: float = 5) -> Pool[Wire]:
        return Pool(
            self.connect, "test://", size=size, wait=timedelta(seconds=wait), deadline=timedelta(seconds=deadline)
        )


async def idle(lent: Lent[Wire]) -> Wire:
    """Do nothing with a connection."""
    return lent.connection


async def test_an_answered_request_gives_its_connection_back() -> None:
    """The connection that was used last is used next."""
    wires = Wires()
    pool = wires.pool()
    assert await pool.run(idle) is await pool.run(idle)
    assert len(wires.made) == 1


async def test_a_connection_serves_one_request_at_a_time() -> None:
    """Requests at the same time have connections of their own, as many as are allowed; the others wait."""
    wires = Wires()
    pool = wires.pool(size=3)
    at_work: set[Wire] = set()

    async def work(lent: Lent[Wire]) -> int:
        assert lent.connection not in at_work
        at_work.add(lent.connection)
        busy = len(at_work)
        await asyncio.sleep(0)
        at_work.remove(lent.connection)
        return busy

    assert max(await asyncio.gather(*(pool.run(work) for _ in range(20)))) == 3
    assert len(wires.made) == 3


@pytest.mark.parametrize("error", [OSError(), SessionConflict("no"), asyncio.CancelledError(), TimeoutError()])
async def test_whatever_is_raised_cuts_the_connection(error: BaseException) -> None:
    """A connection on which anything was raised never serves another request."""
    wires = Wires()
    pool = wires.pool(size=1)

    async def work(_: Lent[Wire]) -> None:
        raise error

    with pytest.raises((type(error), StoreUnavailable)):
        await pool.run(work)
    assert wires.made[0].cut
    assert await pool.run(idle) is not wires.made[0]


async def test_a_cancelled_request_cuts_its_connection() -> None:
    """Cancelled while its answer is under way, a request takes its connection with it."""
    wires = Wires()
    pool = wires.pool(size=1)
    asked = asyncio.Event()

    async def work(_: Lent[Wire]) -> None:
        asked.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(pool.run(work))
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert wires.made[0].cut
    assert await pool.run(idle) is wires.made[1]


async def test_one_with_something_unread_is_not_used() -> None:
    """A connection on which something arrived that nobody asked for is cut before it serves anybody."""
    wires = Wires()
    pool = wires.pool()
    await pool.run(idle)
    wires.made[0].dirty = True
    assert await pool.run(idle) is wires.made[1]
    assert wires.made[0].cut


async def test_a_hung_server_is_given_up() -> None:
    """No answer within the deadline is `StoreUnavailable`, and no connection is lost to the pool."""
    wires = Wires()
    pool = wires.pool(size=1, deadline=0.001)

    async def work(_: Lent[Wire]) -> None:
        await asyncio.Event().wait()

    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="did not answer"):
            await pool.run(work)
    assert all(wire.cut for wire in wires.made)
    assert not (await pool.run(idle)).cut


async def test_waiting_for_a_connection_ends() -> None:
    """Where all are busy for too long, the request is refused and says so."""
    wires = Wires()
    pool = wires.pool(size=1, wait=0.001)
    go = asyncio.Event()

    async def work(_: Lent[Wire]) -> None:
        await go.wait()

    busy = asyncio.create_task(pool.run(work))
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailable, match="busy"):
        await pool.run(idle)
    go.set()
    await busy
    assert await pool.run(idle) is wires.made[0]


async def test_distrust_reaches_connections_at_work() -> None:
    """From a moment of distrust on, neither idle connections nor those at work serve another request."""
    wires = Wires()
    pool = wires.pool()
    go = asyncio.Event()

    async def work(_: Lent[Wire]) -> None:
        await go.wait()

    busy = asyncio.create_task(pool.run(work))
    await asyncio.sleep(0)
    await pool.run(idle)
    pool.distrust()
    assert wires.made[1].cut
    go.set()
    await busy
    assert wires.made[0].cut
    assert await pool.run(idle) is wires.made[2]


async def test_a_closed_pool_serves_nobody() -> None:
    """Closing closes what is idle; what comes later is refused."""
    wires = Wires()
    pool = wires.pool()
    await pool.run(idle)
    await pool.close()
    assert wires.made[0].closed
    with pytest.raises(StoreUnavailable, match="closed"):
        await pool.run(idle)


async def test_each_connection_is_a_writer_and_its_successor_says_so() -> None:
    """Chains follow confirmed entries alone; after an unknown outcome the next writer says that it replaces one."""
    wires = Wires()
    pool = wires.pool(size=1)
    kept: list[Entry] = []

    async def work(lent: Lent[Wire]) -> None:
        chain, entries = lent.extend([event("turn.committed", START, ANA)], lambda _: "a_1")
        kept.extend(entries)
        pool.confirm(lent, chain)

    async def unknown(lent: Lent[Wire]) -> None:
        lent.extend([event("turn.committed", START, ANA)], lambda _: "a_1")
        raise OSError("lost")

    await pool.run(work)
    await pool.run(work)
    with pytest.raises(OSError, match="lost"):
        await pool.run(unknown)
    await pool.run(work)
    await pool.run(work)
    assert [entry.event for entry in kept] == ["turn.committed"] * 2 + ["writer.replaced"] + ["turn.committed"] * 2
    report = audit.verify(kept, pool.heads())
    assert (report.faults, report.writers, report.unsigned) == ([], 2, 0)


def test_owners_are_named_once() -> None:
    """Who is named by several events is named once, and introduced if one of them may."""
    late, early = event("turn.failed", START, ANA), event("turn.committed", START, ANA)
    assert named([late]) == [(ANA, False)]
    assert named([late, early, late]) == [(ANA, True)]
