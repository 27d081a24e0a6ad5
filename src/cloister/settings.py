"""What a deployment says in a TOML file and in ``CLOISTER_*``, turned into the arguments of `AsyncCloister.open`.

The environment beats the file, and arguments beat both. The command line and the server use this; an application that
calls `AsyncCloister.open` itself is never influenced by its environment.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar, get_args
from urllib.parse import urlsplit

from cloister import files, providers, sinks, stores
from cloister.alarms import Alarms
from cloister.audit import AuditKey
from cloister.client import AsyncCloister, Tenancy
from cloister.costs import Budget, Prices
from cloister.costs.money import amount
from cloister.errors import ConfigurationError
from cloister.keyring import Keyring
from cloister.leaks.settings import PARTS, Block, LeakGuard
from cloister.model import Limits
from cloister.providers.base import Provider
from cloister.rates import Rates
from cloister.scrub.settings import Scrub
from cloister.services import Tenant
from cloister.sinks.base import Sink
from cloister.sinks.webhook import Secret
from cloister.stores.base import Store
from cloister.telemetry import Telemetry

DEFAULT_FILE = "cloister.toml"
DEFAULT_STORE = "sqlite:///cloister.db"
SERVER = "server"
"""The table of the file, and with ``CLOISTER_`` the beginning of variables, that `cloister.server.settings` reads."""

T = TypeVar("T")

_PREFIX = "CLOISTER_"
# Kubernetes sets these in every pod beside a service called "cloister"; CLOISTER_TEST_… is for our own tests, and the
# server reads CLOISTER_SERVER_… itself.
_NOT_OURS = re.compile(r"SERVICE_(HOST|PORT)(_.*)?|PORT(_[0-9]+_.*)?|TEST_.*|SERVER_.*")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_DURATION = re.compile(r"([0-9]{1,9})\s*([smhd])")
_FLAGS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a text that is not empty")
    return value


def _provider(value: object) -> str | Provider:
    return value if value is not None and hasattr(value, "complete") else _text(value)  # type: ignore[return-value]


def duration(value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError("a number with its unit, such as 45s, 30m, 12h or 30d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def _lifetime(value: object) -> timedelta | None:
    if value is None or value == "never":
        return None
    try:
        length = duration(value)
    except ValueError as error:
        raise ValueError(f"{error}, or never") from None
    try:
        Limits(idle_timeout=length)
    except ValueError:
        raise ValueError("longer than nothing and at most 100 years, or never") from None
    return length


def _count(value: object) -> int:
    if isinstance(value, str) and re.fullmatch("[0-9]{1,12}", value.strip()):
        value = int(value)
    if type(value) is not int or value < 1:
        raise ValueError("a whole number from 1 on")
    return value


def _days(value: object) -> int:
    days = _count(value)
    _lifetime(f"{days}d")
    return days


def _flag(value: object) -> bool:
    flag = _FLAGS.get(value.strip().lower()) if isinstance(value, str) else value
    if not isinstance(flag, bool):
        raise ValueError("true or false")
    return flag


def _tenancy(value: object) -> Tenancy:
    if value == "single":
        return "single"
    if value == "required":
        return "required"
    raise ValueError("single or required")


_SCRUB = tuple(
    field.name for field in dataclasses.fields(Scrub) if field.name not in ("detectors", "limit", "person_label")
)


def _scrub(value: object) -> Scrub:
    if isinstance(value, Scrub):
        return value
    if value == "seed":
        return Scrub.seed()
    said: dict[str, Any] = {}
    if value in ("model", "store", "off"):
        said["where"] = value
    elif isinstance(value, str):
        said = {name.strip(): action.strip() for name, _, action in (part.partition("=") for part in value.split(","))}
        if "restore_tools" in said:
            said["restore_tools"] = said["restore_tools"].split()
    elif isinstance(value, dict):
        said = value
    try:
        if said and said.keys() <= set(_SCRUB):
            return Scrub(**said)
    except (TypeError, ValueError) as error:
        raise ValueError(f"right in each part: {error}") from None
    raise ValueError(
        f"model, store, off, seed, or parts such as email=redact,where=store; the parts are {', '.join(_SCRUB)}"
    )


def _leaks(value: object) -> LeakGuard | None:
    if value is None or isinstance(value, LeakGuard):
        return value
    said: dict[str, Any] = {}
    if value == "off":
        return None
    if value in get_args(Block):
        said["block"] = value
    elif isinstance(value, str):
        said = {name.strip(): part.strip() for name, _, part in (part.partition("=") for part in value.split(","))}
    elif isinstance(value, dict):
        said = dict(value)
    try:
        if "plant" in said:
            said["plant"] = _flag(said["plant"])
        if said and said.keys() <= set(PARTS):
            return LeakGuard(**said)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"right in each part: {error}") from None
    raise ValueError(f"{', '.join(get_args(Block))}, off, or parts such as block=any,hold=reply; {_PARTS_SAID}")


_PARTS_SAID = f"the parts are {', '.join(PARTS)}"


def _alarms(value: object) -> Alarms | None:
    if value is None or isinstance(value, Alarms):
        return value
    said: dict[str, Any] = {}
    if value == "off":
        return None
    if isinstance(value, str):
        said = {name.strip(): part.strip() for name, _, part in (part.partition("=") for part in value.split(","))}
    elif isinstance(value, dict):
        said = dict(value)
    if said and said.keys() <= set(_ALARMS):
        try:
            for name, part in said.items():
                said[name] = duration(part) if name in ("window", "suspend_for") else _count(part)
            return Alarms(**said)
        except ValueError as error:
            raise ValueError(f"right in each part: {error}") from None
    raise ValueError(f"off, or parts such as refusals=3,window=5m; the parts are {', '.join(_ALARMS)}")


_OF_TENANTS = (
    "provider",
    "model",
    "base_url",
    "idle_timeout",
    "absolute_timeout",
    "keep_days",
    "scrub",
    "context_tokens",
    "keep_failed",
    "budget_user_daily",
    "budget_user_monthly",
    "budget_tenant_daily",
    "budget_tenant_monthly",
    "budget_session",
)


def _tenants(value: object) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict) or not all(isinstance(settings, dict) for settings in value.values()):
        raise ValueError("a table for each tenant, [tenants.acme], in a file")
    read: dict[str, dict[str, Any]] = {}
    for tenant, settings in value.items():
        for name in settings.keys() - set(_OF_TENANTS):
            raise ValueError(f"of settings that tenants can have apart, not {name}: {', '.join(_OF_TENANTS)}")
        try:
            read[tenant] = {name: _KNOWN[name][0](said) for name, said in settings.items()}
        except ValueError as error:
            raise ValueError(f"right in the table of each tenant: a value there must be {error}") from None
    return read


_ALARMS = tuple(field.name for field in dataclasses.fields(Alarms))


def _sinks(value: object) -> tuple[str | Sink, ...]:
    said = value.split() if isinstance(value, str) else value
    if not isinstance(said, list | tuple):
        raise ValueError("destinations with spaces between them, or a list of them")
    for each in said:
        if isinstance(each, str):
            try:
                sinks.connect(each, "x" * 32)
            except ConfigurationError as error:
                raise ValueError(f"right in each destination: {error}") from None
        elif not hasattr(each, "deliver"):
            raise ValueError("destinations, each as text or a Sink")
    return tuple(Secret(each) if isinstance(each, str) else each for each in said)


def _webhook_secret(value: object) -> Secret:
    if not isinstance(value, Secret):
        raise ValueError("in the environment only (CLOISTER_WEBHOOK_SECRET)")
    return value


def _keys(value: object) -> Keyring:
    if not isinstance(value, Keyring):
        raise ValueError("in the environment only (CLOISTER_KEYS); in a file, name a key_file")
    return value


def _currency(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch("[A-Z]{3}", value):
        raise ValueError("three capitals, such as USD")
    return value


# Each setting: how its value is read, and what it is for.
_KNOWN: dict[str, tuple[Callable[[object], Any], str]] = {
    "store": (_text, "where sessions lie, as a URL"),
    "provider": (_provider, "which model service answers"),
    "model": (_text, "which of its models"),
    "base_url": (_text, "the provider's address, where it is not the usual one"),
    "keys": (_keys, "the master keys themselves; in the environment only"),
    "key_file": (_text, "the file of the master keys, instead of one beside the store"),
    "audit_key_file": (_text, "the file of the key that signs the audit log, instead of one beside the store"),
    "audit_heads": (_text, "the file of what that key has signed, instead of one beside the store or the key"),
    "idle_timeout": (_lifetime, "how long a session lives after what was last said"),
    "absolute_timeout": (_lifetime, "how long a session lives in all"),
    "keep_days": (_days, "instead of both: keep a session for so many days after it was last used"),
    "turn_wait": (duration, "how long a turn waits for the one before it"),
    "context_tokens": (_count, "how many tokens a turn may send to the model"),
    "tenancy": (_tenancy, "single, or required: every user belongs to a tenant"),
    "scrub": (
        _scrub,
        "what becomes of personal data: model (replaced before model and store), store, off, seed, or parts",
    ),
    "leaks": (
        _leaks,
        "which replies with other users' details are withheld: strong (evidence), any, canary, off, or parts",
    ),
    "alarms": (_alarms, "what is an alarm, and from when on a user is refused for a while: off, or parts"),
    "sinks": (_sinks, "where entries and alarms go: log, file:…, https://…, each with its severity as in alert=log"),
    "sinks_state": (_text, "the folder that says how far each was served, instead of one beside the store"),
    "webhook_secret": (_webhook_secret, "what webhooks are signed with; in the environment only"),
    "keep_failed": (_flag, "keep questions whose answer failed, marked"),
    "budget_user_daily": (amount, "how much each user may spend on a day of UTC, such as 2.00"),
    "budget_user_monthly": (amount, "how much each user may spend in a month"),
    "budget_tenant_daily": (amount, "how much all users of a tenant may spend on a day; all users, without tenants"),
    "budget_tenant_monthly": (amount, "how much they may spend in a month"),
    "budget_session": (amount, "how much a session may cost in all"),
    "budget_currency": (_currency, "the currency of the budgets, which has to be that of the prices; USD if not set"),
    "tenants": (
        _tenants,
        "what is different for single tenants, a table for each: provider, model, limits, scrub, budget_… …; in a file",
    ),
    "prices": (_text, "a TOML file of prices, laid over those that cloister knows"),
}
NAMES = tuple(_KNOWN)
BUDGETS = ("user_daily", "user_monthly", "tenant_daily", "tenant_monthly", "session")
"""What ``budget_…`` can be set for."""

_UNSAID = {"keys", "webhook_secret"}

# Two ways to say one thing: the one that is nearer wins, and both in one place contradict each other.
_RIVALS = (("keys", "key_file"), ("keep_days", "idle_timeout"), ("keep_days", "absolute_timeout"))
# What is said about a provider is not said about another one that takes its place.
_ABOUT_PROVIDER = ("model", "base_url")


@dataclass(frozen=True, slots=True)
class Settings:
    """Be what is set, each value in its own type. Made by `read`; ``config`` is the file that was read."""

    store: str = DEFAULT_STORE
    provider: str | Provider | None = None
    model: str | None = None
    base_url: str | None = None
    keys: Keyring | None = None
    key_file: str | None = None
    audit_key_file: str | None = None
    audit_heads: str | None = None
    idle_timeout: timedelta | None = Limits.strict().idle_timeout
    absolute_timeout: timedelta | None = Limits.strict().absolute_timeout
    keep_days: int | None = None
    turn_wait: timedelta = Limits.strict().turn_wait
    context_tokens: int | None = None
    tenancy: Tenancy = "single"
    scrub: Scrub = Scrub()
    leaks: LeakGuard | None = LeakGuard()
    alarms: Alarms | None = Alarms()
    sinks: tuple[str | Sink, ...] = ()
    sinks_state: str | None = None
    webhook_secret: Secret | None = field(default=None, repr=False)
    keep_failed: bool = False
    tenants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    budget_user_daily: Decimal | None = None
    budget_user_monthly: Decimal | None = None
    budget_tenant_daily: Decimal | None = None
    budget_tenant_monthly: Decimal | None = None
    budget_session: Decimal | None = None
    budget_currency: str = "USD"
    prices: str | None = None
    config: Path | None = None
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Where a provider finds its API key."""

    @classmethod
    def read(
        cls, *, environ: MutableMapping[str, str] = os.environ, file: str | os.PathLike[str] | None = None, **given: Any
    ) -> Settings:
        """Read the file, then *environ*, then what is *given*; what comes later beats what came before.

        The file is *file*, or what ``CLOISTER_CONFIG`` names, or ``cloister.toml`` in the working folder if there is
        one. ``CLOISTER_KEYS`` and ``CLOISTER_WEBHOOK_SECRET`` are taken out of *environ*. Raises `ConfigurationError`
        for an unknown setting or a bad value, which it names.
        """
        path = find(environ, file)
        merged: dict[str, Any] = {}
        for source in (_from_file(path), _from_environ(environ), _from_arguments(given)):
            _lay_over(merged, source)
        return cls(**merged, config=path, environ=environ)

    def limits(self) -> Limits:
        """Give how long sessions live."""
        if self.keep_days is not None:
            return dataclasses.replace(Limits.keep(self.keep_days), turn_wait=self.turn_wait)
        return Limits(self.idle_timeout, self.absolute_timeout, self.turn_wait)

    def connect(self) -> Store:
        """Give the store, not yet opened."""
        return stores.connect(self.store)

    def answerer(self) -> Provider | None:
        """Give the provider, with its model and its key from the environment; None if none is set."""
        if not isinstance(self.provider, str):
            return self.provider
        if self.base_url is not None:
            return _elsewhere(self.provider, self.base_url, self.model, self.environ)
        provider = providers.connect(self.provider, environ=self.environ)
        if provider is not None and self.model is not None and self.provider != "offline":
            provider.model = self.model
        return provider

    def keyring(self) -> Keyring | None:
        """Give the keys that are named; None leaves it to the store's own key file."""
        if self.keys is not None or self.key_file is None:
            return self.keys
        return Keyring.from_file(self.key_file)

    def audit_key(self) -> AuditKey | None:
        """Give the key that signs the audit log, where one is named; None leaves it to the store's own."""
        if self.audit_key_file is None:
            return None
        return AuditKey.from_text(files.read_secret(Path(self.audit_key_file), "audit key"))

    def heads_path(self) -> Path | None:
        """Give the file of signed audit heads, where one is named; None leaves it to the store's own."""
        if self.audit_heads is not None:
            return Path(self.audit_heads)
        store = self.connect()
        if self.audit_key_file is None or store.path is not None or store.volatile:
            return None
        return Path(f"{self.audit_key_file}.heads")

    def budget(self) -> Budget | None:
        """Give how much may be spent; None if nothing bounds it. Raises `ConfigurationError`."""
        given = {name: getattr(self, f"budget_{name}") for name in BUDGETS}
        if all(limit is None for limit in given.values()):
            return None
        try:
            return Budget(**given, currency=self.budget_currency)
        except ValueError as error:
            raise ConfigurationError(f"the budgets contradict each other: {error}") from None

    def price_table(self) -> Prices:
        """Give what models cost: cloister's table, with the file that is named laid over it."""
        return Prices.default() if self.prices is None else Prices.read(self.prices)

    def said(self) -> dict[str, str]:
        """Give what is set otherwise than by itself, and no secret, as text: of addresses only whose they are."""
        usual = Settings()
        said = {name: getattr(self, name) for name in NAMES if name not in _UNSAID}
        said = {name: value for name, value in said.items() if value != getattr(usual, name)}
        if self.sinks:
            said["sinks"] = ", ".join(sink.name for sink in self.destinations())
        return {name: _public(name, value) for name, value in said.items()} | {"store": self.connect().url}

    def tenants_apart(self) -> dict[str, Tenant]:
        """Give what is set for single tenants."""
        return {name: self._tenant(values) for name, values in self.tenants.items()}

    def _tenant(self, values: Mapping[str, Any]) -> Tenant:
        # A provider's address is not that of the one that takes its place, and one lifetime gives way to another.
        merged = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        _lay_over(merged, values)
        theirs = Settings(**merged)
        own_limits = values.keys() & {"idle_timeout", "absolute_timeout", "keep_days"}
        return Tenant(
            provider=theirs.answerer() if values.keys() & {"provider", "model", "base_url"} else None,
            limits=theirs.limits() if own_limits else None,
            scrub=values.get("scrub"),
            context_tokens=values.get("context_tokens"),
            keep_failed=values.get("keep_failed"),
            budget=theirs.budget() if any(name.startswith("budget_") for name in values) else None,
        )

    def destinations(self) -> list[Sink]:
        """Give where entries and alarms go. Raises `ConfigurationError`."""
        return [sinks.connect(each, self.webhook_secret) if isinstance(each, str) else each for each in self.sinks]

    def open(
        self,
        *,
        clock: Callable[[], datetime] | None = None,
        telemetry: Sequence[Telemetry] = (),
        rates: Rates | None = None,
    ) -> AsyncCloister:
        """Give a cloister that is set up so, to be opened by ``async with``. Raises `ConfigurationError`.

        *rates* are for whoever sets them elsewhere, as the server does.
        """
        cloister = AsyncCloister.open(
            self.connect(),
            provider=self.answerer(),
            keyring=self.keyring(),
            limits=self.limits(),
            context_tokens=self.context_tokens,
            tenancy=self.tenancy,
            clock=clock,
            audit_key=self.audit_key(),
            audit_heads=self.heads_path(),
            keep_failed=self.keep_failed,
            scrub=self.scrub,
            leaks=self.leaks,
            alarms=self.alarms,
            sinks=self.destinations(),
            sinks_state=self.sinks_state,
            budget=self.budget(),
            prices=None if self.prices is None else self.price_table(),
            rates=rates,
            tenants=self.tenants_apart(),
            telemetry=telemetry,
        )
        if self.provider is not None:  # else it is opened to be looked after, not for conversations
            cloister.configuration = self.said()
        return cloister


def open(
    *,
    environ: MutableMapping[str, str] = os.environ,
    file: str | os.PathLike[str] | None = None,
    clock: Callable[[], datetime] | None = None,
    **overrides: Any,
) -> AsyncCloister:
    """Give a cloister as file, environment and *overrides* say, to be opened by ``async with``.

    *overrides* are settings by name. See `Settings.read`; raises `ConfigurationError`.
    """
    return Settings.read(environ=environ, file=file, **overrides).open(clock=clock)


def describe() -> list[tuple[str, str]]:
    """Give the name of each setting and what it is for."""
    return [(name, meaning) for name, (_, meaning) in _KNOWN.items()]


def find(environ: Mapping[str, str], file: str | os.PathLike[str] | None = None) -> Path | None:
    """Give the path of the configuration file, as `Settings.read` says; None if there is none."""
    named = file if file is not None else environ.get("CLOISTER_CONFIG")
    if named is None:
        return Path(DEFAULT_FILE) if Path(DEFAULT_FILE).exists() else None
    if not Path(named).is_file():
        raise ConfigurationError(f"the configuration file {named} does not exist; CLOISTER_CONFIG or --config names it")
    return Path(named)


def load(path: Path) -> dict[str, Any]:
    """Read a configuration file as it is. Raises `ConfigurationError`."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)  # amounts stay exact
    except OSError as error:
        raise ConfigurationError(f"the configuration file {path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # not UTF-8, or not TOML: that message says where
        raise ConfigurationError(f"the configuration file {path} is not TOML: {error}") from None


def _from_file(path: Path | None) -> dict[str, Any]:
    said = {} if path is None else load(path)
    return {name: _value(name, value, f"{name} in {path}") for name, value in said.items() if name != SERVER}


def _from_environ(environ: MutableMapping[str, str]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if "CLOISTER_KEYS" in environ:
        said["keys"] = Keyring.from_env(environ)
    if secret := environ.pop("CLOISTER_WEBHOOK_SECRET", None):
        said["webhook_secret"] = Secret(secret)
    for variable, value in environ.items():
        name = variable.removeprefix(_PREFIX)
        if variable.startswith(_PREFIX) and name != "CONFIG" and not _NOT_OURS.fullmatch(name):
            said[name.lower()] = _value(name.lower(), value, variable)
    return said


def _from_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _value(name, value, name) for name, value in given.items()}


def _value(name: str, value: object, where: str) -> Any:
    """Read the value of one setting, which *where* names; values are not repeated, they may be secrets."""
    if name not in _KNOWN:
        raise ConfigurationError(f"{where} is no setting of cloister; the settings are {', '.join(NAMES)}")
    try:
        return _KNOWN[name][0](value)
    except ValueError as error:
        raise ConfigurationError(f"{where} must be {error}") from None


def _lay_over(merged: dict[str, Any], source: Mapping[str, Any]) -> None:
    for one, other in _RIVALS:
        if one in source and other in source:
            raise ConfigurationError(f"{one} and {other} are both set, and say the same thing twice; keep one of them")
        if one in source:
            merged.pop(other, None)
        if other in source:
            merged.pop(one, None)
    if "provider" in source and merged.get("provider") not in (None, source["provider"]):
        for name in _ABOUT_PROVIDER:
            merged.pop(name, None)
    merged.update(source)


def _public(name: str, value: object) -> str:
    """Say what *value* a setting has, as far as everybody may know it."""
    if name == "tenants" and isinstance(value, Mapping):
        theirs = {tenant: {part: _public(part, one) for part, one in parts.items()} for tenant, parts in value.items()}
        return str(theirs)
    if name == "provider":
        return str(value if isinstance(value, str) else getattr(value, "name", ""))
    if name == "base_url":  # its path may be a key of its own
        address = urlsplit(str(value))
        return f"{address.scheme}://{address.netloc.rpartition('@')[2]}"
    if dataclasses.is_dataclass(value):
        parts = {part.name: (getattr(value, part.name), part.default) for part in dataclasses.fields(value)}
        return ", ".join(f"{part}={one}" for part, (one, usual) in parts.items() if one != usual) or "as usual"
    return "off" if value is None else str(value)


def _elsewhere(name: str, base_url: str, model: str | None, environ: Mapping[str, str]) -> Provider:
    """Give a known provider at another address: a proxy, a gateway, one's own machine."""
    if name == "anthropic":
        from cloister.providers import anthropic

        return anthropic.Anthropic(api_key=environ.get(anthropic.VARIABLE), model=model, base_url=base_url)
    from cloister.providers import openai

    if name not in openai.PROFILES:
        raise ConfigurationError(f"base_url goes with one of {', '.join(openai.PROFILES)}, anthropic; not with {name}")
    key = environ.get(openai.PROFILES[name].variable)
    return openai.OpenAICompatible(name, api_key=key, model=model, base_url=base_url)
