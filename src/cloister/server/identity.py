"""Who is asking, and for whom: server keys, session tokens, tokens of issuers (JWT), and the user that a key names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Protocol

from cloister.model import Owner
from cloister.server.record import Record
from cloister.server.settings import ServerSettings

Headers = Sequence[tuple[bytes, bytes]]
"""The headers of a request as they came: names in lower case."""
CallerScope = Literal["user", "service", "operator"]


@dataclass(frozen=True, slots=True)
class Caller:
    """Be whoever showed who they are.

    ``credential`` is the public name of what was shown, for idempotency and the audit log: no secret.
    """

    scope: CallerScope
    tenant: str | None
    user: str | None
    credential: str


class Known(Protocol):
    """Be what the store knows of a key or token that it gave out."""

    @property
    def scope(self) -> CallerScope: ...
    @property
    def tenant(self) -> str | None: ...
    @property
    def user(self) -> str | None: ...
    @property
    def name(self) -> str: ...


class Credentials(Protocol):
    """Check the keys and tokens that the store gave out."""

    async def check(self, secret: str) -> Known | None:
        """Give whose *secret* is; None for one that is unknown, expired or revoked."""


class Identities:
    """Say who is asking, and for whom."""

    def __init__(
        self,
        settings: ServerSettings,
        credentials: Credentials,
        record: Record,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        raise NotImplementedError

    async def caller(self, headers: Headers, source: str = "") -> Caller:
        """Give who is asking, from the address *source*. Raises `Refused`."""
        raise NotImplementedError

    async def owner(self, caller: Caller, headers: Headers, named: str | None = None) -> Owner:
        """Give the user that is asked for; *named* is who the body names. Raises `Refused`."""
        raise NotImplementedError

    async def close(self) -> None:
        """Put on record what was only counted so far, and close connections."""
