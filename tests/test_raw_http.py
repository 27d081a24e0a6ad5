"""What no client sends: requests over plain sockets that two readers could take for two different things (row 12).

Behind the protocol is an application that answers everything and writes down what it was asked. A refusal is an answer
in the shape of the API, the end of the connection, and nothing that reached the application.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

uvicorn = pytest.importorskip("uvicorn")

from cloister.server.strict import Bounds, Strict, bounded  # noqa: E402

HOST = b"Host: cloister\r\n"
TIMEOUT = 5


@dataclass
class Behind:
    """Be the application: say what it was asked."""

    asked: list[tuple[str, str, bytes]] = field(default_factory=list)
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    heads: list[list[tuple[bytes, bytes]]] = field(default_factory=list)
    scopes: list[dict[str, Any]] = field(default_factory=list)
    seen: threading.Event = field(default_factory=threading.Event)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", scope["path"] != "/unread"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
            if scope["path"] == "/head" and not self.heads:
                self.heads.append(list(scope["headers"]))
                self.seen.set()
        self.asked.append((scope["method"], scope["path"], body))
        self.headers[:] = scope["headers"]
        self.scopes.append(dict(scope))
        answer = b"x" * (8 << 20) if scope["path"] == "/much" else b"done"
        headers = [(b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if scope["path"] == "/slow":
            await send({"type": "http.response.body", "body": answer[:2], "more_body": True})
            self.seen.set()
            for _ in range(60):
                if (await _soon(receive)) == "http.disconnect":
                    self.asked.append(("gone", "", b""))
                    return
                if len(self.asked) > 1:
                    break
            answer = answer[2:]
        await send({"type": "http.response.body", "body": answer})


async def _soon(receive: Any) -> str | None:
    with contextlib.suppress(TimeoutError):
        return str((await asyncio.wait_for(receive(), 0.005))["type"])
    return None


class Served:
    """Be a server in a thread, with a protocol of its own."""

    def __init__(self, protocol: type[asyncio.Protocol]) -> None:
        self.behind = Behind()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = self._socket.getsockname()
        config = uvicorn.Config(
            self.behind,
            http=protocol,
            ws="none",
            loop="uvloop",
            lifespan="off",
            log_config=None,
            log_level="critical",
            server_header=False,
            date_header=False,
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)

    def __enter__(self) -> Served:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=TIMEOUT)

    def ask(self, *parts: bytes) -> bytes:
        """Send *parts* and give all that comes back until the connection ends."""
        self.behind.asked.clear()
        with self.connect() as connection:
            for part in parts:
                connection.sendall(part)
            return everything(connection)


def everything(connection: socket.socket) -> bytes:
    data = b""
    while part := connection.recv(65_536):
        data += part
    return data


def answers(said: bytes) -> int:
    return len(re.findall(rb"HTTP/1\.1 [0-9]{3} ", said))


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with Served(bounded(Bounds(head_time=30, body_time=30, linger_time=0.5))) as server:
        yield server


@pytest.fixture(scope="module")
def plain() -> Iterator[Served]:
    """Give the same with uvicorn's own protocol: what it lets pass shows that a test can fail."""
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    with Served(HttpToolsProtocol) as server:
        yield server


def request(line: bytes = b"POST /x HTTP/1.1", *headers: bytes, body: bytes = b"") -> bytes:
    return b"".join([line, b"\r\n", HOST, *[header + b"\r\n" for header in headers], b"\r\n", body])


CHUNKED = b"Transfer-Encoding: chunked"
SECOND = request(b"POST /second HTTP/1.1", b"Content-Length: 0")
"""What a smuggler hopes to have taken for a request of its own."""

REFUSED: dict[str, tuple[int, bytes]] = {
    "both lengths": (400, request(b"POST /x HTTP/1.1", b"Content-Length: 5", CHUNKED, body=b"0\r\n\r\n")),
    "both lengths, turned": (400, request(b"POST /x HTTP/1.1", CHUNKED, b"Content-Length: 5", body=b"0\r\n\r\n")),
    "two lengths": (400, request(b"POST /x HTTP/1.1", b"Content-Length: 1", b"Content-Length: 2", body=b"ab")),
    "the same length twice": (400, request(b"POST /x HTTP/1.1", b"Content-Length: 1", b"Content-Length: 1", body=b"a")),
    "a list of lengths": (400, request(b"POST /x HTTP/1.1", b"Content-Length: 1, 1", body=b"a")),
    "a length with a sign": (400, request(b"POST /x HTTP/1.1", b"Content-Length: +1", body=b"a")),
    "a negative length": (400, request(b"POST /x HTTP/1.1", b"Content-Length: -1", body=b"a")),
    "a length with an underscore": (400, request(b"POST /x HTTP/1.1", b"Content-Length: 1_0", body=b"a" * 10)),
    "a hexadecimal length": (400, request(b"POST /x HTTP/1.1", b"Content-Length: 0x1", body=b"a")),
    "a length past all numbers": (400, request(b"POST /x HTTP/1.1", b"Content-Length: " + b"9" * 30)),
    "no length": (400, request(b"POST /x HTTP/1.1", b"Content-Length:", body=b"a")),
    "chunked twice": (400, request(b"POST /x HTTP/1.1", CHUNKED, CHUNKED, body=b"0\r\n\r\n")),
    "chunked, chunked": (400, request(b"POST /x HTTP/1.1", b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n")),
    "xchunked": (400, request(b"POST /x HTTP/1.1", b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n")),
    "gzip, chunked": (400, request(b"POST /x HTTP/1.1", b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n")),
    "identity": (400, request(b"POST /x HTTP/1.1", b"Transfer-Encoding: identity", body=b"a")),
    "chunked with a parameter": (400, request(b"POST /x HTTP/1.1", b"Transfer-Encoding: chunked;q=1")),
    "chunked in HTTP/1.0": (400, request(b"POST /x HTTP/1.0", CHUNKED, body=b"0\r\n\r\n")),
    "a folded header": (400, request(b"POST /x HTTP/1.1", b"Transfer-Encoding:\r\n chunked", body=b"0\r\n\r\n")),
    "another folded header": (400, request(b"GET /x HTTP/1.1", b"X-One: a\r\n b")),
    "a space before the colon": (400, request(b"POST /x HTTP/1.1", b"Transfer-Encoding : chunked", body=b"0\r\n\r\n")),
    "a space before the name": (400, b"GET /x HTTP/1.1\r\n Host: cloister\r\n\r\n"),
    "a vertical tab": (400, request(b"POST /x HTTP/1.1", b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n")),
    "bare line feeds": (400, b"GET /x HTTP/1.1\nHost: cloister\n\n"),
    "one bare line feed": (400, b"GET /x HTTP/1.1\r\nHost: cloister\nX-One: a\r\n\r\n"),
    "a bare carriage return": (400, b"GET /x HTTP/1.1\r\nHost: cloister\rX-One: a\r\n\r\n"),
    "a carriage return in a value": (400, request(b"GET /x HTTP/1.1", b"X-One: a\rb")),
    "a zero byte in a value": (400, request(b"GET /x HTTP/1.1", b"X-One: a\0b")),
    "a zero byte in a name": (400, request(b"GET /x HTTP/1.1", b"X\0One: a")),
    "a name without a colon": (400, request(b"GET /x HTTP/1.1", b"X-One")),
    "no name": (400, request(b"GET /x HTTP/1.1", b": a")),
    "a negative chunk": (400, request(b"POST /x HTTP/1.1", CHUNKED, body=b"-1\r\na\r\n0\r\n\r\n")),
    "a chunk past all numbers": (400, request(b"POST /x HTTP/1.1", CHUNKED, body=b"f" * 17 + b"\r\na")),
    "a chunk with 0x": (400, request(b"POST /x HTTP/1.1", CHUNKED, body=b"0x1\r\na\r\n0\r\n\r\n")),
    "a chunk with a space": (400, request(b"POST /x HTTP/1.1", CHUNKED, body=b"1 \r\na\r\n0\r\n\r\n")),
    "a chunk with a line feed": (400, request(b"POST /x HTTP/1.1", CHUNKED, body=b"1\na\n0\n\n")),
    "a chunk longer than it says": (400, request(b"POST /x HTTP/1.1", CHUNKED, body=b"1\r\nab\r\n0\r\n\r\n")),
    "a chunk without a size": (400, request(b"POST /x HTTP/1.1", CHUNKED, body=b"\r\na\r\n0\r\n\r\n")),
    "megabytes of chunk extension": (
        400,
        request(b"POST /x HTTP/1.1", CHUNKED, body=b"1;" + b"a" * (3 << 20) + b"\r\na\r\n0\r\n\r\n"),
    ),
    "chunks that are mostly framing": (
        400,
        request(b"POST /x HTTP/1.1", CHUNKED, body=b"1;aaaaaaaaaaaa\r\na\r\n" * 50_000 + b"0\r\n\r\n"),
    ),
    "a trailer": (400, request(b"POST /x HTTP/1.1", CHUNKED, body=b"1\r\na\r\n0\r\nCloister-User: ben\r\n\r\n")),
    "a twin of a length": (400, request(b"POST /x HTTP/1.1", b"Content_Length: 5", b"Content-Length: 0")),
    "a twin of a coding": (400, request(b"POST /x HTTP/1.1", b"Transfer_Encoding: chunked", b"Content-Length: 0")),
    "no host": (400, b"GET /x HTTP/1.1\r\n\r\n"),
    "two hosts": (400, request(b"GET /x HTTP/1.1", b"Host: other")),
    "two hosts in one": (400, b"GET /x HTTP/1.1\r\nHost: one, other\r\n\r\n"),
    "a host with a path": (400, b"GET /x HTTP/1.1\r\nHost: one/other\r\n\r\n"),
    "a host with a user": (400, b"GET /x HTTP/1.1\r\nHost: one@other\r\n\r\n"),
    "no name of the host": (400, b"GET /x HTTP/1.1\r\nHost:\r\n\r\n"),
    "an absolute target": (400, request(b"GET http://other/x HTTP/1.1")),
    "a target without a path": (400, request(b"OPTIONS * HTTP/1.1")),
    "a target with a fragment": (400, request(b"GET /x#y HTTP/1.1")),
    "a tunnel": (400, request(b"CONNECT other:443 HTTP/1.1")),
    "HTTP/0.9": (505, b"GET /x\r\n\r\n"),
    "HTTP/1.2": (400, request(b"GET /x HTTP/1.2")),
    "HTTP/2.0 as text": (505, request(b"GET /x HTTP/2.0")),
    "HTTP/2": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"),
    "TLS": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "a method in small letters": (400, request(b"get /x HTTP/1.1")),
    "an invented method": (400, request(b"FETCH /x HTTP/1.1")),
    "a tab in the target": (400, request(b"GET /x\ty HTTP/1.1")),
    "a zero byte in the target": (400, request(b"GET /x\0y HTTP/1.1")),
    "an encoded zero byte": (400, request(b"GET /x%00y HTTP/1.1")),
    "an encoded line end": (400, request(b"GET /x%0d%0aSet-Cookie:a HTTP/1.1")),
    "half an encoding": (400, request(b"GET /x%2 HTTP/1.1")),
    "an encoding of nothing": (400, request(b"GET /x%zz HTTP/1.1")),
    "no UTF-8": (400, request(b"GET /x%ff HTTP/1.1")),
    "an encoded slash": (400, request(b"GET /v1%2Fconversations HTTP/1.1")),
    "an encoded backslash": (400, request(b"GET /v1%5cconversations HTTP/1.1")),
    "a backslash": (400, request(b"GET /v1\\conversations HTTP/1.1")),
    "dots": (400, request(b"GET /v1/../metrics HTTP/1.1")),
    "a dot": (400, request(b"GET /v1/./models HTTP/1.1")),
    "encoded dots": (400, request(b"GET /v1/%2e%2E/metrics HTTP/1.1")),
    "half encoded dots": (400, request(b"GET /v1/.%2e HTTP/1.1")),
    "dots under models": (400, request(b"GET /v1/models/a%2f..%2f../metrics/.. HTTP/1.1")),
    "an upgrade to WebSocket": (
        400,
        request(b"GET /x HTTP/1.1", b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13"),
    ),
    "an upgrade to HTTP/2": (
        400,
        request(b"GET /x HTTP/1.1", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMA"),
    ),
    "an upgrade that hides a body": (
        400,
        request(b"POST /x HTTP/1.1", b"Connection: Upgrade", b"Upgrade: foo", b"Content-Length: 200"),
    ),
    "an upgrade without a connection": (400, request(b"GET /x HTTP/1.1", b"Upgrade: h2c")),
    "a header for one hop": (400, request(b"GET /x HTTP/1.1", b"Connection: close, authorization")),
    "another header for one hop": (400, request(b"GET /x HTTP/1.1", b"Connection: Cloister-User")),
    "another expectation": (417, request(b"POST /x HTTP/1.1", b"Expect: 200-ok", b"Content-Length: 1", body=b"a")),
    "a long target": (431, request(b"GET /" + b"x" * 100_000 + b" HTTP/1.1")),
    "a long header": (431, request(b"GET /x HTTP/1.1", b"X-One: " + b"a" * 100_000)),
    "a header that never ends": (431, request(b"GET /x HTTP/1.1", b"X-One: " + b"a" * (1 << 20))[:-4]),
    "many headers": (431, request(b"GET /x HTTP/1.1", *[b"X-%d: a" % number for number in range(200)])),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_be_read_twice_is_refused_and_the_connection_closed(served: Served, name: str) -> None:
    """A request with two meanings is answered once, with an error; what follows it is no request."""
    status, sent = REFUSED[name]
    said = served.ask(sent + SECOND)
    assert served.behind.asked == []
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), said[:300]
    assert answers(said) == 1
    assert b"\r\nconnection: close" in head
    error = json.loads(body)["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]


@pytest.mark.parametrize("name", [*REFUSED])
def test_what_is_refused_is_refused_byte_by_byte_too(served: Served, name: str) -> None:
    """Where the network cuts a request makes no difference to what it is taken for."""
    status, sent = REFUSED[name]
    if len(sent) > 2_000:
        cut = [sent[at : at + 8_000] for at in range(0, len(sent), 8_000)]
    else:
        cut = [sent[at : at + 1] for at in range(len(sent))]
    served.behind.asked.clear()
    with served.connect() as connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in cut:
            connection.sendall(part)
        connection.sendall(SECOND)
        said = everything(connection)
        assert said.startswith(b"HTTP/1.1 %d " % status), said[:200]
        assert answers(said) == 1
    assert served.behind.asked == []


LENIENT = [
    "gzip, chunked",
    "megabytes of chunk extension",
    "a trailer",
    "two hosts",
    "an absolute target",
    "HTTP/0.9",
    "HTTP/2.0 as text",
    "a long header",
    "encoded dots",
    "an encoded zero byte",
    "a header for one hop",
    "an upgrade to HTTP/2",
]


@pytest.mark.parametrize("name", LENIENT)
def test_uvicorn_alone_lets_some_of_it_pass(plain: Served, name: str) -> None:
    """Of what is refused above, uvicorn's own protocol hands this to the application: the tests can fail."""
    sent = REFUSED[name][1]
    plain.behind.asked.clear()
    with plain.connect() as connection:
        connection.sendall(sent)
        connection.recv(65_536)
    assert plain.behind.asked


CLOSE = b"Connection: close"
GOOD: dict[str, tuple[bytes, tuple[str, str, bytes]]] = {
    "a length": (request(b"POST /x HTTP/1.1", CLOSE, b"Content-Length: 3", body=b"abc"), ("POST", "/x", b"abc")),
    "chunks": (
        request(b"POST /x HTTP/1.1", CLOSE, CHUNKED, body=b"3\r\nabc\r\n1;why=not\r\nd\r\n0\r\n\r\n"),
        ("POST", "/x", b"abcd"),
    ),
    "chunks in capitals": (
        request(b"POST /x HTTP/1.1", CLOSE, b"TRANSFER-ENCODING: Chunked", body=b"0\r\n\r\n"),
        ("POST", "/x", b""),
    ),
    "a long body": (
        request(b"POST /x HTTP/1.1", CLOSE, b"Content-Length: 900000", body=b"a" * 900_000),
        ("POST", "/x", b"a" * 900_000),
    ),
    "long chunks": (
        request(b"POST /x HTTP/1.1", CLOSE, CHUNKED, body=b"186a0\r\n%b\r\n" % (b"a" * 100_000) * 9 + b"0\r\n\r\n"),
        ("POST", "/x", b"a" * 900_000),
    ),
    "small chunks": (
        request(b"POST /x HTTP/1.1", CLOSE, CHUNKED, body=b"10\r\n%b\r\n" % (b"a" * 16) * 5_000 + b"0\r\n\r\n"),
        ("POST", "/x", b"a" * 80_000),
    ),
    "a query": (request(b"GET /x?limit=2&after=a%2Fb HTTP/1.1", CLOSE), ("GET", "/x", b"")),
    "a model with a slash": (
        request(b"GET /v1/models/deepseek%2Fv3.2%3Afree HTTP/1.1", CLOSE),
        ("GET", "/v1/models/deepseek/v3.2:free", b""),
    ),
    "a name with a dot": (
        request(b"GET /.well-known HTTP/1.1", b"Connection: TE, close", b"TE: trailers"),
        ("GET", "/.well-known", b""),
    ),
    "HTTP/1.0": (b"GET /healthz HTTP/1.0\r\n\r\n", ("GET", "/healthz", b"")),
    "a line end before": (b"\r\n" + request(b"DELETE /x HTTP/1.1", CLOSE), ("DELETE", "/x", b"")),
    "an address": (b"GET /x HTTP/1.1\r\nHost: [::1]:8787\r\nConnection: close\r\n\r\n", ("GET", "/x", b"")),
    "nearly too long a head": (
        request(b"GET /x HTTP/1.1", CLOSE, *[b"X-%d: " % number + b"a" * 600 for number in range(50)]),
        ("GET", "/x", b""),
    ),
}


@pytest.mark.parametrize("size", [1 << 20, 8_191, 7])
@pytest.mark.parametrize("name", GOOD)
def test_good_requests_pass(served: Served, name: str, size: int) -> None:
    """What clients do send is taken, however the network cuts it."""
    sent, asked = GOOD[name]
    if len(sent) > 100_000 and size < 1_000:
        size = 1_009
    said = served.ask(*[sent[at : at + size] for at in range(0, len(sent), size)])
    assert said.startswith(b"HTTP/1.1 200 "), said
    assert served.behind.asked == [asked]


def test_nothing_says_what_serves(served: Served) -> None:
    """No header names the software, its version or its clock."""
    head = served.ask(request(b"GET /x HTTP/1.1", b"Connection: close")).partition(b"\r\n\r\n")[0].lower()
    assert b"\r\nserver:" not in head
    assert b"\r\ndate:" not in head


def test_a_twin_of_an_identity_reaches_the_application(served: Served) -> None:
    """An underscore in the name of an identity is for the door to refuse, which puts it on record."""
    served.ask(request(b"GET /x HTTP/1.1", b"Connection: close", b"Cloister_User: ben", b"Cloister-User: ana"))
    assert (b"cloister_user", b"ben") in served.behind.headers
    assert (b"cloister-user", b"ana") in served.behind.headers


def test_connections_are_kept(served: Served) -> None:
    """One request after another goes over one connection."""
    served.behind.asked.clear()
    with served.connect() as connection:
        for number in range(3):
            connection.sendall(request(b"POST /%d HTTP/1.1" % number, b"Content-Length: 1", body=b"a"))
            said = b""
            while not said.endswith(b"done"):
                said += connection.recv(1_000)
            assert b"connection: close" not in said
    assert [path for _, path, _ in served.behind.asked] == ["/0", "/1", "/2"]


def test_a_request_behind_an_unfinished_answer_is_not_read(served: Served) -> None:
    """Pipelined requests are not answered: the first one is, and the connection closed."""
    said = served.ask(request(b"GET /slow HTTP/1.1") + SECOND)
    assert said.endswith(b"done")
    assert answers(said) == 1
    assert [path for _, path, _ in served.behind.asked] == ["/slow"]


def test_garbage_behind_an_unfinished_answer_is_not_answered(served: Served) -> None:
    """An error is never written into the middle of another answer."""
    served.behind.asked.clear()
    served.behind.seen.clear()
    with served.connect() as connection:
        connection.sendall(request(b"GET /slow HTTP/1.1"))
        assert served.behind.seen.wait(TIMEOUT)
        connection.sendall(b"\0\1 what is this\r\n\r\n")
        said = everything(connection)
    assert said.endswith(b"done")
    assert answers(said) == 1


def test_a_trailer_never_joins_the_headers(served: Served) -> None:
    """While a body is still coming, what stands behind it does not change who asks."""
    served.behind.asked.clear()
    served.behind.heads.clear()
    served.behind.seen.clear()
    with served.connect() as connection:
        connection.sendall(request(b"POST /head HTTP/1.1", CHUNKED, body=b"1\r\na\r\n"))
        assert served.behind.seen.wait(TIMEOUT)
        connection.sendall(b"0\r\nCloister-User: ben\r\n\r\n")
        assert everything(connection).startswith(b"HTTP/1.1 400 ")
    assert served.behind.heads == [[(b"host", b"cloister"), (b"transfer-encoding", b"chunked")]]
    assert served.behind.asked == []


def test_a_body_is_asked_for_before_it_is_sent(served: Served) -> None:
    """Whoever expects 100-continue is told to go on once somebody reads, and not before."""
    with served.connect() as connection:
        connection.sendall(
            request(b"POST /x HTTP/1.1", b"Expect: 100-continue", b"Content-Length: 1", b"Connection: close")
        )
        assert connection.recv(1_000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"a")
        assert everything(connection).endswith(b"done")


def test_an_answer_before_the_body_arrives_whole(served: Served) -> None:
    """A client that is refused while it sends a long body still reads why, and what it sends is no request."""
    said = served.ask(
        request(b"POST /unread HTTP/1.1", b"Content-Length: 9000000", body=b"a" * 300_000 + SECOND + b"a" * 300_000)
    )
    assert said.endswith(b"done")
    assert b"connection: close" in said
    assert [path for _, path, _ in served.behind.asked] == ["/unread"]


# --- slow clients and many --------------------------------------------------------------------------------------------


@pytest.fixture
def hurried() -> Iterator[Served]:
    bounds = Bounds(head_time=0.2, body_time=0.2, stall_time=0.2, linger_time=0.2, connections=3)
    with Served(bounded(bounds)) as server:
        yield server


def test_slow_heads_are_cut_off(hurried: Served) -> None:
    """A client that sends its headers one by one is not waited for longer than any other."""
    began = time.monotonic()
    with hurried.connect() as connection:
        connection.sendall(b"GET /x HTTP/1.1\r\n")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for number in range(1_000):
                connection.sendall(b"X-%d: a\r\n" % number)
                time.sleep(0.01)
                if time.monotonic() - began > TIMEOUT:
                    break
        assert time.monotonic() - began < TIMEOUT
    assert hurried.behind.asked == []


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"GET /x HT", request(b"POST /x HTTP/1.1", b"Content-Length: 9")])
def test_silence_is_cut_off(hurried: Served, sent: bytes) -> None:
    """A connection on which nothing more comes is closed, wherever it stopped."""
    said = hurried.ask(sent)
    assert said[:13] in (b"", b"HTTP/1.1 408 ")
    assert bool(said) == sent.startswith((b"G", b"P"))
    assert hurried.behind.asked == []


def test_whoever_takes_nothing_is_cut_off(hurried: Served) -> None:
    """An answer that nobody reads does not stay open."""
    with hurried.connect() as connection:
        connection.sendall(request(b"GET /much HTTP/1.1"))
        time.sleep(0.6)
        with contextlib.suppress(ConnectionResetError):
            assert len(everything(connection)) < 8 << 20


def test_connections_beyond_the_bound_are_refused(hurried: Served) -> None:
    """There are only so many connections; the next is told so, and has its place once another ends."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(hurried.connect()) for _ in range(3)]
        for connection in held:
            connection.sendall(request(b"GET /x HTTP/1.1"))
            assert connection.recv(1_000).startswith(b"HTTP/1.1 200 ")
        said = hurried.ask(request(b"GET /x HTTP/1.1"))
        assert said.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: 1\r\n" in said
        assert hurried.behind.asked == []
    for _ in range(100):
        said = hurried.ask(request(b"GET /x HTTP/1.1", b"Connection: close"))
        if said.startswith(b"HTTP/1.1 200 "):
            return
        time.sleep(0.02)
    pytest.fail("places are not given back")


def test_the_protocol_is_bounded_by_itself() -> None:
    """Whoever uses the protocol without saying how has bounds all the same."""
    assert Strict.bounds == Bounds()
    assert Strict.bounds.head_time > 0
