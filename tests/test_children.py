"""The worker's processes: what hangs, leaks, crashes or is killed costs only itself, and no job is lost or stuck."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from asgiref.sync import async_to_sync
from django.db import connection, connections

from pgwerk_django import signals
from pgwerk_django.claims import Claims, recover_lost
from pgwerk_django.exceptions import JobTimeout
from pgwerk_django.jobs import (
    aenqueue_many,
    apause_queue,
    aresume_queue,
    enqueue,
    enqueue_many,
    pause_queue,
    resume_queue,
)
from pgwerk_django.management.service import SAME_REQUEST
from pgwerk_django.models import Job, Process, Queue
from pgwerk_django.worker import Worker
from tests import functions
from tests.processes import Started
from tests.time_travel import HOUR, now
from tests.waiting import wait_until

pytestmark = [pytest.mark.process, pytest.mark.django_db(transaction=True)]


@contextlib.contextmanager
def working(**options: Any) -> Iterator[Worker]:
    """A worker of this process, with real children, until the end of the block."""
    worker = Worker(**{"concurrency": 1, **options})
    thread = threading.Thread(target=lambda: (worker.run(), connections.close_all()))
    thread.start()
    try:
        yield worker
    finally:
        worker.hurry()
        thread.join(30)
        assert not thread.is_alive()


def work(**options: Any) -> None:
    Worker(burst=True, **{"concurrency": 1, **options}).run()


def given(func: Any, *args: Any, **options: Any) -> Job:
    job = enqueue(func, *args, **options)
    assert job is not None
    return job


def became(job: Job, *statuses: str, seconds: float = 20) -> Job:
    def is_it() -> bool:
        job.refresh_from_db()
        return job.status in (statuses or ("SUCCESSFUL", "FAILED", "CANCELLED"))

    wait_until(is_it, seconds)
    return job


def noted(word: str, count: int = 1) -> list[Any]:
    """Wait until functions have noted `word`; the rest of their notes."""
    wait_until(lambda: sum(note[0] == word for note in functions.read()) >= count)
    return [note[1] for note in functions.read() if note[0] == word and len(note) > 1]


# -- time-outs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["sleep", "spin", "hold_the_gil", "async_forever", "block_the_loop", "start_a_process"]
)
def test_whatever_a_job_does_its_timeout_is_kept(name: str) -> None:
    job = given(f"tests.functions.{name}", _timeout=1)
    with working():
        became(job)
        assert (job.status, job.error.splitlines()[0], job.attempt) == ("FAILED", "timed out after 1 s", 1)
        assert became(given(functions.add, 1)).result == 1  # the worker goes on
    pids = [note[1] for note in functions.read() if len(note) > 1]
    if name != "spin":  # which an exception ended, and its process goes on
        wait_until(lambda: not any(is_alive(pid) for pid in pids))


def is_alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.parametrize("name", ["spin", "async_forever"])
def test_what_python_can_stop_may_clean_up(name: str) -> None:
    given(f"tests.functions.{name}", _timeout=1)
    work()
    assert ["cleaned up"] in functions.read()


def test_a_timed_out_job_is_tried_again_while_attempts_remain() -> None:
    job = given(functions.spin, _timeout=1, _max_attempts=2, _backoff=600)
    with working():
        wait_until(lambda: became(job, "READY").attempt == 1)
    assert [error["error"].splitlines()[0] for error in job.errors] == [str(JobTimeout(1))]


@pytest.mark.parametrize("name", ["spin", "sleep", "async_forever"])
def test_a_timeout_does_not_disturb_the_jobs_beside_it(name: str) -> None:
    late = given(f"tests.functions.{name}", _timeout=1)
    beside = given(functions.wait_for_gate)
    with working(threads=2):
        noted("waiting")
        if name != "sleep":  # which ends with its process, which waits for the other
            became(late)
            assert late.error.splitlines()[0] == "timed out after 1 s"
        # Meanwhile a new process runs what comes, and none of it beside a job that does not stop.
        assert became(given(functions.add, 1)).result == 1
        functions.gate.set()
        became(beside)
        became(late)
    assert (late.status, late.error.splitlines()[0]) == ("FAILED", "timed out after 1 s")
    assert (beside.status, beside.result, beside.attempt, beside.claims) == ("SUCCESSFUL", "through", 1, 1)


def test_jobs_beside_one_that_does_not_stop_are_handed_back_when_patience_is_over() -> None:
    late = given(functions.sleep, _timeout=1)
    beside = given(functions.wait_for_gate)
    with working(threads=2, shutdown_timeout=0):
        became(late)
        noted("waiting", 2)
        functions.gate.set()
        became(beside)
    assert late.status == "FAILED"
    assert (beside.status, beside.attempt, beside.claims) == ("SUCCESSFUL", 1, 2)


# -- crashes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "how"), [("kill_own_process", "killed by SIGKILL"), ("exit_at_once", "exit code 7")])
def test_a_process_that_dies_fails_its_own_job_at_once_and_says_so(
    name: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    others = enqueue_many(functions.slow_add, [[n] for n in range(6)])
    job = given(f"tests.functions.{name}", _priority=1)
    work(concurrency=2)
    job.refresh_from_db()
    assert job.status == "FAILED"
    assert job.error.startswith(f"the process that ran it died: {how}")
    assert {became(other).claims for other in others} == {1}
    assert "child_died pid=" in caplog.text
    assert how in caplog.text


def test_a_process_that_leaves_somebody_behind_is_as_dead() -> None:
    job = given(functions.leave_somebody_behind)
    try:
        with working():
            became(job)
    finally:
        for pid in noted("left behind"):
            os.kill(pid, signal.SIGKILL)
    assert job.error.startswith("the process that ran it died: killed by SIGKILL")


def test_a_process_that_dies_has_its_job_tried_again() -> None:
    job = given(functions.kill_own_process, _max_attempts=3, _backoff=0)
    work()
    job.refresh_from_db()
    assert (job.status, job.attempt, len(job.errors)) == ("FAILED", 3, 2)


def test_jobs_that_a_dead_process_had_not_started_run_in_another(notes: Path) -> None:
    enqueue_many(functions.die_if_told, [[]] * 200)
    with working():
        wait_until(lambda: Job.objects.filter(status="SUCCESSFUL").count() == 200)  # so it is known to be short
        (notes / "die").touch()
        enqueue_many(functions.die_if_told, [[]] * 30)
        wait_until(lambda: not Job.objects.filter(status__in=["READY", "RUNNING"]).exists())
    assert Job.objects.filter(status="FAILED").count() == 1
    assert set(Job.objects.values_list("attempt", flat=True)) == {1}


def test_an_idle_process_that_dies_is_replaced() -> None:
    with working():
        first = became(given(functions.process_id)).result
        os.kill(first, signal.SIGKILL)
        assert became(given(functions.process_id)).result != first
    assert not Job.objects.exclude(status="SUCCESSFUL").exists()


def test_processes_that_cannot_start_are_not_started_in_a_loop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "tests.no_such_settings")
    job = given(functions.noop)
    with working():
        wait_until(lambda: "child_died" in caplog.text)
        monkeypatch.undo()
    job.refresh_from_db()
    assert (job.status, job.claims) == ("READY", 0)
    assert caplog.text.count("child_died") <= 2


def test_a_killed_worker_takes_its_processes_along(manage: Any) -> None:
    for name in ("sleep", "hold_the_gil"):
        given(f"tests.functions.{name}", _max_attempts=2)
    worker = manage("runworker", "--concurrency=2")
    pids = [*noted("asleep"), *noted("holding")]
    wait_until(lambda: Job.objects.filter(prefetched=False, status="RUNNING").count() == 2)
    worker.process.kill()
    wait_until(lambda: not any(is_alive(pid) for pid in pids))
    assert set(Job.objects.values_list("status", flat=True)) == {"RUNNING"}
    Job.objects.update(lease_until=now() - HOUR, function="tests.functions.noop")  # time passes
    work()
    assert set(Job.objects.values_list("status", "attempt", "claims")) == {("SUCCESSFUL", 2, 2)}


def test_what_a_killed_worker_had_not_begun_spends_no_attempt(manage: Any) -> None:
    enqueue_many(functions.slow_add, [[n, 0.002] for n in range(600)])
    worker = manage("runworker", "--concurrency=1")
    wait_until(lambda: Job.objects.filter(status="SUCCESSFUL").count() > 50)
    worker.process.kill()
    worker.process.wait()
    held = Job.objects.filter(status="RUNNING")
    begun = held.filter(prefetched=False).count()
    assert begun < held.count()
    held.update(lease_until=now() - HOUR)
    work()
    failed = Job.objects.filter(status="FAILED")
    assert list(failed.values_list("error", flat=True)) == ["worker lost"] * begun
    assert not Job.objects.exclude(status__in=["SUCCESSFUL", "FAILED"]).exists()
    ran = {note[0] for note in functions.read()}
    assert ran == set(range(600))


def test_a_job_that_ends_its_worker_does_not_come_back_for_ever() -> None:
    job = given(functions.noop)
    Job.objects.update(status="RUNNING", prefetched=True, attempt=1, claims=11, lease_until=now() - HOUR)
    work()
    job.refresh_from_db()
    assert (job.status, job.error) == ("FAILED", "worker lost")


# -- leases ----------------------------------------------------------------------------------------------------------


def test_a_worker_that_was_frozen_past_its_lease_drops_its_result(manage: Any) -> None:
    job = given(functions.wait_for_gate, _max_attempts=2)
    frozen = manage("runworker", "--concurrency=1")
    noted("waiting")
    wait_until(lambda: became(job, "RUNNING").prefetched is False)
    os.kill(frozen.process.pid, signal.SIGSTOP)
    Job.objects.update(lease_until=now() - HOUR)  # time passes
    recover_lost(using="default")
    with working():
        noted("waiting", 2)
        functions.gate.set()
        became(job)
        os.kill(frozen.process.pid, signal.SIGCONT)
        wait_until(lambda: frozen.says("lease_lost"))
    assert frozen.stop() == 0
    job.refresh_from_db()
    assert (job.status, job.attempt, job.claims) == ("SUCCESSFUL", 2, 2)
    assert "job_finished" not in frozen.text()


def test_what_waits_in_a_workers_hands_is_not_run_once_the_lease_is_over() -> None:
    from pgwerk_django.children import Children, Held

    told: list[Any] = []
    children = Children(
        count=1, threads=1, max_jobs=None, using="default", report=lambda word, *rest: told.append((word, rest[1]))
    )
    children.tend()
    wait_until(lambda: ("up", None) in told)
    children.put([Held(("id", 1), (), None, "default", claimed=0, lease_ends=0)])
    assert ("late", ("id", 1)) in told
    children.end()


# -- stopping --------------------------------------------------------------------------------------------------------


def test_sigterm_lets_jobs_finish(manage: Any) -> None:
    job, waiting = given(functions.wait_for_gate), given(functions.add, 1, _priority=-1)
    worker = manage("runworker", "--concurrency=1")
    noted("waiting")
    worker.process.terminate()
    assert worker.process.poll() is None
    functions.gate.set()
    assert worker.process.wait(60) == 0, worker.text()
    assert became(job).status == "SUCCESSFUL"
    waiting.refresh_from_db()
    assert (waiting.status, waiting.attempt) == ("READY", 0)
    assert not Process.objects.exists()


def test_what_does_not_finish_in_time_is_handed_back_and_the_exit_code_says_so(manage: Any) -> None:
    job = given(functions.sleep)
    worker = manage("runworker", "--concurrency=1", "--shutdown-timeout=0.5")
    (pid,) = noted("asleep")
    assert worker.stop() == 3
    job.refresh_from_db()
    assert (job.status, job.attempt, job.claims, job.worker_id) == ("READY", 0, 1, None)
    assert "1 running jobs were stopped" in worker.text()
    assert f"jobs_handed_back jobs={job.key}" in worker.text()
    assert not is_alive(pid)


def test_a_second_signal_stops_now(manage: Any) -> None:
    job = given(functions.sleep)
    worker = manage("runscheduler", "--with-worker", "--concurrency=1")
    noted("asleep")
    worker.process.terminate()
    wait_until(lambda: worker.says("process_stopped role=scheduler"))
    heard = time.monotonic()
    wait_until(lambda: time.monotonic() > heard + SAME_REQUEST)  # later than that it is another one
    worker.process.terminate()
    assert worker.process.wait(60) == 3, worker.text()
    job.refresh_from_db()
    assert (job.status, job.attempt) == ("READY", 0)


def test_processes_leave_signals_to_their_worker(manage: Any) -> None:
    """A service manager sends SIGTERM to all of them."""
    job = given(functions.wait_for_gate)
    worker = manage("runworker", "--concurrency=1")
    (pid,) = noted("waiting")
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(pid, number)
    functions.gate.set()
    assert became(job).status == "SUCCESSFUL"
    assert worker.stop() == 0


def test_a_process_is_replaced_after_its_number_of_jobs() -> None:
    jobs = [given(functions.process_id) for _ in range(7)]
    work(max_jobs_per_child=3)
    pids = [became(job).result for job in jobs]
    assert sorted(pids.count(pid) for pid in set(pids)) == [1, 3, 3]


# -- outages ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def beside(transactional_db: None) -> Iterator[psycopg.Connection]:
    """A session of the same server's database `postgres`, for what cannot be done to one's own."""
    at = connection.settings_dict
    with psycopg.connect(
        host=at["HOST"], port=at["PORT"] or None, user=at["USER"], password=at["PASSWORD"], dbname="postgres",
        autocommit=True,
    ) as session:  # fmt: skip
        yield session


@contextlib.contextmanager
def away(beside: psycopg.Connection) -> Iterator[None]:
    """The database throws everybody out and lets nobody in, until the end of the block."""
    name = connection.settings_dict["NAME"]
    beside.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
    try:
        beside.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        yield
    finally:
        beside.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        connection.close()


@pytest.mark.parametrize("stopping", [False, True])
def test_results_outlive_an_outage(manage: Any, beside: psycopg.Connection, stopping: bool) -> None:
    """The job ends while the database is away; its result is written when that is back, also by a worker that stops."""
    job = given(functions.wait_for_gate)
    worker = manage("runworker", "--concurrency=1")
    noted("waiting")
    with away(beside):
        wait_until(lambda: worker.says("database_lost"))
        if stopping:
            worker.process.terminate()
        functions.gate.set()
        wait_until(lambda: ["leaving"] in functions.read())
    became(job)
    assert (job.status, job.result, job.claims) == ("SUCCESSFUL", "through", 1)
    assert (worker.process.wait(30) if stopping else worker.stop()) == 0, worker.text()


# -- Django is treated well ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["leave_a_transaction_open", "switch_off_autocommit", "async_leave_a_transaction_open"]
)
def test_a_transaction_left_open_is_rolled_back_and_reported(name: str) -> None:
    job = given(f"tests.functions.{name}")
    after = given(functions.surroundings)
    work()
    assert became(job).status == "FAILED"
    assert job.error == "it left a transaction open, which was rolled back, on: 'default'"
    assert not Queue.objects.filter(name="of an open transaction").exists()
    assert became(after).status == "SUCCESSFUL"


def test_each_job_finds_django_as_new_and_the_test_database() -> None:
    given(functions.change_the_language)
    jobs = [given(functions.surroundings) for _ in range(2)]
    work()
    for job in jobs:
        found = became(job).result
        assert (found["language"], found["zone"]) == ("en-us", "Europe/Paris")
        assert found["database"] == connection.settings_dict["NAME"]
        assert found["queries"] <= 1


def test_async_jobs_of_a_process_run_together() -> None:
    jobs = [given(functions.async_together, 5) for _ in range(5)]
    work(threads=5)
    assert {became(job).status for job in jobs} == {"SUCCESSFUL"}


def test_no_more_jobs_at_once_than_threads() -> None:
    jobs = [given(functions.wait_for_gate) for _ in range(3)]
    with working(threads=2):
        noted("waiting", 2)
        wait_until(lambda: Job.objects.filter(status="RUNNING", prefetched=False).count() == 2)
        assert len(functions.read()) == 2
        functions.gate.set()
        assert {became(job).status for job in jobs} == {"SUCCESSFUL"}


def test_a_short_job_does_not_wait_behind_a_long_one() -> None:
    """Short jobs are given to a process some at a time. Those behind one that turns out to be long are for others."""
    enqueue_many(functions.noop, [[] for _ in range(300)])
    with working(concurrency=2):
        wait_until(lambda: not Job.objects.exclude(status="SUCCESSFUL").exists())
        long = given(functions.wait_for_gate)
        short = enqueue_many(functions.add, [[n] for n in range(200)])
        for job in short:
            became(job)
        functions.gate.set()
        became(long)
    assert set(Job.objects.values_list("status", "attempt")) == {("SUCCESSFUL", 1)}


def test_jobs_claimed_ahead_are_for_others_when_those_before_them_take_long() -> None:
    enqueue_many(functions.noop, [[] for _ in range(300)])
    with working():
        wait_until(lambda: not Job.objects.exclude(status="SUCCESSFUL").exists())
        enqueue_many(functions.wait_for_gate, [[] for _ in range(30)], _queue="long")
        wait_until(lambda: Job.objects.filter(status="READY", claims__gte=1).count() == 29)
        handed_back = time.monotonic()
        wait_until(lambda: time.monotonic() > handed_back + 2.5)  # and not claimed again and again
        assert set(Job.objects.filter(status="READY").values_list("attempt", flat=True)) == {0}
        assert max(Job.objects.values_list("claims", flat=True)) <= 2
        functions.gate.set()
        wait_until(lambda: not Job.objects.exclude(status="SUCCESSFUL").exists())


def test_a_machine_with_no_room_for_a_process_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, refused = subprocess.Popen, []

    def popen(*arguments: Any, **options: Any) -> Any:
        if not refused:
            refused.append(arguments)
            raise BlockingIOError("Resource temporarily unavailable")
        return real(*arguments, **options)

    monkeypatch.setattr("pgwerk_django.children.subprocess.Popen", popen)
    job = given(functions.add, 1)
    with working():
        assert became(job).result == 1
    assert "it could not be started: Resource temporarily unavailable" in caplog.text


def test_signals_fire_where_the_worker_runs() -> None:
    heard: list[tuple[str, str]] = []
    names = ("job_started", "job_finished", "job_failed")
    receivers = {name: (lambda job, name=name, **event: heard.append((name, job.key))) for name in names}
    for name, receiver in receivers.items():
        getattr(signals, name).connect(receiver)
    try:
        given(functions.add, 1, _key="good")
        given(functions.fail, _key="bad")
        work()
    finally:
        for name, receiver in receivers.items():
            getattr(signals, name).disconnect(receiver)
    assert heard == [
        ("job_started", "good"), ("job_finished", "good"), ("job_started", "bad"), ("job_failed", "bad"),
    ]  # fmt: skip


def test_a_receiver_that_hangs_holds_up_no_job() -> None:
    release = threading.Event()

    def hang(**event: Any) -> None:
        release.wait(30)

    signals.job_finished.connect(hang)
    try:
        with working():
            for number in range(3):
                assert became(given(functions.add, number)).result == number
            release.set()
    finally:
        signals.job_finished.disconnect(hang)


# -- progress, cancelling, retrying ----------------------------------------------------------------------------------


def test_progress_is_seen_while_it_runs_and_kept_at_the_end() -> None:
    job = given(functions.say_progress)
    with working():
        wait_until(lambda: became(job, "RUNNING").progress is not None)
        assert job.progress == {"done": 1, "total": 3, "note": "a third"}
        functions.gate.set()
        became(job)
    assert job.progress == {"done": 3, "total": 3, "note": "all of it"}


def test_a_waiting_job_is_cancelled_at_once() -> None:
    job = given(functions.noop)
    assert job.cancel(by="ada", reason="not needed")
    job.refresh_from_db()
    assert (job.status, job.reason) == ("CANCELLED", "cancelled by ada: not needed")
    assert job.finished_at is not None
    assert job.expires_at is not None
    assert not job.cancel()
    work()
    job.refresh_from_db()
    assert (job.status, job.claims) == ("CANCELLED", 0)


@pytest.mark.parametrize(("name", "status"), [("cancellable", "CANCELLED"), ("finish_all_the_same", "SUCCESSFUL")])
def test_a_running_job_is_asked_and_decides(name: str, status: str) -> None:
    job = given(f"tests.functions.{name}", _max_attempts=3)
    with working():
        noted("running")
        assert job.cancel()
        became(job)
    assert (job.status, job.attempt) == (status, 1)


@pytest.mark.parametrize("name", ["spin", "sleep", "async_forever"])
def test_a_running_job_is_stopped_by_force(name: str) -> None:
    job = given(f"tests.functions.{name}", _max_attempts=3)
    with working():
        wait_until(lambda: became(job, "RUNNING").prefetched is False)
        assert job.cancel(force=True)
        became(job)
        assert became(given(functions.add, 1)).result == 1
    assert (job.status, job.attempt, job.error.splitlines()[0]) == ("CANCELLED", 1, "cancelled while it ran")


def test_a_gentle_cancel_does_not_take_back_an_earlier_one_by_force() -> None:
    job = given(functions.noop)
    worker = Claims(1, "w", lease=60, using="default")
    worker.claim(1, [])
    assert job.cancel(force=True)
    assert job.cancel(reason="once more")
    assert worker.to_stop()[0] == {(job.pk, 1): True}


def test_a_cancelled_job_is_not_tried_again() -> None:
    job = given(functions.kill_own_process, _max_attempts=5)
    Job.objects.update(status="RUNNING", attempt=1, claims=1, lease_until=now() - HOUR, cancel_requested_at=now())
    work()
    job.refresh_from_db()
    assert (job.status, job.claims) == ("CANCELLED", 1)


def test_retry_gives_one_attempt_more_and_keeps_the_error() -> None:
    job = given(functions.fail, "once")
    work()
    assert became(job).status == "FAILED"
    Job.objects.update(function="tests.functions.noop", args=[])
    assert job.retry(by="ada")
    assert not job.retry()
    work()
    became(job)
    assert (job.status, job.attempt, job.max_attempts, job.error) == ("SUCCESSFUL", 2, 2, "")
    assert [(error["attempt"], "ValueError: once" in error["error"]) for error in job.errors] == [(1, True)]


# -- queues ----------------------------------------------------------------------------------------------------------


def test_a_paused_queue_waits_while_others_go_on() -> None:
    held, free = given(functions.add, 1, _queue="held"), given(functions.add, 2, _queue="free")
    assert pause_queue("held", by="ada", reason="the bank is down")
    assert not pause_queue("held", by="bob")
    work()
    assert became(free).result == 2
    held.refresh_from_db()
    assert (held.status, held.claims) == ("READY", 0)
    row = Queue.objects.get(name="held")
    assert (row.paused_by, row.pause_reason, row.paused_at is not None) == ("ada", "the bank is down", True)
    with working(queues=["held"]):
        assert resume_queue("held")
        assert became(held).result == 1
    assert not resume_queue("held")


def test_queues_with_waiting_jobs_are_found() -> None:
    for queue in ("b", "a", "b"):
        given(functions.noop, _queue=queue)
    Queue.objects.all().discover()
    Queue.objects.all().discover()
    assert list(Queue.objects.order_by("name").values_list("name", "paused")) == [("a", False), ("b", False)]


# -- many ------------------------------------------------------------------------------------------------------------


def test_enqueue_many() -> None:
    given(functions.add, 0, _key="k1")
    jobs = enqueue_many(
        functions.add, [[1], {"a": 2, "b": 3}, (4,)], _keys=["k1", "k2", "k3"], _queue="q", _meta={"m": 1}
    )
    assert [(job.key, job.args, job.kwargs, job.queue, job.meta) for job in jobs] == [
        ("k2", [], {"a": 2, "b": 3}, "q", {"m": 1}),
        ("k3", [4], {}, "q", {"m": 1}),
    ]
    assert enqueue_many(functions.add, []) == []


def test_the_async_twins() -> None:
    (job,) = async_to_sync(aenqueue_many)(functions.add, [[1]], _queue="q")
    assert async_to_sync(apause_queue)("q", reason="why", by="ada")
    assert Queue.objects.get().pause_reason == "why"
    assert async_to_sync(aresume_queue)("q")
    assert async_to_sync(job.acancel)(by="ada")
    assert became(job).reason == "cancelled by ada"
    assert async_to_sync(job.aretry)(by="ada")
    work()
    assert became(job).result == 1


@pytest.mark.parametrize(
    ("calls", "options", "error", "message"),
    [
        ([[1], ["x", 2, 3]], {}, TypeError, "must fit"),
        (["text"], {}, TypeError, "calls must be lists"),
        ([[1]], {"_keys": []}, ValueError, "one key for each of the 1 calls, got 0"),
        ([[1]], {"_key": "k"}, TypeError, "takes _keys"),
        ([[1]], {"_nope": 1}, TypeError, "'_nope' is not an option"),
        ([[object()]], {}, TypeError, "args must be JSON"),
    ],
)
def test_enqueue_many_refuses(calls: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        enqueue_many(functions.add, calls, **options)
    assert not Job.objects.exists()


def test_many_jobs_on_several_workers_run_once_each(manage: Any) -> None:
    enqueue_many(functions.remember, [[n] for n in range(3000)])
    workers: list[Started] = [manage("runworker", "--burst", "--concurrency=2", "--threads=2") for _ in range(3)]
    for worker in workers:
        assert worker.process.wait(60) == 0, worker.text()
    assert sorted(note for (note,) in functions.read()) == list(range(3000))
    assert set(Job.objects.values_list("status", "attempt")) == {("SUCCESSFUL", 1)}


def test_expired_jobs_by_the_million_do_not_hold_up_a_claim() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO _pgwerk_jobs (status, expires_at)"
            " SELECT 'SUCCESSFUL', statement_timestamp() - interval '1 day' FROM generate_series(1, 20000)"
        )
    with working():
        wait_until(lambda: Job.objects.count() < 20_000)
        assert became(given(functions.add, 1)).result == 1
        assert Job.objects.count() > 1
