"""Personal data in turns: neither model nor store sees it, and its owner reads it as it was."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes import House, Parrot, opened, pieces, told

from cloister.client import AsyncCloister
from cloister.errors import BudgetExceeded, ConfigurationError, ProviderError
from cloister.model import Item
from cloister.providers.base import Request
from cloister.scrub import Scrub, Scrubber, Span
from cloister.scrub.masking import NOTICE, Mask, shown
from cloister.scrub.placeholders import LABELS

DATA = {
    "PERSON": "Ana Lopez",
    "EMAIL": "ana.lopez@example.org",
    "PHONE": "+1 415 555 2671",
    "CREDIT_CARD": "4111 1111 1111 1111",
    "US_SSN": "536-90-4399",
    "IBAN": "DE89 3704 0044 0532 0130 00",
}
SAID = "My name is {PERSON}, my e-mail is {EMAIL}, my phone is {PHONE}, my card is {CREDIT_CARD}.".format(**DATA)
PLACEHOLDER = re.compile(r"\[[A-Z]+~\w{8}~\w{4}\]")


def marks(text: object) -> dict[str, str]:
    """The placeholders in a text, by their label."""
    return {mark[1 : mark.index("~")]: mark for mark in PLACEHOLDER.findall(str(text))}


def naked(text: object) -> list[str]:
    """The personal data of the tests that stands in *text*."""
    return [value for value in DATA.values() if value in str(text)]


def asked(house: House) -> str:
    """The last question as the model got it."""
    return str(house.provider.requests[-1].messages[-1]["content"])


async def detail(house: House, kind: str) -> list[dict[str, Any]]:
    """The details of the entries of one kind."""
    return [json.loads(entry.detail) for entry in await house.entries() if entry.event == kind]


@pytest.fixture
async def house(url: str) -> AsyncIterator[House]:
    async with opened(url) as house:
        yield house


# --- neither model nor store ------------------------------------------------------------------------------------------


async def test_the_model_sees_none_and_the_owner_all(house: House) -> None:
    """What the model is sent and what lies in items holds placeholders; reply and history hold the data."""
    session = await house.ana.start()
    reply = await session.send(SAID)
    assert reply.text == f"You said: {SAID}"
    assert not naked(house.provider.seen)
    assert set(marks(asked(house))) == {"PERSON", "EMAIL", "PHONE", "CARD"}
    assert await told(session) == [SAID, f"You said: {SAID}"]
    kept = await session.history(masked=True)
    assert not naked([item.content for item in kept])
    assert marks(kept[0].content) == marks(kept[1].content) == marks(asked(house))
    async with session.stream("And my name?") as stream:
        house.provider.answer = f"It is {marks(asked(house))['PERSON']}, is it not?"
        assert "".join([text async for text in stream]) == "It is Ana Lopez, is it not? " == stream.reply.text
    again = await house.ana.resume(session.id)
    assert (await told(again))[-1] == "It is Ana Lopez, is it not? "


async def test_a_placeholder_means_the_same_all_session_long(house: House) -> None:
    """One value has one placeholder in a session, however it is spelled; each spelling comes back as it was."""
    session = await house.ana.start()
    await session.send("My e-mail is ana.lopez@example.org.")
    await session.send("Again: ANA.LOPEZ@EXAMPLE.ORG, as I said.")
    first, second = (marks(item.content) for item in (await session.history(masked=True))[::2])
    assert first == second
    assert (await told(session))[2] == "Again: ANA.LOPEZ@EXAMPLE.ORG, as I said."


async def test_two_sessions_share_no_placeholder(house: House) -> None:
    """The same words have other placeholders in another session, of the same user too (row 67)."""
    found = []
    for user in (house.ana, house.ana, house.ben):
        session = await user.start()
        await session.send(SAID)
        found += list(marks(asked(house)).values())
    assert len(set(found)) == len(found) == 12


async def test_the_model_is_told_once_what_placeholders_are(house: House) -> None:
    """One line says so where there are any, behind the system text, and none where there are none."""
    session = await house.ana.start(system="Be kind.")
    await session.send("Hello there.")
    assert house.provider.requests[-1].messages[0]["content"] == "Be kind."
    await session.send(SAID)
    await session.send("Thank you.")
    heads = [message["content"] for message in house.provider.requests[-1].messages if message["role"] == "system"]
    assert heads == [f"Be kind.\n\n{NOTICE}"]
    other = await house.ben.start()
    await other.send(SAID)
    assert house.provider.requests[-1].messages[0] == {"role": "system", "content": NOTICE}


async def test_the_line_counts_in_the_window() -> None:
    """The line about placeholders has to fit as well: a question that fits without it alone is refused."""
    async with opened("memory://", context_tokens=60) as house:
        session = await house.ana.start()
        await session.send("Hello there.")
        with pytest.raises(BudgetExceeded):
            await session.send("My e-mail is ana.lopez@example.org.")


async def test_system_text_is_looked_at_too(house: House) -> None:
    """Personal data in an application's system text does not reach the model, and is known in replies."""
    session = await house.ana.start(system=f"You are talking to {DATA['PERSON']}, {DATA['EMAIL']}.")
    house.provider.answer = lambda request: f"Dear {marks(request.messages)['PERSON']}!"
    assert (await session.send("Hello there.")).text == "Dear Ana Lopez!"
    assert (await session.send("Hello.", system="Her e-mail is ana@example.org.")).text != ""
    assert not naked(house.provider.seen)
    assert "ana@example.org" not in house.provider.seen


async def test_imported_and_appended_items(house: House) -> None:
    """A history that is imported or appended is looked at as what is said; parts, names and fields too."""
    said: list[dict[str, Any]] = [
        {
            "role": "user",
            "content": [{"type": "text", "text": SAID}, {"type": "image_url", "image_url": {"url": "x:"}}],
        },
        {"role": "user", "content": "Hello.", "name": "Ana Lopez", "note": {"from": [DATA["EMAIL"]]}},
    ]
    session = await house.ana.start(items=said[:1])
    added = await session.append(said[1:])
    assert (added[0].extra or {})["note"] == {"from": [DATA["EMAIL"]]}
    await session.send("And now?")
    assert not naked(house.provider.seen)
    assert "name" not in house.provider.requests[-1].messages[-2]
    history = await session.history()
    assert history[0].content == said[0]["content"]
    assert history[1].extra == {"name": "Ana Lopez", "note": {"from": [DATA["EMAIL"]]}}
    assert not naked([(item.content, item.extra) for item in await session.history(masked=True)])


async def test_titles_and_metadata(house: House) -> None:
    """Title and metadata lie masked in the head, and read as they were set; one can change without the other."""
    session = await house.ana.start(title="Chat with Ana Lopez", metadata={"mail": DATA["EMAIL"]})
    await session.update(title="Another chat with Ana Lopez")
    again = await house.ana.resume(session.id)
    assert (again.title, again.metadata) == ("Another chat with Ana Lopez", {"mail": DATA["EMAIL"]})
    assert not naked((again.head.title, again.head.metadata))
    (listed,) = await house.ana.sessions()
    assert listed.title == again.title
    assert again.described()["metadata"] == {"mail": DATA["EMAIL"]}
    assert json.loads(await anext(house.ana.export()))["title"] == again.title


@pytest.mark.plain_ids
async def test_an_export_is_the_owners(house: House) -> None:
    """What is exported for a user is what that user said, without placeholders."""
    session = await house.ana.start()
    await session.send(SAID)
    lines = "".join([line async for line in house.ana.export()])
    assert len(naked(lines)) == 4
    assert not marks(lines)
    assert '"values"' not in lines


async def test_a_repeated_request(house: House) -> None:
    """A request that comes twice gives its owner the same reply, data included."""
    session = await house.ana.start()
    first = await session.send(SAID, idempotency_key="k")
    again = await session.send(SAID, idempotency_key="k")
    assert again.text == first.text == f"You said: {SAID}"
    with pytest.raises(ValueError, match="something else"):
        await session.send(SAID.replace("Lopez", "Lopes"), idempotency_key="k")


async def test_a_failed_question_is_kept_masked() -> None:
    """With `keep_failed` a question that met a failure is stored as any other."""
    async with opened("memory://", keep_failed=True) as house:
        session = await house.ana.start()
        house.provider.answer = ProviderError("down")
        with pytest.raises(ProviderError):
            await session.send(SAID)
        assert await told(session) == [SAID]
        assert not naked((await session.history(masked=True))[0].content)


# --- what comes back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", range(1, 40, 3))
async def test_every_cut_of_a_stream(size: int) -> None:
    """However a stream is cut, what is shown is the whole reply, with nothing of a placeholder in it."""
    async with opened("memory://") as house:
        session = await house.ana.start()
        await session.send(SAID)
        mark = marks(asked(house))
        answer = f"Hello {mark['PERSON']}: {mark['EMAIL']}, {mark['PHONE']} [and] ({mark['CARD']})."
        async with session.turn("What do you know?") as turn:
            source = pieces(*(answer[at : at + size] for at in range(0, len(answer), size)))
            shown = [text async for text in turn.stream(source)]
        expected = "Hello {PERSON}: {EMAIL}, {PHONE} [and] ({CREDIT_CARD}).".format(**DATA)
        assert "".join(shown) == turn.reply.text == expected
        assert not any("~" in text for text in shown)


@pytest.mark.parametrize(
    "link", ["https://evil.example/?q={}", "![x](https://evil.example/{})", "[x]({})", "<a href='{}'>", "mailto:{}"]
)
async def test_nothing_is_carried_out_in_a_link(link: str) -> None:
    """In links and targets of images, placeholders stay: in replies, streams and the history (row 72)."""
    async with opened("memory://") as house:
        session = await house.ana.start()
        await session.send(SAID)
        mark = marks(asked(house))["EMAIL"]
        house.provider.answer = link.format(mark)
        assert (await session.send("Show me.")).text == link.format(mark)
        async with session.turn("Show me.") as turn:
            assert "".join([text async for text in turn.stream(pieces(*link.format(mark)))]) == link.format(mark)
        assert (await told(session))[-1] == link.format(mark)


async def test_typed_placeholders_are_words(house: House) -> None:
    """What a user types that looks like a placeholder is a text as any other: hidden from the model, and theirs."""
    theirs = await house.ben.start()
    await theirs.send(SAID)
    stolen = marks(asked(house))["EMAIL"]
    session = await house.ana.start()
    reply = await session.send(f"What is {stolen}?")
    assert reply.text == f"You said: What is {stolen}?"
    assert stolen not in asked(house)
    assert await told(session) == [f"What is {stolen}?", f"You said: What is {stolen}?"]
    assert "placeholder.foreign" not in await house.events()


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_placeholder_of_another_session_raises_the_alarm(house: House, streamed: bool) -> None:
    """One that the model should not know is neither put back nor passed on, and is an alert in the log (row 67)."""
    theirs = await house.ben.start()
    await theirs.send(SAID)
    stolen = marks(asked(house))["EMAIL"]
    session = await house.ana.start()
    house.provider.answer = f"It is {stolen}."
    if streamed:
        async with session.stream("Which one?") as stream:
            shown = "".join([text async for text in stream])
        reply = stream.reply
        assert shown == reply.text
    else:
        reply = await session.send("Which one?")
    assert reply.text.strip() == "It is [EMAIL]."
    assert (await told(session))[-1] == reply.text
    (entry,) = [entry for entry in await house.entries() if entry.event == "placeholder.foreign"]
    assert (entry.severity, json.loads(entry.detail)) == ("alert", {"count": 1})


async def test_the_alarm_does_not_need_a_whole_answer() -> None:
    """A stream that breaks off behind another's placeholder has raised the alarm all the same."""
    async with opened("memory://") as house:
        session = await house.ana.start()
        async with session.turn("Which one?") as turn:
            chunk = {"choices": [{"index": 0, "delta": {"content": "It is [EMAIL~00000000~0000], "}}]}
            with pytest.raises(ProviderError):
                assert "~" not in "".join([text async for text in turn.stream(pieces(chunk))])
        assert "placeholder.foreign" in await house.events()


async def test_other_formats(house: House) -> None:
    """Requests in the formats of Responses and Anthropic hold placeholders, and their answers are read likewise."""
    session = await house.ana.start()
    async with session.turn(SAID) as turn:
        assert not naked((turn.responses(), turn.anthropic(), turn.chat()))
        mark = marks(turn.responses())["PERSON"]
        message = {"type": "message", "role": "assistant", "content": [{"type": "text", "text": f"Hi {mark}"}]}
        reply = await turn.finish(
            {**message, "stop_reason": "end_turn", "usage": {"input_tokens": 1, "output_tokens": 1}}
        )
    assert reply.text == "Hi Ana Lopez"
    async with session.turn("Again?") as turn:
        part = {"type": "output_text", "text": f"Hi {mark}", "annotations": []}
        output = [{"type": "message", "role": "assistant", "content": [part]}]
        reply = await turn.finish({"object": "response", "status": "completed", "output": output})
    assert reply.text == "Hi Ana Lopez"


async def test_reasoning_and_what_is_signed() -> None:
    """Reasoning is put back for its owner; signed blocks stay as they are, unless they hold another's placeholder."""
    async with opened("memory://") as house:
        session = await house.ana.start()
        for mark, kept in (("", True), ("[EMAIL~00000000~0000]", False)):
            async with session.turn(SAID) as turn:
                thinking = {"type": "thinking", "thinking": f"{marks(turn.chat())['PERSON']} {mark}", "signature": "s"}
                text = {"type": "text", "text": "Hello."}
                answer = {
                    "type": "message",
                    "role": "assistant",
                    "content": [thinking, text],
                    "stop_reason": "end_turn",
                }
                await turn.finish(answer)
            extra = (await session.history())[-1].extra or {}
            assert ("thinking_blocks" in extra) is kept
        assert (await house.events()).count("placeholder.foreign") == 1


# --- tools ------------------------------------------------------------------------------------------------------------


def called(name: str, arguments: str) -> dict[str, Any]:
    """An answer that calls a tool."""
    call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": None, "tool_calls": [call]},
                "finish_reason": "tool_calls",
            }
        ]
    }


async def test_arguments_of_tools() -> None:
    """Only a tool that the operator named gets the data, escaped as JSON wants; what is stored is masked either way."""
    async with opened("memory://", scrub=Scrub(restore_tools={"send_mail"})) as house:
        session = await house.ana.start()
        await session.send(SAID)
        mark = marks(asked(house))
        arguments = json.dumps({"to": mark["EMAIL"], "body": f'Dear "{mark["PERSON"]}",\n…', "cc": "x@example.com"})
        for name, listed in (("send_mail", True), ("search_web", False)):
            house.provider.answer = called(name, arguments)
            reply = await session.send("Write to me.")
            given = json.loads(reply.tool_calls[0]["function"]["arguments"])
            assert given["to"] == (DATA["EMAIL"] if listed else mark["EMAIL"])
            assert given["body"] == f'Dear "{DATA["PERSON"] if listed else mark["PERSON"]}",\n…'
            assert (await session.history())[-1].tool_calls == list(reply.tool_calls)
            stored = (await session.history(masked=True))[-1].tool_calls
            assert not naked(stored)
            assert "x@example.com" not in str(stored)
            house.provider.answer = None
            await session.append([{"role": "tool", "tool_call_id": "call_1", "content": f"sent to {given['to']}"}])
            await session.send("Thank you.")
            assert not naked(house.provider.seen)
            assert "x@example.com" not in house.provider.seen


async def test_tools_between_question_and_reply() -> None:
    """`turn.add` gives calls as the application may run them, and masks calls and results."""
    async with opened("memory://", scrub=Scrub(restore_tools=["look_up"])) as house:
        session = await house.ana.start()
        async with session.turn(SAID) as turn:
            mark = marks(turn.chat())
            item = turn.add(
                called("look_up", json.dumps({"who": mark["PERSON"], "url": f"https://e.org/{mark['EMAIL']}"}))
            )
            assert item.tool_calls is not None
            given = json.loads(item.tool_calls[0]["function"]["arguments"])
            assert given == {"who": "Ana Lopez", "url": f"https://e.org/{mark['EMAIL']}"}
            turn.add({"role": "tool", "tool_call_id": "call_1", "content": f"{DATA['PERSON']} owes 10 EUR"})
            assert not naked(turn.chat())
            reply = await turn.finish(f"{mark['PERSON']}, it is 10 EUR.")
        assert reply.text == "Ana Lopez, it is 10 EUR."
        assert not naked([(item.content, item.tool_calls) for item in await session.history(masked=True)])


async def test_escapes_in_arguments() -> None:
    """Data is found behind JSON escapes, and the arguments come back letter for letter."""
    async with opened("memory://") as house:
        session = await house.ana.start()
        arguments = r'{"to": "ana.lopez\u0040example.org", "text": "line\nAna Lopez\\ and 😀 ana.lopez@example.org"}'
        house.provider.answer = called("note", arguments)
        reply = await session.send("Note this.")
        assert reply.tool_calls[0]["function"]["arguments"] == arguments
        (call,) = (await session.history())[-1].tool_calls or []
        assert call["function"]["arguments"] == arguments
        (stored,) = (await session.history(masked=True))[-1].tool_calls or []
        assert "example.org" not in str(stored)
        json.loads(stored["function"]["arguments"])


# --- settings ---------------------------------------------------------------------------------------------------------


async def test_redaction() -> None:
    """The plain preset leaves a label for good, and puts counts by type on record, never values."""
    async with opened("memory://", scrub=Scrub.seed()) as house:
        session = await house.ana.start()
        said = SAID + " My SSN is 536-90-4399, my zip code is 94105."
        await session.send(said)
        expected = (
            "My name is [NAME], my e-mail is [EMAIL], my phone is [PHONE], my card is [CARD]."
            " My SSN is [SSN], my zip code is [ZIP]."
        )
        assert asked(house) == expected
        assert house.provider.requests[-1].messages[0]["role"] == "user"
        assert await told(session) == [expected, f"You said: {expected}"]
        assert await detail(house, "data.replaced") == [
            {"PERSON": 1, "EMAIL": 1, "PHONE": 1, "CREDIT_CARD": 1, "US_SSN": 1, "ZIP": 1}
        ]


async def test_one_type_differently() -> None:
    """Each type has its own setting, beside each other in one text."""
    async with opened("memory://", scrub=Scrub(email="redact", phone="allow")) as house:
        session = await house.ana.start()
        reply = await session.send(SAID)
        assert DATA["PHONE"] in asked(house)
        assert set(marks(asked(house))) == {"PERSON", "CARD"}
        assert reply.text == f"You said: {SAID}".replace(DATA["EMAIL"], "[EMAIL]")


async def test_before_the_store_alone() -> None:
    """With where="store" the model is sent what was said, and the store holds placeholders."""
    async with opened("memory://", scrub=Scrub(where="store")) as house:
        session = await house.ana.start()
        reply = await session.send(SAID)
        assert asked(house) == SAID
        assert reply.text == f"You said: {SAID}"
        await session.send("And now?")
        assert [message["content"] for message in house.provider.requests[-1].messages][:2] == [SAID, reply.text]
        assert not naked([item.content for item in await session.history(masked=True)])


@pytest.mark.parametrize("off", [None, Scrub(where="off")])
async def test_switched_off(off: Scrub | None) -> None:
    """Without protection everything is as it was said, and the log says that it is off."""
    async with opened("memory://", scrub=off) as house:
        session = await house.ana.start(title="Ana Lopez")
        await session.send(SAID)
        assert asked(house) == SAID
        assert (await session.history(masked=True))[0].content == SAID
        assert "data.replaced" not in await house.events()
        assert {"option": "scrub=None", "what": "personal data"} in await detail(house, "protection.off")


async def test_switched_on_later(tmp_path: Any) -> None:
    """What was said while nothing was replaced is masked as it is sent; what was masked comes back when it is off."""
    url = f"sqlite:///{tmp_path}/x.db"
    async with opened(url, scrub=None) as house:
        session = await house.ana.start()
        await session.send(SAID)
    async with opened(url) as house:
        session = await house.ana.resume(session.id)
        house.provider.answer = lambda request: f"Hello {marks(request.messages)['PERSON']}."
        assert (await session.send("Who am I?")).text == "Hello Ana Lopez."
        assert not naked(house.provider.seen)
    async with opened(url, scrub=None) as house:
        session = await house.ana.resume(session.id)
        await session.send("And now?")
        sent = [message["content"] for message in house.provider.requests[-1].messages]
        assert sent[:4] == [SAID, f"You said: {SAID}", "Who am I?", "Hello Ana Lopez."]


async def test_counts_are_on_record(house: House) -> None:
    """The log counts what was replaced by type, in the commit that stores it, and nothing of an ordinary turn."""
    session = await house.ana.start()
    await session.send("Hello there.")
    assert await detail(house, "data.replaced") == []
    await session.send(f"My e-mail is {DATA['EMAIL']}, and my other one ana@example.com.")
    assert await detail(house, "data.replaced") == [{"EMAIL": 2}]
    assert not naked([entry.detail for entry in await house.entries()])


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"email": "hide"}, "email is"),
        ({"where": "nowhere"}, "where is"),
        ({"restore_tools": "send_mail"}, "restore_tools"),
        ({"limit": 0}, "limit"),
    ],
)
def test_bad_settings(given: dict[str, Any], problem: str) -> None:
    """A setting that is none is refused by name."""
    with pytest.raises(ValueError, match=problem):
        Scrub(**given)
    with pytest.raises(ConfigurationError, match="scrub is a Scrub"):
        AsyncCloister.open("memory://", scrub="yes")  # type: ignore[arg-type]


def test_every_type_has_a_setting() -> None:
    """Each type that the search knows can be set by its name."""
    for kind in LABELS:
        setting: dict[str, Any] = {kind.lower(): "redact"}
        assert Scrub(**setting).action(kind) == "redact"
        assert Scrub().action(kind) == ("allow" if kind in ("URL", "IP") else "placeholder")


# --- detectors --------------------------------------------------------------------------------------------------------


class Rule:
    """A detector of a user's own."""

    def __init__(self, find: Callable[[str], Iterator[Span]]) -> None:
        self.find = find


async def test_a_detector_of_ones_own() -> None:
    """What a user's detector finds is replaced under its own type, or as `others` says."""

    def staff(text: str) -> Iterator[Span]:
        return (Span(*match.span(), "EMPLOYEE_ID") for match in re.finditer(r"E-\d{4}", text))

    async with opened("memory://", scrub=Scrub(detectors=[Rule(staff)])) as house:
        session = await house.ana.start()
        assert (await session.send("I am E-4711.")).text == "You said: I am E-4711."
        assert "E-4711" not in asked(house)
    async with opened("memory://", scrub=Scrub(detectors=[Rule(staff)], others="redact")) as house:
        assert (await (await house.ana.start()).send("I am E-4711.")).text == "You said: I am [EMPLOYEE_ID]."


async def test_a_detector_that_fails() -> None:
    """A search that fails stops the turn: nothing is sent, nothing stored, and the error repeats no text."""

    def fail(text: str) -> Iterator[Span]:
        raise RuntimeError(text)

    async with opened("memory://", scrub=Scrub(detectors=[Rule(fail)])) as house:
        session = await house.ana.start()
        with pytest.raises(ConfigurationError, match="RuntimeError") as caught:
            await session.send(SAID)
        assert not naked(caught.value)
        assert caught.value.__cause__ is None
        assert not house.provider.requests
        assert await told(session) == []


async def test_a_text_beyond_the_limit() -> None:
    """What is too long to be searched is replaced as a whole; it counts as what it is."""
    async with opened("memory://", scrub=Scrub(limit=100)) as house:
        session = await house.ana.start()
        long = SAID * 2
        assert (await session.send(long)).text == f"You said: {long}"
        assert PLACEHOLDER.fullmatch(asked(house))
        assert (await session.history())[0].tokens > 50
    async with opened("memory://", scrub=Scrub(limit=100), context_tokens=500) as house:
        session = await house.ana.start()
        with pytest.raises(BudgetExceeded):
            await session.send("word " * 2_000)


# --- nothing gets out elsewhere ---------------------------------------------------------------------------------------


async def test_no_value_in_logs_errors_or_reprs(caplog: pytest.LogCaptureFixture) -> None:
    """No value that was replaced stands in a log line, an error, a repr or an audit entry."""
    caplog.set_level(logging.DEBUG)
    seen: list[object] = []
    async with opened("memory://", keep_failed=True) as house:
        session = await house.ana.start(title="Ana Lopez", metadata={"mail": DATA["EMAIL"]})
        await session.send(SAID)
        house.provider.answer = ProviderError("down")
        with pytest.raises(ProviderError) as caught:
            await session.send(SAID)
        async with session.turn(SAID) as turn:
            seen += [turn, turn.reply if turn.repeated else "", vars(turn)["_mask"]]
            seen.append(await turn.finish("fine"))
        seen += [session, session.head, await session.history(), await session.history(masked=True), caught.value]
        seen += [entry.detail for entry in await house.entries()]
        seen += [Item("user", SAID, values=[SAID]), house.cloister.scrub]
    assert not naked([repr(one) for one in seen])
    assert not naked(caplog.text)


async def test_a_turn_that_is_over_keeps_no_key(house: House) -> None:
    """Whoever keeps a turn keeps neither the key of its placeholders nor what they stand for."""
    session = await house.ana.start()
    async with session.turn(SAID) as turn:
        await turn.finish("fine")
    mask = vars(turn)["_mask"]
    assert (mask._key, mask._made, dict(mask._values or {}), mask._restored) == (None, None, {}, {})


async def test_a_renewed_session() -> None:
    """A session that comes in the place of a timed-out one has placeholders of its own."""
    async with opened("memory://") as house:
        session = await house.ana.start(system=f"Talk to {DATA['EMAIL']}.")
        await session.send(SAID)
        before = marks(asked(house))
        house.clock.move(hours=1)
        reply = await session.send(SAID)
        assert reply.renewed
        assert reply.text == f"You said: {SAID}"
        assert not set(before.values()) & set(marks(house.provider.requests[-1].messages).values())


# --- properties -------------------------------------------------------------------------------------------------------

_WORDS = st.one_of(
    st.sampled_from(
        [*DATA.values(), SAID, "[EMAIL~00000000~0000]", "[PERSON~k7qm2x9a~w4tz", "\\[", "~", "Dear", "https://e.org/"]
    ),
    st.text(max_size=20),
)
_TEXTS = st.lists(_WORDS, max_size=8).map(" ".join)


@given(
    _TEXTS, st.recursive(_TEXTS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3))
)
def test_an_items_own_values_come_back_exactly(text: str, fields: Any) -> None:
    """Whatever was said comes back letter for letter, and looking twice changes nothing more."""
    mask = Mask(Scrub(url="placeholder"), lambda: b"k" * 32)
    calls = [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": json.dumps(fields, ensure_ascii=flag)}}
        for flag in (True, False)
    ]
    item = Item("assistant", [{"type": "text", "text": text}], tool_calls=calls, extra={"fields": fields})
    hidden = mask.hide(item)
    assert shown(hidden) == item
    json.loads((hidden.tool_calls or [])[0]["function"]["arguments"])
    assert not [value for value in DATA.values() if "@" in value and value in str(hidden.content)]
    again = mask.hide(msgspec.structs.replace(hidden, values=None))
    assert (again.content, again.tool_calls, again.extra) == (hidden.content, hidden.tool_calls, hidden.extra)


@given(_TEXTS)
def test_a_scrubber_by_itself(text: str) -> None:
    """`restore` undoes `scrub`, exactly what it gave and, where there are no links, any text; twice is once."""
    scrubber = Scrubber()
    scrubbed = scrubber.scrub(text)
    assert scrubber.restore(scrubbed) == text
    if "~" not in text:
        assert scrubber.scrub(scrubbed) == scrubbed
    restorer = scrubber.restorer()
    assert "".join([*map(restorer.feed, scrubbed), restorer.finish()]) == scrubber.restore(str(scrubbed))


def test_a_scrubber_puts_replies_back() -> None:
    """A text that somebody made of what `scrub` gave is restored; another scrubber restores nothing of it."""
    scrubber = Scrubber()
    mark = marks(scrubber.scrub(SAID))["EMAIL"]
    assert scrubber.restore(f"Send it to {mark}?") == f"Send it to {DATA['EMAIL']}?"
    assert scrubber.restore(f"https://e.org/{mark}") == f"https://e.org/{mark}"
    assert Scrubber().restore(f"Send it to {mark}?") == "Send it to [EMAIL]?"
    assert [scrubber.scrub(one) for one in ("at 10.0.0.1", "see https://e.org")] == ["at 10.0.0.1", "see https://e.org"]


class Leaky(Parrot):
    """A provider that looks for personal data in what it is sent."""

    @staticmethod
    def said(request: Request) -> str:
        return ", ".join(naked(request.messages)) or "nothing"


@pytest.mark.parametrize(("scrub", "found"), [(Scrub(), "nothing"), (None, DATA["EMAIL"])])
async def test_the_tests_can_fail(scrub: Scrub | None, found: str) -> None:
    """A model that looks for personal data finds none, and finds it where nothing protects it."""
    async with opened("memory://", provider=Leaky(), scrub=scrub) as house:
        assert found in (await (await house.ana.start()).send(SAID)).text
