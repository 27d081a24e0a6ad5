"""Where audit heads are kept: outside the store's entries, so that a cut-off log shows."""

from __future__ import annotations

import base64
import contextlib
import errno
import io
import os
import secrets
from datetime import datetime
from pathlib import Path
from typing import Protocol

from cloister import files
from cloister.audit import AuditKey, Heads, Signed, read_heads
from cloister.errors import ConfigurationError, StoreUnavailable

_COMPACT = 1 << 16  # bytes: some hundred lines, each of which the next one repeats


class HeadSink(Protocol):
    """Keeps signed heads. What was kept once is never taken back."""

    def keep(self, heads: Heads, now: datetime) -> None: ...

    def read(self) -> Signed:
        """Give what was signed for."""
        ...

    def newest(self) -> str | None:
        """Give the last line that was kept, which says all that earlier ones do."""
        ...


class HeadFile:
    """Append signed heads to a file of JSON lines. Each line repeats all that earlier lines have signed for."""

    def __init__(self, path: Path, key: AuditKey) -> None:
        self.path = path
        self.key = key
        self._newest: tuple[tuple[int, ...], str | None] = (), None

    def read(self) -> Signed:
        """Give what the file's lines say, and what is wrong with them."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return Signed()
        except OSError as error:
            raise StoreUnavailable(f"the audit heads in {self.path} cannot be read: {error.strerror}") from None
        return read_heads(_lines(data), self.key.public)

    def newest(self) -> str | None:
        """Give the last line, whichever process wrote it; None if there is none, or it cannot be read."""
        try:
            found = self.path.stat()
            state = found.st_ino, found.st_size, found.st_mtime_ns
            if state != self._newest[0]:
                self._newest = state, next(reversed(_lines(self.path.read_bytes())), None)
        except OSError:
            return None
        return self._newest[1]

    def keep(self, heads: Heads, now: datetime) -> None:
        """Sign for *heads* if they say more than the file does; `StoreUnavailable` if it cannot be written."""
        self._sign(Signed(heads), now)

    def drop(self, dropped: Heads, entries: int, now: datetime) -> None:
        """Sign that the log begins behind *dropped* from now on, which is *entries* fewer than before."""
        self._sign(Signed(dropped=dropped, entries=entries), now)

    def _sign(self, news: Signed, now: datetime) -> None:
        try:
            with files.opened_alone(self.path) as file:
                data = file.read()
                known = read_heads(_lines(data), self.key.public)
                said = _line(self.key, known, news, now)
                if said is None and data:
                    return
                line = (said or self.key.sign({}, now)).encode() + b"\n"
                if len(data) > _COMPACT and not known.problems:
                    files.overwrite(self.path, line)
                else:
                    # What stands behind the last whole line was being written when a process died.
                    _append(file, data.rfind(b"\n") + 1, line)
        except OSError as error:
            raise StoreUnavailable(f"the audit heads cannot be written to {self.path}: {error.strerror}") from None
        except ConfigurationError as error:
            raise StoreUnavailable(str(error)) from None


def _line(key: AuditKey, known: Signed, news: Signed, now: datetime) -> str | None:
    """Give the line that says what is *known* and the *news*; None if there are none."""
    heads, dropped = _newer(known.heads, news.heads), _newer(known.dropped, news.dropped)
    if not heads and not dropped:
        return None
    dropped = known.dropped | dropped
    # Where all of a writer's entries were dropped, that says how far it had come.
    heads = {writer: head for writer, head in (known.heads | heads).items() if dropped.get(writer) != head}
    return key.sign(heads, now, dropped, known.entries + news.entries)


def _newer(known: Heads, heads: Heads) -> Heads:
    return {writer: head for writer, head in heads.items() if head[0] > known.get(writer, (0, ""))[0]}


def _lines(data: bytes) -> list[str]:
    """Give the whole lines of *data*."""
    return data.decode(errors="replace").split("\n")[:-1]


def _append(file: io.FileIO, end: int, line: bytes) -> None:
    file.truncate(end)
    file.seek(end)
    if file.write(line) != len(line):
        file.truncate(end)
        raise OSError(errno.ENOSPC, "the disk is full")
    os.fsync(file.fileno())


class HeadList:
    """Keep signed heads in memory, for a store that ends with the process."""

    def __init__(self, key: AuditKey) -> None:
        self.key = key
        self.lines: list[str] = []

    def read(self) -> Signed:
        """Give what was signed."""
        return read_heads(self.lines, self.key.public)

    def newest(self) -> str | None:
        """Give the line."""
        return next(reversed(self.lines), None)

    def keep(self, heads: Heads, now: datetime) -> None:
        """Sign for *heads*."""
        self._sign(Signed(heads), now)

    def drop(self, dropped: Heads, entries: int, now: datetime) -> None:
        """Sign that the log begins behind *dropped* from now on, which is *entries* fewer than before."""
        self._sign(Signed(dropped=dropped, entries=entries), now)

    def _sign(self, news: Signed, now: datetime) -> None:
        if (line := _line(self.key, self.read(), news, now)) is not None:
            self.lines = [line]


def audit_key(path: Path, heads: Path | None = None) -> AuditKey:
    """Read the audit key in the file at *path*, or make one there, unless *heads* were signed with one already."""
    if heads is not None and not path.exists() and heads.exists() and heads.stat().st_size:
        raise ConfigurationError(
            f"the audit log was signed with a key that should lie in {path}, and does not: put it back, or name it "
            f"with CLOISTER_AUDIT_KEY_FILE or open(audit_key=…). To begin anew, move {heads} away and keep it"
        )
    if not path.exists():
        with contextlib.suppress(FileExistsError):  # made by another process in this very moment
            files.write_new(path, base64.urlsafe_b64encode(secrets.token_bytes(32)) + b"\n")
    return AuditKey.from_text(files.read_secret(path, "audit key"))
