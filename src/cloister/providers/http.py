"""What an HTTP provider is set up with, checked before the first call: address, key, patience."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NoReturn
from urllib.parse import urlsplit

from cloister.errors import ConfigurationError

Sleep = Callable[[float], Awaitable[None]]

# Keys whose beginning says whose they are, where another provider's rule would let them pass.
_FOREIGN = {"sk-ant-": "Anthropic", "hs_": "HolySheep"}
_LONGEST = 366 * 86_400  # seconds
_PLACEHOLDERS = {"your", "change", "changeme", "replace", "placeholder", "example", "insert", "dummy", "todo"}


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Say how long a provider is waited for: to connect, between two pieces of a stream, and for a call in all.

    ``total`` includes retries, and is the only bound on a whole answer, which comes in one piece when it is complete.
    """

    connect: timedelta = timedelta(seconds=10)
    idle: timedelta = timedelta(minutes=2)
    total: timedelta = timedelta(minutes=10)

    def __post_init__(self) -> None:
        for name in ("connect", "idle", "total"):
            if getattr(self, name) <= timedelta(0):
                raise ValueError(f"the {name} timeout must be longer than nothing")


@dataclass(frozen=True, slots=True)
class Retries:
    """Say how a call is repeated that failed before it gave anything: on 408, 409, 429, 5xx and connection loss.

    Before the n-th repetition passes a random time of up to ``first`` · 2ⁿ⁻¹, at most ``longest``; or what the provider
    asks for in ``Retry-After``, if that is at most ``retry_after``.
    """

    attempts: int = 3
    first: timedelta = timedelta(seconds=0.5)
    longest: timedelta = timedelta(seconds=8)
    retry_after: timedelta = timedelta(minutes=1)

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError("attempts must be at least 1; 1 means no repetition")


class Key(str):
    """Be an API key that does not show itself: not in a repr, a traceback with locals, or a pickle."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Key('…')"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("an API key cannot be pickled; make the provider anew where it is needed")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Be where and how a provider is reached.

    ``variable`` names where its key comes from, in errors; ``models`` is the path that lists its models.
    """

    name: str
    base_url: str
    variable: str
    key: Key | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeouts: Timeouts = Timeouts()
    retries: Retries = Retries()
    sleep: Sleep | None = None
    models: str = "/models"


def patience(timeout: timedelta | float | Timeouts) -> Timeouts:
    """Return *timeout* as `Timeouts`; one duration, or seconds, bounds the whole call, and all its parts."""
    if isinstance(timeout, Timeouts):
        return timeout
    if type(timeout) in (int, float) and 0 < timeout <= _LONGEST:  # type: ignore[operator]
        timeout = timedelta(seconds=timeout)  # type: ignore[arg-type]
    if not isinstance(timeout, timedelta):
        raise ConfigurationError("timeout must be seconds above 0 and up to a year, a timedelta, or Timeouts")
    usual = Timeouts()
    return Timeouts(min(usual.connect, timeout), min(usual.idle, timeout), timeout)


def check_url(base_url: str, *, key: Key | None, allow_http: bool) -> str:
    """Return *base_url* without a slash at its end, or raise `ConfigurationError`."""
    try:
        url = urlsplit(base_url)
        host, _ = url.hostname, url.port
    except ValueError:
        host = url = None
    if not url or not host or url.scheme not in ("http", "https") or url.query or url.fragment:
        raise ConfigurationError("base_url must be like https://host/v1, with http or https and without ? and #")
    if url.username is not None or url.password is not None:
        raise ConfigurationError("base_url must not contain a user or a password; pass api_key instead")
    if url.scheme == "http" and key and not allow_http and not _loopback(host):
        raise ConfigurationError(f"base_url would send the key to {host} in clear; use https, or pass allow_http=True")
    return base_url.rstrip("/")


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_key(key: Key | None, *, variable: str, prefix: str, required: bool, check: bool) -> None:
    """Raise `ConfigurationError` unless *key* can be a key; the error says how to mend it, and never shows it.

    *check* ``=False`` leaves only what could break the header that carries the key.
    """
    form = f"a key that begins with {prefix}" if prefix else "a key without spaces"
    remedy = f"set {variable} (or pass api_key) to {form}; check_key=False skips this check"
    if key and (not key.isascii() or not key.isprintable()):
        raise ConfigurationError(f"the API key has line ends or characters that are not ASCII: {remedy}")
    if not check or not (key or required):
        return
    if not key:
        raise ConfigurationError(f"no API key: {remedy}")
    if " " in key:
        raise ConfigurationError(f"the API key has spaces: {remedy}")
    if _placeholder(key.removeprefix(prefix)):
        raise ConfigurationError(f"the API key is a placeholder: {remedy}")
    if not key.startswith(prefix) or len(key) == len(prefix):
        raise ConfigurationError(f"the API key is malformed: {remedy}")
    for foreign, whose in _FOREIGN.items():
        if prefix and key.startswith(foreign) and not prefix.startswith(foreign):
            raise ConfigurationError(f"the API key is one of {whose}'s: {remedy}")


def _placeholder(rest: str) -> bool:
    words = set(re.split(r"[-_.\s]+", rest.lower()))
    blank = re.fullmatch(r"[xX*._…-]*", rest) is not None and rest != ""
    return blank or bool(words & _PLACEHOLDERS) or any(mark in rest for mark in "<>[]{}") or rest.startswith("YOUR")
