"""What ``cloister serve`` is told besides: the table ``[server]`` of the TOML file, and ``CLOISTER_SERVER_*``.

The environment beats the file, and arguments beat both, as in `cloister.settings`. Issuers and policies are tables, and
so in the file only.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from cloister import settings
from cloister.errors import ConfigurationError
from cloister.rates import Rates
from cloister.server.issuers import Issuer, SharedKey, check_tenant

Metrics = Literal["operator", "open", "off"]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

ITEMS = ("system", "developer", "assistant", "tool", "instructions")
"""What end users may be allowed to send besides their own words."""
_PREFIX = "CLOISTER_SERVER_"
# Kubernetes sets these in every pod beside a service called "cloister-server"; CLOISTER_SERVER_PORT too, as an address.
_NOT_OURS = re.compile(r"SERVICE_(HOST|PORT)(_.*)?|PORT_[0-9]+_.*")
_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20}
_SIZE = re.compile(r"([0-9]{1,12})\s*(|KiB|MiB)")
_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_VARIABLE = re.compile("[A-Za-z_][A-Za-z0-9_]{0,127}")
_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}")


@dataclass(frozen=True, slots=True)
class Policy:
    """Say what the users of a tenant may do, and what their application is believed.

    ``end_users_may`` names the items that an end user's own token may send besides words of the user. With
    ``body_user``, a service may name its user in the standard fields ``safety_identifier`` and ``user`` of the body:
    only for applications that do not send one constant there. ``models`` takes the place of the server's.
    """

    end_users_may: tuple[str, ...] = ()
    body_user: bool = False
    models: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if unknown := set(self.end_users_may) - set(ITEMS):
            raise ConfigurationError(f"end_users_may names some of {', '.join(ITEMS)}; not {', '.join(unknown)}")


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Be how the server is set up, each value in its own type. Made by `read`, or by hand."""

    host: str = "127.0.0.1"
    port: int = 8787
    workers: int = 1
    tls_cert: str | None = None
    tls_key: str | None = None
    trusted_proxies: tuple[Network, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_body: int = 1 << 20
    max_headers: int = 32 << 10
    max_items: int = 1_000
    models: tuple[str, ...] = ()
    requests_per_minute_user: int | None = 120
    requests_per_minute_tenant: int | None = 6_000
    turns_at_once_user: int | None = 8
    turns_at_once_tenant: int | None = 256
    shutdown_grace: timedelta = timedelta(seconds=30)
    metrics: Metrics = "operator"
    issuers: tuple[Issuer, ...] = ()
    default: Policy = Policy()
    policies: Mapping[str, Policy] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigurationError("server.tls_cert and server.tls_key go together; set both, or neither")
        names = [issuer.issuer for issuer in self.issuers]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ConfigurationError(f"the issuer {', '.join(sorted(twice))} is there twice; which would be believed?")

    @classmethod
    def read(
        cls, *, environ: Mapping[str, str] = os.environ, file: str | os.PathLike[str] | None = None, **given: Any
    ) -> ServerSettings:
        """Read the table ``[server]``, then *environ*, then what is *given*; what comes later beats what came before.

        The file is that of `cloister.settings.Settings.read`. Raises `ConfigurationError` for an unknown setting or a
        bad value, which it names.
        """
        said = _from_file(settings.find(environ, file), environ)
        said |= _from_environ(environ)
        said |= {name: _value(name, value, f"server.{name}") for name, value in given.items()}
        return cls(**said)

    @property
    def loopback(self) -> bool:
        """Say whether only this machine can reach the server."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def policy(self, tenant: str | None) -> Policy:
        """Give the policy of *tenant*: its own, or that for everybody."""
        return self.default if tenant is None else self.policies.get(tenant, self.default)

    def rates(self) -> Rates | None:
        """Give how many turns may run at once."""
        user, tenant = self.turns_at_once_user, self.turns_at_once_tenant
        return None if user is None and tenant is None else Rates(user, tenant)

    def said(self) -> dict[str, str]:
        """Give what is set otherwise than by itself, and no secret, as text."""
        usual = ServerSettings()
        names = [each.name for each in dataclasses.fields(self)]
        changed = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(usual, name)}
        return {f"server.{name}": _public(value) for name, value in changed.items()}


def describe() -> list[tuple[str, str]]:
    """Give the name of each setting in the table ``[server]``, and what it is for."""
    return [(name, meaning) for name, (_, meaning) in _KNOWN.items()] + list(TABLES.items())


# --- values -----------------------------------------------------------------------------------------------------------


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a text that is not empty")
    return value


def _texts(value: object) -> tuple[str, ...]:
    """Read one text or a list of them, as a file has it."""
    several = [value] if isinstance(value, str) else value
    if not isinstance(several, list | tuple) or not all(isinstance(each, str) for each in several):
        raise ValueError("a text or a list of texts")
    return tuple(several)


def _words(value: object) -> tuple[str, ...]:
    """Read a list, which the environment has with spaces or commas between."""
    return tuple(re.split(r"[\s,]+", value.strip(" ,"))) if isinstance(value, str) and value.strip() else _texts(value)


def _whole(low: int, high: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        if isinstance(value, str) and re.fullmatch("[0-9]{1,12}", value.strip()):
            value = int(value)
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"a whole number from {low:,} to {high:,}")
        return value

    return read


def _limit(value: object) -> int | None:
    if value is None or value == "off":
        return None
    try:
        return _whole(1, 1_000_000_000)(value)
    except ValueError:
        raise ValueError("a whole number from 1 on, or off") from None


def _size(low: int, high: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        match = _SIZE.fullmatch(str(value).strip()) if type(value) in (int, str) else None
        size = int(match[1]) * _UNITS[match[2]] if match else 0
        if not low <= size <= high:
            raise ValueError(f"a number of bytes from {low:,} to {high:,}, such as 64KiB or 1MiB")
        return size

    return read


def _grace(value: object) -> timedelta:
    grace = settings.duration(value)
    if grace > timedelta(hours=1):
        raise ValueError("at most 1h")
    return grace


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _networks(value: object) -> tuple[Network, ...]:
    said = [str(each) for each in value] if isinstance(value, list | tuple) else value
    try:
        found = tuple(ipaddress.ip_network(each) for each in _words(said))
    except ValueError:
        raise ValueError("addresses or networks, such as 10.0.0.7 or 10.0.0.0/8, with spaces between them") from None
    if any(network.prefixlen == 0 for network in found):
        raise ValueError("addresses or networks of your proxies, and not of everybody")
    return found


def _origins(value: object) -> tuple[str, ...]:
    origins = _words(value)
    if not all(_ORIGIN.fullmatch(origin) for origin in origins):
        raise ValueError("origins as browsers send them, such as https://chat.example; never *")
    return origins


def _models(value: object) -> tuple[str, ...]:
    models = _words(value)
    if not all(_NAME.fullmatch(model) for model in models):
        raise ValueError("names of models")
    return models


def _some_models(value: object) -> tuple[str, ...] | None:
    return None if value is None else _models(value)


def _metrics(value: object) -> Metrics:
    for known in get_args(Metrics):
        if value == known:
            return known  # type: ignore[no-any-return]
    raise ValueError("operator (with an operator's key), open (to everybody) or off")


# Each setting: how its value is read, and what it is for.
_KNOWN: dict[str, tuple[Callable[[object], Any], str]] = {
    "host": (_text, "the address that the server listens on; beyond this machine only with keys configured"),
    "port": (_whole(0, 65_535), "its port; 0 for any that is free"),
    "workers": (_whole(1, 256), "how many processes answer"),
    "tls_cert": (_text, "the file of the certificate, with those between it and the authority, as PEM"),
    "tls_key": (_text, "the file of its private key, as PEM"),
    "trusted_proxies": (_networks, "addresses or networks of proxies whose word on a caller's address is believed"),
    "cors_origins": (_origins, "which web pages' scripts may call the server; none unless set"),
    "max_body": (_size(1 << 10, 64 << 20), "how long the body of a request may be"),
    "max_headers": (_size(8 << 10, 1 << 20), "how long its headers may be"),
    "max_items": (_whole(1, 100_000), "how many items or messages it may bring"),
    "models": (_models, "which models may be asked for; only the provider's own unless set"),
    "requests_per_minute_user": (_limit, "how often a user may ask in a minute, or off"),
    "requests_per_minute_tenant": (_limit, "how often all users of a tenant may, or off"),
    "turns_at_once_user": (_limit, "how many turns of a user may be under way at once, or off"),
    "turns_at_once_tenant": (_limit, "how many of all users of a tenant may, or off"),
    "shutdown_grace": (_grace, "how long answers under way are waited for when the server is stopped"),
    "metrics": (_metrics, "who may read /metrics: operator, open (everybody) or off"),
}
TABLES = {
    "issuers": "whose tokens (JWT) are believed, a table [[server.issuers]] for each; in a file",
    "policy": "what end users may send and applications are believed, a table [server.policy]; in a file",
    "tenants": "what of that is different for single tenants, a table [server.tenants.acme] for each; in a file",
}
_Readers = Mapping[str, Callable[[object], Any]]
_SETTINGS: _Readers = {name: read for name, (read, _) in _KNOWN.items()}
_POLICY: _Readers = {
    "end_users_may": _texts,
    "body_user": _flag,
    "models": _some_models,
}
_ISSUER: _Readers = {
    "issuer": _text,
    "audience": _texts,
    "algorithms": _texts,
    "tenants": _texts,
    "jwks_url": _text,
    "key_variable": _text,
    "kid": _text,
    "tenant_claim": _text,
    "user_claim": _text,
    "leeway": settings.duration,
    "types": _texts,
    "insecure": _flag,
}
_NEEDED = ("issuer", "audience", "algorithms", "tenants")


# --- where they come from ---------------------------------------------------------------------------------------------


def _from_file(path: Path | None, environ: Mapping[str, str]) -> dict[str, Any]:
    if path is None:
        return {}
    said = settings.load(path).get(settings.SERVER, {})
    if not isinstance(said, dict):
        raise ConfigurationError(f"server in {path} must be a table, [server]")
    where = f"in {path}"
    found = {name: _value(name, value, f"server.{name} {where}") for name, value in said.items() if name not in TABLES}
    if "issuers" in said:
        found["issuers"] = _issuers(said["issuers"], where, environ)
    everybody = _policy(said.get("policy", {}), f"[server.policy] {where}")
    tenants = said.get("tenants", {})
    if not isinstance(tenants, dict):
        raise ConfigurationError(f"server.tenants {where} must be a table for each tenant, [server.tenants.acme]")
    found["default"] = _made(Policy, f"[server.policy] {where}", everybody)
    policies = {}
    for tenant, values in tenants.items():
        check_tenant(tenant)
        policies[tenant] = _made(
            Policy, f"[server.tenants.{tenant}] {where}", everybody | _policy(values, where, tenant)
        )
    found["policies"] = MappingProxyType(policies)
    return found


def _from_environ(environ: Mapping[str, str]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for variable, value in environ.items():
        name = variable.removeprefix(_PREFIX)
        if not variable.startswith(_PREFIX) or _NOT_OURS.fullmatch(name):
            continue
        if name == "PORT" and value.startswith("tcp://"):
            continue
        if name.lower() in TABLES:
            raise ConfigurationError(f"{variable} must be a table in the configuration file: {TABLES[name.lower()]}")
        said[name.lower()] = _value(name.lower(), value, variable)
    return said


def _value(name: str, value: object, where: str) -> Any:
    """Read the value of one setting, which *where* names; values are not repeated, they may be secrets."""
    if name in ("issuers", "default", "policies"):
        return value  # given as an argument, in its own type
    return _read(_SETTINGS, name, value, where, "a setting of the server")


def _read(known: _Readers, name: str, value: object, where: str, what: str) -> Any:
    if name not in known:
        raise ConfigurationError(f"{where} is not {what}; there are {', '.join(known)}")
    try:
        return known[name](value)
    except ValueError as error:
        raise ConfigurationError(f"{where} must be {error}") from None


def _policy(values: object, where: str, tenant: str | None = None) -> dict[str, Any]:
    where = where if tenant is None else f"[server.tenants.{tenant}] {where}"
    if not isinstance(values, dict):
        raise ConfigurationError(f"{where} must be a table")
    return {
        name: _read(_POLICY, name, value, f"{name} of {where}", "part of a policy") for name, value in values.items()
    }


def _issuers(tables: object, where: str, environ: Mapping[str, str]) -> tuple[Issuer, ...]:
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigurationError(f"server.issuers {where} must be a table for each, [[server.issuers]]")
    return tuple(
        _issuer(table, f"[[server.issuers]] {number} {where}", environ) for number, table in enumerate(tables, 1)
    )


def _issuer(table: Mapping[str, Any], where: str, environ: Mapping[str, str]) -> Issuer:
    if "key" in table:
        raise ConfigurationError(f"{where} must not hold the key itself: name its variable with key_variable")
    said = {
        name: _read(_ISSUER, name, value, f"{name} of {where}", "part of an issuer") for name, value in table.items()
    }
    if missing := [name for name in _NEEDED if name not in said]:
        raise ConfigurationError(f"{where} must say {', '.join(missing)}")
    variable = said.get("key_variable")
    if variable is not None:
        if not _VARIABLE.fullmatch(variable) or not environ.get(variable):
            raise ConfigurationError(f"key_variable of {where} must name a variable of the environment that is set")
        try:
            said["key"] = SharedKey.from_text(environ[variable])
        except ConfigurationError as error:
            raise ConfigurationError(f"{variable} for {where}: {error}") from None
    made: Issuer = _made(Issuer, where, said)
    return made


def _made(kind: Callable[..., Any], where: str, said: Mapping[str, Any]) -> Any:
    try:
        return kind(**said)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from None


def _public(value: object) -> str:
    """Say what *value* a setting has, as far as everybody may know it."""
    if isinstance(value, Issuer):
        return f"{value.issuer} ({', '.join(value.algorithms)}) for {', '.join(value.tenants)}"
    if isinstance(value, Policy):
        parts = {part.name: getattr(value, part.name) for part in dataclasses.fields(value)}
        return ", ".join(f"{name}={_public(part)}" for name, part in parts.items())
    if isinstance(value, tuple):
        return ", ".join(map(_public, value))
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_public(each)}" for name, each in value.items())
    return "off" if value is None else str(value)
