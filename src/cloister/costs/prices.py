"""The prices of many models: ours, an operator's laid over them, and whose price a model's is."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime

from cloister.costs.rates import Price
from cloister.errors import ConfigurationError

ANY = "*"
"""The model of a row that holds for every model of its provider which has no row of its own."""

# "gpt-4.1-2025-04-14", "claude-sonnet-4-5-20250929", "claude-sonnet-4-5@20250929": a model on the day it was fixed.
_SNAPSHOT = re.compile(r"(.+)[-@](20[0-9]{2}-[01][0-9]-[0-3][0-9]|20[0-9]{2}[01][0-9][0-3][0-9])")

Fallback = Callable[[str, str, datetime], Price | None]


@dataclass(frozen=True, slots=True)
class Prices:
    """Be a table of prices. `default` is ours, `read` lays an operator's over it."""

    rows: tuple[Price, ...]
    fallback: Fallback | None = None
    """Asked for models that have no row: provider, model and the moment."""
    _found: dict[tuple[str, str], tuple[Price, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        found: dict[tuple[str, str], tuple[Price, ...]] = {}
        for row in sorted(self.rows, key=lambda row: row.as_of):
            found[row.key] = (*found.get(row.key, ()), row)
        object.__setattr__(self, "_found", found)

    @classmethod
    def default(cls) -> Prices:
        """Give the table that cloister brings along."""
        from importlib.resources import files

        from cloister.costs import table

        rows, _ = table.read((files("cloister.costs") / "prices.toml").read_text("utf-8"), "cloister's own prices.toml")
        return cls(tuple(rows))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Prices:
        """Read the TOML file at *path*, and lay it over the default table.

        Its rows for a model take the place of all that the default table has for the same model of the same provider.
        ``fallback = "genai-prices"`` in front of them asks that package for what neither has. Raises
        `ConfigurationError`, which names the row.
        """
        from cloister.costs import genai, table

        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError) as error:
            said = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigurationError(f"the price table {os.fspath(path)} cannot be read: {said}") from None
        rows, fallback = table.read(text, f"the price table {os.fspath(path)}")
        return cls.default().over(rows, genai.lookup() if fallback else None)

    @classmethod
    def genai(cls) -> Prices:
        """Give the default table, and for what it lacks the prices of the package genai-prices.

        Needs the extra ``prices``: `ConfigurationError` without it. The package takes 67 MiB of memory.
        """
        from cloister.costs import genai

        return cls(cls.default().rows, genai.lookup())

    def over(self, rows: Iterable[Price], fallback: Fallback | None = None) -> Prices:
        """Give this table with *rows* laid over it."""
        above = tuple(rows)
        taken = {row.key for row in above}
        kept = [row for row in self.rows if row.key not in taken]
        return Prices((*kept, *above), fallback or self.fallback)

    def find(self, provider: str | None, model: str | None, at: datetime | None = None) -> Price | None:
        """Give what *provider* asks for *model* at the moment *at*, or None if that is not known. Never another's.

        A model is known by its name, or as a dated snapshot of that name; ``gpt-4.1-mini`` is not ``gpt-4.1``. Of
        several prices the latest holds that is not later than *at*, or the latest of all. Without a *provider* the
        one is meant who alone has a row for the model. A table with a fallback needs *at*: `ValueError`.
        """
        if self.fallback is not None and at is None:
            raise ValueError("this price table asks genai-prices, which has to know when: pass at=")
        if not model:
            return None
        if not provider:
            return self._of_anybody(model, at)
        dated = self._row(provider, model) or self._found.get(_key(provider, ANY))
        if dated is not None:
            return _on(dated, at)
        return None if self.fallback is None or at is None else self.fallback(provider, model, at)

    def newest(self, at: datetime | None = None) -> Iterator[Price]:
        """Give the price of each model that holds *at* that moment, or the latest."""
        for dated in self._found.values():
            yield _on(dated, at)

    def _row(self, provider: str, model: str) -> tuple[Price, ...] | None:
        named = self._found.get(_key(provider, model))
        if named is None and (snapshot := _SNAPSHOT.fullmatch(model)):
            named = self._found.get(_key(provider, snapshot[1]))
        return named

    def _of_anybody(self, model: str, at: datetime | None) -> Price | None:
        providers = {provider for provider, _ in self._found}
        met = [dated for provider in providers if (dated := self._row(provider, model))]
        return _on(met[0], at) if len(met) == 1 else None


def unknown(provider: str | None, model: str | None) -> ConfigurationError:
    """Give the error of a turn whose cost a budget would have to bound, and whose price is not known."""
    return ConfigurationError(
        f"no price is known for the model {model or '(without a name)'} of {provider or 'an unnamed provider'}, so its "
        "budget cannot be kept: add a row to a file of prices and name it with CLOISTER_PRICES"
    )


def _key(provider: str, model: str) -> tuple[str, str]:
    return provider.lower(), model.lower()


def _on(dated: tuple[Price, ...], at: datetime | None) -> Price:
    """Give the latest of *dated* prices, which stand oldest first, that held at the moment *at*."""
    day = date.max if at is None else at.astimezone(UTC).date()
    return next((price for price in reversed(dated) if price.as_of <= day), dated[0])
