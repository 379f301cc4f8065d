"""State that lives in PostgreSQL, read when somebody asks for it: by any process, whatever the number of schedulers.

A few statements, each led by an index, and each reading a bounded number of rows: who has more than `MOST_COUNTED` of
something need not know how many. Nobody who asks waits longer than `WITHIN`, whatever has become of the database.
"""

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import psycopg

from pgwerk_django import conf, signals
from pgwerk_django.loop import connection_parameters
from pgwerk_django.measurements import (
    DUE,
    LAG,
    LATE,
    MOST_QUEUES,
    MOST_TARGETS,
    OTHER,
    OUTBOX_JOBS,
    OUTBOX_OLDEST,
    PROCESSES,
    QUEUE_JOBS,
    QUEUE_OLDEST,
    QUEUE_PAUSED,
    QUEUE_WORKERS,
    SCHEDULES,
    TICK_AGE,
    UP,
    Measure,
)
from pgwerk_django.models import DUE as DUE_AT
from pgwerk_django.models import LINES, MAY_RUN_SQL, MOST_COUNTED, SILENT_AFTER, TARGETS
from pgwerk_django.network import limited
from pgwerk_django.watchdog import within

WITHIN = 5.0  # seconds until whoever asked is told that the database does not answer
STATEMENT_TIMEOUT = 4  # seconds, of each statement
LONGEST = 20.0  # seconds of all of them: a server that is frozen keeps no time
MOST_PLACES = 200  # queues, and in each its priorities; what is beyond is counted as one
MOST_READ = 50_000  # jobs that wait, and as many that are to run later: shared among the places
MOST_PROCESSES = 1000


# Where the site says nothing else: nobody waits for longer than that.
_PATIENCE = {
    "connect_timeout": int(WITHIN),
    "keepalives": 1,
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "tcp_user_timeout": int(WITHIN * 1000),
}


class Reading(NamedTuple):
    measure: Measure
    labels: tuple[str, ...]
    value: float


# What is read leads to an index by its literals. A plan that was made for tables as they were before must not scan them; nor
# a bitmap, which reads all that there is before a LIMIT can end it (15 s, with statistics from when few jobs waited).
_SETTINGS = f"""
SET TRANSACTION READ ONLY;
SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT}s';
SET LOCAL enable_seqscan = off;
SET LOCAL enable_bitmapscan = off;
SET LOCAL jit = off
"""

# The longest due first.
_DUE = f"""
SELECT count(*), count(*) FILTER (WHERE due_at < statement_timestamp() - misfire_grace * interval '1 second'),
    coalesce(extract(epoch FROM statement_timestamp() - min(due_at)), 0)::float8
FROM (
    SELECT {DUE_AT} AS due_at, misfire_grace FROM _pgwerk_schedules
    WHERE {MAY_RUN_SQL} AND {DUE_AT} <= statement_timestamp()
    ORDER BY {DUE_AT} LIMIT {MOST_COUNTED}
) AS due
"""  # noqa: S608  numbers of ours, here and below

# What has no due time stands in the index, too: it has ended, or was set aside.
_SCHEDULES = f"""
SELECT
    (SELECT count(*) FROM (
        SELECT FROM _pgwerk_schedules
        WHERE NOT paused AND {MAY_RUN_SQL} AND {DUE_AT} IS NOT NULL
        LIMIT {MOST_COUNTED}
    ) AS counted),
    undue.ended, paused.number, undue.in_error + paused.in_error
FROM (
    SELECT count(*) FILTER (WHERE error = '') AS ended, count(*) FILTER (WHERE error <> '') AS in_error FROM (
        SELECT error FROM _pgwerk_schedules
        WHERE NOT paused AND {MAY_RUN_SQL} AND {DUE_AT} IS NULL
        LIMIT {MOST_COUNTED}
    ) AS counted
) AS undue, (
    SELECT count(*) FILTER (WHERE error = '') AS number, count(*) FILTER (WHERE error <> '') AS in_error FROM (
        SELECT error FROM _pgwerk_schedules WHERE paused LIMIT {MOST_COUNTED}
    ) AS counted
) AS paused
"""  # noqa: S608
STATES = ("active", "ended", "paused", "error")

# At each place first comes what has waited longest, so neither a high priority nor a long delay hides what waits behind it.
_PLACES = f"""
WITH RECURSIVE {LINES}
SELECT queue, priority, greatest(extract(epoch FROM statement_timestamp() - first.run_at), 0)::float8
FROM (SELECT * FROM lines LIMIT {MOST_PLACES}) AS place, LATERAL (
    SELECT run_at FROM _pgwerk_jobs
    WHERE status = 'READY' AND target = 'worker' AND queue = place.queue AND priority = place.priority
    ORDER BY run_at LIMIT 1
) AS first
"""  # noqa: S608

_COUNTED = """
SELECT place.queue, place.priority, waiting.number, later.number
FROM unnest(%(queues)s::text[], %(priorities)s::integer[]) AS place (queue, priority), LATERAL (
    SELECT count(*) AS number FROM (
        SELECT FROM _pgwerk_jobs WHERE status = 'READY' AND target = 'worker'
            AND queue = place.queue AND priority = place.priority AND run_at <= statement_timestamp()
        LIMIT %(limit)s
    ) AS counted
) AS waiting, LATERAL (
    SELECT count(*) AS number FROM (
        SELECT FROM _pgwerk_jobs WHERE status = 'READY' AND target = 'worker'
            AND queue = place.queue AND priority = place.priority AND run_at > statement_timestamp()
        LIMIT %(limit)s
    ) AS counted
) AS later
"""

_BEYOND = f"""
SELECT count(*) FILTER (WHERE run_at <= statement_timestamp()), count(*) FILTER (WHERE run_at > statement_timestamp()),
    greatest(extract(epoch FROM statement_timestamp() - min(run_at)), 0)::float8
FROM (
    SELECT run_at FROM _pgwerk_jobs WHERE status = 'READY' AND target = 'worker' AND queue > %s
    ORDER BY queue LIMIT {MOST_COUNTED}
) AS counted
"""  # noqa: S608

_RUNNING = f"""
SELECT queue, count(*) FROM (
    SELECT queue FROM _pgwerk_jobs WHERE status = 'RUNNING' LIMIT {MOST_COUNTED}
) AS counted GROUP BY queue
"""  # noqa: S608

# Housekeeping has a row for each queue that ever held a job: so one that is empty says 0, and does not vanish.
_QUEUES = f"SELECT name, paused FROM _pgwerk_queues ORDER BY name LIMIT {MOST_QUEUES}"  # noqa: S608

# By when it was enqueued: each failure moves `run_at`.
_OUTBOX = f"""
WITH RECURSIVE {TARGETS}
SELECT found.target, waiting.* FROM (
    SELECT target FROM found WHERE target IS NOT NULL LIMIT {MOST_TARGETS}
) AS found, LATERAL (
    SELECT count(*), greatest(extract(epoch FROM statement_timestamp() - min(since)), 0)::float8 FROM (
        SELECT CASE WHEN attempt = 0 THEN run_at ELSE enqueued_at END AS since FROM _pgwerk_jobs
        WHERE status = 'READY' AND target <> 'worker' AND target = found.target ORDER BY run_at LIMIT {MOST_COUNTED}
    ) AS counted
) AS waiting
"""  # noqa: S608

_PROCESSES = f"""
SELECT role, queues, extract(epoch FROM statement_timestamp() - last_tick_at)::float8 FROM _pgwerk_processes
WHERE heartbeat_at BETWEEN statement_timestamp() - %s AND statement_timestamp() + %s LIMIT {MOST_PROCESSES}
"""  # noqa: S608


class State:
    """What the gauges say. One measurement at a time, on a thread and a connection of its own."""

    def __init__(self, using: str | None = None, *, keep: float = 0) -> None:
        """What was read is read anew after `keep` seconds."""
        self._using = using
        self._keep = keep
        self._lock = threading.Lock()
        self._asked: Future[list[Reading]] | None = None
        self._asked_at = 0.0
        self._failed = False

    def readings(self) -> list[Reading]:
        """All of them; only `UP`, at 0, where the database does not answer in time. Never raises for that."""
        try:
            readings = self._latest().result(WITHIN)
        except (psycopg.Error, TimeoutError, OSError) as error:
            if not self._failed:
                signals.send_now(signals.metrics_failed, error=str(error) or f"no answer within {WITHIN:g} s")
            self._failed = True
            return [Reading(UP, (), 0)]
        self._failed = False
        return readings

    def _latest(self) -> "Future[list[Reading]]":
        """Whoever asks meanwhile is told the same: a database that hangs is asked by one thread at most."""
        with self._lock:
            now = time.monotonic()
            if self._asked is None or (self._asked.done() and now - self._asked_at >= self._keep):
                self._asked, self._asked_at = Future(), now
                threading.Thread(target=self._measure, args=[self._asked], name="pgwerk-metrics", daemon=True).start()
            return self._asked

    def _measure(self, asked: "Future[list[Reading]]") -> None:
        try:
            asked.set_result(measure(self._using or conf.current().DATABASE))
        except BaseException as error:  # noqa: BLE001  # it is for whoever waits for the answer
            asked.set_exception(error)


def measure(using: str) -> list[Reading]:
    """Raises `psycopg.Error`."""
    parameters = {**limited(connection_parameters(using), _PATIENCE), "autocommit": True}
    with (
        contextlib.closing(psycopg.connect(**parameters)) as connection,
        within(LONGEST, connection),
        connection.transaction(),
    ):
        connection.execute(_SETTINGS)
        return [Reading(UP, (), 1), *_schedules(connection), *_jobs(connection)]


def _schedules(connection: "psycopg.Connection[Any]") -> Iterable[Reading]:
    ((due, late, lag),) = connection.execute(_DUE)
    yield from (Reading(DUE, (), due), Reading(LATE, (), late), Reading(LAG, (), lag))
    (counts,) = connection.execute(_SCHEDULES)
    yield from (Reading(SCHEDULES, (state,), count) for state, count in zip(STATES, counts, strict=True))


def _jobs(connection: "psycopg.Connection[Any]") -> Iterable[Reading]:
    processes = connection.execute(_PROCESSES, [SILENT_AFTER, SILENT_AFTER]).fetchall()
    for role in ("scheduler", "worker"):
        yield Reading(PROCESSES, (role,), sum(process[0] == role for process in processes))
    if ages := [age for role, _, age in processes if role == "scheduler" and age is not None]:
        yield Reading(TICK_AGE, (), max(min(ages), 0))
    yield from _queues(connection, [queues for role, queues, _ in processes if role == "worker"])
    for target, number, oldest in connection.execute(_OUTBOX):
        yield Reading(OUTBOX_JOBS, (target,), number)
        yield Reading(OUTBOX_OLDEST, (target,), oldest)


class _Queue:
    def __init__(self) -> None:
        self.waiting = self.later = self.running = self.paused = 0
        self.oldest = 0.0

    def add(self, other: "_Queue") -> None:
        for name in ("waiting", "later", "running"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.oldest = max(self.oldest, other.oldest)


def _queues(connection: "psycopg.Connection[Any]", served: list[list[str]]) -> Iterable[Reading]:
    queues: defaultdict[str, _Queue] = defaultdict(_Queue)
    places = connection.execute(_PLACES).fetchall()
    for name, _, oldest in places:
        queues[name].oldest = max(queues[name].oldest, oldest)
    for (name, _), (waiting, later) in _counted(connection, [place[:2] for place in places]).items():
        queues[name].waiting = min(queues[name].waiting + waiting, MOST_COUNTED)
        queues[name].later = min(queues[name].later + later, MOST_COUNTED)
    if len(places) == MOST_PLACES:
        ((queues[OTHER].waiting, queues[OTHER].later, oldest),) = connection.execute(_BEYOND, [places[-1][0]])
        queues[OTHER].oldest = oldest or 0
    for name, running in connection.execute(_RUNNING):
        queues[name].running = running
    for name, paused in connection.execute(_QUEUES):
        queues[name].paused = paused
    for names in served:
        for name in names:
            queues[str(name)]  # served by somebody, so it is there
    for name, queue in _capped(queues).items():
        for state in ("waiting", "later", "running"):
            yield Reading(QUEUE_JOBS, (name, state), getattr(queue, state))
        yield Reading(QUEUE_OLDEST, (name,), queue.oldest)
        if name != OTHER:
            yield Reading(QUEUE_PAUSED, (name,), queue.paused)
            yield Reading(QUEUE_WORKERS, (name,), sum(not names or name in names for names in served))


def _counted(
    connection: "psycopg.Connection[Any]", places: Sequence[tuple[str, int]]
) -> dict[tuple[str, int], tuple[int, int]]:
    """What waits at each place, and what is to run later. What the others leave is shared by those that have more."""
    counts: dict[tuple[str, int], tuple[int, int]] = {}
    limit, left = 0, MOST_READ
    while places and limit < MOST_COUNTED and (more := left // len(places)):
        limit = min(limit + more, MOST_COUNTED)
        queues, priorities = map(list, zip(*places, strict=True))
        parameters = {"queues": queues, "priorities": priorities, "limit": limit}
        found = connection.execute(_COUNTED, parameters)
        counts |= {(queue, priority): (waiting, later) for queue, priority, waiting, later in found}
        places = [place for place in places if limit in counts[place]]
        left = MOST_READ - sum(map(max, counts.values()))
    return counts


def _capped(queues: dict[str, _Queue]) -> dict[str, _Queue]:
    """The first by name; the others are one."""
    kept = dict(sorted((name, queue) for name, queue in queues.items() if name != OTHER)[:MOST_QUEUES])
    others = [queue for name, queue in queues.items() if name not in kept]
    if others:
        kept[OTHER] = _Queue()
        for queue in others:
            kept[OTHER].add(queue)
    return kept
