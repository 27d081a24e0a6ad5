"""The server as it is installed, with real keys and tokens, in this process: what attacks on all of it are tried on."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

import httpx2
import pytest
from tests.fakes import Clock, House, Watched
from tests.serving import UNRATED
from tests.talks import Talker

from cloister.audit import Entry
from cloister.client import AsyncCloister
from cloister.keyring import Keyring
from cloister.model import Owner
from cloister.server.app import Application
from cloister.server.settings import ServerSettings
from cloister.stores.memory import MemoryStore

FORMATS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "responses": ("/responses", {"input": "Hello."}),
    "chat": ("/chat/completions", {"messages": [{"role": "user", "content": "Hello."}]}),
    "messages": ("/messages", {"max_tokens": 50, "messages": [{"role": "user", "content": "Hello."}]}),
}
"""The least that a turn takes, in each format."""
IN_ONE = pytest.mark.parametrize("form", FORMATS)
STREAMED = pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])


@dataclass
class Firm:
    """A server as it is installed, and what each of its callers shows."""

    app: Application
    cloister: AsyncCloister
    watched: Watched
    provider: Any
    clock: Clock
    http: httpx2.AsyncClient
    callers: dict[str, dict[str, str]] = field(default_factory=dict)

    async def ask(self, caller: str, method: str, path: str, body: Any = None, **headers: str) -> httpx2.Response:
        """Ask as *caller*: a key's for a user ("ana", "ben", "globex"), or a user's own ("ben's token")."""
        sent = {**self.callers[caller], **{name.replace("_", "-"): value for name, value in headers.items()}}
        given = {} if body is None else {"json": body}
        return await self.http.request(method, f"/v1{path}", headers=sent, **given)

    async def turn(self, caller: str, form: str = "responses", *, more: Any = None, **headers: str) -> httpx2.Response:
        """Ask for a turn in one of the formats, with *more* in its body."""
        path, body = FORMATS[form]
        return await self.ask(caller, "POST", path, {**body, **(more or {})}, **headers)

    async def entries(self) -> list[Entry]:
        """Everything on record."""
        return await House(self.cloister, self.provider, self.clock).entries()


@contextlib.asynccontextmanager
async def firm(options: ServerSettings = UNRATED, *, provider: Any = None, **given: Any) -> AsyncIterator[Firm]:
    provider, clock, watched = provider or Talker(), Clock(), Watched(MemoryStore())
    cloister = AsyncCloister.open(
        watched.store, provider=provider, clock=clock, tenancy="required", keyring=Keyring.generate(), **given
    )
    app = Application(lambda: cloister, options)
    async with app.opened():
        transport = httpx2.ASGITransport(cast(Any, app))
        async with httpx2.AsyncClient(transport=transport, base_url="http://server") as http:
            made = Firm(app, cloister, watched, provider, clock, http)
            for tenant in ("acme", "globex"):
                await cloister.credentials.add_tenant(tenant)
                key = (await cloister.credentials.new_key(tenant)).secret
                for user in ("ana", "ben", "cid") if tenant == "acme" else ("globex",):
                    made.callers[user] = {"authorization": f"Bearer {key}", "cloister-user": user}
            for user in ("ana", "ben"):
                token = (await cloister.credentials.new_token(Owner("acme", user), timedelta(hours=1))).secret
                made.callers[f"{user}'s token"] = {"authorization": f"Bearer {token}"}
            yield made
