"""Schedules as JSON: all that another table needs to go on with them, and back.

What is left out: the key; when code last declared it, which its next sync says anew; and a trigger that no tick has seen
yet, which asked for one run here and not for another one there.
"""

import datetime as dt
import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from pgwerk_django import registry as declared
from pgwerk_django import targets
from pgwerk_django.exceptions import SourceUnreadable, shown
from pgwerk_django.importers.entries import Entry, Found, attempt, judged, planned
from pgwerk_django.models import Origin, Schedule
from pgwerk_django.text import free_text, text

VERSION = 1
INSTANTS = ("starts_at", "ends_at")


def _instant(value: object, option: str) -> dt.datetime | None:
    if isinstance(value, str):
        try:
            value = dt.datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"{option} must be an instant in ISO 8601, got {shown(value)}") from None
    return declared.instant(value, option)


def _given_instant(value: object, option: str) -> dt.datetime:
    found = _instant(value, option)
    if found is None:
        raise TypeError(f"{option} must be an instant in ISO 8601, got None")
    return found


def _flag(value: object, option: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{option} must be true or false, got {shown(value)}")
    return value


def _count(value: object, option: str) -> int:
    return declared.whole(value, option, minimum=0)


def _origin(value: object, option: str) -> str:
    if value not in Origin.values:
        raise ValueError(f"{option} must be one of {', '.join(Origin.values)}, got {shown(value)}")
    return Origin(value).value


# What continuity needs besides the definition, and who reads it.
_MACHINE: dict[str, Callable[[object, str], Any]] = {
    "origin": _origin,
    "created_at": _given_instant,
    "anchor_at": _given_instant,
    "next_run_at": _instant,
    "replan": _flag,
    "paused": _flag,
    "paused_at": _instant,
    "paused_by": free_text,
    "pause_reason": free_text,
    "run_count": _count,
    "last_run_at": _instant,
    "error": free_text,
}


def dump(rows: Iterable[Schedule]) -> Iterator[str]:
    """The JSON in pieces, one for each row: a table may be larger than memory."""
    yield f'{{\n  "format": "pgwerk_django",\n  "version": {VERSION},\n  "schedules": ['
    separator = "\n"
    for row in rows:
        values = {column: _plain(getattr(row, column)) for column in (*row.DEFINITION, *_MACHINE)}
        yield separator + textwrap.indent(json.dumps(values, indent=2), "    ")
        separator = ",\n"
    yield "]\n}" if separator == "\n" else "\n  ]\n}"


def _plain(value: Any) -> Any:
    return value.astimezone(dt.UTC).isoformat() if isinstance(value, dt.datetime) else value


def read(text: str, *, now: dt.datetime) -> Iterator[Found]:
    """The entries of what `dump` made. Raises `SourceUnreadable` for anything else."""
    for number, given in enumerate(_schedules(text), 1):
        name = given.get("name") if isinstance(given, dict) else None
        label = name if isinstance(name, str) and name else f"schedule {number}"
        yield attempt(label, partial(_entry, given, now))


def _schedules(text: str) -> list[Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceUnreadable(f"it begins as JSON does, and is none: {error}") from error
    if found.get("format") != "pgwerk_django" or not isinstance(found.get("schedules"), list):
        raise SourceUnreadable("its JSON must be that of 'schedules export', with a list under \"schedules\"")
    if found.get("version") != VERSION:
        raise SourceUnreadable(f"its version must be {VERSION}, got {shown(found.get('version'))}")
    return list(found["schedules"])


def _entry(given: Any, now: dt.datetime) -> Entry:
    if not isinstance(given, dict):
        raise TypeError(f"a schedule must be an object, got {shown(given)}")
    machine = {column: reader(given[column], column) for column, reader in _MACHINE.items() if column in given}
    options = {column: value for column, value in given.items() if column not in _MACHINE and column != "function"}
    options["cron"] = options.get("cron") or None  # the column is never null
    for column in INSTANTS:
        if column in options:
            options[column] = _instant(options[column], column)
    function = text(given.get("function"), "function", longest=declared.LONGEST_FUNCTION)
    # One that says when it runs next needs no rule of time: it is a one-off, or has ended.
    definition = _targeted(judged(function, {"name": function, **options}, once="next_run_at" in machine))
    origin = machine.pop("origin", Origin.API.value)
    return Entry(definition, _completed(machine, definition, now), origin=origin)


def _targeted(definition: declared.Definition) -> declared.Definition:
    """A row that its target cannot run as it asks is that here as there: it is not judged as the API would."""
    if not definition.target:
        definition = targets.resolved(definition)
    if targets.get(definition.target).name != "celery":  # whose tasks may have any name
        declared.import_path(definition.function)
    return definition


def _completed(given: Mapping[str, Any], definition: declared.Definition, now: dt.datetime) -> dict[str, Any]:
    """A definition that somebody wrote by hand says nothing of the machine's: it is planned as a new one."""
    if "next_run_at" in given:
        return {"anchor_at": given["next_run_at"] or now, "created_at": now, **given}
    return {**planned(definition, now, anchor=given.get("anchor_at")), **given}
