"""What can go on record: every event, how much it should worry whoever is on call, and what its entry says."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256
from typing import NamedTuple

import msgspec

from cloister.model import Owner, to_micros

_json = msgspec.json.Encoder(order="deterministic").encode

Detail = str | int | bool | None

SEVERITIES = ("info", "notice", "warning", "alert")


class Kind(NamedTuple):
    """Say what an event means, how much it should worry, and which values its entry may carry.

    ``counts`` says what values under other names are: numbers of what the names stand for. Empty: there are none.
    """

    severity: str
    meaning: str
    detail: Mapping[str, str] = {}
    counts: str = ""


_TOKENS = {
    "provider": "the model service that was asked; absent where the application asked one itself",
    "model": "the model that answered, or that was asked for",
    "input_tokens": "tokens that were sent",
    "output_tokens": "tokens that came back",
    "cached_tokens": "those of the sent that the provider had in its cache",
    "cache_write_tokens": "those of the sent that the provider wrote to its cache",
    "reasoning_tokens": "those that came back as reasoning",
    "estimated": "true where the provider did not tell, and the numbers are cloister's estimate",
    "cost": "what they cost, as a decimal number; absent where no price is known",
    "currency": "the currency of the cost",
}
_FOUND = {
    "score": "how much the evidence weighs, at most 999",
    "canary": "how many planted marks of other sessions were met",
    "reason": "`limit` where the verdict came from the cap on alerts of one user",
}
_SINCE = "how many since the entry before from there; absent for one"
_KINDS = "pieces of evidence, by kind of detail"

EVENTS: Mapping[str, Kind] = {
    "session.started": Kind("info", "A session was started.", {"imported": "items that it was started with"}),
    "session.renewed": Kind(
        "info", "A new session took the place of one that had timed out.", {"after": "the digest of the old session"}
    ),
    "session.expired": Kind("info", "A session's time was up; its secret and content were destroyed."),
    "session.ended": Kind("info", "A session was ended by its owner; its secret and content were destroyed."),
    "session.updated": Kind("info", "Title or metadata of a session were set."),
    "turn.committed": Kind(
        "info",
        "A question and its reply were stored.",
        {
            "items": "how many items were stored",
            "content": "a digest of them under the session's own key: whoever opens the session can check it",
            **_TOKENS,
        },
    ),
    "turn.passed": Kind("info", "A question was answered, and nothing of either was stored.", _TOKENS),
    "turn.failed": Kind(
        "notice",
        "A turn came to nothing, and only what it had spent was booked.",
        {"reason": "the error's name, or `unfinished`", **_TOKENS},
    ),
    "turn.refused": Kind("notice", "A turn was refused before a model was asked.", {"reason": "the error's name"}),
    "items.appended": Kind(
        "info",
        "Items were added without a model.",
        {"items": "how many", "content": "a digest of them under the session's own key"},
    ),
    "item.hidden": Kind("info", "An item was left out of history and window from then on."),
    "history.read": Kind(
        "info", "Items of a session were read.", {"items": "how many", "masked": "placeholders left in"}
    ),
    "data.replaced": Kind(
        "info", "Personal data was replaced before storage and model.", counts="how often, by type of data"
    ),
    "placeholder.foreign": Kind(
        "alert", "A reply carried placeholders that this session never handed out.", {"count": "how many"}
    ),
    "reply.blocked": Kind("alert", "A reply carried another user's details and was withheld.", _FOUND, _KINDS),
    "reply.alerted": Kind("warning", "A reply may carry another user's details; it was shown.", _FOUND, _KINDS),
    "reply.unchecked": Kind(
        "alert", "A reply was shown unchecked, as `on_failure` allows.", {"problem": "the error's name"}
    ),
    "document.foreign": Kind("alert", "A document or a tool's result carried another user's details.", _FOUND, _KINDS),
    "index.seeded": Kind("notice", "Text was made common knowledge for the leak guard.", {"count": "how many details"}),
    "fingerprints.dropped": Kind(
        "warning", "The leak guard's index was full, and its oldest entries went.", {"count": "how many"}
    ),
    "owner.exported": Kind("notice", "Everything of a user's was exported."),
    "owner.erased": Kind("notice", "Everything of a user's was destroyed; the user's name leaves the log."),
    "operator.access": Kind(
        "notice",
        "An operator acted for, or looked at what belongs to, a user.",
        {"action": "what was done", "reason": "why, in the operator's words"},
    ),
    "access.refused": Kind("warning", "A session was asked for that is not the caller's, or is none."),
    "access.absent": Kind("notice", "What was refused before: there is no such session."),
    "access.foreign": Kind("alert", "What was refused before: the session is another user's, who is named."),
    "access.suspended": Kind(
        "alert",
        "A breach attempt: a user asked for too many sessions that are not theirs, and is refused for a while.",
        {"attempts": "how many", "seconds": "for how long everything is refused"},
    ),
    "authentication.failed": Kind(
        "warning",
        "A caller could not show who they are.",
        {"reason": "which check failed, in a word or two", "count": _SINCE},
    ),
    "identity.contradicted": Kind(
        "alert",
        "A request named a user whom its credential does not speak for, or two at once; it was refused.",
        {
            "reason": "`user`: another than the token's; `body`: header and body disagree; `twice`; `underscore`",
            "credential": "the public name of a server key",
            "count": _SINCE,
        },
    ),
    "credential.created": Kind(
        "notice",
        "A tenant was added, or a key or a session token made.",
        {
            "id": "its public name",
            "what": "`tenant`, `key`, `operator` or `token`",
            "tenant": "whose key it is; absent for an operator's and a user's",
            "seconds": "for how long it is good; absent where that is until it is revoked",
        },
    ),
    "credential.revoked": Kind(
        "notice",
        "A tenant was removed, a key or a session token revoked, or all tokens of a user.",
        {
            "id": "its public name; absent where it was all of them",
            "what": "as above",
            "tenant": "as above",
        },
    ),
    "token.damaged": Kind("warning", "A sealed token was damaged or is none."),
    "token.replayed": Kind("alert", "A sealed token was used again, or after its session was over."),
    "integrity.failed": Kind(
        "alert", "The store returned something else than was stored, or answered another request.", {"problem": "what"}
    ),
    "session.quarantined": Kind("alert", "A session did not open twice running, over two connections."),
    "rate.limited": Kind(
        "warning",
        "A user or tenant asked too often.",
        {"limit": "which limit", "seconds": "until when", "tenant": "whose limit it is; absent for a user's"},
    ),
    "budget.exceeded": Kind(
        "warning", "A turn was refused because a budget is used up.", {"budget": "which", "period": "the day or month"}
    ),
    "sessions.copied": Kind(
        "notice",
        "Sessions were copied from another store.",
        {"copied": "how many", "there": "how many were there already", "failed": "how many could not be"},
    ),
    "key.rotated": Kind(
        "notice",
        "Sessions and credentials were put under the newest master key.",
        {"sessions": "how many", "credentials": "how many", "failed": "how many could not be opened"},
    ),
    "key.retired": Kind("notice", "A master key was destroyed.", {"key": "its name"}),
    "protection.off": Kind(
        "warning", "A store was opened with a protection switched off.", {"what": "which", "option": "by which option"}
    ),
    "configuration.changed": Kind(
        "notice",
        "A store was opened with other settings than before.",
        {"settings": "a digest of all settings but secrets"},
        "settings, as they are now",
    ),
    "audit.exported": Kind(
        "notice",
        "The audit log was exported, or was about to be.",
        {
            "format": "in which format",
            "names": "true where it says whose the audit ids are",
            "reason": "why, in the operator's words",
            "severity": "the least severity of what is in it",
            "since": "when it begins",
            "until": "when it ends",
        },
    ),
    "audit.pruned": Kind(
        "notice",
        "Old entries were dropped behind a signed statement of where the log begins now.",
        {"entries": "how many", "before": "the moment before which they were written"},
    ),
    "sink.failed": Kind(
        "warning", "A destination for entries could not be reached.", {"sink": "its name", "reason": "why"}
    ),
    "sink.recovered": Kind(
        "notice", "A destination took entries again.", {"sink": "its name", "seconds": "for how long it took none"}
    ),
    "sink.dropped": Kind(
        "alert",
        "Entries were lost to a destination: they had been dropped from the log before it took them.",
        {"sink": "its name", "count": "how many"},
    ),
    "alert.tested": Kind("alert", "An operator tested the destinations of alarms; nothing happened."),
    "writer.replaced": Kind("warning", "A connection's last outcome is unknown; another writer took its place."),
}
"""Every event. Each value may also carry ``source``: where the call came from, as `cloister.scope.source` was told."""
_ALWAYS = frozenset({"source"})


class Event(msgspec.Struct, frozen=True):
    """Be something that happened. Carries names, digests and counts; never conversation text or a secret.

    ``owner`` is whom it concerns or who asked, ``other`` whose session was asked for. A store files both under audit
    ids. ``detail`` holds short values; control characters in them are escaped by JSON.
    """

    kind: str
    at: int
    owner: Owner | None = None
    other: Owner | None = None
    session: str = ""
    detail: dict[str, Detail] = {}


def event(kind: str, now: datetime, owner: Owner | None = None, session: str = "", **detail: Detail) -> Event:
    """Note that *kind*, one of `EVENTS`, happened *now*; `TypeError` for a detail that its entry does not carry."""
    known = EVENTS[kind]
    if not known.counts and not detail.keys() <= known.detail.keys() | _ALWAYS:
        raise TypeError(f"{kind} has no detail {', '.join(sorted(detail.keys() - known.detail.keys()))}")
    return Event(kind, to_micros(now), owner, None, session, detail)


def audit_id(owner: Owner, salt: bytes) -> str:
    """Give the name under which an owner appears in the log.

    It commits to the owner, so that nobody can give it to another later, and says nothing without the random *salt*,
    which lies beside the owner's name until erasure takes both.
    """
    return "a_" + sha256(_json((salt, owner.tenant, owner.user))).hexdigest()[:20]


def is_alert(event: Event) -> bool:
    """Say whether somebody should be woken by *event*."""
    return EVENTS[event.kind].severity == "alert"


_LATE = frozenset({"turn.failed", "turn.refused", "budget.exceeded", "history.read"})


def introduces(event: Event) -> bool:
    """Say whether an event may give its owner a name in the log: not a late one, whose owner may just be erased.

    Late ones are about a session, whose start has given its owner a name.
    """
    return event.kind not in _LATE
