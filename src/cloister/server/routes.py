"""What a route is, what its handler is given, and what it gives back."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from cloister.client import AsyncCloister
from cloister.errors import ConfigurationError
from cloister.model import Owner
from cloister.server.errors import Style
from cloister.server.identity import Caller
from cloister.server.refusals import invalid
from cloister.server.settings import Policy
from cloister.user import User


class Call(msgspec.Struct, frozen=True):
    """Be one request, after the door has looked at it: who asks for whom, and what was sent beside the body."""

    caller: Caller
    route: str
    """Method and path, with names where ids stand."""
    policy: Policy
    request_id: str
    path: Mapping[str, str]
    query: Any
    headers: Mapping[str, str]
    raw: bytes = b""
    """The body as it came, for digests."""
    models: tuple[str, ...] = ()
    """Which models may be named; any, where none is listed."""
    model: str | None = None
    """The provider's own, which is asked where none is named."""
    most_items: int = 1_000
    """How many items or messages it may bring."""
    carried: bool = False
    """The store gives out tokens, which hold the sessions themselves and change with every turn."""
    owner: Owner | None = None
    door: User | None = None
    house: AsyncCloister | None = None

    def __repr__(self) -> str:  # what it brings stays out of logs and tracebacks
        return f"Call({self.route!r}, {self.caller!r}, request_id={self.request_id!r})"

    @property
    def user(self) -> User:
        """The only door to what the caller may see: everything of this user's, and nothing else."""
        if self.door is None:
            raise ConfigurationError("this route is about no user")
        return self.door

    @property
    def cloister(self) -> AsyncCloister:
        """The whole of it, where the route is about no user."""
        if self.house is None:
            raise ConfigurationError("this route is about one user, and sees nothing else")
        return self.house

    def bound(self, given: Sequence[Mapping[str, Any]], param: str) -> None:
        """Raise `Refused` for more items or messages than a request may bring, or more parts of them.

        Each takes a while to look at, and as long as that is, nobody else is answered.
        """
        self.bound_parts(given, [value for one in given for value in one.values()], param)

    def bound_parts(self, given: Sequence[object], values: Sequence[object], param: str) -> None:
        """Raise the same where the *values* in which those that are *given* may have parts are known."""
        parts = sum([len(value) for value in values if isinstance(value, list)])
        if max(len(given), parts) > self.most_items:
            raise invalid(f"a request brings at most {self.most_items} of these here, and of their parts", param)


@dataclass(frozen=True, slots=True)
class Answer:
    """Be an answer that needs more than its body: another status, headers, or something to do once it was written."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    written: Callable[[], Awaitable[None]] | None = None
    """Done once the answer was written out in full, and only then."""
    kind: str | None = None
    """The content type of a body that is bytes, and goes out as they are."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Be an answer that is written while it comes to be.

    ``pieces`` are server-sent events, encoded. The first is waited for before the status goes out, so that what fails
    before it has a status of its own. Whoever goes away closes the generator.
    """

    pieces: AsyncGenerator[bytes, None]
    headers: Callable[[], Mapping[str, str]] = lambda: {}
    """Asked once the first piece is there."""
    written: Callable[[], Awaitable[None]] | None = None


JSON = "application/json"
Handler = Callable[..., Awaitable[Any]]
Scope = Literal["user", "service", "operator"]
ANYBODY: frozenset[Scope] = frozenset()


@dataclass(frozen=True, slots=True)
class Route:
    """Be one call of the API: the door checks what it says, and the OpenAPI document is made from it."""

    method: str
    path: str
    handler: Handler
    summary: str
    body: type | None = None
    query: type | None = None
    answer: type | None = None
    scopes: frozenset[Scope] = frozenset({"user", "service"})
    """Who may call it; nobody in particular where it is empty."""
    owned: bool = True
    """It is about one user, who has to be named."""
    waits: bool = False
    """It asks a model: whoever goes away meanwhile ends it."""
    streams: bool = False
    named: bool = False
    """Its session is named in the header ``Cloister-Session``."""
    kind: str = JSON
    """The content type of its answer, unless that streams."""
    style: Style = "openai"
    status: int = 200
