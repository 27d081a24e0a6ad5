"""An HTTP address as a destination: what is posted there is signed, and verified with `verify_webhook`.

Importing this imports aiohttp, once something is delivered.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import os
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from cloister.audit import Entry
from cloister.errors import ConfigurationError
from cloister.sinks.base import Record, SinkError, check_severity, delivery_id, line

if TYPE_CHECKING:
    import aiohttp

_CONNECT, _TOTAL = 5.0, 15.0  # seconds
_AGAIN = {408, 425, 429}
_LEAST_SECRET = 16


class Secret(str):
    """Be a secret that does not show itself: not in a repr, a traceback with locals, or a pickle."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Secret('…')"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret cannot be pickled")


class Webhook:
    """Post to *url* as JSON, signed with *secret*: ``{"entries": […]}``, ``{"alarm": {…}}`` or ``{"heads": "…"}``.

    Whatever is not answered with a status from 200 to 299 is given again. Redirects are not followed. Raises
    `ConfigurationError` for an address in clear beyond this machine, unless *allow_http*, and for a short secret.
    """

    def __init__(
        self,
        url: str,
        secret: str,
        severity: str = "alert",
        *,
        allow_http: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        # Under the same names: what reports errors may send variables along.
        url, secret = Secret(url), Secret(secret)
        host = _host(url, allow_http=allow_http)
        if len(secret) < _LEAST_SECRET or not secret.isascii():
            raise ConfigurationError(
                f"the secret that signs webhooks has at least {_LEAST_SECRET} ASCII characters: set "
                "CLOISTER_WEBHOOK_SECRET, for which `openssl rand -base64 32` makes a value"
            )
        self.severity = check_severity(severity)
        # The path is often the key to the address: whoever knows it can post there.
        self.name = f"{urlsplit(url).scheme}://{host}/...{sha256(url.encode()).hexdigest()[:8]}"
        self._url = url
        self._secret = secret
        self._clock = clock
        # A forked child must not write into its parent's connections, nor one loop into another's.
        self._sessions: dict[tuple[int, asyncio.AbstractEventLoop], aiohttp.ClientSession] = {}

    def __repr__(self) -> str:
        return f"Webhook({self.name!r})"

    async def deliver(self, records: Sequence[Record]) -> None:
        body = _body(records)
        headers = {
            "content-type": "application/json",
            "cloister-delivery": delivery_id(records),
            "cloister-signature": signature(self._secret, body, int(self._clock())),
        }
        fault = await self._post(body, headers)
        if fault is not None:
            raise fault

    async def close(self) -> None:
        session = self._sessions.pop(self._place(), None)
        if session is not None:
            await session.close()

    async def _post(self, body: bytes, headers: dict[str, str]) -> SinkError | None:
        """Post *body*; give what went wrong. Nothing is raised here, where variables hold the address."""
        import aiohttp

        try:
            async with asyncio.timeout(_TOTAL):
                posting = self._session().post(self._url, data=body, headers=headers, allow_redirects=False)
                async with posting as response:
                    status, after = response.status, _seconds(response.headers.get("retry-after"))
                    response.close()  # whatever else it says is not read
        except TimeoutError:
            return SinkError("it did not answer in time")
        except aiohttp.ClientSSLError:
            return SinkError("its certificate or TLS is not accepted", slow=True)
        except aiohttp.ClientConnectorError:
            return SinkError("it cannot be reached")
        except (aiohttp.ClientError, aiohttp.http_exceptions.HttpProcessingError, OSError, ValueError):
            return SinkError("it broke off, or gave an answer that is not HTTP")
        if 200 <= status < 300:
            return None
        if 300 <= status < 400:
            return SinkError(f"it redirects ({status}), which is not followed: name the right address", slow=True)
        return SinkError(f"it answered {status}", after=after, slow=status < 500 and status not in _AGAIN)

    def _place(self) -> tuple[int, asyncio.AbstractEventLoop]:
        return os.getpid(), asyncio.get_running_loop()

    def _session(self) -> aiohttp.ClientSession:
        import aiohttp

        session = self._sessions.get(self._place())
        if session is None:
            session = self._sessions[self._place()] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=True),
                headers={"user-agent": "cloister", "accept-encoding": "identity"},
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT),
            )
        return session


def signature(secret: str, body: bytes, now: int) -> str:
    """Give the value of the header ``Cloister-Signature`` for *body*, posted at *now* in seconds since 1970."""
    return f"t={now},v1={_digest(secret, str(now), body)}"


def verify_webhook(secret: str, header: str, body: bytes, *, now: float, tolerance: float = 300.0) -> None:
    """Raise `ValueError` unless *header*, ``Cloister-Signature``, was made with *secret* for *body*, not long ago.

    *body* is the bytes of the request as they came; *now* is in seconds since 1970, and *tolerance* says how far from
    it the time in the header may lie.
    """
    parts = [part.strip().partition("=") for part in header.split(",")]
    times = [value for name, _, value in parts if name == "t"]
    if len(times) != 1 or not (times[0].isascii() and times[0].isdigit() and len(times[0]) <= 12):
        raise ValueError("the webhook is not signed")
    expected = _digest(secret, times[0], body).encode()
    # All are compared, each in constant time: while a secret is replaced there may be one under either.
    matches = [hmac.compare_digest(expected, value.encode()) for name, _, value in parts if name == "v1"]
    if not any(matches):
        raise ValueError("the webhook was not signed with this secret, or was changed")
    if abs(now - int(times[0])) > tolerance:
        raise ValueError("the webhook was signed too long ago, or the clocks differ")


def _digest(secret: str, time: str, body: bytes) -> str:
    return hmac.digest(secret.encode(), time.encode() + b"." + body, "sha256").hex()


def _body(records: Sequence[Record]) -> bytes:
    last = records[-1]
    if not isinstance(last, Entry):
        return line(last).encode()
    return ('{"entries":[' + ",".join(map(line, records)) + "]}").encode()


def _host(url: str, *, allow_http: bool) -> str:
    """Give host and port of *url*, or raise `ConfigurationError`, which shows nothing else of it."""
    try:
        parts: Any = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = parts = port = None
    if not host or parts.scheme not in ("http", "https") or parts.fragment or not (url.isascii() and url.isprintable()):
        raise ConfigurationError("a webhook is an address like https://host/path, in ASCII and without #")
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError("the address of a webhook must not contain a user or a password")
    if parts.scheme == "http" and not allow_http and not _loopback(host):
        raise ConfigurationError(f"alarms would travel to {host} in clear; use https, or pass allow_http=True")
    shown = f"[{host}]" if ":" in host else host
    return shown if port is None else f"{shown}:{port}"


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _seconds(header: str | None) -> float | None:
    """Read ``Retry-After`` where it is a number of seconds."""
    return float(header) if header is not None and header.isascii() and header.isdigit() and len(header) < 9 else None
