"""``cloister copy``: from one store to another."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from urllib.parse import urlsplit

import click

from cloister import terminal
from cloister.cli.base import Failure, counted, must_exist
from cloister.errors import ConfigurationError


@click.command()
@click.option("--from", "source", required=True, metavar="URL", help="Where the sessions lie.")
@click.option("--to", "target", required=True, metavar="URL", help="Where they are to lie too.")
@click.option("--config", metavar="FILE", help="A TOML file of settings. [env: CLOISTER_CONFIG; cloister.toml]")
@click.option("--yes", is_flag=True, help="Do not ask.")
def copy(source: str, target: str, config: str | None, yes: bool) -> None:
    """Copy all live sessions, keys and session tokens from one store to another, sealed as they are, and verify each.

    Ids, keys, limits and times stay. If it is interrupted, run it again: what is there already is passed over. Stop
    what uses the source before: a session that changes meanwhile is copied as it was, and then differs. Sessions that
    are over, idempotency records, fingerprints and the audit log stay where they are.
    """
    asyncio.run(_copy(source, target, config, yes))


async def _copy(source: str, target: str, config: str | None, yes: bool) -> None:
    from cloister import client, copying
    from cloister.client import AsyncCloister
    from cloister.keyring import Keyring
    from cloister.settings import Settings

    settings = Settings.read(file=config, store=source)
    there, here = Settings.read(file=config, store=target).connect(), settings.connect()
    if "token" in (urlsplit(source).scheme, urlsplit(target).scheme):
        raise ConfigurationError("conversations in tokens lie with those who hold them, so there is nothing to copy")
    must_exist(here)
    if there.volatile or there.url == here.url:
        raise ConfigurationError("--to names a store that lasts, and another one than --from")
    keyring = settings.keyring() or client.default_keyring(here)
    if settings.keyring() is None and there.path is not None and isinstance(keyring, Keyring):
        beside = client.beside(there.path, client.KEYS)
        copying.check_keys(keyring.names, Keyring.from_file(beside).names if beside.exists() else [], str(beside))
    async with contextlib.AsyncExitStack() as stack:
        opening = AsyncCloister.open(here, keyring=keyring, tenancy=settings.tenancy)
        begun = await stack.enter_async_context(opening)
        census = await copying.count(begun.vault)
        told = f"{counted(census.live)} to copy; {census.over} over and not copied; {census.soon} over within the hour"
        terminal.say(told)
        if (census.over or census.soon) and not yes:
            if not sys.stdin.isatty():
                raise Failure("nothing was copied: say --yes if that is meant")
            click.confirm("Go on?", abort=True, err=True)
        tenancy = begun.tenancy
        ended = await stack.enter_async_context(AsyncCloister.open(there, keyring=keyring, tenancy=tenancy))
        with terminal.progress("sessions", census.live + census.over) as done:
            result = await copying.copy(begun.vault, ended.vault, done)
    terminal.say(f"copied {counted(result.copied)} to {there.url}; {result.there} were there; {result.over} were over")
    if result.credentials:
        terminal.say(f"keys and session tokens that are there now: {result.credentials}")
    if result.failed:
        raise Failure(
            f"not copied: {result.failed}, which are damaged, under a key that is missing, or others in the target; "
            "`cloister audit tail` of the source names the damaged ones"
        )
