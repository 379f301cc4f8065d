"""Which due times fire and which are skipped: misfire ("the scheduler was down") and overlap ("the last job is not done")."""

import datetime as dt
import random
from typing import NamedTuple

from django.db.models import TextChoices
from django.utils.translation import gettext_lazy as _

from pgwerk_django.recurrence import Recurrence

INSTANT = dt.timedelta(microseconds=1)


class Misfire(TextChoices):
    """What becomes of due times that are noticed later than the schedule's `misfire_grace`."""

    LATEST = "LATEST", _("fire once, for the latest due time")
    ALL = "ALL", _("fire each missed due time, oldest first")
    SKIP = "SKIP", _("skip what is older than the grace")


class Overlap(TextChoices):
    """What becomes of a due time while an earlier job of the same schedule is not finished."""

    BUFFER_ONE = "BUFFER_ONE", _("skip while one is waiting")
    SKIP = "SKIP", _("skip while one is waiting or running")
    ALLOW = "ALLOW", _("always start another")


def default_overlap(misfire: str) -> Overlap:
    """Whoever asks for each missed due time wants each of them to run."""
    return Overlap.ALLOW if misfire == Misfire.ALL else Overlap.BUFFER_ONE


class Span(NamedTuple):
    """An unbroken run of due times that were dropped, by its first and its last."""

    first: dt.datetime
    last: dt.datetime


class DueTimes(NamedTuple):
    """What one tick does for one schedule: `fire` these (oldest first), record `dropped`; `following` is for a later one."""

    fire: tuple[dt.datetime, ...]
    dropped: Span | None
    following: dt.datetime | None


def due_times(
    recurrence: Recurrence,
    *,
    first: dt.datetime,
    now: dt.datetime,
    misfire: str,
    grace: dt.timedelta,
    cap: int,
) -> DueTimes:
    """Judge the due times from `first` (a due time itself, even off the grid) to `now`, both included.

    At most `cap` fire; those that do not fit are left for the next tick, so `following` may have passed.
    Time is found by jumping (`latest`, `next_after`), never by stepping through what was missed.
    """
    oldest_on_time = now - grace
    if first < oldest_on_time and misfire == Misfire.LATEST:
        return _latest(recurrence, first=first, now=now)
    dropped = None
    if first < oldest_on_time and misfire == Misfire.SKIP:
        dropped = Span(first, _latest_from(recurrence, first, oldest_on_time - INSTANT))
        following = recurrence.next_after(dropped.last)
        if following is None or following > now:
            return DueTimes((), dropped, following)
        first = following
    fire, following = _up_to(recurrence, first=first, now=now, cap=cap)
    return DueTimes(fire, dropped, following)


def backoff_delay(failures: int, *, first: float, longest: float) -> float:
    """Seconds to wait after so many earlier failures: `first`, doubling up to `longest`, of which half to all at random."""
    ceiling: float = min(first * 2 ** min(failures, 20), longest)
    return ceiling * random.uniform(0.5, 1)  # noqa: S311  # not all retries at once; it guards nothing


def _latest(recurrence: Recurrence, *, first: dt.datetime, now: dt.datetime) -> DueTimes:
    latest = _latest_from(recurrence, first, now)
    dropped = None if latest == first else Span(first, _latest_from(recurrence, first, latest - INSTANT))
    return DueTimes((latest,), dropped, recurrence.next_after(now))


def _latest_from(recurrence: Recurrence, first: dt.datetime, until: dt.datetime) -> dt.datetime:
    latest = recurrence.latest(until)
    return first if latest is None else max(first, latest)


def _up_to(
    recurrence: Recurrence, *, first: dt.datetime, now: dt.datetime, cap: int
) -> tuple[tuple[dt.datetime, ...], dt.datetime | None]:
    """The due times to `now`, at most `cap`, and the one that follows them."""
    fire = [first]
    while True:
        following = recurrence.next_after(fire[-1])
        if following is None or following > now or len(fire) == cap:
            return tuple(fire), following
        fire.append(following)
