"""The audit log of a store and what was signed about it: one is verified against the other."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cloister import client, files
from cloister.audit import AuditKey, Event, Report, Signed, Verification, read_heads
from cloister.errors import ConfigurationError, IntegrityError
from cloister.settings import Settings
from cloister.sinks import HeadFile
from cloister.stores.base import Store, pages


@dataclass(frozen=True, slots=True)
class Evidence:
    """Be what was signed about a log, what is wrong with that, and what can therefore not be checked."""

    signed: Signed = field(default_factory=Signed)
    faults: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()


def audit_key_path(settings: Settings, store: Store) -> Path | None:
    """Give where the audit key of *store* lies, or would."""
    if settings.audit_key_file is not None:
        return Path(settings.audit_key_file)
    return None if store.path is None else client.beside(store.path, client.AUDIT_KEY)


def heads_path(settings: Settings, store: Store) -> Path | None:
    """Give where the signed heads of *store* lie, or would."""
    return settings.heads_path() or (None if store.path is None else client.beside(store.path, client.HEADS))


def signer(settings: Settings, store: Store) -> HeadFile | None:
    """Give what signs the heads of *store*; None where nothing does. Makes no key."""
    key, heads = audit_key_path(settings, store), heads_path(settings, store)
    if key is None or heads is None or not key.exists():
        return None
    return HeadFile(heads, AuditKey.from_text(files.read_secret(key, "audit key")))


def newest_heads(settings: Settings, store: Store) -> str | None:
    """Give the last line of signed heads of *store*, which says all that earlier ones do; None if there is none."""
    where = heads_path(settings, store)
    if where is None or not where.exists():
        return None
    lines = where.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    return lines[-1] if lines else None


async def put_on_record(store: Store, sink: HeadFile | None, noted: Event, now: datetime) -> None:
    """Put an event about the log itself on record, and sign for it where that is done."""
    nonce = secrets.token_bytes(16)
    if (await store.record([noted], nonce=nonce)).echo != nonce:
        raise IntegrityError("the store answered another request than this one")
    if sink is not None:
        sink.keep(store.heads(), now)


def evidence(settings: Settings, store: Store, public: str | None = None, more: Sequence[Path] = ()) -> Evidence:
    """Read the signed heads beside *store*, and *more* files of them. Makes nothing.

    *public* pins the signer's public key; without it, the audit key itself is read. Raises `ConfigurationError`.
    """
    where = heads_path(settings, store)
    if where is None and not more:
        unsigned = "nothing signs how far this log has come, so a cut-off one would not show"
        return Evidence(unchecked=(f"{unsigned}: set CLOISTER_AUDIT_KEY_FILE",))
    if public is None:
        key = audit_key_path(settings, store)
        if key is None or not key.exists():
            mend = "put it back, name it with CLOISTER_AUDIT_KEY_FILE, or pass its public half as --public-key"
            which = f"the audit key {key} is missing" if key else "no audit key is named"
            return Evidence(faults=(f"{which}, so signed heads cannot be checked; {mend}",))
        public = AuditKey.from_text(files.read_secret(key, "audit key")).public
    faults: tuple[str, ...] = ()
    if where is not None and not where.exists():
        if not more:
            made = "it is first written a minute after a store was made, so try again if this one is new"
            faults = (f"{where} is missing: entries cut off the end would not show; {made}",)
    elif where is not None:
        more = [where, *more]
    signed = read_signed(more, public)
    return Evidence(signed, (*signed.problems, *faults))


def read_signed(
    paths: Sequence[Path], public: str, signed: Signed | None = None, until: datetime | None = None
) -> Signed:
    """Read files of signed heads, which together, and with what was *signed*, say what each of them does."""
    signed = signed or Signed()
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
        signed = read_heads(lines, public, signed, "signed heads" if len(paths) == 1 else str(path), until)
    return signed


async def verify(store: Store, known: Evidence) -> tuple[Report, list[str]]:
    """Check the whole audit log of *store*, which is open, and give the report and everything that is wrong."""
    verification = Verification(known.signed)
    async for page in pages(store):
        verification.add(page)
    report = verification.finish()
    # Where nothing was written yet, nothing had to be signed.
    missing = known.faults if report.entries or known.signed.heads else known.signed.problems
    return report, [*map(str, report.faults), *missing]
