"""How many turns may run at once: of a user, and of all users of a tenant."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from cloister.errors import RateLimited
from cloister.model import EPOCH, to_micros

_TIME = timedelta(minutes=10)
_MOST = 1_000_000
AGAIN = timedelta(seconds=1)
"""When to try again: nobody knows how long a model thinks."""


class Slots(NamedTuple):
    """Be how many turns of a user, or of a tenant, may begin in one stretch of time and run at once."""

    scope: Literal["user", "tenant"]
    period: str
    ends: int
    limit: int


@dataclass(frozen=True, slots=True)
class Rates:
    """Say how many turns may run at once; ``None`` for no limit.

    They are counted in the store, over all processes, for ten minutes at a time: what a process that was killed never
    gave back is free again with the next ten minutes, in which turns of the last ones do not count.
    """

    turns_per_user: int | None = None
    turns_per_tenant: int | None = None
    """Of all users of a tenant together; of everybody, where there are no tenants."""

    def __post_init__(self) -> None:
        given = {"turns_per_user": self.turns_per_user, "turns_per_tenant": self.turns_per_tenant}
        if all(value is None for value in given.values()):
            raise ValueError(f"rates bound something: give one of {', '.join(given)}")
        for name, value in given.items():
            if value is not None and (type(value) is not int or not 1 <= value <= _MOST):
                raise ValueError(f"{name} must be a whole number from 1 to {_MOST:,}; leave it out for no limit")

    def slots(self, now: datetime) -> tuple[Slots, ...]:
        """Give what a turn that begins *now* takes one of."""
        number = (now - EPOCH) // _TIME
        period, ends = f"turns-{number}", to_micros(EPOCH + (number + 1) * _TIME)
        limits: tuple[tuple[Literal["user", "tenant"], int | None], ...] = (
            ("user", self.turns_per_user),
            ("tenant", self.turns_per_tenant),
        )
        return tuple(Slots(scope, period, ends, limit) for scope, limit in limits if limit is not None)


def refused(slots: Slots) -> RateLimited:
    """Give the refusal of one turn too many. Of a tenant's it tells no figures: they are other users'."""
    whose = f"{slots.limit} turns of this user" if slots.scope == "user" else "too many turns of this tenant's users"
    return RateLimited(f"{whose} are running already; wait for one of them, then go on", AGAIN)
