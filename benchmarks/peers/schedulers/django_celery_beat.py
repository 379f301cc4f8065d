"""`celery beat` with django-celery-beat's DatabaseScheduler; the broker is Redis."""

import datetime as dt
import os
import sys

import django
import environ
from celery import Celery
from django.conf import settings
from django.core.management import call_command

if not settings.configured:
    settings.configure(
        DATABASES={"default": environ.Env().db("DATABASE_URL")},
        INSTALLED_APPS=["django_celery_beat"],
        USE_TZ=True,
        TIME_ZONE="UTC",
    )
    django.setup()

app = Celery("benchmarks", broker=os.environ["PGWERK_BENCH_BROKER"])


def fill(count: int) -> None:
    from django_celery_beat.models import IntervalSchedule, PeriodicTask

    call_command("migrate", verbosity=0)
    hourly = IntervalSchedule.objects.create(every=1, period=IntervalSchedule.HOURS)
    before = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=90)
    PeriodicTask.objects.bulk_create(
        PeriodicTask(name=f"nothing_{n}", task="nothing", interval=hourly, last_run_at=before) for n in range(count)
    )


def run() -> None:
    app.Beat(scheduler_cls="django_celery_beat.schedulers:DatabaseScheduler", quiet=True, loglevel="WARNING").run()


if __name__ == "__main__":
    fill(int(sys.argv[2])) if sys.argv[1] == "fill" else run()
