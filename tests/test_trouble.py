"""Servers that answer and cannot do their work: a full disk, a full memory, no replicas, a replica in its place.

The error says what to do; nothing is half there; once that is mended the same cloister goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from tests.databases import Database, forget_leases
from tests.fakes import House, opened, told
from tests.servers import Server, running_redis, talk, until

from cloister.errors import ConfigurationError, StoreUnavailable

Do = Callable[[], Awaitable[Any]]


async def _withstands(house: House, url: str, trouble: Do, mend: Do, named: str) -> None:
    """Run into *trouble* in the middle of a turn and before one: it is *named*, and nothing comes of it."""
    session, bens = await house.ana.start(), await house.ben.start()
    await session.send("before")
    house.provider.gate = asyncio.Event()
    house.provider.asked.clear()
    turn = asyncio.create_task(session.send("meanwhile"))
    await asyncio.wait_for(house.provider.asked.wait(), 5)
    given = [{"role": "user", "content": "no"}]
    try:
        await trouble()
        house.provider.gate.set()
        for attempt in (turn, bens.send("no"), bens.append(given), house.ana.start()):
            with pytest.raises(StoreUnavailable, match=named):
                await attempt
    finally:
        await mend()
    await forget_leases(house, url)  # whose release was refused as well
    assert await told(session) == ["before", "You said: before"]
    await session.send("after")
    assert await told(session) == ["before", "You said: before", "after", "You said: after"]
    assert await told(bens) == []
    assert len(await house.ana.sessions()) == 1
    report = await house.audited()
    assert report.faults == []


# --- Redis ------------------------------------------------------------------------------------------------------------


_AT_ONCE = "--repl-diskless-sync-delay", "0"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_redis(*_AT_ONCE) as server:
        yield server


@pytest.fixture
async def house(server: Server) -> AsyncIterator[House]:
    await asyncio.to_thread(talk, server.port, "FLUSHALL")
    async with opened(_url(server)) as house:
        yield house


def _url(server: Server) -> str:
    return f"redis://127.0.0.1:{server.port}"


async def _set(server: Server, *pairs: str) -> None:
    for name, value in zip(pairs[::2], pairs[1::2], strict=True):
        said = await asyncio.to_thread(talk, server.port, "CONFIG", "SET", name, value)
        assert said == "+OK\r\n", said


async def test_a_full_memory(server: Server, house: House) -> None:
    """Redis: a full memory is named, with the setting that limits it."""
    await _withstands(
        house,
        _url(server),
        lambda: _set(server, "maxmemory", "1"),
        lambda: _set(server, "maxmemory", "0"),
        "raise its maxmemory",
    )


async def test_a_full_memory_can_be_emptied(server: Server, house: House) -> None:
    """Redis: what is over can be ended and swept while the memory is full, so that it comes to an end."""
    session = await house.ana.start()
    await session.send("hello")
    await _set(server, "maxmemory", "1")
    try:
        house.clock.move(hours=1)
        assert await house.cloister.sweep() == 1
        assert await house.ana.sessions() == []
    finally:
        await _set(server, "maxmemory", "0")


async def test_a_server_that_hangs(server: Server, house: House) -> None:
    """Redis: one that takes requests and answers none is given up in time; once it answers all is well."""
    session = await house.ana.start()
    await session.send("before")
    store: Any = house.cloister.store
    for pool in store._nodes.pools:
        pool._deadline = pool._wait = 0.2
    await asyncio.to_thread(server.pause)
    try:
        attempts = [session.history() for _ in range(30)] + [house.ana.resume(session.id) for _ in range(30)]
        outcomes = await asyncio.wait_for(asyncio.gather(*attempts, return_exceptions=True), 10)
        assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
    finally:
        await asyncio.to_thread(server.resume)
    for pool in store._nodes.pools:
        pool._deadline = pool._wait = 5
    assert await told(session) == ["before", "You said: before"]
    await session.send("after")
    assert (await house.audited()).faults == []


async def test_too_few_replicas(server: Server, house: House) -> None:
    """Redis: fewer replicas than the server insists on are named."""
    if "redis_version:6" in await asyncio.to_thread(talk, server.port, "INFO", "server"):
        pytest.skip("before version 7, min-replicas-to-write does not hold for scripts")
    await _withstands(
        house,
        _url(server),
        lambda: _set(server, "min-replicas-to-write", "1"),
        lambda: _set(server, "min-replicas-to-write", "0"),
        "bring them back",
    )


async def test_a_snapshot_that_cannot_be_written(server: Server, house: House) -> None:
    """Redis: a disk that takes no snapshot is named."""
    in_its_place = server.folder / "dump.rdb"

    def failed() -> bool:
        return "rdb_last_bgsave_status:err" in talk(server.port, "INFO", "persistence")

    async def trouble() -> None:
        in_its_place.unlink(missing_ok=True)
        in_its_place.mkdir()
        await _set(server, "save", "3600 1000000")
        await asyncio.to_thread(talk, server.port, "BGSAVE")
        await asyncio.to_thread(until, failed, "a snapshot that fails")

    async def mend() -> None:
        in_its_place.rmdir()
        await _set(server, "save", "")

    await _withstands(house, _url(server), trouble, mend, "cannot save to its disk")


async def test_a_primary_that_became_a_replica(server: Server) -> None:
    """Redis: a replica refuses to write and is named; promoted, it has all that its primary had."""
    with running_redis(*_AT_ONCE) as other:

        def followed() -> bool:
            return "master_link_status:up" in talk(other.port, "INFO", "replication")

        async def trouble() -> None:
            await asyncio.to_thread(talk, other.port, "REPLICAOF", "127.0.0.1", str(server.port))
            await asyncio.to_thread(until, followed, "a replica")

        async def mend() -> None:
            await asyncio.to_thread(talk, other.port, "REPLICAOF", "NO", "ONE")

        async def copied() -> None:  # what the one has, so that it can take the other's place and give it back
            await asyncio.to_thread(talk, server.port, "REPLICAOF", "127.0.0.1", str(other.port))
            await asyncio.to_thread(
                until, lambda: "master_link_status:up" in talk(server.port, "INFO", "replication"), "a copy"
            )
            await asyncio.to_thread(talk, server.port, "REPLICAOF", "NO", "ONE")
            await trouble()

        async with opened(_url(other)) as house:
            await _withstands(house, _url(other), copied, mend, "name the primary")


async def test_a_user_who_may_not(server: Server) -> None:
    """Redis: a user without the right to run scripts is told which rights it needs, and one that is unknown so too."""
    port = server.port
    await asyncio.to_thread(talk, port, "ACL", "SETUSER", "limited", "on", ">pw", "~*", "+ping", "+info", "+client")
    for password, named in (("pw", "ACL SETUSER"), ("wrong", "check user and password")):
        with pytest.raises(ConfigurationError, match=named):
            async with opened(f"redis://limited:{password}@127.0.0.1:{port}"):
                pass


# --- PostgreSQL -------------------------------------------------------------------------------------------------------

_REFUSING = """
CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{}'; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON cloister.{} FOR EACH ROW EXECUTE FUNCTION public.refuse();
"""


@pytest.mark.parametrize("table", ["leases", "audit"])  # the first and the last thing that a turn writes
@pytest.mark.parametrize(
    ("code", "named"),
    [
        ("53100", "no room on its disk"),
        ("53200", "out of memory"),
        ("58030", "cannot read or write its disk"),
        ("XX001", "damaged data"),
        ("57014", "try again"),
        ("40P01", "try again"),
    ],
)
async def test_a_database_in_trouble(database: Database, code: str, named: str, table: str) -> None:
    """PostgreSQL: whatever keeps it from writing, wherever in a turn, is named; all of the turn is undone."""
    async with opened(database.url()) as house:
        session = await house.ana.start()
        await session.send("before")
        async with database.connected() as driver:
            await driver.execute(_REFUSING.format(code, table))
        for attempt in (session.send("no"), session.send("no", idempotency_key="k")):
            with pytest.raises(StoreUnavailable, match=named):
                await attempt
        await database.run("DROP FUNCTION public.refuse CASCADE")
        assert await told(session) == ["before", "You said: before"]
        await session.send("after", idempotency_key="k")
        assert await told(session) == ["before", "You said: before", "after", "You said: after"]
        assert (await house.audited()).faults == []


async def test_a_database_that_takes_no_writes(database: Database) -> None:
    """PostgreSQL: one that takes no writes, as a standby does not, is named; reading goes on."""
    async with opened(database.url()) as house:

        async def trouble() -> None:
            await database.run(f"ALTER DATABASE {database.name} SET default_transaction_read_only = on")
            await house.cloister.store.distrust()

        async def mend() -> None:
            async with database.connected() as driver:
                await driver.execute("SET default_transaction_read_only = off")
                await driver.execute(f"ALTER DATABASE {database.name} RESET default_transaction_read_only")
            await house.cloister.store.distrust()

        await _withstands(house, database.url(), trouble, mend, "name the primary")


async def test_no_connection_left(database: Database) -> None:
    """PostgreSQL: a server that takes no further connection is named, with the settings of both sides."""
    async with opened(database.url()) as house:

        async def limit(count: int) -> None:
            await database.run(f"ALTER DATABASE {database.name} CONNECTION LIMIT {count}")
            await house.cloister.store.distrust()

        await _withstands(house, database.url(), lambda: limit(0), lambda: limit(-1), "max_connections")
