"""Signed heads: how far each writer had come, stated with an Ed25519 key that lies outside keyring and store."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, NoReturn

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cloister.audit.chain import Heads
from cloister.errors import ConfigurationError

_json = msgspec.json.Encoder(order="deterministic").encode


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

    def sign(self, heads: Heads, now: datetime, dropped: Heads | None = None, entries: int = 0) -> str:
        """Give one line of JSON that states *heads*, signed.

        With *dropped*, it also states up to where each writer's entries were dropped, *entries* in all.
        """
        stated: dict[str, object] = {"at": now.isoformat(), "heads": heads}
        if dropped:
            stated |= {"dropped": dropped, "entries": entries}
        body = _json(stated)
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


@dataclass(frozen=True, slots=True)
class Signed:
    """Be what was signed about the log.

    ``heads`` say how far each writer had come, ``dropped`` up to where its entries were dropped, ``entries`` in all.
    ``marks`` are all that was ever said of a writer: the hashes of entries, by number. ``at`` is when that was signed
    which was signed last, ``problems`` name lines that are wrong.
    """

    heads: Heads = field(default_factory=dict)
    dropped: Heads = field(default_factory=dict)
    entries: int = 0
    marks: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    at: datetime | None = None
    problems: tuple[str, ...] = ()

    @classmethod
    def of(cls, heads: Heads) -> Signed:
        """Take *heads* as they are, whoever said so."""
        return cls(heads, marks={writer: dict([head]) for writer, head in heads.items()})


def read_heads(
    lines: Iterable[str],
    public: str,
    known: Signed | None = None,
    where: str = "signed heads",
    until: datetime | None = None,
) -> Signed:
    """Collect what signed *lines* say, for each writer the furthest, and name the lines that are wrong.

    With *known*, add it to what others said, and name contradictions. *where* the lines are from is said of wrong ones.
    What was signed after *until* says what entries are, but not that they must be there.
    """
    known = known or Signed()
    at = known.at
    heads, dropped, entries = dict(known.heads), dict(known.dropped), known.entries
    marks = {writer: dict(said) for writer, said in known.marks.items()}
    problems = list(known.problems)
    try:
        key = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(public))
    except ValueError:
        raise ConfigurationError("the public audit key is not one: it must be 32 bytes in base64") from None
    for number, line in enumerate(lines, 1):
        try:
            stated = _verified(line, key)
        except (msgspec.MsgspecError, InvalidSignature, ValueError, RecursionError):
            problems.append(f"{where}, line {number}: not signed by the audit key")
            continue
        # Whoever dropped entries had come so far.
        for furthest, said in ((heads, stated.dropped), (heads, stated.heads), (dropped, stated.dropped)):
            for writer, head in said.items():
                if marks.setdefault(writer, {}).setdefault(*head) != head[1]:
                    problem = f"{where}, line {number}: contradicts another one about writer {writer}"
                    problems += [problem] if problem not in problems else []
                if until is None or stated.at <= until:
                    furthest[writer] = max(furthest.get(writer, (0, "")), head, key=lambda head: head[0])
        if until is None or stated.at <= until:
            entries, at = max(entries, stated.entries), max(stated.at, at or stated.at)
    return Signed(heads, dropped, entries, marks, at, tuple(problems))


def _verified(line: str, key: Ed25519PublicKey) -> _Heads:
    record = msgspec.json.decode(line, type=_Line)
    body = record.body.encode()
    key.verify(base64.urlsafe_b64decode(record.signature), body)
    return msgspec.json.decode(body, type=_Heads)


class _Line(msgspec.Struct):
    body: str
    key: str
    signature: str


class _Heads(msgspec.Struct):
    at: Annotated[datetime, msgspec.Meta(tz=True)]
    heads: Heads
    dropped: Heads = {}
    entries: int = 0
