"""Sealed rows in this process's memory: for tests, demonstrations and conversations that nobody keeps."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from cloister.audit import Chain, Entry, Event, Heads, audit_id, introduces
from cloister.errors import ConfigurationError, SessionConflict
from cloister.model import Owner, SealedItem, SealedSession
from cloister.sealing import fields, owner_fields, tag
from cloister.stores.accounts import Accounts
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
    Page,
    Receipt,
    Record,
    SealedCredential,
    Spent,
    Trail,
    check_charges,
    check_new,
    options_of,
    position,
    side_by_side,
)
from cloister.stores.prints import Prints

_Key = tuple[Owner, str]


@dataclass(slots=True)
class _Kept:
    session: SealedSession
    items: list[SealedItem] = field(default_factory=list)
    ended_at: int = 0


def _alike(one: SealedCredential, other: SealedCredential) -> bool:
    return (one.tenant, one.kind, one.id) == (other.tenant, other.kind, other.id)


def from_url(url: str) -> MemoryStore:
    """Give the store that ``memory://`` names."""
    options_of(url, {})
    if url != "memory://":
        raise ConfigurationError("memory:// takes no name: every one that is opened is a store of its own")
    return MemoryStore()


class MemoryStore:
    """Keep everything in dicts. No method waits, so each is atomic on its event loop."""

    url = "memory://"
    path = None
    volatile = True

    def __init__(self) -> None:
        self._sessions: dict[_Key, _Kept] = {}
        self._records: dict[tuple[Owner, str, bytes], Record] = {}
        self._credentials: dict[bytes, SealedCredential] = {}
        self._leases: dict[_Key, tuple[bytes, float]] = {}
        self._prints = Prints()
        self._accounts = Accounts()
        self._audit_ids: dict[Owner, str] = {}
        self._chain = Chain.new()
        self._entries: list[Entry] = []

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

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
        if kept := self._sessions.get((session.owner, session.id)):
            if kept.session.turn == session.turn:
                return Receipt(nonce, repeated=True)
            raise SessionConflict("a session with this id exists already; nothing was stored")
        if await self.tenanted() is (session.owner.tenant is None):
            raise side_by_side(session.owner)
        if instead_of is not None:
            before = self._sessions.get((session.owner, instead_of))
            if before is None or before.session.ended == "ended":
                raise SessionConflict("the session was ended or erased meanwhile; nothing was stored")
        self._check_record(session.owner, record, replaces)
        self._sessions[session.owner, session.id] = _Kept(session, list(items))
        self._keep(session.owner, record)
        self._prints.keep(session, fingerprints)
        self._accounts.settle(lease, charges)
        self._put(entries)
        return Receipt(nonce)

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
        kept = self._sessions.get((owner, session_id))
        found = self._records.get((owner, session_id, record)) if record is not None else None
        if kept is None or kept.session.ended:
            return Loaded(nonce, kept.session if kept else None, record=found)
        if lease is not None:
            if not self._take(owner, session_id, lease):
                return Loaded(nonce, busy=True)
            if found is None and (over := self._accounts.reserve(lease, charges)) is not None:
                del self._leases[owner, session_id]
                return Loaded(nonce, over=over)
        first = len(kept.items)
        while first and budget >= 0:
            first -= 1
            budget -= kept.items[first].tokens
        before = tag(kept.items[first - 1].sealed) if first else b""
        return Loaded(nonce, kept.session, kept.items[first:], before, found)

    async def renew(self, owner: Owner, session_id: str, lease: bytes, *, nonce: bytes) -> Receipt:
        self._check_lease(owner, session_id, lease)
        self._leases[owner, session_id] = lease, time.monotonic() + LEASE.total_seconds()
        return Receipt(nonce)

    async def release(self, owner: Owner, session_id: str, lease: bytes, *, nonce: bytes) -> Receipt:
        if self._leases.get((owner, session_id), (b"",))[0] == lease:
            del self._leases[owner, session_id]
        return Receipt(nonce)

    async def commit(self, commit: Commit, *, nonce: bytes) -> Receipt:
        session = commit.session
        check_charges(session.owner, commit.lease, commit.charges)
        kept = self._sessions.get((session.owner, session.id))
        if kept is None or kept.session.ended:
            raise SessionConflict("the session was ended meanwhile; nothing was stored")
        if kept.session.turn == session.turn:
            return Receipt(nonce, repeated=True)
        self._check_lease(session.owner, session.id, commit.lease)
        if kept.session.version != commit.version:
            raise SessionConflict("the session changed meanwhile; nothing was stored, so send it again")
        self._check_record(session.owner, commit.record)
        kept.session = msgspec.structs.replace(session, wrapped=kept.session.wrapped, carry=kept.session.carry)
        kept.items.extend(commit.items)
        self._keep(session.owner, commit.record)
        self._prints.keep(session, commit.fingerprints)
        self._accounts.settle(commit.lease, commit.charges)
        self._put(commit.entries)
        del self._leases[session.owner, session.id]
        return Receipt(nonce)

    async def charge(self, owner: Owner, lease: bytes, charges: Sequence[Charge], *, nonce: bytes) -> Receipt:
        check_charges(owner, lease, charges)
        if any(charge.limit is not None for charge in charges):
            return Receipt(nonce, over=self._accounts.reserve(lease, charges))
        self._accounts.settle(lease, charges)
        return Receipt(nonce)

    async def spent(self, accounts: Sequence[Account], *, nonce: bytes) -> Spent:
        return Spent(nonce, [self._accounts.spent(account) for account in accounts])

    async def items(self, owner: Owner, session_id: str, *, nonce: bytes, first: int, limit: int) -> Page:
        kept = self._sessions.get((owner, session_id))
        if kept is None:
            return Page(nonce)
        before = tag(kept.items[first - 1].sealed) if 0 < first <= len(kept.items) else b""
        return Page(nonce, kept.session, kept.items[first : first + limit], before)

    async def sessions(self, owner: Owner, *, nonce: bytes, limit: int, before: tuple[int, str] | None) -> Listing:
        rows = [
            kept.session for (whose, _), kept in self._sessions.items() if whose == owner and not kept.session.ended
        ]
        rows = sorted(rows, key=lambda row: (row.created_at, row.id), reverse=True)
        return Listing(nonce, [row for row in rows if before is None or (row.created_at, row.id) < before][:limit])

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
        kept = self._sessions.get((owner, session_id))
        if kept is None or kept.session.ended == "ended" or kept.session.ended == ended:
            return Receipt(nonce)
        if version is not None and (kept.session.version != version or not self._free(owner, session_id, lease)):
            return Receipt(nonce)
        carry = kept.session.carry if ended == "expired" else None
        gone = msgspec.structs.replace(
            kept.session, wrapped=None, head=None, turn=b"", count=0, tokens=0, carry=carry, ended=ended
        )
        self._sessions[owner, session_id] = _Kept(gone, ended_at=now)
        self._leases.pop((owner, session_id), None)
        self._prints.end(owner, session_id)
        self._put(entries)
        return Receipt(nonce, count=1)

    async def erase(self, owner: Owner, *, nonce: bytes, entries: Sequence[Event] = ()) -> Receipt:
        self._put(entries)
        keys = [key for key in self._sessions if key[0] == owner]
        for key in keys:
            del self._sessions[key]
            self._leases.pop(key, None)
            self._prints.end(*key)
        self._records = {known: record for known, record in self._records.items() if known[0] != owner}
        self._audit_ids.pop(owner, None)
        self._accounts.erase(owner)
        self._drop(lambda one: (one.tenant, one.user) == (owner.tenant, owner.user))
        return Receipt(nonce, count=len(keys))

    async def forget(self, owner: Owner, record: Record, *, nonce: bytes) -> Receipt:
        filed = owner, record.session, record.key
        if self._records.get(filed) != record:
            return Receipt(nonce)
        del self._records[filed]
        self._keep(owner, record.trace)
        return Receipt(nonce, count=1)

    async def record(self, entries: Sequence[Event], *, nonce: bytes) -> Receipt:
        self._put(entries)
        return Receipt(nonce)

    async def claims(self, scope: str, digests: Sequence[bytes], *, now: int, nonce: bytes) -> Claims:
        return self._prints.claims(scope, digests, now=now, nonce=nonce)

    async def seed(self, scope: str, digests: Sequence[bytes], *, nonce: bytes) -> Receipt:
        return Receipt(nonce, count=self._prints.seed(scope, digests))

    async def sweep(self, *, now: int, tombstones_before: int, fingerprints: int, nonce: bytes) -> Receipt:
        old = [key for key, kept in self._sessions.items() if kept.session.ended and kept.ended_at < tombstones_before]
        for key in old:
            del self._sessions[key]
        self._records = {key: record for key, record in self._records.items() if record.expires_at > now}
        self._accounts.sweep(now)
        self._drop(lambda one: one.expires_at is not None and one.expires_at <= now)
        return Receipt(nonce, count=len(old), dropped=self._prints.sweep(now, fingerprints))

    async def expired(self, *, now: int, limit: int, skip: int) -> Sequence[Due]:
        rows = (kept.session for kept in self._sessions.values() if not kept.session.ended)
        due = [row for row in rows if row.expires_at is not None and row.expires_at <= now]
        return [Due(row.owner, row.id, row.version) for row in due[skip : skip + limit]]

    async def owner_of(self, session_id: str) -> Owner | None:
        return next((owner for owner, known in self._sessions if known == session_id), None)

    async def tenanted(self) -> bool | None:
        return any(owner.tenant is not None for owner, _ in self._sessions) if self._sessions else None

    async def all(self, *, after: bytes, limit: int) -> Batch:
        rows = {owner_fields(owner) + fields(known): kept.session for (owner, known), kept in self._sessions.items()}
        keys = [key for key in sorted(rows) if key > after][:limit]
        return Batch([rows[key] for key in keys], keys[-1] if keys else b"")

    async def rewrap(self, old: SealedSession, wrapped: bytes | None, carry: bytes | None, *, nonce: bytes) -> Receipt:
        kept = self._sessions.get((old.owner, old.id))
        if kept is None or (kept.session.wrapped, kept.session.carry) != (old.wrapped, old.carry):
            return Receipt(nonce)
        kept.session = msgspec.structs.replace(kept.session, wrapped=wrapped, carry=carry)
        return Receipt(nonce, count=1)

    # --- credentials --------------------------------------------------------------------------------------------------

    async def enrol(self, credential: SealedCredential, *, nonce: bytes, entries: Sequence[Event] = ()) -> Receipt:
        known = [
            one for one in self._credentials.values() if one.digest == credential.digest or _alike(one, credential)
        ]
        if check_new(credential, known):
            self._credentials[credential.digest] = credential
            self._put(entries)
        return Receipt(nonce, repeated=bool(known))

    async def credential(self, digest: bytes, *, nonce: bytes) -> Found:
        return Found(nonce, self._credentials.get(digest))

    async def credentials(
        self, tenant: str | None, kind: CredentialKind, *, nonce: bytes, limit: int, after: str = ""
    ) -> Enrolled:
        found = [one for one in self._credentials.values() if (one.tenant, one.kind) == (tenant, kind)]
        return Enrolled(nonce, sorted((one for one in found if one.id > after), key=lambda one: one.id)[:limit])

    async def revoke(
        self,
        tenant: str | None,
        kind: CredentialKind,
        credential_id: str,
        *,
        nonce: bytes,
        entries: Sequence[Event] = (),
    ) -> Receipt:
        return self._revoke(lambda one: (one.tenant, one.kind, one.id) == (tenant, kind, credential_id), nonce, entries)

    async def revoke_all(self, owner: Owner, *, nonce: bytes, entries: Sequence[Event] = ()) -> Receipt:
        return self._revoke(lambda one: (one.tenant, one.user) == (owner.tenant, owner.user), nonce, entries)

    def _revoke(self, wanted: Callable[[SealedCredential], bool], nonce: bytes, entries: Sequence[Event]) -> Receipt:
        count = self._drop(wanted)
        self._put(entries if count else ())
        return Receipt(nonce, count=count)

    def _drop(self, wanted: Callable[[SealedCredential], bool]) -> int:
        gone = [one.digest for one in self._credentials.values() if wanted(one)]
        for digest in gone:
            del self._credentials[digest]
        return len(gone)

    async def every_credential(self, *, after: bytes, limit: int) -> CredentialBatch:
        found = [self._credentials[digest] for digest in sorted(self._credentials) if digest > after][:limit]
        return CredentialBatch(found, found[-1].digest if found else b"")

    async def reseal(self, old: SealedCredential, sealed: bytes, *, nonce: bytes) -> Receipt:
        if self._credentials.get(old.digest) != old:
            return Receipt(nonce)
        self._credentials[old.digest] = msgspec.structs.replace(old, sealed=sealed)
        return Receipt(nonce, count=1)

    # --- the log ------------------------------------------------------------------------------------------------------

    async def trail(self, *, after: bytes, limit: int) -> Trail:
        reached = position(after, int, 0)
        # There is one writer, whose entries are numbered.
        first = max(reached - self._chain.number, -len(self._entries)) if reached < self._chain.number else 0
        found = self._entries[first:][:limit] if first else []
        return Trail(found, msgspec.msgpack.encode(found[-1].number) if found else after)

    async def prune_audit(self, upto: Heads, *, nonce: bytes) -> Receipt:
        before = len(self._entries)
        number, _ = upto.get(self._chain.writer, (0, ""))
        self._entries = [entry for entry in self._entries if entry.number > number]
        return Receipt(nonce, count=before - len(self._entries))

    async def audit_owners(self) -> dict[str, Owner]:
        return {audit_id: owner for owner, audit_id in self._audit_ids.items()}

    async def audit_tail(self, limit: int) -> Trail:
        return Trail(self._entries[-limit:], msgspec.msgpack.encode(self._chain.number))

    def heads(self) -> Heads:
        return {self._chain.writer: (self._chain.number, self._chain.last.hex())}

    async def distrust(self) -> None:
        pass

    def _free(self, owner: Owner, session_id: str, lease: bytes | None) -> bool:
        holder, until = self._leases.get((owner, session_id), (lease, 0.0))
        return holder == lease or until <= time.monotonic()

    def _take(self, owner: Owner, session_id: str, lease: bytes) -> bool:
        if free := self._free(owner, session_id, lease):
            self._leases[owner, session_id] = lease, time.monotonic() + LEASE.total_seconds()
        return free

    def _check_lease(self, owner: Owner, session_id: str, lease: bytes) -> None:
        holder, until = self._leases.get((owner, session_id), (b"", 0.0))
        if holder != lease or until <= time.monotonic():
            raise SessionConflict("the lease on the session was lost; nothing was stored, so send it again")

    def _check_record(self, owner: Owner, record: Record | None, replaces: Record | None = None) -> None:
        there = record and self._records.get((owner, record.session, record.key))
        if there and there not in (replaces, replaces and replaces.trace):
            raise SessionConflict("this idempotency key was answered meanwhile; send it again for the answer")

    def _keep(self, owner: Owner, record: Record | None) -> None:
        if record is not None:
            self._records[owner, record.session, record.key] = record

    def _put(self, events: Sequence[Event]) -> None:
        for event in events:
            owner = self._audit_id(event.owner, introduce=introduces(event))
            self._chain, entry = self._chain.extend(event, owner, self._audit_id(event.other, introduce=False))
            self._entries.append(entry)

    def _audit_id(self, owner: Owner | None, *, introduce: bool) -> str:
        if owner is None or (owner not in self._audit_ids and not introduce):
            return ""
        return self._audit_ids.setdefault(owner, audit_id(owner, secrets.token_bytes(16)))
