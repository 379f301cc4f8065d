"""Many schedulers on one backlog: real `runscheduler` processes, all awake before the one instant at which all is due.

Throughput counts from that instant until another session sees the last schedule advanced; each one's share is what its
own log says that it handled. The numbers of schedulers take turns, so that a slow minute of the machine slows them all.
"""

import contextlib
import os
import re
import statistics
from typing import Any

from django.db import connection

from benchmarks.database import fill, fresh_database
from benchmarks.peer import connect
from benchmarks.processes import Running, runscheduler, until, until_they_live
from benchmarks.results import Given, Result, Row

SIZES: dict[str, dict[str, Any]] = {
    "full": {"due": 40_000, "rounds": 3, "crowds": (1, 2, 4, 8), "ahead": 4},
    "quick": {"due": 20_000, "rounds": 1, "crowds": (1, 2, 4, 8), "ahead": 4},
    "tiny": {"due": 400, "rounds": 1, "crowds": (1, 2), "ahead": 1.5},
}
MOST_UNEVEN = 0.2
BATCH = (
    250  # a share in steps of this: with the default of 1,000 eight schedulers could not share 40,000 within a fifth
)
HANDLED = re.compile(r" ticked .*\bschedules=(\d+)")


def run(given: Given) -> Result:
    size = SIZES[given.size]
    runs: dict[int, list[dict[str, Any]]] = {crowd: [] for crowd in size["crowds"]}
    with fresh_database():
        for _ in range(size["rounds"]):
            for crowd in runs:
                runs[crowd].append(backlog(crowd, size["due"], size["ahead"]))
                print(f"{crowd} schedulers: {runs[crowd][-1]}", flush=True)
    rates = {crowd: statistics.median(run["rate"] for run in of_one) for crowd, of_one in runs.items()}
    rows = [_row(crowd, rates, runs[crowd], size["due"]) for crowd in rates if crowd > 1]
    return Result(rows, {"due": size["due"], "batch": BATCH, "rates": rates, "runs": runs})


def _row(crowd: int, rates: dict[int, float], runs: list[dict[str, Any]], due: int) -> Row:
    uneven = statistics.median(run["uneven"] for run in runs)
    return Row(
        f"{crowd} schedulers on {due:,} due, of one scheduler's throughput",
        "× one scheduler's",
        rates[crowd] / rates[1],
        target=f"at least 1, each one's share within {MOST_UNEVEN:.0%} of even (it was {uneven:.0%})",
        met=rates[crowd] >= rates[1] and uneven <= MOST_UNEVEN,
        how=f"One alone: {rates[1]:,.0f} schedules a second. Shares of the last run: "
        + ", ".join(f"{share:.0%}" for share in runs[-1]["shares"]),
    )


def backlog(crowd: int, due: int, ahead: float) -> dict[str, Any]:
    fill(due)
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE _pgwerk_processes")
    with contextlib.ExitStack() as stack:
        schedulers = [stack.enter_context(runscheduler("--batch-size", BATCH)) for _ in range(crowd)]
        until_they_live(*schedulers)
        seconds = all_at_once(schedulers, ahead)
        # Before they are ended: what they say of their last tick is in the log as soon as it is committed, or just after.
        until(lambda: sum(map(handled, schedulers)) >= due, *schedulers, every=0.05, within=10)
        counts = [handled(one) for one in schedulers]
    shares = [count / sum(counts) for count in counts]
    return {
        "rate": due / seconds,
        "seconds": seconds,
        "shares": sorted(shares, reverse=True),
        "uneven": max(abs(share * crowd - 1) for share in shares),
    }


def all_at_once(schedulers: list[Running], ahead: float) -> float:
    """Seconds that it took from the one due time of all, which is further ahead than a poll is long."""

    def drained() -> bool:
        nonlocal seconds
        found = database.execute(
            """
            SELECT extract(epoch FROM clock_timestamp() - %s::timestamptz)
            WHERE NOT EXISTS (
                SELECT FROM _pgwerk_schedules
                WHERE (NOT paused OR triggered_at IS NOT NULL) AND least(CASE WHEN NOT paused THEN next_run_at END, triggered_at) <= %s
            )
            """,
            [instant, instant],
        ).fetchone()
        seconds = float(found[0]) if found else 0
        return found is not None

    seconds = 0.0
    with connect(os.environ["DATABASE_URL"]) as database:
        row = database.execute("SELECT clock_timestamp() + make_interval(secs => %s)", [ahead]).fetchone()
        instant = row[0] if row else None
        database.execute("UPDATE _pgwerk_schedules SET next_run_at = %s", [instant])
        database.execute("VACUUM ANALYZE _pgwerk_schedules")
        until(drained, *schedulers, every=0.01, within=300)
    return seconds


def handled(scheduler: Running) -> int:
    return sum(map(int, HANDLED.findall(scheduler.text())))
