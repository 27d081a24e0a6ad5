"""A request that comes twice is carried out once: under the caller's key, or known again as a retry."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Sequence
from datetime import datetime, timedelta
from hashlib import sha256

import msgspec

from cloister import sessions
from cloister.errors import IntegrityError, KeyReused
from cloister.model import Head, Item, Owner, Record, from_micros
from cloister.opened import Opened
from cloister.sealing import MasterKeys, fields, owner_fields, tenant_keys

LIVE = timedelta(hours=24)
"""How long an answer is found under its key."""
RETRIED = timedelta(minutes=10)
"""How long an answer without a key is found by the same request."""


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


class Filing(msgspec.Struct, frozen=True):
    """Say under what the answer to a request is filed, so that the same request finds it when it comes twice.

    That is the caller's key, or, where there is none, the request itself: then only the last turn of a session is
    found, for a few minutes, by a request that says that it is a retry, until the answer was handed over.
    """

    session: str
    content: bytes
    digest: bytes | None
    secret: bytes
    retry: bool

    @classmethod
    def of(
        cls, key: object, session_id: str, said: Sequence[Item], request: object, secret: bytes, *, retry: bool
    ) -> Filing | None:
        """Take what a caller gives; `ValueError` if it is none. None where nothing is to be found again."""
        if request is not None and not isinstance(request, bytes):
            raise ValueError(f"request= takes the bytes of a request's body, not {type(request).__name__}")
        if key is None and request is None:
            return None
        digest = None
        if key is not None:
            if not isinstance(key, str) or not 1 <= len(key) <= 256:
                raise ValueError("an idempotency key is a text of 1 to 256 characters")
            sessions.check_text(key, "an idempotency key")
            digest = sha256(fields("idempotency", key)).digest()
        if request is None:
            request = msgspec.msgpack.encode(
                [(item.role, item.content, item.tool_calls, item.tool_call_id, item.extra) for item in said]
            )
        return cls(session_id, sha256(request).digest(), digest, secret, retry)

    @property
    def looks(self) -> bool:
        """Say whether the request may have come before."""
        return self.digest is not None or self.retry

    @property
    def live(self) -> timedelta:
        """Say how long an answer is found."""
        return RETRIED if self.digest is None else LIVE

    def under(self, turn: bytes) -> Key:
        """Give what the turn with this id is filed under; with none, the one that made its session."""
        digest = self.digest or hmac.digest(self.secret, fields("request", self.session, self.content, turn), "sha256")
        return Key(self.session, digest, self.content)

    def last(self, head: Head) -> bytes:
        """Give the digest under which the last turn of the session of *head* lies, if it was this very request."""
        return self.under(head.turn).digest

    def valid(self, record: Record, now: datetime) -> bool:
        """Say whether what is on *record* answers the request: what another one has filed that is the same does not."""
        if self.digest is not None:
            return True
        return self.retry and record.sealed != b"" and now < from_micros(record.expires_at)

    def until_delivered(self, record: Record) -> Record | None:
        """Give what is forgotten once the answer was handed over: nothing that lies under a caller's key."""
        return record if self.digest is None else None

    def at(self, session_id: str) -> Filing:
        """Give the same in another place."""
        return msgspec.structs.replace(self, session=session_id)


async def secret_of(keys: MasterKeys, owner: Owner) -> bytes:
    """Give the key of *owner*'s tenant by which requests are known again, until the oldest master key is retired."""
    return next(iter((await tenant_keys(keys, owner.tenant, "door")).values()))


def door(secret: bytes, owner: Owner) -> str:
    """Give where the answers are filed whose sessions came to be with them: an id that no session of *owner*'s has."""
    digest = hmac.digest(secret, fields("door") + owner_fields(owner), "sha256")
    return "cs_" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


class Key(msgspec.Struct, frozen=True):
    """Be what one answer is filed under in one session, and what was asked."""

    session: str
    digest: bytes
    content: bytes

    def seal(self, holder: Opened, kept: Kept, until: int) -> Record:
        """Make the record of an answer, which the session that *holder* is opens."""
        sealed = holder.keys.seal_record(msgspec.msgpack.encode(kept), self.session, self.digest, str(until))
        return Record(self.session, holder.id, self.digest, sealed, until)

    def open(self, holder: Opened, record: Record) -> Kept:
        """Open a record; `KeyReused` if something else was asked under the key."""
        try:
            plain = holder.keys.open_record(record.sealed, self.session, self.digest, str(record.expires_at))
            kept = msgspec.msgpack.decode(plain, type=Kept)
        except msgspec.MsgspecError:
            raise IntegrityError("an idempotency record is in a form that this version does not read") from None
        if kept.content != self.content:
            raise KeyReused("this idempotency key was used for something else in this session; use a new one")
        return kept
