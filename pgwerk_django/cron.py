"""Cron text to instants in a time zone. The only module that knows croniter, and the home of the daylight-saving rules.

An expression whose minute or hour field begins with `*` is an *interval job*: it follows what the clock shows. Any other
is *fixed-time*: each of its due times happens exactly once. The rules are Debian cron's:

|                            | clocks go forward (gap)                        | clocks go back (fold)  |
|----------------------------|------------------------------------------------|------------------------|
| fixed-time, `30 2 * * *`   | once, at the first instant after the gap       | once, the first time   |
| interval, `*/15 * * * *`   | what the clock shows; the gap is not made up   | in both passes         |

croniter only ever walks naive wall time, from lists of values that we parsed: with aware times it fires twice in a fold
and is quadratic in the length of a gap, and its own parser lets `9-9` mean the whole day. A date within 100 days is found
in the parsed values themselves, four times as fast, which is what a tick of a thousand cron schedules needs.
"""

import bisect
import copy
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone
from types import MappingProxyType
from typing import NamedTuple, TypeAlias, cast
from zoneinfo import ZoneInfo, available_timezones

from croniter import croniter

from pgwerk_django.exceptions import shown

MAX_LENGTH = 200
ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}

Zone: TypeAlias = ZoneInfo | timezone

_SECOND = timedelta(seconds=1)
_DAY = timedelta(days=1)
_NEAR = 100  # days that are looked at one by one (0.3 µs each); croniter takes 40 µs, however far the next one is
_FIRST_MINUTE = datetime(1, 1, 1)  # noqa: DTZ001 - wall time is naive
_DAYS_IN_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
# An interval job that only ever names times inside the yearly gap has no due time. The calendar repeats after 400 years,
# so after as many gaps in a row there is nothing left to find.
_MOST_GAPS = 400


# --- The text ---------------------------------------------------------------------------------------------------------


class _Field(NamedTuple):
    name: str
    low: int
    high: int
    names: Mapping[str, int] = MappingProxyType({})

    def refusal(self, expected: str, got: str) -> ValueError:
        return ValueError(f"cron {self.name} {expected}, got {shown(got)}")


_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_WEEKDAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
_FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of month", 1, 31),
    _Field("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
    _Field("day of week", 0, 7, {name: number for number, name in enumerate(_WEEKDAYS)}),
)
_ITEM = re.compile(
    r"(?:\*|(?P<first>[a-z]+|\d+)(?:-(?P<last>[a-z]+|\d+))?)(?:/(?P<step>\d+))?", re.ASCII | re.IGNORECASE
)


def _number(field: _Field, text: str) -> int:
    if text.lower() in field.names:
        return field.names[text.lower()]
    if text.isdecimal() and field.low <= int(text) <= field.high:
        return int(text)
    names = list(field.names)
    words = f" or {names[0]}-{names[-1]}" if names else ""
    raise field.refusal(f"must be from {field.low} to {field.high}{words}", text)


def _item(field: _Field, text: str) -> range:
    """The values of one item of a list: `*`, `n`, `a-b`, each with an optional `/step`; `n/step` runs to the field's end."""
    match = _ITEM.fullmatch(text)
    if match is None:
        numbers = f"numbers from {field.low} to {field.high}"
        raise field.refusal(f"must be *, {numbers}, ranges a-b, each with an optional /step, or a list of these", text)
    first, last, step = match["first"], match["last"], int(match["step"] or 1)
    if step < 1:
        raise field.refusal("step must be 1 or more", text)
    low = _number(field, first) if first else field.low
    if last:
        high = _number(field, last)
        # `sat-sun` is a weekend: at the end of a range Sunday's name is a 7.
        high = 7 if low > high == 0 and last.lower() == "sun" else high
    elif first and not match["step"]:
        high = low
    else:
        # The 7 is another name for Sunday, no place for a step to land on.
        high = max(low, 6) if field.name == "day of week" else field.high
    if high < low:
        raise field.refusal("range must not run backwards", text)
    return range(low, high + 1, step)


def _values(field: _Field, text: str) -> frozenset[int]:
    values = itertools.chain.from_iterable(_item(field, item) for item in text.split(","))
    if field.name == "day of week":
        return frozenset(value % 7 for value in values)
    return frozenset(values)


def _texts(expression: object) -> list[str]:
    """The five fields as text. What is cheap to see is refused first, so that hostile input costs nothing."""
    names = ", ".join(field.name for field in _FIELDS)
    if not isinstance(expression, str):
        raise ValueError(f"cron must be a string of five fields ({names}), got {shown(expression)}")
    if len(expression) > MAX_LENGTH:
        raise ValueError(f"cron must be at most {MAX_LENGTH} characters, got {len(expression)}: {shown(expression)}")
    if not (expression.isascii() and expression.replace("\t", " ").isprintable()):
        raise ValueError(
            f"cron must be printable ASCII, with spaces or tabs between its fields, got {shown(expression)}"
        )
    text = expression.strip()
    if text.startswith("@") and text not in ALIASES:
        raise ValueError(f"cron must be five fields or one of {', '.join(ALIASES)}, got {shown(text)}")
    texts = ALIASES.get(text, text).split()
    if len(texts) != len(_FIELDS):
        raise ValueError(f"cron must have five fields ({names}), got {len(texts)}: {shown(text)}")
    return texts


def _listed(field: _Field, values: Iterable[int]) -> str:
    """Values as croniter's own parser cannot misread them."""
    listed = sorted(values)
    # A star costs a walk nothing; a full list is searched, and takes ten times as long to compile.
    whole = len(listed) == (7 if field.name == "day of week" else field.high - field.low + 1)
    return "*" if whole else ",".join(map(str, listed))


# --- The compiled expression: wall time, no zone ----------------------------------------------------------------------


class Expression:
    """A compiled expression. It walks naive wall time, by whole minutes, and is safe to share between threads."""

    __slots__ = ("_dates", "_hours", "_minutes", "_sides", "interval")

    def __init__(self, texts: list[str]) -> None:
        minutes, hours, days, months, weekdays = map(_values, _FIELDS, texts)
        self.interval = texts[0].startswith("*") or texts[1].startswith("*")
        longest = max(_DAYS_IN_MONTH[month - 1] for month in months)
        possible = frozenset(day for day in days if day <= longest)
        # A list that begins with a star restricts, but is ANDed: vixie cron looks at the first character alone.
        if texts[2].startswith("*") or texts[4].startswith("*"):
            sides = [(possible, weekdays)]
        else:
            sides = [(possible, frozenset(range(7))), (frozenset(range(1, 32)), weekdays)]
        # One croniter for each side of the OR, so that a side with no dates (`0 0 30 2 1`) or at the end of the calendar
        # neither costs fifty years of looking nor ends the other.
        columns = [(minutes, hours, days, months, weekdays) for days, weekdays in sides if days]
        if not columns:
            raise ValueError(
                f"cron day of month must exist in the month, got {shown(texts[2])} in month {shown(texts[3])}"
            )
        self._minutes, self._hours = sorted(minutes), sorted(hours)
        self._dates = [(months, days, weekdays) for _, _, days, months, weekdays in columns]
        self._sides = tuple(_walker(" ".join(map(_listed, _FIELDS, column))) for column in columns)

    def following(self, wall: datetime) -> datetime | None:
        """The first matching minute after the minute of `wall`."""
        day = wall.date()
        if (later := self._later(wall)) and self._falls_on(day):
            return datetime.combine(day, later)
        if near := self._near(day, _DAY):
            return datetime.combine(near, time(self._hours[0], self._minutes[0]))
        start = wall.replace(second=0, microsecond=0)
        found = [_walked(copy.copy(side).get_next, start) for side in self._sides]
        return min(filter(None, found), default=None)

    def preceding(self, wall: datetime) -> datetime | None:
        """The newest matching minute not after `wall`."""
        day = wall.date()
        if (earlier := self._earlier(wall)) and self._falls_on(day):
            return datetime.combine(day, earlier)
        if near := self._near(day, -_DAY):
            return datetime.combine(near, time(self._hours[-1], self._minutes[-1]))
        start = wall.replace(second=59, microsecond=0)
        found = [_walked(copy.copy(side).get_prev, start) for side in self._sides]
        newest = max(filter(None, found), default=None)
        # The calendar's first minute does not count: walking forwards never comes to it, and the two ways must agree.
        return None if newest == _FIRST_MINUTE else newest

    def _falls_on(self, day: date) -> bool:
        month, number, weekday = day.month, day.day, day.isoweekday() % 7
        for months, days, weekdays in self._dates:
            if month in months and number in days and weekday in weekdays:
                return day > date.min
        return False

    def _near(self, day: date, step: timedelta) -> date | None:
        """The next matching day, if it is so near that croniter would take longer to find it."""
        if 1 < day.year < 9999:
            for _ in range(_NEAR):
                day += step
                if self._falls_on(day):
                    return day
        return None

    def _later(self, wall: datetime) -> time | None:
        """The first matching time of a day after the minute of `wall`."""
        if wall.hour in self._hours and wall.minute < self._minutes[-1]:
            return time(wall.hour, self._minutes[bisect.bisect_right(self._minutes, wall.minute)])
        hour = bisect.bisect_right(self._hours, wall.hour)
        return time(self._hours[hour], self._minutes[0]) if hour < len(self._hours) else None

    def _earlier(self, wall: datetime) -> time | None:
        """The newest matching time of a day not after the minute of `wall`."""
        if wall.hour in self._hours and wall.minute >= self._minutes[0]:
            return time(wall.hour, self._minutes[bisect.bisect_right(self._minutes, wall.minute) - 1])
        hour = bisect.bisect_left(self._hours, wall.hour)
        return time(self._hours[hour - 1], self._minutes[-1]) if hour else None


def _walker(text: str) -> croniter:
    return croniter(text, datetime(1970, 1, 1), day_or=False)  # noqa: DTZ001 - wall time is naive


def _walked(step: Callable[..., datetime], start: datetime) -> datetime | None:
    # A croniter remembers where it stands, which is why callers step a copy (1 µs).
    try:
        return step(datetime, start_time=start)
    except (ValueError, OverflowError):
        # It ran off the end of the calendar. No expression waits longer than forty years (a leap day that is a Sunday).
        if 50 < start.year < 9950:
            raise
        return None


@functools.lru_cache(maxsize=4096)
def _parsed(expression: str) -> Expression:
    texts = _texts(expression)
    try:
        return Expression(texts)
    except ValueError as error:
        raise ValueError(f"{error} in {shown(expression)}") from None


def parse(expression: object) -> Expression:
    """Compile an expression, or take it from the cache. Raises `ValueError`, naming the field, for anything but cron text."""
    if isinstance(expression, str) and len(expression) <= MAX_LENGTH:
        return _parsed(expression)
    # Nothing huge or unhashable comes near the cache.
    return Expression(_texts(expression))


def fields(expression: str) -> list[tuple[str, frozenset[int]]]:
    """The five fields, each as it is written and by its values (Sunday is 0): for whoever puts them into words."""
    return [(text, _values(field, text)) for field, text in zip(_FIELDS, _texts(expression), strict=True)]


# --- Zones ------------------------------------------------------------------------------------------------------------

_ZONE_NAME = re.compile(r"[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+)*", re.ASCII)


@functools.lru_cache(maxsize=1)
def _zone_names() -> frozenset[str]:
    return frozenset(available_timezones())


def _is_listed(name: str) -> bool:
    # A file system may ignore case, and holds files that are no zones: `right/` counts leap seconds, `localtime` is each
    # host's own. Listing takes milliseconds, so it is repeated only for a name that is missing: the files may be newer.
    if name not in _zone_names():
        _zone_names.cache_clear()
    return name in _zone_names() and name != "localtime"


# What is not found is an error and so never cached: the next package of zones may bring it.
@functools.lru_cache(maxsize=1024)
def _zone(name: str) -> ZoneInfo:
    if not _ZONE_NAME.fullmatch(name):
        raise ValueError("no name of a zone")
    found = ZoneInfo(name)
    if not _is_listed(name):
        raise ValueError("no zone of that name")
    return found


def zone(name: object) -> ZoneInfo:
    """The time zone of that name, exactly as the IANA database spells it. Raises `ValueError` if there is none."""
    if isinstance(name, str) and len(name) <= MAX_LENGTH:
        try:  # not `suppress`, which takes three times as long as the rest: a tick asks for each of its schedules
            return _zone(name)
        except (KeyError, OSError, ValueError):
            pass  # a missing zone, a folder (an IsADirectoryError), a damaged file
    raise ValueError(f"timezone must be the name of a time zone, such as 'UTC' or 'Europe/Paris', got {shown(name)}")


# --- Wall time and instants -------------------------------------------------------------------------------------------


def _offset(zone: Zone, wall: datetime, fold: int) -> timedelta:
    return cast(timedelta, wall.replace(tzinfo=zone, fold=fold).utcoffset())


def _instant(wall: datetime, offset: timedelta) -> datetime:
    return (wall - offset).replace(tzinfo=UTC)


class _Change(NamedTuple):
    """A change of the clocks: its first instant, and the offsets before and after."""

    at: datetime
    before: timedelta
    after: timedelta

    @property
    def last_before(self) -> datetime:
        """The last wall second before the change."""
        return (self.at + self.before - _SECOND).replace(tzinfo=None)

    @property
    def just_under(self) -> datetime:
        """The wall second under the first one after the change: the last of a gap, or where a second pass begins."""
        return (self.at + self.after - _SECOND).replace(tzinfo=None)


def _change(zone: Zone, wall: datetime) -> _Change | None:
    """The change that skips this wall time (a gap) or shows it twice (a fold); None for any other wall time."""
    before, after = _offset(zone, wall, 0), _offset(zone, wall, 1)
    if before == after:
        return None
    # Whichever it is, the change lies between the two readings of that wall time.
    start, end = sorted((_instant(wall, before), _instant(wall, after)))

    def changed(seconds: int) -> bool:
        return (start + timedelta(seconds=seconds)).astimezone(zone).utcoffset() != before

    seconds = bisect.bisect_left(range((end - start) // _SECOND), True, key=changed)
    return _Change(start + timedelta(seconds=seconds), before, after)


def _edge(instant: datetime) -> datetime:
    """The end of the calendar beyond which an instant has no wall time."""
    return datetime.min.replace(tzinfo=UTC) if instant.year == 1 else datetime.max.replace(tzinfo=UTC)


class _Clock(NamedTuple):
    """What the clocks of a zone show at an instant."""

    wall: datetime
    second_pass: bool


def _clock(zone: Zone, instant: datetime) -> _Clock:
    try:
        local = instant.astimezone(zone)
    except OverflowError:
        # The first and last hours of the calendar lie in a year 0 or 10000 somewhere.
        local = _edge(instant)
    return _Clock(local.replace(tzinfo=None, microsecond=0, fold=0), local.fold == 1)


# --- Fixed-time jobs: each wall time has one instant, and they come in the same order ---------------------------------


def _once(zone: Zone, wall: datetime) -> datetime:
    """The one instant of a wall time: the first of two, or the end of the gap that skips it."""
    change = _change(zone, wall)
    if change and change.before < change.after:
        return change.at
    return _instant(wall, _offset(zone, wall, 0))


def _fixed_time(step: Callable[[datetime], datetime | None], zone: Zone, instant: datetime) -> datetime | None:
    """One step, in either direction. A second pass has no due times of its own: it counts as the end of the first."""
    wall, second_pass = _clock(zone, instant)
    change = _change(zone, wall) if second_pass else None
    found = step(change.last_before if change else wall)
    return _once(zone, found) if found else None


# --- Interval jobs: whatever the clock shows, as often as it shows it -------------------------------------------------


def _readings(expression: Expression, zone: Zone, wall: datetime, *, forwards: bool) -> tuple[datetime, ...]:
    """The instants (two in a fold) that show the first matching wall time beyond `wall`, jumping over those in a gap."""
    for _ in range(_MOST_GAPS):
        found = expression.following(wall) if forwards else expression.preceding(wall)
        if found is None:
            return ()
        change = _change(zone, found)
        if change is None:
            return (_instant(found, _offset(zone, found, 0)),)
        if change.before > change.after:
            return (_instant(found, change.before), _instant(found, change.after))
        wall = change.just_under if forwards else change.last_before
    return ()


def _shown_after(expression: Expression, zone: Zone, wall: datetime, instant: datetime) -> datetime | None:
    readings = _readings(expression, zone, wall, forwards=True)
    return min((reading for reading in readings if reading > instant), default=None)


def _shown_until(expression: Expression, zone: Zone, wall: datetime, instant: datetime) -> datetime | None:
    readings = _readings(expression, zone, wall, forwards=False)
    return max((reading for reading in readings if reading <= instant), default=None)


def _interval_after(expression: Expression, zone: Zone, instant: datetime) -> datetime | None:
    wall, second_pass = _clock(zone, instant)
    found = _shown_after(expression, zone, wall, instant)
    change = None if second_pass else _change(zone, wall)
    if change and (found is None or found >= change.at):
        # The first pass is exhausted and the clocks are about to go back: the second pass begins with earlier wall times.
        return _shown_after(expression, zone, change.just_under, change.at - _SECOND)
    return found


def _interval_until(expression: Expression, zone: Zone, instant: datetime) -> datetime | None:
    wall, second_pass = _clock(zone, instant)
    found = _shown_until(expression, zone, wall, instant)
    change = _change(zone, wall) if second_pass else None
    if change and (found is None or found < change.at):
        # Nothing yet in the second pass: the first one ended with later wall times.
        return _shown_until(expression, zone, change.last_before, change.at - _SECOND)
    return found


# --- The interface ----------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8192)
def _next_after(expression: Expression, zone: Zone, instant: datetime) -> datetime | None:
    steady = zone.utcoffset(None)  # a zone whose offset never changes can tell it without a time
    try:
        if steady is not None:
            found = expression.following(_clock(zone, instant).wall)
            return _instant(found, steady) if found else None
        if expression.interval:
            return _interval_after(expression, zone, instant)
        return _fixed_time(expression.following, zone, instant)
    except OverflowError:
        return None  # due beyond the year 9999


@functools.lru_cache(maxsize=8192)
def _latest(expression: Expression, zone: Zone, until: datetime) -> datetime | None:
    steady = zone.utcoffset(None)
    try:
        if steady is not None:
            found = expression.preceding(_clock(zone, until).wall)
            return _instant(found, steady) if found else None
        if expression.interval:
            return _interval_until(expression, zone, until)
        return _fixed_time(expression.preceding, zone, until)
    except OverflowError:
        return None  # due before the year 1


def utc(instant: datetime, option: str) -> datetime:
    """An aware instant in UTC. Raises `ValueError`, naming the option, for a naive one: nobody knows what zone it means."""
    if type(instant) is datetime and instant.tzinfo is UTC:
        return instant  # what PostgreSQL gives: the usual case, asked some times for each schedule of a tick
    if not isinstance(instant, datetime):
        raise TypeError(f"{option} must be an aware datetime, got {shown(instant)}")
    if instant.utcoffset() is None:
        raise ValueError(f"{option} must be an aware datetime (one with a time zone), got the naive {instant}")
    try:
        return instant.astimezone(UTC)
    except OverflowError:
        return _edge(instant)


def _asked(instant: datetime, zone: Zone, option: str) -> datetime:
    """The instant, floored to the minute where no due time can lie inside one: all who ask within a minute share an answer."""
    asked = utc(instant, option)
    # Offsets with seconds ended in 1972, in Monrovia; a `timezone` may have any.
    if asked.year > 1972 and isinstance(zone, ZoneInfo):
        return asked.replace(second=0, microsecond=0)
    return asked


def next_after(expression: str, zone: Zone, instant: datetime) -> datetime | None:
    """The first due time strictly after an aware instant, in UTC; None when there is none before the year 10000."""
    return _next_after(parse(expression), zone, _asked(instant, zone, "instant"))


def latest(expression: str, zone: Zone, until: datetime) -> datetime | None:
    """The newest due time not after an aware instant, in UTC; None when there is none."""
    return _latest(parse(expression), zone, _asked(until, zone, "until"))
