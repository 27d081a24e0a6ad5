"""The way in for applications: opens a store with its keys, keeps house, and gives out users."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import msgspec

from cloister import providers, stores, upkeep
from cloister.alarms import Alarms
from cloister.attempts import Attempts
from cloister.audit import AuditKey, is_alert
from cloister.costs import Budget, Prices
from cloister.credentials import Credentials
from cloister.errors import CloisterError, ConfigurationError
from cloister.guard import Watch
from cloister.keyring import Keyring
from cloister.leaks.settings import LeakGuard
from cloister.model import Limits, Owner, to_micros
from cloister.providers.base import Provider
from cloister.rates import Rates
from cloister.scrub.settings import Scrub
from cloister.sealing import MasterKeys
from cloister.services import Services, Tenant, check_context
from cloister.shipping import Shipper
from cloister.sinks.base import Sink
from cloister.sinks.heads import HeadFile, HeadList, HeadSink, audit_key
from cloister.stores.base import Store
from cloister.telemetry import Everybody, Telemetry
from cloister.user import User
from cloister.vault import Vault

Tenancy = Literal["single", "required"]

_log = logging.getLogger("cloister")

_NEWEST = 200  # entries: where they do not say how a cloister is set up, it is said again
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
        tenants: Mapping[str, Tenant] = MappingProxyType({}),
        telemetry: Sequence[Telemetry] = (),
        budget: Budget | None = None,
        prices: Prices | None = None,
        rates: Rates | None = None,
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
        becomes of replies with other users' details; None lets them pass, which is put on record too. *tenants* says
        what is different for the users of single tenants. *telemetry* watches turns and stores: a
        `cloister.metrics.Prometheus`, a `cloister.traces.Traces`. *budget* bounds what turns may cost, by *prices*:
        `Prices.default` unless given. *rates* bound how many turns run at once. *alarms* say what is a breach attempt,
        after which a user is refused for a while; None never refuses, which is put on record too. *sinks* are where
        entries and alarms go, besides the store; how far each was served is kept in the folder *sinks_state*, beside an
        embedded store unless given, and else in memory. Raises `ConfigurationError`.
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
            tenants,
            telemetry,
            budget,
            prices,
            rates,
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
        tenants: Mapping[str, Tenant],
        telemetry: Sequence[Telemetry],
        budget: Budget | None,
        prices: Prices | None,
        rates: Rates | None,
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
        for watcher in telemetry:
            if missing := [part for part in ("recorded", "waited", "turn") if not hasattr(watcher, part)]:
                raise ConfigurationError(f"{type(watcher).__name__} is no telemetry: it lacks {', '.join(missing)}")
        if tenancy not in ("single", "required"):
            raise ConfigurationError(f"tenancy is 'single' or 'required', not {tenancy!r}")
        if tenants and tenancy == "single":
            raise ConfigurationError('tenants= says what is different for single tenants: name tenancy="required" too')
        for name in tenants:
            try:
                Owner(name, "anybody")
            except ValueError as error:  # it would hold for nobody, and nobody would notice
                raise ConfigurationError(f"tenants= is for tenants by their names: {error}") from None
        check_context(context_tokens)
        self.store = store
        self.provider = provider
        self.limits = limits
        self.tenancy: Tenancy = tenancy
        self._context_tokens = context_tokens
        self._tenants = {name: tenant.connected() for name, tenant in tenants.items()}
        self.keep_failed = keep_failed
        self.scrub = scrub
        self.leaks = leaks
        self.alarms = alarms
        self.sinks = tuple(sinks)
        self._sinks_state = None if sinks_state is None else Path(sinks_state)
        self.shipper: Shipper | None = None
        self.configuration: Mapping[str, str] = {}
        """How it is set up, without secrets: what differs from before is put on record."""
        self._clock = clock
        self._keyring = keyring
        self._audit_key = audit_key
        self._audit_heads = None if audit_heads is None else Path(audit_heads)
        self._heads: HeadSink | None = None
        self._housekeeping: asyncio.Task[None] | None = None
        self._budget = budget
        self._prices = prices
        self._rates = rates
        self._telemetry = Everybody(telemetry) if telemetry else None
        self._vault: Vault | None = None
        self._services: Services | None = None
        self._tenanted: dict[str, Services] = {}

    async def __aenter__(self) -> AsyncCloister:
        if self._vault is not None:
            raise ConfigurationError("this cloister is open already, or was: call open() again for another")
        keyring = self._keyring or default_keyring(self.store)
        self._heads = head_sink(self.store, self._audit_key, self._audit_heads)
        await self.store.open()
        try:
            self._vault = self._over(keyring)
            if self._telemetry is not None:
                self._vault.telemetry = self._telemetry
                self._vault.listeners.append(self._telemetry.recorded)
            self._services = self._everybodys(self._vault)
            await self._services.prepare(None)
            self._tenanted = {name: self._services.but(tenant) for name, tenant in self._tenants.items()}
            await self._check_tenancy()
            began = self.vault.now()
            await self._note_off()
            await self._note_configuration()
            self.sign_heads()
            await self._ship(began)
        except BaseException:
            await self._close()
            raise
        # On behalf of nobody: else what is swept would be on record as coming from whoever happened to open this.
        self._housekeeping = asyncio.create_task(self._keep_house(), context=contextvars.Context())
        return self

    def _everybodys(self, vault: Vault) -> Services:
        watch = Watch(self.leaks, vault)
        tokens = self._context_tokens
        prices = self._prices or _known_prices()
        return Services(
            vault,
            watch,
            self.provider,
            self.limits,
            self.scrub,
            tokens,
            self.keep_failed,
            self._budget,
            prices,
            self._rates,
        )

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

    async def _ship(self, began: datetime) -> None:
        """Serve the destinations, new ones from when opening *began*; nothing that a turn does waits for them."""
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
            dropped=lambda: heads.read().dropped if heads is not None else {},
            since=0 if store.volatile else to_micros(began),
            folder=sinks_folder(store, self._sinks_state),
        )
        await shipper.open()
        self.shipper = shipper
        self.vault.listeners.append(lambda noted: shipper.kick() if any(map(is_alert, noted)) else None)

    async def _note_configuration(self) -> None:
        """Put on record how this cloister is set up, unless that stands among the newest entries."""
        if not self.configuration:
            return
        said = json.dumps(self.configuration, sort_keys=True).encode()
        digest = hashlib.sha256(said).hexdigest()[:24]
        known: list[str] = []
        with contextlib.suppress(ConfigurationError):  # of a log that cannot be read here: then it is said each time
            newest = (await self.store.audit_tail(_NEWEST)).entries
            known = [entry.detail for entry in newest if entry.event == "configuration.changed"]
        if not known or digest not in known[-1]:
            noted = self.vault.event("configuration.changed", settings=digest)
            noted = msgspec.structs.replace(noted, detail={**self.configuration, **noted.detail})
            await self.vault.ask(self.store.record, [noted])

    async def _note_off(self) -> None:
        """Put on record which protections are switched off: whoever opens a store without one cannot do so unseen."""
        options = [(off.what, off.option) for off in getattr(self.store, "off", ())]
        options += switched_off(self.limits, self.scrub)
        for name, tenant in self._tenants.items():
            options += [
                (what, f"{option} of tenant {name}") for what, option in switched_off(tenant.limits, tenant.scrub)
            ]
        if self.leaks is None:
            options.append(("others' details", "leaks=None"))
        if self.alarms is None:
            options.append(("alarms", "alarms=None"))
        noted = [self.vault.event("protection.off", what=what, option=option) for what, option in options]
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
            for provider in self._providers():
                await provider.close()
        finally:
            await self.store.close()

    def _providers(self) -> Iterable[Provider]:
        every = (self.provider, *[tenant.provider for tenant in self._tenants.values()])
        return {id(one): one for one in every if one is not None and not isinstance(one, str)}.values()

    @property
    def vault(self) -> Vault:
        if self._vault is None:
            raise _not_open()
        return self._vault

    @property
    def services(self) -> Services:
        """Give what the turns of everybody have in common, but of users whose tenant is set up otherwise."""
        if self._services is None:
            raise _not_open()
        return self._services

    def user(self, user: str, *, tenant: str | None = None) -> User:
        """Give the door to what belongs to *user*; nothing of anybody else's is reachable through it.

        Raises `ConfigurationError` if a tenant is missing or must not be named, `ValueError` for a name that is none.
        """
        return self.user_of(Owner(tenant, user))

    def user_of(self, owner: Owner) -> User:
        """Give the same for an owner that is one already."""
        self._check_named(owner.tenant)
        return User(self.services_of(owner), owner)

    @property
    def credentials(self) -> Credentials:
        """Give what makes, lists, revokes and checks keys of tenants and tokens of their users, for a server."""
        if self.tenancy == "single":
            raise ConfigurationError('keys and tokens are of tenants: open with tenancy="required"')
        return Credentials(self.vault)

    def services_of(self, owner: Owner) -> Services:
        """Give what the turns of *owner*'s tenant have in common."""
        return self._tenanted.get(owner.tenant or "", self.services)

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
        count = await self.services.watch.seed(text, tenant)
        await self.vault.ask(self.store.record, [self.vault.event("index.seeded", count=count)])
        return count

    async def note_operator(self, owner: Owner, action: str, reason: str) -> None:
        """Put on record that an operator is about to do *action* to what is *owner*'s, and why."""
        noted = self.vault.event("operator.access", owner, action=action, reason=reason)
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


def switched_off(limits: Limits | None, scrub: Scrub | None) -> Iterator[tuple[str, str]]:
    """Name the protections that are switched off by what is set, and by which option; None is not set."""
    if limits is not None and limits.idle_timeout is None and limits.absolute_timeout is None:
        yield "limits", "idle_timeout=None, absolute_timeout=None"
    if scrub is not None and scrub.where == "off":
        yield "personal data", "scrub=None"


@functools.cache
def _known_prices() -> Prices:
    return Prices.default()


def _not_open() -> ConfigurationError:
    return ConfigurationError("this cloister is not open: use it inside `async with AsyncCloister.open(…)`")


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
