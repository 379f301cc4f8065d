"""Tasks of Django's framework that tests schedule, one for each backend."""

import os
from importlib.util import find_spec
from typing import Any

from asgiref.sync import sync_to_async

from pgwerk_django.exceptions import JobCancelled
from pgwerk_django.framework import framework
from pgwerk_django.jobs import current_job
from tests import functions

if find_spec("django.tasks"):
    from django.tasks import task
    from django.tasks.signals import task_enqueued
else:
    from django_tasks import task  # type: ignore[no-redef]
    from django_tasks.signals import task_enqueued  # type: ignore[no-redef]
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


@task(takes_context=True)
def with_context(context: Any, *args: Any) -> list[Any]:
    functions.write("context", context.attempt, *args)
    return list(args)


@task
async def asynchronous(*args: Any) -> list[Any]:
    functions.write("asynchronous", *args)
    return list(args)


# -- of our own backend ----------------------------------------------------------------------------------------------


@task(backend="pgwerk")
def ours(*args: Any, **kwargs: Any) -> list[Any]:
    functions.write("ours", *args)
    return [list(args), kwargs]


@task(backend="pgwerk")
async def ours_async(*args: Any, **kwargs: Any) -> list[Any]:
    return [list(args), kwargs]


@task(backend="pgwerk", queue_name="reports", priority=7)
def add(a: int, b: int = 0) -> int:
    return a + b


def tell(task_result: Any, **event: Any) -> None:
    """In which process a signal is received."""
    if os.environ.get("PGWERK_TEST_TELL"):
        functions.write(task_result.status, os.getpid())


framework("signals").task_started.connect(tell)
framework("signals").task_finished.connect(tell)


def seen(context: Any) -> dict[str, Any]:
    result, job = context.task_result, current_job()
    assert job is not None
    return {
        "id": result.id,
        "job": str(job.row.pk),
        "attempt": [context.attempt, result.attempts, job.attempt],
        "workers": result.worker_ids,
        "status": result.status,
        "backend": result.backend,
        "errors": [error.traceback.splitlines()[-1] for error in result.errors],
        "queue": result.task.queue_name,
        "args": [result.args, result.kwargs],
        "started": result.started_at >= result.enqueued_at,
    }


@task(backend="pgwerk", takes_context=True)
def context_seen(context: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    return seen(context)


@task(backend="pgwerk", takes_context=True)
async def context_seen_async(context: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    await sync_to_async(context.task_result.refresh)()
    return seen(context)


@task(backend="patient", takes_context=True)
def third_time_lucky(context: Any) -> dict[str, Any]:
    if context.attempt < 3:
        raise ValueError(f"attempt {context.attempt}")
    return seen(context)


@task(backend="pgwerk")
def fail(text: str = "no luck") -> None:
    raise ValueError(text)


@task(backend="pgwerk")
async def fail_async(text: str = "no luck") -> None:
    raise ValueError(text)


@task(backend="pgwerk")
def leave() -> None:
    raise SystemExit("on its own")


@task(backend="pgwerk")
def give_up() -> None:
    raise JobCancelled("no need")


@task(backend="pgwerk")
def returns(what: str) -> Any:
    return {
        "none": None,
        "tuple": (1, (2, 3)),
        "bytes": {"name": b"caf\xc3\xa9"},
        "range": range(3),
        "latin-1": b"caf\xe9",
        "set": {1},
        "function": returns.func,
    }[what]


@task(backend="pgwerk")
def die() -> None:
    functions.kill_own_process()


@task(backend="pgwerk")
def hang() -> None:
    functions.sleep()


@task(backend="pgwerk")
def named(_queue: str, _key: str) -> list[str]:
    return [_queue, _key]


def plain() -> None: ...


detached = task(backend="pgwerk")(plain)
