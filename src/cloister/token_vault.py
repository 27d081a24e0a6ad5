"""The vault of ``token://``: what other stores keep of a session's content, its application holds, sealed.

With a ledger, a store of any other kind, everything but the items lies there as always: lease, version, secret. What a
token says is compared with it, so that one which was used before is refused. Without a ledger the token is all there
is, and nothing can tell whether it was used before.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import msgspec

from cloister import sessions, tokens
from cloister.errors import (
    BudgetExceeded,
    ConfigurationError,
    IntegrityError,
    SessionBusy,
    SessionExpired,
    SessionNotFound,
    TokenInvalid,
)
from cloister.model import Head, Item, Owner, SealedItem, SealedSession
from cloister.opened import Opened
from cloister.sealing import key_of
from cloister.stores.base import Charge, Due, Loaded
from cloister.tokens import Tokens
from cloister.vault import Again, Handle, Vault

_RETRIES = 4
_CONTENT_ELSEWHERE = "the content of this session lies in its token, which its application holds: resume(token)"


@dataclass(slots=True)
class _Held:
    """Be a token that was read: whose session it is, and what is inside, opened or not."""

    id: str
    name: str = field(repr=False)
    body: bytes | None = field(default=None, repr=False)
    row: SealedSession | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class _Stable:
    """Name a session by what never changes."""

    owner: Owner
    id: str


class TokenVault(Vault):
    """Keep sealed sessions in tokens, over a store that is their ledger or only keeps the audit log."""

    carries = True

    @property
    def tokens(self) -> Tokens:
        """Say for whom tokens are made, and how long they may be."""
        tokens: Tokens = self.store.tokens  # type: ignore[attr-defined] # of these two stores alone
        return tokens

    @property
    def ledger(self) -> bool:
        """Say whether a store remembers which tokens were used."""
        ledger: bool = self.store.ledger  # type: ignore[attr-defined] # likewise, and of what stands before them
        return ledger

    # --- reading ------------------------------------------------------------------------------------------------------

    async def check_id(self, owner: Owner, session_id: object) -> str:
        """Give the token back; `TokenInvalid` if it cannot be one of *owner*'s."""
        return (await self._read(owner, session_id)).name

    async def _read(self, owner: Owner, token: object) -> _Held:
        """Take a token apart; one that is another's, damaged or none is refused, and the log says which it was."""
        self.admit(owner)
        try:
            if self.ledger and type(token) is str and token.startswith("cs_"):
                return _Held(sessions.check_id(token), token)  # from a listing: good for all but its content
            data = tokens.decoded(token, self.tokens)
            if self.ledger:
                session_id, body = tokens.read_under_session(data)
                return _Held(session_id, str(token), body)
            derived = await self.keys.derive("token")
            row, body = tokens.read_under_deployment(derived, self.tokens, data)
        except (TokenInvalid, SessionNotFound) as error:
            await self._refuse(owner, "malformed", "token.damaged", error)
        if row.owner != owner:
            await self._refuse(owner, sessions.digest(row.id), "access.foreign", TokenInvalid(), row.owner)
        return _Held(row.id, str(token), body, row)

    async def look(self, owner: Owner, session_id: str, *, named_by_record: bool = False) -> Opened | SealedSession:
        """Open a session without working on it.

        A token that was used before is refused, but for one of the last that were used with an idempotency key: a
        client that never got its reply asks again under the same one. All else is refused to it when it is tried.
        """
        held = await self._read(owner, session_id)
        found = await self._row(held, owner, named_by_record)
        if isinstance(found, Opened) and held.body is not None:
            count, last, _ = await self._body(found, held.body)
            if last not in found.head.retry:
                await self._check_newest(found, count, last)
        return found

    async def _row(self, held: _Held, owner: Owner, named_by_record: bool = False) -> Opened | SealedSession:
        if not self.ledger:
            return await self._inside(held)
        return await super().look(owner, held.id, named_by_record=named_by_record)

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
        """Work on a session alone: over all processes with a ledger, in this one without."""
        self.check_kept(record=record is not None or again is not None, charges=bool(charges))
        stable = _Stable(session.owner, (await self._read(session.owner, session.id)).id)
        at_once = super().work(stable, budget=budget, record=record, again=again, lease=lease, charges=charges)
        working = at_once if self.ledger else self._alone(session, stable)
        async with working as found:
            if isinstance(found, Opened) and found.record is None:
                # Read again: its handle may have moved on while this turn waited for the one before.
                await self._join(found, await self._read(session.owner, session.id))
            yield found

    @contextlib.asynccontextmanager
    async def _alone(self, session: Handle, stable: _Stable) -> AsyncIterator[Opened | Loaded]:
        async with self.queue.alone(stable.owner, stable.id):
            yield await self._inside(await self._read(session.owner, session.id))

    async def _inside(self, held: _Held) -> Opened:
        """Open the row that a token brings along."""
        assert held.row is not None
        return await self.open_row(held.row, held.row.owner, self.moment)

    async def _open(
        self, row: SealedSession, loaded: Loaded, owner: Owner, session_id: str, *, budget: int, since: int
    ) -> Opened:
        """Open a row of the ledger; the items are in the token, and `_join` brings them in."""
        opened = await self.open_row(row, owner, since)
        opened.record = loaded.record
        return opened

    async def _join(self, opened: Opened, held: _Held) -> None:
        """Bring in what the token holds, if it belongs to the very state in which the session is."""
        opened.name = held.name
        if held.body is None:
            raise TokenInvalid(_CONTENT_ELSEWHERE)
        count, last, items = await self._body(opened, held.body)
        await self._check_newest(opened, count, last)
        opened.items = items

    async def _check_newest(self, opened: Opened, count: int, last: bytes) -> None:
        """Refuse a token of another state than the one in which the session is."""
        if (count, last) != (opened.head.count, opened.head.last_tag):
            error = TokenInvalid("this token was used before: go on with the one that the reply to it came with")
            await self._refuse(opened.owner, sessions.digest(opened.id), "token.replayed", error)

    async def _body(self, opened: Opened, body: bytes) -> tuple[int, bytes, list[Item]]:
        """Open the body of a token of *opened*: the state that it belongs to, never a newer one, and its items."""
        try:
            if self.ledger:
                body = tokens.unpadded(opened.keys.open_token(body, self.tokens.audience))
            count, last, items = tokens.unpack(body, self.tokens)
        except (IntegrityError, TokenInvalid, ValueError):
            await self._refuse(opened.owner, sessions.digest(opened.id), "token.damaged", TokenInvalid())
        if count > opened.head.count:
            async with self.guarded(opened.owner, opened.id):
                raise IntegrityError("the ledger has an older state of a session than its token: it has lost something")
        return count, last, items

    async def answer(self, holder: Opened, token: str, position: int) -> Item:
        """Give the item out of *token*, which may be used up by now: then *holder* keeps its name."""
        count, last, items = await self._body(holder, (await self._read(holder.owner, token)).body or b"")
        await self._check_alive(holder)
        if (count, last) == (holder.head.count, holder.head.last_tag):
            holder.name = token
        return items[position - count]

    async def history(self, session: Handle, first: int, limit: int) -> tuple[Head, int, list[Item]]:
        """Give items from position *first* on, or from the oldest that is still in the token."""
        held = await self._read(session.owner, session.id)
        found = await self._row(held, session.owner)
        if isinstance(found, SealedSession):
            raise SessionExpired(found.ended or "expired")
        if (found.owner, found.id) in self.queue and held.body is not None:
            count, last, _ = await self._body(found, held.body)
            if (count, last) != (found.head.count, found.head.last_tag):
                # Perhaps used by a turn of this very handle, which is stored and has not come back yet: no replay.
                with contextlib.suppress(SessionBusy):
                    async with self.queue.alone(found.owner, found.id):
                        pass
                if session.id != held.name:
                    return await self.history(session, first, limit)
        await self._join(found, held)
        await self._check_alive(found)
        oldest = found.head.count - len(found.items)
        first = max(first, oldest)
        return found.head, first, found.items[first - oldest : first - oldest + limit]

    async def _check_alive(self, opened: Opened) -> None:
        try:
            sessions.check_alive(opened.head, self.now())
        except SessionExpired:
            await self.expire(opened)
            raise

    def _check_age(self, opened: Opened, since: int) -> None:
        """Without a ledger a token may be used again: nobody but this process could tell, and only at times."""
        if self.ledger:
            super()._check_age(opened, since)

    # --- refusing -----------------------------------------------------------------------------------------------------

    async def refuse(self, owner: Owner, session_id: str | None) -> NoReturn:
        """Refuse a token whose session the ledger does not have for *owner*: foreign, erased or forgotten."""
        try:
            await super().refuse(owner, session_id)
        except SessionNotFound:
            raise TokenInvalid from None

    async def _refuse(
        self, owner: Owner, digest: str, kind: str, error: Exception, other: Owner | None = None
    ) -> NoReturn:
        """Put an attempt on record, and in the background what it was; the caller learns neither."""
        noted = msgspec.structs.replace(self.event(kind, owner), session=digest)
        self.background(self.ask(self.store.record, [msgspec.structs.replace(noted, other=other)]))
        # A token that was used before is the caller's own, and no attempt on another's: a client that repeats itself.
        own = kind == "token.replayed"
        refused = [msgspec.structs.replace(noted, kind="access.refused")] if own else self.attempted(owner, digest)
        await self.ask(self.store.record, refused)
        raise error if isinstance(error, TokenInvalid) else TokenInvalid

    async def end_expired(self, row: SealedSession | Due, lease: bytes | None = None) -> int:
        if self.ledger:
            return await super().end_expired(row, lease)
        # Nothing is kept that could be destroyed; the token says itself that its time is up.
        await self.ask(self.store.record, [self.event("session.expired", row.owner, row.id)])
        return 0

    # --- sealing ------------------------------------------------------------------------------------------------------

    def check_kept(self, *, record: bool, charges: bool) -> None:
        if record and not self.ledger:
            raise ConfigurationError("idempotency keys need a ledger: token://?ledger=redis://…, or leave the key out")
        if charges and not self.ledger:
            raise ConfigurationError("budgets and rates need a ledger: token://?ledger=redis://…, or leave them out")

    def check_room(self, opened: Opened, items: Sequence[Item]) -> None:
        if opened.passing:
            return
        self._pack(items, opened.head, None if self.ledger else opened.row)

    def _sealed(self, opened: Opened, items: Sequence[Item]) -> tuple[list[SealedItem], bytes]:
        """Give no rows; the tag is that of a new token where there are new items, and then the old one is used up."""
        return [], secrets.token_bytes(16) if items else opened.head.last_tag

    def _repeatable(self, opened: Opened, head: Head) -> Head:
        return msgspec.structs.replace(head, retry=(*opened.head.retry, opened.head.last_tag)[-_RETRIES:])

    async def _name(self, opened: Opened, row: SealedSession, head: Head, items: Sequence[Item]) -> str:
        """Mint the token that comes after *items*."""
        if self.ledger:
            if not (items or opened.fresh):
                return opened.name  # title, usage and what is hidden lie in the ledger
            body = tokens.padded(self._pack([*opened.items, *items], head, None))
            return tokens.under_session(opened.id, opened.keys.seal_token(body, self.tokens.audience))
        derived = await self.keys.derive("token")
        newest = list(derived)[-1]
        if not (_under(newest, row.wrapped) and _under(newest, row.carry)):
            # The token is the only place where these lie, so it is a turn that moves them to the newest master key.
            wrapped = await self._wrapped(opened)
            row = msgspec.structs.replace(row, wrapped=wrapped.wrapped, carry=wrapped.carry)
        body = self._pack([*opened.items, *items], head, row)
        return tokens.under_deployment(derived, self.tokens, row, body)

    def _pack(self, items: Sequence[Item], head: Head, row: SealedSession | None) -> bytes:
        packed, beyond = tokens.pack(items, self.tokens, head.count, head.last_tag, tokens.room(self.tokens, row))
        if beyond:
            raise BudgetExceeded(
                f"the newest turn, with what goes along, is {beyond} bytes too long for a token of {self.tokens.limit} "
                "characters; shorten it, or set limit= in the URL of the store"
            )
        return packed


def _under(name: str, part: bytes | None) -> bool:
    """Say whether *part* is under the master key *name*; not, if keys that are not ours name it in their own way."""
    try:
        return part is not None and key_of(part) == name
    except IntegrityError:
        return False
