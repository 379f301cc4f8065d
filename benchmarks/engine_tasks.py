"""What `benchmarks.targets` hands over: the same nothing, as a task of each kind."""

import os
from importlib.util import find_spec

from celery import Celery

if find_spec("django.tasks"):
    from django.tasks import task
else:
    from django_tasks import task  # type: ignore[no-redef]

app = Celery("benchmarks", broker=f"{os.environ['PGWERK_BENCH_REDIS']}/0", set_as_current=True)


@app.task(ignore_result=True)
def in_celery(number: int) -> None: ...


@task(backend="database")
def in_database(number: int) -> None: ...


@task(backend="rq")
def in_rq(number: int) -> None: ...


def in_pgwerk(number: int) -> None: ...
