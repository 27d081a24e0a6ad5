"""Where audit heads go: outside the store's entries, so that a cut-off log shows."""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
from datetime import datetime
from pathlib import Path
from typing import Protocol

from cloister import files
from cloister.audit import AuditKey, Heads, read_heads
from cloister.errors import StoreUnavailable


class HeadSink(Protocol):
    """Keeps signed heads. What was kept once is never taken back."""

    def keep(self, heads: Heads, now: datetime) -> None: ...


class HeadFile:
    """Append signed heads to a file of JSON lines. Each line repeats all that earlier lines have signed for."""

    def __init__(self, path: Path, key: AuditKey) -> None:
        self.path = path
        self.key = key

    def read(self) -> tuple[Heads, list[str]]:
        """Give the furthest head of each writer, and what is wrong with the file's lines."""
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return {}, []
        # A line without an end was being written when the process died.
        return read_heads(text.split("\n")[:-1], self.key.public)

    def keep(self, heads: Heads, now: datetime) -> None:
        """Sign for *heads* if they say more than the file does; `StoreUnavailable` if it cannot be written."""
        known, _ = self.read()
        merged = known | {writer: head for writer, head in heads.items() if head[0] > known.get(writer, (0, ""))[0]}
        if merged == known:
            return
        line = self.key.sign(merged, now) + "\n"
        try:
            # One write to a file opened for appending: lines of several processes do not mix.
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(descriptor, line.encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StoreUnavailable(f"the audit heads cannot be written to {self.path}: {error.strerror}") from None


class HeadList:
    """Keep signed heads in memory, for a store that ends with the process."""

    def __init__(self, key: AuditKey) -> None:
        self.key = key
        self.lines: list[str] = []

    def read(self) -> tuple[Heads, list[str]]:
        """Give the furthest head of each writer."""
        return read_heads(self.lines, self.key.public)

    def keep(self, heads: Heads, now: datetime) -> None:
        """Sign for *heads*."""
        self.lines = [self.key.sign(heads, now)]


def audit_key(path: Path) -> AuditKey:
    """Read the audit key in the file at *path*, or make one there."""
    if not path.exists():
        with contextlib.suppress(FileExistsError):  # made by another process in this very moment
            files.write_new(path, base64.urlsafe_b64encode(secrets.token_bytes(32)) + b"\n")
    return AuditKey.from_text(files.read_secret(path, "audit key"))
