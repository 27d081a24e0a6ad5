"""Two users and every call of the API: each route, with each kind of id, asked for by each kind of caller.

What is asked is made from the OpenAPI document, so that a route which is added is asked too, or fails here because
nobody said what its body is. Ben asks for what is Ana's, what is of another tenant, and for what is not there: he is
told the same, byte for byte, after the same calls to the store (rows 3, 4, 57, 58, 80).
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import httpx2
import pytest
from joserfc import jwt
from joserfc.jwk import OctKey
from tests.fakes import Watched

from cloister.client import AsyncCloister
from cloister.model import Owner
from cloister.server import openapi
from cloister.server.app import ROUTES, Application
from cloister.server.issuers import Issuer, SharedKey
from cloister.server.settings import ServerSettings
from cloister.stores.memory import MemoryStore

KEY = "0123456789abcdefghijklmnopqrstuvwxyzABCDEF"
ISSUER = Issuer("https://login.test", ("cloister",), ("HS256",), ("acme",), key=SharedKey.from_text(KEY))
OPTIONS = ServerSettings(issuers=(ISSUER,), requests_per_minute_user=None, requests_per_minute_tenant=None)

Whose = Literal["own", "foreign", "tenant", "missing", "malformed"]
OWNED = ("conversation", "item", "response")
"""What belongs to one user, by its name in paths."""
CALLERS = ("service", "token", "jwt")
_SCOPE = {"service": "service", "token": "user", "jwt": "user"}
NOBODY = ("none", "expired", "audience", "garbage", "revoked")

_DOCUMENT = openapi.document(ROUTES)
_PARAMETER = re.compile(r"\{(\w+)\}")

# The least that each call takes. {…} is filled in as in paths. A call that has a body and is missing here fails.
BODIES: Mapping[str, Any] = {
    "POST /v1/conversations": {},
    "POST /v1/conversations/{conversation}": {"metadata": {"a": "b"}},
    "POST /v1/conversations/{conversation}/items": {"items": [{"role": "user", "content": "Hello."}]},
    "POST /v1/responses": {"input": "Hello."},
    "POST /v1/responses/input_tokens": {"input": "Hello."},
    "POST /v1/responses/compact": {"model": "offline"},
    "POST /v1/chat/completions": {"model": "offline", "messages": [{"role": "user", "content": "Hello."}]},
    "POST /v1/messages": {"model": "offline", "max_tokens": 50, "messages": [{"role": "user", "content": "Hello."}]},
    "POST /v1/messages/count_tokens": {"model": "offline", "messages": [{"role": "user", "content": "Hello."}]},
    "POST /v1/cloister/tokens": {"user": "ben"},
}
# Ids that lie in bodies, headers and behind the ? instead of paths: each is asked as a call of its own.
INSIDE: Mapping[str, tuple[Any, Mapping[str, str]]] = {
    "POST /v1/responses": ({"input": "Hello.", "conversation": "{conversation}"}, {}),
    "POST /v1/responses ": ({"input": "Hello.", "conversation": {"id": "{conversation}"}, "stream": True}, {}),
    "POST /v1/responses  ": ({"input": "Hello.", "previous_response_id": "{response}"}, {}),
    "POST /v1/responses/input_tokens": ({"input": "Hello.", "conversation": "{conversation}"}, {}),
    "POST /v1/responses/input_tokens ": ({"input": "Hello.", "previous_response_id": "{response}"}, {}),
    "POST /v1/chat/completions": (
        {"model": "offline", "messages": [{"role": "user", "content": "Hello."}]},
        {"cloister-session": "{conversation}"},
    ),
    "POST /v1/chat/completions ": (
        {"model": "offline", "messages": [{"role": "user", "content": "Hello."}], "stream": True},
        {"cloister-session": "{conversation}"},
    ),
    "POST /v1/messages": (
        {"model": "offline", "max_tokens": 50, "messages": [{"role": "user", "content": "Hello."}]},
        {"cloister-session": "{conversation}"},
    ),
    "GET /v1/responses/{response}?stream=true": (None, {}),
    "GET /v1/responses/{response}?stream=true&starting_after=2": (None, {}),
}


@dataclass(frozen=True)
class Operation:
    """One call of the document, and where its ids lie."""

    method: str
    path: str
    scopes: tuple[str, ...]
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    query: str = ""

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}{self.query}{self._inside}"

    @property
    def _inside(self) -> str:
        named = [*_PARAMETER.findall(f"{self.body} {dict(self.headers)}")]
        return f" with {' and '.join(named)}" if named else ""

    @property
    def ids(self) -> list[str]:
        said = f"{self.path} {self.body} {dict(self.headers)} {self.query}"
        return sorted(set(_PARAMETER.findall(said)) & set(OWNED))

    def filled(self, ids: Mapping[str, str]) -> dict[str, Any]:
        """Give the arguments of a request with *ids* in their places."""
        fill = _Filled(ids)
        path = fill(self.path + self.query)
        asked: dict[str, Any] = {"method": self.method, "url": path}
        asked["headers"] = {name: fill(value) for name, value in self.headers.items()}
        return asked if self.body is None else {**asked, "json": fill(self.body)}


class _Filled:
    """Put ids into the places that are named for them."""

    def __init__(self, ids: Mapping[str, str]) -> None:
        self._ids = {**ids, "model": "offline"}

    def __call__(self, value: Any) -> Any:
        if isinstance(value, str):
            return _PARAMETER.sub(lambda match: self._ids.get(match[1], match[0]), value)
        if isinstance(value, list):
            return [self(each) for each in value]
        return {name: self(each) for name, each in value.items()} if isinstance(value, dict) else value


def _operations() -> Iterator[Operation]:
    for path, methods in _DOCUMENT["paths"].items():
        for method, said in methods.items():
            name = f"{method.upper()} {path}"
            body = BODIES[name] if "requestBody" in said else None
            yield Operation(method.upper(), path, tuple(said["x-cloister-scopes"]), body)
    for name, (body, headers) in INSIDE.items():
        route, _, query = name.partition("?")
        method, _, path = route.partition(" ")
        yield Operation(method, path.strip(), ("service", "user"), body, headers, query and f"?{query}")


OPERATIONS = list(_operations())
NAMED = [operation for operation in OPERATIONS if operation.ids]


@dataclass
class World:
    """A server, what its users have, and what each caller shows."""

    client: httpx2.AsyncClient
    watched: Watched
    app: Application
    callers: dict[str, dict[str, str]]
    ids: dict[Whose, dict[str, str]]

    async def ask(self, operation: Operation, whose: Whose, caller: str) -> httpx2.Response:
        asked = operation.filled(self.ids[whose])
        asked["headers"] = {**asked["headers"], **self.callers[caller]}
        return await self.client.request(**asked)

    async def calls(self, operation: Operation, whose: Whose, caller: str) -> list[str]:
        """Ask, and give what the store was asked for that, in the background too."""
        vault = self.app.behind().cloister.vault
        await vault.settle()
        self.watched.calls.clear()
        await self.ask(operation, whose, caller)
        await vault.settle()
        # A key that was found good is believed for two seconds, whatever it is shown for.
        return [name for name in self.watched.names if name != "credential"]


def token(user: str, **changed: Any) -> str:
    """Give what an issuer signs for *user*."""
    now = int(datetime.now(UTC).timestamp())
    claims = {"iss": "https://login.test", "aud": "cloister", "sub": user, "iat": now, "exp": now + 600, **changed}
    return jwt.encode({"alg": "HS256", "typ": "JWT"}, claims, OctKey.import_key(KEY))


@pytest.fixture
async def world() -> AsyncIterator[World]:
    watched = Watched(MemoryStore())
    app = Application(lambda: AsyncCloister.open(watched.store, provider="offline", tenancy="required"), OPTIONS)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(app.opened())
        transport = httpx2.ASGITransport(app=app)
        client = await stack.enter_async_context(httpx2.AsyncClient(transport=transport, base_url="http://server"))
        credentials = app.behind().cloister.credentials
        callers: dict[str, dict[str, str]] = {"none": {}, "garbage": {"authorization": "Bearer csk_" + "x" * 43}}
        for tenant in ("acme", "globex"):
            await credentials.add_tenant(tenant)
        acme, globex = (await credentials.new_key("acme")).secret, (await credentials.new_key("globex")).secret
        for user in ("ana", "ben"):
            callers[f"service of {user}"] = {"authorization": f"Bearer {acme}", "cloister-user": user}
        callers["service of globex"] = {"authorization": f"Bearer {globex}", "cloister-user": "ben"}
        callers["service"] = callers["service of ben"]
        callers["token"] = bearer((await credentials.new_token(Owner("acme", "ben"), timedelta(hours=1))).secret)
        callers["jwt"] = bearer(token("ben"))
        callers["expired"] = bearer(token("ben", exp=1_000_000_000))
        callers["audience"] = bearer(token("ben", aud="another"))
        made = await credentials.new_token(Owner("acme", "ben"), timedelta(hours=1))
        await credentials.revoke_token("acme", made.credential.id)
        callers["revoked"] = bearer(made.secret)
        ids: dict[Whose, dict[str, str]] = {
            "own": await belongings(client, callers["service of ben"]),
            "foreign": await belongings(client, callers["service of ana"]),
            "tenant": await belongings(client, callers["service of globex"]),
        }
        ids["missing"] = {name: absent(value) for name, value in ids["foreign"].items()}
        ids["malformed"] = {name: value[:-3] for name, value in ids["foreign"].items()}
        yield World(client, watched, app, callers, ids)


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def absent(value: str) -> str:
    """Give an id of the same shape that nothing has."""
    kind, _, rest = value.partition("_")
    return f"{kind}_" + re.sub("[a-z]", lambda found: "b" if found[0] == "a" else "a", rest)


async def belongings(client: httpx2.AsyncClient, caller: Mapping[str, str]) -> dict[str, str]:
    """Make one of each thing; give its id."""
    made = await client.post("/v1/conversations", json={}, headers=caller)
    asked = {"input": "Hello.", "conversation": made.json()["id"]}
    response = (await client.post("/v1/responses", json=asked, headers=caller)).json()
    return {"conversation": made.json()["id"], "response": response["id"], "item": response["output"][0]["id"]}


def told(answer: httpx2.Response) -> tuple[int, bytes, list[tuple[str, str]]]:
    """Give all that a client sees of an answer, but the request's own id."""
    own = answer.headers["x-request-id"].encode()
    headers = sorted((name, value) for name, value in answer.headers.items() if "request-id" not in name)
    return answer.status_code, answer.content.replace(own, b"id"), headers


@pytest.mark.parametrize("operation", [each for each in OPERATIONS if each.scopes], ids=lambda each: each.name)
async def test_nobody_is_told_nothing(world: World, operation: Operation) -> None:
    """Whoever does not show who they are gets one 401, whatever they ask for and whatever is wrong with them."""
    answers = [
        told(await world.ask(operation, whose, caller))
        for caller in NOBODY
        for whose in ("own", "foreign", "missing", "malformed")
    ]
    assert {status for status, _, _ in answers} == {401}
    assert len({body for _, body, _ in answers}) == 1
    assert len({str(headers) for _, _, headers in answers}) == 1


@pytest.mark.parametrize(
    ("operation", "caller"),
    [
        pair
        for pair in itertools.product(NAMED, CALLERS)
        if ("user" if pair[1] != "service" else "service") in pair[0].scopes
    ],
    ids=lambda each: each.name if isinstance(each, Operation) else each,
)
async def test_foreign_looks_missing(world: World, operation: Operation, caller: str) -> None:
    """Ana's things, another tenant's, none and malformed ones look alike to Ben, and his own are there."""
    answers = {
        whose: told(await world.ask(operation, whose, caller))
        for whose in ("foreign", "tenant", "missing", "malformed")
    }
    assert answers["foreign"][0] == 404
    assert len(set(map(str, answers.values()))) == 1, answers
    own = await world.ask(operation, "own", caller)
    assert own.status_code < 300 or own.json()["error"].get("code") == "unsupported", own.text


@pytest.mark.parametrize("operation", NAMED, ids=lambda each: each.name)
async def test_foreign_costs_the_same_calls(world: World, operation: Operation) -> None:
    """The store is asked the same for what is Ana's and for what is not there, in the same order."""
    assert await world.calls(operation, "foreign", "service") == await world.calls(operation, "missing", "service")


@pytest.mark.parametrize("operation", NAMED, ids=lambda each: each.name)
async def test_what_ben_tried_changes_nothing(world: World, operation: Operation) -> None:
    """After everything that Ben tried, what is Ana's is as it was."""
    await world.ask(operation, "foreign", "service")
    answer = await world.client.get(
        f"/v1/conversations/{world.ids['foreign']['conversation']}", headers=world.callers["service of ana"]
    )
    assert (answer.status_code, answer.json()["metadata"]) == (200, {})


CURSORS = (
    "/v1/conversations?after={conversation}",
    "/v1/conversations/{own}/items?after={item}",
    "/v1/responses/{mine}/input_items?after={item}",
)


@pytest.mark.parametrize("path", CURSORS)
async def test_a_foreign_cursor_looks_unknown(world: World, path: str) -> None:
    """The cursor of another's list is refused as one that is none (row 80)."""
    own = {"own": world.ids["own"]["conversation"], "mine": world.ids["own"]["response"]}
    answers = []
    others: tuple[Whose, ...] = ("foreign", "tenant", "missing", "malformed")
    for whose in others:
        url = _Filled({**world.ids[whose], **own})(path)
        answers.append(told(await world.client.get(url, headers=world.callers["service"])))
    assert answers[0][0] in (400, 404)
    assert len(set(map(str, answers))) == 1, answers


async def test_a_foreign_item_is_not_in_an_own_conversation(world: World) -> None:
    """Ana's item under Ben's own conversation is not there, as any other."""
    path = f"/v1/conversations/{world.ids['own']['conversation']}/items"
    others: tuple[Whose, ...] = ("foreign", "tenant", "missing", "malformed")
    for method in ("GET", "DELETE"):
        answers = [
            told(
                await world.client.request(
                    method, f"{path}/{world.ids[whose]['item']}", headers=world.callers["service"]
                )
            )
            for whose in others
        ]
        assert answers[0][0] == 404
        assert len(set(map(str, answers))) == 1, answers


async def test_tokens_are_the_tenants(world: World) -> None:
    """A tenant's key revokes its own users' tokens, and another tenant's look as missing ones."""
    made = await world.client.post("/v1/cloister/tokens", json={"user": "ana"}, headers=world.callers["service"])
    path = f"/v1/cloister/tokens/{made.json()['id']}"
    shown = bearer(made.json()["token"])
    foreign = await world.client.delete(path, headers=world.callers["service of globex"])
    missing = await world.client.delete(path[:-1] + "x", headers=world.callers["service of globex"])
    assert told(foreign) == told(missing)
    assert (await world.client.get("/v1/conversations", headers=shown)).status_code == 200
    assert (await world.client.delete(path, headers=shown)).status_code == 403
    assert (await world.client.delete(path, headers=world.callers["service"])).status_code == 200
    assert (await world.client.get("/v1/conversations", headers=shown)).status_code == 401


def test_every_call_is_in_the_matrix() -> None:
    """The document has every route of the application, and the matrix every call of the document."""
    assert {(each.method, each.path) for each in OPERATIONS} == {
        (method.upper(), path) for path, methods in _DOCUMENT["paths"].items() for method in methods
    }
    assert not set(BODIES) - {each.name for each in OPERATIONS}
