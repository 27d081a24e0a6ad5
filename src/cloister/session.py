"""One conversation of one owner: `Session`, and the steps of a turn before the window."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

import msgspec

from cloister import pages, scope, sessions
from cloister.asking import answered
from cloister.audit import Detail, Event
from cloister.content import Content, Remember, checked, several
from cloister.costs import from_nanos, plain
from cloister.errors import (
    ConfigurationError,
    SessionExpired,
)
from cloister.guard import Check, remembered
from cloister.idempotency import door, secret_of
from cloister.leaks.evidence import Verdict
from cloister.masks import mask_of, masked, replaced, shown_before
from cloister.model import Head, Item, Owner, Reply, Usage, from_micros
from cloister.opened import Opened
from cloister.providers.base import Provider
from cloister.question import OnExpired as OnExpired
from cloister.question import Question
from cloister.scrub.masking import Mask, described, shown
from cloister.seeds import Seed
from cloister.services import Services
from cloister.stores.base import Loaded
from cloister.stream import ReplyStream
from cloister.taking import Taking, taken
from cloister.turn import Turn
from cloister.vault import Vault

Order = Literal["asc", "desc"]

MOST_HISTORY = 1_000


class Session:
    """Be one conversation of one owner."""

    def __init__(
        self,
        cloister: Services,
        owner: Owner,
        session_id: str,
        head: Head,
        stable_id: str | None = None,
        seed: Seed | None = None,
    ) -> None:
        self._cloister = cloister
        self.owner = owner
        self.id = session_id
        """What resumes the session. Under ``token://`` it changes with every turn, and this follows it."""
        self.stable_id = stable_id or session_id
        """What names the session for as long as it lives; the same as `id` but under ``token://``."""
        self.head = head
        self._seed = seed

    @property
    def created_at(self) -> datetime:
        """When it was started, in UTC."""
        return from_micros(self.head.created_at)

    @property
    def updated_at(self) -> datetime:
        """When it last changed, in UTC."""
        return from_micros(self.head.sealed_at)

    @property
    def expires_at(self) -> datetime | None:
        """When it ends unless something is said; None for never."""
        return sessions.expires_at(self.head)

    @property
    def version(self) -> int:
        """How many commits it has seen."""
        return self.head.version

    @property
    def item_count(self) -> int:
        """How many items it has, hidden ones included."""
        return self.head.count

    @property
    def token_count(self) -> int:
        """What its items would cost in one window."""
        return self.head.tokens

    @property
    def usage(self) -> Usage:
        """What its turns have used so far."""
        return self.head.usage

    @property
    def cost(self) -> Decimal:
        """What its turns have cost so far, as far as prices are known."""
        return from_nanos(self.head.spent)

    @property
    def title(self) -> str | None:
        return described(self.head).title

    @property
    def metadata(self) -> dict[str, str]:
        return dict(described(self.head).metadata)

    async def send(
        self,
        content: Content,
        *,
        model: str | None = None,
        options: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        documents: Sequence[str] = (),
        system: str | None = None,
        remember: Remember | None = None,
        truncate: bool = True,
        after: str | None = None,
        request: bytes | None = None,
        retry: bool = False,
        on_expired: OnExpired = "renew",
    ) -> Reply[Session]:
        """Say something to the model and give its reply, once both are stored.

        An empty list adds nothing: the model answers what was appended and not answered yet; `OptionRefused` where
        nothing was.
        *remember* are JSON values that are stored, sealed, with the answer, in its item's ``extra["response"]``, and
        that no model is sent; or what gives them, from the answer, when the turn is stored. Without *truncate*, a
        conversation that the window does not hold whole raises `BudgetExceeded`; *after* names the item with which
        the session has to end, or else it is a `SessionConflict`. *request* is the body of the request that asks for
        it: an idempotency key is then refused with any other one; and without a key, a *retry* of the same request
        within ten minutes is answered by what the session's last turn came to, until `delivered`. If the session has
        timed out, the reply comes from a new one and says so, unless *on_expired* is ``"raise"``.
        """
        provider = self._provider()
        async with taken(
            self,
            Question(
                content,
                model=model,
                options=options,
                idempotency_key=idempotency_key,
                documents=documents,
                system=system,
                remember=remember,
                truncate=truncate,
                after=after,
                request=request,
                retry=retry,
                on_expired=on_expired,
            ),
        ) as turn:
            if not turn.repeated:
                await turn.finish(await answered(provider, turn.request()))
        return turn.reply

    def stream(
        self,
        content: Content,
        *,
        model: str | None = None,
        options: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        documents: Sequence[str] = (),
        system: str | None = None,
        remember: Remember | None = None,
        truncate: bool = True,
        after: str | None = None,
        request: bytes | None = None,
        retry: bool = False,
        on_expired: OnExpired = "renew",
    ) -> ReplyStream[Session]:
        """Say something and read the reply while it is written; it is stored when the stream has been read to its end.

        Leaving the block earlier cancels the call and stores nothing.
        """
        provider = self._provider()
        turn = taken(
            self,
            Question(
                content,
                model=model,
                options=options,
                idempotency_key=idempotency_key,
                documents=documents,
                system=system,
                remember=remember,
                truncate=truncate,
                after=after,
                request=request,
                retry=retry,
                on_expired=on_expired,
            ),
        )
        return ReplyStream(turn, provider)

    def turn(
        self,
        content: Content,
        *,
        model: str | None = None,
        options: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        documents: Sequence[str] = (),
        system: str | None = None,
        remember: Remember | None = None,
        request: bytes | None = None,
        retry: bool = False,
        on_expired: OnExpired = "raise",
    ) -> contextlib.AbstractAsyncContextManager[Turn[Session]]:
        """Say something and call the model yourself: ``turn.chat()`` is what to send, ``turn.finish`` takes the answer.

        *model* says which one, for the size of the window, and *options* what goes along, for that size and for what
        the turn may cost. Nobody else's turn of this session runs meanwhile. To leave the block without ``finish`` or
        an exhausted ``stream`` stores nothing.
        """
        return taken(
            self,
            Question(
                content,
                model=model,
                options=options,
                idempotency_key=idempotency_key,
                documents=documents,
                system=system,
                remember=remember,
                request=request,
                retry=retry,
                on_expired=on_expired,
            ),
        )

    def _there(self) -> None:
        """Raise `RuntimeError` for a session of which nothing is stored: the store would know of none of this id."""
        if self._seed is not None:
            when = "is ever" if self._seed.passing else "is before its first turn"
            raise RuntimeError(f"nothing of this session {when} stored")

    def _settled(self, opened: Opened) -> Session:
        """Give the session in which a turn was stored: this one, or the new one in its place."""
        if opened.passing:
            return self
        if opened.id != self.stable_id:
            return Session(self._cloister, opened.owner, opened.name, opened.head, opened.id)
        self._follow(opened)
        return self

    def _follow(self, opened: Opened) -> None:
        """Take over what was committed to this session, whoever was still there to hear of it."""
        if opened.id == self.stable_id and not opened.fresh:
            self.id, self.head, self._seed = opened.name, opened.head, None

    async def count(
        self,
        content: Content,
        *,
        model: str | None = None,
        options: Mapping[str, Any] | None = None,
        system: str | None = None,
    ) -> int:
        """Say how many tokens a turn would send, by cloister's own count; no model is asked, and nothing stored.

        An empty list counts what would be sent beside anything new.
        """
        question = Question(content, model=model, options=options, system=system)
        taking = await Taking.of(self, question)
        self._cloister.vault.admit(self.owner)
        opened = taking.made(passing=True) if self._seed is not None else await self._newest(model)
        fitting, mask, check, _ = await taking.fitted(opened)
        try:
            return fitting.tokens()
        finally:
            opened.forget()
            mask.forget()
            check.forget()

    async def _newest(self, model: str | None) -> Opened:
        """Give the session with as many of its items as a turn would read, to look at it without taking it."""
        vault = self._cloister.vault
        return (await self._opened())[0] if vault.carries else await vault.newest(self, self._cloister.window(model))

    async def _opened(self) -> tuple[Opened, Mask]:
        """Give the session with its latest items, to look at it without taking it."""
        vault = self._cloister.vault
        head, _, items = await vault.history(self, max(0, self.head.count - MOST_HISTORY), MOST_HISTORY)
        opened = await vault.look(self.owner, self.id)
        assert isinstance(opened, Opened)
        opened.items, opened.head = items, head
        return opened, mask_of(self._cloister.scrub, opened)

    async def delivered(self, reply: Reply[Session]) -> None:
        """Take note that whoever asked has all of *reply*: to ask the same again is a new turn, and no retry."""
        if reply.filed is not None:
            await self._cloister.vault.forget(self.owner, reply.filed)

    async def append(self, items: Item | Mapping[str, Any] | Iterable[Item | Mapping[str, Any]]) -> list[Item]:
        """Add items of the OpenAI chat format without calling a model; give them as they are stored."""
        added = several(items)
        if not added:
            return []
        async with self._work() as opened:
            mask = mask_of(self._cloister.scrub, opened)
            items = await masked(self._cloister, mask, self.owner, added)
            prints = await remembered(self._cloister.watch, opened, added)
            content = opened.keys.content_digest(items)
            noted = self._event("items.appended", items=len(added), content=content)
            entries = [noted, *replaced(noted, mask)]
            stored = await self._cloister.vault.commit(opened, items, entries=entries, fingerprints=prints)
        return [shown(item) for item in stored]

    async def check(self, text: str, *, documents: Sequence[str] = ()) -> Verdict:
        """Say what would become of a reply with this *text*, and why; nothing is stored.

        What the session holds, and *documents*, are no evidence. Raises `ConfigurationError` without a `LeakGuard`,
        `SessionExpired` if the session is over.
        """
        if self._cloister.watch.guard is None:
            raise ConfigurationError("nobody looks for other users' details: open with leaks=LeakGuard()")
        self._there()
        opened, _ = await self._opened()
        check = await Check.over(self._cloister.watch, opened, lambda: shown_before(opened))
        await check.hears([], documents)
        return await check.weigh(Item("assistant", text))

    async def update(self, *, title: str | None = None, metadata: Mapping[str, str] | None = None) -> None:
        """Set title or metadata; what is None stays. Does not move the idle time."""
        async with self._work() as opened:
            mask = mask_of(self._cloister.scrub, opened)
            said = sessions.describe(described(opened.head), title, None if metadata is None else dict(metadata))
            head = mask.describe(said, title=title is not None, metadata=metadata is not None)
            noted = self._event("session.updated")
            entries = [noted, *replaced(noted, mask)]
            await self._cloister.vault.commit(opened, head=head, entries=entries)

    async def hide(self, *item_ids: str) -> None:
        """Leave items out of history and window from now on, all at once; their bytes go with the session.

        Raises `ValueError` if this session has no such item.
        """
        positions = [sessions.position_of(item_id) for item_id in item_ids]
        async with self._work() as opened:
            vault, head = self._cloister.vault, opened.head
            for item_id, position in zip(item_ids, positions, strict=True):
                found = position is not None and position < opened.head.count
                items = (await vault.history(self, position or 0, 1))[2] if found else []
                if not items or items[0].id != item_id or position is None:
                    raise ValueError("this session has no such item; ids come from history() and reply items")
                head = sessions.hide(head, position)
            if item_ids:
                await vault.commit(opened, head=head, entries=[self._event("item.hidden") for _ in item_ids])

    async def history(
        self, *, limit: int = 100, after: str | None = None, order: Order = "asc", masked: bool = False
    ) -> list[Item]:
        """Give items, oldest first or (``"desc"``) newest first, at most *limit* (1 to 1,000), behind the id *after*.

        Whoever looks in for somebody else, such as an operator, takes them *masked*: with placeholders left in.
        Raises `SessionExpired` if the session is over, `ValueError` for a cursor that is none.
        """
        self._there()
        check_limit(limit)
        if order not in ("asc", "desc"):
            raise ValueError(f"order is 'asc' or 'desc', not {order!r}")
        vault, at = self._cloister.vault, None if after is None else pages.place(after)
        if order == "asc":
            self.head, listed = await pages.onward(vault, self, 0 if at is None else at + 1, limit)
        else:
            self.head, listed, _ = await pages.back(vault, self, at, limit, self.head.count)
        await self._note_read(len(listed), masked)
        return [msgspec.structs.replace(item, values=None) if masked else shown(item) for item in listed]

    async def item(self, item_id: str) -> Item:
        """Give one item; `ValueError` if this session has none of that id, or has hidden it."""
        self._there()
        self.head, item = await pages.one(self._cloister.vault, self, item_id)
        await self._note_read(1, False)
        return shown(item)

    async def branch(self, item_id: str, *, model: str | None = None) -> Session:
        """Give a session that begins, with its first turn, with what a window holds up to and with this item.

        This one stays as it is. Raises `ValueError` if it has no such item.
        """
        self._there()
        vault = self._cloister.vault
        self.head, _ = await pages.one(vault, self, item_id)
        opened = await vault.look(self.owner, self.id)
        if not isinstance(opened, Opened):
            raise SessionExpired(opened.ended or "expired")
        first = int(opened.system is not None)  # which is item 0, and heads the other session by itself
        held = await pages.fitting(vault, self, first, pages.place(item_id) + 1, self._cloister.window(model))
        await self._note_read(len(held), False)
        items = tuple([checked(shown(item)) for item in held if item.error is None])
        return await begun(self._cloister, self.owner, Seed(opened.system, items=items))

    async def _note_read(self, items: int, masked: bool) -> None:
        vault = self._cloister.vault
        await vault.ask(vault.store.record, [self._event("history.read", items=items, masked=masked)])

    async def end(self) -> None:
        """End the session: its secret and its content are destroyed at once. To end it again changes nothing."""
        self._there()
        if not await ended(self._cloister.vault, self.owner, self.stable_id):
            # Over already, or not this owner's: then it is refused and on record, as whatever else is tried with it.
            await self._cloister.vault.look(self.owner, self.stable_id)

    def scope(self) -> contextlib.AbstractContextManager[scope.Scope]:
        """Make this the session of everything started inside the block: `cloister.current` gives it there."""
        return scope.open_scope(scope.Scope(self.owner, self.stable_id))

    def described(self) -> dict[str, Any]:
        """Give what can be said of the session without its items."""
        return {
            "created_at": self.created_at,
            "updated_at": self.updated_at,
            "expires_at": self.expires_at,
            "items": self.item_count,
            "tokens": self.token_count,
            "usage": msgspec.structs.asdict(self.head.usage),
            "cost": plain(self.cost),
            "title": self.title,
            "metadata": self.metadata,
        }

    @contextlib.asynccontextmanager
    async def _work(self) -> AsyncGenerator[Opened, None]:
        """Work on the session without a model; its values follow what was committed."""
        self._there()
        vault = self._cloister.vault
        async with vault.work(self) as found:
            if isinstance(found, Loaded):
                raise SessionExpired((found.session and found.session.ended) or "expired")
            try:
                sessions.check_alive(found.head, vault.now())
            except SessionExpired:
                await vault.expire(found)
                raise
            try:
                yield found
            finally:
                self._follow(found)

    def _provider(self) -> Provider:
        if self._cloister.provider is None:
            raise ConfigurationError(
                "no model is set up: open(…, provider=…), or use session.turn and call one yourself"
            )
        return self._cloister.provider

    def _event(self, kind: str, **detail: Detail) -> Event:
        return self._cloister.vault.event(kind, self.owner, self.stable_id, **detail)

    def __repr__(self) -> str:
        return f"Session({self.owner}, {self.item_count} items)"


async def begun(cloister: Services, owner: Owner, seed: Seed) -> Session:
    """Give a session that is not there yet; `ValueError` for title or metadata that it cannot have."""
    head = sessions.begin(cloister.limits, cloister.vault.now(), seed.title, dict(seed.metadata))
    # Beside what its first turn is filed under: a store may keep the two in one place.
    beside = door(await secret_of(cloister.vault.keys, owner), owner)
    return Session(cloister, owner, sessions.new_id(beside), head, seed=seed)


async def ended(vault: Vault, owner: Owner, session_id: str) -> int:
    """End a session at its owner's wish; give 0 if there was none to end."""
    vault.admit(owner)
    return await vault.end(owner, session_id, "ended", [vault.event("session.ended", owner, session_id)])


def check_limit(limit: int) -> None:
    # Not every store takes a whole number for one that is something else.
    if type(limit) is not int or not 1 <= limit <= MOST_HISTORY:
        raise ValueError(f"limit must be a whole number from 1 to {MOST_HISTORY}, not {limit}")
