"""Metrics and traces: what happens is counted and timed, and no owner, id or word is in it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NoReturn

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client.parser import text_string_to_metric_families
from tests.fakes import opened
from tests.test_bill_attacks import CHAT, FLOWS, MOST_WAITS, Interrupted, Slow
from tests.test_budgets import PRICES

from cloister import Budget
from cloister.audit import Event
from cloister.errors import ConfigurationError, IntegrityError, ProviderError, SessionExpired, SessionNotFound
from cloister.metrics import Prometheus
from cloister.stores.memory import MemoryStore
from cloister.telemetry import STEPS, Outcome, Step, Wait
from cloister.traces import Traces

SECRET = "the-canary-sings-at-noon"
_CHAT = {
    "model": "gpt-4.1-2025-04-14",
    "choices": [{"message": {"role": "assistant", "content": "Fine."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 11, "completion_tokens": 3},
}


def read(metrics: Prometheus) -> dict[tuple[str, ...], float]:
    """Give every sample by its name and the values of its labels."""
    samples = [sample for family in text_string_to_metric_families(metrics.text()) for sample in family.samples]
    return {(sample.name, *[value for _, value in sorted(sample.labels.items())]): sample.value for sample in samples}


class Spans:
    """Collect spans."""

    def __init__(self) -> None:
        self._kept = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._kept))
        self.traces = Traces(provider)

    def taken(self) -> list[ReadableSpan]:
        spans = sorted(self._kept.get_finished_spans(), key=lambda span: span.start_time or 0)
        self._kept.clear()
        return list(spans)


class TestMetrics:
    """What goes on record and how long it took, in the text format of Prometheus."""

    async def test_turns_tokens_and_sessions(self, url: str) -> None:
        """Sessions, turns and tokens are counted, and steps, store, lease and provider are timed."""
        metrics = Prometheus()
        async with opened(url, telemetry=[metrics]) as house:
            session = await house.ana.start()
            house.provider.answer = _CHAT
            await session.send("My mail is ana@example.org")
            house.provider.answer = ProviderError("down")
            with pytest.raises(ProviderError):
                await session.send("Hello")
            await session.end()
            with pytest.raises(SessionExpired):
                await session.send("Hello")
        seen = read(metrics)
        assert seen["cloister_sessions_total", "started"] == seen["cloister_sessions_total", "ended"] == 1
        assert seen["cloister_turns_total", "committed"] == seen["cloister_turns_total", "failed"] == 1
        assert seen["cloister_turns_total", "refused"] == 1
        assert seen["cloister_tokens_total", "input", "gpt-4.1", "parrot"] == 11
        assert seen["cloister_tokens_total", "output", "gpt-4.1", "parrot"] == 3
        assert seen["cloister_replaced_total", "EMAIL"] == 1
        assert seen["cloister_provider_seconds_count", "done", "parrot"] == 1
        assert seen["cloister_provider_seconds_count", "failed", "parrot"] == 1
        assert seen["cloister_lease_wait_seconds_count",] == 3
        assert seen["cloister_store_seconds_count", "commit", "done"] >= 1
        assert all(seen["cloister_turn_step_seconds_count", step] >= 1 for step in STEPS)
        assert seen["cloister_events_total", "turn.committed", "info"] == 1

    async def test_the_first_token_is_timed(self) -> None:
        """A stream's first text is timed by itself."""
        metrics = Prometheus()
        async with opened("memory://", telemetry=[metrics]) as house:
            session = await house.ana.start()
            async with session.stream("one two three") as stream:
                assert [text async for text in stream]
        assert read(metrics)["cloister_first_token_seconds_count", "parrot"] == 1

    async def test_refusals_and_integrity(self) -> None:
        """What was refused, and what was not what had been stored, is counted."""
        metrics = Prometheus()
        async with opened("memory://", telemetry=[metrics]) as house:
            anas = await house.ana.start()
            with pytest.raises(SessionNotFound):
                await house.ben.resume(anas.id)
            await house.entries()
            await house.cloister.vault.alarm(IntegrityError("not what was stored"))
        seen = read(metrics)
        assert seen["cloister_refusals_total", "access"] == 1
        assert seen["cloister_events_total", "access.foreign", "alert"] == 1
        assert seen["cloister_integrity_failures_total",] == 1

    async def test_what_failed_in_the_store_is_timed_too(self) -> None:
        """A round trip that failed is told apart from one that was answered."""
        metrics = Prometheus()
        async with opened("memory://", telemetry=[metrics]) as house:
            session = await house.ana.start()
            lost = house.cloister.vault.ask(house.cloister.store.renew, session.owner, session.id, b"x" * 16)
            with pytest.raises(Exception, match="lease"):
                await lost
        assert read(metrics)["cloister_store_seconds_count", "renew", "failed"] == 1

    async def test_an_unknown_model_is_no_label(self) -> None:
        """What a caller names a model does not become a label."""
        metrics = Prometheus()
        async with opened("memory://", telemetry=[metrics]) as house:
            await (await house.ana.start()).send("Hello", model=SECRET)
        assert SECRET not in metrics.text()
        assert any(name[:3] == ("cloister_tokens_total", "input", "other") for name in read(metrics))


class TestTraces:
    """A span for each turn and each of its steps, by the conventions for generative AI."""

    async def test_a_turn_and_its_steps(self, url: str) -> None:
        """The steps are children of the turn, in their order, and the model call says what it used."""
        spans = Spans()
        async with opened(url, telemetry=[spans.traces]) as house:
            session = await house.ana.start()
            house.provider.answer = _CHAT
            await session.send("Hello", model="gpt-4.1")
        turn, *steps = spans.taken()
        assert turn.name == "cloister.turn"
        assert [step.name for step in steps] == [
            "cloister.load",
            "cloister.prepare",
            "chat gpt-4.1",
            "cloister.check",
            "cloister.commit",
        ]
        assert all(step.parent is not None and step.parent.span_id == turn.context.span_id for step in steps)
        assert all((a.end_time or 0) <= (b.start_time or 0) for a, b in pairwise(steps))
        asked = steps[2]
        assert asked.kind is SpanKind.CLIENT
        expected: dict[str, Any] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "parrot",
            "gen_ai.request.model": "gpt-4.1",
            "gen_ai.response.model": "gpt-4.1-2025-04-14",
            "gen_ai.response.finish_reasons": ("stop",),
            "gen_ai.usage.input_tokens": 11,
            "gen_ai.usage.output_tokens": 3,
        }
        assert dict(asked.attributes or {}) == expected
        assert (turn.attributes or {})["cloister.outcome"] == "committed"

    async def test_a_failure_is_an_error(self) -> None:
        """A turn that fails has an error status and the error's name, and every span is ended."""
        spans = Spans()
        async with opened("memory://", telemetry=[spans.traces]) as house:
            session = await house.ana.start()
            house.provider.answer = ProviderError(SECRET)
            with pytest.raises(ProviderError):
                await session.send(SECRET)
        turn, *steps = spans.taken()
        assert [step.name for step in steps][-1].startswith("chat")
        for span in (turn, steps[-1]):
            assert span.status.status_code is StatusCode.ERROR
            assert (span.attributes or {})["error.type"] == "ProviderError"

    async def test_a_refusal_and_a_cancelled_stream_end_their_spans(self) -> None:
        """Whatever way a turn is left, its span is ended."""
        spans = Spans()
        async with opened("memory://", telemetry=[spans.traces]) as house:
            session = await house.ana.start()
            async with session.stream("one two three") as stream:
                async for _ in stream:
                    break
            await session.end()
            with pytest.raises(SessionExpired):
                await session.send("Hello")
        results = [(span.attributes or {})["cloister.outcome"] for span in spans.taken() if span.parent is None]
        assert results == ["failed", "refused"]

    async def test_no_word_owner_or_id(self, url: str) -> None:
        """No text, owner, session id or key is in any span or metric."""
        spans, metrics = Spans(), Prometheus()
        async with opened(url, telemetry=[spans.traces, metrics]) as house:
            user = house.cloister.user("ana-the-owner")
            session = await user.start(title=SECRET, system=SECRET)
            ids = [session.id]
            await session.send(SECRET, idempotency_key=SECRET, model=SECRET + " " + SECRET)
            ids.append(session.id)
            house.provider.answer = {**_CHAT, "model": SECRET + " !", "choices": [dict(_CHAT["choices"][0])]}  # type: ignore[index]
            await session.send(SECRET)
        text = metrics.text() + "".join(span.to_json() for span in spans.taken())
        assert not [word for word in (SECRET, "ana-the-owner", *ids) if word in text]


class Unended(SpanProcessor):
    """Hold the spans that were begun and not ended."""

    def __init__(self) -> None:
        self.held: list[str] = []

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self.held.append(span.name)

    def on_end(self, span: ReadableSpan) -> None:
        self.held.pop()  # fails for one that is ended twice


@pytest.mark.parametrize("flow", FLOWS)
async def test_wherever_a_turn_is_cancelled_its_spans_are_ended(flow: str) -> None:
    """No span of a turn that is cancelled stays open, and the turn is counted once."""
    unended, provider, metrics = Unended(), TracerProvider(), Prometheus()
    provider.add_span_processor(unended)
    async with opened(Slow(MemoryStore()).store, telemetry=[Traces(provider), metrics]) as house:
        house.provider.answer = "one two" if flow == "stream" else CHAT
        for at in range(1, MOST_WAITS):
            reached = await Interrupted(FLOWS[flow](house, await house.ana.start()), at, 2).over()
            await house.cloister.vault.settle()
            assert unended.held == [], f"after wait {at}"
            if not reached:
                break
        seen = read(metrics)
        assert sum(value for key, value in seen.items() if key[0] == "cloister_turns_total") == at


class Broken:
    """A watcher that fails at every call, or only once a turn has begun, with an error that quotes what was said."""

    def __init__(self, *, late: bool) -> None:
        self.late = late
        self.calls = 0

    def recorded(self, events: Sequence[Event]) -> None:
        self.fail()

    def waited(self, on: Wait, seconds: float, name: str, failed: str | None) -> None:
        self.fail()

    def turn(self) -> Broken:
        return self if self.late else self.fail()

    def at(self, step: Step) -> None:
        self.fail()

    def end(self, outcome: Outcome) -> None:
        self.fail()

    def fail(self) -> NoReturn:
        self.calls += 1
        raise ZeroDivisionError(SECRET)


class TestWatchers:
    """Watching is off the record: it neither refuses nor breaks anything."""

    @pytest.mark.parametrize("late", [True, False])
    async def test_a_watcher_that_fails_breaks_no_turn(
        self, url: str, late: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Turns are taken, refused and booked, others are told as before, and the log says it once, without a text."""
        metrics, broken = Prometheus(), Broken(late=late)
        budget = Budget(user_daily="9")
        async with opened(url, telemetry=[broken, metrics], budget=budget, prices=PRICES) as house:
            session = await house.ana.start()
            await session.send("Hello")
            async with session.stream("Hello") as stream:
                assert [text async for text in stream]
            house.provider.answer = ProviderError("down")
            with pytest.raises(ProviderError):
                await session.send("Hello")
            await session.end()
            with pytest.raises(SessionExpired):
                await session.send("Hello")
        seen = read(metrics)
        assert [seen["cloister_turns_total", result] for result in ("committed", "failed", "refused")] == [2, 1, 1]
        assert seen["cloister_events_total", "turn.committed", "info"] == 2
        assert broken.calls > 10
        said = [one.getMessage() for one in caplog.records if "watches" in one.getMessage()]
        assert len(said) == 1
        assert "Broken failed with ZeroDivisionError" in said[0]
        assert SECRET not in caplog.text

    async def test_what_is_no_watcher_is_refused(self) -> None:
        """Something else in the list is a mistake that is named."""
        with pytest.raises(ConfigurationError, match="dict is no telemetry: it lacks recorded, waited, turn"):
            async with opened("memory://", telemetry=[{}]):
                pass
