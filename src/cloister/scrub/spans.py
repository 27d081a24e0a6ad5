"""What the search for personal data yields."""

from __future__ import annotations

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
