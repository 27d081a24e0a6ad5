"""A log, a destination and a receiver that do as they are told, for what is delivered from the audit log."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.fakes import Clock

from cloister.alarms import Alarm
from cloister.audit import Chain, Entry, Event, Heads
from cloister.model import to_micros
from cloister.shipping import POLL
from cloister.sinks.base import Record, SignedHeads
from cloister.stores.base import Trail


class FakeLog:
    """Be an audit log: several writers may put entries into it, and old ones can be dropped."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.chain = Chain.new()
        self.rows: list[tuple[int, Entry]] = []
        self.twice = 0
        """How many entries before a position are given once more."""
        self.fault: Exception | None = None
        self.heads: str | None = None
        self.dropped: Heads = {}
        self.reads = 0

    @property
    def entries(self) -> list[Entry]:
        return [entry for _, entry in self.rows]

    def put(
        self, kind: str, count: int = 1, chain: Chain | None = None, owner: str = "a_ana", detail: Any = None
    ) -> Chain:
        """Write *count* entries; with *chain* as another writer, whose chain is given back."""
        mine = chain or self.chain
        for _ in range(count):
            noted = Event(kind, to_micros(self.clock.now), detail=detail or {})
            mine, entry = mine.extend(noted, owner, "")
            self.rows.append((self.rows[-1][0] + 1 if self.rows else 1, entry))
        if chain is None:
            self.chain = mine
        return mine

    def drop(self, count: int) -> None:
        """Drop the oldest *count* entries."""
        del self.rows[:count]

    def cut(self, count: int) -> None:
        """Drop them, and state up to where."""
        self.dropped |= {entry.writer: (entry.number, entry.hash.hex()) for entry in self.entries[:count]}
        self.drop(count)

    async def trail(self, *, after: bytes, limit: int) -> Trail:
        self.reads += 1
        if self.fault:
            raise self.fault
        first = int(after or b"0")
        found = [row for row in self.rows if row[0] > first - self.twice * bool(after)][:limit]
        await asyncio.sleep(0)
        return Trail([entry for _, entry in found], b"%d" % max(found[-1][0] if found else 0, first))

    async def note(self, events: Sequence[Event]) -> None:
        for each in events:
            self.put(each.kind, owner="", detail=each.detail)


@dataclass
class Taker:
    """Be a destination that keeps what it is given. ``fault`` is raised instead, and may be a function of the try."""

    name: str = "taker"
    severity: str = "info"
    taken: list[Record] = field(default_factory=list)
    parcels: list[list[Record]] = field(default_factory=list)
    tries: int = 0
    fault: Any = None
    gate: asyncio.Event | None = None
    waiting: int = 0
    closed: bool = False

    async def deliver(self, records: Sequence[Record]) -> None:
        self.tries += 1
        if self.gate is not None:
            self.waiting += 1
            try:
                await self.gate.wait()
            finally:
                self.waiting -= 1
        fault = self.fault(self.tries) if callable(self.fault) else self.fault
        if fault is not None:
            raise fault
        self.taken += records
        self.parcels.append(list(records))

    async def close(self) -> None:
        self.closed = True

    @property
    def entries(self) -> list[Entry]:
        return [record for record in self.taken if isinstance(record, Entry)]

    @property
    def alarms(self) -> list[Alarm]:
        return [record for record in self.taken if isinstance(record, Alarm)]

    @property
    def heads(self) -> list[str]:
        return [record.line for record in self.taken if isinstance(record, SignedHeads)]


class Naps:
    """Sleep for no time, but for the poll, which waits for a kick; keeps for how long it was asked."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    async def __call__(self, seconds: float) -> None:
        if seconds == POLL:
            await asyncio.Event().wait()
        self.asked.append(seconds)
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool], steps: int = 5_000) -> None:
    """Let others go on until *condition* holds; files are written by threads, so it takes some time."""
    for _ in range(steps):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came to that")


def identities(records: Sequence[Record]) -> list[tuple[str, int]]:
    """Which entries these are, or are about."""
    return [(record.writer, record.number) for record in records if isinstance(record, Entry | Alarm)]


def without_doubles(records: Sequence[Record]) -> list[tuple[str, int]]:
    """Which entries these are about, each where it first came."""
    return list(dict.fromkeys(identities(records)))


Answer = Callable[[bytes, dict[str, str]], Awaitable[bytes]]


class Receiver:
    """Be an HTTP server on this machine that keeps what is posted to it, and answers as it is told.

    ``answer`` is bytes to send, ``None`` to hang up without an answer, or ``"hang"`` to say nothing for ever.
    """

    def __init__(self) -> None:
        self.answer: bytes | str | None = status(200)
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.asked = 0
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self, port: int = 0) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        return f"http://127.0.0.1:{self.port}/hook"

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.asked += 1
            answer = self.answer
            if answer == "hang":
                await reader.read()
            if isinstance(answer, bytes):
                if answer.startswith(b"HTTP/1.1 2"):
                    self.requests.append((first, headers, body))
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            self._serving.discard(task)

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(body) for _, _, body in self.requests]


def status(code: int, headers: str = "", body: bytes = b"") -> bytes:
    return f"HTTP/1.1 {code} X\r\ncontent-length: {len(body)}\r\n{headers}\r\n".encode() + body
