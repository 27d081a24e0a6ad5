"""Tokens of issuers (JWT): whom one names, if its issuer is believed, and it is for us, signed and in time."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from hashlib import sha256
from typing import Any, NamedTuple

from cloister.model import Owner
from cloister.server import jose
from cloister.server.issuers import Issuer
from cloister.server.jwks import Keys

LONGEST = 8 << 10
"""How many bytes a token may have. A longer one is refused before anything of it is read."""
KEPT = 30.0
"""For how many seconds a token that was found good is believed again unread."""
_MOST_KEPT = 4_096
_LONGEST_HEADER = 1 << 10
_LONGEST_KID = 256
_SHAPE = re.compile(rb"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
# What would let a token say with which key, or after which rules, it wants to be checked.
_REFUSED = frozenset({"jku", "jwk", "x5u", "x5c", "crit", "b64", "enc", "zip", "cty"})


class Wrong(Exception):
    """Say in a word or two why a token is not believed: for the log, never for whoever sent it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Subject(NamedTuple):
    """Be whom a token names, and a name for the two of issuer and user together."""

    owner: Owner
    credential: str


class Tokens:
    """Check the tokens of all issuers that are believed."""

    def __init__(
        self,
        issuers: Iterable[Issuer],
        keys: Callable[[Issuer], Keys],
        now: Callable[[], datetime],
        ticks: Callable[[], float],
    ) -> None:
        self._issuers = {issuer.issuer: issuer for issuer in issuers}
        self._shared = {name: jose.shared_key(one.key) for name, one in self._issuers.items() if one.key is not None}
        self._sets = {name: keys(one) for name, one in self._issuers.items() if one.jwks_url is not None}
        self._now = now
        self._ticks = ticks
        self._good: dict[bytes, tuple[Subject, float, float]] = {}

    async def check(self, token: bytes) -> Subject:
        """Give whom *token* names. Raises `Wrong`, or `NoKeys` where its issuer's keys cannot be had."""
        digest = sha256(token).digest()
        found = self._good.get(digest)
        if found is None or self._ticks() >= found[1] or self._now().timestamp() >= found[2]:
            found = await self._read(token)
            self._good.pop(digest, None)
            while len(self._good) >= _MOST_KEPT:
                del self._good[next(iter(self._good))]
            self._good[digest] = found
        return found[0]

    async def close(self) -> None:
        """Give up whatever is being fetched."""
        for keys in self._sets.values():
            await keys.close()

    async def _read(self, token: bytes) -> tuple[Subject, float, float]:
        since = self._ticks()
        if len(token) > LONGEST:
            raise Wrong("size")
        shape = _SHAPE.fullmatch(token)
        if shape is None or len(shape[1]) > _LONGEST_HEADER:
            raise Wrong("shape")
        header, claims = _object(shape[1], "header"), _object(shape[2], "claims")
        name = claims.get("iss")
        issuer = self._issuers.get(name) if isinstance(name, str) else None
        if issuer is None:
            raise Wrong("issuer")
        algorithm = _check_header(header, issuer)
        if not jose.is_signed(token, await self._key(issuer, header.get("kid"), algorithm), algorithm):
            raise Wrong("signature")
        end = _check_claims(claims, issuer, self._now().timestamp())
        return _subject(claims, issuer), since + KEPT, end

    async def _key(self, issuer: Issuer, kid: object, algorithm: str) -> jose.Key:
        """Give the key that the configuration has under exactly this name; a name leads nowhere else."""
        if kid is not None and (not isinstance(kid, str) or not 0 < len(kid) <= _LONGEST_KID):
            raise Wrong("key")
        if issuer.key is not None:
            if kid is not None and kid != issuer.kid:
                raise Wrong("key")
            return self._shared[issuer.issuer]
        found = None if kid is None else await self._sets[issuer.issuer].key(kid, algorithm)
        if found is None:
            raise Wrong("key")
        return found


def _object(encoded: bytes, what: str) -> dict[str, Any]:
    """Read a part of a token: a JSON object in which nothing is said twice."""
    try:
        data = base64.urlsafe_b64decode(encoded + b"=" * (-len(encoded) % 4))
        said = json.loads(data.decode(), object_pairs_hook=_once, parse_constant=_no_number)
    except (binascii.Error, ValueError, RecursionError):
        raise Wrong(what) from None
    if not isinstance(said, dict):
        raise Wrong(what)
    return said


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Whoever else reads the token may take the other of the two.
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("said twice")
    return dict(pairs)


def _no_number(_: str) -> None:
    raise ValueError("not a number")


def _check_header(header: Mapping[str, Any], issuer: Issuer) -> str:
    """Give the algorithm, which is one of those that the issuer is configured with."""
    algorithm, kind = header.get("alg"), header.get("typ", "")
    if not isinstance(algorithm, str) or algorithm not in issuer.algorithms:
        raise Wrong("algorithm")
    if _REFUSED & header.keys():
        raise Wrong("header")
    # RFC 8725: `application/` may be left out, and case does not count.
    plain = kind.lower().removeprefix("application/") if isinstance(kind, str) else None
    if plain not in {known.lower().removeprefix("application/") for known in issuer.types}:
        raise Wrong("type")
    return algorithm


def _check_claims(claims: Mapping[str, Any], issuer: Issuer, now: float) -> float:
    """Give when the token ends, which is to come; everything that it says of time and audience is heeded."""
    said = claims.get("aud")
    audience = [said] if isinstance(said, str) else said
    if not isinstance(audience, list) or not any(isinstance(one, str) and one in issuer.audience for one in audience):
        raise Wrong("audience")
    leeway = issuer.leeway.total_seconds()
    end = _moment(claims, "exp")
    if end is None or end + leeway <= now:
        raise Wrong("expired")
    for name in ("nbf", "iat"):
        begin = _moment(claims, name)
        if begin is not None and begin - leeway > now:
            raise Wrong("early")
    return end + leeway


def _moment(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if name not in claims:
        return None
    # No number compares so with what is none; and a whole one may have more digits than a float has room for.
    if type(value) not in (int, float) or not 0 <= value < 1 << 53:  # type: ignore[operator]
        raise Wrong("claims")
    return float(value)  # type: ignore[arg-type]


def _subject(claims: Mapping[str, Any], issuer: Issuer) -> Subject:
    user = claims.get(issuer.user_claim)
    # Never a default: what a token does not say of its tenant, it does not get from another's.
    tenant = issuer.tenants[0] if issuer.tenant_claim is None else claims.get(issuer.tenant_claim)
    if not isinstance(tenant, str) or tenant not in issuer.tenants:
        raise Wrong("tenant")
    if not isinstance(user, str):
        raise Wrong("user")
    try:
        owner = Owner(tenant, user)
    except ValueError:
        raise Wrong("user") from None
    whose = json.dumps([issuer.issuer, tenant, user]).encode()
    return Subject(owner, "jwt_" + sha256(whose).hexdigest()[:24])
