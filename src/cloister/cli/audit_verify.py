"""``cloister audit verify``: the log in a store, or exported ones, against what was signed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloister import terminal
from cloister.cli.base import reading, store_option

if TYPE_CHECKING:
    from cloister.audit import Report
    from cloister.auditing import Evidence
    from cloister.settings import Settings

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command()
@store_option
@click.option("--heads", multiple=True, type=_FILE, help="Signed heads that were kept elsewhere too. Repeatable.")
@click.option("--export", "files", multiple=True, type=_FILE, help="Check an exported file instead. Repeatable.")
@click.option("--public-key", metavar="KEY", help="The signer's public key, as `cloister doctor` shows it.")
def verify(
    read: Callable[..., Settings], heads: tuple[Path, ...], files: tuple[Path, ...], public_key: str | None
) -> None:
    """Check the whole audit log: exits with 1 if an entry was changed, removed, added or reordered.

    Needs no master key. The signed heads beside the store are checked with the audit key there, or with --public-key.
    An export needs nothing but --heads and --public-key; of several, entries that contradict each other are found too.
    """
    sys.exit(0 if (_verify_files(heads, files, public_key) if files else _verify(read(), heads, public_key)) else 1)


def _verify(settings: Settings, heads: Sequence[Path], public_key: str | None) -> bool:
    from cloister import auditing

    async def check() -> bool:
        async with reading(settings) as store:
            known = auditing.evidence(settings, store, public_key, heads)
            return _say(known, *await auditing.verify(store, known))

    return asyncio.run(check())


def _verify_files(heads: Sequence[Path], files: Sequence[Path], public_key: str | None) -> bool:
    from cloister import exports

    copies = [exports.File(path) for path in files]
    whole = True
    for copy in copies:
        terminal.say(f"{copy.path}:")
        known = exports.evidence_about(copy, heads, public_key)
        if known.signed.at:
            at = terminal.moment(known.signed.at)
            terminal.say(f"it was signed for at {at}: what came later need not be in it")
        report, faults = exports.verify_file(copy, known)
        if copy.window.since:
            begins = f"it begins at {terminal.moment(copy.window.since)}"
            terminal.say(f"{begins}: each writer's entries are checked from the first one on")
        if copy.window.until:
            ends = f"it ends at {terminal.moment(copy.window.until)}"
            terminal.say(f"{ends}: that later entries are missing is no fault")
        if copy.named:
            said = f"{copy.named} lines say whom an audit id stands for, which no hash covers"
            terminal.say(f"not checked: {said}", "yellow")
        whole = _say(known, report, faults) and whole
    if whole and (found := exports.contradictions(copies)):
        for fault in found:
            terminal.say(f"FAULT: {fault}", "bold red")
        terminal.say("the files contradict each other", "red")
        return False
    return whole


def _say(known: Evidence, report: Report, faults: Sequence[str]) -> bool:
    """Print what a verification found; say whether all is well."""
    terminal.say(f"{report.entries} entries by {report.writers} writers; {report.unsigned} not signed for yet")
    if known.signed.entries:
        left = f", {report.left} of which are there all the same: prune once more" if report.left else ""
        terminal.say(f"{known.signed.entries} older ones were dropped, as a signed statement says{left}")
    if report.unnamed and known.signed.heads:
        terminal.say(
            f"of {report.unnamed} writers no signed head says anything: they are new, or died before they were signed "
            "for, or somebody made them up",
            "yellow",
        )
    for said in known.unchecked:
        terminal.say(f"not checked: {said}", "yellow")
    for fault in faults:
        terminal.say(f"FAULT: {fault}", "bold red")
    terminal.say("the audit log is NOT whole" if faults else "the audit log is whole", "red" if faults else "green")
    return not faults
