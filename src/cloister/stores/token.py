"""What lies beside sealed tokens: a ledger, which is any other store, or nothing but the audit log.

    token://?ledger=redis://…          a few hundred bytes for each session in a store of any other kind
    token://?allow_replay=1            nothing at all

Further options: ``audience`` (whom tokens are for: those of another audience are none), ``limit`` (the longest token,
in characters) and, without a ledger, ``audit`` (the file that audit entries go to, instead of standard logging).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import logging
import os
import secrets
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar, cast

import msgspec

from cloister import files
from cloister.audit import Chain, Entry, Event, Heads, audit_id
from cloister.errors import ConfigurationError, StoreUnavailable
from cloister.model import Owner, SealedItem, SealedSession
from cloister.stores.base import (
    Account,
    Batch,
    Charge,
    Claims,
    Commit,
    CredentialBatch,
    Due,
    Fingerprint,
    Number,
    Off,
    Receipt,
    Record,
    Spent,
    Store,
    Trail,
    options_of,
    position,
)
from cloister.stores.prints import Prints
from cloister.tokens import LIMIT, LONGEST_LIMIT, SHORTEST_LIMIT, Tokens

T = TypeVar("T")

_log = logging.getLogger("cloister.audit")
_owners = logging.getLogger("cloister.audit.owners")
_BLOCK = 1 << 16
_LEVELS = {"info": logging.INFO, "notice": logging.INFO, "warning": logging.WARNING, "alert": logging.ERROR}


class _Text:
    """Be the values of an option that is any text; *what* says which."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __contains__(self, value: object) -> bool:
        return bool(value)

    def __str__(self) -> str:
        return self._what


_OPTIONS: dict[str, Container[str]] = {
    "ledger": _Text("the URL of another store"),
    "allow_replay": ("1",),
    "audit": _Text("the path of a file"),
    "audience": _Text("a name"),
    "limit": Number(SHORTEST_LIMIT, LONGEST_LIMIT),
}


def from_url(url: str) -> Store:
    """Give the store that ``token://?…`` names.

    Raises `ConfigurationError` unless it names a ledger or allows replay.
    """
    from cloister.stores import connect

    if not url.startswith(("token://?", "token:///?")) and url != "token://":
        raise ConfigurationError("token:// takes no name, only options: token://?ledger=…, or token://?allow_replay=1")
    options = options_of(url, _OPTIONS)
    tokens = Tokens(int(options.get("limit", LIMIT)), options.get("audience", ""))
    ledger = options.get("ledger")
    if ledger is None:
        if "allow_replay" not in options:
            raise ConfigurationError(
                "without a ledger nothing can tell whether a token was used before, and nothing can end a session: "
                "name one, token://?ledger=redis://…, or accept that with token://?allow_replay=1"
            )
        return cast(Store, Alone(tokens, options.get("audit")))
    if "allow_replay" in options or "audit" in options:
        raise ConfigurationError("allow_replay and audit are for token:// without a ledger; leave them out")
    if ledger.startswith("token:"):
        raise ConfigurationError("a ledger is a store of another kind than token://")
    return cast(Store, Ledger(tokens, connect(ledger)))


# What `cloister prove` is told, by the names of its checks.
_NO_ROWS = "the items are in the token, and there are no rows of them"
_REPLAY = "allow_replay=1: nothing tells whether a token was used before"
_NOTHING_KEPT = "without a ledger nothing is kept that this could be tried on"


class Ledger:
    """Be the store that keeps the sessions of tokens, all but their items."""

    ledger = True
    unconcerned: Mapping[str, str] = {
        **dict.fromkeys(("swapped rows", "replayed rows", "reordered rows", "removed rows"), _NO_ROWS),
        "concurrent turns": "a token is good for one turn: see the used tokens",
    }

    def __init__(self, tokens: Tokens, inner: Store) -> None:
        self.tokens = tokens
        self._inner = inner

    @property
    def url(self) -> str:
        return f"token://?ledger={self._inner.url}"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class Alone:
    """Keep the audit log, and nothing else: the rest is in the tokens. What needs more raises `ConfigurationError`.

    Fingerprints are kept in this process: they are gone with it, and no other knows of them.
    """

    path = None
    volatile = False
    ledger = False
    unconcerned: Mapping[str, str] = {
        **Ledger.unconcerned,
        **dict.fromkeys(("guessed ids", "look-alike names", "lists", "another's name"), _NOTHING_KEPT),
        **dict.fromkeys(("substituted sessions", "changed bytes", "older states", "strange answers"), _NOTHING_KEPT),
        **dict.fromkeys(("ended sessions", "erased owners", "repeated turns", "cleaned up"), _NOTHING_KEPT),
        **dict.fromkeys(
            ("concurrent turns", "used tokens"), "allow_replay=1: nothing tells whether one was used before"
        ),
    }

    def __init__(self, tokens: Tokens, audit: str | None) -> None:
        self.tokens = tokens
        self.url = "token://?allow_replay=1"
        self.in_logging = audit is None
        said = (
            "without a ledger a token can be used again, no session can be ended, erased or listed, and the search for "
            "leaks knows no more than this one process has heard"
        )
        self.off = (Off("replay protection", "allow_replay=1", said),)
        self._prints = Prints()
        self._log: _File | _Logger = _Logger() if audit is None else _File(Path(audit))
        self._chain = Chain.new()
        self._names: dict[Owner, str] = {}
        self._writing = asyncio.Lock()
        self._after_fault = False

    async def open(self) -> None:
        if self.in_logging and not _log.isEnabledFor(logging.INFO):
            _log.warning(
                "who did what is not on record: this logger drops what is below a warning. Set its level to INFO, or "
                "name a file in the URL of the store, audit=…"
            )
        self._names = {owner: name for name, owner in (await asyncio.to_thread(self._log.owners)).items()}

    async def close(self) -> None:
        pass

    async def create(
        self,
        session: SealedSession,
        items: Sequence[SealedItem] = (),
        *,
        nonce: bytes,
        entries: Sequence[Event] = (),
        fingerprints: Sequence[Fingerprint] = (),
        record: Record | None = None,
        replaces: Record | None = None,
        instead_of: str | None = None,
        charges: Sequence[Charge] = (),
        lease: bytes | None = None,
    ) -> Receipt:
        _refuse_charges(charges)
        receipt = await self.record(entries, nonce=nonce)
        self._prints.keep(session, fingerprints)
        return receipt

    async def commit(self, commit: Commit, *, nonce: bytes) -> Receipt:
        _refuse_charges(commit.charges)
        receipt = await self.record(commit.entries, nonce=nonce)
        self._prints.keep(commit.session, commit.fingerprints)
        return receipt

    async def claims(self, scope: str, digests: Sequence[bytes], *, now: int, nonce: bytes) -> Claims:
        return self._prints.claims(scope, digests, now=now, nonce=nonce)

    async def seed(self, scope: str, digests: Sequence[bytes], *, nonce: bytes) -> Receipt:
        return Receipt(nonce, count=self._prints.seed(scope, digests))

    async def record(self, entries: Sequence[Event], *, nonce: bytes) -> Receipt:
        # To its end, whoever is cancelled meanwhile: else the file would have what the chain does not know of, and
        # whoever goes away while he is refused could make the log look changed.
        writing = asyncio.create_task(self._write(entries))
        try:
            await asyncio.shield(writing)
        finally:
            while not writing.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([writing])
            if not writing.cancelled():
                writing.exception()  # looked at, so that it is not reported as forgotten
        return Receipt(nonce)

    async def _write(self, entries: Sequence[Event]) -> None:
        async with self._writing:
            if self._after_fault and entries:
                entries = [Event("writer.replaced", entries[0].at), *entries]
            chain = self._chain
            written: list[Entry] = []
            introduced: _Introduced = {}
            for noted in entries:
                names = []
                for owner in (noted.owner, noted.other):
                    name = "" if owner is None else self._names.get(owner, "")
                    if owner is not None and not name:  # nobody is erased here, where nothing is kept
                        name = introduced.get(owner, (audit_id(owner, salt := secrets.token_bytes(16)), salt))[0]
                        introduced.setdefault(owner, (name, salt))
                    names.append(name)
                chain, entry = chain.extend(noted, *names)
                written.append(entry)
            try:
                await asyncio.to_thread(self._log.write, written, introduced)
            except BaseException:
                # How much of it the file has, nobody knows: whoever goes on is another writer, and says so.
                self._chain, self._after_fault = Chain.new(), True
                raise
            self._chain, self._after_fault = chain, False
            self._names.update({owner: name for owner, (name, _) in introduced.items()})

    async def release(self, owner: Owner, session_id: str, lease: bytes, *, nonce: bytes) -> Receipt:
        return Receipt(nonce)

    async def sweep(self, *, now: int, tombstones_before: int, fingerprints: int, nonce: bytes) -> Receipt:
        return Receipt(nonce, dropped=self._prints.sweep(now, fingerprints))

    async def expired(self, *, now: int, limit: int, skip: int) -> Sequence[Due]:
        return ()

    async def tenanted(self) -> bool | None:
        return None

    async def all(self, *, after: bytes, limit: int) -> Batch:
        return Batch((), b"")

    async def every_credential(self, *, after: bytes, limit: int) -> CredentialBatch:
        return CredentialBatch((), b"")

    async def trail(self, *, after: bytes, limit: int) -> Trail:
        return await asyncio.to_thread(self._log.trail, after, limit)

    async def prune_audit(self, upto: Heads, *, nonce: bytes) -> Receipt:
        return Receipt(nonce, count=await asyncio.to_thread(self._log.prune, upto))

    async def audit_owners(self) -> dict[str, Owner]:
        return await asyncio.to_thread(self._log.owners)

    async def audit_tail(self, limit: int) -> Trail:
        return await asyncio.to_thread(self._log.tail, limit)

    def heads(self) -> Heads:
        return {self._chain.writer: (self._chain.number, self._chain.last.hex())}

    async def distrust(self) -> None:
        pass

    async def charge(self, owner: Owner, lease: bytes, charges: Sequence[Charge], *, nonce: bytes) -> Receipt:
        _refuse_charges(charges)
        return Receipt(nonce)

    async def spent(self, accounts: Sequence[Account], *, nonce: bytes) -> Spent:
        _refuse_charges(accounts)
        return Spent(nonce)

    def __getattr__(self, name: str) -> NoReturn:
        if name not in dir(Store):
            raise AttributeError(name)
        raise ConfigurationError(
            f"token:// without a ledger keeps nothing, so it has no {name!r}: name one, token://?ledger=redis://…"
        )


def _refuse_charges(charges: Sequence[object]) -> None:
    if charges:
        raise ConfigurationError(
            "budgets need a place that all who spend share, and token:// without a ledger has none: name one, "
            "token://?ledger=redis://…"
        )


_Introduced = dict[Owner, tuple[str, bytes]]


class _Name(msgspec.Struct, array_like=True):
    """Say whom an audit id stands for."""

    id: str
    salt: bytes
    tenant: str | None
    user: str


class _File:
    """Append entries to a file of JSON lines, and whom they name to another beside it, which may be deleted alone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names = path.with_name(path.name + ".owners")

    def write(self, entries: Sequence[Entry], introduced: _Introduced) -> None:
        names = [_Name(name, salt, owner.tenant, owner.user) for owner, (name, salt) in introduced.items()]
        for path, lines in ((self._names, names), (self._path, entries)):
            if lines:
                self._append(path, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))

    def _append(self, path: Path, data: bytes) -> None:
        try:
            with files.opened_alone(path) as file:
                size = file.seek(0, os.SEEK_END)
                if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                    data = b"\n" + data  # a process died while it wrote the line before, which nobody was told of
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
        except OSError as error:
            raise StoreUnavailable(
                f"the audit log {path} cannot be written ({error.strerror}), so nothing was done; make room, or mend it"
            ) from None

    def prune(self, upto: Heads) -> int:
        gone = 0

        def left(file: BinaryIO) -> Iterator[bytes]:
            nonlocal gone
            for line in file:
                entry = _decoded(line, Entry)
                if entry is None or entry.number > upto.get(entry.writer, (0, ""))[0]:
                    yield line
                else:
                    gone += 1

        with files.opened_alone(self._path), self._opened(self._path) as file:
            files.overwrite(self._path, left(file))
        return gone

    def trail(self, after: bytes, limit: int) -> Trail:
        with self._opened(self._path) as file:
            at = self._place(file, after)
            file.seek(at)
            found, last = self._read(file, at, 1 << 62, limit)
        return Trail(found, after if last is None else msgspec.msgpack.encode(last))

    def _place(self, file: BinaryIO, after: bytes) -> int:
        """Say where to go on: behind the entry that was the last, wherever it lies now; else at the beginning."""
        if not after:
            return 0
        start, known = position(after, tuple[int, bytes], (0, b""))
        for begin in (start, 0):
            file.seek(begin)
            while (line := file.readline()).endswith(b"\n"):
                entry = _decoded(line, Entry)
                if entry is not None and entry.hash == known:
                    return file.tell()
                if begin:
                    break
        return 0

    def tail(self, limit: int) -> Trail:
        found: list[Entry] = []
        last: tuple[int, bytes] | None = None
        with self._opened(self._path) as file:
            start = end = file.seek(0, os.SEEK_END)
            while start and len(found) < limit:
                # From twice as far back each time; what is met in its middle is no line.
                start = max(end - max(2 * (end - start), _BLOCK), 0)
                file.seek(start)
                at = start + len(file.readline() if start else b"")
                file.seek(at)
                found, last = self._read(file, at, end)
        return Trail(found[-limit:], b"" if last is None else msgspec.msgpack.encode(last))

    def _read(
        self, file: BinaryIO, at: int, end: int, limit: int = 1 << 62
    ) -> tuple[list[Entry], tuple[int, bytes] | None]:
        """Read up to *limit* entries between two places; give them, and where the last one begins, with its hash."""
        found: list[Entry] = []
        last = None
        while at < end and len(found) < limit and (line := file.readline()).endswith(b"\n"):
            if (entry := _decoded(line, Entry)) is not None:
                found.append(entry)
                last = at, entry.hash
            at += len(line)
        return found, last

    def owners(self) -> dict[str, Owner]:
        with self._opened(self._names) as file:
            names = [name for line in file if (name := _decoded(line, _Name)) is not None]
        return {name.id: Owner(name.tenant, name.user) for name in names}

    @contextlib.contextmanager
    def _opened(self, path: Path) -> Iterator[BinaryIO]:
        try:
            with path.open("rb") as file:
                yield file
        except FileNotFoundError:
            yield io.BytesIO()
        except OSError as error:
            raise StoreUnavailable(f"the audit log {path} cannot be read: {error.strerror}") from None


class _Logger:
    """Hand entries to standard logging, as lines of JSON; whom they name to ``cloister.audit.owners``."""

    def write(self, entries: Sequence[Entry], introduced: _Introduced) -> None:
        for owner, (name, salt) in introduced.items():
            _owners.info("%s", msgspec.json.encode(_Name(name, salt, owner.tenant, owner.user)).decode())
        for entry in entries:
            _log.log(_LEVELS[entry.severity], "%s", msgspec.json.encode(entry).decode())

    def trail(self, after: bytes, limit: int) -> NoReturn:
        raise ConfigurationError(
            "the audit log went to standard logging, where cloister cannot read it: name a file in the URL, audit=…"
        )

    def tail(self, limit: int) -> NoReturn:
        self.trail(b"", limit)

    def prune(self, upto: Heads) -> NoReturn:
        self.trail(b"", len(upto))

    def owners(self) -> dict[str, Owner]:
        return {}


def _decoded(line: bytes, kind: type[T]) -> T | None:
    """Give what a line says; None for one that was never finished: what is missing beyond that, the chain tells."""
    try:
        return msgspec.json.decode(line, type=kind)
    except msgspec.MsgspecError:
        return None
