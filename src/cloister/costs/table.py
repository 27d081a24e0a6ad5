"""Read a table of prices from TOML."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from typing import Any

from cloister.costs.money import amount
from cloister.costs.rates import Price, Tier
from cloister.errors import ConfigurationError

FALLBACK = "genai-prices"

_CURRENCY = re.compile("[A-Z]{3}")
_RATES = ("input", "output", "cached_input", "cache_write", "reasoning")
_NEEDED = ("provider", "model", "input", "output", "source", "as_of")
_ROW = frozenset({*_NEEDED, *_RATES, "currency", "tiers"})


def read(text: str, where: str) -> tuple[list[Price], bool]:
    """Read a table of prices, and whether genai-prices is to be asked for others."""
    try:
        said = tomllib.loads(text, parse_float=Decimal)
    except ValueError as error:
        raise ConfigurationError(f"{where} is not TOML: {error}") from None
    rows, fallback = said.pop("price", []), said.pop("fallback", None)
    if said or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigurationError(
            f"{where} must be made of [[price]] rows" + (f"; not {', '.join(said)}" if said else "")
        )
    if fallback not in (None, FALLBACK):
        raise ConfigurationError(f'fallback in {where} must be "{FALLBACK}", or left out')
    prices: list[Price] = []
    met: set[tuple[str, str, date]] = set()
    for number, row in enumerate(rows, 1):
        named = "/".join(str(row[name]) for name in ("provider", "model") if isinstance(row.get(name), str))
        here = f"row {number} of {where}" + (f", {named}," if named else "")
        try:
            price = _price(row)
        except ValueError as error:
            raise ConfigurationError(f"{here} {error}") from None
        key = (*price.key, price.as_of)
        if key in met:
            raise ConfigurationError(f"{here} stands there twice for the same day; keep one of them")
        met.add(key)
        prices.append(price)
    return prices, fallback is not None


def _price(row: Mapping[str, Any]) -> Price:
    if missing := [name for name in _NEEDED if name not in row]:
        raise ValueError(f"lacks {', '.join(missing)}")
    if strange := sorted(row.keys() - _ROW):
        raise ValueError(f"has {', '.join(strange)}, which no price has; it may have {', '.join(sorted(_ROW))}")
    for name in ("provider", "model", "source"):
        if not isinstance(row[name], str) or not row[name].strip():
            raise ValueError(f"needs a {name} that is a text and not empty")
    if type(row["as_of"]) is not date:
        raise ValueError("needs a day as as_of, such as 2026-11-21, without quotes")
    currency = row.get("currency", "USD")
    if not isinstance(currency, str) or not _CURRENCY.fullmatch(currency):
        raise ValueError("needs a currency of three capitals, such as USD")
    return Price(
        provider=row["provider"],
        model=row["model"],
        source=row["source"],
        as_of=row["as_of"],
        currency=currency,
        tiers=_tiers(row.get("tiers", [])),
        **_rates(row),
    )


def _tiers(said: object) -> tuple[Tier, ...]:
    if not isinstance(said, list) or not all(isinstance(tier, dict) for tier in said):
        raise ValueError("needs tiers that are a list of tables such as {above = 272_000, input = 4, output = 15}")
    tiers: list[Tier] = []
    for tier in said:
        if strange := sorted(tier.keys() ^ ({"above", "input", "output"} | tier.keys() & {*_RATES})):
            raise ValueError(f"has a tier in which {', '.join(strange)} is missing or means nothing")
        if type(tier["above"]) is not int or tier["above"] <= (tiers[-1].above if tiers else 0):
            raise ValueError("needs whole numbers as the tiers' above, each larger than the one before")
        tiers.append(Tier(above=tier["above"], **_rates(tier)))
    return tuple(tiers)


def _rates(row: Mapping[str, Any]) -> dict[str, Decimal]:
    rates = {}
    for name in _RATES:
        if name in row:
            try:
                rates[name] = amount(row[name])
            except ValueError as error:
                raise ValueError(f"needs as {name} {error}") from None
    return rates
