"""Whatever a program hands to the API: it is stored and comes back, or refused with one short line that names the option."""

import contextlib
import datetime as dt
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgwerk_django import conf
from pgwerk_django.framework import framework
from pgwerk_django.jobs import CurrentJob, enqueue, enqueue_many, pause_queue, resume_queue
from pgwerk_django.models import Job, Queue, Schedule
from pgwerk_django.registry import OPTIONS, define, json_value
from pgwerk_django.scheduler import Scheduler
from pgwerk_django.tick import tick
from tests import django_tasks, functions
from tests.hostile import LONGEST_MESSAGE, everything

REFUSALS = (TypeError, ValueError)


def complaint(call: Callable[[], object], *names: str, refusals: Any = REFUSALS) -> str | None:
    """What is wrong with how a call ends: it must succeed, or be refused in one short line that has one of the names."""
    try:
        call()
    except refusals as error:
        message = str(error)
        if len(message) > LONGEST_MESSAGE:
            return f"{len(message)} characters: {message[:100]}"
        if not message.isprintable():
            return f"not one line: {message!r}"
        if not any(name in message for name in names):
            return f"names no option: {message}"
    except Exception as error:  # noqa: BLE001  # that is the point
        return f"{type(error).__name__}: {error!s:.300}"
    return None


@contextlib.contextmanager
def undone() -> Iterator[None]:
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


def stored(call: Callable[[Any], object], value: Any) -> Callable[[], None]:
    """The call, in a transaction that is taken back."""

    def call_it() -> None:
        with undone():
            call(value)

    return call_it


def complaints(call: Callable[[Any], object], *names: str, refusals: Any = REFUSALS) -> list[str]:
    found = {name: complaint(stored(call, make()), *names, refusals=refusals) for name, make in everything().items()}
    return [f"{name}: {why}" for name, why in found.items() if why]


def rule(option: str) -> dict[str, Any]:
    return {} if option in ("cron", "interval") else {"interval": 60}


@pytest.mark.django_db
@pytest.mark.parametrize("option", sorted(OPTIONS))
def test_each_option_of_a_declaration(option: str) -> None:
    """What is let in, the table takes, and a tick makes a job of it."""

    def schedule(value: Any) -> None:
        define(functions.remember, {**rule(option), option: value})  # first: to be refused, most need no database
        row = Scheduler().schedule(functions.remember, **rule(option), **{option: value})
        Scheduler().trigger(row.name)
        assert tick(using="default") == 1
        assert Schedule.objects.get().error == ""

    assert complaints(schedule, option) == []


@pytest.mark.django_db
@pytest.mark.parametrize("option", sorted(OPTIONS - {"_name"}))
def test_each_option_of_an_update(option: str) -> None:
    Scheduler().interval(60, functions.remember, _name="u")
    assert complaints(lambda value: Scheduler().update("u", **{option: value}), option) == []


JOB_OPTIONS = (
    "_queue", "_priority", "_delay", "_at", "_timeout", "_max_attempts", "_backoff", "_meta", "_result_ttl", "_failure_ttl",
)  # fmt: skip


@pytest.mark.django_db
@pytest.mark.parametrize("option", [*JOB_OPTIONS, "_key"])
def test_each_option_of_enqueue(option: str) -> None:
    assert complaints(lambda value: enqueue(functions.remember, **{option: value}), option) == []


@pytest.mark.django_db
@pytest.mark.parametrize("option", JOB_OPTIONS)
def test_each_option_of_enqueue_many(option: str) -> None:
    assert complaints(lambda value: enqueue_many(functions.remember, [[1]], **{option: value}), option) == []


def enqueued_as_it_was(value: Any) -> None:
    enqueue(functions.remember, value, value=value)
    job = Job.objects.get()
    assert same(job.args, [json_value(value, "v")])
    assert same(job.kwargs, {"value": json_value(value, "v")})


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (enqueued_as_it_was, "args"),
        (lambda value: enqueue_many(functions.remember, [[value]]), "args"),
        (lambda value: enqueue_many(functions.remember, [{"value": value}]), "kwargs"),
        (lambda value: enqueue_many(functions.remember, [value]), "calls"),
        (lambda value: enqueue_many(functions.remember, value), "calls"),
        (lambda value: enqueue_many(functions.remember, [[1]], _keys=[value]), "_keys"),
        (lambda value: enqueue_many(functions.remember, [[1]], _keys=value), "_keys"),
        (lambda value: enqueue_many(functions.remember, [[1]], _key=value), "_keys"),
        (lambda value: enqueue(value), "func"),
        (lambda value: Scheduler().interval(60, value), "func"),
        (lambda value: Scheduler().cron(value, functions.noop), "cron"),
        (lambda value: Scheduler().interval(value, functions.noop), "interval"),
        (lambda value: Scheduler().schedule_at(functions.noop, value), "when"),
        (lambda value: Scheduler().schedule_in(value, functions.noop), "seconds"),
        (lambda value: Scheduler(on_unregistered=value), "on_unregistered"),
        (lambda value: pause_queue(value), "name"),
        (lambda value: pause_queue("q", reason=value), "reason"),
        (lambda value: pause_queue("q", by=value), "by"),
        (lambda value: resume_queue(value), "name"),
        (lambda value: CurrentJob(Job(), report=json.dumps).progress(value), "done"),
        (lambda value: CurrentJob(Job(), report=json.dumps).progress(1, value), "total"),
        (lambda value: CurrentJob(Job(), report=json.dumps).progress(1, note=value), "note"),
    ],
)  # fmt: skip
def test_each_argument_of_the_api(call: Callable[[Any], object], name: str) -> None:
    # Where a value is taken apart (a list of calls), its parts are named.
    assert complaints(call, name, "args", "kwargs", "calls", "option") == []


@pytest.mark.django_db
@pytest.mark.parametrize(
    "call",
    [
        lambda value: Scheduler().pause(value),
        lambda value: Scheduler().resume(value),
        lambda value: Scheduler().trigger(value),
        lambda value: Scheduler().update(value, queue="q"),
        lambda value: Scheduler().delete(value),
        lambda value: Scheduler().get(value),
        lambda value: Scheduler().unregister(value),
    ],
)  # fmt: skip
def test_names_that_there_are_not(call: Callable[[Any], object]) -> None:
    assert complaints(call, "name", refusals=(*REFUSALS, Schedule.DoesNotExist)) == []


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda value: Scheduler().pause("u", reason=value), "reason"),
        (lambda value: Scheduler().pause("u", by=value), "by"),
        (lambda value: Scheduler().resume("u", by=value), "by"),
        (lambda value: Scheduler().trigger("u", by=value), "by"),
        (lambda value: Job.objects.get().cancel(by=value), "by"),
        (lambda value: Job.objects.get().cancel(reason=value), "reason"),
        (lambda value: Job.objects.get().retry(by=value), "by"),
        (lambda value: Queue.objects.all().pause(by=value), "by"),
        (lambda value: Queue.objects.all().resume(by=value), "by"),
    ],
)  # fmt: skip
def test_who_and_why(call: Callable[[Any], object], name: str) -> None:
    Scheduler().interval(60, functions.remember, _name="u")
    enqueue(functions.noop)
    Queue.objects.create(name="q")
    assert complaints(call, name) == []


@pytest.mark.django_db
def test_arguments_of_a_django_task() -> None:
    def exact(value: Any) -> None:
        result = django_tasks.ours.enqueue(value, value=value)
        assert same(Job.objects.get(pk=result.id).args, result.args)

    assert complaints(exact, "args", "kwargs") == []


@pytest.mark.django_db
def test_ids_of_task_results() -> None:
    missing = framework("exceptions").TaskResultDoesNotExist
    for name, make in everything().items():
        with pytest.raises(missing):
            django_tasks.ours.get_result(make())
        assert name


@pytest.mark.parametrize("name", conf.Conf.__dataclass_fields__)
def test_settings(settings: Any, name: str) -> None:
    """Each is read, or is one sentence of `manage.py check`."""

    def read(value: Any) -> None:
        settings.PGWERK = {name: value}
        problems = conf.problems()
        try:
            conf.current()
        except ImproperlyConfigured as error:
            assert problems == [str(error)]
            raise ValueError(str(error)) from error
        assert problems == []

    found = {key: complaint(lambda make=make: read(make()), name) for key, make in everything().items()}
    assert {key: why for key, why in found.items() if why} == {}


def test_settings_that_there_are_not(settings: Any) -> None:
    for name, make in everything().items():
        value = make()
        settings.PGWERK = value
        found = conf.problems()
        with contextlib.suppress(TypeError, ArithmeticError):  # what has no hash
            settings.PGWERK = {value: 1}
            found += conf.problems()
        for problem in found:
            assert problem.startswith("PGWERK"), name
            assert len(problem) < LONGEST_MESSAGE
            assert problem.isprintable()


# -- JSON, at random ---------------------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=3)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.django_db
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=ANYTHING)
def test_json_comes_back_as_it_was_judged_or_is_refused(value: Any) -> None:
    try:
        read = json_value(value, "args")
    except REFUSALS as error:
        assert str(error).startswith("args must")
        assert len(str(error)) < LONGEST_MESSAGE
        return
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s::jsonb", [json.dumps(read)])
        assert same(json.loads(cursor.fetchone()[0]), read)


def same(one: Any, other: Any) -> bool:
    """PostgreSQL knows no -0.0, and writes 1e16 as an integer."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, int | float) and isinstance(other, float):
        return math.isclose(one, other)
    return bool(one == other)


@given(when=st.datetimes(timezones=st.none() | st.timezones()))
def test_instants_at_random(when: dt.datetime) -> None:
    assert complaint(lambda: define(functions.noop, {"interval": 60, "_starts_at": when}), "_starts_at") is None


@given(
    duration=st.timedeltas() | st.integers() | st.floats(),
    option=st.sampled_from(["interval", "_timeout", "_jitter", "_misfire_grace", "_result_ttl", "_backoff"]),
)
def test_durations_at_random(duration: Any, option: str) -> None:
    assert complaint(lambda: define(functions.noop, {**rule(option), option: duration}), option) is None


@given(name=st.text(max_size=300), queue=st.text(max_size=300))
def test_names_at_random(name: str, queue: str) -> None:
    options = {"interval": 60, "_name": name, "_queue": queue}
    assert complaint(lambda: define(functions.noop, options), "_name", "_queue") is None
