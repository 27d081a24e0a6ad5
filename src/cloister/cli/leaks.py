"""``cloister leaks``: replies that carry somebody else's details."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from cloister import terminal
from cloister.cli.base import Failure
from cloister.errors import CloisterError

if TYPE_CHECKING:
    from cloister.scan.judge import Scope
    from cloister.scan.report import Report, Row
    from cloister.scan.transcripts import What

_LISTED = 10
_FIELDS = ("user", "session", "tenant", "role", "text", "time", "messages")


class Trouble(Failure):
    """Say why there is no verdict; the exit code is not that of a leak."""

    exit_code = 2


@click.group()
def leaks() -> None:
    """Find replies that carry somebody else's details.

    \b
    Example:
      cloister leaks scan --html report.html transcripts.jsonl
    """


def _fields(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    fields = {}
    for each in given:
        what, _, name = each.partition("=")
        if what not in _FIELDS or not name:
            raise click.BadParameter(f"say {', '.join(_FIELDS[:-1])} or {_FIELDS[-1]}, then = and the field's name")
        fields[what] = name
    return fields


_FILE = click.Path(path_type=Path, dir_okay=False)


@leaks.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option("--json", "json_file", metavar="FILE", type=_FILE, help="Write the whole report there, for programs.")
@click.option("--html", "html_file", metavar="FILE", type=_FILE, help="Write it there, for people: one page.")
@click.option("--show", is_flag=True, help="Quote the details and name users. The reports then hold personal data.")
@click.option("--seed", "seeds", multiple=True, metavar="FILE", type=_FILE, help="Common knowledge: texts of your own.")
@click.option(
    "--scope",
    type=click.Choice(["tenant", "all"]),
    default="tenant",
    show_default=True,
    help="Compare users of the same tenant, or all.",
)
@click.option(
    "--field",
    "fields",
    multiple=True,
    metavar="WHAT=NAME",
    callback=_fields,
    help="Name a field that is called otherwise: user, session, tenant, role, text, time or messages; a.b is b in a.",
)
def scan(
    files: tuple[Path, ...],
    json_file: Path | None,
    html_file: Path | None,
    show: bool,
    seeds: tuple[Path, ...],
    scope: str,
    fields: dict[str, str],
) -> None:
    """Look through past conversations for replies that carried another user's details.

    Reads files of JSON, a message or a whole conversation on each line, plain or packed by gzip; - is standard input.
    The conversations may be of any chatbot. Each reply is judged with what had been said before it: in the order of
    time if all messages have one, otherwise as they lie in the files. Nothing leaves this machine.

    The report says where, of what kind and how heavy, and neither words nor names, unless --show is given.

    Exits with 1 if a reply would have been blocked, with 0 if none, and with 2 if there is no verdict.

    \b
    Examples:
      cloister leaks scan transcripts.jsonl
      cloister leaks scan --html report.html --show 2026-10.jsonl.gz 2026-11.jsonl.gz
      cloister leaks scan --field user=customer.id --seed catalogue.txt transcripts.jsonl
    """
    from cloister.scan.files import Broken

    try:
        _must_differ(json_file, html_file, (*files, *seeds))
        report = _scan(files, seeds, cast("Scope", scope), cast("dict[What, str]", fields), show)
        _write(report, json_file, html_file)
        _say(report)
    except KeyboardInterrupt:
        terminal.say("interrupted: there is no verdict, and nothing was written", stderr=True)
        sys.exit(130)
    except (Broken, CloisterError, ValueError) as error:
        raise Trouble(terminal.line(error)) from None
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Trouble(terminal.line(f"{error.strerror}: {error.filename}" if error.filename else error)) from None
    sys.exit(1 if report.counts.blocked else 0)


def _must_differ(json_file: Path | None, html_file: Path | None, read: Sequence[Path]) -> None:
    """Refuse, before any work, to write over what is read, or where nothing can be written."""
    for out in filter(None, (json_file, html_file)):
        if not out.parent.is_dir():
            raise Trouble(terminal.line(f"the folder {out.parent} does not exist; create it, or name another file"))
        if not os.access(out.parent, os.W_OK):
            raise Trouble(terminal.line(f"nothing can be written in the folder {out.parent}; name another file"))
        if out.exists() and any(each.exists() and out.samefile(each) for each in read):
            raise Trouble(terminal.line(f"{out} is to be read, so the report needs another name"))
    if json_file is not None and json_file == html_file:
        raise Trouble("the two reports need two names")


def _scan(
    files: Sequence[Path], seed_files: Sequence[Path], scope: Scope, fields: dict[What, str], show: bool
) -> Report:
    import secrets

    import cloister.scan.report as reports
    from cloister.scan.files import Source, Survey
    from cloister.scan.judge import Scan, seeds
    from cloister.scan.transcripts import Fields

    texts = seeds(file.read_text("utf-8", "replace") for file in seed_files)
    for file in files:
        if file.is_dir():
            raise Trouble(f"{terminal.line(file)} is a folder; name the files in it")
    with ExitStack() as stack:
        sources = [stack.enter_context(Source(None if str(file) == "-" else file)) for file in files]
        survey = Survey(sources, Fields(fields), secrets.token_bytes(32))
        with _bar("bytes read", sum(source.size() for source in sources)) as done:
            survey.take(done)
        made = Scan(survey, scope, texts)
        with _bar("messages judged", survey.messages) as done:
            made.judge(done)
        if made.findings:
            with _bar("messages traced", survey.messages) as done:
                made.trace(done)
    return reports.make(made, _version(), f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", show=show)


def _bar(what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    """Show a progress bar where somebody looks."""
    return terminal.progress(what, total) if sys.stderr.isatty() else nullcontext(lambda _: None)


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("cloister")
    except metadata.PackageNotFoundError:
        return "of its source"


def _write(report: Report, json_file: Path | None, html_file: Path | None) -> None:
    from cloister import files
    from cloister.scan import page
    from cloister.scan.report import to_json

    if json_file is not None:
        files.overwrite(json_file, to_json(report))
    if html_file is not None:
        files.overwrite(html_file, page.to_html(report))


def _say(report: Report) -> None:
    """Print the figures, what has to be known about them, and the worst replies."""
    from cloister.scan.report import many

    counts = report.counts
    for note in report.notes:
        terminal.say(terminal.line(note), stderr=True)
    for each in report.unread:
        terminal.say(terminal.line(f"{each.file}, line {each.line}: {each.why}"), "yellow", stderr=True)
    terminal.say(
        f"{many(counts.messages, 'message')} in {many(counts.conversations, 'conversation')} of "
        f"{many(counts.users, 'user')}; {many(counts.replies, 'reply', 'replies')} judged"
    )
    told = f"{counts.blocked:,} would have been blocked, {counts.alerted:,} alerted"
    terminal.say(told, "bold red" if counts.blocked else "yellow" if counts.alerted else "green")
    if not report.rows:
        return
    shown = report.rows[:_LISTED]
    columns = ["verdict", "score", "where", "what", "said before", *(["words"] if report.shown else [])]
    terminal.table(
        columns,
        [_cells(row, report.shown) for row in shown],
        ["bold red" if row.action == "block" else None for row in shown],
        wrap=True,
    )
    if len(report.rows) > len(shown):
        terminal.say(f"and {len(report.rows) - len(shown):,} more; --html and --json list them", stderr=True)


def _cells(row: Row, shown: bool) -> list[str]:
    origins = dict.fromkeys(f"{each.origin.file}:{each.origin.line}" for each in row.evidence if each.origin)
    cells = [
        row.action,
        f"{row.score:.1f}",
        f"{row.where.file}:{row.where.line}, message {row.where.message}",
        ", ".join(each.kind for each in row.evidence),
        ", ".join(origins),
    ]
    words = " / ".join(each.reply.said for each in row.evidence if each.reply)
    return [*cells, words] if shown else cells
