"""A million schedules and four schedulers: the moment at which 10,000 are due, then what minutes of work do to the tables.

The load is the mix that `benchmarks.database.fill` makes, first due within twenty minutes, so hundreds of schedules a second
and more as time goes by. Each few seconds: dead rows, sizes, autovacuum's runs, how long the idle pass's one statement
takes, and the memory of each scheduler. At the start and at the end, 10,000 schedules are made due at one instant.

Beside it, on a smaller table: whether a fillfactor would help. A tick moves an indexed column, so that its update can never be
HOT; what is left is whether free space in the page of the old row makes it cheaper.
"""

import contextlib
import os
import statistics
import time
from typing import Any

import psycopg
from django.db import connection, transaction

from benchmarks.database import fill, fresh_database
from benchmarks.observer import percentile
from benchmarks.peer import connect
from benchmarks.processes import Running, resident_mb, runscheduler, until, until_they_live
from benchmarks.results import Given, Result, Row

SIZES: dict[str, dict[str, Any]] = {
    "full": {
        "schedules": 1_000_000,
        "due": 10_000,
        "seconds": 600,
        "every": 10,
        "ahead": 4,
        "schedulers": 4,
        "fill": 100_000,
        "rounds": 6,
    },
    "quick": {
        "schedules": 200_000,
        "due": 10_000,
        "seconds": 60,
        "every": 5,
        "ahead": 4,
        "schedulers": 4,
        "fill": 50_000,
        "rounds": 3,
    },
    "tiny": {
        "schedules": 2_000,
        "due": 200,
        "seconds": 1,
        "every": 0.5,
        "ahead": 1.5,
        "schedulers": 1,
        "fill": 500,
        "rounds": 1,
    },
}
MOST_P99_SECONDS, MOST_GROWTH_MB, MOST_DEAD = 2, 10, 0.1
FILLFACTORS = (100, 80)
CALM = 1.25  # an idle pass at the end may take so many times as long as at the start


def run(given: Given) -> Result:
    size = SIZES[given.size]
    with fresh_database():
        fill(size["schedules"], earliest=10, newest=1200)
        with contextlib.ExitStack() as stack:
            schedulers = [stack.enter_context(runscheduler()) for _ in range(size["schedulers"])]
            until_they_live(*schedulers)
            plan = explained()
            first = instant(size["due"], size["ahead"], schedulers)
            samples = churn(size["seconds"], size["every"], schedulers)
            last = instant(size["due"], size["ahead"], schedulers)
        factors = fillfactors(size["fill"], size["rounds"])
    details = {"plan": plan, "first": first, "last": last, "samples": samples, "fillfactors": factors}
    for part in (first, last):
        print({name: value for name, value in part.items() if name != "memory_mb"}, flush=True)
    print(plan, flush=True)
    return Result(_rows(size, details), details)


def _rows(size: dict[str, Any], details: dict[str, Any]) -> list[Row]:
    first, last, samples = details["first"], details["last"], details["samples"]
    begin, end = samples[0], samples[-1]
    growth = max(after - before for before, after in zip(first["memory_mb"], last["memory_mb"], strict=True))
    dead = statistics.median(sample["dead"] for sample in samples[len(samples) // 2 :]) / size["schedules"]
    looks = [statistics.median(sample["look_ms"] for sample in part) for part in (samples[:3], samples[-3:])]
    what = f"{size['schedules']:,} schedules"
    worst = max(first["p99"], last["p99"])
    of_all = f"{end['updates'] - begin['updates']:,} updates in {size['seconds']} s"
    factors = {factor: found["rate"] for factor, found in details["fillfactors"].items()}
    (_, full), (low, roomy) = factors.items()
    return [
        Row(
            f"{what}, {size['due']:,} due at one instant, {size['schedulers']} schedulers: p99 lateness",
            "s",
            worst,
            more_is_better=False,
            target=f"under {MOST_P99_SECONDS} s, led by the index pgwerk_due",
            met=worst < MOST_P99_SECONDS and "pgwerk_due" in details["plan"],
            how=f"The worse of the first instant and the one after {size['seconds']} s of work; p50 {last['p50']:.2f} s.",
        ),
        Row(
            f"{what}: growth of a scheduler's memory under load",
            "MB",
            growth,
            more_is_better=False,
            target=f"under {MOST_GROWTH_MB} MB",
            met=growth < MOST_GROWTH_MB,
            how=f"Resident, the one that grew most, from the first instant on; they end at {max(last['memory_mb']):.0f} MB.",
        ),
        Row(
            f"{what}: dead rows under load, for each live one",
            "",
            dead,
            more_is_better=False,
            target=f"under {MOST_DEAD}",
            met=dead < MOST_DEAD,
            how=f"{of_all}, {end['hot'] - begin['hot']:,} of them HOT; autovacuum came {end['vacuums'] - begin['vacuums']}"
            f" times; the table grew from {begin['table_mb']:.0f} to {end['table_mb']:.0f} MB, pgwerk_due from"
            f" {begin['due_index_mb']:.1f} to {end['due_index_mb']:.1f} MB.",
        ),
        Row(
            f"{what}: the idle pass's one statement, at the end",
            "ms",
            looks[1],
            more_is_better=False,
            target=f"at most {CALM} times as long as at the start ({looks[0]:.2f} ms)",
            met=looks[1] <= looks[0] * CALM,
        ),
        Row(
            f"Drains of {size['fill']:,} schedules with fillfactor {low}, of those with 100",
            "× as fast",
            roomy / full,
            how="No target: the default stays unless this is well above 1.",
        ),
    ]


# -- one instant ------------------------------------------------------------------------------------------------------


def instant(due: int, ahead: float, schedulers: list[Running]) -> dict[str, Any]:
    """Lateness of each job due then: by when another session could see so many."""
    seen: list[tuple[float, int]] = []

    def all_there() -> bool:
        row = database.execute(
            "SELECT extract(epoch FROM clock_timestamp() - %s::timestamptz), count(*) FROM _pgwerk_jobs WHERE due_at = %s",
            [at, at],
        ).fetchone()
        assert row is not None
        seen.append((float(row[0]), row[1]))
        return bool(row[1] >= due)

    with connect(os.environ["DATABASE_URL"]) as database:
        # So that counting the jobs of one instant takes no scan of them all: the benchmark's own index.
        database.execute("CREATE INDEX IF NOT EXISTS bench_due_at ON _pgwerk_jobs (due_at) WHERE due_at IS NOT NULL")
        at = _make_due(database, due, ahead)
        until(all_there, *schedulers, every=0.02, within=120)
    late: list[float] = []
    for seconds, count in seen:
        late += [seconds] * (count - len(late))
    return {
        "due": due,
        "p50": percentile(late, 0.5),
        "p99": percentile(late, 0.99),
        "most": max(late),
        "memory_mb": [resident_mb(one.pid) or 0 for one in schedulers],
    }


def _make_due(database: psycopg.Connection[Any], due: int, ahead: float) -> Any:
    """Spread all over the table; of those that are not due before anyway."""
    row = database.execute("SELECT clock_timestamp() + make_interval(secs => %s)", [ahead]).fetchone()
    at = row[0] if row else None
    changed = database.execute(
        """
        UPDATE _pgwerk_schedules SET next_run_at = %(at)s WHERE id IN (
            SELECT id FROM _pgwerk_schedules WHERE next_run_at > %(at)s ORDER BY md5(id::text) LIMIT %(due)s
        )
        """,
        {"at": at, "due": due},
    ).rowcount
    assert changed == due, (changed, due)
    return at


def explained() -> str:
    """The plan of the statement that claims what is due, as a tick sends it."""
    from pgwerk_django import conf
    from pgwerk_django.models import Schedule

    with transaction.atomic(), connection.cursor() as cursor:
        statement, parameters = (
            Schedule.objects.due().claim(conf.current().BATCH_SIZE).query.get_compiler("default").as_sql()
        )
        cursor.execute(f"EXPLAIN {statement}", parameters)
        return "\n".join(line for (line,) in cursor.fetchall())


# -- minutes of it ----------------------------------------------------------------------------------------------------

_SAMPLE = """
SELECT n_dead_tup, n_tup_upd, n_tup_hot_upd, autovacuum_count,
    pg_table_size(relid), pg_indexes_size(relid), pg_relation_size('pgwerk_due'),
    (SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = '_pgwerk_jobs')
FROM pg_stat_user_tables WHERE relname = '_pgwerk_schedules'
"""
_MB = 1024 * 1024


def churn(seconds: float, every: float, schedulers: list[Running]) -> list[dict[str, Any]]:
    begun, samples = time.monotonic(), [sample(schedulers, 0)]
    while (elapsed := time.monotonic() - begun) < seconds:
        time.sleep(min(every, seconds - elapsed))  # noqa: TID251  # the interval of the measurement
        samples.append(sample(schedulers, time.monotonic() - begun))
    return samples


def sample(schedulers: list[Running], elapsed: float) -> dict[str, Any]:
    for one in schedulers:
        one.check()
    with connection.cursor() as cursor:
        cursor.execute(_SAMPLE)
        dead, updates, hot, vacuums, table, indexes, due_index, jobs = cursor.fetchone()
    return {
        "seconds": round(elapsed, 1),
        "dead": dead,
        "updates": updates,
        "hot": hot,
        "jobs": jobs,
        "vacuums": vacuums,
        "table_mb": table / _MB,
        "indexes_mb": indexes / _MB,
        "due_index_mb": due_index / _MB,
        "look_ms": statistics.median(look() for _ in range(5)),
        "memory_mb": [round(resident_mb(one.pid) or 0, 1) for one in schedulers],
    }


def look() -> float:
    from pgwerk_django.models import Schedule

    begun = time.perf_counter()
    Schedule.objects.look()
    return (time.perf_counter() - begun) * 1000


# -- fillfactor -------------------------------------------------------------------------------------------------------


def fillfactors(rows: int, rounds: int) -> dict[int, dict[str, Any]]:
    """Each round drains all schedules once with each fillfactor, in turns; the tables grow as they do in service."""
    found: dict[int, list[dict[str, Any]]] = {factor: [] for factor in FILLFACTORS}
    for _ in range(rounds):
        for factor in FILLFACTORS:
            found[factor].append(drained(rows, factor))
    return {
        factor: {
            "rate": statistics.median(run["rate"] for run in runs),
            "hot_share": max(run["hot_share"] for run in runs),
            "table_mb": runs[-1]["table_mb"],
        }
        for factor, runs in found.items()
    }


def drained(rows: int, factor: int) -> dict[str, Any]:
    from pgwerk_django.scheduler import Scheduler

    tick = Scheduler().tick
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE _pgwerk_schedules SET (fillfactor = {factor})")
        fill(rows, cron_share=0, earliest=-50, newest=-1)
        updates_before, hot_before, _ = _updated(cursor)
        begun, handled = time.perf_counter(), 0
        while done := tick():
            handled += done
        seconds = time.perf_counter() - begun
        updates, hot, size = _updated(cursor)
    return {
        "rate": handled / seconds,
        "hot_share": (hot - hot_before) / (updates - updates_before),
        "table_mb": size / _MB,
    }


def _updated(cursor: Any) -> tuple[int, int, int]:
    """Updates so far, how many of them were HOT, and the table's size."""
    cursor.execute("SELECT pg_stat_force_next_flush()")
    cursor.execute(
        "SELECT n_tup_upd, n_tup_hot_upd, pg_table_size(relid) FROM pg_stat_user_tables WHERE relname = '_pgwerk_schedules'"
    )
    updates, hot, size = cursor.fetchone()
    return updates, hot, size
