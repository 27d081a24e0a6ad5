"""E-mail addresses, written and spelled out."""

from __future__ import annotations

from cloister.leaks.forms import EMAIL, OFFICE, SPELLING
from cloister.leaks.spoken import IS_AT, IS_DOT, Feature, Spoken, where, words_of


def written(text: str, found: list[Feature]) -> None:
    """Find addresses as they are usually written."""
    if "@" in text:
        for match in EMAIL.finditer(text):
            kind = "public" if OFFICE.match(match[0]) else "email"
            found.append(Feature("".join(words_of(match[0])[0]), kind, 0, *match.span(), True))


def spelled(spoke: Spoken, found: list[Feature]) -> None:
    """Find addresses that are spelled out: "ana dot lee at example dot com"."""
    for at in where(spoke.marks, IS_AT):
        if not 0 < at < len(spoke) - 2 or not _goes_on(spoke, at + 1):
            continue
        if not (_spells(spoke, at) and _spells(spoke, at + 1)):
            continue
        last = _dotted(spoke, at + 1, 1)
        # "He was at drop-off" has none.
        if not any(spoke.marks[n] == IS_DOT or spoke.before(n) == "." for n in range(at + 2, last + 1)):
            continue
        first = _dotted(spoke, at - 1, -1)
        names = [spoke.folded[n] for n in range(first, last + 1) if n != at and spoke.marks[n] != IS_DOT]
        found.append(spoke.feature("".join(names), "email", 0, first, last, True))


def _goes_on(spoke: Spoken, n: int) -> bool:
    """Say cheaply whether there may be a dot behind word *n*."""
    return spoke.marks[n + 1] == IS_DOT or spoke.text[spoke.ends[n]] in ".-_"


def _dotted(spoke: Spoken, n: int, step: int) -> int:
    """Go on from word *n* as long as there is a dot, and give the last word."""
    for _ in range(3):
        near, far = n + step, n + 2 * step
        if not 0 <= near < len(spoke):
            break
        if spoke.before(max(n, near)) in (".", "-", "_"):
            n = near
        elif (
            0 <= far < len(spoke)
            and spoke.marks[near] == IS_DOT
            and _spells(spoke, max(n, near))
            and _spells(spoke, max(near, far))
        ):
            n = far
        else:
            break
    return n


def _spells(spoke: Spoken, n: int) -> bool:
    """Say whether word *n* and the one before it may be pieces of an address that is spelled out."""
    between = spoke.before(n)
    return between == " " or SPELLING.fullmatch(between) is not None
