"""The schedules under attack, in two versions of the code, and the functions that they run."""

import os
import threading

from pgwerk_django import schedule
from pgwerk_django.jobs import current_job
from pgwerk_django.models import Job
from pgwerk_django.targets import TARGETS, ForeignTarget
from tests.chaos import ledger

OLD, NEW = "old", "new"


def work() -> None:
    take(0)


def work_for_a_while() -> None:
    take(0.3)


def work_for_seconds() -> None:
    take(2)


def work_through_an_outage() -> None:
    take(12)


def take(seconds: float) -> None:
    began()
    if seconds:
        threading.Event().wait(seconds)
    done()


def began() -> None:
    note("began", worker=os.getppid())


def done() -> None:
    note("done")


def note(what: str, **values: int) -> None:
    job = current_job()
    assert job is not None
    ledger.note(what, job=str(job.pk), claims=job.claims, pid=os.getpid(), **values)


class Engine(ForeignTarget):
    """Somebody else's engine: what is handed over stands in the ledger."""

    name = "chaos"
    honours = frozenset({"priority"})

    def function_problems(self, function: str) -> "list[str]":  # type: ignore[override]
        return []

    def send(self, job: Job) -> str:
        ledger.note("sent", job=str(job.pk), by=os.getpid())
        return job.key


def declare(version: str) -> None:
    """What this version of the code says."""
    TARGETS[Engine.name] = Engine()
    kept = {"_max_attempts": 5, "_backoff": 1}
    schedule(work, interval=1, _name="all", _misfire="ALL", **kept)
    schedule(work, interval=1, _name="latest", _misfire="LATEST", _misfire_grace=2, _overlap="ALLOW", **kept)
    schedule(work, interval=2, _name="skip", _misfire="SKIP", _misfire_grace=2, _overlap="ALLOW", **kept)
    schedule(work_for_a_while, interval=1, _name="buffer", _queue="slow", **kept)
    schedule(work_for_a_while, interval=2, _name="one at a time", _overlap="SKIP", _queue="slow", **kept)
    schedule(work, interval=3, _name="tried once", _misfire="ALL")
    schedule(work, interval=1, _name="handed over", _misfire="ALL", _target=Engine.name)
    schedule(work, cron="* * * * *", _name="cron", _misfire="ALL", _timezone="Europe/Paris", **kept)
    schedule(work, cron="*/2 * * * *", _name="cron far away", _misfire="ALL", _timezone="Asia/Kathmandu", **kept)
    if version == OLD:
        schedule(work, interval=2, _name="changes", _misfire="ALL", **kept)
        schedule(work, interval=2, _name="only old", _misfire="ALL", **kept)
    else:
        schedule(work, interval=3, _name="changes", _misfire="ALL", **kept)
        schedule(work, interval=2, _name="only new", _misfire="ALL", **kept)
