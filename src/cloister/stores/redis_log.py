"""Reading the log of Redis: entries of 256 streams, as one.

The entries of a writer lie in several streams. Their ids are moments that never go back for one writer, so that by
moments, and within one by numbers, they are in the order of its writing. A position says where each stream was left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import msgspec

from cloister.audit import Entry, Heads
from cloister.stores import redis_scripts as scripts
from cloister.stores.base import Trail, position
from cloister.stores.redis_nodes import Nodes
from cloister.stores.redis_rows import PLACES, entry_of, place_prefix

_FEWEST = 16
_Position = tuple[int, list[int | None], list[int]]


class _Row(NamedTuple):
    moment: int
    place: int
    order: int
    entry: Entry


class Log:
    """Read what is on record under *prefix*."""

    def __init__(self, prefix: str, nodes: Nodes) -> None:
        self._streams = [place_prefix(prefix, place) + b"log" for place in range(PLACES)]
        self._nodes = nodes

    async def trail(self, after: bytes, limit: int) -> Trail:
        """Give up to *limit* entries behind *after*; see `Store.trail`."""
        left = _left(after)
        found: list[Entry] = []
        count = max(limit // 64, _FEWEST)
        while len(found) < limit:
            rows, late, full = await self._read(left, count)
            news = list(_in_order(rows, late, full))[: limit - len(found)]
            found += [row.entry for row in news]
            left.update({row.place: (row.moment, row.order) for row in news})
            if not news or not full:
                break
            count *= 4
        return Trail(found, _position(left) if found else after)

    async def _read(self, left: dict[int, tuple[int, int]], count: int) -> tuple[list[_Row], dict[str, int], list[int]]:
        """Give entries of all streams, the first of each writer that came too late, and beyond what there are more.

        One server reads all streams at one moment. Nodes of a cluster do not: an entry may come just after its stream
        was read, and its successor just before another one is. So first it is looked where each stream ends: what lies
        behind is too late, and its successors wait for it.
        """
        places: Sequence[int] = range(PLACES)
        ends: dict[int, tuple[int, int]] = {}
        if self._nodes.clustered:
            newest = await self._ask(scripts.TAIL, places, 1)
            ends = {place: _moment(rows[0][0]) for place, rows in zip(places, newest, strict=True) if rows}
            places = [place for place, end in ends.items() if end > left.get(place, (-1, 0))]
        starts = ["({}-{}".format(*left[place]) if place in left else "-" for place in places]
        said = await self._ask(scripts.TRAIL, places, count, starts)
        rows: list[_Row] = []
        late: dict[str, int] = {}
        full: list[int] = []
        for place, (more, lines) in zip(places, said, strict=True):
            for key, values in lines:
                row = _Row(*_placed(key, place), entry_of(values))
                if self._nodes.clustered and (row.moment, row.order) > ends[place]:
                    late[row.entry.writer] = min(late.get(row.entry.writer, row.entry.number), row.entry.number)
                else:
                    rows.append(row)
            if more:
                full.append(_moment(lines[-1][0])[0])
        return rows, late, full

    async def tail(self, limit: int) -> Trail:
        """Give the last *limit* entries, oldest first, and the end of the log."""
        count = max(limit // 64, _FEWEST)
        while True:
            said = await self._ask(scripts.TAIL, range(PLACES), count)
            rows = [
                _Row(*_placed(key, place), entry_of(values))
                for place, lines in enumerate(said)
                for key, values in lines
            ]
            # Of a stream with more entries than were read, what is older is not known.
            known = max((_moment(lines[-1][0])[0] for lines in said if len(lines) == count), default=-1)
            newest = list(_in_order([row for row in rows if row.moment > known], {}, ()))
            if len(newest) >= limit or known < 0:
                ends = {place: _moment(lines[0][0]) for place, lines in enumerate(said) if lines}
                return Trail([row.entry for row in newest[-limit:]], _position(ends) if ends else b"")
            count *= 4

    async def prune(self, upto: Heads) -> int:
        """Drop the entries up to the numbers of *upto*, in their order, and say how many went."""
        left: dict[int, tuple[int, int]] = {}
        count = 0
        while True:
            rows, late, full = await self._read(left, _FEWEST)
            news = list(_in_order(rows, late, full))
            left.update({row.place: (row.moment, row.order) for row in news})
            old = [row for row in news if row.entry.number <= upto.get(row.entry.writer, (0, ""))[0]]
            drops = [
                (scripts.DROP, [self._streams[place]], [f"{row.moment}-{row.order}" for row in some])
                for place, some in groupby(old, key=lambda row: row.place)
            ]
            for (gone,) in await self._nodes.run_all(drops):
                count += gone
            if not news or not full:
                return count

    async def _ask(self, script: str, places: Sequence[int], count: int, each: Sequence[str] = ()) -> list[Any]:
        """Ask for entries of the streams of *places*: one server all at once, nodes of a cluster stream by stream."""
        keys = [self._streams[place] for place in places]
        if not keys:
            return []
        if not self._nodes.clustered:
            ((found,),) = await self._nodes.run_all([(script, keys, [count, *each])])
            return list(found)
        rest = [[start] for start in each] or [[]] * len(keys)
        said = await self._nodes.run_all(
            [(script, [key], [count, *some]) for key, some in zip(keys, rest, strict=True)]
        )
        return [found[0] for (found,) in said]


def _in_order(rows: list[_Row], late: dict[str, int], full: Sequence[int]) -> Iterator[_Row]:
    """Give *rows* by moment, those of each writer in the order of its writing, as far as all are known.

    What follows a *late* entry waits, and with it what lies behind in the same stream.
    """
    known = min(full, default=None)
    waiting: set[int] = set()
    late = dict(late)
    for moment, group in groupby(sorted(rows, key=lambda row: row[:3]), key=lambda row: row.moment):
        if known is not None and moment > known:
            return
        for row in _woven(list(group)):
            writer, number = row.entry.writer, row.entry.number
            if row.place in waiting or number > late.get(writer, number):
                waiting.add(row.place)
                late[writer] = min(late.get(writer, number), number)
            else:
                yield row


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


def _left(after: bytes) -> dict[int, tuple[int, int]]:
    newest, lags, orders = position(after, _Position, (0, [], []))
    return {
        place: (newest - lag, order)
        for place, (lag, order) in enumerate(zip(lags, orders, strict=False))
        if lag is not None
    }


def _position(left: dict[int, tuple[int, int]]) -> bytes:
    newest = max(moment for moment, _ in left.values())
    lags = [newest - left[place][0] if place in left else None for place in range(PLACES)]
    return msgspec.msgpack.encode((newest, lags, [left.get(place, (0, 0))[1] for place in range(PLACES)]))


def _moment(key: bytes) -> tuple[int, int]:
    at, _, order = key.partition(b"-")
    return int(at), int(order)


def _placed(key: bytes, place: int) -> tuple[int, int, int]:
    moment, order = _moment(key)
    return moment, place, order
