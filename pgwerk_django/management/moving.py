"""The verbs `export` and `import` of `manage.py schedules`, on the command line's side."""

import sys
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from pgwerk_django import importers
from pgwerk_django.exceptions import SourceUnreadable, shown


def add_verbs(verbs: Any) -> None:
    out = verbs.add_parser("export", help="schedules as JSON, which import reads back")
    out.add_argument("names", nargs="*", metavar="name", help="default: all of them")
    into = verbs.add_parser("import", help="schedules from celery beat, a crontab, or what export made")
    into.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="a crontab, or the JSON of export (- for stdin); default: the tables of django-celery-beat, and"
        " periodic tasks of the Celery app (CELERY_BEAT_SCHEDULE and others)",
    )
    into.add_argument("--dry-run", action="store_true", help="write nothing, only say what would be done")
    into.add_argument("--timezone", metavar="ZONE", help="of the times in a crontab (default: TIME_ZONE)")
    into.add_argument("--format", choices=["text", "json"], default="text")


def move_in(command: BaseCommand, using: str, **options: Any) -> None:
    """Exit code 1 says that something could not be imported (the rest was), or that a crontab or beat had no entry."""
    report = _report(options["source"], options["timezone"], using=using, dry_run=options["dry_run"])
    for line in [report.as_json()] if options["format"] == "json" else report.as_text():
        command.stdout.write(line)
    if report.hint:
        command.stderr.write(report.hint)
    if report.refused or report.is_missing:
        raise SystemExit(1)


def _report(source: str | None, timezone: str | None, *, using: str, dry_run: bool) -> importers.Report:
    if source is None:
        if timezone:
            raise CommandError(f"--timezone is for a crontab, and none is given, got {shown(timezone)}")
        return importers.import_beat(using=using, dry_run=dry_run)
    try:
        return importers.import_text(_text(source), timezone=timezone, using=using, dry_run=dry_run)
    except (OSError, UnicodeError, ValueError, SourceUnreadable) as error:
        why = error.strerror if isinstance(error, OSError) else error  # which has the path once more
        raise CommandError(f"{shown(source)} cannot be imported: {why}") from error


def _text(source: str) -> str:
    return sys.stdin.read() if source == "-" else Path(source).read_text("utf-8-sig")
