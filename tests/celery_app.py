"""The Celery app of the tests, and its tasks. Its broker is the Redis that the fixture `redis` starts."""

from typing import Any

import django
from celery import Celery, Task, shared_task
from celery.signals import after_task_publish
from django.apps import apps

from tests.settings import REDIS_URL

app = Celery("tests", broker=f"{REDIS_URL}/0", backend=f"{REDIS_URL}/0", set_as_current=True)
app.conf.update(broker_connection_retry_on_startup=True, worker_hijack_root_logger=False, task_default_queue="celery")

if not apps.ready:  # in a worker of Celery's
    django.setup()

from tests import functions  # noqa: E402

after_task_publish.connect(functions.die_if_told)


@shared_task
def remember(*args: Any, **kwargs: Any) -> list[Any]:
    functions.write("celery", *args)
    return list(args)


@shared_task
def fail(*args: Any) -> None:
    raise ValueError("no luck")


@app.task(bind=True, name="own.name")
def seen(self: Any, *args: Any) -> None:
    """What the message said of it."""
    request = self.request
    functions.write("seen", request.id, request.delivery_info["routing_key"], request.timelimit, request.expires)


class Quiet(Task):  # type: ignore[misc]
    """Of a kind that some projects have: what sends it gives back nothing."""

    def apply_async(self, *args: Any, **options: Any) -> None:
        super().apply_async(*args, **options)


@app.task(base=Quiet)
def quiet(*args: Any) -> None:
    functions.write("quiet", *args)
