"""What handing over costs, with Debian's redis-server for the targets that have their broker there.

For each target, jobs that a tick has written are claimed, sent and marked by one thread, as a scheduler does it; beside it,
in the same run, the engine's own bare send of as many, one after the other, and the claims and marks alone. The rates are
this machine's; what carries over are the ratios.
"""

import asyncio
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from django.db import connection

from benchmarks.database import fresh_database
from benchmarks.redis import redis_server
from benchmarks.results import Given, Result, Row

SIZES: dict[str, dict[str, int]] = {
    "full": {"jobs": 2000, "rounds": 3},
    "quick": {"jobs": 500, "rounds": 1},
    "tiny": {"jobs": 20, "rounds": 1},
}
TARGETS = {
    "celery": ("celery", "in_celery"),
    "django_tasks: django-tasks-db": ("django_tasks", "in_database"),
    "django_tasks: django-tasks-rq": ("django_tasks", "in_rq"),
    "pgwerk": ("pgwerk", "in_pgwerk"),
}


def write(target: str, function: str, jobs: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE _pgwerk_jobs")
        cursor.execute(
            "INSERT INTO _pgwerk_jobs (key, target, function, args)"
            " SELECT 'job@' || n || %s, %s, %s, jsonb_build_array(n) FROM generate_series(1, %s) AS n",
            [str(time.time()), target, f"benchmarks.engine_tasks.{function}", jobs],
        )
        cursor.execute("ANALYZE _pgwerk_jobs")


def timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def ours(target: str, function: str, jobs: int) -> float:
    from pgwerk_django.handover import hand_over
    from pgwerk_django.models import Job

    write(target, function, jobs)
    seconds = timed(lambda: hand_over("bench", using="default"))
    assert Job.objects.filter(status="FORWARDED").count() == jobs
    return jobs / seconds


def claims_and_marks(target: str, function: str, jobs: int) -> float:
    from pgwerk_django.handover import BATCH
    from pgwerk_django.outbox import Outbox

    def work() -> None:
        outbox = Outbox("bench", using="default")
        while claimed := outbox.claim(target, BATCH):
            outbox.forward([(job, "id") for job in claimed])

    write(target, function, jobs)
    return jobs / timed(work)


def bare(target: str, function: str, jobs: int) -> float:
    from benchmarks import engine_tasks

    task: Any = getattr(engine_tasks, function)
    if target == "pgwerk":
        return jobs / timed(lambda: asyncio.run(_to_pgwerk(jobs)))
    send = task.delay if target == "celery" else task.enqueue
    return jobs / timed(lambda: [send(number) for number in range(jobs)])


async def _to_pgwerk(jobs: int) -> None:
    import psycopg

    from benchmarks.engine_tasks import in_pgwerk
    from pgwerk_django.targets.pgwerk import werk

    async with werk() as app:
        connection = await psycopg.AsyncConnection.connect(app.dsn, autocommit=True)
        async with connection:
            for number in range(jobs):
                await app.enqueue(in_pgwerk, number, _conn=connection)


def run(given: Given) -> Result:
    size = SIZES[given.size]
    found: dict[str, dict[str, float]] = {}
    with redis_server() as url:
        os.environ["PGWERK_BENCH_REDIS"] = url
        with fresh_database(migrate=True):
            for name, (target, function) in TARGETS.items():
                rates: dict[str, list[float]] = {"ours": [], "bare": [], "claims": []}
                for _ in range(size["rounds"]):
                    rates["ours"].append(ours(target, function, size["jobs"]))
                    rates["bare"].append(bare(target, function, size["jobs"]))
                    rates["claims"].append(claims_and_marks(target, function, size["jobs"]))
                found[name] = {key: statistics.median(values) for key, values in rates.items()}
                print(f"{name}: {found[name]}", flush=True)
            connection.close()
    rows = [
        Row(
            f"handed over to {name}",
            "jobs/s",
            rates["ours"],
            peers={"its own bare send": rates["bare"]},
            how=f"One thread; claims and marks alone: {rates['claims']:,.0f} a second.",
        )
        for name, rates in found.items()
    ]
    return Result(rows, dict(found))
