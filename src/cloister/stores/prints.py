"""Fingerprints in this process, for stores that keep nothing outside it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING

from cloister.model import Owner, SealedSession
from cloister.stores.base import MOST_FINGERPRINTS, Claims, Fingerprint

if TYPE_CHECKING:
    from cloister.leaks.fingerprints import Index


class Prints:
    """Keep whose fingerprints are whose, 12 bytes for each, and no more of them than `MOST_FINGERPRINTS`."""

    def __init__(self) -> None:
        self._told = 0

    @cached_property
    def _index(self) -> Index:
        # Not before it is needed: with it come all the rules about leaks, and opening a store should be quick.
        from cloister.leaks.fingerprints import Index

        return Index(MOST_FINGERPRINTS)

    @property
    def _used(self) -> bool:
        return "_index" in self.__dict__

    def keep(self, session: SealedSession, fingerprints: Sequence[Fingerprint]) -> None:
        """File *fingerprints* as said in *session*, as it is once it is stored; what it said before lives as long."""
        if fingerprints:
            from cloister.leaks.fingerprints import COMMON

            index, now = self._index, session.updated_at
            claim = None
            for one in fingerprints:
                if one.common:
                    index.add(_key(one.scope, one.digest), COMMON, now)
                    continue
                if claim is None:
                    claim = index.claim(session.owner, session.id, None)
                index.add(_key(one.scope, one.digest), claim, now, one.unique)
        if self._used:
            self._index.extend(session.owner, session.id, session.expires_at)

    def end(self, owner: Owner, session_id: str) -> None:
        """Forget what was said in a session."""
        if self._used:
            self._index.end(owner, session_id)

    def claims(self, scope: str, digests: Sequence[bytes], *, now: int, nonce: bytes) -> Claims:
        """Answer `Store.claims`."""
        if not self._used:
            return Claims(nonce, {})
        found = {digest: self._index.owners(_key(scope, digest), now) for digest in digests}
        known = {digest: owners for digest, owners in found.items() if owners is not None}
        return Claims(nonce, known, len(self._index))

    def seed(self, scope: str, digests: Sequence[bytes]) -> int:
        """Make *digests* common; give how many were not."""
        from cloister.leaks.fingerprints import COMMON

        new = 0
        for digest in digests:
            key = _key(scope, digest)
            new += self._index.owners(key, None) != ()
            self._index.add(key, COMMON, None)
        return new

    def sweep(self, now: int, most: int) -> int:
        """Let go of what is over, and of the oldest of more than *most*.

        Give how many of these there were since the last time: a full index makes room by itself.
        """
        if not self._used:
            return 0
        self._index.sweep(now, most)
        told, self._told = self._told, self._index.dropped
        return self._told - told


@lru_cache(1024)
def _mask(scope: str) -> int:
    return int.from_bytes(blake2b(scope.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _key(scope: str, digest: bytes) -> bytes:
    """Give the digest under which one of *scope* is filed: all scopes lie in one index."""
    return (int.from_bytes(digest) ^ _mask(scope)).to_bytes(8)
