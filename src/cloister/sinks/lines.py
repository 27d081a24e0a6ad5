"""A file of JSON lines as a destination: whole lines alone, rotated by size, for several processes at once."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from cloister import files
from cloister.alarms import Alarm
from cloister.audit import Entry
from cloister.errors import ConfigurationError
from cloister.model import from_micros
from cloister.sinks.base import Record, SinkError, check_severity, line

_TRIES, _PAUSE = 50, 0.02
_BLOCK = 1 << 16


class LineFile:
    """Append records to the file at *path*, on the disk before they count as delivered.

    Where a file is not the whole log, its first line says so, as that of an export does, so that it can be verified.
    A file that would grow beyond *rotate* bytes becomes ``path.1``, the one before ``path.2`` and so on; *keep* of
    these stay.
    """

    def __init__(
        self, path: str | os.PathLike[str], severity: str = "info", *, rotate: int = 100_000_000, keep: int = 5
    ) -> None:
        if rotate < 1 or keep < 1:
            raise ConfigurationError("a file of entries is rotated at a size from 1 byte on, and keeps at least 1 more")
        self.path = Path(path).absolute()
        self.severity = check_severity(severity)
        self._rotate = rotate
        self._keep = keep

    @property
    def name(self) -> str:
        return f"file:{self.path}"

    async def deliver(self, records: Sequence[Record]) -> None:
        await asyncio.to_thread(self._append, records)

    async def close(self) -> None:
        pass

    def _append(self, records: Sequence[Record]) -> None:
        data = b"".join(line(record).encode() + b"\n" for record in records)
        first = self._first(records, rotated=False)
        try:
            while not self._appended(data, first):
                first = self._first(records, rotated=True)
        except OSError as error:
            raise SinkError(f"{self.path} cannot be written: {error.strerror}") from None

    def _first(self, records: Sequence[Record], *, rotated: bool) -> bytes:
        """Give the first line of a file that begins with *records*: what it leaves out, nothing if that is nothing."""
        said = {} if self.severity == "info" else {"severity": self.severity}
        if rotated:
            at = next((record.at for record in records if isinstance(record, Entry | Alarm)), None)
            said["since"] = (datetime.now(UTC) if at is None else from_micros(at)).isoformat()
        return msgspec.json.encode({"export": said}) + b"\n" if said else b""

    def _appended(self, data: bytes, first: bytes) -> bool:
        """Write *data*, or move the file out of the way and say that it is still to be written."""
        with _opened_alone(self.path) as file:
            end = _end_of_lines(file)
            if end and end + len(data) > self._rotate:
                self._move()
                return False
            data = data if end else first + data
            file.truncate(end)  # what stands behind the last whole line was never acknowledged
            file.seek(end)
            if file.write(data) != len(data):
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
            if not end:
                files.sync_folder(self.path)
            return True

    def _move(self) -> None:
        for number in range(self._keep - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{self.path}.{number}", f"{self.path}.{number + 1}")
        os.replace(self.path, f"{self.path}.1")


@contextlib.contextmanager
def _opened_alone(path: Path) -> Iterator[io.FileIO]:
    """Open *path* with no other process writing it meanwhile; `SinkError` where one does not come to an end."""
    for _ in range(_TRIES):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o600)
        with io.FileIO(descriptor, "r+") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise SinkError(f"{path} is not a file", slow=True)
            if _locked(file):
                # Whoever had the lock before may have moved the file out of the way.
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                        yield file
                        return
                continue
        time.sleep(_PAUSE)
    raise SinkError(f"{path} is being written by another process that does not come to an end")


def _locked(file: io.FileIO) -> bool:
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _end_of_lines(file: io.FileIO) -> int:
    """Give where the last whole line ends."""
    end = file.seek(0, os.SEEK_END)
    while end:
        begin = max(end - _BLOCK, 0)
        file.seek(begin)
        found = file.read(end - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0
