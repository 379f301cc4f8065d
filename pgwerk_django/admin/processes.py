"""Processes: the schedulers and workers that live, and those that fell silent."""

import datetime as dt
from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from pgwerk_django.admin.display import EMPTY, chip, moment, shown_json, span
from pgwerk_django.admin.pages import ReadOnlyPage, column
from pgwerk_django.health import CLOCK_IS_OFF
from pgwerk_django.models import SILENT_AFTER, Process

LAST_CLOCK = 1e12  # any later one is no clock


def clock_offset(process: Any) -> str:
    """How far the host's clock was from PostgreSQL's at its last heartbeat. Due-ness does not depend on it; log lines do."""
    clock = process.stats.get("clock") if isinstance(process.stats, dict) else None
    if not isinstance(clock, int | float) or not 0 <= clock < LAST_CLOCK:
        return EMPTY
    offset = clock - process.heartbeat_at.timestamp()
    if abs(offset) < CLOCK_IS_OFF:
        return gettext("right")
    return format_html(
        '<strong class="pgwerk-clocks">{}{}</strong>',
        "+" if offset > 0 else "−",
        span(dt.timedelta(seconds=abs(offset))),
    )


@admin.register(Process)
class ProcessAdmin(ReadOnlyPage):
    list_display = (
        "shown_name", "shown_state", "role", "version", "shown_queues", "shown_started", "shown_heartbeat",
        "shown_last_tick", "shown_clock",
    )  # fmt: skip
    ordering = ("role", "host", "pid")
    askable = ("id", "role", "host", "pid", "version", "heartbeat_at")
    shown_started = column(Process, "started_at", moment)
    shown_stats = column(Process, "stats", shown_json)
    fields = (
        "shown_state", "role", "host", "pid", "version", "shown_queues", "shown_started", "shown_heartbeat",
        "shown_last_tick", "shown_clock", "shown_stats",
    )  # fmt: skip

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    @admin.display(description=_("process"), ordering="host")
    def shown_name(self, process: Process) -> str:
        return f"{process.host}:{process.pid}"

    @admin.display(description=_("state"))
    def shown_state(self, process: Any) -> SafeString:
        if process.heartbeat_at >= process.judged_at - SILENT_AFTER:
            return chip("alive", _("Alive"))
        return chip("silent", _("Silent"), _("No heartbeat for more than %(span)s") % {"span": span(SILENT_AFTER)})

    @admin.display(description=_("queues"))
    def shown_queues(self, process: Process) -> str:
        return ", ".join(process.served) or EMPTY

    @admin.display(description=_("heartbeat"), ordering="heartbeat_at")
    def shown_heartbeat(self, process: Any) -> str:
        return moment(process.heartbeat_at, now=process.judged_at)

    @admin.display(description=_("last tick"), ordering="last_tick_at")
    def shown_last_tick(self, process: Any) -> str:
        return moment(process.last_tick_at, now=process.judged_at)

    @admin.display(description=_("clock"))
    def shown_clock(self, process: Process) -> str:
        return clock_offset(process)
