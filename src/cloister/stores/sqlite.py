"""Sealed rows in one file, the embedded default: SQLite in WAL mode.

Reads happen at once on the event loop: they are bounded, and WAL readers wait for nobody. Leases lie in a file of their
own that is never synced, since they mean nothing after a crash. One thread writes, and commits everything that waits in
one transaction, so that many sessions share the cost of making it durable.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from cloister.audit import Chain, Entry, Event, Heads, event, new_audit_id
from cloister.errors import (
    CloisterError,
    ConfigurationError,
    IntegrityError,
    SessionConflict,
    StoreError,
    StoreUnavailable,
)
from cloister.model import Owner, SealedItem, SealedSession, from_micros
from cloister.sealing import tag
from cloister.stores.base import (
    LEASE,
    MOST_CLAIMS,
    Claims,
    Commit,
    Due,
    Fingerprint,
    Listing,
    Loaded,
    Page,
    Receipt,
    Record,
)

_SCHEMA_VERSION = 1
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
CREATE TABLE fingerprints (
    scope TEXT NOT NULL, digest BLOB NOT NULL, tenant TEXT NOT NULL, user TEXT NOT NULL, expires_at INTEGER,
    PRIMARY KEY (scope, digest, tenant, user)
) WITHOUT ROWID;
CREATE INDEX fingerprints_by_owner ON fingerprints (tenant, user);
CREATE TABLE audit (
    writer TEXT NOT NULL, number INTEGER NOT NULL, at INTEGER NOT NULL, event TEXT NOT NULL, severity TEXT NOT NULL,
    owner TEXT NOT NULL, other TEXT NOT NULL, session TEXT NOT NULL, detail TEXT NOT NULL,
    previous BLOB NOT NULL, hash BLOB NOT NULL
);
CREATE TABLE audit_owners (
    tenant TEXT NOT NULL, user TEXT NOT NULL, audit_id TEXT NOT NULL,
    PRIMARY KEY (tenant, user)
) WITHOUT ROWID;
"""
_LEASES = """
CREATE TABLE IF NOT EXISTS leases (
    tenant TEXT NOT NULL, user TEXT NOT NULL, session TEXT NOT NULL, lease BLOB NOT NULL, until REAL NOT NULL,
    PRIMARY KEY (tenant, user, session)
) WITHOUT ROWID;
"""
_SESSION = (
    "tenant, user, session, wrapped, head, version, item_count, token_count, created_at, updated_at, expires_at,"
    " turn, carry, ended"
)
_ENTRY = "writer, number, at, event, severity, owner, other, session, detail, previous, hash"
_MINE = "tenant = ? AND user = ? AND session = ?"
_BUSY_SECONDS = 5.0
_LEASE_SECONDS = 1.0  # on the event loop, where a lease is written in some microseconds
_MOST_AT_ONCE = 256
# A lease further ahead than any that was granted a moment ago comes from before a reboot, when the clock began anew.
_TAKE = f"""
INSERT INTO leases VALUES (?1, ?2, ?3, ?4, ?5 + {LEASE.total_seconds()})
ON CONFLICT DO UPDATE SET lease = excluded.lease, until = excluded.until
WHERE lease = excluded.lease OR until <= ?5 OR until > excluded.until + 60
"""

T = TypeVar("T")


@contextmanager
def store_errors(url: str) -> Iterator[None]:
    """Turn what SQLite raises into ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise _ours(error, url) from error


def _ours(error: sqlite3.Error, url: str) -> CloisterError:
    if str(error).startswith("Could not decode to UTF-8"):  # by the driver, not by SQLite
        return IntegrityError("text in the store was changed: it is not UTF-8; see the audit log")
    name = getattr(error, "sqlite_errorname", "SQLITE_ERROR")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return StoreUnavailable(f"{url} is locked by another process; nothing was stored, so try again")
    if name.startswith("SQLITE_FULL"):
        return StoreUnavailable(f"the disk of {url} is full; nothing was stored. Free some space, then try again")
    if name.startswith(("SQLITE_READONLY", "SQLITE_PERM", "SQLITE_CANTOPEN", "SQLITE_IOERR")):
        return StoreUnavailable(f"{url} cannot be read or written ({name}); check the disk and the file's permissions")
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return StoreError(f"{url} is damaged or not a database ({name}); restore it from a backup")
    return StoreError(f"{url} answered with {name}")


def _lenient(text: bytes) -> str:
    return text.decode(errors="replace")


def _names(owner: Owner) -> tuple[str, str]:
    return owner.tenant or "", owner.user


def _owner(tenant: str, user: str) -> Owner:
    try:
        return Owner(tenant or None, user)
    except ValueError:
        raise IntegrityError("a row of the store names no owner that could be one; see `cloister doctor`") from None


_SESSION_TYPES = (
    (str,), (str,), (str,), (bytes, type(None)), (bytes, type(None)), (int,), (int,), (int,), (int,), (int,),
    (int, type(None)), (bytes,), (bytes, type(None)), (str, type(None)),
)  # fmt: skip


def _session(row: tuple[Any, ...]) -> SealedSession:
    if not all(map(isinstance, row, _SESSION_TYPES)):
        raise IntegrityError("a session's row in the store was changed; see the audit log")
    return SealedSession(_owner(row[0], row[1]), *row[2:])


def _tail(db: sqlite3.Connection, key: tuple[str, str, str], budget: int) -> tuple[list[SealedItem], bytes]:
    """Read the newest items as far back as *budget* goes, and the tag of the one before."""
    sql = f"SELECT position, role, token_count, sealed FROM items WHERE {_MINE} ORDER BY position DESC"
    rows = db.execute(sql, key)
    items: list[SealedItem] = []
    before = b""
    try:
        for position, role, tokens, sealed in rows:
            budget -= tokens
            if budget < 0:
                before = tag(sealed)
                break
            items.append(SealedItem(position, role, tokens, sealed))
    except TypeError:
        raise IntegrityError("an item's row in the store was changed; see the audit log") from None
    finally:
        rows.close()
    items.reverse()
    return items, before


class _Job(NamedTuple):
    work: Callable[[_Writing], Any]
    loop: asyncio.AbstractEventLoop
    outcome: asyncio.Future[Any]


class SqliteStore:
    """Keep everything in the file at *path*, and leases in the one beside it."""

    volatile = False

    def __init__(self, path: str | os.PathLike[str], *, synchronous: str = "FULL") -> None:
        self.path = Path(path)
        self.url = f"sqlite:///{self.path}"
        self._synchronous = synchronous
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._writing: _Writing | None = None
        self._heads: Heads = {}
        self._granted: dict[tuple[str, str, str, bytes], float] = {}

    async def open(self) -> None:
        if not self.path.parent.is_dir():
            raise ConfigurationError(f"the folder of {self.url} does not exist; create it, or name another file")
        with store_errors(self.url):
            _only_for_us(self.path)
            self._reader = self._connect()
            self._migrate()
            self._leases = self._connect_leases()
            self._writing = _Writing(self._connect(), self.url)
            self._writing.truncate()  # a crash may have come between an erasure and the emptying of the log
        self._thread = threading.Thread(target=self._write, name="cloister-sqlite", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._jobs.put(None)
        await asyncio.to_thread(thread.join)
        self._reader.close()
        self._leases.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        connection.execute("PRAGMA secure_delete = ON")
        return connection

    def _connect_leases(self) -> sqlite3.Connection:
        path = self.path.with_name(self.path.name + ".leases")
        _only_for_us(path)
        try:
            leases = sqlite3.connect(path, timeout=_LEASE_SECONDS, isolation_level=None, check_same_thread=False)
            leases.execute("PRAGMA journal_mode = WAL")
            leases.execute("PRAGMA synchronous = OFF")
            leases.executescript(_LEASES)
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorname", "") not in ("SQLITE_CORRUPT", "SQLITE_NOTADB"):
                raise
            raise StoreError(
                f"{path} is damaged, perhaps by a power cut. It holds nothing that lasts: stop what uses the store, "
                "delete that file, and start again"
            ) from error
        return leases

    def _migrate(self) -> None:
        (version,) = self._reader.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._reader.execute("BEGIN IMMEDIATE")
            try:
                if self._reader.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,):
                    for statement in _SCHEMA.split(";\n"):
                        self._reader.execute(statement)
                    self._reader.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
                self._reader.execute("COMMIT")
            except BaseException:
                self._reader.execute("ROLLBACK")
                raise
            (version,) = self._reader.execute("PRAGMA user_version").fetchone()
        if version != _SCHEMA_VERSION:
            raise ConfigurationError(
                f"{self.url} is a database of version {version}, and this cloister reads version {_SCHEMA_VERSION}: "
                "name another file, or use the cloister that wrote it"
            )

    # --- reading, at once ---------------------------------------------------------------------------------------------

    @contextmanager
    def _snapshot(self) -> Iterator[sqlite3.Connection]:
        """Read one state of the store, whatever is committed meanwhile."""
        with store_errors(self.url):
            self._reader.execute("BEGIN")
            try:
                yield self._reader
            finally:
                self._reader.execute("COMMIT")

    async def load(
        self,
        owner: Owner,
        session_id: str,
        *,
        nonce: bytes,
        budget: int,
        lease: bytes | None = None,
        record: bytes | None = None,
    ) -> Loaded:
        key = (*_names(owner), session_id)
        with store_errors(self.url):
            if lease is not None and not self._take(key, lease):
                return Loaded(nonce, busy=True)
            try:
                loaded = self._load(key, nonce, budget, record)
            except BaseException:
                self._let_go(key, lease)
                raise
            if loaded.session is None or loaded.session.ended:
                self._let_go(key, lease)
            return loaded

    def _load(self, key: tuple[str, str, str], nonce: bytes, budget: int, record: bytes | None) -> Loaded:
        with self._snapshot() as db:
            session = self._find(db, key)
            kept = self._record(db, key, record)
            if session is None or session.ended:
                return Loaded(nonce, session, record=kept)
            items, before = _tail(db, key, budget)
            return Loaded(nonce, session, items, before, kept)

    def _take(self, key: tuple[str, str, str], lease: bytes) -> bool:
        now = time.monotonic()
        taken = self._leases.execute(_TAKE, (*key, lease, now)).rowcount == 1
        if taken:
            self._granted[*key, lease] = now + LEASE.total_seconds()
        return taken

    def _let_go(self, key: tuple[str, str, str], lease: bytes | None) -> None:
        if lease is not None and self._granted.pop((*key, lease), None) is not None:
            self._leases.execute(f"DELETE FROM leases WHERE {_MINE} AND lease = ?", (*key, lease))

    @staticmethod
    def _find(db: sqlite3.Connection, key: tuple[str, str, str]) -> SealedSession | None:
        row = db.execute(f"SELECT {_SESSION} FROM sessions WHERE {_MINE}", key).fetchone()
        return None if row is None else _session(row)

    @staticmethod
    def _record(db: sqlite3.Connection, key: tuple[str, str, str], record: bytes | None) -> Record | None:
        if record is None:
            return None
        sql = f"SELECT session, holder, key, sealed, expires_at FROM records WHERE {_MINE} AND key = ?"
        row = db.execute(sql, (*key, record)).fetchone()
        return None if row is None else Record(*row)

    async def items(self, owner: Owner, session_id: str, *, nonce: bytes, first: int, limit: int) -> Page:
        key = (*_names(owner), session_id)
        with self._snapshot() as db:
            session = self._find(db, key)
            rows = db.execute(
                f"SELECT position, role, token_count, sealed FROM items WHERE {_MINE} AND position >= ?"
                " ORDER BY position LIMIT ?",
                (*key, max(first - 1, 0), limit + (first > 0)),
            ).fetchall()
        items = [SealedItem(*row) for row in rows]
        before = tag(items.pop(0).sealed) if first > 0 and items else b""
        return Page(nonce, session, items, before)

    async def sessions(self, owner: Owner, *, nonce: bytes, limit: int, before: tuple[int, str] | None) -> Listing:
        at, known = before or (1 << 62, "")
        with self._snapshot() as db:
            rows = db.execute(
                f"SELECT {_SESSION} FROM sessions WHERE tenant = ? AND user = ? AND ended IS NULL"
                " AND (created_at, session) < (?, ?) ORDER BY created_at DESC, session DESC LIMIT ?",
                (*_names(owner), at, known, limit),
            ).fetchall()
        return Listing(nonce, [_session(row) for row in rows])

    async def claims(self, scope: str, digests: Sequence[bytes], *, now: int, nonce: bytes) -> Claims:
        found: dict[bytes, tuple[Owner, ...]] = {}
        with self._snapshot() as db:
            for digest in digests:
                rows = db.execute(
                    "SELECT tenant, user FROM fingerprints WHERE scope = ? AND digest = ?"
                    " AND (expires_at IS NULL OR expires_at > ?)",
                    (scope, digest, now),
                ).fetchall()
                if rows:
                    found[digest] = () if ("", "") in rows else tuple(_owner(*row) for row in rows)
        return Claims(nonce, found)

    async def expired(self, *, now: int, limit: int) -> Sequence[Due]:
        with self._snapshot() as db:
            rows = db.execute(
                "SELECT tenant, user, session, version FROM sessions"
                " WHERE ended IS NULL AND expires_at IS NOT NULL AND expires_at <= ? ORDER BY expires_at LIMIT ?",
                (now, limit),
            ).fetchall()
        return [Due(_owner(tenant, user), session, version) for tenant, user, session, version in rows]

    async def owner_of(self, session_id: str) -> Owner | None:
        with self._snapshot() as db:
            row = db.execute("SELECT tenant, user FROM sessions WHERE session = ?", (session_id,)).fetchone()
        return None if row is None else _owner(*row)

    async def tenanted(self) -> bool | None:
        with self._snapshot() as db:
            (last,) = db.execute("SELECT max(tenant) FROM sessions").fetchone()
        return None if last is None else last != ""

    async def all(self, *, after: tuple[str, str, str] | None, limit: int) -> Sequence[SealedSession]:
        with self._snapshot() as db:
            rows = db.execute(
                f"SELECT {_SESSION} FROM sessions WHERE (tenant, user, session) > (?, ?, ?)"
                " ORDER BY tenant, user, session LIMIT ?",
                (*(after or ("", "", "")), limit),
            ).fetchall()
        # As they lie: one that was changed is found so when it is opened, and does not keep the others from the caller.
        return [SealedSession(_owner(row[0], row[1]), *row[2:]) for row in rows]

    async def audit(self) -> AsyncIterator[Entry]:
        last = -(1 << 63)
        while rows := self._audit(f"SELECT rowid, {_ENTRY} FROM audit WHERE rowid > ? ORDER BY rowid LIMIT 1000", last):
            for _, *columns in rows:
                yield Entry(*columns)
            last = rows[-1][0]

    async def audit_tail(self, limit: int) -> Sequence[Entry]:
        rows = self._audit(f"SELECT {_ENTRY} FROM audit ORDER BY rowid DESC LIMIT ?", limit)
        return [Entry(*row) for row in reversed(rows)]

    def _audit(self, sql: str, bound: int) -> list[tuple[Any, ...]]:
        """Read audit rows; text that was damaged arrives as replacement characters, for verification to find."""
        with self._snapshot() as db:
            db.text_factory = _lenient
            try:
                return db.execute(sql, (bound,)).fetchall()
            finally:
                db.text_factory = str

    async def audit_owners(self) -> dict[str, Owner]:
        with self._snapshot() as db:
            rows = db.execute("SELECT audit_id, tenant, user FROM audit_owners").fetchall()
        return {audit_id: _owner(tenant, user) for audit_id, tenant, user in rows}

    def heads(self) -> Heads:
        return dict(self._heads)

    async def distrust(self) -> None:
        with store_errors(self.url):
            self._reader.close()
            self._reader = self._connect()

    async def renew(self, owner: Owner, session_id: str, lease: bytes, *, nonce: bytes) -> Receipt:
        now = time.monotonic()
        with store_errors(self.url):
            changed = self._leases.execute(
                f"UPDATE leases SET until = ? WHERE {_MINE} AND lease = ? AND until > ?",
                (now + LEASE.total_seconds(), *_names(owner), session_id, lease, now),
            ).rowcount
        if not changed:
            raise SessionConflict("the lease on the session was lost; nothing was stored, so send it again")
        self._granted[*_names(owner), session_id, lease] = now + LEASE.total_seconds()
        return Receipt(nonce)

    async def release(self, owner: Owner, session_id: str, lease: bytes, *, nonce: bytes) -> Receipt:
        with store_errors(self.url):
            self._let_go((*_names(owner), session_id), lease)
        return Receipt(nonce)

    def _held_by_another(self, key: tuple[str, str, str], lease: bytes | None) -> bool:
        row = self._leases.execute(f"SELECT lease, until FROM leases WHERE {_MINE}", key).fetchone()
        now = time.monotonic()
        return row is not None and row[0] != lease and now < row[1] <= now + LEASE.total_seconds()

    # --- writing, in the thread ---------------------------------------------------------------------------------------

    async def create(
        self,
        session: SealedSession,
        items: Sequence[SealedItem] = (),
        *,
        nonce: bytes,
        entries: Sequence[Event] = (),
        fingerprints: Sequence[Fingerprint] = (),
        record: Record | None = None,
        instead_of: str | None = None,
    ) -> Receipt:
        key = (*_names(session.owner), session.id)

        def work(db: _Writing) -> Receipt:
            taken = db.execute(f"SELECT turn FROM sessions WHERE {_MINE}", key).fetchone()
            if taken == (session.turn,):
                return Receipt(nonce, repeated=True)
            if taken:
                raise SessionConflict("a session with this id exists already; nothing was stored")
            if instead_of is not None:
                before = (*_names(session.owner), instead_of)
                if db.execute(f"SELECT 1 FROM sessions WHERE {_MINE}", before).fetchone() is None:
                    raise SessionConflict("the session was erased meanwhile; nothing was stored")
            db.insert_session(session)
            db.insert_items(key, items)
            db.keep(session.owner, record)
            db.claim(fingerprints)
            db.put(entries)
            return Receipt(nonce)

        return await self._written(work)

    async def commit(self, commit: Commit, *, nonce: bytes) -> Receipt:
        session = commit.session
        key = (*_names(session.owner), session.id)

        def work(db: _Writing) -> Receipt:
            state = db.execute(f"SELECT version, turn FROM sessions WHERE {_MINE} AND ended IS NULL", key).fetchone()
            if state is None:
                raise SessionConflict("the session was ended meanwhile; nothing was stored")
            if state[1] == session.turn:
                return Receipt(nonce, repeated=True)
            if state[0] != commit.version:
                raise SessionConflict("the session changed meanwhile; nothing was stored, so send it again")
            db.execute(
                "UPDATE sessions SET version = ?, item_count = ?, token_count = ?, updated_at = ?, expires_at = ?,"
                f" turn = ?, head = ? WHERE {_MINE}",
                (
                    session.version,
                    session.count,
                    session.tokens,
                    session.updated_at,
                    session.expires_at,
                    session.turn,
                    session.head,
                    *key,
                ),
            )
            db.insert_items(key, commit.items)
            db.keep(session.owner, commit.record)
            db.claim(commit.fingerprints)
            db.put(commit.entries)
            return Receipt(nonce)

        with store_errors(self.url):
            # Until it ends nobody else can have taken it, so the file need not be asked.
            held = self._granted.get((*key, commit.lease), 0.0) > time.monotonic()
            if not held and not await self._repeated(key, session.turn):
                raise SessionConflict("the lease on the session was lost; nothing was stored, so send it again")
        receipt = await self._written(work)
        with store_errors(self.url):
            self._let_go(key, commit.lease)
        return receipt

    async def _repeated(self, key: tuple[str, str, str], turn: bytes) -> bool:
        with self._snapshot() as db:
            session = self._find(db, key)
        return session is not None and session.turn == turn

    async def end(
        self,
        owner: Owner,
        session_id: str,
        *,
        nonce: bytes,
        ended: str,
        now: int,
        version: int | None = None,
        lease: bytes | None = None,
        entries: Sequence[Event] = (),
    ) -> Receipt:
        key = (*_names(owner), session_id)

        def work(db: _Writing) -> Receipt:
            row = db.execute(f"SELECT version, ended FROM sessions WHERE {_MINE}", key).fetchone()
            if row is None or row[1] in (ended, "ended") or (version is not None and row[0] != version):
                return Receipt(nonce)
            db.execute(
                "UPDATE sessions SET wrapped = NULL, head = NULL, turn = x'', item_count = 0, token_count = 0,"
                " carry = iif(?1 = 'expired', carry, NULL), ended = ?1, ended_at = ?2"
                " WHERE tenant = ?3 AND user = ?4 AND session = ?5",
                (ended, now, *key),
            )
            db.execute(f"DELETE FROM items WHERE {_MINE}", key)
            db.put(entries)
            db.destroyed = True
            return Receipt(nonce, count=1)

        with store_errors(self.url):
            if version is not None and self._held_by_another(key, lease):
                return Receipt(nonce)
        return await self._written(work)

    async def erase(self, owner: Owner, *, nonce: bytes, entries: Sequence[Event] = ()) -> Receipt:
        def work(db: _Writing) -> Receipt:
            db.put(entries)
            count = db.execute("DELETE FROM sessions WHERE tenant = ? AND user = ?", _names(owner)).rowcount
            for table in ("items", "records", "fingerprints", "audit_owners"):
                db.execute(f"DELETE FROM {table} WHERE tenant = ? AND user = ?", _names(owner))
            db.destroyed = True
            return Receipt(nonce, count=count)

        return await self._written(work)

    async def record(self, entries: Sequence[Event], *, nonce: bytes) -> Receipt:
        def work(db: _Writing) -> Receipt:
            db.put(entries)
            return Receipt(nonce)

        return await self._written(work)

    async def sweep(self, *, now: int, tombstones_before: int, nonce: bytes) -> Receipt:
        def work(db: _Writing) -> Receipt:
            gone = db.execute(
                "DELETE FROM sessions WHERE ended IS NOT NULL AND ended_at < ?", (tombstones_before,)
            ).rowcount
            rest = db.execute("DELETE FROM records WHERE expires_at <= ?", (now,)).rowcount
            rest += db.execute("DELETE FROM fingerprints WHERE expires_at <= ?", (now,)).rowcount
            db.destroyed = db.destroyed or bool(gone or rest)
            return Receipt(nonce, count=gone)

        return await self._written(work)

    async def rewrap(self, old: SealedSession, wrapped: bytes | None, carry: bytes | None, *, nonce: bytes) -> Receipt:
        def work(db: _Writing) -> Receipt:
            changed = db.execute(
                f"UPDATE sessions SET wrapped = ?, carry = ? WHERE {_MINE} AND wrapped IS ? AND carry IS ?",
                (wrapped, carry, *_names(old.owner), old.id, old.wrapped, old.carry),
            ).rowcount
            return Receipt(nonce, count=changed)

        return await self._written(work)

    async def _written(self, work: Callable[[_Writing], T]) -> T:
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[T] = loop.create_future()
        if self._thread is None:
            raise StoreUnavailable(f"{self.url} is closed")
        self._jobs.put(_Job(work, loop, outcome))
        return await outcome

    def _write(self) -> None:
        """Carry out jobs until told to stop: all that wait, in one transaction."""
        stopping = False
        while not stopping:
            jobs = [self._jobs.get()]
            while len(jobs) < _MOST_AT_ONCE and not self._jobs.empty():
                jobs.append(self._jobs.get())
            stopping = None in jobs
            wanted = [job for job in jobs if job is not None]
            if wanted:
                _tell(wanted, self._write_all(wanted))
        if self._writing is not None:
            self._writing.db.close()

    def _write_all(self, jobs: Sequence[_Job]) -> list[Any]:
        """Give the outcome of each job, an exception where it failed."""
        try:
            if self._writing is None:
                self._writing = _Writing(self._connect(), self.url, after_fault=True)
            outcomes = self._writing.transaction([job.work for job in jobs])
            chain = self._writing.chain
            self._heads[chain.writer] = chain.number, chain.last.hex()
            return outcomes
        except sqlite3.Error as error:
            self._abandon()
            return [_ours(error, self.url)] * len(jobs)
        except Exception as error:  # noqa: BLE001 - a fault of ours: the callers must hear of it, and the thread must live
            self._abandon()
            return [error] * len(jobs)

    def _abandon(self) -> None:
        """Give up a connection whose last outcome is unknown; its successor begins a chain of its own."""
        if self._writing is not None:
            self._writing.db.close()
            self._writing = None


def _tell(jobs: Sequence[_Job], outcomes: Sequence[Any]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    for job, outcome in zip(jobs, outcomes, strict=True):
        by_loop.setdefault(job.loop, []).append((job.outcome, outcome))
    for loop, told in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_resolve, told)


def _resolve(told: Sequence[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, outcome in told:
        if future.done():  # whoever waited was cancelled
            continue
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


class _Writing:
    """The one connection that writes, and the audit chain that belongs to it."""

    def __init__(self, db: sqlite3.Connection, url: str, *, after_fault: bool = False) -> None:
        self.db = db
        self.execute = db.execute
        self.chain = Chain.new()
        self.destroyed = False
        self._url = url
        self._after_fault = after_fault

    def transaction(self, works: Sequence[Callable[[_Writing], T]]) -> list[T | BaseException]:
        """Do *works* in one transaction; one that raises leaves nothing, and the others stand."""
        began = self.chain
        self.execute("BEGIN IMMEDIATE")
        try:
            if self._after_fault:
                self.put([event("writer.replaced", from_micros(time.time_ns() // 1000))])
            outcomes = [self._alone(work) for work in works]
            self.execute("COMMIT")
        except BaseException:
            self.chain = began
            raise
        self._after_fault = False
        if self.destroyed:
            self.truncate()
        return outcomes

    def _alone(self, work: Callable[[_Writing], T]) -> T | BaseException:
        before = self.chain
        self.execute("SAVEPOINT job")
        try:
            outcome: T | BaseException = work(self)
        except CloisterError as error:
            outcome = error
        except sqlite3.IntegrityError as error:  # what it stores contradicts what is there; the others do not mind
            outcome = _ours(error, self._url)
        if isinstance(outcome, CloisterError):
            self.chain = before
            self.execute("ROLLBACK TO job")
        self.execute("RELEASE job")
        return outcome

    def truncate(self) -> None:
        """Copy the write-ahead log into the file and empty it, so that what was destroyed is in neither."""
        self.execute("PRAGMA busy_timeout = 0")
        busy, *_ = self.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self.execute(f"PRAGMA busy_timeout = {_BUSY_SECONDS * 1e3:.0f}")
        self.destroyed = bool(busy)  # somebody is reading, whom nobody waits for: once more after the next commit

    def insert_session(self, session: SealedSession) -> None:
        self.execute(
            f"INSERT INTO sessions ({_SESSION}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *_names(session.owner),
                session.id,
                session.wrapped,
                session.head,
                session.version,
                session.count,
                session.tokens,
                session.created_at,
                session.updated_at,
                session.expires_at,
                session.turn,
                session.carry,
                session.ended,
            ),
        )

    def insert_items(self, key: tuple[str, str, str], items: Sequence[SealedItem]) -> None:
        self.db.executemany(
            "INSERT INTO items VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(*key, item.position, item.role, item.tokens, item.sealed) for item in items],
        )

    def keep(self, owner: Owner, record: Record | None) -> None:
        if record is not None:
            values = (*_names(owner), record.session, record.holder, record.key, record.sealed, record.expires_at)
            self.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?, ?)", values)

    def claim(self, fingerprints: Sequence[Fingerprint]) -> None:
        for fingerprint in fingerprints:
            whose = ("", "") if fingerprint.common else _names(fingerprint.owner)
            key = (fingerprint.scope, fingerprint.digest)
            self.execute(
                "INSERT OR REPLACE INTO fingerprints VALUES (?, ?, ?, ?, ?)", (*key, *whose, fingerprint.expires_at)
            )
            (owners,) = self.execute("SELECT count(*) FROM fingerprints WHERE scope = ? AND digest = ?", key).fetchone()
            if owners > MOST_CLAIMS:
                self.execute(
                    "INSERT OR IGNORE INTO fingerprints VALUES (?, ?, '', '', ?)", (*key, fingerprint.expires_at)
                )

    def put(self, events: Sequence[Event]) -> None:
        for noted in events:
            self.chain, entry = self.chain.extend(noted, self._audit_id(noted.owner), self._audit_id(noted.other))
            self.execute(
                "INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    entry.writer,
                    entry.number,
                    entry.at,
                    entry.event,
                    entry.severity,
                    entry.owner,
                    entry.other,
                    entry.session,
                    entry.detail,
                    entry.previous,
                    entry.hash,
                ),
            )

    def _audit_id(self, owner: Owner | None) -> str:
        if owner is None:
            return ""
        names = _names(owner)
        row = self.execute("SELECT audit_id FROM audit_owners WHERE tenant = ? AND user = ?", names).fetchone()
        if row is None:
            row = (new_audit_id(),)
            self.execute("INSERT INTO audit_owners VALUES (?, ?, ?)", (*names, *row))
        return str(row[0])


def _only_for_us(path: Path) -> None:
    """Create a missing file so that only its owner can read it."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise StoreUnavailable(f"{path} cannot be opened: {error.strerror}") from None
