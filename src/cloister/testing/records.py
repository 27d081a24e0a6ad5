"""What any store must do with the answers that are filed under a request, as tests."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from cloister import sessions
from cloister.errors import SessionConflict
from cloister.model import Owner, Record, to_micros
from cloister.stores.base import Receipt, Store
from cloister.testing.rows import ANA, BEN, START, load, nonce, sealed_items, sealed_session

_END = to_micros(START)


def _filed(place: str, answer: bytes) -> Record:
    """Make the record of a turn that makes its session, filed in a *place* beside it."""
    return Record(place, sessions.new_id(beside=place), b"key", answer, _END)


async def _begin(store: Store, record: Record, replaces: Record | None = None, owner: Owner = ANA) -> None:
    session = sealed_session(owner, record.holder, count=1, tokens=10)
    await store.create(session, sealed_items(1), nonce=nonce(), record=record, replaces=replaces)


async def _there(store: Store, place: str, owner: Owner = ANA) -> Record | None:
    return (await load(store, owner, place, record=b"key")).record


class RecordConformance:
    """Promises about what is filed under a request."""

    async def test_a_record_takes_the_place_of_the_one_that_was_seen(self, store: Store) -> None:
        """A session's first record comes where nothing is, or what was seen there is; else there is no session."""
        place = sessions.new_id()
        first, second, third = [_filed(place, answer) for answer in (b"first", b"second", b"third")]
        others = [
            msgspec.structs.replace(first, holder=third.holder),
            msgspec.structs.replace(first, sealed=b"third"),
            third,
            None,
        ]
        await _begin(store, first, replaces=third)
        assert await _there(store, place) == first
        for seen in others:
            with pytest.raises(SessionConflict):
                await _begin(store, second, replaces=seen)
            assert (await load(store, ANA, second.holder)).session is None
            assert await _there(store, place) == first
        await _begin(store, second, replaces=first)
        assert await _there(store, place) == second
        with pytest.raises(SessionConflict):
            await _begin(store, third, replaces=first)
        assert (await load(store, ANA, third.holder)).session is None
        # Another owner's is another place.
        await _begin(store, third, replaces=second, owner=BEN)
        assert (await _there(store, place), await _there(store, place, BEN)) == (second, third)
        assert (await load(store, ANA, first.holder)).session is not None

    async def test_a_record_leaves_a_trace(self, store: Store) -> None:
        """An answer that made its session and was handed over is gone; that it was there is known until it ends."""
        place = sessions.new_id()
        first, second, third = [_filed(place, answer) for answer in (b"first", b"second", b"third")]
        await _begin(store, first)
        assert [(await store.forget(ANA, first, nonce=nonce())).count for _ in range(2)] == [1, 0]
        assert await _there(store, place) == first.trace == msgspec.structs.replace(first, sealed=b"")
        with pytest.raises(SessionConflict):
            await _begin(store, second)
        # Whoever saw it before, or sees what is left, knows of it.
        await _begin(store, second, replaces=first)
        await store.forget(ANA, second, nonce=nonce())
        await _begin(store, third, replaces=second.trace)
        assert await _there(store, place) == third
        # Who was slow to hand over what has made room meanwhile changes nothing.
        assert (await store.forget(ANA, second, nonce=nonce())).count == 0
        assert await _there(store, place) == third
        await store.forget(ANA, third, nonce=nonce())
        for now in (_END - 1, _END):
            assert await _there(store, place) == third.trace
            await store.sweep(now=now, tombstones_before=0, fingerprints=9, nonce=nonce())
        assert await _there(store, place) is None

    async def test_one_of_many_takes_a_records_place(self, store: Store) -> None:
        """Of several at once that have seen the same, or nothing, one stores its session, and the others none."""
        place, seen = sessions.new_id(), None
        for _ in range(3):
            records = [_filed(place, answer) for answer in (b"first", b"second", b"third", b"fourth")]
            tried = [_begin(store, record, replaces=seen) for record in records]
            refused = await asyncio.gather(*tried, return_exceptions=True)
            assert sorted(type(one).__name__ for one in refused if one) == ["SessionConflict"] * 3
            (seen,) = [record for record, one in zip(records, refused, strict=True) if one is None]
            assert await _there(store, place) == seen
            made = [(await load(store, ANA, record.holder)).session for record in records]
            assert [one is not None for one in made] == [record is seen for record in records]

    async def test_a_record_is_forgotten_by_its_owner(self, store: Store) -> None:
        """One record is taken back, by its owner, session and key; then the key is free for another answer."""
        shared = sessions.new_id()
        records = {}
        for owner in (ANA, BEN):
            session = sealed_session(owner, shared)
            records[owner] = Record(shared, shared, b"key", b"answer", to_micros(START))
            await store.create(session, nonce=nonce(), record=records[owner])
        known = records[ANA]
        for owner, other in (
            (Owner("acme2", "ana"), known),
            (ANA, msgspec.structs.replace(known, session=sessions.new_id(shared))),
            (ANA, msgspec.structs.replace(known, key=b"other")),
            (ANA, msgspec.structs.replace(known, key=b"")),
            (ANA, msgspec.structs.replace(known, holder=sessions.new_id(shared))),
            (ANA, msgspec.structs.replace(known, sealed=b"another answer")),
        ):
            asked = nonce()
            assert await store.forget(owner, other, nonce=asked) == Receipt(asked)
        for owner, record in records.items():
            assert (await load(store, owner, shared, record=b"key")).record == record
        assert [(await store.forget(ANA, known, nonce=nonce())).count for _ in range(2)] == [1, 0]
        assert (await load(store, ANA, shared, record=b"key")).record is None
        assert (await load(store, BEN, shared, record=b"key")).record == records[BEN]
        another = Record(shared, sessions.new_id(shared), b"key", b"another", to_micros(START) + 1)
        await store.create(sealed_session(ANA, another.holder), nonce=nonce(), record=another)
        assert (await load(store, ANA, shared, record=b"key")).record == another
        await store.sweep(now=to_micros(START), tombstones_before=0, fingerprints=9, nonce=nonce())
        assert (await load(store, ANA, shared, record=b"key")).record == another
