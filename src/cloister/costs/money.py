"""Amounts of money: exact decimals, whole billionths where a store counts them, and how they are written."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Context, Decimal, Inexact, InvalidOperation

# Nothing here looks at the application's own decimal context: what that one rounds would be wrong in an account.
EXACT = Context(prec=80, traps=[Inexact, InvalidOperation])
_UP = Context(prec=80, rounding=ROUND_CEILING, traps=[InvalidOperation])
_NEAR = Context(prec=80, rounding=ROUND_HALF_EVEN, traps=[InvalidOperation])

ZERO = Decimal(0)
MOST_NANOS = 1 << 52
"""The most that a store counts, some four million: above every budget, and two of it still add up in any store."""

_PLACES = 9
_NANO = Decimal(1).scaleb(-_PLACES)
_MOST = Decimal(10) ** 9
# No exponent, sign or separator: whoever reads a file sees what an amount comes to.
_AMOUNT = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


def amount(value: object) -> Decimal:
    """Read an amount: text, a whole number or a Decimal. Raises `ValueError`, which says what it must be.

    A float is refused: most decimal amounts are none, 0.1 among them.
    """
    if isinstance(value, float):
        raise ValueError(f"text such as '{value}', or a Decimal: a float is not exact")
    if isinstance(value, str):
        value = Decimal(value.strip()) if _AMOUNT.fullmatch(value.strip()) else None
    elif isinstance(value, int) and not isinstance(value, bool):
        value = Decimal(value)
    if (
        not isinstance(value, Decimal)
        or not value.is_finite()
        or not 0 <= value < _MOST
        or value.as_tuple().exponent < -_PLACES  # type: ignore[operator]  # a finite one's is a number
    ):
        raise ValueError(f"an amount such as 2.00, below {_MOST:,}, with at most {_PLACES} decimal places")
    return value


def to_nanos(amount: Decimal) -> int:
    """Turn an amount into whole billionths, as stores count them, rounded up: never less than it is.

    More than `MOST_NANOS` is taken for that.
    """
    return min(int(_UP.quantize(amount, _NANO).scaleb(_PLACES, EXACT)), MOST_NANOS)


def from_nanos(nanos: int) -> Decimal:
    """Turn whole billionths into an amount."""
    return Decimal(nanos).scaleb(-_PLACES, EXACT)


def plain(amount: Decimal) -> str:
    """Write an amount whole, without an exponent and without zeros at its end, as the audit log keeps it."""
    text = format(amount, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def shown(amount: Decimal) -> str:
    """Write an amount for people: to the cent, and below one to four digits that say something."""
    places = 2 if not amount or amount.copy_abs() >= 1 else max(2, 3 - amount.adjusted())
    rounded = _NEAR.quantize(amount, Decimal(1).scaleb(-places))
    whole, _, rest = format(rounded, ",f").partition(".")
    return f"{whole}.{rest.rstrip('0').ljust(2, '0')}"
