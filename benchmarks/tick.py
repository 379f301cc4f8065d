"""What a tick costs: drains of due schedules with `Scheduler().tick()` and, in turns, with one plain SQL statement.

Both in batches of 1,000. Machines are noisy, so the results are ratios within one run, from the medians of several rounds;
the rates are this machine's. Each round is a process of its own, so that its peak of memory is its own.
"""

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
from benchmarks.results import Given, Result, Row

BATCH = 1000
MIXED = "half interval, half cron"
MIXES = {MIXED: 0.5, "interval only": 0.0, "cron only": 1.0}
SIZES: dict[str, dict[str, Any]] = {
    "full": {
        "rows": (1_000, 10_000),
        "mixes": tuple(MIXES),
        "rounds": 5,
        "backlog": 100_000,
        "outages": (50, 3600),
        "backlog_rounds": 2,
        "few": (1_000, 100_000),
        "times": 15,
        "own": True,
    },
    "quick": {
        "rows": (1_000, 10_000),
        "mixes": tuple(MIXES),
        "rounds": 3,
        "backlog": 20_000,
        "outages": (50, 3600),
        "backlog_rounds": 1,
        "few": (1_000, 20_000),
        "times": 7,
        "own": True,
    },
    "tiny": {
        "rows": (200,),
        "mixes": (MIXED,),
        "rounds": 1,
        "backlog": 300,
        "outages": (3600,),
        "backlog_rounds": 1,
        "few": (150, 400),
        "times": 1,
        "own": False,
    },
}
LEAST_RATIO, MOST_AMONG, MOST_MEMORY_MB = 0.6, 2, 120

# The same work as one statement by hand, if every schedule were an interval (here a cron schedule counts as one of 60 s)
# and there were no windows, misfires, jitter or triggers: the same rows locked in the same way, the same look for an open
# job, the same columns written under the same key, the same tables with all their indexes and triggers.
PLAIN = f"""
WITH due AS MATERIALIZED (
    SELECT * FROM _pgwerk_schedules
    WHERE (NOT paused OR triggered_at IS NOT NULL) AND least(CASE WHEN NOT paused THEN next_run_at END, triggered_at) <= statement_timestamp()
    ORDER BY least(CASE WHEN NOT paused THEN next_run_at END, triggered_at) LIMIT {BATCH} FOR NO KEY UPDATE SKIP LOCKED
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
    prepare(plain_tick)
    fill(rows, **filled)
    return drained(plain_tick)


def plain_tick() -> int:
    with connection.cursor() as cursor:
        cursor.execute(PLAIN)
        return int(cursor.rowcount)


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


def in_turn(rounds: int, *measures: Measure, own: bool = True) -> list[dict[str, Any]]:
    """Each of the measures once a round, so that a slow minute of the machine slows them all; then their medians.

    Each in a process of its own, unless memory does not matter: then all in one.
    """
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        1, mp_context=spawning, initializer=django.setup, max_tasks_per_child=1 if own else None
    ) as fresh_process:
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


def drains(size: dict[str, Any]) -> Iterator[dict[str, Any]]:
    # Due within the last minute, each at an instant of its own, as a scheduler finds them that is a little behind.
    late = {"earliest": -50, "newest": -1}
    cases = [(rows, mix, late, size["rounds"]) for rows in size["rows"] for mix in size["mixes"]]
    # A backlog: all due at once, and what an hour's outage leaves (misfires: two rows each where more than one passed).
    backlogs = [{"earliest": -seconds, "newest": -1} for seconds in size["outages"]]
    cases += [(size["backlog"], MIXED, due, size["backlog_rounds"]) for due in backlogs]
    for rows, mix, due, rounds in cases:
        options = {"cron_share": MIXES[mix], **due}
        we, they = in_turn(rounds, (ours, rows, options), (plain, rows, options), own=size["own"])
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


def run(given: Given) -> Result:
    size = SIZES[given.size]
    with fresh_database():
        found = []
        for case in drains(size):
            found.append(case)
            print(f"{case['rows']:,} {case['mix']}, {case['late_by_seconds']} s late: {case['ratio']:.2f}", flush=True)
        few = {"times": size["times"]}
        among = [(few_among, rows, few) for rows in size["few"]]
        small, large = in_turn(size["rounds"], *among, own=size["own"])
    memory = max(each["memory_mb"] for each in [small, large, *(case["ours"] for case in found)])
    return Result(
        [
            *map(_row, found),
            Row(
                f"100 due among {size['few'][1]:,}, of those among {size['few'][0]:,}",
                "× as long",
                large["seconds"] / small["seconds"],
                more_is_better=False,
                target=f"at most {MOST_AMONG}",
                met=large["seconds"] <= MOST_AMONG * small["seconds"],
            ),
            Row(
                "peak memory of a scheduler's process",
                "MB",
                memory,
                more_is_better=False,
                target=f"under {MOST_MEMORY_MB}",
                met=memory < MOST_MEMORY_MB,
            ),
        ],
        {"drains": found, "among": {"small": small, "large": large}, "memory_mb": memory},
    )


def _row(case: dict[str, Any]) -> Row:
    judged = case["late_by_seconds"] < 3600
    return Row(
        f"a tick's drain of {case['rows']:,}, {case['mix']}" + ("" if judged else ", after an hour's outage"),
        "schedules/s",
        case["ours"]["rate"],
        case["plain"]["rate"],
        target=f"at least {LEAST_RATIO} of plain SQL" if judged else "",
        met=case["ratio"] >= LEAST_RATIO if judged else None,
        how=f"In one process; the longest tick took {case['ours']['longest_tick'] * 1000:.0f} ms."
        + ("" if judged else " Plain SQL knows no misfires: it writes one row where we write two."),
    )
