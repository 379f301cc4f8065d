"""`PGWERK["DATABASE"]`: the tables may stand in another database than the default one, and nothing touches that."""

import pytest
from django.core.management import call_command
from django.db import connections, transaction
from django.test.utils import CaptureQueriesContext

from pgwerk_django import schedule
from pgwerk_django.jobs import enqueue
from pgwerk_django.models import Job, Schedule
from pgwerk_django.registry import registry
from pgwerk_django.scheduler import Scheduler
from pgwerk_django.worker import Worker
from tests import functions


@pytest.mark.process
def test_everything_happens_on_the_configured_database(elsewhere: str, capsys: pytest.CaptureFixture[str]) -> None:
    with CaptureQueriesContext(connections["default"]) as captured:
        schedule(functions.noop, interval=60)
        schedule(functions.noop, interval=60, _name="gone")
        scheduler = Scheduler()
        assert scheduler.sync() == (2, 0, [])
        registry.remove("gone")
        assert scheduler.sync() == (0, 0, ["gone"])
        row = scheduler.interval(60, functions.add, 1, _name="added")
        scheduler.schedule_in(60, functions.noop, _name="once")
        scheduler.update("added", queue="q")
        scheduler.pause("added")
        scheduler.resume("added")
        scheduler.trigger("added")
        assert scheduler.tick() == 1
        assert enqueue(functions.add, 2, _key="k") is not None
        assert enqueue(functions.add, 2, _key="k") is None
        Worker(burst=True).run()
        row.refresh_from_db()
        row.description = "changed"
        row.save()
        scheduler.trigger("added")
        scheduler.tick()
        scheduler.delete("added")
        call_command("syncschedules", "--check")
        call_command("schedules", "list")
        call_command("schedules", "trigger", "once")
        call_command("runscheduler", "--once", "--with-worker")
    assert [query["sql"] for query in captured.captured_queries] == []
    assert not Schedule.objects.using(elsewhere).filter(name="added").exists()
    statuses = Job.objects.using(elsewhere).values_list("schedule_name", "status").order_by("id")
    assert list(statuses) == [
        ("added", "SUCCESSFUL"),
        ("", "SUCCESSFUL"),
        ("added", "CANCELLED"),
        ("once", "SUCCESSFUL"),
    ]


def test_events_wait_for_the_commit_on_that_database(elsewhere: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "pgwerk_django")
    scheduler = Scheduler()
    scheduler.interval(60, functions.noop)
    with transaction.atomic(using=elsewhere):
        scheduler.pause("tests.functions.noop")
        assert "schedules_paused" not in caplog.text
    assert "schedules_paused" in caplog.text


def test_a_scheduler_may_be_told_another_database(elsewhere: str, settings: object) -> None:
    settings.PGWERK = {}  # type: ignore[attr-defined]
    row = Scheduler(using=elsewhere).interval(60, functions.noop)
    assert row._state.db == elsewhere
