"""All benchmarks in one run, on one PostgreSQL: an embedded one, or the one that DATABASE_URL names (its role must be a superuser).

    python -m benchmarks [NAME ...] [--quick] [--peers A,B | --no-peers] [--json PATH] [--chart PATH]
    python -m benchmarks --write-docs PATH [PATH ...]

Each benchmark is a process of its own, with a database of its own. Other libraries are installed on first use, each into an
environment of its own below .venv-peers/; one that cannot be installed or measured is told as n/a, with the reason.
"""

import argparse
import contextlib
import datetime as dt
import importlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks import report
from benchmarks.database import machine, server, template
from benchmarks.processes import ROOT, last_line
from benchmarks.results import Given, Row, show

BENCHMARKS = {
    "tick": "a tick's throughput against plain SQL",
    "scheduling": "a scheduler's throughput against plain SQL and peers",
    "lateness": "how late 50 schedules of one second are",
    "wake": "from another process's trigger or row to the job",
    "crowd": "two, four and eight schedulers on one backlog",
    "million": "a million schedules, and what minutes of work do to the tables",
    "worker": "a worker's throughput, latency, memory and honesty, against peers",
    "targets": "what handing over costs",
    "idle": "what an idle scheduler costs",
    "admin": "the admin's pages with a million jobs",
    "metrics": "a scrape with a million jobs",
}
# Seconds for one benchmark, with what it installs: what takes longer hangs.
LIMITS = {"full": 2400, "quick": 1200, "tiny": 600}


def main() -> int:
    given = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that no process stays behind
    if given.write_docs:
        report.write_docs(report.together([json.loads(path.read_text()) for path in given.write_docs]))
        return 0
    if given.in_this_process:
        return here(given)
    return all_of(given)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"{name:12} {what}" for name, what in BENCHMARKS.items()),
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="one of those below (default: all)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="size", action="store_const", const="quick", default="full", help="in minutes")
    size.add_argument("--tiny", dest="size", action="store_const", const="tiny", help="whether it works, no figures")
    parser.add_argument("--peers", metavar="A,B", type=lambda text: text.split(","), help="these packages only")
    parser.add_argument("--no-peers", dest="peers", action="store_const", const=[], help="only ours and plain SQL")
    parser.add_argument(
        "--peers-python", metavar="PATH", help="for them (default: this one, or a newer one if it must be)"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    parser.add_argument("--chart", type=Path, metavar="PATH", help="write a chart of them there (SVG)")
    parser.add_argument(
        "--write-docs",
        type=Path,
        nargs="+",
        metavar="JSON",
        help="bring docs/benchmarks.md up to these figures; what several runs measured, the last one tells",
    )
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if unknown := set(given.names) - set(BENCHMARKS):
        parser.error(f"{min(unknown)!r} is none of {', '.join(BENCHMARKS)}")
    return given


def here(given: argparse.Namespace) -> int:
    found = {}
    for name in given.names:
        begun = time.monotonic()
        result = importlib.import_module(f"benchmarks.{name}").run(Given(given.size, given.peers, given.peers_python))
        found[name] = {
            "rows": [row.as_json() for row in result.rows],
            "seconds": round(time.monotonic() - begun, 1),
            "details": result.details,
        }
    given.json.write_text(json.dumps(found, default=str))
    return 0


def groups(names: list[str], size: str) -> list[list[str]]:
    """Which of them share a process: none where figures count, so that none inherits memory or connections."""
    if size != "tiny":
        return [[name] for name in names]
    alone = ("targets",)  # it has settings of its own
    return [part for part in ([n for n in names if n not in alone], [n for n in names if n in alone]) if part]


def all_of(given: argparse.Namespace) -> int:
    """Whatever ends it early, what was found until then is told and written."""
    begun, names = dt.datetime.now(dt.UTC), given.names or list(BENCHMARKS)
    figures: dict[str, Any] = {"size": given.size, "started_at": begun.isoformat(timespec="seconds")}
    found: dict[str, Any] = {}
    failed = dict.fromkeys(names, "interrupted")
    try:
        with server():
            figures["machine"] = machine()
            print(", ".join(f"{name} {value}" for name, value in figures["machine"].items()), flush=True)
            with template():
                for group in groups(names, given.size):
                    print("", *(f"== {name}: {BENCHMARKS[name]}" for name in group), sep="\n", flush=True)
                    try:
                        found |= in_a_process(group, given)
                    except Failed as error:
                        failed |= dict.fromkeys(group, str(error))
                        print(f"{', '.join(group)} FAILED: {error}", flush=True)
                        continue
                    for name in group:
                        del failed[name]
                        for row in found[name]["rows"]:
                            print(show(Row.from_json(row)), flush=True)
    finally:
        # The ratios first, then what they come from.
        figures["benchmarks"] = {name: {key: run[key] for key in ("rows", "seconds")} for name, run in found.items()}
        figures["failed"] = failed
        figures["seconds"] = round((dt.datetime.now(dt.UTC) - begun).total_seconds())
        figures["details"] = {name: run["details"] for name, run in found.items()}
        keep(figures, given)
    return 1 if failed else 0


def keep(figures: dict[str, Any], given: argparse.Namespace) -> None:
    tell(figures)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    if given.chart:
        given.chart.write_text(report.chart(figures))


def tell(figures: dict[str, Any]) -> None:
    rows = [Row.from_json(row) for run in figures["benchmarks"].values() for row in run["rows"]]
    missed = [row for row in rows if row.met is False]
    judged = sum(row.met is not None for row in rows)
    print(f"\n{figures['seconds']} s; {judged - len(missed)} of {judged} targets met")
    for row in missed:
        print(f"missed: {show(row)}")
    for name, why in figures["failed"].items():
        print(f"failed: {name}: {why}")


class Failed(Exception):
    pass


def in_a_process(names: list[str], given: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="pgwerk-bench-") as folder:
        path = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "benchmarks", *names, "--in-this-process", "--json", str(path)]
        command += [] if given.size == "full" else [f"--{given.size}"]
        command += (
            [] if given.peers is None else [f"--peers={','.join(given.peers)}"] if given.peers else ["--no-peers"]
        )
        command += [f"--peers-python={given.peers_python}"] if given.peers_python else []
        errors = Path(folder) / "stderr"
        with running(command, errors) as process:
            try:
                code = process.wait(timeout=LIMITS[given.size])
            except subprocess.TimeoutExpired:
                raise Failed(f"not done after {LIMITS[given.size]} s") from None
        if code:
            print(errors.read_text(), file=sys.stderr)
            raise Failed(f"exit code {code}: {last_line(errors.read_text())}")
        found: dict[str, Any] = json.loads(path.read_text())
        return found


@contextlib.contextmanager
def running(command: list[str], errors: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Ended with all that it started, whatever becomes of us: its own processes are in groups of their own."""
    with errors.open("wb") as stderr:
        process = subprocess.Popen(command, cwd=ROOT, stderr=stderr)
    try:
        yield process
    finally:
        if process.poll() is None:
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
