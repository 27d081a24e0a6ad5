"""What the turns of everybody, or of one tenant's users, have in common: model, limits, protections, counting."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from cloister import looking, providers
from cloister import window as windows
from cloister.bills import Bill
from cloister.costs import Budget, Prices
from cloister.errors import ConfigurationError
from cloister.guard import Watch
from cloister.model import Item, Limits, Owner
from cloister.providers.base import Provider
from cloister.rates import Rates
from cloister.scrub.settings import Scrub
from cloister.vault import Vault

_COUNTED = 1 << 18
"""The longest text, in characters, whose tokens are counted: a longer one costs its bytes."""
_LONG = 20_000


@dataclass(frozen=True, slots=True)
class Tenant:
    """Say what is different for the users of one tenant. What is None is as for everybody."""

    provider: str | Provider | None = None
    limits: Limits | None = None
    scrub: Scrub | None = None
    context_tokens: int | None = None
    keep_failed: bool | None = None
    budget: Budget | None = None
    rates: Rates | None = None

    def __post_init__(self) -> None:
        check_context(self.context_tokens)

    def connected(self) -> Tenant:
        """Give the same with its provider at hand."""
        return dataclasses.replace(self, provider=providers.connect(self.provider))


def check_context(tokens: int | None) -> None:
    """Raise `ConfigurationError` for a window that holds nothing."""
    if tokens is not None and tokens < 1:
        raise ConfigurationError("context_tokens must be at least 1")


@dataclass(frozen=True, slots=True)
class Services:
    """Be what a turn needs of the cloister that it is taken in."""

    vault: Vault
    watch: Watch
    provider: Provider | None
    limits: Limits
    scrub: Scrub
    context_tokens: int | None
    keep_failed: bool
    budget: Budget | None
    prices: Prices
    rates: Rates | None = None
    _prepared: set[str] = field(default_factory=set, repr=False)

    def but(self, tenant: Tenant) -> Services:
        """Give the services of one tenant's users."""
        different = {name.name: getattr(tenant, name.name) for name in dataclasses.fields(tenant)}
        return dataclasses.replace(self, **{name: value for name, value in different.items() if value is not None})

    @property
    def model(self) -> str | None:
        """Name the model that is asked where a turn names none."""
        return self.provider.model if self.provider else None

    def bill(
        self, owner: Owner, model: str | None, before: int, said: Sequence[Item], options: Mapping[str, Any]
    ) -> Bill:
        """Give the bill of a turn that sends what is *said* after about so many tokens *before* it.

        Raises `ConfigurationError` for a budget without a price.
        """
        tokens = 0
        if self.budget is not None:
            # The turn counts long texts anyway, which takes a while; where they come to more, `Bill.cover` sees to it.
            new = sum(
                [self.counted(one, model).tokens if len(one.text) < _LONG else len(one.text) // 4 for one in said]
            )
            size = windows.options_size(options)
            beside = windows.options_tokens(options, self.counter(model)) if size < _LONG else size // 4
            tokens = min(before + new + beside, self.window(model))
        named = self.provider.name if self.provider else None
        return Bill(
            self.vault, owner, self.prices, self.budget, named, model or self.model, tokens, options, self.rates
        )

    async def prepare(self, model: str | None) -> None:
        """Load what counts for *model*: an exact vocabulary takes a second, for which no other task should wait."""
        vocabulary = windows.vocabulary(model or self.model)
        if vocabulary is not None and vocabulary not in self._prepared:
            await asyncio.to_thread(self.counter, model)
            self._prepared.add(vocabulary)

    async def beside(self, owner: Owner, options: Mapping[str, Any], model: str | None = None) -> int:
        """Count what goes along with the messages of a turn: not on the loop where there is much of it."""
        size, counter = windows.options_size(options), self.counter(model)
        if size < _LONG:
            return windows.options_tokens(options, counter)
        return await looking.beside(owner, size, lambda: windows.options_tokens(options, counter), begins=True)

    def window(self, model: str | None = None) -> int:
        """Give how many tokens a turn may send to *model*, or to the provider's own."""
        return self.context_tokens or windows.context_tokens(model or self.model)

    def counter(self, model: str | None = None) -> windows.Counter:
        """Give what counts tokens for *model*, or for the provider's own."""
        return windows.counter_for(model or self.model)

    def counted(self, item: Item, model: str | None = None) -> Item:
        """Give *item* with its cost in a window."""
        counter = self.counter(model)
        if len(item.text) > _COUNTED:
            # No byte-pair vocabulary takes more tokens than bytes, and counting would hold up every other task.
            return msgspec.structs.replace(item, tokens=len(msgspec.msgpack.encode(item)), counter="bytes")
        return msgspec.structs.replace(item, tokens=windows.item_tokens(item, counter), counter=counter.name)
