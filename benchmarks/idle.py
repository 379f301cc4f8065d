"""What a scheduler costs while nothing is due: a real `runscheduler` beside 10,000 schedules that are due tomorrow.

Its statements are counted in the server's own log, which only the embedded server's owner can read; its CPU time is what the
kernel says of the process.
"""

import collections
import os
import re
import time
from pathlib import Path
from typing import Any

from benchmarks.database import LOG, fill, fresh_database
from benchmarks.processes import Running, cpu_seconds, runscheduler, until_they_live
from benchmarks.results import Given, Result, Row

SIZES: dict[str, dict[str, Any]] = {
    "full": {"schedules": 10_000, "seconds": 20},
    "quick": {"schedules": 10_000, "seconds": 10},
    "tiny": {"schedules": 100, "seconds": 1},
}
MOST_STATEMENTS, MOST_CPU = 2, 0.005  # a second; the kernel counts CPU in hundredths of a second
STATEMENT = re.compile(r"^benchmark LOG:  (?:statement|execute [^:]*):\s*(\w+[^\n]{0,60})", re.MULTILINE)


def run(given: Given) -> Result:
    size, log = SIZES[given.size], os.environ.get(LOG)
    with fresh_database():
        fill(size["schedules"], earliest=86400, newest=2 * 86400)
        telling = {"PGAPPNAME": "benchmark", "PGOPTIONS": "-c log_statement=all"} if log else {}
        with runscheduler("--verbosity=0", **telling) as scheduler:
            found = measure(scheduler, Path(log) if log else None, size["seconds"])
    rows = [
        Row(
            f"an idle scheduler beside {size['schedules']:,} schedules: CPU",
            "of a CPU",
            found["cpu"],
            more_is_better=False,
            target=f"at most {MOST_CPU}",
            met=found["cpu"] <= MOST_CPU,
        )
    ]
    if log:
        rows.append(
            Row(
                f"an idle scheduler beside {size['schedules']:,} schedules: statements",
                "a second",
                found["statements"] / found["seconds"],
                more_is_better=False,
                target=f"at most {MOST_STATEMENTS}",
                met=found["statements"] <= MOST_STATEMENTS * found["seconds"],
            )
        )
    return Result(rows, found)


def measure(scheduler: Running, log: Path | None, seconds: float) -> dict[str, Any]:
    until_they_live(scheduler)
    time.sleep(min(2, seconds))  # noqa: TID251  # past what it does once, at its start
    begin = log.stat().st_size if log else 0
    cpu, started = cpu_seconds(scheduler.pid), time.monotonic()
    time.sleep(seconds)  # noqa: TID251  # the time of the measurement
    cpu, elapsed = cpu_seconds(scheduler.pid) - cpu, time.monotonic() - started
    scheduler.check()
    said = log.read_bytes()[begin:].decode(errors="replace") if log else ""
    statements = STATEMENT.findall(said)
    return {
        "seconds": elapsed,
        "cpu": cpu / elapsed,
        "statements": len(statements),
        "kinds": collections.Counter(statements),
    }
