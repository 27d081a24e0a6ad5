"""The contract rejects stores that keep credentials wrongly: each fails the promise that it breaks."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.test_stores import _broken_promises

from cloister.model import Owner
from cloister.stores.base import CredentialBatch, Enrolled, Found, Receipt, SealedCredential
from cloister.stores.memory import MemoryStore


class AnothersFound(MemoryStore):
    """Brings whichever credential it has for a digest that it does not know."""

    async def credential(self, digest: bytes, *, nonce: bytes) -> Found:
        known = self._credentials.get(digest) or next(iter(self._credentials.values()), None)
        return Found(nonce, known)


class DigestsCut(MemoryStore):
    """Looks at the beginning of a digest."""

    async def credential(self, digest: bytes, *, nonce: bytes) -> Found:
        alike = [one for known, one in self._credentials.items() if known.startswith(digest[:31]) and digest[:31]]
        return Found(nonce, alike[0] if alike else None)


class TenantsListedTogether(MemoryStore):
    """Lists keys of all tenants."""

    async def credentials(self, tenant: str | None, kind: Any, **options: Any) -> Enrolled:
        found = [one for one in self._credentials.values() if one.kind == kind and one.id > options.get("after", "")]
        return Enrolled(options["nonce"], sorted(found, key=lambda one: one.id)[: options["limit"]])


class KindsListedTogether(MemoryStore):
    """Lists tokens beside keys."""

    async def credentials(self, tenant: str | None, kind: Any, **options: Any) -> Enrolled:
        found = [
            one for one in self._credentials.values() if one.tenant == tenant and one.id > options.get("after", "")
        ]
        return Enrolled(options["nonce"], sorted(found, key=lambda one: one.id)[: options["limit"]])


class NoneIsATenant(MemoryStore):
    """Takes the deployment's own for those of whichever tenant."""

    async def credentials(self, tenant: str | None, kind: Any, **options: Any) -> Enrolled:
        own = await super().credentials(tenant, kind, **options)
        if own.credentials or tenant is None:
            return own
        return await super().credentials(None, kind, **options)


class AnybodyRevokes(MemoryStore):
    """Revokes by kind and id, whoever asks."""

    async def revoke(self, tenant: str | None, kind: Any, credential_id: str, **options: Any) -> Receipt:
        for one in self._credentials.values():
            if (one.kind, one.id) == (kind, credential_id):
                tenant = one.tenant
        return await super().revoke(tenant, kind, credential_id, **options)


class KeysRevokedAsTokens(MemoryStore):
    """Revokes a key where a token is to be revoked."""

    async def revoke(self, tenant: str | None, kind: Any, credential_id: str, **options: Any) -> Receipt:
        for one in self._credentials.values():
            if (one.tenant, one.id) == (tenant, credential_id):
                kind = one.kind
        return await super().revoke(tenant, kind, credential_id, **options)


class RevokedStillFound(MemoryStore):
    """Takes a revoked credential off the list, and still finds it."""

    def __init__(self) -> None:
        super().__init__()
        self.gone: dict[bytes, SealedCredential] = {}

    async def revoke(self, tenant: str | None, kind: Any, credential_id: str, **options: Any) -> Receipt:
        self.gone.update(self._credentials)
        return await super().revoke(tenant, kind, credential_id, **options)

    async def credential(self, digest: bytes, *, nonce: bytes) -> Found:
        return Found(nonce, self._credentials.get(digest) or self.gone.get(digest))


class RevokedStillListed(MemoryStore):
    """Answers that a credential is revoked, and keeps it."""

    async def revoke(self, tenant: str | None, kind: Any, credential_id: str, *, nonce: bytes, **_: Any) -> Receipt:
        return Receipt(nonce, count=1)


class NothingRevokedIsOnRecord(MemoryStore):
    """Puts on record that a credential was revoked which is not there."""

    async def revoke(self, *names: Any, entries: Any = (), **options: Any) -> Receipt:
        self._put(entries)
        return await super().revoke(*names, **options)


class Replaced(MemoryStore):
    """Lets a new credential take the place of one with the same digest."""

    async def enrol(self, credential: SealedCredential, **options: Any) -> Receipt:
        self._credentials.pop(credential.digest, None)
        return await super().enrol(credential, **options)


class NamesTwice(MemoryStore):
    """Does not look whether an id is taken."""

    async def enrol(self, credential: SealedCredential, *, nonce: bytes, entries: Any = ()) -> Receipt:
        if credential.digest in self._credentials:
            return await super().enrol(credential, nonce=nonce, entries=entries)
        self._credentials[credential.digest] = credential
        self._put(entries)
        return Receipt(nonce)


class OnRecordTwice(MemoryStore):
    """Puts on record again what is enrolled again."""

    async def enrol(self, credential: SealedCredential, *, nonce: bytes, entries: Any = ()) -> Receipt:
        receipt = await super().enrol(credential, nonce=nonce)
        self._put(entries)
        return receipt


class EndForgotten(MemoryStore):
    """Keeps no end of a credential."""

    async def enrol(self, credential: SealedCredential, **options: Any) -> Receipt:
        return await super().enrol(msgspec.structs.replace(credential, expires_at=None), **options)


class ExpiredKept(MemoryStore):
    """Forgets to sweep credentials."""

    async def sweep(self, **options: Any) -> Receipt:
        kept = dict(self._credentials)
        receipt = await super().sweep(**options)
        self._credentials = kept
        return receipt


class SweptTooEarly(MemoryStore):
    """Sweeps a credential a moment before its end."""

    async def sweep(self, *, now: int, **options: Any) -> Receipt:
        self._drop(lambda one: one.expires_at is not None and one.expires_at <= now + 1)
        return await super().sweep(now=now, **options)


class TokensOutliveErasure(MemoryStore):
    """Forgets to erase tokens."""

    async def erase(self, owner: Owner, **options: Any) -> Receipt:
        kept = dict(self._credentials)
        receipt = await super().erase(owner, **options)
        self._credentials = kept
        return receipt


class ErasureTakesKeys(MemoryStore):
    """Erases what lets in the whole tenant along with one of its users."""

    async def erase(self, owner: Owner, **options: Any) -> Receipt:
        self._drop(lambda one: one.tenant == owner.tenant and one.user is None)
        return await super().erase(owner, **options)


class TokensOfAllTenants(MemoryStore):
    """Revokes the tokens of all who have one name, whichever tenant they belong to."""

    async def revoke_all(self, owner: Owner, *, nonce: bytes, entries: Any = ()) -> Receipt:
        return self._revoke(lambda one: one.user == owner.user, nonce, entries)


class SomeTokensLeft(MemoryStore):
    """Revokes one token where all were to be."""

    async def revoke_all(self, owner: Owner, *, nonce: bytes, entries: Any = ()) -> Receipt:
        mine = [one for one in self._credentials.values() if (one.tenant, one.user) == (owner.tenant, owner.user)]
        return self._revoke(lambda one: one in mine[:1], nonce, entries)


class FoundWithoutEcho(MemoryStore):
    """Answers a look-up without saying which."""

    async def credential(self, digest: bytes, *, nonce: bytes) -> Found:
        return await super().credential(digest, nonce=b"")


class RevokedWithoutEcho(MemoryStore):
    """Answers that something was revoked without saying what."""

    async def revoke(self, *names: Any, **options: Any) -> Receipt:
        return msgspec.structs.replace(await super().revoke(*names, **options), echo=b"")


class ResealsWhatever(MemoryStore):
    """Replaces what is sealed without a look at what it was."""

    async def reseal(self, old: SealedCredential, sealed: bytes, *, nonce: bytes) -> Receipt:
        self._credentials[old.digest] = msgspec.structs.replace(old, sealed=sealed)
        return Receipt(nonce, count=1)


class RotationMissesTokens(MemoryStore):
    """Leaves what belongs to users out of what is rotated."""

    async def every_credential(self, *, after: bytes, limit: int) -> CredentialBatch:
        batch = await super().every_credential(after=after, limit=limit)
        return CredentialBatch([one for one in batch.credentials if one.user is None], batch.after)


_FOUND = "test_a_credential_is_found_by_its_digest"
_APART = "test_no_credential_is_taken_for_anothers"
_TAKEN = "test_a_taken_secret_or_name_is_refused"
_REVOKED = "test_a_revoked_credential_is_gone"
_ALL = "test_all_of_one_user_are_revoked"
_ERASED = "test_erasure_takes_the_owners_credentials"
_SWEPT = "test_credentials_are_swept"
_ROTATED = "test_gives_all_credentials_for_rotation"
BROKEN: dict[type[MemoryStore], str] = {
    AnothersFound: _FOUND,
    DigestsCut: _FOUND,
    TenantsListedTogether: _APART,
    KindsListedTogether: _APART,
    NoneIsATenant: _APART,
    AnybodyRevokes: _REVOKED,
    KeysRevokedAsTokens: _REVOKED,
    RevokedStillFound: _REVOKED,
    RevokedStillListed: _REVOKED,
    NothingRevokedIsOnRecord: _REVOKED,
    Replaced: _TAKEN,
    NamesTwice: "test_of_many_of_one_name_one_is_enrolled",
    OnRecordTwice: _TAKEN,
    EndForgotten: _FOUND,
    ExpiredKept: _SWEPT,
    SweptTooEarly: _SWEPT,
    TokensOutliveErasure: _ERASED,
    ErasureTakesKeys: _ERASED,
    TokensOfAllTenants: _ALL,
    SomeTokensLeft: _ALL,
    FoundWithoutEcho: "test_every_answer_echoes",
    RevokedWithoutEcho: "test_every_answer_echoes",
    ResealsWhatever: _ROTATED,
    RotationMissesTokens: _ROTATED,
}
"""Each with the promise that it breaks."""


@pytest.mark.parametrize("store", BROKEN)
async def test_the_contract_rejects(store: type[MemoryStore]) -> None:
    """A store that keeps credentials wrongly fails the promise that it breaks."""
    assert BROKEN[store] in await _broken_promises(store)
