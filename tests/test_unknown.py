"""Jobs of newer code on a worker of older code: they are left to workers that know them, and spend no attempt."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from pgwerk_django import signals
from pgwerk_django.claims import MOST_FALSE_STARTS, Claims, recover_lost
from pgwerk_django.models import Job, Queue
from pgwerk_django.test import run_jobs
from tests import functions
from tests.test_children import became, given, working
from tests.time_travel import HOUR, MINUTE, SECOND, make, now
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

UNKNOWN: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("tests.new_module.added", [], {}),
    ("new_package.tasks.added", [], {}),
    ("tests.older_code.added", [], {}),
    ("tests.older_code.Callable_.added", [], {}),
    ("tests.older_code.constant", [], {}),
    ("tests.older_code.one", [1], {"new": 2}),
    ("tests.older_code.one", [1, 2], {}),
    ("tests.older_code.one", [], {}),
    ("tests.older_code.instance", [1], {"new": 2}),
    ("tests.older_code.in_a_transaction", [1], {"new": 2}),
    ("tests.older_code.named", [1], {"new": 2}),
    ("tests.functions.async_add", [1], {"new": 2}),
    ("tests.django_tasks.add", [1], {"new": 2}),
    ("tests.django_tasks.added", [], {}),
]
KNOWN: list[tuple[str, list[Any], str]] = [
    ("tests.older_code.in_a_transaction", [1], "SUCCESSFUL"),
    ("tests.older_code.named", [1], "SUCCESSFUL"),
    ("tests.older_code.instance", [1], "SUCCESSFUL"),
    ("tests.django_tasks.add", [1], "SUCCESSFUL"),
    ("tests.broken_code.func", [], "FAILED"),
    ("tests.older_code.named_fails", [1], "FAILED"),
    ("tests.older_code.calls_another_wrongly", [1], "FAILED"),
    ("tests.older_code.calls_itself_wrongly", [1], "FAILED"),
    ("operator.add", [1, "a"], "FAILED"),
    ("nodots", [], "FAILED"),
]


def make_job(function: str, args: list[Any] | None = None, kwargs: dict[str, Any] | None = None, **columns: Any) -> Job:
    return Job.objects.create(function=function, args=args or [], kwargs=kwargs or {}, **columns)


def worker(number: int = 1) -> Claims:
    return Claims(number, f"worker {number}", lease=60, using="default")


@pytest.mark.process
def test_what_newer_code_may_know_waits_for_it_and_everything_else_ends_as_ever() -> None:
    unknown = [make_job(*each) for each in UNKNOWN]
    too_long = make_job("tests.older_code.added", unknown_since=now() - HOUR)
    again = make_job("tests.older_code.added", unknown_since=now() - HOUR, max_attempts=2, backoff=600)
    known = [make_job(function, args) for function, args, _status in KNOWN]
    told: list[Any] = []

    def listener(function: str, error: str, **event: Any) -> None:
        told.append((function, error))

    signals.jobs_unknown.connect(listener)
    try:
        with working(threads=2):
            assert [became(job, "SUCCESSFUL", "FAILED").status for job in known] == [status for *_, status in KNOWN]
            wait_until(lambda: Job.objects.filter(unknown_since=None, status="READY").count() == 1)  # `again`
            for job in unknown:
                job = became(job, "READY")
                found = (
                    job.function,
                    job.attempt,
                    job.error,
                    job.errors,
                    job.started_at,
                    job.run_at > job.unknown_since,
                )
                assert found == (job.function, 0, "", [], None, True)
            assert became(too_long).error == (
                "'tests.older_code.added' cannot be imported: ImportError: Module \"tests.older_code\" does not define a"
                ' "added" attribute/class'
            )
            again.refresh_from_db()
            assert (again.attempt, len(again.errors), again.unknown_since) == (1, 1, None)
    finally:
        signals.jobs_unknown.disconnect(listener)
    assert {function for function, _ in told} == {function for function, *_ in UNKNOWN}
    assert len(told) == len({function for function, _ in told})  # once each


def test_in_a_rolling_deploy_the_new_worker_runs_them_all(
    manage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = {
        "old": "def changed(a): return 'old'\n",
        "new": "def changed(a, b=0): return 'new'\ndef added(): return 'new'\n",
    }
    for release, text in code.items():
        (tmp_path / release).mkdir()
        (tmp_path / release / "deployed.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "old"))
    path = os.pathsep.join([str(tmp_path / "new"), *sys.path])
    with working(concurrency=2):
        first = [make_job("deployed.added") for _ in range(10)]
        wait_until(lambda: Job.objects.exclude(unknown_since=None).count() == 10)
        manage("runworker", "--concurrency=1", PYTHONPATH=path)
        jobs = [make_job("deployed.changed", [1], {"b": 2}) for _ in range(10)] + first
        wait_until(lambda: not Job.objects.filter(status__in=["READY", "RUNNING"]).exists(), 30)
    for job in jobs:
        job.refresh_from_db()
        assert (job.status, job.result, job.attempt, job.unknown_since) == ("SUCCESSFUL", "new", 1, None)
        assert job.errors == []


def test_who_releases_a_job_leaves_it_to_others_for_longer_than_their_poll() -> None:
    job = make_job("deployed.added", run_at=now() - 0.5 * SECOND, unknown_since=now() - MINUTE)
    other = make_job("deployed.added")  # which has arguments that may fit
    taken = [row[0] for row in worker(1).claim(5, [], unknown=["deployed.added"])]
    assert taken == [other.pk]
    Job.objects.filter(pk=job.pk).update(run_at=now() - 3 * SECOND)
    assert [row[0] for row in worker(1).claim(5, [], unknown=["deployed.added"])] == [job.pk]
    Job.objects.filter(pk=job.pk).update(status="READY", run_at=now())
    assert [row[0] for row in worker(2).claim(5, [])] == [job.pk]


def test_each_release_waits_longer_and_none_is_a_false_start() -> None:
    job = make_job("deployed.added")
    waits: list[float] = []
    for number in range(MOST_FALSE_STARTS + 5):
        [(pk, *_)] = worker().claim(1, [])
        job.refresh_from_db()
        assert set(worker().release({(pk, job.claims): job.unknown_since})) == {pk}
        job.refresh_from_db()
        assert (job.status, job.attempt, job.prefetched, job.lease_until) == ("READY", 0, False, None)
        waits.append((job.run_at - now()).total_seconds())
        since = now() - 2**number * SECOND if number < 6 else now() - 40 * SECOND
        Job.objects.update(run_at=now(), unknown_since=since)
    assert 0.4 < waits[0] <= 1.5
    assert 1.4 < waits[2] <= 4.6
    assert all(14.9 < wait <= 45 for wait in waits[7:])
    worker().claim(1, [])
    Job.objects.update(lease_until=now() - HOUR)
    assert recover_lost(using="default") == 1
    job.refresh_from_db()
    assert (job.status, job.attempt) == ("READY", 0)


def test_what_was_handed_back_is_no_false_start_either() -> None:
    job = make_job("tests.functions.noop")
    for _ in range(MOST_FALSE_STARTS):
        worker().claim(1, [])
        job.refresh_from_db()
        worker().hand_back([(job.pk, job.claims)])
    worker().claim(1, [])
    Job.objects.update(lease_until=now() - HOUR)
    recover_lost(using="default")
    job.refresh_from_db()
    assert (job.status, job.attempt) == ("READY", 0)


def test_since_when_it_is_unknown_outlives_a_start_that_was_written_too_early() -> None:
    since = now() - MINUTE
    job = make_job("tests.functions.noop", unknown_since=since)
    worker().claim(1, [])
    job.refresh_from_db()
    worker().begin({(job.pk, job.claims): 0.1})
    job.refresh_from_db()
    assert job.unknown_since is None
    assert set(worker().release({(job.pk, job.claims): since})) == {job.pk}
    job.refresh_from_db()
    assert (job.status, job.unknown_since) == ("READY", since)


def test_a_retry_begins_anew() -> None:
    job = make_job("deployed.added", status="FAILED", unknown_since=now() - HOUR, attempt=1)
    assert job.retry()
    job.refresh_from_db()
    assert job.unknown_since is None


def test_who_cancels_it_meanwhile_ends_it() -> None:
    job = make_job("deployed.added")
    worker().claim(1, [])
    job.refresh_from_db()
    job.cancel()
    assert set(worker().release({(job.pk, job.claims): None})) == {job.pk}
    job.refresh_from_db()
    assert (job.status, job.attempt) == ("CANCELLED", 0)
    assert job.expires_at is not None


@pytest.mark.parametrize("arguments", [{}, {"new": 1}])
def test_a_test_hears_of_it_at_once(arguments: dict[str, Any]) -> None:
    make_job("tests.functions.noop" if arguments else "tests.functions.added", kwargs=arguments)
    (job,) = run_jobs()
    assert (job.status, job.attempt, job.unknown_since) == ("FAILED", 1, None)


@pytest.mark.process
def test_what_is_unknown_holds_up_nothing_else() -> None:
    for number in range(500):
        make_job("tests.older_code.added", key=f"new {number}", priority=1)
    good = [given(functions.add, 1, _key=f"good {number}") for number in range(20)]
    with working():
        assert [became(job).status for job in good] == ["SUCCESSFUL"] * 20
        more = given(functions.add, 1)
        assert became(more).status == "SUCCESSFUL"
    assert Job.objects.filter(status="READY", attempt=0).count() == 500
    assert more.finished_at - more.enqueued_at < 2 * SECOND


@pytest.mark.process
def test_what_is_released_is_reported_neither_as_failed_nor_as_lost(caplog: pytest.LogCaptureFixture) -> None:
    job = make_job("tests.older_code.added", key="new")
    with working():
        wait_until(lambda: Job.objects.filter(unknown_since__isnull=False).exists())
        became(given(functions.add, 1))
    job.refresh_from_db()
    assert (job.status, job.attempt) == ("READY", 0)
    assert "jobs_unknown function=tests.older_code.added jobs=new" in caplog.text
    for event in ("lease_lost", "job_failed", "jobs_unsettled", "jobs_handed_back"):
        assert event not in caplog.text


def test_the_admin_says_that_it_waits_for_a_worker_that_knows_it(admin_client: Client) -> None:
    row = make("shop.tasks.new", _name="new", _queue="reports")
    for _ in range(3):
        make_job("shop.tasks.new", queue="reports", unknown_since=now(), run_at=now() + MINUTE)
    make_job("shop.<b>", queue="reports", unknown_since=now())
    Queue.objects.discover()
    queues = reverse("admin:pgwerk_django_queue_changelist")
    for page in (queues, reverse("admin:pgwerk_django_schedule_change", args=[row.pk])):
        assert "3 jobs wait for a worker that knows shop.tasks.new." in admin_client.get(page).content.decode()
    assert "1 job waits for a worker that knows shop.&lt;b&gt;." in admin_client.get(queues).content.decode()
