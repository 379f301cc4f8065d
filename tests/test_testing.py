"""Testing with `pgwerk_django.test`: time is given, jobs run here, and all of it fits into a test's own transaction."""

import datetime as dt
import subprocess
import sys
import threading
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from asgiref.sync import sync_to_async
from django.db import IntegrityError, connection, transaction
from django.test import TestCase, TransactionTestCase
from django.test.utils import CaptureQueriesContext
from django.utils import timezone, translation

from pgwerk_django import schedule, signals
from pgwerk_django.exceptions import FunctionNotFound, JobCancelled, TooManyJobs
from pgwerk_django.jobs import current_job, enqueue, enqueue_many, pause_queue
from pgwerk_django.models import Job, Queue, Schedule
from pgwerk_django.registry import registry
from pgwerk_django.scheduler import Scheduler
from pgwerk_django.test import assert_enqueued, assert_not_enqueued, isolated_registry, run_due, run_jobs
from tests import django_tasks, functions
from tests.time_travel import HOUR, MINUTE, SECOND, make, now, reread

pytest_plugins = ["pgwerk_django.pytest_plugin", "pytester"]
# Once as in a `TestCase`, once as in a `TransactionTestCase`.
everywhere = [
    pytest.param("in a transaction", marks=pytest.mark.django_db),
    pytest.param("committing", marks=pytest.mark.django_db(transaction=True)),
]
DAY = 24 * HOUR
NINE = dt.datetime(2021, 6, 1, 9, 0, tzinfo=dt.UTC)  # passed long ago
LATER = dt.datetime(2051, 6, 1, 9, 0, tzinfo=dt.UTC)  # and long to come


def parent(depth: int, **options: Any) -> None:
    if depth:
        enqueue(parent, depth - 1, **options)


def parent_of_many() -> None:
    enqueue_many(functions.add, [[1], [2]], _delay=60)
    enqueue(functions.noop, _delay=60)


def breed() -> None:
    enqueue(breed)


def write_and_break() -> None:
    transaction.on_commit(functions.noop)
    Queue.objects.create(name="written")
    Queue.objects.create(name="written")


def write_durably() -> str:
    with transaction.atomic(durable=True):
        Queue.objects.create(name="durable")
    return "written"


def give_up() -> None:
    raise JobCancelled("no need")


async def async_progress() -> Any:
    job = current_job()
    assert job is not None
    job.progress(1, 3)
    await sync_to_async(Queue.objects.create)(name="from async")
    job.progress(2, 3, "nearly")
    return job.attempt


async def lose_patience() -> None:
    raise TimeoutError("of its own")


def see_own_row() -> list[Any]:
    job = current_job()
    assert job is not None
    job.progress(5)
    row = Job.objects.get(pk=job.row.pk)
    return [row.status, row.prefetched, row.started_at is not None, row.worker_name, job.attempt]


def thread() -> int:
    return threading.get_ident()


# -- what is due -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", everywhere)
@pytest.mark.parametrize("at", [NINE, LATER])
def test_what_code_declares_fires_at_its_due_time_and_runs_here(where: str, at: dt.datetime) -> None:
    schedule(cron="0 9 * * *", _timezone="UTC", args=[1], kwargs={"b": 2})(functions.add)
    schedule(cron="1 9 * * *", _timezone="UTC")(functions.noop)
    jobs = run_due(now=at)
    (job,) = [job for job in jobs if job.function == "tests.functions.add"]
    assert (job.status, job.result, job.kind, job.attempt, job.claims) == ("SUCCESSFUL", 3, "scheduled", 1, 1)
    assert job.due_at == job.enqueued_at == job.run_at == job.started_at == job.finished_at == at
    assert job.expires_at == at + 7 * DAY
    assert (job.worker_name, job.lease_until, job.prefetched) == ("test", None, False)
    assert len(jobs) == (1 if at == NINE else 2)  # the years until then were due times of the other
    assert run_due(now=at) == []


@pytest.mark.django_db
def test_a_minute_early_nothing_is_due_and_days_go_on() -> None:
    schedule(cron="0 9 * * *", _timezone="UTC")(functions.noop)
    assert run_due(now=NINE - MINUTE) == []
    assert [job.due_at for job in run_due(now=NINE + SECOND)] == [NINE]
    assert run_due(now=NINE + HOUR) == []
    assert run_due(now=NINE - HOUR) == []
    assert [job.due_at for job in run_due(now=NINE + DAY)] == [NINE + DAY]


@pytest.mark.django_db
def test_an_interval_counts_from_when_it_is_first_seen() -> None:
    schedule(interval=300)(functions.noop)
    assert run_due(now=NINE) == []
    assert [job.due_at for job in run_due(now=NINE + 5 * MINUTE)] == [NINE + 5 * MINUTE]
    assert Schedule.objects.get().created_at == NINE


@pytest.mark.django_db
def test_what_is_first_seen_in_the_future_exists_from_now_on() -> None:
    schedule(interval=300)(functions.noop)
    (job,) = run_due(now=now() + 301 * SECOND)
    assert job.due_at == Schedule.objects.get().created_at + 300 * SECOND


@pytest.mark.django_db
def test_what_was_planned_by_the_real_clock_is_not_due_in_the_past_before_it() -> None:
    Scheduler().cron("0 9 * * *", functions.noop, _timezone="UTC")
    assert run_due(now=NINE) == []
    Schedule.objects.create(name="by hand", function="tests.functions.noop", cron="0 9 * * *")
    assert run_due(now=NINE) == []
    assert not Job.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("planned_before", [False, True])
def test_an_edit_that_no_tick_has_seen_yet_counts_from_when_it_was_made(planned_before: bool) -> None:
    Schedule.objects.create(name="by hand", function="tests.functions.noop", interval=3600)
    if planned_before:
        run_due()
    Schedule.objects.update(interval=60)
    (job,) = run_due(now=now() + 61 * SECOND)
    assert job.due_at == Schedule.objects.get().anchor_at + MINUTE


@pytest.mark.django_db
@pytest.mark.parametrize("year", [2020, 2040])
def test_a_night_in_which_the_clock_skips_the_hour(year: int) -> None:
    sunday = max(day for day in range(25, 32) if dt.date(year, 3, day).weekday() == 6)
    after_the_gap = dt.datetime(year, 3, sunday, 1, 0, tzinfo=dt.UTC)  # 03:00 in Paris, which had no 02:30
    schedule(cron="30 2 * * *", _timezone="Europe/Paris")(functions.noop)
    run_due(now=after_the_gap - 23 * HOUR)
    assert run_due(now=after_the_gap - SECOND) == []
    assert [job.due_at for job in run_due(now=after_the_gap)] == [after_the_gap]
    assert run_due(now=after_the_gap + 23 * HOUR) == []


@pytest.mark.django_db
def test_paused_schedules_do_not_fire(scheduler: Scheduler) -> None:
    schedule(cron="0 9 * * *", _timezone="UTC", _name="daily")(functions.noop)
    run_due(now=NINE - HOUR)
    scheduler.pause("daily")
    assert run_due(now=NINE) == []
    assert Schedule.objects.get().paused  # the sync did not lift it


@pytest.mark.parametrize("where", everywhere)
def test_a_trigger_runs_once_beside_the_cadence(where: str, scheduler: Scheduler) -> None:
    schedule(cron="0 9 * * *", _timezone="UTC", _name="daily")(functions.noop)
    scheduler.sync()
    planned = Schedule.objects.get().next_run_at
    scheduler.trigger("daily", by="ada")
    (job,) = run_due()
    assert (job.kind, job.status, job.reason) == ("trigger", "SUCCESSFUL", "triggered by ada")
    assert Schedule.objects.get().next_run_at == planned
    assert run_due() == []


@pytest.mark.django_db
def test_missed_due_times_catch_up_tick_after_tick(settings: Any) -> None:
    settings.PGWERK = {**settings.PGWERK, "MAX_CATCH_UP": 10}
    schedule(interval=60, _misfire="ALL", _name="each")(functions.noop)
    schedule(interval=60, _misfire="LATEST", _name="latest")(functions.noop)
    run_due(now=NINE)
    jobs = run_due(now=NINE + 25 * MINUTE)
    assert [job.due_at for job in jobs if job.schedule_name == "each"] == [NINE + n * MINUTE for n in range(1, 26)]
    assert [job.due_at for job in jobs if job.schedule_name == "latest"] == [NINE + 25 * MINUTE]
    (skipped,) = Job.objects.filter(status="SKIPPED")
    assert skipped.result["last_due_at"] == "2021-06-01T09:24:00.000000Z"


@pytest.mark.django_db
def test_more_due_times_than_anyone_waits_for_are_an_error() -> None:
    schedule(interval=1, _misfire="ALL")(functions.noop)
    run_due(now=NINE)
    with pytest.raises(TooManyJobs, match=r"max_jobs=150 jobs: so many due times of schedules had passed at 2022"):
        run_due(now=NINE + 365 * DAY, max_jobs=150)


@pytest.mark.django_db
def test_jitter_and_retries_of_schedules_wait_for_a_later_now() -> None:
    schedule(cron="0 9 * * *", _timezone="UTC", _jitter=3000, _max_attempts=2, _backoff=60)(functions.fail_first)
    assert run_due(now=NINE) == []
    (job,) = assert_enqueued(functions.fail_first)
    assert NINE < job.run_at <= NINE + 3000 * SECOND
    (job,) = run_due(now=NINE + HOUR)
    assert (job.status, job.run_at) == ("READY", NINE + HOUR + 60 * SECOND)
    (job,) = run_due(now=NINE + 2 * HOUR)
    assert (job.status, job.result) == ("SUCCESSFUL", "attempt 2")


@pytest.mark.django_db
def test_rows_that_code_does_not_declare_are_left_alone() -> None:
    make(_name="orphan", cron="0 9 * * *")
    Schedule.objects.update(origin="code")
    run_due()
    assert not Schedule.objects.get().paused


@pytest.mark.django_db
def test_a_bad_row_delays_no_other() -> None:
    bad = make(_name="bad", ago=HOUR)
    Schedule.objects.filter(pk=bad.pk).update(interval=None, cron="every tuesday")
    make(_name="good", ago=SECOND)
    assert [job.schedule_name for job in run_due()] == ["good"]
    assert "every tuesday" in reread(bad).error


@pytest.mark.django_db
@pytest.mark.parametrize("run", [run_due, run_jobs])
@pytest.mark.parametrize(
    ("at", "error"),
    [
        (dt.datetime(2026, 1, 1), ValueError),  # noqa: DTZ001
        (dt.datetime(9999, 1, 1, tzinfo=dt.UTC), ValueError),
        (dt.date(2026, 1, 1), TypeError),
        ("2026-01-01", TypeError),
    ],
)
def test_an_instant_that_is_none_is_refused(run: Any, at: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="now must "):
        run(now=at)


@pytest.mark.django_db
def test_an_aware_now_of_any_zone_is_an_instant() -> None:
    schedule(cron="0 9 * * *", _timezone="UTC")(functions.noop)
    assert run_due(now=dt.datetime(2021, 6, 1, 18, 0, tzinfo=ZoneInfo("Asia/Tokyo")))


@pytest.mark.django_db
def test_nothing_fires_by_itself() -> None:
    schedule(interval=1)(functions.noop)
    make(ago=HOUR, _name="due")
    enqueue(functions.noop)
    assert Job.objects.filter(status="READY", attempt=0).count() == Job.objects.count() == 1


# -- jobs that wait --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", everywhere)
@pytest.mark.parametrize("func", [functions.add, functions.async_add])
def test_a_job_runs_here_and_is_recorded_as_a_worker_would(where: str, func: Any) -> None:
    enqueue(func, 1, b=2, _result_ttl=100)
    before = now()
    (job,) = run_jobs()
    assert (job.status, job.result, job.error, job.attempt, job.claims) == ("SUCCESSFUL", 3, "", 1, 1)
    assert before < job.started_at <= job.finished_at < now()  # type: ignore[operator]
    assert job.expires_at == job.finished_at + 100 * SECOND  # type: ignore[operator]
    assert run_jobs() == []


@pytest.mark.django_db
def test_it_is_the_callers_thread() -> None:
    enqueue(thread)
    assert [job.result for job in run_jobs()] == [threading.get_ident()]


@pytest.mark.django_db
def test_the_order_is_the_workers() -> None:
    for name, queue, priority in [("c", "slow", 9), ("b", "fast", 0), ("a", "fast", 5), ("d", "other", 99)]:
        enqueue(functions.add, 1, _queue=queue, _priority=priority, _meta={"name": name})
    assert [job.meta["name"] for job in run_jobs(queues=["fast", "slow"])] == ["a", "b", "c"]
    assert [job.meta["name"] for job in run_jobs()] == ["d"]
    with pytest.raises(TypeError, match="queues must be a list of names, got 'fast'"):
        run_jobs(queues="fast")


@pytest.mark.django_db
def test_paused_queues_and_the_future_are_left_alone() -> None:
    pause_queue("held")
    enqueue(functions.noop, _queue="held")
    enqueue(functions.noop, _delay=60)
    assert run_jobs() == []
    assert [job.queue for job in run_jobs(now=now() + MINUTE)] == ["default"]


@pytest.mark.parametrize("where", everywhere)
def test_jobs_that_jobs_enqueue_run_too(where: str) -> None:
    enqueue(parent, 3)
    assert [job.args for job in run_jobs()] == [[3], [2], [1], [0]]


@pytest.mark.django_db
@pytest.mark.parametrize("at", [NINE, LATER])
def test_what_a_job_enqueues_at_an_instant_is_enqueued_then(at: dt.datetime) -> None:
    schedule(cron="0 9 * * *", _timezone="UTC")(parent_of_many)
    assert [job.function for job in run_due(now=at)] == ["tests.test_testing.parent_of_many"]
    children = assert_enqueued(count=3)
    assert {(job.enqueued_at, job.run_at) for job in children} == {(at, at + MINUTE)}
    assert run_jobs(now=at) == []
    assert len(run_jobs(now=at + MINUTE)) == 3


@pytest.mark.django_db
def test_a_job_that_enqueues_itself_is_an_error_and_not_a_test_that_hangs() -> None:
    enqueue(breed)
    with pytest.raises(
        TooManyJobs, match=r"more than max_jobs=10 jobs: does a job enqueue itself\? The next was tests"
    ):
        run_jobs(max_jobs=10)
    assert Job.objects.filter(status="SUCCESSFUL").count() == 10
    (waiting,) = assert_enqueued(breed)
    assert waiting.attempt == 0


@pytest.mark.django_db
def test_a_job_sees_what_it_is() -> None:
    schedule(cron="0 9 * * *", _timezone="UTC", _name="seen", _meta={"team": "x"})(functions.job_seen)
    (job,) = run_due(now=NINE)
    assert job.result == {"name": "seen", "attempt": 1, "meta": {"team": "x"}, "due_at": str(NINE)}
    assert current_job() is None


@pytest.mark.parametrize("where", everywhere)
def test_progress_and_the_own_row(where: str) -> None:
    enqueue(see_own_row)
    enqueue(async_progress)
    sync, asynchronous = run_jobs()
    assert sync.result == ["RUNNING", False, True, "test", 1]
    assert sync.progress == {"done": 5, "total": None, "note": ""}
    assert asynchronous.progress == {"done": 2, "total": 3, "note": "nearly"}
    assert Queue.objects.filter(name="from async").exists()


# -- jobs that fail --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", everywhere)
def test_what_a_job_raises_is_on_its_row_and_in_the_test(where: str) -> None:
    enqueue(functions.fail, "on purpose")
    enqueue(functions.noop)
    with pytest.raises(ValueError, match="on purpose") as caught:
        run_jobs(raising=True)
    job = Job.objects.get(function="tests.functions.fail")
    assert (job.status, job.attempt) == ("FAILED", 1)
    assert "ValueError: on purpose" in job.error
    assert caught.value.__notes__ == [f"in the job {job.key} (tests.functions.fail)"]
    assert len(run_jobs()) == 1  # the test may go on


@pytest.mark.parametrize("where", everywhere)
def test_a_retry_waits_for_its_back_off(where: str) -> None:
    enqueue(functions.fail_first, _max_attempts=3, _backoff=[60, 600])
    at = now() + HOUR
    (job,) = run_jobs(now=at)
    assert (job.status, job.run_at, job.finished_at) == ("READY", at + MINUTE, None)
    assert [error["attempt"] for error in job.errors] == [1]
    assert dt.datetime.fromisoformat(job.errors[0]["at"]) == at
    assert run_jobs(now=at + 59 * SECOND) == []
    (job,) = run_jobs(now=at + MINUTE)
    assert (job.status, job.result, job.attempt, job.claims) == ("SUCCESSFUL", "attempt 2", 2, 2)


@pytest.mark.django_db
def test_a_retry_without_back_off_comes_at_once_and_is_one_job() -> None:
    enqueue(functions.fail, _max_attempts=3, _backoff=0)
    (job,) = run_jobs()
    assert (job.status, job.attempt, len(job.errors)) == ("FAILED", 3, 2)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("func", "error", "text"),
    [
        ("tests.nosuchmodule.missing", Exception, "cannot be imported"),
        (functions.not_json, Exception, "the job's result must be JSON"),
        (functions.leave, SystemExit, "SystemExit: 3"),
        (lose_patience, TimeoutError, "of its own"),
    ],
)
def test_other_ways_to_fail(func: Any, error: type[BaseException], text: str) -> None:
    enqueue(func)
    with pytest.raises(error):
        run_jobs(raising=True)
    assert text in Job.objects.get(status="FAILED").error


@pytest.mark.django_db
def test_an_async_jobs_timeout_is_kept() -> None:
    enqueue(functions.async_forever, _timeout=1)
    (job,) = run_jobs()
    assert (job.status, job.error) == ("FAILED", "timed out after 1 s")
    assert functions.read() == [["cleaned up"]]


@pytest.mark.django_db
def test_a_cancelled_job_is_no_error() -> None:
    enqueue(give_up)
    waiting = enqueue(functions.noop)
    assert waiting is not None
    waiting.cancel()
    assert [job.status for job in run_jobs()] == ["CANCELLED"]


@pytest.mark.django_db
def test_a_persons_control_c_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(functions, "noop", interrupt)
    enqueue("tests.functions.noop")
    with pytest.raises(KeyboardInterrupt):
        run_jobs()


@pytest.mark.django_db
def test_signals_are_sent() -> None:
    heard: list[tuple[str, Any]] = []
    named = {
        "started": signals.job_started,
        "finished": signals.job_finished,
        "failed": signals.job_failed,
        "cancelled": signals.job_cancelled,
    }
    receivers = []
    for name, signal in named.items():

        def hear(name: str = name, **event: Any) -> None:
            heard.append((name, event.get("retry_in", event["job"].status)))

        signal.connect(hear)
        receivers.append((signal, hear))
    try:
        enqueue(functions.noop, _priority=3)
        enqueue(functions.fail_first, _max_attempts=2, _backoff=7, _priority=2)
        enqueue(functions.fail, _priority=1)
        enqueue(give_up)
        run_jobs()
    finally:
        for signal, hear in receivers:
            signal.disconnect(hear)
    assert heard == [
        ("started", "RUNNING"), ("finished", "SUCCESSFUL"), ("started", "RUNNING"), ("failed", 7),
        ("started", "RUNNING"), ("failed", None), ("started", "RUNNING"), ("cancelled", "CANCELLED"),
    ]  # fmt: skip


# -- the caller's Django ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", everywhere)
def test_a_statement_that_is_refused_breaks_the_job_and_not_the_test(where: str) -> None:
    Queue.objects.create(name="of the test")
    enqueue(write_and_break)
    with pytest.raises(IntegrityError):
        run_jobs(raising=True)
    assert Job.objects.get().status == "FAILED"
    assert Queue.objects.filter(name="of the test").exists()


@pytest.mark.parametrize("where", everywhere)
def test_a_transaction_left_open_is_rolled_back_and_reported(where: str) -> None:
    Queue.objects.create(name="of the test")
    enqueue(functions.leave_a_transaction_open)
    (job,) = run_jobs()
    assert (job.status, job.error) == ("FAILED", "it left a transaction open, which was rolled back, on: 'default'")
    assert list(Queue.objects.values_list("name", flat=True)) == ["of the test"]


class InATestCase(TestCase):
    """The real thing: `pytest.mark.django_db` only makes believe."""

    def test_what_a_job_writes_goes_with_the_test(self) -> None:
        enqueue(write_durably)
        assert [job.result for job in run_jobs()] == ["written"]
        assert Queue.objects.filter(name="durable").exists()

    def test_and_is_gone_in_the_next(self) -> None:
        self.test_what_a_job_writes_goes_with_the_test()

    def test_failures_leave_the_transaction_usable(self) -> None:
        with self.captureOnCommitCallbacks() as callbacks:
            enqueue(write_and_break)
            with pytest.raises(IntegrityError):
                run_jobs(raising=True)
        assert Job.objects.get().status == "FAILED"
        assert callbacks == []

    async def test_from_an_async_test(self) -> None:
        await sync_to_async(enqueue)(async_progress)
        (job,) = await sync_to_async(run_jobs)()
        assert job.result == 1


class InATransactionTestCase(TransactionTestCase):
    def test_a_due_time(self) -> None:
        schedule(cron="0 9 * * *", _timezone="UTC", args=[1, "a"])(functions.async_add)
        with pytest.raises(TypeError):
            run_due(now=NINE, raising=True)
        assert Job.objects.get().status == "FAILED"


@pytest.mark.django_db
def test_language_and_time_zone_are_the_workers_inside_and_the_callers_outside() -> None:
    enqueue(functions.change_the_language, _priority=1)
    enqueue(functions.surroundings)
    with translation.override("de"), timezone.override("America/New_York"):
        _, job = run_jobs()
        assert (translation.get_language(), timezone.get_current_timezone_name()) == ("de", "America/New_York")
    assert (job.result["language"], job.result["zone"]) == ("en-us", "Europe/Paris")


@pytest.mark.django_db
def test_the_queries_of_jobs_can_be_captured() -> None:
    enqueue(write_durably)
    with CaptureQueriesContext(connection) as captured:
        Queue.objects.exists()
        run_jobs()
    assert any("'durable'" in query["sql"] for query in captured.captured_queries)
    assert "_pgwerk_queues" in captured.captured_queries[0]["sql"]


# -- assertions ------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_assertions_find_what_waits() -> None:
    enqueue(functions.add, 1, b=2, _key="one", _queue="mail", _priority=3, _meta={"team": "x"})
    enqueue(functions.add, 4)
    assert [job.key for job in assert_enqueued(functions.add, args=(1,), kwargs={"b": 2})] == ["one"]
    assert len(assert_enqueued("tests.functions.add", count=2)) == 2
    assert_enqueued(key="one", queue="mail", priority=3, meta__team="x")
    assert_enqueued(run_at__lte=now())
    assert_not_enqueued(functions.noop)
    assert_not_enqueued(functions.add, args=[2])
    run_jobs()
    assert_not_enqueued()


@pytest.mark.django_db
def test_assertions_know_the_schedule() -> None:
    row = make(ago=SECOND, _name="mine")
    pause_queue("default")
    run_due()
    assert assert_enqueued(schedule="mine") == assert_enqueued(schedule=row)
    assert_not_enqueued(schedule="other")


@pytest.mark.django_db
def test_a_failed_assertion_says_what_is_there() -> None:
    with pytest.raises(AssertionError, match=r"^expected a waiting job, found 0\. Nothing waits\.$"):
        assert_enqueued()
    enqueue(functions.add, 1)
    run_jobs()
    enqueue(functions.add, 4, b=5, _key="four")
    make(ago=SECOND, _name="mine", _jitter=10**6)
    run_due()
    with pytest.raises(AssertionError) as failed:
        assert_enqueued(functions.add, args=[1])
    first, four, mine = str(failed.value).splitlines()
    assert first == (
        "expected a waiting job with function='tests.functions.add', args=[1], found 0 (and 1 SUCCESSFUL). What waits:"
    )
    assert four.startswith("  tests.functions.add(4, b=5), queue=default, run_at=")
    assert four.endswith(", key=four")
    assert mine.startswith("  tests.functions.noop() of schedule mine, queue=default, run_at=")
    with pytest.raises(
        AssertionError, match=r"^expected 0 waiting jobs with function='tests\.functions\.add', found 1"
    ):
        assert_not_enqueued(functions.add)
    with pytest.raises(AssertionError, match=r"^expected 1 waiting job, found 2"):
        assert_enqueued(count=1)


@pytest.mark.django_db
def test_a_failed_assertion_is_no_flood() -> None:
    enqueue_many(functions.add, [[n] for n in range(23)])
    with pytest.raises(AssertionError, match=r"\n  and 3 more$"):
        assert_not_enqueued()


# -- the registry, and pytest ----------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_only_some_of_what_code_declares() -> None:
    schedule(cron="0 9 * * *", _timezone="UTC")(functions.noop)
    schedule(cron="0 9 * * *", _timezone="UTC", _name="other")(functions.job_seen)
    with isolated_registry(functions.noop):
        assert [job.function for job in run_due(now=NINE)] == ["tests.functions.noop"]
    with isolated_registry("other") as isolated:
        schedule(interval=5)(functions.produce)
        assert [definition.name for definition in isolated] == ["other", "tests.functions.produce"]
    with isolated_registry() as isolated:
        assert not len(isolated)
    assert [definition.name for definition in registry] == ["other", "tests.functions.noop"]
    with (
        pytest.raises(ValueError, match=r"that code declares, got \['missing'\]"),
        isolated_registry("missing"),
    ):
        pass


def test_the_fixture(pgwerk: ModuleType) -> None:
    schedule(cron="0 9 * * *", _timezone="UTC")(functions.noop)
    enqueue(functions.add, 1)
    assert len(pgwerk.run_due(now=NINE)) == 1
    pgwerk.assert_enqueued(functions.add, count=1)
    assert len(pgwerk.run_jobs()) == 1
    pgwerk.assert_not_enqueued()


def test_the_fixture_gives_back_what_it_found(pytester: pytest.Pytester) -> None:
    pytester.makeconftest('pytest_plugins = ["pgwerk_django.pytest_plugin"]')
    pytester.makepyfile("""
        import pytest
        from pgwerk_django import schedule
        from pgwerk_django.registry import registry
        from tests import functions

        @pytest.fixture
        def db():
            pass

        def test_one(pgwerk):
            schedule(functions.noop, interval=5)
            assert len(registry) == 1

        def test_two():
            assert len(registry) == 0
    """)
    pytester.runpytest_inprocess("-p", "no:randomly", "-p", "no:django", "-p", "no:cacheprovider").assert_outcomes(
        passed=2
    )


@pytest.mark.process
def test_the_plugin_loads_no_model() -> None:
    code = "import pgwerk_django.pytest_plugin, sys; sys.exit('pgwerk_django.models' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_whoever_does_not_ask_for_it_has_no_plugin() -> None:
    assert not [each for each in entry_points(group="pytest11") if each.value.startswith("pgwerk_django")]


# -- other targets ---------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_task_goes_to_its_backend_at_that_instant(notes: object) -> None:
    schedule(django_tasks.immediate, cron="0 9 * * *", args=[1], _timezone="UTC")
    at = dt.datetime(2031, 1, 1, 9, tzinfo=dt.UTC)
    (job,) = run_due(now=at)
    assert (job.status, job.target, job.due_at, job.finished_at) == ("FORWARDED", "django_tasks", at, at)
    assert functions.read() == [["immediate", 1]]


@pytest.mark.django_db
def test_what_cannot_be_handed_over_waits_and_may_be_raised() -> None:
    schedule("tests.django_tasks.gone", interval=60, _target="django_tasks")
    at = dt.datetime(2031, 1, 1, tzinfo=dt.UTC)
    assert run_due(now=at) == []
    job = Job.objects.get(status="READY")
    assert job.attempt == 1
    assert job.run_at > at
    with pytest.raises(FunctionNotFound, match="cannot be imported"):
        run_due(now=at + dt.timedelta(hours=1), raising=True)
