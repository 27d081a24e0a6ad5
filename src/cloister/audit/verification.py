"""Verification: entries against each other, and against what was signed. Entry by entry, with memory for each writer.

Every fault names an entry. Of several, the first that was found comes first: in a log that was changed in one place,
that is the place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from cloister.audit.chain import ENTRY_TYPES, Entry, Heads, columns, digest, digest_of
from cloister.audit.heads import Signed


@dataclass(frozen=True, slots=True)
class Fault:
    """Say which entry is wrong, and how."""

    writer: str
    number: int
    problem: str

    def __str__(self) -> str:
        return f"writer {ascii(self.writer)[1:-1]}, entry {self.number}: {self.problem}"


@dataclass(slots=True)
class Report:
    """Say what a verification found.

    ``unsigned`` counts entries behind the last signed head of their writer, ``unnamed`` writers that no signed head
    names: whoever can write to the store can add both. ``left`` counts entries that a signed statement has dropped and
    that are there all the same.
    """

    entries: int = 0
    writers: int = 0
    unsigned: int = 0
    unnamed: int = 0
    left: int = 0
    faults: list[Fault] = field(default_factory=list)


_MOST_FAULTS = 20
_NOTHING = Signed()


class _Writer:
    """Be what is known of a writer: its last entry, what was signed about it, and which of its entries were missing."""

    __slots__ = ("again", "began", "last", "marks", "missing", "number")

    def __init__(self, number: int, last: bytes, marks: Mapping[int, str]) -> None:
        self.began = number
        self.number = number
        self.last = last
        self.marks = marks
        self.missing: list[range] = []
        self.again: dict[int, bytes] = {}


class Verification:
    """Check entries, in the order in which they lie, against each other and against what was *signed*.

    With *begins*, the log that is checked begins anywhere: what came before a writer's first entry is not missed. With
    *ends* it ends anywhere: nor is what comes after its last. With *repeats* it is what was delivered, perhaps more
    than once: a writer's entries may come again, if they lead to the last that came before.
    """

    def __init__(
        self, signed: Signed = _NOTHING, *, begins: bool = False, ends: bool = False, repeats: bool = False
    ) -> None:
        self._signed = signed
        self._begins, self._ends, self._repeats = begins, ends, repeats
        self._writers: dict[str, _Writer] = {}
        self._report = Report()

    def add(self, entries: Iterable[Entry]) -> None:
        """Check the next entries."""
        writers, count = self._writers, 0
        for entry in entries:
            count += 1
            values = columns(entry)
            name, number, _, *texts, previous, last = values
            writer = writers.get(entry.writer)
            try:
                follows = (
                    writer is not None
                    and number == writer.number + 1
                    and previous == writer.last
                    and last == digest_of(values)
                    and "".join((name, *texts)) is not None  # bytes would have been hashed as text
                )
            except (UnicodeEncodeError, TypeError):
                follows = False
            if writer is not None and follows:
                writer.number, writer.last = entry.number, entry.hash
                if number in writer.marks:
                    self._check_mark(entry, writer)
            else:
                self._examine(entry)
        self._report.entries += count

    def finish(self) -> Report:
        """Give what was found, once all entries were added."""
        report, signed = self._report, self._signed
        missing = [
            fault for name, (number, _) in signed.heads.items() if (fault := self._cut_off(name, number)) is not None
        ]
        for name, writer in self._writers.items():
            for number in list(writer.again)[:1]:
                self._fault(name, number, "came again, but not all that came behind it did: it may be another one")
        report.faults += missing[:_MOST_FAULTS]
        if len(missing) > _MOST_FAULTS:
            name, rest = missing[_MOST_FAULTS].writer, len(missing) - _MOST_FAULTS
            report.faults.append(Fault(name, missing[_MOST_FAULTS].number, f"cut off or removed, as are {rest} in all"))
        report.writers = len(self._writers)
        report.unnamed = len(self._writers.keys() - signed.heads.keys())
        for name, writer in self._writers.items():
            head, _ = signed.heads.get(name, (0, ""))
            report.unsigned += max(writer.number - max(head, writer.began), 0)
            dropped, _ = signed.dropped.get(name, (0, ""))
            report.left += max(min(dropped, writer.number) - writer.began, 0)
        return report

    def _cut_off(self, name: str, number: int) -> Fault | None:
        writer = self._writers.get(name)
        have = writer.number if writer else self._signed.dropped.get(name, (0, ""))[0]
        if have >= number or self._ends or (writer is None and self._begins):
            return None
        what = f"the last one here is {have}" if have else "none is here"
        return Fault(name, have + 1, f"cut off or removed: {number} entries were signed for, and {what}")

    def _examine(self, entry: Entry) -> None:
        """Look at an entry that is not the plain successor of one before it."""
        if tuple(map(type, columns(entry))) != ENTRY_TYPES:
            known = self._writers.get(entry.writer) if type(entry.writer) is str else None
            number = known.number + 1 if known else 1
            self._fault(str(entry.writer), number, "was changed: a column is of another type")
            if known is not None and type(entry.hash) is bytes:
                known.number, known.last = number, entry.hash
            return
        name, sound = entry.writer, _sound(entry)
        if not sound and len(self._report.faults) < _MOST_FAULTS:
            name = self._true_writer(entry) or name
        writer = self._writers.get(name)
        if writer is None:
            writer = self._writers[name] = self._begin(name, entry)
        expected = writer.number + 1
        if not sound:
            also = "" if (entry.writer, entry.number) == (name, expected) else ", and says that it is another"
            self._fault(name, expected, f"was changed{also}")
        elif entry.number > expected:
            more = f", with {entry.number - expected - 1} behind it," if entry.number > expected + 1 else ""
            self._fault(name, expected, f"was removed{more} or moved: entry {entry.number} stands in its place")
            if len(writer.missing) < _MOST_FAULTS:
                writer.missing.append(range(expected, entry.number))
            expected = entry.number
        elif entry.number < expected and self._repeats and self._again(entry, writer):
            return
        elif entry.number < expected:
            moved = any(entry.number in gap for gap in writer.missing)
            problem = "was moved behind" if moved else "was inserted: there is another of its number before"
            self._fault(name, entry.number, f"{problem} entry {writer.number}" if moved else problem)
            return
        elif entry.previous != writer.last:
            self._fault(name, expected, "does not follow the entry before it: one of them was inserted or exchanged")
        writer.number, writer.last = expected, entry.hash
        if sound and expected in writer.marks:
            self._check_mark(entry, writer)

    def _again(self, entry: Entry, writer: _Writer) -> bool:
        """Say whether this may have come before: it is known once the last one that came, comes again behind it."""
        again, number = writer.again, entry.number
        if again and again.get(number) != entry.hash and again.get(number - 1) != entry.previous:
            return False
        if number < writer.number:
            again[number] = entry.hash
            return True
        again.clear()
        return entry.hash == writer.last

    def _begin(self, name: str, entry: Entry) -> _Writer:
        """Say where the chain of a writer begins here: after what was dropped, as a signed statement says."""
        marks = self._signed.marks.get(name, {})
        dropped, last = self._signed.dropped.get(name, (0, ""))
        if entry.number > 1 and (entry.number <= dropped or (self._begins and entry.number != dropped + 1)):
            return _Writer(entry.number - 1, entry.previous, marks)
        return _Writer(0, b"", marks) if entry.number == 1 else _Writer(dropped, bytes.fromhex(last), marks)

    def _true_writer(self, entry: Entry) -> str | None:
        """Say whose entry this is, if nothing but the writer was changed."""
        for name in {**self._writers, **self._signed.heads}:
            if _sound(msgspec.structs.replace(entry, writer=name)):
                return name
        return None

    def _check_mark(self, entry: Entry, writer: _Writer) -> None:
        if writer.marks[entry.number] != entry.hash.hex():
            sound = [number for number in writer.marks if number < entry.number]
            since = f"it, or one behind entry {max(sound)}," if sound else "it, or one before it,"
            self._fault(entry.writer, entry.number, f"is not the entry that was signed for: {since} was rewritten")

    def _fault(self, writer: str, number: int, problem: str) -> None:
        if len(self._report.faults) < _MOST_FAULTS:
            self._report.faults.append(Fault(writer, number, problem))


def verify(entries: Iterable[Entry], heads: Heads | Signed) -> Report:
    """Check *entries*, all of them, in the order in which they lie, against each other and what was signed."""
    verification = Verification(heads if isinstance(heads, Signed) else Signed.of(heads))
    verification.add(entries)
    return verification.finish()


def _sound(entry: Entry) -> bool:
    """Say whether the hash of *entry* is that of its columns."""
    try:
        return entry.hash == digest(entry)
    except UnicodeEncodeError:
        return False


class Copy:
    """Remember what a copy of the log says of each entry, in eight bytes, to hold another copy against it."""

    def __init__(self) -> None:
        self._writers: dict[str, tuple[int, bytearray]] = {}

    def add(self, entries: Iterable[Entry]) -> None:
        """Remember *entries*, each writer's without gaps."""
        for entry in entries:
            _, hashes = self._writers.setdefault(entry.writer, (entry.number, bytearray()))
            hashes += entry.hash[:8]

    def contradicted(self, entries: Iterable[Entry]) -> Fault | None:
        """Give the first of *entries* that this copy has otherwise."""
        for entry in entries:
            first, hashes = self._writers.get(entry.writer, (1, b""))
            place = 8 * (entry.number - first)
            if 0 <= place < len(hashes) and hashes[place : place + 8] != entry.hash[:8]:
                return Fault(entry.writer, entry.number, "is another one in the other copy")
        return None
