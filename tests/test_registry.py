"""Declaring: what `@schedule` takes, and what it refuses at once, naming the option and the value."""

import datetime as dt
import enum
import functools
import math
import subprocess
import sys
from types import MappingProxyType
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from pgwerk_django import Misfire, Overlap, schedule
from pgwerk_django import registry as declared
from pgwerk_django.execution import Outcome
from pgwerk_django.jobs import enqueue, enqueue_many
from pgwerk_django.registry import OPTIONS, Definition, Options, define, read_options, registry
from tests import functions


def declare(**options: Any) -> Definition:
    return define(functions.remember, options)


def test_it_gives_back_the_function_itself() -> None:
    decorated = schedule(interval=5, args=[1])(functions.add)
    assert decorated is functions.add
    assert schedule(functions.noop, interval=5) is functions.noop


def test_what_is_declared_stands_in_the_registry_by_module_and_qualname() -> None:
    schedule(interval=300, kwargs={"b": 7}, args=(1,), _timeout=60, _queue="etl")(functions.add)
    (definition,) = registry
    assert definition.name == definition.function == "tests.functions.add"
    assert (definition.interval, definition.cron, definition.args, definition.kwargs) == (300, "", [1], {"b": 7})
    assert (definition.timeout, definition.queue) == (60, "etl")


def test_the_manuals_defaults() -> None:
    definition = declare(interval=5)
    assert (definition.queue, definition.args, definition.kwargs, definition.meta) == ("default", [], {}, {})
    assert (definition.timeout, definition.result_ttl, definition.failure_ttl) == (None, None, None)
    assert (definition.max_attempts, definition.overlap, definition.misfire) == (1, "BUFFER_ONE", "LATEST")
    assert definition.timezone == "Europe/Paris"  # settings.TIME_ZONE


def test_it_may_be_stacked_under_different_names() -> None:
    schedule(interval=5, _name="often")(schedule(cron="0 9 * * *", _name="daily")(functions.noop))
    assert [definition.name for definition in registry] == ["daily", "often"]


def test_the_same_declaration_twice_is_a_reload_and_another_is_an_error() -> None:
    for _ in range(2):
        schedule(interval=5)(functions.noop)
    assert len(registry) == 1
    with pytest.raises(ValueError, match=r"'tests\.functions\.noop' is declared twice, with different interval"):
        schedule(interval=6)(functions.noop)


def test_async_functions_and_policies() -> None:
    schedule(interval=5, args=[1], _misfire=Misfire.ALL)(functions.async_add)
    assert registry.get("tests.functions.async_add").overlap == Overlap.ALLOW  # type: ignore[union-attr]
    assert declare(interval=5, _misfire="ALL", _overlap="SKIP").overlap == "SKIP"


def test_durations_take_timedelta() -> None:
    definition = declare(
        interval=dt.timedelta(minutes=5), _timeout=dt.timedelta(minutes=1), _result_ttl=dt.timedelta(1)
    )
    assert (definition.interval, definition.timeout, definition.result_ttl) == (300, 60, 86400)
    assert declare(interval=5, _backoff=(1, dt.timedelta(minutes=2))).backoff == [1, 120]


def test_a_naive_instant_is_utc() -> None:
    assert declare(interval=5, _starts_at=dt.datetime(2026, 1, 1)).starts_at == dt.datetime(2026, 1, 1, tzinfo=dt.UTC)  # noqa: DTZ001


class Thing:
    def method(self) -> None: ...

    @staticmethod
    def static() -> None: ...


def local() -> Any:
    def inner() -> None: ...

    return inner


@pytest.mark.parametrize(
    ("func", "what"),
    [
        (lambda: None, "a lambda"),
        (local(), "local function"),
        (Thing().method, "method"),
        (Thing.method, "method"),
        (Thing.static, "method"),
        (functools.partial(functions.add, 1), "partial"),
        (Thing, "func must be a function"),
        (42, "42"),
        (None, "None"),
    ],
)
def test_what_a_worker_could_not_import_is_refused(func: Any, what: str) -> None:
    with pytest.raises(TypeError, match=what):
        define(func, {"interval": 5})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "exactly one of cron and interval must be given, got neither"),
        ({"cron": "0 9 * * *", "interval": 5}, ValueError, "got both: cron='0 9 [*] [*] [*]', interval=5"),
        ({"cron": "every day"}, ValueError, "every day"),
        ({"cron": "0 0 30 2 *"}, ValueError, "month .* got '30'"),
        ({"cron": "* * * * * *"}, ValueError, "five"),
        ({"interval": 0}, ValueError, "interval .* got 0"),
        ({"interval": -5}, ValueError, "interval .* got -5"),
        ({"interval": 0.5}, ValueError, "interval .* got 0.5"),
        ({"interval": "5"}, TypeError, "interval .* got '5'"),
        ({"interval": True}, TypeError, "interval .* got True"),
        ({"interval": math.nan}, ValueError, "interval .* got nan"),
        ({"interval": 10**9}, ValueError, "interval .* got 1000000000"),
        ({"interval": 5, "_timezone": "Mars/Base"}, ValueError, "Mars/Base"),
        ({"interval": 5, "_name": ""}, ValueError, "_name .* got ''"),
        ({"interval": 5, "_name": "x" * 201}, ValueError, "_name must have 1 to 200 characters"),
        ({"interval": 5, "_name": "a\nb"}, ValueError, "_name .*control"),
        ({"interval": 5, "_name": 5}, TypeError, "_name must be a string, got 5"),
        ({"interval": 5, "_queue": "x" * 101}, ValueError, "_queue must have 1 to 100"),
        ({"interval": 5, "_timeout": 0}, ValueError, "_timeout .* got 0"),
        ({"interval": 5, "_timeout": 1.5}, ValueError, "_timeout .* got 1.5"),
        ({"interval": 5, "_result_ttl": -1}, ValueError, "_result_ttl .* got -1"),
        ({"interval": 5, "_max_attempts": 0}, ValueError, "_max_attempts .* got 0"),
        ({"interval": 5, "_max_runs": 0}, ValueError, "_max_runs .* got 0"),
        ({"interval": 5, "_priority": "high"}, TypeError, "_priority .* got 'high'"),
        ({"interval": 5, "_priority": 2**40}, ValueError, "_priority .* got 1099511627776"),
        ({"interval": 5, "_backoff": []}, ValueError, "_backoff"),
        ({"interval": 5, "_backoff": [1, -1]}, ValueError, "_backoff .* got -1"),
        (
            {"interval": 5, "_overlap": "MAYBE"},
            ValueError,
            "_overlap must be one of BUFFER_ONE, SKIP, ALLOW, got 'MAYBE'",
        ),
        ({"interval": 5, "_misfire": "latest"}, ValueError, "_misfire must be one of LATEST, ALL, SKIP, got 'latest'"),
        ({"interval": 5, "_jitter": -1}, ValueError, "_jitter .* got -1"),
        ({"interval": 5, "_starts_at": "tomorrow"}, TypeError, "_starts_at must be a datetime, got 'tomorrow'"),
        (
            {"interval": 5, "_starts_at": dt.datetime.min.replace(tzinfo=dt.UTC)},
            ValueError,
            "_starts_at must lie in the years 1900 to 8999",
        ),
        ({"interval": 5, "args": "abc"}, TypeError, "args must be a list or tuple, got 'abc'"),
        ({"interval": 5, "args": [object()]}, TypeError, "args must be JSON"),
        ({"interval": 5, "args": [{1, 2}]}, TypeError, "args must be JSON"),
        ({"interval": 5, "kwargs": {"a": math.nan}}, ValueError, "kwargs must be JSON"),
        ({"interval": 5, "kwargs": {"a": "nul\0"}}, ValueError, "kwargs must not contain a NUL"),
        ({"interval": 5, "kwargs": {"a": "\ud800"}}, ValueError, "kwargs must not contain half"),
        ({"interval": 5, "kwargs": {1: 2}}, TypeError, "kwargs must be a dict with string keys"),
        ({"interval": 5, "_meta": [1]}, TypeError, "_meta must be a dict"),
        ({"interval": 5, "_description": None, "nope": 1}, TypeError, "'nope' is not an option"),
        ({"interval": 5, "queue": "x"}, TypeError, "'queue' is not an option .did you mean '_queue'"),
        ({"interval": 5, "_description": "nul\0"}, ValueError, "_description"),
        ({"interval": 5, "_description": "half \ud800"}, ValueError, "_description .* surrogate"),
        ({"interval": 5, "_name": "half \ud800"}, ValueError, "_name must have"),
        ({"interval": 5, "_queu": "x"}, TypeError, "'_queu' is not an option .did you mean '_queue'.*got 'x'"),
        ({"interval": 5, "_timezone": "Europe/Pariss"}, ValueError, "_timezone must be .* got 'Europe/Pariss'"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        declare(**options)


def test_an_end_before_the_start_is_refused() -> None:
    day = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    with pytest.raises(ValueError, match="_ends_at must not be before _starts_at"):
        declare(interval=5, _starts_at=day, _ends_at=day - dt.timedelta(1))


@pytest.mark.parametrize(
    "options", [{}, {"args": [1, 2, 3]}, {"args": [1], "kwargs": {"c": 1}}, {"args": [1], "kwargs": {"a": 1}}]
)
def test_arguments_must_fit_the_signature(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"must fit tests\.functions\.add"):
        define(functions.add, {"interval": 5, **options})


@pytest.mark.parametrize("text", ["\\u0000", "é\U0001f600", "\\ud800", "a\\\\u0000", "\t\n"])
def test_text_that_only_looks_unstorable_is_kept(text: str) -> None:
    assert declare(interval=5, args=[text]).args == [text]


def test_tuples_become_what_json_gives_back() -> None:
    assert declare(interval=5, args=((1, 2),), kwargs={"k": (3,)}).args == [[1, 2]]


def test_a_zone_may_be_given_as_an_object() -> None:
    assert declare(interval=5, _timezone=ZoneInfo("Asia/Tokyo")).timezone == "Asia/Tokyo"


def test_declaring_one_function_twice_says_what_to_do() -> None:
    schedule(functions.noop, interval=5)
    with pytest.raises(ValueError, match="give one another _name"):
        schedule(functions.noop, interval=6)


def test_the_types_name_every_option() -> None:
    assert set(Options.__annotations__) == OPTIONS


class Task:
    """The shape of a Django Task: not callable itself, with the function inside."""

    module_path = "tests.functions.add"
    func = staticmethod(functions.add)


def test_a_django_task_goes_by_its_module_path() -> None:
    task = Task()
    assert schedule(task, interval=5, args=[1]) is task
    assert registry.get("tests.functions.add") is not None
    with pytest.raises(TypeError, match="must fit"):
        define(task, {"interval": 5})


@pytest.mark.parametrize(
    "path", ["", "noop", "tests..noop", "tests.functions.noop()", "os.system; x", "a." * 300 + "b"]
)
def test_a_path_must_be_dotted(path: str) -> None:
    with pytest.raises(ValueError, match="dotted path"):
        define(path, {"interval": 5})


def test_options_may_be_read_with_and_without_the_underscore() -> None:
    assert read_options({"_queue": "a", "interval": 5}) == {"queue": "a", "interval": 5}
    assert read_options({"queue": "a"}) == {"queue": "a"}
    with pytest.raises(TypeError, match="'colour' is not an option"):
        read_options({"colour": "red"})


@pytest.mark.process
def test_importing_the_front_door_loads_no_model_and_needs_no_settings() -> None:
    code = (
        "import sys, pgwerk_django; from pgwerk_django import schedule, Misfire, Overlap\n"
        "assert 'pgwerk_django.models' not in sys.modules\n"
        "from django.conf import settings; assert not settings.configured"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


KEYS: dict[str, Any] = {
    "int": {1: "a"},
    "two that become one": {1: "a", "1": "b"},
    "True": {True: 1},
    "None": {None: 1},
    "float": {2.5: 1},
    "date": {dt.date(2026, 2, 28): 1},
    "tuple": {(1, 2): 1},
    "bytes": {b"a": 1},
    "in a list": [{"a": [{3: 1}]}],
    "in a tuple": ({"a": ({3: 1},)},),
    "deep": {"a": {"b": {"c": {4: {}}}}},
}


@pytest.mark.parametrize("value", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize(
    ("option", "hand_in"),
    [
        ("args", lambda value: declared.json_args([value], "args")),
        ("kwargs", lambda value: declared.json_dict({"a": value}, "kwargs")),
        ("_meta", lambda value: read_options({"_meta": {"a": value}})),
        ("args", lambda value: declared.json_value([value], "args", default=declared.plain)),  # of a Django Task
        ("args", lambda value: define(functions.remember, {"interval": 60, "args": [value]})),
        ("args", lambda value: enqueue(functions.remember, value)),
        ("_meta", lambda value: enqueue(functions.remember, _meta={"a": value})),
        ("args", lambda value: enqueue_many(functions.remember, [[value]])),
    ],
)
def test_keys_that_are_no_text_are_refused_at_any_depth(option: str, hand_in: Any, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{option} must (have text as keys|be JSON)"):
        hand_in(value)


def test_a_refused_key_is_named() -> None:
    with pytest.raises(TypeError, match=r"^kwargs must have text as keys .*, got the key 7 in \{7: 'a'\}$"):
        declared.json_dict({"a": [{7: "a"}]}, "kwargs")


def test_other_mappings_and_keys_that_are_text_pass() -> None:
    class Colour(enum.StrEnum):
        RED = "red"

    assert declared.json_args([{Colour.RED: (1,)}, {}], "args") == [{"red": [1]}, {}]
    assert declared.json_value(MappingProxyType({"a": range(2)}), "args", default=declared.plain) == {"a": [0, 1]}
    with pytest.raises(TypeError, match="the key 1"):
        declared.json_value(MappingProxyType({"a": MappingProxyType({1: 2})}), "args", default=declared.plain)


def test_a_result_with_such_keys_is_refused_with_their_name() -> None:
    with pytest.raises(TypeError, match=r"^the job's result must have text as keys .*, got the key 1") as refused:
        Outcome.success({"a": {1: 2}})
    outcome = Outcome.refused(refused.value)
    assert (outcome.status, outcome.exception) == ("FAILED", "builtins.TypeError")
