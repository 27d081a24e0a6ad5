"""The way in for applications, and the path of one turn, from question to reply.

    load (owner, id), lease taken → check owner, limits → fit the window → provider → commit all at once → reply

`AsyncCloister` opens a store; `User` is the only door to what belongs to one owner; `Session` is one conversation;
`Turn` is one question and what it came to.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Literal, TypeAlias

import msgspec

from cloister import providers, scope, sessions, sinks, stores, window, wire
from cloister.audit import AuditKey, Event, event
from cloister.errors import (
    CloisterError,
    ConfigurationError,
    IntegrityError,
    SessionConflict,
    SessionExpired,
    StoreError,
)
from cloister.keyring import Keyring
from cloister.model import Erasure, Head, Item, Limits, Owner, Reply, SealedSession, Usage, from_micros, to_micros
from cloister.providers.base import Provider, Request
from cloister.sealing import MasterKeys, fields
from cloister.stores.base import Loaded, Record, Store
from cloister.vault import Opened, Vault

Content: TypeAlias = "str | Item | Mapping[str, Any] | Sequence[Item | Mapping[str, Any]]"
"""What a user says: text, a list of content parts, a message, or several (tool results before the next question)."""
OnExpired = Literal["renew", "raise"]
Tenancy = Literal["single", "required"]

_HOUSEKEEPING = timedelta(seconds=60)
_RECORDS_LIVE = timedelta(hours=24)
_MOST_HISTORY = 1_000
_RENEWED = "Our earlier conversation has timed out and was deleted, so this is a new one."


class AsyncCloister:
    """Keep the conversations of many users apart. Made by `open`; use it in an ``async with`` block."""

    @classmethod
    def open(
        cls,
        url: str | Store,
        *,
        provider: str | Provider | None = None,
        keyring: MasterKeys | None = None,
        limits: Limits | None = None,
        context_tokens: int | None = None,
        tenancy: Tenancy = "single",
        scrub: None = None,
        leaks: None = None,
        clock: Callable[[], datetime] | None = None,
        audit_key: AuditKey | None = None,
        keep_failed: bool = False,
    ) -> AsyncCloister:
        """Give a cloister over the store at *url*, to be opened by ``async with``.

        Without *provider* only ``send`` and ``stream`` are missing. Without *keyring*, ``memory://`` makes one that is
        thrown away, ``sqlite://`` keeps a key file beside the database, and other stores refuse. *limits* are
        `Limits.strict` unless given. *context_tokens* bounds what a turn sends, by default the model's context less
        room for its reply. *clock* gives aware datetimes. With *keep_failed* a question whose answer failed stays in
        the history, marked. *scrub* and *leaks* are None until those parts are here. Raises `ConfigurationError`.
        """
        return cls(
            stores.connect(url),
            providers.connect(provider),
            keyring,
            Limits.strict() if limits is None else limits,
            context_tokens,
            tenancy,
            clock or _utc_now,
            audit_key,
            keep_failed,
        )

    def __init__(
        self,
        store: Store,
        provider: Provider | None,
        keyring: MasterKeys | None,
        limits: Limits,
        context_tokens: int | None,
        tenancy: Tenancy,
        clock: Callable[[], datetime],
        audit_key: AuditKey | None,
        keep_failed: bool,
    ) -> None:
        if tenancy not in ("single", "required"):
            raise ConfigurationError(f"tenancy is 'single' or 'required', not {tenancy!r}")
        if context_tokens is not None and context_tokens < 1:
            raise ConfigurationError("context_tokens must be at least 1")
        self.store = store
        self.provider = provider
        self.limits = limits
        self.tenancy: Tenancy = tenancy
        self._context_tokens = context_tokens
        self._model = provider.model if provider else None
        self.keep_failed = keep_failed
        self._clock = clock
        self._keyring = keyring
        self._audit_key = audit_key
        self._heads: sinks.HeadSink | None = None
        self._housekeeping: asyncio.Task[None] | None = None
        self._vault: Vault | None = None

    async def __aenter__(self) -> AsyncCloister:
        if self._vault is not None:
            raise ConfigurationError("this cloister is open already, or was: call open() again for another")
        keyring = self._keyring or default_keyring(self.store)
        self._heads = head_sink(self.store, self._audit_key)
        # An exact vocabulary takes a second to load, which no turn should wait for.
        await asyncio.to_thread(self.counter)
        await self.store.open()
        self._vault = Vault(self.store, keyring, self._clock, self.limits)
        if await self.store.tenanted():
            self.tenancy = "required"  # nothing is ever filed under no tenant beside real ones
        self._housekeeping = asyncio.create_task(self._keep_house())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._housekeeping is not None:
            self._housekeeping.cancel()
        try:
            await self.vault.settle()
            self.sign_heads()
        finally:
            if self.provider is not None:
                await self.provider.close()
            await self.store.close()

    @property
    def vault(self) -> Vault:
        if self._vault is None:
            raise ConfigurationError("this cloister is not open: use it inside `async with AsyncCloister.open(…)`")
        return self._vault

    def user(self, user: str, *, tenant: str | None = None) -> User:
        """Give the door to what belongs to *user*; nothing of anybody else's is reachable through it.

        Raises `ConfigurationError` if a tenant is missing or must not be named, `ValueError` for a name that is none.
        """
        if tenant is None and self.tenancy == "required":
            raise ConfigurationError("name the tenant too: user(…, tenant=…); this store or this set-up has tenants")
        if tenant is not None and self.tenancy == "single":
            raise ConfigurationError('this cloister has no tenants; open it with tenancy="required" to name them')
        return User(self, Owner(tenant, user))

    async def sweep(self) -> int:
        """Destroy sessions whose time is up, and what has outlived its use; give how many ended.

        Runs by itself every minute while the cloister is open.
        """
        return await self.vault.sweep()

    async def note_operator(self, owner: Owner, action: str, reason: str) -> None:
        """Put on record that an operator is about to do *action* to what is *owner*'s, and why."""
        noted = event("operator.access", self.vault.now(), owner, action=action, reason=reason)
        await self.vault.ask(self.store.record, [noted])

    def sign_heads(self) -> None:
        """Sign how far the audit log has come; runs by itself every minute and at the end."""
        if self._heads is not None:
            self._heads.keep(self.store.heads(), self.vault.now())

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(_HOUSEKEEPING.total_seconds())
            self.vault.background(self.sweep())
            with contextlib.suppress(StoreError):  # tried again in a minute, and at the end, where it raises
                await asyncio.to_thread(self.sign_heads)

    def budget(self, model: str | None = None) -> int:
        """Give how many tokens a turn may send to *model*, or to the provider's own."""
        return self._context_tokens or window.context_tokens(model or self._model)

    def counter(self, model: str | None = None) -> window.Counter:
        """Give what counts tokens for *model*, or for the provider's own."""
        return window.counter_for(model or self._model)

    def counted(self, item: Item, model: str | None = None) -> Item:
        """Give *item* with its cost in a window."""
        counter = self.counter(model)
        return msgspec.structs.replace(item, tokens=window.item_tokens(item, counter), counter=counter.name)


class User:
    """Be the door to one owner's sessions."""

    def __init__(self, cloister: AsyncCloister, owner: Owner) -> None:
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
        imported = [_item(message) for message in items]
        first = Item("system", system) if system is not None else None
        if first is None and imported and imported[0].role == "system" and isinstance(imported[0].content, str):
            first = imported.pop(0)
        first = first and cloister.counted(_item(first))
        opened = await vault.begin(self.owner, first, title, dict(metadata or {}))
        stored = [*([first] if first else []), *(cloister.counted(item) for item in imported)]
        noted = self._event("session.started", opened.id, imported=len(imported))
        await vault.commit(opened, stored, entries=[noted])
        return Session(self._cloister, self.owner, opened.id, opened.head)

    async def resume(self, session_id: str) -> Session:
        """Give a session of this user's, timed-out ones included.

        Raises `SessionNotFound` for any id that is not a session of this user's, and `SessionExpired` for one that was
        ended.
        """
        vault = self._cloister.vault
        try:
            session_id = sessions.check_id(session_id)
        except KeyError:
            await vault.refuse(self.owner, None)
        found = await vault.look(self.owner, session_id)
        if isinstance(found, SealedSession):
            if found.ended == "ended":
                raise SessionExpired("ended")
            return Session(self._cloister, self.owner, session_id, _gone(found))
        with contextlib.suppress(SessionExpired):
            sessions.check_alive(found.head, vault.now())
            return Session(self._cloister, self.owner, session_id, found.head)
        await vault.expire(found)
        return Session(self._cloister, self.owner, session_id, found.head)

    async def sessions(self, *, limit: int = 100, after: str | None = None) -> list[Session]:
        """List this user's live sessions, latest started first, at most *limit* (1 to 1,000), behind the id *after*."""
        if not 1 <= limit <= _MOST_HISTORY:
            raise ValueError(f"limit must be from 1 to {_MOST_HISTORY}, not {limit}")
        vault = self._cloister.vault
        before = None
        if after is not None:
            cursor = await self.resume(after)
            before = cursor.head.created_at, cursor.id
        found: list[Session] = []
        while len(found) < limit:
            rows = (await vault.ask(vault.store.sessions, self.owner, limit=limit, before=before)).sessions
            for row in rows:
                opened = await vault.open_row(row, self.owner)
                if not _expired(opened.head, vault.now()):
                    found.append(Session(self._cloister, self.owner, row.id, opened.head))
            if len(rows) < limit:
                break
            before = rows[-1].created_at, rows[-1].id
        return found[:limit]

    async def end_all(self) -> int:
        """End every session of this user's; give how many there were."""
        vault = self._cloister.vault
        ended = 0
        while rows := (await vault.ask(vault.store.sessions, self.owner, limit=100, before=None)).sessions:
            for row in rows:
                ended += await self._end(row.id)
        return ended

    async def export(self) -> AsyncGenerator[str, None]:
        """Give all that is this user's as JSON lines: one for each session, followed by its items."""
        vault = self._cloister.vault
        await vault.ask(vault.store.record, [self._event("owner.exported")])
        after = None
        while page := await self.sessions(limit=100, after=after):
            for session in page:
                yield _line({"session": session.id, **session.described()})
                first = 0
                with contextlib.suppress(SessionExpired):  # its time was up between the listing and now
                    while items := (await vault.history(self.owner, session.id, first, _MOST_HISTORY))[1]:
                        for position, item in enumerate(items, first):
                            yield _line({"item": item.id, "hidden": position in session.head.hidden, **_exported(item)})
                        first += len(items)
            after = page[-1].id

    async def erase(self) -> Erasure:
        """Destroy everything of this user's, at once and for good; the receipt names what remains elsewhere."""
        vault = self._cloister.vault
        receipt = await vault.ask(vault.store.erase, self.owner, entries=[self._event("owner.erased")])
        return Erasure(self.owner, vault.now(), receipt.count)

    async def _end(self, session_id: str) -> int:
        vault = self._cloister.vault
        receipt = await vault.ask(
            vault.store.end,
            self.owner,
            session_id,
            ended="ended",
            now=to_micros(vault.now()),
            entries=[self._event("session.ended", session_id)],
        )
        return receipt.count

    def _event(self, kind: str, session_id: str | None = None, **detail: str | int | bool | None) -> Event:
        named = "" if session_id is None else sessions.digest(session_id)
        return event(kind, self._cloister.vault.now(), self.owner, named, **detail)

    def __repr__(self) -> str:
        return f"User({self.owner})"


class Session:
    """Be one conversation of one owner."""

    def __init__(self, cloister: AsyncCloister, owner: Owner, session_id: str, head: Head) -> None:
        self._cloister = cloister
        self.owner = owner
        self.id = session_id
        self.head = head

    created_at = property(lambda self: from_micros(self.head.created_at), doc="When it was started, in UTC.")
    updated_at = property(lambda self: from_micros(self.head.sealed_at), doc="When it last changed, in UTC.")
    expires_at = property(
        lambda self: sessions.expires_at(self.head), doc="When it ends unless something is said; None for never."
    )
    version = property(lambda self: self.head.version, doc="How many commits it has seen.")
    item_count = property(lambda self: self.head.count, doc="How many items it has, hidden ones included.")
    token_count = property(lambda self: self.head.tokens, doc="What its items would cost in one window.")
    usage = property(lambda self: self.head.usage, doc="What its turns have used so far.")
    title = property(lambda self: self.head.title)
    metadata = property(lambda self: dict(self.head.metadata))

    async def send(
        self,
        content: Content,
        *,
        model: str | None = None,
        options: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        documents: Sequence[str] = (),
        system: str | None = None,
        on_expired: OnExpired = "renew",
    ) -> Reply[Session]:
        """Say something to the model and give its reply, once both are stored.

        If the session has timed out, the reply comes from a new one and says so, unless *on_expired* is ``"raise"``.
        """
        provider = self._provider()
        async with self._turn(content, idempotency_key, documents, system, on_expired, model, options) as turn:
            if not turn.repeated:
                await turn.finish(await provider.complete(turn.request()))
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
        on_expired: OnExpired = "renew",
    ) -> ReplyStream:
        """Say something and read the reply while it is written; it is stored when the stream has been read to its end.

        Leaving the block earlier cancels the call and stores nothing.
        """
        provider = self._provider()
        return ReplyStream(
            self._turn(content, idempotency_key, documents, system, on_expired, model, options), provider
        )

    def turn(
        self,
        content: Content,
        *,
        idempotency_key: str | None = None,
        documents: Sequence[str] = (),
        system: str | None = None,
        on_expired: OnExpired = "raise",
    ) -> contextlib.AbstractAsyncContextManager[Turn]:
        """Say something and call the model yourself: ``turn.chat()`` is what to send, ``turn.finish`` takes the answer.

        Nobody else's turn of this session runs meanwhile. Leaving the block without ``finish`` or an exhausted
        ``stream`` stores nothing.
        """
        return self._turn(content, idempotency_key, documents, system, on_expired, None, None)

    @contextlib.asynccontextmanager
    async def _turn(
        self,
        content: Content,
        idempotency_key: str | None,
        documents: Sequence[str],
        system: str | None,
        on_expired: OnExpired,
        model: str | None,
        options: Mapping[str, Any] | None,
    ) -> AsyncGenerator[Turn, None]:
        cloister = self._cloister
        said = [cloister.counted(item, model) for item in _said(content)]
        over = cloister.counted(_item(Item("system", system)), model) if system is not None else None
        key = _Key.of(idempotency_key, self.id, [*said, *([over] if over else [])])
        budget = cloister.budget(model)
        async with cloister.vault.work(self.owner, self.id, budget=budget, record=key.digest if key else None) as found:
            if key and found.record is not None:
                yield await self._repeat(key, found.record, found)
                return
            opened, renewed = await self._admit(found, on_expired)
            turn = Turn(self, opened, said, over, budget, model, options, key, renewed)
            try:
                yield turn
            except BaseException as error:
                await turn.leave(error)
                raise
            await turn.leave(None)

    async def _admit(self, found: Opened | Loaded, on_expired: OnExpired) -> tuple[Opened, bool]:
        """Give the session to work on: the one that was *found*, or a new one in its place if its time is up."""
        vault = self._cloister.vault
        try:
            if isinstance(found, Loaded):
                raise SessionExpired((found.session and found.session.ended) or "expired")
            sessions.check_alive(found.head, vault.now())
            return found, False
        except SessionExpired as expired:
            if isinstance(found, Opened):
                await vault.expire(found)
            if on_expired != "renew" or expired.reason == "ended":
                raise
        if isinstance(found, Opened):
            system = found.system
        else:
            assert found.session is not None
            async with vault.guarded(self.owner, self.id):
                text = await vault.system_of(found.session)
            system = None if text is None else self._cloister.counted(Item("system", text))
        return await vault.begin(self.owner, system, instead_of=self.id), True

    async def _repeat(self, key: _Key, record: Record, found: Opened | Loaded) -> Turn:
        """Give the turn that was stored under an idempotency key, instead of taking it again."""
        vault = self._cloister.vault
        holder = found if isinstance(found, Opened) and record.holder == self.id else None
        if holder is None:
            looked = await vault.look(self.owner, record.holder)
            if isinstance(looked, SealedSession):
                raise SessionExpired(looked.ended or "expired")
            holder = looked
        async with vault.guarded(self.owner, self.id):
            kept = key.open(holder, record)
        head, items = await vault.history(self.owner, holder.id, kept.position, 1)
        if not items:
            raise IntegrityError("an idempotency record names an item that its session does not have")
        session = self if holder.id == self.id else Session(self._cloister, self.owner, holder.id, head)
        session.head = head
        return Turn.stored(session, items[0], kept.position in head.hidden, kept)

    async def append(self, items: Item | Mapping[str, Any] | Iterable[Item | Mapping[str, Any]]) -> list[Item]:
        """Add items of the OpenAI chat format without calling a model; give them as they are stored."""
        given = [items] if isinstance(items, Item | Mapping) else list(items)
        added = [self._cloister.counted(_item(item)) for item in given]
        if not added:
            return []
        async with self._work() as opened:
            noted = self._event("items.appended", items=len(added))
            stored = await self._cloister.vault.commit(opened, added, entries=[noted])
        return stored

    async def update(self, *, title: str | None = None, metadata: Mapping[str, str] | None = None) -> None:
        """Set title or metadata; what is None stays. Does not move the idle time."""
        async with self._work() as opened:
            head = sessions.describe(opened.head, title, None if metadata is None else dict(metadata))
            await self._cloister.vault.commit(opened, head=head, entries=[self._event("session.updated")])

    async def hide(self, item_id: str) -> None:
        """Leave an item out of history and window from now on; its bytes go with the session.

        Raises `ValueError` if this session has no such item.
        """
        position = sessions.position_of(item_id)
        async with self._work() as opened:
            vault = self._cloister.vault
            found = position is not None and position < opened.head.count
            items = (await vault.history(self.owner, self.id, position or 0, 1))[1] if found else []
            if not items or items[0].id != item_id or position is None:
                raise ValueError("this session has no such item; ids come from history() and reply items")
            head = sessions.hide(opened.head, position)
            await vault.commit(opened, head=head, entries=[self._event("item.hidden")])

    async def history(self, *, limit: int = 100, after: str | None = None) -> list[Item]:
        """Give items, oldest first, at most *limit* (1 to 1,000), behind the item id *after*.

        Raises `SessionExpired` if the session is over, `ValueError` for a cursor that is none.
        """
        if not 1 <= limit <= _MOST_HISTORY:
            raise ValueError(f"limit must be from 1 to {_MOST_HISTORY}, not {limit}")
        first = 0
        if after is not None:
            position = sessions.position_of(after)
            if position is None:
                raise ValueError("after= takes the id of an item of this session")
            first = position + 1
        shown: list[Item] = []
        while len(shown) < limit:
            wanted = limit - len(shown)
            head, items = await self._cloister.vault.history(self.owner, self.id, first, wanted)
            self.head = head
            shown += [item for position, item in enumerate(items, first) if position not in head.hidden]
            first += len(items)
            if len(items) < wanted:
                break
        return shown

    async def end(self) -> None:
        """End the session: its secret and its content are destroyed at once."""
        await User(self._cloister, self.owner)._end(self.id)

    def scope(self) -> contextlib.AbstractContextManager[scope.Scope]:
        """Make this the session of everything started inside the block: `cloister.current` gives it there."""
        return scope.open_scope(scope.Scope(self.owner, self.id))

    def described(self) -> dict[str, Any]:
        """Give what can be said of the session without its items."""
        return {
            "created_at": self.created_at,
            "updated_at": self.updated_at,
            "expires_at": self.expires_at,
            "items": self.item_count,
            "tokens": self.token_count,
            "usage": msgspec.structs.asdict(self.head.usage),
            "title": self.title,
            "metadata": self.metadata,
        }

    @contextlib.asynccontextmanager
    async def _work(self) -> AsyncGenerator[Opened, None]:
        """Work on the session without a model; its values follow what was committed."""
        vault = self._cloister.vault
        async with vault.work(self.owner, self.id) as found:
            if isinstance(found, Loaded):
                raise SessionExpired((found.session and found.session.ended) or "expired")
            try:
                sessions.check_alive(found.head, vault.now())
            except SessionExpired:
                await vault.expire(found)
                raise
            yield found
            self.head = found.head

    def _provider(self) -> Provider:
        if self._cloister.provider is None:
            raise ConfigurationError(
                "no model is set up: open(…, provider=…), or use session.turn and call one yourself"
            )
        return self._cloister.provider

    def _event(self, kind: str, **detail: str | int | bool | None) -> Event:
        return event(kind, self._cloister.vault.now(), self.owner, sessions.digest(self.id), **detail)

    def __repr__(self) -> str:
        return f"Session({self.owner}, {self.item_count} items)"


class Turn:
    """Be one question and what it comes to. Made by ``session.turn``."""

    def __init__(
        self,
        session: Session,
        opened: Opened,
        said: Sequence[Item],
        system: Item | None,
        budget: int,
        model: str | None,
        options: Mapping[str, Any] | None,
        key: _Key | None,
        renewed: bool,
    ) -> None:
        self._session = session
        self._opened = opened
        self._new = list(said)
        self._system = system or opened.system
        self._budget = budget
        self._model = model
        self._options = dict(options or {})
        self._key = key
        self._renewed = renewed
        self._reply: Reply[Session] | None = None
        self._closed = False
        self._heard: list[str] = []
        self._spent = Usage()
        self._asked_at = time.perf_counter()
        self._first_at: float | None = None
        self._fitted: list[Item] | None = None
        self.repeated = False
        """The idempotency key had been answered before: `reply` is that answer, and no model need be asked."""
        self._fit()

    @classmethod
    def stored(cls, session: Session, answer: Item, hidden: bool, kept: _Kept) -> Turn:
        """Give a turn that has been stored before."""
        turn = cls.__new__(cls)
        turn.repeated = True
        turn._reply = Reply(
            text="" if hidden else answer.text,
            session=session,
            usage=answer.usage or Usage(),
            model=kept.model,
            tool_calls=() if hidden else tuple(answer.tool_calls or ()),
            finish_reason=kept.finish_reason,
            renewed=kept.renewed,
            notice=_RENEWED if kept.renewed else None,
        )
        return turn

    @property
    def reply(self) -> Reply[Session]:
        """Give the stored reply; raises `RuntimeError` before there is one."""
        if self._reply is None:
            raise RuntimeError("this turn has no reply yet: call finish(answer), or read stream(answer) to its end")
        return self._reply

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Give what fits the window, as messages of the OpenAI chat format."""
        return wire.chat(self._fit())

    def chat(self) -> dict[str, Any]:
        """Give the arguments for ``client.chat.completions.create``, beside the model's name."""
        self._asked_at = time.perf_counter()
        return {"messages": self.messages}

    def responses(self) -> dict[str, Any]:
        """Give the arguments for ``client.responses.create``, beside the model's name."""
        self._asked_at = time.perf_counter()
        return wire.responses(self._fit())

    def anthropic(self) -> dict[str, Any]:
        """Give the arguments for ``client.messages.create``, beside the model's name and ``max_tokens``."""
        self._asked_at = time.perf_counter()
        return wire.anthropic(self._fit())

    def request(self) -> Request:
        """Give what a provider of cloister's own is asked."""
        self._asked_at = time.perf_counter()
        return Request(self.messages, self._model, self._options)

    def add(self, item: Item | Mapping[str, Any] | object) -> None:
        """Record an item between question and reply: an assistant's tool calls, as an SDK gave them, or their results.

        Raises `ValueError` for what is neither a message nor an answer.
        """
        self._unfinished()
        if isinstance(item, Item) or (isinstance(item, Mapping) and "role" in item and item.get("type") != "message"):
            added = _item(item)
        else:
            answer = wire.read(item)
            self._spent += answer.usage or Usage()
            added = wire.answer_item(answer)
        self._new.append(self._session._cloister.counted(added, self._model))
        self._fitted = None

    async def stream(self, source: AsyncIterator[Any]) -> AsyncGenerator[str, None]:
        """Give the text of a streamed answer as it comes, and store the turn when it has come to its end.

        *source* is any SDK's stream, or an async iterator of text, whose normal end is its finish marker.
        Raises `ProviderError` if the stream breaks off, or what storing the turn raises.
        """
        if self.repeated:
            yield self.reply.text
            return
        self._unfinished()
        if not hasattr(source, "__aiter__"):
            raise TypeError(
                "turn.stream takes an async iterator; await the SDK's call first, and pass stream=True to it"
            )
        reader = wire.Reader()
        try:
            async for chunk in source:
                for text in self.read(reader, chunk):
                    yield text
        finally:
            await _close(source)
        await self._commit(reader.finish())

    def read(self, reader: wire.Reader, chunk: object) -> list[str]:
        """Read one *chunk* of a streamed answer, and give what of it may be shown."""
        pieces = reader.feed(chunk)
        self._heard += [text for _, text in pieces]
        if pieces and self._first_at is None:
            self._first_at = time.perf_counter()
        return [text for channel, text in pieces if channel in ("text", "refusal") and text]

    async def finish(self, answer: object) -> Reply[Session]:
        """Store the turn with *answer*, which is text or any SDK's response, and give the reply.

        Raises `ProviderError` if it is not a whole answer.
        """
        if self.repeated:
            return self.reply
        self._unfinished()
        return await self._commit(answer if isinstance(answer, wire.Answer) else wire.read(answer))

    async def _commit(self, answer: wire.Answer) -> Reply[Session]:
        cloister = self._session._cloister
        usage = answer.usage
        self._closed = True
        self._heard.clear()
        self._spent += usage or Usage()
        item = cloister.counted(wire.answer_item(answer), self._model)
        if usage is None:
            usage = Usage(sum(sent.tokens for sent in self._fit()), item.tokens, estimated=True)
            item = msgspec.structs.replace(item, usage=usage)
            self._spent += usage
        opened = self._opened
        session = Session(cloister, opened.owner, opened.id, opened.head) if self._renewed else self._session
        first = [opened.system] if opened.fresh and opened.system else []
        items = [*first, *self._new, item]
        await cloister.vault.commit(
            opened,
            items,
            usage=self._spent,
            entries=self._entries(session, items, answer),
            record=None if self._key is None else self._recorder(self._key, answer),
        )
        session.head = opened.head
        now = time.perf_counter()
        self._reply = Reply(
            text=answer.text,
            session=session,
            usage=self._spent,
            model=answer.model or self._model,
            tool_calls=answer.tool_calls,
            finish_reason=answer.finish_reason,
            renewed=self._renewed,
            notice=_RENEWED if self._renewed else None,
            latency=timedelta(seconds=now - self._asked_at),
            time_to_first_token=None if self._first_at is None else timedelta(seconds=self._first_at - self._asked_at),
        )
        return self._reply

    def _entries(self, session: Session, items: Sequence[Item], answer: wire.Answer) -> list[Event]:
        entries = []
        if self._renewed:
            entries.append(session._event("session.renewed", after=sessions.digest(self._session.id)))
        committed = session._event(
            "turn.committed",
            items=len(items),
            model=answer.model or self._model,
            input_tokens=self._spent.input_tokens,
            output_tokens=self._spent.output_tokens,
        )
        return [*entries, committed]

    def _recorder(self, key: _Key, answer: wire.Answer) -> Callable[[Opened], Record]:
        """Give what makes the idempotency record once the answer's position is known."""
        until = to_micros(self._session._cloister.vault.now() + _RECORDS_LIVE)

        def record(opened: Opened) -> Record:
            position = opened.head.count - 1
            kept = _Kept(key.content, position, answer.model, answer.finish_reason, self._renewed)
            return key.seal(opened, kept, until)

        return record

    async def leave(self, error: BaseException | None) -> None:
        """Close the turn. If it came to nothing, put that on record and book what it has spent.

        *error* is None if the block was left without a reply.
        """
        self._closed = True
        if self.repeated or self._opened.committed:
            return
        if self._heard:  # a stream that was left: what was sent and heard is spent, and nobody told how much
            heard = self._session._cloister.counted(Item("assistant", "".join(self._heard)), self._model)
            self._spent += Usage(sum(sent.tokens for sent in self._fit()), heard.tokens, estimated=True)
        reason = "unfinished" if error is None else type(error).__name__
        try:
            await self._book(self._session._event("turn.failed", reason=reason), error)
        except CloisterError as fault:
            if error is None:
                raise
            error.add_note(f"and this could not be put on record: {fault}")

    async def _book(self, noted: Event, error: BaseException | None) -> None:
        vault, opened = self._session._cloister.vault, self._opened
        kept: list[Item] = []
        if error is not None and self._session._cloister.keep_failed:
            kept = [msgspec.structs.replace(item, error=type(error).__name__) for item in self._new]
        if not opened.fresh and (kept or self._spent.total_tokens):
            head = msgspec.structs.replace(opened.head, usage=opened.head.usage + self._spent)
            with contextlib.suppress(SessionConflict):  # the session moved on, or is gone: then the entry alone
                if kept:
                    await vault.commit(opened, kept, usage=self._spent, entries=[noted])
                else:
                    await vault.commit(opened, head=head, entries=[noted])
                return
            # Not under the owner's name: erasure may just have removed it from the log.
            noted = msgspec.structs.replace(noted, owner=None)
        await vault.note([noted])

    def _fit(self) -> list[Item]:
        """Give the items that are sent: the system text, the newest turns that fit, and what is new."""
        if self._fitted is None:
            head = self._opened.head
            first = head.count - len(self._opened.items)
            history = [
                item
                for position, item in enumerate(self._opened.items, first)
                if position not in head.hidden
                and item.error is None
                # The system text comes by itself, from beside the head.
                and not (position == 0 and head.system is not None)
            ]
            counter = self._session._cloister.counter(self._model)
            reserve = window.tools_tokens(self._options.get("tools") or (), counter)
            self._fitted = window.fit(
                history, self._new, self._budget, system=self._system, reserve=reserve, counter=counter
            )
        return self._fitted

    def _unfinished(self) -> None:
        if self._closed:
            raise RuntimeError("this turn is finished, or its block was left; start another with session.turn")

    def __repr__(self) -> str:
        return f"Turn({'finished' if self._reply else 'open'})"


class ReplyStream:
    """Be a reply while it is written. Made by ``session.stream``; use it in an ``async with`` block, once."""

    def __init__(self, turn: contextlib.AbstractAsyncContextManager[Turn], provider: Provider) -> None:
        self._entering = turn
        self._provider = provider
        self._turn: Turn | None = None
        self._text: AsyncGenerator[str, None] | None = None

    async def __aenter__(self) -> ReplyStream:
        self._turn = await self._entering.__aenter__()
        return self

    def __aiter__(self) -> AsyncIterator[str]:
        return self.texts()

    def texts(self) -> AsyncGenerator[str, None]:
        """Give the text as it comes; the same generator however often it is asked for."""
        if self._turn is None:
            raise RuntimeError("read the stream inside `async with session.stream(…) as stream:`")
        if self._text is None:
            source: Any = () if self._turn.repeated else self._provider.stream(self._turn.request())
            self._text = self._turn.stream(source)
        return self._text

    async def __aexit__(self, *error: Any) -> bool | None:
        try:
            if self._text is not None:
                await self._text.aclose()
        except BaseException as closing:
            # The turn is left in any case: its lease is to be given back.
            await self._entering.__aexit__(type(closing), closing, closing.__traceback__)
            raise
        return await self._entering.__aexit__(*error)

    @property
    def reply(self) -> Reply[Session]:
        """Give the stored reply, once the stream has been read to its end; `RuntimeError` before."""
        if self._turn is None:
            raise RuntimeError("read the stream inside `async with session.stream(…) as stream:`")
        return self._turn.reply


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    """What an idempotency record says: what was asked, and where the answer lies."""

    content: bytes
    position: int
    model: str | None
    finish_reason: str | None
    renewed: bool


class _Key(msgspec.Struct, frozen=True):
    """An idempotency key in one session: what it is filed under, and what was asked under it."""

    session: str
    digest: bytes
    content: bytes

    @classmethod
    def of(cls, key: object, session_id: str, said: Sequence[Item]) -> _Key | None:
        if key is None:
            return None
        if not isinstance(key, str) or not 1 <= len(key) <= 256:
            raise ValueError("an idempotency key is a text of 1 to 256 characters")
        sessions.check_text(key, "an idempotency key")
        asked = msgspec.msgpack.encode([(item.role, item.content, item.tool_calls, item.extra) for item in said])
        return cls(session_id, sha256(fields("idempotency", key)).digest(), sha256(asked).digest())

    def seal(self, holder: Opened, kept: _Kept, until: int) -> Record:
        sealed = holder.keys.seal_record(self.digest, msgspec.msgpack.encode(kept))
        return Record(self.session, holder.id, self.digest, sealed, until)

    def open(self, holder: Opened, record: Record) -> _Kept:
        try:
            kept = msgspec.msgpack.decode(holder.keys.open_record(self.digest, record.sealed), type=_Kept)
        except msgspec.MsgspecError:
            raise IntegrityError("an idempotency record is in a form that this version does not read") from None
        if kept.content != self.content:
            raise ValueError("this idempotency key was used for something else in this session; use a new one")
        return kept


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _item(message: object) -> Item:
    """Take a message as an item, checked; what only a commit may set is left out."""
    if isinstance(message, Item):
        sessions.check_text(message.text)
        message = {**(message.extra or {}), **wire.chat([message])[0]}
    return wire.item(message)


def _said(content: Content) -> list[Item]:
    if isinstance(content, str):
        sessions.check_text(content)
        return [Item("user", content)]
    if isinstance(content, Item | Mapping):
        return [_item(content)]
    given = list(content)
    if given and not any(isinstance(part, Item) or "role" in part for part in given):
        return [_item({"role": "user", "content": given})]
    if not given:
        raise ValueError("there is nothing to say: pass text, or messages")
    return [_item(message) for message in given]


def _gone(row: SealedSession) -> Head:
    """Give what a tombstone still says of a session."""
    idle = None if row.expires_at is None else row.expires_at - row.updated_at
    return Head(row.version, row.created_at, row.updated_at, row.updated_at, idle, None)


def _expired(head: Head, now: datetime) -> bool:
    try:
        sessions.check_alive(head, now)
    except SessionExpired:
        return True
    return False


def _line(values: Mapping[str, Any]) -> str:
    return msgspec.json.encode(values).decode()


def _exported(item: Item) -> dict[str, Any]:
    kept = msgspec.structs.asdict(item)
    return {name: value for name, value in kept.items() if value is not None and name not in ("id", "counter")}


async def _close(source: Any) -> None:
    """Close a stream that may not have been read to its end, so that its call is cancelled."""
    close = getattr(source, "aclose", None) or getattr(source, "close", None)
    if close is not None:
        closing = close()
        if inspect.isawaitable(closing):
            await closing


def default_keyring(store: Store) -> Keyring:
    """Give the keyring that a store has by itself; `ConfigurationError` where it must be named."""
    if store.volatile:
        return Keyring.generate()
    if store.path is None:
        raise ConfigurationError("name the keys: open(…, keyring=Keyring.from_file(…)), or set CLOISTER_KEYS")
    path = store.path.with_name(store.path.name + ".keys")
    if not path.exists() and store.path.exists() and os.path.getsize(store.path):
        raise ConfigurationError(
            f"{store.url} is there, but its key file {path} is not: put the file back, or name another store. "
            "Without its keys nothing in it can be opened"
        )
    if not path.exists():
        with contextlib.suppress(FileExistsError):  # made by another process in this very moment
            return Keyring.create_file(path)
    return Keyring.from_file(path)


def head_sink(store: Store, key: AuditKey | None) -> sinks.HeadFile | sinks.HeadList | None:
    """Give where signed audit heads go: a file beside an embedded store, memory for one in memory."""
    if store.volatile:
        return sinks.HeadList(key or AuditKey.generate())
    if store.path is None:
        return None
    name = store.path.name
    return sinks.HeadFile(
        store.path.with_name(name + ".heads"), key or sinks.audit_key(store.path.with_name(name + ".audit-key"))
    )
