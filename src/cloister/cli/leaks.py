"""``cloister leaks``: replies that carry somebody else's details."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloister import terminal
from cloister.cli.base import reading, store_option
from cloister.cli.scan import scan
from cloister.cli.sessions import operator

if TYPE_CHECKING:
    from cloister.audit import Entry
    from cloister.client import AsyncCloister
    from cloister.settings import Settings
    from cloister.user import User

_AT_ONCE = 100_000  # characters of a text that is seeded
_EVENTS = ("reply.blocked", "reply.alerted", "reply.unchecked", "document.foreign")


@click.group()
def leaks() -> None:
    """Find replies that carry somebody else's details.

    \b
    Examples:
      cloister leaks scan --html report.html transcripts.jsonl
      cloister leaks seed catalogue.txt
      cloister leaks check --user ben --reason "ticket 4711" --session cs_… < reply.txt
      cloister leaks report --since 7d
    """


leaks.add_command(scan)


@leaks.command()
@operator
@click.option("--session", "session_id", required=True, metavar="ID", help="Which session of theirs it would go to.")
async def check(cloister: AsyncCloister, user: User, reason: str, session_id: str) -> None:
    """Say what would become of a reply, and why. Reads the reply from standard input; nothing is stored.

    Exits with 1 if it would be withheld.
    """
    await cloister.note_operator(user.owner, "check", reason)
    session = await user.resume(session_id)
    text = sys.stdin.read()
    verdict = await session.check(text)
    whose = f" ({verdict.owner})" if verdict.owner else ""
    terminal.say(
        terminal.line(f"{verdict.action}: {verdict.score:.1f} of evidence{whose}"),
        {"block": "bold red", "alert": "yellow", "pass": "green"}[verdict.action],
    )
    if verdict.evidence:
        rows = [
            [piece.kind, f"{piece.weight:.1f}", f"{piece.start} to {piece.end}", text[piece.start : piece.end]]
            for piece in verdict.evidence
        ]
        terminal.table(
            ["what", "weight", "characters", "words"], [[terminal.line(cell) for cell in row] for row in rows]
        )
    if verdict.action == "block":
        sys.exit(1)


@leaks.command()
@store_option
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--tenant", metavar="ID", help="Whose common knowledge it is, in a store that has tenants.")
def seed(read: Callable[..., Settings], files: tuple[Path, ...], tenant: str | None) -> None:
    """Make what files of text say common knowledge: products, places, boilerplate, the hotline's number.

    A reply that says it is no leak, whoever said it first. It is no secret from then on, so name no file that holds
    details of users.
    """
    texts = [part for file in files for part in _parts(file.read_text("utf-8", "replace"))]

    async def work() -> int:
        from dataclasses import replace

        async with replace(read(), provider=None).open() as cloister:
            count = 0
            with terminal.progress("characters", sum(map(len, texts))) as done:
                for text in texts:
                    count += await cloister.seed(text, tenant=tenant)
                    done(len(text))
            return count

    count = asyncio.run(work())
    terminal.say(f"{count:,} details are common knowledge that were not before", "green")


def _parts(text: str) -> list[str]:
    """Cut a text between its lines, so that it is taken some at a time."""
    parts = [""]
    for line in text.splitlines(keepends=True):
        if len(parts[-1]) + len(line) > _AT_ONCE:
            parts.append("")
        parts[-1] += line
    return [part for part in parts if part]


@leaks.command()
@store_option
@click.option("--since", default="7d", show_default=True, metavar="LENGTH", help="How far to look back: 12h, 7d …")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def report(read: Callable[..., Settings], since: str, as_json: bool) -> None:
    """Say what was withheld and what alerted lately, by kind of evidence: to decide on block="any".

    Reads the audit log, which has no words of any reply. Needs no master key.
    """
    from cloister.settings import duration

    try:
        length = duration(since)
    except ValueError as error:
        raise click.BadParameter(f"must be {error}", param_hint="--since") from None
    asyncio.run(_report(read(), length, as_json))


async def _report(settings: Settings, length: timedelta, as_json: bool) -> None:
    from cloister.model import to_micros
    from cloister.stores.base import every_entry

    first = to_micros(datetime.now(UTC) - length)
    found: dict[tuple[str, str], list[Entry]] = {}
    turns = 0
    async with reading(settings) as store:
        async for entry in every_entry(store):
            if entry.at < first:
                continue
            turns += entry.event in ("turn.committed", "turn.passed")
            if entry.event in _EVENTS:
                found.setdefault((entry.event, _kinds(entry.detail)), []).append(entry)
    rows = [
        {
            "event": event,
            "evidence": kinds,
            "count": len(entries),
            "receivers": len({entry.owner for entry in entries}),
            "others": len({entry.other for entry in entries if entry.other}),
        }
        for (event, kinds), entries in sorted(found.items(), key=lambda each: (each[0][0], -len(each[1])))
    ]
    totals = Counter({row["event"]: 0 for row in rows})
    for row in rows:
        totals[row["event"]] += int(str(row["count"]))
    if as_json:
        click.echo(json.dumps({"turns": turns, "found": rows}))
        return
    blocked, alerted = totals["reply.blocked"], totals["reply.alerted"]
    terminal.say(f"{turns:,} turns: {blocked:,} replies were withheld, {alerted:,} alerted and passed")
    if rows:
        columns = ["event", "evidence", "count", "receivers", "others"]
        styles = {"reply.alerted": "yellow"}
        cells = [[str(row[column]) for column in columns] for row in rows]
        terminal.table(columns, cells, [styles.get(str(row["event"]), "bold red") for row in rows])
    if alerted and turns:
        terminal.say(
            f'With block="any" these {alerted:,} would have been withheld too, {alerted / turns:.2%} of all turns.'
        )


def _kinds(detail: str) -> str:
    """Give the kinds of evidence of an entry, and how often each."""
    said = json.loads(detail)
    return ", ".join(f"{kind} ×{count}" if count != 1 else kind for kind, count in said.items() if kind != "score")
