"""The rules about sessions: ids, ownership, limits, time."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from datetime import datetime, timedelta

import msgspec

from cloister.errors import IntegrityError, SessionExpired, SessionNotFound
from cloister.model import Head, Item, Limits, Owner, SealedSession, Used, from_micros, to_micros

_ID = re.compile(r"cs_[A-Za-z0-9_-]{43}")
_MICROSECOND = timedelta(microseconds=1)

_MOST_SPENT = (1 << 63) - 1

MAX_TITLE = 256
MAX_METADATA = 16
MAX_METADATA_KEY, MAX_METADATA_VALUE = 64, 512
MAX_HIDDEN = 1_000
TOMBSTONE = timedelta(days=30)
"""How long the owner of a session that is over is told so."""


def new_id(beside: str | None = None) -> str:
    """Mint a session id: 256 random bits.

    The first eight are those of *beside* where it is given, so that a store may keep what belongs together in one
    place; 248 are left, which nobody guesses either.
    """
    random = secrets.token_bytes(32)
    if beside is not None:
        random = bytes([place_of(beside)]) + random[1:]
    return "cs_" + base64.urlsafe_b64encode(random).rstrip(b"=").decode()


def place_of(session_id: str) -> int:
    """Give the first byte of an id, from 0 to 255: what a store divided into parts may go by."""
    return base64.urlsafe_b64decode(session_id[3:7])[0]


def check_id(session_id: object) -> str:
    """Give *session_id* back if it has the shape of one, else raise `SessionNotFound` as for any other absent one."""
    if type(session_id) is str and _ID.fullmatch(session_id):
        return session_id
    raise SessionNotFound


def digest(session_id: str) -> str:
    """Name a session in the audit log: SHA-256 over its 256 random bits, which cannot be turned back."""
    return hashlib.sha256(b"cloister session " + session_id.encode()).hexdigest()[:24]


def begin(limits: Limits, now: datetime, title: str | None, metadata: dict[str, str] | None) -> Head:
    """Give the head of a session that starts *now*."""
    moment = to_micros(now)
    idle = None if limits.idle_timeout is None else limits.idle_timeout // _MICROSECOND
    absolute = None if limits.absolute_timeout is None else limits.absolute_timeout // _MICROSECOND
    head = Head(0, created_at=moment, sealed_at=moment, active_at=moment, idle=idle, absolute=absolute)
    return describe(head, title, metadata)


def check(row: SealedSession, head: Head, owner: Owner, session_id: str) -> None:
    """Raise unless *row*, whose sealed head is *head*, is what was asked for and copies its head truly."""
    if row.owner != owner or row.id != session_id:
        raise IntegrityError("the store returned another session than the one it was asked for")
    copied = (row.version, row.count, row.tokens, row.created_at, row.updated_at, row.expires_at, row.turn)
    if copied != (head.version, head.count, head.tokens, head.created_at, head.sealed_at, head.expires_at, head.turn):
        raise IntegrityError("the clear columns of a session do not say what its sealed head says")


def check_alive(head: Head, now: datetime) -> None:
    """Raise `SessionExpired` if the session's time is up: at the very moment, and from then on."""
    if expired(head, now):
        raise SessionExpired


def expired(head: Head, now: datetime) -> bool:
    """Say whether the session's time is up, where that is no reason to refuse anything."""
    return head.expires_at is not None and at(head, now) >= head.expires_at


def at(head: Head, now: datetime) -> int:
    """Give the session's time in microseconds: *now*, but never earlier than what it has seen."""
    return max(to_micros(now), head.sealed_at)


def grow(head: Head, items: list[Item], last_tag: bytes, moment: int, turn: bytes, used: Used) -> Head:
    """Give the head of the session with *items* appended, the last of which has the tag *last_tag*."""
    return msgspec.structs.replace(
        spend(head, used),
        version=head.version + 1,
        sealed_at=moment,
        active_at=moment,
        count=head.count + len(items),
        tokens=head.tokens + sum(item.tokens for item in items),
        last_tag=last_tag,
        turn=turn,
    )


def spend(head: Head, used: Used) -> Head:
    """Give the head with what a turn *used* added."""
    spent = min(head.spent + used.nanos, _MOST_SPENT)  # whatever a service says: a larger number could not be stored
    return msgspec.structs.replace(head, usage=head.usage + used.usage, spent=spent)


def amend(head: Head, moment: int, turn: bytes) -> Head:
    """Give the head after a change in which nothing was said: it does not move the idle time."""
    return msgspec.structs.replace(head, version=head.version + 1, sealed_at=moment, turn=turn)


def describe(head: Head, title: str | None, metadata: dict[str, str] | None) -> Head:
    """Give the head with title and metadata set, where they are not None; `ValueError` if they are out of bounds."""
    if title is not None:
        _check_text("a title", title, MAX_TITLE)
        head = msgspec.structs.replace(head, title=title)
    if metadata is not None:
        if len(metadata) > MAX_METADATA:
            raise ValueError(f"metadata holds at most {MAX_METADATA} entries; these are {len(metadata)}")
        for key, value in metadata.items():
            _check_text("a metadata key", key, MAX_METADATA_KEY)
            _check_text("a metadata value", value, MAX_METADATA_VALUE)
        head = msgspec.structs.replace(head, metadata=dict(metadata))
    return head


def _check_text(what: str, text: object, most: int) -> None:
    if type(text) is not str:
        raise ValueError(f"{what} must be a str, not {type(text).__name__}")
    if len(text) > most:
        raise ValueError(f"{what} has at most {most} characters; this has {len(text)}")
    check_text(text, what)


def check_text(text: str, what: str = "a text") -> None:
    """Raise `ValueError` if *text* cannot be encoded: half a surrogate pair, mostly from a broken JSON escape."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} has half a surrogate pair at character {error.start}; send whole characters"
        ) from None


def hide(head: Head, position: int) -> Head:
    """Give the head with the item at *position* hidden from history and window."""
    if position in head.hidden:
        return head
    if len(head.hidden) >= MAX_HIDDEN:
        raise ValueError(f"a session hides at most {MAX_HIDDEN} items; end it and start a new one")
    return msgspec.structs.replace(head, hidden=tuple(sorted((*head.hidden, position))))


def new_item_id(position: int, random: str | None = None) -> str:
    """Mint an item id: its position, by which it is found, and *random* bits, so that it is unique everywhere."""
    return f"item_{position}_{random or secrets.token_hex(6)}"


def position_of(item_id: object) -> int | None:
    """Read the position out of an item id; None if it is not one."""
    match = re.fullmatch(r"item_(0|[1-9][0-9]{0,14})_[0-9a-f]{12}", item_id) if type(item_id) is str else None
    return int(match[1]) if match else None


def expires_at(head: Head) -> datetime | None:
    """Give when the session ends unless something is said, or None for never."""
    return None if head.expires_at is None else from_micros(head.expires_at)
