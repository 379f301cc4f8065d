"""What ran and what will, counted into equal stretches of time; of large tables by a sample, at a cost that is bounded."""

import datetime as dt
import json
import uuid
from collections import Counter, namedtuple
from collections.abc import Sequence
from typing import Any, NamedTuple

from django.db import transaction

from pgwerk_django.models import Status, recurrence_of

MOST_READ = 150_000  # jobs that one page reads; of more it takes a sample
MOST_SCHEDULES = 400  # and schedules
MOST_STEPS = 8_000  # due times that are worked out one by one
_COLUMNS = (
    "cron", "interval", "timezone", "anchor_at", "created_at", "starts_at", "ends_at", "max_runs", "run_count",
    "next_run_at",
)  # fmt: skip
_Row = namedtuple("_Row", _COLUMNS)  # type: ignore[misc]


class Stretches(NamedTuple):
    """`number` stretches of `size`, from `start` on."""

    start: dt.datetime
    size: dt.timedelta
    number: int

    @property
    def end(self) -> dt.datetime:
        return self.start + self.size * self.number

    def place(self, instant: dt.datetime) -> int:
        return (instant - self.start) // self.size


class Past(NamedTuple):
    counts: list[Counter[str]]
    is_estimate: bool


class Coming(NamedTuple):
    counts: list[float]
    is_estimate: bool


class Sizes(NamedTuple):
    """How many there are, as PostgreSQL's statistics have it; -1 where it has none yet."""

    jobs: int
    schedules: int


def clock_and_sizes(using: str) -> tuple[dt.datetime, Sizes]:
    """PostgreSQL's now, and the sizes of the tables, in one trip."""
    with transaction.get_connection(using).cursor() as cursor:
        cursor.execute(
            "SELECT statement_timestamp(), (SELECT reltuples FROM pg_class WHERE oid = '_pgwerk_jobs'::regclass),"
            " (SELECT reltuples FROM pg_class WHERE oid = '_pgwerk_schedules'::regclass)"
        )
        now, jobs, schedules = cursor.fetchone()
    return now.astimezone(dt.UTC), Sizes(int(jobs), int(schedules))


def _first_id(instant: dt.datetime) -> uuid.UUID:
    """The least id that a job of this instant can have: a UUIDv7 begins with its time, so the primary key is ordered by it."""
    return uuid.UUID(int=max(int(instant.timestamp() * 1000), 0) << 80)


_COUNT = """
SELECT date_bin(%s, enqueued_at, %s), status, count(*) FROM _pgwerk_jobs {sample}
WHERE id >= %s AND id < %s {condition} GROUP BY 1, 2
"""


def past(stretches: Stretches, jobs: int, *, using: str) -> Past:
    """Jobs by when they were made, and by their status. What failed is counted one by one, however many there are."""
    bounds = [_first_id(stretches.start), _first_id(stretches.end)]
    parameters: list[Any] = [stretches.size, stretches.start, *bounds]
    counts: list[Counter[str]] = [Counter() for _ in range(stretches.number)]
    statement, weight = _COUNT.format(sample="", condition=""), 1.0
    with transaction.get_connection(using).cursor() as cursor:
        if jobs > MOST_READ and _estimate(cursor, bounds) > MOST_READ:
            weight = jobs / MOST_READ
            sample = f"TABLESAMPLE SYSTEM ({100 / weight:.4f}) REPEATABLE (1)"
            sampled = _COUNT.format(sample=sample, condition="AND status <> 'FAILED'")
            counted = _COUNT.format(sample="", condition="AND status = 'FAILED'")
            statement = f"{sampled} UNION ALL {counted}"
            parameters *= 2
        cursor.execute(statement, parameters)
        for start, status, number in cursor.fetchall():
            place = stretches.place(start)
            if 0 <= place < stretches.number:
                counts[place][status] += number if status == Status.FAILED else round(number * weight)
    return Past(counts, weight > 1)


def _estimate(cursor: Any, bounds: Sequence[uuid.UUID]) -> float:
    """How many jobs the planner expects between these ids."""
    cursor.execute("EXPLAIN (FORMAT JSON) SELECT FROM _pgwerk_jobs WHERE id >= %s AND id < %s", bounds)
    explained = cursor.fetchone()[0]
    plan = json.loads(explained) if isinstance(explained, str) else explained
    return float(plan[0]["Plan"]["Plan Rows"])


def active(until: dt.datetime, schedules: int, *, using: str) -> tuple[list[Any], float]:
    """Schedules that will be due by then, or a sample of them; and how many each of them stands for."""
    share = min(MOST_SCHEDULES / schedules, 1) if schedules > 0 else 1
    sample = f"TABLESAMPLE BERNOULLI ({100 * share:.6f}) REPEATABLE (1)" if share < 1 else ""
    statement = (
        f"SELECT {', '.join(_COLUMNS)} FROM _pgwerk_schedules {sample}"  # noqa: S608  our own words and a number
        " WHERE NOT paused AND error = '' AND NOT replan AND next_run_at <= %s LIMIT %s"
    )
    with transaction.get_connection(using).cursor() as cursor:
        cursor.execute(statement, [until, 5 * MOST_SCHEDULES])
        return [_Row._make(row) for row in cursor.fetchall()], 1 / share


def coming(stretches: Stretches, rows: Sequence[Any], weight: float) -> Coming:
    """Due times of these schedules, each worth `weight`, from the functions that the tick uses.

    One that is due too often to be followed to the end goes on at its pace.
    """
    counts = [0.0] * stretches.number
    steps = max(MOST_STEPS // (len(rows) or 1), 10)
    for row in rows:
        try:
            _follow(counts, stretches, row, weight, steps)
        except Exception:  # noqa: BLE001, S112  # what a row holds is for its own page to say
            continue
    return Coming(counts, weight > 1)


def _follow(counts: list[float], stretches: Stretches, row: Any, weight: float, steps: int) -> None:
    recurrence = recurrence_of(row)
    left = steps if row.max_runs is None else min(steps, row.max_runs - row.run_count)
    first = due = max(row.next_run_at, stretches.start)  # what is late is due at once
    taken = 0
    while due is not None and due < stretches.end and taken < left:
        counts[stretches.place(due)] += weight
        taken += 1
        due = recurrence.next_after(due)
    if due is None or due >= stretches.end or taken < steps or due == first:
        return
    pace = weight * taken * (stretches.size / (due - first))
    place = stretches.place(due)
    counts[place] += pace * ((stretches.start + (place + 1) * stretches.size - due) / stretches.size)
    for later in range(place + 1, stretches.number):
        counts[later] += pace


OUTCOMES = (Status.FAILED, Status.SUCCESSFUL, Status.FORWARDED, Status.RUNNING, Status.READY, Status.SKIPPED, Status.CANCELLED)  # fmt: skip
