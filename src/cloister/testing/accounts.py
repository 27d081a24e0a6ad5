"""What any store must do about budgets, as tests."""

from __future__ import annotations

import asyncio
import re
import secrets
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from cloister import sessions
from cloister.errors import SessionConflict
from cloister.model import Owner, SealedSession, to_micros
from cloister.stores.base import MOST_CHARGED, Account, Charge, Record, Store
from cloister.testing.rows import ANA, BEN, LOOKALIKES, START, grown, load, nonce, sealed_items, sealed_session

_WRONG = re.compile("charge|period")
_UNTIL = to_micros(START + timedelta(days=1))


def _charge(
    amount: int, limit: int | None = None, owner: Owner = ANA, *, period: str = "2026-01-01", until: int = _UNTIL
) -> Charge:
    return Charge(Account(owner.tenant, owner.user, period), amount, limit, until)


def _shared(amount: int, limit: int | None = None, tenant: str | None = "acme", period: str = "2026-01") -> Charge:
    return Charge(Account(tenant, None, period), amount, limit, _UNTIL)


async def _spent(store: Store, *charges: Charge) -> list[int]:
    asked = nonce()
    spent = await store.spent([charge.account for charge in charges], nonce=asked)
    assert spent.echo == asked
    return list(spent.amounts)


async def _started(store: Store, owner: Owner = ANA) -> SealedSession:
    session = sealed_session(owner)
    await store.create(session, nonce=nonce())
    return session


async def _reserved(store: Store, session: SealedSession, *charges: Charge) -> bytes:
    """Begin a turn that reserves *charges*; give its lease."""
    lease = secrets.token_bytes(16)
    loaded = await load(store, session.owner, session.id, lease=lease, charges=charges)
    assert (loaded.session, loaded.over) == (session, None)
    return lease


async def _charged(store: Store, lease: bytes, *charges: Charge, owner: Owner = ANA) -> Account | None:
    asked = nonce()
    receipt = await store.charge(owner, lease, charges, nonce=asked)
    assert receipt.echo == asked
    return receipt.over


class AccountConformance:
    """The part of the contract of `cloister.stores.base.Store` that is about budgets."""

    async def test_a_turn_reserves_and_settles(self, store: Store) -> None:
        """What a turn may cost is counted when it begins; what it came to, less or more, when it is stored."""
        session, spent = await _started(store), 0
        assert await _spent(store, _charge(0), _shared(0)) == [0, 0]
        for settled in (20, 0, 50, 900):
            lease = await _reserved(store, session, _charge(50, 5_000), _shared(50))
            assert await _spent(store, _charge(0), _shared(0)) == [spent + 50, spent + 50]
            commit = grown(session, (), lease, charges=[_charge(settled), _shared(settled)])
            await store.commit(commit, nonce=nonce())
            session, spent = commit.session, spent + settled
            assert await _spent(store, _shared(0), _charge(0)) == [spent, spent]

    async def test_a_limit_is_reached_and_not_passed(self, store: Store) -> None:
        """A turn that would come beyond the limit by the least is refused, and one that comes up to it is not."""
        one, two, three = [await _started(store) for _ in range(3)]
        await _reserved(store, one, _charge(60, 100))
        refused = await load(store, ANA, two.id, lease=b"refused", charges=[_charge(41, 100)])
        assert refused.over == _charge(0).account
        assert (refused.session, refused.busy, list(refused.items)) == (None, False, [])
        assert await _spent(store, _charge(0)) == [60]
        await _reserved(store, two, _charge(40, 100))  # the lease was not taken by the one that was refused
        assert (await load(store, ANA, three.id, lease=b"refused", charges=[_charge(1, 100)])).over is not None
        await _reserved(store, three, _charge(7, None))
        assert await _spent(store, _charge(0)) == [107]
        most = _charge(MOST_CHARGED, MOST_CHARGED, BEN)
        assert await _charged(store, b"lease", most, owner=BEN) is None
        assert await _charged(store, b"other", _charge(1, MOST_CHARGED, BEN), owner=BEN) == most.account
        assert await _spent(store, most) == [MOST_CHARGED]

    async def test_all_accounts_or_none(self, store: Store) -> None:
        """A turn is reserved in each of its accounts or in none, and is told the first that would be exceeded."""
        session = await _started(store)
        day, month, shared = _charge(10, 10), _charge(10, 9, period="2026-01"), _shared(10, 8)
        for charges, over in (((day, month, shared), month), ((day, shared, month), shared), ((month, day), month)):
            loaded = await load(store, ANA, session.id, lease=b"lease", charges=charges)
            assert loaded.over == over.account
            assert await _charged(store, b"lease", *charges) == over.account
            assert await _spent(store, day, month, shared) == [0, 0, 0]
        await _reserved(store, session, day, _charge(9, 9, period="2026-01"), _shared(8, 8))
        assert await _spent(store, day, month, shared) == [10, 9, 8]

    async def test_turns_at_once_stay_within_the_limit(self, store: Store) -> None:
        """Of 200 turns of one user at once, exactly those are let in for whom there is room."""
        rows = [sealed_session() for _ in range(200)]
        await asyncio.gather(*(store.create(row, nonce=nonce()) for row in rows))
        charges = [_charge(7, 7 * 40 + 6), _shared(7, 7 * 90)]
        loads = (load(store, ANA, row.id, lease=row.id.encode(), charges=charges) for row in rows)
        loaded = await asyncio.gather(*loads)
        inside = [row for row, found in zip(rows, loaded, strict=True) if found.session == row]
        assert len(inside) == 40
        assert all(found.over == charges[0].account for found in loaded if found.session is None)
        assert await _spent(store, *charges) == [280, 280]
        settled = [_charge(3), _shared(3)]
        commits = [grown(row, sealed_items(2), row.id.encode(), charges=settled) for row in inside]
        await asyncio.gather(*(store.commit(commit, nonce=nonce()) for commit in commits))
        assert await _spent(store, *charges) == [120, 120]

    async def test_nothing_is_reserved_without_a_turn(self, store: Store) -> None:
        """Nothing is reserved, or refused, for a session that is absent, foreign, ended, busy or answered already."""
        tight, wide = (_charge(5, 4), _charge(5, 100))
        busy, ended, foreign = await _started(store), await _started(store), await _started(store, BEN)
        await load(store, ANA, busy.id, lease=b"first")
        await store.end(ANA, ended.id, nonce=nonce(), ended="expired", now=0)
        for charge in (tight, wide):
            for session_id in (busy.id, ended.id, foreign.id, sessions.new_id()):
                loaded = await load(store, ANA, session_id, lease=b"second", charges=[charge])
                assert (loaded.over, loaded.busy) == (None, session_id == busy.id)
        session = await _started(store)
        kept = Record(session.id, session.id, b"key", b"answer", _UNTIL)
        commit = grown(session, (), await _reserved(store, session), record=kept)
        await store.commit(commit, nonce=nonce())
        for charge in (tight, wide):
            loaded = await load(store, ANA, session.id, lease=b"again", record=b"key", charges=[charge])
            assert (loaded.session, loaded.record, loaded.over) == (commit.session, kept, None)
        assert await _spent(store, tight) == [0]

    async def test_a_turn_that_never_ends_stays_counted(self, store: Store) -> None:
        """What was reserved stays so when its lease is given back, or was asked for twice, until it is settled."""
        session, lease = await _started(store), b""
        for _ in range(2):
            lease = await _reserved(store, session, _charge(30, 100))
            again = await load(store, ANA, session.id, lease=lease, charges=[_charge(30, 30)])
            assert again.session == session
            await store.release(ANA, session.id, lease, nonce=nonce())
        assert await _spent(store, _charge(0)) == [60]
        assert (await load(store, ANA, session.id, lease=b"third", charges=[_charge(50, 100)])).over is not None
        await _charged(store, lease, _charge(10))
        await _reserved(store, session, _charge(50, 100))
        assert await _spent(store, _charge(0)) == [90]

    async def test_everybody_has_an_account(self, store: Store) -> None:
        """Users, tenants, all without a tenant, and periods are counted apart, however much their names look alike."""
        owners = [*LOOKALIKES, Owner(None, "ana"), Owner(None, "acme")]
        charges = [(owner, _charge(0, None, owner)) for owner in owners]
        charges += [(ANA, _charge(0, period=period)) for period in ("2026-01", "2026-01-0", "2026-01-011")]
        charges += [(owner, _shared(0, None, tenant)) for tenant, owner in {one.tenant: one for one in owners}.items()]
        charges += [(ANA, _shared(0, period="2026-01-01"))]
        for number, (owner, empty) in enumerate(charges):
            charge = msgspec.structs.replace(empty, amount=2**number, limit=2**number)
            assert await _charged(store, b"lease", charge, owner=owner) is None
        assert await _spent(store, *(one for _, one in charges)) == [2**number for number in range(len(charges))]

    async def test_nobody_is_charged_for_another(self, store: Store) -> None:
        """A charge to an account of another user or tenant, twice to one, or of what is no amount, is refused."""
        session = await _started(store)
        lease = await _reserved(store, session, _charge(5))
        wrong = (
            [_charge(1, 9, BEN)],
            [_shared(1, 9, "other")],
            [_shared(1, 9, None)],
            [_charge(1, 9), _shared(1, 9), _charge(2, 9)],
            [_charge(-1, 9)],
            [_charge(MOST_CHARGED + 1)],
            [_charge(1, MOST_CHARGED + 1)],
            [_charge(1, period="")],
            [_charge(1, period="2026 01")],
            [_charge(1, until=-1)],
        )
        for charges in wrong:
            with pytest.raises(ValueError, match=_WRONG):
                await store.load(ANA, session.id, nonce=nonce(), budget=0, lease=lease, charges=charges)
            with pytest.raises(ValueError, match=_WRONG):
                await store.charge(ANA, lease, charges, nonce=nonce())
            with pytest.raises(ValueError, match=_WRONG):
                await store.commit(grown(session, (), lease, charges=charges), nonce=nonce())
            with pytest.raises(ValueError, match=_WRONG):
                await store.create(sealed_session(), nonce=nonce(), charges=charges, lease=lease)
        with pytest.raises(ValueError, match="lease"):
            await store.load(ANA, session.id, nonce=nonce(), budget=0, charges=[_charge(1)])
        with pytest.raises(ValueError, match="lease"):
            await store.create(sealed_session(), nonce=nonce(), charges=[_charge(1)])
        others = _charge(0, None, BEN), _shared(0), _shared(0, None, "other"), _shared(0, None, None)
        assert await _spent(store, _charge(0), *others) == [5, 0, 0, 0, 0]
        assert (await load(store, ANA, session.id)).session == session

    async def test_a_repeated_commit_settles_once(self, store: Store) -> None:
        """A turn that is stored twice is settled once, and the same for the first turn of a session."""
        session = await _started(store)
        commit = grown(session, (), await _reserved(store, session, _charge(30)), charges=[_charge(20)])
        for repeated in (False, True, True):
            assert (await store.commit(commit, nonce=nonce())).repeated is repeated
            assert await _spent(store, _charge(0)) == [20]
        assert await _charged(store, b"new", _charge(30, 1_000)) is None
        new = sealed_session()
        for repeated in (False, True, True):
            receipt = await store.create(new, nonce=nonce(), charges=[_charge(1)], lease=b"new")
            assert receipt.repeated is repeated
            assert await _spent(store, _charge(0)) == [21]

    async def test_a_refused_turn_settles_nothing(self, store: Store) -> None:
        """What is not stored is not settled, and stays reserved."""
        session, over = await _started(store), await _started(store)
        lease = await _reserved(store, session, _charge(30))
        good = grown(session, (), lease, charges=[_charge(1)])
        late = grown(over, (), await _reserved(store, over, _charge(40)), charges=[_charge(1)])
        await store.end(ANA, over.id, nonce=nonce(), ended="ended", now=0)
        ended = msgspec.structs.replace(session, id=over.id)
        for bad in (
            msgspec.structs.replace(good, version=9),
            msgspec.structs.replace(good, lease=late.lease),
            msgspec.structs.replace(good, session=ended),
            late,
        ):
            with pytest.raises(SessionConflict):
                await store.commit(bad, nonce=nonce())
        settling: dict[str, Any] = {"charges": [_charge(1)], "lease": lease}
        for taken, instead_of in ((session.id, None), (sessions.new_id(over.id), over.id)):
            with pytest.raises(SessionConflict):
                await store.create(sealed_session(ANA, taken), nonce=nonce(), instead_of=instead_of, **settling)
        assert await _spent(store, _charge(0)) == [70]
        await store.commit(good, nonce=nonce())
        assert await _spent(store, _charge(0)) == [41]

    async def test_charges_by_themselves(self, store: Store) -> None:
        """A turn without a row is reserved and settled too: once each, however often it is said and in any order."""
        day, lease = _charge(0), b"lease"
        for amount in (30, 30, 100, 20):
            assert await _charged(store, lease, _charge(amount, 100), _shared(amount)) is None
            assert await _spent(store, day, _shared(0)) == [amount, amount]
        assert await _charged(store, lease, _charge(101, 100)) == day.account
        assert await _charged(store, b"other", _charge(80, 100)) is None
        assert await _charged(store, lease, _charge(20, 1)) is None, "what is reserved is not refused"
        assert await _charged(store, b"other", _charge(81, 100)) == day.account
        assert await _spent(store, day) == [100]
        for settled in (25, 25, 0, 99):
            assert await _charged(store, lease, _charge(settled)) is None
            assert await _spent(store, day, _shared(0)) == [105, 20], "settled once, and no account but those named"
        assert await _charged(store, b"never", _charge(9)) is None
        assert await _spent(store, day) == [105]
        session = await _started(store)
        commit = grown(session, (), await _reserved(store, session, _charge(10)), charges=[_charge(1)])
        await asyncio.gather(*(_charged(store, commit.lease, _charge(5)) for _ in range(8)))
        await store.commit(commit, nonce=nonce())
        await _charged(store, commit.lease, _charge(7))
        assert await _spent(store, day) == [110]
        assert await _charged(store, b"", *()) is None

    async def test_a_new_session_settles(self, store: Store) -> None:
        """The first turn of a session settles what was reserved under the lease on the one that it comes instead of."""
        old = await _started(store)
        lease = await _reserved(store, old, _charge(50, 50), _shared(50))
        new = sealed_session(ANA, sessions.new_id(old.id))
        charges = [_charge(60), _shared(60)]
        await store.create(new, sealed_items(2), nonce=nonce(), instead_of=old.id, charges=charges, lease=lease)
        assert await _spent(store, *charges) == [60, 60]
        assert (await load(store, ANA, new.id)).session == new

    async def test_erasure_takes_the_owners_accounts(self, store: Store) -> None:
        """An erasure takes the accounts of its owner alone; what is settled or committed late brings none back."""
        hers, his = await _started(store), await _started(store, BEN)
        await _reserved(store, his, _charge(3, None, BEN), _shared(3))
        first = await _reserved(store, hers, _charge(5), _shared(5))
        await _charged(store, b"other", _charge(7, 99, period="2026-01"))
        await _charged(store, b"other", _charge(7, period="2026-01"))
        late = grown(hers, (), first, charges=[_charge(6), _shared(6)])
        everybodys = [_charge(0), _charge(0, period="2026-01"), _shared(0), _charge(0, None, BEN)]
        assert await _spent(store, *everybodys) == [5, 7, 8, 3]
        await store.erase(ANA, nonce=nonce())
        assert await _spent(store, *everybodys) == [0, 0, 8, 3]
        with pytest.raises(SessionConflict):
            await store.commit(late, nonce=nonce())
        await _charged(store, b"other", _charge(1, period="2026-01"))
        assert await _spent(store, *everybodys) == [0, 0, 8, 3]
        await _charged(store, first, _charge(6), _shared(6))
        assert await _spent(store, *everybodys) == [0, 0, 9, 3]
        again = await _reserved(store, await _started(store), _charge(2, 2))
        await _charged(store, first, _charge(6))
        assert await _spent(store, *everybodys) == [2, 0, 9, 3]
        await _charged(store, again, _charge(1))
        assert await _spent(store, *everybodys) == [1, 0, 9, 3]

    async def test_accounts_are_swept(self, store: Store) -> None:
        """An account goes with the first sweep after its time, whatever is reserved in it, and no other."""
        session = await _started(store)
        later = _charge(4, period="2026-01", until=_UNTIL + 1)
        lease = await _reserved(store, session, _charge(4), later, _shared(4))
        await _charged(store, b"settled", _charge(8, 99))
        await _charged(store, b"settled", _charge(8))
        for now, left in ((_UNTIL - 1, [12, 4, 4]), (_UNTIL, [0, 4, 0])):
            await store.sweep(now=now, tombstones_before=0, fingerprints=9, nonce=nonce())
            assert await _spent(store, _charge(0), later, _shared(0)) == left
        await store.commit(grown(session, (), lease, charges=[_charge(9), later, _shared(9)]), nonce=nonce())
        assert await _spent(store, _charge(0), later, _shared(0)) == [0, 4, 0]
