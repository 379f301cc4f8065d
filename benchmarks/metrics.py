"""What a scrape costs with 100,000 schedules and 1,000,000 jobs: as they are mostly history, and as they all wait."""

import statistics
import time
from typing import Any

from django.db import connection

from benchmarks.admin import JOBS, SIZES
from benchmarks.database import fill, fresh_database
from benchmarks.results import Given, Result, Row

MOST_MILLISECONDS = 1000

# In 100 queues of three priorities, a tenth of the jobs for later; every schedule due at once.
_ALL_WAIT = """
UPDATE _pgwerk_schedules SET next_run_at = statement_timestamp() - interval '1 s' * (id % 3600), replan = false;
UPDATE _pgwerk_jobs SET status = 'READY', queue = 'queue-' || ('x' || substr(md5(id::text), 1, 6))::bit(24)::int % 100,
    priority = ('x' || substr(md5(id::text), 7, 6))::bit(24)::int % 3,
    expires_at = NULL,
    run_at = statement_timestamp() + (('x' || substr(md5(id::text), 13, 6))::bit(24)::int % 1000 - 900) * interval '1 s'
"""


def run(given: Given) -> Result:
    size = SIZES[given.size]
    with fresh_database():
        fill(size["schedules"], earliest=1)
        with connection.cursor() as cursor:
            cursor.execute("SET synchronous_commit = off")
            cursor.execute(JOBS, {"jobs": size["jobs"]})
            cursor.execute("UPDATE _pgwerk_schedules SET paused = true WHERE id % 100 = 7")
            cursor.execute("INSERT INTO _pgwerk_processes (role, host) VALUES ('scheduler', 'a'), ('worker', 'a')")
            cursor.execute("VACUUM ANALYZE _pgwerk_schedules, _pgwerk_jobs")
            scrapes = {"mostly history": scrape(size["rounds"])}
            cursor.execute(_ALL_WAIT)
            scrapes["all wait, not vacuumed yet"] = scrape(size["rounds"])
            cursor.execute("VACUUM ANALYZE _pgwerk_schedules, _pgwerk_jobs")
            scrapes["all wait"] = scrape(size["rounds"])
    what, slowest = max(scrapes.items(), key=lambda item: item[1]["median"])
    row = Row(
        f"the slowest scrape, with {size['schedules']:,} schedules and {size['jobs']:,} jobs",
        "ms",
        slowest["median"],
        more_is_better=False,
        target=f"at most {MOST_MILLISECONDS} ms",
        met=slowest["median"] <= MOST_MILLISECONDS,
        how=f"Of {', '.join(scrapes)}; median of {size['rounds']}, with a connection for each: {what}.",
    )
    return Result([row], scrapes)


def scrape(rounds: int) -> dict[str, Any]:
    from pgwerk_django import gauges

    taken = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        readings = gauges.measure("default")
        taken.append((time.perf_counter() - started) * 1000)
    return {"series": len(readings), "median": statistics.median(taken[1:]), "slowest": max(taken[1:])}
