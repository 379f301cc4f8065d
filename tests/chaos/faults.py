"""The faults: each strikes once, and sees to it that it passes. A seed says which come, in which order, and how."""

import contextlib
import itertools
import json
import os
import random
import shutil
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import psycopg

from example_project.embedded import EmbeddedError
from tests.chaos import names, routes
from tests.chaos.world import LEASE, ROLE, SCHEDULER, WORKER, Member, World, libfaketime


def lasts(world: World, seconds: float, over: Callable[[], None], *ends: Callable[[], object]) -> None:
    """After so many seconds do what ends the fault, and then end its record."""

    def end() -> None:
        for each in ends:
            each()
        over()

    world.after(seconds, end)


class Fault(ABC):
    name: str
    says: str
    settings: ClassVar[dict[str, str]] = {}  # variables of the environment of every process

    def missing(self) -> str:
        """Why it cannot be had on this machine; '' where it can."""
        return ""

    @abstractmethod
    def strike(self, world: World, chance: random.Random) -> None: ...


def somebody(world: World, chance: random.Random, *roles: str) -> Member | None:
    members = [member for role in roles or (SCHEDULER, WORKER) for member in world.some(role)]
    return chance.choice(members) if members else None


class Kill(Fault):
    name, says = "kill", "SIGKILL to schedulers and workers"

    def strike(self, world: World, chance: random.Random) -> None:
        for _ in range(chance.choice((1, 1, 2))):
            if member := somebody(world, chance):
                world.kill(member)
                world.notes.did[f"kill a {member.role}"] += 1


class Freeze(Fault):
    name, says = "freeze", "SIGSTOP, for a moment or for longer than the lease, then SIGCONT"

    def strike(self, world: World, chance: random.Random) -> None:
        longer = chance.random() < 0.6
        if member := somebody(world, chance):
            seconds = LEASE * chance.uniform(1.3, 2) if longer else chance.uniform(0.3, 2)
            # A worker alone, whose children go on; or with them.
            world.freeze(member, seconds, whole=chance.random() < 0.5)
            world.notes.did[f"freeze a {member.role}, {'longer' if longer else 'shorter'} than the lease"] += 1


class Points(Fault):
    name, says = "points", "SIGKILL and SIGSTOP at named points of tick, sync, hand-over and worker"
    together = 3
    patience = 45.0

    def __init__(self) -> None:
        self._next: Iterator[tuple[str, str]] | None = None

    def strike(self, world: World, chance: random.Random) -> None:
        if self._next is None:
            every = list(itertools.product((*names.SCHEDULER_POINTS, *names.WORKER_POINTS), (names.KILL, names.FREEZE)))
            chance.shuffle(every)
            self._next = itertools.cycle(every)
        for point, action in itertools.islice(self._next, self.together):
            arm(world, point, action, 1 if point.startswith("sync") else chance.randint(1, 2), self.patience)


def arm(world: World, point: str, action: str, nth: int, patience: float) -> Member:
    """One more process, which ends or freezes itself at a point."""
    role = WORKER if point in names.WORKER_POINTS else SCHEDULER
    member = world.start(role, point=(point, action, nth))

    def give_up() -> None:
        if member.alive and member.point and not member.frozen:
            if not world.healing:
                world.notes.did[f"{action} at {point}: not reached in {patience:.0f} s"] += 1
            world.kill(member)

    world.after(patience, give_up)
    return member


class Restart(Fault):
    name, says = "restart", "PostgreSQL restarted in immediate mode: a crash, with recovery"

    def strike(self, world: World, chance: random.Random) -> None:
        over = world.hit("outage")
        with contextlib.suppress(EmbeddedError):
            world.server.halt("immediate")
        world.server_back(over)
        world.notes.did["restart PostgreSQL, immediate"] += 1


class Stop(Fault):
    name, says = "stop", "PostgreSQL stopped for some seconds"

    def strike(self, world: World, chance: random.Random) -> None:
        over = world.hit("outage")
        with contextlib.suppress(EmbeddedError):
            world.server.halt("fast")
        world.after(chance.uniform(3, 7), lambda: world.server_back(over))
        world.notes.did["stop PostgreSQL for seconds"] += 1


def cut(world: World, share: float = 1) -> int:
    """Terminate sessions of our processes; how many."""
    world.hit("cut")()
    with contextlib.suppress(psycopg.OperationalError), world.session() as session:
        cursor = session.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = %s AND random() <= %s",
            [ROLE, share],
        )
        (number,) = cursor.fetchone() or (0,)
        return int(number)
    return 0


class Cut(Fault):
    name, says = "cut", "pg_terminate_backend on some connections, or on all"

    def strike(self, world: World, chance: random.Random) -> None:
        world.notes.did["terminate a connection"] += cut(world, chance.choice((0.3, 0.6, 1)))


class Cable(Fault):
    name, says = "cable", "the network: connections cut, stalled, or gone without the server's noticing"

    def strike(self, world: World, chance: random.Random) -> None:
        what = chance.choice(("cut", "stall", "vanish"))
        if what == "cut":
            world.hit("cut")()
            world.proxy.cut()
        elif what == "stall":
            world.proxy.stall()
            lasts(world, chance.uniform(1, 1.5 * LEASE), world.hit("partition", route="proxy"), world.proxy.flow)
        else:
            world.proxy.vanish()
            lasts(world, chance.uniform(2, 2 * LEASE), world.hit("vanished"), world.proxy.forget)
        world.notes.did[f"network: {what}"] += 1


class Snapshot(Fault):
    name, says = "snapshot", "a transaction that holds the oldest snapshot to the end of the run"

    def strike(self, world: World, chance: random.Random) -> None:
        if world.hold_a_snapshot():
            world.notes.did["hold a snapshot"] += 1


class PgBouncer(Fault):
    name, says = "pgbouncer", "PgBouncer (transaction mode) killed and started again"

    def missing(self) -> str:
        return "" if routes.pgbouncer_program() else "Debian's pgbouncer is not installed"

    def strike(self, world: World, chance: random.Random) -> None:
        assert world.bouncer is not None
        world.bouncer.kill()
        lasts(world, chance.uniform(0, 3), world.hit("partition", route="pgbouncer"), world.bouncer.start)
        world.notes.did["kill PgBouncer"] += 1


class Clock(Fault):
    name, says = "clock", "a scheduler's and a worker's host clock off by minutes, and stepping"

    def missing(self) -> str:
        return "" if libfaketime() else "Debian's faketime is not installed"

    def strike(self, world: World, chance: random.Random) -> None:
        off = f"{chance.choice('+-')}{chance.randint(2, 15)}m"
        off_already = [m for m in world.members if m.alive and m.clock]
        for member in off_already:
            assert member.clock is not None
            member.clock.write_text(off)
            world.notes.did[f"step a {member.role}'s clock"] += 1
        if not off_already:
            for role in (SCHEDULER, WORKER):
                clock = world.folder / f"clock-{role}"
                clock.write_text(off)
                world.start(role, clock=clock)
                world.notes.did[f"a {role} with its clock off"] += 1


class Disk(Fault):
    name, says = "disk", "the database's file system full, then not"

    def missing(self) -> str:
        if os.geteuid() != 0:
            return "only root may mount a file system to fill"
        return "" if can_mount() else "mounting a tmpfs is not permitted here"

    def strike(self, world: World, chance: random.Random) -> None:
        ballast = world.disk / "ballast"
        if ballast.exists():
            return
        refused = world.refused_for_space()
        over = world.hit("outage")
        fill(ballast)
        # What is set aside for the log is used up, too: then the server goes down.
        if chance.random() < 0.5:
            with contextlib.suppress(psycopg.Error), world.session() as session:
                for _ in range(100):
                    session.execute("SELECT pg_logical_emit_message(false, 'chaos', repeat('x', 1000000))")

        def empty() -> None:
            fill(ballast)
            felt = world.refused_for_space() > refused
            ballast.unlink(missing_ok=True)
            world.notes.did["disk full" if felt else "disk full, and nobody noticed"] += 1
            world.server_back(over)

        for seconds in (1, 2, 3):
            world.after(seconds, lambda: fill(ballast))
        world.after(chance.uniform(4, 8), empty)


def fill(ballast: Path) -> None:
    """To the last page."""
    for size in (1 << 20, 1 << 12):
        with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
            while file.write(b"\0" * size):
                pass


def can_mount() -> bool:
    if shutil.which("mount") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            return False
        subprocess.run(["umount", folder], check=True)
    return True


class Deploy(Fault):
    name, says = (
        "deploy",
        "schedulers replaced one by one by the other version of the code, under pause, keep or delete",
    )

    def strike(self, world: World, chance: random.Random) -> None:
        world.version = "new" if world.version == "old" else "old"
        world.on_unregistered = chance.choice(("pause", "keep", "delete"))
        gently = chance.random() < 0.6  # each new one fires before the next old one goes
        if chance.random() < 0.5:  # as a release does: at once, whatever the schedulers alive declare
            world.run_command("syncschedules", f"--on-unregistered={world.on_unregistered}")
        world.notes.did[f"deploy, {world.on_unregistered}"] += 1
        for member in world.some(SCHEDULER):
            before = set(map(id, world.members))
            world.stop([member])
            world.tend()
            new = [m for m in world.members if m.role == SCHEDULER and id(m) not in before]
            if gently:
                world.until(lambda new=new: all(not m.alive or m.has_started for m in new), 20)


NAMED = ("all", "latest", "skip", "buffer", "one at a time", "cron", "handed over", "only old")


class People(Fault):
    name, says = (
        "people",
        "jobs cancelled, also by force, and retried; schedules paused, resumed, triggered and made for once: by API and SQL",
    )

    def strike(self, world: World, chance: random.Random) -> None:
        for do in chance.sample(("cancel", "force", "retry", "pause", "resume", "trigger"), 3):
            world.person(do=do, **({"name": chance.choice(NAMED)} if do in ("pause", "resume", "trigger") else {}))
            world.notes.did[f"a person, by API: {do}"] += 1
        with contextlib.suppress(psycopg.Error), world.session() as session:
            session.execute("SET lock_timeout = '1s'")
            for what in chance.sample(("pause", "resume", "trigger", "once"), 2):
                getattr(self, what)(session, chance)
                world.notes.did[f"a person: {what}"] += 1

    def pause(self, session: psycopg.Connection, chance: random.Random) -> None:
        session.execute(
            "UPDATE _pgwerk_schedules SET paused = true, paused_at = now(), paused_by = 'ada'"
            " WHERE name = %s AND NOT paused",
            [chance.choice(("all", "latest", "skip", "handed over"))],
        )

    def resume(self, session: psycopg.Connection, chance: random.Random) -> None:
        session.execute(
            "UPDATE _pgwerk_schedules SET paused = false, paused_at = NULL, paused_by = '' WHERE paused_by = 'ada'"
        )

    def trigger(self, session: psycopg.Connection, chance: random.Random) -> None:
        session.execute(
            "UPDATE _pgwerk_schedules SET triggered_at = coalesce(triggered_at, now()) WHERE name = %s",
            [chance.choice(("all", "buffer", "cron", "only old"))],
        )

    def once(self, session: psycopg.Connection, chance: random.Random) -> None:
        session.execute(
            "INSERT INTO _pgwerk_schedules (name, function, origin, max_attempts, next_run_at, overlap)"
            " VALUES ('once ' || gen_random_uuid(), 'tests.chaos.workload.work', 'api', 5,"
            " now() + %s * interval '1 second', 'ALLOW')",
            [chance.uniform(0, 5)],
        )


class RowLock(Fault):
    name, says = "rowlock", "another session holds rows of jobs and schedules, for longer than a lease"

    def strike(self, world: World, chance: random.Random) -> None:
        if held := hold_rows(world, jobs=4, schedules=2):
            lasts(world, LEASE * chance.uniform(1.2, 2), world.hit("lock"), held)
            world.notes.did["rows locked by another session"] += 1


def hold_rows(
    world: World, *, jobs: int, schedules: int = 0, statuses: str = "RUNNING,READY"
) -> Callable[[], None] | None:
    """Lock some rows in a session of our own; gives back what lets them go, or None where there was nothing to lock."""
    try:
        session = world.session(autocommit=False)
    except psycopg.OperationalError:
        return None
    try:
        found = session.execute(
            "SELECT id FROM _pgwerk_jobs WHERE status = ANY(%s) ORDER BY status DESC, random() LIMIT %s"
            " FOR UPDATE SKIP LOCKED",
            [statuses.split(","), jobs],
        ).fetchall()
        found += session.execute(
            "SELECT id FROM _pgwerk_schedules ORDER BY random() LIMIT %s FOR UPDATE SKIP LOCKED", [schedules]
        ).fetchall()
    except psycopg.Error:
        found = []
    if not found:
        session.close()
        return None
    return session.close


class TableLock(Fault):
    name, says = "tablelock", "another session holds a whole table (ACCESS EXCLUSIVE) for some seconds"

    def strike(self, world: World, chance: random.Random) -> None:
        table = chance.choice(("_pgwerk_jobs", "_pgwerk_schedules", "_pgwerk_processes", "_pgwerk_queues"))
        over = world.hit("lock")
        try:
            session = world.session(autocommit=False)
            session.execute("SET lock_timeout = '2s'")
            session.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        except psycopg.Error:
            over()
            return
        lasts(world, chance.uniform(1, 1.5 * LEASE), over, session.close)
        world.notes.did[f"lock {table}"] += 1


class HalfOpen(Fault):
    name, says = (
        "halfopen",
        (
            "packets dropped in a network namespace, of all connections or of those that there are;"
            " a proxy that goes on acknowledging, and passes nothing on"
        ),
    )
    # By then a process must have noticed.
    notices = 3 * LEASE

    def missing(self) -> str:
        return "" if routes.can_make_networks() else "a network namespace takes root and Debian's iproute2"

    def strike(self, world: World, chance: random.Random) -> None:
        assert world.wire is not None
        what = chance.choice(("drop all", "forget connections", "swallow"))
        over = world.hit("partition", route="wire")
        if what == "drop all":
            world.wire.drop()
            lasts(world, chance.uniform(1, 2 * LEASE), lambda: world.after(self.notices, over), world.wire.mend)
        elif what == "forget connections":
            world.wire.forget_connections()
            world.after(self.notices, over)
        else:
            world.wire.proxy.swallow()
            world.after(self.notices, over)
        world.notes.did[f"half-open connections: {what}"] += 1


class PgClock(Fault):
    name, says = "pgclock", "PostgreSQL's own clock jumps ahead by seconds, and back a moment later"

    def missing(self) -> str:
        return "" if libfaketime() else "Debian's faketime is not installed"

    def strike(self, world: World, chance: random.Random) -> None:
        seconds = chance.uniform(1, 2 * LEASE)
        over = world.hit("clock")
        step(world, seconds)
        # What became due ahead of time is not due again: it takes as long until the next.
        lasts(
            world,
            chance.uniform(1, 4),
            lambda: world.after(seconds, over),
            lambda: step(world, 0),
        )
        world.notes.did["step PostgreSQL's clock"] += 1


def step(world: World, seconds: float) -> None:
    """Put PostgreSQL's clock ahead of the host's by so much."""
    world.ahead = seconds
    world.clock.write_text(f"+{seconds:.1f}")


class Timeouts(Fault):
    name, says = "timeouts", "time limits of the role: statements, locks, idle sessions, transactions"
    limits: tuple[tuple[str, str], ...] = (
        ("statement_timeout", "150ms"),
        ("lock_timeout", "50ms"),
        ("idle_in_transaction_session_timeout", "100ms"),
        ("idle_session_timeout", "400ms"),
        ("transaction_timeout", "200ms"),
    )

    def strike(self, world: World, chance: random.Random) -> None:
        name, value = chance.choice(self.limits)
        if not self._say(world, f"ALTER ROLE {ROLE} SET {name} = '{value}'"):
            return
        cut(world)  # only new sessions hear of it

        def end() -> None:
            if self._say(world, f"ALTER ROLE {ROLE} RESET ALL"):
                cut(world)
            else:
                world.after(1, end)

        lasts(world, chance.uniform(3, 2 * LEASE), world.hit("limit"), end)
        world.notes.did[f"{name} of {value}"] += 1

    def _say(self, world: World, statement: str) -> bool:
        try:
            with world.session() as session:
                session.execute(statement)
        except psycopg.errors.UndefinedObject:  # before PostgreSQL 17
            return False
        except psycopg.OperationalError:
            return False
        return True


class ConnLimit(Fault):
    name, says = "connlimit", "the role may have two connections, or none, for some seconds"

    def strike(self, world: World, chance: random.Random) -> None:
        # Not for longer than leases last without being renewed: some processes are cut off, and others are not.
        limits(world, chance.choice((0, 2)))
        cut(world)
        lasts(world, chance.uniform(1, LEASE / 2), world.hit("limit"), lambda: limits(world, -1))
        world.notes.did["connection limit"] += 1


def limits(world: World, connections: int) -> None:
    try:
        with world.session() as session:
            session.execute(f"ALTER ROLE {ROLE} CONNECTION LIMIT {connections}")
    except psycopg.OperationalError:
        if connections < 0:
            world.after(0.5, lambda: limits(world, connections))


class OddJobs(Fault):
    name, says = "oddjobs", "jobs that fork, exit, end their process, and raise and return what cannot be shown"

    def strike(self, world: World, chance: random.Random) -> None:
        functions = chance.sample(names.ODD_JOBS, 4)
        with contextlib.suppress(psycopg.OperationalError), world.session() as session:
            session.execute(
                "INSERT INTO _pgwerk_jobs (key, kind, function, max_attempts, timeout)"
                " SELECT name || ' ' || gen_random_uuid(), 'adhoc', 'tests.chaos.odd.' || name,"
                # What cannot be stored fails at once.
                " CASE WHEN name LIKE 'returns%%' THEN 1 ELSE 2 END, CASE WHEN name = %s THEN 1 END"
                " FROM unnest(%s::text[]) AS name",
                [names.TIMED_JOB, functions],
            )
            world.notes.did["an odd job"] += len(functions)


class CleanUp(Fault):
    name, says = "cleanup", "finished jobs expire after three seconds, and are deleted under load"
    settings: ClassVar[dict[str, str]] = {"CHAOS_PGWERK": json.dumps({"RESULT_TTL": 3, "FAILURE_TTL": 10})}

    def strike(self, world: World, chance: random.Random) -> None:
        for _ in range(3):
            world.person(do="clean")
        world.notes.did["clean up"] += 3


FAULTS: dict[str, type[Fault]] = {
    fault.name: fault
    for fault in (
        Kill, Freeze, Points, Restart, Stop, Cut, Cable, HalfOpen, Snapshot, PgBouncer, Clock, PgClock, Disk, RowLock,
        TableLock, Timeouts, ConnLimit, Deploy, People, OddJobs, CleanUp,
    )
}  # fmt: skip


@dataclass(frozen=True)
class Strike:
    """One fault of a run: what it does is drawn from a seed of its own."""

    fault: str
    seed: str
    pause: float  # seconds until the next


def strikes(seed: int, among: Sequence[str]) -> Iterator[Strike]:
    """For ever: each fault once in every round, in an order of the seed's."""
    chance = random.Random(seed)
    for number in itertools.count():
        for name in chance.sample(list(among), len(among)):
            yield Strike(name, f"{seed}/{number}/{name}", chance.uniform(0.5, 3))
