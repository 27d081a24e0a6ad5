"""Files of audit entries: written for whoever keeps or searches them, and verified without the store."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

import cloister
from cloister.audit import SEVERITIES, Copy, Entry, Event, Report, Verification, event, ocsf, read_heads
from cloister.auditing import Evidence, read_signed
from cloister.errors import ConfigurationError
from cloister.model import Owner, to_micros

_AT_ONCE = 1_000
_MOST = 20  # lines that are wrong


class Window(msgspec.Struct, frozen=True, omit_defaults=True):
    """Say what an export leaves out, on its first line; one of the whole log has no such line.

    Of each writer the entries from the first one on that was written at ``since`` or later, and before the first one
    that was written at ``until`` or later: without gaps, whatever a clock did. ``severity`` is the least.
    """

    since: datetime | None = None
    until: datetime | None = None
    severity: str | None = None


class _Between(msgspec.Struct):
    """Be a line that is no entry: a window, signed heads or an alarm."""

    export: Window | None = None
    heads: str | None = None
    alarm: dict[str, Any] | None = None


NAMES = {"owner": "owner_name", "other": "other_name"}
"""The fields of an exported entry that say whom its audit ids stand for. No hash covers them."""
_decode = msgspec.json.Decoder(Entry).decode
_decode_between = msgspec.json.Decoder(_Between).decode
_encode = msgspec.json.Encoder().encode
_ascii = json.JSONEncoder(separators=(",", ":")).encode
_FIELDS = frozenset(Entry.__struct_fields__)


class File:
    """Read a file of entries: what `cloister audit export` wrote, or a destination that takes every entry.

    ``named`` counts lines with names in them, ``wrong`` are lines that are not what was written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.named = 0
        self.wrong: list[str] = []
        with self._opened() as file:
            self.window = _between(file.readline()).export or Window()
        if self.window.severity is not None:
            raise ConfigurationError(
                f"{path} was exported with --severity: it lacks entries between others, so nothing can tell whether "
                "more are missing. Export without it, and verify that"
            )

    def heads(self) -> Iterator[str]:
        """Give the lines of signed heads that were delivered among the entries."""
        with self._opened() as file:
            for line in file:
                if line.startswith(b'{"heads"') and (heads := _between(line).heads) is not None:
                    yield heads

    def entries(self) -> Iterator[list[Entry]]:
        """Give the entries, many at a time."""
        found: list[Entry] = []
        with self._opened() as file:
            for number, line in enumerate(file, 1):
                try:
                    entry = _decode(line)
                except (msgspec.MsgspecError, UnicodeDecodeError):
                    self._pass_over(number, line)
                    continue
                if _encode(entry) != line[:-1]:
                    self._look(number, line)
                found.append(entry)
                if len(found) == _AT_ONCE:
                    yield found
                    found = []
        yield found

    def _pass_over(self, number: int, line: bytes) -> None:
        if _between(line) == _Between() and len(self.wrong) < _MOST:
            self.wrong.append(f"{self.path}, line {number}: is no entry")

    def _look(self, number: int, line: bytes) -> None:
        """Look at a line that is written in another way: it may say more than what its hash covers."""
        said = json.loads(line, object_pairs_hook=list)
        names = [name for name, _ in said]
        more = set(names) - _FIELDS
        self.named += bool(more)
        if len(set(names)) < len(names) or more - set(NAMES.values()):
            self.wrong.append(f"{self.path}, line {number}: says more than an entry does, which no hash covers")
            del self.wrong[_MOST:]

    @contextlib.contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        try:
            with self.path.open("rb") as file:
                yield file
        except OSError as error:
            raise ConfigurationError(f"{self.path} cannot be read: {error.strerror}") from None


class Selection:
    """Choose the entries of a window, in the order in which they lie."""

    def __init__(self, window: Window) -> None:
        self._since = None if window.since is None else to_micros(window.since)
        self._until = None if window.until is None else to_micros(window.until)
        self._least = SEVERITIES.index(window.severity) if window.severity else 0
        self._begun: set[str] = set()
        self._over: set[str] = set()

    def __call__(self, entry: Entry) -> bool:
        """Say whether *entry*, the next one, is to be exported."""
        return self._in_time(entry) and (entry.severity not in SEVERITIES[: self._least])

    def _in_time(self, entry: Entry) -> bool:
        at, writer = (entry.at if type(entry.at) is int else 0), entry.writer
        if self._since is not None and writer not in self._begun:
            if at < self._since:
                return False
            self._begun.add(writer)
        if self._until is not None and at >= self._until:
            self._over.add(writer)
        return writer not in self._over


def noted(window: Window, now: datetime, form: str, reason: str | None, *, names: bool) -> Event:
    """Say what goes on record of an export."""
    said: dict[str, str | bool | None] = {
        "format": form,
        "names": names or None,
        "reason": reason,
        "severity": window.severity,
        "since": window.since.isoformat() if window.since else None,
        "until": window.until.isoformat() if window.until else None,
    }
    return event("audit.exported", now, None, "", **{name: value for name, value in said.items() if value is not None})


def first_lines(window: Window, signed: str | None) -> list[str]:
    """Give the lines with which an export begins: what it leaves out, and how far the log is *signed* for."""
    lines = [] if window == Window() else [_printed(msgspec.to_builtins({"export": window}))]
    return lines if signed is None else [*lines, _printed({"heads": signed})]


def line(entry: Entry, names: Mapping[str, Owner] | None = None) -> str:
    """Give *entry* as a line of JSON, in printable ASCII; with *names*, say of whom it speaks too."""
    said = msgspec.to_builtins(entry)
    for role, name in NAMES.items():
        if names and (owner := names.get(getattr(entry, role))):
            said[name] = {"tenant": owner.tenant, "user": owner.user}
    return _printed(said)


def ocsf_line(entry: Entry, names: Mapping[str, Owner] | None = None) -> str:
    """Give *entry* as an event of the Open Cybersecurity Schema Framework, on one line of printable ASCII."""
    return _printed(ocsf.event_of(entry, cloister.__version__, names))


def _printed(said: object) -> str:
    return _ascii(said).replace("\x7f", "\\u007f")


def _between(line: bytes) -> _Between:
    """Give what stands between entries; nothing, if it is not what cloister writes."""
    try:
        return _decode_between(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _Between()


def evidence_about(file: File, heads: Sequence[Path], public: str | None) -> Evidence:
    """Read the signed heads in *file*, and the files *heads*.

    What was signed for after the last one in *file* itself is not to be found there.
    """
    if not heads and next(file.heads(), None) is None:
        unsigned = "no signed heads were named, so entries cut off the end would not show"
        return Evidence(unchecked=(f"{unsigned}: --heads FILE",))
    if public is None:
        raise ConfigurationError(
            "name the public key that signed the heads, as `cloister doctor` shows it: --public-key"
        )
    signed = read_heads(file.heads(), public, where=f"signed heads in {file.path}")
    signed = read_signed(heads, public, signed, until=signed.at)
    return Evidence(signed, signed.problems)


def verify_file(file: File, known: Evidence) -> tuple[Report, list[str]]:
    """Check a file of entries by itself, and give the report and everything that is wrong."""
    window = file.window
    verification = Verification(
        known.signed, begins=window.since is not None, ends=window.until is not None, repeats=True
    )
    for some in file.entries():
        verification.add(some)
    report = verification.finish()
    return report, [*map(str, report.faults), *file.wrong, *known.faults]


def contradictions(copies: Sequence[File]) -> list[str]:
    """Name the first entry of each file that an earlier one has otherwise. Each file must verify by itself."""
    found = []
    for number, first in enumerate(copies[:-1]):
        copy = Copy()
        for some in first.entries():
            copy.add(some)
        for other in copies[number + 1 :]:
            faults = (copy.contradicted(some) for some in other.entries())
            if fault := next(filter(None, faults), None):
                found.append(f"{fault} (in {first.path} and {other.path})")
    return found
