"""One turn at a time: the queue of a session's turns in this process, and leases, which hold off other processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta

from cloister.errors import SessionBusy
from cloister.model import Owner
from cloister.stores.base import RENEW_EVERY

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
