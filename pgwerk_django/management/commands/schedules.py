"""`manage.py schedules list|next|pause|resume|trigger|health|export|import`: what the admin does, and moving house."""

from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any

from django.core.management.base import CommandError
from django.db import transaction

from pgwerk_django.exceptions import in_one_line, shown
from pgwerk_django.history import failing_names
from pgwerk_django.importers import json_file
from pgwerk_django.management import moving, probing
from pgwerk_django.management.service import PgwerkCommand, positive, text_of, upcoming, whoami
from pgwerk_django.models import Schedule, ScheduleQuerySet, database_now
from pgwerk_django.scheduler import Scheduler
from pgwerk_django.text import storable

PAYLOAD = ("args", "kwargs", "meta", "description", "pause_reason")  # which no list shows, and which may be large


class Command(PgwerkCommand):
    help = "Lists schedules and their next runs; pauses, resumes and triggers them; says whether they are well; exports and imports them."

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True)
        verbs.add_parser("list", help="all schedules, by name: state, recurrence, next and last run")
        following = verbs.add_parser("next", help="when they run next, the soonest first")
        following.add_argument("names", nargs="*", metavar="name", help="default: all of them")
        following.add_argument("-n", type=positive, default=5, dest="count", help="runs of each (default: %(default)s)")
        for verb in ("pause", "resume", "trigger"):
            acting = verbs.add_parser(verb, help=f"{verb} schedules by name")
            acting.add_argument("names", nargs="+", metavar="name")
        verbs.choices["pause"].add_argument("--reason", default="", help="shown in the admin")
        probing.add_verb(verbs)
        moving.add_verbs(verbs)

    def handle(self, *args: Any, verb: str, names: list[str] | None = None, **options: Any) -> None:
        scheduler = Scheduler()
        if verb == "import":
            moving.move_in(self, scheduler.using, **options)
            return
        if verb == "health":
            probing.probe(self, scheduler.using, **options)
            return
        chosen = self._chosen(names, scheduler.using)
        now = database_now(scheduler.using)
        if verb == "export":
            for piece in json_file.dump(_one_by_one(chosen)):
                self.stdout.write(piece, ending="")
            self.stdout.write("")
        elif verb == "list":
            failing = set(failing_names(scheduler.using))
            for row in _one_by_one(chosen.defer(*PAYLOAD)):
                state = row.state(now, failing=row.name in failing)
                runs = (text_of(*upcoming(row, 1, now)), text_of(row.last_run_at))
                self.stdout.write("\t".join((row.name, state.value, in_one_line(row.rule), *runs)))
        elif verb == "next":
            rows = _one_by_one(chosen.defer(*PAYLOAD))
            runs_of = ((at, row.name) for row in rows for at in upcoming(row, options["count"], now))
            for due_at, name in sorted(runs_of):
                self.stdout.write(f"{text_of(due_at)}\t{name}")
        else:
            extra = {"reason": options["reason"]} if verb == "pause" else {}
            for name in list(chosen.values_list("name", flat=True)):
                try:
                    getattr(scheduler, verb)(name, by=whoami(), **extra)
                except ValueError as error:
                    raise CommandError(str(error)) from error
                self.stdout.write(f"{verb} {name}")

    def _chosen(self, names: list[str] | None, using: str) -> ScheduleQuerySet:
        """Those of these names (without names: all), by name. A table may have a million others: they are not read."""
        rows = Schedule.objects.using(using).order_by("name")
        if not names:
            return rows
        chosen = rows.filter(name__in=[name for name in names if storable(name) == name])
        if unknown := set(names) - set(chosen.values_list("name", flat=True)):
            raise CommandError(f"there is no schedule named {shown(min(unknown))}; 'schedules list' shows them all")
        return chosen


def _one_by_one(rows: ScheduleQuerySet) -> Iterator[Schedule]:
    # In a transaction: behind a pooler the cursor on the server must not outlive it.
    with transaction.atomic(using=rows.db):
        yield from rows.iterator(chunk_size=500)
