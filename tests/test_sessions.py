"""The rules about sessions: ids nobody guesses, limits to the microsecond, time that never runs backwards."""

from __future__ import annotations

import base64
import secrets
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister import sessions, wire
from cloister.errors import IntegrityError, SessionExpired, SessionNotFound
from cloister.model import Head, Item, Limits, Owner, SealedSession, Usage, Used, to_micros

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
ANA = Owner(None, "ana")
SECOND, MICROSECOND = timedelta(seconds=1), timedelta(microseconds=1)
# No random one: each process that shares in the tests must find the same.
ID = "cs_" + base64.urlsafe_b64encode(bytes(range(32))).decode().rstrip("=")


def begun(limits: Limits | None = None, now: datetime = NOW) -> Head:
    return sessions.begin(limits or Limits(), now, None, None)


def said(head: Head, now: datetime) -> Head:
    """Give the head after a turn that was committed *now*."""
    return sessions.grow(
        head, [Item("user", "x", tokens=1)], b"t" * 16, sessions.at(head, now), b"turn", Used(Usage(1, 1))
    )


def alive(head: Head, now: datetime) -> bool:
    try:
        sessions.check_alive(head, now)
    except SessionExpired:
        return False
    return True


class TestIds:
    def test_have_256_random_bits(self) -> None:
        """An id is 32 bytes in URL-safe text behind a prefix, and every one of its bits takes both values."""
        seen = [base64.urlsafe_b64decode(sessions.new_id()[3:] + "=") for _ in range(200)]
        assert {len(data) for data in seen} == {32}
        numbers = [int.from_bytes(data, "big") for data in seen]
        assert all(0 < sum(number >> bit & 1 for number in numbers) < 200 for bit in range(256))

    def test_come_from_the_system(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The only source of an id is the operating system's generator, asked for 32 bytes."""
        asked: list[int | None] = []

        def fixed(size: int | None = None) -> bytes:
            asked.append(size)
            return b"\xff" * (size or 0)

        monkeypatch.setattr(secrets, "token_bytes", fixed)
        assert sessions.new_id() == "cs_" + "_" * 42 + "8"
        assert asked == [32]

    def test_can_lie_beside_another(self) -> None:
        """An id beside another shares the byte that says where it lies, and nothing else."""
        ids = [sessions.new_id(beside=ID) for _ in range(100)]
        assert {sessions.place_of(one) for one in ids} == {sessions.place_of(ID)}
        assert len({base64.urlsafe_b64decode(one[3:] + "=")[1:] for one in ids}) == 100
        assert len({sessions.place_of(sessions.new_id()) for _ in range(5_000)}) == 256

    def test_never_come_twice(self) -> None:
        """A hundred thousand ids are a hundred thousand different ones, in the log too."""
        ids = [sessions.new_id() for _ in range(100_000)]
        assert len(set(ids)) == 100_000
        assert len({sessions.digest(one) for one in ids[:10_000]}) == 10_000

    def test_are_accepted_as_they_were_minted(self) -> None:
        """The check gives a minted id back unchanged."""
        minted = sessions.new_id()
        assert sessions.check_id(minted) is minted

    @pytest.mark.parametrize(
        "given_id",
        [
            None,
            0,
            1.5,
            True,
            b"",
            ID.encode(),
            [ID],
            (ID,),
            {ID},
            {"id": ID},
            object,
            type("Str", (str,), {})(ID),
            "",
            " ",
            "user-123",
            "1",
            "cs_",
            ID[:-1],
            ID + "A",
            ID + "\n",
            "\n" + ID,
            " " + ID,
            ID + " ",
            ID + "\0",
            ID.upper()[:3] + ID[3:],
            "ws_" + ID[3:],
            ID[3:],
            "cs_" + "A" * 42,
            "cs_" + "A" * 44,
            "cs_" + "A" * 42 + "=",
            "cs_" + "A" * 42 + "+",
            "cs_" + "A" * 42 + "/",
            "cs_" + "A" * 42 + ".",
            "cs_" + "A" * 42 + "\u0661",
            "cs_" + "A" * 42 + "\uff21",
            "cs_" + "A" * 42 + "\u212a",
            "cs_" + "A" * 42 + "\ud800",
            "cs_" + "A" * 41 + "A\u0301",
            "cs_../../../../etc/passwd%00AAAAAAAAAAAAAAAAAA",
            "cs_' OR '1'='1' -- AAAAAAAAAAAAAAAAAAAAAAAAAAA",
            "cs_{}*?[a-z]%_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            "6f9619ff-8b86-d011-b42d-00cf4fc964ff",
            "cs_" + "A" * 1_000_000,
        ],
        ids=lambda value: ascii(value)[:24],
    )
    def test_of_another_shape_are_absent(self, given_id: Any) -> None:
        """Whatever is not an id, of any type, is the same `SessionNotFound` as an id that does not exist."""
        with pytest.raises(SessionNotFound) as caught:
            sessions.check_id(given_id)
        assert caught.value.args == SessionNotFound().args
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None

    @given(st.text(max_size=60) | st.text("cs_Aa0-", min_size=44, max_size=48))
    def test_nothing_else_is_accepted(self, text: str) -> None:
        """What passes has the prefix and 43 URL-safe ASCII characters."""
        try:
            sessions.check_id(text)
        except SessionNotFound:
            return
        assert text.isascii()
        assert (len(text), text[:3]) == (46, "cs_")
        assert text[3:].replace("-", "").replace("_", "a").isalnum() or set(text[3:]) <= {"-", "_"}

    def test_do_not_stand_in_the_log(self) -> None:
        """The name of a session in the log is a digest that holds no part of its id."""
        name = sessions.digest(ID)
        assert (len(name), name) == (24, sessions.digest(ID))
        assert name != sessions.digest(sessions.new_id())
        assert not [start for start in range(3, 40) if ID[start : start + 6] in name]


class TestLimits:
    @pytest.mark.parametrize("step", [SECOND, MICROSECOND])
    def test_idle_is_exact(self, step: timedelta) -> None:
        """A session is alive until just before its idle limit, and over at it and ever after."""
        limits = Limits(idle_timeout=timedelta(minutes=30), absolute_timeout=None)
        end = NOW + timedelta(minutes=30)
        assert sessions.expires_at(begun(limits)) == end
        assert alive(begun(limits), end - step)
        assert not alive(begun(limits), end)
        assert not alive(begun(limits), end + step)
        assert not alive(begun(limits), end + timedelta(days=10_000))

    @pytest.mark.parametrize("step", [SECOND, MICROSECOND])
    def test_absolute_is_exact_whatever_is_said(self, step: timedelta) -> None:
        """A session in constant use is over at its absolute limit."""
        head, end = begun(), NOW + timedelta(hours=12)
        now = NOW
        while now < end - timedelta(minutes=20):
            now += timedelta(minutes=20)
            head = said(head, now)
        head = said(head, end - step)
        assert sessions.expires_at(head) == end
        assert alive(head, end - step)
        assert not alive(head, end)
        assert not alive(head, end + step)

    def test_none_is_for_ever(self) -> None:
        """Without limits a session never ends."""
        head = begun(Limits(None, None))
        assert sessions.expires_at(head) is None
        assert alive(head, datetime(9999, 12, 31, tzinfo=UTC))

    def test_the_smallest_is_kept(self) -> None:
        """A limit of one microsecond is one, not none."""
        head = begun(Limits(idle_timeout=MICROSECOND))
        assert alive(head, NOW)
        assert not alive(head, NOW + MICROSECOND)

    @given(
        st.lists(
            st.tuples(st.integers(0, 3 * 10**9), st.sampled_from(["say", "amend", "describe", "hide"])), max_size=20
        )
    )
    def test_nothing_extends_the_absolute_limit_and_only_words_the_idle_one(self, steps: list[tuple[int, str]]) -> None:
        """Whatever is done in whatever order, the end is the earlier of start + 12 h and last word + 30 min."""
        head, now, last = begun(), NOW, NOW
        for wait, what in steps:
            now += wait * MICROSECOND
            if not alive(head, now):
                break
            if what == "say":
                head, last = said(head, now), now
            else:
                changed = {"describe": sessions.describe(head, "t", {}), "hide": sessions.hide(head, 0)}.get(what, head)
                head = sessions.amend(changed, sessions.at(head, now), b"turn")
            assert sessions.expires_at(head) == min(NOW + timedelta(hours=12), last + timedelta(minutes=30))
        assert head.created_at == to_micros(NOW)

    def test_time_zones_do_not_matter(self) -> None:
        """The same moment said in another time zone is the same moment."""
        end = NOW + timedelta(minutes=30)
        for hours in (-12, -5, 5, 14):
            zone = timezone(timedelta(hours=hours))
            assert alive(begun(now=NOW.astimezone(zone)), (end - MICROSECOND).astimezone(zone))
            assert not alive(begun(), end.astimezone(zone))


class TestClock:
    def test_going_back_revives_nothing_that_was_seen_later(self) -> None:
        """A session that was used at noon does not become younger when the clock says eleven."""
        head = said(begun(), NOW + timedelta(minutes=20))
        back = NOW - timedelta(days=1)
        assert sessions.at(head, back) == to_micros(NOW + timedelta(minutes=20))
        later = said(head, back)
        assert (later.active_at, later.sealed_at) == (head.active_at, head.sealed_at)
        assert sessions.expires_at(later) == sessions.expires_at(head)

    def test_going_back_does_not_extend_life(self) -> None:
        """What was seen near the end by a change that says nothing stays near the end."""
        head = begun()
        near = NOW + timedelta(minutes=30) - MICROSECOND
        head = sessions.amend(head, sessions.at(head, near), b"turn")
        assert alive(head, NOW)
        assert sessions.at(head, NOW) == to_micros(near)
        assert not alive(head, near + MICROSECOND)

    def test_going_forward_ends_what_is_over_by_then(self) -> None:
        """A clock that jumps ahead ends sessions; it does not prolong them."""
        assert not alive(begun(), NOW + timedelta(days=365))

    @given(st.lists(st.timedeltas(timedelta(hours=-1), timedelta(hours=1)), min_size=1, max_size=20))
    def test_a_sessions_time_never_runs_backwards(self, drifts: list[timedelta]) -> None:
        """However the clock jumps, what is sealed says times that only grow."""
        head, seen = begun(Limits(None, None)), [to_micros(NOW)]
        for drift in drifts:
            head = said(head, NOW + drift)
            seen.append(head.sealed_at)
            assert head.active_at == head.sealed_at >= head.created_at
        assert seen == sorted(seen)


def row_of(head: Head, **changes: Any) -> SealedSession:
    row = SealedSession(
        owner=ANA,
        id=ID,
        wrapped=b"w",
        head=b"h",
        version=head.version,
        count=head.count,
        tokens=head.tokens,
        created_at=head.created_at,
        updated_at=head.sealed_at,
        expires_at=head.expires_at,
        turn=head.turn,
    )
    return msgspec.structs.replace(row, **changes)


class TestCheck:
    def test_a_true_row_passes(self) -> None:
        """A row that copies its head truly, for the right owner and session, is accepted."""
        head = said(begun(), NOW + SECOND)
        sessions.check(row_of(head), head, ANA, ID)

    @pytest.mark.parametrize(
        "change",
        [
            {"owner": Owner(None, "ben")},
            {"owner": Owner("acme", "ana")},
            {"id": sessions.new_id()},
            {"version": 0},
            {"count": 0},
            {"tokens": 0},
            {"created_at": 0},
            {"updated_at": 0},
            {"expires_at": None},
            {"expires_at": 2**62},
            {"turn": b""},
            {"turn": b"another turn"},
            {"version": "1"},
            {"version": None},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_every_clear_column_is_compared(self, change: dict[str, Any]) -> None:
        """A clear column that does not say what the sealed head says is an integrity error."""
        head = said(begun(), NOW + SECOND)
        with pytest.raises(IntegrityError):
            sessions.check(row_of(head, **change), head, ANA, ID)


class TestGrow:
    def test_counts_everything(self) -> None:
        """A commit adds items, tokens and usage, and one to the version."""
        head = begun()
        items = [Item("user", "x", tokens=3), Item("assistant", "y", tokens=5)]
        grown = sessions.grow(head, items, b"tag", to_micros(NOW) + 7, b"turn", Used(Usage(1, 2), 3))
        grown = sessions.grow(
            grown, items[:1], b"tag2", to_micros(NOW) + 9, b"turn2", Used(Usage(10, 20, estimated=True), 4)
        )
        assert (grown.version, grown.count, grown.tokens) == (2, 3, 11)
        assert (grown.last_tag, grown.turn, grown.sealed_at) == (b"tag2", b"turn2", to_micros(NOW) + 9)
        assert (grown.usage, grown.spent) == (Usage(11, 22, estimated=True), 7)


class TestDescription:
    def test_is_kept(self) -> None:
        """Title and metadata at their bounds are kept as they are, and None leaves what there is."""
        title, metadata = "t" * 256, {f"{number:064}": "v" * 512 for number in range(16)}
        head = sessions.describe(begun(), title, metadata)
        assert (head.title, head.metadata) == (title, metadata)
        assert sessions.describe(head, None, None) == head
        assert sessions.describe(head, "", {}).title == ""
        assert sessions.describe(head, None, {}).metadata == {}

    def test_does_not_follow_the_callers_dict(self) -> None:
        """Changing the dict afterwards does not change the session."""
        metadata = {"a": "b"}
        head = sessions.describe(begun(), None, metadata)
        metadata["c"] = "d"
        assert head.metadata == {"a": "b"}

    @pytest.mark.parametrize("title", ["t" * 257, 1, b"t", ["t"], "\ud800", "a\udfff"], ids=ascii)
    def test_titles_have_bounds(self, title: Any) -> None:
        """A title that is too long, no text, or cannot be encoded is a `ValueError`."""
        with pytest.raises(ValueError, match="a title"):
            sessions.describe(begun(), title, None)

    @pytest.mark.parametrize(
        "metadata",
        [
            {str(number): "v" for number in range(17)},
            {"k" * 65: "v"},
            {"k": "v" * 513},
            {1: "v"},
            {"k": 1},
            {"k": None},
            {"k": {"nested": "v"}},
            {"k": "\ud800"},
            {"\ud800": "v"},
            {b"k": "v"},
        ],
        ids=lambda value: ascii(value)[:24],
    )
    def test_metadata_has_bounds(self, metadata: Any) -> None:
        """Too many entries, too long ones, and other types are a `ValueError`; nothing is cut or converted."""
        with pytest.raises(ValueError, match="metadata"):
            sessions.describe(begun(), None, metadata)

    def test_errors_do_not_repeat_the_text(self) -> None:
        """The error about a title counts its characters and does not show them."""
        with pytest.raises(ValueError, match="257") as caught:
            sessions.describe(begun(), "CANARY" + "t" * 251, None)
        assert "CANARY" not in str(caught.value)

    @given(
        st.text(max_size=20), st.sampled_from(["", "\ud800", "\udc00", "\ud800x", "\udc00\ud800"]), st.text(max_size=9)
    )
    def test_text_that_cannot_be_stored_is_refused_before(self, before: str, broken: str, after: str) -> None:
        """Exactly what cannot be encoded is refused, and the error says where."""
        text = before + broken + after
        if broken:
            with pytest.raises(ValueError, match=f"character {len(before)}") as caught:
                sessions.check_text(text)
            assert not isinstance(caught.value, UnicodeError)  # which would carry the text
            assert caught.value.__cause__ is None
            assert caught.value.__suppress_context__
        else:
            sessions.check_text(text)


class TestItemIds:
    @given(st.integers(0, 10**15 - 1))
    def test_say_their_position(self, position: int) -> None:
        """The position is read back out of an id."""
        assert sessions.position_of(sessions.new_item_id(position)) == position

    def test_are_unique(self) -> None:
        """Two items at the same position of different sessions have different ids."""
        assert len({sessions.new_item_id(0) for _ in range(10_000)}) == 10_000

    @pytest.mark.parametrize(
        "item_id",
        [None, 0, b"item_0_" + b"a" * 12, "", "item_0", "item_0_", "item_-1_" + "a" * 12, "item_01_" + "a" * 12,
         "item_0_" + "a" * 11, "item_0_" + "a" * 13, "item_0_" + "A" * 12, "item_0_" + "a" * 12 + "\n",
         "item_\u0661_" + "a" * 12, "item_" + "9" * 16 + "_" + "a" * 12, "item_1e3_" + "a" * 12, "x" * 100_000],
        ids=lambda value: ascii(value)[:24],
    )  # fmt: skip
    def test_of_another_shape_say_nothing(self, item_id: Any) -> None:
        """What is not an item id has no position."""
        assert sessions.position_of(item_id) is None


class TestHide:
    def test_is_remembered_once_and_in_order(self) -> None:
        """Hidden positions are kept sorted, each once."""
        head = begun()
        for position in (5, 1, 5, 3, 1):
            head = sessions.hide(head, position)
        assert head.hidden == (1, 3, 5)

    def test_has_a_bound(self) -> None:
        """A session hides a thousand items, and one more is a clear error; hiding one again is none."""
        head = msgspec.structs.replace(begun(), hidden=tuple(range(sessions.MAX_HIDDEN)))
        assert sessions.hide(head, 0) is head
        with pytest.raises(ValueError, match="1000"):
            sessions.hide(head, sessions.MAX_HIDDEN)
        assert len(sessions.hide(msgspec.structs.replace(head, hidden=head.hidden[1:]), 0).hidden) == 1_000


def test_no_service_can_make_a_session_too_dear_to_store() -> None:
    """However often a service says that a call took more than there is, what was spent can still be sealed."""
    said = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 10**30}}
    usage = wire.read(said).usage
    assert usage is not None
    head = Head(1, 1, 1, 1, None, None)
    for _ in range(20_000):
        head = sessions.spend(head, Used(usage, 1 << 52))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(head), type=Head) == head
