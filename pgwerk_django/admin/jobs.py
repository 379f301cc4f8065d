"""Jobs: what ran, when, for how long, and why not."""

import contextlib
import datetime as dt
import uuid
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from pgwerk_django import conf
from pgwerk_django.admin.actions import ActingPage, Action
from pgwerk_django.admin.display import (
    EMPTY,
    brief,
    chip,
    duration_of,
    kind_of,
    lateness_of,
    moment,
    note,
    shorten,
    shown_json,
    shown_progress,
    shown_text,
)
from pgwerk_django.admin.forms import CancelForm
from pgwerk_django.admin.handover import briefly, handover_of
from pgwerk_django.admin.pages import MOST_LISTED, CappedPaginator, ReadOnlyPage, column, value_column
from pgwerk_django.history import jobs_named
from pgwerk_django.models import Job, Schedule, Status, atomic

MOST_SEARCHED = 100_000  # the newest jobs: no index helps to find a part of a word among millions
# Jobs that may be deleted: they neither wait nor run. A forwarded job still runs if its engine reports the end.
_FINAL = (Status.SUCCESSFUL, Status.FAILED, Status.SKIPPED, Status.CANCELLED)
ENDED = Q(status__in=_FINAL) | Q(status=Status.FORWARDED, finished_at__isnull=False)
OUTCOME = ("reason", "error", "errors", "result", "progress")


def shown_traceback(text: str, *, whole: str = "") -> str:
    return shown_text(text, keep_end=True, whole=whole)


def earlier_errors(entries: Any) -> str:
    if not isinstance(entries, list):  # written by another program
        return shown_json(entries)
    return format_html_join("", "{}{}", map(_earlier_error, entries)) or EMPTY


def _earlier_error(entry: Any) -> tuple[Any, str]:
    if not isinstance(entry, dict):  # written by another program
        return "", shown_json(entry)
    when = entry.get("at", "")
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        when = moment(dt.datetime.fromisoformat(when))
    heading = format_html('<p class="pgwerk-note">{} {}</p>', gettext("Attempt %s") % entry.get("attempt"), when)
    return heading, shown_traceback(str(entry.get("error", "")))


class JobQueueFilter(admin.SimpleListFilter):
    """The queues that schedules name, and the one that is asked for: jobs are too many to ask."""

    title = _("queue")
    parameter_name = "queue"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        schedules = Schedule.objects.using(conf.current().DATABASE)
        asked = filter(None, request.GET.getlist(self.parameter_name))
        return [(queue, queue) for queue in sorted({*schedules.values_list("queue", flat=True).distinct(), *asked})]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        return queryset if value is None else queryset.filter(queue=value)


class JobScheduleFilter(admin.SimpleListFilter):
    """Where a schedule's page leads: it shows the one schedule it is about, and is not there otherwise."""

    title = _("schedule")
    parameter_name = "schedule"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        name = request.GET.get(self.parameter_name)
        return [(name, name)] if name else []

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        return queryset if value is None else jobs_named(queryset, value)


class JobStatusFilter(admin.ChoicesFieldListFilter):
    """As Django's; but what waits is found by the two indexes that share it, whoever the target is."""

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any] | None:
        if self.used_parameters.get(self.lookup_kwarg) == [Status.READY]:
            queryset = queryset.filter(Q(target="worker") | ~Q(target="worker"))
        return super().queryset(request, queryset)


RETRY = Action(
    name="retry",
    title=_("Retry jobs"),
    button=_("Retry"),
    asks=False,
    concerns=Q(status__in=[Status.FAILED, Status.CANCELLED]),
    change=lambda rows, by, given: rows.retry(by=by),
    question=lambda n: ngettext("%(count)d job will run again now:", "%(count)d jobs will run again now:", n),
    told=lambda n: ngettext("%(count)d job runs again.", "%(count)d jobs run again.", n),
    log=_("Retried."),
    log_with_reason=_("Retried: %(reason)s"),
    untouched=_("Nothing to retry: none of them had failed or was cancelled."),
)
CANCEL = Action(
    name="cancel",
    title=_("Cancel jobs"),
    button=_("Cancel jobs"),
    asks=True,
    concerns=Q(status__in=[Status.READY, Status.RUNNING]),
    change=lambda rows, by, given: rows.cancel(by=by, reason=given["reason"], force=given["force"]),
    question=lambda n: ngettext(
        "%(count)d job will not run, or is asked to stop if it does:",
        "%(count)d jobs will not run, or are asked to stop if they do:",
        n,
    ),
    told=lambda n: ngettext(
        "%(count)d job was cancelled, or asked to stop.", "%(count)d jobs were cancelled, or asked to stop.", n
    ),
    log=_("Cancelled."),
    log_with_reason=_("Cancelled: %(reason)s"),
    untouched=_("Nothing to cancel: they had ended already."),
    form=CancelForm,
)


@admin.register(Job)
class JobAdmin(ActingPage, ReadOnlyPage):
    actions = ("retry", "cancel")
    acts = (RETRY, CANCEL)
    known_by = "key"
    list_display = ("shown_name", "brief_status", "brief_due", "shown_timing", "queue", "shown_attempt")
    list_filter = (JobScheduleFilter, ("status", JobStatusFilter), "kind", JobQueueFilter, "enqueued_at")
    search_fields = ("schedule_name", "function")
    search_help_text = _(
        "Name of a schedule or id of a job; parts of names and functions, among the newest 100,000 jobs"
    )
    paginator = CappedPaginator
    ordering = ("-id",)  # a UUIDv7 begins with its time
    sortable_by = ()  # by anything else a million rows would have to be sorted
    heavy = ("args", "kwargs", "meta", "backoff", "result", "error", "errors")
    askable = (
        "id", "key", "schedule_name", "function", "target", "exception", "due_at", "enqueued_at", "started_at",
        "finished_at", "worker_name",
    )  # fmt: skip
    whole = ("args", "kwargs", "meta", "result", "error", "errors")
    show_facets = admin.ShowFacets.NEVER  # and counted
    fieldsets = (
        (None, {"fields": (
            "shown_status", "shown_handover", "shown_schedule", "kind", "shown_due", "reason", "shown_error",
            "shown_errors", "shown_result", "shown_progress",
        )}),
        (_("What"), {"fields": ("function", "shown_args", "shown_kwargs", "shown_meta", "queue", "target", "priority")}),
        (_("When"), {"fields": (
            "shown_enqueued", "shown_run_at", "shown_start_by", "shown_started", "shown_finished", "shown_duration", "shown_lateness",
            "shown_expires",
        )}),
        (_("Running"), {"fields": (
            "worker_name", "shown_attempt", "claims", "shown_lease", "shown_cancel_requested", "timeout", "backoff",
            "key", "id", "external_id",
        )}),
    )  # fmt: skip
    shown_due = column(Job, "due_at", moment)
    shown_started = column(Job, "started_at", moment)
    shown_finished = column(Job, "finished_at", moment)
    shown_enqueued = column(Job, "enqueued_at", moment)
    shown_run_at = column(Job, "run_at", moment)
    shown_start_by = column(Job, "start_by", moment)
    shown_expires = column(Job, "expires_at", moment)
    shown_lease = column(Job, "lease_until", moment)
    shown_cancel_requested = column(Job, "cancel_requested_at", moment)
    shown_args = value_column(Job, "args")
    shown_kwargs = value_column(Job, "kwargs")
    shown_meta = value_column(Job, "meta")
    shown_result = value_column(Job, "result")
    shown_progress = column(Job, "progress", shown_progress)
    shown_error = value_column(Job, "error", shown_traceback)
    shown_errors = column(Job, "errors", earlier_errors)

    def has_retry_permission(self, request: HttpRequest) -> bool:
        return self.may(request, "retry")

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        return self.may(request, "cancel")

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return (obj is None or _has_ended(obj)) and super().has_delete_permission(request, obj)

    def delete_model(self, request: HttpRequest, obj: Job) -> None:
        """Only while it is history: since the question was asked it may have been retried."""
        with atomic(obj._state.db):
            row = Job.objects.using(obj._state.db).select_for_update().filter(ENDED, pk=obj.pk).first()
            if row is None:
                raise PermissionDenied
            row.delete()

    def delete_queryset(self, request: HttpRequest, queryset: Any) -> None:
        with atomic(queryset.db):
            jobs = Job.objects.using(queryset.db)
            ended = jobs.filter(ENDED, pk__in=queryset.values("pk")).select_for_update().values_list("pk", flat=True)
            jobs.filter(pk__in=list(ended)).delete()

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        listed, counts, lacking, protected = super().get_deleted_objects(objs, request)
        # The list holds one job, which has been checked.
        protected += [str(job) for job in objs.exclude(ENDED)[:MOST_LISTED]] if isinstance(objs, QuerySet) else []
        return listed, counts, lacking, protected

    @admin.action(permissions=["retry"], description=_("Retry selected %(verbose_name_plural)s"))
    def retry(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        return self.act(request, queryset, RETRY)

    @admin.action(permissions=["cancel"], description=_("Cancel selected %(verbose_name_plural)s"))
    def cancel(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        return self.act(request, queryset, CANCEL)

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        job = context.get("original")
        if job is not None:
            context["pgwerk"] = {
                **self.action_context(job),
                "may_retry": self.has_retry_permission(request) and job.status in (Status.FAILED, Status.CANCELLED),
                "may_cancel": self.has_cancel_permission(request) and job.status in (Status.READY, Status.RUNNING),
                "is_running": job.status == Status.RUNNING,
            }
        return super().render_change_form(request, context, *args, **kwargs)

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> tuple[Any, bool]:
        try:
            return queryset.filter(pk=uuid.UUID(search_term.strip())), False
        except ValueError:
            pass
        if Schedule.objects.using(queryset.db).filter(name=search_term).exists():
            return jobs_named(queryset, search_term), False
        newest = Job.objects.using(queryset.db).order_by("-pk").values_list("pk", flat=True)
        oldest = newest[MOST_SEARCHED : MOST_SEARCHED + 1].first() if search_term else None
        queryset = queryset if oldest is None else queryset.filter(pk__gt=oldest)
        return super().get_search_results(request, queryset, search_term)

    @admin.display(description=_("job"))
    def shown_name(self, job: Job) -> str:
        name, kind = job.schedule_name or job.function, kind_of(job)
        return format_html("{} {}", name, note(kind)) if kind else name

    @admin.display(description=_("status"))
    def shown_status(self, job: Job) -> SafeString:
        shown = chip(job.status, job.get_status_display())
        return (
            format_html("{} {}", shown, shown_progress(job.progress))
            if job.progress and job.status == Status.RUNNING
            else shown
        )

    @admin.display(description=_("status"))
    def brief_status(self, job: Job) -> SafeString:
        shown = self.shown_status(job)
        why = shorten(job.reason) if job.reason else briefly(job)
        return format_html("{} {}", shown, why) if why else shown

    @admin.display(description=_("hand-over"))
    def shown_handover(self, job: Any) -> str:
        return handover_of(job)

    @admin.display(description=_("due at"))
    def brief_due(self, job: Any) -> str:
        return brief(job.due_at, job.judged_at)

    @admin.display(description=_("duration"))
    def shown_timing(self, job: Job) -> str:
        late = lateness_of(job)
        return format_html(
            "{} {}", duration_of(job), note(gettext("%(span)s late") % {"span": late}) if late != EMPTY else ""
        )

    @admin.display(description=_("duration"))
    def shown_duration(self, job: Job) -> str:
        return duration_of(job)

    @admin.display(description=_("lateness"))
    def shown_lateness(self, job: Job) -> str:
        return lateness_of(job)

    @admin.display(description=_("attempt"))
    def shown_attempt(self, job: Job) -> str:
        return f"{job.attempt} / {job.max_attempts}" if job.target == "worker" else f"{job.attempt}"

    # -- one job

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """The first of them without what this job does not have."""
        fieldsets: Any = super().get_fieldsets(request, obj)
        (title, options), *others = fieldsets
        absent = {name for name in OUTCOME if getattr(obj, name) in (None, "", [])}
        if obj is not None and handover_of(obj) == EMPTY:
            absent.add("handover")
        fields = [field for field in options["fields"] if field.removeprefix("shown_") not in absent]
        return [(title, {**options, "fields": fields}), *others]

    @admin.display(description=_("schedule"))
    def shown_schedule(self, job: Job) -> Any:
        schedule = Schedule.objects.using(job._state.db).filter(name=job.schedule_name).only("pk").first()
        return self.link(job.schedule_name, Schedule, schedule.pk) if schedule else job.schedule_name or EMPTY


def _has_ended(job: Job) -> bool:
    """`ENDED`, of a row that is here."""
    return job.status in _FINAL or (job.status == Status.FORWARDED and job.finished_at is not None)
