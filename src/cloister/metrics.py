"""Counters and histograms in the text format of Prometheus. Needs ``cloister[metrics]``.

Labels are names out of short lists of our own: events, steps, operations, families of models. No owner, no id, no text.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from cloister.audit import EVENTS, Event
from cloister.errors import ConfigurationError
from cloister.telemetry import Outcome, Step, Wait
from cloister.window import family

try:
    from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
except ImportError:
    raise ConfigurationError("metrics need prometheus-client: pip install 'cloister[metrics]'") from None

_QUICK = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SLOW = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
_SESSIONS = {
    "session.started": "started",
    "session.renewed": "renewed",
    "session.expired": "expired",
    "session.ended": "ended",
    "owner.erased": "erased",
}
_REPLIES = {"reply.blocked": "blocked", "reply.alerted": "alerted", "reply.unchecked": "unchecked"}
_REFUSALS = {
    "access.refused": "access",
    "access.suspended": "suspended",
    "authentication.failed": "authentication",
    "identity.contradicted": "identity",
    "rate.limited": "rate",
    "budget.exceeded": "budget",
}
_TOKENS = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")


class Prometheus:
    """Count for Prometheus, in *registry* or one of its own; `text` is what ``/metrics`` shows.

    Counts are this process's own. Raises `ConfigurationError` where ``cloister[metrics]`` is not installed.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry = registry or CollectorRegistry()

        def counter(name: str, said: str, *labels: str) -> Counter:
            return Counter(f"cloister_{name}", said, labels, registry=registry)

        def histogram(name: str, said: str, *labels: str, buckets: Sequence[float] = _QUICK) -> Histogram:
            return Histogram(f"cloister_{name}_seconds", said, labels, registry=registry, buckets=buckets)

        self._events = counter("events", "Entries of the audit log, by kind.", "event", "severity")
        self._sessions = counter("sessions", "What became of sessions.", "change")
        self._turns = counter("turns", "Turns, by what they came to.", "outcome")
        self._tokens = counter("tokens", "Tokens, as providers told or as estimated.", "kind", "model", "provider")
        self._estimated = counter("turns_estimated", "Turns whose provider did not tell what it used.", "provider")
        self._cost = counter("cost", "What was spent, where a price is known.", "currency", "model", "provider")
        self._replies = counter("replies", "Replies in which others' details were found.", "verdict")
        self._refusals = counter("refusals", "What was refused.", "reason")
        self._replaced = counter("replaced", "Personal data replaced, by type.", "type")
        self._integrity = counter("integrity_failures", "Answers of the store that were not what was stored.")
        self._dropped = counter("fingerprints_dropped", "Fingerprints that went because there were too many.")
        self._store = histogram("store", "Round trips to the store.", "operation", "outcome")
        self._lease = histogram("lease_wait", "How long turns waited for the one before.")
        self._provider = histogram("provider", "From request to whole answer.", "provider", "outcome", buckets=_SLOW)
        self._first = histogram("first_token", "From request to first text.", "provider", buckets=_SLOW)
        self._step = histogram("turn_step", "Steps of a turn.", "step")

    def text(self) -> str:
        """Give all counters in the text format of Prometheus."""
        return generate_latest(self.registry).decode()

    def recorded(self, events: Sequence[Event]) -> None:
        """Count *events*, and what they say was spent, replaced or refused."""
        for event in events:
            kind, detail = event.kind, event.detail
            self._events.labels(kind, EVENTS[kind].severity).inc()
            for table, metric in ((_SESSIONS, self._sessions), (_REPLIES, self._replies), (_REFUSALS, self._refusals)):
                if kind in table:
                    metric.labels(table[kind]).inc()
            if kind in ("turn.committed", "turn.passed", "turn.failed"):
                self._spent(event)
            elif kind == "data.replaced":
                for name, count in detail.items():
                    if name != "source":
                        self._replaced.labels(name).inc(_number(count))
            elif kind == "integrity.failed":
                self._integrity.inc()
            elif kind == "fingerprints.dropped":
                self._dropped.inc(_number(detail.get("count")))

    def _spent(self, event: Event) -> None:
        detail = event.detail
        provider = str(detail.get("provider") or "application")
        model = family(str(detail.get("model") or "")) or "other"
        for kind in _TOKENS:
            if count := _number(detail.get(kind)):
                self._tokens.labels(kind.removesuffix("_tokens"), model, provider).inc(count)
        if detail.get("estimated"):
            self._estimated.labels(provider).inc()
        if cost := _number(detail.get("cost")):
            self._cost.labels(str(detail.get("currency")), model, provider).inc(cost)

    def waited(self, on: Wait, seconds: float, name: str, failed: str | None) -> None:
        """Put a wait into its histogram."""
        outcome = "failed" if failed else "done"
        match on:
            case "store":
                self._store.labels(name, outcome).observe(seconds)
            case "lease":
                self._lease.observe(seconds)
            case "provider":
                self._provider.labels(name, outcome).observe(seconds)
            case "first token":
                self._first.labels(name).observe(seconds)

    def turn(self) -> _Turn:
        """Begin to follow a turn."""
        return _Turn(self._turns, self._step)


class _Turn:
    def __init__(self, turns: Counter, steps: Histogram) -> None:
        self._turns, self._steps = turns, steps
        self._step: Step | None = None
        self._since = 0.0

    def at(self, step: Step) -> None:
        now = time.perf_counter()
        if self._step is not None:
            self._steps.labels(self._step).observe(now - self._since)
        self._step, self._since = step, now

    def end(self, outcome: Outcome) -> None:
        if self._step is not None:
            self._steps.labels(self._step).observe(time.perf_counter() - self._since)
        self._turns.labels(outcome.result).inc()


def _number(value: object) -> float:
    try:
        return max(float(value), 0.0) if isinstance(value, str | int) else 0.0
    except ValueError:
        return 0.0
