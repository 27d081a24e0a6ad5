"""What wakes somebody: rules that make alarms of entries of the audit log, one for many that are alike.

A rule looks at entries alone, and its time is theirs: whoever reads the log again, after a crash or a week late, comes
to the same alarms.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

import msgspec

from cloister.audit import EVENTS, Entry

_MOST_WATCHED = 1_000
_SILENT = frozenset({"alert.tested"})  # sent by whoever tests, to each destination, already


@dataclass(frozen=True, slots=True)
class Alarms:
    """Say how many entries of a kind are an alarm, and from when on a user is refused for a while.

    Entries count together that one user, or one source, brought about within ``window``. For as long after an alarm,
    whatever would raise it again is counted, and the next one says how often that was.
    """

    window: timedelta = timedelta(minutes=10)
    refusals: int = 5
    """Sessions that a user asked for in vain."""
    logins: int = 20
    """Callers from one source who could not show who they are."""
    suspicions: int = 5
    """Replies to a user that may carry another's details, and were shown."""
    limits: int = 20
    """Requests of a user beyond a limit."""
    replacements: int = 5
    """Connections to the store whose last outcome is unknown."""
    suspend_after: int = 20
    """Sessions that a user may ask for in vain within ``window``, before everything is refused to them."""
    suspend_for: timedelta = timedelta(minutes=10)

    def __post_init__(self) -> None:
        for name in ("refusals", "logins", "suspicions", "limits", "replacements", "suspend_after"):
            count = getattr(self, name)
            if type(count) is not int or count < 1:
                raise ValueError(f"{name} must be a whole number from 1 on")
        for name in ("window", "suspend_for"):
            if not timedelta(0) < getattr(self, name) <= timedelta(days=1):
                raise ValueError(f"{name} must be longer than nothing and at most a day")


class Rule(NamedTuple):
    """Say which entries are an alarm once there are as many as the field ``threshold`` of `Alarms` says."""

    event: str
    threshold: str
    by: str
    severity: str
    meaning: str


RULES: Mapping[str, Rule] = {
    "breach.attempt": Rule(
        "access.refused", "refusals", "user", "alert", "A user asks for one session after another that is not theirs."
    ),
    "login.attempts": Rule(
        "authentication.failed", "logins", "source", "alert", "One source tries again and again to pass for somebody."
    ),
    "reply.suspicions": Rule(
        "reply.alerted", "suspicions", "user", "alert", "Many replies to one user may carry others' details."
    ),
    "limit.attempts": Rule(
        "rate.limited", "limits", "user", "warning", "A user goes on asking far more often than allowed."
    ),
    "store.trouble": Rule(
        "writer.replaced", "replacements", "", "warning", "Connections to the store keep breaking in the middle."
    ),
}
"""Rules that count. Beside these, every entry of severity alert is an alarm, under the name of its event."""
_COUNTED = {rule.event: name for name, rule in RULES.items()}


class Alarm(msgspec.Struct, frozen=True):
    """Be what somebody should look at: the entry that tipped it, and how many there were.

    ``count`` is how many entries it took, ``repeats`` how many more there were since the alarm of this kind before,
    ``late`` says that it comes long after the entry was written. ``writer`` and ``number`` name that entry in the log,
    where it lies with the same ``hash``.
    """

    rule: str
    severity: str
    meaning: str
    at: int
    owner: str = ""
    other: str = ""
    session: str = ""
    detail: str = "{}"
    count: int = 1
    repeats: int = 0
    late: bool = False
    writer: str = ""
    number: int = 0
    hash: bytes = b""


class Watched(msgspec.Struct, array_like=True):
    """Remember of one kind of alarm: when it was last raised, how often it would have been since, what counts so far.

    ``seen`` is when the last entry of its kind was written.
    """

    seen: int
    raised: int | None = None
    repeats: int = 0
    times: list[int] = []


def consider(alarms: Alarms, known: dict[str, Watched], entry: Entry, now: int) -> Alarm | None:
    """Give the alarm that *entry* raises, if it does; *known* is what is remembered of entries before, and follows."""
    name, rule = _rule_of(entry)
    if name is None:
        return None
    window = alarms.window // timedelta(microseconds=1)
    key = f"{name} {_whose(rule, entry)}"
    before = known.pop(key, None) or Watched(entry.at)
    _forget(known, entry.at, window)
    known[key] = before
    before.seen = entry.at
    # By distance, not by order: entries of several writers come almost in order, and clocks differ.
    if before.raised is not None and abs(entry.at - before.raised) < window:
        before.repeats += 1
        return None
    before.times = [time for time in before.times if abs(entry.at - time) < window] + [entry.at] * _many(
        alarms, rule, entry
    )
    count = len(before.times)
    if rule is not None and count < getattr(alarms, rule.threshold):
        return None
    repeats = before.repeats
    before.raised, before.repeats, before.times = entry.at, 0, []
    kind = EVENTS.get(entry.event)
    return Alarm(
        rule=name,
        severity=rule.severity if rule else "alert",
        meaning=rule.meaning if rule else kind.meaning if kind else "",
        at=entry.at,
        owner=entry.owner,
        other=entry.other,
        session=entry.session,
        detail=entry.detail,
        count=count,
        repeats=repeats,
        late=now - entry.at > window,
        writer=entry.writer,
        number=entry.number,
        hash=entry.hash,
    )


def _rule_of(entry: Entry) -> tuple[str | None, Rule | None]:
    if entry.severity == "alert":
        return (None if entry.event in _SILENT else entry.event), None
    name = _COUNTED.get(entry.event)
    return name, RULES[name] if name else None


def _many(alarms: Alarms, rule: Rule | None, entry: Entry) -> int:
    """Say for how many *entry* counts: one may stand for many that were alike."""
    try:
        many = json.loads(entry.detail).get("count", 1) if rule else 1
    except (ValueError, AttributeError, RecursionError):
        many = 1
    # What is remembered stays small, and what is beyond the threshold tells nothing more.
    return min(many, getattr(alarms, rule.threshold)) if rule and type(many) is int and many > 1 else 1


def _whose(rule: Rule | None, entry: Entry) -> str:
    """Say what counts together: entries of one user, of one source, or all."""
    if rule is None or rule.by == "user":
        return entry.owner
    if rule.by == "source":
        try:
            return str(json.loads(entry.detail).get("source", ""))
        except (ValueError, AttributeError, RecursionError):
            return ""
    return ""


def _forget(known: dict[str, Watched], now: int, window: int) -> None:
    """Let go of what no longer counts, and of the oldest where there is more than is remembered."""
    for key in [key for key, each in known.items() if not each.repeats and abs(now - each.seen) >= window]:
        del known[key]
    while len(known) >= _MOST_WATCHED:
        del known[next(iter(known))]
