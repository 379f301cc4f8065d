"""Metrics: what is in the database, read at each scrape; what a process does, counted by it."""

import contextlib
import datetime as dt
import logging
import re
import socket
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections, transaction
from django.test import RequestFactory
from django.urls import path
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from pgwerk_django import gauges, measurements, metrics, signals
from pgwerk_django.jobs import enqueue, pause_queue
from pgwerk_django.measurements import Capped, Counting
from pgwerk_django.models import Job, Process, Queue, Schedule
from pgwerk_django.scheduler import Scheduler
from pgwerk_django.test import run_jobs
from tests import functions
from tests.time_travel import HOUR, MINUTE, SECOND, make, now
from tests.waiting import wait_until

NOON = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
urlpatterns = [path("metrics", metrics.view)]


def samples(text: str) -> dict[str, float]:
    """`name{label=value,…}` and its value."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()) if value)
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def scraped() -> dict[str, float]:
    response = metrics.view(RequestFactory().get("/metrics"))
    assert response.status_code == 200
    return samples(response.content.decode())


class Heard:
    """A recorder that remembers."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, ...], float] = {}
        self.values: dict[tuple[str, ...], list[float]] = {}

    def add(self, counter: measurements.Measure, amount: int, *labels: str) -> None:
        assert len(labels) == len(counter.labels)
        key = (counter.name, *labels)
        self.counts[key] = self.counts.get(key, 0) + amount

    def observe(self, histogram: measurements.Measure, value: float, *labels: str) -> None:
        assert len(labels) == len(histogram.labels)
        self.values.setdefault((histogram.name, *labels), []).append(value)


@pytest.fixture
def heard() -> Iterator[Heard]:
    recorder = Heard()
    counting = Counting(recorder)
    counting.start()
    yield recorder
    counting.stop()


# -- what is in the database -----------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_an_empty_site() -> None:
    found = scraped()
    assert found["pgwerk_up"] == 1
    assert (found["pgwerk_schedules_due"], found["pgwerk_schedules_late"], found["pgwerk_lag_seconds"]) == (0, 0, 0)
    assert found["pgwerk_processes{role=scheduler}"] == found["pgwerk_processes{role=worker}"] == 0
    assert "pgwerk_last_tick_age_seconds" not in found


@pytest.mark.django_db(transaction=True)
def test_schedules_by_state_and_their_lag() -> None:
    make(ago=HOUR, _name="late")
    make(ago=HOUR, _name="patient", _misfire_grace=2 * 3600)
    make(ago=-HOUR, _name="to come")
    make(ago=HOUR, _name="paused")
    make(ago=HOUR, _name="paused and triggered")
    make(_name="ended")
    make(_name="broken")
    make(_name="broken and paused")
    names = Schedule.objects.filter
    names(name__startswith="paused").pause()
    names(name="broken and paused").pause()
    names(name="paused and triggered").trigger()
    names(name="ended").update(next_run_at=None)
    names(name__startswith="broken").update(next_run_at=None, error="no such zone")
    found = scraped()
    states = {state: found[f"pgwerk_schedules{{state={state}}}"] for state in gauges.STATES}
    assert states == {"active": 3, "ended": 1, "paused": 2, "error": 2}
    assert (found["pgwerk_schedules_due"], found["pgwerk_schedules_late"]) == (3, 1)
    assert 3600 <= found["pgwerk_lag_seconds"] < 7200


@pytest.mark.django_db(transaction=True)
def test_the_lag_of_a_paused_schedule_is_that_of_its_trigger() -> None:
    row = make(ago=HOUR)
    Schedule.objects.pause()
    Schedule.objects.trigger()
    assert Schedule.objects.get().next_run_at == row.next_run_at
    assert scraped()["pgwerk_lag_seconds"] < 600


@pytest.mark.django_db(transaction=True)
def test_queues_by_what_waits_and_how_long() -> None:
    instant = now()
    for queue, priority, run_at in (
        ("mail", 5, instant + HOUR),  # neither what is to run later
        ("mail", 5, instant - MINUTE),  # nor what goes first
        ("mail", 0, instant - HOUR),  # hides who has waited longest
        ("mail", 0, instant - SECOND),
        ("later", 0, instant + HOUR),
    ):
        Job.objects.create(queue=queue, priority=priority, run_at=run_at)
    Job.objects.create(queue="mail", status="RUNNING")
    Job.objects.create(queue="done", status="SUCCESSFUL")
    Job.objects.create(queue="mail", target="celery", run_at=instant - HOUR, enqueued_at=instant - HOUR)
    Queue.objects.create(name="empty")
    pause_queue("later")
    Process.objects.create(role="worker", queues=["mail", "named"])
    Process.objects.create(role="worker", queues=[])
    Process.objects.create(role="worker", queues=[], heartbeat_at=instant - HOUR)
    found = scraped()
    jobs = {name: value for name, value in found.items() if name.startswith("pgwerk_queue_jobs") and value}
    assert jobs == {
        "pgwerk_queue_jobs{queue=mail,state=waiting}": 3,
        "pgwerk_queue_jobs{queue=mail,state=later}": 1,
        "pgwerk_queue_jobs{queue=mail,state=running}": 1,
        "pgwerk_queue_jobs{queue=later,state=later}": 1,
    }
    assert 3600 <= found["pgwerk_queue_oldest_seconds{queue=mail}"] < 7200
    assert found["pgwerk_queue_oldest_seconds{queue=later}"] == 0
    assert [found[f"pgwerk_queue_paused{{queue={name}}}"] for name in ("mail", "later")] == [0, 1]
    assert [found[f"pgwerk_queue_workers{{queue={name}}}"] for name in ("mail", "later", "named")] == [2, 1, 2]
    assert found["pgwerk_queue_jobs{queue=empty,state=waiting}"] == 0
    assert found["pgwerk_outbox_jobs{target=celery}"] == 1
    assert 3600 <= found["pgwerk_outbox_oldest_seconds{target=celery}"] < 7200
    assert found["pgwerk_processes{role=worker}"] == 2


@pytest.mark.django_db(transaction=True)
def test_who_cannot_be_sent_grows_older_with_each_try() -> None:
    """Each failure moves `run_at`."""
    instant = now()
    Job.objects.create(target="celery", attempt=3, run_at=instant + MINUTE, enqueued_at=instant - HOUR)
    assert scraped()["pgwerk_outbox_oldest_seconds{target=celery}"] >= 3600


@pytest.mark.django_db(transaction=True)
def test_the_last_tick_is_that_of_the_scheduler_that_ticked_last() -> None:
    for ago in (HOUR, MINUTE):
        Process.objects.create(role="scheduler", last_tick_at=now() - ago)
    assert 60 <= scraped()["pgwerk_last_tick_age_seconds"] < 600


@pytest.mark.django_db(transaction=True)
def test_a_thousand_queues_are_no_thousand_series() -> None:
    """And what has no series of its own is counted all the same."""
    Job.objects.bulk_create([Job(queue=f"tenant-{number:03}") for number in range(1000)])
    found = scraped()
    series = {name for name in found if name.startswith("pgwerk_queue_oldest_seconds")}
    assert len(series) == measurements.MOST_QUEUES + 1
    waiting = [value for name, value in found.items() if re.match(r"pgwerk_queue_jobs.*state=waiting", name)]
    assert sum(waiting) == 1000
    assert found[f"pgwerk_queue_jobs{{queue={measurements.OTHER},state=waiting}}"] == 900


@pytest.mark.django_db(transaction=True)
def test_no_more_is_counted_than_anybody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "MOST_COUNTED", 3)
    for name in ("_DUE", "_SCHEDULES", "_OUTBOX", "_RUNNING"):
        monkeypatch.setattr(gauges, name, getattr(gauges, name).replace("10000", "3"))
    for number in range(5):
        make(ago=HOUR, _name=f"due {number}")
    Job.objects.bulk_create(
        [
            Job(status=status, target=target)
            for status, target in (("READY", "worker"), ("READY", "celery"), ("RUNNING", "worker"))
            for _ in range(5)
        ]
    )
    found = scraped()
    assert found["pgwerk_schedules_due"] == found["pgwerk_schedules{state=active}"] == 3
    assert found["pgwerk_queue_jobs{queue=default,state=waiting}"] == found["pgwerk_outbox_jobs{target=celery}"] == 3
    assert found["pgwerk_queue_jobs{queue=default,state=running}"] == 3


def plans() -> dict[str, str]:
    """By which way a scrape comes to what it reads."""
    places = {"queues": [f"queue{n}" for n in range(3)], "priorities": [0, 0, 0], "limit": 1000}
    given = {"_BEYOND": ["queue0"], "_COUNTED": places}
    found = {}
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(gauges._SETTINGS)
        for name in ("_DUE", "_SCHEDULES", "_PLACES", "_COUNTED", "_BEYOND", "_RUNNING", "_OUTBOX"):
            cursor.execute("EXPLAIN " + getattr(gauges, name), given.get(name, []))
            found[name] = "\n".join(row[0] for row in cursor.fetchall())
    return found


@pytest.mark.django_db(transaction=True)
def test_every_statement_is_led_by_an_index() -> None:
    """Also where the planner knows nothing of how much waits by now: a bitmap is made whole, whatever the LIMIT."""
    with connection.cursor() as cursor:
        cursor.execute("""
            INSERT INTO _pgwerk_schedules (name, cron, next_run_at, paused)
            SELECT 's' || n, '@daily', statement_timestamp() + interval '1 hour', n % 1000 = 0
            FROM generate_series(1, 20000) AS n
        """)
        cursor.execute("""
            INSERT INTO _pgwerk_jobs (status, queue, target, finished_at, expires_at)
            SELECT CASE WHEN n % 1000 > 2 THEN 'SUCCESSFUL' WHEN n % 1000 = 2 THEN 'RUNNING' ELSE 'READY' END,
                'queue' || n % 3, CASE WHEN n % 1000 = 1 THEN 'celery' ELSE 'worker' END, now(),
                CASE WHEN n % 1000 > 2 THEN now() + interval '1 day' END
            FROM generate_series(1, 50000) AS n
        """)
        cursor.execute("ANALYZE _pgwerk_schedules, _pgwerk_jobs")
        usual = plans()
        cursor.execute("UPDATE _pgwerk_jobs SET status = 'READY', expires_at = NULL")
        full = plans()
    for found in (usual, full):
        for name, index in (
            ("_DUE", "pgwerk_due"),
            ("_SCHEDULES", "pgwerk_due"),
            ("_SCHEDULES", "pgwerk_paused"),
            ("_PLACES", "pgwerk_claim"),
            ("_COUNTED", "pgwerk_claim"),
            ("_BEYOND", "pgwerk_claim"),
            ("_RUNNING", "pgwerk_running"),
            ("_OUTBOX", "pgwerk_outbox"),
        ):
            assert index in found[name], found[name]
            assert not re.search("Seq Scan|Bitmap", found[name]), found[name]


@pytest.mark.django_db(transaction=True)
def test_what_is_read_is_shared_among_the_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many full queues cost no more than a few; but one that is full has what the empty ones leave."""
    monkeypatch.setattr(gauges, "MOST_READ", 40)
    rows = {"a": 1, "b": 30, "c": 1, "d": 0}

    def waiting() -> dict[str, float]:
        found = scraped()
        return {name: found[f"pgwerk_queue_jobs{{queue={name},state=waiting}}"] for name in rows if rows[name]}

    Job.objects.bulk_create([Job(queue=queue) for queue, number in rows.items() for _ in range(number)])
    assert waiting() == {"a": 1, "b": 30, "c": 1}
    Job.objects.bulk_create([Job(queue=queue) for queue in "abcd" for _ in range(50)])
    rows["d"] = 50
    assert waiting() == {"a": 10, "b": 10, "c": 10, "d": 10}


# -- a database that is away -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def database_at(address: tuple[str, int], settings: Any) -> Iterator[str]:
    host, port = address
    connections.databases["away"] = {**connections.databases["default"], "HOST": host, "PORT": str(port)}
    try:
        yield "away"
    finally:
        del connections.databases["away"]


def test_a_database_that_refuses(settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = taken.getsockname()
    caplog.set_level(logging.WARNING, "pgwerk_django")
    with database_at(address, settings) as using:
        registry = CollectorRegistry()
        registry.register(metrics.StateCollector(using))
        for _ in range(3):
            assert [(each.name, each.samples[0].value) for each in registry.collect()] == [("pgwerk_up", 0)]
    (line,) = [record.getMessage() for record in caplog.records]  # once
    assert line.startswith("metrics_failed error=")


def test_a_database_that_never_answers(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks is told so; no second thread waits for it."""
    monkeypatch.setattr(gauges, "WITHIN", 0.2)
    asked = []
    connect = psycopg.connect
    monkeypatch.setattr(
        psycopg, "connect", lambda **given: asked.append(1) or connect(**{**given, "connect_timeout": 20})
    )
    with socket.create_server(("127.0.0.1", 0)) as silent, database_at(silent.getsockname(), settings) as using:
        state = gauges.State(using)
        for _ in range(3):
            assert state.readings() == [gauges.Reading(measurements.UP, (), 0)]
        assert asked == [1]
        thread = state._asked
        silent.settimeout(20)
        silent.accept()[0].close()
        assert thread is not None
        with pytest.raises(psycopg.OperationalError):
            thread.result(20)


@pytest.mark.django_db
def test_tables_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "_DUE", "SELECT FROM no_such_table")
    assert [(name, value) for name, value in scraped().items() if "pgwerk" in name] == [("pgwerk_up", 0)]


@pytest.mark.django_db(transaction=True)
def test_a_slow_statement_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "_SETTINGS", gauges._SETTINGS.replace("'4s'", "'100ms'"))
    monkeypatch.setattr(gauges, "_DUE", "SELECT 1, 1, 1 FROM pg_sleep(60)")
    assert scraped()["pgwerk_up"] == 0


def test_to_register_it_asks_the_database_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "measure", lambda using: pytest.fail("it was asked"))
    registry = CollectorRegistry(auto_describe=True)
    registry.register(metrics.StateCollector())
    with pytest.raises(ValueError, match="pgwerk_up"):  # its names are taken
        registry.register(metrics.StateCollector())


# -- the view --------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
@pytest.mark.urls("tests.test_metrics")
def test_the_view_speaks_both_formats(client: Any) -> None:
    plain = client.get("/metrics")
    assert plain["Content-Type"].startswith("text/plain; version=")
    assert "no-store" in plain["Cache-Control"]
    newer = client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert newer["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert newer.content.endswith(b"# EOF\n")
    assert client.post("/metrics").status_code == 405


@pytest.mark.django_db(transaction=True)
def test_it_is_read_where_the_app_is(elsewhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    measure = gauges.measure
    monkeypatch.setattr(gauges, "measure", lambda using: asked.append(using) or measure(using))
    assert scraped()["pgwerk_up"] == 1
    assert asked == [elsewhere]


# -- what a process does ---------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_ticks_are_counted(scheduler: Scheduler, heard: Heard) -> None:
    make(ago=25 * SECOND, interval=10, _name="overlaps")  # one fires, two overlap
    make(ago=HOUR, interval=60, _name="missed")  # one fires, the others are one row
    make(_name="bad")
    Schedule.objects.filter(name="bad").update(cron="* * * * *", interval=None, timezone="Nowhere/Else")
    Schedule.objects.filter(name="bad").update(next_run_at=now() - SECOND, replan=False)
    scheduler.tick()
    assert heard.counts[("pgwerk.fired",)] == 2
    assert heard.counts[("pgwerk.skipped", "misfire")] == 1
    assert heard.counts[("pgwerk.skipped", "overlap")] == 2
    assert heard.counts[("pgwerk.set_aside",)] == 1
    assert len(heard.values[("pgwerk.tick.duration",)]) == 1
    (late,) = heard.values[("pgwerk.tick.lateness",)]
    assert 3600 <= late < 7200


@pytest.mark.django_db(transaction=True)
def test_what_was_to_be_planned_anew_was_not_late(scheduler: Scheduler, heard: Heard) -> None:
    make(ago=HOUR, _name="x")
    Schedule.objects.update(cron="0 0 1 1 *", interval=None)  # the trigger has it planned anew
    Schedule.objects.update(next_run_at=now() - HOUR, replan=True)
    Schedule.objects.update(replan=True)
    scheduler.tick()
    assert heard.values[("pgwerk.tick.lateness",)] == [0]


@pytest.mark.django_db
def test_jobs_are_counted_by_how_they_end(heard: Heard) -> None:
    enqueue(functions.add, 1, _queue="sums")
    enqueue(functions.fail, _max_attempts=2, _backoff=0)
    run_jobs()
    runs = {key[1:3]: number for key, number in heard.counts.items() if key[0] == "pgwerk.job.runs" and number}
    assert runs == {("sums", "successful"): 1, ("default", "retried"): 1, ("default", "failed"): 1}
    assert heard.counts[("pgwerk.job.runs", "sums", "failed", "")] == 0  # so that the first one is an increase
    assert len(heard.values[("pgwerk.job.duration", "default")]) == 2
    assert len(heard.values[("pgwerk.job.lateness", "sums")]) == 1


@pytest.mark.django_db(transaction=True)
def test_recovered_and_late_jobs_are_counted(heard: Heard) -> None:
    from pgwerk_django.housekeeping import keep_house

    gone = {"status": "RUNNING", "lease_until": now() - HOUR, "attempt": 1}
    Job.objects.create(**gone, max_attempts=1)
    Job.objects.create(**gone, max_attempts=2)
    Job.objects.create(start_by=now() - HOUR)
    keep_house(using="default")
    assert heard.counts[("pgwerk.jobs.recovered", "failed")] == 1
    assert heard.counts[("pgwerk.jobs.recovered", "retried")] == 1
    assert heard.counts[("pgwerk.skipped", "not started in time")] == 1


@pytest.mark.parametrize(
    ("due", "enqueued", "run", "late"),
    [
        (-60, -10, -10, 60),  # the tick was late
        (-60, -60, -20, 20),  # jitter, or a retry, had it wait until then
        (None, -30, -30, 30),
        (None, -30, -10, 10),  # a delay
        (None, 0, 5, 0),  # started by a clock that is behind
    ],
)
def test_how_late_a_job_started(due: int | None, enqueued: int, run: int, late: int) -> None:
    at = [None if ago is None else NOON + ago * SECOND for ago in (due, enqueued, run)]
    job = Job(due_at=at[0], enqueued_at=at[1], run_at=at[2], started_at=NOON)
    assert measurements.lateness(job) == late


def test_labels_are_bounded(heard: Heard, settings: Any) -> None:
    for number in range(1000):
        signals.send_now(signals.jobs_forwarded, target=f"django_tasks:{number}", jobs=["x"])
        job = Job(queue=f"q{number}", schedule_name=f"s{number}", run_at=NOON, enqueued_at=NOON, started_at=NOON)
        signals.send_now(signals.job_finished, job=job, attempt=1, seconds=1)
    assert len({key[1] for key in heard.counts if key[0] == "pgwerk.job.runs"}) == measurements.MOST_QUEUES + 1
    assert {key[3] for key in heard.counts if key[0] == "pgwerk.job.runs"} == {""}
    assert len({key[1] for key in heard.counts if key[0] == "pgwerk.jobs.forwarded"}) == measurements.MOST_TARGETS + 1
    assert heard.counts[("pgwerk.job.runs", measurements.OTHER, "successful", "")] == 900


def test_schedules_have_series_of_their_own_only_by_the_settings(settings: Any) -> None:
    settings.PGWERK = {"AUTODISCOVER": (), "METRICS_SCHEDULES": 2}
    recorder = Heard()
    counting = Counting(recorder)
    counting.start()
    try:
        for name in ("a", "b", "c", "d", "a", ""):
            job = Job(schedule_name=name, run_at=NOON, enqueued_at=NOON, started_at=NOON)
            signals.send_now(signals.job_finished, job=job, attempt=1, seconds=1)
    finally:
        counting.stop()
    runs = {key[3]: number for key, number in recorder.counts.items() if key[0] == "pgwerk.job.runs" and number}
    assert runs == {"a": 2, "b": 1, measurements.OTHER: 2, "": 1}


def test_a_name_keeps_its_label_once_it_has_one() -> None:
    capped = Capped(1)
    assert [capped(name) for name in ("a", "b", "a")] == ["a", measurements.OTHER, "a"]


def test_a_process_tells_prometheus(heard: Heard) -> None:
    registry = CollectorRegistry()
    counting = Counting(metrics.Counters(registry))
    counting.start()
    try:
        signals.send_now(signals.process_started, role="worker", queues=["mail"])
        signals.send_now(signals.child_died, pid=1, how="killed")
        event = {"schedules": 3, "jobs": 2, "skipped": 3, "misfired": 1, "milliseconds": 30, "late": 2}
        signals.send_now(signals.ticked, **event)
    finally:
        counting.stop()
    value = registry.get_sample_value
    assert value("pgwerk_fired_total") == 2
    assert value("pgwerk_children_died_total") == 1
    assert value("pgwerk_skipped_total", {"reason": "overlap"}) == 2
    assert value("pgwerk_tick_lateness_seconds_bucket", {"le": "1.0"}) == 0
    assert value("pgwerk_tick_lateness_seconds_bucket", {"le": "2.5"}) == 1
    assert value("pgwerk_tick_duration_seconds_sum") == 0.03
    assert value("pgwerk_job_runs_total", {"queue": "mail", "outcome": "failed", "schedule": ""}) == 0


# -- the commands ----------------------------------------------------------------------------------------------------


def served_at(process: Any) -> str:
    wait_until(lambda: process.says("metrics_served"))
    (port,) = re.findall(r"metrics_served address=\S+:(\d+)", process.text())
    return f"http://127.0.0.1:{port}/metrics"


def get(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url, timeout=20) as response:
        return samples(response.read().decode())


@pytest.mark.django_db(transaction=True)
def test_real_processes_are_scraped(manage: Any) -> None:
    """A scheduler tells what is in the database, and what it does; a worker what it does."""
    make(functions.noop, ago=SECOND, interval=1, _name="tick", _overlap="ALLOW")
    enqueue(functions.fail, _queue="mail")
    scheduler = manage("runscheduler", "--on-unregistered=keep", "--metrics-port=0", "--metrics-host=127.0.0.1")
    worker = manage("runworker", "--concurrency=1", "--metrics-port=0", "--metrics-host=127.0.0.1")
    of_scheduler, of_worker = served_at(scheduler), served_at(worker)
    wait_until(lambda: get(of_worker).get("pgwerk_job_runs_total{outcome=successful,queue=default}", 0) >= 2)
    wait_until(lambda: get(of_worker).get("pgwerk_job_runs_total{outcome=failed,queue=mail}") == 1)
    wait_until(lambda: get(of_scheduler).get("pgwerk_tick_duration_seconds_count", 0) >= 2)
    told = get(of_scheduler)
    assert told["pgwerk_fired_total"] >= 2
    assert told["pgwerk_up"] == told["pgwerk_processes{role=scheduler}"] == told["pgwerk_processes{role=worker}"] == 1
    assert get(of_worker)["pgwerk_job_lateness_seconds_count{queue=mail}"] == 1
    assert "pgwerk_up" not in get(of_worker)
    assert (scheduler.stop(), worker.stop()) == (0, 0)


@pytest.mark.django_db(transaction=True)
def test_a_port_that_is_taken_is_one_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CommandError, match=f"--metrics-port={port}: .*in use"):
            call_command("runworker", burst=True, metrics_port=port, metrics_host="127.0.0.1", verbosity=0)


@pytest.mark.django_db(transaction=True)
def test_the_command_can_run_twice_in_one_process() -> None:
    for _ in range(2):
        call_command("runscheduler", once=True, metrics_port=0, metrics_host="127.0.0.1", verbosity=0)


@pytest.mark.django_db(transaction=True)
def test_a_missing_extra_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "pgwerk_django.metrics")
    monkeypatch.delattr("pgwerk_django.metrics")
    with pytest.raises(CommandError, match=r"pip install 'pgwerk-django\[prometheus\]'"):
        call_command("runworker", burst=True, metrics_port=0, verbosity=0)
