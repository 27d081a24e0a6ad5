"""Whose tokens (JWT) are believed, for whom, and how their signatures are checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import NoReturn
from urllib.parse import urlsplit

from cloister.errors import ConfigurationError
from cloister.model import Owner

SHARED = ("HS256", "HS384", "HS512")
PUBLIC = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA", "Ed25519"),
)
"""The algorithms of tokens: with a shared key, and with keys of an issuer's own. There is no third kind."""

_SHORTEST, _VARIED = 32, 8
_LONGEST_LEEWAY = timedelta(minutes=5)


class SharedKey(bytes):
    """Be a key that does not show itself: not in a repr, a traceback with locals, or a pickle."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "SharedKey('…')"

    __str__ = __repr__

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a shared key cannot be pickled; read the settings anew where it is needed")

    @classmethod
    def from_text(cls, text: str) -> SharedKey:
        """Take the characters of *text* as the key, as JWT libraries do. Raises `ConfigurationError` for a weak one."""
        key = text.strip().encode()
        if len(key) < _SHORTEST or len(set(key)) < _VARIED:
            raise ConfigurationError(
                f"a shared key must have at least {_SHORTEST * 8} random bits; `openssl rand -base64 48` makes one"
            )
        return cls(key)


@dataclass(frozen=True, slots=True)
class Issuer:
    """Be somebody whose tokens (JWT) are believed, for whom, and how their signatures are checked.

    Signatures are checked with the keys at ``jwks_url``, or with the shared ``key`` that lies in the environment
    variable ``key_variable``; never with either. Tokens are for the one tenant in ``tenants``, or for that of them
    which the claim ``tenant_claim`` names. ``types`` are the values of ``typ`` that are taken; "" stands for none.
    ``insecure`` allows a key set over plain HTTP on the own machine, for tests. Raises `ConfigurationError`.
    """

    issuer: str
    audience: tuple[str, ...]
    algorithms: tuple[str, ...]
    tenants: tuple[str, ...]
    jwks_url: str | None = None
    key_variable: str | None = None
    key: SharedKey | None = field(default=None, repr=False)
    kid: str | None = None
    """The name of the shared key, where tokens carry one; a token that names another is refused."""
    tenant_claim: str | None = None
    user_claim: str = "sub"
    leeway: timedelta = timedelta(seconds=30)
    types: tuple[str, ...] = ("JWT", "at+jwt")
    insecure: bool = False

    def __post_init__(self) -> None:
        for name in ("audience", "algorithms", "tenants", "types"):
            if not getattr(self, name):
                raise ConfigurationError(f"{name} must name at least one")
        self._check_signatures()
        if self.tenant_claim is None and len(self.tenants) != 1:
            raise ConfigurationError("tenant_claim must name the claim that says which of several tenants is meant")
        for tenant in self.tenants:
            check_tenant(tenant)
        if not timedelta(0) <= self.leeway <= _LONGEST_LEEWAY:
            raise ConfigurationError("leeway must be at most 5m")

    def _check_signatures(self) -> None:
        # One token, two kinds of key: whoever has the public one would sign with it as if it were the shared one.
        if (self.jwks_url is None) == (self.key is None):
            raise ConfigurationError("there must be either a jwks_url or, in key_variable, a shared key; not both")
        allowed = SHARED if self.jwks_url is None else PUBLIC
        if not set(self.algorithms) <= set(allowed):
            which = "a shared key" if self.jwks_url is None else "a jwks_url"
            raise ConfigurationError(f"algorithms that go with {which} are {', '.join(allowed)}, and no others")
        if self.key is not None and not isinstance(self.key, SharedKey):
            raise ConfigurationError("key must be a SharedKey, as SharedKey.from_text makes it")
        if self.jwks_url is None:
            return
        if self.kid is not None:
            raise ConfigurationError("kid goes with a shared key; keys at a jwks_url have names of their own")
        if not _is_secure(self.jwks_url, self.insecure):
            raise ConfigurationError("jwks_url must be an https:// address, without a user, a password or a fragment")


def check_tenant(tenant: str) -> None:
    """Raise `ConfigurationError` for what no tenant can be called."""
    try:
        Owner(tenant, "anybody")
    except ValueError as error:
        raise ConfigurationError(str(error)) from None


def _is_secure(url: str, insecure: bool) -> bool:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    if not host or "@" in parts.netloc or parts.fragment or not url.isascii() or not url.isprintable() or " " in url:
        return False
    return parts.scheme == "https" or (
        insecure and parts.scheme == "http" and host in ("127.0.0.1", "::1", "localhost")
    )
