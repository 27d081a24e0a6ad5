"""``cloister audit``: the log is read and verified."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING

import click

from cloister import terminal
from cloister.cli.base import must_exist, store_option

if TYPE_CHECKING:
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


@audit.command()
@store_option
@click.option("--public-key", metavar="KEY", help="The signer's public key, as `cloister doctor` shows it.")
def verify(read: Callable[..., Settings], public_key: str | None) -> None:
    """Check the whole audit log: exits with 1 if an entry was changed, removed, added or reordered.

    Needs no master key. The signed heads beside the store are checked with the audit key there, or with --public-key.
    """
    from cloister import doctor

    async def check() -> bool:
        settings = read()
        async with reading(settings) as store:
            signed = doctor.signed_heads(settings, store, public_key)
            report, faults = await doctor.verify(store, signed)
        terminal.say(f"{report.entries} entries by {report.writers} writers; {report.unsigned} not signed for yet")
        for said in signed.unchecked:
            terminal.say(f"not checked: {said}", "yellow")
        for fault in faults:
            terminal.say(f"FAULT: {fault}", "bold red")
        terminal.say("the audit log is NOT whole" if faults else "the audit log is whole", "red" if faults else "green")
        return not faults

    sys.exit(0 if asyncio.run(check()) else 1)
