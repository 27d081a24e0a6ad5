"""What a turn costs on Redis: ours against hand-written code on the same driver.

    python -m bench.redis_turns host:port

Raw: redis-py, one LRANGE that reads the newest 40 messages, one RPUSH that appends two, each message sealed with
AES-256-GCM; over as many connections as ours. No owner but in the key, no lease, no chain, no log. Sides run in turn,
A B A B …; each figure is a median, a ratio the median of the pairs' ratios. Keys are removed at the end.
"""

from __future__ import annotations

import os
import secrets
import sys
from typing import Any

import msgspec
import uvloop
from bench.postgres_turns import SESSIONS, STORED, measure
from bench.raw import QUESTION, REPLY, TAIL, history
from bench.turns import Ours
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from redis.asyncio import BlockingConnectionPool, Redis

_PREFIX = f"bench-{secrets.token_hex(4)}:"


class Raw:
    """The leanest code that seals and reads a bounded tail."""

    def __init__(self, host: str, port: int) -> None:
        pool = BlockingConnectionPool(host=host, port=port, protocol=2, max_connections=10)
        self.redis = Redis(connection_pool=pool)
        self.key = AESGCM(os.urandom(32))
        self.encode, self.decode = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode

    async def open(self) -> None:
        await self.redis.ping()

    async def close(self) -> None:
        await self.redis.aclose()
        await self.redis.connection_pool.disconnect()

    def seal(self, sid: str, role: str, text: str) -> bytes:
        nonce = os.urandom(12)
        return nonce + self.key.encrypt(nonce, self.encode([role, text]), sid.encode())

    async def start(self, count: int) -> str:
        sid = f"{_PREFIX}raw:ana:{secrets.token_hex(16)}"
        rows = [self.seal(sid, m["role"], m["content"]) for m in history(count)]
        await self.redis.rpush(sid, *rows)
        return sid

    async def turn(self, sid: str) -> None:
        rows: list[Any] = await self.redis.lrange(sid, -TAIL, -1)
        context = [self.decode(self.key.decrypt(row[:12], row[12:], sid.encode())) for row in rows]
        assert len(context) <= TAIL
        await self.redis.rpush(sid, self.seal(sid, "user", QUESTION), self.seal(sid, "assistant", REPLY))


async def stored(redis: Any, ours: Ours) -> None:
    """Print how much memory the server takes for a turn, by its own account of each key."""

    async def sizes() -> dict[str, int]:
        found = {"audit": 0, "rest": 0}
        async for key in redis.scan_iter(match=f"{_PREFIX}{{*", count=1_000):
            found["audit" if key.endswith(b"log") else "rest"] += await redis.memory_usage(key, samples=0) or 0
        return found

    sessions = [await ours.start(10) for _ in range(SESSIONS)]
    before = await sizes()
    for _ in range(STORED):
        for session in sessions:
            await ours.turn(session)
    after = await sizes()
    kib = {name: (after[name] - before[name]) / 1024 / (STORED * SESSIONS) for name in after}
    print(f"\nstored per turn: {kib['rest']:.2f} KiB, and {kib['audit']:.2f} KiB of audit")


async def main() -> None:
    host, _, port = sys.argv[1].partition(":")
    sides: dict[str, Any] = {
        "raw": Raw(host, int(port)),
        "ours": Ours(f"redis://{sys.argv[1]}/0?prefix={_PREFIX}"),
    }
    for side in sides.values():
        await side.open()
    try:
        await measure(sides, "raw")
        await stored(sides["raw"].redis, sides["ours"])
    finally:
        redis = sides["raw"].redis
        async for key in redis.scan_iter(match=f"{_PREFIX}*", count=1_000):
            await redis.delete(key)
        for side in sides.values():
            await side.close()


if __name__ == "__main__":
    uvloop.run(main())
