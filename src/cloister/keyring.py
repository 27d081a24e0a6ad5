"""Master keys: made, kept in a file or handed over in the environment, added to and destroyed."""

from __future__ import annotations

import base64
import binascii
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, NoReturn

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister import files
from cloister.errors import ConfigurationError
from cloister.sealing import KEY_BYTES, after_name, fields, key_of, named, seal, subkey, unknown_key, unseal

_DERIVED_AT_MOST = 4_096  # every turn of a tenant wants the same few
_NAME = re.compile(r"(?=.{1,64}\Z)[-_]*[A-Za-z0-9][A-Za-z0-9_-]*")


class _Key(NamedTuple):
    material: bytes
    wrapping: AESGCM

    def __repr__(self) -> str:
        return "_Key(…)"


class Keyring:
    """Hold named 256-bit master keys, oldest first: the newest seals, all of them open.

    A keyring that comes from a file follows it: keys that another process has added are picked up when they are needed.
    """

    def __init__(self, keys: Mapping[str, bytes], *, path: Path | None = None) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._set(keys)

    def _set(self, keys: Mapping[str, bytes]) -> None:
        if not keys:
            raise ConfigurationError("a keyring needs at least one key; make one with `cloister keys new`")
        # Errors count keys instead of naming them: what stands in a name's place may be the key.
        for number, (name, key) in enumerate(keys.items(), 1):
            if not _NAME.fullmatch(name):
                raise ConfigurationError(f"key {number}: its name must be 1 to 64 ASCII letters, digits, - or _")
            if len(key) != KEY_BYTES:
                raise ConfigurationError(f"key {number} has {len(key)} bytes; it must have {KEY_BYTES}")
        # In one step, as another thread may be sealing.
        self._keys = {name: _Key(key, AESGCM(subkey(key, "wrap"))) for name, key in keys.items()}
        self._derived: dict[str, Mapping[str, bytes]] = {}

    @classmethod
    def generate(cls) -> Keyring:
        """Make a keyring of one new random key, held in memory alone."""
        return cls(dict([_new_key(())]))

    @classmethod
    def create_file(cls, path: str | os.PathLike[str]) -> Keyring:
        """Make a key file with one new random key, mode 0600; `FileExistsError` if there is one."""
        path = Path(path)
        name, key = _new_key(())
        files.write_new(path, _format({name: key}))
        return cls.from_file(path)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Keyring:
        """Read a key file: one ``name base64-key`` a line, oldest first, readable by its owner alone.

        Raises `ConfigurationError` if it is missing, unreadable, readable by others, or malformed.
        """
        path = Path(path)
        keyring = cls(_read(path), path=path)
        keyring._stamp = keyring._stat()
        return keyring

    @classmethod
    def from_env(cls, environ: MutableMapping[str, str] = os.environ) -> Keyring:
        """Take ``CLOISTER_KEYS`` (``name:base64-key,…``, oldest first) out of the environment.

        The variable is removed, so that nothing this process starts inherits it. Raises `ConfigurationError` if it is
        missing or malformed.
        """
        text = environ.pop("CLOISTER_KEYS", None)
        if not text:
            raise ConfigurationError("CLOISTER_KEYS is not set; make a value for it with `cloister keys new --print`")
        return cls(_parse((entry.strip().partition(":")[::2] for entry in text.split(",")), "CLOISTER_KEYS"))

    @property
    def names(self) -> tuple[str, ...]:
        """Give the names of the keys, oldest first; the last one seals."""
        return tuple(self._keys)

    def add(self) -> str:
        """Add a new random key, which seals from now on, and give its name. A key file is rewritten at once."""
        with self._alone():
            name, key = _new_key(self._keys)
            self._replace({**self._material(), name: key})
        return name

    def remove(self, name: str) -> None:
        """Destroy a key. What is still under it can never be opened again; `ConfigurationError` if it is the newest."""
        with self._alone():
            if name not in self._keys:
                raise ConfigurationError(f"the keyring holds no key {name!r}; it holds {', '.join(self._keys)}")
            if name == self.names[-1]:
                raise ConfigurationError("the newest key seals; add another with `cloister keys rotate` before")
            self._replace({other: key for other, key in self._material().items() if other != name})

    async def wrap(self, secret: bytes, context: bytes) -> bytes:
        self._follow()
        name, key = list(self._keys.items())[-1]
        return named(name, seal(key.wrapping, secret, fields(name) + context))

    async def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        name = key_of(wrapped)
        if name not in self._keys:
            self._follow()
        key = self._keys.get(name)
        if key is None:
            raise unknown_key(name)
        return unseal(key.wrapping, after_name(wrapped), fields(name) + context, "the secret of a session")

    async def derive(self, label: str) -> Mapping[str, bytes]:
        self._follow()
        known = self._derived  # before the keys: whoever sets those empties it after them
        found = known.get(label)
        if found is None:
            keys = {name: subkey(key.material, "tenant/" + label) for name, key in self._keys.items()}
            found = known[label] = MappingProxyType(keys)
            if len(known) > _DERIVED_AT_MOST:
                known.pop(next(iter(known)), None)
        return found

    def _material(self) -> dict[str, bytes]:
        return {name: key.material for name, key in self._keys.items()}

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Change the key file alone: of two that read it and write it back, one would lose the other's new key."""
        if self._path is None:
            yield
            return
        lock = self._path.with_name(self._path.name + ".lock")
        try:
            os.close(os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            raise ConfigurationError(f"another process is changing the keys; if none is, delete {lock}") from None
        except OSError as error:
            raise ConfigurationError(f"{self._path} cannot be changed: {error.strerror}") from None
        try:
            self._set(_read(self._path))
            yield
        finally:
            lock.unlink(missing_ok=True)

    def _replace(self, keys: Mapping[str, bytes]) -> None:
        if self._path is not None:
            files.overwrite(self._path, _format(keys))
            self._stamp = self._stat()
        self._set(keys)

    def _follow(self) -> None:
        """Read the key file again if another process has rewritten it."""
        if self._path is not None and self._stat() != self._stamp:
            stamp = self._stat()
            self._set(_read(self._path))
            self._stamp = stamp

    def _stat(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path or "")
        except OSError:
            return self._stamp  # gone or out of reach: go on with what was read
        return found.st_mtime_ns, found.st_ino

    def __repr__(self) -> str:
        return f"Keyring({', '.join(self._keys)})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a keyring cannot be pickled: it would write the master keys")


def _new_key(taken: Iterable[str]) -> tuple[str, bytes]:
    name = f"key-{len(list(taken)) + 1}-{secrets.token_hex(4)}"
    return name, secrets.token_bytes(KEY_BYTES)


def _format(keys: Mapping[str, bytes]) -> bytes:
    lines = [f"{name} {base64.urlsafe_b64encode(key).decode()}" for name, key in keys.items()]
    return "\n".join(["# cloister master keys, oldest first; the last one seals", *lines, ""]).encode()


def _parse(pairs: Iterable[tuple[str, ...]], source: str) -> dict[str, bytes]:
    keys: dict[str, bytes] = {}
    # Entries are counted instead of named: what stands in a name's place may be the key.
    for number, (name, text) in enumerate(pairs, 1):
        try:
            key = base64.b64decode(text.strip().replace("-", "+").replace("_", "/"), validate=True)
        except (binascii.Error, ValueError):
            raise ConfigurationError(f"{source}: entry {number} is not a name and a key in base64") from None
        if len(key) != KEY_BYTES:
            raise ConfigurationError(
                f"{source}: the key of entry {number} has {len(key)} bytes, not {KEY_BYTES}; put it back from a copy"
            )
        if name in keys:
            raise ConfigurationError(f"{source}: the name of entry {number} stands there twice")
        keys[name] = key
    if not keys:
        raise ConfigurationError(f"{source}: there is no key in it; put it back from a copy")
    return keys


def _read(path: Path) -> dict[str, bytes]:
    lines = files.read_secret(path, "key file").splitlines()
    pairs = (line.partition(" ")[::2] for line in lines if line.strip() and not line.startswith("#"))
    return _parse(pairs, f"the key file {path}")
