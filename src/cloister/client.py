"""The way in for applications: opens a store with its keys, keeps house, and gives out users."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import msgspec

from cloister import providers, stores, upkeep, window
from cloister.alarms import Alarms
from cloister.attempts import Attempts
from cloister.audit import AuditKey, event
from cloister.errors import CloisterError, ConfigurationError
from cloister.guard import Watch
from cloister.keyring import Keyring
from cloister.leaks.settings import LeakGuard
from cloister.model import Item, Limits, Owner, to_micros
from cloister.providers.base import Provider
from cloister.scrub.settings import Scrub
from cloister.sealing import MasterKeys
from cloister.shipping import Shipper
from cloister.sinks.base import Sink
from cloister.sinks.heads import HeadFile, HeadList, HeadSink, audit_key
from cloister.stores.base import Store
from cloister.user import User
from cloister.vault import Vault

Tenancy = Literal["single", "required"]

_log = logging.getLogger("cloister")

_COUNTED = 1 << 18
"""The longest text, in characters, whose tokens are counted: a longer one costs its bytes."""
_HOUSEKEEPING = timedelta(seconds=60)


class AsyncCloister:
    """Keep the conversations of many users apart. Made by `open`; use it in an ``async with`` block."""

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
        sinks: Sequence[Sink] = (),
        sinks_state: str | os.PathLike[str] | None = None,
    ) -> AsyncCloister:
        """Give a cloister over the store at *url*, to be opened by ``async with``.

        Without *provider* only ``send`` and ``stream`` are missing. Without *keyring*, ``memory://`` makes one that is
        thrown away, ``sqlite://`` keeps a key file beside the database, and other stores refuse. *limits* are
        `Limits.strict` unless given. *context_tokens* bounds what a turn sends, by default the model's context less
        room for its reply. *clock* gives aware datetimes. How far the audit log has come is signed with *audit_key*
        into the file *audit_heads*; both lie beside an embedded store unless given, and other stores sign nothing
        without them. With *keep_failed* a question whose answer failed stays in the history, marked. *scrub* says what
        becomes of personal data; None stores and sends it as it was said, which is put on record. *leaks* says what
        becomes of replies with other users' details; None lets them pass, which is put on record too. *alarms* say
        what is a breach attempt, after which a user is refused for a while; None never refuses, which is put on record
        too. *sinks* are where entries and alarms go, besides the store; how far each was served is kept in the folder
        *sinks_state*, beside an embedded store unless given, and else in memory. Raises `ConfigurationError`.
        """
        return cls(
            stores.connect(url),
            providers.connect(provider),
            keyring,
            limits,
            context_tokens,
            tenancy,
            clock or _utc_now,
            audit_key,
            audit_heads,
            keep_failed,
            scrub or Scrub(where="off"),
            leaks,
            alarms,
            sinks,
            sinks_state,
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
        audit_heads: str | os.PathLike[str] | None,
        keep_failed: bool,
        scrub: Scrub,
        leaks: LeakGuard | None,
        alarms: Alarms | None,
        sinks: Sequence[Sink],
        sinks_state: str | os.PathLike[str] | None,
    ) -> None:
        if alarms is not None and not isinstance(alarms, Alarms):
            raise ConfigurationError(f"alarms is an Alarms, or None for no protection, not {type(alarms).__name__}")
        if leaks is not None and not isinstance(leaks, LeakGuard):
            raise ConfigurationError(f"leaks is a LeakGuard, or None for no protection, not {type(leaks).__name__}")
        if not isinstance(scrub, Scrub):
            raise ConfigurationError(f"scrub is a Scrub, or None for no protection, not {type(scrub).__name__}")
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
        self._prepared: set[str | None] = set()
        self.keep_failed = keep_failed
        self.scrub = scrub
        self.leaks = leaks
        self.alarms = alarms
        self.sinks = tuple(sinks)
        self._sinks_state = None if sinks_state is None else Path(sinks_state)
        self.shipper: Shipper | None = None
        self._clock = clock
        self._keyring = keyring
        self._audit_key = audit_key
        self._audit_heads = None if audit_heads is None else Path(audit_heads)
        self._heads: HeadSink | None = None
        self._housekeeping: asyncio.Task[None] | None = None
        self._vault: Vault | None = None

    async def __aenter__(self) -> AsyncCloister:
        if self._vault is not None:
            raise ConfigurationError("this cloister is open already, or was: call open() again for another")
        keyring = self._keyring or default_keyring(self.store)
        self._heads = head_sink(self.store, self._audit_key, self._audit_heads)
        await self.prepare(None)
        await self.store.open()
        try:
            self._vault = self._over(keyring)
            self._watch = Watch(self.leaks, self._vault)
            await self._check_tenancy()
            await self._note_off()
            self.sign_heads()
            await self._ship()
        except BaseException:
            await self._close()
            raise
        self._housekeeping = asyncio.create_task(self._keep_house())
        return self

    @property
    def carried(self) -> bool:
        """Say whether session ids are tokens, which carry the conversation and change with every turn."""
        return hasattr(self.store, "tokens")

    def _over(self, keyring: MasterKeys) -> Vault:
        alarms = self.alarms
        attempts = Attempts(alarms.suspend_after, alarms.window, alarms.suspend_for) if alarms else None
        if not self.carried:
            return Vault(self.store, keyring, self._clock, self.limits, attempts)
        from cloister.token_vault import TokenVault

        return TokenVault(self.store, keyring, self._clock, self.limits, attempts)

    async def _check_tenancy(self) -> None:
        """See to it that nothing is ever filed under no tenant beside real ones."""
        tenanted = await self.store.tenanted()
        if tenanted is False and self.tenancy == "required":
            raise ConfigurationError(
                f"{self.store.url} holds sessions of users without a tenant, which could not be reached beside "
                "tenants: name another store, or erase those users first"
            )
        if tenanted:
            self.tenancy = "required"

    async def _ship(self) -> None:
        """Begin to serve the destinations; nothing that a turn does waits for them."""
        if not self.sinks:
            return
        store, heads = self.store, self._heads
        shipper = Shipper(
            self.sinks,
            self.alarms,
            trail=store.trail,
            note=self.vault.note,
            now=self.vault.now,
            heads=heads.newest if heads is not None else lambda: None,
            since=0 if store.volatile else to_micros(self.vault.now()),
            folder=sinks_folder(store, self._sinks_state),
        )
        await shipper.open()
        self.shipper = shipper

    async def _note_off(self) -> None:
        """Put on record which protections are switched off: whoever opens a store without one cannot do so unseen."""
        options = [(off.what, off.option) for off in getattr(self.store, "off", ())]
        if self.limits.idle_timeout is None and self.limits.absolute_timeout is None:
            options.append(("limits", "idle_timeout=None, absolute_timeout=None"))
        if self.scrub.where == "off":
            options.append(("personal data", "scrub=None"))
        if self.leaks is None:
            options.append(("others' details", "leaks=None"))
        if self.alarms is None:
            options.append(("alarms", "alarms=None"))
        noted = [event("protection.off", self.vault.now(), what=what, option=option) for what, option in options]
        if noted:
            await self.vault.ask(self.store.record, noted)

    async def __aexit__(self, *_: object) -> None:
        if self._housekeeping is not None:
            self._housekeeping.cancel()
        try:
            await self.vault.settle()
            self.sign_heads()
        finally:
            try:
                if self.shipper is not None:
                    await self.shipper.close()
            finally:
                await self._close()

    async def _close(self) -> None:
        try:
            if self.provider is not None:
                await self.provider.close()
        finally:
            await self.store.close()

    @property
    def vault(self) -> Vault:
        if self._vault is None:
            raise ConfigurationError("this cloister is not open: use it inside `async with AsyncCloister.open(…)`")
        return self._vault

    @property
    def watch(self) -> Watch:
        """Give what the checks of all turns have in common."""
        return self._watch

    def user(self, user: str, *, tenant: str | None = None) -> User:
        """Give the door to what belongs to *user*; nothing of anybody else's is reachable through it.

        Raises `ConfigurationError` if a tenant is missing or must not be named, `ValueError` for a name that is none.
        """
        self._check_named(tenant)
        return User(self, Owner(tenant, user))

    def _check_named(self, tenant: str | None) -> None:
        if tenant is None and self.tenancy == "required":
            raise ConfigurationError("name the tenant too: user(…, tenant=…); this store or this set-up has tenants")
        if tenant is not None and self.tenancy == "single":
            raise ConfigurationError('this cloister has no tenants; open it with tenancy="required" to name them')

    async def sweep(self) -> int:
        """Destroy sessions whose time is up, and what has outlived its use; give how many ended.

        Runs by itself every minute while the cloister is open.
        """
        return await upkeep.sweep(self.vault)

    async def seed(self, text: str, *, tenant: str | None = None) -> int:
        """Make what *text* says common knowledge: a catalogue, places, the hotline's number; give how much was not yet.

        Whoever claimed it, it is no evidence any more, for the users of *tenant* or, with ``scope="all"``, for all.
        Raises `ConfigurationError` without a `LeakGuard`, or where a tenant is missing or must not be named.
        """
        if self.leaks is None:
            raise ConfigurationError(
                "nothing looks at replies here, so there is nothing to seed: open(…, leaks=LeakGuard())"
            )
        if self.leaks.scope == "tenant":
            self._check_named(tenant)
        count = await self._watch.seed(text, tenant)
        await self.vault.ask(self.store.record, [event("index.seeded", self.vault.now(), count=count)])
        return count

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
            try:
                await asyncio.to_thread(self.sign_heads)
            except CloisterError as error:  # tried again in a minute, and at the end, where it raises
                _log.error("the audit log could not be signed: %s", error)

    def budget(self, model: str | None = None) -> int:
        """Give how many tokens a turn may send to *model*, or to the provider's own."""
        return self._context_tokens or window.context_tokens(model or self._model)

    async def prepare(self, model: str | None) -> None:
        """Load what counts for *model*: an exact vocabulary takes a second, for which no other task should wait."""
        if model not in self._prepared:
            await asyncio.to_thread(self.counter, model)
            self._prepared.add(model)

    def counter(self, model: str | None = None) -> window.Counter:
        """Give what counts tokens for *model*, or for the provider's own."""
        return window.counter_for(model or self._model)

    def counted(self, item: Item, model: str | None = None) -> Item:
        """Give *item* with its cost in a window."""
        counter = self.counter(model)
        if len(item.text) > _COUNTED:
            # No byte-pair vocabulary takes more tokens than bytes, and counting would hold up every other task.
            return msgspec.structs.replace(item, tokens=len(msgspec.msgpack.encode(item)), counter="bytes")
        return msgspec.structs.replace(item, tokens=window.item_tokens(item, counter), counter=counter.name)


def _utc_now() -> datetime:
    return datetime.now(UTC)


KEYS, HEADS, AUDIT_KEY, SINKS = ".keys", ".heads", ".audit-key", ".sinks"
"""How the files end that lie beside an embedded store."""


def beside(path: Path, ending: str) -> Path:
    """Give the path of a file that belongs to the embedded store at *path*: *ending* is `KEYS`, `HEADS` …"""
    return path.with_name(path.name + ending)


def default_keyring(store: Store) -> Keyring:
    """Give the keyring that a store has by itself; `ConfigurationError` where it must be named."""
    if store.volatile:
        return Keyring.generate()
    if store.path is None:
        raise ConfigurationError(
            "name the keys: open(…, keyring=Keyring.from_file(…)), or set CLOISTER_KEYS, for which `cloister keys new "
            "--print` makes a value"
        )
    if not store.path.parent.is_dir():
        raise ConfigurationError(f"the folder of {store.url} does not exist; create it, or name another file")
    path = beside(store.path, KEYS)
    if not path.exists() and store.path.exists() and os.path.getsize(store.path):
        raise ConfigurationError(
            f"{store.url} is there, but its key file {path} is not: put the file back, or name another store. "
            "Without its keys nothing in it can be opened"
        )
    if not path.exists():
        with contextlib.suppress(FileExistsError):  # made by another process in this very moment
            return Keyring.create_file(path)
    return Keyring.from_file(path)


def sinks_folder(store: Store, named: Path | None = None) -> Path | None:
    """Give the folder that says how far each destination was served: *named*, or beside an embedded store."""
    return named or (beside(store.path, SINKS) if store.path is not None else None)


def head_sink(store: Store, key: AuditKey | None, heads: Path | None = None) -> HeadFile | HeadList | None:
    """Give where signed audit heads go: the file *heads*, one beside an embedded store, or memory for one in memory.

    None if nothing signs them. Raises `ConfigurationError` if only one of key and file is given where both must be.
    """
    if store.volatile:
        return HeadList(key or AuditKey.generate())
    if store.path is None:
        if heads is None and key is None:
            return None
        if heads is None or key is None:
            raise ConfigurationError(
                f"{store.url} has no file beside which audit heads could lie: name both audit_key= and audit_heads=, "
                "a file, or neither"
            )
        return HeadFile(heads, key)
    heads = heads or beside(store.path, HEADS)
    return HeadFile(heads, key or audit_key(beside(store.path, AUDIT_KEY), heads))
