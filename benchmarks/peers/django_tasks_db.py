"""django-tasks-db, on Django's own tasks or their backport: one job at a time. A manage.py of its own."""

import sys

import django
import environ
from django.conf import settings
from django.core.management import call_command, execute_from_command_line
from django.db import transaction

from benchmarks import functions

if not settings.configured:
    own = django.VERSION >= (6,)
    settings.configure(
        DATABASES={"default": environ.Env().db("DATABASE_URL")},
        INSTALLED_APPS=["django_tasks_db"] if own else ["django_tasks", "django_tasks_db"],
        TASKS={"default": {"BACKEND": "django_tasks_db.DatabaseBackend"}},
        USE_TZ=True,
    )
    django.setup()

if django.VERSION >= (6,):
    from django.tasks import task
else:
    from django_tasks import task


@task()
def nothing() -> None:
    functions.nothing()


def fill(count: int) -> None:
    call_command("migrate", verbosity=0)
    with transaction.atomic():
        for _ in range(count):
            nothing.enqueue()


if __name__ == "__main__":
    if sys.argv[1].isdecimal():
        # Its path must be one that the worker can import.
        from benchmarks.peers import django_tasks_db

        django_tasks_db.fill(int(sys.argv[1]))
    else:
        execute_from_command_line(sys.argv)
