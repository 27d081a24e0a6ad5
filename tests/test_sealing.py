"""Sealing: what was sealed for one place opens there, and nowhere else, and nothing else opens there."""

from __future__ import annotations

import base64
import copy
import pickle
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from hypothesis import given
from hypothesis import strategies as st

from cloister import sealing, sessions
from cloister.client import AsyncCloister
from cloister.errors import ConfigurationError, IntegrityError
from cloister.keyring import Keyring
from cloister.model import ROLES, Head, Item, Limits, Owner, SealedItem, SystemNote, Usage
from cloister.providers.base import Request
from cloister.sealing import SessionKeys, TenantKeys, fields, key_of, owner_fields, seal, subkey, tag, wrap_context
from cloister.stores.base import Loaded
from cloister.stores.memory import MemoryStore

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECRET = bytes(range(32))
ANA, BEN = Owner(None, "ana"), Owner(None, "ben")
ID = "cs_" + "A" * 43
OTHER_ID = "cs_" + "B" * 43
KEYS = SessionKeys(SECRET, ANA, ID)
ITEM_KEY, HEAD_KEY = (subkey(SECRET, "item head commitment", 3)[place : place + 32] for place in (0, 32))

COUNTS = st.integers(0, 2**40)
JSON = st.dictionaries(
    st.text(max_size=8), st.text(max_size=20) | st.integers(-(2**31), 2**31) | st.booleans(), max_size=3
)
USAGES = st.builds(Usage, COUNTS, COUNTS, COUNTS, COUNTS, st.booleans())
ITEMS = st.builds(
    Item,
    st.sampled_from(ROLES),
    st.none() | st.text(max_size=200) | st.lists(JSON, max_size=3),
    id=st.text(max_size=20),
    time=st.none() | st.datetimes(timezones=st.just(UTC)),
    tokens=COUNTS,
    counter=st.text(max_size=10),
    usage=st.none() | USAGES,
    tool_calls=st.none() | st.lists(JSON, max_size=2),
    tool_call_id=st.none() | st.text(max_size=10),
    extra=st.none() | JSON,
    error=st.none() | st.text(max_size=10),
)
TIMES = st.integers(-(2**50), 2**60)
HEADS = st.builds(
    Head,
    COUNTS,
    created_at=TIMES,
    sealed_at=TIMES,
    active_at=TIMES,
    idle=st.none() | COUNTS,
    absolute=st.none() | COUNTS,
    count=COUNTS,
    tokens=COUNTS,
    last_tag=st.binary(max_size=16),
    turn=st.binary(max_size=16),
    system=st.none() | st.builds(SystemNote, st.binary(max_size=32), COUNTS, st.text(max_size=8)),
    usage=USAGES,
    title=st.none() | st.text(max_size=40),
    metadata=st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3),
    hidden=st.lists(COUNTS, max_size=5).map(tuple),
)


def head(**changes: Any) -> Head:
    return msgspec.structs.replace(sessions.begin(Limits(), NOW, "a title", {"a": "b"}), **changes)


def chain(keys: SessionKeys, count: int, words: str = "item") -> list[SealedItem]:
    """Seal *count* items, each behind the one before."""
    rows: list[SealedItem] = []
    for position in range(count):
        previous = tag(rows[-1].sealed) if rows else b""
        rows.append(keys.seal_item(Item("user", f"{words} {position}", tokens=1), position, previous))
    return rows


def open_one(keys: SessionKeys, row: SealedItem, previous: bytes) -> Item:
    return keys.open_items([row], previous)[0]


def variables(error: BaseException) -> list[object]:
    """Give the local variables of our own code in the traceback of *error*, as error reporters send them along."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = [frame for frame in frames if frame.f_globals.get("__name__", "").startswith("cloister.")]
    assert ours
    return [value for frame in ours for value in frame.f_locals.values()]


def flipped(data: bytes) -> Iterator[bytes]:
    """Give *data* with one bit flipped, for every byte."""
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        yield bytes(damaged)


class TestRoundTrip:
    @given(ITEMS, st.integers(0, 2**63 - 1), st.just(b"") | st.binary(min_size=16, max_size=16))
    def test_an_item_comes_back(self, item: Item, position: int, previous: bytes) -> None:
        """Every item opens to what was sealed, and its clear columns copy it."""
        row = KEYS.seal_item(item, position, previous)
        assert open_one(KEYS, row, previous) == item
        assert (row.position, row.role, row.tokens) == (position, item.role, item.tokens)

    @given(HEADS)
    def test_a_head_comes_back(self, sealed: Head) -> None:
        """Every head opens to what was sealed."""
        assert KEYS.open_head(KEYS.seal_head(sealed)) == sealed

    async def test_a_secret_comes_back(self) -> None:
        """A wrapped secret unwraps in its context, and names its key."""
        keyring = Keyring.generate()
        wrapped = await keyring.wrap(SECRET, wrap_context(ANA, ID))
        assert await keyring.unwrap(wrapped, wrap_context(ANA, ID)) == SECRET
        assert key_of(wrapped) == keyring.names[0]

    @given(st.lists(ITEMS, max_size=6))
    def test_a_chain_comes_back(self, items: list[Item]) -> None:
        """Consecutive items open together, from the first or from any later one."""
        rows: list[SealedItem] = []
        for position, item in enumerate(items):
            rows.append(KEYS.seal_item(item, position, tag(rows[-1].sealed) if rows else b""))
        tags = [b"", *(tag(row.sealed) for row in rows)]
        for first in range(len(items) + 1):
            assert KEYS.open_items(rows[first:], tags[first], tags[-1]) == items[first:]


class TestDamage:
    def test_no_bit_of_an_item_may_change(self) -> None:
        """An item with any byte changed does not open."""
        row = KEYS.seal_item(Item("user", "hello", tokens=3), 0, b"")
        for damaged in flipped(row.sealed):
            with pytest.raises(IntegrityError):
                open_one(KEYS, msgspec.structs.replace(row, sealed=damaged), b"")

    def test_no_bit_of_a_head_may_change(self) -> None:
        """A head with any byte changed, its commitment included, does not open."""
        for damaged in flipped(KEYS.seal_head(head())):
            with pytest.raises(IntegrityError):
                KEYS.open_head(damaged)

    async def test_no_bit_of_a_wrap_may_change(self) -> None:
        """A wrapped secret with any byte changed does not open; only in the name may it look like a missing key."""
        keyring = Keyring.generate()
        wrapped = await keyring.wrap(SECRET, b"context")
        name_ends = 2 + len(keyring.names[0])
        for place, damaged in enumerate(flipped(wrapped)):
            expected = (IntegrityError, ConfigurationError) if 1 <= place < name_ends else IntegrityError
            with pytest.raises(expected):
                await keyring.unwrap(damaged, b"context")

    async def test_no_bit_of_a_carried_text_may_change(self) -> None:
        """Text that outlives a session does not open with any byte changed."""
        keyring = Keyring.generate()
        keys = await TenantKeys.derive(keyring, ANA, "system text")
        sealed = keys.seal(ANA, ID, b"be nice")
        for damaged in flipped(sealed):
            with pytest.raises((IntegrityError, ConfigurationError)):
                keys.open(ANA, ID, damaged)

    async def test_nothing_opens_when_cut(self) -> None:
        """Cut anywhere, or with a byte more, nothing opens."""
        keyring = Keyring.generate()
        row = KEYS.seal_item(Item("user", "hello"), 0, b"")
        sealed = KEYS.seal_head(head())
        wrapped = await keyring.wrap(SECRET, b"")
        for length in range(len(row.sealed)):
            with pytest.raises(IntegrityError):
                open_one(KEYS, msgspec.structs.replace(row, sealed=row.sealed[:length]), b"")
        for length in range(len(sealed)):
            with pytest.raises(IntegrityError):
                KEYS.open_head(sealed[:length])
        for length in range(len(wrapped)):
            with pytest.raises(IntegrityError):
                await keyring.unwrap(wrapped[:length], b"")
        with pytest.raises(IntegrityError):
            open_one(KEYS, msgspec.structs.replace(row, sealed=row.sealed + b"\0"), b"")
        with pytest.raises(IntegrityError):
            KEYS.open_head(sealed + b"\0")
        with pytest.raises(IntegrityError):
            await keyring.unwrap(wrapped + b"\0", b"")

    @given(st.binary(max_size=200))
    def test_noise_does_not_open(self, noise: bytes) -> None:
        """Arbitrary bytes are an integrity error, never another one."""
        for data in (noise, b"\x01" + noise):
            with pytest.raises(IntegrityError):
                open_one(KEYS, SealedItem(0, "user", 0, data), b"")
            with pytest.raises(IntegrityError):
                KEYS.open_head(data)
            with pytest.raises(IntegrityError):
                KEYS.open_head(KEYS.seal_head(head())[:32] + data)

    @given(st.binary(max_size=100))
    async def test_noise_is_no_wrapped_secret(self, noise: bytes) -> None:
        """Arbitrary bytes in place of a wrapped secret are refused by one of our own errors."""
        with pytest.raises((IntegrityError, ConfigurationError)):
            await Keyring({"a": SECRET}).unwrap(noise, b"")

    @pytest.mark.parametrize("version", [0, 2, 255])
    async def test_another_format_does_not_open(self, version: int) -> None:
        """Everything sealed says format 1 where it begins, and any other is refused."""
        keyring = Keyring.generate()
        row = KEYS.seal_item(Item("user", "hello"), 0, b"")
        sealed, wrapped = KEYS.seal_head(head()), await keyring.wrap(SECRET, b"")
        assert row.sealed[0] == sealed[32] == wrapped[0] == 1
        other = bytes([version])
        with pytest.raises(IntegrityError):
            open_one(KEYS, msgspec.structs.replace(row, sealed=other + row.sealed[1:]), b"")
        with pytest.raises(IntegrityError):
            KEYS.open_head(sealed[:32] + other + sealed[33:])
        with pytest.raises(IntegrityError):
            await keyring.unwrap(other + wrapped[1:], b"")

    def test_a_form_that_nobody_reads_is_an_integrity_error(self) -> None:
        """What opens but does not decode, from a later version or a damaged encoder, is refused as well."""
        context = fields(b"\x01") + owner_fields(ANA) + fields(ID)
        body = seal(AESGCM(HEAD_KEY), b"\xc1", fields("head") + context)
        with pytest.raises(IntegrityError, match="does not read"):
            KEYS.open_head(KEYS.seal_head(head())[:32] + body)
        place = context + bytes(8) + bytes([ROLES.index("user"), 0]) + bytes(16)
        with pytest.raises(IntegrityError, match="does not read"):
            open_one(KEYS, SealedItem(0, "user", 0, seal(AESGCM(ITEM_KEY), b"\xc1", place)), b"")

    @pytest.mark.parametrize(
        ("column", "value"),
        [
            *(("position", value) for value in (-1, 2**64, None, "0")),
            *(("role", value) for value in (None, "\ud800", "root")),
            *(("sealed", value) for value in (None, "text", 1)),
            *(("tokens", value) for value in (None, 4, "3")),
        ],
        ids=ascii,
    )
    def test_an_impossible_row_is_an_integrity_error(self, column: str, value: Any) -> None:
        """A row that no honest store could hold raises the error that raises the alarm, not some other one."""
        row = KEYS.seal_item(Item("user", "hello", tokens=3), 0, b"")
        with pytest.raises(IntegrityError):
            KEYS.open_items([msgspec.structs.replace(row, **{column: value})], b"")

    @pytest.mark.parametrize("sealed", [None, "text", 1, "\xe9"], ids=ascii)
    def test_a_head_of_another_type_is_an_integrity_error(self, sealed: Any) -> None:
        """A head that is not even bytes raises the error that raises the alarm."""
        with pytest.raises(IntegrityError):
            KEYS.open_head(sealed)

    @pytest.mark.parametrize("before", [None, "text", 1], ids=repr)
    def test_a_tag_of_another_type_is_an_integrity_error(self, before: Any) -> None:
        """A tag of the item before that is not even bytes raises the error that raises the alarm."""
        with pytest.raises(IntegrityError):
            KEYS.open_items([], before, b"x" * 16)


class TestSwaps:
    def test_an_item_opens_in_its_place_alone(self) -> None:
        """Of all combinations of owner, session, position, role and predecessor, exactly one opens an item."""
        owners = [ANA, BEN, Owner("acme", "ana"), Owner("ana", "acme"), Owner("a:b", "c"), Owner("a", "b:c")]
        places = [
            (owner, session, position, role, previous)
            for owner in owners
            for session in (ID, OTHER_ID)
            for position in (0, 1, 256)
            for role in ("user", "assistant")
            for previous in (b"", b"\0" * 16, b"\1" * 16)
        ]
        for owner, session, position, role, previous in places[::7]:
            sealed = SessionKeys(SECRET, owner, session).seal_item(Item(role, "x"), position, previous).sealed  # type: ignore[arg-type] # a role
            opened = []
            for place in places:
                keys = SessionKeys(SECRET, place[0], place[1])
                try:
                    open_one(keys, SealedItem(place[2], place[3], 0, sealed), place[4])
                    opened.append(place)
                except IntegrityError:
                    pass
            assert opened == [(owner, session, position, role, previous)]

    def test_a_head_opens_for_its_owner_and_session_alone(self) -> None:
        """A head moved to another owner or session does not open, even under the same secret."""
        sealed = KEYS.seal_head(head())
        for owner, session in ((BEN, ID), (ANA, OTHER_ID), (Owner("acme", "ana"), ID), (Owner(ID, "ana"), ID)):
            with pytest.raises(IntegrityError):
                SessionKeys(SECRET, owner, session).open_head(sealed)

    def test_heads_and_items_are_not_interchangeable(self) -> None:
        """An item does not open as a head, nor a head as an item."""
        row, sealed = KEYS.seal_item(Item("user", "x"), 0, b""), KEYS.seal_head(head())
        with pytest.raises(IntegrityError):
            KEYS.open_head(sealed[:32] + row.sealed)
        with pytest.raises(IntegrityError):
            open_one(KEYS, msgspec.structs.replace(row, sealed=sealed[32:]), b"")

    def test_another_secret_opens_nothing(self) -> None:
        """The same owner, session and place under another secret is not enough."""
        stranger = SessionKeys(b"x" * 32, ANA, ID)
        with pytest.raises(IntegrityError):
            stranger.open_head(KEYS.seal_head(head()))
        with pytest.raises(IntegrityError):
            open_one(stranger, KEYS.seal_item(Item("user", "x"), 0, b""), b"")

    async def test_a_wrap_opens_for_its_owner_and_session_alone(self) -> None:
        """A wrapped secret moved to another owner or session does not open."""
        keyring = Keyring.generate()
        wrapped = await keyring.wrap(SECRET, wrap_context(ANA, ID))
        for owner, session in ((BEN, ID), (ANA, OTHER_ID), (Owner("acme", "ana"), ID), (Owner("ana", ID), ID)):
            with pytest.raises(IntegrityError):
                await keyring.unwrap(wrapped, wrap_context(owner, session))

    async def test_a_wrap_says_its_key_and_no_other(self) -> None:
        """A wrap relabelled to another key of the ring does not open."""
        keyring = Keyring({"a": SECRET, "b": b"x" * 32})
        wrapped = await keyring.wrap(SECRET, b"")
        assert key_of(wrapped) == "b"
        with pytest.raises(IntegrityError):
            await keyring.unwrap(wrapped.replace(b"\x01b", b"\x01a", 1), b"")
        same = Keyring({"a": SECRET, "b": SECRET})  # even where both names mean the same key
        wrapped = await same.wrap(SECRET, b"")
        with pytest.raises(IntegrityError):
            await same.unwrap(wrapped.replace(b"\x01b", b"\x01a", 1), b"")

    async def test_a_carried_text_opens_in_its_place_alone(self) -> None:
        """Text that outlives a session is bound to tenant, user, session and purpose."""
        keyring = Keyring.generate()
        sealed = (await TenantKeys.derive(keyring, ANA, "system text")).seal(ANA, ID, b"be nice")
        for owner, session, purpose in (
            (BEN, ID, "system text"),
            (ANA, OTHER_ID, "system text"),
            (Owner("acme", "ana"), ID, "system text"),
            (ANA, ID, "idempotency record"),
        ):
            keys = await TenantKeys.derive(keyring, owner, purpose)
            with pytest.raises(IntegrityError):
                keys.open(owner, session, sealed)
        assert (await TenantKeys.derive(keyring, ANA, "system text")).open(ANA, ID, sealed) == b"be nice"


class TestChain:
    @given(st.integers(1, 6), st.data())
    def test_only_the_true_tail_opens(self, count: int, data: st.DataObject) -> None:
        """However rows are left out, repeated or reordered, only the newest ones in their order open."""
        rows = chain(KEYS, count)
        tags = [b"", *(tag(row.sealed) for row in rows)]
        chosen = data.draw(st.lists(st.integers(0, count - 1), max_size=count + 1))
        before = data.draw(st.integers(0, count))
        given_rows = [rows[place] for place in chosen]
        if chosen == list(range(before, count)):
            assert len(KEYS.open_items(given_rows, tags[before], tags[-1])) == count - before
        else:
            with pytest.raises(IntegrityError):
                KEYS.open_items(given_rows, tags[before], tags[-1])

    def test_an_item_of_a_losing_commit_does_not_open(self) -> None:
        """An item that lost the race for its position does not stand in for the one that won."""
        rows, losing = chain(KEYS, 3), chain(KEYS, 3, "losing")
        last = tag(rows[-1].sealed)
        for place in range(3):
            with pytest.raises(IntegrityError):
                KEYS.open_items([*rows[:place], losing[place], *rows[place + 1 :]], b"", last)
        with pytest.raises(IntegrityError):
            KEYS.open_items(losing, b"", last)

    def test_positions_may_not_jump(self) -> None:
        """Rows that chain but whose positions have a gap were not written by us."""
        first = KEYS.seal_item(Item("user", "a"), 0, b"")
        third = KEYS.seal_item(Item("user", "b"), 2, tag(first.sealed))
        with pytest.raises(IntegrityError):
            KEYS.open_items([first, third], b"", tag(third.sealed))

    def test_the_same_words_are_sealed_differently(self) -> None:
        """Nobody can tell from the store that the same thing was said twice."""
        rows = [KEYS.seal_item(Item("user", "yes"), 0, b"") for _ in range(100)]
        assert len({row.sealed for row in rows}) == 100


def times(x: int, y: int) -> int:
    """Multiply in the field of GCM (NIST SP 800-38D, 6.3), whose bits are written in reverse."""
    product = 0
    for bit in range(127, -1, -1):
        if x >> bit & 1:
            product ^= y
        y = y >> 1 ^ (0xE1 << 120 if y & 1 else 0)
    return product


def inverse(x: int) -> int:
    result, power = 1 << 127, x
    for _ in range(127):  # x to the power of 2**128 - 2
        power = times(power, power)
        result = times(result, power)
    return result


def blocks(data: bytes) -> list[int]:
    padded = data + bytes(-len(data) % 16)
    return [int.from_bytes(padded[at : at + 16], "big") for at in range(0, len(padded), 16)]


def two_key_ciphertext(one: bytes, other: bytes, nonce: bytes, context: bytes) -> bytes:
    """Forge a GCM ciphertext with a tag that opens under both keys (Dodis et al. 2018, Albertini et al. 2022)."""
    lengths = (len(context) * 8 << 64) | 32 * 8

    def parts(key: bytes) -> tuple[int, int]:
        cipher = Cipher(AES(key), ECB()).encryptor()
        h = int.from_bytes(cipher.update(bytes(16)), "big")
        masked = int.from_bytes(cipher.update(nonce + b"\0\0\0\1"), "big")
        state = 0
        for block in [*blocks(context), 42, 0, lengths]:  # the second block of the ciphertext is still to be found
            state = times(state ^ block, h)
        return masked ^ state, times(h, h)

    (tag_one, square_one), (tag_other, square_other) = parts(one), parts(other)
    second = times(tag_one ^ tag_other, inverse(square_one ^ square_other))
    final = tag_one ^ times(second, square_one)
    return b"".join(part.to_bytes(16, "big") for part in (42, second, final))


class TestCommitment:
    def test_a_head_under_two_secrets_opens_under_one(self) -> None:
        """A forged ciphertext that GCM accepts under two secrets is refused under all but the one it commits to."""
        secrets = SECRET, b"x" * 32
        context = fields("head") + fields(b"\x01") + owner_fields(ANA) + fields(ID)
        keys = [subkey(secret, "item head commitment", 3)[32:64] for secret in secrets]
        nonce = b"n" * 12
        forged = two_key_ciphertext(keys[0], keys[1], nonce, context)
        plain = [AESGCM(key).decrypt(nonce, forged, context) for key in keys]
        assert plain[0] != plain[1]  # GCM itself accepts it under both

        for true in range(2):
            commitment = SessionKeys(secrets[true], ANA, ID).seal_head(head())[:32]
            sealed = commitment + b"\x01" + nonce + forged
            with pytest.raises(IntegrityError, match="does not read"):  # opened, and then found to be no head
                SessionKeys(secrets[true], ANA, ID).open_head(sealed)
            with pytest.raises(IntegrityError, match="does not open"):
                SessionKeys(secrets[1 - true], ANA, ID).open_head(sealed)

    def test_the_commitment_says_nothing_but_which_secret(self) -> None:
        """It is the same for all heads of a session, differs between secrets, and is none of the keys."""
        commitments = {KEYS.seal_head(head(version=version))[:32] for version in range(3)}
        assert len(commitments) == 1
        assert commitments != {SessionKeys(b"x" * 32, ANA, ID).seal_head(head())[:32]}
        assert not commitments & {SECRET, ITEM_KEY, HEAD_KEY, subkey(SECRET, "wrap")}


class TestSecrecy:
    async def test_no_nonce_comes_twice(self) -> None:
        """Over many seals, by several values with the same keys, every nonce is new."""
        keyring = Keyring({"a": SECRET})
        twins = [SessionKeys(SECRET, ANA, ID) for _ in range(2)]
        item = Item("user", "x")
        nonces = [keys.seal_item(item, 0, b"").sealed[1:13] for _ in range(10_000) for keys in twins]
        nonces += [keys.seal_head(head())[33:45] for _ in range(1_000) for keys in twins]
        nonces += [(await keyring.wrap(SECRET, b""))[4:16] for _ in range(1_000)]
        assert len(set(nonces)) == len(nonces) == 23_000
        assert len({nonce[:4] for nonce in nonces}) > 22_900  # random, not a counter behind a fixed part

    async def test_nothing_sealed_shows_what_it_seals(self) -> None:
        """Neither words nor titles nor secrets stand in what a store gets, in any usual encoding."""
        canary = "Canary4711"
        keyring = Keyring({"a": b"m" * 32})
        titled = head(title=canary, metadata={canary: canary}, system=SystemNote(canary.encode(), 1, canary))
        item = Item("tool", canary, id=canary, extra={canary: canary}, tool_call_id=canary, tokens=4)
        carried = await TenantKeys.derive(keyring, ANA, "system text")
        stored = [
            KEYS.seal_item(item, 0, b"").sealed,
            KEYS.seal_head(titled),
            carried.seal(ANA, ID, canary.encode()),
            await keyring.wrap(SECRET, b""),
        ]
        forms = [canary.encode(), canary.encode("utf-16-le"), base64.b64encode(canary.encode())[:12], SECRET, b"m" * 32]
        forms += [canary.encode().hex().encode(), SECRET.hex().encode(), base64.b64encode(SECRET)]
        assert not [(form, blob) for form in forms for blob in stored if form in blob]

    def test_every_purpose_has_its_own_key(self) -> None:
        """No two labels, and no two secrets, give the same key."""
        labels = ["record", "wrap", "tenant/x", "tenant/"]
        keys = [subkey(secret, label) for secret in (SECRET, b"x" * 32) for label in labels]
        for secret in (SECRET, b"x" * 32):
            together = subkey(secret, "item head commitment", 3)
            keys += [together[:32], together[32:64], together[64:]]
        assert len(set(keys)) == 2 * (len(labels) + 3)

    async def test_tenants_have_their_own_keys(self) -> None:
        """Keys that outlive sessions differ between tenants, purposes and master keys."""
        keyring = Keyring({"a": SECRET, "b": b"x" * 32})
        labels = [
            ("system text", Owner(None, "ana")),
            ("system text", Owner("acme", "ana")),
            ("record", Owner(None, "a")),
        ]
        derived = [
            key
            for purpose, owner in labels
            for key in (await TenantKeys.derive(keyring, owner, purpose))._keys.values()  # what is under test
        ]
        assert len(set(derived)) == len(derived) == 6

    async def test_secrets_hide_and_do_not_travel(self) -> None:
        """Values that hold keys show none in ``repr``, and can be neither pickled nor copied."""
        keyring = Keyring({"a": SECRET})
        holders: list[object] = [KEYS, keyring, await TenantKeys.derive(keyring, ANA, "system text")]
        for holder in holders:
            shown = f"{holder!r} {holder} {[holder]}"
            assert not [form for form in (repr(SECRET)[2:-1], SECRET.hex()) if form in shown]
            assert len(shown) < 200
            for travel in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(TypeError):
                    travel(holder)

    async def test_tracebacks_show_no_key(self) -> None:
        """A traceback, even one with local variables, of something that did not open shows neither key nor words."""
        master = bytes(range(100, 132))
        keyring = Keyring({"a": master})
        wrapped = await keyring.wrap(SECRET, b"")
        row = KEYS.seal_item(Item("user", "CANARY"), 0, b"")
        with pytest.raises(IntegrityError) as unwrapping:
            await keyring.unwrap(wrapped, b"elsewhere")
        with pytest.raises(IntegrityError) as opening:
            open_one(KEYS, row, b"elsewhere")
        with pytest.raises(IntegrityError) as counting:
            open_one(KEYS, msgspec.structs.replace(row, tokens=9), b"")
        for caught in (unwrapping, opening, counting):
            shown = repr(variables(caught.value))
            assert not [form for form in (repr(master)[2:-1], repr(SECRET)[2:-1], "CANARY") if form in shown]


class TestUnknownKey:
    async def test_a_missing_key_is_no_alarm(self) -> None:
        """A secret under a key that the ring does not hold is a matter of set-up, and the key is named."""
        old, new = Keyring({"old": SECRET}), Keyring({"new": b"x" * 32})
        wrapped = await old.wrap(SECRET, b"")
        with pytest.raises(ConfigurationError, match="'old'") as caught:
            await new.unwrap(wrapped, b"")
        assert not isinstance(caught.value, IntegrityError)
        keys = await TenantKeys.derive(old, ANA, "system text")
        with pytest.raises(ConfigurationError, match="'old'"):
            (await TenantKeys.derive(new, ANA, "system text")).open(ANA, ID, keys.seal(ANA, ID, b"x"))

    async def test_another_key_of_the_same_name_is_an_alarm(self) -> None:
        """Keys are chosen by name, never by trial: the right name with the wrong key does not open."""
        wrapped = await Keyring({"a": SECRET}).wrap(SECRET, b"")
        with pytest.raises(IntegrityError):
            await Keyring({"a": b"x" * 32, "b": SECRET}).unwrap(wrapped, b"")

    async def test_the_name_from_the_store_is_shown_escaped(self) -> None:
        """A key's name comes from the store, so it is shown on one line without control characters."""
        evil = sealing.named("\x1b[2J\nx", b"\x01" + bytes(60))
        with pytest.raises((ConfigurationError, IntegrityError)) as caught:
            await Keyring.generate().unwrap(evil, b"")
        assert str(caught.value).isprintable()

    async def test_rotation_opens_old_and_seals_new(self) -> None:
        """After a key was added everything old opens, and everything new is under the new key."""
        keyring = Keyring.generate()
        before = await keyring.wrap(SECRET, b"")
        keys_before = await TenantKeys.derive(keyring, ANA, "system text")
        name = keyring.add()
        assert await keyring.unwrap(before, b"") == SECRET
        assert key_of(await keyring.wrap(SECRET, b"")) == name
        carried = await TenantKeys.derive(keyring, ANA, "system text")
        assert carried.open(ANA, ID, keys_before.seal(ANA, ID, b"x")) == b"x"
        assert key_of(carried.seal(ANA, ID, b"x")) == name


class Parrot:
    """Answer with the system text that it was sent."""

    name = model = "parrot"

    async def complete(self, request: Request) -> str:
        return f"I was told: {[message['content'] for message in request.messages if message['role'] == 'system']}"

    def stream(self, request: Request) -> AsyncIterator[Any]:
        raise NotImplementedError

    async def close(self) -> None:
        pass


class Crossed(MemoryStore):
    """Answer with what it is told, once it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.answer: Any = None

    async def load(self, *args: Any, nonce: bytes, **options: Any) -> Loaded:
        return Loaded(nonce, self.answer) if self.answer else await super().load(*args, nonce=nonce, **options)


class TestThroughTheVault:
    @pytest.mark.parametrize("what", ["resume", "send", "append"])
    async def test_a_crossed_tombstone_opens_nothing(self, what: str) -> None:
        """Another owner's tombstone in place of one's own session is an integrity error, and its text stays closed."""
        now = [NOW]
        store = Crossed()
        async with AsyncCloister.open(store, provider=Parrot(), clock=lambda: now[0]) as cloister:
            ben = await cloister.user("ben").start(system="You talk to Ben, account 4711.")
            now[0] += timedelta(minutes=31)
            ana = await cloister.user("ana").start(system="You talk to Ana.")
            await cloister.sweep()
            store.answer = (await store.load(BEN, ben.id, nonce=b"", budget=0)).session
            assert store.answer.ended == "expired"
            attack: dict[str, Callable[[], Awaitable[object]]] = {
                "resume": lambda: cloister.user("ana").resume(ana.id),
                "send": lambda: ana.send("hello"),
                "append": lambda: ana.append({"role": "user", "content": "hello"}),
            }
            with pytest.raises(IntegrityError):
                await attack[what]()

    async def test_a_failed_opening_does_not_show_the_secret(self) -> None:
        """The local variables of a failed load, which error reporters send along, do not hold the session's secret."""
        store, keyring = Crossed(), Keyring.generate()
        async with AsyncCloister.open(store, keyring=keyring) as cloister:
            session = await cloister.user("ana").start()
            row = (await store.load(ANA, session.id, nonce=b"", budget=0)).session
            assert row is not None
            assert row.head is not None
            assert row.wrapped is not None
            secret = await keyring.unwrap(row.wrapped, wrap_context(ANA, session.id))
            store.answer = msgspec.structs.replace(row, head=row.head[:-1] + bytes([row.head[-1] ^ 1]))
            with pytest.raises(IntegrityError) as caught:
                await cloister.user("ana").resume(session.id)
        assert secret not in variables(caught.value)


def parts(*given_parts: Sequence[str | bytes]) -> bytes:
    return b"".join(fields(*part) for part in given_parts)


class TestFields:
    @given(st.lists(st.text(max_size=5), max_size=4), st.lists(st.text(max_size=5), max_size=4))
    def test_different_lists_are_different_bytes(self, one: list[str], other: list[str]) -> None:
        """Two lists of texts give the same bytes only if they are the same list."""
        assert (one == other) == (fields(*one) == fields(*other))

    @given(st.lists(st.text(max_size=5), max_size=4), st.integers(0, 4))
    def test_joining_is_the_same_in_one_go(self, texts: list[str], cut: int) -> None:
        """Fields may be joined in pieces."""
        assert parts(texts[:cut], texts[cut:]) == fields(*texts)
