"""`python -m tests.chaos.person`: does what each line of its input says, by the API of the product, and notes it in the ledger."""

import contextlib
import ctypes
import json
import os
import signal
import sys

import django

from tests.chaos.process import PR_SET_PDEATHSIG

ENDED = ("FAILED", "CANCELLED")


def main() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ["PGAPPNAME"] = f"person-{os.getpid()}"
    django.setup()
    from django.db import DatabaseError, connection, connections

    for line in sys.stdin:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = '1s'")
            act(**json.loads(line))
        except DatabaseError:  # of a fault: people try again later
            with contextlib.suppress(DatabaseError):
                connections.close_all()


def act(do: str, name: str = "") -> None:
    from pgwerk_django.housekeeping import clean_up
    from pgwerk_django.models import Job, Schedule, Status
    from pgwerk_django.scheduler import Scheduler

    match do:
        case "cancel" | "force":
            for job in some(Job.objects.filter(status__in=[Status.READY, Status.RUNNING])):
                note(do, job)
                job.cancel(by="ada", force=do == "force")
        case "retry":
            for job in some(Job.objects.filter(status__in=ENDED)):
                note(do, job)
                job.retry(by="ada")
        case "clean":
            clean_up(using="default")
        case "pause" | "resume" | "trigger":
            with contextlib.suppress(Schedule.DoesNotExist):
                getattr(Scheduler(), do)(name, **({} if do == "resume" else {"by": "ada"}))
        case _:
            raise ValueError(f"a person does not know how to {do!r}")


def some(jobs):  # type: ignore[no-untyped-def]
    return list(jobs.order_by("?")[:2])


def note(did: str, job) -> None:  # type: ignore[no-untyped-def]
    from tests.chaos import ledger

    ledger.note("person", did=did, job=str(job.pk))


if __name__ == "__main__":
    main()
