"""Celery: jobs become messages to its broker, with the job's key as the task's id.

A task need not be importable here: one that is not is sent by its name, to workers that know it.
"""

import uuid
from collections.abc import Iterator
from typing import Any

from django.db.models.functions import Now

from pgwerk_django import conf
from pgwerk_django.exceptions import FunctionNotFound, TargetUnavailable, class_path, shown, summary_of, text_of
from pgwerk_django.models import Job, Status, expiry
from pgwerk_django.registry import json_value
from pgwerk_django.targets.base import ForeignTarget, found_at
from pgwerk_django.text import LONGEST_ERROR, storable, storable_end

DEFAULT_QUEUE = "default"  # leaves it to Celery's own routes
LONGEST_ID = 255  # bytes, in AMQP
LONGEST_REPR = 10_000
# One more connection, should the pool's have gone stale. What fails then is tried again by us.
PUBLISH = {"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.1}


def _package() -> Any:
    """The one place where the package is imported."""
    try:
        import celery.schedules
        import celery.signals
    except ImportError as error:
        raise TargetUnavailable("celery is not installed: pip install 'pgwerk-django[celery]'") from error
    return celery


def current_app() -> Any:
    """The project's Celery app."""
    return _package().current_app


def crontab(**fields: str) -> Any:
    """Celery's own reading of a crontab, whose grammar is not cron's. Raises `ValueError`."""
    schedules = _package().schedules
    try:
        return schedules.crontab(**fields)
    except (schedules.ParseException, ValueError, TypeError) as error:
        name = next((name for name, value in fields.items() if not _can_read(name, value)), "")
        given = ", ".join(f"{each}={fields[each]!r}" for each in ([name] if name else fields))
        raise ValueError(f"Celery cannot read its crontab ({given}): {text_of(error)}") from error


def _can_read(field: str, value: object) -> bool:
    try:
        _package().schedules.crontab(**{field: value})
    except Exception:  # noqa: BLE001
        return False
    return True


class CeleryTarget(ForeignTarget):
    name = "celery"
    honours = frozenset({"priority", "timeout", "start_within"})

    def accepts(self, found: Any) -> bool:
        return all(hasattr(found, attribute) for attribute in ("apply_async", "AsyncResult", "signature"))

    def function_problems(self, function: str) -> Iterator[str]:
        try:
            self._task(function)
        except (TargetUnavailable, FunctionNotFound) as error:
            yield text_of(error)

    def demand_problems(self, row: Any) -> Iterator[str]:
        yield from super().demand_problems(row)
        if not 0 <= row.priority <= 255:
            yield f"_priority must be from 0 to 255 for the target 'celery', got {row.priority}"

    def send(self, job: Job) -> str:
        task = self._task(job.function)
        options = {"task_id": task_id(job.key), "retry": True, "retry_policy": PUBLISH}
        if job.queue != DEFAULT_QUEUE:
            options["queue"] = job.queue
        if job.priority:
            options["priority"] = job.priority
        if job.timeout is not None:
            options["time_limit"] = job.timeout
        if job.start_by is not None:
            options["expires"] = job.start_by
        if task is None:
            result = current_app().send_task(job.function, job.args, job.kwargs, **options)
        else:
            result = task.apply_async(job.args, job.kwargs, **options)
        return str(getattr(result, "id", None) or options["task_id"])  # some classes give back None

    def _task(self, path: str) -> Any:
        """The task at a path, or of that name; None for one that is known elsewhere."""
        app = current_app()
        try:
            found = found_at(path)
        except FunctionNotFound:
            return app.tasks.get(path)
        if not self.accepts(found):
            raise FunctionNotFound(f"{path!r} is not a Celery task, but {type(found).__name__}")
        return found


# -- what became of them: said by Celery's workers, where `PGWERK["CELERY_RESULTS"]` is on


def listen_for_results() -> None:
    """In each process that runs tasks: write starts and ends on the jobs' rows. Without Celery there are none."""
    try:
        signals = _package().signals
    except TargetUnavailable:
        return
    for signal, receiver in (
        (signals.task_prerun, _started),
        (signals.task_success, _succeeded),
        (signals.task_failure, _failed),
        (signals.task_revoked, _revoked),
    ):
        signal.connect(receiver, weak=False, dispatch_uid=f"pgwerk_django.{receiver.__name__}")


def _started(task_id: str, task: Any, **event: Any) -> None:
    _open(task_id).update(
        started_at=Now(), finished_at=None, worker_name=storable(str(task.request.hostname or ""), 300)
    )


def _succeeded(sender: Any, result: Any, **event: Any) -> None:
    try:
        value = json_value(result, "the task's result")
    except (TypeError, ValueError):  # any serializer of Celery's may carry what JSON does not
        value = _shown(result)
    _end(sender.request.id, Status.SUCCESSFUL, result=value)


def _failed(task_id: str, exception: BaseException, einfo: Any, **event: Any) -> None:
    # `einfo` holds the traceback as text; its `__str__` gives that.
    error = text_of(einfo) if einfo else summary_of(exception)
    error = storable_end(error, LONGEST_ERROR)
    _end(task_id, Status.FAILED, error=error, exception=storable(class_path(exception)))


def _shown(result: object) -> str:
    try:
        return storable(repr(result), LONGEST_REPR)
    except Exception:  # noqa: BLE001  # any class has a `__repr__` of its own
        return storable(shown(result))


def _revoked(request: Any, expired: bool = False, **event: Any) -> None:
    if expired:
        _end(request.id, Status.SKIPPED, reason="it did not start in time")
    else:
        _end(request.id, Status.CANCELLED, reason="revoked in Celery")


def _open(task_id: str) -> Any:
    """The job, if it is not on record how it ended. Its worker may be faster than who marks that it was sent."""
    jobs = Job.objects.using(conf.current().DATABASE)
    return jobs.filter(key=task_id, target=CeleryTarget.name, status__in=[Status.READY, Status.FORWARDED])


def _end(task_id: str, status: Status, **columns: Any) -> None:
    settings = conf.current()
    failed = status in (Status.FAILED, Status.CANCELLED)
    expires_at = expiry("failure_ttl", settings.FAILURE_TTL) if failed else expiry("result_ttl", settings.RESULT_TTL)
    _open(task_id).update(status=status, finished_at=Now(), expires_at=expires_at, lease_until=None, **columns)


def task_id(key: str) -> str:
    """The key itself; where that is too long for a message, a UUID made of it."""
    return key if len(key.encode()) <= LONGEST_ID else str(uuid.uuid5(uuid.NAMESPACE_URL, key))
