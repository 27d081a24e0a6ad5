"""What goes on record of requests that are turned away at the door: bounded, so that a flood does not fill the log."""

from __future__ import annotations

import contextlib
import ipaddress
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from cloister import scope
from cloister.audit import Detail
from cloister.client import AsyncCloister
from cloister.model import Owner

WINDOW, MINUTE = 600.0, 60.0
SINGLE = 20
"""How many entries of one kind and source stand for themselves within ten minutes: as many as make an alarm."""
AT_ONCE = 120
"""How many entries there are in a minute at most, whatever their sources."""
_MOST = 2_000  # sources that are told apart


class Put(Protocol):
    """Put one event on record."""

    def __call__(self, kind: str, owner: Owner | None = None, **detail: Detail) -> Awaitable[None]: ...


def into(cloister: AsyncCloister) -> Put:
    """Give what puts events on record in *cloister*'s audit log."""

    async def put(kind: str, owner: Owner | None = None, **detail: Detail) -> None:
        # To the end, even for whoever hangs up in order not to be noted.
        await cloister.vault.note([cloister.vault.event(kind, owner, "", **detail)])

    return put


@dataclass(slots=True)
class _Count:
    """Remember of one source: how many entries in this window, what is not written yet, and when the last one was."""

    since: float
    where: str | None = None
    entries: int = 0
    waiting: int = 0
    written: float = 0.0


@dataclass(slots=True)
class _Kind:
    """Remember of one kind of event: its sources, how many entries this minute, and when sources were let go last."""

    counts: dict[str, _Count] = field(default_factory=dict)
    minute: float = -MINUTE
    spent: int = 0
    forgot: float = -MINUTE

    def count(self, source: str, where: str | None, now: float) -> _Count:
        """Give the count of *source*, or of all that there is no room for."""
        if source not in self.counts and len(self.counts) >= _MOST:
            self._forget(now)
            if len(self.counts) >= _MOST:
                source, where = "", ""
        count = self.counts.setdefault(source, _Count(now))
        count.where = where
        if now - count.since >= WINDOW:
            count.since, count.entries = now, 0
        return count

    def afford(self, now: float) -> bool:
        """Say whether there may be another entry in this minute."""
        if now - self.minute >= MINUTE:
            self.minute, self.spent = now, 0
        self.spent += 1
        return self.spent <= AT_ONCE

    def _forget(self, now: float) -> None:
        """Let go of sources that have been quiet; what was not written of them counts as from anywhere."""
        if now - self.forgot < MINUTE:  # else a flood would have us look through all of them each time
            return
        self.forgot = now
        for source in [source for source, count in self.counts.items() if now - count.since >= WINDOW and source]:
            quiet = self.counts.pop(source)
            if quiet.waiting:
                self.counts.setdefault("", _Count(now, "")).waiting += quiet.waiting


class Record:
    """Put refusals on record, each of the first few by itself and then one entry a minute that says how many."""

    def __init__(self, put: Put, ticks: Callable[[], float] = time.monotonic) -> None:
        self._put = put
        self._ticks = ticks
        # Apart, so that who floods with one kind, for which it takes nothing, hides none of another.
        self._kinds: dict[str, _Kind] = {}

    async def add(
        self, kind: str, source: str | None = None, *, by: str = "", owner: Owner | None = None, **detail: Detail
    ) -> None:
        """Note that *kind* happened to a request from the address *source*; *by* counts together what has no address.

        Without *source*, an entry says where it came from as `cloister.scope.source` was told.
        """
        now, where = self._ticks(), None if source is None else group(source)
        known = self._kinds.setdefault(kind, _Kind())
        count = known.count(by or where or "", where, now)
        count.waiting += 1
        if count.entries >= SINGLE and now - count.written < MINUTE:
            return
        if known.afford(now):
            await self._write(kind, count, now, owner, **detail)

    async def close(self) -> None:
        """Put on record what was only counted so far."""
        for kind, known in self._kinds.items():
            for count in known.counts.values():
                if count.waiting:
                    await self._write(kind, count, self._ticks(), None)
        self._kinds.clear()

    async def _write(self, kind: str, count: _Count, now: float, owner: Owner | None, **detail: Detail) -> None:
        many = {"count": count.waiting} if count.waiting > 1 else {}
        count.entries, count.written, count.waiting = count.entries + 1, now, 0
        with contextlib.nullcontext() if count.where is None else scope.source(count.where):
            await self._put(kind, owner, **detail, **many)


def group(source: str) -> str:
    """Give what counts as one source: an address, or of version 6 its network, which one customer has whole."""
    try:
        address = ipaddress.ip_address(source.partition("%")[0])
    except ValueError:
        return source
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(getattr(address, "ipv4_mapped", None) or address)
