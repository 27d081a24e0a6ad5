"""What every request meets before a handler: sizes, who asks, what is said, and how it is answered."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import timedelta
from typing import Any

import httpx2
import msgspec
import pytest

from cloister import errors
from cloister.client import AsyncCloister
from cloister.model import Owner
from cloister.server import openapi
from cloister.server.app import Application
from cloister.server.errors import SAFE
from cloister.server.headers import Headers
from cloister.server.identity import Caller
from cloister.server.refusals import Refused
from cloister.server.routes import ANYBODY, Answer, Call, Route, Stream
from cloister.server.settings import ServerSettings
from cloister.server.shapes import Body, Query
from cloister.stores.base import every_entry

SECRET = "SELECT secret FROM sessions; cs_" + "x" * 43


class Words(Body):
    text: str
    number: int = 0


class Search(Query):
    limit: int = 20
    include: list[str] | None = None


class Known:
    """Believe whoever says so: the name of a tenant is its key."""

    async def caller(self, headers: Headers, source: str) -> Caller:
        key = headers.get("authorization", "").removeprefix("Bearer ")
        if not key:
            raise Refused(401, "invalid_request_error", "invalid_api_key", "who are you?")
        if key == "operator":
            return Caller("operator", None, None, "op")
        return Caller("service", key, None, f"key of {key}")

    async def owner(self, caller: Caller, headers: Headers, *named: str) -> Owner:
        return Owner(caller.tenant, headers.get("cloister-user", "ana"))

    async def close(self) -> None: ...


class Raised:
    """What a handler raises, set by each test; and what it has seen."""

    error: BaseException | None = None
    calls: list[Call]
    went: list[str]

    def __init__(self) -> None:
        self.calls, self.went = [], []
        self.begun = asyncio.Event()


@pytest.fixture
def raised() -> Raised:
    return Raised()


@pytest.fixture
async def app(raised: Raised) -> AsyncIterator[Application]:
    async def echo(call: Call, body: Words) -> Words:
        raised.calls.append(call)
        return body

    async def fail(call: Call) -> None:
        assert raised.error is not None
        raise raised.error

    async def search(call: Call) -> Any:
        return {"limit": call.query.limit, "include": call.query.include}

    async def wait(call: Call) -> Any:
        raised.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raised.went.append("cancelled")
            raise

    async def written() -> None:
        raised.went.append("written")

    async def answer(call: Call) -> Answer:
        return Answer({"a": 1}, 201, {"cloister-session": "s"}, written)

    async def pieces() -> AsyncGenerator[bytes, None]:
        try:
            if raised.error is not None:
                raise raised.error
            yield b"data: one\n\n"
            raised.begun.set()
            if raised.went == ["hang"]:
                await asyncio.Event().wait()
            yield b"data: two\n\n"
        finally:
            raised.went.append("closed")

    async def stream(call: Call) -> Stream:
        return Stream(pieces(), lambda: {"cloister-session": "s"}, written)

    async def start(call: Call) -> Any:
        await call.user.start()
        return {}

    async def healthz(call: Call) -> Any:
        return {"ok": True}

    routes = (
        Route("POST", "/v1/echo", echo, "Echo", body=Words, answer=Words),
        Route("GET", "/v1/fail", fail, "Fail"),
        Route("GET", "/v1/messages/fail", fail, "Fail as Anthropic", style="anthropic"),
        Route("GET", "/v1/search", search, "Search", query=Search),
        Route("POST", "/v1/search/{name}", wait, "Wait", waits=True),
        Route("GET", "/v1/answer", answer, "Answer"),
        Route("POST", "/v1/start/{name}", start, "Start"),
        Route("GET", "/v1/stream", stream, "Stream", waits=True, streams=True),
        Route("GET", "/metrics", healthz, "For operators", scopes=frozenset({"operator"}), owned=False),
        Route("GET", "/healthz", healthz, "For anybody", scopes=ANYBODY, owned=False),
    )
    app = Application(
        lambda: AsyncCloister.open("memory://", provider="offline", tenancy="required"),
        ServerSettings(max_body=2_000),
        routes=routes,
        identities=lambda _: Known(),
    )
    async with app.opened():
        yield app


@pytest.fixture
async def client(app: Application) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app=app)
    headers = {"authorization": "Bearer acme"}
    async with httpx2.AsyncClient(transport=transport, base_url="http://server", headers=headers) as client:
        yield client


async def test_a_body_comes_to_its_handler(client: httpx2.AsyncClient, raised: Raised) -> None:
    """The handler is given the body, the caller, and the one user that it is about."""
    answer = await client.post("/v1/echo", json={"text": "hello"}, headers={"cloister-user": "ben"})
    assert answer.json() == {"text": "hello", "number": 0}
    (call,) = raised.calls
    assert call.user.owner == call.owner == Owner("acme", "ben")
    assert call.caller.credential == "key of acme"
    assert call.raw == b'{"text":"hello"}'


async def test_every_answer_is_guarded(client: httpx2.AsyncClient, raised: Raised) -> None:
    """No answer, whatever its status, may be kept, framed, sniffed, or says what answered it."""
    raised.error = RuntimeError("x")
    asked = [
        await client.get("/healthz"),
        await client.get("/v1/stream"),
        await client.get("/nowhere"),
        await client.put("/v1/echo"),
        await client.get("/v1/fail"),
        await client.get("/healthz", headers={"authorization": ""}),
        await client.post("/v1/echo", content=b"{"),
    ]
    for answer in asked:
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        said = set(answer.headers["content-security-policy"].split("; "))
        assert said == {"default-src 'none'", "base-uri 'none'", "frame-ancestors 'none'"}
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-request-id"].startswith("req_")
        assert not {"server", "x-powered-by", "access-control-allow-origin"} & set(answer.headers)
    assert len({answer.headers["x-request-id"] for answer in asked}) == len(asked)


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"{", "invalid_json", None),
        (b"", "invalid_json", None),
        (b"\xff\xfe", "invalid_json", None),
        (b"[" * 900, "invalid_value", None),
        (b'{"text": ' + b"[" * 1_500, "invalid_value", "text"),
        (b'{"text": "\\ud800"}', "invalid_json", None),
        (b"[]", "invalid_value", None),
        (b'{"number": 1}', "invalid_value", None),
        (b'{"text": 1}', "invalid_value", "text"),
        (b'{"text": "a", "number": "1"}', "invalid_value", "number"),
        (b'{"text": "a", "user_id": 1}', "unknown_parameter", None),
    ],
)
async def test_a_bad_body_is_named(client: httpx2.AsyncClient, body: bytes, code: str, param: str | None) -> None:
    """What is wrong with a body is said, with the part that is, as 400."""
    answer = await client.post("/v1/echo", content=body, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param)


async def test_a_large_body_is_not_read(client: httpx2.AsyncClient, raised: Raised) -> None:
    """A body beyond the limit is 413, whether its length is told or it just goes on."""

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(1_000):
            yield b'{"text":"' + b"x" * 100

    headers = {"content-type": "application/json"}
    told = await client.post("/v1/echo", content=b'{"text":"' + b"x" * 3_000 + b'"}', headers=headers)
    untold = await client.post("/v1/echo", content=endless(), headers=headers)
    assert told.status_code == untold.status_code == 413
    assert "2000 bytes" in told.json()["error"]["message"]
    assert not raised.calls


@pytest.mark.parametrize(
    "headers",
    [{}, {"content-type": "text/plain"}, {"content-type": "application/json", "content-encoding": "gzip"}],
)
async def test_only_plain_json_is_taken(client: httpx2.AsyncClient, headers: dict[str, str]) -> None:
    """What a browser sends without asking first, and what would have to be unpacked, is 415."""
    answer = await client.post("/v1/echo", content=b'{"text":"a"}', headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("query", ["?limit=5", "?limit=5&include[]=a&include[]=b", "?include=a", ""])
async def test_a_query_is_read(client: httpx2.AsyncClient, query: str) -> None:
    """Numbers and lists behind the ? come in their types."""
    said = (await client.get(f"/v1/search{query}")).json()
    assert said["limit"] == (5 if "limit" in query else 20)
    assert said["include"] == (["a", "b"] if "[]" in query else ["a"] if "include" in query else None)


@pytest.mark.parametrize(
    "query", ["?limit=x", "?limit=5&limit=6", "?unknown=1", "?limit", "?limit=%ff%fe", "?" + "x" * 5_000, "?a=%00"]
)
async def test_a_bad_query_is_refused(client: httpx2.AsyncClient, query: str) -> None:
    """A value of another type, one that is there twice, and what is unknown are 400."""
    assert (await client.get(f"/v1/search{query}")).status_code == 400
    assert (await client.post(f"/v1/echo{query}", json={"text": "a"})).status_code == 400


async def test_what_a_caller_may_not_call(client: httpx2.AsyncClient) -> None:
    """Nobody is 401, the wrong scope 403, and what is for anybody needs no key."""
    nobody = {"authorization": ""}
    assert (await client.get("/v1/search", headers=nobody)).status_code == 401
    assert (await client.get("/metrics")).status_code == 403
    assert (await client.get("/v1/search", headers={"authorization": "Bearer operator"})).status_code == 403
    assert (await client.get("/metrics", headers={"authorization": "Bearer operator"})).status_code == 200
    assert (await client.get("/healthz", headers=nobody)).status_code == 200


async def test_unknown_paths_and_methods(client: httpx2.AsyncClient) -> None:
    """A path that is not there is 404, a method that it lacks 405, both in the API's shape."""
    for method, path, status in [
        ("GET", "/v2/echo", 404),
        ("GET", "/v1/echo/", 404),
        ("POST", "//v1/echo", 404),
        ("POST", "/v1/ECHO", 404),
        ("POST", "/v1/search/a%2Fb", 404),
        ("GET", "/v1/echo", 405),
        ("OPTIONS", "/v1/echo", 405),
        ("HEAD", "/v1/echo", 405),
        ("TRACE", "/v1/echo", 405),
    ]:
        answer = await client.request(method, path)
        assert answer.status_code == status, path
        if method != "HEAD":
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert (await client.get("/v1/echo")).headers["allow"] == "POST"


ERRORS = [
    (errors.SessionNotFound(), 404, "not_found"),
    (errors.TokenInvalid(), 404, "not_found"),
    (errors.SessionExpired(), 404, "session_expired"),
    (errors.CredentialInvalid("unknown"), 401, "invalid_api_key"),
    (errors.OptionRefused(SECRET, "seed"), 400, "unsupported"),
    (errors.SessionBusy(SECRET), 409, "session_busy"),
    (errors.SessionConflict(SECRET), 409, "session_conflict"),
    (errors.KeyReused("the key was used for something else"), 422, "idempotency_key_reused"),
    (errors.RateLimited(SECRET, timedelta(seconds=7)), 429, "rate_limit_exceeded"),
    (errors.BudgetExceeded("the budget of the day is used up"), 429, "budget_exceeded"),
    (errors.ReplyBlocked(SECRET), 403, "reply_blocked"),
    (errors.IntegrityError(SECRET), 500, "integrity_error"),
    (errors.ProviderTimeout(SECRET), 504, "provider_timeout"),
    (errors.ProviderAuth(SECRET), 502, "provider_refused"),
    (errors.ProviderRateLimited(SECRET, 3), 429, "provider_busy"),
    (errors.ProviderError(SECRET), 502, "provider_error"),
    (errors.StoreUnavailable(SECRET), 503, "store_unavailable"),
    (errors.StoreError(SECRET), 503, "store_error"),
    (errors.ConfigurationError(SECRET), 500, "misconfigured"),
    (RuntimeError(SECRET), 500, "internal_error"),
    (KeyError(SECRET), 500, "internal_error"),
]


@pytest.mark.parametrize(("error", "status", "code"), ERRORS, ids=lambda value: str(type(value).__name__))
async def test_errors_have_their_status_and_say_nothing_internal(
    client: httpx2.AsyncClient, raised: Raised, error: Exception, status: int, code: str
) -> None:
    """Each error has one status and code in both APIs' shapes, and none shows what is inside (row 47)."""
    raised.error = error
    answer = await client.get("/v1/fail")
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    anthropic = await client.get("/v1/messages/fail")
    assert anthropic.status_code == status
    assert anthropic.json()["type"] == "error"
    assert anthropic.json()["request_id"] == anthropic.headers["x-request-id"]
    for said in (answer, anthropic):
        assert "SELECT" not in said.text
        assert "cs_" not in said.text


def test_every_error_of_the_tree_is_in_the_table() -> None:
    """An error that is added must be given a status."""
    ours = {errors.CloisterError, errors.NoScope, errors.ScopeClosed}  # never a client's doing
    every = {
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.CloisterError)
    }
    assert every - ours == {type(error) for error, _, _ in ERRORS if isinstance(error, errors.CloisterError)}


async def test_who_is_refused_is_told_when_to_come_back(client: httpx2.AsyncClient, raised: Raised) -> None:
    """429 and 503 name seconds; what no repetition mends tells SDKs not to repeat it."""
    raised.error = errors.RateLimited("x", timedelta(seconds=6.2))
    assert (await client.get("/v1/fail")).headers["retry-after"] == "7"
    raised.error = errors.StoreUnavailable("x")
    assert (await client.get("/v1/fail")).headers["retry-after"] == "1"
    raised.error = errors.BudgetExceeded("x")
    assert (await client.get("/v1/fail")).headers["x-should-retry"] == "false"


async def test_what_reaches_no_door_is_in_the_log(client: httpx2.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    """An unknown path is logged under its request's id, and not itself: it may be anything."""
    with caplog.at_level(logging.INFO):
        answers = [await client.get("/v1/secret-path"), await client.put("/v1/echo")]
    for answer in answers:
        assert answer.headers["x-request-id"] in caplog.text
    ours = [record.getMessage() for record in caplog.records if record.name == "cloister.server"]
    assert len(ours) == 2
    assert "secret-path" not in str(ours)


async def test_what_nobody_foresaw_is_in_the_log(
    client: httpx2.AsyncClient, raised: Raised, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of the server's own is in its log with its trace, under the id that the client was told."""
    raised.error = ZeroDivisionError("division")
    with caplog.at_level(logging.ERROR):
        answer = await client.get("/v1/fail")
    assert answer.headers["x-request-id"] in caplog.text
    assert "ZeroDivisionError" in caplog.text


async def test_an_answer_with_more_than_a_body(client: httpx2.AsyncClient, raised: Raised) -> None:
    """A handler may set status and headers, and hears when its answer was written."""
    answer = await client.get("/v1/answer")
    assert (answer.status_code, answer.headers["cloister-session"]) == (201, "s")
    assert raised.went == ["written"]


async def test_a_stream(client: httpx2.AsyncClient, raised: Raised) -> None:
    """A stream says that it is one, and its generator is closed before it counts as written."""
    answer = await client.get("/v1/stream")
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cloister-session"] == "s"
    assert answer.text == "data: one\n\ndata: two\n\n"
    assert raised.went == ["closed", "written"]


async def test_a_stream_that_fails_at_once_has_a_status(client: httpx2.AsyncClient, raised: Raised) -> None:
    """What fails before the first piece is no broken stream, but an answer of its own."""
    raised.error = errors.ProviderRateLimited("x", 4)
    answer = await client.get("/v1/stream")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "4")
    assert raised.went == ["closed"]


class Leaving:
    """A client that goes away once the handler has begun."""

    def __init__(self, app: Application, method: str, path: str, raised: Raised) -> None:
        self.sent: list[dict[str, Any]] = []
        headers = [(b"authorization", b"Bearer acme")]
        self.scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "root_path": "",
            "query_string": b"", "headers": headers, "scheme": "http", "client": ("127.0.0.1", 1), "server": ("s", 1),
        }  # fmt: skip
        self.app, self.raised = app, raised

    async def receive(self) -> dict[str, Any]:
        await self.raised.begun.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(dict(message))

    async def go(self) -> None:
        await asyncio.wait_for(self.app(self.scope, self.receive, self.send), 5)


async def test_who_goes_away_ends_what_it_asked_for(app: Application, raised: Raised) -> None:
    """A handler that waits for a model is cancelled when the client hangs up, and says nothing."""
    leaving = Leaving(app, "POST", "/v1/search/a", raised)
    await leaving.go()
    assert raised.went == ["cancelled"]
    assert leaving.sent == []


async def test_who_goes_away_closes_the_stream(app: Application, raised: Raised) -> None:
    """A stream whose reader hangs up is closed where it stands, and does not count as written."""
    raised.went.append("hang")
    leaving = Leaving(app, "GET", "/v1/stream", raised)
    await leaving.go()
    assert raised.went == ["hang", "closed"]


async def test_a_stopping_server_ends_it_too(app: Application, raised: Raised) -> None:
    """Whoever cancels the request finds the handler ended when it is back; who asked is told to ask again."""
    leaving = Leaving(app, "POST", "/v1/search/a", raised)
    leaving.receive = asyncio.Event().wait  # type: ignore[assignment,method-assign]
    task = asyncio.create_task(app(leaving.scope, leaving.receive, leaving.send))
    await asyncio.wait_for(raised.begun.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert raised.went == ["cancelled"]
    begun, body = leaving.sent
    assert (begun["status"], dict(begun["headers"])[b"retry-after"]) == (503, b"1")
    assert b"stopping" in body["body"]


async def test_calls_are_on_record_with_their_source(app: Application, client: httpx2.AsyncClient) -> None:
    """An entry says which route, from which address, under which request id; and no id out of the path."""
    answer = await client.post("/v1/start/conv_abc")
    entries = [entry async for entry in every_entry(app.behind().cloister.store)]
    (started,) = [entry for entry in entries if entry.event == "session.started"]
    assert f"POST /v1/start/{{name}} 127.0.0.1 {answer.headers['x-request-id']}" in started.detail
    assert "conv_abc" not in started.detail


async def test_pages_of_elsewhere_may_call_where_they_are_named() -> None:
    """Only scripts from the origins that the operator names may read answers; by default, none."""
    named, other = "https://chat.example", "https://chat.example.evil.example"

    def opening() -> AsyncCloister:
        return AsyncCloister.open("memory://", provider="offline", tenancy="required")

    asked = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,cloister-session",
    }
    for origins, allowed in (((), set()), ((named,), {named})):
        app = Application(opening, ServerSettings(cors_origins=origins))
        async with app.opened():
            transport = httpx2.ASGITransport(app=app)
            async with httpx2.AsyncClient(transport=transport, base_url="http://server") as client:
                for origin in (named, other, "null"):
                    before = await client.options("/v1/responses", headers={"origin": origin, **asked})
                    answer = await client.get("/v1/models", headers={"origin": origin})
                    for said in (before, answer):
                        assert said.headers.get("access-control-allow-origin") == (
                            origin if origin in allowed else None
                        )
                        assert "access-control-allow-credentials" not in said.headers
                        assert SAFE.items() <= dict(said.headers).items()
                        assert said.headers["x-request-id"].startswith("req_")
                    assert (before.status_code == 200) == (origin in allowed)
                    assert answer.status_code == 401


async def test_the_document_is_made_once(client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may ask for it, as often as they like: what takes long is done for the first of them."""
    first = await client.get("/openapi.json")
    assert first.headers["content-type"] == "application/json"
    assert first.json()["openapi"]
    monkeypatch.setattr(openapi, "document", None)
    assert (await client.get("/openapi.json")).content == first.content


def test_the_document_has_every_route(app: Application) -> None:
    """The OpenAPI document is made from the table of routes, with the types of bodies and queries."""
    said = openapi.document(app.routes)
    assert set(said["paths"]) == {route.path for route in app.routes}
    assert said["paths"]["/v1/echo"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    names = [parameter["name"] for parameter in said["paths"]["/v1/search"]["get"]["parameters"]]
    assert names == ["limit", "include", "Cloister-User"]
    assert said["paths"]["/healthz"]["get"]["security"] == []
    assert msgspec.json.encode(said)
