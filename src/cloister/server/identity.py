"""Who is asking, and for whom: server keys, session tokens, tokens of issuers (JWT), and the user that a key names."""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Literal, NoReturn, Protocol
from urllib.parse import unquote_to_bytes

from cloister.errors import CredentialInvalid
from cloister.model import Owner
from cloister.server import jwt
from cloister.server.headers import SESSION, USER, Headers
from cloister.server.issuers import Issuer
from cloister.server.jwks import Keys, KeySet, NoKeys
from cloister.server.record import Record
from cloister.server.refusals import Refused
from cloister.server.settings import ServerSettings

CallerScope = Literal["user", "service", "operator"]

KEPT = 2.0
"""For how many seconds a server key that was found good is believed again: so long a revoked one may go on."""
_MOST_KEPT = 1_000
_OPAQUE = re.compile(rb"(csk|cst|cso)_[A-Za-z0-9_-]{43}")
_KINDS: dict[bytes, tuple[str, CallerScope]] = {
    b"csk_": ("key", "service"),
    b"cst_": ("token", "user"),
    b"cso_": ("operator", "operator"),
}
_OURS = frozenset((USER, SESSION))
_MISSPELT = frozenset(name.replace(b"-", b"_") for name in _OURS)
"""What proxies and frameworks turn into the same names."""
_CREDENTIALS = frozenset((b"authorization", b"x-api-key"))
_LONGEST_USER = 256 * 4 * 3  # characters, bytes of each, and three for each encoded byte
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})?")
_UNRESERVED = re.compile("[A-Za-z0-9._~-]")


@dataclass(frozen=True, slots=True)
class Caller:
    """Be whoever showed who they are.

    ``credential`` is the public name of what was shown, and no secret: what idempotency keys are scoped to. That of a
    token of an issuer's is a digest that names its user to whoever guesses right, so it goes into no log.
    """

    scope: CallerScope
    tenant: str | None
    user: str | None
    credential: str


class Known(Protocol):
    """Be what the store knows of a key or token that it gave out, as `cloister.credentials.Credential`."""

    @property
    def id(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def tenant(self) -> str | None: ...
    @property
    def user(self) -> str | None: ...


class Credentials(Protocol):
    """Check the keys and tokens that the store gave out, as `cloister.credentials.Credentials` does."""

    async def check(self, secret: str) -> Known:
        """Give whose *secret* is. Raises `CredentialInvalid` for one that is unknown, expired or revoked."""


@dataclass(slots=True)
class _Kept:
    """Remember server keys that were found good, by digest, for a moment."""

    found: dict[bytes, tuple[Caller, float]] = field(default_factory=dict)

    def get(self, digest: bytes, now: float) -> Caller | None:
        caller, until = self.found.get(digest, (None, 0.0))
        return caller if now < until else None

    def keep(self, digest: bytes, caller: Caller, until: float) -> None:
        self.found.pop(digest, None)
        while len(self.found) >= _MOST_KEPT:
            del self.found[next(iter(self.found))]
        self.found[digest] = (caller, until)


class Identities:
    """Say who is asking, and for whom."""

    def __init__(
        self,
        settings: ServerSettings,
        credentials: Credentials,
        record: Record,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        ticks: Callable[[], float] = time.monotonic,
        keys: Callable[[Issuer], Keys] = KeySet,
    ) -> None:
        self._settings = settings
        self._credentials = credentials
        self._record = record
        self._ticks = ticks
        self._tokens = jwt.Tokens(settings.issuers, keys, now, ticks)
        self._kept = _Kept()

    async def caller(self, headers: Headers, source: str = "") -> Caller:
        """Give who is asking, from the address *source*.

        Raises `Refused`: in the same words whatever is wrong with what was shown; the log knows the difference.
        """
        try:
            secret = _secret(headers)
            digest = blake2b(secret).digest()
            return self._kept.get(digest, self._ticks()) or await self._shown(secret, digest)
        except jwt.Wrong as error:
            await self._record.add("authentication.failed", source, reason=error.reason)
            raise _REFUSALS.get(error.reason, _unauthorized)() from None
        except NoKeys:
            raise Refused(
                503,
                "server_error",
                "keys_unavailable",
                "the keys that tokens are checked with cannot be had at the moment; try again",
                headers={"retry-after": "30"},
            ) from None

    async def owner(self, caller: Caller, headers: Headers, *named: str | None) -> Owner:
        """Give the user that is asked for; *named* are those whom the fields of the body name. Raises `Refused`.

        An end user is whom the token names, and a request that names anybody else is refused. A service must name its
        user, once: in the header, or in the body where the tenant's policy allows.
        """
        if caller.tenant is None or caller.scope == "operator":
            raise Refused(403, "permission_error", "wrong_scope", "an operator's key speaks for no user")
        if headers.repeated and headers.repeated & _OURS:
            await self._contradiction(caller, "twice", "Cloister-User and Cloister-Session may stand there once")
        if not _MISSPELT.isdisjoint(headers.raw):
            await self._contradiction(caller, "underscore", "the names of these headers have no underscores")
        said = headers.raw.get(USER)
        if caller.scope == "user":
            if said is not None:
                named = (_name(said), *named)
            if any(name is not None and name != caller.user for name in named):
                await self._contradiction(caller, "user", "this token speaks for its own user, and names nobody else")
            return _owner(caller.tenant, caller.user)
        if named and self._settings.policy(caller.tenant).body_user:
            names = {name for name in named if name is not None}
            if said is not None:
                names.add(_name(said))
            if len(names) > 1:
                await self._contradiction(caller, "body", "header and body name two users")
            return _owner(caller.tenant, names.pop() if names else None)
        return _owner(caller.tenant, None if said is None else _name(said))

    async def close(self) -> None:
        """Put on record what was only counted so far, and give up whatever is being fetched."""
        await self._tokens.close()
        await self._record.close()

    async def _shown(self, secret: bytes, digest: bytes) -> Caller:
        if secret[:4] in _KINDS:
            return await self._opaque(secret, digest)
        if secret.count(b".") != 2:
            raise jwt.Wrong("shape")
        owner, credential = await self._tokens.check(secret)
        return Caller("user", owner.tenant, owner.user, credential)

    async def _opaque(self, secret: bytes, digest: bytes) -> Caller:
        if not _OPAQUE.fullmatch(secret):
            raise jwt.Wrong("shape")
        now = self._ticks()
        try:
            caller = _checked(await self._credentials.check(secret.decode()), *_KINDS[secret[:4]])
        except CredentialInvalid as error:
            raise jwt.Wrong(error.reason) from None
        # Session tokens never: whoever signs out is out.
        if caller.scope == "service":
            self._kept.keep(digest, caller, now + KEPT)
        return caller

    async def _contradiction(self, caller: Caller, reason: str, message: str) -> NoReturn:
        """Put on record that a request names a user otherwise than it may, and refuse it."""
        owner = _owner(caller.tenant, caller.user) if caller.scope == "user" else None
        whose = {} if owner else {"credential": caller.credential}
        await self._record.add("identity.contradicted", by=caller.credential, owner=owner, reason=reason, **whose)
        raise Refused(400, "invalid_request_error", "contradicting_user", message, "Cloister-User")


def _secret(headers: Headers) -> bytes:
    """Give what was shown: a bearer token or an API key, or both if they are the same."""
    values = headers.raw
    if b"x_api_key" in values or (headers.repeated and headers.repeated & _CREDENTIALS):
        raise jwt.Wrong("twice")
    bearer, secret = values.get(b"authorization"), values.get(b"x-api-key")
    if bearer is not None:
        scheme, _, shown = bearer.partition(b" ")
        if scheme.lower() != b"bearer":
            raise jwt.Wrong("scheme")
        if max(len(shown), len(secret or b"")) > jwt.LONGEST:
            raise jwt.Wrong("size")
        if secret is not None and not hmac.compare_digest(secret, shown):
            raise jwt.Wrong("twice")
        return shown
    if secret is None:
        raise jwt.Wrong("missing")
    if len(secret) > jwt.LONGEST:
        raise jwt.Wrong("size")
    return secret


def _checked(known: Known, kind: str, scope: CallerScope) -> Caller:
    """Give the caller that the store *knows*, if it is one of the kind that the credential's own form says."""
    tenant, user = known.tenant, known.user
    whole = {"user": tenant and user, "service": tenant and user is None, "operator": tenant is None and user is None}
    if known.kind != kind or not whole[scope]:
        raise jwt.Wrong("kind")
    return Caller(scope, tenant, user, known.id)


def _name(value: bytes) -> str:
    """Give the name in a header: printable ASCII, in which other characters are percent-encoded UTF-8."""
    if len(value) > _LONGEST_USER:
        raise _invalid("it is too long")
    # Latin-1, as which many clients send it, would be taken for another name's UTF-8.
    if not value.isascii() or not (text := value.decode()).isprintable():
        raise _invalid("percent-encode what is not printable ASCII, as UTF-8")
    if "%" not in text:
        return text
    for escape in _ESCAPE.finditer(text):
        # Nobody encodes letters; and a user who is really called %61na must not become ana where a service forgets to.
        if escape[1] is None or _UNRESERVED.match(chr(int(escape[1], 16))):
            raise _invalid("a % begins an encoded byte other than of letters, digits and ._~-; % itself is %25")
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise _invalid("what is percent-encoded is not UTF-8") from None


def _owner(tenant: str | None, user: str | None) -> Owner:
    if user is None:
        raise Refused(
            400,
            "invalid_request_error",
            "missing_user",
            "name the user that this is for, in the header Cloister-User",
            "Cloister-User",
        )
    try:
        return Owner(tenant, user)
    except ValueError as error:
        raise _invalid(str(error)) from None


def _invalid(why: str) -> Refused:
    return Refused(400, "invalid_request_error", "invalid_user", f"this names no user: {why}", "Cloister-User")


def _unauthorized() -> Refused:
    return Refused(
        401,
        "authentication_error",
        "invalid_api_key",
        "this needs a key or token that is valid here: send it as Authorization: Bearer …",
        headers={"www-authenticate": "Bearer"},
    )


def _twice() -> Refused:
    return Refused(
        400,
        "invalid_request_error",
        "duplicate_header",
        "there must be one credential: Authorization or x-api-key, and each of them once",
    )


def _oversized() -> Refused:
    return Refused(
        413, "invalid_request_error", "token_too_large", f"no key or token here has more than {jwt.LONGEST} bytes"
    )


_REFUSALS = {"twice": _twice, "size": _oversized}
