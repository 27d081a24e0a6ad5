"""What is found as personal data, in whatever characters it is written, and what is not."""

from __future__ import annotations

import base64
import random
import re
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.texts import ADVERSARIAL

from cloister.scrub import Found, Scrubber, Span
from cloister.scrub.find import TYPES
from cloister.scrub.spans import UNSEARCHED

SCRUBBER = Scrubber()


def found(text: str) -> list[tuple[str, str]]:
    """Give what is found in *text*: types, and what of the text is of them."""
    return [(kind, text[start:end]) for start, end, kind in SCRUBBER.find(text)]


EXAMPLES = [
    ("PERSON", "Ana Silva", "Hello, my name is Ana Silva and I cannot log in."),
    ("PERSON", "Dr. Haugen", "I saw Dr. Haugen last week."),
    ("PERSON", "jennifer", "hey its jennifer, can u text me"),
    ("PERSON", "Björn Øvergård", "Please call Björn Øvergård back."),
    ("PERSON", "Anna van der Berg", "I spoke with Anna van der Berg about it."),
    ("EMAIL", "ana.silva+x@mail.example.co.uk", "Write to ana.silva+x@mail.example.co.uk."),
    ("EMAIL", "ana [at] example [dot] com", "Write to ana [at] example [dot] com please"),
    ("PHONE", "(212) 555-0123", "Call (212) 555-0123 after five."),
    ("PHONE", "+44 20 7946 0958", "My number is +44 20 7946 0958."),
    ("PHONE", "212.555.0123 x45", "Phone: 212.555.0123 x45"),
    ("PHONE", "030 901820", "Tel. 030 901820"),
    ("CREDIT_CARD", "4111 1111 1111 1111", "It was charged to 4111 1111 1111 1111 twice."),
    ("CREDIT_CARD", "378282246310005", "378282246310005 is my Amex."),
    ("US_SSN", "536-90-4399", "SSN: 536-90-4399"),
    ("US_SSN", "536904399", "my social security number is 536904399"),
    ("ZIP", "90210", "My zip code is 90210."),
    ("ZIP", "SW1A 1AA", "It is near SW1A 1AA somewhere."),
    ("IBAN", "DE89 3704 0044 0532 0130 00", "Send it to DE89 3704 0044 0532 0130 00 today."),
    ("IP", "203.0.113.7", "A login from 203.0.113.7 was blocked."),
    ("IP", "2001:db8::8a2e:370:7334", "from 2001:db8::8a2e:370:7334 as well"),
    ("URL", "https://example.com/people/ana?x=1", "See https://example.com/people/ana?x=1."),
    ("URL", "www.example.org", "Look at www.example.org, please."),
    ("DATE_OF_BIRTH", "March 4, 1985", "She was born on March 4, 1985 in a small town."),
    ("DATE_OF_BIRTH", "1985-03-04", "DOB: 1985-03-04"),
    ("STREET_ADDRESS", "1600 Pennsylvania Avenue", "I live at 1600 Pennsylvania Avenue."),
    ("STREET_ADDRESS", "Hauptstraße 12, 10115 Berlin", "Meine Adresse ist Hauptstraße 12, 10115 Berlin."),
    ("STREET_ADDRESS", "12 rue de la Paix", "Elle habite 12 rue de la Paix."),
    ("STREET_ADDRESS", "P.O. Box 101", "Send it to P.O. Box 101, please."),
]


@pytest.mark.parametrize(("kind", "value", "text"), EXAMPLES)
def test_each_type_is_found(kind: str, value: str, text: str) -> None:
    """Each type is found where it stands, as people write it."""
    assert (kind, value) in found(text)


def test_the_examples_have_every_type() -> None:
    """No type that is promised goes without an example."""
    assert {kind for kind, _, _ in EXAMPLES} == set(TYPES)


@pytest.mark.parametrize(
    "text",
    [
        "We fly to New York on Monday and then on to San Francisco.",
        "Your order number is 4471029385, please keep it.",
        "The tracking number 00340434161094042557 has not moved.",
        "Invoice 20240117-88 over 1,240.50 euros is due in 30 days.",
        "Please restart the router and try again in 10 minutes.",
        "In 2008, Visual Studio got 3 updates.",
        "Version 10.0.19041 of Windows Server, build 19045.3693.",
        "The ratio 16:9 at 1920x1080 is called Full HD.",
        "The commit 4f2a9c81d0e7b6a5c3f1e2d4b8a7c6d5e4f3a2b1 broke it.",
        "how do i get a refund for a subscription i cancelled last month",
        "It was signed on 12 March 1919.",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    """Numbers, places, products and dates of nobody's birth are left alone."""
    assert found(text) == []


def test_a_card_needs_its_check_digit() -> None:
    """Sixteen digits whose check digit is wrong are a card only where words say so."""
    assert found("It was 4111 1111 1111 1112 in all.") == []
    assert found("My card is 4111 1111 1111 1112.") == [("CREDIT_CARD", "4111 1111 1111 1112")]


def test_what_a_number_is_depends_on_the_words_before_it() -> None:
    """The same ten digits are a phone number after "call", and none after "order"."""
    assert found("Please call 2125550123 today.") == [("PHONE", "2125550123")]
    assert found("Please find order 2125550123 today.") == []


UNUSUAL = {
    "full-width digits": ("４１１１ １１１１ １１１１ １１１１", "My card is {}.", "CREDIT_CARD"),
    "digits of another script": ("٢١٢-٥٥٥-٠١٢٣", "Please call {}.", "PHONE"),
    "zero-width marks": ("ana\u200b@exam\u200dple.com", "Write to {}.", "EMAIL"),
    "marks of direction": ("\u202e536-90\u202c-4399", "SSN: {}.", "US_SSN"),
    "soft hyphens": ("Ana Sil\u00adva", "My name is {}.", "PERSON"),
    "combining accents": ("Jose\u0301 Garci\u0301a", "My name is {}.", "PERSON"),
    "an escaped at sign": ("ana%40example.com", "email={}", "EMAIL"),
    "no-break spaces": ("4111\u00a01111\u00a01111\u00a01111", "My card is {}.", "CREDIT_CARD"),
    "typographic hyphens": ("212\u2011555\u20110123", "Please call {}.", "PHONE"),
    "letters of two alphabets": ("\u0430na@example.com", "Write to {}.", "EMAIL"),
    "full-width letters": ("ａｎａ＠ｅｘａｍｐｌｅ．ｃｏｍ", "Write to {}.", "EMAIL"),
}


@pytest.mark.parametrize(("value", "text", "kind"), UNUSUAL.values(), ids=list(UNUSUAL))
def test_unusual_characters_hide_nothing(value: str, text: str, kind: str) -> None:
    """What a person reads as personal data is found, and masked to its last mark."""
    whole = text.format(value)
    (span,) = SCRUBBER.find(whole)
    assert span.type == kind
    left = whole[: span.start] + whole[span.end :]
    assert not re.search(r"[\d@]|ana|Jose|Silva", left), left


@pytest.mark.parametrize("before", ["😀 ", "👩‍👩‍👧 🇪🇺 ", "e\u0301e\u0301 ", "İİ ", "\u200b\u200b "])
def test_offsets_are_those_of_the_text_given(before: str) -> None:
    """Emoji, accents of their own and marks that show nothing before a finding do not move it."""
    assert found(f"{before}ana@example.com") == [("EMAIL", "ana@example.com")]
    assert ("PERSON", "jennifer") in found(f"{before}hey its jennifer, can u text me")


def test_personal_data_in_base64_is_found() -> None:
    """A value that is only encoded is as good as written out."""
    held = base64.b64encode(b"ana.silva@example.com").decode()
    assert found(f"The header says {held} today.") == [("EMAIL", held)]
    assert found(f"The header says {base64.b64encode(b'nothing of anyone').decode()} today.") == []


@pytest.mark.parametrize(
    "text",
    [
        "[PERSON~k7qm2x9a~w4tz] wrote to [EMAIL~abcdefgh~0123] on [PHONE~12345678~9012].",
        "Dear [PERSON], your card [CREDIT_CARD] and [CARD~41111111~1111] were charged.",
        "my name is person~k7qm2x9a~w4tz and i live at [ADDRESS], zip code [ZIP~12345678~1234]",
        "Dear [NAME], call [PHONE] or [SSN~53690439~9000].",
        "SSN: [ SSN~53690439~9000 ], born [BIRTHDATE~19850304~1985]",
    ],
)
def test_placeholders_are_not_personal_data(text: str) -> None:
    """What already stands in the place of personal data is left as it is."""
    assert found(text) == []


def test_a_placeholder_ends_what_stands_beside_it() -> None:
    """Nothing is found that reaches into a placeholder; what stands beside it is found."""
    text = "Ana Silva [EMAIL~abcdefgh~0123] 12 Main Street, [ZIP~12345678~1234]"
    for kind, value in found(text):
        assert "~" not in value, kind
    assert ("PERSON", "Ana Silva") in found(text)
    assert "STREET_ADDRESS" in dict(found(text))


def labelled(text: str) -> str:
    for start, end, kind in reversed(SCRUBBER.find(text)):
        text = f"{text[:start]}[{kind}]{text[end:]}"
    return text


@pytest.mark.parametrize("text", [text for _, _, text in EXAMPLES])
def test_scrubbing_twice_is_scrubbing_once(text: str) -> None:
    """A scrubbed text holds nothing more to scrub."""
    assert labelled(labelled(text)) == labelled(text) != text


def test_a_name_is_found_again() -> None:
    """Who is named in full once is found later by the surname alone."""
    text = "Thiago Haugen called. The order of Haugen is late."
    assert found(text) == [("PERSON", "Thiago Haugen"), ("PERSON", "Haugen")]


def test_a_text_beyond_the_limit_is_masked_whole() -> None:
    """Where there is a limit, reaching it masks everything: no length buys text that is not searched."""
    scrubber = Scrubber(limit=100)
    assert scrubber.find("a" * 100) == []
    assert scrubber.find("a" * 101) == [Span(0, 101, UNSEARCHED)]


def test_a_text_made_to_take_long_is_masked_whole() -> None:
    """Thousands of numbers that might each be in an address, and are not, do not hide one that is."""
    table = "Pier 7 " * 1_500
    assert Scrubber().find(f"{table} ana@example.com")[-1].type == "EMAIL"
    text = f"{'Pier 7 ' * 2_500} ana@example.com"
    assert Scrubber().find(text) == [Span(0, len(text), UNSEARCHED)]


def test_every_finding_says_why() -> None:
    """The explanation has the same spans as the finding, each with a reason."""
    text = "I am Ana Silva, ana@example.com, 4111 1111 1111 1111."
    explained = SCRUBBER.explain(text)
    assert [hit[:3] for hit in explained] == [tuple(span) for span in SCRUBBER.find(text)]
    assert all(hit.why and isinstance(hit, Found) for hit in explained)


class Badges:
    """Find the numbers of Ana's employer's badges."""

    def find(self, text: str) -> Iterable[Span]:
        return [Span(*match.span(), "BADGE_NUMBER") for match in re.finditer(r"\bB-\d{4}\b", text)]


def test_a_detector_of_the_users_joins() -> None:
    """What a detector finds is found, and goes before what our rules find in the same place."""
    scrubber = Scrubber(Badges())
    assert scrubber.find("Ana Silva has badge B-1234.") == [Span(0, 9, "PERSON"), Span(20, 26, "BADGE_NUMBER")]
    assert SCRUBBER.find("Badge B-1234.") == []

    class Greedy:
        def find(self, text: str) -> Iterable[Span]:
            return [Span(0, len(text), "EVERYTHING")]

    assert Scrubber(Greedy()).find("mail ana@example.com") == [Span(0, 20, "EVERYTHING")]


@pytest.mark.parametrize(
    "span", [Span(0, 99, "X"), Span(3, 3, "X"), Span(-1, 2, "X"), Span(0, 2, "no"), Span(0, 2, "[X]"), Span(0, 2, "")]
)
def test_what_a_detector_cannot_have_found_is_refused(span: Span) -> None:
    """Spans outside the text, empty ones and types that would not be a label are an error that quotes no text."""

    class Wrong:
        def find(self, text: str) -> Iterable[Span]:
            return [span]

    with pytest.raises(ValueError, match="Wrong found something outside the text") as caught:
        Scrubber(Wrong()).find("secret")
    assert "secret" not in str(caught.value)


PIECES = [
    "Ana Silva", "ben", "ana@example.com", "4111 1111 1111 1111", "+1 212 555 0123", "536-90-4399", "12 Main Street",
    "Berlin", "born", "1985-03-04", "DE89370400440532013000", "203.0.113.7", "https://example.com/ana", "my name is",
    "zip", "90210", "[PERSON~k7qm2x9a~w4tz]", "[EMAIL]", "~", "\u200b", "\u202e", "e\u0301", "%40", "😀", "١٢٣", "１２",
    "İ", "\n", ", ", ". ", " ", "@", "::", "(", "“", "’", "\x00", "\ud800",
]  # fmt: skip


@given(
    st.one_of(
        st.text(), st.lists(st.sampled_from(PIECES)).map("".join), st.lists(st.sampled_from(PIECES)).map(" ".join)
    )
)
def test_spans_are_sorted_disjoint_and_within(text: str) -> None:
    """Whatever the text, spans are of known types, in order, apart from each other and not empty."""
    at = 0
    for start, end, kind in SCRUBBER.find(text):
        assert at <= start < end <= len(text)
        assert kind in TYPES
        at = end


@given(st.lists(st.sampled_from(PIECES), max_size=6).map(" ".join))
def test_a_placeholder_survives_any_company(text: str) -> None:
    """Beside whatever, a placeholder is not touched."""
    placeholder = "[PERSON~k7qm2x9a~w4tz]"
    whole = f"{text} {placeholder} {text}"
    start = len(text) + 1
    for span in SCRUBBER.find(whole):
        assert span.end <= start or span.start >= start + len(placeholder)


@pytest.mark.parametrize("piece", ADVERSARIAL)
def test_a_hundred_thousand_characters_of_anything_are_searched(piece: str) -> None:
    """No text makes the search take longer than its length: were one quadratic here, the suite would be stopped."""
    text = (piece * (100_000 // len(piece) + 1))[:100_000]
    spans = SCRUBBER.find(text)
    assert all(0 <= span.start < span.end <= len(text) for span in spans)


def test_a_mixture_of_all_of_them_is_searched() -> None:
    """Nor does any mixture of what the expressions repeat."""
    source = random.Random(4)
    for _ in range(5):
        pieces = source.choices(ADVERSARIAL, k=4)
        text = "".join(piece * 500 for piece in pieces) * 20
        SCRUBBER.find(text[:100_000])
