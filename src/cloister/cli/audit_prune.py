"""``cloister audit prune``: old entries go, behind a signed statement."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from cloister import terminal
from cloister.cli.base import DURATION, MOMENT, reading, store_option
from cloister.errors import ConfigurationError

if TYPE_CHECKING:
    from cloister.settings import Settings


@click.command()
@store_option
@click.option("--before", type=MOMENT, metavar="DATE", help="Drop entries that were written before: 2026-01-31.")
@click.option("--keep", type=DURATION, metavar="LENGTH", help="Keep entries of that long: 90d.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def prune(read: Callable[..., Settings], before: datetime | None, keep: timedelta | None, yes: bool) -> None:
    """Drop old entries for good, behind a signed statement of where the log begins from then on.

    The rest verifies with that statement, a line of the signed heads, and without it shows that entries are missing.
    Needs the audit key, and a log that is whole. Export it first if somebody may want it later.
    """
    if (before is None) == (keep is None):
        raise click.UsageError("say which entries are old: --before DATE, or --keep LENGTH")
    now = datetime.now(UTC)
    asyncio.run(_prune(read(), now - keep if keep is not None else before or now, now, yes))


async def _prune(settings: Settings, before: datetime, now: datetime, yes: bool) -> None:
    from cloister import auditing, retention

    if before > now:
        raise ConfigurationError("what is still to be written cannot be dropped: name a moment that is over")
    async with reading(settings) as store:
        sink = auditing.signer(settings, store)
        if sink is None:
            raise ConfigurationError(
                "without the audit key nobody could tell dropped entries from removed ones, so none were dropped: put "
                "the key back, or name it with CLOISTER_AUDIT_KEY_FILE"
            )
        old = await retention.older(store, auditing.evidence(settings, store), before)
        if not old.upto:
            terminal.say(f"no entry was written before {terminal.moment(before)}; nothing was dropped")
            return
        if not yes:
            asked = f"Drop {old.count} entries from before {terminal.moment(before)} for good?"
            click.confirm(asked, abort=True, err=True)
        gone = await retention.prune(store, sink, old, before, now)
    terminal.say(f"dropped {gone} entries from before {terminal.moment(before)}; {sink.path} says so, signed")
