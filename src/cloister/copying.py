"""Sessions move from one store to another as they are: sealed, under the same ids and keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import msgspec

from cloister import credentials, sessions, upkeep
from cloister.errors import ConfigurationError, IntegrityError, SessionConflict
from cloister.model import SealedItem, SealedSession, to_micros
from cloister.opened import Opened
from cloister.stores.base import SealedCredential
from cloister.vault import Vault

_AT_ONCE = 500
SOON = timedelta(hours=1)
"""Sessions that end within this time are pointed out before anything is copied."""


@dataclass(slots=True)
class Census:
    """Count what there is to copy: ``live`` sessions, of which ``soon`` end; those that are ``over`` are not copied."""

    live: int = 0
    soon: int = 0
    over: int = 0


@dataclass(slots=True)
class Copied:
    """Count what became of them: ``there`` were copied before, ``failed`` are damaged, or others in the target.

    ``credentials`` counts keys and tokens that are in the target now.
    """

    copied: int = 0
    there: int = 0
    over: int = 0
    failed: int = 0
    credentials: int = 0


async def count(source: Vault) -> Census:
    """Look at the clear columns of all sessions; nothing is opened."""
    census, now = Census(), to_micros(source.now())
    async for rows in upkeep.batches(source):
        for row in rows:
            left = None if row.expires_at is None else row.expires_at - now
            if row.ended or (left is not None and left <= 0):
                census.over += 1
                continue
            census.live += 1
            census.soon += left is not None and left <= SOON // timedelta(microseconds=1)
    return census


async def copy(source: Vault, target: Vault, progress: Callable[[int], None]) -> Copied:
    """Copy all live sessions and credentials of *source*; those that are in *target* already are passed over.

    Each is opened first, every item of it, and sessions are read back afterwards. One that does not open is put on
    record where it lies; one that is another in the target is left alone there. Both are counted, and the others go on.
    Neither tombstones nor idempotency records, fingerprints nor the log are copied.
    """
    done = Copied()
    # Where they are read it is on record before, as every operator's look at what is others'.
    noted = source.event("operator.access", action="copy", reason=f"copied to {target.store.url}")
    await source.ask(source.store.record, [noted])
    async for rows in upkeep.batches(source):
        for row in rows:
            try:
                await _copy_one(source, target, row, done)
            except (IntegrityError, SessionConflict, ConfigurationError):
                done.failed += 1
        progress(len(rows))
    async for credential in upkeep.every_credential(source):
        try:
            done.credentials += await _copy_credential(source, target, credential)
        except (IntegrityError, SessionConflict, ConfigurationError):
            done.failed += 1
    noted = target.event("sessions.copied", copied=done.copied, there=done.there, failed=done.failed)
    await target.ask(target.store.record, [noted])
    return done


async def _copy_one(source: Vault, target: Vault, row: SealedSession, done: Copied) -> None:
    if row.ended:
        done.over += 1
        return
    opened = await source.open_row(row, row.owner, source.moment)
    if sessions.expired(opened.head, source.now()):
        done.over += 1
        return
    items = await _items(source, row)
    async with source.guarded(row.owner, row.id):
        _check(opened, items)
    # It gives the owner a name in the target's log, too: later entries, such as of a read, do not.
    noted = target.event("operator.access", row.owner, row.id, action="copy", reason=f"copied from {source.store.url}")
    receipt = await target.ask(target.store.create, row, items, entries=[noted])
    there = await target.ask(target.store.load, row.owner, row.id, budget=0)
    found = there.session
    if receipt.repeated and found is not None:  # its keys may have been rotated since
        found = msgspec.structs.replace(found, wrapped=row.wrapped, carry=row.carry)
    if found != row or await _items(target, row) != items:
        raise IntegrityError("a session does not lie in the target as it was put there; see to that store first")
    done.there += receipt.repeated
    done.copied += not receipt.repeated


async def _copy_credential(source: Vault, target: Vault, row: SealedCredential) -> bool:
    if row.expires_at is not None and row.expires_at <= to_micros(source.now()):
        return False
    try:
        await credentials.opened(source.keys, row)
    except IntegrityError as error:
        await source.alarm(error)
        raise
    await target.ask(target.store.enrol, row)
    return True


async def _items(vault: Vault, row: SealedSession) -> list[SealedItem]:
    items: list[SealedItem] = []
    while page := (await vault.ask(vault.store.items, row.owner, row.id, first=len(items), limit=_AT_ONCE)).items:
        items += page
    return items


def _check(opened: Opened, items: list[SealedItem]) -> None:
    """Raise `IntegrityError` unless *items* are all of the session's, and open."""
    if len(items) != opened.head.count:
        raise IntegrityError("the store left out items of a session")
    opened.keys.open_items(items, b"", opened.head.last_tag)


def check_keys(names: Sequence[str], theirs: Sequence[str], where: str) -> None:
    """Raise `ConfigurationError` unless the target's own keys, *theirs*, are enough to open what is copied."""
    missing = [name for name in names if name not in theirs]
    if missing:
        raise ConfigurationError(
            f"the key file of the target, {where}, lacks {', '.join(missing)}: what is copied could not be opened with "
            "it. Copy the source's key file there, or add its lines in front, then try again"
        )
