"""What handing over costs: `python -m benchmarks.targets [--jobs N] [--rounds N] [--json PATH]` (Debian's redis-server).

For each target, jobs that a tick has written are claimed, sent and marked by one thread, as a scheduler does it; beside it,
in the same run, the engine's own bare send of as many, one after the other, and the claims and marks alone. The rates are
this machine's; what carries over are the ratios.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from django.db import connection

from benchmarks.database import fresh_database

TARGETS = {
    "celery": ("celery", "in_celery"),
    "django_tasks: django-tasks-db": ("django_tasks", "in_database"),
    "django_tasks: django-tasks-rq": ("django_tasks", "in_rq"),
    "pgwerk": ("pgwerk", "in_pgwerk"),
}


@contextlib.contextmanager
def redis() -> Iterator[str]:
    if shutil.which("redis-server") is None:
        raise SystemExit("benchmarks.targets needs redis-server: on Debian, apt-get install redis-server")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="pgwerk-bench-") as folder:
        arguments = ["--port", str(port), "--save", "", "--bind", "127.0.0.1", "--dir", folder]
        server = subprocess.Popen(["redis-server", *arguments], stdout=subprocess.DEVNULL)
        try:
            pause = threading.Event()
            while socket.socket().connect_ex(("127.0.0.1", port)) != 0:
                pause.wait(0.02)
            yield f"redis://127.0.0.1:{port}"
        finally:
            server.kill()
            server.wait()


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    with redis() as url:
        os.environ["PGWERK_BENCH_REDIS"] = url
        with fresh_database():
            for name, (target, function) in TARGETS.items():
                rates: dict[str, list[float]] = {"ours": [], "bare": [], "claims": []}
                for _ in range(options.rounds):
                    rates["ours"].append(ours(target, function, options.jobs))
                    rates["bare"].append(bare(target, function, options.jobs))
                    rates["claims"].append(claims_and_marks(target, function, options.jobs))
                found[name] = {key: statistics.median(values) for key, values in rates.items()}
                row = found[name]
                print(
                    f"{name}: {row['ours']:,.0f} handed over a second, {row['ours'] / row['bare']:.2f} of its own bare send"
                    f" ({row['bare']:,.0f}); claims and marks alone {row['claims']:,.0f}"
                )
            connection.close()
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
