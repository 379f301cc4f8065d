"""Claim jobs under a lease, run them, finish them: at least once each, and only by whoever holds the claim."""

import datetime as dt
import json
import os
import queue
import random
import threading
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import DataError, close_old_connections, transaction

import pgwerk_django
from pgwerk_django import conf, jobs, registry, signals
from pgwerk_django.exceptions import JobTimeout
from pgwerk_django.loop import Bell, Every, Loop, listening
from pgwerk_django.models import HEARTBEAT, Job, Process, Status
from pgwerk_django.targets.worker import call, load

WORKER_LOST = "worker lost"
LONGEST_ERROR = 50_000
FIRST_BACKOFF = 10  # seconds before the second attempt, where the schedule says nothing else
LONGEST_BACKOFF = 3600

# Queue by queue, so that each claim is one walk along the index `pgwerk_claim`; statuses are literals for its sake.
_CLAIM = """
WITH RECURSIVE all_queues (name) AS (
    (SELECT queue FROM _pgwerk_jobs WHERE status = 'READY' AND %(every)s ORDER BY queue LIMIT 1)
    UNION ALL
    SELECT (SELECT queue FROM _pgwerk_jobs WHERE status = 'READY' AND queue > all_queues.name ORDER BY queue LIMIT 1)
    FROM all_queues WHERE all_queues.name IS NOT NULL
), queues (name, place) AS (
    SELECT name, place FROM unnest(%(queues)s::text[]) WITH ORDINALITY AS named (name, place)
    UNION ALL SELECT name, 0 FROM all_queues WHERE name IS NOT NULL
), picked AS MATERIALIZED (
    SELECT waiting.id FROM queues CROSS JOIN LATERAL (
        SELECT id, priority, run_at FROM _pgwerk_jobs
        WHERE queue = queues.name AND status = 'READY' AND run_at <= statement_timestamp() AND target = 'worker'
        ORDER BY priority DESC, run_at LIMIT %(limit)s
        FOR UPDATE SKIP LOCKED
    ) waiting
    ORDER BY place, priority DESC, run_at LIMIT %(limit)s
)
UPDATE _pgwerk_jobs job SET
    status = 'RUNNING', attempt = attempt + 1, claims = claims + 1, started_at = statement_timestamp(),
    lease_until = statement_timestamp() + %(lease)s, worker_id = %(worker)s, worker_name = %(worker_name)s
FROM picked WHERE job.id = picked.id
RETURNING job.*
"""

_RENEW = """
UPDATE _pgwerk_jobs job SET lease_until = statement_timestamp() + %(lease)s
FROM unnest(%(ids)s::uuid[], %(claims)s::integer[]) AS mine (id, claims)
WHERE job.id = mine.id AND job.status = 'RUNNING' AND job.claims = mine.claims AND job.worker_id = %(worker)s
RETURNING job.id
"""

_FINISH = """
UPDATE _pgwerk_jobs job SET
    status = mine.status,
    result = mine.result::jsonb,
    error = mine.error,
    errors = CASE WHEN mine.status = 'READY' THEN
        job.errors || jsonb_build_object('attempt', job.attempt, 'at', statement_timestamp(), 'error', mine.error)
        ELSE job.errors END,
    run_at = CASE WHEN mine.status = 'READY' THEN
        statement_timestamp() + mine.delay * interval '1 second' ELSE job.run_at END,
    finished_at = CASE WHEN mine.status <> 'READY' THEN statement_timestamp() END,
    expires_at = CASE mine.status
        WHEN 'SUCCESSFUL' THEN
            statement_timestamp() + coalesce(job.result_ttl, %(result_ttl)s) * interval '1 second'
        WHEN 'FAILED' THEN
            statement_timestamp() + coalesce(job.failure_ttl, %(failure_ttl)s) * interval '1 second' END,
    lease_until = NULL,
    worker_id = CASE WHEN mine.status <> 'READY' THEN job.worker_id END
FROM unnest(
    %(ids)s::uuid[], %(claims)s::integer[], %(statuses)s::text[], %(results)s::text[], %(errors)s::text[],
    %(delays)s::float8[]
) AS mine (id, claims, status, result, error, delay)
WHERE job.id = mine.id AND job.status = 'RUNNING' AND job.claims = mine.claims AND job.worker_id = %(worker)s
RETURNING job.id
"""

_HAND_BACK = """
UPDATE _pgwerk_jobs job SET
    status = 'READY', attempt = job.attempt - 1, lease_until = NULL, worker_id = NULL, started_at = NULL
FROM unnest(%(ids)s::uuid[], %(claims)s::integer[]) AS mine (id, claims)
WHERE job.id = mine.id AND job.status = 'RUNNING' AND job.claims = mine.claims AND job.worker_id = %(worker)s
RETURNING job.id
"""

_RECOVER = """
WITH lost AS MATERIALIZED (
    SELECT id FROM _pgwerk_jobs
    WHERE status = 'RUNNING' AND (lease_until < statement_timestamp() OR lease_until IS NULL)
    FOR UPDATE SKIP LOCKED
)
UPDATE _pgwerk_jobs job SET
    status = CASE WHEN attempt < max_attempts THEN 'READY' ELSE 'FAILED' END,
    error = %(error)s,
    errors = CASE WHEN attempt < max_attempts THEN
        errors || jsonb_build_object('attempt', attempt, 'at', statement_timestamp(), 'error', %(error)s::text)
        ELSE errors END,
    run_at = CASE WHEN attempt < max_attempts THEN statement_timestamp() ELSE run_at END,
    finished_at = CASE WHEN attempt >= max_attempts THEN statement_timestamp() END,
    expires_at = CASE WHEN attempt >= max_attempts THEN
        statement_timestamp() + coalesce(failure_ttl, %(failure_ttl)s) * interval '1 second' END,
    lease_until = NULL,
    worker_id = CASE WHEN attempt >= max_attempts THEN worker_id END
FROM lost WHERE job.id = lost.id
RETURNING status
"""


def recover_lost(*, using: str) -> int:
    """Find jobs whose lease ran out: READY again while attempts remain, else FAILED. How many there were."""
    parameters = {"error": WORKER_LOST, "failure_ttl": conf.current().FAILURE_TTL}
    with transaction.get_connection(using).cursor() as cursor:
        cursor.execute(_RECOVER, parameters)
        statuses = [status for (status,) in cursor.fetchall()]
    if statuses:
        failed = statuses.count(Status.FAILED)
        signals.send(signals.jobs_recovered, using=using, retried=len(statuses) - failed, failed=failed)
    return len(statuses)


def backoff_before(attempt: int, backoff: int | list[int] | None) -> float:
    """Seconds from the failed attempt number `attempt` to the next: as the schedule says, else doubling, with jitter."""
    if isinstance(backoff, list):
        return backoff[min(attempt, len(backoff)) - 1]
    if backoff is not None:
        return backoff
    ceiling: int = min(FIRST_BACKOFF * 2 ** min(attempt - 1, 20), LONGEST_BACKOFF)
    return ceiling * random.uniform(0.5, 1)  # noqa: S311  # spreads retries, guards nothing


@dataclass(slots=True)
class Outcome:
    """How one run of a job ended."""

    job: Job
    status: str
    result: str | None = None
    error: str = ""
    summary: str = ""  # the error in one line
    delay: float = 0
    seconds: float = 0  # how long it ran

    @classmethod
    def success(cls, job: Job, value: object) -> "Outcome":
        try:
            return cls(job, Status.SUCCESSFUL, result=json.dumps(registry.json_value(value, "the job's result")))
        except (TypeError, ValueError) as error:
            # It ran; another attempt would run it again and return the same.
            return cls(job, Status.FAILED, error=str(error), summary=str(error))

    @classmethod
    def failure(cls, job: Job, error: BaseException) -> "Outcome":
        text = str(error) if isinstance(error, JobTimeout) else "".join(traceback.format_exception(error))
        text = text.replace("\0", "\\0").encode("utf-8", "replace").decode()[-LONGEST_ERROR:]
        summary = f"{type(error).__name__}: {error}".splitlines()[0]
        if job.attempt < job.max_attempts:
            delay = backoff_before(job.attempt, job.backoff)
            return cls(job, Status.READY, error=text, summary=summary, delay=delay)
        return cls(job, Status.FAILED, error=text, summary=summary)


@dataclass(slots=True)
class _Running:
    job: Job
    deadline: float | None
    lost: bool = False


class Worker:
    """Runs jobs in threads. Everything said to the queue goes over the loop's one connection, in batches.

    A plain function that runs out its `timeout` is recorded as timed out, but no thread can be stopped from outside: it
    keeps its place until it ends. Async functions are cancelled.
    """

    def __init__(
        self,
        *,
        queues: Sequence[str] = (),
        concurrency: int | None = None,
        using: str | None = None,
        burst: bool = False,
        shutdown_timeout: float = 30,
    ) -> None:
        """Take jobs from `queues`, the first preferred; from every queue when none is named."""
        self.using = using or conf.current().DATABASE
        self.queues = list(queues)
        self.concurrency = concurrency or os.cpu_count() or 1
        self.burst = burst
        self.shutdown_timeout = shutdown_timeout
        self.bell = Bell()
        self._process = Process.here("worker", version=pgwerk_django.__version__, queues=self.queues)
        self._todo: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._outcomes: list[Outcome] = []
        self._running: dict[Any, _Running] = {}
        self._free = self.concurrency
        self._lease = dt.timedelta(seconds=conf.current().LEASE)
        self._time_to_beat = Every(HEARTBEAT)
        self._time_to_renew = Every(self._lease / 3)
        self._time_to_recover = Every(self._lease / 3)
        self._loop: Loop | None = None
        self._stopped = False
        self._threads: list[threading.Thread] = []

    # -- the loop's side

    def run(self) -> None:
        """Work until `stop()`, or, in burst mode, until nothing is waiting."""
        self._loop = Loop(
            self,
            using=self.using,
            bell=self.bell,
            on_lost=signals.send_database_lost,
            on_back=signals.send_database_back,
        )
        with listening(self.bell, "pgwerk_jobs", on_failed=signals.send_listen_failed):
            if self._stopped:
                self._loop.stop()
            self._loop.run()

    def stop(self) -> None:
        """Stop claiming; finish what runs. Safe from any thread and from signal handlers."""
        self._stopped = True
        if self._loop is not None:
            self._loop.stop()

    def step(self) -> float:
        self._begin()
        self._tend()
        claimed = self._claim(self._free) if self._free else 0
        if self.burst and not (claimed or self._running or self._outcomes):
            self.stop()
        return min(conf.current().POLL_INTERVAL, self._until_deadline())

    def close(self) -> None:
        """Finish what runs within `shutdown_timeout`, hand the rest back without spending an attempt."""
        ends = time.monotonic() + self.shutdown_timeout
        while self._running and (left := ends - time.monotonic()) > 0:
            self.bell.wait(min(left, conf.current().POLL_INTERVAL, self._until_deadline()))
            self._tend()
        for _thread in self._threads:
            self._todo.put(None)
        self._tend()
        self._hand_back()
        if self._threads:
            signals.send_now(signals.process_stopped, role="worker")
            self._process.end(using=self.using)

    def _begin(self) -> None:
        if self._threads:
            return
        self._process.beat(using=self.using)
        for number in range(self.concurrency):
            # Daemons: a job that will not end must not keep the process from ending.
            thread = threading.Thread(target=self._work, name=f"pgwerk-worker-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()
        queues = self.queues or ["(all)"]
        signals.send_now(signals.process_started, role="worker", queues=queues, concurrency=self.concurrency)

    def _tend(self) -> None:
        """Everything but claiming: beat, renew, finish, give up on what is too late, find what others lost."""
        if self._time_to_beat():
            self._process.beat(using=self.using, running=len(self._running))
        self._collect()
        self._time_out()
        self._finish()
        if self._running and self._time_to_renew():
            self._renew()
        if self._time_to_recover():
            recover_lost(using=self.using)

    def _claim(self, limit: int) -> int:
        parameters = {
            "every": not self.queues,
            "queues": self.queues,
            "limit": limit,
            "lease": self._lease,
            "worker": self._process.pk,
            "worker_name": str(self._process),
        }
        claimed = list(Job.objects.using(self.using).raw(_CLAIM, parameters))
        self._free -= len(claimed)
        for job in claimed:
            deadline = time.monotonic() + job.timeout if job.timeout else None
            self._running[job.pk, job.claims] = _Running(job, deadline)
            signals.send_now(signals.job_started, job=job)
            self._todo.put(job)
        return len(claimed)

    def _collect(self) -> None:
        """Take what threads have done. What was given up on meanwhile, or lost, only frees its place."""
        while True:
            try:
                outcome = self._done.get_nowait()
            except queue.Empty:
                return
            self._free += 1
            running = self._running.pop((outcome.job.pk, outcome.job.claims), None)
            if running is not None and not running.lost:
                self._outcomes.append(outcome)

    def _time_out(self) -> None:
        now = time.monotonic()
        for key, running in list(self._running.items()):
            if running.deadline is not None and running.deadline <= now:
                del self._running[key]
                outcome = Outcome.failure(running.job, JobTimeout(running.job.timeout or 0))
                outcome.seconds = running.job.timeout or 0
                self._outcomes.append(outcome)

    def _until_deadline(self) -> float:
        deadlines = [running.deadline for running in self._running.values() if running.deadline is not None]
        return max(min(deadlines) - time.monotonic(), 0) if deadlines else float("inf")

    def _finish(self) -> None:
        """Write outcomes, one commit for all. They are kept until that succeeds: a lost database loses none."""
        if not self._outcomes:
            return
        batch = list(self._outcomes)
        try:
            finished = self._write(batch)
        except DataError:
            finished = {pk for outcome in batch for pk in self._write_alone(outcome)}
        del self._outcomes[: len(batch)]
        for outcome in batch:
            if outcome.job.pk in finished:
                self._tell(outcome)
            else:
                signals.send_now(signals.lease_lost, job_id=outcome.job.pk)

    def _write(self, batch: Sequence[Outcome]) -> set[Any]:
        return self._guarded(
            _FINISH,
            [outcome.job for outcome in batch],
            statuses=[str(outcome.status) for outcome in batch],
            results=[outcome.result for outcome in batch],
            errors=[outcome.error for outcome in batch],
            delays=[outcome.delay for outcome in batch],
            result_ttl=conf.current().RESULT_TTL,
            failure_ttl=conf.current().FAILURE_TTL,
        )

    def _write_alone(self, outcome: Outcome) -> set[Any]:
        try:
            return self._write([outcome])
        except DataError as error:
            outcome.status, outcome.result = Status.FAILED, None
            outcome.error = outcome.summary = f"the outcome cannot be stored: {error}"
            return self._write([outcome])

    def _renew(self) -> None:
        held = self._guarded(_RENEW, [running.job for running in self._running.values()], lease=self._lease)
        for running in self._running.values():
            if running.job.pk not in held and not running.lost:
                running.lost = True
                signals.send_now(signals.lease_lost, job_id=running.job.pk)

    def _hand_back(self) -> None:
        if self._running:
            held = [running.job for running in self._running.values()]
            back = self._guarded(_HAND_BACK, held)
            signals.send_now(signals.jobs_handed_back, jobs=[job.key for job in held if job.pk in back])
            self._running.clear()

    def _guarded(self, statement: str, held: Iterable[Job], **parameters: Any) -> set[Any]:
        """Run one of the statements that touch only what this worker holds; the ids of the jobs it still held."""
        held = list(held)
        mine = {"ids": [job.pk for job in held], "claims": [job.claims for job in held], "worker": self._process.pk}
        with transaction.get_connection(self.using).cursor() as cursor:
            cursor.execute(statement, {**mine, **parameters})
            return {pk for (pk,) in cursor.fetchall()}

    def _tell(self, outcome: Outcome) -> None:
        job = outcome.job
        job.status, job.error = outcome.status, outcome.error
        told = {"job": job, "attempt": job.attempt, "seconds": round(outcome.seconds, 3)}
        if outcome.status == Status.SUCCESSFUL:
            signals.send_now(signals.job_finished, **told)
            return
        retry_in = round(outcome.delay, 1) if outcome.status == Status.READY else None
        signals.send_now(signals.job_failed, **told, error=outcome.summary, retry_in=retry_in)

    # -- the threads' side

    def _work(self) -> None:
        while (job := self._todo.get()) is not None:
            started = time.monotonic()
            outcome = self._run_one(job)
            outcome.seconds = time.monotonic() - started
            self._done.put(outcome)
            self.bell.ring()

    def _run_one(self, job: Job) -> Outcome:
        close_old_connections()
        try:
            with jobs.running(job):
                return Outcome.success(job, call(load(job.function), job.args, job.kwargs, job.timeout))
        except BaseException as error:  # noqa: BLE001  # a job that calls sys.exit() must not end its worker's thread
            return Outcome.failure(job, error)
        finally:
            close_old_connections()
