"""Celery: jobs become messages to its broker, with the job's key as the task's id.

A task need not be importable here: one that is not is sent by its name, to workers that know it.
"""

import uuid
from collections.abc import Iterator
from typing import Any

from pgwerk_django.exceptions import FunctionNotFound, TargetUnavailable
from pgwerk_django.models import Job
from pgwerk_django.targets.base import ForeignTarget, found_at

DEFAULT_QUEUE = "default"  # leaves it to Celery's own routes
LONGEST_ID = 255  # bytes, in AMQP
# One more connection, should the pool's have gone stale. What fails then is tried again by us.
PUBLISH = {"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.1}


def current_app() -> Any:
    """The project's Celery app. The one place where the package is imported."""
    try:
        import celery
    except ImportError as error:
        raise TargetUnavailable("celery is not installed: pip install 'pgwerk-django[celery]'") from error
    return celery.current_app


class CeleryTarget(ForeignTarget):
    name = "celery"
    honours = frozenset({"priority", "timeout", "start_within"})

    def accepts(self, found: Any) -> bool:
        return all(hasattr(found, attribute) for attribute in ("apply_async", "AsyncResult", "signature"))

    def function_problems(self, function: str) -> Iterator[str]:
        try:
            self._task(function)
        except (TargetUnavailable, FunctionNotFound) as error:
            yield str(error)

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


def task_id(key: str) -> str:
    """The key itself; where that is too long for a message, a UUID made of it."""
    return key if len(key.encode()) <= LONGEST_ID else str(uuid.uuid5(uuid.NAMESPACE_URL, key))
