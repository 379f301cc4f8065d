"""Coming from elsewhere: celery beat, a crontab, another database of ours.

Each source has a module that reads it into entries; `entries` makes rows of them, and `report` says what became of each.
"""

import datetime as dt
from collections.abc import Iterator

from pgwerk_django import registry as declared
from pgwerk_django.exceptions import SourceUnreadable, shown
from pgwerk_django.importers import beat, beat_settings, beat_tables, crontab, entries, json_file
from pgwerk_django.importers.entries import Entry, Found, Note
from pgwerk_django.importers.report import Report
from pgwerk_django.models import database_now

__all__ = ["Report", "import_beat", "import_text"]

NOTHING = "there is nothing to import"
NO_BEAT = "no entry in tables of django-celery-beat, in CELERY_BEAT_SCHEDULE or in the Celery app"
NO_APP = (
    "no Celery app of this project is loaded here, so periodic tasks that one adds were not seen: import it in the"
    " __init__.py of the project, as Celery's manual says"
)


def import_text(text: str, *, timezone: str | None, using: str, dry_run: bool) -> Report:
    """From our own JSON, which begins with a brace, or else a crontab. Raises `SourceUnreadable`."""
    now = database_now(using)
    is_json = text.lstrip().startswith("{")
    if is_json and timezone:
        raise SourceUnreadable(f"its schedules say their zones themselves, got the time zone {shown(timezone)}")
    found = json_file.read(text, now=now) if is_json else crontab.read(text, now=now, timezone=timezone)
    report = entries.write(found, using=using, dry_run=dry_run)
    if not is_json:
        report.is_missing = not report.lines
        report.hint = f"{NOTHING}: no line of this crontab runs a command" if report.is_missing else crontab.HINT
    return report


def import_beat(*, using: str, dry_run: bool) -> Report:
    """From the tables of django-celery-beat, if there are any, from `CELERY_BEAT_SCHEDULE` and from the Celery app."""
    now = database_now(using)
    report = entries.write(_beat(using, now), using=using, dry_run=dry_run)
    report.is_missing = not report.lines
    report.hint = f"{NOTHING}: {NO_BEAT}" if report.is_missing else beat.HINT
    if not beat_settings.has_app():
        report.hint += f"; {NO_APP}"
    return report


def _beat(using: str, now: dt.datetime) -> Iterator[Found]:
    """Beat copies the settings to its tables when it starts, and goes by the tables: they win, and know when each ran."""
    alias = beat_tables.database(using)
    stored = {_name(each): each for each in beat_tables.read(alias, now=now)} if alias else {}
    yield from stored.values()
    given, refused = beat_settings.entries(tables=alias is not None)
    yield from refused
    for each in beat_settings.read(given, now=now):
        known = stored.get(_name(each))
        if known is None:
            yield each
        elif isinstance(known, Entry) and isinstance(each, Entry) and (differing := _differences(each, known)):
            yield Note(f"{_name(each)}: CELERY_BEAT_SCHEDULE has another {', '.join(differing)}; the table was taken")


def _name(found: Found) -> str:
    return found.definition.name if isinstance(found, Entry) else getattr(found, "name", "")


def _differences(one: Entry, other: Entry) -> dict[str, object]:
    return declared.differences(one.definition.columns, other.definition.columns)
