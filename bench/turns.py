"""What a turn costs: ours against the leanest hand-written code on the same driver and commit scheme, in one run.

    python -m bench.turns [FOLDER] [COMMIT_MS]

A turn reads the newest 40 messages and appends a question of 200 characters and a reply of 400, durably. Raw: sqlite3
with WAL and synchronous=FULL, items sealed with AES-256-GCM, reads on the event loop, one writer thread that commits
all waiting turns at once; no owner check beyond a WHERE clause, no leases, no chain, no audit. Both sides run in turn,
A B A B …, and each figure is a median; a ratio is the median of the pairs' ratios. FOLDER should lie on a disk.
COMMIT_MS lengthens every commit of both sides by that much, for machines whose disk syncs in no time: a disk that
survives a power cut takes 1 to 10 ms.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import uvloop
from bench.raw import QUESTION, REPLY, TAIL, Raw, history, timed

from cloister import AsyncCloister, Keyring, Limits, Session, window
from cloister.model import Item
from cloister.stores.sqlite import SqliteStore

LENGTHS = (10, 100, 1_000, 10_000)
ROUNDS, TURNS = 7, 12
SESSIONS, TURNS_EACH = 32, 12
COMMIT_S = float(sys.argv[2]) / 1e3 if __name__ == "__main__" and len(sys.argv) > 2 else 0.0


class SlowDisk(sqlite3.Connection):
    """A connection whose commits take longer, without holding up anything else."""

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        if sql == "COMMIT" and self.total_changes > getattr(self, "synced", 0):
            self.synced = self.total_changes
            time.sleep(COMMIT_S)
        return super().execute(sql, *args)


DISK = SlowDisk if COMMIT_S else sqlite3.Connection


class Ours:
    """The public library call, bring-your-own-model, on the SQLite file or the URL *place*."""

    def __init__(self, place: Path | str) -> None:
        file = isinstance(place, Path)
        self.opening = AsyncCloister.open(
            f"sqlite:///{place}" if file else str(place),
            context_tokens=self.budget(),
            limits=Limits.keep(),
            keyring=None if file else Keyring.generate(),
            scrub=None,  # the other sides look at nothing either
        )

    @staticmethod
    def budget() -> int:
        """Give room for 40 messages, the question, and what primes the reply."""
        counter = window.counter_for(None)
        question = window.item_tokens(Item("user", QUESTION), counter)
        reply = window.item_tokens(Item("assistant", REPLY), counter)
        return TAIL // 2 * (question + reply) + question + 8

    async def open(self) -> None:
        store = self.opening.store
        if COMMIT_S and isinstance(store, SqliteStore):
            connect = store._connect

            def slowly() -> sqlite3.Connection:
                connect().close()
                with mock.patch("sqlite3.connect", functools.partial(sqlite3.connect, factory=DISK)):
                    return connect()

            store._connect = slowly  # type: ignore[method-assign]
        self.cloister = await self.opening.__aenter__()

    async def close(self) -> None:
        await self.opening.__aexit__(None, None, None)

    async def start(self, count: int) -> Session:
        return await self.cloister.user("ana").start(items=history(count))

    async def turn(self, session: Session) -> None:
        async with session.turn(QUESTION) as turn:
            sent = turn.messages
            assert len(sent) <= TAIL + 1
            await turn.finish(REPLY)


async def rate(side: Raw | Ours, sessions: Sequence[object]) -> float:
    began = time.perf_counter()
    await asyncio.gather(*(timed(side.turn, session, TURNS_EACH) for session in sessions))
    return len(sessions) * TURNS_EACH / (time.perf_counter() - began)


async def lengths(folder: Path) -> None:
    raw, ours = Raw(folder / "raw.db", disk=DISK), Ours(folder / "ours.db")
    await raw.open()
    await ours.open()
    found: dict[int, list[tuple[float, float]]] = {}
    sessions = {n: (await raw.start(n), await ours.start(n)) for n in LENGTHS}
    for n in LENGTHS:
        await timed(raw.turn, sessions[n][0], 3)
        await timed(ours.turn, sessions[n][1], 3)
    for _ in range(ROUNDS):
        for n in LENGTHS:
            turns = 2 if n == 10 else TURNS
            pair = await timed(raw.turn, sessions[n][0], turns), await timed(ours.turn, sessions[n][1], turns)
            found.setdefault(n, []).append(pair)
    print(f"{'messages':>10} {'raw ms':>8} {'ours ms':>8} {'ours/raw':>9}")
    for n, pairs in found.items():
        raw_ms, ours_ms = (statistics.median(side) * 1e3 for side in zip(*pairs, strict=True))
        print(f"{n:>10} {raw_ms:8.3f} {ours_ms:8.3f} {statistics.median(b / a for a, b in pairs):9.2f}")
    long = statistics.median(b[1] / a[1] for a, b in zip(found[100], found[10_000], strict=True))
    print(f"ours at 10,000 messages / at 100: {long:.2f}")
    await raw.close()
    await ours.close()


async def crowd(folder: Path) -> None:
    raw, ours = Raw(folder / "raw.db", disk=DISK), Ours(folder / "ours.db")
    single = Raw(folder / "single.db", grouped=False, disk=DISK)
    sides: dict[str, Raw | Ours] = {"raw, group commit": raw, "raw, one commit per turn": single, "ours": ours}
    sessions: dict[str, list[object]] = {}
    for name, side in sides.items():
        await side.open()
        sessions[name] = [await side.start(100) for _ in range(SESSIONS)]
        await rate(side, sessions[name])
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, side in sides.items():
            found[name].append(await rate(side, sessions[name]))
    print(f"\n{SESSIONS} sessions at once, turns/s (100 messages each at the start)")
    for name, rates in found.items():
        print(f"{name:>26} {statistics.median(rates):9.0f}")
    cost = statistics.median(a / b for a, b in zip(found["raw, group commit"], found["ours"], strict=True))
    gain = statistics.median(b / a for a, b in zip(found["raw, one commit per turn"], found["ours"], strict=True))
    print(f"ours costs {cost:.2f} of raw; {gain:.2f} times the turns/s of one commit per turn")
    for side in sides.values():
        await side.close()


async def stored(folder: Path) -> None:
    ours = Ours(folder / "ours.db")
    await ours.open()
    sessions = [await ours.start(10) for _ in range(SESSIONS)]
    before = _bytes(folder / "ours.db")
    turns = 40
    for _ in range(turns):
        for session in sessions:
            await ours.turn(session)
    after = _bytes(folder / "ours.db")
    await ours.close()
    grown = {name: (after[name] - before[name]) / 1024 / (turns * SESSIONS) for name in after}
    print(f"\nstored per turn: {grown['total'] - grown['audit']:.2f} KiB, and {grown['audit']:.2f} KiB of audit")


def _bytes(path: Path) -> dict[str, int]:
    db = sqlite3.connect(path)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    pages = dict(db.execute("SELECT name, sum(pgsize) FROM dbstat GROUP BY name").fetchall())
    db.close()
    return {"total": sum(pages.values()), "audit": pages["audit"]}


async def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        for number, part in enumerate((lengths, crowd, stored)):
            folder = Path(name) / str(number)
            folder.mkdir()
            gc.collect()
            await part(folder)


if __name__ == "__main__":
    uvloop.run(main())
