"""Schedules: what will run and when; pause, resume and trigger; schedules made by people."""

import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Any

from django.contrib import admin
from django.contrib.admin.widgets import AdminTextareaWidget, AdminTextInputWidget
from django.core.exceptions import PermissionDenied
from django.db import models
from django.db.models import DateTimeField, DurationField, ExpressionWrapper, F, Q, QuerySet, Value
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import path
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from pgwerk_django import conf
from pgwerk_django.admin import detail
from pgwerk_django.admin.actions import ActingPage, Action
from pgwerk_django.admin.charts import strip
from pgwerk_django.admin.display import (
    EMPTY,
    brief,
    chip,
    duration_of,
    lateness_of,
    moment,
    note,
    pause_in_words,
    relative,
    shorten,
    zone_of,
)
from pgwerk_django.admin.forms import SUGGESTIONS, JSONField, ScheduleForm, SuggestingInput, is_admitted
from pgwerk_django.admin.pages import MOST_LISTED, LightList, column, value_column
from pgwerk_django.admin.preview import preview
from pgwerk_django.admin.words import recurrence_in_words, rule_in_words
from pgwerk_django.history import Run, failing_names, is_failing, last_runs, with_open_job
from pgwerk_django.models import SYNC, Job, Origin, Schedule, State, Status, atomic, database_now

_SECOND = Value(dt.timedelta(seconds=1), output_field=DurationField())
_IS_LATE = Q(next_run_at__lt=ExpressionWrapper(Now() - F("misfire_grace") * _SECOND, output_field=DateTimeField()))
_IS_RUNNING = Q(error="", paused=False, next_run_at__isnull=False)
# `Schedule.state()` for the database, as far as the row itself says it.
_STATES: Mapping[str, Q] = {
    State.ERROR: ~Q(error=""),
    State.PAUSED: Q(error="", paused=True),
    State.ENDED: Q(error="", paused=False, next_run_at=None),
    State.FAILING: _IS_RUNNING,
    State.LATE: _IS_RUNNING & _IS_LATE,
    State.OK: _IS_RUNNING & ~_IS_LATE,
}


class StateFilter(admin.SimpleListFilter):
    title = _("state")
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[Any, Any]]:
        return list(State.choices)

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        state = self.value() or ""
        if state not in _STATES:
            return queryset
        found = queryset.filter(_STATES[state])
        if state in (State.FAILING, State.LATE, State.OK):
            failing = Q(name__in=failing_names(queryset.db))
            found = found.filter(failing if state == State.FAILING else ~failing)
        return found


class OutcomeFilter(admin.SimpleListFilter):
    """By the jobs, as far as indexes lead to them: of 100,000 schedules nobody asks each for its last one."""

    title = _("last outcome")
    parameter_name = "outcome"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[Any, Any]]:
        return [
            ("failed", _("Failed")),
            ("fine", _("Did not fail")),
            ("running", _("Running now")),
            ("waiting", _("Waiting for a worker")),
            ("never", _("Never ran")),
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        match self.value():
            case "failed":
                return queryset.filter(name__in=failing_names(queryset.db))
            case "fine":
                return queryset.exclude(last_run_at=None).exclude(name__in=failing_names(queryset.db))
            case "running":
                return queryset.filter(with_open_job(Status.RUNNING, queryset.db))
            case "waiting":
                return queryset.filter(with_open_job(Status.READY, queryset.db))
            case "never":
                return queryset.filter(last_run_at=None)
        return queryset


PAUSE = Action(
    name="pause",
    title=_("Pause schedules"),
    button=_("Pause"),
    asks=True,
    concerns=Q(paused=False) | Q(paused_by=SYNC),
    change=lambda rows, by, given: rows.pause(by=by, reason=given["reason"]),
    question=lambda n: ngettext(
        "%(count)d schedule will not run until somebody resumes it:",
        "%(count)d schedules will not run until somebody resumes them:",
        n,
    ),
    told=lambda n: ngettext("%(count)d schedule was paused.", "%(count)d schedules were paused.", n),
    log=_("Paused."),
    log_with_reason=_("Paused: %(reason)s"),
    untouched=_("Nothing to pause: they were paused already."),
)
RESUME = Action(
    name="resume",
    title=_("Resume schedules"),
    button=_("Resume"),
    asks=False,
    concerns=Q(paused=True),
    change=lambda rows, by, given: rows.resume(by=by),
    question=lambda n: ngettext(
        "%(count)d schedule will run again, from its next due time on:",
        "%(count)d schedules will run again, from their next due times on:",
        n,
    ),
    told=lambda n: ngettext("%(count)d schedule was resumed.", "%(count)d schedules were resumed.", n),
    log=_("Resumed."),
    log_with_reason=_("Resumed: %(reason)s"),
    permission="pause",
    untouched=_("Nothing to resume: none of them was paused."),
)
TRIGGER = Action(
    name="trigger",
    title=_("Trigger schedules"),
    button=_("Trigger"),
    asks=False,
    concerns=Q(),
    change=lambda rows, by, given: rows.trigger(by=by),
    question=lambda n: ngettext(
        "%(count)d schedule will run once now, beside its cadence:",
        "%(count)d schedules will run once now, beside their cadence:",
        n,
    ),
    told=lambda n: ngettext("%(count)d schedule was triggered.", "%(count)d schedules were triggered.", n),
    log=_("Triggered."),
    log_with_reason=_("Triggered: %(reason)s"),
    untouched=_("Nothing to trigger: they no longer exist."),
)


class ScheduleList(LightList):
    """Brings each row's last runs, all of them in one statement."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        rows = list(self.result_list)
        runs = last_runs([row.name for row in rows], using=conf.current().DATABASE)
        for row in rows:
            row.runs = runs[row.name]
        self.result_list = rows


FIELDSETS: tuple[tuple[Any, dict[str, Any]], ...] = (
    (None, {"fields": ("name", "description")}),
    (_("What"), {"fields": ("function", "args", "kwargs", "queue")}),
    (_("When"), {"fields": ("cron", "interval", "timezone", "next_run_at")}),
    (_("Bounds"), {"fields": ("starts_at", "ends_at", "max_runs", "jitter"), "classes": ("collapse",)}),
    (_("Missed and overlapping runs"), {"fields": ("misfire", "misfire_grace", "overlap"), "classes": ("collapse",)}),
    (
        _("Running"),
        {
            "fields": (
                "target",
                "priority",
                "timeout",
                "max_attempts",
                "backoff",
                "start_within",
                "result_ttl",
                "failure_ttl",
                "meta",
            ),
            "classes": ("collapse",),
        },
    ),
)
# What cannot be edited is set out to be read.
READABLE = {
    "args": "shown_args",
    "kwargs": "shown_kwargs",
    "meta": "shown_meta",
    "starts_at": "shown_starts_at",
    "ends_at": "shown_ends_at",
}


@admin.register(Schedule)
class ScheduleAdmin(ActingPage):
    list_display = ("shown_name", "shown_state", "shown_rule", "shown_next_run", "shown_last_run", "shown_queue")
    show_facets = admin.ShowFacets.NEVER  # each would count all rows
    list_filter = (StateFilter, OutcomeFilter, "origin", ("queue", admin.AllValuesFieldListFilter))
    list_per_page = 50
    search_fields = ("name", "function")
    search_help_text = _("Name or function")
    ordering = ("name",)
    actions = ("pause", "resume", "trigger")
    acts = (PAUSE, RESUME, TRIGGER)
    form = ScheduleForm
    heavy = ("args", "kwargs", "meta", "backoff", "description")
    askable = ("id", "name", "function", "target", "timezone", "next_run_at", "last_run_at")
    whole = ("args", "kwargs", "meta", "error")
    shown_args = value_column(Schedule, "args")
    shown_kwargs = value_column(Schedule, "kwargs")
    shown_meta = value_column(Schedule, "meta")
    shown_starts_at = column(Schedule, "starts_at", moment)
    shown_ends_at = column(Schedule, "ends_at", moment)
    formfield_overrides = {
        models.JSONField: {"form_class": JSONField, "widget": AdminTextareaWidget(attrs={"rows": 3})},
        models.TextField: {"widget": AdminTextareaWidget(attrs={"rows": 2})},
    }

    # -- the list

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[LightList]:
        return ScheduleList

    @admin.display(description=_("name"), ordering="name")
    def shown_name(self, row: Schedule) -> str:
        return row.name

    @admin.display(description=_("state"))
    def shown_state(self, row: Any) -> SafeString:
        state = row.state(row.judged_at, failing=is_failing(row.runs))
        why = {State.ERROR: row.error, State.PAUSED: pause_in_words(row)}.get(state, "")
        shown = chip(state, state.label, why)
        if why:
            shown = format_html("{} {}", shown, shorten(why))
        if row.triggered_at is not None:
            shown = format_html("{} {}", shown, note(_("triggered, starts with the next tick")))
        return shown

    @admin.display(description=_("recurrence"))
    def shown_rule(self, row: Schedule) -> str:
        return format_html("{} {}", recurrence_in_words(row), note(row.rule)) if row.cron else rule_in_words(row)

    @admin.display(description=_("next run"), ordering="next_run_at")
    def shown_next_run(self, row: Any) -> str:
        if row.paused:
            return EMPTY
        try:
            following = _with_distance(row.next_run(row.judged_at), row)
        except Exception:  # noqa: BLE001  # whatever a row holds, the list must show it
            following = ""
        words = note(_("with the next tick it is planned anew")) if row.replan else ""
        return format_html("{} {}", following, words) if words else following

    @admin.display(description=_("last run"), ordering="last_run_at")
    def shown_last_run(self, row: Any) -> str:
        if not row.runs:  # none that is on record
            return _with_distance(row.last_run_at, row)
        run = row.runs[0]
        outcome = self.link(chip(run.status, run.get_status_display()), Job, run.pk)
        when = brief(run.due_at, row.judged_at, zone=zone_of(row))
        return format_html("{} {} {} {}", strip(row.runs), outcome, when, note(_timing(run)))

    @admin.display(description=_("queue"), ordering="queue")
    def shown_queue(self, row: Schedule) -> SafeString:
        where = gettext("%(target)s, from %(origin)s") % {"target": row.target, "origin": row.get_origin_display()}
        return format_html("{} {}", row.queue, note(where, _("Target: who runs it; origin: where it was made")))

    # -- permissions: each is asked again for each POST

    def has_pause_permission(self, request: HttpRequest) -> bool:
        """For pause and resume."""
        return self.may(request, "pause")

    def has_trigger_permission(self, request: HttpRequest) -> bool:
        return self.may(request, "trigger")

    def has_change_permission(self, request: HttpRequest, obj: Schedule | None = None) -> bool:
        return not _is_codes(obj) and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Schedule | None = None) -> bool:
        return not _is_codes(obj) and super().has_delete_permission(request, obj)

    # -- actions

    @admin.action(permissions=["pause"], description=_("Pause selected %(verbose_name_plural)s"))
    def pause(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        return self.act(request, queryset, PAUSE)

    @admin.action(permissions=["pause"], description=_("Resume selected %(verbose_name_plural)s"))
    def resume(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        return self.act(request, queryset, RESUME)

    @admin.action(permissions=["trigger"], description=_("Trigger selected %(verbose_name_plural)s"))
    def trigger(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        return self.act(request, queryset, TRIGGER)

    # -- one schedule

    def get_urls(self) -> list[Any]:
        view = self.admin_site.admin_view(self.preview_view)
        return [
            path("preview/", view, name=f"{self.opts.app_label}_{self.opts.model_name}_preview"),
            *super().get_urls(),
        ]

    def preview_view(self, request: HttpRequest) -> HttpResponse:
        """What the form would make, as a piece of HTML; nothing is written."""
        row = self.get_object(request, request.GET["row"]) if request.GET.get("row") else None
        if not (self.has_change_permission(request, row) if row else self.has_add_permission(request)):
            raise PermissionDenied
        shown = preview(request.GET.dict(), database_now(conf.current().DATABASE), row)
        return TemplateResponse(request, "admin/pgwerk_django/schedule/preview.html", {"preview": shown})

    def get_form(self, request: HttpRequest, obj: Schedule | None = None, change: bool = False, **kwargs: Any) -> Any:
        if obj is not None and not self.has_change_permission(request, obj):
            kwargs["help_texts"] = {}  # how to fill in a field is no help to those who cannot
        return super().get_form(request, obj, change, **kwargs)

    def get_fieldsets(self, request: HttpRequest, obj: Schedule | None = None) -> Any:
        hidden = {"name", "next_run_at"} if obj else set()  # they stand above: the heading, and the next runs
        locked = self.get_readonly_fields(request, obj)

        def readable(field: str) -> str:
            return READABLE[field] if READABLE.get(field) in locked else field

        return [
            (title, {**options, "fields": [readable(field) for field in options["fields"] if field not in hidden]})
            for title, options in FIELDSETS
        ]

    def get_readonly_fields(self, request: HttpRequest, obj: Schedule | None = None) -> tuple[str, ...]:
        if obj is None:
            return ()
        if not self.has_change_permission(request, obj):
            return tuple(READABLE.values())
        # What a developer scheduled through the API may be a function that people may not name, nor feed.
        return () if is_admitted(obj.function) else ("function", "target", "shown_args", "shown_kwargs")

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        # Django would have the browser say what a field held before, where its default is a function: the row says it.
        kwargs["show_hidden_initial"] = False
        if db_field.name in SUGGESTIONS:
            kwargs["widget"] = SuggestingInput(SUGGESTIONS[db_field.name])
        if db_field.name == "backoff":
            kwargs["widget"] = AdminTextInputWidget()
        return super().formfield_for_dbfield(db_field, request, **kwargs)

    def save_model(self, request: HttpRequest, obj: Schedule, form: Any, change: bool) -> None:
        if change:
            self._redefine(obj, form.changed_data)
            return
        obj.origin = Origin.ADMIN
        if obj.next_run_at is not None:
            obj.anchor_at = obj.next_run_at
        using = conf.current().DATABASE
        with atomic(using):  # a row without a next run is planned by the next tick
            obj.save(using=using, force_insert=True)

    def _redefine(self, obj: Schedule, changed: Iterable[str]) -> None:
        """Write what the person changed to the row as it is now; a due time that no tick has seen yet is not lost."""
        using = conf.current().DATABASE
        wanted = {name: getattr(obj, name) for name in changed if name in Schedule.DEFINITION}
        with atomic(using):
            row = get_object_or_404(Schedule.objects.using(using).select_for_update(no_key=True), pk=obj.pk)
            if _is_codes(row):  # since a moment ago
                raise PermissionDenied
            changes = {name: value for name, value in wanted.items() if not _is_same(value, getattr(row, name))}
            row.redefine(changes, now=database_now(using))

    def delete_queryset(self, request: HttpRequest, queryset: Any) -> None:
        queryset.exclude(origin=Origin.CODE).delete()

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        listed, counts, lacking, protected = super().get_deleted_objects(objs, request)
        protected += [str(row) for row in objs if _is_codes(row)][:MOST_LISTED]
        return listed, counts, lacking, protected

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        row = context.get("original")
        if row is not None:
            context["pgwerk"] = detail.page(self, request, row)
        if self.has_change_permission(request, row) if row else self.has_add_permission(request):
            context["preview_url"] = self.url(Schedule, "preview")
            if request.method == "POST":  # it was refused: what it would be is shown without JavaScript, too
                context["preview"] = preview(request.POST.dict(), database_now(conf.current().DATABASE), row)
        return super().render_change_form(request, context, *args, **kwargs)


def _is_codes(row: Schedule | None) -> bool:
    """What code declares is read-only here: the next sync would undo it."""
    return row is not None and row.origin == Origin.CODE


def _is_same(typed: Any, stored: Any) -> bool:
    """Forms know no microseconds."""
    return bool(typed == (stored.replace(microsecond=0) if isinstance(stored, dt.datetime) else stored))


def _timing(run: Run) -> str:
    """How long it took, and how late it began."""
    took, late = duration_of(run), lateness_of(run)
    if late == EMPTY:
        return "" if took == EMPTY else took
    return gettext("%(took)s, %(late)s late") % {"took": took, "late": late}


def _with_distance(instant: dt.datetime | None, row: Any) -> str:
    if instant is None:
        return EMPTY
    when = brief(instant, row.judged_at, zone=zone_of(row))
    return format_html("{} {}", when, note(relative(instant, row.judged_at)))
