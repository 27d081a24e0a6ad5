"""Credentials in Redis: each lies at the place that its digest names, and in lists by tenant and kind and by user.

A list has a slot of its own, and is written before what it leads to. Its members are an id and a digest with a zero
byte between, which no id has: so they lie in the order of ids. One that leads nowhere is tidied up when it is met.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from hashlib import sha256
from typing import Any, Protocol

import msgspec

from cloister.audit import Event
from cloister.errors import IntegrityError, SessionConflict
from cloister.model import Owner
from cloister.sealing import fields
from cloister.stores import redis_scripts as scripts
from cloister.stores.base import CredentialBatch, CredentialKind, SealedCredential
from cloister.stores.redis_rows import PLACES, place_prefix

_GRACE = 86_400_000  # ms
_PAGE = 200
_LOG = 10
"""The number of the log among the keys of a script that puts entries on record."""
_NAMES = ("digest", "kind", "tenant", "user", "id", "created", "expires", "sealed")

Script = Callable[[str, Sequence[bytes], Sequence[Any]], Awaitable[list[Any]]]


class Write(Protocol):
    """Run a script that puts events on record, with what it is told of them."""

    async def __call__(
        self,
        script: str,
        keys: Sequence[bytes],
        args: Callable[[Sequence[bytes]], Sequence[Any]],
        events: Sequence[Event],
    ) -> list[Any]: ...


class Credentials:
    """Keep credentials by scripts that *script* and *write* run, under keys that begin with *prefix*."""

    def __init__(self, prefix: str, script: Script, write: Write) -> None:
        self._prefix = prefix
        self._script = script
        self._write = write

    # --- one ----------------------------------------------------------------------------------------------------------

    async def find(self, digest: bytes) -> SealedCredential | None:
        """Give the credential of *digest*."""
        (values,) = await self._script(scripts.READ, [self._row(digest)], ["HMGET", *_NAMES])
        return _credential(values)

    async def add(self, credential: SealedCredential, entries: Sequence[Event]) -> bool:
        """Keep *credential* and say whether it was new; `SessionConflict` if its digest or its id is taken."""
        digest, lives = credential.digest, ""
        if credential.expires_at is not None:
            lives = str(max(credential.expires_at - credential.created_at, 0) // 1_000 + _GRACE)
        values = _values(credential)
        rest = [values[name] for name in ("kind", "tenant", "user", "id", "created", "expires", "sealed", "digest")]

        def args(packed: Sequence[bytes]) -> list[Any]:
            return [digest.hex(), lives, len(packed), *rest, *packed]

        lists = self._lists(credential)
        listed = [await self._enlist(key, credential) for key in lists]
        outcome = b"credential"
        if -1 not in listed:
            (outcome, *_) = await self._write(scripts.ENROL, self._keys(digest), args, entries)
        if outcome == b"credential":
            for key, new in zip(lists, listed, strict=True):
                if new == 1:
                    await self._unlist(key, credential.id, digest)
            raise SessionConflict("a credential with this secret or under this name exists already; nothing was stored")
        for key in lists:  # once more: somebody may have tidied it up meanwhile, as one that leads nowhere
            await self._enlist(key, credential)
        return bool(outcome == b"stored")

    async def reseal(self, old: SealedCredential, sealed: bytes) -> int:
        """Replace what is sealed of *old* if it is still there as it was."""
        same = [part for name, value in _values(old).items() for part in (name, value)]
        (changed,) = await self._script(scripts.RESEAL, [self._row(old.digest)], [sealed, *same])
        return int(changed)

    async def remove(
        self, tenant: str | None, kind: CredentialKind, credential_id: str, entries: Sequence[Event]
    ) -> int:
        """Destroy one; give how many there were."""
        key = self._list(tenant, kind)
        first, last = _of_id(credential_id)
        (members,) = await self._script(scripts.READ, [key], ["ZRANGEBYLEX", first, last])
        count = 0
        for member in members:
            known = await self.find(_digest_of(member))
            count += await self._destroy(
                _digest_of(member), {"tenant": tenant or "", "kind": kind, "id": credential_id}, entries
            )
            await self._script(scripts.READ, [key], ["ZREM", member])
            if known is not None and known.user is not None:
                await self._script(scripts.READ, [self._tokens(Owner(known.tenant, known.user))], ["ZREM", member])
        return count

    async def remove_all(self, owner: Owner, entries: Sequence[Event] = ()) -> int:
        """Destroy those of one user; give how many there were."""
        key, count = self._tokens(owner), 0
        while members := (await self._script(scripts.READ, [key], ["ZRANGE", 0, _PAGE - 1]))[0]:
            for member in members:
                known = await self.find(_digest_of(member))
                whose = {"tenant": owner.tenant or "", "user": owner.user}
                count += await self._destroy(_digest_of(member), whose, () if count else entries)
                if known is not None and (known.tenant, known.user) == (owner.tenant, owner.user):
                    await self._unlist(self._list(known.tenant, known.kind), known.id, known.digest)
                await self._script(scripts.READ, [key], ["ZREM", member])
        return count

    async def _destroy(self, digest: bytes, whose: dict[str, str], entries: Sequence[Event]) -> int:
        same = [part for pair in whose.items() for part in pair]

        def args(packed: Sequence[bytes]) -> list[Any]:
            return [digest.hex(), len(packed), *packed, *same]

        (outcome, *_) = await self._write(scripts.REVOKE, self._keys(digest), args, entries)
        return int(outcome == b"stored")

    # --- many ---------------------------------------------------------------------------------------------------------

    async def listed(self, tenant: str | None, kind: CredentialKind, limit: int, after: str) -> list[SealedCredential]:
        """Give those of one tenant and kind behind the id *after*."""
        key, found = self._list(tenant, kind), list[SealedCredential]()
        start = b"[" + after.encode() + b"\x01" if after else b"-"
        while len(found) < limit:
            (members,) = await self._script(scripts.READ, [key], ["ZRANGEBYLEX", start, "+", "LIMIT", 0, limit])
            rows = await asyncio.gather(*(self.find(_digest_of(member)) for member in members))
            found += [row for row in rows if row is not None]
            gone = [member for member, row in zip(members, rows, strict=True) if row is None]
            if gone:  # collected by Redis before anybody swept
                await self._script(scripts.READ, [key], ["ZREM", *gone])
            if len(members) < limit:
                break
            start = b"(" + members[-1]
        return found[:limit]

    async def behind(self, after: bytes, limit: int) -> CredentialBatch:
        """Give some of all tenants; see `Store.every_credential`."""
        place, last = msgspec.msgpack.decode(after, type=tuple[int, str]) if after else (0, "")
        while place < PLACES:
            base = place_prefix(self._prefix, place)
            start = f"({last}" if last else "-"
            (known,) = await self._script(
                scripts.READ, [base + b"credentials"], ["ZRANGEBYLEX", start, "+", "LIMIT", 0, limit]
            )
            rows = [await self.find(bytes.fromhex(digest.decode())) for digest in known]
            if known:
                mark = msgspec.msgpack.encode((place, known[-1].decode()))
                return CredentialBatch([row for row in rows if row is not None], mark)
            place, last = place + 1, ""
        return CredentialBatch((), b"")

    async def unlist_swept(self, ended: Sequence[Sequence[bytes | None]]) -> None:
        """Take what was swept off the lists; *ended* says whose each was, its kind, its id and its digest."""
        for tenant, user, kind, credential_id, digest in ended:
            if tenant is None or user is None or kind is None or credential_id is None or digest is None:
                continue  # collected by Redis before
            member = credential_id + b"\0" + digest
            lists = [self._list(tenant.decode(), kind.decode())]
            if user:
                lists.append(self._tokens_of(tenant.decode(), user.decode()))
            for key in lists:
                await self._script(scripts.READ, [key], ["ZREM", member])

    # --- lists --------------------------------------------------------------------------------------------------------

    async def _enlist(self, key: bytes, credential: SealedCredential) -> int:
        """Put *credential* on a list; 1 if it is new there, -1 if its id is another's where ids are unique."""
        member = _member(credential.id, credential.digest)
        if key == self._list(credential.tenant, credential.kind):
            (new,) = await self._script(scripts.ENLIST, [key], [member, *_of_id(credential.id)])
        else:
            (new,) = await self._script(scripts.READ, [key], ["ZADD", 0, member])
        return int(new)

    async def _unlist(self, key: bytes, credential_id: str, digest: bytes) -> None:
        await self._script(scripts.READ, [key], ["ZREM", _member(credential_id, digest)])

    def _lists(self, credential: SealedCredential) -> list[bytes]:
        lists = [self._list(credential.tenant, credential.kind)]
        if credential.user is not None:
            lists.append(self._tokens_of(credential.tenant or "", credential.user))
        return lists

    def _list(self, tenant: str | None, kind: str) -> bytes:
        return self._slot("c", fields(tenant or "", kind))

    def _tokens(self, owner: Owner) -> bytes:
        return self._tokens_of(owner.tenant or "", owner.user)

    def _tokens_of(self, tenant: str, user: str) -> bytes:
        return self._slot("t", fields(tenant, user))

    def _slot(self, what: str, whose: bytes) -> bytes:
        return f"{self._prefix}{{{what}:{sha256(whose).hexdigest()[:32]}}}:credentials".encode()

    # --- rows ---------------------------------------------------------------------------------------------------------

    def _base(self, digest: bytes) -> bytes:
        return place_prefix(self._prefix, digest[0] if digest else 0)

    def _row(self, digest: bytes) -> bytes:
        return self._base(digest) + b"c:" + digest.hex().encode()

    def _keys(self, digest: bytes) -> list[bytes]:
        base = self._base(digest)
        return [self._row(digest), base + b"credentials", base + b"lapse", *[base + b"log"] * (_LOG + 1 - 3)]


def _member(credential_id: str, digest: bytes) -> bytes:
    return credential_id.encode() + b"\0" + digest


def _of_id(credential_id: str) -> tuple[bytes, bytes]:
    """Say between what the members of one id lie."""
    return b"[" + credential_id.encode() + b"\0", b"(" + credential_id.encode() + b"\x01"


def _digest_of(member: bytes) -> bytes:
    return member.partition(b"\0")[2]


def _values(credential: SealedCredential) -> dict[str, Any]:
    return {
        "digest": credential.digest,
        "kind": credential.kind,
        "tenant": credential.tenant or "",
        "user": credential.user or "",
        "id": credential.id,
        "created": credential.created_at,
        "expires": "" if credential.expires_at is None else credential.expires_at,
        "sealed": credential.sealed,
    }


def _credential(values: Sequence[Any]) -> SealedCredential | None:
    if values[0] is None:
        return None
    digest, kind, tenant, user, credential_id, created, expires, sealed = values
    try:
        return SealedCredential(
            digest=digest,
            kind=kind.decode(),
            tenant=tenant.decode() or None,
            user=user.decode() or None,
            id=credential_id.decode(),
            created_at=int(created),
            expires_at=int(expires) if expires else None,
            sealed=bytes(sealed),
        )
    except (ValueError, TypeError, AttributeError):
        raise IntegrityError("a credential's row in the store was changed; see the audit log") from None
