"""What any store must do about credentials, and about taking a record back, as tests."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from cloister.audit import event
from cloister.errors import SessionConflict
from cloister.model import Owner, to_micros
from cloister.stores.base import CredentialKind, Receipt, SealedCredential, Store, every_entry
from cloister.testing.rows import ANA, BEN, LOOKALIKES, START, nonce

_UNTIL = to_micros(START + timedelta(hours=1))


def sealed_credential(
    kind: CredentialKind = "key", tenant: str | None = "acme", user: str | None = None, **changes: Any
) -> SealedCredential:
    """Make a credential as a store sees it: bytes that it cannot open."""
    made = SealedCredential(
        digest=secrets.token_bytes(32),
        kind=kind,
        tenant=tenant,
        user=user,
        id=f"{kind}_{secrets.token_hex(10)}",
        created_at=to_micros(START),
        expires_at=_UNTIL,
        sealed=secrets.token_bytes(60),
    )
    return msgspec.structs.replace(made, **changes)


def token_of(owner: Owner, **changes: Any) -> SealedCredential:
    """Make a token of *owner*'s as a store sees it."""
    return sealed_credential("token", owner.tenant, owner.user, **changes)


async def _enrolled(store: Store, *credentials: SealedCredential) -> None:
    for credential in credentials:
        asked = nonce()
        assert await store.enrol(credential, nonce=asked) == Receipt(asked)


async def _found(store: Store, *credentials: SealedCredential) -> list[SealedCredential]:
    """Give those of *credentials* that the store finds by their digests."""
    found = []
    for credential in credentials:
        asked = nonce()
        answer = await store.credential(credential.digest, nonce=asked)
        assert answer.echo == asked
        if answer.credential is not None:
            found.append(answer.credential)
    return found


async def _listed(
    store: Store, tenant: str | None, kind: CredentialKind, limit: int = 100, after: str = ""
) -> list[SealedCredential]:
    asked = nonce()
    answer = await store.credentials(tenant, kind, nonce=asked, limit=limit, after=after)
    assert answer.echo == asked
    return list(answer.credentials)


def _ordered(credentials: Sequence[SealedCredential]) -> list[SealedCredential]:
    return sorted(credentials, key=lambda one: one.id)


async def _on_record(store: Store) -> list[str]:
    return sorted([entry.event async for entry in every_entry(store)])


class CredentialConformance:
    """The part of the contract of `cloister.stores.base.Store` that is about credentials and single records."""

    async def test_a_credential_is_found_by_its_digest(self, store: Store) -> None:
        """What was enrolled comes back as it was, under its digest and no other, with its entry on record."""
        made = [
            sealed_credential("tenant", None, id="acme", expires_at=None),
            sealed_credential("operator", None),
            sealed_credential("key", expires_at=None),
            token_of(ANA),
            token_of(Owner(None, "ana")),
        ]
        for credential in made:
            noted = event("credential.created", START, id=credential.id, what=credential.kind)
            await store.enrol(credential, nonce=nonce(), entries=[noted])
        assert await _found(store, *made) == made
        digest = made[0].digest
        others = (digest[:-1] + bytes([digest[-1] ^ 1]), digest[:31], digest + b"\0", b"", b"*", b"%", b"{}", b"?" * 32)
        for other in others:
            assert (await store.credential(other, nonce=nonce())).credential is None
        assert await _on_record(store) == ["credential.created"] * len(made)

    async def test_no_credential_is_taken_for_anothers(self, store: Store) -> None:
        """Tenants, kinds and ids that look alike are told apart in listings and when one of them is revoked."""
        made = [
            sealed_credential(kind, tenant, id=owner.user)
            for kind in ("key", "operator")
            for tenant in (*{owner.tenant for owner in LOOKALIKES}, None)
            for owner in {owner.user: owner for owner in LOOKALIKES}.values()
        ]
        await _enrolled(store, *made)
        for gone in (None, next(one for one in made if (one.kind, one.tenant, one.id) == ("key", "acme", "ana"))):
            if gone is not None:
                assert (await store.revoke(gone.tenant, gone.kind, gone.id, nonce=nonce())).count == 1
            left = [one for one in made if one is not gone]
            assert await _found(store, *made) == left
            for tenant, kind in {(one.tenant, one.kind) for one in made}:
                mine = [one for one in left if (one.tenant, one.kind) == (tenant, kind)]
                assert await _listed(store, tenant, kind) == _ordered(mine)
            assert await _listed(store, "acm", "key") == await _listed(store, "acme", "token") == []

    async def test_a_taken_secret_or_name_is_refused(self, store: Store) -> None:
        """Nothing comes in the place of a credential; enrolling it twice is harmless, and is on record once."""
        first = sealed_credential()
        noted = event("credential.created", START, id=first.id, what=first.kind)
        assert not (await store.enrol(first, nonce=nonce(), entries=[noted])).repeated
        rotated = msgspec.structs.replace(first, sealed=b"under another key")
        for again in (first, rotated):
            assert (await store.enrol(again, nonce=nonce(), entries=[noted])).repeated
        other = sealed_credential()
        wrong: list[dict[str, Any]] = [
            {"tenant": "other"},
            {"kind": "operator"},
            {"user": "ana"},
            {"id": other.id},
            {"expires_at": None},
            {"expires_at": _UNTIL + 1},
            {"created_at": 0},
            {"digest": other.digest},
        ]
        for changes in wrong:
            with pytest.raises(SessionConflict):
                await store.enrol(msgspec.structs.replace(first, **changes), nonce=nonce(), entries=[noted])
        assert await _found(store, first, other) == [first]
        assert await _listed(store, "acme", "key") == [first]
        assert await _listed(store, "acme", "operator") == await _listed(store, "other", "key") == []
        assert await _on_record(store) == ["credential.created"]
        await _enrolled(store, other)  # nothing of those that were refused is in its way

    async def test_of_many_of_one_name_one_is_enrolled(self, store: Store) -> None:
        """Of several that come under one id at once, exactly one is kept, and the others leave nothing."""
        rivals = [sealed_credential(id="key_1") for _ in range(8)]
        outcomes = await asyncio.gather(
            *(store.enrol(rival, nonce=nonce()) for rival in rivals), return_exceptions=True
        )
        won = [rival for rival, outcome in zip(rivals, outcomes, strict=True) if isinstance(outcome, Receipt)]
        assert len(won) == 1
        assert sum(isinstance(outcome, SessionConflict) for outcome in outcomes) == 7
        assert await _found(store, *rivals) == won == await _listed(store, "acme", "key")

    async def test_a_revoked_credential_is_gone(self, store: Store) -> None:
        """A revoked credential is neither found nor listed, and can be enrolled anew; one that is not there is none.

        A tenant goes by its name, and takes nothing with it.
        """
        hers, his = token_of(ANA), token_of(BEN)
        key = sealed_credential()
        await _enrolled(store, hers, his, key)
        noted = event("credential.revoked", START, id=hers.id, what="token")

        async def revoke(tenant: str | None, kind: CredentialKind, credential_id: str) -> int:
            asked = nonce()
            receipt = await store.revoke(tenant, kind, credential_id, nonce=asked, entries=[noted])
            assert receipt.echo == asked
            return receipt.count

        for tenant, kind, credential_id in (
            ("other", "token", hers.id),
            (None, "token", hers.id),
            ("acme", "key", hers.id),
            ("acme", "token", key.id),
            ("acme", "token", "*"),
            ("acme", "token", ""),
        ):
            assert await revoke(tenant, kind, credential_id) == 0  # type: ignore[arg-type] # a plain str in the tuples
        assert await _found(store, hers, his, key) == [hers, his, key]
        assert await _on_record(store) == []
        assert [await revoke("acme", "token", hers.id) for _ in range(2)] == [1, 0]
        assert await _found(store, hers, his, key) == [his, key]
        assert await _listed(store, "acme", "token") == [his]
        assert await _on_record(store) == ["credential.revoked"]
        await _enrolled(store, hers)
        assert await _found(store, hers) == [hers]
        acme, alike = [sealed_credential("tenant", None, id=name) for name in ("acme", "acme b")]
        await _enrolled(store, acme, alike)
        assert [await revoke(*one) for one in (("acme", "tenant", "acme"), (None, "tenant", "acm"))] == [0, 0]
        assert [await revoke(None, "tenant", "acme") for _ in range(2)] == [1, 0]
        assert await _found(store, acme, alike, key, his) == [alike, key, his]
        assert await _listed(store, None, "tenant") == [alike]

    async def test_lists_credentials_in_pages(self, store: Store) -> None:
        """Pages of a listing give every credential of that tenant and kind once, in the order of their ids."""
        names = ["a", "a b", "a!", "ab", "é", "z", "\N{GRINNING FACE}", "\N{FULLWIDTH LATIN SMALL LETTER A}"]
        made = [sealed_credential("tenant", None, id=name) for name in names]
        await _enrolled(store, *made, sealed_credential(), sealed_credential("operator", None))
        for limit in (1, 3, 100):
            found: list[SealedCredential] = []
            for _ in range(len(made) + 1):
                page = await _listed(store, None, "tenant", limit, found[-1].id if found else "")
                assert len(page) <= limit
                found += page
                if len(page) < limit:
                    break
            assert found == _ordered(made)
        assert await _listed(store, None, "tenant", after="\N{GRINNING FACE}z") == []

    async def test_all_of_one_user_are_revoked(self, store: Store) -> None:
        """Revoking all of a user's takes every one of them, and nothing of other users or of the tenant as a whole."""
        owners = [*LOOKALIKES, ANA, BEN, Owner(None, "ana")]
        made = [token_of(owner) for owner in dict.fromkeys(owners) for _ in range(2)]
        shared = [
            sealed_credential(),
            sealed_credential("operator", None),
            sealed_credential("tenant", None, id="acme"),
        ]
        await _enrolled(store, *made, *shared)
        noted = event("credential.revoked", START, ANA, what="token")
        asked = nonce()
        assert await store.revoke_all(ANA, nonce=asked, entries=[noted]) == Receipt(asked, count=2)
        left = [one for one in made if (one.tenant, one.user) != (ANA.tenant, ANA.user)]
        assert await _found(store, *made, *shared) == [*left, *shared]
        assert await _listed(store, "acme", "token") == _ordered([one for one in left if one.tenant == "acme"])
        assert (await store.revoke_all(ANA, nonce=nonce(), entries=[noted])).count == 0
        assert await _on_record(store) == ["credential.revoked"]

    async def test_erasure_takes_the_owners_credentials(self, store: Store) -> None:
        """An erasure takes the credentials of its owner, who need not have a session, and of nobody else."""
        hers, his, keys = [token_of(ANA), token_of(ANA)], token_of(BEN), sealed_credential()
        await _enrolled(store, *hers, his, keys)
        assert (await store.erase(ANA, nonce=nonce())).count == 0
        assert await _found(store, *hers, his, keys) == [his, keys]
        assert await _listed(store, "acme", "token") == [his]

    async def test_credentials_are_swept(self, store: Store) -> None:
        """A credential goes with the first sweep at its end, is found until then, and without an end stays."""
        due, later, for_ever = token_of(ANA), token_of(ANA, expires_at=_UNTIL + 1), sealed_credential(expires_at=None)
        await _enrolled(store, due, later, for_ever)
        for now, left in ((_UNTIL - 1, [due, later]), (_UNTIL, [later]), (_UNTIL + 1, [])):
            await store.sweep(now=now, tombstones_before=0, fingerprints=9, nonce=nonce())
            assert await _found(store, due, later, for_ever) == [*left, for_ever]
            assert await _listed(store, "acme", "token") == _ordered(left)
        assert await _listed(store, "acme", "key") == [for_ever]
        assert (await store.revoke_all(ANA, nonce=nonce())).count == 0

    async def test_gives_all_credentials_for_rotation(self, store: Store) -> None:
        """All credentials come once; what is sealed is replaced only where all is still as it was read."""
        made = [token_of(ANA), token_of(BEN), sealed_credential("operator", None), sealed_credential(tenant="other")]
        await _enrolled(store, *made)
        found: list[SealedCredential] = []
        after = b""
        for _ in range(1_000):
            batch = await store.every_credential(after=after, limit=1)
            found += batch.credentials
            after = batch.after
            if not after:
                break
        assert _ordered(found) == _ordered(made)
        first = made[0]
        for changes in ({"sealed": b"other"}, {"user": "ben"}, {"tenant": "other"}, {"expires_at": None}):
            old = msgspec.structs.replace(first, **changes)
            assert (await store.reseal(old, b"wrong", nonce=nonce())).count == 0
        asked = nonce()
        assert await store.reseal(first, b"new", nonce=asked) == Receipt(asked, count=1)
        assert (await store.reseal(first, b"newer", nonce=nonce())).count == 0
        await store.revoke(made[1].tenant, made[1].kind, made[1].id, nonce=nonce())
        assert (await store.reseal(made[1], b"back", nonce=nonce())).count == 0
        assert await _found(store, *made) == [msgspec.structs.replace(first, sealed=b"new"), *made[2:]]
