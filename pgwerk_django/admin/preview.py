"""What a form would make: the recurrence in words, its next runs, and what to think of before saving."""

import datetime as dt
import inspect
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

from django import forms
from django.core.exceptions import ValidationError
from django.utils.module_loading import import_string
from django.utils.translation import gettext

from pgwerk_django import cron, registry
from pgwerk_django.admin.display import moment
from pgwerk_django.admin.forms import is_admitted
from pgwerk_django.admin.words import recurrence_in_words
from pgwerk_django.exceptions import text_of
from pgwerk_django.models import Schedule, recurrence_of

SHOWN = 5
_DAY = dt.timedelta(days=1)
_YEAR = 366


class Preview(NamedTuple):
    words: str = ""
    times: Sequence[str] = ()
    warnings: Sequence[str] = ()
    errors: Sequence[str] = ()
    signature: str = ""


def preview(data: Mapping[str, Any], now: dt.datetime, before: Schedule | None = None) -> Preview:
    """Of what the form's fields hold now, by their names; `before` is the row that is edited."""
    signature = signature_of(str(data.get("function", "")))
    try:
        row = row_of(data, now, before)
    except (TypeError, ValueError) as error:
        return Preview(errors=[text_of(error)], signature=signature)
    except ValidationError as error:
        return Preview(errors=error.messages, signature=signature)
    if not (row.cron or row.interval or row.next_run_at):
        return Preview(signature=signature)
    times = next_times(row, now)
    zone = cron.zone(row.timezone)
    return Preview(
        words=recurrence_in_words(row),
        times=[moment(time, zone=zone, now=now) for time in times],
        warnings=list(warnings_of(row, times, now)),
        signature=signature,
    )


def row_of(data: Mapping[str, Any], now: dt.datetime, before: Schedule | None) -> Any:
    columns = registry.read_options(
        {
            "cron": str(data.get("cron", "")).strip() or None,
            "interval": forms.IntegerField(required=False).clean(data.get("interval", "")),
            "timezone": data.get("timezone") or None,
        }
    )
    if columns["cron"] and columns["interval"] is not None:
        registry.check_recurrence(columns)
    instants = {name: _instant(data, name) for name in ("starts_at", "ends_at", "next_run_at")}
    created = before.created_at if before else now
    anchor = instants["next_run_at"] or (before.anchor_at if before else now)
    return SimpleNamespace(**columns, **instants, created_at=created, anchor_at=anchor)


def _instant(data: Mapping[str, Any], name: str) -> dt.datetime | None:
    parts = [data.get(f"{name}_0", ""), data.get(f"{name}_1", "")]
    return registry.instant(forms.SplitDateTimeField(required=False).clean(parts), name)


def next_times(row: Any, now: dt.datetime) -> list[dt.datetime]:
    first = row.next_run_at
    recurrence = recurrence_of(row)
    if first is None:
        return recurrence.upcoming(now, SHOWN)
    return [first, *recurrence.upcoming(first, SHOWN)][:SHOWN]


def warnings_of(row: Any, times: Sequence[dt.datetime], now: dt.datetime) -> Iterator[str]:
    if not times:
        yield gettext("It never runs: no due time lies within its bounds.")
    if row.interval is not None and row.interval < 60:
        yield gettext("It runs more often than each minute: is one long-running process a better fit?")
    if row.cron:
        _minute, _hour, (day, days), _month, (weekday, weekdays) = cron.fields(row.cron)
        if len(days) < 31 and len(weekdays) < 7:
            if day.startswith("*") or weekday.startswith("*"):
                yield gettext("Day of month and day of week are both given: it runs only on days that match both.")
            else:
                yield gettext("Day of month and day of week are both given: it runs on days that match either.")
        if gap := skipped_by_the_clocks(row.cron, cron.zone(row.timezone), now):
            yield gap


def skipped_by_the_clocks(expression: str, zone: dt.tzinfo, now: dt.datetime) -> str:
    """Whether one of its times falls into the hour that the clocks skip within a year; "" if none does."""
    parsed = cron.parse(expression)
    for day in range(_YEAR):
        start, end = now + day * _DAY, now + (day + 1) * _DAY
        if _offset(start, zone) < _offset(end, zone):
            change = _change(start, end, zone)
            wall_before = (change + _offset(start, zone)).replace(tzinfo=None)
            wall_after = (change + _offset(end, zone)).replace(tzinfo=None)
            found = parsed.following(wall_before - dt.timedelta(minutes=1))
            if found is None or found >= wall_after:
                continue
            words = (
                gettext("On %(day)s the clocks skip %(time)s: it has no run then.")
                if parsed.interval
                else gettext("On %(day)s the clocks skip %(time)s: it runs at %(after)s instead.")
            )
            return words % {"day": f"{found:%Y-%m-%d}", "time": f"{found:%H:%M}", "after": f"{wall_after:%H:%M}"}
    return ""


def _offset(instant: dt.datetime, zone: dt.tzinfo) -> dt.timedelta:
    return instant.astimezone(zone).utcoffset() or dt.timedelta()


def _change(start: dt.datetime, end: dt.datetime, zone: dt.tzinfo) -> dt.datetime:
    """The instant between the two, to the second, at which the clocks change."""
    before = _offset(start, zone)
    low, high = int(start.timestamp()), int(end.timestamp())
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(dt.datetime.fromtimestamp(middle, dt.UTC), zone) == before:
            low = middle
        else:
            high = middle
    return dt.datetime.fromtimestamp(high, dt.UTC)


def signature_of(function: str) -> str:
    """How a function that people may name is called."""
    if not is_admitted(function):
        return ""
    try:
        return f"{function.rpartition('.')[2]}{inspect.signature(registry.body_of(import_string(function)))}"
    except Exception:  # noqa: BLE001  # the form says what is wrong with it
        return ""
