"""Accounts in SQLite: what was spent lies in the database, durably, and what is reserved in the file of leases.

So a turn is made durable once. From the commit until what it settled is removed here, both count, and if the process
dies in between, for good: that errs to the safe side. Whoever looks whether there is room holds the write lock of the
file of leases, adds up what is reserved, and reads the database after that: what has left the one is in the other.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from hashlib import sha256
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from cloister.sealing import fields
from cloister.stores.base import Account, Charge

T = TypeVar("T")

_RESERVE = "INSERT INTO reserved VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET amount = excluded.amount"
_HELD = "holder = ? AND period = ? AND lease = ?"
_TOTAL = "SELECT sum(amount) FROM reserved WHERE holder = ? AND period = ?"
_MINE = f"SELECT amount FROM reserved WHERE {_HELD}"
_THERE = f"SELECT 1 FROM reserved WHERE {_HELD}"
_SPENT = "SELECT spent FROM accounts WHERE tenant = ? AND user = ? AND period = ?"


class Accounts:
    """Keep what is reserved, over *leases*; the thread that writes looks it up over what *beside* gives."""

    def __init__(self, leases: sqlite3.Connection, beside: Callable[[], sqlite3.Connection]) -> None:
        self._leases = leases
        self._connect = beside
        self._beside: sqlite3.Connection | None = None
        self._settling: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()

    def close(self) -> None:
        if self._beside is not None:
            self._beside.close()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have the write lock of the file of leases; what is not committed inside is undone."""
        self._leases.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            if self._leases.in_transaction:
                self._leases.execute("ROLLBACK")

    def reserve(self, db: sqlite3.Connection, lease: bytes, charges: Sequence[Charge]) -> Account | None:
        """Reserve all of *charges*, or none, and then give the first account that would come beyond its limit.

        To be done `alone`. *db* reads the database.
        """
        keys = [_held(charge.account, lease) for charge in charges]
        reserved = _each(self._leases, _TOTAL, [key[:2] for key in keys])
        mine = _each(self._leases, _MINE, keys)
        spent = _each(db, _SPENT, [_columns(charge.account) for charge in charges])
        for charge, others, own, settled in zip(charges, reserved, mine, spent, strict=True):
            more = charge.amount - own
            if more > 0 and charge.limit is not None and settled + others + more > charge.limit:
                return charge.account
        rows = [(*key, charge.amount, charge.until) for key, charge in zip(keys, charges, strict=True)]
        self._leases.executemany(_RESERVE, rows)
        return None

    async def settled(
        self,
        write: Callable[[Sequence[Charge]], Coroutine[Any, Any, T]],
        lease: bytes,
        charges: Sequence[Charge],
        done: Callable[[], None],
    ) -> T:
        """Let *write* settle those of *charges* for which something is reserved; then do *done*, and remove what was.

        To the end, whoever is cancelled meanwhile, and one after another: what is reserved is settled once.
        """

        async def settle() -> T:
            async with self._settling.setdefault(lease, asyncio.Lock()):
                outcome = await write(_still(self._leases, lease, charges))
                with self.alone():
                    keys = [_held(charge.account, lease) for charge in charges]
                    self._leases.executemany(f"DELETE FROM reserved WHERE {_HELD}", keys)
                    done()
                    self._leases.execute("COMMIT")
                return outcome

        return await asyncio.shield(settle())

    def still(self, lease: bytes, charges: Sequence[Charge]) -> list[Charge]:
        """Say, in the thread that writes, for which of *charges* something is reserved: nothing after an erasure."""
        if self._beside is None:
            self._beside = self._connect()
        return _still(self._beside, lease, charges)

    def spent(self, db: sqlite3.Connection, account: Account) -> int:
        """Say what an account stands at."""
        (reserved,) = _each(self._leases, _TOTAL, [_held(account, b"")[:2]])
        (settled,) = _each(db, _SPENT, [_columns(account)])
        return reserved + settled

    def erase(self, tenant: str, user: str) -> None:
        """Remove what one user has reserved."""
        self._leases.execute("DELETE FROM reserved WHERE holder = ?", (_holder(tenant, user),))

    def sweep(self, now: int) -> None:
        """Remove what is reserved in accounts whose time is over."""
        self._leases.execute("DELETE FROM reserved WHERE until <= ?", (now,))


def settle(db: sqlite3.Connection, charges: Sequence[Charge]) -> None:
    """Count what *charges* say, in the transaction of their turn; in one step, as a turn's items are written in one."""
    if charges:
        rows = ", ".join("(?, ?, ?, ?, ?)" for _ in charges)
        values = [value for one in charges for value in (*_columns(one.account), one.amount, one.until)]
        db.execute(
            f"INSERT INTO accounts VALUES {rows} ON CONFLICT DO UPDATE SET spent = spent + excluded.spent",
            values,
        )


def _still(leases: sqlite3.Connection, lease: bytes, charges: Sequence[Charge]) -> list[Charge]:
    there = _each(leases, _THERE, [_held(charge.account, lease) for charge in charges])
    return [charge for charge, count in zip(charges, there, strict=True) if count]


def _each(db: sqlite3.Connection, select: str, keys: Sequence[tuple[Any, ...]]) -> list[int]:
    """Ask the same of several keys, in one step; what is not there is 0."""
    if not keys:
        return []
    selects = ", ".join([f"coalesce(({select}), 0)"] * len(keys))
    return list(db.execute(f"SELECT {selects}", [value for key in keys for value in key]).fetchone())


def _columns(account: Account) -> tuple[str, str, str]:
    return account.tenant or "", account.user or "", account.period


@lru_cache(1024)
def _holder(tenant: str, user: str) -> bytes:
    """Name whose an account is in the file of leases, which keeps no names."""
    return sha256(fields(tenant, user)).digest()[:16]


def _held(account: Account, lease: bytes) -> tuple[bytes, str, bytes]:
    tenant, user, period = _columns(account)
    return _holder(tenant, user), period, lease
