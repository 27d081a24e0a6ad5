"""``cloister scrub``: personal data in text, replaced by its type."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from cloister import terminal
from cloister.cli.base import Failure

if TYPE_CHECKING:
    from cloister.scrub import Scrubber

_LONGEST = 1_000_000  # bytes of a line
_STEP = 1 << 18  # bytes from which on there is a progress bar, and between two of its steps


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE]...", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print where in each line what was found, instead of the text.")
@click.option("--explain", "explained", metavar="TEXT", help="Say what is found in TEXT, and why.")
def scrub(files: tuple[Path, ...], as_json: bool, explained: str | None) -> None:
    """Replace personal data in text by its type: [EMAIL], [PERSON], [PHONE] …

    Reads the files, or standard input, as UTF-8, and writes to standard output. Each line is searched by itself, and
    written before the next one is read. With --json, each line gives one object with the spans in it: start, end and
    type, counted in characters.

    \b
    Examples:
      cloister scrub < transcript.txt > scrubbed.txt
      cloister scrub --json messages.txt
      cloister scrub --explain "My card is 4111 1111 1111 1111"
    """
    from cloister.scrub import Scrubber

    scrubber = Scrubber()
    if explained is not None:
        if files or as_json:
            raise click.UsageError("--explain takes the text itself, and neither files nor --json")
        _explain(scrubber, explained)
        return
    show = _spans if as_json else _labelled
    if not files:
        _copy("standard input", sys.stdin.buffer, scrubber, show, _ignore)
        return
    for file in files:
        if file.is_dir():
            raise Failure(f"{terminal.line(file)} is a folder; name the files in it")
    size = sum(file.stat().st_size for file in files)
    with ExitStack() as stack:
        done: Callable[[int], None] = _ignore
        if size > _STEP and sys.stderr.isatty() and not sys.stdout.isatty():
            done = stack.enter_context(terminal.progress("bytes", size))
        for file in files:
            with file.open("rb") as source:
                _copy(terminal.line(file), source, scrubber, show, done)


def _ignore(_: int) -> None:
    """Show no progress."""


def _copy(
    name: str,
    source: BinaryIO,
    scrubber: Scrubber,
    show: Callable[[Scrubber, str, str], str],
    done: Callable[[int], None],
) -> None:
    """Write each line of *source* as *show* gives it; tell *done* how many bytes were read."""
    target = sys.stdout.buffer
    harmless = terminal.printable if sys.stdout.isatty() else str
    ahead = number = 0
    while raw := source.readline(_LONGEST):
        number += 1
        if len(raw) == _LONGEST:
            raise Failure(f"line {number} of {name} is longer than {_LONGEST:,} bytes; break it into lines before")
        try:
            line = raw.decode()
        except UnicodeDecodeError:
            raise Failure(f"line {number} of {name} is not UTF-8; convert it before, with iconv for example") from None
        bare = line.rstrip("\r\n")
        target.write(harmless(show(scrubber, bare, line[len(bare) :])).encode())
        target.flush()
        ahead += len(raw)
        if ahead >= _STEP:
            done(ahead)
            ahead = 0
    done(ahead)


def _labelled(scrubber: Scrubber, line: str, end_of_line: str) -> str:
    """Give *line* with the types of what was found in its place."""
    parts: list[str] = []
    at = 0
    for start, end, kind in scrubber.find(line):
        parts += (line[at:start], f"[{kind}]")
        at = end
    return "".join((*parts, line[at:], end_of_line))


def _spans(scrubber: Scrubber, line: str, _: str) -> str:
    """Give what was found in *line*, as JSON."""
    return json.dumps({"spans": [span._asdict() for span in scrubber.find(line)]}) + "\n"


def _explain(scrubber: Scrubber, text: str) -> None:
    """Print what is found in *text*, by which rule."""
    found = scrubber.explain(text)
    if not found:
        terminal.say("nothing was found")
        return
    terminal.table(
        ["what", "type", "why"], [(text[hit.start : hit.end], hit.type, hit.why) for hit in found], wrap=True
    )
