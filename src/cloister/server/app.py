"""The application: the table of its routes, and the cloister that it opens and closes."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence

import msgspec
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import Route as Path
from starlette.routing import Router
from starlette.types import ASGIApp

from cloister.client import AsyncCloister
from cloister.errors import ConfigurationError
from cloister.server import chat, conversation_items, conversations, errors, messages, openapi, responses, tokens
from cloister.server.door import Behind, Door, Receive, Reply, Scope, Send, refuse
from cloister.server.door import Identities as Asks
from cloister.server.identity import Identities
from cloister.server.rates import Rates
from cloister.server.record import Record, into
from cloister.server.refusals import Refused
from cloister.server.routes import ANYBODY, JSON, Answer, Route
from cloister.server.settings import ServerSettings

_log = logging.getLogger("cloister.server")

ROUTES: tuple[Route, ...] = (
    *conversations.ROUTES,
    *conversation_items.ROUTES,
    *responses.ROUTES,
    *chat.ROUTES,
    *messages.ROUTES,
    *tokens.ROUTES,
)
"""Every call of the API. Whoever adds one has it in the OpenAPI document, and so in the tests made from that."""


class Application:
    """Be the server as an ASGI application: one per process, with a cloister of its own."""

    def __init__(
        self,
        opening: Callable[[], AsyncCloister],
        options: ServerSettings,
        *,
        routes: Iterable[Route] = ROUTES,
        identities: Callable[[AsyncCloister], Asks] | None = None,
    ) -> None:
        self._identities = identities
        self._opening = opening
        self._options = options
        self.routes = (
            *routes,
            Route("GET", "/openapi.json", self._described, "This document", scopes=ANYBODY, owned=False),
        )
        self._behind: Behind | None = None
        paths: dict[str, dict[str, Door]] = {}
        for route in self.routes:
            paths.setdefault(route.path, {})[route.method] = Door(route, self.behind)
        methods = {path: _Methods(doors) for path, doors in paths.items()}
        self._plain = {path: found for path, found in methods.items() if "{" not in path}
        self._router = Router(
            [Path(path, found, include_in_schema=False) for path, found in methods.items()],
            default=_no_route,
            redirect_slashes=False,
            lifespan=lambda _: self.opened(),
        )
        self._entrance = _shared(self._found, options.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._entrance(scope, receive, send)

    def _found(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Go where the path leads; most have no names in them, and need not be looked for one after another."""
        if scope["type"] == "http" and not scope.get("root_path") and (plain := self._plain.get(scope["path"])):
            return plain(scope, receive, send)
        return self._router(scope, receive, send)

    def behind(self) -> Behind:
        """Give what the doors share; there only between start and end."""
        if self._behind is None:
            raise ConfigurationError("the application is not open: run it under a server that speaks lifespan")
        return self._behind

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        options = self._options
        async with self._opening() as cloister:
            _check(cloister)
            per_user, per_tenant = options.requests_per_minute_user, options.requests_per_minute_tenant
            rates = Rates(cloister.vault, per_user, per_tenant) if per_user or per_tenant else None
            identities = (self._identities or _identities_of(options))(cloister)
            self._behind = Behind(cloister, options, identities, rates)
            try:
                yield
            finally:
                self._behind = None
                await identities.close()

    async def _described(self, _: object) -> Answer:
        return Answer(self._document, kind=JSON)

    @functools.cached_property
    def _document(self) -> bytes:
        # Made once: anybody may ask for it, and it takes as long as a dozen turns.
        return msgspec.json.encode(openapi.document(self.routes))


def _identities_of(options: ServerSettings) -> Callable[[AsyncCloister], Asks]:
    def made(cloister: AsyncCloister) -> Identities:
        return Identities(options, cloister.credentials, Record(into(cloister)), now=cloister.vault.now)

    return made


def _shared(router: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Let scripts of web pages from *origins* call, and of nowhere else.

    They show a user's token in a header. Nothing is ever taken from a cookie, so none is allowed.
    """
    if not origins:
        return router
    return _Shared(
        router,
        allow_origins=origins,
        allow_methods=("GET", "POST", "DELETE"),
        allow_headers=("*",),
        expose_headers=("cloister-session", "cloister-renewed", "x-request-id", "request-id", "retry-after"),
    )


class _Shared(CORSMiddleware):
    """Be what answers browsers that ask before they ask, as guarded as any other answer."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        response.headers.update({**errors.SAFE, "x-request-id": errors.new_request_id()})
        return response


def _check(cloister: AsyncCloister) -> None:
    """Raise `ConfigurationError` for what is not to be served."""
    if cloister.carried and getattr(cloister.store, "ledger", None) is None:
        raise ConfigurationError(
            "tokens without a ledger can be used again by whoever kept a copy: name one, token://?ledger=…"
        )


class _Methods:
    """Be one path: what of it each method asks for."""

    def __init__(self, doors: Mapping[str, Door]) -> None:
        self._doors = doors
        self._allowed = ", ".join(sorted(doors))

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        door = self._doors.get(scope["method"])
        return self._refuse(scope, send) if door is None else door(scope, receive, send)

    async def _refuse(self, scope: Scope, send: Send) -> None:
        refused = Refused(
            405,
            "invalid_request_error",
            "method_not_allowed",
            f"this path takes {self._allowed}",
            headers={"allow": self._allowed},
        )
        await _turned_away(scope, send, refused)


async def _no_route(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})
        return
    refused = Refused(404, "invalid_request_error", "unknown_path", "this server has no such path; see /openapi.json")
    await _turned_away(scope, send, refused)


async def _turned_away(scope: Scope, send: Send, refused: Refused) -> None:
    """Answer what reaches no door, and log it without its path, which may be anything."""
    reply = Reply(send, errors.new_request_id(), secure=scope.get("scheme") == "https")
    await refuse(reply, refused, None)
    _log.info("%s %s %s", refused.code, refused.status, reply.request_id)
