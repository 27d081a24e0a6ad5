"""What an attack came to, as a report that can be kept: JSON, signed, and the same in Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from cloister.audit import AuditKey, check_signature
from cloister.errors import ConfigurationError

Verdict = Literal["pass", "fail", "beyond rights", "not run"]
FORMAT = "cloister prove, 1"
_PURPOSE = "cloister prove"
SIGNERS = {
    "audit": "the audit key of the deployment",
    "given": "a key that was named for it",
    "made": "a key made for this report alone: it shows that nothing was changed since, and not who made the report",
}
Signer = Literal["audit", "given", "made"]


class Outcome(msgspec.Struct, frozen=True):
    """Be what came of one check: the promise, the verdict, and what was seen or why not."""

    check: str
    promise: str
    verdict: Verdict
    said: str
    milliseconds: int = 0


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Be what an attack on one store came to. Holds no session id, no key and no word of anybody's."""

    format: str
    run: str
    cloister: str
    store: str
    server: str
    began: str
    ended: str
    canaries: list[str]
    audit_ids: list[str]
    turns: int
    signer: Signer
    verdict: Literal["pass", "fail"]
    outcomes: list[Outcome]

    def count(self, verdict: Verdict) -> int:
        return sum(outcome.verdict == verdict for outcome in self.outcomes)


def verdict_of(outcomes: Sequence[Outcome]) -> Literal["pass", "fail"]:
    """Give the verdict on the whole: a check that could not be made takes nothing from it, and is listed."""
    failed = any(outcome.verdict == "fail" for outcome in outcomes)
    return "fail" if failed or not any(outcome.verdict == "pass" for outcome in outcomes) else "pass"


def summary(report: Report) -> str:
    """Say in one line what came of it."""
    parts = [f"{report.count('pass')} passed", f"{report.count('fail')} failed"]
    parts += [f"{count} {name}" for name in ("beyond rights", "not run") if (count := report.count(name))]
    return ", ".join(parts)


# --- JSON, signed -----------------------------------------------------------------------------------------------------


class Signed(msgspec.Struct, frozen=True):
    """Be a report with its signature, and the public key under which that holds."""

    report: Report
    key: str
    signature: str


def sign(report: Report, key: AuditKey) -> Signed:
    """Sign a report."""
    return Signed(report, key.public, key.sign_for(_PURPOSE, _body(msgspec.to_builtins(report))))


def to_json(signed: Signed) -> str:
    """Give a signed report as JSON."""
    return msgspec.json.format(msgspec.json.encode(signed), indent=2).decode() + "\n"


def read(text: str | bytes, public: str | None = None) -> Signed:
    """Read a signed report and check its signature, under *public* or else the key that it names itself.

    Raises `ConfigurationError` for what is no report, `ValueError` for one that was changed or is not that key's.
    """
    try:
        values = json.loads(text, object_pairs_hook=_once)
        signed = msgspec.convert(values, Signed)
        body = _body(values["report"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfigurationError("this is no report of `cloister prove`, or one of another version") from None
    if signed.report.format != FORMAT:
        raise ConfigurationError("this report is of another version of cloister; check it with that one")
    if public is not None and public.strip() != signed.key:
        raise ValueError("the report is signed with another key than the one that was given")
    if not check_signature(signed.key, _PURPOSE, body, signed.signature):
        raise ValueError("the signature does not hold: the report was changed after it was made")
    return signed


def _body(values: Any) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a name that comes twice, of which one reader sees the first value and another the last."""
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name comes twice")
    return values


# --- Markdown ---------------------------------------------------------------------------------------------------------

_MARKS = {"pass": "pass", "fail": "**FAIL**", "beyond rights": "beyond rights", "not run": "not run"}


def to_markdown(signed: Signed) -> str:
    """Give a signed report for people to read: the same report always gives the same text."""
    report = signed.report
    whole = "Every check that could be made passed." if report.verdict == "pass" else "**A promise does not hold.**"
    facts = [
        ("store", report.store),
        ("server", report.server),
        ("began", report.began),
        ("ended", report.ended),
        ("made by", f"cloister {report.cloister}"),
        ("run", report.run),
        ("canaries", ", ".join(report.canaries)),
        ("in the audit log as", ", ".join(report.audit_ids) or "not known: the log could not be read"),
        ("turns over the faulty network", str(report.turns)),
    ]
    lines = ["# Isolation of conversations: what was tried, and what came of it", "", f"{whole} {summary(report)}.", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in facts), ""]
    lines += ["| check | promise | verdict | what was seen, or why not |", "|---|---|---|---|"]
    for one in report.outcomes:
        cells = (_cell(one.check), _cell(one.promise), _MARKS[one.verdict], _cell(one.said))
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## What this shows, and what it does not", "", *_LIMITS, ""]
    lines += ["## Signature", "", f"Signed (Ed25519) with {SIGNERS[report.signer]}.", ""]
    lines += [f"    key        {signed.key}", f"    signature  {signed.signature}", ""]
    lines += [
        "The signature is over the JSON of the same name: `cloister prove --verify FILE.json` checks it, and that"
    ]
    lines += [
        "this text says the same. To know who signed, give `--public-key` the key as you have it from elsewhere.",
        "",
    ]
    return "\n".join(lines)


_LIMITS = (
    "The store was attacked through two users made for it, under keys that were thrown away. Nothing of anybody else's",
    "was changed or could be opened; rows of others were looked through, sealed as they are, to see that no erased",
    "canary was among them. The last check says whether both are erased. Alarms in the audit log under the two names",
    "above are this attack's.",
    "",
    "A check that passed found no fault in what it tried, at that time, over those connections. It does not show that",
    "there is none. It does not look at the application in front of cloister, the keeping of the deployment's own",
    "keys, backups and replicas, the model's provider, or whoever administers the store and puts back an older state",
    "of everything. *Beyond rights* and *not run* mean that nothing was tried.",
)


def _cell(text: str) -> str:
    """Give *text* so that it stays in its cell and means nothing to whatever shows it."""
    for character in "\\`*_[]<>|":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())
