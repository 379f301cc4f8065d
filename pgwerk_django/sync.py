"""What code declares becomes rows: insert, update, and what becomes of rows that code no longer declares."""

import datetime as dt
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg.errors
from django.db import OperationalError, transaction
from django.db.models import Max, Q
from django.db.models.functions import Now

from pgwerk_django import conf, signals, targets
from pgwerk_django.exceptions import shown
from pgwerk_django.housekeeping import HOUSEKEEPING
from pgwerk_django.loop import Every
from pgwerk_django.masking import call_text
from pgwerk_django.models import (
    ROWS_AT_ONCE,
    SYNC,
    UNPAUSED,
    Origin,
    Process,
    Schedule,
    ScheduleQuerySet,
    atomic,
    database_now,
)
from pgwerk_django.registry import Definition, Registry, differences
from pgwerk_django.targets.base import is_removed

ON_UNREGISTERED = ("pause", "keep", "delete")
_DONE = {"pause": "paused", "delete": "deleted"}
ORPHANED = "no longer declared in code"
# The first half says whose lock it is ("pgwk"), the second what it guards.
ADVISORY_LOCK = (0x7067776B, 1)
REFRESH = dt.timedelta(minutes=1)
MOST_DEADLOCKS = 5
AT_A_TIME = 500  # rows that are compared
_COMPARED = (*Schedule.DEFINITION, "origin", *UNPAUSED)
GIVE_A_NAME = "the name was taken from the function: give each schedule a _name of its own to keep both"
AT_ONCE = dt.timedelta()  # no grace: what code here does not declare is an orphan, whoever else may


@dataclass(slots=True)
class Difference:
    """What code and table disagree on: names, and for updates the columns with what the table has and code wants."""

    inserted: list[str] = field(default_factory=list)
    updated: dict[str, dict[str, tuple[Any, Any]]] = field(default_factory=dict)
    reconciled: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.inserted or self.updated or self.reconciled)


def check_on_unregistered(value: str) -> str:
    if value not in ON_UNREGISTERED:
        raise ValueError(f"on_unregistered must be one of {', '.join(ON_UNREGISTERED)}, got {shown(value)}")
    return value


def difference(registry: Registry, *, on_unregistered: str, using: str) -> Difference:
    """What `synchronise` would do now, without a grace. Writes nothing."""
    definitions = _resolved(registry)
    return _difference(definitions, _orphans(_names(definitions), on_unregistered, using), using)


def _resolved(registry: Registry) -> list[Definition]:
    return [targets.resolved(definition) for definition in registry]


def _names(definitions: Iterable[Definition]) -> list[str]:
    return [definition.name for definition in definitions]


def _difference(definitions: Sequence[Definition], orphans: ScheduleQuerySet, using: str) -> Difference:
    found = Difference(reconciled=_sorted(orphans))
    for start in range(0, len(definitions), AT_A_TIME):
        some = definitions[start : start + AT_A_TIME]
        rows = _rows(Schedule.objects.using(using).filter(name__in=_names(some)).only(*_COMPARED))
        for definition in some:
            row = rows.get(definition.name)
            if row is None:
                found.inserted.append(definition.name)
            elif changes := _changes(row, definition):
                found.updated[definition.name] = {
                    column: (getattr(row, column), value) for column, value in changes.items()
                }
    return found


def synchronise(
    registry: Registry,
    *,
    on_unregistered: str,
    using: str,
    grace: dt.timedelta = AT_ONCE,
    lock_timeout: dt.timedelta | None = None,
    now: dt.datetime | None = None,
    process: Process | None = None,
) -> Difference:
    """Make the rows that code declares equal to what it says, in one transaction; what it changed is given back.

    A row that another process has declared within the `grace` is no orphan, unless its code was removed and no scheduler
    but this `process` is left (see `_abandoned`). `schedules_undeclared` announces the rows that still have a grace.

    Many hosts may do so at once: they queue at an advisory lock that lives as long as the transaction, and write in name
    order. Only rows that change are locked. A row made in the admin or through the API under a name that code declares is
    code's from then on. Waits for others' locks at most `lock_timeout` (None: as the database is set up). Plans from
    PostgreSQL's now (in tests, from `now`).
    """
    definitions = _resolved(registry)
    # Before the transaction: this imports modules.
    abandoned = _abandoned(_orphans(_names(definitions), on_unregistered, using), process) if grace else []
    for _ in range(MOST_DEADLOCKS):
        try:
            return _synchronise(definitions, on_unregistered, using, grace, abandoned, lock_timeout, now)
        except OperationalError as error:
            # With somebody's UPDATE of many rows in another order than ours; what we did was rolled back.
            if not isinstance(error.__cause__, psycopg.errors.DeadlockDetected):
                raise
    return _synchronise(definitions, on_unregistered, using, grace, abandoned, lock_timeout, now)


def _synchronise(
    definitions: Sequence[Definition],
    on_unregistered: str,
    using: str,
    grace: dt.timedelta,
    abandoned: Sequence[str],
    lock_timeout: dt.timedelta | None,
    now: dt.datetime | None,
) -> Difference:
    names = _names(definitions)
    with _one_at_a_time(using, lock_timeout):
        undeclared = _orphans(names, on_unregistered, using)
        orphans = _past_grace(undeclared, grace, abandoned)
        found = _difference(definitions, orphans, using)
        new = set(found.inserted)
        _insert([d for d in definitions if d.name in new], now=now or database_now(using), using=using)
        _update([d for d in definitions if d.name in found.updated], now=now, using=using)
        _refresh(names, after=REFRESH, using=using)
        _reconcile(orphans, found.reconciled, on_unregistered, using)
        if grace:
            _announce(undeclared.exclude(name__in=found.reconciled), on_unregistered, grace, using)
        if found:
            changed = {"inserted": found.inserted, "updated": list(found.updated), "reconciled": found.reconciled}
            signals.send(signals.synced, using=using, **changed)
    return found


def stand_by(
    registry: Registry,
    *,
    on_unregistered: str,
    using: str,
    grace: dt.timedelta,
    judging: bool = True,
    lock_timeout: dt.timedelta | None = None,
    process: Process | None = None,
) -> None:
    """What a live scheduler repeats: say that it declares its rows, and look for what nobody has declared for `grace`.

    A row is no orphan as long as any live process declares it, however often older or newer code restarts; so what a sync
    paused in spite of that is resumed. Without `judging`, orphans are left alone.
    """
    names = [definition.name for definition in registry]
    ours = Schedule.objects.using(using).filter(name__in=names, origin=Origin.CODE)
    _refresh(names, after=grace / 3, using=using)
    wronged = ours.filter(paused=True, paused_by=SYNC)
    undeclared = _orphans(names, on_unregistered if judging else "keep", using)
    orphans = _past_grace(undeclared, grace, _abandoned(undeclared, process))
    if wronged.exists() or orphans.exists():
        with _one_at_a_time(using, lock_timeout):
            wronged.resume(by=SYNC)
            _reconcile(orphans, _sorted(orphans), on_unregistered, using)


class StandBy:
    """The part that one live scheduler has in it: it speaks a few times within the grace, and judges."""

    def __init__(self, registry: Registry, *, on_unregistered: str, using: str, process: Process | None = None) -> None:
        """`process` is the row of the scheduler itself."""
        self.grace = orphan_grace()
        self._process = process
        self._registry = registry
        self._on_unregistered = on_unregistered
        self._using = using
        self._time_to_speak = Every(min(self.grace / 3, HOUSEKEEPING))
        self.spoke()

    def spoke(self) -> None:
        """A sync has said it all."""
        self._time_to_speak()
        self._spoke_at = time.monotonic()

    def step(self, *, lock_timeout: dt.timedelta) -> None:
        if not self._time_to_speak():
            return
        # Who was away for longer than the grace (frozen, or without a database) lets others speak before it judges.
        judging = time.monotonic() - self._spoke_at <= self.grace.total_seconds()
        try:
            stand_by(
                self._registry,
                on_unregistered=self._on_unregistered,
                using=self._using,
                grace=self.grace,
                judging=judging,
                lock_timeout=lock_timeout,
                process=self._process,
            )
        except OperationalError as error:
            if not is_held(error):
                raise
        self._spoke_at = time.monotonic()


def orphan_grace() -> dt.timedelta:
    return dt.timedelta(seconds=conf.current().ORPHAN_GRACE)


def is_held(error: OperationalError) -> bool:
    """Whether it is a lock that others held for longer than we would wait."""
    return isinstance(error.__cause__, psycopg.errors.LockNotAvailable)


@contextmanager
def _one_at_a_time(using: str, lock_timeout: dt.timedelta | None) -> Iterator[None]:
    with atomic(using):
        with transaction.get_connection(using).cursor() as cursor:
            if lock_timeout is not None:
                milliseconds = str(lock_timeout // dt.timedelta(milliseconds=1))
                cursor.execute("SELECT set_config('lock_timeout', %s, true)", [milliseconds])
            cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", ADVISORY_LOCK)
        yield


def _rows(schedules: ScheduleQuerySet) -> dict[str, Schedule]:
    return {row.name: row for row in schedules}


def _changes(row: Schedule, definition: Definition) -> dict[str, Any]:
    """The columns whose values code wants otherwise. Only a pause that sync made is lifted: a person's is a person's."""
    wanted = {**definition.columns, "origin": Origin.CODE.value}
    if row.paused and row.paused_by == SYNC:
        wanted |= UNPAUSED
    return differences(wanted, {column: getattr(row, column) for column in wanted})


def _insert(definitions: Iterable[Definition], *, now: dt.datetime, using: str) -> None:
    rows = []
    for definition in definitions:
        row = Schedule(**definition.columns, origin=Origin.CODE, last_registered_at=now, anchor_at=now, created_at=now)
        row.next_run_at = row.recurrence.next_after(now)
        rows.append(row)
    # Another program may make a row of that name at this moment: then it stands, and the next sync compares it.
    Schedule.objects.using(using).bulk_create(rows, ignore_conflicts=True, batch_size=ROWS_AT_ONCE)


def _update(definitions: Sequence[Definition], *, now: dt.datetime | None, using: str) -> None:
    locked = _rows(
        Schedule.objects.using(using)
        .filter(name__in=[definition.name for definition in definitions])
        .order_by("name")
        .select_for_update(no_key=True)
    )
    # Not before: to lock them may have taken a while, and a due time that passed meanwhile is not lost.
    now = now or database_now(using)
    for definition in definitions:
        if row := locked.get(definition.name):
            changes = _changes(row, definition)
            if row.origin != Origin.CODE and definition.name == definition.function:
                tell_if_replaced(row, definition, changes, using=using)
            row.redefine(changes, now=now)


def tell_if_replaced(row: Schedule, definition: Definition, changes: Mapping[str, Any], *, using: str) -> None:
    """Send `schedule_replaced` if `changes` make `row` another call, or change a row that code or a person made.

    Call this for names that were taken from the function only: there nobody chose to replace the row.
    """
    columns = changes.keys() & set(Schedule.DEFINITION)
    if not columns or (row.origin == Origin.API and not columns & {"function", "args", "kwargs"}):
        return
    signals.send(
        signals.schedule_replaced,
        using=using,
        name=row.name,
        origin=row.origin,
        was=call_text(row.function, row.args, row.kwargs),
        now=call_text(definition.function, definition.args, definition.kwargs),
        hint=GIVE_A_NAME,
    )


def _refresh(names: Sequence[str], *, after: dt.timedelta, using: str) -> None:
    """Note that code still declares these, once in so long: many hosts starting at once write it once."""
    stale = Q(last_registered_at=None) | Q(last_registered_at__lt=Now() - after)
    # What lies ahead is from when PostgreSQL's clock was ahead: also what this process does not declare counts from now.
    rows = Schedule.objects.using(using).filter(
        stale & Q(name__in=names) | Q(last_registered_at__gt=Now() + REFRESH), origin=Origin.CODE
    )
    with transaction.atomic(using=using):
        # A row that a tick holds just now is noted next time.
        pks = rows.order_by("name").select_for_update(skip_locked=True, no_key=True).values_list("pk", flat=True)
        rows.filter(pk__in=list(pks)).update(last_registered_at=Now())


def _orphans(names: Sequence[str], on_unregistered: str, using: str) -> ScheduleQuerySet:
    """Rows that came from code, that this process does not declare, and that are yet to be dealt with."""
    orphans = Schedule.objects.using(using).filter(origin=Origin.CODE).exclude(name__in=names)
    if on_unregistered == "keep":
        return orphans.none()
    return orphans if on_unregistered == "delete" else orphans.filter(paused=False)


def _past_grace(orphans: ScheduleQuerySet, grace: dt.timedelta, abandoned: Sequence[str]) -> ScheduleQuerySet:
    """Those that no process has declared within the `grace`, and those that nobody is left to declare."""
    if not grace:
        return orphans
    past = Q(last_registered_at=None) | Q(last_registered_at__lt=Now() - grace)
    return orphans.filter(past | Q(name__in=abandoned))


def _abandoned(orphans: ScheduleQuerySet, process: Process | None) -> list[str]:
    """Names of those whose function was removed from code that is here, where no scheduler but `process` can declare them.

    A scheduler that crashed leaves its row: it may come back. So may one of another service, whose code is not here.
    """
    schedulers = Process.objects.using(orphans.db).filter(role="scheduler").values_list("pk", flat=True)
    if set(schedulers) - {process and process.pk}:
        return []
    # A Celery task may have any name, whatever module seems to lack it.
    rows = orphans.exclude(target="celery").values_list("name", "function")
    return [name for name, function in rows if is_removed(function)]


def _announce(undeclared: ScheduleQuerySet, on_unregistered: str, grace: dt.timedelta, using: str) -> None:
    names = _sorted(undeclared)
    if not names:
        return
    last = undeclared.filter(name__in=names).aggregate(last=Max("last_registered_at"))["last"]
    left = grace if last is None else max(last + grace - database_now(using), dt.timedelta())
    seconds = round(left.total_seconds())
    hint = (
        f"not declared here: {_DONE[on_unregistered]} in {seconds} s unless another process declares them;"
        f" 'manage.py syncschedules' does so now"
    )
    event = {"names": names, "on_unregistered": on_unregistered, "seconds": seconds, "hint": hint}
    signals.send(signals.schedules_undeclared, using=using, **event)


def _sorted(schedules: ScheduleQuerySet) -> list[str]:
    return list(schedules.order_by("name").values_list("name", flat=True))


def _reconcile(orphans: ScheduleQuerySet, names: list[str], on_unregistered: str, using: str) -> None:
    if not names:
        return
    rows = orphans.filter(name__in=names)
    if on_unregistered == "delete":
        rows.delete()
    else:
        rows.pause_by_sync(ORPHANED)
    signals.send(signals.schedules_orphaned, using=using, names=names, on_unregistered=on_unregistered)
