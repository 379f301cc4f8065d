"""What Celery's beat says, in our words. Where an entry of it stands is for `beat_tables` and `beat_settings` to know."""

from collections.abc import Mapping
from itertools import groupby
from typing import Any, NoReturn

from django.conf import settings

from pgwerk_django import cron
from pgwerk_django import registry as declared
from pgwerk_django.exceptions import FunctionNotFound
from pgwerk_django.importers.entries import judged, resolved
from pgwerk_django.registry import Definition
from pgwerk_django.targets import target_of
from pgwerk_django.targets.base import found_at
from pgwerk_django.targets.celery import DEFAULT_QUEUE, current_app
from pgwerk_django.text import text

NAME = "django-celery-beat"
HINT = "stop celery beat before the import, and start runscheduler after it: what beat sends later, both send"
# In the order of cron, which is not that of Celery's arguments.
FIELDS = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
_WHOLE = (60, 24, 31, 12, 7)
_DAY, _WEEKDAY = 2, 4


def definition_of(name: str, task: object, options: Mapping[str, object], *, once: bool = False) -> Definition:
    """Celery's own, unless what stands at the task's name is of another kind by now."""
    function = text(task, "task", longest=declared.LONGEST_FUNCTION)
    try:
        target = target_of(found_at(function)).name
    except FunctionNotFound:  # Celery sends it by its name, to workers that know it
        target = "celery"
    given = {option: value for option, value in options.items() if value is not None}
    _check_queue(given.get("queue"), target)
    return resolved(judged(function, {"name": name, "target": target, **given}, once=once))


def _check_queue(queue: object, target: str) -> None:
    """Our `default` leaves the choice to Celery, which is another's queue there unless it says so itself."""
    if target == "celery" and queue == DEFAULT_QUEUE and current_app().conf.task_default_queue != DEFAULT_QUEUE:
        raise ValueError(
            f"its queue is named {DEFAULT_QUEUE!r}, by which we leave the queue to Celery's routes: set task_default_queue"
            f" to it, or leave the queue out"
        )


def refuse_the_sun(event: str) -> NoReturn:
    raise ValueError(f"it follows the sun ({event}), which no rule of ours does")


def zone_name() -> str:
    """The zone that beat reads its crontabs in."""
    conf = current_app().conf
    # Without `enable_utc` it is the host's, which Django has set to its own.
    usual = "UTC" if conf.enable_utc else settings.TIME_ZONE
    zone = conf.timezone or getattr(settings, "CELERY_TIMEZONE", None) or usual
    return str(getattr(zone, "key", zone))


def crontab_text(crontab: Any) -> str:
    """Cron text for a crontab of Celery's. Raises `ValueError` where cron cannot say it.

    What our parser reads the same stays as it is written: a `*` in front is also what decides on the night the clocks
    change. The rest becomes lists, and the day fields are bound together by a `*` where Celery asks for both.
    """
    written = [getattr(crontab, f"_orig_{field}") for field in FIELDS]
    values = [frozenset(getattr(crontab, field)) for field in FIELDS]
    listed = [_listed(field, index) for index, field in enumerate(values)]
    kept = [_kept(text, index, values[index]) or listed[index] for index, text in enumerate(written)]
    text = " ".join(_both_days(kept, values))
    return text if len(text) <= cron.MAX_LENGTH else " ".join(_both_days(listed, values))


def _kept(text: object, index: int, values: frozenset[int]) -> str:
    """The text, of which each item that only Celery can read is replaced by its values; "" where that fails."""
    if not isinstance(text, str):
        return ""
    items = [item.strip() for item in text.split(",")]
    rest = values - frozenset().union(*(_read(item, index) for item in items))
    kept = [item for item in items if _read(item, index)]
    listed = [_listed(rest, index)] if rest else []
    if kept[:1] != items[:1] and not listed:
        return ""  # another item's star would come to stand in front
    # What came first stays first: only there does a star mean more than its values.
    both = ",".join([*kept, *listed] if kept[:1] == items[:1] else [*listed, *kept])
    return both if _read(both, index) == values else ""


def _read(text: str, index: int) -> frozenset[int]:
    """The values of one field as our own parser reads it; none where it does not."""
    fields = ["*"] * 5
    fields[index] = text
    try:
        return cron.fields(" ".join(fields))[index][1]
    except ValueError:
        return frozenset()


def _listed(values: frozenset[int], index: int) -> str:
    if len(values) == _WHOLE[index]:
        return "*"
    runs = [
        [value for _, value in run] for _, run in groupby(enumerate(sorted(values)), lambda pair: pair[1] - pair[0])
    ]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)


def _both_days(texts: list[str], values: list[frozenset[int]]) -> list[str]:
    """Celery asks for both, cron for either, unless one of them begins with a `*`."""
    texts = list(texts)
    for index in (_DAY, _WEEKDAY):
        if len(values[index]) == _WHOLE[index]:
            texts[index] = "*"
    if texts[_DAY].startswith("*") or texts[_WEEKDAY].startswith("*"):
        return texts
    # A star with a step that passes over all but the first value: it says that value, and that both must match.
    if 1 in values[_DAY]:
        texts[_DAY] = _starred("*/31", values[_DAY] - {1}, _DAY)
    elif 0 in values[_WEEKDAY]:
        texts[_WEEKDAY] = _starred("*/7", values[_WEEKDAY] - {0}, _WEEKDAY)
    else:
        raise ValueError(
            f"its crontab asks for both a day of the month ({texts[_DAY]}) and a day of the week ({texts[_WEEKDAY]}), where"
            f" cron asks for either: let it run on the days of the month, and have the function look at the weekday"
        )
    return texts


def _starred(first: str, rest: frozenset[int], index: int) -> str:
    return ",".join([first, _listed(rest, index)]) if rest else first
