"""What was spent and what is reserved, in this process: for stores that keep nothing outside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cloister.model import Owner
from cloister.stores.base import Account, Charge


@dataclass(slots=True)
class _Kept:
    until: int
    spent: int = 0
    """What is settled, and what is reserved."""
    reserved: dict[bytes, int] = field(default_factory=dict)
    """How much of it, by lease."""


class Accounts:
    """Count what turns cost. No method waits, so each is atomic on its event loop."""

    def __init__(self) -> None:
        self._accounts: dict[Account, _Kept] = {}

    def reserve(self, lease: bytes, charges: Sequence[Charge]) -> Account | None:
        """Reserve all of *charges*, or none, and then give the first account that would come beyond its limit."""
        for charge in charges:
            kept = self._accounts.get(charge.account, _Kept(0))
            more = charge.amount - kept.reserved.get(lease, 0)
            if more > 0 and charge.limit is not None and kept.spent + more > charge.limit:
                return charge.account
        for charge in charges:
            kept = self._accounts.setdefault(charge.account, _Kept(charge.until))
            kept.spent += charge.amount - kept.reserved.get(lease, 0)
            kept.reserved[lease] = charge.amount
        return None

    def settle(self, lease: bytes | None, charges: Sequence[Charge]) -> None:
        """Put what *charges* say in the place of what is reserved under *lease*; nothing where nothing is."""
        for charge in charges:
            kept = self._accounts.get(charge.account)
            if kept is not None and lease in kept.reserved:
                kept.spent += charge.amount - kept.reserved.pop(lease)

    def spent(self, account: Account) -> int:
        """Say what an account stands at."""
        return self._accounts[account].spent if account in self._accounts else 0

    def erase(self, owner: Owner) -> None:
        """Forget the accounts of *owner*."""
        self._keep(lambda account, _: (account.tenant, account.user) != (owner.tenant, owner.user))

    def sweep(self, now: int) -> None:
        """Forget the accounts whose time is over."""
        self._keep(lambda _, kept: kept.until > now)

    def _keep(self, wanted: Callable[[Account, _Kept], bool]) -> None:
        self._accounts = {account: kept for account, kept in self._accounts.items() if wanted(account, kept)}
