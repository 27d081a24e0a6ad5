"""The SQLite file itself: its tables, its connections, its rows, and its errors in our words."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cloister.errors import CloisterError, ConfigurationError, IntegrityError, StoreError, StoreUnavailable
from cloister.model import Owner, SealedItem, SealedSession
from cloister.sealing import tag

_SCHEMA_VERSION = 4
_SCHEMA = """
CREATE TABLE sessions (
    tenant TEXT NOT NULL, user TEXT NOT NULL, session TEXT NOT NULL,
    version INTEGER NOT NULL, item_count INTEGER NOT NULL, token_count INTEGER NOT NULL,
    created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, expires_at INTEGER,
    turn BLOB NOT NULL, wrapped BLOB, head BLOB, carry BLOB, ended TEXT, ended_at INTEGER,
    PRIMARY KEY (tenant, user, session)
) WITHOUT ROWID;
CREATE INDEX sessions_by_id ON sessions (session);
CREATE INDEX sessions_by_expiry ON sessions (expires_at) WHERE ended IS NULL AND expires_at IS NOT NULL;
CREATE TABLE items (
    tenant TEXT NOT NULL, user TEXT NOT NULL, session TEXT NOT NULL, position INTEGER NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('system', 'user', 'assistant', 'tool')),
    token_count INTEGER NOT NULL, sealed BLOB NOT NULL,
    PRIMARY KEY (tenant, user, session, position)
) WITHOUT ROWID;
CREATE TABLE records (
    tenant TEXT NOT NULL, user TEXT NOT NULL, session TEXT NOT NULL, holder TEXT NOT NULL, key BLOB NOT NULL,
    sealed BLOB NOT NULL, expires_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, user, session, key)
) WITHOUT ROWID;
CREATE TABLE claims (
    number INTEGER PRIMARY KEY, tenant TEXT NOT NULL, user TEXT NOT NULL, session TEXT NOT NULL,
    UNIQUE (tenant, user, session)
);
CREATE TABLE fingerprints (
    scope TEXT NOT NULL, digest INTEGER NOT NULL, claim INTEGER NOT NULL,
    PRIMARY KEY (scope, digest, claim)
) WITHOUT ROWID;
CREATE INDEX fingerprints_by_claim ON fingerprints (claim);
CREATE TABLE accounts (
    tenant TEXT NOT NULL, user TEXT NOT NULL, period TEXT NOT NULL, spent INTEGER NOT NULL, until INTEGER NOT NULL,
    PRIMARY KEY (tenant, user, period)
) WITHOUT ROWID;
CREATE INDEX accounts_by_end ON accounts (until);
CREATE TABLE credentials (
    digest BLOB NOT NULL PRIMARY KEY, kind TEXT NOT NULL, tenant TEXT NOT NULL, user TEXT NOT NULL,
    credential TEXT NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER, sealed BLOB NOT NULL,
    UNIQUE (tenant, kind, credential)
) WITHOUT ROWID;
CREATE INDEX credentials_by_user ON credentials (tenant, user) WHERE user <> '';
CREATE INDEX credentials_by_expiry ON credentials (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE audit (
    writer TEXT NOT NULL, number INTEGER NOT NULL, at INTEGER NOT NULL, event TEXT NOT NULL, severity TEXT NOT NULL,
    owner TEXT NOT NULL, other TEXT NOT NULL, session TEXT NOT NULL, detail TEXT NOT NULL,
    previous BLOB NOT NULL, hash BLOB NOT NULL
);
CREATE TABLE audit_owners (
    tenant TEXT NOT NULL, user TEXT NOT NULL, audit_id TEXT NOT NULL, salt BLOB NOT NULL,
    PRIMARY KEY (tenant, user)
) WITHOUT ROWID;
"""
_LEASES = """
CREATE TABLE IF NOT EXISTS leases (
    held BLOB PRIMARY KEY, lease BLOB NOT NULL, until REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS reserved (
    holder BLOB NOT NULL, period TEXT NOT NULL, lease BLOB NOT NULL, amount INTEGER NOT NULL, until INTEGER NOT NULL,
    PRIMARY KEY (holder, period, lease)
) WITHOUT ROWID;
"""
SESSION = (
    "tenant, user, session, wrapped, head, version, item_count, token_count, created_at, updated_at, expires_at,"
    " turn, carry, ended"
)
ENTRY = "writer, number, at, event, severity, owner, other, session, detail, previous, hash"
MINE = "tenant = ? AND user = ? AND session = ?"
BUSY_SECONDS = 5.0
LEASE_SECONDS = 1.0  # on the event loop, where a lease is written in some microseconds


@contextmanager
def store_errors(url: str) -> Iterator[None]:
    """Turn what SQLite raises into ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise ours(error, url) from error


def ours(error: sqlite3.Error, url: str) -> CloisterError:
    """Say in our words what SQLite said."""
    if str(error).startswith("Could not decode to UTF-8"):  # by the driver, not by SQLite
        return IntegrityError("text in the store was changed: it is not UTF-8; see the audit log")
    name = getattr(error, "sqlite_errorname", "SQLITE_ERROR")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return StoreUnavailable(f"{url} is locked by another process; nothing was stored, so try again")
    if name.startswith("SQLITE_FULL"):
        return StoreUnavailable(f"the disk of {url} is full; nothing was stored. Free some space, then try again")
    if name.startswith(("SQLITE_READONLY", "SQLITE_PERM", "SQLITE_CANTOPEN", "SQLITE_IOERR")):
        mend = "check the disk, and the permissions of the file, of those beside it and of their folder"
        return StoreUnavailable(f"{url} cannot be read or written ({name}); {mend}")
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return StoreError(f"{url} is damaged or not a database ({name}); restore it from a backup")
    return StoreError(f"{url} answered with {name}")


def lenient(text: bytes) -> str:
    """Decode text that may have been damaged."""
    return text.decode(errors="replace")


def names(owner: Owner) -> tuple[str, str]:
    """Give the columns that name *owner*."""
    return owner.tenant or "", owner.user


def owner_of(tenant: str, user: str) -> Owner:
    """Give the owner that two columns name, or raise `IntegrityError`."""
    try:
        return Owner(tenant or None, user)
    except ValueError:
        raise IntegrityError("a row of the store names no owner that could be one; see `cloister doctor`") from None


_SESSION_TYPES = (
    (str,), (str,), (str,), (bytes, type(None)), (bytes, type(None)), (int,), (int,), (int,), (int,), (int,),
    (int, type(None)), (bytes,), (bytes, type(None)), (str, type(None)),
)  # fmt: skip


def session_of(row: tuple[Any, ...]) -> SealedSession:
    """Give the session that the columns `SESSION` describe, or raise `IntegrityError`."""
    if not all(map(isinstance, row, _SESSION_TYPES)):
        raise IntegrityError("a session's row in the store was changed; see the audit log")
    return SealedSession(owner_of(row[0], row[1]), *row[2:])


def tail_of(db: sqlite3.Connection, key: tuple[str, str, str], budget: int) -> tuple[list[SealedItem], bytes]:
    """Read the newest items up to the one that exceeds *budget*, and the tag of the one before."""
    sql = f"SELECT position, role, token_count, sealed FROM items WHERE {MINE} ORDER BY position DESC"
    rows = db.execute(sql, key)
    items: list[SealedItem] = []
    before = b""
    try:
        for position, role, tokens, sealed in rows:
            if budget < 0:
                before = tag(sealed)
                break
            items.append(SealedItem(position, role, tokens, sealed))
            budget -= tokens
    except TypeError:
        raise IntegrityError("an item's row in the store was changed; see the audit log") from None
    finally:
        rows.close()
    items.reverse()
    return items, before


def connect(path: Path, synchronous: str) -> sqlite3.Connection:
    """Open the database."""
    connection = sqlite3.connect(
        path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=64
    )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute("PRAGMA secure_delete = ON")
    return connection


def connect_leases(path: Path) -> sqlite3.Connection:
    """Open the file of leases, making it where it is missing."""
    only_for_us(path)
    try:
        leases = sqlite3.connect(path, timeout=LEASE_SECONDS, isolation_level=None, check_same_thread=False)
        leases.execute("PRAGMA journal_mode = WAL")
        leases.execute("PRAGMA synchronous = OFF")
        leases.executescript(_LEASES)
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorname", "") not in ("SQLITE_CORRUPT", "SQLITE_NOTADB"):
            raise
        raise StoreError(
            f"{path} is damaged, perhaps by a power cut. It holds leases and what turns have reserved of a budget, and "
            "nothing that was settled: stop what uses the store, delete that file, and start again"
        ) from error
    return leases


def migrate(db: sqlite3.Connection, url: str) -> None:
    """Make the tables in a new database; `ConfigurationError` for one of another version."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version == 0:
        db.execute("BEGIN IMMEDIATE")
        try:
            if db.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,):
                for statement in _SCHEMA.split(";\n"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
            db.execute("COMMIT")
        except BaseException:
            db.execute("ROLLBACK")
            raise
        (version,) = db.execute("PRAGMA user_version").fetchone()
    if version != _SCHEMA_VERSION:
        raise ConfigurationError(
            f"{url} is a database of version {version}, and this cloister reads version {_SCHEMA_VERSION}: "
            "name another file, or use the cloister that wrote it"
        )


def only_for_us(path: Path) -> None:
    """Create a missing file so that only its owner can read it.

    One that is there is not opened: closing it again would take from this process every lock that SQLite has on it, and
    then the next process that closes the database deletes the write-ahead log under this one.
    """
    try:
        os.close(os.open(os.path.realpath(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise StoreUnavailable(f"{path} cannot be opened: {error.strerror}") from None
