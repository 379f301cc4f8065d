"""The tables of django-celery-beat, in plain SQL: the app need not be installed any more."""

import datetime as dt
import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NoReturn

from django.apps import apps
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connections, router
from django.utils.dateparse import parse_datetime

from pgwerk_django import registry as declared
from pgwerk_django.exceptions import shown
from pgwerk_django.importers.beat import FIELDS, NAME, crontab_text, definition_of, refuse_the_sun, zone_name
from pgwerk_django.importers.entries import Entry, Found, attempt, check_once, planned
from pgwerk_django.registry import Definition
from pgwerk_django.targets.celery import crontab

_PREFIX = "django_celery_beat_"
_KINDS = ("crontab", "interval", "clocked", "solar")
_JUST_BEFORE = dt.timedelta(microseconds=1)


def database(using: str) -> str | None:
    """The alias of the database that has the tables: ours, the router's, the default one; None where there are none."""
    aliases = [using, DEFAULT_DB_ALIAS]
    if apps.is_installed("django_celery_beat"):
        aliases.insert(1, router.db_for_read(apps.get_app_config("django_celery_beat").get_model("PeriodicTask")))
    return next((alias for alias in dict.fromkeys(aliases) if _has_tables(alias)), None)


def _has_tables(alias: str) -> bool:
    if connections[alias].vendor == "unknown":  # a project may have no default database
        return False
    with connections[alias].cursor() as cursor:
        return f"{_PREFIX}periodictask" in connections[alias].introspection.table_names(cursor)


def read(alias: str, *, now: dt.datetime) -> Iterator[Found]:
    """An entry for each periodic task, by name."""
    rules = {kind: {row["id"]: row for row in _rows(alias, f"{kind}schedule")} for kind in _KINDS}
    for row in sorted(_rows(alias, "periodictask"), key=lambda row: str(row["name"])):
        chosen = {kind: rules[kind].get(row.get(f"{kind}_id")) for kind in _KINDS}
        yield attempt(str(row["name"]), partial(_entry, row, chosen, now))


def _rows(alias: str, table: str) -> list[dict[str, Any]]:
    """All columns that there are: each version of the app has added some, and older ones lack a table."""
    with connections[alias].cursor() as cursor:
        if f"{_PREFIX}{table}" not in connections[alias].introspection.table_names(cursor):
            return []
        cursor.execute(f"SELECT * FROM {_PREFIX}{table}")  # noqa: S608  # one of five names of ours
        columns = [column[0] for column in cursor.description]
        return [dict(zip(columns, row, strict=True)) for row in cursor.fetchall()]


def _entry(row: Mapping[str, Any], rules: Mapping[str, Any], now: dt.datetime) -> Entry:
    kinds = [kind for kind in _KINDS if rules[kind]]
    if len(kinds) != 1:
        raise ValueError(f"it must have one of {', '.join(_KINDS)}, got {', '.join(kinds) or 'none'}")
    _check_message(row)
    clocked = _instant(rules["clocked"]["clocked_time"], "clocked_time") if rules["clocked"] else None
    rule = {} if clocked else _RULES[kinds[0]](rules[kinds[0]])
    definition = definition_of(row["name"], row["task"], {**_options(row), **rule}, once=clocked is not None)
    if clocked:
        check_once(clocked, definition)
    machine = _once(row, clocked, now) if clocked else _machine(row, definition, now)
    return Entry(definition, {**machine, **_paused(row, now)}, once_at=clocked)


def _check_message(row: Mapping[str, Any]) -> None:
    for column in ("exchange", "routing_key"):
        if row.get(column):
            raise ValueError(f"its {column} ({row[column]!r}) cannot be carried over: only a queue can")
    if headers := _json(row, "headers", {}):
        raise ValueError(f"its headers ({', '.join(headers)}) cannot be carried over")


def _options(row: Mapping[str, Any]) -> dict[str, Any]:
    once = row.get("one_off") and not row.get("clocked_id")
    return {
        "args": _json(row, "args", []),
        "kwargs": _json(row, "kwargs", {}),
        "queue": row.get("queue") or None,
        "priority": row.get("priority"),
        "starts_at": _instant(row.get("start_time"), "start_time"),
        "ends_at": _instant(row.get("expires"), "expires"),
        "start_within": row.get("expire_seconds") or None,  # beat takes 0 for none, and ours means another thing
        "max_runs": 1 if once else None,
        "description": row.get("description") or "",
    }


def _crontab(rule: Mapping[str, Any]) -> dict[str, Any]:
    # The setting is django-celery-beat's own: without it, it passes over the row's zone.
    zone = str(rule.get("timezone") or "UTC") if getattr(settings, "DJANGO_CELERY_BEAT_TZ_AWARE", True) else zone_name()
    return {"cron": crontab_text(crontab(**{field: rule[field] for field in FIELDS})), "timezone": zone}


def _interval(rule: Mapping[str, Any]) -> dict[str, Any]:
    if rule["period"] not in ("days", "hours", "minutes", "seconds", "microseconds"):
        raise ValueError(f"its period must be days, hours, minutes, seconds or microseconds, got {rule['period']!r}")
    try:
        return {"interval": dt.timedelta(**{rule["period"]: rule["every"]})}
    except (TypeError, OverflowError):
        raise ValueError(f"its every must be a number of {rule['period']}, got {shown(rule['every'])}") from None


def _solar(rule: Mapping[str, Any]) -> NoReturn:
    refuse_the_sun(rule["event"])


_RULES = {"crontab": _crontab, "interval": _interval, "solar": _solar}


def _machine(row: Mapping[str, Any], definition: Definition, now: dt.datetime) -> dict[str, Any]:
    """Planned from where beat left it, so that what fell due since is late, and not lost."""
    last, start = _instant(row.get("last_run_at"), "last_run_at"), definition.starts_at
    if definition.max_runs and row.get("total_run_count"):
        return {**planned(definition, now), "next_run_at": None, "run_count": 1, "last_run_at": last}
    if last is None and start is not None:  # beat runs such a one at its start
        anchor, since = start, start - _JUST_BEFORE
    else:  # and has a new one wait from its last edit
        anchor = since = last or _instant(row.get("date_changed"), "date_changed") or now
    # A cron expression hangs on the clock, and takes an anchor for the first run that it may have.
    plan = planned(definition, now, anchor=None if definition.cron else anchor, since=since)
    return {**plan, "last_run_at": last}


def _once(row: Mapping[str, Any], at: dt.datetime, now: dt.datetime) -> dict[str, Any]:
    plan = {"anchor_at": at, "created_at": now, "next_run_at": at}
    if not row.get("total_run_count"):
        return plan
    return {**plan, "next_run_at": None, "run_count": 1, "last_run_at": _instant(row["last_run_at"], "last_run_at")}


def _paused(row: Mapping[str, Any], now: dt.datetime) -> dict[str, Any]:
    """What is off there is off here. Whoever resumes it has it planned from then."""
    if row["enabled"]:
        return {}
    paused = {"paused": True, "paused_at": now, "paused_by": NAME, "pause_reason": "not enabled there"}
    return paused if row.get("clocked_id") else {**paused, "next_run_at": None}


def _instant(value: Any, option: str) -> dt.datetime | None:
    # SQLite has text, and MySQL instants without a zone, which are UTC in both.
    try:
        read = parse_datetime(value) if isinstance(value, str) else value
    except ValueError:  # it looks like one, and there is no such day
        read = value
    return declared.instant(read if read is not None else value, option)


def _json(row: Mapping[str, Any], column: str, empty: Any) -> Any:
    try:
        return json.loads(row.get(column) or "null") or empty
    except ValueError as error:
        raise ValueError(f"its {column} must be JSON, got {shown(row[column])}: {error}") from None
