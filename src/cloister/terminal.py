"""How the command line prints: rich on a terminal, plain lines elsewhere, and nothing that could steer a terminal."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

# Control characters steer a terminal; half surrogates cannot be encoded; these directions reorder what stands beside
# them. Joiners stay: scripts and emoji need them.
_STEERING = frozenset({"Cc", "Cs", "Zl", "Zp"})
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    """Give *text* with everything that could steer a terminal written out, line ends and tabs apart."""
    return "".join(character if character in "\n\t" else _shown(character) for character in text)


def line(text: object) -> str:
    """Give *text* as one line that cannot steer a terminal."""
    return "".join(map(_shown, str(text)))


def _shown(character: str) -> str:
    if unicodedata.category(character) in _STEERING or character in _REORDERING:
        return character.encode("unicode_escape").decode("ascii")
    return character


def moment(time: datetime | None) -> str:
    """Give a moment in UTC, to the second."""
    return "never" if time is None else f"{time:%Y-%m-%d %H:%M:%S}Z"


def console(*, stderr: bool = False) -> Console:
    """Give the console for a terminal."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)


def say(text: str = "", style: str | None = None, *, stderr: bool = False) -> None:
    """Print *text*, made harmless."""
    if (sys.stderr if stderr else sys.stdout).isatty():
        console(stderr=stderr).print(printable(text), style=style)
    else:
        click.echo(printable(text), err=stderr)


def write(text: str) -> None:
    """Print a piece of *text*, made harmless, at once and without a line end."""
    sys.stdout.write(printable(text))
    sys.stdout.flush()


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], styles: Sequence[str | None] = (), *, wrap: bool = False
) -> None:
    """Print *rows*: as a table where a terminal is wide enough, else one line each. *styles* are the rows'.

    With *wrap* it is a table in any case, and long cells take several lines. Where there is no terminal, tabs stand
    between the cells.
    """
    shown = [[line(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in shown:
            click.echo("\t".join(row))
        return
    from rich import box
    from rich.table import Table

    out = console()
    drawn = Table(*columns, box=box.SIMPLE_HEAD, header_style="bold")
    for number, row in enumerate(shown):
        drawn.add_row(*row, style=styles[number] if styles else None)
    if wrap or sum(map(_widest, zip(columns, *shown, strict=True))) < out.width:
        out.print(drawn, soft_wrap=False)
        return
    out.print("  ".join(columns), style="bold")
    for number, row in enumerate(shown):
        out.print("  ".join(row), style=styles[number] if styles else None)


def _widest(cells: Sequence[str]) -> int:
    """Give how wide a column is, with the space beside it."""
    return max(map(len, cells)) + 3


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show on stderr how far *what* has come; call what this gives with how many more are done.

    *total* is None where nobody knows how many there are.
    """
    if not sys.stderr.isatty():
        done = 0

        def tell(more: int) -> None:
            nonlocal done
            done += more
            if more:
                click.echo(f"{what}: {done}" + ("" if total is None else f" of {total}"), err=True)

        yield tell
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda more: bar.advance(task, more)
