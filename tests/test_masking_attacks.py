"""Ways around the replacing of personal data: odd places in messages, hostile answers, texts made to be expensive."""

from __future__ import annotations

import asyncio
import json
import pickle
import threading
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes import opened, pieces, told
from tests.steps import growth
from tests.test_masking import DATA, SAID, Rule, asked, called, detail, marks, naked

from cloister.errors import ConfigurationError
from cloister.model import Item
from cloister.scrub import Scrub, Span, placeholders, texts
from cloister.scrub.masking import Mask, shown
from cloister.scrub.placeholders import Placeholders, Restorer, restore
from cloister.scrub.texts import change_json

MAIL = DATA["EMAIL"]
FOREIGN = "[EMAIL~00000000~0000]"


def mask(scrub: Scrub | None = None) -> Mask:
    """A mask with a key of its own."""
    return Mask(scrub or Scrub(), lambda: b"k" * 32)


# --- what is said -----------------------------------------------------------------------------------------------------

_CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
_SAID: dict[str, dict[str, Any]] = {
    "a text that looks like media": {"role": "user", "content": [{"type": "text", "text": f"data: I am {MAIL}"}]},
    "an address that holds text": {"role": "user", "content": [{"type": "text", "text": f"data:text/plain,{MAIL}"}]},
    "a field of a part": {"role": "user", "content": [{"type": "text", "text": "Hi.", "detail": f"I am {MAIL}"}]},
    "the data of a part": {"role": "user", "content": [{"type": "x", "data": f"I am {MAIL}", "format": f"a {MAIL}"}]},
    "the name of a field": {"role": "user", "content": [{"type": "text", "text": "Hi.", MAIL: "x"}]},
    "the name of a file": {
        "role": "user",
        "content": [{"type": "file", "file": {"filename": f"{MAIL}.pdf", "file_data": "data:a/b;base64,AAAA"}}],
    },
    "a field of a call": {"role": "assistant", "content": None, "tool_calls": [{**_CALL, "note": f"I am {MAIL}"}]},
    "a field of a function": {
        "role": "assistant",
        "content": None,
        "tool_calls": [{**_CALL, "function": {"name": "f", "arguments": "{}", "why": [f"I am {MAIL}"]}}],
    },
    "a key in arguments": {
        "role": "assistant",
        "content": None,
        "tool_calls": [{**_CALL, "function": {"name": "f", "arguments": json.dumps({MAIL: 1})}}],
    },
    "arguments that are no JSON": {
        "role": "assistant",
        "content": None,
        "tool_calls": [{**_CALL, "function": {"name": "f", "arguments": '{"to": "' + MAIL.replace("@", r"\u0040")}}],
    },
    "a custom call": {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "custom", "custom": {"name": "f", "input": f"I am {MAIL}"}}],
    },
    "a refusal": {"role": "assistant", "content": None, "refusal": f"Not to {MAIL}."},
    "a transcript": {"role": "assistant", "content": None, "audio": {"id": "a", "transcript": f"It is {MAIL}."}},
    "thoughts that nobody signed": {
        "role": "assistant",
        "content": "Hi.",
        "thinking_blocks": [{"type": "thinking", "thinking": f"It is {MAIL}."}],
    },
    "an annotation": {"role": "assistant", "content": "Hi.", "annotations": [{"type": "x", "title": f"by {MAIL}"}]},
    "a field of one's own": {"role": "user", "content": "Hi.", "data": f"I am {MAIL}", "url": f"I am {MAIL}"},
    "the id of a field of one's own": {"role": "user", "content": "Hi.", "sender": {"id": MAIL, MAIL: True}},
    "a result in JSON": {
        "role": "tool",
        "tool_call_id": "c1",
        "content": json.dumps({"mail": "ana.lopez\u00e9@example.org"}).replace("@", r"\u0040"),
    },
}


@pytest.mark.parametrize("place", _SAID)
async def test_nowhere_in_a_message_is_data_left(place: str) -> None:
    """Wherever in a message data stands, neither model nor store gets it, and its owner reads it as it was."""
    said = _SAID[place]
    calling = {"role": "assistant", "content": None, "tool_calls": [_CALL]}
    result = {"role": "tool", "tool_call_id": "c1", "content": "done"}
    async with opened("memory://") as house:
        items: list[dict[str, Any]] = [{"role": "user", "content": "Hello."}]
        items += [calling, said] if said["role"] == "tool" else [said]
        session = await house.ana.start(items=[*items, *([result] if said.get("tool_calls") else [])])
        await session.send("And now?")
        item = (await session.history())[len(items) - 1]
        given = {"role": item.role, "content": item.content, **(item.extra or {})}
        given |= {"tool_calls": item.tool_calls} if item.tool_calls else {}
        given |= {"tool_call_id": item.tool_call_id} if item.tool_call_id else {}
        assert given == said
        kept = [(one.content, one.tool_calls, one.extra) for one in await session.history(masked=True)]
    for text in (house.provider.seen, str(kept)):
        assert MAIL not in text
        assert "example.org" not in text


async def test_the_store_gets_no_thoughts_of_a_model_that_sees_the_data() -> None:
    """With where="store" what a provider signed holds the data: it is stored without, and sent back as it was."""
    async with opened("memory://", scrub=Scrub(where="store")) as house:
        session = await house.ana.start()
        block = {"type": "thinking", "thinking": f"{SAID}, she says.", "signature": "c2ln"}
        async with session.turn(SAID) as turn:
            content = [block, {"type": "text", "text": f"Hello {DATA['PERSON']}."}]
            await turn.finish({"type": "message", "role": "assistant", "content": content, "stop_reason": "end_turn"})
        assert not naked([(one.content, one.extra) for one in await session.history(masked=True)])
        assert ((await session.history())[1].extra or {})["thinking_blocks"] == [block]
        async with session.turn("And now?") as turn:
            assert turn.anthropic()["messages"][1]["content"][0] == block


async def test_masked_items_carry_no_data_along() -> None:
    """Whoever takes a history masked cannot read the data beside its placeholders either."""
    async with opened("memory://") as house:
        session = await house.ana.start()
        await session.send(SAID)
        for item in await session.history(masked=True):
            assert marks(item.content)
            assert not naked(msgspec.json.encode(item))
            assert not naked(pickle.loads(pickle.dumps(item)).values)


# --- what comes back --------------------------------------------------------------------------------------------------


async def test_what_left_the_window_does_not_come_back() -> None:
    """A placeholder whose item the window dropped is not put back: the model was not sent it with this question."""
    async with opened("memory://", context_tokens=400) as house:
        session = await house.ana.start()
        house.provider.answer = "Fine."
        await session.send(f"My e-mail is {MAIL}. " + "word " * 100)
        mark = marks(asked(house))["EMAIL"]
        await session.send("So it is. " + "word " * 100)
        house.provider.answer = f"It is {mark}."
        reply = await session.send("What is it? " + "word " * 100)
        assert mark not in str(house.provider.requests[-1].messages)
        assert reply.text == f"It is {mark}."


async def test_a_call_that_lost_its_result_mixes_nothing_up() -> None:
    """What the placeholders of an item stand for stays right where a call of it is left out of the window."""
    calls = [
        {"id": id, "type": "function", "function": {"name": "f", "arguments": json.dumps({"to": to})}}
        for id, to in (("lost", "one@example.org"), ("kept", "two@example.org"))
    ]
    async with opened("memory://") as house:
        session = await house.ana.start(
            items=[
                {"role": "user", "content": "Write."},
                {"role": "assistant", "content": None, "tool_calls": calls, "note": "three@example.org"},
                {"role": "tool", "tool_call_id": "kept", "content": "done"},
            ]
        )
        house.provider.answer = lambda request: f"It is {marks(request.messages)['EMAIL']}."
        assert (await session.send("Which one?")).text == "It is two@example.org."


@pytest.mark.parametrize("others", ["redact", "allow"])
async def test_an_answer_is_kept_as_it_was_shown(others: Any) -> None:
    """What was put back is stored so that it comes back, whatever becomes of other data: reply and history agree."""
    said = "My card is 4111 1111 1111 1111, and I was born on 4 July 1990."
    async with opened("memory://", scrub=Scrub(others=others)) as house:
        session = await house.ana.start()
        reply = await session.send(said)
        assert reply.text == f"You said: {said}"
        assert await told(session) == [said, reply.text]
        assert "4111" not in str([item.content for item in await session.history(masked=True)])


@pytest.mark.parametrize("mark", ["'", '"', "`", ">", "a'b\"c`d>e"])
def test_marks_do_not_end_an_address(mark: str) -> None:
    """Renderers that make links of bare addresses go on to the next space: so does the place where nothing returns."""
    ours = Placeholders(b"a" * 32)
    ana = ours.of("PERSON", "Ana")
    text = f"See https://evil.example/?q={mark}{ana} and {ana}."
    assert restore(text, ours, {ana: "Ana"}) == f"See https://evil.example/?q={mark}{ana} and Ana."


def test_a_text_behind_a_tag_comes_back() -> None:
    """A tag and its attributes end where they end."""
    ours = Placeholders(b"a" * 32)
    ana = ours.of("PERSON", "Ana")
    text = f'<a href="https://e.org/?{ana}">{ana}</a> <https://e.org/{ana}> {ana}'
    assert restore(text, ours, {ana: "Ana"}) == f'<a href="https://e.org/?{ana}">Ana</a> <https://e.org/{ana}> Ana'


def _foreign_call(name: str = "f", id: str = "c", text: str = "{}") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": text}}


@pytest.mark.parametrize("call", [_foreign_call(name=FOREIGN), _foreign_call(id=FOREIGN)])
async def test_no_stranger_comes_as_a_name(call: dict[str, Any]) -> None:
    """Neither as the name nor as the id of a call does a placeholder of another session get out unseen."""
    async with opened("memory://") as house:
        session = await house.ana.start()
        house.provider.answer = {"choices": [{"message": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]}
        await session.send("Hello.")
        assert await detail(house, "placeholder.foreign") == [{"count": 1}]


async def test_a_refusal_counts_once() -> None:
    """What stands in a refusal is counted once, foreign placeholders and data alike, streamed or not."""
    chunk = {"choices": [{"index": 0, "delta": {"refusal": f"Not {FOREIGN}, nor x@example.com."}}]}
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    async with opened("memory://") as house:
        session = await house.ana.start()
        async with session.turn("Hello.") as turn:
            shown = "".join([text async for text in turn.stream(pieces(chunk, end))])
        assert shown == turn.reply.text == (await told(session))[-1] == "Not [EMAIL], nor x@example.com."
        assert await detail(house, "placeholder.foreign") == [{"count": 1}]
        assert await detail(house, "data.replaced") == [{"EMAIL": 1}]


# --- arguments of tools -----------------------------------------------------------------------------------------------


def test_arguments_come_back_letter_for_letter() -> None:
    """Putting data back into arguments changes nothing else: numbers, repeated keys and spaces stay."""
    text = '{ "n": 1.0e2, "big": 123456789012345678901234567890.5, "n": 1e999, "to":"[A]", "x": "\\u00e9\\n" }'
    assert change_json(text, lambda one: one.replace("[A]", 'A"b')) == text.replace("[A]", 'A\\"b')


@pytest.mark.parametrize("depth", [500, 5_000, 50_000])
async def test_deeply_nested_arguments(depth: int) -> None:
    """A model that nests its arguments deeply stops nobody's turn."""
    async with opened("memory://", scrub=Scrub(restore_tools={"f"})) as house:
        session = await house.ana.start()
        await session.send(SAID)
        mark = marks(asked(house))["EMAIL"]
        house.provider.answer = called("f", "[" * depth + f'"{mark}"' + "]" * depth)
        reply = await session.send("Go on.")
        assert reply.tool_calls[0]["function"]["arguments"].strip("[]") == f'"{MAIL}"'
        assert (await session.history())[-1].tool_calls == list(reply.tool_calls)


async def test_strangers_do_not_hide_behind_escapes() -> None:
    """A placeholder that is written with the escapes of JSON is known all the same."""
    async with opened("memory://", scrub=Scrub(restore_tools={"f"})) as house:
        session = await house.ana.start()
        await session.send(SAID)
        ours = marks(asked(house))["EMAIL"].replace("~", r"\u007e")
        theirs = FOREIGN.replace("~", r"\u007e")
        house.provider.answer = called("f", f'{{"to": "{ours} {theirs}"}}')
        reply = await session.send("Go on.")
        assert json.loads(reply.tool_calls[0]["function"]["arguments"]) == {"to": f"{MAIL} [EMAIL]"}
        assert await detail(house, "placeholder.foreign") == [{"count": 1}]


async def test_a_value_has_one_placeholder_behind_escapes_too() -> None:
    """A result in JSON that escapes letters means the same value, and comes back without its escapes."""
    async with opened("memory://") as house:
        session = await house.ana.start()
        await session.send("My name is José García.")
        said = marks(asked(house))
        call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        async with session.turn("Look me up.") as turn:
            turn.add({"role": "assistant", "content": None, "tool_calls": [call]})
            result = json.dumps({"text": "Customer: my name is José García."})
            assert turn.add({"role": "tool", "tool_call_id": "c1", "content": result}).text == result
            assert marks(turn.messages[-1]) == said
            reply = await turn.finish(f"Hello {said['PERSON']}.")
        assert reply.text == "Hello José García."
        assert (await told(session))[-2] == result


@pytest.mark.parametrize(
    ("field", "value"), [("ssn", "536904399"), ("date_of_birth", "1980-03-04"), ("zip", "94105"), ("first_name", "ana")]
)
async def test_the_name_of_a_field_says_what_it_holds(field: str, value: str) -> None:
    """In arguments of tools a value is found that only the name of its field tells to be one."""
    async with opened("memory://") as house:
        session = await house.ana.start()
        arguments = json.dumps({"order": "A-1001", field: value, "note": "caf\u00e9\\n"})
        house.provider.answer = called("save", arguments)
        assert (await session.send("Save it.")).tool_calls[0]["function"]["arguments"] == arguments
        (call,) = (await session.history(masked=True))[-1].tool_calls or []
        kept = json.loads(call["function"]["arguments"])
        assert value not in kept[field]
        assert (kept["order"], kept["note"]) == ("A-1001", "caf\u00e9\\n")


# --- what is on record ------------------------------------------------------------------------------------------------


async def test_a_kept_question_is_on_record() -> None:
    """What was replaced in a question that met a failure, and is kept, is on record as well."""
    async with opened("memory://", keep_failed=True) as house:
        session = await house.ana.start()
        with pytest.raises(ZeroDivisionError):
            async with session.turn(f"I am {MAIL}."):
                raise ZeroDivisionError
        assert await detail(house, "data.replaced") == [{"EMAIL": 1}]


async def test_metadata_are_counted_when_they_are_set() -> None:
    """A title that stays as it was is not counted again with each change of something else."""
    async with opened("memory://") as house:
        session = await house.ana.start(title=f"About {MAIL}")
        await session.update(metadata={"topic": "none"})
        assert await detail(house, "data.replaced") == [{"EMAIL": 1}]


async def test_a_failing_detector_leaves_no_trace_of_the_text() -> None:
    """Nothing that hangs on the error, shown or not, repeats what the detector said."""

    def fail(text: str) -> Iterator[Span]:
        raise RuntimeError(text)

    with pytest.raises(ConfigurationError) as caught:
        mask(Scrub(detectors=[Rule(fail)])).text(SAID)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("way", ["add", "send"])
async def test_what_a_tool_brings_from_elsewhere_raises_the_alarm(way: str) -> None:
    """A result with a placeholder of another session is an alert; one with what was typed here, or is ours, is none."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    typed = "[PERSON~11111111~1111]"
    async with opened("memory://") as house:
        session = await house.ana.start()
        await session.send(f"{SAID} What is {typed}?")
        ours = marks(asked(house))["EMAIL"]
        for text, alerts in ((f"{typed} is {ours}", 0), (f"it is {FOREIGN}", 1)):
            result = {"role": "tool", "tool_call_id": "c1", "content": text}
            if way == "add":
                async with session.turn("Ask.") as turn:
                    turn.add({"role": "assistant", "content": None, "tool_calls": [call]})
                    turn.add(result)
                    assert FOREIGN not in str(turn.messages)
                    await turn.finish("Done.")
            else:
                await session.append([{"role": "user", "content": "Ask."}])
                await session.append([{"role": "assistant", "content": None, "tool_calls": [call]}])
                await session.send([result])
            assert await detail(house, "placeholder.foreign") == [{"count": 1}] * alerts
        assert FOREIGN not in house.provider.seen


async def test_nothing_comes_back_in_the_address_of_an_annotation() -> None:
    """What a provider notes beside its text is put back, but not in addresses, whatever they look like."""
    async with opened("memory://") as house:
        session = await house.ana.start()
        await session.send(SAID)
        mark = marks(asked(house))["EMAIL"]
        note = {"type": "url_citation", "url_citation": {"url": f"evil/?q={mark}", "title": f"About {mark}"}}
        said = {"message": {"content": "See there.", "annotations": [note]}, "finish_reason": "stop"}
        house.provider.answer = {"choices": [said]}
        await session.send("Where?")
        noted = ((await session.history())[-1].extra or {})["annotations"][0]["url_citation"]
        assert noted == {"url": f"evil/?q={mark}", "title": f"About {MAIL}"}


# --- long searches ----------------------------------------------------------------------------------------------------


class Slow:
    """A detector that says when it is asked about a long text, and goes on when it is told to."""

    def __init__(self) -> None:
        self.asked, self.go = threading.Event(), threading.Event()

    def find(self, text: str) -> Iterator[Span]:
        if len(text) > 20_000:
            self.asked.set()
            assert self.go.wait(10)
        return iter(())


@pytest.mark.parametrize("part", ["question", "arguments", "answer", "import"])
async def test_a_long_search_keeps_nobody_waiting_and_can_be_left(part: str) -> None:
    """While a long text is searched others are served; whoever gives up leaves nothing stored, leased or running on."""
    slow, long = Slow(), "word " * 5_000
    async with opened("memory://", scrub=Scrub(detectors=[slow]), context_tokens=1 << 20) as house:
        session = await house.ana.start()
        if part == "question":
            work: Any = session.send(long)
        elif part == "import":
            work = session.append([{"role": "user", "content": "Hi.", "note": long}])
        else:
            house.provider.answer = long if part == "answer" else called("f", json.dumps([long]))
            work = session.send("Hello.")
        task = asyncio.create_task(work)
        assert await asyncio.to_thread(slow.asked.wait, 10)
        house.provider.answer = None
        assert (await (await house.ben.start()).send("Hello.")).text == "You said: Hello."
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        slow.go.set()
        assert await told(session) == []
        assert (await session.send("Still there?")).text == "You said: Still there?"


async def test_what_was_said_before_is_searched_once_and_beside(tmp_path: Path) -> None:
    """Old items that nobody has looked at are searched once a turn, however often they are sent, beside the loop."""
    url, long = f"sqlite:///{tmp_path}/x.db", "word " * 5_000
    async with opened(url, scrub=None, context_tokens=1 << 20) as house:
        session = await house.ana.start(system="Be kind. " * 3_000)
        await session.append([{"role": "user", "content": long}])
    seen: list[tuple[int, bool]] = []

    def note(text: str) -> Iterator[Span]:
        seen.append((len(text), threading.current_thread() is threading.main_thread()))
        return iter(())

    async with opened(url, scrub=Scrub(detectors=[Rule(note)]), context_tokens=1 << 20) as house:
        session = await house.ana.resume(session.id)
        async with session.turn("Hello.") as turn:
            for _ in range(3):
                turn.chat()
                turn.add({"role": "assistant", "content": "Wait."})
            await turn.finish("Fine.")
    assert sorted(size for size, _ in seen if size > 1_000) == [len(long), 27_000]
    assert not any(main for size, main in seen if size > 1_000)


# --- expense ----------------------------------------------------------------------------------------------------------


async def test_a_long_value_is_not_multiplied() -> None:
    """A model that repeats the placeholder of a long text a thousand times does not fill the memory."""
    async with opened("memory://", scrub=Scrub(limit=1_000), context_tokens=1 << 20) as house:
        session = await house.ana.start()
        house.provider.answer = lambda request: "".join(marks(request.messages).values()) * 2_000
        reply = await session.send("word " * 20_000)
        assert len(reply.text) < 2_000_000
        assert (await told(session))[-1] == reply.text


def there_and_back(text: str) -> None:
    """Replace *text* wherever it may stand in an item, put it back, and read it as an answer."""
    one = mask()
    arguments = [_foreign_call(text=text), _foreign_call(text=json.dumps({"x": [text]}))]
    item = Item("assistant", text, tool_calls=arguments, extra={"x": text})
    hidden = one.hide(item)
    assert shown(hidden) == item
    one.note([hidden])
    one.answered(hidden)


@pytest.mark.parametrize(
    "again",
    [
        *("~", "[", "\\", '"', "[]", "[EMAIL~", f"{FOREIGN} ", FOREIGN, f"[{FOREIGN}", '{"a":', "\\u0040"),
        *('"\\', '"\\u0041', '\\"'),
    ],
)
def test_steps_grow_with_the_text(again: str) -> None:
    """A text made to be expensive takes four times the steps where it is four times as long."""
    assert growth(lambda size: there_and_back(again * size), 2_000 // len(again), placeholders, texts) < 5


def many_values(count: int) -> None:
    """Take an answer with *count* values, in text and in strings of arguments."""
    one = mask(Scrub(restore_tools={"f"}, limit=1_000_000))
    mails = [f"m{number}@example.org" for number in range(count)]
    hidden = one.hide(Item("user", ", ".join(mails)))
    assert len(hidden.values or ()) == count
    one.note([hidden])
    marked = str(hidden.content).split(", ")
    whole = one.answered(Item("assistant", "\n".join(marked), tool_calls=[_foreign_call(text=json.dumps(marked))]))
    assert whole.content == "\n".join(mails)
    kept = one.hide(whole)
    assert shown(kept) == whole


def test_steps_grow_with_the_values() -> None:
    """An answer with four times as many values takes four times the steps."""
    assert growth(many_values, 100, placeholders, texts) < 5


def test_a_mask_that_reads_all_again_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that learned all values anew for each string would take the square."""
    known = Mask._known

    def anew(one: Mask) -> Mapping[str, str]:
        one._values = None
        return known(one)

    monkeypatch.setattr(Mask, "_known", anew)
    assert growth(many_values, 30, placeholders, texts) > 8


def test_steps_grow_with_the_letters() -> None:
    """So it is where values are made so that each could begin at each letter of an answer."""

    def take(size: int) -> None:
        one = mask(Scrub(restore_tools={"f"}))
        hidden = one.hide(Item("user", ", ".join("a" * number + "@example.org" for number in range(1, 60))))
        one.note([hidden])
        arguments = json.dumps([str(hidden.content), *["a" * 250] * size])
        whole = one.answered(
            Item("assistant", f"{hidden.content} {'a' * 250 * size}", tool_calls=[_foreign_call("f", "c", arguments)])
        )
        assert "~" not in str(whole.content)
        assert shown(one.hide(whole)) == whole

    assert growth(take, 15, placeholders, texts) < 5


@given(st.text(alphabet='"\\a\n', max_size=30))
def test_each_quote_begins_a_literal(text: str) -> None:
    """No quote makes the pattern try in vain, which no step would show: a literal without an end goes to the end."""
    for at, character in enumerate(text):
        assert character != '"' or texts._LITERAL.match(text, at)


# --- properties -------------------------------------------------------------------------------------------------------

_TEXTS = st.text(max_size=12) | st.lists(
    st.sampled_from(
        [
            *DATA.values(),
            FOREIGN,
            "[EMAIL~0000",
            "\\",
            "[",
            "]",
            "~",
            '"',
            "\\u0040",
            "data:",
            "\n",
            "{",
            "}",
            "é",
            "😀",
        ]
    ),
    max_size=6,
).map(" ".join)
_VALUES = st.recursive(
    _TEXTS | st.integers(-5, 5) | st.none() | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(_TEXTS | st.sampled_from(["data", "url", "id"]), inner, max_size=3)
    ),
    max_leaves=8,
)
_CALLS = st.builds(
    lambda kind, text, more: {
        **more,
        "id": "1",
        "type": kind,
        kind: {"name": "f", "arguments" if kind == "function" else "input": text},
    },
    st.sampled_from(["function", "custom"]),
    _TEXTS | _VALUES.map(json.dumps),
    st.dictionaries(_TEXTS, _VALUES, max_size=1),
)
_ITEMS = st.builds(
    Item,
    st.just("assistant"),
    _TEXTS | st.lists(st.dictionaries(_TEXTS, _VALUES, max_size=2).map(lambda part: {**part, "type": "x"}), max_size=2),
    tool_calls=st.none() | st.lists(_CALLS, min_size=1, max_size=2),
    extra=st.none()
    | st.dictionaries(
        _TEXTS | st.sampled_from(["data", "thinking_blocks", "refusal", "audio"]), _VALUES, min_size=1, max_size=3
    ),
)


@given(_ITEMS, st.sampled_from([Scrub(), Scrub(where="store"), Scrub(url="placeholder", ip="placeholder")]))
def test_any_item_comes_back_from_the_store(item: Item, scrub: Scrub) -> None:
    """Whatever an item holds, wherever it holds it, it comes back to its owner from its sealed form as it was."""
    hidden = mask(scrub).hide(item)
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode(hidden), type=Item)
    assert shown(stored) == item


@given(_TEXTS, _TEXTS, st.lists(st.integers(0, 200), max_size=6))
def test_a_streamed_answer_is_the_whole_one(said: str, words: str, cuts: list[int]) -> None:
    """Streamed, whole and stored, an answer reads the same, and twice replaced is once replaced."""
    one = mask()
    hidden = one.hide(Item("user", said))
    one.note([hidden])
    answer = f"{hidden.content} {words} {hidden.content}"
    restorer = one.restorer()
    assert restorer is not None
    places = sorted({0, len(answer), *(cut for cut in cuts if cut < len(answer))})
    streamed = "".join([restorer.feed(answer[a:b]) for a, b in pairwise(places)])
    whole = one.answered(Item("assistant", answer))
    assert streamed + restorer.finish() == whole.content
    kept = one.hide(whole)
    assert shown(kept) == whole
    assert all(count >= 0 for count in one.replaced.values())


def test_a_restorer_has_an_end() -> None:
    """What a restorer puts back is bounded, whatever it is fed."""
    ours = Placeholders(b"a" * 32)
    long = ours.of("PERSON", "x" * 100_000)
    restorer = Restorer(ours, {long: "x" * 100_000})
    assert len(restorer.feed(long * 1_000) + restorer.finish()) < 2_000_000
