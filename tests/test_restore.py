"""What the operations page says of restores, copies and clocks is enough: its own blocks of code are run."""

import datetime as dt

import pytest
from django.db import connection

from pgwerk_django.jobs import enqueue
from pgwerk_django.models import Job, Schedule
from pgwerk_django.scheduler import Scheduler
from pgwerk_django.tick import tick
from tests.blocks import Block, blocks_of
from tests.processes import ROOT
from tests.time_travel import HOUR, MINUTE, SECOND, jobs, make, now, reread

pytestmark = pytest.mark.django_db(transaction=True)


def block(text: str, language: str = "python") -> Block:
    (found,) = (
        each for each in blocks_of(ROOT / "docs" / "operations.md") if text in each.text and each.language == language
    )
    return found


def run(text: str, language: str = "python") -> None:
    found = block(text, language)
    if language == "sql":
        with connection.cursor() as cursor:
            cursor.execute(found.text)
    else:
        exec(compile(found.text, "docs/operations.md", "exec"), {})


def everything(scheduler: Scheduler) -> None:
    """Something of each that may run: due, triggered, paused and triggered, a one-off, jobs that wait and that wait for later."""
    make(ago=SECOND, _name="due")
    make(ago=-HOUR, _name="triggered")
    make(ago=SECOND, _name="paused")
    scheduler.schedule_in(0, "tests.functions.noop", _name="one-off")
    scheduler.pause("paused")
    scheduler.trigger("paused")
    scheduler.trigger("triggered")
    enqueue("tests.functions.noop")
    enqueue("tests.functions.noop", _delay=3600)


def test_nothing_of_a_copy_of_production_runs(scheduler: Scheduler) -> None:
    everything(scheduler)
    run("a copy of production")
    while scheduler.tick():
        pass
    assert set(Job.objects.values_list("status", flat=True)) == {"CANCELLED"}
    assert not Schedule.objects.filter(paused=False).exists()


def test_after_a_restore_nothing_is_made_up_for(scheduler: Scheduler) -> None:
    everything(scheduler)
    Job.objects.all().delete()
    run("nothing is to be made up for")
    while scheduler.tick():
        pass
    assert not Job.objects.exists()
    assert list(Schedule.objects.filter(paused=True).values_list("name", flat=True)) == ["paused"]


@pytest.mark.parametrize(("text", "language", "runs"), [("last_run_at = NULL", "sql", 1), ('by="clock"', "python", 0)])
def test_after_the_clock_was_ahead(scheduler: Scheduler, text: str, language: str, runs: int) -> None:
    row = make(ago=-MINUTE, _name="ahead")
    tick(using="default", now=now() + dt.timedelta(days=365))
    (made,) = (job for job in jobs(row) if job.status == "READY")
    Job.objects.update(enqueued_at=now() + dt.timedelta(days=365), run_at=now() + dt.timedelta(days=365))
    well = make(ago=-HOUR, _name="well")
    run("enqueued_at > now()", "sql")
    assert Job.objects.get(pk=made.pk).run_at <= now()
    Job.objects.filter(pk=made.pk).update(status="SUCCESSFUL")
    run(text, language)
    assert scheduler.tick() == runs
    assert Job.objects.filter(schedule_name="ahead", status="READY").count() == runs
    following = reread(row).next_run_at
    assert following is not None
    assert now() < following <= now() + MINUTE
    assert reread(well).next_run_at == well.next_run_at
