"""What any store must do, as tests."""

from __future__ import annotations

import asyncio
import random
import secrets
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest

from cloister import audit, sessions
from cloister.audit import Entry, Event, Signed, event
from cloister.errors import ConfigurationError, SessionConflict
from cloister.model import Owner, SealedSession, to_micros
from cloister.sealing import tag
from cloister.stores.base import Account, Charge, Fingerprint, Loaded, Receipt, Record, Store, every_entry
from cloister.testing.accounts import AccountConformance
from cloister.testing.credentials import CredentialConformance, sealed_credential
from cloister.testing.records import RecordConformance
from cloister.testing.rows import ANA, BEN, LOOKALIKES, START, grown, load, nonce, sealed_items, sealed_session


async def entries_of(store: Store) -> list[Entry]:
    """Give all audit entries of *store*."""
    return [entry async for entry in every_entry(store)]


async def _started(store: Store, owner: Owner = ANA, items: int = 0, **changes: Any) -> SealedSession:
    rows = sealed_items(items)
    session = sealed_session(owner, count=items, tokens=10 * items, **changes)
    started = event("session.started", START, owner, sessions.digest(session.id))
    await store.create(session, rows, nonce=nonce(), entries=[started])
    return session


async def _said(store: Store, session: SealedSession, *prints: Fingerprint, **changes: Any) -> SealedSession:
    """Commit *prints*, and what of the session *changes*; give it as it is then."""
    commit = grown(msgspec.structs.replace(session, **changes), (), await _leased(store, session), fingerprints=prints)
    await store.commit(commit, nonce=nonce())
    return commit.session


async def _whose(store: Store, *digests: bytes, scope: str = "acme", at: datetime = START) -> dict[bytes, set[Owner]]:
    """Say whose *digests* are at a moment."""
    claims = await store.claims(scope, digests, now=to_micros(at), nonce=nonce())
    assert claims.size >= 0
    assert all(len(owners) == len(set(owners)) for owners in claims.owners.values())
    return {digest: set(owners) for digest, owners in claims.owners.items()}


async def _leased(store: Store, session: SealedSession) -> bytes:
    lease = secrets.token_bytes(16)
    assert not (await load(store, session.owner, session.id, lease=lease)).busy
    return lease


async def _recorded(store: Store, count: int) -> None:
    """Put entries on record, one at a time, about sessions that lie in different places."""
    for number in range(count):
        noted = event("turn.committed", START, ANA, sessions.digest(sessions.new_id()), items=number)
        await store.record([noted], nonce=nonce())


async def _followed(store: Store, after: bytes, limit: int) -> tuple[list[Entry], bytes]:
    """Read the log from a position to its end; give the entries, and where that is."""
    found: list[Entry] = []
    for _ in range(1_000):
        page = await store.trail(after=after, limit=limit)
        assert len(page.entries) <= limit
        found += page.entries
        after = page.after
        if len(page.entries) < limit:
            return found, after
    raise AssertionError("the log has no end")


def _check_order(entries: list[Entry]) -> None:
    last: dict[str, int] = {}
    for entry in entries:
        assert entry.number == last.get(entry.writer, 0) + 1
        last[entry.writer] = entry.number


_FOUR = (ANA, BEN, Owner("acme", "cleo"), Owner("acme", "dan"))


class StoreConformance(AccountConformance, CredentialConformance, RecordConformance):
    """The contract of `cloister.stores.base.Store`, as tests. Give a ``store`` fixture: open, empty, closed after."""

    # --- what was stored comes back, to its owner -------------------------------------------------------------------

    async def test_returns_what_was_stored(self, store: Store) -> None:
        """A session and its items come back as they were stored."""
        session, items = sealed_session(count=3, tokens=30), sealed_items(3)
        await store.create(session, items, nonce=nonce())
        loaded = await load(store, ANA, session.id)
        assert loaded.session == session
        assert list(loaded.items) == items
        assert loaded.before == b""

    async def test_foreign_looks_missing(self, store: Store) -> None:
        """Somebody else's session and no session give the same answer to every request."""
        session = await _started(store, ANA, items=2)
        for session_id in (session.id, sessions.new_id()):
            loaded = await load(store, BEN, session_id, lease=b"ben's", record=b"key")
            assert msgspec.structs.replace(loaded, echo=b"", items=tuple(loaded.items)) == Loaded(b"")
            page = await store.items(BEN, session_id, nonce=nonce(), first=0, limit=10)
            assert (page.session, list(page.items)) == (None, [])
            ended = await store.end(BEN, session_id, nonce=nonce(), ended="ended", now=0)
            assert ended.count == 0
        assert (await load(store, ANA, session.id)).session == session

    async def test_everybody_has_items_of_their_own(self, store: Store) -> None:
        """Two sessions of one owner, and one of another's with the same id, keep their items and records apart."""
        shared = sessions.new_id()
        held = []
        for owner, session_id in ((ANA, shared), (BEN, shared), (ANA, sessions.new_id())):
            items = sealed_items(3)
            session = sealed_session(owner, session_id, count=3, tokens=30)
            kept = Record(session_id, session_id, b"key " + secrets.token_bytes(4), b"answer", to_micros(START))
            await store.create(session, items, nonce=nonce(), record=kept)
            held.append((session, items, kept))
        for session, items, kept in held:
            loaded = await load(store, session.owner, session.id, record=kept.key)
            assert (loaded.session, list(loaded.items), loaded.record) == (session, items, kept)
            page = await store.items(session.owner, session.id, nonce=nonce(), first=1, limit=9)
            assert (list(page.items), page.before) == (items[1:], tag(items[0].sealed))
            for _, _, other in held:
                if other is not kept:
                    assert (await load(store, session.owner, session.id, record=other.key)).record is None
        await store.erase(ANA, nonce=nonce())
        for session, items, kept in held:
            loaded = await load(store, session.owner, session.id, record=kept.key)
            assert list(loaded.items) == ([] if session.owner == ANA else items)
            assert loaded.record == (None if session.owner == ANA else kept)

    async def test_nobody_touches_anothers(self, store: Store) -> None:
        """Releasing, renewing, ending and re-wrapping under another owner's name do nothing to a session."""
        session = await _started(store, ANA, items=2)
        lease = await _leased(store, session)
        await store.release(BEN, session.id, lease, nonce=nonce())
        with pytest.raises(SessionConflict):
            await store.renew(BEN, session.id, lease, nonce=nonce())
        bens = msgspec.structs.replace(session, owner=BEN)
        assert (await store.rewrap(bens, b"other", None, nonce=nonce())).count == 0
        assert (await store.end(BEN, session.id, nonce=nonce(), ended="ended", now=0)).count == 0
        assert (await load(store, ANA, session.id, lease=b"another")).busy
        assert (await load(store, ANA, session.id)).session == session

    async def test_a_record_is_never_replaced(self, store: Store) -> None:
        """What was answered under a key stays the answer: a second one is refused, with its turn."""
        session = await _started(store)
        kept = Record(session.id, session.id, b"key", b"first", to_micros(START))
        await store.commit(grown(session, (), await _leased(store, session), record=kept), nonce=nonce())
        second = msgspec.structs.replace(kept, sealed=b"second")
        other = sealed_session(ANA, sessions.new_id(beside=session.id))
        with pytest.raises(SessionConflict):
            await store.create(other, nonce=nonce(), record=second)
        assert (await load(store, ANA, other.id)).session is None
        assert (await load(store, ANA, session.id, record=b"key")).record == kept

    async def test_no_name_is_taken_for_another(self, store: Store) -> None:
        """Each of many look-alike owners has a session of the same id to itself, and erasing one leaves the others."""
        shared = sessions.new_id()
        for owner in LOOKALIKES:
            await store.create(sealed_session(owner, shared), nonce=nonce())
        for owner in LOOKALIKES:
            found = (await load(store, owner, shared)).session
            assert found is not None
            assert found.owner == owner
            listing = await store.sessions(owner, nonce=nonce(), limit=100, before=None)
            assert [row.owner for row in listing.sessions] == [owner]
        await store.erase(LOOKALIKES[1], nonce=nonce())
        gone = [owner for owner in LOOKALIKES if (await load(store, owner, shared)).session is None]
        assert gone == [LOOKALIKES[1]]

    async def test_refuses_a_taken_id(self, store: Store) -> None:
        """A session cannot be put in another's place, but storing it twice is harmless."""
        session = await _started(store, items=2)
        again = await store.create(session, sealed_items(2), nonce=nonce())
        assert again.repeated
        with pytest.raises(SessionConflict):
            await store.create(sealed_session(ANA, session.id), nonce=nonce())
        assert (await load(store, ANA, session.id)).session == session

    async def test_every_answer_echoes(self, store: Store) -> None:
        """Every answer carries the nonce of its request, and no other."""
        session = await _started(store, items=1)
        lease = secrets.token_bytes(16)
        charge = Charge(Account("acme", "ana", "2026-01-01"), 1, None, 1)
        over = msgspec.structs.replace(charge, amount=9, limit=8)
        key = sealed_credential()
        named = {"limit": 9, "after": "k"}
        requests: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
            (store.load, (ANA, session.id), {"budget": 10}),
            (store.load, (ANA, session.id), {"budget": 10, "lease": lease}),
            (store.load, (ANA, session.id), {"budget": 10, "lease": b"another"}),
            (store.load, (BEN, session.id), {"budget": 10}),
            (store.load, (ANA, session.id), {"budget": 10, "lease": lease, "charges": [charge]}),
            (store.load, (ANA, session.id), {"budget": 10, "lease": lease, "charges": [over]}),
            (store.load, (ANA, session.id), {"budget": 10, "lease": lease}),
            (store.renew, (ANA, session.id, lease), {}),
            (store.items, (ANA, session.id), {"first": 0, "limit": 10}),
            (store.sessions, (ANA,), {"limit": 10, "before": None}),
            (store.commit, (grown(session, sealed_items(1, 1), lease),), {}),
            (store.release, (ANA, session.id, lease), {}),
            (store.record, ([event("turn.failed", START, ANA)],), {}),
            (store.claims, ("", [b"12345678"]), {"now": 0}),
            (store.claims, ("", []), {"now": 0}),
            (store.seed, ("", [b"12345678"]), {}),
            (store.seed, ("", []), {}),
            (store.create, (sealed_session(),), {}),
            (store.rewrap, (session, b"w", None), {}),
            (store.end, (ANA, session.id), {"ended": "ended", "now": 0}),
            (store.sweep, (), {"now": 0, "tombstones_before": 0, "fingerprints": 9}),
            (store.charge, (ANA, lease, [charge]), {}),
            (store.charge, (ANA, lease, [msgspec.structs.replace(charge, limit=1)]), {}),
            (store.charge, (ANA, lease, []), {}),
            (store.spent, ([charge.account],), {}),
            (store.spent, ([],), {}),
            (store.prune_audit, ({},), {}),
            (store.forget, (ANA, Record(session.id, session.id, b"key", b"", 0)), {}),
            (store.enrol, (key,), {}),
            (store.enrol, (key,), {}),
            (store.credential, (key.digest,), {}),
            (store.credential, (b"",), {}),
            (store.credentials, ("acme", "key"), named),
            (store.credentials, (None, "operator"), named),
            (store.reseal, (key, b"s"), {}),
            (store.revoke, ("acme", "key", key.id), {}),
            (store.revoke, ("acme", "key", key.id), {}),
            (store.revoke_all, (ANA,), {}),
            (store.erase, (ANA,), {}),
        ]
        for method, arguments, options in requests:
            asked = nonce()
            reply = await method(*arguments, nonce=asked, **options)
            assert reply.echo == asked, method.__name__

    # --- the tail -----------------------------------------------------------------------------------------------------

    async def test_reads_the_newest_first(self, store: Store) -> None:
        """A load reads back from the newest item to the one beyond the budget, in order, with the tag before it."""
        session, items = sealed_session(count=20, tokens=200), sealed_items(20)
        await store.create(session, items, nonce=nonce())
        for budget, kept in ((0, 1), (9, 1), (10, 2), (35, 4), (199, 20), (200, 20), (10_000, 20)):
            loaded = await load(store, ANA, session.id, budget)
            assert list(loaded.items) == items[20 - kept :]
            assert loaded.before == (b"" if kept == 20 else tag(items[19 - kept].sealed))

    async def test_pages_from_the_oldest(self, store: Store) -> None:
        """A page begins where it was asked to, in order, with the tag of the item before it."""
        session, items = sealed_session(count=7, tokens=70), sealed_items(7)
        await store.create(session, items, nonce=nonce())
        for first in range(9):
            page = await store.items(ANA, session.id, nonce=nonce(), first=first, limit=3)
            assert list(page.items) == items[first : first + 3]
            assert page.session == session
            if 0 < first < 7:
                assert page.before == tag(items[first - 1].sealed)

    # --- commits ------------------------------------------------------------------------------------------------------

    async def test_commits_all_at_once(self, store: Store) -> None:
        """Items, head, entries, record and fingerprints of a commit are all there afterwards."""
        session = await _started(store, items=2)
        lease = await _leased(store, session)
        record = Record(session.id, session.id, b"key", b"answer", to_micros(START) + 1)
        prints = [Fingerprint("acme", b"12345678")]
        commit = grown(session, sealed_items(2, 2), lease, record=record, fingerprints=prints)
        assert not (await store.commit(commit, nonce=nonce())).repeated
        loaded = await load(store, ANA, session.id, record=b"key")
        assert loaded.session == commit.session
        assert list(loaded.items)[2:] == list(commit.items)
        assert loaded.record == record
        assert sorted(entry.event for entry in await entries_of(store)) == ["session.started", "turn.committed"]
        assert await _whose(store, b"12345678") == {b"12345678": {ANA}}

    async def test_a_refused_commit_leaves_nothing(self, store: Store) -> None:
        """A commit at another version, or without the lease, stores nothing of itself."""
        session = await _started(store, items=2)
        lease = await _leased(store, session)
        record = Record(session.id, session.id, b"key", b"answer", to_micros(START) + 1)
        prints = [Fingerprint("acme", b"12345678")]
        good = grown(session, sealed_items(2, 2), lease, record=record, fingerprints=prints)
        other = await _leased(store, await _started(store))
        for bad in (
            msgspec.structs.replace(good, version=session.version - 1),
            msgspec.structs.replace(good, version=session.version + 1),
            msgspec.structs.replace(good, lease=secrets.token_bytes(16)),
            msgspec.structs.replace(good, lease=other),
            msgspec.structs.replace(good, lease=b""),
            msgspec.structs.replace(good, session=msgspec.structs.replace(good.session, owner=BEN)),
        ):
            with pytest.raises(SessionConflict):
                await store.commit(bad, nonce=nonce())
        loaded = await load(store, ANA, session.id, record=b"key")
        assert loaded.session == session
        assert len(loaded.items) == 2
        assert loaded.record is None
        assert {entry.event for entry in await entries_of(store)} == {"session.started"}
        assert await _whose(store, b"12345678") == {}

    async def test_a_repeated_commit_is_stored_once(self, store: Store) -> None:
        """Committing the same turn again answers success and changes nothing."""
        session = await _started(store)
        commit = grown(session, sealed_items(2), await _leased(store, session))
        await store.commit(commit, nonce=nonce())
        assert (await store.commit(commit, nonce=nonce())).repeated
        assert len((await load(store, ANA, session.id)).items) == 2
        assert len(await entries_of(store)) == 2

    async def test_of_two_commits_one_wins(self, store: Store) -> None:
        """Of many commits at the same version at once, exactly one is stored."""
        session = await _started(store)
        lease = await _leased(store, session)
        commits = [grown(session, sealed_items(2), lease) for _ in range(8)]
        outcomes = await asyncio.gather(
            *(store.commit(commit, nonce=nonce()) for commit in commits), return_exceptions=True
        )
        assert sum(not isinstance(outcome, BaseException) for outcome in outcomes) == 1
        assert all(isinstance(o, SessionConflict) for o in outcomes if isinstance(o, BaseException))
        loaded = await load(store, ANA, session.id)
        won = [c for c, o in zip(commits, outcomes, strict=True) if not isinstance(o, BaseException)]
        assert list(loaded.items) == list(won[0].items)

    async def test_a_commit_keeps_the_secret(self, store: Store) -> None:
        """A commit does not touch wrapped secret and carried text, which rotation replaces meanwhile."""
        session = await _started(store)
        lease = await _leased(store, session)
        assert (await store.rewrap(session, b"new wrap", b"new carry", nonce=nonce())).count == 1
        await store.commit(grown(session, sealed_items(2), lease), nonce=nonce())
        found = (await load(store, ANA, session.id)).session
        assert found is not None
        assert (found.wrapped, found.carry) == (b"new wrap", b"new carry")

    # --- leases -------------------------------------------------------------------------------------------------------

    async def test_one_lease_at_a_time(self, store: Store) -> None:
        """A lease that is held keeps others out until it is given back or the turn is committed."""
        session = await _started(store)
        first, second = await _leased(store, session), secrets.token_bytes(16)
        busy = await load(store, ANA, session.id, lease=second)
        assert busy.busy
        assert busy.session is None
        await store.release(ANA, session.id, second, nonce=nonce())  # not its own: no effect
        assert (await load(store, ANA, session.id, lease=second)).busy
        await store.renew(ANA, session.id, first, nonce=nonce())
        with pytest.raises(SessionConflict):
            await store.renew(ANA, session.id, second, nonce=nonce())
        await store.release(ANA, session.id, first, nonce=nonce())
        assert not (await load(store, ANA, session.id, lease=second)).busy
        await store.commit(grown(session, sealed_items(1), second), nonce=nonce())
        assert not (await load(store, ANA, session.id, lease=first)).busy

    async def test_a_lease_is_its_owners(self, store: Store) -> None:
        """Nobody holds up somebody else's session, and none is left for a session that is not there."""
        session = await _started(store)
        await load(store, BEN, session.id, lease=b"ben's")
        assert not (await load(store, ANA, session.id, lease=b"ana's")).busy
        missing = sessions.new_id()
        await load(store, ANA, missing, lease=b"one")
        await store.create(sealed_session(ANA, missing), nonce=nonce())
        assert not (await load(store, ANA, missing, lease=b"another")).busy

    async def test_reading_needs_no_lease(self, store: Store) -> None:
        """Loading without a lease and paging work while somebody holds one."""
        session = await _started(store, items=1)
        await _leased(store, session)
        assert (await load(store, ANA, session.id)).session == session
        assert len((await store.items(ANA, session.id, nonce=nonce(), first=0, limit=9)).items) == 1

    # --- listing ------------------------------------------------------------------------------------------------------

    async def test_lists_its_owners_sessions(self, store: Store) -> None:
        """A listing gives the owner's live sessions, latest first, from the cursor on."""
        made = [await _started(store, ANA, created_at=to_micros(START) + n // 2) for n in range(6)]
        await _started(store, BEN)
        await store.end(ANA, made[0].id, nonce=nonce(), ended="ended", now=0)
        expected = sorted(made[1:], key=lambda row: (row.created_at, row.id), reverse=True)
        found: list[SealedSession] = []
        before = None
        for _ in range(4):
            page = (await store.sessions(ANA, nonce=nonce(), limit=2, before=before)).sessions
            found += page
            before = (found[-1].created_at, found[-1].id)
        assert found == expected

    async def test_names_owners_for_the_log_alone(self, store: Store) -> None:
        """The store can say whose a session is, and whether it holds tenants."""
        assert await store.tenanted() is None
        session = await _started(store, BEN)
        assert await store.tenanted() is True
        assert await store.owner_of(session.id) == BEN
        assert await store.owner_of(sessions.new_id()) is None

    async def test_tenants_and_none_never_mix(self, store: Store) -> None:
        """Users without a tenant are never filed beside tenants, nor the reverse, whoever opened the store."""
        tenantless = Owner(None, "ana")
        for first, second in ((tenantless, ANA), (ANA, tenantless)):
            session = await _started(store, first)
            assert await store.tenanted() is (first.tenant is not None)
            assert await store.owner_of(session.id) == first
            with pytest.raises(ConfigurationError):
                await _started(store, second)
            assert not (await store.sessions(second, nonce=nonce(), limit=9, before=None)).sessions
            await store.erase(first, nonce=nonce())
            assert await store.tenanted() is None  # from here on it is nobody's

    # --- ends ---------------------------------------------------------------------------------------------------------

    async def test_an_end_destroys(self, store: Store) -> None:
        """An ended session leaves a tombstone without secret, head and items; only expiry leaves the system text."""
        for ended in ("expired", "ended"):
            session = await _started(store, items=4)
            receipt = await store.end(ANA, session.id, nonce=nonce(), ended=ended, now=to_micros(START))
            assert receipt.count == 1
            loaded = await load(store, ANA, session.id, lease=b"late")
            assert loaded.session is not None
            assert (loaded.session.wrapped, loaded.session.head, loaded.session.ended) == (None, None, ended)
            assert loaded.session.carry == (session.carry if ended == "expired" else None)
            assert not loaded.items
            assert not (await store.items(ANA, session.id, nonce=nonce(), first=0, limit=9)).items
            for again in (ended, "ended", "expired"):
                await store.end(ANA, session.id, nonce=nonce(), ended=again, now=0)
            last = (await load(store, ANA, session.id)).session
            assert last is not None
            assert (last.ended, last.carry) == ("ended", None)
            assert (await store.end(ANA, session.id, nonce=nonce(), ended="ended", now=0)).count == 0

    async def test_a_late_commit_is_refused(self, store: Store) -> None:
        """A turn whose session was ended or erased meanwhile stores nothing."""
        for destroy in ("end", "erase"):
            session = await _started(store)
            commit = grown(session, sealed_items(2), await _leased(store, session))
            if destroy == "end":
                await store.end(ANA, session.id, nonce=nonce(), ended="ended", now=0)
            else:
                await store.erase(ANA, nonce=nonce())
            with pytest.raises(SessionConflict):
                await store.commit(commit, nonce=nonce())
            assert not (await load(store, ANA, session.id)).items

    async def test_nothing_comes_instead_of_what_was_erased(self, store: Store) -> None:
        """A session in another's place comes to be only while that one, or its tombstone, is still there."""
        old = await _started(store)
        new = sealed_session(ANA, sessions.new_id(beside=old.id))
        await store.end(ANA, old.id, nonce=nonce(), ended="expired", now=0)
        await store.create(new, nonce=nonce(), instead_of=old.id)
        with pytest.raises(SessionConflict):
            await store.create(sealed_session(BEN, sessions.new_id(old.id)), nonce=nonce(), instead_of=old.id)
        await store.end(ANA, old.id, nonce=nonce(), ended="ended", now=0)
        with pytest.raises(SessionConflict):
            await store.create(sealed_session(ANA, sessions.new_id(old.id)), nonce=nonce(), instead_of=old.id)
        await store.erase(ANA, nonce=nonce())
        for owner in (ANA, BEN):
            late = sealed_session(owner, sessions.new_id(beside=old.id))
            with pytest.raises(SessionConflict):
                await store.create(late, nonce=nonce(), instead_of=old.id)
            assert (await load(store, owner, late.id)).session is None

    async def test_expiry_waits_for_work(self, store: Store) -> None:
        """An end at a version does nothing if the session has moved on, or somebody is at work on it."""
        session = await _started(store)
        lease = await _leased(store, session)

        async def expire(version: int) -> int:
            return (await store.end(ANA, session.id, nonce=nonce(), ended="expired", now=0, version=version)).count

        assert await expire(session.version) == 0
        await store.commit(grown(session, sealed_items(1), lease), nonce=nonce())
        assert await expire(session.version) == 0
        assert await expire(session.version + 1) == 1

    async def test_erases_one_owner(self, store: Store) -> None:
        """An erasure removes everything of its owner, tombstones and audit name too, and nothing of anybody else."""
        mine = [await _started(store, ANA, items=2) for _ in range(3)]
        other = await _started(store, BEN, items=2)
        await store.end(ANA, mine[0].id, nonce=nonce(), ended="expired", now=0)
        lease = await _leased(store, mine[1])
        print_ = Fingerprint("acme", b"12345678")
        await store.commit(grown(mine[1], (), lease, fingerprints=[print_]), nonce=nonce())
        other = await _said(store, other, print_)
        erased = event("owner.erased", START, ANA)
        assert (await store.erase(ANA, nonce=nonce(), entries=[erased])).count == 3
        assert [(await load(store, ANA, row.id)).session for row in mine] == [None] * 3
        assert (await load(store, BEN, other.id)).session == other
        assert len((await load(store, BEN, other.id)).items) == 2
        assert set((await store.audit_owners()).values()) == {BEN}
        assert await _whose(store, b"12345678") == {b"12345678": {BEN}}
        assert "owner.erased" in [entry.event for entry in await entries_of(store)]
        late = [
            event("turn.failed", START, ANA),
            msgspec.structs.replace(event("access.foreign", START, BEN), other=ANA),
        ]
        await store.record(late, nonce=nonce())
        assert set((await store.audit_owners()).values()) == {BEN}, "a late entry brought an erased name back"

    async def test_sweeps(self, store: Store) -> None:
        """What is due is named; old tombstones, expired records and fingerprints go, and nothing else."""
        moment = to_micros(START)
        due = await _started(store, expires_at=moment)
        due = await _said(store, due, Fingerprint("acme", b"12345678"))
        later = await _started(store, expires_at=moment + 1)
        for_ever = await _started(store, expires_at=None)
        assert [row.id for row in await store.expired(now=moment, limit=9, skip=0)] == [due.id]
        await store.end(ANA, due.id, nonce=nonce(), ended="expired", now=moment)
        assert await store.expired(now=moment, limit=9, skip=0) == []
        lease = await _leased(store, later)
        commit = grown(
            later,
            sealed_items(1),
            lease,
            record=Record(later.id, later.id, b"key", b"answer", moment),
            fingerprints=[Fingerprint("acme", b"87654321")],
        )
        await store.commit(commit, nonce=nonce())
        limits = {"now": moment, "fingerprints": 9}
        swept = await store.sweep(tombstones_before=moment, nonce=nonce(), **limits)
        assert (swept.count, swept.dropped) == (0, 0)
        assert (await load(store, ANA, later.id, record=b"key")).record is None
        assert await _whose(store, b"12345678", b"87654321") == {b"87654321": {ANA}}
        assert (await load(store, ANA, due.id)).session is not None
        assert (await store.sweep(tombstones_before=moment + 1, nonce=nonce(), **limits)).count == 1
        assert (await load(store, ANA, due.id)).session is None
        assert (await load(store, ANA, later.id)).session == commit.session
        assert (await load(store, ANA, for_ever.id)).session == for_ever

    async def test_a_record_outlives_its_session(self, store: Store) -> None:
        """A record is found under the id that the caller used, by its owner alone, after that session has ended."""
        old = await _started(store)
        await store.end(ANA, old.id, nonce=nonce(), ended="expired", now=0)
        new = sealed_session(ANA, sessions.new_id(beside=old.id))
        kept = Record(old.id, new.id, b"key", b"answer", to_micros(START))
        await store.create(new, nonce=nonce(), record=kept)
        assert (await load(store, ANA, old.id, record=b"key")).record == kept
        assert (await load(store, ANA, old.id, record=b"other")).record is None
        assert (await load(store, BEN, old.id, record=b"key")).record is None

    # --- fingerprints -------------------------------------------------------------------------------------------------

    async def test_fingerprints_become_common(self, store: Store) -> None:
        """A fingerprint names up to three owners of its scope; one more, or a common claim, makes it nobody's."""
        for number, owner in enumerate(_FOUR, 1):
            session = await _said(store, await _started(store, owner), *[Fingerprint("acme", b"12345678")] * 2)
            known = set(_FOUR[:number]) if number < 4 else set()
            assert await _whose(store, b"12345678", b"unknown!") == {b"12345678": known}
        assert await _whose(store, b"12345678", scope="other") == {}
        assert await _whose(store, b"12345678", scope="") == {}
        common = [Fingerprint("acme", b"abcdefgh", common=True), Fingerprint("acme", b"abcdefgh")]
        session = await _said(store, session, *common, Fingerprint("", b"abcdefgh"), Fingerprint("other", b"abcdefgh"))
        assert await _whose(store, b"abcdefgh") == {b"abcdefgh": set()}
        for scope in ("", "other"):
            assert await _whose(store, b"abcdefgh", scope=scope) == {b"abcdefgh": {session.owner}}
        await store.end(session.owner, session.id, nonce=nonce(), ended="ended", now=0)
        assert await _whose(store, b"12345678", b"abcdefgh", at=START + timedelta(days=999)) == {
            b"12345678": set(),
            b"abcdefgh": set(),
        }
        for scope in ("", "other"):
            assert await _whose(store, b"abcdefgh", scope=scope) == {}

    async def test_a_claim_lives_as_long_as_its_session(self, store: Store) -> None:
        """A claim ends with its session's time, which every commit moves, or with the session; the latest one holds."""
        hour, known = timedelta(hours=1), {b"12345678": {ANA}, b"87654321": {ANA}}
        first = sealed_session(expires_at=to_micros(START + hour))
        prints = [Fingerprint("acme", b"12345678"), Fingerprint("acme", b"87654321")]
        await store.create(first, nonce=nonce(), fingerprints=prints)
        assert await _whose(store, *known, at=START + hour - timedelta(microseconds=1)) == known
        assert await _whose(store, *known, at=START + hour) == {}
        first = await _said(store, first, expires_at=to_micros(START + 2 * hour))
        assert await _whose(store, *known, at=START + 2 * hour - timedelta(microseconds=1)) == known
        assert await _whose(store, *known, at=START + 2 * hour) == {}
        first = await _said(store, first, expires_at=None)
        assert await _whose(store, *known, at=START + 999 * hour) == known
        second = await _said(store, await _started(store, expires_at=to_micros(START + hour)), prints[0])
        assert await _whose(store, *known, at=START + hour) == {b"87654321": {ANA}}
        await store.end(ANA, first.id, nonce=nonce(), ended="expired", now=0)
        assert await _whose(store, *known) == {b"12345678": {ANA}}
        await store.end(ANA, second.id, nonce=nonce(), ended="ended", now=0)
        assert await _whose(store, *known) == {}

    async def test_claims_that_are_over_do_not_make_common(self, store: Store) -> None:
        """Only whoever still claims a fingerprint counts towards its being common."""
        print_ = Fingerprint("acme", b"12345678")
        over = [await _said(store, await _started(store, owner), print_) for owner in _FOUR[:2]]
        timed = await _started(store, _FOUR[2], expires_at=to_micros(START) + 1)
        timed = await _said(store, timed, print_)
        assert await _whose(store, b"12345678") == {b"12345678": set(_FOUR[:3])}
        await store.end(over[0].owner, over[0].id, nonce=nonce(), ended="ended", now=0)
        await store.erase(over[1].owner, nonce=nonce())
        later = Owner("acme", "eve"), Owner("acme", "fay")
        for owner in (_FOUR[3], *later):
            session = sealed_session(owner, updated_at=to_micros(START) + 1)
            await store.create(session, nonce=nonce(), fingerprints=[print_])
        after = START + timedelta(microseconds=1)
        assert await _whose(store, b"12345678", at=after) == {b"12345678": {_FOUR[3], *later}}

    async def test_a_unique_fingerprint_is_never_common(self, store: Store) -> None:
        """A unique one keeps the first three, however many repeat it, and is common only where somebody says so."""
        print_ = Fingerprint("acme", b"12345678", unique=True)
        for owner in _FOUR:
            await _said(store, await _started(store, owner), print_)
        assert await _whose(store, b"12345678") == {b"12345678": set(_FOUR[:3])}
        await _said(store, await _started(store, BEN), print_)
        assert await _whose(store, b"12345678") == {b"12345678": set(_FOUR[:3])}
        await store.seed("acme", [b"12345678"], nonce=nonce())
        assert await _whose(store, b"12345678") == {b"12345678": set()}

    async def test_what_is_seeded_is_common(self, store: Store) -> None:
        """What is seeded is common in its scope alone, for good, whoever claimed it before or claims it after."""
        digests = [b"%08d" % n for n in range(700)]
        prints = [Fingerprint(scope, digest) for scope in ("acme", "other") for digest in digests[:2]]
        session = await _said(store, await _started(store), *prints)
        assert (await store.seed("acme", digests, nonce=nonce())).count == 700
        assert (await store.seed("acme", [*digests[:9], b"another!"], nonce=nonce())).count == 1
        await _said(store, session, *prints)
        await store.erase(ANA, nonce=nonce())
        await store.sweep(now=to_micros(START), tombstones_before=0, fingerprints=9_999, nonce=nonce())
        found = await _whose(store, *digests, at=START + timedelta(days=999))
        assert found == {key: set() for key in digests}
        assert await _whose(store, *digests, scope="other") == {}

    async def test_the_oldest_fingerprints_are_dropped(self, store: Store) -> None:
        """Of too many fingerprints those of the oldest sessions go, and what is common only after all others."""
        digests = [[b"%d-%d 4567" % (who, n) for n in range(4)] for who in range(4)]
        await store.seed("acme", digests[3], nonce=nonce())
        sessions_of = []
        for number, owner in enumerate(_FOUR[:3]):
            session = await _started(store, owner, created_at=to_micros(START + timedelta(seconds=number)))
            prints = [Fingerprint("acme", digest) for digest in digests[number]]
            sessions_of.append(await _said(store, session, *prints))

        async def left(most: int) -> tuple[int, list[int]]:
            swept = await store.sweep(now=to_micros(START), tombstones_before=0, fingerprints=most, nonce=nonce())
            return swept.dropped, [len(await _whose(store, *some)) for some in digests]

        assert await left(16) == (0, [4, 4, 4, 4])
        assert await left(12) == (4, [0, 4, 4, 4])
        assert await left(12) == (0, [0, 4, 4, 4])
        await _said(store, sessions_of[0], Fingerprint("acme", digests[0][1]))
        assert await _whose(store, *digests[0]) == {digests[0][1]: {ANA}}
        assert await left(4) == (9, [0, 0, 0, 4])
        assert await left(1) == (3, [0, 0, 0, 1])

    async def test_a_refused_turn_claims_nothing(self, store: Store) -> None:
        """What is not stored changes nobody's claims, and what is stored twice claims once."""
        print_, common = Fingerprint("acme", b"12345678"), Fingerprint("acme", b"abcdefgh", common=True)
        held = Fingerprint("acme", b"abcdefgh")
        kept = [await _said(store, await _started(store, owner), print_, held) for owner in _FOUR[:3]]
        known = await _whose(store, b"12345678", b"abcdefgh")
        last = await _started(store, _FOUR[3])
        refused = grown(last, (), await _leased(store, last), fingerprints=[print_, common], version=9)
        longer = to_micros(START + timedelta(days=9))
        again = grown(msgspec.structs.replace(kept[0], expires_at=longer), (), b"no lease", fingerprints=[held])
        for commit in (refused, again):
            with pytest.raises(SessionConflict):
                await store.commit(commit, nonce=nonce())
        taken = sealed_session(_FOUR[3], last.id)
        missing = sealed_session(_FOUR[3], sessions.new_id(beside=last.id))
        for session, instead_of in ((taken, None), (missing, sessions.new_id(beside=last.id))):
            with pytest.raises(SessionConflict):
                await store.create(session, nonce=nonce(), fingerprints=[print_, common], instead_of=instead_of)
        assert await _whose(store, b"12345678", b"abcdefgh") == known == {key: set(_FOUR[:3]) for key in known}
        assert await _whose(store, b"12345678", b"abcdefgh", at=START + timedelta(days=1)) == {}
        good = grown(last, (), refused.lease, fingerprints=[Fingerprint("acme", b"another!")])
        for repeated in (False, True):
            assert (await store.commit(good, nonce=nonce())).repeated is repeated
        assert await _whose(store, b"another!") == {b"another!": {_FOUR[3]}}

    async def test_claims_at_once_all_stand(self, store: Store) -> None:
        """Of many turns that claim the same at once, in any order, none is refused and none is lost."""
        digests = [secrets.token_bytes(8) for _ in range(30)]
        started = [await _started(store, _FOUR[n % 3]) for n in range(20)]
        commits = []
        for session in started:
            prints = [Fingerprint("acme", digest) for digest in random.sample(digests, 30)]
            commits.append(grown(session, (), await _leased(store, session), fingerprints=prints))
        await asyncio.gather(*(store.commit(commit, nonce=nonce()) for commit in commits))
        assert await _whose(store, *digests) == {key: set(_FOUR[:3]) for key in digests}

    # --- audit --------------------------------------------------------------------------------------------------------

    async def test_entries_verify(self, store: Store) -> None:
        """What is put on record comes back, names no owner, verifies, and its heads say how far it goes."""
        events: list[Event] = [
            event("turn.committed", START + timedelta(seconds=n), (ANA, BEN)[n % 2], "digest", items=n)
            for n in range(9)
        ]
        await store.record(events[:4], nonce=nonce())
        await asyncio.gather(*(store.record([noted], nonce=nonce()) for noted in events[4:]))
        entries = await entries_of(store)
        assert sorted(entry.at for entry in entries) == [noted.at for noted in events]
        names = await store.audit_owners()
        assert {names[entry.owner] for entry in entries} == {ANA, BEN}
        assert not any(text in entry.owner for entry in entries for text in ("ana", "ben", "acme"))
        report = audit.verify(entries, store.heads())
        assert (report.faults, report.entries, report.unsigned) == ([], 9, 0)
        tail = (await store.audit_tail(3)).entries  # of writers at the same moment, any may be the last
        assert len(tail) == 3
        assert all(entry in entries for entry in tail)

    async def test_a_trail_goes_on_where_it_was_left(self, store: Store) -> None:
        """Pages of the log give every entry once, each writer's in order; a short one ends, until there is more."""
        await _recorded(store, 7)
        first, after = await _followed(store, b"", 3)
        assert len(first) == 7
        assert {entry.hash for entry in first} == {entry.hash for entry in await entries_of(store)}
        assert (await store.trail(after=after, limit=3)).entries == []
        await _recorded(store, 4)
        second, last = await _followed(store, after, 3)
        assert (await _followed(store, after, 2))[0] == second, "a position is good for more than once"
        assert len({entry.hash for entry in [*first, *second]}) == 11
        assert len(second) == 4
        assert (await store.trail(after=last, limit=1)).entries == []
        _check_order([*first, *second])
        assert audit.verify([*first, *second], store.heads()).faults == []

    async def test_the_tail_ends_where_the_trail_goes_on(self, store: Store) -> None:
        """Whoever has seen the last entries goes on behind them, without having read those before."""
        _, beginning = await _followed(store, (await store.audit_tail(9)).after, 9)
        await _recorded(store, 6)
        tail = await store.audit_tail(4)
        assert len(tail.entries) == 4
        assert (await store.trail(after=tail.after, limit=9)).entries == []
        await _recorded(store, 3)
        assert len((await _followed(store, tail.after, 2))[0]) == 3
        assert len((await _followed(store, beginning, 4))[0]) == 9

    async def test_a_trail_misses_nothing(self, store: Store) -> None:
        """Whoever follows the log while many write to it is given everything, each writer's entries in order."""
        writing = asyncio.gather(*(_recorded(store, 5) for _ in range(20)))
        found, after = [], b""
        for _ in range(10_000):
            over = bool((await asyncio.wait([writing], timeout=0.001))[0])
            page, after = await _followed(store, after, 9)
            found += page
            if over:
                break
        await writing
        assert len({entry.hash for entry in found}) == 100
        _check_order(found)
        assert audit.verify(await entries_of(store), store.heads()).faults == []

    async def test_a_position_is_of_its_store(self, store: Store) -> None:
        """A position that another kind of store gave is refused, not taken for some other place."""
        with pytest.raises(ConfigurationError):
            await store.trail(after=b"\x01 no position", limit=1)

    async def test_drops_old_entries(self, store: Store) -> None:
        """Of each writer those go up to the number that is named; the rest verifies, and positions stay good."""
        await asyncio.gather(*(_recorded(store, 4) for _ in range(3)))
        _, reached = await _followed(store, b"", 5)
        page = await store.trail(after=b"", limit=2)
        heads = store.heads()
        upto = {writer: (number // 2, "") for writer, (number, _) in heads.items()}
        entries = {(entry.writer, entry.number): entry for entry in await entries_of(store)}
        dropped = {
            writer: (number, entries[writer, number].hash.hex()) for writer, (number, _) in upto.items() if number
        }
        count = sum(number for number, _ in upto.values())
        asked = nonce()
        assert await store.prune_audit(upto, nonce=asked) == Receipt(asked, count=count)
        assert (await store.prune_audit(upto, nonce=nonce())).count == 0
        left = await entries_of(store)
        assert {(entry.writer, entry.number) for entry in left} == {
            (writer, number) for writer, number in entries if number > upto[writer][0]
        }
        assert audit.verify(left, Signed(heads, dropped)).faults == []
        assert audit.verify(left, heads).faults, "that entries are missing shows, where nobody signed for it"
        assert len((await store.audit_tail(99)).entries) == len(left)
        await _recorded(store, 3)
        assert len((await _followed(store, reached, 2))[0]) == 3
        assert len({entry.hash for entry in (await _followed(store, page.after, 2))[0]}) >= len(left) + 3 - 2

    async def test_drops_everything(self, store: Store) -> None:
        """A log of which everything was dropped goes on: nobody who had come to its end misses what follows."""
        await _recorded(store, 5)
        _, reached = await _followed(store, b"", 2)
        heads = store.heads()
        await store.prune_audit({"w_other": (9, ""), **heads}, nonce=nonce())
        assert await entries_of(store) == []
        assert (await store.trail(after=reached, limit=5)).entries == []
        await _recorded(store, 4)
        found, _ = await _followed(store, reached, 9)
        assert len(found) == 4
        assert audit.verify(found, Signed(store.heads(), heads)).faults == []

    # --- rotation -----------------------------------------------------------------------------------------------------

    async def test_gives_all_for_rotation(self, store: Store) -> None:
        """All sessions and tombstones come once; a secret is replaced only if it is still the same."""
        made = [await _started(store, owner) for owner in (BEN, ANA, Owner("other", "zoe"), ANA)]
        await store.end(ANA, made[1].id, nonce=nonce(), ended="expired", now=0)
        found: list[SealedSession] = []
        after = b""
        for _ in range(1_000):
            batch = await store.all(after=after, limit=1)
            found += batch.sessions
            after = batch.after
            if not after:
                break
        assert sorted(row.id for row in found) == sorted(row.id for row in made)
        assert (await store.rewrap(made[0], b"new", None, nonce=nonce())).count == 1
        assert (await store.rewrap(made[0], b"newer", None, nonce=nonce())).count == 0
        changed = (await load(store, BEN, made[0].id)).session
        assert changed is not None
        assert (changed.wrapped, changed.carry) == (b"new", None)
