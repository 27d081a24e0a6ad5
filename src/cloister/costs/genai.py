"""The prices of the package genai-prices, for models that the table has no row for."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from cloister.costs.rates import Price, Tier
from cloister.errors import ConfigurationError

if TYPE_CHECKING:
    from genai_prices.types import TieredPrices

_NAMES = {
    "input": "input_mtok",
    "output": "output_mtok",
    "cached_input": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
}


def lookup() -> Callable[[str, str, datetime], Price | None]:
    """Give what looks a price up, by provider, model and moment; `ConfigurationError` if the package is not there."""
    try:
        import genai_prices
    except ImportError:
        raise ConfigurationError(
            "these prices need a package that is not installed: pip install 'cloister[prices]'"
        ) from None
    one = genai_prices.Usage(input_tokens=1, output_tokens=1)

    def find(provider: str, model: str, at: datetime) -> Price | None:
        try:
            found = genai_prices.calc_price(one, model, provider_id=provider, genai_request_timestamp=at)
        except LookupError:
            return None
        said = {name: rate for name, key in _NAMES.items() if (rate := getattr(found.model_price, key)) is not None}
        if found.provider.id != provider.lower() or not {"input", "output"} <= said.keys():
            return None  # it knows other names for providers, and models that are not paid by the token
        starts = sorted({tier.start for rate in said.values() for tier in getattr(rate, "tiers", ())})
        return Price(
            provider=provider,
            model=model,
            source=f"genai-prices {genai_prices.__version__}, as {found.model.id}",
            as_of=at.astimezone(UTC).date(),
            tiers=tuple(Tier(above=above, **_rates(said, above)) for above in starts),
            **_rates(said, -1),
        )

    return find


def _rates(said: dict[str, Decimal | TieredPrices], above: int) -> dict[str, Any]:
    """Give the rates of calls that have more than *above* tokens of input."""
    rates: dict[str, Decimal] = {}
    for name, rate in said.items():
        if isinstance(rate, Decimal):
            rates[name] = rate
        else:
            rates[name] = next((tier.price for tier in reversed(rate.tiers) if tier.start <= above), rate.base)
    return rates
