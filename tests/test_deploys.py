"""Rolling deploys: old and new code run side by side, restart in any order, and harm each other's schedules never."""

import datetime as dt
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pgwerk_django import signals
from pgwerk_django.models import Job, Process, Schedule
from pgwerk_django.registry import Registry, define
from pgwerk_django.scheduler import Scheduler
from pgwerk_django.sync import StandBy, stand_by, synchronise
from tests import functions
from tests.time_travel import MINUTE, SECOND, make, make_due, now
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


# -- functions that were removed from the code ----------------------------------------------------------------------


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of this project, and beside it a namespace package, which other services may share."""
    for file, text in (
        ("shop/__init__.py", ""),
        ("shop/tasks.py", "def kept(): ...\n"),
        ("shop/broken.py", "import a_package_that_is_not_installed\n"),
        ("shop/leaving.py", "raise SystemExit(1)\n"),
        ("company/tasks.py", "def kept(): ...\n"),
    ):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] in ("shop", "company")]:
        del sys.modules[name]


REMOVED = ["shop.tasks.gone", "shop.renamed.kept", "company.tasks.gone", "tests.functions.gone"]
PERHAPS_ELSEWHERE = [
    "shop.tasks.kept",  # which only lost its decorator
    "shop.broken.task",
    "shop.leaving.task",
    "shop.folder.module.task",
    "company.billing.task",
    "removed_app.tasks.task",
    "removed_module.task",
]


def orphaned(function: str, target: str = "worker") -> None:
    """A row that code declared a moment ago, and no longer does."""
    make(function, _name=function, interval=3600, _target=target)
    Schedule.objects.filter(name=function).update(last_registered_at=now())


@pytest.mark.parametrize("function", [*REMOVED, *PERHAPS_ELSEWHERE])
def test_a_schedule_has_no_grace_if_its_function_was_removed_and_nobody_is_left_to_declare_it(
    shop: Path, function: str
) -> None:
    orphaned(function)
    assert restart(code()) == ([function] if function in REMOVED else [])
    assert alive() == (set() if function in REMOVED else {function})


@pytest.mark.parametrize("on_unregistered", ["pause", "keep", "delete"])
def test_a_removed_function_is_reconciled_as_told(shop: Path, on_unregistered: str) -> None:
    orphaned("shop.tasks.gone")
    restart(code(), on_unregistered)
    found = list(Schedule.objects.values_list("paused", flat=True))
    assert found == {"pause": [True], "keep": [False], "delete": []}[on_unregistered]


def test_a_celery_task_may_have_a_name_that_its_module_lacks(shop: Path) -> None:
    orphaned("shop.tasks.gone", target="celery")
    assert restart(code()) == []


@pytest.mark.parametrize("silent_for", [0 * SECOND, 4 * MINUTE])
def test_a_removed_function_keeps_its_grace_while_another_scheduler_lives_or_has_crashed(
    shop: Path, silent_for: dt.timedelta
) -> None:
    orphaned("shop.tasks.gone")
    ours, other = (Process.here("scheduler", version="1") for _ in range(2))
    worker = Process.here("worker", version="1")
    for process in (ours, other, worker):
        process.beat(using="default")
    Process.objects.filter(pk=other.pk).update(heartbeat_at=now() - silent_for)
    assert restart(code()) == []
    go_on(code(), process=ours)
    assert alive() == {"shop.tasks.gone"}
    other.end(using="default")  # a goodbye
    go_on(code(), process=ours)
    assert alive() == set()


def test_an_import_that_fails_on_the_database_fails_no_sync(shop: Path) -> None:
    (shop / "shop" / "asking.py").write_text(
        "from django.db import connection\nconnection.cursor().execute('SELECT nonsense')\n"
    )
    orphaned("shop.asking.task")
    assert restart(code("new")) == []
    assert alive() == {"new", "shop.asking.task"}


@pytest.fixture
def undeclared() -> Iterator[list[dict[str, Any]]]:
    heard: list[dict[str, Any]] = []

    def listener(sender: Any, signal: Any, **event: Any) -> None:
        heard.append(event)

    signals.schedules_undeclared.connect(listener)
    yield heard
    signals.schedules_undeclared.disconnect(listener)


def test_a_start_announces_what_is_about_to_be_paused(
    shop: Path, undeclared: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    restart(code(*OLD))
    assert undeclared == []
    orphaned("shop.tasks.gone")
    pass_by(2 * MINUTE)
    restart(code(*NEW))
    (event,) = undeclared
    assert event["names"] == ["old"]  # the other is paused by now
    assert 170 <= event["seconds"] <= 180
    (line,) = [record for record in caplog.records if record.message.startswith("schedules_undeclared ")]
    assert line.levelname == "WARNING"
    for text in ("names=old", f"paused in {event['seconds']} s unless another process declares", "syncschedules"):
        assert text in line.message
    pass_by(4 * MINUTE)
    restart(code(*NEW))
    assert len(undeclared) == 1


def test_what_is_announced_is_what_will_be_done(undeclared: list[Any]) -> None:
    restart(code(*OLD))
    restart(code(*NEW), "keep")
    restart(code(*OLD, *NEW), "delete")
    assert undeclared == []
    restart(code(*NEW), "delete")
    assert "deleted in" in undeclared[0]["hint"]
    restart(code(*NEW), grace=dt.timedelta())  # syncschedules
    assert len(undeclared) == 1


def test_one_pass_from_cron_announces_too(undeclared: list[Any], scheduler: Scheduler) -> None:
    restart(code("old"))
    scheduler.run_once()
    assert [event["names"] for event in undeclared] == [["old"]]


SMALL_SITE = """
import django
django.setup()
from django.core.management import call_command
import shop.tasks
call_command("runscheduler", with_worker=True, concurrency=1)
"""
KEPT = "from pgwerk_django import schedule\n@schedule(interval=3600)\ndef kept(): ...\n"
GONE = "@schedule(interval=3600)\ndef gone(): ...\n"


def test_a_restart_without_a_function_fails_no_job(start: Any, shop: Path) -> None:
    tasks = shop / "shop" / "tasks.py"
    environment = {"PYTHONPATH": str(shop), "PYTHONDONTWRITEBYTECODE": "1"}

    def run_both() -> Any:
        """Start, and wait until a job of the schedule that stays has run."""
        running = start("-c", SMALL_SITE, **environment)
        known = Job.objects.filter(schedule_name="shop.tasks.kept").count()
        wait_until(lambda: Process.objects.filter(role="scheduler").exists() or running.process.poll() is not None)
        Schedule.objects.get(name="shop.tasks.kept")
        Scheduler().trigger("shop.tasks.kept")
        done = Job.objects.filter(schedule_name="shop.tasks.kept", status="SUCCESSFUL")
        wait_until(lambda: done.count() > known)
        return running

    tasks.write_text(KEPT + GONE)
    assert run_both().stop() == 0
    for row in Schedule.objects.all():
        make_due(row)
    tasks.write_text(KEPT)
    second = run_both()
    assert second.stop() == 0
    assert not Job.objects.filter(schedule_name="shop.tasks.gone").exists()
    assert not Job.objects.filter(status="FAILED").exists()
    assert Schedule.objects.get(name="shop.tasks.gone").paused_by == "sync"
    assert "schedules_orphaned names=shop.tasks.gone" in second.text()
