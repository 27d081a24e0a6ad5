"""What a store is: something that keeps sealed rows, names the owner in every call and echoes every request.

A store compares versions and leases and never opens anything. Its promises are written as tests in
`cloister.testing.StoreConformance`; a class that passes them is a store, whatever it inherits from.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Container, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol
from urllib.parse import parse_qsl, urlsplit

import msgspec

from cloister.audit import Entry, Event, Heads
from cloister.errors import ConfigurationError, SessionConflict
from cloister.model import Owner, SealedItem, SealedSession
from cloister.model import Record as Record

LEASE = timedelta(seconds=8)
"""How long a lease lives after it was taken or renewed, on the store's own clock."""
RENEW_EVERY = timedelta(seconds=2)
MOST_CLAIMS = 3
"""How many owners a fingerprint remembers; from one more on it is common knowledge."""
MOST_FINGERPRINTS = 4_000_000
"""How many fingerprints a store keeps; sweeping drops the oldest of more."""
MOST_CHARGED = 1 << 52
"""How much a charge or a limit can be: some four million of a currency, of which two still add up exactly in Redis."""
_PERIOD = re.compile(r"[0-9A-Za-z-]{1,32}")


class Off(NamedTuple):
    """Name a protection that an option of a store's URL switches off, and what is given up with it.

    A store that has such options lists those that were chosen as its ``off``: they are reported and put on record.
    """

    what: str
    option: str
    said: str


class Fingerprint(msgspec.Struct, frozen=True):
    """Be a keyed digest, of eight bytes, of something said in the session that it is committed with.

    It is a claim of that session's owner, or (``common``) what anybody may say. ``scope`` is the tenant, or empty for
    the whole deployment. A ``unique`` one is never common by the number of its owners: the fourth is not remembered.
    """

    scope: str
    digest: bytes
    common: bool = False
    unique: bool = False


class Account(msgspec.Struct, frozen=True):
    """Be whose spending is counted, and over which time: a user's, or with ``user`` None all users' of the tenant.

    Where there are no tenants, ``tenant`` is None. ``period`` names the time: ``"2026-11-21"``, ``"2026-11"``.
    """

    tenant: str | None
    user: str | None
    period: str


class Charge(msgspec.Struct, frozen=True):
    """Be what a turn takes from an account, in billionths of the currency's unit.

    When the turn begins, ``amount`` is reserved under its lease, unless the account would come beyond ``limit``: None
    only counts. When it is stored or given up, ``amount`` is what it came to, and takes the place of what was
    reserved. Past ``until``, in microseconds, the account can be swept.
    """

    account: Account
    amount: int
    limit: int | None
    until: int


CredentialKind = Literal["tenant", "key", "operator", "token"]


class SealedCredential(msgspec.Struct, frozen=True):
    """Be what is kept of a secret by which somebody is known, and found by its ``digest``.

    ``id`` is its public name, which no other of that tenant and kind has. Whose it is stands in the clear columns:
    ``tenant`` None is the deployment's own, ``user`` None all of the tenant's. Past ``expires_at`` it can be swept.
    Whoever opens ``sealed`` finds out whether any of that was changed.
    """

    digest: bytes
    kind: CredentialKind
    tenant: str | None
    user: str | None
    id: str
    created_at: int
    expires_at: int | None
    sealed: bytes


class Commit(msgspec.Struct, frozen=True):
    """Be everything that a turn changes, to be stored together or not at all.

    It applies to the session at version ``version`` while ``lease`` is held, or, if ``session.turn`` is what the
    session already carries, has been applied and answers so. ``charges`` are settled with it, see `Store.charge`.
    """

    version: int
    lease: bytes
    session: SealedSession
    items: Sequence[SealedItem] = ()
    entries: Sequence[Event] = ()
    fingerprints: Sequence[Fingerprint] = ()
    record: Record | None = None
    charges: Sequence[Charge] = ()


class Receipt(msgspec.Struct, frozen=True):
    """Say that a request was carried out. ``repeated``: it had been before. ``count``: how many rows it concerned.

    ``dropped``: how many fingerprints went because there were too many. ``over``: the account that would have come
    beyond its limit, for which nothing was reserved.
    """

    echo: bytes
    repeated: bool = False
    count: int = 0
    dropped: int = 0
    over: Account | None = None


class Loaded(msgspec.Struct, frozen=True):
    """Be what a turn starts from.

    ``session`` is None if this owner has no such session. ``items`` are its newest, oldest of them first, up to and
    with the one at which their tokens exceed the budget, so that whoever opens them sees that none was held back.
    ``before`` is the tag of the one before them (empty at the beginning). ``busy``: the lease is somebody else's, and
    nothing else was read. ``over``: this account would come beyond its limit; nothing else was read either.
    """

    echo: bytes
    session: SealedSession | None = None
    items: Sequence[SealedItem] = ()
    before: bytes = b""
    record: Record | None = None
    busy: bool = False
    over: Account | None = None


class Spent(msgspec.Struct, frozen=True):
    """Be what accounts stand at, in the order in which they were asked for: what was spent, and what is reserved."""

    echo: bytes
    amounts: Sequence[int] = ()


class Page(msgspec.Struct, frozen=True):
    """Be consecutive items of a session, oldest first, and the tag of the one before them."""

    echo: bytes
    session: SealedSession | None = None
    items: Sequence[SealedItem] = ()
    before: bytes = b""


class Listing(msgspec.Struct, frozen=True):
    """Be some of an owner's live sessions, newest first."""

    echo: bytes
    sessions: Sequence[SealedSession] = ()


class Found(msgspec.Struct, frozen=True):
    """Be the credential of a digest, or None if there is none."""

    echo: bytes
    credential: SealedCredential | None = None


class Enrolled(msgspec.Struct, frozen=True):
    """Be some of a tenant's credentials of one kind, in the order of their ids."""

    echo: bytes
    credentials: Sequence[SealedCredential] = ()


class CredentialBatch(msgspec.Struct, frozen=True):
    """Be credentials of any tenants, and where to go on: empty if there are no more."""

    credentials: Sequence[SealedCredential]
    after: bytes


class Batch(msgspec.Struct, frozen=True):
    """Be sessions of any owners, about as many as were asked for, and where to go on: empty if there are no more."""

    sessions: Sequence[SealedSession]
    after: bytes


class Due(msgspec.Struct, frozen=True):
    """Name a session whose time is up."""

    owner: Owner
    id: str
    version: int


class Trail(msgspec.Struct, frozen=True):
    """Be consecutive audit entries in the order in which they lie, and where to go on."""

    entries: Sequence[Entry]
    after: bytes


class Claims(msgspec.Struct, frozen=True):
    """Be the owners of the fingerprints that were asked for and are known; no owner at all means common knowledge.

    ``size`` is about how many fingerprints the store has in all; of that scope alone, where scopes lie apart.
    """

    echo: bytes
    owners: dict[bytes, tuple[Owner, ...]]
    size: int = 0


def check_charges(owner: Owner, lease: bytes | None, charges: Sequence[Charge]) -> None:
    """Raise `ValueError` unless *charges* are for different accounts of *owner* or their tenant, under a lease.

    It is for stores to call, before they do anything; they keep a period beside other words in one text.
    """
    if charges and not lease:
        raise ValueError("charges are reserved and settled under a lease: name it")
    for charge in charges:
        account = charge.account
        if account.tenant != owner.tenant or account.user not in (None, owner.user):
            raise ValueError("a turn is charged to its owner's account, or to that of the owner's tenant")
        if not _PERIOD.fullmatch(account.period):
            raise ValueError("a period is named by up to 32 digits, letters and hyphens")
        for number in (charge.amount, charge.limit or 0, charge.until):
            if not 0 <= number <= MOST_CHARGED:
                raise ValueError(f"the numbers of a charge are from 0 to {MOST_CHARGED}")
    if len(charges) > 1 and len({charge.account for charge in charges}) < len(charges):
        raise ValueError("a turn is charged to an account once")


def check_new(credential: SealedCredential, known: Sequence[SealedCredential]) -> bool:
    """Say whether none is *known* of *credential*'s digest or id; `SessionConflict` for one that is not the same."""
    if any(msgspec.structs.replace(one, sealed=credential.sealed) != credential for one in known):
        raise SessionConflict("a credential with this secret or under this name exists already; nothing was stored")
    return not known


def side_by_side(owner: Owner) -> ConfigurationError:
    """Say that *owner* cannot be filed beside those who are there."""
    if owner.tenant is None:
        return ConfigurationError(
            "this store has sessions of tenants meanwhile, beside which no user without a tenant is filed: open it "
            'with tenancy="required" and name the tenant'
        )
    return ConfigurationError(
        "this store has sessions of users without a tenant, who could not be reached beside tenants: name another "
        "store, or erase those users first"
    )


class Number:
    """Be the values of an option that is a number."""

    def __init__(self, least: int, most: int) -> None:
        self.least, self.most = least, most

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str) and value.isdecimal() and self.least <= int(value) <= self.most

    def __str__(self) -> str:
        return f"a number from {self.least} to {self.most}"


def options_of(url: str, known: Mapping[str, Container[str]]) -> dict[str, str]:
    """Read the options behind the ``?`` of a URL; `ConfigurationError` for one that is not *known*, or its value."""
    parts = urlsplit(url)
    # A plus is a plus, as in redis+cluster://, and no space: this is no form that a browser sent.
    options = dict(parse_qsl(parts.query.replace("+", "%2B"), keep_blank_values=True))
    for name, value in options.items():
        if name not in known:
            has = "it has " + ", ".join(known) if known else "it has none"
            raise ConfigurationError(f"{parts.scheme}:// has no option {name!r}; {has}")
        if value not in known[name]:
            allowed = known[name]
            which = f"one of {', '.join(allowed)}" if isinstance(allowed, tuple) else str(allowed)
            raise ConfigurationError(f"the option {name!r} of {parts.scheme}:// is {which}")
    return options


class Store(Protocol):
    """Keep sealed sessions and their items. Every call names the owner and a nonce, which the answer echoes.

    Calls about all owners, for housekeeping and the log, take no nonce: over a network the store adds and checks its
    own, there as everywhere, and cuts the connection on which another answer came.

    Absence is an answer, faults are errors: `StoreUnavailable` where the store cannot be reached, is locked, full or
    read-only, `StoreError` for any other.
    """

    @property
    def url(self) -> str:
        """Say where the rows lie, without secrets, for messages and `doctor`."""
        ...

    @property
    def path(self) -> Path | None:
        """Name the file of an embedded store, beside which its keys may lie."""
        ...

    @property
    def volatile(self) -> bool:
        """Say whether everything is gone when the process ends."""
        ...

    async def open(self) -> None: ...

    async def close(self) -> None: ...

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
        """Keep a new session; `SessionConflict` if its id is taken, unless by the same turn, which has been stored.

        `ConfigurationError` if its owner has a tenant and other sessions' owners have none, or the other way round: the
        store, and not whoever opened it, sees to it that the two never lie side by side.

        With *instead_of*, only while the owner still has that session, or a tombstone that does not say ``"ended"``:
        otherwise it was ended or erased. `SessionConflict` also if there is a record under that key already, or the
        trace of one; but for *replaces*, which whoever asks has seen there: *record* takes its place, or its trace's.
        Ids of *instead_of* and of the session of *record* begin with the same byte as the new one
        (`sessions.place_of`).

        *charges* are settled with it: what was reserved for them under *lease*, the old session's or one of its own.
        """
        ...

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
        """Read a session, the record kept under the digest *record*, and its newest items.

        The items go back until their tokens exceed *budget*: the one that does is the oldest of them. With *lease*,
        take that lease first; if another holds it, say ``busy``. No lease is left behind for a session that this owner
        does not have or that has ended.

        *charges* are for whoever takes a lease: if none of their accounts comes beyond its limit, all of them are
        reserved under it, together with it, and whatever others reserve at that moment. Otherwise nothing is, no lease
        is taken, and ``over`` names the first that would. Nothing is reserved where there is no turn to come: where the
        session is absent, has ended or is busy, or the record is there. What was reserved stays so until it is settled:
        releasing the lease, or dying, does not give it back.
        """
        ...

    async def renew(self, owner: Owner, session_id: str, lease: bytes, *, nonce: bytes) -> Receipt:
        """Let *lease* live for another `LEASE`; `SessionConflict` if it is no longer held."""
        ...

    async def release(self, owner: Owner, session_id: str, lease: bytes, *, nonce: bytes) -> Receipt:
        """Give *lease* back, if it is still held."""
        ...

    async def commit(self, commit: Commit, *, nonce: bytes) -> Receipt:
        """Store all of *commit* at once and release its lease, or raise `SessionConflict` and store nothing."""
        ...

    async def charge(self, owner: Owner, lease: bytes, charges: Sequence[Charge], *, nonce: bytes) -> Receipt:
        """Reserve *charges* under *lease* as `load` does, if any of them has a limit; settle them if none has.

        The one is for a turn whose session is not there yet, the other for one that failed. Reserving the same again
        changes nothing; another amount takes the place of the first. To settle is to put what a turn came to in the
        place of what is reserved under its lease, whatever the limit. It happens once, here or with the commit: where
        nothing is reserved under that lease, because it was settled before, or the account was erased or swept
        meanwhile, or because it never was, the account stays as it is. So a late duplicate counts nothing twice, and
        brings nothing back. What shall only be counted is reserved here with a limit that is out of reach.
        """
        ...

    async def spent(self, accounts: Sequence[Account], *, nonce: bytes) -> Spent:
        """Say what *accounts* stand at; one that is not there stands at 0."""
        ...

    async def items(self, owner: Owner, session_id: str, *, nonce: bytes, first: int, limit: int) -> Page:
        """Read a session and up to *limit* of its items from position *first* on."""
        ...

    async def sessions(self, owner: Owner, *, nonce: bytes, limit: int, before: tuple[int, str] | None) -> Listing:
        """List live sessions of *owner*, latest created first, those below (``created_at``, id) *before*."""
        ...

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
        """Destroy a session's secret, head and items at once and leave a tombstone that says *ended*.

        The carried system text stays only if *ended* is ``"expired"``; a tombstone that says so can still be ended.
        With *version*, only if the session is still at that version and nobody but *lease* works on it. ``count`` is 0
        if there was nothing to end.
        """
        ...

    async def erase(self, owner: Owner, *, nonce: bytes, entries: Sequence[Event] = ()) -> Receipt:
        """Destroy everything of *owner*, tombstones, fingerprints, accounts and audit mapping too; entries go first.

        ``count`` is the number of sessions that there were. The owner's credentials go too. The tenant's accounts, and
        what lets in the tenant as a whole, stay as they are.
        """
        ...

    async def forget(self, owner: Owner, record: Record, *, nonce: bytes) -> Receipt:
        """Leave of *record* its trace, if it has one, for as long as it would have been there itself.

        ``count`` is 0 if *record* is not, or no longer, what is filed there: then nothing changes.
        """
        ...

    async def record(self, entries: Sequence[Event], *, nonce: bytes) -> Receipt:
        """Put *entries* on record by themselves."""
        ...

    async def claims(self, scope: str, digests: Sequence[bytes], *, now: int, nonce: bytes) -> Claims:
        """Say whose the fingerprints *digests* are.

        A claim lives as long as the session that made it: while that has not ended and its time is not up at *now*. An
        owner has one claim at most to a fingerprint, which the latest session to say it holds. Whether three others
        have one already, and a fourth makes it common, is looked at as of ``updated_at`` of the session committed.
        """
        ...

    async def seed(self, scope: str, digests: Sequence[bytes], *, nonce: bytes) -> Receipt:
        """Make *digests* common knowledge of *scope*, whoever claimed them; ``count`` is how many were not yet."""
        ...

    async def sweep(self, *, now: int, tombstones_before: int, fingerprints: int, nonce: bytes) -> Receipt:
        """Remove older tombstones, records, accounts and credentials that have expired, claims whose session is over.

        Of more than *fingerprints* the oldest go too, common ones last: the receipt's ``dropped`` says how many.
        """
        ...

    async def expired(self, *, now: int, limit: int, skip: int) -> Sequence[Due]:
        """Name live sessions, of all owners, whose time is up by their clear columns, but for the first *skip*."""
        ...

    async def owner_of(self, session_id: str) -> Owner | None:
        """Say whose session this is, for the audit log alone: the answer never reaches a caller."""
        ...

    async def tenanted(self) -> bool | None:
        """Say whether any session belongs to a named tenant; None if there is no session yet."""
        ...

    async def all(self, *, after: bytes, limit: int) -> Batch:
        """Read some sessions and tombstones of all owners, for rotation and copies: from the beginning, or *after*.

        Each that is there all the time comes once; one that comes or goes meanwhile may be missed.
        """
        ...

    async def rewrap(self, old: SealedSession, wrapped: bytes | None, carry: bytes | None, *, nonce: bytes) -> Receipt:
        """Replace wrapped secret and carried text if they still are those of *old*; ``count`` is 0 if not."""
        ...

    async def enrol(self, credential: SealedCredential, *, nonce: bytes, entries: Sequence[Event] = ()) -> Receipt:
        """Keep a new credential; `SessionConflict` if its digest, or its id in its tenant and kind, is taken.

        Of one that is there already, however it is sealed, the receipt says ``repeated``, and nothing changes.
        """
        ...

    async def credential(self, digest: bytes, *, nonce: bytes) -> Found:
        """Find the credential of *digest*, even if its time is up and it was not swept yet."""
        ...

    async def credentials(
        self, tenant: str | None, kind: CredentialKind, *, nonce: bytes, limit: int, after: str = ""
    ) -> Enrolled:
        """List credentials of one tenant and kind, in the order of their ids, those behind the id *after*."""
        ...

    async def revoke(
        self,
        tenant: str | None,
        kind: CredentialKind,
        credential_id: str,
        *,
        nonce: bytes,
        entries: Sequence[Event] = (),
    ) -> Receipt:
        """Destroy a credential at once; ``count`` is 0 if there was none, and then no entry is put on record either."""
        ...

    async def revoke_all(self, owner: Owner, *, nonce: bytes, entries: Sequence[Event] = ()) -> Receipt:
        """Destroy every credential of *owner*, of any kind; ``count`` and *entries* as with `revoke`."""
        ...

    async def every_credential(self, *, after: bytes, limit: int) -> CredentialBatch:
        """Read some credentials of all tenants, for rotation and copies; see `all`."""
        ...

    async def reseal(self, old: SealedCredential, sealed: bytes, *, nonce: bytes) -> Receipt:
        """Replace what is sealed of a credential if it still is what *old* has; ``count`` is 0 if not."""
        ...

    async def trail(self, *, after: bytes, limit: int) -> Trail:
        """Give up to *limit* audit entries behind *after*, or from the beginning where that is empty.

        Whoever goes on from `Trail.after`, at any later time and in any process, is given every entry that was
        committed meanwhile, each at least once and those of one writer in the order of its writing; however late a
        transaction commits that began early. Fewer entries than *limit* mean that there were no more for now.
        """
        ...

    async def prune_audit(self, upto: Heads, *, nonce: bytes) -> Receipt:
        """Drop the entries of each writer up to the number that *upto* names; ``count`` is how many went.

        However it is broken off, what is left of a writer's entries has no gap. Positions in the log stay good.
        """
        ...

    async def audit_owners(self) -> dict[str, Owner]:
        """Say which owner each audit id stands for; erased owners are not among them."""
        ...

    async def audit_tail(self, limit: int) -> Trail:
        """Give the last *limit* audit entries, oldest first, and the end of the log, where `trail` goes on."""
        ...

    def heads(self) -> Heads:
        """Say how far the writers of this process have come."""
        ...

    async def distrust(self) -> None:
        """Drop every connection: an answer on one of them was not what was asked for."""
        ...


_PAGE = 5_000


async def pages(store: Store) -> AsyncIterator[Sequence[Entry]]:
    """Give all audit entries of *store* that there are now, many at a time."""
    page = await store.trail(after=b"", limit=_PAGE)
    yield page.entries
    while len(page.entries) == _PAGE:
        page = await store.trail(after=page.after, limit=_PAGE)
        yield page.entries


async def every_entry(store: Store) -> AsyncIterator[Entry]:
    """Give all audit entries of *store* that there are now, one after the other."""
    async for some in pages(store):
        for entry in some:
            yield entry


def position(after: bytes, form: Any, first: Any) -> Any:
    """Read where somebody stopped in the log, *first* if that is nowhere yet."""
    if not after:
        return first
    try:
        return msgspec.msgpack.decode(after, type=form)
    except msgspec.MsgspecError:
        raise ConfigurationError(
            "this position in the audit log is one of another store: begin anew, without a position"
        ) from None
