"""The server for tests: in this process, with a clock and a store to turn; or behind a port, in a thread of its own.

Whoever asks has an ``openai`` client as it is installed. Tenants are ``acme`` and ``globex``.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import quote, unquote

import httpx2
import openai
import pytest
import uvicorn
from tests.fakes import Clock, House, Parrot, Watched

from cloister import stores
from cloister.audit import Entry
from cloister.client import AsyncCloister
from cloister.keyring import Keyring
from cloister.model import Owner
from cloister.server.app import Application
from cloister.server.headers import Headers
from cloister.server.identity import Caller
from cloister.server.settings import ServerSettings
from cloister.stores.base import Store

TENANTS = ("acme", "globex")
UNRATED = ServerSettings(requests_per_minute_user=None, requests_per_minute_tenant=None)
"""The store is asked now and then how many requests there were; which calls a test sees must not hang on that."""


def credentials(tenant: str, end_user: str | None = None) -> str:
    """The key of a tenant's back end, or the token of one of its users."""
    return f"key.{tenant}" if end_user is None else f"token.{tenant}.{end_user}"


class Known:
    """Identities that are believed: who asks is tested elsewhere."""

    async def caller(self, headers: Headers, source: str) -> Caller:
        shown = headers.get("authorization", "").removeprefix("Bearer ")
        kind, _, rest = shown.partition(".")
        tenant, _, user = rest.partition(".")
        assert kind in ("key", "token")
        return Caller("user" if user else "service", tenant, user or None, shown)

    async def owner(self, caller: Caller, headers: Headers, *named: str) -> Owner:
        return Owner(caller.tenant, caller.user or unquote(headers["cloister-user"]))

    async def close(self) -> None: ...


def application(cloister: AsyncCloister, options: ServerSettings | None = None) -> Application:
    """The application over a cloister that a test made."""
    return Application(lambda: cloister, options or UNRATED, identities=lambda _: Known())


@dataclass
class Served:
    """A server in this process, and everything that a test turns."""

    app: Application
    cloister: AsyncCloister
    store: Watched
    provider: Parrot
    clock: Clock
    http: httpx2.AsyncClient
    made: list[openai.AsyncOpenAI] = field(default_factory=list)

    def client(self, user: str = "ana", tenant: str = "acme", **options: Any) -> openai.AsyncOpenAI:
        """Give the client of a back end that speaks for *user*; it asks once."""
        client = openai.AsyncOpenAI(
            base_url="http://cloister/v1",
            api_key=credentials(tenant),
            default_headers={"Cloister-User": quote(user)},
            http_client=self.http,
            **{"max_retries": 0, **options},
        )
        self.made.append(client)
        return client

    async def ask(
        self,
        method: str,
        path: str,
        json: Any = None,
        *,
        user: str = "ana",
        tenant: str = "acme",
        token: bool = False,
        **headers: str,
    ) -> httpx2.Response:
        """Ask without any SDK, as a back end for *user*, or, with a *token*, as that user."""
        sent = {"authorization": f"Bearer {credentials(tenant, user if token else None)}", **headers}
        if not token:
            sent["cloister-user"] = quote(user)
        body = {} if json is None else {"json": json}
        return await self.http.request(method, f"/v1{path}", headers=sent, **body)

    async def entries(self) -> list[Entry]:
        """Everything on record."""
        return await House(self.cloister, self.provider, self.clock).entries()


@contextlib.asynccontextmanager
async def served(
    url: str | Store = "memory://", *, options: ServerSettings | None = None, **given: Any
) -> AsyncIterator[Served]:
    """Serve a store; *given* are options of `AsyncCloister.open`."""
    provider, clock = given.pop("provider", None) or Parrot(), given.pop("clock", None) or Clock()
    store = Watched(stores.connect(url) if isinstance(url, str) else url)
    given.setdefault("keyring", Keyring.generate())
    cloister = AsyncCloister.open(store.store, provider=provider, clock=clock, tenancy="required", **given)
    app = application(cloister, options)
    async with alive(app):
        transport = httpx2.ASGITransport(cast(Any, app))
        async with httpx2.AsyncClient(transport=transport, base_url="http://cloister") as http:
            yield Served(app, cloister, store, provider, clock, http)


@contextlib.asynccontextmanager
async def alive(app: Application) -> AsyncIterator[None]:
    """Start and stop *app* as a server does."""
    told: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    said: asyncio.Queue[Any] = asyncio.Queue()
    life = asyncio.create_task(app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, told.get, said.put))
    for moment in ("startup", "shutdown"):
        told.put_nowait({"type": f"lifespan.{moment}"})
        answer = await said.get()
        assert answer["type"] == f"lifespan.{moment}.complete", answer
        if moment == "startup":
            try:
                yield
            except BaseException:
                told.put_nowait({"type": "lifespan.shutdown"})
                await life
                raise
    await life


@dataclass
class Listening:
    """A server behind a port, which asks whoever comes for a real key."""

    url: str
    keys: Mapping[str, str]
    """The key of each tenant's back end."""

    def client(self, user: str = "ana", tenant: str = "acme") -> openai.OpenAI:
        """Give the client of a back end that speaks for *user*; close it."""
        return openai.OpenAI(
            base_url=f"{self.url}/v1",
            api_key=self.keys[tenant],
            default_headers={"Cloister-User": quote(user)},
            max_retries=0,
        )


@contextlib.contextmanager
def listening(app: Application) -> Iterator[Listening]:
    """Serve *app* behind a free port, from a thread of its own."""
    server = uvicorn.Server(uvicorn.Config(cast(Any, app), port=0, log_config=None, lifespan="on", ws="none"))
    ready = threading.Event()
    start = server.startup
    keys: dict[str, str] = {}

    async def startup(sockets: Any = None) -> None:
        try:
            await start(sockets)
            made = app.behind().cloister.credentials
            for tenant in TENANTS:
                await made.add_tenant(tenant)
                keys[tenant] = (await made.new_key(tenant)).secret
        finally:
            ready.set()

    server.startup = startup  # type: ignore[method-assign]  # it has no other way to say that it listens
    thread = threading.Thread(target=server.run, name="server")
    thread.start()
    try:
        assert ready.wait(20)
        assert len(keys) == len(TENANTS), "it did not start: see what it wrote"
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Listening(f"http://127.0.0.1:{port}", keys)
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="session")
def server() -> Iterator[Listening]:
    """A server that all tests of a process share: who needs a store of their own takes a user of their own."""
    cloister = AsyncCloister.open("memory://", provider=Parrot(), tenancy="required", keyring=Keyring.generate())
    with listening(Application(lambda: cloister, UNRATED)) as running:
        yield running
