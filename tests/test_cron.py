"""Cron expressions: what is accepted, when they are due, and what the clocks' changes do to them."""

import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import NoReturn
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pgwerk_django import cron
from tests import cron_oracle

MICROSECOND = timedelta(microseconds=1)
MINUTE = timedelta(minutes=1)

PARIS = "Europe/Paris"
NEW_YORK = "America/New_York"
LORD_HOWE = "Australia/Lord_Howe"


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def due_times(expression: str, zone: str | cron.Zone, start: datetime, end: datetime) -> list[datetime]:
    """Every due time from `start` until before `end`, by `next_after`; `latest` must walk the same way back."""
    where = cron.zone(zone) if isinstance(zone, str) else zone
    forwards = []
    due = cron.next_after(expression, where, start - MICROSECOND)
    while due is not None and due < end:
        forwards.append(due)
        due = cron.next_after(expression, where, due)
    backwards = []
    due = cron.latest(expression, where, end - MICROSECOND)
    while due is not None and due >= start:
        backwards.append(due)
        due = cron.latest(expression, where, due - MICROSECOND)
    assert forwards == backwards[::-1]
    return forwards


def fired(expression: str, zone: str, start: str, end: str) -> list[str]:
    """Due times in UTC, as `29 01:00` (day, hour, minute)."""
    return [f"{due:%d %H:%M}" for due in due_times(expression, zone, at(start), at(end))]


# --- The policy, cell by cell -----------------------------------------------------------------------------------------
# Paris in 2026: 29 March 02:00 -> 03:00 and 25 October 03:00 -> 02:00, both at 01:00 UTC.


@pytest.mark.parametrize(
    ("expression", "due"),
    [
        ("30 2 * * *", ["28 01:30", "29 01:00", "30 00:30"]),
        ("0 2 * * *", ["28 01:00", "29 01:00", "30 00:00"]),
        ("59 2 * * *", ["28 01:59", "29 01:00", "30 00:59"]),
        ("0 3 * * *", ["28 02:00", "29 01:00", "30 01:00"]),
        ("30 1 * * *", ["28 00:30", "29 00:30", "29 23:30"]),
    ],
)
def test_a_fixed_time_in_a_gap_runs_once_at_its_end(expression: str, due: list[str]) -> None:
    assert fired(expression, PARIS, "2026-03-28T00:00Z", "2026-03-30T02:00Z") == due


def test_several_fixed_times_in_a_gap_collapse_into_one_run() -> None:
    due = ["29 00:50", "29 01:00", "29 01:10", "29 01:30"]
    assert fired("0,10,30,50 1-3 * * *", PARIS, "2026-03-29T00:40Z", "2026-03-29T01:40Z") == due


@pytest.mark.parametrize(
    ("expression", "due"),
    [
        ("30 2 * * *", ["24 00:30", "25 00:30", "26 01:30"]),
        ("0 2 * * *", ["24 00:00", "25 00:00", "26 01:00"]),
        ("0 3 * * *", ["24 01:00", "25 02:00", "26 02:00"]),
        ("30 1 * * *", ["23 23:30", "24 23:30", "26 00:30"]),
    ],
)
def test_a_fixed_time_in_a_fold_runs_once_the_first_time(expression: str, due: list[str]) -> None:
    assert fired(expression, PARIS, "2026-10-23T22:00Z", "2026-10-26T02:30Z") == due


def test_an_interval_job_does_not_make_up_a_gap() -> None:
    assert fired("*/15 * * * *", PARIS, "2026-03-29T00:30Z", "2026-03-29T01:45Z") == [
        "29 00:30", "29 00:45", "29 01:00", "29 01:15", "29 01:30",
    ]  # fmt: skip
    assert fired("30 */2 * * *", PARIS, "2026-03-28T23:00Z", "2026-03-29T03:00Z") == ["28 23:30", "29 02:30"]
    assert fired("*/15 2 * * *", PARIS, "2026-03-29T00:00Z", "2026-03-29T23:00Z") == []
    assert fired("59 * * * *", PARIS, "2026-03-29T00:00Z", "2026-03-29T02:00Z") == ["29 00:59", "29 01:59"]


def test_an_interval_job_runs_in_both_passes_of_a_fold() -> None:
    assert fired("*/20 2 * * *", PARIS, "2026-10-24T12:00Z", "2026-10-25T12:00Z") == [
        "25 00:00", "25 00:20", "25 00:40", "25 01:00", "25 01:20", "25 01:40",
    ]  # fmt: skip
    assert fired("5 * * * *", PARIS, "2026-10-25T00:00Z", "2026-10-25T03:00Z") == ["25 00:05", "25 01:05", "25 02:05"]
    assert fired("30 */2 * * *", PARIS, "2026-10-24T22:00Z", "2026-10-25T04:00Z") == [
        "24 22:30", "25 00:30", "25 01:30", "25 03:30",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("expression", "runs"),
    [
        ("*/30 2 * * *", 4),  # the minute begins with a star
        ("0,30 */1 * * *", 50),  # the hour does
        ("*,5 2 * * *", 120),
        ("0,30 2 * * *", 2),
        ("0/30 2 * * *", 2),
        ("0-59 2 * * *", 60),  # every minute, but no star
        ("0 0-23 * * *", 24),
        ("@hourly", 25),
        ("@daily", 1),
    ],
)
def test_a_star_at_the_beginning_of_minute_or_hour_makes_an_interval_job(expression: str, runs: int) -> None:
    assert len(fired(expression, PARIS, "2026-10-24T22:00Z", "2026-10-25T23:00Z")) == runs


def test_a_change_of_half_an_hour() -> None:
    # Lord Howe in 2026: 5 April 02:00 -> 01:30 at 15:00 UTC on the 4th, 4 October 02:00 -> 02:30 at 15:30 UTC on the 3rd.
    assert fired("*/20 * * * *", LORD_HOWE, "2026-04-04T14:20Z", "2026-04-04T16:00Z") == [
        "04 14:20", "04 14:40", "04 15:10", "04 15:30", "04 15:50",
    ]  # fmt: skip
    assert fired("45 1 * * *", LORD_HOWE, "2026-04-04T12:00Z", "2026-04-05T12:00Z") == ["04 14:45"]
    assert fired("15 2 * * *", LORD_HOWE, "2026-10-03T12:00Z", "2026-10-04T12:00Z") == ["03 15:30"]
    assert fired("45 2 * * *", LORD_HOWE, "2026-10-03T12:00Z", "2026-10-04T12:00Z") == ["03 15:45"]
    assert fired("15 * * * *", LORD_HOWE, "2026-10-03T14:00Z", "2026-10-03T17:00Z") == ["03 14:45", "03 16:15"]


@pytest.mark.parametrize(
    ("zone", "day", "end_of_gap"),
    [("Pacific/Apia", "30 12", "2011-12-30T10:00Z"), ("Pacific/Kwajalein", "21 8", "1993-08-21T12:00Z")],
)
def test_a_skipped_day_is_a_gap_like_any_other(zone: str, day: str, end_of_gap: str) -> None:
    end = at(end_of_gap)
    assert due_times(f"0 9 {day} *", zone, end - 2 * cron_oracle.WARM_UP, end + timedelta(days=2)) == [end]
    # Two days' runs: the skipped day's at the end of the gap, the next day's at nine.
    daily = due_times("0 9 * * *", zone, end - timedelta(hours=1), end + timedelta(hours=20))
    assert daily == [end, end + timedelta(hours=9)]
    assert due_times(f"*/15 * {day} *", zone, end - timedelta(days=2), end + timedelta(days=2)) == []
    minutes = due_times("*/15 * * * *", zone, end - timedelta(minutes=30), end + timedelta(minutes=30))
    assert minutes == [end + n * timedelta(minutes=15) for n in (-2, -1, 0, 1)]


def test_a_change_at_midnight() -> None:
    # Sao Paulo, 4 November 2018: no midnight, the day begins at 01:00. Beirut and Cairo do so too.
    assert fired("0 0 * * *", "America/Sao_Paulo", "2018-11-03T00:00Z", "2018-11-05T12:00Z") == [
        "03 03:00",
        "04 03:00",
        "05 02:00",
    ]
    assert fired("@daily", "Asia/Beirut", "2026-03-28T00:00Z", "2026-03-30T00:00Z") == ["28 22:00", "29 21:00"]
    assert fired("30 0 24 4 *", "Africa/Cairo", "2026-04-20T00:00Z", "2026-04-30T00:00Z") == ["23 22:00"]
    assert fired("*/30 0 * * *", "Africa/Cairo", "2026-04-23T12:00Z", "2026-04-24T12:00Z") == []
    # The clocks go back over midnight into the day before, whose last hour is shown twice.
    assert fired("30 23 * * *", "America/Sao_Paulo", "2018-02-17T12:00Z", "2018-02-19T12:00Z") == [
        "18 01:30",
        "19 02:30",
    ]
    assert fired("*/30 23 * * 6", "America/Sao_Paulo", "2018-02-17T12:00Z", "2018-02-19T12:00Z") == [
        "18 01:00", "18 01:30", "18 02:00", "18 02:30",
    ]  # fmt: skip


def test_a_zone_whose_winter_is_the_exception() -> None:
    # Dublin's law makes summer the standard time: `dst()` is negative in winter, and the clocks change like London's.
    for start, end in (("2026-03-28T00:00Z", "2026-03-30T00:00Z"), ("2026-10-24T00:00Z", "2026-10-26T00:00Z")):
        for expression in ("30 1 * * *", "*/20 1 * * *"):
            assert fired(expression, "Europe/Dublin", start, end) == fired(expression, "Europe/London", start, end)


def test_a_zone_that_has_no_winter_time_left() -> None:
    assert fired("30 2 * * *", "Asia/Tokyo", "2026-03-29T00:00Z", "2026-03-31T00:00Z") == ["29 17:30", "30 17:30"]


def test_an_offset_with_seconds() -> None:
    # Monrovia kept -00:44:30 until 1972; nothing may be floored to a minute there, nor in a `timezone` with seconds.
    for zone in (cron.zone("Africa/Monrovia"), timezone(-timedelta(minutes=44, seconds=30))):
        due = at("1971-06-01T09:44:30Z")
        assert cron.next_after("0 9 * * *", zone, due - MICROSECOND) == due
        assert cron.next_after("0 9 * * *", zone, due) == due + timedelta(days=1)
        assert cron.latest("0 9 * * *", zone, due - MICROSECOND) == due - timedelta(days=1)
        assert cron.latest("0 9 * * *", zone, due) == due


def test_an_interval_job_that_only_names_the_gap_is_never_due() -> None:
    # 02:xx on the second Sunday of March: New York skips it every year since 2007, and did not before.
    zone = cron.zone(NEW_YORK)
    assert cron.next_after("*/5 2 8-14 3 */7", zone, at("2026-01-01T00:00Z")) is None
    assert cron.latest("*/5 2 8-14 3 */7", zone, at("2026-01-01T00:00Z")) == at("2006-03-12T07:55Z")
    assert cron.next_after("5 2 8-14 3 */7", zone, at("2026-01-01T00:00Z")) == at("2026-03-08T07:00Z")


# --- The calendar -----------------------------------------------------------------------------------------------------


def dates(expression: str, start: str, end: str) -> list[str]:
    return [f"{due:%m-%d}" for due in due_times(f"0 0 {expression}", "UTC", at(start + "T00:00Z"), at(end + "T00:00Z"))]


def test_leap_days() -> None:
    assert cron.next_after("0 0 29 2 *", UTC, at("2096-02-29T00:00Z")) == at("2104-02-29T00:00Z")
    assert cron.latest("0 0 29 2 *", UTC, at("2104-02-28T00:00Z")) == at("2096-02-29T00:00Z")
    assert cron.next_after("0 0 29 2 *", UTC, at("1999-01-01T00:00Z")) == at("2000-02-29T00:00Z")
    # A leap day that is a Sunday: forty years apart where a century is no leap year.
    assert cron.next_after("0 0 29 2 */7", UTC, at("2088-02-29T00:00Z")) == at("2128-02-29T00:00Z")
    assert cron.latest("0 0 29 2 */7", UTC, at("2128-02-28T00:00Z")) == at("2088-02-29T00:00Z")


@pytest.mark.parametrize(
    ("days", "due"),
    [
        ("31 * *", ["01-31", "03-31", "05-31"]),
        ("30,31 2-4 *", ["03-30", "03-31", "04-30"]),
        ("29-31 2,3 *", ["03-29", "03-30", "03-31"]),
        ("*/15 1,2 *", ["01-01", "01-16", "01-31", "02-01", "02-16"]),
        ("10-20/5 1 *", ["01-10", "01-15", "01-20"]),
        ("25/3 1 *", ["01-25", "01-28", "01-31"]),
        ("1 jan,MAR *", ["01-01", "03-01"]),
    ],
)
def test_days_of_the_month(days: str, due: list[str]) -> None:
    assert dates(days, "2026-01-01", "2026-06-01") == due


@pytest.mark.parametrize(
    ("weekdays", "due"),
    [
        ("0", ["01-04"]),
        ("7", ["01-04"]),
        ("sun", ["01-04"]),
        ("SUN", ["01-04"]),
        ("0,7", ["01-04"]),
        ("7/2", ["01-04"]),
        ("mon", ["01-05"]),
        ("5-7", ["01-02", "01-03", "01-04"]),
        ("fri-sun", ["01-02", "01-03", "01-04"]),
        ("sun-sun", ["01-04"]),
        ("sun-tue", ["01-04", "01-05", "01-06"]),
        ("Mon-Wed/2", ["01-05", "01-07"]),
        ("1/2", ["01-02", "01-05", "01-07"]),
        ("*/2", ["01-01", "01-03", "01-04", "01-06"]),
        ("0-7", ["01-01", "01-02", "01-03", "01-04", "01-05", "01-06", "01-07"]),
    ],
)
def test_days_of_the_week(weekdays: str, due: list[str]) -> None:
    # 1 January 2026 is a Thursday.
    assert dates(f"* * {weekdays}", "2026-01-01", "2026-01-08") == due


@pytest.mark.parametrize(
    ("days", "due"),
    [
        ("1,15 * 1", ["01-01", "01-05", "01-12", "01-15", "01-19", "01-26"]),  # both restricted: OR
        ("*/10 * 1", []),  # either begins with a star: AND
        ("*/2 * 1", ["01-05", "01-19"]),
        ("1-7 * */7", ["01-04"]),
        ("*,3 * 6", ["01-03", "01-10", "01-17", "01-24", "01-31"]),
        ("1-31 * 1", [f"01-{day:02}" for day in range(1, 32)]),  # the whole month, without a star, is a restriction
        ("3 * 0-6", [f"01-{day:02}" for day in range(1, 32)]),
        ("3 * *", ["01-03"]),
        ("30 2 1", []),
    ],
)
def test_days_of_month_and_week_are_ored_unless_one_begins_with_a_star(days: str, due: list[str]) -> None:
    assert dates(days, "2026-01-01", "2026-02-01") == due


def test_a_day_that_cannot_exist_leaves_the_weekdays() -> None:
    assert dates("30 2 1", "2026-01-01", "2026-12-31") == ["02-02", "02-09", "02-16", "02-23"]


@pytest.mark.parametrize(
    ("expression", "hours"), [("0 9-9 * * *", [9]), ("0 23-23 * * *", [23]), ("0 5-5/3 * * *", [5])]
)
def test_a_range_of_one_is_that_one(expression: str, hours: list[int]) -> None:
    due = due_times(expression, "UTC", at("2026-01-01T00:00Z"), at("2026-01-02T00:00Z"))
    assert [instant.hour for instant in due] == hours


@pytest.mark.parametrize(
    ("alias", "expression"),
    [
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
        ("@monthly", "0 0 1 * *"),
        ("@weekly", "0 0 * * 0"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@hourly", "0 * * * *"),
    ],
)
def test_aliases(alias: str, expression: str) -> None:
    window = at("2025-11-20T00:00Z"), at("2026-01-10T00:00Z")
    assert due_times(alias, PARIS, *window) == due_times(expression, PARIS, *window)


@pytest.mark.parametrize("written", ["  5  4 * * *", "5\t4\t*\t*\t*", "5 4 * * * ", "05 04 * * *", "5 4 1-31 * *"])
def test_one_expression_may_be_written_in_several_ways(written: str) -> None:
    window = at("2026-01-01T00:00Z"), at("2026-02-01T00:00Z")
    assert due_times(written, "UTC", *window) == due_times("5 4 * * *", "UTC", *window)


def test_the_longest_expression() -> None:
    minutes = ",".join(map(str, range(60)))
    text = f"{minutes} * * * *"
    cron.parse(text + " " * (cron.MAX_LENGTH - len(text)))
    with pytest.raises(ValueError, match="at most 200 characters, got 201"):
        cron.parse(text + " " * (cron.MAX_LENGTH + 1 - len(text)))


# --- The ends of the calendar -----------------------------------------------------------------------------------------

LAST = datetime.max.replace(tzinfo=UTC)
FIRST = datetime.min.replace(tzinfo=UTC)


@pytest.mark.parametrize("zone", ["UTC", "Etc/GMT-14", "Asia/Tokyo", NEW_YORK, "Pacific/Kiritimati"])
@pytest.mark.parametrize("expression", ["* * * * *", "0 9 * * *", "0 0 1 * 1", "0 0 29 2 *"])
def test_the_calendar_has_two_ends(expression: str, zone: str) -> None:
    where = cron.zone(zone)
    newest, oldest = cron.latest(expression, where, LAST), cron.next_after(expression, where, FIRST)
    assert newest is not None
    assert oldest is not None
    assert cron.next_after(expression, where, newest) is None
    assert cron.next_after(expression, where, LAST) is None
    assert cron.next_after(expression, where, newest - MICROSECOND) == newest
    assert cron.latest(expression, where, oldest) == oldest
    # Nothing is strictly after the first instant and due at it.
    assert cron.latest(expression, where, oldest - MICROSECOND) in (None, FIRST)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", NEW_YORK])
@pytest.mark.parametrize("expression", ["* * * * *", "0 0 * * *", "0 23 * * *", "0 */23 2 * *"])
def test_nothing_is_due_before_the_calendar(expression: str, zone: str) -> None:
    assert cron.latest(expression, cron.zone(zone), FIRST) is None


def test_an_instant_may_lie_beyond_the_calendar_in_utc() -> None:
    east, west = timezone(timedelta(hours=5)), timezone(-timedelta(hours=5))
    assert cron.next_after("0 0 * * *", UTC, datetime.max.replace(tzinfo=west)) is None
    assert cron.latest("0 9 * * *", UTC, datetime.min.replace(tzinfo=east)) is None


def test_a_failure_of_the_engine_is_not_taken_for_the_end_of_the_calendar() -> None:
    def broken(*args: object, **kwargs: object) -> NoReturn:
        raise ValueError("failed to find next date")

    assert cron._walked(broken, at("9990-01-01T00:00")) is None
    with pytest.raises(ValueError, match="failed to find next date"):
        cron._walked(broken, at("2026-01-01T00:00"))


# --- What is refused --------------------------------------------------------------------------------------------------


def refusal(expression: object) -> str | None:
    try:
        cron.parse(expression)
    except ValueError as refused:
        return str(refused)
    return None


REFUSED = [
    # (expression, what the sentence says)
    ("", "cron must have five fields (minute, hour, day of month, month, day of week), got 0: ''"),
    ("* * * *", "cron must have five fields (minute, hour, day of month, month, day of week), got 4: '* * * *'"),
    (
        "0 0 12 * * *",
        "cron must have five fields (minute, hour, day of month, month, day of week), got 6: '0 0 12 * * *'",
    ),
    ("0 0 1 1 * 0 2026", "got 7: '0 0 1 1 * 0 2026'"),
    ("@reboot", "cron must be five fields or one of @yearly, "),
    ("@daily *", "got '@daily *'"),
    ("60 * * * *", "cron minute must be from 0 to 59, got '60'"),
    (
        "-1 * * * *",
        "cron minute must be *, numbers from 0 to 59, ranges a-b, each with an optional /step, or a list of these, got '-1'",
    ),
    ("* 24 * * *", "cron hour must be from 0 to 23, got '24'"),
    ("* * 0 * *", "cron day of month must be from 1 to 31, got '0'"),
    ("* * 32 * *", "cron day of month must be from 1 to 31, got '32'"),
    ("* * * 0 *", "cron month must be from 1 to 12 or jan-dec, got '0'"),
    ("* * * 13 *", "cron month must be from 1 to 12 or jan-dec, got '13'"),
    ("* * * * 8", "cron day of week must be from 0 to 7 or sun-sat, got '8'"),
    ("* * * mon *", "cron month must be from 1 to 12 or jan-dec, got 'mon'"),
    ("* * * * jan", "cron day of week must be from 0 to 7 or sun-sat, got 'jan'"),
    ("* * * january *", "got 'january'"),
    ("0 5-1 * * *", "cron hour range must not run backwards, got '5-1'"),
    ("0 0 * * 5-0", "cron day of week range must not run backwards, got '5-0'"),
    ("0 0 * * fri-mon", "cron day of week range must not run backwards, got 'fri-mon'"),
    ("0 0 * nov-feb *", "cron month range must not run backwards, got 'nov-feb'"),
    ("*/0 * * * *", "cron minute step must be 1 or more, got '*/0'"),
    ("1-5/0 * * * *", "cron minute step must be 1 or more, got '1-5/0'"),
    ("*/ * * * *", "cron minute must be *, "),
    ("*/-5 * * * *", "cron minute must be *, "),
    ("*/5/5 * * * *", "cron minute must be *, "),
    ("/5 * * * *", "cron minute must be *, "),
    ("1-2-3 * * * *", "cron minute must be *, "),
    ("1- * * * *", "cron minute must be *, "),
    ("1,,2 * * * *", "cron minute must be *, "),
    ("1, * * * *", "cron minute must be *, "),
    ("** * * * *", "cron minute must be *, "),
    ("*-5 * * * *", "cron minute must be *, "),
    ("1.5 * * * *", "cron minute must be *, "),
    ("+1 * * * *", "cron minute must be *, "),
    ("1_0 * * * *", "cron minute must be *, "),
    ("1;2 * * * *", "cron minute must be *, "),
    ("H * * * *", "cron minute must be from 0 to 59, got 'H'"),
    ("H/15 * * * *", "cron minute must be from 0 to 59, got 'H'"),
    ("R * * * *", "cron minute must be from 0 to 59, got 'R'"),
    ("R(0-5) * * * *", "cron minute must be *, "),
    ("0 0 L * *", "cron day of month must be from 1 to 31, got 'L'"),
    ("0 0 15W * *", "cron day of month must be *, "),
    ("0 0 ? * *", "cron day of month must be *, "),
    ("0 0 * * 5L", "cron day of week must be *, "),
    ("0 0 * * L5", "cron day of week must be *, "),
    ("0 0 * * mon#2", "cron day of week must be *, "),
    ("0 0 30 2 *", "cron day of month must exist in the month, got '30' in month '2'"),
    ("0 0 30,31 feb *", "cron day of month must exist in the month, got '30,31' in month 'feb'"),
    ("0 0 31 2,4,6,9,11 *", "cron day of month must exist in the month, got '31' in month '2,4,6,9,11'"),
    ("0 0 30 2 */2", "cron day of month must exist in the month, got '30' in month '2'"),
    ("0 9 * * *\n", "cron must be printable ASCII"),
    ("0 9 * *\n*", "cron must be printable ASCII"),
    ("0 9 * * *\0", "cron must be printable ASCII"),
    ("0 9 * * \x1b[31m", "cron must be printable ASCII"),
    ("0 9 * * *\u3000", "cron must be printable ASCII"),
    ("0\u00a09 * * * *", "cron must be printable ASCII"),
    ("٣ * * * *", "cron must be printable ASCII"),
    ("0 0 * * ſun", "cron must be printable ASCII"),
    ("\ud800 * * * *", "cron must be printable ASCII"),
    (None, "cron must be a string of five fields (minute, hour, day of month, month, day of week), got None"),
    (5, "got 5"),
    (b"* * * * *", "got b'* * * * *'"),
    (["*"] * 5, "got ['*', '*', '*', '*', '*']"),
    (timedelta(hours=1), "got datetime.timedelta(seconds=3600)"),
]


@pytest.mark.parametrize(("expression", "sentence"), REFUSED, ids=range(len(REFUSED)))
def test_refused_with_one_clear_sentence(expression: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^cron ") as refused:
        cron.parse(expression)
    assert type(refused.value) is ValueError
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "expression", ["x" * 1_000_000, b"x" * 1_000_000, "1," * 99 + "x" * 2000, 10**5000], ids=range(4)
)
def test_a_value_is_cut_short_in_the_message(expression: object) -> None:
    with pytest.raises(ValueError, match=r"^cron ") as refused:
        cron.parse(expression)
    assert len(str(refused.value)) < 300


class Untouchable(list[str]):
    """Fails whoever walks through it, prints it or looks it up."""

    def untouched(self, *args: object) -> NoReturn:
        raise AssertionError("only the type may be looked at")

    __iter__ = __len__ = __repr__ = __str__ = __eq__ = untouched  # type: ignore[assignment]


class Endless(str):
    """Fails whoever looks at more than its length and its beginning."""

    __slots__ = ()

    def untouched(self, *args: object) -> NoReturn:
        raise AssertionError("only the length may be looked at")

    __hash__ = isascii = lower = split = strip = untouched  # type: ignore[assignment]


@pytest.mark.parametrize("hostile", [Untouchable(), Endless("* " * 1_000_000)], ids=["list", "text"])
def test_hostile_input_is_refused_by_its_type_and_length_alone(hostile: object) -> None:
    with pytest.raises(ValueError, match=r"^cron must be"):
        cron.parse(hostile)
    with pytest.raises(ValueError, match=r"^timezone must be"):
        cron.zone(hostile)


@pytest.mark.parametrize("expression", ["0 0 30 2 *", "0 0 31 2,4,6,9,11 *", "0 0 * * 5-1", "*/0 * * * *", "H * * * *"])
def test_croniter_never_sees_what_is_refused(monkeypatch: pytest.MonkeyPatch, expression: str) -> None:
    def unwanted(*args: object, **kwargs: object) -> None:
        raise AssertionError("croniter was asked")

    monkeypatch.setattr(cron, "croniter", unwanted)
    with pytest.raises(ValueError, match=r"^cron "):
        cron.parse(expression)


@given(st.one_of(st.text(max_size=40), st.text("0123456789*/-,@? \tLWHRjanmosu#", max_size=40)))
@settings(deadline=None, max_examples=500)
def test_any_text_is_either_due_some_day_or_refused(text: str) -> None:
    sentence = refusal(text)
    if sentence is None:
        assert cron.next_after(text, UTC, at("2026-01-01T00:00Z")) is not None
    else:
        assert sentence.startswith("cron ")


@pytest.mark.parametrize("due", [at("2026-01-01T00:00"), "2026-01-01", None])
def test_an_instant_must_be_aware(due: object) -> None:
    for ask in (cron.next_after, cron.latest):
        with pytest.raises((ValueError, TypeError), match="must be an aware datetime"):
            ask("* * * * *", UTC, due)  # type: ignore[arg-type]


# --- Zones ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["UTC", PARIS, "America/Argentina/Buenos_Aires", "Etc/GMT+12", "GB", "EST5EDT"])
def test_a_zone_by_its_name(name: str) -> None:
    assert cron.zone(name) is cron.zone(name)
    assert cron.zone(name).key == name


@pytest.mark.parametrize(
    "name",
    [
        "", " ", "Europe", "America/Argentina", "Europe/Paris ", "Europe/Paris/", "/Europe/Paris", "europe/paris", "EUROPE/PARIS", "utc",
        "../Europe/Paris", "../../etc/passwd", "/etc/passwd", "Europe//Paris", "Europe/./Paris", "Mars/Olympus", "UTC\0", "UTC\n", "Zürich",
        "x" * 300, "x" * 1_000_000, "a/" * 500, "tzdata.zi", "zone.tab", "localtime", "posixrules", "right/Europe/Paris", "posix/UTC",
        "UTC+2", "+02:00", "\ud800", None, 2, b"UTC", ["UTC"], UTC,
    ],
    ids=lambda name: repr(name)[:30].encode("ascii", "replace").decode(),
)  # fmt: skip
def test_an_unknown_zone_is_one_clear_error(name: object) -> None:
    with pytest.raises(
        ValueError, match=r"^timezone must be the name of a time zone, such as 'UTC' or 'Europe/Paris', got "
    ) as refused:
        cron.zone(name)
    assert type(refused.value) is ValueError
    assert len(str(refused.value)) < 200


def test_a_zone_that_arrives_later_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as old:
        old.setattr(cron, "available_timezones", lambda: {"UTC"})
        cron._zone.cache_clear()
        cron._zone_names.cache_clear()
        with pytest.raises(ValueError, match=r"^timezone must be"):
            cron.zone("Asia/Qostanay")
    assert cron.zone("Asia/Qostanay").key == "Asia/Qostanay"


@pytest.mark.parametrize("offset", [timedelta(0), timedelta(hours=5, minutes=30), -timedelta(hours=11)])
def test_a_fixed_offset(offset: timedelta) -> None:
    due = due_times("0 9 * * *", timezone(offset), at("2026-01-01T00:00Z"), at("2026-01-05T00:00Z"))
    assert [instant.astimezone(timezone(offset)).hour for instant in due] == [9] * 4


# --- No stepping, no sharing ------------------------------------------------------------------------------------------


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[datetime]:
    """The wall times from which an expression was asked to walk."""
    seen: list[datetime] = []

    def counted(step: Callable[..., datetime | None]) -> Callable[..., datetime | None]:
        def counting(expression: cron.Expression, wall: datetime) -> datetime | None:
            seen.append(wall)
            return step(expression, wall)

        return counting

    monkeypatch.setattr(cron.Expression, "following", counted(cron.Expression.following))
    monkeypatch.setattr(cron.Expression, "preceding", counted(cron.Expression.preceding))
    cron._next_after.cache_clear()
    cron._latest.cache_clear()
    return seen


def test_a_year_behind_is_one_step(steps: list[datetime]) -> None:
    now = at("2026-06-01T12:00:30Z")
    newest = cron.latest("* * * * *", cron.zone(PARIS), now)
    assert newest == at("2026-06-01T12:00Z")
    assert cron.next_after("* * * * *", cron.zone(PARIS), newest) == at("2026-06-01T12:01Z")
    assert len(steps) == 2


def test_a_lost_day_is_two_steps(steps: list[datetime]) -> None:
    end = at("2011-12-30T10:00Z")
    assert cron.next_after("* * * * *", cron.zone("Pacific/Apia"), end - MINUTE) == end
    assert len(steps) == 2


def test_all_who_ask_within_a_minute_share_an_answer(steps: list[datetime]) -> None:
    now = at("2026-06-01T12:00Z")
    for second in range(60):
        instant = now + timedelta(seconds=second, microseconds=999_999)
        assert cron.next_after("7 12 * * *", cron.zone(PARIS), instant) == at("2026-06-02T10:07Z")
        assert cron.latest("0 14 * * *", cron.zone(PARIS), instant) == now
    assert len(steps) == 2


def test_walking_leaves_a_compiled_expression_as_it_was() -> None:
    # A croniter remembers where it stands: threads that stepped the cached one would move each other.
    expression = cron.parse("7,23,51 3-21/3 1-28 * 1-5")
    before = [dict(vars(side)) for side in expression._sides]
    assert expression.following(at("2026-01-01T00:00")) == at("2026-01-01T03:07")
    assert expression.preceding(at("2026-01-01T00:00")) == at("2025-12-31T21:51")
    assert [vars(side) for side in expression._sides] == before


# --- Against the oracle -----------------------------------------------------------------------------------------------

ZONES = [
    "UTC", PARIS, "Europe/Dublin", "Europe/Moscow", "Europe/Istanbul", NEW_YORK, "America/St_Johns", "America/Sao_Paulo", "America/Caracas",
    "America/Santiago", "America/Havana", "America/Asuncion", "Africa/Cairo", "Africa/Casablanca", "Africa/Windhoek", "Asia/Beirut", "Asia/Gaza",
    "Asia/Tehran", "Asia/Kathmandu", "Asia/Pyongyang", "Asia/Amman", "Australia/Adelaide", LORD_HOWE, "Pacific/Apia", "Pacific/Kwajalein",
    "Pacific/Kiritimati", "Pacific/Chatham", "Pacific/Fiji", "Antarctica/Troll", "Antarctica/Casey", "Etc/GMT+5",
]  # fmt: skip


def items(low: int, high: int, names: tuple[str, ...] = ()) -> st.SearchStrategy[str]:
    numbers = st.integers(low, high)
    ranges = st.tuples(numbers, numbers).map(sorted).map(lambda ends: f"{ends[0]}-{ends[1]}")
    steps = st.integers(1, high + 2)
    plain = st.one_of(numbers.map(str), st.just("*"), ranges, *([st.sampled_from(names)] if names else []))
    return st.one_of(plain, st.builds("{}/{}".format, plain, steps))


def columns(low: int, high: int, *usual: str, names: tuple[str, ...] = ()) -> st.SearchStrategy[str]:
    lists = st.lists(items(low, high, names), min_size=1, max_size=3).map(",".join)
    return st.one_of(st.sampled_from(usual), lists)


DAYS = st.tuples(
    columns(1, 31, "*"),
    columns(1, 12, "*", names=("jan", "Feb", "DEC", "mar-oct")),
    columns(0, 7, "*", names=("sun", "Mon", "FRI", "mon-fri", "sat-sun")),
).map(" ".join)
EXPRESSIONS = st.tuples(
    columns(0, 59, "0", "30", "*/15", "*/20", "59", "*"),
    columns(0, 23, "*", "2", "0-23", "*/2", "1,2", "0", "23", "3"),
    st.just("* * *") | DAYS,
).map(" ".join)


@st.composite
def moments(draw: st.DrawFn) -> tuple[ZoneInfo, datetime]:
    """A zone, and a whole minute that is likely to be near a change of its clocks."""
    zone = cron.zone(draw(st.sampled_from(ZONES)))
    known = cron_oracle.changes(zone)
    away = timedelta(minutes=draw(st.integers(-300, 200)))
    if known and draw(st.integers(0, 9)):
        return zone, draw(st.sampled_from(known)) + away
    return zone, at("1990-01-01T00:00Z") + timedelta(days=draw(st.integers(0, 48 * 365))) + away


def legal(expression: str) -> bool:
    # The strategies only write good fields, but may combine a 30 with a February.
    sentence = refusal(expression)
    assert sentence is None or "must exist in the month" in sentence
    return sentence is None


@given(expression=EXPRESSIONS, moment=moments(), minutes=st.sampled_from([90, 300, 1000]))
@settings(deadline=None, max_examples=300)
def test_every_due_time_is_the_oracles(expression: str, moment: tuple[ZoneInfo, datetime], minutes: int) -> None:
    assume(legal(expression))
    zone, start = moment
    end = start + timedelta(minutes=minutes)
    expected = cron_oracle.due_times(expression, zone, start, end)
    assert due_times(expression, zone, start, end) == expected
    assert expected == sorted(set(expected))


@given(expression=EXPRESSIONS, moment=moments(), seconds=st.integers(0, 59), fraction=st.sampled_from([0, 1, 999_999]))
@settings(deadline=None, max_examples=300)
def test_latest_and_next_after_agree(
    expression: str, moment: tuple[ZoneInfo, datetime], seconds: int, fraction: int
) -> None:
    assume(legal(expression))
    zone, minute = moment
    instant = minute + timedelta(seconds=seconds, microseconds=fraction)
    newest, following = cron.latest(expression, zone, instant), cron.next_after(expression, zone, instant)
    assert newest is not None
    assert following is not None
    assert newest <= instant < following
    assert cron.next_after(expression, zone, newest - MICROSECOND) == newest
    assert cron.next_after(expression, zone, newest) == following
    assert cron.latest(expression, zone, following) == following
    assert cron.latest(expression, zone, following - MICROSECOND) == newest


@given(days=DAYS, start=st.datetimes(min_value=at("1890-01-01"), max_value=at("2110-01-01")))
@settings(deadline=None, max_examples=150)
def test_every_date_is_the_oracles(days: str, start: datetime) -> None:
    expression = f"0 0 {days}"
    assume(legal(expression))
    first = start.replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=UTC)
    calendar = [first + timedelta(days=n) for n in range(800)]
    expected = list(itertools.islice((day for day in calendar if cron_oracle.rule(expression).on(day)), 60))
    end = expected[-1] + MINUTE if len(expected) == 60 else calendar[-1] + MINUTE
    assert due_times(expression, UTC, first, end) == expected
