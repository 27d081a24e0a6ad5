"""Whose details are whose: keyed digests and an index of them that holds no words."""

from __future__ import annotations

import base64
import hmac
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from hashlib import blake2b

from cloister.leaks.numbers import room
from cloister.leaks.spoken import Feature
from cloister.model import Owner

MOST_OWNERS = 3
"""How many owners a fingerprint has; from one more on it is common knowledge."""
UNIQUE_ROOM = 7
"""An identifier with this many digits of room, or an e-mail address, never becomes common by being repeated."""

BEGUN, PART, LENGTH = re.compile(r"z[\W_]*q", re.IGNORECASE), re.compile(r"zq?[a-z2-7]*"), 18
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
        found = []
        for begun in BEGUN.finditer(text):
            read = _read(text, begun.start())
            if read is None:
                continue
            canary, end = read
            raw = base64.b32decode(canary[2:].upper())
            if hmac.compare_digest(self._proof(raw[:5]), raw[5:]):
                found.append((canary, begun.start(), end))
        return found


def _read(text: str, start: int) -> tuple[str, int] | None:
    """Read what may be a canary from *start* on, without what stands between its characters; and where it ends."""
    read = ""
    for at in range(start, len(text)):
        if text[at].isalnum():
            read += text[at].lower()
            if not PART.fullmatch(read):
                return None
            if len(read) == LENGTH:
                return read, at + 1
    return None


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


COMMON = -1
SHARDS = 256
_AT_ONCE = 1 << 18
_NEVER = (1 << 63) - 1


class Index:
    """Hold fingerprints in this process: whose they are, until when, and which are common knowledge.

    Bounded by *most* fingerprints; when it is full, those of the sessions that came first go, and are counted in
    ``dropped``. Moments are microseconds since 1970; without one as *now*, nothing has expired.
    """

    def __init__(self, most: int = 4_000_000) -> None:
        if most < SHARDS * 8:
            raise ValueError(f"an index holds at least {SHARDS * 8:,} fingerprints")
        self._most = most // SHARDS
        self._shards = [_Shard() for _ in range(SHARDS)]
        # A claim's number is its session's place in the order in which they came; 0 is a free place of a shard. The
        # lists begin with the session of number `_first`: those before are over.
        self._numbers: dict[tuple[Owner, str], int] = {}
        self._first = 1
        self._sessions: list[tuple[Owner, str] | None] = []
        self._ends = array("q")
        self._used = 0
        self._due, self._turn = 0, 0  # how many shards hold what is over, perhaps, and which is the next of them
        self.dropped = 0

    def __len__(self) -> int:
        return self._used

    def claim(self, owner: Owner, session_id: str, expires_at: int | None) -> int:
        """Give the number under which what is said in this session is filed; its end moves to *expires_at*."""
        session = owner, session_id
        number = self._numbers.get(session)
        if number is None:
            number = self._numbers[session] = self._first + len(self._sessions)
            self._sessions.append(session)
            self._ends.append(_NEVER)
        self._ends[number - self._first] = _NEVER if expires_at is None else expires_at
        return number

    def extend(self, owner: Owner, session_id: str, expires_at: int | None) -> None:
        """Move the end of what was said in a session, if anything was."""
        if (owner, session_id) in self._numbers:
            self.claim(owner, session_id, expires_at)

    def _owner(self, number: int, now: int | None) -> Owner | None:
        """Say whose a number is; nobody's, if its session is over."""
        at = number - self._first
        if at < 0 or (now is not None and self._ends[at] <= now):
            return None
        session = self._sessions[at]
        return None if session is None else session[0]

    def add(self, digest: bytes, claim: int, now: int | None, unique: bool = False) -> bool:
        """File *digest* under *claim*, or as `COMMON`; a *unique* one never becomes common by its number of owners.

        Say whether it is new.
        """
        key = int.from_bytes(digest, "little")
        shard = self._shards[key & 0xFF]
        places, free = shard.find(key)
        if places:
            return self._add_to(shard, places, free, claim, now, unique)
        self._put(shard, key, claim, free, now)
        return True

    def _add_to(self, shard: _Shard, places: list[int], free: int, claim: int, now: int | None, unique: bool) -> bool:
        """File what is known already: in place of its owner's last claim or one that is over, or beside the others."""
        if shard.claims[places[0]] == COMMON:
            return False
        owners = {self._owner(shard.claims[at], now): at for at in places}
        same = None if claim == COMMON else owners.get(self._owner(claim, None), owners.get(None))
        if same is not None:
            shard.claims[same] = claim
        elif claim != COMMON and len(places) < MOST_OWNERS:
            self._put(shard, shard.keys[places[0]], claim, free, now)
        elif claim == COMMON or not unique:
            for at in places:
                shard.claims[at] = COMMON
        return False

    def _put(self, shard: _Shard, key: int, claim: int, free: int, now: int | None) -> None:
        shard.keys[free] = key
        shard.claims[free] = claim
        shard.used += 1
        self._used += 1
        if shard.used * 5 > len(shard.keys) * 4 or shard.used >= self._most:
            self._grow(key & 0xFF, now)

    def owners(self, digest: bytes, now: int | None) -> tuple[Owner, ...] | None:
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
                owner = self._owner(held, now)
                if owner is not None:
                    found = [*(found or ()), owner]
            at += 1
            if at == size:
                at = 0
            held = claims[at]
        return tuple(found) if found else None

    def erase(self, owner: Owner) -> None:
        """Forget everything of *owner*."""
        gone = [session for session in self._numbers if session[0] == owner]
        for session in gone:
            self.end(*session)
        if gone:
            self._rebuild_all(None)

    def end(self, owner: Owner, session_id: str) -> None:
        """Forget what was said in one session."""
        number = self._numbers.pop((owner, session_id), None)
        if number is not None:
            self._sessions[number - self._first] = None
            self._due = SHARDS

    def sweep(self, now: int, most: int | None = None) -> None:
        """Remove what has expired and, where more than *most* is left, what is the oldest of it, counted.

        Of a large index only a part gives room back at once, and the rest the next times.
        """
        for session, until in zip(self._sessions, self._ends, strict=True):
            if session is not None and until <= now:
                self.end(*session)
        over = next((at for at, session in enumerate(self._sessions) if session is not None), len(self._sessions))
        del self._sessions[:over], self._ends[:over]
        self._first += over
        room = _AT_ONCE
        while self._due and room > 0:
            room -= len(self._shards[self._turn].keys)
            self._grow(self._turn, now)
            self._due, self._turn = self._due - 1, (self._turn + 1) % SHARDS
        if most is not None and len(self) > most:
            self._drop(most)

    def _drop(self, most: int) -> None:
        """Keep *most*: let go of the sessions that came first and, only where nothing else is left, of what is common.

        Without common knowledge replies are refused that carry nothing of anybody's.
        """
        before = len(self)
        held = Counter(claim for shard in self._shards for claim in shard.claims if claim > 0)
        beyond = before - most
        for number in sorted(held):
            if beyond <= 0:
                break
            beyond -= held[number]
            session = self._sessions[number - self._first] if number >= self._first else None
            if session is not None:
                self.end(*session)
        self._rebuild_all(None)
        for number in range(SHARDS):
            if len(self) > most:
                self._grow(number, None, len(self) - most)
        self.dropped += before - len(self)

    def _rebuild_all(self, now: int | None) -> None:
        for number in range(SHARDS):
            self._grow(number, now)
        self._due = 0

    def _grow(self, number: int, now: int | None, spare: int = 0) -> None:
        """Build a shard anew, without what is over, and without the oldest if it would be too large.

        Up to *spare* of what is common goes too.
        """
        shard = self._shards[number]
        entries = [
            (held, key)
            for key, held in zip(shard.keys, shard.claims, strict=True)
            if held and (held == COMMON or self._owner(held, now) is not None)
        ]
        common = {entry for entry in entries if entry[0] == COMMON}  # once each, of up to three owners
        kept = [*(entry for entry in entries if entry[0] != COMMON), *sorted(common)[spare:]]
        if len(kept) >= self._most:
            # Common knowledge is the first to go only where nothing else is left: without it replies are refused.
            kept.sort(key=lambda entry: (entry[0] == COMMON, entry[0]))
            gone = len(kept) - self._most * 7 // 8
            self.dropped += gone
            del kept[:gone]
        made = _Shard(max(8, int(len(kept) * 1.5) + 2))
        keys, claims, size = made.keys, made.claims, len(made.keys)
        for held, key in kept:
            at = (key >> 8) % size
            while claims[at]:
                at = at + 1 if at + 1 < size else 0
            keys[at] = key
            claims[at] = held
        made.used = len(kept)
        self._used += made.used - shard.used
        self._shards[number] = made


def found(index: Index, digests: Digests, features: Iterable[str], now: int | None) -> Mapping[str, tuple[Owner, ...]]:
    """Look *features* up: whose each known one is; no owner at all means common knowledge."""
    result = {}
    for feature in set(features):
        owners = index.owners(digests.of(feature), now)
        if owners is not None:
            result[feature] = owners
    return result
