"""The daylight-saving policy as a clock that is watched minute by minute: slow, obvious, and sharing nothing with `cron.py`.

A fixed-time job fires when the clock first passes one of its times; an interval job whenever the clock shows one. That is all:
gaps, folds and skipped days follow. It holds where offsets are whole minutes, which is everywhere since 1973.
"""

import functools
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

MINUTE = timedelta(minutes=1)
# Longer than any fold: the clock has been watched this long before the first answer.
WARM_UP = timedelta(hours=26)

MONTHS = ["", "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
WEEKDAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]


class Rule(NamedTuple):
    minutes: set[int]
    hours: set[int]
    days: set[int]
    months: set[int]
    weekdays: set[int]
    both_days: bool
    interval: bool

    def shows(self, wall: datetime) -> bool:
        return wall.minute in self.minutes and wall.hour in self.hours and self.on(wall)

    def on(self, wall: datetime) -> bool:
        day, weekday = wall.day in self.days, wall.isoweekday() % 7 in self.weekdays
        return wall.month in self.months and (day and weekday if self.both_days else day or weekday)


def number(text: str, names: list[str]) -> int:
    return names.index(text.lower()) if text.lower() in names else int(text)


def admits(item: str, value: int, low: int, high: int, names: list[str]) -> bool:
    span, _, step = item.partition("/")
    if span == "*":
        first, last = low, high
    elif "-" in span:
        first, last = (number(end, names) for end in span.split("-"))
        if span.lower().endswith("-sun") and first > 0:
            last = 7
    else:
        first = number(span, names)
        last = max(first, high) if step else first
    return first <= value <= last and (value - first) % int(step or 1) == 0


def members(text: str, low: int, high: int, names: list[str] = WEEKDAYS[:0]) -> set[int]:
    return {v for v in range(low, high + 2) if any(admits(item, v, low, high, names) for item in text.split(","))}


@functools.cache
def rule(expression: str) -> Rule:
    minute, hour, day, month, weekday = expression.split()
    days, weekdays = members(day, 1, 31), {v % 7 for v in members(weekday, 0, 6, WEEKDAYS)}
    starred = [day[0] == "*", weekday[0] == "*"]
    return Rule(
        members(minute, 0, 59),
        members(hour, 0, 23),
        days,
        members(month, 1, 12, MONTHS),
        weekdays,
        any(starred),
        minute[0] == "*" or hour[0] == "*",
    )


def due_times(expression: str, zone: ZoneInfo, start: datetime, end: datetime) -> list[datetime]:
    """Every due time from `start` until before `end`, which are whole minutes."""
    ruled = rule(expression)
    found = []
    instant = start.astimezone(UTC) - WARM_UP
    newest = instant.astimezone(zone).replace(tzinfo=None)
    while (instant := instant + MINUTE) < end:
        wall = instant.astimezone(zone).replace(tzinfo=None)
        if ruled.interval:
            due = ruled.shows(wall)
        else:
            # One minute as a rule, all the skipped ones at the end of a gap, none in a second pass.
            due = any(ruled.shows(newest + passed * MINUTE) for passed in range(1, (wall - newest) // MINUTE + 1))
        newest = max(newest, wall)
        if due and instant >= start:
            found.append(instant)
    return found


@functools.cache
def changes(zone: ZoneInfo, first_year: int = 1990, last_year: int = 2037) -> list[datetime]:
    """The first instant of each new offset of a zone."""
    found = []
    day, end = datetime(first_year, 1, 1, tzinfo=UTC), datetime(last_year + 1, 1, 1, tzinfo=UTC)
    while day < end:
        following = day + timedelta(days=1)
        if offset(zone, day) != offset(zone, following):
            found.append(narrowed(zone, day, following))
        day = following
    return found


def narrowed(zone: ZoneInfo, before: datetime, after: datetime) -> datetime:
    while after - before > MINUTE:
        middle = before + (after - before) // 2 // MINUTE * MINUTE
        before, after = (middle, after) if offset(zone, middle) == offset(zone, before) else (before, middle)
    return after


def offset(zone: ZoneInfo, instant: datetime) -> timedelta | None:
    return instant.astimezone(zone).utcoffset()
