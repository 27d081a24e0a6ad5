"""Who may ask over a network: tenants, keys of their back ends, keys of operators, and tokens of users.

A secret has 256 random bits and is shown once, when it is made. The store keeps its SHA-256 digest, by which it is
found, and beside that in clear whose it is; and all of that once more, sealed under a key that the store does not have.
So whoever writes to the store can put no secret of their own there, and no other name, tenant or time on one that is
there. They can put one back that was revoked: until its own time is up, or its master key is retired, it is good again.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import re
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NoReturn

from msgspec.structs import replace

from cloister import sessions
from cloister.audit import Detail
from cloister.errors import ConfigurationError, CredentialInvalid, IntegrityError, SessionConflict
from cloister.model import Owner, from_micros, to_micros
from cloister.sealing import MasterKeys, fields, open_derived, seal_derived
from cloister.stores.base import CredentialKind, SealedCredential
from cloister.vault import Vault

TTL = timedelta(hours=1)
"""How long a session token is good unless that is said."""
MOST_TTL = timedelta(hours=24)
MOST_NAME = 100
"""How many characters a key's name may have."""
_PURPOSE = "credential"
_AT_ONCE = 100
_KINDS: dict[str, CredentialKind] = {"csk": "key", "cso": "operator", "cst": "token"}
_PREFIXES = {kind: prefix for prefix, kind in _KINDS.items()}
_NAMES = {"key": "key", "operator": "op", "token": "tok"}
_OF_TENANTS: tuple[CredentialKind, ...] = ("key", "token")
_SECRET = re.compile(r"(csk|cso|cst)_[A-Za-z0-9_-]{43}")
_ID = re.compile(r"[a-z]+_[0-9a-f]{20}")
_NOBODYS = SealedCredential(bytes(32), "key", None, None, "", 0, None, b"")


@dataclass(frozen=True, slots=True)
class Credential:
    """Say who somebody is: ``kind`` is ``"key"`` of a tenant, ``"operator"``, ``"token"`` of a user, or ``"tenant"``.

    ``id`` names it in public, for the log and to revoke it. ``name`` is what whoever made it called it.
    """

    id: str
    kind: CredentialKind
    tenant: str | None
    user: str | None
    name: str
    created_at: datetime
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class Minted:
    """Be a new credential with its ``secret``, which is nowhere else and cannot be shown again."""

    credential: Credential
    secret: str = field(repr=False)

    @classmethod
    def of(cls, credential: Credential) -> Minted:
        """Make the secret of *credential*."""
        return cls(credential, f"{_PREFIXES[credential.kind]}_{secrets.token_urlsafe(32)}")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is never written anywhere; take it out where it is meant to go")


class Credentials:
    """Make, list, revoke and check credentials; `AsyncCloister.credentials` gives these."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    async def add_tenant(self, name: str) -> Credential:
        """Add a tenant, for which keys can be made then; `ValueError` for one that was added before, or no name."""
        Owner(name, "anybody")  # whose users could be named
        tenant = self._new("tenant", None, None, name, "", None)
        try:
            await self._enrol(tenant, _digest_of_tenant(name))
        except SessionConflict:
            raise ValueError(f"the tenant {name!r} was added before") from None
        return tenant

    async def tenants(self) -> list[Credential]:
        """List the tenants, by name, which is their ``id``."""
        return await self._list(None, "tenant")

    async def remove_tenant(self, name: str) -> int:
        """Let nobody of a tenant in any more: take it out, and revoke its keys and its users' session tokens.

        Gives how many of all these there were. Sessions stay, and JWTs of an issuer are good until that is taken out of
        the settings. What broke off is finished by the same call.
        """
        Owner(name, "anybody")
        vault = self._vault
        # First, so that no key or token is made meanwhile.
        noted = vault.event("credential.revoked", None, "", id=name, what="tenant")
        count = (await vault.ask(vault.store.revoke, None, "tenant", name, entries=[noted])).count
        for kind in _OF_TENANTS:
            while listed := await self._list(name, kind):
                gone = [await self._revoke(name, kind, one.id) for one in listed]
                count += sum(gone)
                if not any(gone):
                    raise IntegrityError("the store lists credentials that it does not revoke; see the audit log")
        return count

    async def new_key(self, tenant: str, *, name: str = "", expires_in: timedelta | None = None) -> Minted:
        """Make a key for the back end of a *tenant* that was added; without *expires_in* it is good until revoked."""
        await self._check_added(tenant)
        return await self._mint("key", tenant, None, name, expires_in)

    async def new_operator_key(self, *, name: str = "", expires_in: timedelta | None = None) -> Minted:
        """Make a key for an operator, who belongs to no tenant."""
        return await self._mint("operator", None, None, name, expires_in)

    async def keys(self, tenant: str | None) -> list[Credential]:
        """List the keys of a tenant, or those of operators."""
        return await self._list(tenant, "operator" if tenant is None else "key")

    async def has_keys(self) -> bool:
        """Say whether anybody has a key, an operator or any tenant; no operator's rights in the store are needed."""
        if await self.keys(None):
            return True
        for tenant in await self.tenants():
            if await self.keys(tenant.id):
                return True
        return False

    async def revoke_key(self, tenant: str | None, key_id: str) -> bool:
        """Revoke a key of a tenant, or of an operator, from now on; say whether there was one."""
        return await self._revoke(tenant, "operator" if tenant is None else "key", key_id)

    async def new_token(self, owner: Owner, ttl: timedelta = TTL) -> Minted:
        """Make a session token for *owner*, a user of a tenant that was added, good for up to 24 hours.

        It goes with `User.end_all` and `User.erase`.
        """
        if owner.tenant is None:
            raise ConfigurationError("session tokens are for users of tenants: name the tenant")
        if not timedelta(0) < ttl <= MOST_TTL:
            raise ValueError(f"a session token is good for up to {MOST_TTL // timedelta(hours=1)} hours")
        await self._check_added(owner.tenant)
        return await self._mint("token", owner.tenant, owner, "", ttl)

    async def revoke_token(self, tenant: str, token_id: str) -> bool:
        """Revoke a session token of one of the *tenant*'s users from now on; say whether there was one."""
        return await self._revoke(tenant, "token", token_id)

    async def check(self, secret: object) -> Credential:
        """Say who has *secret*; `CredentialInvalid` alike if it is malformed, unknown, revoked or past its time.

        Every one of these makes the same request and as much work. Raises `IntegrityError`, and the alarm, where the
        store returned something that was never made here.
        """
        kind, digest = _read(secret)
        del secret  # what reports errors may send variables along
        vault = self._vault
        row = (await vault.ask(vault.store.credential, digest)).credential
        if row is None:
            await sealed(vault.keys, _NOBODYS, "")  # as much work as to open one: how long it takes tells nothing
            raise CredentialInvalid("malformed" if kind is None else "unknown")
        found = await self._opened(row, digest, kind)
        if row.expires_at is not None and row.expires_at <= to_micros(vault.now()):
            raise CredentialInvalid("expired")
        return found

    async def _opened(self, row: SealedCredential, digest: bytes, kind: CredentialKind | None) -> Credential:
        async with self._guarded():
            if not hmac.compare_digest(row.digest, digest) or row.kind != kind:
                raise IntegrityError("the store returned another credential than the one it was asked for")
            return await opened(self._vault.keys, row)

    async def _check_added(self, tenant: str) -> None:
        Owner(tenant, "anybody")
        vault, digest = self._vault, _digest_of_tenant(tenant)
        row = (await vault.ask(vault.store.credential, digest)).credential
        if row is None:
            raise ConfigurationError(f"there is no tenant {tenant!r}: `cloister tenants add` adds it")
        await self._opened(row, digest, "tenant")

    async def _mint(
        self, kind: CredentialKind, tenant: str | None, owner: Owner | None, name: str, expires_in: timedelta | None
    ) -> Minted:
        sessions.check_text(name, "a key's name")
        if len(name) > MOST_NAME:
            raise ValueError(f"a key's name has at most {MOST_NAME} characters; this has {len(name)}")
        if expires_in is not None and not timedelta(0) < expires_in <= timedelta(days=36_500):
            raise ValueError("a key is good for some time from now on, or for ever")
        public = f"{_NAMES[kind]}_{secrets.token_hex(10)}"
        user = None if owner is None else owner.user
        # No variable holds the secret but this, which hides it: what reports errors may send variables along.
        minted = Minted.of(self._new(kind, tenant, user, public, name, expires_in))
        await self._enrol(minted.credential, _digest(minted.secret))
        return minted

    def _new(
        self,
        kind: CredentialKind,
        tenant: str | None,
        user: str | None,
        public: str,
        name: str,
        expires_in: timedelta | None,
    ) -> Credential:
        now = from_micros(to_micros(self._vault.now()))
        return Credential(public, kind, tenant, user, name, now, None if expires_in is None else now + expires_in)

    async def _enrol(self, new: Credential, digest: bytes) -> None:
        vault = self._vault
        owner = None if new.user is None else Owner(new.tenant, new.user)
        ends = None if new.expires_at is None else to_micros(new.expires_at)
        row = SealedCredential(digest, new.kind, new.tenant, new.user, new.id, to_micros(new.created_at), ends, b"")
        row = await sealed(vault.keys, row, new.name)
        detail: dict[str, Detail] = {"tenant": new.tenant} if new.kind == "key" else {}
        if new.expires_at is not None:
            detail["seconds"] = round((new.expires_at - new.created_at).total_seconds())
        noted = vault.event("credential.created", owner, "", id=new.id, what=new.kind, **detail)
        receipt = await vault.ask(vault.store.enrol, row, entries=[noted])
        if receipt.repeated:  # made by somebody else, in this very moment
            raise SessionConflict("a credential under this name exists already; nothing was stored")

    async def _list(self, tenant: str | None, kind: CredentialKind) -> list[Credential]:
        vault = self._vault
        found: list[Credential] = []
        while True:
            after = found[-1].id if found else ""
            page = await vault.ask(vault.store.credentials, tenant, kind, limit=_AT_ONCE, after=after)
            for row in page.credentials:
                async with self._guarded():
                    if (row.tenant, row.kind) != (tenant, kind) or row.id <= (found[-1].id if found else ""):
                        raise IntegrityError("the store listed other credentials than it was asked for")
                    found.append(await opened(vault.keys, row))
            if len(page.credentials) < _AT_ONCE:
                return found

    async def _revoke(self, tenant: str | None, kind: CredentialKind, public: str) -> bool:
        vault = self._vault
        if not _ID.fullmatch(public):
            public = _NOBODYS.id  # which is looked for like any other
        named: dict[str, Detail] = {"tenant": tenant} if kind == "key" else {}
        noted = vault.event("credential.revoked", None, "", id=public, what=kind, **named)
        return bool((await vault.ask(vault.store.revoke, tenant, kind, public, entries=[noted])).count)

    @contextlib.asynccontextmanager
    async def _guarded(self) -> AsyncIterator[None]:
        """Raise the alarm for what turns out inside the block to be something else than was stored."""
        try:
            yield
        except IntegrityError as error:
            await self._vault.alarm(error)
            raise


async def sealed(keys: MasterKeys, row: SealedCredential, name: str) -> SealedCredential:
    """Give *row* with all that it says in clear, and its *name*, sealed under the newest master key."""
    derived = await keys.derive(_PURPOSE)
    return replace(row, sealed=seal_derived(derived, _PURPOSE, name.encode(), _context(row)))


async def opened(keys: MasterKeys, row: SealedCredential) -> Credential:
    """Open *row*, or raise `IntegrityError`; `ConfigurationError` if its master key is not there."""
    derived = await keys.derive(_PURPOSE)
    name = open_derived(derived, _PURPOSE, row.sealed, _context(row), "a credential")
    return _shown(row, name.decode())


def _context(row: SealedCredential) -> bytes:
    """Encode all that a row says in clear, so that what is missing looks like nothing else."""
    optional = (row.tenant, row.user, None if row.expires_at is None else str(row.expires_at))
    said = ["-" if value is None else f"+{value}" for value in optional]
    return fields(row.digest, row.kind, row.id, str(row.created_at), *said)


def _shown(row: SealedCredential, name: str) -> Credential:
    ends = None if row.expires_at is None else from_micros(row.expires_at)
    return Credential(row.id, row.kind, row.tenant, row.user, name, from_micros(row.created_at), ends)


def _read(secret: object) -> tuple[CredentialKind | None, bytes]:
    """Give what kind of secret it is, and its digest; of what has not its shape, one that no secret has."""
    if type(secret) is not str or not _SECRET.fullmatch(secret):
        return None, _NOBODYS.digest
    return _KINDS[secret[:3]], _digest(secret)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _digest_of_tenant(name: str) -> bytes:
    return hashlib.sha256(fields("tenant", name)).digest()
