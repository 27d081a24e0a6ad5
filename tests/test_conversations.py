"""Conversations over HTTP, driven by the openai package as it is installed."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai.types.conversations import Conversation, ConversationDeletedResource, ConversationItemList
from tests.samples import KEPT, SENT, STRANGE
from tests.serving import Listening, Served, served

from cloister import sessions
from cloister.model import Limits
from cloister.server import conversation_items, ids
from cloister.server.settings import Policy, ServerSettings

HELLO: Any = {"role": "user", "content": "hello"}
AGAIN: Any = {"role": "user", "content": "again"}


@pytest.fixture
async def house() -> AsyncIterator[Served]:
    async with served() as house:
        yield house


def text(item: Any) -> str:
    return str(item.content[0].text)


def numbered(count: int, start: int = 0) -> list[Any]:
    return [{"role": "user", "content": f"number {number}"} for number in range(start, start + count)]


def failed(error: pytest.ExceptionInfo[openai.APIStatusError]) -> tuple[int, Any, Any]:
    body: Any = error.value.body
    return error.value.status_code, body["code"], body["param"]


async def all_items(client: openai.AsyncOpenAI, conversation: str, **options: Any) -> list[Any]:
    found: list[Any] = []
    async for item in client.conversations.items.list(conversation, **options):
        found.append(item)
        assert len(found) <= 100, "the pages do not end"
    return found


# --- conversations ----------------------------------------------------------------------------------------------------


async def test_a_conversation_from_beginning_to_end(house: Served) -> None:
    """It is made, read, described anew, ended, and then is no more."""
    ana = house.client()
    made = await ana.conversations.create(metadata={"topic": "demo"})
    assert isinstance(made, Conversation)
    assert made.id.startswith("conv_")
    assert (made.object, made.metadata, made.created_at) == (
        "conversation",
        {"topic": "demo"},
        int(house.clock.now.timestamp()),
    )
    assert await ana.conversations.retrieve(made.id) == made
    changed = await ana.conversations.update(made.id, metadata={"topic": "other", "more": "x"})
    assert changed == await ana.conversations.retrieve(made.id)
    assert changed.metadata == {"topic": "other", "more": "x"}
    assert (await ana.conversations.update(made.id, metadata=None)).metadata == {}
    gone = await ana.conversations.delete(made.id)
    assert isinstance(gone, ConversationDeletedResource)
    assert (gone.id, gone.deleted, gone.object) == (made.id, True, "conversation.deleted")
    with pytest.raises(openai.NotFoundError) as caught:
        await ana.conversations.retrieve(made.id)
    assert failed(caught)[:2] == (404, "session_expired")


def test_the_same_without_await(server: Listening) -> None:
    """The synchronous client, over a real connection, does all of it too, raw and streamed answers included."""
    with server.client("ana") as ana, server.client("ben") as ben:
        made = ana.conversations.create(items=[HELLO], metadata={"a": "b"})
        added = ana.conversations.items.create(made.id, items=[AGAIN])
        assert isinstance(added, ConversationItemList)
        listed = itertools.islice(ana.conversations.items.list(made.id, order="asc", limit=1), 9)
        assert [text(item) for item in listed] == ["hello", "again"]
        found = ana.conversations.items.retrieve(added.data[0].id or "", conversation_id=made.id)
        assert found == added.data[0]
        with pytest.raises(openai.NotFoundError):
            ben.conversations.items.retrieve(found.id or "", conversation_id=made.id)
        raw = ana.conversations.with_raw_response.retrieve(made.id)
        assert raw.parse() == made
        assert raw.headers["x-request-id"].startswith("req_")
        with ana.conversations.with_streaming_response.update(made.id, metadata={}) as streamed:
            assert streamed.parse().metadata == {}
        assert ana.conversations.items.delete(found.id or "", conversation_id=made.id).id == made.id
        assert ana.conversations.delete(made.id).deleted


async def test_it_may_begin_with_items(house: Served) -> None:
    """Up to twenty items are there from the beginning, in their order."""
    ana = house.client()
    made = await ana.conversations.create(items=numbered(20))
    assert [text(item) for item in await all_items(ana, made.id, order="asc")] == [f"number {n}" for n in range(20)]
    with pytest.raises(openai.BadRequestError) as caught:
        await ana.conversations.create(items=numbered(21))
    assert failed(caught) == (400, "invalid_value", "items")
    assert len((await ana.conversations.create(items=None)).id) == len(made.id)


async def test_ids_are_not_chosen_by_clients(house: Served) -> None:
    """What a client calls an item is not its id (row 1)."""
    ana = house.client()
    given: Any = [{**SENT[0], "id": "msg_0_000000000000"}, {**SENT[5], "id": "fc_mine"}]
    made = await ana.conversations.create(items=given)
    one, other = await all_items(ana, made.id, order="asc")
    assert one.id != given[0]["id"]
    assert one.id.startswith("msg_0_")
    assert other.id.startswith("fc_1_")
    with pytest.raises(openai.BadRequestError) as caught:
        await ana.conversations.create(extra_body={"id": "conv_mine"})
    assert failed(caught)[1] == "unknown_parameter"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"metadata": {f"key{n}": "x" for n in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: "x"}}, "metadata"),
        ({"metadata": {"k": "x" * 513}}, "metadata[...]"),
        ({"metadata": {"k": 1}}, "metadata[...]"),
        ({"items": "x"}, "items"),
        ({"items": ["x"]}, "items[0]"),
        ({"items": [HELLO, {"role": "tool", "content": "x"}]}, "items[1].role"),
        ({"items": [{"type": "item_reference", "id": "msg_0_000000000000"}]}, "items[0].id"),
    ],
)
async def test_what_does_not_fit_is_refused(house: Served, body: dict[str, Any], param: str) -> None:
    """A refusal names what is at fault, and nothing is stored."""
    answer = await house.ask("POST", "/conversations", body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert (await house.ask("GET", "/conversations")).json()["data"] == []


async def test_metadata_is_needed_where_it_is_changed(house: Served) -> None:
    """An update that says nothing is refused, and changes nothing."""
    made = await house.client().conversations.create(metadata={"a": "b"})
    answer = await house.ask("POST", f"/conversations/{made.id}", {})
    assert answer.status_code == 400
    assert (await house.client().conversations.retrieve(made.id)).metadata == {"a": "b"}


async def test_metadata_is_kept_in_any_words(house: Served) -> None:
    """Keys and values may be any text, and personal data in them comes back to their owner."""
    metadata = {"empty": "", "größe": "🙂", "who": "ana.lopez@mail.example", "a b\n": "\x00"}
    made = await house.client().conversations.create(metadata=metadata)
    assert (await house.client().conversations.retrieve(made.id)).metadata == metadata


# --- items ------------------------------------------------------------------------------------------------------------


async def test_every_kind_comes_back(house: Served) -> None:
    """Items of all kinds come back with what they were sent with, through all that lies between, one by one too."""
    ana = house.client()
    made = await ana.conversations.create()
    every = [*SENT, *KEPT, *STRANGE]
    for start in range(0, len(every), 20):
        given: Any = every[start : start + 20]
        added = (await house.ask("POST", f"/conversations/{made.id}/items", {"items": given})).json()
        assert (added["object"], added["has_more"]) == ("list", False)
        assert (added["first_id"], added["last_id"]) == (added["data"][0]["id"], added["data"][-1]["id"])
    listed = (await house.ask("GET", f"/conversations/{made.id}/items?order=asc&limit=100")).json()["data"]
    assert [{name: value for name, value in item.items() if name != "id"} for item in listed] == every
    assert len({item["id"] for item in listed}) == len(every)
    assert [item.to_dict(warnings=False) for item in await all_items(ana, made.id, order="asc", limit=7)] == listed
    for item in listed[::7]:
        assert (await house.ask("GET", f"/conversations/{made.id}/items/{item['id']}")).json() == item


async def test_items_come_in_pages(house: Served) -> None:
    """Pages of each size, in each order, joined by the last item's id, are the whole; what was taken out is in none."""
    ana = house.client()
    made = await ana.conversations.create(items=numbered(15))
    for item in (await all_items(ana, made.id))[3:6]:
        await ana.conversations.items.delete(item.id, conversation_id=made.id)
    left = [f"number {n}" for n in range(15) if n not in (9, 10, 11)]
    for limit in (2, 5, 12, 13):
        assert [text(item) for item in await all_items(ana, made.id, limit=limit, order="asc")] == left
        assert [text(item) for item in await all_items(ana, made.id, limit=limit)] == left[::-1]
    page = await ana.conversations.items.list(made.id, limit=12)
    assert (len(page.data), page.has_more) == (12, False)
    page = await ana.conversations.items.list(made.id, limit=11)
    assert (len(page.data), page.has_more, page.last_id) == (11, True, page.data[-1].id)
    empty = await ana.conversations.items.list((await ana.conversations.create()).id)
    assert (empty.data, empty.has_more, empty.last_id) == ([], False, None)


async def test_no_page_is_long(house: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long items come in short pages, and of many only some are read at once; joined, the pages are the whole."""
    most = 2_000
    monkeypatch.setattr(conversation_items, "MOST_BYTES", most)
    ana = house.client()
    made = await ana.conversations.create()
    for start in range(0, 60, 20):
        await ana.conversations.items.create(made.id, items=numbered(20, start))
    long = "word " * most
    await ana.conversations.items.create(made.id, items=[{"role": "user", "content": long}] * 2)
    said = [*[f"number {n}" for n in range(60)], long, long]
    house.store.calls.clear()
    for order in ("asc", "desc"):
        assert [text(item) for item in await all_items(ana, made.id, order=order, limit=100)] in (said, said[::-1])
        page = await ana.conversations.items.list(made.id, order=order, limit=100)
        lengths = [len(item.to_json(indent=None)) for item in page.data]
        assert page.has_more
        assert len(lengths) == 1 or sum(lengths) < 1.5 * most, lengths
    asked = [options["limit"] for name, _, options in house.store.calls if name == "items"]
    assert max(asked) <= 21
    sizes = [len(await all_items(ana, made.id, limit=limit)) for limit in (1, 7, 100)]
    assert sizes == [62] * 3


async def test_twenty_are_listed_where_nobody_says_how_many(house: Served) -> None:
    """A page has the newest twenty; what else is wanted is said by words that this server knows, or refused."""
    ana = house.client()
    made = await ana.conversations.create(items=numbered(20))
    await ana.conversations.items.create(made.id, items=numbered(2, 20), include=["reasoning.encrypted_content"])
    page = await ana.conversations.items.list(made.id, include=["message.output_text.logprobs"])
    assert [text(item) for item in page.data] == [f"number {n}" for n in range(21, 1, -1)]
    for query in ("limit=0", "limit=101", "limit=x", "order=up", "before=1", "after=x&after=y"):
        answer = await house.ask("GET", f"/conversations/{made.id}/items?{query}")
        assert answer.status_code == 400, query


async def test_an_answer_of_several_items_is_paged_and_deleted_as_they_are(house: Served) -> None:
    """A page may end within an answer; whoever takes out a part of it takes out all of it, and the model forgets it."""
    ana = house.client()
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    message = {"role": "assistant", "content": "I look it up.", "reasoning_content": "Hm.", "tool_calls": [call]}
    house.provider.answer = {"choices": [{"message": message, "finish_reason": "tool_calls"}]}
    made = await ana.conversations.create(items=[HELLO])
    session = await house.cloister.user("ana", tenant="acme").resume(ids.session(made.id))
    await session.send("look it up")
    kinds = ["message", "message", "reasoning", "message", "function_call"]
    for limit in range(1, 7):
        assert [one.type for one in await all_items(ana, made.id, limit=limit, order="asc")] == kinds
        assert [one.type for one in await all_items(ana, made.id, limit=limit)] == kinds[::-1]
    items = await all_items(ana, made.id)
    for item in items:
        assert await ana.conversations.items.retrieve(item.id, conversation_id=made.id) == item
    after = await ana.conversations.items.delete(items[0].id, conversation_id=made.id)
    assert isinstance(after, Conversation)
    assert after.id == made.id
    assert await all_items(ana, made.id) == items[3:]
    for item in items[:3]:
        with pytest.raises(openai.NotFoundError):
            await ana.conversations.items.retrieve(item.id, conversation_id=made.id)
    house.provider.answer = None
    await session.send("and now?")
    assert "I look it up." not in str(house.provider.requests[-1].messages)


async def test_what_was_deleted_is_gone(house: Served) -> None:
    """An item that was taken out is found no more, deleted no more, in no list, and no model is sent it."""
    ana = house.client()
    made = await ana.conversations.create(items=[{"role": "system", "content": "Be short."}, *numbered(2)])
    session = await house.cloister.user("ana", tenant="acme").resume(ids.session(made.id))
    for item in await all_items(ana, made.id):
        await ana.conversations.items.delete(item.id, conversation_id=made.id)
        for again in (ana.conversations.items.delete, ana.conversations.items.retrieve):
            with pytest.raises(openai.NotFoundError) as caught:
                await again(item.id, conversation_id=made.id)
            assert failed(caught) == (404, "not_found", None)
    assert await all_items(ana, made.id) == []
    await session.send("hello")
    assert [message["content"] for message in house.provider.requests[-1].messages] == ["hello"]


async def test_too_much_is_not_taken(house: Served) -> None:
    """Twenty items are taken at once, and at least one; a body beyond the limit is not read."""
    made = await house.client().conversations.create()
    path = f"/conversations/{made.id}/items"
    for items in (numbered(21), []):
        answer = await house.ask("POST", path, {"items": items})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "items")
    answer = await house.ask("POST", path, {"items": [{"role": "user", "content": "x" * (1 << 20)}]})
    assert answer.status_code == 413
    assert (await house.ask("GET", path)).json()["data"] == []


async def test_whole_or_not_at_all(house: Served) -> None:
    """One item that cannot be kept, and none of them is."""
    made = await house.client().conversations.create()
    path = f"/conversations/{made.id}/items"
    answer = await house.ask("POST", path, {"items": [HELLO, {"type": "function_call", "call_id": "c", "name": "f"}]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "items[1].arguments")
    assert (await house.ask("GET", path)).json()["data"] == []


async def test_end_users_add_what_users_say() -> None:
    """With a token of their own they send user messages, and others only where their tenant's policy names the role."""
    policies = {"globex": Policy(end_users_may=("assistant",))}
    async with served(options=ServerSettings(policies=policies)) as house:
        ids_of = {}
        for tenant in ("acme", "globex"):
            made = await house.ask("POST", "/conversations", {"items": [HELLO]}, tenant=tenant, token=True)
            ids_of[tenant] = made.json()["id"]
        answer, system = {"role": "assistant", "content": "hi"}, {"role": "system", "content": "x"}
        for tenant, items, status in (
            ("acme", [HELLO], 200),
            ("acme", [HELLO, answer], 403),
            ("acme", [system], 403),
            ("globex", [answer, HELLO], 200),
            ("globex", [system], 403),
            ("globex", [{**SENT[6]}], 403),
        ):
            path = f"/conversations/{ids_of[tenant]}/items"
            for where, body in ((path, {"items": items}), ("/conversations", {"items": items})):
                said = await house.ask("POST", where, body, tenant=tenant, token=True)
                assert said.status_code == status
                assert status == 200 or said.json()["error"]["code"] == "role_not_allowed"
        for tenant, count in (("acme", 2), ("globex", 3)):
            page = await house.ask("GET", f"/conversations/{ids_of[tenant]}/items", tenant=tenant, token=True)
            assert len(page.json()["data"]) == count


async def test_a_session_hides_only_so_much(house: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever takes out more items than a session keeps track of is told so."""
    monkeypatch.setattr(sessions, "MAX_HIDDEN", 1)
    ana = house.client()
    made = await ana.conversations.create(items=numbered(2))
    first, second = await all_items(ana, made.id)
    await ana.conversations.items.delete(first.id, conversation_id=made.id)
    with pytest.raises(openai.BadRequestError) as caught:
        await ana.conversations.items.delete(second.id, conversation_id=made.id)
    assert failed(caught)[1] == "too_many_deleted"
    assert await all_items(ana, made.id) == [second]


# --- lists ------------------------------------------------------------------------------------------------------------


async def test_a_user_lists_conversations(house: Served) -> None:
    """Those that live, newest first, page by page; nobody else's."""
    ana, made = house.client(), []
    for number in range(5):
        house.clock.move(seconds=1)
        made.append(await ana.conversations.create(metadata={"number": str(number)}))
        await house.client("ben").conversations.create()
    await ana.conversations.delete(made.pop(2).id)
    seen: list[Any] = []
    query = "limit=3"
    for more in (True, False):
        page = (await house.ask("GET", f"/conversations?{query}")).json()
        assert (page["object"], page["has_more"]) == ("list", more)
        assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
        seen += page["data"]
        query = f"limit=3&after={page['last_id']}"
    assert [one["id"] for one in seen] == [one.id for one in made[::-1]]
    assert seen[0] == made[-1].to_dict()
    nobody = (await house.ask("GET", "/conversations", user="carl")).json()
    assert nobody == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


async def test_a_foreign_cursor_is_an_unknown_one(house: Served) -> None:
    """A cursor of another's list, of none, and one that is no cursor are refused in the same words (row 80)."""
    ana, ben = house.client(), house.client("ben")
    mine, other, foreign = [await one.conversations.create(items=[HELLO]) for one in (ana, ana, ben)]
    ((others,), (foreigns,)) = await all_items(ana, other.id), await all_items(ben, foreign.id)
    answers = []
    for after in (others.id, foreigns.id, "msg_0_0123456789ab", "msg_5_0123456789ab", "x", "", "a" * 2_000):
        answers.append(await house.ask("GET", f"/conversations/{mine.id}/items?after={after}"))
    assert {(one.status_code, one.content) for one in answers} == {(400, answers[0].content)}
    assert answers[0].json()["error"]["param"] == "after"
    answers = []
    for after in (foreign.id, "conv_" + "A" * 43, "conv_x", "x", "", "cs_" + foreign.id[5:]):
        answers.append(await house.ask("GET", f"/conversations?after={after}"))
    assert {(one.status_code, one.content) for one in answers} == {(400, answers[0].content)}
    assert answers[0].json()["error"]["param"] == "after"


async def test_a_page_costs_the_same_however_long_it_is_before(house: Served) -> None:
    """A page of a long conversation asks the store as often, and for as many items, as one of a short one."""
    costs = []
    for count in (1, 8):
        made = await house.client().conversations.create(items=numbered(20))
        for number in range(count):
            await house.client().conversations.items.create(made.id, items=numbered(20, 20 * number))
        first = (await house.client().conversations.items.list(made.id, limit=5)).last_id
        for query in ("limit=5", "limit=5&order=asc", f"limit=5&after={first}"):
            house.store.calls.clear()
            await house.ask("GET", f"/conversations/{made.id}/items?{query}")
            costs.append([(name, options.get("limit")) for name, _, options in house.store.calls])
    assert costs[:3] == costs[3:]
    assert all(len(calls) <= 6 for calls in costs)


# --- whose it is, and whether it lives --------------------------------------------------------------------------------

_ROUTES: list[tuple[str, str, Any]] = [
    ("GET", "", None),
    ("POST", "", {"metadata": {}}),
    ("DELETE", "", None),
    ("GET", "/items", None),
    ("GET", "/items?after=msg_0_0123456789ab", None),
    ("POST", "/items", {"items": [HELLO]}),
    ("GET", "/items/{item}", None),
    ("DELETE", "/items/{item}", None),
]


@pytest.mark.parametrize(("method", "path", "body"), _ROUTES, ids=lambda one: str(one) if isinstance(one, str) else "")
async def test_foreign_looks_missing(house: Served, method: str, path: str, body: Any) -> None:
    """Another's conversation, living or ended, another tenant's, none and a malformed id are all one (rows 3, 4)."""
    ana, other = house.client(), house.client("ben", "globex")
    foreign = await ana.conversations.create(items=[HELLO])
    ended = await ana.conversations.create()
    await ana.conversations.delete(ended.id)
    elsewhere = await other.conversations.create(items=[HELLO])
    item = (await all_items(ana, foreign.id))[0].id
    answers, traces = [], []
    for name in (
        foreign.id,
        ended.id,
        elsewhere.id,
        ids.conversation(sessions.new_id()),
        "conv_x",
        "resp_x",
        foreign.id[5:],
    ):
        before = len(await house.entries())
        house.store.calls.clear()
        answer = await house.ask(method, f"/conversations/{name}{path.format(item=item)}", body, user="ben")
        calls = [(one, len(args), sorted(options)) for one, args, options in house.store.calls]
        written = [(entry.event[:6], bool(entry.owner)) for entry in (await house.entries())[before:]]
        headers = {key: value for key, value in answer.headers.items() if key != "x-request-id"}
        answers.append((answer.status_code, answer.content, tuple(headers.items())))
        traces.append((calls, written))
    assert answers[0][0] == 404
    assert b'"code":"not_found"' in answers[0][1]
    assert set(answers) == {answers[0]}
    assert all(trace == traces[0] for trace in traces[:4])
    assert all(len(calls) <= len(traces[0][0]) for calls, _ in traces)
    assert await ana.conversations.retrieve(foreign.id) == foreign
    assert len(await all_items(ana, foreign.id)) == 1


@pytest.mark.parametrize(("method", "path", "body"), _ROUTES, ids=lambda one: str(one) if isinstance(one, str) else "")
async def test_an_expired_conversation_says_so_to_its_owner_alone(method: str, path: str, body: Any) -> None:
    """Its owner is told that it has timed out, noticed before or not; nobody else learns that it ever was."""
    async with served(limits=Limits.strict()) as house:
        ana = house.client()
        timed_out, ended = [await ana.conversations.create(items=[HELLO]) for _ in range(2)]
        item = (await all_items(ana, timed_out.id))[0].id
        await ana.conversations.delete(ended.id)
        house.clock.move(hours=1)
        for name in (timed_out.id, timed_out.id, ended.id):
            answer = await house.ask(method, f"/conversations/{name}{path.format(item=item)}", body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "session_expired")
            answer = await house.ask(method, f"/conversations/{name}{path.format(item=item)}", body, user="ben")
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        assert (await house.ask("GET", "/conversations")).json()["data"] == []


@pytest.mark.parametrize(
    "name", ["fc", "msg_9", "msg_0_x", "item_0_0123456789ab", "msg_0_0123456789ab_0", "%2e%2e", "é"]
)
async def test_malformed_items_are_missing_ones(house: Served, name: str) -> None:
    """What has not the shape of an item's id looks like the id of none."""
    made = await house.client().conversations.create(items=[HELLO])
    missing = await house.ask("GET", f"/conversations/{made.id}/items/msg_0_000000000000")
    answer = await house.ask("GET", f"/conversations/{made.id}/items/{name}")
    assert (answer.status_code, answer.content) == (404, missing.content)


async def test_the_prefix_is_part_of_an_id(house: Served) -> None:
    """An item is found by its id as it was given out, not by one like it."""
    made = await house.client().conversations.create(items=[HELLO])
    (item,) = await all_items(house.client(), made.id)
    for like in ("fc_" + item.id[4:], item.id + "_1", item.id.replace("_0_", "_00_"), item.id.upper()):
        assert (await house.ask("GET", f"/conversations/{made.id}/items/{like}")).status_code == 404


async def test_tokens_hold_no_conversations(tmp_path: Any) -> None:
    """Where the store gives out tokens there are no conversations to come back to, and each call says so."""
    async with served(f"token://?ledger=sqlite:///{tmp_path}/ledger.db") as house:
        before = len(await house.entries())
        for method, path, body in [*_ROUTES, ("POST", None, {}), ("GET", None, None)]:
            where = "/conversations" if path is None else "/conversations/conv_x" + path.format(item="msg_1")
            answer = await house.ask(method, where, body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported"), (method, path)
        assert len(await house.entries()) == before
