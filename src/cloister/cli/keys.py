"""``cloister keys``: master keys are made, listed, replaced and destroyed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from cloister import terminal
from cloister.cli.base import Failure, counted, opened, store_option
from cloister.errors import CloisterError, ConfigurationError

if TYPE_CHECKING:
    from cloister.client import AsyncCloister
    from cloister.keyring import Keyring
    from cloister.settings import Settings
    from cloister.stores.base import Store


@click.group()
def keys() -> None:
    """Make, list, replace and destroy the master keys of a store.

    \b
    To replace a key:
      cloister keys rotate          a new key; every session is put under it, while the store is in use
      cloister keys list            nothing is under the old key any more
      cloister keys retire NAME     the old key is destroyed; old copies of the store never open again
    """


@keys.command("new")
@store_option
@click.option("--print", "show", is_flag=True, help="Print a value for CLOISTER_KEYS, and write nothing.")
@click.option("--audit", is_flag=True, help="Make the key that signs the audit log instead.")
def new_key(read: Callable[..., Settings], show: bool, audit: bool) -> None:
    """Make the key file of the store, or add a key to it, which seals from now on.

    With --audit the file that CLOISTER_AUDIT_KEY_FILE names, or the one beside the store; never over another.
    """
    from cloister import doctor
    from cloister.keyring import Keyring

    if show and audit:
        raise click.UsageError("--print and --audit contradict each other")
    if show:
        click.echo(_fresh_key())
        return
    settings = read()
    store = settings.connect()
    if audit:
        _new_audit_key(settings, store)
        return
    if settings.keys is not None:
        terminal.say("The keys come from CLOISTER_KEYS. Append this to its value, behind a comma:", stderr=True)
        click.echo(_fresh_key())
        return
    path = doctor.key_path(settings, store)
    if path is None or store.volatile:
        raise ConfigurationError(f"{store.url} has no key file; use `cloister keys new --print` and CLOISTER_KEYS")
    if path.exists():
        keyring = Keyring.from_file(path)
        terminal.say(f"added the key {keyring.add()} to {path}; new sessions are under it from now on")
        terminal.say("`cloister keys rotate --resume` puts the older ones under it too")
        return
    if store.path is not None and doctor.is_there(store):
        raise ConfigurationError(f"{store.url} is there, but its key file {path} is not: put the file back")
    keyring = Keyring.create_file(path)
    terminal.say(f"made {path} with the key {keyring.names[-1]}; keep a copy of it apart from the store")


def _new_audit_key(settings: Settings, store: Store) -> None:
    """Make the audit key of *store*, unless there is one, or was one that signed."""
    from cloister import auditing, sinks

    path = auditing.audit_key_path(settings, store)
    if path is None:
        raise ConfigurationError(f"{store.url} has no audit key beside it; name a file with CLOISTER_AUDIT_KEY_FILE")
    if path.exists():
        raise ConfigurationError(f"{path} exists already and was left as it is; name another file, or move it away")
    key = sinks.audit_key(path, auditing.heads_path(settings, store))
    terminal.say(f"made {path}; keep a copy apart from the store. Its public half, to verify with: {key.public}")


def _fresh_key() -> str:
    """Make a key as CLOISTER_KEYS takes it."""
    import base64
    import secrets

    return f"key-{secrets.token_hex(4)}:{base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()}"


def _all(sessions: int, credentials: int) -> str:
    return counted(sessions) + (f" and {credentials} credential{'s'[: credentials > 1]}" if credentials else "")


def _keyring(cloister: AsyncCloister) -> Keyring:
    from cloister.keyring import Keyring

    keyring = cloister.vault.keys
    if not isinstance(keyring, Keyring):
        raise ConfigurationError("these keys are kept by another service; add and destroy them there")
    return keyring


def _with_keys(command: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., Any]:
    """Hand *command* an open cloister, its keyring, and whether the keys come from the environment."""

    @store_option
    @wraps(command)
    def run(read: Callable[..., Settings], **options: Any) -> None:
        async def work() -> None:
            settings = read()
            async with opened(settings) as cloister:
                await command(cloister, _keyring(cloister), settings.keys is not None, **options)

        asyncio.run(work())

    return run


@keys.command("list")
@_with_keys
async def list_keys(cloister: AsyncCloister, keyring: Keyring, from_env: bool) -> None:
    """List the keys, which of them seals, and how many sessions and credentials are under each."""
    from cloister import upkeep

    vault, newest = cloister.vault, keyring.names[-1]
    rows = [
        (
            name,
            "seals" if name == newest else "opens only",
            await upkeep.count_under(vault, name),
            await upkeep.credentials_under(vault, name),
        )
        for name in keyring.names
    ]
    terminal.table(["key", "use", "sessions under it", "credentials under it"], rows)


@keys.command()
@_with_keys
@click.option("--resume", is_flag=True, help="Make no new key; go on putting sessions under the newest.")
async def rotate(cloister: AsyncCloister, keyring: Keyring, from_env: bool, resume: bool) -> None:
    """Make a new key and put every session and credential under it, while the store is in use.

    Items are not touched, only the secrets that open them; keys of tenants and tokens stay as good as they were. If it
    is interrupted, go on with --resume.
    """
    from cloister import upkeep

    if from_env and not resume:
        terminal.say("The keys come from CLOISTER_KEYS, which only you can change:")
        terminal.say("  1. append a key to its value behind a comma, everywhere: `cloister keys new --print` makes one")
        terminal.say("  2. restart what uses the store, then run `cloister keys rotate --resume`")
        terminal.say("  3. `cloister keys retire NAME` says whether the old key can go")
        raise Failure("nothing was rotated")
    if not resume:
        keyring.add()
    newest = keyring.names[-1]
    try:
        count = sum([len(rows) async for rows in upkeep.batches(cloister.vault)])
        with terminal.progress("sessions", count) as done:
            rotated = await upkeep.rewrap_all(cloister.vault, done)
    except CloisterError as error:
        raise Failure(
            f"{terminal.line(error)} Something is still under older keys; mend this, then `keys rotate --resume`"
        ) from None
    terminal.say(f"{newest} seals; {_all(rotated.sessions, rotated.credentials)} went under it")
    if rotated.failed:
        raise Failure(f"cannot be opened and stayed as they are: {rotated.failed}; see `cloister audit tail`")
    for name in keyring.names[:-1]:
        terminal.say(f"`cloister keys retire {name}` destroys the key {name}")
    if keyring.names[:-1]:
        terminal.say(
            "Backups made until now open with the older keys alone: keep those as long as you need such backups."
        )


@keys.command()
@_with_keys
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
async def retire(cloister: AsyncCloister, keyring: Keyring, from_env: bool, name: str, yes: bool) -> None:
    """Destroy a key that no session and no credential is under.

    Copies of the store that were made while it was in use can never be opened again.
    """
    from cloister import upkeep
    from cloister.stores.token import Alone

    if name not in keyring.names:
        raise ConfigurationError(f"there is no key {name!r}; there are {', '.join(keyring.names)}")
    if name == keyring.names[-1]:
        raise ConfigurationError(f"{name} is the key that seals; make another with `cloister keys rotate` first")
    under = await upkeep.count_under(cloister.vault, name), await upkeep.credentials_under(cloister.vault, name)
    if any(under):
        raise ConfigurationError(f"still under {name}: {_all(*under)}; run `cloister keys rotate --resume` first")
    if from_env:
        terminal.say(
            f"Nothing is under {name}. Remove it from CLOISTER_KEYS, everywhere, and destroy every copy of it."
        )
        raise Failure("the keys come from CLOISTER_KEYS, which only you can change; nothing was retired")
    if not yes:
        what = "Tokens" if isinstance(cloister.store, Alone) else "Backups"
        asked = f"Destroy the key {name} for good? {what} made under it never open again."
        click.confirm(asked, abort=True, err=True)
    # On record first: a key must not vanish without a trace, and an entry too many does no harm.
    await cloister.vault.ask(cloister.store.record, [cloister.vault.event("key.retired", key=name)])
    keyring.remove(name)
    terminal.say(f"retired {name}. Destroy your copies of the key file too: with them, old copies of the store open.")
