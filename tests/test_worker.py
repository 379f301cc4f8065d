"""The worker: at least once each, and only the holder of a claim can finish."""

import datetime as dt
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext

from pgwerk_django import jobs, signals
from pgwerk_django.claims import FIELDS, MOST_FALSE_STARTS, Claim, Claims, recover_lost
from pgwerk_django.execution import Outcome, backoff_before
from pgwerk_django.jobs import aenqueue, current_job, enqueue, pause_queue, resume_queue
from pgwerk_django.models import Job, Process, Schedule
from pgwerk_django.scheduler import Scheduler
from pgwerk_django.worker import LINGER, Worker
from tests import functions
from tests.time_travel import HOUR, MINUTE, SECOND, make, now
from tests.waiting import wait_until

pytestmark = [pytest.mark.process, pytest.mark.django_db(transaction=True)]


def work(**options: Any) -> None:
    """In real processes; one, where the test says nothing else."""
    Worker(burst=True, **{"concurrency": 1, **options}).run()


def run(func: Any, *args: Any, **options: Any) -> Job:
    job = enqueue(func, *args, **options)
    assert job is not None
    work()
    job.refresh_from_db()
    return job


# -- what a job becomes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("func", [functions.add, functions.async_add])
def test_a_job_runs_and_its_result_is_kept(func: Any) -> None:
    job = run(func, 1, b=2)
    assert (job.status, job.result, job.error, job.attempt, job.claims) == ("SUCCESSFUL", 3, "", 1, 1)
    assert job.started_at is not None
    assert job.finished_at is not None
    assert job.expires_at == job.finished_at + dt.timedelta(days=7)
    assert job.lease_until is None
    assert "worker" in job.worker_name


def test_from_a_schedule_to_a_finished_job(scheduler: Scheduler) -> None:
    make("tests.functions.job_seen", ago=SECOND, _meta={"team": "x"}, _name="seen")
    scheduler.tick()
    work()
    job = Job.objects.get()
    assert job.result == {"name": "seen", "attempt": 1, "meta": {"team": "x"}, "due_at": str(job.due_at)}
    assert current_job() is None


@pytest.mark.parametrize(
    ("func", "args", "said"),
    [
        ("tests.functions.fail", ["out of paper"], "ValueError: out of paper"),
        ("tests.functions.nowhere", [], "'tests.functions.nowhere' cannot be imported"),
        ("nomodule.func", [], "'nomodule.func' cannot be imported"),
        ("tests.functions.not_a_function", [], "is not a function"),
        ("tests.functions.add", [], "missing 1 required positional argument"),
        ("tests.functions.not_json", [], "the job's result must be JSON"),
        ("tests.functions.nul_result", [], "NUL"),
        ("tests.functions.leave", [], "SystemExit: 3"),
    ],
)
def test_a_failure_says_why_and_stops_nothing_else(func: str, args: list[Any], said: str) -> None:
    good = enqueue(functions.add, 1)
    job = Job.objects.create(function=func, args=args)  # as older code did, or SQL: `enqueue` refuses some of them
    work()
    job.refresh_from_db()
    assert job.status == "FAILED"
    assert said in job.error
    assert job.expires_at == job.finished_at + dt.timedelta(days=30)
    assert good is not None
    good.refresh_from_db()
    assert good.status == "SUCCESSFUL"


def test_an_error_that_postgresql_cannot_store_is_stored_as_text() -> None:
    job = run("tests.functions.fail_with_nul")
    assert job.status == "FAILED"
    assert "zero \\0 byte" in job.error


def test_ttls_of_the_job_itself() -> None:
    done = run(functions.add, 1, _result_ttl=10, _failure_ttl=20)
    failed = run(functions.fail, _result_ttl=10, _failure_ttl=20)
    assert done.expires_at == done.finished_at + 10 * SECOND
    assert failed.expires_at == failed.finished_at + 20 * SECOND


# -- attempts --------------------------------------------------------------------------------------------------------


def test_a_failed_attempt_is_tried_again_and_its_error_kept() -> None:
    job = run(functions.fail_first, _max_attempts=2, _backoff=0)
    assert (job.status, job.result, job.attempt, job.claims) == ("SUCCESSFUL", "attempt 2", 2, 2)
    assert [(error["attempt"], "the first time" in error["error"]) for error in job.errors] == [(1, True)]
    assert job.error == ""


def test_attempts_end() -> None:
    job = run(functions.fail, _max_attempts=3, _backoff=0)
    assert (job.status, job.attempt, len(job.errors)) == ("FAILED", 3, 2)


def test_the_next_attempt_waits_for_its_back_off() -> None:
    job = run(functions.fail, _max_attempts=2, _backoff=600)
    assert (job.status, job.worker_id, job.finished_at) == ("READY", None, None)
    assert abs(job.run_at - now() - 600 * SECOND) < MINUTE


def test_back_off_by_attempt() -> None:
    assert [backoff_before(n, [1, 60]) for n in (1, 2, 3)] == [1, 60, 60]
    assert backoff_before(7, 30) == 30
    for attempt, ceiling in ((1, 10), (2, 20), (3, 40), (50, 3600)):
        assert ceiling / 2 <= backoff_before(attempt, None) <= ceiling


# -- order and queues ------------------------------------------------------------------------------------------------


def test_priority_then_age_within_a_queue() -> None:
    for name, priority in (("a", 0), ("b", 5), ("c", 0)):
        enqueue(functions.remember, name, _priority=priority)
    work(concurrency=1)
    assert [note for (note,) in functions.read()] == ["b", "a", "c"]


def test_queues_in_order_of_preference_and_no_others() -> None:
    for queue in ("slow", "fast", "other"):
        enqueue(functions.remember, queue, _queue=queue)
    work(queues=["fast", "slow"], concurrency=1)
    assert [note for (note,) in functions.read()] == ["fast", "slow"]
    assert Job.objects.get(queue="other").status == "READY"


def test_without_names_every_queue_is_served() -> None:
    for queue in ("a", "b", "default"):
        enqueue(functions.remember, queue, _queue=queue)
    work()
    assert sorted(note for (note,) in functions.read()) == ["a", "b", "default"]


def test_a_job_waits_for_its_time() -> None:
    later = enqueue(functions.add, 1, _delay=600)
    at = enqueue(functions.add, 1, _at=now() + HOUR)
    work()
    assert set(Job.objects.values_list("status", flat=True)) == {"READY"}
    assert later is not None
    assert at is not None
    later.refresh_from_db()
    assert abs(later.run_at - later.enqueued_at - 600 * SECOND) < SECOND


def test_jobs_of_another_target_are_left_alone() -> None:
    job = Job.objects.create(function="tests.functions.noop", target="celery")
    work()
    job.refresh_from_db()
    assert job.status == "READY"


def test_a_claim_walks_the_index() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO _pgwerk_jobs (status, queue) SELECT 'SUCCESSFUL', 'q' || n %% 3 FROM generate_series(1, 5000) n",
            [],
        )
        cursor.execute("INSERT INTO _pgwerk_jobs (queue) SELECT 'q' || n %% 3 FROM generate_series(1, 3000) n", [])
        cursor.execute("ANALYZE _pgwerk_jobs")
        from pgwerk_django.claims import _CLAIM

        parameters = {"every": True, "queues": [], "limit": 5, "lease": MINUTE, "worker": 1, "worker_name": "w"}
        cursor.execute("EXPLAIN " + _CLAIM, parameters)
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert "pgwerk_claim" in plan
    assert "Seq Scan on _pgwerk_jobs" not in plan


def beside(action: Callable[[], object]) -> threading.Thread:
    """Do it on a thread, which has a connection of its own."""

    def run() -> None:
        try:
            action()
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def claims_of(worker: int) -> Claims:
    return Claims(worker, f"worker {worker}", lease=60, using="default")


def test_two_workers_share_and_none_runs_twice() -> None:
    """One claims while the other's claim is not yet committed: that is the instant at which both see the same jobs."""
    jobs = [Job.objects.create(function="tests.functions.remember", args=[number]) for number in range(6)]
    worker = Worker(burst=True, concurrency=1)
    thread = threading.Thread(target=lambda: (worker.run(), connections.close_all()))
    try:
        with transaction.atomic():
            claimed = [row[0] for row in claims_of(999).claim(3, [])]
            thread.start()
            wait_until(lambda: len(functions.read()) == 3, 10)
    finally:
        worker.stop()
        thread.join(20)
    assert not thread.is_alive()
    assert claimed == [job.pk for job in jobs[:3]]
    assert sorted(note for (note,) in functions.read()) == [3, 4, 5]
    assert set(Job.objects.values_list("status", "worker_id", "claims").filter(pk__in=claimed)) == {("RUNNING", 999, 1)}


def test_a_claim_leaves_what_another_worker_is_claiming_and_waits_for_nothing() -> None:
    jobs = [Job.objects.create(function="tests.functions.noop") for _ in range(4)]
    others: list[Any] = []
    with transaction.atomic():
        first = claims_of(1).claim(2, [])
        beside(lambda: others.extend(claims_of(2).claim(4, []))).join(20)
    assert [row[0] for row in first] == [job.pk for job in jobs[:2]]
    assert [row[0] for row in others] == [job.pk for job in jobs[2:]]
    assert set(Job.objects.values_list("status", "claims")) == {("RUNNING", 1)}


@pytest.mark.parametrize("queues", [[], ["mail", "other"], ["other", "mail"]], ids=["all", "first", "second"])
def test_a_paused_queue_waits_whether_it_is_named_or_not(queues: list[str]) -> None:
    for queue in ("mail", "other"):
        enqueue(functions.remember, queue, _queue=queue)
    pause_queue("mail")
    assert [row[FIELDS.index("queue")] for row in claims_of(1).claim(5, queues)] == ["other"]
    assert claims_of(1).claim(5, ["mail"]) == []
    resume_queue("mail")
    assert len(claims_of(1).claim(5, queues)) == 1


def test_a_claim_keeps_its_limit_and_the_order_of_queues_above_that_of_priorities() -> None:
    for queue, priority in (("slow", 9), ("fast", 0), ("fast", 1), ("slow", 8)):
        enqueue(functions.noop, _queue=queue, _priority=priority)
    queue, priority = FIELDS.index("queue"), FIELDS.index("priority")
    first, second = ([(row[queue], row[priority]) for row in claims_of(1).claim(3, ["fast", "slow"])] for _ in range(2))
    assert (first, second) == ([("fast", 1), ("fast", 0), ("slow", 9)], [("slow", 8)])


def test_what_was_to_start_by_now_is_not_begun() -> None:
    enqueue(functions.noop)
    Job.objects.create(function="tests.functions.noop", start_by=now() - SECOND)
    later = Job.objects.create(function="tests.functions.noop", start_by=now() + HOUR)
    assert [row[FIELDS.index("start_by")] for row in claims_of(1).claim(5, [])] == [None, later.start_by]


# -- leases ----------------------------------------------------------------------------------------------------------


def lost(**columns: Any) -> Job:
    """A job whose worker vanished."""
    given = {"status": "RUNNING", "attempt": 1, "claims": 1, "worker_id": 999, "lease_until": now() - HOUR, **columns}
    return Job.objects.create(function="tests.functions.noop", **given)


def test_a_lost_job_fails_when_no_attempt_is_left() -> None:
    job = lost()
    assert recover_lost(using="default") == 1
    job.refresh_from_db()
    assert (job.status, job.error) == ("FAILED", "worker lost")
    assert job.finished_at is not None
    assert job.expires_at is not None


def test_a_lost_job_is_claimed_again_while_attempts_remain() -> None:
    job = lost(max_attempts=2)
    work()
    job.refresh_from_db()
    assert (job.status, job.attempt, job.claims, job.error) == ("SUCCESSFUL", 2, 2, "")
    assert [error["error"] for error in job.errors] == ["worker lost"]


def test_what_a_lost_worker_had_only_prefetched_spends_no_attempt() -> None:
    job = lost(prefetched=True, max_attempts=2, attempt=2, claims=2, error="of the attempt before")
    assert recover_lost(using="default") == 1
    job.refresh_from_db()
    assert (job.status, job.attempt, job.errors, job.error) == ("READY", 1, [], "of the attempt before")
    assert (job.worker_id, job.finished_at, job.expires_at) == (None, None, None)


def test_a_job_that_ends_each_worker_before_it_begins_does_not_come_back_for_ever() -> None:
    enqueue(functions.noop, _max_attempts=2)
    seen = []
    while len(claims_of(1).claim(1, [])) == 1 and len(seen) < 2 * MOST_FALSE_STARTS:
        Job.objects.update(lease_until=now() - HOUR)
        recover_lost(using="default")
        seen.append(Job.objects.values_list("status", "attempt").get())
    assert seen == [("READY", 0)] * MOST_FALSE_STARTS + [("READY", 1), ("FAILED", 2)]
    assert Job.objects.get().error == "worker lost"


def test_a_lost_job_that_had_begun_spends_its_attempt() -> None:
    job = enqueue(functions.noop)
    assert job is not None
    claims_of(1).claim(1, [])
    claims_of(1).begin({(job.pk, 1): 0.0})
    Job.objects.update(lease_until=now() - HOUR)
    recover_lost(using="default")
    assert Job.objects.values_list("status", "attempt").get() == ("FAILED", 1)


def test_a_lost_job_that_somebody_cancelled_is_not_run_again() -> None:
    job = lost(max_attempts=5)
    job.cancel()
    recover_lost(using="default")
    assert claims_of(1).claim(1, []) == []
    job.refresh_from_db()
    assert (job.status, job.claims) == ("CANCELLED", 1)


def test_a_lost_job_keeps_its_own_time_to_live() -> None:
    job = lost(failure_ttl=20)
    recover_lost(using="default")
    job.refresh_from_db()
    assert job.expires_at == job.finished_at + 20 * SECOND


def test_a_job_under_a_lease_is_left_to_its_worker() -> None:
    job = lost(lease_until=now() + HOUR)
    assert recover_lost(using="default") == 0
    job.refresh_from_db()
    assert job.status == "RUNNING"


def test_only_the_holder_of_the_claim_finishes(settings: Any) -> None:
    """The worker that was frozen past its lease finds the job taken, and drops its result."""
    heard: list[Any] = []
    signals.lease_lost.connect(lambda **event: heard.append(event["job_id"]), weak=False, dispatch_uid="test")
    job = enqueue(functions.wait_for_gate, _max_attempts=2)
    assert job is not None
    worker = Worker(burst=True, concurrency=1)
    thread = threading.Thread(target=lambda: (worker.run(), connections.close_all()))
    thread.start()
    try:
        wait_until(lambda: Job.objects.get().status == "RUNNING")
        Job.objects.update(claims=2, worker_id=12345)  # another took it
        functions.gate.set()
        thread.join(20)
    finally:
        functions.gate.set()
        signals.lease_lost.disconnect(dispatch_uid="test")
    job.refresh_from_db()
    assert (job.status, job.result) == ("RUNNING", None)
    assert heard == [job.pk]


def test_the_lease_of_a_long_job_is_renewed_long_before_it_is_over(settings: Any) -> None:
    """Others look each third of a lease, and take what they have seen expired twice."""
    settings.PGWERK = {"LEASE": 3, "POLL_INTERVAL": 60}
    job = enqueue(functions.wait_for_gate)
    assert job is not None
    worker = beside(Worker(burst=True, concurrency=1).run)

    def lease() -> dt.datetime:
        return Job.objects.values_list("lease_until", flat=True).get() or now()

    try:
        wait_until(lambda: Job.objects.get().status == "RUNNING")
        for _ in range(2):
            before = lease()
            wait_until(lambda: lease() > before)  # noqa: B023
            assert before - now() > SECOND
    finally:
        functions.gate.set()
        worker.join(20)
    job.refresh_from_db()
    assert (job.status, job.result) == ("SUCCESSFUL", "through")


def test_a_job_whose_lease_was_lost_is_stopped(settings: Any) -> None:
    settings.PGWERK = {"LEASE": 1, "POLL_INTERVAL": 0.05}
    enqueue(functions.spin)
    worker = Worker(concurrency=1)
    thread = beside(worker.run)
    try:
        wait_until(lambda: [note[0] for note in functions.read()] == ["spinning"])
        Job.objects.update(claims=2, worker_id=12345)  # another took it
        wait_until(lambda: ["cleaned up"] in functions.read())
    finally:
        worker.hurry()
        thread.join(20)
    assert set(Job.objects.values_list("status", "claims", "worker_id")) == {("RUNNING", 2, 12345)}


WRITES = {
    "renew": lambda claims, claim: claims.renew([claim]),
    "begin": lambda claims, claim: claims.begin({claim: 0.0}),
    "progress": lambda claims, claim: claims.progress({claim: '{"done": 1}'}),
    "finish": lambda claims, claim: claims.finish([(claim, Outcome.success(1))]),
    "hand back": lambda claims, claim: claims.hand_back([claim]),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_who_has_a_claim_no_more_writes_nothing(write: Callable[[Claims, Claim], object]) -> None:
    """Not even the worker that claimed the job anew after it had lost it: what its first run says is not of its second."""
    job = enqueue(functions.noop)
    assert job is not None
    mine, another = (Claims(worker, "w", lease=60, using="default") for worker in (1, 2))
    assert len(mine.claim(1, [])) == 1
    Job.objects.update(lease_until=now() - HOUR, prefetched=True)
    recover_lost(using="default")
    assert len(mine.claim(1, [])) == 1
    held = Job.objects.values().get()
    assert (held["status"], held["claims"]) == ("RUNNING", 2)
    for claims, claim in ((mine, (job.pk, 1)), (another, (job.pk, 2))):
        assert not write(claims, claim)
        assert Job.objects.values().get() == held
    assert write(mine, (job.pk, 2))


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_what_was_found_lost_is_not_written_by_its_late_worker(write: Callable[[Claims, Claim], object]) -> None:
    """It has failed for good, and people were told so."""
    job = lost()
    recover_lost(using="default")
    failed = Job.objects.values().get()
    assert failed["status"] == "FAILED"
    assert not write(claims_of(999), (job.pk, 1))
    assert Job.objects.values().get() == failed


# -- cancelling ------------------------------------------------------------------------------------------------------


def test_a_worker_hears_of_cancels_of_its_own_jobs_only() -> None:
    for _ in range(2):
        enqueue(functions.noop)
    mine, another = (claims_of(worker).claim(1, [])[0][0] for worker in (1, 2))
    assert claims_of(1).to_stop() == ({}, set())
    Job.objects.all().cancel()
    assert claims_of(1).to_stop()[0] == {(mine, 1): False}
    Job.objects.filter(pk=another).cancel(force=True)
    assert claims_of(2).to_stop()[0] == {(another, 1): True}


def test_what_was_cancelled_is_handed_back_as_cancelled() -> None:
    job = enqueue(functions.noop, _failure_ttl=20)
    assert job is not None
    claims_of(1).claim(1, [])
    job.cancel()
    claims_of(1).hand_back([(job.pk, 1)])
    job.refresh_from_db()
    assert (job.status, job.attempt) == ("CANCELLED", 0)
    assert job.expires_at == job.finished_at + 20 * SECOND


def test_an_attempt_that_fails_after_a_cancel_is_the_last() -> None:
    job = enqueue(functions.noop, _max_attempts=3, _failure_ttl=20)
    assert job is not None
    claims_of(1).claim(1, [])
    job.cancel()
    failed = Outcome(status="READY", error="ValueError", ended=time.monotonic(), seconds=0.0)
    assert claims_of(1).finish([((job.pk, 1), failed)])[job.pk].status == "CANCELLED"
    job.refresh_from_db()
    assert (job.status, job.errors) == ("CANCELLED", [])
    assert job.expires_at == job.finished_at + 20 * SECOND


def test_a_retried_job_forgets_that_it_was_cancelled_and_how() -> None:
    job = enqueue(functions.noop)
    assert job is not None
    job.cancel(force=True)
    assert job.retry()
    [(pk, *_)] = claims_of(1).claim(1, [])
    assert claims_of(1).to_stop() == ({}, set())
    job.cancel()
    assert claims_of(1).to_stop()[0] == {(pk, 1): False}


# -- time-outs and stopping ------------------------------------------------------------------------------------------


def test_stopping_finishes_what_runs() -> None:
    job = enqueue(functions.wait_for_gate)
    waiting = enqueue(functions.add, 1)
    worker = Worker(concurrency=1)
    thread = threading.Thread(target=lambda: (worker.run(), connections.close_all()))
    thread.start()
    wait_until(lambda: Job.objects.filter(status="RUNNING").exists())
    worker.stop()
    functions.gate.set()
    thread.join(20)
    assert not thread.is_alive()
    assert job is not None
    assert waiting is not None
    job.refresh_from_db()
    waiting.refresh_from_db()
    assert (job.status, waiting.status) == ("SUCCESSFUL", "READY")
    assert not Process.objects.exists()


def test_a_stop_amid_a_step_claims_nothing_more() -> None:
    worker = Worker(concurrency=1)
    first = enqueue(functions.noop)
    assert first is not None

    def has_run() -> bool:
        worker.step()
        first.refresh_from_db()
        return first.status == "SUCCESSFUL"

    try:
        wait_until(has_run)  # a process is free for the next job
        worker.stop()
        waiting = enqueue(functions.noop)
        assert waiting is not None
        wait_until(lambda: worker.step() > LINGER)  # it has nothing to do soon
        waiting.refresh_from_db()
        assert (waiting.status, waiting.claims) == ("READY", 0)
    finally:
        worker.close()


def test_what_does_not_finish_in_time_is_handed_back_without_spending_an_attempt(
    caplog: pytest.LogCaptureFixture,
) -> None:
    job = enqueue(functions.wait_for_gate, _key="the long one")
    worker = Worker(concurrency=1, shutdown_timeout=0)
    thread = threading.Thread(target=lambda: (worker.run(), connections.close_all()))
    thread.start()
    wait_until(lambda: Job.objects.filter(status="RUNNING").exists())
    worker.stop()
    thread.join(20)
    functions.gate.set()
    assert job is not None
    job.refresh_from_db()
    assert (job.status, job.attempt, job.claims, job.worker_id) == ("READY", 0, 1, None)
    assert 'jobs_handed_back jobs="the long one"' in caplog.text


def is_asleep(cursor: Any) -> bool:
    """Whether some statement is in `pg_sleep()`."""
    cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
    return bool(cursor.fetchone()[0])


def test_what_is_handed_back_runs_nowhere_any_more() -> None:
    """Another worker may begin it at that instant."""
    enqueue(functions.beat)
    worker = Worker(concurrency=1, shutdown_timeout=0)
    thread = beside(worker.run)
    wait_until(functions.read)
    with connection.cursor() as cursor:  # holds the row until the instant at which it is handed back has been looked at
        cursor.execute(
            """
            CREATE FUNCTION handed_back() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                PERFORM pg_sleep(0.5);
                RETURN NEW;
            END $$;
            CREATE TRIGGER handed_back BEFORE UPDATE ON _pgwerk_jobs FOR EACH ROW
                WHEN (NEW.status = 'READY') EXECUTE FUNCTION handed_back()
            """
        )
        try:
            worker.stop()
            wait_until(lambda: is_asleep(cursor))
            beats = len(functions.read())
            thread.join(20)
        finally:
            cursor.execute("DROP TRIGGER handed_back ON _pgwerk_jobs; DROP FUNCTION handed_back")
    assert not thread.is_alive()
    assert len(functions.read()) == beats
    assert Job.objects.get().status == "READY"


# -- retention -------------------------------------------------------------------------------------------------------


def test_expired_jobs_are_deleted_in_batches_and_no_others() -> None:
    for number in range(5):
        Job.objects.create(status="SUCCESSFUL", expires_at=now() - number * SECOND - SECOND)
    kept = [Job.objects.create(status="SUCCESSFUL", expires_at=now() + HOUR), Job.objects.create()]
    assert [Job.objects.all().delete_expired(2) for _ in range(4)] == [2, 2, 1, 0]
    assert set(Job.objects.all()) == set(kept)


# -- enqueue ---------------------------------------------------------------------------------------------------------


def test_enqueue_writes_what_it_is_given() -> None:
    job = enqueue(
        functions.add, 1, b=2, _queue="q", _priority=3, _timeout=dt.timedelta(minutes=1), _max_attempts=4, _meta={"a": 1},
        _key="k", _result_ttl=5, _failure_ttl=6, _backoff=[1],
    )  # fmt: skip
    assert job is not None
    stored = Job.objects.get(pk=job.pk)
    assert (stored.function, stored.args, stored.kwargs, stored.queue) == ("tests.functions.add", [1], {"b": 2}, "q")
    assert (stored.priority, stored.timeout, stored.max_attempts, stored.meta) == (3, 60, 4, {"a": 1})
    assert (stored.key, stored.result_ttl, stored.failure_ttl, stored.kind) == ("k", 5, 6, "adhoc")


def test_a_key_that_exists_is_silently_dropped() -> None:
    assert enqueue(functions.noop, _key="once") is not None
    assert enqueue(functions.noop, _key="once") is None
    assert Job.objects.count() == 1


@pytest.mark.parametrize(("most", "largest"), [(2, 10**6), (100, 30)])
def test_many_jobs_go_in_several_statements_and_one_transaction(
    most: int, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "MOST_AT_ONCE", most)
    monkeypatch.setattr(jobs, "LARGEST_MESSAGE", largest)
    enqueue(functions.noop, _key="key 3")
    with CaptureQueriesContext(connection) as captured:
        written = jobs.enqueue_many(functions.add, [[n] for n in range(7)], _keys=[f"key {n}" for n in range(7)])
    assert sum("INSERT" in query["sql"] for query in captured.captured_queries) >= 2
    assert [job.args for job in written] == [[n] for n in range(7) if n != 3]
    assert len({job.enqueued_at for job in written} | {job.run_at for job in written}) == 1


def test_enqueue_is_part_of_the_callers_transaction() -> None:
    with transaction.atomic():
        enqueue(functions.noop)
        enqueue(functions.noop, _key="k")
        assert enqueue(functions.noop, _key="k") is None
        assert Job.objects.count() == 2  # the repeated key broke nothing
        transaction.set_rollback(True)
    assert not Job.objects.exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"_delay": 1, "_at": dt.datetime(2026, 1, 1, tzinfo=dt.UTC)}, ValueError, "only one of _delay and _at"),
        ({"_delay": -1}, ValueError, "_delay .* got -1"),
        ({"_at": "soon"}, TypeError, "_at must be a datetime"),
        ({"_key": "x" * 256}, ValueError, "_key must have 1 to 255"),
        ({"_nope": 1}, TypeError, "'_nope' is not an option"),
        ({"a": object()}, TypeError, "kwargs must be JSON"),
        ({"a": float("inf")}, ValueError, "kwargs must be JSON"),
        ({"b": 1}, TypeError, "must fit"),
    ],
)
def test_enqueue_refuses(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        enqueue(functions.add, **options)
    assert not Job.objects.exists()


def test_aenqueue() -> None:
    from asgiref.sync import async_to_sync

    assert async_to_sync(aenqueue)("tests.functions.add", 1, _queue="q") is not None
    assert Job.objects.get().queue == "q"


def test_a_deleted_schedules_running_job_still_finishes() -> None:
    row = make("tests.functions.wait_for_gate", _name="gone")
    job = Job.objects.create(schedule=row, schedule_name=row.name, function=row.function)
    worker = Worker(burst=True, concurrency=1)
    thread = threading.Thread(target=lambda: (worker.run(), connections.close_all()))
    thread.start()
    wait_until(lambda: Job.objects.filter(status="RUNNING").exists())
    Schedule.objects.all().delete()
    functions.gate.set()
    thread.join(20)
    job.refresh_from_db()
    assert (job.status, job.result) == ("SUCCESSFUL", "through")


def test_a_log_line_says_what_happened_not_where_a_traceback_ends(caplog: pytest.LogCaptureFixture) -> None:
    run("tests.functions.fail_with_notes")
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("job_failed")]
    assert 'error="ValueError: the first line"' in line
    assert "attempt=1" in line
