"""The command line: ``cloister --help``.

Each command imports what it needs when it runs, so that the next prompt is never far away.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from cloister import terminal
from cloister.cli.alerts import alerts
from cloister.cli.audit import audit
from cloister.cli.base import Commands, Failure, store_option
from cloister.cli.copy import copy
from cloister.cli.costs import costs
from cloister.cli.keys import keys
from cloister.cli.leaks import leaks
from cloister.cli.migrate import migrate
from cloister.cli.prove import prove
from cloister.cli.scrub import scrub
from cloister.cli.serve import serve
from cloister.cli.sessions import sessions
from cloister.cli.tenants import tenants

if TYPE_CHECKING:
    from cloister.settings import Settings


def _version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        with contextlib.suppress(metadata.PackageNotFoundError):
            click.echo(f"cloister {metadata.version('cloister')}")
            context.exit()
        click.echo("cloister, run from its source without being installed")
        context.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Say which this is."
)
def main() -> None:
    """Keep the conversations of many users of one language model apart.

    \b
    To see what it does:       cloister demo
    To talk to a model:        cloister chat --user ana
    To see what is set up:     cloister doctor

    Sessions lie in cloister.db in this folder unless --store or CLOISTER_STORE names another place. Settings come
    from cloister.toml in this folder and from CLOISTER_… in the environment; `cloister doctor --settings` lists them.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


for command in (sessions, tenants, keys, audit, alerts, migrate, copy, prove, scrub, leaks, costs, serve):
    main.add_command(command)


@main.command()
@store_option
@click.option("--provider", metavar="NAME", help="Play scenes 0 to 2 with this model: openai, anthropic, holysheep, …")
@click.option("--model", metavar="NAME", help="Which of the provider's models.")
def demo(read: Callable[..., Settings], provider: str | None, model: str | None) -> None:
    """Play the main job, scene by scene, with a verdict on each.

    Works in a new folder here, cloister-demo-…. With --store or CLOISTER_STORE it works in that store, as users with
    throw-away names that are erased at the end. Needs no network unless --provider names a model service.
    """
    from cloister.demo import play

    settings = read(**_given(provider=provider, model=model))
    source = click.get_current_context().get_parameter_source("store")
    given = source is ParameterSource.COMMANDLINE or "CLOISTER_STORE" in settings.environ
    if given and settings.store.startswith("token:"):
        raise Failure("the demonstration moves and changes stored rows, and tokens leave none: name another store")
    # Only what is asked for here goes out to a network, whatever is set up for the application.
    answerer = settings.answerer if provider else None
    sys.exit(0 if asyncio.run(play(settings if given else None, answerer)) else 1)


@main.command()
@store_option
@click.option("--user", required=True, metavar="ID", help="Who is talking.")
@click.option("--tenant", metavar="ID", help="The tenant that the user belongs to, in a store that has tenants.")
@click.option("--session", "session_id", metavar="ID", help="Go on in this session, instead of the latest.")
@click.option("--new", is_flag=True, help="Start a new session.")
@click.option("--provider", metavar="NAME", help="Who answers. [env: CLOISTER_PROVIDER; offline]")
@click.option("--model", metavar="NAME", help="Which of the provider's models. [env: CLOISTER_MODEL]")
@click.option("--system", metavar="TEXT", help="Instructions for the model.")
def chat(
    read: Callable[..., Settings],
    user: str,
    tenant: str | None,
    session_id: str | None,
    new: bool,
    provider: str | None,
    model: str | None,
    system: str | None,
) -> None:
    """Talk to a model in the terminal.

    The reply is shown as it is written, and the history is kept. Ctrl-C stops a reply and keeps the session; Ctrl-D or
    /exit leaves; /help lists the other commands. Lines may also come through a pipe.

    \b
    Examples:
      cloister chat --user ana
      OPENAI_API_KEY=… cloister chat --user ana --provider openai
      echo "What is my name?" | cloister chat --user ana
    """
    from dataclasses import replace

    from cloister.chat import talk

    if new and session_id:
        raise click.UsageError("--new and --session contradict each other")
    settings = read(**_given(provider=provider, model=model))
    if settings.provider is None:
        terminal.say("No model is set up, so the offline one answers; --provider names another.", "dim", stderr=True)
        settings = replace(settings, provider="offline")
    sys.exit(talk(settings, user, tenant, session_id, new=new, system=system))


def _given(**options: str | None) -> dict[str, str]:
    """Give the options that were given."""
    return {name: value for name, value in options.items() if value is not None}


@main.command("doctor")
@store_option
@click.option("--settings", "listed", is_flag=True, help="List all settings instead.")
def examine(read: Callable[..., Settings], listed: bool) -> None:
    """Say what is set up, what is missing, switched off or unsafe, and how to mend it.

    Makes and changes nothing. Exits with 1 if something is unsafe.
    """
    from cloister import doctor, settings
    from cloister.server import settings as server

    if listed:
        rows = [(name, f"CLOISTER_{name.upper()}", meaning) for name, meaning in settings.describe()]
        rows += [
            (f"server.{name}", "" if name in server.TABLES else f"CLOISTER_SERVER_{name.upper()}", f"server: {meaning}")
            for name, meaning in server.describe()
        ]
        terminal.table(["in cloister.toml", "in the environment", "meaning"], rows)
        return
    styles = {"ok": "green", "note": None, "missing": "yellow", "off": "yellow", "unsafe": "bold red"}
    unsafe = 0
    chosen = read()
    asked = asyncio.run(doctor.believed(chosen))
    for finding in (*doctor.examine(chosen, asyncio.run(doctor.reach(chosen))), *asked):
        unsafe += finding.state == "unsafe"
        terminal.say(terminal.line(f"{finding.state:8}{finding.what}: {finding.said}"), styles[finding.state])
        if finding.mend:
            terminal.say(terminal.line(f"        → {finding.mend}"))
    terminal.say(f"{unsafe} unsafe" if unsafe else "nothing is unsafe", "bold red" if unsafe else "green")
    sys.exit(1 if unsafe else 0)
