"""The documents lead somewhere: files, anchors and commands that they name are there."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from cloister.cli import main

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
_LINK = re.compile(r"\[[^\]]*\]\((?!https?:|mailto:)([^)\s]*)\)")
_CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", _CODE.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file that is there, and a heading in it where it names one."""
    for target in _LINK.findall(_CODE.sub("", page.read_text("utf-8"))):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if anchor:
            assert anchor in _anchors(file), target


def _commands(group: click.Group, path: str = "") -> list[str]:
    found = []
    for name, command in group.commands.items():
        named = f"{path}{name}"
        found += _commands(command, f"{named} ") if isinstance(command, click.Group) else [named]
    return found


@pytest.mark.parametrize("command", _commands(main))
def test_commands_are_listed(command: str) -> None:
    """The README's list of commands has every one."""
    listed = (ROOT / "README.md").read_text("utf-8").split("## The command line")[1].split("\n## ")[0]
    words = command.replace(" ", r" \S*")  # each stands behind those of its group, perhaps with others: add|list
    assert re.search(rf"^    cloister {words}\b", listed, re.MULTILINE)
