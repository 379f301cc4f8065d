"""Recurrences are values: validated when made, equal when they mean the same, and exact."""

import pickle
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pgwerk_django.recurrence import LONGEST_INTERVAL, Cron, Interval, Once, Recurrence, Window, seconds

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
LAST = datetime.max.replace(tzinfo=UTC)
FIRST = datetime.min.replace(tzinfo=UTC)

instants = st.datetimes(timezones=st.just(UTC))


# --- Cron -------------------------------------------------------------------------------------------------------------


def test_cron_defaults_to_utc() -> None:
    assert Cron("0 9 * * *") == Cron("0 9 * * *", "UTC")
    assert Cron("0 9 * * *").next_after(NEW_YEAR) == datetime(2026, 1, 1, 9, tzinfo=UTC)


def test_cron_follows_the_clocks_of_its_zone() -> None:
    daily = Cron("0 9 * * *", "Europe/Paris")
    assert daily.next_after(NEW_YEAR) == datetime(2026, 1, 1, 8, tzinfo=UTC)
    assert daily.next_after(datetime(2026, 7, 1, tzinfo=UTC)) == datetime(2026, 7, 1, 7, tzinfo=UTC)
    assert daily.latest(NEW_YEAR) == datetime(2025, 12, 31, 8, tzinfo=UTC)


def test_due_times_are_in_utc_whatever_zone_was_asked_in() -> None:
    asked = datetime(2026, 1, 1, 1, tzinfo=ZoneInfo("Asia/Tokyo"))
    for recurrence in (Cron("0 9 * * *", "Europe/Paris"), Interval(60, NEW_YEAR.astimezone(ZoneInfo("Asia/Tokyo")))):
        due = recurrence.next_after(asked)
        assert due is not None
        assert due.tzinfo is UTC
    assert Cron("0 9 * * *").next_after(asked) == datetime(2026, 1, 1, 9, tzinfo=UTC)


@pytest.mark.parametrize("bad", ["", "* * * *", "60 * * * *", "0 0 30 2 *", None, 5, ["*"] * 5])
def test_cron_refuses_a_bad_expression_when_it_is_made(bad: object) -> None:
    with pytest.raises(ValueError, match=r"^cron "):
        Cron(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", ["Mars/Olympus", "", "../UTC", "europe/paris", None, 3, ZoneInfo("UTC")])
def test_cron_refuses_an_unknown_zone_when_it_is_made(bad: object) -> None:
    with pytest.raises(ValueError, match=r"^timezone must be"):
        Cron("* * * * *", bad)  # type: ignore[arg-type]


def test_cron_equality_hash_and_text() -> None:
    daily = Cron("0 9 * * *", "Europe/Paris")
    assert daily == Cron("0 9 * * *", "Europe/Paris")
    assert daily != Cron("0 9 * * *", "Europe/Berlin")
    assert daily != Cron("1 9 * * *", "Europe/Paris")
    assert len({daily, Cron("0 9 * * *", "Europe/Paris")}) == 1
    assert str(daily) == "0 9 * * * (Europe/Paris)"


# --- Interval ---------------------------------------------------------------------------------------------------------


def test_the_anchor_is_the_first_due_time() -> None:
    grid = Interval(300, NEW_YEAR)
    assert grid.next_after(NEW_YEAR - timedelta(days=400)) == NEW_YEAR
    assert grid.next_after(NEW_YEAR - MICROSECOND) == NEW_YEAR
    assert grid.next_after(NEW_YEAR) == NEW_YEAR + timedelta(seconds=300)
    assert grid.latest(NEW_YEAR) == NEW_YEAR
    assert grid.latest(NEW_YEAR - MICROSECOND) is None


def test_the_grid_keeps_the_microseconds_of_its_anchor() -> None:
    anchor = NEW_YEAR + timedelta(microseconds=123_457)
    grid = Interval(7, anchor)
    far = anchor + timedelta(days=3650, seconds=3)
    due = grid.next_after(far)
    assert due is not None
    assert (due - anchor) % timedelta(seconds=7) == timedelta()
    assert timedelta() < due - far <= timedelta(seconds=7)


@given(
    every=st.integers(1, LONGEST_INTERVAL),
    anchor=instants,
    instant=instants,
)
@example(105_148_800, datetime(9996, 9, 1, tzinfo=UTC), datetime(9996, 9, 1, tzinfo=UTC))  # the next would be past 9999
@example(31_536_000, datetime(2233, 2, 28, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC))
@settings(deadline=None, max_examples=300)
def test_latest_and_next_after_are_neighbours_on_the_grid(every: int, anchor: datetime, instant: datetime) -> None:
    grid = Interval(every, anchor)
    newest, following = grid.latest(instant), grid.next_after(instant)
    if newest is None:
        assert instant < anchor == following
        return
    assert anchor <= newest <= instant
    assert LAST - newest < timedelta(seconds=every) or instant < newest + timedelta(seconds=every)
    assert (newest - anchor) % timedelta(seconds=every) == timedelta()
    assert grid.latest(newest) == newest
    assert grid.next_after(newest) == following
    if newest > FIRST:
        assert grid.next_after(newest - MICROSECOND) == newest
    if following is None:
        assert LAST - newest < timedelta(seconds=every)
    else:
        assert following - newest == timedelta(seconds=every)


def test_a_grid_ends_with_the_calendar() -> None:
    grid = Interval(LONGEST_INTERVAL, NEW_YEAR)
    assert grid.next_after(LAST) is None
    newest = grid.latest(LAST)
    assert newest is not None
    assert grid.next_after(newest) is None
    assert grid.upcoming(newest - MICROSECOND, 5) == [newest]


def test_interval_accepts_a_timedelta() -> None:
    assert Interval(timedelta(minutes=5), NEW_YEAR) == Interval(300, NEW_YEAR)
    assert Interval(timedelta(minutes=5), NEW_YEAR).seconds == 300


@pytest.mark.parametrize(
    ("bad", "shown"),
    [
        (0, "0"),
        (-5, "-5"),
        (0.5, "0.5"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (float("-inf"), "-inf"),
        (LONGEST_INTERVAL + 1, "315360001"),
        (timedelta(milliseconds=1500), "datetime.timedelta(seconds=1, microseconds=500000)"),
        (timedelta(0), "datetime.timedelta(0)"),
        (timedelta.max, "datetime.timedelta(days=999999999, seconds=86399, microseconds=999999)"),
    ],
)
def test_interval_refuses_a_bad_number(bad: int, shown: str) -> None:
    with pytest.raises(ValueError, match="interval must be") as refused:
        Interval(bad, NEW_YEAR)
    expected = "interval must be a whole number of seconds from 1 to 315360000 (10 years), got "
    assert str(refused.value) == expected + shown


def test_a_number_too_long_to_print_is_refused_like_any_other() -> None:
    with pytest.raises(ValueError, match=r"^interval must be .*, got an integer of 16610 bits$"):
        Interval(10**5000, NEW_YEAR)


@pytest.mark.parametrize("bad", [True, False, "300", None, [300], b"3", 3 + 0j])
def test_interval_refuses_a_bad_type(bad: object) -> None:
    with pytest.raises(TypeError, match=r"^interval must be a whole number of seconds .* or a timedelta, got "):
        Interval(bad, NEW_YEAR)  # type: ignore[arg-type]


def test_interval_refuses_a_bad_anchor() -> None:
    with pytest.raises(ValueError, match=r"^anchor must be an aware datetime .* got the naive 2026-01-01 00:00:00"):
        Interval(300, datetime.fromisoformat("2026-01-01"))
    with pytest.raises(TypeError, match="anchor must be an aware datetime, got '2026-01-01'"):
        Interval(300, "2026-01-01")  # type: ignore[arg-type]


def test_interval_equality_hash_and_text() -> None:
    grid = Interval(300, NEW_YEAR)
    assert grid == Interval(300, NEW_YEAR.astimezone(ZoneInfo("America/New_York")))
    assert grid == Interval(300, NEW_YEAR.astimezone(timezone(timedelta(hours=3))))
    assert grid != Interval(301, NEW_YEAR)
    assert grid != Interval(300, NEW_YEAR + MICROSECOND)
    assert len({grid, Interval(300, NEW_YEAR)}) == 1
    assert str(grid) == "every 300 s"


# --- What they share --------------------------------------------------------------------------------------------------

NEXT_YEAR = datetime(2027, 1, 1, tzinfo=UTC)
EVERY_KIND = [
    Cron("*/5 * * * *", "Europe/Paris"),
    Interval(300, NEW_YEAR),
    Window(Cron("*/5 * * * *"), NEW_YEAR, NEXT_YEAR),
    Once(),
]


def test_a_window_includes_its_bounds_and_nothing_beyond() -> None:
    start, end = NEW_YEAR + timedelta(hours=9), NEW_YEAR + timedelta(days=2, hours=9)
    due = [start, start + timedelta(days=1), end]
    window = Window(Cron("0 9 * * *"), start, end)
    assert window.upcoming(NEW_YEAR - timedelta(days=400), 9) == due
    assert window.next_after(end) is None
    assert window.latest(end + timedelta(days=400)) == end
    assert window.latest(start) == start
    assert window.latest(start - MICROSECOND) is None
    assert Window(Cron("0 9 * * *"), start + MICROSECOND, end - MICROSECOND).upcoming(NEW_YEAR, 9) == due[1:2]
    assert Window(Once(), start, end).upcoming(NEW_YEAR, 9) == []


def test_a_window_may_be_open() -> None:
    daily = Cron("0 9 * * *")
    assert Window(daily, None, None).upcoming(NEW_YEAR, 3) == daily.upcoming(NEW_YEAR, 3)
    assert Window(daily, NEXT_YEAR, None).next_after(NEW_YEAR) == NEXT_YEAR + timedelta(hours=9)
    assert Window(daily, NEW_YEAR, None).latest(NEXT_YEAR) == NEXT_YEAR - timedelta(hours=15)
    assert Window(daily, None, NEW_YEAR).latest(NEXT_YEAR) == NEW_YEAR - timedelta(hours=15)
    assert str(Window(daily, None, None)) == str(daily)
    assert str(Window(daily, NEW_YEAR, NEXT_YEAR)) == f"{daily} from {NEW_YEAR} until {NEXT_YEAR}"


def test_a_one_off_has_no_rule() -> None:
    assert Once().next_after(NEW_YEAR) is None
    assert Once().latest(NEW_YEAR) is None
    assert Once().upcoming(NEW_YEAR, 3) == []
    assert Once() == Once()
    assert str(Once()) == "once"


@pytest.mark.parametrize("recurrence", EVERY_KIND, ids=str)
def test_every_kind_is_a_value(recurrence: Recurrence) -> None:
    assert isinstance(recurrence, Recurrence)
    assert pickle.loads(pickle.dumps(recurrence)) == recurrence
    assert hash(recurrence) == hash(pickle.loads(pickle.dumps(recurrence)))
    with pytest.raises((AttributeError, TypeError)):
        recurrence.other = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("recurrence", EVERY_KIND, ids=str)
def test_a_naive_instant_is_refused(recurrence: Recurrence) -> None:
    naive = datetime.fromisoformat("2026-01-01")
    for method in (recurrence.next_after, recurrence.latest, lambda instant: recurrence.upcoming(instant, 1)):
        with pytest.raises(ValueError, match="must be an aware datetime"):
            method(naive)
    with pytest.raises(TypeError, match="instant must be an aware datetime, got 1767225600"):
        recurrence.next_after(1767225600)  # type: ignore[arg-type]


@pytest.mark.parametrize("recurrence", EVERY_KIND[:3], ids=str)
def test_upcoming_repeats_next_after(recurrence: Recurrence) -> None:
    due = recurrence.upcoming(NEW_YEAR, 4)
    assert due == [NEW_YEAR + timedelta(minutes=5 * n) for n in (1, 2, 3, 4)]
    assert recurrence.upcoming(NEW_YEAR, 0) == []
    assert recurrence.upcoming(due[1], 2) == due[2:]


# --- seconds() --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "whole"), [(0, 0), (60, 60), (60.0, 60), (timedelta(minutes=1), 60), (timedelta(days=2), 172_800)]
)
def test_seconds_accepts_whole_seconds(value: object, whole: int) -> None:
    result = seconds(value, "_timeout")
    assert result == whole
    assert type(result) is int


def test_seconds_names_the_option_the_bounds_and_the_value() -> None:
    with pytest.raises(ValueError, match=r"^_timeout must be a whole number of seconds, 1 or more, got 0$"):
        seconds(0, "_timeout", minimum=1)
    with pytest.raises(ValueError, match=r"^_jitter must be a whole number of seconds from 0 to 90, got 91$"):
        seconds(91, "_jitter", maximum=90)
    with pytest.raises(
        TypeError, match=r"^_timeout must be a whole number of seconds, 0 or more, or a timedelta, got 'x+'\.\.\.$"
    ):
        seconds("x" * 1_000_000, "_timeout")


def test_seconds_includes_its_bounds() -> None:
    assert seconds(1, "_timeout", minimum=1, maximum=5) == 1
    assert seconds(timedelta(seconds=5), "_timeout", minimum=1, maximum=5) == 5
