"""What was found elsewhere, judged, and how it becomes rows: one transaction and one line of the report for each."""

import datetime as dt
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from django.db import DataError, IntegrityError, transaction

from pgwerk_django import registry as declared
from pgwerk_django import targets
from pgwerk_django.exceptions import PgwerkError, text_of
from pgwerk_django.importers.report import Line, Report
from pgwerk_django.models import Origin, Schedule, atomic, database_now
from pgwerk_django.policies import default_overlap
from pgwerk_django.registry import Definition

AT_A_TIME = 500
DECLARED = "code declares it, and code wins"


@dataclass(frozen=True)
class Entry:
    """One schedule. `machine` is what a new row gets besides its definition; a row that is there keeps its own."""

    definition: Definition
    machine: Mapping[str, Any] = field(default_factory=dict)
    origin: str = Origin.API.value
    once_at: dt.datetime | None = None  # of a one-off: to move this is to change what it says
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refusal:
    """What could not be read."""

    name: str
    why: str


@dataclass(frozen=True)
class Note:
    """What was read, and is none: the reader is to know."""

    text: str


Found: TypeAlias = Entry | Refusal | Note


def attempt(name: str, read: Callable[[], Entry]) -> Entry | Refusal:
    """A bad entry is a line, and stops nothing else."""
    try:
        return read()
    # The last two are numbers of days, and JSON, that are meant to be too much.
    except (ValueError, TypeError, PgwerkError, OverflowError, RecursionError) as error:
        return Refusal(name, " ".join(text_of(error).split()))


def judged(function: str, options: Mapping[str, object], *, once: bool = False) -> Definition:
    """A definition by the registry's own readers. Raises `ValueError` or `TypeError`, naming the option."""
    columns = declared.read_options({"timezone": None, **options})
    declared.check_recurrence(columns, once=once)
    columns.setdefault("overlap", default_overlap(columns.get("misfire", "")).value)
    return Definition(function=function, **columns)


def planned(
    definition: Definition, now: dt.datetime, *, anchor: dt.datetime | None = None, since: dt.datetime | None = None
) -> dict[str, Any]:
    """The machine columns of a new row: due next after `since`, which may be past, so that what was missed is a misfire."""
    instants = {"anchor_at": anchor or now, "created_at": now}
    following = Schedule(**definition.columns, **instants).recurrence.next_after(since or now)
    return {**instants, "next_run_at": following}


def write(found: Iterable[Found], *, using: str, dry_run: bool) -> Report:
    """Insert and update what was found. A dry run does it all, too, and takes it back."""
    report, names = Report(dry_run), set[str]()
    for each, row in _with_rows(found, using):
        if isinstance(each, Note):
            report.notes.append(each.text)
            continue
        if isinstance(each, Entry) and each.definition.name in names:
            each = Refusal(each.definition.name, "another entry before it has this name")
        if isinstance(each, Entry):
            names.add(each.definition.name)
            report.notes += each.notes
            is_same = row is not None and not _changes(each, row)
            unchanged = Line("unchanged", each.definition.name)
            report.lines.append(unchanged if is_same else _write(each, using=using, dry_run=dry_run))
        else:
            report.lines.append(Line("could not import", each.name, why=each.why))
    return report


def _with_rows(found: Iterable[Found], using: str) -> Iterator[tuple[Found, Schedule | None]]:
    """Each with the row of its name, if there is one, some hundreds at a time: the table may be larger than memory."""
    rest = iter(found)
    while chunk := list(itertools.islice(rest, AT_A_TIME)):
        names = [each.definition.name for each in chunk if isinstance(each, Entry)]
        rows = {row.name: row for row in Schedule.objects.using(using).filter(name__in=names)}
        for each in chunk:
            yield each, rows.get(each.definition.name) if isinstance(each, Entry) else None


def _write(entry: Entry, *, using: str, dry_run: bool) -> Line:
    try:
        with atomic(using):
            line = _upsert(entry, using=using)
            if dry_run:
                transaction.set_rollback(True, using=using)
    except (DataError, IntegrityError) as error:
        return Line("could not import", entry.definition.name, why=" ".join(text_of(error).split()))
    return line


def _upsert(entry: Entry, *, using: str) -> Line:
    name = entry.definition.name
    rows = Schedule.objects.using(using)
    row = rows.select_for_update(no_key=True).filter(name=name).first()
    changes = _changes(entry, row) if row else {}
    if row and not changes:
        return Line("unchanged", name)
    if (row and row.origin == Origin.CODE) or (entry.origin != Origin.CODE and name in declared.registry):
        return Line("could not import", name, why=DECLARED)
    if row is None:
        _insert(entry, using=using)
        return Line("inserted", name)
    shown = {column: (getattr(row, column), value) for column, value in changes.items()}
    first = changes.pop("anchor_at", None)
    row.redefine(changes, now=database_now(using), first=first)  # now that it is locked: that may have taken a while
    return Line("updated", name, changes=shown)


def _changes(entry: Entry, row: Schedule) -> dict[str, Any]:
    changes = declared.differences(entry.definition.columns, row.definition)
    if entry.once_at and entry.once_at != row.anchor_at:
        changes["anchor_at"] = entry.once_at
    return changes


def _insert(entry: Entry, *, using: str) -> None:
    row = Schedule(**entry.definition.columns, origin=entry.origin, **entry.machine)
    # As they are to be: saving gives back what the trigger makes of them.
    machine = {"next_run_at": row.next_run_at, "replan": row.replan, "error": row.error}
    row.save(force_insert=True, using=using)
    if machine["next_run_at"] is None:
        # It has ended, is set aside or waits for a person: to the re-plan trigger such an insert is one to be planned.
        Schedule.objects.using(using).filter(pk=row.pk).update(**machine)


def check_once(first: dt.datetime, definition: Definition) -> None:
    starts_at, ends_at = definition.starts_at, definition.ends_at
    if (starts_at and first < starts_at) or (ends_at and first > ends_at):
        raise ValueError(f"its one run must lie between its start ({starts_at}) and its end ({ends_at}), got {first}")


def resolved(definition: Definition) -> Definition:
    """With its target, judged as the API would: what the target cannot do and arguments that do not fit are refused."""
    definition = targets.resolved(definition)
    targets.check_payload(definition.function, definition)
    return definition
