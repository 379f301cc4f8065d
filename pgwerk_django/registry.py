"""What code declares: `@schedule` puts a `Definition` into the one process-wide registry; sync takes it to the table."""

import dataclasses
import datetime as dt
import difflib
import functools
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypedDict, TypeVar, Unpack, overload

from django.conf import settings

from pgwerk_django.cron import zone
from pgwerk_django.exceptions import shown, text_of
from pgwerk_django.policies import Misfire, Overlap, default_overlap
from pgwerk_django.recurrence import EXPRESSIBLE, LONGEST_INTERVAL, Cron, seconds
from pgwerk_django.text import DEEPEST_JSON, LONGEST_NAME, free_text, is_deep, text

Function = TypeVar("Function")

LONGEST_QUEUE = 100
LONGEST_FUNCTION = 500
LARGEST_INTEGER = 2**31 - 1
LARGEST_JSON = 16 * 2**20  # characters; PostgreSQL's own limit is 256 MB, and it takes those of many jobs at once


def path_of(func: object) -> str:
    """The dotted path a function is imported back by: a task's own `module_path`, else module and qualname.

    Raises `TypeError` for what has no such path: a lambda, a local function, a method, a partial.
    """
    path = getattr(func, "module_path", None)
    if isinstance(path, str):
        return path
    func = getattr(func, "_get_current_object", lambda: func)()  # a Celery task may hide behind a proxy
    module, qualname = getattr(func, "__module__", None), getattr(func, "__qualname__", None)
    if qualname is None and callable(getattr(func, "run", None)):  # a Celery task goes by its function's name
        qualname = getattr(func, "__name__", None)
    expected = "func must be a function at the top level of a module, so that a worker can import it"
    if isinstance(func, functools.partial) or not module or not qualname:
        raise TypeError(f"{expected}, got {shown(func)}")
    if qualname == "<lambda>":
        raise TypeError(f"{expected}, got a lambda: {shown(func)}")
    if "<locals>" in qualname:
        raise TypeError(f"{expected}, got the local function {qualname!r} (does a decorator lack functools.wraps?)")
    if "." in qualname or inspect.ismethod(func):
        raise TypeError(f"{expected}, got the method {qualname!r}")
    if inspect.isclass(func) or not (callable(func) or callable(getattr(func, "func", None))):
        raise TypeError(f"{expected}, got {shown(func)}")
    return f"{module}.{qualname}"


def body_of(func: Any) -> Callable[..., Any]:
    """The function that will be called: the one inside a Django or Celery task, else `func` itself."""
    inner = [] if inspect.isroutine(func) else [getattr(func, attribute, None) for attribute in ("func", "run")]
    found: Callable[..., Any] = next((each for each in inner if callable(each)), func)
    return found


def check_arguments(func: Any, args: Sequence[object], kwargs: Mapping[str, object]) -> None:
    """Raise `TypeError` when the arguments do not fit the function's signature."""
    try:
        signature = inspect.signature(body_of(func))
    except (TypeError, ValueError):  # a builtin may have none that can be read
        return
    if getattr(func, "takes_context", False):
        args = [None, *args]  # the check says that the worker will not pass it
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(
            f"args and kwargs must fit {path_of(func)}{signature}, got args={shown(args)}, kwargs={shown(kwargs)}: {text_of(error)}"
        ) from None


# -- options: each reader takes what a person wrote and gives what the column holds --------------------------------


def name(value: object, option: str) -> str:
    return text(value, option, longest=LONGEST_NAME)


def queue(value: object, option: str) -> str:
    return text(value, option, longest=LONGEST_QUEUE)


def _target(value: object, option: str) -> str:
    """None: what stands at the function's path decides."""
    return "" if value is None else text(value, option, longest=50)


UNTIL_NEXT = 0  # `start_within`: until the schedule's next due time


def _start_within(value: object, option: str) -> int | None:
    if value is None or value == "next":
        return None if value is None else UNTIL_NEXT
    return duration(value, option)


# An odd number of backslashes before it: an escape, not a backslash that the text itself holds.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def plain(value: object) -> object:
    """What Django Tasks takes for JSON, too: other kinds of mappings and sequences, and bytes that are text."""
    match value:
        case bytes():
            return value.decode()
        case Mapping():
            return dict(value)
        case Sequence():
            return list(value)
    raise TypeError(f"Unsupported type: {type(value)}")


def json_value(value: object, option: str, *, default: Callable[[object], object] | None = None) -> Any:
    """The value as JSON gives it back: what is compared, stored and handed to the function are then the same.

    What would be too deep for Python, or too large for PostgreSQL, where it is read later on, is refused here.
    """
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, default=default)
        text.encode()  # refuses half of a surrogate pair
    except UnicodeEncodeError:
        raise ValueError(f"{option} must not contain half a surrogate pair, got {shown(value)}") from None
    except (TypeError, ValueError, RecursionError) as error:
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(
            f"{option} must be JSON (text, numbers, booleans, None, lists, dicts), got {shown(value)}: {text_of(error)}"
        ) from None
    if len(text) > LARGEST_JSON:
        raise ValueError(f"{option} must be at most {LARGEST_JSON} characters of JSON, got {len(text)}: {shown(value)}")
    if _NUL.search(text):
        raise ValueError(f"{option} must not contain a NUL character, got {shown(value)}")
    read = json.loads(text)
    if is_deep(read):
        raise ValueError(f"{option} must be nested at most {DEEPEST_JSON} deep, got {shown(value)}")
    _check_keys(value, option)
    return read


def _check_keys(value: object, option: str) -> None:
    """Refuse keys that JSON would turn into text: the function would get others, and of two that become one a value is lost.

    `value` is known to be JSON: it has an end, and is not deep.
    """
    level = [value]
    while level:
        inner: list[object] = []
        for each in level:
            if isinstance(each, Mapping):
                for key in each:
                    if not isinstance(key, str):
                        raise TypeError(
                            f"{option} must have text as keys of its dictionaries, got the key {shown(key)} in {shown(each)}"
                        )
                inner += each.values()
            elif isinstance(each, Sequence) and not isinstance(each, str | bytes):
                inner += each
        level = [each for each in inner if isinstance(each, Mapping | Sequence) and not isinstance(each, str | bytes)]


def json_args(value: object, option: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise TypeError(f"{option} must be a list or tuple, got {shown(value)}")
    read: list[Any] = json_value(list(value), option)
    return read


def json_dict(value: object, option: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"{option} must be a dict with string keys, got {shown(value)}")
    read: dict[str, Any] = json_value(dict(value), option)
    return read


def _cron(value: object, option: str) -> str:
    if value is None:
        return ""
    return Cron(value).expression  # type: ignore[arg-type]  # the constructor judges


def _interval(value: object, option: str) -> int | None:
    return None if value is None else seconds(value, option, minimum=1, maximum=LONGEST_INTERVAL)


def _timezone(value: object, option: str) -> str:
    name = settings.TIME_ZONE if value is None else getattr(value, "key", value)  # a ZoneInfo goes by its key
    try:
        return zone(name).key
    except ValueError:
        raise ValueError(
            f"{option} must be the name of a time zone, such as 'UTC' or 'Europe/Paris', got {shown(name)}"
        ) from None


def instant(value: object, option: str) -> dt.datetime | None:
    if value is None:
        return None
    if not isinstance(value, dt.datetime):
        raise TypeError(f"{option} must be a datetime, got {shown(value)}")
    try:
        aware = value if value.utcoffset() is not None else value.replace(tzinfo=dt.UTC)
    except Exception as error:  # whatever somebody's class of time zones raises
        raise ValueError(f"{option} must have a time zone that knows its offset, got {shown(value)}") from error
    earliest, latest = EXPRESSIBLE
    if not earliest <= aware <= latest:
        raise ValueError(f"{option} must lie in the years {earliest.year} to {latest.year - 1}, got {shown(value)}")
    return aware


def whole(value: object, option: str, *, minimum: int, maximum: int = LARGEST_INTEGER) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{option} must be a whole number, got {shown(value)}")
    if not minimum <= value <= maximum:
        raise ValueError(f"{option} must be a whole number from {minimum} to {maximum}, got {shown(value)}")
    return value


def _max_runs(value: object, option: str) -> int | None:
    return None if value is None else whole(value, option, minimum=1)


def priority(value: object, option: str) -> int:
    return whole(value, option, minimum=-LARGEST_INTEGER)


def attempts(value: object, option: str) -> int:
    return whole(value, option, minimum=1)


def duration(value: object, option: str) -> int:
    return seconds(value, option, maximum=LARGEST_INTEGER)


def ttl(value: object, option: str) -> int | None:
    return None if value is None else duration(value, option)


def timeout(value: object, option: str) -> int | None:
    return None if value is None else seconds(value, option, minimum=1, maximum=LARGEST_INTEGER)


def backoff(value: object, option: str) -> int | list[int] | None:
    """Seconds before the next attempt: one number for each, or a list by attempt (its last serves the rest)."""
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        return duration(value, option)
    if not value:
        raise ValueError(f"{option} must be seconds or a non-empty list of seconds, got {shown(value)}")
    return [duration(item, option) for item in value]


def _choice(value: object, option: str, choices: type[Misfire] | type[Overlap]) -> str:
    if value not in choices.values:
        raise ValueError(f"{option} must be one of {', '.join(choices.values)}, got {shown(value)}")
    return choices(value).value


def _misfire(value: object, option: str) -> str:
    return _choice(value, option, Misfire)


def _overlap(value: object, option: str) -> str:
    return _choice(value, option, Overlap)


class Options(TypedDict, total=False):
    """What a person may write, for whoever checks types: durations are seconds or `timedelta`."""

    cron: str | None
    interval: int | dt.timedelta | None
    args: Sequence[Any] | None
    kwargs: Mapping[str, Any] | None
    _name: str | None
    _queue: str | None
    _timeout: int | dt.timedelta | None
    _result_ttl: int | dt.timedelta | None
    _failure_ttl: int | dt.timedelta | None
    _start_within: int | dt.timedelta | str | None
    _meta: Mapping[str, Any] | None
    _timezone: str | dt.tzinfo | None
    _priority: int | None
    _max_attempts: int | None
    _backoff: int | dt.timedelta | Sequence[int | dt.timedelta] | None
    _overlap: str | None
    _misfire: str | None
    _misfire_grace: int | dt.timedelta | None
    _starts_at: dt.datetime | None
    _ends_at: dt.datetime | None
    _max_runs: int | None
    _jitter: int | dt.timedelta | None
    _description: str | None
    _target: str | None


# Who reads each of them into the column that it fills.
_OPTIONS: dict[str, Callable[[object, str], Any]] = {
    "cron": _cron,
    "interval": _interval,
    "args": json_args,
    "kwargs": json_dict,
    "_name": name,
    "_queue": queue,
    "_timeout": timeout,
    "_result_ttl": ttl,
    "_failure_ttl": ttl,
    "_start_within": _start_within,
    "_meta": json_dict,
    "_timezone": _timezone,
    "_priority": priority,
    "_max_attempts": attempts,
    "_backoff": backoff,
    "_overlap": _overlap,
    "_misfire": _misfire,
    "_misfire_grace": duration,
    "_starts_at": instant,
    "_ends_at": instant,
    "_max_runs": _max_runs,
    "_jitter": duration,
    "_description": free_text,
    "_target": _target,
}
OPTIONS = frozenset(_OPTIONS)


def unknown_option(given: str, value: object) -> TypeError:
    """The error for a name that is none, with the one that was probably meant."""
    near = [f"_{given}"] if f"_{given}" in OPTIONS else difflib.get_close_matches(given, _OPTIONS, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(_OPTIONS)}"
    return TypeError(f"{shown(given)} is not an option ({hint}), got {shown(value)}")


def read_options(options: Mapping[str, object]) -> dict[str, Any]:
    """Columns from options (with or without the leading underscore).

    Raises `TypeError` for an unknown option, `TypeError` or `ValueError`, naming the option, for a value that cannot be.
    """
    columns = {}
    for given, value in options.items():
        option = given if given in _OPTIONS else f"_{given}"
        if option not in _OPTIONS:
            raise unknown_option(given, value)
        columns[option.removeprefix("_")] = _OPTIONS[option](value, given)
    return columns


def check_recurrence(columns: Mapping[str, Any], *, once: bool = False) -> None:
    """Raise `ValueError` unless there is exactly one of cron and interval; `once` allows for none."""
    cron, interval = columns.get("cron", ""), columns.get("interval")
    if bool(cron) and interval is not None:
        raise ValueError(
            f"exactly one of cron and interval must be given, got both: cron={cron!r}, interval={interval!r}"
        )
    if not once and not cron and interval is None:
        raise ValueError("exactly one of cron and interval must be given, got neither")
    starts_at, ends_at = columns.get("starts_at"), columns.get("ends_at")
    if starts_at and ends_at and ends_at < starts_at:
        raise ValueError(f"_ends_at must not be before _starts_at ({starts_at}), got {ends_at}")


@dataclasses.dataclass(frozen=True, slots=True)
class Definition:
    """What code says of one schedule: the table's definition columns, by their names."""

    name: str
    function: str
    cron: str = ""
    interval: int | None = None
    args: list[Any] = dataclasses.field(default_factory=list)
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    queue: str = "default"
    target: str = ""  # "": what stands at the function's path decides
    timezone: str = "UTC"
    starts_at: dt.datetime | None = None
    ends_at: dt.datetime | None = None
    max_runs: int | None = None
    jitter: int = 0
    priority: int = 0
    overlap: str = Overlap.BUFFER_ONE.value
    misfire: str = Misfire.LATEST.value
    misfire_grace: int = 60
    max_attempts: int = 1
    backoff: int | list[int] | None = None
    timeout: int | None = None
    result_ttl: int | None = None
    failure_ttl: int | None = None
    start_within: int | None = None
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    description: str = ""
    func: Any = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def columns(self) -> dict[str, Any]:
        """What the table holds. Where nothing has decided on a target yet (`targets.resolved` does), it is our worker."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "func"}
        return {**values, "target": self.target or "worker"}


def define(func: Any, options: Mapping[str, object], *, once: bool = False) -> Definition:
    """Judge a declaration as a whole. Raises `ValueError` or `TypeError` naming the option and the value."""
    for option in options:
        if option not in _OPTIONS:
            raise unknown_option(option, options[option])
    function = import_path(func)
    given = {option: value for option, value in options.items() if value is not None}
    columns = read_options({"_name": function, "_timezone": None, **given})
    check_recurrence(columns, once=once)
    columns.setdefault("overlap", default_overlap(columns.get("misfire", "")).value)
    if not isinstance(func, str):
        check_arguments(func, columns.get("args", []), columns.get("kwargs", {}))
    return Definition(function=function, func=None if isinstance(func, str) else func, **columns)


def import_path(func: Any) -> str:
    if not isinstance(func, str):
        return path_of(func)
    if not all(part.isidentifier() for part in func.split(".")) or "." not in func or len(func) > LONGEST_FUNCTION:
        raise ValueError(
            f"func must be a callable or its dotted path (at most {LONGEST_FUNCTION} characters), got {shown(func)}"
        )
    return func


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of `wanted` whose values differ from those of `found`."""
    return {column: value for column, value in wanted.items() if not _is_same(value, found[column])}


def _is_same(one: Any, other: Any) -> bool:
    """Equal, and not `1` where the other is `True`: JSON tells them apart, and so does the function that is called."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, float) != isinstance(other, float):
        return _is_same_number(one, other)
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _is_same_number(one: Any, other: Any) -> bool:
    """A large float, such as 1e23, comes back from PostgreSQL's JSON as the integer of the same digits."""
    try:
        return not isinstance(one, bool) and not isinstance(other, bool) and float(one) == float(other)
    except (TypeError, ValueError, OverflowError):
        return False


class Registry:
    """The schedules this process declares, by name."""

    def __init__(self) -> None:
        self._definitions: dict[str, Definition] = {}

    def __iter__(self) -> Iterator[Definition]:
        """By name: whoever locks rows in this order cannot deadlock with another who does."""
        return iter(sorted(self._definitions.values(), key=lambda definition: definition.name))

    def __len__(self) -> int:
        return len(self._definitions)

    def __contains__(self, name: object) -> bool:
        return name in self._definitions

    def get(self, name: str) -> Definition | None:
        return self._definitions.get(name)

    def add(self, definition: Definition) -> None:
        """Raises `ValueError` when another definition has the name; the same one again (a reload) is no news."""
        known = self._definitions.get(definition.name)
        differing = differences(definition.columns, known.columns) if known else ()
        if known and differing:
            functions = {known.function, definition.function}
            advice = (
                f" ({known.function} and {definition.function})" if len(functions) > 1 else ": give one another _name"
            )
            raise ValueError(
                f"_name must be unique: {definition.name!r} is declared twice, with different {', '.join(differing)}{advice}"
            )
        self._definitions[definition.name] = definition

    def remove(self, name: str) -> bool:
        return self._definitions.pop(name, None) is not None

    def clear(self) -> None:
        self._definitions.clear()


registry = Registry()


@overload
def schedule(func: Function, /, **options: Unpack[Options]) -> Function: ...
@overload
def schedule(func: None = None, /, **options: Unpack[Options]) -> Callable[[Function], Function]: ...


def schedule(func: Any = None, /, **options: Any) -> Any:
    """Declare that `func` runs on `cron=` or every `interval=` seconds; a decorator, or a direct call.

    It gives back the function itself. Raises `ValueError` or `TypeError`, naming the option and the value, at once.
    """
    if func is None:
        return functools.partial(schedule, **options)
    registry.add(define(func, options))
    return func
