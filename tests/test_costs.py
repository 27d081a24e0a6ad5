"""Prices, what usage costs, budgets: the rule of money."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_DOWN, Context, Decimal, localcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.costs import Budget, Cap, Price, Prices, cost, exceeded, from_nanos, periods, plain, reservation, to_nanos
from cloister.costs.money import MOST_NANOS, amount, shown
from cloister.costs.rates import Tier
from cloister.errors import ConfigurationError
from cloister.model import Usage, from_micros

NOW = datetime(2026, 11, 21, 22, 30, tzinfo=UTC)
DEFAULT = Prices.default()

tokens = st.integers(0, 1 << 53)
rates = st.decimals(0, 1_000_000, places=9)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    """Give usage as providers state it: the parts are parts of the whole."""
    read, wrote = draw(tokens), draw(tokens)
    cached = draw(st.integers(0, read))
    written = draw(st.integers(0, read - cached))
    return Usage(read, wrote, cached, draw(st.integers(0, wrote)), cache_write_tokens=written)


@st.composite
def prices(draw: st.DrawFn) -> Price:
    maybe = st.none() | rates
    return Price(
        provider="p",
        model="m",
        source="s",
        as_of=date(2026, 11, 21),
        input=draw(rates),
        output=draw(rates),
        cached_input=draw(maybe),
        cache_write=draw(maybe),
        reasoning=draw(maybe),
    )


def price(**said: str | int) -> Price:
    rates = {name: Decimal(rate) for name, rate in ({"input": "2", "output": "8"} | said).items()}
    return Price(provider="p", model="m", source="s", as_of=date(2026, 11, 21), **rates)  # type: ignore[arg-type]


def named(provider: str | None, model: str, at: datetime | None = None) -> Price:
    found = DEFAULT.find(provider, model, at)
    assert found is not None
    return found


# --- the figures ------------------------------------------------------------------------------------------------------


def test_figures_of_the_seed() -> None:
    """A million tokens from GPT-4.1 are $8, from DeepSeek V3.2 at HolySheep $0.42, which is 95 % less."""
    million = Usage(output_tokens=1_000_000)
    dear, cheap = cost(million, named("openai", "gpt-4.1")), cost(million, named("holysheep", "deepseek-v3.2"))
    assert (dear, cheap) == (Decimal(8), Decimal("0.42"))
    assert round(1 - cheap / dear, 2) == Decimal("0.95")
    assert cost(Usage(1_000_000), named("openai", "gpt-4.1")) == 2


def test_every_row_says_where_from_and_when() -> None:
    """Each row of the table has a source and a day that was, and no two are for the same model and day."""
    keys = [(row.key, row.as_of) for row in DEFAULT.rows]
    assert len(keys) == len(set(keys)) > 30
    for row in DEFAULT.rows:
        assert len(row.source) > 10
        assert date(2026, 1, 1) < row.as_of <= datetime.now(UTC).date()
        assert row.currency == "USD"


def test_models_that_are_asked_by_default_have_a_price() -> None:
    """Every provider's usual model has a price, those on one's own machine the price of nothing."""
    from cloister.providers.anthropic import MODEL
    from cloister.providers.openai import PROFILES

    usual = {name: profile.model for name, profile in PROFILES.items()} | {"anthropic": MODEL, "offline": "offline-1"}
    free = {provider for provider, model in usual.items() if not cost(Usage(9, 9), named(provider, model))}
    assert free == {"vllm", "ollama", "offline"}


def test_what_is_not_known_is_said() -> None:
    """The row whose input price nobody published says so, and stands no lower than what it might be."""
    row = named("holysheep", "deepseek-chat")
    assert "not known" in row.source
    assert row.input == row.output


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (Usage(1_000_000), "2"),
        (Usage(1_000_000, cached_tokens=1_000_000), "0.5"),
        (Usage(1_000_000, cached_tokens=400_000), "1.4"),
        (Usage(0, 1_000_000), "8"),
        (Usage(0, 1_000_000, reasoning_tokens=1_000_000), "8"),
        (Usage(1, 1), "0.00001"),
    ],
)
def test_cost(usage: Usage, expected: str) -> None:
    """Cached tokens are part of the input at their own price, reasoning part of the output."""
    assert cost(usage, named("openai", "gpt-4.1-2025-04-14")) == Decimal(expected)


def test_writing_to_a_cache_costs_more() -> None:
    """What Anthropic wrote to its cache costs a quarter more than other input."""
    row = named("anthropic", "claude-sonnet-5-5")
    assert cost(Usage(1_000_000, cache_write_tokens=1_000_000), row) == Decimal("2.5")
    assert cost(Usage(1_000_000, cached_tokens=500_000, cache_write_tokens=500_000), row) == Decimal("1.3")


def test_long_calls_cost_more() -> None:
    """Above a tier's number of input tokens all tokens of the call cost what the tier says; at it they do not."""
    row = named("openai", "gpt-6.1-terra")
    assert cost(Usage(272_000, 1_000_000), row) == Decimal("5.272")
    assert cost(Usage(272_001, 1_000_000), row) == Decimal("8.044002")


def test_parts_beyond_the_whole() -> None:
    """A provider that states more cached tokens than input is charged for no more than the input."""
    assert cost(Usage(10, 0, 1_000_000), price(cached_input="2")) == cost(Usage(10), price())
    assert cost(Usage(0, 10, 0, 1_000_000), price(reasoning="8")) == cost(Usage(0, 10), price())


@given(usages(), usages(), prices())
def test_sum_of_parts(one: Usage, other: Usage, price: Price) -> None:
    """What two calls cost is what their usage costs together, to the last digit."""
    assert to_exact(cost(one, price)) + to_exact(cost(other, price)) == to_exact(cost(one + other, price))


def to_exact(amount: Decimal) -> int:
    return int(amount.scaleb(15, Context(prec=80)))


@given(usages(), prices())
def test_in_any_context(usage: Usage, price: Price) -> None:
    """An application that computes with three digits and rounds down changes nothing here."""
    exact = cost(usage, price)
    with localcontext(prec=3, rounding=ROUND_DOWN):
        assert cost(usage, price) == exact
        assert to_nanos(Decimal("1234.5678912345")) == 1_234_567_891_235
        assert from_nanos(1_234_567_891_235).as_tuple().digits == (1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 5)


@given(st.decimals(0, 4_000_000, places=15))
def test_rounded_up(amount: Decimal) -> None:
    """Billionths are never less than the amount, and never a whole one more."""
    assert 0 <= to_nanos(amount) * 10**6 - to_exact(amount) < 10**6


@given(st.integers(0, MOST_NANOS))
def test_nanos_there_and_back(nanos: int) -> None:
    """Billionths that became an amount become the same again."""
    assert to_nanos(from_nanos(nanos)) == nanos


def test_more_than_a_store_counts() -> None:
    """An amount beyond what a store counts is taken for the most, which no budget allows."""
    assert to_nanos(Decimal(10**12)) == MOST_NANOS
    assert reservation(price(), 10**15, {"max_tokens": 10**15}, BUDGET) == MOST_NANOS
    assert Budget(session=4_000_000).caps(NOW)[0].limit < MOST_NANOS


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "as_kept", "as_shown"),
    [
        ("0", "0", "0.00"),
        ("2", "2", "2.00"),
        ("1E+3", "1000", "1,000.00"),
        ("12.345", "12.345", "12.34"),
        ("0.5", "0.5", "0.50"),
        ("0.123456", "0.123456", "0.1235"),
        ("0.0000420", "0.000042", "0.000042"),
        ("0.0000123456", "0.0000123456", "0.00001235"),
        ("0.99999", "0.99999", "1.00"),
        ("1234567.891", "1234567.891", "1,234,567.89"),
    ],
)
def test_written(given: str, as_kept: str, as_shown: str) -> None:
    """The log keeps an amount whole; people see cents, and of less than one as many digits as say something."""
    assert (plain(Decimal(given)), shown(Decimal(given))) == (as_kept, as_shown)


@given(st.decimals(0, 10**9, places=15))
def test_kept_exactly(amount: Decimal) -> None:
    """What the log keeps is the amount itself."""
    assert Decimal(plain(amount)) == amount
    assert "E" not in plain(amount)


@pytest.mark.parametrize(
    "value",
    [
        *(2.0, 0.1, True, None, b"2", -1, 10**9, Decimal("NaN"), Decimal("-Infinity"), Decimal("1e-10")),
        *("", "-1", "+1", "1e3", "1_000", "1,50", "$2", "nan", "inf", "٢", "2.", ".5", "1.0000000001", "1000000000"),
    ],
)
def test_no_amount(value: object) -> None:
    """What is not an exact amount within bounds is refused."""
    with pytest.raises(ValueError, match="such as"):
        amount(value)


def test_float_refused_with_its_reason() -> None:
    """A float is refused because it is not exact, and the error shows what to write."""
    with pytest.raises(ValueError, match=r"user_daily must be text such as '2\.5'.*not exact"):
        Budget(user_daily=2.5)  # type: ignore[arg-type]


# --- whose price ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "model", "row"),
    [
        ("openai", "gpt-4.1", "gpt-4.1"),
        ("openai", "gpt-4.1-2025-04-14", "gpt-4.1"),
        ("OpenAI", "GPT-4.1", "gpt-4.1"),
        ("openai", "gpt-4.1-mini", "gpt-4.1-mini"),
        ("openai", "gpt-4.1-mini-2025-04-14", "gpt-4.1-mini"),
        ("openai", "gpt-4o-2024-08-06", "gpt-4o"),
        ("openai", "gpt-4o-2024-05-13", "gpt-4o-2024-05-13"),
        ("anthropic", "claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("anthropic", "claude-sonnet-4-5@20250929", "claude-sonnet-4-5"),
        ("vllm", "Qwen/Qwen3-8B", "*"),
        (None, "gpt-4.1-2025-04-14", "gpt-4.1"),
    ],
)
def test_found(provider: str | None, model: str, row: str) -> None:
    """A model is found by its name, whatever its capitals, or as a dated snapshot of it."""
    assert named(provider, model).model == row


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "gpt-4.1-micro"),
        ("openai", "gpt-4.1-"),
        ("openai", "gpt-4"),
        ("openai", "gpt-4.10"),
        ("openai", "openai/gpt-4.1"),
        ("openai", "ft:gpt-4.1-2025-04-14:acme::x"),
        ("openai", "gpt-4.1-2025-04-14-preview"),
        ("openai", "gpt-4.1-2025-99-14"),
        ("openai", "deepseek-chat"),
        ("azure", "gpt-4.1"),
        ("openai", ""),
        ("openai", None),
        (None, "deepseek-chat"),  # two sell it, at different prices
        (None, "Qwen/Qwen3-8B"),
        (None, None),
    ],
)
def test_not_found(provider: str | None, model: str | None) -> None:
    """What only looks like a known model, or is another provider's, has no price."""
    assert DEFAULT.find(provider, model) is None


def test_a_looser_match_would_be_seen() -> None:
    """A table that took the beginning of a name for the name would price models here that are none of its."""
    loose = [row.model for row in DEFAULT.rows if "gpt-4.1-micro".startswith(row.model)]
    assert loose == ["gpt-4.1"]


# --- an operator's table ----------------------------------------------------------------------------------------------

MINE = """
[[price]]
provider = "openai"
model = "gpt-4.1"
input = 1.5
output = "6"
as_of = 2026-11-01
source = "our contract"

[[price]]
provider = "openai"
model = "gpt-4.1"
currency = "EUR"
input = 1
output = 4
as_of = 2026-12-01
source = "our next contract"
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "prices.toml"


def test_laid_over(table: Path) -> None:
    """An operator's rows take the place of ours for the same model, and leave the others."""
    table.write_text(MINE)
    mine = Prices.read(table)
    found = mine.find("openai", "gpt-4.1", NOW)
    assert found is not None
    assert (found.input, found.output, found.cached_input) == (Decimal("1.5"), Decimal(6), None)
    assert mine.find("openai", "gpt-4.1-mini", NOW) == named("openai", "gpt-4.1-mini")
    assert len(mine.rows) == len(DEFAULT.rows) + 1


def test_prices_of_a_day(table: Path) -> None:
    """The latest price holds that is not later than the moment asked for; the first one held before, too."""
    table.write_text(MINE)
    mine = Prices.read(table)
    december = datetime(2026, 12, 1, tzinfo=UTC)
    moments = (NOW, december - timedelta(seconds=1), december, datetime(2020, 1, 1, tzinfo=UTC), None)
    found = [mine.find("openai", "gpt-4.1", at) for at in moments]
    assert [row and row.currency for row in found] == ["USD", "USD", "EUR", "USD", "EUR"]
    # Midnight in Berlin is still November in UTC.
    berlin = datetime.fromisoformat("2026-12-01T00:30:00+01:00")
    assert mine.find("openai", "gpt-4.1", berlin) == found[0]


def test_table_of_the_documentation(table: Path) -> None:
    """The file that docs/costs.md shows is one."""
    page = (Path(__file__).parent.parent / "docs" / "costs.md").read_text("utf-8")
    table.write_text(page.split("```toml\n")[1].split("```")[0])
    mine = Prices.read(table)
    found = mine.find("openai", "gpt-6.1-terra", NOW)
    assert found is not None
    assert (found.source, found.reasoning, found.tiers[0].above) == ("our contract", Decimal(5), 272_000)
    assert mine.fallback is not None


ROW = {
    "provider": '"openai"',
    "model": '"m"',
    "input": "1",
    "output": "2",
    "as_of": "2026-11-21",
    "source": '"here"',
}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"input": None}, "lacks input"),
        ({"source": None, "as_of": None}, "lacks source, as_of"),
        ({"source": '" "'}, "needs a source"),
        ({"model": "4.1"}, "needs a model"),
        ({"input": "-1"}, "needs as input an amount"),
        ({"output": '"8 dollars"'}, "needs as output an amount"),
        ({"output": "nan"}, "needs as output an amount"),
        ({"output": "inf"}, "needs as output an amount"),
        ({"output": "true"}, "needs as output an amount"),
        ({"cached": "1"}, "has cached, which no price has"),
        ({"as_of": '"2026-11-21"'}, "needs a day as as_of"),
        ({"as_of": "2026-11-21T00:00:00Z"}, "needs a day as as_of"),
        ({"currency": '"$"'}, "needs a currency"),
        ({"currency": '"usd"'}, "needs a currency"),
        ({"tiers": "3"}, "needs tiers"),
        ({"tiers": "[{ above = 1, input = 2 }]"}, "has a tier in which output"),
        ({"tiers": "[{ above = 0, input = 2, output = 2 }]"}, "needs whole numbers as the tiers' above"),
        ({"tiers": "[{ above = 1, input = 2, output = -2 }]"}, "needs as output an amount"),
    ],
)
def test_wrong_row(table: Path, changed: dict[str, str | None], said: str) -> None:
    """A row that says too little, too much or nonsense is refused by its number, its model and what is wrong."""
    lines = [f"{name} = {value}" for name, value in {**ROW, **changed}.items() if value is not None]
    right = [f"{name} = {value}" for name, value in {**ROW, "model": '"first"'}.items()]
    table.write_text("\n".join(["[[price]]", *right, "[[price]]", *lines]))
    with pytest.raises(ConfigurationError) as caught:
        Prices.read(table)
    assert str(caught.value).startswith(f"row 2 of the price table {table}")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("price = 3", r"must be made of \[\[price\]\] rows"),
        ("prices = []", "not prices"),
        ("[[price]", "not TOML"),
        ('fallback = "litellm"', "must be"),
        (MINE.replace("2026-12-01", "2026-11-01"), "row 2 .* stands there twice"),
    ],
)
def test_wrong_file(table: Path, text: str, said: str) -> None:
    """A file that is no table of prices is refused."""
    table.write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        Prices.read(table)


def test_file_that_is_missing(table: Path) -> None:
    """A file that is not there, or is not text, is named."""
    with pytest.raises(ConfigurationError, match=r"prices\.toml cannot be read: No such file"):
        Prices.read(table)
    table.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        Prices.read(table)


# --- genai-prices -----------------------------------------------------------------------------------------------------


def test_genai_for_what_is_missing(table: Path) -> None:
    """A model without a row gets genai-prices' figure, with its version as the source; one with a row keeps its own."""
    table.write_text('fallback = "genai-prices"\n' + MINE)
    for prices in (Prices.genai(), Prices.read(table)):
        found = prices.find("openai", "o1", NOW)
        assert found is not None
        assert (found.input, found.cached_input, found.output) == (Decimal(15), Decimal("7.5"), Decimal(60))
        assert found.source.startswith("genai-prices 0.")
        assert prices.find("openai", "gpt-9-does-not-exist", NOW) is None
        assert prices.find("nobody", "gpt-4.1", NOW) is None
    mine = Prices.read(table).find("openai", "gpt-4.1", NOW)
    assert mine is not None
    assert mine.source == "our contract"


def test_genai_is_always_told_when() -> None:
    """Its prices depend on the moment, so it is never asked without one."""
    prices = Prices.genai()
    with pytest.raises(ValueError, match="pass at="):
        prices.find("openai", "gpt-4.1")
    night, day = (prices.find("deepseek", "deepseek-r1", NOW.replace(hour=hour)) for hour in (20, 12))
    assert night is not None
    assert day is not None
    assert night.output < day.output


def test_genai_tiers() -> None:
    """Its dearer rates of long calls come along."""
    found = Prices.genai().find("openai", "gpt-5.6-terra", NOW)
    assert found is not None
    assert found.tiers == (
        Tier(above=272_000, input=Decimal(4), output=Decimal(18), cached_input=Decimal("0.4"), cache_write=Decimal(5)),
    )


def test_genai_agrees_with_the_table() -> None:
    """The rows that name genai-prices as their source say what it says at that source's hour."""
    ask = Prices((), Prices.genai().fallback)
    peak = datetime(2026, 11, 20, 7, tzinfo=UTC)
    checked = 0
    for row in DEFAULT.rows:
        if row.source.startswith("genai-prices 0.2.3"):
            found = ask.find(row.provider, row.model, peak)
            if found is None or not found.source.startswith("genai-prices 0.2.3"):
                continue  # another version is installed, and may know better
            parts = ("input", "output", "cached_input", "cache_write", "tiers")
            assert [getattr(found, part) for part in parts] == [getattr(row, part) for part in parts], row.model
            checked += 1
    if found_version() == "0.2.3":
        assert checked > 30


def found_version() -> str:
    from importlib.metadata import version

    return version("genai-prices")


def test_genai_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package the error names the extra that installs it."""
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'cloister\[prices\]'"):
        Prices.genai()


# --- budgets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "bounds something"),
        ({"user_daily": "-1"}, "user_daily must be an amount"),
        ({"session": "much"}, "session must be an amount"),
        ({"tenant_monthly": Decimal("NaN")}, "tenant_monthly must be an amount"),
        ({"user_daily": "4000000.01"}, "user_daily must be at most 4,000,000"),
        ({"user_daily": "3", "user_monthly": "2"}, "would never be reached"),
        ({"user_daily": "3", "reply_tokens": 0}, "reply_tokens must be"),
        ({"user_daily": "3", "reply_tokens": True}, "reply_tokens must be"),
        ({"user_daily": "3", "currency": "dollars"}, "currency must be"),
    ],
)
def test_wrong_budget(given: dict[str, object], said: str) -> None:
    """A budget that bounds nothing, or not with an amount, is refused."""
    with pytest.raises(ValueError, match=said):
        Budget(**given)  # type: ignore[arg-type]


def test_budget_values() -> None:
    """Text, whole numbers and Decimals are the same amount; nothing at all is allowed to be the limit."""
    assert Budget(user_daily="2.00") == Budget(user_daily=2) == Budget(user_daily=Decimal(2))
    assert Budget(user_daily=0).caps(NOW)[0].limit == 0
    with pytest.raises(AttributeError):
        Budget(session=1).session = Decimal(2)  # type: ignore[misc]


def test_caps() -> None:
    """Each limit is an account of its period, in billionths."""
    caps = Budget(user_daily="2.00", user_monthly=20, tenant_monthly="500", session="0.5").caps(NOW)
    assert [(cap.scope, cap.period and cap.period.name, cap.limit) for cap in caps] == [
        ("session", None, 500_000_000),
        ("user", "2026-11-21", 2_000_000_000),
        ("user", "2026-11", 20_000_000_000),
        ("tenant", "2026-11", 500_000_000_000),
    ]


@given(st.integers(0, 4_000_000_000_000_000).map(from_micros))
def test_periods(now: datetime) -> None:
    """The moment lies in its day and month, both end at a midnight, and a moment later the next one has begun."""
    day, month = periods(now)
    assert (day.name, month.name) == (now.date().isoformat(), now.date().isoformat()[:7])
    for period, index in ((day, 0), (month, 1)):
        end = from_micros(period.ends)
        assert now < end
        assert end.time() == datetime.min.time()
        assert periods(end)[index].name > period.name
        assert periods(end - timedelta(microseconds=1))[index] == period


def test_periods_are_those_of_utc() -> None:
    """It is UTC's day, wherever the clock stands."""
    assert periods(datetime.fromisoformat("2026-12-01T01:30:00+05:30"))[0].name == "2026-11-30"


@pytest.mark.parametrize("odd", [Decimal(-1), Decimal("NaN"), Decimal("Infinity"), 1, 0.1, "1"])
def test_no_price_pays_whoever_asks(odd: Any) -> None:
    """A price that is negative, none at all, or no Decimal is refused when made, and not once a model answered."""
    for name in ("input", "output", "cached_input", "cache_write", "reasoning"):
        with pytest.raises(ValueError, match="is a Decimal from 0 on"):
            replace(price(), **{name: odd})
    with pytest.raises(ValueError, match="is a Decimal from 0 on"):
        Tier(above=1, input=odd, output=Decimal(1))


BUDGET = Budget(user_daily="2.00")


@pytest.mark.parametrize(
    ("options", "reply"),
    [
        ({}, 1_000),
        ({"max_tokens": 50}, 50),
        ({"max_completion_tokens": 70}, 70),
        ({"max_tokens": 50, "max_completion_tokens": 70}, 70),
        ({"max_tokens": None}, 1_000),
        ({"max_tokens": 50.0}, 50),
    ],
)
def test_reservation(options: dict[str, object], reply: int) -> None:
    """Reserved is what is sent and the longest reply, as far as something bounds it."""
    assert reservation(price(), 500, options, BUDGET) == to_nanos(cost(Usage(500, reply), price()))


@pytest.mark.parametrize("odd", ["50", True, -1, 0])
def test_reservation_for_nobody_knows_what(odd: object) -> None:
    """A bound that a service may read in another way than cloister is refused."""
    with pytest.raises(ConfigurationError, match="max_tokens must be a number"):
        reservation(price(), 500, {"max_tokens": odd}, BUDGET)


@given(usages(), prices())
def test_reservation_is_enough(usage: Usage, price: Price) -> None:
    """A call that sends and answers no more than was reserved for costs no more, however its tokens are told apart."""
    reserved = reservation(price, usage.input_tokens, {"max_tokens": max(usage.output_tokens, 1)}, BUDGET)
    assert to_nanos(cost(usage, price)) <= reserved


def test_reservation_in_another_currency() -> None:
    """Nothing is converted: a price in euros is not held against a budget in dollars."""
    with pytest.raises(ConfigurationError, match="in USD and the price of m in EUR"):
        reservation(replace(price(), currency="EUR"), 1, {}, BUDGET)


def test_refusal_of_a_user() -> None:
    """A user is told which budget, how much of it is used, and when it begins anew."""
    day, month = Budget(user_daily=2, user_monthly=20).caps(NOW)
    said = str(exceeded(day, 1_987_654_321, 20_000_000))
    assert "the user's budget for 2026-11-21 is used up: 1.99 of 2.00 USD" in said
    assert "this turn may come to 0.02" in said
    assert said.endswith("it begins anew at 2026-11-22 00:00 UTC")
    assert str(exceeded(month, 1, 1)).endswith("it begins anew at 2026-12-01 00:00 UTC")


def test_refusal_of_what_can_never_be_paid() -> None:
    """Who asks for more than the whole budget is not told to wait for tomorrow."""
    for cap in Budget(user_daily=1, session=1, tenant_daily=1).caps(NOW):
        said = str(exceeded(cap, 0, 1_000_000_001))
        assert "is too small for this turn" in said
        assert said.endswith("bound its reply with max_tokens, or send less")


def test_refusal_of_a_session() -> None:
    """A session's budget never begins anew; another session does."""
    (cap,) = Budget(session="0.5").caps(NOW)
    assert str(exceeded(cap, 500_000_000, 1)).endswith("start a new session")


def test_refusal_of_a_tenant() -> None:
    """Of a tenant's budget a user learns no figure: neither how much it is nor what others have spent."""
    for cap in Budget(tenant_daily="777", tenant_monthly="7777").caps(NOW):
        said = str(exceeded(cap, 555_000_000_000, 444_000_000_000))
        assert "the tenant's budget for 2026-11" in said
        assert not any(figure in said for figure in ("777", "555", "444"))
    told = exceeded(Cap("user", None, 777 * 10**9, "USD"), 555_000_000_000, 444_000_000_000)
    assert "777.00" in str(told)  # so the figures would show where they are told
