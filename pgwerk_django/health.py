"""Health: is it alive, and does it do its work? What a probe of Kubernetes, a monitor or systemd wants to know.

`judge` looks at the whole site: it is red when no scheduler ticks, when what is due is not taken, when jobs wait and nobody
runs them. `judge_here` looks at the processes of this host alone, for what restarts them: another's death is no reason to
restart this one, nor is a database that is away.
"""

import contextlib
import dataclasses
import datetime as dt
import json
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import psycopg.errors
from django.db import DatabaseError, InterfaceError, transaction

from pgwerk_django import schema
from pgwerk_django.alerts import LATE_AFTER, LONGEST_WAIT
from pgwerk_django.loop import LONGEST_SLEEP
from pgwerk_django.models import DUE, HEARTBEAT, LINES, MAY_RUN_SQL, MOST_COUNTED, SILENT_AFTER

ROLES = ("scheduler", "worker")
POLLS = 3  # that a scheduler may miss
ANSWERS_WITHIN = 5  # seconds of each statement
# Dead index entries that a snapshot keeps make each look at the tables slower. Seconds, or transactions where no time is known.
LONGEST_SNAPSHOT, LARGEST_SNAPSHOT = 300, 1_000_000
CLOCK_IS_OFF = 2.0  # seconds, from which on the difference is no longer the network's
MOST_LISTED = 5
# Of a worker, by its own account, in seconds: no process of it is up, though some have died before they were up; or none is up.
CANNOT_START, NONE_IS_UP = 10, 60
UNANSWERED = 300  # all of its processes answer nothing: jobs in C code that keep the GIL, or processes that hang
LONGEST_TAKEN = 3600  # all places of a queue's workers are taken, and no job ends, while jobs wait for too long


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong (`check` says in a word what was looked at)."""

    check: str
    message: str


@dataclass(slots=True)
class Health:
    """`problems` turn it red, `warnings` do not. `figures` has the same keys always, and plain values."""

    status: str = "green"  # red; unknown: of this host's processes, while the database is away
    problems: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def is_red(self) -> bool:
        return self.status == "red"

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def as_text(self) -> list[str]:
        lines = [self.status]
        lines += [f"problem\t{each.check}\t{each.message}" for each in self.problems]
        lines += [f"warning\t{each.check}\t{each.message}" for each in self.warnings]
        return [*lines, *(f"{name}\t{value}" for name, value in _flat(self.figures))]


def judge(*, using: str, late_after: float = LATE_AFTER, longest_wait: float = LONGEST_WAIT, role: str = "") -> Health:
    """Of the whole site, or of what one `role` answers for. Durations are seconds."""
    health = Health()
    try:
        seen = look(using=using, late_after=late_after)
    except (DatabaseError, InterfaceError) as error:
        return Health("red", [Finding("database", _why(error, using))])
    health.figures = seen.as_dict()
    if role in ("", "scheduler"):
        health.problems += _of_schedulers(seen)
    if role in ("", "worker"):
        health.problems += _of_workers(seen, longest_wait, asked=bool(role))
    health.warnings += [*_of_the_work(seen, longest_wait), *_of_the_surroundings(seen)]
    health.status = "red" if health.problems else "green"
    return health


def judge_here(*, using: str, role: str = "", pid: int | None = None) -> Health:
    """Of this host's processes (of one `role`, or of the one with this `pid`): red when there is none that does its work.

    One is enough: a row of a process that was killed stays for minutes beside that of its successor.
    """
    host = socket.gethostname()
    try:
        with _answering(using) as cursor:
            processes = [
                each
                for each in _processes(cursor)
                if each.host == host and role in ("", each.role) and pid in (None, each.pid)
            ]
    except (DatabaseError, InterfaceError) as error:
        # To restart what waits for the database would only stop the jobs that run.
        return Health("unknown", warnings=[Finding("database", _why(error, using))])
    health = Health(figures={"processes": [each.as_dict() for each in processes]})
    if not any(each.works for each in processes):
        who = f"{role or 'process'} on {host}" + (f" with the process id {pid}" if pid is not None else "")
        told = "; ".join(map(_state, processes)) or "none has said that it lives"
        health.problems.append(Finding("processes", f"no {who} does its work: {told}"))
        health.status = "red"
    return health


# -- what is read


class ProcessSeen(NamedTuple):
    """A process, as its row says. Ages are seconds by PostgreSQL's clock."""

    role: str
    host: str
    pid: int
    version: str
    queues: list[str]
    age: float
    heartbeat_age: float
    tick_age: float | None
    poll: float
    clock_offset: float | None
    # Of a worker, since it last had what is named. None: it is of a version that does not say so.
    down_for: float | None = None
    died: float | None = None  # processes in a row that ended before they were up
    unanswered_for: float | None = None
    taken_for: float | None = None
    places: float | None = None

    def __str__(self) -> str:
        return f"{self.role} {self.host}:{self.pid}"

    @property
    def lives(self) -> bool:
        # A heartbeat that lies ahead is from when PostgreSQL's clock was ahead: who lives has written another since.
        return abs(self.heartbeat_age) <= SILENT_AFTER.total_seconds()

    def serves(self, queue: str) -> bool:
        return self.role == "worker" and self.lives and (not self.queues or queue in self.queues)

    @property
    def longest_tick_age(self) -> float:
        """Three polls. A scheduler says when it ticked with its heartbeat, so it may be known that much later."""
        return HEARTBEAT.total_seconds() + self._polls

    @property
    def _polls(self) -> float:
        return POLLS * min(self.poll, LONGEST_SLEEP)

    @property
    def ticks(self) -> bool:
        return self.tick_age is not None and abs(self.tick_age) <= self.longest_tick_age

    @property
    def is_stuck(self) -> bool:
        """Its loop lives but does not tick: its last tick was old when it last said that it lives."""
        if self.role != "scheduler" or not self.lives:
            return False
        if self.tick_age is None:
            return self.age > self.longest_tick_age
        return self.tick_age - self.heartbeat_age > max(self._polls, POLLS)

    @property
    def works(self) -> bool:
        return self.ticks if self.role == "scheduler" else self.lives and not self.defect

    @property
    def defect(self) -> str:
        """Why a worker that lives can run no job; empty when it can. One whose jobs take long is not defect."""
        down_for = self.until_now(self.down_for)
        if down_for > (CANNOT_START if self.died else NONE_IS_UP):
            died = f", {self.died:g} died before they were up (its log says why: child_died)" if self.died else ""
            return f"none of its processes that run jobs is up for {down_for:g} s{died}"
        if (unanswered_for := self.until_now(self.unanswered_for)) > UNANSWERED:
            return f"none of its processes that run jobs answers for {unanswered_for:g} s"
        return ""

    def until_now(self, seconds: float | None) -> float:
        """What was so at the last heartbeat goes on until the next one; 0 where it was not so."""
        return round(seconds + self.heartbeat_age, 1) if seconds else 0

    def as_dict(self) -> dict[str, Any]:
        said = self._asdict()
        for name in _SAID_BY_WORKERS:
            del said[name]
        return {**said, "lives": self.lives, "works": self.works}


_SAID_BY_WORKERS = ("down_for", "died", "unanswered_for", "taken_for", "places")


class UnknownSeen(NamedTuple):
    """Jobs that wait for a worker whose code has their function, counted to `MOST_COUNTED` in all."""

    function: str
    waiting: int
    oldest_age: float

    def __str__(self) -> str:
        told = "1 job waits" if self.waiting == 1 else f"{self.waiting} jobs wait"
        return f"{told} for a worker that knows {self.function}, for up to {self.oldest_age:g} s"


class QueueSeen(NamedTuple):
    """Jobs that could run now, counted to `MOST_COUNTED` for each priority."""

    name: str
    waiting: int
    oldest_age: float | None
    paused: bool
    workers: int = 0


class TargetSeen(NamedTuple):
    """Jobs that wait to be handed over, counted to `MOST_COUNTED` in all."""

    name: str
    waiting: int
    oldest_age: float


class Snapshot(NamedTuple):
    """The oldest that somebody holds open, of those that our user may see."""

    holder: str = ""
    seconds: float | None = None
    transactions: int = 0


class Schedules(NamedTuple):
    """Counted to `MOST_COUNTED` each; the names of some."""

    late: int
    late_names: list[str]
    late_age: float | None  # of the one that is due for longest
    oldest_due_age: float | None
    set_aside: int
    set_aside_names: list[str]
    failing: int
    failing_names: list[str]
    ahead: int  # whose last run lies ahead of PostgreSQL's clock, among those that are due next
    ahead_names: list[str]


@dataclass(slots=True)
class Seen:
    """What one look at the database gave."""

    now: dt.datetime
    clock_offset: float  # of this host
    processes: list[ProcessSeen]
    schedules: Schedules
    queues: list[QueueSeen]
    targets: list[TargetSeen]
    running: int
    snapshot: Snapshot
    unknown: list[UnknownSeen] = field(default_factory=list)

    def of(self, role: str) -> list[ProcessSeen]:
        return [each for each in self.processes if each.role == role]

    def as_dict(self) -> dict[str, Any]:
        ages = [each.tick_age for each in self.of("scheduler") if each.tick_age is not None]
        return {
            "checked_at": self.now.astimezone(dt.UTC).isoformat(),
            "schedulers": {
                "alive": sum(each.lives for each in self.of("scheduler")),
                "ticking": sum(each.ticks for each in self.of("scheduler")),
                "tick_age": min(ages, default=None),
            },
            "workers": {"alive": sum(each.lives for each in self.of("worker"))},
            "schedules": self.schedules._asdict(),
            "jobs": {"waiting": sum(each.waiting for each in self.queues), "running": self.running},
            "queues": [each._asdict() for each in self.queues],
            "targets": [each._asdict() for each in self.targets],
            "snapshot": self.snapshot._asdict(),
            "clock_offset": self.clock_offset,
            "processes": [each.as_dict() for each in self.processes],
        }


def look(*, using: str, late_after: float = LATE_AFTER) -> Seen:
    """The figures, in five statements that the indexes lead. Raises what the database does, and after `ANSWERS_WITHIN`."""
    with _answering(using) as cursor:
        processes = _processes(cursor)
        cursor.execute(_SCHEDULES, {"late_after": late_after})
        now, running, unknown, *figures = cursor.fetchone()
        offset = time.time() - now.timestamp()
        cursor.execute(_QUEUES)
        queues = [QueueSeen(*row) for row in cursor.fetchall()]
        cursor.execute(_TARGETS)
        targets = [TargetSeen(*row) for row in cursor.fetchall()]
        cursor.execute(_SNAPSHOT)
        snapshot = Snapshot(*cursor.fetchone() or ())
    return Seen(
        now=now,
        clock_offset=round(offset, 3),
        processes=processes,
        schedules=Schedules(*figures),
        queues=[each._replace(workers=sum(worker.serves(each.name) for worker in processes)) for each in queues],
        targets=targets,
        running=running,
        snapshot=snapshot,
        unknown=[UnknownSeen(*each) for each in json.loads(unknown)],
    )


@contextlib.contextmanager
def _answering(using: str) -> Iterator[Any]:
    """A cursor whose statements come to an end: a probe that hangs tells nobody anything."""
    with transaction.atomic(using=using), transaction.get_connection(using).cursor() as cursor:
        timeout = str(ANSWERS_WITHIN * 1000)
        cursor.execute("SELECT set_config('statement_timeout', %s, true), set_config('jit', 'off', true)", [timeout])
        yield cursor


def _number(name: str) -> str:
    """What a process said of itself; NULL for what is no number, or no sensible one: another program may have written it."""
    return (
        f"CASE WHEN jsonb_typeof(stats->'{name}') = 'number' AND (stats->>'{name}')::numeric BETWEEN 0 AND 1e12"
        f" THEN (stats->>'{name}')::numeric END"
    )


def _processes(cursor: Any) -> list[ProcessSeen]:
    cursor.execute(
        f"""
        SELECT role, host, pid, version,
            CASE jsonb_typeof(queues) WHEN 'array' THEN ARRAY(SELECT jsonb_array_elements_text(queues)) ELSE '{{}}' END,
            round(extract(epoch FROM statement_timestamp() - started_at), 1)::float8,
            round(extract(epoch FROM statement_timestamp() - heartbeat_at), 1)::float8,
            round(extract(epoch FROM statement_timestamp() - last_tick_at), 1)::float8,
            coalesce({_number("poll")}, 1)::float8,
            round({_number("clock")} - extract(epoch FROM heartbeat_at), 3)::float8,
            {", ".join(f"{_number(name)}::float8" for name in _SAID_BY_WORKERS)}
        FROM _pgwerk_processes ORDER BY role, host, pid
        """  # noqa: S608  our own text
    )
    return [ProcessSeen(*row) for row in cursor.fetchall()]


_DUE_AGE = f"round(extract(epoch FROM statement_timestamp() - {DUE}), 1)::float8"
_DUE = f"_pgwerk_schedules WHERE {MAY_RUN_SQL} AND {DUE} <= statement_timestamp() ORDER BY {DUE}"
_LATE = f"""
_pgwerk_schedules WHERE {MAY_RUN_SQL}
    AND {DUE} < statement_timestamp() - %(late_after)s * interval '1 second'
    AND {DUE} < statement_timestamp() - misfire_grace * interval '1 second'
ORDER BY {DUE}
"""
_SET_ASIDE = "_pgwerk_schedules WHERE error <> '' ORDER BY id"
_FAILING = "_pgwerk_alerts WHERE kind = 'failing' AND ended_at IS NULL AND job_key <> '' ORDER BY schedule_name"


def _count(rows: str) -> str:
    return f"(SELECT count(*) FROM (SELECT FROM {rows} LIMIT {MOST_COUNTED}) AS counted)"  # noqa: S608  our own text


def _names(column: str, rows: str) -> str:
    return f"ARRAY(SELECT {column} FROM {rows} LIMIT {MOST_LISTED})"  # noqa: S608


_UNKNOWN = f"""
(SELECT coalesce(json_agg(json_build_array(function, jobs, age)), '[]')::text FROM (
    SELECT function, count(*) AS jobs,
        round(extract(epoch FROM statement_timestamp() - min(unknown_since)), 1)::float8 AS age
    FROM (
        SELECT function, unknown_since FROM _pgwerk_jobs WHERE status = 'READY' AND unknown_since IS NOT NULL
        ORDER BY queue, function LIMIT {MOST_COUNTED}
    ) AS counted GROUP BY function ORDER BY jobs DESC, function LIMIT {MOST_LISTED}
) AS listed)
"""  # noqa: S608

_SCHEDULES = f"""
SELECT statement_timestamp(), (SELECT count(*) FROM _pgwerk_jobs WHERE status = 'RUNNING'), {_UNKNOWN},
    {_count(_LATE)}, {_names("name", _LATE)}, (SELECT {_DUE_AGE} FROM {_LATE} LIMIT 1), (SELECT {_DUE_AGE} FROM {_DUE} LIMIT 1),
    {_count(_SET_ASIDE)}, {_names("name", _SET_ASIDE)}, {_count(_FAILING)}, {_names("schedule_name", _FAILING)},
    ahead.number, ahead.names
FROM (
    -- Whatever was due while the clock was ahead is due next when it has come again, so it is among the first.
    SELECT count(*) AS number, coalesce((array_agg(name))[1:{MOST_LISTED}], '{{}}') AS names FROM (
        SELECT name, last_run_at FROM _pgwerk_schedules WHERE {MAY_RUN_SQL} AND {DUE} > statement_timestamp()
        ORDER BY {DUE} LIMIT {MOST_COUNTED}
    ) AS following WHERE last_run_at > statement_timestamp() + %(late_after)s * interval '1 second'
) AS ahead
"""  # noqa: S608

_QUEUES = f"""
WITH RECURSIVE {LINES}
SELECT queue, sum(waiting.n)::bigint,
    round(extract(epoch FROM statement_timestamp() - min(waiting.oldest)), 1)::float8,
    EXISTS (SELECT FROM _pgwerk_queues WHERE name = queue AND paused)
FROM lines, LATERAL (
    SELECT count(*) AS n, min(run_at) AS oldest FROM (
        SELECT run_at FROM _pgwerk_jobs
        WHERE status = 'READY' AND target = 'worker' AND queue = lines.queue AND priority = lines.priority
            AND run_at <= statement_timestamp()
        ORDER BY run_at LIMIT {MOST_COUNTED}
    ) AS counted
) AS waiting GROUP BY queue ORDER BY queue
"""  # noqa: S608

_TARGETS = f"""
SELECT target, count(*), round(extract(epoch FROM statement_timestamp() - min(since)), 1)::float8 FROM (
    SELECT target, CASE WHEN attempt > 0 THEN enqueued_at ELSE run_at END AS since FROM _pgwerk_jobs
    WHERE status = 'READY' AND target <> 'worker' LIMIT {MOST_COUNTED}
) AS counted WHERE since <= statement_timestamp() GROUP BY target ORDER BY target
"""  # noqa: S608

# Of others' sessions only members of `pg_read_all_stats` see how old they are. A slot has no time.
_SNAPSHOT = """
SELECT holder, round(extract(epoch FROM statement_timestamp() - since), 1)::float8, transactions FROM (
    SELECT concat('session ', pid, ' of ', usename, nullif(concat(' (', nullif(application_name, ''), ')'), ' ()')) AS holder,
        xact_start AS since, age(backend_xmin) AS transactions
    FROM pg_stat_activity
    WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid() AND backend_type <> 'autovacuum worker'
        AND (datname = current_database() OR datname IS NULL)
    UNION ALL
    SELECT 'prepared transaction ' || gid, prepared, age(transaction)
    FROM pg_prepared_xacts WHERE database = current_database()
    UNION ALL
    SELECT 'replication slot ' || slot_name, NULL, age(xmin) FROM pg_replication_slots WHERE xmin IS NOT NULL
) AS held ORDER BY since NULLS LAST, transactions DESC LIMIT 1
"""


# -- what is made of it


def _of_schedulers(seen: Seen) -> Iterator[Finding]:
    schedulers = seen.of("scheduler")
    if not any(each.ticks for each in schedulers):
        told = "; ".join(map(_state, schedulers)) or "none has said that it lives"
        yield Finding("ticks", f"no scheduler has finished a tick within {POLLS} polls and its heartbeat: {told}")
    for each in schedulers:
        if each.is_stuck:
            yield Finding("stuck", f"a scheduler's loop lives, but does not tick: {_state(each)}")
    if late := seen.schedules.late:
        names = _listed(late, seen.schedules.late_names)
        told = f"due for longer than its grace, and taken by no scheduler: {names}"
        yield Finding("late", f"{told}; the first for {seen.schedules.late_age:g} s")

    if ahead := seen.schedules.ahead:
        names = _listed(ahead, seen.schedules.ahead_names)
        told = f"the last run lies ahead of PostgreSQL's clock, which must have been ahead, and nothing runs until then: {names}"
        yield Finding("ahead", f"{told}; a pause and a resume start a schedule anew (docs/operations.md, Clocks)")


def _of_workers(seen: Seen, longest_wait: float, *, asked: bool) -> Iterator[Finding]:
    if asked and not any(each.lives for each in seen.of("worker")):
        told = "; ".join(map(_state, seen.of("worker"))) or "none has said that it lives"
        yield Finding("workers", f"no worker lives: {told}")
    for each in seen.of("worker"):
        if each.lives and each.defect:
            yield Finding("places", f"a worker lives, but can run no job: {each}: {each.defect}")
    for queue in seen.queues:
        if _waits_for_long(queue, longest_wait) and not queue.workers:
            yield Finding("unserved", f"{_waiting(queue)}, and no live worker serves it")
        elif _waits_for_long(queue, longest_wait) and _taken_for(seen, queue) > LONGEST_TAKEN:
            yield Finding("taken", f"{_waiting(queue)}{_taken(seen, queue)}")


def _of_the_work(seen: Seen, longest_wait: float) -> Iterator[Finding]:
    for queue in seen.queues:
        if _waits_for_long(queue, longest_wait) and queue.workers:
            yield Finding("waiting", f"{_waiting(queue)}{_taken(seen, queue)}")
        elif queue.waiting and not queue.workers and not queue.paused:
            yield Finding("workers", f"{_waiting(queue)}, and no live worker serves it")
    for unknown in seen.unknown:
        yield Finding("unknown", str(unknown))
    for target in seen.targets:
        if target.oldest_age > longest_wait:
            told = (
                f"{target.waiting} jobs wait to be handed over to {target.name}, the oldest for {target.oldest_age:g} s"
            )
            yield Finding("handover", told)
    if seen.schedules.set_aside:
        names = _listed(seen.schedules.set_aside, seen.schedules.set_aside_names)
        yield Finding("set_aside", f"set aside with an error: {names}")
    if seen.schedules.failing:
        yield Finding("failing", f"failing: {_listed(seen.schedules.failing, seen.schedules.failing_names)}")


def _of_the_surroundings(seen: Seen) -> Iterator[Finding]:
    for each in seen.processes:
        if not each.lives:
            yield Finding("silent", f"a process says nothing: {_state(each)}")
        if abs(each.clock_offset or 0) >= CLOCK_IS_OFF:
            yield Finding("clock", f"the clock of {each.host} is off by {each.clock_offset:+.1f} s ({each})")
    if abs(seen.clock_offset) >= CLOCK_IS_OFF:
        yield Finding("clock", f"the clock of this host is off by {seen.clock_offset:+.1f} s")
    held = seen.snapshot
    if (held.seconds or 0) > LONGEST_SNAPSHOT or held.transactions > LARGEST_SNAPSHOT:
        age = f"{held.transactions} transactions" if held.seconds is None else f"{held.seconds:g} s"
        yield Finding(
            "snapshot", f"a snapshot is held open for {age}, which slows each look at the tables: {held.holder}"
        )


def _waits_for_long(queue: QueueSeen, longest_wait: float) -> bool:
    return not queue.paused and (queue.oldest_age or 0) > longest_wait


def _waiting(queue: QueueSeen) -> str:
    return f"{queue.waiting} jobs wait in the queue {queue.name}, the oldest for {queue.oldest_age:g} s"


def _taken_for(seen: Seen, queue: QueueSeen) -> float:
    """For how long no place of the queue's workers was free, and no job there ended; 0 if any worker does not say so."""
    serving = [each for each in seen.of("worker") if each.serves(queue.name)]
    return min((each.until_now(each.taken_for) for each in serving), default=0)


def _taken(seen: Seen, queue: QueueSeen) -> str:
    if not (seconds := _taken_for(seen, queue)):
        return ""
    places = sum(each.places or 0 for each in seen.of("worker") if each.serves(queue.name))
    return f"; all {places:g} places of its workers are taken, and no job has ended, for {seconds:g} s"


def _state(process: ProcessSeen) -> str:
    if process.lives and process.defect:
        return f"{process} (heartbeat {process.heartbeat_age:g} s ago): {process.defect}"
    tick = ""
    if process.role == "scheduler":
        tick = ", no tick yet" if process.tick_age is None else f", last tick {process.tick_age:g} s ago"
    return f"{process} (heartbeat {process.heartbeat_age:g} s ago{tick})"


def _listed(count: int, names: Sequence[str]) -> str:
    return ", ".join(names) + (f" and {count - len(names)} more" if count > len(names) else "")


def _why(error: Exception, using: str) -> str:
    """In one line, what to do about it where that is known."""
    cause = error.__cause__
    if wrong := schema.explained(error, using):
        return wrong
    if isinstance(cause, psycopg.errors.QueryCanceled):
        return f"it did not answer within {ANSWERS_WITHIN} s"
    return f"it cannot be reached: {' '.join(str(error).split())}"


def _flat(figures: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """For people: lists of things as one line each."""
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            for each in value:
                yield (
                    f"{prefix}{name}",
                    " ".join(f"{k}={v}" for k, v in each.items()) if isinstance(each, dict) else each,
                )
        else:
            yield f"{prefix}{name}", "-" if value is None else value
