"""What is measured, once for every exporter, and how events become numbers. Loads no model.

State that lives in PostgreSQL (`GAUGES`) is read there when somebody asks: see `gauges`. What happens (`COUNTERS`,
`HISTOGRAMS`) is counted by the process that does it, from its signals. To count rows instead would be wrong: they expire.
"""

import functools
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from django.dispatch import Signal

from pgwerk_django import conf, signals

OTHER = "(other)"  # the label of what goes beyond the caps below
MOST_QUEUES = 100
MOST_TARGETS = 20
OUTCOMES = ("successful", "failed", "retried", "cancelled")
REASONS = ("misfire", "overlap", "not started in time")


@dataclass(frozen=True, slots=True)
class Measure:
    """One number, or one for each combination of `labels`. `name` is as OpenTelemetry writes it."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    unit: str = ""
    buckets: tuple[float, ...] = ()

    @property
    def prometheus_name(self) -> str:
        """What OpenTelemetry's exporters make of it for Prometheus, but for the `_total` of counters."""
        return self.name.replace(".", "_") + {"s": "_seconds"}.get(self.unit, "")


_gauge = functools.partial(Measure, kind="gauge")
_counter = functools.partial(Measure, kind="counter")
_histogram = functools.partial(Measure, kind="histogram", unit="s")

UP = _gauge("pgwerk.up", help="Whether the database could be asked: 0 or 1. At 0 the other gauges are missing.")
SCHEDULES = _gauge(
    "pgwerk.schedules", help="Schedules: active, paused, ended, or set aside with an error.", labels=("state",)
)
DUE = _gauge("pgwerk.schedules.due", help="Schedules that are due and wait for a tick.")
LATE = _gauge("pgwerk.schedules.late", help="Those of them that have waited longer than their misfire grace.")
LAG = _gauge(
    "pgwerk.lag", help="How long the longest due schedule has waited for a tick; 0 when none is due.", unit="s"
)
QUEUE_JOBS = _gauge(
    "pgwerk.queue.jobs",
    help="Jobs of a queue that wait and could run now, are to run later (a delay, a retry), or run.",
    labels=("queue", "state"),
)
QUEUE_OLDEST = _gauge(
    "pgwerk.queue.oldest", help="How long the oldest job has waited that could run.", labels=("queue",), unit="s"
)
QUEUE_PAUSED = _gauge("pgwerk.queue.paused", help="Whether somebody paused the queue: 0 or 1.", labels=("queue",))
QUEUE_WORKERS = _gauge("pgwerk.queue.workers", help="Live workers that serve the queue.", labels=("queue",))
OUTBOX_JOBS = _gauge(
    "pgwerk.outbox.jobs", help="Jobs that wait to be handed over to another engine.", labels=("target",)
)
OUTBOX_OLDEST = _gauge(
    "pgwerk.outbox.oldest",
    help="How long the oldest of them has waited, from when it could.",
    labels=("target",),
    unit="s",
)
PROCESSES = _gauge("pgwerk.processes", help="Live processes.", labels=("role",))
TICK_AGE = _gauge(
    "pgwerk.last_tick.age",
    help="Since a live scheduler last looked for what is due; told every 10 s. Missing when none lives.",
    unit="s",
)
GAUGES = (
    UP, SCHEDULES, DUE, LATE, LAG, QUEUE_JOBS, QUEUE_OLDEST, QUEUE_PAUSED, QUEUE_WORKERS, OUTBOX_JOBS, OUTBOX_OLDEST,
    PROCESSES, TICK_AGE,
)  # fmt: skip

FIRED = _counter("pgwerk.fired", help="Jobs made by ticks.")
SKIPPED = _counter(
    "pgwerk.skipped", help="Rows that ticks skipped, and jobs that did not start in time.", labels=("reason",)
)
SET_ASIDE = _counter("pgwerk.set_aside", help="Schedules set aside with an error.")
RUNS = _counter(
    "pgwerk.job.runs",
    help="Runs of jobs that ended. One that failed and has attempts left is retried.",
    labels=("queue", "outcome", "schedule"),
)
RECOVERED = _counter("pgwerk.jobs.recovered", help="Jobs whose worker vanished.", labels=("outcome",))
HANDED_BACK = _counter(
    "pgwerk.jobs.handed_back", help="Running jobs that a worker stopped and gave back when it ended."
)
FORWARDED = _counter("pgwerk.jobs.forwarded", help="Jobs handed over to another engine.", labels=("target",))
LEASES_LOST = _counter("pgwerk.leases.lost", help="Jobs whose lease ran out while they were held.")
CHILDREN_DIED = _counter("pgwerk.children.died", help="Processes that run jobs, and ended by themselves.")
DATABASE_LOSSES = _counter("pgwerk.database.losses", help="Times the database was away.")
COUNTERS = (
    FIRED, SKIPPED, SET_ASIDE, RUNS, RECOVERED, HANDED_BACK, FORWARDED, LEASES_LOST, CHILDREN_DIED, DATABASE_LOSSES,
)  # fmt: skip

_WAITS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 6 * 3600)
TICK_SECONDS = _histogram(
    "pgwerk.tick.duration", help="How long ticks took.", buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
)
TICK_LATENESS = _histogram(
    "pgwerk.tick.lateness", help="Of each tick: how late it noticed the longest due schedule.", buckets=_WAITS
)
JOB_SECONDS = _histogram("pgwerk.job.duration", help="How long jobs ran.", labels=("queue",), buckets=_WAITS)
JOB_LATENESS = _histogram(
    "pgwerk.job.lateness",
    help="How late jobs started: after their due time, or after they could run at all (a delay, jitter, a retry).",
    labels=("queue",),
    buckets=_WAITS,
)
HISTOGRAMS = (TICK_SECONDS, TICK_LATENESS, JOB_SECONDS, JOB_LATENESS)
MEASURES = (*GAUGES, *COUNTERS, *HISTOGRAMS)


class Capped:
    """The first `most` names keep theirs; whoever comes later is one of the others."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._names: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, name: str) -> str:
        return self.see(name)[0]

    def see(self, name: str) -> tuple[str, bool]:
        """Its label, and whether it is new."""
        with self._lock:
            if name in self._names:
                return name, False
            if len(self._names) >= self._most:
                return OTHER, False
            self._names.add(name)
            return name, True


class Recorder(Protocol):
    """An exporter, as far as it is told what happens. Labels come in the order of the measure's own."""

    def add(self, counter: Measure, amount: int, *labels: str) -> None: ...

    def observe(self, histogram: Measure, value: float, *labels: str) -> None: ...


class Counting:
    """Has a recorder told what happens in this process, from `start` to `stop`."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._queues = Capped(MOST_QUEUES)
        self._targets = Capped(MOST_TARGETS)
        self._schedules: Capped | None = None
        self._receivers: Mapping[Signal, Callable[..., None]] = {
            signals.ticked: self._ticked,
            signals.schedule_set_aside: lambda **event: recorder.add(SET_ASIDE, 1),
            signals.process_started: self._process_started,
            signals.job_finished: self._job_ended,
            signals.job_failed: self._job_ended,
            signals.job_cancelled: self._job_ended,
            signals.jobs_not_started: lambda jobs, **event: recorder.add(SKIPPED, len(jobs), REASONS[2]),
            signals.jobs_recovered: self._recovered,
            signals.jobs_handed_back: lambda jobs, **event: recorder.add(HANDED_BACK, len(jobs)),
            signals.jobs_forwarded: self._forwarded,
            signals.lease_lost: lambda **event: recorder.add(LEASES_LOST, 1),
            signals.child_died: lambda **event: recorder.add(CHILDREN_DIED, 1),
            signals.database_lost: lambda **event: recorder.add(DATABASE_LOSSES, 1),
        }

    def start(self) -> None:
        for signal, receiver in self._receivers.items():
            signal.connect(receiver, weak=False, dispatch_uid=self)
        # From the start, so that the first of them is an increase.
        for reason in REASONS:
            self._recorder.add(SKIPPED, 0, reason)
        for outcome in ("failed", "retried"):
            self._recorder.add(RECOVERED, 0, outcome)

    def stop(self) -> None:
        for signal in self._receivers:
            signal.disconnect(dispatch_uid=self)

    def _ticked(self, jobs: int, skipped: int, misfired: int, milliseconds: int, late: float, **event: Any) -> None:
        misfired = min(misfired, skipped)
        self._recorder.add(FIRED, jobs)
        self._recorder.add(SKIPPED, misfired, REASONS[0])
        self._recorder.add(SKIPPED, skipped - misfired, REASONS[1])
        self._recorder.observe(TICK_SECONDS, milliseconds / 1000)
        self._recorder.observe(TICK_LATENESS, late)

    def _process_started(self, role: str, queues: list[str] | None = None, **event: Any) -> None:
        if role == "worker":
            for queue in queues or []:
                self._queue("default" if queue == signals.ALL_QUEUES else queue)

    def _queue(self, name: str) -> str:
        label, is_new = self._queues.see(name)
        if is_new:
            for outcome in OUTCOMES:
                self._recorder.add(RUNS, 0, label, outcome, "")
        return label

    def _job_ended(self, signal: Signal, job: Any, seconds: float, retry_in: float | None = None, **event: Any) -> None:
        queue = self._queue(job.queue)
        if signal is signals.job_failed:
            outcome = "failed" if retry_in is None else "retried"
        else:
            outcome = "successful" if signal is signals.job_finished else "cancelled"
        self._recorder.add(RUNS, 1, queue, outcome, self._schedule(job.schedule_name))
        self._recorder.observe(JOB_SECONDS, seconds, queue)
        self._recorder.observe(JOB_LATENESS, lateness(job), queue)

    def _schedule(self, name: str) -> str:
        """Empty, which to Prometheus is no label at all, unless the settings give schedules series of their own."""
        if not name or not conf.current().METRICS_SCHEDULES:
            return ""
        if self._schedules is None:  # not before: counting may begin before there are settings
            self._schedules = Capped(conf.current().METRICS_SCHEDULES)
        return self._schedules(name)

    def _recovered(self, retried: int, failed: int, **event: Any) -> None:
        self._recorder.add(RECOVERED, retried, "retried")
        self._recorder.add(RECOVERED, failed, "failed")

    def _forwarded(self, target: str, jobs: list[str], **event: Any) -> None:
        self._recorder.add(FORWARDED, len(jobs), self._targets(target))


def lateness(job: Any) -> float:
    """Seconds from when a job was to start to when it did. `run_at` is when it could, `due_at` when it should have.

    They are one, but for the tick that came late: where it wrote the job to run at once, the due time is what counts.
    """
    ran_at_once = job.due_at is not None and job.run_at == job.enqueued_at
    seconds: float = (job.started_at - (job.due_at if ran_at_once else job.run_at)).total_seconds()
    return max(seconds, 0)
