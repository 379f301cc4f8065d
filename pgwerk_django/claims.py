"""A worker's side of the queue: claim, begin, renew, finish and hand back, each one guarded statement for many jobs.

`claims` rises with each claim and never falls: together with the worker it says who holds a job, and only the holder's
statements touch it. A job that is RUNNING and `prefetched` waits in its worker's hands for a place to run.
"""

import datetime as dt
import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from django.db import transaction
from django.dispatch import Signal
from psycopg.types.datetime import TimestamptzLoader

from pgwerk_django import conf, signals
from pgwerk_django.arrays import array
from pgwerk_django.exceptions import WorkerLost, class_path
from pgwerk_django.execution import Outcome
from pgwerk_django.guarded import Statements, Written, execute
from pgwerk_django.models import SILENT_AFTER, Job, Status

Claim = tuple[uuid.UUID, int]  # a job's id, and its `claims`

# A job that never began when its worker vanished spends no attempt. But one that ends its worker before that can write
# that it began must not come back for ever.
MOST_FALSE_STARTS = 10
POLLS_OF_OTHERS = 2  # for so long a worker leaves jobs whose function it does not know to others


class Finished(NamedTuple):
    """What a job came to, once that is written."""

    status: str
    started: float  # by PostgreSQL's clock, in seconds since 1970

    @property
    def started_at(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self.started, dt.UTC)


FIELDS = [field.attname for field in Job._meta.concrete_fields]
_COLUMNS = ", ".join(f"job.{field.column}" for field in Job._meta.concrete_fields)
_JSON = [i for i, field in enumerate(Job._meta.concrete_fields) if field.get_internal_type() == "JSONField"]

WAITING = (
    "status = 'READY' AND run_at <= statement_timestamp() AND target = 'worker'"
    " AND (start_by IS NULL OR start_by > statement_timestamp())"
)
FIRST = "ORDER BY priority DESC, run_at"
_FUNCTION, _ARGS, _KWARGS = map(FIELDS.index, ("function", "args", "kwargs"))


# Queue by queue, so that each claim is one walk along the index `pgwerk_claim`; statuses are literals for its sake.
def _claiming(condition: str = "") -> str:
    return f"""
WITH RECURSIVE all_queues (name) AS (
    (SELECT queue FROM _pgwerk_jobs WHERE status = 'READY' AND target = 'worker' AND %(every)s ORDER BY queue LIMIT 1)
    UNION ALL
    SELECT (
        SELECT queue FROM _pgwerk_jobs WHERE status = 'READY' AND target = 'worker' AND queue > all_queues.name
        ORDER BY queue LIMIT 1
    )
    FROM all_queues WHERE all_queues.name IS NOT NULL
), queues (name, place) AS (
    SELECT name, place FROM (
        SELECT name, place FROM unnest(%(queues)s::text[]) WITH ORDINALITY AS named (name, place)
        UNION ALL SELECT name, 0 FROM all_queues WHERE name IS NOT NULL
    ) asked WHERE NOT EXISTS (SELECT FROM _pgwerk_queues queue WHERE queue.name = asked.name AND queue.paused)
), picked AS MATERIALIZED (
    SELECT waiting.id, row_number() OVER (ORDER BY place, priority DESC, run_at) AS nth
    FROM queues CROSS JOIN LATERAL (
        SELECT id, priority, run_at FROM _pgwerk_jobs
        WHERE queue = queues.name AND {WAITING} {condition}
        {FIRST} LIMIT %(limit)s
        FOR UPDATE SKIP LOCKED
    ) waiting
    ORDER BY place, priority DESC, run_at LIMIT %(limit)s
), claimed AS (
    UPDATE _pgwerk_jobs job SET
        status = 'RUNNING', attempt = attempt + 1, claims = claims + 1, prefetched = true, started_at = NULL,
        lease_until = statement_timestamp() + %(lease)s, worker_id = %(worker)s, worker_name = %(worker_name)s
    FROM picked WHERE job.id = picked.id
    RETURNING nth, {_COLUMNS}
)
SELECT * FROM claimed ORDER BY nth
"""  # noqa: S608  our own column names


_CLAIM = _claiming()
# A worker whose code does not know a function lets others look first at a job of it, for longer than their poll.
_CLAIM_AFTER_OTHERS = _claiming(
    "AND (unknown_since IS NULL OR function <> ALL(%(unknown)s::text[]) OR run_at <= statement_timestamp() - %(poll)s)"
)

# By the ids, or by `pgwerk_running`: all that this worker runs, which is not much.
_STILL_MINE = "job.id = mine.id AND job.status = 'RUNNING' AND job.claims = mine.claims AND job.worker_id = %(worker)s"
_MINE = f"""
FROM unnest(%(ids)s::uuid[], %(claims)s::integer[]) AS mine (id, claims)
WHERE {_STILL_MINE}
"""

_TO_STOP = """
SELECT id, claims, cancel_forced, queue, cancel_requested_at IS NOT NULL FROM _pgwerk_jobs
WHERE worker_id = %(worker)s AND status = 'RUNNING' AND (
    cancel_requested_at IS NOT NULL OR prefetched AND queue IN (SELECT name FROM _pgwerk_queues WHERE paused)
)
"""

_RENEW = f"""
UPDATE _pgwerk_jobs job SET lease_until = statement_timestamp() + %(lease)s
{_MINE} RETURNING job.id
"""  # noqa: S608

_BEGIN = f"""
UPDATE _pgwerk_jobs job SET
    prefetched = false, unknown_since = NULL, started_at = statement_timestamp() - mine.ago * interval '1 second'
FROM unnest(%(ids)s::uuid[], %(claims)s::integer[], %(agos)s::float8[]) AS mine (id, claims, ago)
WHERE {_STILL_MINE} RETURNING job.id
"""  # noqa: S608

_PROGRESS = f"""
UPDATE _pgwerk_jobs job SET progress = mine.progress::jsonb
FROM unnest(%(ids)s::uuid[], %(claims)s::integer[], %(progress)s::text[]) AS mine (id, claims, progress)
WHERE {_STILL_MINE} RETURNING job.id
"""  # noqa: S608

# Of a job that somebody cancelled there is no next attempt.
_AGAIN = "mine.status = 'READY' AND job.cancel_requested_at IS NULL"
_FINISH = f"""
UPDATE _pgwerk_jobs job SET
    status = CASE WHEN mine.status = 'READY' AND NOT ({_AGAIN}) THEN 'CANCELLED' ELSE mine.status END,
    result = mine.result::jsonb,
    error = mine.error,
    exception = coalesce(mine.exception, ''),
    errors = CASE WHEN {_AGAIN} THEN job.errors || jsonb_build_object(
            'attempt', job.attempt, 'at', statement_timestamp(), 'error', mine.error,
            'exception', coalesce(mine.exception, ''), 'worker', job.worker_name,
            'started_at', mine.ended_at - mine.seconds * interval '1 second'
        ) ELSE job.errors END,
    run_at = CASE WHEN {_AGAIN} THEN
        statement_timestamp() + mine.delay * interval '1 second' ELSE job.run_at END,
    started_at = mine.ended_at - mine.seconds * interval '1 second',
    finished_at = CASE WHEN NOT ({_AGAIN}) THEN mine.ended_at END,
    expires_at = CASE
        WHEN mine.status = 'SUCCESSFUL' THEN
            mine.ended_at + coalesce(job.result_ttl, %(result_ttl)s) * interval '1 second'
        WHEN NOT ({_AGAIN}) THEN
            mine.ended_at + coalesce(job.failure_ttl, %(failure_ttl)s) * interval '1 second' END,
    lease_until = NULL, prefetched = false, unknown_since = NULL,
    worker_id = CASE WHEN NOT ({_AGAIN}) THEN job.worker_id END
FROM (
    SELECT id, claims, status, result, error, exception, delay, seconds,
        statement_timestamp() - ago * interval '1 second' AS ended_at
    FROM unnest(
        %(ids)s::uuid[], %(claims)s::integer[], %(statuses)s::text[], %(results)s::text[], %(errors)s::text[],
        %(exceptions)s::text[], %(delays)s::float8[], %(seconds)s::float8[], %(agos)s::float8[]
    ) AS told (id, claims, status, result, error, exception, delay, seconds, ago)
) mine
WHERE {_STILL_MINE}
RETURNING job.id, job.status, extract(epoch FROM job.started_at)::float8
"""  # noqa: S608

_HANDED_BACK = """
    status = CASE WHEN job.cancel_requested_at IS NULL THEN 'READY' ELSE 'CANCELLED' END,
    finished_at = CASE WHEN job.cancel_requested_at IS NOT NULL THEN statement_timestamp() END,
    expires_at = CASE WHEN job.cancel_requested_at IS NOT NULL THEN
        statement_timestamp() + coalesce(job.failure_ttl, %(failure_ttl)s) * interval '1 second' END,
    attempt = job.attempt - 1, releases = job.releases + 1,
    lease_until = NULL, prefetched = false, worker_id = NULL, started_at = NULL
"""
_HAND_BACK = f"""
UPDATE _pgwerk_jobs job SET {_HANDED_BACK}
{_MINE} RETURNING job.id
"""  # noqa: S608

# 1, 2, 4 … 30 s after one another. At random: workers that agree on the instant would have the same one claim it each time.
# `since` is what the claim found: the start of the job may have been written since, while its module was imported.
_RELEASE = f"""
UPDATE _pgwerk_jobs job SET {_HANDED_BACK},
    unknown_since = coalesce(mine.since, statement_timestamp()),
    run_at = statement_timestamp() + (0.5 + random()) * least(
        coalesce(statement_timestamp() - mine.since, interval '0') + interval '1 second', interval '30 seconds'
    )
FROM unnest(%(ids)s::uuid[], %(claims)s::integer[], %(since)s::timestamptz[]) AS mine (id, claims, since)
WHERE {_STILL_MINE} AND (mine.since IS NULL OR mine.since > statement_timestamp() - %(grace)s)
RETURNING job.id
"""  # noqa: S608

# An expired lease, or none at all. And one that lies far ahead, as it was given while PostgreSQL's clock was: a live worker
# has renewed it since.
_SILENT = """
(SELECT abs(extract(epoch FROM heartbeat_at - statement_timestamp())) < %(silent_after)s
    FROM _pgwerk_processes process WHERE {}) IS NOT TRUE
"""
_EXPIRED = "(job.lease_until < statement_timestamp() OR job.lease_until IS NULL)"
_UNRENEWED = f"""
({_EXPIRED} OR job.lease_until > statement_timestamp() + 2 * %(lease)s
    AND {_SILENT.format("process.id = job.worker_id")})
"""

# In the order of the index `pgwerk_running`, which no other index has.
_LOOK = f"""
SELECT id, claims, lease_until::text FROM _pgwerk_jobs job WHERE status = 'RUNNING' AND {_UNRENEWED}
ORDER BY worker_id LIMIT %(limit)s FOR NO KEY UPDATE OF job SKIP LOCKED
"""  # noqa: S608

_BECOMES = """
id, prefetched AND claims - attempt - releases < %(most_false_starts)s AS fresh, CASE
    WHEN cancel_requested_at IS NOT NULL THEN 'CANCELLED'
    WHEN prefetched AND claims - attempt - releases < %(most_false_starts)s OR attempt < max_attempts THEN 'READY'
    ELSE 'FAILED' END AS becomes
"""
_RECOVER_LOST = """
UPDATE _pgwerk_jobs job SET
    status = becomes,
    attempt = CASE WHEN fresh THEN attempt - 1 ELSE attempt END,
    error = CASE WHEN fresh THEN error ELSE %(error)s END,
    exception = CASE WHEN fresh THEN exception ELSE %(exception)s END,
    errors = CASE WHEN becomes = 'READY' AND NOT fresh THEN errors || jsonb_build_object(
            'attempt', attempt, 'at', statement_timestamp(), 'error', %(error)s::text,
            'exception', %(exception)s::text, 'worker', worker_name, 'started_at', started_at
        ) ELSE errors END,
    run_at = CASE WHEN becomes = 'READY' THEN statement_timestamp() ELSE run_at END,
    finished_at = CASE WHEN becomes <> 'READY' THEN statement_timestamp() END,
    expires_at = CASE WHEN becomes <> 'READY' THEN
        statement_timestamp() + coalesce(failure_ttl, %(failure_ttl)s) * interval '1 second' END,
    lease_until = NULL, prefetched = false,
    worker_id = CASE WHEN becomes <> 'READY' THEN worker_id END
FROM lost WHERE job.id = lost.id
RETURNING job.status
"""
# OFFSET 0 and CASE keep it a look by the primary key for each: else all that runs is read for each of them, when the
# statistics say that nothing runs.
_RECOVER_SEEN = f"""
WITH lost AS MATERIALIZED (
    SELECT held.* FROM unnest(%(ids)s::uuid[], %(claims)s::integer[], %(leases)s::timestamptz[])
        AS seen (seen_id, seen_claims, seen_lease)
    CROSS JOIN LATERAL (
        SELECT {_BECOMES} FROM _pgwerk_jobs job
        WHERE id = seen_id AND CASE WHEN status = 'RUNNING' THEN true ELSE false END AND claims = seen_claims
            AND lease_until IS NOT DISTINCT FROM seen_lease AND {_UNRENEWED}
        OFFSET 0 FOR NO KEY UPDATE SKIP LOCKED
    ) held
)
{_RECOVER_LOST}
"""  # noqa: S608
_RECOVER_OLD = f"""
WITH lost AS MATERIALIZED (
    SELECT {_BECOMES} FROM _pgwerk_jobs job
    WHERE status = 'RUNNING' AND (lease_until < statement_timestamp() - %(lease)s OR lease_until IS NULL)
    ORDER BY worker_id LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED
)
{_RECOVER_LOST}
"""  # noqa: S608
RECOVERED_BATCH = 1000


def job_of(row: Sequence[Any], using: str) -> Job:
    """The job in a claimed row, whose JSON is still text."""
    values = list(row)
    for i in _JSON:
        values[i] = Job._meta.concrete_fields[i].from_db_value(values[i], None, None)  # type: ignore[attr-defined]
    return Job.from_db(using, FIELDS, values)


def call_of(row: Sequence[Any]) -> tuple[str, list[Any], dict[str, Any]]:
    """What a claimed row calls: the function's path, positional and keyword arguments."""
    return row[_FUNCTION], json.loads(row[_ARGS]), json.loads(row[_KWARGS])


class Claims:
    """The statements of one worker, known by the `id` and `name` of its process row. Each gives back what it still held."""

    def __init__(self, worker_id: int, worker_name: str, *, lease: float, using: str) -> None:
        self._worker_id = worker_id
        self._worker_name = worker_name
        self._lease = dt.timedelta(seconds=lease)
        self._using = using
        self._statements = Statements(_STILL_MINE, using=using, sent=self._sent, worker=worker_id)

    def claim(self, limit: int, queues: Sequence[str], *, unknown: Sequence[str] = ()) -> list[tuple[Any, ...]]:
        """Up to `limit` waiting jobs, now this worker's: rows of `FIELDS`, the first to run first, JSON as text.

        From the first of `queues` before the second; from every queue when there is none. Jobs that were released because
        their function is one of `unknown` are first left to others.
        """
        with transaction.get_connection(self._using).cursor() as cursor:
            # Django's loader is written in Python, and a tenth as fast as psycopg's own.
            cursor.adapters.register_loader("timestamptz", TimestamptzLoader)
            parameters: dict[str, Any] = {
                "every": not queues,
                "queues": list(queues),
                "limit": limit,
                "lease": self._lease,
                "worker": self._worker_id,
                "worker_name": self._worker_name,
            }
            if unknown:
                poll = dt.timedelta(seconds=POLLS_OF_OTHERS * conf.current().POLL_INTERVAL)
                parameters = {**parameters, "unknown": list(unknown), "poll": poll}
            execute(cursor, *self._sent(_CLAIM_AFTER_OTHERS if unknown else _CLAIM, parameters))
            return [row[1:] for row in cursor.fetchall()]

    def begin(self, ages: Mapping[Claim, float], *, wait: bool = True) -> Written:
        """Write when they started: so many seconds ago."""
        return self._statements.write(_BEGIN, list(ages), {"agos": list(ages.values())}, wait=wait)

    def renew(self, held: Iterable[Claim], *, wait: bool = True) -> Written:
        return self._statements.write(_RENEW, list(held), wait=wait, lease=self._lease)

    def progress(self, said: Mapping[Claim, str], *, wait: bool = True) -> Written:
        return self._statements.write(_PROGRESS, list(said), {"progress": list(said.values())}, wait=wait)

    def finish(self, outcomes: Sequence[tuple[Claim, Outcome]], *, wait: bool = True) -> Written:
        """Write outcomes, one commit for all: what each came to, as `Finished`."""
        settings = conf.current()
        written = self._statements.write(
            _FINISH,
            [claim for claim, _ in outcomes],
            {
                "statuses": [str(outcome.status) for _, outcome in outcomes],
                "results": [outcome.result for _, outcome in outcomes],
                "errors": [outcome.error for _, outcome in outcomes],
                "exceptions": [outcome.exception for _, outcome in outcomes],
                "delays": [outcome.delay for _, outcome in outcomes],
                "seconds": [outcome.seconds for _, outcome in outcomes],
                "agos": [time.monotonic() - outcome.ended for _, outcome in outcomes],
            },
            usual={"exceptions": ""},
            wait=wait,
            result_ttl=settings.RESULT_TTL,
            failure_ttl=settings.FAILURE_TTL,
        )
        for pk, (status, started) in written.items():
            written[pk] = Finished(status, started)
        return written

    def hand_back(self, held: Iterable[Claim], *, wait: bool = True) -> Written:
        """Have them wait again, no attempt spent."""
        return self._statements.write(_HAND_BACK, list(held), wait=wait, failure_ttl=conf.current().FAILURE_TTL)

    def release(self, unknown: Mapping[Claim, dt.datetime | None], *, wait: bool = True) -> Written:
        """Leave jobs to workers whose code knows their functions, no attempt spent: those it still holds, and not for too long.

        `unknown`: since when each was known to be unknown at its claim. Longer than `ORPHAN_GRACE` is too long.
        """
        return self._statements.write(
            _RELEASE,
            list(unknown),
            {"since": list(unknown.values())},
            wait=wait,
            grace=dt.timedelta(seconds=conf.current().ORPHAN_GRACE),
            failure_ttl=conf.current().FAILURE_TTL,
        )

    def to_stop(self) -> tuple[dict[Claim, bool], set[str]]:
        """The jobs of this worker that somebody asked to stop, and whether by force; and the queues paused since its claims."""
        with transaction.get_connection(self._using).cursor() as cursor:
            execute(cursor, _TO_STOP, {"worker": self._worker_id})
            rows = cursor.fetchall()
        asked = {(pk, claims): forced for pk, claims, forced, _queue, is_asked in rows if is_asked}
        return asked, {queue for *_, queue, is_asked in rows if not is_asked}

    def _sent(self, statement: str, parameters: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """What goes to PostgreSQL. (In tests it takes another instant for now.)"""
        return statement, parameters


def event_of(job: Job, attempt: int, outcome: Outcome, status: str) -> tuple[Signal, dict[str, Any]]:
    """What is told of a job that ended, once its outcome is written and it came to `status`."""
    event: dict[str, Any] = {"job": job, "attempt": attempt, "seconds": round(outcome.seconds, 3)}
    if status == Status.SUCCESSFUL:
        return signals.job_finished, event
    if status == Status.CANCELLED:
        return signals.job_cancelled, event
    retry_in = round(outcome.delay, 1) if status == Status.READY else None
    return signals.job_failed, {**event, "error": outcome.summary, "retry_in": retry_in}


class Lease(NamedTuple):
    """One that nobody has renewed, as it was seen."""

    job_id: uuid.UUID
    claims: int
    until: str | None  # PostgreSQL's own text: an instant that Python cannot express compares as well


def unrenewed_leases(*, using: str, limit: int) -> list[Lease]:
    """Up to `limit` leases of running jobs that have expired (or lie too far ahead), and that nobody has locked."""
    with transaction.get_connection(using).cursor() as cursor:
        cursor.execute(_LOOK, {**_limits(), "limit": limit})
        return [Lease(*row) for row in cursor.fetchall()]


def recover_lost(*, using: str, seen: Sequence[Lease] | None = None) -> int:
    """Find jobs whose worker vanished: READY again while attempts remain, or when they never began, else FAILED. How many.

    With `seen` only these leases, if they are still the same. Without, those that expired a whole `LEASE` ago: after an outage
    live workers need a moment to renew theirs, which only somebody who looks twice can give them (`housekeeping.Recovery`).
    """
    parameters = {
        **_limits(),
        "error": str(WorkerLost()),
        "exception": class_path(WorkerLost()),
        "failure_ttl": conf.current().FAILURE_TTL,
        "most_false_starts": MOST_FALSE_STARTS,
        "limit": RECOVERED_BATCH,
    }
    if seen is not None:
        ids, claims, leases = zip(*seen, strict=True)
        parameters |= {"ids": array(ids), "claims": array(claims), "leases": array(leases)}
    with transaction.get_connection(using).cursor() as cursor:
        cursor.execute(_RECOVER_OLD if seen is None else _RECOVER_SEEN, parameters)
        statuses = [status for (status,) in cursor.fetchall()]
    if statuses:
        failed = statuses.count(Status.FAILED)
        retried = statuses.count(Status.READY)
        signals.send(signals.jobs_recovered, using=using, retried=retried, failed=failed)
    return len(statuses)


def _limits() -> dict[str, Any]:
    return {"lease": dt.timedelta(seconds=conf.current().LEASE), "silent_after": SILENT_AFTER.total_seconds()}
