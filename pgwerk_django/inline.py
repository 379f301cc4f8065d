"""A worker in the caller's thread and on its connections, for tests: the same statements, functions and signals, no process."""

import asyncio
import contextlib
import datetime as dt
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from asgiref.sync import async_to_sync
from django.db import connections
from django.utils import timezone, translation
from psycopg.pq import TransactionStatus

from pgwerk_django import conf, signals
from pgwerk_django.claims import FIRST, WAITING, Claims, event_of, job_of
from pgwerk_django.exceptions import JobCancelled, JobTimeout, PgwerkError, TooManyJobs, TransactionLeftOpen
from pgwerk_django.execution import Call, Outcome, acalled, called, is_async, is_left_open, log_failure
from pgwerk_django.jobs import CurrentJob, running
from pgwerk_django.models import Job, Status

NO_PROCESS = 0  # no row of `Process` has this id


class Inline(Claims):
    """Runs jobs one by one. With `now` all is written at that instant, at which no time passes."""

    def __init__(self, *, using: str, now: dt.datetime | None, only: str = "true") -> None:
        """Take none but the jobs for which the condition `only` holds."""
        super().__init__(NO_PROCESS, "test", lease=conf.current().LEASE, using=using)
        self._now = now
        self._only = only

    def work(self, *, queues: Sequence[str] = (), max_jobs: int, raising: bool) -> list[Job]:
        """Run what waits, the first to run first, until nothing does: the jobs that ran, re-read."""
        ran: list[uuid.UUID] = []
        while rows := self.claim(1, queues):
            job = job_of(rows[0], self._using)
            if len(ran) == max_jobs:
                self.hand_back([(job.pk, job.claims)])
                raise TooManyJobs(max_jobs, f"does a job enqueue itself? The next was {job.function} ({job.key})")
            ran.append(job.pk)
            self._run(job, raising=raising)
        found = Job.objects.using(self._using).in_bulk(ran)
        return [found[pk] for pk in dict.fromkeys(ran) if pk in found]

    def _run(self, job: Job, *, raising: bool) -> None:
        held = (job.pk, job.claims)
        said: list[dict[str, Any]] = []
        self.begin({held: 0})
        signals.send_now(signals.job_started, job=job)
        started = time.monotonic()
        outcome, raised = run(CurrentJob(job, report=said.append, now=self._now))
        outcome.seconds = outcome.ended - started
        if said:
            self.progress({held: json.dumps(said[-1])})
        finished = self.finish([(held, outcome)]).get(job.pk)
        if finished is not None:  # else it has deleted itself
            job.status, job.error, job.started_at = finished.status, outcome.error, finished.started_at
            signal, event = event_of(job, job.attempt, outcome, finished.status)
            signals.send_now(signal, **event)
        if raised is not None and (raising or isinstance(raised, KeyboardInterrupt)):
            raised.add_note(f"in the job {job.key} ({job.function})")
            raise raised

    def _sent(self, statement: str, parameters: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        statement = statement.replace(WAITING, f"{WAITING} AND {self._only}")
        # Where the order is anyone's guess with a worker, a test has the same each time.
        statement = statement.replace(FIRST, f"{FIRST}, due_at, enqueued_at, id")
        if self._now is None:
            return statement, parameters
        # How long ago it ended, and how long it ran: each an array, of the one job at hand.
        no_time: dict[str, Any] = {name: "{0}" for name in ("agos", "seconds") if name in parameters}
        return statement.replace("statement_timestamp()", "%(now)s"), {**parameters, **no_time, "now": self._now}


def run(job: CurrentJob) -> tuple[Outcome, BaseException | None]:
    """How a job ended, and what it raised; None also when somebody cancelled it.

    Of the timeouts only those of async functions are kept: it takes another process to stop a plain one.
    """
    try:
        call = _Call(job, job.function, job.args, job.kwargs)
    except BaseException as error:  # noqa: BLE001  # a module may raise what it likes
        outcome = Outcome.failure(job.row, error)
        log_failure(job, outcome, error)
        return outcome, error
    try:
        with running(job), _amid_the_callers():
            outcome = async_to_sync(acalled)(call, _within_timeout) if is_async(call.func) else called(call)
    except JobCancelled as error:
        return call.end(call.failure(error)), None
    except BaseException as error:  # noqa: BLE001  # as in a worker's process
        return call.end(call.failure(error)), error
    outcome = call.end(outcome)
    return outcome, PgwerkError(outcome.error) if outcome.status == Status.FAILED else None


class _Call(Call):
    def _does_not_fit(self, error: BaseException) -> bool:
        return False  # there is no worker with newer code, to which the job could be left


async def _within_timeout(call: Call) -> Any:
    clock = asyncio.timeout(call.job.timeout)
    try:
        async with clock:
            return await call.acall()
    except TimeoutError:
        if clock.expired():
            raise JobTimeout(call.job.timeout) from None
        raise  # its own


@contextlib.contextmanager
def _amid_the_callers() -> Iterator[None]:
    """A job finds Django as in a worker; its caller finds its own language, time zone and transactions as they were.

    Raises `TransactionLeftOpen` once what the job left open is rolled back.
    """
    language, zone = translation.get_language(), timezone.get_current_timezone()
    translation.deactivate()
    timezone.deactivate()
    outer = {each.alias: _Savepoint(each) for each in connections.all(initialized_only=True) if each.in_atomic_block}
    left_open: list[str] = []
    try:
        yield
    finally:
        translation.deactivate()
        timezone.deactivate()
        if language != translation.get_language():
            translation.activate(language)
        if zone != timezone.get_current_timezone():
            timezone.activate(zone)
        for connection in connections.all(initialized_only=True):
            if connection.alias in outer:
                if outer[connection.alias].end():
                    left_open.append(connection.alias)
            elif is_left_open(connection):
                left_open.append(connection.alias)
                connection.close()
                del connections[connection.alias]
    if left_open:
        raise TransactionLeftOpen(left_open)


class _Savepoint:
    """Within the caller's transaction, where it goes on from when a job broke it: outside of one only a statement had failed.

    No block of Django's: in that a job could have no durable one of its own.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._id = connection.savepoint()
        self._before = [len(each) for each in self._of_django()]

    def _of_django(self) -> tuple[list[Any], list[Any], list[Any]]:
        return self._connection.atomic_blocks, self._connection.savepoint_ids, self._connection.run_on_commit

    def end(self) -> bool:
        """Whether the job left a block open."""
        connection = self._connection
        is_left_open = len(connection.atomic_blocks) > self._before[0]
        if is_left_open or connection.needs_rollback or self._is_broken():
            connection.needs_rollback = False
            connection.savepoint_rollback(self._id)
            for remembered, length in zip(self._of_django(), self._before, strict=True):
                del remembered[length:]
        connection.savepoint_commit(self._id)
        return is_left_open

    def _is_broken(self) -> bool:
        """Whether a statement failed that no block of Django's was around. Elsewhere than in PostgreSQL that breaks nothing."""
        connection = self._connection
        if connection.vendor != "postgresql":
            return False
        return bool(connection.connection.info.transaction_status == TransactionStatus.INERROR)
