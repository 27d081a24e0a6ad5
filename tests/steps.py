"""What work costs, in steps: the same on every machine, however busy it is, which no clock can say."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from types import FrameType, ModuleType
from typing import Any

import pytest


class _Counted:
    """A pattern that says how many characters it went over to find what it looks for."""

    def __init__(self, pattern: re.Pattern[str], tell: Callable[[int], None]) -> None:
        self._pattern = pattern
        self._tell = tell

    def finditer(self, text: str, at: int = 0) -> Iterator[re.Match[str]]:
        for match in self._pattern.finditer(text, at):
            self._tell(match.end() - at)
            at = match.end()
            yield match
        self._tell(len(text) - at)

    def findall(self, text: str) -> list[Any]:
        self._tell(len(text))
        return self._pattern.findall(text)

    def sub(self, instead: Callable[[re.Match[str]], str], text: str) -> str:
        self._tell(len(text))
        return self._pattern.sub(instead, text)

    def __getattr__(self, name: str) -> Any:  # a match at one place of a text: a call as any other
        return getattr(self._pattern, name)


def growth(work: Callable[[int], object], size: int, *modules: ModuleType) -> float:
    """Give how many times as many steps four times *size* takes: 4 where they grow with it, 16 with its square."""
    work(1)  # what is made once in a process is not counted
    return steps(lambda: work(4 * size), *modules) / steps(lambda: work(size), *modules)


def steps(work: Callable[[], object], *modules: ModuleType) -> int:
    """Count the functions that *work* calls, built in or not, and the characters that patterns of *modules* go over."""
    count = 0

    def tell(more: int) -> None:
        nonlocal count
        count += more

    def called(_: FrameType, event: str, __: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            for name, value in list(vars(module).items()):
                if isinstance(value, re.Pattern):
                    patch.setattr(module, name, _Counted(value, tell))
        before = sys.getprofile()
        sys.setprofile(called)
        try:
            work()
        finally:
            sys.setprofile(before)
    return count


def longest(pattern: re.Pattern[str]) -> int:
    """Give the most characters that *pattern* can match."""
    width: tuple[int, int] = importlib.import_module("re._parser").parse(pattern.pattern, pattern.flags).getwidth()
    return width[1]
