"""docs/controls.md names only tests and commands that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import click
import pytest

from cloister.cli import main
from cloister.testing import StoreConformance

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "controls.md").read_text("utf-8")
TESTS = sorted(set(re.findall(r"`(test_\w+\.py|StoreConformance)::(\w+)`", PAGE)))
COMMANDS = sorted(set(re.findall(r"`cloister ([a-z]+(?: [a-z]+)?)`", PAGE)))


@pytest.mark.parametrize(("home", "name"), TESTS, ids="::".join)
def test_named_tests_exist(home: str, name: str) -> None:
    """A test that an auditor is pointed to is there, under that name."""
    if home == "StoreConformance":
        assert callable(getattr(StoreConformance, name, None))
        return
    tree = ast.walk(ast.parse((ROOT / "tests" / home).read_text("utf-8")))
    assert name in {node.name for node in tree if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("command", COMMANDS)
def test_named_commands_exist(command: str) -> None:
    """A command that gives evidence is there."""
    found: click.Command = main
    for word in command.split():
        assert isinstance(found, click.Group)
        assert word in found.commands
        found = found.commands[word]


def test_the_whole_contract_is_named() -> None:
    """Every promise that a store has to keep stands somewhere on the page."""
    promises = {name for name in dir(StoreConformance) if name.startswith("test_")}
    assert promises <= {name for home, name in TESTS if home == "StoreConformance"}


def test_page_is_read() -> None:
    """A change of the page's form has not hidden it from these tests."""
    assert len(TESTS) > 50
    assert len(COMMANDS) > 5
