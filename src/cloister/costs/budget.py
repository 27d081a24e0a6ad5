"""How much may be spent: what a turn reserves before the model is asked, on which accounts, and how it is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from cloister.costs.money import EXACT, amount, from_nanos, shown, to_nanos
from cloister.costs.rates import Price
from cloister.errors import BudgetExceeded, ConfigurationError
from cloister.model import from_micros, to_micros

Amount = Decimal | str | int
_MOST = 4_000_000
_MOST_TOKENS = 1 << 53
_BOUNDS = ("max_tokens", "max_completion_tokens")
Scope = Literal["user", "tenant", "session"]


class Period(NamedTuple):
    """Be a day or a month in UTC: its name, and the moment it ends, in microseconds since 1970."""

    name: str
    ends: int


class Cap(NamedTuple):
    """Be one account of a budget: whose, in which period (none for a session's), and how many billionths it holds."""

    scope: Scope
    period: Period | None
    limit: int
    currency: str


@dataclass(frozen=True, slots=True, init=False)
class Budget:
    """Say how much may be spent; ``None`` for no limit.

    Amounts are text, whole numbers or Decimals: a float is a `ValueError`, since it is not exact. Days and months are
    those of UTC. A turn reserves before the model is asked what it may come to, and settles at what it came to.
    """

    user_daily: Decimal | None
    user_monthly: Decimal | None
    tenant_daily: Decimal | None
    """Of all users of a tenant together; of everybody, where there are no tenants."""
    tenant_monthly: Decimal | None
    session: Decimal | None
    reply_tokens: int
    """What is reserved for a reply whose length nothing bounds."""
    currency: str

    def __init__(
        self,
        *,
        user_daily: Amount | None = None,
        user_monthly: Amount | None = None,
        tenant_daily: Amount | None = None,
        tenant_monthly: Amount | None = None,
        session: Amount | None = None,
        reply_tokens: int = 1_000,
        currency: str = "USD",
    ) -> None:
        given = {
            "user_daily": user_daily,
            "user_monthly": user_monthly,
            "tenant_daily": tenant_daily,
            "tenant_monthly": tenant_monthly,
            "session": session,
        }
        if all(value is None for value in given.values()):
            raise ValueError(f"a budget bounds something: give one of {', '.join(given)}")
        for name, value in given.items():
            try:
                object.__setattr__(self, name, None if value is None else amount(value))
            except ValueError as error:
                raise ValueError(f"{name} must be {error}") from None
            if value is not None and getattr(self, name) > _MOST:
                raise ValueError(f"{name} must be at most {_MOST:,}; leave it out for no limit")
        for who in ("user", "tenant"):
            day, month = getattr(self, f"{who}_daily"), getattr(self, f"{who}_monthly")
            if day is not None and month is not None and day > month:
                raise ValueError(f"{who}_daily is more than {who}_monthly, and would never be reached")
        if type(reply_tokens) is not int or reply_tokens < 1:
            raise ValueError("reply_tokens must be a whole number from 1 on")
        if len(currency) != 3 or not currency.isascii() or not currency.isupper():
            raise ValueError("currency must be three capitals, such as USD")
        object.__setattr__(self, "reply_tokens", reply_tokens)
        object.__setattr__(self, "currency", currency)

    def caps(self, now: datetime) -> tuple[Cap, ...]:
        """Give the accounts on which a turn *now* is booked, the narrowest first."""
        day, month = periods(now)
        limits: tuple[tuple[Scope, Period | None, Decimal | None], ...] = (
            ("session", None, self.session),
            ("user", day, self.user_daily),
            ("user", month, self.user_monthly),
            ("tenant", day, self.tenant_daily),
            ("tenant", month, self.tenant_monthly),
        )
        return tuple(
            Cap(scope, period, to_nanos(limit), self.currency) for scope, period, limit in limits if limit is not None
        )


def periods(now: datetime) -> tuple[Period, Period]:
    """Give the day and the month of UTC in which *now* lies, such as ``2026-11-21`` and ``2026-11``."""
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    tomorrow = today + timedelta(days=1)
    # 31 days after its first day a month is over, and the next one has begun.
    next_month = (today.replace(day=1) + timedelta(days=31)).replace(day=1)
    return Period(f"{today:%Y-%m-%d}", to_micros(tomorrow)), Period(f"{today:%Y-%m}", to_micros(next_month))


def reservation(price: Price, input_tokens: int, options: Mapping[str, Any], budget: Budget) -> int:
    """Give, in billionths, the most that a call may come to: what is sent, and the longest reply.

    That is as long as *options* allow (``max_tokens``, ``max_completion_tokens``), or ``budget.reply_tokens``.
    Raises `ConfigurationError` if *price* is in another currency, or for an option that says nobody knows what.
    """
    if price.currency != budget.currency:
        raise ConfigurationError(
            f"the budget is in {budget.currency} and the price of {price.model} in {price.currency}, and nothing here "
            "converts money: give both in one currency"
        )
    if options.get("n") not in (None, 1):
        raise ConfigurationError("the option n must be 1: a turn has one answer")
    bounds = [_bound(name, options[name]) for name in _BOUNDS if options.get(name) is not None]
    output_tokens = max(bounds, default=budget.reply_tokens)
    rates = price.rates(input_tokens)
    most = EXACT.fma(
        Decimal(output_tokens), rates.dearest_output, EXACT.multiply(Decimal(input_tokens), rates.dearest_input)
    )
    return to_nanos(most.scaleb(-6, EXACT))


def _bound(name: str, value: object) -> int:
    # Services read "5000" and 5000.0 too, and some take -1 for a reply without an end.
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1:
        raise ConfigurationError(f"the option {name} must be a number from 1 on: it bounds what a turn may cost")
    return math.ceil(min(value, _MOST_TOKENS))


def exceeded(cap: Cap, used: int, needed: int) -> BudgetExceeded:
    """Give the refusal of a turn that *needed* more billionths than are left on an account of which so many are *used*.

    Of a tenant's budget it tells no figures: they are other users'.
    """
    begins = (
        "start a new session"
        if cap.period is None
        else f"it begins anew at {from_micros(cap.period.ends):%Y-%m-%d %H:%M} UTC"
    )
    state = "used up"
    if needed > cap.limit:
        state, begins = "too small for this turn", "bound its reply with max_tokens, or send less"
    when = "" if cap.period is None else f" for {cap.period.name}"
    if cap.scope == "tenant":
        return BudgetExceeded(f"the tenant's budget{when} is {state}; {begins}")
    spent, limit, need = (shown(from_nanos(nanos)) for nanos in (used, cap.limit, needed))
    return BudgetExceeded(
        f"the {cap.scope}'s budget{when} is {state}: {spent} of {limit} {cap.currency} are spent or reserved, and this "
        f"turn may come to {need}; {begins}"
    )
