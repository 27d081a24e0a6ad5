"""Signed heads: how far each writer had come, stated with an Ed25519 key that lies outside keyring and store."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterable
from datetime import datetime
from typing import NoReturn

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
