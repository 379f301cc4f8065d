"""Hand-over as people see it: what waits for which engine, and why it could not be sent so far."""

import datetime as dt
from typing import Any, NamedTuple

from django.db import transaction
from django.utils.html import format_html
from django.utils.translation import gettext, ngettext

from pgwerk_django.admin.display import EMPTY, brief, moment, shorten
from pgwerk_django.models import Job, Status

MOST_COUNTED = 10_000
LONGEST_ERROR = 200


class Outgoing(NamedTuple):
    """What waits for one target."""

    target: str
    waiting: int
    oldest: dt.datetime
    failed: int  # of them could not be sent so far
    error: str  # of one of those, in a line


_OUTGOING = f"""
SELECT target, count(*), min(enqueued_at), count(error), (array_agg(error) FILTER (WHERE error IS NOT NULL))[1]
FROM (
    SELECT target, enqueued_at, nullif(right(error, 1000), '') AS error FROM _pgwerk_jobs
    WHERE status = 'READY' AND target <> 'worker' LIMIT {MOST_COUNTED}
) AS waiting GROUP BY target ORDER BY target
"""  # noqa: S608  a number of ours


def outgoing(using: str) -> list[Outgoing]:
    with transaction.get_connection(using).cursor() as cursor:
        cursor.execute(_OUTGOING)
        return [
            Outgoing(target, waiting, oldest, failed, last_line(error or ""))
            for target, waiting, oldest, failed, error in cursor.fetchall()
        ]


def last_line(error: str) -> str:
    """Of a traceback, what was raised."""
    lines = error.strip().splitlines()
    return lines[-1][:LONGEST_ERROR] if lines else ""


def handover_of(job: Any) -> str:
    """How far a job is on its way to another engine."""
    if job.target == "worker" or job.status not in (Status.READY, Status.FORWARDED):
        return EMPTY
    if job.status == Status.FORWARDED:
        words = gettext("handed over to %(target)s at")
        return format_html("{} {}", words % {"target": job.target}, moment(job.finished_at))
    if not job.attempt:
        return gettext("waits to be handed over to %(target)s") % {"target": job.target}
    words = ngettext(
        "could not be handed over to %(target)s, %(n)d try so far; the next one at",
        "could not be handed over to %(target)s, %(n)d tries so far; the next one at",
        job.attempt,
    )
    when = brief(job.run_at, job.judged_at)
    return format_html("{} {}", words % {"target": job.target, "n": job.attempt}, when)


def briefly(job: Any) -> str:
    """In a list: only what is in its way."""
    if job.target == "worker" or job.status != Status.READY or not job.attempt:
        return ""
    return shorten(gettext("cannot be handed over to %(target)s") % {"target": job.target})


def waiting_job(row: Any) -> Job | None:
    """The oldest job of a schedule that waits to be handed over."""
    jobs = Job.objects.using(row._state.db).open().filter(schedule=row.pk, status=Status.READY)
    return jobs.exclude(target="worker").order_by("pk").only("error", "due_at", "enqueued_at").first()
