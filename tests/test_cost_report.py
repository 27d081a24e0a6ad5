"""Summing up what the audit log says about costs, and comparing models."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.audit import Chain, Entry, event
from cloister.costs import Prices, cost
from cloister.costs.compare import Usages, compare
from cloister.costs.report import BY, By, Key, Report, Sum
from cloister.model import Owner, Usage, to_micros

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
OWNERS = {
    "a_ana": Owner("acme", "ana"),
    "a_ben": Owner("acme", "ben"),
    "a_other": Owner("globex", "ana"),  # the same name, and somebody else
}
SPENT: dict[str, Any] = {
    "provider": "openai",
    "model": "gpt-4.1",
    "input_tokens": 1_000,
    "output_tokens": 100,
    "cached_tokens": 400,
    "reasoning_tokens": 30,
    "estimated": False,
    "cost": "0.0022",
    "currency": "USD",
}


def turn(
    owner: str = "a_ana", kind: str = "turn.committed", at: datetime = NOW, session: str = "s", **said: Any
) -> Entry:
    """Give an entry as a store gives it; a value of None leaves the name out."""
    detail = {name: value for name, value in {**SPENT, **said}.items() if value is not None}
    return Chain.new().extend(event(kind, at, session=session, **detail), owner, "")[1]


def summed(by: By, *entries: Entry, **given: Any) -> Report:
    report = Report(by, OWNERS, **given)
    for entry in entries:
        report.add(entry)
    return report


def only(report: Report) -> Sum:
    (row,) = report.rows.values()
    return row


def test_one_turn() -> None:
    """A turn's tokens and money arrive in its row as they stand in the entry."""
    row = only(summed("user", turn()))
    assert row == Sum(1, 0, Usage(1_000, 100, 400, 30), 0, {"USD": Decimal("0.0022")}, 0, 0)


@pytest.mark.parametrize(
    ("by", "keys"),
    [
        (
            "user",
            [
                (("tenant", "acme"), ("user", "ana")),
                (("tenant", "acme"), ("user", "ben")),
                (("tenant", "globex"), ("user", "ana")),
                (("audit_id", "a_gone"),),
                (("audit_id", ""),),
            ],
        ),
        (
            "tenant",
            [(("tenant", "acme"),), (("tenant", "globex"),), (("audit_id", "a_gone"),), (("audit_id", ""),)],
        ),
        ("session", [(("session", "s"),), (("session", "t"),)]),
        ("model", [(("provider", "openai"), ("model", "gpt-4.1")), (("provider", None), ("model", "own"))]),
        ("day", [(("day", "2026-11-21"),), (("day", "2026-11-20"),)]),
    ],
)
def test_rows(by: By, keys: list[Key]) -> None:
    """Rows are by tenant, user, session, model or day of UTC; an erased owner stays under the audit id."""
    report = summed(
        by,
        turn(),
        turn("a_ben", session="t"),
        turn("a_other", at=NOW - timedelta(hours=12, microseconds=1)),
        turn("a_gone", provider=None, model="own"),
        turn("", "turn.failed"),
    )
    assert list(report.rows) == keys
    assert report.total.turns == 5


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*OWNERS, "a_gone"]),
            st.sampled_from(["turn.committed", "turn.failed", "session.started"]),
            st.integers(0, 10**6),
            st.integers(0, 10**6),
            st.none() | st.decimals(0, 1_000, places=12).map(lambda amount: format(amount, "f")),
            st.sampled_from(["USD", "EUR"]),
            st.booleans(),
        ),
        max_size=30,
    ),
    st.sampled_from(BY),
)
def test_whole_is_the_sum_of_its_parts(turns: list[tuple[Any, ...]], by: By) -> None:
    """However the rows are cut, together they are all turns, to the last digit."""
    report = Report(by, OWNERS)
    money: dict[str, Decimal] = {}
    tokens = unpriced = estimated = 0
    for owner, kind, read, wrote, spent, currency, guessed in turns:
        said = {"input_tokens": read, "output_tokens": wrote, "cost": spent, "currency": currency}
        report.add(msgspec.structs.replace(turn(owner, **said, estimated=guessed), event=kind))
        if kind != "session.started":
            tokens += read + wrote
            estimated += (read + wrote) * guessed
            unpriced += (read + wrote) * (spent is None)
            if spent is not None:
                money[currency] = money.get(currency, Decimal(0)) + Decimal(spent)
    total = report.total
    assert (total.usage.total_tokens, total.estimated_tokens, total.unpriced_tokens) == (tokens, estimated, unpriced)
    assert total.money == money
    assert total.turns == sum(kind != "session.started" for _, kind, *_ in turns)


def test_span() -> None:
    """What happened from the first moment on counts, and what happened at the last one no longer."""
    moments = [NOW, NOW + timedelta(hours=1), NOW + timedelta(hours=2)]
    entries = [turn(at=moment) for moment in moments]
    first, _, last = map(to_micros, moments)
    assert summed("user", *entries, since=first, until=last).total.turns == 2
    assert summed("user", *entries, since=first + 1, until=last + 1).total.turns == 2
    assert summed("user", *entries, until=first).total.turns == 0


def test_one_tenant() -> None:
    """Another tenant's turns stay out; those of erased users too, and how many those are is said."""
    report = summed("user", turn(), turn("a_other"), turn("a_gone"), turn(""), tenant="acme")
    assert list(report.rows) == [(("tenant", "acme"), ("user", "ana"))]
    assert report.unresolved == 2


def test_failed_turns_cost_too() -> None:
    """What a turn spent before it failed is counted, and how many failed is said."""
    row = only(summed("user", turn(), turn(kind="turn.failed", cost="1")))
    assert (row.turns, row.failed, row.money) == (2, 1, {"USD": Decimal("1.0022")})


def test_without_a_price() -> None:
    """Usage without a price is counted as such, by its model; it is in no amount, and not free."""
    free = turn(provider="vllm", model="mine", cost="0")
    report = summed(
        "user", turn(), turn(model="new", cost=None), turn(cost=None, input_tokens=0, output_tokens=0), free
    )
    row = only(report)
    assert (row.unpriced_turns, row.unpriced_tokens, row.money) == (1, 1_100, {"USD": Decimal("0.0022")})
    assert report.unpriced == {("openai", "new")}


def test_currencies_are_kept_apart() -> None:
    """Amounts of different currencies are never added up."""
    row = only(summed("tenant", turn(), turn(currency="EUR", cost="2")))
    assert row.money == {"USD": Decimal("0.0022"), "EUR": Decimal(2)}


def test_estimated_share() -> None:
    """How much of the tokens nobody counted is said as a share of all tokens."""
    row = only(summed("user", turn(), turn(estimated=True, input_tokens=2_000, output_tokens=1_300)))
    assert row.estimated_share == 0.75
    assert Sum().estimated_share == 0


def test_entries_of_old() -> None:
    """An entry that says no more than its tokens is read as such."""
    nothing: dict[str, Any] = dict.fromkeys(SPENT)
    entry = turn(**{**nothing, "input_tokens": 7, "output_tokens": 5})
    assert json.loads(entry.detail) == {"input_tokens": 7, "output_tokens": 5}
    row = only(summed("model", entry))
    assert (row.usage, row.unpriced_tokens) == (Usage(7, 5), 12)


@pytest.mark.parametrize(
    "changed",
    [
        {"detail": "not JSON"},
        {"detail": ""},
        {"detail": "[1]"},
        {"detail": '{"input_tokens": -1}'},
        {"detail": '{"input_tokens": 1.5}'},
        {"detail": '{"input_tokens": "7"}'},
        {"detail": '{"input_tokens": true}'},
        {"detail": '{"cost": 0.1}'},
        {"detail": '{"cost": "-1"}'},
        {"detail": '{"cost": "NaN"}'},
        {"detail": '{"cost": "1e999999999"}'},
        {"detail": '{"cost": "1", "currency": "dollars"}'},
        {"detail": '{"model": 3}'},
        {"detail": '{"model": "\ud800"}'},
        {"detail": b"{}\xff"},
        {"detail": 3},
        {"at": "yesterday"},
        {"number": "one"},
    ],
    ids=str,
)
def test_unreadable_entries(changed: dict[str, Any]) -> None:
    """An entry that somebody changed is counted as unreadable and stops nothing."""
    report = summed("user", msgspec.structs.replace(turn(), **changed), turn(), since=0)
    assert (report.unreadable, report.total.turns) == (1, 1)


def test_an_entry_counts_once() -> None:
    """A store may give an entry again, for those who follow the log; it is counted once."""
    chain, first = Chain.new().extend(event("turn.committed", NOW, session="s", **SPENT), "a_ana", "")
    second = chain.extend(event("turn.failed", NOW, session="s", **SPENT), "a_ana", "")[1]
    assert summed("user", first, turn(), first, second, first, second).total.turns == 3


def test_moment_beyond_all_calendars() -> None:
    """An entry of a moment that no calendar has is unreadable where days count."""
    assert summed("day", msgspec.structs.replace(turn(), at=1 << 62), turn()).unreadable == 1


def test_order() -> None:
    """The dearest stands first, then what took most tokens; days stand in their order."""
    entries = [
        turn("a_ben", cost="0.5"),
        turn("a_ana", cost="2"),
        turn("a_other", cost=None),
        turn("a_gone", cost=None, input_tokens=9_999),
    ]
    assert [key[-1][1] for key, _ in summed("user", *entries).sorted()] == ["ana", "ben", "a_gone", "ana"]
    days = [turn(at=NOW - timedelta(days=n), cost=str(n)) for n in (3, 1, 2)]
    found = [key[0][1] for key, _ in summed("day", *days).sorted()]
    assert found == ["2026-11-18", "2026-11-19", "2026-11-20"]


# --- other models -----------------------------------------------------------------------------------------------------


def test_compare() -> None:
    """The same counts at every model's price, the cheapest first, those in use marked."""
    usages: Usages = {
        ("openai", "gpt-4.1-2025-04-14"): Usage(0, 1_000_000),
        ("openai", "gpt-4.1-mini"): Usage(0, 500_000),
    }
    rows = {row.price.key: row for row in compare(usages, Prices.default(), NOW)}
    assert rows["openai", "gpt-4.1"].cost == 12
    assert rows["holysheep", "deepseek-v3.2"].cost == Decimal("0.63")
    assert {key for key, row in rows.items() if row.used} == {("openai", "gpt-4.1"), ("openai", "gpt-4.1-mini")}
    costs = [row.cost for row in rows.values()]
    assert costs == sorted(costs)
    assert ("offline", "*") not in rows


def test_compare_says_where_a_cache_is_not_known() -> None:
    """Where no price for cached input is known it counts in full, and that is said; elsewhere it is not."""
    usages: Usages = {("openai", "gpt-4.1"): Usage(1_000_000, 0, 1_000_000)}
    rows = {row.price.key: row for row in compare(usages, Prices.default(), NOW)}
    known, unknown = rows["openai", "gpt-4.1"], rows["holysheep", "deepseek-v3.2"]
    assert (known.cost, known.cache_unknown) == (Decimal("0.5"), False)
    assert (unknown.cost, unknown.cache_unknown) == (Decimal("0.42"), True)
    assert not rows["vllm", "*"].cache_unknown
    without = compare({("openai", "gpt-4.1"): Usage(1_000_000)}, Prices.default(), NOW)
    assert not any(row.cache_unknown for row in without)


def test_compare_does_not_take_a_month_for_one_long_call() -> None:
    """A thousand short calls are no long one: the dearer rates of long calls are left out."""
    usages: Usages = {("openai", "gpt-6.1-terra"): Usage(10_000_000)}
    (row,) = (row for row in compare(usages, Prices.default(), NOW) if row.used)
    assert row.cost == 10
    assert cost(Usage(10_000_000), row.price) == 20  # what it would have come to
