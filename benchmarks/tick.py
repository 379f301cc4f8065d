"""What a tick costs: `.venv/bin/python benchmarks/tick.py [--quick] [--json PATH]` (Linux).

Drains due schedules with `Scheduler().tick()` and, alternating in the same run, with one plain SQL statement in batches
of 1,000. Machines are noisy, so the results are ratios within one run, from the medians of several rounds; the rates are
this machine's. Each round is a process of its own, so that its peak of memory is its own.
"""

import argparse
import json
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import django
from django.db import connection
from django.db.models.functions import Now

from benchmarks.database import ZONES, expressions, fill, fresh_database

BATCH = 1000
MIXES = {"half interval, half cron": 0.5, "interval only": 0.0, "cron only": 1.0}
LEAST_RATIO, MOST_AMONG, MOST_MEMORY_MB = 0.5, 2, 120

# The same work as one statement by hand, if every schedule were an interval (here a cron schedule counts as one of 60 s)
# and there were no windows, misfires, jitter or triggers: the same rows locked in the same way, the same look for an open
# job, the same columns written under the same key, the same tables with all their indexes and triggers.
PLAIN = f"""
WITH due AS MATERIALIZED (
    SELECT * FROM _pgwerk_schedules
    WHERE (NOT paused OR triggered_at IS NOT NULL) AND least(next_run_at, triggered_at) <= statement_timestamp()
    ORDER BY least(next_run_at, triggered_at) LIMIT {BATCH} FOR NO KEY UPDATE SKIP LOCKED
), inserted AS (
    INSERT INTO _pgwerk_jobs (
        key, schedule_id, schedule_name, due_at, kind, function, target, queue, priority, args, kwargs, meta,
        status, reason, max_attempts, backoff, timeout, result_ttl, failure_ttl, enqueued_at, run_at, result,
        finished_at, expires_at
    )
    SELECT
        name || '@' || to_char(next_run_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), due.id, name, next_run_at,
        'scheduled', function, target, queue, priority, args, kwargs, meta,
        CASE WHEN earlier.id IS NULL THEN 'READY' ELSE 'SKIPPED' END, '', max_attempts, backoff, timeout,
        result_ttl, failure_ttl, statement_timestamp(), statement_timestamp(), NULL, NULL, NULL
    FROM due
    LEFT JOIN LATERAL (
        SELECT j.id FROM _pgwerk_jobs j WHERE j.schedule_id = due.id AND j.status IN ('READY', 'RUNNING') LIMIT 1
    ) earlier ON due.overlap <> 'ALLOW'
    ORDER BY due.next_run_at
    ON CONFLICT (key) DO NOTHING
)
UPDATE _pgwerk_schedules AS s SET
    next_run_at = s.anchor_at + make_interval(secs => coalesce(s.interval, 60) * (
        floor(extract(epoch FROM statement_timestamp() - s.anchor_at) / coalesce(s.interval, 60)) + 1
    )),
    last_run_at = s.next_run_at, run_count = s.run_count + 1
FROM due WHERE s.id = due.id
"""


# -- in a process of its own ------------------------------------------------------------------------------------------


def ours(rows: int, **filled: float) -> dict[str, Any]:
    from pgwerk_django.scheduler import Scheduler

    tick = Scheduler().tick
    prepare(tick)
    fill(rows, **filled)
    return drained(tick)


def plain(rows: int, **filled: float) -> dict[str, Any]:
    def tick() -> int:
        with connection.cursor() as cursor:
            cursor.execute(PLAIN)
            return cursor.rowcount

    prepare(tick)
    fill(rows, **filled)
    return drained(tick)


def few_among(rows: int, *, times: int) -> dict[str, Any]:
    """A tick of 100 due schedules among `rows`, spread all over the table: the median of several."""
    from pgwerk_django.models import Schedule
    from pgwerk_django.scheduler import Scheduler

    tick = Scheduler().tick
    prepare(tick)
    fill(rows)
    first, last = (Schedule.objects.order_by(order).values_list("pk", flat=True)[0] for order in ("pk", "-pk"))
    seconds = []
    for shift in range(times):
        chosen = [first + shift + (last - first - times) * n // 100 for n in range(100)]
        changed = Schedule.objects.filter(pk__in=chosen).update(next_run_at=Now())
        assert changed == 100
        run = drained(tick)
        # Or a few more: those of a minute ago may be due again.
        assert 100 <= run["schedules"] < 110
        seconds.append(run["seconds"])
    return {**run, "seconds": statistics.median(seconds)}


def prepare(tick: Callable[[], int]) -> None:
    """Be as warm as a process that has been running: one full batch, and expressions parsed but no due time worked out."""
    from pgwerk_django.recurrence import Cron

    fill(BATCH, cron_share=0, earliest=-10, newest=-1)
    while tick():
        pass
    for expression in expressions():
        for zone in ZONES:
            Cron(expression, zone)


def drained(tick: Callable[[], int]) -> dict[str, Any]:
    ticks, schedules, started = [], 0, time.perf_counter()
    while True:
        begun = time.perf_counter()
        handled = tick()
        ticks.append(time.perf_counter() - begun)
        if not handled:
            break
        schedules += handled
    return {
        "seconds": time.perf_counter() - started,
        "schedules": schedules,
        "longest_tick": max(ticks),
        "memory_mb": peak_memory(),
    }


def peak_memory() -> float:
    # Not getrusage(): its maximum is inherited from the process that started this one.
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


# -- the rounds -------------------------------------------------------------------------------------------------------

Measure = tuple[Callable[..., dict[str, Any]], int, dict[str, Any]]


def in_turn(rounds: int, *measures: Measure) -> list[dict[str, Any]]:
    """Each of the measures once a round, so that a slow minute of the machine slows them all; then their medians."""
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawning, initializer=django.setup, max_tasks_per_child=1) as fresh_process:
        runs = [
            [fresh_process.submit(measure, rows, **options).result() for measure, rows, options in measures]
            for _ in range(rounds)
        ]
    return [summary(of_one) for of_one in zip(*runs, strict=True)]


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "schedules": min(run["schedules"] for run in runs),
        "seconds": statistics.median(run["seconds"] for run in runs),
        "rate": statistics.median(run["schedules"] / run["seconds"] for run in runs),
        "rates": [run["schedules"] / run["seconds"] for run in runs],
        "longest_tick": max(run["longest_tick"] for run in runs),
        "memory_mb": max(run["memory_mb"] for run in runs),
    }


def drains(rounds: int) -> Iterator[dict[str, Any]]:
    # Due within the last minute, each at an instant of its own, as a scheduler finds them that is a little behind.
    late = {"earliest": -50, "newest": -1}
    cases = [(rows, mix, late) for rows in (1_000, 10_000) for mix in MIXES]
    # A backlog: all due at once, and what an hour's outage leaves (misfires: two rows each where more than one passed).
    cases += [(100_000, "half interval, half cron", due) for due in (late, {"earliest": -3600, "newest": -1})]
    for rows, mix, due in cases:
        options = {"cron_share": MIXES[mix], **due}
        we, they = in_turn(rounds if rows < 100_000 else rounds // 3, (ours, rows, options), (plain, rows, options))
        # Or more: while a long drain goes on, the shortest intervals are due again.
        assert we["schedules"] >= rows <= they["schedules"]
        yield {
            "rows": rows,
            "mix": mix,
            "late_by_seconds": -due["earliest"],
            "ours": we,
            "plain": they,
            "ratio": we["rate"] / they["rate"],
        }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="3 rounds instead of 7")
    options.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    given = options.parse_args()
    rounds = 3 if given.quick else 7
    with fresh_database():
        print(f"{'due schedules':46} {'ours':>9} {'plain SQL':>10} {'ratio':>6} {'longest tick':>13} {'memory':>8}")
        found = []
        for case in drains(rounds):
            found.append(case)
            label = f"{case['rows']:,} {case['mix']}, {case['late_by_seconds']} s late"
            print(
                f"{label:46} {case['ours']['rate']:7,.0f}/s {case['plain']['rate']:8,.0f}/s {case['ratio']:6.2f}"
                f" {case['ours']['longest_tick'] * 1000:10.0f} ms {case['ours']['memory_mb']:5.0f} MB",
                flush=True,
            )
        few = {"times": 7 if given.quick else 15}
        small, large = in_turn(3, (few_among, 1_000, few), (few_among, 100_000, few))
    among = large["seconds"] / small["seconds"]
    print(
        f"\n100 due among 1,000: {small['seconds'] * 1000:.1f} ms, among 100,000: {large['seconds'] * 1000:.1f} ms;"
        f" {among:.2f} times as long (target: at most {MOST_AMONG})"
    )
    memory = max(run["memory_mb"] for run in [small, large, *(case["ours"] for case in found)])
    worst = min(case["ratio"] for case in found if case["mix"] == "half interval, half cron" and case["rows"] < 100_000)
    print(f"worst ratio of the mixed drains: {worst:.2f} (target: at least {LEAST_RATIO})")
    print(f"peak memory of a scheduler's process: {memory:.0f} MB (target: under {MOST_MEMORY_MB})")
    if given.json:
        figures = {"drains": found, "among": {"small": small, "large": large, "ratio": among}, "memory_mb": memory}
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
