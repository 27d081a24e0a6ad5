"""``cloister costs``: what an owner of the bill sees."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cloister import AsyncCloister, Keyring, Offline, stores
from cloister.audit import Event, event
from cloister.cli import main
from cloister.costs import Prices
from cloister.model import Owner

Run = Callable[..., Result]
URL = "sqlite:///x.db"
ANA, BEN, CAROL = Owner("acme", "ana"), Owner("acme", "ben"), Owner("globex", "carol")
(GPT,) = (row for row in Prices.default().rows if row.key == ("openai", "gpt-4.1"))
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


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: str, store: str | None = URL, **environ: str) -> Result:
        if store is not None:
            environ["CLOISTER_STORE"] = store
        return CliRunner(env=environ).invoke(main, ["costs", *arguments], catch_exceptions=False)

    return invoke


def spent(owner: Owner | None, days: float = 0, kind: str = "turn.committed", **said: Any) -> Event:
    """Give the event of a turn of so many days ago; a value of None leaves the name out."""
    detail = {name: value for name, value in {**SPENT, **said}.items() if value is not None}
    return event(kind, datetime.now(UTC) - timedelta(days=days), owner, "digest", **detail)


async def keep(events: list[Event], url: str = URL, erased: Owner | None = None) -> None:
    """Put *events* on record, and erase one owner."""
    store = stores.connect(url)
    await store.open()
    await store.record(events, nonce=secrets.token_bytes(16))
    if erased is not None:
        await store.erase(erased, entries=[], nonce=secrets.token_bytes(16))
    await store.close()


def put(*events: Event, erased: Owner | None = None) -> None:
    asyncio.run(keep(list(events), erased=erased))


def rows(result: Result) -> list[list[str]]:
    assert result.exit_code == 0, result.output
    return [line.split("\t") for line in result.stdout.splitlines()]


def test_by_user(run: Run) -> None:
    """Each user has a row, the dearest first, and the last one is the total."""
    put(spent(ANA), spent(BEN), spent(BEN, kind="turn.failed"))
    assert rows(run()) == [
        ["tenant 'acme', user 'ben'", "2", "1", "2,000", "800", "200", "60", "-", "0.0044 USD"],
        ["tenant 'acme', user 'ana'", "1", "0", "1,000", "400", "100", "30", "-", "0.0022 USD"],
        ["total", "3", "1", "3,000", "1,200", "300", "90", "-", "0.0066 USD"],
    ]


@pytest.mark.parametrize(
    ("by", "first"),
    [
        ("tenant", ["acme", "globex", "total"]),
        ("session", ["digest", "total"]),
        ("model", ["openai gpt-4.1", "(own call) m", "total"]),
    ],
)
def test_by(run: Run, by: str, first: list[str]) -> None:
    """Rows are by tenant, session digest or model, too."""
    put(spent(ANA), spent(BEN), spent(CAROL, provider=None, model="m"))
    assert [row[0] for row in rows(run("--by", by))] == first


def test_by_day(run: Run) -> None:
    """Days stand in their order, in UTC."""
    now = datetime.now(UTC)
    put(spent(ANA), spent(ANA, days=2), spent(ANA, days=1))
    days = [f"{now - timedelta(days=n):%Y-%m-%d}" for n in (2, 1, 0)]
    assert [row[0] for row in rows(run("--by", "day"))] == [*days, "total"]


@pytest.mark.parametrize(
    ("given", "turns"),
    [
        ((), "2"),
        (("--since", "12h"), "1"),
        (("--since", "30d"), "3"),
        (("--since", "9999999d"), "3"),
        (("--since", "2020-01-01"), "3"),
        (("--since", "2020-01-01T00:00:00+02:00"), "3"),
        (("--since", "30d", "--until", "3d"), "1"),
        (("--since", "2020-01-01", "--until", "2020-01-02"), None),
    ],
)
def test_span(run: Run, given: tuple[str, ...], turns: str | None) -> None:
    """Lengths of time and days say which turns count; the last seven days unless they do."""
    put(spent(ANA), spent(ANA, days=2), spent(ANA, days=9))
    result = run(*given)
    if turns is None:
        assert (result.exit_code, result.stdout) == (0, "")
        assert "no turns since 2020-01-01" in result.stderr
    else:
        assert rows(result)[-1][1] == turns


def test_span_that_is_none(run: Run) -> None:
    """What is neither a length nor a day is refused with an example."""
    for name in ("--since", "--until"):
        result = run(name, "last week")
        assert result.exit_code == 2
        assert "7d" in result.stderr


def test_tenant(run: Run) -> None:
    """Only one tenant's turns count where one is named; those of erased users are left out, and it says so."""
    put(spent(ANA), spent(BEN), spent(CAROL), erased=BEN)
    result = run("--tenant", "acme")
    assert [row[0] for row in rows(result)] == ["tenant 'acme', user 'ana'", "total"]
    assert "1 turns of erased users are left out" in result.stderr


def test_erased_user(run: Run) -> None:
    """What an erased user cost stays in the sum, under an audit id that names nobody."""
    put(spent(ANA), spent(BEN, cost="0.001"), erased=BEN)
    first, second, total = rows(run())
    assert first[0] == "tenant 'acme', user 'ana'"
    assert second[0].startswith("a_")
    assert second[0].endswith(" (erased)")
    assert total[-1] == "0.0032 USD"
    assert "ben" not in run().output


def test_without_a_price(run: Run) -> None:
    """Usage without a price is never shown as nothing: the row, and a line below, say how many tokens it is."""
    put(spent(ANA), spent(ANA, model="new", cost=None))
    result = run()
    assert rows(result)[0][-1] == "0.0022 USD + no price: 1,100 tokens"
    assert "No price was known for 1 turns with 1,100 tokens (openai new)" in result.stderr
    assert "CLOISTER_PRICES" in result.stderr


def test_estimated(run: Run) -> None:
    """How much of it was estimated stands beside."""
    put(spent(ANA), spent(ANA, estimated=True))
    assert rows(run())[0][-2] == "50%"


def test_json(run: Run) -> None:
    """JSON has exact amounts as text, and all that is left out."""
    put(spent(ANA, cost="0.000000123456789"), spent(ANA, model="new", cost=None))
    result = run("--json", "--by", "model")
    found = json.loads(result.stdout)
    assert (found["by"], found["unreadable_entries"]) == ("model", 0)
    assert datetime.fromisoformat(found["until"]) - datetime.fromisoformat(found["since"]) > timedelta(days=6)
    assert found["rows"][0] == {
        "provider": "openai",
        "model": "gpt-4.1",
        "turns": 1,
        "failed": 0,
        "input_tokens": 1_000,
        "cached_tokens": 400,
        "output_tokens": 100,
        "reasoning_tokens": 30,
        "estimated_tokens": 0,
        "cost": {"USD": "0.000000123456789"},
        "unpriced": {"turns": 0, "tokens": 0},
    }
    assert found["total"]["unpriced"] == {"turns": 1, "tokens": 1_100}
    assert found["unpriced_models"] == [{"provider": "openai", "model": "new"}]


def test_names_cannot_steer_a_terminal(run: Run) -> None:
    """What stands in the log is written out, not obeyed."""
    put(spent(ANA, model="\x1b[31mred"))
    result = run("--by", "model")
    assert "\x1b" not in result.output
    assert "red" in result.stdout


def test_every_store(run: Run, url: str) -> None:
    """The log of every store is read, without a master key."""
    if url == "memory://":
        assert "keeps nothing" in run(store=url).stderr
        return

    async def talk() -> None:
        ring = Keyring.generate()
        async with AsyncCloister.open(url, provider=Offline(), keyring=ring) as cloister:
            await (await cloister.user("ana").start()).send("My name is Ana.")

    asyncio.run(talk())
    first, total = rows(run(store=url))
    assert (first[0], first[1], total[1]) == ("user 'ana'", "1", "1")
    assert int(first[3]) > 0


def test_store_that_is_missing(run: Run, tmp_path: Path) -> None:
    """A store that is not there is named, and not made."""
    for command in ((), ("compare",)):
        result = run(*command)
        assert result.exit_code == 1
        assert "there is no store" in result.stderr
    assert not (tmp_path / "x.db").exists()


def test_options_belong_behind_the_command(run: Run) -> None:
    """An option in front of a subcommand would be lost, so it is refused."""
    result = run("--since", "1d", "--json", "compare")
    assert result.exit_code == 2
    assert "write --since, --json behind compare" in result.stderr


# --- other models -----------------------------------------------------------------------------------------------------


def test_compare(run: Run) -> None:
    """Each model has what the same tokens would have cost, with the day and the source of its price."""
    put(spent(ANA, input_tokens=0, cached_tokens=0, output_tokens=1_000_000, cost="8"))
    result = run("compare")
    said, *table, last = result.stdout.splitlines()
    assert "1 turns: 0 tokens of input" in said
    assert said.endswith("on record as 8.00 USD")
    found = {tuple(cells[:2]): cells[2:] for cells in (line.split("\t") for line in table)}
    assert found["openai", "gpt-4.1"] == ["8.00 USD", "in use", str(GPT.as_of), GPT.source]
    assert found["holysheep", "deepseek-v3.2"][0] == "0.42 USD"
    assert "output: holysheep.ai" in found["holysheep", "deepseek-v3.2"][-1]
    assert found["vllm", "any other"][0] == "0.00 USD"
    assert last.startswith("The same numbers of tokens")


def test_compare_with_other_prices(run: Run, tmp_path: Path) -> None:
    """A file of prices takes part, given by option or by environment."""
    put(spent(ANA))
    row = 'provider = "us"\nmodel = "m"\ninput = 100\noutput = 0\nas_of = 2026-11-01\nsource = "our offer"\n'
    (tmp_path / "mine.toml").write_text("[[price]]\n" + row)
    for result in (run("compare", "--prices", "mine.toml"), run("compare", CLOISTER_PRICES="mine.toml")):
        (line,) = [line for line in result.stdout.splitlines() if line.startswith("us\t")]
        noted = "cached input counted in full: no price for it is known"
        assert line.split("\t")[2:] == ["0.10 USD", noted, "2026-11-01", "our offer"]
    missing = run("compare", "--prices", "none.toml")
    assert missing.exit_code == 1
    assert "none.toml cannot be read" in missing.stderr


def test_compare_json(run: Run) -> None:
    """JSON has every model, and says what the figure stands on."""
    put(spent(ANA))
    found = json.loads(run("compare", "--json").stdout)
    assert found["total"]["cost"] == {"USD": "0.0022"}
    (used,) = [model for model in found["models"] if model["used"]]
    assert used == {
        "provider": "openai",
        "model": "gpt-4.1",
        "cost": "0.0022",
        "currency": "USD",
        "used": True,
        "cache_unknown": False,
        "as_of": str(GPT.as_of),
        "source": GPT.source,
    }


def test_compare_with_nothing(run: Run) -> None:
    """Where there were no turns there is nothing to compare."""
    put(spent(ANA, days=30))
    result = run("compare")
    assert (result.exit_code, result.stdout) == (0, "")
    assert json.loads(run("compare", "--json").stdout)["models"] == []


# --- the table --------------------------------------------------------------------------------------------------------


def test_prices(run: Run) -> None:
    """The table is shown with days and sources; no store is needed."""
    found = {tuple(row[:2]): row[2:] for row in rows(run("prices"))}
    assert found["openai", "gpt-4.1"] == ["2", "0.5", "8", "USD", str(GPT.as_of), GPT.source]
    assert found["holysheep", "deepseek-v3.2"][1] == "-"
    assert found["openai", "gpt-6.1-terra"][-1].endswith("in calls of more than 272,000 tokens 2 and 7.5")


def test_prices_that_are_to_come(run: Run, tmp_path: Path) -> None:
    """A price of a day that has not come yet is marked."""
    row = 'provider = "us"\nmodel = "m"\ninput = 1\noutput = 2\nas_of = 2999-01-01\nsource = "our next contract"\n'
    (tmp_path / "mine.toml").write_text("[[price]]\n" + row)
    (line,) = [row for row in rows(run("prices", CLOISTER_PRICES="mine.toml")) if row[0] == "us"]
    assert line[-2] == "2999-01-01 (not yet)"


def test_prices_json(run: Run) -> None:
    """JSON has exact amounts as text, tiers included."""
    found = json.loads(run("prices", "--json").stdout)
    assert found["per_tokens"] == 1_000_000
    (row,) = [price for price in found["prices"] if price["model"] == "claude-haiku-5-5"]
    assert row["input"] == "0.1"
    assert row["tiers"] == [
        {"above": 100_000, "input": "0.5", "cached_input": "0.05", "cache_write": "0.625", "output": "2.5"}
    ]
