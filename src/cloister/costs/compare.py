"""What the same usage would have cost on other models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from cloister.costs.money import EXACT, ZERO
from cloister.costs.prices import Prices
from cloister.costs.rates import Price, cost_at
from cloister.model import Usage

Usages = Mapping[tuple[str | None, str | None], Usage]
"""How much was used of each provider's model."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Be what one model would have cost, and what stands behind the figure."""

    price: Price
    cost: Decimal
    used: bool
    """Whether some of the usage was this model's."""
    cache_unknown: bool
    """Whether tokens from a cache are counted in full, because nothing is known about a lower price for them."""


def compare(usages: Usages, prices: Prices, at: datetime) -> list[Compared]:
    """Give what the same numbers of tokens cost on every model of the table *at* that moment, the cheapest first.

    Another model cuts a text into other tokens, and answers at another length: these are the same counts, not the same
    conversations. How long each call was is not known here, so dearer rates of long calls are left out.
    """
    cached = any(usage.cached_tokens for usage in usages.values())
    used = {price.key for provider, model in usages if (price := prices.find(provider, model, at)) is not None}
    rows = [
        Compared(
            price, _sum(usages, price), price.key in used, cached and price.cached_input is None and price.input > 0
        )
        for price in prices.newest(at)
        if price.provider != "offline"  # which is no model
    ]
    return sorted(rows, key=lambda row: (row.price.currency, row.cost, row.price.key))


def _sum(usages: Usages, price: Price) -> Decimal:
    spent = ZERO
    for usage in usages.values():
        spent = EXACT.add(spent, cost_at(usage, price))
    return spent
