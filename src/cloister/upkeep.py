"""What has to be done to all sessions of a store now and then: sweeping, and rotating master keys."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta
from typing import NamedTuple

import msgspec

from cloister import credentials, sessions
from cloister.errors import ConfigurationError, IntegrityError
from cloister.model import SealedSession, to_micros
from cloister.sealing import key_of, wrap_context
from cloister.stores.base import MOST_FINGERPRINTS, SealedCredential
from cloister.vault import Vault

_AT_ONCE = 100


async def sweep(vault: Vault) -> int:
    """Destroy what has expired, drop what has outlived its use; give how many sessions ended."""
    now = to_micros(vault.now())
    ended = left = 0
    # Past those that somebody works on, or that were changed: the next sweep sees to them.
    while rows := await vault.store.expired(now=now, limit=_AT_ONCE, skip=left):
        done = [await vault.end_expired(row) for row in rows]
        ended += sum(done)
        left += done.count(0)
    before = now - sessions.TOMBSTONE // timedelta(microseconds=1)
    swept = await vault.ask(vault.store.sweep, now=now, tombstones_before=before, fingerprints=MOST_FINGERPRINTS)
    if swept.dropped:
        noted = vault.event("fingerprints.dropped", count=swept.dropped)
        await vault.ask(vault.store.record, [noted])
    return ended


async def batches(vault: Vault) -> AsyncIterator[Sequence[SealedSession]]:
    """Give all sessions and tombstones, of all owners, some at a time."""
    batch = await vault.store.all(after=b"", limit=_AT_ONCE)
    yield batch.sessions
    while batch.after:
        batch = await vault.store.all(after=batch.after, limit=_AT_ONCE)
        yield batch.sessions


class Rotated(NamedTuple):
    """Count what was put under the newest master key, and what cannot be opened."""

    sessions: int
    credentials: int
    failed: int


async def rewrap_all(vault: Vault, progress: Callable[[int], None]) -> Rotated:
    """Put every session and credential under the newest master key.

    One that cannot be opened concerns itself alone: it is put on record, and the others go on.
    """
    done = failed = 0
    async for rows in batches(vault):
        for row in rows:
            try:
                while not await rewrap(vault, row):
                    row = await _again(vault, row)
                done += 1
            except IntegrityError as error:
                await vault.alarm(error, row.owner, row.id)
                failed += 1
            except ConfigurationError:  # under a key that the keyring does not hold
                failed += 1
        progress(len(rows))
    resealed = 0
    async for one in every_credential(vault):
        try:
            resealed += await reseal(vault, one)
        except IntegrityError as error:
            await vault.alarm(error)
            failed += 1
        except ConfigurationError:
            failed += 1
    rotated = Rotated(done, resealed, failed)
    await vault.ask(vault.store.record, [vault.event("key.rotated", None, "", **rotated._asdict())])
    return rotated


async def _again(vault: Vault, row: SealedSession) -> SealedSession:
    """Read a session once more that changed while it was being re-wrapped."""
    loaded = await vault.ask(vault.store.load, row.owner, row.id, budget=0)
    return loaded.session or msgspec.structs.replace(row, wrapped=None, carry=None)  # erased: nothing to do


async def every_credential(vault: Vault) -> AsyncIterator[SealedCredential]:
    """Give all credentials, of all tenants."""
    after, more = b"", True
    while more:
        batch = await vault.store.every_credential(after=after, limit=_AT_ONCE)
        for credential in batch.credentials:
            yield credential
        after, more = batch.after, bool(batch.after)


async def reseal(vault: Vault, row: SealedCredential) -> bool:
    """Put a credential under the newest master key; False if it is gone, or was put under it meanwhile."""
    known = await credentials.opened(vault.keys, row)
    again = await credentials.sealed(vault.keys, row, known.name)
    return bool((await vault.ask(vault.store.reseal, row, again.sealed)).count)


async def credentials_under(vault: Vault, key: str) -> int:
    """Count the credentials that are still under the master key named *key*."""
    return sum([key in _names(one.sealed) async for one in every_credential(vault)])


async def count_under(vault: Vault, key: str) -> int:
    """Count the sessions, and tombstones with system text, that are still under the master key named *key*."""
    return sum([sum(key in _keys_of(row) for row in rows) async for rows in batches(vault)])


async def rewrap(vault: Vault, row: SealedSession) -> bool:
    """Put a session's secret and carried text under the newest master key; False if it changed meanwhile."""
    context = wrap_context(row.owner, row.id)
    wrapped, carry = row.wrapped, row.carry
    if wrapped is not None:
        wrapped = await vault.keys.wrap(await vault.keys.unwrap(wrapped, context), context)
    if carry is not None:
        carry = await vault.carry(row.owner, row.id, await vault.system_of(row))
    if (wrapped, carry) == (row.wrapped, row.carry):
        return True
    return bool((await vault.ask(vault.store.rewrap, row, wrapped, carry)).count)


def _keys_of(row: SealedSession) -> set[str]:
    """Name the master keys that a session is under."""
    return _names(row.wrapped, row.carry)


def _names(*blobs: bytes | None) -> set[str]:
    """Name the master keys that *blobs* are under; one that is damaged is under none."""
    names = set()
    for blob in blobs:
        if blob is not None:
            with contextlib.suppress(IntegrityError):
                names.add(key_of(blob))
    return names
