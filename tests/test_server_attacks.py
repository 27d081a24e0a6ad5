"""Attacks on the whole server, with real keys and tokens: Ben, whose tenant is Ana's too, and tenants that mean harm.

What concerns one part is tested with that part. Here is what needs several of them: every format of the API, an
upstream that writes down what it is sent, a store that fails.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

import httpx2
import pytest
from tests.fakes import Clock, House, Watched
from tests.serving import UNRATED
from tests.talks import Talker, completion

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


@pytest.fixture
async def house() -> AsyncIterator[Firm]:
    async with firm() as made:
        yield made


# --- what a request brings --------------------------------------------------------------------------------------------

MANY: Mapping[str, tuple[str, dict[str, Any]]] = {
    "messages": ("chat", {"messages": [{"role": "user", "content": "x"}] * 31}),
    "parts": ("chat", {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 31}]}),
    "anthropic": ("messages", {"messages": [{"role": "user", "content": "x"}] * 31}),
    "blocks": ("messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 31}]}),
    "results": (
        "messages",
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "x"}] * 16}
                    ]
                    * 2,
                }
            ]
        },
    ),
    "items": ("responses", {"input": [{"role": "user", "content": "x"}] * 31}),
    "item parts": ("responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}] * 31}]}),
}


@pytest.mark.parametrize("name", MANY)
async def test_a_request_brings_so_much_and_no_more(name: str) -> None:
    """Items, messages and their parts are bounded in each format, before anything is made of them (row 55)."""
    form, body = MANY[name]
    async with firm(ServerSettings(max_items=30)) as house:
        refused = await house.turn("ben", form, more=body, cloister_session="new")
        assert refused.status_code == 400
        assert "at most 30" in refused.text
        assert house.provider.requests == []
        few = json.loads(json.dumps(body))
        (given,) = few.values()
        for one in given:
            one["content"] = one["content"][:1]
        del given[30:]
        assert "at most" not in (await house.turn("ben", form, more=few)).text


IMAGES = {
    "responses": lambda url: {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]},
    "chat": lambda url: {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]},
    "messages": lambda url: {
        "messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": url}}]}]
    },
}


@IN_ONE
async def test_no_file_of_the_providers_machine_is_an_image(house: Firm, form: str) -> None:
    """An address that a provider would read from its own disk is refused, in conversations too (row 75)."""
    for url in ("file:///etc/passwd", "FILE://x", " file:///x", "s3://bucket/x", "//x", "x"):
        assert (await house.turn("ben's token", form, more=IMAGES[form](url))).status_code == 400
    made = (await house.ask("ben", "POST", "/conversations", {})).json()["id"]
    added = {"items": IMAGES["responses"]("file:///etc/passwd")["input"]}
    assert (await house.ask("ben", "POST", f"/conversations/{made}/items", added)).status_code == 400
    assert house.provider.requests == []
    assert (await house.turn("ben's token", form, more=IMAGES[form]("https://pics.test/x.png"))).status_code == 200


async def test_audio_goes_on_without_references(house: Firm) -> None:
    """Of audio a model is sent data and format; what else stood there is kept for its owner (row 75)."""
    sound = {"data": "UklGRg==", "format": "wav", "id": "audio_of_ana", "file_id": "file-ana"}
    said = [{"role": "user", "content": [{"type": "input_audio", "input_audio": sound}]}]
    answer = await house.turn("ben", more={"input": said})
    assert answer.status_code == 200
    assert "ana" not in house.provider.seen
    kept = await house.ask("ben", "GET", f"/responses/{answer.json()['id']}/input_items")
    assert kept.json()["data"][0]["content"] == said[0]["content"]


# --- what is deleted --------------------------------------------------------------------------------------------------


@IN_ONE
@STREAMED
async def test_what_was_deleted_is_not_answered_again(house: Firm, form: str, streamed: bool) -> None:
    """A turn whose answer was deleted is not taken again under its key, and nothing of the answer is told (row 31)."""
    house.provider.answer = "The parcel is in Lyon."
    more, key = ({"stream": True} if streamed else {}), {"idempotency_key": "k", "cloister_session": "new"}
    first = await house.turn("ben", form, more=more, **key)
    again = await house.turn("ben", form, more=more, **key)
    assert "Lyon" in first.text.replace(" ", "") or "Lyon" in first.text
    assert again.headers["cloister-session"] == first.headers["cloister-session"]
    session = first.headers["cloister-session"]
    listed = (await house.ask("ben", "GET", f"/conversations/{session}/items")).json()["data"]
    for item in listed:
        gone = await house.ask("ben", "DELETE", f"/conversations/{session}/items/{item['id']}")
        assert gone.status_code == 200
    asked = len(house.provider.requests)
    after = await house.turn("ben", form, more=more, **key)
    assert (after.status_code, "Lyon" in after.text) == (404, False)
    assert len(house.provider.requests) == asked == 1


# --- what a model answers ---------------------------------------------------------------------------------------------


@IN_ONE
@STREAMED
async def test_a_refusal_is_an_answer(house: Firm, form: str, streamed: bool) -> None:
    """A model that will not answer says so in each format, whole and streamed, and it is stored."""
    house.provider.answer = completion(None, refusal="I will not.")
    answer = await house.turn("ben", form, more={"stream": True} if streamed else {}, cloister_session="new")
    assert answer.status_code == 200, answer.text
    if form == "chat":
        assert '"refusal":"I ' in answer.text
    assert "will not" in answer.text.replace('"}}]}', "") or streamed
    items = await house.ask("ben", "GET", f"/conversations/{answer.headers['cloister-session']}/items")
    assert items.json()["data"][0]["content"] == [{"type": "refusal", "refusal": "I will not."}]


@IN_ONE
async def test_no_answer_makes_a_session_unreadable(house: Firm, form: str) -> None:
    """Notes to an answer may have any form: what is stored can be read."""
    notes = [{"type": ["x"]}, 5, {"type": "url_citation", "url_citation": {"url": "x"}}, {"type": {}}]
    house.provider.answer = completion("It is so.", annotations=notes)
    answer = await house.turn("ben", form, cloister_session="new")
    items = await house.ask("ben", "GET", f"/conversations/{answer.headers['cloister-session']}/items")
    assert (answer.status_code, items.status_code) == (200, 200)
    assert items.json()["data"][0]["content"][0]["annotations"][2] == {"type": "url_citation", "url": "x"}


@IN_ONE
async def test_fields_of_the_servers_own_cannot_come_with_an_answer(house: Firm, form: str) -> None:
    """What an upstream puts where the server remembers things is not taken for what the server remembers (row 48)."""
    forged = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "FORGED"}]}
    house.provider.answer = completion("True.", api=forged, response={"created_at": 1, "model": "FORGED"})
    answer = await house.turn("ben", form, cloister_session="new")
    items = await house.ask("ben", "GET", f"/conversations/{answer.headers['cloister-session']}/items")
    assert "FORGED" not in answer.text + items.text
    assert "True." in items.text
    assert json.loads(items.text)["data"][0]["role"] == "assistant"
