"""The real engines: their own workers run what is handed over, through crashes and outages of either side."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from pgwerk_django.models import Job
from pgwerk_django.scheduler import Scheduler
from tests import celery_app, django_tasks, functions, rq_tasks
from tests.conftest import RedisServer
from tests.processes import Started
from tests.test_targets import in_pgwerk
from tests.time_travel import SECOND, make_due, now
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

QUIET = {"PYTHONWARNINGS": "ignore"}  # not our code
PROGRAMS: dict[str, list[str]] = {
    "celery": ["-m", "celery", "-A", "tests.celery_app", "worker", "--pool=solo", "-Q", "celery,reports", "-l", "info"],
    "rq": ["-m", "django", "rqworker", "default", "other", "--job-class", "django_tasks_rq.Job", "-v", "2"],
    "database": ["-m", "django", "db_worker", "--queue-name", "*", "--backend", "database", "--interval", "0.1"],
    "pgwerk": ["-m", "tests.werk"],
}
FUNCTIONS: dict[str, Any] = {
    "celery": celery_app.remember,
    "rq": rq_tasks.rq,
    "database": django_tasks.database,
    "pgwerk": functions.remember,
}


@pytest.fixture(params=list(PROGRAMS))
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "rq":
        monkeypatch.setenv("PGWERK_TEST_RQ", "1")
    if request.param in ("celery", "rq"):
        request.getfixturevalue("redis")
    if request.param == "pgwerk":
        request.getfixturevalue("schema_of_pgwerk")
    return str(request.param)


@pytest.fixture
def work(start: Any) -> Callable[..., Started]:
    """A worker of an engine."""
    return lambda engine, **environment: start(*PROGRAMS[engine], **{**QUIET, **environment})


@pytest.fixture
def run(manage: Any) -> Callable[..., Started]:
    """A scheduler of ours."""
    options = {"PGWERK_LEASE": "1", "PGWERK_POLL": "0.1", "PGWERK_TEST_WERK": "tests.werk.app", **QUIET}
    return lambda **environment: manage("runscheduler", "--on-unregistered=keep", **{**options, **environment})


def due(scheduler: Scheduler, engine: str, *args: Any, **options: Any) -> None:
    options = {"interval": 3600, "_name": "under test", **options}
    options |= {"_target": "pgwerk"} if engine == "pgwerk" else {}
    make_due(scheduler.schedule(FUNCTIONS[engine], args=args, **options))


def ran(*args: Any) -> int:
    """How often the function ran with these arguments, whatever it is called with besides."""
    return sum(line[-len(args) :] == list(args) for line in functions.read())


def forwarded() -> bool:
    return set(Job.objects.values_list("status", flat=True)) == {"FORWARDED"}


def test_its_own_worker_runs_it(scheduler: Scheduler, engine: str, run: Any, work: Any) -> None:
    due(scheduler, engine, 1, "two")
    process = run()
    wait_until(forwarded)
    work(engine)
    wait_until(lambda: ran(1, "two") == 1)
    assert process.stop() == 0


def test_a_kill_between_send_and_mark(scheduler: Scheduler, engine: str, run: Any, work: Any) -> None:
    """Then it is sent once more: where keys or transactions see to it, it is there once all the same."""
    due(scheduler, engine, 7)
    (functions.folder() / "die").touch()
    assert run().process.wait(30) == -9
    assert [job.status for job in Job.objects.all()] == ["READY"]
    process = run()
    wait_until(forwarded)
    assert process.stop() == 0
    work(engine)
    sent = {"celery": 2, "rq": 2, "database": 1, "pgwerk": 1}[engine]
    wait_until(lambda: ran(7) == sent)
    if engine == "pgwerk":
        assert [arrived.key for arrived in in_pgwerk()] == [Job.objects.get().key]


def test_celery_knows_both_by_the_same_id(scheduler: Scheduler, redis: RedisServer, run: Any, work: Any) -> None:
    make_due(scheduler.schedule(celery_app.seen, interval=3600, _name="seen", _timeout=30, _queue="reports"))
    (functions.folder() / "die").touch()
    assert run().process.wait(30) == -9
    run()
    wait_until(forwarded)
    work("celery")
    wait_until(lambda: len(functions.read()) == 2)
    key = Job.objects.get().key
    assert functions.read() == 2 * [["seen", key, "reports", [30, None], None]]


@pytest.mark.parametrize("engine", ["celery", "rq"], indirect=True)
def test_a_broker_that_dies_and_comes_back(
    scheduler: Scheduler, engine: str, redis: RedisServer, run: Any, work: Any
) -> None:
    """What becomes due meanwhile waits, with its error; all of it arrives; other targets never notice."""
    process = run()
    due(scheduler, engine, 1)
    wait_until(lambda: Job.objects.filter(status="FORWARDED").count() == 1)
    redis.stop()
    due(scheduler, engine, 2)
    wait_until(lambda: Job.objects.filter(status="READY").exclude(error="").exists())
    due(scheduler, "database", 3, _name="other")
    wait_until(lambda: Job.objects.filter(schedule_name="other", status="FORWARDED").exists())
    assert "onnect" in Job.objects.get(status="READY").error
    redis.start()
    wait_until(forwarded)
    work(engine)
    wait_until(lambda: ran(2) == 1)
    assert process.stop() == 0
    assert "handover_failed" in process.text()


def test_celery_tells_what_became_of_them(scheduler: Scheduler, redis: RedisServer, run: Any, work: Any) -> None:
    work("celery", PGWERK_TEST_RESULTS="1")
    make_due(scheduler.schedule(celery_app.remember, args=[1], interval=3600, _name="good"))
    make_due(scheduler.schedule(celery_app.fail, args=[1], interval=3600, _name="bad"))
    run()
    wait_until(lambda: Job.objects.filter(status__in=["SUCCESSFUL", "FAILED"]).count() == 2)
    good, bad = Job.objects.get(schedule_name="good"), Job.objects.get(schedule_name="bad")
    assert (good.status, good.result, good.error) == ("SUCCESSFUL", [1], "")
    assert (bad.status, bad.exception) == ("FAILED", "builtins.ValueError")
    assert "no luck" in bad.error
    assert "Traceback" in bad.error
    assert good.started_at <= good.finished_at
    assert good.worker_name.startswith("celery@")


def test_celery_leaves_out_what_did_not_start_in_time(
    scheduler: Scheduler, redis: RedisServer, run: Any, work: Any
) -> None:
    make_due(scheduler.schedule(celery_app.remember, args=[1], interval=3600, _name="late", _start_within=2))
    run()
    wait_until(forwarded)
    wait_until(lambda: Job.objects.get().start_by + SECOND < now())
    work("celery", PGWERK_TEST_RESULTS="1")
    wait_until(lambda: Job.objects.get().status == "SKIPPED")
    assert functions.read() == []


def test_nothing_is_lost_of_many_under_kills(scheduler: Scheduler, schema_of_pgwerk: None, run: Any, work: Any) -> None:
    """Two schedulers, each killed amid its sends: each key is in pgwerk's table once."""
    for number in range(200):
        Job.objects.create(key=f"{number}", target="pgwerk", function="tests.functions.remember", args=[number])
    for _ in range(3):
        one, another = run(), run()
        with contextlib.suppress(AssertionError):
            wait_until(lambda: Job.objects.filter(status="FORWARDED").exists(), 5)
        one.process.kill()
        another.process.kill()
        one.process.wait()
        another.process.wait()
    process = run()
    wait_until(forwarded, 60)
    assert process.stop() == 0
    assert sorted(arrived.key for arrived in in_pgwerk()) == sorted(f"{number}" for number in range(200))
