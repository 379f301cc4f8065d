"""One tick: lock what is due, work out what becomes of it, write jobs and advance schedules in one statement."""

import datetime as dt
import functools
import time
from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import psycopg
from django.db import DatabaseError, transaction
from psycopg.types.datetime import TimestamptzLoader

from pgwerk_django import conf, policies, prepared, signals, spans
from pgwerk_django.arrays import array
from pgwerk_django.exceptions import named
from pgwerk_django.models import Schedule, atomic, instant, next_planned, recurrence_of
from pgwerk_django.pace import Batch, Pace
from pgwerk_django.sqlstates import Refusal, described, refusal_of
from pgwerk_django.text import storable

# All a tick reads of a schedule: the payload never leaves PostgreSQL.
_READ = (
    "pk", "name", "cron", "interval", "timezone", "anchor_at", "created_at", "starts_at", "ends_at", "max_runs", "run_count",
    "misfire", "misfire_grace", "next_run_at", "last_run_at", "replan", "triggered_at", "paused", "now",
)  # fmt: skip
_Row = namedtuple("_Row", _READ)  # type: ignore[misc]
LONGEST_ERROR = 2000
# As many rows as PostgreSQL takes an array for whose length it does not know. For more, to plan is the least of the work.
MOST_FOR_A_KEPT_PLAN = 10


@dataclass(slots=True)
class Plan:
    """What one tick will write for one schedule."""

    pk: int
    name: str
    triggered_at: dt.datetime | None = None
    recurs: bool = False  # the recurrence is due: the fields below say what becomes of it
    next_run_at: dt.datetime | None = None
    fire: Sequence[dt.datetime] = ()
    dropped: policies.Span | None = None
    error: str = ""
    exception: Exception | None = None  # behind it

    @property
    def oldest(self) -> dt.datetime | None:
        """The due time that has waited longest for this tick."""
        scheduled = self.dropped.first if self.dropped else self.fire[0] if self.fire else None
        if self.triggered_at is None or scheduled is None:
            return self.triggered_at or scheduled
        return min(self.triggered_at, scheduled)

    def rows(self) -> Iterator[tuple[object, ...]]:
        """What is written of it, oldest due time first: the last row is the one that advances the schedule."""
        due: list[tuple[dt.datetime | None, dt.datetime | None, str, int]] = []
        if self.triggered_at is not None:
            due.append((self.triggered_at, None, "trigger", 1))
        if self.dropped is not None:
            due.append((self.dropped.first, self.dropped.last, "scheduled", 1))
        for nth, due_at in enumerate(self.fire, 1):
            due.append((due_at, None, "scheduled", nth))
        triggered, last = self.triggered_at is not None, len(due) or 1
        for number, each in enumerate(due or [(None, None, "scheduled", 1)], 1):
            yield self.pk, self.next_run_at, self.recurs, triggered, self.error, *each, number == last


class Outcome(NamedTuple):
    """What a tick wrote, in rows."""

    jobs: int = 0
    skipped: int = 0
    left: tuple[int, ...] = ()  # schedules that are as they were, by their numbers: they are due still

    def __add__(self, other: "Outcome") -> "Outcome":  # type: ignore[override]
        return Outcome(self.jobs + other.jobs, self.skipped + other.skipped, self.left + other.left)


def tick(
    *,
    using: str,
    batch_size: int | None = None,
    now: dt.datetime | None = None,
    since: dt.datetime | None = None,
    pace: Pace | None = None,
) -> int:
    """Handle up to `batch_size` schedules due by PostgreSQL's clock (in tests, at `now`) in one transaction; how many that were.

    With `since` only those that were not due before it. With `pace`, which one process gives to all of its ticks, a tick that
    the database cancels for its size raises nothing: `pace.was_cut` says so, and the next one takes less.

    Two halves of a schedule are due apart: a trigger makes one job beside the cadence, and the recurrence goes as it
    would have gone without it.
    """
    batch_size = batch_size or conf.current().BATCH_SIZE
    with spans.watch.tick():
        if pace is None:
            return _whole_tick(Batch(batch_size), using=using, now=now, since=since)
        batch = pace.next_batch(batch_size)
        if batch is None:
            return 0
        try:
            handled = _whole_tick(batch, using=using, now=now, since=since)
        except DatabaseError as error:
            connection = transaction.get_connection(using)
            if refusal_of(error) not in _TOO_MUCH or connection.in_atomic_block:
                raise
            if connection.connection is not None and connection.connection.closed:  # some limits end the session
                connection.close()
            _tell_of_cut(batch, pace.cut(batch), error)
            return 0
        pace.fitted(batch)
        return handled


# A lock that is held for long makes a statement too long, too: with fewer rows there are fewer locks to wait for.
_TOO_MUCH = (Refusal.TOO_LONG, Refusal.BUSY)


def _tell_of_cut(batch: Batch, rests: float, error: DatabaseError) -> None:
    if rests and batch.names:
        why = f"{described(error)}; it is tried again in {rests:g} s"
        signals.send_now(signals.schedule_left_alone, name=batch.names[0], why=why)
    else:
        number = len(batch.names) or batch.limit
        signals.send_now(
            signals.tick_cut_short, schedules=number, error=described(error), batch_size=max(number // 2, 1)
        )


def _whole_tick(batch: Batch, *, using: str, now: dt.datetime | None, since: dt.datetime | None) -> int:
    try:
        return _tick(_write, batch, using=using, now=now, since=since)
    except DatabaseError as error:
        if not _is_a_row_to_blame(error):
            raise
    # Once more, from the start: to find the culprit takes savepoints, which the usual tick does without.
    return _tick(_record, batch, using=using, now=now, since=since)


def _tick(
    record: Callable[..., "Outcome"],
    batch: Batch,
    *,
    using: str,
    now: dt.datetime | None,
    since: dt.datetime | None,
) -> int:
    settings = conf.current()
    started = time.perf_counter()
    batch.forget()
    with atomic(using):
        rows = _claim(batch.limit, using=using, now=now, since=since, only=batch.only, without=batch.without)
        batch.took(rows)
        if not rows:
            return 0
        # In UTC, whatever the connection's zone: sums of instants in any other go by the clock on the wall.
        now = rows[0].now.astimezone(dt.UTC)
        plans = [plan(row, now=now, cap=settings.MAX_CATCH_UP) for row in rows]
        outcome = record(plans, now=now, using=using)
        for failed in plans:
            if failed.error:
                signals.send(
                    signals.schedule_set_aside,
                    using=using,
                    name=failed.name,
                    error=failed.error,
                    exception=failed.exception,
                )
        signals.send(
            signals.ticked,
            using=using,
            schedules=len(plans),
            jobs=outcome.jobs,
            skipped=outcome.skipped,
            milliseconds=round((time.perf_counter() - started) * 1000),
            misfired=sum(planned.dropped is not None and not planned.error for planned in plans),
            late=round((now - min((each.oldest for each in plans if each.oldest), default=now)).total_seconds(), 3),
        )
    batch.left = outcome.left
    return len(plans) - len(outcome.left)


@functools.lru_cache(maxsize=8)
def _claim_query(
    limit: int,
    using: str,
    now: dt.datetime | None,
    since: dt.datetime | None,
    only: int | None = None,
    without: tuple[int, ...] = (),
) -> str:
    """The ORM's own text, which is always the same: to make it takes a millisecond."""
    due = Schedule.objects.using(using).due(now, since=since).annotate(now=instant(now))
    if only is not None:
        due = due.filter(pk=only)
    elif without:
        due = due.exclude(pk__in=without)
    due = due.claim(limit)
    statement, parameters = due.values_list(*_READ).query.get_compiler(using).as_sql()
    # With all values in it, LIMIT's above all: a plan that does not know it takes it for a tenth of the table.
    connection = transaction.get_connection(using).connection
    return psycopg.ClientCursor(connection).mogrify(statement, parameters).replace("%", "%%")


def _claim(
    limit: int,
    *,
    using: str,
    now: dt.datetime | None,
    since: dt.datetime | None = None,
    only: int | None = None,
    without: tuple[int, ...] = (),
) -> list[Any]:
    with transaction.get_connection(using).cursor() as cursor:
        # Django's loader is written in Python and takes 7 ms for a thousand rows; psycopg's own, in C, less than one.
        cursor.adapters.register_loader("timestamptz", TimestamptzLoader)
        statement = _claim_query(limit, using, now, since, only, without)
        if now is None and since is None and only is None and not without:
            prepared.execute(cursor, "claim", statement, {})
        else:
            cursor.execute(statement, {})
        return list(map(_Row._make, cursor.fetchall()))


def plan(row: Any, *, now: dt.datetime, cap: int) -> Plan:
    """Work out what is due of `row` (a schedule, or its columns of `_READ`) at `now`. Reads no clock and no table."""
    planned = Plan(row.pk, row.name)
    if row.triggered_at is not None and row.triggered_at <= now:
        planned.triggered_at = row.triggered_at
    if not row.paused and row.next_run_at is not None and row.next_run_at <= now:
        planned.recurs = True
        try:
            _plan_recurrence(planned, row, now, cap)
        except Exception as error:  # noqa: BLE001  # whatever a row holds, it must not delay the others
            planned.error, planned.exception = _message(error), error
    return planned


def _plan_recurrence(planned: Plan, row: Any, now: dt.datetime, cap: int) -> None:
    if row.replan:
        planned.next_run_at = next_planned(row, now)
        return
    recurrence = recurrence_of(row)
    if row.max_runs is not None:
        cap = min(cap, row.max_runs - row.run_count)
        if cap <= 0:
            return
    first = row.next_run_at
    if row.last_run_at is not None and first <= row.last_run_at:
        first = recurrence.next_after(row.last_run_at)
        if first is None or first > now:
            planned.next_run_at = first
            return
    due = policies.due_times(
        recurrence,
        first=first,
        now=now,
        misfire=row.misfire,
        grace=dt.timedelta(seconds=row.misfire_grace),
        cap=cap,
    )
    planned.fire, planned.dropped, planned.next_run_at = due.fire, due.dropped, due.following


def _message(error: BaseException) -> str:
    return storable(named(error).strip(), LONGEST_ERROR)


# Statuses are literals: as parameters they could not lead a generic plan to the partial indexes.
_WRITE_NEW = """
WITH plan AS MATERIALIZED (
    -- A row for each due time, its schedule's last one with what becomes of the schedule; one with no due time has a row too.
    -- An array with nothing but the usual value comes empty, and reads as NULLs.
    SELECT schedule_id, next_run_at, coalesce(recurs, true) AS recurs, coalesce(triggered, false) AS triggered,
        coalesce(error, '') AS error, due_at, dropped_until, coalesce(kind, 'scheduled') AS kind, coalesce(nth, 1) AS nth,
        coalesce(is_last, true) AS is_last,
        to_char(due_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS due_text,
        to_char(dropped_until AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS dropped_text
    FROM unnest(
        %(pks)s::bigint[], %(next_run_ats)s::timestamptz[], %(recurs)s::boolean[], %(triggered)s::boolean[],
        %(errors)s::text[], %(due_ats)s::timestamptz[], %(dropped_untils)s::timestamptz[], %(kinds)s::text[],
        %(nths)s::integer[], %(are_last)s::boolean[]
    ) AS plan (schedule_id, next_run_at, recurs, triggered, error, due_at, dropped_until, kind, nth, is_last)
), wanted AS MATERIALIZED (
    -- Not `s.*`: these rows are stored in between, and what is not used of a schedule is half of it.
    SELECT
        s.id, s.name, s.function, s.target, s.queue, s.priority, s.args, s.kwargs, s.meta, s.max_attempts, s.backoff,
        s.timeout, s.result_ttl, s.failure_ttl, s.jitter, s.triggered_by, s.start_within,
        CASE WHEN due.recurs THEN due.next_run_at WHEN NOT s.paused THEN s.next_run_at END AS next_due_at,
        due.due_at, due.dropped_until, due.kind, due.due_text, due.dropped_text,
        -- What is late starts from now: after an outage it is to be spread, too.
        CASE WHEN due.due_at >= %(now)s::timestamptz - s.misfire_grace * interval '1 second' THEN due.due_at ELSE %(now)s END
            AS jitter_from,
        s.name || '@' || due.due_text || CASE due.kind WHEN 'trigger' THEN '#trigger' ELSE '' END AS key,
        CASE
            WHEN due.dropped_until IS NOT NULL THEN
                'misfire: due from ' || due.due_text || ' to ' || due.dropped_text
                || ', noticed later than the grace of ' || s.misfire_grace || ' s (' || s.misfire || ')'
            WHEN due.kind = 'trigger' OR s.overlap = 'ALLOW' THEN ''
            WHEN earlier.id IS NOT NULL THEN
                'overlap: an earlier job is ' || CASE earlier.status WHEN 'READY' THEN 'waiting' ELSE 'running' END
                || ' (' || s.overlap || '): job ' || earlier.id
            WHEN due.nth > 1 THEN
                'overlap: an earlier due time of the same tick is waiting (' || s.overlap || ')'
            ELSE ''
        END AS skip_reason
    FROM plan AS due
    -- OFFSET 0 keeps this a look by the primary key for each: the planner, which cannot see how many an array holds, would
    -- scan the table.
    CROSS JOIN LATERAL (SELECT * FROM _pgwerk_schedules WHERE id = due.schedule_id OFFSET 0) s
    LEFT JOIN LATERAL (
        SELECT j.id, j.status FROM _pgwerk_jobs j
        WHERE s.overlap <> 'ALLOW' AND due.kind = 'scheduled' AND due.dropped_until IS NULL
            AND j.schedule_id = s.id AND j.status IN ('READY', 'RUNNING')
            AND (j.status = 'READY' OR s.overlap = 'SKIP')
            AND (j.status = 'RUNNING' OR j.start_by IS NULL OR j.start_by > %(now)s)
        ORDER BY j.status LIMIT 1
    ) earlier ON true
    WHERE due.due_at IS NOT NULL
    -- The sort comes to an end before the first insert. Else a table of jobs that was vacuumed when it was empty is
    -- scanned for each row of `due`, and grows meanwhile.
    ORDER BY due.due_at
), timed AS (
    SELECT *, CASE
        WHEN skip_reason = '' AND jitter > 0 AND kind = 'scheduled' THEN
            -- md5, since PostgreSQL's own hash functions may change from version to version
            greatest(%(now)s, jitter_from + (
                ('x' || substr(md5(key), 1, 8))::bit(32)::bigint %% (jitter::bigint + 1)
            ) * interval '1 second')
        ELSE %(now)s END AS run_at
    FROM wanted
), inserted AS (
    INSERT INTO _pgwerk_jobs (
        key, schedule_id, schedule_name, due_at, kind, function, target, queue, priority, args, kwargs, meta,
        status, reason, max_attempts, backoff, timeout, result_ttl, failure_ttl, enqueued_at, run_at, start_by, result,
        finished_at, expires_at
    )
    SELECT
        key, id, name, due_at, kind, function, target, queue, priority, args, kwargs, meta,
        CASE skip_reason WHEN '' THEN 'READY' ELSE 'SKIPPED' END,
        CASE WHEN kind = 'trigger' AND triggered_by <> '' THEN 'triggered by ' || triggered_by ELSE skip_reason END,
        max_attempts, backoff, timeout, result_ttl, failure_ttl, %(now)s, run_at,
        CASE WHEN skip_reason = '' THEN CASE WHEN start_within = 0 THEN next_due_at
            ELSE run_at + start_within * interval '1 second' END END,
        CASE WHEN dropped_until IS NOT NULL THEN
            jsonb_build_object('first_due_at', due_text, 'last_due_at', dropped_text) END,
        CASE WHEN skip_reason <> '' THEN %(now)s END,
        CASE WHEN skip_reason <> '' THEN
            %(now)s + coalesce(result_ttl, %(result_ttl)s) * interval '1 second' END
    FROM timed
    ON CONFLICT (key) DO NOTHING
    RETURNING key, schedule_id, kind, status
), advanced AS (
    UPDATE _pgwerk_schedules s SET
        next_run_at = CASE
            WHEN NOT plan.recurs THEN s.next_run_at
            WHEN s.run_count + coalesce(fired.n, 0) >= s.max_runs THEN NULL
            ELSE plan.next_run_at
        END,
        replan = s.replan AND NOT plan.recurs,
        triggered_at = CASE WHEN plan.triggered OR plan.error <> '' THEN NULL ELSE s.triggered_at END,
        triggered_by = CASE WHEN plan.triggered OR plan.error <> '' THEN '' ELSE s.triggered_by END,
        run_count = s.run_count + coalesce(fired.n, 0),
        last_run_at = CASE plan.kind
            WHEN 'scheduled' THEN greatest(s.last_run_at, plan.dropped_until, plan.due_at) ELSE s.last_run_at END,
        error = CASE WHEN plan.recurs THEN plan.error ELSE s.error END
    FROM plan
    -- As above. We hold these rows, so nobody can have moved them.
    CROSS JOIN LATERAL (
        SELECT ctid AS place, next_run_at, triggered_at FROM _pgwerk_schedules WHERE id = plan.schedule_id OFFSET 0
    ) held
    LEFT JOIN (
        SELECT schedule_id, count(*) AS n FROM inserted WHERE kind = 'scheduled' AND status = 'READY' GROUP BY 1
    ) fired USING (schedule_id)
    WHERE plan.is_last AND s.ctid = held.place
    RETURNING s.id, s.next_run_at IS DISTINCT FROM held.next_run_at OR s.triggered_at IS DISTINCT FROM held.triggered_at AS moved
)
SELECT
    count(*) FILTER (WHERE status = 'READY'),
    count(*) FILTER (WHERE status = 'SKIPPED'),
    CASE WHEN count(*) < (SELECT count(*) FROM wanted) THEN
        ARRAY(SELECT key FROM wanted EXCEPT SELECT key FROM inserted) ELSE '{}' END,
    -- Due still, as a trigger of the site has undone this, or refused it without a word: to come again at once would never end.
    CASE WHEN (SELECT count(*) FROM advanced WHERE moved) < %(schedules)s THEN
        ARRAY(SELECT schedule_id FROM plan WHERE is_last EXCEPT SELECT id FROM advanced WHERE moved) ELSE '{}' END
FROM inserted
"""
# A due time that is on record already is as good as never met, and to be ready for it takes PostgreSQL a tenth of the time.
# Where it is met, the key refuses the lot, and the tick is made once more.
_WRITE = _WRITE_NEW.replace("ON CONFLICT (key) DO NOTHING", "")


def _record(plans: list[Plan], *, now: dt.datetime, using: str) -> Outcome:
    """Write what is not on record; where the database refuses, halve it until the culprit is alone, and set that one aside."""
    try:
        with transaction.atomic(using=using):
            return _write(plans, now=now, using=using, only_new=True)
    except DatabaseError as error:
        if not _is_a_row_to_blame(error):
            raise
        if len(plans) == 1:
            return _set_aside(plans[0], error, using=using)
    half = len(plans) // 2
    return _record(plans[:half], now=now, using=using) + _record(plans[half:], now=now, using=using)


def _is_a_row_to_blame(error: DatabaseError) -> bool:
    """Whether leaving a row out may help: it does not in an outage, nor for a table that is missing."""
    return refusal_of(error) is Refusal.BAD_VALUE


def _write(plans: list[Plan], *, now: dt.datetime, using: str, only_new: bool = False) -> Outcome:
    """Write the plans; unless it is to be `only_new`, a due time that is on record already is an `IntegrityError`."""
    statement = _WRITE_NEW if only_new else _WRITE
    pks, nexts, recurs, triggered, errors, due_ats, untils, kinds, nths, are_last = zip(
        *(row for each in plans for row in each.rows()), strict=True
    )
    parameters = {
        "pks": array(pks),
        "next_run_ats": array(nexts, usual=None),
        "recurs": array(recurs, usual=True),
        "triggered": array(triggered, usual=False),
        "errors": array(errors, usual=""),
        "due_ats": array(due_ats, usual=None),
        "dropped_untils": array(untils, usual=None),
        "kinds": array(kinds, usual="scheduled"),
        "nths": array(nths, usual=1),
        "are_last": array(are_last, usual=True),
        "now": now,
        "result_ttl": conf.current().RESULT_TTL,
        "schedules": len(plans),
    }
    with transaction.get_connection(using).cursor() as cursor:
        if len(pks) > MOST_FOR_A_KEPT_PLAN:
            cursor.execute(statement, parameters)
        else:
            prepared.execute(cursor, "write", statement, parameters)
        jobs, skipped, repeated, left = cursor.fetchone()
    for key in repeated:
        signals.send(signals.due_time_repeated, using=using, key=key)
    for planned in plans if left else ():
        if planned.pk in left:
            signals.send(signals.schedule_left_alone, using=using, name=planned.name, why=_UNMOVED)
    return Outcome(jobs, skipped, tuple(left))


_UNMOVED = "its row did not take what the tick wrote: a trigger on the table prevents it"


def _set_aside(planned: Plan, error: DatabaseError, *, using: str) -> Outcome:
    """Out of the index with it, its error on the row; an edit, a restart or an hour brings it back."""
    message = _message(error)
    try:
        with transaction.atomic(using=using):
            Schedule.objects.using(using).filter(pk=planned.pk).update(
                error=message, next_run_at=None, triggered_at=None, triggered_by=""
            )
    except DatabaseError as refused:
        if not _is_a_row_to_blame(refused):
            raise
        # Not even that can be written: the row stays as it is, and the rest of the tick stands.
        signals.send(signals.schedule_left_alone, using=using, name=planned.name, why=_message(refused))
        return Outcome(left=(planned.pk,))
    planned.error, planned.exception = message, error
    return Outcome()
