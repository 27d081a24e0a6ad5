"""``cloister audit``: the log is read and verified."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloister import terminal
from cloister.cli.base import must_exist, store_option

if TYPE_CHECKING:
    from cloister.audit import Report
    from cloister.auditing import Evidence
    from cloister.settings import Settings
    from cloister.stores.base import Store


@click.group()
def audit() -> None:
    """Read the audit log, and check that nobody changed it.

    \b
    Examples:
      cloister audit tail -n 50
      cloister audit tail --json | jq 'select(.severity == "alert")'
      cloister audit verify
    """


@contextlib.asynccontextmanager
async def reading(settings: Settings) -> AsyncGenerator[Store, None]:
    """Open the store alone: no keys are needed to read its audit log."""
    store = settings.connect()
    must_exist(store)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@audit.command()
@store_option
@click.option("-n", "count", default=20, show_default=True, type=click.IntRange(1, 100_000), help="How many entries.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
def tail(read: Callable[..., Settings], count: int, as_json: bool) -> None:
    """Print the newest entries of the audit log, oldest of them first."""
    asyncio.run(_tail(read(), count, as_json))


async def _tail(settings: Settings, count: int, as_json: bool) -> None:
    import json

    from cloister.model import from_micros

    styles = {"notice": None, "warning": "yellow", "alert": "bold red"}
    async with reading(settings) as store:
        entries = await store.audit_tail(count)
        owners = await store.audit_owners()
    names = {audit_id: str(owner) for audit_id, owner in owners.items()}
    if as_json:
        for entry in entries:
            said: dict[str, object] = {"at": from_micros(entry.at).isoformat(), "detail": entry.detail}
            said |= {name: getattr(entry, name) for name in ("writer", "number", "event", "severity", "session")}
            for role, audit_id in (("owner", entry.owner), ("other", entry.other)):
                owner = owners.get(audit_id)
                said[role] = {"audit_id": audit_id, **({"tenant": owner.tenant, "user": owner.user} if owner else {})}
            click.echo(json.dumps(said))  # which escapes everything but ASCII
        return
    rows = []
    for entry in entries:
        who = names.get(entry.owner, entry.owner)
        other = f"whose: {names.get(entry.other, entry.other)}" if entry.other else ""
        detail = "" if entry.detail == "{}" else entry.detail
        rows.append([terminal.moment(from_micros(entry.at)), entry.severity, entry.event, who, other, detail])
    columns = ["time", "severity", "event", "owner", "concerning", "detail"]
    terminal.table(columns, rows, [styles.get(entry.severity, "dim") for entry in entries])


_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@audit.command()
@store_option
@click.option("--heads", multiple=True, type=_FILE, help="Signed heads that were kept elsewhere too. Repeatable.")
@click.option("--export", "exports", multiple=True, type=_FILE, help="Check an exported file instead. Repeatable.")
@click.option("--public-key", metavar="KEY", help="The signer's public key, as `cloister doctor` shows it.")
def verify(
    read: Callable[..., Settings], heads: tuple[Path, ...], exports: tuple[Path, ...], public_key: str | None
) -> None:
    """Check the whole audit log: exits with 1 if an entry was changed, removed, added or reordered.

    Needs no master key. The signed heads beside the store are checked with the audit key there, or with --public-key.
    An export needs nothing but --heads and --public-key; of several, entries that contradict each other are found too.
    """
    sys.exit(0 if (_verify_files(heads, exports, public_key) if exports else _verify(read(), heads, public_key)) else 1)


def _verify(settings: Settings, heads: Sequence[Path], public_key: str | None) -> bool:
    from cloister import auditing

    async def check() -> bool:
        async with reading(settings) as store:
            known = auditing.evidence(settings, store, public_key, heads)
            return _say(known, *await auditing.verify(store, known))

    return asyncio.run(check())


def _verify_files(heads: Sequence[Path], exports: Sequence[Path], public_key: str | None) -> bool:
    from cloister import auditing

    copies = [auditing.File(path) for path in exports]
    known = auditing.evidence_about(copies, heads, public_key)
    whole = True
    for copy in copies:
        terminal.say(f"{copy.path}:")
        report, faults = auditing.verify_file(copy, known)
        if copy.window.since:
            terminal.say(f"it begins at {copy.window.since}: each writer's entries are checked from the first one on")
        if copy.window.until:
            terminal.say(f"it ends at {copy.window.until}: that later entries are missing is no fault")
        if copy.named:
            said = f"{copy.named} lines say whom an audit id stands for, which no hash covers"
            terminal.say(f"not checked: {said}", "yellow")
        whole = _say(known, report, faults) and whole
    if whole and (found := auditing.contradictions(copies)):
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
