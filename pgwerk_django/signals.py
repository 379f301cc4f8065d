"""The domain's events, and the one log line that comes from each.

Receivers get what the log line shows: the event's own values as keyword arguments. They are called after the commit that
made the event true, and an error in a receiver never reaches the scheduler or the worker (`send_robust`).
"""

import functools
import json
import logging
import queue
import re
import threading
from collections.abc import Callable
from typing import Any

from django.db import close_old_connections, connections, transaction
from django.dispatch import Signal

from pgwerk_django.exceptions import exc_info_of, text_of
from pgwerk_django.sqlstates import described

logger = logging.getLogger("pgwerk_django")

synced = Signal()  # inserted, updated, reconciled: lists of schedule names
ticked = Signal()  # schedules, jobs, skipped, misfired (some of those): counts of one pass; milliseconds; late: the longest due, in seconds
schedule_set_aside = Signal()  # name, error, exception: what was raised
schedule_left_alone = Signal()  # name, why: a row of newer code, left to others; or one that is tried again later
tick_cut_short = Signal()  # schedules: how many it took, error: a time limit, batch_size: how many the next one takes
due_time_repeated = Signal()  # key: this due time was recorded before and does not run again
schedules_paused = Signal()  # names, by, reason
schedules_resumed = Signal()  # names, by
schedules_triggered = Signal()  # names, by
schedules_deleted = Signal()  # names
# name, origin: of the row that was there, was, now: the calls, secrets masked, hint: a name taken from the function replaced another schedule
schedule_replaced = Signal()
schedule_late = Signal()  # name, seconds: since it was due, why: no scheduler takes it, or its job waits
schedule_failing = Signal()  # name, key: of the job (empty when it was set aside), error: in one line
schedule_missed = Signal()  # name, key, why: of the job that stands for due times that did not run
schedule_recovered = Signal()  # name, was: "late" or "failing", seconds: for how long
mail_failed = Signal()  # names: of the schedules it was to tell of, error, exception: what was raised
# names, on_unregistered, seconds: until that is done unless a process declares them, hint
schedules_undeclared = Signal()
schedules_orphaned = Signal()  # names, on_unregistered: code declares them no longer
job_started = Signal()  # job
job_finished = Signal()  # job, attempt, seconds: how long it ran
job_failed = Signal()  # job, attempt, seconds, error: in one line, retry_in: seconds (None: no attempt is left)
jobs_cancelled = Signal()  # jobs: keys, by, reason, force: what waited is, what runs was asked (force: told) to stop
jobs_retried = Signal()  # jobs: keys, by
queues_paused = Signal()  # names, by, reason
queues_resumed = Signal()  # names, by
job_cancelled = Signal()  # job, attempt, seconds: one that ran, and was stopped
child_died = Signal()  # pid, how: a process that runs jobs, by itself; another takes its place
lease_lost = Signal()  # job_id
jobs_handed_back = Signal()  # jobs: keys of what a stopping worker could not finish
# jobs: keys of what a stopping worker could neither finish nor hand back; their leases run out
jobs_unsettled = Signal()
jobs_forwarded = Signal()  # target, jobs: keys of what was handed over to it
handover_failed = Signal()  # target, jobs: keys that wait, error: in one line, retry_in: seconds; exception: what was raised, or None; told once a minute
jobs_not_started = Signal()  # jobs: keys of what did not start in time, and is skipped
# function, jobs: keys of what is left to workers that know it, error: in one line; told once a minute
jobs_unknown = Signal()
jobs_recovered = Signal()  # retried, failed: counts of jobs whose worker vanished
housekept = Signal()  # jobs, processes: counts of rows deleted
database_lost = Signal()  # error
database_back = Signal()  # seconds: how long it was away
statement_refused = Signal()  # error: cancelled by a time limit, or by somebody's lock; it is tried again
statement_hung = Signal()  # seconds: that it had run when it was ended, statement: its beginning
metrics_served = Signal()  # address: where this process shows them
metrics_failed = Signal()  # error: what is in the database could not be measured; told once, until it can be
listen_failed = Signal()  # error: wake-ups will not come, polling goes on
process_started = Signal()  # role; of a worker also queues and concurrency
process_stopped = Signal()  # role

_LEVELS: dict[Signal, tuple[str, int]] = {
    synced: ("synced", logging.INFO),
    ticked: ("ticked", logging.INFO),
    schedule_set_aside: ("schedule_set_aside", logging.ERROR),
    schedule_left_alone: ("schedule_left_alone", logging.WARNING),
    tick_cut_short: ("tick_cut_short", logging.WARNING),
    due_time_repeated: ("due_time_repeated", logging.WARNING),
    schedules_paused: ("schedules_paused", logging.INFO),
    schedules_resumed: ("schedules_resumed", logging.INFO),
    schedules_triggered: ("schedules_triggered", logging.INFO),
    schedules_deleted: ("schedules_deleted", logging.INFO),
    schedule_replaced: ("schedule_replaced", logging.WARNING),
    schedule_late: ("schedule_late", logging.WARNING),
    schedule_failing: ("schedule_failing", logging.ERROR),
    schedule_missed: ("schedule_missed", logging.WARNING),
    schedule_recovered: ("schedule_recovered", logging.INFO),
    mail_failed: ("mail_failed", logging.ERROR),
    schedules_undeclared: ("schedules_undeclared", logging.WARNING),
    schedules_orphaned: ("schedules_orphaned", logging.WARNING),
    job_started: ("job_started", logging.DEBUG),
    job_finished: ("job_finished", logging.INFO),
    job_failed: ("job_failed", logging.WARNING),
    job_cancelled: ("job_cancelled", logging.INFO),
    child_died: ("child_died", logging.ERROR),
    jobs_cancelled: ("jobs_cancelled", logging.INFO),
    jobs_retried: ("jobs_retried", logging.INFO),
    queues_paused: ("queues_paused", logging.INFO),
    queues_resumed: ("queues_resumed", logging.INFO),
    lease_lost: ("lease_lost", logging.WARNING),
    jobs_handed_back: ("jobs_handed_back", logging.WARNING),
    jobs_unsettled: ("jobs_unsettled", logging.ERROR),
    jobs_forwarded: ("jobs_forwarded", logging.INFO),
    handover_failed: ("handover_failed", logging.WARNING),
    jobs_not_started: ("jobs_not_started", logging.WARNING),
    jobs_unknown: ("jobs_unknown", logging.WARNING),
    jobs_recovered: ("jobs_recovered", logging.WARNING),
    housekept: ("housekept", logging.INFO),
    database_lost: ("database_lost", logging.ERROR),
    database_back: ("database_back", logging.WARNING),
    statement_refused: ("statement_refused", logging.WARNING),
    statement_hung: ("statement_hung", logging.WARNING),
    metrics_served: ("metrics_served", logging.INFO),
    metrics_failed: ("metrics_failed", logging.WARNING),
    listen_failed: ("listen_failed", logging.WARNING),
    process_started: ("process_started", logging.INFO),
    process_stopped: ("process_stopped", logging.INFO),
}

ALL_QUEUES = "(all)"  # in `process_started`, of a worker that names none
MOST_LISTED = 5  # names in one line
LONGEST_VALUE = 2000  # characters; an error has no more
_PLAIN = re.compile(r"[\w.@:#+/-]+", re.ASCII)


def send(signal: Signal, *, using: str, **event: Any) -> None:
    """Send `signal` once the transaction on `using` has committed; at once where there is none."""
    transaction.on_commit(functools.partial(send_now, signal, **event), using=using, robust=True)


def send_now(signal: Signal, **event: Any) -> None:
    """Send `signal` without a look at the database, which may be what is lost."""
    signal.send_robust(sender=None, **event)


class Teller:
    """Sends events in their order on a thread of its own: a receiver that is slow holds up nobody's lease."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def send(self, signal: Signal, **event: Any) -> None:
        self.do(functools.partial(send_now, signal, **event))

    def do(self, send: Callable[[], object]) -> None:
        """For events that are not ours, or take work to put together. It must not raise."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="pgwerk-tell", daemon=True)
            self._thread.start()
        self._events.put(send)

    def close(self, seconds: float) -> None:
        """Wait at most so long until all are sent."""
        if self._thread is not None:
            self._events.put(None)
            self._thread.join(seconds)
            self._thread = None

    def _run(self) -> None:
        while (send := self._events.get()) is not None:
            try:
                send()
            except BaseException:  # a receiver may raise SystemExit, which `send_robust` lets through
                logger.exception("a receiver of a signal of pgwerk_django raised")
            close_old_connections()
        connections.close_all()


def send_database_lost(error: Exception) -> None:
    send_now(database_lost, error=described(error))


def send_database_back(seconds: float) -> None:
    send_now(database_back, seconds=round(seconds, 1))


def send_statement_refused(error: Exception) -> None:
    send_now(statement_refused, error=described(error))


def send_statement_hung(seconds: float, statement: str) -> None:
    send_now(statement_hung, seconds=round(seconds, 1), statement=" ".join(statement.split()))


def send_listen_failed(error: Exception) -> None:
    send_now(listen_failed, error=error)


def _text(value: object) -> str:
    """One word a log reader can split on: quoted when it is not, so that no value can forge a line."""
    text = _listed(value) if type(value) is list else text_of(value)
    if len(text) > LONGEST_VALUE:
        text = f"{text[:LONGEST_VALUE]}..."
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def _is_empty(value: object) -> bool:
    return type(value) in (list, str) and not value  # `isinstance` would have a lazy job made


def _listed(values: list[object]) -> str:
    shown, rest = values[:MOST_LISTED], len(values) - MOST_LISTED
    return ",".join(text_of(value)[:LONGEST_VALUE] for value in shown) + (f" and {rest} more" if rest > 0 else "")


def log_line(signal: Signal, **event: Any) -> None:
    name, level = _LEVELS[signal]
    if logger.isEnabledFor(level):
        event.pop("sender", None)
        raised = event.pop("exception", None)  # its traceback follows the line, which is what error trackers read
        words = (f"{key}={_text(value)}" for key, value in event.items() if not _is_empty(value))
        logger.log(level, "%s", " ".join([name, *words]), exc_info=None if raised is None else exc_info_of(raised))


for _signal in _LEVELS:
    _signal.connect(log_line, dispatch_uid="pgwerk_django.signals.log_line", weak=False)
