"""Targets: what stands at a function's path decides, what is asked for and cannot be is refused, jobs arrive as they are."""

import base64
import datetime as dt
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from django.db import connection

from pgwerk_django import schedule, targets
from pgwerk_django.checks import check_functions, check_werk
from pgwerk_django.handover import hand_over
from pgwerk_django.models import Job, Schedule, database_now
from pgwerk_django.registry import define, registry
from pgwerk_django.scheduler import Scheduler
from pgwerk_django.sync import synchronise
from pgwerk_django.targets import celery as celery_target
from pgwerk_django.targets import pgwerk as pgwerk_target
from pgwerk_django.tick import tick
from tests import celery_app, django_tasks, functions, rq_tasks
from tests.conftest import RedisServer
from tests.time_travel import SECOND, make_due

NAME = "under test"


def problems() -> str:
    return "\n".join(str(message.msg) for message in check_functions(None))


def resolved(func: Any, **options: Any) -> Any:
    return targets.resolved(define(func, {"interval": 60, **options}))


# -- one of your own -----------------------------------------------------------------------------------------------


class Pigeons(targets.ForeignTarget):
    """An engine that this package does not know."""

    name = "pigeons"
    honours = frozenset({"priority"})

    def __init__(self) -> None:
        self.sent: list[str] = []

    def function_problems(self, function: str) -> Iterator[str]:
        if not function.startswith("loft."):
            yield f"{function!r} is in no loft"

    def send(self, job: Job) -> str:
        self.sent.append(job.key)
        return "pigeon 7"


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The targets, as they were before and will be after."""
    kept = dict(targets.TARGETS)
    monkeypatch.setattr(targets, "TARGETS", kept)
    return kept


@pytest.mark.django_db(transaction=True)
def test_an_engine_of_ones_own_is_a_target_like_any_other(known: dict[str, Any], scheduler: Scheduler) -> None:
    pigeons = Pigeons()
    targets.register(pigeons)
    row = scheduler.schedule("loft.fly", interval=60, _target="pigeons", _priority=3)
    with pytest.raises(ValueError, match=r"_timeout must not be given: the target 'pigeons' cannot stop a job"):
        scheduler.update(row.name, timeout=5)
    schedule("sea.swim", interval=60, _target="pigeons")
    assert problems() == "schedule 'sea.swim': 'sea.swim' is in no loft"
    make_due(row)
    tick(using="default")
    assert hand_over("host:1", using="default") == 1
    job = Job.objects.get()
    assert (pigeons.sent, job.status, job.external_id) == ([job.key], "FORWARDED", "pigeon 7")


def test_it_may_be_registered_again(known: dict[str, Any]) -> None:
    targets.register(Pigeons())
    targets.register(again := Pigeons())
    assert targets.get("pigeons") is again


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"name": "worker"}, "name must be one that no other target has, without a colon, got 'worker'"),
        ({"name": "pigeons:7"}, "name must be one that no other target has, without a colon, got 'pigeons:7'"),
        ({"name": ""}, "name must have 1 to 50 characters"),
        ({"honours": frozenset({"speed"})}, "honours must name some of priority, timeout, .*, got 'speed'"),
    ],
)
def test_what_cannot_be_registered(known: dict[str, Any], attributes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        targets.register(type("Other", (Pigeons,), attributes)())
    with pytest.raises(TypeError, match="target must be a ForeignTarget, got <class"):
        targets.register(Pigeons)  # type: ignore[arg-type]
    assert "pigeons" not in known


# -- who decides -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("func", "target"),
    [
        (functions.noop, "worker"),
        (functions.async_add, "worker"),
        (django_tasks.immediate, "django_tasks"),
        (django_tasks.database, "django_tasks"),
        (celery_app.remember, "celery"),
        (celery_app.seen, "celery"),
        ("tests.celery_app.quiet", "celery"),
        ("tests.rq_tasks.rq", "django_tasks"),
        ("somewhere.else", "worker"),
    ],
)
def test_the_kind_of_object_decides(func: Any, target: str) -> None:
    options = {"args": [1]} if func is functions.async_add else {}
    assert resolved(func, **options).target == target


def test_a_schedule_may_say_otherwise() -> None:
    assert resolved(functions.noop, _target="pgwerk").target == "pgwerk"
    assert resolved(celery_app.remember, _target="worker").target == "worker"
    assert resolved(django_tasks.immediate, _target="django_tasks:dummy").target == "django_tasks:dummy"


def test_decorator_order_does_not_matter() -> None:
    """Below the framework's decorator, `@schedule` is given a function that will be a task's."""
    schedule(interval=60)(celery_app.remember.run)
    (definition,) = registry
    assert definition.function == "tests.celery_app.remember"
    assert targets.resolved(definition).target == "celery"


def test_a_tasks_own_queue_priority_and_backend_are_kept() -> None:
    own = resolved(django_tasks.database)
    assert (own.target, own.queue, own.priority) == ("django_tasks", "reports", 5)
    told = resolved(django_tasks.database, _queue="mine", _priority=7)
    assert (told.queue, told.priority) == ("mine", 7)
    at = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
    variant = resolved(django_tasks.database.using(backend="rq", queue_name="other", priority=0, run_after=at))
    assert (variant.target, variant.queue, variant.starts_at) == ("django_tasks:rq", "other", at)


@pytest.mark.django_db
def test_sync_writes_it_and_an_unchanged_definition_changes_nothing() -> None:
    schedule(django_tasks.database, interval=60)
    schedule(celery_app.remember, interval=60)
    for inserted in (2, 0):
        found = synchronise(registry, on_unregistered="pause", using="default")
        assert (len(found.inserted), found.updated) == (inserted, {})
    assert dict(Schedule.objects.values_list("function", "target")) == {
        "tests.django_tasks.database": "django_tasks",
        "tests.celery_app.remember": "celery",
    }


@pytest.mark.django_db
def test_the_api_decides_as_sync_does(scheduler: Scheduler) -> None:
    assert scheduler.interval(60, celery_app.remember).target == "celery"
    assert scheduler.interval(60, "tests.django_tasks.database").queue == "reports"
    row = scheduler.interval(60, functions.noop, _target="pgwerk")
    assert scheduler.update(row.name, target=None).target == "worker"


# -- what a target cannot do is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("func", "options", "said"),
    [
        (django_tasks.immediate, {"_timeout": 60}, "_timeout must not be given: the target 'django_tasks' cannot stop"),
        (django_tasks.immediate, {"_max_attempts": 3}, "_max_attempts must not be given"),
        (django_tasks.immediate, {"_start_within": 3}, "_start_within must not be given"),
        (rq_tasks.rq, {"_priority": 3}, "Backend does not support setting priority of tasks"),
        (rq_tasks.rq, {"_queue": "nowhere"}, "Queue 'nowhere' is not valid for backend"),
        (django_tasks.immediate, {"_overlap": "SKIP"}, "does not tell when a job has ended, got 'SKIP'"),
        (celery_app.remember, {"_backoff": 3}, "_backoff must not be given: the target 'celery'"),
        (celery_app.remember, {"_priority": -1}, "_priority must be from 0 to 255 for the target 'celery', got -1"),
        (functions.noop, {"_target": "celery"}, "'tests.functions.noop' is not a Celery task, but function"),
        (functions.noop, {"_target": "django_tasks"}, "'tests.functions.noop' is not a Task of Django's"),
        (functions.remember, {"_target": "pgwerk", "_priority": 40_000}, "_priority must be from -32768 to 32767"),
        (functions.remember, {"_target": "pgwerk", "kwargs": {"_x": 1}}, "no names with a leading underscore"),
        (django_tasks.immediate, {"_target": "django_tasks:nowhere"}, "got 'django_tasks:nowhere'"),
        (functions.noop, {"_target": "pigeon"}, "got 'pigeon'"),
    ],
)
def test_what_a_target_cannot_do_fails_at_check_time(func: Any, options: dict[str, Any], said: str) -> None:
    schedule(func, interval=60, **options)
    assert said in problems()


@pytest.mark.django_db
def test_and_at_once_in_the_api(scheduler: Scheduler) -> None:
    with pytest.raises(ValueError, match="_timeout must not be given: the target 'django_tasks'"):
        scheduler.interval(60, django_tasks.immediate, _timeout=60)
    row = scheduler.interval(60, celery_app.remember, _timeout=60)
    with pytest.raises(ValueError, match="_max_attempts must not be given: the target 'celery'"):
        scheduler.update(row.name, max_attempts=2)


@pytest.mark.parametrize("package", ["celery", "pgwerk"])
def test_a_missing_package_is_named_with_the_line_that_installs_it(package: str, monkeypatch: Any) -> None:
    func = {"celery": celery_app.remember, "pgwerk": functions.noop}[package]
    schedule(func, interval=60, _target=package)
    monkeypatch.setitem(__import__("sys").modules, package, None)
    assert f"pip install 'pgwerk-django[{package}]'" in problems()


# -- pgwerk's tables and ours ----------------------------------------------------------------------------------------


def in_our_schema() -> Any:
    return pgwerk_target.library().Werk(connection_string(), schema="public")


def elsewhere() -> Any:
    return pgwerk_target.library().Werk("postgresql://somewhere/else", schema="public")


NOT_A_WERK = 42


def connection_string() -> str:
    return psycopg.conninfo.make_conninfo(
        **{name: value for name, value in connection.get_connection_params().items() if isinstance(value, str | int)}
    )


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (None, ""),
        ("tests.test_targets.elsewhere", ""),
        ("tests.test_targets.in_our_schema", "must have a schema or a prefix of its own"),
        ("tests.test_targets.NOT_A_WERK", "PGWERK['WERK'] must lead to a pgwerk.Werk"),
        ("tests.test_targets.nothing", "PGWERK['WERK'] must lead to a pgwerk.Werk"),
    ],
)
def test_a_werk_must_not_share_our_tables(path: str | None, said: str, settings: Any) -> None:
    settings.PGWERK = {"WERK": path}
    schedule(functions.noop, interval=60, _target="pgwerk")
    assert said in problems()
    assert bool(said) == bool(problems())
    assert [message.id for message in check_werk(None)] == ["pgwerk_django.E009"] * bool(said)


# -- the conformance suite: each of them, with the real thing behind it ----------------------------------------------


@dataclass
class Arrived:
    """What an engine holds of a job that was handed over to it."""

    id: str
    key: str
    args: list[Any]
    kwargs: dict[str, Any]
    queue: str
    timeout: int | None = None
    priority: int | None = None
    expires_at: dt.datetime | None = None


@dataclass
class Engine:
    """One target, and how to look into what it hands over to."""

    name: str
    func: Any
    queue: str  # one that it has
    arrived: Callable[[], list[Arrived]]
    keeps_keys: bool = True


def in_celery(redis: RedisServer) -> Callable[[], list[Arrived]]:
    def arrived() -> list[Arrived]:
        client = redis.client(0)
        # Each priority has a list of its own, whose name begins with the queue's.
        keys = [
            key for queue in ("celery", "reports") for key in client.keys(f"{queue}*") if client.type(key) == b"list"
        ]
        return [_message(key.decode(), raw) for key in keys for raw in client.lrange(key, 0, -1)]

    return arrived


def _message(key: str, raw: bytes) -> Arrived:
    message = json.loads(raw)
    headers, (args, kwargs, _embedded) = message["headers"], json.loads(base64.b64decode(message["body"]))
    expires_at = headers["expires"] and dt.datetime.fromisoformat(headers["expires"])
    return Arrived(
        id=headers["id"],
        key=headers["id"],
        args=args,
        kwargs=kwargs,
        queue="reports" if key.startswith("reports") else "default",
        timeout=headers["timelimit"][0],
        priority=message["properties"]["priority"],
        expires_at=expires_at,
    )


def in_rq() -> list[Arrived]:
    import django_rq

    jobs = [job for queue in ("default", "other") for job in django_rq.get_queue(queue).jobs]
    return [Arrived(job.id, "", list(job.args), dict(job.kwargs), job.origin) for job in jobs]


def in_database() -> list[Arrived]:
    from django_tasks_db.models import DBTaskResult

    return [
        Arrived(
            str(row.pk), "", row.args_kwargs["args"], row.args_kwargs["kwargs"], row.queue_name, priority=row.priority
        )
        for row in DBTaskResult.objects.all()
    ]


def decoded(value: Any) -> Any:
    """pgwerk's JSON columns hold text that is JSON."""
    return json.loads(value) if isinstance(value, str) else value


def in_pgwerk() -> list[Arrived]:
    columns = "id, key, payload, queue, timeout_secs, priority, expires_at"
    with psycopg.connect(connection_string()) as session:
        rows = session.execute(f"SELECT {columns} FROM pgwerk._pgwerk_jobs").fetchall()
    return [
        Arrived(str(pk), key, *(decoded(payload) or {"args": [], "kwargs": {}}).values(), *rest)
        for pk, key, payload, *rest in rows
    ]


@pytest.fixture(params=["celery", "rq", "database", "pgwerk"])
def engine(request: pytest.FixtureRequest, transactional_db: None) -> Engine:
    if request.param == "celery":
        return Engine("celery", celery_app.remember, "reports", in_celery(request.getfixturevalue("redis")))
    if request.param == "rq":
        request.getfixturevalue("redis")
        return Engine("django_tasks", rq_tasks.rq, "other", in_rq, keeps_keys=False)
    if request.param == "database":
        return Engine("django_tasks", django_tasks.database, "other", in_database, keeps_keys=False)
    request.getfixturevalue("schema_of_pgwerk")
    return Engine("pgwerk", functions.remember, "other", in_pgwerk)


def fire(scheduler: Scheduler, engine: Engine, **options: Any) -> Job:
    """One due time: its job, before anything is handed over."""
    options = {"_name": NAME, "interval": 3600, "_target": engine.name, **options}
    make_due(scheduler.schedule(engine.func, **options))
    assert tick(using="default") == 1
    return Job.objects.get(status="READY")


def test_it_arrives_with_its_whole_payload(scheduler: Scheduler, engine: Engine) -> None:
    args, kwargs = [1, "two", None, {"three": [3.5, True]}], {} if engine.name == "django_tasks" else {"four": "fünf"}
    job = fire(scheduler, engine, args=args, kwargs=kwargs)
    assert hand_over("host:1", using="default") == 1
    (arrived,) = engine.arrived()
    assert (arrived.args, arrived.kwargs) == (args, kwargs)
    job.refresh_from_db()
    assert (job.status, job.external_id, job.worker_name, job.error) == ("FORWARDED", arrived.id, "host:1", "")
    assert job.expires_at - job.finished_at == dt.timedelta(days=7)
    if engine.keeps_keys:
        assert arrived.key == job.key


def test_it_goes_into_the_queue_that_the_schedule_names(scheduler: Scheduler, engine: Engine) -> None:
    fire(scheduler, engine, _queue=engine.queue)
    hand_over("host:1", using="default")
    assert [arrived.queue for arrived in engine.arrived()] == [engine.queue]


def test_without_one_it_goes_where_its_own_engine_says(scheduler: Scheduler, engine: Engine) -> None:
    fire(scheduler, engine)
    hand_over("host:1", using="default")
    own = "reports" if engine.func is django_tasks.database else "default"
    assert [arrived.queue for arrived in engine.arrived()] == [own]


def test_its_timeout_is_kept_or_refused(scheduler: Scheduler, engine: Engine) -> None:
    if "timeout" not in targets.get(engine.name).honours:
        with pytest.raises(ValueError, match="_timeout must not be given"):
            fire(scheduler, engine, _timeout=45)
        return
    fire(scheduler, engine, _timeout=45)
    hand_over("host:1", using="default")
    assert [arrived.timeout for arrived in engine.arrived()] == [45]


def test_its_priority_is_kept_or_refused(scheduler: Scheduler, engine: Engine) -> None:
    if engine.func is rq_tasks.rq:
        schedule(engine.func, interval=60, _priority=9)
        assert "priority" in problems()
        return
    fire(scheduler, engine, _priority=9)
    hand_over("host:1", using="default")
    assert [arrived.priority for arrived in engine.arrived()] == [9]


def test_when_it_is_to_start_by_is_kept_or_refused(scheduler: Scheduler, engine: Engine) -> None:
    if "start_within" not in targets.get(engine.name).honours:
        with pytest.raises(ValueError, match="_start_within must not be given"):
            fire(scheduler, engine, _start_within="next")
        return
    job = fire(scheduler, engine, _start_within="next")
    assert job.start_by == Schedule.objects.get().next_run_at
    hand_over("host:1", using="default")
    (arrived,) = engine.arrived()
    assert abs(arrived.expires_at - job.start_by) < dt.timedelta(seconds=5)


def test_what_is_too_late_to_start_is_not_sent(scheduler: Scheduler, engine: Engine) -> None:
    if "start_within" not in targets.get(engine.name).honours:
        return
    job = fire(scheduler, engine, _start_within=60)
    Job.objects.update(start_by=database_now("default") - SECOND)
    assert hand_over("host:1", using="default") == 0
    assert engine.name != "celery" or engine.arrived() == []
    Job.objects.all().skip_not_started(10)
    job.refresh_from_db()
    assert (job.status, job.reason.split(" by ")[0]) == ("SKIPPED", "it was to start")


def test_a_key_too_long_for_a_message_becomes_a_stable_id() -> None:
    assert celery_target.task_id("a@2026") == "a@2026"
    long = "ü" * 200 + "@2026-01-01T09:00:00.000000Z"
    assert celery_target.task_id(long) == celery_target.task_id(long) != long


@pytest.mark.django_db(transaction=True)
def test_what_its_class_gives_back_is_of_no_matter(scheduler: Scheduler, redis: RedisServer) -> None:
    job = fire(scheduler, Engine("celery", celery_app.quiet, "", list))
    assert hand_over("host:1", using="default") == 1
    job.refresh_from_db()
    assert (job.status, job.external_id) == ("FORWARDED", job.key)


@pytest.mark.django_db(transaction=True)
def test_a_task_that_is_known_elsewhere_is_sent_by_its_name(scheduler: Scheduler, redis: RedisServer) -> None:
    row = scheduler.schedule("other.project.task", interval=3600, _target="celery", args=[1], _name=NAME)
    make_due(row)
    tick(using="default")
    assert hand_over("host:1", using="default") == 1
    (raw,) = redis.client(0).lrange("celery", 0, -1)
    assert json.loads(raw)["headers"]["task"] == "other.project.task"


@pytest.mark.django_db
def test_the_immediate_and_the_dummy_backend(scheduler: Scheduler) -> None:
    for func in (django_tasks.immediate, django_tasks.dummy):
        fire(scheduler, Engine("django_tasks", func, "", list), _name=func.module_path, args=[1])
        assert hand_over("host:1", using="default") == 1
    assert functions.read() == [["immediate", 1]]
    (result,) = django_tasks.dummy.get_backend().results
    assert Job.objects.get(function="tests.django_tasks.dummy").external_id == result.id
    django_tasks.dummy.get_backend().clear()


@pytest.mark.django_db(transaction=True)
def test_pgwerk_is_told_all_that_a_schedule_says(scheduler: Scheduler, schema_of_pgwerk: None) -> None:
    engine = Engine("pgwerk", functions.remember, "", in_pgwerk)
    fire(scheduler, engine, _max_attempts=3, _backoff=[1, 5], _result_ttl=7, _failure_ttl=8, _meta={"team": "x"})
    hand_over("host:1", using="default")
    columns = "max_attempts, retry_intervals, result_ttl, failure_ttl, meta"
    with psycopg.connect(connection_string()) as session:
        row = session.execute(f"SELECT {columns} FROM pgwerk._pgwerk_jobs").fetchone()
    assert [decoded(value) for value in row] == [3, [1, 5], 7, 8, {"team": "x"}]
