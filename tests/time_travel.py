"""Time is moved by moving rows, never by moving a clock: due-ness is PostgreSQL's to judge."""

import datetime as dt
from typing import Any

from pgwerk_django.models import Job, Schedule, database_now
from pgwerk_django.registry import define

HOUR = dt.timedelta(hours=1)
MINUTE = dt.timedelta(minutes=1)
SECOND = dt.timedelta(seconds=1)


def now() -> dt.datetime:
    return database_now("default")


def make(func: Any = "tests.functions.noop", *, ago: dt.timedelta | None = None, **options: Any) -> Schedule:
    """A schedule; with `ago`, one whose next run was that long ago (and, for an interval, on its grid)."""
    columns = define(func, {"interval": 60, **options} if "cron" not in options else options).columns
    row = Schedule(**columns)
    if ago is not None:
        row.next_run_at = now() - ago
        row.anchor_at = row.next_run_at
    row.save(force_insert=True)
    row.refresh_from_db()
    return row


def make_due(row: Schedule, ago: dt.timedelta = SECOND) -> dt.datetime:
    """Move the next run to the past; what it was moved to."""
    due_at = now() - ago
    Schedule.objects.filter(pk=row.pk).update(next_run_at=due_at, replan=False)
    return due_at


def jobs(row: Schedule | str, **conditions: Any) -> list[Job]:
    name = row if isinstance(row, str) else row.name
    return list(Job.objects.filter(schedule_name=name, **conditions).order_by("due_at", "kind"))


def statuses(row: Schedule) -> list[str]:
    return [job.status for job in jobs(row)]


def reread(row: Schedule) -> Schedule:
    return Schedule.objects.get(pk=row.pk)
