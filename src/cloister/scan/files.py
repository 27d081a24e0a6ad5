"""The lines of transcripts: read twice, first to see what is there, then in the order in which it was said."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import sys
import tempfile
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from cloister.model import Owner
from cloister.scan.transcripts import Fields, Message, Unreadable, read

LONGEST_LINE = 1 << 24
"""How many bytes a line has at most."""
MOST_FAULTS = 20
"""How many of the lines that cannot be read are named."""
_STEP = 500  # lines, or messages, between two steps of a progress bar
_KEPT = 1 << 24  # bytes, or so, of lines that are kept taken apart while they are read in the order of time

Done = Callable[[int], None]


class Broken(Exception):
    """Say why a file cannot be scanned at all."""


class Place(NamedTuple):
    """Be where something was said: in which file, on which line, in which message of that."""

    file: int
    line: int
    message: int


class Said(NamedTuple):
    """Be one text of a transcript, whose conversation it is part of, and where it stands."""

    message: Message
    owner: Owner
    conversation: int
    place: Place


class Source:
    """Be one file, plain or packed, or standard input, which is copied to a file without a name."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.name = "standard input" if path is None else str(path)
        self._copied: BinaryIO | None = None
        if path is None:
            self._copied = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 (read until the scan is over)
            shutil.copyfileobj(sys.stdin.buffer, self._copied)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        if self._copied is not None:
            self._copied.close()

    def size(self) -> int:
        """Give how many bytes there are to read, packed as they are."""
        if self._copied is not None:
            return self._copied.seek(0, os.SEEK_END)
        assert self.path is not None
        return self.path.stat().st_size

    def lines(self, done: Done = lambda _: None) -> Iterator[tuple[int, int, bytes | None]]:
        """Give number, place and bytes of each line; None for one that is too long. Empty ones are passed over."""
        raw, lines = self._open()
        told = 0
        number = 0
        try:
            while True:
                at = lines.tell()
                line: bytes | None = lines.readline(LONGEST_LINE + 1)
                if not line:
                    break
                number += 1
                if len(line) > LONGEST_LINE:
                    while line and not line.endswith(b"\n"):
                        line = lines.readline(LONGEST_LINE)
                    line = None
                elif number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if number % _STEP == 0:
                    done(raw.tell() - told)
                    told = raw.tell()
                if line is None or not line.isspace():
                    yield number, at, line
        except (EOFError, gzip.BadGzipFile, zlib.error):
            raise Broken(f"{self.name} is packed, and damaged behind line {number}: unpack what can be saved") from None
        finally:
            done(raw.tell() - told)
            self.close(raw, lines)

    def seekable(self) -> BinaryIO:
        """Give the lines for reading them in any order."""
        raw, lines = self._open()
        if lines is raw:
            return raw
        copied = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 (the caller closes it)
        shutil.copyfileobj(lines, copied)
        self.close(raw, lines)
        return copied

    def close(self, *opened: BinaryIO) -> None:
        """Close what was opened here; standard input is read again."""
        for each in reversed(opened):
            if each is not self._copied:
                each.close()

    def _open(self) -> tuple[BinaryIO, BinaryIO]:
        """Open the bytes as they lie, and the lines in them."""
        if self._copied is not None:
            raw = self._copied
        else:
            assert self.path is not None
            raw = self.path.open("rb")
        raw.seek(0)
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if not packed:
            return raw, raw
        return raw, cast(BinaryIO, io.BufferedReader(gzip.GzipFile(fileobj=raw, mode="rb")))


@dataclass(slots=True)
class Fault:
    """Be a line, or a message on it, that cannot be read."""

    file: str
    line: int
    why: str


@dataclass
class Survey:
    """Be what there is to scan: how much, whose, and in which order."""

    sources: Sequence[Source]
    fields: Fields
    key: bytes
    messages: int = 0
    replies: int = 0
    lines: int = 0
    unreadable: int = 0
    faults: list[Fault] = field(default_factory=list)
    timed: int = 0
    in_order: bool = True
    owners: dict[int, Owner] = field(default_factory=dict)
    tenants: set[str | None] = field(default_factory=set)
    left: dict[int, int] = field(default_factory=dict)
    """How many texts each conversation has."""
    whose: dict[int, Owner] = field(default_factory=dict)
    """Whose a conversation is, where it is somebody's."""
    shared: set[int] = field(default_factory=set)
    """Conversations in which several users speak."""
    _times: array[float] = field(default_factory=lambda: array("d"))
    _lines: array[int] = field(default_factory=lambda: array("Q"))
    _parts: array[int] = field(default_factory=lambda: array("I"))
    _starts: array[int] = field(default_factory=lambda: array("Q"))
    _numbers: array[int] = field(default_factory=lambda: array("I"))
    _files: array[int] = field(default_factory=lambda: array("H"))

    @property
    def by_time(self) -> bool:
        """Say whether every message has a time."""
        return self.timed == self.messages

    @property
    def nameless(self) -> int:
        """Give how many conversations name no user."""
        return len(self.left) - len(self.whose)

    # --- the first reading --------------------------------------------------------------------------------------------

    def take(self, done: Done) -> None:
        """Read everything once."""
        for file, source in enumerate(self.sources):
            before, lines = self.messages, self.lines
            for number, at, line in source.lines(done):
                self.lines += 1
                self._note_line(file, number, at)
                readable = self._take_line(file, number, line)
                self.unreadable += not readable
            if self.messages == before:
                raise Broken(_nothing(source.name, self.lines - lines, self.faults))
        if not self.replies:
            # To call this clean would be a mistake that nobody notices.
            raise Broken("there is no reply of an assistant to judge; --field role=NAME says where the role stands")

    def _take_line(self, file: int, number: int, line: bytes | None) -> bool:
        """Take one line; say whether all of it could be read."""
        readable = True
        for part, found in enumerate(_parsed(line, self.fields)):
            if isinstance(found, str):
                if len(self.faults) < MOST_FAULTS:
                    self.faults.append(Fault(self.sources[file].name, number, found))
                readable = False
                continue
            conversation = self._conversation(found, file, number)
            self.left[conversation] = self.left.get(conversation, 0) + 1
            self.tenants.add(found.tenant)
            if found.user is not None:
                owner = self._owner(found.tenant, found.user)
                if self.whose.setdefault(conversation, owner) != owner:
                    self.shared.add(conversation)
            self._note_time(found.time, part)
            self.messages += 1
            self.replies += found.role == "assistant" and not found.call
        return readable

    def _note_line(self, file: int, number: int, at: int) -> None:
        if self.by_time:
            self._starts.append(at)
            self._numbers.append(number)
            self._files.append(file)

    def _note_time(self, time: float | None, part: int) -> None:
        if time is None or not self.by_time:
            self.timed += time is not None
            # One without a time, and all are taken as they lie.
            for column in (self._times, self._lines, self._parts, self._starts, self._numbers, self._files):
                del column[:]
            return
        if self._times and time < self._times[-1]:
            self.in_order = False
        self.timed += 1
        self._times.append(time)
        self._lines.append(len(self._starts) - 1)
        self._parts.append(part)

    # --- the second reading -------------------------------------------------------------------------------------------

    def replay(self, done: Done) -> Iterator[Said]:
        """Give everything in the order in which it was said: that of time, where all messages have one."""
        speaking: dict[int, Owner] = {}
        ahead = 0
        for file, number, message in self._sorted() if self.by_time and not self.in_order else self._as_it_lies():
            conversation = self._conversation(message, file, number)
            yield Said(
                message,
                self._speaker(message, conversation, speaking),
                conversation,
                Place(file, number, message.number),
            )
            ahead += 1
            if ahead == _STEP:
                done(ahead)
                ahead = 0
        done(ahead)

    def _as_it_lies(self) -> Iterator[tuple[int, int, Message]]:
        for file, source in enumerate(self.sources):
            for number, _, line in source.lines():
                for message in _parsed(line, self.fields):
                    if not isinstance(message, str):
                        yield file, number, message

    def _sorted(self) -> Iterator[tuple[int, int, Message]]:
        with ExitStack() as stack:
            opened = []
            for source in self.sources:
                opened.append(source.seekable())
                stack.callback(source.close, opened[-1])
            yield from self._in_time(opened)

    def _in_time(self, opened: Sequence[BinaryIO]) -> Iterator[tuple[int, int, Message]]:
        kept: OrderedDict[int, tuple[int, list[Message | str]]] = OrderedDict()
        size = 0
        for n in sorted(range(self.messages), key=self._times.__getitem__):
            at = self._lines[n]
            file = self._files[at]
            if at in kept:
                kept.move_to_end(at)
            else:
                opened[file].seek(self._starts[at])
                line = opened[file].readline(LONGEST_LINE + 1)
                parts = list(_parsed(line.removeprefix(b"\xef\xbb\xbf"), self.fields))
                kept[at] = len(line) + 500 * len(parts), parts
                size += kept[at][0]
                while size > _KEPT and len(kept) > 1:
                    size -= kept.popitem(last=False)[1][0]
            parts = kept[at][1]
            message = parts[self._parts[n]] if self._parts[n] < len(parts) else None
            if not isinstance(message, Message):
                raise Broken(f"{self.sources[file].name} was changed while it was read: scan it again")
            yield file, self._numbers[at], message

    # --- who is who ---------------------------------------------------------------------------------------------------

    def label(self, *parts: object) -> int:
        """Give a number for a name: names themselves are kept nowhere."""
        said = repr(parts).encode("utf-8", "surrogatepass")
        return int.from_bytes(blake2b(said, digest_size=8, key=self.key).digest(), "big")

    def _conversation(self, message: Message, file: int, line: int) -> int:
        if message.session is not None:
            return self.label("session", message.tenant, message.session)
        if message.own_line:
            return self.label("line", file, line)
        return self.label("user's", message.tenant, message.user)

    def _owner(self, tenant: str | None, user: str) -> Owner:
        number = self.label("user", tenant, user)
        owner = self.owners.get(number)
        if owner is None:
            whose = None if tenant is None else f"{self.label('tenant', tenant):016x}"
            owner = self.owners[number] = Owner(whose, f"{number:016x}")
        return owner

    def _speaker(self, message: Message, conversation: int, speaking: dict[int, Owner]) -> Owner:
        """Say whose conversation a message is part of: where several speak, that of who spoke last."""
        shared = conversation in self.shared
        if message.user is not None:
            owner = self._owner(message.tenant, message.user)
            if shared:
                speaking[conversation] = owner
            return owner
        if shared and conversation in speaking:
            return speaking[conversation]
        known = self.whose.get(conversation)
        if known is not None:
            return known
        whose = None if message.tenant is None else f"{self.label('tenant', message.tenant):016x}"
        return Owner(whose, f"{conversation:016x}")


def _parsed(line: bytes | None, fields: Fields) -> Iterator[Message | str]:
    """Give the messages of a line, and why one, or the whole line, cannot be read."""
    if line is None:
        yield f"is longer than {LONGEST_LINE:,} bytes"
        return
    try:
        yield from read(line, fields)
    except Unreadable as why:
        yield str(why)


def _nothing(name: str, lines: int, faults: Sequence[Fault]) -> str:
    if not lines:
        return f"{name} is empty"
    first = next((fault for fault in faults if fault.file == name), None)
    why = f"; line {first.line} {first.why}" if first else ""
    return (
        f"{name} has no line that can be read{why}. A line is a message or a conversation, in JSON: see docs/leaks.md"
    )
