"""``cloister leaks check``, ``seed`` and ``report``: what an operator does about replies with others' details."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cloister import AsyncCloister, Offline
from cloister.cli import main
from cloister.stores.base import every_entry

Run = Callable[..., Result]
URL = "sqlite:///x.db"
LEAK = "It is order QX-7731-84, for the project NIGHTHAWK."


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: str, said: str | None = None) -> Result:
        return CliRunner().invoke(main, ["leaks", *arguments, "--store", URL], input=said, catch_exceptions=False)

    return invoke


@pytest.fixture
def bens(run: Run) -> str:
    """Let Ana say something, and Ben be told of it; give the id of Ben's session."""
    return asyncio.run(told())


async def told() -> str:
    model = Offline()
    async with AsyncCloister.open(URL, provider=model) as cloister:
        await (await cloister.user("ana").start()).send("My order is QX-7731-84, and my project is called NIGHTHAWK.")
        ben = await cloister.user("ben").start()
        for leak in (LEAK, "It is called NIGHTHAWK."):
            model.leak = leak
            await ben.send("Which?")
        model.leak = None
        await ben.send("Hello.")
        return ben.id


def check(run: Run, session_id: str, said: str, user: str = "ben") -> Result:
    return run("check", "--user", user, "--reason", "ticket 4711", "--session", session_id, said=said)


def test_check(run: Run, bens: str) -> None:
    """A reply that would be withheld exits with 1, and each piece of evidence is shown, with whose it is."""
    result = check(run, bens, LEAK)
    assert result.exit_code == 1
    assert result.stdout.startswith("block: ")
    assert "user 'ana'" in result.stdout
    assert "QX-7731-84" in result.stdout
    clean = check(run, bens, "Hello again.")
    assert (clean.exit_code, clean.stdout) == (0, "pass: 0.0 of evidence\n")
    weak = check(run, bens, "It is called NIGHTHAWK.")
    assert weak.exit_code == 0
    assert weak.stdout.startswith("alert: ")


def test_check_is_on_record_and_bound_to_its_owner(run: Run, bens: str) -> None:
    """An operator's look is on record first, and a session is found for its owner alone."""
    refused = check(run, bens, LEAK, user="carol")
    assert refused.exit_code == 1
    assert "ana" not in refused.output
    check(run, bens, "Hello.")

    async def noted() -> list[str]:
        async with AsyncCloister.open(URL) as cloister:
            return [entry.detail async for entry in every_entry(cloister.store) if entry.event == "operator.access"]

    details = [json.loads(detail) for detail in asyncio.run(noted())]
    assert details == [{"action": "check", "reason": "ticket 4711"}] * 2


def test_seed(run: Run, bens: str, tmp_path: Path) -> None:
    """What a catalogue says is no evidence from then on; seeded again, nothing of it is new."""
    (tmp_path / "catalogue.txt").write_text("QX-7731-84 is our best saddle.\n\nSo is the NIGHTHAWK.\n")
    first = run("seed", "catalogue.txt")
    assert first.exit_code == 0
    assert "details are common knowledge" in first.stdout
    assert "0 details" in run("seed", "catalogue.txt").stdout
    assert check(run, bens, LEAK).stdout.startswith("pass: ")


def test_seed_before_anybody_came(run: Run, tmp_path: Path) -> None:
    """A store that is not there yet is made: what is common is best known before the first user comes."""
    (tmp_path / "catalogue.txt").write_text("Our lamp is the Luminara LX-4400.\n")
    assert run("seed", "catalogue.txt").exit_code == 0
    assert (tmp_path / "x.db").exists()


def test_seed_of_a_file_that_is_missing(run: Run) -> None:
    """A file that is not there is named."""
    result = run("seed", "catalogue.txt")
    assert result.exit_code == 1
    assert "catalogue.txt" in result.stderr


def test_report(run: Run, bens: str) -> None:
    """What was withheld and what alerted is counted by kind, with how many it concerned, and without words."""
    result = run("report")
    assert result.exit_code == 0
    assert "4 turns: 1 replies were withheld, 1 alerted" in result.stdout
    assert 'block="any"' in result.stdout
    assert "NIGHTHAWK" not in result.stdout
    found = json.loads(run("report", "--json").stdout)
    assert found["turns"] == 4
    assert [(row["event"], row["count"], row["receivers"], row["others"]) for row in found["found"]] == [
        ("reply.alerted", 1, 1, 1),
        ("reply.blocked", 1, 1, 1),
    ]


def test_report_of_a_time(run: Run, bens: str) -> None:
    """Only what is younger than --since counts, and a length that is none is refused."""
    assert "0 turns" in run("report", "--since", "0s").stdout
    refused = run("report", "--since", "soon")
    assert refused.exit_code == 2
    assert "such as 45s" in refused.output
