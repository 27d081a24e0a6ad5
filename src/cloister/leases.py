"""One turn at a time: the queue of a session's turns in this process, and leases, which hold off other processes."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

from cloister.attempts import Attempts
from cloister.channel import Channel
from cloister.errors import SessionBusy, SessionConflict, StoreError
from cloister.model import Owner
from cloister.stores.base import RENEW_EVERY, Loaded, Store

_FIRST_POLL, _LAST_POLL = 0.005, 0.25
_RENEW_SECONDS = RENEW_EVERY.total_seconds()


def busy(wait: timedelta) -> SessionBusy:
    """Say that a turn has waited in vain."""
    seconds = wait.total_seconds()
    return SessionBusy(
        f"another turn of this session, perhaps one around this one, is still running after {seconds:g} s"
    )


class Queue:
    """Let the turns of a session run one after the other in this process."""

    def __init__(self, wait: timedelta) -> None:
        self._wait = wait
        self._turns: dict[tuple[Owner, str], tuple[asyncio.Lock, list[None]]] = {}

    def __contains__(self, key: tuple[Owner, str]) -> bool:
        """Say whether a turn of this session runs or waits."""
        return key in self._turns

    @contextlib.asynccontextmanager
    async def alone(self, owner: Owner, session_id: str) -> AsyncIterator[float]:
        """Wait until no other turn of a session runs; give the moment, on the loop's clock, at which waiting ends.

        Raises `SessionBusy` once it has come.
        """
        key = owner, session_id
        lock, waiting = self._turns.setdefault(key, (asyncio.Lock(), []))
        waiting.append(None)
        deadline = asyncio.get_running_loop().time() + self._wait.total_seconds()
        try:
            if lock.locked():
                try:
                    async with asyncio.timeout_at(deadline):
                        await lock.acquire()
                except TimeoutError:
                    raise busy(self._wait) from None
            else:
                await lock.acquire()
            try:
                yield deadline
            finally:
                lock.release()
        finally:
            waiting.pop()
            if not waiting:
                del self._turns[key]


class Leases:
    """Have the leases of this process renewed for as long as they are kept: one timer serves all.

    *renew* begins to renew one; what becomes of that is its own affair.
    """

    def __init__(self, renew: Callable[[Owner, str, bytes], None]) -> None:
        self._renew = renew
        self._held: dict[bytes, tuple[Owner, str, float]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._held)

    @contextlib.contextmanager
    def kept(self, lease: bytes, owner: Owner, session_id: str) -> Iterator[None]:
        """Keep *lease* alive inside the block, however long the model thinks."""
        loop = asyncio.get_running_loop()
        self._held[lease] = owner, session_id, loop.time() + _RENEW_SECONDS
        if self._timer is None:
            self._timer = loop.call_later(_RENEW_SECONDS, self._tick, loop)
        try:
            yield
        finally:
            del self._held[lease]

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        self.renew_due(now)
        if self._held:
            soonest = min(due for _, _, due in self._held.values())
            self._timer = loop.call_at(max(soonest, now + _RENEW_SECONDS / 4), self._tick, loop)

    def renew_due(self, now: float) -> None:
        """Renew the leases that are due at *now*, on the loop's clock; happens by itself."""
        for lease, (owner, session_id, due) in self._held.items():
            if due <= now:
                self._held[lease] = owner, session_id, now + _RENEW_SECONDS
                self._renew(owner, session_id, lease)


class Leasing(Channel):
    """Take the lease of a session, and keep it from running out."""

    def __init__(self, store: Store, clock: Callable[[], datetime], attempts: Attempts | None, wait: timedelta) -> None:
        super().__init__(store, clock, attempts)
        self.queue = Queue(wait)
        self.leases = Leases(lambda *held: self.background(self._renew(*held)))
        self._wait = wait

    async def leased(
        self, owner: Owner, session_id: str, lease: bytes, deadline: float, since: float, **options: Any
    ) -> Loaded:
        """Load with a lease; where another process has it, ask again, ever more rarely, until *deadline*."""
        loop = asyncio.get_running_loop()
        pause = _FIRST_POLL
        while True:
            asked = time.perf_counter()
            load = self.ask(self.store.load, owner, session_id, lease=lease, **options)
            try:
                loaded = await load
            except BaseException:
                # Whether the lease was taken is unknown, so it is given back, on a connection of its own.
                with contextlib.suppress(StoreError):
                    await self.let_go(owner, session_id, lease)
                raise
            if not loaded.busy:
                if self.telemetry is not None:
                    self.telemetry.waited("lease", asked - since, "", None)
                return loaded
            if loop.time() >= deadline:
                raise busy(self._wait)
            await asyncio.sleep(min(pause * random.uniform(0.5, 1.5), max(deadline - loop.time(), 0)))  # noqa: S311
            pause = min(pause * 1.6, _LAST_POLL)

    async def _renew(self, owner: Owner, session_id: str, lease: bytes) -> None:
        # A lease that is lost is found so by the commit; one that could not be renewed is tried again.
        with contextlib.suppress(StoreError, SessionConflict):
            await self.ask(self.store.renew, owner, session_id, lease)

    async def let_go(self, owner: Owner, session_id: str, lease: bytes) -> None:
        """Give a lease back, to the end even if the caller is cancelled."""
        await self._finish(self.ask(self.store.release, owner, session_id, lease))
