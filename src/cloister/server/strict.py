"""HTTP/1.1 with one meaning: what a proxy before us might have read otherwise is refused, and the connection closed.

llhttp, which reads for uvicorn, refuses most of that. What it or uvicorn lets pass is refused here, in two places: once
the head of a request is there (`check`), and where bytes lie between messages, in trailers and in the framing of
chunks. The same class keeps the time of slow clients and the number of connections.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NoReturn, cast
from urllib.parse import unquote_to_bytes

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from cloister.server import errors
from cloister.server.refusals import Refused

_FRAMING = frozenset({b"connection", b"content-length", b"expect", b"host", b"transfer-encoding", b"upgrade"})
# Whatever else `Connection` names, a proxy would have taken away: who asked meant it to vanish on the way.
_HOPS = frozenset({b"", b"close", b"keep-alive", b"te"})
_HOST = re.compile(rb"[A-Za-z0-9._~-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")
# In a path: dot segments, however they are written; control characters, backslashes and what is no encoding at all.
_DOTS = re.compile(rb"/(\.|%2e){1,2}(?=[/?]|$)", re.IGNORECASE)
_ENCODED = re.compile(rb"%(?![0-9a-f]{2})|%[01][0-9a-f]|%7f|%5c", re.IGNORECASE)
_SLASH = re.compile(rb"%2f", re.IGNORECASE)
_WITH_SLASH = b"/v1/models/"
"""Where one segment may hold an encoded slash: models are named so."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Say how much, how many and how slow clients may be. Times are seconds."""

    head: int = 32 << 10
    """Bytes of a request before its body."""
    headers: int = 100
    connections: int = 2_000
    """Of one worker, open at once."""
    head_time: float = 10
    body_time: float = 60
    idle_time: int = 75
    """Longer than load balancers keep a connection, so that it is they who close it."""
    stall_time: float = 60
    """How long a client may take none of what is written to it."""
    linger_time: float = 2
    """How long what still comes is read and thrown away: else the refusal would be lost with it."""
    framing: int = 16 << 10
    """Bytes around the chunks of a body, besides as many as there are in it."""


def check(version: str, target: bytes, headers: Sequence[tuple[bytes, bytes]], bounds: Bounds) -> None:
    """Raise `Refused` unless the head of a request has one meaning. Names of *headers* are in small letters."""
    if version not in ("1.0", "1.1"):
        raise Refused(505, "invalid_request_error", "http_version", "this server speaks HTTP/1.1")
    # Of most requests this is all: what takes longer to look at is looked at where there is something.
    values = dict(headers)
    if len(headers) > bounds.headers or len(target) + sum(map(len, chain.from_iterable(headers))) > bounds.head:
        raise _too_many()
    if len(values) < len(headers):
        _check_twice([name for name, _ in headers])
    if b"_" in b" ".join(values):
        _check_twins(values)
    _check_target(target)
    _check_framing(version, values)


def _check_twice(names: list[bytes]) -> None:
    for name in _FRAMING:
        if names.count(name) > 1:
            raise _bad(f"the header {name.decode()} is there twice")


def _check_twins(names: Iterable[bytes]) -> None:
    for name in names:
        if b"_" in name and name.replace(b"_", b"-") in _FRAMING:
            raise _bad("a header has an underscore in its name, where another has a dash")


def _check_framing(version: str, values: dict[bytes, bytes]) -> None:
    host = values.get(b"host")
    if (version == "1.1" and host is None) or (host is not None and not _HOST.fullmatch(host)):
        raise _bad("a request needs one header host, with a name and no more")
    coding = values.get(b"transfer-encoding")
    if coding is not None and (version == "1.0" or coding.lower() != b"chunked" or b"content-length" in values):
        raise _bad("transfer-encoding may only say chunked, without a content-length")
    if b"upgrade" in values:
        raise _bad("this server speaks HTTP/1.1 and switches to nothing else")
    connection = values.get(b"connection", b"").lower()
    if connection not in _HOPS and not {token.strip() for token in connection.split(b",")} <= _HOPS:
        raise _bad("connection may say close, keep-alive or te")
    if values.get(b"expect", b"100-continue").lower() != b"100-continue":
        raise Refused(417, "invalid_request_error", "expectation_failed", "only 100-continue can be expected")


def _check_target(target: bytes) -> None:
    if not target.startswith(b"/") or b"#" in target:
        raise _bad("name a path of this server, beginning with a slash")
    path = target.partition(b"?")[0]
    if b"/." in path or b"%" in path or b"\\" in path:
        _check_written(path)


def _check_written(path: bytes) -> None:
    """Raise `Refused` for a path that somebody before us may have read as another one."""
    slashed = _SLASH.search(path) is not None and not path.startswith(_WITH_SLASH)
    if slashed or b"\\" in path or _DOTS.search(path) or _ENCODED.search(path):
        raise _bad("the path has dots, slashes or characters that do not belong there")
    try:
        unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        raise _bad("the path is not UTF-8") from None


def _bad(message: str) -> Refused:
    return Refused(400, "invalid_request_error", "bad_request", message)


def _too_many() -> Refused:
    return Refused(431, "invalid_request_error", "headers_too_large", "path and headers are too long, or too many")


def _late() -> Refused:
    return Refused(408, "invalid_request_error", "too_slow", "the request took too long to come")


def _full() -> Refused:
    headers = {"retry-after": "1"}
    return Refused(503, "server_error", "too_many_connections", "too many connections are open", headers=headers)


class _Unmeant(Exception):
    """Come out of the parser: what it found behind an unfinished answer is nobody's request."""


class Strict(HttpToolsProtocol):
    """Be uvicorn's protocol, stricter: it answers one request after another and refuses what could be two.

    What is sent before the answer to the request before is complete is not read, and the connection closed behind that
    answer: clients need no pipelining, and those who smuggle do.
    """

    bounds = Bounds()

    _reading = False  # a request has begun, and not all of it is there
    _answering = False  # its head is there, and was found good
    _deaf = False  # nothing that still comes is read
    _refused: Refused | None = None
    _head = 0  # bytes of a head that is not complete, besides those of the first read
    _wire = 0  # bytes of a body with its framing, besides those of the first read
    _body = 0
    _keep_alive = False
    _deadline: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(_Lingering(cast(asyncio.Transport, transport), self))
        if len(self.connections) > 2 * self.bounds.connections:
            self.transport.abort()
        elif len(self.connections) > self.bounds.connections:
            self._refuse(_full())
        else:
            self._wait(self.bounds.head_time)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwait()
        self._unstall()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        reading, answering = self._reading, self._answering
        super().data_received(data)
        if self._deaf:
            return
        if reading and not answering and self._reading and not self._answering:
            self._head += len(data)
            if self._head > self.bounds.head:
                self._refuse(_too_many())
        elif answering and self._answering:
            self._wire += len(data)
            if self._wire > self.bounds.framing + 2 * self._body:
                self._refuse(_bad("the chunks of the body are mostly framing"))
        # Line ends before a request are no request, and end the time of an idle connection.
        if self._deadline is None and (self._reading or not self._in_progress):
            self._wait(self.bounds.body_time if self._answering else self.bounds.head_time)

    # --- what the parser finds ----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._in_progress:
            self.cycle.keep_alive = False
            self._deaf = True
            raise _Unmeant
        super().on_message_begin()
        self._reading = True
        self._head = 0

    def on_headers_complete(self) -> None:
        try:
            check(self.parser.get_http_version(), self.url, self.headers, self.bounds)
            if self.parser.should_upgrade():
                raise _bad("this server speaks HTTP/1.1 and switches to nothing else")
        except Refused as refused:
            self._refused = refused
            raise
        super().on_headers_complete()
        # Trailers would join the headers of a request that was let in without them.
        self.headers = []
        # An answer before the whole request is there ends the connection.
        self._keep_alive, self.cycle.keep_alive = self.cycle.keep_alive, False
        self._answering = True
        self._wire = self._body = 0
        self._unwait()

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.headers:
            self._refused = _bad("trailers are not taken")
            raise self._refused
        self._reading = self._answering = False
        self._unwait()
        self.cycle.keep_alive = self._keep_alive
        super().on_message_complete()

    # --- refusals -----------------------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser would not take, in the shape of the API."""
        if not self._deaf:
            self._refuse(self._refused or _bad("this is no request of HTTP/1.1"))

    def _refuse(self, refused: Refused) -> None:
        """Answer with *refused* unless another answer has begun, read nothing more, and close."""
        self._deaf = True
        self._unwait()
        if not (self._in_progress and self.cycle.response_started):
            self.transport.write(_written(refused, getattr(self, "url", b"")))
        if self._in_progress:
            # As if the client had gone: what the application still says is not a second answer.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    @property
    def _in_progress(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    @property
    def unfinished(self) -> bool:
        """Say whether more may come that belongs to what was read."""
        return self._reading or self._deaf

    def listen_no_more(self) -> None:
        """Read on, and throw away."""
        self._deaf = True
        self._unwait()
        self.flow.resume_reading()

    # --- slow clients -------------------------------------------------------------------------------------------------

    def _wait(self, seconds: float) -> None:
        self._deadline = self.loop.call_later(seconds, self._too_late)

    def _unwait(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        if self._reading:
            self._refuse(_late())
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(self.bounds.stall_time, self.transport.abort)

    def resume_writing(self) -> None:
        self._unstall()
        super().resume_writing()

    def _unstall(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None


class _Lingering(asyncio.Transport):
    """Be a transport that is closed only once the client has had time to read why.

    A socket that is closed with bytes unread is reset, and what was written to it is lost with them.
    """

    def __init__(self, transport: asyncio.Transport, protocol: Strict) -> None:
        super().__init__()
        self._transport = transport
        self._protocol = protocol
        self._closing = False

    def close(self) -> None:
        if not self._protocol.unfinished:
            self._closing = True
            self._transport.close()
        elif not self.is_closing():
            self._closing = True
            if self._transport.can_write_eof():
                self._transport.write_eof()
            self._protocol.listen_no_more()
            self._protocol.loop.call_later(self._protocol.bounds.linger_time, self._transport.abort)

    def is_closing(self) -> bool:
        return self._closing or self._transport.is_closing()

    def abort(self) -> None:
        self._transport.abort()

    def write(self, data: Any) -> None:
        self._transport.write(data)

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> NoReturn:
        raise TypeError("nothing is spoken here but HTTP/1.1")


def bounded(bounds: Bounds) -> type[Strict]:
    """Give the protocol with other bounds: uvicorn makes the objects itself."""
    return type("Bounded", (Strict,), {"bounds": bounds})


def _written(refused: Refused, target: bytes) -> bytes:
    request_id = errors.new_request_id()
    body = errors.encode(refused, "anthropic" if target.startswith(b"/v1/messages") else "openai", request_id)
    headers = {
        **errors.SAFE,
        "content-type": "application/json",
        "x-request-id": request_id,
        "content-length": str(len(body)),
        "connection": "close",
        **refused.headers,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return b"".join([STATUS_LINE[refused.status], lines.encode(), b"\r\n", body])
