"""What a turn costs in a store of a million sessions, beside one of a thousand, and what a session takes there.

    python -m bench.many sqlite FOLDER [SESSIONS [SECONDS]]
    python -m bench.many postgresql://owner@host:port/postgres [SESSIONS [SECONDS]]
    python -m bench.many redis host:port [SESSIONS [SECONDS]]

Some sessions in each store are ours and can be opened; they lie between as many others as there are to be, each with
one turn of a question and a reply, as in `bench.turns`. Those are copies of one sealed row for other owners, which a
store cannot tell, for it opens nothing: put there by ``Store.create``, on PostgreSQL by COPY. Loading stops after
SECONDS, and it is said how many there were. Both stores are asked in turn, A B A B …, each time for the sessions that
were left alone longest; each figure is a median, a ratio the median of the pairs' ratios. On Redis they are two
databases of one server.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import random
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from bench.raw import QUESTION, REPLY, history
from bench.turns import Ours

from cloister import Owner, sessions
from cloister.model import SealedItem, SealedSession

FEW, KNOWN = 1_000, 400
ROUNDS, OPENED = 11, 32
AT_ONCE = 64

Size = Callable[[], Awaitable[int]]
Put = Callable[[Sequence[SealedSession], Sequence[SealedItem]], Awaitable[None]]


class Populated:
    """One store with *count* sessions, of which some hundreds can be opened."""

    def __init__(self, ours: Ours, size: Size, put: Put | None, count: int) -> None:
        self.ours = ours
        self.size = size
        self.put = put or self._create
        self.count = count

    async def fill(self, seconds: float) -> None:
        """Put the sessions there; after *seconds* be content with as many as there are."""
        await self.ours.open()
        began, empty = time.monotonic(), await self.size()
        row, items = await self._template()
        self.known: list[tuple[str, str]] = []
        made, each = 0, self.count // KNOWN
        while made < self.count and (made < FEW or time.monotonic() - began < seconds):
            name = f"user-{made:08}"
            session = await self.ours.cloister.user(name).start(items=history(2))
            self.known.append((name, session.id))
            copies = [
                msgspec.structs.replace(
                    row, owner=Owner(None, f"user-{n:08}"), id=sessions.new_id(), turn=secrets.token_bytes(16)
                )
                for n in range(made + 1, made + each)
            ]
            await self.put(copies, items)
            made += each
        self.count = made
        self.took = time.monotonic() - began
        self.bytes_each = (await self.size() - empty) / made
        random.shuffle(self.known)

    async def _template(self) -> tuple[SealedSession, list[SealedItem]]:
        session = await self.ours.start(2)
        page = await self.ours.cloister.store.items(session.owner, session.id, nonce=b"n" * 16, first=0, limit=2)
        assert page.session is not None
        return page.session, list(page.items)

    async def _create(self, copies: Sequence[SealedSession], items: Sequence[SealedItem]) -> None:
        async def some(part: Sequence[SealedSession]) -> None:
            for copy in part:
                await self.ours.cloister.store.create(copy, items, nonce=secrets.token_bytes(16))

        await asyncio.gather(*(some(copies[n::AT_ONCE]) for n in range(AT_ONCE)))

    async def ask(self) -> tuple[float, float]:
        """Open some sessions, those that were left alone longest, and take a turn in each; give seconds of both."""
        chosen, self.known = self.known[:OPENED], self.known[OPENED:] + self.known[:OPENED]
        opening = turning = 0.0
        for name, session_id in chosen:
            began = time.perf_counter()
            session = await self.ours.cloister.user(name).resume(session_id)
            opened = time.perf_counter()
            async with session.turn(QUESTION) as turn:
                await turn.finish(REPLY)
            opening, turning = opening + opened - began, turning + time.perf_counter() - opened
        return opening / len(chosen), turning / len(chosen)


@contextlib.asynccontextmanager
async def on_sqlite(place: str) -> AsyncIterator[list[tuple[Ours, Size, Put | None]]]:
    with tempfile.TemporaryDirectory(dir=place) as folder:

        def sized(path: Path) -> Size:
            async def size() -> int:
                return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))

            return size

        paths = [Path(folder) / "few.db", Path(folder) / "many.db"]
        yield [(Ours(path), sized(path), None) for path in paths]


@contextlib.asynccontextmanager
async def on_postgres(url: str) -> AsyncIterator[list[tuple[Ours, Size, Put | None]]]:
    turns = importlib.import_module("bench.postgres_turns")
    async with turns.fresh_database(url) as (few, few_url), turns.fresh_database(url) as (many, many_url):

        def sized(owner: Any) -> Size:
            async def size() -> int:
                await owner.execute("VACUUM ANALYZE")
                return int(await owner.fetchval("SELECT pg_database_size(current_database())"))

            return size

        def copying(owner: Any) -> Put:
            async def put(copies: Sequence[SealedSession], items: Sequence[SealedItem]) -> None:
                keys = [("", copy.owner.user, copy.id) for copy in copies]
                rows = [
                    (
                        *key,
                        *(copy.version, copy.count, copy.tokens, copy.created_at, copy.updated_at, copy.expires_at),
                        *(copy.turn, copy.wrapped, copy.head, copy.carry, None, None),
                    )
                    for key, copy in zip(keys, copies, strict=True)
                ]
                await owner.copy_records_to_table("sessions", schema_name="cloister", records=rows)
                theirs = [(*key, item.position, item.role, item.tokens, item.sealed) for key in keys for item in items]
                await owner.copy_records_to_table("items", schema_name="cloister", records=theirs)

            return put

        yield [(Ours(url), sized(owner), copying(owner)) for owner, url in ((few, few_url), (many, many_url))]


@contextlib.asynccontextmanager
async def on_redis(address: str) -> AsyncIterator[list[tuple[Ours, Size, Put | None]]]:
    redis = importlib.import_module("redis.asyncio")
    prefix = f"bench-{secrets.token_hex(4)}:"
    clients = [
        redis.from_url(f"redis://{address}/{number}") for number in range(2)
    ]  # databases, each with its own keys

    async def size() -> int:
        return int((await clients[0].info("memory"))["used_memory"])

    try:
        yield [(Ours(f"redis://{address}/{number}?prefix={prefix}"), size, None) for number in range(2)]
    finally:
        for client in clients:
            cursor = None
            while cursor != 0:
                cursor, keys = await client.scan(cursor or 0, match=f"{prefix}*", count=1_000)
                if keys:
                    await client.unlink(*keys)
            await client.aclose()


async def main() -> None:
    where, *rest = sys.argv[1:]
    if where.startswith("postgresql://"):
        opening = on_postgres(where)
    else:
        opening = {"sqlite": on_sqlite, "redis": on_redis}[where](rest.pop(0))
    count, seconds = int(rest[0]) if rest else 1_000_000, float(rest[1]) if len(rest) > 1 else 600.0
    async with opening as places:
        few, many = (Populated(*place, wanted) for place, wanted in zip(places, (FEW, count), strict=True))
        for side in (few, many):
            await side.fill(seconds)
            print(f"{side.count:>10,} sessions, put there in {side.took:.0f} s: {side.bytes_each:,.0f} bytes each")
            await side.ask()
        found = [(await few.ask(), await many.ask()) for _ in range(ROUNDS)]
        for part, name in enumerate(("opening one", "a turn")):
            pairs = [(one[part], other[part]) for one, other in found]
            ms = [statistics.median(values) * 1e3 for values in zip(*pairs, strict=True)]
            ratios = statistics.quantiles([b / a for a, b in pairs])
            print(
                f"{name:>12}: {ms[0]:.3f} ms beside {few.count:,}, {ms[1]:.3f} ms beside {many.count:,}:"
                f" {ratios[1]:.2f} times as much (quartiles {ratios[0]:.2f} and {ratios[2]:.2f})"
            )
        for side in (few, many):
            await side.ours.close()


if __name__ == "__main__":
    uvloop.run(main())
