"""``cloister sessions``: an operator's look at a user's sessions, on record before it happens."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from cloister import terminal
from cloister.cli.base import Failure, counted, new_file, opened, store_option

if TYPE_CHECKING:
    from cloister.client import AsyncCloister
    from cloister.settings import Settings
    from cloister.user import User

_REASON_AT_MOST = 500


@click.group()
def sessions() -> None:
    """Look at, end, export or erase a user's sessions, as an operator.

    Every one of these leaves an entry in the audit log first, with the --reason that you give.

    \b
    Examples:
      cloister sessions list --user ana --reason "ticket 4711"
      cloister sessions export --user ana --reason "asked for a copy" -o ana.jsonl
    """


def operator(command: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., Any]:
    """Make an operator's command of *command*: it names a user and a reason, and opens a store that is there."""

    @store_option
    @click.option("--user", "name", required=True, metavar="ID", help="Whose sessions.")
    @click.option("--tenant", metavar="ID", help="The tenant that the user belongs to, in a store that has tenants.")
    @click.option("--reason", required=True, metavar="TEXT", help="Why, for the audit log.")
    @wraps(command)
    def run(read: Callable[..., Settings], name: str, tenant: str | None, reason: str, **options: Any) -> None:
        if not reason.strip() or len(reason) > _REASON_AT_MOST:
            raise click.UsageError(f"--reason takes a text of 1 to {_REASON_AT_MOST} characters")

        from cloister.chat import door

        async def work() -> None:
            async with opened(read()) as cloister:
                await command(cloister, door(cloister, name, tenant), reason, **options)

        asyncio.run(work())

    return run


@sessions.command("list")
@operator
async def list_sessions(cloister: AsyncCloister, user: User, reason: str) -> None:
    """List a user's live sessions, latest first; personal data in titles stays replaced."""
    await cloister.note_operator(user.owner, "list", reason)
    rows = []
    after = None
    while page := await user.sessions(after=after):
        for one in page:
            times = [terminal.moment(time) for time in (one.created_at, one.updated_at, one.expires_at)]
            rows.append([one.id, *times, one.item_count, one.usage.total_tokens, one.head.title or ""])
        after = page[-1].id
    if not rows:
        terminal.say(f"{user.owner} has no live session", stderr=True)
        return
    terminal.table(["session", "started", "last used", "ends", "items", "tokens used", "title"], rows)


@sessions.command()
@operator
@click.argument("session_id", metavar="SESSION")
async def show(cloister: AsyncCloister, user: User, reason: str, session_id: str) -> None:
    """Print the history of one session; personal data in it stays replaced."""
    await cloister.note_operator(user.owner, "show", reason)
    session = await user.resume(session_id)
    after = None
    while page := await session.history(limit=1_000, after=after, masked=True):
        for item in page:
            failed = f", failed: {item.error}" if item.error else ""
            terminal.say(terminal.line(f"{terminal.moment(item.time)} {item.role}{failed}"), "bold")
            terminal.say(item.text if item.content is not None else str(item.tool_calls or ""))
        after = page[-1].id


@sessions.command()
@operator
@click.argument("session_id", metavar="[SESSION]", required=False)
@click.option("--all", "every", is_flag=True, help="End all of the user's sessions.")
async def end(cloister: AsyncCloister, user: User, reason: str, session_id: str | None, every: bool) -> None:
    """End a session: its content is destroyed at once."""
    if every == (session_id is not None):
        raise click.UsageError("name one SESSION, or --all")
    await cloister.note_operator(user.owner, "end", reason)
    if session_id is None:
        ended = await user.end_all()
    else:
        await (await user.resume(session_id)).end()
        ended = 1
    terminal.say(f"ended {counted(ended)} of {user.owner}")


@sessions.command()
@operator
@click.option("-o", "--output", metavar="FILE", help="A new file, for you alone, instead of standard output.")
async def export(cloister: AsyncCloister, user: User, reason: str, output: str | None) -> None:
    """Write all that is a user's as JSON lines: each session, followed by its items."""
    import json

    await cloister.note_operator(user.owner, "export", reason)
    if output is None:
        async for text in user.export():
            # On a terminal in ASCII, which cannot steer it.
            click.echo(json.dumps(json.loads(text)) if sys.stdout.isatty() else text)
        return
    lines = 0
    with new_file(output) as file:
        async for text in user.export():
            file.write(text + "\n")
            lines += 1
    terminal.say(f"wrote {lines} lines to {output}", stderr=True)


@sessions.command()
@operator
@click.option("--yes", is_flag=True, help="Do not ask.")
async def erase(cloister: AsyncCloister, user: User, reason: str, yes: bool) -> None:
    """Destroy everything of a user's, at once and for good, and print the receipt."""
    if not yes:
        click.confirm(f"Destroy everything of {terminal.line(user.owner)} for good?", abort=True, err=True)
    await cloister.note_operator(user.owner, "erase", reason)
    receipt = await user.erase()
    if not receipt.sessions:
        raise Failure(f"nothing of {terminal.line(user.owner)} was here; check the name")
    terminal.say(f"{terminal.moment(receipt.time)} erased {receipt.owner}; gone: {counted(receipt.sessions)}.")
    terminal.say("What remains elsewhere:")
    for remains in receipt.remains:
        terminal.say(f"  - {remains}")
