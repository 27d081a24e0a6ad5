"""What is set up, what is missing, what is switched off or unsafe.

`examine` looks and touches nothing: it opens no store and makes no file. `reach` asks a server whether it would let us
open it, `believed` the issuers of tokens for their keys.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from cloister import auditing, client, files, providers
from cloister.audit import AuditKey
from cloister.costs import Budget, Prices
from cloister.costs.money import shown
from cloister.errors import CloisterError, ConfigurationError, StoreUnavailable
from cloister.keyring import Keyring
from cloister.leaks.settings import LeakGuard
from cloister.providers.base import Provider
from cloister.scrub.placeholders import LABELS
from cloister.scrub.settings import Scrub
from cloister.settings import BUDGETS, Settings
from cloister.stores.base import Store
from cloister.stores.token import Alone

if TYPE_CHECKING:
    from cloister.server.issuers import Issuer

_OLD = 180  # days, after which prices have probably changed

State = Literal["ok", "note", "missing", "off", "unsafe"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Be one thing that was looked at: in what state it is, and how to mend it."""

    state: State
    what: str
    said: str
    mend: str = ""


def beside(store: Store, ending: str) -> Path | None:
    """Give the path of a file that belongs to an embedded store, such as ``.keys``."""
    return None if store.path is None else client.beside(store.path, ending)


def key_path(settings: Settings, store: Store) -> Path | None:
    """Give where the master keys of *store* lie, or would; None if not in a file."""
    if settings.keys is not None:
        return None
    return Path(settings.key_file) if settings.key_file is not None else beside(store, client.KEYS)


def is_there(store: Store) -> bool:
    """Say whether an embedded store exists already. An empty file is none: nothing was ever stored in it."""
    return store.path is None or (store.path.exists() and store.path.stat().st_size > 0)


# --- the set-up -------------------------------------------------------------------------------------------------------


async def reach(settings: Settings) -> Sequence[Finding]:
    """Try to open a store that is on a server, which makes and changes nothing there; nothing for any other store."""
    try:
        store = settings.connect()
    except ConfigurationError:  # which `examine` reports
        return ()
    if store.volatile or store.path is not None or isinstance(store, Alone):
        return ()
    try:
        await store.open()
    except StoreUnavailable as error:
        return (Finding("missing", "store", str(error)),)
    except CloisterError as error:
        return (Finding("unsafe", "store", str(error)),)
    finally:
        await store.close()
    return (Finding("ok", "store", f"{store.url} answers, and nothing speaks against opening it"),)


async def believed(settings: Settings) -> Sequence[Finding]:
    """Look at the issuers whose tokens (JWT) the server believes, and ask for their keys; nothing where it has none."""
    from cloister.server.settings import ServerSettings

    try:
        issuers = ServerSettings.read(environ=settings.environ, file=settings.config).issuers
    except ConfigurationError as error:
        return (Finding("missing", "server", str(error)),)
    return [found for issuer in issuers for found in await _believed(issuer)]


async def _believed(issuer: Issuer) -> Sequence[Finding]:
    from cloister.server import jose, jwks

    said = f"{issuer.issuer} for {', '.join(issuer.tenants)}: {', '.join(issuer.algorithms)}, "
    said += f"for the audience {', '.join(issuer.audience)}"
    if issuer.jwks_url is None:
        mend = "whoever checks such tokens can make them: where that is not us alone, name a jwks_url instead"
        return (Finding("note", "issuer", f"{said}; with the shared key in {issuer.key_variable}", mend),)
    try:
        jose.check_installed()
        keys = await jwks.fetched(issuer)
    except ConfigurationError as error:
        return (Finding("missing", "issuer", f"{issuer.issuer}: {error}"),)
    except jwks.Unfit as error:
        why = f"{issuer.issuer}: there is no key set at {issuer.jwks_url}, so nobody is let in by it: {error}"
        return (Finding("missing", "issuer", why, "see that the address is right, and can be reached from here"),)
    findings = [Finding("ok", "issuer", f"{said}; {len({kid for kid, _ in keys})} key(s) at {issuer.jwks_url}")]
    if without := [name for name in issuer.algorithms if name not in {algorithm for _, algorithm in keys}]:
        mend = "leave out of algorithms what it does not sign with"
        why = f"{issuer.issuer} has no named key for {', '.join(without)}"
        findings.append(Finding("note" if keys else "missing", "issuer", why, mend))
    if issuer.insecure and issuer.jwks_url.startswith("http:"):
        why = f"the keys of {issuer.issuer} are fetched over plain HTTP from this machine, which is for tests"
        findings.append(Finding("off", "issuer", why, "take insecure out of [[server.issuers]]"))
    return findings


def examine(settings: Settings, reached: Sequence[Finding] = ()) -> Iterator[Finding]:
    """Look at everything that is set up, without making or changing anything; *reached* is what `reach` found."""
    yield from _configuration(settings)
    try:
        store = settings.connect()
    except ConfigurationError as error:
        yield Finding("unsafe", "store", str(error), "set CLOISTER_STORE, or pass --store")
    else:
        yield from reached or _store(store)
        yield from _given_up(store)
        yield from _keys(settings, store)
        yield from _audit(settings, store)
    yield from _provider(settings)
    yield from _limits(settings)
    yield from _costs(settings)
    yield from _protections(settings)
    yield from _tenants(settings)
    yield from _sinks(settings)


def _configuration(settings: Settings) -> Iterator[Finding]:
    if settings.config is None:
        yield Finding("ok", "configuration", "environment and defaults; there is no cloister.toml in this folder")
        return
    yield Finding("ok", "configuration", f"{settings.config}, then the environment")
    if _mode(settings.config) & 0o022:
        mend = f"chmod go-w {settings.config}"
        yield Finding("unsafe", "configuration", f"{settings.config} can be changed by other users", mend)


def _given_up(store: Store) -> Iterator[Finding]:
    for off in getattr(store, "off", ()):
        mend = f"leave {off.option} out of the store's URL"
        yield Finding("off", off.what, off.said, f"{mend}, and name a ledger" if isinstance(store, Alone) else mend)


def _store(store: Store) -> Iterator[Finding]:
    if store.volatile:
        yield Finding("note", "store", f"{store.url}: everything is gone when the process ends")
        return
    if isinstance(store, Alone):
        yield Finding("ok", "store", store.url)
        if store.in_logging:
            said = "entries go to standard logging, which drops those below the level of the logger cloister.audit"
            yield Finding("off", "audit log", said, "name a file in the URL of the store: audit=…")
        return
    if store.path is None:
        yield Finding("ok", "store", store.url)
        return
    if not is_there(store):
        yield Finding("note", "store", f"{store.url} is not there yet; it is made when it is first used")
    else:
        yield Finding("ok", "store", f"{store.url}, {store.path.stat().st_size / 1024:,.0f} KiB")
    if not store.path.parent.is_dir():
        mend = f"mkdir -p {store.path.parent}"
        yield Finding("unsafe", "store", f"the folder {store.path.parent} does not exist", mend)
    elif (mode := _mode(store.path.parent)) & 0o002 and not mode & stat.S_ISVTX:
        mend = f"chmod o-w {store.path.parent}"
        yield Finding("unsafe", "store", f"anybody can replace files in {store.path.parent}", mend)
    for ending in ("", "-wal", "-shm", ".leases", client.HEADS):
        path = beside(store, ending)
        if path is not None and path.exists() and _mode(path) & 0o077:
            yield Finding("unsafe", "store", f"{path} can be read or changed by others", f"chmod 600 {path}")


def _keys(settings: Settings, store: Store) -> Iterator[Finding]:
    if settings.keys is not None:
        yield from _keyring(settings.keys, "CLOISTER_KEYS")
        return
    if store.volatile:
        yield Finding("ok", "keys", "made for each process, and thrown away with it")
        return
    path = key_path(settings, store)
    if path is None:
        yield Finding("missing", "keys", "no master keys are named", "set CLOISTER_KEYS or CLOISTER_KEY_FILE")
    elif not path.exists() and store.path is None:
        mend = "put it back, or make one for a new store: cloister keys new"
        yield Finding("missing", "keys", f"the key file {path} does not exist", mend)
    elif not path.exists() and is_there(store):
        said = f"the key file {path} is gone: without it nothing in the store can be opened"
        yield Finding("unsafe", "keys", said, "put the file back from where you keep copies of it")
    elif not path.exists():
        said = f"{path} is not there yet"
        made = "it is made when the store is first used, or by `cloister keys new`"
        yield Finding("missing" if settings.key_file else "note", "keys", said, made)
    else:
        try:
            yield from _keyring(Keyring.from_file(path), str(path))
        except CloisterError as error:
            yield Finding("unsafe", "keys", str(error))
            return
        if (lock := path.with_name(path.name + ".lock")).exists():
            mend = f"if no `cloister keys` is running, delete {lock}"
            yield Finding("note", "keys", "another process is changing the keys, or died while it did", mend)
        if store.path is not None and path.parent.resolve() == store.path.parent.resolve():
            said = "keys and store lie in one folder: whoever copies the folder can read everything"
            yield Finding("note", "keys", said, "move the file to another disk and name it with CLOISTER_KEY_FILE")


def _keyring(keyring: Keyring, where: str) -> Iterator[Finding]:
    *older, newest = keyring.names
    yield Finding("ok", "keys", f"{where}: {newest} seals" + (f"; {', '.join(older)} only open" if older else ""))
    if older:
        mend = "cloister keys rotate --resume, then cloister keys retire NAME for each"
        yield Finding("note", "keys", f"copies made under {len(older)} older key(s) can still be opened", mend)


def _audit(settings: Settings, store: Store) -> Iterator[Finding]:
    if store.volatile:
        return
    named = settings.audit_key_file
    path, heads = auditing.audit_key_path(settings, store), auditing.heads_path(settings, store)
    if path is None or heads is None:
        said = "heads of the audit log are not signed: entries cut off its end would not show"
        mend = "set CLOISTER_AUDIT_KEY_FILE to a file outside the store, then cloister keys new --audit"
        yield Finding("unsafe", "audit log", said, mend)
    elif path.exists():
        try:
            key = AuditKey.from_text(files.read_secret(path, "audit key"))
            wrong = auditing.evidence(settings, store).faults if heads.exists() else ()
        except CloisterError as error:
            yield Finding("unsafe", "audit log", str(error))
            return
        yield Finding("ok", "audit log", f"heads are signed; the public key is {key.public}")
        if store.path is not None and is_there(store) and not heads.exists():
            said = f"{heads} is missing: entries cut off the end of the log would not show"
            yield Finding("unsafe", "audit log", said, "put it back; `cloister audit verify` says more")
        if wrong:
            said = f"{len(wrong)} line(s) of {heads} are wrong under this key; {wrong[0]}"
            mend = "put back the key that signed them, and see `cloister audit verify`"
            yield Finding("unsafe", "audit log", said, mend)
    elif heads.exists() and heads.stat().st_size:
        said = f"the audit key {path} is gone: the store does not open, and what was signed for cannot be checked"
        yield Finding("unsafe", "audit log", said, "put the file back from where you keep copies of it")
    elif named is not None:
        yield Finding("missing", "audit log", f"the audit key {path} does not exist", "put it there, or name another")
    else:
        yield Finding("note", "audit log", f"{path} is made when the store is first used")


def _provider(settings: Settings) -> Iterator[Finding]:
    name = settings.provider
    if name is None:
        mend = "set CLOISTER_PROVIDER to holysheep, openai, deepseek, anthropic, vllm, ollama or offline"
        yield Finding("missing", "provider", "no model is set up; `cloister chat` uses the offline one", mend)
        return
    try:
        provider = settings.answerer()
    except ConfigurationError as error:
        yield Finding("missing", "provider", f"{name} cannot be used: {error}")
        return
    assert provider is not None
    if provider.name == "offline":
        said = "offline: it only repeats what it is told, for demonstration and tests"
        yield Finding("note", "provider", said, "set CLOISTER_PROVIDER")
        return
    yield Finding("ok", "provider", f"{provider.name}, model {provider.model}" + _key_state(settings))
    if settings.base_url is not None and settings.base_url.startswith("http://") and not _near(settings.base_url):
        said = "conversations travel to the provider in clear"
        yield Finding("unsafe", "provider", said, "use https in base_url")


def _key_state(settings: Settings) -> str:
    """Say whether the provider's key is set; never what it is."""
    from cloister.providers import anthropic, openai

    if settings.provider == "anthropic":
        variable = anthropic.VARIABLE
    else:
        variable = openai.PROFILES[str(settings.provider)].variable
    if not variable:
        return "; it needs no key"
    return f"; {variable} is set" if settings.environ.get(variable) else f"; {variable} is not set"


def _near(url: str) -> bool:
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def _limits(settings: Settings) -> Iterator[Finding]:
    limits = settings.limits()
    idle, absolute = limits.idle_timeout, limits.absolute_timeout
    said = f"sessions end when nothing was said for {_span(idle)}, or {_span(absolute)} after they began"
    if idle is None and absolute is None:
        mend = "set CLOISTER_IDLE_TIMEOUT, CLOISTER_ABSOLUTE_TIMEOUT or CLOISTER_KEEP_DAYS"
        yield Finding("off", "limits", "sessions never end", mend)
    elif settings.keep_days is None:
        keep = "set CLOISTER_KEEP_DAYS=30 if people shall find their histories again"
        yield Finding("ok", "limits", f"{said}; then they are destroyed", keep)
    else:
        yield Finding("ok", "limits", f"sessions are kept for {settings.keep_days} days after they were last used")
    tokens = f"{settings.context_tokens:,} tokens" if settings.context_tokens else "as much as the model takes"
    yield Finding("ok", "window", f"a turn sends {tokens}")
    tenancy = "every user belongs to a tenant" if settings.tenancy == "required" else "no tenants, unless the store has"
    yield Finding("ok", "tenancy", f"{settings.tenancy}: {tenancy}")


def _span(length: timedelta | None) -> str:
    """Give a length of time in the largest unit that states it whole."""
    if length is None:
        return "(no limit)"
    for unit, seconds in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        number, rest = divmod(length.total_seconds(), seconds)
        if number and not rest:
            return f"{number:.0f} {unit}{'s' if number > 1 else ''}"
    return f"{length.total_seconds():g} seconds"


def _costs(settings: Settings) -> Iterator[Finding]:
    try:
        budget = settings.budget()
        table = settings.price_table()
    except ConfigurationError as error:
        yield Finding("unsafe", "costs", str(error))
        return
    today = datetime.now(UTC)
    days = (today.date() - max(row.as_of for row in table.rows)).days
    where = "cloister's own table" if settings.prices is None else f"{settings.prices}, over cloister's own table"
    old = "name a newer table with CLOISTER_PRICES" if days > _OLD else ""
    said = f"{where}: {len(table.rows)} rows, the newest {max(days, 0)} days old"
    yield Finding("note" if old else "ok", "prices", said, old)
    if budget is None:
        mend = "set CLOISTER_BUDGET_USER_DAILY and the like"
        yield Finding("note", "budget", "nothing bounds what users may spend", mend)
        return
    limits = {name.replace("_", " "): getattr(budget, name) for name in BUDGETS}
    said = ", ".join(f"{name} {shown(limit)}" for name, limit in limits.items() if limit is not None)
    yield Finding("ok", "budget", f"{said} {budget.currency}; days and months are those of UTC")
    with contextlib.suppress(ConfigurationError):  # which `_provider` reports
        yield from _priced(settings.answerer(), table, budget, today)


def _priced(provider: Provider | None, table: Prices, budget: Budget, today: datetime) -> Iterator[Finding]:
    """Say whether the model of *provider* has a price to hold against the *budget*."""
    if provider is None:
        return
    price = table.find(provider.name, provider.model, today)
    named = f"{provider.name}, model {provider.model}"
    if price is None:
        said = f"no price is known for {named}, so no budget can be kept for it"
        yield Finding("missing", "prices", said, "add a row to a file, and name it with CLOISTER_PRICES")
    elif price.currency != budget.currency:
        said = f"{named} is paid in {price.currency}, and the budget is in {budget.currency}"
        yield Finding(
            "missing", "prices", said, "set CLOISTER_BUDGET_CURRENCY, or give prices in the budget's currency"
        )


def _protections(settings: Settings) -> Iterator[Finding]:
    yield _scrub(settings.scrub)
    yield _leaks(settings.leaks)
    if settings.keep_failed:
        yield Finding("note", "keep_failed", "questions whose answer failed are kept, marked")


def _tenants(settings: Settings) -> Iterator[Finding]:
    """Say what single tenants give up, and lack; what else is different for them stands in the file."""
    try:
        apart = settings.tenants_apart()
        asked, bound, table = settings.answerer(), settings.budget(), settings.price_table()
    except ConfigurationError as error:
        if settings.tenants:
            yield Finding("missing", "tenants", str(error))
        return
    for name, tenant in apart.items():
        for what, option in client.switched_off(tenant.limits, tenant.scrub):
            yield Finding("off", what, f"for tenant {name}: {option}", f"take it out of [tenants.{name}]")
        provider = asked if tenant.provider is None else providers.connect(tenant.provider)
        if (budget := tenant.budget or bound) is not None and (tenant.provider or tenant.budget):
            for found in _priced(provider, table, budget, datetime.now(UTC)):
                yield dataclasses.replace(found, said=f"for tenant {name}: {found.said}")


def _scrub(scrub: Scrub) -> Finding:
    if scrub.where == "off":
        said = "personal data is stored and sent to the model as it was said"
        return Finding("off", "scrub", said, "unset CLOISTER_SCRUB")
    actions = {kind: scrub.action(kind) for kind in LABELS}
    left = [kind for kind, action in actions.items() if action == "allow"]
    said = "personal data is replaced before it is stored" + (" and sent" if scrub.where == "model" else "")
    said += f"; as they are: {', '.join(left)}" if left else ""
    if scrub.where == "store":
        return Finding("note", "scrub", said, "CLOISTER_SCRUB=model keeps it from the model too")
    return Finding("ok", "scrub", said)


def _leaks(guard: LeakGuard | None) -> Finding:
    if guard is None:
        return Finding("off", "leaks", "replies are not searched for other users' details", "unset CLOISTER_LEAKS")
    among = "of all tenants" if guard.scope == "all" else "of the same tenant"
    said = {
        "strong": f"replies with details of other users {among} are withheld, with weak evidence put on record",
        "any": f"replies with the least evidence of other users' details, {among}, are withheld",
        "canary": "no reply is withheld but those with what was planted in another session; others are put on record",
    }[guard.block]
    if guard.on_failure == "alert":
        return Finding("note", "leaks", f"{said}; where the search fails they pass", "set on_failure=refuse")
    return Finding("note" if guard.block == "canary" else "ok", "leaks", said)


def _sinks(settings: Settings) -> Iterator[Finding]:
    if settings.alarms is None:
        said = "nobody is refused who asks for one session after another that is not theirs, and alarms are not counted"
        yield Finding("off", "alarms", said, "unset CLOISTER_ALARMS")
    if not settings.sinks:
        said = "entries and alarms stay in the store, and wake nobody"
        yield Finding("note", "alarms", said, "set CLOISTER_SINKS, then cloister alerts test")
        return
    try:
        destinations, store = settings.destinations(), settings.connect()
    except ConfigurationError as error:
        yield Finding("missing", "alarms", str(error))
        return
    for sink in destinations:
        given = "alarms" if sink.severity == "alert" else f"entries from {sink.severity} on, and alarms"
        yield Finding("ok", "alarms", f"{sink.name} is given {given}")
        path = getattr(sink, "path", None)
        if isinstance(path, Path) and path.exists() and _mode(path) & 0o077:
            yield Finding("unsafe", "alarms", f"{path} can be read or changed by others", f"chmod 600 {path}")
    named = settings.sinks_state
    folder = client.sinks_folder(store, None if named is None else Path(named))
    if folder is None and not store.volatile:
        said = "what is on record while no process delivers it, or when one dies, does not go to these destinations"
        yield Finding("note", "alarms", said, "set CLOISTER_SINKS_STATE to a folder that stays")
    elif folder is not None and folder.is_dir() and _mode(folder) & 0o022:
        yield Finding("unsafe", "alarms", f"{folder} can be changed by others", f"chmod 700 {folder}")


def _mode(path: Path) -> int:
    return path.stat().st_mode if os.name == "posix" else 0
