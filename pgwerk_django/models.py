"""The tables: schedules, jobs, processes; and every change of state, each one a guarded UPDATE."""

import contextlib
import functools
import os
import socket
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Self

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import DatabaseError, models, transaction
from django.db.models import Case, F, Q, Value, When
from django.db.models.expressions import RawSQL
from django.db.models.functions import Coalesce, Greatest, Least, Now
from django.db.models.lookups import GreaterThanOrEqual, LessThanOrEqual
from django.utils.translation import gettext_lazy as _

from pgwerk_django import conf, prepared, signals
from pgwerk_django.guarded import PASSING, impatient
from pgwerk_django.policies import Misfire, Overlap
from pgwerk_django.recurrence import EXPRESSIBLE, LONGEST_INTERVAL, Cron, Interval, Once, Recurrence, Window
from pgwerk_django.sqlstates import refusal_of
from pgwerk_django.text import DEEPEST_JSON, free_text, is_deep, person

HEARTBEAT = timedelta(seconds=10)
SILENT_AFTER = 3 * HEARTBEAT  # no longer counted as alive
DEAD_AFTER = timedelta(minutes=5)  # its row is deleted
ALERTS_KEPT = timedelta(days=7)  # once they are over
AHEAD = timedelta(minutes=1)  # by less than this a clock may step back, and nobody need know
ROWS_AT_ONCE = 1_000  # in one statement: a time limit of the role must not be too short for it
MOST_COUNTED = 10_000  # jobs of a queue: who has more need not know how many
UNREADABLE = "this JSON cannot be read here"
SYNC = "sync"  # `paused_by` of a pause that code may lift again
# PostgreSQL's [[:cntrl:]] depends on the locale, so the characters are named.
# And those that end a line or turn it around.
CONTROL_CHARACTERS = r"[\x01-\x1f\x7f\u0080-\u009f\u2028-\u202e\u2066-\u2069]"
no_control_characters = RegexValidator(
    CONTROL_CHARACTERS, _("A name may not contain control characters."), inverse_match=True
)


def default_timezone() -> str:
    return settings.TIME_ZONE


def random_key() -> str:
    return str(uuid.uuid4())


@contextmanager
def atomic(using: str | None) -> Iterator[None]:
    """A transaction of ours: where `NOTIFY` is off it sends no wake-up, which is local to it."""
    with transaction.atomic(using=using):
        if not conf.current().NOTIFY:
            with transaction.get_connection(using).cursor() as cursor:
                cursor.execute("SELECT set_config('pgwerk.notify', 'off', true)")
        yield


def wake_workers(using: str | None) -> None:
    """Have workers that LISTEN look at once: for what changes without an insert, whose trigger does this itself."""
    if conf.current().NOTIFY:
        with transaction.get_connection(using).cursor() as cursor:
            cursor.execute("SELECT pg_catalog.pg_notify('pgwerk_jobs', '')")


def database_now(using: str | None) -> datetime:
    with transaction.get_connection(using).cursor() as cursor:
        cursor.execute("SELECT statement_timestamp()")
        now: datetime = cursor.fetchone()[0]
    return now.astimezone(UTC)


def instant(now: datetime | None) -> "Now | Value":
    """As an expression; None is PostgreSQL's now."""
    return Now() if now is None else Value(now, models.DateTimeField())


class UUIDv7(models.Func):
    """A time-ordered UUID made by the database: PostgreSQL has its own `uuidv7()` only from 18 on."""

    template = (
        "encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid()) placing"
        " substring(int8send(floor(extract(epoch from clock_timestamp()) * 1000)::bigint) from 3)"
        " from 1 for 6), 52, 1), 53, 1), 'hex')::uuid"
    )
    output_field = models.UUIDField()


class RandomKey(models.Func):
    template = "gen_random_uuid()::text"
    output_field = models.CharField()


class JSONField(models.JSONField):
    """Django's, for rows that another program may have written: what Python cannot read is no reason to fail for who reads the rest.

    To PostgreSQL a number may have 100,000 digits, and lists be 5,000 deep.
    """

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:
        try:
            read = super().from_db_value(value, expression, connection)
        except (ValueError, RecursionError) as error:
            return {UNREADABLE: f"{type(error).__name__}: {error}"}
        # Newer Pythons read it all the same, and then whoever walks through it fails.
        if isinstance(value, str) and value.count("[") + value.count("{") > DEEPEST_JSON and is_deep(read):
            return {UNREADABLE: f"more than {DEEPEST_JSON} levels deep"}
        return read

    def deconstruct(self) -> Any:
        name, _path, args, kwargs = super().deconstruct()
        return name, "django.db.models.JSONField", args, kwargs


class Origin(models.TextChoices):
    CODE = "code", _("code")
    API = "api", _("API")
    ADMIN = "admin", _("admin")


class Kind(models.TextChoices):
    SCHEDULED = "scheduled", _("scheduled")
    TRIGGER = "trigger", _("trigger")
    ADHOC = "adhoc", _("ad hoc")


class Status(models.TextChoices):
    """Django Tasks' words, and three of ours."""

    READY = "READY", _("Ready")
    RUNNING = "RUNNING", _("Running")
    SUCCESSFUL = "SUCCESSFUL", _("Successful")
    FAILED = "FAILED", _("Failed")
    SKIPPED = "SKIPPED", _("Skipped")
    FORWARDED = "FORWARDED", _("Forwarded")
    CANCELLED = "CANCELLED", _("Cancelled")


class State(models.TextChoices):
    """What a person wants to know of a schedule."""

    ERROR = "ERROR", _("Error")
    PAUSED = "PAUSED", _("Paused")
    ENDED = "ENDED", _("Ended")
    FAILING = "FAILING", _("Failing")
    LATE = "LATE", _("Late")
    OK = "OK", _("OK")


# When a schedule next wants a tick: its next run, which does not count during a pause, or a trigger. Every statement that asks
# what is due uses this text or `due_at`; the index `pgwerk_due` is on exactly this, and two triggers of `0001` have it, too.
DUE = "least(CASE WHEN NOT paused THEN next_run_at END, triggered_at)"


def due_at() -> Least:
    """Return `DUE` as an expression of the ORM."""
    return Least(Case(When(paused=False, then="next_run_at")), "triggered_at")


# Columns that say when a schedule is due: to change one is to plan anew. (The re-plan trigger has the same list.)
PLANNING = frozenset({"cron", "interval", "timezone", "anchor_at", "starts_at", "ends_at", "max_runs"})
UNPAUSED: dict[str, Any] = {"paused": False, "paused_at": None, "paused_by": "", "pause_reason": ""}
# A paused schedule may still be triggered: it runs once and stays paused. The index has these rows alone.
MAY_RUN = Q(paused=False) | Q(triggered_at__isnull=False)
MAY_RUN_SQL = "(NOT paused OR triggered_at IS NOT NULL)"


# Of `WITH RECURSIVE`: queues in which jobs wait for a worker, and the priorities in them, each one step along `pgwerk_claim`.
LINES = """
lines (queue, priority) AS (
    (SELECT queue, priority FROM _pgwerk_jobs WHERE status = 'READY' AND target = 'worker'
        ORDER BY queue, priority DESC LIMIT 1)
    UNION ALL
    SELECT next.queue, next.priority FROM lines, LATERAL (
        (SELECT queue, priority FROM _pgwerk_jobs
            WHERE status = 'READY' AND target = 'worker' AND queue = lines.queue AND priority < lines.priority
            ORDER BY priority DESC LIMIT 1)
        UNION ALL
        (SELECT queue, priority FROM _pgwerk_jobs WHERE status = 'READY' AND target = 'worker' AND queue > lines.queue
            ORDER BY queue, priority DESC LIMIT 1)
        ORDER BY queue, priority DESC LIMIT 1
    ) AS next
)
"""

# Of the same: targets to which jobs wait to be handed over, by `pgwerk_outbox`. Literals lead any plan to both.
TARGETS = """
found (target) AS (
    (SELECT target FROM _pgwerk_jobs WHERE status = 'READY' AND target <> 'worker' ORDER BY target LIMIT 1)
    UNION ALL
    SELECT (
        SELECT target FROM _pgwerk_jobs WHERE status = 'READY' AND target <> 'worker' AND target > found.target
        ORDER BY target LIMIT 1
    ) FROM found WHERE found.target IS NOT NULL
)
"""

# Not `EXISTS`: it becomes a join, for which all that waits is read; and the order keeps it on the index.
WAITING_TARGETS = f"""
ARRAY(
    WITH RECURSIVE {TARGETS}
    SELECT target FROM found WHERE target IS NOT NULL AND (
        SELECT true FROM _pgwerk_jobs job
        WHERE status = 'READY' AND target <> 'worker' AND job.target = found.target
            AND run_at <= statement_timestamp() AND lease_until IS NULL
        ORDER BY run_at LIMIT 1
    )
)
"""  # noqa: S608  our own text

_LOOK = f"""
SELECT (
    SELECT {DUE} FROM _pgwerk_schedules
    WHERE {MAY_RUN_SQL} AND {DUE} IS NOT NULL
        AND CASE WHEN misfire = ANY(%(misfires)s) AND overlap = ANY(%(overlaps)s) THEN true ELSE false END
        AND {DUE} >= coalesce(%(since)s, '-infinity'::timestamptz)
    ORDER BY {DUE} LIMIT 1
), statement_timestamp(), {WAITING_TARGETS}
"""  # noqa: S608  our own text


class ScheduleQuerySet(models.QuerySet["Schedule"]):
    def due(self, now: datetime | None = None, *, since: datetime | None = None) -> Self:
        """What is due by PostgreSQL's clock (in tests, at `now`). Filter by nothing else, or the index cannot lead to it.

        With `since` not what was due before it.
        """
        due = self.filter(MAY_RUN, LessThanOrEqual(due_at(), instant(now)))
        return due if since is None else due.filter(GreaterThanOrEqual(due_at(), instant(since)))

    def next_due(self) -> tuple[datetime | None, datetime]:
        """When the first that `claim` takes will be due (None: never), and PostgreSQL's now."""
        return self.look()[:2]

    def look(self, since: datetime | None = None) -> tuple[datetime | None, datetime, list[str]]:
        """`next_due`, and the targets for which jobs wait to be handed over: one statement, led by the indexes.

        With `since` the look begins there, and passes over the dead entries before it: see `Floor`.
        """
        with transaction.get_connection(self.db).cursor() as cursor:
            values = {"misfires": Misfire.values, "overlaps": Overlap.values, "since": since}
            prepared.execute(cursor, "look", _LOOK, values)
            next_due_at, now, waiting = cursor.fetchone()
        return next_due_at, now, waiting

    def retry_set_aside(self) -> int:
        """Plan anew what was set aside with an error: the reason may have been this host's time zone data, or old code."""
        aside = self.exclude(error="")
        number = 0
        for pks in _batches(list(aside.values_list("pk", flat=True))):
            rows = aside.filter(pk__in=pks)
            # First those that no rule could plan: their due time is the one they were given.
            number += rows.filter(cron="", interval=None).update(error="", next_run_at=F("anchor_at"))
            number += rows.update(error="", replan=True, next_run_at=Now())
        return number

    def from_newer_code(self) -> Self:
        """Rows whose policies this version does not know: a tick leaves them to schedulers that do."""
        return self.exclude(misfire__in=Misfire.values, overlap__in=Overlap.values)

    def claim(self, limit: int) -> Self:
        """Lock up to `limit` of these, the longest due first, passing over what others hold.

        A row whose policies are unknown here was written by newer code: it is left to schedulers that know them.
        """
        # As CASE, of which the planner expects nothing: before the first statistics it expects so few rows of two such lists
        # that it would read all that is due, and sort it.
        known = When(misfire__in=Misfire.values, overlap__in=Overlap.values, then=Value(True))
        return (
            self.filter(Case(known, default=Value(False)))
            .order_by(due_at())
            .select_for_update(skip_locked=True, no_key=True)[:limit]
        )

    def pause(self, reason: str = "", by: str = "") -> int:
        """Stop firing; due times from now to `resume()` have no jobs. One that is paused keeps its own pause.

        But a pause by sync, which a deploy may lift, becomes the person's, which only a person lifts.
        """
        by = f"{SYNC} (a person)" if person(by) == SYNC else by  # somebody may have that name
        return self._pause(Q(paused=False) | Q(paused_by=SYNC), reason=free_text(reason, "reason"), by=by)

    def pause_by_sync(self, reason: str) -> int:
        return self._pause(Q(paused=False), reason=reason, by=SYNC)

    def _pause(self, condition: Q, *, reason: str, by: str) -> int:
        with self._locked(condition) as (batches, names):
            for rows in batches:
                rows.update(paused=True, paused_at=Coalesce("paused_at", Now()), paused_by=by, pause_reason=reason)
            return self._tell(signals.schedules_paused, names, by=by, reason=reason)

    def resume(self, by: str = "") -> int:
        """Fire again, planned from now: due times in the pause are not misfires. A next run that is still to come stays.

        Also from now where the last run lies ahead of PostgreSQL's clock, which must have been ahead. A row whose rule cannot
        be read is left to the next tick, which sets it aside.
        """
        person(by)
        with self._locked(Q(paused=True)) as (batches, names):
            for rows in batches:
                rows.update(**UNPAUSED)  # the re-plan trigger marks what is to be planned anew
                rows._plan_anew()
            return self._tell(signals.schedules_resumed, names, by=by)

    def _plan_anew(self) -> None:
        """Do at once what the next tick would do for those of these rows, which the caller has locked, that wait for a plan."""
        now = database_now(self.db)
        pks, planned = [], []
        for row in self.filter(replan=True).values_list("pk", *_RULE, named=True):
            with contextlib.suppress(Exception):  # whatever a row holds, the others are planned
                planned.append(next_planned(row, now))
                pks.append(row.pk)
        if pks:
            with transaction.get_connection(self.db).cursor() as cursor:
                cursor.execute(_PLAN, [pks, planned])

    def trigger(self, by: str = "") -> int:
        """Ask for one extra run now, beside the cadence. Asked again before a tick came, it is still one run."""
        person(by)
        with self._locked(Q()) as (batches, names):
            for rows in batches:
                rows.update(triggered_at=Coalesce("triggered_at", Now()), triggered_by=by)
            return self._tell(signals.schedules_triggered, names, by=by)

    def delete(self) -> tuple[int, dict[str, int]]:
        """Delete the schedules; their waiting jobs become CANCELLED, their history stays."""
        deleted: Counter[str] = Counter()
        with self._locked(Q()) as (batches, names):
            for rows in batches:
                # By their numbers: of a subquery the planner cannot tell how few they are.
                pks = list(rows.values_list("pk", flat=True))
                # A trigger on the table would do this, too; it does not know the settings.
                Job.objects.using(self.db).open().filter(schedule__in=pks, status=Status.READY).update(
                    status=Status.CANCELLED,
                    reason="schedule deleted",
                    finished_at=Now(),
                    expires_at=expiry("failure_ttl", conf.current().FAILURE_TTL),
                )
                deleted.update(super(ScheduleQuerySet, rows).delete()[1])
            self._tell(signals.schedules_deleted, names)
        return deleted.total(), dict(deleted)

    delete.alters_data = True  # type: ignore[attr-defined]
    delete.queryset_only = True  # type: ignore[attr-defined]

    @contextmanager
    def _locked(self, condition: Q) -> "Iterator[tuple[list[ScheduleQuerySet], list[str]]]":
        """Lock in name order, as sync does: two people and a deploy at once cannot deadlock. In batches, and all names.

        The lock comes first, in a statement of its own: an UPDATE that waits knows only the time at which it began to wait.
        """
        with atomic(self.db):
            everything = ScheduleQuerySet(self.model, using=self.db)
            asked = everything.filter(condition, pk__in=self.values("pk")).order_by("name")
            locked = dict(asked.select_for_update(no_key=True).values_list("pk", "name"))
            yield [everything.filter(pk__in=pks) for pks in _batches(list(locked))], list(locked.values())

    def _tell(self, signal: Any, names: list[str], **event: str) -> int:
        if names:
            signals.send(signal, using=self.db, names=names, **event)
        return len(names)


def _batches(pks: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(pks), ROWS_AT_ONCE):
        yield pks[start : start + ROWS_AT_ONCE]


def _seconds(*, minimum: int = 0, maximum: int = 2**31 - 1, **options: Any) -> "models.IntegerField[Any, Any]":
    validators = [MinValueValidator(minimum), MaxValueValidator(maximum)]
    return models.IntegerField(validators=validators, **options)


class Schedule(models.Model):
    """One recurring job: what to run, when, and under which policies."""

    name = models.CharField(_("name"), max_length=200, validators=[no_control_characters])
    function = models.CharField(_("function"), max_length=500, default="", db_default="")
    target = models.CharField(_("target"), max_length=50, default="worker", db_default="worker")
    queue = models.CharField(_("queue"), max_length=100, default="default", db_default="default")
    args = JSONField(_("arguments"), default=list, db_default=Value([], models.JSONField()), blank=True)
    kwargs = JSONField(_("keyword arguments"), default=dict, db_default=Value({}, models.JSONField()), blank=True)
    cron = models.CharField(_("cron"), max_length=200, default="", db_default="", blank=True)
    interval = models.IntegerField(_("interval"), null=True, blank=True, help_text=_("seconds"))
    timezone = models.CharField(_("time zone"), max_length=100, default=default_timezone, db_default="UTC")
    starts_at = models.DateTimeField(_("starts at"), null=True, blank=True)
    ends_at = models.DateTimeField(_("ends at"), null=True, blank=True)
    max_runs = models.IntegerField(_("maximum runs"), null=True, blank=True, validators=[MinValueValidator(1)])
    jitter = _seconds(verbose_name=_("jitter"), default=0, db_default=0)
    priority = models.IntegerField(_("priority"), default=0, db_default=0)
    overlap = models.CharField(
        _("overlap"), max_length=20, choices=Overlap, default=Overlap.BUFFER_ONE, db_default=Overlap.BUFFER_ONE.value
    )
    misfire = models.CharField(
        _("misfire"), max_length=20, choices=Misfire, default=Misfire.LATEST, db_default=Misfire.LATEST.value
    )
    misfire_grace = _seconds(verbose_name=_("misfire grace"), default=60, db_default=60)
    max_attempts = models.IntegerField(
        _("maximum attempts"), default=1, db_default=1, validators=[MinValueValidator(1)]
    )
    backoff = JSONField(_("backoff"), null=True, blank=True)
    timeout = _seconds(verbose_name=_("timeout"), minimum=1, null=True, blank=True)
    result_ttl = _seconds(verbose_name=_("result TTL"), null=True, blank=True)
    failure_ttl = _seconds(verbose_name=_("failure TTL"), null=True, blank=True)
    start_within = _seconds(verbose_name=_("start within"), null=True, blank=True)  # 0: until its next due time
    meta = JSONField(_("meta"), default=dict, db_default=Value({}, models.JSONField()), blank=True)
    description = models.TextField(_("description"), default="", db_default="", blank=True)

    origin = models.CharField(
        _("origin"), max_length=10, choices=Origin, default=Origin.CODE, db_default=Origin.CODE.value
    )
    last_registered_at = models.DateTimeField(_("last registered at"), null=True, editable=False)
    created_at = models.DateTimeField(_("created at"), db_default=Now(), editable=False)

    next_run_at = models.DateTimeField(_("next run"), null=True, blank=True)
    anchor_at = models.DateTimeField(_("anchor"), db_default=Now(), editable=False)
    replan = models.BooleanField(default=False, db_default=False, editable=False)
    triggered_at = models.DateTimeField(_("triggered at"), null=True, editable=False)
    triggered_by = models.CharField(_("triggered by"), max_length=200, default="", db_default="", editable=False)
    paused = models.BooleanField(_("paused"), default=False, db_default=False, editable=False)
    paused_at = models.DateTimeField(_("paused at"), null=True, editable=False)
    paused_by = models.CharField(_("paused by"), max_length=200, default="", db_default="", editable=False)
    pause_reason = models.TextField(_("pause reason"), default="", db_default="", editable=False)
    run_count = models.IntegerField(_("runs"), default=0, db_default=0, editable=False)
    last_run_at = models.DateTimeField(_("last run"), null=True, editable=False)
    error = models.TextField(_("error"), default="", db_default="", editable=False)

    # What a definition says; everything else belongs to the machine and to people's actions.
    DEFINITION: ClassVar[tuple[str, ...]] = (
        "name", "function", "target", "queue", "args", "kwargs", "cron", "interval", "timezone", "starts_at", "ends_at",
        "max_runs", "jitter", "priority", "overlap", "misfire", "misfire_grace", "max_attempts", "backoff", "timeout",
        "result_ttl", "failure_ttl", "start_within", "meta", "description",
    )  # fmt: skip

    objects = ScheduleQuerySet.as_manager()

    class Meta:
        db_table = "_pgwerk_schedules"
        verbose_name = _("schedule")
        verbose_name_plural = _("schedules")
        constraints = [
            models.UniqueConstraint(fields=["name"], name="pgwerk_schedule_name"),
            models.CheckConstraint(
                name="pgwerk_schedule_name_text", condition=~Q(name="") & ~Q(name__regex=CONTROL_CHARACTERS)
            ),
            models.CheckConstraint(name="pgwerk_one_recurrence", condition=Q(cron="") | Q(interval__isnull=True)),
            # PostgreSQL's instants reach further than Python's: one out of range would stop the tick that reads it.
            models.CheckConstraint(
                name="pgwerk_instants",
                condition=Q(
                    **{
                        f"{column}__range": EXPRESSIBLE
                        for column in (
                            "starts_at",
                            "ends_at",
                            "next_run_at",
                            "anchor_at",
                            "triggered_at",
                            "last_run_at",
                        )
                    }
                ),
            ),
            models.CheckConstraint(
                name="pgwerk_interval_range",
                condition=Q(interval__isnull=True) | Q(interval__gte=1, interval__lte=LONGEST_INTERVAL),
            ),
        ]
        indexes = [
            models.Index(due_at(), name="pgwerk_due", condition=MAY_RUN),
            # What was set aside. A tick writes no entry here, unless it sets aside.
            models.Index(fields=["id"], name="pgwerk_set_aside", condition=~Q(error="")),
            # What people count. The other index has what is paused only while it is triggered, too.
            models.Index(fields=["id"], name="pgwerk_paused", condition=Q(paused=True)),
        ]
        permissions = [
            ("pause_schedule", _("Can pause and resume schedules")),
            ("trigger_schedule", _("Can trigger schedules")),
        ]

    def __str__(self) -> str:
        return self.name

    def save(self, *args: Any, update_fields: Any = None, **options: Any) -> None:
        """Write a new row whole, and of an existing one the definition only.

        A stale instance must not undo a tick, a pause or a trigger: those columns change by guarded updates, or by
        naming them in `update_fields`.
        """
        if update_fields is None and not args and not self._state.adding and not options.get("force_insert"):
            update_fields = set(self.DEFINITION) - self.get_deferred_fields()
        super().save(*args, update_fields=update_fields, **options)

    def delete(self, using: str | None = None, keep_parents: bool = False) -> tuple[int, dict[str, int]]:
        deleted = Schedule.objects.using(using or self._state.db).filter(pk=self.pk).delete()
        self.pk = None
        return deleted

    @property
    def recurrence(self) -> Recurrence:
        """When it is due. Raises `ValueError` for a row that no rule of time can be read from."""
        return recurrence_of(self)

    @property
    def definition(self) -> dict[str, Any]:
        return {column: getattr(self, column) for column in self.DEFINITION}

    def redefine(
        self, changes: dict[str, Any], *, now: datetime, first: datetime | None = None, plan: bool = False
    ) -> None:
        """Write `changes` to this row, which the caller has locked, and plan it if `plan` or if they touch when it is due.

        A due time that has passed and that no tick has seen yet is not lost: it stays, and the new rule follows after it.
        With `first` the row is due then, whatever it waited for; a paused one, if it is resumed by then.
        A last run that lies far ahead of PostgreSQL's clock, which must have been ahead, is brought back to now.
        """
        if first is not None:
            changes = {**changes, "anchor_at": first}
        rows = Schedule.objects.using(self._state.db).filter(pk=self.pk)
        waits = not (self.paused or self.replan) and self.next_run_at is not None and self.next_run_at <= now
        for column, value in changes.items():
            setattr(self, column, value)
        if changes:
            rows.update(**changes)
        plans = plan or changes.keys() & PLANNING or "paused" in changes
        if first is not None or (plans and not self.paused):
            self.replan, self.error = False, ""
            if self.last_run_at is not None and self.last_run_at > now + AHEAD:
                self.last_run_at = now
                rows.update(last_run_at=now)
            if first is not None:
                self.next_run_at = first
            elif not waits and not self._stays_one_off(changes):
                self.next_run_at = self.recurrence.next_after(max(now, self.last_run_at or now))
            # A statement of its own: in one with the change, an unmoved `next_run_at` looks unset to the re-plan trigger.
            rows.update(next_run_at=self.next_run_at, replan=False, error="")

    def _stays_one_off(self, changes: dict[str, Any]) -> bool:
        """Whether its only due time is the one it waits for: no rule could plan that anew."""
        return not self.cron and self.interval is None and not {"cron", "interval"} & changes.keys()

    @property
    def rule(self) -> str:
        """The recurrence in a word or two, also of a row whose recurrence cannot be read."""
        if self.cron:
            return f"{self.cron} ({self.timezone})"
        return "once" if self.interval is None else f"every {self.interval} s"

    def upcoming(self, n: int, now: datetime) -> list[datetime]:
        """The next `n` due times, from the functions the tick uses: none while it is paused, set aside or has ended."""
        if self.paused or self.next_run_at is None:
            return []
        remaining = n if self.max_runs is None else min(n, self.max_runs - self.run_count)
        planned = [] if self.replan else [self.next_run_at]
        after = max(now, self.last_run_at or now) if self.replan else self.next_run_at
        return [*planned, *self.recurrence.upcoming(after, n)][: max(remaining, 0)]

    def next_run(self, now: datetime) -> datetime | None:
        """Return `next_run_at`, or what the next tick will plan where it waits for that. Raises `ValueError` for a rule nobody can read."""
        return next_planned(self, now) if self.replan and not self.error else self.next_run_at

    def state(self, now: datetime, *, failing: bool = False) -> State:
        """`failing` is what its jobs say: the newest one that succeeded or failed has failed."""
        if self.error:
            return State.ERROR
        if self.paused:
            return State.PAUSED
        if self.next_run_at is None:
            return State.ENDED
        if failing:
            return State.FAILING
        return State.LATE if self.next_run_at < now - timedelta(seconds=self.misfire_grace) else State.OK


_cron = functools.lru_cache(maxsize=4096)(Cron)


def recurrence_of(row: Any) -> Recurrence:
    """The rule of time in a schedule's columns, within its window (`starts_at` to `ends_at`, both included)."""
    recurrence: Recurrence
    starts_at = row.starts_at
    if row.cron:
        recurrence = _cron(row.cron, row.timezone)
        if row.anchor_at > row.created_at:  # the first run that `schedule_at` gave it: none comes before
            starts_at = max(row.anchor_at, starts_at or row.anchor_at)
    elif row.interval is not None:
        # The instant of creation is where the grid hangs, and no due time: the first is one interval later.
        first = timedelta(seconds=row.interval) if row.anchor_at == row.created_at else timedelta()
        recurrence = Interval(row.interval, row.anchor_at + first)
    else:
        recurrence = Once()
    if starts_at is None and row.ends_at is None:
        return recurrence
    return Window(recurrence, starts_at, row.ends_at)


# What a row is planned by.
_RULE = ("cron", "interval", "timezone", "anchor_at", "created_at", "starts_at", "ends_at", "max_runs", "run_count", "last_run_at")  # fmt: skip
_PLAN = """
UPDATE _pgwerk_schedules SET next_run_at = plan.next_run_at, replan = false
FROM unnest(%s::bigint[], %s::timestamptz[]) AS plan (id, next_run_at) WHERE _pgwerk_schedules.id = plan.id
"""


def next_planned(row: Any, now: datetime) -> datetime | None:
    """Return when a row that is to be planned anew is due next; None: never. Raises `ValueError` for a rule nobody can read.

    It comes after the newest due time on record, should the clock have stepped back.
    """
    recurrence = recurrence_of(row)
    if row.max_runs is not None and row.run_count >= row.max_runs:
        return None
    return recurrence.next_after(max(now, row.last_run_at or now))


_KEEP_ERROR = (
    "CASE WHEN error <> '' THEN errors || jsonb_build_object('attempt', attempt, 'at', finished_at, 'error', error,"
    " 'exception', exception, 'worker', worker_name, 'started_at', started_at) ELSE errors END"
)


def _literal(value: str) -> RawSQL:
    """A value of ours in the text of a statement: only so can any plan use a partial index that names it."""
    return RawSQL(f"'{value}'", ())  # noqa: S611


class JobQuerySet(models.QuerySet["Job"]):
    def cancel(self, *, by: str = "", reason: str = "", force: bool = False) -> int:
        """Cancel what waits, and ask what runs to stop: `current_job().cancelled` says so to its function.

        With `force` it is stopped: at once where Python can raise in it, else by the end of the process that runs it.
        How many there were of either.
        """
        why = ": ".join(
            filter(None, [f"cancelled by {person(by)}" if by else "cancelled", free_text(reason, "reason")])
        )
        waits = Q(status=Status.READY)
        with atomic(self.db):
            keys = self._change(
                Q(status__in=[Status.READY, Status.RUNNING]),
                status=Case(When(waits, then=Value(Status.CANCELLED)), default=F("status")),
                reason=why,
                finished_at=Case(When(waits, then=Now()), default=F("finished_at")),
                expires_at=Case(
                    When(waits, then=expiry("failure_ttl", conf.current().FAILURE_TTL)), default=F("expires_at")
                ),
                cancel_requested_at=Coalesce("cancel_requested_at", Now()),
                cancel_forced=Value(True) if force else F("cancel_forced"),
            )
            if keys:
                signals.send(signals.jobs_cancelled, using=self.db, jobs=keys, by=by, reason=reason, force=force)
        return len(keys)

    def retry(self, *, by: str = "") -> int:
        """Have failed and cancelled jobs run again, now, with one attempt more at least. How many there were."""
        with atomic(self.db):
            keys = self._change(
                Q(status__in=[Status.FAILED, Status.CANCELLED]),
                status=Status.READY,
                reason=f"retried by {person(by)}" if by else "",
                run_at=Now(),
                max_attempts=Greatest("max_attempts", F("attempt") + 1),
                errors=RawSQL(_KEEP_ERROR, (), models.JSONField()),  # noqa: S611  no parameters
                error="",
                exception="",
                started_at=None,
                finished_at=None,
                expires_at=None,
                start_by=None,
                lease_until=None,
                unknown_since=None,
                worker=None,
                progress=None,
                cancel_requested_at=None,
                cancel_forced=False,
            )
            if keys:
                signals.send(signals.jobs_retried, using=self.db, jobs=keys, by=by)
        return len(keys)

    def _change(self, condition: Q, **columns: Any) -> list[str]:
        """Change those of these jobs that `condition` still holds for, under lock, and wake the workers. Their keys."""
        everything = JobQuerySet(self.model, using=self.db)
        asked = everything.filter(condition, pk__in=self.values("pk")).order_by("pk")
        locked = dict(asked.select_for_update(no_key=True).values_list("pk", "key"))
        if locked:
            everything.filter(pk__in=list(locked)).update(**columns)
            wake_workers(self.db)
        return list(locked.values())

    def open(self) -> Self:
        """Not finished: read by the indexes of what runs, what waits, and what waits to be handed over.

        Of one schedule, by `pgwerk_open`.
        """
        runs, ready, ours = Q(status=_literal("RUNNING")), Q(status=_literal("READY")), Q(target=_literal("worker"))
        return self.filter(runs | ready & (ours | ~ours))

    def waiting_targets(self) -> list[str]:
        """The targets other than our worker for which jobs wait."""
        with transaction.get_connection(self.db).cursor() as cursor:
            cursor.execute(f"SELECT {WAITING_TARGETS}")
            targets: list[str] = cursor.fetchone()[0]
        return targets

    def skip_not_started(self, limit: int) -> int:
        """Skip up to `limit` jobs that wait and were to start by now. None of them would be begun any more."""
        with transaction.get_connection(self.db).cursor() as cursor:
            cursor.execute(
                """
                UPDATE _pgwerk_jobs SET
                    status = 'SKIPPED', lease_until = NULL, finished_at = statement_timestamp(),
                    reason = 'it was to start by ' || to_char(start_by AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
                    expires_at = statement_timestamp() + coalesce(result_ttl, %s) * interval '1 second'
                WHERE id IN (
                    SELECT id FROM _pgwerk_jobs
                    -- Under a lease it may have been handed over, and not yet marked.
                    WHERE status = 'READY' AND start_by <= statement_timestamp() AND lease_until IS NULL
                    ORDER BY start_by LIMIT %s FOR UPDATE SKIP LOCKED
                ) RETURNING key
                """,
                [conf.current().RESULT_TTL, limit],
            )
            keys = [row[0] for row in cursor.fetchall()]
        if keys:
            signals.send(signals.jobs_not_started, using=self.db, jobs=keys)
        return len(keys)

    def delete_expired(self, limit: int) -> int:
        """Delete up to `limit` finished jobs whose time to live is over, in a statement and a commit of their own."""
        with transaction.get_connection(self.db).cursor() as cursor:
            cursor.execute(
                """
                DELETE FROM _pgwerk_jobs WHERE id IN (
                    SELECT id FROM _pgwerk_jobs
                    WHERE expires_at <= statement_timestamp() AND status NOT IN ('READY', 'RUNNING')
                    ORDER BY expires_at LIMIT %s FOR UPDATE SKIP LOCKED
                )
                """,
                [limit],
            )
            return int(cursor.rowcount)


def expiry(ttl: str, default: int) -> "models.ExpressionWrapper[Any]":
    """Now and a finished job's ttl (the column `ttl`, else `default` seconds) from now."""
    lifetime = Coalesce(F(ttl), Value(default)) * Value(timedelta(seconds=1), output_field=models.DurationField())
    return models.ExpressionWrapper(Now() + lifetime, output_field=models.DateTimeField())


# What people are told of, in the text of a statement: `schedule_name <> ''`, and one of these two. What an earlier job of
# the same schedule stood in for is not missed.
FAILED = "status = 'FAILED'"
MISSED = "status = 'SKIPPED' AND NOT reason LIKE 'overlap:%'"
ENDED_BADLY = ~Q(schedule_name="") & (Q(status="FAILED") | (Q(status="SKIPPED") & ~Q(reason__startswith="overlap:")))


class Job(models.Model):
    """The record of one run: queue entry, history and idempotency key in one row."""

    id = models.UUIDField(primary_key=True, db_default=UUIDv7(), editable=False)
    key = models.CharField(_("key"), max_length=255, default=random_key, db_default=RandomKey())
    # No constraint: it costs 40 % of an insert and races with deletes. `schedule_name` is the durable link.
    schedule = models.ForeignKey(
        Schedule,
        models.DO_NOTHING,
        db_constraint=False,
        db_index=False,
        null=True,
        blank=True,
        related_name="jobs",
        verbose_name=_("schedule"),
    )
    schedule_name = models.CharField(_("schedule name"), max_length=200, default="", db_default="", blank=True)
    due_at = models.DateTimeField(_("due at"), null=True, blank=True)
    kind = models.CharField(_("kind"), max_length=10, choices=Kind, default=Kind.ADHOC, db_default=Kind.ADHOC.value)
    function = models.CharField(_("function"), max_length=500, default="", db_default="")
    target = models.CharField(_("target"), max_length=50, default="worker", db_default="worker")
    queue = models.CharField(_("queue"), max_length=100, default="default", db_default="default")
    priority = models.IntegerField(_("priority"), default=0, db_default=0)
    args = JSONField(_("arguments"), default=list, db_default=Value([], models.JSONField()))
    kwargs = JSONField(_("keyword arguments"), default=dict, db_default=Value({}, models.JSONField()))
    meta = JSONField(_("meta"), default=dict, db_default=Value({}, models.JSONField()))
    status = models.CharField(
        _("status"), max_length=10, choices=Status, default=Status.READY, db_default=Status.READY.value
    )
    reason = models.TextField(_("reason"), default="", db_default="", blank=True)
    attempt = models.IntegerField(_("attempt"), default=0, db_default=0)
    max_attempts = models.IntegerField(_("maximum attempts"), default=1, db_default=1)
    backoff = JSONField(_("backoff"), null=True, blank=True)
    claims = models.IntegerField(_("claims"), default=0, db_default=0)
    timeout = models.IntegerField(_("timeout"), null=True, blank=True)
    result_ttl = models.IntegerField(_("result TTL"), null=True, blank=True)
    failure_ttl = models.IntegerField(_("failure TTL"), null=True, blank=True)
    enqueued_at = models.DateTimeField(_("enqueued at"), db_default=Now())
    run_at = models.DateTimeField(_("run at"), db_default=Now())
    start_by = models.DateTimeField(_("start by"), null=True, blank=True)  # what has not begun then is skipped
    started_at = models.DateTimeField(_("started at"), null=True, blank=True)
    finished_at = models.DateTimeField(_("finished at"), null=True, blank=True)
    lease_until = models.DateTimeField(_("lease until"), null=True, blank=True)
    prefetched = models.BooleanField(_("prefetched"), default=False, db_default=False)  # claimed, and not yet started
    # Since when it waits for a worker whose code has its function: others have released it.
    unknown_since = models.DateTimeField(_("unknown since"), null=True, blank=True)
    releases = models.IntegerField(
        _("releases"), default=0, db_default=0
    )  # claims that spent no attempt, by a live worker
    worker = models.ForeignKey(
        "Process",
        models.DO_NOTHING,
        db_constraint=False,
        db_index=False,
        null=True,
        blank=True,
        related_name="jobs",
        verbose_name=_("worker"),
    )
    worker_name = models.CharField(_("worker name"), max_length=300, default="", db_default="", blank=True)
    external_id = models.CharField(_("external id"), max_length=255, default="", db_default="", blank=True)
    result = JSONField(_("result"), null=True, blank=True)
    error = models.TextField(_("error"), default="", db_default="", blank=True)
    exception = models.TextField(_("exception"), default="", db_default="", blank=True)  # the dotted path of its class
    errors = JSONField(_("errors of earlier attempts"), default=list, db_default=Value([], models.JSONField()))
    progress = JSONField(_("progress"), null=True, blank=True)
    cancel_requested_at = models.DateTimeField(_("cancel requested at"), null=True, blank=True)
    cancel_forced = models.BooleanField(_("cancel forced"), default=False, db_default=False)
    expires_at = models.DateTimeField(_("expires at"), null=True, blank=True)
    # The span in which it was enqueued, as in the W3C's header of that name. Empty without telemetry.
    traceparent = models.CharField(max_length=100, default="", db_default="", blank=True, editable=False)

    objects = JobQuerySet.as_manager()

    class Meta:
        db_table = "_pgwerk_jobs"
        verbose_name = _("job")
        verbose_name_plural = _("jobs")
        constraints = [
            models.UniqueConstraint(fields=["key"], name="pgwerk_job_key"),
            models.CheckConstraint(
                name="pgwerk_job_instants",
                condition=Q(due_at__range=EXPRESSIBLE, run_at__range=EXPRESSIBLE, start_by__range=EXPRESSIBLE),
            ),
            # What has not finished does not expire: clean-up would delete it.
            models.CheckConstraint(
                name="pgwerk_open_stays",
                condition=Q(expires_at__isnull=True) | ~Q(status__in=["READY", "RUNNING"]),
            ),
        ]
        indexes = [
            models.Index(
                fields=["queue", "-priority", "run_at"],
                name="pgwerk_claim",
                condition=Q(status="READY", target="worker"),
            ),
            # What waits to be handed over to another engine, engine by engine.
            models.Index(
                fields=["target", "run_at"], name="pgwerk_outbox", condition=Q(status="READY") & ~Q(target="worker")
            ),
            # What is to be skipped if it has not begun by then.
            models.Index(
                fields=["start_by"], name="pgwerk_start_by", condition=Q(status="READY", start_by__isnull=False)
            ),
            # Only of schedules, and no other statement may say so: with old statistics nothing seems to wait, and any index
            # that could lead to what waits seems as good as the one that does, the whole backlog long.
            models.Index(
                fields=["schedule"],
                name="pgwerk_open",
                condition=Q(status__in=["READY", "RUNNING"], schedule__isnull=False),
            ),
            models.Index(fields=["worker"], name="pgwerk_running", condition=Q(status="RUNNING")),
            # What waits for a worker that knows its function.
            models.Index(
                fields=["queue", "function"],
                name="pgwerk_unknown",
                condition=Q(status="READY", unknown_since__isnull=False),
            ),
            models.Index(fields=["expires_at"], name="pgwerk_expiry", condition=Q(expires_at__isnull=False)),
            # What failed, newest first: an entry only for what does, so ticks and successes pay nothing.
            models.Index(fields=["id"], name="pgwerk_failed", condition=Q(status="FAILED"), include=["schedule_name"]),
            # Runs that failed, and due times that were missed: what people are told of.
            models.Index(fields=["finished_at"], name="pgwerk_ended_badly", condition=ENDED_BADLY),
        ]
        permissions = [("retry_job", _("Can retry jobs")), ("cancel_job", _("Can cancel jobs"))]

    def __str__(self) -> str:
        return self.key

    def cancel(self, *, by: str = "", reason: str = "", force: bool = False) -> bool:
        """Cancel it, or ask it to stop if it runs (`force`: stop it). Whether it was waiting or running."""
        return self._row().cancel(by=by, reason=reason, force=force) > 0

    def retry(self, *, by: str = "") -> bool:
        """Have it run again, now. Whether it had failed or was cancelled."""
        return self._row().retry(by=by) > 0

    async def acancel(self, *, by: str = "", reason: str = "", force: bool = False) -> bool:
        return await sync_to_async(self.cancel)(by=by, reason=reason, force=force)

    async def aretry(self, *, by: str = "") -> bool:
        return await sync_to_async(self.retry)(by=by)

    def _row(self) -> JobQuerySet:
        return Job.objects.using(self._state.db).filter(pk=self.pk)


class QueueQuerySet(models.QuerySet["Queue"]):
    def discover(self) -> None:
        """Have a row for each queue in which jobs wait, so that people see it. Led from name to name by the claim index."""
        with transaction.get_connection(self.db).cursor() as cursor:
            cursor.execute(
                """
                WITH RECURSIVE found (name) AS (
                    (SELECT queue FROM _pgwerk_jobs WHERE status = 'READY' AND target = 'worker' ORDER BY queue LIMIT 1)
                    UNION ALL
                    SELECT (
                        SELECT queue FROM _pgwerk_jobs
                        WHERE status = 'READY' AND target = 'worker' AND queue > found.name ORDER BY queue LIMIT 1
                    ) FROM found WHERE found.name IS NOT NULL
                )
                INSERT INTO _pgwerk_queues (name)
                SELECT name FROM found
                WHERE name IS NOT NULL AND NOT EXISTS (SELECT FROM _pgwerk_queues queue WHERE queue.name = found.name)
                ON CONFLICT DO NOTHING
                """
            )

    def with_load(self) -> Self:
        """Each with `waiting` (jobs that could run now, counted to `MOST_COUNTED`), `running` and `oldest` (its `run_at`).

        And `unknown`: of how many jobs that wait no worker so far has had the function, by function.
        """
        waits = (
            "queue = _pgwerk_queues.name AND status = 'READY' AND target = 'worker' AND run_at <= statement_timestamp()"
        )
        return self.annotate(
            waiting=RawSQL(  # noqa: S611  no parameters of people's
                f"(SELECT count(*) FROM (SELECT FROM _pgwerk_jobs WHERE {waits} LIMIT %s) AS counted)",  # noqa: S608
                [MOST_COUNTED],
                models.IntegerField(),
            ),
            running=RawSQL(
                "(SELECT count(*) FROM _pgwerk_jobs WHERE queue = _pgwerk_queues.name AND status = 'RUNNING')",
                [],
                models.IntegerField(),
            ),
            oldest=RawSQL(  # noqa: S611
                f"(SELECT min(run_at) FROM (SELECT run_at FROM _pgwerk_jobs WHERE {waits} LIMIT %s) AS counted)",  # noqa: S608
                [MOST_COUNTED],
                models.DateTimeField(null=True),
            ),
            unknown=RawSQL(
                """
                (SELECT coalesce(jsonb_object_agg(function, jobs), '{}') FROM (
                    SELECT function, count(*) AS jobs FROM (
                        SELECT function FROM _pgwerk_jobs
                        WHERE queue = _pgwerk_queues.name AND status = 'READY' AND unknown_since IS NOT NULL
                        ORDER BY function LIMIT %s
                    ) AS counted GROUP BY function ORDER BY jobs DESC, function LIMIT 5
                ) AS listed)
                """,
                [MOST_COUNTED],
                models.JSONField(),
            ),
        )

    def pause(self, *, by: str = "", reason: str = "") -> int:
        """Let no more of their jobs start; what runs goes on. One that is paused keeps its own pause."""
        return self._tell(
            signals.queues_paused,
            Q(paused=False),
            {"paused": True, "paused_at": Now(), "paused_by": person(by), "pause_reason": free_text(reason, "reason")},
            by=by,
            reason=reason,
        )

    def resume(self, *, by: str = "") -> int:
        return self._tell(signals.queues_resumed, Q(paused=True), UNPAUSED, by=person(by))

    def _tell(self, signal: Any, condition: Q, columns: dict[str, Any], **event: str) -> int:
        with atomic(self.db):
            asked = self.filter(condition).order_by("name").select_for_update(no_key=True)
            locked = dict(asked.values_list("pk", "name"))
            if locked:
                QueueQuerySet(self.model, using=self.db).filter(pk__in=list(locked)).update(**columns)
                wake_workers(self.db)
                signals.send(signal, using=self.db, names=list(locked.values()), **event)
        return len(locked)


class Queue(models.Model):
    """What an operator says of a queue. A queue needs no row to be served; one without is not paused."""

    name = models.CharField(_("name"), max_length=100, validators=[no_control_characters])
    paused = models.BooleanField(_("paused"), default=False, db_default=False, editable=False)
    paused_at = models.DateTimeField(_("paused at"), null=True, editable=False)
    paused_by = models.CharField(_("paused by"), max_length=200, default="", db_default="", editable=False)
    pause_reason = models.TextField(_("pause reason"), default="", db_default="", editable=False)

    objects = QueueQuerySet.as_manager()

    class Meta:
        db_table = "_pgwerk_queues"
        verbose_name = _("queue")
        verbose_name_plural = _("queues")
        constraints = [models.UniqueConstraint(fields=["name"], name="pgwerk_queue_name")]
        permissions = [("pause_queue", _("Can pause and resume queues"))]

    def __str__(self) -> str:
        return self.name


class AlertQuerySet(models.QuerySet["Alert"]):
    def delete_old(self) -> int:
        return self.filter(ended_at__lt=Now() - ALERTS_KEPT).delete()[0]


class Alert(models.Model):
    """Something about a schedule that people are told of, once: it is late, it fails, or a due time was missed.

    A table of its own: a schedule that nobody takes may be one that somebody has locked.
    """

    schedule_name = models.CharField(max_length=200, default="", db_default="")
    kind = models.CharField(max_length=10, default="", db_default="")  # late, failing, missed
    job_key = models.CharField(max_length=255, default="", db_default="")  # of the job that was missed, or failed
    why = models.TextField(default="", db_default="")
    since = models.DateTimeField(db_default=Now())
    noticed_at = models.DateTimeField(db_default=Now())
    ended_at = models.DateTimeField(null=True)  # at once for what was missed
    news = models.BooleanField(default=False, db_default=False)  # to be mailed
    mailed_at = models.DateTimeField(null=True)

    objects = AlertQuerySet.as_manager()

    class Meta:
        db_table = "_pgwerk_alerts"
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(
                fields=["schedule_name", "kind"], condition=Q(ended_at=None), name="pgwerk_alert_open"
            ),
            models.UniqueConstraint(fields=["job_key"], condition=Q(kind="missed"), name="pgwerk_alert_missed"),
        ]
        indexes = [
            models.Index(fields=["id"], name="pgwerk_alert_news", condition=Q(news=True)),
            models.Index(fields=["mailed_at"], name="pgwerk_alert_mailed", condition=Q(mailed_at__isnull=False)),
        ]

    def __str__(self) -> str:
        return f"{self.schedule_name} {self.kind}"


class ProcessQuerySet(models.QuerySet["Process"]):
    def delete_dead(self) -> int:
        """Rows of processes that ended without saying so. One that was only frozen writes its row again.

        Also rows that lie ahead: PostgreSQL's clock was ahead, and what lives writes its row anew.
        """
        dead = Q(heartbeat_at__lt=Now() - DEAD_AFTER) | Q(heartbeat_at__gt=Now() + DEAD_AFTER)
        return self.filter(dead).delete()[0]


class Process(models.Model):
    """One row for each live scheduler or worker, refreshed by its heartbeat."""

    role = models.CharField(_("role"), max_length=20, default="", db_default="")
    host = models.CharField(_("host"), max_length=255, default="", db_default="")
    pid = models.IntegerField(_("pid"), default=0, db_default=0)
    version = models.CharField(_("version"), max_length=50, default="", db_default="")
    queues = JSONField(_("queues"), default=list, db_default=Value([], models.JSONField()))
    started_at = models.DateTimeField(_("started at"), db_default=Now())
    heartbeat_at = models.DateTimeField(_("heartbeat at"), db_default=Now())
    last_tick_at = models.DateTimeField(_("last tick at"), null=True, blank=True)
    stats = JSONField(_("stats"), default=dict, db_default=Value({}, models.JSONField()))

    objects = ProcessQuerySet.as_manager()

    class Meta:
        db_table = "_pgwerk_processes"
        verbose_name = _("process")
        verbose_name_plural = _("processes")

    def __str__(self) -> str:
        return f"{self.role} {self.host}:{self.pid}"

    @property
    def served(self) -> list[str]:
        """Names of queues; none: all of them."""
        return list(map(str, self.queues)) if isinstance(self.queues, list) else []

    @classmethod
    def here(cls, role: str, *, version: str, queues: Sequence[str] = ()) -> Self:
        """The row of this process, yet to be written by its first `beat`. How long it sleeps, who judges it must know."""
        stats = {"poll": conf.current().POLL_INTERVAL}
        return cls(
            role=role, host=socket.gethostname(), pid=os.getpid(), version=version, queues=list(queues), stats=stats
        )

    def beat(self, *, using: str, **stats: Any) -> bool:
        """Say that this process lives; False while somebody locks its row. An upsert: the row may have been taken for dead's."""
        # The host's own clock beside PostgreSQL's: who reads the row sees how far it is off.
        self.heartbeat_at, self.stats = Now(), {**self.stats, **stats, "clock": time.time()}
        try:
            with impatient(using):
                Process.objects.using(using).bulk_create(
                    [self],
                    update_conflicts=True,
                    unique_fields=["id"],
                    update_fields=["heartbeat_at", "last_tick_at", "stats"],
                )
        except DatabaseError as error:
            if self.pk is None or refusal_of(error) not in PASSING:
                raise
            return False
        return True

    def end(self, *, using: str) -> None:
        """Delete its row, unless somebody locks that: then it is deleted as a dead one's."""
        try:
            with impatient(using):
                Process.objects.using(using).filter(pk=self.pk).delete()
        except DatabaseError as error:
            if refusal_of(error) not in PASSING:
                raise
