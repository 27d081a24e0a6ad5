"""The whole server while a store fails, a reader leaves or a tenant floods it: nothing half, nobody else harmed."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, MutableMapping
from typing import Any

import pytest
from tests.firm import FORMATS, IN_ONE, STREAMED, Firm, firm

from cloister.errors import ConfigurationError, IntegrityError, ProviderError, ProviderRateLimited, StoreUnavailable
from cloister.server.settings import ServerSettings


@pytest.fixture
async def house() -> AsyncIterator[Firm]:
    async with firm() as made:
        yield made


# --- a store, or a client, that goes away -----------------------------------------------------------------------------


def _broken(error: Exception, at: int) -> Any:
    """Give what answers in a store's place: it fails from the *at*th call on."""
    made = [0]

    async def answer(real: Any, args: Any, options: Any) -> Any:
        made[0] += 1
        if made[0] > at:
            raise error
        return await real(*args, **options)

    return answer


@IN_ONE
@STREAMED
async def test_wherever_the_store_fails_nothing_is_half(form: str, streamed: bool) -> None:
    """From whichever call on the store is down: 503 or an event that says so, and a whole turn or none (row 37)."""
    more = {"stream": True} if streamed else {}
    async with firm() as house:
        session = (await house.turn("ben", form, cloister_session="new")).headers["cloister-session"]
        house.watched.calls.clear()
        await house.turn("ben", form, more=more, cloister_session=session)
        await house.cloister.vault.settle()
        names = list(house.watched.names)
        assert "commit" in names
        for at in range(len(names)):
            answer = _broken(StoreUnavailable("canary: it is down"), at)
            house.watched.answers = dict.fromkeys(set(names), answer)
            got = await house.turn("ben", form, more=more, cloister_session=session)
            house.watched.answers = {}
            house.clock.move(minutes=1)
            assert "canary" not in got.text
            if at <= names.index("commit"):
                said = got.status_code == 503 or (got.status_code == 200 and "store_unavailable" in got.text)
                said |= form == "messages" and got.status_code == 200 and '"type":"error"' in got.text
                assert said, (at, names, got.text)
            if got.status_code == 503:
                assert int(got.headers["retry-after"]) > 0
            await house.cloister.vault.settle()
            listed = await house.ask("ben", "GET", f"/conversations/{session}/items?limit=100")
            assert listed.status_code == 200, (at, listed.text)
            roles = [item["role"] for item in listed.json()["data"]][::-1]
            assert roles == ["user", "assistant"] * (len(roles) // 2), (at, roles)
        again = await house.turn("ben", form, more=more, cloister_session=session)
        assert again.status_code == 200, again.text
        assert "error" not in again.text.replace('"error":null', "")


@IN_ONE
async def test_wherever_a_reader_leaves_nothing_is_stored(house: Firm, form: str) -> None:
    """Whoever goes away behind any event of a stream leaves no turn, no open call, and what was spent (rows 29, 78)."""
    house.provider.answer = "It is late, and it rains. " * 60
    session = (await house.turn("ben", form, cloister_session="new")).headers["cloister-session"]
    for events in range(1, 6):
        await _leave(house, form, session, events)
        assert house.provider.open_streams == 0
        listed = await house.ask("ben", "GET", f"/conversations/{session}/items")
        assert len(listed.json()["data"]) == 2, events
    failed = [entry for entry in await house.entries() if entry.event == "turn.failed"]
    assert len(failed) == 5
    assert all(json.loads(entry.detail).get("output_tokens", 0) > 0 for entry in failed)
    assert (await house.turn("ben", form, cloister_session=session)).status_code == 200


async def _leave(house: Firm, form: str, session: str, events: int) -> None:
    """Ask for a stream, and go away behind so many pieces."""
    path, body = FORMATS[form]
    gone, given = asyncio.Event(), False
    sent = 0

    async def receive() -> MutableMapping[str, Any]:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": json.dumps({**body, "stream": True}).encode()}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(event: MutableMapping[str, Any]) -> None:
        nonlocal sent
        if event["type"] == "http.response.body":
            sent += 1
            if sent >= events:
                gone.set()
                await asyncio.Event().wait()  # nobody reads on

    headers = {**house.callers["ben"], "content-type": "application/json", "cloister-session": session}
    scope = {
        **{"type": "http", "method": "POST", "scheme": "http", "path": f"/v1{path}", "query_string": b""},
        **{"raw_path": f"/v1{path}".encode(), "root_path": "", "client": ("127.0.0.1", 1)},
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    async with asyncio.timeout(10):
        await house.app(scope, receive, send)


# --- what is said of it all -------------------------------------------------------------------------------------------


async def test_no_error_and_no_log_says_who_or_what(house: Firm, caplog: pytest.LogCaptureFixture) -> None:
    """Errors and the log hold no words, users, ids, keys or tokens, whatever goes wrong (rows 45 to 47).

    What is at fault, in the words that cloister's own errors have for it, is in the log alone.
    """
    caplog.set_level(logging.DEBUG, "cloister")
    words = "canary\x1b[31m\r\nforged: entry"
    made = await house.turn("ana", more={"input": words})
    hers = made.json()["id"]
    answers = []
    for path, body in (
        (f"/responses/{hers}", None),
        (f"/conversations/conv_{hers[5:48]}", None),
        (f"/conversations?after=conv_{hers[5:48]}", None),
        ("/responses", {"input": words, "previous_response_id": hers}),
        ("/responses", {"input": words, "model": "canary\n"}),
        ("/responses", {"input": words, "temperature": 9}),
        ("/responses", {"input": words, "tools": [{"type": "x"}]}),
        ("/chat/completions", {"messages": [{"role": "user", "content": words, "canary": words}]}),
        ("/messages", {"messages": [], "max_tokens": 5}),
        ("/cloister/tokens", {"user": words}),
    ):
        for caller in ("ben", "ben's token", "globex"):
            answers.append(await house.ask(caller, "GET" if body is None else "POST", path, body))
    for error in (
        ProviderError("no answer was whole"),
        ProviderRateLimited("no tokens are left on the account"),
        StoreUnavailable("the disk is full"),
        IntegrityError("a row was changed"),
        ConfigurationError("a price is missing"),
        ValueError("canary"),
    ):
        house.provider.answer = error
        for form in FORMATS:
            for streamed in ({}, {"stream": True}):
                answers.append(await house.turn("ben", form, more=streamed))
    assert {answer.status_code for answer in answers} >= {400, 403, 404, 500, 502, 503}
    secrets = [hers[5:48], *[value for caller in house.callers.values() for value in caller.values()][:1]]
    secrets += [caller["authorization"].removeprefix("Bearer ") for caller in house.callers.values()]
    told = ("no answer was whole", "no tokens are left", "the disk is full", "a row was changed", "a price is missing")
    for answer in answers:
        if answer.status_code < 400:
            continue
        internal = ("/src/", "Traceback", "SELECT", *told, *secrets)
        assert not [one for one in internal if one in answer.text], answer.text
        assert answer.headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in answer.headers
        assert answer.text.count("\n") == answer.text.count("\x1b") == 0
    for one in ("canary", "forged", *secrets):
        assert one not in caplog.text
    for one in told:  # by the request's id, whether the answer had begun or not
        assert len(re.findall(f"req_[0-9a-f]+ failed: .*{one}", caplog.text)) >= len(FORMATS)
        assert len(re.findall(f"req_[0-9a-f]+ failed.*: .*{one}", caplog.text)) >= 2 * len(FORMATS)
    assert "\x1b" not in caplog.text


@pytest.mark.parametrize("method", ["OPTIONS", "HEAD", "TRACE", "PUT", "PATCH", "CONNECT", "X-ODD"])
async def test_other_methods_do_nothing(house: Firm, method: str) -> None:
    """No method but those that a path has does anything, nor lets another origin in (row 56)."""
    session = (await house.turn("ben", cloister_session="new")).headers["cloister-session"]
    house.watched.calls.clear()
    for path in ("/responses", f"/conversations/{session}", "/models", "/nowhere", "/../v1/responses", ""):
        answer = await house.ask("ben", method, path, Origin="https://evil.test")
        assert answer.status_code in (404, 405), (method, path)
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert house.watched.calls == []


async def test_a_flood_of_one_tenant_is_its_own() -> None:
    """Under any names and on any route a tenant has so many requests; others have theirs (row 55)."""
    options = ServerSettings(requests_per_minute_user=1_000, requests_per_minute_tenant=40)
    async with firm(options) as house:
        key = {"authorization": house.callers["ana"]["authorization"]}
        statuses = []
        for number in range(60):
            house.callers["anybody"] = {**key, "cloister-user": f"user-{number}"}
            path = ("/conversations", "/responses/resp_x", "/conversations/conv_x/items")[number % 3]
            statuses.append((await house.ask("anybody", "GET", path)).status_code)
        assert statuses.count(429) == 20
        assert set(statuses[40:]) == {429}
        assert (await house.turn("ben's token")).status_code == 429
        assert (await house.turn("globex")).status_code == 200


async def test_what_is_refused_counts_too() -> None:
    """An end user's requests count on every route, before their body is read, whatever is wrong with it (row 55)."""
    async with firm(ServerSettings(requests_per_minute_user=4, requests_per_minute_tenant=None)) as house:
        asked: tuple[tuple[str, str, Any], ...] = (
            ("GET", "/models", None),
            ("POST", "/responses", "no object"),
            ("POST", "/chat/completions", {"messages": 5}),
            ("GET", "/conversations?limit=no", None),
        )
        first = [(await house.ask("ben's token", *one)).status_code for one in asked]
        assert first == [200, 400, 400, 400]
        assert [(await house.ask("ben's token", *one)).status_code for one in asked] == [429] * 4
        assert (await house.ask("ana's token", "GET", "/models")).status_code == 200


async def test_who_floods_takes_nothing_from_others() -> None:
    """An end user who is over the limit no longer counts for the tenant, so that Ana's requests pass (row 55)."""
    async with firm(ServerSettings(requests_per_minute_user=5, requests_per_minute_tenant=20)) as house:
        paths = ("/models", "/conversations?limit=no", "/responses/resp_x")
        flood = [(await house.ask("ben's token", "GET", paths[number % 3])).status_code for number in range(60)]
        assert flood[5:] == [429] * 55
        assert [(await house.ask("ana's token", "GET", "/models")).status_code for _ in range(5)] == [200] * 5


@IN_ONE
async def test_turns_of_one_session_at_once(house: Firm, form: str) -> None:
    """Of many turns in one session each is whole and behind another, or refused as busy (rows 32, 64)."""
    session = (await house.turn("ben", form, cloister_session="new")).headers["cloister-session"]
    answers = await asyncio.gather(*(house.turn("ben's token", form, cloister_session=session) for _ in range(8)))
    assert {answer.status_code for answer in answers} <= {200, 409, 429}
    stored = [answer.status_code for answer in answers].count(200) + 1
    assert stored > 1
    listed = (await house.ask("ben", "GET", f"/conversations/{session}/items?limit=100")).json()["data"]
    assert [item["role"] for item in listed] == ["assistant", "user"] * stored
