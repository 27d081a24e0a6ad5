"""`cloister serve`: one listening socket, workers that each open a cloister of their own, how they begin and end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import errno
import gc
import ipaddress
import logging
import os
import signal
import socket
import ssl
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
import uvloop

from cloister import files
from cloister.errors import CloisterError, ConfigurationError
from cloister.server.app import ROUTES, Application
from cloister.server.monitoring import Monitoring, counting
from cloister.server.settings import ServerSettings
from cloister.server.strict import Bounds, bounded
from cloister.server.workers import Child, Crew, Report
from cloister.settings import Settings

_log = logging.getLogger("cloister.server")

_HANDSHAKE = 10.0
_SWITCH = 0.0003
"""After how many seconds a thread gives way to another. That which writes to SQLite asks for the interpreter a dozen
times in a turn; at Python's 5 ms for each, commits under load took more than twice as long."""
_LEFT = 5.0
"""How many seconds cancelled requests may take to leave: releasing a lease, closing what they had from a provider."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Service:
    """Be what a worker serves. *look* is asked once it is open: it raises what forbids to serve, or gives facts."""

    application: App
    look: Callable[[], Awaitable[Report]]


def serve(
    settings: Settings,
    options: ServerSettings,
    began: Callable[[str, Report], None],
    make: Callable[[Settings, ServerSettings, bool], Service] | None = None,
) -> int:
    """Serve until somebody says stop; give the exit code. *began* is told the URL and what the first worker found.

    *make* gives each worker what it serves, after its fork; it is told whether only this machine can ask. Raises
    `ConfigurationError` for what cannot be served.
    """
    check(settings, options)
    write_lines()
    _allow_files()
    tls = _Certificate(options)
    with listen(options.host, options.port) as listening, counting(options):
        url = _url(options.host, listening, tls.context is not None)
        alone = _is_loopback(listening)

        def work(child: Child) -> int:
            service = (make or of_cloister)(settings, options, alone)
            return _Worker(service, options, tls.context, listening, child).run()

        crew = Crew(options.workers, work, options.shutdown_grace.total_seconds(), lambda facts: began(url, facts))
        return crew.run(reload=tls.read, stopping=listening.close)


def of_cloister(settings: Settings, options: ServerSettings, alone: bool) -> Service:
    """Give the APIs over a cloister that is opened as *settings* say."""
    monitoring = Monitoring(options, lambda: application.behind().cloister.store)
    tenanted = dataclasses.replace(settings, tenancy="required")
    application = Application(
        lambda: tenanted.open(telemetry=monitoring.telemetry(), rates=options.rates()),
        options,
        routes=[*ROUTES, *monitoring.routes()],
    )

    async def look() -> Report:
        credentials = application.behind().cloister.credentials
        keys = await credentials.has_keys()
        if not keys and not options.issuers and not alone:
            raise ConfigurationError(
                f"{options.host} can be reached from elsewhere, and there is no key and no issuer yet: make one first, "
                "with `cloister tenants add NAME` and `cloister tenants keys new NAME`, or listen on 127.0.0.1"
            )
        named = {tenant for issuer in options.issuers for tenant in issuer.tenants} | set(options.policies)
        # Most name none, and need not wait until every tenant is listed.
        unknown = named - {tenant.id for tenant in await credentials.tenants()} if named else named
        return {"keys": keys or bool(options.issuers), "unknown": sorted(unknown)}

    return Service(application, look)


def check(settings: Settings, options: ServerSettings) -> None:
    """Raise `ConfigurationError` for what can be known to be wrong before anything is opened."""
    if os.name != "posix":
        raise ConfigurationError("cloister serve needs fork and signals, as Linux, macOS and the BSDs have them")
    store = settings.connect()
    if store.volatile and options.workers > 1:
        raise ConfigurationError(
            f"{options.workers} workers would each have a memory:// of their own, and a user's session in one of them: "
            "use one worker, or a store that they share"
        )
    if hasattr(store, "tokens") and not getattr(store, "ledger", False):
        raise ConfigurationError(
            "token:// without a ledger cannot be served: whoever keeps an old token could use it again, and nothing "
            "could end a session. Name a ledger: token://?ledger=redis://…"
        )
    if settings.provider is None:
        raise ConfigurationError(
            "name who answers: --provider holysheep, openai, anthropic, …; --provider offline answers without a model"
        )
    settings.answerer()


@contextlib.contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """Bind the socket that all workers take connections from; nobody is let in before one of them listens."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):  # the latter for what no name can be
        raise ConfigurationError(f"{host} is no address or name of this machine; name one with --host") from None
    family, kind, protocol, _, address = found[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
        except OSError as error:
            option = "--host" if error.errno == errno.EADDRNOTAVAIL else "--port"
            raise ConfigurationError(
                f"{host} port {port} cannot be listened on: {error.strerror}; name another with {option}"
            ) from None
        yield listening
    finally:
        listening.close()


def _url(host: str, listening: socket.socket, secure: bool) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http{'s' * secure}://{name}:{listening.getsockname()[1]}"


def _is_loopback(listening: socket.socket) -> bool:
    """Say whether only this machine reaches a socket."""
    return ipaddress.ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback


@contextlib.contextmanager
def without_trace(environ: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Overwrite the secrets that this process was started with, once the block has read them.

    Taken out of the environment they would still be in ``/proc/…/environ``, which shows what a process began with.
    """
    places: list[tuple[int, int]] = []
    if sys.platform == "linux" and environ is os.environ:
        getenv = ctypes.CDLL(None).getenv
        getenv.restype = ctypes.c_void_p
        secret = ("_KEY", "_SECRET", "PASSWORD")
        names = [name for name in environ if name.startswith("CLOISTER_") or name.endswith(secret)]
        places = [(getenv(os.fsencode(name)), len(os.fsencode(environ[name]))) for name in names]
    try:
        yield
    finally:
        for place, length in places:
            if place:
                ctypes.memset(place, 0, length)


class _Certificate:
    """Be the certificate, read by the parent: the workers have it in memory, and share what resumes a session."""

    def __init__(self, options: ServerSettings) -> None:
        self._cert, self._key = options.tls_cert, options.tls_key
        self.context: ssl.SSLContext | None = None
        self.read()

    def read(self) -> None:
        """Read the files, also where they have changed. Raises `ConfigurationError`."""
        if self._cert is None or self._key is None:
            return
        files.read_secret(Path(self._key), "TLS key")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self._cert, self._key, password=_no_password)
        except (OSError, ValueError) as error:
            why = error.reason if isinstance(error, ssl.SSLError) else getattr(error, "strerror", None) or error
            raise ConfigurationError(f"{self._cert} and {self._key} cannot be used for TLS: {why}") from None
        self.context = context


def _no_password() -> str:
    # Else OpenSSL asks on the terminal, where nobody sits.
    raise ValueError("the key is encrypted; give one that is not, in a file for its owner alone")


def _allow_files() -> None:
    """Take as many open files as there may be: every connection is one."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        if soft != resource.RLIM_INFINITY:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# --- a worker ---------------------------------------------------------------------------------------------------------


class _Worker:
    """Be one process that serves, from its fork to its end."""

    def __init__(
        self,
        service: Service,
        options: ServerSettings,
        tls: ssl.SSLContext | None,
        listening: socket.socket,
        child: Child,
    ) -> None:
        self._watched = Watched(service)
        self._options = options
        self._tls = tls
        self._listening = listening
        self._child = child

    def run(self) -> int:
        """Serve until told to stop; give the exit code."""
        server = _Server(self._config(), self._child, self._watched)
        sys.setswitchinterval(_SWITCH)
        try:
            with asyncio.Runner(loop_factory=_Loop) as runner:
                runner.run(server.serve(sockets=[self._listening]))
        except SystemExit:  # uvicorn's way of saying that the application did not begin
            pass
        failure = self._watched.failure
        if failure is None:
            return 0
        if server.started:
            _log.error("a worker did not end well: %s", _why(failure))
        else:
            self._child.failed(_why(failure))
        return 1

    def _config(self) -> uvicorn.Config:
        options, tls = self._options, self._tls
        bounds = Bounds(head=options.max_headers)
        config = uvicorn.Config(
            self._watched,
            http=bounded(bounds),
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="critical",  # what it says names addresses and paths; what matters we say ourselves
            access_log=False,
            workers=1,
            proxy_headers=bool(options.trusted_proxies),
            # Never None: it would stand for a variable of the environment, and for this machine.
            forwarded_allow_ips=[str(network) for network in options.trusted_proxies],
            server_header=False,
            date_header=False,
            timeout_keep_alive=bounds.idle_time,
            timeout_graceful_shutdown=max(1, round(options.shutdown_grace.total_seconds())),
            ssl_context_factory=None if tls is None else lambda *_: tls,
            # Else a request may begin in the context of the one before it on the same connection.
            reset_contextvars=True,
        )
        return config


def _why(error: BaseException) -> str:
    """Say in one line what was wrong: in the words of the error where they were written for an operator."""
    expected = isinstance(error, CloisterError | OSError)
    said = str(error) if expected else f"{type(error).__name__}, {_where(error)}"
    return " ".join(said.split())


class _Loop(uvloop.Loop):
    """Be uvloop's, which ends a TLS handshake that takes too long."""

    async def create_server(self, *args: Any, **options: Any) -> Any:
        if options.get("ssl") is not None:
            options["ssl_handshake_timeout"] = _HANDSHAKE
        return await super().create_server(*args, **options)


class _Server(uvicorn.Server):
    """Be uvicorn's server, which stops when the parent says so, or is gone."""

    def __init__(self, config: uvicorn.Config, child: Child, watched: Watched) -> None:
        super().__init__(config)
        self._child = child
        self._watched = watched

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What is there now stays: to look through it again and again for what could go held everybody up for 40 ms.
        gc.collect()
        gc.freeze()
        asyncio.get_running_loop().add_reader(self._child.alive, self._orphaned)
        self._child.ready(self._watched.facts)

    def _orphaned(self) -> None:
        asyncio.get_running_loop().remove_reader(self._child.alive)
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGTERM:
            self.should_exit = True


class Watched:
    """Be an application whose begin, end and failures are watched.

    It is closed only once every request has left it: those that were cancelled still have leases to give back.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._requests: set[asyncio.Task[Any]] = set()
        self.facts: Report = {}
        self.failure: BaseException | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        task = asyncio.current_task()
        assert task is not None
        self._requests.add(task)
        try:
            await self._service.application(scope, receive, send)
        except Exception as error:  # noqa: BLE001 (the last resort: uvicorn closes what was begun)
            _log.error("a request failed", exc_info=error)
        finally:
            self._requests.discard(task)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def told() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown" and self._requests:
                await asyncio.wait(self._requests, timeout=_LEFT)
            return message

        async def tell(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                self.facts = await self._service.look()
            if message["type"].endswith(".failed"):
                message = {"type": message["type"]}  # the rest is a traceback
            await send(message)

        try:
            await self._service.application(scope, told, tell)
        except Exception as error:
            self.failure = error
            raise


# --- the log ----------------------------------------------------------------------------------------------------------


def write_lines() -> None:
    """Write what is logged to stderr, a line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(Lines())
    root = logging.getLogger()
    root.addHandler(handler)
    logging.getLogger("cloister").setLevel(logging.INFO)


class Lines(logging.Formatter):
    """Write a record as one line that cannot be taken for two, and of an exception only what and where it was.

    What an exception says may be what a user said.
    """

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        told = "" if error is None else f": {type(error).__name__}, {_where(error)}"
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        text = f"{moment}.{int(record.msecs):03d}Z {record.levelname.lower()} {record.name} {record.getMessage()}{told}"
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _where(error: BaseException) -> str:
    """Give the frames that an exception came through, innermost first, without what was in them."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    return " < ".join(f"{Path(each.filename).name}:{each.lineno} {each.name}" for each in reversed(frames))
