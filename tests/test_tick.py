"""One tick: each due time becomes exactly one job, and the schedule goes on."""

import contextlib
import datetime as dt
import threading
from collections.abc import Iterator

import psycopg
import pytest
from asgiref.sync import async_to_sync
from django.db import connection, connections
from django.db.models.functions import Now

from pgwerk_django import signals
from pgwerk_django.inline import Inline
from pgwerk_django.models import Job, Process, Schedule
from pgwerk_django.scheduler import Scheduler
from pgwerk_django.tick import tick
from tests.time_travel import HOUR, MINUTE, SECOND, jobs, make, make_due, now, reread, statuses
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)


@contextlib.contextmanager
def running() -> Iterator[None]:
    """A scheduler in a thread of its own."""
    live = Scheduler()
    thread = threading.Thread(target=live.run)
    thread.start()
    try:
        yield
    finally:
        live.stop()
        thread.join()


def test_nothing_due_is_nothing_done(scheduler: Scheduler) -> None:
    make(interval=60)
    make(cron="0 0 1 1 *", _name="yearly")
    scheduler.tick()  # plans both
    assert scheduler.tick() == 0
    assert not Job.objects.exists()


def test_a_due_schedule_becomes_one_job_with_its_whole_payload(scheduler: Scheduler) -> None:
    row = make(
        "tests.functions.add", ago=SECOND, args=[1], kwargs={"b": 2}, _queue="reports", _priority=5, _meta={"team": "x"},
        _max_attempts=3, _backoff=[1, 60], _timeout=30, _result_ttl=100, _failure_ttl=200,
    )  # fmt: skip
    assert scheduler.tick() == 1
    (job,) = jobs(row)
    assert (job.function, job.args, job.kwargs, job.meta) == ("tests.functions.add", [1], {"b": 2}, {"team": "x"})
    assert (job.queue, job.priority, job.max_attempts, job.backoff) == ("reports", 5, 3, [1, 60])
    assert (job.timeout, job.result_ttl, job.failure_ttl) == (30, 100, 200)
    assert (job.kind, job.status, job.target, job.schedule_id) == ("scheduled", "READY", "worker", row.pk)
    assert job.due_at == row.next_run_at
    assert job.run_at == job.enqueued_at
    after = reread(row)
    assert after.next_run_at == row.next_run_at + MINUTE
    assert after.last_run_at == row.next_run_at
    assert after.run_count == 1
    assert scheduler.tick() == 0


def test_the_key_names_the_schedule_and_the_due_time_in_utc(scheduler: Scheduler) -> None:
    due_at = dt.datetime(2026, 1, 1, 9, 0, tzinfo=dt.UTC)
    scheduler.schedule_at("tests.functions.noop", due_at, _name="reports.daily")
    scheduler.tick()
    assert [job.key for job in jobs("reports.daily")] == ["reports.daily@2026-01-01T09:00:00.000000Z"]


def test_a_due_time_on_record_does_not_run_again_and_the_schedule_goes_on(scheduler: Scheduler) -> None:
    row = make(ago=SECOND)
    scheduler.tick()
    heard = []
    signals.due_time_repeated.connect(lambda **event: heard.append(event["key"]), weak=False, dispatch_uid="test")
    try:
        # As after a restore from a backup: the schedule forgot, the jobs did not.
        Schedule.objects.filter(pk=row.pk).update(next_run_at=row.next_run_at, last_run_at=None)
        assert scheduler.tick() == 1
    finally:
        signals.due_time_repeated.disconnect(dispatch_uid="test")
    (job,) = jobs(row)
    assert heard == [job.key]
    assert reread(row).next_run_at == row.next_run_at + MINUTE


def test_a_due_time_on_record_keeps_no_other_from_running(scheduler: Scheduler) -> None:
    rows = [make(ago=SECOND, _name=f"s{number}") for number in range(20)]
    scheduler.tick()
    first = Schedule.objects.filter(pk=rows[0].pk)
    first.update(next_run_at=rows[0].next_run_at, last_run_at=None)
    Schedule.objects.exclude(pk=rows[0].pk).update(next_run_at=Now())
    assert scheduler.tick() == 20
    assert [len(jobs(row)) for row in rows] == [1] + [2] * 19
    assert not Schedule.objects.exclude(error="").exists()
    assert scheduler.tick() == 0


def test_a_due_time_not_newer_than_the_last_is_dropped_also_when_its_job_is_gone(scheduler: Scheduler) -> None:
    row = make(ago=SECOND)
    scheduler.tick()
    Job.objects.all().delete()
    Schedule.objects.filter(pk=row.pk).update(next_run_at=row.next_run_at)
    assert scheduler.tick() == 1
    assert jobs(row) == []
    assert reread(row).next_run_at == row.next_run_at + MINUTE


def test_batches_drain_a_backlog(scheduler: Scheduler) -> None:
    for number in range(5):
        make(ago=SECOND, _name=f"s{number}")
    assert [scheduler.tick(batch_size=2) for _ in range(4)] == [2, 2, 1, 0]
    assert Job.objects.count() == 5


def test_the_longest_due_go_first(scheduler: Scheduler) -> None:
    make(ago=SECOND, _name="new")
    make(ago=HOUR, _name="old")
    scheduler.tick(batch_size=1)
    assert jobs("old")
    assert not jobs("new")


# -- promise 1: many schedulers, one job ---------------------------------------------------------------------------


def test_a_schedule_that_another_holds_is_passed_over(scheduler: Scheduler, other_session: psycopg.Connection) -> None:
    held, free = make(ago=HOUR, _name="held"), make(ago=SECOND, _name="free")
    with other_session.transaction():
        other_session.execute("SELECT 1 FROM _pgwerk_schedules WHERE id = %s FOR NO KEY UPDATE", [held.pk])
        assert scheduler.tick() == 1
        assert jobs(held) == []
        assert len(jobs(free)) == 1
    assert scheduler.tick() == 1
    assert jobs(held)


def test_eight_schedulers_make_one_job_of_each_due_time() -> None:
    rows = [make(ago=30 * SECOND, interval=10, _name=f"s{n:03}", _overlap="ALLOW") for n in range(200)]
    handled: list[int] = []

    def drain() -> None:
        try:
            while count := Scheduler().tick(batch_size=7):
                handled.append(count)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=drain) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # A thread may find all that is left held by others and stop, so one more pass ends it.
    while Scheduler().tick():
        pass
    keys = list(Job.objects.values_list("key", flat=True))
    assert len(keys) == len(set(keys)) >= 200 * 4
    for row in rows:
        found = [job.due_at for job in jobs(row)]
        assert found == [row.next_run_at + n * 10 * SECOND for n in range(len(found))]
    assert sum(handled) >= 200


# -- promise 2: PostgreSQL's clock -----------------------------------------------------------------------------------


@pytest.mark.parametrize("minutes", [-10, 10])
def test_a_host_clock_that_is_off_moves_nothing(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, minutes: int
) -> None:
    """Whatever Python's clock says, what is due is due and what is not is not."""
    real = dt.datetime

    class Skewed(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:
            return real.now(tz) + dt.timedelta(minutes=minutes)

    due, later = make(ago=SECOND, _name="due"), make(interval=300, _name="later")
    make_due(later, ago=-5 * MINUTE)
    monkeypatch.setattr(dt, "datetime", Skewed)
    assert scheduler.tick() == 1
    (job,) = jobs(due)
    assert job.due_at == due.next_run_at
    assert reread(due).next_run_at == due.next_run_at + MINUTE
    assert jobs(later) == []


def test_a_database_clock_that_stepped_back_never_plans_backwards(scheduler: Scheduler) -> None:
    row = make(ago=SECOND)
    ahead = now() + HOUR
    Schedule.objects.filter(pk=row.pk).update(last_run_at=ahead)
    assert scheduler.tick() == 1
    assert jobs(row) == []
    next_run_at = reread(row).next_run_at
    assert next_run_at is not None
    assert ahead < next_run_at <= ahead + MINUTE


def test_nor_does_a_new_plan(scheduler: Scheduler) -> None:
    row = make(interval=60)
    scheduler.tick()
    ahead = now() + HOUR
    Schedule.objects.filter(pk=row.pk).update(last_run_at=ahead, interval=30)
    assert reread(row).replan
    scheduler.tick()
    next_run_at = reread(row).next_run_at
    assert next_run_at is not None
    assert ahead < next_run_at <= ahead + MINUTE


def gone_ahead(scheduler: Scheduler, **options: object) -> Schedule:
    """As a moment leaves it in which PostgreSQL's clock was a year ahead."""
    row = make(ago=-MINUTE, **options)
    tick(using="default", now=now() + dt.timedelta(days=365))
    assert jobs(row)
    Job.objects.all().delete()
    row.refresh_from_db()
    assert row.last_run_at is not None
    assert row.last_run_at > now() + 300 * dt.timedelta(days=1)
    assert scheduler.tick() == 0
    return row


@pytest.mark.parametrize("how", ["resume", "sql", "edit", "set by hand", "set by hand in the past"])
def test_after_the_clock_was_ahead_a_persons_word_starts_it_anew(scheduler: Scheduler, how: str) -> None:
    row = gone_ahead(scheduler)
    due_at = now() - (HOUR if how.endswith("past") else SECOND)
    if how == "resume":
        scheduler.pause(row.name)
        scheduler.resume(row.name)
    elif how == "edit":
        scheduler.update(row.name, timezone="Asia/Tokyo")
    elif how == "sql":
        with connection.cursor() as cursor:
            cursor.execute("UPDATE _pgwerk_schedules SET paused = true")
            cursor.execute("UPDATE _pgwerk_schedules SET paused = false")
    else:
        Schedule.objects.filter(pk=row.pk).update(next_run_at=due_at)
    assert scheduler.tick() == (0 if how in ("resume", "edit") else 1)
    if how.startswith("set"):
        assert min(job.due_at for job in jobs(row) if job.due_at) == due_at
    after = reread(row)
    assert after.next_run_at is not None
    assert now() < after.next_run_at <= now() + MINUTE
    assert after.last_run_at is None or after.last_run_at <= now()


def test_a_last_run_in_the_past_stays_the_first_line_against_doubles(scheduler: Scheduler) -> None:
    """Whatever a person does to a schedule that is well."""
    row = make(ago=SECOND)
    scheduler.tick()
    last = reread(row).last_run_at
    assert last == row.next_run_at
    Schedule.objects.filter(pk=row.pk).update(next_run_at=last - HOUR)
    assert reread(row).last_run_at == last
    scheduler.pause(row.name)
    scheduler.resume(row.name)
    scheduler.update(row.name, interval=90)
    assert reread(row).last_run_at == last


@pytest.fixture
def connection_in_new_york() -> object:
    """A site may give its connections a zone; sums of such instants go by the clock on the wall."""
    connection.settings_dict["TIME_ZONE"] = "America/New_York"
    for cached in ("timezone", "timezone_name"):
        connections["default"].__dict__.pop(cached, None)
    connection.close()
    yield
    connection.settings_dict["TIME_ZONE"] = None
    for cached in ("timezone", "timezone_name"):
        connections["default"].__dict__.pop(cached, None)
    connection.close()


def test_the_connections_time_zone_moves_nothing(scheduler: Scheduler, connection_in_new_york: object) -> None:
    """Back over the night when New York's clocks go back: 25 hours, which a wall clock calls 24."""
    before = dt.datetime(2026, 11, 1, 3, 59, tzinfo=dt.UTC)  # 23:59 on October 31st there
    row = scheduler.schedule_at("tests.functions.noop", before, interval=86400, _misfire="ALL")
    assert row.next_run_at is not None
    assert row.next_run_at.utcoffset() is not None
    scheduler.tick()
    found = [job.due_at for job in jobs(row)]
    assert found == [before + n * dt.timedelta(days=1) for n in range(len(found))]
    assert len(found) > 20
    keys = {job.key for job in jobs(row)}
    assert keys == {f"{row.name}@{due_at.astimezone(dt.UTC):%Y-%m-%dT%H:%M:%S.%f}Z" for due_at in found if due_at}
    with connection.cursor() as cursor:
        cursor.execute("SHOW timezone")
        assert cursor.fetchone() == ("America/New_York",)


def test_the_connections_time_zone_moves_no_span(scheduler: Scheduler, connection_in_new_york: object) -> None:
    row = make(ago=3 * HOUR, interval=3600)
    scheduler.tick()
    skipped, ran = jobs(row)
    assert dt.datetime.fromisoformat(skipped.result["first_due_at"]) == row.next_run_at
    assert dt.datetime.fromisoformat(skipped.result["last_due_at"]) == ran.due_at - HOUR


# -- misfire ---------------------------------------------------------------------------------------------------------


def test_latest_runs_once_and_one_row_stands_for_what_was_dropped(scheduler: Scheduler) -> None:
    row = make(ago=3 * HOUR, interval=600)
    scheduler.tick()
    skipped, ran = jobs(row)
    assert (skipped.status, ran.status) == ("SKIPPED", "READY")
    assert skipped.due_at == row.next_run_at
    assert ran.due_at == row.next_run_at + 3 * HOUR
    assert "misfire" in skipped.reason
    assert {name: dt.datetime.fromisoformat(text) for name, text in skipped.result.items()} == {
        "first_due_at": row.next_run_at,
        "last_due_at": ran.due_at - 600 * SECOND,
    }
    assert skipped.finished_at is not None
    assert skipped.expires_at is not None
    assert reread(row).last_run_at == ran.due_at
    assert reread(row).run_count == 1


def test_all_runs_each_oldest_first_a_capful_a_tick(scheduler: Scheduler, settings: object) -> None:
    settings.PGWERK = {"MAX_CATCH_UP": 4, "AUTODISCOVER": ()}  # type: ignore[attr-defined]
    row = make(ago=9 * MINUTE, interval=60, _misfire="ALL")
    counts = []
    while scheduler.tick():
        counts.append(len(jobs(row)))
    assert counts == [4, 8, 10]
    assert [job.due_at for job in jobs(row)] == [row.next_run_at + n * MINUTE for n in range(10)]
    assert set(statuses(row)) == {"READY"}


def test_skip_records_what_it_drops_and_waits_for_the_next(scheduler: Scheduler) -> None:
    row = make(ago=90 * MINUTE, interval=3600, _misfire="SKIP")
    scheduler.tick()
    assert statuses(row) == ["SKIPPED"]
    after = reread(row)
    assert after.next_run_at == row.next_run_at + 2 * HOUR
    assert after.run_count == 0


def test_a_due_time_that_skip_dropped_is_dropped_once(scheduler: Scheduler) -> None:
    """Its row stands for all of the span: one of them that is set by hand has no other."""
    row = make(ago=50 * MINUTE, interval=600, _misfire="SKIP", _misfire_grace=0)
    scheduler.tick()
    (skipped,) = jobs(row)
    Schedule.objects.filter(pk=row.pk).update(next_run_at=row.next_run_at + 20 * MINUTE)
    assert scheduler.tick() == 1
    assert [job.pk for job in jobs(row)] == [skipped.pk]
    assert reread(row).next_run_at == row.next_run_at + HOUR


@pytest.mark.parametrize(("own", "kept"), [(100, 100), (0, 0), (None, 7 * 24 * 3600)])
def test_a_skipped_due_time_is_kept_for_the_time_of_a_result(
    scheduler: Scheduler, settings: object, own: int | None, kept: int
) -> None:
    settings.PGWERK = {"RESULT_TTL": 7 * 24 * 3600, "AUTODISCOVER": ()}  # type: ignore[attr-defined]
    row = make(ago=90 * MINUTE, interval=3600, _misfire="SKIP", _result_ttl=own)
    scheduler.tick()
    (skipped,) = jobs(row)
    assert skipped.expires_at - skipped.finished_at == kept * SECOND


def test_the_grace_is_the_schedules_own(scheduler: Scheduler) -> None:
    row = make(ago=HOUR + 10 * SECOND, interval=3600, _misfire="SKIP", _misfire_grace=7200)
    scheduler.tick()
    assert statuses(row) == ["READY", "SKIPPED"]  # both on time; the second overlaps
    assert "overlap" in jobs(row)[1].reason


# -- overlap ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overlap", "earlier", "expected"),
    [
        ("BUFFER_ONE", "READY", "SKIPPED"),
        ("BUFFER_ONE", "RUNNING", "READY"),
        ("BUFFER_ONE", "FAILED", "READY"),
        ("SKIP", "READY", "SKIPPED"),
        ("SKIP", "RUNNING", "SKIPPED"),
        ("SKIP", "SUCCESSFUL", "READY"),
        ("ALLOW", "READY", "READY"),
        ("ALLOW", "RUNNING", "READY"),
    ],
)
@pytest.mark.parametrize("kind", ["scheduled", "trigger"])
def test_overlap(scheduler: Scheduler, overlap: str, earlier: str, expected: str, kind: str) -> None:
    row = make(ago=SECOND, _overlap=overlap)
    open_job = Job.objects.create(schedule=row, schedule_name=row.name, status=earlier, kind=kind)
    scheduler.tick()
    job = Job.objects.exclude(pk=open_job.pk).get()
    assert job.status == expected
    assert (f"job {open_job.pk}" in job.reason) == (expected == "SKIPPED")
    assert reread(row).next_run_at == row.next_run_at + MINUTE


def test_a_job_that_has_started_overlaps_after_the_time_to_start(scheduler: Scheduler) -> None:
    row = make(ago=SECOND, _overlap="SKIP", _start_within="next")
    running = Job.objects.create(
        schedule=row, schedule_name=row.name, status="RUNNING", kind="scheduled", start_by=now() - MINUTE
    )
    scheduler.tick()
    job = Job.objects.exclude(pk=running.pk).get()
    assert (job.status, f"job {running.pk}" in job.reason) == ("SKIPPED", True)


def test_a_job_of_another_schedule_is_no_overlap(scheduler: Scheduler) -> None:
    row, other = make(ago=SECOND, _overlap="SKIP"), make(_name="other")
    Job.objects.create(schedule=other, schedule_name=other.name)
    scheduler.tick()
    assert statuses(row) == ["READY"]


def test_within_one_tick_at_most_one_becomes_ready(scheduler: Scheduler) -> None:
    row = make(ago=25 * SECOND, interval=10)
    scheduler.tick()
    assert statuses(row) == ["READY", "SKIPPED", "SKIPPED"]


def test_all_allows_overlap_unless_told_otherwise(scheduler: Scheduler) -> None:
    row = make(ago=25 * SECOND, interval=10, _misfire="ALL")
    told = make(ago=25 * SECOND, interval=10, _misfire="ALL", _overlap="SKIP", _name="told")
    scheduler.tick()
    assert statuses(row) == ["READY"] * 3
    assert statuses(told) == ["READY", "SKIPPED", "SKIPPED"]


# -- windows, counts, one-offs, jitter -------------------------------------------------------------------------------


def test_no_due_time_after_the_end(scheduler: Scheduler) -> None:
    row = make(ago=SECOND)
    Schedule.objects.filter(pk=row.pk).update(ends_at=row.next_run_at, next_run_at=row.next_run_at - MICRO)
    Schedule.objects.filter(pk=row.pk).update(next_run_at=row.next_run_at, replan=False)
    scheduler.tick()
    assert statuses(row) == ["READY"]
    assert reread(row).next_run_at is None


MICRO = dt.timedelta(microseconds=1)


def test_no_due_time_before_the_start(scheduler: Scheduler) -> None:
    starts_at = now() + 10 * HOUR
    row = make(cron="* * * * *", _starts_at=starts_at)
    scheduler.tick()
    next_run_at = reread(row).next_run_at
    assert next_run_at is not None
    assert starts_at <= next_run_at < starts_at + MINUTE


def test_the_last_due_time_of_a_window_that_closed_while_we_were_down(scheduler: Scheduler) -> None:
    row = make(ago=10 * HOUR, interval=3600)
    ends_at = row.next_run_at + 2 * HOUR
    Schedule.objects.filter(pk=row.pk).update(ends_at=ends_at)
    Schedule.objects.filter(pk=row.pk).update(next_run_at=row.next_run_at, replan=False)
    scheduler.tick()
    skipped, ran = jobs(row)
    assert (ran.due_at, ran.status) == (ends_at, "READY")
    assert dt.datetime.fromisoformat(skipped.result["last_due_at"]) == ends_at - HOUR
    assert reread(row).next_run_at is None


def test_an_edit_by_sql_keeps_the_last_run(scheduler: Scheduler) -> None:
    """It is the first line against doubles, and a tick that only plans has no due time to put there."""
    row = make(ago=SECOND)
    scheduler.tick()
    Schedule.objects.filter(pk=row.pk).update(interval=90)
    assert scheduler.tick() == 1
    assert reread(row).last_run_at == row.next_run_at


@pytest.mark.parametrize(("catch_up", "ran"), [(100, 1), (2, 1)])
def test_what_is_left_of_max_runs_is_all_that_runs(
    scheduler: Scheduler, settings: object, catch_up: int, ran: int
) -> None:
    settings.PGWERK = {"MAX_CATCH_UP": catch_up, "AUTODISCOVER": ()}  # type: ignore[attr-defined]
    row = make(ago=9 * MINUTE, interval=60, _misfire="ALL", _max_runs=5)
    Schedule.objects.filter(pk=row.pk).update(run_count=4)
    while scheduler.tick():
        pass
    assert len(jobs(row)) == ran
    assert (reread(row).run_count, reread(row).next_run_at) == (5, None)


def test_a_tick_makes_no_more_than_its_share_though_more_runs_are_left(scheduler: Scheduler, settings: object) -> None:
    settings.PGWERK = {"MAX_CATCH_UP": 3, "AUTODISCOVER": ()}  # type: ignore[attr-defined]
    row = make(ago=9 * MINUTE, interval=60, _misfire="ALL", _max_runs=8)
    counts = []
    while scheduler.tick():
        counts.append(len(jobs(row)))
    assert counts == [3, 6, 8]


def test_max_runs_counts_what_ran_and_then_ends(scheduler: Scheduler) -> None:
    row = make(ago=25 * SECOND, interval=10, _max_runs=2, _overlap="ALLOW")
    scheduler.tick()
    assert statuses(row) == ["READY", "READY"]
    assert (reread(row).run_count, reread(row).next_run_at) == (2, None)


def test_max_runs_counts_neither_skipped_nor_triggered(scheduler: Scheduler) -> None:
    row = make(ago=25 * SECOND, interval=10, _max_runs=2)
    scheduler.trigger(row.name)
    scheduler.tick()
    scheduler.tick()
    assert [job.status for job in jobs(row, kind="scheduled")] == ["READY", "SKIPPED", "SKIPPED"]
    assert reread(row).run_count == 1
    assert reread(row).next_run_at is not None


def test_max_runs_lowered_to_what_has_run_is_the_end(scheduler: Scheduler) -> None:
    row = make(ago=9 * MINUTE, interval=60, _misfire="ALL", _max_runs=9)
    Schedule.objects.filter(pk=row.pk).update(run_count=3)
    Schedule.objects.filter(pk=row.pk).update(max_runs=2)
    assert reread(row).next_run_at == row.next_run_at
    assert scheduler.tick() == 1
    assert jobs(row) == []
    assert (reread(row).next_run_at, reread(row).error) == (None, "")


def test_max_runs_raised_before_the_end_loses_no_due_time(scheduler: Scheduler) -> None:
    row = make(ago=SECOND, _max_runs=2)
    Schedule.objects.filter(pk=row.pk).update(max_runs=3)
    scheduler.tick()
    assert [job.due_at for job in jobs(row)] == [row.next_run_at]


def test_max_runs_raised_after_the_end_goes_on(scheduler: Scheduler) -> None:
    row = make(ago=SECOND, _max_runs=1)
    scheduler.tick()
    assert reread(row).next_run_at is None
    Schedule.objects.filter(pk=row.pk).update(max_runs=2)
    scheduler.tick()
    assert reread(row).next_run_at == row.next_run_at + MINUTE


def test_a_one_off_runs_once_and_has_ended(scheduler: Scheduler) -> None:
    row = scheduler.schedule_in(0, "tests.functions.noop", _name="once")
    assert scheduler.tick() == 1
    assert scheduler.tick() == 0
    assert statuses(row) == ["READY"]
    assert reread(row).next_run_at is None


def test_jitter_moves_the_run_and_never_the_due_time(scheduler: Scheduler) -> None:
    rows = [make(ago=SECOND, _jitter=300, _name=f"s{n}") for n in range(30)]
    scheduler.tick()
    delays = set()
    for row in rows:
        (job,) = jobs(row)
        assert job.due_at == row.next_run_at
        delays.add(job.run_at - job.enqueued_at)
    assert dt.timedelta() <= min(delays) <= max(delays) <= 300 * SECOND
    assert len(delays) > 10


def test_the_smallest_jitter_is_none_or_all_of_it(scheduler: Scheduler) -> None:
    for number in range(40):
        make(ago=5 * HOUR, interval=86400, _jitter=1, _name=f"s{number}")
    scheduler.tick()
    assert {job.run_at - job.enqueued_at for job in Job.objects.all()} == {dt.timedelta(), SECOND}


def test_jitter_lets_no_job_run_before_it_was_written(scheduler: Scheduler) -> None:
    row = make(ago=30 * SECOND, _jitter=1)
    scheduler.tick()
    (job,) = jobs(row)
    assert job.run_at == job.enqueued_at


def test_jitter_differs_from_due_time_to_due_time(scheduler: Scheduler) -> None:
    row = make(ago=19 * MINUTE, interval=60, _misfire="ALL", _jitter=600)
    scheduler.tick()
    found = jobs(row)
    assert len(found) == 20
    assert len({job.run_at - job.enqueued_at for job in found if job.due_at < job.enqueued_at - 2 * MINUTE}) > 5


def test_a_trigger_knows_no_jitter(scheduler: Scheduler) -> None:
    """It is for now."""
    rows = [make(interval=3600, ago=-HOUR, _jitter=600, _name=f"s{number}") for number in range(5)]
    Schedule.objects.all().trigger()
    scheduler.tick()
    for row in rows:
        (job,) = jobs(row, kind="trigger")
        assert job.run_at == job.enqueued_at


# -- promise 6: trigger ----------------------------------------------------------------------------------------------


def test_a_trigger_runs_the_payload_now_and_moves_no_due_time(scheduler: Scheduler) -> None:
    row = make("tests.functions.add", args=[1], kwargs={"b": 2}, interval=3600)
    make_due(row, ago=-HOUR)
    planned = reread(row).next_run_at
    scheduler.trigger(row.name, by="ada")
    assert scheduler.tick() == 1
    (job,) = jobs(row)
    assert (job.kind, job.status, job.args, job.kwargs) == ("trigger", "READY", [1], {"b": 2})
    assert "ada" in job.reason
    assert job.key.endswith("#trigger")
    after = reread(row)
    assert (after.next_run_at, after.triggered_at, after.last_run_at, after.run_count) == (planned, None, None, 0)
    assert scheduler.tick() == 0


def test_a_trigger_beside_a_due_time_takes_nothing_from_it(scheduler: Scheduler) -> None:
    row = make(ago=SECOND)
    scheduler.trigger(row.name)
    assert scheduler.tick() == 1
    assert {(job.kind, job.status) for job in jobs(row)} == {("scheduled", "READY"), ("trigger", "READY")}
    assert reread(row).next_run_at == row.next_run_at + MINUTE


def test_a_paused_schedule_triggered_runs_once_and_stays_paused(scheduler: Scheduler) -> None:
    row = make(ago=SECOND)
    scheduler.pause(row.name)
    assert scheduler.tick() == 0
    scheduler.trigger(row.name)
    assert scheduler.tick() == 1
    assert scheduler.tick() == 0
    assert [job.kind for job in jobs(row)] == ["trigger"]
    assert reread(row).paused


@pytest.mark.parametrize("paused", [True, False])
def test_a_trigger_that_lies_ahead_waits(scheduler: Scheduler, paused: bool) -> None:
    """A person may set one for later; a tick that took the row and changed nothing would take it again at once."""
    row = make(ago=None if paused else -HOUR, _name="ahead")
    if paused:
        make_due(row)
    at = now() + 2 * HOUR
    Schedule.objects.filter(pk=row.pk).update(paused=paused, triggered_at=at)
    assert scheduler.tick() == 0
    assert not Schedule.objects.due().exists()
    next_due_at, _ = Schedule.objects.next_due()
    assert next_due_at == (at if paused else row.next_run_at)
    Schedule.objects.filter(pk=row.pk).update(triggered_at=now() - SECOND)
    assert scheduler.tick() == 1
    assert [job.kind for job in jobs(row)] == ["trigger"]
    assert scheduler.tick() == 0


def test_a_trigger_that_lies_ahead_is_not_used_up_by_a_due_time(scheduler: Scheduler) -> None:
    row = make(ago=SECOND)
    at = now() + 2 * HOUR
    Schedule.objects.filter(pk=row.pk).update(triggered_at=at, triggered_by="ada")
    assert scheduler.tick() == 1
    assert [job.kind for job in jobs(row)] == ["scheduled"]
    assert (reread(row).triggered_at, reread(row).triggered_by) == (at, "ada")


def test_a_trigger_asked_twice_before_a_tick_is_one_run(scheduler: Scheduler) -> None:
    row = make()
    scheduler.tick()
    for _ in range(2):
        scheduler.trigger(row.name)
    scheduler.tick()
    assert [job.kind for job in jobs(row)] == ["trigger"]


@pytest.mark.parametrize("state", ["ended", "set aside"])
def test_what_no_longer_recurs_can_still_be_triggered(scheduler: Scheduler, state: str) -> None:
    row = make(ago=SECOND, _max_runs=1)
    scheduler.tick()
    if state == "set aside":
        Schedule.objects.filter(pk=row.pk).update(error="broken", next_run_at=None)
    scheduler.trigger(row.name)
    assert scheduler.tick() == 1
    assert len(jobs(row, kind="trigger")) == 1


def test_a_trigger_leaves_the_error_of_what_was_set_aside(scheduler: Scheduler) -> None:
    """Else the schedule would have ended, and nobody would try it again."""
    row = make(cron="0 * * * *")
    Schedule.objects.filter(pk=row.pk).update(error="broken", next_run_at=None)
    scheduler.trigger(row.name, by="ada")
    assert scheduler.tick() == 1
    assert [job.kind for job in jobs(row)] == ["trigger"]
    assert (reread(row).error, reread(row).next_run_at) == ("broken", None)
    assert Schedule.objects.retry_set_aside() == 1


def test_who_triggered_is_forgotten_with_the_run(scheduler: Scheduler) -> None:
    row = make()
    scheduler.trigger(row.name, by="ada")
    scheduler.tick()
    assert (reread(row).triggered_at, reread(row).triggered_by) == (None, "")
    Schedule.objects.filter(pk=row.pk).update(triggered_at=now())
    scheduler.tick()
    assert [job.reason for job in jobs(row, kind="trigger")] == ["triggered by ada", ""]


# -- pause and resume ------------------------------------------------------------------------------------------------


def test_due_times_in_a_pause_have_no_rows_and_are_no_misfires(scheduler: Scheduler) -> None:
    row = make(ago=SECOND)
    scheduler.pause(row.name, reason="migration", by="ada")
    make_due(row, ago=5 * HOUR)
    assert scheduler.tick() == 0
    paused = reread(row)
    assert (paused.paused, paused.paused_by, paused.pause_reason) == (True, "ada", "migration")
    scheduler.resume(row.name)
    scheduler.tick()
    assert jobs(row) == []
    resumed = reread(row)
    assert resumed.next_run_at is not None
    assert now() < resumed.next_run_at <= now() + MINUTE
    assert (resumed.paused, resumed.paused_at, resumed.paused_by, resumed.pause_reason) == (False, None, "", "")


@pytest.mark.parametrize("door", ["queryset", "api", "async"])
def test_a_resume_plans_at_once(scheduler: Scheduler, door: str) -> None:
    """No scheduler need be alive for the next run that is shown to be the one that comes."""
    rule = make(interval=60, _name="rule")
    one_off = scheduler.schedule_in(0, "tests.functions.noop", _name="one-off")
    used_up = make(interval=60, _name="used up", _max_runs=1)
    broken = make(interval=60, _name="broken")
    coming = make(interval=7200, _name="coming")
    make_due(coming, ago=-HOUR)
    coming.refresh_from_db()
    Schedule.objects.all().pause()
    Schedule.objects.exclude(pk=coming.pk).update(next_run_at=now() - HOUR)
    Schedule.objects.filter(pk=used_up.pk).update(run_count=1)
    Schedule.objects.filter(pk=broken.pk).update(cron="every monday", interval=None)
    if door == "queryset":
        assert Schedule.objects.all().resume() == 5
    else:
        for row in (rule, one_off, used_up, broken, coming):
            if door == "api":
                scheduler.resume(row.name)
            else:
                async_to_sync(scheduler.aresume)(row.name)
    planned = reread(rule).next_run_at
    assert planned is not None
    assert now() < planned <= now() + MINUTE
    assert [reread(row).next_run_at for row in (one_off, used_up, coming)] == [None, None, coming.next_run_at]
    assert {row.name for row in Schedule.objects.filter(replan=True)} == {"broken"}
    scheduler.tick()
    assert "every monday" in reread(broken).error
    assert reread(rule).next_run_at == planned
    assert not Job.objects.exists()


def test_five_thousand_are_resumed_in_a_moment(django_assert_max_num_queries: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO _pgwerk_schedules (name, cron, next_run_at, paused)"
            " SELECT 's' || n, n % 60 || ' * * * *', now() - interval '1 hour', true FROM generate_series(1, 5000) n"
        )
    with django_assert_max_num_queries(30):  # type: ignore[operator]
        assert Schedule.objects.all().resume() == 5000
    assert Schedule.objects.filter(replan=False, paused=False, next_run_at__gt=Now()).count() == 5000


def test_a_row_that_waits_for_a_plan_shows_what_it_will_be(scheduler: Scheduler) -> None:
    row = make(interval=60)
    Schedule.objects.update(interval=90)
    shown = reread(row)
    assert shown.replan
    following = shown.next_run(now())
    assert following == shown.upcoming(1, now())[0]
    scheduler.tick()
    assert reread(row).next_run_at == following


def test_a_new_plan_of_one_that_has_had_its_runs_is_none(scheduler: Scheduler) -> None:
    row = make(interval=60, _max_runs=1)
    Schedule.objects.update(run_count=1)
    Schedule.objects.update(interval=90)
    scheduler.tick()
    assert (reread(row).next_run_at, reread(row).replan) == (None, False)


def test_a_one_off_still_to_come_survives_a_pause(scheduler: Scheduler) -> None:
    row = scheduler.schedule_in(3600, "tests.functions.noop", _name="next week")
    scheduler.pause(row.name)
    scheduler.resume(row.name)
    scheduler.tick()
    assert reread(row).next_run_at == row.next_run_at


def test_a_second_pause_keeps_the_first_ones_reason(scheduler: Scheduler) -> None:
    row = make()
    scheduler.pause(row.name, reason="first", by="ada")
    scheduler.pause(row.name, reason="second", by="bob")
    assert (reread(row).pause_reason, reread(row).paused_by) == ("first", "ada")


# -- promise 3: bad rows ---------------------------------------------------------------------------------------------

BAD = {
    "impossible date": "UPDATE _pgwerk_schedules SET cron = '0 0 30 2 *', interval = NULL WHERE id = %s",
    "nonsense": "UPDATE _pgwerk_schedules SET cron = 'every monday', interval = NULL WHERE id = %s",
    "unknown zone": "UPDATE _pgwerk_schedules SET cron = '* * * * *', interval = NULL, timezone = 'Mars/Base' WHERE id = %s",
    "zone of a strange kind": "UPDATE _pgwerk_schedules SET cron = '* * * * *', interval = NULL, timezone = '../x' WHERE id = %s",
}


@pytest.mark.parametrize("what", ["impossible date", "nonsense", "unknown zone", "zone of a strange kind"])
def test_a_row_that_cannot_be_planned_is_set_aside_and_delays_no_other(scheduler: Scheduler, what: str) -> None:
    bad = make(ago=HOUR, _name="bad")
    good = [make(ago=SECOND, _name=f"good{n}") for n in range(3)]
    with connection.cursor() as cursor:
        cursor.execute(BAD[what], [bad.pk])
    Schedule.objects.filter(pk=bad.pk).update(next_run_at=Now() - HOUR)
    scheduler.tick()
    for row in good:
        assert statuses(row) == ["READY"]
    aside = reread(bad)
    assert aside.error
    assert (aside.next_run_at, aside.triggered_at) == (None, None)
    assert jobs(bad) == []
    assert scheduler.tick() == 0


@pytest.fixture
def refusing_table() -> object:
    """A database that refuses some jobs: a site's own trigger on our table."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF NEW.schedule_name LIKE 'bad%' THEN RAISE EXCEPTION 'not this one'; END IF;
                RETURN NEW;
            END $$;
            CREATE TRIGGER refuse BEFORE INSERT ON _pgwerk_jobs FOR EACH ROW EXECUTE FUNCTION refuse();
            """
        )
    yield
    with connection.cursor() as cursor:
        cursor.execute("DROP FUNCTION refuse() CASCADE")


def test_rows_that_the_database_refuses_are_found_by_halving(scheduler: Scheduler, refusing_table: object) -> None:
    good = [make(ago=SECOND, _name=f"good{n:02}") for n in range(20)]
    bad = [make(ago=SECOND, _name=f"bad{n}") for n in range(3)]
    assert scheduler.tick() == 23
    for row in good:
        assert statuses(row) == ["READY"]
    for row in bad:
        assert "not this one" in reread(row).error
        assert reread(row).next_run_at is None
    assert scheduler.tick() == 0


def test_a_trigger_that_the_database_refuses_is_out_of_the_way(scheduler: Scheduler, refusing_table: object) -> None:
    bad = make(ago=-HOUR, _name="bad")
    scheduler.trigger(bad.name, by="ada")
    assert scheduler.tick() == 1
    aside = reread(bad)
    assert "not this one" in aside.error
    assert (aside.triggered_at, aside.triggered_by) == (None, "")
    assert not Schedule.objects.due().exists()
    assert scheduler.tick() == 0


def test_a_value_too_large_for_its_column_is_a_bad_row(scheduler: Scheduler) -> None:
    bad, good = make(ago=SECOND, _name="bad"), make(ago=SECOND, _name="good")
    Schedule.objects.filter(pk=bad.pk).update(run_count=2**31 - 1)
    scheduler.tick()
    assert "out of range" in reread(bad).error
    assert statuses(good) == ["READY"]


def test_a_missing_table_is_no_rows_fault(scheduler: Scheduler) -> None:
    row = make(ago=SECOND)
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE _pgwerk_jobs RENAME TO away")
    try:
        with pytest.raises(Exception, match="_pgwerk_jobs"):
            scheduler.tick()
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE away RENAME TO _pgwerk_jobs")
    assert reread(row).error == ""
    assert scheduler.tick() == 1


@pytest.mark.parametrize(
    "edit", [{"cron": "* * * * *"}, {"queue": "other"}, {"kwargs": {"a": 1}}, {"timezone": "Asia/Tokyo"}]
)
def test_an_edit_clears_the_error(scheduler: Scheduler, edit: dict[str, object]) -> None:
    row = make(cron="0 * * * *")
    Schedule.objects.filter(pk=row.pk).update(error="broken", next_run_at=None)
    Schedule.objects.filter(pk=row.pk).update(**edit)
    assert scheduler.tick() == 1
    assert reread(row).error == ""
    assert reread(row).next_run_at is not None


def test_what_was_set_aside_is_tried_again(scheduler: Scheduler) -> None:
    row = make(cron="0 * * * *")
    Schedule.objects.filter(pk=row.pk).update(error="unknown zone on the old host", next_run_at=None)
    assert Schedule.objects.retry_set_aside() == 1
    scheduler.tick()
    assert reread(row).next_run_at is not None


def test_a_scheduler_tries_what_was_set_aside_when_it_starts() -> None:
    row = make(cron="0 * * * *")
    Schedule.objects.filter(pk=row.pk).update(error="unknown zone on the old host", next_run_at=None, origin="api")
    with running():
        wait_until(lambda: reread(row).error == "" and reread(row).next_run_at)


def test_a_running_scheduler_sees_the_trigger_of_a_paused_schedule(scheduler: Scheduler) -> None:
    row = make(interval=3600)
    Schedule.objects.update(origin="api")
    scheduler.pause(row.name)
    with running():
        wait_until(lambda: Process.objects.filter(last_tick_at__isnull=False).exists())
        scheduler.trigger(row.name)
        wait_until(lambda: jobs(row))
    assert [job.kind for job in jobs(row)] == ["trigger"]


@pytest.mark.parametrize("how", ["retry", "edit"])
def test_a_one_off_that_was_set_aside_still_runs(scheduler: Scheduler, refusing_table: object, how: str) -> None:
    """No rule could plan it anew: what it was given is all it has."""
    row = scheduler.schedule_in(0, "tests.functions.noop", _name="bad one-off")
    scheduler.tick()
    assert "not this one" in reread(row).error
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE _pgwerk_jobs DISABLE TRIGGER refuse")
    if how == "retry":
        Schedule.objects.retry_set_aside()
    else:
        Schedule.objects.filter(pk=row.pk).update(queue="other")
    scheduler.tick()
    assert [job.due_at for job in jobs(row)] == [row.next_run_at]
    assert reread(row).error == ""
    assert reread(row).next_run_at is None


STUCK = {
    "refused without a word": "RETURN NULL",
    "undone": "NEW.next_run_at := OLD.next_run_at; NEW.triggered_at := OLD.triggered_at; RETURN NEW",
    "refused": "RAISE EXCEPTION 'not this one'",
}


@pytest.fixture(params=STUCK)
def stuck(request: pytest.FixtureRequest) -> Iterator[str]:
    """A site's trigger that lets no tick advance some schedules."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            CREATE FUNCTION stuck() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {STUCK[request.param]}; END $$;
            CREATE TRIGGER stuck BEFORE UPDATE ON _pgwerk_schedules FOR EACH ROW WHEN (OLD.name LIKE 'stuck%')
            EXECUTE FUNCTION stuck();
            """
        )
    yield request.param
    with connection.cursor() as cursor:
        cursor.execute("DROP FUNCTION stuck() CASCADE")


@pytest.mark.parametrize("kind", ["scheduled", "trigger"])
def test_a_row_that_stays_as_it_was_counts_as_not_handled(scheduler: Scheduler, stuck: str, kind: str) -> None:
    """A tick that counted it would be followed by another at once, without end."""
    row = make(ago=SECOND if kind == "scheduled" else -HOUR, _name="stuck")
    if kind == "trigger":
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE _pgwerk_schedules DISABLE TRIGGER stuck")
            cursor.execute("UPDATE _pgwerk_schedules SET triggered_at = now()")
            cursor.execute("ALTER TABLE _pgwerk_schedules ENABLE TRIGGER stuck")
    others = [make(ago=SECOND, _name=f"s{number}") for number in range(3)]
    heard = []
    signals.schedule_left_alone.connect(lambda **event: heard.append(event["name"]), weak=False, dispatch_uid="test")
    try:
        assert scheduler.tick() == 3
        assert [scheduler.tick() for _ in range(20)] == [0] * 20
    finally:
        signals.schedule_left_alone.disconnect(dispatch_uid="test")
    assert heard == [row.name]  # and it rests, so that the log has it once in a while
    assert [len(jobs(other)) for other in others] == [1, 1, 1]
    assert len(jobs(row)) == (0 if stuck == "refused" else 1)
    assert tick(using="default") == 0


@pytest.mark.parametrize("column", ["overlap", "misfire"])
def test_a_policy_from_newer_code_is_left_to_others(scheduler: Scheduler, column: str) -> None:
    newer, known = make(ago=HOUR, _name="newer"), make(ago=SECOND, _name="known")
    Schedule.objects.filter(pk=newer.pk).update(**{column: "BUFFER_ALL"})
    assert scheduler.tick() == 1
    assert statuses(known) == ["READY"]
    assert jobs(newer) == []
    assert reread(newer).next_run_at == newer.next_run_at
    assert reread(newer).error == ""
    next_due_at, asked_at = Schedule.objects.next_due()
    assert next_due_at is not None
    assert next_due_at > asked_at  # or it would keep schedulers that cannot take it busy


def test_a_scheduler_says_what_it_leaves_to_newer_code() -> None:
    row = make(ago=HOUR, _name="newer")
    Schedule.objects.filter(pk=row.pk).update(overlap="BUFFER_ALL", origin="api")
    told: list[str] = []
    signals.schedule_left_alone.connect(lambda **event: told.append(event["name"]), weak=False, dispatch_uid="test")
    try:
        with running():
            wait_until(lambda: told)
    finally:
        signals.schedule_left_alone.disconnect(dispatch_uid="test")
    assert told == ["newer"]


# -- promise 5: every edit is obeyed by the next tick ----------------------------------------------------------------


def test_a_next_run_set_by_hand_is_a_due_time_and_the_grid_follows(scheduler: Scheduler) -> None:
    row = make(cron="0 0 1 1 *")
    by_hand = make_due(row)
    scheduler.tick()
    assert [job.due_at for job in jobs(row)] == [by_hand]
    next_run_at = reread(row).next_run_at
    assert next_run_at is not None
    assert (next_run_at.month, next_run_at > now()) == (12, True)  # midnight in Paris is still the 31st in UTC


def test_a_next_run_set_by_hand_after_another_edit_counts(scheduler: Scheduler) -> None:
    row = make(cron="0 0 1 1 *")
    Schedule.objects.filter(pk=row.pk).update(cron="0 0 2 1 *")
    assert reread(row).replan
    due_at = now() - SECOND
    Schedule.objects.filter(pk=row.pk).update(next_run_at=due_at)
    scheduler.tick()
    assert [job.due_at for job in jobs(row)] == [due_at]


def test_a_changed_recurrence_is_planned_from_now_and_fires_nothing(scheduler: Scheduler) -> None:
    row = make(interval=3600)
    scheduler.tick()
    Schedule.objects.filter(pk=row.pk).update(interval=None, cron="*/5 * * * *")
    scheduler.tick()
    assert jobs(row) == []
    next_run_at = reread(row).next_run_at
    assert next_run_at is not None
    assert now() < next_run_at <= now() + 5 * MINUTE
    assert next_run_at.minute % 5 == 0


def test_a_changed_interval_keeps_its_anchor(scheduler: Scheduler) -> None:
    row = make(ago=50 * SECOND, interval=3600)
    scheduler.tick()
    Schedule.objects.filter(pk=row.pk).update(interval=60)
    scheduler.tick()
    assert reread(row).next_run_at == row.anchor_at + MINUTE


def test_an_interval_does_not_drift(scheduler: Scheduler) -> None:
    row = make(ago=200 * SECOND, interval=7, _misfire_grace=3600, _overlap="ALLOW")
    scheduler.tick()
    for job in jobs(row):
        assert (job.due_at - row.anchor_at) % (7 * SECOND) == dt.timedelta()


def test_a_tick_that_is_rolled_back_did_nothing(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    row = make(ago=SECOND)

    def broken(*args: object, **options: object) -> None:
        raise RuntimeError("after the write")

    monkeypatch.setattr("pgwerk_django.scheduler.signals.send", broken)
    with pytest.raises(RuntimeError):
        scheduler.tick()
    assert jobs(row) == []
    assert reread(row).next_run_at == row.next_run_at


@pytest.mark.parametrize("interval", [60, 3600])
def test_the_instant_of_creation_is_no_due_time(scheduler: Scheduler, interval: int) -> None:
    row = make(interval=interval)
    by_hand = make_due(row)
    scheduler.tick()
    assert [job.due_at for job in jobs(row)] == [by_hand]
    assert reread(row).next_run_at == row.created_at + interval * SECOND


@pytest.mark.parametrize("edit", ["update", "sql", "save"])
def test_a_one_off_still_to_come_survives_an_edit(scheduler: Scheduler, edit: str) -> None:
    row = scheduler.schedule_in(3600, "tests.functions.noop", _name="once")
    if edit == "update":
        scheduler.update("once", timezone="Asia/Tokyo", ends_at=now() + 9 * HOUR)
    elif edit == "sql":
        Schedule.objects.update(timezone="Asia/Tokyo")
    else:
        row.timezone = "Asia/Tokyo"
        row.save()
    scheduler.tick()
    assert reread(row).next_run_at == row.next_run_at


def test_a_first_run_given_to_a_cron_comes_before_all_others(scheduler: Scheduler) -> None:
    first = now() + 48 * HOUR
    row = scheduler.schedule_at("tests.functions.noop", first, cron="* * * * *", _name="later")
    scheduler.update("later", timezone="Asia/Tokyo")
    scheduler.pause("later")
    Schedule.objects.update(next_run_at=now() - HOUR)
    scheduler.resume("later")
    scheduler.tick()
    next_run_at = reread(row).next_run_at
    assert next_run_at is not None
    assert first <= next_run_at < first + MINUTE


def test_the_last_instants_of_the_calendar(scheduler: Scheduler) -> None:
    far = dt.datetime(8999, 12, 31, tzinfo=dt.UTC)
    row = make(ago=SECOND, interval=315360000)
    Schedule.objects.filter(pk=row.pk).update(ends_at=far, starts_at=dt.datetime(1900, 1, 2, tzinfo=dt.UTC))
    scheduler.tick()
    assert reread(row).error == ""


def test_the_largest_jitter(scheduler: Scheduler) -> None:
    row = make(ago=SECOND, _jitter=2**31 - 1)
    scheduler.tick()
    assert reread(row).error == ""
    assert statuses(row) == ["READY"]


def test_jitter_is_the_same_for_the_same_due_time(scheduler: Scheduler) -> None:
    due_at = now() - SECOND
    delays = set()
    for _ in range(2):
        row = scheduler.schedule_at("tests.functions.noop", due_at, _jitter=3600, _name="same")
        scheduler.tick()
        delays.add(jobs(row)[0].run_at)
        scheduler.delete("same")
        Job.objects.all().delete()
    assert len(delays) == 1


def test_what_is_late_is_spread_from_now(scheduler: Scheduler) -> None:
    for number in range(20):
        make(ago=5 * HOUR, interval=86400, _jitter=600, _name=f"s{number}")
    scheduler.tick()
    runs = {job.run_at - job.enqueued_at for job in Job.objects.all()}
    assert len(runs) > 10


# -- start within ----------------------------------------------------------------------------------------------------


def test_a_job_is_to_start_within_so_many_seconds(scheduler: Scheduler) -> None:
    row = make(ago=SECOND, _start_within=30)
    scheduler.tick()
    (job,) = jobs(row)
    assert job.start_by == job.run_at + 30 * SECOND


def test_it_has_that_long_from_its_jittered_run(scheduler: Scheduler) -> None:
    for number in range(10):
        make(ago=SECOND, interval=86400, _start_within=30, _jitter=3600, _name=f"s{number}")
    scheduler.tick()
    found = list(Job.objects.all())
    assert max(job.run_at - job.enqueued_at for job in found) > 30 * SECOND
    assert {job.start_by - job.run_at for job in found} == {30 * SECOND}


def test_a_trigger_in_a_pause_may_start_at_any_time(scheduler: Scheduler) -> None:
    """No due time comes after it: the one on the row does not count during a pause."""
    row = make(ago=HOUR, _start_within="next")
    scheduler.pause(row.name)
    scheduler.trigger(row.name)
    scheduler.tick()
    (job,) = jobs(row)
    assert (job.kind, job.status, job.start_by) == ("trigger", "READY", None)


@pytest.mark.parametrize("value", ["next", 0])
def test_or_until_its_next_due_time(scheduler: Scheduler, value: object) -> None:
    row = make(ago=SECOND, _start_within=value)
    scheduler.trigger(row.name)
    scheduler.tick()
    due, extra = jobs(row)
    assert due.start_by == extra.start_by == reread(row).next_run_at


def test_without_it_there_is_no_such_time(scheduler: Scheduler) -> None:
    row = make(ago=SECOND)
    scheduler.tick()
    (job,) = jobs(row)
    assert job.start_by is None


def test_a_job_that_is_too_late_to_start_is_in_nobodys_way(scheduler: Scheduler) -> None:
    row = make(ago=SECOND, _start_within="next")
    scheduler.tick()
    Job.objects.update(start_by=now() - SECOND)
    make_due(row)
    scheduler.tick()
    assert [job.status for job in jobs(row)] == ["READY", "READY"]
    assert Job.objects.all().skip_not_started(10) == 1
    late, waiting = jobs(row)
    assert (late.status, late.reason[:21], waiting.status) == ("SKIPPED", "it was to start by 20", "READY")
    assert late.expires_at > late.finished_at


def test_no_worker_begins_it(scheduler: Scheduler, notes: object) -> None:
    for key, start_by in (("late", now() - SECOND), ("in time", now() + HOUR)):
        Job.objects.create(key=key, function="tests.functions.add", args=[1], start_by=start_by)
    Inline(using="default", now=None).work(max_jobs=10, raising=True)
    assert dict(Job.objects.values_list("key", "status")) == {"late": "READY", "in time": "SUCCESSFUL"}
