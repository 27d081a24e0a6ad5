"""Every store keeps the contract, and the contract rejects stores that do not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.fakes import opened

from cloister import stores, upkeep
from cloister.audit import Heads
from cloister.errors import ConfigurationError
from cloister.leaks.fingerprints import SHARDS
from cloister.model import Owner, SealedSession
from cloister.opened import Opened
from cloister.stores.base import Claims, Commit, Fingerprint, Loaded, Page, Receipt, Store, Trail
from cloister.stores.memory import MemoryStore
from cloister.stores.prints import Prints
from cloister.testing import StoreConformance, entries_of


class TestStores(StoreConformance):
    @pytest.fixture(params=["memory://", "sqlite:///{}/chats.db", "sqlite:///{}/chats.db?synchronous=normal"])
    async def store(self, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
        store = stores.connect(request.param.format(tmp_path))
        await store.open()
        yield store
        await store.close()


class OwnerIgnored(MemoryStore):
    """Finds a session by its id, whoever asks."""

    async def load(self, owner: Owner, session_id: str, **options: Any) -> Loaded:
        return await super().load(await self.owner_of(session_id) or owner, session_id, **options)


class OwnerIgnoredInPages(MemoryStore):
    """Pages through a session by its id, whoever asks."""

    async def items(self, owner: Owner, session_id: str, **options: Any) -> Page:
        return await super().items(await self.owner_of(session_id) or owner, session_id, **options)


class TenantIgnored(MemoryStore):
    """Files users of all tenants together."""

    async def load(self, owner: Owner, session_id: str, **options: Any) -> Loaded:
        alike = [known for known, held in self._sessions if known.user == owner.user and held == session_id]
        return await super().load(alike[0] if alike else owner, session_id, **options)


class VersionIgnored(MemoryStore):
    """Lets the second of two writers win."""

    async def commit(self, commit: Commit, *, nonce: bytes) -> Receipt:
        kept = self._sessions.get((commit.session.owner, commit.session.id))
        version = kept.session.version if kept else commit.version
        return await super().commit(msgspec.structs.replace(commit, version=version), nonce=nonce)


class LeaseIgnored(MemoryStore):
    """Gives a lease to everybody."""

    def _take(self, owner: Owner, session_id: str, lease: bytes) -> bool:
        self._leases.pop((owner, session_id), None)
        return super()._take(owner, session_id, lease)


class TailReordered(MemoryStore):
    """Brings the newest items newest first."""

    async def load(self, owner: Owner, session_id: str, **options: Any) -> Loaded:
        loaded = await super().load(owner, session_id, **options)
        return msgspec.structs.replace(loaded, items=tuple(reversed(loaded.items)))


class RowsSwapped(MemoryStore):
    """Brings another session's items now and then."""

    async def load(self, owner: Owner, session_id: str, **options: Any) -> Loaded:
        loaded = await super().load(owner, session_id, **options)
        others = [kept for key, kept in self._sessions.items() if key != (owner, session_id)]
        return msgspec.structs.replace(loaded, session=others[0].session) if others and loaded.session else loaded


class EchoMissing(MemoryStore):
    """Answers a commit without saying which."""

    async def commit(self, commit: Commit, *, nonce: bytes) -> Receipt:
        return await super().commit(commit, nonce=b"")


class TurnStoredTwice(MemoryStore):
    """Does not know a turn that it has."""

    async def commit(self, commit: Commit, *, nonce: bytes) -> Receipt:
        if kept := self._sessions.get((commit.session.owner, commit.session.id)):
            kept.session = msgspec.structs.replace(kept.session, turn=b"")
        return await super().commit(commit, nonce=nonce)


class HalfCommitted(MemoryStore):
    """Puts the entries on record before it looks at the version."""

    async def commit(self, commit: Commit, *, nonce: bytes) -> Receipt:
        self._put(commit.entries)
        return await super().commit(msgspec.structs.replace(commit, entries=()), nonce=nonce)


class SecretKept(MemoryStore):
    """Marks a session as ended and keeps its secret."""

    async def end(self, owner: Owner, session_id: str, **options: Any) -> Receipt:
        kept = self._sessions.get((owner, session_id))
        secret = kept.session.wrapped if kept else None
        receipt = await super().end(owner, session_id, **options)
        if receipt.count:
            gone = self._sessions[owner, session_id]
            gone.session = msgspec.structs.replace(gone.session, wrapped=secret)
        return receipt


class LateWrites(MemoryStore):
    """Brings an ended session back to life when its turn comes in."""

    async def commit(self, commit: Commit, *, nonce: bytes) -> Receipt:
        key = commit.session.owner, commit.session.id
        if key in self._sessions and self._sessions[key].session.ended:
            await self.erase(commit.session.owner, nonce=nonce)
            return await self.create(commit.session, commit.items, nonce=nonce)
        return await super().commit(commit, nonce=nonce)


class ErasesTooMuch(MemoryStore):
    """Erases everybody whose name begins alike."""

    async def erase(self, owner: Owner, **options: Any) -> Receipt:
        for other in {known for known, _ in self._sessions if known != owner and known.user[:2] == owner.user[:2]}:
            await super().erase(other, nonce=b"")
        return await super().erase(owner, **options)


class ListsEverybody(MemoryStore):
    """Lists sessions of all users."""

    async def sessions(self, owner: Owner, **options: Any) -> Any:
        listing = await super().sessions(owner, **options)
        every = tuple(kept.session for kept in self._sessions.values())
        return msgspec.structs.replace(listing, sessions=every)


class NamesInTheLog(MemoryStore):
    """Puts owners on record under their names."""

    def _audit_id(self, owner: Owner | None, *, introduce: bool) -> str:
        if owner is not None:
            self._audit_ids[owner] = str(owner)
        return "" if owner is None else str(owner)


class RotationLosesCommits(MemoryStore):
    """Replaces the whole session when its secret is re-wrapped."""

    async def rewrap(self, old: SealedSession, wrapped: bytes | None, carry: bytes | None, *, nonce: bytes) -> Receipt:
        self._sessions[old.owner, old.id].session = msgspec.structs.replace(old, wrapped=wrapped, carry=carry)
        return Receipt(nonce, count=1)


class ItemsSwapped(MemoryStore):
    """Brings another session's items, under the right session."""

    async def load(self, owner: Owner, session_id: str, **options: Any) -> Loaded:
        loaded = await super().load(owner, session_id, **options)
        others = [kept for key, kept in self._sessions.items() if key != (owner, session_id) and kept.items]
        return msgspec.structs.replace(loaded, items=others[0].items) if others and loaded.items else loaded


class PagesSwapped(MemoryStore):
    """Pages through another session's items."""

    async def items(self, owner: Owner, session_id: str, **options: Any) -> Page:
        page = await super().items(owner, session_id, **options)
        others = [kept for key, kept in self._sessions.items() if key != (owner, session_id) and kept.items]
        return msgspec.structs.replace(page, items=others[0].items) if others and page.items else page


class AnybodysLease(MemoryStore):
    """Lets whoever knows a lease give it back."""

    async def release(self, owner: Owner, session_id: str, lease: bytes, *, nonce: bytes) -> Receipt:
        for key in [key for key, held in self._leases.items() if held[0] == lease]:
            del self._leases[key]
        return Receipt(nonce)


class AnybodysWrap(MemoryStore):
    """Re-wraps a session by its id."""

    async def rewrap(self, old: SealedSession, wrapped: bytes | None, carry: bytes | None, *, nonce: bytes) -> Receipt:
        owner = await self.owner_of(old.id) or old.owner
        return await super().rewrap(msgspec.structs.replace(old, owner=owner), wrapped, carry, nonce=nonce)


class AnybodysPlace(MemoryStore):
    """Lets a session come in the place of anybody's."""

    async def create(self, session: SealedSession, *args: Any, **options: Any) -> Receipt:
        if (place := options.get("instead_of")) and await self.owner_of(place):
            options["instead_of"] = None
        return await super().create(session, *args, **options)


class RecordsMixed(MemoryStore):
    """Finds a record by its key in any session."""

    async def load(self, owner: Owner, session_id: str, **options: Any) -> Loaded:
        loaded = await super().load(owner, session_id, **options)
        found = [kept for (_, _, key), kept in self._records.items() if key == options.get("record")]
        return msgspec.structs.replace(loaded, record=found[0] if found else None)


class RecordsKept(MemoryStore):
    """Forgets to erase records."""

    async def erase(self, owner: Owner, **options: Any) -> Receipt:
        records = dict(self._records)
        receipt = await super().erase(owner, **options)
        self._records = records
        return receipt


class NamesComeBack(MemoryStore):
    """Gives an erased owner a name in the log again."""

    def _audit_id(self, owner: Owner | None, *, introduce: bool) -> str:
        return super()._audit_id(owner, introduce=True)


class TenantsMixed(MemoryStore):
    """Files users without a tenant beside tenants."""

    async def tenanted(self) -> bool | None:
        return None


class RefusedClaims(MemoryStore):
    """Files what a turn said before it looks whether the turn can be stored."""

    async def commit(self, commit: Commit, *, nonce: bytes) -> Receipt:
        self._prints.keep(commit.session, commit.fingerprints)
        return await super().commit(commit, nonce=nonce)


class EntryPassedOver(MemoryStore):
    """Goes on behind an entry that was not there yet."""

    async def trail(self, *, after: bytes, limit: int) -> Trail:
        page = await super().trail(after=after, limit=limit)
        if len(page.entries) == limit:
            return page
        return Trail(page.entries, msgspec.msgpack.encode(len(self._entries) + 1))


class EndWithoutEntries(MemoryStore):
    """Ends a page early."""

    async def trail(self, *, after: bytes, limit: int) -> Trail:
        return await super().trail(after=after, limit=max(limit - 1, 1))


class NowhereReached(MemoryStore):
    """Forgets how far somebody has come."""

    async def trail(self, *, after: bytes, limit: int) -> Trail:
        return Trail((await super().trail(after=after, limit=limit)).entries, after)


class TailNowhere(MemoryStore):
    """Does not say where the log ends."""

    async def audit_tail(self, limit: int) -> Trail:
        return Trail((await super().audit_tail(limit)).entries, b"")


class EntriesReordered(MemoryStore):
    """Brings the newest entries first."""

    async def trail(self, *, after: bytes, limit: int) -> Trail:
        page = await super().trail(after=after, limit=limit)
        return Trail(page.entries[::-1], page.after)


class NothingPruned(MemoryStore):
    """Says that old entries are gone, and keeps them."""

    async def prune_audit(self, upto: Heads, *, nonce: bytes) -> Receipt:
        return Receipt(nonce, count=sum(number for number, _ in upto.values()))


class TooMuchPruned(MemoryStore):
    """Drops one entry more than was signed for."""

    async def prune_audit(self, upto: Heads, *, nonce: bytes) -> Receipt:
        return await super().prune_audit({writer: (n + 1, "") for writer, (n, _) in upto.items()}, nonce=nonce)


class AnyPosition(MemoryStore):
    """Takes what is no position for the beginning."""

    async def trail(self, *, after: bytes, limit: int) -> Trail:
        return await super().trail(after=after if after[:2] != b"\x01 " else b"", limit=limit)


BROKEN = [
    TenantsMixed, NothingPruned, TooMuchPruned, TailNowhere,
    EntryPassedOver, EndWithoutEntries, NowhereReached, EntriesReordered, AnyPosition,
    ItemsSwapped, PagesSwapped, AnybodysLease, AnybodysWrap, AnybodysPlace, RecordsMixed, RecordsKept, NamesComeBack,
    OwnerIgnored, OwnerIgnoredInPages, TenantIgnored, VersionIgnored, LeaseIgnored, TailReordered, RowsSwapped,
    EchoMissing, TurnStoredTwice, HalfCommitted, SecretKept, LateWrites, ErasesTooMuch, ListsEverybody, NamesInTheLog,
    RotationLosesCommits, RefusedClaims,
]  # fmt: skip


_PROMISES = [getattr(StoreConformance, name) for name in dir(StoreConformance) if name.startswith("test_")]


async def _broken_promises(store: type[MemoryStore]) -> list[str]:
    broken = []
    for promise in _PROMISES:
        try:
            await promise(StoreConformance(), store())
        except (Exception, pytest.fail.Exception):  # noqa: BLE001 - however it fails
            broken.append(promise.__name__)
    return broken


@pytest.mark.parametrize("store", BROKEN)
async def test_the_contract_rejects(store: type[MemoryStore]) -> None:
    """A store that breaks a promise fails the suite: the suite can fail."""
    assert await _broken_promises(store)


async def test_the_contract_accepts() -> None:
    """The store from which the broken ones are made keeps every promise."""
    assert await _broken_promises(MemoryStore) == []


class NeverEnding(Prints):
    """Remembers what ended sessions said."""

    def end(self, owner: Owner, session_id: str) -> None:
        pass


class NeverExpiring(Prints):
    """Does not look at the time."""

    def claims(self, scope: str, digests: Sequence[bytes], *, now: int, nonce: bytes) -> Claims:
        return super().claims(scope, digests, now=0, nonce=nonce)


class EndsFixed(Prints):
    """Lets what was said end when it would have ended at that time."""

    def keep(self, session: SealedSession, fingerprints: Sequence[Fingerprint]) -> None:
        if fingerprints:
            super().keep(session, fingerprints)


class FirstHolds(Prints):
    """Leaves a claim with the session that was the first to say it."""

    def keep(self, session: SealedSession, fingerprints: Sequence[Fingerprint]) -> None:
        digests = [one.digest for one in fingerprints]
        held = self.claims("acme", digests, now=0, nonce=b"").owners
        super().keep(session, [one for one in fingerprints if session.owner not in held.get(one.digest, ())])


class DeadCount(Prints):
    """Counts claims that are over towards what is common."""

    def keep(self, session: SealedSession, fingerprints: Sequence[Fingerprint]) -> None:
        super().keep(msgspec.structs.replace(session, updated_at=0), fingerprints)


class UniqueIgnored(Prints):
    """Lets anything become common."""

    def keep(self, session: SealedSession, fingerprints: Sequence[Fingerprint]) -> None:
        super().keep(session, [msgspec.structs.replace(one, unique=False) for one in fingerprints])


class NothingCommon(Prints):
    """Takes every fingerprint for a unique one."""

    def keep(self, session: SealedSession, fingerprints: Sequence[Fingerprint]) -> None:
        super().keep(session, [msgspec.structs.replace(one, unique=True) for one in fingerprints])


class SeedYields(Prints):
    """Seeds only what nobody claims."""

    def seed(self, scope: str, digests: Sequence[bytes]) -> int:
        held = self.claims(scope, digests, now=0, nonce=b"").owners
        return super().seed(scope, [digest for digest in digests if not held.get(digest)]) + len(held)


class ScopesMixed(Prints):
    """Files what all tenants said together."""

    def claims(self, scope: str, digests: Sequence[bytes], *, now: int, nonce: bytes) -> Claims:
        return super().claims("", digests, now=now, nonce=nonce)

    def keep(self, session: SealedSession, fingerprints: Sequence[Fingerprint]) -> None:
        super().keep(session, [msgspec.structs.replace(one, scope="") for one in fingerprints])


class NothingDropped(Prints):
    """Has no bound."""

    def sweep(self, now: int, most: int) -> int:
        return super().sweep(now, 1 << 40)


class CommonDropped(Prints):
    """Lets go of what is common first."""

    def sweep(self, now: int, most: int) -> int:
        before = len(self._index)
        for number in range(SHARDS):
            self._index._grow(number, None, max(len(self._index) - most, 0))
        return before - len(self._index) + super().sweep(now, most)


_LIVES = "test_a_claim_lives_as_long_as_its_session"
BROKEN_PRINTS: dict[type[Prints], str] = {
    NeverEnding: _LIVES,
    NeverExpiring: _LIVES,
    EndsFixed: _LIVES,
    FirstHolds: _LIVES,
    DeadCount: "test_claims_that_are_over_do_not_make_common",
    UniqueIgnored: "test_a_unique_fingerprint_is_never_common",
    NothingCommon: "test_fingerprints_become_common",
    SeedYields: "test_what_is_seeded_is_common",
    ScopesMixed: "test_fingerprints_become_common",
    NothingDropped: "test_the_oldest_fingerprints_are_dropped",
    CommonDropped: "test_the_oldest_fingerprints_are_dropped",
}
"""Each with the promise that it breaks."""


@pytest.mark.parametrize("prints", BROKEN_PRINTS)
async def test_the_contract_rejects_fingerprints(prints: type[Prints]) -> None:
    """A store that files fingerprints wrongly fails the promise that it breaks."""

    class Broken(MemoryStore):
        def __init__(self) -> None:
            super().__init__()
            self._prints = prints()

    assert BROKEN_PRINTS[prints] in await _broken_promises(Broken)


async def test_what_was_dropped_is_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are too many fingerprints, sweeping drops some, and says how many in the log."""
    monkeypatch.setattr(upkeep, "MOST_FINGERPRINTS", 5)
    async with opened("memory://") as house:
        vault = house.cloister.vault
        for owner in (Owner(None, "ana"), Owner(None, "ben")):
            prints = [Fingerprint("", f"{owner.user} {number}".encode().rjust(8)) for number in range(4)]
            started = vault.begin(owner)
            await vault.commit(started, fingerprints=prints[:3])
            async with vault.work(started) as held:
                assert isinstance(held, Opened)
                await vault.commit(held, fingerprints=prints[3:])
        await house.cloister.sweep()
        assert [e.detail for e in await entries_of(house.cloister.store) if e.event == "fingerprints.dropped"] == [
            '{"count":4}'
        ]
        await house.cloister.sweep()
        assert len([e for e in await entries_of(house.cloister.store) if e.event == "fingerprints.dropped"]) == 1


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("mongodb://host", "sqlite://"),
        ("chats.db", "memory://"),
        ("", "memory://"),
        ("sqlite:///chats.db?journal=off", "synchronous"),
        ("sqlite:///chats.db?synchronous=off", "normal"),
        ("sqlite://", "sqlite:///chats.db"),
        ("sqlite://host/chats.db", "sqlite:///chats.db"),
        ("memory://?x=1", "none"),
        ("memory://name", "takes no name"),
    ],
)
def test_a_wrong_url_is_refused(url: str, named: str) -> None:
    """An unknown scheme or option is refused with those that there are."""
    with pytest.raises(ConfigurationError, match=named):
        stores.connect(url)
