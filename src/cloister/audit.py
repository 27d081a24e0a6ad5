"""What is on record: events, the hash chain of each writer, signed heads, verification.

A writer is one connection to a store. It numbers its entries from 1 and each names the hash of the one before, so that
a changed, removed, inserted or reordered entry shows, wherever it lies. What a chain alone cannot show, a tail cut off
or a whole writer removed, shows against heads that were signed (Ed25519) and kept outside the entries.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import NoReturn

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cloister.errors import ConfigurationError
from cloister.model import Owner, to_micros

SEVERITIES = ("info", "notice", "warning", "alert")

# Every event, and how much it should worry whoever is on call.
EVENTS: Mapping[str, str] = {
    "session.started": "info",
    "session.renewed": "info",
    "session.expired": "info",
    "session.ended": "info",
    "session.updated": "info",
    "turn.committed": "info",
    "turn.failed": "notice",
    "items.appended": "info",
    "data.replaced": "info",
    "placeholder.foreign": "alert",
    "reply.blocked": "alert",
    "reply.alerted": "warning",
    "reply.unchecked": "alert",
    "document.foreign": "alert",
    "item.hidden": "info",
    "owner.exported": "notice",
    "owner.erased": "notice",
    "operator.access": "notice",
    "access.refused": "warning",
    "access.absent": "notice",
    "access.foreign": "alert",
    "token.damaged": "warning",
    "token.replayed": "alert",
    "integrity.failed": "alert",
    "session.quarantined": "alert",
    "sessions.copied": "notice",
    "fingerprints.dropped": "warning",
    "key.rotated": "notice",
    "key.retired": "notice",
    "writer.replaced": "warning",
    "protection.off": "warning",
}


_json = msgspec.json.Encoder(order="deterministic").encode
_ascii = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


class Event(msgspec.Struct, frozen=True):
    """Be something that happened. Carries names, digests and counts; never conversation text or a secret.

    ``owner`` is whom it concerns or who asked, ``other`` whose session was asked for. A store files both under audit
    ids. ``detail`` holds short values; control characters in them are escaped by JSON.
    """

    kind: str
    at: int
    owner: Owner | None = None
    other: Owner | None = None
    session: str = ""
    detail: dict[str, str | int | bool | None] = {}


class Entry(msgspec.Struct, frozen=True):
    """Be one event as it is kept: in a writer's chain, with owners under audit ids."""

    writer: str
    number: int
    at: int
    event: str
    severity: str
    owner: str
    other: str
    session: str
    detail: str
    previous: bytes
    hash: bytes


def event(
    kind: str, now: datetime, owner: Owner | None = None, session: str = "", **detail: str | int | bool | None
) -> Event:
    """Note that *kind*, one of `EVENTS`, happened *now*."""
    return Event(kind, to_micros(now), owner, None, session, detail)


def audit_id(owner: Owner, salt: bytes) -> str:
    """Give the name under which an owner appears in the log.

    It commits to the owner, so that nobody can give it to another later, and says nothing without the random *salt*,
    which lies beside the owner's name until erasure takes both.
    """
    return "a_" + sha256(_json((salt, owner.tenant, owner.user))).hexdigest()[:20]


def introduces(event: Event) -> bool:
    """Say whether an event may give its owner a name in the log: not a late one, whose owner may just be erased."""
    return event.kind != "turn.failed"


_ENTRY_TYPES = (str, int, int, str, str, str, str, str, str, bytes, bytes)


def columns(entry: Entry) -> tuple[object, ...]:
    """Give the values of an entry in the order of its fields."""
    return msgspec.structs.astuple(entry)


def _digest(entry: Entry) -> bytes:
    # JSON keeps fields apart, and numbers from text; the types themselves are checked before.
    return sha256(_json(columns(entry)[:-1])).digest()


def _detail(detail: Mapping[str, str | int | bool | None]) -> str:
    """Give *detail* as one line of printable ASCII, whatever is in it."""
    return _ascii(detail).replace("\x7f", "\\u007f")


@dataclass(frozen=True, slots=True)
class Chain:
    """Be the state of one writer: how many entries it wrote, and the hash of the last."""

    writer: str
    number: int = 0
    last: bytes = b""

    @classmethod
    def new(cls) -> Chain:
        """Begin the chain of a new writer."""
        return cls("w_" + secrets.token_hex(8))

    def extend(self, event: Event, owner: str, other: str) -> tuple[Chain, Entry]:
        """Give the next entry, with the audit ids of its owners, and the chain after it."""
        unhashed = Entry(
            writer=self.writer,
            number=self.number + 1,
            at=event.at,
            event=event.kind,
            severity=EVENTS[event.kind],
            owner=owner,
            other=other,
            session=event.session,
            detail=_detail(event.detail),
            previous=self.last,
            hash=b"",
        )
        entry = msgspec.structs.replace(unhashed, hash=_digest(unhashed))
        return Chain(self.writer, entry.number, entry.hash), entry


@dataclass(frozen=True, slots=True)
class Fault:
    """Say which entry is wrong, and how."""

    writer: str
    number: int
    problem: str

    def __str__(self) -> str:
        return f"writer {ascii(self.writer)[1:-1]}, entry {self.number}: {self.problem}"


@dataclass(slots=True)
class Report:
    """Say what a verification found. ``unsigned`` counts entries that no signed head covers yet."""

    entries: int = 0
    writers: int = 0
    unsigned: int = 0
    faults: list[Fault] = field(default_factory=list)


Heads = dict[str, tuple[int, str]]
"""For each writer, how many entries it had written and the hash of the last, in hexadecimal."""

_MOST_FAULTS = 20


class Verification:
    """Check entries, in the order in which they lie, against each other and against signed *heads*."""

    def __init__(self, heads: Heads) -> None:
        self._heads = heads
        self._chains: dict[str, Chain] = {}
        self._signed: dict[str, str] = {}
        self._report = Report()

    def add(self, entry: Entry) -> None:
        """Check the next entry."""
        report = self._report
        report.entries += 1
        if tuple(map(type, columns(entry))) != _ENTRY_TYPES:
            if len(report.faults) < _MOST_FAULTS:
                report.faults.append(Fault(str(entry.writer), report.entries, "was changed: a column of another type"))
            return
        chain = self._chains.get(entry.writer) or Chain(entry.writer)
        problem = _problem(entry, chain)
        if problem and len(report.faults) < _MOST_FAULTS:
            report.faults.append(Fault(entry.writer, entry.number, problem))
        self._chains[entry.writer] = Chain(entry.writer, entry.number, entry.hash)
        signed, _ = self._heads.get(entry.writer, (0, ""))
        if entry.number == signed:
            self._signed[entry.writer] = entry.hash.hex()
        report.unsigned += entry.number > signed

    def finish(self) -> Report:
        """Give what was found, once all entries were added."""
        report = self._report
        for writer, (number, last) in self._heads.items():
            if number and writer not in self._signed:
                have = self._chains.get(writer, Chain(writer)).number
                problem = f"cut off or removed: {number} entries were signed for, and the last one here is {have}"
                report.faults.append(Fault(writer, have + 1, problem))
            elif number and self._signed[writer] != last:
                report.faults.append(Fault(writer, number, "is not the entry that was signed for"))
        report.writers = len(self._chains)
        return report


def verify(entries: Iterable[Entry], heads: Heads) -> Report:
    """Check *entries*, all of them, in the order in which they lie, against each other and against signed *heads*."""
    verification = Verification(heads)
    for entry in entries:
        verification.add(entry)
    return verification.finish()


def _problem(entry: Entry, chain: Chain) -> str | None:
    if entry.number != chain.number + 1:
        return f"out of order: entry {chain.number + 1} should stand here"
    if entry.previous != chain.last:
        return "does not follow the entry before it"
    try:
        same = entry.hash == _digest(entry)
    except UnicodeEncodeError:
        same = False
    if not same:
        return "was changed"
    return None


class AuditKey:
    """Sign the heads of the audit log. Kept outside keyring and store."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != 32:
            raise ConfigurationError(f"an audit key has 32 bytes; this has {len(seed)}")
        self._key = Ed25519PrivateKey.from_private_bytes(seed)

    @classmethod
    def generate(cls) -> AuditKey:
        """Make a new random key, held in memory alone."""
        return cls(secrets.token_bytes(32))

    @classmethod
    def from_text(cls, text: str) -> AuditKey:
        """Read a key from its base64 text."""
        try:
            return cls(base64.b64decode(text.strip().replace("-", "+").replace("_", "/"), validate=True))
        except ValueError as error:
            if isinstance(error, ConfigurationError):
                raise
            raise ConfigurationError("an audit key is 32 bytes in base64; this is something else") from None

    @property
    def public(self) -> str:
        """Give the public half, to be pinned by whoever verifies."""
        return base64.urlsafe_b64encode(self._key.public_key().public_bytes_raw()).decode()

    def sign(self, heads: Heads, now: datetime) -> str:
        """Give one line of JSON that states *heads*, signed."""
        body = _json({"at": now.isoformat(), "heads": heads})
        signature = base64.urlsafe_b64encode(self._key.sign(body)).decode()
        return _json({"body": body.decode(), "key": self.public, "signature": signature}).decode()

    def sign_for(self, purpose: str, body: bytes) -> str:
        """Sign *body* so that the signature holds for *purpose* alone: never for heads, which are JSON."""
        return base64.urlsafe_b64encode(self._key.sign(_for(purpose, body))).decode()

    def __repr__(self) -> str:
        return f"AuditKey(public={self.public!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an audit key cannot be pickled")


def check_signature(public: str, purpose: str, body: bytes, signature: str) -> bool:
    """Say whether *signature* is one by `AuditKey.sign_for`, under the key whose public half is *public*."""
    try:
        key = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(public))
        key.verify(base64.urlsafe_b64decode(signature), _for(purpose, body))
    except (ValueError, InvalidSignature):
        return False
    return True


def _for(purpose: str, body: bytes) -> bytes:
    return purpose.encode() + b"\x00" + body


def read_heads(lines: Iterable[str], public: str) -> tuple[Heads, list[str]]:
    """Collect what signed *lines* say, for each writer the furthest, and name the lines that are wrong."""
    heads: Heads = {}
    problems = []
    try:
        key = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(public))
    except ValueError:
        raise ConfigurationError("the public audit key is not one: it must be 32 bytes in base64") from None
    for number, line in enumerate(lines, 1):
        try:
            stated = _verified(line, key)
        except (msgspec.MsgspecError, InvalidSignature, ValueError, RecursionError):
            problems.append(f"signed heads, line {number}: not signed by the audit key")
            continue
        for writer, head in stated.items():
            known = heads.get(writer, (0, ""))
            if head[0] == known[0] and head[1] != known[1]:
                problems.append(f"signed heads, line {number}: contradicts an earlier one about writer {writer}")
            heads[writer] = max(known, head, key=lambda head: head[0])
    return heads, problems


def _verified(line: str, key: Ed25519PublicKey) -> Heads:
    record = msgspec.json.decode(line, type=_Line)
    body = record.body.encode()
    key.verify(base64.urlsafe_b64decode(record.signature), body)
    return msgspec.json.decode(body, type=_Heads).heads


class _Line(msgspec.Struct):
    body: str
    key: str
    signature: str


class _Heads(msgspec.Struct):
    at: str
    heads: Heads
