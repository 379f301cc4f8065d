"""The world under attack: a PostgreSQL of its own, ways to it, schedulers and workers that come back when they die."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from example_project.embedded import EmbeddedError, EmbeddedPostgres
from tests.chaos import evidence, ledger, names, routes

ROOT = Path(__file__).resolve().parents[2]
LEASE = 4.0
DISK = 400  # MB of the file system that holds the database, where it has one of its own
SCHEDULER, WORKER = "scheduler", "worker"
STOPS_WITHIN = 60.0
STOPPED = (0, 3, -signal.SIGTERM)  # 3: jobs were handed back; the last before it could hear of signals
DRAINS_WITHIN = 120.0
MOST_STARTS = 100  # of PostgreSQL that fail, until a run is given up


def log_tail(path: Path, lines: int = 6) -> str:
    return " | ".join(path.read_text(errors="replace").strip().splitlines()[-lines:])


@dataclass
class Member:
    """A process of ours, and how it was started."""

    role: str
    process: subprocess.Popen[bytes]
    log: Path
    point: tuple[str, str, int] | None = None
    clock: Path | None = None
    frozen: bool = False
    expected_to_end: bool = False

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def has_started(self) -> bool:
        return "process_started" in self.log.read_text(errors="replace")

    def send(self, number: int, *, whole: bool = False) -> None:
        """To the process, or to all of its children too."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if whole else os.kill)(self.pid, number)

    def is_stopped(self) -> bool:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        return False


@dataclass
class Later:
    at: float
    what: Callable[[], None]


@dataclass
class Notes:
    """What the world saw of itself."""

    did: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


class World:
    def __init__(
        self,
        *,
        schedulers: int = 3,
        workers: int = 2,
        broken: list[str] | None = None,
        own_disk: bool = False,
        behind: tuple[str, ...] = ("direct",),
    ) -> None:
        """`behind` are the routes that processes take in turn; with `own_disk` the database has a small file system to fill."""
        self.wanted = {SCHEDULER: schedulers, WORKER: workers}
        self.broken = broken or []
        self.notes = Notes()
        self.members: list[Member] = []
        self.version = "old"
        self.on_unregistered = "pause"
        self.healing = False
        self.refused_to_start = 0
        self.thaws_after = LEASE * 1.5  # who froze at a named point
        self._behind = behind
        self._own_disk = own_disk
        self._later: list[Later] = []
        self._started = 0
        self._snapshot: psycopg.Connection[Any] | None = None

    # -- its beginning and its end

    def __enter__(self) -> "World":
        self._cleanup = contextlib.ExitStack()
        try:
            self._build()
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._cleanup.close()

    def _build(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pgwerk-chaos-"))
        self._cleanup.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.disk = self.folder / "disk"
        self.disk.mkdir()
        if self._own_disk:
            self._mount()
        options = {"max_connections": 200, "fsync": "off", "max_wal_size": "64MB", "min_wal_size": "32MB"}
        self.server = EmbeddedPostgres(self.disk, options=options)
        self.server.start()
        self._cleanup.callback(self._stop_server)
        self.proxy = routes.Proxy(self.server.url)
        self._cleanup.callback(self.proxy.close)
        self.urls = {"direct": self.server.url, "proxy": self.proxy.url}
        self.bouncer: routes.Bouncer | None = None
        if "pgbouncer" in self._behind:
            self.bouncer = routes.Bouncer(self.server.url, self.folder / "pgbouncer.log")
            self._cleanup.callback(self.bouncer.close)
            self.bouncer.start()
            self.urls["pgbouncer"] = self.bouncer.url
        migrate = [sys.executable, "-m", "django", "migrate", "--verbosity=0", "--skip-checks"]
        subprocess.run(migrate, cwd=ROOT, env=self._environment(self.server.url), check=True)
        with self.session() as session:
            session.execute(evidence.LOG)
            if "key-not-unique" in self.broken:
                session.execute(names.DROP_KEY)
        self._cleanup.callback(self._end_members)

    def _mount(self) -> None:
        options = ["-t", "tmpfs", "-o", f"size={DISK}m", "tmpfs", str(self.disk)]
        subprocess.run(["mount", *options], check=True, capture_output=True)
        self._cleanup.callback(subprocess.run, ["umount", "-l", str(self.disk)], check=False)

    def _stop_server(self) -> None:
        if self._snapshot is not None:
            self._snapshot.close()
        with contextlib.suppress(EmbeddedError):
            self.server.stop("immediate")

    def _end_members(self) -> None:
        for member in self.members:
            if member.alive:
                member.send(signal.SIGKILL, whole=True)
                member.process.wait()

    # -- its database

    def session(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.server.url, autocommit=True, connect_timeout=5)

    def ask(self, statement: str, parameters: Any = None) -> Any:
        """The first value; None while the database is away."""
        with contextlib.suppress(psycopg.OperationalError), self.session() as session:
            cursor = session.execute(statement, parameters)
            row = cursor.fetchone() if cursor.description else None
            return row[0] if row else None
        return None

    def refused_for_space(self) -> int:
        return self.server.log.read_bytes().count(b"No space left on device")

    def hold_a_snapshot(self) -> bool:
        """Keep the oldest of all snapshots open: vacuum can remove no dead row from here on."""
        with contextlib.suppress(psycopg.OperationalError):
            if self._snapshot is not None:
                self._snapshot.close()
            self._snapshot = psycopg.connect(self.server.url)
            self._snapshot.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            self._snapshot.execute("SELECT count(*) FROM _pgwerk_jobs")
            return True
        return False

    # -- its processes

    def _environment(self, url: str) -> dict[str, str]:
        return {
            **os.environ,
            "DATABASE_URL": url,
            "DJANGO_SETTINGS_MODULE": "tests.chaos.settings",
            "CHAOS_FOLDER": str(self.folder),
            "CHAOS_LEASE": str(LEASE),
            "CHAOS_BREAK": json.dumps(self.broken),
            "PYTHONPATH": str(ROOT),
        }

    def start(
        self,
        role: str,
        *,
        point: tuple[str, str, int] | None = None,
        clock: Path | None = None,
    ) -> Member:
        self._started += 1
        route = self._behind[self._started % len(self._behind)]
        log = self.folder / f"{self._started}-{role}.log"
        environment = {**self._environment(self.urls[route]), "CHAOS_VERSION": self.version}
        if point:
            environment["CHAOS_POINT"] = json.dumps(point)
        if clock:
            environment |= false_time(clock)
        if role == SCHEDULER:
            arguments = ["runscheduler", f"--on-unregistered={self.on_unregistered}"]
        else:
            arguments = ["runworker", "--concurrency=2", "--threads=2", "--shutdown-timeout=8"]
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.process", *arguments, "--skip-checks"],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        member = Member(role, process, log, point, clock)
        self.members.append(member)
        return member

    def run_command(self, *arguments: str) -> None:
        """One that ends by itself. Where the database is away it fails, and that is that."""
        with (self.folder / "commands.log").open("a") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.process", *arguments, "--skip-checks"],
                cwd=ROOT,
                env={**self._environment(self.server.url), "CHAOS_VERSION": self.version},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if not self.until(lambda: process.poll() is not None, STOPS_WITHIN):
            self.notes.problems.append(f"{arguments[0]} did not end: {log_tail(self.folder / 'commands.log')}")
            process.kill()
            process.wait()

    def some(self, role: str) -> list[Member]:
        """Those that run, and are not about to end at a point."""
        return [m for m in self.members if m.role == role and m.alive and not m.frozen and m.point is None]

    def tend(self) -> None:
        """What a service manager does: who died comes back. And what was put off until now."""
        for member in list(self.members):
            if not member.alive:
                self._bury(member)
            elif member.point and member.point[1] == "freeze" and not member.frozen and member.is_stopped():
                member.frozen = True
                self.notes.did[f"freeze at {member.point[0]}"] += 1
                self.after(self.thaws_after, lambda member=member: self.thaw(member))
        for role, wanted in self.wanted.items():
            for _ in range(wanted - sum(m.role == role and m.alive for m in self.members)):
                self.start(role)
        for later in [later for later in self._later if later.at <= time.monotonic()]:
            self._later.remove(later)
            later.what()

    def _bury(self, member: Member) -> None:
        self.members.remove(member)
        code = member.process.returncode
        reached = (self.folder / f"reached-{member.pid}").exists()
        if reached and member.point and code == -signal.SIGKILL and not member.expected_to_end:
            self.notes.did[f"kill at {member.point[0]}"] += 1
        elif not member.expected_to_end:
            self.notes.problems.append(f"a {member.role} ended by itself with {code}: {log_tail(member.log)}")

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        self._later.append(Later(time.monotonic() + seconds, what))

    def kill(self, member: Member) -> None:
        member.expected_to_end = True
        member.send(signal.SIGKILL)
        member.process.wait()

    def freeze(self, member: Member, seconds: float, *, whole: bool) -> None:
        member.frozen = True
        member.send(signal.SIGSTOP, whole=whole)
        self.after(seconds, lambda: self.thaw(member))

    def thaw(self, member: Member) -> None:
        member.send(signal.SIGCONT, whole=True)
        member.frozen = False
        member.point = None

    def stop(self, members: list[Member]) -> None:
        """As a deploy does: ask, and wait."""
        for member in members:
            member.expected_to_end = True
            member.send(signal.SIGTERM)
        # Others die and faults pass meanwhile: who waits for a network that hangs can stop when it no longer does.
        self.until(lambda: not any(member.alive for member in members), STOPS_WITHIN)
        for member in members:
            if member.alive:
                self.notes.problems.append(f"a {member.role} did not stop: {log_tail(member.log)}")
                self.kill(member)
            elif (code := member.process.returncode) not in STOPPED:
                self.notes.problems.append(f"a {member.role} stopped with {code}: {log_tail(member.log)}")

    # -- time

    def run_for(self, seconds: float) -> None:
        self.until(lambda: False, seconds)

    def until(self, condition: Callable[[], object], seconds: float) -> bool:
        """Tend the world until it is so, at most for so long; whether it is."""
        pause, ends = threading.Event(), time.monotonic() + seconds
        while time.monotonic() < ends:
            self.tend()
            if condition():
                return True
            pause.wait(0.05)
        return bool(condition())

    # -- the end of a run

    def heal(self) -> None:
        """No fault any more."""
        self.healing = True
        later, self._later = self._later, []
        for each in later:
            each.what()
        self.proxy.flow()
        self.proxy.forget()
        (self.disk / "ballast").unlink(missing_ok=True)
        self.server_up()
        if self.bouncer is not None and not self.bouncer.alive:
            self.bouncer.start()
        for member in self.members:
            if member.alive and member.is_stopped():
                self.thaw(member)

    def server_up(self) -> None:
        """Have it run. While its disk is full it may not come up: then again in a second, as a service manager does."""
        if self.ask("SELECT 1"):
            return
        try:
            self.server.halt("immediate")
            self.server.resume()
        except EmbeddedError:
            if self.healing and self.refused_to_start == MOST_STARTS:
                raise
            self.refused_to_start += 1
            self.after(1, self.server_up)

    def judged(self) -> evidence.Evidence:
        """Heal, let everything drain, stop it in order, and gather what there is to judge by."""
        self.heal()
        if not self.until(lambda: self.ask("SELECT 1"), DRAINS_WITHIN):
            raise AssertionError(f"the database does not come back: {log_tail(self.server.log)}")
        ended_at = self.ask("SELECT clock_timestamp()")
        due = "SELECT count(*) FROM _pgwerk_schedules WHERE NOT paused AND next_run_at <= %s OR triggered_at <= %s"
        self.until(lambda: self.ask(due, [ended_at, ended_at]) == 0, DRAINS_WITHIN)
        # What is to be handed over waits for a scheduler, so they go when none of it is left.
        open_jobs = "SELECT count(*) FROM _pgwerk_jobs WHERE status IN ('READY', 'RUNNING')"
        self.until(
            lambda: self.ask(f"{open_jobs} AND coalesce(due_at, enqueued_at) <= %s", [ended_at]) == 0, DRAINS_WITHIN
        )
        self.wanted[SCHEDULER] = 0
        self.stop([m for m in self.members if m.alive and m.role == SCHEDULER])
        self.until(lambda: self.ask(f"{open_jobs} AND target = 'worker'") == 0, DRAINS_WITHIN)
        self.wanted[WORKER] = 0
        self.stop([m for m in self.members if m.alive])
        with self.session() as session:
            return evidence.gather(session, ledger.read(self.folder), ended_at)


def false_time(clock: Path) -> dict[str, str]:
    """The environment of a process whose clock is off by what the file says, and is set anew whenever that changes."""
    (library,) = libfaketime()[:1]
    return {
        "LD_PRELOAD": library,
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def libfaketime() -> list[str]:
    return sorted(str(path) for path in Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
