"""`TASKS = {"default": {"BACKEND": "pgwerk_django.backend.PgwerkBackend"}}`: Django Tasks as jobs of ours.

`task.enqueue()` writes a job in the caller's transaction, and `manage.py runworker` runs it. A project's first `@task` may come
before its models: so nothing here imports one until it is asked for something.
"""

import functools
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from django.apps import apps
from django.core import checks
from django.core.exceptions import ImproperlyConfigured

from pgwerk_django import conf
from pgwerk_django import registry as declared
from pgwerk_django.exceptions import shown, text_of
from pgwerk_django.framework import framework

# In OPTIONS, for all tasks of an alias: what `jobs.enqueue` takes for each job.
OPTIONS: Mapping[str, Callable[[object, str], Any]] = {
    "MAX_ATTEMPTS": declared.attempts,
    "BACKOFF": declared.backoff,
    "TIMEOUT": declared.timeout,
    "RESULT_TTL": declared.ttl,
    "FAILURE_TTL": declared.ttl,
}


class PgwerkBackend(framework("backends.base").BaseTaskBackend):  # type: ignore[misc]  # either framework's
    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True
    runs_in_pgwerk = True  # by which our targets know it

    def enqueue(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Write the job in the caller's transaction: who is outside of that sees it, and workers run it, once it commits.

        Raises `TypeError` or `ValueError` for arguments that are not JSON or do not fit the function, `ImproperlyConfigured`
        for OPTIONS that cannot be.
        """
        from pgwerk_django import jobs
        from pgwerk_django.targets.results import meta_of, result_of

        self.validate_task(task)
        job = jobs.enqueue_call(
            task,
            declared.json_value(list(args), "args", default=declared.plain),
            declared.json_value(dict(kwargs), "kwargs", default=declared.plain),
            at=task.run_after,
            options={
                "_queue": task.queue_name,
                "_priority": int(task.priority),
                "_meta": meta_of(task, self.alias),
                **{f"_{column}": value for column, value in self.columns.items()},
            },
        )
        result = result_of(job, task)
        framework("signals").task_enqueued.send(type(self), task_result=result)
        return result

    def get_result(self, result_id: Any) -> Any:
        """Raises `TaskResultDoesNotExist`, also for the id of a job that is no Task's (or no longer)."""
        from pgwerk_django.jobs import current_job
        from pgwerk_django.models import Job
        from pgwerk_django.targets.results import begun, result_of, task_of

        missing = framework("exceptions").TaskResultDoesNotExist
        if not isinstance(result_id, str | uuid.UUID):
            raise missing(shown(result_id))
        try:
            job = Job.objects.using(conf.current().DATABASE).get(pk=uuid.UUID(str(result_id)), target="worker")
        except (ValueError, Job.DoesNotExist) as error:
            raise missing(result_id) from error
        task = task_of(job)
        if task is None:
            raise missing(f"{result_id}: {job.function!r} is not a Task")
        running = current_job()
        return result_of(begun(job, running.clock) if running and running.pk == job.pk else job, task)

    @functools.cached_property
    def columns(self) -> dict[str, Any]:
        """What OPTIONS says of each job. Raises `ImproperlyConfigured`, naming the option."""
        if problems := self._problems():
            raise ImproperlyConfigured(problems[0])
        return {name.lower(): OPTIONS[name](value, name) for name, value in self.options.items()}

    def check(self, **kwargs: Any) -> list[checks.CheckMessage]:
        return [*super().check(**kwargs), *self._check_options(), *self._check_app()]

    def _check_options(self) -> list[checks.CheckMessage]:
        """Each entry of the `OPTIONS` of an alias in `TASKS` that uses our backend is known and can be used."""
        return [checks.Error(problem, id="pgwerk_django.E010") for problem in self._problems()]

    def _check_app(self) -> list[checks.CheckMessage]:
        """Where our backend is in `TASKS`, our app is in `INSTALLED_APPS`."""
        if apps.is_installed("pgwerk_django"):
            return []
        return [
            checks.Error(
                f"TASKS[{self.alias!r}] uses {type(self).__name__}, but its table is not there",
                hint="Add 'pgwerk_django' to INSTALLED_APPS.",
                id="pgwerk_django.E011",
            )
        ]

    def _problems(self) -> list[str]:
        where = f"TASKS[{self.alias!r}]['OPTIONS']"
        if not isinstance(self.options, Mapping):
            return [f"{where} must be a dictionary, got {shown(self.options)}"]
        found = []
        for name, value in self.options.items():
            if name not in OPTIONS:
                found.append(f"{where}[{name!r}] is unknown: expected one of {', '.join(OPTIONS)}")
                continue
            try:
                OPTIONS[name](value, f"{where}[{name!r}]")
            except (TypeError, ValueError) as error:
                found.append(text_of(error))
        return found
