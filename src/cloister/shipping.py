"""Beside the turns: follows the audit log for each destination, and moves on once what it found was delivered.

The log is the outbox. An entry is committed with the turn that it describes, and a position in the log moves after
delivery: so no turn waits for a destination, and a crash loses nothing. What comes twice then has the same name.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import random
import sys
import weakref
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import datetime
from hashlib import sha256
from pathlib import Path

import msgspec

from cloister import files
from cloister.alarms import Alarm, Alarms, Watched, consider
from cloister.audit import SEVERITIES, Entry, Event, Heads, columns, event
from cloister.audit.chain import ENTRY_TYPES
from cloister.errors import CloisterError, ConfigurationError, StoreError
from cloister.model import to_micros
from cloister.sinks.base import Beginning, Record, SignedHeads, Sink, SinkError
from cloister.stores.base import Trail

_log = logging.getLogger("cloister")

POLL = 1.0  # seconds; `Shipper.kick` is quicker
PATIENCE = 60.0
"""How long one delivery may take, in seconds."""
CLOSING = 5.0
"""How long closing a cloister waits for its destinations, in seconds."""
_FIRST, _LONGEST, _LONGEST_ASKED = 1.0, 300.0, 900.0
_SAID_AGAIN = 600.0
_PAGE, _AT_ONCE = 500, 100
_SELDOM = 10_000
_MOST_WRITERS = 1_000
_LAST_MOMENT = to_micros(datetime.fromisoformat("9999-12-31T00:00:00+00:00"))

Sleep = Callable[[float], Awaitable[object]]


class Progress(msgspec.Struct):
    """Say how far a destination was served.

    When it was new, what each writer had written before ``since`` was not for it, until the log was read to its end;
    ``begun`` are those of whom some had come by then, and ``skipped`` says that there was something.

    ``numbers`` are the last that came of each writer. Once they are ``whole``, the log was read to its end, so that a
    writer who is not among them has not begun before; unless there are so many that some were dropped: ``crowded``.
    ``missing`` entries have not been told of, and ``heads`` names the line of signed heads that was delivered last.
    """

    sink: str
    since: int
    after: bytes = b""
    heads: str = ""
    whole: bool = False
    crowded: bool = False
    missing: int = 0
    skipped: bool = False
    begun: set[str] = set()
    numbers: dict[str, int] = {}
    watched: dict[str, Watched] = {}


def unfold(
    progress: Progress, entries: Sequence[Entry], severity: str, alarms: Alarms | None, now: int, dropped: Heads
) -> list[Record]:
    """Give what *entries* mean to a destination of *severity*; *progress* follows them.

    *dropped* is up to where the log was dropped, for each writer; what lies before and never came is missing.
    """
    found: list[Record] = []
    for entry in entries:
        if not _sound(entry):
            found.append(_damaged(now))
            continue
        last = progress.numbers.get(entry.writer)
        if last is not None and entry.number <= last:
            continue  # a store may give an entry more than once
        _pass(progress, entry.writer, entry.number - 1)
        progress.numbers[entry.writer] = entry.number
        if entry.event == "audit.pruned":  # whatever of the log was left before has come by now
            for writer, (number, _) in dropped.items():
                _pass(progress, writer, number)
        if not progress.whole and entry.writer not in progress.begun:
            if entry.at < progress.since:
                if not progress.skipped and severity != "alert":
                    found.insert(0, Beginning(progress.since))
                progress.skipped = True
                continue
            progress.begun.add(entry.writer)
        found += _meant(progress, entry, severity, alarms, now)
    return found


def _pass(progress: Progress, writer: str, number: int) -> None:
    """Count entries of *writer* up to *number* as missing, unless they came, or were there before anybody looked."""
    last = progress.numbers.pop(writer, None)
    if last is not None or (progress.whole and not progress.crowded):
        progress.missing += max(number - (last or 0), 0)
    progress.numbers[writer] = max(number, last or 0)
    if len(progress.numbers) > _MOST_WRITERS:
        del progress.numbers[next(iter(progress.numbers))]
        progress.crowded = True


def _meant(progress: Progress, entry: Entry, severity: str, alarms: Alarms | None, now: int) -> Iterator[Record]:
    # Whoever is woken by alarms is not given their entries as well.
    if _rank(entry.severity) >= _rank(severity) and (severity != "alert" or alarms is None):
        yield entry
    alarm = consider(alarms, progress.watched, entry, now) if alarms else None
    if alarm is not None and _rank(alarm.severity) >= _rank(severity):
        yield alarm


def _rank(severity: str) -> int:
    """Give how severe *severity* is; one that is not known is not passed over."""
    return SEVERITIES.index(severity) if severity in SEVERITIES else len(SEVERITIES)


def _sound(entry: Entry) -> bool:
    """Say whether the columns of *entry* can be what was written, whoever had the store in between."""
    if tuple(map(type, columns(entry))) != ENTRY_TYPES:
        return False
    try:
        msgspec.json.encode(entry)  # half surrogates are no text
    except UnicodeEncodeError:
        return False
    return 0 <= entry.at <= _LAST_MOMENT and 0 < entry.number < 1 << 62


def _damaged(now: int) -> Alarm:
    meaning = "An entry of the log was changed where it lies, and cannot be read: run `cloister audit verify`."
    return Alarm("entry.damaged", "alert", meaning, now)


def parcels(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    """Give *records* in their order, some at once: entries that follow each other, or one of anything else."""
    some: list[Record] = []
    for record in records:
        if some and (len(some) == _AT_ONCE or not isinstance(record, Entry)):
            yield some
            some = []
        if isinstance(record, Entry):
            some.append(record)
        else:
            yield [record]
    if some:
        yield some


class Place:
    """Keep the progress of one destination in a file of *folder*; one process at a time has it.

    Without a folder it is kept in memory, for as long as the process lives.
    """

    def __init__(self, folder: Path | None, sink: str, since: int) -> None:
        self._fresh = Progress(sink, since)
        named = sha256(sink.encode(errors="surrogateescape")).hexdigest()[:16]
        self._path = folder and folder / f"{named}.json"
        self._lock: int | None = None

    def make(self) -> None:
        """See to it that a destination that is new begins now, whenever it is first served."""
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            if not self._path.exists():
                files.write_new(self._path, msgspec.json.encode(self._fresh))
        except FileExistsError:  # made by another process in this very moment, or no folder
            if not self._path.exists():
                raise ConfigurationError(f"{self._path.parent} is no folder; name another with sinks_state") from None
        except OSError as error:
            raise ConfigurationError(f"the folder {self._path.parent} cannot be made: {error.strerror}") from None

    def take(self) -> Progress | None:
        """Give what was kept, if no other process has it; the lock goes with the process."""
        if self._path is None:
            return self._fresh
        if self._lock is None:
            self._lock = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
            _left_by_children(self)
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Progress)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            # Rather everything once more than anything not at all.
            _log.error("%s cannot be read: everything that the log still has is delivered again", self._path)
            return Progress(self._fresh.sink, 0)

    def keep(self, progress: Progress) -> None:
        """Write *progress* down."""
        if self._path is not None:
            files.overwrite(self._path, msgspec.json.encode(progress))

    def leave(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


async def attempt(sink: Sink, records: Sequence[Record]) -> SinkError | None:
    """Deliver *records* once; give what went wrong, if something did."""
    try:
        async with asyncio.timeout(PATIENCE):
            await sink.deliver(records)
    except SinkError as error:
        return error
    except TimeoutError:
        return SinkError("it did not come to an end in time")
    except Exception as error:  # noqa: BLE001 (it may be anybody's, and its text may hold anything)
        return SinkError(f"it raised {type(error).__name__}")
    return None


def _left_by_children(place: Place) -> None:
    """See to it that a forked child, which may live longer, does not hold a lock that it has no use for."""
    known = weakref.ref(place)

    def leave() -> None:
        if (found := known()) is not None:
            found.leave()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=leave)


class _Left(Exception):
    """Say that there is no more time for another try."""


class Shipper:
    """Serve *sinks*, each by itself, from what *trail* gives of the log.

    *note* puts an event on record, *now* is the clock, *heads* gives the newest line of signed heads, *dropped* up to
    where each writer's entries were dropped. Progress is kept in *folder*; without one, serving begins at the moment
    *since*.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        alarms: Alarms | None,
        *,
        trail: Callable[..., Awaitable[Trail]],
        note: Callable[[Sequence[Event]], Awaitable[None]],
        now: Callable[[], datetime],
        heads: Callable[[], str | None],
        dropped: Callable[[], Heads],
        since: int,
        folder: Path | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        names = [sink.name for sink in sinks]
        if len(set(names)) < len(names):
            raise ConfigurationError(f"a destination is named twice: {max(names, key=names.count)}; keep one of them")
        self.trail = trail
        self.note = note
        self.now = now
        self.heads = heads
        self.dropped = dropped
        self.alarms = alarms
        self.sleep = sleep
        self.closing = asyncio.Event()
        self._routes = [_Route(self, sink, Place(folder, sink.name, since)) for sink in sinks]
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Begin; `ConfigurationError` where the log cannot be followed or progress not be kept."""
        await self.trail(after=b"", limit=1)
        for route in self._routes:
            await asyncio.to_thread(route.place.make)
        self._tasks = [asyncio.create_task(route.run(), name=f"cloister: {route.sink.name}") for route in self._routes]

    def kick(self) -> None:
        """Look at the log at once, on the loop of this shipper."""
        for route in self._routes:
            route.kicked.set()

    async def close(self) -> None:
        """Deliver what is there, for `CLOSING` seconds at the most; the rest is delivered by whoever opens next."""
        self.closing.set()
        tasks = [*self._tasks]
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSING)
        for task in tasks:
            task.cancel()
        closing = [asyncio.create_task(route.sink.close()) for route in self._routes]
        left = [*tasks, *closing]
        if left:
            # What does not even let itself be cancelled is left behind.
            done, hanging = await asyncio.wait(left, timeout=1)
            for task in done:
                if not task.cancelled() and task.exception() is not None:
                    _log.error("a destination was left with an error: %s", type(task.exception()).__name__)
            for task in hanging:
                task.cancel()
        for route in self._routes:
            route.place.leave()


class _Route:
    """Serve one destination."""

    def __init__(self, shipper: Shipper, sink: Sink, place: Place) -> None:
        self.sink = sink
        self.place = place
        self.kicked = asyncio.Event()
        self._shipper = shipper
        self._progress: Progress | None = None
        self._failing_since: float | None = None
        self._said: float | None = None
        self._recovering = False
        self._lost_log = False
        self._unwritten = 0

    async def run(self) -> None:
        """Serve until the shipper closes, and then once more."""
        try:
            while True:
                last = self._shipper.closing.is_set()
                self.kicked.clear()
                if await self._serve():
                    continue
                if last:
                    break
                await self._pause(POLL, self.kicked)
        except _Left:
            pass
        await self._keep()

    async def _serve(self) -> bool:
        """Deliver some of the log; say whether there is more."""
        before = self._progress = self._progress or await asyncio.to_thread(self.place.take)
        if before is None:
            return False  # another process serves it, and this one takes over when that ends
        # Asked for before the log is read, so that whatever they were signed for comes before them.
        heads = await self._new_heads(before)
        page = await self._read(before.after)
        if page is None:
            return False
        progress = copy.deepcopy(before)
        records = await self._understood(progress, page)
        more = len(page.entries) >= _PAGE
        if heads is not None and not more:
            records.append(heads)
            progress.heads = _name(heads)
        for some in parcels(records):
            await self._hand_over(some)
        if progress.missing and await self._note("sink.dropped", count=progress.missing):
            progress.missing = 0
        progress.after = page.after
        if not more:
            progress.whole, progress.begun = True, set()
        self._progress = progress
        self._unwritten += len(page.entries) + len(records)
        # Where nothing was delivered, to read the same entries again does no harm.
        if records or progress.missing != before.missing or self._unwritten >= _SELDOM:
            await self._keep()
        return more

    async def _understood(self, progress: Progress, page: Trail) -> list[Record]:
        """Give what there is to deliver of *page*; *progress* follows it."""
        shipper, first = self._shipper, not progress.after
        dropped: Heads = {}
        if first or any(entry.event == "audit.pruned" for entry in page.entries):
            dropped = await self._dropped()
        if first and not progress.whole:  # what was dropped before anybody looked is not missed
            progress.numbers |= {writer: number for writer, (number, _) in [*dropped.items()][-_MOST_WRITERS:]}
        now = to_micros(shipper.now())
        return unfold(progress, page.entries, self.sink.severity, shipper.alarms, now, dropped)

    async def _keep(self) -> None:
        if self._progress is None or not self._unwritten:
            return
        try:
            await asyncio.to_thread(self.place.keep, self._progress)
            self._unwritten = 0
        except ConfigurationError as error:  # whoever goes on from what is written down delivers some twice
            _log.error("what was delivered to %s is not written down: %s", self.sink.name, error)

    async def _read(self, after: bytes) -> Trail | None:
        try:
            page = await self._shipper.trail(after=after, limit=_PAGE)
        except ConfigurationError:  # a position in another log: this one is new, and is delivered from its beginning
            return await self._read(b"") if after else None
        except CloisterError as error:
            if not self._lost_log:
                _log.warning("the audit log cannot be read, so nothing is delivered: %s", error)
            self._lost_log = True
            return None
        self._lost_log = False
        return page

    async def _dropped(self) -> Heads:
        try:
            return await asyncio.to_thread(self._shipper.dropped)
        except CloisterError as error:
            _log.warning("what was dropped from the audit log cannot be read: %s", error)
            return {}

    async def _new_heads(self, progress: Progress) -> SignedHeads | None:
        """Give the newest line of signed heads, unless it was delivered; it repeats all that earlier ones say."""
        if self.sink.severity == "alert" or (line := await asyncio.to_thread(self._shipper.heads)) is None:
            return None
        heads = SignedHeads(line)
        return None if _name(heads) == progress.heads else heads

    async def _hand_over(self, records: Sequence[Record]) -> None:
        """Deliver *records*, however often that is tried; once the shipper closes, only once more."""
        tries = 0
        while (fault := await attempt(self.sink, records)) is not None:
            tries += 1
            await self._failed(fault)
            if self._shipper.closing.is_set():
                raise _Left
            await self._pause(_wait(tries, fault))
        await self._succeeded()

    async def _failed(self, fault: SinkError) -> None:
        """Say once that a destination fails, and not again for a while, whatever becomes of it in between."""
        now = asyncio.get_running_loop().time()
        if self._failing_since is None:
            self._failing_since = now
            _log.warning("a destination of the audit log fails: %s: %s", self.sink.name, fault)
        if not self._recovering and (self._said is None or now - self._said >= _SAID_AGAIN):
            # An entry about it has to be delivered to it as well: one for each try would never end.
            self._recovering = await self._note("sink.failed", reason=str(fault))
            self._said = now if self._recovering else self._said

    async def _succeeded(self) -> None:
        since, self._failing_since = self._failing_since, None
        if since is not None and self._recovering:
            seconds = round(asyncio.get_running_loop().time() - since)
            self._recovering = not await self._note("sink.recovered", seconds=seconds)

    async def _note(self, kind: str, **detail: str | int) -> bool:
        try:
            noted = event(kind, self._shipper.now(), None, "", sink=self.sink.name, **detail)
            await self._shipper.note([noted])
        except StoreError as error:
            _log.error("%s of %s could not be put on record: %s", kind, self.sink.name, error)
            return False
        return True

    async def _pause(self, seconds: float, *events: asyncio.Event) -> None:
        """Wait *seconds*, or until one of *events* is set or the shipper closes."""
        waits = [asyncio.ensure_future(self._shipper.sleep(seconds))]
        waits += [asyncio.ensure_future(each.wait()) for each in (*events, self._shipper.closing)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


def _name(heads: SignedHeads) -> str:
    return sha256(heads.line.encode(errors="replace")).hexdigest()


def _wait(tries: int, fault: SinkError) -> float:
    """Give the seconds before the next try, a little at random, so that many do not come at once."""
    most = _LONGEST if fault.slow else min(_FIRST * 2 ** min(tries - 1, 20), _LONGEST)
    wait = most * random.uniform(0.5, 1)  # noqa: S311 (spreads load, guards nothing)
    return max(wait, min(fault.after or 0, _LONGEST_ASKED))
