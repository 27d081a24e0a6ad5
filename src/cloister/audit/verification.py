"""Verification: entries against each other, and against signed heads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from cloister.audit.chain import ENTRY_TYPES, Chain, Entry, Heads, columns, digest


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
    """Say what a verification found. ``unsigned`` counts entries that no signed head covers yet."""

    entries: int = 0
    writers: int = 0
    unsigned: int = 0
    faults: list[Fault] = field(default_factory=list)


_MOST_FAULTS = 20


class Verification:
    """Check entries, in the order in which they lie, against each other and against signed *heads*."""

    def __init__(self, heads: Heads) -> None:
        self._heads = heads
        self._chains: dict[str, Chain] = {}
        self._signed: dict[str, str] = {}
        self._report = Report()

    def add(self, entry: Entry) -> None:
        """Check the next entry."""
        report = self._report
        report.entries += 1
        if tuple(map(type, columns(entry))) != ENTRY_TYPES:
            if len(report.faults) < _MOST_FAULTS:
                report.faults.append(Fault(str(entry.writer), report.entries, "was changed: a column of another type"))
            return
        chain = self._chains.get(entry.writer) or Chain(entry.writer)
        problem = _problem(entry, chain)
        if problem and len(report.faults) < _MOST_FAULTS:
            report.faults.append(Fault(entry.writer, entry.number, problem))
        self._chains[entry.writer] = Chain(entry.writer, entry.number, entry.hash)
        signed, _ = self._heads.get(entry.writer, (0, ""))
        if entry.number == signed:
            self._signed[entry.writer] = entry.hash.hex()
        report.unsigned += entry.number > signed

    def finish(self) -> Report:
        """Give what was found, once all entries were added."""
        report = self._report
        for writer, (number, last) in self._heads.items():
            if number and writer not in self._signed:
                have = self._chains.get(writer, Chain(writer)).number
                problem = f"cut off or removed: {number} entries were signed for, and the last one here is {have}"
                report.faults.append(Fault(writer, have + 1, problem))
            elif number and self._signed[writer] != last:
                report.faults.append(Fault(writer, number, "is not the entry that was signed for"))
        report.writers = len(self._chains)
        return report


def verify(entries: Iterable[Entry], heads: Heads) -> Report:
    """Check *entries*, all of them, in the order in which they lie, against each other and against signed *heads*."""
    verification = Verification(heads)
    for entry in entries:
        verification.add(entry)
    return verification.finish()


def _problem(entry: Entry, chain: Chain) -> str | None:
    if entry.number != chain.number + 1:
        return f"out of order: entry {chain.number + 1} should stand here"
    if entry.previous != chain.last:
        return "does not follow the entry before it"
    try:
        same = entry.hash == digest(entry)
    except UnicodeEncodeError:
        same = False
    if not same:
        return "was changed"
    return None
