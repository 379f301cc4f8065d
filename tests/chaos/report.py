"""What a run came to, as a table for people and as JSON."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.auditor import Verdict
from tests.chaos.evidence import Evidence
from tests.chaos.world import Notes

MOST_SHOWN = 10


@dataclass
class Report:
    seed: int
    seconds: float
    verdict: Verdict
    notes: Notes
    missing: dict[str, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    evidence: Evidence | None = None

    @property
    def clean(self) -> bool:
        return self.verdict.clean and not self.notes.problems

    def text(self) -> str:
        verdict, counts = self.verdict, self.verdict.counts
        lines = [
            f"seed {self.seed}, {self.seconds:.0f} s" + (f", broken: {', '.join(self.broken)}" if self.broken else "")
        ]
        lines += ["", "faults"]
        lines += [f"  {number:5d}  {what}" for what, number in sorted(self.notes.did.items())]
        lines += [f"      -  {name}: left out, {why}" for name, why in self.missing.items()]
        lines += ["", "due times"]
        lines += [
            _line(counts["expected"], "expected, from the definitions"),
            _line(counts["rows"], "rows of their own on record"),
            _line(counts["within a skipped run"], "within a row for a run of misfires"),
            _line(counts["rows skipped"], "rows that are SKIPPED (misfires, overlaps)"),
            _line(counts["at a boundary"], "at the instant of a change, where either is right"),
            _line(counts["cut off"], "overdue when a pause, a delete or a new rule came, and so without a row"),
            _line(counts["triggers"], "triggers"),
            "",
            "jobs",
            *[_line(n, what.removeprefix("jobs ")) for what, n in sorted(counts.items()) if what.startswith("jobs ")],
            _line(counts["runs begun"], "runs begun"),
            _line(counts["runs more than attempts"], "runs more than the attempts say"),
            _line(counts["sent again"], "sent again after a fault, under the same key"),
            _line(counts["rows deleted by clean-up"], "rows deleted by clean-up, judged as they were then"),
            "",
            "verdict",
            *[_line(len(getattr(verdict, kind)), kind) for kind in verdict.KINDS],
            _line(len(self.notes.problems), "processes that ended by themselves, or did not stop"),
            f"  worst lateness {verdict.worst:.1f} s ({verdict.latest})",
            f"  half of them within {verdict.percentile(0.5):.3f} s, nine of ten within {verdict.percentile(0.9):.3f} s",
        ]
        for kind in verdict.KINDS:
            found = getattr(verdict, kind)
            lines += [f"  {kind}: {sentence}" for sentence in found[:MOST_SHOWN]]
            lines += [f"  {kind}: and {len(found) - MOST_SHOWN} more"] if len(found) > MOST_SHOWN else []
        lines += [f"  {problem}" for problem in self.notes.problems[:MOST_SHOWN]]
        return "\n".join([*lines, "clean" if self.clean else "NOT CLEAN"])

    def data(self) -> dict[str, Any]:
        verdict = self.verdict
        return {
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "broken": self.broken,
            "clean": self.clean,
            "faults": dict(self.notes.did),
            "left_out": self.missing,
            "counts": dict(verdict.counts),
            **{kind: getattr(verdict, kind) for kind in verdict.KINDS},
            "processes": self.notes.problems,
            "worst_lateness": verdict.worst,
            "worst_lateness_of": verdict.latest,
            "lateness": {f"p{share}": verdict.percentile(share / 100) for share in (50, 90, 99)},
        }

    def records(self) -> str:
        """What the verdict was reached by, a line for each entry, in the order of time."""
        assert self.evidence is not None
        told = self.evidence
        entries = [
            *((change.at, change) for change in told.changes),
            *((event.at, event) for event in told.events),
            *((run.began, run) for run in told.runs),
            *((send.at, send) for send in told.sends),
            *((hit.began, hit) for hit in told.hits),
            *((act.at, act) for act in told.acts),
        ]
        lines = [
            json.dumps({"entry": type(entry).__name__, **dataclasses.asdict(entry)}, default=str)
            for _, entry in sorted(entries, key=lambda each: each[0])
        ]
        rows = [json.dumps({"entry": "Row", **dataclasses.asdict(row)}, default=str) for row in told.rows]
        return "\n".join([*lines, *rows])

    def json(self) -> str:
        return json.dumps(self.data(), indent=2)


def _line(number: int, what: str) -> str:
    return f"  {number:5d}  {what}"
