"""Charts as SVG, drawn on the server: shapes with titles, coloured by the style sheet, described in words.

The shape says what the colour says: what failed stands tallest, what was skipped is low, what runs is hollow.
"""

import datetime as dt
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from django.utils import timezone
from django.utils.html import escape, format_html
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext, ngettext

from pgwerk_django.admin.display import EXACT, duration_of, span
from pgwerk_django.history import STRIP, Run
from pgwerk_django.models import Kind, Status

_BAR, _GAP, _HEIGHT = 4, 1, 20
_TALL = {Status.FAILED: 20, Status.SUCCESSFUL: 14, Status.RUNNING: 14, Status.FORWARDED: 14, Status.READY: 8}
_LOW = 5


def joined(parts: Iterable[str]) -> SafeString:
    """Markup that was made of escaped parts."""
    return mark_safe("".join(parts))  # noqa: S308


def strip(runs: Sequence[Run]) -> SafeString:
    """The last runs as bars, the newest at the end; one with a dot below was triggered."""
    shown = runs[:STRIP][::-1]
    width = STRIP * (_BAR + _GAP)
    offset = width - len(shown) * (_BAR + _GAP)
    bars = joined(_bar(run, offset + place * (_BAR + _GAP)) for place, run in enumerate(shown))
    return format_html(
        '<svg class="pgwerk-strip" role="img" aria-label="{}" viewBox="0 0 {} {}" width="{}" height="{}">{}</svg>',
        summary(runs[:STRIP]), width, _HEIGHT + 5, width, _HEIGHT + 5, bars,
    )  # fmt: skip


def _bar(run: Run, x: int) -> str:
    # Not by `format_html`, which escapes numbers too: a page has 1,500 of these.
    height = _TALL.get(run.status, _LOW)  # type: ignore[call-overload]
    dot = (
        f'<circle class="pgwerk-dot" cx="{x + _BAR / 2}" cy="{_HEIGHT + 3}" r="2"/>' if run.kind == Kind.TRIGGER else ""
    )
    return (
        f'<g><title>{escape(_told(run))}</title><rect class="pgwerk-fill-{escape(run.status.lower())}"'
        f' x="{x}" y="{_HEIGHT - height}" width="{_BAR}" height="{height}"/>{dot}</g>'
    )


def _told(run: Run) -> str:
    words = [f"{timezone.localtime(run.due_at):{EXACT}}", run.get_status_display(), duration_of(run)]
    if run.kind == Kind.TRIGGER:
        words.insert(2, gettext("triggered"))
    return ", ".join(words) + (f": {run.reason[:100]}" if run.reason else "")


def summary(runs: Sequence[Run]) -> str:
    """How many of each outcome, in words."""
    if not runs:
        return gettext("No runs on record")
    labels = dict(Status.choices)
    counts = Counter(run.status for run in runs)
    told = ", ".join(f"{count} {str(labels.get(status, status)).lower()}" for status, count in counts.most_common())
    return ngettext("The last run: %(told)s", "The last %(n)d runs: %(told)s", len(runs)) % {
        "n": len(runs),
        "told": told,
    }


# -- durations and lateness over time

_WIDE, _TALLEST, _LEFT, _FOOT = 600, 120, 52, 18
_MOST_GROUPS = 40


class Point(NamedTuple):
    at: dt.datetime
    seconds: float


class Group(NamedTuple):
    """Runs that follow one another, and what half of them and all but one of twenty stayed within."""

    first: dt.datetime
    last: dt.datetime
    runs: int
    p50: float
    p95: float


def grouped(points: Sequence[Point]) -> list[Group]:
    """In order of time, as many in each group as make at most forty of them."""
    size = -(-len(points) // _MOST_GROUPS) or 1
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        Group(part[0].at, part[-1].at, len(part), quantile(part, 0.5), quantile(part, 0.95)) for part in parts if part
    ]


def quantile(points: Sequence[Point], share: float) -> float:
    ordered = sorted(point.seconds for point in points)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def quantile_chart(points: Sequence[Point], label: str) -> str:
    """p50 as a line, p95 as the edge of the area above it; "" where fewer than two runs tell anything."""
    groups = grouped(points)
    if len(groups) < 2:
        return ""
    top = _round_up(max(group.p95 for group in groups))
    step = (_WIDE - _LEFT) / len(groups)

    def x(place: int) -> float:
        return round(_LEFT + step * (place + 0.5), 1)

    def y(seconds: float) -> float:
        return round(_TALLEST - seconds / top * (_TALLEST - 8), 1)

    upper = " ".join(f"{x(n)},{y(group.p95)}" for n, group in enumerate(groups))
    lower = " ".join(f"{x(n)},{y(group.p50)}" for n, group in enumerate(groups))
    back = " ".join(f"{x(n)},{y(group.p50)}" for n, group in reversed(list(enumerate(groups))))
    hover = joined(
        format_html(
            '<g><title>{}</title><rect class="pgwerk-hover" x="{}" y="0" width="{}" height="{}"/></g>',
            _group_told(group), round(_LEFT + step * n, 1), round(step, 1), _TALLEST,
        )
        for n, group in enumerate(groups)
    )  # fmt: skip
    newest = groups[-1]
    told = gettext("%(label)s of the last %(n)d runs: half of the newest within %(p50)s, 95 %% within %(p95)s") % {
        "label": label, "n": len(points), "p50": seconds_span(newest.p50), "p95": seconds_span(newest.p95),
    }  # fmt: skip
    return format_html(
        '<svg class="pgwerk-chart" role="img" aria-label="{}" viewBox="0 0 {} {}">{}'
        '<polygon class="pgwerk-area" points="{} {}"/><polyline class="pgwerk-edge" points="{}"/>'
        '<polyline class="pgwerk-line" points="{}"/>{}{}</svg>',
        told, _WIDE, _TALLEST + _FOOT, _levels(top, y), upper, back, upper, lower, hover, _ends(groups),
    )  # fmt: skip


def _levels(top: float, y: Callable[[float], float]) -> SafeString:
    return joined(
        format_html(
            '<line class="pgwerk-grid" x1="{}" x2="{}" y1="{}" y2="{}"/><text class="pgwerk-tick" text-anchor="end" x="{}" y="{}">{}</text>',
            _LEFT, _WIDE, y(level), y(level), _LEFT - 6, y(level) + 4, seconds_span(level),
        )
        for level in (0, top / 2, top)
    )  # fmt: skip


def _ends(groups: Sequence[Group]) -> SafeString:
    first, last = timezone.localtime(groups[0].first), timezone.localtime(groups[-1].last)
    pattern = "%H:%M" if first.date() == last.date() else "%m-%d %H:%M"
    return format_html(
        '<text class="pgwerk-tick" x="{}" y="{}">{}</text><text class="pgwerk-tick" text-anchor="end" x="{}" y="{}">{}</text>',
        _LEFT, _TALLEST + 14, f"{first:{pattern}}", _WIDE, _TALLEST + 14, f"{last:{pattern}}",
    )  # fmt: skip


def _group_told(group: Group) -> str:
    first, last = (f"{timezone.localtime(instant):{EXACT}}" for instant in (group.first, group.last))
    when = first if group.runs == 1 else f"{first} – {last}"
    return f"{when}: p50 {seconds_span(group.p50)}, p95 {seconds_span(group.p95)} ({group.runs})"


def seconds_span(seconds: float) -> str:
    return "0" if not seconds else span(dt.timedelta(seconds=seconds))


def _round_up(value: float) -> float:
    """To 1, 2 or 5 times a power of ten, so that the levels are round."""
    if value <= 0.001:
        return 0.001
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= value * 0.999)


# -- what ran and what will, side by side

_TIMELINE, _AXIS = 960, 150
_LABELS = 8


class Column(NamedTuple):
    """One stretch of time: how many there were of each outcome, and how many are to come."""

    start: dt.datetime
    outcomes: Sequence[tuple[str, float]]
    coming: float

    @property
    def total(self) -> float:
        return sum(number for _outcome, number in self.outcomes) + self.coming


def timeline(columns: Sequence[Column], size: dt.timedelta, *, now: dt.datetime | None, label: str) -> SafeString:
    """Stacked bars, what failed at the bottom where it catches the eye; what is to come is hollow."""
    top = _round_up(max((column.total for column in columns), default=0) or 1)
    step = (_TIMELINE - _LEFT) / (len(columns) or 1)
    bars = joined(_column(column, size, round(_LEFT + n * step, 2), step, top) for n, column in enumerate(columns))
    mark: str | SafeString = ""
    if now is not None and columns:
        at = round(_LEFT + (now - columns[0].start) / size * step, 1)
        mark = format_html(
            '<line class="pgwerk-now" x1="{}" x2="{}" y1="0" y2="{}"/><text class="pgwerk-tick" x="{}" y="10">{}</text>',
            at, at, _AXIS, at + 4, gettext("now"),
        )  # fmt: skip
    return format_html(
        '<svg class="pgwerk-chart pgwerk-timeline" role="img" aria-label="{}" viewBox="0 0 {} {}">{}{}{}{}</svg>',
        label, _TIMELINE, _AXIS + _FOOT, _heights(top), bars, mark, _hours(columns, size, step),
    )  # fmt: skip


def _heights(top: float) -> SafeString:
    return joined(
        format_html(
            '<line class="pgwerk-grid" x1="{}" x2="{}" y1="{}" y2="{}"/><text class="pgwerk-tick" text-anchor="end" x="{}" y="{}">{}</text>',
            _LEFT, _TIMELINE, y, y, _LEFT - 6, y + 4, f"{level:g}",
        )
        for level, y in ((0, _AXIS), (top / 2, _AXIS / 2 + 4), (top, 8))
    )  # fmt: skip


def _column(column: Column, size: dt.timedelta, x: float, step: float, top: float) -> SafeString:
    if not column.total:
        return SafeString("")
    parts, floor = [], float(_AXIS)
    for outcome, number in (*column.outcomes, ("coming", column.coming)):
        if number:
            height = max(number / top * (_AXIS - 8), 1.5)
            floor -= height
            parts.append(
                format_html(
                    '<rect class="pgwerk-fill-{}" x="{}" y="{}" width="{}" height="{}"/>',
                    outcome.lower(), x, round(floor, 1), round(max(step - 1, 0.8), 2), round(height, 1),
                )
            )  # fmt: skip
    return format_html("<g><title>{}</title>{}</g>", _column_told(column, size), joined(parts))


def _column_told(column: Column, size: dt.timedelta) -> str:
    labels = dict(Status.choices)
    first, last = timezone.localtime(column.start), timezone.localtime(column.start + size)
    told = [f"{number:g} {str(labels.get(outcome, outcome)).lower()}" for outcome, number in column.outcomes if number]
    if column.coming:
        told.append(gettext("%(n)s to come") % {"n": number_text(column.coming)})
    return f"{first:%Y-%m-%d %H:%M} – {last:%H:%M}: {', '.join(told)}"


def number_text(number: float) -> str:
    return f"{number:.0f}" if number >= 10 or number == int(number) else f"{number:.1f}"


def _hours(columns: Sequence[Column], size: dt.timedelta, step: float) -> SafeString:
    each = -(-len(columns) // _LABELS) or 1
    pattern = "%a %H:%M" if size * len(columns) > dt.timedelta(days=2) else "%H:%M"
    return joined(
        format_html(
            '<text class="pgwerk-tick" x="{}" y="{}">{}</text>',
            round(_LEFT + n * step, 1), _AXIS + 14, f"{timezone.localtime(columns[n].start):{pattern}}",
        )
        for n in range(0, len(columns), each)
    )  # fmt: skip
