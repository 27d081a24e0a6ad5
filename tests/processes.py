"""Servers in processes of their own, for tests that kill and stop them.

Run as a program: serve a store as its first argument says, with routes of its own behind the real door. `running`
starts it, or `cloister serve`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any, NoReturn

from tests.children import ends_with_us

from cloister import scope
from cloister.model import Owner
from cloister.providers.base import Request
from cloister.server.app import Application
from cloister.server.headers import Headers
from cloister.server.identity import Caller
from cloister.server.monitoring import Monitoring
from cloister.server.routes import ANYBODY, Call, Route, Stream
from cloister.server.serve import Service, serve, without_trace
from cloister.server.settings import ServerSettings
from cloister.settings import Settings

ROOT = Path(__file__).parent.parent
TIMEOUT = 20.0


class Slow:
    """A provider that says word after word, and in a file that it was left in the middle."""

    name = model = "slow"

    def __init__(self, words: int, left: Path) -> None:
        self._words = words
        self._left = left

    async def complete(self, request: Request) -> Any:
        return "word"

    async def stream(self, request: Request) -> AsyncGenerator[Any, None]:
        try:
            for number in range(self._words):
                yield f"word{number} "
                await asyncio.sleep(0.01)
        except BaseException:
            self._left.touch()
            raise

    async def close(self) -> None:
        self._left.with_name("closed").touch()


class Known:
    """Believe whoever says so, as an operator or for ana of acme."""

    async def caller(self, headers: Headers, source: str) -> Caller:
        operator = headers.get("authorization") == "Bearer operator"
        return Caller("operator", None, None, "op") if operator else Caller("service", "acme", None, "key")

    async def owner(self, caller: Caller, headers: Headers, *named: str) -> Owner:
        return Owner("acme", "ana")

    async def close(self) -> None: ...


async def pid(call: Call) -> Any:
    return {"pid": os.getpid()}


async def source(call: Call) -> Any:
    return scope.source_of()


async def die(call: Call) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


async def turn(call: Call) -> Stream:
    session = await call.user.start()

    async def pieces() -> AsyncGenerator[bytes, None]:
        async with session.stream("Say words.") as stream:
            async for text in stream:
                yield text.encode()

    return Stream(pieces(), lambda: {"cloister-session": session.id})


async def sessions(call: Call) -> Any:
    return [[item.content for item in await session.history()] for session in await call.user.sessions()]


def _service(said: dict[str, Any], settings: Settings, options: ServerSettings, alone: bool) -> Service:
    folder = Path(said["folder"])
    if said.get("dies"):
        (folder / f"began-{os.getpid()}").touch()
    monitoring = Monitoring(options, lambda: application.behind().cloister.store)
    routes = [
        Route("GET", "/pid", pid, "", scopes=ANYBODY, owned=False),
        Route("GET", "/source", source, "", scopes=ANYBODY, owned=False),
        Route("GET", "/die", die, "", scopes=ANYBODY, owned=False),
        Route("POST", "/turn", turn, "", waits=True, streams=True),
        Route("GET", "/sessions", sessions, ""),
        *monitoring.routes(),
    ]
    application = Application(
        lambda: settings.open(telemetry=monitoring.telemetry()), options, routes=routes, identities=lambda _: Known()
    )

    async def look() -> dict[str, Any]:
        if said.get("dies"):
            asyncio.get_running_loop().call_later(0.02, os._exit, 3)
        return {"pid": os.getpid()}

    return Service(application, look)


def main(said: dict[str, Any]) -> int:
    folder = Path(said["folder"])
    with without_trace():
        settings = Settings.read(
            store=said.get("store", f"sqlite:///{folder}/chats.db"),
            provider=Slow(said.get("words", 20), folder / "left"),
            tenancy="required",
        )
    options = ServerSettings(
        port=0,
        workers=said.get("workers", 1),
        tls_cert=said.get("tls_cert"),
        tls_key=said.get("tls_key"),
        trusted_proxies=tuple(map(ip_network, said.get("proxies", ()))),
        shutdown_grace=timedelta(seconds=said.get("grace", 10)),
    )

    def began(url: str, facts: dict[str, Any]) -> None:
        print(f"cloister serves {url}", file=sys.stderr, flush=True)

    return serve(settings, options, began, lambda *given: _service(said, *given))


class Running:
    """Be a server that runs: `url` is where, ``log`` all that it has said."""

    def __init__(self, arguments: list[str], environ: dict[str, str], cwd: Path) -> None:
        self.log = ""
        self.process = subprocess.Popen(
            arguments,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
            start_new_session=True,
            preexec_fn=ends_with_us(),
        )
        self.url = self.said(r"cloister serves (https?://\S+)")[1]
        self.port = int(self.url.rpartition(":")[2])

    def said(self, pattern: str, count: int = 1) -> re.Match[str]:
        """Wait until it has said what *pattern* finds, so many times; give the last."""
        assert self.process.stderr is not None
        end = time.monotonic() + TIMEOUT
        while len(found := list(re.finditer(pattern, self.log))) < count:
            ready, _, _ = select.select([self.process.stderr], [], [], max(0, end - time.monotonic()))
            part = os.read(self.process.stderr.fileno(), 65_536) if ready else b""
            if not part:
                raise AssertionError(f"it never said {pattern!r}, but: {self.log}")
            self.log += part.decode()
        return found[-1]

    def connect(self, context: ssl.SSLContext | None = None) -> socket.socket:
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT)
        return plain if context is None else context.wrap_socket(plain, server_hostname="127.0.0.1")

    def ask(self, path: str, *headers: str, method: str = "GET", context: ssl.SSLContext | None = None) -> Reply:
        with self.connect(context) as connection:
            connection.sendall(request(path, *headers, method=method))
            return Reply(rest(connection))

    def pids(self, count: int) -> set[int]:
        """Give the pids of its workers, once there are so many."""
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            with contextlib.ExitStack() as stack:
                # At once, or the first worker that wakes takes them all.
                several = [stack.enter_context(self.connect()) for _ in range(8)]
                for connection in several:
                    connection.sendall(request("/pid"))
                found = {Reply(rest(connection)).json["pid"] for connection in several}
            if len(found) == count:
                return found
        raise AssertionError(f"there are not {count} workers")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end and give the exit code."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        _, said = self.process.communicate(timeout=TIMEOUT)
        self.log += said.decode()
        return self.process.returncode


class Reply:
    def __init__(self, said: bytes) -> None:
        self.head, _, self.body = said.partition(b"\r\n\r\n")
        self.status = int(self.head.split()[1]) if self.head else 0

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def request(path: str, *headers: str, method: str = "GET") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: test", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def rest(connection: socket.socket) -> bytes:
    said = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65_536):
            said += part
    return said


@contextlib.contextmanager
def running(folder: Path, *arguments: str, environ: dict[str, str] | None = None, **said: Any) -> Iterator[Running]:
    """Run ``cloister serve`` with *arguments*, or without any the program below with what is *said*."""
    if arguments:
        command = [sys.executable, "-m", "cloister", "serve", "--port", "0", *arguments]
    else:
        command = [sys.executable, "-m", "tests.processes", json.dumps({"folder": str(folder), **said})]
    server = Running(command, environ or {}, folder)
    try:
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()
        assert server.process.stderr is not None
        server.process.stderr.close()


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
