"""Dropping old entries of the audit log behind a signed statement, so that the rest still verifies."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime

from cloister.audit import Heads, Verification, event
from cloister.auditing import Evidence, put_on_record
from cloister.errors import ConfigurationError
from cloister.model import to_micros
from cloister.sinks import HeadFile
from cloister.stores.base import Store, pages


@dataclass(slots=True)
class Old:
    """Be what a log has that is older than a moment: of each writer the entries up to a number, ``count`` in all."""

    upto: Heads
    count: int


async def older(store: Store, known: Evidence, before: datetime) -> Old:
    """Find the entries of *store* that were written *before* a moment: of each writer those before all later ones.

    Raises `ConfigurationError` if the log is not whole: what somebody changed is not to be dropped.
    """
    moment, verification = to_micros(before), Verification(known.signed)
    old, over = Old({}, 0), set()
    async for page in pages(store):
        verification.add(page)
        for entry in page:
            if entry.writer in over:
                continue
            if entry.at >= moment:
                over.add(entry.writer)
            else:
                old.upto[entry.writer] = entry.number, entry.hash.hex()
                old.count += entry.number > known.signed.dropped.get(entry.writer, (0, ""))[0]
    faults = [*verification.finish().faults, *known.faults]
    if faults:
        raise ConfigurationError(
            f"the audit log is not whole, and nothing of it was dropped: {faults[0]}; `cloister audit verify` says more"
        )
    return old


async def prune(store: Store, sink: HeadFile, old: Old, before: datetime, now: datetime) -> int:
    """Drop what is *old*, behind a signed statement, and say how many entries went.

    In this order a log that was left in the middle of it verifies, and the next time finishes it.
    """
    noted = event("audit.pruned", now, entries=old.count, before=before.isoformat())
    await put_on_record(store, sink, noted, now)
    sink.drop(old.upto, old.count, now)
    return (await store.prune_audit(old.upto, nonce=secrets.token_bytes(16))).count
