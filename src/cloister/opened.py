"""A session that was opened for one turn."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from cloister import sessions
from cloister.model import Head, Item, Owner, Record, SealedSession, from_micros
from cloister.sealing import SessionKeys


@dataclass(slots=True)
class Opened:
    """Be one session, opened for one turn: its keys, its head and its newest items.

    ``id`` never changes; ``name`` is what the application holds, which is the same but where it is a token.
    """

    owner: Owner
    id: str
    keys: SessionKeys = field(repr=False)
    row: SealedSession = field(repr=False)
    head: Head
    items: list[Item] = field(default_factory=list, repr=False)
    system: Item | None = None
    lease: bytes = field(default=b"", repr=False)
    record: Record | None = field(default=None, repr=False)
    """What is on file of the request that is carried out. A fresh session's own record takes the place of no other."""
    fresh: bool = False
    """Not stored yet: it comes to be with the first commit, or not at all."""
    instead_of: str | None = None
    """The id of the session in whose place a fresh one comes: once that was erased, this cannot come to be."""
    brought: list[Item] = field(default_factory=list, repr=False)
    """What a fresh one begins with behind its system text, counted, as it is stored."""
    passing: bool = False
    """Never stored: only what goes on record is."""
    storing: asyncio.Task[None] | None = field(default=None, repr=False)
    """The commit that is under way."""
    committed: bool = False
    """A commit was carried out, whether or not whoever asked for it was still there."""
    name: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        self.name = self.name or self.id

    @property
    def unborn(self) -> bool:
        """Say whether it is in no other's place, and its first turn is under way, or its only one."""
        return self.fresh and self.instead_of is None

    def forget(self) -> None:
        """Let go of the session's secret: whoever keeps a turn does not keep it."""
        del self.keys

    def placed(self, items: Sequence[Item], moment: int) -> list[Item]:
        """Give *items* with their time, and with ids where they have none yet."""
        time = from_micros(moment)
        places = enumerate(items, self.head.count)
        return [replace(item, id=item.id or sessions.new_item_id(position), time=time) for position, item in places]

    def row_at(self, head: Head) -> SealedSession:
        """Give the row of the session as it is at *head*."""
        return SealedSession(
            owner=self.owner,
            id=self.id,
            wrapped=self.row.wrapped,
            head=self.keys.seal_head(head),
            version=head.version,
            count=head.count,
            tokens=head.tokens,
            created_at=head.created_at,
            updated_at=head.sealed_at,
            expires_at=head.expires_at,
            turn=head.turn,
            carry=self.row.carry,
        )
