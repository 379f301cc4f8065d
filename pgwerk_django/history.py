"""The last runs of schedules: of fifty of them at once, and of one of them many; and which schedules are failing.

A job's key begins with the name of its schedule and its due time, so the unique index on keys holds the history of each
schedule in order of time. Another index on a table of millions would cost each tick.
"""

import datetime as dt
import uuid
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from django.db import transaction
from django.db.models import Q, QuerySet
from psycopg.types.datetime import TimestamptzLoader

from pgwerk_django.models import Job, Kind, Status

STRIP = 30  # runs that a list shows of each schedule
DECIDED = frozenset({Status.SUCCESSFUL, Status.FAILED})
# Enums make their choices anew each time, which takes longer than the rest of a bar in a strip of runs.
_STATUSES, _KINDS = dict(Status.choices), dict(Kind.choices)
MOST_FAILURES = 5_000  # the newest failures among which failing schedules are looked for


def key_range(name: str) -> tuple[str, str]:
    return f"{name}@0001-01-01T00:00:00.000000Z", f"{name}@9999-12-31T23:59:59.999999Z#trigger"


def jobs_named(jobs: QuerySet[Job], name: str) -> QuerySet[Job]:
    """The jobs of a schedule. A collation may mix others in between the keys: the name decides."""
    first, last = key_range(name)
    return jobs.filter(schedule_name=name, key__gte=first, key__lte=last)


class Run(NamedTuple):
    """What a page shows of a job among many."""

    schedule_name: str
    pk: uuid.UUID
    kind: str
    status: str
    reason: str
    due_at: dt.datetime
    enqueued_at: dt.datetime
    run_at: dt.datetime
    started_at: dt.datetime | None
    finished_at: dt.datetime | None
    claims: int
    judged_at: dt.datetime

    def get_status_display(self) -> str:
        return str(_STATUSES.get(self.status, self.status))

    def get_kind_display(self) -> str:
        return str(_KINDS.get(self.kind, self.kind))


_LAST = """
(SELECT schedule_name, id, kind, status, left(reason, 500), due_at, enqueued_at, run_at, started_at, finished_at, claims,
    statement_timestamp()
FROM _pgwerk_jobs WHERE schedule_name = %s AND key >= %s AND key <= %s AND due_at IS NOT NULL
ORDER BY key DESC LIMIT %s)
"""


def last_runs(names: Sequence[str], *, using: str, n: int = STRIP) -> dict[str, list[Run]]:
    """The last `n` runs of each schedule, the newest first, in one statement.

    Names are in its text once each: of a join the planner can only guess how much of the index it reads, and guesses so
    much that it compiles the statement first.
    """
    found: dict[str, list[Run]] = {name: [] for name in names}
    if names:
        parameters = [value for name in found for value in (name, *key_range(name), n)]
        with transaction.get_connection(using).cursor() as cursor:
            # psycopg's own, in C: Django's takes a tenth of the page for thousands of instants.
            cursor.adapters.register_loader("timestamptz", TimestamptzLoader)
            cursor.execute("UNION ALL".join([_LAST] * len(found)), parameters)
            for run in map(Run._make, cursor.fetchall()):
                found[run.schedule_name].append(run)
    return found


def is_failing(runs: Iterable[Run]) -> bool:
    """Whether the newest one that succeeded or failed has failed; the newest run comes first."""
    return next((run.status == Status.FAILED for run in runs if run.status in DECIDED), False)


# The same in SQL, of the schedule that `name` names; the key of a job says when it was due.
NEWEST_DECIDED = f"""
LATERAL (
    SELECT status, finished_at FROM (
        SELECT key, status, finished_at FROM _pgwerk_jobs AS job
        WHERE job.schedule_name = {{name}} AND job.key >= {{name}} || '@0001-01-01T00:00:00.000000Z'
            AND job.key <= {{name}} || '@9999-12-31T23:59:59.999999Z#trigger'
        ORDER BY key DESC LIMIT {STRIP}
    ) AS last WHERE status IN ('SUCCESSFUL', 'FAILED') ORDER BY key DESC LIMIT 1
)
"""  # noqa: S608  a number of ours

# A schedule is looked at when one of the newest failures is its own.
_FAILING = f"""
SELECT failed.schedule_name FROM (
    SELECT DISTINCT schedule_name FROM (
        SELECT schedule_name FROM _pgwerk_jobs WHERE status = 'FAILED' ORDER BY id DESC LIMIT {MOST_FAILURES}
    ) AS newest WHERE schedule_name <> ''
) AS failed, {NEWEST_DECIDED.format(name="failed.schedule_name")} AS decided WHERE decided.status = 'FAILED'
"""  # noqa: S608  a number of ours


def failing_names(using: str) -> list[str]:
    with transaction.get_connection(using).cursor() as cursor:
        # It reads far less than the planner fears, who would compile it first. Both in one go: one trip, one transaction.
        cursor.execute("SET LOCAL jit = off;" + _FAILING)
        cursor.nextset()
        return [name for (name,) in cursor.fetchall()]


def with_open_job(status: Status, using: str) -> Q:
    """For schedules: one of their jobs is `status`, READY or RUNNING."""
    jobs = Job.objects.using(using).open().filter(status=status, schedule__isnull=False)
    return Q(pk__in=jobs.values("schedule"))
