"""Rows that another program wrote: one that nobody can make sense of keeps nobody from the others; and no line of a log is forged."""

import io
import json
import logging
from typing import Any

import pytest
from django.core.management import call_command
from django.db import DatabaseError, connection, transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgwerk_django import signals
from pgwerk_django.models import Job, Schedule, Status
from pgwerk_django.scheduler import Scheduler
from pgwerk_django.test import run_jobs
from pgwerk_django.tick import tick
from pgwerk_django.worker import Worker
from tests import functions
from tests.hostile import TEXTS

BOMBS = {
    "5000 digits": "[1e5000]",
    "100000 digits": "[1e100000]",
    "5000 deep": "[" * 5000 + "]" * 5000,
    "no list": '{"a": 1}',
    "a number": "7",
    "null": "null",
}


def insert(**columns: Any) -> bool:
    """By plain SQL; whether PostgreSQL takes it."""
    given = {"function": "tests.functions.noop", "origin": "api", **columns}
    names = ", ".join(given)
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(
                f"INSERT INTO _pgwerk_schedules ({names}) VALUES ({', '.join(['%s'] * len(given))})", [*given.values()]
            )
    except (DatabaseError, ValueError, UnicodeError):
        return False
    return True


def bad_rows() -> list[dict[str, Any]]:
    """As far as PostgreSQL takes them."""
    columns = {
        "cron": ["", "* * * *", "99 * * * *", "0 0 30 2 *", "@reboot", "%s", *[text[:200] for text in TEXTS.values()]],
        "timezone": ["", "Mars/Olympus", "../../etc/passwd", "right/UTC", *[text[:100] for text in TEXTS.values()]],
        "function": ["", "no.such.function", "os.system", *[text[:500] for text in TEXTS.values()]],
        "target": ["", "nobody", "django_tasks:nobody", "celery:", *[text[:50] for text in TEXTS.values()]],
        "queue": ["", *[text[:100] for text in TEXTS.values()]],
        "overlap": ["", "NEVER", "buffer_one"],
        "misfire": ["", "NEVER"],
        "misfire_grace": [-1, -(2**31), 2**31 - 1],
        "jitter": [-1, -(2**31), 2**31 - 1],
        "priority": [-(2**31), 2**31 - 1],
        "max_runs": [-1, 0, -(2**31), 2**31 - 1],
        "run_count": [-1, 2**31 - 1],
        "max_attempts": [-1, 0, 2**31 - 1],
        "timeout": [-1, 0, 2**31 - 1],
        "result_ttl": [-1, -(2**31), 2**31 - 1],
        "failure_ttl": [-1, -(2**31), 2**31 - 1],
        "start_within": [-1, -(2**31), 2**31 - 1],
        "backoff": ["[]", '"x"', "[-1]", "[1e5000]", '{"a": 1}', "-5", "null"],
        "args": [*BOMBS.values()],
        "kwargs": [*BOMBS.values(), "[]"],
        "meta": [*BOMBS.values(), '{"task_backend": [1]}'],
        "anchor_at": ["1900-01-01Z", "8999-12-31Z", "infinity"],
        "starts_at": ["1900-01-01Z", "8999-12-31Z", "-infinity"],
        "ends_at": ["1900-01-01Z", "8999-12-31Z", "infinity"],
        "last_run_at": ["1900-01-01Z", "8999-12-31Z"],
        "next_run_at": ["1900-01-01Z", "8999-12-31Z", "infinity"],
        "origin": ["", "nobody"],
        "interval": [1, 315360000],
    }
    return [{column: value} for column, values in columns.items() for value in values]


@pytest.fixture
def rows(db: None) -> list[str]:
    """Many bad rows that are due, and one good one."""
    names = []
    for number, bad in enumerate(bad_rows()):
        usual = {} if bad.keys() & {"cron", "interval"} else {"interval": 60}
        due = {} if "next_run_at" in bad else {"next_run_at": "2026-01-01T00:00:00Z"}
        if insert(name=f"{number:03} {next(iter(bad))}", **usual, **due, **bad):
            names.append(f"{number:03} {next(iter(bad))}")
    assert len(names) > 100
    assert insert(name="good", interval=60, next_run_at="2026-01-01T00:00:00Z")
    return names


@pytest.mark.parametrize("triggered", [False, True], ids=["due", "triggered"])
def test_a_tick_goes_on(rows: list[str], triggered: bool) -> None:
    if triggered:
        Schedule.objects.all().trigger()
    while tick(using="default"):
        pass
    good = Schedule.objects.get(name="good")
    assert (good.error, Job.objects.filter(schedule_name="good", kind="scheduled").count()) == ("", 1)
    # Each is set aside, or has gone on; what is left is of newer code, for all we know.
    still_due = set(Schedule.objects.due().values_list("name", flat=True))
    assert {name[4:] for name in still_due} <= {"overlap", "misfire"}
    for error in Schedule.objects.exclude(error="").values_list("error", flat=True):
        assert len(error) <= 2000


def test_everything_else_goes_on(rows: list[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "pgwerk_django")
    scheduler = Scheduler(on_unregistered="keep")
    scheduler.run_once()
    assert len(scheduler.list_schedules()) == len(rows) + 1
    for arguments in (("list",), ("next",), ("export",)):
        call_command("schedules", *arguments, stdout=io.StringIO())
    call_command("queues", "list", stdout=io.StringIO())
    call_command("syncschedules", "--check", "--on-unregistered=keep", stdout=io.StringIO())
    run_jobs()
    assert Job.objects.filter(schedule_name="good").get().status == Status.SUCCESSFUL
    assert not Job.objects.filter(status__in=[Status.READY, Status.RUNNING], target="worker").exclude(
        schedule_name__regex="(queue|target|start_within|jitter|next_run_at|backoff)$"
    )
    assert all(record.getMessage().isprintable() for record in caplog.records)


def test_what_code_declares_is_mended_by_the_next_sync(db: None) -> None:
    from pgwerk_django import schedule

    schedule(functions.noop, interval=60, _name="declared", args=[])
    Scheduler().sync()
    with connection.cursor() as cursor:
        for bomb in BOMBS.values():
            cursor.execute("UPDATE _pgwerk_schedules SET args = %s, kwargs = '{\"a\": 1e6000}'", [bomb])
            assert Scheduler().sync() == (0, 1, [])
    row = Schedule.objects.get()
    assert (row.args, row.kwargs) == ([], {})


@pytest.mark.process
@pytest.mark.django_db(transaction=True)
def test_a_worker_fails_what_it_cannot_read_and_goes_on() -> None:
    bombs = [{column: bomb} for column in ("args", "kwargs", "meta", "backoff", "errors") for bomb in BOMBS.values()]
    with connection.cursor() as cursor:
        for bomb in bombs:
            ((column, value),) = bomb.items()
            cursor.execute(
                f"INSERT INTO _pgwerk_jobs (function, max_attempts, {column}) VALUES ('tests.functions.fail', 2, %s)",
                [value],
            )
        cursor.execute("INSERT INTO _pgwerk_jobs (function, priority) VALUES ('tests.functions.noop', -1)")
        cursor.execute(
            "UPDATE _pgwerk_jobs SET max_attempts = 1 WHERE id IN (SELECT id FROM _pgwerk_jobs ORDER BY id LIMIT 20)"
        )
    Worker(burst=True, concurrency=1).run()
    assert Job.objects.get(priority=-1).status == Status.SUCCESSFUL
    assert not Job.objects.filter(status=Status.RUNNING).exists()
    assert Job.objects.exclude(error="").count() == len(bombs)


@pytest.mark.process
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("function", ["returns_too_much", "says_too_much"])
def test_a_job_says_too_much(function: str) -> None:
    """Neither what it returns nor how far it says it is takes the worker with it."""
    from pgwerk_django.jobs import enqueue

    enqueue(f"tests.functions.{function}")
    enqueue(functions.noop, _priority=-1)
    Worker(burst=True, concurrency=1).run()
    bad, good = Job.objects.order_by("-priority")
    assert (bad.status, good.status) == (Status.FAILED, Status.SUCCESSFUL)
    assert "must be" in bad.error


# -- log lines -----------------------------------------------------------------------------------------------------------

SIGNALS = [*signals._LEVELS]


@pytest.mark.parametrize("signal", SIGNALS, ids=[name for name, _ in signals._LEVELS.values()])
def test_no_value_forges_a_line(signal: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "pgwerk_django")
    job = Job(key="k\nlevel=CRITICAL", schedule_name="a\nb")
    for value in TEXTS.values():
        caplog.clear()
        signals.send_now(signal, name=value, names=[value] * 10, job=job, error=value)
        assert len(caplog.records) <= 1
        for record in caplog.records:
            line = record.getMessage()
            assert line.isascii()
            assert line.isprintable()
            assert line.split(" ")[0] == signals._LEVELS[signal][0]
            assert len(line) < 50_000  # as escaped


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.dictionaries(st.sampled_from(["name", "by", "reason"]), st.text(), min_size=1))
def test_a_log_line_can_be_read_back(values: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "pgwerk_django")
    caplog.clear()
    signals.send_now(signals.schedules_paused, **values)
    (record,) = caplog.records
    decoder, rest, read = json.JSONDecoder(), record.getMessage().partition(" ")[2], {}
    while rest:
        name, _, rest = rest.partition("=")
        if rest.startswith('"'):
            read[name], end = decoder.raw_decode(rest)
            rest = rest[end:].lstrip(" ")
        else:
            read[name], _, rest = rest.partition(" ")
    assert read == {name: value for name, value in values.items() if value}
    assert record.levelno == logging.INFO


def test_arguments_are_in_no_log_line(db: None, caplog: pytest.LogCaptureFixture) -> None:
    """Where they are secrets, and even when they do not fit."""
    caplog.set_level("DEBUG")
    caplog.set_level("INFO", "django.db.backends")  # DEBUG=True would log statements; that is Django's to say
    Scheduler().interval(60, functions.log_in, "hunter2", token="hunter2", _name="s", _meta={"key": "hunter2"})
    Scheduler().trigger("s")
    tick(using="default")
    Job.objects.update(kwargs={"nonsense": "hunter2", "password": "hunter2"})
    run_jobs()
    assert Job.objects.get().status == Status.FAILED
    assert caplog.records
    assert "hunter2" not in caplog.text
