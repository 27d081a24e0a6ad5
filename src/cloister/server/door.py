"""Where every request passes: its size, who asks and for whom, how often, what it says; and how it is answered.

A handler behind the door is given a `Call` with the one user that it is about, and cannot reach anybody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol
from urllib.parse import parse_qsl

import msgspec

from cloister import scope as scopes
from cloister.client import AsyncCloister
from cloister.model import Owner
from cloister.server import errors
from cloister.server.headers import USER, Headers
from cloister.server.identity import Caller
from cloister.server.refusals import Refused, invalid
from cloister.server.routes import JSON, Answer, Call, Route, Stream
from cloister.server.settings import ServerSettings
from cloister.server.shares import Share, Shares

_log = logging.getLogger("cloister.server")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_JSON = JSON.encode()
_SAFE = tuple([(name.encode(), value.encode()) for name, value in errors.SAFE.items()])
_SAFE_JSON = (*_SAFE, (b"content-type", _JSON))
_NONE: Mapping[str, str] = MappingProxyType({})
_AT = re.compile(r"^(.*) - at (?:`key` in )?`\$?\.?([^`]*)`$", re.DOTALL)
_MOST_QUERY = 4_096
_NAMING = {"safety_identifier", "user", "metadata"}
"""The fields of a body that may say whom it is about."""
_ENCODER = msgspec.json.Encoder()


class Identities(Protocol):
    """Says who is asking, and for whom."""

    async def caller(self, headers: Headers, source: str) -> Caller: ...

    async def owner(self, caller: Caller, headers: Headers, *named: str) -> Owner: ...

    async def close(self) -> None: ...


class Admission(Protocol):
    """Says whether somebody has asked too often."""

    async def tenant(self, tenant: str) -> None: ...

    async def user(self, owner: Owner) -> None: ...


class Behind:
    """Be what all doors of a server share, once it is open."""

    def __init__(
        self, cloister: AsyncCloister, options: ServerSettings, identities: Identities, admission: Admission | None
    ) -> None:
        self.cloister = cloister
        self.options = options
        self.identities = identities
        self.admission = admission
        self.shares = Shares()
        self._models: dict[str | None, tuple[str | None, tuple[str, ...]]] = {}

    def models(self, tenant: str | None) -> tuple[str | None, tuple[str, ...]]:
        """Give the model of a tenant's provider, and which ones may be named: those that are listed, or that alone."""
        if tenant not in self._models:
            self._models[tenant] = self._found(tenant)
        return self._models[tenant]

    def _found(self, tenant: str | None) -> tuple[str | None, tuple[str, ...]]:
        listed = self.options.policy(tenant).models
        if listed is None and self.options.models:
            listed = self.options.models
        provider = self.cloister.services_of(Owner(tenant, "anybody")).provider
        own = provider.model if provider else None
        if listed is not None:
            return own, listed
        # The offline one answers under any name, and forwards none.
        return own, () if provider is None or own is None or provider.name == "offline" else (own,)


NOBODY = Caller("operator", None, None, "")
"""Who calls what anybody may call."""


@dataclass(slots=True)
class _Asked:
    """Be a request on its way through the door, and what is known of it by now."""

    behind: Behind
    scope: Scope
    receive: Receive
    reply: Reply
    headers: Headers
    caller: Caller = NOBODY
    owner: Owner | None = None


class Door:
    """Be the ASGI application of one route."""

    def __init__(self, route: Route, behind: Callable[[], Behind]) -> None:
        self._route = route
        self._behind = behind
        self._name = f"{route.method} {route.path}"
        self._body: msgspec.json.Decoder[Any] | None = msgspec.json.Decoder(route.body) if route.body else None
        self._naming = bool(
            _NAMING & {field.name for field in msgspec.structs.fields(route.body)} if route.body else ()
        )
        self._lists = _lists(route.query)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = errors.new_request_id()
        route, source, began = self._route, _source(scope), time.perf_counter()
        reply = Reply(send, request_id, secure=scope.get("scheme") == "https", style=route.style)
        try:
            with scopes.source(f"{self._name} {source} {request_id}"):
                await self._pass(scope, receive, reply, source)
        except Exception as error:  # noqa: BLE001 (the last resort: it says nothing and is in the log)
            await refuse(reply, error, route)
        except asyncio.CancelledError:
            if not reply.status:
                await refuse(reply, _stopping(), route)
            raise
        finally:
            if _log.isEnabledFor(logging.INFO):
                took = (time.perf_counter() - began) * 1_000
                _log.info("%s %s %.0f ms %s", self._name, reply.status, took, request_id)

    async def _pass(self, scope: Scope, receive: Receive, reply: Reply, source: str) -> None:
        asked = _Asked(self._behind(), scope, receive, reply, Headers(scope["headers"]))
        if self._route.scopes:
            await self._admit(asked, source)
        share = asked.behind.shares.of(asked.caller.tenant)
        await share.steps(self._carry_out(asked, share))

    async def _carry_out(self, asked: _Asked, share: Share) -> None:
        route, behind, caller = self._route, asked.behind, asked.caller
        query = self._query(asked.scope["query_string"])
        body, value = b"", None
        if self._body is not None:
            body = await _read(asked.headers.raw, asked.receive, behind.options.max_body)
            value = _checked(self._body.decode, body)
        door = None
        if route.owned:
            named = _named(value) if self._naming else ()
            if asked.owner is None or named:
                await self._find_owner(asked, named)
            assert asked.owner is not None
            door = behind.cloister.user_of(asked.owner)
        own, models = behind.models(caller.tenant)
        call = Call(
            caller=caller,
            route=self._name,
            policy=behind.options.policy(caller.tenant),
            request_id=asked.reply.request_id,
            path=asked.scope.get("path_params", {}),
            query=query,
            headers=asked.headers,
            raw=body,
            models=models,
            model=own,
            most_items=behind.options.max_items,
            carried=behind.cloister.carried,
            owner=asked.owner,
            door=door,
            house=None if route.owned else behind.cloister,
        )
        work = route.handler(call, value) if self._body is not None else route.handler(call)
        if route.waits:
            await _unless_gone(asked.receive, share.steps(self._answered(work, asked.reply)))
        else:
            await asked.reply.give(await work, route.status)

    async def _answered(self, work: Awaitable[Any], reply: Reply) -> None:
        await reply.give(await work, self._route.status)

    async def _admit(self, asked: _Asked, source: str) -> None:
        """Find who asks, count the request before its body is read, and find its user as far as the headers name them.

        The user is counted first: who floods takes no more from those of their tenant than from anybody.
        """
        asked.caller = caller = await asked.behind.identities.caller(asked.headers, source)
        if caller.scope not in self._route.scopes:
            raise Refused(403, "permission_error", "wrong_scope", "this key or token is not for this call")
        if caller.tenant is None:
            return
        admission = asked.behind.admission
        if admission is not None and caller.user is not None:
            await admission.user(Owner(caller.tenant, caller.user))
        if self._route.owned and (caller.user is not None or USER in asked.headers.raw):
            try:
                await self._find_owner(asked)
            except Refused:
                if admission is not None:
                    await admission.tenant(caller.tenant)
                raise
        if admission is not None:
            await admission.tenant(caller.tenant)

    async def _find_owner(self, asked: _Asked, named: Sequence[str] = ()) -> None:
        """Find the user whom headers, token and what is *named* in the body mean, and count them if they were not."""
        caller, admission, known = asked.caller, asked.behind.admission, asked.owner
        asked.owner = await asked.behind.identities.owner(caller, asked.headers, *named)
        if admission is not None and known is None and caller.user is None:
            await admission.user(asked.owner)

    def _query(self, raw: bytes) -> Any:
        if self._route.query is None:
            if not raw:
                return None
            raise invalid("this call takes nothing behind the ?", code="unknown_parameter")
        if len(raw) > _MOST_QUERY:
            raise invalid("what stands behind the ? is too long")
        try:
            given = parse_qsl(raw.decode("ascii"), keep_blank_values=True, strict_parsing=bool(raw), errors="strict")
        except ValueError:
            raise invalid("what stands behind the ? is no query") from None
        values: dict[str, Any] = {}
        for name, value in given:
            name = name.removesuffix("[]")
            if name in self._lists:
                values.setdefault(name, []).append(value)
            elif name in values:
                raise invalid("this is given twice", _shown(name))
            else:
                values[name] = value
        return _checked(msgspec.convert, values, self._route.query, strict=False)


class Reply:
    """Be the way back of one request."""

    __slots__ = ("_secure", "_send", "_style", "request_id", "status")

    def __init__(self, send: Send, request_id: str, *, secure: bool, style: errors.Style = "openai") -> None:
        self._send = send
        self.request_id = request_id
        self._secure = secure
        self._style = style
        self.status = 0

    async def give(self, given: Any, status: int) -> None:
        """Write out what a handler gave."""
        if isinstance(given, Stream):
            await self._stream(given)
            return
        if not isinstance(given, Answer):
            await self.write(_ENCODER.encode(given), status)
            return
        if given.kind is None:
            await self.write(_ENCODER.encode(given.body), given.status, given.headers)
        else:
            await self.write(given.body, given.status, given.headers, given.kind.encode())
        if given.written is not None:
            await asyncio.sleep(0)  # until then the loop may hold back what was sent
            await given.written()

    async def write(self, body: bytes, status: int, headers: Mapping[str, str] = _NONE, kind: bytes = _JSON) -> None:
        await self._send(self._start(status, headers, kind, len(body)))
        await self._send({"type": "http.response.body", "body": body})

    async def _stream(self, stream: Stream) -> None:
        pieces = stream.pieces
        async with contextlib.aclosing(pieces):
            first = await anext(pieces, b"")
            headers = {**stream.headers(), "x-accel-buffering": "no"}
            await self._send(self._start(200, headers, b"text/event-stream", None))
            await self._send({"type": "http.response.body", "body": first, "more_body": True})
            async for piece in pieces:
                await self._send({"type": "http.response.body", "body": piece, "more_body": True})
            await self._send({"type": "http.response.body", "body": b""})
        if stream.written is not None:
            await asyncio.sleep(0)  # until then the loop may hold back what was sent
            await stream.written()

    def _start(self, status: int, headers: Mapping[str, str], kind: bytes, length: int | None) -> dict[str, Any]:
        self.status = status
        request_id = self.request_id.encode()
        first = _SAFE_JSON if kind is _JSON else (*_SAFE, (b"content-type", kind))
        sent = [*first, (b"x-request-id", request_id)]
        if self._style == "anthropic":
            sent.append((b"request-id", request_id))
        if length is not None:
            sent.append((b"content-length", b"%d" % length))
        if self._secure:
            sent.append((b"strict-transport-security", b"max-age=31536000; includeSubDomains"))
        if headers:
            sent += [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        return {"type": "http.response.start", "status": status, "headers": sent}


async def refuse(reply: Reply, error: Exception, route: Route | None) -> None:
    """Answer with what became of a request that failed; after the first byte there is nothing left to say."""
    refused = errors.refusal(error)
    errors.log(error, reply.request_id, refused.status)
    if reply.status:
        raise error
    style = route.style if route else "openai"
    await reply.write(errors.encode(refused, style, reply.request_id), refused.status, refused.headers)


def _stopping() -> Refused:
    """Say to whom the server cuts off, because it stops and has waited for long enough."""
    return Refused(503, "server_error", "stopping", "this server stops; ask again", headers={"retry-after": "1"})


async def _unless_gone(receive: Receive, work: Awaitable[None]) -> None:
    """Do *work*, and cancel it if whoever asked for it goes away."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            return
        await task
    finally:
        # In this order: a server that stops cancels us here, and the turn must be left before its store closes.
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read(headers: Mapping[bytes, bytes], receive: Receive, most: int) -> bytes:
    """Read the body, of at most so many bytes, of a request that says it is JSON."""
    kind = headers.get(b"content-type", b"")
    if kind != _JSON and kind.partition(b";")[0].strip().lower() != _JSON:
        raise Refused(
            415, "invalid_request_error", "unsupported_media_type", "send JSON, and content-type: application/json"
        )
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise Refused(415, "invalid_request_error", "unsupported_media_type", "send the body without any encoding")
    told = headers.get(b"content-length", b"")
    if told.isdigit() and int(told[:20]) > most:
        raise _too_large(most)
    parts, size, more = list[bytes](), 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "invalid_request_error", "incomplete", "the body broke off")
        part = message.get("body", b"")
        size += len(part)
        if size > most:
            raise _too_large(most)
        parts.append(part)
        more = message.get("more_body", False)
    return b"".join(parts)


def _too_large(most: int) -> Refused:
    return Refused(413, "invalid_request_error", "body_too_large", f"a body has at most {most} bytes here")


def _checked(read: Callable[..., Any], *given: Any, **options: Any) -> Any:
    try:
        return read(*given, **options)
    except msgspec.ValidationError as error:
        text = str(error)
        found = _AT.match(text)
        message, where = (found[1], found[2]) if found else (text, None)
        unknown = message.startswith("Object contains unknown field")
        raise invalid(
            _shown(message), where and _shown(where), "unknown_parameter" if unknown else "invalid_value"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise invalid("the body is no JSON", code="invalid_json") from None


def _shown(text: str) -> str:
    """Give words that came with a request so that they can be sent back: short, and on one line."""
    return "".join(character if character.isprintable() else "?" for character in text[:200])


def _lists(query: type | None) -> frozenset[str]:
    if query is None:
        return frozenset()
    return frozenset(
        field.encode_name
        for field in msgspec.structs.fields(query)
        if "list" in str(field.type) or "tuple" in str(field.type)
    )


def _named(value: Any) -> list[str]:
    """Give whom the body says that it is about, in the fields that the API has for it."""
    given = [getattr(value, name, None) for name in ("safety_identifier", "user")]
    given.append(getattr(getattr(value, "metadata", None), "user_id", None))
    return [name for name in given if isinstance(name, str)]


def _source(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""


def sse(event: Any, name: str | None = None) -> bytes:
    """Encode a server-sent event."""
    said = b"data: " + _ENCODER.encode(event) + b"\n\n"
    return said if name is None else b"event: " + name.encode() + b"\n" + said


async def nothing() -> AsyncGenerator[bytes, None]:
    """Give no pieces."""
    return
    yield b""
