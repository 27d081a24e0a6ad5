"""What a destination is: something that takes entries, alarms and signed heads, or says that it could not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, NamedTuple, Protocol

import msgspec

from cloister.alarms import Alarm
from cloister.audit import SEVERITIES, Entry
from cloister.errors import ConfigurationError
from cloister.model import from_micros

_escaped = json.JSONEncoder(separators=(",", ":")).encode


class SignedHeads(NamedTuple):
    """Be a line that states how far the writers of the log had come, signed with the audit key."""

    line: str


class Beginning(NamedTuple):
    """Say that the log has entries from before *since* that a destination is not given: it was not there yet."""

    since: int


Record = Entry | Alarm | SignedHeads | Beginning


class SinkError(Exception):
    """Say that a destination did not take what it was given; the text is put on record, so it carries no secret.

    ``after`` is how many seconds it asks to be left alone; ``slow`` says that it will hardly be otherwise soon.
    """

    def __init__(self, message: str, *, after: float | None = None, slow: bool = False) -> None:
        super().__init__(message)
        self.after = after
        self.slow = slow


class Sink(Protocol):
    """Take what is on record to somewhere else. Anything with these names is a destination."""

    @property
    def name(self) -> str:
        """Tell it from others, in messages and on record; without secrets, and the same after a restart."""
        ...

    @property
    def severity(self) -> str:
        """Name the least severity, one of `SEVERITIES`, of what it is given.

        At ``alert`` that is alarms alone, which are for people. Below, it is given every entry from that severity on,
        and signed heads.
        """
        ...

    async def deliver(self, records: Sequence[Record]) -> None:
        """Take *records*, which are entries, or one of anything else; raise if that failed.

        What raised, or did not come to an end in time, is given again, whole.
        """
        ...

    async def close(self) -> None: ...


def line(record: Record) -> str:
    """Give a record as one line of JSON, in printable ASCII whatever it carries."""
    return _escaped(_said(record)).replace("\x7f", "\\u007f")


def delivery_id(records: Sequence[Record]) -> str:
    """Name what is delivered at once, the same whenever it comes again."""
    last = records[-1]
    if isinstance(last, SignedHeads):
        said = last.line.encode(errors="replace")
        return f"heads-{sha256(said).hexdigest()[:32]}"
    if isinstance(last, Beginning):
        return f"beginning-{last.since}"
    return _printable(f"{'alarm' if isinstance(last, Alarm) else 'entries'}-{last.writer}-{last.number}")


def check_severity(severity: str) -> str:
    """Give *severity* back if it is one; else raise `ConfigurationError`."""
    if severity not in SEVERITIES:
        raise ConfigurationError(f"the severity of a destination is one of {', '.join(SEVERITIES)}, not {severity!r}")
    return severity


def _said(record: Record) -> dict[str, Any]:
    if isinstance(record, SignedHeads):
        return {"heads": record.line}
    if isinstance(record, Beginning):
        return {"export": {"since": from_micros(record.since).isoformat()}}
    if isinstance(record, Alarm):
        alarm = msgspec.to_builtins(record)
        return {"alarm": {**alarm, "at": from_micros(record.at).isoformat()}}
    # As the log's own file has it, so that a copy verifies: bytes in base64, everything else as it is.
    entry: dict[str, Any] = msgspec.to_builtins(record)
    return entry


def _printable(text: str) -> str:
    return "".join(character if "!" <= character <= "~" else "?" for character in text)[:200]
