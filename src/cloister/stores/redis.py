"""Sealed rows in Redis or a Redis Cluster: one script for each phase of a turn.

All keys of a session carry the tag of its place, the first byte of its id, so that a script finds them in one slot; so
does the audit stream of the place. What belongs to an owner as a whole (the list of sessions, the name in the log) lies
under a tag of the owner's own, and is written before what it leads to. Keys carry digests, never a name.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Sequence
from hashlib import sha1, sha256
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
from redis.exceptions import RedisError

from cloister.audit import Event, Heads, audit_id
from cloister.errors import ConfigurationError, SessionConflict, StoreUnavailable
from cloister.model import Owner, SealedItem, SealedSession
from cloister.sealing import owner_fields
from cloister.sessions import place_of
from cloister.stores import redis_accounts
from cloister.stores import redis_scripts as scripts
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
    Number,
    Off,
    Page,
    Receipt,
    Record,
    SealedCredential,
    Spent,
    Trail,
    check_charges,
    options_of,
    side_by_side,
)
from cloister.stores.pool import Lent, Pool, named
from cloister.stores.redis_credentials import Credentials
from cloister.stores.redis_log import Log
from cloister.stores.redis_nodes import Address, Nodes, address_of
from cloister.stores.redis_prints import Prints
from cloister.stores.redis_rows import (
    PLACES,
    Keys,
    item_of,
    names,
    owner_of,
    place_prefix,
    record_of,
    row_of,
    session_of,
)
from cloister.stores.redis_wire import NODE, Wire, ours

_CONNECTIONS = 10
_DAY = 86_400_000  # ms
_GRACE = _DAY
_TOMBSTONE = 31 * _DAY
_RECORD = 3 * _DAY
_NAME_SECONDS = 60.0
_NAMES_AT_MOST = 10_000
_LEASE_MS = int(LEASE.total_seconds() * 1e3)
_REPLICAS_MS = 2_000  # for a write to reach them
_PAGE = 200
_LOG = 10
"""The number of the log among the keys of a session."""
_EVICTING = "noeviction"
_encode = msgspec.msgpack.Encoder().encode


class _Text:
    """Be the values of an option that is a word, or a path."""

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable() and not set(value) & set("{}")

    def __str__(self) -> str:
        return "a text without braces"


def from_url(url: str) -> RedisStore:
    """Give the store that ``redis://host:port/0`` or ``redis+cluster://one:7301,two:7302`` names; ``rediss`` for TLS.

    Options: ``prefix`` of all keys (``cloister:``), ``wait`` for how many replicas have to have a write (0),
    ``connections`` to each node (10), ``allow_eviction=1``, ``tls_ca`` (a file), ``tls_verify=0``.
    """
    known: dict[str, Any] = {
        "prefix": _Text(),
        "wait": Number(0, 16),
        "connections": Number(1, 1_000),
        "allow_eviction": ("0", "1"),
        "tls_ca": _Text(),
        "tls_verify": ("0", "1"),
    }
    options = options_of(url, known)
    parts = urlsplit(url)
    who, _, hosts = parts.netloc.rpartition("@")
    user, _, password = who.partition(":")
    clustered = parts.scheme.endswith("+cluster")
    database = parts.path.strip("/") or "0"
    if not database.isdecimal() or (clustered and database != "0") or not hosts or (not clustered and "," in hosts):
        raise ConfigurationError(
            "name the server: redis://host:6379/0, or the nodes of a cluster: redis+cluster://one:7301,two:7302"
        )
    driver: dict[str, Any] = {"db": int(database)} if not clustered else {}
    if user:
        driver["username"] = unquote(user)
    if password:
        driver["password"] = unquote(password)
    secure = parts.scheme.startswith("rediss")
    if secure:
        driver |= {"ssl_cert_reqs": "none" if options.get("tls_verify") == "0" else "required"}
        driver |= {"ssl_ca_certs": options["tls_ca"]} if "tls_ca" in options else {}
    return RedisStore(
        f"{parts.scheme}://{hosts}{parts.path}",
        [address_of(host) for host in hosts.split(",")],
        clustered=clustered,
        secure=secure,
        driver=driver,
        prefix=options.get("prefix", "cloister:"),
        wait=int(options.get("wait", 0)),
        connections=int(options.get("connections", _CONNECTIONS)),
        allow_eviction=options.get("allow_eviction") == "1",
    )


def _lives(session: SealedSession) -> tuple[str | int, str | int]:
    """Give how long secret and tombstone stay at least, in ms; empty for ever."""
    if session.expires_at is None:
        return "", ""
    left = max(session.expires_at - session.updated_at, 0) // 1_000
    return left + _GRACE, left + _TOMBSTONE


_REFUSED = {
    b"ended": "the session was ended or erased meanwhile; nothing was stored",
    b"version": "the session changed meanwhile; nothing was stored, so send it again",
    b"lease": "the lease on the session was lost; nothing was stored, so send it again",
    b"record": "this idempotency key was answered meanwhile; send it again for the answer",
    b"taken": "a session with this id exists already; nothing was stored",
}


class RedisStore:
    """Keep everything in Redis, under keys that begin with *prefix*."""

    path = None
    volatile = False

    def __init__(
        self,
        url: str,
        addresses: Sequence[Address],
        *,
        clustered: bool = False,
        secure: bool = False,
        driver: dict[str, Any] | None = None,
        prefix: str = "cloister:",
        wait: int = 0,
        connections: int = _CONNECTIONS,
        allow_eviction: bool = False,
    ) -> None:
        self.url = url
        self._nodes = Nodes(url, addresses, clustered, secure, driver or {}, connections)
        self._prefix = prefix
        self._wait = wait
        self._allow_eviction = allow_eviction
        eviction = Off("durability", "allow_eviction=1", "the server may throw sessions away when its memory is full")
        unchecked = Off("certificates", "tls_verify=0", "whoever is in between can take the server's place")
        given_up = {eviction: allow_eviction, unchecked: (driver or {}).get("ssl_cert_reqs") == "none"}
        self.off = tuple(off for off, chosen in given_up.items() if chosen)
        self._known: dict[Owner, tuple[str, float]] = {}
        self._prints = Prints(prefix, self._script)
        self._accounts = redis_accounts.Accounts(prefix)
        self._credentials = Credentials(prefix, self._script, self._write)
        self._log = Log(prefix, self._nodes)

    async def open(self) -> None:
        try:
            await self._check()
        except BaseException:
            await self.close()
            raise

    async def _check(self) -> None:
        """Refuse a server that throws away what it was given to keep, is too old, or is one of several unbeknown."""
        for address in await self._nodes.primaries():
            said = (await self._plain(address, "INFO")).decode()
            known = dict(line.partition(":")[::2] for line in said.splitlines())
            version = known.get("redis_version", "")
            if re.match(r"[0-5]\.|6\.[01]\.", version):
                raise ConfigurationError(f"{self.url} is Redis {version}: use 6.2 or later")
            if known.get("cluster_enabled") == "1" and not self._nodes.clustered:
                raise ConfigurationError(f"{self.url} {NODE}")
            policy = known.get("maxmemory_policy", "")
            if policy != _EVICTING and not self._allow_eviction:
                raise ConfigurationError(
                    f"{self.url} throws data away when its memory is full (maxmemory-policy {policy or 'unknown'}): "
                    "CONFIG SET maxmemory-policy noeviction, or say ?allow_eviction=1"
                )

    async def close(self) -> None:
        await self._nodes.close()

    # --- one owner's --------------------------------------------------------------------------------------------------

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
        owner, keys = session.owner, self._keys(session.owner, session.id)
        await self._settle(owner)
        # Before the session, so that whoever ends or erases all of an owner's misses none.
        index = self._of(owner, b"sessions")
        await self._script(scripts.READ, [index], ["ZADD", session.created_at, session.id])
        field, value, end, filed_by, filed = self._filed(owner, record, keys)
        seen, left = ((_record(one) if one else b"") for one in (replaces, replaces and replaces.trace))
        instead = self._keys(owner, instead_of).plain if instead_of is not None else keys.plain
        tenant, user = names(owner)
        plain = (
            session.id,
            tenant,
            user,
            session.created_at,
            session.updated_at,
            "" if session.expires_at is None else session.expires_at,
            session.carry or b"",
            session.version,
            keys.digest,
        )
        live = (session.wrapped or b"", session.head or b"", session.count, session.tokens, session.turn)
        before = (
            *_lives(session),
            _RECORD,
            "instead" if instead_of is not None else "",
            field,
            value,
            end,
            filed_by,
            seen,
            left,
        )

        def args(packed: Sequence[bytes]) -> list[Any]:
            lives, longer, kept, *rest = before
            return [lives, longer, kept, len(packed), len(items), *rest, *plain, *live, *packed, *map(row_of, items)]

        beside = [instead, filed]
        charging = lease, charges
        said = await self._store(scripts.CREATE, session, keys, beside, args, entries, fingerprints, charging)
        receipt = _receipt(said, nonce)
        # And after it: an erasure, or a listing that tidies up, may have taken the entry for one that leads nowhere.
        await self._script(scripts.READ, [index], ["ZADD", session.created_at, session.id])
        return receipt

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
        keys = self._keys(owner, session_id)
        args = [lease or b"", _LEASE_MS, budget, record.hex() if record is not None else ""]
        if charges and not self._nodes.clustered:
            known = [*keys.all, *self._accounts.keys(owner)]
            args += self._accounts.args(lease, charges)
            outcome, *said = await self._script(scripts.CHARGED[scripts.LOAD], known, args)
        else:
            outcome, *said = await self._script(scripts.LOAD, keys.all, args)
        if outcome == b"busy":
            return Loaded(nonce, busy=True)
        if outcome == b"full":
            return Loaded(nonce, over=charges[said[0] - 1].account)
        session = session_of(said[0], said[1])
        kept = record_of(session_id, record, said[2])
        if outcome != b"live":
            return Loaded(nonce, session, record=kept)
        if lease and charges and self._nodes.clustered and kept is None:
            over = await self._reserve(owner, lease, charges)
            if over is not None:
                await self.release(owner, session_id, lease, nonce=nonce)
                return Loaded(nonce, over=over)
        first, before, rows = said[3], said[4], said[5]
        items = [item_of(first + n, row) for n, row in enumerate(reversed(rows))]
        return Loaded(nonce, session, items, before, kept)

    async def renew(self, owner: Owner, session_id: str, lease: bytes, *, nonce: bytes) -> Receipt:
        return _receipt((await self._of_session(scripts.RENEW, owner, session_id, lease, _LEASE_MS))[0], nonce)

    async def release(self, owner: Owner, session_id: str, lease: bytes, *, nonce: bytes) -> Receipt:
        return _receipt((await self._of_session(scripts.RELEASE, owner, session_id, lease))[0], nonce)

    async def commit(self, commit: Commit, *, nonce: bytes) -> Receipt:
        session = commit.session
        check_charges(session.owner, commit.lease, commit.charges)
        keys = self._keys(session.owner, session.id)
        field, value, end, _, _ = self._filed(session.owner, commit.record, keys)
        lives, longer = _lives(session)

        def args(packed: Sequence[bytes]) -> list[Any]:
            return [
                commit.version,
                commit.lease,
                session.turn,
                lives,
                longer,
                _RECORD,
                session.version,
                session.count,
                session.tokens,
                session.updated_at,
                "" if session.expires_at is None else session.expires_at,
                session.head or b"",
                keys.digest,
                field,
                value,
                len(packed),
                len(commit.items),
                end,
                *packed,
                *map(row_of, commit.items),
            ]

        beside = commit.entries, commit.fingerprints, (commit.lease, commit.charges)
        return _receipt(await self._store(scripts.COMMIT, session, keys, (), args, *beside), nonce)

    async def charge(self, owner: Owner, lease: bytes, charges: Sequence[Charge], *, nonce: bytes) -> Receipt:
        check_charges(owner, lease, charges)
        if any(charge.limit is not None for charge in charges):
            return Receipt(nonce, over=await self._reserve(owner, lease, charges))
        if charges:
            await self._settle_charges(owner, lease, charges)
        return Receipt(nonce)

    async def _reserve(self, owner: Owner, lease: bytes, charges: Sequence[Charge]) -> Account | None:
        args = self._accounts.args(lease, charges)
        (full,) = await self._script(redis_accounts.RESERVE, self._accounts.keys(owner), args)
        return charges[full - 1].account if full else None

    async def _settle_charges(self, owner: Owner, lease: bytes | None, charges: Sequence[Charge]) -> None:
        args = self._accounts.args(lease, charges)
        await self._write(redis_accounts.SETTLE, self._accounts.keys(owner), lambda _: args, ())

    async def spent(self, accounts: Sequence[Account], *, nonce: bytes) -> Spent:
        amounts: dict[Account, int] = {}
        for tenant in {account.tenant for account in accounts}:
            some = [account for account in accounts if account.tenant == tenant]
            holders = [self._accounts.holder(account) for account in some]
            (said,) = await self._script(redis_accounts.SPENT, holders, [account.period for account in some])
            amounts.update(zip(some, map(int, said), strict=True))
        return Spent(nonce, [amounts[account] for account in accounts])

    async def items(self, owner: Owner, session_id: str, *, nonce: bytes, first: int, limit: int) -> Page:
        start = max(first - 1, 0)
        _, plain, live, rows = await self._of_session(scripts.PAGE, owner, session_id, start, first + limit - 1)
        session = session_of(plain, live)
        items = [item_of(start + n, row) for n, row in enumerate(rows)] if session and not session.ended else []
        before = items.pop(0).sealed[-16:] if first > 0 and items else b""
        return Page(nonce, session, items, before)

    async def sessions(self, owner: Owner, *, nonce: bytes, limit: int, before: tuple[int, str] | None) -> Listing:
        found: list[SealedSession] = []
        offset, at = 0, "+inf" if before is None else str(before[0])
        index = self._of(owner, b"sessions")
        while len(found) < limit:
            args = ["ZREVRANGEBYSCORE", at, "-inf", "WITHSCORES", "LIMIT", offset, limit]
            (said,) = await self._script(scripts.READ, [index], args)
            listed = [(int(score), member.decode()) for member, score in zip(said[::2], said[1::2], strict=True)]
            offset += len(listed)
            wanted = [session_id for created, session_id in listed if before is None or (created, session_id) < before]
            rows = await asyncio.gather(*(self._peek(owner, session_id) for session_id in wanted))
            found += [row for row in rows if row is not None and row.ended is None]
            gone = [session_id for session_id, row in zip(wanted, rows, strict=True) if row is None]
            if gone:  # collected by Redis before anybody swept
                offset -= len(gone)
                await self._script(scripts.READ, [index], ["ZREM", *gone])
            if len(listed) < limit:
                break
        return Listing(nonce, found[:limit])

    async def _peek(self, owner: Owner, session_id: str) -> SealedSession | None:
        _, plain, live, _ = await self._of_session(scripts.PAGE, owner, session_id, 0, -(1 << 40))
        return session_of(plain, live)

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
        keys = self._keys(owner, session_id)

        def args(packed: Sequence[bytes]) -> list[Any]:
            only = "" if version is None else version
            return [ended, now, only, lease or b"", keys.digest, len(packed), *packed]

        outcome, *said = await self._write(scripts.END, keys.all, args, entries)
        if said:
            await self._prints.forget(keys.number, said[0])
        return Receipt(nonce, count=int(outcome == b"stored"))

    async def erase(self, owner: Owner, *, nonce: bytes, entries: Sequence[Event] = ()) -> Receipt:
        await self.record(entries, nonce=nonce)
        await self._credentials.remove_all(owner)  # before, so that nobody comes in with one meanwhile
        gone = 0
        index = self._of(owner, b"sessions")
        # Until there are none left: one may be on its way in, whose id is in the index before it is there.
        while listed := (await self._script(scripts.READ, [index], ["ZRANGE", 0, _PAGE - 1]))[0]:
            for member in listed:
                keys = self._keys(owner, member.decode())
                _, there, said = await self._script(scripts.DESTROY, keys.all, [keys.digest])
                await self._prints.forget(keys.number, said)
                gone += there
                await self._script(scripts.READ, [index], ["ZREM", member])
        holder, _, until = self._accounts.keys(owner)
        await self._script(redis_accounts.ERASE, [holder, until], [])
        await self._script(scripts.READ, [self._of(owner, b"name")], ["DEL"])
        self._known.pop(owner, None)
        return Receipt(nonce, count=gone)

    async def rewrap(self, old: SealedSession, wrapped: bytes | None, carry: bytes | None, *, nonce: bytes) -> Receipt:
        values = [b"-" if value is None else b"+" + value for value in (old.wrapped, old.carry, wrapped, carry)]
        said = await self._of_session(scripts.REWRAP, old.owner, old.id, *values)
        return Receipt(nonce, count=int(said[0] == b"stored"))

    async def forget(self, owner: Owner, record: Record, *, nonce: bytes) -> Receipt:
        field, value, _, filed_by, _ = self._filed(owner, record, self._keys(owner, record.session))
        left = _record(record.trace) if record.trace else b""
        (gone,) = await self._of_session(scripts.UNRECORD, owner, record.session, field, filed_by, value, left)
        return Receipt(nonce, count=gone)

    async def record(self, entries: Sequence[Event], *, nonce: bytes) -> Receipt:
        if entries:
            # Spread over the places by what they are about, as the entries of turns are.
            place = int(sha256(entries[0].session.encode()).hexdigest()[:2], 16)
            base = place_prefix(self._prefix, place)
            await self._write(scripts.RECORD, [base + b"log"] * _LOG, list, entries)
        return Receipt(nonce)

    # --- credentials --------------------------------------------------------------------------------------------------

    async def enrol(self, credential: SealedCredential, *, nonce: bytes, entries: Sequence[Event] = ()) -> Receipt:
        return Receipt(nonce, repeated=not await self._credentials.add(credential, entries))

    async def credential(self, digest: bytes, *, nonce: bytes) -> Found:
        return Found(nonce, await self._credentials.find(digest))

    async def credentials(
        self, tenant: str | None, kind: CredentialKind, *, nonce: bytes, limit: int, after: str = ""
    ) -> Enrolled:
        return Enrolled(nonce, await self._credentials.listed(tenant, kind, limit, after))

    async def revoke(
        self,
        tenant: str | None,
        kind: CredentialKind,
        credential_id: str,
        *,
        nonce: bytes,
        entries: Sequence[Event] = (),
    ) -> Receipt:
        return Receipt(nonce, count=await self._credentials.remove(tenant, kind, credential_id, entries))

    async def revoke_all(self, owner: Owner, *, nonce: bytes, entries: Sequence[Event] = ()) -> Receipt:
        return Receipt(nonce, count=await self._credentials.remove_all(owner, entries))

    async def every_credential(self, *, after: bytes, limit: int) -> CredentialBatch:
        return await self._credentials.behind(after, limit)

    async def reseal(self, old: SealedCredential, sealed: bytes, *, nonce: bytes) -> Receipt:
        return Receipt(nonce, count=await self._credentials.reseal(old, sealed))

    # --- across owners ------------------------------------------------------------------------------------------------

    async def claims(self, scope: str, digests: Sequence[bytes], *, now: int, nonce: bytes) -> Claims:
        return Claims(nonce, *await self._prints.whose(scope, digests, now))

    async def seed(self, scope: str, digests: Sequence[bytes], *, nonce: bytes) -> Receipt:
        return Receipt(nonce, count=await self._prints.seed(scope, digests))

    async def sweep(self, *, now: int, tombstones_before: int, fingerprints: int, nonce: bytes) -> Receipt:
        gone = 0
        for place in range(PLACES):
            base = place_prefix(self._prefix, place)
            keys = [base + name for name in (b"over", b"ends", b"all", b"gone", b"until", b"lapse", b"credentials")]
            _, whose, silenced, ended = await self._script(scripts.SWEEP, keys, [now, tombstones_before, base])
            for member in silenced:
                number, tag = member.split()
                await self._prints.forget(bytes.fromhex(number.decode()), tag)
                await self._script(scripts.READ, [base + b"gone"], ["SREM", member])
            for tenant, user, session_id in whose:
                if session_id is not None:
                    index = self._of(owner_of(tenant, user), b"sessions")
                    await self._script(scripts.READ, [index], ["ZREM", session_id])
            await self._credentials.unlist_swept(ended)
            gone += len(whose)
        return Receipt(nonce, count=gone, dropped=await self._prints.sweep(now, fingerprints))

    async def expired(self, *, now: int, limit: int, skip: int) -> Sequence[Due]:
        found: list[Due] = []
        for place in range(PLACES):
            base = place_prefix(self._prefix, place)
            (listed,) = await self._script(
                scripts.READ, [base + b"due"], ["ZRANGEBYSCORE", "-inf", now, "LIMIT", 0, skip + limit]
            )
            for digest in listed:
                (values,) = await self._script(
                    scripts.READ, [base + b"p:" + digest], ["HMGET", "tenant", "user", "id", "version"]
                )
                if values[2] is None:  # collected long ago
                    await self._script(scripts.FORGET, [base + b"due"], [digest])
                else:
                    found.append(Due(owner_of(values[0], values[1]), values[2].decode(), int(values[3])))
            if len(found) >= skip + limit:
                break
        return found[skip : skip + limit]

    async def owner_of(self, session_id: str) -> Owner | None:
        base = place_prefix(self._prefix, place_of(session_id))
        whose = base + b"w:" + sha1(session_id.encode(), usedforsecurity=False).hexdigest().encode()
        (digest,) = await self._script(scripts.READ, [whose], ["GET"])
        if digest is None:
            return None
        (values,) = await self._script(scripts.READ, [base + b"p:" + digest], ["HMGET", "tenant", "user"])
        return None if values[1] is None else owner_of(*values)

    async def tenanted(self) -> bool | None:
        (mark,) = await self._script(scripts.READ, [self._mark], ["GET"])
        # The mark outlives the last session: by itself it says nothing of who is there.
        return mark == b"named" if mark is not None and await self._has_sessions() else None

    async def all(self, *, after: bytes, limit: int) -> Batch:
        place, last = msgspec.msgpack.decode(after, type=tuple[int, str]) if after else (0, "")
        while place < PLACES:
            base = place_prefix(self._prefix, place)
            start = f"({last}" if last else "-"
            (listed,) = await self._script(
                scripts.READ, [base + b"all"], ["ZRANGEBYLEX", start, "+", "LIMIT", 0, limit]
            )
            found = [row for digest in listed if (row := await self._row(base, digest)) is not None]
            if listed:
                return Batch(found, msgspec.msgpack.encode((place, listed[-1].decode())))
            place, last = place + 1, ""
        return Batch((), b"")

    async def _row(self, base: bytes, digest: bytes) -> SealedSession | None:
        own = [base + kind + digest for kind in (b"p:", b"h:", b"i:", b"l:", b"r:")]
        keys = [*own, *(base + name for name in (b"due", b"over", b"all", b"w:", b"log", b"ends"))]
        _, plain, live, _ = await self._script(scripts.PAGE, keys, [0, -(1 << 40)])
        return session_of(plain, live)

    async def trail(self, *, after: bytes, limit: int) -> Trail:
        return await self._log.trail(after, limit)

    async def audit_tail(self, limit: int) -> Trail:
        return await self._log.tail(limit)

    async def prune_audit(self, upto: Heads, *, nonce: bytes) -> Receipt:
        return Receipt(nonce, count=await self._log.prune(upto))

    async def audit_owners(self) -> dict[str, Owner]:
        found: dict[str, Owner] = {}
        for address in await self._nodes.primaries():
            cursor = b"0"
            pattern = f"{_literal(self._prefix)}{{o:*}}:name"
            while True:
                cursor, keys = await self._plain(address, "SCAN", cursor, "MATCH", pattern, "COUNT", 1_000)
                for key in keys:
                    (values,) = await self._script(scripts.READ, [key], ["HMGET", "id", "salt", "tenant", "user"])
                    name, salt, tenant, user = values
                    if name is not None:
                        owner = owner_of(tenant, user)
                        if name.decode() == audit_id(owner, salt):  # an id given to another owner names nobody
                            found[name.decode()] = owner
                if cursor == b"0":
                    break
        return found

    async def _plain(self, address: Address, *command: str | bytes | int) -> Any:
        try:
            return await self._nodes.pool(address).run(lambda lent: lent.connection.plain(*command))
        except (OSError, RedisError) as error:
            raise ours(error, self.url) from error

    def heads(self) -> Heads:
        return {writer: head for pool in self._nodes.pools for writer, head in pool.heads().items()}

    async def distrust(self) -> None:
        for pool in self._nodes.pools:
            pool.distrust()

    # --- requests -----------------------------------------------------------------------------------------------------

    def _keys(self, owner: Owner, session_id: str) -> Keys:
        return Keys(self._prefix, owner, session_id)

    def _of(self, owner: Owner, name: bytes) -> bytes:
        digest = sha256(owner_fields(owner)).hexdigest()[:32]
        return f"{self._prefix}{{o:{digest}}}:".encode() + name

    @property
    def _mark(self) -> bytes:
        return f"{self._prefix}{{tenancy}}".encode()

    def _filed(self, owner: Owner, record: Record | None, keys: Keys) -> tuple[str, bytes, str | int, str, bytes]:
        if record is None:
            return "", b"", "", "", keys.records
        under = self._keys(owner, record.session)
        return record.key.hex(), _record(record), record.expires_at, under.digest, under.records

    async def _of_session(self, script: str, owner: Owner, session_id: str, *args: str | bytes | int) -> list[Any]:
        return await self._script(script, self._keys(owner, session_id).all, args)

    async def _script(self, script: str, keys: Sequence[bytes], args: Sequence[Any]) -> list[Any]:
        return await self._nodes.run(keys[0], lambda _, lent: lent.connection.run(script, keys, args))

    async def _write(
        self,
        script: str,
        keys: Sequence[bytes],
        args: Callable[[Sequence[bytes]], Sequence[Any]],
        events: Sequence[Event],
    ) -> list[Any]:
        """Run a script that puts *events* on record; its outcome, the first it says, is for the caller to judge."""
        names = {owner: await self._name(owner, introduce) for owner, introduce in named(events)}

        async def work(pool: Pool[Wire], lent: Lent[Wire]) -> list[Any]:
            chain, entries = lent.extend(events, lambda owner: names.get(owner, ""))
            wire = lent.connection
            said = await wire.run(script, keys, args([b"%d" % wire.moment, *map(_encode, entries)]))
            if said[0] == b"stored":
                wire.moment = int(said.pop(1))
            if said[0] in (b"stored", b"settled"):
                pool.confirm(lent, chain)
            if said[0] in (b"stored", b"repeated", b"settled") and self._wait:
                reached = await wire.plain("WAIT", self._wait, _REPLICAS_MS)
                if reached < self._wait:
                    raise StoreUnavailable(
                        f"only {reached} replicas of {self.url} have a write that was to reach {self._wait}; what "
                        "became of it is unknown, so send it again"
                    )
            return said

        return await self._nodes.run(keys[0], work)

    async def _store(
        self,
        script: str,
        session: SealedSession,
        keys: Keys,
        more: Sequence[bytes],
        args: Callable[[Sequence[bytes]], Sequence[Any]],
        events: Sequence[Event],
        fingerprints: Sequence[Fingerprint],
        charging: tuple[bytes | None, Sequence[Charge]],
    ) -> bytes:
        """Run a script that stores a turn, files its fingerprints and settles its charges with it.

        In a cluster fingerprints are filed before, to be undone, and charges settled after, which can be done again.
        """
        said = await self._prints.keys(fingerprints)
        lease, charges = charging
        if not self._nodes.clustered:
            also = self._prints.args(session, keys.number, said)
            if charges:
                script = scripts.CHARGED[script]
                more = [*more, *self._accounts.keys(session.owner)]
                also += self._accounts.args(lease, charges)
            known = [*keys.all, *more, *said]
            return bytes((await self._write(script, known, lambda packed: [*args(packed), *also], events))[0])
        undo = await self._prints.claim(session, keys.number, said)
        also = self._prints.args_apart(undo)
        outcome, *tags = await self._write(script, [*keys.all, *more], lambda packed: [*args(packed), *also], events)
        if tags:
            await self._prints.move(session, keys.number, tags[0], said)
        elif outcome != b"repeated":
            await self._prints.undo(undo)
        if charges and outcome in (b"stored", b"repeated"):
            await self._settle_charges(session.owner, lease, charges)
        return bytes(outcome)

    async def _name(self, owner: Owner, introduce: bool) -> str:
        """Give the name under which *owner* stands in the log, a new one where it may be introduced."""
        known, until = self._known.get(owner, ("", 0.0))
        if known and until > time.monotonic():
            return known
        salt = secrets.token_bytes(16)
        proposed = audit_id(owner, salt) if introduce else ""
        (name,) = await self._script(scripts.NAME, [self._of(owner, b"name")], [proposed, salt, *names(owner)])
        if name:
            if len(self._known) > _NAMES_AT_MOST:
                self._known.clear()
            self._known[owner] = name.decode(), time.monotonic() + _NAME_SECONDS
        return str(name.decode())

    async def _settle(self, owner: Owner) -> None:
        """See to it that users with and without tenants never lie side by side."""
        wanted, other = (b"none", b"named") if owner.tenant is None else (b"named", b"none")
        (mark,) = await self._script(scripts.SETTLE, [self._mark], [wanted, ""])
        if mark == wanted:
            return
        if await self._has_sessions():
            raise side_by_side(owner)
        (mark,) = await self._script(scripts.SETTLE, [self._mark], [wanted, other])
        if mark != wanted:
            raise side_by_side(owner)

    async def _has_sessions(self) -> bool:
        for place in range(PLACES):
            (there,) = await self._script(scripts.READ, [place_prefix(self._prefix, place) + b"all"], ["ZCARD"])
            if there:
                return True
        return False


def _receipt(outcome: bytes, nonce: bytes) -> Receipt:
    if outcome in _REFUSED:
        raise SessionConflict(_REFUSED[outcome])
    return Receipt(nonce, repeated=outcome == b"repeated")


def _literal(text: str) -> str:
    """Give *text* so that a pattern means it as it is."""
    return "".join(f"\\{one}" if one in "*?[]^\\" else one for one in text)


def _record(record: Record) -> bytes:
    return _encode((record.holder, record.sealed, record.expires_at))
