"""Measure what a server is like to whoever waits: streams, memory, starting, and another tenant's flood.

Run it with ``python -m bench.streams [PART ...]``; without PARTs, all of them::

    words       how many words the upstream had written when the client saw the first, and at most how far it was behind
    memory      what one worker holds with 1,000 streams open, and what it held before
    start       from the command to the first answer of /readyz, beside a bare Starlette's start
    flood       p99 of one tenant's turns while another floods the server, beside p99 while nobody does

The upstream is in this process, and so are the clients; servers are processes of their own, with one worker, on SQLite.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import uvloop
from bench.server import ANSWER, CHAT, _free, _wait, request

STREAMS = 1_000
WORDS, PAUSE = 60, 0.03
SAID = ANSWER.split()
"""Plain words: whatever looks like a number of somebody's is looked up before it is shown."""
_TEXT = re.compile(rb'"content":"([^"]+)"')
STARTS = 7
FLOOD, CALM = 64, 4
SECONDS = 8.0


class Writing:
    """Be an upstream that writes word after word, and counts what it has written; held, it stops after the first."""

    def __init__(self) -> None:
        self.written = 0
        self.held: asyncio.Event | None = None

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await _read(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
            for number in range(WORDS):
                writer.write(_chunk({"content": f"{SAID[number % len(SAID)]} "}))
                self.written = number + 1
                await writer.drain()
                if self.held is not None and number == 9:
                    await self.held.wait()
                    break
                await asyncio.sleep(0 if self.held is not None else PAUSE)
            writer.write(_chunk({}, "stop") + b"data: [DONE]\n\n")
            await writer.drain()
        writer.close()


async def _read(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    await reader.readexactly(length)


def _chunk(delta: Mapping[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    said = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "mock", "choices": [choice]}
    return b"data: " + json.dumps(said).encode() + b"\n\n"


@contextlib.contextmanager
def serving(folder: str, upstream: int | None) -> Iterator[tuple[int, dict[str, str], subprocess.Popen[bytes]]]:
    """Run a server; give its port, the key of each tenant, and its process."""
    store = ["--store", f"sqlite:///{folder}/chats.db"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CLOISTER_")}
    keys = {}
    for tenant in ("acme", "globex"):
        for words in (["add", tenant], ["keys", "new", tenant]):
            command = [sys.executable, "-m", "cloister", "tenants", *words, *store]
            keys[tenant] = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environ).stdout.decode()
    port = _free()
    if upstream is None:
        command = [*_SERVE, str(port), *store]
    else:
        command = [
            sys.executable,
            "-m",
            "bench.server",
            "serve",
            "cloister",
            str(port),
            folder,
            str(upstream),
            "guarded",
        ]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environ)
    try:
        _wait(port, child)
        yield port, {tenant: key.split()[-1] for tenant, key in keys.items()}, child
    finally:
        child.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(20)
        child.kill()


_SERVE = [sys.executable, "-m", "cloister", "serve", "--provider", "offline", "--port"]


def _asking(key: str, user: str, *, stream: bool = False) -> bytes:
    headers = {"authorization": f"Bearer {key}", "cloister-user": user, "cloister-session": "new"}
    return request("/v1/chat/completions", {**CHAT, "stream": stream}, headers)


async def words() -> None:
    writing = Writing()
    server = await asyncio.start_server(writing, "127.0.0.1", 0)
    upstream = server.sockets[0].getsockname()[1]
    with tempfile.TemporaryDirectory() as folder, serving(folder, upstream) as (port, keys, _):
        firsts, most = [], []
        for number in range(8):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(_asking(keys["acme"], f"user{number}", stream=True))
            said, behind, first = b"", 0, 0
            while b"[DONE]" not in said and (part := await reader.read(65_536)):
                behind = max(behind, writing.written - _seen(said) if first else 0)
                said += part
                first = first or (writing.written if _seen(said) else 0)
            firsts.append(first)
            most.append(behind)
            writer.close()
    server.close()
    print(f"words: the first is seen when {statistics.median(firsts[2:]):g} are written (at most {max(firsts[2:])}),")
    print(f"       and the client is {max(most[2:])} behind at most, {PAUSE * 1_000:g} ms each")


def _seen(said: bytes) -> int:
    """Give how many words a client was shown."""
    return b"".join(_TEXT.findall(said)).count(b" ")


async def memory() -> None:
    writing = Writing()
    writing.held = asyncio.Event()
    server = await asyncio.start_server(writing, "127.0.0.1", 0, backlog=STREAMS)
    upstream = server.sockets[0].getsockname()[1]
    with tempfile.TemporaryDirectory() as folder, serving(folder, upstream) as (port, keys, child):
        before = _held(child.pid)
        writers = []
        for number in range(STREAMS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(_asking(keys["acme"], f"user{number}", stream=True))
            writers.append((reader, writer))
        open_ = 0
        for reader, _ in writers:
            with contextlib.suppress(asyncio.TimeoutError):
                said = await asyncio.wait_for(reader.readuntil(SAID[0].encode()), 60)
                open_ += said.startswith(b"HTTP/1.1 200")
        after = _held(child.pid)
        writing.held.set()
        for _, writer in writers:
            writer.transport.abort()
    server.close()
    each = (after - before) / open_ * 1024
    print(f"memory: {after:.0f} MiB with {open_:,} streams open, {before:.0f} before: {each:.0f} KiB each")


def _held(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / (1 << 20)


async def start() -> None:
    bare, ours = [], []
    with tempfile.TemporaryDirectory() as folder:
        # As an installed package has it: compiled, here by a first start of each that does not count.
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environ["PYTHONPYCACHEPREFIX"] = f"{folder}/compiled"
        for _ in range(STARTS + 1):
            port = _free()
            theirs = [sys.executable, "-m", "bench.server", "serve", "starlette", str(port)]
            bare.append(await _began(theirs, port, "/", environ))
            port = _free()
            served = [*_SERVE, str(port), "--store", f"sqlite:///{folder}/chats.db"]
            ours.append(await _began(served, port, "/readyz", environ))
    del bare[0], ours[0]
    mine, usual = statistics.median(ours), statistics.median(bare)
    print(f"start: {mine:.2f} s from the command to ready, {mine / usual:.2f} times a bare Starlette's {usual:.2f} s")


async def _began(command: list[str], port: int, path: str, environ: Mapping[str, str]) -> float:
    """Give how long a server takes to answer."""
    since = time.perf_counter()
    child = subprocess.Popen(  # noqa: ASYNC220
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environ
    )
    try:
        while time.perf_counter() < since + 30:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
                said = await reader.read()
                writer.close()
                if said.startswith((b"HTTP/1.1 200", b"HTTP/1.1 404")):
                    return time.perf_counter() - since
            await asyncio.sleep(0.005)
        raise SystemExit("a server did not start")
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(20)


async def flood() -> None:
    with tempfile.TemporaryDirectory() as folder, serving(folder, None) as (port, keys, _):
        await _turns(port, keys["globex"], CALM, 1.0, 0.02)
        calm, _ = await _turns(port, keys["globex"], CALM, SECONDS, 0.02)
        async with asyncio.TaskGroup() as group:
            flooding = group.create_task(_turns(port, keys["acme"], FLOOD, SECONDS + 1))
            await asyncio.sleep(0.5)
            met, refused = await _turns(port, keys["globex"], CALM, SECONDS, 0.02)
    theirs, turned_away = flooding.result()
    before, during = _p99(calm), _p99(met)
    print(f"flood: p99 {during:.1f} ms while {FLOOD} connections of another tenant flood, {before:.1f} ms in peace:")
    print(
        f"       {during / before:.2f} times, {refused} refused; of the flood {len(theirs)} answered, {turned_away} not"
    )


async def _turns(port: int, key: str, many: int, seconds: float, pause: float = 0) -> tuple[list[float], int]:
    """Take turns over so many connections; give how long each took that was answered, in ms, and how many were not."""
    took: list[float] = []
    refused = 0
    until = time.perf_counter() + seconds

    async def one(number: int) -> None:
        nonlocal refused
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        asked = [_asking(key, f"user{number}.{one}") for one in range(50)]  # each may ask only so often
        while time.perf_counter() < until:
            await asyncio.sleep(pause)
            since = time.perf_counter()
            writer.write(asked[len(took) % len(asked)])
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length))
            if head.startswith(b"HTTP/1.1 200"):
                took.append((time.perf_counter() - since) * 1_000)
            else:
                refused += 1
        writer.close()

    await asyncio.gather(*map(one, range(many)))
    return took, refused


def _p99(times: list[float]) -> float:
    return statistics.quantiles(times, n=100)[98]


PARTS: Mapping[str, Callable[[], Awaitable[None]]] = {"words": words, "memory": memory, "start": start, "flood": flood}


async def measure(names: list[str]) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for name in names:
        await PARTS[name]()


def main() -> None:
    names = sys.argv[1:] or list(PARTS)
    if unknown := set(names) - set(PARTS):
        raise SystemExit(f"unknown: {', '.join(unknown)}; the parts are {', '.join(PARTS)}")
    uvloop.run(measure(names))


if __name__ == "__main__":
    main()
