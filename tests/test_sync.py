"""Sync: what code declares reaches the table, and a deploy harms nothing."""

import datetime as dt
import json
import threading
import time
from typing import Any

import psycopg
import pytest
from django.core.management import call_command
from django.db import OperationalError, connections

from pgwerk_django import schedule, signals, sync
from pgwerk_django.importers import import_text, json_file
from pgwerk_django.models import Job, Origin, Schedule
from pgwerk_django.registry import registry
from pgwerk_django.scheduler import Scheduler
from tests import functions
from tests.time_travel import HOUR, MINUTE, SECOND, jobs, make, make_due, now, reread
from tests.waiting import wait_until, waiting_for_a_lock

pytestmark = pytest.mark.django_db(transaction=True)
NAME = "tests.functions.noop"


def declare(**options: Any) -> None:
    registry.clear()
    schedule(functions.noop, **{"interval": 3600, **options})


def whole_row() -> dict[str, Any]:
    return Schedule.objects.filter(name=NAME).values().get()


def test_a_declaration_becomes_a_planned_row(scheduler: Scheduler) -> None:
    declare(args=[], _queue="etl", _description="what it is for")
    assert scheduler.sync() == (1, 0, [])
    row = Schedule.objects.get()
    assert (row.origin, row.queue, row.interval, row.description) == (Origin.CODE, "etl", 3600, "what it is for")
    assert row.next_run_at == row.anchor_at + HOUR
    assert row.last_registered_at is not None
    assert not row.replan


def move_in() -> None:
    """From an export, with another rule."""
    exported = json.loads("".join(json_file.dump(Schedule.objects.all())))
    exported["schedules"][0].update(cron="0 0 1 1 *", interval=None)
    report = import_text(json.dumps(exported), timezone=None, using="default", dry_run=False)
    assert [line.outcome for line in report.lines] == ["updated"]


DOORS: dict[str, Any] = {
    "sync": lambda: (declare(cron="0 0 1 1 *", interval=None, _misfire="ALL"), Scheduler().sync()),
    "cron": lambda: Scheduler().cron("0 0 1 1 *", NAME, _name=NAME, _misfire="ALL"),
    "schedule": lambda: Scheduler().schedule(NAME, cron="0 0 1 1 *", _name=NAME, _misfire="ALL"),
    "update": lambda: Scheduler().update(NAME, cron="0 0 1 1 *"),
    "import": move_in,
}


@pytest.mark.parametrize("door", DOORS)
def test_a_due_time_that_passes_while_a_change_waits_for_the_row_is_not_lost(
    scheduler: Scheduler, other_session: psycopg.Connection, door: str
) -> None:
    """The clock is read once the row is locked: else the new rule is planned over what has passed meanwhile."""
    declare(_misfire="ALL")
    scheduler.sync()
    if door != "sync":
        registry.clear()
        Schedule.objects.update(origin="api")
    done: list[Any] = []

    def change() -> None:
        try:
            DOORS[door]()
            done.append(door)
        finally:
            connections.close_all()

    with other_session.transaction():
        other_session.execute("SELECT FROM _pgwerk_schedules FOR UPDATE")
        thread = threading.Thread(target=change)
        thread.start()
        wait_until(waiting_for_a_lock)
        # A due time that lies after the beginning of the wait, and before its end.
        moved = "UPDATE _pgwerk_schedules SET next_run_at = clock_timestamp() RETURNING next_run_at"
        (due_at,) = other_session.execute(moved).fetchone()
    thread.join()
    assert done
    while scheduler.tick():
        pass
    assert [job.due_at for job in jobs(NAME)] == [due_at]
    after = Schedule.objects.get()
    assert (after.cron, after.next_run_at and after.next_run_at > now()) == ("0 0 1 1 *", True)


def test_a_pause_that_ends_while_it_waits_for_the_row_is_planned_from_its_end(
    scheduler: Scheduler, other_session: psycopg.Connection
) -> None:
    """By SQL: to PostgreSQL the statement began before it waited."""
    row = scheduler.interval(3600, NAME, _name=NAME)
    scheduler.pause(NAME)

    def resume() -> None:
        Schedule.objects.update(paused=False)
        connections.close_all()

    with other_session.transaction():
        other_session.execute("SELECT FROM _pgwerk_schedules FOR UPDATE")
        thread = threading.Thread(target=resume)
        thread.start()
        wait_until(waiting_for_a_lock)
        other_session.execute("UPDATE _pgwerk_schedules SET next_run_at = clock_timestamp()")
    thread.join()
    assert reread(row).replan
    scheduler.tick()
    assert jobs(NAME) == []


def test_two_syncs_lock_rows_in_the_order_of_their_names(
    scheduler: Scheduler, other_session: psycopg.Connection
) -> None:
    """And not in that of the table: two that lock in different orders wait for each other for ever."""
    for name in ("b", "a", "c"):
        make(_name=name)
    schedule(functions.noop, interval=9, _name="a"), schedule(functions.noop, interval=9, _name="b")
    schedule(functions.noop, interval=9, _name="c")
    with other_session.transaction(force_rollback=True):
        other_session.execute("SELECT FROM _pgwerk_schedules WHERE name = 'a' FOR UPDATE")
        thread = threading.Thread(target=lambda: (scheduler.sync(), connections.close_all()))
        thread.start()
        wait_until(waiting_for_a_lock)
        # It holds none of the later names while it waits for the first.
        other_session.execute("SELECT FROM _pgwerk_schedules WHERE name IN ('b', 'c') FOR UPDATE NOWAIT")
    thread.join()
    assert set(Schedule.objects.values_list("interval", flat=True)) == {9}


def test_what_was_registered_ahead_of_the_clock_counts_from_now(scheduler: Scheduler) -> None:
    """Else no row of code's would be an orphan before that time has come."""
    declare()
    scheduler.sync()
    make(_name="orphan")
    Schedule.objects.update(last_registered_at=now() + 24 * HOUR)
    grace = dt.timedelta(seconds=2)
    sync.stand_by(registry, on_unregistered="pause", using="default", grace=grace)
    assert not Schedule.objects.filter(last_registered_at__gt=now()).exists()
    assert not Schedule.objects.filter(paused=True).exists()
    Schedule.objects.update(last_registered_at=now() - MINUTE)
    sync.stand_by(registry, on_unregistered="pause", using="default", grace=grace)
    assert Schedule.objects.get(paused=True).name == "orphan"


def test_an_unchanged_definition_changes_nothing(scheduler: Scheduler) -> None:
    declare()
    scheduler.sync()
    before = whole_row()
    assert scheduler.sync() == (0, 0, [])
    assert whole_row() == before


def test_an_hourly_schedule_fires_hourly_though_one_deploys_every_50_minutes(scheduler: Scheduler) -> None:
    """Ten hours, played by moving the row back in time instead of the clock forward."""
    declare()
    scheduler.sync()
    fired = 0
    for _ in range(12):
        row = Schedule.objects.get()
        back = 50 * MINUTE
        Schedule.objects.update(
            next_run_at=row.next_run_at - back, anchor_at=row.anchor_at - back, created_at=row.created_at - back,
            last_run_at=row.last_run_at - back if row.last_run_at else None, replan=False,
        )  # fmt: skip
        assert Scheduler().sync() == (0, 0, [])
        Scheduler().tick()
        fired += Job.objects.all().delete()[0]
    assert fired == 10


def test_a_due_time_already_passed_is_not_lost(scheduler: Scheduler) -> None:
    declare()
    scheduler.sync()
    due_at = make_due(Schedule.objects.get(), ago=10 * SECOND)
    declare(_queue="other", _description="new words")
    assert scheduler.sync() == (0, 1, [])
    scheduler.tick()
    assert [(job.due_at, job.queue) for job in jobs(NAME)] == [(due_at, "other")]


@pytest.mark.parametrize("change", [{"interval": 60}, {"interval": None, "cron": "* * * * *"}])
def test_nor_by_a_changed_recurrence_which_then_follows(scheduler: Scheduler, change: dict[str, Any]) -> None:
    declare()
    scheduler.sync()
    due_at = make_due(Schedule.objects.get(), ago=10 * SECOND)
    declare(**change)
    scheduler.sync()
    scheduler.tick()
    assert due_at in [job.due_at for job in jobs(NAME)]
    next_run_at = Schedule.objects.get().next_run_at
    assert next_run_at is not None
    assert now() < next_run_at <= now() + MINUTE


def test_a_changed_recurrence_is_planned_anew_from_now(scheduler: Scheduler) -> None:
    declare()
    scheduler.sync()
    declare(interval=None, cron="*/5 * * * *")
    assert scheduler.sync() == (0, 1, [])
    row = Schedule.objects.get()
    assert (row.cron, row.interval, row.replan) == ("*/5 * * * *", None, False)
    assert row.next_run_at is not None
    assert now() < row.next_run_at <= now() + 5 * MINUTE
    assert scheduler.tick() == 0


def test_a_changed_recurrence_that_comes_to_the_same_next_run(scheduler: Scheduler) -> None:
    declare()
    scheduler.sync()
    planned = Schedule.objects.get().next_run_at
    declare(_timezone="Asia/Tokyo")  # says nothing of an interval
    scheduler.sync()
    row = Schedule.objects.get()
    assert (row.timezone, row.next_run_at, row.replan) == ("Asia/Tokyo", planned, False)


@pytest.mark.parametrize("by", ["ada", ""])
def test_an_operators_pause_outlives_every_deploy(scheduler: Scheduler, by: str) -> None:
    declare()
    scheduler.sync()
    scheduler.pause(NAME, reason="incident", by=by)
    declare(interval=60)
    for on_unregistered in ("pause", "keep", "delete"):
        Scheduler(on_unregistered=on_unregistered).sync()
    row = Schedule.objects.get()
    assert (row.paused, row.paused_by, row.pause_reason, row.interval) == (True, by, "incident", 60)


def test_orphans_are_paused_and_come_back_with_their_declaration(scheduler: Scheduler) -> None:
    declare()
    scheduler.sync()
    registry.clear()
    assert scheduler.sync() == (0, 0, [NAME])
    orphan = Schedule.objects.get()
    assert (orphan.paused, orphan.paused_by) == (True, "sync")
    assert "no longer declared" in orphan.pause_reason
    assert scheduler.sync() == (0, 0, [])
    make_due(orphan, ago=5 * HOUR)
    declare()
    assert scheduler.sync() == (0, 1, [])
    back = Schedule.objects.get()
    assert (back.paused, back.paused_by, back.pause_reason) == (False, "", "")
    assert scheduler.tick() == 0
    assert back.next_run_at is not None
    assert back.next_run_at > now()


def test_keep_leaves_orphans_alone(scheduler: Scheduler) -> None:
    declare()
    scheduler.sync()
    before = whole_row()
    registry.clear()
    assert Scheduler(on_unregistered="keep").sync() == (0, 0, [])
    assert whole_row() == before


def test_delete_removes_orphans_and_cancels_what_waits(scheduler: Scheduler) -> None:
    declare()
    scheduler.sync()
    make_due(Schedule.objects.get())
    scheduler.tick()
    registry.clear()
    assert Scheduler(on_unregistered="delete").sync() == (0, 0, [NAME])
    assert not Schedule.objects.exists()
    assert [job.status for job in jobs(NAME)] == ["CANCELLED"]


@pytest.mark.parametrize("origin", ["api", "admin"])
@pytest.mark.parametrize("on_unregistered", ["pause", "delete"])
def test_rows_not_made_by_code_are_never_orphans(scheduler: Scheduler, origin: str, on_unregistered: str) -> None:
    row = make(_name="theirs")
    Schedule.objects.update(origin=origin)
    assert Scheduler(on_unregistered=on_unregistered).sync() == (0, 0, [])
    assert not reread(row).paused


def test_an_orphan_that_a_person_paused_stays_that_persons(scheduler: Scheduler) -> None:
    declare()
    scheduler.sync()
    scheduler.pause(NAME, by="ada")
    registry.clear()
    assert scheduler.sync() == (0, 0, [])
    declare()
    assert scheduler.sync() == (0, 0, [])
    assert Schedule.objects.get().paused_by == "ada"


def test_code_wins_column_by_column(scheduler: Scheduler) -> None:
    declare(kwargs={}, _priority=3)
    scheduler.sync()
    scheduler.update(NAME, queue="elsewhere", priority=9, _description="by hand")
    assert scheduler.sync() == (0, 1, [])
    row = Schedule.objects.get()
    assert (row.queue, row.priority, row.description) == ("default", 3, "")


def test_a_name_that_the_api_made_becomes_codes_own(scheduler: Scheduler) -> None:
    scheduler.interval(60, functions.noop)
    declare()
    assert scheduler.sync() == (0, 1, [])
    assert Schedule.objects.get().origin == Origin.CODE


def test_a_row_that_was_set_aside_gets_another_chance_by_a_new_definition(scheduler: Scheduler) -> None:
    declare()
    scheduler.sync()
    Schedule.objects.update(error="broken", next_run_at=None)
    declare(interval=60)
    scheduler.sync()
    row = Schedule.objects.get()
    assert row.error == ""
    assert row.next_run_at is not None


def test_an_unknown_policy_is_refused_before_any_database(scheduler: Scheduler) -> None:
    with pytest.raises(ValueError, match="on_unregistered must be one of pause, keep, delete, got 'drop'"):
        Scheduler(on_unregistered="drop")


def test_many_hosts_may_sync_at_once() -> None:
    for number in range(30):
        schedule(functions.noop, interval=60 + number, _name=f"s{number}")
    results: list[tuple[int, int, list[str]]] = []
    errors: list[Exception] = []
    start = threading.Barrier(8)

    def host() -> None:
        start.wait()
        try:
            results.append(Scheduler().sync())
        except Exception as error:  # noqa: BLE001
            errors.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=host) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(results) == [(0, 0, [])] * 7 + [(30, 0, [])]


def test_a_row_that_somebody_makes_at_that_moment_fails_no_sync(
    scheduler: Scheduler, other_session: psycopg.Connection
) -> None:
    """It stands, and the next sync makes it what code says."""
    declare()
    done: list[Any] = []

    def sync() -> None:
        try:
            done.append(scheduler.sync())
        except Exception as error:  # noqa: BLE001
            done.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=sync)
    with other_session.transaction():
        other_session.execute("INSERT INTO _pgwerk_schedules (name, interval) VALUES (%s, 9)", [NAME])
        thread.start()
        wait_until(waiting_for_a_lock)
    thread.join()
    assert done == [(1, 0, [])]
    assert scheduler.sync() == (0, 1, [])
    row = Schedule.objects.get()
    assert (row.interval, row.function, row.origin) == (3600, NAME, Origin.CODE)


def test_two_versions_of_the_code_at_once_do_not_deadlock() -> None:
    """The registry is one a process, so the versions sync through their definitions, in turns, from many threads."""
    from pgwerk_django.registry import Registry, define
    from pgwerk_django.sync import synchronise

    versions = []
    for interval in (60, 90):
        version = Registry()
        for number in range(20):
            version.add(
                define(functions.noop, {"interval": interval, "_name": f"s{number if interval == 60 else 19 - number}"})
            )
        versions.append(version)
    errors: list[Exception] = []

    def host(version: Registry) -> None:
        try:
            for _ in range(10):
                synchronise(version, on_unregistered="pause", using="default")
                Scheduler().tick()
        except Exception as error:  # noqa: BLE001
            errors.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=host, args=[versions[n % 2]]) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_deadlock_with_somebodys_update_is_tried_again(other_session: psycopg.Connection) -> None:
    """Sync writes in name order; an UPDATE of many rows in SQL goes its own way."""
    for name in ("a", "b"):
        schedule(functions.noop, interval=60, _name=name)
    Scheduler().sync()
    Schedule.objects.update(queue="elsewhere")
    done: list[object] = []

    def sync() -> None:
        try:
            done.append(Scheduler().sync())
        except Exception as error:  # noqa: BLE001
            done.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=sync)
    with other_session.transaction():
        other_session.execute("UPDATE _pgwerk_schedules SET priority = 1 WHERE name = 'b'")
        thread.start()
        wait_until(waiting_for_a_lock)
        other_session.execute("UPDATE _pgwerk_schedules SET priority = 1 WHERE name = 'a'")
    thread.join()
    assert done == [(0, 2, [])]
    assert set(Schedule.objects.values_list("queue", "priority")) == {("default", 0)}


def test_a_start_waits_for_a_locked_row_no_longer_than_it_says(other_session: psycopg.Connection) -> None:
    """In between it hears that it is to stop."""
    declare()
    Scheduler().sync()
    declare(interval=60)
    started = time.monotonic()
    with other_session.transaction():
        other_session.execute("SELECT FROM _pgwerk_schedules FOR UPDATE")
        with pytest.raises(OperationalError) as caught:
            sync.synchronise(registry, on_unregistered="keep", using="default", lock_timeout=SECOND / 20)
    assert sync.is_held(caught.value)
    assert time.monotonic() - started < 5


def test_a_row_held_by_a_tick_does_not_stop_an_unchanged_sync(
    scheduler: Scheduler, other_session: psycopg.Connection
) -> None:
    declare()
    scheduler.sync()
    Schedule.objects.update(last_registered_at=now() - HOUR)
    with other_session.transaction():
        other_session.execute("SELECT 1 FROM _pgwerk_schedules FOR NO KEY UPDATE")
        assert scheduler.sync() == (0, 0, [])


def test_it_notes_when_code_last_declared_a_row(scheduler: Scheduler) -> None:
    declare()
    scheduler.sync()
    Schedule.objects.update(last_registered_at=now() - HOUR)
    scheduler.sync()
    noted = Schedule.objects.get().last_registered_at
    assert noted is not None
    assert noted > now() - MINUTE


def test_the_signal_names_what_changed(scheduler: Scheduler) -> None:
    heard: list[dict[str, Any]] = []
    signals.synced.connect(lambda **event: heard.append(event), weak=False, dispatch_uid="test")
    try:
        declare()
        scheduler.sync()
        scheduler.sync()
    finally:
        signals.synced.disconnect(dispatch_uid="test")
    assert [event["inserted"] for event in heard] == [[NAME]]


# -- the command -----------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    call_command("syncschedules", *options)
    return capsys.readouterr().out.splitlines()


def test_the_command_prints_a_line_for_each_row(capsys: pytest.CaptureFixture[str], scheduler: Scheduler) -> None:
    for name in ("back", "changed", "gone", "new"):
        schedule(functions.noop, interval=60, _name=name)
    scheduler.sync()
    Schedule.objects.filter(name="back").pause_by_sync(sync.ORPHANED)
    Schedule.objects.filter(name="changed").update(queue="x")
    Schedule.objects.filter(name="new").delete()
    registry.remove("gone")
    assert run(capsys, "--dry-run") == [
        "would insert new",
        "would update back: resume",
        "would update changed: queue 'x' -> 'default'",
        "would reconcile gone (pause)",
    ]
    assert run(capsys) == [
        "inserted new",
        "updated back: resumed",
        "updated changed: queue 'x' -> 'default'",
        "reconciled gone (pause)",
    ]
    assert run(capsys) == run(capsys, "--dry-run") == []


@pytest.mark.parametrize("option", ["--dry-run", "--check"])
def test_dry_run_and_check_write_nothing(capsys: pytest.CaptureFixture[str], option: str) -> None:
    declare()
    try:
        call_command("syncschedules", option)
        code = 0
    except SystemExit as stopped:
        code = stopped.code
    assert capsys.readouterr().out.splitlines() == [f"would insert {NAME}"]
    assert code == (1 if option == "--check" else 0)
    assert not Schedule.objects.exists()


def test_check_is_content_when_there_is_no_difference(capsys: pytest.CaptureFixture[str]) -> None:
    declare()
    run(capsys)
    assert run(capsys, "--check") == []


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    declare(_starts_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    (line,) = run(capsys, "--format=json", "--dry-run")
    assert json.loads(line) == {"inserted": [NAME], "updated": {}, "reconciled": []}


def test_delete_from_the_command(capsys: pytest.CaptureFixture[str], scheduler: Scheduler) -> None:
    declare()
    scheduler.sync()
    registry.clear()
    assert run(capsys, "--on-unregistered=delete") == [f"reconciled {NAME} (delete)"]
    assert not Schedule.objects.exists()


@pytest.mark.parametrize("by", ["ada", ""])
def test_a_person_who_pauses_an_orphan_has_paused_it(scheduler: Scheduler, by: str) -> None:
    declare()
    scheduler.sync()
    registry.clear()
    scheduler.sync()
    scheduler.pause(NAME, reason="incident", by=by)
    declare()
    scheduler.sync()
    row = Schedule.objects.get()
    assert (row.paused, row.paused_by, row.pause_reason) == (True, by, "incident")


def test_sync_tells_true_from_one(scheduler: Scheduler) -> None:
    registry.clear()
    schedule(functions.remember, interval=60, _name="x", kwargs={"flags": [1, {"a": 0}]})
    scheduler.sync()
    registry.clear()
    schedule(functions.remember, interval=60, _name="x", kwargs={"flags": [True, {"a": 0}]})
    assert scheduler.sync() == (0, 1, [])
    assert Schedule.objects.get().kwargs["flags"][0] is True
    assert scheduler.sync() == (0, 0, [])


@pytest.mark.parametrize("number", [1e16, 1.0, 10**30, 1e-7, -0.0])
def test_numbers_that_the_database_writes_otherwise_are_no_difference(scheduler: Scheduler, number: float) -> None:
    registry.clear()
    schedule(functions.remember, interval=60, _name="x", args=[number])
    scheduler.sync()
    assert scheduler.sync() == (0, 0, [])


def test_orphans_are_said_aloud(scheduler: Scheduler, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(8):
        schedule(functions.noop, interval=60, _name=f"s{number}")
    scheduler.sync()
    registry.clear()
    caplog.clear()
    scheduler.sync()
    (record,) = [r for r in caplog.records if r.getMessage().startswith("schedules_orphaned")]
    assert record.levelname == "WARNING"
    assert 'names="s0,s1,s2,s3,s4 and 3 more"' in record.getMessage()


def test_a_number_that_postgresql_writes_otherwise_is_no_change() -> None:
    schedule(functions.noop, interval=60, _meta={"large": 1e23, "small": 1e-9, "whole": 3.0, "list": [1e300]})
    assert Scheduler().sync() == (1, 0, [])
    assert Scheduler().sync() == (0, 0, [])
