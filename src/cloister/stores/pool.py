"""Connections to a server, each lent to one request at a time and given up at the least doubt.

A reply that is still under way when its request is given up must never be read by the next one. So a connection comes
back only after its whole answer was read and found to be the one that was asked for; whatever else happens, a
cancellation included, it is cut. It also is a writer of the audit log, and takes its chain with it: its successor says
that it is one.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Generic, Protocol, TypeVar

from cloister.audit import Chain, Entry, Event, Heads, event, introduces
from cloister.errors import StoreUnavailable
from cloister.model import Owner, from_micros


class Connection(Protocol):
    """A connection to a server, and what `Pool` needs of it."""

    def usable(self) -> bool:
        """Say whether it is still connected and nothing unread has arrived on it."""
        ...

    def abort(self) -> None:
        """Cut it at once, without waiting for anything."""
        ...

    async def close(self) -> None:
        """Close it in good order."""
        ...


C = TypeVar("C", bound=Connection)
T = TypeVar("T")


class Lent(Generic[C]):
    """Be a connection, and the audit chain that belongs to it."""

    __slots__ = ("chain", "connection", "generation", "replaces")

    def __init__(self, connection: C, generation: int, replaces: bool) -> None:
        self.connection = connection
        self.chain = Chain.new()
        self.generation = generation
        self.replaces = replaces
        """It comes after a writer whose last outcome is unknown, and has not said so yet."""

    def extend(self, events: Sequence[Event], names: Callable[[Owner], str]) -> tuple[Chain, list[Entry]]:
        """Give the entries that *events* become, with the audit ids that *names* gives, and the chain after them.

        The chain is the connection's only once its store has confirmed them: see `Pool.confirm`.
        """
        chain, entries = self.chain, []
        if self.replaces and events:
            events = [event("writer.replaced", from_micros(time.time_ns() // 1_000)), *events]
        for noted in events:
            owner = "" if noted.owner is None else names(noted.owner)
            other = "" if noted.other is None else names(noted.other)
            chain, entry = chain.extend(noted, owner, other)
            entries.append(entry)
        return chain, entries


class Pool(Generic[C]):
    """Keep up to *size* connections; a request waits *wait* for a free one, and *deadline* for its answer."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[C]],
        url: str,
        *,
        size: int,
        wait: timedelta = timedelta(seconds=5),
        deadline: timedelta = timedelta(seconds=5),
    ) -> None:
        self._connect = connect
        self._url = url
        self._wait = wait.total_seconds()
        self._deadline = deadline.total_seconds()
        self._free = asyncio.Semaphore(size)
        self._idle: list[Lent[C]] = []
        self._generation = 0
        self._lost = 0
        self._heads: Heads = {}
        self._closed = False

    async def run(self, work: Callable[[Lent[C]], Awaitable[T]]) -> T:
        """Do *work* over a connection of its own. What is raised in it means that its outcome is unknown.

        A refusal that was read to its end is therefore returned from *work*, and raised by the caller. Raises
        `StoreUnavailable` if there is no connection or no answer in time.
        """
        await self._queue()
        try:
            lent = await self._take()
            try:
                outcome = await self.within(work(lent))
            except BaseException:
                self._lost += 1
                lent.connection.abort()
                raise
            if lent.generation == self._generation and not self._closed:
                self._idle.append(lent)
            else:
                lent.connection.abort()
            return outcome
        finally:
            self._free.release()

    async def within(self, work: Awaitable[T]) -> T:
        """Wait for *work* as long as for an answer; then `StoreUnavailable`."""
        try:
            async with asyncio.timeout(self._deadline):
                return await work
        except TimeoutError:
            raise StoreUnavailable(f"{self._url} did not answer within {self._deadline:g} s") from None

    def confirm(self, lent: Lent[C], chain: Chain) -> None:
        """Take note that the store has the entries up to *chain*."""
        if chain is not lent.chain:
            lent.chain, lent.replaces = chain, False
            self._heads[chain.writer] = chain.number, chain.last.hex()

    def heads(self) -> Heads:
        """Say how far the writers of this process have come."""
        return dict(self._heads)

    def distrust(self) -> None:
        """Let no connection that is open now serve another request."""
        self._generation += 1
        for lent in self._idle:
            lent.connection.abort()
        self._idle.clear()

    async def close(self) -> None:
        """Close every connection that is idle; the others go when their requests have ended."""
        self._closed = True
        idle, self._idle = self._idle, []
        await asyncio.gather(*(lent.connection.close() for lent in idle), return_exceptions=True)

    async def _queue(self) -> None:
        if not self._free.locked():
            await self._free.acquire()
            return
        try:
            async with asyncio.timeout(self._wait):
                await self._free.acquire()
        except TimeoutError:
            raise StoreUnavailable(
                f"all connections to {self._url} were busy for {self._wait:g} s; try again, or allow more of them"
            ) from None

    async def _take(self) -> Lent[C]:
        if self._closed:
            raise StoreUnavailable(f"{self._url} is closed")
        while self._idle:
            lent = self._idle.pop()  # the last one used: the others may time out at the server unnoticed
            if lent.connection.usable():
                return lent
            lent.connection.abort()
        generation = self._generation
        try:
            async with asyncio.timeout(self._deadline):
                connection = await self._connect()
        except TimeoutError:
            raise StoreUnavailable(f"{self._url} did not accept a connection within {self._deadline:g} s") from None
        replaces, self._lost = self._lost > 0, max(self._lost - 1, 0)
        return Lent(connection, generation, replaces)


def untrusted(error: BaseException | None) -> bool:
    """Say whether *error* came about because a server's certificate is not one to be trusted."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None


def named(events: Sequence[Event]) -> list[tuple[Owner, bool]]:
    """Give the owners that *events* name, each once, and whether one of the events may introduce it to the log."""
    found: dict[Owner, bool] = {}
    for noted in events:
        if noted.owner is not None:
            found[noted.owner] = found.get(noted.owner, False) or introduces(noted)
        if noted.other is not None:
            found.setdefault(noted.other, False)
    return list(found.items())
