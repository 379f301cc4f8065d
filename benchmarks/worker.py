"""What the worker can do: `.venv/bin/python benchmarks/worker.py [--quick] [--peers A,B | --no-peers] [--only A,B] [--json PATH]` (Linux).

Real `manage.py runworker` processes on one PostgreSQL, with their defaults where nothing else is said. Throughput is
measured in turns with plain SQL and with other libraries, which are installed on first use, each into an environment of
its own below `.venv-peers/`. Machines are noisy, so the results are ratios within one run; the rates are this machine's.
Everything the worker ran is counted: what is lost or runs twice makes this end with 1, as does a worker that fails.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
from django.db import connection

from benchmarks import functions
from benchmarks.database import fresh_database

ROOT = Path(__file__).resolve().parent.parent
JOBS = 5_000
STARTS, POLLED_STARTS = 100, 30
SLEEPERS, AT_ONCE, NAP = 10_000, 100, 0.1
MANY = 100_000
SCENARIOS = ("throughput", "start", "waiting", "memory", "traces")
LONGEST = 600  # seconds, of any one process of ours
PATIENCE = 120  # seconds, with a peer
SLOW = 5  # seconds: a peer that takes longer is measured in one round only
LEAST_OF_PGQUEUER, MOST_START_MS, MOST_SECONDS_WAITING, MOST_GROWTH_MB = 1, 10, 15, 5


# -- other libraries --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peer:
    """A library beside us, run as its documentation has it: its own worker, with its defaults."""

    package: str
    needs: tuple[str, ...]
    module: str  # `python -m MODULE 5000` makes its tables and as many jobs
    worker: tuple[str, ...]
    timing: str  # SQL: jobs finished, and seconds from the first claim to the last finish, by what it records of them
    how: str  # what its defaults come to
    environment: Mapping[str, str] = field(default_factory=dict)


PGQUEUER = {
    "package": "pgqueuer",
    "needs": ("pgqueuer[asyncpg,psycopg]==1.6.0", "psycopg[binary]"),
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
    "needs": ("chancy[cli]", "psycopg[binary]"),
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
        ("procrastinate", "psycopg[binary]"),
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
        ("django-tasks-db", "django-tasks", "psycopg[binary]", "django-environ"),
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
        ("pgwerk[analytics]", "psycopg[binary]"),
        "benchmarks.peers.pgwerk",
        ("werk", "worker", "benchmarks.peers.pgwerk:app"),
        """
        SELECT count(*) FILTER (WHERE status = 'complete'), extract(epoch FROM max(completed_at) - min(started_at))
        FROM pgwerk._pgwerk_jobs
        """,
        "async, one process, 10 at once",
    ),
}


class PeerFailed(Exception):
    """A peer could not be installed or did not finish; the message is one line."""


class Contestant:
    """A peer in its environment: a callable that measures one run of it."""

    def __init__(self, name: str, python: str) -> None:
        self.name = name
        self.peer = PEERS[name]
        self._python = python
        self._folder = ROOT / ".venv-peers" / self.peer.package
        self.version = ""

    def __call__(self) -> dict[str, Any]:
        self._install()
        with another_database() as url:
            environment = {**os.environ, **self.peer.environment, "DATABASE_URL": url, "PYTHONPATH": str(ROOT)}
            environment.pop("DJANGO_SETTINGS_MODULE", None)
            self._run("python", "-m", self.peer.module, str(JOBS), env=environment)
            with psycopg.connect(url, autocommit=True) as database:
                database.execute("VACUUM ANALYZE")
                with started([self._bin(self.peer.worker[0]), *self.peer.worker[1:]], environment) as worker:
                    return self._watch(worker, database)

    def _watch(self, worker: "Running", database: psycopg.Connection[Any]) -> dict[str, Any]:
        def finished() -> bool:
            done, seconds = database.execute(self.peer.timing).fetchone()
            result.update(seconds=float(seconds or 0), successful=done)
            return bool(done >= JOBS)

        result: dict[str, Any] = {}
        try:
            until(finished, worker, every=0.1, within=PATIENCE)
        except (WorkerFailed, psycopg.Error) as error:
            raise PeerFailed(
                f"{result.get('successful', 0):,} of {JOBS:,} jobs finished: {str(error).splitlines()[0]}"
            ) from error
        return {**result, "rate": JOBS / result["seconds"]}

    def _install(self) -> None:
        ready, wanted = self._folder / ".ready", f"{self._python}\n{self.peer.needs}\n"
        if not ready.exists() or ready.read_text() != wanted:
            print(f"installing {self.name} into {self._folder.relative_to(ROOT)}", file=sys.stderr)
            self._call([self._python, "-m", "venv", "--clear", str(self._folder)])
            self._run("python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *self.peer.needs)
            ready.write_text(wanted)
        ask = f"import importlib.metadata as m; print(m.version({self.peer.package!r}))"
        self.version = self._run("python", "-c", ask).strip()

    def _run(self, command: str, *arguments: str, **options: Any) -> str:
        return self._call([self._bin(command), *arguments], **options)

    def _bin(self, command: str) -> str:
        return str(self._folder / "bin" / command)

    def _call(self, command: Sequence[str], **options: Any) -> str:
        try:
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=LONGEST, **options)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PeerFailed(str(error)) from error
        if done.returncode:
            raise PeerFailed(last_line(done.stderr))
        return done.stdout


@contextlib.contextmanager
def another_database() -> Iterator[str]:
    """A database on the same server, so that nothing of one run weighs on the next."""
    name = f"pgwerk_bench_peer_{os.getpid()}"
    with connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        cursor.execute(f"CREATE DATABASE {name}")
    try:
        yield urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{name}").geturl()
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")


# -- processes --------------------------------------------------------------------------------------------------------


class WorkerFailed(Exception):
    """A worker's process ended, or did not do its work in time."""


@dataclass
class Running:
    process: "subprocess.Popen[bytes]"
    said: Path

    def check(self, *, ended: Sequence[int | None] = (None,)) -> None:
        code = self.process.poll()
        if code not in ended:
            raise WorkerFailed(f"exit code {code}: {last_line(self.said.read_text(errors='replace'))}")

    def kill(self) -> None:
        """With its children: a worker that fails here has shown that it cannot be trusted to end them."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def started(command: Sequence[object], environment: Mapping[str, str]) -> Iterator[Running]:
    """A process and its children, in a group of their own; SIGTERM ends it."""
    with tempfile.TemporaryDirectory(prefix="pgwerk-bench-") as folder:
        said = Path(folder) / "stderr"
        with said.open("wb") as stderr:
            process = subprocess.Popen(
                list(map(str, command)),
                env=environment,
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
        running = Running(process, said)
        try:
            yield running
            process.terminate()
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            print("a worker outlived SIGTERM by a minute", file=sys.stderr)
        finally:
            running.kill()


def runworker(*arguments: object, **environment: str) -> "contextlib.AbstractContextManager[Running]":
    command = [sys.executable, ROOT / "example_project" / "manage.py", "runworker", *arguments]
    return started(command, {**os.environ, "DJANGO_SETTINGS_MODULE": "benchmarks.settings", **environment})


def burst(*arguments: object, workers: int = 1) -> float:
    """Drain the table with real workers; the seconds that took, from their start to the end of the last."""
    begun = time.perf_counter()
    with contextlib.ExitStack() as stack:
        everyone = [stack.enter_context(runworker("--burst", *arguments)) for _ in range(workers)]
        for worker in everyone:
            try:
                worker.process.wait(timeout=LONGEST)
            except subprocess.TimeoutExpired as error:
                raise WorkerFailed(f"still running after {LONGEST} s") from error
            worker.check(ended=(0,))
        return time.perf_counter() - begun


def until(condition: Callable[[], bool], worker: Running, *, every: float, within: float = LONGEST) -> None:
    """Return when `condition` holds: another process brings it about."""
    deadline = time.monotonic() + within
    while not condition():
        worker.check()
        if time.monotonic() > deadline:
            raise WorkerFailed(f"not done after {within:.0f} s")
        time.sleep(every)  # noqa: TID251  # the interval of the measurement


def takes(option: str) -> bool:
    command = [sys.executable, ROOT / "example_project" / "manage.py", "runworker", "--help"]
    return option in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def family(pid: int) -> dict[int, float]:
    """Resident memory in MB of a process and its descendants."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # What follows the name in parentheses, which may hold anything: its second field is the parent.
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    members = {pid}
    while more := {child for child, parent in parents.items() if parent in members} - members:
        members |= more
    return {member: size for member in members if (size := resident_mb(member)) is not None}


def resident_mb(pid: int) -> float | None:
    with contextlib.suppress(OSError):
        if found := re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()):
            return int(found[1]) / 1024
    return None


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["(it said nothing)"])[-1][:300]


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
    """What became of the jobs: lost are those that did not end well, twice those that were claimed again."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT count(*) FILTER (WHERE status = 'SUCCESSFUL' AND finished_at IS NOT NULL AND claims > 0),
                coalesce(sum(claims - 1) FILTER (WHERE claims > 1), 0),
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


def plain() -> dict[str, Any]:
    fill(JOBS, functions.nothing)
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as database:
        begun = time.perf_counter()
        while claimed := database.execute(_CLAIM, prepare=True).fetchall():
            ids, claims = [row[0] for row in claimed], [row[1] for row in claimed]
            database.execute(_FINISH, [ids, claims], prepare=True)
        seconds = time.perf_counter() - begun
    return {**account(JOBS), "seconds": seconds, "rate": JOBS / seconds}


def ours() -> dict[str, Any]:
    """Three measures. `rate` is the one to compare: from the first claim until anyone can see the last job finished."""
    fill(0, functions.nothing)
    start_up = burst()
    fill(JOBS, functions.nothing)
    begun = time.perf_counter()
    with runworker("--burst") as worker:
        seconds = drain_seconds(worker)
        worker.process.wait(timeout=LONGEST)
        clock = time.perf_counter() - begun - start_up
        worker.check(ended=(0,))
    run = account(JOBS)
    return {
        **run,
        "seconds": seconds,
        "rate": JOBS / seconds,
        "recorded_rate": JOBS / run["seconds"],
        "clock_rate": JOBS / max(clock, 0.001),
        "start_up_seconds": start_up,
    }


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
            WHERE NOT EXISTS (SELECT FROM _pgwerk_jobs WHERE status IN ('READY', 'RUNNING'))
        """
        found = database.execute(statement, [first]).fetchone()
        seconds = float(found[0]) if found else 0
        return found is not None or worker.process.poll() is not None

    first, seconds = None, 0.0
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as database:
        until(claimed, worker, every=0.002)
        until(drained, worker, every=0.01)
    if not seconds:
        raise WorkerFailed(f"exit code {worker.process.poll()} with jobs left")
    return seconds


def throughput(rounds: int, peers: Sequence[Contestant]) -> dict[str, Any]:
    """Each contestant once a round, so that a slow minute of the machine slows them all; then their medians."""
    entrants: dict[str, Callable[[], dict[str, Any]]] = {"plain": plain, "ours": ours, **{p.name: p for p in peers}}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in entrants}
    for _ in range(rounds):
        for name, measure in list(entrants.items()):
            try:
                runs[name].append(measure())
            except (PeerFailed, OSError) as error:
                print(f"{name}: {error}", flush=True)
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
        if peer.name in found:
            found[peer.name]["version"] = peer.version
    return found


def show_throughput(found: Mapping[str, Mapping[str, Any]]) -> None:
    we, limit = found["ours"]["rate"], found["plain"]["rate"]
    print(f"{f'{JOBS:,} no-op jobs, from the first claim to the last finish':80}  jobs/s  of SQL   ours is")
    labels = {"plain": ("plain SQL", "claimed and finished by 100"), "ours": ("pgwerk_django", "runworker --burst")}
    for name, run in found.items():
        title, how = labels.get(name) or (f"{name} {run['version']}", PEERS[name].how)
        times = f"{we / run['rate']:9.2f} ×" if name not in ("plain", "ours") else ""
        print(f"{f'{title} ({how})':80.80} {run['rate']:7,.0f} {run['rate'] / limit:7.2f} {times}")
    print(
        f"ours by the rows' started_at and finished_at: {found['ours']['recorded_rate']:,.0f}/s; by the clock, from the"
        f" process's start to its end, less one with no jobs: {found['ours']['clock_rate']:,.0f}/s"
        f" (that one: {found['ours']['start_up_seconds']:.1f} s)"
    )
    print(f"ours to plain SQL: {we / limit:.2f} (the limit is 1)")
    if "pgqueuer" in found:
        print(f"ours to pgqueuer: {we / found['pgqueuer']['rate']:.2f} (target: at least {LEAST_OF_PGQUEUER})")


# -- one job on an idle worker ----------------------------------------------------------------------------------------


def start(times: int, *, pause: float, **environment: str) -> dict[str, Any]:
    """From an INSERT's commit, as its client sees it, to the function's first line: one at a time, up to `pause` seconds apart."""
    from pgwerk_django.jobs import enqueue
    from pgwerk_django.models import Job

    def finished() -> bool:
        return Job.objects.filter(pk=job.pk, finished_at__isnull=False).exists()

    fill(0, functions.clock)
    waits, warm_up = [], 3
    with runworker(**environment) as worker:
        for _ in range(warm_up + times):
            job = enqueue(functions.clock)
            committed = time.time()
            until(finished, worker, every=0.02)
            waits.append((Job.objects.values_list("result", flat=True).get(pk=job.pk) - committed) * 1000)
            time.sleep(random.uniform(0.02, pause))  # noqa: TID251  # idle is what is measured
    waits = sorted(waits[warm_up:])
    return {
        **account(warm_up + times),
        "median_ms": statistics.median(waits),
        "p95_ms": waits[int(len(waits) * 0.95)],
        "most_ms": waits[-1],
    }


def starts(quick: bool) -> dict[str, Any]:
    share = 5 if quick else 1
    return {
        "listening": start(STARTS // share, pause=0.2, PGWERK_LISTEN="default"),
        "polling": start(POLLED_STARTS // share, pause=1),
    }


def show_starts(found: Mapping[str, Mapping[str, Any]]) -> None:
    for how, run in found.items():
        target = f" (target: within {MOST_START_MS} ms)" if how == "listening" else ""
        print(
            f"one job on an idle worker, {how}: its function begins {run['median_ms']:.1f} ms after the commit,"
            f" median{target}; 95 % within {run['p95_ms']:.1f} ms, all within {run['most_ms']:.1f} ms"
        )


# -- jobs that wait ---------------------------------------------------------------------------------------------------


def waiting() -> dict[str, Any]:
    in_children = takes("--threads")
    spread = ("--concurrency", 2, "--threads", AT_ONCE // 2) if in_children else ("--concurrency", AT_ONCE)
    fill(SLEEPERS, functions.wait, NAP)
    clock = burst(*spread)
    return {**account(SLEEPERS), "clock_seconds": clock, "options": " ".join(map(str, spread))}


def show_waiting(found: Mapping[str, Any]) -> None:
    print(
        f"{SLEEPERS:,} jobs of await asyncio.sleep({NAP}), {AT_ONCE} at once ({found['options']}):"
        f" {found['seconds']:.1f} s from the first start to the last finish (target: under {MOST_SECONDS_WAITING};"
        f" perfect: {SLEEPERS * NAP / AT_ONCE:.0f}), {found['clock_seconds']:.1f} s with the process's start and end"
    )


# -- memory -----------------------------------------------------------------------------------------------------------


def memory(jobs: int) -> dict[str, Any]:
    """Resident memory after the first tenth of the jobs, and after the last."""
    samples: list[tuple[int, dict[int, float]]] = []

    def drained() -> bool:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM _pgwerk_jobs WHERE status IN ('READY', 'RUNNING')")
            done = jobs - cursor.fetchone()[0]
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


def show_memory(found: Mapping[str, Any]) -> None:
    children = ", ".join(f"{before:.1f} -> {after:.1f}" for before, after in found["children_mb"]) or "none"
    print(
        f"resident memory after {found['first_after_jobs']:,} and after {found['jobs']:,} jobs:"
        f" parent {found['parent_mb'][0]:.1f} -> {found['parent_mb'][1]:.1f} MB, children {children} MB"
        f" ({found['replaced_children']} replaced); most growth {found['growth_mb']:.1f} MB (target: under {MOST_GROWTH_MB})"
    )


# -- duplicates and losses --------------------------------------------------------------------------------------------


def traces() -> dict[str, Any]:
    """Two workers on one table: what their jobs left in files against what is in the table."""
    with tempfile.TemporaryDirectory(prefix="pgwerk-bench-") as folder:
        fill(JOBS, functions.note, folder, "{key}")
        burst(workers=2)
        left = collections.Counter(
            line for file in Path(folder).iterdir() for line in file.read_text().split("\n") if line
        )
    keys = collections.Counter(f"job-{n}" for n in range(1, JOBS + 1))
    return {**account(JOBS), "no_trace": (keys - left).total(), "more_traces": (left - keys).total()}


def show_traces(found: Mapping[str, Any]) -> None:
    print(
        f"{JOBS:,} jobs, two workers, each job leaves a line in a file: {found['no_trace']} left none,"
        f" {found['more_traces']} lines too many"
    )


def show_accounts(found: Mapping[str, Any]) -> bool:
    """Of all our scenarios, what was lost and what ran twice; whether nothing was."""
    runs = {}
    for name, run in found.items():
        if name == "throughput":
            runs["throughput"] = run["ours"]
        elif name == "start":
            runs.update({f"start, {how}": of_one for how, of_one in run.items()})
        else:
            runs[name] = run
    for name, run in runs.items():
        print(f"{name}: {run['jobs']:,} jobs, {run['lost']} lost, {run['twice']} claimed twice (target: 0 and 0)")
    bad = ("lost", "twice", "no_trace", "more_traces")
    return not any(run.get(kind) for run in runs.values() for kind in bad)


# -- the run ----------------------------------------------------------------------------------------------------------


def names_among(known: Sequence[str]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        found = text.split(",")
        if unknown := set(found) - set(known):
            raise argparse.ArgumentTypeError(f"{min(unknown)!r} is none of {', '.join(known)}")
        return found

    return names


def show_machine() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('server_version'), current_setting('synchronous_commit')")
        version, commits = cursor.fetchone()
    python = ".".join(map(str, sys.version_info[:3]))
    print(f"PostgreSQL {version.split()[0]} (synchronous_commit {commits}), Python {python}, {os.cpu_count()} CPUs\n")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument(
        "--quick", action="store_true", help="one round, a fifth of the starts and of the memory's jobs"
    )
    options.add_argument(
        "--peers", type=names_among(list(PEERS)), default=list(PEERS), metavar="A,B", help=", ".join(PEERS)
    )
    options.add_argument("--no-peers", action="store_const", dest="peers", const=[], help="only ours and plain SQL")
    options.add_argument("--peers-python", default=sys.executable, metavar="PATH", help="for them (default: this one)")
    options.add_argument(
        "--only", type=names_among(SCENARIOS), default=SCENARIOS, metavar="A,B", help=", ".join(SCENARIOS)
    )
    options.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    given = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that no worker stays behind
    peers = [Contestant(name, given.peers_python) for name in given.peers]
    measures: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[dict[str, Any]], None]]] = {
        "throughput": (lambda: throughput(1 if given.quick else 5, peers), show_throughput),
        "start": (lambda: starts(given.quick), show_starts),
        "waiting": (waiting, show_waiting),
        "memory": (lambda: memory(MANY // 5 if given.quick else MANY), show_memory),
        "traces": (traces, show_traces),
    }
    found = {}
    with fresh_database():
        show_machine()
        for name in (name for name in SCENARIOS if name in given.only):
            measure, show = measures[name]
            try:
                found[name] = measure()
            except WorkerFailed as error:
                print(f"{name}: {error}\n", flush=True)
                continue
            show(found[name])
            print(flush=True)
    nothing_lost = show_accounts(found)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    sys.exit(not (nothing_lost and found.keys() == set(given.only)))


if __name__ == "__main__":
    main()
