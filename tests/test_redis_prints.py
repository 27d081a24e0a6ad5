"""Fingerprints in Redis and Redis Cluster: how they lie there, what they cost, and what is left of them."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cloister import stores
from cloister.errors import SessionConflict, StoreUnavailable
from cloister.model import SealedSession, to_micros
from cloister.stores.base import Fingerprint
from cloister.stores.redis import RedisStore
from cloister.stores.redis_wire import Wire
from cloister.testing import grown, load, nonce, sealed_session
from cloister.testing.rows import ANA, BEN, START

NOW = to_micros(START)


def _some(count: int) -> list[Fingerprint]:
    return [Fingerprint("acme", secrets.token_bytes(8)) for _ in range(count)]


@pytest.fixture(params=["one", "cluster"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[RedisStore]:
    """A store of its own in one server, or in a cluster."""
    clustered = request.param == "cluster"
    where = request.getfixturevalue("redis_cluster" if clustered else "redis")
    prefix = f"prefix={secrets.token_hex(4)}:"
    store = stores.connect(f"redis+cluster://{where}?{prefix}" if clustered else f"redis://{where}/0?{prefix}")
    assert isinstance(store, RedisStore)
    await store.open()
    yield store
    await store.close()


async def _keys(store: RedisStore) -> set[bytes]:
    found: set[bytes] = set()
    for address in await store._nodes.primaries():
        found.update(await store._plain(address, "KEYS", f"{store._prefix}{{f:*"))
    return found


async def _known(store: RedisStore, prints: list[Fingerprint], at: int = NOW) -> int:
    found = await store.claims("acme", [one.digest for one in prints], now=at, nonce=nonce())
    return len(found.owners)


async def _turn(store: RedisStore, session: SealedSession, prints: list[Fingerprint]) -> SealedSession:
    lease = secrets.token_bytes(16)
    await load(store, session.owner, session.id, lease=lease)
    commit = grown(session, (), lease, fingerprints=prints)
    await store.commit(commit, nonce=nonce())
    return commit.session


async def test_they_take_no_further_request(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script that stores a turn files its fingerprints too; in a cluster another one does, once for all of them."""
    session = sealed_session()
    await store.create(session, nonce=nonce())
    session = await _turn(store, session, _some(1))
    asked: list[str] = []
    real = Wire.run

    async def counted(self: Wire, script: str, *rest: Any) -> list[Any]:
        asked.append(script)
        return await real(self, script, *rest)

    monkeypatch.setattr(Wire, "run", counted)
    costs = []
    for count in (0, 1, 30):
        asked.clear()
        session = await _turn(store, session, _some(count))
        costs.append(len(asked))
    # In a cluster the end of what was said before has to be moved, in the same request as the new ones are filed.
    assert costs == ([3, 3, 3] if store._nodes.clustered else [2, 2, 2])


async def test_many_lie_packed(store: RedisStore) -> None:
    """Of thousands each is found again, all hashes are as small as Redis packs them, and an erasure leaves none."""
    prints = _some(9_000)
    for first in range(0, 9_000, 1_500):
        await store.create(sealed_session(), nonce=nonce(), fingerprints=prints[first : first + 1_500])
    assert await _known(store, prints) == 9_000
    assert (await store.claims("acme", [bytes(8)], now=NOW, nonce=nonce())).size == 9_000
    hashes = await _keys(store)
    assert 9_000 / 64 <= len(hashes) <= 9_000 / 64 + 10
    for key in hashes:
        (kind,) = await store._script("return {ARGV[1], redis.call('OBJECT', 'ENCODING', KEYS[1])}", [key], [])
        assert kind in (b"listpack", b"ziplist"), key
    await store.erase(ANA, nonce=nonce())
    assert await _known(store, prints) == 0
    await store.sweep(now=NOW, tombstones_before=NOW, fingerprints=9_999, nonce=nonce())
    assert {key.rpartition(b":")[2] for key in await _keys(store)} == {b"n"}
    assert (await store.claims("acme", [bytes(8)], now=NOW, nonce=nonce())).size == 0


async def test_a_refused_turn_leaves_no_row(store: RedisStore) -> None:
    """What a turn said that was refused is in no hash afterwards, and what it found there is there again."""
    held = _some(3)
    session = sealed_session(BEN)
    await store.create(session, nonce=nonce(), fingerprints=held)

    async def rows() -> dict[bytes, Any]:
        read = "return {ARGV[1], redis.call('HGETALL', KEYS[1])}"
        found = {key: (await store._script(read, [key], []))[0] for key in await _keys(store)}
        return {key: dict(zip(row[::2], row[1::2], strict=True)) for key, row in found.items()}

    before = await rows()
    prints = [*held, *_some(3), Fingerprint("acme", held[0].digest, common=True)]
    with pytest.raises(SessionConflict):
        await store.create(sealed_session(BEN, session.id), nonce=nonce(), fingerprints=prints)
    assert await rows() == before
    for owner, version in ((ANA, 1), (BEN, 7)):
        bad = sealed_session(owner, session.id, version=version, expires_at=None)
        with pytest.raises(SessionConflict):
            await store.commit(grown(bad, (), b"no lease", fingerprints=prints), nonce=nonce())
        assert await rows() == before


async def test_what_was_not_seen_to_is_swept(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a process died between ending a session and letting go of what it said, sweeping does so."""
    prints, session = _some(5), sealed_session(expires_at=None)
    await store.create(session, nonce=nonce(), fingerprints=prints)

    async def dies(*_: object) -> None:
        raise StoreUnavailable("the process died")

    with monkeypatch.context() as died:
        died.setattr(store._prints, "forget", dies)
        with pytest.raises(StoreUnavailable):
            await store.end(ANA, session.id, nonce=nonce(), ended="ended", now=NOW)
    await store.sweep(now=NOW, tombstones_before=0, fingerprints=9, nonce=nonce())
    assert await _known(store, prints) == 0


async def test_large_tables_are_swept_in_parts(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sweep goes through a part of very many hashes, and the next ones through the others."""
    monkeypatch.setattr("cloister.stores.redis_prints._SCRIPTS", 1)
    monkeypatch.setattr("cloister.stores.redis_prints._PART", 1_000)
    prints = _some(1_500)
    session = sealed_session()
    await store.create(session, nonce=nonce(), fingerprints=prints)
    await store.end(ANA, session.id, nonce=nonce(), ended="ended", now=NOW)
    left = []
    for _ in range(4):
        await store.sweep(now=NOW, tombstones_before=0, fingerprints=9_999, nonce=nonce())
        left.append((await store.claims("acme", [], now=NOW, nonce=nonce())).size)
    assert left[0] > left[1] > left[2] == left[3] == 0
