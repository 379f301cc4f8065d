"""`manage.py queues list|pause|resume`: what waits in each queue, and queues that an operator holds."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError
from django.db import transaction

from pgwerk_django import conf
from pgwerk_django.jobs import pause_queue, resume_queue
from pgwerk_django.management.service import PgwerkCommand, text_of, whoami
from pgwerk_django.models import Queue, Schedule


class Command(PgwerkCommand):
    help = "Lists queues, pauses and resumes them: the jobs of a paused queue wait, whichever worker serves it."

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True)
        verbs.add_parser("list", help="all queues, by name: state, jobs that wait, jobs that run, the oldest waiting")
        for verb in ("pause", "resume"):
            acting = verbs.add_parser(verb, help=f"{verb} queues by name")
            acting.add_argument("names", nargs="+", metavar="name")
        verbs.choices["pause"].add_argument("--reason", default="", help="shown in the admin")

    def handle(self, *args: Any, verb: str, names: list[str] | None = None, **options: Any) -> None:
        if verb == "list":
            rows = Queue.objects.using(conf.current().DATABASE)
            rows.discover()
            named = Schedule.objects.using(rows.db).values_list("queue", flat=True).distinct()
            rows.bulk_create([Queue(name=name) for name in named], ignore_conflicts=True)
            row: Any
            with transaction.atomic(using=rows.db):  # behind a pooler the cursor on the server must not outlive it
                for row in rows.with_load().order_by("name").iterator():
                    state = "PAUSED" if row.paused else "OK"
                    self.stdout.write(f"{row.name}\t{state}\t{row.waiting}\t{row.running}\t{text_of(row.oldest)}")
            return
        try:
            for name in names or ():
                if verb == "pause":
                    pause_queue(name, reason=options["reason"], by=whoami())
                else:
                    resume_queue(name, by=whoami())
        except ValueError as error:
            raise CommandError(str(error)) from error
