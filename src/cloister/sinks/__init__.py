"""Where audit entries, alarms and signed heads go: out of the store, so that what happens to it shows elsewhere."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote

from cloister.audit import SEVERITIES
from cloister.errors import ConfigurationError
from cloister.sinks.base import Beginning, Record, SignedHeads, Sink, SinkError
from cloister.sinks.heads import HeadFile, HeadList, HeadSink, audit_key
from cloister.sinks.lines import LineFile
from cloister.sinks.log import LogSink
from cloister.sinks.webhook import Secret, Webhook, verify_webhook

__all__ = [
    "Beginning",
    "HeadFile",
    "HeadList",
    "HeadSink",
    "LineFile",
    "LogSink",
    "Record",
    "Secret",
    "SignedHeads",
    "Sink",
    "SinkError",
    "Webhook",
    "audit_key",
    "connect",
    "verify_webhook",
]

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_SIZE = re.compile(r"([1-9][0-9]{0,8})(|KB|MB|GB)")
_KNOWN = "log, file:PATH, file:PATH?rotate=100MB&keep=5, https://…; each may have a severity before it, as in alert=log"


def connect(said: str, secret: str | None = None) -> Sink:
    """Give the destination that a setting names, as in ``alert=https://hooks.example/x`` or ``info=file:audit.jsonl``.

    Webhooks are signed with *secret*. Raises `ConfigurationError`, which repeats nothing of *said*: an address may be
    a secret.
    """
    severity, found, destination = said.partition("=")
    if not found or severity not in SEVERITIES:
        severity, destination = "", said
    if destination == "log":
        return LogSink(severity or "alert")
    scheme, _, rest = destination.partition(":")
    if scheme == "file" and rest:
        return _file(rest, severity or "info")
    if scheme in ("http", "https"):
        return Webhook(destination, secret or "", severity or "alert")
    raise ConfigurationError(f"each destination is one of {_KNOWN}")


def _file(said: str, severity: str) -> LineFile:
    path, _, query = said.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    size = _SIZE.fullmatch(options.pop("rotate", "100MB"))
    keep = options.pop("keep", "5")
    if options or size is None or not (keep.isascii() and keep.isdigit() and 0 < int(keep) <= 1_000):
        raise ConfigurationError(
            "the options of a file are rotate, a size like 100MB, and keep, a number from 1 to 1000"
        )
    path = unquote(path).removeprefix("//")
    return LineFile(path, severity, rotate=int(size[1]) * _UNITS[size[2]], keep=int(keep))
