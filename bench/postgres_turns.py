"""What a turn costs on PostgreSQL: ours against our own raw statements, with and without row-level security.

    python -m bench.postgres_turns postgresql://owner@host:port/postgres

The URL is a superuser's; a database of its own is made and dropped. Raw: asyncpg, one statement that reads the newest
40 messages behind an ownership predicate, one that appends two and counts, each message sealed with AES-256-GCM; with
row-level security, the owner is set in the same statement. No lease, no chain, no log. Sides run in turn, A B A B …;
each figure is a median, a ratio the median of the pairs' ratios.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import statistics
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import msgspec
import uvloop
from bench.raw import QUESTION, REPLY, TAIL, history, timed
from bench.turns import Ours
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister import Session
from cloister.stores.postgres_schema import migrate

LENGTHS = (10, 100, 1_000, 10_000)
ROUNDS, TURNS = 9, 12
SESSIONS, TURNS_EACH = 32, 8
STORED = 40
"""Turns of each session after which it is looked at how much the store has grown."""

_SCHEMA = """
CREATE TABLE s (owner text, id text, seq bigint NOT NULL, PRIMARY KEY (owner, id));
CREATE TABLE m (owner text, sid text, seq bigint, body bytea NOT NULL, PRIMARY KEY (owner, sid, seq));
"""
_RLS = """
ALTER TABLE {t} ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON {t} USING (owner = current_setting('bench.owner', true));
"""
_FUNCTIONS = """
CREATE FUNCTION tail(o text, i text, n int) RETURNS bytea[] LANGUAGE plpgsql AS $$
DECLARE r bytea[];
BEGIN
    PERFORM set_config('bench.owner', o, true);
    SELECT array_agg(body) INTO r FROM (
        SELECT body FROM m WHERE owner = o AND sid = i ORDER BY seq DESC LIMIT n) t;
    RETURN r;
END $$;
CREATE FUNCTION add(o text, i text, b bytea[]) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE n bigint;
BEGIN
    PERFORM set_config('bench.owner', o, true);
    UPDATE s SET seq = seq + 2 WHERE owner = o AND id = i RETURNING seq INTO n;
    INSERT INTO m SELECT o, i, n - 2 + k, b[k + 1] FROM generate_series(0, 1) k;
    RETURN n;
END $$;
"""
_TAIL = "SELECT body FROM m WHERE owner = $1 AND sid = $2 ORDER BY seq DESC LIMIT $3"
_ADD = """
WITH n AS (UPDATE s SET seq = seq + 2 WHERE owner = $1 AND id = $2 RETURNING seq)
INSERT INTO m SELECT $1, $2, n.seq - 2 + k, ($3::bytea[])[k + 1] FROM n, generate_series(0, 1) k
"""


class Raw:
    """The leanest code that seals and reads a bounded tail, over as many connections as ours."""

    def __init__(self, url: str, *, secured: bool) -> None:
        self.url = url
        self.secured = secured
        self.key = AESGCM(os.urandom(32))
        self.encode, self.decode = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode

    async def open(self) -> None:
        self.free: asyncio.LifoQueue[Any] = asyncio.LifoQueue()
        for _ in range(10):
            self.free.put_nowait(await asyncpg.connect(self.url))

    async def close(self) -> None:
        while not self.free.empty():
            await self.free.get_nowait().close()

    def seal(self, sid: str, role: str, text: str) -> bytes:
        nonce = os.urandom(12)
        return nonce + self.key.encrypt(nonce, self.encode([role, text]), sid.encode())

    async def start(self, count: int) -> str:
        sid = secrets.token_hex(16)
        rows = [("ana", sid, n, self.seal(sid, m["role"], m["content"])) for n, m in enumerate(history(count))]
        driver = await self.free.get()
        await driver.execute("SELECT set_config('bench.owner', 'ana', false)")
        await driver.execute("INSERT INTO s VALUES ('ana', $1, $2)", sid, count)
        await driver.executemany("INSERT INTO m VALUES ($1, $2, $3, $4)", rows)
        await driver.execute("SELECT set_config('bench.owner', '', false)")
        self.free.put_nowait(driver)
        return sid

    async def ask(self, method: str, sql: str, *args: object) -> Any:
        driver = await self.free.get()
        try:
            return await getattr(driver, method)(sql, *args)
        finally:
            self.free.put_nowait(driver)

    async def turn(self, sid: str) -> None:
        if self.secured:
            bodies = await self.ask("fetchval", "SELECT tail($1, $2, $3)", "ana", sid, TAIL)
        else:
            bodies = [row[0] for row in await self.ask("fetch", _TAIL, "ana", sid, TAIL)]
        context = [self.decode(self.key.decrypt(body[:12], body[12:], sid.encode())) for body in reversed(bodies)]
        assert len(context) <= TAIL
        sealed = [self.seal(sid, "user", QUESTION), self.seal(sid, "assistant", REPLY)]
        if self.secured:
            await self.ask("fetchval", "SELECT add($1, $2, $3)", "ana", sid, sealed)
        else:
            await self.ask("execute", _ADD, "ana", sid, sealed)


async def rate(side: Any, sessions: list[Any]) -> float:
    began = time.perf_counter()

    async def turns(session: str | Session) -> None:
        await timed(side.turn, session, TURNS_EACH)

    await asyncio.gather(*(turns(session) for session in sessions))
    return len(sessions) * TURNS_EACH / (time.perf_counter() - began)


async def measure(sides: dict[str, Any], against: str) -> None:
    """Run all sides in turn, and print what ours costs beside each other one; at 32 sessions, beside *against*."""
    sessions = {n: {name: await side.start(n) for name, side in sides.items()} for n in LENGTHS}
    for n in LENGTHS:
        for name, side in sides.items():
            await timed(side.turn, sessions[n][name], 3)
    found: dict[int, dict[str, list[float]]] = {n: {name: [] for name in sides} for n in LENGTHS}
    for _ in range(ROUNDS):
        for n in LENGTHS:
            for name, side in sides.items():
                found[n][name].append(await timed(side.turn, sessions[n][name], 2 if n == 10 else TURNS))
    others = [name for name in sides if name != "ours"]
    print(f"{'messages':>10}" + "".join(f"{name + ' ms':>14}" for name in sides), end="")
    print("".join(f"{'ours/' + name:>16}" for name in others))
    for n, row in found.items():
        print(f"{n:>10}" + "".join(f"{statistics.median(times) * 1e3:14.3f}" for times in row.values()), end="")
        pairs = [zip(row[name], row["ours"], strict=True) for name in others]
        print("".join(f"{statistics.median(b / a for a, b in pair):16.2f}" for pair in pairs))
    long = statistics.median(b / a for a, b in zip(found[100]["ours"], found[10_000]["ours"], strict=True))
    print(f"ours at 10,000 messages / at 100: {long:.2f}\n")
    crowd = {name: [await side.start(100) for _ in range(SESSIONS)] for name, side in sides.items()}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for name, side in sides.items():
        await rate(side, crowd[name])
    for _ in range(ROUNDS):
        for name, side in sides.items():
            rates[name].append(await rate(side, crowd[name]))
    print(f"{SESSIONS} sessions at once, turns/s")
    for name, values in rates.items():
        print(f"{name:>10} {statistics.median(values):8.0f}")
    share = statistics.median(b / a for a, b in zip(rates[against], rates["ours"], strict=True))
    print(f"ours / {against}: {share:.2f}")


@contextlib.asynccontextmanager
async def fresh_database(url: str) -> AsyncIterator[tuple[Any, str]]:
    """Make a migrated database on the server of *url*; give its owner's connection and the application's URL."""
    server = url.rpartition("/")[0]
    name = "bench_" + secrets.token_hex(4)
    admin = await asyncpg.connect(url)
    await admin.execute(f"CREATE DATABASE {name}")
    owner = await asyncpg.connect(f"{server}/{name}")
    try:
        await migrate(owner, "cloister_app")
        yield owner, f"postgresql://cloister_app@{server.rpartition('@')[2]}/{name}"
    finally:
        await owner.close()
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


async def stored(owner: Any, ours: Ours) -> None:
    """Print how much the tables and indexes grow with a turn."""
    sizes = """
        SELECT CASE WHEN relname LIKE 'audit%' THEN 'audit' ELSE 'rest' END,
               sum(pg_total_relation_size(c.oid))::bigint
        FROM pg_class c WHERE relnamespace = 'cloister'::regnamespace AND relkind = 'r' GROUP BY 1
    """
    sessions = [await ours.start(10) for _ in range(SESSIONS)]
    before = dict(await owner.fetch(sizes))
    for _ in range(STORED):
        for session in sessions:
            await ours.turn(session)
    await owner.execute("VACUUM")
    after = dict(await owner.fetch(sizes))
    kib = {name: (after[name] - before[name]) / 1024 / (STORED * SESSIONS) for name in after}
    print(f"\nstored per turn: {kib['rest']:.2f} KiB, and {kib['audit']:.2f} KiB of audit")


async def main() -> None:
    async with fresh_database(sys.argv[1]) as (owner, app):
        for schema, secured in (("plain", False), ("secured", True)):
            await owner.execute(f"CREATE SCHEMA {schema}; SET search_path = {schema}; {_SCHEMA}")
            if secured:
                await owner.execute(_RLS.format(t="s") + _RLS.format(t="m") + _FUNCTIONS)
            await owner.execute(
                f"GRANT USAGE ON SCHEMA {schema} TO cloister_app;"
                f"GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO cloister_app"
            )
        sides: dict[str, Any] = {
            "raw": Raw(f"{app}?search_path=plain", secured=False),
            "raw+rls": Raw(f"{app}?search_path=secured", secured=True),
            "ours": Ours(app),
        }
        for side in sides.values():
            await side.open()
        await measure(sides, "raw+rls")
        await stored(owner, sides["ours"])
        for side in sides.values():
            await side.close()


if __name__ == "__main__":
    uvloop.run(main())
