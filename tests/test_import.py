"""What importing cloister gives, and what it costs."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import cloister

SOURCE = Path(cloister.__file__)
HEAVY = ["asyncio", "click", "cryptography", "decimal", "httpx2", "msgspec", "rich", "sqlite3", "ssl", "tomllib"]


def modules_after(statement: str) -> set[str]:
    """Say which modules *statement* adds in a fresh interpreter."""
    script = (
        f"import json, sys\nbefore = set(sys.modules)\n{statement}\nprint(json.dumps(list(set(sys.modules) - before)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(SOURCE.parent.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_importing_the_package_loads_nothing_heavy() -> None:
    """``import cloister`` loads neither an event loop nor a driver, nor any other part of itself."""
    loaded = modules_after("import cloister")
    assert not loaded & set(HEAVY)
    assert {name for name in loaded if name.startswith("cloister.")} == set()


def test_the_library_loads_no_driver() -> None:
    """The class that applications use is there before any driver, HTTP client or console library is."""
    loaded = modules_after("from cloister import AsyncCloister")
    assert not loaded & {"click", "httpx2", "rich", "sqlite3"}


def test_an_error_is_cheap_to_import() -> None:
    """Naming an error loads the errors and nothing else."""
    loaded = modules_after("from cloister import SessionExpired")
    assert {name for name in loaded if name.startswith("cloister.")} == {"cloister.errors"}
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("name", cloister.__all__)
def test_every_public_name_loads(name: str) -> None:
    """Each name of ``__all__`` is there, and stays the same object."""
    assert getattr(cloister, name) is getattr(cloister, name)


def test_public_names_are_sorted_and_unique() -> None:
    """``__all__`` names each thing once, in order."""
    assert cloister.__all__ == sorted(set(cloister.__all__))


def test_a_star_import_gives_exactly_the_public_names() -> None:
    """``from cloister import *`` gives the names of ``__all__`` and no others."""
    names: dict[str, object] = {}
    exec("from cloister import *", names)
    assert set(names) - {"__builtins__"} == set(cloister.__all__)


def test_type_checkers_see_the_same_names() -> None:
    """What a type checker is told to import is what is loaded at run time, from the same place."""
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    shown = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(shown) == cloister.__all__
    for name, module in shown.items():
        assert module is not None
        assert getattr(sys.modules.get(module) or __import__(module, fromlist=[name]), name) is getattr(cloister, name)


def test_unknown_names_are_unknown() -> None:
    """A name that is none raises `AttributeError`, as for any module."""
    with pytest.raises(AttributeError, match="no attribute 'sendmail'"):
        cloister.sendmail  # noqa: B018 - the access is the test


def test_names_are_listed_before_they_are_loaded() -> None:
    """``dir`` shows every public name."""
    assert set(cloister.__all__) <= set(dir(cloister))
