"""Django Tasks: `django.tasks` of Django 6, and its backport for Django 5.2, `django_tasks`.

A Task is known by what it has, so that either framework's will do (a backend may bring the other's). Its backend, queue and
priority are its own, where a schedule does not say otherwise.
"""

from collections.abc import Iterator
from typing import Any

from django.db import router
from django.utils.module_loading import import_string

from pgwerk_django import conf
from pgwerk_django.exceptions import FunctionNotFound, text_of
from pgwerk_django.framework import framework
from pgwerk_django.models import Job
from pgwerk_django.targets.base import ForeignTarget, found_at

DEFAULT_QUEUE = "default"


def is_task(found: Any) -> bool:
    return all(hasattr(found, attribute) for attribute in ("module_path", "get_backend", "enqueue", "using"))


def is_ours(found: Any) -> bool:
    """Whether it is a Task whose backend puts it into our own table, so that our worker runs it."""
    return is_task(found) and getattr(_backend_of(found), "runs_in_pgwerk", False)


def columns_of(task: Any) -> dict[str, Any]:
    """What a Task says, by our own names. The earliest instant that it may run at is no due time's own, but all of theirs."""
    return {"queue": task.queue_name, "priority": task.priority, "starts_at": task.run_after}


def _backend_of(task: Any) -> Any:
    try:
        return task.get_backend()
    except Exception:  # noqa: BLE001  # of settings that do not have it: who enqueues the task hears of that
        return None


class DjangoTasksTarget(ForeignTarget):
    """`django_tasks` enqueues a Task with its own backend, `django_tasks:alias` with that one."""

    name = "django_tasks"
    honours = frozenset({"priority"})

    def __init__(self, backend: str = "") -> None:
        self._backend = backend
        if backend:
            self.name = f"{type(self).name}:{backend}"

    def accepts(self, found: Any) -> bool:
        return is_task(found) and not is_ours(found)

    def says(self, found: Any, variant: Any) -> dict[str, Any]:
        other = {"target": f"{type(self).name}:{variant.backend}"} if variant.backend != found.backend else {}
        return {**columns_of(variant), **other}

    def function_problems(self, function: str) -> Iterator[str]:
        try:
            self._task(function)
        except Exception as error:  # noqa: BLE001  # whatever a backend finds wrong with it
            yield text_of(error)

    def problems(self, row: Any) -> Iterator[str]:
        yield from self.function_problems(row.function)
        yield from self.demand_problems(row)
        try:
            self._task_of(row)
        except Exception as error:  # noqa: BLE001
            yield f"{row.function!r} cannot be enqueued as it is scheduled: {text_of(error)}"

    def demand_problems(self, row: Any) -> Iterator[str]:
        yield from super().demand_problems(row)
        aliases = list(framework().task_backends) if self._backend else []
        if self._backend and self._backend not in aliases:
            yield f"_target must name an alias in TASKS ({', '.join(aliases)}), got {self.name!r}"

    def writes_to(self, job: Job) -> str | None:
        backend = self._task_of(job).get_backend()
        if getattr(backend, "runs_in_pgwerk", False):
            return conf.current().DATABASE
        # Of others nobody can tell: this one is the framework's own for databases.
        if any(each.__module__.startswith("django_tasks_db.") for each in type(backend).__mro__):
            return router.db_for_write(import_string("django_tasks_db.models.DBTaskResult"))
        return None

    def send(self, job: Job) -> str:
        return str(self._task_of(job).enqueue(*job.args, **job.kwargs).id)

    def _task_of(self, row: Any) -> Any:
        """The Task, with the queue and the priority that the schedule asks for."""
        return self._task(row.function).using(
            queue_name=None if row.queue == DEFAULT_QUEUE else row.queue,
            priority=row.priority or None,
            backend=self._backend or None,
        )

    def _task(self, path: str) -> Any:
        found = found_at(path)
        if not is_task(found):
            raise FunctionNotFound(f"{path!r} is not a Task of Django's, but {type(found).__name__}")
        return found
