"""Queues: what waits in each, and those that an operator holds."""

from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from pgwerk_django.admin.actions import ActingPage, Action
from pgwerk_django.admin.display import EMPTY, chip, moment, pause_in_words, shorten, unknown_in_words
from pgwerk_django.models import MOST_COUNTED, Job, Queue, Status

PAUSE = Action(
    name="pause",
    title=_("Pause queues"),
    button=_("Pause"),
    asks=True,
    concerns=Q(paused=False),
    change=lambda rows, by, given: rows.pause(by=by, reason=given["reason"]),
    question=lambda n: ngettext(
        "The jobs of %(count)d queue will wait until somebody resumes it:",
        "The jobs of %(count)d queues will wait until somebody resumes them:",
        n,
    ),
    told=lambda n: ngettext("%(count)d queue was paused.", "%(count)d queues were paused.", n),
    log=_("Paused."),
    log_with_reason=_("Paused: %(reason)s"),
    untouched=_("Nothing to pause: they were paused already."),
)
RESUME = Action(
    name="resume",
    title=_("Resume queues"),
    button=_("Resume"),
    asks=False,
    concerns=Q(paused=True),
    change=lambda rows, by, given: rows.resume(by=by),
    question=lambda n: ngettext(
        "The jobs of %(count)d queue will run again:", "The jobs of %(count)d queues will run again:", n
    ),
    told=lambda n: ngettext("%(count)d queue was resumed.", "%(count)d queues were resumed.", n),
    log=_("Resumed."),
    log_with_reason=_("Resumed: %(reason)s"),
    permission="pause",
    untouched=_("Nothing to resume: none of them was paused."),
)


@admin.register(Queue)
class QueueAdmin(ActingPage):
    """A queue is here once jobs have waited in it, or once somebody has named it: one may be paused before its first job."""

    list_display = ("name", "shown_state", "shown_waiting", "shown_running", "shown_oldest")
    search_fields = ("name",)
    ordering = ("name",)
    askable = ("id", "name", "paused")
    actions = ("pause", "resume")
    acts = (PAUSE, RESUME)
    fields = ("name", "shown_state", "shown_paused", "shown_waiting", "shown_running", "shown_oldest")

    def get_queryset(self, request: HttpRequest) -> Any:
        return super().get_queryset(request).with_load()

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return ("name",) if obj is None else self.fields

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return () if obj is None else self.fields

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False  # with its row a pause would go

    def has_pause_permission(self, request: HttpRequest) -> bool:
        """For pause and resume."""
        return self.may(request, "pause")

    @admin.action(permissions=["pause"], description=_("Pause selected %(verbose_name_plural)s"))
    def pause(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        return self.act(request, queryset, PAUSE)

    @admin.action(permissions=["pause"], description=_("Resume selected %(verbose_name_plural)s"))
    def resume(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        return self.act(request, queryset, RESUME)

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        row = context.get("original")
        if row is not None:
            context["pgwerk"] = {**self.action_context(row), "may_pause": self.has_pause_permission(request)}
        return super().render_change_form(request, context, *args, **kwargs)

    @admin.display(description=_("state"))
    def shown_state(self, row: Queue) -> SafeString:
        if not row.paused:
            return chip("ok", _("OK"))
        shown = chip("paused", _("Paused"))
        why = pause_in_words(row)
        return format_html("{} {}", shown, shorten(why)) if why else shown

    @admin.display(description=_("paused at"))
    def shown_paused(self, row: Any) -> str:
        return moment(row.paused_at, now=row.judged_at)

    @admin.display(description=_("waiting"))
    def shown_waiting(self, row: Any) -> str:
        count = f"{row.waiting}+" if row.waiting == MOST_COUNTED else str(row.waiting)
        url = self.url(Job, "changelist")
        asked = urlencode({"queue": row.name, "status__exact": Status.READY.value})
        shown = format_html('<a href="{}?{}">{}</a>', url, asked, count) if url else count
        for function, jobs in row.unknown.items():
            shown = format_html("{}<br>{}", shown, unknown_in_words(function, jobs))
        return shown

    @admin.display(description=_("running"))
    def shown_running(self, row: Any) -> str:
        return str(row.running)

    @admin.display(description=_("oldest waiting"))
    def shown_oldest(self, row: Any) -> str:
        return EMPTY if row.oldest is None else moment(row.oldest, now=row.judged_at)
