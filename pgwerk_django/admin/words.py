"""A recurrence in words, in the language of whoever reads: "At 09:00 on weekdays".

Of our own making: the libraries for it leave the names of days and months to the process's locale, know no `@daily`, and
say "or" where vixie cron, and so we, mean "and" (`0 0 */2 * 1`). Words that are wrong are worse than none.
"""

import functools
import itertools
from collections.abc import Callable, Collection, Sequence
from typing import Any

from django.utils import translation
from django.utils.dates import MONTHS, WEEKDAYS
from django.utils.text import get_text_list
from django.utils.translation import gettext, ngettext

from pgwerk_django import cron

MOST_TIMES = 6  # times of a day that are told one by one

_UNITS: tuple[tuple[int, Callable[[int], str]], ...] = (
    (86400, lambda n: ngettext("Every day", "Every %(n)d days", n)),
    (3600, lambda n: ngettext("Every hour", "Every %(n)d hours", n)),
    (60, lambda n: ngettext("Every minute", "Every %(n)d minutes", n)),
    (1, lambda n: ngettext("Every second", "Every %(n)d seconds", n)),
)


def recurrence_in_words(row: Any) -> str:
    """Of a schedule or of whatever has its columns; "" where the recurrence cannot be read."""
    if row.cron:
        try:
            return _cron_in_words(row.cron, translation.get_language())
        except ValueError:
            return ""
    return gettext("Once") if row.interval is None else interval_in_words(row.interval)


def rule_in_words(row: Any) -> str:
    """For a row that no words fit, its columns."""
    return recurrence_in_words(row) or row.rule


def interval_in_words(seconds: int) -> str:
    size, words = next((size, words) for size, words in _UNITS if seconds % size == 0)
    return words(seconds // size) % {"n": seconds // size}


@functools.lru_cache(maxsize=4096)
def _cron_in_words(expression: str, language: str | None) -> str:
    (_minute, minutes), (_hour, hours), day, month, weekday = cron.fields(expression)
    often = _often(sorted(minutes), sorted(hours))
    days = _days(day, weekday)
    if not (often or days):
        days = gettext("every day")
    times = often or _times(sorted(minutes), sorted(hours))
    return " ".join(filter(None, [times, days, _months(sorted(month[1]))]))


# -- the time of day


def _often(minutes: list[int], hours: list[int]) -> str:
    """What begins with "every"; "" for what is better told by its times."""
    step = _step(minutes, 60)
    if len(hours) == 24:
        return _each_hour(minutes, step)
    span = {"first": _clock(hours[0], minutes[0]), "last": _clock(hours[-1], minutes[-1])}
    is_run = hours[-1] - hours[0] == len(hours) - 1
    if step and is_run and len(minutes) * len(hours) > MOST_TIMES:
        words = ngettext(
            "Every minute from %(first)s to %(last)s", "Every %(n)d minutes from %(first)s to %(last)s", step
        )
        return words % {"n": step, **span}
    if len(minutes) > 1 or len(hours) < 3:
        return ""
    if every := _step(hours, 24):
        return _each_few_hours(minutes[0], every, hours[0])
    return gettext("Every hour from %(first)s to %(last)s") % span if is_run else ""


def _times(minutes: list[int], hours: list[int]) -> str:
    if len(minutes) * len(hours) <= MOST_TIMES:
        return gettext("At %(times)s") % {"times": _and([_clock(h, m) for h, m in itertools.product(hours, minutes)])}
    return gettext("At %(minutes)s past the hours %(hours)s") % {
        "minutes": _minutes(minutes),
        "hours": _and(_listing(hours, lambda hour: f"{hour:02}")),
    }


def _each_hour(minutes: list[int], step: int) -> str:
    if step and minutes[0] == 0:
        return interval_in_words(step * 60)
    if step:
        words = ngettext("Every minute", "Every %(n)d minutes from minute %(first)d of the hour", step)
        return words % {"n": step, "first": minutes[0]}
    if minutes == [0]:
        return gettext("Every hour")
    return gettext("Every hour at %(minutes)s") % {"minutes": _minutes(minutes)}


def _each_few_hours(minute: int, every: int, first: int) -> str:
    if first == minute == 0:
        return interval_in_words(every * 3600)
    words = ngettext("Every hour from %(first)s", "Every %(n)d hours from %(first)s", every)
    return words % {"n": every, "first": _clock(first, minute)}


def _step(values: list[int], length: int) -> int:
    """The step of values that go on around the clock without a break; 0 where they do not."""
    if len(values) < 2:
        return 0
    step = values[1] - values[0]
    return step if values == list(range(values[0] % step, length, step)) and length % step == 0 else 0


def _minutes(minutes: list[int]) -> str:
    listed = _and(_listing(minutes, str))
    return ngettext("minute %(minutes)s", "minutes %(minutes)s", len(minutes)) % {"minutes": listed}


def _clock(hour: int, minute: int) -> str:
    return f"{hour:02}:{minute:02}"


# -- the days


def _days(day: tuple[str, Collection[int]], weekday: tuple[str, Collection[int]]) -> str:
    """Both restricted: either of them, or both at once where one begins with a star, as vixie cron has it."""
    of_month = _days_of_month(sorted(day[1])) if len(day[1]) < 31 else ""
    of_week = _days_of_week(sorted(weekday[1])) if len(weekday[1]) < 7 else ""
    is_and = day[0].startswith("*") or weekday[0].startswith("*")
    if not is_and and not (of_month and of_week):
        return ""  # one of them is every day, and either is enough
    if of_month and of_week:
        words = gettext("%(weekdays)s, but only on %(days)s") if is_and else gettext("on %(days)s or %(weekdays)s")
        return words % {"days": of_month, "weekdays": of_week}
    return gettext("on %(days)s") % {"days": of_month} if of_month else of_week


def _days_of_month(days: list[int]) -> str:
    words = ngettext("day %(days)s of the month", "days %(days)s of the month", len(days))
    return words % {"days": _and(_listing(days, str))}


def _days_of_week(days: list[int]) -> str:
    if days == [1, 2, 3, 4, 5]:
        return gettext("on weekdays")
    if days == [0, 6]:
        return gettext("on weekends")
    from_monday = sorted((day - 1) % 7 for day in days)
    return gettext("on %(weekdays)s") % {"weekdays": _and(_listing(from_monday, lambda day: str(WEEKDAYS[day])))}


def _months(months: list[int]) -> str:
    if len(months) == 12:
        return ""
    return gettext("in %(months)s") % {"months": _and(_listing(months, lambda month: str(MONTHS[month])))}


# -- lists


def _and(words: Sequence[str]) -> str:
    return get_text_list(list(words), gettext("and"))


def _listing(values: list[int], name: Callable[[int], str]) -> list[str]:
    """Many at one distance (`*/2`) by their beginning and end; three or more in a row by the first and the last of them."""
    steps = {later - earlier for earlier, later in itertools.pairwise(values)}
    if len(values) > 4 and len(steps) == 1 and steps != {1}:
        return [", ".join(map(name, values[:3])) + f", … {name(values[-1])}"]
    found: list[str] = []
    for _offset, group in itertools.groupby(enumerate(values), lambda pair: pair[1] - pair[0]):
        run = [value for _place, value in group]
        if len(run) < 3:
            found += map(name, run)
        else:
            found.append(gettext("%(first)s to %(last)s") % {"first": name(run[0]), "last": name(run[-1])})
    return found
