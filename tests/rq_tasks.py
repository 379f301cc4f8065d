"""A task of the backend django-tasks-rq, which is the backport's also on Django 6. See `WITH_RQ` in the settings."""

from typing import Any

from django_tasks.signals import task_enqueued

from tests import functions
from tests.django_tasks import task

task_enqueued.connect(functions.die_if_told)


@task(backend="rq")
def rq(*args: Any) -> list[Any]:
    functions.write("rq", *args)
    return list(args)
