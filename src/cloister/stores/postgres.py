"""Sealed rows in PostgreSQL, behind row-level security: for several processes on several machines.

Each request is one call of a function of the schema (postgres.sql), which names the owner for its own transaction and
no longer: nothing is left on a connection, so a pooler in transaction mode may stand between. Every answer is one row
that brings the request's nonce back.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec

from cloister.audit import Entry, Event, Heads, audit_id, introduces
from cloister.errors import ConfigurationError, IntegrityError, SessionConflict, StoreError
from cloister.model import Owner, SealedItem, SealedSession
from cloister.sealing import tag
from cloister.stores.base import (
    LEASE,
    MOST_CLAIMS,
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
from cloister.stores.pool import Lent, Pool
from cloister.stores.postgres_schema import check, migrate
from cloister.stores.postgres_wire import OURS, Wire, connect, public, store_errors

T = TypeVar("T")

_CONNECTIONS = 10
_NAMES_AT_MOST = 10_000
_SEED = 500
_AT_ONCE = 5_000
"""How many entries are looked at in one request of those that drop old ones."""
_ROUNDS = 5
"""How often a request is made anew because somebody else's came in between, before that is an error."""
_json = msgspec.json.Encoder().encode


class _Count:
    """Be the values of an option that is a number."""

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str) and value.isdecimal() and 1 <= int(value) <= 1_000

    def __str__(self) -> str:
        return "a number from 1 to 1000"


class _Anything:
    """Be the values of an option that is the driver's."""

    def __contains__(self, value: object) -> bool:
        return True


def from_url(url: str) -> PostgresStore:
    """Give the store that ``postgresql://user@host/database`` names.

    Options: ``connections`` (10); behind a pooler ``pooler=1`` or, if it keeps prepared statements apart, ``pooler=0``;
    ``allow_old=1`` for a server that lacks security updates; every other one is the driver's.
    """
    given = dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))
    known: dict[str, Any] = {name: _Anything() for name in given if name not in OURS}
    options = options_of(url, {**known, "connections": _Count(), "allow_old": ("0", "1"), "pooler": ("0", "1")})
    return PostgresStore(
        _without(url, OURS),
        connections=int(options.get("connections", _CONNECTIONS)),
        allow_old=options.get("allow_old") == "1",
        pooler=options["pooler"] == "1" if "pooler" in options else None,
    )


def _without(url: str, names: Sequence[str]) -> str:
    parts = urlsplit(url)
    query = [(name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if name not in names]
    return urlunsplit(parts._replace(query=urlencode(query)))


def _names(owner: Owner) -> tuple[str, str]:
    return owner.tenant or "", owner.user


def _owner(tenant: Any, user: Any) -> Owner:
    try:
        return Owner(tenant or None, user)
    except ValueError:
        raise IntegrityError("a row of the store names no owner that could be one; see `cloister doctor`") from None


_SESSION_TYPES = (
    (str,), (str,), (str,), (int,), (int,), (int,), (int,), (int,), (int, type(None)), (bytes,), (bytes, type(None)),
    (bytes, type(None)), (bytes, type(None)), (str, type(None)), (int, type(None)),
)  # fmt: skip


def _session(row: Any) -> SealedSession | None:
    if row is None or row[2] is None:
        return None
    if len(row) != len(_SESSION_TYPES) or not all(map(isinstance, row, _SESSION_TYPES)):
        raise IntegrityError("a session's row in the store was changed; see the audit log")
    tenant, user, session, version, count, tokens, created, updated, expires, turn, wrapped, head, carry, ended, _ = row
    return SealedSession(
        owner=_owner(tenant, user),
        id=session,
        wrapped=wrapped,
        head=head,
        version=version,
        count=count,
        tokens=tokens,
        created_at=created,
        updated_at=updated,
        expires_at=expires,
        turn=turn,
        carry=carry,
        ended=ended,
    )


def _columns(session: SealedSession) -> tuple[object, ...]:
    return (
        *_names(session.owner),
        session.id,
        session.version,
        session.count,
        session.tokens,
        session.created_at,
        session.updated_at,
        session.expires_at,
        session.turn,
        session.wrapped,
        session.head,
        session.carry,
        session.ended,
        None,
    )


_CREDENTIAL_TYPES = ((bytes,), (str,), (str,), (str,), (str,), (int,), (int, type(None)), (bytes,))


def _credential(row: Any) -> SealedCredential | None:
    if row is None or row[0] is None:
        return None
    if len(row) != len(_CREDENTIAL_TYPES) or not all(map(isinstance, row, _CREDENTIAL_TYPES)):
        raise IntegrityError("a credential's row in the store was changed; see the audit log")
    digest, kind, tenant, user, credential_id, created_at, expires_at, sealed = row
    return SealedCredential(digest, kind, tenant or None, user or None, credential_id, created_at, expires_at, sealed)


def _credential_columns(one: SealedCredential) -> tuple[object, ...]:
    return one.digest, one.kind, one.tenant or "", one.user or "", one.id, one.created_at, one.expires_at, one.sealed


def _entry(row: Any) -> Entry:
    return Entry(*tuple(row)[1:-1])


def _items(row: Any) -> list[SealedItem]:
    columns = row["positions"], row["roles"], row["counts"], row["seals"]
    if columns[0] is None:
        return []
    try:
        return [SealedItem(*values) for values in zip(*columns, strict=True)]
    except (TypeError, ValueError):
        raise IntegrityError("an item's row in the store was changed; see the audit log") from None


def _tail(rows: list[SealedItem], budget: int) -> tuple[list[SealedItem], bytes]:
    """Give those of *rows*, newest first, up to the one that exceeds *budget*, oldest first, and the tag before."""
    for count, item in enumerate(rows):
        if budget < 0:
            return rows[:count][::-1], tag(item.sealed)
        budget -= item.tokens
    return rows[::-1], b""


def _unzipped(items: Sequence[SealedItem]) -> tuple[list[int], list[str], list[int], list[bytes]]:
    return (
        [item.position for item in items],
        [item.role for item in items],
        [item.tokens for item in items],
        [item.sealed for item in items],
    )


class PostgresStore:
    """Keep everything in the schema ``cloister`` of a database, which `cloister migrate` makes."""

    path = None
    volatile = False

    def __init__(
        self, url: str, *, connections: int = _CONNECTIONS, allow_old: bool = False, pooler: bool | None = None
    ) -> None:
        self.url = public(url)
        self._dsn = url
        self._allow_old = allow_old
        self._pooler = pooler
        self._size = connections
        updates = Off(
            "updates", "allow_old=1", "the server may lack those without which row-level security can be passed by"
        )
        self.off = (updates,) if allow_old else ()
        self._named: dict[Owner, str] = {}

    async def open(self) -> None:
        self._pool = Pool(self.wire, self.url, size=self._size)
        await self._run(self._check)

    async def migrate(
        self,
        app_role: str,
        operator_role: str | None,
        password: str | None = None,
        *,
        report: Callable[[str], None],
        keep: bool = True,
    ) -> None:
        """Make schema, roles and grants, as the owner whom the URL names; all or, without *keep*, nothing."""
        wire = await self.wire()
        try:
            with store_errors(self.url):
                await migrate(wire.driver, app_role, operator_role, report, password=password, keep=keep)
                await wire.close()
        finally:
            wire.abort()

    async def _check(self, lent: Lent[Wire]) -> None:
        driver = lent.connection.driver
        with store_errors(self.url):
            await check(driver, self.url, allow_old=self._allow_old)
            behind = await driver.fetchval("SELECT pg_backend_pid()") != driver.get_server_pid()
        if behind and self._pooler is None:
            # Statements prepared by two processes have the same names: one may be carried out for the other.
            raise ConfigurationError(
                f"{self.url} is a pooler: say ?pooler=1; or ?pooler=0 if it is known to keep every client's prepared "
                "statements apart, as PgBouncer does from 1.21 on with max_prepared_statements"
            )

    async def wire(self) -> Wire:
        """Open a connection apart from those that serve requests."""
        return await connect(self._dsn, pooler=self._pooler is True)

    async def close(self) -> None:
        await self._pool.close()

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
        args = (_columns(session), instead_of, *_unzipped(items))
        rest = (_claims(fingerprints), MOST_CLAIMS, _kept(record, replaces), _charged(charges), lease)
        row = await self._write("begin", args, entries, rest)
        for _ in range(_ROUNDS):
            if row["outcome"] == "unsettled":
                if not (await self._call("settle_anew", session.owner.tenant is not None))["settled"]:
                    raise side_by_side(session.owner)
            elif row["outcome"] != "again":
                break
            row = await self._write("begin", args, entries, rest)
        return _receipt(row["outcome"], nonce)

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
        args = session_id, budget, lease, LEASE.total_seconds(), record, _charged(charges)
        row = await self._call("load", *_names(owner), *args)
        if row["name"]:
            self._remember(owner, row["name"])
        if row["busy"]:
            return Loaded(nonce, busy=True)
        if row["over"]:
            return Loaded(nonce, over=charges[row["over"] - 1].account)
        session = _session(row["session"])
        kept = None
        if record is not None and row["holder"] is not None:
            kept = Record(session_id, row["holder"], record, row["kept"], row["kept_until"])
        if session is None or session.ended:
            return Loaded(nonce, session, record=kept)
        return Loaded(nonce, session, *_tail(_items(row), budget), kept)

    async def renew(self, owner: Owner, session_id: str, lease: bytes, *, nonce: bytes) -> Receipt:
        row = await self._call("renew", *_names(owner), session_id, lease, LEASE.total_seconds())
        if not row["held"]:
            raise SessionConflict("the lease on the session was lost; nothing was stored, so send it again")
        return Receipt(nonce)

    async def release(self, owner: Owner, session_id: str, lease: bytes, *, nonce: bytes) -> Receipt:
        await self._call("release", *_names(owner), session_id, lease)
        return Receipt(nonce)

    async def commit(self, commit: Commit, *, nonce: bytes) -> Receipt:
        session = commit.session
        check_charges(session.owner, commit.lease, commit.charges)
        args = (
            *_names(session.owner),
            session.id,
            commit.version,
            commit.lease,
            session.version,
            session.count,
            session.tokens,
            session.updated_at,
            session.expires_at,
            session.turn,
            session.head,
            *_unzipped(commit.items),
        )
        rest = (_claims(commit.fingerprints), MOST_CLAIMS, _kept(commit.record), _charged(commit.charges))
        return _receipt((await self._write("commit", args, commit.entries, rest))["outcome"], nonce)

    async def charge(self, owner: Owner, lease: bytes, charges: Sequence[Charge], *, nonce: bytes) -> Receipt:
        check_charges(owner, lease, charges)
        if not charges:
            return Receipt(nonce)
        reserving = any(charge.limit is not None for charge in charges)
        row = await self._call("charge", *_names(owner), lease, _charged(charges), reserving)
        return Receipt(nonce, over=charges[row["over"] - 1].account if row["over"] else None)

    async def spent(self, accounts: Sequence[Account], *, nonce: bytes) -> Spent:
        columns = [(account.tenant or "", account.user or "", account.period) for account in accounts]
        row = await self._call("spent", *([column[n] for column in columns] for n in range(3)))
        return Spent(nonce, row["amounts"])

    async def items(self, owner: Owner, session_id: str, *, nonce: bytes, first: int, limit: int) -> Page:
        start = max(first - 1, 0)
        row = await self._call("page", *_names(owner), session_id, start, limit + first - start)
        items = _items(row)
        before = items.pop(0).sealed[-16:] if first > 0 and items else b""
        return Page(nonce, _session(row["session"]), items, before)

    async def sessions(self, owner: Owner, *, nonce: bytes, limit: int, before: tuple[int, str] | None) -> Listing:
        at, known = before or (1 << 62, "")
        row = await self._call("listing", *_names(owner), limit, at, known)
        return Listing(nonce, [found for one in row["rows"] or () if (found := _session(one))])

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
        args = (*_names(owner), session_id, ended, now, version, lease)
        row = await self._write("finish", args, entries)
        return Receipt(nonce, count=int(row["outcome"] == "stored"))

    async def erase(self, owner: Owner, *, nonce: bytes, entries: Sequence[Event] = ()) -> Receipt:
        row = await self._write("erase", _names(owner), entries)
        self._named.pop(owner, None)
        return Receipt(nonce, count=row["gone"])

    async def rewrap(self, old: SealedSession, wrapped: bytes | None, carry: bytes | None, *, nonce: bytes) -> Receipt:
        row = await self._call("rewrap", *_names(old.owner), old.id, old.wrapped, old.carry, wrapped, carry)
        return Receipt(nonce, count=row["changed"])

    async def forget(self, owner: Owner, record: Record, *, nonce: bytes) -> Receipt:
        held = record.session, record.key, record.holder, record.sealed, record.trace is not None
        return Receipt(nonce, count=(await self._call("forget", *_names(owner), *held))["gone"])

    async def record(self, entries: Sequence[Event], *, nonce: bytes) -> Receipt:
        if entries:
            await self._write("record", (), entries)
        return Receipt(nonce)

    # --- credentials --------------------------------------------------------------------------------------------------

    async def enrol(self, credential: SealedCredential, *, nonce: bytes, entries: Sequence[Event] = ()) -> Receipt:
        row = await self._write("enrol", (_credential_columns(credential),), entries)
        return _receipt(row["outcome"], nonce)

    async def credential(self, digest: bytes, *, nonce: bytes) -> Found:
        return Found(nonce, _credential((await self._call("credential", digest))["found"]))

    async def credentials(
        self, tenant: str | None, kind: CredentialKind, *, nonce: bytes, limit: int, after: str = ""
    ) -> Enrolled:
        row = await self._call("credentials", tenant or "", kind, limit, after)
        return Enrolled(nonce, [found for one in row["rows"] or () if (found := _credential(one))])

    async def revoke(
        self,
        tenant: str | None,
        kind: CredentialKind,
        credential_id: str,
        *,
        nonce: bytes,
        entries: Sequence[Event] = (),
    ) -> Receipt:
        row = await self._write("revoke", (tenant or "", kind, credential_id, None), entries)
        return Receipt(nonce, count=row["gone"])

    async def revoke_all(self, owner: Owner, *, nonce: bytes, entries: Sequence[Event] = ()) -> Receipt:
        tenant, user = _names(owner)
        row = await self._write("revoke", (tenant, None, None, user), entries)
        return Receipt(nonce, count=row["gone"])

    async def every_credential(self, *, after: bytes, limit: int) -> CredentialBatch:
        rows = (await self._call("every_credential", after, limit))["rows"] or ()
        found = [credential for row in rows if (credential := _credential(row))]
        return CredentialBatch(found, found[-1].digest if found else b"")

    async def reseal(self, old: SealedCredential, sealed: bytes, *, nonce: bytes) -> Receipt:
        row = await self._call("reseal", _credential_columns(old), sealed)
        return Receipt(nonce, count=row["changed"])

    # --- across owners ------------------------------------------------------------------------------------------------

    async def claims(self, scope: str, digests: Sequence[bytes], *, now: int, nonce: bytes) -> Claims:
        row = await self._call("claims", scope, [_integer(digest) for digest in digests], now)
        found: dict[bytes, tuple[Owner, ...]] = {}
        for number, tenant, user in zip(row["digests"] or (), row["tenants"] or (), row["users"] or (), strict=True):
            digest = number.to_bytes(8, signed=True)
            found[digest] = () if user is None else (*found.get(digest, ()), _owner(tenant, user))
        return Claims(nonce, found, row["size"])

    async def seed(self, scope: str, digests: Sequence[bytes], *, nonce: bytes) -> Receipt:
        count = 0
        for first in range(0, len(digests), _SEED):
            some = [_integer(digest) for digest in digests[first : first + _SEED]]
            count += (await self._call("seed", scope, some))["made"]
        return Receipt(nonce, count=count)

    async def expired(self, *, now: int, limit: int, skip: int) -> Sequence[Due]:
        row = await self._call("expired", now, limit, skip)
        rows = zip(*(row[name] or () for name in ("tenants", "users", "sessions", "versions")), strict=True)
        return [Due(_owner(tenant, user), session, version) for tenant, user, session, version in rows]

    async def sweep(self, *, now: int, tombstones_before: int, fingerprints: int, nonce: bytes) -> Receipt:
        row = await self._call("sweep", now, tombstones_before, fingerprints)
        return Receipt(nonce, count=row["gone"], dropped=row["dropped"])

    async def owner_of(self, session_id: str) -> Owner | None:
        row = await self._call("owner_of", session_id)
        return None if row["user"] is None else _owner(row["tenant"], row["user"])

    async def tenanted(self) -> bool | None:
        found: bool | None = (await self._call("tenanted"))["tenanted"]
        return found

    async def all(self, *, after: bytes, limit: int) -> Batch:
        cursor = msgspec.msgpack.decode(after, type=tuple[str, str, str]) if after else ("", "", "")
        rows = (await self._call("every_session", *cursor, limit))["rows"] or ()
        found = [session for row in rows if (session := _session(row))]
        return Batch(found, msgspec.msgpack.encode(tuple(rows[-1][:3])) if rows else b"")

    async def trail(self, *, after: bytes, limit: int) -> Trail:
        place: tuple[str, str, str, int] = position(after, tuple[str, str, str, int], ("", "", "0", 0))
        found: list[Entry] = []
        while True:
            _, upto, *_ = place
            page = await self._call("audit_trail", *place, limit - len(found))
            rows: Sequence[Any] = page["rows"] or ()
            found += [_entry(row) for row in rows]
            if len(found) == limit:
                place = page["seen"], page["upto"], str(rows[-1]["tx"]), rows[-1]["id"]
                break
            place = page["upto"], "", "0", 0
            if not upto:  # up to the present
                break
        return Trail(found, msgspec.msgpack.encode(place))

    async def audit_tail(self, limit: int) -> Trail:
        page = await self._call("audit_tail", limit)
        return Trail(list(map(_entry, page["rows"] or ())), msgspec.msgpack.encode((page["upto"], "", "0", 0)))

    async def prune_audit(self, upto: Heads, *, nonce: bytes) -> Receipt:
        writers, numbers = list(upto), [number for number, _ in upto.values()]
        place, count, looked = ("0", 0), 0, _AT_ONCE
        while looked == _AT_ONCE:
            row = await self._call("audit_prune", writers, numbers, *place, _AT_ONCE)
            place, count, looked = (row["tx"], row["id"]), count + row["gone"], row["looked"]
        return Receipt(nonce, count=count)

    async def audit_owners(self) -> dict[str, Owner]:
        row = await self._call("audit_names")
        rows = zip(*(row[name] or () for name in ("ids", "salts", "tenants", "users")), strict=True)
        owners = [(named, salt, _owner(tenant, user)) for named, salt, tenant, user in rows]
        # An id that was given to another owner names nobody.
        return {named: owner for named, salt, owner in owners if named == audit_id(owner, salt)}

    def heads(self) -> Heads:
        return self._pool.heads()

    async def distrust(self) -> None:
        self._pool.distrust()

    # --- requests -----------------------------------------------------------------------------------------------------

    async def _run(self, work: Callable[[Lent[Wire]], Awaitable[T]]) -> T:
        return await self._pool.run(work)

    async def _call(self, function: str, *args: object) -> Any:
        return await self._run(lambda lent: lent.connection.call(function, *args))

    async def _write(
        self, function: str, args: Sequence[object], events: Sequence[Event], rest: Sequence[object] = ()
    ) -> Any:
        """Call a function that puts *events* on record; its outcome is for the caller to judge.

        The names of owners in the log are part of the hashed entries, so they are known before: those that this process
        knows, or new ones, which the function takes or answers with the ones that there are.
        """

        async def work(lent: Lent[Wire]) -> Any:
            proposed = self._propose(events)
            names = {owner: name for owner, name, _ in proposed}
            chain, entries = lent.extend(events, lambda owner: names.get(owner, ""))
            # A commit looks up its own owner's name by itself.
            plain = function == "commit" and [(_names(o), bool(name), s) for o, name, s in proposed] == [
                (args[:2], True, None)
            ]
            names_json = None if plain else _proposal(proposed)
            row = await lent.connection.call(
                function, *args, names_json, [name for _, name, _ in proposed], _written(entries), *rest
            )
            if row["outcome"] == "stored":
                self._pool.confirm(lent, chain)
                for owner, name in names.items():
                    self._remember(owner, name)
            elif row["outcome"] == "named":
                for (owner, _, _), name in zip(proposed, row["named"] or [""], strict=True):
                    self._remember(owner, name)
            return row

        for _ in range(_ROUNDS):
            row = await self._run(work)
            if row["outcome"] != "named":
                return row
        raise StoreError(f"{self.url} gives the owners in the log another name each time; nothing was stored")

    def _propose(self, events: Sequence[Event]) -> list[tuple[Owner, str, str | None]]:
        """Give, for each owner that *events* name, what it is called in the log and, if that is new, a salt."""
        proposed: dict[Owner, tuple[str, str | None]] = {}
        for noted in events:
            for owner, introduce in ((noted.owner, introduces(noted)), (noted.other, False)):
                if owner is None or proposed.get(owner, ("", None))[0]:
                    continue
                known = self._named.get(owner, "")
                if known or not introduce:
                    proposed[owner] = known, None
                else:
                    salt = secrets.token_bytes(16)
                    proposed[owner] = audit_id(owner, salt), salt.hex()
        return [(owner, name, salt) for owner, (name, salt) in proposed.items()]

    def _remember(self, owner: Owner, name: str) -> None:
        if not name:
            self._named.pop(owner, None)
            return
        if len(self._named) > _NAMES_AT_MOST:
            self._named.clear()
        self._named[owner] = name


_REFUSED = {
    "ended": "the session was ended or erased meanwhile; nothing was stored",
    "version": "the session changed meanwhile; nothing was stored, so send it again",
    "lease": "the lease on the session was lost; nothing was stored, so send it again",
    "record": "this idempotency key was answered meanwhile; send it again for the answer",
    "taken": "a session with this id exists already; nothing was stored",
    "credential": "a credential with this secret or under this name exists already; nothing was stored",
}


def _receipt(outcome: str, nonce: bytes) -> Receipt:
    if outcome in _REFUSED:
        raise SessionConflict(_REFUSED[outcome])
    if outcome not in ("stored", "repeated"):
        raise StoreError(f"the database could not make up its mind ({outcome}); nothing was stored, so try again")
    return Receipt(nonce, repeated=outcome == "repeated")


def _proposal(proposed: Sequence[tuple[Owner, str, str | None]]) -> str:
    rows = [{"tenant": o.tenant or "", "user": o.user, "id": name, "salt": salt} for o, name, salt in proposed]
    return _json(rows).decode()


def _written(entries: Sequence[Entry]) -> str:
    return _json(entries).decode()


def _claims(fingerprints: Sequence[Fingerprint]) -> str | None:
    if not fingerprints:
        return None
    return _json(
        [
            {"scope": one.scope, "digest": _integer(one.digest), "common": one.common, "unique": one.unique}
            for one in fingerprints
        ]
    ).decode()


def _charged(charges: Sequence[Charge]) -> str | None:
    if not charges:
        return None
    return _json(
        [
            {
                "place": place,
                "user": charge.account.user or "",
                "period": charge.account.period,
                "amount": charge.amount,
                "most": charge.limit,
                "until": charge.until,
            }
            for place, charge in enumerate(charges, 1)
        ]
    ).decode()


def _integer(digest: bytes) -> int:
    return int.from_bytes(digest, signed=True)


def _kept(record: Record | None, replaces: Record | None = None) -> str | None:
    if record is None:
        return None
    return _json(
        {
            "session": record.session,
            "key": base64.b64encode(record.key).decode(),
            "holder": record.holder,
            "sealed": base64.b64encode(record.sealed).decode(),
            "expires_at": record.expires_at,
            "seen": replaces
            and {
                "holder": replaces.holder,
                "sealed": base64.b64encode(replaces.sealed).decode(),
            },
        }
    ).decode()
