"""Whether the auditor sees what it should: builds that lack a guard, each attacked where that guard would have held.

Some guards cover for each other; these builds lack one and stay right, which is shown, too.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos import names
from tests.chaos.auditor import Verdict, audit
from tests.chaos.faults import arm
from tests.chaos.world import SCHEDULER, Member, World

AWAY = 4.0  # seconds without a scheduler: longer than the misfire grace of the schedules


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
    world.run_for(AWAY)
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


@dataclass(frozen=True)
class Case:
    broken: tuple[str, ...]
    attack: Callable[[World], None]
    found: tuple[str, ...]  # kinds of findings; none where another guard stands
    why: str


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
)


def tried(case: Case) -> Verdict:
    with World(schedulers=1, workers=1, broken=list(case.broken)) as world:
        world.until(lambda: world.ask("SELECT count(*) FROM _pgwerk_jobs"), 60)
        case.attack(world)
        world.wanted[SCHEDULER] = max(world.wanted[SCHEDULER], 1)
        evidence = world.judged()
        if world.notes.problems:  # what does not run proves nothing
            raise AssertionError(f"the broken build ended by itself: {world.notes.problems[0]}")
        return audit(evidence)


def as_expected(case: Case, verdict: Verdict) -> bool:
    found = {kind for kind in verdict.KINDS if getattr(verdict, kind)}
    return set(case.found) <= found if case.found else not found


def told(case: Case, verdict: Verdict) -> str:
    build = " + ".join(case.broken) or "the product"
    found = ", ".join(f"{len(getattr(verdict, kind))} {kind}" for kind in verdict.KINDS if getattr(verdict, kind))
    right = "as it should" if as_expected(case, verdict) else "NOT AS IT SHOULD"
    return f"{build}: {found or 'nothing found'}, {right} ({case.why})"
