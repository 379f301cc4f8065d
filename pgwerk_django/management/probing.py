"""The verb `health` of `manage.py schedules`, on the command line's side."""

import json
from typing import Any

from django.core.management.base import BaseCommand
from django.db import connections

from pgwerk_django import health
from pgwerk_django.alerts import LATE_AFTER, LONGEST_WAIT
from pgwerk_django.management.service import positive, seconds


def add_verb(verbs: Any) -> None:
    probe = verbs.add_parser("health", help="is it alive, and does it do its work? Exit code 1: no")
    probe.add_argument("--format", choices=["text", "json"], default="text")
    probe.add_argument("--role", choices=health.ROLES, default="", help="judge only what these answer for")
    probe.add_argument(
        "--here",
        action="store_true",
        help="judge only the processes of this host, for what restarts them (not red while the database is away)",
    )
    probe.add_argument("--pid", type=positive, help="and of those only this one")
    probe.add_argument(
        "--late-after",
        type=seconds,
        default=LATE_AFTER,
        metavar="S",
        help="a schedule may be due for so many seconds, or its own grace where that is longer (default: %(default)s)",
    )
    probe.add_argument(
        "--longest-wait",
        type=seconds,
        default=LONGEST_WAIT,
        metavar="S",
        help="a job may wait for so many seconds (default: %(default)s)",
    )


def probe(command: BaseCommand, using: str, **options: Any) -> None:
    # A probe must come to an end, also where packets are lost on their way to the database.
    connections[using].settings_dict["OPTIONS"].setdefault("connect_timeout", health.ANSWERS_WITHIN)
    if options["here"] or options["pid"]:
        found = health.judge_here(using=using, role=options["role"], pid=options["pid"])
    else:
        found = health.judge(
            using=using,
            role=options["role"],
            late_after=options["late_after"],
            longest_wait=options["longest_wait"],
        )
    for line in [json.dumps(found.as_dict())] if options["format"] == "json" else found.as_text():
        command.stdout.write(line)
    if found.is_red:
        raise SystemExit(1)
