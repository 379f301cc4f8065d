"""`manage.py syncschedules`: take what code declares to the table, or say what that would change."""

import json
from argparse import ArgumentParser
from typing import Any, NamedTuple

from django.core.serializers.json import DjangoJSONEncoder

from pgwerk_django import conf, sync
from pgwerk_django.management.service import PgwerkCommand
from pgwerk_django.models import UNPAUSED
from pgwerk_django.registry import registry


class Words(NamedTuple):
    inserted: str
    updated: str
    resumed: str
    reconciled: str


DID = Words("inserted", "updated", "resumed", "reconciled")
WOULD = Words("would insert", "would update", "resume", "would reconcile")


class Command(PgwerkCommand):
    help = "Makes the rows equal to what code declares: one line for each row inserted, updated or reconciled."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--on-unregistered",
            choices=sync.ON_UNREGISTERED,
            default="pause",
            help="what becomes of rows that came from code and that code no longer declares (default: %(default)s)",
        )
        parser.add_argument("--dry-run", action="store_true", help="write nothing, only say what would change")
        parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when something would change")
        parser.add_argument("--format", choices=["text", "json"], default="text")

    def handle(self, *args: Any, **options: Any) -> None:
        dry = options["dry_run"] or options["check"]
        act = sync.difference if dry else sync.synchronise
        found = act(registry, on_unregistered=options["on_unregistered"], using=conf.current().DATABASE)
        if options["format"] == "json":
            self.stdout.write(json.dumps(_as_json(found), cls=DjangoJSONEncoder))
        else:
            for line in _as_text(found, options["on_unregistered"], WOULD if dry else DID):
                self.stdout.write(line)
        if options["check"] and found:
            raise SystemExit(1)


def _as_json(found: sync.Difference) -> dict[str, Any]:
    updated = {
        name: {column: {"table": table, "code": code} for column, (table, code) in changes.items()}
        for name, changes in found.updated.items()
    }
    return {"inserted": found.inserted, "updated": updated, "reconciled": found.reconciled}


def _as_text(found: sync.Difference, on_unregistered: str, words: Words) -> list[str]:
    lines = [f"{words.inserted} {name}" for name in found.inserted]
    for name, changes in found.updated.items():
        shown = [f"{column} {old!r} -> {new!r}" for column, (old, new) in changes.items() if column not in UNPAUSED]
        lines.append(
            f"{words.updated} {name}: " + ", ".join([*shown, *([words.resumed] if "paused" in changes else [])])
        )
    lines += [f"{words.reconciled} {name} ({on_unregistered})" for name in found.reconciled]
    return lines
