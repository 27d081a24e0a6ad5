"""``cloister migrate``: the schema, roles and policies of a store that does not make them itself."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from cloister import terminal
from cloister.cli.base import store_option
from cloister.errors import ConfigurationError

if TYPE_CHECKING:
    from cloister.settings import Settings


@click.command()
@store_option
@click.option(
    "--app-role", default="cloister_app", show_default=True, metavar="NAME", help="As whom applications come."
)
@click.option("--operator-role", metavar="NAME", help="Who alone may read the audit log and rotate keys.")
@click.option("--app-password-env", metavar="NAME", help="A variable with the application's password.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and undo it.")
@click.option("--sql", is_flag=True, help="Print the statements, and connect to nothing.")
def migrate(
    read: Callable[..., Settings],
    app_role: str,
    operator_role: str | None,
    app_password_env: str | None,
    dry_run: bool,
    sql: bool,
) -> None:
    """Make the schema, roles, grants and policies of a PostgreSQL store.

    Run it as the database's owner or a superuser; it is safe to repeat, and does all or nothing. Without
    --operator-role the application's role may also read the audit log and rotate keys.

    \b
    Example:
      cloister migrate --store postgresql://owner@host/chats
      psql -c '\\password cloister_app' postgresql://owner@host/chats
      CLOISTER_STORE=postgresql://cloister_app@host/chats cloister doctor
    """
    from cloister.stores import postgres_schema

    if sql:
        for what, statements in postgres_schema.steps(app_role, operator_role):
            click.echo(f"-- {what}\n{statements.rstrip().rstrip(';')};\n")
        return
    password = None
    if app_password_env is not None and not (password := os.environ.get(app_password_env)):
        raise ConfigurationError(f"the variable {app_password_env} is not set; --app-password-env names it")
    store = read().connect()
    if not hasattr(store, "migrate"):
        raise ConfigurationError(f"{store.url} needs no migration: it makes what it needs when it is first used")
    asyncio.run(store.migrate(app_role, operator_role, password, report=terminal.say, keep=not dry_run))
    if dry_run:
        terminal.say("nothing was changed: this was a dry run")
        return
    terminal.say(f"done; applications open the store as {app_role}")
    if password is None:
        terminal.say(f"it may still want a password: \\password {app_role} in psql, or --app-password-env")
