"""Rolling deploys: old and new code run side by side, restart in any order, and harm each other's schedules never."""

import datetime as dt
import time
from types import SimpleNamespace
from typing import Any

import pytest

from pgwerk_django import signals
from pgwerk_django.models import Process, Schedule
from pgwerk_django.registry import Registry, define
from pgwerk_django.scheduler import Scheduler
from pgwerk_django.sync import StandBy, stand_by, synchronise
from tests import functions
from tests.time_travel import MINUTE, SECOND, make, now
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)
GRACE = 5 * MINUTE


def code(*names: str) -> Registry:
    """A version of the code that declares these."""
    registry = Registry()
    for name in names:
        registry.add(define(functions.noop, {"interval": 3600, "_name": name}))
    return registry


def restart(version: Registry, on_unregistered: str = "pause", grace: dt.timedelta = GRACE) -> list[str]:
    return synchronise(version, on_unregistered=on_unregistered, using="default", grace=grace).reconciled


def go_on(version: Registry, on_unregistered: str = "pause", **options: Any) -> None:
    stand_by(version, on_unregistered=on_unregistered, using="default", grace=GRACE, **options)


def pass_by(time: dt.timedelta) -> None:
    """Let so much time pass, for all that is on record of declarations."""
    for row in Schedule.objects.exclude(last_registered_at=None):
        Schedule.objects.filter(pk=row.pk).update(last_registered_at=row.last_registered_at - time)


def alive() -> set[str]:
    return set(Schedule.objects.filter(paused=False).values_list("name", flat=True))


OLD, NEW = ("both", "old"), ("both", "new")


@pytest.mark.parametrize("on_unregistered", ["pause", "keep", "delete"])
def test_old_and_new_code_may_restart_in_any_order(on_unregistered: str) -> None:
    old, new = code(*OLD), code(*NEW)
    restart(old, on_unregistered)
    for version in (new, old, old, new, old, new, new):
        assert restart(version, on_unregistered) == []
        pass_by(2 * MINUTE)
        go_on(old, on_unregistered)
        go_on(new, on_unregistered)
        assert alive() == {"both", "old", "new"}


@pytest.mark.parametrize(("on_unregistered", "left"), [("pause", {"both", "new"}), ("keep", {"both", "old", "new"})])
def test_when_the_last_of_the_old_code_has_ended_its_schedules_do(on_unregistered: str, left: set[str]) -> None:
    restart(code(*OLD), on_unregistered)
    restart(code(*NEW), on_unregistered)
    for _ in range(3):
        pass_by(1.5 * MINUTE)
        go_on(code(*NEW), on_unregistered)
        assert alive() == {"both", "old", "new"}
    pass_by(1.5 * MINUTE)
    go_on(code(*NEW), on_unregistered)
    assert alive() == left


def test_an_orphan_may_be_deleted_after_the_grace_too() -> None:
    restart(code(*OLD))
    pass_by(GRACE + MINUTE)
    go_on(code(*NEW), "delete")
    assert set(Schedule.objects.values_list("name", flat=True)) == {"both"}


def test_a_row_that_no_process_ever_declared_is_an_orphan_at_once() -> None:
    make(_name="by hand")
    Schedule.objects.update(last_registered_at=None)
    assert restart(code()) == ["by hand"]


def test_the_explicit_command_goes_by_its_own_code_at_once(scheduler: Scheduler) -> None:
    restart(code(*OLD))
    assert scheduler.sync()[2] == ["both", "old"]


def test_what_a_sync_of_other_code_paused_is_resumed_by_whoever_still_declares_it() -> None:
    restart(code(*NEW))
    assert restart(code(*OLD), grace=dt.timedelta()) == ["new"]
    go_on(code(*NEW))
    assert alive() == {"both", "old", "new"}


def test_a_persons_pause_outlives_all_of_it() -> None:
    restart(code(*NEW))
    Schedule.objects.pause(by="ada")
    go_on(code(*NEW))
    restart(code(*NEW))
    assert alive() == set()


def test_who_was_away_lets_others_speak_before_it_judges() -> None:
    restart(code(*OLD))
    restart(code(*NEW))
    pass_by(10 * MINUTE)  # an outage, for all of them
    go_on(code(*NEW), "delete", judging=False)
    go_on(code(*OLD), "delete", judging=False)
    go_on(code(*NEW), "delete")
    assert alive() == {"both", "old", "new"}


@pytest.mark.parametrize(("away", "left"), [(10 * MINUTE, {"both", "old", "new"}), (2 * MINUTE, {"both", "new"})])
def test_a_scheduler_knows_how_long_it_was_away(
    monkeypatch: pytest.MonkeyPatch, away: dt.timedelta, left: set[str]
) -> None:
    restart(code(*OLD))
    restart(code(*NEW))
    pass_by(10 * MINUTE)
    one = StandBy(code(*NEW), on_unregistered="delete", using="default")
    later = SimpleNamespace(monotonic=lambda: time.monotonic() + away.total_seconds())
    for module in ("sync", "loop"):
        monkeypatch.setattr(f"pgwerk_django.{module}.time", later)
    one.step(lock_timeout=SECOND)
    assert alive() == left


DECLARES_ONE = """
import django
django.setup()
from django.core.management import call_command
from pgwerk_django import schedule
from tests import functions
schedule(functions.noop, interval=3600)
call_command("runscheduler")
"""


def test_live_schedulers_say_so_and_find_orphans_without_a_restart(start: Any) -> None:
    """With a real process: it declares one of these rows, an earlier version of the code had declared the others."""
    running = start("-c", DECLARES_ONE, PGWERK_ORPHAN_GRACE="10")
    wait_until(lambda: Process.objects.exists())
    registered_at = Schedule.objects.get().last_registered_at
    make(_name="fresh", interval=3600)
    Schedule.objects.filter(name="fresh").update(last_registered_at=now() + MINUTE)
    make(_name="stale", interval=3600)
    Schedule.objects.filter(name="stale").update(last_registered_at=now() - MINUTE)
    wait_until(lambda: Schedule.objects.get(name="stale").paused)
    assert alive() == {"tests.functions.noop", "fresh"}
    wait_until(lambda: Schedule.objects.get(name="tests.functions.noop").last_registered_at > registered_at)
    assert running.stop() == 0
    assert "schedules_orphaned names=stale" in running.text()


def test_a_look_for_orphans_that_finds_none_tells_nobody() -> None:
    restart(code(*NEW))
    told: list[Any] = []

    def listener(**event: Any) -> None:
        told.append(event)

    for signal in (signals.schedules_orphaned, signals.schedules_resumed, signals.schedules_paused):
        signal.connect(listener)
    try:
        go_on(code(*NEW))
    finally:
        for signal in (signals.schedules_orphaned, signals.schedules_resumed, signals.schedules_paused):
            signal.disconnect(listener)
    assert told == []
