"""``cloister serve``: the HTTP APIs of OpenAI and Anthropic, with every user's conversations apart."""

from __future__ import annotations

import dataclasses
import importlib.util
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from cloister import terminal
from cloister.cli.base import store_option
from cloister.errors import ConfigurationError

if TYPE_CHECKING:
    from cloister.server.settings import ServerSettings
    from cloister.settings import Settings

_NEEDED = ("starlette", "uvicorn", "uvloop", "httptools", "joserfc")
_SHOWN = ("provider", "tenancy", "limits", "budget", "scrub", "leaks", "alarms")
"""What is said at the start, of all that `cloister doctor` looks at; the rest only where something is wrong."""
_STYLES = {"unsafe": "bold red", "missing": "yellow", "off": "yellow"}


@click.command()
@store_option
@click.option("--host", metavar="ADDRESS", help="Where to listen. [env: CLOISTER_SERVER_HOST; 127.0.0.1]")
@click.option("--port", metavar="NUMBER", help="On which port; 0 for any. [env: CLOISTER_SERVER_PORT; 8787]")
@click.option("--workers", metavar="NUMBER", help="How many processes. [env: CLOISTER_SERVER_WORKERS; 1]")
@click.option("--provider", metavar="NAME", help="Who answers. [env: CLOISTER_PROVIDER]")
@click.option("--model", metavar="NAME", help="Which of the provider's models. [env: CLOISTER_MODEL]")
@click.option("--tls-cert", metavar="FILE", help="The certificate, as PEM. [env: CLOISTER_SERVER_TLS_CERT]")
@click.option("--tls-key", metavar="FILE", help="Its private key, as PEM. [env: CLOISTER_SERVER_TLS_KEY]")
def serve(read: Callable[..., Settings], provider: str | None, model: str | None, **given: Any) -> None:
    """Serve the HTTP APIs of OpenAI and Anthropic, with every user's conversations apart.

    Every call names its user. Further settings are in the table [server] of cloister.toml and in CLOISTER_SERVER_….
    SIGTERM and Ctrl-C let open requests finish; SIGHUP replaces the workers and reads the certificate anew.

    \b
    Examples:
      cloister serve --provider offline
      cloister serve --workers 2 --store postgresql://… --provider holysheep
    """
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise ConfigurationError(f"the server needs {', '.join(missing)}: pip install 'cloister[server]'")
    from cloister.server.serve import serve as run
    from cloister.server.serve import without_trace
    from cloister.server.settings import ServerSettings

    said = {"provider": provider, "model": model}
    with without_trace():
        settings = read(**{name: value for name, value in said.items() if value is not None})
        settings = dataclasses.replace(settings, tenancy="required")
        options = ServerSettings.read(
            file=settings.config, **{name: value for name, value in given.items() if value is not None}
        )
    sys.exit(run(settings, options, lambda url, facts: _began(settings, options, url, facts)))


def _began(settings: Settings, options: ServerSettings, url: str, facts: dict[str, Any]) -> None:
    """Say on stderr what is served, how, and what is missing."""
    from cloister import doctor
    from cloister.server.monitoring import is_counting

    _say(f"cloister serves {url}", "bold")
    _line("store", settings.connect().url)
    for finding in doctor.examine(settings):
        if finding.what in _SHOWN or finding.state in _STYLES:
            state = "" if finding.state in ("ok", "note") else f"{finding.state}: "
            _line(finding.what, state + finding.said, _STYLES.get(finding.state))
    _line("requests", _limits(options))
    if options.metrics != "off" and not is_counting(options):
        _line("metrics", "nothing is counted, and there is no /metrics: pip install 'cloister[metrics]'")
    if options.workers > 1:
        _line("workers", str(options.workers))
    if unknown := facts.get("unknown"):
        said = "set up here and never added; if the spelling is right, `cloister tenants add` adds it"
        _line("tenants", f"{', '.join(unknown)}: {said}", "yellow")
    if not facts.get("keys", True):
        _line("keys", "there are none: nobody can ask anything yet. For a first one:", "yellow")
        there = _there(settings)
        _say(f"             cloister tenants add acme{there} && cloister tenants keys new acme{there}", "yellow")


def _there(settings: Settings) -> str:
    """Give the options by which another command finds what this one was told, but for the password of a store."""
    given = click.get_current_context().params
    told = {"store": settings.connect().url if given["store"] else None, "config": given["config"]}
    return "".join(f" --{name} {shlex.quote(value)}" for name, value in told.items() if value)


def _limits(options: ServerSettings) -> str:
    def many(count: int | None) -> str:
        return "any number" if count is None else f"{count:,}"

    return (
        f"bodies of {options.max_body >> 10:,} KiB; {many(options.requests_per_minute_user)} requests a minute and "
        f"{many(options.turns_at_once_user)} turns at once for a user, {many(options.requests_per_minute_tenant)} and "
        f"{many(options.turns_at_once_tenant)} for a tenant"
    )


def _line(what: str, said: str, style: str | None = None) -> None:
    _say(f"  {what:10} {terminal.line(said)}", style)


def _say(text: str, style: str | None = None) -> None:
    terminal.say(text, style, stderr=True)
