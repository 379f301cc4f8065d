"""Alerts: people are told once that a schedule is late, fails, missed a due time, or is well again.

Each scheduler and each worker looks every few seconds. What one of them notices becomes a row of `_pgwerk_alerts` in the
statement that finds it, and only who wrote the row sends the signal, after the commit. So each event is told at most once:
a process that dies in between takes it along, but its row stays. Mails are rows' news, gathered and claimed by one process
at a time: an outage of ten thousand schedules is one mail.

- *late*: due for longer than its grace (a minute at least) and taken by no scheduler, or its job has waited for
  `LONGEST_WAIT` to be run or handed over (not in a queue that somebody paused).
- *failing*: the newest of its runs that came to an end has used up its attempts; or it was set aside with an error.
- *missed*: due times that did not run: misfires, and what did not start in time. Not what overlaps an earlier job.
- *recovered*: it is late no longer, or has succeeded since. A schedule that is paused or deleted meanwhile ends its alerts
  in silence.
"""

import datetime as dt
import functools
import socket
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from django.core.mail import mail_admins
from django.db import DatabaseError, transaction

from pgwerk_django import conf, signals
from pgwerk_django.guarded import LOCK_TIMEOUT, PASSING, impatient, survive
from pgwerk_django.history import NEWEST_DECIDED
from pgwerk_django.loop import Every
from pgwerk_django.models import DUE, FAILED, LINES, MAY_RUN_SQL, MISSED, atomic
from pgwerk_django.sqlstates import Refusal, refusal_of

WATCH = dt.timedelta(seconds=5)
PATIENCE = 20  # times what a look has taken, to the next one
LATE_AFTER = 60  # seconds, or the schedule's own grace where that is longer
LONGEST_WAIT = 300  # seconds of a job that could run
LOOK_BACK = 600  # seconds: who fails or is missed while nobody looks for longer, is told of by its next failure
MOST = 10_000  # of a kind in one look; the rest in the next
MOST_OF_A_QUEUE = 1_000  # jobs, of each of its priorities
GATHER = 10  # seconds that news wait for more of them before they are mailed
MAIL_EVERY = 300  # seconds between two mails
MOST_LISTED = 50  # schedules of each kind, in one mail
LONGEST_WHY = 300
STOPS_WITHIN = 5.0
# Whose lock it is ("pgwk"), and what it guards: one process at a time looks, so that none waits for another.
ADVISORY_LOCK = (0x7067776B, 2)

LATE = f"""
{MAY_RUN_SQL} AND {DUE} < statement_timestamp() - interval '{LATE_AFTER} seconds'
AND {DUE} < statement_timestamp() - schedule.misfire_grace * interval '1 second'
"""

# A try to hand a job over moves its `run_at`; it has waited since it was written.
WAITS_FOR_TOO_LONG = f"""
(job.run_at < statement_timestamp() - interval '{LONGEST_WAIT} seconds' OR job.target <> 'worker' AND job.attempt > 0
    AND job.enqueued_at < statement_timestamp() - interval '{LONGEST_WAIT} seconds')
"""

# Nothing here is `NOT EXISTS`, which may become a join, and read all of the other table for each row of the one.
_UNTOLD = (
    "(SELECT 1 FROM _pgwerk_alerts alert WHERE alert.schedule_name = {} AND kind = '{}' AND ended_at IS NULL) IS NULL"
)
_MY_TURN = "(SELECT mine FROM turn)"

# What no tick has judged yet may be set aside again at once.
_JUDGED = """
NOT schedule.replan AND (schedule.next_run_at IS NULL OR schedule.next_run_at > statement_timestamp())
"""

# It reads far less than the planner fears, who would compile it first, or scan tables that had no rows when he last saw them.
_SETTINGS = f"{LOCK_TIMEOUT}; SET LOCAL jit = off; SET LOCAL enable_seqscan = off;"

_LOOK = f"""
WITH RECURSIVE turn AS MATERIALIZED (
    SELECT pg_try_advisory_xact_lock({ADVISORY_LOCK[0]}, {ADVISORY_LOCK[1]}) AS mine
), {LINES}, found AS (
    (SELECT name, 'late' AS kind, '' AS job_key, 'no scheduler has taken it' AS why,
        {DUE} AS since
    FROM _pgwerk_schedules schedule
    WHERE {LATE} AND {_UNTOLD.format("schedule.name", "late")} AND {_MY_TURN}
    ORDER BY {DUE} LIMIT {MOST})
    UNION ALL
    (SELECT waiting.schedule_name, 'late', waiting.key, 'its job waits in the queue ' || waiting.queue, waiting.run_at
    FROM lines, LATERAL (
        SELECT schedule_name, key, queue, run_at FROM _pgwerk_jobs job
        WHERE status = 'READY' AND target = 'worker' AND queue = lines.queue AND priority = lines.priority
            AND run_at < statement_timestamp() - interval '{LONGEST_WAIT} seconds'
        ORDER BY run_at LIMIT {MOST_OF_A_QUEUE}
    ) AS waiting
    WHERE schedule_name <> '' AND {_UNTOLD.format("waiting.schedule_name", "late")} AND {_MY_TURN}
        AND (SELECT paused FROM _pgwerk_queues queue WHERE queue.name = lines.queue) IS NOT TRUE)
    UNION ALL
    (SELECT schedule_name, 'late', key, 'its job waits to be handed over to ' || target, enqueued_at
    FROM (SELECT * FROM _pgwerk_jobs job WHERE status = 'READY' AND target <> 'worker' LIMIT {MOST}) AS job
    WHERE schedule_name <> '' AND {WAITS_FOR_TOO_LONG} AND {_UNTOLD.format("job.schedule_name", "late")} AND {_MY_TURN}
        AND (SELECT paused FROM _pgwerk_queues queue WHERE queue.name = job.queue) IS NOT TRUE)
    UNION ALL
    (SELECT name, 'failing', '', error, statement_timestamp() FROM _pgwerk_schedules schedule
    WHERE error <> '' AND {_UNTOLD.format("schedule.name", "failing")} AND {_MY_TURN} LIMIT {MOST})
    UNION ALL
    (SELECT schedule.name, 'failing', failed.key, right(failed.error, 2000), failed.finished_at
    FROM (
        SELECT DISTINCT ON (schedule_name) schedule_name, key, error, finished_at FROM _pgwerk_jobs job
        -- So said that `pgwerk_ended_badly`, which knows when, is the only index that fits.
        WHERE ({FAILED} OR {MISSED}) AND status <> 'SKIPPED' AND schedule_name <> ''
            AND {_UNTOLD.format("job.schedule_name", "failing")} AND {_MY_TURN}
            AND finished_at > statement_timestamp() - interval '{LOOK_BACK} seconds'
        ORDER BY schedule_name, key DESC LIMIT {MOST}
    ) AS failed
    JOIN _pgwerk_schedules schedule ON schedule.name = failed.schedule_name,
    {NEWEST_DECIDED.format(name="schedule.name")} AS decided WHERE decided.status = 'FAILED')
    UNION ALL
    (SELECT schedule_name, 'missed', key, reason, finished_at FROM _pgwerk_jobs job
    WHERE {MISSED} AND schedule_name <> '' AND {_MY_TURN}
        AND finished_at > statement_timestamp() - interval '{LOOK_BACK} seconds'
        AND (SELECT 1 FROM _pgwerk_alerts alert WHERE kind = 'missed' AND alert.job_key = job.key) IS NULL
    LIMIT {MOST})
), begun AS (
    INSERT INTO _pgwerk_alerts (schedule_name, kind, job_key, why, since, ended_at, news)
    SELECT name, kind, job_key, why, since, CASE WHEN kind = 'missed' THEN since END, %(mail)s FROM found
    ON CONFLICT DO NOTHING
    RETURNING schedule_name, kind, job_key, why, since
), over AS (
    SELECT alert.id, schedule.id IS NOT NULL AND NOT schedule.paused
        AND (kind = 'late' OR job_key = '' OR decided.status IS NOT NULL) AS told
    FROM _pgwerk_alerts alert
    LEFT JOIN _pgwerk_schedules schedule ON schedule.name = alert.schedule_name
    LEFT JOIN {NEWEST_DECIDED.format(name="CASE alert.kind WHEN 'failing' THEN alert.schedule_name END")} AS decided ON true
    WHERE ended_at IS NULL AND kind IN ('late', 'failing') AND {_MY_TURN} AND (
        schedule.id IS NULL
        OR kind = 'late' AND ({LATE}) IS NOT TRUE AND (
            SELECT 1 FROM _pgwerk_jobs job WHERE job.schedule_id = schedule.id AND status IN ('READY', 'RUNNING')
                AND status = 'READY' AND {WAITS_FOR_TOO_LONG} LIMIT 1
        ) IS NULL
        OR kind = 'failing' AND error = '' AND CASE WHEN job_key = '' THEN {_JUDGED} ELSE
            -- A failure that lies ahead is from when PostgreSQL's clock was ahead.
            decided.status IS NULL
            OR decided.status = 'SUCCESSFUL' AND (decided.finished_at > since OR since > statement_timestamp()) END
    )
), ended AS (
    UPDATE _pgwerk_alerts alert SET ended_at = statement_timestamp(), news = news OR told AND %(mail)s
    FROM over WHERE alert.id = over.id AND ended_at IS NULL
    RETURNING schedule_name, kind, job_key, why, since, told
)
SELECT false, schedule_name, kind, job_key, why, since, statement_timestamp() FROM begun
UNION ALL
SELECT true, schedule_name, kind, job_key, why, since, statement_timestamp() FROM ended WHERE told
UNION ALL
-- Not what this very statement writes: that is gathered first.
SELECT NULL, '', '', '', '', NULL::timestamptz, NULL::timestamptz WHERE %(mail)s AND EXISTS (
    SELECT FROM _pgwerk_alerts
    WHERE news AND coalesce(ended_at, noticed_at) NOT BETWEEN
        statement_timestamp() - interval '{GATHER} seconds' AND statement_timestamp() + interval '{GATHER} seconds'
)
"""  # noqa: S608  our own text


class Change(NamedTuple):
    """What one look noticed of one schedule."""

    is_over: bool
    name: str
    kind: str
    job_key: str
    why: str
    since: dt.datetime
    now: dt.datetime


class News(NamedTuple):
    """What one mail says of one schedule."""

    name: str
    kind: str
    why: str
    since: dt.datetime
    ended_at: dt.datetime | None
    is_known: bool  # from an earlier mail


class Watch:
    """The part that one process has in it. It sends from threads of its own: who hears of it may be slow, or hang."""

    def __init__(self, *, using: str) -> None:
        self._using = using
        self._time_to_look = Every(WATCH)
        self._time_to_look.again(WATCH.total_seconds())  # what waited for this very process is not late
        self._teller = signals.Teller()
        self._mailer = signals.Teller()

    def step(self) -> None:
        if self._time_to_look():
            started = time.monotonic()
            try:
                self.look()
            except DatabaseError as error:
                # Somebody locks a table, or it takes too long: no reason to hold up who looks.
                if refusal_of(error) not in (*PASSING, Refusal.TOO_LONG):
                    raise
                survive(self._using)
            # Where thousands of schedules are late, it takes its time: that must not make it worse.
            self._time_to_look.again(max(WATCH.total_seconds(), PATIENCE * (time.monotonic() - started)))

    def look(self) -> None:
        changes, is_mail_due = look(using=self._using)
        for change in changes:
            signal, event = _event(change)
            self._teller.send(signal, **event)
        if is_mail_due and (news := take_news(using=self._using)):
            self._mailer.do(functools.partial(mail, news))

    def close(self) -> None:
        self._teller.close(STOPS_WITHIN)
        self._mailer.close(STOPS_WITHIN)


def look(*, using: str) -> tuple[list[Change], bool]:
    """Note what has begun and what is over: what this process is to tell, and whether a mail may be due.

    One statement, which writes only what is new. Nothing where another process looks at this moment.
    """
    with transaction.get_connection(using).cursor() as cursor:
        # All go in one trip, as one transaction.
        cursor.execute(_SETTINGS + _LOOK.replace("%(mail)s", str(conf.current().MAIL_ADMINS)))
        for _ in range(_SETTINGS.count(";")):
            cursor.nextset()
        rows = [Change(*row) for row in cursor.fetchall()]
    return [row for row in rows if row.is_over is not None], any(row.is_over is None for row in rows)


def take_news(*, using: str) -> list[News]:
    """What is to be mailed now, claimed: nothing within `MAIL_EVERY` of another mail, whoever sent that."""
    with impatient(using), atomic(using), transaction.get_connection(using).cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s, %s)", ADVISORY_LOCK)
        if not cursor.fetchone()[0]:
            return []
        cursor.execute(
            f"""
            UPDATE _pgwerk_alerts alert SET news = false, mailed_at = statement_timestamp()
            FROM (SELECT id, mailed_at FROM _pgwerk_alerts WHERE news) AS before
            WHERE alert.id = before.id AND NOT EXISTS (
                SELECT FROM _pgwerk_alerts
                WHERE mailed_at > statement_timestamp() - interval '{MAIL_EVERY} seconds'
                    AND mailed_at < statement_timestamp() + interval '{MAIL_EVERY} seconds'
            )
            RETURNING schedule_name, kind, why, since, ended_at, before.mailed_at IS NOT NULL
            """  # noqa: S608  a number of ours
        )
        return sorted((News(*row) for row in cursor.fetchall()), key=lambda news: (news.since, news.name))


def _event(change: Change) -> tuple[Any, dict[str, Any]]:
    if change.is_over:
        seconds = round((change.now - change.since).total_seconds())
        return signals.schedule_recovered, {"name": change.name, "was": change.kind, "seconds": seconds}
    if change.kind == "late":
        seconds = round((change.now - change.since).total_seconds())
        return signals.schedule_late, {"name": change.name, "seconds": seconds, "why": change.why}
    if change.kind == "missed":
        return signals.schedule_missed, {"name": change.name, "key": change.job_key, "why": change.why}
    return signals.schedule_failing, {"name": change.name, "key": change.job_key, "error": briefly(change.why)}


def briefly(error: str) -> str:
    """Of a traceback, what was raised."""
    lines = [line for line in error.splitlines() if line.strip() and not line.startswith(" ")]
    return lines[-1][:LONGEST_WHY] if lines else error.strip()[:LONGEST_WHY]


# -- the mail

_HEADINGS = {"late": "Late", "failing": "Failing", "missed": "Missed", "recovered": "Recovered"}


def mail(news: Sequence[News]) -> None:
    """Tell the `ADMINS`. What cannot be sent is logged; it is on record all the same."""
    try:
        mail_admins(subject_of(news), body_of(news))
    except Exception as error:  # noqa: BLE001  # whatever a mail backend raises
        signals.send_now(signals.mail_failed, names=[each.name for each in news], error=error, exception=error)


def _heading(news: News) -> str:
    return "recovered" if news.ended_at is not None and news.is_known else news.kind


def subject_of(news: Sequence[News]) -> str:
    if len(news) == 1:
        return f"{news[0].name}: {_heading(news[0])}"
    counts = Counter(map(_heading, news))
    told = ", ".join(f"{counts[kind]} {kind}" for kind in _HEADINGS if counts[kind])
    return f"{len({each.name for each in news})} schedules: {told}"


def body_of(news: Sequence[News]) -> str:
    lines = []
    for kind, heading in _HEADINGS.items():
        of_kind = [each for each in news if _heading(each) == kind]
        if of_kind:
            lines += [f"{heading}:", *(f"- {_sentence(each)}" for each in of_kind[:MOST_LISTED])]
            lines += [f"- and {len(of_kind) - MOST_LISTED} more"] if len(of_kind) > MOST_LISTED else []
            lines.append("")
    lines.append(
        f"Sent by pgwerk_django on {socket.gethostname()}. What comes next is gathered for {MAIL_EVERY // 60} min."
    )
    return "\n".join(lines)


def _sentence(news: News) -> str:
    since = _at(news.since)
    why = briefly(news.why)
    if news.kind == "missed":
        return f"{news.name}: {why}"
    over = f"; over since {_at(news.ended_at)}" if news.ended_at else ""
    if _heading(news) == "recovered":
        return f"{news.name}: was {news.kind} since {since}{over} ({why})"
    if news.kind == "late":
        return f"{news.name}: due since {since}: {why}{over}"
    return f"{news.name}: since {since}: {why}{over}"


def _at(instant: dt.datetime) -> str:
    return instant.astimezone(dt.UTC).isoformat(sep=" ", timespec="seconds")
