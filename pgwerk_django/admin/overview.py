"""The overview: is it alive, what ran, what will, what waits, what fails. A page without a table."""

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from django.apps import apps
from django.apps.registry import Apps
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db import models, transaction
from django.db.models import Case, Q, Value, When
from django.db.models.functions import Now
from django.forms.widgets import Script
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import path
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from pgwerk_django import conf
from pgwerk_django.admin import forecast, handover
from pgwerk_django.admin.charts import Column, number_text, strip, timeline
from pgwerk_django.admin.display import (
    brief,
    chip,
    moment,
    moment_text,
    note,
    pause_in_words,
    relative,
    shorten,
    span,
    zone_of,
)
from pgwerk_django.admin.forecast import Stretches
from pgwerk_django.admin.handover import Outgoing, outgoing
from pgwerk_django.admin.pages import Page
from pgwerk_django.admin.processes import clock_offset
from pgwerk_django.admin.words import rule_in_words
from pgwerk_django.history import failing_names, is_failing, last_runs
from pgwerk_django.models import MAY_RUN, SILENT_AFTER, Job, Process, Queue, Schedule, Status, due_at

# How long the timeline is, half of it behind us; and into how many stretches it is cut.
SPANS = {"1h": (dt.timedelta(hours=1), 60), "24h": (dt.timedelta(days=1), 96), "7d": (dt.timedelta(days=7), 84)}
SPAN = "24h"
MINUTES_AHEAD = 60
MOST_FAILING = 12
MOST_NEXT = 12
MOST_WAITING = 10_000
MOST_NAMES = 500
REFRESH = 10  # seconds


class Overview(models.Model):
    """What the admin's lists show it by. In a registry of its own: no migration, no content type, no permission of its own."""

    class Meta:
        apps = Apps()
        app_label = "pgwerk_django"
        managed = False
        default_permissions = ()
        verbose_name = _("overview")
        verbose_name_plural = _("overview")

    def __str__(self) -> str:
        return gettext("Overview")


Overview._meta.apps = apps  # made outside of the app registry, but of our app: templates ask for its name


@admin.register(Overview)
class OverviewAdmin(Page):
    """Seen by whoever may see schedules, jobs or processes, and each part by whoever may see what it is of."""

    def may_view(self, request: HttpRequest, model: type[models.Model]) -> bool:
        label, name = model._meta.app_label, model._meta.model_name
        user: Any = request.user
        return bool(user.has_perm(f"{label}.view_{name}") or user.has_perm(f"{label}.change_{name}"))

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return any(self.may_view(request, model) for model in (Schedule, Job, Process))

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_urls(self) -> list[Any]:
        view = self.admin_site.admin_view(self.overview)
        return [path("", view, name=f"{self.opts.app_label}_{self.opts.model_name}_changelist")]

    def overview(self, request: HttpRequest) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        asked = request.GET.get("span", "")
        context = {
            **self.own_page(
                request,
                title=gettext("Overview"),
                css=["admin/css/changelists.css"],
                js=[Script("pgwerk_django/overview.js", defer=True)],
            ),
            "span": asked if asked in SPANS else SPAN,
            "spans": list(SPANS),
            "refresh": REFRESH,
            **self._parts(request, asked if asked in SPANS else SPAN),
        }
        return TemplateResponse(request, "admin/pgwerk_django/overview/overview.html", context)

    def _parts(self, request: HttpRequest, asked: str) -> dict[str, Any]:
        using = conf.current().DATABASE
        sees_schedules, sees_jobs, sees_processes = (
            self.may_view(request, model) for model in (Schedule, Job, Process)
        )
        processes = list(Process.objects.using(using).annotate(judged_at=Now()).order_by("role", "host", "pid"))
        live = [process for process in processes if is_alive(process)]
        now, sizes = forecast.clock_and_sizes(using)
        parts: dict[str, Any] = {
            "now": moment(now),
            "has_scheduler": any(process.role == "scheduler" for process in live),
            "has_worker": any(process.role == "worker" for process in live) or not _needs_worker(using),
            "tiles": list(_tiles(live)),
        }
        if sees_processes:
            parts["processes"] = [self._process(process) for process in processes]
        if sees_jobs:
            queues = list(queues_of(live, using))
            parts["queues"] = [self._queue(queue, now) for queue in queues]
            parts["tiles"] += _queue_tiles(queues)
            parts["outgoing"] = [self._outgoing(each, now) for each in outgoing(using)]
        parts |= charts_of(now, asked, sizes, using=using, past=sees_jobs, coming=sees_schedules)
        if sees_schedules:
            failing, count = self._failing(using)
            parts["failing"], parts["failing_url"] = failing, self.url(Schedule, "changelist")
            parts["tiles"].append((gettext("Failing schedules"), count, "bad" if count else "ok"))
            parts["next"] = self._next(using)
        return parts

    def _process(self, process: Any) -> dict[str, Any]:
        offset = clock_offset(process)
        alive = is_alive(process)
        return {
            "name": self.link(str(process), Process, process.pk),
            "state": chip("alive", gettext("Alive")) if alive else chip("silent", gettext("Silent")),
            "heartbeat": relative(process.heartbeat_at, process.judged_at),
            "version": process.version,
            "queues": ", ".join(process.served) or (gettext("all") if process.role == "worker" else ""),
            "offset": offset,
        }

    def _queue(self, queue: "QueueState", now: dt.datetime) -> dict[str, Any]:
        is_stuck = queue.waiting and not queue.workers
        state = chip("ok", gettext("OK"))
        if queue.paused is not None:
            state = chip("paused", gettext("Paused"), pause_in_words(queue.paused))
        elif is_stuck:
            state = chip("error", gettext("No worker"))
        more = "+" if queue.waiting + queue.later >= MOST_WAITING else ""
        jobs = self.url(Job, "changelist")
        return {
            "name": queue.name,
            "url": jobs,
            "state": state,
            "waiting": f"{queue.waiting}{more}",
            "later": queue.later,
            "running": queue.running,
            "oldest": span(now - queue.oldest) if queue.waiting and queue.oldest else "",
            "workers": queue.workers,
        }

    def _outgoing(self, each: Outgoing, now: dt.datetime) -> dict[str, Any]:
        more = "+" if each.waiting >= handover.MOST_COUNTED else ""
        return {
            "target": each.target,
            "state": chip("error", gettext("Failing")) if each.failed else chip("ok", gettext("OK")),
            "waiting": f"{each.waiting}{more}",
            "failed": each.failed,
            "oldest": span(now - each.oldest),
            "error": each.error,
        }

    def _failing(self, using: str) -> tuple[list[dict[str, Any]], int]:
        """What wants a person: first what was set aside, then what fails."""
        names = failing_names(using)
        listed = names[:MOST_NAMES]
        rows: Any = Schedule.objects.using(using).annotate(judged_at=Now())
        rank = Case(When(~Q(error=""), then=Value(0)), default=Value(1))
        wanted = ~Q(error="") | Q(name__in=listed, paused=False, next_run_at__isnull=False)
        found = list(rows.filter(wanted).defer("args", "kwargs", "meta").order_by(rank, "-last_run_at")[:MOST_FAILING])
        runs = last_runs([row.name for row in found], using=using)
        return [self._failing_row(row, runs[row.name]) for row in found], len(names)

    def _failing_row(self, row: Any, runs: Sequence[Any]) -> dict[str, Any]:
        state = row.state(row.judged_at, failing=is_failing(runs))
        last = next((run for run in runs if run.status == Status.FAILED), None)
        return {
            "name": self.link(row.name, Schedule, row.pk),
            "state": chip(state, state.label),
            "strip": strip(runs),
            "why": shorten(row.error, 120) if row.error else "",
            "last": self.link(brief(last.due_at, row.judged_at), Job, last.pk) if last and not row.error else "",
        }

    def _next(self, using: str) -> list[dict[str, Any]]:
        rows: Any = Schedule.objects.using(using).filter(MAY_RUN)
        rows = rows.annotate(judged_at=Now(), due=due_at()).filter(due__isnull=False).order_by(due_at())
        return [
            {
                "name": self.link(row.name, Schedule, row.pk),
                "rule": rule_in_words(row),
                "when": brief(row.due, row.judged_at, zone=zone_of(row)),
                "distance": note(relative(row.due, row.judged_at)),
            }
            for row in rows.defer("args", "kwargs", "meta", "description")[:MOST_NEXT]
        ]


def is_alive(process: Any) -> bool:
    return bool(abs(process.heartbeat_at - process.judged_at) <= SILENT_AFTER)


def _needs_worker(using: str) -> bool:
    """Whether something is ours to run: a site may hand all of it over."""
    schedules = Schedule.objects.using(using)
    return schedules.filter(target="worker").exists() or not schedules.exists()


def _tiles(live: Sequence[Process]) -> Iterable[tuple[str, Any, str]]:
    for role, title in (("scheduler", gettext("Live schedulers")), ("worker", gettext("Live workers"))):
        n = sum(process.role == role for process in live)
        yield title, n, "ok" if n else "bad"


def _queue_tiles(queues: Sequence["QueueState"]) -> list[tuple[str, Any, str]]:
    waiting = sum(queue.waiting for queue in queues)
    return [
        (gettext("Jobs waiting"), waiting, "plain"),
        (gettext("Jobs running"), sum(queue.running for queue in queues), "plain"),
    ]


# -- queues


class QueueState(NamedTuple):
    name: str
    waiting: int
    later: int
    oldest: dt.datetime | None
    running: int
    workers: int
    paused: Queue | None


# From name to name by the claim index; of each queue no more is counted than anybody reads.
_QUEUES = f"""
WITH RECURSIVE found (name) AS (
    (SELECT queue FROM _pgwerk_jobs WHERE status = 'READY' AND target = 'worker' ORDER BY queue LIMIT 1)
    UNION ALL
    SELECT (
        SELECT queue FROM _pgwerk_jobs WHERE status = 'READY' AND target = 'worker' AND queue > found.name ORDER BY queue LIMIT 1
    ) FROM found WHERE found.name IS NOT NULL
)
SELECT name, 'READY', waiting.now, waiting.later, waiting.oldest FROM found, LATERAL (
    SELECT count(*) FILTER (WHERE run_at <= statement_timestamp()) AS now,
        count(*) FILTER (WHERE run_at > statement_timestamp()) AS later, min(run_at) AS oldest
    FROM (SELECT run_at FROM _pgwerk_jobs WHERE status = 'READY' AND target = 'worker' AND queue = found.name LIMIT {MOST_WAITING}) AS counted
) AS waiting WHERE name IS NOT NULL
UNION ALL
SELECT queue, 'RUNNING', count(*), 0, NULL FROM _pgwerk_jobs WHERE status = 'RUNNING' GROUP BY queue
"""  # noqa: S608  a number of ours


def queues_of(live: Sequence[Process], using: str) -> Iterable[QueueState]:
    """Queues in which jobs wait or run, that a worker names or somebody paused; what waits longest first."""
    with transaction.get_connection(using).cursor() as cursor:
        cursor.execute(_QUEUES)
        rows = cursor.fetchall()
    waiting = {row[0]: row[2:] for row in rows if row[1] == Status.READY}
    running = {row[0]: row[2] for row in rows if row[1] == Status.RUNNING}
    paused = {queue.name: queue for queue in Queue.objects.using(using).filter(paused=True)}
    workers = [process for process in live if process.role == "worker"]
    named = {name for process in workers for name in process.served}
    states = []
    for name in waiting.keys() | running.keys() | paused.keys() | named:
        now, later, oldest = waiting.get(name, (0, 0, None))
        serving = sum(not process.served or name in process.served for process in workers)
        states.append(QueueState(name, now, later, oldest, running.get(name, 0), serving, paused.get(name)))
    far = dt.datetime.max.replace(tzinfo=dt.UTC)
    return sorted(states, key=lambda queue: (queue.oldest or far, queue.name))


# -- the charts


def charts_of(
    now: dt.datetime, asked: str, sizes: forecast.Sizes, *, using: str, past: bool, coming: bool
) -> dict[str, Any]:
    length, count = SPANS[asked]
    size = length / count
    # On the clock's own grid, so that a bar stays the same bar from one look to the next.
    middle = now - (now - dt.datetime(2000, 1, 1, tzinfo=dt.UTC)) % size
    behind = Stretches(middle - length / 2, size, count // 2 + 1)  # with the one that is not over yet
    ahead = Stretches(middle, size, count // 2)
    ran = forecast.past(behind, sizes.jobs, using=using) if past else None
    minutes = Stretches(now.replace(second=0, microsecond=0), dt.timedelta(minutes=1), MINUTES_AHEAD)
    will = load = None
    if coming:
        rows, weight = forecast.active(max(ahead.end, minutes.end), sizes.schedules, using=using)
        will, load = (forecast.coming(stretches, _from_now(rows, now), weight) for stretches in (ahead, minutes))
    columns = []
    for place in range(count):
        outcomes = ran.counts[place] if ran and place < behind.number else Counter()
        later = will.counts[place - count // 2] if will and place >= count // 2 else 0
        ordered = [(str(status), outcomes[status]) for status in forecast.OUTCOMES if outcomes[status]]
        columns.append(Column(behind.start + place * size, ordered, later))
    totals: Counter[str] = sum(ran.counts, Counter()) if ran else Counter()
    labels = dict(Status.choices)
    legend = [(str(status).lower(), labels[status], totals[status]) for status in forecast.OUTCOMES if totals[status]]
    expected = sum(will.counts) if will else 0
    told = ", ".join(f"{number} {str(label).lower()}" for _kind, label, number in legend) or gettext("nothing ran")
    label = gettext("Ran: %(told)s; to come: %(n)s") % {"told": told, "n": number_text(expected)}
    found = {
        "timeline": timeline(columns, size, now=now, label=label),
        "legend": legend,
        "expected": number_text(expected) if will else "",
        "is_estimate": bool((ran and ran.is_estimate) or (will and will.is_estimate)),
    }
    if load:
        busiest = max(range(MINUTES_AHEAD), key=load.counts.__getitem__)
        found["load"] = timeline(
            [Column(minutes.start + n * minutes.size, (), number) for n, number in enumerate(load.counts)],
            minutes.size,
            now=None,
            label=gettext("Up to %(n)s jobs a minute") % {"n": number_text(load.counts[busiest])},
        )
        found["busiest"] = gettext("busiest minute: %(n)s jobs at %(at)s") % {
            "n": number_text(load.counts[busiest]), "at": moment_text(minutes.start + busiest * minutes.size),
        }  # fmt: skip
    return found


def _from_now(rows: Sequence[Any], now: dt.datetime) -> list[Any]:
    return [row._replace(next_run_at=max(row.next_run_at, now)) for row in rows]
