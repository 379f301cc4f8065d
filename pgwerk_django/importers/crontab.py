"""A crontab: its lines that run a management command become schedules, and the others are told why not."""

import datetime as dt
import hashlib
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from functools import partial

from django.conf import settings
from django.core.management import get_commands

from pgwerk_django.cron import zone
from pgwerk_django.exceptions import SourceUnreadable, shown
from pgwerk_django.importers.command_line import management_command
from pgwerk_django.importers.entries import Entry, Found, Note, attempt, judged, planned, resolved
from pgwerk_django.policies import Overlap
from pgwerk_django.text import LONGEST_NAME

HINT = "take these lines out of the crontab before you start runscheduler: while they are there, both run them"
FUNCTION = "django.core.management.call_command"
_VARIABLE = re.compile(r"""\s*["']?(?P<name>[A-Za-z_]\w*)["']?\s*=\s*(?P<value>.*?)\s*""", re.ASCII | re.DOTALL)
_ZONES = ("CRON_TZ", "TZ")


def read(text: str, *, now: dt.datetime, timezone: str | None) -> Iterator[Found]:
    """An entry for each line. Raises `SourceUnreadable` for a zone that there is not."""
    try:
        current = zone(timezone or settings.TIME_ZONE).key
    except ValueError as error:
        raise SourceUnreadable(str(error)) from error
    yield Note(
        f"times are those of {current} ({'--timezone' if timezone else 'TIME_ZONE'}), unless a line says otherwise"
    )
    names = Counter[str]()
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if variable := _VARIABLE.fullmatch(line):
            name, value = variable["name"], variable["value"].strip("\"'")
            current = value if name in _ZONES else current
            # Its value may be a secret.
            said = f"times are those of {shown(value)} from here" if name in _ZONES else f"{name[:60]} is ignored"
            yield Note(f"line {number}: {said}")
            continue
        yield attempt(f"line {number}", partial(_entry, line, number, current, names, now))


def _entry(line: str, number: int, timezone: str, names: Counter[str], now: dt.datetime) -> Entry:
    rule, command = _split(line)
    words, redirections, wrappers, guard = management_command(_without_percent(command))
    if words[0] not in get_commands():
        raise ValueError(f"this project has no management command {shown(words[0])}")
    options = {"cron": rule, "timezone": timezone, "args": words, "name": _name(words, names)}
    if guard:
        options["overlap"] = Overlap.SKIP.value
    definition = resolved(judged(FUNCTION, options))
    notes = []
    if redirections:
        dropped = ", ".join(redirections)
        notes.append(f"line {number}: {dropped} is dropped: what a job prints goes where its worker's goes")
    if wrappers:
        notes.append(f"line {number}: {', '.join(wrappers)} is dropped: a job has the priority of its worker")
    if guard:
        notes.append(
            f"line {number}: flock {shown(guard)} becomes _overlap=SKIP, which keeps apart the runs of this line only"
        )
    return Entry(definition, planned(definition, now), notes=tuple(notes))


def _split(line: str) -> tuple[str, str]:
    """The rule and the command."""
    if line.startswith("@reboot"):
        raise ValueError("@reboot is no time: have the service run it when it starts")
    count = 1 if line.startswith("@") else 5
    parts = line.split(None, count)
    if len(parts) <= count:
        raise ValueError("it must have five fields, or one such as @daily, and a command")
    return " ".join(parts[:count]), parts[count]


def _without_percent(command: str) -> str:
    if re.search(r"(?<!\\)%", command):
        raise ValueError("it has a % without a backslash: to cron, what follows is the command's input")
    return command.replace(r"\%", "%")


def _name(words: list[str], names: Counter[str]) -> str:
    """Of the same command twice the second is told apart by its number."""
    name = f"manage.py {shlex.join(words)}"
    if len(name) > LONGEST_NAME - 10:  # two commands must not come to have one name
        name = f"{name[: LONGEST_NAME - 23]}~{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:12]}"
    names[name] += 1
    return name if names[name] == 1 else f"{name} ({names[name]})"
