"""How late a job is there: one scheduler's process beside 50 schedules of one second, spread evenly over the second.

By PostgreSQL's clock, from the due time until the statement that writes the job begins, and until another session hears that
it was committed: in between, the disk has its say. The schedulers are measured one after the other; what they write in their
first seconds is left out. Nobody runs the jobs.
"""

import contextlib
import os
from dataclasses import dataclass
from typing import Any

import psycopg
from django.db import connection

from benchmarks.database import fresh_database
from benchmarks.observer import Observer, observer, percentile
from benchmarks.peer import Environment, PeerFailed, another_database
from benchmarks.processes import ProcessFailed, Running, plain_scheduler, runscheduler, until_they_live
from benchmarks.results import Given, Result, Row

SIZES: dict[str, dict[str, Any]] = {
    "full": {"seconds": 60, "peer_seconds": 20, "warm_up": 3},
    "quick": {"seconds": 12, "peer_seconds": 8, "warm_up": 2},
    "tiny": {"seconds": 1, "peer_seconds": 1, "warm_up": 0.2},
}
SCHEDULES = 50
MOST_MS = {"p50": 3, "p99": 10}
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "most": 1}


@dataclass(frozen=True)
class Peer:
    module: str
    how: str
    table: str
    due: str  # SQL, of the row NEW


PEERS = {
    "pgwerk": Peer(
        "pgwerk",
        "its defaults",
        "pgwerk._pgwerk_jobs",
        # What it has not advanced yet.
        "(SELECT next_run_at FROM pgwerk._pgwerk_schedules WHERE name = NEW.schedule_name)",
    ),
    "apscheduler": Peer(
        "apscheduler", "SQLAlchemy data store and psycopg event broker", "jobs", "NEW.scheduled_fire_time"
    ),
    "procrastinate": Peer(
        "procrastinate",
        "cron expressions with seconds; it sleeps half a second longer on purpose",
        "procrastinate_jobs",
        "to_timestamp((NEW.args->>'timestamp')::float8)",
    ),
}
NOT_MEASURED = {
    "chancy": "its cron plugin looks at whole seconds apart (by default at 60)",
    "django-celery-beat": "its jobs are not in PostgreSQL",
    "django-scheduled-tasks": "it looks once a second",
}

_FILL = """
INSERT INTO _pgwerk_schedules (name, function, interval, timezone, origin, overlap, anchor_at, next_run_at)
SELECT 'second_' || n, 'shop.tasks.second', 1, 'UTC', 'api', 'ALLOW', first, first
FROM (SELECT n, statement_timestamp() + make_interval(secs => 2 + n / %(count)s::float8) AS first
      FROM generate_series(1, %(count)s) AS n) AS rows
"""


def run(given: Given) -> Result:
    size = SIZES[given.size]
    with fresh_database():
        found = {"ours": ours(size), "plain": plain(size)}
        peers = {name: of_peer(name, given, size) for name in given.among(PEERS)}
    rows = [row(kind, share, found, peers, given) for kind in ("seen", "acted") for share in MOST_MS]
    return Result(rows, {**found, "peers": peers})


def row(kind: str, share: str, found: dict[str, Any], peers: dict[str, Any], given: Given) -> Row:
    key = f"{kind} {share}"
    figures: dict[str, float | str] = {one["name"]: one.get(key, one.get("why")) for one in peers.values()}
    mine, most = found["ours"][key], MOST_MS[share]
    what = {"seen": "job committed and heard of", "acted": "scheduler's statement begins"}
    return Row(
        f"{SCHEDULES} schedules of one second, due time to {what[kind]}, {share}",
        "ms",
        mine,
        found["plain"][key],
        {**figures, **given.among(NOT_MEASURED)},
        more_is_better=False,
        target=f"under {most} ms" if kind == "seen" else "",
        met=mine < most if kind == "seen" else None,
        how="By the clock of PostgreSQL's host; what is committed has waited for the disk once, or more often.",
    )


def fill(count: int = SCHEDULES) -> None:
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE _pgwerk_schedules, _pgwerk_jobs, _pgwerk_processes")
        cursor.execute(_FILL, {"count": count})
        cursor.execute("VACUUM ANALYZE _pgwerk_schedules, _pgwerk_jobs")


def ours(size: dict[str, Any]) -> dict[str, Any]:
    with our_jobs() as watching, runscheduler() as scheduler:
        until_they_live(scheduler)
        fill()
        return measured(watching, scheduler, size["warm_up"], size["seconds"])


def plain(size: dict[str, Any]) -> dict[str, Any]:
    fill()
    with our_jobs() as watching, plain_scheduler() as process:
        return measured(watching, process, size["warm_up"], size["peer_seconds"])


def our_jobs() -> "contextlib.AbstractContextManager[Observer]":
    return observer(os.environ["DATABASE_URL"], "_pgwerk_jobs", "NEW.due_at", "NEW.enqueued_at")


def of_peer(name: str, given: Given, size: dict[str, Any]) -> dict[str, Any]:
    environment, peer = Environment(name, given.peers_python), PEERS[name]
    program = ("-m", f"benchmarks.peers.schedulers.{peer.module}")
    try:
        environment.install()
        with contextlib.ExitStack() as stack:
            url = stack.enter_context(another_database())
            surroundings = environment.surroundings(url)
            environment.run("python", *program, "fill", str(SCHEDULES), "1", env=surroundings)
            watching = stack.enter_context(observer(url, peer.table, peer.due))
            arguments = (*program, "run", str(SCHEDULES), "1")
            process = stack.enter_context(environment.started("python", *arguments, environment=surroundings))
            found = measured(watching, process, size["warm_up"], size["peer_seconds"])
    except (PeerFailed, ProcessFailed, psycopg.Error, OSError) as error:
        why = str(error).splitlines()[0]
        print(f"{name}: n/a: {why}", flush=True)
        return {"name": environment.name, "why": why}
    return {**found, "name": environment.name, "how": peer.how}


def measured(watching: Observer, process: Running, warm_up: float, seconds: float) -> dict[str, Any]:
    """From the first job on: a warm-up, then what counts."""
    if not list(watching.seen(within=30, at_most=1)):
        process.check()
        raise ProcessFailed("wrote no job within 30 s")
    for _ in watching.seen(within=warm_up):
        pass
    jobs = list(watching.seen(within=seconds))
    process.check()
    if not jobs:
        raise ProcessFailed(f"wrote no job within {seconds} s after its first")
    found: dict[str, Any] = {"jobs": len(jobs), "seconds": seconds}
    for name in ("seen", "acted"):
        late = [getattr(job, name) * 1000 for job in jobs]
        found |= {f"{name} {key}": percentile(late, share) for key, share in SHARES.items()}
    print(", ".join(f"{name} {value:,.2f}" for name, value in found.items()), flush=True)
    return found
