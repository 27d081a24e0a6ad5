"""What the search for personal data yields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

UNSEARCHED = "UNSEARCHED"
"""The type of a text that was too long to be searched."""


class Span(NamedTuple):
    """Name the characters from *start* up to *end* of a text as personal data of *type*."""

    start: int
    end: int
    type: str


class Found(NamedTuple):
    """Say what a rule found, and which rule: the answer to `cloister scrub --explain`."""

    start: int
    end: int
    type: str
    why: str


class Unsearchable(Exception):
    """Say that a text asks for more work than any text of people does: all of it is masked, then."""


_FEW, _BEGINNING, _PIECE = 16, 6, 256


class Occurrences:
    """Find *values*, which have types, wherever they stand in texts; thousands take little longer than one."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        self._lengths: dict[str, set[int]] = {}
        for value in values if len(values) > _FEW else ():
            self._lengths.setdefault(value[:_BEGINNING], set()).add(len(value))
        self._sizes = sorted({len(beginning) for beginning in self._lengths})

    def find(self, text: str) -> Iterator[tuple[int, int, str]]:
        """Give where they stand, in no order; of those that begin at one place the longest."""
        if self._sizes and len(text) <= _PIECE:  # so long a text is quicker read once for each value
            yield from self._indexed(text)
            return
        for value, kind in self._values.items():
            at = text.find(value)
            while at >= 0:
                yield at, at + len(value), kind
                at = text.find(value, at + len(value))

    def _indexed(self, text: str) -> Iterator[tuple[int, int, str]]:
        for size in self._sizes:
            for at in range(len(text) - size + 1):
                lengths = self._lengths.get(text[at : at + size])
                if lengths is None:
                    continue
                room = len(text) - at
                kept = [length for length in lengths if length <= room and text[at : at + length] in self._values]
                if kept:
                    yield at, at + max(kept), self._values[text[at : at + max(kept)]]
