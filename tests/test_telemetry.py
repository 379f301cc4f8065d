"""OpenTelemetry: spans of ticks, hand-over and jobs, links to where a job was enqueued, and the metrics, by the real SDK."""

import json
import logging
import os
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.apps import apps
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from pgwerk_django import child, execution, signals, spans, telemetry
from pgwerk_django.exceptions import ExtraMissing, JobCancelled
from pgwerk_django.handover import hand_over
from pgwerk_django.jobs import CurrentJob, enqueue, enqueue_many
from pgwerk_django.measurements import GAUGES, MEASURES
from pgwerk_django.models import Job, Process, Schedule
from pgwerk_django.scheduler import Scheduler
from tests import functions
from tests.processes import ROOT
from tests.time_travel import SECOND, make
from tests.waiting import wait_until

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Seen:
    """What the real SDK made of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        meters = MeterProvider([self._reader])
        # A process may name its providers only once.
        monkeypatch.setattr(telemetry.trace, "get_tracer", tracers.get_tracer)
        monkeypatch.setattr(telemetry.metrics, "get_meter", meters.get_meter)
        self.tracer = tracers.get_tracer("a test")

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def metrics(self) -> dict[str, dict[tuple[str, ...], Any]]:
        data = self._reader.get_metrics_data()
        assert data is not None
        (resource,) = data.resource_metrics
        return {
            metric.name: {tuple((point.attributes or {}).values()): point for point in metric.data.data_points}
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    recorded = Seen(monkeypatch)
    telemetry.instrument()
    yield recorded
    telemetry.uninstrument()


def job(**columns: Any) -> CurrentJob:
    return CurrentJob(
        Job(**{"function": "tests.functions.add", "queue": "sums", **columns}), report=lambda progress: None
    )


def run(current: CurrentJob, *args: Any) -> execution.Outcome:
    return execution.run(execution.Call(current, current.function, args, {}))


# -- off -------------------------------------------------------------------------------------------------------------


def test_nobody_looks_until_it_is_turned_on() -> None:
    assert type(spans.watch) is spans.Watch
    assert run(job(), 1).status == "SUCCESSFUL"


def test_it_is_not_even_imported(start: Any) -> None:
    """Nor is prometheus_client: who uses neither pays for neither."""
    names = "sorted(name for name in sys.modules if name.split('.')[0] in ('opentelemetry', 'prometheus_client'))"
    process = start("-c", f"import sys, django; django.setup(); import pgwerk_django.worker; print({names})")
    assert process.process.wait(60) == 0
    assert process.text() == "[]\n"


def test_it_can_be_turned_off_again_and_on_twice(seen: Seen) -> None:
    telemetry.instrument()
    run(job(), 1)
    telemetry.uninstrument()
    telemetry.uninstrument()
    run(job(), 1)
    assert len(seen.spans) == 1
    assert type(spans.watch) is spans.Watch


def test_a_missing_extra_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "opentelemetry"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "pgwerk_django.telemetry")
    monkeypatch.delattr("pgwerk_django.telemetry")
    settings.PGWERK = {"AUTODISCOVER": (), "TELEMETRY": True}
    with pytest.raises(ExtraMissing, match=r"pip install 'pgwerk-django\[otel\]'"):
        apps.get_app_config("pgwerk_django").ready()


def test_the_setting_turns_it_on(settings: Any) -> None:
    settings.PGWERK = {"AUTODISCOVER": (), "TELEMETRY": True}
    try:
        apps.get_app_config("pgwerk_django").ready()
        assert type(spans.watch) is not spans.Watch
    finally:
        telemetry.uninstrument()


# -- jobs ------------------------------------------------------------------------------------------------------------


def test_a_job_is_a_span(seen: Seen) -> None:
    run(job(schedule_name="daily sum", attempt=2), 1)
    (span,) = seen.spans
    assert (span.name, span.kind, span.status.status_code) == (
        "run tests.functions.add",
        SpanKind.CONSUMER,
        StatusCode.UNSET,
    )
    assert span.attributes is not None
    expected = {
        "messaging.system": "pgwerk",
        "messaging.operation.name": "run",
        "messaging.operation.type": "process",
        "messaging.destination.name": "sums",
        "code.function.name": "tests.functions.add",
        "pgwerk.schedule": "daily sum",
        "pgwerk.job.attempt": 2,
        "pgwerk.job.status": "SUCCESSFUL",
    }
    assert {name: span.attributes[name] for name in expected} == expected


def test_its_arguments_are_nobodys_business(seen: Seen) -> None:
    current = job(function="tests.functions.log_in", kwargs={"password": "hunter2"})
    execution.run(execution.Call(current, current.function, ["hunter2"], {}))
    assert "hunter2" not in seen.spans[0].to_json()


def test_what_a_job_does_is_within_its_span(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    def works() -> None:
        with seen.tracer.start_as_current_span("inner"):
            pass

    monkeypatch.setattr(functions, "noop", works)
    with seen.tracer.start_as_current_span("whatever is current here"):
        run(job(function="tests.functions.noop"))
    inner, outer, _ = seen.spans
    assert (inner.name, outer.name, outer.parent) == ("inner", "run tests.functions.noop", None)
    assert inner.parent is not None
    assert inner.parent.span_id == outer.context.span_id


def test_of_an_async_job_too(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    async def works() -> None:
        with seen.tracer.start_as_current_span("inner"):
            pass

    monkeypatch.setattr(functions, "noop", works)
    current = job(function="tests.functions.noop")
    async_to_sync(execution.arun)(execution.Call(current, current.function, [], {}))
    inner, outer = seen.spans
    assert outer.attributes is not None
    assert outer.attributes["pgwerk.job.status"] == "SUCCESSFUL"
    assert inner.parent is not None
    assert inner.parent.span_id == outer.context.span_id


@pytest.mark.parametrize(("attempts", "status"), [(1, "FAILED"), (2, "RETRIED")])
def test_its_error_is_on_its_span(seen: Seen, attempts: int, status: str) -> None:
    run(job(function="tests.functions.fail", attempt=1, max_attempts=attempts))
    (span,) = seen.spans
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "ValueError: no luck")
    assert span.attributes is not None
    assert (span.attributes["error.type"], span.attributes["pgwerk.job.status"]) == ("builtins.ValueError", status)
    (event,) = span.events
    assert event.attributes is not None
    assert event.attributes["exception.type"] == "builtins.ValueError"
    assert "Traceback" in str(event.attributes["exception.stacktrace"])


def test_a_job_that_heeds_a_cancel_has_not_erred(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    def heeds() -> None:
        raise JobCancelled

    monkeypatch.setattr(functions, "noop", heeds)
    run(job(function="tests.functions.noop"))
    (span,) = seen.spans
    assert span.status.status_code == StatusCode.UNSET
    assert span.attributes is not None
    assert span.attributes["pgwerk.job.status"] == "CANCELLED"


def test_a_job_that_its_worker_stopped(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its row says why: there may have been a timeout, or somebody."""

    def stopped() -> None:
        raise child._Stopped

    monkeypatch.setattr(functions, "noop", stopped)
    run(job(function="tests.functions.noop"))
    (span,) = seen.spans
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "stopped by its worker")
    assert (span.attributes or {})["error.type"] == "stopped"


# -- where it was enqueued -------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_a_job_is_linked_with_the_span_that_enqueued_it(seen: Seen) -> None:
    with seen.tracer.start_as_current_span("a request") as request:
        enqueue(functions.add, 1, _meta={"mine": 1})
        enqueue_many(functions.add, [[1]])
    enqueue(functions.noop)
    written = {(row.function, row.traceparent) for row in Job.objects.all()}
    assert {len(traceparent) for _, traceparent in written} == {0, len(TRACEPARENT)}
    assert Job.objects.filter(meta={"mine": 1}).exists()  # which stays as the caller gave it
    for row in Job.objects.exclude(traceparent=""):
        run(CurrentJob(row, report=lambda progress: None), 1)
    ran = [span for span in seen.spans if span.name.startswith("run")]
    assert [link.context.span_id for span in ran for link in span.links] == [request.get_span_context().span_id] * 2
    assert {span.context.trace_id for span in ran}.isdisjoint({request.get_span_context().trace_id})


@pytest.mark.parametrize("traceparent", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_no_link_leads_to_nothing(seen: Seen, traceparent: str) -> None:
    assert run(job(traceparent=traceparent), 1).status == "SUCCESSFUL"
    assert seen.spans[0].links == ()


@pytest.mark.django_db
def test_without_telemetry_nothing_is_written() -> None:
    with TracerProvider().get_tracer("x").start_as_current_span("a request"):
        enqueue(functions.noop)
    assert Job.objects.get().traceparent == ""


# -- ticks and hand-over ---------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_a_tick_is_a_span(seen: Seen, scheduler: Scheduler) -> None:
    make(ago=25 * SECOND, interval=10)
    scheduler.tick()
    (span,) = seen.spans
    assert span.name == "tick"
    assert dict(span.attributes or {}) == {"pgwerk.schedules": 1, "pgwerk.fired": 1, "pgwerk.skipped": 2}


@pytest.mark.django_db(transaction=True)
def test_a_tick_that_fails_says_so(seen: Seen, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    make(ago=SECOND)
    monkeypatch.setattr("pgwerk_django.tick._write", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        scheduler.tick()
    (span,) = seen.spans
    assert span.status.status_code == StatusCode.ERROR
    assert [event.name for event in span.events] == ["exception"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("function", ["tests.django_tasks.database", "no.such.task"])
def test_handing_over_is_a_span(seen: Seen, function: str) -> None:
    Job.objects.create(function=function, target="django_tasks", args=[1], traceparent=TRACEPARENT)
    hand_over("test", using="default")
    (span,) = seen.spans
    assert (span.name, span.kind) == ("send django_tasks", SpanKind.PRODUCER)
    assert (span.attributes or {})["messaging.batch.message_count"] == 1
    assert [f"{link.context.span_id:x}" for link in span.links] == ["b7ad6b7169203331"]
    fails = function == "no.such.task"
    assert (span.status.status_code == StatusCode.ERROR, Job.objects.get().status == "READY") == (fails, fails)


# -- metrics ---------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_a_scheduler_tells_all_that_prometheus_is_told(seen: Seen, scheduler: Scheduler) -> None:
    """The same measures by the same names."""
    make(ago=25 * SECOND, interval=10)
    Process.objects.create(role="scheduler", last_tick_at=Schedule.objects.get().created_at)
    Job.objects.create(target="celery")
    signals.send_now(signals.process_started, role="scheduler")
    signals.send_now(signals.process_started, role="worker", queues=["mail"])
    scheduler.tick()
    found = seen.metrics()
    silent = {  # until there is something of the kind
        "pgwerk.set_aside", "pgwerk.jobs.handed_back", "pgwerk.jobs.forwarded", "pgwerk.leases.lost",
        "pgwerk.children.died", "pgwerk.database.losses", "pgwerk.job.duration", "pgwerk.job.lateness",
    }  # fmt: skip
    assert found.keys() == {measure.name for measure in MEASURES} - silent
    assert found["pgwerk.up"][()].value == 1
    assert found["pgwerk.fired"][()].value == 1
    assert found["pgwerk.skipped"][("overlap",)].value == 2
    assert found["pgwerk.outbox.jobs"][("celery",)].value == 1
    assert found["pgwerk.job.runs"][("mail", "failed")].value == 0
    assert found["pgwerk.tick.lateness"][()].explicit_bounds[0] == 0.005


@pytest.mark.django_db(transaction=True)
def test_the_database_is_asked_once_for_all_gauges(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    from pgwerk_django import gauges

    asked = []
    measure = gauges.measure
    monkeypatch.setattr(telemetry, "KEEP", 3600)
    monkeypatch.setattr(gauges, "measure", lambda using: asked.append(using) or measure(using))
    signals.send_now(signals.process_started, role="scheduler")
    assert len(GAUGES) > 1
    assert "pgwerk.up" in seen.metrics()
    assert asked == ["default"]


def test_a_worker_asks_the_database_nothing(seen: Seen) -> None:
    signals.send_now(signals.process_started, role="worker", queues=["mail"])
    assert "pgwerk.up" not in seen.metrics()


# -- real processes --------------------------------------------------------------------------------------------------


# When it is instrumented, it does not yet know its settings.
MANAGE = """
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
from django.core.management import execute_from_command_line
execute_from_command_line(["manage.py", *sys.argv[1:]])
"""

# Processes that it starts are not to be instrumented.
FORGETS = """
import os
os.environ["PYTHONPATH"] = os.pathsep.join(
    path for path in os.environ["PYTHONPATH"].split(os.pathsep) if not path.endswith("auto_instrumentation")
)
"""


def exported(notes: Path) -> list[dict[str, Any]]:
    lines = notes / "spans"
    return [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []


@pytest.mark.django_db(transaction=True)
def test_a_workers_processes_send_their_spans_before_they_end(manage: Any, notes: Path) -> None:
    """They send them in batches, and the worker ends them."""
    enqueue(functions.add, 1)
    enqueue(functions.fail)
    enqueue("tests.broken_code.func")
    worker = manage("runworker", "--concurrency=1", DJANGO_SETTINGS_MODULE="tests.telemetry_settings")
    wait_until(lambda: Job.objects.filter(status__in=["SUCCESSFUL", "FAILED"]).count() == 3)
    assert exported(notes) == []
    assert worker.stop() == 0
    found = {span["name"]: span["status"]["status_code"] for span in exported(notes)}
    assert found == {
        "run tests.functions.add": "UNSET",
        "run tests.functions.fail": "ERROR",
        "run tests.broken_code.func": "ERROR",
    }


@pytest.mark.django_db(transaction=True)
def test_so_do_those_that_have_run_their_number_of_jobs(manage: Any, notes: Path) -> None:
    enqueue(functions.add, 1)
    worker = manage(
        "runworker", "--concurrency=1", "--max-jobs-per-child=1", DJANGO_SETTINGS_MODULE="tests.telemetry_settings"
    )
    wait_until(lambda: exported(notes))
    assert worker.stop() == 0


@pytest.mark.django_db(transaction=True)
def test_scheduler_and_worker_in_one_process(manage: Any, notes: Path) -> None:
    make(functions.noop, ago=SECOND, interval=3600, _name="hourly")
    both = manage(
        "runscheduler", "--with-worker", "--on-unregistered=keep", DJANGO_SETTINGS_MODULE="tests.telemetry_settings"
    )
    wait_until(lambda: Job.objects.filter(status="SUCCESSFUL").exists())
    assert both.stop() == 0
    assert {span["name"] for span in exported(notes)} == {"tick", "run tests.functions.noop"}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("forgets", [False, True], ids=["as it is", "as older versions"])
def test_by_opentelemetry_instrument_alone(start: Any, tmp_path: Path, forgets: bool) -> None:
    """No line of code and no setting: the worker's processes are set up as itself was, and once."""
    enqueue(functions.add, 1)
    # As an installation of ours has it, whatever is installed here.
    information = tmp_path / "pgwerk_of_this_test-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: pgwerk-of-this-test\nVersion: 1\n")
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][
        "opentelemetry_instrumentor"
    ]
    lines = [f"{name} = {value}" for name, value in points.items()]
    (information / "entry_points.txt").write_text("\n".join(["[opentelemetry_instrumentor]", *lines, ""]))
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    worker = start(
        "-c",
        "import sys; from opentelemetry.instrumentation.auto_instrumentation import run; run()",
        sys.executable,
        *("-c", FORGETS + MANAGE if forgets else MANAGE),
        *("runworker", "--burst", "--concurrency=1"),
        PYTHONPATH=path,
        DJANGO_SETTINGS_MODULE="",
        PYTHONWARNINGS="",
        OTEL_TRACES_EXPORTER="console",
        OTEL_METRICS_EXPORTER="none",
        OTEL_LOGS_EXPORTER="none",
    )
    assert worker.process.wait(60) == 0, worker.text()
    assert worker.text().count('"name": "run tests.functions.add"') == 1, worker.text()
    assert "Overriding" not in worker.text()


def test_flushing_where_there_is_no_sdk(seen: Seen, caplog: pytest.LogCaptureFixture) -> None:
    """The API's own providers have nothing to flush."""
    caplog.set_level(logging.WARNING)
    assert not hasattr(trace.get_tracer_provider(), "force_flush")
    spans.watch.flush()
    assert caplog.records == []
