"""What a scrape costs with 100,000 schedules and 1,000,000 jobs: as they are mostly history, and as they all wait.

python -m benchmarks.metrics [--schedules N] [--jobs N] [--rounds N]
"""

import argparse
import statistics
import time

import psycopg
from django.db import connection

from benchmarks.admin import JOBS
from benchmarks.database import fill, fresh_database

MOST_MILLISECONDS = 1000  # in the worst of them

# In 100 queues of three priorities, a tenth of the jobs for later; every schedule due at once.
_ALL_WAIT = """
UPDATE _pgwerk_schedules SET next_run_at = statement_timestamp() - interval '1 s' * (id % 3600), replan = false;
UPDATE _pgwerk_jobs SET status = 'READY', queue = 'queue-' || ('x' || substr(md5(id::text), 1, 6))::bit(24)::int % 100,
    priority = ('x' || substr(md5(id::text), 7, 6))::bit(24)::int % 3,
    run_at = statement_timestamp() + (('x' || substr(md5(id::text), 13, 6))::bit(24)::int % 1000 - 900) * interval '1 s'
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=100_000)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with fresh_database(shared_buffers="512MB"):
        print(f"{options.schedules:,} schedules, {options.jobs:,} jobs")
        fill(options.schedules, earliest=1)
        with connection.cursor() as cursor:
            cursor.execute("SET synchronous_commit = off")
            cursor.execute(JOBS, {"jobs": options.jobs})
            cursor.execute("UPDATE _pgwerk_schedules SET paused = true WHERE id % 100 = 7")
            cursor.execute("INSERT INTO _pgwerk_processes (role, host) VALUES ('scheduler', 'a'), ('worker', 'a')")
            cursor.execute("VACUUM ANALYZE _pgwerk_schedules, _pgwerk_jobs")
            usual = measure("mostly history", options.rounds)
            cursor.execute(_ALL_WAIT)
            unswept = measure("all wait, not vacuumed yet", options.rounds)
            cursor.execute("VACUUM ANALYZE _pgwerk_schedules, _pgwerk_jobs")
            worst = measure("all wait", options.rounds)
    slow = max(usual, unswept, worst) > MOST_MILLISECONDS
    print(f"\nat most {MOST_MILLISECONDS} ms: {'no' if slow else 'yes, all of them'}")
    return 1 if slow else 0


def measure(what: str, rounds: int) -> float:
    """Of whole scrapes, with the connection that each makes; and of their statements."""
    from pgwerk_django import gauges
    from pgwerk_django.loop import connection_parameters

    taken = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        readings = gauges.measure("default")
        taken.append((time.perf_counter() - started) * 1000)
    print(
        f"\n{what}: {len(readings)} series, median {statistics.median(taken[1:]):.0f} ms, slowest {max(taken[1:]):.0f} ms"
    )
    with psycopg.connect(**connection_parameters("default")) as session:
        session.execute(gauges._SETTINGS)
        for name in ("_DUE", "_SCHEDULES", "_PLACES", "_RUNNING", "_OUTBOX"):
            started = time.perf_counter()
            rows = session.execute(getattr(gauges, name)).fetchall()
            milliseconds = (time.perf_counter() - started) * 1000
            print(f"  {name.strip('_').lower():<10} {milliseconds:6.1f} ms {len(rows):5} rows")
            if name == "_PLACES":
                started = time.perf_counter()
                counted = gauges._counted(session, [row[:2] for row in rows])
                print(f"  {'counted':<10} {(time.perf_counter() - started) * 1000:6.1f} ms {len(counted):5} rows")
    return statistics.median(taken[1:])


if __name__ == "__main__":
    raise SystemExit(main())
