"""Tasks of Django's framework that tests schedule, one for each backend."""

from importlib.util import find_spec
from typing import Any

from tests import functions

if find_spec("django.tasks"):
    from django.tasks import task
    from django.tasks.signals import task_enqueued
else:
    from django_tasks import task  # type: ignore[no-redef]
    from django_tasks.signals import task_enqueued  # type: ignore[no-redef]
if find_spec("django_tasks"):  # of which django-tasks-rq is, on Django 6 as well
    from django_tasks.signals import task_enqueued as task_enqueued_there

    task_enqueued_there.connect(functions.die_if_told)
task_enqueued.connect(functions.die_if_told)


@task
def immediate(*args: Any) -> list[Any]:
    functions.write("immediate", *args)
    return list(args)


@task(backend="dummy")
def dummy(*args: Any) -> None: ...


@task(backend="database", priority=5, queue_name="reports")
def database(*args: Any) -> list[Any]:
    functions.write("database", *args)
    return list(args)


@task(backend="rq")
def rq(*args: Any) -> list[Any]:
    functions.write("rq", *args)
    return list(args)


@task(takes_context=True)
def with_context(context: Any, *args: Any) -> list[Any]:
    functions.write("context", context.attempt, *args)
    return list(args)


@task
async def asynchronous(*args: Any) -> list[Any]:
    functions.write("asynchronous", *args)
    return list(args)
