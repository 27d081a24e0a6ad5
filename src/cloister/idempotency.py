"""Idempotency keys: a request that comes twice is carried out once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from hashlib import sha256

import msgspec

from cloister import sessions
from cloister.errors import IntegrityError
from cloister.model import Item
from cloister.sealing import fields
from cloister.stores.base import Record
from cloister.vault import Opened

LIVE = timedelta(hours=24)
"""How long an answer is found under its key."""


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """Be what an idempotency record says: what was asked, and where the answer lies."""

    content: bytes
    position: int
    model: str | None
    finish_reason: str | None
    renewed: bool
    token: str = ""
    """What the application held after that turn, where it is a token."""
    blocked: bool = False


class Key(msgspec.Struct, frozen=True):
    """Be an idempotency key in one session: what it is filed under, and what was asked under it."""

    session: str
    digest: bytes
    content: bytes

    @classmethod
    def of(cls, key: object, session_id: str, said: Sequence[Item]) -> Key | None:
        """Take a caller's key; `ValueError` if it is none."""
        if key is None:
            return None
        if not isinstance(key, str) or not 1 <= len(key) <= 256:
            raise ValueError("an idempotency key is a text of 1 to 256 characters")
        sessions.check_text(key, "an idempotency key")
        asked = msgspec.msgpack.encode(
            [(item.role, item.content, item.tool_calls, item.tool_call_id, item.extra) for item in said]
        )
        return cls(session_id, sha256(fields("idempotency", key)).digest(), sha256(asked).digest())

    def seal(self, holder: Opened, kept: Kept, until: int) -> Record:
        """Make the record of an answer, which the session that *holder* is opens."""
        sealed = holder.keys.seal_record(msgspec.msgpack.encode(kept), self.session, self.digest, str(until))
        return Record(self.session, holder.id, self.digest, sealed, until)

    def open(self, holder: Opened, record: Record) -> Kept:
        """Open a record; `ValueError` if something else was asked under the key."""
        try:
            plain = holder.keys.open_record(record.sealed, self.session, self.digest, str(record.expires_at))
            kept = msgspec.msgpack.decode(plain, type=Kept)
        except msgspec.MsgspecError:
            raise IntegrityError("an idempotency record is in a form that this version does not read") from None
        if kept.content != self.content:
            raise ValueError("this idempotency key was used for something else in this session; use a new one")
        return kept
