"""Sealed rows in one file, the embedded default: SQLite in WAL mode.

Reads happen at once on the event loop: they are bounded, and WAL readers wait for nobody. Leases, and what turns have
reserved under them, lie in a file of their own that is never synced. One thread writes, and commits everything that
waits in one transaction, so that many sessions share the cost of making it durable.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from cloister.audit import Entry, Event, Heads, audit_id
from cloister.errors import ConfigurationError, IntegrityError, SessionConflict
from cloister.model import Owner, SealedItem, SealedSession
from cloister.sealing import fields, tag
from cloister.stores import sqlite_credentials as credentials
from cloister.stores.base import (
    LEASE,
    Account,
    Batch,
    Charge,
    Claims,
    Commit,
    CredentialBatch,
    CredentialKind,
    Due,
    Enrolled,
    Fingerprint,
    Found,
    Listing,
    Loaded,
    Off,
    Page,
    Receipt,
    Record,
    SealedCredential,
    Spent,
    Trail,
    check_charges,
    options_of,
    position,
    side_by_side,
)
from cloister.stores.sqlite_accounts import Accounts, settle
from cloister.stores.sqlite_file import (
    ENTRY,
    MINE,
    SESSION,
    connect,
    connect_leases,
    lenient,
    migrate,
    names,
    only_for_us,
    owner_of,
    session_of,
    store_errors,
    tail_of,
)
from cloister.stores.sqlite_prints import Prints
from cloister.stores.sqlite_writer import Writer, Writing

# A lease further ahead than any that was granted a moment ago comes from before a reboot, when the clock began anew.
_TAKE = f"""
INSERT INTO leases VALUES (?1, ?2, ?3 + {LEASE.total_seconds()})
ON CONFLICT DO UPDATE SET lease = excluded.lease, until = excluded.until
WHERE lease = excluded.lease OR until <= ?3 OR until > excluded.until + 60
"""

_BEFORE_ALL = -(1 << 63)
_AT_ONCE = 5_000
"""How many entries are looked at in one transaction of those that drop old ones."""


def _whose(tenant: object, user: object) -> Owner:
    """Name whom a row belongs to, for work on all rows, of which one that was changed must not stop the others."""
    with suppress(IntegrityError):
        if isinstance(tenant, str) and isinstance(user, str):
            return owner_of(tenant, user)
    return Owner(None, "?")


def _rows_of_log(db: sqlite3.Connection, sql: str, *args: int) -> list[tuple[Any, ...]]:
    """Read rows of the log; text that was damaged arrives with marks in it, for verification to find."""
    try:
        return db.execute(sql, args).fetchall()
    except sqlite3.OperationalError:  # by the driver: it is not UTF-8
        db.text_factory = lenient
        try:
            return db.execute(sql, args).fetchall()
        finally:
            db.text_factory = str


def _trail(rows: Sequence[tuple[Any, ...]], after: bytes) -> Trail:
    found = [Entry(*columns) for _, *columns in rows]
    return Trail(found, msgspec.msgpack.encode((rows[-1][0], found[-1].hash)) if found else after)


def _tenanted(db: sqlite3.Connection | Writing) -> bool | None:
    (last,) = db.execute("SELECT max(tenant) FROM sessions").fetchone()
    return None if last is None else last != ""


def _held(key: tuple[str, str, str]) -> bytes:
    """Name a session in the file of leases, which erasure does not reach."""
    return sha256(fields(*key)).digest()[:16]


def from_url(url: str) -> SqliteStore:
    """Give the store that ``sqlite:///file`` names; its option is ``synchronous``, ``full`` or ``normal``."""
    options = options_of(url, {"synchronous": ("full", "normal")})
    parts = urlsplit(url)
    if parts.netloc or len(parts.path) < 2:
        raise ConfigurationError(
            "name the file: sqlite:///chats.db in this folder, sqlite:////var/lib/chats.db elsewhere"
        )
    return SqliteStore(unquote(parts.path[1:]), synchronous=options.get("synchronous", "full").upper())


def _refused(db: Writing, key: tuple[str, str, str], session: SealedSession, nonce: bytes) -> Receipt:
    """Say why a commit changed nothing: it had been stored before, or it cannot be."""
    state = db.execute(f"SELECT turn FROM sessions WHERE {MINE} AND ended IS NULL", key).fetchone()
    if state is None:
        raise SessionConflict("the session was ended meanwhile; nothing was stored")
    if state == (session.turn,):
        return Receipt(nonce, repeated=True)
    raise SessionConflict("the session changed meanwhile; nothing was stored, so send it again")


def _gone(db: Writing, count: int, nonce: bytes, entries: Sequence[Event] = ()) -> Receipt:
    """Say how many rows are gone, for good, and put *entries* on record if any are."""
    if count:
        db.put(entries)
        db.destroyed = True
    return Receipt(nonce, count=count)


class SqliteStore:
    """Keep everything in the file at *path*, and leases in the one beside it."""

    volatile = False

    def __init__(self, path: str | os.PathLike[str], *, synchronous: str = "FULL") -> None:
        self.path = Path(path)
        self.url = f"sqlite:///{self.path}"
        self._synchronous = synchronous
        weaker = Off("durability", "synchronous=normal", "a power cut can take back the last turns")
        self.off = (weaker,) if synchronous == "NORMAL" else ()
        self._prints = Prints()
        self._granted: dict[tuple[str, str, str, bytes], float] = {}

    async def open(self) -> None:
        if not self.path.parent.is_dir():
            raise ConfigurationError(f"the folder of {self.url} does not exist; create it, or name another file")
        with store_errors(self.url):
            only_for_us(self.path)
            self._reader = self._connect()
            migrate(self._reader, self.url)
            self._leases = self._connect_leases()
            self._leases.execute("DELETE FROM leases WHERE until <= ?", (time.monotonic(),))
            self._accounts = Accounts(self._leases, self._connect_leases)
            self._writer = Writer(self._connect, self.url)

    async def close(self) -> None:
        await self._writer.close()
        self._accounts.close()
        self._reader.close()
        self._leases.close()

    def _connect(self) -> sqlite3.Connection:
        return connect(self.path, self._synchronous)

    def _connect_leases(self) -> sqlite3.Connection:
        return connect_leases(self.path.with_name(self.path.name + ".leases"))

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
        charges: Sequence[Charge] = (),
    ) -> Loaded:
        check_charges(owner, lease, charges)
        key = (*names(owner), session_id)
        with store_errors(self.url):
            if lease is not None and charges:
                return self._load_charged(key, nonce, budget, lease, record, charges)
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

    def _load_charged(
        self,
        key: tuple[str, str, str],
        nonce: bytes,
        budget: int,
        lease: bytes,
        record: bytes | None,
        charges: Sequence[Charge],
    ) -> Loaded:
        """Take the lease and reserve *charges*, at once and before anybody else does, or neither."""
        now = time.monotonic()
        with self._accounts.alone():
            if self._leases.execute(_TAKE, (_held(key), lease, now)).rowcount != 1:
                return Loaded(nonce, busy=True)
            loaded = self._load(key, nonce, budget, record)
            if loaded.session is None or loaded.session.ended:
                return loaded
            if loaded.record is None and (over := self._accounts.reserve(self._reader, lease, charges)) is not None:
                return Loaded(nonce, over=over)
            self._leases.execute("COMMIT")
        self._granted[*key, lease] = now + LEASE.total_seconds()
        return loaded

    def _load(self, key: tuple[str, str, str], nonce: bytes, budget: int, record: bytes | None) -> Loaded:
        with self._snapshot() as db:
            session = self._find(db, key)
            kept = self._record(db, key, record)
            if session is None or session.ended:
                return Loaded(nonce, session, record=kept)
            items, before = tail_of(db, key, budget)
            return Loaded(nonce, session, items, before, kept)

    def _take(self, key: tuple[str, str, str], lease: bytes) -> bool:
        now = time.monotonic()
        taken = self._leases.execute(_TAKE, (_held(key), lease, now)).rowcount == 1
        if taken:
            self._granted[*key, lease] = now + LEASE.total_seconds()
        return taken

    def _let_go(self, key: tuple[str, str, str], lease: bytes | None) -> None:
        if lease is not None and self._granted.pop((*key, lease), None) is not None:
            self._leases.execute("DELETE FROM leases WHERE held = ? AND lease = ?", (_held(key), lease))

    @staticmethod
    def _find(db: sqlite3.Connection, key: tuple[str, str, str]) -> SealedSession | None:
        row = db.execute(f"SELECT {SESSION} FROM sessions WHERE {MINE}", key).fetchone()
        return None if row is None else session_of(row)

    @staticmethod
    def _record(db: sqlite3.Connection, key: tuple[str, str, str], record: bytes | None) -> Record | None:
        if record is None:
            return None
        sql = f"SELECT session, holder, key, sealed, expires_at FROM records WHERE {MINE} AND key = ?"
        row = db.execute(sql, (*key, record)).fetchone()
        return None if row is None else Record(*row)

    async def items(self, owner: Owner, session_id: str, *, nonce: bytes, first: int, limit: int) -> Page:
        key = (*names(owner), session_id)
        with self._snapshot() as db:
            session = self._find(db, key)
            rows = db.execute(
                f"SELECT position, role, token_count, sealed FROM items WHERE {MINE} AND position >= ?"
                " ORDER BY position LIMIT ?",
                (*key, max(first - 1, 0), limit + (first > 0)),
            ).fetchall()
        items = [SealedItem(*row) for row in rows]
        if not all(type(item.sealed) is bytes for item in items):
            raise IntegrityError("an item's row in the store was changed; see the audit log")
        before = tag(items.pop(0).sealed) if first > 0 and items else b""
        return Page(nonce, session, items, before)

    async def sessions(self, owner: Owner, *, nonce: bytes, limit: int, before: tuple[int, str] | None) -> Listing:
        at, known = before or (1 << 62, "")
        with self._snapshot() as db:
            rows = db.execute(
                f"SELECT {SESSION} FROM sessions WHERE tenant = ? AND user = ? AND ended IS NULL"
                " AND (created_at, session) < (?, ?) ORDER BY created_at DESC, session DESC LIMIT ?",
                (*names(owner), at, known, limit),
            ).fetchall()
        return Listing(nonce, [session_of(row) for row in rows])

    async def claims(self, scope: str, digests: Sequence[bytes], *, now: int, nonce: bytes) -> Claims:
        with self._snapshot() as db:
            return Claims(nonce, self._prints.claims(db, scope, digests, now), self._prints.size(db))

    async def expired(self, *, now: int, limit: int, skip: int) -> Sequence[Due]:
        with self._snapshot() as db:
            rows = db.execute(
                "SELECT tenant, user, session, version FROM sessions WHERE ended IS NULL AND expires_at IS NOT NULL"
                " AND expires_at <= ? ORDER BY expires_at LIMIT ? OFFSET ?",
                (now, limit, skip),
            ).fetchall()
        # A row whose names were changed is nobody's: it fails to end, and the caller goes on past it.
        return [Due(_whose(tenant, user), str(session), version) for tenant, user, session, version in rows]

    async def owner_of(self, session_id: str) -> Owner | None:
        with self._snapshot() as db:
            row = db.execute("SELECT tenant, user FROM sessions WHERE session = ?", (session_id,)).fetchone()
        return None if row is None else owner_of(*row)

    async def tenanted(self) -> bool | None:
        with self._snapshot() as db:
            return _tenanted(db)

    async def all(self, *, after: bytes, limit: int) -> Batch:
        cursor = msgspec.msgpack.decode(after, type=tuple[str, str, str]) if after else ("", "", "")
        with self._snapshot() as db:
            rows = db.execute(
                f"SELECT {SESSION} FROM sessions WHERE (tenant, user, session) > (?, ?, ?)"
                " ORDER BY tenant, user, session LIMIT ?",
                (*cursor, limit),
            ).fetchall()
        # As they lie: one that was changed is found so when it is opened, and does not keep the others from the caller.
        found = [SealedSession(_whose(row[0], row[1]), *row[2:]) for row in rows]
        return Batch(found, msgspec.msgpack.encode(rows[-1][:3]) if rows else b"")

    async def trail(self, *, after: bytes, limit: int) -> Trail:
        row, known = position(after, tuple[int, Any], (_BEFORE_ALL, None))
        with self._snapshot() as db:
            if after and db.execute("SELECT hash FROM audit WHERE rowid = ?", (row,)).fetchone() != (known,):
                # Rows have other numbers after VACUUM. An entry that is gone was dropped, with all that came before.
                (row,) = db.execute("SELECT rowid FROM audit WHERE hash IS ?", (known,)).fetchone() or (_BEFORE_ALL,)
            sql = f"SELECT rowid, {ENTRY} FROM audit WHERE rowid > ? ORDER BY rowid LIMIT ?"
            return _trail(_rows_of_log(db, sql, row, limit), after)

    async def audit_tail(self, limit: int) -> Trail:
        with self._snapshot() as db:
            rows = _rows_of_log(db, f"SELECT rowid, {ENTRY} FROM audit ORDER BY rowid DESC LIMIT ?", limit)
        return _trail(rows[::-1], b"")

    async def audit_owners(self) -> dict[str, Owner]:
        with self._snapshot() as db:
            rows = db.execute("SELECT audit_id, salt, tenant, user FROM audit_owners").fetchall()
        owners = [(named, salt, _whose(tenant, user)) for named, salt, tenant, user in rows]
        # An id that was given to another owner names nobody.
        return {named: owner for named, salt, owner in owners if type(salt) is bytes and named == audit_id(owner, salt)}

    def heads(self) -> Heads:
        return self._writer.heads()

    async def distrust(self) -> None:
        with store_errors(self.url):
            self._reader.close()
            self._reader = self._connect()

    async def renew(self, owner: Owner, session_id: str, lease: bytes, *, nonce: bytes) -> Receipt:
        now = time.monotonic()
        with store_errors(self.url):
            changed = self._leases.execute(
                "UPDATE leases SET until = ? WHERE held = ? AND lease = ? AND until > ?",
                (now + LEASE.total_seconds(), _held((*names(owner), session_id)), lease, now),
            ).rowcount
        if not changed:
            raise SessionConflict("the lease on the session was lost; nothing was stored, so send it again")
        self._granted[*names(owner), session_id, lease] = now + LEASE.total_seconds()
        return Receipt(nonce)

    async def release(self, owner: Owner, session_id: str, lease: bytes, *, nonce: bytes) -> Receipt:
        with store_errors(self.url):
            self._let_go((*names(owner), session_id), lease)
        return Receipt(nonce)

    def _held_by_another(self, key: tuple[str, str, str], lease: bytes | None) -> bool:
        row = self._leases.execute("SELECT lease, until FROM leases WHERE held = ?", (_held(key),)).fetchone()
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
        replaces: Record | None = None,
        instead_of: str | None = None,
        charges: Sequence[Charge] = (),
        lease: bytes | None = None,
    ) -> Receipt:
        check_charges(session.owner, lease, charges)
        key = (*names(session.owner), session.id)

        def work(db: Writing, charges: Sequence[Charge]) -> Receipt:
            taken = db.execute(f"SELECT turn FROM sessions WHERE {MINE}", key).fetchone()
            if taken == (session.turn,):
                return Receipt(nonce, repeated=True)
            if taken:
                raise SessionConflict("a session with this id exists already; nothing was stored")
            if _tenanted(db) is (session.owner.tenant is None):
                raise side_by_side(session.owner)
            if instead_of is not None:
                before = (*names(session.owner), instead_of)
                if db.execute(f"SELECT ended FROM sessions WHERE {MINE}", before).fetchone() in (None, ("ended",)):
                    raise SessionConflict("the session was ended or erased meanwhile; nothing was stored")
            db.insert_session(session)
            db.insert_items(key, items)
            db.keep(session.owner, record, replaces)
            self._prints.claim(db.db, session, fingerprints)
            settle(db.db, charges)
            db.put(entries)
            return Receipt(nonce)

        return await self._write(work, lease, charges)

    async def commit(self, commit: Commit, *, nonce: bytes) -> Receipt:
        session = commit.session
        check_charges(session.owner, commit.lease, commit.charges)
        key = (*names(session.owner), session.id)

        def work(db: Writing, charges: Sequence[Charge]) -> Receipt:
            changed = db.execute(
                "UPDATE sessions SET version = ?, item_count = ?, token_count = ?, updated_at = ?, expires_at = ?,"
                f" turn = ?, head = ? WHERE {MINE} AND version = ? AND ended IS NULL",
                (
                    session.version,
                    session.count,
                    session.tokens,
                    session.updated_at,
                    session.expires_at,
                    session.turn,
                    session.head,
                    *key,
                    commit.version,
                ),
            ).rowcount
            if not changed:
                return _refused(db, key, session, nonce)
            db.insert_items(key, commit.items)
            db.keep(session.owner, commit.record)
            self._prints.claim(db.db, session, commit.fingerprints)
            settle(db.db, charges)
            db.put(commit.entries)
            return Receipt(nonce)

        with store_errors(self.url):
            # Until it ends nobody else can have taken it, so the file need not be asked.
            held = self._granted.get((*key, commit.lease), 0.0) > time.monotonic()
            if not held and not await self._repeated(key, session.turn):
                raise SessionConflict("the lease on the session was lost; nothing was stored, so send it again")
        return await self._write(work, commit.lease, commit.charges, lambda: self._let_go(key, commit.lease))

    async def charge(self, owner: Owner, lease: bytes, charges: Sequence[Charge], *, nonce: bytes) -> Receipt:
        check_charges(owner, lease, charges)
        if any(charge.limit is not None for charge in charges):
            with store_errors(self.url), self._accounts.alone():
                over = self._accounts.reserve(self._reader, lease, charges)
                self._leases.execute("COMMIT")
            return Receipt(nonce, over=over)

        def work(db: Writing, charges: Sequence[Charge]) -> Receipt:
            settle(db.db, self._accounts.still(lease, charges))
            return Receipt(nonce)

        return await self._write(work, lease, charges) if charges else Receipt(nonce)

    async def spent(self, accounts: Sequence[Account], *, nonce: bytes) -> Spent:
        with store_errors(self.url):
            return Spent(nonce, [self._accounts.spent(self._reader, account) for account in accounts])

    async def _write(
        self,
        work: Callable[[Writing, Sequence[Charge]], Receipt],
        lease: bytes | None,
        charges: Sequence[Charge],
        done: Callable[[], None] = lambda: None,
    ) -> Receipt:
        """Do *work*, which is told those of *charges* that it settles; then *done*, and let go of what was reserved."""

        async def write(charges: Sequence[Charge]) -> Receipt:
            return await self._writer.write(lambda db: work(db, charges))

        with store_errors(self.url):
            if lease is not None and charges:
                return await self._accounts.settled(write, lease, charges, done)
            receipt = await write(())
            done()
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
        key = (*names(owner), session_id)

        def work(db: Writing) -> Receipt:
            row = db.execute(f"SELECT version, ended, wrapped IS NULL FROM sessions WHERE {MINE}", key).fetchone()
            if row is None or (row[2] and row[1] in (ended, "ended")) or (version is not None and row[0] != version):
                return Receipt(nonce)
            db.execute(
                "UPDATE sessions SET wrapped = NULL, head = NULL, turn = x'', item_count = 0, token_count = 0,"
                " carry = iif(?1 = 'expired', carry, NULL), ended = ?1, ended_at = ?2"
                " WHERE tenant = ?3 AND user = ?4 AND session = ?5",
                (ended, now, *key),
            )
            db.execute(f"DELETE FROM items WHERE {MINE}", key)
            self._prints.forget(db.db, MINE, key)
            db.put(entries)
            db.destroyed = True
            return Receipt(nonce, count=1)

        with store_errors(self.url):
            if version is not None and self._held_by_another(key, lease):
                return Receipt(nonce)
        return await self._writer.write(work)

    async def erase(self, owner: Owner, *, nonce: bytes, entries: Sequence[Event] = ()) -> Receipt:
        def work(db: Writing) -> Receipt:
            db.put(entries)
            db.forget(owner)
            count = db.execute("DELETE FROM sessions WHERE tenant = ? AND user = ?", names(owner)).rowcount
            self._prints.forget(db.db, "tenant = ? AND user = ?", names(owner))
            for table in ("items", "records", "accounts", "audit_owners"):
                db.execute(f"DELETE FROM {table} WHERE tenant = ? AND user = ?", names(owner))
            credentials.remove_all(db.db, *names(owner))
            db.destroyed = True
            return Receipt(nonce, count=count)

        # Before, so that nothing is settled in what is gone; and after, for a turn that began meanwhile.
        with store_errors(self.url):
            self._accounts.erase(*names(owner))
            receipt = await self._writer.write(work)
            self._accounts.erase(*names(owner))
        return receipt

    async def forget(self, owner: Owner, record: Record, *, nonce: bytes) -> Receipt:
        def work(db: Writing) -> Receipt:
            held = (*names(owner), record.session, record.key, record.holder, record.sealed)
            change = "DELETE FROM records" if record.trace is None else "UPDATE records SET sealed = x''"
            gone = db.execute(f"{change} WHERE {MINE} AND key = ? AND holder = ? AND sealed = ?", held).rowcount
            return _gone(db, gone, nonce)

        return await self._writer.write(work)

    async def record(self, entries: Sequence[Event], *, nonce: bytes) -> Receipt:
        def work(db: Writing) -> Receipt:
            db.put(entries)
            return Receipt(nonce)

        return await self._writer.write(work)

    async def seed(self, scope: str, digests: Sequence[bytes], *, nonce: bytes) -> Receipt:
        def work(db: Writing) -> Receipt:
            return Receipt(nonce, count=self._prints.seed(db.db, scope, digests))

        return await self._writer.write(work)

    async def sweep(self, *, now: int, tombstones_before: int, fingerprints: int, nonce: bytes) -> Receipt:
        def work(db: Writing) -> Receipt:
            gone = db.execute(
                "DELETE FROM sessions WHERE ended IS NOT NULL AND ended_at < ?", (tombstones_before,)
            ).rowcount
            rest = db.execute("DELETE FROM records WHERE expires_at <= ?", (now,)).rowcount
            rest += db.execute("DELETE FROM accounts WHERE until <= ?", (now,)).rowcount
            rest += credentials.sweep(db.db, now)
            over, dropped = self._prints.sweep(db.db, now, fingerprints)
            db.destroyed = db.destroyed or bool(gone or rest or over or dropped)
            return Receipt(nonce, count=gone, dropped=dropped)

        with store_errors(self.url):
            self._accounts.sweep(now)
        return await self._writer.write(work)

    async def prune_audit(self, upto: Heads, *, nonce: bytes) -> Receipt:
        last, count = _BEFORE_ALL, 0

        def work(db: Writing) -> int:
            nonlocal last, count
            rows = db.execute(
                "SELECT rowid, writer, number FROM audit WHERE rowid > ? ORDER BY rowid LIMIT ?", (last, _AT_ONCE)
            ).fetchall()
            gone = [(row,) for row, writer, number in rows if writer in upto and number <= upto[writer][0]]
            db.db.executemany("DELETE FROM audit WHERE rowid = ?", gone)
            db.destroyed = db.destroyed or bool(gone)
            last, count = (rows[-1][0] if rows else last), count + len(gone)
            return len(rows)

        while await self._writer.write(work) == _AT_ONCE:
            pass
        return Receipt(nonce, count=count)

    async def rewrap(self, old: SealedSession, wrapped: bytes | None, carry: bytes | None, *, nonce: bytes) -> Receipt:
        def work(db: Writing) -> Receipt:
            changed = db.execute(
                f"UPDATE sessions SET wrapped = ?, carry = ? WHERE {MINE} AND wrapped IS ? AND carry IS ?",
                (wrapped, carry, *names(old.owner), old.id, old.wrapped, old.carry),
            ).rowcount
            return Receipt(nonce, count=changed)

        return await self._writer.write(work)

    # --- credentials --------------------------------------------------------------------------------------------------

    async def credential(self, digest: bytes, *, nonce: bytes) -> Found:
        with self._snapshot() as db:
            return Found(nonce, credentials.find(db, digest))

    async def credentials(
        self, tenant: str | None, kind: CredentialKind, *, nonce: bytes, limit: int, after: str = ""
    ) -> Enrolled:
        with self._snapshot() as db:
            return Enrolled(nonce, credentials.listed(db, credentials.key_of(tenant, kind, after), limit))

    async def every_credential(self, *, after: bytes, limit: int) -> CredentialBatch:
        with self._snapshot() as db:
            found = credentials.behind(db, after, limit)
        return CredentialBatch(found, found[-1].digest if found else b"")

    async def enrol(self, credential: SealedCredential, *, nonce: bytes, entries: Sequence[Event] = ()) -> Receipt:
        def work(db: Writing) -> Receipt:
            if not credentials.add(db.db, credential):
                return Receipt(nonce, repeated=True)
            db.put(entries)
            return Receipt(nonce)

        return await self._writer.write(work)

    async def revoke(
        self,
        tenant: str | None,
        kind: CredentialKind,
        credential_id: str,
        *,
        nonce: bytes,
        entries: Sequence[Event] = (),
    ) -> Receipt:
        def work(db: Writing) -> Receipt:
            return _gone(db, credentials.remove(db.db, credentials.key_of(tenant, kind, credential_id)), nonce, entries)

        return await self._writer.write(work)

    async def revoke_all(self, owner: Owner, *, nonce: bytes, entries: Sequence[Event] = ()) -> Receipt:
        def work(db: Writing) -> Receipt:
            return _gone(db, credentials.remove_all(db.db, *names(owner)), nonce, entries)

        return await self._writer.write(work)

    async def reseal(self, old: SealedCredential, sealed: bytes, *, nonce: bytes) -> Receipt:
        def work(db: Writing) -> Receipt:
            return Receipt(nonce, count=credentials.reseal(db.db, old, sealed))

        return await self._writer.write(work)
