"""What turns cost: prices, budgets, reports, comparison. Decimal throughout; see docs/costs.md.

`cloister.costs.report` sums up what the audit log says, `cloister.costs.compare` says what it would have cost
elsewhere; nothing but the command line needs them.
"""

from cloister.costs.budget import Budget, Cap, exceeded, periods, reservation
from cloister.costs.money import from_nanos, plain, to_nanos
from cloister.costs.prices import Prices, unknown
from cloister.costs.rates import Price, cost

__all__ = [
    "Budget",
    "Cap",
    "Price",
    "Prices",
    "cost",
    "exceeded",
    "from_nanos",
    "periods",
    "plain",
    "reservation",
    "to_nanos",
    "unknown",
]
