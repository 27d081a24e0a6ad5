"""Where rules and store meet: opens what the store gives, and seals what goes out.

Every answer is checked for its echo, its owner, its place in the chain and its age before anybody sees it. A session's
secret lives in an `Opened` value, for as long as one turn takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any, Protocol

from msgspec.structs import replace

from cloister import sessions
from cloister.attempts import Attempts
from cloister.audit import Event
from cloister.channel import Settlement
from cloister.errors import (
    IntegrityError,
    SessionConflict,
    SessionExpired,
    SessionNotFound,
    StoreError,
)
from cloister.leases import Leasing
from cloister.model import (
    Head,
    Item,
    Limits,
    Owner,
    Record,
    SealedItem,
    SealedSession,
    SystemNote,
    Used,
    to_micros,
)
from cloister.opened import Opened
from cloister.sealing import MasterKeys, SessionKeys, TenantKeys, new_secret, tag, wrap_context
from cloister.stores.base import Charge, Commit, Due, Fingerprint, Loaded, Page, Store

_log = logging.getLogger("cloister")

_SEEN_AT_MOST = 65_536
_FAILURES_AT_MOST = 10_000
_Seen = tuple[int, bytes, int]  # version, turn, and the moment at which it was seen
_GONE = 1 << 62  # the version of a session that was destroyed: no other is newer


class Handle(Protocol):
    """Names a session: whose it is, and the id that the application holds at this moment."""

    @property
    def owner(self) -> Owner: ...

    @property
    def id(self) -> str: ...


Again = Callable[[Head], bytes]
"""Says under which digest the last turn of a session lies, if it was the request that is made now."""

Recorder = Callable[[Opened, Head, str], Record]
"""Makes an idempotency record, for a session, the head that it will have, and what the application will hold."""


class Vault(Leasing):
    """Keep sealed sessions in a store, for owners that every call names."""

    carries = False
    """What the application holds is no id, but a token that carries the session."""

    def __init__(
        self,
        store: Store,
        keys: MasterKeys,
        clock: Callable[[], datetime],
        limits: Limits,
        attempts: Attempts | None = None,
    ) -> None:
        super().__init__(store, clock, attempts, limits.turn_wait)
        self.keys = keys
        self.limits = limits
        self._seen: OrderedDict[tuple[Owner, str], _Seen] = OrderedDict()
        self.moment = 0
        """Counts what this process has seen; taken before a request, it says what the answer must not be older than."""
        self._failures: dict[tuple[Owner, str], int] = {}

    async def _not_opened(self, error: IntegrityError, owner: Owner, session_id: str) -> None:
        """Take note that a session does not open; one that does not twice running is in quarantine until it does.

        The first failure drops the connection that may have brought another's bytes. What fails over a new one as well
        is no crossed answer, but damaged or changed where it lies: somebody has to look at the store.
        """
        key = owner, session_id
        failures = self._failures.get(key, 0)
        await self.alarm(error, owner, session_id)
        self._failures[key] = failures + 1
        if failures == 1:
            noted = self.event("session.quarantined", owner, session_id)
            with contextlib.suppress(StoreError):  # the failure itself is what the caller is told
                await self.ask(self.store.record, [noted])
        if failures:
            error.add_note("over a second connection too: the session is in quarantine, see `session.quarantined`")
        if len(self._failures) > _FAILURES_AT_MOST:
            del self._failures[next(iter(self._failures))]

    # --- opening ------------------------------------------------------------------------------------------------------

    async def look(self, owner: Owner, session_id: str, *, named_by_record: bool = False) -> Opened | SealedSession:
        """Open a session without working on it, or give its tombstone; `SessionNotFound` if there is neither.

        One that only a record of the store's names, and not the caller, must be there: `IntegrityError`.
        """
        self.admit(owner)
        since = self.moment
        loaded = await self.ask(self.store.load, owner, session_id, budget=0)
        if loaded.session is None and named_by_record:
            raise IntegrityError("an idempotency record names a session that its owner does not have")
        row = await self._present(owner, session_id, loaded)
        return row if row.ended else await self._open(row, loaded, owner, session_id, budget=0, since=since)

    async def newest(self, session: Handle, budget: int) -> Opened:
        """Open a session without working on it, with as many of its newest items as *budget* tokens hold.

        Raises `SessionExpired` if it is over.
        """
        owner, session_id, since = session.owner, session.id, self.moment
        self.admit(owner)
        loaded = await self.ask(self.store.load, owner, session_id, budget=budget)
        row = await self._present(owner, session_id, loaded)
        if row.ended:
            raise SessionExpired(row.ended)
        opened = await self._open(row, loaded, owner, session_id, budget=budget, since=since)
        try:
            sessions.check_alive(opened.head, self.now())
        except SessionExpired:
            await self.expire(opened)
            raise
        return opened

    async def check_id(self, owner: Owner, session_id: object) -> str:
        """Give *session_id* back if it has the shape of one; else refuse it as any other that is not the owner's."""
        self.admit(owner)
        try:
            return sessions.check_id(session_id)
        except SessionNotFound:
            await self.refuse(owner, None)

    @contextlib.asynccontextmanager
    async def work(
        self,
        session: Handle,
        *,
        budget: int = 0,
        record: bytes | None = None,
        again: Again | None = None,
        lease: bytes | None = None,
        charges: Sequence[Charge] = (),
    ) -> AsyncIterator[Opened | Loaded]:
        """Work on a session alone, over all processes, with as many of its newest items as *budget* tokens hold.

        The record under the digest *record* comes along, or the one that *again* names once the session is known.

        Gives what was loaded instead where the session is over: a tombstone; or where *charges*, which are reserved
        under *lease*, would take an account beyond its limit. Raises `SessionBusy` after
        ``Limits.turn_wait``. The lease is renewed inside the block and given back on every way out.
        """
        self.admit(owner := session.owner)
        session_id, lease = session.id, lease or secrets.token_bytes(16)
        waiting_since = time.perf_counter()
        async with self.queue.alone(owner, session_id) as deadline:
            since = self.moment
            wanted = {"budget": budget, "record": record, **({"charges": charges} if charges else {})}
            loaded = await self.leased(owner, session_id, lease, deadline, waiting_since, **wanted)
            try:
                if loaded.over is not None:
                    yield loaded
                    return
                row = await self._present(owner, session_id, loaded)
                if row.ended:
                    yield loaded
                    return
                opened = await self._open(row, loaded, owner, session_id, budget=budget, since=since)
                opened.lease = lease
                if again is not None and opened.record is None:
                    opened.record = await self.filed(owner, session_id, again(opened.head))
                with self.leases.kept(lease, owner, session_id):
                    yield opened
                lease = opened.lease
            finally:
                if lease and loaded.session is not None and not loaded.session.ended:
                    await self.let_go(owner, session_id, lease)

    async def filed(self, owner: Owner, session_id: str, digest: bytes) -> Record | None:
        """Give the record that is filed under *digest* in that place, whether or not there is a session."""
        return (await self.ask(self.store.load, owner, session_id, budget=0, record=digest)).record

    async def holds(self, owner: Owner, session_id: str) -> bool:
        """Say whether *owner* has that session, or its tombstone; to ask is no attempt."""
        return (await self.ask(self.store.load, owner, session_id, budget=0)).session is not None

    async def forget(self, owner: Owner, record: Record) -> None:
        """Let go of that answer, to the end even if the caller is cancelled."""
        await self._finish(self.ask(self.store.forget, owner, record))

    async def _present(self, owner: Owner, session_id: str, loaded: Loaded | Page) -> SealedSession:
        if loaded.session is None:
            await self.refuse(owner, session_id)
        row = loaded.session
        over = row.ended in ("expired", "ended") and row.wrapped is None and row.head is None
        if row.owner != owner or row.id != session_id or not (over or row.ended is None):
            error = IntegrityError("the store returned another session than the one it was asked for")
            await self.alarm(error, owner, session_id)
            raise error
        return row

    async def _open(
        self, row: SealedSession, loaded: Loaded, owner: Owner, session_id: str, *, budget: int, since: int
    ) -> Opened:
        try:
            opened = await self._unseal(row, owner, session_id)
            items = opened.keys.open_items(loaded.items, loaded.before, opened.head.last_tag)
            beyond = sum([item.tokens for item in items]) > budget
            if not beyond and len(items) != opened.head.count:
                raise IntegrityError("the store left out items of a session")
            opened.items = items[1:] if beyond else items
            self._check_age(opened, since)
        except IntegrityError as error:
            await self._not_opened(error, owner, session_id)
            raise
        self._failures.pop((owner, session_id), None)
        opened.record = loaded.record
        return opened

    async def open_row(self, row: SealedSession, owner: Owner, since: int) -> Opened:
        """Open a session that the store listed for *owner*, without its items."""
        try:
            opened = await self._unseal(row, owner, row.id)
            self._check_age(opened, since)
        except IntegrityError as error:
            await self._not_opened(error, owner, row.id)
            raise
        self._failures.pop((owner, row.id), None)
        return opened

    async def _unseal(self, row: SealedSession, owner: Owner, session_id: str) -> Opened:
        if row.owner != owner or row.id != session_id or row.wrapped is None or row.head is None:
            raise IntegrityError("the store returned another session than the one it was asked for")
        # No variable holds the secret: what reports errors may send variables along.
        keys = SessionKeys(await self.keys.unwrap(row.wrapped, wrap_context(owner, session_id)), owner, session_id)
        head = keys.open_head(row.head)
        sessions.check(row, head, owner, session_id)
        opened = Opened(owner, session_id, keys, row, head)
        if head.system is not None:
            text = await self.system_of(row)
            if text is None or not hmac.compare_digest(_digest(text), head.system.digest):
                raise IntegrityError("the system text beside a session is not the one that it was started with")
            if 0 not in head.hidden:
                opened.system = Item("system", text, tokens=head.system.tokens, counter=head.system.counter)
        return opened

    async def system_of(self, row: SealedSession) -> str | None:
        """Open the system text that a session, or its tombstone, carries."""
        if row.carry is None:
            raise IntegrityError("the store lost the system text that a session carries")
        keys = await TenantKeys.derive(self.keys, row.owner, "system text")
        plain = keys.open(row.owner, row.id, row.carry)
        return plain[1:].decode() if plain else None

    async def carry(self, owner: Owner, session_id: str, system: str | None) -> bytes:
        """Seal the system text, or that there is none: else a tombstone could lose it and nobody would know."""
        keys = await TenantKeys.derive(self.keys, owner, "system text")
        return keys.seal(owner, session_id, b"" if system is None else b"\x01" + system.encode())

    def _check_age(self, opened: Opened, since: int) -> None:
        """Refuse a session older than this process had seen it when it asked, or another one of the same version."""
        version, turn, at = self._seen.get((opened.owner, opened.id), (0, b"", 0))
        now = opened.head.version, opened.head.turn
        if version and at <= since and (now[0] < version or (now[0] == version and now[1] != turn)):
            raise IntegrityError("the store returned an older state of a session than this process has seen")
        self._remember(opened.owner, opened.id, *now)

    def _remember(self, owner: Owner, session_id: str, version: int, turn: bytes) -> None:
        key = owner, session_id
        if version >= self._seen.get(key, (0, b"", 0))[0]:
            self.moment += 1
            self._seen[key] = version, turn, self.moment
            self._seen.move_to_end(key)
        if len(self._seen) > _SEEN_AT_MOST:
            self._seen.popitem(last=False)

    async def end(self, owner: Owner, session_id: str, ended: str, entries: Sequence[Event], **only: Any) -> int:
        """Destroy a session, and remember that it is gone; give 0 if there was none to end."""
        now = to_micros(self.now())
        options = {"ended": ended, "now": now, "entries": entries, **only}
        receipt = await self.ask(self.store.end, owner, session_id, **options)
        if receipt.count:
            self._remember(owner, session_id, _GONE, b"")
            self._failures.pop((owner, session_id), None)
        return receipt.count

    async def erase(self, owner: Owner, entries: Sequence[Event]) -> int:
        """Destroy everything of *owner*, and remember that it is gone; give how many sessions there were."""
        receipt = await self.ask(self.store.erase, owner, entries=entries)
        for whose, session_id in [key for key in self._seen if key[0] == owner]:
            self._remember(whose, session_id, _GONE, b"")
        for key in [key for key in self._failures if key[0] == owner]:
            del self._failures[key]
        return receipt.count

    async def history(self, session: Handle, first: int, limit: int) -> tuple[Head, int, list[Item]]:
        """Open up to *limit* items from position *first* on; `SessionExpired` if the session is over.

        Gives the head, the position of the first item, and the items.
        """
        owner, session_id, since = session.owner, session.id, self.moment
        self.admit(owner)
        page = await self.ask(self.store.items, owner, session_id, first=first, limit=limit)
        row = await self._present(owner, session_id, page)
        if row.ended:
            raise SessionExpired(row.ended)
        try:
            opened = await self._unseal(row, owner, session_id)
            self._check_age(opened, since)
            if len(page.items) != max(0, min(limit, opened.head.count - first)):
                raise IntegrityError("the store left out items of a session")
            if page.items and page.items[0].position != first:
                raise IntegrityError("the store returned other items of a session than it was asked for")
            complete = first + len(page.items) == opened.head.count
            items = opened.keys.open_items(page.items, page.before, opened.head.last_tag if complete else None)
        except IntegrityError as error:
            await self._not_opened(error, owner, session_id)
            raise
        self._failures.pop((owner, session_id), None)
        try:
            sessions.check_alive(opened.head, self.now())
        except SessionExpired:
            await self.expire(opened)
            raise
        return opened.head, first, items

    async def answer(self, holder: Opened, token: str, position: int) -> Item:
        """Give the item that an idempotency record of *holder* names; *token* is what the application held then."""
        _, _, items = await self.history(holder, position, 1)
        if not items:
            raise IntegrityError("an idempotency record names an item that its session does not have")
        return items[0]

    async def expire(self, opened: Opened) -> None:
        """Destroy a session whose time is up, unless somebody else is at work on it."""
        await self.end_expired(opened.row, opened.lease or None)

    # --- sealing ------------------------------------------------------------------------------------------------------

    def begin(
        self,
        owner: Owner,
        system: Item | None = None,
        title: str | None = None,
        metadata: dict[str, str] | None = None,
        *,
        limits: Limits | None = None,
        instead_of: str | None = None,
        session_id: str | None = None,
        passing: bool = False,
    ) -> Opened:
        """Make a session in memory, whose *system* item is counted; it is stored by its first `commit`.

        It is *session_id*, which was minted before, or a new one; if it is *passing*, it is never stored.
        """
        self.admit(owner)
        head = sessions.begin(limits or self.limits, self.now(), title, metadata)
        session_id = session_id or sessions.new_id(instead_of)
        if system is not None:
            note = SystemNote(_digest(system.text), system.tokens, system.counter)
            head = replace(head, system=note)
        keys = SessionKeys(new_secret(), owner, session_id)
        row = SealedSession(owner, session_id, None, None, 0, 0, 0, 0, 0, None, b"")
        rest: dict[str, Any] = {"fresh": True, "instead_of": instead_of, "passing": passing}
        return Opened(owner, session_id, keys, row, head, system=system, **rest)

    async def commit(
        self,
        opened: Opened,
        items: Sequence[Item] = (),
        *,
        head: Head | None = None,
        used: Used = Used(),
        entries: Sequence[Event] = (),
        fingerprints: Sequence[Fingerprint] = (),
        record: Recorder | None = None,
        settlement: Settlement | None = None,
    ) -> list[Item]:
        """Append *items*, or take *head*, and whatever goes with it, at once; give the items as they are stored.

        Once begun it runs to its end even if the caller is cancelled, so that nobody guesses what became of it.
        """
        moment = sessions.at(opened.head, self.now())
        turn = secrets.token_bytes(16)
        stored = opened.placed(items, moment)
        if opened.passing:
            await self._store(opened, self._pass(opened, entries, settlement))
            return stored
        rows, last = self._sealed(opened, stored)
        if head is not None or (opened.fresh and not stored):
            grown = sessions.amend(head or opened.head, moment, turn)
        else:
            grown = sessions.grow(opened.head, stored, last, moment, turn, used)
        if record is not None:
            grown = self._repeatable(opened, grown)
        await self._store(opened, self._commit(opened, grown, stored, rows, entries, fingerprints, record, settlement))
        return stored

    async def _store(self, opened: Opened, storing: Coroutine[Any, Any, None]) -> None:
        """Let *storing*, which sets ``committed``, run to its end, whoever waits for it; one at a time."""
        if opened.storing is not None:
            storing.close()
            raise SessionConflict("something else of this turn is being stored at this moment; nothing more was")
        opened.storing = asyncio.get_running_loop().create_task(storing)
        try:
            await self._through(opened.storing)
        finally:
            opened.storing = None

    async def _pass(self, opened: Opened, entries: Sequence[Event], settlement: Settlement | None) -> None:
        """Put a turn that is not stored on record, and settle what it came to."""
        await self.ask(self.store.record, entries)
        opened.committed = True
        if settlement is not None:
            await self._twice(self.store.charge, opened.owner, *settlement)

    async def stored(self, opened: Opened) -> bool:
        """Say whether *opened* was committed, once a commit that is under way has come to its end."""
        if opened.storing is not None:
            await asyncio.wait([opened.storing])
        return opened.committed

    async def _commit(
        self,
        opened: Opened,
        head: Head,
        items: Sequence[Item],
        rows: Sequence[SealedItem],
        entries: Sequence[Event],
        fingerprints: Sequence[Fingerprint],
        record: Recorder | None,
        settlement: Settlement | None,
    ) -> None:
        lease, charges = settlement or Settlement(opened.lease, ())
        if opened.fresh:
            # Wrapped at the last moment: the master key that was the newest before may be retired by now.
            opened.row = await self._wrapped(opened)
        row = opened.row_at(head)
        name = await self._name(opened, row, head, items)
        kept = None if record is None else record(opened, head, name)
        if opened.fresh:
            beside: dict[str, Any] = {"entries": entries, "fingerprints": fingerprints, "record": kept}
            if charges:
                beside |= {"charges": charges, "lease": lease}
            if kept is not None and opened.record is not None:
                beside["replaces"] = opened.record
            beside["instead_of"] = opened.instead_of
            await self._twice(self.store.create, row, rows, **beside)
        else:
            commit = Commit(opened.head.version, opened.lease, row, rows, entries, fingerprints, kept, charges)
            await self._twice(self.store.commit, commit)
        opened.head, opened.row, opened.name, opened.fresh, opened.committed = head, row, name, False, True
        opened.lease = b""  # the commit gave it back
        self._remember(opened.owner, opened.id, head.version, head.turn)

    def check_kept(self, *, record: bool, charges: bool) -> None:
        """Raise `ConfigurationError` if nothing would keep an idempotency record, or what turns may cost."""

    def check_room(self, opened: Opened, items: Sequence[Item]) -> None:
        """Raise `BudgetExceeded` if *items* will not find room, before a model is asked about them."""

    def _sealed(self, opened: Opened, items: Sequence[Item]) -> tuple[list[SealedItem], bytes]:
        """Seal *items* as the rows that the store is to keep; give them, and the tag of the last."""
        rows: list[SealedItem] = []
        previous = opened.head.last_tag
        for position, item in enumerate(items, opened.head.count):
            rows.append(opened.keys.seal_item(item, position, previous))
            previous = tag(rows[-1].sealed)
        return rows, previous

    def _repeatable(self, opened: Opened, head: Head) -> Head:
        """Give *head* so that it knows a request again that comes twice."""
        return head

    async def _name(self, opened: Opened, row: SealedSession, head: Head, items: Sequence[Item]) -> str:
        """Give what the application is to hold once *items* are committed and the session is *row*."""
        return opened.id

    async def _wrapped(self, opened: Opened) -> SealedSession:
        owner, session_id, system = opened.owner, opened.id, opened.system
        wrapped = await opened.keys.wrapped(self.keys, wrap_context(owner, session_id))
        carry = await self.carry(owner, session_id, None if system is None else system.text)
        return replace(opened.row, wrapped=wrapped, carry=carry)

    async def end_expired(self, row: SealedSession | Due, lease: bytes | None = None) -> int:
        """Destroy a session whose time is up, unless it has moved on or somebody but *lease* works on it."""
        noted = self.event("session.expired", row.owner, row.id)
        return await self.end(row.owner, row.id, "expired", [noted], version=row.version, lease=lease)


def _digest(system: str) -> bytes:
    return sha256(system.encode()).digest()
