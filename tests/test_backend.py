"""Django Tasks with a backend of our own: what `task.enqueue()` writes, what the worker makes of it, and who hears of it."""

import dataclasses
import datetime as dt
import logging
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import psycopg
import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import transaction

from pgwerk_django import checks, schedule
from pgwerk_django.exceptions import FunctionNotFound
from pgwerk_django.framework import framework
from pgwerk_django.jobs import CurrentJob, current_job, enqueue, pause_queue, running
from pgwerk_django.models import Job, Schedule
from pgwerk_django.registry import registry
from pgwerk_django.scheduler import Scheduler
from pgwerk_django.targets import resolved
from pgwerk_django.test import run_due, run_jobs
from pgwerk_django.worker import Worker
from tests import django_tasks as tasks
from tests import functions
from tests.time_travel import HOUR, MINUTE, SECOND, now

pytestmark = pytest.mark.django_db

PACKAGE = "django.tasks" if find_spec("django.tasks") else "django_tasks"
BACKEND = {"BACKEND": "pgwerk_django.backend.PgwerkBackend"}
NINE = dt.datetime(2021, 6, 1, 9, 0, tzinfo=dt.UTC)
committing = pytest.mark.django_db(transaction=True)

exceptions, signals = framework("exceptions"), framework("signals")
InvalidTask = getattr(exceptions, "InvalidTask", None) or exceptions.InvalidTaskError


def backend(alias: str = "pgwerk") -> Any:
    return framework().task_backends[alias]


def work(**options: Any) -> None:
    Worker(burst=True, **{"concurrency": 1, **options}).run()


def ran(task: Any, *args: Any, **kwargs: Any) -> Any:
    """The result, after the jobs that wait have run in this process."""
    result = task.enqueue(*args, **kwargs)
    run_jobs()
    result.refresh()
    return result


@pytest.fixture
def heard() -> Iterator[list[Any]]:
    """The framework's signals, in their order: name, sender, result, what was being handled."""
    events: list[Any] = []
    receivers = []
    for name in ("task_enqueued", "task_started", "task_finished"):

        def hear(sender: Any, task_result: Any, name: str = name, **kwargs: Any) -> None:
            events.append((name, sender, task_result, sys.exc_info()[1]))

        getattr(signals, name).connect(hear)
        receivers.append((getattr(signals, name), hear))
    yield events
    for signal, hear in receivers:
        signal.disconnect(hear)


# -- enqueueing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [tasks.ours, tasks.ours_async])
def test_a_task_is_enqueued_as_a_job_of_ours(task: Any) -> None:
    result = task.enqueue(1, b=2)
    job = Job.objects.get()
    assert (job.function, job.args, job.kwargs, job.queue) == (task.module_path, [1], {"b": 2}, "default")
    assert (job.kind, job.status, job.target, job.priority, job.max_attempts) == ("adhoc", "READY", "worker", 0, 1)
    assert (job.run_at, job.meta) == (job.enqueued_at, {})
    assert (result.id, result.task, result.args, result.kwargs) == (str(job.pk), task, [1], {"b": 2})
    assert (result.status, result.is_finished, result.backend) == ("READY", False, "pgwerk")
    assert (result.enqueued_at, result.started_at, result.last_attempted_at, result.finished_at) == (
        job.enqueued_at, None, None, None,
    )  # fmt: skip
    assert (result.attempts, result.worker_ids, result.errors) == (0, [], [])
    with pytest.raises(ValueError, match="has not finished yet"):
        result.return_value  # noqa: B018
    assert task.get_result(result.id) == result == backend().get_result(uuid.UUID(result.id))


def test_queue_priority_and_time_are_the_tasks() -> None:
    assert Job.objects.get(pk=tasks.add.enqueue(1).id).queue == "reports"
    at = now() + HOUR
    task = tasks.add.using(queue_name="mail", priority=-100, run_after=at)
    result = task.enqueue(1)
    job = Job.objects.get(pk=result.id)
    assert (job.queue, job.priority, job.run_at) == ("mail", -100, at)
    assert (result.task, backend().get_result(result.id)) == (task, result)


@pytest.mark.parametrize("priority", [-101, 101, 3.5])
def test_priorities_are_the_frameworks(priority: Any) -> None:
    with pytest.raises(InvalidTask, match="whole number between -100 and 100"):
        tasks.ours.using(priority=priority)


def test_a_naive_time_is_refused() -> None:
    with pytest.raises(InvalidTask, match="aware datetime"):
        tasks.ours.using(run_after=dt.datetime(2030, 1, 1))  # noqa: DTZ001


def test_queues_that_may_be_used(settings: Any) -> None:
    with pytest.raises(InvalidTask, match="'other' is not valid"):
        tasks.ours.using(backend="patient", queue_name="other")
    task = tasks.ours.using(queue_name="other")
    settings.TASKS = {"pgwerk": {**BACKEND, "QUEUES": ["default"]}}
    with pytest.raises(InvalidTask, match="'other' is not valid"):
        task.enqueue()
    with pytest.raises(InvalidTask, match="'other' is not valid"):
        async_to_sync(task.aenqueue)()
    assert not Job.objects.exists()


@pytest.mark.parametrize(
    ("task", "args", "kwargs", "error", "message"),
    [
        (tasks.ours, [dt.date(2026, 1, 1)], {}, TypeError, "args must be JSON .* Unsupported type: <class 'datetime.date'>"),
        (tasks.ours, [], {"when": {1}}, TypeError, "kwargs must be JSON .* Unsupported type: <class 'set'>"),
        (tasks.ours, [float("nan")], {}, ValueError, "args must be JSON"),
        (tasks.ours, ["a\0b"], {}, ValueError, "args must not contain a NUL"),
        (tasks.ours, [b"\xff"], {}, ValueError, "args must be JSON"),
        (tasks.add, [], {}, TypeError, "args and kwargs must fit tests.django_tasks.add"),
        (tasks.add, [1], {"c": 1}, TypeError, "must fit"),
        (tasks.third_time_lucky, [1], {}, TypeError, "must fit"),
        (tasks.detached, [], {}, FunctionNotFound, "'tests.django_tasks.plain' must lead to the Task itself, got <function"),
    ],
)  # fmt: skip
def test_what_could_not_run_is_refused(task: Any, args: Any, kwargs: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        task.enqueue(*args, **kwargs)
    with pytest.raises(error, match=message):
        async_to_sync(task.aenqueue)(*args, **kwargs)
    assert not Job.objects.exists()


def test_arguments_are_normalised_as_the_framework_does() -> None:
    result = tasks.ours.enqueue((1, (2,)), b"caf\xc3\xa9", range(2), b={"a": (1,)})
    assert (result.args, result.kwargs) == ([[1, [2]], "café", [0, 1]], {"b": {"a": [1]}})
    assert tasks.ours.get_result(result.id) == result


def test_no_argument_is_taken_for_an_option_of_ours() -> None:
    result = ran(tasks.named, _queue="mine", _key="too")
    assert result.return_value == ["mine", "too"]
    assert Job.objects.get().queue == "default"


@committing
def test_a_task_waits_for_the_callers_commit(other_session: psycopg.Connection) -> None:
    count = "SELECT count(*) FROM _pgwerk_jobs"
    with transaction.atomic():
        result = tasks.ours.enqueue()
        assert result.enqueued_at is not None
        assert tasks.ours.get_result(result.id) == result
        assert other_session.execute(count).fetchone() == (0,)
    assert other_session.execute(count).fetchone() == (1,)
    with transaction.atomic():
        tasks.ours.enqueue()
        transaction.set_rollback(True)
    assert other_session.execute(count).fetchone() == (1,)


@committing
def test_the_configured_database(elsewhere: str) -> None:
    with transaction.atomic(using=elsewhere):
        result = tasks.ours.enqueue(1)
        assert not Job.objects.exists()  # to the other connection it is not there yet
        assert tasks.ours.get_result(result.id) == result
    run_jobs()
    result.refresh()
    assert result.return_value == [[1], {}]


# -- running ---------------------------------------------------------------------------------------------------------


@pytest.mark.process
@committing
@pytest.mark.parametrize("threads", [1, 3])
def test_the_worker_runs_tasks(threads: int) -> None:
    plain, asynchronous = tasks.ours.enqueue(1, b=2), tasks.ours_async.enqueue(3)
    seen, seen_async = tasks.context_seen.enqueue(4), tasks.context_seen_async.enqueue(5)
    failed, failed_async = tasks.fail.enqueue(), tasks.fail_async.enqueue()
    work(threads=threads)
    for result in (plain, asynchronous, seen, seen_async, failed, failed_async):
        result.refresh()
        assert result.enqueued_at <= result.started_at == result.last_attempted_at <= result.finished_at
        assert (result.is_finished, result.attempts) == (True, 1)
        assert result.worker_ids == [Job.objects.get(pk=result.id).worker_name]
    assert (plain.status, plain.return_value) == ("SUCCESSFUL", [[1], {"b": 2}])
    assert asynchronous.return_value == [[3], {}]
    for result, argument in ((seen, 4), (seen_async, 5)):
        assert result.return_value == {
            "id": result.id, "job": result.id, "attempt": [1, 1, 1], "workers": result.worker_ids, "status": "RUNNING",
            "backend": "pgwerk", "errors": [], "queue": "default", "args": [[argument], {}], "started": True,
        }  # fmt: skip
    for result in (failed, failed_async):
        assert (result.status, result.errors[0].exception_class) == ("FAILED", ValueError)
        assert result.errors[0].traceback.endswith("\nValueError: no luck\n")


@pytest.mark.process
@committing
def test_attempts_are_those_of_the_options() -> None:
    result = tasks.third_time_lucky.enqueue()
    job = Job.objects.get()
    assert (job.max_attempts, job.backoff, job.timeout, job.result_ttl, job.failure_ttl) == (3, 0, 60, 10, 20)
    work()
    result.refresh()
    assert result.return_value["attempt"] == [3, 3, 3]
    assert result.return_value["errors"] == ["ValueError: attempt 1", "ValueError: attempt 2"]
    assert result.return_value["workers"] == result.worker_ids == [Job.objects.get().worker_name] * 3
    assert [error.exception_class for error in result.errors] == [ValueError, ValueError]
    assert result.enqueued_at < result.started_at < result.last_attempted_at < result.finished_at


def test_a_task_that_waits_for_its_next_attempt_is_ready() -> None:
    result = tasks.fail.using(backend="patient").enqueue()
    Job.objects.update(backoff=60)
    run_jobs()
    result.refresh()
    assert (result.status, result.attempts, result.finished_at) == ("READY", 1, None)
    assert [error.exception_class for error in result.errors] == [ValueError]
    assert result.started_at == result.last_attempted_at is not None
    for minutes in (1, 2):
        run_jobs(now=now() + minutes * HOUR)
    result.refresh()
    assert (result.status, result.attempts, len(result.errors), len(result.worker_ids)) == ("FAILED", 3, 3, 3)


def test_what_a_worker_has_only_prefetched_is_ready() -> None:
    result = tasks.ours.enqueue()
    Job.objects.update(status="RUNNING", prefetched=True, attempt=1, worker_id=1, worker_name="w")
    result.refresh()
    assert (result.status, result.attempts, result.worker_ids) == ("READY", 0, [])
    Job.objects.update(prefetched=False, started_at=now())
    result.refresh()
    assert (result.status, result.attempts, result.worker_ids) == ("RUNNING", 1, ["w"])


def test_a_task_runs_after_its_time_and_not_before() -> None:
    result = tasks.ours.using(run_after=now() + HOUR).enqueue()
    assert run_jobs() == []
    assert len(run_jobs(now=now() + 2 * HOUR)) == 1
    result.refresh()
    assert result.status == "SUCCESSFUL"


def test_higher_priorities_first_and_queues_apart() -> None:
    for priority in (0, 100, -100):
        tasks.ours.using(priority=priority).enqueue(priority)
    other = tasks.ours.using(queue_name="other").enqueue("other")
    pause_queue("other")
    run_jobs()
    assert functions.read() == [["ours", 100], ["ours", 0], ["ours", -100]]
    other.refresh()
    assert other.status == "READY"


@pytest.mark.parametrize(
    ("what", "value"),
    [("none", None), ("tuple", [1, [2, 3]]), ("bytes", {"name": "café"}), ("range", [0, 1, 2])],
)
def test_return_values_are_normalised_as_the_framework_does(what: str, value: Any) -> None:
    assert ran(tasks.returns, what).return_value == value


@pytest.mark.parametrize(("what", "error"), [("function", TypeError), ("set", TypeError), ("latin-1", ValueError)])
def test_a_return_value_that_is_not_json_is_an_error(what: str, error: type[Exception]) -> None:
    result = ran(tasks.returns, what)
    assert (result.status, result.errors[0].exception_class) == ("FAILED", error)
    assert "the job's result must be JSON" in result.errors[0].traceback
    with pytest.raises(ValueError, match="Task failed"):
        result.return_value  # noqa: B018


def test_a_task_that_exits_has_failed() -> None:
    result = ran(tasks.leave)
    assert result.errors[0].exception_class is SystemExit
    assert result.errors[0].traceback.endswith("SystemExit: on its own\n")


@pytest.mark.parametrize("reason", ["", "no longer needed"])
def test_a_cancelled_task_has_failed_and_says_so(reason: str) -> None:
    result = tasks.ours.enqueue()
    Job.objects.get().cancel(by="ada", reason=reason)
    result.refresh()
    assert (result.status, result.attempts, result.started_at) == ("FAILED", 0, None)
    (error,) = result.errors
    assert error.exception_class.__name__ == "JobCancelled"
    assert error.traceback == "cancelled by ada" + (f": {reason}" if reason else "")


def test_a_task_that_gives_up_has_failed_and_can_be_retried() -> None:
    result = ran(tasks.give_up)
    assert (result.status, result.attempts, result.errors[0].traceback) == ("FAILED", 1, "no need")
    Job.objects.get().retry()
    result.refresh()
    assert (result.status, result.attempts, len(result.errors)) == ("READY", 1, 1)
    run_jobs()
    result.refresh()
    assert (result.status, result.attempts, len(result.errors)) == ("FAILED", 2, 2)
    assert result.started_at < result.last_attempted_at


def test_a_skipped_task_has_failed_and_says_so() -> None:
    result = tasks.ours.enqueue()
    Job.objects.update(status="SKIPPED", reason="too late", finished_at=now())
    result.refresh()
    assert (result.status, result.errors[0].exception_class.__name__) == ("FAILED", "JobSkipped")
    assert result.errors[0].traceback == "too late"


# -- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("result_id", [str(uuid.uuid4()), "123", "", "nothing", 123, None, "x" * 5000])
def test_a_result_that_is_not_there(result_id: Any) -> None:
    for get in (tasks.ours.get_result, backend().get_result, async_to_sync(tasks.ours.aget_result)):
        with pytest.raises(exceptions.TaskResultDoesNotExist):
            get(result_id)


def test_a_job_that_is_no_task_has_no_result() -> None:
    for function in ("tests.functions.noop", "tests.nosuchmodule.gone"):
        job = enqueue(function)
        assert job is not None
        with pytest.raises(exceptions.TaskResultDoesNotExist, match=f"'{function}' is not a Task"):
            backend().get_result(str(job.pk))


def test_a_result_of_another_task() -> None:
    result = tasks.ours_async.enqueue()
    with pytest.raises(exceptions.TaskResultMismatch):
        tasks.ours.get_result(result.id)
    with pytest.raises(exceptions.TaskResultMismatch):
        async_to_sync(tasks.ours.aget_result)(result.id)


@committing
def test_the_async_api() -> None:
    async def enqueue_and_wait() -> None:
        result = await tasks.ours_async.aenqueue(1, b=2)
        assert await tasks.ours_async.aget_result(result.id) == result == await backend().aget_result(result.id)
        before = dataclasses.asdict(result)
        await result.arefresh()
        assert dataclasses.asdict(result) == before
        await sync_to_async(run_jobs)()
        await result.arefresh()
        assert result.return_value == [[1], {"b": 2}]

    async_to_sync(enqueue_and_wait)()


def test_a_result_is_one_query(django_assert_num_queries: Any) -> None:
    result = tasks.ours.enqueue()
    with django_assert_num_queries(1):
        result.refresh()


def test_what_is_on_record_is_not_judged_anew(settings: Any) -> None:
    result = tasks.ours.using(queue_name="old", priority=3).enqueue()
    Job.objects.update(priority=1000)
    settings.TASKS = {"pgwerk": {**BACKEND, "QUEUES": ["default"]}}
    found = backend().get_result(result.id)
    assert (found.task.queue_name, found.task.priority) == ("old", 1000)
    assert [job.status for job in run_jobs()] == ["SUCCESSFUL"]


# -- aliases ---------------------------------------------------------------------------------------------------------


def test_a_result_knows_the_alias_that_enqueued_it() -> None:
    own, given = tasks.context_seen.enqueue(), tasks.context_seen.using(backend="patient").enqueue()
    run_jobs()
    assert [backend(alias).get_result(own.id).backend for alias in ("pgwerk", "patient")] == ["pgwerk", "pgwerk"]
    assert [backend(alias).get_result(given.id).backend for alias in ("pgwerk", "patient")] == ["patient", "patient"]
    assert tasks.context_seen.get_result(given.id).return_value["backend"] == "patient"


def test_a_task_of_another_backend_may_use_ours_for_once() -> None:
    result = ran(tasks.with_context.using(backend="pgwerk"), 1)
    assert (result.return_value, result.backend) == ([1], "pgwerk")
    assert functions.read() == [["context", 1, 1]]


def test_an_alias_that_is_gone_is_replaced_by_one_that_is_there(settings: Any) -> None:
    result = tasks.context_seen.using(backend="patient").enqueue()
    settings.TASKS = {"default": settings.TASKS["default"], "pgwerk": BACKEND}
    run_jobs()
    found = backend().get_result(result.id)
    assert (found.backend, found.return_value["backend"]) == ("pgwerk", "pgwerk")


# -- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [tasks.ours, tasks.ours_async])
def test_signals_of_a_task_that_succeeds(heard: list[Any], task: Any) -> None:
    result = task.enqueue(1)
    assert [(name, told) for name, _, told, _ in heard] == [("task_enqueued", result)]
    run_jobs()
    assert [name for name, *_ in heard] == ["task_enqueued", "task_started", "task_finished"]
    assert {sender for _, sender, *_ in heard} == {type(backend())}
    _, started, finished = (told for _, _, told, _ in heard)
    assert (started.id, started.status, started.attempts) == (result.id, "RUNNING", 1)
    assert started.started_at is not None
    assert (finished.id, finished.status, finished.return_value) == (result.id, "SUCCESSFUL", [[1], {}])
    assert finished.started_at <= finished.finished_at


@pytest.mark.parametrize("task", [tasks.fail, tasks.fail_async])
def test_receivers_find_the_exception(heard: list[Any], task: Any) -> None:
    task.enqueue("out of paper")
    run_jobs()
    name, _, finished, error = heard[-1]
    assert (name, finished.status, finished.errors[0].exception_class) == ("task_finished", "FAILED", ValueError)
    assert str(error) == "out of paper"


def test_a_task_is_finished_once_however_often_it_is_tried(heard: list[Any]) -> None:
    tasks.third_time_lucky.enqueue()
    run_jobs()
    assert [name for name, *_ in heard] == ["task_enqueued", *["task_started"] * 3, "task_finished"]
    assert [told.attempts for _, _, told, _ in heard] == [0, 1, 2, 3, 3]


def test_what_a_receiver_raises_is_no_error_of_the_task() -> None:
    def break_down(**kwargs: Any) -> None:
        raise ValueError("a bad receiver")

    signals.task_started.connect(break_down)
    signals.task_finished.connect(break_down)
    try:
        assert ran(tasks.ours).status == "SUCCESSFUL"
    finally:
        signals.task_started.disconnect(break_down)
        signals.task_finished.disconnect(break_down)


def test_the_frameworks_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger=framework("signals").logger.name):
        result = ran(tasks.fail)
    lines = [record for record in caplog.records if record.name == framework("signals").logger.name]
    assert [record.levelname for record in lines] == ["DEBUG", "INFO", "ERROR"]
    assert all(result.id in record.getMessage() for record in lines)
    assert lines[-1].exc_info is not None
    assert "no luck" in str(lines[-1].exc_info[1])


def test_a_plain_job_sends_none(heard: list[Any]) -> None:
    enqueue(functions.noop)
    run_jobs()
    assert heard == []


@pytest.mark.process
@committing
@pytest.mark.parametrize("task", [tasks.ours, tasks.ours_async, tasks.fail])
def test_a_workers_process_sends_them_where_the_task_runs(
    heard: list[Any], task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGWERK_TEST_TELL", "yes")
    result = task.enqueue()
    work()
    result.refresh()
    assert [name for name, *_ in heard] == ["task_enqueued"]
    started, *_own, finished = functions.read()
    assert [started[0], finished[0]] == ["RUNNING", result.status]
    assert started[1] == finished[1] != os.getpid()


@pytest.mark.process
@committing
def test_of_a_task_that_cannot_say_it_any_more_the_worker_says_it(heard: list[Any]) -> None:
    died, late = tasks.die.enqueue(), tasks.hang.enqueue()
    Job.objects.filter(pk=late.id).update(timeout=1)
    work(shutdown_timeout=0)
    finished = {told.id: told for name, _, told, _ in heard if name == "task_finished"}
    assert {(told.status, told.attempts) for told in finished.values()} == {("FAILED", 1)}
    assert all(told.enqueued_at <= told.started_at < told.finished_at for told in finished.values())
    assert finished[died.id].errors[0].exception_class.__name__ == "ProcessDied"
    assert finished[late.id].errors[0].traceback.startswith("timed out after 1 s\n  It was here")
    assert [name for name, *_ in heard].count("task_finished") == 2


# -- schedules -------------------------------------------------------------------------------------------------------


@pytest.mark.process
@committing
def test_a_schedule_over_a_task_of_ours_is_run_by_our_worker(scheduler: Scheduler) -> None:
    scheduler.schedule_in(0, tasks.context_seen, args=[1], kwargs={"b": 2}, _name="seen")
    assert Schedule.objects.get().target == "worker"
    scheduler.tick()
    work()
    job = Job.objects.get()
    assert (job.status, job.result["id"], job.result["args"]) == ("SUCCESSFUL", str(job.pk), [[1], {"b": 2}])
    assert tasks.context_seen.get_result(job.pk).return_value == job.result


def test_a_task_with_context_may_be_declared_and_given_by_its_path(scheduler: Scheduler) -> None:
    schedule(cron="0 9 * * *", _timezone="UTC", args=[1])(tasks.context_seen)
    scheduler.cron("0 9 * * *", "tests.django_tasks.context_seen", 1, _name="by path", _timezone="UTC")
    assert checks.check_functions(None) == []
    jobs = run_due(now=NINE)
    assert [job.result["attempt"] for job in jobs] == [[1, 1, 1]]
    with pytest.raises(TypeError, match="must fit"):
        scheduler.interval(60, "tests.django_tasks.third_time_lucky", 1)


def test_the_options_of_its_backend_hold_for_a_scheduled_task_too() -> None:
    schedule(interval=60)(tasks.third_time_lucky)
    schedule(interval=60, _name="own", _max_attempts=5, _timeout=7)(tasks.third_time_lucky)
    own, usual = (resolved(definition) for definition in registry)
    assert (usual.max_attempts, usual.backoff, usual.timeout, usual.result_ttl, usual.failure_ttl) == (3, 0, 60, 10, 20)
    assert (own.max_attempts, own.backoff, own.timeout) == (5, 0, 7)


def test_a_context_needs_an_alias_of_ours(settings: Any) -> None:
    schedule(interval=60, _target="worker")(tasks.with_context)
    assert checks.check_functions(None) == []
    settings.TASKS = {"default": settings.TASKS["default"]}
    (problem,) = checks.check_functions(None)
    assert "takes a task's context, for which the target 'worker' needs an alias in TASKS" in problem.msg


# -- what is configured ----------------------------------------------------------------------------------------------


def test_all_is_well() -> None:
    assert [problem for alias in ("pgwerk", "patient") for problem in backend(alias).check()] == []
    assert [backend().supports_defer, backend().supports_async_task] == [True, True]
    assert [backend().supports_get_result, backend().supports_priority] == [True, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"MAX_ATEMPTS": 2}, r"TASKS\['pgwerk'\]\['OPTIONS'\]\['MAX_ATEMPTS'\] is unknown: expected one of MAX_ATTEMPTS, "),
        ({"MAX_ATTEMPTS": 0}, r"\['MAX_ATTEMPTS'\] must be a whole number from 1 to \d+, got 0"),
        ({"BACKOFF": []}, r"\['BACKOFF'\] must be seconds or a non-empty list of seconds, got \[\]"),
        ({"TIMEOUT": "1"}, r"\['TIMEOUT'\] must be .*, got '1'"),
        ({"RESULT_TTL": -1}, r"\['RESULT_TTL'\] must be .*, got -1"),
        ({"FAILURE_TTL": 0.5}, r"\['FAILURE_TTL'\] must be .*, got 0.5"),
        ([1], r"TASKS\['pgwerk'\]\['OPTIONS'\] must be a dictionary, got \[1\]"),
    ],
)  # fmt: skip
def test_options_that_cannot_be(settings: Any, options: Any, message: str) -> None:
    settings.TASKS = {"pgwerk": {**BACKEND, "QUEUES": [], "OPTIONS": options}}
    (problem,) = backend().check()
    assert problem.id == "pgwerk_django.E010"
    with pytest.raises(ImproperlyConfigured, match=message) as raised:
        tasks.ours.enqueue()
    assert problem.msg == str(raised.value)
    assert not Job.objects.exists()
    schedule(interval=60)(tasks.ours)
    assert [problem.msg for problem in checks.check_functions(None)] == [
        f"schedule 'tests.django_tasks.ours': {raised.value}"
    ]


def test_durations_may_be_timedeltas(settings: Any) -> None:
    settings.TASKS = {"pgwerk": {**BACKEND, "OPTIONS": {"TIMEOUT": MINUTE, "BACKOFF": [SECOND, HOUR]}}}
    tasks.ours.enqueue()
    assert Job.objects.values_list("timeout", "backoff").get() == (60, [1, 3600])


def test_without_the_app_the_check_says_so(settings: Any) -> None:
    settings.INSTALLED_APPS = [app for app in settings.INSTALLED_APPS if app != "pgwerk_django"]
    (problem,) = backend().check()
    assert (problem.id, problem.hint) == ("pgwerk_django.E011", "Add 'pgwerk_django' to INSTALLED_APPS.")


def test_manage_py_check_asks_the_backend(settings: Any) -> None:
    settings.TASKS = {**settings.TASKS, "default": {**BACKEND, "OPTIONS": {"TIMEOUT": 0}}}
    with pytest.raises(SystemCheckError, match=r"pgwerk_django\.E010.*'TIMEOUT'"):
        call_command("check")


# -- where the framework is not, or not yet --------------------------------------------------------------------------


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr


@pytest.mark.process
def test_a_task_may_come_before_the_models() -> None:
    code = f"""
import sys
from django.conf import settings
settings.configure(TASKS={{"default": {BACKEND}}})
from {PACKAGE} import task
def later(): ...
later = task(priority=5)(later)
assert "pgwerk_django.models" not in sys.modules
print(type(later.get_backend()).__name__)
"""
    assert python(code).strip() == "PgwerkBackend"


@pytest.mark.process
def test_without_the_framework_the_backend_says_what_to_install() -> None:
    code = "import sys; sys.modules.update({'django.tasks': None, 'django_tasks': None}); import pgwerk_django.backend"
    assert "pip install 'pgwerk-django[tasks]'" in python(code)


def test_without_the_framework_plain_jobs_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("django.tasks", "django_tasks"):
        monkeypatch.setitem(sys.modules, package, None)
    framework.cache_clear()
    try:
        enqueue(functions.add, 1, b=2)
        enqueue(functions.async_add, 1)
        assert [job.result for job in run_jobs()] == [3, 1]
        assert current_job() is None
    finally:
        framework.cache_clear()


def test_a_task_that_asks_for_itself_has_begun() -> None:
    """Its start is written some milliseconds later, or with its end."""
    result = tasks.ours.enqueue(1)
    Job.objects.filter(pk=result.id).update(status="RUNNING", prefetched=True)
    job = Job.objects.get(pk=result.id)
    with running(CurrentJob(job, lambda said: None)):
        result.refresh()
    assert result.status == "RUNNING"
    assert result.started_at >= result.enqueued_at
