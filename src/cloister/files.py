"""Small files that hold secrets: whole or absent, and for their owner alone."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from cloister.errors import ConfigurationError

_MOST = 1 << 20


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
        raise ConfigurationError(f"the {what} {path} does not exist") from None
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


def overwrite(path: Path, data: bytes) -> None:
    """Replace a file, or what a link of that name leads to, by another: whole or not at all."""
    target = Path(os.path.realpath(path))
    fresh = _write_beside(target, data)
    try:
        os.replace(fresh, target)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from None
    sync_folder(target)


def _write_beside(path: Path, data: bytes) -> Path:
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
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
