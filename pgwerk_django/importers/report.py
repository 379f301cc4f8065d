"""What an import did, and could not do: a line for each entry."""

import json
from dataclasses import dataclass, field
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder

from pgwerk_django.exceptions import in_one_line, shown

WOULD = {"inserted": "would insert", "updated": "would update"}


@dataclass(frozen=True)
class Line:
    outcome: str  # inserted, updated, unchanged, could not import
    name: str
    why: str = ""
    changes: dict[str, tuple[Any, Any]] = field(default_factory=dict)  # column: what the table had, and what was found

    def as_text(self, *, dry_run: bool) -> str:
        outcome = WOULD.get(self.outcome, self.outcome) if dry_run else self.outcome
        changes = ", ".join(f"{column} {shown(old)} -> {shown(new)}" for column, (old, new) in self.changes.items())
        # A name that breaks the line is told as Python would write it.
        name = self.name if self.name.isprintable() else repr(self.name)
        return ": ".join(filter(None, [f"{outcome} {name}", changes or self.why]))


@dataclass
class Report:
    dry_run: bool
    lines: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    hint: str = ""  # for the person, whatever reads the lines
    is_missing: bool = False  # there was no entry where there should have been some

    @property
    def refused(self) -> bool:
        return any(line.outcome == "could not import" for line in self.lines)

    def as_text(self) -> list[str]:
        notes = [f"note: {note}" for note in self.notes]
        return [in_one_line(text) for text in [*notes, *(line.as_text(dry_run=self.dry_run) for line in self.lines)]]

    def as_json(self) -> str:
        def names(outcome: str) -> list[str]:
            return [line.name for line in self.lines if line.outcome == outcome]

        updated = {
            line.name: {column: {"table": old, "found": new} for column, (old, new) in line.changes.items()}
            for line in self.lines
            if line.changes
        }
        refused = [{"name": line.name, "why": line.why} for line in self.lines if line.outcome == "could not import"]
        report = {"inserted": names("inserted"), "updated": updated, "unchanged": names("unchanged")}
        return json.dumps({**report, "could_not": refused, "notes": self.notes}, cls=DjangoJSONEncoder)
