"""Taking a tenant out of a store: what lets its users in, and everything of theirs."""

from __future__ import annotations

from dataclasses import dataclass

from cloister.client import AsyncCloister
from cloister.errors import ConfigurationError
from cloister.model import Erasure, Owner, to_micros

_AT_ONCE = 500
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Belongings:
    """Be the users of a tenant of whom there is something in a store, and how many live sessions they have."""

    owners: frozenset[Owner]
    sessions: int


async def belongings(cloister: AsyncCloister, tenant: str) -> Belongings:
    """Look through the whole store for what is of a *tenant*'s users; for that one needs an operator's rights in it."""
    now = to_micros(cloister.vault.now())
    owners = {owner for owner in (await cloister.store.audit_owners()).values() if owner.tenant == tenant}
    live, after = 0, b""
    while True:
        batch = await cloister.store.all(after=after, limit=_AT_ONCE)
        rows = [row for row in batch.sessions if row.owner.tenant == tenant]
        owners.update(row.owner for row in rows)
        live += sum(not row.ended and (row.expires_at is None or row.expires_at > now) for row in rows)
        after = batch.after
        if not after:
            return Belongings(frozenset(owners), live)


async def erase(cloister: AsyncCloister, tenant: str) -> list[Erasure]:
    """Erase every user of a *tenant* that nobody lets in any more; give the receipts.

    Raises `ConfigurationError` where there are always more of them.
    """
    receipts: list[Erasure] = []
    for _ in range(_ROUNDS):
        found = await belongings(cloister, tenant)
        if not found.owners:
            return receipts
        receipts += [await cloister.user_of(owner).erase() for owner in found.owners]
    raise ConfigurationError(
        "users of this tenant are still let in, and begin new sessions: take it out of [[server.issuers]], restart the "
        "server, and remove it again"
    )
