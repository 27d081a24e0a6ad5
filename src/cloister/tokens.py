"""The rules of ``token://``: a session id that is the sealed conversation itself.

With a ledger a token is the id of its session and what the session's secret seals; whoever destroys the secret in the
ledger has destroyed every token that was ever given out. Without one it also carries what would lie in a ledger, all
sealed by the deployment's keys.

Each item is compressed by itself, never together with another: else the length of a token would tell whether what one
of them says occurs in what another says (Kelsey, "Compression and Information Leakage of Plaintext", FSE 2002). The
whole is padded to one of four lengths per doubling.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister import sessions
from cloister.errors import IntegrityError, TokenInvalid
from cloister.model import Item, Owner, SealedSession
from cloister.sealing import after_name, fields, key_of, named, seal, subkey, unseal

PREFIX = "ct_"
LIMIT = 1 << 16
"""The longest token, in characters, where no other limit is set."""
SHORTEST_LIMIT, LONGEST_LIMIT = 1 << 12, 1 << 22
_SHORTEST = 1 << 10  # bytes before sealing: what is shorter is padded to this
_RATIO = 8  # what is opened may be this many times as long as a token may be
_ID_BYTES = 32
_SALT_BYTES = 16
_SEALED_FROM = _SALT_BYTES + 32  # behind salt and commitment
_OVERHEAD = 512  # bytes, at most: what sealing adds, the name of a key included
_FRAME = 64  # bytes, at most: what stands around the items
_PLAIN, _DEFLATED = b"\x00", b"\x01"
_UNDER_SESSION, _UNDER_DEPLOYMENT = b"\x01", b"\x02"

_encode = msgspec.msgpack.Encoder().encode
_decode_item = msgspec.msgpack.Decoder(Item).decode


class Tokens(msgspec.Struct, frozen=True):
    """Say how tokens are made: how long one may be, in characters, and whom they are for."""

    limit: int = LIMIT
    audience: str = ""


class Body(msgspec.Struct, frozen=True, array_like=True):
    """Be what a token holds of its session: the state that it belongs to, and the newest items, packed.

    ``last`` is drawn anew for each token, as the tag of a stored item would be.
    """

    count: int
    last: bytes
    items: list[bytes]


class Alone(msgspec.Struct, frozen=True, array_like=True):
    """Be what a token holds where there is no ledger: the row that would lie in one, and the body."""

    tenant: str | None
    user: str
    row: tuple[Any, ...]
    body: bytes


_decode_body = msgspec.msgpack.Decoder(Body).decode
_decode_alone = msgspec.msgpack.Decoder(Alone).decode


def decoded(token: object, tokens: Tokens) -> bytes:
    """Give the bytes of a token that has the shape of one; `TokenInvalid` if it has not."""
    if type(token) is not str or not token.startswith(PREFIX) or not token.isascii():
        raise TokenInvalid
    if len(token) > tokens.limit:
        raise TokenInvalid(f"this token is {len(token)} characters long; one has at most {tokens.limit}")
    try:
        text = token[len(PREFIX) :]
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise TokenInvalid from None
    if _text(data) != token:  # bits that mean nothing: no token has two spellings
        raise TokenInvalid
    return data


def _text(data: bytes) -> str:
    return PREFIX + base64.urlsafe_b64encode(data).rstrip(b"=").decode()


# --- with a ledger ----------------------------------------------------------------------------------------------------


def under_session(session_id: str, sealed: bytes) -> str:
    """Give the token of a session whose secret has *sealed* the body."""
    return _text(_UNDER_SESSION + base64.urlsafe_b64decode(session_id[3:] + "=") + sealed)


def read_under_session(data: bytes) -> tuple[str, bytes]:
    """Give the session id and the sealed body of a token's *data*; `TokenInvalid` if it is none of this kind."""
    if data[:1] != _UNDER_SESSION or len(data) <= 1 + _ID_BYTES:
        raise TokenInvalid
    number = base64.urlsafe_b64encode(data[1 : 1 + _ID_BYTES]).rstrip(b"=").decode()
    return sessions.check_id("cs_" + number), data[1 + _ID_BYTES :]


# --- without one ------------------------------------------------------------------------------------------------------


def under_deployment(derived: Mapping[str, bytes], tokens: Tokens, row: SealedSession, body: bytes) -> str:
    """Give a token that holds *row* and *body*, sealed under the newest of the *derived* keys."""
    name, key = list(derived.items())[-1]
    salt = secrets.token_bytes(_SALT_BYTES)
    own, commitment = _own_key(key, salt)
    plain = padded(_encode(Alone(row.owner.tenant, row.owner.user, _values(row), body)))
    return _text(_UNDER_DEPLOYMENT + named(name, salt + commitment + seal(own, plain, _context(tokens, name))))


def _own_key(key: bytes, salt: bytes) -> tuple[AESGCM, bytes]:
    """Give a token's own key, and what commits to it.

    Random nonces are good for 2^32 messages under one key, and all tokens of a deployment soon are as many.
    """
    own = subkey(key, "token/" + salt.hex())
    return AESGCM(subkey(own, "seal")), subkey(own, "commitment")


def _values(row: SealedSession) -> tuple[Any, ...]:
    """Give what a live row says besides its owner."""
    return msgspec.structs.astuple(row)[1:]


def read_under_deployment(derived: Mapping[str, bytes], tokens: Tokens, data: bytes) -> tuple[SealedSession, bytes]:
    """Give the row and the body that a token's *data* holds, whoever presents it; `TokenInvalid` if it is none.

    The keys are chosen by the name in front. One that is not known says nothing: anybody can write a name.
    """
    if data[:1] != _UNDER_DEPLOYMENT:
        raise TokenInvalid
    try:
        name, blob = key_of(data[1:]), after_name(data[1:])
        own, commitment = _own_key(derived[name], blob[:_SALT_BYTES])
        if not hmac.compare_digest(blob[_SALT_BYTES:_SEALED_FROM], commitment):
            raise TokenInvalid
        plain = unseal(own, blob[_SEALED_FROM:], _context(tokens, name), "a token")
        held = _decode_alone(unpadded(plain))
        return SealedSession(Owner(held.tenant, held.user), *held.row), held.body
    except (IntegrityError, KeyError, TypeError, ValueError, msgspec.MsgspecError):
        raise TokenInvalid from None


def _context(tokens: Tokens, name: str) -> bytes:
    return fields("token", b"\x01", tokens.audience, name)


# --- what is inside ---------------------------------------------------------------------------------------------------


def pack(items: Sequence[Item], tokens: Tokens, count: int, last: bytes, room: int) -> tuple[bytes, int]:
    """Pack as many whole turns as find room in *room* bytes, newest first, and say by how many bytes it is too long.

    The second value is 0 unless not even the newest turn, or nothing at all, finds room; then the first is of no use.
    """
    if room < 0:
        return b"", -room
    packed: list[bytes] = []
    size = plain_size = 0
    start = len(items)
    for index in range(len(items) - 1, -1, -1):
        plain = _encode(items[index])
        blob = _packed(plain)
        packed.append(blob)
        size += len(blob) + 5
        plain_size += len(plain)
        beyond = size > room or plain_size > tokens.limit * _RATIO
        if beyond and start < len(items):
            break
        if items[index].role == "user" or index == 0:
            start = index
            if beyond:
                return b"", max(size - room, plain_size - tokens.limit * _RATIO)
    kept = packed[: len(items) - start][::-1]
    return _encode(Body(count, last, kept)), 0


def room(tokens: Tokens, row: SealedSession | None = None) -> int:
    """Give how many bytes the items may take, beside *row* where it is inside, so that a token keeps to its limit."""
    most = _step_below((tokens.limit - len(PREFIX)) * 3 // 4 - _OVERHEAD) - _FRAME
    return most if row is None else most - len(_encode(_values(row))) - len(_encode(row.owner))


def unpack(body: bytes, tokens: Tokens) -> tuple[int, bytes, list[Item]]:
    """Give count, tag and items; no more is decompressed than was allowed to be packed. `TokenInvalid` otherwise."""
    try:
        held = _decode_body(body)
        left = tokens.limit * _RATIO
        items = []
        for blob in held.items:
            plain = _unpacked(blob, left)
            left -= len(plain)
            items.append(_decode_item(plain))
    except (msgspec.MsgspecError, zlib.error, ValueError):
        raise TokenInvalid from None
    return held.count, held.last, items


def _packed(plain: bytes) -> bytes:
    deflater = zlib.compressobj(6, wbits=-15)
    deflated = deflater.compress(plain) + deflater.flush()
    return _DEFLATED + deflated if len(deflated) < len(plain) else _PLAIN + plain


def _unpacked(blob: bytes, most: int) -> bytes:
    if blob[:1] == _PLAIN:
        return blob[1:]
    inflater = zlib.decompressobj(wbits=-15)
    plain = inflater.decompress(blob[1:], max(most, 1))
    if not inflater.eof or len(plain) > most:
        raise ValueError("longer than it may be, or cut off")
    return plain


def padded(plain: bytes) -> bytes:
    """Give *plain* behind its length, filled up to the next of four lengths per doubling."""
    size = len(plain) + 4
    return len(plain).to_bytes(4, "big") + plain.ljust(_step_above(size) - 4, b"\x00")


def unpadded(filled: bytes) -> bytes:
    """Give what `padded` filled up; `ValueError` for anything else."""
    size = int.from_bytes(filled[:4], "big")
    if size > len(filled) - 4:
        raise ValueError("padded to less than its length")
    return filled[4 : 4 + size]


def _step_above(size: int) -> int:
    """Give the smallest of 4, 5, 6 and 7 times a power of two, from 1 KiB on, that *size* fits in."""
    if size <= _SHORTEST:
        return _SHORTEST
    quarter = 1 << ((size - 1).bit_length() - 3)
    return -(-size // quarter) * quarter


def _step_below(size: int) -> int:
    """Give the largest such length that fits in *size*."""
    quarter = 1 << (size.bit_length() - 3)
    return size // quarter * quarter
