"""A request that comes twice is one turn: under its key, or because an SDK says that it tries again.

Rows 31, 66 and 77 of the attacks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.serving import Served, served

from cloister.stores.base import Receipt

HELLO = "Where is my order?"
ASKED = [{"role": "user", "content": HELLO}]
KEY: dict[str, Any] = {"idempotency-key": "key-1"}
FIRST: dict[str, Any] = {"x-stainless-retry-count": "0"}
AGAIN: dict[str, Any] = {"x-stainless-retry-count": "1"}


@pytest.fixture
async def house() -> AsyncIterator[Served]:
    async with served() as house:
        yield house


class Way:
    """One of the calls that ask a model, and how its answer is read."""

    def __init__(self, path: str, body: dict[str, Any], place: str) -> None:
        self.path, self.body, self.place = path, body, place

    async def ask(self, house: Served, session: str | None, **headers: Any) -> tuple[int, Any, str | None]:
        body, sent = dict(self.body), dict(headers)
        user = sent.pop("user", "ana")
        body |= sent.pop("changed", {})
        if self.place == "header":
            sent["cloister-session"] = session or "new"
        elif session is not None:
            body["conversation"] = session
        answer = await house.ask("POST", self.path, body, user=user, **sent)
        said = answer.json()
        text = (said.get("error") or {}).get("code") or said.get("id")
        return answer.status_code, text, answer.headers.get("cloister-session")


WAYS = [
    Way("/responses", {"input": HELLO}, "body"),
    Way("/chat/completions", {"model": "parrot-1", "messages": ASKED}, "header"),
    Way(
        "/messages", {"model": "parrot-1", "max_tokens": 9, "messages": [{"role": "user", "content": HELLO}]}, "header"
    ),
]


@pytest.fixture(params=WAYS, ids=lambda way: way.path)
def way(request: pytest.FixtureRequest) -> Way:
    found: Way = request.param
    return found


async def conversation(house: Served, user: str = "ana") -> str:
    made = await house.ask("POST", "/conversations", {}, user=user)
    return str(made.json()["id"])


async def count(house: Served, session: str, user: str = "ana") -> int:
    """How many turns the session holds."""
    items = (await house.ask("GET", f"/conversations/{session}/items", user=user)).json()["data"]
    return sum(item["role"] == "user" for item in items)


def undelivered(house: Served) -> None:
    """Let no answer count as written out: as if every connection broke before its end."""

    async def forget(real: Any, args: Any, options: Any) -> Any:
        return Receipt(options["nonce"])

    house.store.answers["forget"] = forget


async def test_a_key_is_one_turn(house: Served, way: Way) -> None:
    """The same request under the same key is answered once, by one turn, as often as it comes."""
    session = await conversation(house)
    answers = [await way.ask(house, session, **KEY) for _ in range(3)]
    assert {status for status, _, _ in answers} == {200}
    assert {where for _, _, where in answers} == {session}
    assert len(house.provider.requests) == 1
    assert await count(house, session) == 1


async def test_a_key_makes_one_session(house: Served, way: Way) -> None:
    """A first turn that comes twice makes one session."""
    answers = [await way.ask(house, None, **KEY) for _ in range(3)]
    assert {status for status, _, _ in answers} == {200}
    assert len({where for _, _, where in answers}) == 1
    assert len(house.provider.requests) == 1


async def test_a_key_with_another_body_is_refused(house: Served, way: Way) -> None:
    """Under a key that was used, anything else is 422, even what changes no word of the question."""
    session = await conversation(house)
    assert (await way.ask(house, session, **KEY))[0] == 200
    for changed in ({"temperature": 0.5}, {"metadata": None}):
        assert (await way.ask(house, session, **KEY, changed=changed))[:2] == (422, "idempotency_key_reused") or (
            way.path == "/messages"
        )
    assert len(house.provider.requests) == 1


async def test_keys_are_each_owners(house: Served, way: Way) -> None:
    """The same key and the same body of two users are two turns (row 77)."""
    anas, bens = await conversation(house), await conversation(house, "ben")
    first, second = await way.ask(house, anas, **KEY), await way.ask(house, bens, user="ben", **KEY)
    assert (first[2], second[2]) == (anas, bens)
    assert len(house.provider.requests) == 2
    new = [await way.ask(house, None, user=user, **KEY) for user in ("ana", "ben")]
    assert new[0][2] != new[1][2]


async def test_keys_are_each_credentials_and_each_routes(house: Served) -> None:
    """What one key of a tenant, or one route, has answered is nothing to another."""
    session = await conversation(house)
    for way in WAYS:
        assert (await way.ask(house, session, **KEY))[0] == 200
    assert len(house.provider.requests) == 3
    await house.ask("POST", "/responses", {"input": HELLO, "conversation": session}, token=True, **KEY)
    assert len(house.provider.requests) == 4


@pytest.mark.parametrize("key", ["", "x" * 256])
async def test_a_key_that_is_none_is_refused(house: Served, way: Way, key: str) -> None:
    """A key of no characters, or of too many, is 400."""
    assert (await way.ask(house, await conversation(house), **{"idempotency-key": key}))[0] == 400
    assert house.provider.requests == []


async def test_what_keeps_nothing_takes_no_key(house: Served) -> None:
    """A request that stores nothing cannot be known again, and says so instead of forgetting the key."""
    for path, body in (
        ("/chat/completions", WAYS[1].body),
        ("/messages", WAYS[2].body),
        ("/responses", {"input": HELLO, "store": False}),
    ):
        answer = await house.ask("POST", path, body, **KEY)
        assert (answer.status_code, answer.json()["error"]["message"][:7]) == (400, "nothing")
    assert house.provider.requests == []


async def test_an_sdk_that_tries_again_finds_its_turn(house: Served, way: Way) -> None:
    """An answer that was not written out in full is found by the SDK's own retry of that very request."""
    session = await conversation(house)
    undelivered(house)
    await way.ask(house, session, **FIRST)
    status, _, where = await again(house, way, session)
    assert (status, where) == (200, session)
    assert len(house.provider.requests) == 1
    assert await count(house, session) == 1


async def again(house: Served, way: Way, session: str | None) -> tuple[int, Any, str | None]:
    """Ask as an SDK does that has had no answer."""
    house.store.answers.pop("forget", None)
    return await way.ask(house, session, **AGAIN)


async def test_a_first_turn_that_is_tried_again_makes_one_session(house: Served, way: Way) -> None:
    """A retry of the turn that made a session finds that session."""
    undelivered(house)
    await way.ask(house, None, **FIRST)
    assert (await again(house, way, None))[0] == 200
    assert len(house.provider.requests) == 1
    listed = (await house.ask("GET", "/conversations")).json()["data"]
    assert len(listed) == 1


async def test_the_same_words_again_are_another_turn(house: Served, way: Way) -> None:
    """Who has had the answer and says the same again is answered again, also if that had to be tried twice."""
    session = await conversation(house)
    await way.ask(house, session, **FIRST)
    await way.ask(house, session, **FIRST)
    assert len(house.provider.requests) == 2
    await way.ask(house, session, **AGAIN)
    assert len(house.provider.requests) == 3
    assert await count(house, session) == 3


async def test_another_request_is_no_retry(house: Served, way: Way) -> None:
    """A retry of anything but the last turn, or after ten minutes, is a turn of its own."""
    session = await conversation(house)
    undelivered(house)
    await way.ask(house, session, **FIRST)
    assert (await again(house, way, session))[0] == 200
    changed: dict[str, Any] = {"metadata": {}} if way.path == "/responses" else {"temperature": 0.5}
    await way.ask(house, session, **AGAIN, changed=changed)
    assert len(house.provider.requests) == 2
    house.clock.move(minutes=11)
    await way.ask(house, session, **AGAIN, changed=changed)
    assert len(house.provider.requests) == 3


async def test_a_response_behind_another_is_found_again(house: Served) -> None:
    """A retry of what went on behind a response goes on nowhere else."""
    first = (await house.ask("POST", "/responses", {"input": HELLO})).json()["id"]
    body = {"input": "And when?", "previous_response_id": first}
    undelivered(house)
    await house.ask("POST", "/responses", body, **FIRST)
    house.store.answers.pop("forget")
    answer = await house.ask("POST", "/responses", body, **AGAIN)
    assert answer.status_code == 200
    assert len(house.provider.requests) == 2
    assert len((await house.ask("GET", "/conversations")).json()["data"]) == 1


async def test_without_an_sdk_nothing_is_filed(house: Served, way: Way) -> None:
    """Who sends neither a key nor a count of tries pays for no record of it."""
    session = await conversation(house)
    house.store.calls.clear()
    await way.ask(house, session)
    assert "forget" not in house.store.names
    (commit,) = [args[0] for name, args, _ in house.store.calls if name == "commit"]
    assert commit.record is None
