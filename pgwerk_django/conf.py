"""`PGWERK = {...}` in the Django settings: the defaults, read lazily, and what is wrong with them."""

import datetime as dt
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

from pgwerk_django.exceptions import shown

DAY = 24 * 60 * 60


@dataclass(frozen=True, slots=True)
class Conf:
    """The settings, with their defaults. Durations are seconds; a `timedelta` is accepted for each."""

    DATABASE: str = "default"
    AUTODISCOVER: tuple[str, ...] = ("tasks", "schedules")
    POLL_INTERVAL: float = 1
    BATCH_SIZE: int = 1000
    MAX_CATCH_UP: int = 100
    LEASE: float = 60
    ORPHAN_GRACE: float = 300
    RESULT_TTL: int = 7 * DAY
    FAILURE_TTL: int = 30 * DAY
    ALLOWED_FUNCTIONS: tuple[str, ...] = ()
    MASK: tuple[str, ...] = ("API", "AUTH", "TOKEN", "KEY", "SECRET", "PASS", "SIGNATURE", "HTTP_COOKIE")
    CELERY_RESULTS: bool = False
    MAIL_ADMINS: bool = False
    WERK: str | None = None
    LISTEN: str | None = None
    NOTIFY: bool = True
    TELEMETRY: bool = False
    METRICS_SCHEDULES: int = 0
    AROUND_JOB: str | None = None


class _Bad(Exception):
    """What a setting should have been."""


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise _Bad("a non-empty string")
    return value


def _optional_text(value: object) -> str | None:
    return None if value is None else _text(value)


def _texts(value: object) -> tuple[str, ...]:
    # A bare string is a sequence of strings too, and never what was meant.
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise _Bad("a list or tuple of strings")
    return tuple(value)


def _modules(value: object) -> tuple[str, ...]:
    names = _texts(value)
    for name in names:
        if not all(part.isidentifier() for part in name.removeprefix("-").split(".")):
            raise _Bad(
                'a list or tuple of modules of each app ("tasks"), of dotted paths of modules ("shop.tasks"), or of apps and'
                ' modules to leave out ("-shop", "-shop.tasks")'
            )
    return names


def _patterns(value: object) -> tuple[str, ...]:
    patterns = _texts(value)
    try:
        for pattern in patterns:
            re.compile(pattern)
    except re.error:
        raise _Bad("a list or tuple of regular expressions") from None
    return patterns


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise _Bad("True or False")
    return value


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _Bad("a whole number, 1 or more")
    return value


def _number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _Bad("a whole number, 0 or more")
    return value


def _duration(value: object) -> float:
    if isinstance(value, dt.timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise _Bad("seconds (more than 0) or a timedelta")
    return value


def _grace(value: object) -> float:
    # Live schedulers speak three times in it; what is shorter than a busy host's hiccup would pause what is alive.
    try:
        grace = _duration(value)
    except _Bad:
        grace = 0
    if grace < 10:
        raise _Bad("seconds (10 or more) or a timedelta")
    return grace


def _ttl(value: object) -> int:
    if isinstance(value, dt.timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != value // 1:
        raise _Bad("whole seconds (0 or more) or a timedelta")
    return int(value)


_READERS: Mapping[str, Callable[[object], Any]] = {
    "DATABASE": _text,
    "AUTODISCOVER": _modules,
    "POLL_INTERVAL": _duration,
    "BATCH_SIZE": _count,
    "MAX_CATCH_UP": _count,
    "LEASE": _duration,
    "ORPHAN_GRACE": _grace,
    "RESULT_TTL": _ttl,
    "FAILURE_TTL": _ttl,
    "ALLOWED_FUNCTIONS": _texts,
    "MASK": _patterns,
    "CELERY_RESULTS": _flag,
    "MAIL_ADMINS": _flag,
    "WERK": _optional_text,
    "LISTEN": _optional_text,
    "NOTIFY": _flag,
    "TELEMETRY": _flag,
    "METRICS_SCHEDULES": _number,
    "AROUND_JOB": _optional_text,
}


def _given() -> Mapping[str, object]:
    given = getattr(settings, "PGWERK", {})
    if not isinstance(given, Mapping):
        raise ImproperlyConfigured(f"PGWERK must be a dictionary, got {shown(given)}")
    return given


def _read(name: str, value: object) -> Any:
    try:
        return _READERS[name](value)
    except _Bad as bad:
        raise ImproperlyConfigured(f"PGWERK[{name!r}] must be {bad}, got {shown(value)}") from None


@functools.cache
def current() -> Conf:
    """The settings in force. Raises `ImproperlyConfigured`, naming the setting, for a value that cannot be used."""
    given = _given()
    return Conf(**{name: _read(name, given[name]) for name in _READERS if name in given})


def problems() -> list[str]:
    """One sentence for each setting that is unknown or cannot be used: what `manage.py check` prints."""
    try:
        given = _given()
    except ImproperlyConfigured as error:
        return [str(error)]
    known = [field.name for field in fields(Conf)]
    unknown = [shown(name) for name in given if name not in known]
    found = [f"PGWERK[{name}] is unknown: expected one of {', '.join(known)}" for name in unknown]
    for name in (name for name in known if name in given):
        try:
            _read(name, given[name])
        except ImproperlyConfigured as error:
            found.append(str(error))
    return found


def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting == "PGWERK":
        current.cache_clear()


setting_changed.connect(_forget, dispatch_uid="pgwerk_django.conf")
