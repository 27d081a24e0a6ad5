"""What is done with a whole audit log: it is verified, in its store or in files, against what was signed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import msgspec

from cloister import client, files
from cloister.audit import AuditKey, Copy, Entry, Report, Signed, Verification, read_heads
from cloister.errors import ConfigurationError
from cloister.settings import Settings
from cloister.stores.base import Store, pages

_AT_ONCE = 1_000
_MOST = 20  # lines that are wrong


@dataclass(frozen=True, slots=True)
class Evidence:
    """Be what was signed about a log, what is wrong with that, and what can therefore not be checked."""

    signed: Signed = field(default_factory=Signed)
    faults: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()


def audit_key_path(settings: Settings, store: Store) -> Path | None:
    """Give where the audit key of *store* lies, or would."""
    if settings.audit_key_file is not None:
        return Path(settings.audit_key_file)
    return None if store.path is None else client.beside(store.path, client.AUDIT_KEY)


def heads_path(settings: Settings, store: Store) -> Path | None:
    """Give where the signed heads of *store* lie, or would."""
    return settings.heads_path() or (None if store.path is None else client.beside(store.path, client.HEADS))


def evidence(settings: Settings, store: Store, public: str | None = None, more: Sequence[Path] = ()) -> Evidence:
    """Read the signed heads beside *store*, and *more* files of them. Makes nothing.

    *public* pins the signer's public key; without it, the audit key itself is read. Raises `ConfigurationError`.
    """
    where = heads_path(settings, store)
    if where is None and not more:
        unsigned = "nothing signs how far this log has come, so a cut-off one would not show"
        return Evidence(unchecked=(f"{unsigned}: set CLOISTER_AUDIT_KEY_FILE",))
    if public is None:
        key = audit_key_path(settings, store)
        if key is None or not key.exists():
            mend = "put it back, name it with CLOISTER_AUDIT_KEY_FILE, or pass its public half as --public-key"
            which = f"the audit key {key} is missing" if key else "no audit key is named"
            return Evidence(faults=(f"{which}, so signed heads cannot be checked; {mend}",))
        public = AuditKey.from_text(files.read_secret(key, "audit key")).public
    faults: tuple[str, ...] = ()
    if where is not None and not where.exists():
        if not more:
            made = "it is first written a minute after a store was made, so try again if this one is new"
            faults = (f"{where} is missing: entries cut off the end would not show; {made}",)
    elif where is not None:
        more = [where, *more]
    signed = read_signed(more, public)
    return Evidence(signed, (*signed.problems, *faults))


def read_signed(paths: Sequence[Path], public: str) -> Signed:
    """Read files of signed heads, which together say what each of them does."""
    signed = Signed()
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
        signed = read_heads(lines, public, signed, "signed heads" if len(paths) == 1 else str(path))
    return signed


async def verify(store: Store, known: Evidence) -> tuple[Report, list[str]]:
    """Check the whole audit log of *store*, which is open, and give the report and everything that is wrong."""
    verification = Verification(known.signed)
    async for page in pages(store):
        verification.add(page)
    report = verification.finish()
    # Where nothing was written yet, nothing had to be signed.
    missing = known.faults if report.entries or known.signed.heads else known.signed.problems
    return report, [*map(str, report.faults), *missing]


# --- files of entries -------------------------------------------------------------------------------------------------


class Window(msgspec.Struct, frozen=True, omit_defaults=True):
    """Say what an export leaves out, on its first line; one of the whole log has no such line."""

    since: str | None = None
    until: str | None = None
    severity: str | None = None


class _Between(msgspec.Struct):
    """Be a line that is no entry: a window, signed heads or an alarm."""

    export: Window | None = None
    heads: str | None = None
    alarm: msgspec.Raw | None = None


NAMES = {"owner": "owner_name", "other": "other_name"}
"""The fields of an exported entry that say whom its audit ids stand for. No hash covers them."""
_decode = msgspec.json.Decoder(Entry).decode
_decode_between = msgspec.json.Decoder(_Between).decode
_encode = msgspec.json.Encoder().encode
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


def _between(line: bytes) -> _Between:
    """Give what stands between entries; nothing, if it is not what cloister writes."""
    try:
        return _decode_between(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _Between()


def evidence_about(copies: Sequence[File], heads: Sequence[Path], public: str | None) -> Evidence:
    """Read the signed *heads*, and those that were delivered among the entries of *copies*."""
    delivered = any(next(copy.heads(), None) is not None for copy in copies)
    if not heads and not delivered:
        unsigned = "no signed heads were named, so entries cut off the end would not show"
        return Evidence(unchecked=(f"{unsigned}: --heads FILE",))
    if public is None:
        raise ConfigurationError(
            "name the public key that signed the heads, as `cloister doctor` shows it: --public-key"
        )
    signed = read_signed(heads, public)
    for copy in copies:
        signed = read_heads(copy.heads(), public, signed, f"signed heads in {copy.path}")
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
