"""``cloister prove``: attacks on the store in use, and a signed report of what came of them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloister import terminal
from cloister.cli.base import Failure, must_exist, store_option
from cloister.errors import ConfigurationError

if TYPE_CHECKING:
    from cloister.audit import AuditKey
    from cloister.probe.attack import Attack
    from cloister.probe.report import Outcome, Signer
    from cloister.settings import Settings

_STYLES = {"pass": "green", "fail": "bold red", "beyond rights": "yellow", "not run": "dim"}


@click.command()
@store_option
@click.option("--turns", default=200, show_default=True, type=click.IntRange(50, 100_000), help="Taken over faults.")
@click.option("--out", metavar="FOLDER", help="Where the report goes; made if it is not there. [default: here]")
@click.option("--json", "json_file", metavar="FILE", help="Write the signed report here.")
@click.option("--markdown", "markdown_file", metavar="FILE", help="Write the report for people to read here.")
@click.option("--key", "key_file", metavar="FILE", help="Sign with this key. [default: the audit key, if there is one]")
@click.option("--verify", "report_file", metavar="FILE", help="Check a signed report, and attack nothing.")
@click.option("--public-key", metavar="KEY", help="Who must have signed it, with --verify.")
def prove(
    read: Callable[..., Settings],
    turns: int,
    out: str | None,
    json_file: str | None,
    markdown_file: str | None,
    key_file: str | None,
    report_file: str | None,
    public_key: str | None,
) -> None:
    """Attack the store in use, print what came of it, and write a signed report.

    Two users are made for it, under keys that are thrown away, and erased at the end; nobody else's rows are touched.
    The attempts leave alarms in the audit log: tell whoever is on call before. Exits with 1 if a promise does not hold.

    \b
    Examples:
      cloister prove --store postgresql://cloister_app@host/chats --out evidence
      cloister prove --verify evidence/cloister-prove-….json --public-key KEY
    """
    if report_file is not None:
        sys.exit(0 if _verify(Path(report_file), public_key) else 1)
    if public_key is not None:
        raise click.UsageError("--public-key goes with --verify")
    settings = read()
    store = settings.connect()
    if not store.volatile:
        must_exist(store)
    key, signer = _signer(settings, key_file)
    sys.exit(0 if asyncio.run(_prove(settings, turns, (out, json_file, markdown_file), key, signer)) else 1)


async def _prove(
    settings: Settings, turns: int, wanted: tuple[str | None, str | None, str | None], key: AuditKey, signer: Signer
) -> bool:
    from cloister.probe import prove, report
    from cloister.probe.attack import now

    began = now()
    attack = await prove.prepare(settings, turns)
    files = _files(f"cloister-prove-{began:%Y%m%d-%H%M}-{attack.run[:6]}", *wanted)
    terminal.say(f"Attacking {settings.connect().url} as {attack.a.user} and …-b; both are erased at the end.")
    outcomes = await _outcomes(attack)
    made = await prove.report_of(attack, outcomes, began, signer)
    signed = report.sign(made, key)
    rows = [_row(list(alike)) for _, alike in itertools.groupby(outcomes, _reason)]
    columns = ["verdict", "check", "what was seen, or why not"]
    terminal.table(columns, rows, [_STYLES[verdict] for verdict, _, _ in rows], wrap=True)
    for one in outcomes:
        if one.verdict == "fail":
            terminal.say(terminal.line(f"does NOT hold: {one.promise}: {one.said}"), "bold red")
    terminal.say(report.summary(made), "green" if made.verdict == "pass" else "bold red")
    for path, text in zip(files, (report.to_json(signed), report.to_markdown(signed)), strict=True):
        if path is not None:
            with path.open("x", encoding="utf-8", newline="\n") as file:
                file.write(text)
            terminal.say(f"written: {path}")
    terminal.say(f"signed with {report.SIGNERS[signer]}; the public key is {signed.key}")
    return made.verdict == "pass"


def _reason(outcome: Outcome) -> object:
    """Give what one line says for several checks: why they were not run, if that is the same."""
    return outcome.said if outcome.verdict == "not run" else outcome


def _row(alike: Sequence[Outcome]) -> tuple[str, str, str]:
    names = alike[0].check if len(alike) == 1 else f"{alike[0].check} to {alike[-1].check} ({len(alike)})"
    return alike[0].verdict, names, alike[0].said


async def _outcomes(attack: Attack) -> list[Outcome]:
    """Make all checks; if this is interrupted, clean up and say so."""
    from cloister.probe import prove

    outcomes: list[Outcome] = []
    task = asyncio.current_task()
    assert task is not None
    with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # Windows, or not the main thread
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with contextlib.ExitStack() as stack:
        total = len(prove.checks(attack)) + 1
        step = stack.enter_context(terminal.progress("checks", total)) if sys.stderr.isatty() else None

        def tell(outcome: Outcome) -> None:
            outcomes.append(outcome)
            if step is not None:
                step(1)

        try:
            await prove.prove(attack, tell)
        except asyncio.CancelledError:
            left = outcomes[-1].said if outcomes and outcomes[-1].check == "cleaned up" else "nothing was planted"
            terminal.say(f"interrupted, and no report was written: {left}", stderr=True)
            raise
    return outcomes


def _files(name: str, out: str | None, json_file: str | None, markdown_file: str | None) -> tuple[Path | None, ...]:
    """Give where the report goes, before anything is tried; a report that is there is never written over."""
    if out is not None or (json_file is None and markdown_file is None):
        folder = Path(out or ".")
        folder.mkdir(exist_ok=True)
        json_file, markdown_file = (
            json_file or str(folder / f"{name}.json"),
            markdown_file or str(folder / f"{name}.md"),
        )
    files = [Path(file) if file is not None else None for file in (json_file, markdown_file)]
    for file in files:
        if file is not None and file.exists():
            raise ConfigurationError(f"{file} exists already; a report is evidence and is not written over")
        if file is not None and not file.parent.is_dir():
            raise ConfigurationError(f"the folder {file.parent} does not exist; create it, or name another file")
    return tuple(files)


def _signer(settings: Settings, key_file: str | None) -> tuple[AuditKey, Signer]:
    """Give the key that signs, and whose it is."""
    from cloister import auditing, files
    from cloister.audit import AuditKey

    if key_file is not None:
        return AuditKey.from_text(files.read_secret(Path(key_file), "key")), "given"
    path = auditing.audit_key_path(settings, settings.connect())
    if path is not None and path.exists():
        return AuditKey.from_text(files.read_secret(path, "audit key")), "audit"
    return AuditKey.generate(), "made"


def _verify(file: Path, public: str | None) -> bool:
    """Check a report, and the text beside it."""
    from cloister.probe import report

    try:
        signed = report.read(file.read_bytes(), public)
    except FileNotFoundError:
        raise Failure(f"{terminal.line(file)} does not exist") from None
    except ConfigurationError:
        raise
    except ValueError as error:
        terminal.say(f"FAULT: {error}", "bold red")
        return False
    made = signed.report
    terminal.say(f"{made.store}, {made.began} to {made.ended}, by cloister {made.cloister}: {report.summary(made)}")
    text = file.with_suffix(".md")
    same = not text.exists() or text.read_text(encoding="utf-8") == report.to_markdown(signed)
    if not same:
        terminal.say(f"FAULT: {text} does not say what the signed report says", "bold red")
    if public is None:
        terminal.say(
            f"checked with the key that stands in it, {signed.key}: whoever changed the report could have put another "
            "there. Give --public-key, as you have it from the one who signs",
            "yellow",
        )
    terminal.say(
        "the report is as it was signed" if same else "the report is NOT as it was signed", "green" if same else "red"
    )
    return same
