"""Tasks of Django's framework that tests schedule, one for each backend."""

from importlib.util import find_spec
from typing import Any

from tests import functions

if find_spec("django.tasks"):
    from django.tasks import task
else:
    from django_tasks import task  # type: ignore[no-redef]


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
