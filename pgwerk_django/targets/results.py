"""Our jobs in the words of Django Tasks: a `TaskResult` for who asks, and where a Task runs, its context and its signals.

`task_started` and `task_finished` are sent where the function is called, right before and right after: so receivers find
its thread, its context variables and, when it failed, the exception. What a job comes to is only written after that.
"""

import copy
import dataclasses
import datetime as dt
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from pgwerk_django.exceptions import FunctionNotFound, JobCancelled, JobSkipped, PgwerkError, class_path, shown
from pgwerk_django.framework import framework
from pgwerk_django.models import Job, Status
from pgwerk_django.targets.base import found_at
from pgwerk_django.targets.django_tasks import is_task

ALIAS = "task_backend"  # in `meta`: the alias in TASKS that enqueued a job, where that is not its Task's own

# Why a job has FAILED in the framework's eyes that never ran to an error.
_NEVER_RAN: dict[str, type[PgwerkError]] = {Status.CANCELLED: JobCancelled, Status.SKIPPED: JobSkipped}


def meta_of(task: Any, alias: str) -> dict[str, str]:
    """What a job must remember of the Task that enqueues it. Raises `FunctionNotFound` where a worker would not find that."""
    found = found_at(task.module_path)
    if not is_task(found):
        raise FunctionNotFound(f"{task.module_path!r} must lead to the Task itself, got {shown(found)}")
    return {} if found.backend == alias else {ALIAS: alias}


def task_of(job: Job) -> Any:
    """The Task that a job runs, as it was enqueued; None where its function is not one (any more)."""
    try:
        found = found_at(job.function)
    except FunctionNotFound:
        return None
    return enqueued(found, job)


def enqueued(found: Any, job: Job) -> Any:
    """`found`, as it was enqueued; None where it is no Task that our own backend may have."""
    alias = backend_of(found, job.meta.get(ALIAS)) if is_task(found) else None
    if alias is None:
        return None
    given = {
        "priority": job.priority,
        "queue_name": job.queue,
        "run_after": None if job.run_at == job.enqueued_at else job.run_at,
        "backend": alias,
    }
    # By `using()` it would be validated: what was enqueued is so, whatever TASKS says by now.
    task = object.__new__(type(found))
    for field in dataclasses.fields(found):
        object.__setattr__(task, field.name, given.get(field.name, getattr(found, field.name)))
    return task


def backend_of(task: Any, remembered: Any = None) -> str | None:
    """An alias in TASKS of our own backend: the one that a job remembers, else the Task's own, else any."""
    return next(filter(_is_ours, (remembered, task.backend, *framework().task_backends)), None)


def _is_ours(alias: Any) -> bool:
    try:
        return bool(getattr(framework().task_backends[alias], "runs_in_pgwerk", False))
    except Exception:  # noqa: BLE001  # None, somebody's own `meta`, a backend that cannot be imported
        return False


def result_of(job: Job, task: Any) -> Any:
    """The `TaskResult` of a job as its row is now."""
    status, starts = _status(job), [*_starts(job)]
    result = framework().TaskResult(
        task=task,
        id=str(job.pk),
        status=framework().TaskResultStatus[status],
        enqueued_at=job.enqueued_at,
        started_at=starts[0] if starts else None,
        last_attempted_at=starts[-1] if starts else None,
        finished_at=job.finished_at,
        args=job.args,
        kwargs=job.kwargs,
        backend=task.backend,
        errors=list(_errors(job)),
        worker_ids=list(_worker_ids(job)),
    )
    object.__setattr__(result, "_return_value", job.result if status == Status.SUCCESSFUL else None)
    return result


def _status(job: Job) -> str:
    if job.status == Status.RUNNING and job.prefetched:
        return Status.READY
    return Status.FAILED if job.status in _NEVER_RAN else job.status


def _starts(job: Job) -> Iterator[dt.datetime]:
    """When each attempt began, as far as that is on record."""
    for error in job.errors:
        if error.get("started_at"):
            yield dt.datetime.fromisoformat(error["started_at"])
    if job.started_at is not None:
        yield job.started_at


def _errors(job: Job) -> Iterator[Any]:
    """Of earlier attempts, and of the last."""
    for error in job.errors:
        yield _error(error.get("exception", ""), error["error"])
    if job.error and job.status not in (Status.READY, Status.RUNNING):  # there it is an earlier one's still
        yield _error(job.exception, job.error)
    elif job.status in _NEVER_RAN:
        yield _error(class_path(_NEVER_RAN[job.status]), job.reason or job.status.lower())


def _error(exception: str, text: str) -> Any:
    return framework("base").TaskError(exception_class_path=exception or class_path(PgwerkError), traceback=text)


def _worker_ids(job: Job) -> Iterator[str]:
    """One for each attempt that began: those that failed are in `errors`, the last has its worker on the row."""
    for error in job.errors:
        yield error.get("worker", "")
    if job.worker_id is not None and not job.prefetched:
        yield job.worker_name


def begun(job: Job, clock: Callable[[], dt.datetime]) -> Job:
    """The row of a job that asks for itself: that it began may be yet to be written."""
    return _with(job, prefetched=False, started_at=clock()) if job.prefetched else job


class TaskRun:
    """A Task of our own backend that runs in this process."""

    def __init__(self, task: Any, job: Job, clock: Callable[[], dt.datetime]) -> None:
        """Instants are those of `clock`: on record will be PostgreSQL's."""
        self.task = task
        self._clock = clock
        self._row = _with(job, prefetched=False, started_at=clock())
        self._result = result_of(self._row, task)

    @property
    def context(self) -> list[Any]:
        """What its function takes before its own arguments."""
        return [framework().TaskContext(task_result=self._result)] if self.task.takes_context else []

    def started(self) -> None:
        _send("task_started", self._result)

    def finished(self, status: str, result: str | None, error: str, exception: str) -> None:
        """For good."""
        value = None if result is None else json.loads(result)
        row = _with(self._row, status=status, result=value, error=error, exception=exception, finished_at=self._clock())
        _send("task_finished", result_of(row, self.task))


def finished_elsewhere(job: Job, seconds: float) -> None:
    """Tell of a job that just ended after so many seconds, with its process or against its will, and could not itself.

    Only if its Task is known here already: to import its module may be what ended the process.
    """
    module, _dot, name = job.function.rpartition(".")
    task = enqueued(getattr(sys.modules.get(module), name, None), job)
    if task is not None:
        now = dt.datetime.now(dt.UTC)
        started_at = now - dt.timedelta(seconds=seconds)
        _send("task_finished", result_of(_with(job, prefetched=False, started_at=started_at, finished_at=now), task))


def _send(signal: str, result: Any) -> None:
    # A receiver's error is logged, and is no error of the job's.
    sender = type(framework().task_backends[result.backend])
    getattr(framework("signals"), signal).send_robust(sender, task_result=result)


def _with(job: Job, **columns: Any) -> Job:
    changed = copy.copy(job)
    for column, value in columns.items():
        setattr(changed, column, value)
    return changed
