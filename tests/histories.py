"""Histories: who asked what and when, what was answered, what was read, and what of it the store may hold afterwards.

One clock serves all processes of a machine, so whoever began after another had ended has to come behind.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import msgspec
from tests.fakes import told

from cloister.session import Session


def answer_to(question: str) -> str:
    """Give what the parrot answers."""
    return f"You said: {question}"


class Event(msgspec.Struct):
    """One line of a history. ``since`` is when what ended at ``at`` had begun."""

    what: Literal["asked", "answered", "refused", "read"]
    session: str
    at: float
    question: str = ""
    since: float = 0.0
    texts: Sequence[str] = ()


Note = Callable[[Event], None]


async def ask(note: Note, session: Session, question: str) -> None:
    """Ask, and note both that it was asked and what became of it."""
    since = time.monotonic()
    note(Event("asked", session.id, since, question))
    try:
        reply = await session.send(question)
    except BaseException:
        note(Event("refused", session.id, time.monotonic(), question, since))
        raise
    note(Event("answered", reply.session.id, time.monotonic(), question, since, [reply.text]))


async def read(note: Note, session: Session) -> None:
    """Read all of a session, and note it."""
    since = time.monotonic()
    texts = await told(session)
    note(Event("read", session.id, time.monotonic(), "", since, texts))


def problems(events: Iterable[Event], stored: Mapping[str, Sequence[str]]) -> list[str]:
    """Name everything that *stored*, what each session holds in the end, should not be after *events*."""
    of: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        of[event.session].append(event)
    return [
        found for session in {*of, *stored} for found in _of_one_session(of.get(session, ()), stored.get(session, ()))
    ]


def _of_one_session(events: Sequence[Event], stored: Sequence[str]) -> list[str]:
    questions = stored[::2]
    began = {event.question: event.at for event in events if event.what == "asked"}
    ended = {event.question: event.at for event in events if event.what in ("answered", "refused")}
    answered = [event for event in events if event.what == "answered"]
    found = [f"mismatched: {text}" for text, said in _pairs(stored) if said != answer_to(text)]
    found += [f"crossed: {event.question}" for event in answered if list(event.texts) != [answer_to(event.question)]]
    found += [f"lost: {event.question}" for event in answered if event.question not in questions]
    found += [f"doubled: {text}" for text, count in Counter(questions).items() if count > 1]
    found += [f"phantom: {text}" for text in questions if text not in began]
    earliest = math.inf
    for text in reversed(questions):
        if began.get(text, -math.inf) > earliest:
            found.append(f"reordered: {text}")
        earliest = min(earliest, ended.get(text, math.inf))
    for event in events:
        if event.what == "read":
            if list(event.texts) != list(stored[: len(event.texts)]):
                found.append("a read showed what is not stored")
            missed = {done.question for done in answered if done.at < event.since} - set(event.texts[::2])
            found += [f"a read missed: {text}" for text in missed]
            found += [f"a read foresaw: {text}" for text in event.texts[::2] if began.get(text, 0) > event.at]
    return found


def _pairs(stored: Sequence[str]) -> list[tuple[str, str]]:
    return [(text, stored[n + 1] if n + 1 < len(stored) else "") for n, text in enumerate(stored) if n % 2 == 0]
