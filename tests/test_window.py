"""The window: counting tokens, and fitting a conversation into a budget."""

from __future__ import annotations

import itertools
import random
import re
import string
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.texts import ENGLISH, EVERYTHING, OTHER

from cloister.errors import BudgetExceeded
from cloister.model import Item
from cloister.vocabulary import CHARACTERS, LOWER, WORDS
from cloister.window import (
    IMAGE_TOKENS,
    MESSAGE_TOKENS,
    PRIMING_TOKENS,
    Counter,
    Estimate,
    Exact,
    context_tokens,
    counter_for,
    fit,
    item_tokens,
    options_tokens,
    tools_tokens,
)

VOCABULARIES = ("o200k_base", "cl100k_base")
ESTIMATE = Estimate()


@pytest.fixture(scope="module")
def exact() -> list[Exact]:
    """Give the exact counters; a laptop may do without the extra."""
    pytest.importorskip("bpe_openai")
    return [Exact(name) for name in VOCABULARIES]


def most(exact: list[Exact], text: str) -> int:
    return max(counter.count(text) for counter in exact)


# --- the estimate ---


@pytest.mark.parametrize("text", EVERYTHING)
def test_estimate_is_never_under(exact: list[Exact], text: str) -> None:
    """The estimate is at least the exact count, for every kind of text."""
    assert ESTIMATE.count(text) >= most(exact, text)


@pytest.mark.parametrize("text", [text for texts in ENGLISH.values() for text in texts])
def test_estimate_of_english_is_near(exact: list[Exact], text: str) -> None:
    """On English prose the estimate is within 1.6 times the exact count of either vocabulary."""
    assert ESTIMATE.count(text) <= 1.6 * min(counter.count(text) for counter in exact)


@pytest.mark.parametrize(("kind", "limit"), [("German", 2.8), ("Chinese", 2.5), ("code", 2.6), ("base64", 1.8)])
def test_estimate_of_other_text_is_useful(exact: list[Exact], kind: str, limit: float) -> None:
    """Other kinds of text keep a fair part of the window."""
    text = "\n".join(OTHER[kind])
    assert ESTIMATE.count(text) <= limit * min(counter.count(text) for counter in exact)


LETTERS = {
    "lower case": string.ascii_lowercase,
    "upper case": string.ascii_uppercase,
    "any case": string.ascii_letters + string.digits + "+/=",
    "hex": "0123456789abcdef",
    "digits": string.digits + ".,:-",
    "punctuation": string.punctuation + " ",
    "space": " \n\t\r",
    "printable": string.printable,
    "Latin": "äöüßéèàçñõåøæœłşğžčěřảạộư ",
    "Cyrillic": "абвгдежзийклмнопрстуфхцчшщъыьэюя ",
    "Arabic": "ابتثجحخدذرزسشصضطظعغفقكلمنهويةىَُِّْ ",
    "Greek and Hebrew": "αβγδεζηθικλμνξοπρστυφχψω אבגדהוזחטיכלמנסעפצקרשת",
    "Chinese": "的一是不了人我在有他这中大来上国龃龉饕餮鬱臺",
    "Japanese": "あいうえおかきくけこアイウエオ日本語薔薇",
    "Korean": "가나다라마바사아자차뷁쉙안녕 ",
    "Thai and Hindi": "กขคงจฉชสวัดีครับ नमस्तेकपखग",
    "rare": "ᚠᚢᚦሰላምᏣᎳᎩ𐎀𐎁ꙮ𝕳ﷺཡིགខ្មែသිං",
    "emoji": "😀🎉👍🏽👩\u200d\ufe0f🇩🇪❤✨🪿",
}
PIECES = st.one_of(
    *[st.text(letters, min_size=1, max_size=25) for letters in LETTERS.values()],
    st.sampled_from(EVERYTHING),
    st.builds(
        lambda character, times: character * times, st.sampled_from(string.punctuation + " \n\t"), st.integers(1, 200)
    ),
    st.text(max_size=10),
)


@given(st.lists(PIECES, min_size=1, max_size=8), st.sampled_from(["", " ", "\n"]))
def test_estimate_is_never_under_for_mixtures(exact: list[Exact], pieces: list[str], joint: str) -> None:
    """The estimate is at least the exact count for mixtures of alphabets, runs and sentences."""
    text = joint.join(pieces)
    assert ESTIMATE.count(text) >= most(exact, text)


def test_estimate_is_never_under_for_random_words(exact: list[Exact]) -> None:
    """Letters drawn at random, which no vocabulary knows, are not taken for English."""
    rng = random.Random(1)
    for letters in (string.ascii_lowercase, string.ascii_letters, string.ascii_uppercase):
        for _ in range(200):
            text = " ".join("".join(rng.choices(letters, k=rng.randint(1, 14))) for _ in range(rng.randint(1, 20)))
            assert ESTIMATE.count(text) >= most(exact, text), text


@pytest.mark.parametrize("text", ["", "\ud800", "a\udfffb" * 3, "\x00\x7f", "<|endoftext|><|im_start|>system"])
def test_estimate_takes_any_text(exact: list[Exact], text: str) -> None:
    """Empty, broken and special text is counted, never refused, by either kind of counter."""
    assert ESTIMATE.count(text) >= most(exact, text) >= 0


@pytest.mark.parametrize("unit", [" ", "a", "aB", "Abc", "é", "\n ", "'", "1", " .", "\r\n", "漢", "bcdf", "a-"])
def test_estimate_grows_with_the_text(unit: str) -> None:
    """Twenty times the text costs at most about twenty times as much: counts are linear, and so are the steps."""
    once, long = ESTIMATE.count(unit * 500), ESTIMATE.count(unit * 10_000)
    assert 15 * once <= long <= 25 * once


def test_words_are_single_tokens(exact: list[Exact]) -> None:
    """Every listed word and character is one token in both vocabularies."""
    forms = [f" {form}" for word in WORDS.split() for form in (word, word.capitalize())]
    forms += [f" {word}" for word in LOWER.split()]
    listed = re.compile(f"[{CHARACTERS}]")
    singles = [character for character in map(chr, range(0x80, 0x10000)) if listed.fullmatch(character)]
    assert len(singles) > 1_000
    assert [text for text in forms + singles if most(exact, text) != 1] == []


# --- the exact counter ---


def test_special_tokens_are_text(exact: list[Exact]) -> None:
    """What looks like a special token is counted as the text that it is."""
    for counter in exact:
        assert counter.count("<|endoftext|>") > 1


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("gpt-4o-mini", "o200k_base"),
        ("gpt-4.1", "o200k_base"),
        ("gpt-5.1-chat-latest", "o200k_base"),
        ("o3-mini", "o200k_base"),
        ("openai/gpt-4o", "o200k_base"),
        ("ft:gpt-4o-2024-08-06:acme::abc", "o200k_base"),
        ("gpt-4", "cl100k_base"),
        ("gpt-4-turbo-2024-04-09", "cl100k_base"),
        ("gpt-3.5-turbo", "cl100k_base"),
        ("deepseek-chat", "estimate-1"),
        ("claude-sonnet-4-5", "estimate-1"),
        (None, "estimate-1"),
    ],
)
def test_counter_for_a_model(exact: list[Exact], model: str | None, name: str) -> None:
    """OpenAI's models are counted exactly, all others by the estimate."""
    assert counter_for(model).name == name


def test_counter_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ``cloister[tokens]`` every model gets the estimate."""
    monkeypatch.setitem(sys.modules, "bpe_openai", None)
    monkeypatch.setattr("cloister.window._exact", Exact)
    assert counter_for("gpt-4o").name == "estimate-1"


@pytest.mark.parametrize(
    ("model", "least", "most"),
    [
        (None, 8_192, 8_192),
        ("somebody's-own-model", 8_192, 8_192),
        ("gpt-4", 4_096, 8_000),
        ("gpt-4o", 100_000, 124_000),
        ("gpt-4.1-mini", 900_000, 1_040_000),
        ("gpt-5", 230_000, 268_000),
        ("o3", 150_000, 196_000),
        ("deepseek-chat", 100_000, 124_000),
        ("claude-sonnet-4-5", 150_000, 196_000),
        ("meta-llama/Llama-3.1-8B-Instruct", 100_000, 127_000),
        ("llama3", 4_096, 6_200),
        ("qwen2.5:7b", 24_000, 29_000),
    ],
)
def test_context_tokens(model: str | None, least: int, most: int) -> None:
    """A model's window leaves room for the reply; an unknown model has 8,192."""
    assert least <= context_tokens(model) <= most


# --- what an item costs ---


def call(call_id: str, name: str = "weather", arguments: str = '{"city": "Porto"}') -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_everything_that_is_sent_is_counted() -> None:
    """Parts, images, calls, call ids and extra keys all add to what an item costs."""
    plain = Item("user", "hello")
    assert item_tokens(plain, ESTIMATE) == MESSAGE_TOKENS + ESTIMATE.count("hello")
    part = Item("user", [{"type": "text", "text": "hello"}])
    assert item_tokens(part, ESTIMATE) == item_tokens(plain, ESTIMATE)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    assert item_tokens(Item("user", [image]), ESTIMATE) == MESSAGE_TOKENS + IMAGE_TOKENS
    file = {"type": "file", "file": {"file_data": "A" * 1_000}}
    assert item_tokens(Item("user", [file]), ESTIMATE) > 500
    calls = Item("assistant", None, tool_calls=[call("a"), call("b", arguments="{}" * 50)])
    assert item_tokens(calls, ESTIMATE) > MESSAGE_TOKENS + ESTIMATE.count("{}" * 50)
    assert item_tokens(Item("user", "hello", extra={"name": "ana"}), ESTIMATE) > item_tokens(plain, ESTIMATE)
    assert item_tokens(Item("tool", "hello", tool_call_id="call_1"), ESTIMATE) > item_tokens(plain, ESTIMATE)


def test_tools_are_counted() -> None:
    """Tool definitions cost at least their JSON text, and nothing where there are none."""
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    assert tools_tokens([], ESTIMATE) == 0
    assert tools_tokens([tool], ESTIMATE) > ESTIMATE.count(msgspec.json.encode(tool).decode())
    assert options_tokens({"tools": [tool]}, ESTIMATE) == tools_tokens([tool], ESTIMATE)
    assert options_tokens({"response_format": tool}, ESTIMATE) == ESTIMATE.count(msgspec.json.encode(tool).decode())
    assert options_tokens({"tools": None, "response_format": Item, "temperature": 1}, ESTIMATE) == 0


# --- the window ---


def user(text: str, tokens: int = 10) -> Item:
    return Item("user", text, tokens=tokens, counter=ESTIMATE.name)


def assistant(text: str | None, *calls: str, tokens: int = 10) -> Item:
    return Item("assistant", text, tokens=tokens, counter=ESTIMATE.name, tool_calls=[call(c) for c in calls] or None)


def tool(call_id: str, tokens: int = 10) -> Item:
    return Item("tool", "sunny", tokens=tokens, counter=ESTIMATE.name, tool_call_id=call_id)


def fitted(history: list[Item], new: list[Item], tokens: int = 10_000) -> list[Item]:
    return fit(history, new, tokens + PRIMING_TOKENS, counter=ESTIMATE)


def test_everything_fits() -> None:
    """What fits is sent whole: system, history, new."""
    history = [user("1"), assistant("2")]
    system, new = Item("system", "be kind"), [user("3")]
    assert fit(history, new, 1_000, system=system, counter=ESTIMATE) == [system, *history, *new]


def test_oldest_turns_leave_first_and_whole() -> None:
    """A turn of which one item does not fit leaves as a whole."""
    history = [user("1"), assistant("2"), user("3"), assistant("4")]
    assert fitted(history, [user("5")], 50) == [*history, user("5")]
    assert fitted(history, [user("5")], 49) == [*history[2:], user("5")]
    assert fitted(history, [user("5")], 30) == [*history[2:], user("5")]
    assert fitted(history, [user("5")], 29) == [user("5")]


def test_no_turn_is_skipped() -> None:
    """An old turn that would fit does not stay when a newer one has to leave."""
    history = [user("1"), assistant("2"), user("3", tokens=500), assistant("4")]
    assert fitted(history, [user("5")], 100) == [user("5")]


def test_system_and_reserve_count() -> None:
    """The system item always stays, and what is reserved is not used."""
    history, system = [user("1"), assistant("2")], Item("system", "x", tokens=20, counter=ESTIMATE.name)
    whole = 20 + 20 + 10 + PRIMING_TOKENS
    assert len(fit(history, [user("3")], whole, system=system, counter=ESTIMATE)) == 4
    assert fit(history, [user("3")], whole, system=system, reserve=1, counter=ESTIMATE) == [system, user("3")]


def test_too_long_says_by_how_much() -> None:
    """If even system and new do not fit, the error says how many tokens are too many, and no text."""
    with pytest.raises(BudgetExceeded, match=r"\b7 tokens too long") as caught:
        fitted([user("1")], [user("secret", tokens=37)], 30)
    assert "secret" not in str(caught.value)


def test_calls_and_results_stay_together() -> None:
    """A turn with tool calls stays whole or leaves whole."""
    history = [user("1"), assistant(None, "a", "b"), tool("a"), tool("b"), assistant("2")]
    assert fitted(history, [user("3")], 60) == [*history, user("3")]
    assert fitted(history, [user("3")], 59) == [user("3")]


def test_half_a_turn_is_left_out() -> None:
    """What precedes the first user item is the end of a turn that was cut off, and left out."""
    history = [tool("a"), assistant("2"), user("3"), assistant("4")]
    assert fitted(history, [user("5")]) == [*history[2:], user("5")]


def test_orphans_are_left_out() -> None:
    """Results without a call and calls without a result are not sent; text beside such calls is."""
    history = [user("1"), assistant("let me see", "a", "b"), tool("b"), tool("x"), tool("b")]
    history += [user("2"), assistant(None, "c"), user("3"), tool("c"), assistant("done", "d")]
    sent = fitted(history, [user("4")])
    assert sent == [
        user("1"),
        assistant("let me see", "b"),
        tool("b"),
        user("2"),
        user("3"),
        assistant("done"),
        user("4"),
    ]


def test_calls_stored_one_by_one_keep_their_results() -> None:
    """Calls of one answer, each in an item of its own, stay with their results; one without a result leaves alone."""
    asked = [user("look"), assistant(None, "a"), assistant(None, "b"), assistant(None, "c")]
    results = [tool("a"), tool("c")]
    assert fit([], [*asked, *results], 1_000, counter=ESTIMATE) == [*asked[:2], asked[3], *results]


def test_what_is_only_kept_is_not_sent() -> None:
    """What no model is sent takes no room, parts no call from its result, and costs a bounded amount to read."""
    kept = Item("assistant", extra={"api": {"type": "image_generation_call", "result": "x" * 1_000_000}})
    history = [user("look"), assistant(None, "a"), kept, tool("a"), user("more")]
    assert fit(history, [kept], 100, counter=ESTIMATE) == [history[0], history[1], *history[3:]]
    assert 1_000 < item_tokens(kept, ESTIMATE) < 2 * IMAGE_TOKENS


def test_new_results_continue_the_last_turn() -> None:
    """New tool results answer the calls of the last turn, which stays with them, or the window is too small."""
    history = [user("1"), assistant("2"), user("3"), assistant(None, "a")]
    assert fitted(history, [tool("a")]) == [*history, tool("a")]
    assert fitted(history, [tool("a")], 30) == [*history[2:], tool("a")]
    with pytest.raises(BudgetExceeded, match=r"\b1 tokens too long"):
        fitted(history, [tool("a")], 29)


def test_what_waits_for_its_answer_stays() -> None:
    """Where nothing is new, the last turn is asked if nobody answered it: it stays, or the window is too small."""
    history = [user("1"), assistant("2"), user("3"), Item("system", "4", tokens=10, counter=ESTIMATE.name)]
    assert fitted(history, []) == history
    assert fitted(history, [], 20) == history[2:]
    with pytest.raises(BudgetExceeded, match=r"\b1 tokens too long"):
        fitted(history, [], 19)
    assert fitted(history[:2], [], 19) == []


def test_new_results_continue_half_a_turn() -> None:
    """Where the tail begins within the very turn that is going on, what there is of it stays."""
    history = [tool("x"), assistant(None, "a")]
    assert fitted(history, [tool("a")]) == [history[1], tool("a")]


class Counted:
    """Remembers what it was asked."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.texts: list[str] = []

    def count(self, text: str) -> int:
        self.texts.append(text)
        return len(text)


@pytest.mark.parametrize(
    ("stored", "asked", "again"),
    [("o200k_base", "o200k_base", 0), ("estimate-1", "o200k_base", 0), ("cl100k_base", "o200k_base", 1), ("", "x", 1)],
)
def test_stored_counts_are_used(stored: str, asked: str, again: int) -> None:
    """A count of the same counter, or an estimate, is used as it is; another vocabulary's is not."""
    counter = Counted(asked)
    fit([Item("user", "hello", tokens=1, counter=stored)], [], 100, counter=counter)
    assert len(counter.texts) == again


def rendered(items: list[Item], counter: Counter) -> int:
    """Count as OpenAI's cookbook does: 3 for each message, its role and other values, and 3 for the reply."""
    total = 3
    for item in items:
        total += 3 + counter.count(item.role) + counter.count(item.text)
        for each in item.tool_calls or ():
            total += counter.count(each["function"]["name"]) + counter.count(each["function"]["arguments"]) + 4
        if item.extra and "name" in item.extra:
            total += 1 + counter.count(item.extra["name"])
    return total


TEXTS = st.one_of(st.sampled_from(EVERYTHING), st.text(max_size=40))


@st.composite
def histories(draw: st.DrawFn) -> list[Item]:
    """Draw a history: mostly whole turns, some with tools, some damaged."""
    items: list[Item] = []
    numbers = itertools.count()
    for _ in range(draw(st.integers(0, 6))):
        items.append(Item("user", draw(TEXTS), extra=draw(st.sampled_from([None, {"name": "ana"}]))))
        if draw(st.booleans()):
            ids = [f"call_{next(numbers)}" for _ in range(draw(st.integers(1, 2)))]
            items.append(Item("assistant", None, tool_calls=[call(each, arguments=draw(TEXTS)) for each in ids]))
            items += [Item("tool", draw(TEXTS), tool_call_id=each) for each in ids]
        items.append(Item("assistant", draw(TEXTS)))
    for _ in range(draw(st.integers(0, 2))):
        if items:
            items.pop(draw(st.integers(0, len(items) - 1)))
    return items


@given(
    histories(),
    TEXTS,
    st.none() | TEXTS,
    st.integers(1, 1_500),
    st.sampled_from(["estimate", *VOCABULARIES]),
    st.sampled_from(VOCABULARIES),
    st.booleans(),
)
def test_window_never_exceeds_its_budget(
    exact: list[Exact],
    history: list[Item],
    question: str,
    system: str | None,
    budget: int,
    choice: str,
    model: str,
    stored: bool,
) -> None:
    """Under the model's real tokenizer the window fits, its calls are paired, and it keeps order and question."""
    real = exact[VOCABULARIES.index(model)]
    counter: Counter = ESTIMATE if choice == "estimate" else real
    if stored:
        history = [
            msgspec.structs.replace(item, tokens=item_tokens(item, counter), counter=counter.name) for item in history
        ]
    first = None if system is None else Item("system", system)
    new = [Item("user", question)]
    try:
        items = fit(history, new, budget, system=first, counter=counter)
    except BudgetExceeded:
        needed = item_tokens(new[0], counter) + (item_tokens(first, counter) if first else 0)
        assert needed + PRIMING_TOKENS > budget
        return
    assert rendered(items, real) <= budget
    assert items[-1] == new[0]
    if first:
        assert items.pop(0) == first
    assert items[0].role == "user"
    texts = [(item.role, item.text) for item in history] + [("user", question)]
    remaining = iter(texts)
    assert all((item.role, item.text) in remaining for item in items)
    open_calls: set[str] = set()
    for item in items:
        if item.role == "tool":
            assert item.tool_call_id in open_calls
            open_calls.discard(item.tool_call_id)
        else:
            assert not open_calls
            open_calls = {each["id"] for each in item.tool_calls or ()}
    assert not open_calls
