"""``cloister tenants``: who may use the server, and by which keys."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from cloister import terminal
from cloister.cli.base import DURATION, Failure, counted, must_exist, store_option

if TYPE_CHECKING:
    from cloister.client import AsyncCloister
    from cloister.settings import Settings


@click.group()
def tenants() -> None:
    """Add and remove tenants, and make, list and revoke the keys by which their back ends use the server.

    \b
    Examples:
      cloister tenants add acme
      KEY=$(cloister tenants keys new acme --name "web shop")
      cloister tenants keys list acme
      cloister tenants keys revoke acme key_0123456789abcdef0123
      cloister tenants remove acme
    """


@tenants.group("keys")
def tenant_keys() -> None:
    """Make, list and revoke keys of tenants, or of operators with --operator.

    A key is shown once, when it is made; the store keeps its digest alone.
    """


Command = Callable[..., Coroutine[Any, Any, None]]


def _with_tenants(*, make: bool = False) -> Callable[[Command], Callable[..., Any]]:
    """Hand a command a cloister in which every user belongs to a tenant, over a store that is there.

    With *make* an embedded store is made where there is none.
    """

    def decorated(command: Command) -> Callable[..., Any]:
        @store_option
        @wraps(command)
        def run(read: Callable[..., Settings], **options: Any) -> None:
            from cloister import doctor

            settings = read(tenancy="required")
            store = settings.connect()
            if make and not store.volatile and not doctor.is_there(store):
                terminal.say(f"there is no store {store.url} yet, so it is made", stderr=True)
            else:
                must_exist(store)
            asyncio.run(_work(settings, command, options))

        return run

    return decorated


async def _work(settings: Settings, command: Command, options: dict[str, Any]) -> None:
    from dataclasses import replace

    async with replace(settings, provider=None).open() as cloister:
        await command(cloister, **options)


def _tenant(tenant: str | None, operator: bool) -> str | None:
    """Give the tenant that is named, or None for operators."""
    if operator == (tenant is not None):
        raise click.UsageError("name a TENANT, or say --operator")
    return tenant


operator_option = click.option("--operator", is_flag=True, help="Of operators, who belong to no tenant.")


@tenants.command()
@_with_tenants(make=True)
@click.argument("name")
async def add(cloister: AsyncCloister, name: str) -> None:
    """Add a tenant. An embedded store that does not exist yet is made."""
    await cloister.credentials.add_tenant(name)
    terminal.say(f"added {terminal.line(name)} to {cloister.store.url}", stderr=True)
    terminal.say("`cloister tenants keys new` makes a key for its back end", stderr=True)


@tenants.command("list")
@_with_tenants()
async def list_tenants(cloister: AsyncCloister) -> None:
    """List the tenants."""
    found = await cloister.credentials.tenants()
    if not found:
        terminal.say("there is no tenant; `cloister tenants add` adds one", stderr=True)
        return
    terminal.table(["tenant", "added"], [(one.id, terminal.moment(one.created_at)) for one in found])


@tenants.command()
@store_option
@click.argument("name")
@click.option("--erase", is_flag=True, help="Destroy everything of its users too, for good.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove(read: Callable[..., Settings], **options: Any) -> None:
    """Remove a tenant: its keys and its users' session tokens are revoked at once.

    While its users have live sessions that takes --erase, which destroys whatever there is of them, sessions and more.
    """
    from cloister.server.settings import ServerSettings

    settings = read(tenancy="required")
    must_exist(settings.connect())
    for issuer in ServerSettings.read(environ=settings.environ, file=settings.config).issuers:
        if options["name"] in issuer.tenants:
            raise Failure(
                f"the issuer {issuer.issuer} lets its users in: take the tenant out of [[server.issuers]], restart the "
                "server, then remove it"
            )
    asyncio.run(_work(settings, _remove, options))


async def _remove(cloister: AsyncCloister, name: str, erase: bool, yes: bool) -> None:
    from cloister import removal

    there = await removal.belongings(cloister, name)  # before anything is changed: it may not be allowed to
    if there.sessions and not erase:
        have = f"users of {terminal.line(name)} have {counted(there.sessions)}"
        raise Failure(f"{have}, so it was left as it is: --erase destroys them for good")
    if not yes:
        what = f", and everything of {len(there.owners)} user(s), {counted(there.sessions)}, for good" if erase else ""
        click.confirm(f"Remove the tenant {terminal.line(name)}, its keys and tokens{what}?", abort=True, err=True)
    revoked = await cloister.credentials.remove_tenant(name)
    receipts = await removal.erase(cloister, name) if erase else []
    if not revoked and not receipts:
        raise Failure(
            f"there is nothing of a tenant {terminal.line(name)}; `cloister tenants list` shows those that there are"
        )
    terminal.say(f"removed {terminal.line(name)}", stderr=True)
    if receipts:
        gone = counted(sum(receipt.sessions for receipt in receipts))
        terminal.say(f"erased {len(receipts)} user(s); gone: {gone}. What remains elsewhere:", stderr=True)
        for remains in receipts[0].remains:
            terminal.say(f"  - {remains}", stderr=True)


@tenant_keys.command("new")
@_with_tenants()
@click.argument("tenant", required=False)
@operator_option
@click.option("--name", default="", metavar="TEXT", help="What the key is for, shown in lists.")
@click.option("--expires", type=DURATION, metavar="LENGTH", help="For how long it is good, such as 90d.")
async def new_key(
    cloister: AsyncCloister, tenant: str | None, operator: bool, name: str, expires: timedelta | None
) -> None:
    """Make a key and print it, once: nothing can show it again."""
    whose, made = _tenant(tenant, operator), cloister.credentials
    if whose is None:
        minted = await made.new_operator_key(name=name, expires_in=expires)
    else:
        minted = await made.new_key(whose, name=name, expires_in=expires)
    key = minted.credential
    until = f"good until {terminal.moment(key.expires_at)}" if key.expires_at else "good until it is revoked"
    terminal.say(f"{key.id}, {until}. It is not shown again:", stderr=True)
    click.echo(minted.secret)


@tenant_keys.command("list")
@_with_tenants()
@click.argument("tenant", required=False)
@operator_option
async def list_keys(cloister: AsyncCloister, tenant: str | None, operator: bool) -> None:
    """List the keys of a tenant that were not revoked."""
    found = await cloister.credentials.keys(_tenant(tenant, operator))
    if not found:
        terminal.say("there is no key", stderr=True)
        return
    rows = [(one.id, terminal.moment(one.created_at), terminal.moment(one.expires_at), one.name) for one in found]
    terminal.table(["key", "made", "expires", "name"], rows)


@tenant_keys.command()
@_with_tenants()
@click.argument("names", nargs=-1, metavar="[TENANT] KEY")
@operator_option
async def revoke(cloister: AsyncCloister, names: Sequence[str], operator: bool) -> None:
    """Revoke a key: what uses it is refused from now on. KEY is its name in the list."""
    if len(names) != 2 - operator:
        raise click.UsageError("name the TENANT and its KEY, or --operator and the KEY")
    whose, key = (None if operator else names[0]), names[-1]
    if key.startswith(("csk_", "cso_")):
        raise click.UsageError("KEY is the name that the list shows, and not the secret")
    if not await cloister.credentials.revoke_key(whose, key):
        raise Failure("there is no such key; `cloister tenants keys list` shows those that there are")
    terminal.say(f"revoked {key}", stderr=True)
