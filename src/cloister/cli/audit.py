"""``cloister audit``: the log is read, verified, exported and pruned."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from cloister import terminal
from cloister.cli.audit_export import export
from cloister.cli.audit_prune import prune
from cloister.cli.audit_verify import verify
from cloister.cli.base import SEVERITY, reading, store_option
from cloister.errors import StoreUnavailable

if TYPE_CHECKING:
    from cloister.audit import Entry
    from cloister.model import Owner
    from cloister.settings import Settings
    from cloister.stores.base import Store

_AT_ONCE = 1_000
_PAUSE = 1.0  # seconds
_MOST = 100_000
_STYLES = {"notice": None, "warning": "yellow", "alert": "bold red"}
_COLUMNS = ["time", "severity", "event", "owner", "concerning", "detail"]


@click.group()
def audit() -> None:
    """Read the audit log, and check that nobody changed it.

    \b
    Examples:
      cloister audit tail -n 50
      cloister audit tail --follow --severity alert
      cloister audit tail --json | jq 'select(.severity == "alert")'
      cloister audit verify --heads kept-elsewhere.jsonl
      cloister audit export --format ocsf --since 7d -o events.jsonl
      cloister audit prune --keep 90d
    """


for command in (verify, export, prune):
    audit.add_command(command)


@audit.command()
@store_option
@click.option("-n", "count", default=20, show_default=True, type=click.IntRange(0, _MOST), help="How many entries.")
@click.option("-f", "--follow", is_flag=True, help="Go on with new entries until Ctrl-C.")
@click.option("--severity", type=SEVERITY, default="info", help="The least severity.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
def tail(read: Callable[..., Settings], count: int, follow: bool, severity: str, as_json: bool) -> None:
    """Print the newest entries of the audit log, oldest of them first."""
    shown = _Shown(severity, as_json)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_tail(read(), count, shown, follow))


class _Shown:
    """Print entries of some severity, with the names that their audit ids stand for."""

    def __init__(self, severity: str, as_json: bool) -> None:
        self._hidden = frozenset(SEVERITY.choices[: SEVERITY.choices.index(severity)])
        self._as_json = as_json
        self._names: dict[str, Owner] = {}

    def wanted(self, entries: Sequence[Entry]) -> list[Entry]:
        return [entry for entry in entries if entry.severity not in self._hidden]

    async def learn(self, store: Store, entries: Sequence[Entry]) -> None:
        """Ask for names only where there are new ones."""
        named = {entry.owner for entry in entries} | {entry.other for entry in entries}
        if not named <= self._names.keys() | {""}:
            self._names = await store.audit_owners()

    def first(self, entries: Sequence[Entry]) -> None:
        """Print *entries* as a table."""
        if self._as_json:
            self.more(entries)
            return
        styles = [_STYLES.get(entry.severity, "dim") for entry in entries]
        terminal.table(_COLUMNS, [_row(entry, self._names) for entry in entries], styles)

    def more(self, entries: Sequence[Entry]) -> None:
        """Print further *entries*, a line each."""
        for entry in entries:
            if self._as_json:
                click.echo(json.dumps(_said(entry, self._names)))  # which escapes everything but ASCII
            else:
                cells = map(terminal.line, _row(entry, self._names))
                terminal.say("\t".join(cells), _STYLES.get(entry.severity, "dim"))


async def _tail(settings: Settings, count: int, shown: _Shown, follow: bool) -> None:
    async with reading(settings) as store:
        entries, after = await _newest(store, count, shown)
        await shown.learn(store, entries)
        shown.first(entries)
        down = False
        while follow:
            try:
                page = await store.trail(after=after, limit=_AT_ONCE)
                entries = shown.wanted(page.entries)
                await shown.learn(store, entries)
            except StoreUnavailable as error:
                if not down:
                    terminal.say(terminal.line(error), "yellow", stderr=True)
                down = True
                await asyncio.sleep(_PAUSE)
                continue
            shown.more(entries)
            down, after = False, page.after
            if len(page.entries) < _AT_ONCE:
                await asyncio.sleep(_PAUSE)


async def _newest(store: Store, count: int, shown: _Shown) -> tuple[list[Entry], bytes]:
    """Give the newest *count* entries that are wanted, as far as they are among the last `_MOST`, and the log's end."""
    read = max(count, 1)
    while True:
        tail = await store.audit_tail(read)
        entries = shown.wanted(tail.entries)
        if len(entries) >= count or len(tail.entries) < read or read == _MOST:
            return entries[len(entries) - min(count, len(entries)) :], tail.after
        read = min(read * 8, _MOST)


def _row(entry: Entry, names: Mapping[str, Owner]) -> list[str]:
    from cloister.model import from_micros

    who = str(names.get(entry.owner, entry.owner))
    other = f"whose: {names.get(entry.other, entry.other)}" if entry.other else ""
    detail = "" if entry.detail == "{}" else entry.detail
    return [terminal.moment(from_micros(entry.at)), entry.severity, entry.event, who, other, detail]


def _said(entry: Entry, names: Mapping[str, Owner]) -> dict[str, Any]:
    from cloister.model import from_micros

    said: dict[str, Any] = {"at": from_micros(entry.at).isoformat(), "detail": entry.detail}
    said |= {name: getattr(entry, name) for name in ("writer", "number", "event", "severity", "session")}
    for role, audit_id in (("owner", entry.owner), ("other", entry.other)):
        owner = names.get(audit_id)
        said[role] = {"audit_id": audit_id, **({"tenant": owner.tenant, "user": owner.user} if owner else {})}
    return said
