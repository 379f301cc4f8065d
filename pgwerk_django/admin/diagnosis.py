"""Why didn't it run? Each reason there can be, looked at in turn."""

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from django.db import transaction
from django.utils.translation import gettext, ngettext

from pgwerk_django import targets
from pgwerk_django.admin.display import moment_text, span, unknown_in_words
from pgwerk_django.admin.forms import is_admitted
from pgwerk_django.admin.handover import last_line, waiting_job
from pgwerk_django.exceptions import text_of
from pgwerk_django.history import Run
from pgwerk_django.models import AHEAD, SILENT_AFTER, Job, Process, Queue, Status
from pgwerk_django.policies import Overlap

MOST_COUNTED = 1000


class Finding(NamedTuple):
    """`bad`: it does not run because of this. `wait`: it will, or one due time did not. `ok`: this is not the reason."""

    kind: str
    text: str


class Surroundings(NamedTuple):
    """What else a run depends on."""

    processes: Sequence[Process]
    queue: Queue | None
    waiting: int
    oldest: dt.datetime | None
    unknown: int  # jobs of its function that wait for a worker whose code has it
    to_send: Job | None

    @classmethod
    def of(cls, row: Any) -> "Surroundings":
        using = row._state.db
        lately = (row.judged_at - SILENT_AFTER, row.judged_at + SILENT_AFTER)
        processes = list(Process.objects.using(using).filter(heartbeat_at__range=lately))
        queue = Queue.objects.using(using).filter(name=row.queue).first()
        with transaction.get_connection(using).cursor() as cursor:
            cursor.execute(
                """
                SELECT count(*), min(run_at), (
                    SELECT count(*) FROM (
                        SELECT FROM _pgwerk_jobs
                        WHERE status = 'READY' AND unknown_since IS NOT NULL AND queue = %(queue)s
                            AND function = %(function)s LIMIT %(most)s
                    ) AS unknown
                ) FROM (
                    SELECT run_at FROM _pgwerk_jobs
                    WHERE status = 'READY' AND target = 'worker' AND queue = %(queue)s
                        AND run_at <= statement_timestamp() LIMIT %(most)s
                ) AS waiting
                """,
                {"queue": row.queue, "function": row.function, "most": MOST_COUNTED},
            )
            waiting, oldest, unknown = cursor.fetchone()
        to_send = None if row.target == "worker" else waiting_job(row)
        return cls(processes, queue, waiting, oldest, unknown, to_send)


def findings(row: Any, runs: Sequence[Run], around: Surroundings) -> list[Finding]:
    """What is in the way first, then what is not."""
    found = [*_of_the_row(row), *_of_schedulers(row, around), *_of_the_last(row, runs), *_of_workers(row, around)]
    return sorted(found, key=lambda finding: ("bad", "wait", "ok").index(finding.kind))


def _of_the_row(row: Any) -> Iterator[Finding]:
    now = row.judged_at
    if row.error:
        yield Finding(
            "bad", gettext("It was set aside with an error; an edit, or a restart of a scheduler, tries again.")
        )
    if row.paused:
        by = gettext(" by %(by)s") % {"by": row.paused_by} if row.paused_by else ""
        why = f": {row.pause_reason}" if row.pause_reason else "."
        since = moment_text(row.paused_at) if row.paused_at else "?"
        yield Finding(
            "bad", gettext("It is paused since %(since)s%(by)s%(why)s") % {"since": since, "by": by, "why": why}
        )
    else:
        yield Finding("ok", gettext("It is not paused."))
    if row.starts_at and row.starts_at > now:
        yield Finding("wait", gettext("It does not run before %(at)s.") % {"at": moment_text(row.starts_at)})
    if row.ends_at and row.ends_at < now:
        yield Finding("bad", gettext("It does not run after %(at)s.") % {"at": moment_text(row.ends_at)})
    if row.last_run_at and row.last_run_at > now + AHEAD:
        words = gettext(
            "Its last run, %(at)s, lies ahead of PostgreSQL's clock: it does not run before that. Pause and resume it to start it anew."
        )
        yield Finding("bad", words % {"at": moment_text(row.last_run_at)})
    if row.max_runs is not None and row.run_count >= row.max_runs:
        yield Finding("bad", gettext("It has had its %(n)d runs.") % {"n": row.max_runs})
    elif row.next_run_at is None and not row.error:
        yield Finding("bad", gettext("It has ended: no due time follows."))
    if is_admitted(row.function):
        for problem in _of_the_target(row):
            yield Finding("bad", problem)


def _of_the_target(row: Any) -> Iterable[str]:
    try:
        return targets.get(row.target).problems(row)
    except ValueError as error:
        return [text_of(error)]


def _of_schedulers(row: Any, around: Surroundings) -> Iterator[Finding]:
    schedulers = [process for process in around.processes if process.role == "scheduler"]
    if not schedulers:
        yield Finding("bad", gettext("No scheduler is alive, so nothing becomes a job: start manage.py runscheduler."))
    else:
        n = len(schedulers)
        yield Finding("ok", ngettext("%(n)d scheduler is alive.", "%(n)d schedulers are alive.", n) % {"n": n})
    grace = dt.timedelta(seconds=row.misfire_grace)
    due_at = (
        None
        if row.error
        else min(filter(None, (None if row.paused else row.next_run_at, row.triggered_at)), default=None)
    )
    if due_at and due_at < row.judged_at - grace:
        late = span(row.judged_at - due_at)
        yield Finding("bad", gettext("It has been due for %(span)s, and no scheduler has taken it.") % {"span": late})


def _of_the_last(row: Any, runs: Sequence[Run]) -> Iterator[Finding]:
    still = next((run for run in runs if run.status in (Status.READY, Status.RUNNING)), None)
    if still is None:
        yield Finding("ok", gettext("No earlier job is in its way."))
    elif row.overlap == Overlap.SKIP or (row.overlap == Overlap.BUFFER_ONE and still.status == Status.READY):
        words = (
            gettext("The job of %(at)s is still waiting: due times are skipped until it has begun.")
            if row.overlap == Overlap.BUFFER_ONE
            else gettext("The job of %(at)s is not finished: due times are skipped until it is.")
        )
        yield Finding("wait", words % {"at": moment_text(still.due_at)})
    if runs and runs[0].status == Status.SKIPPED:
        words = gettext("The last due time, %(at)s, was skipped: %(reason)s")
        yield Finding("wait", words % {"at": moment_text(runs[0].due_at), "reason": runs[0].reason})
    if runs and runs[0].status == Status.FAILED:
        yield Finding("wait", gettext("It ran at %(at)s, and failed.") % {"at": moment_text(runs[0].due_at)})


def _of_workers(row: Any, around: Surroundings) -> Iterator[Finding]:
    if row.target != "worker":
        yield from _of_handover(row, around)
        return
    serving = [p for p in around.processes if p.role == "worker" and (not p.served or row.queue in p.served)]
    if not serving:
        words = gettext("No live worker serves the queue %(queue)s: its jobs wait.")
        yield Finding("bad", words % {"queue": row.queue})
    else:
        words = ngettext(
            "%(n)d worker serves the queue %(queue)s.", "%(n)d workers serve the queue %(queue)s.", len(serving)
        )
        yield Finding("ok", words % {"n": len(serving), "queue": row.queue})
    if around.queue and around.queue.paused:
        words = gettext("The queue %(queue)s is paused: its jobs wait.")
        yield Finding("bad", words % {"queue": row.queue})
    if around.unknown:
        yield Finding("wait", unknown_in_words(row.function, around.unknown))
    if around.waiting and around.oldest:
        more = "+" if around.waiting == MOST_COUNTED else ""
        words = gettext("%(n)s jobs wait in the queue %(queue)s, the oldest for %(span)s.")
        waited = span(row.judged_at - around.oldest)
        yield Finding("wait", words % {"n": f"{around.waiting}{more}", "queue": row.queue, "span": waited})


def _of_handover(row: Any, around: Surroundings) -> Iterator[Finding]:
    if around.queue and around.queue.paused:
        words = gettext("The queue %(queue)s is paused: its jobs wait.")
        yield Finding("bad", words % {"queue": row.queue})
    job = around.to_send
    if job is None:
        yield Finding("ok", gettext("Nothing waits to be handed over to %(target)s.") % {"target": row.target})
        return
    told = {"at": moment_text(job.due_at or job.enqueued_at), "target": row.target, "error": last_line(job.error)}
    if job.error:
        words = gettext("The job of %(at)s could not be handed over to %(target)s, and is tried again: %(error)s")
        yield Finding("bad", words % told)
    else:
        yield Finding("wait", gettext("The job of %(at)s waits to be handed over to %(target)s.") % told)
