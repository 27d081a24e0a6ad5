"""Every request to the store goes through here: with a nonce that its answer must echo, and told to whoever listens."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, NoReturn, Protocol, TypeVar
from weakref import WeakSet

from msgspec.structs import replace

from cloister import scope, sessions
from cloister.attempts import Attempts
from cloister.audit import Detail, Event, event
from cloister.errors import ConfigurationError, IntegrityError, SessionNotFound, StoreError, StoreUnavailable
from cloister.model import Owner, SealedSession
from cloister.stores.base import Charge, Commit, Store
from cloister.telemetry import UNWATCHED, Course, Telemetry

_log = logging.getLogger("cloister")

T = TypeVar("T")


class _Echo(Protocol):
    @property
    def echo(self) -> bytes: ...


EchoT = TypeVar("EchoT", bound=_Echo)


class Settlement(NamedTuple):
    """Be charges that take the place of what was reserved under a lease."""

    lease: bytes
    charges: Sequence[Charge]


class Channel:
    """Ask a store, put on record what happens, and refuse who may not ask."""

    def __init__(self, store: Store, clock: Callable[[], datetime], attempts: Attempts | None) -> None:
        self.store = store
        self._clock = clock
        self._attempts = attempts
        self._process = os.getpid()
        self._alarmed: WeakSet[IntegrityError] = WeakSet()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.listeners: list[Callable[[Sequence[Event]], None]] = []
        """Told what has gone on record, once it has."""
        self.telemetry: Telemetry | None = None

    def event(self, kind: str, owner: Owner | None = None, session_id: str = "", **detail: Detail) -> Event:
        """Note that something happens now, to a session if one is named, and where the call came from."""
        digest = session_id and sessions.digest(session_id)
        return event(kind, self.now(), owner, digest, **scope.source_of(), **detail)

    def now(self) -> datetime:
        """Give the clock's time, which must be aware."""
        now = self._clock()
        if now.tzinfo is None:
            raise ConfigurationError("the clock must return aware datetimes; use datetime.now(UTC)")
        return now

    async def ask(self, method: Callable[..., Awaitable[EchoT]], *args: Any, **options: Any) -> EchoT:
        """Call the store with a nonce that its answer must echo: a reply to another request is never looked at."""
        if self._process != os.getpid():
            raise ConfigurationError("this cloister was opened before a fork; open one in the new process")
        nonce = os.urandom(16)
        try:
            with self._timed(method):
                reply = await method(*args, nonce=nonce, **options)
            echo = getattr(reply, "echo", None)
            if type(echo) is not bytes or not hmac.compare_digest(echo, nonce):
                raise IntegrityError("the store answered another request than this one; its connection was dropped")
        except IntegrityError as error:
            await self.alarm(error, *_concerned(args))
            raise
        if self.listeners and (entries := _recorded(args, options)):
            self.tell(entries)
        return reply

    def course(self) -> Course:
        """Begin to follow a turn, for whoever watches."""
        return UNWATCHED if self.telemetry is None else self.telemetry.turn()

    @contextlib.contextmanager
    def _timed(self, method: Callable[..., object]) -> Iterator[None]:
        if self.telemetry is None:
            yield
            return
        since, failed = time.perf_counter(), "CancelledError"
        try:
            yield
            failed = ""
        except Exception as error:
            failed = type(error).__name__
            raise
        finally:
            self.telemetry.waited("store", time.perf_counter() - since, method.__name__, failed or None)

    def tell(self, entries: Sequence[Event]) -> None:
        """Tell whoever listens that *entries* are on record."""
        for listener in self.listeners:
            listener(entries)

    async def alarm(self, error: IntegrityError, owner: object = None, session_id: object = None) -> None:
        """Put an integrity failure on record, once, and drop the connections that it may have come over."""
        if error in self._alarmed:
            return
        self._alarmed.add(error)
        whose = owner if isinstance(owner, Owner) else None
        which = session_id if whose and isinstance(session_id, str) else ""
        noted = self.event("integrity.failed", whose, which, problem=str(error))
        try:
            await self.store.distrust()
            await self.store.record([noted], nonce=os.urandom(16))  # unchecked: its answer may be crossed as well
            self.tell([noted])
        except StoreError as fault:
            error.add_note(f"and this could not be put on record: {fault}")

    @contextlib.asynccontextmanager
    async def guarded(self, owner: Owner, session_id: str) -> AsyncIterator[None]:
        """Raise the alarm for what turns out inside the block to be something else than was stored."""
        try:
            yield
        except IntegrityError as error:
            await self.alarm(error, owner, session_id)
            raise

    async def note(self, entries: Sequence[Event]) -> None:
        """Put *entries* on record by themselves, to the end even if the caller is cancelled."""
        await self._finish(self.ask(self.store.record, entries))

    async def charge(self, owner: Owner, settlement: Settlement) -> None:
        """Settle charges that go with no commit, to the end even if the caller is cancelled."""
        await self._finish(self._twice(self.store.charge, owner, *settlement))

    def background(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do *work* off the path of any caller; `settle` waits for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settle(self) -> None:
        """Wait until everything in the background is done; what failed there is logged."""
        while self._tasks:
            for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
                if isinstance(outcome, Exception):
                    _log.error("work in the background failed: %s", outcome)

    def admit(self, owner: Owner) -> None:
        """Raise `RateLimited` if *owner* is refused for a while: before the store is asked, so it tells nothing."""
        if self._attempts is not None:
            self._attempts.check(owner, self.now())

    # --- refusing -----------------------------------------------------------------------------------------------------

    async def refuse(self, owner: Owner, session_id: str | None) -> NoReturn:
        """Put an attempt on record and raise `SessionNotFound`; absent, foreign and malformed look the same.

        Whose session it was is found out in the background, by the same calls and writes whatever the answer is.
        """
        name = "malformed" if session_id is None else sessions.digest(session_id)
        if session_id is not None:
            self.background(self._find_out(owner, session_id))
        await self.ask(self.store.record, self.attempted(owner, name))
        raise SessionNotFound

    def attempted(self, owner: Owner, name: str) -> list[Event]:
        """Count an attempt of *owner* on what is not theirs; give what goes on record of it."""
        now = self.now()
        noted = [replace(self.event("access.refused", owner), session=name)]
        until = self._attempts and self._attempts.failed(owner, now)
        if self._attempts and until:
            seconds = round((until - now).total_seconds())
            noted.append(self.event("access.suspended", owner, attempts=self._attempts.most, seconds=seconds))
        return noted

    async def _find_out(self, owner: Owner, session_id: str) -> None:
        noted = self.event("access.absent", owner, session_id)
        async with self.guarded(owner, session_id):
            whose = await self.store.owner_of(session_id)
        if whose is not None:
            noted = replace(noted, kind="access.foreign", other=whose)
        await self.ask(self.store.record, [noted])

    # --- to the end ---------------------------------------------------------------------------------------------------

    async def _twice(self, method: Callable[..., Awaitable[EchoT]], *args: Any, **options: Any) -> None:
        """Write, and once more where the outcome is unknown: what the store already has is not stored again."""
        try:
            await self.ask(method, *args, **options)
        except StoreUnavailable:
            await self.ask(method, *args, **options)

    async def _finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Let *work* run to its end, even if whoever waits for it is cancelled meanwhile."""
        return await self._through(asyncio.get_running_loop().create_task(work))

    async def _through(self, task: asyncio.Task[T]) -> T:
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            while not task.done():  # however often the caller is cancelled: the store's own deadlines end the wait
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # looked at, so that it is not reported as forgotten
            raise


def _concerned(args: Sequence[object]) -> tuple[object, object]:
    """Say whose session a request was about."""
    first = args[0] if args else None
    row = first.session if isinstance(first, Commit) else first
    return (row.owner, row.id) if isinstance(row, SealedSession) else (first, args[1] if len(args) > 1 else None)


def _recorded(args: Sequence[object], options: Mapping[str, Any]) -> Sequence[Event]:
    """Give the entries that went along with a request."""
    first = args[0] if args else None
    if isinstance(first, Commit):
        return first.entries
    if isinstance(first, list | tuple) and first and isinstance(first[0], Event):
        return first
    found: Sequence[Event] = options.get("entries", ())
    return found
