"""The page of one schedule, above its definition: how it stands, what comes, what was, and why not."""

import datetime as dt
import inspect
from collections.abc import Iterable, Sequence
from typing import Any

from django.contrib.admin import helpers
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from pgwerk_django import registry
from pgwerk_django.admin.actions import audit_of
from pgwerk_django.admin.charts import Point, quantile_chart, strip
from pgwerk_django.admin.diagnosis import Surroundings, findings
from pgwerk_django.admin.display import (
    brief,
    chip,
    duration_of,
    kind_of,
    lateness_of,
    moment,
    note,
    pause_in_words,
    shorten,
    shown_text,
    span,
    zone_of,
)
from pgwerk_django.admin.forms import is_admitted
from pgwerk_django.admin.pages import TOOLS_ARE_BESIDE_THE_HEADING
from pgwerk_django.admin.words import rule_in_words
from pgwerk_django.exceptions import text_of
from pgwerk_django.history import STRIP, Run, is_failing, last_runs
from pgwerk_django.models import Job, Origin, Schedule, Status

UPCOMING = 10
CHARTED = 500  # runs that the charts are of
AUDITED = 20


def page(model_admin: Any, request: HttpRequest, row: Any) -> dict[str, Any]:
    """The context of the template."""
    runs = last_runs([row.name], using=row._state.db, n=CHARTED)[row.name]
    why = findings(row, runs, Surroundings.of(row))
    entries = list(audit(row))
    is_codes = row.origin == Origin.CODE
    return {
        "facts": list(facts(row, runs)),
        "upcoming": upcoming(row),
        "findings": why,
        "is_clear": all(finding.kind == "ok" for finding in why),
        "charts": charts(runs),
        "strip": strip(runs),
        "jobs": [_job(model_admin, run) for run in runs[:STRIP]],
        "all_jobs": model_admin.url(Job, "changelist"),
        "audit": entries,
        "seen": entries[0].pk if entries else 0,
        "action_url": model_admin.url(Schedule, "changelist"),
        "action_checkbox_name": helpers.ACTION_CHECKBOX_NAME,
        "is_on_top": TOOLS_ARE_BESIDE_THE_HEADING,
        "may_pause": model_admin.has_pause_permission(request),
        "may_trigger": model_admin.has_trigger_permission(request),
        "is_codes": is_codes,
        "declared_at": declared_at(row.name) if is_codes else "",
        "payload_is_locked": not is_codes and not is_admitted(row.function),
    }


def facts(row: Any, runs: Sequence[Run]) -> Iterable[tuple[Any, Any]]:
    state = row.state(row.judged_at, failing=is_failing(runs))
    yield _("State"), chip(state, state.label)
    if row.paused:
        yield _("Paused"), format_html("{} {}", moment(row.paused_at, now=row.judged_at), pause_in_words(row))
    if row.error:
        yield _("Error"), shown_text(row.error)
    if row.triggered_at is not None:
        by = format_html("{} {}", moment(row.triggered_at, now=row.judged_at), row.triggered_by)
        yield _("Triggered"), by
    rule = rule_in_words(row)
    yield _("Recurrence"), format_html("{} {}", rule, note(row.rule)) if row.cron and rule != row.rule else rule
    yield _("Last run"), moment(row.last_run_at, now=row.judged_at)
    yield _("Runs"), row.run_count if row.max_runs is None else f"{row.run_count} / {row.max_runs}"
    yield _("Origin"), row.get_origin_display()
    yield _("Created"), moment(row.created_at)


def upcoming(row: Any) -> list[str]:
    """The next runs in the schedule's zone, from the functions that the tick uses; where the clocks change is marked."""
    zone = zone_of(row)
    try:
        times = row.upcoming(UPCOMING, row.judged_at)
        befores = [row.judged_at, *times]
        return [
            format_html("{} {}", moment(time, zone=zone, now=row.judged_at), clock_change(before, time, zone))
            for before, time in zip(befores, times, strict=False)
        ]
    except Exception as error:  # noqa: BLE001  # whatever a row holds, its page must show it
        return [text_of(error)]


def clock_change(before: dt.datetime, instant: dt.datetime, zone: dt.tzinfo) -> str | SafeString:
    """A mark on the first run after the clocks have changed."""
    there, there_before = instant.astimezone(zone), before.astimezone(zone)
    shift = (there.utcoffset() or dt.timedelta()) - (there_before.utcoffset() or dt.timedelta())
    if not shift:
        return ""
    words = (
        gettext("the clocks have gone forward by %(span)s")
        if shift > dt.timedelta()
        else gettext("the clocks have gone back by %(span)s")
    )
    return format_html('<span class="pgwerk-clocks">{}</span>', words % {"span": span(abs(shift))})


def charts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    ran = [run for run in reversed(runs) if run.started_at and run.finished_at and run.status != Status.SKIPPED]
    durations = [Point(run.due_at, _seconds(run.finished_at, run.started_at)) for run in ran]
    # Of a later attempt nobody knows when the first one began.
    lateness = [Point(run.due_at, max(_seconds(run.started_at, run.due_at), 0)) for run in ran if run.claims < 2]
    titled = ((_("Duration"), durations), (_("Lateness"), lateness))
    drawn = [{"title": title, "svg": quantile_chart(points, str(title))} for title, points in titled]
    return [chart for chart in drawn if chart["svg"]]


def _seconds(later: Any, earlier: Any) -> float:
    return float((later - earlier).total_seconds())


def _job(model_admin: Any, run: Run) -> dict[str, Any]:
    return {
        "due": model_admin.link(brief(run.due_at, run.judged_at), Job, run.pk),
        "status": chip(run.status, run.get_status_display()),
        "kind": kind_of(run),
        "duration": duration_of(run),
        "lateness": lateness_of(run),
        "reason": shorten(run.reason, 120) if run.reason else "",
    }


def audit(row: Schedule) -> Any:
    """Who paused, resumed, triggered and edited it in the admin, when and why: the newest first."""
    return audit_of(row).select_related("user").order_by("-pk")[:AUDITED]


def declared_at(name: str) -> str:
    """The module and the line where code declares it; "" for what this process does not declare."""
    definition = registry.registry.get(name)
    if definition is None:
        return ""
    module, _dot, attribute = definition.function.rpartition(".")
    func = inspect.unwrap(registry.body_of(definition.func)) if definition.func is not None else None
    code = getattr(func, "__code__", None)
    if code is None:
        return definition.function
    return gettext("%(function)s in %(module)s, line %(line)d") % {
        "function": attribute, "module": module, "line": code.co_firstlineno,
    }  # fmt: skip
