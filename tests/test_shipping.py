"""What is on record comes to each destination at least once and in order, whatever becomes of it or the process."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.shipped import FakeLog, Naps, Taker, identities, until, without_doubles

from cloister import shipping
from cloister.alarms import Alarms
from cloister.audit import Chain, Entry, verify
from cloister.errors import ConfigurationError, StoreUnavailable
from cloister.model import to_micros
from cloister.shipping import Place, Progress, Shipper, unfold
from cloister.sinks.base import Beginning, SignedHeads, SinkError, delivery_id


def shipper(log: FakeLog, *sinks: Any, folder: Path | None = None, naps: Naps | None = None, **options: Any) -> Shipper:
    return Shipper(
        sinks,
        options.get("alarms", Alarms()),
        trail=log.trail,
        note=log.note,
        now=log.clock,
        heads=lambda: log.heads,
        dropped=lambda: log.dropped,
        since=options.get("since", 0),
        folder=folder,
        sleep=naps or Naps(),
    )


@contextlib.asynccontextmanager
async def shipping_of(log: FakeLog, *sinks: Any, **options: Any) -> AsyncIterator[Shipper]:
    ship = shipper(log, *sinks, **options)
    await ship.open()
    try:
        yield ship
    finally:
        await ship.close()


async def crash(ship: Shipper) -> None:
    """Leave everything where it is, as a process does that is killed: nothing more is delivered or written."""
    for task in ship._tasks:
        task.cancel()
    await asyncio.gather(*ship._tasks, return_exceptions=True)
    for route in ship._routes:
        route.place.leave()


@pytest.fixture
def log() -> FakeLog:
    return FakeLog()


# --- what a destination is given --------------------------------------------------------------------------------------


async def test_each_is_given_what_is_severe_enough(log: FakeLog) -> None:
    """Entries from a destination's severity on, alarms between them; at alert there are alarms alone."""
    for kind in ("turn.committed", "turn.failed", "reply.alerted", "access.foreign"):
        log.put(kind)
    log.heads = "signed"
    sinks = [Taker(severity, severity) for severity in ("info", "notice", "warning", "alert")]
    async with shipping_of(log, *sinks):
        pass
    assert [[entry.number for entry in sink.entries] for sink in sinks] == [[1, 2, 3, 4], [2, 3, 4], [3, 4], []]
    assert [[alarm.rule for alarm in sink.alarms] for sink in sinks] == [["access.foreign"]] * 4
    assert [sink.heads for sink in sinks] == [["signed"]] * 3 + [[]]
    assert all(sink.closed for sink in sinks)


async def test_a_copy_verifies(log: FakeLog) -> None:
    """What a destination of everything has is the log, entry for entry."""
    log.put("turn.committed", 1_200)
    async with shipping_of(log, sink := Taker()):
        pass
    assert verify(sink.entries, {log.chain.writer: (1_200, log.chain.last.hex())}).faults == []
    assert max(map(len, sink.parcels)) == 100


async def test_without_rules_entries_come_themselves(log: FakeLog) -> None:
    """With ``alarms=None`` a destination of alarms is given the entries that are severe enough, each."""
    log.put("access.foreign", 3)
    async with shipping_of(log, sink := Taker(severity="alert"), alarms=None):
        pass
    assert [entry.number for entry in sink.entries] == [1, 2, 3]


async def test_heads_come_once_each(log: FakeLog, tmp_path: Path) -> None:
    """A line of signed heads is delivered when it is new, and not again after a restart."""
    sink = Taker()
    for line in ("first", "first", "second"):
        log.heads = line
        async with shipping_of(log, sink, folder=tmp_path / "x"):
            pass
    assert sink.heads == ["first", "second"]


async def test_heads_come_behind_what_they_were_signed_for(log: FakeLog) -> None:
    """Whatever is written and signed while the log is read, no destination has heads of entries that it lacks."""
    real = log.trail

    async def trail(*, after: bytes, limit: int) -> Any:
        page = await real(after=after, limit=limit)
        if len(log.entries) < 10:
            log.put("turn.committed")
            log.heads = str(len(log.entries))
        return page

    log.trail = trail  # type: ignore[method-assign]
    async with shipping_of(log, sink := Taker()) as ship:
        for _ in range(12):
            reads = log.reads
            ship.kick()
            await until(lambda reads=reads: log.reads > reads)  # type: ignore[misc]
    seen = 0
    for record in sink.taken:
        seen += isinstance(record, Entry)
        assert not isinstance(record, SignedHeads) or int(record.line) <= seen
    assert sink.heads[-1] == "10"


async def test_what_is_severe_comes_at_once(log: FakeLog) -> None:
    """A kick is enough: nobody waits for the next poll."""
    async with shipping_of(log, sink := Taker(severity="alert")) as ship:
        await until(lambda: log.reads > 1)
        log.put("access.foreign")
        ship.kick()
        await until(lambda: len(sink.alarms) == 1)


async def test_without_a_kick_it_comes_with_the_next_poll(log: FakeLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log is looked at every second, whoever wrote into it."""
    monkeypatch.setattr(shipping, "POLL", 0.001)
    async with shipping_of(log, sink := Taker(severity="alert"), naps=Naps()):
        await until(lambda: log.reads > 3)
        log.put("access.foreign")
        await until(lambda: len(sink.alarms) == 1)


async def test_what_is_late_is_marked(log: FakeLog) -> None:
    """After a week an alarm is delivered all the same, and says that it is old."""
    log.put("access.foreign")
    log.clock.move(days=7)
    async with shipping_of(log, sink := Taker(severity="alert")):
        pass
    assert [alarm.late for alarm in sink.alarms] == [True]


async def test_an_entry_that_the_store_gives_twice_comes_once(log: FakeLog) -> None:
    """A store may repeat what lies near a position; a destination is not bothered with it."""
    log.twice = 3
    async with shipping_of(log, sink := Taker()) as ship:
        for number in range(1, 8):
            log.put("turn.committed")
            ship.kick()
            await until(lambda number=number: len(sink.entries) == number)  # type: ignore[misc]
    assert [entry.number for entry in sink.entries] == [1, 2, 3, 4, 5, 6, 7]


# --- a destination that fails -----------------------------------------------------------------------------------------


async def test_a_destination_that_comes_back_gets_everything_in_order(log: FakeLog) -> None:
    """What it did not take is given again until it does; that it failed, and is back, is on record once each."""
    log.put("turn.committed", 250)
    faults = [SinkError("down"), OSError(5, "no"), RuntimeError("canary"), None]
    async with shipping_of(log, sink := Taker(fault=lambda number: faults[number % 4])) as ship:
        await until(lambda: len(sink.entries) >= 250)
        ship.kick()
        await until(lambda: log.entries[-1].number == sink.entries[-1].number)
    assert [entry.number for entry in sink.entries] == list(range(1, len(log.entries) + 1))
    noted = [entry for entry in log.entries if entry.event.startswith("sink.")]
    assert [entry.event for entry in noted] == ["sink.failed", "sink.recovered"]
    assert '"sink":"taker"' in noted[0].detail
    assert "canary" not in str(log.entries)


async def test_failing_for_ever_feeds_nothing(log: FakeLog) -> None:
    """Entries about a destination go to it as well; however it flaps, there are no more of them than one pair."""
    log.put("turn.committed")
    async with shipping_of(log, sink := Taker(fault=lambda number: SinkError("x") if number % 2 else None)) as ship:
        for _ in range(20):
            count = len(sink.entries)
            log.put("turn.committed")
            ship.kick()
            await until(lambda count=count: len(sink.entries) > count)  # type: ignore[misc]
    events = [entry.event for entry in log.entries if entry.event != "turn.committed"]
    assert events == ["sink.failed", "sink.recovered"]


async def test_pauses_grow_and_are_bounded(log: FakeLog) -> None:
    """From a second to five minutes, a little at random; what hardly changes soon is tried as seldom at once."""
    log.put("turn.committed")
    naps = Naps()
    async with shipping_of(log, Taker(fault=SinkError("down")), naps=naps):
        await until(lambda: len(naps.asked) >= 14)
    most = [min(2**number, 300) for number in range(14)]
    assert all(each / 2 <= asked <= each for asked, each in zip(naps.asked, most, strict=False))
    slow = Naps()
    async with shipping_of(log, Taker(fault=SinkError("401", slow=True)), naps=slow):
        await until(lambda: len(slow.asked) >= 1)
    assert 150 <= slow.asked[0] <= 300


@pytest.mark.parametrize(("asked", "least", "most"), [(120.0, 120, 120), (1e9, 900, 900), (-5.0, 0.5, 1)])
async def test_a_wish_for_peace_is_granted_within_bounds(log: FakeLog, asked: float, least: float, most: float) -> None:
    """A destination is left alone as long as it asks for, a quarter of an hour at the most."""
    log.put("turn.committed")
    naps = Naps()
    async with shipping_of(log, Taker(fault=SinkError("429", after=asked)), naps=naps):
        await until(lambda: len(naps.asked) >= 1)
    assert least <= naps.asked[0] <= most


async def test_one_that_hangs_holds_up_no_other(log: FakeLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are served meanwhile; what never ends is a failure; and closing waits for a stated time at the most."""
    monkeypatch.setattr(shipping, "CLOSING", 0.05)
    log.put("access.foreign")
    hanging, other = Taker("hanging", gate=asyncio.Event()), Taker("other")
    async with shipping_of(log, hanging, other) as ship:
        await until(lambda: hanging.waiting == 1 and len(other.entries) == 1)
        log.put("access.foreign", owner="a_ben")
        ship.kick()
        await until(lambda: len(other.entries) == 2)
    assert hanging.taken == []
    assert hanging.waiting == 0
    assert hanging.closed


async def test_what_never_ends_is_a_failure(log: FakeLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delivery has a minute; then it failed, and is tried again."""
    monkeypatch.setattr(shipping, "PATIENCE", 0.001)
    log.put("turn.committed")
    sink = Taker(gate=asyncio.Event())
    async with shipping_of(log, sink) as ship:
        await until(lambda: sink.tries >= 3)
        monkeypatch.setattr(shipping, "PATIENCE", 60)
        assert sink.gate is not None
        sink.gate.set()
        await until(lambda: len(sink.entries) == 1)
        ship.kick()
        await until(lambda: len(sink.entries) >= 2)
    assert [entry.event for entry in sink.entries][:2] == ["turn.committed", "sink.failed"]


async def test_a_failure_that_cannot_be_put_on_record_stops_nothing(log: FakeLog) -> None:
    """While the store is down nothing can be noted; the destination is served as soon as both are back."""
    log.put("turn.committed")

    async def down(_: object) -> None:
        raise StoreUnavailable("down")

    async with shipping_of(log, sink := Taker(fault=SinkError("down"))) as ship:
        ship.note = down
        await until(lambda: sink.tries >= 2)
        ship.note = log.note
        await until(lambda: len(log.entries) == 2)
        sink.fault = None
        await until(lambda: len(sink.entries) >= 1)
        ship.kick()
        await until(lambda: len(sink.entries) >= 2)
    assert [entry.event for entry in log.entries] == ["turn.committed", "sink.failed", "sink.recovered"]


async def test_a_log_that_cannot_be_read_is_read_later(log: FakeLog) -> None:
    """A store that is down for a while costs nothing but time."""
    async with shipping_of(log, sink := Taker()) as ship:
        await until(lambda: log.reads >= 2)
        log.fault = StoreUnavailable("down")
        log.put("turn.committed")
        reads = log.reads
        ship.kick()
        await until(lambda: log.reads > reads)
        log.fault = None
        ship.kick()
        await until(lambda: len(sink.entries) == 1)


# --- a process that dies ----------------------------------------------------------------------------------------------


class Forgetful(Place):
    """Write nothing down, and begin wherever the log is when somebody opens it."""

    def make(self) -> None:
        pass

    def take(self) -> Progress | None:
        return self._fresh

    def keep(self, progress: Progress) -> None:
        pass


async def _crashing_at(step: int, folder: Path, log: FakeLog) -> tuple[list[Any], bool]:
    """Deliver everything, with a crash at the *step*-th delivery: at odd ones before it is taken, else right after.

    Gives what was taken, and whether it came to a crash.
    """
    taken: list[Any] = []
    reached = asyncio.Event()

    class Dying(Taker):
        async def deliver(self, records: Any) -> None:
            self.tries += 1
            if self.tries == (step + 1) // 2:
                if step % 2 == 0:
                    taken.extend(records)
                reached.set()
                await asyncio.Event().wait()
            taken.extend(records)

    first = shipper(log, Dying(), folder=folder, since=to_micros(log.clock.now))
    await first.open()
    log.put("turn.committed", 120)
    log.put("access.foreign")
    log.put("turn.committed", 30)
    log.put("access.foreign", owner="a_ben")
    first.kick()
    done = asyncio.create_task(until(lambda: len(taken) >= 154, 500))
    died = asyncio.create_task(reached.wait())
    await asyncio.wait([done, died], return_when=asyncio.FIRST_COMPLETED)
    crashed = reached.is_set()
    done.cancel()
    died.cancel()
    await crash(first)
    log.clock.move(minutes=1)
    second = Taker(taken=taken)
    async with shipping_of(log, second, folder=folder, since=to_micros(log.clock.now)):
        pass
    return taken, crashed


async def _crashing_everywhere(folder: Path) -> bool:
    """Say whether everything came at least once and in order, wherever the process died."""
    for step in range(1, 30):
        log = FakeLog()
        taken, crashed = await _crashing_at(step, folder / str(step), log)
        entries = [record for record in taken if isinstance(record, Entry)]
        alarms = [record for record in taken if not isinstance(record, Entry)]
        if without_doubles(entries) != identities(log.entries):
            return False
        if [alarm.owner for alarm in dict.fromkeys(alarms)] != ["a_ana", "a_ben"]:
            return False
        if not crashed:
            assert step > 8
            return True
    raise AssertionError("it never lived")


async def test_a_crash_anywhere_loses_nothing(tmp_path: Path) -> None:
    """Killed before or after any delivery, everything has come at least once, in order, when the next one is done."""
    assert await _crashing_everywhere(tmp_path)


async def test_progress_before_delivery_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever moves on before a delivery is done loses what was under way: the test above notices."""
    real = shipping._Route._serve

    async def hasty(self: Any) -> bool:
        before = self._progress or await asyncio.to_thread(self.place.take)
        page = await self._shipper.trail(after=before.after, limit=500)
        ahead = msgspec.structs.replace(before, after=page.after)
        self.place.keep(ahead)
        return await real(self)

    monkeypatch.setattr(shipping._Route, "_serve", hasty)
    assert not await _crashing_everywhere(tmp_path)


async def test_lost_progress_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever keeps progress in memory alone, and begins anew where the log is now, is noticed as well."""
    monkeypatch.setattr(shipping, "Place", Forgetful)
    assert not await _crashing_everywhere(tmp_path)


async def test_progress_that_is_damaged_is_begun_anew(log: FakeLog, tmp_path: Path) -> None:
    """A file that cannot be read means everything once more, rather than anything not at all."""
    log.put("turn.committed", 3)
    async with shipping_of(log, Taker(), folder=tmp_path):
        pass
    Place(tmp_path, "taker", 0)._path.write_bytes(b'{"sink": "ta')  # type: ignore[union-attr]
    log.put("turn.committed")
    async with shipping_of(log, sink := Taker(), folder=tmp_path, since=to_micros(log.clock.now) + 1):
        pass
    assert [entry.number for entry in sink.entries] == [1, 2, 3, 4]


async def test_a_new_destination_begins_when_it_is_first_opened(log: FakeLog, tmp_path: Path) -> None:
    """What happened before is not delivered to it; what happened since is, even if nothing was delivered at once."""
    log.put("turn.committed", 600)
    log.clock.move(seconds=1)
    first = shipper(log, Taker(gate=asyncio.Event()), folder=tmp_path, since=to_micros(log.clock.now))
    await first.open()
    await crash(first)
    log.put("access.foreign")
    log.clock.move(seconds=1)
    async with shipping_of(log, sink := Taker(), folder=tmp_path, since=to_micros(log.clock.now)):
        pass
    assert [entry.number for entry in sink.entries] == [601]


async def test_a_clock_that_goes_back_hides_nothing(log: FakeLog, tmp_path: Path) -> None:
    """What is written after a destination was there is for it, whatever the clock of whoever wrote it says."""
    log.put("turn.committed", 2)
    log.clock.move(seconds=1)
    async with shipping_of(log, sink := Taker(), folder=tmp_path, since=to_micros(log.clock.now)) as ship:
        await until(lambda: log.reads >= 2)
        log.put("turn.committed")
        ship.kick()
        await until(lambda: len(sink.entries) == 1)
        log.clock.move(hours=-1)
        log.put("turn.committed")
        ship.kick()
        await until(lambda: len(sink.entries) == 2)
    assert [entry.number for entry in sink.entries] == [3, 4]
    assert [record for record in sink.taken if isinstance(record, Beginning)] == [sink.taken[0]]


async def test_one_process_ships_and_another_takes_over(log: FakeLog, tmp_path: Path) -> None:
    """Of two that share a folder one delivers; when it ends, the other goes on where it stopped."""
    one, two = Taker(), Taker()
    async with shipping_of(log, two_first := Taker("other"), folder=tmp_path):
        pass
    assert two_first.taken == []
    first = shipper(log, one, folder=tmp_path)
    await first.open()
    await until(lambda: log.reads >= 4)
    async with shipping_of(log, two, folder=tmp_path) as second:
        for _ in range(5):
            log.put("turn.committed")
            first.kick()
            second.kick()
        await until(lambda: len(one.entries) == 5)
        assert two.tries == 0
        await crash(first)
        log.put("turn.committed", 3)
        second.kick()
        await until(lambda: len(two.entries) >= 3)
    assert without_doubles(one.entries + two.entries) == identities(log.entries)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")
def test_a_forked_child_holds_nothing(tmp_path: Path) -> None:
    """A child that lives longer than the process that delivered keeps nobody from taking over."""
    first, next_one = Place(tmp_path, "taker", 0), Place(tmp_path, "taker", 0)
    first.make()
    assert first.take() is not None
    waits, goes_on = os.pipe()
    told, tells = os.pipe()
    child = os.fork()
    if not child:
        os.write(tells, b".")
        os.close(goes_on)
        os.read(waits, 1)
        os._exit(0)
    try:
        os.read(told, 1)
        assert next_one.take() is None
        first.leave()
        assert next_one.take() is not None
    finally:
        next_one.leave()
        for descriptor in (waits, goes_on, told, tells):
            os.close(descriptor)
        os.waitpid(child, 0)


async def test_each_destination_has_progress_of_its_own(log: FakeLog, tmp_path: Path) -> None:
    """A destination that was down for a while is behind alone, after a restart as well."""
    log.put("turn.committed", 3)
    up, down = Taker("up"), Taker("down", fault=SinkError("down"))
    async with shipping_of(log, up, down, folder=tmp_path):
        await until(lambda: down.tries >= 2 and len(up.entries) >= 3)
    down.fault = None
    async with shipping_of(log, up, down, folder=tmp_path):
        pass
    assert identities(up.entries) == identities(down.entries) == identities(log.entries)


# --- a log that does not have everything any more ---------------------------------------------------------------------


async def test_what_was_dropped_before_it_was_delivered_is_said(log: FakeLog, tmp_path: Path) -> None:
    """The numbers of each writer tell how many are missing; writers that began meanwhile count too."""
    log.put("turn.committed", 10)
    async with shipping_of(log, Taker(), folder=tmp_path):
        pass
    log.put("turn.committed", 5)
    other = log.put("turn.committed", 4, Chain.new())
    log.put("turn.committed", 1)
    log.put("turn.committed", 1, other)
    log.drop(10 + 5 + 4)
    async with shipping_of(log, sink := Taker(), folder=tmp_path) as ship:
        await until(lambda: log.entries[-1].event == "sink.dropped")
        ship.kick()
        await until(lambda: len(sink.alarms) == 1)
    assert '"count":9' in log.entries[-1].detail
    assert [entry.event for entry in log.entries].count("sink.dropped") == 1
    assert [alarm.rule for alarm in sink.alarms] == ["sink.dropped"]


async def test_a_writer_of_whom_nothing_is_left_is_missed_too(log: FakeLog, tmp_path: Path) -> None:
    """What was signed when the log was cut says how far each writer had come, so that none goes without a word."""
    gone = log.put("turn.committed", 3, Chain.new())
    async with shipping_of(log, Taker(), folder=tmp_path):
        pass
    log.put("turn.committed", 4, gone)
    unseen = log.put("turn.committed", 5, Chain.new())
    log.put("turn.committed", 2)
    log.cut(3 + 4 + 5 + 1)
    log.put("audit.pruned")
    assert set(log.dropped) == {gone.writer, unseen.writer, log.chain.writer}
    async with shipping_of(log, sink := Taker(), folder=tmp_path) as ship:
        await until(lambda: log.entries[-1].event == "sink.dropped")
        log.put("audit.pruned")
        ship.kick()
        await until(lambda: identities(sink.entries) == identities(log.entries))
    assert ['"count":10' in entry.detail for entry in log.entries if entry.event == "sink.dropped"] == [True]


async def test_what_was_cut_after_it_was_delivered_is_not_missed(log: FakeLog, tmp_path: Path) -> None:
    """Where a destination had everything, a shorter log is no loss; nor is what was cut before it was there."""
    log.put("turn.committed", 3, Chain.new())
    log.put("turn.committed", 3)
    log.cut(4)
    log.put("audit.pruned")
    async with shipping_of(log, Taker(), folder=tmp_path):
        pass
    log.put("turn.committed", 3)
    async with shipping_of(log, Taker(), folder=tmp_path):
        pass
    log.cut(4)
    log.put("audit.pruned")
    async with shipping_of(log, Taker(), folder=tmp_path):
        pass
    assert "sink.dropped" not in [entry.event for entry in log.entries]


async def test_what_was_dropped_before_a_destination_was_there_is_not_missed(log: FakeLog) -> None:
    """A log that begins in the middle of a chain when it is first read is no loss."""
    log.put("turn.committed", 10)
    log.drop(7)
    async with shipping_of(log, sink := Taker()):
        pass
    assert [entry.number for entry in sink.entries] == [8, 9, 10]
    assert "sink.dropped" not in [entry.event for entry in log.entries]


async def test_a_loss_is_told_even_if_the_store_was_down(log: FakeLog, tmp_path: Path) -> None:
    """What could not be put on record is put there later, by the next process if need be."""
    log.put("turn.committed")
    async with shipping_of(log, Taker(), folder=tmp_path):
        pass
    log.put("turn.committed", 2)
    log.drop(2)

    async def down(_: object) -> None:
        raise StoreUnavailable("down")

    ship = shipper(log, Taker(), folder=tmp_path)
    ship.note = down
    await ship.open()
    await ship.close()
    async with shipping_of(log, Taker(), folder=tmp_path):
        pass
    assert '"count":1' in log.entries[-1].detail


async def test_many_writers_are_followed_in_bounded_memory(log: FakeLog) -> None:
    """Of more than a thousand writers some are forgotten; none is then said to have lost what it has not."""
    progress = Progress("x", 0, whole=True)
    for _ in range(1_500):
        unfold(progress, [Chain.new().extend(_event(), "", "")[1]], "info", None, 0, {})
    assert len(progress.numbers) == 1_000
    old = Chain("w_old", 41, b"")
    unfold(progress, [old.extend(_event(), "", "")[1]], "info", None, 0, {})
    assert progress.missing == 0
    assert len(msgspec.json.encode(progress)) < 50_000


async def test_a_position_in_another_log_is_given_up(log: FakeLog, tmp_path: Path) -> None:
    """A store that was put in another's place is followed from its beginning."""
    log.put("turn.committed", 5)
    async with shipping_of(log, Taker(), folder=tmp_path):
        pass
    other = FakeLog()
    other.put("turn.committed", 2)
    real = other.trail

    async def trail(*, after: bytes, limit: int) -> Any:
        if after == b"5":
            raise ConfigurationError("this position in the audit log is one of another store")
        return await real(after=after, limit=limit)

    other.trail = trail  # type: ignore[method-assign]
    async with shipping_of(other, sink := Taker(), folder=tmp_path):
        pass
    assert [entry.number for entry in sink.entries] == [1, 2]


@pytest.mark.parametrize(
    "change",
    [
        {"at": 1 << 60},
        {"at": -1},
        {"number": "7"},
        {"number": 0},
        {"hash": "x"},
        {"detail": None},
        {"owner": 7},
        {"writer": "\ud800"},
    ],
)
async def test_what_cannot_be_an_entry_raises_an_alarm(log: FakeLog, change: dict[str, Any]) -> None:
    """An entry that somebody changed where it lies stops nothing: there is an alarm in its place."""
    log.put("turn.committed", 3)
    log.rows[1] = 2, msgspec.structs.replace(log.rows[1][1], **change)
    async with shipping_of(log, sink := Taker(), since=1):
        pass
    assert [entry.number for entry in sink.entries] == [1, 3]
    assert [alarm.rule for alarm in sink.alarms] == ["entry.damaged"]


async def test_a_severity_that_is_not_known_is_not_passed_over(log: FakeLog) -> None:
    """What a newer version wrote counts as severe."""
    log.put("turn.committed")
    log.rows[0] = 1, msgspec.structs.replace(log.rows[0][1], severity="catastrophe", event="novelty")
    async with shipping_of(log, sink := Taker(severity="warning")):
        pass
    assert len(sink.entries) == 1


# --- setting up -------------------------------------------------------------------------------------------------------


def test_two_of_one_name_are_refused(log: FakeLog) -> None:
    """Progress is kept by name, so no two destinations have the same."""
    with pytest.raises(ConfigurationError, match="twice"):
        shipper(log, Taker("a"), Taker("b"), Taker("a"))


async def test_a_log_that_cannot_be_followed_is_an_error(log: FakeLog) -> None:
    """Who opens a store whose log lies where cloister cannot read it is told at once."""
    log.fault = ConfigurationError("the audit log went to standard logging")
    with pytest.raises(ConfigurationError, match="standard logging"):
        await shipper(log, Taker()).open()


async def test_a_folder_that_is_none_is_an_error(log: FakeLog, tmp_path: Path) -> None:
    """Where progress cannot be kept, nobody is left in the belief that it is."""
    (tmp_path / "x").write_text("a file")
    with pytest.raises(ConfigurationError, match="folder"):
        await shipper(log, Taker(), folder=tmp_path / "x").open()
    with pytest.raises(ConfigurationError, match="folder"):
        await shipper(log, Taker(), folder=tmp_path / "not" / "there").open()


async def test_deliveries_have_names_that_come_again(log: FakeLog) -> None:
    """What comes twice is called the same, and no two things are: a receiver can drop doubles by it."""
    log.put("turn.committed", 120)
    log.put("access.foreign")
    log.heads = "signed"
    named = []
    for _ in range(2):
        async with shipping_of(log, sink := Taker()):
            pass
        named.append([delivery_id(records) for records in sink.parcels])
    assert named[0] == named[1]
    assert len(set(named[0])) == len(named[0]) == 4


def _event() -> Any:
    from cloister.audit import Event

    return Event("turn.committed", 1)
