"""What every command shares: the store option, errors as one line, opening a store that is there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, TextIO

import click

from cloister import terminal
from cloister.errors import CloisterError, ConfigurationError

if TYPE_CHECKING:
    from cloister.client import AsyncCloister
    from cloister.settings import Settings
    from cloister.stores.base import Store


class Commands(click.Group):
    """Turn what cloister raises into one line on stderr and exit code 1, instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (CloisterError, ValueError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            said = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.filename else error
            raise Failure(terminal.line(said)) from None


class Failure(click.ClickException):
    """Say in one line on stderr why a command came to nothing; the exit code is 1."""

    def show(self, file: Any = None) -> None:
        click.echo(f"cloister: {self.message}", err=True, file=file)


def store_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give *command* the options that every command has, and hand it the settings."""

    @click.option("--store", metavar="URL", help="Where sessions lie. [env: CLOISTER_STORE; sqlite:///cloister.db]")
    @click.option("--config", metavar="FILE", help="A TOML file of settings. [env: CLOISTER_CONFIG; cloister.toml]")
    @wraps(command)
    def run(store: str | None, config: str | None, **options: Any) -> Any:
        from cloister.settings import Settings

        def read(**given: Any) -> Settings:
            if store is not None:
                given["store"] = store
            return Settings.read(file=config, **given)

        return command(read, **options)

    return run


def new_file(path: str) -> TextIO:
    """Make a file for its owner alone; `Failure` if there is one already, which stays as it is."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise Failure(
            f"{terminal.line(path)} exists already and was left as it is; name another file with -o, or move it away"
        ) from None
    return open(descriptor, "w", encoding="utf-8")


@contextlib.asynccontextmanager
async def opened(settings: Settings) -> AsyncGenerator[AsyncCloister, None]:
    """Open a store that is there already, without a model."""
    from dataclasses import replace

    must_exist(settings.connect())
    async with replace(settings, provider=None).open() as cloister:
        yield cloister


@contextlib.asynccontextmanager
async def reading(settings: Settings) -> AsyncGenerator[Store, None]:
    """Open the store alone: no keys are needed to read its audit log."""
    store = settings.connect()
    must_exist(store)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def must_exist(store: Store) -> None:
    """Raise `ConfigurationError` unless *store* is there: a command that only looks at one makes none."""
    from cloister import doctor

    if store.volatile:
        raise ConfigurationError("memory:// keeps nothing from one command to the next; name a file with --store")
    if not doctor.is_there(store):
        raise ConfigurationError(f"there is no store {store.url}; name the one you mean with --store or CLOISTER_STORE")


def counted(count: int) -> str:
    """Give a number of sessions in words."""
    return f"{count} session{'' if count == 1 else 's'}"


class _Duration(click.ParamType[timedelta]):
    """Take a length of time, such as 90d."""

    name = "length"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        from cloister.settings import duration

        try:
            return duration(value)
        except ValueError as error:
            self.fail(f"must be {error}", param, ctx)


class _Moment(click.ParamType[datetime]):
    """Take a moment: a date, with or without a time of day, in UTC unless it says otherwise; or how long ago it was."""

    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        from cloister.settings import duration

        with contextlib.suppress(ValueError):
            return datetime.now(UTC) - duration(value)
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail("must be how long ago, such as 12h or 7d, or a date: 2026-01-31, 2026-01-31T12:00Z", param, ctx)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


DURATION, MOMENT = _Duration(), _Moment()
SEVERITY = click.Choice(("info", "notice", "warning", "alert"))
