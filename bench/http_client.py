"""Compare httpx2 with aiohttp where a provider uses them: one POST, a whole or a streamed answer.

Run it with both installed::

    python bench/http_client.py

A subprocess answers on the loopback interface: whole answers of 1.4 kB, streams of 64 events of 200 bytes, each event
its own chunk. Both clients send the same request and parse with the same code. Runs come in pairs, one client after the
other in changing order; the ratio is the median of the pairs' ratios. CPU is that of the client's process.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import msgspec

from cloister.providers.sse import Events

QUESTION = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello " * 100}]}).encode()
WHOLE = json.dumps(
    {"choices": [{"message": {"role": "assistant", "content": "x" * 1300}, "finish_reason": "stop"}]}
).encode()
EVENT = b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": "word " * 28}}]}).encode() + b"\n\n"
EVENTS = 64
PAIRS = 11

Call = Callable[[], Awaitable[int]]


class Upstream(asyncio.Protocol):
    """Answer requests with as little work as an asyncio server can."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, end, body = self.buffer.partition(b"\r\n\r\n")
        if not end or len(body) < len(QUESTION):
            return
        self.buffer = b""
        if b" /stream " in head.split(b"\r\n", 1)[0]:
            self.transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            self.event(0)
        else:
            answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(WHOLE)
            self.transport.write(answer + WHOLE)

    def event(self, number: int) -> None:
        if number == EVENTS:
            self.transport.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        else:
            self.transport.write(b"%x\r\n%s\r\n" % (len(EVENT), EVENT))
            asyncio.get_running_loop().call_soon(self.event, number + 1)


async def serve() -> None:
    """Serve until the parent closes our input."""
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


def count(events: list[bytes]) -> int:
    """Decode events as a provider does."""
    return sum(1 for event in events if event != b"[DONE]" and msgspec.json.decode(event))


async def measure(call: Call, calls: int, concurrency: int) -> tuple[float, float]:
    """Return wall and CPU time per call, in microseconds."""

    async def worker() -> None:
        for _ in range(calls // concurrency):
            await call()

    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return (time.perf_counter() - wall) / calls * 1e6, (time.process_time() - cpu) / calls * 1e6


async def compare(port: int) -> None:
    """Print the table."""
    import aiohttp
    import httpx2

    base = f"http://127.0.0.1:{port}"
    headers = {"authorization": "Bearer k", "content-type": "application/json", "accept-encoding": "identity"}
    limits = httpx2.Limits(max_connections=64, max_keepalive_connections=64)
    async with (
        aiohttp.ClientSession(headers=headers, cookie_jar=aiohttp.DummyCookieJar()) as a,
        httpx2.AsyncClient(headers=headers, limits=limits, trust_env=False) as h,
    ):

        async def aiohttp_whole() -> int:
            async with a.post(base + "/whole", data=QUESTION) as response:
                return len(msgspec.json.decode(await response.read()))

        async def aiohttp_stream() -> int:
            events, seen = Events(), 0
            async with a.post(base + "/stream", data=QUESTION) as response:
                async for chunk in response.content.iter_any():
                    seen += count(events.feed(chunk))
            return seen

        async def httpx2_whole() -> int:
            response = await h.post(base + "/whole", content=QUESTION)
            return len(msgspec.json.decode(response.content))

        async def httpx2_stream() -> int:
            events, seen = Events(), 0
            async with h.stream("POST", base + "/stream", content=QUESTION) as response:
                async for chunk in response.aiter_raw():
                    seen += count(events.feed(chunk))
            return seen

        print(f"{'answer':<8}{'at once':>8}{'':>6}{'httpx2 µs':>12}{'aiohttp µs':>12}{'httpx2 / aiohttp':>18}")
        for shape, pair, calls in (
            ("whole", (httpx2_whole, aiohttp_whole), 320),
            ("stream", (httpx2_stream, aiohttp_stream), 64),
        ):
            for concurrency in (1, 32):
                runs: list[list[tuple[float, float]]] = [[], []]
                for number in range(PAIRS + 1):
                    for which in (0, 1) if number % 2 else (1, 0):
                        runs[which].append(await measure(pair[which], calls, concurrency))
                for kind, name in enumerate(("wall", "CPU")):
                    x, y = ([run[kind] for run in side[1:]] for side in runs)  # the first pair warms up
                    ratio = statistics.median(i / j for i, j in zip(x, y, strict=True))
                    print(
                        f"{shape:<8}{concurrency:>8}{name:>6}{statistics.median(x):>12.0f}{statistics.median(y):>12.0f}"
                        f"{ratio:>18.2f}"
                    )


def imports() -> None:
    """Print what a client costs once, in milliseconds of CPU, after what cloister imports anyway.

    aiohttp loads the certificates of the system when it is imported, httpx2 when a client is made.
    """
    code = """
import asyncio, json, ssl, time, cloister.wire, cloister.providers
async def main():
    start = time.process_time()
    import {0} as library
    imported = time.process_time()
    library.{1}()
    print((imported - start) * 1e3, (time.process_time() - imported) * 1e3)
asyncio.run(main())
"""
    print(f"{'':<16}{'import ms':>12}{'client ms':>12}{'both':>8}")
    for name, client in (("httpx2", "AsyncClient"), ("aiohttp", "ClientSession")):
        command = [sys.executable, "-W", "ignore", "-c", code.format(name, client)]
        runs = [
            [float(figure) for figure in subprocess.check_output(command, stderr=subprocess.DEVNULL).split()]
            for _ in range(PAIRS)
        ]
        once, made = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"{name:<16}{once:>12.0f}{made:>12.0f}{once + made:>8.0f}")


def main() -> None:
    """Start the server and compare."""
    if sys.argv[1:] == ["serve"]:
        asyncio.run(serve())
        return
    server = subprocess.Popen([sys.executable, __file__, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        asyncio.run(compare(int(server.stdout.readline())))
    finally:
        server.communicate()
    imports()


if __name__ == "__main__":
    main()
