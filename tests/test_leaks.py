"""Leaks: a reply that carries somebody else's details is noticed, however they are written and however it arrives."""

from __future__ import annotations

import base64
import cProfile
import random
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.leaks import (
    Context,
    Digests,
    Index,
    LeakDetector,
    StreamCheck,
    Table,
    Verdict,
    features,
    judge,
    keys,
    packed,
)
from cloister.leaks.fingerprints import SHARDS
from cloister.model import Owner, to_micros

ANA = Owner(None, "ana")
BEN = Owner(None, "ben")
KEY = bytes(range(32))
START = datetime(2026, 3, 1, 12, tzinfo=UTC)

SAID = [
    "Good day, I am Marta Feldkamp, you can write to marta.feldkamp@posteo.example or ring 0171 5550 8832.",
    "The parcel is number QX-7731-84 and cost me 1,148.37 dollars.",
    "I live at 88 Larkspur Crescent in Dunmore.",
    "For the record, our keyword is BRASSOTTER.",
    "The second one is called OPAL WREN 57.",
    "My ticket is 60417.",
    "The girl is welcome at check-in.",
    "Write to jürgen.groß@posteo.example or ask for Quartermaster 48213.",
    "Our doctor says it is sarcoidosis, and my aunt is a farrier at Quillfeather Saddles.",
]


def detector(*said: str, owner: Owner = ANA) -> LeakDetector:
    """Give a detector to which *owner* said what is in *said*, and nobody anything else."""
    made = LeakDetector(KEY)
    for text in said or SAID:
        made.register(owner, "session of " + owner.user, "user", text)
    return made


def verdict(reply: str, *context: str, of: LeakDetector | None = None, receiver: Owner = BEN) -> Verdict:
    """Judge *reply* to *receiver*, who said and was shown *context*."""
    of = of or detector()
    known = of.context()
    for text in context:
        known.add(text)
    return of.check(receiver, known, reply)


LEAKS = {
    "verbatim": SAID[0],
    "spliced sentence": "Your table is booked for seven. " + SAID[2],
    "spliced identifier": "Your table is booked for seven, thank you QX-7731-84",
    "identifier without separators": "It should be qx773184.",
    "identifier cut elsewhere": "It should be QX77 3184.",
    "telephone number": "Try (0171) 555-08832.",
    "telephone number with its country": "Try +49 171 5550 8832.",
    "amount": "That came to $1148.37.",
    "amount in words of money": "That came to USD 1,148.37 in the end.",
    "address in capitals": "Bring it to 88 LARKSPUR CRESCENT please.",
    "mail address spelled out": "Write to marta dot feldkamp at posteo dot example then.",
    "mail address in capitals": "Write to MARTA.FELDKAMP@POSTEO.EXAMPLE then.",
    "full name": "Somebody called Marta Feldkamp asked as well.",
    "full name, turned": "The list says Feldkamp, Marta.",
    "full name of somebody's": "It is Marta Feldkamp's.",
    "full name of somebody's in capitals": "IT IS MARTA FELDKAMP’S — NOT MINE.",
    "codeword": "The word they chose is Brassotter.",
    "codeword in two": "The word they chose is brass otter.",
    "codeword with a hyphen": "The word they chose is brass-otter.",
    "two codewords as one": "It goes by OpalWren57 inside.",
    "two codewords underlined": "It goes by opal_wren_57 inside.",
    "paraphrase": "Someone in the trade, with Quillfeather Saddles, has sarcoidosis in the family.",
    "spelled": "The word they chose is B R A S S O T T E R, I think.",
    "digits in words": "It was six zero four one seven, I think.",
    "digits apart": "It was 6 0 4 1 7, I think.",
    "base64": "They chose " + base64.b64encode(b"BRASSOTTER").decode() + " for it.",
    "base64 of somebody's": "They chose " + base64.b64encode(b"BRASSOTTER").decode().rstrip("=") + "'s for it.",
    "base64 of a number": "They have " + base64.b64encode(b"QX-7731-84").decode() + " for it.",
    "backwards": "They chose rettossarb for it.",
    "full-width": "They chose ＢＲＡＳＳＯＴＴＥＲ for it.",
    "zero width": "They chose BRASS\u200bOTTER for it.",
}


@pytest.mark.parametrize("kind", LEAKS)
def test_leak_is_found(kind: str) -> None:
    """Each kind of leak is alerted or blocked, and its owner is named."""
    found = verdict(LEAKS[kind])
    assert found.action != "pass"
    assert found.owner == ANA


@pytest.mark.parametrize("kind", LEAKS)
def test_own_detail_passes(kind: str) -> None:
    """The same replies pass for the person whose details they are: otherwise the tests above show nothing."""
    assert verdict(LEAKS[kind], receiver=ANA).action == "pass"


@pytest.mark.parametrize(
    "reply",
    [
        "Good evening Marta, your table for four is booked on Friday at seven.",
        "The fee is 20.00 dollars, and 19.99 from May 2024 on.",
        "Dunmore is rainy at this time of the year; Boston is not.",
        "Please call back between 10:30 and 11:15 on 2026-03-02.",
        "There are 88 rooms, 57 of them with a view.",
        "You are welcome at check-in.",
    ],
)
def test_ordinary_reply_passes(reply: str) -> None:
    """First names, cities, dates, times, years, round amounts and prices by themselves are nobody's."""
    assert verdict(reply).action == "pass"


@pytest.mark.parametrize(
    "said",
    [
        "It begins at 12 AM tomorrow.",
        "There is a 7 pm slot, and one at 10 pm I think.",
        "The store is 1.6 km from here, and sells 20 kg of it.",
        "Rooms are free from the 12-24th of May.",
        "I take the 9 h 45 min train.",
    ],
)
def test_times_and_measures_are_nobodys(said: str) -> None:
    """What one user was told of times, days and distances may be told to another, with a space or without."""
    assert verdict(said, of=detector(said)).action == "pass"


@pytest.mark.parametrize("code", ["AB 1234 C", "C 4471923", "QX 7731 84", "4471 AB", "77 MX 31"])
def test_letters_behind_a_space_belong_to_a_code(code: str) -> None:
    """Short letters beside a number are a piece of an identifier, unless they are words or units."""
    assert verdict(f"It is {code}.", of=detector(f"Mine is {code}.")).action == "block"


def test_two_facts_block() -> None:
    """A name alone alerts; a name with a second fact of the same owner, or an identifier, blocks."""
    assert verdict("Marta Feldkamp asked.").action == "alert"
    assert verdict("Marta Feldkamp of 88 Larkspur Crescent asked.").action == "block"
    assert verdict("It is under QX-7731-84.").action == "block"


def test_facts_of_two_owners_do_not_add_up() -> None:
    """Only what is one owner's is summed."""
    both = detector(SAID[0])
    both.register(Owner(None, "cleo"), "another", "user", SAID[2])
    assert verdict("Marta Feldkamp of 88 Larkspur Crescent asked.", of=both).action == "alert"


def test_overlapping_pieces_count_once() -> None:
    """What is said once is counted once, in how many ways it ever can be read, and so is what is repeated."""
    once = verdict("It goes to 88 Larkspur Crescent.")
    assert len(once.evidence) == 1
    assert verdict("It goes to 88 Larkspur Crescent. Yes, 88 Larkspur Crescent.").score == once.score


def test_verdict_carries_no_words() -> None:
    """Evidence says kind, weight and place, and nothing that was said."""
    shown = repr(verdict("Marta Feldkamp of 88 Larkspur Crescent asked.")).lower()
    assert not any(word in shown for word in ("marta", "feldkamp", "larkspur", "88"))


# --- what is no evidence ----------------------------------------------------------------------------------------------


def test_own_words_are_no_evidence() -> None:
    """What the receiver said, or was shown in a document, may be said to them, in any form."""
    for known in (
        "I look for QX 773184 and Marta Feldkamp.",
        '{"id": "QX-7731-84", "first": "Marta", "last": "Feldkamp"}',
    ):
        assert verdict("QX-7731-84 is for Marta Feldkamp.", known).action == "pass"


def test_pieces_launder_nothing() -> None:
    """Lists of first and last names, or a longer number, do not exempt the whole; a document's two fields do."""
    names = "Marta, Peter, Paul. Weber, Feldkamp, Schulz."
    assert verdict("Marta Feldkamp asked.", names).action == "alert"
    assert verdict("It is 60417.", "I have 9960417200.").action == "alert"
    fields = '{"first": "Marta", "last": "Feldkamp"}'
    assert verdict("Marta Feldkamp asked.", fields).action == "pass"
    made = detector()
    typed = made.context()
    typed.add(fields, document=False)
    assert made.check(BEN, typed, "Marta Feldkamp asked.").action == "alert"


def test_long_list_exempts_little() -> None:
    """Whoever pastes every number there is has not said the one that matters."""
    every = " ".join(f"{number}," for number in range(40_000, 70_000))
    assert verdict("It is 60417.", every).action == "alert"
    assert verdict("It is 40007.", every, of=detector("My ticket is 40007.")).action == "pass"


def test_seeded_is_common() -> None:
    """The operator's catalogue is common knowledge, whoever typed it first or types it later."""
    made = detector("Call 0171 5550 8832 for me.")
    made.seed("Our hotline: 0171 5550 8832.")
    made.register(Owner(None, "cleo"), "another", "user", "Call 0171 5550 8832 for me.")
    assert verdict("Our hotline is 0171 5550 8832.", of=made).action == "pass"


def test_fourth_owner_makes_common() -> None:
    """A name that three people say is theirs; from the fourth on it is common."""
    made = LeakDetector(KEY)
    for number, name in enumerate(["ana", "cleo", "dan", "eve"], 1):
        made.register(Owner(None, name), name, "user", "It was about Larkspur Saddles.")
        assert verdict("Try Larkspur Saddles.", of=made).action == ("alert" if number < 4 else "pass")


def test_assistant_makes_its_own_words_common() -> None:
    """What the assistant says first is nobody's; an identifier that it names is its listener's."""
    made = LeakDetector(KEY)
    made.register(ANA, "a", "assistant", "Larkspur Saddles has your order QX-7731-84.")
    made.register(ANA, "a", "user", "Larkspur Saddles it is.")
    assert verdict("Try Larkspur Saddles.", of=made).action == "pass"
    assert verdict("It is QX-7731-84.", of=made).action == "block"


def test_alerted_name_does_not_become_common() -> None:
    """A name that slipped through once is still noticed the next time."""
    made = detector()
    made.register(BEN, "b", "assistant", "Marta Feldkamp asked.")
    assert verdict("Marta Feldkamp asked.", of=made, receiver=Owner(None, "cleo")).action == "alert"


def test_check_registers_nothing() -> None:
    """What is only checked is nobody's afterwards."""
    made = LeakDetector(KEY)
    made.check(ANA, made.context(), "Marta Feldkamp has QX-7731-84.")
    assert len(made.index) == 0
    assert verdict("Marta Feldkamp has QX-7731-84.", of=made).action == "pass"


# --- sock-puppets, canaries -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("detail", ["QX-7731-84", "marta.feldkamp@posteo.example", "0171 5550 8832"])
def test_sock_puppets_make_no_identifier_common(detail: str) -> None:
    """However many accounts repeat somebody's identifier, before and after, it stays theirs."""
    made = LeakDetector(KEY)
    for number in range(20):
        owner = ANA if number == 10 else Owner(None, f"puppet {number}")
        made.register(owner, owner.user, "user", f"It is {detail}.")
    assert verdict(f"It is {detail}.", of=made).action == "block"


def test_canary_always_blocks() -> None:
    """A canary blocks in any case and spacing, whoever repeats it, and needs no index; in its own session it passes."""
    made = LeakDetector(KEY)
    canary = made.canary("session of ana")
    for number in range(5):
        made.register(Owner(None, f"puppet {number}"), "s", "user", canary)
    known = made.context("session of ben")
    known.add(canary)
    for said in (
        canary,
        "İ" + canary,
        canary.upper(),
        "-".join(canary),
        " ".join(canary),
        f"It says: {canary[:9]}\n{canary[9:]}.",
    ):
        found = LeakDetector(KEY).check(BEN, known, f"Well, {said} it is.")
        assert (found.action, found.evidence[-1].kind) == ("block", "canary")
    assert made.check(ANA, made.context("session of ana"), canary).action == "pass"


def test_canary_cannot_be_forged() -> None:
    """What looks like a canary, or is one of another key, is none."""
    made = LeakDetector(KEY)
    other = LeakDetector(bytes(32)).canary("session of ana")
    forged = made.canary("session of ana")[:-1] + "a"
    assert made.canary("session of ana") != made.canary("session of ben")
    for said in (other, forged if forged != made.canary("session of ana") else forged[:-1] + "b", "zq" + "a" * 16):
        assert made.check(BEN, made.context(), f"It is {said}.").action == "pass"


# --- the index --------------------------------------------------------------------------------------------------------


def test_erased_owner_is_forgotten() -> None:
    """Erasing an owner forgets their details, and nobody else's."""
    made = detector()
    made.register(Owner(None, "cleo"), "c", "user", "My ticket is KB-5520-91.")
    made.forget(ANA)
    assert verdict(" ".join(LEAKS.values()), of=made).action == "pass"
    assert verdict("It is KB-5520-91.", of=made).action == "block"


def test_expired_does_not_count() -> None:
    """A detail counts until its session ends, and a later word in the session moves the end."""
    made = LeakDetector(KEY)
    made.register(ANA, "a", "user", "It is QX-7731-84.", now=START, expires_at=START + timedelta(hours=1))

    def action(minutes: int) -> str:
        return made.check(BEN, made.context(), "It is QX-7731-84.", now=START + timedelta(minutes=minutes)).action

    assert (action(59), action(60)) == ("block", "pass")
    made.register(ANA, "a", "user", "Hello?", now=START, expires_at=START + timedelta(hours=2))
    made.register(ANA, "a", "user", "It is QX-7731-84.", now=START, expires_at=START + timedelta(hours=2))
    assert (action(119), action(120)) == ("block", "pass")
    made.index.sweep(to_micros(START + timedelta(hours=2)))
    assert len(made.index) == 0


def test_expired_owners_do_not_make_common() -> None:
    """Three owners whose sessions are over leave room for the next."""
    index = Index()
    for name in ("ana", "cleo", "dan"):
        index.add(b"12345678", index.claim(Owner(None, name), name, 10), 9)
    assert len(index.owners(b"12345678", 9) or ()) == 3
    index.add(b"12345678", index.claim(BEN, "b", None), 10)
    assert index.owners(b"12345678", 10) == (BEN,)


def test_full_index_lets_the_oldest_go() -> None:
    """A full index keeps the newest sessions' fingerprints and counts those that went."""
    index = Index(SHARDS * 16)
    digests = Digests(KEY)
    for number in range(600):
        claim = index.claim(Owner(None, f"user {number}"), "s", None)
        for word in range(20):
            index.add(digests.of(f"{number} {word}"), claim, None)
    assert len(index) <= SHARDS * 16
    assert index.dropped >= 12_000 - SHARDS * 16

    def held(number: int) -> int:
        return sum(index.owners(digests.of(f"{number} {word}"), None) is not None for word in range(20))

    assert sum(map(held, range(550, 600))) == 1_000
    assert sum(map(held, range(100))) == 0


def test_index_holds_no_words() -> None:
    """Without the key, nothing in the index tells what was said: another key finds nothing."""
    made = detector()
    other = LeakDetector(bytes(32), index=made.index)
    assert verdict(SAID[0], of=other).action == "pass"


def test_keys_are_few() -> None:
    """A reply is looked up with thirty keys at most, the most telling first, and none that its receiver knows."""
    rare = " ".join(f"gl{letter}ndorp{other}x" for letter in "aeiou" for other in "aeioubcdfg")
    candidates = features(f"{rare} {SAID[0]} {SAID[1]}", packed())
    chosen = keys(candidates)
    assert len(candidates) > 90
    assert len(chosen) == 30
    assert {"qx773184", "martafeldkampposteoexample", "martafeldkamp"} <= set(chosen)
    context = Context(packed())
    context.add(SAID[1])
    assert "qx773184" not in keys(candidates, context)


def test_same_verdict_over_another_index() -> None:
    """`features`, `keys` and `judge` over any lookup say what the detector says."""
    said = {feature.text: (ANA,) for text in SAID for feature in features(text, packed()) if feature.claim}
    for reply in LEAKS.values():
        context = Context(packed())
        candidates = features(reply, packed())
        found = {key: said[key] for key in keys(candidates, context) if key in said}
        assert judge(reply, candidates, found, BEN, context).action != "pass"
        assert judge(reply, candidates, dict.fromkeys(found, ()), BEN, context).action == "pass"


def test_language_plugs_in() -> None:
    """Another table says what is ordinary elsewhere."""
    ordinary = Table({"brassotter": 60})
    made = LeakDetector(KEY, words=ordinary)
    made.register(ANA, "a", "user", SAID[3])
    assert verdict("They chose Brassotter.", of=made).action == "pass"


# --- streams ----------------------------------------------------------------------------------------------------------

REPLIES = [
    *LEAKS.values(),
    "Fine. " + SAID[0] + " And that is all there is to say about it, I suppose, or not?",
    "The 12 May 2024 at 10:30 costs 20.00 dollars for 88 people, 3 of whom pay $1148.37 - see K 4 or L 5.",
    "write to ben at home dot com or at marta dot feldkamp at posteo dot example now",
    "He said: 1 2 3 4 5 6 7 then 6 0 4 1 7 then QX - 7731 - 84 then zq and more",
    "Write to jürgen.groß@posteo.example then, or\n_marta.feldkamp@posteo.example_ instead.",
    "Ask for quartermaster four-eight-two-one-three or for de#10:30 at O'Neil dot oh.",
    "plain words only, with nothing in them that anybody would call a detail of anyone, and so on",
]


def pieces(text: str, cuts: list[int]) -> list[str]:
    """Cut *text* at *cuts*."""
    places = [0, *sorted(cuts), len(text)]
    return [text[start:end] for start, end in pairwise(places)]


def streamed(of: LeakDetector, parts: list[str]) -> tuple[Verdict, str]:
    """Feed a stream, and give the verdict and what was let out."""
    stream: StreamCheck = of.stream(BEN, of.context())
    shown = "".join(stream.feed(part) for part in parts) + stream.finish()
    return stream.verdict, shown


@pytest.mark.parametrize("reply", REPLIES)
def test_every_split_gives_the_verdict_of_the_whole(reply: str) -> None:
    """Cut anywhere, or into characters, a stream is judged as the whole; nothing from the tipping detail on leaves."""
    made = detector()
    whole = verdict(reply, of=made)
    splits = [pieces(reply, [at]) for at in range(len(reply))] + [list(reply), [reply]]
    for parts in splits:
        found, shown = streamed(made, parts)
        assert found == whole
        assert shown == reply[: whole.cut]


def test_stream_holds_back_five_words_at_most() -> None:
    """Ordinary words leave as soon as they can be no part of a detail, and never later than after five more."""
    made = detector()
    text = "Your 3 blue boxes were sent to the harbour of Port Ellen with the 14 green ones on Monday before noon. " * 3
    stream = made.stream(BEN, made.context())
    shown = ""
    for at in range(len(text)):
        shown += stream.feed(text[at])
        assert len(text[len(shown) : at + 1].split()) <= 6
    assert shown + stream.finish() == text


def test_stream_lets_no_canary_begin() -> None:
    """Not one character of a canary leaves, letter by letter and with anything between."""
    made = detector()
    for between in ("", " ", "\n", " - "):
        text = "It says " + between.join(made.canary("session of ana")) + " here."
        found, shown = streamed(made, list(text))
        assert (found.action, shown) == ("block", "It says ")


def test_long_stream_is_judged_as_the_whole() -> None:
    """A stream forgets what it has let out, and still finds what comes late."""
    made = detector()
    filler = "The harbour of Port Ellen has 14 green boats and 9 red ones, which sail at noon. "
    for reply in (filler * 40 + SAID[2] + " " + SAID[0], filler.replace(". ", ", ") * 40 + SAID[1]):
        whole = verdict(reply, of=made)
        assert whole.action == "block"
        found, shown = streamed(made, [reply[at : at + 7] for at in range(0, len(reply), 7)])
        assert found == whole
        assert shown == reply[: whole.cut]


WORDS = st.sampled_from(
    """Marta Feldkamp brass otter BRASSOTTER 88 Larkspur Crescent QX 7731 84 60417 6 0 4 1 7 six zero four one seven at
    dot posteo example $1148.37 1148.37 dollars B R A S S O T T E R the of and, . - Feldkamp, OPAL_WREN-57 0171 5550
    8832 marta.feldkamp@posteo.example 10:30 2024-05-12 O'Neil Marta's zq""".split()
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(WORDS, st.sampled_from([" ", " ", " ", "-", ", ", ". ", "\n", ""])), max_size=25), st.data())
def test_any_split_of_any_text(said: list[tuple[str, str]], data: st.DataObject) -> None:
    """Whatever is said in whatever pieces, verdict and shown text are those of the whole."""
    reply = "".join(word + between for word, between in said)
    made = _DETECTOR
    whole = verdict(reply, of=made)
    cuts = data.draw(st.lists(st.integers(0, len(reply)), max_size=12))
    found, shown = streamed(made, pieces(reply, cuts))
    assert found == whole
    assert shown == reply[: whole.cut]


_DETECTOR = detector()


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=300))
def test_no_text_raises(text: str) -> None:
    """Any text can be registered, known, checked and streamed."""
    made = LeakDetector(KEY)
    made.register(ANA, "a", "user", text)
    made.register(ANA, "a", "assistant", text)
    known = made.context()
    made.check(BEN, known, text)
    streamed(made, list(text))
    known.add(text)
    assert made.check(BEN, known, text).action == "pass"
    assert all(0 <= f.start < f.end <= len(text) for f in features(text, packed()))


ADVERSARIAL = [
    *("a", "zq", "日本", "A1b2"),
    *("a b ", "a@", "a.", "z q "),
    *("1 ", "12-", "ab 12 ", "@", "$1", "one ", "x dot y at ", "Abc Def ", "'"),
    *("QlJBU1NPVFRFUg== ", "z\u0335\u0321", "Q7-", "10:30 "),
]


@pytest.mark.parametrize("piece", ADVERSARIAL)
def test_adversarial_text_is_linear(piece: str) -> None:
    """Forty thousand characters of anything give no more features than there are places for them."""
    text = (piece * 40_000)[:40_000]
    made = LeakDetector(KEY)
    found = features(text, packed())
    assert len(found) <= 8 * len(text)
    made.register(ANA, "a", "user", text)
    assert made.check(BEN, made.context(), text).action in ("pass", "alert", "block")


def steps(*of: Callable[[], object]) -> list[int]:
    """Count the calls that each of *of* makes, one after the other, of our functions and of built-in ones."""
    made = []
    for each in of:
        profile = cProfile.Profile()
        profile.runcall(each)
        made.append(sum(function.callcount for function in profile.getstats()))
    return made


@pytest.mark.parametrize("piece", ADVERSARIAL)
def test_steps_grow_with_the_text(piece: str) -> None:
    """Twice the text takes no more than about twice the steps."""
    text = piece * 8_000
    once, twice = steps(*(partial(features, text[:size], packed()) for size in (4_000, 8_000)))
    assert twice <= 2.4 * once + 2_000


@pytest.mark.parametrize("piece", ADVERSARIAL)
def test_steps_do_not_grow_with_what_came_before(piece: str) -> None:
    """A character that arrives takes about as many steps behind seven thousand others as behind three thousand."""
    text = piece * 8_000
    made = detector()
    stream = made.stream(BEN, made.context())

    def feed(start: int, end: int, size: int = 1) -> None:
        for at in range(start, end, size):
            stream.feed(text[at : at + size])

    feed(0, 3_000, 8)  # by then as much is kept as ever is
    before, _, after = steps(partial(feed, 3_000, 4_000), partial(feed, 4_000, 7_000, 8), partial(feed, 7_000, 8_000))
    assert after <= 1.4 * before + 2_000


def test_steps_tell_quadratic_from_linear() -> None:
    """What looks at everything again with each character is noticed, or the tests above show nothing."""

    def again(start: int, end: int) -> None:
        for size in range(start, end, 10):
            features(text[:size], packed())

    text = "Abc Def " * 100
    once, twice = steps(partial(again, 0, 400), partial(again, 0, 800))
    assert twice > 3.5 * once
    before, after = steps(partial(again, 200, 500), partial(again, 500, 800))
    assert after > 1.7 * before


class Counted:
    """Be the packed frequencies, and count what is looked up."""

    def __init__(self) -> None:
        self.words = 0

    def tenths(self, words: Iterable[str]) -> list[int]:
        asked = list(words)
        self.words += len(asked)
        return packed().tenths(asked)


def test_stream_looks_at_a_word_a_few_times() -> None:
    """A reply that arrives word by word costs a few times what it costs as a whole, not once for each word."""
    text = "Your parcel from the harbour was weighed by our colleagues, who found a dent and repaired the corner. " * 12
    frequencies = Counted()
    made = LeakDetector(KEY, words=frequencies)
    stream = made.stream(BEN, made.context())
    for word in text.split(" "):
        stream.feed(word + " ")
    stream.finish()
    assert frequencies.words <= 3 * len(text.split())


def test_random_numbers_weigh_less_among_many() -> None:
    """A bare number of few digits says little once thousands are registered."""
    made = detector("My ticket is 60417.")
    alone = verdict("It is 60417.", of=made).score
    numbers = random.Random(1)
    for user in range(2_000):
        made.register(Owner(None, f"user {user}"), "s", "user", f"My ticket is {numbers.randrange(10_000, 99_999)}.")
    assert verdict("It is 60417.", of=made).score < alone - 2


@pytest.mark.parametrize(
    ("said", "action"),
    [
        ("I drive a 2019 BMW X5.", "alert"),
        ("It is a BMW 16 to be exact.", "alert"),
        ("See ID 384 there.", "alert"),
        ("Flight LH 438 was late.", "alert"),
        ("My order is QX 7731 84.", "block"),
        ("The code is NH 4827 X.", "block"),
        ("It is order QX-7731-84.", "block"),
    ],
)
def test_a_known_word_adds_little_to_a_number(said: str, action: str) -> None:
    """Letters of a word that stands by itself and is known, and years, are not as good as random ones."""
    detector = LeakDetector()
    detector.register(ANA, "s", "user", said)
    assert detector.check(BEN, detector.context(), said).action == action
