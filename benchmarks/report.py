"""Figures as a table and as a chart, for the documentation."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.results import Row, number

DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

# -- the table --------------------------------------------------------------------------------------------------------


def write_docs(figures: Mapping[str, Any]) -> None:
    """Put the table between the markers of docs/benchmarks.md, with the chart and the figures themselves beside it."""
    page = DOCS / "benchmarks.md"
    text = page.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n\n{tables(figures)}\n\n{END}{after}")
    (DOCS / "benchmarks.svg").write_text(chart(figures))
    (DOCS / "benchmarks.json").write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")


def together(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The first run, with what later ones measured in place of its own; each of those says which run it is from."""
    figures = dict(runs[0])
    for run in runs[1:]:
        own = {name: {**found, "run": facts(run)} for name, found in run["benchmarks"].items()}
        figures["benchmarks"] = {**figures["benchmarks"], **own}
        figures["details"] = {**figures["details"], **run["details"]}
        figures["failed"] = {name: why for name, why in figures["failed"].items() if name not in own}
    return figures


def facts(figures: Mapping[str, Any]) -> str:
    about = figures["machine"]
    return (
        f"{figures['started_at'][:10]}, {figures['size']} run of {figures['seconds'] // 60} min: {about['cpus']} CPUs"
        f" ({about['machine']}), PostgreSQL {about['postgresql']} (fsync {about['fsync']}, synchronous_commit"
        f" {about['synchronous_commit']}; one commit takes {about['commit_ms']} ms), Python {about['python']}, Django"
        f" {about['django']}. Load average at the start: {about['load_average'][0]}."
    )


def tables(figures: Mapping[str, Any]) -> str:
    """One line a question; what stands beside our figure is how many times better it is than theirs."""
    lines = [facts(figures)]
    for name, run in figures["benchmarks"].items():
        lines += [
            "",
            f"### {name}",
            "",
            *([f"From a run of its own: {run['run']}", ""] if "run" in run else []),
            "| what | ours | plain SQL | others | target |",
            "| --- | --- | --- | --- | --- |",
        ]
        rows = [Row.from_json(row) for row in run["rows"]]
        lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
        notes = dict.fromkeys(row.how for row in rows if row.how)
        lines += [line for note in notes for line in ("", note)]
    lines += [line for name, why in figures["failed"].items() for line in ("", f"`{name}` failed: {why}")]
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    others = [_beside(row, name, value) for name, value in row.peers.items()]
    verdict = "" if row.met is None else " ✓" if row.met else " ✗"
    return [
        text.replace("|", "\\|")
        for text in (
            row.what,
            f"{number(row.ours)} {row.unit}",
            "" if row.plain is None else f"{number(row.plain)} ({row.ratio(row.plain):.2f})",
            "<br>".join(others),
            row.target + verdict,
        )
    ]


def _beside(row: Row, name: str, value: float | str) -> str:
    if isinstance(value, str):
        return f"{name}: n/a, {value}"
    return f"{name}: {number(value)} ({row.ratio(value):.2f} ×)"


# -- the chart --------------------------------------------------------------------------------------------------------

# The first row of a benchmark that has peers to show: title, and the row's beginning.
PANELS = (
    ("scheduling", "due schedules fired", "Due schedules fired by one scheduler, a second (more is better)"),
    (
        "lateness",
        "50 schedules of one second, due time to job",
        "50 schedules of one second: lateness in ms, p50 (less is better)",
    ),
    ("wake", "trigger, LISTEN", "From a trigger in another process to the job, ms (less is better)"),
    ("worker", "no-op jobs run", "No-op jobs run by one worker, a second (more is better)"),
)
WIDTH, NAMES, VALUES, LINE, BAR, TITLE = 760, 220, 90, 24, 14, 44

# A card of its own, so that it can be read on whatever page it stands; it follows the reader's light or dark.
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.title { font-weight: 600; }
.card { fill: #ffffff; stroke: #d1d9e0; }
.ours { fill: #1a7f37; } .plain { fill: #8c959f; } .peer { fill: #54aeff; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .card { fill: #0d1117; stroke: #3d444d; }
  .ours { fill: #3fb950; } .plain { fill: #8b949e; } .peer { fill: #1f6feb; }
}
"""


def chart(figures: Mapping[str, Any]) -> str:
    """Horizontal bars, a panel for each question that has others beside us; each panel has a scale of its own."""
    parts, top = [], 16
    for name, beginning, title in PANELS:
        rows = [Row.from_json(row) for row in figures["benchmarks"].get(name, {}).get("rows", ())]
        row = next((row for row in rows if beginning in row.what), None)
        if row is not None:
            panel, height = _panel(row, title, top)
            parts.append(panel)
            top += height
    label = "pgwerk_django beside plain SQL and other libraries"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}" role="img"'
        f' aria-label="{label}">\n<title>{label}</title>\n<style>{STYLE}</style>\n'
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{top - 1}" rx="8"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _panel(row: Row, title: str, top: int) -> tuple[str, int]:
    bars = [("pgwerk_django", "ours", row.ours)]
    bars += [] if row.plain is None else [("plain SQL", "plain", row.plain)]
    bars += sorted(
        ((name, "peer", value) for name, value in row.peers.items() if not isinstance(value, str)),
        key=lambda bar: bar[2],
        reverse=row.more_is_better,
    )
    most = max(value for _, _, value in bars) or 1
    parts = [f'<text class="title" x="16" y="{top + 18}">{escape(title)}</text>']
    for n, (name, kind, value) in enumerate(bars):
        y = top + TITLE - 12 + n * LINE
        width = max(value / most * (WIDTH - NAMES - VALUES), 1)
        parts.append(
            f'<text x="{NAMES - 10}" y="{y + 12}" text-anchor="end">{escape(name)}</text>'
            f'<rect class="{kind}" x="{NAMES}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2"/>'
            f'<text x="{NAMES + width + 8:.1f}" y="{y + 12}">{number(value)}</text>'
        )
    return "\n".join(parts), TITLE + len(bars) * LINE
