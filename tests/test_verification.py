"""Verification of a log of which old entries were dropped, of exported files, and of copies that contradict."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.audit import (
    AuditKey,
    Chain,
    Copy,
    Entry,
    Heads,
    Report,
    Signed,
    Verification,
    event,
    read_heads,
    verify,
)
from cloister.audit.chain import digest

NOW = datetime(2026, 1, 1, tzinfo=UTC)
REPLACE = msgspec.structs.replace
WRITERS = ("w_a", "w_b", "w_c")


def written(order: Sequence[int]) -> list[Entry]:
    """Let writers, named by numbers, write one entry after the other."""
    chains = [Chain(name) for name in WRITERS]
    entries = []
    for number, writer in enumerate(order):
        noted = event("turn.committed", NOW + timedelta(seconds=number), None, "s", items=number)
        chains[writer], entry = chains[writer].extend(noted, "", "")
        entries.append(entry)
    return entries


def heads_of(entries: Sequence[Entry]) -> Heads:
    return {entry.writer: (entry.number, entry.hash.hex()) for entry in entries}


def forged(entry: Entry, **changes: object) -> Entry:
    """Change an entry as one who knows the format would."""
    entry = REPLACE(entry, **changes)
    return REPLACE(entry, hash=digest(entry))


def named(entry: Entry) -> tuple[str, int]:
    return entry.writer, entry.number


def first(report: Report) -> tuple[str, int] | None:
    return (report.faults[0].writer, report.faults[0].number) if report.faults else None


def checked(entries: Sequence[Entry], signed: Signed, **options: bool) -> Report:
    verification = Verification(signed, **options)
    for entry in entries:
        verification.add([entry])
    return verification.finish()


ORDERS = st.lists(st.integers(0, 2), min_size=1, max_size=14)
ORDER = (0, 1, 0, 2, 1, 0, 0, 2, 1, 2, 0, 1)
LOG = written(ORDER)


class TestNaming:
    """The first entry that is wrong is named, whatever was done to it, wherever it lies."""

    @given(ORDERS, st.data())
    def test_of_neighbours_that_were_exchanged(self, order: list[int], data: st.DataObject) -> None:
        """Two neighbours of one writer that changed places are found, and the first place is named."""
        entries = written(order)
        place = data.draw(st.integers(0, len(entries) - 1))
        after = [n for n in range(place + 1, len(entries)) if entries[n].writer == entries[place].writer]
        mixed = list(entries)
        other = after[0] if after else (place + 1) % len(entries)
        mixed[place], mixed[other] = mixed[other], mixed[place]
        report = verify(mixed, heads_of(entries))
        if after:
            assert first(report) == named(entries[place])
            assert [fault.number for fault in report.faults[:2]] == [entries[place].number] * 2
            assert "moved behind" in report.faults[1].problem
        elif not report.faults:  # between writers there is no order
            assert first(report) is None

    def test_of_entries_that_were_removed_together(self) -> None:
        """Of several that are missing in a row the first is named, and how many follow."""
        entries = [entry for entry in LOG if entry.writer != "w_a" or entry.number not in (2, 3, 4)]
        report = verify(entries, heads_of(LOG))
        assert first(report) == ("w_a", 2)
        assert "with 2 behind it" in report.faults[0].problem
        assert len(report.faults) == 1

    def test_of_one_that_was_given_to_another_writer(self) -> None:
        """An entry under another writer's name is known by its hash, and named as it was written."""
        for place, entry in enumerate(LOG):
            for name in {"w_new", *WRITERS} - {entry.writer}:
                entries = list(LOG)
                entries[place] = REPLACE(entry, writer=name)
                assert first(verify(entries, heads_of(LOG))) == named(entry)

    def test_of_one_that_says_it_is_another(self) -> None:
        """An entry with another number is named by the place in which it lies."""
        for place, entry in enumerate(LOG):
            for number in {1, 2, 3, 4, 9} - {entry.number}:
                entries = list(LOG)
                entries[place] = REPLACE(entry, number=number)
                assert first(verify(entries, heads_of(LOG))) == named(entry)

    def test_of_one_that_was_put_between(self) -> None:
        """A forged entry that chains on to a true one is found when the true one of its number comes."""
        for place, entry in enumerate(LOG):
            if entry.number == heads_of(LOG)[entry.writer][0]:
                continue
            _, extra = Chain(entry.writer, entry.number, entry.hash).extend(event("turn.failed", NOW), "", "")
            report = verify([*LOG[: place + 1], extra, *LOG[place + 1 :]], heads_of(LOG))
            assert first(report) == (entry.writer, entry.number + 1)

    def test_of_what_was_rewritten(self) -> None:
        """A chain hashed anew from a point on is found by any head behind it, and between which heads that was."""
        mine = [entry for entry in LOG if entry.writer == "w_a"]
        for start in range(len(mine)):
            rewritten, previous = list(mine[:start]), mine[start].previous
            for entry in mine[start:]:
                rewritten.append(forged(entry, previous=previous, detail='{"items":99}'))
                previous = rewritten[-1].hash
            marks = {entry.number: entry.hash.hex() for entry in mine if entry.number % 2}
            report = verify(rewritten, Signed({"w_a": (5, marks[5])}, marks={"w_a": marks}))
            found = next(number for number in (1, 3, 5) if number > start)
            assert first(report) == ("w_a", found)
            assert (f"behind entry {found - 2}" in report.faults[0].problem) == (found > 1)

    def test_of_many_writers_that_were_removed(self) -> None:
        """Of very many that are gone some are named, and it is said how many there are."""
        report = verify([], {f"w_{number}": (1, "aa") for number in range(500)})
        assert len(report.faults) < 30
        assert "480 in all" in report.faults[-1].problem

    def test_stops_at_nothing(self) -> None:
        """Random damage of all kinds at once is found, and never an error."""
        dice = random.Random(4711)
        for _ in range(300):
            entries = list(LOG)
            for _ in range(dice.randint(1, 4)):
                place = dice.randrange(len(entries))
                column = dice.choice(Entry.__struct_fields__)
                value = dice.choice([None, "", b"", 0, 7, -1, 2**70, 1.5, "w_b", "\ud800", b"\xff" * 32, True, "x" * 9])
                match dice.randrange(4):
                    case 0:
                        entries[place] = REPLACE(entries[place], **{column: value})
                    case 1:
                        del entries[place]
                    case 2:
                        entries.insert(dice.randrange(len(entries) + 1), entries[place])
                    case _:
                        entries.insert(place, entries.pop(dice.randrange(len(entries))))
                if not entries:
                    break
            same = all(
                [entry for entry in entries if entry.writer == name] == [entry for entry in LOG if entry.writer == name]
                for name in WRITERS
            )
            report = verify(entries, heads_of(LOG))
            assert bool(report.faults) == (not same or len(entries) != len(LOG))
            assert all(str(fault).isprintable() for fault in report.faults)


def dropped_at(upto: dict[str, int]) -> Signed:
    """What is signed when the entries up to these numbers were dropped."""
    dropped = {
        entry.writer: (entry.number, entry.hash.hex()) for entry in LOG if upto.get(entry.writer) == entry.number
    }
    key = AuditKey.generate()
    heads = {name: head for name, head in heads_of(LOG).items() if dropped.get(name) != head}
    return read_heads([key.sign(heads, NOW, dropped, sum(upto.values()))], key.public)


UPTO = st.fixed_dictionaries({"w_a": st.integers(0, 5), "w_b": st.integers(0, 4), "w_c": st.integers(0, 3)})


@given(st.builds(Entry, *[st.text()], *[st.integers(-(2**62), 2**62)] * 2, *[st.text()] * 6, *[st.binary()] * 2))
def test_the_hash_is_as_it_is_documented(entry: Entry) -> None:
    """Whoever has the standard library alone comes to the same hash, whatever stands in the columns."""
    values = [value for name, value in msgspec.to_builtins(entry).items() if name != "hash"]
    try:
        text = json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return
    assert digest(entry) == sha256(text).digest()


class TestDropped:
    """Old entries were dropped behind a signed statement."""

    @given(UPTO)
    def test_the_rest_verifies(self, upto: dict[str, int]) -> None:
        """Whatever was dropped of each writer, even all of it, the rest is whole; without the statement it is not."""
        rest = [entry for entry in LOG if entry.number > upto[entry.writer]]
        signed = dropped_at(upto)
        report = verify(rest, signed)
        assert (report.faults, report.unsigned, report.left, report.unnamed) == ([], 0, 0, 0)
        assert signed.entries == len(LOG) - len(rest)
        assert bool(verify(rest, heads_of(LOG)).faults) == (len(rest) < len(LOG))

    @given(UPTO, st.data())
    def test_left_in_the_middle_of_it_the_log_verifies(self, upto: dict[str, int], data: st.DataObject) -> None:
        """Between statement and end, some of each writer's oldest are gone: that is whole, and said."""
        gone = {name: data.draw(st.integers(0, number)) for name, number in upto.items()}
        rest = [entry for entry in LOG if entry.number > gone[entry.writer]]
        report = verify(rest, dropped_at(upto))
        assert report.faults == []
        assert report.left == sum(upto.values()) - sum(gone.values())

    @given(UPTO, st.data())
    def test_one_more_that_is_gone_shows(self, upto: dict[str, int], data: st.DataObject) -> None:
        """An entry that was not dropped, and is missing, is named."""
        rest = [entry for entry in LOG if entry.number > upto[entry.writer]]
        if not rest:
            return
        missing = data.draw(st.sampled_from(rest))
        assert first(verify([entry for entry in rest if entry is not missing], dropped_at(upto))) == named(missing)

    @given(UPTO, st.data())
    def test_what_is_left_cannot_be_changed(self, upto: dict[str, int], data: st.DataObject) -> None:
        """Entries that should be gone and are not, cannot be exchanged for others."""
        left = [entry for entry in LOG if entry.number <= upto[entry.writer]]
        if not left:
            return
        place = LOG.index(data.draw(st.sampled_from(left)))
        changed = forged(LOG[place], detail='{"items":99}')
        report = verify([*LOG[:place], changed, *LOG[place + 1 :]], dropped_at(upto))
        assert report.faults
        assert report.faults[0].writer == changed.writer

    def test_nobody_else_can_say_so(self) -> None:
        """A statement by another key drops nothing."""
        key, forger = AuditKey.generate(), AuditKey.generate()
        lines = [key.sign(heads_of(LOG), NOW), forger.sign({}, NOW, {"w_a": (5, heads_of(LOG)["w_a"][1])}, 5)]
        signed = read_heads(lines, key.public)
        assert len(signed.problems) == 1
        assert first(verify([entry for entry in LOG if entry.writer != "w_a"], signed)) == ("w_a", 1)

    def test_heads_alone_drop_nothing(self) -> None:
        """Signed heads are no statement of what was dropped, and an older statement takes nothing back."""
        key = AuditKey.generate()
        marks = {entry.number: entry.hash.hex() for entry in LOG if entry.writer == "w_a"}
        lines = [
            key.sign({}, NOW, {"w_a": (4, marks[4])}, 4),
            key.sign({"w_a": (5, marks[5])}, NOW, {"w_a": (2, marks[2])}, 2),
        ]
        for some in (lines, lines[::-1]):
            signed = read_heads(some, key.public)
            assert (signed.dropped, signed.entries) == ({"w_a": (4, marks[4])}, 4)
            assert signed.heads == {"w_a": (5, marks[5])}
        assert verify([], read_heads(lines[:1], key.public)).faults == []
        assert first(verify([], read_heads(lines, key.public))) == ("w_a", 5)


class TestParts:
    """What was exported of a time, and what was delivered more than once."""

    @given(st.integers(0, len(LOG)))
    def test_a_log_that_begins_anywhere(self, place: int) -> None:
        """From the first entry of each writer on everything is checked, its end included."""
        some = LOG[place:]
        assert checked(some, Signed.of(heads_of(LOG)), begins=True).faults == []
        for gone in some:
            rest = [entry for entry in some if entry is not gone]
            began = min(entry.number for entry in some if entry.writer == gone.writer)
            report = checked(rest, Signed.of(heads_of(LOG)), begins=True)
            last = heads_of(LOG)[gone.writer][0]
            if gone.number > began and began < last:
                assert first(report) == named(gone)

    @given(st.integers(0, len(LOG)))
    def test_a_log_that_ends_anywhere(self, place: int) -> None:
        """That later entries are missing is no fault; that any between is, is one."""
        some = LOG[:place]
        assert checked(some, Signed.of(heads_of(LOG)), ends=True).faults == []
        for gone in some:
            rest = [entry for entry in some if entry is not gone]
            if any(entry.writer == gone.writer and entry.number > gone.number for entry in rest):
                assert first(checked(rest, Signed.of(heads_of(LOG)), ends=True)) == named(gone)

    @given(st.data())
    def test_what_came_twice(self, data: st.DataObject) -> None:
        """Entries that were delivered again, from some position on, are no fault there; in a store they are one."""
        end = data.draw(st.integers(1, len(LOG)))
        start = data.draw(st.integers(0, end - 1))
        broken = data.draw(st.integers(start, end))
        found = [*LOG[:end], *LOG[start:broken], *LOG[start:]]
        assert checked(found, Signed.of(heads_of(LOG)), repeats=True).faults == []
        assert verify(found, heads_of(LOG)).faults

    @given(st.data())
    def test_what_came_twice_must_be_the_same(self, data: st.DataObject) -> None:
        """An entry that is not what came before is found among those that came again."""
        end = data.draw(st.integers(1, len(LOG)))
        start = data.draw(st.integers(0, end - 1))
        place = data.draw(st.integers(start, end - 1))
        changed = forged(LOG[place], detail='{"items":99}')
        again = [changed if entry is LOG[place] else entry for entry in LOG[start:end]]
        for found in ([*LOG[:end], *again, *LOG[end:]], [*LOG[:end], *again, *LOG[start:]]):
            report = checked(found, Signed.of(heads_of(LOG)), repeats=True)
            assert changed.writer in {fault.writer for fault in report.faults}

    def test_an_end_that_is_missing_is_said(self) -> None:
        """Entries that came again, but not up to the last one, are not taken for the same."""
        mine = [entry for entry in LOG if entry.writer == "w_a"]
        report = checked([*mine, mine[1]], Signed.of(heads_of(mine)), repeats=True)
        assert first(report) == ("w_a", 2)


class TestCopies:
    """Two files that each verify."""

    def test_that_agree(self) -> None:
        """Copies of one log, of whatever parts and in whatever order of writers, do not contradict each other."""
        copy = Copy()
        copy.add(LOG[3:9])
        assert copy.contradicted(sorted(LOG, key=named)) is None
        assert copy.contradicted([]) is None

    def test_the_first_contradiction_is_named(self) -> None:
        """Where a writer's entries were written anew, the first that differs is named."""
        for place, entry in enumerate(LOG):
            other = list(LOG)
            previous = entry.previous
            for later in range(place, len(LOG)):
                if LOG[later].writer == entry.writer:
                    other[later] = forged(LOG[later], previous=previous, owner="a_else")
                    previous = other[later].hash
            assert verify(other, {}).faults == []
            copy = Copy()
            copy.add(LOG)
            fault = copy.contradicted(other)
            assert fault is not None
            assert (fault.writer, fault.number) == named(entry)


class TestSeveralHeads:
    """Each process signs for what its own writers did."""

    def test_together_they_cover_the_log(self) -> None:
        """With the heads of all processes nothing is unsigned; with some, the others' entries are, and no fault."""
        key = AuditKey.generate()
        lines = [key.sign({name: heads_of(LOG)[name]}, NOW) for name in WRITERS]
        signed = Signed()
        for number, line in enumerate(lines, 1):
            signed = read_heads([line], key.public, signed)
            report = verify(LOG, signed)
            covered = sum(heads_of(LOG)[name][0] for name in WRITERS[:number])
            assert (report.faults, report.unsigned) == ([], len(LOG) - covered)
            assert report.unnamed == 3 - number

    def test_contradictions_across_files_are_named(self) -> None:
        """A file that says something else about an entry than another one is named, with its line."""
        key = AuditKey.generate()
        one = read_heads([key.sign({"w_a": (2, "aa")}, NOW), key.sign({"w_a": (5, "bb")}, NOW)], key.public)
        for said in ({"w_a": (2, "cc")}, {"w_a": (5, "cc")}):
            both = read_heads([key.sign(said, NOW)], key.public, one, "other.jsonl")
            assert len(both.problems) == 1
            assert both.problems[0].startswith("other.jsonl, line 1: contradicts")

    @pytest.mark.parametrize("later", [False, True])
    def test_what_was_signed_later_need_not_be_there(self, later: bool) -> None:
        """In a file that was signed for at some moment, later entries are not missed; what they follow is checked."""
        key = AuditKey.generate()
        end = NOW + timedelta(hours=1)
        own = read_heads([key.sign(heads_of(LOG[:6]), end)], key.public)
        moment = end + timedelta(seconds=1 if later else -1)
        both = read_heads([key.sign(heads_of(LOG), moment)], key.public, own, until=own.at)
        assert bool(verify(LOG[:6], both).faults) == (not later)
        assert verify(LOG[:5], both).faults
        wrong = read_heads([key.sign({"w_a": (1, "00" * 32)}, moment)], key.public, own, until=own.at)
        assert first(verify(LOG[:6], wrong)) == ("w_a", 1)

    def test_a_missing_line_does_not_show_by_itself(self) -> None:
        """With its newest lines removed a file of heads is an older one: only a copy elsewhere shows more."""
        key = AuditKey.generate()
        lines = [key.sign(heads_of(LOG[:n]), NOW) for n in (4, 8, 12)]
        cut = LOG[:8]
        assert verify(cut, read_heads(lines[:2], key.public)).faults == []
        assert verify(cut, read_heads([*lines[:2], lines[2]], key.public)).faults
