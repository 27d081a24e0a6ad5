"""The HTTP client under the providers: one call, its repetitions, its end, and errors without secrets.

Importing this imports aiohttp; `docs/adr/0003-http-client.md` says why that one.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import select
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import aiohttp
import msgspec

from cloister.errors import ConfigurationError, ProviderAuth, ProviderError, ProviderRateLimited, ProviderTimeout
from cloister.providers import refusals
from cloister.providers.http import Endpoint
from cloister.providers.sse import Events

T = TypeVar("T")

_AGAIN = {408, 409, 429}
_MAX_BODY = 64 << 20
_MAX_ERROR = 64 << 10
_MAX_CONNECTIONS = 1024
_OFFERED = 20
_DRAIN = 0.25  # seconds


class _Fault(Exception):
    """Carry a failed attempt to where it is decided whether to repeat it."""

    def __init__(self, error: ProviderError, *, again: bool = False, after: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.again = again
        self.after = after


class Client:
    """Speak to one endpoint. Made without I/O; its connections belong to the process and event loop that made them."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._at = endpoint
        self._sleep = endpoint.sleep or asyncio.sleep
        # A forked child must not write into its parent's connections, nor one loop into another's.
        self._sessions: dict[tuple[int, asyncio.AbstractEventLoop], aiohttp.ClientSession] = {}

    def __reduce__(self) -> str:
        raise TypeError("a provider cannot be pickled: it holds a key; make it anew where it is needed")

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the JSON object that answers *body*."""
        deadline = self._deadline()

        async def attempt() -> dict[str, Any]:
            response = await self._open(path, body, deadline)
            try:
                return self._object(await self._body(response, deadline, _MAX_BODY))
            finally:
                response.close()

        return await self._repeat(attempt, deadline)

    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the JSON objects that answer *body* as server-sent events, until ``[DONE]`` or the end of the body.

        What they say is for the caller to judge, but for errors. Closing the generator closes the connection.
        """
        async with aclosing(self._chunks(path, body)) as chunks:
            try:
                async for chunk in chunks:
                    yield chunk
                return
            except (_Fault, ProviderError) as caught:
                error = _bare(caught)
        raise error

    async def _chunks(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        deadline = self._deadline()

        async def attempt() -> tuple[aiohttp.ClientResponse, Events, list[bytes]]:
            response = await self._open(path, body, self._idle(deadline))
            try:
                kind = response.content_type
                if kind != "text/event-stream":
                    raise _Fault(ProviderError(f"{self._at.name} did not stream: its answer is {refusals.shown(kind)}"))
                events, first = Events(max_total=_MAX_BODY), list[bytes]()
                while not first and not response.content.at_eof():
                    first = events.feed(await self._piece(response, self._idle(deadline)))
                return response, events, first
            except BaseException:
                response.close()
                raise

        response, events, pending = await self._repeat(attempt, deadline)
        try:
            while True:
                for data in pending:
                    if data == b"[DONE]":
                        await self._drain(response)
                        return
                    chunk = self._object(data)
                    self._refuse_error(chunk, body)
                    yield chunk
                if response.content.at_eof():
                    return
                pending = events.feed(await self._piece(response, self._idle(deadline)))
        finally:
            response.close()

    async def close(self) -> None:
        """Close the connections of this process and event loop."""
        session = self._sessions.pop(self._place(), None)
        if session is not None:
            await session.close()

    # One call: attempts, and the time between them

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._at.timeouts.total.total_seconds()

    def _idle(self, deadline: float) -> float:
        return min(deadline, asyncio.get_running_loop().time() + self._at.timeouts.idle.total_seconds())

    def _soon(self) -> float:
        """Return the end of the time for what only makes an error better."""
        return asyncio.get_running_loop().time() + self._at.timeouts.connect.total_seconds()

    async def _repeat(self, attempt: Callable[[], Awaitable[T]], deadline: float) -> T:
        number, unasked = 0, True
        while True:
            number += 1
            try:
                return await attempt()
            except (_Fault, ProviderError) as caught:
                fault = caught if isinstance(caught, _Fault) else _Fault(caught)
            fault.error.unasked = unasked = unasked and fault.error.unasked
            wait = self._pause(number, fault, deadline)
            if wait is None:
                error = _bare(fault)
                del fault
                raise error
            await self._sleep(wait)

    def _pause(self, number: int, fault: _Fault, deadline: float) -> float | None:
        """Return the seconds before the next attempt, or None if there is to be none."""
        rules = self._at.retries
        if not fault.again or number >= rules.attempts:
            return None
        wait = fault.after
        if wait is None:
            most = min(rules.first * 2 ** (number - 1), rules.longest)
            wait = random.uniform(0, most.total_seconds())  # noqa: S311 (spreads load, guards nothing)
        elif wait > rules.retry_after.total_seconds():
            return None
        return wait if asyncio.get_running_loop().time() + wait < deadline else None

    # One attempt

    async def _open(self, path: str, body: Mapping[str, Any], until: float) -> aiohttp.ClientResponse:
        """Send a request and return the response to it, if that is a success."""
        data, url = _encoded(body), self._at.base_url + path
        response = await self._wait(self._session().post(url, data=data, allow_redirects=False), until)
        try:
            if response.status != 200:
                raise await self._refused(response, body)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise _Fault(ProviderError(f"{self._at.name} compressed its answer, though not asked to"))
            return response
        except BaseException:
            response.close()
            raise

    async def _piece(self, response: aiohttp.ClientResponse, until: float) -> bytes:
        return await self._wait(response.content.readany(), until)

    async def _body(self, response: aiohttp.ClientResponse, until: float, most: int) -> bytes:
        body = bytearray()
        while not response.content.at_eof():
            body += await self._piece(response, until)
            if len(body) > most:
                raise _Fault(ProviderError(f"the answer of {self._at.name} is longer than {most} bytes"))
        return bytes(body)

    async def _drain(self, response: aiohttp.ClientResponse) -> None:
        """Read the end of a body, so that its connection can be used again; what does not end at once is closed."""
        until = asyncio.get_running_loop().time() + _DRAIN
        try:
            while not response.content.at_eof():
                await self._piece(response, until)
        except _Fault:
            response.close()

    async def _wait(self, work: Awaitable[T], until: float) -> T:
        """Await the HTTP client. Its exceptions end here: their frames hold headers, and with them the key."""
        name = self._at.name
        try:
            async with asyncio.timeout_at(until):
                return await work
        except asyncio.CancelledError as error:
            raise error.with_traceback(None) from None
        except aiohttp.ConnectionTimeoutError:
            fault = _unreached(ProviderTimeout(f"{name} cannot be reached: no connection in time"), again=True)
        except TimeoutError:
            fault = _Fault(ProviderTimeout(f"{name} did not answer in time"))
        except aiohttp.ClientSSLError:
            fault = _unreached(ProviderError(f"{name} cannot be reached: its certificate or TLS is not accepted"))
        except aiohttp.ClientConnectorError:
            fault = _unreached(ProviderError(f"{name} cannot be reached; check base_url and the network"), again=True)
        except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionError):
            fault = _Fault(ProviderError(f"{name} broke off the connection before its answer was whole"), again=True)
        except (aiohttp.ClientError, aiohttp.http_exceptions.HttpProcessingError, ValueError):
            fault = _Fault(ProviderError(f"{name} gave an answer that is not HTTP"))
        raise fault

    # What a refusal says

    async def _refused(self, response: aiohttp.ClientResponse, body: Mapping[str, Any]) -> _Fault:
        """Return what to make of a response that is no success."""
        status, name = response.status, self._at.name
        if status in (401, 403):
            return _Fault(ProviderAuth(f"{name} does not accept the key ({status}); check {self._at.variable}"))
        if 300 <= status < 400:
            return _Fault(
                ProviderError(f"{name} redirects ({status}), which is not followed; set base_url to the right address")
            )
        after = refusals.retry_after(response.headers.get("retry-after"))
        error = await self._error(response)
        said = refusals.said(error, body, self._at.key)
        if status == 429:
            return _Fault(ProviderRateLimited(f"{name} is asked too often (429{said})", after), again=True, after=after)
        text = f"{name} refused the request ({status}{said}): check model and options"
        if status >= 500:
            text = f"{name} failed ({status}{said})"
        elif status in (400, 404) and refusals.names_model(error):
            model = refusals.shown(body.get("model"))
            text = f"{name} does not know the model {model} ({status}){await self._offered()}"
        elif status == 408:
            return _Fault(ProviderTimeout(f"{name} did not answer in time (408)"), again=True, after=after)
        return _Fault(ProviderError(text), again=status in _AGAIN or status >= 500, after=after)

    async def _error(self, response: aiohttp.ClientResponse) -> Mapping[str, Any]:
        """Return the error object of a response, or an empty one."""
        until = self._soon()
        try:
            message = json.loads(await self._body(response, until, _MAX_ERROR))
        except (_Fault, ValueError, RecursionError):
            return {}
        error = message.get("error", message) if isinstance(message, dict) else {}
        return error if isinstance(error, dict) else {"message": error}

    async def _offered(self) -> str:
        """Return what models there are, in words; one request, and nothing if it fails."""
        until = self._soon()
        try:
            url = self._at.base_url + self._at.models
            response = await self._wait(self._session().get(url, allow_redirects=False), until)
            try:
                listing = json.loads(await self._body(response, until, 1 << 20)) if response.status == 200 else None
            finally:
                response.close()
        except (_Fault, ValueError, RecursionError):
            return ""
        entries = listing.get("data") if isinstance(listing, dict) else None
        names = [entry.get("id") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
        known = sorted(name for name in names if isinstance(name, str) and refusals.shown(name) == name)
        if not known:
            return ""
        more = f" and {len(known) - _OFFERED} more" if len(known) > _OFFERED else ""
        return f"; it offers {', '.join(known[:_OFFERED])}{more}"

    def _refuse_error(self, chunk: Mapping[str, Any], body: Mapping[str, Any]) -> None:
        error = chunk.get("error")
        if error or chunk.get("type") == "error":
            said = refusals.said(error if isinstance(error, dict) else {"message": error}, body, self._at.key)
            raise _Fault(ProviderError(f"{self._at.name} failed in the middle of its answer{said}"))

    def _object(self, data: bytes) -> dict[str, Any]:
        try:
            # Not msgspec: models do cut surrogate pairs in two, and `wire` joins them again.
            value = json.loads(data.decode())
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise _Fault(ProviderError(f"{self._at.name} gave a malformed answer: not a JSON object"))
        return value

    # Connections

    def _place(self) -> tuple[int, asyncio.AbstractEventLoop]:
        return os.getpid(), asyncio.get_running_loop()

    def _session(self) -> aiohttp.ClientSession:
        session = self._sessions.get(self._place())
        if session is None:
            session = self._sessions[self._place()] = aiohttp.ClientSession(
                connector=_Connector(limit=_MAX_CONNECTIONS),
                headers={**self._at.headers, "content-type": "application/json", "accept-encoding": "identity"},
                # No cookies: what one user's call was given must not travel with another's.
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._at.timeouts.connect.total_seconds()),
            )
        return session


def _encoded(body: Mapping[str, Any]) -> bytes:
    try:
        said = _quickly(body.get("messages"))
        if said is None:
            return _strictly(body)
        beside = _strictly({name: value for name, value in body.items() if name != "messages"})
        return b'{"messages":' + said + (b"}" if beside == b"{}" else b"," + beside[1:])
    except (TypeError, ValueError, RecursionError):
        pass  # raised below, because these hold what could not be encoded
    raise ConfigurationError("the request cannot be sent: messages and options must be JSON values of Unicode text")


def _quickly(messages: object) -> bytes | None:
    """Encode messages at a twentieth of the time; None where they are to be looked at more closely."""
    try:
        said = msgspec.json.encode(messages)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None
    return None if b"null" in said else said  # which it may have made of a float that is no number


def _strictly(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()


def _unreached(error: ProviderError, *, again: bool = False) -> _Fault:
    """Carry the failure of an attempt of which the provider never heard."""
    error.unasked = True
    return _Fault(error, again=again)


def _bare(caught: _Fault | ProviderError) -> ProviderError:
    """Return the error to raise, without the frames that it came through: their variables hold what was said."""
    error = caught.error if isinstance(caught, _Fault) else caught
    error.__context__ = None
    return error.with_traceback(None)


class _Connector(aiohttp.TCPConnector):
    """Keep connections, but never use one again on which something was left unread.

    aiohttp closes a connection whose answer was not read to its end. It does not look at bytes that came after that, in
    the pool: they would be taken for the answer to the next request, which may be another user's.
    """

    _known: weakref.WeakSet[Any]

    def __init__(self, *, limit: int) -> None:
        super().__init__(limit=limit)
        self._known = weakref.WeakSet()

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout
    ) -> aiohttp.connector.Connection:
        """Get a connection that is new, or on which nothing has arrived since its last answer."""
        while True:
            connection = await super().connect(req, traces, timeout)
            if connection.protocol not in self._known:
                self._known.add(connection.protocol)
                return connection
            if _quiet(connection):
                return connection
            connection.close()


def _quiet(connection: aiohttp.connector.Connection) -> bool:
    protocol, transport = connection.protocol, connection.transport
    if protocol is None or transport is None or protocol.should_close:
        return False
    descriptor = transport.get_extra_info("socket").fileno()
    if not hasattr(select, "poll"):  # Windows
        return not select.select([descriptor], [], [], 0)[0]
    poll = select.poll()
    poll.register(descriptor, select.POLLIN | select.POLLPRI)
    return not poll.poll(0)
