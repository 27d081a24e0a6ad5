"""What one turn may come to, reserved before a model is asked, and what it came to, settled with what is stored.

That it runs at all is reserved with it, where `Rates` say how many may.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any, NoReturn

from cloister.channel import Settlement
from cloister.costs import Budget, Cap, Prices, cost, exceeded, from_nanos, plain, reservation, to_nanos, unknown
from cloister.costs.money import EXACT, ZERO
from cloister.errors import CloisterError
from cloister.model import Head, Owner, Usage
from cloister.rates import AGAIN, Rates, Slots, refused
from cloister.stores.base import Account, Charge
from cloister.vault import Vault

_KEPT = timedelta(days=1) // timedelta(microseconds=1)
"""How long an account stays after its period: a turn that began in it may still be settled."""

_LATE = timedelta(hours=1) // timedelta(microseconds=1)
"""The same for a count of turns, of which there are many accounts a day."""

_OURS = 256
"""How many tokens cloister itself may add to what is sent, for which nobody has to reserve anew."""


class Bill:
    """Be what a turn of *owner* may cost, by the price of *model* at *provider*, and what it has.

    Raises `ConfigurationError` if there is a budget and no price.
    """

    def __init__(
        self,
        vault: Vault,
        owner: Owner,
        prices: Prices,
        budget: Budget | None,
        provider: str | None,
        model: str | None,
        tokens: int,
        options: Mapping[str, Any],
        rates: Rates | None = None,
    ) -> None:
        self.lease = secrets.token_bytes(16)
        self.asked = False
        """A model was asked, or its request handed out, and what that call costs is not known yet."""
        self.cost: Decimal | None = None
        """What is known to have been spent, in ``currency``; None where no price in it is known."""
        self.currency = budget.currency if budget else "USD"
        self._abroad: dict[str, Decimal] = {}
        self._vault, self._owner, self._prices, self._provider = vault, owner, prices, provider
        self._model = model
        self._reserved = 0
        self._caps: tuple[Cap, ...] = ()
        now = vault.now()
        if budget is not None:
            price = prices.find(provider, model, now)
            if price is None:
                raise unknown(provider, model)
            self._comes_to = partial(reservation, price, options=options, budget=budget)
            self._tokens, self._reserved = tokens, self._comes_to(tokens)
            self._caps = budget.caps(now)
        self._accounts = {_account(owner, cap): cap for cap in self._caps if cap.period is not None}
        self._slots = {_slot(owner, slots): slots for slots in (rates.slots(now) if rates else ())}
        self._open = False

    def reserve(self) -> list[Charge]:
        """Give what is to be reserved before the model is asked. From here on there is something to settle."""
        self._open = bool(self._accounts or self._slots)
        taken = [_taken(account, slots, 1, slots.limit) for account, slots in self._slots.items()]
        return taken + [self._charge(account, self._reserved, cap.limit) for account, cap in self._accounts.items()]

    def _charge(self, account: Account, amount: int, limit: int | None) -> Charge:
        period = self._accounts[account].period
        return Charge(account, amount, limit, period.ends + _KEPT if period else 0)

    async def admit(self, head: Head, *, reserved: bool) -> None:
        """Raise `BudgetExceeded` if the session of *head* may not spend so much, or if nothing is left to reserve.

        `RateLimited` if too many turns run already.

        What goes along with the loading of a session is *reserved* with it.
        """
        for cap in self._caps:
            if cap.scope == "session" and head.spent + self._reserved > cap.limit:
                await self._refuse(cap, head.spent)
        if (self._accounts or self._slots) and not reserved:
            vault = self._vault
            receipt = await vault.ask(vault.store.charge, self._owner, self.lease, self.reserve())
            if receipt.over is not None:
                await self.refuse(receipt.over)

    async def cover(self, head: Head, tokens: int) -> None:
        """Reserve more where so many *tokens* are sent, and far fewer were expected; raise `BudgetExceeded`.

        A session that has grown elsewhere is known to be so when it is loaded.
        """
        if self._caps and tokens > self._tokens + _OURS:
            self._tokens, self._reserved = tokens, self._comes_to(tokens)
            await self.admit(head, reserved=False)

    async def refuse(self, account: Account) -> NoReturn:
        """Put on record that *account* would come beyond its limit, and raise `BudgetExceeded` or `RateLimited`."""
        if account in self._slots:
            slots, seconds = self._slots[account], round(AGAIN.total_seconds())
            limit = f"turns_per_{slots.scope}"
            await self._vault.note([self._vault.event("rate.limited", self._owner, limit=limit, seconds=seconds)])
            raise refused(slots)
        cap = self._accounts[account]
        used = 0
        if cap.scope == "user":
            vault = self._vault
            used = (await vault.ask(vault.store.spent, [account])).amounts[0]
        await self._refuse(cap, used)

    async def _refuse(self, cap: Cap, used: int) -> NoReturn:
        period = "session" if cap.period is None else cap.period.name
        await self._vault.note([self._vault.event("budget.exceeded", self._owner, budget=cap.scope, period=period)])
        raise exceeded(cap, used, self._reserved)

    def spend(self, usage: Usage, model: str | None) -> None:
        """Add what a call used, by the price of the *model* that answered, or else of the one that was asked."""
        self.asked = False
        now = self._vault.now()
        elsewhere = None
        # With a budget the one that was asked has a price in its currency, so that no other makes a call free.
        for named in (model, self._model):
            price = self._prices.find(self._provider, named, now)
            if price is not None and price.currency == self.currency:
                self._add(cost(usage, price))
                return
            elsewhere = elsewhere or price
        if elsewhere is not None:
            before = self._abroad.get(elsewhere.currency, ZERO)
            self._abroad[elsewhere.currency] = EXACT.add(before, cost(usage, elsewhere))

    def _add(self, amount: Decimal) -> None:
        # Not with a plus sign, which rounds as the application has set its decimals to.
        self.cost = EXACT.add(self.cost or ZERO, amount)

    def break_off(self, heard: Usage) -> None:
        """Count a call that was left or broke off: what was *heard* of it, and at least what was reserved for it.

        Only the provider knows how much more it was: what a model thinks before its first word is never heard, and
        whoever goes away in time would have it for nothing.
        """
        reserved = EXACT.add(self.cost or ZERO, from_nanos(self._reserved)) if self._caps else ZERO
        self.spend(heard, None)
        if self.cost is not None:
            self.cost = max(self.cost, reserved)

    def give_up(self, *, unasked: bool) -> None:
        """Count a call whose usage nobody will ever tell at what was reserved, unless the model was never asked."""
        if self.asked and not unasked and self._caps:
            self._add(from_nanos(self._reserved))
        self.asked = False

    @property
    def nanos(self) -> int:
        """Give what was spent in billionths, rounded up."""
        return to_nanos(self.cost) if self.cost else 0

    def settlement(self) -> Settlement | None:
        """Give what takes the place of what was reserved; `close` it once that is stored."""
        if not self._open:
            return None
        return Settlement(
            self.lease, [*self._given_back, *[self._charge(account, self.nanos, None) for account in self._accounts]]
        )

    @property
    def _given_back(self) -> list[Charge]:
        return [_taken(account, slots, 0, None) for account, slots in self._slots.items()]

    def close(self) -> None:
        """Take note that the bill is settled."""
        self._open = False

    async def settle(self, error: BaseException | None) -> None:
        """Settle by itself what went with no commit. What a model may still be asked for stays as it was reserved.

        *error* is why the turn came to nothing, which a fault of the store does not take the place of.
        """
        settlement = self.settlement()
        if settlement is not None and self.asked:
            settlement = Settlement(self.lease, self._given_back) if self._slots else None
        if settlement is None:
            return
        try:
            await self._vault.charge(self._owner, settlement)
        except CloisterError as fault:
            if error is None:
                raise
            error.add_note(f"and what was reserved for it stays reserved: {fault}")
        else:
            self.close()

    def detail(self) -> dict[str, str]:
        """Give what was spent, as details of an entry."""
        spent = self._abroad if self.cost is None else {self.currency: self.cost, **self._abroad}
        if len(spent) != 1:  # what is in several currencies is no amount
            return {}
        ((currency, amount),) = spent.items()
        return {"cost": plain(amount), "currency": currency}


def _slot(owner: Owner, slots: Slots) -> Account:
    return Account(owner.tenant, owner.user if slots.scope == "user" else None, slots.period)


def _taken(account: Account, slots: Slots, amount: int, limit: int | None) -> Charge:
    return Charge(account, amount, limit, slots.ends + _LATE)


def _account(owner: Owner, cap: Cap) -> Account:
    assert cap.period is not None
    return Account(owner.tenant, owner.user if cap.scope == "user" else None, cap.period.name)
