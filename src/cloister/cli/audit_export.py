"""``cloister audit export``: the log as a file, for whoever keeps, verifies or searches it elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING

import click

from cloister import terminal
from cloister.cli.base import MOMENT, SEVERITY, new_file, reading, store_option

if TYPE_CHECKING:
    from cloister.exports import Window
    from cloister.settings import Settings

_TOLD = 10_000
_REASON_AT_MOST = 500


@click.command()
@store_option
@click.option("--format", "form", type=click.Choice(["jsonl", "ocsf"]), default="jsonl", show_default=True, help="How.")
@click.option("--since", type=MOMENT, metavar="WHEN", help="From then on: 7d ago, or a date such as 2026-01-31.")
@click.option("--until", type=MOMENT, metavar="WHEN", help="Only what was written before.")
@click.option("--severity", type=SEVERITY, help="The least severity; such an export cannot be verified.")
@click.option("--names", is_flag=True, help="Say whose the audit ids are, which is on record. Needs --reason.")
@click.option("--reason", metavar="TEXT", help="Why, for the audit log.")
@click.option("-o", "--output", metavar="FILE", help="A new file, for you alone, instead of standard output.")
def export(
    read: Callable[..., Settings],
    form: str,
    since: datetime | None,
    until: datetime | None,
    severity: str | None,
    names: bool,
    reason: str | None,
    output: str | None,
) -> None:
    """Write the audit log, an entry on each line: as it is (jsonl), or as events for a SIEM (ocsf).

    An export as it is can be verified anywhere: `cloister audit verify --export FILE --heads FILE --public-key KEY`.
    Users appear under audit ids. That the log was exported is put on record first.
    """
    from cloister.exports import Window

    if names and not reason:
        raise click.UsageError("--names takes the names of users out of the store: say why, with --reason")
    if reason is not None and not 0 < len(reason.strip()) <= _REASON_AT_MOST:
        raise click.UsageError(f"--reason takes a text of 1 to {_REASON_AT_MOST} characters")
    window = Window(since, until, None if severity == SEVERITY.choices[0] else severity)
    with contextlib.suppress(BrokenPipeError):
        asyncio.run(_export(read(), window, form, names, reason, output))


async def _export(
    settings: Settings, window: Window, form: str, names: bool, reason: str | None, output: str | None
) -> None:
    from cloister import auditing, exports
    from cloister.stores.base import pages

    async with reading(settings) as store:
        now = datetime.now(UTC)
        noted = exports.noted(window, now, form, reason, names=names)
        with _opened(output) as file:
            await auditing.put_on_record(store, auditing.signer(settings, store), noted, now)
            owners = await store.audit_owners() if names else None
            line = exports.line if form == "jsonl" else exports.ocsf_line
            chosen, count, looked = exports.Selection(window), 0, 0
            if form == "jsonl":
                first = exports.first_lines(window, auditing.newest_heads(settings, store))
                file.writelines(f"{one}\n" for one in first)
            with terminal.progress("entries", None) as tell:
                async for page in pages(store):
                    lines = [line(entry, owners) + "\n" for entry in page if chosen(entry)]
                    file.writelines(lines)
                    count, looked = count + len(lines), looked + len(page)
                    if looked >= _TOLD:
                        tell(looked)
                        looked = 0
                tell(looked)
    if output is not None:
        terminal.say(f"wrote {count} entries to {output}", stderr=True)
    if window.severity is not None and form == "jsonl":
        terminal.say("with --severity it lacks entries between others: it cannot be verified", "yellow", stderr=True)


@contextlib.contextmanager
def _opened(output: str | None) -> Iterator[IO[str]]:
    if output is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    with new_file(output) as file:
        yield file
