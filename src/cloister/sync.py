"""The same calls without await: everything runs on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any, TypeVar

from cloister import scope, wire
from cloister import session as sessions
from cloister import stream as streams
from cloister import turn as turns
from cloister import user as aio
from cloister.alarms import Alarms
from cloister.audit import AuditKey
from cloister.client import AsyncCloister, Tenancy
from cloister.content import Content, Remember
from cloister.costs import Budget, Prices
from cloister.errors import ConfigurationError
from cloister.leaks.settings import LeakGuard
from cloister.model import Erasure, Item, Limits, Owner, Reply, Usage
from cloister.providers.base import Provider
from cloister.rates import Rates
from cloister.scrub.settings import Scrub
from cloister.sealing import MasterKeys
from cloister.services import Tenant
from cloister.session import OnExpired, Order
from cloister.sinks.base import Sink
from cloister.stores.base import Store
from cloister.telemetry import Telemetry

T = TypeVar("T")


class _Loop:
    """An event loop in a thread, for one process."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cloister", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run *work* in the loop, from any thread, and give its result."""
        started: queue.SimpleQueue[asyncio.Task[T]] = queue.SimpleQueue()
        done = threading.Event()

        def start() -> None:
            task = self._loop.create_task(work)
            task.add_done_callback(lambda _: done.set())
            started.put(task)

        self._loop.call_soon_threadsafe(start)
        task = started.get()
        try:
            done.wait()
        except BaseException:  # Ctrl-C stops the work, and waits until it has stopped
            self._loop.call_soon_threadsafe(task.cancel)
            done.wait()
            raise
        return task.result()

    def stop(self) -> None:
        self.run(_cancel_others())  # other threads may be waiting for their work
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Cloister:
    """Keep the conversations of many users apart. Made by `open`; use it in a ``with`` block, from any thread.

    After a fork the child opens the store again by itself. Inside a running event loop every call is refused: it would
    stop the loop; use `AsyncCloister` there.
    """

    @classmethod
    def open(
        cls,
        url: str | Store,
        *,
        provider: str | Provider | None = None,
        keyring: MasterKeys | None = None,
        limits: Limits = Limits.strict(),
        context_tokens: int | None = None,
        tenancy: Tenancy = "single",
        scrub: Scrub | None = Scrub(),
        leaks: LeakGuard | None = LeakGuard(),
        alarms: Alarms | None = Alarms(),
        clock: Callable[[], datetime] | None = None,
        audit_key: AuditKey | None = None,
        audit_heads: str | os.PathLike[str] | None = None,
        keep_failed: bool = False,
        tenants: Mapping[str, Tenant] = MappingProxyType({}),
        telemetry: Sequence[Telemetry] = (),
        budget: Budget | None = None,
        prices: Prices | None = None,
        rates: Rates | None = None,
        sinks: Sequence[Sink] = (),
        sinks_state: str | os.PathLike[str] | None = None,
    ) -> Cloister:
        """Give a cloister over the store at *url*, to be opened by ``with``; see `AsyncCloister.open`."""

        def make() -> AsyncCloister:
            return AsyncCloister.open(
                url,
                provider=provider,
                keyring=keyring,
                limits=limits,
                context_tokens=context_tokens,
                tenancy=tenancy,
                scrub=scrub,
                leaks=leaks,
                alarms=alarms,
                clock=clock,
                audit_key=audit_key,
                audit_heads=audit_heads,
                keep_failed=keep_failed,
                tenants=tenants,
                telemetry=telemetry,
                budget=budget,
                prices=prices,
                rates=rates,
                sinks=sinks,
                sinks_state=sinks_state,
            )

        return cls(make, reopens=isinstance(url, str))

    def __init__(self, make: Callable[[], AsyncCloister], *, reopens: bool) -> None:
        self._make = make
        self._reopens = reopens
        self._inner = make()
        self._loop: _Loop | None = None
        self._starting = threading.Lock()
        self._inherited: list[object] = []

    def __enter__(self) -> Cloister:
        _refuse_loop()
        loop = _Loop()
        try:
            loop.run(self._inner.__aenter__())
        except BaseException:
            loop.stop()
            raise
        self._loop = loop
        return self

    def __exit__(self, *error: object) -> None:
        inner, loop = self.inner, self._running()
        try:
            loop.run(inner.__aexit__(*error))
        finally:
            self._loop = None
            loop.stop()

    @property
    def inner(self) -> AsyncCloister:
        """Give the asynchronous cloister of this process."""
        self._running()
        return self._inner

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of `inner` on its loop."""
        try:
            _refuse_loop()
            loop = self._running()
        except BaseException:
            work.close()
            raise
        return loop.run(work)

    def _running(self) -> _Loop:
        if self._loop is None:
            raise ConfigurationError("this cloister is not open: use it inside `with Cloister.open(…) as cloister:`")
        if self._loop.process != os.getpid():
            with self._starting:
                if self._loop.process != os.getpid():
                    self._reopen()
        return self._loop

    def _reopen(self) -> None:
        """Open the store once more in a forked process: sockets, files and threads of the parent are not ours."""
        if not self._reopens or self._inner.store.volatile:
            raise ConfigurationError("this store cannot be used after a fork: open another in the new process")
        # Kept, not closed: closing them here would let go of what the parent still uses.
        self._inherited += [self._loop, self._inner]
        loop = _Loop()
        self._inner = self._make()
        loop.run(self._inner.__aenter__())
        self._loop = loop

    def user(self, user: str, *, tenant: str | None = None) -> User:
        """Give the door to what belongs to *user*; see `AsyncCloister.user`."""
        return User(self, self.inner.user(user, tenant=tenant))

    def sweep(self) -> int:
        """Destroy sessions whose time is up; see `AsyncCloister.sweep`."""
        return self.run(self.inner.sweep())


class User:
    """Be the door to one owner's sessions."""

    def __init__(self, cloister: Cloister, inner: aio.User) -> None:
        self._cloister = cloister
        self.owner = inner.owner

    @property
    def _inner(self) -> aio.User:
        return aio.User(self._cloister.inner.services_of(self.owner), self.owner)

    def start(
        self,
        *,
        title: str | None = None,
        system: str | None = None,
        metadata: Mapping[str, str] | None = None,
        items: Iterable[Item | Mapping[str, Any]] = (),
    ) -> Session:
        """Start a session; see `cloister.user.User.start`."""
        return _given(self._cloister, self._inner.start(title=title, system=system, metadata=metadata, items=items))

    def begin(
        self,
        *,
        title: str | None = None,
        system: str | None = None,
        metadata: Mapping[str, str] | None = None,
        items: Iterable[Item | Mapping[str, Any]] = (),
    ) -> Session:
        """Give a session that comes to be with its first turn; see `cloister.user.User.begin`."""
        return _given(self._cloister, self._inner.begin(title=title, system=system, metadata=metadata, items=items))

    def passing(self) -> Session:
        """Give a session whose turns are never stored; see `cloister.user.User.passing`."""
        return Session(self._cloister, self._inner.passing())

    def resume(self, session_id: str, *, on_expired: OnExpired = "renew") -> Session:
        """Give a session of this user's; see `cloister.user.User.resume`."""
        return _given(self._cloister, self._inner.resume(session_id, on_expired=on_expired))

    def at(self, session_id: str) -> Session:
        """Give a session of this user's for a turn; see `cloister.user.User.at`."""
        return _given(self._cloister, self._inner.at(session_id))

    def sessions(self, *, limit: int = 100, after: str | None = None) -> list[Session]:
        """List this user's live sessions; see `cloister.user.User.sessions`."""
        found = self._cloister.run(self._inner.sessions(limit=limit, after=after))
        return [Session(self._cloister, session) for session in found]

    def end_all(self) -> int:
        """End every session of this user's."""
        return self._cloister.run(self._inner.end_all())

    def export(self) -> Iterator[str]:
        """Give all that is this user's as JSON lines."""
        return _each(self._cloister, self._inner.export())

    def erase(self) -> Erasure:
        """Destroy everything of this user's."""
        return self._cloister.run(self._inner.erase())

    def __repr__(self) -> str:
        return f"User({self.owner})"


class Session:
    """Be one conversation of one owner; see `cloister.session.Session`."""

    def __init__(self, cloister: Cloister, inner: sessions.Session) -> None:
        self._cloister = cloister
        self._made = inner

    @property
    def _inner(self) -> sessions.Session:
        """Give the session in this process, which may have been forked since."""
        here = self._cloister.inner.services_of(self._made.owner)
        if self._made._cloister is not here:
            made = self._made
            self._made = sessions.Session(here, made.owner, made.id, made.head, made.stable_id, made._seed)
        return self._made

    @property
    def owner(self) -> Owner:
        return self._made.owner

    @property
    def id(self) -> str:
        """What resumes the session. Under ``token://`` it changes with every turn, and this follows it."""
        return self._made.id

    @property
    def stable_id(self) -> str:
        """What names the session for as long as it lives; the same as `id` but under ``token://``."""
        return self._made.stable_id

    @property
    def created_at(self) -> datetime:
        """When it was started, in UTC."""
        return self._made.created_at

    @property
    def updated_at(self) -> datetime:
        """When it last changed, in UTC."""
        return self._made.updated_at

    @property
    def expires_at(self) -> datetime | None:
        """When it ends unless something is said; None for never."""
        return self._made.expires_at

    @property
    def version(self) -> int:
        """How many commits it has seen."""
        return self._made.version

    @property
    def item_count(self) -> int:
        """How many items it has, hidden ones included."""
        return self._made.item_count

    @property
    def token_count(self) -> int:
        """What its items would cost in one window."""
        return self._made.token_count

    @property
    def cost(self) -> Decimal:
        """What its turns have cost so far; see `cloister.session.Session.cost`."""
        return self._made.cost

    @property
    def usage(self) -> Usage:
        """What its turns have used so far."""
        return self._made.usage

    @property
    def title(self) -> str | None:
        return self._made.title

    @property
    def metadata(self) -> dict[str, str]:
        return self._made.metadata

    def send(
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
        on_expired: OnExpired = "renew",
    ) -> Reply[Session]:
        """Say something to the model and give its reply, once both are stored."""
        work = self._inner.send(
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
        )
        return self._reply(self._cloister.run(work))

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
        request: bytes | None = None,
        retry: bool = False,
        on_expired: OnExpired = "renew",
    ) -> ReplyStream:
        """Say something and read the reply while it is written."""
        inner = self._inner.stream(
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
        )
        return ReplyStream(self, inner)

    @contextlib.contextmanager
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
    ) -> Iterator[Turn]:
        """Say something and call the model yourself."""
        entering = self._inner.turn(
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
        )
        with _entered(self._cloister, entering) as inner:
            yield Turn(self, inner)

    def delivered(self, reply: Reply[Session]) -> None:
        """Take note that whoever asked has all of *reply*."""
        self._cloister.run(self._inner.delivered(reply))  # type: ignore[arg-type]  # of which only what is filed counts

    def append(self, items: Item | Mapping[str, Any] | Iterable[Item | Mapping[str, Any]]) -> list[Item]:
        """Add items of the OpenAI chat format without calling a model."""
        return self._cloister.run(self._inner.append(items))

    def update(self, *, title: str | None = None, metadata: Mapping[str, str] | None = None) -> None:
        """Set title or metadata; what is None stays."""
        self._cloister.run(self._inner.update(title=title, metadata=metadata))

    def hide(self, *item_ids: str) -> None:
        """Leave items out of history and window from now on."""
        self._cloister.run(self._inner.hide(*item_ids))

    def history(
        self, *, limit: int = 100, after: str | None = None, order: Order = "asc", masked: bool = False
    ) -> list[Item]:
        """Give items, oldest or newest first."""
        return self._cloister.run(self._inner.history(limit=limit, after=after, order=order, masked=masked))

    def item(self, item_id: str) -> Item:
        """Give one item."""
        return self._cloister.run(self._inner.item(item_id))

    def branch(self, item_id: str, *, model: str | None = None) -> Session:
        """Give a session that begins with what a window holds up to and with this item."""
        return Session(self._cloister, self._cloister.run(self._inner.branch(item_id, model=model)))

    def end(self) -> None:
        """End the session: its secret and its content are destroyed at once."""
        self._cloister.run(self._inner.end())

    def scope(self) -> contextlib.AbstractContextManager[scope.Scope]:
        """Make this the session of everything started inside the block."""
        return self._made.scope()

    def _reply(self, reply: Reply[sessions.Session]) -> Reply[Session]:
        session = self if reply.session is self._made else Session(self._cloister, reply.session)
        return dataclasses.replace(reply, session=session)  # type: ignore[arg-type, return-value]  # another Reply[…]

    def __repr__(self) -> str:
        return repr(self._made)


class Turn:
    """Be one question and what it comes to; see `cloister.turn.Turn`."""

    def __init__(self, session: Session, inner: turns.Turn[sessions.Session]) -> None:
        self._session = session
        self._inner = inner

    @property
    def repeated(self) -> bool:
        """The idempotency key had been answered before."""
        return self._inner.repeated

    @property
    def session_id(self) -> str:
        """Name the session in which the reply will be stored."""
        return self._inner.session_id

    @property
    def renewed(self) -> bool:
        """Say whether that is a new session, in the place of one that had timed out."""
        return self._inner.renewed

    @property
    def answer_id(self) -> str:
        """Name the item that the reply will be."""
        return self._inner.answer_id

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Give what fits the window, as messages of the OpenAI chat format."""
        return self._inner.messages

    def chat(self) -> dict[str, Any]:
        """Give the arguments for ``client.chat.completions.create``, beside the model's name."""
        return self._inner.chat()

    def responses(self) -> dict[str, Any]:
        """Give the arguments for ``client.responses.create``, beside the model's name."""
        return self._inner.responses()

    def anthropic(self) -> dict[str, Any]:
        """Give the arguments for ``client.messages.create``, beside the model's name and ``max_tokens``."""
        return self._inner.anthropic()

    def add(self, item: Item | Mapping[str, Any] | object) -> Item:
        """Record an item between question and reply."""
        return self._inner.add(item)

    def stream(self, source: Iterable[Any]) -> Iterator[str]:
        """Give the text of a streamed answer as it comes, and store the turn when it has come to its end."""
        if self._inner.repeated:
            yield self._inner.reply.text
            return
        reader, run = wire.Reader(), self._session._cloister.run
        try:
            for chunk in source:
                yield from self._inner.read(reader, chunk)
                if self._inner.waiting:
                    yield from run(self._inner.look())
                if self._inner.withheld:
                    break
        finally:
            close = getattr(source, "close", None)
            if close is not None:
                close()
        yield from run(self._inner.end(reader))
        run(self._inner.store())

    def finish(self, answer: object) -> Reply[Session]:
        """Store the turn with *answer*, which is text or any SDK's response, and give the reply."""
        self._session._cloister.run(self._inner.finish(answer))
        return self.reply

    @property
    def reply(self) -> Reply[Session]:
        """Give the stored reply; raises `RuntimeError` before there is one."""
        return self._session._reply(self._inner.reply)


class ReplyStream:
    """Be a reply while it is written; see `cloister.stream.ReplyStream`."""

    def __init__(self, session: Session, inner: streams.ReplyStream[sessions.Session]) -> None:
        self._session = session
        self._inner = inner

    def __enter__(self) -> ReplyStream:
        self._session._cloister.run(self._inner.__aenter__())
        return self

    def __iter__(self) -> Iterator[str]:
        return _each(self._session._cloister, self._inner.texts())

    def __exit__(self, *error: Any) -> bool | None:
        return self._session._cloister.run(self._inner.__aexit__(*error))

    @property
    def turn(self) -> Turn:
        """Give the turn that is read."""
        return Turn(self._session, self._inner.turn)

    @property
    def reply(self) -> Reply[Session]:
        """Give the stored reply, once the stream has been read to its end."""
        return self._session._reply(self._inner.reply)


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _refuse_loop() -> None:
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        raise ConfigurationError("an event loop is running here, which this call would stop: use AsyncCloister")


@contextlib.contextmanager
def _entered(cloister: Cloister, entering: contextlib.AbstractAsyncContextManager[T]) -> Iterator[T]:
    inner = cloister.run(_enter(entering))
    try:
        yield inner
    except BaseException as error:
        if not cloister.run(_leave(entering, error)):
            raise
    else:
        cloister.run(_leave(entering, None))


async def _enter(entering: contextlib.AbstractAsyncContextManager[T]) -> T:
    return await entering.__aenter__()


async def _leave(entering: contextlib.AbstractAsyncContextManager[Any], error: BaseException | None) -> bool | None:
    return await entering.__aexit__(type(error) if error else None, error, error.__traceback__ if error else None)


def _given(cloister: Cloister, work: Coroutine[Any, Any, sessions.Session]) -> Session:
    return Session(cloister, cloister.run(work))


def _each(cloister: Cloister, source: AsyncGenerator[T, None]) -> Iterator[T]:
    """Give what *source* gives, one run of the loop for each."""
    end = object()

    async def step() -> T | object:
        return await anext(source, end)

    try:
        while (value := cloister.run(step())) is not end:
            yield value  # type: ignore[misc]  # anything but the end is a T
    finally:
        cloister.run(source.aclose())
