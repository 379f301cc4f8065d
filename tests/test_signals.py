"""Events and their log lines."""

import logging

import pytest
from django.db import transaction

from pgwerk_django import signals
from pgwerk_django.models import Schedule
from pgwerk_django.scheduler import Scheduler
from tests.time_travel import SECOND, make


def test_a_value_cannot_forge_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pgwerk_django")
    signals.send_now(signals.schedule_set_aside, name="a\nERROR forged", error='quote " and space')
    (record,) = caplog.records
    assert record.getMessage() == 'schedule_set_aside name="a\\nERROR forged" error="quote \\" and space"'
    assert record.levelno == logging.ERROR


def test_a_receiver_that_fails_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken(**event: object) -> None:
        raise RuntimeError("a receiver's own fault")

    signals.ticked.connect(broken)
    try:
        signals.send_now(signals.ticked, schedules=1)
    finally:
        signals.ticked.disconnect(broken)


@pytest.mark.django_db(transaction=True)
def test_events_are_sent_after_the_commit_that_made_them_true(scheduler: Scheduler) -> None:
    make(_name="x")
    heard: list[object] = []
    signals.schedules_paused.connect(lambda **event: heard.append(event["names"]), weak=False, dispatch_uid="test")
    try:
        with transaction.atomic():
            Schedule.objects.all().pause()
            assert heard == []
        assert heard == [["x"]]
        with transaction.atomic():
            Schedule.objects.all().resume()
            transaction.set_rollback(True)
    finally:
        signals.schedules_paused.disconnect(dispatch_uid="test")
    assert heard == [["x"]]


@pytest.mark.django_db(transaction=True)
def test_a_tick_is_one_line(scheduler: Scheduler, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(3):
        make(ago=25 * SECOND, interval=10, _name=f"s{number}")
    caplog.set_level(logging.INFO, "pgwerk_django")
    scheduler.tick()
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("ticked")]
    assert line.startswith("ticked schedules=3 jobs=3 skipped=6 milliseconds=")
