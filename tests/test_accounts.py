"""Budgets: whatever comes, an account says what was spent and reserved, and the contract rejects stores that do not."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import pytest
from msgspec.structs import replace

from cloister.model import Owner, SealedSession
from cloister.stores.accounts import Accounts
from cloister.stores.base import Account, Charge, Commit, Loaded, Receipt
from cloister.stores.memory import MemoryStore
from cloister.testing import StoreConformance


class ChecksOnly(Accounts):
    """Looks whether there is room, and takes none."""

    def reserve(self, lease: bytes, charges: Sequence[Charge]) -> Account | None:
        before = deepcopy(self._accounts)
        over = super().reserve(lease, charges)
        self._accounts = before
        return over


class ReservesNothing(Accounts):
    """Keeps to limits, and counts what was spent only."""

    def spent(self, account: Account) -> int:
        kept = self._accounts.get(account)
        return 0 if kept is None else kept.spent - sum(kept.reserved.values())


class SettlesTwice(Accounts):
    """Counts what is settled under a lease whether or not it was before."""

    def settle(self, lease: bytes | None, charges: Sequence[Charge]) -> None:
        for charge in charges:
            if charge.account in self._accounts:
                self._accounts[charge.account].reserved.setdefault(lease or b"", 0)
        super().settle(lease, charges)


class BringsBack(Accounts):
    """Counts what is settled in an account that is gone."""

    def settle(self, lease: bytes | None, charges: Sequence[Charge]) -> None:
        gone = [replace(charge, amount=0, limit=None) for charge in charges if charge.account not in self._accounts]
        self.reserve(lease or b"", gone)
        super().settle(lease, charges)


class SettlesBelow(Accounts):
    """Never gives back what was reserved too much."""

    def settle(self, lease: bytes | None, charges: Sequence[Charge]) -> None:
        held = [self._accounts[charge.account].reserved.get(lease or b"", 0) for charge in charges]
        some = zip(charges, held, strict=True)
        super().settle(lease, [replace(charge, amount=max(charge.amount, least)) for charge, least in some])


class LimitForgotten(Accounts):
    """Only counts."""

    def reserve(self, lease: bytes, charges: Sequence[Charge]) -> Account | None:
        return super().reserve(lease, [replace(charge, limit=None) for charge in charges])


class LimitNotReached(Accounts):
    """Refuses the last that there is room for."""

    def reserve(self, lease: bytes, charges: Sequence[Charge]) -> Account | None:
        less = [replace(charge, limit=charge.limit and charge.limit - 1) for charge in charges]
        return super().reserve(lease, less)


class HalfReserved(Accounts):
    """Reserves in the accounts before the one that is full."""

    def reserve(self, lease: bytes, charges: Sequence[Charge]) -> Account | None:
        for charge in charges:
            if (over := super().reserve(lease, [charge])) is not None:
                return over
        return None


class LastNamed(Accounts):
    """Names the last account that is full."""

    def reserve(self, lease: bytes, charges: Sequence[Charge]) -> Account | None:
        return super().reserve(lease, list(reversed(charges)))


class ReservesTwice(Accounts):
    """Does not know a reservation that it has."""

    def reserve(self, lease: bytes, charges: Sequence[Charge]) -> Account | None:
        for kept in self._accounts.values():
            kept.reserved.pop(lease, None)
        return super().reserve(lease, charges)


class UsersMixed(Accounts):
    """Counts what all users of a tenant spend together."""

    def reserve(self, lease: bytes, charges: Sequence[Charge]) -> Account | None:
        return super().reserve(lease, [_moved(charge, user=None) for charge in charges])

    def settle(self, lease: bytes | None, charges: Sequence[Charge]) -> None:
        super().settle(lease, [_moved(charge, user=None) for charge in charges])

    def spent(self, account: Account) -> int:
        return super().spent(replace(account, user=None))


class TenantsMixedUp(Accounts):
    """Counts what users of one name spend together, whatever their tenant."""

    def reserve(self, lease: bytes, charges: Sequence[Charge]) -> Account | None:
        return super().reserve(lease, [_moved(charge, tenant=None) for charge in charges])

    def settle(self, lease: bytes | None, charges: Sequence[Charge]) -> None:
        super().settle(lease, [_moved(charge, tenant=None) for charge in charges])

    def spent(self, account: Account) -> int:
        return super().spent(replace(account, tenant=None))


class PeriodsMixed(Accounts):
    """Counts months and days together."""

    def reserve(self, lease: bytes, charges: Sequence[Charge]) -> Account | None:
        return super().reserve(lease, [_moved(charge, period="") for charge in charges])

    def spent(self, account: Account) -> int:
        return super().spent(replace(account, period=""))


class ErasedTenant(Accounts):
    """Erases the tenant's accounts with a user's."""

    def erase(self, owner: Owner) -> None:
        self._keep(lambda account, _: account.tenant != owner.tenant)


class ErasedNobody(Accounts):
    """Forgets to erase accounts."""

    def erase(self, owner: Owner) -> None:
        pass


class NeverSwept(Accounts):
    """Keeps accounts for good."""

    def sweep(self, now: int) -> None:
        pass


class SweptEarly(Accounts):
    """Sweeps accounts in their last microsecond."""

    def sweep(self, now: int) -> None:
        super().sweep(now + 1)


def _moved(charge: Charge, **where: Any) -> Charge:
    return replace(charge, account=replace(charge.account, **where))


class _Counting(MemoryStore):
    def __init__(self, accounts: Accounts) -> None:
        super().__init__()
        self._accounts = accounts


class ReservesForAnything(MemoryStore):
    """Reserves before it looks whether there is a session."""

    async def load(self, owner: Owner, session_id: str, **options: Any) -> Loaded:
        charges, lease = options.pop("charges", ()), options.get("lease")
        if lease and (over := self._accounts.reserve(lease, charges)) is not None:
            return Loaded(options["nonce"], over=over)
        return await super().load(owner, session_id, **options)


class ReservesForReplays(MemoryStore):
    """Reserves for a turn that was answered before."""

    async def load(self, owner: Owner, session_id: str, **options: Any) -> Loaded:
        record = options.pop("record", None)
        loaded = await super().load(owner, session_id, **options)
        return replace(loaded, record=self._records.get((owner, session_id, record or b"")))


class LeaseLeftBehind(MemoryStore):
    """Keeps the lease of a turn that it refuses."""

    async def load(self, owner: Owner, session_id: str, **options: Any) -> Loaded:
        loaded = await super().load(owner, session_id, **options)
        if loaded.over is not None:
            self._take(owner, session_id, options["lease"])
        return loaded


class ReleaseGivesBack(MemoryStore):
    """Gives back what was reserved with the lease."""

    async def release(self, owner: Owner, session_id: str, lease: bytes, *, nonce: bytes) -> Receipt:
        for account, kept in self._accounts._accounts.items():
            if lease in kept.reserved:
                self._accounts.settle(lease, [Charge(account, 0, None, 0)])
        return await super().release(owner, session_id, lease, nonce=nonce)


class SettlesRefused(MemoryStore):
    """Settles before it looks whether the turn can be stored."""

    async def commit(self, commit: Commit, *, nonce: bytes) -> Receipt:
        self._accounts.settle(commit.lease, commit.charges)
        return await super().commit(replace(commit, charges=()), nonce=nonce)


class SettlesRepeated(MemoryStore):
    """Settles a turn again when it comes again."""

    async def commit(self, commit: Commit, *, nonce: bytes) -> Receipt:
        receipt = await super().commit(commit, nonce=nonce)
        if receipt.repeated:
            self._accounts.reserve(b"again", [replace(charge, limit=None) for charge in commit.charges])
        return receipt


class FirstTurnsForgotten(MemoryStore):
    """Does not settle with the first turn of a session."""

    async def create(self, session: SealedSession, *args: Any, **options: Any) -> Receipt:
        options.pop("charges", None)
        return await super().create(session, *args, **options)


class ChargesAnybody(MemoryStore):
    """Takes a charge for any account that it names."""

    async def charge(self, owner: Owner, lease: bytes, charges: Sequence[Charge], *, nonce: bytes) -> Receipt:
        self._accounts.reserve(lease, charges)
        return Receipt(nonce)


BROKEN: dict[type[Accounts] | type[MemoryStore], str] = {
    ChecksOnly: "test_turns_at_once_stay_within_the_limit",
    ReservesNothing: "test_a_turn_reserves_and_settles",
    SettlesTwice: "test_charges_by_themselves",
    SettlesBelow: "test_a_turn_reserves_and_settles",
    BringsBack: "test_erasure_takes_the_owners_accounts",
    LimitForgotten: "test_a_limit_is_reached_and_not_passed",
    LimitNotReached: "test_a_limit_is_reached_and_not_passed",
    HalfReserved: "test_all_accounts_or_none",
    LastNamed: "test_all_accounts_or_none",
    ReservesTwice: "test_a_turn_that_never_ends_stays_counted",
    UsersMixed: "test_everybody_has_an_account",
    TenantsMixedUp: "test_everybody_has_an_account",
    PeriodsMixed: "test_everybody_has_an_account",
    ErasedTenant: "test_erasure_takes_the_owners_accounts",
    ErasedNobody: "test_erasure_takes_the_owners_accounts",
    NeverSwept: "test_accounts_are_swept",
    SweptEarly: "test_accounts_are_swept",
    ReservesForAnything: "test_nothing_is_reserved_without_a_turn",
    ReservesForReplays: "test_nothing_is_reserved_without_a_turn",
    LeaseLeftBehind: "test_a_limit_is_reached_and_not_passed",
    ReleaseGivesBack: "test_a_turn_that_never_ends_stays_counted",
    SettlesRefused: "test_a_refused_turn_settles_nothing",
    SettlesRepeated: "test_a_repeated_commit_settles_once",
    FirstTurnsForgotten: "test_a_new_session_settles",
    ChargesAnybody: "test_nobody_is_charged_for_another",
}
"""Each with the promise that it breaks."""


@pytest.mark.parametrize("broken", BROKEN)
async def test_the_contract_rejects(broken: type[Accounts] | type[MemoryStore]) -> None:
    """A store that counts wrongly fails the promise that it breaks."""
    store = broken() if issubclass(broken, MemoryStore) else _Counting(broken())
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await getattr(StoreConformance(), BROKEN[broken])(store)
