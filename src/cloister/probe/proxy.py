"""A proxy on this machine that puts faults into a server's answers: what a pool, a network or a bug may do to them.

It stands between clients and a Redis, a node of a Redis Cluster or a PostgreSQL, knows where an answer ends, and treats
each as `Faults`, a `Schedule` or any function of a `Reply` says:

- ``swap``: this answer and the next one on another connection each go to the other's client;
- ``repeat``: it comes twice; ``stale``: an earlier one of the same connection comes in its place;
- ``drop``: it does not come; ``hang``: nor does any other on this connection; ``delay``: it comes later;
- ``truncate``: half of it comes, then the end of the connection; ``cut``: only the end comes.

What is not an answer passes as it is: the start-up of PostgreSQL, pushes, replication, subscriptions, a copy.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cloister.probe.framing import Frames, Postgres, Resp

Kind = Literal["swap", "repeat", "stale", "drop", "hang", "delay", "truncate", "cut"]
ALL: tuple[Kind, ...] = ("swap", "repeat", "stale", "drop", "hang", "delay", "truncate", "cut")

_CHUNK = 65_536
_HEAD = 256  # of a request, this much is shown to whoever chooses the fault
_START_UP_AT_MOST = 10_000  # bytes: the server takes no more either
_SSL, _GSS, _CANCEL = 80_877_103, 80_877_104, 80_877_102
_STREAMS = {b"PSYNC", b"SYNC", b"MONITOR", b"SUBSCRIBE", b"PSUBSCRIBE", b"SSUBSCRIBE"}


@dataclass(frozen=True, slots=True)
class Reply:
    """Be an answer on its way: the how-manieth of the proxy and of its connection, and what it answers."""

    number: int
    connection: int
    of_connection: int
    request: bytes
    """The beginning of the request."""
    data: bytes = field(repr=False)


Choose = Callable[[Reply], Kind | None]


class Faults:
    """Choose faults at random, at *rate*: the same ones for the same *seed* and order of replies."""

    def __init__(self, rate: float, kinds: Sequence[Kind] = ALL, seed: int = 0) -> None:
        self._rate, self._kinds = rate, kinds
        self._random = random.Random(seed)  # noqa: S311  for faults, not for secrets

    def __call__(self, reply: Reply) -> Kind | None:
        return self._random.choice(self._kinds) if self._random.random() < self._rate else None


class Schedule:
    """Choose faults by the number of the reply, counted over the whole proxy from 0."""

    def __init__(self, kinds: Mapping[int, Kind]) -> None:
        self._kinds = kinds

    def __call__(self, reply: Reply) -> Kind | None:
        return self._kinds.get(reply.number)


@dataclass(eq=False, slots=True)
class _Link:
    """Be a client, its server and what is under way between them."""

    number: int
    from_client: asyncio.StreamReader
    client: asyncio.StreamWriter
    from_server: asyncio.StreamReader
    server: asyncio.StreamWriter
    owed: deque[bytes] = field(default_factory=deque)
    """The requests that are not answered yet."""
    replies: int = 0
    last: bytes = b""
    flowing: bool = False
    """What comes of this answer is handed on as it comes."""
    raw: bool = False
    """What comes on this connection is no longer looked at."""

    def give(self, data: bytes) -> None:
        """Send *data* to the client, if it is still there."""
        if not self.client.is_closing():
            self.client.write(data)


@dataclass(eq=False, slots=True)
class _Offer:
    """Be an answer that waits to be crossed with another connection's."""

    link: _Link
    data: bytes
    taken: asyncio.Event = field(default_factory=asyncio.Event)


class Proxy:
    """Stand before the server at *host* and *port* while ``async with`` lasts, at ``port`` of 127.0.0.1.

    ``injected`` counts the faults that came about by their kind, ``replies`` all answers; ``faults`` may be changed at
    any time, None for none. A swap waits *patience* seconds for another connection's answer and does not come about
    without. Answers of more than *largest* bytes pass as they are, so that little memory is needed.
    """

    host = "127.0.0.1"

    def __init__(
        self,
        host: str,
        port: int,
        protocol: Literal["resp", "postgres"],
        faults: Choose | None = None,
        *,
        delay: float = 0.05,
        patience: float = 0.2,
        largest: int = 4 * 1024 * 1024,
    ) -> None:
        self._upstream = host, port
        self._protocol = protocol
        self.faults = faults
        self._delay, self._patience, self._largest = delay, patience, largest
        self.port = 0
        self.replies = 0
        self.connections = 0
        self.injected: Counter[str] = Counter()
        self._offer: _Offer | None = None
        self._links: dict[_Link, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, self.host, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # connections that were cut are closed by the loop

    def sever(self) -> None:
        """Cut all connections that are open now."""
        for link in self._links:
            link.client.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: writer.transport.abort())  # it may have been cancelled before it began

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, server = await asyncio.open_connection(*self._upstream)
        except OSError:
            return
        link = _Link(self.connections, reader, writer, from_server, server)
        self.connections += 1
        self._links[link] = None
        loop = asyncio.get_running_loop()
        ways = [loop.create_task(self._way(self._requests(link))), loop.create_task(self._way(self._answers(link)))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()  # what was given to it reaches the client
        finally:
            del self._links[link]
            server.transport.abort()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _way(self, work: Awaitable[None]) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            try:
                await work
            except ValueError:
                self.injected["unframed"] += 1  # the two sides speak something else than they should

    # --- from client to server ----------------------------------------------------------------------------------------

    async def _requests(self, link: _Link) -> None:
        frames: Frames = Resp()
        if self._protocol == "postgres":
            await self._start_up(link)
            frames = Postgres.requests()
        head = b""
        while data := await link.from_client.read(_CHUNK):
            at = 0
            for end, mark in [] if link.raw else frames.ends(data):
                head += data[at : min(end, at + _HEAD - len(head))]
                at = end
                if mark == "end":
                    link.owed.append(head)
                    link.raw = self._protocol == "resp" and _name(head) in _STREAMS
                    head = b""
                    if link.raw:
                        break
                elif mark == "now":
                    link.flowing = True
            head += data[at : at + _HEAD - len(head)]
            link.server.write(data)
            await link.server.drain()

    async def _start_up(self, link: _Link) -> None:
        """Pass what a client of PostgreSQL says first, which has no kind; there is no encryption with it here."""
        link.flowing = True  # until it is ready, all is handed on
        while True:
            length = await link.from_client.readexactly(4)
            if not 8 <= int.from_bytes(length, "big") <= _START_UP_AT_MOST:
                raise ValueError("this is not PostgreSQL's protocol")
            body = await link.from_client.readexactly(int.from_bytes(length, "big") - 4)
            code = int.from_bytes(body[:4], "big")
            if code in (_SSL, _GSS):
                link.give(b"N")
                continue
            link.raw = code == _CANCEL
            link.server.write(length + body)
            await link.server.drain()
            return

    # --- from server to client ----------------------------------------------------------------------------------------

    async def _answers(self, link: _Link) -> None:
        frames: Frames = Resp() if self._protocol == "resp" else Postgres.answers()
        held = bytearray()
        while data := await link.from_server.read(_CHUNK):
            at = 0
            for end, mark in [] if link.raw else frames.ends(data):
                held += data[at:end]
                at = end
                if mark == "part" and link.owed:
                    continue
                piece = bytes(held)
                held.clear()
                if mark == "end" and not link.flowing:
                    await self._deal(link, piece)
                    continue
                link.give(piece)
                if mark == "now":
                    link.flowing = True
                elif mark == "end":
                    link.flowing = False
                    if link.owed:
                        link.owed.popleft()
            held += data[at:]
            link.flowing = link.flowing or len(held) > self._largest
            if link.raw or link.flowing:
                link.give(bytes(held))
                held.clear()
            await link.client.drain()
        link.give(bytes(held))

    async def _deal(self, link: _Link, data: bytes) -> None:
        """Hand on an answer, or do to it what was chosen."""
        request = link.owed.popleft() if link.owed else b""
        reply = Reply(self.replies, link.number, link.replies, request, data)
        self.replies += 1
        link.replies += 1
        earlier, link.last = link.last, data
        if (offer := self._offer) is not None:
            self._offer = None
            self.injected["swap"] += 1
            link.give(offer.data)
            offer.link.give(data)
            offer.taken.set()
            return
        kind = self.faults(reply) if self.faults is not None else None
        if kind == "swap":
            await self._swap(link, data)
            return
        if kind is None or (kind == "stale" and not earlier):
            link.give(data)
            return
        self.injected[kind] += 1
        if kind == "repeat":
            link.give(data + data)
        elif kind == "stale":
            link.give(earlier)
        elif kind == "delay":
            await asyncio.sleep(self._delay)
            link.give(data)
        elif kind == "hang":
            await asyncio.Event().wait()  # until the client gives up, which ends this
        elif kind == "truncate":
            link.give(data[: len(data) // 2])
            raise ConnectionAbortedError
        elif kind == "cut":
            link.client.transport.abort()
            raise ConnectionAbortedError

    async def _swap(self, link: _Link, data: bytes) -> None:
        """Wait for another connection's answer, in whose place this one goes."""
        self._offer = offer = _Offer(link, data)
        try:
            async with asyncio.timeout(self._patience):
                await offer.taken.wait()
        except TimeoutError:
            if not offer.taken.is_set():
                link.give(data)
        finally:
            if self._offer is offer:
                self._offer = None


def _name(command: bytes) -> bytes:
    """Give the name of a command of which this is the beginning."""
    words = command.split(b"\r\n", 3)
    return words[2].upper() if len(words) > 2 else b""
