"""The outbox: jobs that wait to be handed over, claimed under a lease; each change of theirs one guarded statement.

`claims` rises with each claim: who holds a job by an older one changes nothing.
"""

import datetime as dt
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from django.db import DatabaseError, transaction

from pgwerk_django import conf
from pgwerk_django.arrays import array
from pgwerk_django.exceptions import class_path, text_of, traceback_of
from pgwerk_django.guarded import PASSING, Statements, impatient, survive
from pgwerk_django.models import SILENT_AFTER, TARGETS, Job, Status
from pgwerk_django.sqlstates import Refusal, refusal_of
from pgwerk_django.text import LONGEST_ERROR, storable, storable_end

LONGEST_ID = 255

_COLUMNS = ", ".join(f"job.{field.column}" for field in Job._meta.concrete_fields)

# Literals, so that any plan is led by the index `pgwerk_outbox`.
_CLAIM = f"""
WITH picked AS MATERIALIZED (
    SELECT id FROM _pgwerk_jobs job
    WHERE status = 'READY' AND target <> 'worker' AND target = %(target)s AND run_at <= statement_timestamp()
        AND lease_until IS NULL
        AND (start_by IS NULL OR start_by > statement_timestamp())
        -- Not `NOT EXISTS`, for which all that waits might be read first.
        AND (SELECT paused FROM _pgwerk_queues queue WHERE queue.name = job.queue) IS NOT TRUE
    ORDER BY run_at LIMIT %(limit)s FOR UPDATE OF job SKIP LOCKED
)
UPDATE _pgwerk_jobs job SET
    claims = claims + 1, lease_until = statement_timestamp() + %(lease)s, worker_name = %(name)s
FROM picked WHERE job.id = picked.id
RETURNING {_COLUMNS}
"""  # noqa: S608  our own column names

# Nothing of the target: no index but that of the ids may lead here.
_HELD = "job.id = mine.id AND job.claims = mine.claims AND job.status = 'READY'"
_ENDED = "job.id = mine.id AND job.claims = mine.claims AND job.status <> 'READY'"

_FORWARD = f"""
UPDATE _pgwerk_jobs job SET
    status = 'FORWARDED', external_id = mine.external_id, attempt = attempt + 1, lease_until = NULL,
    error = '', exception = '', finished_at = CASE WHEN job.started_at IS NULL THEN statement_timestamp() END,
    expires_at = statement_timestamp() + coalesce(result_ttl, %(result_ttl)s) * interval '1 second'
FROM unnest(%(ids)s::uuid[], %(claims)s::integer[], %(external_ids)s::text[]) AS mine (id, claims, external_id)
WHERE {_HELD} RETURNING job.id
"""  # noqa: S608

# Somebody cancelled it, or its engine has told how it ended, before we could say that it was sent.
_NOTE_SENT = f"""
UPDATE _pgwerk_jobs job SET
    external_id = mine.external_id,
    reason = CASE WHEN job.status = 'CANCELLED' THEN job.reason || ' (too late: it had been handed over)' ELSE reason END
FROM unnest(%(ids)s::uuid[], %(claims)s::integer[], %(external_ids)s::text[]) AS mine (id, claims, external_id)
WHERE {_ENDED} RETURNING job.id
"""  # noqa: S608

_PUT_BACK = f"""
UPDATE _pgwerk_jobs job SET
    lease_until = NULL, attempt = attempt + 1, error = mine.error, exception = mine.exception,
    run_at = statement_timestamp() + mine.delay * interval '1 second'
FROM unnest(
    %(ids)s::uuid[], %(claims)s::integer[], %(errors)s::text[], %(exceptions)s::text[], %(delays)s::float8[]
) AS mine (id, claims, error, exception, delay)
WHERE {_HELD} RETURNING job.id
"""  # noqa: S608

_HAND_BACK = f"""
UPDATE _pgwerk_jobs job SET lease_until = NULL
FROM unnest(%(ids)s::uuid[], %(claims)s::integer[]) AS mine (id, claims)
WHERE {_HELD} RETURNING job.id
"""  # noqa: S608

_RENEW = f"""
UPDATE _pgwerk_jobs job SET lease_until = statement_timestamp() + %(lease)s
FROM unnest(%(ids)s::uuid[], %(claims)s::integer[]) AS mine (id, claims)
WHERE {_HELD} RETURNING job.id
"""  # noqa: S608

# A lease has expired, or lies far ahead, as it was given while PostgreSQL's clock was: a live scheduler has renewed it since.
_EXPIRED = "job.lease_until < statement_timestamp()"
_UNRENEWED = f"""
({_EXPIRED} OR job.lease_until > statement_timestamp() + 2 * %(lease)s AND (
    SELECT bool_or(abs(extract(epoch FROM heartbeat_at - statement_timestamp())) < %(silent_after)s)
    FROM _pgwerk_processes process WHERE role || ' ' || host || ':' || pid = job.worker_name
) IS NOT TRUE)
"""  # noqa: S608
_OLD = "job.lease_until < statement_timestamp() - %(lease)s"

# What is leased was the first of its target when it was claimed, so it is among the first ones still: no need to read all
# that waits. OFFSET 0 keeps the second half a look by the primary key for each.
_LOOK = f"""
WITH RECURSIVE {TARGETS}, leased AS MATERIALIZED (
    SELECT job.id FROM found, LATERAL (
        SELECT id, lease_until, worker_name FROM _pgwerk_jobs
        WHERE status = 'READY' AND target <> 'worker' AND target = found.target ORDER BY run_at LIMIT {{most}}
    ) job WHERE found.target IS NOT NULL AND {{condition}}
)
SELECT expired.* FROM leased CROSS JOIN LATERAL (
    SELECT id, claims, lease_until::text FROM _pgwerk_jobs job
    WHERE id = leased.id AND status = 'READY' AND {{condition}} OFFSET 0 FOR NO KEY UPDATE SKIP LOCKED
) expired
"""  # noqa: S608
MOST_LOOKED_AT = 1000  # of each target

_RELEASE = """
UPDATE _pgwerk_jobs job SET lease_until = NULL
FROM unnest(%(ids)s::uuid[], %(claims)s::integer[], %(leases)s::timestamptz[]) AS seen (id, claims, lease)
WHERE job.id = seen.id AND job.status = 'READY' AND job.claims = seen.claims AND job.lease_until = seen.lease
RETURNING job.id
"""


def unrenewed_leases(*, using: str, old: bool = False) -> list[tuple[uuid.UUID, int, str]]:
    """Leases of jobs that somebody was to hand over, which have expired (with `old`: a whole `LEASE` ago); `release`'s `seen`."""
    statement = _LOOK.format(most=MOST_LOOKED_AT, condition=_OLD if old else _UNRENEWED)
    limits = {"lease": dt.timedelta(seconds=conf.current().LEASE), "silent_after": SILENT_AFTER.total_seconds()}
    with transaction.get_connection(using).cursor() as cursor:
        cursor.execute(statement, limits)
        return cursor.fetchall()  # type: ignore[no-any-return]


def release(seen: Sequence[tuple[uuid.UUID, int, str]], *, using: str) -> int:
    """Let others hand over what somebody held by these leases, if they are still the same. How many jobs."""
    if not seen:
        return 0
    ids, claims, leases = zip(*seen, strict=True)
    with transaction.get_connection(using).cursor() as cursor:
        cursor.execute(_RELEASE, {"ids": array(ids), "claims": array(claims), "leases": array(leases)})
        return len(cursor.fetchall())


class Marked(set[uuid.UUID]):
    """The ids of the jobs that a statement has changed; and of those that are still held, but could not be changed now."""

    def __init__(self, ids: Iterable[uuid.UUID] = (), busy: Iterable[uuid.UUID] = ()) -> None:
        super().__init__(ids)
        self.busy = set(busy)


class Outbox:
    """The statements. Each is guarded by the claim, and gives back the ids of the jobs that it still held."""

    def __init__(self, name: str, *, using: str, now: dt.datetime | None = None) -> None:
        """`name` says who hands over, on the rows; a test may say at which instant."""
        self.using = using
        self._name = name
        self._now = now
        self._lease = dt.timedelta(seconds=conf.current().LEASE)
        self._of_ready = Statements(_HELD, using=using, sent=self._at)
        self._of_ended = Statements(_ENDED, using=using, sent=self._at)

    def claim(self, target: str, limit: int) -> list[Job]:
        """Up to `limit` jobs of a target, the first to run first. None while somebody locks the table."""
        parameters = {"target": target, "limit": limit, "lease": self._lease, "name": self._name}
        try:
            with impatient(self.using):
                jobs = list(Job.objects.using(self.using).raw(*self._at(_CLAIM, parameters)))
        except DatabaseError as error:
            if refusal_of(error) not in PASSING:
                raise
            return []
        return sorted(jobs, key=lambda job: (-job.priority, job.run_at))

    def forward(self, sent: Sequence[tuple[Job, str]]) -> Marked:
        """Mark what was sent, with the ids that it has there."""
        ttl = conf.current().RESULT_TTL
        return self._write(_FORWARD, [job for job, _ in sent], {"external_ids": _external_ids(sent)}, result_ttl=ttl)

    def note_sent(self, sent: Sequence[tuple[Job, str]]) -> Marked:
        """Note it on those that have come to something else meanwhile."""
        columns = {"external_ids": _external_ids(sent)}
        return self._write(_NOTE_SENT, [job for job, _ in sent], columns, statements=self._of_ended)

    def put_back(self, jobs: Sequence[Job], error: BaseException, delays: Sequence[float]) -> Marked:
        text = storable_end(traceback_of(error), LONGEST_ERROR)
        columns: dict[str, Sequence[object]] = {
            "errors": [text for _ in jobs],
            "exceptions": [storable(class_path(error)) for _ in jobs],
            "delays": delays,
        }
        return self._write(_PUT_BACK, jobs, columns)

    def hand_back(self, jobs: Sequence[Job]) -> Marked:
        return self._write(_HAND_BACK, jobs)

    def renew(self, jobs: Sequence[Job]) -> Marked:
        return self._write(_RENEW, jobs, lease=self._lease)

    def _write(
        self,
        statement: str,
        jobs: Sequence[Job],
        columns: Mapping[str, Sequence[object]] | None = None,
        *,
        statements: Statements | None = None,
        **parameters: Any,
    ) -> Marked:
        held, columns = [(job.pk, job.claims) for job in jobs], columns or {}
        try:
            written = (statements or self._of_ready).write(statement, held, columns, **parameters)
            return Marked(written, written.busy | written.refused.keys())
        except DatabaseError as error:
            if refusal_of(error) is not Refusal.TOO_LONG or transaction.get_connection(self.using).in_atomic_block:
                raise
        survive(self.using)
        marked = Marked()
        for half in (slice(len(jobs) // 2), slice(len(jobs) // 2, None)):
            its_columns = {name: values[half] for name, values in columns.items()}
            some = self._write(statement, jobs[half], its_columns, statements=statements, **parameters)
            marked |= some
            marked.busy |= some.busy
        return marked

    def targets(self) -> list[str]:
        """Those that have something to be sent."""
        jobs = Job.objects.using(self.using)
        if self._now is None:
            return jobs.waiting_targets()
        waiting = jobs.filter(status=Status.READY).exclude(target="worker").order_by("target")
        return list(waiting.values_list("target", flat=True).distinct())

    def _at(self, statement: str, parameters: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        if self._now is None:
            return statement, parameters
        return statement.replace("statement_timestamp()", "%(now)s"), {**parameters, "now": self._now}


def _external_ids(sent: Sequence[tuple[Job, str]]) -> list[str]:
    return [storable(text_of(external_id), LONGEST_ID) for _, external_id in sent]
