"""How fast what is due becomes jobs: our scheduler's process, one that is a plain SQL statement, and the peers' schedulers.

N schedules are due; then a scheduler's process is started. Its rate counts from the first job that it wrote (by the
database's clock, so its start is not in it) until all N can be seen by another session, or until the patience is over:
then it is of those that were fired. Nobody runs the jobs meanwhile. Each contestant starts with a new, empty database.
"""

import contextlib
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg

from benchmarks.database import fill, fresh_database
from benchmarks.peer import Environment, PeerFailed, another_database, connect
from benchmarks.processes import ProcessFailed, Running, plain_scheduler, runscheduler, until
from benchmarks.redis import NoRedis, redis_server
from benchmarks.results import Given, Result, Row

SIZES: dict[str, dict[str, Any]] = {
    "full": {"due": 10_000, "rounds": 3, "patience": 30},
    "quick": {"due": 2_000, "rounds": 2, "patience": 10},
    "tiny": {"due": 100, "rounds": 1, "patience": 10},
}
HOURLY = 3600
Fired = Callable[[], tuple[int, float]]


@dataclass(frozen=True)
class Peer:
    """Another scheduler, at its best that its documentation allows for this question."""

    module: str
    how: str
    # SQL: jobs written, and seconds since the first, by the database's clock. None: they are in its broker.
    fired: str | None


PEERS = {
    "pgwerk": Peer(
        "pgwerk",
        "intervals; its defaults",
        "SELECT count(*), extract(epoch FROM clock_timestamp() - min(enqueued_at)) FROM pgwerk._pgwerk_jobs",
    ),
    "apscheduler": Peer(
        "apscheduler",
        "intervals; SQLAlchemy data store and psycopg event broker, scheduler role only",
        "SELECT count(*), extract(epoch FROM clock_timestamp() - min(created_at)) FROM jobs",
    ),
    "procrastinate": Peer(
        "procrastinate",
        "cron expressions declared in code, fired when its worker starts",
        "SELECT count(*), extract(epoch FROM clock_timestamp() - min(at)) FROM procrastinate_events",
    ),
    "chancy": Peer(
        "chancy",
        "cron expressions; all that is due in one transaction",
        "SELECT count(*), extract(epoch FROM clock_timestamp() - min(created_at)) FROM chancy_jobs",
    ),
    "django-celery-beat": Peer(
        "django_celery_beat",
        "intervals; messages to Redis, its rows are written each three minutes and not counted",
        None,
    ),
    "django-scheduled-tasks": Peer(
        "django_scheduled_tasks",
        "intervals declared in code, django-tasks-db as backend",
        "SELECT count(*), extract(epoch FROM clock_timestamp() - min(enqueued_at)) FROM django_tasks_database_dbtaskresult",
    ),
}


def run(given: Given) -> Result:
    size = SIZES[given.size]
    due, rounds, patience = size["due"], size["rounds"], size["patience"]
    with fresh_database():
        rates: dict[str, list[float]] = {"ours": [], "plain": []}
        for _ in range(rounds):
            rates["ours"].append(rate(due, runscheduler()))
            rates["plain"].append(rate(due, plain_scheduler()))
        found = {name: peer_rate(name, given, due, patience) for name in given.among(PEERS)}
    row = Row(
        f"{due:,} due schedules fired by one scheduler",
        "schedules/s",
        statistics.median(rates["ours"]),
        statistics.median(rates["plain"]),
        {run["name"]: run.get("rate", run.get("why")) for run in found.values()},
        how="From the first job written until another session sees the last; half intervals, half cron expressions. "
        + " ".join(f"{run['name']}: {run['how']}." for run in found.values()),
    )
    return Result([row], {"due": due, "rates": rates, "peers": found})


def rate(due: int, scheduler: "contextlib.AbstractContextManager[Running]") -> float:
    fill(due, earliest=-50, newest=-1)
    with connect(os.environ["DATABASE_URL"]) as database, scheduler as process:
        statement = "SELECT count(*), extract(epoch FROM clock_timestamp() - min(enqueued_at)) FROM _pgwerk_jobs"
        done, seconds = watch(lambda: _asked(database, statement), process, due, patience=60)
    return done / seconds


def peer_rate(name: str, given: Given, due: int, patience: float) -> dict[str, Any]:
    environment, peer = Environment(name, given.peers_python), PEERS[name]
    try:
        environment.install()
        done, seconds = fire(environment, peer, due, patience)
    except (PeerFailed, ProcessFailed, NoRedis, psycopg.Error, OSError) as error:
        why = str(error).splitlines()[0]
        print(f"{name}: n/a: {why}", flush=True)
        return {"name": environment.name, "why": why, "how": peer.how}
    how = peer.how if done >= due else f"{peer.how}; {done:,} fired when the {patience} s of patience were over"
    print(f"{environment.name}: {done / seconds:,.0f}/s ({how})", flush=True)
    return {"name": environment.name, "rate": done / seconds, "fired": done, "seconds": seconds, "how": how}


def fire(environment: Environment, peer: Peer, due: int, patience: float) -> tuple[int, float]:
    program = ("-m", f"benchmarks.peers.schedulers.{peer.module}")
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(another_database())
        more, broker = {}, None
        if peer.fired is None:
            broker = stack.enter_context(redis_server())
            more = {"PGWERK_BENCH_BROKER": f"{broker}/0"}
        surroundings = environment.surroundings(url, **more)
        environment.run("python", *program, "fill", str(due), str(HOURLY), env=surroundings)
        database = stack.enter_context(connect(url))
        database.execute("VACUUM ANALYZE")
        fired = in_redis(broker) if broker else (lambda: _asked(database, str(peer.fired)))
        arguments = (*program, "run", str(due), str(HOURLY))
        with environment.started("python", *arguments, environment=surroundings) as process:
            return watch(fired, process, due, patience)


def watch(fired: Fired, process: Running, due: int, patience: float) -> tuple[int, float]:
    """Wait for the first job (its start, and what it reads then, take what they take), then for all of them."""
    found = (0, 0.0)

    def look() -> bool:
        nonlocal found
        found = fired()
        return found[0] >= due or (found[0] > 0 and found[1] > patience)

    until(look, process, every=0.02, within=120 + patience)
    return found


def _asked(database: psycopg.Connection[Any], statement: str) -> tuple[int, float]:
    count, seconds = database.execute(statement).fetchone() or (0, 0)
    return count, float(seconds or 0)


def in_redis(address: str) -> Fired:
    """By our own clock, since the messages tell no time: from the first look that saw one."""
    import redis

    client = redis.Redis.from_url(f"{address}/0")
    first: list[float] = []

    def fired() -> tuple[int, float]:
        count = int(client.llen("celery"))
        if count and not first:
            first.append(time.perf_counter())
        return count, time.perf_counter() - first[0] if first else 0

    return fired
