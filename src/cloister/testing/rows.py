"""What tests hand to a store: sessions, items, commits as it sees them, and owners that it must not mix up."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from cloister import sessions
from cloister.audit import event
from cloister.model import Owner, SealedItem, SealedSession, to_micros
from cloister.stores.base import Commit, Loaded, Store

ANA = Owner("acme", "ana")
BEN = Owner("acme", "ben")
START = datetime(2026, 1, 1, tzinfo=UTC)

# Owners that a store which joins, folds, trims or interprets names would take for one another.
LOOKALIKES = (
    Owner("ana", "acme"),
    Owner("acme", "ana"),
    Owner("acme", "Ana"),
    Owner("acme2", "ana"),
    Owner("acme", "an"),
    Owner("a:b", "c"),
    Owner("a", "b:c"),
    Owner("acme", "%"),
    Owner("acme", "_na"),
    Owner("acme", "*"),
    Owner("acme", "{ana}"),
    Owner("acme", "ana'--"),
    Owner("acme", "\N{FULLWIDTH LATIN SMALL LETTER A}na"),
    Owner("acme", "x" * 256),
)


class FakeClock:
    """Be a clock that stands still until it is moved."""

    def __init__(self, now: datetime = START) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def forward(self, by: timedelta) -> None:
        """Move on, or back."""
        self.now += by


def sealed_session(owner: Owner = ANA, session_id: str | None = None, **changes: Any) -> SealedSession:
    """Make a session as a store sees it: bytes that it cannot open."""
    made = SealedSession(
        owner=owner,
        id=session_id or sessions.new_id(),
        wrapped=secrets.token_bytes(61),
        head=secrets.token_bytes(160),
        version=1,
        count=0,
        tokens=0,
        created_at=to_micros(START),
        updated_at=to_micros(START),
        expires_at=to_micros(START + timedelta(minutes=30)),
        turn=secrets.token_bytes(16),
        carry=secrets.token_bytes(40),
    )
    return msgspec.structs.replace(made, **changes)


def sealed_items(count: int, first: int = 0, tokens: int = 10) -> list[SealedItem]:
    """Make items as a store sees them."""
    roles = ("user", "assistant")
    return [SealedItem(n, roles[n % 2], tokens, secrets.token_bytes(60)) for n in range(first, first + count)]


def grown(session: SealedSession, items: Sequence[SealedItem], lease: bytes, **changes: Any) -> Commit:
    """Make the commit that appends *items* to *session*."""
    after = msgspec.structs.replace(
        session,
        version=session.version + 1,
        head=secrets.token_bytes(160),
        count=session.count + len(items),
        tokens=session.tokens + sum(item.tokens for item in items),
        turn=secrets.token_bytes(16),
    )
    entry = event("turn.committed", START, session.owner, sessions.digest(session.id))
    made = Commit(session.version, lease, after, items, [entry])
    return msgspec.structs.replace(made, **changes)


def nonce() -> bytes:
    """Make what an answer has to echo."""
    return secrets.token_bytes(16)


async def load(store: Store, owner: Owner, session_id: str, budget: int = 10_000, **options: Any) -> Loaded:
    """Load a session and check the echo."""
    asked = nonce()
    loaded = await store.load(owner, session_id, nonce=asked, budget=budget, **options)
    assert loaded.echo == asked
    return loaded
