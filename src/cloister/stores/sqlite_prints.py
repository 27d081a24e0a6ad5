"""Fingerprints in the SQLite file: who claims what, by the numbers of the sessions that said it."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from cloister.model import Owner, SealedSession
from cloister.stores.base import MOST_CLAIMS, Fingerprint
from cloister.stores.sqlite_file import MINE, names, owner_of

COMMON = 0
"""The number under which lies what anybody may say."""
_COUNT_AGAIN = 600.0
_HELD = """
SELECT f.digest, f.claim, c.tenant, c.user,
    s.session IS NOT NULL AND s.ended IS NULL AND (s.expires_at IS NULL OR s.expires_at > ?)
FROM fingerprints f LEFT JOIN claims c ON c.number = f.claim
    LEFT JOIN sessions s ON s.tenant = c.tenant AND s.user = c.user AND s.session = c.session
WHERE f.scope = ? AND f.digest IN (SELECT value FROM json_each(?))
"""

_Claim = tuple[int, Owner | None]
"""The number of a claim, and whose it is; nobody's, where its session is over."""


class Prints:
    """Keep fingerprints, and count them: about, as other processes write to the file too."""

    def __init__(self) -> None:
        self._count: int | None = None
        self._counted = 0.0

    def size(self, db: sqlite3.Connection) -> int:
        """Say about how many there are."""
        return self._recount(db) if self._count is None else self._count

    def _recount(self, db: sqlite3.Connection) -> int:
        (count,) = db.execute("SELECT count(*) FROM fingerprints").fetchone()
        self._count, self._counted = count, time.monotonic()
        return int(count)

    def claim(self, db: sqlite3.Connection, session: SealedSession, fingerprints: Sequence[Fingerprint]) -> None:
        """File *fingerprints* as said in *session*."""
        if fingerprints:
            number = _number(db, (*names(session.owner), session.id))
            for scope in {one.scope for one in fingerprints}:
                some = [one for one in fingerprints if one.scope == scope]
                self._claim(db, session, number, scope, some)

    def _claim(
        self, db: sqlite3.Connection, session: SealedSession, mine: int, scope: str, fingerprints: Sequence[Fingerprint]
    ) -> None:
        before = _held(db, scope, [one.digest for one in fingerprints], session.updated_at)
        after = {digest: list(claims) for digest, claims in before.items()}
        for one in fingerprints:
            digest = _integer(one.digest)
            claims = after.get(digest, [])
            others = [claim for claim in claims if claim[1] not in (None, session.owner)]
            if (COMMON, None) in claims:
                continue
            if one.common or (len(others) >= MOST_CLAIMS and not one.unique):
                after[digest] = [(COMMON, None)]
            elif len(others) < MOST_CLAIMS:
                after[digest] = [*others, (mine, session.owner)]
        self._change(db, scope, before, after)

    def seed(self, db: sqlite3.Connection, scope: str, digests: Sequence[bytes]) -> int:
        """Make *digests* common; give how many were not."""
        before = _held(db, scope, digests, 0)
        after: dict[int, list[_Claim]] = {_integer(digest): [(COMMON, None)] for digest in digests}
        new = sum((COMMON, None) not in before.get(digest, ()) for digest in after)
        self._change(db, scope, before, after)
        return new

    def _change(
        self,
        db: sqlite3.Connection,
        scope: str,
        before: dict[int, list[_Claim]],
        after: dict[int, list[_Claim]],
    ) -> None:
        old = {(scope, digest, number) for digest, claims in before.items() for number, _ in claims}
        new = {(scope, digest, number) for digest, claims in after.items() for number, _ in claims}
        if gone := old - new:
            db.executemany("DELETE FROM fingerprints WHERE scope = ? AND digest = ? AND claim = ?", gone)
        if made := new - old:
            db.executemany("INSERT INTO fingerprints VALUES (?, ?, ?)", sorted(made))
        self._add(len(made) - len(gone))

    def forget(self, db: sqlite3.Connection, where: str, values: Sequence[str]) -> None:
        """Destroy the claims of some sessions."""
        self._forget(db, [number for (number,) in db.execute(f"SELECT number FROM claims WHERE {where}", values)])

    def _forget(self, db: sqlite3.Connection, numbers: Iterable[int]) -> int:
        rows = [(number,) for number in numbers]
        if not rows:
            return 0
        gone = db.executemany("DELETE FROM fingerprints WHERE claim = ?", rows).rowcount
        db.executemany("DELETE FROM claims WHERE number = ?", rows)
        self._add(-gone)
        return gone

    def sweep(self, db: sqlite3.Connection, now: int, most: int) -> tuple[int, int]:
        """Destroy claims whose time is up and, of more than *most*, those of the oldest sessions.

        Give how many these were, and how many of them there were too many of.
        """
        over = db.execute(
            "SELECT c.number FROM sessions s JOIN claims c ON c.tenant = s.tenant AND c.user = s.user"
            " AND c.session = s.session WHERE s.ended IS NULL AND s.expires_at IS NOT NULL AND s.expires_at <= ?",
            (now,),
        ).fetchall()
        gone = self._forget(db, [number for (number,) in over])
        if self.size(db) <= most and time.monotonic() < self._counted + _COUNT_AGAIN:
            return gone, 0
        beyond = dropped = max(self._recount(db) - most, 0)
        for number in _oldest(db):
            if beyond <= 0:
                break
            beyond -= self._forget(db, [number])
        if beyond > 0:
            beyond -= db.execute(
                "DELETE FROM fingerprints WHERE (scope, digest, claim) IN"
                " (SELECT scope, digest, claim FROM fingerprints WHERE claim = ? LIMIT ?)",
                (COMMON, beyond),
            ).rowcount
            self._count = None
        return gone, dropped - beyond

    def _add(self, count: int) -> None:
        if self._count is not None:
            self._count += count

    def claims(
        self, db: sqlite3.Connection, scope: str, digests: Sequence[bytes], now: int
    ) -> dict[bytes, tuple[Owner, ...]]:
        """Say whose *digests* are at *now*; no owner at all means common knowledge."""
        found = {}
        for digest, claims in _held(db, scope, digests, now).items():
            owners = tuple(owner for _, owner in claims if owner is not None)
            if owners or (COMMON, None) in claims:
                found[digest.to_bytes(8, signed=True)] = owners
        return found


def _number(db: sqlite3.Connection, key: tuple[str, str, str]) -> int:
    row = db.execute(f"SELECT number FROM claims WHERE {MINE}", key).fetchone()
    if row is not None:
        return int(row[0])
    return db.execute("INSERT INTO claims (tenant, user, session) VALUES (?, ?, ?)", key).lastrowid or 0


def _held(db: sqlite3.Connection, scope: str, digests: Sequence[bytes], now: int) -> dict[int, list[_Claim]]:
    rows = db.execute(_HELD, (now, scope, json.dumps([_integer(digest) for digest in digests])))
    found: dict[int, list[_Claim]] = {}
    for digest, number, tenant, user, lives in rows:
        whose = owner_of(tenant, user) if lives and number != COMMON else None
        found.setdefault(digest, []).append((number, whose))
    return found


def _oldest(db: sqlite3.Connection) -> Iterator[int]:
    last: Any = COMMON
    while row := db.execute("SELECT min(number) FROM claims WHERE number > ?", (last,)).fetchone():
        (last,) = row
        if last is None:
            return
        yield last


def _integer(digest: bytes) -> int:
    return int.from_bytes(digest, signed=True)
