"""Measure what the server costs, beside the leanest that does the same: requests/s, and what a request takes.

Run it with ``python -m bench.server [SIDE ...]``; without SIDEs, all of them::

    echo        1 KB of JSON there and back through the door (identity, rates, decoding), none of it stored
    starlette   the same by Starlette and msgspec alone: what *echo* is measured against
    turn        a chat completion in a session: scrubbed, sealed, judged, on record, on SQLite; the question and the
                answer of 600 characters together, from an upstream that answers at once, behind the 40 messages before
    passing     the same without a session
    through     the same where personal data and leaks are nobody's business: it is only put on record
    upstream    what the upstream itself gives: what *turn* and *passing* add is added to this
    litellm     LiteLLM's proxy in front of that upstream, where it is installed (pip install 'litellm[proxy]')

Each side is a process of its own, one worker on uvloop and httptools; so is the upstream. The client is this process:
connections that stay open and write a prepared request each, 1 or 32 at once. Sides take turns, in another order each
round; a figure is the median of the rounds. Where others use the machine meanwhile, requests/s say little, and the
processor time that the side's process took for each says what they would be.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import uvloop

ROUNDS = 7
SECONDS = 1.5
KEY_FILE = "key"
LITELLM_KEY = "sk-" + "0123456789abcdef" * 4
ANSWER = "Your order is on its way, and will be with you tomorrow before noon. " * 6
QUESTION = "Where is my order, and when will it be here? I would like to know. " * 3
COMPLETION = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "mock",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 100, "completion_tokens": 80, "total_tokens": 180},
}
ECHO = {"text": "x" * 900, "number": 7, "words": ["a", "b", "c"], "more": {"k": "v" * 50}}
CHAT = {"model": "mock", "messages": [{"role": "user", "content": QUESTION}]}
SIDES = ("starlette", "echo", "upstream", "passing", "through", "turn", "litellm")
SENT = 40
"""How many messages of a session are sent along, at most."""


class Echo(msgspec.Struct):
    text: str
    number: int
    words: list[str]
    more: dict[str, str]


class Upstream(asyncio.Protocol):
    """Answer every request alike, with as little work as an asyncio server can."""

    answer = json.dumps(COMPLETION).encode()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own is no subclass
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, end, body = self.buffer.partition(b"\r\n\r\n")
        if not end or len(body) < _length(head):
            return
        self.buffer = b""
        said = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(self.answer)
        self.transport.write(said + self.answer)


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


class Connection(asyncio.Protocol):
    """Ask for the same again and again over one connection."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.times: list[float] = []
        self.failed = 0
        self.buffer = b""
        self.until = 0.0
        self.asked_at = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own is no subclass

    def start(self, until: float) -> None:
        self.until = until
        self.ask()

    def ask(self) -> None:
        self.asked_at = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, end, body = self.buffer.partition(b"\r\n\r\n")
        if not end or len(body) < _length(head):
            return
        now = time.perf_counter()
        self.times.append(now - self.asked_at)
        self.failed += not head.startswith(b"HTTP/1.1 200")
        self.buffer = b""
        if now < self.until:
            self.ask()
        elif not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, _: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError("the server hung up"))


def request(path: str, body: Any, headers: Mapping[str, str]) -> bytes:
    """Give the bytes of a POST."""
    said = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "host: localhost", "content-type: application/json"]
    lines += [f"content-length: {len(said)}", *[f"{name}: {value}" for name, value in headers.items()]]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + said


async def load(port: int, requests: Sequence[bytes]) -> tuple[float, float]:
    """Ask over as many connections as there are *requests*; give requests/s and the median time in ms."""
    loop = asyncio.get_running_loop()
    connections = []
    for one in requests:
        _, connection = await loop.create_connection(lambda one=one: Connection(one), "127.0.0.1", port)  # type: ignore[misc]
        connections.append(connection)
    since = time.perf_counter()
    for connection in connections:
        connection.start(since + SECONDS)
    await asyncio.gather(*[connection.done for connection in connections])
    took = time.perf_counter() - since
    times = [each for connection in connections for each in connection.times]
    failed = sum(connection.failed for connection in connections)
    for connection in connections:
        connection.transport.abort()
    if failed:
        raise SystemExit(f"{failed} of {len(times)} requests were refused")
    return len(times) / took, statistics.median(times) * 1_000


# --- the sides, each in a process of its own --------------------------------------------------------------------------


def serve_starlette(port: int) -> None:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    decode, encode = msgspec.json.Decoder(Echo).decode, msgspec.json.Encoder().encode

    async def echo(request: Request) -> Response:
        return Response(encode(decode(await request.body())), media_type="application/json")

    _uvicorn(Starlette(routes=[Route("/v1/echo", echo, methods=["POST"])]), port)


def serve_cloister(port: int, folder: str, upstream: int, *, guarded: bool) -> None:
    """Serve with everything on, or unguarded, and a route that only echoes beside."""
    from cloister import AsyncCloister
    from cloister.model import Item
    from cloister.providers.openai import OpenAICompatible
    from cloister.server.app import ROUTES, Application
    from cloister.server.routes import Call, Route
    from cloister.server.settings import ServerSettings
    from cloister.window import PRIMING_TOKENS, Estimate, item_tokens

    async def echo(call: Call, body: Echo) -> Echo:
        return body

    def opening() -> AsyncCloister:
        provider = OpenAICompatible(base_url=f"http://127.0.0.1:{upstream}/v1", model="mock")
        guards: dict[str, Any] = {} if guarded else {"scrub": None, "leaks": None}
        pair = sum([item_tokens(Item("user", text), Estimate()) for text in (QUESTION, ANSWER)])
        return AsyncCloister.open(
            f"sqlite:///{folder}/chats.db",
            provider=provider,
            tenancy="required",
            context_tokens=(SENT // 2 + 1) * pair + PRIMING_TOKENS,
            **guards,
        )

    options = ServerSettings(requests_per_minute_user=None, requests_per_minute_tenant=None)
    route = Route("POST", "/v1/echo", echo, "Echo", body=Echo, answer=Echo)
    _uvicorn(Application(opening, options, routes=(*ROUTES, route)), port)


def serve_upstream(port: int) -> None:
    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port)
        await server.serve_forever()

    uvloop.run(main())


def serve_litellm(port: int, folder: str, upstream: int) -> None:
    config = Path(folder, "litellm.yaml")
    model = {"model": "openai/mock", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "none"}
    config.write_text(json.dumps({"model_list": [{"model_name": "mock", "litellm_params": model}]}))
    # Where it is installed: beside cloister, or in an environment of its own whose bin is on PATH.
    os.environ["LITELLM_MASTER_KEY"] = LITELLM_KEY
    os.execvp("litellm", ["litellm", "--config", str(config), "--port", str(port), "--num_workers", "1"])


def _uvicorn(application: Any, port: int) -> None:
    import uvicorn

    uvicorn.run(
        application, host="127.0.0.1", port=port, loop="uvloop", http="httptools", log_level="warning", access_log=False
    )


# --- measuring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """Be a process that answers at a port."""

    port: int
    pid: int

    def spent(self) -> float:
        """Give the processor time that it has taken, in seconds; nothing where the system does not tell."""
        try:
            told = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(told[11]) + int(told[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def process(*words: str) -> Iterator[Side]:
    """Run a side; give it once it answers."""
    port = _free()
    command = [sys.executable, "-m", "bench.server", "serve", words[0], str(port), *words[1:]]
    child = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL if words[0] == "litellm" else None
    )
    try:
        _wait(port, child)
        yield Side(port, child.pid)
    finally:
        child.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(10)
        child.kill()


def _free() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait(port: int, child: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.1):
            return
        if child.poll() is not None:
            raise SystemExit("a side did not start")
        time.sleep(0.1)
    raise SystemExit("a side did not start in time")


def prepared(side: str, port: int, folder: str, users: int) -> list[bytes]:
    """Give a request for each of *users*, with sessions made for those that need one."""
    if side == "starlette":
        return [request("/v1/echo", ECHO, {})] * users
    if side in ("upstream", "litellm"):
        return [request("/v1/chat/completions", CHAT, {"authorization": f"Bearer {LITELLM_KEY}"})] * users
    home = _beside(folder) if side == "through" else folder
    headers = {"authorization": f"Bearer {Path(home, KEY_FILE).read_text().strip()}"}
    made = []
    for number in range(users):
        mine = {**headers, "cloister-user": f"user{number}"}
        if side == "turn":
            asked = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/conversations", b"{}", {**mine, "content-type": "application/json"}
            )
            with urllib.request.urlopen(asked) as answer:
                mine["cloister-session"] = json.load(answer)["id"]
        path, body = ("/v1/echo", ECHO) if side == "echo" else ("/v1/chat/completions", CHAT)
        made.append(request(path, body, mine))
    return made


def _beside(folder: str) -> str:
    beside = Path(folder, "through")
    beside.mkdir(exist_ok=True)
    return str(beside)


@contextlib.asynccontextmanager
async def running(sides: Sequence[str], folder: str) -> AsyncIterator[dict[str, Side]]:
    """Run what *sides* need; give the process that answers for each."""
    ours = {"echo", "turn", "passing"} & set(sides)
    with contextlib.ExitStack() as stack:
        upstream = stack.enter_context(process("upstream"))
        found = {"upstream": upstream}
        if "starlette" in sides:
            found["starlette"] = stack.enter_context(process("starlette"))
        if ours:
            _key(folder)
            found |= dict.fromkeys(
                ours, stack.enter_context(process("cloister", folder, str(upstream.port), "guarded"))
            )
        if "through" in sides:
            beside = _beside(folder)
            _key(beside)
            found["through"] = stack.enter_context(process("cloister", beside, str(upstream.port), "unguarded"))
        if "litellm" in sides:
            found["litellm"] = stack.enter_context(process("litellm", folder, str(upstream.port)))
        yield found


def _key(folder: str) -> None:
    """Make a tenant and a key for it."""
    store = f"sqlite:///{folder}/chats.db"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CLOISTER_")}
    for words in (["tenants", "add", "acme"], ["tenants", "keys", "new", "acme"]):
        command = [sys.executable, "-m", "cloister", *words, "--store", store]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environ)
        Path(folder, KEY_FILE).write_bytes(done.stdout)  # that of the last


async def measure(sides: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with running(sides, folder) as found:
            many = {side: prepared(side, found[side].port, folder, 32) for side in sides}
            rows: dict[str, list[tuple[float, float, float, float]]] = {side: [] for side in sides}
            for _ in range(ROUNDS):
                for side in random.sample(sides, len(sides)):
                    alone = (await load(found[side].port, many[side][:1]))[1]
                    before = found[side].spent()
                    rate, busy = await load(found[side].port, many[side])
                    rows[side].append((alone, rate, busy, (found[side].spent() - before) / (rate * SECONDS) * 1e6))
    print(f"{'side':12}{'1 at once, ms':>15}{'32 at once, 1/s':>17}{'ms':>9}{'processor, µs':>15}")
    middle = {side: [statistics.median(column) for column in zip(*each, strict=True)] for side, each in rows.items()}
    for side, (alone, rate, busy, spent) in middle.items():
        print(f"{side:12}{alone:15.2f}{rate:17,.0f}{busy:9.1f}{spent:15.0f}")
    for side, against in (("echo", "starlette"), ("turn", "litellm"), ("passing", "litellm"), ("through", "litellm")):
        if side in middle and against in middle:
            ours, theirs = middle[side], middle[against]
            print(f"{side} gives {ours[1] / theirs[1]:.2f} times the requests/s of {against}", end="")
            print(f"; by processor time, {theirs[3] / ours[3]:.2f} times" if ours[3] else "")
    for side in ("turn", "passing", "through"):
        if side in middle and "upstream" in middle:
            print(f"{side} adds {middle[side][0] - middle['upstream'][0]:.2f} ms to what the upstream takes")


def main() -> None:
    words = sys.argv[1:]
    if words[:1] == ["serve"]:
        side, port, rest = words[1], int(words[2]), words[3:]
        if side == "cloister":
            serve_cloister(port, rest[0], int(rest[1]), guarded=rest[2] == "guarded")
        elif side == "litellm":
            serve_litellm(port, rest[0], int(rest[1]))
        else:
            {"starlette": serve_starlette, "upstream": serve_upstream}[side](port)
        return
    sides = words or [side for side in SIDES if side != "litellm" or shutil.which("litellm")]
    if unknown := set(sides) - set(SIDES):
        raise SystemExit(f"unknown: {', '.join(unknown)}; the sides are {', '.join(SIDES)}")
    uvloop.run(measure(sides))


if __name__ == "__main__":
    main()
