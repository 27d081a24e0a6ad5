"""Each writer's hash chain: an entry names its writer, its number and the hash of the entry before it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import msgspec

from cloister.audit.events import EVENTS, Event

_json = msgspec.json.Encoder().encode
_ascii = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode

Heads = dict[str, tuple[int, str]]
"""For each writer, how many entries it had written and the hash of the last, in hexadecimal."""


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


ENTRY_TYPES = (str, int, int, str, str, str, str, str, str, bytes, bytes)


def columns(entry: Entry) -> tuple[Any, ...]:
    """Give the values of an entry in the order of its fields."""
    return msgspec.structs.astuple(entry)


def digest(entry: Entry) -> bytes:
    """Give the hash of an entry: SHA-256 over all its columns but that of the hash."""
    return digest_of(columns(entry))


def digest_of(values: tuple[object, ...]) -> bytes:
    """Give the hash of the entry that has *values*, of the types that they should have."""
    # JSON keeps columns apart, and numbers from text.
    return sha256(_json(values[:-1])).digest()


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
            severity=EVENTS[event.kind].severity,
            owner=owner,
            other=other,
            session=event.session,
            detail=_detail(event.detail),
            previous=self.last,
            hash=b"",
        )
        entry = msgspec.structs.replace(unhashed, hash=digest(unhashed))
        return Chain(self.writer, entry.number, entry.hash), entry
