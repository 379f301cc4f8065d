"""Misfire: what becomes of due times that the scheduler noticed late."""

import datetime as dt
from typing import Any

import pytest

from pgwerk_django.policies import DueTimes, Misfire, Overlap, Span, default_overlap, due_times
from pgwerk_django.recurrence import Cron, Interval, Once, Recurrence

NOW = dt.datetime(2026, 3, 10, 12, 0, 30, tzinfo=dt.UTC)
EVERY_MINUTE = Cron("* * * * *")


def at(hour: int, minute: int, second: int = 0, day: int = 10) -> dt.datetime:
    return dt.datetime(2026, 3, day, hour, minute, second, tzinfo=dt.UTC)


def judge(recurrence: Recurrence, first: dt.datetime, misfire: str, **changes: Any) -> DueTimes:
    given: dict[str, Any] = {"now": NOW, "grace": dt.timedelta(seconds=60), "cap": 100, **changes}
    return due_times(recurrence, first=first, misfire=misfire, **given)


@pytest.mark.parametrize("misfire", Misfire.values)
def test_a_due_time_within_the_grace_fires_whatever_the_policy(misfire: str) -> None:
    assert judge(EVERY_MINUTE, at(12, 0), misfire) == DueTimes((at(12, 0),), None, at(12, 1))


@pytest.mark.parametrize("misfire", Misfire.values)
def test_a_due_time_exactly_as_old_as_the_grace_is_no_misfire(misfire: str) -> None:
    every = Interval(3600, at(11, 59, 30))
    assert judge(every, at(11, 59, 30), misfire).fire == (at(11, 59, 30),)


@pytest.mark.parametrize("misfire", Misfire.values)
@pytest.mark.parametrize("first", [at(12, 0), at(11, 59, 30)])
def test_several_due_times_within_the_grace_each_fire(misfire: str, first: dt.datetime) -> None:
    """Also if the first is exactly as old as the grace."""
    due = judge(Interval(10, first), first, misfire)
    assert due.fire == tuple(first + n * dt.timedelta(seconds=10) for n in range((NOW - first).seconds // 10 + 1))
    assert due.dropped is None


def test_skip_fires_what_is_exactly_as_old_as_the_grace_and_drops_what_came_before() -> None:
    due = judge(Interval(30, at(11, 0)), at(11, 0), Misfire.SKIP)
    assert due.dropped == Span(at(11, 0), at(11, 59))
    assert due.fire == (at(11, 59, 30), at(12, 0), at(12, 0, 30))


def test_latest_fires_once_and_records_what_it_dropped() -> None:
    assert judge(EVERY_MINUTE, at(9, 0), Misfire.LATEST) == DueTimes(
        (at(12, 0),), Span(at(9, 0), at(11, 59)), at(12, 1)
    )


def test_latest_with_a_single_missed_due_time_drops_nothing() -> None:
    assert judge(Cron("0 9 * * *"), at(9, 0), Misfire.LATEST) == DueTimes((at(9, 0),), None, at(9, 0, day=11))


def test_latest_of_a_due_time_off_the_grid() -> None:
    assert judge(Cron("0 9 * * *"), at(9, 17), Misfire.LATEST) == DueTimes((at(9, 17),), None, at(9, 0, day=11))
    late = judge(Cron("0 11 * * *"), at(9, 17), Misfire.LATEST)
    assert late == DueTimes((at(11, 0),), Span(at(9, 17), at(9, 17)), at(11, 0, day=11))


def test_all_fires_each_oldest_first_up_to_the_cap_and_goes_on_from_there() -> None:
    first = judge(EVERY_MINUTE, at(11, 0), Misfire.ALL, cap=50)
    assert first.fire == tuple(at(11, m) for m in range(50))
    assert (first.dropped, first.following) == (None, at(11, 50))
    rest = judge(EVERY_MINUTE, at(11, 50), Misfire.ALL, cap=50)
    assert rest == DueTimes((*(at(11, m) for m in range(50, 60)), at(12, 0)), None, at(12, 1))


def test_skip_drops_what_is_beyond_the_grace_and_fires_the_rest() -> None:
    every = Interval(20, at(11, 0))
    skipped = judge(every, at(11, 0), Misfire.SKIP)
    assert skipped.dropped == Span(at(11, 0), at(11, 59, 20))
    assert skipped.fire == (at(11, 59, 40), at(12, 0), at(12, 0, 20))


def test_skip_with_nothing_on_time_fires_nothing() -> None:
    assert judge(Cron("0 9 * * *"), at(9, 0), Misfire.SKIP) == DueTimes((), Span(at(9, 0), at(9, 0)), at(9, 0, day=11))


@pytest.mark.parametrize(("misfire", "fires"), [("LATEST", True), ("ALL", True), ("SKIP", False)])
def test_a_one_off_that_was_missed(misfire: str, fires: bool) -> None:
    missed = judge(Once(), at(9, 0), misfire)
    assert missed.fire == ((at(9, 0),) if fires else ())
    assert missed.dropped == (None if fires else Span(at(9, 0), at(9, 0)))


class Counting(Recurrence):
    """Counts the questions: stepping through a year of minutes would ask half a million."""

    def __init__(self) -> None:
        self.asked = 0

    def next_after(self, instant: dt.datetime) -> dt.datetime | None:
        self.asked += 1
        return EVERY_MINUTE.next_after(instant)

    def latest(self, until: dt.datetime) -> dt.datetime | None:
        self.asked += 1
        return EVERY_MINUTE.latest(until)


@pytest.mark.parametrize(("misfire", "most"), [("LATEST", 3), ("SKIP", 4), ("ALL", 100)])
def test_a_year_of_downtime_is_jumped_over(misfire: str, most: int) -> None:
    recurrence = Counting()
    due = judge(recurrence, NOW.replace(second=0) - dt.timedelta(days=365), misfire)
    assert due.fire
    assert recurrence.asked <= most


def test_overlap_follows_misfire() -> None:
    assert default_overlap("ALL") == Overlap.ALLOW
    assert default_overlap("LATEST") == default_overlap("SKIP") == Overlap.BUFFER_ONE


def test_values_equal_names() -> None:
    for choices in (Misfire, Overlap):
        assert choices.values == choices.names
