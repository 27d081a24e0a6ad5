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
from hashlib import sha256
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from cloister.sealing import fields
from cloister.stores.base import Account, Charge

T = TypeVar("T")

_SPEND = """
INSERT INTO accounts VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET spent = spent + excluded.spent
"""
_RESERVE = "INSERT INTO reserved VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET amount = excluded.amount"
_HELD = "holder = ? AND period = ? AND lease = ?"


class Accounts:
    """Reserve over *leases*, a connection of the event loop's; settle over one that *beside* gives, in a thread."""

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
        reserved = [self._reserved(charge.account, lease) for charge in charges]
        for charge, (total, mine) in zip(charges, reserved, strict=True):
            more = charge.amount - mine
            if more > 0 and charge.limit is not None and _settled(db, charge.account) + total + more > charge.limit:
                return charge.account
        rows = [(*_held(charge.account, lease), charge.amount, charge.until) for charge in charges]
        self._leases.executemany(_RESERVE, rows)
        return None

    def _reserved(self, account: Account, lease: bytes) -> tuple[int, int]:
        holder, period, _ = _held(account, lease)
        total, mine = self._leases.execute(
            "SELECT coalesce(sum(amount), 0), coalesce(sum(iif(lease = ?, amount, 0)), 0) FROM reserved"
            " WHERE holder = ? AND period = ?",
            (lease, holder, period),
        ).fetchone()
        return total, mine

    def settle(self, db: sqlite3.Connection, lease: bytes | None, charges: Sequence[Charge]) -> None:
        """Count what *charges* say, in the transaction of their turn, where something is reserved for them.

        Looked up in the thread that writes, so that after an erasure there is nothing to be found.
        """
        if lease is None or not charges:
            return
        if self._beside is None:
            self._beside = self._connect()
        for charge in charges:
            if self._beside.execute(f"SELECT 1 FROM reserved WHERE {_HELD}", _held(charge.account, lease)).fetchone():
                db.execute(_SPEND, (*_columns(charge.account), charge.amount, charge.until))

    async def settled(self, writing: Coroutine[Any, Any, T], lease: bytes, charges: Sequence[Charge]) -> T:
        """Let *writing* settle *charges*, and remove what was reserved for them.

        To the end, whoever is cancelled meanwhile, and one after another: what is reserved is settled once.
        """

        async def settle() -> T:
            async with self._settling.setdefault(lease, asyncio.Lock()):
                outcome = await writing
                keys = [_held(charge.account, lease) for charge in charges]
                self._leases.executemany(f"DELETE FROM reserved WHERE {_HELD}", keys)
                return outcome

        return await asyncio.shield(settle())

    def spent(self, db: sqlite3.Connection, account: Account) -> int:
        """Say what an account stands at."""
        total, _ = self._reserved(account, b"")
        return total + _settled(db, account)

    def erase(self, tenant: str, user: str) -> None:
        """Remove what one user has reserved."""
        self._leases.execute("DELETE FROM reserved WHERE holder = ?", (_holder(tenant, user),))

    def sweep(self, now: int) -> None:
        """Remove what is reserved in accounts whose time is over."""
        self._leases.execute("DELETE FROM reserved WHERE until <= ?", (now,))


def _columns(account: Account) -> tuple[str, str, str]:
    return account.tenant or "", account.user or "", account.period


def _holder(tenant: str, user: str) -> bytes:
    """Name whose an account is in the file of leases, which keeps no names."""
    return sha256(fields(tenant, user)).digest()[:16]


def _held(account: Account, lease: bytes) -> tuple[bytes, str, bytes]:
    tenant, user, period = _columns(account)
    return _holder(tenant, user), period, lease


def _settled(db: sqlite3.Connection, account: Account) -> int:
    sql = "SELECT spent FROM accounts WHERE tenant = ? AND user = ? AND period = ?"
    row = db.execute(sql, _columns(account)).fetchone()
    return 0 if row is None else int(row[0])
