"""The contract rejects stores that file answers wrongly."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.test_stores import _broken_promises

from cloister.model import Owner, Record, SealedSession
from cloister.stores.base import Receipt
from cloister.stores.memory import MemoryStore


class AnybodyForgets(MemoryStore):
    """Takes back a record by session and key, whoever asks."""

    async def forget(self, owner: Owner, record: Record, *, nonce: bytes) -> Receipt:
        whose = next((who for (who, _, _), filed in self._records.items() if filed == record), owner)
        return await super().forget(whose, record, nonce=nonce)


class ForgetsAll(MemoryStore):
    """Takes back all records of a session."""

    async def forget(self, owner: Owner, record: Record, *, nonce: bytes) -> Receipt:
        gone = [known for known in self._records if known[:2] == (owner, record.session)]
        self._records = {known: filed for known, filed in self._records.items() if known not in gone}
        return Receipt(nonce, count=min(len(gone), 1))


class ForgetsNothing(MemoryStore):
    """Says that a record is gone, and keeps it."""

    async def forget(self, owner: Owner, record: Record, *, nonce: bytes) -> Receipt:
        return Receipt(nonce, count=int((owner, record.session, record.key) in self._records))


class ForgetsWhatCameLater(MemoryStore):
    """Takes back what is filed there now, whatever that is."""

    async def forget(self, owner: Owner, record: Record, *, nonce: bytes) -> Receipt:
        there = self._records.get((owner, record.session, record.key))
        return await super().forget(owner, there or record, nonce=nonce)


class LeavesNoTrace(MemoryStore):
    """Removes a record as if it had never been there."""

    async def forget(self, owner: Owner, record: Record, *, nonce: bytes) -> Receipt:
        receipt = await super().forget(owner, record, nonce=nonce)
        self._records = {known: filed for known, filed in self._records.items() if filed.sealed}
        return receipt


class TracesForEver(MemoryStore):
    """Never sweeps what is left of a record."""

    async def sweep(self, **options: Any) -> Receipt:
        traces = {known: filed for known, filed in self._records.items() if not filed.sealed}
        receipt = await super().sweep(**options)
        self._records |= traces
        return receipt


class TracesSweptAtOnce(MemoryStore):
    """Sweeps what is left of a record before its time."""

    async def sweep(self, **options: Any) -> Receipt:
        self._records = {known: filed for known, filed in self._records.items() if filed.sealed}
        return await super().sweep(**options)


class _Creating(MemoryStore):
    def seen(self, there: Record, replaces: Record | None) -> Record | None:
        """Give what is taken for what was seen."""
        raise NotImplementedError

    async def create(self, session: SealedSession, *args: Any, **options: Any) -> Receipt:
        record = options.get("record")
        there = record and self._records.get((session.owner, record.session, record.key))
        if there:
            options["replaces"] = self.seen(there, options.get("replaces"))
        return await super().create(session, *args, **options)


class ReplacesAnything(_Creating):
    """Lets a record take the place of any other."""

    def seen(self, there: Record, replaces: Record | None) -> Record | None:
        return there


class ReplacesAnotherThanSeen(_Creating):
    """Takes it that whoever has seen something has seen what is there."""

    def seen(self, there: Record, replaces: Record | None) -> Record | None:
        return replaces and there


class ReplacesUnseen(_Creating):
    """Takes it that whoever has seen nothing may replace anything."""

    def seen(self, there: Record, replaces: Record | None) -> Record | None:
        return replaces or there


class ReplacesByHolder(_Creating):
    """Looks only at which session made a record."""

    def seen(self, there: Record, replaces: Record | None) -> Record | None:
        return there if replaces and replaces.holder == there.holder else replaces


class ReplacesByAnswer(_Creating):
    """Looks only at what a record says."""

    def seen(self, there: Record, replaces: Record | None) -> Record | None:
        return there if replaces and replaces.sealed == there.sealed else replaces


class ReplacesTraces(_Creating):
    """Files a record where only a trace is, whatever was seen."""

    def seen(self, there: Record, replaces: Record | None) -> Record | None:
        return replaces if there.sealed else there


class ReplacesNoTrace(_Creating):
    """Refuses whoever saw a record of which a trace is left meanwhile."""

    def seen(self, there: Record, replaces: Record | None) -> Record | None:
        return replaces if there.sealed or replaces == there else None


class ReplacesNothing(_Creating):
    """Knows of no replacing."""

    def seen(self, there: Record, replaces: Record | None) -> Record | None:
        return None


class ReplacesOnlyWhatIsThere(MemoryStore):
    """Refuses a record that may replace another where that is gone."""

    async def create(self, session: SealedSession, *args: Any, **options: Any) -> Receipt:
        replaces = options.get("replaces")
        if replaces and (session.owner, replaces.session, replaces.key) not in self._records:
            self._records[session.owner, replaces.session, replaces.key] = msgspec.structs.replace(replaces, holder="")
        return await super().create(session, *args, **options)


class ReplacesAnothers(_Creating):
    """Puts a record into its own owner's place and takes away the one that was seen, whosever that is."""

    async def create(self, session: SealedSession, *args: Any, **options: Any) -> Receipt:
        receipt = await MemoryStore.create(self, session, *args, **options)
        replaced = options.get("replaces")
        self._records = {known: filed for known, filed in self._records.items() if filed != replaced}
        return receipt


class StoredAllTheSame(MemoryStore):
    """Refuses a record, and keeps the session that came with it."""

    async def create(self, session: SealedSession, *args: Any, **options: Any) -> Receipt:
        try:
            return await super().create(session, *args, **options)
        except Exception:
            options.pop("record", None)
            await super().create(session, *args, **options)
            raise


_FORGOTTEN = "test_a_record_is_forgotten_by_its_owner"
_SEEN = "test_a_record_takes_the_place_of_the_one_that_was_seen"
_TRACE = "test_a_record_leaves_a_trace"
_ONE = "test_one_of_many_takes_a_records_place"
BROKEN: list[tuple[type[MemoryStore], str]] = [
    (AnybodyForgets, _FORGOTTEN),
    (ForgetsAll, _FORGOTTEN),
    (ForgetsNothing, _FORGOTTEN),
    (ForgetsNothing, _TRACE),
    (ForgetsWhatCameLater, _FORGOTTEN),
    (ForgetsWhatCameLater, _TRACE),
    (LeavesNoTrace, _TRACE),
    (TracesForEver, _TRACE),
    (TracesSweptAtOnce, _TRACE),
    (ReplacesAnything, _SEEN),
    (ReplacesAnything, _ONE),
    (ReplacesAnotherThanSeen, _SEEN),
    (ReplacesAnotherThanSeen, _ONE),
    (ReplacesUnseen, _SEEN),
    (ReplacesUnseen, _ONE),
    (ReplacesByHolder, _SEEN),
    (ReplacesByAnswer, _SEEN),
    (ReplacesTraces, _TRACE),
    (ReplacesNoTrace, _TRACE),
    (ReplacesNothing, _SEEN),
    (ReplacesOnlyWhatIsThere, _SEEN),
    (ReplacesAnothers, _SEEN),
    (StoredAllTheSame, _SEEN),
    (StoredAllTheSame, _ONE),
]
"""Each with a promise that it breaks."""


@pytest.mark.parametrize(("store", "promise"), BROKEN)
async def test_the_contract_rejects_records(store: type[MemoryStore], promise: str) -> None:
    """A store that files answers wrongly fails the promise that it breaks."""
    assert promise in await _broken_promises(store)
