"""Who can open what: session keys, and the sealed form of items, heads and what outlives a session.

Everything stored is AES-256-GCM under random 96-bit nonces. A session has a random 256-bit secret, wrapped by a master
key; its item key, head key and commitment are derived from it at once, by HKDF-SHA-256 (RFC 5869), and whatever is
seldom wanted by itself, one label per purpose. Associated data is a sequence of fields, each behind its length or of a
fixed one, and names format, owner, session, position, role and the tag of the item before, so that a missing, moved,
repeated or substituted item does not open. GCM does not commit to its key; heads therefore carry a commitment derived
from the session secret (Albertini et al., "How to Abuse and Fix Authenticated Encryption Without Key Commitment",
USENIX Security 2022).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn, Protocol

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from cloister.errors import ConfigurationError, IntegrityError
from cloister.model import ROLES, Head, Item, Owner, SealedItem

_FORMAT = b"\x01"
KEY_BYTES = 32
_NONCE_BYTES = 12
_TAG_BYTES = 16
_SHA256 = SHA256()
_COMMITMENT_BYTES = 32

_encode = msgspec.msgpack.Encoder().encode
_decode_item = msgspec.msgpack.Decoder(Item).decode
_decode_head = msgspec.msgpack.Decoder(Head).decode


def fields(*parts: str | bytes) -> bytes:
    """Join *parts* so that no two different lists give the same bytes: each behind its length."""
    joined = bytearray()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        joined += len(data).to_bytes(4, "big") + data
    return bytes(joined)


# What stands behind the owner and session of an item: position, role, length of the tag of the item before, that tag.
_LINK = struct.Struct(f">QBB{_TAG_BYTES}s")
_ROLE: dict[str, int] = {role: number for number, role in enumerate(ROLES)}

_ITEM, _HEAD, _WRAP = fields(_FORMAT), fields("head"), fields("wrap", _FORMAT)


def owner_fields(owner: Owner) -> bytes:
    """Encode *owner* so that no two owners look alike, tenantless ones included."""
    return fields("" if owner.tenant is None else owner.tenant, owner.user)


def tag(sealed: bytes) -> bytes:
    """Give the authentication tag of a sealed item, which its successor names."""
    return sealed[-_TAG_BYTES:]


def subkey(secret: bytes, label: str, keys: int = 1) -> bytes:
    """Derive the key for one purpose, which *label* names, or several *keys* at once for as many purposes."""
    return HKDFExpand(_SHA256, KEY_BYTES * keys, b"cloister/1/" + label.encode()).derive(secret)


def seal(key: AESGCM, plain: bytes, context: bytes) -> bytes:
    """Seal *plain* so that it opens only in *context*, under a random nonce."""
    nonce = os.urandom(_NONCE_BYTES)
    return _FORMAT + nonce + key.encrypt(nonce, plain, context)


def unseal(key: AESGCM, sealed: bytes, context: bytes, what: str) -> bytes:
    """Open what `seal` sealed, or raise an `IntegrityError` that says *what* does not open."""
    try:
        if sealed[:1] != _FORMAT:
            raise InvalidTag
        return key.decrypt(sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :], context)
    except (InvalidTag, ValueError, TypeError):
        raise _does_not_open(what) from None


def _does_not_open(what: str) -> IntegrityError:
    return IntegrityError(
        f"{what} does not open: the store returned something else than was stored for this owner. "
        "Nothing was shown; see the audit log, and `cloister doctor` for the store"
    )


class SessionKeys:
    """Seal and open what belongs to one session of one owner. Lives no longer than one turn."""

    __slots__ = ("_commitment", "_context", "_head", "_item", "_secret")

    def __init__(self, secret: bytes, owner: Owner, session_id: str) -> None:
        self._context = _ITEM + owner_fields(owner) + fields(session_id)
        self._secret = secret
        keys = subkey(secret, "item head commitment", 3)
        self._item = AESGCM(keys[:KEY_BYTES])
        self._head = AESGCM(keys[KEY_BYTES : 2 * KEY_BYTES])
        self._commitment = keys[2 * KEY_BYTES :]

    def seal_item(self, item: Item, position: int, previous: bytes) -> SealedItem:
        """Seal *item* for its *position* behind the item whose tag is *previous* (empty for the first)."""
        context = self._context + _LINK.pack(position, _ROLE[item.role], len(previous), previous)
        sealed = seal(self._item, _encode(item), context)
        return SealedItem(position, item.role, item.tokens, sealed)

    def open_items(self, rows: Sequence[SealedItem], previous: bytes, last: bytes | None = None) -> list[Item]:
        """Open consecutive *rows* behind the tag *previous*, the last of which must have the tag *last* where given.

        Raises `IntegrityError` for any that is missing, moved, repeated, changed or somebody else's.
        """
        # Forty times a turn, hence written out: this is `unseal`. Text is held by items alone, which hide it: what
        # reports errors may send variables along.
        decrypt, link, at = self._item.decrypt, _LINK.pack_into, len(self._context)
        context = bytearray(self._context + bytes(_LINK.size))
        items = []
        following = None
        try:
            for row in rows:
                position, sealed = row.position, row.sealed
                if following is not None and position != following:
                    raise IntegrityError("the store left out or reordered items of a session")
                if sealed[0] != _FORMAT[0]:
                    raise InvalidTag
                link(context, at, position, _ROLE[row.role], len(previous), previous)
                items.append(_decode_item(decrypt(sealed[1:13], sealed[13:], context)))
                following, previous = position + 1, sealed[-_TAG_BYTES:]
        except msgspec.MsgspecError:
            raise IntegrityError("an item was sealed in a form that this version of cloister does not read") from None
        except (InvalidTag, LookupError, ValueError, TypeError, AttributeError, struct.error):
            raise _does_not_open("an item") from None
        if [item.tokens for item in items] != [row.tokens for row in rows]:
            raise IntegrityError("the token count beside an item is not the one that was sealed")
        if last is not None and not (type(previous) is bytes and hmac.compare_digest(previous, last)):
            raise IntegrityError("the store left out the newest items of a session")
        return items

    def seal_head(self, head: Head) -> bytes:
        """Seal *head*, with a commitment to the session secret in front."""
        return self._commitment + seal(self._head, _encode(head), _HEAD + self._context)

    def open_head(self, sealed: bytes) -> Head:
        """Open a sealed head, or raise `IntegrityError`."""
        if type(sealed) is not bytes:
            raise _does_not_open("the head of a session")
        committed = hmac.compare_digest(sealed[:_COMMITMENT_BYTES], self._commitment)
        body = sealed[_COMMITMENT_BYTES:] if committed else b""
        plain = unseal(self._head, body, _HEAD + self._context, "the head of a session")
        try:
            return _decode_head(plain)
        except msgspec.MsgspecError:
            raise IntegrityError("a session was sealed in a form that this version of cloister does not read") from None

    async def wrapped(self, keys: MasterKeys, context: bytes) -> bytes:
        """Give the session's secret under the newest master key."""
        return await keys.wrap(self._secret, context)

    def seal_record(self, plain: bytes, *filed: str | bytes) -> bytes:
        """Seal an idempotency record, bound to all under which it is *filed*."""
        return seal(self._record, plain, fields("record", *filed) + self._context)

    def open_record(self, sealed: bytes, *filed: str | bytes) -> bytes:
        """Open what `seal_record` sealed and filed in the same way, or raise `IntegrityError`."""
        return unseal(self._record, sealed, fields("record", *filed) + self._context, "an idempotency record")

    def seal_token(self, plain: bytes, audience: str) -> bytes:
        """Seal what a token for *audience* holds, with a commitment to the session secret in front."""
        context = fields("token", audience) + self._context
        return self._commitment + seal(AESGCM(subkey(self._secret, "token")), plain, context)

    def open_token(self, sealed: bytes, audience: str) -> bytes:
        """Open what `seal_token` sealed, or raise `IntegrityError`."""
        committed = hmac.compare_digest(sealed[:_COMMITMENT_BYTES], self._commitment)
        body = sealed[_COMMITMENT_BYTES:] if committed else b""
        key = AESGCM(subkey(self._secret, "token"))
        return unseal(key, body, fields("token", audience) + self._context, "a token")

    def placeholder_key(self) -> bytes:
        """Give the key by which placeholders of this session are known."""
        return subkey(self._secret, "placeholder")

    def content_digest(self, items: Iterable[Item]) -> str:
        """Name what *items* say, for the audit log, by a key that goes with the session."""
        said = [(item.role, item.content, item.tool_calls, item.tool_call_id, item.values) for item in items]
        return hmac.digest(subkey(self._secret, "content"), _encode(said), "sha256").hex()[:32]

    @property
    def _record(self) -> AESGCM:
        return AESGCM(subkey(self._secret, "record"))  # seldom wanted

    def __repr__(self) -> str:
        return "SessionKeys(…)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("session keys are never written anywhere")


class MasterKeys(Protocol):
    """Wrap and unwrap session secrets. Implement it to keep master keys in a KMS.

    What ``wrap`` returns must name its key; ``unwrap`` of one whose key is unknown raises `ConfigurationError`, of a
    damaged or foreign one `IntegrityError`. ``derive`` gives a 32-byte key per master key, by key id, newest last.
    """

    async def wrap(self, secret: bytes, context: bytes) -> bytes: ...

    async def unwrap(self, wrapped: bytes, context: bytes) -> bytes: ...

    async def derive(self, label: str) -> Mapping[str, bytes]: ...


def wrap_context(owner: Owner, session_id: str) -> bytes:
    """Give the associated data under which a session's secret is wrapped."""
    return _WRAP + owner_fields(owner) + fields(session_id)


def new_secret() -> bytes:
    """Mint a session secret."""
    return secrets.token_bytes(KEY_BYTES)


def key_of(blob: bytes) -> str:
    """Read which master key a wrapped secret or a carried text names."""
    try:
        if blob[:1] != _FORMAT or not 1 <= blob[1] <= len(blob) - 2:
            raise ValueError
        name = blob[2 : 2 + blob[1]].decode("ascii")
        if not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError
        return name
    except (ValueError, IndexError):
        raise IntegrityError("a wrapped secret does not say which master key it is under, so it is damaged") from None


def named(key_id: str, sealed: bytes) -> bytes:
    """Put the name of the master key in front."""
    name = key_id.encode("ascii")
    return _FORMAT + bytes([len(name)]) + name + sealed


def after_name(blob: bytes) -> bytes:
    """Give what stands behind the name of the master key."""
    return blob[2 + blob[1] :]


async def tenant_keys(keys: MasterKeys, tenant: str | None, purpose: str) -> Mapping[str, bytes]:
    """Derive a tenant's key for one *purpose* from each master key, by its id, newest last."""
    return await keys.derive(f"{purpose}/{hashlib.sha256(fields(tenant or '')).hexdigest()}")


def seal_derived(derived: Mapping[str, bytes], purpose: str, plain: bytes, context: bytes) -> bytes:
    """Seal *plain* under the newest of the keys *derived* for a *purpose*, so that it opens only in *context*."""
    name, key = list(derived.items())[-1]
    return named(name, seal(AESGCM(key), plain, fields(purpose, _FORMAT, name) + context))


def open_derived(derived: Mapping[str, bytes], purpose: str, sealed: bytes, context: bytes, what: str) -> bytes:
    """Open what `seal_derived` sealed, or raise `IntegrityError`; `ConfigurationError` if its key is not there."""
    name = key_of(sealed)
    if name not in derived:
        raise unknown_key(name, what)
    return unseal(AESGCM(derived[name]), after_name(sealed), fields(purpose, _FORMAT, name) + context, what)


class TenantKeys:
    """Seal what has to outlive a session's secret, under a tenant-level key for one *purpose*."""

    def __init__(self, derived: Mapping[str, bytes], purpose: str) -> None:
        self._keys = dict(derived)
        self._purpose = purpose

    @classmethod
    async def derive(cls, keys: MasterKeys, owner: Owner, purpose: str) -> TenantKeys:
        """Derive the keys of *owner*'s tenant from each master key."""
        return cls(await tenant_keys(keys, owner.tenant, purpose), purpose)

    def seal(self, owner: Owner, session_id: str, plain: bytes) -> bytes:
        """Seal *plain* under the newest key, bound to owner and session."""
        return seal_derived(self._keys, self._purpose, plain, owner_fields(owner) + fields(session_id))

    def open(self, owner: Owner, session_id: str, sealed: bytes) -> bytes:
        """Open what `seal` sealed, or raise `IntegrityError`; `ConfigurationError` if its key is not there."""
        context = owner_fields(owner) + fields(session_id)
        return open_derived(self._keys, self._purpose, sealed, context, f"the {self._purpose} of a session")

    def __repr__(self) -> str:
        return f"TenantKeys({self._purpose!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("tenant keys are never written anywhere")


def unknown_key(key_id: str, what: str = "this session") -> ConfigurationError:
    """Say that a key is missing: a matter of set-up, which is mended by adding it back, and no alarm."""
    return ConfigurationError(
        f"{what} is under the master key {key_id!r}, which the keyring does not hold: "
        "add that key back (it must not have been retired), then try again"
    )
