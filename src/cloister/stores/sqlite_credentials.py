"""Credentials in SQLite: one table, in which each is found by the digest of its secret."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from cloister.errors import IntegrityError
from cloister.stores.base import SealedCredential, check_new

_COLUMNS = "digest, kind, tenant, user, credential, created_at, expires_at, sealed"
_NAMED = "tenant = ? AND kind = ? AND credential = ?"
_TYPES = ((bytes,), (str,), (str,), (str,), (str,), (int,), (int, type(None)), (bytes,))
Key = tuple[str, str, str]
"""Tenant, kind and id of a credential."""


def key_of(tenant: str | None, kind: str, credential_id: str) -> Key:
    """Give the columns by which a credential is named."""
    return tenant or "", kind, credential_id


def add(db: sqlite3.Connection, credential: SealedCredential) -> bool:
    """Insert *credential*; say whether it was new. `SessionConflict` if its digest or its id is taken."""
    named = key_of(credential.tenant, credential.kind, credential.id)
    known = _select(db, f"digest = ? OR ({_NAMED})", credential.digest, *named)
    new = check_new(credential, known)
    if new:
        db.execute(f"INSERT INTO credentials ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", _row(credential))
    return new


def find(db: sqlite3.Connection, digest: bytes) -> SealedCredential | None:
    """Give the credential of *digest*."""
    return next(iter(_select(db, "digest = ?", digest)), None)


def listed(db: sqlite3.Connection, key: Key, limit: int) -> list[SealedCredential]:
    """Give those of one tenant and kind behind the id that *key* names."""
    return _select(db, "tenant = ? AND kind = ? AND credential > ? ORDER BY credential LIMIT ?", *key, limit)


def behind(db: sqlite3.Connection, digest: bytes, limit: int) -> list[SealedCredential]:
    """Give those of any tenant behind *digest*."""
    return _select(db, "digest > ? ORDER BY digest LIMIT ?", digest, limit)


def remove(db: sqlite3.Connection, key: Key) -> int:
    """Delete the credential that *key* names; give how many there were."""
    return db.execute(f"DELETE FROM credentials WHERE {_NAMED}", key).rowcount


def remove_all(db: sqlite3.Connection, tenant: str, user: str) -> int:
    """Delete those of one user; give how many there were."""
    return db.execute("DELETE FROM credentials WHERE tenant = ? AND user = ? AND user <> ''", (tenant, user)).rowcount


def sweep(db: sqlite3.Connection, now: int) -> int:
    """Delete those whose time is up; give how many there were."""
    return db.execute("DELETE FROM credentials WHERE expires_at <= ?", (now,)).rowcount


def reseal(db: sqlite3.Connection, old: SealedCredential, sealed: bytes) -> int:
    """Replace what is sealed of *old* if it is still there as it was; give how many were."""
    same = " AND ".join(f"{column} IS ?" for column in _COLUMNS.split(", "))
    return db.execute(f"UPDATE credentials SET sealed = ? WHERE {same}", (sealed, *_row(old))).rowcount


def _row(credential: SealedCredential) -> tuple[Any, ...]:
    return (
        credential.digest,
        credential.kind,
        credential.tenant or "",
        credential.user or "",
        credential.id,
        credential.created_at,
        credential.expires_at,
        credential.sealed,
    )


def _select(db: sqlite3.Connection, where: str, *values: object) -> list[SealedCredential]:
    rows = db.execute(f"SELECT {_COLUMNS} FROM credentials WHERE {where}", values).fetchall()
    return [_credential(row) for row in rows]


def _credential(row: Sequence[Any]) -> SealedCredential:
    if not all(map(isinstance, row, _TYPES)):
        raise IntegrityError("a credential's row in the store was changed; see the audit log")
    digest, kind, tenant, user, credential_id, created_at, expires_at, sealed = row
    return SealedCredential(digest, kind, tenant or None, user or None, credential_id, created_at, expires_at, sealed)
