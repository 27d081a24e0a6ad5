"""Small files that hold secrets: whole or absent, and for their owner alone."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from cloister.errors import ConfigurationError

_MOST = 1 << 20
_MADE_BY = {"key file": "cloister keys new", "audit key": "cloister keys new --audit"}


def read_secret(path: Path, what: str) -> str:
    """Read a file of ASCII text that only its owner may read, or raise `ConfigurationError`; *what* names it."""
    try:
        # Not blocking, as it might be a pipe that nobody writes to.
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigurationError(f"the {what} {path} is not a file")
            data = file.read(_MOST + 1)
    except FileNotFoundError:
        made_by = _MADE_BY.get(what)
        mend = f": put it back from a copy, or for a new store make one: {made_by}" if made_by else ""
        raise ConfigurationError(f"the {what} {path} does not exist{mend}") from None
    except OSError as error:
        raise ConfigurationError(f"the {what} {path} cannot be read: {error.strerror}") from None
    if os.name == "posix" and mode & 0o077:
        raise ConfigurationError(f"the {what} {path} can be read by others; run `chmod 600 {path}`")
    if len(data) > _MOST:
        raise ConfigurationError(f"{path} is larger than any {what} of cloister")
    try:
        return data.decode("ascii")
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not a {what} of cloister") from None


def write_new(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, since another process may be reading it; `FileExistsError` if it is there."""
    fresh = _write_beside(path, data)
    try:
        os.link(fresh, path)
    except FileExistsError:
        raise FileExistsError(f"{path} exists already; it was left as it is") from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        fresh.unlink()
    sync_folder(path)


def overwrite(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Replace a file, or what a link of that name leads to, by another: whole or not at all."""
    target = Path(os.path.realpath(path))
    fresh = _write_beside(target, data)
    try:
        os.replace(fresh, target)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from None
    sync_folder(target)


@contextlib.contextmanager
def opened_alone(path: Path) -> Iterator[io.FileIO]:
    """Open *path* with no other process writing it meanwhile; the lock goes with the file."""
    while True:
        with io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
            if sys.platform != "win32":
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX)
            # Whoever held the lock before may have put another file in this one's place.
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                yield file
                return


def _write_beside(path: Path, data: bytes | Iterable[bytes]) -> Path:
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        fresh.unlink(missing_ok=True)  # half a file of secrets is no file
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from None
    return fresh


def sync_folder(path: Path) -> None:
    """Make sure that a crash does not undo the creation of *path*."""
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
