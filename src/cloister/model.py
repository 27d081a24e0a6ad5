"""The values that everything else passes around: owners, items, usage, limits, replies, sealed rows."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import msgspec

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")

_MAX_NAME = 256
# Control, format, surrogate, private use, unassigned, line and paragraph separators.
_REFUSED = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Letters, marks and symbols that show nothing, so that two names could look alike: Unicode's
# Default_Ignorable_Code_Point outside the categories above, and glyphs that are blank.
_INVISIBLE = frozenset(
    {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180F, 0x2800, 0x3164, 0xFFA0, 0x16FE4, 0x1D159}
    | {*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)}
)


def _check_name(what: str, name: object) -> None:
    if type(name) is not str:
        raise ValueError(f"{what} must be a str, not {type(name).__name__}")
    if name.isascii() and name.isalnum() and len(name) <= _MAX_NAME:
        return
    if not 1 <= len(name) <= _MAX_NAME:
        raise ValueError(f"{what} must have 1 to {_MAX_NAME} characters; this has {len(name)}")
    for character in name:
        category = unicodedata.category(character)
        if category in _REFUSED or ord(character) in _INVISIBLE or (category == "Zs" and character != " "):
            raise ValueError(f"{what} must not contain U+{ord(character):04X}: it is invisible, special or unassigned")
    if name != name.strip(" "):
        raise ValueError(f"{what} must not begin or end with a space")
    if not unicodedata.is_normalized("NFC", name):
        raise ValueError(f"{what} must be in Unicode normal form C; pass unicodedata.normalize('NFC', …)")


class Owner(msgspec.Struct, frozen=True, cache_hash=True, gc=False):
    """Name whom a session belongs to: a user, of a tenant where the store holds several.

    Both are NFC text of 1 to 256 visible characters; anything else is a `ValueError`, never repaired.
    Two owners are equal only if both strings are. ``tenant=None`` is the one tenant of a store without tenants;
    no named tenant equals it.
    """

    tenant: str | None
    user: str

    def __post_init__(self) -> None:
        if self.tenant is not None:
            _check_name("tenant", self.tenant)
        _check_name("user", self.user)

    def __str__(self) -> str:
        return f"user {self.user!r}" if self.tenant is None else f"tenant {self.tenant!r}, user {self.user!r}"


class Usage(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Count the tokens of one or more model calls; ``estimated`` where a provider did not tell.

    What the provider read from its cache or wrote there is part of the input, what the model only thought is part of
    the output. Fields are only ever added at the end, with a default.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False
    cache_write_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.estimated or other.estimated,
            self.cache_write_tokens + other.cache_write_tokens,
        )


class Used(NamedTuple):
    """Be what a turn used, and what that cost in billionths of the currency's unit, as far as a price is known."""

    usage: Usage = Usage()
    nanos: int = 0


REMEMBERED = "response"
"""The field of an answer's ``extra`` in which an application keeps what it remembers of it; no model is sent it."""

API = "api"
"""The field of an item's ``extra`` in which the server keeps what a client said beside what models are sent."""


class Item(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """Be one entry of a session, in the shapes of the OpenAI chat format.

    ``content`` is text, or a list of parts, or None beside ``tool_calls``. ``extra`` keeps whatever else a client sent,
    verbatim. ``tokens`` is what the item costs in a window, as counted by ``counter``. ``id``, ``time``, ``tokens``
    and ``counter`` are set when the item is committed. This is also what is sealed, so fields are only ever added at
    the end, with a default.
    """

    role: Role
    content: str | list[dict[str, Any]] | None = None
    id: str = ""
    time: datetime | None = None
    tokens: int = 0
    counter: str = ""
    usage: Usage | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    extra: dict[str, Any] | None = None
    error: str | None = None
    """The failure that this question met; it stands in the history, and no model sees it again."""
    values: list[str] | None = None
    """What the placeholders in the texts stand for, in their order; None for texts in which nothing was looked for."""

    @property
    def text(self) -> str:
        """Give the text of the item, without parts of other kinds."""
        if isinstance(self.content, str):
            return self.content
        return "".join(str(part.get("text", "")) for part in self.content or () if "text" in part)

    @property
    def unsent(self) -> bool:
        """Say whether it holds nothing that a model could be sent: neither words nor calls. It is kept all the same."""
        return self.content is None and not self.tool_calls and not (self.extra or {}).keys() & {"refusal", "audio"}

    def __repr__(self) -> str:  # conversation text stays out of logs and tracebacks
        return f"Item({self.role!r}, id={self.id!r}, tokens={self.tokens})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("role", self.role), ("id", self.id), ("tokens", self.tokens)]


_LONGEST = timedelta(days=36_525)


@dataclass(frozen=True, slots=True)
class Limits:
    """Say how long a session may live. ``None`` means for ever.

    Only what is committed to a session moves its idle time; nothing moves the absolute one. A session keeps the
    timeouts with which it was started.
    """

    idle_timeout: timedelta | None = timedelta(minutes=30)
    absolute_timeout: timedelta | None = timedelta(hours=12)
    turn_wait: timedelta = timedelta(seconds=10)
    """How long a turn waits for the one before it, before `SessionBusy`."""

    def __post_init__(self) -> None:
        for name in ("idle_timeout", "absolute_timeout"):
            value = getattr(self, name)
            if value is not None and not timedelta(0) < value <= _LONGEST:
                raise ValueError(f"{name} must be longer than nothing and at most 100 years, or None for no limit")
        if self.turn_wait < timedelta(0):
            raise ValueError("turn_wait must not be negative")

    @classmethod
    def strict(cls) -> Limits:
        """Give 30 minutes idle and 12 hours in all, NIST SP 800-63B's figures for AAL2: the default."""
        return cls()

    @classmethod
    def keep(cls, days: float = 30) -> Limits:
        """Give sessions that people come back to: gone *days* after they were last used, however old."""
        return cls(idle_timeout=timedelta(days=days), absolute_timeout=None)


SessionT = TypeVar("SessionT")


class Record(msgspec.Struct, frozen=True):
    """Be the answer kept under an idempotency key, whose digest is ``key``: sealed, and swept after ``expires_at``.

    ``session`` is the id that the caller used, under which it is filed, even if that session is over; ``holder`` the
    session that took the turn and whose secret opens the record: another one where the turn renewed it, or began it.
    """

    session: str
    holder: str
    key: bytes
    sealed: bytes
    expires_at: int

    @property
    def trace(self) -> Record | None:
        """Give what is left once the answer has been handed over: that there was one, where that made its session.

        Whoever asked first, gave up and comes late finds that somebody was there. In a session that there was before,
        its version says so.
        """
        return None if self.holder == self.session else msgspec.structs.replace(self, sealed=b"")


@dataclass(frozen=True, slots=True)
class Reply(Generic[SessionT]):
    """Be what a turn came to, once it is committed."""

    text: str = field(repr=False)
    session: SessionT
    usage: Usage = Usage()
    cost: Decimal | None = None
    """What the turn cost, in the currency of the budget or US dollars; None where no price in it is known."""
    model: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    finish_reason: str | None = None
    blocked: bool = False
    renewed: bool = False
    """The session had timed out; ``session`` is a new one, and ``notice`` can be shown."""
    notice: str | None = None
    latency: timedelta | None = None
    """From the request to the end of the model's answer."""
    time_to_first_token: timedelta | None = None
    items: tuple[Item, ...] = field(default=(), repr=False)
    """What was stored with the turn, in order, as its owner knows it, the answer last; of one repeated, the answer."""
    filed: Record | None = field(default=None, repr=False)
    """By what a retry of the request finds this, until `Session.delivered`."""


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_micros(moment: datetime) -> int:
    """Turn an aware moment into microseconds since 1970, as stores keep it."""
    return (moment - EPOCH) // _MICROSECOND


def from_micros(micros: int) -> datetime:
    """Turn microseconds since 1970 into an aware moment in UTC."""
    return EPOCH + timedelta(microseconds=micros)


class SealedItem(msgspec.Struct, frozen=True, gc=False):
    """Be one item as a store keeps it; ``tokens`` and ``role`` are clear copies of what is sealed."""

    position: int
    role: str
    tokens: int
    sealed: bytes


class SealedSession(msgspec.Struct, frozen=True):
    """Be one session as a store keeps it.

    ``wrapped`` is the session secret under a master key and ``head`` what it seals about the session; both are None
    in a tombstone, where ``ended`` gives the reason. ``carry`` is system text under a tenant-level key. The rest are
    clear copies of what the head says, for compare-and-swap, listing and sweeping; times are microseconds since 1970.
    """

    owner: Owner
    id: str
    wrapped: bytes | None
    head: bytes | None
    version: int
    count: int
    tokens: int
    created_at: int
    updated_at: int
    expires_at: int | None
    turn: bytes
    carry: bytes | None = None
    ended: str | None = None

    def __repr__(self) -> str:  # without the session's id
        return f"SealedSession({self.owner}, version={self.version}, ended={self.ended!r})"


class SystemNote(msgspec.Struct, frozen=True, array_like=True):
    """Be what a head says of the session's system text, which lies beside it: its digest and its cost in a window."""

    digest: bytes
    tokens: int
    counter: str


class Head(msgspec.Struct, frozen=True, array_like=True):
    """Be what a session says of itself, sealed with every commit; the clear columns of a store only copy it.

    Times are microseconds since 1970, timeouts microseconds or None. ``hidden`` are positions that history and window
    leave out. Fields are only ever added at the end, with a default.
    """

    version: int
    created_at: int
    sealed_at: int
    """The latest moment this session has seen; its time never runs backwards from here."""
    active_at: int
    """When something was last said, which is what the idle timeout counts from."""
    idle: int | None
    absolute: int | None
    count: int = 0
    tokens: int = 0
    last_tag: bytes = b""
    turn: bytes = b""
    system: SystemNote | None = None
    usage: Usage = Usage()
    title: str | None = None
    metadata: dict[str, str] = {}
    hidden: tuple[int, ...] = ()
    retry: tuple[bytes, ...] = ()
    """Under ``token://``: the tags of tokens that were used with an idempotency key, and may ask again."""
    values: tuple[str, ...] = ()
    """What the placeholders in title and metadata stand for, in their order."""
    spent: int = 0
    """What its turns have cost, in billionths of the currency's unit, as far as prices are known."""

    def __repr__(self) -> str:  # without title and metadata, which are people's words
        return f"Head(version={self.version}, count={self.count}, tokens={self.tokens})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("version", self.version), ("count", self.count), ("tokens", self.tokens)]

    @property
    def expires_at(self) -> int | None:
        """When the session ends unless something is said, or None for never."""
        idle = None if self.idle is None else self.active_at + self.idle
        absolute = None if self.absolute is None else self.created_at + self.absolute
        return idle if absolute is None else absolute if idle is None else min(idle, absolute)


@dataclass(frozen=True, slots=True)
class Erasure:
    """Be the receipt for an owner's erasure: what is gone here, and what remains elsewhere."""

    owner: Owner
    time: datetime
    sessions: int
    remains: tuple[str, ...] = (
        "the model's provider, for as long as its own retention says",
        "wherever audit entries were shipped to: they name the owner by an audit id that nothing resolves any more",
        "backups, replicas and write-ahead logs of the store, openable only until `cloister keys retire`",
    )
