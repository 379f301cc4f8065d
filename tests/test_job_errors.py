"""Errors of jobs reach those who look for them: a record with the traceback, a hook around each job, where a job hung."""

from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from pgwerk_django.execution import around_job
from pgwerk_django.jobs import enqueue
from pgwerk_django.models import Job
from pgwerk_django.test import run_jobs
from tests import django_tasks as tasks
from tests import functions, hostile_errors, job_functions
from tests.test_checks import found
from tests.test_children import became, given, noted, work, working

process = pytest.mark.process


@pytest.fixture
def hooked(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGWERK_TEST_AROUND", "tests.around.around")


def records() -> list[Any]:
    return [note[1] for note in functions.read() if note[0] == "record"]


@process
@pytest.mark.usefixtures("hooked")
def test_each_failure_leaves_one_record_with_the_exception_where_it_happens() -> None:
    given(functions.add, 1)  # which has the handler installed
    given(functions.fail, _key="plain")
    given(hostile_errors.araise_hostile, "HTTPFailed", _key="async")
    given(functions.fail, _key="again", _max_attempts=2, _backoff=0)
    given("tests.raises_on_import.function", _key="import")
    given(functions.not_json, _key="result")
    given(functions.leave_a_transaction_open, _key="transaction")
    given(functions.cancel_itself, _key="cancelled")
    work()
    assert sorted(records()) == sorted([
        ["pgwerk_django.job", "ERROR", "plain", "ValueError", "plain"],
        ["pgwerk_django.job", "ERROR", "async", "HTTPFailed", "async"],
        ["pgwerk_django.job", "WARNING", "again", "ValueError", "again"],
        ["pgwerk_django.job", "ERROR", "again", "ValueError", "again"],
        ["pgwerk_django.job", "ERROR", "import", "FunctionNotFound", ""],
        ["pgwerk_django.job", "ERROR", "result", "TypeError", "result"],
        ["pgwerk_django.job", "ERROR", "transaction", "TransactionLeftOpen", "transaction"],
    ])  # fmt: skip


@process
@pytest.mark.usefixtures("hooked")
def test_a_task_that_fails_for_good_leaves_the_record_of_its_framework_alone() -> None:
    tasks.fail.enqueue()
    work()
    ((name, level, _key, raised, _around),) = [each for each in records() if each[1] == "ERROR"]
    assert (name.replace("_", "."), level, raised) == ("django.tasks", "ERROR", "ValueError")


@process
@pytest.mark.usefixtures("hooked")
def test_a_job_stopped_by_its_timeout_leaves_a_record_and_a_cancelled_one_none() -> None:
    given(functions.spin, _timeout=1, _key="late")
    cancelled = given(functions.spin, _key="cancelled")
    with working(threads=2):
        noted("spinning", 2)
        cancelled.cancel(force=True)
        became(cancelled)
        became(Job.objects.get(key="late"))
    assert [record[:4] for record in records()] == [["pgwerk_django.job", "ERROR", "late", "JobTimeout"]]


@process
@pytest.mark.django_db(transaction=True)
def test_a_job_that_dies_with_its_process_leaves_a_record_of_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    given(functions.kill_own_process, _key="died")
    work()
    (record,) = [each for each in caplog.records if each.name == "pgwerk_django.job"]
    assert (record.levelname, record.job_key) == ("ERROR", "died")  # type: ignore[attr-defined]
    assert "killed by SIGKILL" in str(record.exc_info and record.exc_info[1])


@process
@pytest.mark.usefixtures("hooked")
def test_what_is_around_a_job_sees_its_error_and_may_fail_itself() -> None:
    hows = ["", "suppresses", "raises before", "raises after", "is none", "is async"]
    jobs = {
        (how, func): given(func, 1, _meta={"around": how})
        for how in hows
        for func in (functions.add, functions.fail, functions.async_add)
    }
    work()

    def ended(how: str, func: Any = functions.add) -> tuple[str, str]:
        job = became(jobs[how, func], seconds=1)
        return job.status, job.exception.rpartition(".")[2]

    for func in (functions.add, functions.async_add):
        assert ended("", func) == ("SUCCESSFUL", "")
        assert ended("raises before", func) == ended("raises after", func) == ("FAILED", "LookupError")
        assert ended("is none", func) == ("FAILED", "ImproperlyConfigured")
    assert ended("", functions.fail) == ("FAILED", "ValueError")
    assert (ended("suppresses", functions.fail), jobs["suppresses", functions.fail].result) == (
        ("SUCCESSFUL", ""),
        None,
    )
    assert ended("is async", functions.async_add) == ("SUCCESSFUL", "")
    assert ended("is async") == ("FAILED", "TypeError")
    assert "must return a context manager, got 42" in jobs["is none", functions.add].error
    assert {"saw ValueError", "entered by async with"} <= set(noted("around"))


@pytest.mark.django_db
def test_in_tests_errors_are_logged_and_the_hook_is_entered_as_in_a_worker(
    settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.PGWERK = {**settings.PGWERK, "AROUND_JOB": "tests.around.around"}
    for func in (functions.fail, functions.async_add, hostile_errors.araise_hostile):
        enqueue(func, "HTTPFailed", _meta={"around": "" if func is functions.fail else "raises after"})
    run_jobs(raising=False)
    raised = [
        each.exc_info[0].__name__ for each in caplog.records if each.name == "pgwerk_django.job" and each.exc_info
    ]
    assert raised == ["ValueError", "TypeError", "HTTPFailed"]


@pytest.mark.parametrize(
    ("path", "message"),
    [("tests.around.no_such", "must lead to a function that returns a context manager, got 'tests.around.no_such'"),
     ("tests.around", "got 'tests.around'"), ("pgwerk_django.jobs.LONGEST_KEY", "which is 255")],
)  # fmt: skip
def test_a_hook_that_is_not_there_is_found_by_check(settings: Any, path: str, message: str) -> None:
    settings.PGWERK = {**settings.PGWERK, "AROUND_JOB": path}
    assert message in found()["pgwerk_django.E013"]
    with pytest.raises(ImproperlyConfigured, match="AROUND_JOB"):
        around_job(path)


def test_a_queue_for_each_tenant_is_found_by_check(settings: Any) -> None:
    assert "pgwerk_django.W006" not in found()
    settings.SHARED_APPS = settings.TENANT_APPS = ["pgwerk_django"]
    assert "no worker reads it" in found()["pgwerk_django.W006"]


@process
@pytest.mark.django_db(transaction=True)
def test_a_job_that_is_stopped_says_where_it_was() -> None:
    lines = {
        (job_functions.hang_here, "spins"): "in hang_here",
        (job_functions.hang_here, "sleeps"): "time.sleep(3600)",
        (job_functions.async_hang_here, "awaits"): "await asyncio.Event().wait()  # the innermost line",
        (job_functions.async_hang_here, "blocks the loop"): "time.sleep(3600)",
    }
    jobs = {case: given(*case, _timeout=1) for case in lines}
    work(concurrency=len(jobs), shutdown_timeout=0)
    for case, job in jobs.items():
        became(job)
        message, header, *stack = job.error.splitlines()
        assert (message, header) == ("timed out after 1 s", "  It was here (most recent call last):"), case
        assert f"in {case[0].__name__}" in stack[0], case
        assert lines[case] in job.error, case
        assert all(each.startswith("  ") for each in stack), case


@process
@pytest.mark.django_db(transaction=True)
def test_what_one_job_sets_the_next_does_not_find() -> None:
    both = (job_functions.traces, job_functions.async_traces)
    jobs = [
        given(func)
        for first in (job_functions.leave_traces, job_functions.async_leave_traces)
        for func in [func for second in both for func in (first, second)]
    ]
    work()
    assert [became(job).result for job in jobs[1::2]] == [["none", 28, "none"]] * 4, jobs[1].error
