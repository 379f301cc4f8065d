"""From what another process does to the job: a trigger, or a new row that is due, by raw SQL.

The clock starts before the statement is sent and stops when a third session hears that the job is committed. Between two
of them the scheduler is idle for a while of random length.
"""

import contextlib
import os
import random
import time
from collections.abc import Mapping
from typing import Any

import psycopg
from django.db import connection

from benchmarks.database import fresh_database
from benchmarks.observer import Observer, observer, percentile
from benchmarks.peer import Environment, PeerFailed, another_database, connect
from benchmarks.pgbouncer import NoBouncer, pgbouncer
from benchmarks.processes import ProcessFailed, runscheduler, until_they_live
from benchmarks.results import Given, Result, Row

SIZES: dict[str, dict[str, Any]] = {
    "full": {"listening": 100, "polled": 20, "peer": 12},
    "quick": {"listening": 30, "polled": 8, "peer": 5},
    "tiny": {"listening": 2, "polled": 1, "peer": 2},
}
MOST_MS, POLL_MS = 10, 1000
PEERS = ("pgwerk", "apscheduler")

_TRIGGER = "UPDATE _pgwerk_schedules SET triggered_at = statement_timestamp() WHERE name = 'sleepy'"
_INSERT = """
INSERT INTO _pgwerk_schedules (name, function, interval, timezone, origin, next_run_at)
VALUES ('new_' || gen_random_uuid(), 'shop.tasks.report', 86400, 'UTC', 'api', statement_timestamp())
"""
_SLEEPY = """
INSERT INTO _pgwerk_schedules (name, function, interval, timezone, origin, next_run_at)
VALUES ('sleepy', 'shop.tasks.report', 86400, 'UTC', 'api', statement_timestamp() + interval '1 day')
"""


def run(given: Given) -> Result:
    size = SIZES[given.size]
    found: dict[str, Any] = {}
    with fresh_database():
        found["trigger, LISTEN"] = ours(_TRIGGER, size["listening"], pause=0.3, PGWERK_LISTEN="default")
        if given.size != "tiny":  # where the code is that of the others
            found["new row, LISTEN"] = ours(_INSERT, size["listening"], pause=0.3, PGWERK_LISTEN="default")
            found["trigger, polling"] = ours(_TRIGGER, size["polled"], pause=1)
        try:
            with pgbouncer(os.environ["DATABASE_URL"]) as address:
                found["trigger, PgBouncer"] = ours(_TRIGGER, size["polled"], pause=1, DATABASE_URL=address)
        except NoBouncer as error:
            print(f"PgBouncer: n/a: {error}", flush=True)
        peers = {name: of_peer(name, given, size["peer"]) for name in given.among(dict.fromkeys(PEERS))}
    figures: dict[str, float | str] = {one["name"]: one.get("p50", one.get("why")) for one in peers.values()}
    rows = [
        Row(
            f"{what}: from the statement of another process to the job, p50",
            "ms",
            waits["p50"],
            peers=figures if what == "trigger, LISTEN" else {},
            more_is_better=False,
            target=f"under {MOST_MS} ms" if "LISTEN" in what else f"under the poll interval of {POLL_MS:,} ms",
            met=waits["p50"] < (MOST_MS if "LISTEN" in what else POLL_MS),
            how=f"The longest of {waits['times']}: {waits['most']:,.0f} ms. Raw SQL; pgwerk: its trigger's own UPDATE;"
            " APScheduler: its API, since it does not see raw SQL.",
        )
        for what, waits in found.items()
    ]
    return Result(rows, {**found, "peers": peers})


def ours(statement: str, times: int, *, pause: float, **environment: str) -> dict[str, Any]:
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE _pgwerk_schedules, _pgwerk_jobs, _pgwerk_processes")
        cursor.execute(_SLEEPY)
    url = os.environ["DATABASE_URL"]
    with observer(url, "_pgwerk_jobs", "NEW.due_at") as watching, runscheduler(**environment) as scheduler:
        until_they_live(scheduler)
        return waits(url, "_pgwerk_jobs", statement, watching, times, pause)


def waits(url: str, jobs: str, statement: str, watching: Observer, times: int, pause: float) -> dict[str, Any]:
    """What was there is deleted first: each round finds the table of jobs as the one before did."""
    found = []
    with connect(url) as session:
        for n in range(times + 1):
            session.execute(f"DELETE FROM {jobs}")  # type: ignore[arg-type]  # our own text
            time.sleep(random.uniform(0.05, 0.05 + pause))  # noqa: TID251  # idle is what is measured
            begun = time.perf_counter()
            session.execute(statement)  # type: ignore[arg-type]  # our own text
            if not list(watching.seen(within=30, at_most=1)):
                raise ProcessFailed("no job within 30 s")
            if n:  # the first one warms up
                found.append((time.perf_counter() - begun) * 1000)
    return summary(found)


def summary(found: list[float]) -> dict[str, Any]:
    told = {"times": len(found), "p50": percentile(found, 0.5), "p95": percentile(found, 0.95), "most": max(found)}
    print(", ".join(f"{name} {value:,.1f}" for name, value in told.items()), flush=True)
    return told


def of_peer(name: str, given: Given, times: int) -> Mapping[str, Any]:
    environment = Environment(name, given.peers_python)
    try:
        environment.install()
        with another_database() as url:
            measure = {"pgwerk": of_pgwerk, "apscheduler": of_apscheduler}[name]
            return {"name": environment.name, **measure(environment, url, times)}
    except (PeerFailed, ProcessFailed, psycopg.Error, OSError) as error:
        why = str(error).splitlines()[0]
        print(f"{name}: n/a: {why}", flush=True)
        return {"name": environment.name, "why": why}


def of_pgwerk(environment: Environment, url: str, times: int) -> dict[str, Any]:
    program, surroundings = ("-m", "benchmarks.peers.schedulers.pgwerk"), environment.surroundings(url)
    environment.run("python", *program, "fill", "1", "86400", env=surroundings)
    # What `Scheduler.trigger()` sends. Its key holds the day: a second trigger of the same day would find it taken.
    statement = "UPDATE pgwerk._pgwerk_schedules SET next_run_at = now()"
    with contextlib.ExitStack() as stack:
        watching = stack.enter_context(observer(url, "pgwerk._pgwerk_jobs", "now()"))
        stack.enter_context(environment.started("python", *program, "run", "1", "86400", environment=surroundings))
        if not list(watching.seen(within=30, at_most=1)):
            raise ProcessFailed("no job within 30 s")
        return waits(url, "pgwerk._pgwerk_jobs", statement, watching, times, pause=3)


def of_apscheduler(environment: Environment, url: str, times: int) -> dict[str, Any]:
    """From the schedule's due time, which is the moment before it is added."""
    program, surroundings = ("-m", "benchmarks.peers.schedulers.apscheduler"), environment.surroundings(url)
    environment.run("python", *program, "fill", "1", "86400", env=surroundings)
    with contextlib.ExitStack() as stack:
        watching = stack.enter_context(observer(url, "jobs", "NEW.scheduled_fire_time"))
        stack.enter_context(environment.started("python", *program, "run", "1", "86400", environment=surroundings))
        if not list(watching.seen(within=30, at_most=1)):
            raise ProcessFailed("no job within 30 s")
        stack.enter_context(
            environment.started("python", *program, "wake", str(times + 1), "86400", environment=surroundings)
        )
        found = [job.seen * 1000 for job in watching.seen(within=10 + times, at_most=times + 1)]
        if len(found) < 2:
            raise ProcessFailed(f"{len(found)} of {times + 1} jobs within {10 + times} s")
        return {**summary(found[1:]), "lost_wakes": times + 1 - len(found)}
