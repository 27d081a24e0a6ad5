"""Stores that leak on purpose, each in one way: `cloister prove` has to find exactly that."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any

import msgspec

from cloister.model import Owner
from cloister.stores.base import Commit, Listing, Loaded, Page, Receipt, Record
from cloister.stores.memory import MemoryStore


class PagesOfAnybody(MemoryStore):
    """Pages through a session by its id, whoever asks."""

    async def items(self, owner: Owner, session_id: str, **options: Any) -> Page:
        return await super().items(await self.owner_of(session_id) or owner, session_id, **options)


class IdsFolded(MemoryStore):
    """Does not tell capitals from small letters in an id."""

    async def load(self, owner: Owner, session_id: str, **options: Any) -> Loaded:
        alike = [known for whose, known in self._sessions if whose == owner and known.lower() == session_id.lower()]
        return await super().load(owner, alike[0] if alike else session_id, **options)


class IdsArePatterns(MemoryStore):
    """Finds a session by a pattern of its id."""

    async def load(self, owner: Owner, session_id: str, **options: Any) -> Loaded:
        if "*" in session_id:
            alike = [known for whose, known in self._sessions if whose == owner and fnmatch(known, session_id)]
            session_id = alike[0] if alike else session_id
        return await super().load(owner, session_id, **options)


class NamesFolded(MemoryStore):
    """Does not tell capitals from small letters in a name."""

    async def load(self, owner: Owner, session_id: str, **options: Any) -> Loaded:
        return await super().load(Owner(owner.tenant, owner.user.lower()), session_id, **options)


class ListsOthers(MemoryStore):
    """Lists what is others' too, to whoever has three sessions."""

    async def sessions(self, owner: Owner, **options: Any) -> Listing:
        listing = await super().sessions(owner, **options)
        others = [kept.session for (whose, _), kept in self._sessions.items() if whose != owner]
        return (
            msgspec.structs.replace(listing, sessions=[*listing.sessions, *others]) if listing.sessions[2:] else listing
        )


class LeasesOfAnybody(MemoryStore):
    """Lets whoever knows a lease give it back."""

    async def release(self, owner: Owner, session_id: str, lease: bytes, *, nonce: bytes) -> Receipt:
        for key in [key for key, held in self._leases.items() if held[0] == lease]:
            del self._leases[key]
        return Receipt(nonce)


class RecordsOfAnybody(MemoryStore):
    """Finds an idempotency record by session and key, whoever asks."""

    async def load(self, owner: Owner, session_id: str, **options: Any) -> Loaded:
        loaded = await super().load(owner, session_id, **options)
        kept = [
            one for (_, known, key), one in self._records.items() if (known, key) == (session_id, options.get("record"))
        ]
        return msgspec.structs.replace(loaded, record=kept[0]) if kept else loaded


class ForeignIsAbsent(MemoryStore):
    """Does not know whose a session is."""

    async def owner_of(self, session_id: str) -> Owner | None:
        return None


class AlarmsLost(MemoryStore):
    """Answers that an alarm is on record, and drops it."""

    def _put(self, events: Any) -> None:
        super()._put([event for event in events if event.kind != "access.foreign"])


class _SecretKept(MemoryStore):
    kept: str

    async def end(self, owner: Owner, session_id: str, **options: Any) -> Receipt:
        before = self._sessions.get((owner, session_id))
        secret = before.session.wrapped if before else None
        receipt = await super().end(owner, session_id, **options)
        if receipt.count and options["ended"] == self.kept:
            gone = self._sessions[owner, session_id]
            gone.session = msgspec.structs.replace(gone.session, wrapped=secret)
        return receipt


class SecretOfExpiredKept(_SecretKept):
    """Marks a session as expired and keeps its secret."""

    kept = "expired"


class SecretOfEndedKept(_SecretKept):
    """Marks a session as ended and keeps its secret."""

    kept = "ended"


class LateTurns(MemoryStore):
    """Takes a turn of a session that was ended for one that is stored."""

    async def commit(self, commit: Commit, *, nonce: bytes) -> Receipt:
        kept = self._sessions.get((commit.session.owner, commit.session.id))
        if kept is not None and kept.session.ended == "ended":
            return Receipt(nonce)
        return await super().commit(commit, nonce=nonce)


class ErasesTooMuch(MemoryStore):
    """Erases everybody whose name begins alike."""

    async def erase(self, owner: Owner, **options: Any) -> Receipt:
        for other in {known for known, _ in self._sessions if known != owner and known.user[:20] == owner.user[:20]}:
            await super().erase(other, nonce=b"")
        return await super().erase(owner, **options)


class RecordsOutliveErasure(MemoryStore):
    """Forgets to erase idempotency records."""

    async def erase(self, owner: Owner, **options: Any) -> Receipt:
        records = dict(self._records)
        receipt = await super().erase(owner, **options)
        self._records = records
        return receipt


class LeasesForAll(MemoryStore):
    """Gives the lease on a session that has only just begun to everybody who asks."""

    def _take(self, owner: Owner, session_id: str, lease: bytes) -> bool:
        if len(self._sessions[owner, session_id].items) < 7:
            self._leases.pop((owner, session_id), None)
        return super()._take(owner, session_id, lease)


class TurnsLost(MemoryStore):
    """Answers that a turn is stored, and drops it, where another one of the session waits."""

    waiting = 0

    async def load(self, owner: Owner, session_id: str, **options: Any) -> Loaded:
        loaded = await super().load(owner, session_id, **options)
        self.waiting += loaded.busy
        return loaded

    async def commit(self, commit: Commit, *, nonce: bytes) -> Receipt:
        if not self.waiting or (commit.session.owner, commit.session.id) not in self._sessions:
            return await super().commit(commit, nonce=nonce)
        self.waiting = 0
        await self.release(commit.session.owner, commit.session.id, commit.lease, nonce=nonce)
        return Receipt(nonce)


class TurnsStoredTwice(MemoryStore):
    """Does not know a turn that it has."""

    async def commit(self, commit: Commit, *, nonce: bytes) -> Receipt:
        kept = self._sessions.get((commit.session.owner, commit.session.id))
        if kept and kept.session.turn == commit.session.turn:
            kept.session = msgspec.structs.replace(kept.session, turn=b"")
        return await super().commit(commit, nonce=nonce)


class Eavesdropper(MemoryStore):
    """Knows what was said, from whoever read it before it was sealed, and hands it out beside the rows."""

    heard = b""

    async def load(self, owner: Owner, session_id: str, **options: Any) -> Loaded:
        loaded = await super().load(owner, session_id, **options)
        if loaded.session is None or loaded.session.ended or options.get("record") is not None or not self.heard:
            return loaded
        return msgspec.structs.replace(loaded, record=Record(session_id, session_id, b"", self.heard, 0))


LEAKY: dict[type[MemoryStore], str] = {
    PagesOfAnybody: "foreign ids",
    IdsFolded: "guessed ids",
    IdsArePatterns: "malformed ids",
    NamesFolded: "look-alike names",
    ListsOthers: "lists",
    LeasesOfAnybody: "another's name",
    RecordsOfAnybody: "another's name",
    ForeignIsAbsent: "audit log",
    AlarmsLost: "audit log",
    SecretOfExpiredKept: "expired sessions",
    SecretOfEndedKept: "ended sessions",
    LateTurns: "ended sessions",
    LeasesForAll: "concurrent turns",
    TurnsLost: "concurrent turns",
    TurnsStoredTwice: "repeated turns",
    ErasesTooMuch: "erased owners",
    RecordsOutliveErasure: "erased owners",
    Eavesdropper: "readable words",
}
"""Each with the one check that has to find it."""
