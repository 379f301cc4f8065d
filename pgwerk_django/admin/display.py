"""How values look: states as chips, instants in the viewer's zone, durations in words, JSON and text set out to be read."""

import datetime as dt
import json
from typing import Any, TypeGuard

from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import Truncator
from django.utils.translation import gettext, ngettext

from pgwerk_django import cron
from pgwerk_django.masking import masked
from pgwerk_django.models import Kind, Schedule, Status

EMPTY = "–"
EXACT = "%Y-%m-%d %H:%M:%S"
LONGEST_SHOWN = 10_000  # characters of one value on a page


def chip(kind: str, label: Any, title: Any = "") -> SafeString:
    """A state as a coloured word: the word says it all, the colour only helps."""
    return format_html('<span class="pgwerk-chip pgwerk-{}" title="{}">{}</span>', kind.lower(), title, label)


def note(text: Any, title: Any = "") -> SafeString:
    return format_html('<span class="pgwerk-note" title="{}">{}</span>', title or text, text)


def moment(instant: dt.datetime | None, *, zone: dt.tzinfo | None = None, now: dt.datetime | None = None) -> str:
    """An instant to the second in the viewer's zone (or `zone`, with its name); with `now`, also how far off it is."""
    if instant is None:
        return EMPTY
    here, there = timezone.localtime(instant), instant.astimezone(zone or dt.UTC)
    text, title = (f"{there:{EXACT} %Z}", f"{here:{EXACT} %Z}") if zone else (f"{here:{EXACT}}", f"{there:{EXACT} %Z}")
    when = time_element(instant, text, title)
    return when if now is None else format_html("{} {}", when, note(relative(instant, now)))


def moment_text(instant: dt.datetime) -> str:
    return f"{timezone.localtime(instant):{EXACT}}"


def brief(instant: dt.datetime | None, now: dt.datetime, *, zone: dt.tzinfo = dt.UTC) -> str:
    """An instant in a narrow column: of today the time alone. On hover in full, also in `zone`."""
    if instant is None:
        return EMPTY
    here = timezone.localtime(instant)
    is_today = here.date() == timezone.localtime(now).date()
    title = f"{here:{EXACT} %Z}, {instant.astimezone(zone):{EXACT} %Z}"
    return time_element(instant, f"{here:%H:%M:%S}" if is_today else f"{here:{EXACT}}", title)


def time_element(instant: dt.datetime, text: str, title: str) -> SafeString:
    return format_html('<time datetime="{}" title="{}">{}</time>', instant.isoformat(), title, text)


def relative(instant: dt.datetime, now: dt.datetime) -> str:
    if instant > now:
        return gettext("in %(span)s") % {"span": span(instant - now)}
    return gettext("%(span)s ago") % {"span": span(now - instant)}


def span(duration: dt.timedelta) -> str:
    """A duration in its two largest units."""
    seconds = max(duration.total_seconds(), 0)
    if seconds < 1:
        return gettext("%(n)d ms") % {"n": seconds * 1000}
    if seconds < 10:
        return gettext("%(n).1f s") % {"n": seconds}
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = (
        (days, gettext("%(n)d d")),
        (hours, gettext("%(n)d h")),
        (minutes, gettext("%(n)d min")),
        (seconds, gettext("%(n)d s")),
    )
    first = next(i for i, (number, _unit) in enumerate(parts) if number)
    return " ".join(unit % {"n": number} for number, unit in parts[first : first + 2] if number)


def shown_text(text: str, *, keep_end: bool = False, whole: str = "") -> SafeString:
    """Text as it is, cut when huge: `keep_end` for tracebacks, whose last line says most. `whole` is where all of it is."""
    cut = text[-LONGEST_SHOWN:] if keep_end else text[:LONGEST_SHOWN]
    block = format_html('<pre class="pgwerk-pre" tabindex="0">{}</pre>', cut)
    if len(cut) == len(text):
        return block
    if keep_end:
        which = gettext("Only the last %(shown)d of %(all)d characters are shown.")
    else:
        which = gettext("Only the first %(shown)d of %(all)d characters are shown.")
    link = format_html(' <a href="{}">{}</a>', whole, gettext("See all of it")) if whole else ""
    return format_html("{}{}{}", block, note(which % {"shown": len(cut), "all": len(text)}), link)


def json_text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def shown_json(value: Any, *, whole: str = "") -> str:
    """With what is secret in it as stars."""
    return EMPTY if value is None else shown_text(json_text(masked(value)), whole=whole)


def shown_progress(progress: Any) -> str:
    """A bar, as far as the job has said how much there is to do; its note, and how far it is."""
    if not isinstance(progress, dict):
        return EMPTY if progress is None else shown_json(progress)
    done, total, said = progress.get("done"), progress.get("total"), progress.get("note")
    numbers: list[float] = [number for number in (done, total) if _is_number(number)]
    words = " / ".join(f"{number:g}" for number in numbers)
    bar: str | SafeString = ""
    if len(numbers) == 2 and numbers[1] > 0:
        value = min(max(numbers[0] / numbers[1], 0), 1)
        bar = format_html(
            '<progress value="{}" max="1" aria-label="{}"></progress>', f"{value:.4f}", gettext("Progress")
        )
    said = Truncator(str(said)).chars(200) if said else ""
    return format_html('<span class="pgwerk-progress">{} {}</span> {}', bar, words, note(said) if said else "")


def _is_number(value: Any) -> TypeGuard[float]:
    # An integer may be larger than any float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def shorten(text: str, length: int = 80) -> SafeString:
    return note(Truncator(text).chars(length), Truncator(text).chars(LONGEST_SHOWN))


# -- jobs, whole or as `history.Run`


def kind_of(job: Any) -> str:
    """Only what is out of the ordinary is said."""
    return "" if job.kind == Kind.SCHEDULED else job.get_kind_display()


def duration_of(job: Any) -> str:
    """How long it ran, or has been running."""
    if job.started_at is None:
        return EMPTY
    if job.status == Status.RUNNING:
        return gettext("%(span)s so far") % {"span": span(job.judged_at - job.started_at)}
    return EMPTY if job.finished_at is None else span(job.finished_at - job.started_at)


def lateness_of(job: Any) -> str:
    """From due to started; of one that waits, from when it may run to now. Of a later attempt nobody knows."""
    if job.status == Status.READY:
        return span(job.judged_at - job.run_at) if job.judged_at > job.run_at else EMPTY
    if job.started_at is None or job.claims > 1:
        return EMPTY
    return span(job.started_at - (job.due_at or job.run_at))


# -- schedules


def unknown_in_words(function: str, jobs: int) -> str:
    """Return the text for jobs that wait because no worker has had their function so far."""
    words = ngettext(
        "%(n)d job waits for a worker that knows %(function)s.",
        "%(n)d jobs wait for a worker that knows %(function)s.",
        jobs,
    )
    return words % {"n": jobs, "function": function}


def pause_in_words(row: Any) -> str:
    if row.paused_by and row.pause_reason:
        return gettext("by %(by)s: %(reason)s") % {"by": row.paused_by, "reason": row.pause_reason}
    return gettext("by %(by)s") % {"by": row.paused_by} if row.paused_by else row.pause_reason


def zone_of(row: Schedule) -> dt.tzinfo:
    """The schedule's zone; UTC where its name is none, which is what its error then says."""
    try:
        return cron.zone(row.timezone)
    except ValueError:
        return dt.UTC
