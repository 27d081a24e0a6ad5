"""``cloister prove``: all attacks on the store in use, one after the other, each with its verdict.

A check is a coroutine function: its name is what it is about, its docstring the promise, what it returns what was seen.
It raises `Leak` where the promise does not hold, `Beyond` where rights end, `NotRun` where there is nothing to look at;
whatever else it raises is a failure too.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from importlib import metadata

import msgspec

from cloister.errors import CloisterError, ConfigurationError
from cloister.probe import crossing, lifetimes, owners, rows, tokens
from cloister.probe.attack import Attack, Beyond, Leak, NotRun, now
from cloister.probe.report import FORMAT, Outcome, Report, Signer, Verdict, verdict_of
from cloister.settings import Settings

Run = Callable[[Attack], Awaitable[str]]
_LONGEST = 300.0
_FIRST = "role and schema"


@dataclass(frozen=True, slots=True)
class Check:
    """Be one attack: its name, what it is about, and the coroutine function whose docstring is the promise."""

    name: str
    about: str
    """``owners``, ``rows``, ``endings``, ``turns``, ``words``, ``network``, ``tokens`` or ``postgresql``."""
    run: Run

    @property
    def promise(self) -> str:
        return (self.run.__doc__ or "").strip()


def _postgresql(name: str) -> Run:
    """Give a check that needs the driver of PostgreSQL, which is loaded when it is wanted."""
    from cloister.probe import database

    run: Run = getattr(database, name)
    return run


CHECKS: tuple[Check, ...] = (
    Check("foreign ids", "owners", owners.foreign),
    Check("guessed ids", "owners", owners.guessed),
    Check("malformed ids", "owners", owners.malformed),
    Check("look-alike names", "owners", owners.names),
    Check("lists", "owners", owners.lists),
    Check("another's name", "owners", owners.touches),
    Check("audit log", "owners", owners.log),
    Check("swapped rows", "rows", rows.swapped),
    Check("substituted sessions", "rows", rows.substituted),
    Check("replayed rows", "rows", rows.replayed),
    Check("reordered rows", "rows", rows.reordered),
    Check("removed rows", "rows", rows.removed),
    Check("changed bytes", "rows", rows.changed),
    Check("older states", "rows", rows.older),
    Check("strange answers", "rows", rows.echoes),
    Check("expired sessions", "endings", lifetimes.expired),
    Check("ended sessions", "endings", lifetimes.ended),
    Check("concurrent turns", "turns", lifetimes.concurrent),
    Check("repeated turns", "turns", lifetimes.repeated),
    Check("crossed replies", "network", crossing.crossed),
    Check("erased owners", "endings", lifetimes.erased),
    Check("readable words", "words", lifetimes.sealed),
)
TOKENS: tuple[Check, ...] = (
    Check("changed tokens", "tokens", tokens.changed),
    Check("used tokens", "tokens", tokens.used),
)


def checks(attack: Attack) -> Sequence[Check]:
    """Give the checks for the store under attack, in order. What a server refuses comes first."""
    if attack.in_tokens:
        return (*TOKENS, *CHECKS)
    if attack.kind not in ("postgresql", "postgres"):
        return CHECKS
    named = (
        (_FIRST, "roles"),
        ("row-level security", "policies"),
        ("owner settings", "settings"),
        ("ways around", "detours"),
    )
    return (*(Check(name, "postgresql", _postgresql(function)) for name, function in named), *CHECKS)


async def prepare(settings: Settings, turns: int) -> Attack:
    """Look at the store of *settings*, and give an attack on it: in a tenant of its own where the store has tenants.

    Raises what opening the store raises, unless a check is about that.
    """
    store = settings.connect()
    shared = store if store.volatile else None  # each connection would be another store
    signing = {"audit_key": settings.audit_key(), "audit_heads": settings.heads_path()}
    attack = Attack(lambda: shared or settings.connect(), settings.store, None, turns, signing)
    named: bool | None = None
    try:
        await store.open()
        try:
            named = await store.tenanted()
        finally:
            await store.close()
    except ConfigurationError:
        first = checks(attack)[0]
        if first.name != _FIRST or (await judged(first, attack)).verdict != "fail":
            raise
    if named or (named is None and settings.tenancy == "required"):
        attack = replace(attack, tenant=f"cloister-prove-{attack.run}")
    return attack


async def prove(attack: Attack, tell: Callable[[Outcome], None]) -> None:
    """Make every check on the store in use, then erase the two canaries, whatever happened; *tell* of each outcome."""
    planted, refused = False, ""
    try:
        for check in checks(attack):
            if check.name != _FIRST and not planted and not refused:
                planted = True
                await _announce(attack)
            why = refused or attack.unconcerned.get(check.about) or attack.unconcerned.get(check.name)
            outcome = Outcome(check.name, check.promise, "not run", why) if why else await judged(check, attack)
            tell(outcome)
            if check.name == _FIRST and outcome.verdict == "fail" and not await _opens(attack):
                refused = "the store does not open, for the reason that the first check gives"
    finally:
        if planted:
            tell(await _left(attack))


async def _announce(attack: Attack) -> None:
    """Put on record that what the log will say of the two canaries is an attack by the operator's own hand."""
    async with attack.opened() as house:
        for owner in attack.owners:
            await house.cloister.note_operator(owner, "prove", f"cloister prove, run {attack.run}")


async def _opens(attack: Attack) -> bool:
    try:
        async with attack.opened():
            return True
    except ConfigurationError:
        return False


async def report_of(attack: Attack, outcomes: Sequence[Outcome], began: datetime, signer: Signer) -> Report:
    """Put together what an attack came to."""
    return Report(
        format=FORMAT,
        run=attack.run,
        cloister=_version(),
        store=attack.connect().url,
        server=await _server(attack),
        began=f"{began:%Y-%m-%d %H:%M:%S}Z",
        ended=f"{now():%Y-%m-%d %H:%M:%S}Z",
        canaries=[str(owner) for owner in attack.owners],
        audit_ids=sorted(attack.audit_ids),
        turns=attack.turns,
        signer=signer,
        verdict=verdict_of(outcomes),
        outcomes=list(outcomes),
    )


def _version() -> str:
    try:
        return metadata.version("cloister")
    except metadata.PackageNotFoundError:
        return "run from its source"


async def _server(attack: Attack) -> str:
    """Say what keeps the rows, as far as it tells."""
    if attack.kind in ("postgresql", "postgres"):
        from cloister.probe import database

        return await database.describe(attack.url)
    if attack.kind == "sqlite":
        return f"SQLite {sqlite3.sqlite_version}"
    if attack.kind == "redis":
        return await crossing.describe(attack.url)
    return attack.kind


async def judged(check: Check, attack: Attack) -> Outcome:
    """Make one check."""
    begun = time.monotonic()
    verdict: Verdict = "fail"
    try:
        async with asyncio.timeout(_LONGEST + attack.turns / 5):
            said, verdict = await check.run(attack), "pass"
    except Leak as error:
        said = str(error)
    except Beyond as error:
        said, verdict = str(error), "beyond rights"
    except NotRun as error:
        said, verdict = str(error), "not run"
    except TimeoutError:
        said = "it did not come to an end"
    except Exception as error:  # noqa: BLE001 - a check that crashed is a failure, and the others go on
        said = _crashed(error)
    return Outcome(check.name, check.promise, verdict, said, int((time.monotonic() - begun) * 1_000))


def _crashed(error: BaseException) -> str:
    """Say how a check crashed; of errors that are not ours only the kind, as their words may hold anything."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, Leak):
        return str(error)
    return f"it broke off: {type(error).__name__}" + (f": {error}" if isinstance(error, CloisterError) else "")


async def _left(attack: Attack) -> Outcome:
    """Erase the canaries, and see that nothing is left of them."""
    check = Check("cleaned up", "owners", erase)
    if why := attack.unconcerned.get(check.name):
        return Outcome(check.name, check.promise, "not run", why)
    outcome = await judged(check, attack)
    if outcome.verdict == "pass":
        return outcome
    tenant = "" if attack.tenant is None else f" --tenant {attack.tenant}"
    names = " and ".join(f"`cloister sessions erase --user {owner.user}{tenant}`" for owner in attack.owners)
    return msgspec.structs.replace(outcome, said=f"{outcome.said}; take them away with {names}")


async def erase(attack: Attack) -> str:
    """Nothing of the two canaries is left in the store but their entries in the audit log"""
    count = 0
    async with attack.opened() as house:
        for user in (house.a, house.b):
            count += (await user.erase()).sessions
        for user in (house.a, house.b):
            if await user.sessions():
                raise Leak("a canary has sessions after its erasure")
    return f"both were erased, with {count} sessions"
