"""The API's items and a session's: nothing that a client stores is lost, or escapes the mask."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Any

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.conversations.conversation_item import ConversationItem
from openai.types.responses.response_input_item_param import ResponseInputItemParam
from tests.fakes import opened
from tests.samples import DATA, IMAGE, KEPT, SENT, STRANGE

from cloister import wire
from cloister.content import checked
from cloister.model import Item
from cloister.scrub import masking
from cloister.scrub.settings import Scrub
from cloister.server import items
from cloister.server.identity import Caller
from cloister.server.refusals import Refused
from cloister.server.routes import Call
from cloister.server.settings import Policy

EVERY = [*SENT, *KEPT, *STRANGE]
_ITEM_ID = "item_7_0123456789ab"


def named(entry: dict[str, Any]) -> str:
    return f"{entry['type']}-{entry.get('role', '')}"


def bare(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in entry.items() if name != "id"} for entry in entries]


def kept(item: Item) -> tuple[Item, Item]:
    """Give *item* as it is stored, and as its owner gets it back."""
    stored = masking.Mask(Scrub(), lambda: b"k" * 32).hide(checked(item))
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(stored), type=Item)
    return stored, masking.shown(read)


def back(entry: dict[str, Any]) -> dict[str, Any]:
    """Give what an item is that was stored and read."""
    (shown,) = items.shown(kept(items.taken([entry])[0])[1])
    return shown


# --- there and back ---------------------------------------------------------------------------------------------------


def test_every_kind_is_tried() -> None:
    """The samples have each kind of item that the openai package may send."""
    params = [one for one in typing.get_args(ResponseInputItemParam) if "type" in one.__annotations__]
    known = {kind for one in params for kind in _literals(typing.get_type_hints(one)["type"])}
    assert len(known) > 25
    assert known - {entry["type"] for entry in EVERY} == {items.REFERENCE}


def _literals(hint: Any) -> list[str]:
    return [hint] if isinstance(hint, str) else [word for one in typing.get_args(hint) for word in _literals(one)]


@pytest.mark.parametrize("entry", EVERY, ids=named)
def test_a_stored_item_comes_back_as_it_was(entry: dict[str, Any]) -> None:
    """Each field that a client sent comes back, through mask and storage, under an id of ours."""
    shown = back(entry | {"id": "msg_chosen"})
    assert bare([shown]) == [entry]
    assert shown["id"] != "msg_chosen"


@pytest.mark.parametrize("entry", EVERY, ids=named)
def test_what_lies_in_the_store_is_masked_throughout(entry: dict[str, Any]) -> None:
    """There is no second copy of a text that the mask did not see."""
    stored, _ = kept(items.taken([entry])[0])
    said = msgspec.json.encode(msgspec.structs.replace(stored, values=None)).decode()
    assert "mail.example" not in said
    assert ("mail.example" in str(entry)) == bool(stored.values)


@pytest.mark.parametrize("entry", [one for one in [*SENT, *KEPT] if one["type"] != "compaction_trigger"], ids=named)
def test_what_comes_back_is_what_the_client_knows(entry: dict[str, Any]) -> None:
    """What is shown passes the openai package's own types."""
    (shown,) = items.shown(msgspec.structs.replace(items.taken([entry])[0], id=_ITEM_ID))
    pydantic.TypeAdapter(ConversationItem).validate_python(shown)
    assert shown["id"].endswith("_7_0123456789ab")


json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=8) | st.just(DATA),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
words = st.text(max_size=20) | st.just(DATA)
fields = st.dictionaries(st.sampled_from("phase caller created_by namespace x-new".split()), json, max_size=2)
names = st.from_regex(r"[a-z_]{1,12}", fullmatch=True)
part = st.one_of(
    st.fixed_dictionaries({"type": st.just("input_text"), "text": words}),
    st.fixed_dictionaries({"type": st.just("refusal"), "refusal": words}),
    st.fixed_dictionaries(
        {"type": st.just("output_text"), "text": words, "annotations": st.lists(json, max_size=2)}
    ).map(lambda one: {**one, "logprobs": []}),
    st.fixed_dictionaries(
        {"type": st.just("input_image"), "image_url": st.just(IMAGE), "detail": st.sampled_from(["low", "original"])}
    ),
    st.fixed_dictionaries({"type": st.just("input_file"), "file_data": st.just("JVBERi0="), "filename": words}),
    st.fixed_dictionaries({"type": st.just("from_the_future"), "text": words, "more": json}),
)
parts = st.lists(part, min_size=1, max_size=4)


def entry(**of: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(fields, st.fixed_dictionaries({"status": st.sampled_from(["completed", "incomplete"]), **of})).map(
        lambda both: {**both[0], **both[1]}
    )


entries = st.one_of(
    entry(type=st.just("message"), role=st.sampled_from(["user", "assistant", "system", "developer"]), content=parts),
    entry(type=st.just("function_call"), call_id=names, name=names, arguments=words),
    entry(type=st.just("custom_tool_call"), call_id=names, name=names, input=words),
    entry(
        type=st.sampled_from(["function_call_output", "custom_tool_call_output"]), call_id=names, output=words | parts
    ),
    entry(type=st.sampled_from([one["type"] for one in KEPT] + ["a_new_one"]), output=json, content=json, text=words),
)


@given(st.lists(entries, max_size=2))
def test_items_come_back(given: list[dict[str, Any]]) -> None:
    """Whatever an item holds comes back, one for one, through mask and storage."""
    read = [kept(item)[1] for item in items.taken(given)]
    assert bare([shown for item in read for shown in items.shown(item)]) == given


@given(entries)
def test_nothing_empty_is_sent(entry: dict[str, Any]) -> None:
    """What is made of an item for a model says something, or is nothing at all."""
    for message in wire.chat(items.taken([entry])):
        assert message["content"] is not None or message["tool_calls"]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (
            {"role": "user", "content": "hello"},
            {"type": "message", "content": [{"type": "input_text", "text": "hello"}], "status": "completed"},
        ),
        (
            {"role": "assistant", "content": "hello", "type": None, "status": None},
            {
                "type": "message",
                "content": [{"type": "output_text", "text": "hello", "annotations": [], "logprobs": []}],
                "status": "completed",
            },
        ),
        (
            {"role": "user", "type": "message", "content": [{"type": "input_image", "image_url": IMAGE}]},
            {"content": [{"type": "input_image", "image_url": IMAGE, "detail": "auto"}], "status": "completed"},
        ),
        (
            {
                "role": "assistant",
                "type": "message",
                "content": [{"type": "output_text", "text": "Ana", "logprobs": [{"token": "A"}, {"token": "na"}]}],
            },
            {
                "content": [{"type": "output_text", "text": "Ana", "annotations": [], "logprobs": []}],
                "status": "completed",
            },
        ),
        ({"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}, {"status": "completed"}),
        ({"type": "compaction", "encrypted_content": "x"}, {}),
    ],
)
def test_what_is_left_out_is_filled_in(given: dict[str, Any], shown: dict[str, Any]) -> None:
    """Text is shown as a part, and state and kind are there; what a model weighed up letter by letter is not kept."""
    assert bare([back(given)]) == [given | shown]


def test_plain_messages_take_no_more_room() -> None:
    """What would be shown just so anyway is not stored twice."""
    for item in items.taken([{"role": "user", "content": "hello"}, SENT[5], SENT[6]]):
        assert item.extra is None


# --- what a model is sent ---------------------------------------------------------------------------------------------


async def test_models_are_sent_the_known_and_nothing_else() -> None:
    """What nobody knows, or no chat has, is stored and sent to no model; words and calls are sent as any others."""
    marked = [{**entry, "more": "KEPT"} for entry in [*SENT[:2], *KEPT, *STRANGE[1:2]]]
    async with opened("memory://", scrub=None, context_tokens=100_000) as house:
        session = await house.ana.start(items=items.taken(marked))
        await session.append(items.taken([SENT[5], KEPT[0], SENT[7], SENT[8], STRANGE[2], SENT[6]]))
        await session.send("and now?")
        (request,) = house.provider.requests
        assert "KEPT" not in house.provider.seen
        roles = [(message["role"], message.get("tool_call_id")) for message in request.messages]
        assert roles == [
            ("user", None),
            ("system", None),
            ("assistant", None),
            ("tool", "call_2"),
            ("tool", "call_1"),
            ("user", None),
        ]
        assert [call["id"] for call in request.messages[2]["tool_calls"]] == ["call_1", "call_2"]
        history = await session.history()
        assert len(history) == len(marked) + 6 + 2


# --- what no client made ----------------------------------------------------------------------------------------------


def answered(answer: object) -> list[dict[str, Any]]:
    return items.shown(msgspec.structs.replace(wire.answer_item(wire.read(answer)), id=_ITEM_ID))


def test_an_answer_is_several_items() -> None:
    """What a model thought, said and called are items of their own, each with an id by which it is found."""
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    calls = [call, {**call, "id": "call_2"}]
    message = {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": calls}
    shown = answered({"choices": [{"message": message, "finish_reason": "tool_calls"}]})
    assert [(entry["type"], entry["id"]) for entry in shown] == [
        ("reasoning", "rs_7_0123456789ab"),
        ("message", "msg_7_0123456789ab"),
        ("function_call", "fc_7_0123456789ab"),
        ("function_call", "fc_7_0123456789ab_1"),
    ]
    assert shown[0]["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert (shown[2]["call_id"], shown[2]["name"]) == ("call_1", "look")
    adapter = pydantic.TypeAdapter(ConversationItem)
    for entry in shown:
        adapter.validate_python(entry)


def test_answers_of_each_format_are_shown() -> None:
    """Refusals, notes, calls of other kinds and what other providers call thinking are as this API has them."""
    refused = {"choices": [{"message": {"content": None, "refusal": "No."}, "finish_reason": "stop"}]}
    assert [entry["content"] for entry in answered(refused)] == [[{"type": "refusal", "refusal": "No."}]]

    note = {"type": "url_citation", "url_citation": {"url": "https://a.example/", "title": "A"}}
    noted = {"choices": [{"message": {"content": "See A.", "annotations": [note]}, "finish_reason": "stop"}]}
    (shown,) = answered(noted)
    assert shown["content"][0]["annotations"] == [{"type": "url_citation", "url": "https://a.example/", "title": "A"}]

    output = [
        {"type": "reasoning", "id": "rs_theirs", "summary": [{"type": "summary_text", "text": "Hm."}]},
        {"type": "custom_tool_call", "id": "x", "call_id": "c", "name": "run", "input": "ls"},
    ]
    thought, called = answered({"output": output, "status": "completed"})
    assert (thought["id"], thought["summary"][0]["text"]) == ("rs_7_0123456789ab", "Hm.")
    assert (called["type"], called["input"]) == ("custom_tool_call", "ls")

    blocks = [{"type": "thinking", "thinking": "Hm.", "signature": "x"}, {"type": "text", "text": "Yes."}]
    thought, said = answered({"type": "message", "content": blocks, "stop_reason": "end_turn", "model": "m"})
    assert thought["content"][0]["text"] == "Hm."
    assert said["content"][0]["text"] == "Yes."


def test_messages_of_the_chat_format_are_shown() -> None:
    """What came by the chat format, or from the library, is shown in this one."""
    image = {"type": "image_url", "image_url": {"url": IMAGE}}
    given = wire.item({"role": "user", "content": [{"type": "text", "text": "look"}, image]})
    (shown,) = items.shown(given)
    assert shown["content"] == [
        {"type": "input_text", "text": "look"},
        {"type": "input_image", "image_url": IMAGE, "detail": "auto"},
    ]
    (shown,) = items.shown(Item("tool", "42", tool_call_id="call_1"))
    assert (shown["type"], shown["output"]) == ("function_call_output", "42")


@pytest.mark.parametrize(
    "api", [1, "x", [], {}, {"type": "message"}, {"type": "message", "content": [{}]}, {"type": "function_call"}]
)
def test_a_field_of_that_name_from_elsewhere_does_no_harm(api: Any) -> None:
    """An application may have called something of its own so; its items are shown all the same."""
    (shown,) = items.shown(Item("user", "hello", extra={"api": api}))
    assert shown["type"] in ("message", "function_call")


# --- refusals ---------------------------------------------------------------------------------------------------------


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


@pytest.mark.parametrize(
    ("wrong", "param", "code"),
    [
        ({}, "items[1].type", "invalid_value"),
        ({"type": 1}, "items[1].type", "invalid_value"),
        ({"type": "two words"}, "items[1].type", "invalid_value"),
        ({"type": "x" * 65}, "items[1].type", "invalid_value"),
        ({"role": "critic", "content": "x"}, "items[1].role", "invalid_value"),
        ({"role": ["user"], "content": "x"}, "items[1].role", "invalid_value"),
        ({"role": "user"}, "items[1].content", "invalid_value"),
        ({"role": "user", "content": []}, "items[1].content", "invalid_value"),
        ({"role": "user", "content": 1}, "items[1].content", "invalid_value"),
        (user("x"), "items[1].content[0]", "invalid_value"),
        (user({"type": "input_text"}), "items[1].content[0].text", "invalid_value"),
        (user({"type": "input_text", "text": 1}), "items[1].content[0].text", "invalid_value"),
        (user({"type": "input_image"}), "items[1].content[0].image_url", "invalid_value"),
        (user({"type": "input_image", "file_id": "file-1"}), "items[1].content[0].file_id", "unsupported"),
        (user({"type": "input_file", "file_id": "file-1"}), "items[1].content[0].file_id", "unsupported"),
        (user({"type": "input_file", "file_url": "https://a"}), "items[1].content[0].file_url", "unsupported"),
        (user({"type": "input_file"}), "items[1].content[0].file_data", "invalid_value"),
        (user({"type": "input_file", "file_data": "", "filename": 1}), "items[1].content[0].filename", "invalid_value"),
        (user({"type": "input_audio", "input_audio": "x"}), "items[1].content[0].input_audio", "invalid_value"),
        ({"type": "function_call", "name": "f", "arguments": "{}"}, "items[1].call_id", "invalid_value"),
        (
            {"type": "function_call", "call_id": "a b", "name": "f", "arguments": ""},
            "items[1].call_id",
            "invalid_value",
        ),
        ({"type": "function_call", "call_id": "c", "name": "", "arguments": ""}, "items[1].name", "invalid_value"),
        ({"type": "function_call", "call_id": "c", "name": "f"}, "items[1].arguments", "invalid_value"),
        ({"type": "custom_tool_call", "call_id": "c", "name": "f"}, "items[1].input", "invalid_value"),
        ({"type": "function_call_output", "call_id": "c"}, "items[1].output", "invalid_value"),
        ({"type": "function_call_output", "call_id": 1, "output": ""}, "items[1].call_id", "invalid_value"),
        ({"type": "item_reference", "id": "msg_1"}, "items[1]", "unsupported"),
        ({"type": "new", "x": "\ud800"}, "items[1]", "invalid_value"),
        ({"type": "new", "x": 2**64}, "items[1]", "invalid_value"),
        ({"type": "new", "x": float("inf")}, "items[1]", "invalid_value"),
    ],
)
def test_what_cannot_be_kept_is_refused(wrong: dict[str, Any], param: str, code: str) -> None:
    """A refusal names the part that is at fault, and repeats nothing of it."""
    with pytest.raises(Refused) as caught:
        items.taken([{"role": "user", "content": "fine"}, wrong])
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)
    assert "two words" not in caught.value.message


def test_depth_is_bounded() -> None:
    """What is nested without end is refused, wherever it stands."""
    deep: Any = "x"
    for _ in range(100):
        deep = [deep]
    for entry in ({"type": "new", "x": deep}, user({"type": "new", "x": deep}), {**SENT[0], "x": deep}):
        with pytest.raises(Refused, match="nested"):
            items.taken([entry])


# --- who may send what ------------------------------------------------------------------------------------------------


def call(scope: Any, *may: str) -> Call:
    caller = Caller(scope, "acme", "ana" if scope == "user" else None, "key_1")
    return Call(caller, "POST /v1/responses", Policy(end_users_may=may), "req_1", {}, None, {})


@pytest.mark.parametrize("entry", EVERY, ids=named)
def test_end_users_send_user_messages_only(entry: dict[str, Any]) -> None:
    """Whatever is not said by a user is refused to an end user, and nothing to a back end."""
    items.allowed(call("service"), [entry])
    if entry.get("role") == "user":
        items.allowed(call("user"), [entry])
        return
    with pytest.raises(Refused) as caught:
        items.allowed(call("user"), [SENT[0], entry])
    assert (caught.value.status, caught.value.code, caught.value.param) == (403, "role_not_allowed", "items[1]")
    items.allowed(call("user", "system", "developer", "assistant", "tool"), [entry])


@pytest.mark.parametrize(
    ("entry", "role"),
    [
        (SENT[1], "system"),
        (SENT[2], "developer"),
        (SENT[4], "assistant"),
        (SENT[5], "assistant"),
        (SENT[6], "tool"),
        (KEPT[0], "assistant"),
        ({"type": "new"}, "assistant"),
        ({"type": "new_output"}, "tool"),
    ],
)
def test_a_tenant_may_let_its_users_send_more(entry: dict[str, Any], role: str) -> None:
    """The policy names each role by itself: to have another does not help."""
    roles = {"system", "developer", "assistant", "tool"}
    items.allowed(call("user", role), [entry])
    with pytest.raises(Refused):
        items.allowed(call("user", *(roles - {role})), [entry])


# --- references -------------------------------------------------------------------------------------------------------


async def test_a_reference_is_to_an_item_of_the_same_session() -> None:
    """An item is referred to by its id, with or without saying that this is a reference; others' do not exist."""
    async with opened("memory://") as house:
        session, other = await house.ana.start(), await house.ana.start()
        (stored,) = await session.append(items.taken([SENT[3]]))
        (foreign,) = await other.append(items.taken([SENT[3]]))
        (shown,) = items.shown(stored)
        for kind in ({}, {"type": None}, {"type": "item_reference"}):
            reference = {"id": shown["id"], **kind}
            assert await items.resolved(session, [SENT[0], reference]) == [SENT[0], shown]
        refusals = []
        for name in (items.shown(foreign)[0]["id"], "msg_0_000000000000", "rs_" + shown["id"][4:], "msg_9", "", None):
            with pytest.raises(Refused) as caught:
                await items.resolved(session, [{"type": "item_reference", "id": name}])
            refusals.append((caught.value.status, caught.value.message, caught.value.param))
        assert set(refusals) == {(400, refusals[0][1], "items[0].id")}
        with pytest.raises(Refused):
            await items.resolved(None, [{"id": shown["id"]}])
