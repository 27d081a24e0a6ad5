"""Spans of a turn and its steps for OpenTelemetry, by the conventions for generative AI. Needs ``cloister[metrics]``.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/ (attributes as of semantic conventions 1.37). No span
carries an owner, an id or a text: ``gen_ai.conversation.id`` and the messages are left out on purpose.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence

from cloister.audit import Event
from cloister.errors import ConfigurationError
from cloister.telemetry import Outcome, Step, Wait

try:
    from opentelemetry import trace
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, TracerProvider
except ImportError:
    raise ConfigurationError("traces need opentelemetry-api: pip install 'cloister[metrics]'") from None

# The names that the conventions give to those whom cloister knows by another one.
_PROVIDERS: Mapping[str, str] = {"openai": "openai", "anthropic": "anthropic", "deepseek": "deepseek"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,99}")


class Traces:
    """Give a span for every turn, and one for each of its steps; that of ``ask`` is the model call.

    *provider* makes the tracer, by default the one that is set globally. Raises `ConfigurationError` where
    ``cloister[metrics]`` is not installed.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer("cloister", tracer_provider=provider)

    def recorded(self, events: Sequence[Event]) -> None:
        """Leave what is on record to the record."""

    def waited(self, on: Wait, seconds: float, name: str, failed: str | None) -> None:
        """Leave single waits to the steps in which they happen."""

    def turn(self) -> _Turn:
        """Begin the span of a turn."""
        return _Turn(self._tracer)


class _Turn:
    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        # Not made current: a stream may be read in another task than the one that leaves the turn.
        self._span = tracer.start_span("cloister.turn")
        self._context = trace.set_span_in_context(self._span)
        self._step: Span | None = None
        self._asked: Span | None = None
        self._answered_at: int | None = None

    def at(self, step: Step) -> None:
        self._leave()
        kind = SpanKind.CLIENT if step == "ask" else SpanKind.INTERNAL
        self._step = self._tracer.start_span(f"cloister.{step}", context=self._context, kind=kind)
        if step == "ask":
            self._asked = self._step

    def end(self, outcome: Outcome) -> None:
        self._leave()
        if self._asked is not None:
            self._asked.update_name(f"chat {_plain(outcome.model) or ''}".rstrip())
            _say(self._asked, outcome)
            self._asked.end(end_time=self._answered_at)
        _say(self._span, outcome)
        self._span.set_attribute("cloister.outcome", outcome.result)
        self._span.end()

    def _leave(self) -> None:
        if self._step is self._asked:
            self._answered_at = time.time_ns()  # what the answer was is known when it has been read
        elif self._step is not None:
            self._step.end()
        self._step = None


def _say(span: Span, outcome: Outcome) -> None:
    span.set_attributes(_said(outcome))
    if outcome.error:
        span.set_status(Status(StatusCode.ERROR))


def _said(outcome: Outcome) -> dict[str, str | int | Sequence[str]]:
    usage = outcome.usage
    said: dict[str, str | int | Sequence[str] | None] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": outcome.provider and _PROVIDERS.get(outcome.provider, outcome.provider),
        "gen_ai.request.model": _plain(outcome.model),
        "gen_ai.response.model": _plain(outcome.answered_by),
        "gen_ai.response.finish_reasons": [reason] if (reason := _plain(outcome.finish_reason)) else None,
        "gen_ai.usage.input_tokens": usage.input_tokens or None,
        "gen_ai.usage.output_tokens": usage.output_tokens or None,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens or None,
        "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens or None,
        "error.type": outcome.error,
    }
    return {name: value for name, value in said.items() if value is not None and value != ""}


def _plain(name: str | None) -> str | None:
    """Give a name if it looks like one: what comes from a caller or a model service may say anything."""
    return name if name and _NAME.fullmatch(name) else None
