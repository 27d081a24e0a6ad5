"""A clock that is set by hand, a provider and a store that write down what they are asked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

from cloister.audit import Entry, Report, verify
from cloister.client import AsyncCloister
from cloister.keyring import Keyring
from cloister.model import Item
from cloister.providers.base import Request
from cloister.session import Session
from cloister.stores.base import Store, every_entry
from cloister.user import User


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def move(self, **by: float) -> None:
        """Move by a `timedelta`'s arguments; backwards too."""
        self.now += timedelta(**by)


class Parrot:
    """A provider that repeats the last message, piece by piece where it streams, and keeps every request.

    ``answer`` is given instead where it is set, raised if it is an exception, asked if it can be called. While
    ``gate`` is set to an event, a call says so in ``asked`` and waits for that event. ``open_streams`` counts streams
    that nobody has closed.
    """

    name = "parrot"
    model = "parrot-1"

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.answer: Any = None
        self.gate: asyncio.Event | None = None
        self.asked = asyncio.Event()
        self.open_streams = 0
        self.closed = False

    async def complete(self, request: Request) -> Any:
        self.requests.append(request)
        self.asked.set()
        await asyncio.sleep(0)
        if self.gate is not None:
            await self.gate.wait()
        if isinstance(self.answer, BaseException):
            raise self.answer
        if callable(self.answer):
            return self.answer(request)
        return self.said(request) if self.answer is None else self.answer

    async def stream(self, request: Request) -> AsyncGenerator[Any, None]:
        self.open_streams += 1
        try:
            answer = await self.complete(request)
            if not isinstance(answer, str):
                yield answer
                return
            for word in answer.split(" "):
                yield word + " " if word else ""
                await asyncio.sleep(0)
        finally:
            self.open_streams -= 1
            await asyncio.sleep(0)  # closing a real connection waits too

    async def close(self) -> None:
        self.closed = True

    @staticmethod
    def said(request: Request) -> str:
        return f"You said: {request.messages[-1]['content']}"

    @property
    def seen(self) -> str:
        """Everything that was ever sent to the model."""
        return str([request.messages for request in self.requests])


Answers = Callable[[Callable[..., Awaitable[Any]], tuple[Any, ...], dict[str, Any]], Awaitable[Any]]


class Watched:
    """A store in front of another: keeps the names of what it is asked, and lets a test answer in its place.

    ``calls`` holds (method, arguments but the nonce). ``answers`` maps a method to what answers instead: it is given
    the real method and the arguments.
    """

    def __init__(self, store: Store) -> None:
        self.inner = store
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.answers: dict[str, Answers] = {}

    @property
    def store(self) -> Store:
        return cast(Store, self)

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.calls]

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.inner, name)
        if not asyncio.iscoroutinefunction(real):
            return real

        async def ask(*args: Any, **options: Any) -> Any:
            self.calls.append((name, args, {key: value for key, value in options.items() if key != "nonce"}))
            if name in self.answers:
                return await self.answers[name](real, args, options)
            return await real(*args, **options)

        return ask


@dataclass
class House:
    """An open cloister and everything that a test turns."""

    cloister: AsyncCloister
    provider: Parrot
    clock: Clock

    @property
    def ana(self) -> User:
        return self.cloister.user("ana")

    @property
    def ben(self) -> User:
        return self.cloister.user("ben")

    async def entries(self) -> list[Entry]:
        """Everything on record, what is found out in the background included."""
        await self.cloister.vault.settle()
        return [entry async for entry in every_entry(self.cloister.store)]

    async def events(self) -> list[str]:
        return [entry.event for entry in await self.entries()]

    async def audited(self) -> Report:
        return verify(await self.entries(), self.cloister.store.heads())


_KEYRINGS: dict[str, Keyring] = {}
"""The keys of stores beside which no file lies."""


@contextlib.asynccontextmanager
async def opened(url: str | Store, **options: Any) -> AsyncIterator[House]:
    """Open a house at *url*; *options* are those of `AsyncCloister.open`."""
    provider, clock = options.pop("provider", None) or Parrot(), options.pop("clock", None) or Clock()
    if isinstance(url, str) and url.startswith(("redis", "postgres", "token")):
        options.setdefault("keyring", _KEYRINGS.setdefault(url, Keyring.generate()))
    async with AsyncCloister.open(url, provider=provider, clock=clock, **options) as cloister:
        yield House(cloister, provider, clock)


def texts(items: Sequence[Item]) -> list[str]:
    """What was said, in order."""
    return [item.text for item in items]


async def told(session: Session) -> list[str]:
    """What *session* holds, to the end."""
    found: list[str] = []
    after = None
    for _ in range(100):
        page = await session.history(limit=1_000, after=after)
        found += texts(page)
        if len(page) < 1_000:
            return found
        after = page[-1].id
    raise AssertionError("a history of more than 100,000 items")


async def pieces(*given: Any) -> AsyncGenerator[Any, None]:
    """Stream what is *given*, with a wait between."""
    for piece in given:
        await asyncio.sleep(0)
        yield piece


def files_in(folder: Path) -> dict[str, bytes]:
    """Copy what lies in *folder*, as a backup would."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def put_back(folder: Path, before: dict[str, bytes]) -> None:
    """Restore such a copy, and nothing else."""
    for path in list(folder.iterdir()):
        path.unlink()
    for name, data in before.items():
        (folder / name).write_bytes(data)
        (folder / name).chmod(0o600)
