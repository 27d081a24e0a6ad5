"""Redis and Redis Cluster: the contract on real servers, and what their replies and failures must not do."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fakes import House, opened, told
from tests.servers import running_redis, talk

from cloister import Keyring, stores
from cloister.errors import (
    CloisterError,
    ConfigurationError,
    IntegrityError,
    SessionNotFound,
    StoreUnavailable,
)
from cloister.model import Owner
from cloister.sessions import new_id, place_of
from cloister.stores import redis_scripts as scripts
from cloister.stores.base import Fingerprint, Store
from cloister.stores.redis import RedisStore
from cloister.stores.redis_wire import _GRANT, Wire
from cloister.testing import StoreConformance


def _url(redis: str, options: str = "") -> str:
    return f"redis://{redis}/0?prefix={secrets.token_hex(4)}:{options}"


class TestRedis(StoreConformance):
    @pytest.fixture
    async def store(self, redis: str) -> AsyncIterator[Store]:
        store = stores.connect(_url(redis))
        await store.open()
        yield store
        await store.close()


class TestCluster(StoreConformance):
    @pytest.fixture
    async def store(self, redis_cluster: str) -> AsyncIterator[Store]:
        store = stores.connect(f"redis+cluster://{redis_cluster}?prefix={secrets.token_hex(4)}:")
        await store.open()
        yield store
        await store.close()


@pytest.fixture
async def house(redis: str) -> AsyncIterator[House]:
    async with opened(_url(redis), keyring=Keyring.generate()) as house:
        yield house


def _store(house: House) -> RedisStore:
    store = house.cloister.store
    assert isinstance(store, RedisStore)
    return store


async def _ask(house: House, *command: str | bytes | int) -> Any:
    """Ask the server itself, past everything of ours."""
    store = _store(house)
    (address,) = await store._nodes.primaries()
    return await store._plain(address, *command)


async def _keys(house: House) -> list[bytes]:
    return list(await _ask(house, "KEYS", f"{_store(house)._prefix}*"))


# --- two people ---


async def test_two_people(house: House) -> None:
    """What Ana said is hers, and for Ben her session does not exist; the log names both and verifies."""
    session = await house.ana.start()
    await session.send("ana's words")
    with pytest.raises(SessionNotFound):
        await house.ben.resume(session.id)
    assert await told(await house.ana.resume(session.id)) == ["ana's words", "You said: ana's words"]
    assert "access.foreign" in await house.events()
    assert (await house.audited()).faults == []


async def test_no_name_is_in_a_key_and_no_word_anywhere(house: House) -> None:
    """Keys are digests; nothing that anybody said, and no title, lies in any value."""
    user = house.cloister.user("visible-name")
    session = await user.start(title="a visible title", system="a visible instruction")
    await session.send("visible words", idempotency_key="visible key")
    keys = await _keys(house)
    assert len(keys) > 5
    assert not any(b"visible" in key for key in keys)
    for key in keys:
        dump = await _ask(house, "DUMP", key)
        for word in (b"visible title", b"visible instruction", b"visible words", b"visible key"):
            assert word not in dump


async def test_credentials_are_filed_by_digests(redis: str) -> None:
    """No tenant, user, id or secret is in a key; what ends is collected some day even if nobody sweeps, and no sooner.

    What Redis has collected is tidied off its lists when they are read.
    """
    async with opened(_url(redis), keyring=Keyring.generate(), tenancy="required") as house:
        made = house.cloister.credentials
        await made.add_tenant("visible-tenant")
        for_ever = await made.new_key("visible-tenant", name="visible words")
        minted = [await made.new_token(Owner("visible-tenant", "visible-user")) for _ in range(2)]
        keys = await _keys(house)
        for word in (b"visible", *(one.secret[4:14].encode() for one in (*minted, for_ever))):
            assert not any(word in key for key in keys)
        for secret in [one.secret[4:].encode() for one in (*minted, for_ever)] + [b"visible words"]:
            assert not any([secret in await _ask(house, "DUMP", key) for key in keys])
        rows = [key for key in keys if b":c:" in key and b"credentials" not in key]
        hour = 3_600_000
        lives = sorted([await _ask(house, "PTTL", key) for key in rows])
        assert lives[:2] == [-1, -1], "the tenant and its key"
        assert all(25 * hour - 60_000 < life <= 25 * hour for life in lives[2:])
        for key in rows:
            if await _ask(house, "PTTL", key) > 0:
                await _ask(house, "DEL", key)
        assert (await house.cloister.user("visible-user", tenant="visible-tenant").end_all()) == 0
        listed = await house.cloister.store.credentials("visible-tenant", "token", nonce=b"", limit=9)
        assert list(listed.credentials) == []
        assert await made.check(for_ever.secret) == for_ever.credential
        await made.revoke_key("visible-tenant", for_ever.credential.id)
        house.clock.move(hours=2)
        await house.cloister.sweep()
        left = [key for key in await _keys(house) if b"credentials" in key or b"lapse" in key or b":c:" in key]
        assert len(left) == 3, "the tenant: its row, its place's list, and the list of tenants"


async def test_what_should_end_has_a_time_to_live(house: House) -> None:
    """Everything of a session that has limits is collected some day even if nobody sweeps, and no sooner."""
    session = await house.ana.start()
    hour = 3_600_000
    for _ in range(2):
        await session.send("hello", idempotency_key=secrets.token_hex(4))
        prefix = _store(house)._prefix.encode()
        lives = {key.removeprefix(prefix)[5:7]: await _ask(house, "PTTL", key) for key in await _keys(house)}
        assert 24 * hour < lives[b"h:"] < 26 * hour
        assert 24 * hour < lives[b"i:"] < 26 * hour
        assert lives[b"p:"] > 30 * 24 * hour
        assert lives[b"w:"] > 30 * 24 * hour
        assert lives[b"r:"] > 0
        assert b"l:" not in lives, "the lease was given back"


async def test_a_collected_secret_is_an_expiry(house: House) -> None:
    """Where Redis collected a session before anybody swept, its owner hears of a timeout, not of a stranger."""
    session = await house.ana.start(system="Be kind.")
    await session.send("hello")
    for key in await _keys(house):
        if key.removeprefix(_store(house)._prefix.encode())[5:7] in (b"h:", b"i:"):
            await _ask(house, "DEL", key)
    reply = await session.send("are you there?")
    assert reply.renewed
    assert await told(reply.session) == ["Be kind.", "are you there?", "You said: are you there?"]


async def test_erasure_leaves_no_key(house: House) -> None:
    """After an erasure nothing but the log and the common lists is left, and no list has anything in it."""
    before = set(await _keys(house))
    session = await house.ana.start()
    await session.send("hello", idempotency_key="once")
    await session.end()
    await (await house.ana.start()).send("hello again")
    vault = house.cloister.vault
    await vault.commit(vault.begin(house.ana.owner), fingerprints=[Fingerprint("", b"12345678")])
    await house.ana.erase()
    await house.cloister.sweep()
    left = {key.rpartition(b":")[2] for key in set(await _keys(house)) - before}
    assert left <= {b"log", b"ends", b"{tenancy}", b"{prints}", b"n"}
    assert place_of(session.id) in range(256)


async def test_a_swept_tombstone_leaves_no_key(house: House) -> None:
    """When a tombstone has had its time, the owner's list does not lead to it any more either."""
    before = set(await _keys(house))
    session = await house.ana.start()
    await session.end()
    house.clock.move(days=31)
    await house.cloister.sweep()
    left = {key.rpartition(b":")[2] for key in set(await _keys(house)) - before}
    assert left <= {b"log", b"name", b"{tenancy}"}


async def test_a_collected_session_leaves_the_owners_list(house: House) -> None:
    """What Redis collected whole before anybody swept is taken out of its owner's list by the next listing."""
    kept = [await house.ana.start() for _ in range(2)]
    before = set(await _keys(house))
    await house.ana.start()
    for key in set(await _keys(house)) - before:
        if not key.endswith((b":log", b":ends", b":all", b":due")):
            await _ask(house, "DEL", key)
    (index,) = [key for key in await _keys(house) if key.endswith(b":sessions")]
    assert len(await _ask(house, "ZRANGE", index, 0, -1)) == 3
    for _ in range(2):
        assert {session.id for session in await house.ana.sessions()} == {session.id for session in kept}
        assert len(await _ask(house, "ZRANGE", index, 0, -1)) == 2


@pytest.mark.parametrize("overtaken_by", ["erase", "sessions"])
async def test_a_start_that_is_overtaken_is_in_the_list(
    house: House, monkeypatch: pytest.MonkeyPatch, overtaken_by: str
) -> None:
    """A session that comes to be while its owner's are erased or listed is listed after, and erased by the next."""
    store = _store(house)
    real = store._write

    async def overtaken(script: str, *args: Any) -> list[Any]:
        if script == scripts.CREATE:
            monkeypatch.undo()
            await (house.ana.erase() if overtaken_by == "erase" else house.ana.sessions())
        return await real(script, *args)

    monkeypatch.setattr(store, "_write", overtaken)
    session = await house.ana.start()
    assert [listed.id for listed in await house.ana.sessions()] == [session.id]
    assert (await house.ana.erase()).sessions == 1
    with pytest.raises(SessionNotFound):
        await house.ana.resume(session.id)


# --- replies that nobody asked for ---


async def test_a_surplus_reply_is_never_taken_for_an_answer(house: House) -> None:
    """A reply that lies ready on a connection before anything was asked is an alarm, and the connection is gone."""
    session = await house.ana.start()
    await session.send("hello")
    ((_, pool),) = _store(house)._nodes._pools.items()
    for lent in pool._idle:
        await lent.connection.driver.send_command("PING")
    for lent in list(pool._idle):
        for _ in range(1_000):
            if await lent.connection.driver.can_read():
                break
            await asyncio.sleep(0.001)
    with pytest.raises(IntegrityError, match="nobody had asked"):
        await session.history()
    assert await told(session) == ["hello", "You said: hello"]
    assert "integrity.failed" in await house.events()


@pytest.mark.parametrize("at", range(1, 12))
async def test_a_cancelled_turn_is_whole_or_absent(house: House, at: int) -> None:
    """Cancelled after any number of steps, a turn is stored whole or not at all, and the next one works."""
    session = await house.ana.start()
    task = asyncio.create_task(session.send("hello"))
    for _ in range(at):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert await told(session) in ([], ["hello", "You said: hello"])
    await session.send("again")
    assert (await told(session))[-2:] == ["again", "You said: again"]


async def test_one_session_from_two_processes(redis: str) -> None:
    """Turns of one session through two cloisters at the same time come one after the other; none is lost or doubled."""
    url, keyring = _url(redis), Keyring.generate()
    async with opened(url, keyring=keyring) as one, opened(url, keyring=keyring) as other:
        session = await one.ana.start()
        again = await other.ana.resume(session.id)
        said = [f"message {n}" for n in range(10)]
        await asyncio.gather(*((session, again)[n % 2].send(text) for n, text in enumerate(said)))
        kept = await told(session)
    assert sorted(kept[::2]) == sorted(said)
    assert kept[1::2] == [f"You said: {text}" for text in kept[::2]]


# --- set-up ---


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("redis://", "name the server"),
        ("redis://h/x", "name the server"),
        ("redis://h:1,g:2/0", "redis\\+cluster"),
        ("redis+cluster://h:1/3", "name the server"),
        ("redis://h:port", "port is a number"),
        ("redis://h?wait=many", "from 0 to 16"),
        ("redis://h?prefix={x}", "without braces"),
        ("redis://h?db=1", "no option 'db'"),
    ],
)
def test_a_wrong_url_is_refused(url: str, named: str) -> None:
    """What cannot be meant is refused with what can."""
    with pytest.raises(ConfigurationError, match=named):
        stores.connect(url)


def test_no_password_is_shown() -> None:
    """What is shown of a URL has neither user nor password."""
    assert stores.connect("redis://ana:s3cret@h:7/1").url == "redis://h:7/1"


def test_the_driver_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the driver the error is the command that installs it."""
    import sys

    monkeypatch.setitem(sys.modules, "redis.asyncio.connection", None)
    for module in ("redis", "redis_nodes", "redis_wire"):
        monkeypatch.delitem(sys.modules, f"cloister.stores.{module}", raising=False)
    with pytest.raises(ConfigurationError, match=r"pip install 'cloister\[redis\]'"):
        stores.connect("redis://h")


@pytest.fixture(scope="module")
def own_redis() -> Iterator[Any]:
    """A server that a test may set up and stop."""
    with running_redis() as server:
        yield server


async def test_a_server_that_throws_data_away_is_refused(own_redis: Any) -> None:
    """A server that evicts when its memory is full does not open unless that is said to be wanted."""
    await asyncio.to_thread(talk, own_redis.port, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(ConfigurationError, match="noeviction"):
            await stores.connect(f"redis://127.0.0.1:{own_redis.port}").open()
        store = stores.connect(f"redis://127.0.0.1:{own_redis.port}?allow_eviction=1")
        await store.open()
        await store.close()
    finally:
        await asyncio.to_thread(talk, own_redis.port, "CONFIG", "SET", "maxmemory-policy", "noeviction")


async def test_too_few_replicas_are_an_error(own_redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ?wait=1 a write that no replica has is not taken for stored: the outcome is said to be unknown."""
    monkeypatch.setattr("cloister.stores.redis._REPLICAS_MS", 10)
    async with opened(f"redis://127.0.0.1:{own_redis.port}?prefix=w:", keyring=Keyring.generate()) as house:
        session = await house.ana.start()
        _store(house)._wait = 1
        with pytest.raises(StoreUnavailable, match="replicas"):
            await session.send("hello")
        _store(house)._wait = 0
        assert await told(session) == ["hello", "You said: hello"]  # once, whatever was tried


async def test_a_full_memory_is_an_error(own_redis: Any) -> None:
    """When its memory is full nothing is stored, the error says so, and what was there is there still."""
    async with opened(f"redis://127.0.0.1:{own_redis.port}?prefix=m:", keyring=Keyring.generate()) as house:
        session = await house.ana.start()
        await session.send("before")
        await asyncio.to_thread(talk, own_redis.port, "CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(StoreUnavailable, match="memory"):
            await session.send("meanwhile")
        with pytest.raises(StoreUnavailable, match="memory"):
            await told(session)  # what cannot be put on record is not shown
        await asyncio.to_thread(talk, own_redis.port, "CONFIG", "SET", "maxmemory", "0")
        assert await told(session) == ["before", "You said: before"]
        await session.send("after")


async def test_a_server_that_goes_and_comes() -> None:
    """While the server is down every call says so and nothing falls back; once it is back the same cloister goes on."""
    with running_redis("--appendonly", "yes", "--appendfsync", "always") as server:
        url = f"redis://127.0.0.1:{server.port}"
        async with opened(url, keyring=Keyring.generate()) as house:
            session = await house.ana.start()
            await session.send("before")
            await asyncio.to_thread(server.kill)
            for attempt in (session.send("no"), house.ana.start(), session.history(), house.ana.resume(session.id)):
                with pytest.raises(StoreUnavailable):
                    await attempt
            await asyncio.to_thread(server.start)
            await session.send("after")
            assert await told(session) == ["before", "You said: before", "after", "You said: after"]


# --- what a server says against it ---


@contextlib.asynccontextmanager
async def _saying(answer: bytes) -> AsyncIterator[int]:
    """A server that gives one *answer* to everything but an ECHO; its port."""
    served: list[asyncio.Task[Any]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        served.append(task)
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                asked = []
                for _ in range(int(line[1:])):
                    size = int((await reader.readline())[1:])
                    asked.append((await reader.readexactly(size + 2))[:-2])
                echoed = asked[0] == b"ECHO" and not answer.startswith(b"-")
                writer.write((b"$%d\r\n%b" % (len(asked[1]), asked[1]) if echoed else answer) + b"\r\n")
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.gather(*served)  # their clients have gone


@pytest.mark.parametrize(
    ("answer", "error", "named"),
    [
        (b"-NOAUTH Authentication required.", ConfigurationError, "check user and password"),
        (b"-WRONGPASS invalid username-password pair or user is disabled.", ConfigurationError, "check user and"),
        (b"-NOPERM this user has no permissions to run the 'eval' command", ConfigurationError, "ACL SETUSER"),
        (b"-ERR ACL failure in script: User app has no permissions to run 'xadd'", ConfigurationError, "ACL SETUSER"),
        (b"-DENIED Redis is running in protected mode because", ConfigurationError, "requirepass"),
        (b"-ERR DB index is out of range", ConfigurationError, "name another behind the /"),
        (b"-ERR unknown command 'EVALSHA', with args beginning with:", ConfigurationError, "6.2 or later"),
        (b"-MOVED 866 127.0.0.1:1", ConfigurationError, r"redis\+cluster://"),
        (b"-ERR max number of clients reached", StoreUnavailable, "maxclients"),
        (b"-LOADING Redis is loading the dataset in memory", StoreUnavailable, "still reading"),
        (b"-BUSY Redis is busy running a script.", StoreUnavailable, "SCRIPT KILL"),
        (b"-OOM command not allowed when used memory > 'maxmemory'.", StoreUnavailable, "raise its maxmemory"),
        (b"-READONLY You can't write against a read only replica.", StoreUnavailable, "name the primary"),
        (b"-MASTERDOWN Link with MASTER is down", StoreUnavailable, "primary is down"),
        (b"-CLUSTERDOWN The cluster is down", StoreUnavailable, "no node serves"),
        (b"-MISCONF Redis is configured to save RDB snapshots", StoreUnavailable, "cannot save"),
        (b"-NOREPLICAS Not enough good replicas to write.", StoreUnavailable, "bring them back"),
        (b"-WRONGTYPE Operation against a key holding the wrong kind of value", StoreUnavailable, "prefix="),
        (b"-NOSCRIPT No matching script.", StoreUnavailable, "refused a request"),
        (b"-ERR whatever else", StoreUnavailable, "refused a request"),
    ],
)
async def test_what_a_server_says_against_it_is_an_error_of_ours(
    answer: bytes, error: type[CloisterError], named: str
) -> None:
    """Whatever a server refuses with, at the start or later, is an error of ours that says what to do."""
    async with _saying(answer) as port:
        with pytest.raises(error, match=named):
            await stores.connect(f"redis://127.0.0.1:{port}").open()
        store = stores.connect(f"redis://127.0.0.1:{port}")
        with pytest.raises(error, match=named):
            await store.owner_of(new_id())
        await store.close()


async def test_the_other_kind_of_server_is_named(redis: str, redis_cluster: str) -> None:
    """A URL of one server that names a node of a cluster says so, and the other way round; so does a wrong password."""
    for url, named in (
        (f"redis://{redis_cluster.partition(',')[0]}", r"begin its URL with redis\+cluster://"),
        (f"redis+cluster://{redis}", "is one server and no cluster"),
        (f"redis+cluster://:wrong@{redis_cluster}", "check user and password"),
    ):
        with pytest.raises(ConfigurationError, match=named):
            async with opened(url, keyring=Keyring.generate()):
                pass


async def test_what_takes_no_nonce_is_checked_too(own_redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply too many is not taken for how many replicas have a write, nor for anything else that takes no nonce."""
    async with opened(f"redis://127.0.0.1:{own_redis.port}?prefix=n:", keyring=Keyring.generate()) as house:
        session = await house.ana.start()
        _store(house)._wait = 1
        real = Wire.plain

        async def crossed(self: Wire, *args: Any) -> Any:
            if args[0] == "WAIT":
                await self.driver.send_command("INCR", "n:surplus")
            return await real(self, *args)

        monkeypatch.setattr(Wire, "plain", crossed)
        with pytest.raises(IntegrityError, match="another request"):
            await session.send("hello")
        monkeypatch.undo()
        _store(house)._wait = 0
        assert await told(session) == ["hello", "You said: hello"]


async def test_an_old_server_is_refused() -> None:
    """A server that lacks commands which are needed later does not open."""
    said = b"redis_version:6.0.16\r\nmaxmemory_policy:noeviction"
    async with _saying(b"$%d\r\n%b" % (len(said), said)) as port:
        with pytest.raises(ConfigurationError, match=r"6\.2 or later"):
            await stores.connect(f"redis://127.0.0.1:{port}").open()


async def test_the_rights_that_are_named_suffice(own_redis: Any) -> None:
    """A user with the rights that the error and the documents name can do all that the library does."""
    grant = _GRANT.partition("name ")[2].partition(", with")[0].replace("PREFIX", "cloister:").split()
    said = await asyncio.to_thread(talk, own_redis.port, "ACL", "SETUSER", "app", "on", ">word", *grant)
    assert said == "+OK\r\n"
    assert " ".join(grant) in (Path(__file__).parent.parent / "docs/stores.md").read_text(encoding="utf-8")
    async with opened(f"redis://app:word@127.0.0.1:{own_redis.port}", keyring=Keyring.generate()) as house:
        session = await house.ana.start()
        await session.send("hello")
        assert len(await house.ana.sessions()) == 1
        assert (await house.audited()).faults == []
        vault = house.cloister.vault
        await vault.commit(vault.begin(house.ana.owner), fingerprints=[Fingerprint("", b"12345678")])
        await vault.ask(vault.store.seed, "", [b"87654321"])
        assert len((await vault.ask(vault.store.claims, "", [b"12345678", b"87654321"], now=0)).owners) == 2
        await house.cloister.sweep()
        await house.ana.erase()
