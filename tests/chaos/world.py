"""The world under attack: a PostgreSQL of its own, ways to it, schedulers and workers that come back when they die."""

import contextlib
import datetime as dt
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg

from example_project.embedded import EmbeddedError, EmbeddedPostgres
from tests.chaos import evidence, ledger, names, routes
from tests.chaos.evidence import Hit

ROOT = Path(__file__).resolve().parents[2]
LEASE = 4.0
DISK = 400  # MB of the file system that holds the database, where it has one of its own
SCHEDULER, WORKER = "scheduler", "worker"
STOPS_WITHIN = 60.0
STOPPED = (0, 3, -signal.SIGTERM)  # 3: jobs were handed back; the last before it could hear of signals
DRAINS_WITHIN = 120.0
MOST_STARTS = 100  # of PostgreSQL that fail, until a run is given up
ROLE = "app"  # no superuser: limits of connections and of time hold for it
STALL = 0.7  # seconds by which the machine must be late to be on record


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
    route: str = "direct"
    frozen: bool = False
    expected_to_end: bool = False
    over: Callable[[], None] | None = None  # ends the record of the fault that it is under

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
        """To the process, or to the processes that run its jobs, too. (Each of them has a session of its own.)"""
        for pid in [self.pid, *(children_of(self.pid) if whole else [])]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def is_stopped(self) -> bool:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        return False


def children_of(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        threads = Path(f"/proc/{pid}/task").glob("*/children")
        return [int(child) for children in threads for child in children.read_text().split()]
    return []


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
        own_clock: bool = False,
        behind: tuple[str, ...] = ("direct",),
        settings: dict[str, str] | None = None,
        patience: float = 1,
    ) -> None:
        """`behind` are the routes that processes take in turn, `settings` more variables of their environment.

        `patience` multiplies the auditor's bounds of lateness, where many worlds share a machine.
        With `own_disk` the database has a small file system to fill, with `own_clock` PostgreSQL has a clock to step.
        """
        self.wanted = {SCHEDULER: schedulers, WORKER: workers}
        self.broken = broken or []
        self.notes = Notes()
        self.members: list[Member] = []
        self._everybody: list[Member] = []  # also those that are gone
        self.version = "old"
        self.on_unregistered = "pause"
        self.healing = False
        self.refused_to_start = 0
        self.thaws_after = LEASE * 1.5  # who froze at a named point
        self._behind = behind
        self._own_disk = own_disk
        self._patience = patience
        self._own_clock = own_clock
        self._settings = settings or {}
        self._epoch = time.time() - time.monotonic()
        self.ahead = 0.0  # seconds by which PostgreSQL's clock is off
        self._hits: list[Hit] = []
        self._lasting: dict[object, Callable[[], list[Hit]]] = {}
        self._person: subprocess.Popen[bytes] | None = None
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
        self.clock = self.folder / "disk" / "clock"
        with self._time_of_server():
            self.server.start()
        self._cleanup.callback(self._stop_server)
        with self.session() as session:
            session.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{ROLE}'")
            session.execute(f"GRANT CREATE ON SCHEMA public TO {ROLE}")
        url = urlsplit(self.server.url)
        self.app_url = f"postgres://{ROLE}:{ROLE}@{url.hostname}:{url.port}{url.path}"
        self.proxy = routes.Proxy(self.app_url)
        self._cleanup.callback(self.proxy.close)
        self.urls = {"direct": self.app_url, "proxy": self.proxy.url}
        self.bouncer: routes.Bouncer | None = None
        if "pgbouncer" in self._behind:
            self.bouncer = routes.Bouncer(self.app_url, self.folder / "pgbouncer.log")
            self._cleanup.callback(self.bouncer.close)
            self.bouncer.start()
            self.urls["pgbouncer"] = self.bouncer.url
        self.wire: routes.Wire | None = None
        if "wire" in self._behind:
            self.wire = routes.Wire(self.app_url)
            self._cleanup.callback(self.wire.close)
            self.urls["wire"] = self.wire.url
        migrate = [sys.executable, "-m", "django", "migrate", "--verbosity=0", "--skip-checks"]
        subprocess.run(migrate, cwd=ROOT, env=self._environment(self.app_url), check=True)
        with psycopg.connect(self.app_url, autocommit=True) as session:
            session.execute(evidence.LOG)
            session.execute(evidence.JOB_LOG)
            if "key-not-unique" in self.broken:
                session.execute(names.DROP_KEY)
        stopped = threading.Event()
        self._cleanup.callback(stopped.set)
        threading.Thread(target=self._watch_machine, args=(stopped,), daemon=True).start()
        self._cleanup.callback(self._end_members)

    @contextlib.contextmanager
    def _time_of_server(self) -> Iterator[None]:
        """PostgreSQL is started with a clock that the file `clock` puts off."""
        if not self._own_clock:
            yield
            return
        self.clock.write_text("+0")
        before = dict(os.environ)
        os.environ.update(false_time(self.clock))
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    def _watch_machine(self, stopped: threading.Event) -> None:
        """A machine that stands still for a moment is a fault, too."""
        before = time.monotonic()
        while not stopped.wait(0.1):
            after = time.monotonic()
            if after - before > 0.1 + STALL:
                self._hits.append(Hit("machine", self._instant(before), self._instant(after)))
            before = after

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
        if self._person is not None:
            self._person.kill()
            self._person.wait()
        for member in self.members:
            if member.alive:
                member.send(signal.SIGKILL, whole=True)
                member.process.wait()

    # -- the record of its faults

    def now(self) -> dt.datetime:
        return self._instant(time.monotonic())

    def _instant(self, monotonic: float) -> dt.datetime:
        return dt.datetime.fromtimestamp(monotonic + self._epoch, dt.UTC)

    def hit(
        self, kind: str, *members: Member, route: str | None = None, since: dt.datetime | None = None
    ) -> Callable[[], None]:
        """Put a fault on record, which lasts until what this gives back is called.

        It hits these members, or those behind a route, or else all of them. While PostgreSQL's clock is ahead, what it calls
        an instant is later than the same instant here: the record lasts for as long.
        """
        began, ahead, key = since or self.now(), self.ahead, object()

        def so_far() -> list[Hit]:
            ended = self.now() + dt.timedelta(seconds=max(ahead, self.ahead))
            victims = list(members) if route is None else [m for m in self._everybody if m.route == route]
            if not victims and route is None:
                return [Hit(kind, began, ended)]
            return [Hit(kind, began, ended, member.pid) for member in victims]

        def over() -> None:
            if self._lasting.pop(key, None):
                self._hits += so_far()

        self._lasting[key] = so_far
        return over

    def hits(self) -> list[Hit]:
        return [*self._hits, *(hit for so_far in list(self._lasting.values()) for hit in so_far())]

    # -- its database

    def session(self, *, autocommit: bool = True) -> psycopg.Connection[Any]:
        """As a superuser, whom no limit of the role holds up. It waits for no lock: the harness may hold that itself."""
        return psycopg.connect(
            self.server.url,
            autocommit=autocommit,
            connect_timeout=5,
            application_name="harness",
            options="-c lock_timeout=2s",
        )

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
            self._snapshot = self.session(autocommit=False)
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
            "CHAOS_EPOCH": repr(self._epoch),
            "CHAOS_LEASE": str(LEASE),
            "CHAOS_BREAK": json.dumps(self.broken),
            "PYTHONPATH": str(ROOT),
            **self._settings,
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
        inside = self.wire.enter if route == "wire" and self.wire is not None else []
        with log.open("w") as output:
            process = subprocess.Popen(
                [*inside, sys.executable, "-m", "tests.chaos.process", *arguments, "--skip-checks"],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        member = Member(role, process, log, point, clock, route)
        self.members.append(member)
        self._everybody.append(member)
        return member

    def person(self, **does: object) -> None:
        """Have somebody do something by the API of the product, soon: `tests/chaos/person.py` says what."""
        if self._person is None or self._person.poll() is not None:
            with (self.folder / "person.log").open("a") as output:
                self._person = subprocess.Popen(
                    [sys.executable, "-m", "tests.chaos.person"],
                    cwd=ROOT,
                    env=self._environment(self.app_url),
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        assert self._person.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._person.stdin.write(json.dumps(does).encode() + b"\n")
            self._person.stdin.flush()

    def run_command(self, *arguments: str) -> None:
        """One that ends by itself. Where the database is away it fails, and that is that."""
        with (self.folder / "commands.log").open("a") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.process", *arguments, "--skip-checks"],
                cwd=ROOT,
                env={**self._environment(self.app_url), "CHAOS_VERSION": self.version},
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
                member.over = self.hit("freeze", member, since=self._reached_at(member))
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
        self.hit("kill", member, since=self._reached_at(member))()
        if member.over is not None:
            member.over()
        if reached and member.point and code == -signal.SIGKILL and not member.expected_to_end:
            self.notes.did[f"kill at {member.point[0]}"] += 1
        elif not member.expected_to_end:
            self.notes.problems.append(f"a {member.role} ended by itself with {code}: {log_tail(member.log)}")

    def _reached_at(self, member: Member) -> dt.datetime | None:
        """When it reached its point."""
        with contextlib.suppress(OSError):
            return dt.datetime.fromtimestamp((self.folder / f"reached-{member.pid}").stat().st_mtime, dt.UTC)
        return None

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        self._later.append(Later(time.monotonic() + seconds, what))

    def kill(self, member: Member) -> None:
        member.expected_to_end = True
        over = self.hit("kill", member)
        member.send(signal.SIGKILL)
        member.process.wait()
        over()

    def freeze(self, member: Member, seconds: float, *, whole: bool) -> None:
        member.frozen = True
        member.over = self.hit("freeze", member)
        member.send(signal.SIGSTOP, whole=whole)
        self.after(seconds, lambda: self.thaw(member))

    def thaw(self, member: Member) -> None:
        member.send(signal.SIGCONT, whole=True)
        member.frozen = False
        member.point = None
        if member.over is not None:
            member.over()

    def stop(self, members: list[Member]) -> None:
        """As a deploy does: ask, and wait."""
        over = self.hit("stop", *members) if members else None
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
        if over is not None:
            over()

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
        for proxy in [self.proxy, *([self.wire.proxy] if self.wire else [])]:
            proxy.flow()
            proxy.forget()
        if self.wire is not None:
            self.wire.mend()
        (self.disk / "ballast").unlink(missing_ok=True)
        self.server_up()
        if self.bouncer is not None and not self.bouncer.alive:
            self.bouncer.start()
        for member in self.members:
            if member.alive and member.is_stopped():
                self.thaw(member)

    def server_back(self, over: Callable[[], None]) -> None:
        """Have it run, and end the record of the outage once it does."""
        self.server_up()
        if self.healing or self.ask("SELECT 1"):
            over()
        else:
            self.after(1, lambda: self.server_back(over))

    def server_up(self) -> None:
        """Have it run. While its disk is full it may not come up: then again in a second, as a service manager does."""
        if self.ask("SELECT 1"):
            return
        try:
            self.server.halt("immediate")
            with self._time_of_server():
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
            return evidence.gather(session, ledger.read(self.folder), ended_at, self.hits(), self._patience)


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
