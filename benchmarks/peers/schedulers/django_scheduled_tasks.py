"""django-scheduled-tasks on the backend of django-tasks-db: declared in code, and each fires when it is first seen."""

import datetime as dt
import sys

import django
import environ
from django.conf import settings
from django.core.management import call_command

if not settings.configured:
    settings.configure(
        DATABASES={"default": environ.Env().db("DATABASE_URL")},
        INSTALLED_APPS=["django_tasks_db", "django_scheduled_tasks"],
        TASKS={"default": {"BACKEND": "django_tasks_db.DatabaseBackend"}},
        USE_TZ=True,
    )
    django.setup()

from django.tasks import task


@task()
def nothing(number: int) -> None: ...


def run(count: int) -> None:
    from django_scheduled_tasks.base import periodic_task

    # Its path must be one that can be imported.
    from benchmarks.peers.schedulers import django_scheduled_tasks

    for n in range(count):
        periodic_task(interval=dt.timedelta(hours=1), call_args=(n,), task=django_scheduled_tasks.nothing)
    call_command("run_task_scheduler", verbosity=0)


if __name__ == "__main__":
    call_command("migrate", verbosity=0) if sys.argv[1] == "fill" else run(int(sys.argv[2]))
