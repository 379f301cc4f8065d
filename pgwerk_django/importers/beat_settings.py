"""`CELERY_BEAT_SCHEDULE`, and what beat would add to it: periodic tasks of the project's Celery app, and its own."""

import datetime as dt
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from django.conf import settings

from pgwerk_django.cron import zone
from pgwerk_django.exceptions import TargetUnavailable, named, shown
from pgwerk_django.importers.beat import crontab_text, definition_of, refuse_the_sun, zone_name
from pgwerk_django.importers.entries import Entry, Found, Refusal, attempt, planned
from pgwerk_django.recurrence import seconds
from pgwerk_django.targets.celery import crontab, current_app

_KEYS = {"task", "schedule", "args", "kwargs", "options", "relative"}
_OPTIONS = {"queue", "priority", "expires", "expire_seconds", "time_limit"}


# Those whose entries are in the settings, in the Celery app or in the tables.
_SCHEDULERS = ("celery.beat.PersistentScheduler", "celery.beat.Scheduler")
_TABLES = ("django", "django_celery_beat.schedulers.DatabaseScheduler")
_CANVAS = ("celery.chain", "celery.group", "celery.chord")
CLEANUP = "celery.backend_cleanup"


def has_app() -> bool:
    """Whether a Celery app of the project is loaded; without one Celery makes one of its own."""
    try:
        return bool(current_app().main != "default")
    except TargetUnavailable:
        return False


def entries(*, tables: bool) -> tuple[dict[str, Any], list[Refusal]]:
    """Return the entries that beat would have without a table, by name, and a refusal for each thing that hides others.

    `tables`: those of django-celery-beat exist.
    """
    found = dict(getattr(settings, "CELERY_BEAT_SCHEDULE", None) or {})
    try:
        app = current_app()
    except TargetUnavailable:
        return found, []
    refused = []
    try:
        # As beat does: handlers of `on_after_finalize` add periodic tasks, and the modules of tasks connect them.
        app.loader.import_default_modules()
        app.finalize()
    except Exception as error:  # noqa: BLE001  # whatever the project's modules raise
        why = f"its modules could not all be imported, so that periodic tasks may be missing: {named(error)}"
        refused.append(Refusal("the Celery app", " ".join(why.split())))
    found.update(app.conf.beat_schedule or {})
    if not tables:
        found = {**_own(app), **found}
    kind = str(getattr(app.conf, "beat_scheduler", None) or _SCHEDULERS[0]).replace(":", ".")
    if kind in _TABLES and not tables:
        why = f"{kind} has its entries in the tables of django-celery-beat, and none of our databases has them"
        refused.append(Refusal("beat_scheduler", why))
    elif kind not in (*_SCHEDULERS, *_TABLES):
        why = f"{shown(kind, 200)} may have entries that only itself can read: declare them in code"
        refused.append(Refusal("beat_scheduler", why))
    return found, refused


def _own(app: Any) -> dict[str, Any]:
    """What beat adds by itself: it has old results deleted where the result backend does not do so."""
    try:
        backend = app.backend
        wanted = (
            app.conf.result_expires and not backend.supports_autoexpire and "Disabled" not in type(backend).__name__
        )
    except Exception:  # noqa: BLE001  # a backend whose package is not installed here
        return {}
    entry = {"task": CLEANUP, "schedule": crontab(minute="0", hour="4"), "options": {"expires": 12 * 60 * 60}}
    return {CLEANUP: entry} if wanted else {}


def read(found: Mapping[str, Any], *, now: dt.datetime) -> Iterator[Found]:
    """Beat keeps to itself when it last sent these: they are planned from now."""
    for name, given in found.items():
        yield attempt(str(name), partial(_entry, name, given, now))


def _entry(name: str, given: Any, now: dt.datetime) -> Entry:
    if not isinstance(given, Mapping) or not given.get("task") or given.get("schedule") is None:
        raise ValueError(f"it must be a dict with a task and a schedule, got {shown(given)}")
    if unknown := sorted(map(str, given.keys() - _KEYS)):
        raise ValueError(f"its {unknown[0]!r} cannot be carried over: only {', '.join(sorted(_KEYS))} can")
    if given["task"] in _CANVAS:
        raise ValueError(f"it calls several tasks ({given['task']}): write a task that does so")
    options = {"args": given.get("args"), "kwargs": given.get("kwargs"), **_options(given.get("options") or {})}
    rule, anchor = _rule(given["schedule"], bool(given.get("relative")), now)
    definition = definition_of(name, given["task"], {**options, **rule})
    return Entry(definition, planned(definition, now, anchor=anchor))


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise ValueError(f"its options must be a dict, got {shown(given)}")
    if given.get("soft_time_limit") is not None:
        raise ValueError(
            "its option 'soft_time_limit' cannot be carried over: set it on the task, beside its time_limit"
        )
    given = {option: value for option, value in given.items() if option != "soft_time_limit"}
    if unknown := sorted(map(str, given.keys() - _OPTIONS)):
        raise ValueError(f"its option {unknown[0]!r} cannot be carried over: only {', '.join(sorted(_OPTIONS))} can")
    expires = given.get("expires", given.get("expire_seconds"))
    until = {"ends_at": expires} if isinstance(expires, dt.datetime) else {"start_within": _seconds(expires, "expires")}
    limit = _seconds(given.get("time_limit"), "time_limit")
    return {"queue": given.get("queue"), "priority": given.get("priority"), "timeout": limit, **until}


def _seconds(value: object, option: str) -> int | None:
    return None if value is None else seconds(value, option, minimum=1)


def _rule(schedule: Any, relative: bool, now: dt.datetime) -> tuple[dict[str, Any], dt.datetime | None]:
    """The options that say when, and the anchor of a grid that keeps to the clock. Celery's own kinds are known by what they have."""
    if hasattr(schedule, "_orig_minute"):
        # A crontab may have a zone of its own.
        own = getattr(vars(schedule).get("tz"), "key", None)
        return {"cron": crontab_text(schedule), "timezone": own or zone_name()}, None
    if hasattr(schedule, "event"):
        refuse_the_sun(schedule.event)
    every = getattr(schedule, "run_every", schedule)
    if isinstance(every, bool) or not isinstance(every, int | float | dt.timedelta):
        raise ValueError(f"its schedule must be seconds, a timedelta or a crontab, got {shown(schedule)}")
    if relative or getattr(schedule, "relative", False):
        return {"interval": every}, _rounded(now, seconds(every, "schedule", minimum=1))
    return {"interval": every}, None


def _rounded(now: dt.datetime, every: int) -> dt.datetime:
    """To the whole minute or hour that a relative schedule keeps to; its days are those of the calendar."""
    if every >= 24 * 60 * 60 and zone_name() != "UTC":
        raise ValueError(
            f"it is relative to the days of {zone_name()}, which are not all equally long: give it a crontab"
        )
    local = now.astimezone(zone(zone_name())).replace(microsecond=0)
    if every >= 60:
        local = local.replace(second=0)
    if every >= 60 * 60:
        local = local.replace(minute=0)
    return (local.replace(hour=0) if every >= 24 * 60 * 60 else local).astimezone(dt.UTC)
