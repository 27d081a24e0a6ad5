"""What was spent, summed up from the audit log: by tenant, user, session, model or day.

The log is the record that can be verified, so nothing else keeps these sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Literal, get_args

import msgspec

from cloister.audit import Entry
from cloister.costs.money import EXACT, ZERO
from cloister.model import Owner, Usage, from_micros

By = Literal["tenant", "user", "session", "model", "day"]
BY: tuple[By, ...] = get_args(By)

Key = tuple[tuple[str, str | None], ...]
"""What tells one row from the others: names and values, such as provider and model."""

_EVENTS = ("turn.committed", "turn.passed", "turn.failed")
_Count = Annotated[int, msgspec.Meta(ge=0)]


class _Detail(msgspec.Struct, frozen=True):
    """Be what an entry says about its turn's cost; other values are not looked at."""

    provider: str | None = None
    model: str | None = None
    input_tokens: _Count = 0
    output_tokens: _Count = 0
    cached_tokens: _Count = 0
    reasoning_tokens: _Count = 0
    estimated: bool = False
    cost: Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,15}(\.[0-9]{1,30})?$")] | None = None
    currency: Annotated[str, msgspec.Meta(pattern="^[A-Z]{3}$")] = "USD"

    @property
    def usage(self) -> Usage:
        return Usage(
            self.input_tokens, self.output_tokens, self.cached_tokens, self.reasoning_tokens, estimated=self.estimated
        )


_read = msgspec.json.Decoder(_Detail).decode


@dataclass(slots=True)
class Sum:
    """Be what some turns took and cost. What has no price is in ``unpriced``, and in no amount of money."""

    turns: int = 0
    failed: int = 0
    """Those of the turns that came to nothing."""
    usage: Usage = Usage()
    estimated_tokens: int = 0
    money: dict[str, Decimal] = field(default_factory=dict)
    """How much in each currency."""
    unpriced_turns: int = 0
    unpriced_tokens: int = 0

    def add(self, turn: _Detail, *, failed: bool) -> None:
        """Count one turn more."""
        usage = turn.usage
        self.turns += 1
        self.failed += failed
        self.usage += usage
        if usage.estimated:
            self.estimated_tokens += usage.total_tokens
        if turn.cost is not None:
            self._spend(turn.currency, Decimal(turn.cost))
        elif usage.total_tokens:
            self.unpriced_turns += 1
            self.unpriced_tokens += usage.total_tokens

    def join(self, other: Sum) -> None:
        """Count all that *other* has counted."""
        self.turns += other.turns
        self.failed += other.failed
        self.usage += other.usage
        self.estimated_tokens += other.estimated_tokens
        for currency, amount in other.money.items():
            self._spend(currency, amount)
        self.unpriced_turns += other.unpriced_turns
        self.unpriced_tokens += other.unpriced_tokens

    def _spend(self, currency: str, amount: Decimal) -> None:
        self.money[currency] = EXACT.add(self.money.get(currency, ZERO), amount)

    @property
    def estimated_share(self) -> float:
        """Give how much of the tokens no provider has counted, from 0 to 1."""
        return self.estimated_tokens / self.usage.total_tokens if self.estimated_tokens else 0.0


class Report:
    """Sum up entries of the audit log, one after the other, as a store gives them.

    *owners* are whom audit ids stand for; an erased owner stays under the audit id. Only turns count that happened from
    *since* on and before *until*, microseconds since 1970, and those of *tenant* where one is named.
    """

    def __init__(
        self,
        by: By,
        owners: Mapping[str, Owner],
        *,
        since: int | None = None,
        until: int | None = None,
        tenant: str | None = None,
    ) -> None:
        self._by = by
        self._owners = owners
        self._since = since
        self._until = until
        self._tenant = tenant
        self._counted: dict[str, int] = {}
        self.rows: dict[Key, Sum] = {}
        self.unpriced: set[tuple[str | None, str | None]] = set()
        """The providers and models whose price was not known."""
        self.unreadable = 0
        """Entries of turns that do not say what they should: they are in no row."""
        self.unresolved = 0
        """Turns left out because their owner was erased, so that nothing says whether it was one of *tenant*."""

    def add(self, entry: Entry) -> None:
        """Count the next entry, if it is a turn's, and was not counted before."""
        if entry.event not in _EVENTS:
            return
        try:
            # A store may give an entry twice, but those of one writer in the order of its writing.
            if entry.number <= self._counted.get(entry.writer, 0):
                return
            self._counted[entry.writer] = entry.number
            if (self._since is not None and entry.at < self._since) or (
                self._until is not None and entry.at >= self._until
            ):
                return
            turn, key = _read(entry.detail), None
            if self._tenant is None or self._is_tenants(entry):
                key = self._key(entry, turn)
        except (msgspec.MsgspecError, TypeError, ValueError, OverflowError):
            # A row that somebody changed may hold anything; `cloister audit verify` names it.
            self.unreadable += 1
            return
        if key is None:
            return
        self.rows.setdefault(key, Sum()).add(turn, failed=entry.event == "turn.failed")
        if turn.cost is None and turn.input_tokens + turn.output_tokens:
            self.unpriced.add((turn.provider, turn.model))

    @property
    def total(self) -> Sum:
        """Give the sum of all rows."""
        total = Sum()
        for row in self.rows.values():
            total.join(row)
        return total

    def sorted(self) -> list[tuple[Key, Sum]]:
        """Give the rows: days in their order, others the dearest first."""
        if self._by == "day":
            return sorted(self.rows.items())

        def weight(row: tuple[Key, Sum]) -> tuple[Decimal, int, str]:
            key, one = row
            return -max(one.money.values(), default=ZERO), -one.usage.total_tokens, str(key)

        return sorted(self.rows.items(), key=weight)

    def _is_tenants(self, entry: Entry) -> bool:
        owner = self._owners.get(entry.owner)
        self.unresolved += owner is None
        return owner is not None and owner.tenant == self._tenant

    def _key(self, entry: Entry, turn: _Detail) -> Key:
        owner = self._owners.get(entry.owner)
        if self._by == "model":
            return ("provider", turn.provider), ("model", turn.model)
        if self._by == "day":
            return (("day", f"{from_micros(entry.at):%Y-%m-%d}"),)
        if self._by == "session":
            return (("session", entry.session),)
        if owner is None:
            return (("audit_id", entry.owner),)
        if self._by == "tenant":
            return (("tenant", owner.tenant),)
        return ("tenant", owner.tenant), ("user", owner.user)
