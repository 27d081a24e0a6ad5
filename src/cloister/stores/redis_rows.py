"""How sessions, items and records lie in Redis: the keys that name them, and what their values mean."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1, sha256
from typing import Any

import msgspec

from cloister.audit import Entry
from cloister.errors import IntegrityError
from cloister.model import ROLES, Owner, Role, SealedItem, SealedSession
from cloister.sealing import fields, owner_fields
from cloister.sessions import place_of
from cloister.stores.base import Record

PLACES = 256
_ROLE: dict[bytes, Role] = {role[0].encode(): role for role in ROLES}
_decode_entry = msgspec.msgpack.Decoder(Entry).decode
_decode_record = msgspec.msgpack.Decoder(tuple[str, bytes, int]).decode


class Keys:
    """Name the keys of one session of one owner."""

    def __init__(self, prefix: str, owner: Owner, session_id: str) -> None:
        place = place_of(session_id)
        self.digest = sha256(owner_fields(owner) + fields(session_id)).hexdigest()[:32]
        self.number = bytes.fromhex(self.digest[:16])
        base = place_prefix(prefix, place)
        digest = self.digest.encode()
        own = [base + kind + digest for kind in (b"p:", b"h:", b"i:", b"l:", b"r:")]
        whose = base + b"w:" + sha1(session_id.encode(), usedforsecurity=False).hexdigest().encode()
        self.plain, self.records = own[0], own[4]
        self.all = [*own, base + b"due", base + b"over", base + b"all", whose, base + b"log", base + b"ends"]


def place_prefix(prefix: str, place: int) -> bytes:
    """Give the beginning of all keys of a place, which lie in one slot."""
    return f"{prefix}{{{place:02x}}}:".encode()


def names(owner: Owner) -> tuple[str, str]:
    return owner.tenant or "", owner.user


def owner_of(tenant: bytes, user: bytes) -> Owner:
    try:
        return Owner(tenant.decode() or None, user.decode())
    except (ValueError, AttributeError):
        raise IntegrityError("a row of the store names no owner that could be one; see `cloister doctor`") from None


def _changed() -> IntegrityError:
    return IntegrityError("a session's row in the store was changed; see the audit log")


def session_of(plain: Sequence[Any], live: Sequence[Any]) -> SealedSession | None:
    """Give the session that the values of two hashes describe; None if there is none."""
    if plain[0] is None:
        return None
    session_id, tenant, user, created, updated, expires, carry, ended, version = plain
    wrapped, head, count, tokens, turn = live if ended is None else (None, None, b"0", b"0", b"")
    try:
        return SealedSession(
            owner=owner_of(tenant, user),
            id=session_id.decode(),
            wrapped=wrapped,
            head=head,
            version=int(version),
            count=int(count),
            tokens=int(tokens),
            created_at=int(created),
            updated_at=int(updated),
            expires_at=None if expires is None else int(expires),
            turn=turn,
            carry=carry,
            ended=None if ended is None else ended.decode(),
        )
    except (ValueError, TypeError, AttributeError):
        raise _changed() from None


def row_of(item: SealedItem) -> bytes:
    return b"%d:%c:%b" % (item.tokens, ord(item.role[0]), item.sealed)


def item_of(position: int, row: bytes) -> SealedItem:
    try:
        tokens, role, sealed = row.split(b":", 2)
        return SealedItem(position, _ROLE[role], int(tokens), sealed)
    except (ValueError, KeyError, AttributeError, TypeError):
        raise IntegrityError("an item's row in the store was changed; see the audit log") from None


def record_of(session_id: str, key: bytes | None, value: bytes | None) -> Record | None:
    if key is None or value is None:
        return None
    try:
        holder, sealed, expires_at = _decode_record(value)
    except msgspec.MsgspecError:
        raise IntegrityError("a record's row in the store was changed; see the audit log") from None
    return Record(session_id, holder, key, sealed, expires_at)


def entry_of(values: Sequence[bytes]) -> Entry:
    try:
        return _decode_entry(values[1])
    except (msgspec.MsgspecError, IndexError, TypeError):
        # Verification says of such a one that it was changed.
        return Entry("?", 0, 0, "?", "?", "", "", "", "", b"", b"")
