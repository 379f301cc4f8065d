"""`manage.py schedules import` and `export`: from the real django-celery-beat, settings, crontabs and our own JSON."""

import datetime as dt
import functools
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery.schedules import crontab, schedule, solar
from django.core.management import CommandError, call_command
from django.db import connection, connections
from django.db.backends.dummy.base import DatabaseWrapper
from hypothesis import HealthCheck, example, given, reject
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pgwerk_django import cron, registry
from pgwerk_django.importers import beat as beat_words
from pgwerk_django.importers import beat_tables
from pgwerk_django.importers.command_line import management_command
from pgwerk_django.models import Job, Schedule
from pgwerk_django.policies import Misfire, Overlap
from pgwerk_django.recurrence import Cron
from pgwerk_django.scheduler import Scheduler
from tests import functions
from tests.processes import ROOT, database_url
from tests.time_travel import HOUR, MINUTE, SECOND, jobs, make, now

pytestmark = pytest.mark.django_db(transaction=True)
DAY = 24 * HOUR

# -- the real django-celery-beat, in a process of its own ------------------------------------------------------------

INSTALLED = Path(sys.prefix) / "beat"  # apart: it has a module of the name of one of rq-scheduler's
PRELUDE = """
import datetime as dt, json, sys, django
django.setup()
from django.core.management import call_command
from django_celery_beat.models import (
    ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask, SolarSchedule
)
UTC = dt.timezone.utc
now = dt.datetime.now(UTC)
def task(name, task="shop.tasks.report", **columns):
    made = PeriodicTask.objects.create(name=name, task=task, **columns)
    PeriodicTask.objects.filter(pk=made.pk).update(**{
        column: columns[column] for column in ("last_run_at", "total_run_count", "date_changed") if column in columns
    })
    return made
def every(n, period="seconds"):
    return IntervalSchedule.objects.get_or_create(every=n, period=period)[0]
def at(minute="*", hour="*", day_of_month="*", month_of_year="*", day_of_week="*", timezone="UTC"):
    return CrontabSchedule.objects.create(
        minute=minute, hour=hour, day_of_month=day_of_month, month_of_year=month_of_year, day_of_week=day_of_week,
        timezone=timezone,
    )
"""


def in_beat(code: str) -> str:
    assert INSTALLED.is_dir(), "django-celery-beat is not installed: run make"
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={
            **os.environ,
            "PYTHONPATH": f"{INSTALLED}{os.pathsep}{ROOT}",
            "DJANGO_SETTINGS_MODULE": "tests.beat_settings",
            "DATABASE_URL": database_url(),
        },
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def _beat_tables(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    with django_db_blocker.unblock():
        in_beat("call_command('migrate', 'django_celery_beat', verbosity=0)")
    yield
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        found = [name for name in connection.introspection.table_names(cursor) if name.startswith("django_celery_beat")]
        cursor.execute(f"DROP TABLE {', '.join(found)} CASCADE")
        cursor.execute("DELETE FROM django_migrations WHERE app = 'django_celery_beat'")
        cursor.execute("DELETE FROM django_content_type WHERE app_label = 'django_celery_beat'")
    connection.close()  # as the test runner does after each test: one that may not use the database can come next


@pytest.fixture
def beat(_beat_tables: None, transactional_db: None) -> Iterator[Callable[[str], str]]:
    yield in_beat
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE django_celery_beat_periodictask CASCADE")


Run = Callable[..., list[str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`schedules import`: its lines, and the exit code in front if it is not 0."""

    def _run(*words: str) -> list[str]:
        capsys.readouterr()
        try:
            call_command("schedules", "import", *words)
        except SystemExit as end:
            return [f"exit {end.code}", *capsys.readouterr().out.splitlines()]
        return capsys.readouterr().out.splitlines()

    return _run


def twice(run: Run, *words: str) -> list[str]:
    """The lines of an import, which a dry run says before it, writing nothing, and after which nothing is left to do."""
    before = exported()
    would = run(*words, "--dry-run")
    assert exported() == before
    said = run(*words)
    assert not any(line.startswith(("inserted", "updated")) for line in would)
    did = {"would insert": "inserted", "would update": "updated"}
    assert [functools.reduce(lambda told, word: told.replace(word, did[word], 1), did, line) for line in would] == said
    after = exported()
    again = run(*words)
    assert [line for line in again if line.startswith(("inserted", "updated"))] == []
    assert exported() == after
    return said


def exported() -> list[dict[str, Any]]:
    columns = [field.attname for field in Schedule._meta.fields if field.attname != "id"]
    return list(Schedule.objects.order_by("name").values(*columns))


def row(name: str) -> Schedule:
    return Schedule.objects.get(name=name)


# -- the tables of django-celery-beat ----------------------------------------------------------------------------------


def test_each_kind_of_periodic_task(beat: Any, run: Run) -> None:
    beat(
        """
task("cron", crontab=at("30", "7", "*", "*", "mon-fri", "America/New_York"), args='[1, "a"]', kwargs='{"b": 2}',
     queue="mail", priority=5, expire_seconds=90, description="each morning", last_run_at=now)
task("often", interval=every(15, "minutes"), last_run_at=now - dt.timedelta(minutes=5))
task("bounded", interval=every(2, "days"), start_time=dt.datetime(2001, 1, 1, tzinfo=UTC),
     expires=dt.datetime(2099, 1, 1, tzinfo=UTC))
clock = lambda year: ClockedSchedule.objects.create(clocked_time=dt.datetime(year, 5, 6, 7, tzinfo=UTC))
task("once", clocked=clock(2098), one_off=True)
task("once was", clocked=clock(2020), one_off=True, total_run_count=1, last_run_at=dt.datetime(2020, 5, 6, 7, tzinfo=UTC))
task("first only", interval=every(60), one_off=True)
task("had its first", interval=every(60), one_off=True, total_run_count=1, last_run_at=now)
task("off", crontab=at("0"), enabled=False)
"""
    )
    lines = twice(run)
    names = ["bounded", "cron", "first only", "had its first", "off", "often", "once", "once was"]
    assert lines == [f"inserted {name}" for name in names]

    found = row("cron")
    assert (found.cron, found.timezone) == ("30 7 * * mon-fri", "America/New_York")
    assert (found.function, found.target, found.args, found.kwargs) == (
        "shop.tasks.report",
        "celery",
        [1, "a"],
        {"b": 2},
    )
    assert (found.queue, found.priority, found.start_within) == ("mail", 5, 90)
    assert (found.description, found.origin, found.run_count) == ("each morning", "api", 0)
    assert found.next_run_at == Cron("30 7 * * mon-fri", "America/New_York").next_after(found.last_run_at)

    found = row("often")
    assert (found.interval, found.next_run_at) == (900, found.last_run_at + 15 * MINUTE)
    found = row("bounded")
    assert found.starts_at == found.next_run_at == found.anchor_at == dt.datetime(2001, 1, 1, tzinfo=dt.UTC)
    assert found.ends_at == dt.datetime(2099, 1, 1, tzinfo=dt.UTC)
    found = row("once")
    assert (found.rule, found.next_run_at) == ("once", dt.datetime(2098, 5, 6, 7, tzinfo=dt.UTC))
    assert (row("once was").next_run_at, row("once was").run_count, row("once was").replan) == (None, 1, False)
    assert (row("first only").max_runs, row("first only").run_count) == (1, 0)
    assert (row("had its first").max_runs, row("had its first").run_count) == (1, 1)
    assert row("had its first").next_run_at is None
    found = row("off")
    assert (found.paused, found.paused_by, found.pause_reason) == (True, "django-celery-beat", "not enabled there")
    assert (found.next_run_at, found.replan) == (None, False)


def test_what_cannot_be_carried_over_says_why_and_stops_nothing(beat: Any, run: Run) -> None:
    beat(
        """
task("sun", solar=SolarSchedule.objects.create(event="sunrise", latitude=1, longitude=2))
task("micro", interval=every(1500000, "microseconds"))
task("sub", interval=every(5, "microseconds"))
task("headers", interval=every(60), headers='{"x": 1}')
task("exchange", interval=every(60), exchange="e")
task("routing", interval=every(60), routing_key="r")
task("either", crontab=at("0", "9", "8-14", "*", "mon"))
task("args", interval=every(60), args='{"a": 1}')
task("kwargs", interval=every(60), kwargs='{broken')
task("sunday", crontab=at("0", "0", "*", "*", "7"))
task("the default queue", interval=every(60), queue="default")
task("fits not", task="tests.functions.add", interval=every(60), args='["too", "many", "of", "them"]')
task("too late", clocked=ClockedSchedule.objects.create(clocked_time=now), one_off=True,
     expires=dt.datetime(2020, 1, 1, tzinfo=UTC))
task("fortnights", interval=every(60))
IntervalSchedule.objects.filter(pk=every(62, "days").pk).update(period="fortnights")
PeriodicTask.objects.filter(name="fortnights").update(interval=IntervalSchedule.objects.get(every=62))
task("good", interval=every(60))
made = task("nothing", interval=every(61))
PeriodicTask.objects.filter(pk=made.pk).update(interval=None)
"""
    )
    code, *lines = twice(run)
    assert code == "exit 1"
    said = dict(line.removeprefix("could not import ").split(": ", 1) for line in lines if line.startswith("could"))
    assert [line for line in lines if not line.startswith("could")] == ["inserted good"]
    for name, why in {
        "sun": "follows the sun (sunrise)",
        "micro": "interval must be a whole number of seconds",
        "sub": "interval must be a whole number of seconds",
        "headers": "headers (x) cannot be carried over",
        "exchange": "exchange ('e')",
        "routing": "routing_key ('r')",
        "either": "both a day of the month (8-14) and a day of the week (mon)",
        "args": "args must be a list or tuple",
        "kwargs": "kwargs must be JSON",
        "sunday": "7",
        "the default queue": "set task_default_queue",
        "fits not": "args and kwargs must fit",
        "too late": "its one run must lie between",
        "fortnights": "its period must be days, hours, minutes, seconds or microseconds, got 'fortnights'",
        "nothing": "must have one of crontab, interval, clocked, solar, got none",
    }.items():
        assert why in said.pop(name), name
    assert not said


def test_a_field_that_celery_cannot_read_is_named(beat: Any, run: Run) -> None:
    beat("""
import datetime as dt
task('dow 7', crontab=at(day_of_week='7'))
task('hour', crontab=at(minute='5', hour='25'))
task('month', crontab=at(month_of_year='foo'))
task('good', crontab=at(day_of_week='0'))
""")
    code, *lines = run()
    assert (code, lines[1]) == ("exit 1", "inserted good")
    for line, why in zip(
        [lines[0], *lines[2:]],
        [
            "dow 7: Celery cannot read its crontab (day_of_week='7'): ",
            "hour: Celery cannot read its crontab (hour='25'): ",
            "month: Celery cannot read its crontab (month_of_year='foo'): ",
        ],
        strict=True,
    ):
        assert line.startswith(f"could not import {why}"), line


def test_who_runs_it_is_what_stands_at_its_name(beat: Any, run: Run) -> None:
    beat(
        """
task("plain", task="tests.functions.add", interval=every(60), args="[1, 2]")
task("celery's", task="tests.celery_app.remember", interval=every(60))
task("by name", task="own.name", interval=every(60))
task("without a dot", task="cleanup", interval=every(60))
task("django's", task="tests.django_tasks.database", interval=every(60))
"""
    )
    twice(run)
    found = dict(Schedule.objects.values_list("name", "target"))
    assert found.pop("django's").startswith("django_tasks")
    assert found == {"plain": "worker", "celery's": "celery", "by name": "celery", "without a dot": "celery"}


def test_no_due_time_is_lost_between_beats_stop_and_our_start(beat: Any, run: Run, scheduler: Scheduler) -> None:
    beat(
        """
stopped = now - dt.timedelta(hours=2)
task("cron", crontab=at("*/5"), last_run_at=stopped)
task("grid", interval=every(1, "hours"), last_run_at=stopped + dt.timedelta(minutes=1))
task("new", crontab=at("*/5"), date_changed=stopped)
task("new grid", interval=every(1, "hours"), date_changed=stopped + dt.timedelta(minutes=1))
task("starts", interval=every(1, "hours"), start_time=stopped + dt.timedelta(minutes=1))
task("clocked", clocked=ClockedSchedule.objects.create(clocked_time=stopped), one_off=True)
task("off", crontab=at("*/5"), enabled=False)
PeriodicTask.objects.filter(name="off").update(last_run_at=stopped)
"""
    )
    run()
    stopped = now() - 2 * HOUR
    while scheduler.tick():
        pass
    assert {job.schedule_name: job.status for job in Job.objects.exclude(status="SKIPPED")} == dict.fromkeys(
        ["cron", "grid", "new", "new grid", "starts", "clocked"], "READY"
    )
    skipped, _ready = jobs("cron")
    assert skipped.due_at - stopped < 6 * MINUTE  # the first that beat did not send is on record
    assert not jobs("off")
    scheduler.resume("off")
    while scheduler.tick():
        pass
    assert row("off").next_run_at > now()
    assert not jobs("off")


def test_an_edit_over_there_is_an_update_and_touches_nothing_of_the_machine(beat: Any, run: Run) -> None:
    beat("task('a', interval=every(60), last_run_at=now); task('b', interval=every(60), last_run_at=now)")
    run()
    Scheduler().pause("a", by="ada")
    beat("PeriodicTask.objects.filter(name='a').update(interval=every(120), queue='q')")
    before = row("b")
    assert twice(run) == ["updated a: interval 60 -> 120, queue 'default' -> 'q'", "unchanged b"]
    assert (row("a").interval, row("a").paused_by) == (120, "ada")
    assert row("b").next_run_at == before.next_run_at


@pytest.mark.parametrize("paused", [False, True])
def test_a_clocked_time_that_moved(beat: Any, run: Run, paused: bool) -> None:
    beat("task('a', clocked=ClockedSchedule.objects.create(clocked_time=now + dt.timedelta(1)), one_off=True)")
    run()
    if paused:
        Scheduler().pause("a")
    beat("ClockedSchedule.objects.update(clocked_time=dt.datetime(2098, 1, 1, tzinfo=UTC))")
    (line,) = twice(run)
    assert line.startswith("updated a: anchor_at ")
    assert row("a").next_run_at == row("a").anchor_at == dt.datetime(2098, 1, 1, tzinfo=dt.UTC)
    Scheduler().resume("a")
    assert row("a").next_run_at == row("a").anchor_at


def test_what_code_declares_is_left_alone(beat: Any, run: Run, scheduler: Scheduler) -> None:
    beat("task('synced', interval=every(60)); task('to be synced', interval=every(60))")
    registry.schedule(functions.noop, interval=5, _name="synced")
    scheduler.sync()
    registry.schedule(functions.noop, interval=5, _name="to be synced")
    assert twice(run) == [
        "exit 1",
        "could not import synced: code declares it, and code wins",
        "could not import to be synced: code declares it, and code wins",
    ]
    assert [(found.name, found.interval) for found in Schedule.objects.all()] == [("synced", 5)]


def test_the_tables_may_stand_in_the_default_database(beat: Any, run: Run, elsewhere: str) -> None:
    beat("task('a', interval=every(60))")
    assert twice(run) == ["inserted a"]


def test_without_celery_it_says_what_to_install(beat: Any, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    beat("task('cron', crontab=at('0')); task('grid', interval=every(60))")
    monkeypatch.setitem(sys.modules, "celery", None)
    assert run() == [
        "exit 1",
        "could not import cron: celery is not installed: pip install 'pgwerk-django[celery]'",
        "inserted grid",
    ]


def test_a_crontab_whose_zone_beat_passes_over(beat: Any, run: Run, settings: Any) -> None:
    settings.DJANGO_CELERY_BEAT_TZ_AWARE = False
    settings.CELERY_TIMEZONE = ZoneInfo("Asia/Tokyo")
    beat("task('a', crontab=at('0', timezone='America/New_York'))")
    run()
    assert row("a").timezone == "Asia/Tokyo"


def test_tables_of_an_older_version(beat: Any, run: Run) -> None:
    beat("task('a', interval=every(60), last_run_at=now)")
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE django_celery_beat_clockedschedule RENAME TO away")
        cursor.execute("ALTER TABLE django_celery_beat_periodictask RENAME COLUMN expire_seconds TO away")
    try:
        assert twice(run) == ["inserted a"]
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE away RENAME TO django_celery_beat_clockedschedule")
            cursor.execute("ALTER TABLE django_celery_beat_periodictask RENAME COLUMN away TO expire_seconds")


def test_a_project_without_a_default_database() -> None:
    real = connections["default"]
    connections["default"] = DatabaseWrapper({}, "default")  # type: ignore[assignment]  # what Django puts there
    try:
        assert beat_tables.database("default") is None
    finally:
        connections["default"] = real


def test_while_the_app_is_installed(beat: Any) -> None:
    said = beat("task('a', interval=every(60)); call_command('schedules', 'import')")
    assert said == "inserted a\n"


def test_a_hint_to_stop_beat(beat: Any, capsys: pytest.CaptureFixture[str]) -> None:
    beat("task('a', interval=every(60))")
    call_command("schedules", "import", "--dry-run")
    assert "stop celery beat before the import" in capsys.readouterr().err


# -- Celery's crontabs in cron's words ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"minute": "*/15"}, "*/15 * * * *"),
        ({"minute": 0, "hour": [9, 17]}, "0 9,17 * * *"),
        ({"minute": "0", "hour": "22-4"}, "0 0-4,22,23 * * *"),
        ({"minute": "0", "day_of_week": "fri-mon"}, "0 * * * 0,1,5,6"),
        ({"minute": "0", "hour": "*/10,22-4"}, "0 */10,1-4,22,23 * * *"),
        ({"minute": "0", "hour": "22-4,*/10"}, "0 1-4,22,23,*/10 * * *"),
        ({"minute": "0, 30", "hour": "1"}, "0,30 1 * * *"),
        ({"minute": "0", "day_of_week": "monday,Tue"}, "0 * * * 1,Tue"),
        ({"minute": "0", "month_of_year": "january-mar"}, "0 * * 1-3 *"),
        ({"minute": set(range(60)), "hour": 3}, "* 3 * * *"),
        ({"minute": "0-59", "hour": "3"}, "0-59 3 * * *"),
        # Both days: Celery wants both, and cron wants a star to say so.
        ({"minute": "0", "hour": "0", "day_of_month": "1-31", "day_of_week": "mon"}, "0 0 * * mon"),
        ({"minute": "0", "hour": "0", "day_of_month": "13", "day_of_week": "0-6"}, "0 0 13 * *"),
        ({"minute": "0", "hour": "0", "day_of_month": "*/2", "day_of_week": "mon"}, "0 0 */2 * mon"),
        ({"minute": "0", "hour": "0", "day_of_month": "1-7", "day_of_week": "mon"}, "0 0 */31,2-7 * mon"),
        ({"minute": "0", "hour": "0", "day_of_month": "1", "day_of_week": "mon"}, "0 0 */31 * mon"),
        ({"minute": "0", "hour": "0", "day_of_month": "8-14", "day_of_week": "sun,mon"}, "0 0 8-14 * */7,1"),
        ({"minute": ",".join(map(str, range(59))), "hour": ",".join(map(str, range(23)))}, "0-58 0-22 * * *"),
    ],
)
def test_a_crontab_of_celerys(fields: dict[str, Any], text: str) -> None:
    assert beat_words.crontab_text(crontab(**fields)) == text
    Cron(text)


def test_what_cron_cannot_say() -> None:
    with pytest.raises(ValueError, match="asks for both"):
        beat_words.crontab_text(crontab(day_of_month="8-14", day_of_week="mon"))


def spec(low: int, high: int) -> st.SearchStrategy[str]:
    """A field as Celery reads it: stars, steps, ranges that may run backwards."""
    number = st.integers(low, high).map(str)
    bounds = st.tuples(number, number).map("-".join)
    stepped = st.tuples(st.just("*") | bounds, st.integers(1, high).map(str)).map("/".join)
    return st.lists(number | bounds | stepped, min_size=1, max_size=3).map(",".join) | st.just("*")


@hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(st.tuples(spec(0, 59), spec(0, 23), spec(1, 31), spec(1, 12), spec(0, 6)))
@example(("*", "1-0,*/1", "*", "*", "*"))  # whose first item has no values
def test_any_crontab_of_celerys_keeps_its_values_and_its_stars(specs: tuple[str, ...]) -> None:
    try:
        theirs = crontab(**dict(zip(beat_words.FIELDS, specs, strict=True)))
        text = beat_words.crontab_text(theirs)
    except ValueError:  # no such day in any of the months, or two days that cron cannot ask for
        reject()
    Cron(text)
    values = [getattr(theirs, field) for field in beat_words.FIELDS]
    assert [found for _, found in cron.fields(text)] == values
    minute, hour, day, _month, weekday = text.split()
    for written, kept in zip(specs[:2], (minute, hour), strict=True):
        assert kept == "*" or kept.startswith("*") == written.startswith("*")
    assert day.startswith("*") or weekday.startswith("*")  # both are asked for, as Celery does


CRONTABS = [
    {"minute": "30", "hour": "7", "day_of_week": "mon-fri"},
    {"minute": "*/7", "hour": "22-4"},
    {"minute": "0", "hour": "*/5", "day_of_month": "1-7", "day_of_week": "sat-sun"},
    {"minute": "59", "hour": "23", "day_of_month": "29-31", "month_of_year": "*/2"},
    {"minute": "1,13,30-45,50-59/2", "hour": "0,8-17/2", "day_of_month": "*/3", "day_of_week": "fri-mon"},
]


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"])
def test_due_times_are_those_of_celery(zone: str) -> None:
    """But for the days around a change of the clocks, for which Celery has no rule."""
    there, chance = ZoneInfo(zone), random.Random(zone)
    start = dt.datetime(2027, 1, 1, tzinfo=dt.UTC)
    for fields in CRONTABS:
        theirs = crontab(**fields)
        theirs.tz = there
        ours = Cron(beat_words.crontab_text(theirs), zone)
        for _ in range(120):
            last = start + chance.random() * 365 * DAY
            local, delta, _now = theirs.remaining_delta(last)
            due_at = (local + delta).astimezone(dt.UTC)
            offsets = {(last - DAY + n * DAY).astimezone(there).utcoffset() for n in range((due_at - last).days + 4)}
            if len(offsets) == 1:
                assert ours.next_after(last) == due_at, (fields, last)


def test_due_times_are_those_of_the_real_model(beat: Any, run: Run) -> None:
    said = beat(
        f"""
for number, fields in enumerate({CRONTABS!r}):
    task(str(number), crontab=at(**fields, timezone="Asia/Tokyo"))
last, found = dt.datetime(2027, 1, 1, 0, 30, tzinfo=UTC), []
for step in range(60):
    last += dt.timedelta(days=6, hours=5, minutes=7)
    for made in PeriodicTask.objects.order_by("name"):
        local, delta, _ = made.schedule.remaining_delta(last, tz=made.schedule.tz)
        found.append([made.name, last.isoformat(), (local + delta).astimezone(UTC).isoformat()])
print(json.dumps(found))
"""
    )
    run()
    rules = {found.name: Cron(found.cron, found.timezone) for found in Schedule.objects.all()}
    for name, last, due_at in json.loads(said):
        assert rules[name].next_after(dt.datetime.fromisoformat(last)) == dt.datetime.fromisoformat(due_at)


# -- CELERY_BEAT_SCHEDULE ----------------------------------------------------------------------------------------------


class Own(schedule):  # type: ignore[misc]
    """A project's own kind, which is still every so many seconds."""


def test_the_settings(settings: Any, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    task = {"task": "shop.tasks.report"}
    sun = solar.__new__(solar)  # to make one takes a package of astronomy
    sun.event = "sunrise"
    settings.CELERY_TIMEZONE = "Asia/Tokyo"
    settings.CELERY_BEAT_SCHEDULE = {
        "seconds": {**task, "schedule": 30.0, "args": (1, "a"), "kwargs": {"b": 2}},
        "timedelta": {
            **task,
            "schedule": dt.timedelta(hours=1),
            "options": {"queue": "q", "priority": 3, "expires": 60},
        },
        "own": {**task, "schedule": Own(90)},
        "cron": {**task, "schedule": crontab(minute=0, hour="22-4")},
        "until": {**task, "schedule": 60, "options": {"expires": dt.datetime(2099, 1, 1, tzinfo=dt.UTC)}},
        "relative": {**task, "schedule": dt.timedelta(hours=6), "relative": True},
        "sub-second": {**task, "schedule": 0.5},
        "fraction": {**task, "schedule": dt.timedelta(seconds=1, milliseconds=1)},
        "sun": {**task, "schedule": sun},
        "link": {**task, "schedule": 30, "options": {"link": "x"}},
        "limit": {**task, "schedule": 30, "options": {"time_limit": 60.0, "soft_time_limit": None}},
        "soft": {**task, "schedule": 30, "options": {"time_limit": 60, "soft_time_limit": 50}},
        "part": {**task, "schedule": 30, "options": {"time_limit": 0.5}},
        "days": {**task, "schedule": dt.timedelta(days=2), "relative": True},
        "relative seconds": {**task, "schedule": schedule(30, relative=True)},
        "text": {**task, "schedule": "often"},
        "no task": {"schedule": 30},
        "other": {**task, "schedule": 30, "frequency": 3},
        7: {**task, "schedule": 30},
    }
    code, *lines = twice(run)
    assert code == "exit 1"
    assert lines[:6] == [f"inserted {name}" for name in ["seconds", "timedelta", "own", "cron", "until", "relative"]]
    for line, why in zip(
        lines[6:],
        [
            "sub-second: interval must be a whole number",
            "fraction: interval must be a whole number",
            "sun: it follows the sun (sunrise)",
            "link: its option 'link' cannot be carried over",
            "",
            "soft: its option 'soft_time_limit' cannot be carried over: set it on the task, beside its time_limit",
            "part: time_limit must be a whole number",
            "days: it is relative to the days of Asia/Tokyo",
            "",
            "text: its schedule must be seconds, a timedelta or a crontab, got 'often'",
            "no task: it must be a dict with a task and a schedule",
            "other: its 'frequency' cannot be carried over",
            "7: name must be a string",
        ],
        strict=True,
    ):
        assert line.startswith(f"could not import {why}" if why else "inserted"), line
    assert (row("seconds").interval, row("seconds").args, row("seconds").kwargs) == (30, [1, "a"], {"b": 2})
    assert row("seconds").next_run_at == row("seconds").created_at + 30 * SECOND
    found = row("timedelta")
    assert (found.interval, found.queue, found.priority, found.start_within) == (3600, "q", 3, 60)
    assert row("limit").timeout == 60
    assert (row("cron").cron, row("cron").timezone) == ("0 0-4,22,23 * * *", "Asia/Tokyo")
    assert row("until").ends_at == dt.datetime(2099, 1, 1, tzinfo=dt.UTC)
    found = row("relative").next_run_at
    assert (found.minute, found.second, found.microsecond) == (0, 0, 0)


def test_relative_days_are_those_of_utc(settings: Any, run: Run) -> None:
    settings.CELERY_BEAT_SCHEDULE = {"a": {"task": "x.y", "schedule": dt.timedelta(days=1), "relative": True}}
    assert twice(run) == ["inserted a"]
    at = row("a").next_run_at
    assert at == (now() + DAY).replace(hour=0, minute=0, second=0, microsecond=0)


def test_the_apps_own_schedule(run: Run) -> None:
    from tests.celery_app import app

    app.conf.beat_schedule = {"app's": {"task": "own.name", "schedule": 30}}
    try:
        assert twice(run) == ["inserted app's"]
    finally:
        app.conf.beat_schedule = {}


PROJECT = {
    "proj/__init__.py": "from proj.celery import app\n",
    "proj/settings.py": """
from tests.settings import *
INSTALLED_APPS = [*INSTALLED_APPS, "books"]
CELERY_BROKER_URL = "memory://"
CELERY_RESULT_BACKEND = "file:///tmp"
CELERY_BEAT_SCHEDULE = {"in settings": {"task": "books.tasks.daily", "schedule": 60.0}}
""",
    "proj/celery.py": """
from celery import Celery
app = Celery("proj")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
@app.on_after_configure.connect
def configured(sender, **kwargs):
    sender.add_periodic_task(30.0, sender.signature("books.tasks.daily"), name="after configure")
""",
    "books/__init__.py": "",
    "books/tasks.py": """
from celery import chain, shared_task
from celery.schedules import crontab, schedule, solar
from proj import app
@shared_task
def daily(*args, **kwargs): ...
@app.task(name="own.name")
def named(): ...
@app.on_after_finalize.connect
def periodic(sender, **kwargs):
    sun = solar.__new__(solar)
    sun.event, sun.nowfun = "sunrise", sender.now
    for name, rule, call in [
        ("crontab", crontab(minute=0, hour=4), daily.s("a", b=1)),
        ("float", 90.0, daily.si()),
        ("half", 0.5, daily.s()),
        ("sun", sun, daily.s()),
        ("named", schedule(60), named.s()),
        ("options", 60, daily.s().set(queue="slow", expires=30)),
        ("link", 60, daily.s().set(link=daily.s())),
        ("chain", 60, chain(daily.s(), daily.s())),
        ("object", 60, daily.s(object())),
    ]:
        sender.add_periodic_task(rule, call, name=name)
    sender.add_periodic_task(3600 * 24, daily.s())
    sender.conf.beat_schedule["late"] = {"task": "own.name", "schedule": crontab(minute="*/5")}
""",
}
LISTED_BY_BEAT = """
import django
django.setup()
from celery.apps.beat import Beat
from celery.beat import Scheduler
from proj import app
Beat(app=app).init_loader()
scheduler = Scheduler(app)
scheduler.install_default_entries(scheduler.data)  # which the usual one does last
print(*sorted(scheduler.schedule), sep="\\n")
"""


@pytest.fixture
def project(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A project with a Celery app, whose files a test may change; runs Python in it."""
    for name, text in PROJECT.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
        paths = os.pathsep.join([str(tmp_path), str(ROOT)])
        own = {"PYTHONPATH": paths, "DJANGO_SETTINGS_MODULE": "proj.settings", "DATABASE_URL": database_url()}
        command = [sys.executable, *arguments]
        return subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, timeout=60)

    return _run


@pytest.fixture
def no_beat_tables(transactional_db: None) -> Iterator[None]:
    """Other tests of this run may have made them."""
    renaming = "ALTER TABLE IF EXISTS django_celery_beat_{} RENAME TO django_celery_beat_{}"
    with connection.cursor() as cursor:
        cursor.execute(renaming.format("periodictask", "away"))
    yield
    with connection.cursor() as cursor:
        cursor.execute(renaming.format("away", "periodictask"))


IMPORT = ("-m", "django", "schedules", "import")


@pytest.mark.process
def test_all_that_beat_would_send_has_a_line(project: Any, no_beat_tables: None) -> None:
    found = project(*IMPORT)
    lines = found.stdout.splitlines()
    assert found.returncode == 1, found.stderr
    listed = project("-c", LISTED_BY_BEAT)
    assert sorted(re.split(r"(?:inserted|could not import) ", line)[1].split(": ")[0] for line in lines) == (
        listed.stdout.splitlines()
    ), listed.stderr
    assert {line.split(": ")[0] for line in lines if line.startswith("could not import ")} == {
        f"could not import {name}" for name in ("half", "sun", "link", "chain", "object")
    }
    assert "it calls several tasks (celery.chain)" in found.stdout
    assert "no Celery app" not in found.stderr
    daily = row("crontab")
    assert (daily.function, daily.cron, daily.args, daily.kwargs) == ("books.tasks.daily", "0 4 * * *", ["a"], {"b": 1})
    assert row("books.tasks.daily()").interval == 24 * 60 * 60
    assert (row("float").interval, row("named").function, row("late").cron) == (90, "own.name", "*/5 * * * *")
    assert (row("celery.backend_cleanup").cron, row("celery.backend_cleanup").start_within) == ("0 4 * * *", 43200)


@pytest.mark.process
@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ('CELERY_BEAT_SCHEDULER = "redbeat.RedBeatScheduler"', "'redbeat.RedBeatScheduler' may have entries that only"),
        ('CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"', "none of our databases has them"),
        ('CELERY_IMPORTS = ["a_module_that_is_not_there"]', "No module named 'a_module_that_is_not_there'"),
    ],
)
def test_what_hides_entries_of_beat_is_told(
    project: Any, no_beat_tables: None, tmp_path: Path, setting: str, why: str
) -> None:
    settings = tmp_path / "proj" / "settings.py"
    settings.write_text(f"{settings.read_text()}{setting}\n")
    found = project(*IMPORT)
    assert found.returncode == 1
    (line,) = [line for line in found.stdout.splitlines() if why in line]
    assert line.startswith("could not import ")
    assert "inserted in settings" in found.stdout


@pytest.mark.process
def test_nothing_to_import_is_no_success(project: Any, no_beat_tables: None, tmp_path: Path) -> None:
    for name in ("proj/celery.py", "books/tasks.py"):
        (tmp_path / name).write_text("app = None\n")
    (tmp_path / "proj" / "settings.py").write_text("from tests.settings import *\n")
    found = project(*IMPORT)
    assert (found.returncode, found.stdout) == (1, "")
    assert "there is nothing to import" in found.stderr
    assert "no Celery app of this project is loaded here" in found.stderr
    (tmp_path / "crontab").write_text("# nothing\nMAILTO=root\n")
    found = project(*IMPORT, str(tmp_path / "crontab"))
    assert found.returncode == 1
    assert "no line of this crontab runs a command" in found.stderr


def test_the_tables_win_over_the_settings_that_they_are_made_of(beat: Any, run: Run, settings: Any) -> None:
    settings.CELERY_BEAT_SCHEDULE = {
        "same": {"task": "shop.tasks.report", "schedule": 60},
        "edited": {"task": "shop.tasks.report", "schedule": 60},
    }
    beat("task('same', interval=every(60)); task('edited', interval=every(90))")
    assert twice(run) == [
        "note: edited: CELERY_BEAT_SCHEDULE has another interval; the table was taken",
        "inserted edited",
        "inserted same",
    ]
    assert row("edited").interval == 90


# -- crontab files -----------------------------------------------------------------------------------------------------

CRONTAB = r"""
# comments and blank lines are nothing

MAILTO=secret@example.com
0 3 * * *  cd /srv/shop && /srv/venv/bin/python manage.py clearsessions >> /var/log/shop.log 2>&1
@daily     django-admin migrate --check
15 4 1 * 1 . venv/bin/activate && python -u ./manage.py sendtestemail 'a b@example.com' --manager
CRON_TZ=America/New_York
*/5 9-17 * * mon-fri /srv/shop/manage.py check --tag "two words" --fail-level=\%s # nightly
*/5 * * * * /srv/shop/manage.py check --tag "two words" --fail-level=\%s
@reboot    python manage.py check
0 1 * * *  /usr/bin/backup --password=hunter2
0 1 * * *  PASSWORD=hunter2 python manage.py check
0 1 * * *  python manage.py check | mail root
0 1 * * *  python manage.py check; true
0 1 * * *  python manage.py check < input
0 1 * * *  python manage.py check --tag=$(date)
0 1 * * *  python manage.py check "$HOME"
0 1 * * *  python manage.py check *.py
0 1 * * *  python manage.py check 'not closed
0 1 * * *  python manage.py check %input
0 1 * * *  python manage.py --settings=other check
0 1 * * *  python manage.py check --settings=other
0 1 * * *  python manage.py nosuchcommand
0 1 * * *  mkdir x && python manage.py check
0 25 * * * python manage.py check
0 1 * *    python manage.py
@daily
TZ=Mars/Olympus
0 1 * * *  python manage.py check
"""


def test_a_crontab(tmp_path: Path, run: Run) -> None:
    source = tmp_path / "crontab"
    source.write_text(CRONTAB)
    code, *lines = twice(run, str(source))
    assert code == "exit 1"
    assert lines[:9] == [
        "note: times are those of Europe/Paris (TIME_ZONE), unless a line says otherwise",
        "note: line 4: MAILTO is ignored",
        "note: line 5: >>/var/log/shop.log, 2>&1 is dropped: what a job prints goes where its worker's goes",
        "note: line 8: times are those of 'America/New_York' from here",
        "note: line 29: times are those of 'Mars/Olympus' from here",
        "inserted manage.py clearsessions",
        "inserted manage.py migrate --check",
        "inserted manage.py sendtestemail 'a b@example.com' --manager",
        "inserted manage.py check --tag 'two words' --fail-level=%s",
    ]
    assert lines[9] == "inserted manage.py check --tag 'two words' --fail-level=%s (2)"
    refused = iter(lines[10:])
    for why in [
        "line 11: @reboot is no time",
        "line 12: it runs a program (/usr/bin/backup): write a function for it",
        "line 13: it runs a program (PASSWORD=…)",
        "line 14: it needs a shell (|)",
        "line 15: it needs a shell (;)",
        "line 16: it reads its input from elsewhere (<)",
        "line 17: it needs a shell",
        "line 18: it needs a shell, which puts something else for '\"$HOME\"'",
        "line 19: it needs a shell, which puts something else for '*.py'",
        "line 20: its quotes do not match",
        "line 21: it has a % without a backslash",
        "line 22: its first word after manage.py must be a management command",
        "line 23: it gives --settings",
        "line 24: this project has no management command 'nosuchcommand'",
        "line 25: it runs mkdir first",
        "line 26: cron hour must be from 0 to 23, got '25'",
        "line 27: ",
        "line 28: it must have five fields, or one such as @daily, and a command",
        "line 30: timezone must be the name of a time zone",
    ]:
        line = next(refused)
        assert line.startswith(f"could not import {why}"), line
    assert not list(refused)
    assert "hunter2" not in "".join(lines)
    found = row("manage.py clearsessions")
    assert (found.cron, found.timezone, found.origin) == ("0 3 * * *", "Europe/Paris", "api")
    assert (found.function, found.args) == ("django.core.management.call_command", ["clearsessions"])
    assert row("manage.py migrate --check").cron == "@daily"
    found = row("manage.py check --tag 'two words' --fail-level=%s")
    assert (found.timezone, found.args) == ("America/New_York", ["check", "--tag", "two words", "--fail-level=%s"])


WRAPPED = """
0 1 * * * DJANGO_SETTINGS_MODULE=tests.settings python manage.py check --tag a
0 1 * * * env DJANGO_SETTINGS_MODULE=tests.settings python manage.py check --tag b --settings=tests.settings
0 1 * * * python manage.py check --tag c --settings tests.settings
0 1 * * * python manage.py --settings=tests.settings check --tag d
0 1 * * * cd /srv && poetry run python manage.py check --tag e
0 1 * * * uv run manage.py check --tag f
0 1 * * * nice -n 19 ionice -c3 python manage.py check --tag g
0 1 * * * /usr/bin/flock -n /tmp/lock python manage.py check --tag h
0 1 * * * flock -xn /tmp/lock -c 'nice python manage.py check --tag i'
0 1 * * * www-data cd /srv/app && venv/bin/python manage.py check
0 1 * * * root /srv/venv/bin/python /srv/manage.py check
0 1 * * * root DJANGO_SETTINGS_MODULE=tests.settings python manage.py check
0 1 * * * DJANGO_SETTINGS_MODULE=other.settings python manage.py check
0 1 * * * python manage.py check --settings other.settings
0 1 * * * sudo -u app python manage.py check
0 1 * * * timeout 60 python manage.py check
0 1 * * * flock /tmp/lock python manage.py check
0 1 * * * flock -n /tmp/lock -c 'cd /srv && python manage.py check'
0 1 * * * poetry -C /srv run python manage.py check
0 1 * * * PASSWORD=hunter2 nice python manage.py check
"""


def test_a_crontab_with_wrappers(tmp_path: Path, run: Run, settings: Any) -> None:
    (tmp_path / "crontab").write_text(WRAPPED.strip())
    code, *lines = run(str(tmp_path / "crontab"))
    assert code == "exit 1"
    assert [line for line in lines if line.startswith("note: line")] == [
        "note: line 7: nice -n 19, ionice -c3 is dropped: a job has the priority of its worker",
        "note: line 8: flock '/tmp/lock' becomes _overlap=SKIP, which keeps apart the runs of this line only",
        "note: line 9: nice is dropped: a job has the priority of its worker",
        "note: line 9: flock '/tmp/lock' becomes _overlap=SKIP, which keeps apart the runs of this line only",
    ]
    assert [line for line in lines if line.startswith("inserted")] == [
        f"inserted manage.py check --tag {tag}" for tag in "abcdefghi"
    ]
    refused = [line for line in lines if line.startswith("could not import")]
    for line, why in zip(
        refused,
        [
            "line 10: it runs www-data first, which may be the user column of a system crontab (/etc/cron.d): take that",
            "line 11: it runs root first, which may be the user column",
            "line 12: it runs root first, which may be the user column",
            "line 13: it sets DJANGO_SETTINGS_MODULE to another module than here",
            "line 14: it gives --settings: a job runs with the settings of its worker",
            "line 15: it runs sudo first: a job runs as the user of its worker",
            "line 16: it runs timeout first: declare the schedule in code, with _timeout",
            "line 17: it waits for a lock (flock): declare the schedule in code, with the _overlap that it needs",
            "line 18: it runs flock -c with a command that needs a shell",
            "line 19: it runs a program (poetry)",
            "line 20: it runs a program (PASSWORD=…)",
        ],
        strict=True,
    ):
        assert line.startswith(f"could not import {why}"), line
    overlaps = dict(Schedule.objects.values_list("name", "overlap"))
    assert overlaps["manage.py check --tag h"] == overlaps["manage.py check --tag i"] == Overlap.SKIP
    assert overlaps["manage.py check --tag g"] == Overlap.BUFFER_ONE


def test_long_commands_never_share_a_name(tmp_path: Path, run: Run) -> None:
    for tag in ("a", "b"):
        (tmp_path / tag).write_text(f"0 1 * * * manage.py check --tag {'x' * 200}{tag}\n")
        assert run(str(tmp_path / tag))[-1].startswith("inserted")
        assert run(str(tmp_path / tag))[-1].startswith("unchanged")
    assert Schedule.objects.count() == 2


def test_a_crontab_from_stdin_with_a_zone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("0 3 * * * manage.py clearsessions\n"))
    assert run("-", "--timezone", "Asia/Tokyo") == [
        "note: times are those of Asia/Tokyo (--timezone), unless a line says otherwise",
        "inserted manage.py clearsessions",
    ]
    assert row("manage.py clearsessions").timezone == "Asia/Tokyo"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("manage.py a", ["a"]),
        ("/usr/bin/env", None),
        ("python3.12 -m django a b", ["a", "b"]),
        ("python -B -u manage.py a", ["a"]),
        ("python other.py a", None),
        ("python", None),
        ("cd /x && source env/bin/activate && ./manage.py a &>> log", ["a"]),
        ("manage.py a > log 2> errors", ["a"]),
        (r"manage.py a b\ c 'd$e' f\$g", ["a", "b c", "d$e", "f$g"]),
        ("manage.py a ''", ["a", ""]),
        ("manage.py a b#c # d; e", ["a", "b#c"]),
        ("manage.py a ~/b", None),
        ("manage.py a `b`", None),
        ("manage.py a &", None),
        ("manage.py a || manage.py b", None),
        ("manage.py a && manage.py b", None),
        ("(manage.py a)", None),
        ("manage.py", None),
        ("manage.py a b2>c", ["a", "b2"]),
        ("", None),
        ('manage.py a "', None),
    ],
)
def test_command_lines(text: str, words: list[str] | None) -> None:
    if words is None:
        with pytest.raises(ValueError, match=r"^it"):
            management_command(text)
    else:
        assert management_command(text).words == words


# -- our own JSON ------------------------------------------------------------------------------------------------------


def export(capsys: pytest.CaptureFixture[str], *names: str) -> str:
    capsys.readouterr()
    call_command("schedules", "export", *names)
    return capsys.readouterr().out


def wiped(run: Run, text: str, tmp_path: Path) -> list[str]:
    source = tmp_path / "schedules.json"
    source.write_text(text)
    Schedule.objects.all().delete()
    return run(str(source))


def test_a_round_trip_is_without_a_difference(
    run: Run, capsys: pytest.CaptureFixture[str], scheduler: Scheduler, tmp_path: Path
) -> None:
    registry.schedule(functions.noop, cron="*/5 * * * *", _name="declared", _timezone="Asia/Tokyo")
    scheduler.sync()
    scheduler.interval(60, functions.add, 1, 2, _name="paused", _meta={"a": [1, None]}, _backoff=[1, 2])
    scheduler.pause("paused", by="ada", reason="ä reason")
    scheduler.schedule_in(60, functions.noop, _name="once")
    scheduler.schedule_in(0, functions.noop, _name="ended")
    make(interval=60, _name="replanned")
    Schedule.objects.create(name="broken", function="tests.functions.noop", interval=60)
    scheduler.trigger("declared")
    assert row("replanned").replan
    Schedule.objects.filter(name="ended").update(next_run_at=None, run_count=1, last_run_at=now())
    Schedule.objects.filter(name="broken").update(error="bad", next_run_at=None, replan=False)
    Schedule.objects.filter(name__in=["broken", "replanned"]).update(origin="admin")
    before, text = exported(), export(capsys)
    lines = wiped(run, text, tmp_path)
    assert lines == [f"inserted {name}" for name in ["broken", "declared", "ended", "once", "paused", "replanned"]]
    assert export(capsys) == text
    for one in before:
        one.update(triggered_at=None, triggered_by="", last_registered_at=None)
    assert exported() == before
    assert run(str(tmp_path / "schedules.json")) == [line.replace("inserted", "unchanged") for line in lines]
    assert scheduler.sync() == (0, 0, [])


def test_export_of_some(capsys: pytest.CaptureFixture[str]) -> None:
    make(_name="a")
    make(_name="b")
    assert [each["name"] for each in json.loads(export(capsys, "b"))["schedules"]] == ["b"]
    with pytest.raises(CommandError, match="no schedule named 'c'"):
        call_command("schedules", "export", "c")


def test_of_a_row_that_is_there_only_the_definition_changes(
    run: Run, capsys: pytest.CaptureFixture[str], scheduler: Scheduler, tmp_path: Path
) -> None:
    scheduler.interval(60, functions.noop, _name="a")
    text = export(capsys).replace('"queue": "default"', '"queue": "mail"').replace('"run_count": 0', '"run_count": 9')
    source = tmp_path / "schedules.json"
    source.write_text(text)
    assert twice(run, str(source)) == ["updated a: queue 'default' -> 'mail'"]
    assert (row("a").queue, row("a").run_count) == ("mail", 0)


def test_what_somebody_wrote_by_hand(run: Run, tmp_path: Path, scheduler: Scheduler) -> None:
    def said(*schedules: Any) -> list[str]:
        source = tmp_path / "schedules.json"
        source.write_text(json.dumps({"format": "pgwerk_django", "version": 1, "schedules": schedules}))
        return twice(run, str(source))

    function = "tests.functions.noop"
    code, *lines = said(
        {"name": "daily", "function": function, "cron": "0 9 * * *"},
        {"name": "often", "function": function, "interval": 60},
        {"name": "once", "function": function, "next_run_at": "2099-01-01T00:00:00+00:00"},
        {"name": "task", "function": "cleanup", "target": "celery", "interval": 60},
        {"name": "often", "function": function, "interval": 70},
        {"name": "neither", "function": function},
        {"name": "bad cron", "function": function, "cron": "0 25 * * *"},
        {"name": "typo", "function": function, "intervall": 60},
        {"name": "instant", "function": function, "interval": 60, "starts_at": "tomorrow"},
        {"name": "no path", "function": "cleanup", "interval": 60},
        {"name": "flag", "function": function, "interval": 60, "paused": "yes"},
        {"name": "target", "function": function, "interval": 60, "target": "moon"},
        {"name": "long", "function": function, "interval": 60, "paused_by": "x" * 201},
        {"name": "origin", "function": function, "interval": 60, "origin": "moon"},
        {"name": "anchor", "function": function, "interval": 60, "anchor_at": None},
        {"function": function, "interval": 3600},
        {"interval": 60},
        7,
    )
    assert code == "exit 1"
    assert lines[:4] == [f"inserted {name}" for name in ["daily", "often", "once", "task"]]
    for line, why in zip(
        lines[4:],
        [
            "often: another entry before it has this name",
            "neither: exactly one of cron and interval must be given, got neither",
            "bad cron: cron hour must be from 0 to 23",
            "typo: 'intervall' is not an option (did you mean 'interval'?)",
            "instant: starts_at must be an instant in ISO 8601, got 'tomorrow'",
            "no path: func must be a callable or its dotted path",
            "flag: paused must be true or false, got 'yes'",
            "target: _target must be one of worker",
            "long: value too long",
            "origin: origin must be one of code, api, admin, got 'moon'",
            "anchor: anchor_at must be an instant in ISO 8601, got None",
            "",
            "schedule 17: function must be a string, got None",
            "schedule 18: a schedule must be an object, got 7",
        ],
        strict=True,
    ):
        assert line.startswith(f"could not import {why}" if why else f"inserted {function}"), line
    assert row("daily").timezone == "Europe/Paris"
    assert row("often").next_run_at == row("often").created_at + MINUTE
    assert row("once").anchor_at == row("once").next_run_at


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "begins as JSON does, and is none"),
        ("{}", "must be that of 'schedules export'"),
        ('{"format": "pgwerk_django", "version": 2, "schedules": []}', "its version must be 1, got 2"),
    ],
)
def test_another_json_is_refused(run: Run, tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "x").write_text(text)
    with pytest.raises(CommandError, match=why):
        run(str(tmp_path / "x"))


def test_a_source_that_cannot_be_read(run: Run, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"'nowhere' cannot be imported: .*No such file"):
        run("nowhere")
    (tmp_path / "latin").write_bytes(b"\xe4\xff")
    with pytest.raises(CommandError, match="cannot be imported"):
        run(str(tmp_path / "latin"))
    (tmp_path / "empty").write_text("")
    with pytest.raises(CommandError, match="timezone must be the name of a time zone"):
        run(str(tmp_path / "empty"), "--timezone", "Mars")
    with pytest.raises(CommandError, match="--timezone is for a crontab"):
        run("--timezone", "UTC")
    (tmp_path / "json").write_text('{"format": "pgwerk_django", "version": 1, "schedules": []}')
    with pytest.raises(CommandError, match="say their zones themselves"):
        run(str(tmp_path / "json"), "--timezone", "UTC")


def test_the_report_as_json(run: Run, settings: Any) -> None:
    make(interval=60, _name="a", _target="celery")
    make(interval=60, _name="b", _target="celery")
    Schedule.objects.update(origin="api", function="x.y", timezone="Europe/Paris")
    settings.CELERY_BEAT_SCHEDULE = {
        name: {"task": "x.y", "schedule": every} for name, every in {"a": 60, "b": 90, "c": 60, "d\n": 60}.items()
    }
    code, line = run("--format=json")
    assert code == "exit 1"
    said = json.loads(line)
    (bad,) = said.pop("could_not")
    assert bad["name"] == "d\n"
    assert said == {
        "inserted": ["c"],
        "updated": {"b": {"interval": {"table": 60, "found": 90}}},
        "unchanged": ["a"],
        "notes": [],
    }


TEXT = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
INSTANTS = st.datetimes(dt.datetime(1950, 1, 1), dt.datetime(2150, 1, 1), timezones=st.just(dt.UTC))  # noqa: DTZ001
SECONDS = st.integers(1, 10**6)
DEFINITIONS = st.fixed_dictionaries(
    {
        "rule": st.sampled_from([{"cron": "*/7 3 * * mon"}, {"cron": "@daily"}, {"interval": 1}, {"interval": 86400}]),
        "timezone": st.sampled_from(["UTC", "Europe/Paris", "Asia/Kathmandu"]),
        "queue": TEXT,
        "args": st.lists(JSON, max_size=3),
        "kwargs": st.dictionaries(TEXT, JSON, max_size=3),
        "meta": st.dictionaries(TEXT, JSON, max_size=3),
        "description": TEXT | st.just(""),
        "starts_at": st.none() | INSTANTS,
        "max_runs": st.none() | SECONDS,
        "jitter": SECONDS,
        "priority": st.integers(-(2**31) + 1, 2**31 - 1),
        "overlap": st.sampled_from(Overlap.values),
        "misfire": st.sampled_from(Misfire.values),
        "misfire_grace": SECONDS,
        "max_attempts": SECONDS,
        "backoff": st.none() | SECONDS | st.lists(SECONDS, min_size=1, max_size=3),
        "timeout": st.none() | SECONDS,
        "result_ttl": st.none() | SECONDS,
        "failure_ttl": st.none() | SECONDS,
        "start_within": st.none() | st.integers(0, 100),
        "target": st.sampled_from(["worker", "celery", "django_tasks:other", "pgwerk"]),
        "next_run_at": st.none() | INSTANTS,
        "anchor_at": INSTANTS,
        "last_run_at": st.none() | INSTANTS,
        "paused": st.booleans(),
        "run_count": st.integers(0, 2**31 - 1),
        "error": TEXT | st.just(""),
        "origin": st.sampled_from(["code", "api", "admin"]),
    }
)


@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(TEXT, DEFINITIONS, min_size=1, max_size=4))
def test_any_definition_survives(
    run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path, definitions: dict[str, Any]
) -> None:
    Schedule.objects.all().delete()
    for name, definition in definitions.items():
        columns = {"name": name, "function": "tests.functions.noop", **definition}
        made = Schedule.objects.create(**columns.pop("rule"), **columns)
        Schedule.objects.filter(pk=made.pk).update(
            next_run_at=definition["next_run_at"], replan=False, error=definition["error"]
        )
    before, text = exported(), export(capsys)
    assert not any(line.startswith("could") for line in wiped(run, text, tmp_path))
    for one, other in zip(exported(), before, strict=True):
        assert one == other
    assert export(capsys) == text
