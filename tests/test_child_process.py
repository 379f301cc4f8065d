"""What a job does to the process that runs it: it costs that job at most, and leaves nothing behind for the next one."""

import signal
from typing import Any

import pytest

from pgwerk_django.models import Job
from tests import functions, hostile_errors, job_functions
from tests.hostile_errors import HOSTILE
from tests.test_children import became, given, noted, work, working
from tests.waiting import wait_until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.process]


def in_one_process(*calls: Any, **options: Any) -> list[Job]:
    """The jobs, once they have all run one after the other in one process, and a last one, which must run there, too."""
    first = given(functions.process_id)
    jobs = [
        given(call[0], *call[1:], _timeout=15) if isinstance(call, tuple) else given(call, _timeout=15)
        for call in calls
    ]
    last = given(functions.process_id)
    work(**options)
    for job in [first, *jobs, last]:
        became(job, seconds=1)
    assert (last.status, last.result) == ("SUCCESSFUL", first.result), last.error
    return jobs


# -- what is raised


def test_whatever_a_job_raises_it_fails_and_the_next_one_runs() -> None:
    jobs = in_one_process(
        *[(func, name) for name in HOSTILE for func in (hostile_errors.raise_hostile, hostile_errors.araise_hostile)]
    )
    assert {(job.args[0], job.status) for job in jobs if job.status != "FAILED"} == set()
    assert all(job.error and job.exception for job in jobs)


def test_a_job_that_raises_what_cannot_be_shown_is_tried_again_and_its_schedule_fails() -> None:
    job = given(hostile_errors.raise_hostile, "HTTPFailed", _max_attempts=2, _backoff=0)
    work()
    became(job)
    assert (job.status, job.attempt, job.exception) == ("FAILED", 2, "tests.hostile_errors.HTTPFailed")
    assert "raise HOSTILE[name]()" in job.errors[0]["error"]


# -- what is done to the process


def test_whatever_a_job_does_to_its_process_the_next_jobs_run_there() -> None:
    odd: list[tuple[Any, ...]] = [
        (job_functions.lower_the_recursion_limit, "SUCCESSFUL"),
        (job_functions.fail_in_del, "SUCCESSFUL"),
        (job_functions.odd_progress, "SUCCESSFUL"),
        (functions.leave, "FAILED"),
        (job_functions.exit_in_a_callback, "SUCCESSFUL"),
        (job_functions.stop_the_loop, "SUCCESSFUL"),
        (job_functions.close_the_loop, "FAILED"),
        (job_functions.odd_task_factory, "SUCCESSFUL"),
        (job_functions.close_stdout, "SUCCESSFUL"),
        (job_functions.without_streams, "SUCCESSFUL"),
        (job_functions.patch_threading, "SUCCESSFUL"),
        (job_functions.forget_our_modules, "SUCCESSFUL"),
    ]
    after = [(functions.async_add, 1, 2), (functions.add, 1, 2), functions.surroundings]
    jobs = in_one_process(*[call for func, _ in odd for call in (func, *after)])
    for (func, status), *found in zip(odd, *[jobs[n::4] for n in range(4)], strict=True):
        assert [job.status for job in found] == [status, *["SUCCESSFUL"] * 3], (func, [job.error for job in found])
    assert jobs[2 * 4].progress == {"done": 1, "total": 2.5, "note": "note"}


def test_a_process_that_a_job_breaks_ends_and_another_takes_its_place(notes: Any) -> None:
    breaking = [
        job_functions.close_files,
        job_functions.close_files_and_open_another,
        job_functions.write_to_the_pipe,
        job_functions.forget_all_modules,
    ]
    jobs = [given(each, _timeout=10) for func in breaking for each in (func, functions.process_id)]
    work()
    for job in jobs[::2]:
        assert became(job, seconds=1).status in ("SUCCESSFUL", "FAILED"), job.function
        if job.status == "FAILED":
            assert job.error.startswith("the process that ran it died: "), job.error
    assert {became(job, seconds=1).status for job in jobs[1::2]} == {"SUCCESSFUL"}
    assert jobs[0].error == "the process that ran it died: exit code 70"
    assert {path.read_bytes() for path in notes.glob("mine-*")} <= {b""}


def test_what_asyncio_lets_through_ends_no_other_job() -> None:
    """A task that raises one of these ends the loop that it runs on."""
    beside = given(job_functions.async_wait, _timeout=20)
    with working(threads=3):
        noted("waiting")
        for error in ("SystemExit", "KeyboardInterrupt"):
            job = given(job_functions.exit_in_a_task, error, _timeout=10)
            assert became(job).result == error, job.error
            assert became(given(functions.async_add, 1, 2)).result == 3
        assert became(beside, "RUNNING", "FAILED").status == "RUNNING"
        assert became(given(job_functions.cancel_all_tasks, _timeout=10)).result == "cancelled the others"
        assert became(beside).exception == "asyncio.exceptions.CancelledError"


# -- copies


def test_a_forked_copy_ends_as_its_own_process_and_the_job_goes_on() -> None:
    ends = {
        "returns": 0, "sys.exit()": 0, "sys.exit(3)": 3, "sys.exit(text)": 1, "os._exit": 4, "raises": 1,
        "says progress": 1, "is killed": -signal.SIGTERM,
    }  # fmt: skip
    jobs = in_one_process(*[(func, how) for how in ends for func in (job_functions.fork, job_functions.async_fork)])
    assert [(job.args[0], job.result) for job in jobs] == [(how, code) for how, code in ends.items() for _ in range(2)]
    assert Job.objects.filter(progress__isnull=False).count() == 0


def test_a_copy_in_a_thread_or_on_the_event_loop_ends_too() -> None:
    thread, loop = in_one_process(job_functions.fork_in_a_thread, job_functions.async_fork_and_await)
    assert (thread.result, loop.result) == ([4], 1), (thread.error, loop.error)


def test_a_copy_has_a_database_session_of_its_own() -> None:
    (job,) = in_one_process(job_functions.fork_amid_queries)
    before, after = job.result
    (of_the_copy,) = noted("copy")
    assert before == after != of_the_copy


def test_multiprocessing_works_in_a_job() -> None:
    jobs = in_one_process(*[(job_functions.use_processes, method) for method in ("fork", "spawn")])
    assert [job.result for job in jobs] == [[1, 2, 3, 0]] * 2, [job.error for job in jobs]


# -- what programs inherit


def test_programs_that_a_job_starts_can_be_terminated() -> None:
    hows = ["Popen", "preexec_fn", "shell", "posix_spawn", "multiprocessing"]
    jobs = in_one_process(*[(job_functions.terminate, how) for how in hows])
    assert [job.result for job in jobs] == [-signal.SIGTERM] * len(hows), [job.error for job in jobs]


def test_a_program_inherits_neither_our_signals_nor_our_pipe() -> None:
    (job,) = in_one_process(job_functions.inherited_by_a_program)
    ignored = job.result["SigIgn"]
    assert [number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if ignored >> (number - 1) & 1] == []
    assert (job.result["SigBlk"], job.result["sockets"]) == (0, [])


# -- output


def test_what_a_job_prints_is_seen_while_it_runs(manage: Any) -> None:
    given(job_functions.say, "hello", 3600)
    worker = manage("runworker", "--concurrency=1", "--shutdown-timeout=0", PYTHONUNBUFFERED="")
    wait_until(lambda: worker.says("hello"))
    worker.stop()


@pytest.mark.parametrize("options", [["--burst", "--max-jobs-per-child=1"], []])
def test_what_is_still_to_be_written_or_sent_gets_out_when_a_process_ends(manage: Any, options: list[str]) -> None:
    jobs = [given(each) for each in (job_functions.ship, job_functions.buffered_log, job_functions.ship_in_an_executor)]
    jobs.append(given(job_functions.say_half_a_line))
    worker = manage("runworker", "--concurrency=1", *options, PYTHONUNBUFFERED="")
    for job in jobs:
        assert became(job).status == "SUCCESSFUL", job.error
    if options:
        assert worker.process.wait(30) == 0, worker.text()
    else:
        assert worker.stop() == 0, worker.text()
    assert sorted(noted("shipped")) == ["in the background", "the last words"]
    assert noted("logged") == ["kept in memory"]
    assert "half a line" in worker.text()


@pytest.mark.parametrize("func", [job_functions.ship, job_functions.leave_a_thread])
def test_what_hangs_at_its_end_holds_up_no_worker(func: Any) -> None:
    given(func, **({"hangs": True} if func is job_functions.ship else {}))
    work()
    wait_until(lambda: ["flushing"] in functions.read())
    assert noted("shipped") == ["the last words"] if func is job_functions.leave_a_thread else True
