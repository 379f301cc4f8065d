"""What the worker can do, in real `manage.py runworker` processes with their defaults where nothing else is said.

Throughput is measured in turns with plain SQL and with other libraries. Everything the worker ran is counted: what is lost
or runs twice is a target missed, as is a worker that fails.
"""

import collections
import contextlib
import json
import os
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from django.db import connection, transaction

from benchmarks import functions
from benchmarks.database import fresh_database
from benchmarks.peer import Environment, PeerFailed, another_database, connect
from benchmarks.processes import LONGEST, ProcessFailed, Running, family, manage, until
from benchmarks.results import Given, Result, Row

SIZES: dict[str, dict[str, Any]] = {
    "full": {"jobs": 5_000, "rounds": 3, "starts": 60, "polled": 20, "sleepers": 10_000, "many": 50_000},
    "quick": {"jobs": 5_000, "rounds": 1, "starts": 20, "polled": 6, "sleepers": 2_000, "many": 10_000},
    "tiny": {"jobs": 50, "rounds": 1, "starts": 1, "polled": 0, "sleepers": 100, "many": 100},
}
AT_ONCE, NAP = 100, 0.1
PATIENCE = 60  # seconds, with a peer
SLOW = 5  # seconds: a peer that takes longer is measured in one round only
LEAST_OF_PGQUEUER, MOST_START_MS, MOST_TIMES_PERFECT, MOST_GROWTH_MB = 1, 10, 1.5, 5


# -- other libraries --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peer:
    """A library beside us, run as its documentation has it: its own worker, with its defaults."""

    package: str
    module: str  # `python -m MODULE 5000` makes its tables and as many jobs
    worker: tuple[str, ...]
    timing: str  # SQL: jobs finished, and seconds from the first claim to the last finish, by what it records of them
    how: str  # what its defaults come to
    environment: Mapping[str, str] = field(default_factory=dict)


PGQUEUER = {
    "package": "pgqueuer",
    "module": "benchmarks.peers.pgqueuer",
    "worker": ("python", "-m", "benchmarks.peers.pgqueuer"),
    # It deletes what is done: what remains is the log.
    "timing": """
        SELECT count(*) FILTER (WHERE status = 'successful'), extract(
            epoch FROM max(created) FILTER (WHERE status = 'successful') - min(created) FILTER (WHERE status = 'picked')
        ) FROM pgqueuer_log
    """,
}
CHANCY = {
    "package": "chancy",
    "module": "benchmarks.peers.chancy",
    "worker": ("chancy", "--app=benchmarks.peers.chancy.app", "worker", "start"),
    # Its `completed_at` is up to a second older than the write that says so: the clock is read once all can be seen.
    "timing": """
        SELECT count(*) FILTER (WHERE state = 'succeeded'), extract(epoch FROM clock_timestamp() - min(started_at))
        FROM chancy_jobs
    """,
}
PEERS = {
    "pgqueuer": Peer(**PGQUEUER, how="async, one process, batches of 10, asyncpg"),
    "pgqueuer-psycopg": Peer(
        **PGQUEUER, how="async, one process, batches of 10, our driver", environment={"DRIVER": "psycopg"}
    ),
    "chancy": Peer(**CHANCY, how="a process for each CPU, eager polling"),
    "chancy-async": Peer(
        **CHANCY, how="async, one process, 100 at once, eager polling", environment={"EXECUTOR": "async"}
    ),
    "procrastinate": Peer(
        "procrastinate",
        "benchmarks.peers.procrastinate",
        ("procrastinate", "--app=benchmarks.peers.procrastinate.app", "worker"),
        """
        SELECT count(*) FILTER (WHERE type = 'succeeded'), extract(
            epoch FROM max(at) FILTER (WHERE type = 'succeeded') - min(at) FILTER (WHERE type = 'started')
        ) FROM procrastinate_events
        """,
        "async, one process, one at a time",
    ),
    "django-tasks-db": Peer(
        "django-tasks-db",
        "benchmarks.peers.django_tasks_db",
        ("python", "-m", "benchmarks.peers.django_tasks_db", "db_worker"),
        """
        SELECT count(*) FILTER (WHERE status = 'SUCCESSFUL'), extract(epoch FROM max(finished_at) - min(started_at))
        FROM django_tasks_database_dbtaskresult
        """,
        "one process, one at a time",
    ),
    "pgwerk": Peer(
        "pgwerk",
        "benchmarks.peers.pgwerk",
        ("werk", "worker", "benchmarks.peers.pgwerk:app"),
        """
        SELECT count(*) FILTER (WHERE status = 'complete'), extract(epoch FROM max(completed_at) - min(started_at))
        FROM pgwerk._pgwerk_jobs
        """,
        "async, one process, 10 at once",
    ),
}


class Contestant:
    """A peer in its environment: a callable that measures one run of it."""

    def __init__(self, name: str, python: str | None, jobs: int) -> None:
        self.name = name
        self.peer = PEERS[name]
        self._environment = Environment(self.peer.package, python)
        self._jobs = jobs

    @property
    def version(self) -> str:
        return self._environment.version

    def __call__(self) -> dict[str, Any]:
        self._environment.install()
        with another_database() as url:
            surroundings = self._environment.surroundings(url, **self.peer.environment)
            self._environment.run("python", "-m", self.peer.module, str(self._jobs), env=surroundings)
            with connect(url) as database:
                database.execute("VACUUM ANALYZE")
                with self._environment.started(*self.peer.worker, environment=surroundings) as worker:
                    return self._watch(worker, database)

    def _watch(self, worker: Running, database: psycopg.Connection[Any]) -> dict[str, Any]:
        def finished() -> bool:
            done, seconds = database.execute(self.peer.timing).fetchone() or (0, 0)
            result.update(seconds=float(seconds or 0), successful=done)
            return bool(done >= self._jobs)

        result: dict[str, Any] = {}
        try:
            until(finished, worker, every=0.1, within=PATIENCE)
        except (ProcessFailed, psycopg.Error) as error:
            raise PeerFailed(
                f"{result.get('successful', 0):,} of {self._jobs:,} jobs finished: {str(error).splitlines()[0]}"
            ) from error
        return {**result, "rate": self._jobs / result["seconds"]}


# -- our own processes ------------------------------------------------------------------------------------------------


def runworker(*arguments: object, **environment: str) -> "contextlib.AbstractContextManager[Running]":
    return manage("runworker", *arguments, **environment)


def burst(*arguments: object, workers: int = 1) -> float:
    """Drain the table with real workers; the seconds that took, from their start to the end of the last."""
    begun = time.perf_counter()
    with contextlib.ExitStack() as stack:
        everyone = [stack.enter_context(runworker("--burst", *arguments)) for _ in range(workers)]
        for worker in everyone:
            try:
                worker.process.wait(timeout=LONGEST)
            except subprocess.TimeoutExpired as error:
                raise ProcessFailed(f"still running after {LONGEST} s") from error
            worker.check(ended=(0,))
        return time.perf_counter() - begun


# -- our table --------------------------------------------------------------------------------------------------------

_FILL = """
INSERT INTO _pgwerk_jobs (key, function, args)
SELECT 'job-' || n, %(function)s, replace(%(args)s, '{key}', 'job-' || n)::jsonb FROM generate_series(1, %(count)s) AS n
"""


def fill(count: int, function: Callable[..., object], *args: object) -> None:
    """Have exactly `count` jobs, all READY; `{key}` in an argument becomes the job's key."""
    path = f"{function.__module__}.{function.__qualname__}"
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE _pgwerk_jobs")
        cursor.execute(_FILL, {"count": count, "function": path, "args": json.dumps(args)})
        cursor.execute("VACUUM ANALYZE _pgwerk_jobs")


def account(jobs: int) -> dict[str, Any]:
    """What became of the jobs: lost are those that did not end well, twice those that took another attempt.

    To be claimed again is no fault: what waits for too long in one worker's hands is handed back for others.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT count(*) FILTER (WHERE status = 'SUCCESSFUL' AND finished_at IS NOT NULL AND claims > 0),
                coalesce(sum(attempt - 1) FILTER (WHERE attempt > 1), 0),
                coalesce(extract(epoch FROM max(finished_at) - min(started_at)), 0)
            FROM _pgwerk_jobs
            """
        )
        successful, twice, seconds = cursor.fetchone()
    return {"jobs": jobs, "lost": jobs - successful, "twice": int(twice), "seconds": float(seconds)}


# The same work by hand: the same rows locked in the same way, the same columns written, under the same guard, in the same
# table with all its indexes. Nothing is run in between.
_CLAIM = """
WITH picked AS MATERIALIZED (
    SELECT id FROM _pgwerk_jobs
    WHERE queue = 'default' AND status = 'READY' AND run_at <= statement_timestamp() AND target = 'worker'
    ORDER BY priority DESC, run_at LIMIT 100 FOR UPDATE SKIP LOCKED
)
UPDATE _pgwerk_jobs AS job SET
    status = 'RUNNING', attempt = attempt + 1, claims = claims + 1, started_at = statement_timestamp(),
    lease_until = statement_timestamp() + interval '60 s', worker_id = 1, worker_name = 'by hand'
FROM picked WHERE job.id = picked.id
RETURNING job.id, job.claims, job.function, job.args, job.kwargs
"""
_FINISH = """
UPDATE _pgwerk_jobs AS job SET
    status = 'SUCCESSFUL', result = 'null', error = '', finished_at = statement_timestamp(),
    expires_at = statement_timestamp() + interval '7 days', lease_until = NULL
FROM unnest(%s::uuid[], %s::integer[]) AS mine (id, claims)
WHERE job.id = mine.id AND job.status = 'RUNNING' AND job.claims = mine.claims AND job.worker_id = 1
RETURNING job.id
"""


# -- throughput -------------------------------------------------------------------------------------------------------


def plain(jobs: int) -> dict[str, Any]:
    fill(jobs, functions.nothing)
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as database:
        begun = time.perf_counter()
        while claimed := database.execute(_CLAIM, prepare=True).fetchall():
            ids, claims = [row[0] for row in claimed], [row[1] for row in claimed]
            database.execute(_FINISH, [ids, claims], prepare=True)
        seconds = time.perf_counter() - begun
    return {**account(jobs), "seconds": seconds, "rate": jobs / seconds}


def ours(jobs: int) -> dict[str, Any]:
    """Two measures. `rate` is the one to compare: from the first claim until anyone can see the last job finished."""
    fill(jobs, functions.nothing)
    with runworker("--burst") as worker:
        seconds = drain_seconds(worker)
        worker.process.wait(timeout=LONGEST)
        worker.check(ended=(0,))
    run = account(jobs)
    return {**run, "seconds": seconds, "rate": jobs / seconds, "recorded_rate": jobs / run["seconds"]}


def drain_seconds(worker: Running) -> float:
    """Asked of small indexes, by the database's clock. A claim is as old as its lease says: `started_at` is later."""
    from pgwerk_django import conf

    def claimed() -> bool:
        nonlocal first
        statement = "SELECT min(lease_until) - %s * interval '1 s' FROM _pgwerk_jobs WHERE status = 'RUNNING'"
        first = database.execute(statement, [conf.current().LEASE]).fetchone()[0]
        return first is not None

    def drained() -> bool:
        nonlocal seconds
        statement = """
            SELECT extract(epoch FROM clock_timestamp() - %s)
            WHERE NOT EXISTS (SELECT FROM _pgwerk_jobs WHERE status = 'READY' AND target = 'worker')
                AND NOT EXISTS (SELECT FROM _pgwerk_jobs WHERE status = 'RUNNING')
        """
        found = database.execute(statement, [first]).fetchone()
        seconds = float(found[0]) if found else 0
        return found is not None or worker.process.poll() is not None

    first, seconds = None, 0.0
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as database:
        until(claimed, worker, every=0.002)
        until(drained, worker, every=0.01)
    if not seconds:
        raise ProcessFailed(f"exit code {worker.process.poll()} with jobs left")
    return seconds


def throughput(jobs: int, rounds: int, peers: Sequence[Contestant]) -> dict[str, Any]:
    """Each contestant once a round, so that a slow minute of the machine slows them all; then their medians."""
    entrants: dict[str, Callable[[], dict[str, Any]]] = {
        "plain": lambda: plain(jobs),
        "ours": lambda: ours(jobs),
        **{peer.name: peer for peer in peers},
    }
    failed: dict[str, str] = {}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in entrants}
    for _ in range(rounds):
        for name, measure in list(entrants.items()):
            try:
                runs[name].append(measure())
            except (PeerFailed, psycopg.Error, OSError) as error:
                print(f"{name}: n/a: {error}", flush=True)
                failed[name] = str(error)
                del entrants[name]
            else:
                if name in PEERS and runs[name][-1]["seconds"] > SLOW:
                    del entrants[name]
    found = {
        name: {
            **{key: statistics.median(run[key] for run in of_one) for key in of_one[0]},
            "rates": [run["rate"] for run in of_one],
        }
        for name, of_one in runs.items()
        if of_one
    }
    for name in ("plain", "ours"):
        found[name].update({key: sum(run[key] for run in runs[name]) for key in ("jobs", "lost", "twice")})
    for peer in peers:
        found.setdefault(peer.name, {"why": failed.get(peer.name)})["version"] = peer.version
    return found


def throughput_rows(jobs: int, found: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    we, peers = found["ours"], {name: run for name, run in found.items() if name in PEERS}
    beaten = found.get("pgqueuer", {}).get("rate")
    bad = we["lost"] + we["twice"]
    return [
        Row(
            f"{jobs:,} no-op jobs run by one worker",
            "jobs/s",
            we["rate"],
            found["plain"]["rate"],
            {f"{name} {run['version']}".strip(): run.get("rate", run.get("why")) for name, run in peers.items()},
            target=f"at least {LEAST_OF_PGQUEUER} of pgqueuer; none lost, none twice",
            met=None if beaten is None else we["rate"] >= LEAST_OF_PGQUEUER * beaten and not bad,
            how="From the first claim until another session sees the last job finished. Plain SQL: claimed and finished"
            " by 100, nothing run. " + " ".join(f"{name}: {PEERS[name].how}." for name in peers),
        )
    ]


# -- one job on an idle worker ----------------------------------------------------------------------------------------


def start(times: int, *, pause: float, **environment: str) -> dict[str, Any]:
    """From just before its INSERT is committed to the function's first line: one at a time, up to `pause` seconds apart."""
    from pgwerk_django.jobs import enqueue
    from pgwerk_django.models import Job

    def finished() -> bool:
        return Job.objects.filter(pk=job.pk, finished_at__isnull=False).exists()

    fill(0, functions.clock)
    waits, warm_up = [], 3
    with runworker(**environment) as worker:
        for _ in range(warm_up + times):
            with transaction.atomic():
                job = enqueue(functions.clock)
                committing = time.time()
            until(finished, worker, every=0.02)
            waits.append((Job.objects.values_list("result", flat=True).get(pk=job.pk) - committing) * 1000)
            time.sleep(random.uniform(0.02, pause))  # noqa: TID251  # idle is what is measured
    waits = sorted(waits[warm_up:])
    return {
        **account(warm_up + times),
        "median_ms": statistics.median(waits),
        "p95_ms": waits[int(len(waits) * 0.95)],
        "most_ms": waits[-1],
    }


def starts(listening: int, polled: int) -> dict[str, Any]:
    found = {"listening": start(listening, pause=0.2, PGWERK_LISTEN="default")}
    return {**found, "polling": start(polled, pause=1)} if polled else found


def start_rows(found: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    return [
        Row(
            f"one job on an idle worker, {how}: from the commit to its function, p50",
            "ms",
            run["median_ms"],
            more_is_better=False,
            target=f"under {MOST_START_MS} ms" if how == "listening" else "",
            met=run["median_ms"] < MOST_START_MS if how == "listening" else None,
            how=f"95 % within {run['p95_ms']:,.0f} ms, all within {run['most_ms']:,.0f} ms.",
        )
        for how, run in found.items()
    ]


# -- jobs that wait ---------------------------------------------------------------------------------------------------


def waiting(jobs: int) -> dict[str, Any]:
    spread = ("--concurrency", 2, "--threads", AT_ONCE // 2)
    fill(jobs, functions.wait, NAP)
    clock = burst(*spread)
    return {**account(jobs), "clock_seconds": clock, "options": " ".join(map(str, spread))}


def waiting_rows(found: Mapping[str, Any]) -> list[Row]:
    perfect = found["jobs"] * NAP / AT_ONCE
    return [
        Row(
            f"{found['jobs']:,} jobs that wait {NAP} s each, {AT_ONCE} at once",
            "s",
            found["seconds"],
            more_is_better=False,
            target=f"under {MOST_TIMES_PERFECT} times the perfect {perfect:.1f} s",
            met=found["seconds"] < MOST_TIMES_PERFECT * perfect,
            how=f"`await asyncio.sleep({NAP})` with `{found['options']}`, from the first start to the last finish.",
        )
    ]


# -- memory -----------------------------------------------------------------------------------------------------------


def memory(jobs: int) -> dict[str, Any]:
    """Resident memory after the first tenth of the jobs, and after the last."""
    from pgwerk_django.models import Job

    samples: list[tuple[int, dict[int, float]]] = []

    def drained() -> bool:
        done = jobs - Job.objects.open().count()
        samples.append((done, family(worker.process.pid)))
        return done == jobs

    fill(jobs, functions.nothing)
    with runworker() as worker:
        until(drained, worker, every=0.5)
    first_done, first = next(sample for sample in samples if sample[0] >= jobs / 10)
    _, last = samples[-1]
    parent = worker.process.pid
    both = (first.keys() & last.keys()) - {parent}
    return {
        **account(jobs),
        "first_after_jobs": first_done,
        "parent_mb": [first[parent], last[parent]],
        "children_mb": [[first[pid], last[pid]] for pid in sorted(both)],
        "replaced_children": len(first.keys() - last.keys()),
        "growth_mb": max(last[pid] - first[pid] for pid in {parent, *both}),
        "samples": [
            {"jobs": done, "parent_mb": sizes.pop(parent, 0), "others_mb": sorted(sizes.values())}
            for done, sizes in samples
        ],
    }


def memory_rows(found: Mapping[str, Any]) -> list[Row]:
    return [
        Row(
            f"growth of a worker's memory from {found['first_after_jobs']:,} to {found['jobs']:,} jobs",
            "MB",
            max(found["growth_mb"], 0),
            more_is_better=False,
            target=f"under {MOST_GROWTH_MB} MB",
            met=found["growth_mb"] < MOST_GROWTH_MB,
            how=f"Resident, the process that grew most; the parent ends at {found['parent_mb'][1]:.0f} MB.",
        )
    ]


# -- duplicates and losses --------------------------------------------------------------------------------------------


def traces(jobs: int) -> dict[str, Any]:
    """Two workers on one table: what their jobs left in files against what is in the table."""
    with tempfile.TemporaryDirectory(prefix="pgwerk-bench-") as folder:
        fill(jobs, functions.note, folder, "{key}")
        burst(workers=2)
        left = collections.Counter(
            line for file in Path(folder).iterdir() for line in file.read_text().split("\n") if line
        )
    keys = collections.Counter(f"job-{n}" for n in range(1, jobs + 1))
    return {**account(jobs), "no_trace": (keys - left).total(), "more_traces": (left - keys).total()}


def traces_rows(found: Mapping[str, Any]) -> list[Row]:
    bad = {kind: found[kind] for kind in ("lost", "twice", "no_trace", "more_traces")}
    return [
        Row(
            f"{found['jobs']:,} jobs by two workers: lost or run twice",
            "jobs",
            sum(bad.values()),
            more_is_better=False,
            target="none",
            met=not any(bad.values()),
            how="What the jobs left in files against what is in the table.",
        )
    ]


# -- the run ----------------------------------------------------------------------------------------------------------


def run(given: Given) -> Result:
    size = SIZES[given.size]
    chosen = {name for name, peer in PEERS.items() if given.peers is None or peer.package in given.peers}
    peers = [Contestant(name, given.peers_python, size["jobs"]) for name in PEERS if name in chosen]
    scenarios: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[dict[str, Any]], list[Row]]]] = {
        "throughput": (
            lambda: throughput(size["jobs"], size["rounds"], peers),
            lambda found: throughput_rows(size["jobs"], found),
        ),
        "start": (lambda: starts(size["starts"], size["polled"]), start_rows),
        "waiting": (lambda: waiting(size["sleepers"]), waiting_rows),
        "memory": (lambda: memory(size["many"]), memory_rows),
        "traces": (lambda: traces(size["jobs"]), traces_rows),
    }
    rows, details = [], {}
    with fresh_database():
        for name, (measure, tell) in scenarios.items():
            details[name] = measure()
            rows += tell(details[name])
    return Result(rows, details)
