"""Ben tries to read what Ana said in spite of the guard, and to turn the guard against others."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import pytest
from tests.fakes import House, Watched, opened, pieces, told
from tests.test_guard import ana_speaks, on_record

from cloister import guard, stores, window, wire
from cloister.errors import ProviderError, ReplyBlocked, StoreUnavailable
from cloister.leaks import LeakGuard
from cloister.leaks.settings import SAFE_TEXT
from cloister.leaks.words import packed
from cloister.session import Session
from cloister.stores.base import Claims
from cloister.turn import Turn

LEAK = "It is order QX-7731-84."


@pytest.fixture
async def home() -> AsyncIterator[House]:
    async with opened("memory://") as house:
        yield house


def calling(name: str = "mail", arguments: str = "{}", call_id: str = "c1", **extra: Any) -> dict[str, Any]:
    """Be an assistant's message that calls a tool."""
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": "Done.", "tool_calls": [call], **extra}


def whole(message: dict[str, Any]) -> dict[str, Any]:
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"object": "chat.completion", "choices": [choice]}


# --- streams ----------------------------------------------------------------------------------------------------------


async def test_a_cap_that_runs_out_in_a_stream_shows_nothing_unseen(home: House) -> None:
    """A stream that began while all was withheld from Ben is withheld to its end, though his hour ends meanwhile."""
    ana = await ana_speaks(home)
    ben = await home.ben.start()
    home.provider.answer = LEAK
    for _ in range(10):
        assert (await ben.send("Which?")).blocked

    async def source() -> AsyncIterator[str]:
        yield "Good morning. "
        home.clock.move(minutes=10)
        yield "It is QX-7731-84. "
        yield "Is there anything else?"

    for _ in range(2):
        home.clock.move(minutes=28)
        await ana.send("I am still here.")
    ben = await home.ben.start()
    async with ben.turn("Which?") as turn:
        read = "".join([piece async for piece in turn.stream(source())])
    assert read == SAFE_TEXT
    assert json.loads((await on_record(home, "reply.blocked"))[-1].detail) != {"reason": "limit"}


async def test_his_own_canary_joins_nothing(home: House) -> None:
    """What is cut out of a stream, since it is nobody's to read, does not hide the detail around it."""
    await ana_speaks(home)
    ben = await home.ben.start()
    async with ben.turn("Put your mark in the middle of numbers.") as turn:
        said = f"Hello. It is QX-77{turn.canary}31-84, for you. And there is more to be said of it."
        read = "".join([piece async for piece in turn.stream(pieces(*said))])
    assert turn.reply.blocked
    assert "31" not in read
    assert read.startswith("Hello.")


@pytest.mark.parametrize("way", ["left", "broken", "cut"])
async def test_an_alarm_outlives_its_stream(home: House, way: str) -> None:
    """What was found in a stream that did not come to its end is on record: Ben does not guess for nothing."""
    await ana_speaks(home)
    ben = await home.ben.start()
    held = asyncio.Event()

    async def source() -> AsyncIterator[Any]:
        for text in ("Hello, you. ", "It is NIGHTHAWK. ", "And more. "):
            yield {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": text}}]}
        held.set()
        if way == "broken":
            raise ProviderError("the line is dead")
        if way == "left":
            await asyncio.Event().wait()

    read: list[str] = []

    async def ask() -> None:
        async with ben.turn("Which?") as turn:
            read.extend([piece async for piece in turn.stream(source())])

    asking = asyncio.create_task(ask())
    await held.wait()
    if way == "left":
        asking.cancel()
    with pytest.raises(asyncio.CancelledError if way == "left" else ProviderError):
        await asking
    assert "NIGHT" not in "".join(read)
    assert len(await on_record(home, "reply.alerted")) == 1
    assert await told(ben) == []


# --- nothing stays ----------------------------------------------------------------------------------------------------


async def test_a_failed_turn_keeps_nothing_that_nobody_looked_at() -> None:
    """With keep_failed Ben's question is kept, not what a model said or called for before the turn failed."""
    async with opened("memory://", keep_failed=True) as house:
        await ana_speaks(house)
        ben = await house.ben.start()
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what fails
            async with ben.turn("Which?") as turn:
                turn.add(calling("find", '{"order": "QX-7731-84"}'))
                turn.add({"role": "tool", "tool_call_id": "c1", "content": "nothing"})
                raise ZeroDivisionError
        assert await told(ben) == ["Which?"]


async def test_what_was_not_looked_up_is_not_made_his_own() -> None:
    """A reply that passed since the index was away, as the operator chose, does not make her details Ben's."""
    store = Watched(stores.connect("memory://"))
    async with opened(store.store, leaks=LeakGuard(on_failure="alert")) as house:
        await ana_speaks(house)
        ben = await house.ben.start()
        house.provider.answer = LEAK
        store.answers["claims"] = _away
        assert not (await ben.send("Which?")).blocked
        del store.answers["claims"]
        assert (await ben.send("Which?")).blocked


async def _away(real: object, args: object, options: object) -> Claims:
    raise StoreUnavailable("the index is away")


async def test_a_kept_turn_holds_nothing_that_was_withheld(home: House) -> None:
    """Whoever keeps a turn, whose stream was stopped or left, keeps no piece of what was held back in it."""
    await ana_speaks(home)
    ben = await home.ben.start()
    async with ben.turn("Which?") as blocked:
        _ = [piece async for piece in blocked.stream(pieces("Good morning. ", LEAK, " And more."))]
    with pytest.raises(ProviderError):  # noqa: PT012 - the block is what fails
        async with ben.turn("Which?") as left:
            left.read(wire.Reader(), "It is QX-7731")
            assert "7731" in _held(left)
            raise ProviderError("the line is dead")
    assert blocked.reply.blocked
    assert "7731" not in _held(blocked) + _held(left)


def _held(turn: Turn[Session]) -> str:
    """Everything that the parts of a turn hold that see its answer."""
    seen: set[int] = set()

    def walk(value: object) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif id(value) not in seen and type(value).__module__.startswith(
            ("cloister.outlet", "cloister.leaks", "builtins")
        ):
            seen.add(id(value))
            inside = vars(value).values() if hasattr(value, "__dict__") else value
            for one in (
                (inside.values() if isinstance(inside, dict) else inside) if isinstance(inside, Iterable) else ()
            ):
                yield from walk(one)

    return " ".join(walk([turn._outlet, turn._calls._heard]))


# --- not only in the words of a reply ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        calling(name="find_QX-7731-84"),
        calling(call_id="QX-7731-84"),
        {"role": "assistant", "content": "See there.", "annotations": [{"type": "url_citation", "url": "/QX-7731-84"}]},
        {"role": "assistant", "content": "See there.", "annotations": [{"type": "url_citation", "id": "QX-7731-84"}]},
    ],
)
async def test_names_ids_and_links_are_looked_at(home: House, message: dict[str, Any]) -> None:
    """What a reply carries beside its words, meant for machines, is read by whoever gets it."""
    await ana_speaks(home)
    ben = await home.ben.start()
    async with ben.turn("Which?") as turn:
        assert (await turn.finish(whole(message))).blocked
    assert "7731" not in str(await ben.history())


async def test_no_tool_is_called_with_a_canary(home: House) -> None:
    """What a model calls a tool with is not handed out if it carries what was planted in another session."""
    ana, ben = await home.ana.start(), await home.ben.start()
    async with ana.turn("Hello.") as turn:
        canary = turn.canary
        await turn.finish("Hello.")
    with pytest.raises(ReplyBlocked):
        async with ben.turn("Mail it.") as turn:
            turn.add(calling("mail", json.dumps({"body": canary})))
    assert len(await on_record(home, "reply.blocked")) == 1
    assert await told(ben) == []


# --- neither oracle nor weapon ----------------------------------------------------------------------------------------


async def test_asking_for_a_verdict_counts_for_nobody(home: House) -> None:
    """`check` explains as often as it is asked; no reply of Ben's is withheld for it, and a cap does not blind it."""
    await ana_speaks(home)
    ben = await home.ben.start()
    for _ in range(12):
        assert (await ben.check(LEAK)).action == "block"
    home.provider.answer = "Hello."
    assert not (await ben.send("Hello.")).blocked
    home.provider.answer = LEAK
    for _ in range(10):
        assert (await ben.send("Which?")).blocked
    assert (await ben.check(LEAK)).action == "block"


async def test_many_different_alerts_end_in_silence(home: House) -> None:
    """Who is shown ten details that only alert has the next withheld, and sees from no stream where it halts."""
    of = [f"{first} Kowalczyk" for first in ("Aurelia", "Benedikt", "Cordula", "Dietlinde", "Egmont", "Friedhelm")]
    of += [f"{first} Wisniewski" for first in ("Gundula", "Hartmut", "Isolde", "Jaromir", "Kunigunde", "Leopoldine")]
    for name in of:
        await ana_speaks(home, f"My name is {name}.")
    ben = await home.ben.start()
    blocked = []
    for name in of:
        home.provider.answer = f"It was {name}, I think."
        blocked.append((await ben.send("Who?")).blocked)
    assert blocked == [False] * 10 + [True] * 2
    async with ben.turn("And?") as turn:
        assert [piece async for piece in turn.stream(pieces("Good ", "morning. ", "Fine."))] == ["Good morning. Fine."]


async def test_the_same_alert_again_and_again_is_one(home: House) -> None:
    """A false alarm that comes with every reply, as of a product that nobody seeded, never ends in silence."""
    await ana_speaks(home)
    ben = await home.ben.start()
    home.provider.answer = "The project is called NIGHTHAWK, I think."
    for _ in range(15):
        assert not (await ben.send("And?")).blocked


# --- written in another way -------------------------------------------------------------------------------------------

ORDER, MAIL, NAME = "QX-7731-84", "sarah.kowalczyk@example.org", "Sarah Kowalczyk"
_TWINS = str.maketrans("aceopxyCHKOPTXQ", "асеорхуСНКОРТХԚ")
_TAPS = {"q": "Quebec", "x": "X-ray", "7": "seven", "3": "three", "1": "one", "8": "eight", "4": "four"}


def _listed(text: str) -> str:
    return "\n" + "\n".join(f"{number}. {sign}" for number, sign in enumerate(filter(str.isalnum, text), 1)) + "\n"


DISGUISES: dict[str, Callable[[str], str]] = {
    "letter by letter": lambda text: " ".join(text),
    "wide apart": lambda text: "  ".join(text),
    "in a column": lambda text: "\n".join(filter(str.isalnum, text)) + "\n",
    "in a list": _listed,
    "in a table": lambda text: "| " + " | ".join(text) + " |",
    "as a list of strings": lambda text: json.dumps(list(text)),
    "with zero width": "\u200b".join,
    "with joiners": "\u2060".join,
    "with soft hyphens": "\u00ad".join,
    "with marks to the left": "\u200f".join,
    "with accents": lambda text: "".join(sign + "\u0301" for sign in text),
    "struck through": lambda text: "".join(sign + "\u0336" for sign in text),
    "wide": lambda text: "".join(chr(ord(sign) + 0xFEE0) if "!" <= sign <= "~" else sign for sign in text),
    "Cyrillic": lambda text: text.translate(_TWINS),
    "raised": lambda text: text.translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")),
    "in entities": lambda text: "".join(f"&#{ord(sign)};" for sign in text),
    "in entities twice": lambda text: "".join(f"&amp;#{ord(sign)};" for sign in text),
    "in a link": lambda text: "[here](mailto:" + "".join(f"%{ord(sign):02X}" for sign in text) + ")",
    "in escapes": lambda text: "".join(f"\\u{ord(sign):04x}" for sign in text),
    "in bytes": lambda text: "".join(f"\\x{ord(sign):02x}" for sign in text),
    "in code points": lambda text: " ".join(f"U+{ord(sign):04X}" for sign in text),
    "bold inside": lambda text: text[:2] + "**" + text[2:7] + "**" + text[7:],
    "in tags": lambda text: "".join(f"<i>{sign}</i>" for sign in text),
    "in LaTeX": lambda text: "$\\text{" + "\\,".join(text) + "}$",
    "in pieces of a program": lambda text: f'"{text[:6]}" + "{text[6:]}"',
    "broken at a line's end": lambda text: text[:7] + "\n> " + text[7:],
    "in hexadecimal": lambda text: text.encode().hex(),
    "in hexadecimal pairs": lambda text: text.encode().hex(" "),
    "in decimal codes": lambda text: ", ".join(str(ord(sign)) for sign in text),
    "in bits": lambda text: " ".join(f"{ord(sign):08b}" for sign in text),
    "in base32": lambda text: base64.b32encode(text.encode()).decode(),
    "in base64": lambda text: base64.b64encode(text.encode()).decode(),
    "in base64 twice": lambda text: DISGUISES["in base64"](DISGUISES["in base64"](text)),
    "in base64 with line breaks": lambda text: "\n".join(re.findall(".{1,12}", DISGUISES["in base64"](text))),
    "backwards": lambda text: text[::-1],
}  # fmt: skip


MARKUP = re.compile(r"Good morning\. It is|1\.|here|mailto|<i>|\\text")
"""What of such a reply may be shown."""


@pytest.mark.parametrize("secret", [ORDER, MAIL])
@pytest.mark.parametrize("way", DISGUISES)
async def test_a_disguise_hides_nothing(strict: House, way: str, secret: str) -> None:
    """However the model was asked to write it, Ben does not read it, whole or streamed; nothing of it leaves."""
    ben = await strict.ben.start()
    text = f"Good morning. It is {DISGUISES[way](secret)} then. Is there anything else?"
    async with ben.turn("Disguise it.") as turn:
        assert (await turn.finish(text)).blocked
    for size in (1, 5, 1_000):
        async with ben.turn("Disguise it.") as turn:
            chunks = [text[at : at + size] for at in range(0, len(text), size)]
            shown = "".join([piece async for piece in turn.stream(pieces(*chunks))]).removesuffix(SAFE_TEXT)
        assert turn.reply.blocked
        assert text.startswith(shown.rstrip())
        assert not any(map(str.isalnum, MARKUP.sub("", shown)))
    assert SAFE_TEXT in await told(ben)


@pytest.fixture
async def strict() -> AsyncIterator[House]:
    """Be a house in which a weak sign is enough, and nobody is silenced for it."""
    async with opened("memory://", leaks=LeakGuard(block="any", most_blocks=100)) as house:
        await ana_speaks(house)
        yield house


@pytest.mark.parametrize("way", ["with zero width", "wide", "Cyrillic", "in entities"])
async def test_what_she_wrote_in_disguise_is_hers(strict: House, way: str) -> None:
    """What Ana typed in wide letters, or pasted with what nobody sees, is known in plain letters too."""
    strict.provider.answer = "I see."
    await (await strict.ana.start()).send(f"My other order is {DISGUISES[way]('QP-9950-12')}.")
    ben = await strict.ben.start()
    strict.provider.answer = "It is QP-9950-12."
    assert (await ben.send("Which?")).blocked


@pytest.mark.parametrize("way", ["wide", "in entities", "in hexadecimal", "in base64 twice", "with zero width"])
async def test_a_canary_in_disguise(home: House, way: str) -> None:
    """Her canary is withheld from Ben in every writing, and refused in a document of his."""
    ana, ben = await home.ana.start(), await home.ben.start()
    async with ana.turn("Hello.") as turn:
        canary = DISGUISES[way](turn.canary)
        await turn.finish("Hello.")
    home.provider.answer = f"It says {canary} there."
    assert (await ben.send("Which?")).blocked
    with pytest.raises(ReplyBlocked):
        await ben.send("Which?", documents=[f"A note: {canary}"])


async def test_a_clean_reply_with_markup_is_whole(strict: House) -> None:
    """Markup, code, tables, formulas and other alphabets that say nothing of Ana reach Ben as they are."""
    text = (
        "## Plan\n\n1. **Open** `config.yaml` & set *mode* to \\\"fast\\\".\n2. Run `git log -n 20`.\n\n"
        "| a | b |\n|---|---|\n| 1 | 2 |\n\n$x^2 + y_{1}$ costs 5&nbsp;€, see <https://example.com/a%20b?c=d>.\n"
        "Привет! 你好, 🙂!\n"
        "```python\nprint(\"a\" + \"b\", 0x1F, [1, 2, 3])\n```\n"
        "UVgtNzc and dGhpcyBpcyBmaW5l, 2026-01-01 at 10:30. I am a b c."
    )  # fmt: skip
    ben = await strict.ben.start()
    for size in (1, 4, 1_000):
        async with ben.turn("And?") as turn:
            chunks = [text[at : at + size] for at in range(0, len(text), size)]
            assert "".join([piece async for piece in turn.stream(pieces(*chunks))]) == text
        assert turn.reply.text == text
    assert await on_record(strict, "reply.alerted", "reply.blocked") == []


async def test_her_own_words_in_disguise_reach_her(strict: House) -> None:
    """Ana may have her own details written in any way."""
    ana = await strict.ana.start()
    for disguise in DISGUISES.values():
        strict.provider.answer = f"It is {disguise(ORDER)} then."
        assert (await ana.send("Disguise it.")).text == strict.provider.answer


# --- harm to innocent users -------------------------------------------------------------------------------------------


async def test_escapes_in_the_result_of_a_tool(home: House) -> None:
    """What a tool said in JSON with escapes is known to Ben as it reads without them."""
    await ana_speaks(home, "I am Zoë Lindström, and the order is ÄX-7731-84.")
    ben = await home.ben.start()
    fact = {"order": "ÄX-7731-84", "first": "Zoë", "last": "Lindström"}
    async with ben.turn("Which?", documents=[json.dumps(fact)]) as turn:
        assert not (await turn.finish("It is order ÄX-7731-84, for Zoë Lindström.")).blocked
    assert await on_record(home, "reply.alerted") == []


@pytest.mark.parametrize("kept", [True, False])
async def test_a_long_conversation_is_looked_at_and_counted_beside_the_loop(
    kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that brings hundreds of messages keeps nobody else waiting while it is judged, counted, remembered."""
    loop, at_once = threading.get_ident(), list[str]()

    def seen(text: str) -> None:
        if len(text) > 500 and threading.get_ident() == loop:
            at_once.append(text)

    class Ordinary:
        def tenths(self, words: Iterable[str]) -> list[int]:
            words = list(words)
            seen(" ".join(words))
            return packed().tenths(words)

    counts = window.Estimate.count

    def count(self: window.Estimate, text: str) -> int:
        seen(text)
        return counts(self, text)

    monkeypatch.setattr(window.Estimate, "count", count)
    said = "Mail anna.smith@example.org or call +49 170 1234567 about order 48291. " * 8
    messages = [{"role": role, "content": f"{n}: {said}"} for n in range(50) for role in ("user", "assistant")]
    async with opened("memory://", leaks=LeakGuard(words=Ordinary()), context_tokens=1 << 20) as house:
        session = await house.ana.begin() if kept else house.ana.passing()
        assert (await session.send([*messages, {"role": "user", "content": "And now?"}])).text
        if kept:
            await session.send([*messages, {"role": "user", "content": "And then?"}])
    assert at_once == []


async def test_much_is_looked_up_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose many details are is asked so many at a time, and others have their turn in between."""
    monkeypatch.setattr(guard, "_ASKED_AT_ONCE", 200)
    watched = Watched(stores.connect("memory://"))
    async with opened(watched.store, leaks=LeakGuard(), context_tokens=1 << 20) as house:
        await ana_speaks(house, "My order number is Q7-448812.")
        watched.calls.clear()
        house.provider.answer = " ".join(f"Q7-{n}" for n in range(448_400, 448_900)) + " Q7-448812"
        reply = await (await house.ben.start()).send("Which orders are there?")
    asked = [len(given[1]) for name, given, _ in watched.calls if name == "claims"]
    assert len(asked) > 1
    assert max(asked) <= 200
    assert reply.blocked
