"""What is measured of turns and stores, for whoever watches. Carries durations, counts and names of our own: no ids.

Measuring is off the record and never refuses anything; what went on record is told apart from it, as events.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from cloister.audit import Event
from cloister.model import Usage

_log = logging.getLogger("cloister")

Step = Literal["load", "prepare", "ask", "check", "commit"]
STEPS: tuple[Step, ...] = ("load", "prepare", "ask", "check", "commit")
Wait = Literal["store", "lease", "provider", "first token"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Say what a turn came to, with the error.

    It is ``committed``, ``passed``, ``blocked``, ``repeated``, ``refused`` or ``failed``.
    """

    result: str
    error: str | None = None
    provider: str | None = None
    model: str | None = None
    answered_by: str | None = None
    finish_reason: str | None = None
    usage: Usage = Usage()


class Course(Protocol):
    """Follows one turn: a step ends where the next one begins."""

    def at(self, step: Step) -> None: ...

    def end(self, outcome: Outcome) -> None: ...


class Telemetry(Protocol):
    """Watches turns and stores. No call may wait; what one raises is logged, and nobody else is told of it."""

    def recorded(self, events: Sequence[Event]) -> None:
        """Take note of what has gone on record."""
        ...

    def waited(self, on: Wait, seconds: float, name: str, failed: str | None) -> None:
        """Take note of a wait: *name* is the store's operation or the provider, *failed* the error's name."""
        ...

    def turn(self) -> Course:
        """Begin to follow a turn."""
        ...


class Unwatched:
    """Follow nothing."""

    def at(self, step: Step) -> None:
        pass

    def end(self, outcome: Outcome) -> None:
        pass


UNWATCHED = Unwatched()


class Everybody:
    """Tell several watchers. One that fails is logged by the name of its error, and disturbs no turn and no other."""

    def __init__(self, watchers: Sequence[Telemetry]) -> None:
        self._watchers = watchers
        self._blamed: set[str] = set()

    def recorded(self, events: Sequence[Event]) -> None:
        for watcher in self._watchers:
            with self.spared(watcher):
                watcher.recorded(events)

    def waited(self, on: Wait, seconds: float, name: str, failed: str | None) -> None:
        for watcher in self._watchers:
            with self.spared(watcher):
                watcher.waited(on, seconds, name, failed)

    def turn(self) -> Course:
        courses: list[Course] = []
        for watcher in self._watchers:
            with self.spared(watcher):
                courses.append(watcher.turn())
        return _Together(self, courses)

    @contextlib.contextmanager
    def spared(self, watcher: object) -> Iterator[None]:
        """Go on whatever *watcher* raises inside the block."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - of a plug-in, whose text may say anything
            blamed = f"{type(watcher).__name__} failed with {type(error).__name__}"
            if blamed not in self._blamed:  # once: it would be said with every turn
                self._blamed.add(blamed)
                _log.error("what watches turns is wrong, and counts less than happens: %s", blamed)


class _Together:
    def __init__(self, everybody: Everybody, courses: Sequence[Course]) -> None:
        self._everybody = everybody
        self._courses = courses

    def at(self, step: Step) -> None:
        for course in self._courses:
            with self._everybody.spared(course):
                course.at(step)

    def end(self, outcome: Outcome) -> None:
        for course in self._courses:
            with self._everybody.spared(course):
                course.end(outcome)
