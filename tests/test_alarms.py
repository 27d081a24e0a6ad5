"""What becomes an alarm, how many alike are one, and who is refused for a while."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.alarms import RULES, Alarm, Alarms, Watched, consider
from cloister.attempts import Attempts
from cloister.audit import EVENTS, Chain, Entry, Event
from cloister.errors import RateLimited
from cloister.model import Owner, to_micros

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ANA, BEN = Owner(None, "ana"), Owner(None, "ben")
SEVERE = sorted(name for name, kind in EVENTS.items() if kind.severity == "alert")


class Log:
    """Writes entries, at moments that are given in seconds."""

    def __init__(self) -> None:
        self.chain = Chain.new()

    def entry(self, kind: str, at: float = 0, owner: str = "a_ana", source: str | None = None) -> Entry:
        noted = Event(kind, to_micros(NOON + timedelta(seconds=at)), detail={"source": source} if source else {})
        self.chain, entry = self.chain.extend(noted, owner, "")
        return entry


@pytest.fixture
def log() -> Log:
    return Log()


def raised(entries: list[Entry], alarms: Alarms | None = None, late: float = 0) -> list[Alarm]:
    """Everything that *entries* raise, read *late* seconds after they were written."""
    known: dict[str, Watched] = {}
    found = [consider(alarms or Alarms(), known, each, each.at + int(late * 1e6)) for each in entries]
    return [alarm for alarm in found if alarm is not None]


@pytest.mark.parametrize("kind", [kind for kind in SEVERE if kind != "alert.tested"])
def test_every_alert_is_an_alarm(log: Log, kind: str) -> None:
    """An entry of severity alert is an alarm by itself, and names the entry and its owner."""
    (alarm,) = raised([entry := log.entry(kind)])
    assert (alarm.rule, alarm.severity, alarm.meaning) == (kind, "alert", EVENTS[kind].meaning)
    assert (alarm.writer, alarm.number, alarm.hash) == (entry.writer, entry.number, entry.hash)
    assert (alarm.owner, alarm.count, alarm.repeats, alarm.late) == ("a_ana", 1, 0, False)


def test_a_test_is_not_sent_twice(log: Log) -> None:
    """The entry about a test is no alarm: whoever tests sends one himself."""
    assert raised([log.entry("alert.tested")]) == []


def test_what_happens_every_day_is_no_alarm(log: Log) -> None:
    """Entries below a warning never raise one, however many there are."""
    quiet = [kind for kind, each in EVENTS.items() if each.severity in ("info", "notice")]
    assert raised([log.entry(kind, at) for at in range(30) for kind in quiet]) == []


@pytest.mark.parametrize("name", RULES)
def test_a_rule_counts_up_to_its_threshold(log: Log, name: str) -> None:
    """One entry fewer than the threshold is no alarm; the one that reaches it is, with the count."""
    rule = RULES[name]
    threshold = getattr(Alarms(), rule.threshold)
    entries = [log.entry(rule.event, at) for at in range(threshold)]
    assert raised(entries[:-1]) == []
    (alarm,) = raised(entries)
    assert (alarm.rule, alarm.severity, alarm.count) == (name, rule.severity, threshold)
    assert alarm.number == entries[-1].number


def test_what_is_far_apart_does_not_add_up(log: Log) -> None:
    """Only what lies within the window counts together."""
    apart = Alarms().window.total_seconds() / 4
    assert raised([log.entry("access.refused", number * apart) for number in range(20)]) == []
    assert raised([log.entry("access.refused", number * apart * 0.99) for number in range(5)]) != []


def test_users_do_not_add_up(log: Log) -> None:
    """Five users who mistype an id are no breach attempt; one who does it five times is."""
    assert raised([log.entry("access.refused", owner=f"a_{number}") for number in range(100)]) == []


def test_logins_add_up_by_source(log: Log) -> None:
    """Failed logins count by where they come from, whoever they pretend to be; without a source they count together."""
    spread = [log.entry("authentication.failed", owner="", source=f"10.0.0.{number}") for number in range(40)]
    assert raised(spread) == []
    one = [log.entry("authentication.failed", owner=f"a_{number}", source="10.0.0.1") for number in range(20)]
    assert len(raised(one)) == 1
    assert len(raised([log.entry("authentication.failed", owner="") for _ in range(20)])) == 1


@pytest.mark.parametrize("detail", ["", "[]", "7", "{", '{"source": {"a": []}}', "[" * 100_000])
def test_a_detail_that_is_none_harms_nothing(log: Log, detail: str) -> None:
    """The store could hand out anything as a detail: it counts, and stops nothing."""
    broken = [msgspec.structs.replace(log.entry("authentication.failed"), detail=detail) for _ in range(20)]
    assert len(raised(broken)) == 1


def test_many_alike_are_one_alarm(log: Log) -> None:
    """Within the window the same rule and owner is one alarm; the next says how many there were between."""
    window = Alarms().window.total_seconds()
    entries = [log.entry("access.foreign", at) for at in (0, 1, 2, window - 1, window, window + 1)]
    assert [(alarm.number, alarm.repeats) for alarm in raised(entries)] == [(1, 0), (5, 3)]


def test_alarms_of_others_are_not_kept_back(log: Log) -> None:
    """Another owner's alarm, and another rule's, comes at once."""
    entries = [
        log.entry("access.foreign"),
        log.entry("access.foreign", owner="a_ben"),
        log.entry("integrity.failed"),
        log.entry("access.foreign"),
    ]
    assert [alarm.number for alarm in raised(entries)] == [1, 2, 3]


def test_what_comes_late_is_marked_and_not_dropped(log: Log) -> None:
    """An alarm that is read a week after its entry was written comes all the same, and says so."""
    assert [alarm.late for alarm in raised([log.entry("access.foreign")], late=7 * 86_400)] == [True]
    assert [alarm.late for alarm in raised([log.entry("access.foreign")], late=60)] == [False]


_steps = st.lists(
    st.tuples(
        st.sampled_from(["access.refused", "access.foreign", "writer.replaced", "turn.committed"]),
        st.integers(0, 300),
        st.sampled_from(["a_ana", "a_ben"]),
    ),
    max_size=60,
)


@given(_steps, st.integers(0, 60))
def test_who_reads_on_after_a_crash_comes_to_the_same(steps: list[tuple[str, int, str]], cut: int) -> None:
    """What is remembered can be written down at any entry and read again: the alarms after it are the same."""
    log, at = Log(), 0
    entries = [log.entry(kind, at := at + apart, owner) for kind, apart, owner in steps]
    known: dict[str, Watched] = {}
    found = []
    for number, each in enumerate(entries):
        if number == cut:
            known = msgspec.json.decode(msgspec.json.encode(known), type=dict[str, Watched])
        found += [alarm for alarm in [consider(Alarms(), known, each, each.at)] if alarm]
    assert found == raised(entries)


def test_who_forgets_in_a_crash_misses_an_alarm(log: Log) -> None:
    """It is what is written down that makes it so: whoever counts anew from the cut on misses what spans it."""
    entries = [log.entry("access.refused") for _ in range(8)]
    assert raised(entries[:4]) + raised(entries[4:]) == []
    assert len(raised(entries)) == 1


@given(_steps)
def test_nothing_severe_is_kept_back_for_longer_than_the_window(steps: list[tuple[str, int, str]]) -> None:
    """For each entry of severity alert there is an alarm for that owner less than a window before it, or by itself."""
    log, at = Log(), 0
    entries = [log.entry(kind, at := at + apart, owner) for kind, apart, owner in steps]
    alarms = [alarm for alarm in raised(entries) if alarm.rule == "access.foreign"]
    window = to_micros(NOON + Alarms().window) - to_micros(NOON)
    for each in entries:
        if each.event == "access.foreign":
            assert any(alarm.owner == each.owner and 0 <= each.at - alarm.at < window for alarm in alarms)
    told = sum(1 + alarm.repeats for alarm in alarms)
    assert told <= sum(each.event == "access.foreign" for each in entries)


def test_memory_is_bounded(log: Log) -> None:
    """A crowd of owners makes it forget the oldest, and the newest alarm still comes."""
    known: dict[str, Watched] = {}
    for number in range(3_000):
        assert consider(Alarms(), known, log.entry("access.foreign", owner=f"a_{number}"), to_micros(NOON))
    assert len(known) == 1_000
    assert len(msgspec.json.encode(known)) < 100_000


def test_what_no_longer_counts_is_forgotten(log: Log) -> None:
    """What was seen longer ago than the window takes no room."""
    known: dict[str, Watched] = {}
    for number in range(10):
        consider(Alarms(), known, log.entry("access.refused", owner=f"a_{number}"), 0)
    consider(Alarms(), known, log.entry("access.refused", 3_600), 0)
    assert list(known) == ["breach.attempt a_ana"]


@pytest.mark.parametrize("wrong", [{"refusals": 0}, {"suspend_after": 1.5}, {"window": timedelta(0)}, {"limits": True}])
def test_settings_are_checked(wrong: dict[str, int]) -> None:
    """A threshold of nothing is a mistake, and is told at once."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Alarms(**wrong)  # type: ignore[arg-type] # the mistake


def test_log_injection_stays_in_a_detail(log: Log) -> None:
    """What callers put into a source splits nothing: the alarm carries it as the escaped text that the entry has."""
    nasty = 'x"}\n{"rule": "forged"}\x1b[2J\u2028\u202e\x00'
    entries = [log.entry("authentication.failed", source=nasty) for _ in range(20)]
    (alarm,) = raised(entries)
    assert alarm.detail.isascii()
    assert alarm.detail.isprintable()
    assert json.loads(alarm.detail) == {"source": nasty}


# --- refused for a while ----------------------------------------------------------------------------------------------


def attempts() -> Attempts:
    return Attempts(most=3, window=timedelta(minutes=10), duration=timedelta(minutes=5))


def at(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


def test_one_attempt_too_many_suspends() -> None:
    """Up to the limit nothing happens; the attempt that reaches it suspends, and says until when."""
    tried = attempts()
    assert [tried.failed(ANA, at(minute)) for minute in (0, 1)] == [None, None]
    tried.check(ANA, at(1))
    assert tried.failed(ANA, at(2)) == at(7)
    with pytest.raises(RateLimited) as raised:
        tried.check(ANA, at(4))
    assert raised.value.retry_after == timedelta(minutes=3)
    tried.check(ANA, at(7))


def test_others_are_not_suspended() -> None:
    """Who is suspended is suspended alone."""
    tried = attempts()
    for _ in range(3):
        tried.failed(ANA, at(0))
    tried.check(BEN, at(0))
    tried.check(Owner("acme", "ana"), at(0))


def test_a_suspension_is_told_once_and_counting_begins_anew() -> None:
    """Attempts that were under way change nothing; after it ends it takes as many again."""
    tried = attempts()
    assert [tried.failed(ANA, at(0)) for _ in range(5)] == [None, None, at(5), None, None]
    assert [tried.failed(ANA, at(6)) for _ in range(3)] == [None, None, at(11)]


def test_slow_attempts_do_not_add_up_forever() -> None:
    """What lies further back than the window does not count."""
    tried = attempts()
    assert [tried.failed(ANA, at(minute)) for minute in range(0, 60, 6)] == [None] * 10


def test_a_clock_set_back_prolongs_nothing() -> None:
    """Whatever becomes of the clock, a suspension is never longer than it was meant to be."""
    tried = attempts()
    for _ in range(3):
        tried.failed(ANA, at(600))
    tried.check(ANA, at(0))
    with pytest.raises(RateLimited):
        tried.check(ANA, at(601))


def test_memory_of_attempts_is_bounded() -> None:
    """Ten thousand owners are remembered; of more, the one whose last attempt is the longest ago is not."""
    tried = attempts()
    tried.failed(ANA, at(0))
    for number in range(10_000):
        tried.failed(Owner(None, str(number)), at(0))
    assert [tried.failed(ANA, at(0)) for _ in range(3)] == [None, None, at(5)]
    assert len(tried._tried) == 10_000
