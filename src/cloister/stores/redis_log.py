"""Reading the log of Redis: entries of 256 streams, as one.

The entries of a writer lie in several streams. Their ids are moments that never go back for one writer, so that by
moments, and within one by numbers, they are in the order of its writing. A position says where each stream was left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from itertools import groupby
from typing import Any, NamedTuple

import msgspec

from cloister.audit import Entry, Heads
from cloister.stores import redis_scripts as scripts
from cloister.stores.base import Trail, position
from cloister.stores.redis_nodes import Nodes
from cloister.stores.redis_rows import PLACES, entry_of, place_prefix
from cloister.stores.redis_wire import Request

_FEWEST = 8
_NEVER = 1 << 62
_AT_ONCE = 500
"""How many entries are dropped between two looks at the log."""
_Position = tuple[int, list[int | None], list[int]]
_Id = tuple[int, int]
"""The moment of an entry, and the how many-th of that moment it is."""


class _Row(NamedTuple):
    moment: int
    place: int
    order: int
    entry: Entry


class _Stream:
    """Be what was read of a stream between two ids, and not yet given."""

    __slots__ = ("count", "end", "left", "rows")

    def __init__(self, left: _Id | None, end: _Id, count: int = 0) -> None:
        self.left = left
        self.end = end
        self.count = count
        """How many entries to read next: twice as many each time."""
        self.rows: deque[_Row] = deque()

    @property
    def whole(self) -> bool:
        """Say whether it was read to its end."""
        return self.left is not None and self.left >= self.end

    @property
    def bounds(self) -> tuple[str, str]:
        """Name what is still to be read, as Redis does."""
        begin = "-" if self.left is None else "({}-{}".format(*self.left)
        return begin, "{}-{}".format(*self.end)

    def lacks(self, moment: int) -> bool:
        """Say whether it may have more entries of a *moment* than were read."""
        return not self.whole and (not self.rows or self.rows[-1].moment <= moment)

    def take(self, until: int) -> Iterator[_Row]:
        """Give the entries before a moment, and have them no more."""
        while self.rows and self.rows[0].moment < until:
            yield self.rows.popleft()


class Log:
    """Read what is on record under *prefix*."""

    def __init__(self, prefix: str, nodes: Nodes) -> None:
        self._logs = [place_prefix(prefix, place) + b"log" for place in range(PLACES)]
        self._nodes = nodes

    async def trail(self, after: bytes, limit: int) -> Trail:
        """Give up to *limit* entries behind *after*; see `Store.trail`."""
        left = _left(after)
        found: list[Entry] = []
        async with aclosing(self._rows(left, limit)) as rows:
            async for row in rows:
                left[row.place] = row.moment, row.order
                found.append(row.entry)
                if len(found) == limit:
                    break
        return Trail(found, _position(left) if found else after)

    async def _rows(self, left: dict[int, _Id], expected: int) -> AsyncGenerator[_Row, None]:
        """Give what lies behind *left*, about as many rows as are *expected*, in the order of writing.

        One server says of all streams at one moment where they end. Nodes of a cluster do not: an entry may come just
        after its stream was looked at, and its successor just before another one is. What came too late is therefore
        looked for once more, and its successors wait for it, with all that lies behind them.
        """
        ends = await self._ends()
        late = await self._late(ends) if self._nodes.clustered else {}
        streams = {place: _Stream(left.get(place), end) for place, end in ends.items()}
        streams = {place: stream for place, stream in streams.items() if not stream.whole}
        count = expected * 5 // 4 // max(len(streams), 1) + _FEWEST
        for stream in streams.values():
            stream.count = count
        waiting: set[int] = set()
        while True:
            await self._read([place for place, stream in streams.items() if stream.lacks(-1)], streams)
            streams = {place: stream for place, stream in streams.items() if stream.rows}
            if not streams:
                return
            # Beyond that, what a stream has is not known yet.
            known = min((stream.rows[-1].moment for stream in streams.values() if not stream.whole), default=_NEVER)
            ready = sorted(row for stream in streams.values() for row in stream.take(known))
            if not ready:
                await self._read([place for place, stream in streams.items() if stream.lacks(known)], streams)
            for _, group in groupby(ready, key=lambda row: row.moment):
                for row in _woven(list(group)):
                    writer, number = row.entry.writer, row.entry.number
                    if row.place in waiting or number > late.get(writer, number):
                        waiting.add(row.place)
                        late[writer] = min(late.get(writer, number), number)
                    else:
                        yield row

    async def _ends(self) -> dict[int, _Id]:
        said = await self._ask(scripts.TAIL, range(PLACES), 1)
        return {place: _id(rows[0][0]) for place, rows in enumerate(said) if rows}

    async def _late(self, ends: Mapping[int, _Id]) -> dict[str, int]:
        """Give, for each writer, the first of its entries that have come behind *ends* meanwhile."""
        streams = {place: _Stream(ends.get(place), end, _AT_ONCE) for place, end in (await self._ends()).items()}
        streams = {place: stream for place, stream in streams.items() if not stream.whole}
        late: dict[str, int] = {}
        while streams:
            await self._read(list(streams), streams)
            for row in (row for stream in streams.values() for row in stream.rows):
                late[row.entry.writer] = min(late.get(row.entry.writer, row.entry.number), row.entry.number)
            streams = {place: stream for place, stream in streams.items() if not stream.whole}
        return late

    async def _read(self, places: Sequence[int], streams: Mapping[int, _Stream]) -> None:
        """Read on in the streams of *places*."""
        count = max((streams[place].count for place in places), default=0)
        bounds = [streams[place].bounds for place in places]
        for place, lines in zip(places, await self._ask(scripts.TRAIL, places, count, bounds), strict=True):
            stream = streams[place]
            stream.rows += [_row(place, *each) for each in lines]
            # To its end, even if that was dropped meanwhile.
            stream.left = stream.end if len(lines) < count else _id(lines[-1][0])
            stream.count = 2 * count

    async def tail(self, limit: int) -> Trail:
        """Give the last *limit* entries, oldest first, and the end of the log."""
        count = limit // 64 + _FEWEST
        wanted: Sequence[int] = range(PLACES)
        found: dict[int, list[_Row]] = {}
        while wanted:
            said = await self._ask(scripts.TAIL, wanted, count)
            found |= {
                place: [_row(place, *each) for each in lines]
                for place, lines in zip(wanted, said, strict=True)
                if lines
            }
            newest = sorted((row for rows in found.values() for row in rows), reverse=True)[:limit]
            least = newest[-1].moment if len(newest) == limit else -1
            # Of the streams that were read just now, some may have more that is as new.
            wanted = [
                place for place in wanted if len(found.get(place, ())) == count and found[place][-1].moment >= least
            ]
            count *= 4
        groups = groupby(sorted(row for rows in found.values() for row in rows), key=lambda row: row.moment)
        woven = [row.entry for _, group in groups for row in _woven(list(group))]
        ends = {place: (rows[0].moment, rows[0].order) for place, rows in found.items()}
        return Trail(woven[-limit:], _position(ends) if ends else b"")

    async def prune(self, upto: Heads) -> int:
        """Drop the entries up to the numbers of *upto*, in their order, and say how many went."""
        left: dict[int, _Id] = {}
        count = 0
        while True:
            rows: list[_Row] = []
            async with aclosing(self._rows(left, _AT_ONCE)) as some:
                async for row in some:
                    rows.append(row)
                    if len(rows) == _AT_ONCE:
                        break
            left.update({row.place: (row.moment, row.order) for row in rows})
            old = [row for row in rows if row.entry.number <= upto.get(row.entry.writer, (0, ""))[0]]
            drops = [
                (scripts.DROP, [self._logs[place]], [f"{row.moment}-{row.order}" for row in some])
                for place, some in groupby(old, key=lambda row: row.place)
            ]
            for (gone,) in await self._nodes.run_all(drops):
                count += gone
            if len(rows) < _AT_ONCE:
                return count

    async def _ask(
        self, script: str, places: Sequence[int], count: int, bounds: Sequence[tuple[str, str]] = ()
    ) -> list[Any]:
        """Ask for entries of the streams of *places*: one server all at once, nodes of a cluster stream by stream."""
        keys = [self._logs[place] for place in places]
        if not keys:
            return []
        if not self._nodes.clustered:
            every = [bound for both in bounds for bound in both]
            ((found,),) = await self._nodes.run_all([(script, keys, [count, *every])])
            return list(found)
        rest: Sequence[tuple[str, ...]] = bounds or [()] * len(keys)
        requests: list[Request] = [(script, [key], [count, *some]) for key, some in zip(keys, rest, strict=True)]
        said = await self._nodes.run_all(requests)
        return [found[0] for (found,) in said]


def _woven(rows: list[_Row]) -> Iterator[_Row]:
    """Give *rows* of one moment in an order that is that of each stream and that of each writer."""
    streams = {place: list(group) for place, group in groupby(rows, key=lambda row: row.place)}
    if len(streams) < 2:
        yield from rows
        return
    numbers: dict[str, list[int]] = {}
    for row in rows:
        numbers.setdefault(row.entry.writer, []).append(row.entry.number)
    for known in numbers.values():
        known.sort(reverse=True)
    while streams:
        # Where none is next, somebody changed them: verification says which.
        ready = (stream for stream in streams.values() if numbers[stream[0].entry.writer][-1] == stream[0].entry.number)
        row = (next(ready, None) or next(iter(streams.values()))).pop(0)
        numbers[row.entry.writer].remove(row.entry.number)
        if not streams[row.place]:
            del streams[row.place]
        yield row


def _left(after: bytes) -> dict[int, _Id]:
    newest, lags, orders = position(after, _Position, (0, [], []))
    return {
        place: (newest - lag, order)
        for place, (lag, order) in enumerate(zip(lags, orders, strict=False))
        if lag is not None
    }


def _position(left: Mapping[int, _Id]) -> bytes:
    newest = max(moment for moment, _ in left.values())
    lags = [newest - left[place][0] if place in left else None for place in range(PLACES)]
    return msgspec.msgpack.encode((newest, lags, [left.get(place, (0, 0))[1] for place in range(PLACES)]))


def _id(key: bytes) -> _Id:
    at, _, order = key.partition(b"-")
    return int(at), int(order)


def _row(place: int, key: bytes, values: Sequence[bytes]) -> _Row:
    moment, order = _id(key)
    return _Row(moment, place, order, entry_of(values))
