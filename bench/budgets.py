"""What a budget costs: a turn that is reserved and settled in accounts, to one that is not.

    python -m bench.budgets memory:// sqlite:////tmp/bench.db redis://localhost:6379/9 postgresql://cloister_app@host/db

A turn is one load of ten items, with a lease, and one commit of two, straight on the store: nothing is sealed, and no
model asked. Turns without charges, with one (a user's day) and with four (the user's and the tenant's, day and month)
come in turn, A B C …; each figure is a median, a ratio the median of the rounds' ratios. Then 32 sessions, of as many
users of one tenant, take turns at once, and how many turns a second that makes is compared. On a server the requests
of a turn are counted too. Name an empty store.
"""

from __future__ import annotations

import asyncio
import secrets
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cloister import stores
from cloister.model import Owner, SealedSession
from cloister.stores.base import Account, Charge, Store
from cloister.testing import grown, load, nonce, sealed_items, sealed_session

_ROUNDS, _WARM = 300, 30
_AT_ONCE, _TURNS, _CROWDS = 32, 20, 9
_KINDS = {"no account": 0, "1 account": 1, "4 accounts": 4}
_LIMIT, _UNTIL = 1 << 50, 1 << 50


def _charges(owner: Owner, count: int, amount: int) -> list[Charge]:
    whose = [(who, period) for who in (owner.user, None) for period in ("2026-11-21", "2026-11")]
    return [Charge(Account(owner.tenant, who, period), amount, _LIMIT, _UNTIL) for who, period in whose[:count]]


async def _turn(store: Store, session: SealedSession, count: int) -> SealedSession:
    lease = secrets.token_bytes(16)
    await load(store, session.owner, session.id, 95, lease=lease, charges=_charges(session.owner, count, 50_000_000))
    settled = _charges(session.owner, count, 20_000_000)
    commit = grown(session, sealed_items(2, session.count), lease, charges=settled)
    await store.commit(commit, nonce=nonce())
    return commit.session


async def _started(store: Store, user: str) -> SealedSession:
    session = sealed_session(Owner("acme", user), count=10, tokens=100)
    await store.create(session, sealed_items(10), nonce=nonce())
    return session


async def alone(store: Store) -> None:
    """Print what one turn after another costs."""
    sessions = {kind: await _started(store, kind) for kind in _KINDS}
    taken: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    for round_ in range(_ROUNDS + _WARM):
        for kind, count in _KINDS.items():
            begun = time.perf_counter()
            sessions[kind] = await _turn(store, sessions[kind], count)
            if round_ >= _WARM:
                taken[kind].append(time.perf_counter() - begun)
    for kind, each in taken.items():
        ratio = statistics.median(cost / base for cost, base in zip(each, taken["no account"], strict=True))
        with _requests() as asked:
            await _turn(store, sessions[kind], _KINDS[kind])
        print(f"  {kind:12} {1e6 * statistics.median(each):8.0f} µs {ratio:6.2f} ×{_said(asked)}")


async def crowd(store: Store) -> None:
    """Print how many turns of many users at once there are in a second."""
    sessions = {kind: [await _started(store, f"{kind} {n}") for n in range(_AT_ONCE)] for kind in _KINDS}
    rates: dict[str, list[float]] = {kind: [] for kind in _KINDS}

    async def talk(kind: str, number: int) -> None:
        for _ in range(_TURNS):
            sessions[kind][number] = await _turn(store, sessions[kind][number], _KINDS[kind])

    for _ in range(_CROWDS):
        for kind in _KINDS:
            begun = time.perf_counter()
            await asyncio.gather(*(talk(kind, number) for number in range(_AT_ONCE)))
            rates[kind].append(_AT_ONCE * _TURNS / (time.perf_counter() - begun))
    print(f"  {_AT_ONCE} users at once:")
    for kind, each in rates.items():
        ratio = statistics.median(base / rate for rate, base in zip(each, rates["no account"], strict=True))
        print(f"  {kind:12} {statistics.median(each):8.0f} turns/s {ratio:6.2f} × the time")


@contextmanager
def _requests() -> Iterator[list[str]]:
    """Count what is asked of a server inside the block."""
    asked: list[str] = []
    wires: list[tuple[Any, str]] = []
    for module, method in (("redis_wire", "run"), ("postgres_wire", "call")):
        if f"cloister.stores.{module}" in sys.modules:
            wires.append((sys.modules[f"cloister.stores.{module}"].Wire, method))
    real = [getattr(wire, method) for wire, method in wires]

    def counting(method: Any) -> Any:
        def called(*args: Any) -> Any:
            asked.append(method.__name__)
            return method(*args)

        return called

    for (wire, name), method in zip(wires, real, strict=True):
        setattr(wire, name, counting(method))
    try:
        yield asked
    finally:
        for (wire, name), method in zip(wires, real, strict=True):
            setattr(wire, name, method)


def _said(asked: list[str]) -> str:
    return f", {len(asked)} requests" if asked else ""


async def main() -> None:
    for url in sys.argv[1:]:
        store = stores.connect(url)
        await store.open()
        print(store.url)
        try:
            await alone(store)
            await crowd(store)
        finally:
            await store.close()


if __name__ == "__main__":
    asyncio.run(main())
