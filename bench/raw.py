"""The leanest hand-written code on SQLite, and what a turn says: what `bench.turns` and others measure against.

It does without cloister, so that what its process takes is its own.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

QUESTION = ("How do I move the meeting with the legal team to next week? " * 4)[:200]
REPLY = ("Here is what I would suggest, step by step, with the reasons. " * 7)[:400]
TAIL = 40


def history(count: int) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": (QUESTION, REPLY)[n % 2]} for n in range(count)]


class Raw:
    """The leanest code that seals, reads a bounded tail and commits in groups."""

    def __init__(
        self, path: Path, *, grouped: bool = True, disk: type[sqlite3.Connection] = sqlite3.Connection
    ) -> None:
        self.path = path
        self.disk = disk
        self.grouped = grouped
        self.key = AESGCM(os.urandom(32))
        self.encode, self.decode = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode

    def connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None, factory=self.disk)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        return db

    async def open(self) -> None:
        self.reader, self.writer = self.connect(), self.connect()
        self.writer.executescript(
            "CREATE TABLE s (id TEXT PRIMARY KEY, owner TEXT NOT NULL, seq INTEGER NOT NULL) WITHOUT ROWID;"
            "CREATE TABLE m (sid TEXT, seq INTEGER, body BLOB, PRIMARY KEY (sid, seq)) WITHOUT ROWID;"
        )
        self.pool = ThreadPoolExecutor(1)
        self.waiting: list[tuple[str, list[bytes], asyncio.Future[None]]] = []
        self.flushing: asyncio.Task[None] | None = None

    async def close(self) -> None:
        self.pool.shutdown()
        self.reader.close()
        self.writer.close()

    def seal(self, sid: str, role: str, text: str) -> bytes:
        nonce = os.urandom(12)
        return nonce + self.key.encrypt(nonce, self.encode([role, text]), sid.encode())

    async def start(self, count: int) -> str:
        sid = os.urandom(16).hex()
        rows = [(sid, n, self.seal(sid, m["role"], m["content"])) for n, m in enumerate(history(count))]
        self.writer.execute("BEGIN")
        self.writer.execute("INSERT INTO s VALUES (?, 'ana', ?)", (sid, count))
        self.writer.executemany("INSERT INTO m VALUES (?, ?, ?)", rows)
        self.writer.execute("COMMIT")
        return sid

    def write(self, batch: list[tuple[str, list[bytes], asyncio.Future[None]]]) -> None:
        for part in [batch] if self.grouped else [[one] for one in batch]:
            self.writer.execute("BEGIN IMMEDIATE")
            for sid, bodies, _ in part:
                (seq,) = self.writer.execute(
                    "UPDATE s SET seq = seq + 2 WHERE id = ? AND owner = 'ana' RETURNING seq", (sid,)
                ).fetchone()
                self.writer.executemany(
                    "INSERT INTO m VALUES (?, ?, ?)", [(sid, seq - 2 + k, body) for k, body in enumerate(bodies)]
                )
            self.writer.execute("COMMIT")

    async def flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self.waiting:
            batch, self.waiting = self.waiting, []
            await loop.run_in_executor(self.pool, self.write, batch)
            for *_, done in batch:
                done.set_result(None)
        self.flushing = None

    async def turn(self, sid: str) -> None:
        rows = self.reader.execute(
            "SELECT m.body FROM s JOIN m ON m.sid = s.id WHERE s.id = ? AND s.owner = 'ana'"
            " ORDER BY m.seq DESC LIMIT ?",
            (sid, TAIL),
        ).fetchall()
        context = [self.decode(self.key.decrypt(body[:12], body[12:], sid.encode())) for (body,) in reversed(rows)]
        assert len(context) == min(TAIL, len(context))
        done = asyncio.get_running_loop().create_future()
        self.waiting.append((sid, [self.seal(sid, "user", QUESTION), self.seal(sid, "assistant", REPLY)], done))
        if self.flushing is None:
            self.flushing = asyncio.create_task(self.flush())
        await done


async def timed(turn: Callable[..., Awaitable[None]], session: object, turns: int) -> float:
    began = time.perf_counter()
    for _ in range(turns):
        await turn(session)
    return (time.perf_counter() - began) / turns
