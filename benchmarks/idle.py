"""What a scheduler costs while nothing is due: `.venv/bin/python benchmarks/idle.py [--seconds 20] [--json PATH]` (Linux).

Runs a real `manage.py runscheduler` beside 10,000 schedules that are due tomorrow. Its statements are counted in the
server's own log (so this needs the embedded server), its CPU time is what the kernel says of the process.
"""

import argparse
import collections
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from django.db import connection

from benchmarks.database import fill, fresh_database

ROOT = Path(__file__).resolve().parent.parent
SCHEDULES = 10_000
MOST_STATEMENTS, MOST_CPU = 2, 0.005  # a second; the kernel counts CPU in hundredths of a second
STATEMENT = re.compile(r"^benchmark LOG:  (?:statement|execute [^:]*):\s*(\w+[^\n]{0,60})", re.MULTILINE)


def cpu_seconds(pid: int) -> float:
    # What follows the name in parentheses, which may hold anything: fields 14 and 15 are user and system time.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_for_beat(process: "subprocess.Popen[bytes]") -> None:
    """Started means: synced, and its row is in the table."""
    deadline = time.monotonic() + 30
    with connection.cursor() as cursor:
        while time.monotonic() < deadline and process.poll() is None:
            cursor.execute("SELECT count(*) FROM _pgwerk_processes")
            if cursor.fetchone()[0]:
                return
            time.sleep(0.1)  # noqa: TID251  # another process writes it
    raise SystemExit(f"runscheduler did not start (exit code {process.poll()})")


def measure(process: "subprocess.Popen[bytes]", log: IO[str], seconds: float) -> dict[str, object]:
    wait_for_beat(process)
    time.sleep(2)  # noqa: TID251  # past what it does once, at its start
    log.seek(0, os.SEEK_END)
    cpu, started = cpu_seconds(process.pid), time.monotonic()
    time.sleep(seconds)  # noqa: TID251  # the time of the measurement
    cpu, elapsed = cpu_seconds(process.pid) - cpu, time.monotonic() - started
    statements = STATEMENT.findall(log.read())
    return {
        "schedules": SCHEDULES,
        "seconds": elapsed,
        "statements": len(statements),
        "statements_per_second": len(statements) / elapsed,
        "cpu_seconds_per_second": cpu / elapsed,
        "kinds": collections.Counter(statements),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seconds", type=float, default=20, help="how long to watch (default: %(default)s)")
    options.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    given = options.parse_args()
    os.environ.pop("DATABASE_URL", None)
    with fresh_database(log_statement="all", log_line_prefix="%a ") as server:
        fill(SCHEDULES, earliest=86400, newest=2 * 86400)
        process = subprocess.Popen(
            [sys.executable, ROOT / "example_project" / "manage.py", "runscheduler", "--verbosity=0"],
            env={**os.environ, "PGAPPNAME": "benchmark"},
        )
        try:
            with server.log.open() as log:
                figures = measure(process, log, given.seconds)
        finally:
            process.terminate()
            process.wait()
    print(
        f"{SCHEDULES:,} schedules, none due, {figures['seconds']:.0f} s:"
        f" {figures['statements_per_second']:.2f} statements/s (target: at most {MOST_STATEMENTS}),"
        f" {figures['cpu_seconds_per_second'] * 1000:.1f} ms of CPU a second (target: none to measure,"
        f" less than {MOST_CPU * 1000:.0f})"
    )
    for kind, count in figures["kinds"].most_common():
        print(f"{count:6} {kind}")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
