"""Every snippet of the README and the docs does what it says.

- ``python`` blocks run in a folder of their own, in order; those of one file share their names, and may ``await``;
- lines of ``console`` blocks that begin with ``$ cloister`` run, and must end well;
- ``<!-- not run: why -->`` before a block: it is only compiled;
- ``<!-- setup:``, Python, ``-->``: runs like a block, and the reader does not see it.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

_BLOCK = re.compile(
    r"""
    (?:^\ *<!--\ not\ run:(?P<why>.*?)-->\s*)?
    (?: ^(?P<indent>\ *)```(?P<language>\w+)[^\n]*\n(?P<body>.*?)^(?P=indent)```\ *$
      | ^\ *<!--\ setup:[^\n]*\n(?P<setup>.*?)-->\ *$ )
    """,
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)
_CLOISTER = """#!/bin/sh
exec '{python}' -c 'import sys; sys.argv[0] = "cloister"; from cloister.cli import main; main()' "$@"
"""


@dataclass(frozen=True)
class Block:
    """Be one snippet: where its first line stands, in what language, and whether it runs."""

    file: Path
    line: int
    language: str
    body: str
    runs: bool

    @property
    def place(self) -> str:
        return f"{self.file.relative_to(ROOT).as_posix()}:{self.line}"


def _blocks(file: Path) -> Iterator[Block]:
    text = file.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        part = "body" if match["setup"] is None else "setup"
        yield Block(
            file=file,
            line=text.count("\n", 0, match.start(part)) + 1,
            language=match["language"] or "python",
            body=textwrap.dedent(match[part]),
            runs=match["why"] is None,
        )


def _run_python(block: Block, names: dict[str, object], loop: asyncio.Runner) -> None:
    # Empty lines in front, so that a traceback shows the line of the document.
    source = "\n" * (block.line - 1) + block.body
    code = compile(source, block.file, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    if not block.runs:
        return
    waiting = eval(code, names)
    if inspect.iscoroutine(waiting):
        loop.run(waiting)


def _run_console(block: Block) -> None:
    if not block.runs:
        return
    for command in re.findall(r"^\$ (cloister(?:[^\n\\]|\\\n|\\.)*)", block.body, re.MULTILINE):
        done = subprocess.run(
            ["sh", "-ec", command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in an empty folder with an empty home, `cloister` on the path, and no way out of this machine."""
    programs, home, work = tmp_path / "bin", tmp_path / "home", tmp_path / "work"
    for folder in (programs, home, work):
        folder.mkdir()
    (programs / "cloister").write_text(_CLOISTER.format(python=sys.executable))
    (programs / "cloister").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(home))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # the port where nobody listens
    monkeypatch.chdir(work)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_snippets(file: Path) -> None:
    """Every snippet of a document runs, one after the other."""
    names: dict[str, object] = {"__name__": "__main__"}
    with asyncio.Runner() as loop:
        for block in _blocks(file):
            try:
                if block.language == "python":
                    _run_python(block, names, loop)
                elif block.language == "console":
                    _run_console(block)
            except Exception as error:
                error.add_note(f"in the snippet at {block.place}")
                raise


def test_readme_shows_code() -> None:
    """The README has snippets that run: a change of its form has not hidden them from this test."""
    assert [block for block in _blocks(ROOT / "README.md") if block.language == "python" and block.runs]


def test_blocks_are_found(tmp_path: Path) -> None:
    """Blocks are found with their line, indented, hidden or not run."""
    page = tmp_path / "page.md"
    page.write_text(
        "Text\n\n```python\na = 1\n```\n\n"
        "- point\n\n  ```python title\n  b = a\n  ```\n\n"
        "<!-- setup: quietly\nc = b\n-->\n"
        "<!-- not run: needs a key -->\n```console\n$ cloister chat\n```\n"
        "```\nplain\n```\n"
    )
    assert [(block.line, block.language, block.body, block.runs) for block in _blocks(page)] == [
        (4, "python", "a = 1\n", True),
        (10, "python", "b = a\n", True),
        (14, "python", "c = b\n", True),
        (18, "console", "$ cloister chat\n", False),
    ]
