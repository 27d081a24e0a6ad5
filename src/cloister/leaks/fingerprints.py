"""Whose details are whose: keyed digests and an index of them that holds no words."""

from __future__ import annotations

import base64
import hmac
import re
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b

from cloister.leaks.numbers import room
from cloister.leaks.spoken import Feature
from cloister.model import Owner

MOST_OWNERS = 3
"""How many owners a fingerprint has; from one more on it is common knowledge."""
UNIQUE_ROOM = 7
"""An identifier with this many digits of room, or an e-mail address, never becomes common by being repeated."""

CANARY = re.compile(r"zq([a-z2-7]{16})")
SEPARATORS = re.compile(r"[\W_]+")


def unique(feature: Feature) -> bool:
    """Say whether *feature* cannot be the same for unrelated people, however many accounts repeat it."""
    if feature.kind in ("number", "identifier"):
        return room(feature.text) >= UNIQUE_ROOM
    return feature.kind == "email"


class Digests:
    """Make digests and canaries under one key, of 16 to 64 bytes."""

    def __init__(self, key: bytes) -> None:
        if not 16 <= len(key) <= 64:
            raise ValueError("a key for fingerprints has 16 to 64 bytes: derive one from the keyring")
        self._plain = blake2b(key=key, digest_size=8, person=b"leaks.print")
        self._canary = blake2b(key=key, digest_size=10, person=b"leaks.canary")

    def of(self, feature: str) -> bytes:
        """Give the eight bytes under which *feature* is filed."""
        made = self._plain.copy()
        made.update(feature.encode("utf-8", "surrogatepass"))
        return made.digest()

    def canary(self, session_id: str) -> str:
        """Give the canary of a session: it tells from itself, without any index, that and where it was planted."""
        made = self._canary.copy()
        made.update(b"session " + session_id.encode("utf-8", "surrogatepass"))
        mark = made.digest()[:5]
        return "zq" + base64.b32encode(mark + self._proof(mark)).decode().lower()

    def _proof(self, mark: bytes) -> bytes:
        made = self._canary.copy()
        made.update(b"proof " + mark)
        return made.digest()[:5]

    def canaries(self, text: str) -> list[tuple[str, int, int]]:
        """Find canaries of this key in *text*, however they are spaced and cased: what, from where, to where."""
        lowered = text.lower()
        if "z" not in lowered or "q" not in lowered:
            return []
        if len(lowered) != len(text):  # "İ" becomes two characters
            lowered = "".join(character.lower()[:1] for character in text)
        places = [n for n, character in enumerate(lowered) if character.isalnum()]
        flat = "".join(lowered[n] for n in places)
        found = []
        for at in (n for n in range(len(flat)) if flat.startswith("zq", n)):
            match = CANARY.match(flat, at)
            if match is None:
                continue
            raw = base64.b32decode(match[1].upper())
            if hmac.compare_digest(self._proof(raw[:5]), raw[5:]):
                found.append((match[0], places[at], places[match.end() - 1] + 1))
        return found


class _Shard:
    """A hash table in two arrays: 12 bytes for each place, filled to four fifths at most."""

    __slots__ = ("claims", "keys", "used")

    def __init__(self, size: int = 8) -> None:
        self.keys = array("Q", bytes(8 * size))
        self.claims = array("i", bytes(4 * size))
        self.used = 0

    def find(self, key: int) -> tuple[list[int], int]:
        """Give the places that hold *key*, and the free one behind them."""
        size = len(self.keys)
        at = (key >> 8) % size
        places = []
        while self.claims[at]:
            if self.keys[at] == key:
                places.append(at)
            at += 1
            if at == size:
                at = 0
        return places, at


@dataclass(slots=True)
class _Claim:
    owner: Owner
    session_id: str
    expires_at: datetime | None


COMMON = -1
SHARDS = 256


class Index:
    """Hold fingerprints in this process: whose they are, until when, and which are common knowledge.

    Bounded by *most* fingerprints; when it is full, those of the sessions that came first go, and are counted in
    ``dropped``.
    """

    def __init__(self, most: int = 4_000_000) -> None:
        if most < SHARDS * 8:
            raise ValueError(f"an index holds at least {SHARDS * 8:,} fingerprints")
        self._most = most // SHARDS
        self._shards = [_Shard() for _ in range(SHARDS)]
        # A claim's number is its place in the order in which sessions came; 0 is a free place of a shard.
        self._claims: dict[int, _Claim] = {}
        self._of: dict[Owner, dict[str, int]] = {}
        self._next = 1
        self.dropped = 0

    def __len__(self) -> int:
        return sum(shard.used for shard in self._shards)

    def claim(self, owner: Owner, session_id: str, expires_at: datetime | None) -> int:
        """Give the number under which what is said in this session is filed; its end moves to *expires_at*."""
        sessions = self._of.setdefault(owner, {})
        number = sessions.get(session_id)
        if number is None:
            number = sessions[session_id] = self._next
            self._next += 1
            self._claims[number] = _Claim(owner, session_id, expires_at)
        else:
            self._claims[number].expires_at = expires_at
        return number

    def add(self, digest: bytes, claim: int, now: datetime | None, unique: bool = False) -> bool:
        """File *digest* under *claim*, or as `COMMON`; a *unique* one never becomes common by its number of owners.

        Say whether it is new.
        """
        key = int.from_bytes(digest, "little")
        shard = self._shards[key & 0xFF]
        places, free = shard.find(key)
        owners: dict[Owner | None, int] = {}
        for at in places:
            held = shard.claims[at]
            if held == COMMON:
                return False
            known = self._claims.get(held)
            if known is None or self._over(known, now):
                owners[None] = at
            else:
                owners[known.owner] = at
        if claim == COMMON:
            for at in places:
                shard.claims[at] = COMMON
            if places:
                return False
        else:
            owner = self._claims[claim].owner
            same = owners.get(owner, owners.get(None))
            if same is not None:
                shard.claims[same] = claim
                return False
            if len(places) >= MOST_OWNERS:
                if not unique:
                    for at in places:
                        shard.claims[at] = COMMON
                return False
        shard.keys[free] = key
        shard.claims[free] = claim
        shard.used += 1
        if shard.used * 5 > len(shard.keys) * 4 or shard.used >= self._most:
            self._grow(key & 0xFF, now)
        return not places

    def owners(self, digest: bytes, now: datetime | None) -> tuple[Owner, ...] | None:
        """Say whose *digest* is: nobody's (None), common knowledge (empty), or these owners'."""
        key = int.from_bytes(digest, "little")
        shard = self._shards[key & 0xFF]
        keys, claims = shard.keys, shard.claims
        size = len(keys)
        at = (key >> 8) % size
        found: list[Owner] | None = None
        held = claims[at]
        while held:
            if keys[at] == key:
                if held == COMMON:
                    return ()
                known = self._claims.get(held)
                if known is not None and not self._over(known, now):
                    found = [*(found or ()), known.owner]
            at += 1
            if at == size:
                at = 0
            held = claims[at]
        return tuple(found) if found else None

    def erase(self, owner: Owner) -> None:
        """Forget everything of *owner*."""
        gone = self._of.pop(owner, {})
        for number in gone.values():
            del self._claims[number]
        if gone:
            self._rebuild_all(None)

    def end(self, owner: Owner, session_id: str) -> None:
        """Forget what was said in one session."""
        number = self._of.get(owner, {}).pop(session_id, None)
        if number is not None:
            del self._claims[number]

    def sweep(self, now: datetime) -> None:
        """Remove what has expired."""
        for owner, sessions in list(self._of.items()):
            for session_id, number in list(sessions.items()):
                if self._over(self._claims[number], now):
                    del sessions[session_id], self._claims[number]
            if not sessions:
                del self._of[owner]
        self._rebuild_all(now)

    @staticmethod
    def _over(claim: _Claim, now: datetime | None) -> bool:
        return now is not None and claim.expires_at is not None and claim.expires_at <= now

    def _rebuild_all(self, now: datetime | None) -> None:
        for number in range(SHARDS):
            self._grow(number, now)

    def _grow(self, number: int, now: datetime | None) -> None:
        """Build a shard anew, without what is over, and without the oldest if it would be too large."""
        shard = self._shards[number]
        kept: set[tuple[int, int]] = set()
        for key, held in zip(shard.keys, shard.claims, strict=True):
            if held == COMMON:
                kept.add((held, key))
            elif held:
                known = self._claims.get(held)
                if known is not None and not self._over(known, now):
                    kept.add((held, key))
        if len(kept) >= self._most:
            # Common knowledge is the first to go only where nothing else is left: without it replies are refused.
            first = sorted(kept, key=lambda entry: (entry[0] == COMMON, entry[0]))
            gone = len(kept) - self._most * 7 // 8
            self.dropped += gone
            kept = set(first[gone:])
        made = _Shard(max(8, int(len(kept) * 1.5) + 2))
        for held, key in kept:
            _, free = made.find(key)
            made.keys[free] = key
            made.claims[free] = held
            made.used += 1
        self._shards[number] = made


def found(
    index: Index, digests: Digests, features: Iterable[str], now: datetime | None
) -> Mapping[str, tuple[Owner, ...]]:
    """Look *features* up: whose each known one is; no owner at all means common knowledge."""
    result = {}
    for feature in set(features):
        owners = index.owners(digests.of(feature), now)
        if owners is not None:
            result[feature] = owners
    return result
