"""Tenants, keys and tokens: who is let in, who is not, and what somebody gains who can write to the store."""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import re
import secrets
import sqlite3
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.fakes import Clock, House, Watched, files_in, opened

from cloister import AsyncCloister, CredentialInvalid, Keyring, Owner, copying, removal, upkeep
from cloister.credentials import Credential, Minted
from cloister.errors import ConfigurationError, IntegrityError, StoreUnavailable
from cloister.stores.base import Found, SealedCredential
from cloister.stores.memory import MemoryStore

ANA, BEN = Owner("acme", "ana"), Owner("acme", "ben")


class Counting:
    """Master keys that count how often they are asked to derive."""

    def __init__(self) -> None:
        self.inner = Keyring.generate()
        self.derived = 0

    async def wrap(self, secret: bytes, context: bytes) -> bytes:
        return await self.inner.wrap(secret, context)

    async def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        return await self.inner.unwrap(wrapped, context)

    async def derive(self, label: str) -> Mapping[str, bytes]:
        self.derived += 1
        return await self.inner.derive(label)


@pytest.fixture
async def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def house(store: MemoryStore) -> AsyncIterator[House]:
    async with opened(store, tenancy="required") as house:
        await house.cloister.credentials.add_tenant("acme")
        yield house


async def _refused(house: House, secret: object) -> CredentialInvalid:
    with pytest.raises(CredentialInvalid) as caught:
        await house.cloister.credentials.check(secret)
    return caught.value


def _row(store: MemoryStore, minted: Minted) -> SealedCredential:
    return store._credentials[hashlib.sha256(minted.secret.encode()).digest()]


# --- who is let in ---


async def test_each_is_known_by_its_secret(url: str) -> None:
    """On every store a key, an operator's key and a token say whose they are, until they are revoked or erased."""
    async with opened(url, tenancy="required") as house:
        made = house.cloister.credentials
        for tenant in ("acme", "beta"):
            await made.add_tenant(tenant)
        key = await made.new_key("acme", name="web shop", expires_in=timedelta(days=90))
        operator = await made.new_operator_key()
        token, other = await made.new_token(ANA), await made.new_token(BEN)
        for minted in (key, operator, token, other):
            assert await made.check(minted.secret) == minted.credential
        now = house.clock.now
        assert token.credential == Credential(
            token.credential.id, "token", "acme", "ana", "", now, now + timedelta(hours=1)
        )
        assert (key.credential.kind, key.credential.tenant, key.credential.user) == ("key", "acme", None)
        assert (operator.credential.kind, operator.credential.tenant) == ("operator", None)
        assert [one.id for one in await made.tenants()] == ["acme", "beta"]
        assert await made.keys("acme") == [key.credential]
        assert await made.keys(None) == [operator.credential]
        assert await made.keys("beta") == []
        assert await made.revoke_key("acme", key.credential.id)
        assert await made.revoke_key(None, operator.credential.id)
        assert await house.cloister.user("ana", tenant="acme").end_all() == 0
        for gone in (key, operator, token):
            assert str(await _refused(house, gone.secret)) == str(CredentialInvalid())
        await house.cloister.user("ben", tenant="acme").erase()
        await _refused(house, other.secret)
        assert (await house.audited()).faults == []


@pytest.mark.parametrize("url", ["memory", "sqlite", "postgres", "redis", "cluster", "token"], indirect=True)
async def test_a_tenant_that_is_removed_is_gone(url: str) -> None:
    """On every store nobody of it is let in, nothing of its users is left, and other tenants have lost nothing."""
    async with opened(url, tenancy="required") as house:
        cloister, made = house.cloister, house.cloister.credentials
        secrets_of: dict[str, list[str]] = {}
        for tenant in ("acme", "beta"):
            await made.add_tenant(tenant)
            minted = [
                await made.new_key(tenant),
                await made.new_key(tenant),
                await made.new_token(Owner(tenant, "ana")),
            ]
            secrets_of[tenant] = [one.secret for one in minted]
            await (await cloister.user("ana", tenant=tenant).start()).send("Hello.")
            await (await cloister.user("ana", tenant=tenant).start()).end()
            await cloister.note_operator(Owner(tenant, "ben"), "list", "he was here once")
        there = await removal.belongings(cloister, "acme")
        assert there == removal.Belongings(frozenset({ANA, BEN}), 1)
        assert await made.remove_tenant("acme") == 4
        assert await made.remove_tenant("acme") == 0
        for secret in secrets_of["acme"]:
            await _refused(house, secret)
        with pytest.raises(ConfigurationError, match="no tenant"):
            await made.new_key("acme")
        assert {receipt.owner for receipt in await removal.erase(cloister, "acme")} == {ANA, BEN}
        assert await removal.belongings(cloister, "acme") == removal.Belongings(frozenset(), 0)
        assert await removal.erase(cloister, "acme") == []
        for secret in secrets_of["beta"]:
            assert (await made.check(secret)).tenant == "beta"
        assert (await removal.belongings(cloister, "beta")).sessions == 1
        events = [entry.event for entry in await house.entries()]
        assert events.count("credential.revoked") == 4
        assert events.count("owner.erased") == 2
        assert (await house.audited()).faults == []


async def test_a_user_without_a_name_in_the_log_is_erased_too(house: House) -> None:
    """Who has a session belongs to the tenant, whatever the log knows."""
    await house.cloister.user("ana", tenant="acme").start()

    async def nobody(real: Any, args: Any, options: Any) -> Any:
        return {}

    watched = Watched(house.cloister.store)
    watched.answers["audit_owners"] = nobody
    house.cloister.store = watched.store
    assert [receipt.sessions for receipt in await removal.erase(house.cloister, "acme")] == [1]


async def test_a_tenant_whose_users_come_back_is_not_said_to_be_gone(house: House) -> None:
    """Whoever is let in by an issuer begins new sessions while the old ones go: that ends, and is an error."""

    async def all_and_one_more(real: Any, args: Any, options: Any) -> Any:
        await house.cloister.user("ana", tenant="acme").start()
        return await real(*args, **options)

    watched = Watched(house.cloister.store)
    watched.answers["all"] = all_and_one_more
    house.cloister.store = watched.store
    with pytest.raises(ConfigurationError, match="still let in"):
        await removal.erase(house.cloister, "acme")


async def test_a_key_is_of_a_tenant_that_was_added(house: House) -> None:
    """Neither keys nor tokens are made for a tenant that nobody added, and none is added twice or under no name."""
    made = house.cloister.credentials
    for tenant in ("beta", "acm", "acme ", "ACME", "acme\N{ZERO WIDTH SPACE}"):
        with pytest.raises(ValueError, match="tenant"):
            await made.new_key(tenant)
        with pytest.raises(ValueError, match="tenant"):
            await made.new_token(Owner(tenant, "ana") if tenant.isalpha() else Owner("beta", "ana"))
    with pytest.raises(ValueError, match="before"):
        await made.add_tenant("acme")
    for wrong in ("", " acme", "a\nb", "x" * 257):
        with pytest.raises(ValueError, match="tenant"):
            await made.add_tenant(wrong)
    with pytest.raises(ConfigurationError, match="tenant"):
        await made.new_token(Owner(None, "ana"))
    assert [one.id for one in await made.tenants()] == ["acme"]


async def test_without_tenants_there_are_no_keys() -> None:
    """A cloister whose users belong to no tenant makes no keys, which would be nobody's."""
    async with opened("memory://") as house:
        with pytest.raises(ConfigurationError, match="required"):
            _ = house.cloister.credentials


async def test_all_are_listed(house: House) -> None:
    """However many tenants there are, the list has each once, in the order of their names."""
    names = [f"tenant {number}" for number in range(210)]
    for name in names:
        await house.cloister.credentials.add_tenant(name)
    assert [one.id for one in await house.cloister.credentials.tenants()] == sorted(["acme", *names])


@pytest.mark.parametrize("ttl", [timedelta(0), timedelta(seconds=-1), timedelta(hours=24, microseconds=1)])
async def test_a_token_lives_a_day_at_most(house: House, ttl: timedelta) -> None:
    """A token for more than 24 hours, or for no time, is refused."""
    with pytest.raises(ValueError, match="24 hours"):
        await house.cloister.credentials.new_token(ANA, ttl)
    longest = await house.cloister.credentials.new_token(ANA, timedelta(hours=24))
    assert longest.credential.expires_at == house.clock.now + timedelta(hours=24)


async def test_what_is_no_key_is_not_made(house: House) -> None:
    """A key that would have expired already, and one with a name that is too long or no text, is refused."""
    made = house.cloister.credentials
    wrong: list[dict[str, Any]] = [
        {"expires_in": timedelta(0)},
        {"expires_in": timedelta(days=-1)},
        {"expires_in": timedelta.max},
        {"name": "x" * 101},
        {"name": "\ud800"},
    ]
    for options in wrong:
        with pytest.raises(ValueError, match="key"):
            await made.new_key("acme", **options)
    assert await made.keys("acme") == []


# --- who is not ---


async def test_one_ends_to_the_microsecond(house: House) -> None:
    """A token and a key are good until their time, and refused from then on, swept or not."""
    made = house.cloister.credentials
    minted = [await made.new_token(ANA, timedelta(hours=2)), await made.new_key("acme", expires_in=timedelta(hours=2))]
    for_ever = await made.new_key("acme")
    house.clock.move(hours=2, microseconds=-1)
    for one in minted:
        assert await made.check(one.secret) == one.credential
    house.clock.move(microseconds=1)
    for swept in (False, True):
        if swept:
            await house.cloister.sweep()
        assert [(await _refused(house, one.secret)).reason for one in minted] == (
            ["unknown"] * 2 if swept else ["expired"] * 2
        )
    assert await made.check(for_ever.secret) == for_ever.credential


async def test_all_that_are_refused_look_alike() -> None:
    """Malformed, unknown, revoked and expired secrets raise one error, after one request and as much work."""
    watched, keys = Watched(MemoryStore()), Counting()
    async with opened(watched.store, tenancy="required", keyring=keys) as house:
        made = house.cloister.credentials
        await made.add_tenant("acme")
        revoked, expired = await made.new_key("acme"), await made.new_token(ANA)
        operator = await made.new_operator_key()
        await made.revoke_key("acme", revoked.credential.id)
        house.clock.move(hours=1)
        secret = "csk_" + secrets.token_urlsafe(32)
        wrong: list[object] = [
            *(secret, "cso_" + secret[4:], "cst_" + secret[4:], revoked.secret, expired.secret),
            *("", "csk_", secret[:-1], secret + "A", secret + "\n", " " + secret, secret.upper(), "x" * 1_000_000),
            *("csk-" + secret[4:], "csx_" + secret[4:], secret[:-1] + "é", secret[:-1] + "=", secret[:-1] + "\ud800"),
            *(None, 7, b"csk_", secret.encode(), [secret], operator.secret.replace("cso_", "csk_")),
        ]
        watched.calls.clear()
        keys.derived = 0
        errors = [await _refused(house, one) for one in wrong]
        assert watched.names == ["credential"] * len(wrong)
        assert keys.derived == len(wrong)
        assert len({(str(error), error.args, error.notice) for error in errors}) == 1
        assert {error.reason for error in errors} == {"malformed", "unknown", "expired"}
        assert all(len(args[0]) == 32 for _, args, _ in watched.calls), "a digest is asked for, whatever was said"
        assert await made.check(operator.secret) == operator.credential


async def test_a_token_is_not_revoked_as_a_key(house: House) -> None:
    """Nothing is revoked by another tenant, as another kind, or by what is no name of one."""
    made = house.cloister.credentials
    key, token, operator = await made.new_key("acme"), await made.new_token(ANA), await made.new_operator_key()
    ids = [minted.credential.id for minted in (key, token, operator)]
    assert not any([await made.revoke_token("acme", ids[0]), await made.revoke_key("acme", ids[1])])
    for tenant in ("beta", None):
        assert not await made.revoke_key(tenant, ids[0])
    for wrong in (ids[2], "acme", "*", "", key.secret, "key_" + "0" * 20):
        assert not await made.revoke_key("acme", wrong)
    assert not await made.revoke_key(None, "acme")
    for minted in (key, token, operator):
        assert await made.check(minted.secret) == minted.credential
    assert "credential.revoked" not in await house.events()


# --- secrets stay secret ---


async def test_a_secret_is_shown_once(tmp_path: Path) -> None:
    """A secret is in no repr, pickle, log or file, and neither is half of it; its public name is no part of it."""
    async with opened(f"sqlite:///{tmp_path}/chats.db", tenancy="required") as house:
        made = house.cloister.credentials
        await made.add_tenant("acme")
        minted = [await made.new_key("acme", name="a visible name"), await made.new_operator_key()]
        minted.append(await made.new_token(ANA))
        await made.revoke_key("acme", minted[0].credential.id)
        said = str(await house.entries()) + repr(minted) + str(minted)
        for one in minted:
            with pytest.raises(TypeError):
                pickle.dumps(one)
    lying = b"".join(files_in(tmp_path).values())
    for one in minted:
        body = one.secret[4:]
        assert len(body) == 43
        assert body[:20] not in said
        assert body[20:] not in said
        assert body[:20].encode() not in lying
        assert one.credential.id.partition("_")[2] not in one.secret
    assert b"a visible name" not in lying
    assert len({one.secret[4:] for one in minted}) == 3


async def test_no_variable_holds_a_secret() -> None:
    """Where a store fails, no variable of ours that an error report would send along shows the secret."""
    watched = Watched(MemoryStore())
    async with opened(watched.store, tenancy="required") as house:
        made = house.cloister.credentials
        await made.add_tenant("acme")
        secret = (await made.new_key("acme")).secret

        async def fails(real: Any, args: Any, options: Any) -> Any:
            raise StoreUnavailable("gone")

        watched.answers |= {"credential": fails}
        with pytest.raises(StoreUnavailable) as checking:
            await made.check(secret)
        del watched.answers["credential"]
        watched.answers |= {"enrol": fails}
        with pytest.raises(StoreUnavailable) as making:
            await made.new_key("acme")
    for caught in (checking, making):
        ours = [entry for entry in caught.traceback if "cloister" in str(entry.path) and "tests" not in str(entry.path)]
        assert len(ours) >= 2
        assert not [entry.name for entry in ours if re.search("cs[kot]_[A-Za-z0-9_-]{20}", repr(entry.locals))]


async def test_is_on_record(house: House) -> None:
    """What was made and revoked is on record by its public name: a user's under the name that erasure cuts loose."""
    made = house.cloister.credentials
    key = (await made.new_key("acme", expires_in=timedelta(days=1))).credential
    token = (await made.new_token(ANA)).credential
    await made.revoke_key("acme", key.id)
    await house.cloister.user("ana", tenant="acme").end_all()
    found = [(one.event, msgspec.json.decode(one.detail), one.owner) for one in await house.entries()]
    (hers,) = [name for name, owner in (await house.cloister.store.audit_owners()).items() if owner == ANA]
    assert found == [
        ("credential.created", {"id": "acme", "what": "tenant"}, ""),
        ("credential.created", {"id": key.id, "what": "key", "tenant": "acme", "seconds": 86_400}, ""),
        ("credential.created", {"id": token.id, "what": "token", "seconds": 3_600}, hers),
        ("credential.revoked", {"id": key.id, "what": "key", "tenant": "acme"}, ""),
        ("credential.revoked", {"what": "token"}, hers),
    ]


# --- whoever can write to the store ---


async def test_a_row_put_there_lets_nobody_in(house: House, store: MemoryStore) -> None:
    """Who inserts the digest of a secret of their own, with anything sealed beside it, gains an alarm."""
    key = await house.cloister.credentials.new_key("acme")
    row = _row(store, key)
    for number, (kind, sealed) in enumerate(
        [("key", row.sealed), ("key", secrets.token_bytes(60)), ("key", b""), ("operator", row.sealed)]
    ):
        mine = {"key": "csk_", "operator": "cso_"}[kind] + secrets.token_urlsafe(32)
        digest = hashlib.sha256(mine.encode()).digest()
        store._credentials[digest] = msgspec.structs.replace(row, digest=digest, kind=kind, sealed=sealed)
        with pytest.raises(IntegrityError):
            await house.cloister.credentials.check(mine)
        assert (await house.events()).count("integrity.failed") == number + 1


_CHANGES: list[dict[str, Any]] = [
    {"tenant": "beta"},
    {"tenant": None},
    {"user": "ben"},
    {"user": None},
    {"kind": "key"},
    {"kind": "operator"},
    {"expires_at": None},
    {"expires_at": 1 << 60},
    {"created_at": 0},
    {"id": "tok_another"},
    {"tenant": "acme+", "user": "ana"},
    {"digest": b"another"},
    {"sealed": b""},
]


@pytest.mark.parametrize("changes", _CHANGES, ids=str)
async def test_a_row_that_was_changed_lets_nobody_in(house: House, store: MemoryStore, changes: dict[str, Any]) -> None:
    """Whatever is changed in a row, it does not open, and the alarm says so."""
    token = await house.cloister.credentials.new_token(ANA)
    row = _row(store, token)
    store._credentials[row.digest] = msgspec.structs.replace(row, **changes)
    with pytest.raises(IntegrityError):
        await house.cloister.credentials.check(token.secret)
    assert "integrity.failed" in await house.events()


async def test_no_bit_of_what_is_sealed_may_change(house: House, store: MemoryStore) -> None:
    """A row of which one bit was changed lets nobody in; the name of its master key is among them."""
    key = await house.cloister.credentials.new_key("acme")
    row = _row(store, key)
    for place in range(len(row.sealed)):
        changed = bytearray(row.sealed)
        changed[place] ^= 1
        store._credentials[row.digest] = msgspec.structs.replace(row, sealed=bytes(changed))
        with pytest.raises((IntegrityError, ConfigurationError)):
            await house.cloister.credentials.check(key.secret)
    store._credentials[row.digest] = row
    assert await house.cloister.credentials.check(key.secret) == key.credential


async def test_anothers_row_lets_nobody_in() -> None:
    """A store that answers with somebody else's row, which opens, is found out: Ben does not become Ana."""
    watched = Watched(MemoryStore())
    async with opened(watched.store, tenancy="required") as house:
        made = house.cloister.credentials
        await made.add_tenant("acme")
        hers, his = await made.new_token(ANA), await made.new_token(BEN)
        key = await made.new_key("acme")

        async def anothers(real: Any, args: Any, options: Any) -> Found:
            digest = hashlib.sha256(hers.secret.encode()).digest()
            found: Found = await real(digest, **options)
            return found

        watched.answers["credential"] = anothers
        for secret in (his.secret, key.secret, "cst_" + secrets.token_urlsafe(32), "nonsense"):
            with pytest.raises(IntegrityError):
                await made.check(secret)
        assert await made.check(hers.secret) == hers.credential
        assert (await house.events()).count("integrity.failed") == 4


async def test_a_tenant_put_there_gets_no_key(house: House, store: MemoryStore) -> None:
    """A tenant that somebody wrote into the store is none: no key is made for it, and the list raises the alarm."""
    digest = hashlib.sha256(b"\0\0\0\x06tenant\0\0\0\x04beta").digest()
    (row,) = [one for one in store._credentials.values() if one.kind == "tenant"]
    store._credentials[digest] = msgspec.structs.replace(row, digest=digest, id="beta")
    with pytest.raises(IntegrityError):
        await house.cloister.credentials.new_key("beta")
    with pytest.raises(IntegrityError):
        await house.cloister.credentials.tenants()
    assert len(await house.cloister.credentials.keys("acme")) == 0


async def test_a_list_with_others_in_it_is_refused() -> None:
    """A store that lists another tenant's keys, or the same ones for ever, is found out."""
    watched = Watched(MemoryStore())
    async with opened(watched.store, tenancy="required") as house:
        made = house.cloister.credentials
        for tenant in ("acme", "beta"):
            await made.add_tenant(tenant)
            for _ in range(100):
                await made.new_key(tenant)

        async def anothers(real: Any, args: Any, options: Any) -> Any:
            return await real("acme", "key", **options)

        async def again(real: Any, args: Any, options: Any) -> Any:
            return await real(*args, **{**options, "after": ""})

        for answer in (anothers, again):
            watched.answers["credentials"] = answer
            with pytest.raises(IntegrityError):
                await made.keys("beta")


@pytest.mark.parametrize(
    "change",
    ["id = x'00'", "sealed = 'text'", "user = 7", "expires_at = 'never'", "kind = x'6b6579'", "created_at = 1.5"],
)
async def test_another_type_in_a_column_is_noticed(tmp_path: Path, change: str) -> None:
    """A column of the file that holds something else than it can is an integrity error, and no crash."""
    async with opened(f"sqlite:///{tmp_path}/chats.db", tenancy="required") as house:
        made = house.cloister.credentials
        await made.add_tenant("acme")
        key = await made.new_key("acme")
        with contextlib.closing(sqlite3.connect(tmp_path / "chats.db")) as db:
            named = change.replace("id =", "credential =") if change.startswith("id") else change
            db.execute(f"UPDATE credentials SET {named} WHERE kind = 'key'")
            db.commit()
        with pytest.raises(IntegrityError):
            await made.check(key.secret)
        assert "integrity.failed" in await house.events()


# --- keys change ---


async def test_rotation_keeps_credentials(url: str) -> None:
    """On every store keys and tokens go on while master keys are replaced; old copies of rows go with the old key."""
    keyring = Keyring.generate()
    (first,) = keyring.names
    async with opened(url, tenancy="required", keyring=keyring) as house:
        made, vault = house.cloister.credentials, house.cloister.vault
        await made.add_tenant("acme")
        minted = [await made.new_key("acme", name="web shop"), await made.new_operator_key(), await made.new_token(ANA)]
        revoked = await made.new_key("acme")
        digest = hashlib.sha256(revoked.secret.encode()).digest()
        copy = (await vault.ask(vault.store.credential, digest)).credential
        assert copy is not None
        await made.revoke_key("acme", revoked.credential.id)
        assert await upkeep.credentials_under(vault, first) == 4
        keyring.add()
        assert await upkeep.rewrap_all(vault, lambda _: None) == (0, 4, 0)
        assert await upkeep.credentials_under(vault, first) == 0
        await vault.ask(vault.store.enrol, copy)
        assert await made.check(revoked.secret) == revoked.credential, "as documented: until the old key is retired"
        keyring.remove(first)
        with pytest.raises(ConfigurationError, match=first):
            await made.check(revoked.secret)
        for one in minted:
            assert await made.check(one.secret) == one.credential
        later = await made.new_key("acme")
        assert await made.check(later.secret) == later.credential


async def test_rotation_goes_past_what_does_not_open(house: House, store: MemoryStore) -> None:
    """A row that was changed stays as it is and is put on record; the others go under the new key."""
    made, vault = house.cloister.credentials, house.cloister.vault
    bad, good = await made.new_key("acme"), await made.new_key("acme")
    row = _row(store, bad)
    store._credentials[row.digest] = msgspec.structs.replace(row, expires_at=7)
    keyring = vault.keys
    assert isinstance(keyring, Keyring)
    first = keyring.names[0]
    keyring.add()
    assert await upkeep.rewrap_all(vault, lambda _: None) == (0, 2, 1)
    assert await upkeep.credentials_under(vault, first) == 1
    keyring.remove(first)
    assert await made.check(good.secret) == good.credential
    assert "integrity.failed" in await house.events()


# --- elsewhere ---


async def test_a_copy_of_the_store_has_them(tmp_path: Path) -> None:
    """Copied to another store, keys and tokens go on there; what has expired or was changed does not come along."""
    source, keys, clock = MemoryStore(), Keyring.generate(), Clock()
    async with opened(source, tenancy="required", keyring=keys, clock=clock) as house:
        made = house.cloister.credentials
        await made.add_tenant("acme")
        minted = [await made.new_key("acme"), await made.new_token(ANA, timedelta(hours=2))]
        expired, changed = await made.new_token(ANA), await made.new_key("acme")
        row = _row(source, changed)
        source._credentials[row.digest] = msgspec.structs.replace(row, tenant="beta")
        clock.move(hours=1)
        target = AsyncCloister.open(f"sqlite:///{tmp_path}/target.db", tenancy="required", keyring=keys, clock=clock)
        async with target as there:
            for _ in range(2):
                assert await copying.copy(house.cloister.vault, there.vault, lambda _: None) == copying.Copied(
                    failed=1, credentials=3
                )
            for one in minted:
                assert await there.credentials.check(one.secret) == one.credential
            for gone in (expired, changed):
                with pytest.raises(CredentialInvalid):
                    await there.credentials.check(gone.secret)
            assert [one.id for one in await there.credentials.tenants()] == ["acme"]


async def test_tokens_without_a_ledger_keep_none() -> None:
    """Where nothing is kept there are no keys either, and that is said; rotation finds nothing to do."""
    keyring = Keyring.generate()
    async with opened("token://?allow_replay=1", tenancy="required", keyring=keyring) as house:
        for work in (
            house.cloister.credentials.add_tenant("acme"),
            house.cloister.credentials.check("csk_" + secrets.token_urlsafe(32)),
        ):
            with pytest.raises(ConfigurationError, match="ledger"):
                await work
        assert await upkeep.rewrap_all(house.cloister.vault, lambda _: None) == (0, 0, 0)
