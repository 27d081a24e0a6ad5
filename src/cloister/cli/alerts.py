"""``cloister alerts``: whether alarms arrive."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from cloister import terminal
from cloister.cli.base import Failure, opened, store_option

if TYPE_CHECKING:
    from cloister.alarms import Alarm
    from cloister.settings import Settings
    from cloister.sinks.base import Sink


@click.group()
def alerts() -> None:
    """See to it that alarms arrive where somebody looks.

    \b
    Examples:
      CLOISTER_SINKS="log info=file:audit.jsonl" cloister alerts test
    """


@alerts.command("test")
@store_option
def send(read: Callable[..., Settings]) -> None:
    """Send one test alarm to each destination of CLOISTER_SINKS, and say what became of it.

    That it was a test stands in it, and is on record. Exits with 1 if a destination did not take it.
    """
    sys.exit(0 if asyncio.run(_send(read())) else 1)


async def _send(settings: Settings) -> bool:
    from dataclasses import replace

    from cloister.alarms import Alarm
    from cloister.audit import EVENTS, event
    from cloister.model import to_micros

    destinations = settings.destinations()
    if not destinations:
        raise Failure("no destination is set up: set CLOISTER_SINKS, for example to alert=https://… or log")
    # Without its destinations: a test is sent from here, and not from the log once more.
    async with opened(replace(settings, sinks=())) as cloister:
        vault = cloister.vault
        noted = event("alert.tested", vault.now())
        await vault.ask(vault.store.record, [noted])
        alarm = Alarm("alert.tested", "alert", EVENTS["alert.tested"].meaning, to_micros(vault.now()))
        outcomes = await asyncio.gather(*(_tried(sink, alarm) for sink in destinations))
    for sink, fault in zip(destinations, outcomes, strict=True):
        said, style = ("took it", "green") if fault is None else (f"FAILED: {fault}", "bold red")
        terminal.say(terminal.line(f"{sink.name}: {said}"), style)
    return not any(outcomes)


async def _tried(sink: Sink, alarm: Alarm) -> str | None:
    """Deliver *alarm*; say what went wrong, if something did."""
    from cloister.shipping import attempt

    fault = await attempt(sink, [alarm])
    await sink.close()
    return None if fault is None else str(fault)
