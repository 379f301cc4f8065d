"""Charts as SVG, drawn on the server: shapes with titles, coloured by the style sheet, described in words.

The shape says what the colour says: what failed stands tallest, what was skipped is low, what runs is hollow.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext, ngettext

from pgwerk_django.admin.display import EXACT, duration_of
from pgwerk_django.admin.history import STRIP, Run
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


def _bar(run: Run, x: int) -> SafeString:
    height = _TALL.get(run.status, _LOW)  # type: ignore[call-overload]
    triggered = run.kind == Kind.TRIGGER
    dot = (
        format_html('<circle class="pgwerk-dot" cx="{}" cy="{}" r="2"/>', x + _BAR / 2, _HEIGHT + 3)
        if triggered
        else ""
    )
    return format_html(
        '<g><title>{}</title><rect class="pgwerk-fill-{}" x="{}" y="{}" width="{}" height="{}"/>{}</g>',
        _told(run), run.status.lower(), x, _HEIGHT - height, _BAR, height, dot,
    )  # fmt: skip


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
