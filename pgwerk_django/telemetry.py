"""OpenTelemetry (the extra `otel`): spans around ticks, hand-over and jobs, and the metrics of `measurements`.

Turned on by `PGWERK["TELEMETRY"] = True`, by `instrument()` in a `ready()` of yours, or by `opentelemetry-instrument`.
Which SDK and exporter they go to is not ours to say. Loads no model: it may be turned on before Django is set up.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pgwerk_django
from pgwerk_django import signals, spans
from pgwerk_django.exceptions import ExtraMissing
from pgwerk_django.measurements import COUNTERS, GAUGES, HISTOGRAMS, Counting, Measure

try:
    from opentelemetry import metrics, trace
    from opentelemetry.context import Context
    from opentelemetry.metrics import CallbackOptions, Observation
    from opentelemetry.trace import Link, Span, SpanKind, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise ExtraMissing("opentelemetry-api", "otel") from error

if TYPE_CHECKING:
    from pgwerk_django.gauges import State

KEEP = 1.0  # seconds: the gauges are asked one by one, the database once for all of them
FLUSHES_WITHIN = 3.0
STOPPED = "pgwerk_django.child._Stopped"

_w3c = TraceContextTextMapPropagator()
_tick: contextvars.ContextVar[Span | None] = contextvars.ContextVar("pgwerk_tick", default=None)


class _Watch(spans.Watch):
    patience = FLUSHES_WITHIN

    def __init__(self) -> None:
        self._tracer = trace.get_tracer("pgwerk_django", pgwerk_django.__version__)

    @contextlib.contextmanager
    def tick(self) -> Iterator[None]:
        with self._tracer.start_as_current_span("tick") as span:
            token = _tick.set(span)
            try:
                yield
            finally:
                _tick.reset(token)

    @contextlib.contextmanager
    def hand_over(self, jobs: Sequence[Any]) -> Iterator[None]:
        target = jobs[0].target
        attributes = {
            "messaging.system": target,
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
            "messaging.batch.message_count": len(jobs),
        }
        links = [link for job in jobs for link in _links(job)]
        with self._tracer.start_as_current_span(
            f"send {target}", kind=SpanKind.PRODUCER, attributes=attributes, links=links
        ):
            yield

    @contextlib.contextmanager
    def job(self, job: Any) -> Iterator[Callable[[Any], Any]]:
        # A trace of its own, linked with where it was enqueued: that may be long over, or be the trace of a million jobs.
        with self._tracer.start_as_current_span(
            f"run {job.function}", Context(), SpanKind.CONSUMER, _attributes(job), _links(job)
        ) as span:

            def told(outcome: Any) -> Any:
                _tell(span, outcome)
                return outcome

            yield told

    def traceparent(self) -> str:
        carrier: dict[str, str] = {}
        _w3c.inject(carrier)
        return carrier.get("traceparent", "")

    def flush(self) -> None:
        """Of an SDK that sends spans in batches, the last would be lost with this process."""
        for provider in (trace.get_tracer_provider(), metrics.get_meter_provider()):
            if flush := getattr(provider, "force_flush", None):
                flush(int(FLUSHES_WITHIN * 1000))


def _links(job: Any) -> list[Link]:
    context = trace.get_current_span(_w3c.extract({"traceparent": job.traceparent}, Context())).get_span_context()
    return [Link(context)] if context.is_valid else []


def _attributes(job: Any) -> dict[str, Any]:
    """No arguments: they may be secret."""
    return {
        "messaging.system": "pgwerk",
        "messaging.operation.name": "run",
        "messaging.operation.type": "process",
        "messaging.destination.name": job.queue,
        "messaging.message.id": str(job.pk),
        "code.function.name": job.function,
        "pgwerk.job.key": job.key,
        "pgwerk.job.kind": str(job.kind),
        "pgwerk.job.attempt": job.attempt,
        **({"pgwerk.schedule": job.schedule_name} if job.schedule_name else {}),
        **({"pgwerk.job.due_at": job.due_at.isoformat()} if job.due_at else {}),
    }


def _tell(span: Span, outcome: Any) -> None:
    """Of a job that its worker stopped, the worker knows why (a timeout, a cancel): its row says it."""
    span.set_attribute("pgwerk.job.status", "RETRIED" if outcome.status == "READY" else str(outcome.status))
    if outcome.status == "SUCCESSFUL":
        return
    if outcome.exception == STOPPED:
        span.set_attribute("error.type", "stopped")
        span.set_status(StatusCode.ERROR, "stopped by its worker")
        return
    kind = {"exception.type": outcome.exception, "exception.message": outcome.summary}
    span.add_event("exception", {**kind, "exception.stacktrace": outcome.error})
    span.set_attribute("error.type", outcome.exception)
    if outcome.status != "CANCELLED":
        span.set_status(StatusCode.ERROR, outcome.summary)


def _ticked(schedules: int, jobs: int, skipped: int, **event: Any) -> None:
    """Sent after the commit, which is within its span."""
    if span := _tick.get():
        span.set_attributes({"pgwerk.schedules": schedules, "pgwerk.fired": jobs, "pgwerk.skipped": skipped})


class _Instruments:
    """What happens in this process, as counters and histograms; what is in the database, where a scheduler runs."""

    def __init__(self) -> None:
        self._meter = metrics.get_meter("pgwerk_django", pgwerk_django.__version__)
        self._counters = {each: self._meter.create_counter(each.name, each.unit, each.help) for each in COUNTERS}
        self._histograms = {
            each: self._meter.create_histogram(
                each.name, each.unit, each.help, explicit_bucket_boundaries_advisory=each.buckets
            )
            for each in HISTOGRAMS
        }
        self._state: State | None = None

    def add(self, counter: Measure, amount: int, *labels: str) -> None:
        self._counters[counter].add(amount, _named(counter, labels))

    def observe(self, histogram: Measure, value: float, *labels: str) -> None:
        self._histograms[histogram].record(value, _named(histogram, labels))

    def process_started(self, role: str, **event: Any) -> None:
        if role == "scheduler" and self._state is None:
            from pgwerk_django.gauges import State

            self._state = State(keep=KEEP)
            for each in GAUGES:
                self._meter.create_observable_gauge(each.name, [self._reader(each)], each.unit, each.help)

    def _reader(self, measure: Measure) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def read(options: CallbackOptions) -> Iterable[Observation]:
            for reading in self._state.readings() if self._state else ():
                if reading.measure is measure:
                    yield Observation(reading.value, _named(measure, reading.labels))

        return read

    def close(self) -> None:
        self._state = None


def _named(measure: Measure, labels: Sequence[str]) -> dict[str, str]:
    return {name: label for name, label in zip(measure.labels, labels, strict=True) if label}


_off: contextlib.ExitStack | None = None


def instrument() -> None:
    """Have this process seen by OpenTelemetry. Asked again, it changes nothing."""
    global _off
    if _off is not None:
        return
    _off = contextlib.ExitStack()
    instruments = _Instruments()
    counting = Counting(instruments)
    counting.start()
    signals.ticked.connect(_ticked, dispatch_uid="pgwerk_django.telemetry")
    signals.process_started.connect(instruments.process_started, weak=False, dispatch_uid="pgwerk_django.telemetry")
    _off.callback(instruments.close)
    _off.callback(counting.stop)
    _off.callback(signals.ticked.disconnect, dispatch_uid="pgwerk_django.telemetry")
    _off.callback(signals.process_started.disconnect, dispatch_uid="pgwerk_django.telemetry")
    _off.callback(setattr, spans, "watch", spans.watch)
    spans.watch = _Watch()


def uninstrument() -> None:
    global _off
    if _off is not None:
        _off.close()
        _off = None
