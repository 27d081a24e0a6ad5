"""What belongs to one owner: `User` is the only door to it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any

import msgspec

from cloister import sessions
from cloister.audit import Detail, Event
from cloister.content import checked, several
from cloister.errors import (
    CloisterError,
    ConfigurationError,
    IntegrityError,
    SessionExpired,
    TokenInvalid,
)
from cloister.guard import remembered
from cloister.masks import mask_of, masked, replaced
from cloister.model import Erasure, Head, Item, Owner, SealedSession
from cloister.opened import Opened
from cloister.scrub.masking import shown
from cloister.seeds import Seed
from cloister.services import Services
from cloister.session import MOST_HISTORY, OnExpired, Session, begun, check_limit, ended


class User:
    """Be the door to one owner's sessions."""

    def __init__(self, cloister: Services, owner: Owner) -> None:
        self._cloister = cloister
        self.owner = owner

    async def start(
        self,
        *,
        title: str | None = None,
        system: str | None = None,
        metadata: Mapping[str, str] | None = None,
        items: Iterable[Item | Mapping[str, Any]] = (),
    ) -> Session:
        """Start a session, with a history in the OpenAI chat format where *items* are given, in one commit.

        *system* is the application's; it heads every request and outlives an expiry. A leading system message of
        *items* takes its place where it is not given. Raises `ValueError` for what cannot be stored.
        """
        cloister, vault = self._cloister, self._cloister.vault
        first, imported = _given(system, items)
        first = first and cloister.counted(first)
        opened = vault.begin(self.owner, first, title, dict(metadata or {}), limits=cloister.limits)
        mask = mask_of(cloister.scrub, opened)
        opened.head = mask.describe(opened.head)
        kept = await masked(cloister, mask, self.owner, imported)
        prints = await remembered(cloister.watch, opened, imported)
        noted = self._event("session.started", opened.id, imported=len(imported))
        entries = [noted, *replaced(noted, mask)]
        stored = [*([first] if first else []), *kept]
        await vault.commit(opened, stored, entries=entries, fingerprints=prints)
        return Session(self._cloister, self.owner, opened.name, opened.head, opened.id)

    async def begin(
        self,
        *,
        title: str | None = None,
        system: str | None = None,
        metadata: Mapping[str, str] | None = None,
        items: Iterable[Item | Mapping[str, Any]] = (),
    ) -> Session:
        """Give a session that comes to be with its first turn, in that turn's commit, or not at all.

        Arguments are those of `start`. Its ``id`` is known at once, but under ``token://``, and nothing is stored under
        it before. Of what is said first, the messages up to the last answer are its history.
        """
        self._cloister.vault.admit(self.owner)
        first, imported = _given(system, items)
        return await begun(self._cloister, self.owner, Seed(first, title, dict(metadata or {}), tuple(imported)))

    def passing(self) -> Session:
        """Give a session whose turns are looked at, billed and put on record as any other, and never stored.

        Each starts from nothing but the messages that it is given: a whole history of the chat format, of which the
        newest that fit are sent. System messages at its beginning stay. What nobody stores is not found again: neither
        an idempotency key nor a retry of the same request keeps a passing turn from being taken twice, and the leak
        guard learns nothing from one.
        """
        cloister = self._cloister
        head = sessions.begin(cloister.limits, cloister.vault.now(), None, None)
        return Session(cloister, self.owner, sessions.new_id(), head, seed=Seed(passing=True))

    async def resume(self, session_id: str, *, on_expired: OnExpired = "renew") -> Session:
        """Give a session of this user's; a timed-out one too, unless *on_expired* is ``"raise"``.

        Raises `SessionNotFound` for any id that is not a session of this user's, and `SessionExpired` for one that was
        ended.
        """
        vault = self._cloister.vault
        found = await self._look(session_id)
        if isinstance(found, SealedSession):
            if found.ended == "ended" or on_expired == "raise":
                raise SessionExpired(found.ended or "expired")
            return Session(self._cloister, self.owner, session_id, _gone(found), found.id)
        if sessions.expired(found.head, vault.now()):
            await vault.end_expired(found.row)
            if on_expired == "raise":
                raise SessionExpired
        return Session(self._cloister, self.owner, session_id, found.head, found.id)

    async def at(self, session_id: str) -> Session:
        """Give a session of this user's for a turn, without asking the store: the turn finds out whether it is there.

        Its values are unknown until then. What a budget reserves needs them: where there is one, this is `resume`.
        """
        cloister = self._cloister
        if cloister.budget is not None or cloister.vault.carries:
            return await self.resume(session_id)
        name = await cloister.vault.check_id(self.owner, session_id)
        return Session(cloister, self.owner, name, sessions.begin(cloister.limits, cloister.vault.now(), None, None))

    async def _look(self, session_id: str) -> Opened | SealedSession:
        vault = self._cloister.vault
        return await vault.look(self.owner, await vault.check_id(self.owner, session_id))

    async def sessions(self, *, limit: int = 100, after: str | None = None) -> list[Session]:
        """List this user's live sessions, latest started first, at most *limit* (1 to 1,000), behind the id *after*."""
        check_limit(limit)
        found = []
        async for _, session in self._listed(after, limit):
            if isinstance(session, Session):
                found.append(session)
                if len(found) == limit:
                    break
        return found

    async def _listed(
        self, after: str | None, at_once: int
    ) -> AsyncGenerator[tuple[SealedSession, Session | CloisterError], None]:
        """Give live sessions, latest started first; for one that cannot be opened, the error, which is its alone."""
        vault = self._cloister.vault
        vault.admit(self.owner)
        before = None
        if after is not None:
            cursor = await self._look(after)
            row = cursor if isinstance(cursor, SealedSession) else cursor.row
            before = row.created_at, row.id
        while True:
            since = vault.moment
            listing = await vault.ask(vault.store.sessions, self.owner, limit=at_once, before=before)
            for row in listing.sessions:
                try:
                    opened = await vault.open_row(row, self.owner, since)
                except ConfigurationError as error:  # under a key that is missing
                    yield row, error
                    continue
                if not sessions.expired(opened.head, vault.now()):
                    yield row, Session(self._cloister, self.owner, row.id, opened.head)
            if len(listing.sessions) < at_once:
                return
            before = listing.sessions[-1].created_at, listing.sessions[-1].id

    async def end_all(self) -> int:
        """End every session of this user's, and revoke their session tokens; give how many sessions there were."""
        vault = self._cloister.vault
        vault.admit(self.owner)
        noted = self._event("credential.revoked", what="token")
        await vault.ask(vault.store.revoke_all, self.owner, entries=[noted])
        count = 0
        while rows := (await vault.ask(vault.store.sessions, self.owner, limit=100, before=None)).sessions:
            done = sum([await ended(vault, self.owner, row.id) for row in rows])
            count += done
            if not done:
                raise IntegrityError("the store lists sessions that it does not end; see the audit log")
        return count

    async def export(self) -> AsyncGenerator[str, None]:
        """Give all that is this user's as JSON lines: one for each session, followed by its items.

        A session that cannot be opened has a line that says why.
        """
        vault = self._cloister.vault
        vault.admit(self.owner)
        await vault.ask(vault.store.record, [self._event("owner.exported")])
        async for row, session in self._listed(None, 100):
            if not isinstance(session, Session):
                yield _line({"session": row.id, "error": str(session)})
                continue
            yield _line({"session": session.id, **session.described()})
            try:
                first = 0
                while True:
                    _, first, items = await vault.history(session, first, MOST_HISTORY)
                    for position, item in enumerate(items, first):
                        kept = _exported(shown(item))
                        yield _line({"item": item.id, "hidden": position in session.head.hidden, **kept})
                    if not items:
                        break
                    first += len(items)
            except (SessionExpired, TokenInvalid) as error:  # its content lies in a token that is not here
                yield _line({"session": row.id, "error": str(error)})

    async def erase(self) -> Erasure:
        """Destroy everything of this user's, at once and for good; the receipt names what remains elsewhere."""
        vault = self._cloister.vault
        vault.admit(self.owner)
        count = await vault.erase(self.owner, [self._event("owner.erased")])
        self._cloister.watch.forget(self.owner)
        return Erasure(self.owner, vault.now(), count)

    def _event(self, kind: str, session_id: str | None = None, **detail: Detail) -> Event:
        return self._cloister.vault.event(kind, self.owner, session_id or "", **detail)

    def __repr__(self) -> str:
        return f"User({self.owner})"


def _given(system: str | None, items: Iterable[Item | Mapping[str, Any]]) -> tuple[Item | None, list[Item]]:
    """Give the system text and the other items that a session begins with."""
    imported = several(items)
    first = Item("system", system) if system is not None else None
    if first is None and imported and imported[0].role == "system" and isinstance(imported[0].content, str):
        first = imported.pop(0)
    return first and checked(first), imported


def _gone(row: SealedSession) -> Head:
    """Give what a tombstone still says of a session."""
    idle = None if row.expires_at is None else row.expires_at - row.updated_at
    return Head(row.version, row.created_at, row.updated_at, row.updated_at, idle, None)


def _line(values: Mapping[str, Any]) -> str:
    return msgspec.json.encode(values).decode()


def _exported(item: Item) -> dict[str, Any]:
    kept = msgspec.structs.asdict(item)
    return {name: value for name, value in kept.items() if value is not None and name not in ("id", "counter")}
