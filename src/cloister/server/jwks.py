"""The key set of an issuer (JWKS): fetched from the configured address alone, bounded, kept for a while, rotated."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from cloister.server import jose
from cloister.server.issuers import Issuer
from cloister.server.jose import Key

_log = logging.getLogger("cloister")

FRESH, STALE, AGAIN = 600.0, 3_600.0, 30.0
"""For how many seconds a set is used unasked, for how many where a newer one cannot be had, and between two tries."""
PATIENCE = 5.0
MOST_BYTES = 256 << 10
MOST_KEYS = 100
_LONGEST_KID = 256

Fetch = Callable[[], Awaitable[bytes]]


class NoKeys(Exception):
    """Say that there is no key set at present that may be used: nobody can be let in by it."""


class Unfit(Exception):
    """Say why an answer is no key set."""


class Keys(Protocol):
    """Give the keys that tokens of one issuer are checked with."""

    async def key(self, kid: str, algorithm: str) -> Key | None:
        """Give the key of exactly this name for this algorithm; None if there is none. Raises `NoKeys`."""

    async def close(self) -> None:
        """Give up a fetch that is under way."""


class KeySet:
    """Keep the key set of one issuer."""

    def __init__(
        self, issuer: Issuer, fetch: Fetch | None = None, *, ticks: Callable[[], float] = time.monotonic
    ) -> None:
        self._issuer = issuer
        self._fetch = fetch
        self._ticks = ticks
        self._keys: Mapping[tuple[str, str], Key] = {}
        self._fetched: float | None = None
        self._tried: float | None = None
        self._failed = False
        self._fetching: asyncio.Task[None] | None = None

    async def key(self, kid: str, algorithm: str) -> Key | None:
        """Give the key of exactly this name for this algorithm; None if there is none. Raises `NoKeys`."""
        found = self._usable(FRESH) and self._keys.get((kid, algorithm))
        if not found:
            # Where the issuer is known to be down, nobody waits for it who can do without.
            await self._refresh(wait=not (self._failed and self._usable(STALE) and (kid, algorithm) in self._keys))
            if not self._usable(STALE):
                raise NoKeys
            found = self._keys.get((kid, algorithm))
        return found

    async def close(self) -> None:
        """Give up a fetch that is under way."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)

    def _usable(self, age: float) -> bool:
        return self._fetched is not None and self._ticks() - self._fetched < age

    async def _refresh(self, *, wait: bool) -> None:
        """See to it that the set is fetched, if it was not tried just now, by one task for all who ask."""
        if self._fetching is None:
            # Unknown names cost nothing to send: a flood of them must not become one at the issuer.
            if self._tried is not None and self._ticks() - self._tried < AGAIN:
                return
            self._tried = self._ticks()
            self._fetching = asyncio.create_task(self._renew())
        if wait:
            # Shielded: whoever goes away must not take the set from those who stay.
            await asyncio.shield(self._fetching)

    async def _renew(self) -> None:
        begun = self._ticks()
        try:
            self._keys = await fetched(self._issuer, self._fetch)
            self._fetched, self._failed = begun, False
        except Unfit as error:
            self._failed = True
            _log.warning("the key set of issuer %r could not be fetched: %s", self._issuer.issuer, error)
        finally:
            self._fetching = None


async def fetched(issuer: Issuer, fetch: Fetch | None = None) -> Mapping[tuple[str, str], Key]:
    """Fetch the key set of *issuer* now, by *fetch* if given; raise `Unfit` where that takes too long or is none."""
    try:
        async with asyncio.timeout(PATIENCE):
            data = await (get(issuer.jwks_url or "") if fetch is None else fetch())
    except (OSError, TimeoutError) as error:
        raise Unfit(type(error).__name__) from None
    return parse(data, issuer.algorithms)


async def get(url: str, tls: ssl.SSLContext | None = None) -> bytes:
    """Fetch what lies at *url*, and nowhere else: no redirects, no proxies."""
    import aiohttp

    if tls is None:
        tls = await asyncio.to_thread(ssl.create_default_context)  # reads all authorities, which takes a while
    try:
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=tls, force_close=True),
                headers={"user-agent": "cloister", "accept": "application/json", "accept-encoding": "identity"},
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=PATIENCE),
            ) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise Unfit(f"it answered {response.status}")
            if response.headers.get("content-encoding", "identity") != "identity":
                raise Unfit("it answered in a coding that was not asked for")
            data = bytearray()
            async for piece in response.content.iter_any():
                data += piece
                if len(data) > MOST_BYTES:
                    raise Unfit(f"it answered more than {MOST_BYTES >> 10} KiB")
            return bytes(data)
    except (aiohttp.ClientError, aiohttp.http_exceptions.HttpProcessingError, ValueError) as error:
        raise Unfit(type(error).__name__) from None


def parse(data: bytes, algorithms: tuple[str, ...]) -> Mapping[tuple[str, str], Key]:
    """Give the keys in a set that are fit for *algorithms*, by name and algorithm; others are left out.

    Where two share both, neither is there: which of them is meant, nobody could say.
    """
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        raise Unfit("it is not JSON") from None
    listed = said.get("keys") if isinstance(said, dict) else None
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise Unfit("it is not a key set")
    if len(listed) > MOST_KEYS:
        raise Unfit(f"it has more than {MOST_KEYS} keys")
    found: dict[tuple[str, str], Key] = {}
    twice = set()
    for each in listed:
        for algorithm in algorithms:
            key = _key(each, algorithm)
            if key is None:
                continue
            name = (each["kid"], algorithm)
            if name in found:
                twice.add(name)
            found[name] = key
    return {name: key for name, key in found.items() if name not in twice}


def _key(said: Mapping[str, Any], algorithm: str) -> Key | None:
    """Give the key that is *said*, if it is a public one that signs with *algorithm*."""
    kid, purposes = said.get("kid"), said.get("key_ops", ["verify"])
    if not isinstance(kid, str) or not 0 < len(kid) <= _LONGEST_KID:
        return None
    if said.get("use", "sig") != "sig" or said.get("alg", algorithm) != algorithm:
        return None
    if not isinstance(purposes, list) or "verify" not in purposes or "d" in said:
        return None  # whoever publishes a private key has no secret left to sign with
    return jose.public_key(said, algorithm)
