"""The values: owners that cannot be confused, limits that make sense, reprs that tell no words."""

from __future__ import annotations

import copy
import pickle
import unicodedata
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from rich.pretty import pretty_repr

from cloister import sessions
from cloister.model import EPOCH, Head, Item, Limits, Owner, Reply, Usage, from_micros, to_micros
from cloister.sealing import SessionKeys, owner_fields

NOW = datetime(2026, 1, 1, tzinfo=UTC)

# Default_Ignorable_Code_Point of Unicode's DerivedCoreProperties, written down here so that the rule is not its own
# witness; and what is a blank or a separator without being U+0020.
IGNORABLE = [
    *(0x00AD, 0x034F, 0x061C, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFEFF, 0xFFA0),
    *range(0x180B, 0x1810),
    *range(0x200B, 0x2010),
    *range(0x202A, 0x202F),
    *range(0x2060, 0x2070),
    *range(0xFE00, 0xFE10),
    *range(0xFFF0, 0xFFF9),
    *range(0x1BCA0, 0x1BCA4),
    *range(0x1D173, 0x1D17B),
    *range(0xE0000, 0xE1000),
]
BLANK = [0x00A0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x2800, 0x3000]
CONTROL = [*range(0x20), *range(0x7F, 0xA0)]
SURROGATES = [0xD800, 0xDBFF, 0xDC00, 0xDFFF]
PRIVATE = [0xE000, 0xF8FF, 0xF0000, 0x10FFFD]
NONCHARACTERS = [0xFDD0, 0xFFFE, 0xFFFF, 0x1FFFF, 0x10FFFF]

# Names made of what attackers use: separators, wildcards, quotes, parts of composed letters, compatibility letters.
TRICKY = st.text(
    st.sampled_from("abAB:/|\\*?%_{}[]()#$'\"`;,.-+=~@& 0\u00e9e\u0301\ufb01fi\u212b\u00c5\u0130iI\u00df"), max_size=8
)
NAMES = st.one_of(TRICKY, st.text(max_size=12))


def accepted(name: str) -> bool:
    try:
        Owner(None, name)
    except ValueError:
        return False
    return True


OWNERS = st.builds(Owner, st.none() | NAMES.filter(accepted), NAMES.filter(accepted))


class TestOwner:
    @pytest.mark.parametrize(
        "codes",
        [IGNORABLE, BLANK, CONTROL, SURROGATES, PRIVATE, NONCHARACTERS],
        ids=["ignorable", "blank", "control", "surrogates", "private", "noncharacters"],
    )
    def test_what_cannot_be_seen_is_refused(self, codes: list[int]) -> None:
        """A name with a character that shows nothing is refused wherever it stands, as user and as tenant."""
        for character in map(chr, codes):
            for name in (f"a{character}na", f"{character}ana", f"ana{character}", character):
                with pytest.raises(ValueError, match="invisible, special or unassigned"):
                    Owner(None, name)
                with pytest.raises(ValueError, match="invisible, special or unassigned"):
                    Owner(name, "ana")

    @pytest.mark.parametrize("code", [0x1D159, 0x16FE4, 0x13441, 0x13442], ids=lambda code: f"U+{code:04X}")
    def test_blank_glyphs_are_refused(self, code: int) -> None:
        """Symbols and letters whose glyph is blank by definition are refused as well."""
        with pytest.raises(ValueError, match="invisible"):
            Owner(None, f"ana{chr(code)}")

    @pytest.mark.parametrize("name", ["", "a" * 257, "é" * 257, " ana", "ana ", " ", "a" * 100_000])
    def test_length_and_edges(self, name: str) -> None:
        """Empty, overlong and space-edged names are refused."""
        with pytest.raises(ValueError, match="must"):
            Owner(None, name)
        with pytest.raises(ValueError, match="must"):
            Owner(name, "ana")

    def test_the_longest_name_is_accepted(self) -> None:
        """256 characters are allowed, whatever their bytes."""
        for name in ("a" * 256, "é" * 256, "\U0001f600" * 256):
            assert Owner(name, name).user == name

    @pytest.mark.parametrize("name", [None, 1, b"ana", ["ana"], True, float("nan"), object()])
    def test_other_types_are_refused(self, name: object) -> None:
        """A user that is not text is refused, not converted."""
        with pytest.raises(ValueError, match="must be a str"):
            Owner(None, name)  # type: ignore[arg-type] # the attack
        if name is not None:
            with pytest.raises(ValueError, match="must be a str"):
                Owner(name, "ana")  # type: ignore[arg-type] # the attack

    def test_a_subclass_of_str_is_refused(self) -> None:
        """A str that may compare or encode as it likes is refused."""

        class Chameleon(str):
            def __eq__(self, other: object) -> bool:
                return True

            __hash__ = str.__hash__

        with pytest.raises(ValueError, match="must be a str"):
            Owner(None, Chameleon("ana"))

    def test_decomposed_is_refused_and_composed_accepted(self) -> None:
        """The two encodings of one letter never name two users: only the composed one is accepted."""
        assert Owner(None, "Zo\u00eb").user == "Zo\u00eb"
        with pytest.raises(ValueError, match="normal form C"):
            Owner(None, "Zoe\u0308")
        with pytest.raises(ValueError, match="normal form C"):
            Owner(None, "\u212b")  # the Angstrom sign, whose normal form is the letter

    @pytest.mark.parametrize(
        ("one", "other"),
        [("alice", "Alice"), ("\ufb01n", "fin"), ("\uff41na", "ana"), ("stra\u00dfe", "strasse"), ("\u0430na", "ana")],
    )
    def test_what_other_foldings_would_merge_stays_apart(self, one: str, other: str) -> None:
        """Case, compatibility forms and lookalikes of another script name different owners."""
        assert Owner(None, one) != Owner(None, other)
        assert owner_fields(Owner(None, one)) != owner_fields(Owner(None, other))

    @pytest.mark.parametrize(
        "name", ["*", "%", "_", "{}", "{user}", "a?b", "[a-z]", "../ana", "a:b", "' OR 1=1 --", "~*"]
    )
    def test_wildcards_are_literal(self, name: str) -> None:
        """Characters that mean something in keys, patterns and statements are just characters."""
        owner = Owner(name, name)
        assert (owner.tenant, owner.user) == (name, name)
        assert owner_fields(owner) != owner_fields(Owner("acme", "ana"))

    def test_no_tenant_equals_no_named_tenant(self) -> None:
        """The tenantless owner is nobody's alias: no named tenant, ``"None"`` included, equals it."""
        nameless = Owner(None, "ana")
        for tenant in ("None", "null", "default", "0", "ana", "-"):
            assert Owner(tenant, "ana") != nameless
            assert owner_fields(Owner(tenant, "ana")) != owner_fields(nameless)

    @given(OWNERS, OWNERS)
    def test_different_owners_are_encoded_differently(self, one: Owner, other: Owner) -> None:
        """Two accepted owners have the same encoding only if they are the same."""
        assert (one == other) == (owner_fields(one) == owner_fields(other))

    @given(st.text(st.sampled_from("ab:/|*\u00e9"), min_size=2, max_size=10), st.data())
    def test_joined_pairs_stay_apart(self, text: str, data: st.DataObject) -> None:
        """``a:b`` + ``c`` and ``a`` + ``b:c``, and every other way to cut one text in two, are different owners."""
        cuts = data.draw(
            st.lists(st.integers(1, len(text) - 1), min_size=2, max_size=2, unique=True)
            if len(text) > 2
            else st.just([1, 1])
        )
        assume(cuts[0] != cuts[1])
        one, other = (Owner(text[:cut], text[cut:]) for cut in cuts)
        assert one != other
        assert owner_fields(one) != owner_fields(other)

    @given(OWNERS, st.text(max_size=6), OWNERS, st.text(max_size=6))
    def test_no_encoding_is_the_beginning_of_another(self, one: Owner, after: str, other: Owner, rest: str) -> None:
        """Whatever follows an owner in associated data cannot turn it into another owner."""
        assume(one != other)
        assert owner_fields(one) + after.encode() != owner_fields(other) + rest.encode()

    @given(NAMES)
    def test_accepted_names_are_kept_verbatim(self, name: str) -> None:
        """A name is refused or kept as it is, never repaired."""
        assume(accepted(name))
        assert Owner(name, name).user == name
        assert unicodedata.is_normalized("NFC", name)
        assert name == name.strip()
        assert name.isprintable()

    def test_shows_both_names_on_one_line(self) -> None:
        """``str`` shows tenant and user, quoted, so that neither can pose as the other."""
        assert str(Owner("acme", "ana")) == "tenant 'acme', user 'ana'"
        assert str(Owner(None, "ana")) == "user 'ana'"
        assert str(Owner("x', user 'ben", "ana")) != str(Owner("x", "ben', user 'ana"))

    def test_is_a_value(self) -> None:
        """An owner cannot be changed, and its copies are equal to it."""
        owner = Owner("acme", "ana")
        with pytest.raises(AttributeError):
            owner.user = "ben"  # type: ignore[misc] # the attack
        assert pickle.loads(pickle.dumps(owner)) == copy.deepcopy(owner) == owner
        assert len({owner, Owner("acme", "ana"), Owner(None, "ana")}) == 2


class TestUsage:
    def test_adds_up(self) -> None:
        """Usages add up field by field, and stay estimates once one of them was."""
        total = Usage(1, 2, 3, 4) + Usage(10, 20, 30, 40, estimated=True) + Usage()
        assert total == Usage(11, 22, 33, 44, estimated=True)
        assert total.total_tokens == 33


class TestRepr:
    def test_an_item_hides_its_words(self) -> None:
        """The repr of an item shows its role, never its content, tool calls or extras."""
        item = Item("user", "CANARY", tool_calls=[{"x": "CANARY"}], extra={"x": "CANARY"}, error="CANARY")
        assert "CANARY" not in f"{item!r} {item} {[item]}"

    def test_an_item_hides_its_words_from_rich(self) -> None:
        """Rich, which prints tracebacks with their variables, does not show an item's words either."""
        assert "CANARY" not in pretty_repr(Item("user", "CANARY", tool_calls=[{"x": "CANARY"}]))

    def test_a_reply_hides_its_words(self) -> None:
        """The repr of a reply shows neither its text nor its tool calls."""
        reply = Reply("CANARY", None, tool_calls=({"arguments": "CANARY"},))
        assert "CANARY" not in f"{reply!r} {reply} {pretty_repr(reply)}"

    def test_a_head_hides_title_and_metadata(self) -> None:
        """Title and metadata are sealed in the store, so the repr of an opened head does not show them."""
        head = sessions.begin(Limits(), NOW, "CANARY", {"CANARY": "CANARY"})
        assert "CANARY" not in f"{head!r} {head}"
        assert "CANARY" not in pretty_repr(head)


class TestItem:
    @pytest.mark.parametrize(
        ("content", "text"),
        [
            ("hello", "hello"),
            (None, ""),
            ([], ""),
            (
                [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "b"}],
                "ab",
            ),
        ],
    )
    def test_text_is_what_was_said(self, content: str | list[dict[str, object]] | None, text: str) -> None:
        """``text`` is the text of all parts, and nothing of the others."""
        assert Item("user", content).text == text


class TestLimits:
    def test_the_default_is_strict(self) -> None:
        """The default is 30 minutes idle and 12 hours in all."""
        assert Limits() == Limits.strict()
        assert (Limits().idle_timeout, Limits().absolute_timeout) == (timedelta(minutes=30), timedelta(hours=12))

    def test_keep_has_no_absolute_end(self) -> None:
        """``keep`` is for histories that people come back to."""
        assert Limits.keep(days=7) == Limits(timedelta(days=7), None)

    @pytest.mark.parametrize("value", [timedelta(0), timedelta(microseconds=-1), timedelta(days=-1)])
    def test_nothing_and_less_are_refused(self, value: timedelta) -> None:
        """A timeout of nothing or less is refused instead of meaning for ever."""
        for name in ("idle_timeout", "absolute_timeout"):
            with pytest.raises(ValueError, match=name):
                Limits(**{name: value})
        with pytest.raises(ValueError, match="idle_timeout"):
            Limits.keep(days=value / timedelta(days=1))

    def test_a_wait_may_be_nothing_but_not_less(self) -> None:
        """``turn_wait`` of nothing means not to wait."""
        assert Limits(turn_wait=timedelta(0)).turn_wait == timedelta(0)
        with pytest.raises(ValueError, match="turn_wait"):
            Limits(turn_wait=timedelta(microseconds=-1))

    @pytest.mark.parametrize("value", [30, 0, "30", True])
    def test_numbers_are_not_durations(self, value: object) -> None:
        """A bare number, whose unit nobody knows, is refused when the limits are made."""
        with pytest.raises((TypeError, ValueError)):
            Limits(idle_timeout=value)  # type: ignore[arg-type] # the mistake

    @pytest.mark.parametrize("value", [timedelta(days=36_500), timedelta(days=3_000_000), timedelta.max])
    def test_what_is_accepted_works(self, value: timedelta) -> None:
        """A timeout is refused when the limits are made, or a session with it can be sealed and says when it ends."""
        try:
            limits = Limits(value, value)
        except ValueError:
            return
        head = sessions.begin(limits, NOW, None, None)
        assert SessionKeys(b"k" * 32, Owner(None, "ana"), sessions.new_id()).seal_head(head)
        assert sessions.expires_at(head)


class TestTime:
    @given(st.datetimes(timezones=st.integers(-14, 14).map(lambda hours: timezone(timedelta(hours=hours)))))
    def test_moments_survive_the_store(self, moment: datetime) -> None:
        """A moment in any time zone comes back exactly, in UTC."""
        try:
            assert from_micros(to_micros(moment)) == moment
        except OverflowError:  # beyond the years 1 to 9999 in UTC
            assert moment.year in (1, 9999)
        assert from_micros(to_micros(EPOCH)).tzinfo is UTC

    def test_a_naive_moment_is_refused(self) -> None:
        """A moment without a time zone is an error, not a guess."""
        with pytest.raises(TypeError):
            to_micros(datetime(2026, 1, 1))  # noqa: DTZ001 - the mistake


class TestHead:
    @given(
        st.integers(0, 10**15),
        st.integers(0, 10**9),
        st.none() | st.integers(1, 10**9),
        st.none() | st.integers(1, 10**9),
    )
    def test_ends_at_the_nearer_limit(self, created: int, later: int, idle: int | None, absolute: int | None) -> None:
        """A session ends at the earlier of its limits, or never without any."""
        head = Head(1, created, created + later, created + later, idle, absolute)
        ends = [created + later + idle] if idle is not None else []
        ends += [created + absolute] if absolute is not None else []
        assert head.expires_at == (min(ends) if ends else None)

    def test_old_heads_are_still_read(self) -> None:
        """A head without the newest fields opens with their defaults."""
        old = msgspec.msgpack.encode([1, 2, 3, 4, None, None])
        assert msgspec.msgpack.decode(old, type=Head) == Head(1, 2, 3, 4, None, None)
