"""Whether the auditor sees what it should: builds that lack a guard, each attacked where that guard would have held.

Some guards cover for each other; these builds lack one and stay right, which is shown, too.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos import names
from tests.chaos.auditor import Verdict, audit
from tests.chaos.faults import arm, hold_rows
from tests.chaos.report import Report
from tests.chaos.world import LEASE, SCHEDULER, WORKER, Member, World

AWAY = 4.0  # seconds without a scheduler: longer than the misfire grace of the schedules
CLAIMERS = 4
OPEN = "SELECT count(*) FROM _pgwerk_jobs WHERE status IN ('READY', 'RUNNING')"


def killed_in_between(world: World) -> None:
    """Schedulers that are killed between the two commits of their build (or where the product has nothing to commit yet)."""
    point = names.BETWEEN if any(name in names.TWO_COMMITS for name in world.broken) else "tick: after insert"
    for _ in range(2):
        member = arm(world, point, names.KILL, 2, 60)
        world.until(lambda member=member: not member.alive, 60)
    world.run_for(2)


def frozen_after_a_claim(world: World) -> None:
    """After a while without schedulers one freezes between reading and writing, and others tick meanwhile."""
    world.wanted[SCHEDULER], world.thaws_after = 0, float("inf")
    for member in world.some(SCHEDULER):
        world.kill(member)
    over = world.hit("away")
    world.run_for(AWAY)
    over()
    frozen: Member = arm(world, "tick: after claim", names.FREEZE, 1, 60)
    world.until(frozen.is_stopped, 60)
    world.wanted[SCHEDULER] = 2
    count = "SELECT count(*) FROM _pgwerk_jobs"
    seen = world.ask(count)
    # Where schedulers wait for its locks, nothing comes of the others.
    world.until(lambda: world.ask(count) > seen, 10 if "no-skip-locked" in world.broken else 60)
    world.thaw(frozen)
    world.until(lambda: "ticked" in frozen.log.read_text(), 60)
    world.run_for(1)


def many_jobs(world: World, number: int = 2000) -> None:
    """Jobs that all workers claim at once. There is no fault."""
    world.until(lambda: all(member.has_started for member in world.some(WORKER)), 60)
    enqueue(world, "work", number)
    world.until(lambda: world.ask(OPEN) == 0, 60)


def many_jobs_and_faults_elsewhere(world: World) -> None:
    """The same, while faults hit a scheduler that has nothing to do with these jobs."""
    world.until(lambda: world.some(SCHEDULER), 60)
    world.freeze(world.some(SCHEDULER)[0], 5, whole=False)
    many_jobs(world)


def enqueue(world: World, function: str, number: int) -> None:
    with world.session() as session:
        session.execute(
            "INSERT INTO _pgwerk_jobs (kind, function, max_attempts) SELECT 'adhoc', %s, 5 FROM generate_series(1, %s)",
            [f"tests.chaos.workload.{function}", number],
        )


def killed_after_a_claim(world: World) -> None:
    """A worker is killed when it has claimed jobs, and none of them has begun."""
    for member in world.some(WORKER):
        world.kill(member)
    world.wanted[WORKER] = 0
    claimed = arm(world, "worker: after claim", names.KILL, 1, 60)
    world.until(lambda: not claimed.alive, 60)
    world.wanted[WORKER] = 1
    world.run_for(2 * LEASE)


def outage_longer_than_a_lease(world: World) -> None:
    """PostgreSQL is away for longer than a lease, while workers that live run jobs."""
    world.until(lambda: all(member.has_started for member in world.some(WORKER)), 60)
    enqueue(world, "work_through_an_outage", 2 * CLAIMERS)
    world.until(lambda: (world.ask(f"{OPEN} AND status = 'RUNNING' AND NOT prefetched") or 0) == 2 * CLAIMERS, 30)
    over = world.hit("outage")
    world.server.halt("fast")
    world.run_for(1.5 * LEASE)
    world.server_back(over)
    world.until(lambda: world.ask(OPEN) == 0, 60)


@dataclass(frozen=True)
class Case:
    broken: tuple[str, ...]
    attack: Callable[[World], None]
    found: tuple[str, ...]  # kinds of findings; none where another guard stands
    why: str
    schedulers: int = 1
    workers: int = 1
    times: int = 1


CASES = (
    Case((), killed_in_between, (), "nothing is broken"),
    Case(
        ("advance-before-insert",),
        killed_in_between,
        ("lost",),
        "one statement inserts and advances: what dies in between leaves neither",
    ),
    Case(
        ("insert-before-advance",),
        killed_in_between,
        (),
        "the unique key stands: what is recorded again is refused",
    ),
    Case(
        ("insert-before-advance", "key-not-unique"),
        killed_in_between,
        ("doubled",),
        "without the key, what dies in between is recorded twice",
    ),
    Case(
        ("no-skip-locked",),
        frozen_after_a_claim,
        (),
        "the row lock stands: schedulers wait, which costs time and no due time",
    ),
    Case(
        ("key-not-unique",),
        frozen_after_a_claim,
        (),
        "the row lock stands: no two schedulers plan one schedule at once",
    ),
    Case(
        ("no-row-lock",),
        frozen_after_a_claim,
        (),
        "the unique key stands: it refuses the whole tick that another has made meanwhile, and that is planned anew",
    ),
    Case(
        ("no-row-lock", "key-not-unique"),
        frozen_after_a_claim,
        ("doubled",),
        "nothing keeps two schedulers from recording the same",
    ),
    Case(
        ("unbegun-attempts",),
        killed_after_a_claim,
        ("wrong",),
        "what a lost worker had only claimed is given back with its attempt",
    ),
    Case((), outage_longer_than_a_lease, (), "who lives has time to renew leases", schedulers=0, workers=CLAIMERS),
    Case(
        ("recovery-in-one-look",),
        outage_longer_than_a_lease,
        ("wrong",),
        "a second look leaves time to renew leases after an outage",
        schedulers=0,
        workers=CLAIMERS,
    ),
    Case((), many_jobs, (), "each claim locks what it takes", schedulers=0, workers=CLAIMERS),
    Case(
        ("claims-unlocked",),
        many_jobs,
        ("wrong",),
        "without faults, nothing explains a second claim",
        schedulers=0,
        workers=CLAIMERS,
        times=10,
    ),
    Case(
        ("claims-unlocked",),
        many_jobs_and_faults_elsewhere,
        ("wrong",),
        "a fault that hits another process explains nothing",
        workers=CLAIMERS,
    ),
)


def tried(case: Case, patience: float = 1) -> Verdict:
    with World(schedulers=case.schedulers, workers=case.workers, broken=list(case.broken), patience=patience) as world:
        if case.schedulers:
            world.until(lambda: world.ask("SELECT count(*) FROM _pgwerk_jobs"), 60)
        else:
            world.tend()
        case.attack(world)
        world.wanted[SCHEDULER] = max(world.wanted[SCHEDULER], min(case.schedulers, 1))
        evidence = world.judged()
        if world.notes.problems:  # what does not run proves nothing
            raise AssertionError(f"the broken build ended by itself: {world.notes.problems[0]}")
        return audit(evidence)


def locked_rows(times: int, patience: float = 1) -> Report:
    """Rows of running jobs are locked for longer than a lease, beside four workers that recover what is lost."""
    with World(schedulers=0, workers=CLAIMERS, patience=patience) as world:
        world.tend()
        world.until(lambda: all(member.has_started for member in world.some(WORKER)), 60)
        for _ in range(times):
            enqueue(world, "work_for_seconds", CLAIMERS)
            world.until(lambda: world.ask(f"{OPEN} AND status = 'RUNNING'"), 30)
            held = hold_rows(world, jobs=CLAIMERS, statuses="RUNNING")
            if held is None:
                raise AssertionError("there was no running job to lock")
            over = world.hit("lock")
            world.run_for(1.5 * LEASE)
            held()
            over()
            world.notes.did["running jobs locked for longer than a lease"] += 1
            world.until(lambda: world.ask(OPEN) == 0, 30)
        evidence = world.judged()
        return Report(0, 0, audit(evidence), world.notes)


def as_expected(case: Case, verdict: Verdict) -> bool:
    found = {kind for kind in verdict.KINDS if getattr(verdict, kind)}
    return set(case.found) <= found if case.found else not found


def told(case: Case, verdict: Verdict) -> str:
    build = " + ".join(case.broken) or "the product"
    found = ", ".join(f"{len(getattr(verdict, kind))} {kind}" for kind in verdict.KINDS if getattr(verdict, kind))
    right = "as it should" if as_expected(case, verdict) else "NOT AS IT SHOULD"
    return f"{build}: {found or 'nothing found'}, {right} ({case.why})"
