"""How a worker shares its time between tenants: who floods it waits for themselves, and nobody else for them.

All requests of a worker run on one event loop, in steps: each goes from one wait, for the store or a model, to the
next. The loop by itself lets them go on in the order in which their waits end. So a tenant with sixty requests under
way would take sixty steps for each step of somebody with one. Here steps go on as they come only until two milliseconds
are used up in one round of the loop. The others wait, and in each round as many go on as fit into that if each takes as
long as the tenant's longest lately, or one: of the tenant that has had least of the time, and of its requests the
oldest, so that what holds connections or locks is through with them soon. Whoever has had less than all that wait does
not wait behind them. As long as nobody else has come for a second, rounds are ten times as long: they cost a sixth of a
turn, and one tenant alone has nothing of them.
"""

from __future__ import annotations

import asyncio
import heapq
import time
import types
from collections.abc import Callable, Coroutine, Generator
from datetime import timedelta
from typing import Any, TypeVar

from cloister.errors import RateLimited

ResultT = TypeVar("ResultT")

_ROUND = 0.002
"""How many seconds of one round of the loop are given out."""
_ALONE = 0.02
"""How many, while a tenant is alone: so long waits, once, who comes then."""
_COMPANY = 1.0
"""For how many seconds a tenant that has gone on is reckoned with."""
_SHORT = 0.0002
"""Steps that are no longer make others wait later: to let them wait would take longer than they do."""
_FORGOTTEN = 32
"""Over how many steps a long one is forgotten."""
_LEAD = 0.05
"""By how many seconds at most somebody is ahead who asked for nothing lately: what was not used is not saved up."""
_MOST = 1_000
"""How many steps of one tenant may wait; whoever comes then is refused, before their body is read."""


class _Account:
    """Be what one tenant has had, in seconds, and which of its steps wait: by age of the request, then of the step."""

    __slots__ = ("had", "longest", "waiting")

    def __init__(self) -> None:
        self.had = 0.0
        self.longest = _ROUND
        """What a step of it took at most lately: one that was longer counts at once, and is forgotten over dozens."""
        self.waiting: list[tuple[int, int, asyncio.Future[None]]] = []


class Shares:
    """Share the time of an event loop between tenants. None stands for those who are of no tenant.

    An account is kept of each that ever asked: there are no more than the operator made.
    """

    def __init__(self, ticks: Callable[[], float] = time.perf_counter, *, most: int = _MOST) -> None:
        self.ticks = ticks
        self.used = 0.0
        self._most = most
        self._accounts: dict[str | None, _Account] = {}
        self._waiting: list[_Account] = []
        self._number = 0
        self._highest = 0.0
        self._in_round = False
        self._latest: _Account | None = None
        self._changed = 0.0
        """Since when no other account than the latest has gone on."""

    def of(self, tenant: str | None) -> Share:
        """Give a request of *tenant* its share. Raises `RateLimited` where too many wait already."""
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = _Account()
        if len(account.waiting) >= self._most:
            raise RateLimited("too many requests wait here", timedelta(seconds=1))
        self._number += 1
        return Share(self, account, self._number)

    def turn(self, account: _Account, age: int) -> asyncio.Future[None] | None:
        """Give what a step has to wait for, if for anything."""
        # Whoever comes back is ahead of those who went on asking, but by no more than that.
        if account.had > self._highest:
            self._highest = account.had
        elif account.had < self._highest - _LEAD:
            account.had = self._highest - _LEAD
        if account is not self._latest:
            self._latest, self._changed = account, self.ticks()
        if not self._in_round:
            self._in_round = True
            asyncio.get_running_loop().call_soon(self._begin_round)
        if self._waiting:
            # It would be next: then it need not wait for another round, in which one of those would go on before it.
            at_once = not account.waiting and all(account.had < other.had for other in self._waiting)
        else:
            most = 1 if account.longest > _SHORT else 4
            at_once = self.used < _ROUND * most or self.used < self._round() * most
        if at_once:
            return None
        if not account.waiting:
            self._waiting.append(account)
        self._number += 1
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(account.waiting, (age, self._number, turn))
        return turn

    def _round(self) -> float:
        return _ALONE if self.ticks() - self._changed > _COMPANY else _ROUND

    def _begin_round(self) -> None:
        self.used = 0.0
        self._in_round = bool(self._waiting)
        left = self._round()
        while self._waiting and left > 0:
            account = min(self._waiting, key=lambda account: account.had)
            self._let_go(account)
            left -= account.longest
        if self._in_round:  # behind those that go on now
            asyncio.get_running_loop().call_soon(self._begin_round)

    def _let_go(self, account: _Account) -> None:
        _, _, turn = heapq.heappop(account.waiting)
        if not account.waiting:
            self._waiting.remove(account)
        if not turn.done():  # else it was cancelled, and went on for that
            turn.set_result(None)


class Share:
    """Be what one request has of its tenant's share."""

    __slots__ = ("account", "age", "shares")

    def __init__(self, shares: Shares, account: _Account, age: int) -> None:
        self.shares = shares
        self.account = account
        self.age = age

    @types.coroutine
    def steps(self, work: Coroutine[Any, Any, ResultT]) -> Generator[Any, Any, ResultT]:
        """Do *work* within the task that awaits this, each step of it once it may go on."""
        account, age, shares = self.account, self.age, self.shares
        ticks = shares.ticks
        thrown: BaseException | None = None
        try:
            while True:
                # Whoever is cancelled has only to leave, and somebody waits for that.
                if thrown is None and (turn := shares.turn(account, age)) is not None:
                    try:
                        yield from turn
                    except asyncio.CancelledError as error:
                        thrown = error
                since = ticks()
                try:
                    waits_for = work.send(None) if thrown is None else work.throw(thrown)
                except StopIteration as end:
                    result: ResultT = end.value
                    return result
                finally:
                    took = ticks() - since
                    account.had += took
                    account.longest = max(took, account.longest + (took - account.longest) / _FORGOTTEN)
                    shares.used += took
                try:
                    yield waits_for
                    thrown = None
                except BaseException as error:  # noqa: BLE001 (whatever it is, it is the work's)
                    thrown = error
        finally:
            work.close()
