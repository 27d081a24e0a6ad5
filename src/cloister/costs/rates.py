"""What one model costs, and what usage of it comes to."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from cloister.costs.money import EXACT, ZERO
from cloister.model import Usage

_MILLIONTH = -6


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Say what a million tokens of each kind cost. None is for what is not told apart: it costs what the rest does."""

    input: Decimal
    output: Decimal
    cached_input: Decimal | None = None
    """Input that the provider had in its cache."""
    cache_write: Decimal | None = None
    """Input that it wrote there, where that costs more."""
    reasoning: Decimal | None = None
    """Output that the model only thought."""

    def __post_init__(self) -> None:
        rates: tuple[object, ...] = (self.input, self.output, self.cached_input, self.cache_write, self.reasoning)
        for rate in rates:
            # A negative one would pay whoever asks, and what is no Decimal would fail once the model was asked.
            if rate is not None and not (isinstance(rate, Decimal) and rate.is_finite() and rate >= 0):
                raise ValueError(f"a price for a million tokens is a Decimal from 0 on, not {rate!r}")

    @property
    def dearest_input(self) -> Decimal:
        """Give the most that a million tokens of input can cost."""
        return max(rate for rate in (self.input, self.cached_input, self.cache_write) if rate is not None)

    @property
    def dearest_output(self) -> Decimal:
        """Give the most that a million tokens of output can cost."""
        return self.output if self.reasoning is None else max(self.output, self.reasoning)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier(Rates):
    """Be what all tokens of a call cost that has more than ``above`` tokens of input."""

    above: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Price(Rates):
    """Be what one provider asks for one model, from the day ``as_of`` on, and where that is said."""

    provider: str
    model: str
    source: str
    as_of: date
    currency: str = "USD"
    tiers: tuple[Tier, ...] = ()
    """Dearer rates of long calls, the shortest first."""

    @property
    def key(self) -> tuple[str, str]:
        """Give what tells it from the prices of other models: capitals do not."""
        return self.provider.lower(), self.model.lower()

    def rates(self, input_tokens: int) -> Rates:
        """Give what holds for a call with so many tokens of input."""
        met: Rates = self
        for tier in self.tiers:
            if input_tokens > tier.above:
                met = tier
        return met


def cost(usage: Usage, price: Price) -> Decimal:
    """Give what *usage* costs, exactly, in the price's currency.

    Cached and cache-writing tokens are part of the input, reasoning tokens of the output.
    """
    return cost_at(usage, price.rates(usage.input_tokens))


def cost_at(usage: Usage, rates: Rates) -> Decimal:
    """Give what *usage* costs at *rates*, exactly."""
    cached = min(usage.cached_tokens, usage.input_tokens)
    written = min(usage.cache_write_tokens, usage.input_tokens - cached)
    reasoned = min(usage.reasoning_tokens, usage.output_tokens)
    spent = ZERO
    for tokens, rate in (
        (usage.input_tokens - cached - written, rates.input),
        (cached, rates.input if rates.cached_input is None else rates.cached_input),
        (written, rates.input if rates.cache_write is None else rates.cache_write),
        (usage.output_tokens - reasoned, rates.output),
        (reasoned, rates.output if rates.reasoning is None else rates.reasoning),
    ):
        spent = EXACT.fma(Decimal(tokens), rate, spent)
    return spent.scaleb(_MILLIONTH, EXACT)
