"""Every sentence of the manual: `Scheduler`, its methods and their async twins."""

import asyncio
import datetime as dt
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import connection, transaction
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from pgwerk_django import signals
from pgwerk_django.models import Job, Origin, Schedule
from pgwerk_django.registry import registry
from pgwerk_django.scheduler import Scheduler, _Service
from tests import functions
from tests.time_travel import HOUR, MINUTE, SECOND, jobs, make, make_due, now, reread
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


def test_the_constructor_touches_no_database(django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(0):
        Scheduler(on_unregistered="keep", using="nowhere")


def test_register_as_decorator_and_as_call(scheduler: Scheduler) -> None:
    assert scheduler.register(interval=300)(functions.noop) is functions.noop
    assert scheduler.register(functions.async_add, cron="0 9 * * *", args=[1], _queue="reports") is functions.async_add
    assert not Schedule.objects.exists()
    assert scheduler.sync() == (2, 0, [])
    assert [row.queue for row in scheduler.list_schedules()] == ["reports", "default"]
    assert scheduler.unregister("tests.functions.noop") is True
    assert scheduler.unregister("tests.functions.noop") is False
    assert [definition.name for definition in registry] == ["tests.functions.async_add"]


def test_cron_writes_at_once(scheduler: Scheduler) -> None:
    row = scheduler.cron("*/5 * * * *", functions.add, 1, b=42, _timeout=30, _queue="reports")
    assert (row.name, row.origin) == ("tests.functions.add", Origin.API)
    assert (row.cron, row.args, row.kwargs, row.timeout, row.queue) == ("*/5 * * * *", [1], {"b": 42}, 30, "reports")
    assert row.next_run_at is not None
    assert now() < row.next_run_at <= now() + 5 * MINUTE
    assert reread(row).next_run_at == row.next_run_at


def test_interval_writes_at_once(scheduler: Scheduler) -> None:
    row = scheduler.interval(300, functions.add, 1, _timeout=60)
    assert (row.interval, row.timeout, row.args) == (300, 60, [1])
    assert row.next_run_at == row.anchor_at + 300 * SECOND


def test_a_call_again_updates_and_does_not_postpone(scheduler: Scheduler) -> None:
    first = scheduler.interval(300, functions.add, 1)
    again = scheduler.interval(300, functions.add, 2)
    assert again.pk == first.pk
    assert (again.args, again.next_run_at) == ([2], first.next_run_at)
    other = scheduler.cron("0 9 * * *", functions.add, 1)
    assert (other.pk, other.interval, other.cron) == (first.pk, None, "0 9 * * *")


def test_a_call_again_does_not_lose_a_due_time_that_has_passed(scheduler: Scheduler) -> None:
    row = scheduler.interval(3600, functions.noop)
    due_at = make_due(row)
    scheduler.interval(3600, functions.noop)
    scheduler.tick()
    assert [job.due_at for job in jobs(row)] == [due_at]


def test_a_call_never_changes_the_origin_nor_lifts_a_pause(scheduler: Scheduler) -> None:
    scheduler.register(functions.noop, interval=60)
    scheduler.sync()
    scheduler.pause("tests.functions.noop", by="ada")
    row = scheduler.interval(90, functions.noop)
    assert (row.origin, row.paused, row.paused_by) == (Origin.CODE, True, "ada")


def test_schedule_recomputes_the_next_run_from_the_policy(scheduler: Scheduler) -> None:
    row = scheduler.schedule(functions.noop, cron="0 10 * * *", _timezone="UTC")
    planned = row.next_run_at
    Schedule.objects.update(next_run_at=now() + 100 * HOUR)
    assert scheduler.schedule(functions.noop, cron="0 10 * * *", _timezone="UTC").next_run_at == planned
    with pytest.raises(ValueError, match="exactly one of cron and interval"):
        scheduler.schedule(functions.noop)


def test_schedule_at_starts_there_and_goes_on_by_the_interval(scheduler: Scheduler) -> None:
    when = now() + HOUR
    row = scheduler.schedule_at(functions.noop, when, interval=86400)
    assert (row.next_run_at, row.anchor_at) == (when, when)
    make_due(row)
    Schedule.objects.update(anchor_at=reread(row).next_run_at)
    Schedule.objects.update(next_run_at=reread(row).anchor_at, replan=False)
    due_at = reread(row).next_run_at
    scheduler.tick()
    assert reread(row).next_run_at == due_at + 86400 * SECOND


def test_the_manuals_schedule_at_lies_in_the_past_and_runs_once(scheduler: Scheduler) -> None:
    when = dt.datetime(2026, 1, 1, 9, 0, tzinfo=dt.UTC)
    row = scheduler.schedule_at(functions.noop, when, interval=86400)
    scheduler.tick()
    skipped, ran = jobs(row)
    assert (skipped.due_at, skipped.status, ran.status) == (when, "SKIPPED", "READY")
    assert now() - 24 * HOUR < ran.due_at <= now()
    assert (ran.due_at.hour, ran.due_at.minute) == (9, 0)


def test_a_naive_when_is_utc(scheduler: Scheduler) -> None:
    row = scheduler.schedule_at(functions.noop, dt.datetime(2027, 1, 1, 9, 0))  # noqa: DTZ001
    assert row.next_run_at == dt.datetime(2027, 1, 1, 9, 0, tzinfo=dt.UTC)
    with pytest.raises(TypeError, match="when must be a datetime, got '2027'"):
        scheduler.schedule_at(functions.noop, "2027")  # type: ignore[arg-type]


@pytest.mark.parametrize("delay", [3600, dt.timedelta(hours=1)])
def test_schedule_in(scheduler: Scheduler, delay: Any) -> None:
    row = scheduler.schedule_in(delay, functions.noop, interval=86400)
    assert row.next_run_at is not None
    assert abs(row.next_run_at - now() - HOUR) < MINUTE
    with pytest.raises(ValueError, match=r"seconds .* got -1"):
        scheduler.schedule_in(-1, functions.noop)


def test_a_one_off_may_be_scheduled_again(scheduler: Scheduler) -> None:
    row = scheduler.schedule_in(0, functions.noop)
    scheduler.tick()
    assert reread(row).next_run_at is None
    again = scheduler.schedule_in(0, functions.noop)
    assert again.pk == row.pk
    scheduler.tick()
    assert Job.objects.count() == 2


def test_a_function_may_be_given_by_its_path(scheduler: Scheduler) -> None:
    assert scheduler.cron("0 9 * * *", "shop.tasks.far_away").function == "shop.tasks.far_away"


def test_unknown_options_are_refused(scheduler: Scheduler) -> None:
    with pytest.raises(TypeError, match="'_colour' is not an option"):
        scheduler.interval(60, functions.noop, _colour="red")
    with pytest.raises(TypeError, match="must fit"):
        scheduler.interval(60, functions.noop, 1)


def test_update_with_and_without_the_underscore(scheduler: Scheduler) -> None:
    scheduler.interval(60, functions.noop)
    row = scheduler.update("tests.functions.noop", interval=600, _timeout=120, queue="etl")
    assert (row.interval, row.timeout, row.queue) == (600, 120, "etl")
    assert row.next_run_at == row.anchor_at + 600 * SECOND
    assert reread(row).interval == 600


def test_update_swaps_interval_for_cron_and_back(scheduler: Scheduler) -> None:
    scheduler.interval(60, functions.noop)
    row = scheduler.update("tests.functions.noop", cron="0 9 * * *")
    assert (row.cron, row.interval) == ("0 9 * * *", None)
    row = scheduler.update("tests.functions.noop", interval=60)
    assert (row.cron, row.interval) == ("", 60)


def test_update_refuses_what_it_does_not_know(scheduler: Scheduler) -> None:
    scheduler.interval(60, functions.noop)
    for fields in ({"next_run_at": now()}, {"paused": True}, {"colour": "red"}, {"name": "other"}):
        with pytest.raises(TypeError, match=next(iter(fields))):
            scheduler.update("tests.functions.noop", **fields)
    with pytest.raises(ValueError, match="cron"):
        scheduler.update("tests.functions.noop", cron="never")
    assert reread(Schedule.objects.get()).interval == 60


def test_a_missing_name(scheduler: Scheduler) -> None:
    for act in (scheduler.update, scheduler.pause, scheduler.resume, scheduler.trigger):
        with pytest.raises(Schedule.DoesNotExist):
            act("nobody")
    assert scheduler.get("nobody") is None
    assert scheduler.delete("nobody") is False


def test_introspection(scheduler: Scheduler) -> None:
    for name in ("b", "a", "c"):
        scheduler.interval(60, functions.noop, _name=name)
    assert [row.name for row in scheduler.list_schedules()] == ["a", "b", "c"]
    found = scheduler.get("b")
    assert found is not None
    assert (found.paused, found.next_run_at is not None) == (False, True)


def test_the_rules_are_methods_of_the_queryset() -> None:
    for name in ("a", "b"):
        Scheduler().interval(60, functions.noop, _name=name)
    assert Schedule.objects.filter(name="a").pause(by="ada", reason="why") == 1
    assert Schedule.objects.all().pause() == 1
    assert Schedule.objects.all().resume() == 2
    assert Schedule.objects.all().trigger(by="ada") == 2
    assert {row.name for row in Schedule.objects.due()} == {"a", "b"}
    assert {row.triggered_by for row in Schedule.objects.all()} == {"ada"}


def test_every_method_has_an_async_twin() -> None:
    for name, method in inspect.getmembers(Scheduler, inspect.isfunction):
        if name.startswith("_") or inspect.iscoroutinefunction(method):
            continue
        twin = getattr(Scheduler, "a_sync" if name == "sync" else f"a{name}")
        assert inspect.iscoroutinefunction(twin), name


def test_the_manual_in_async() -> None:
    async def manual() -> None:
        scheduler = Scheduler()
        scheduler.register(interval=300, _name="staged")(functions.noop)
        assert await scheduler.a_sync() == (1, 0, [])
        await scheduler.acron("0 9 * * *", functions.noop, _queue="reports")
        await scheduler.ainterval(3600, functions.add, 1, _queue="etl")
        await scheduler.aschedule(functions.noop, cron="0 10 * * *")
        when = dt.datetime(2027, 1, 1, 9, 0, tzinfo=dt.UTC)
        await scheduler.aschedule_at(functions.noop, when, interval=86400, _name="at")
        await scheduler.aschedule_in(3600, functions.noop, interval=86400, _name="in")
        await scheduler.aupdate("at", interval=600, _timeout=120)
        await scheduler.apause("at")
        paused = await scheduler.aget("at")
        assert paused is not None
        assert paused.paused
        await scheduler.aresume("at")
        await scheduler.atrigger("at")
        assert await scheduler.atick() == 1
        assert await scheduler.adelete("at")
        names = [row.name for row in await scheduler.alist_schedules()]
        assert names == ["in", "staged", "tests.functions.add", "tests.functions.noop"]

    async_to_sync(manual)()


def test_run_syncs_and_ticks_until_stopped() -> None:
    scheduler = Scheduler()
    scheduler.register(functions.noop, interval=1)
    done = threading.Event()

    def run() -> None:
        from django.db import connections

        try:
            scheduler.run()
        finally:
            connections.close_all()
            done.set()

    threading.Thread(target=run).start()
    wait_until(lambda: Job.objects.exists())
    scheduler.stop()
    assert done.wait(5)


def test_arun_ends_when_its_task_is_cancelled() -> None:
    async def play() -> None:
        scheduler = Scheduler()
        scheduler.register(functions.noop, interval=1)
        running = asyncio.ensure_future(scheduler.arun())
        async with asyncio.timeout(20):
            while not await sync_to_async(Job.objects.exists)():
                await asyncio.sleep(0.05)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

    async_to_sync(play)()


def test_a_missing_name_is_named(scheduler: Scheduler) -> None:
    for act in (scheduler.update, scheduler.pause, scheduler.resume, scheduler.trigger):
        with pytest.raises(Schedule.DoesNotExist, match="there is no schedule named 'nobody'"):
            act("nobody")


def test_what_could_never_run_is_refused(scheduler: Scheduler) -> None:
    row = scheduler.interval(60, functions.add, 1)
    with pytest.raises(TypeError, match="must fit"):
        scheduler.update(row.name, kwargs={"nope": 1})
    with pytest.raises(TypeError, match="must fit"):
        scheduler.interval(60, "tests.functions.add", _name="by path")
    with pytest.raises(ValueError, match=r"_target must be one of worker, .*, got 'pigeon'"):
        scheduler.update(row.name, target="pigeon")
    with pytest.raises(ValueError, match=r"_target must be one of worker, .*, got 'pigeon'"):
        scheduler.interval(60, functions.noop, _target="pigeon")
    with pytest.raises(ValueError, match="exactly one of cron and interval must be given, got neither"):
        scheduler.update(row.name, interval=None)
    assert [row.name for row in scheduler.list_schedules()] == ["tests.functions.add"]


def test_a_first_run_outside_the_window_is_refused(scheduler: Scheduler) -> None:
    with pytest.raises(ValueError, match="the first run must lie between"):
        scheduler.schedule_in(3600, functions.noop, _ends_at=now() + MINUTE)
    with pytest.raises(ValueError, match="the first run must lie between"):
        scheduler.schedule_in(60, functions.noop, interval=60, _starts_at=now() + HOUR)


def test_a_scheduler_may_run_again_after_a_stop() -> None:
    scheduler = Scheduler()
    for _ in range(2):
        threading.Timer(0.2, scheduler.stop).start()
        scheduler.run()
    scheduler.stop()
    scheduler.run()  # a stop that came first counts


def test_a_stop_ends_a_single_pass_after_the_tick_at_hand() -> None:
    scheduler = Scheduler(on_unregistered="keep")
    for number in range(3):
        make(ago=SECOND, _name=f"s{number}")
    signals.ticked.connect(lambda **event: scheduler.stop(), weak=False, dispatch_uid="test")
    try:
        scheduler.run_once(batch_size=1)
    finally:
        signals.ticked.disconnect(dispatch_uid="test")
    assert Job.objects.count() == 1
    assert Schedule.objects.due().count() == 2


def test_a_single_pass_ticks_batch_after_batch_until_nothing_is_due() -> None:
    for number in range(3):
        make(ago=SECOND, _name=f"s{number}")
    Scheduler(on_unregistered="keep").run_once(batch_size=1)
    assert Job.objects.count() == 3
    assert not Schedule.objects.due().exists()


def test_a_paused_one_off_that_is_given_another_time_has_that(scheduler: Scheduler) -> None:
    row = scheduler.schedule_in(60, functions.noop)
    scheduler.pause(row.name)
    later = now() + HOUR
    scheduler.schedule_at(functions.noop, later)
    assert scheduler.resume(row.name).next_run_at == later


def test_what_was_seen_coming_is_ticked_without_another_look(
    scheduler: Scheduler, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.PGWERK = {**settings.PGWERK, "POLL_INTERVAL": 3600}
    service = _Service(Scheduler(on_unregistered="keep"), None)
    row = scheduler.schedule_in(600, functions.noop)
    try:
        service.step()  # looks, and sees it coming
        with CaptureQueriesContext(connection) as early:
            assert service.step() > 0  # woken before its time
        Schedule.objects.filter(pk=row.pk).update(next_run_at=Now())
        ten_minutes_on = SimpleNamespace(monotonic=lambda: time.monotonic() + 600)
        monkeypatch.setattr("pgwerk_django.scheduler.time", ten_minutes_on)
        with CaptureQueriesContext(connection) as in_time:
            service.step()
    finally:
        service.close()
    assert not any("FOR NO KEY UPDATE" in query["sql"] for query in early)
    time_of_day, first, *_ = (query["sql"] for query in in_time if query["sql"].lstrip().startswith("SELECT"))
    assert time_of_day == "SELECT statement_timestamp()"
    assert "FOR NO KEY UPDATE" in first
    # And it did not wait until PostgreSQL's clock, which shows ten minutes less, had come to that.
    assert Job.objects.count() == 1


# -- names taken from the function -------------------------------------------------------------------------------------


@pytest.fixture
def replaced() -> Iterator[list[dict[str, Any]]]:
    """What `schedule_replaced` said, in the order of the commits."""
    heard: list[dict[str, Any]] = []

    def listener(sender: Any, signal: Any, **event: Any) -> None:
        heard.append(event)

    signals.schedule_replaced.connect(listener)
    yield heard
    signals.schedule_replaced.disconnect(listener)


CALLS: dict[str, Callable[[Scheduler, int], Any]] = {
    "cron": lambda s, n: s.cron("0 9 * * *", functions.remember, feed_id=n),
    "cron-by-path": lambda s, n: s.cron("0 9 * * *", "tests.functions.remember", feed_id=n),
    "interval": lambda s, n: s.interval(60, functions.remember, n),
    "schedule": lambda s, n: s.schedule(functions.remember, cron="0 9 * * *", args=[n]),
    "schedule-name-None": lambda s, n: s.schedule(functions.remember, interval=60, kwargs={"feed_id": n}, _name=None),
    "schedule_at": lambda s, n: s.schedule_at(functions.remember, now() + HOUR, args=[n]),
    "schedule_in": lambda s, n: s.schedule_in(3600, functions.remember, args=[n]),
    "acron": lambda s, n: async_to_sync(s.acron)("0 9 * * *", functions.remember, feed_id=n),
    "ainterval": lambda s, n: async_to_sync(s.ainterval)(60, functions.remember, n),
    "aschedule": lambda s, n: async_to_sync(s.aschedule)(functions.remember, interval=60, args=[n]),
    "aschedule_at": lambda s, n: async_to_sync(s.aschedule_at)(functions.remember, now() + HOUR, args=[n]),
    "aschedule_in": lambda s, n: async_to_sync(s.aschedule_in)(3600, functions.remember, args=[n]),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_name_taken_from_the_function_replaces_no_other_call_in_silence(
    scheduler: Scheduler, call: str, replaced: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    CALLS[call](scheduler, 1)
    CALLS[call](scheduler, 1)  # the next deploy
    assert replaced == []
    CALLS[call](scheduler, 2)
    (event,) = replaced
    assert event["name"] == "tests.functions.remember"
    assert "1)" in event["was"]
    assert "2)" in event["now"]
    (line,) = [record for record in caplog.records if record.message.startswith("schedule_replaced ")]
    assert line.levelname == "WARNING"
    assert "_name" in line.message
    assert event["was"] in line.message
    assert event["now"] in line.message


def test_a_name_that_was_given_may_replace_its_schedule(scheduler: Scheduler, replaced: list[Any]) -> None:
    for feed in (1, 2, 1):
        scheduler.cron("0 9 * * *", functions.remember, feed_id=feed, _name="feed")
    assert replaced == []
    scheduler.interval(60, functions.remember, feed_id=1)  # another name: that of the function
    scheduler.interval(90, functions.remember, feed_id=1)  # the same call, more rarely
    assert replaced == []
    assert Schedule.objects.count() == 2


@pytest.mark.parametrize("origin", [Origin.CODE, Origin.ADMIN])
def test_a_name_taken_from_the_function_takes_no_row_of_code_or_of_a_person_in_silence(
    scheduler: Scheduler, replaced: list[Any], origin: Origin
) -> None:
    make("tests.functions.remember", interval=60)
    Schedule.objects.update(origin=origin)
    scheduler.interval(60, functions.remember)
    assert replaced == []
    scheduler.interval(90, functions.remember)
    assert [event["origin"] for event in replaced] == [origin]


def test_a_declaration_takes_no_other_call_made_at_run_time_in_silence(
    scheduler: Scheduler, replaced: list[Any]
) -> None:
    scheduler.interval(60, functions.remember, feed_id=1)
    scheduler.interval(60, functions.remember, feed_id=1, _name="given")
    scheduler.register(functions.remember, interval=60, kwargs={"feed_id": 2})
    scheduler.register(functions.remember, interval=60, kwargs={"feed_id": 2}, _name="given")
    scheduler.sync()
    assert [(event["name"], event["now"]) for event in replaced] == [
        ("tests.functions.remember", "tests.functions.remember(feed_id=2)")
    ]
    scheduler.sync()
    assert len(replaced) == 1


def test_a_replaced_call_is_told_without_its_secrets(scheduler: Scheduler, replaced: list[Any]) -> None:
    scheduler.interval(60, functions.remember, api_key="hunter2", who={"password": "hunter2"})
    scheduler.interval(60, functions.remember, api_key="hunter3", who={"password": "hunter3"})
    scheduler.interval(60, functions.log_in, "hunter2")
    scheduler.interval(60, functions.log_in, "hunter3")
    assert len(replaced) == 2
    assert "hunter" not in str(replaced)


def test_nothing_is_told_of_a_replacement_that_was_rolled_back(scheduler: Scheduler, replaced: list[Any]) -> None:
    scheduler.interval(60, functions.remember, feed_id=1)
    with transaction.atomic():
        scheduler.interval(60, functions.remember, feed_id=2)
        transaction.set_rollback(True)
    assert replaced == []
