"""What fingerprints cost: a commit with some of them against one without, a lookup of 30, and the room they take.

    python -m bench.fingerprints memory:// sqlite:////tmp/bench.db redis://localhost:6379/9
    python -m bench.fingerprints --messages 100000 redis://localhost:6379/9

Commits of a question and a reply with 0, 10 and 30 fingerprints that nobody has, 30 that two others have, and lookups
of 30 (of which half are known) run in turn, A B C D …, straight on the store; each figure is a median, a ratio the
median of the rounds' ratios. With ``--messages`` that many are registered, ten to a session and two to four
fingerprints to each, and what the process, or the server, takes more for it than for the same sessions without any is
divided by the messages. Name an empty store: Redis' own account of its memory is of the whole server.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import secrets
import statistics
import time
from pathlib import Path
from typing import Any

from cloister import stores
from cloister.model import Owner, to_micros
from cloister.stores.base import Fingerprint, Store
from cloister.testing import START, grown, load, nonce, sealed_items, sealed_session

_ROUNDS, _WARM = 200, 20
_KINDS = {"none": 0, "10 new": 10, "30 new": 30, "30 of two others": 30}


def _some(count: int) -> list[Fingerprint]:
    return [Fingerprint("acme", secrets.token_bytes(8)) for _ in range(count)]


async def _commit(store: Store, session: Any, prints: list[Fingerprint]) -> tuple[float, Any]:
    lease = secrets.token_bytes(16)
    await load(store, session.owner, session.id, lease=lease)
    commit = grown(session, sealed_items(2, session.count), lease, fingerprints=prints)
    begun = time.perf_counter()
    await store.commit(commit, nonce=nonce())
    return time.perf_counter() - begun, commit.session


async def costs(store: Store) -> None:
    """Print what a commit and a lookup cost."""
    sessions = {kind: sealed_session(Owner("acme", f"user {kind}")) for kind in _KINDS}
    others = [sealed_session(Owner("acme", f"other {number}")) for number in range(2)]
    for session in [*sessions.values(), *others]:
        await store.create(session, nonce=nonce())
    taken: dict[str, list[float]] = {kind: [] for kind in [*_KINDS, "30 looked up"]}
    for round_ in range(_ROUNDS + _WARM):
        shared = _some(30)
        for number, other in enumerate(others):
            _, others[number] = await _commit(store, other, shared)
        for kind, count in _KINDS.items():
            prints = shared if kind == "30 of two others" else _some(count)
            cost, sessions[kind] = await _commit(store, sessions[kind], prints)
            if round_ >= _WARM:
                taken[kind].append(cost)
        digests = [one.digest for one in [*shared[:15], *_some(15)]]
        begun = time.perf_counter()
        found = await store.claims("acme", digests, now=to_micros(START), nonce=nonce())
        cost = time.perf_counter() - begun
        assert len(found.owners) == 15
        if round_ >= _WARM:
            taken["30 looked up"].append(cost)
    for kind, each in taken.items():
        ratio = statistics.median(cost / base for cost, base in zip(each, taken["none"], strict=True))
        told = f"{1e6 * statistics.median(each):8.0f} µs  {ratio:5.2f} ×  p99 {1e6 * sorted(each)[-3]:.0f} µs"
        print(f"  {kind:18} {told}")


async def _room(store: Store) -> int:
    """Say how many bytes are in use: on disk, in the server, or in this process."""
    match store.url.partition(":")[0]:
        case "sqlite":
            path = store.path
            assert path is not None
            return path.stat().st_size
        case "redis":
            (address,) = await store._nodes.primaries()  # type: ignore[attr-defined]
            said = await store._plain(address, "INFO", "memory")  # type: ignore[attr-defined]
            return int(said.split(b"used_memory:")[1].split()[0])
        case "postgresql":

            async def size(lent: Any) -> int:
                found = await lent.connection.driver.fetchval(
                    "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c"
                    " WHERE c.relnamespace = 'cloister'::regnamespace AND c.relkind = 'r'"
                )
                return int(found)

            return int(await store._run(size))  # type: ignore[attr-defined]
    return _mine()


def _mine() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def _register(store: Store, messages: int, each: random.Random | None) -> tuple[int, int]:
    """Register *messages* in sessions of ten; give how many fingerprints that were, and how much room it took."""
    before, count = await _room(store), 0

    async def one(number: int) -> int:
        many = sum(each.choice((2, 3, 4)) for _ in range(10)) if each is not None else 0
        session = sealed_session(Owner("acme", f"user-{number:08d}"), created_at=to_micros(START) + number)
        await store.create(session, nonce=nonce(), fingerprints=_some(many))
        return many

    for first in range(0, messages // 10, 50):
        count += sum(await asyncio.gather(*(one(number) for number in range(first, first + 50))))
    return count, await _room(store) - before


async def sizes(store: Store, messages: int) -> None:
    """Print what a registered message takes."""
    if store.url.startswith("memory"):
        await store.claims("acme", [bytes(8)], now=0, nonce=nonce())
        await store.seed("acme", [bytes(8)], nonce=nonce())
    plain = min(messages, 50_000)
    _, bare = await _register(store, plain, None)
    begun = time.perf_counter()
    count, room = await _register(store, messages, random.Random(1))
    took = time.perf_counter() - begun
    room -= bare * messages // plain
    print(
        f"  {messages:,} messages, {count:,} fingerprints in {took:.0f} s: {room / messages:.1f} bytes a message",
        end="",
    )
    print(f", {room / count:.1f} a fingerprint; a session without any {bare / plain * 10:.0f}")
    begun = time.perf_counter()
    await store.sweep(now=to_micros(START), tombstones_before=0, fingerprints=4_000_000, nonce=nonce())
    print(f"  a sweep takes {time.perf_counter() - begun:.2f} s")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--messages", type=int)
    parser.add_argument("urls", nargs="+")
    chosen = parser.parse_args()
    for url in chosen.urls:
        store = stores.connect(url)
        await store.open()
        print(store.url)
        try:
            await (sizes(store, chosen.messages) if chosen.messages else costs(store))
        finally:
            await store.close()


if __name__ == "__main__":
    asyncio.run(main())
