"""One run: a world, faults until the time is over, and the auditor's verdict."""

import random
import time
from collections.abc import Callable, Sequence

from tests.chaos.auditor import audit
from tests.chaos.faults import FAULTS, Fault, strikes
from tests.chaos.report import Report
from tests.chaos.world import World


def possible(wanted: Sequence[str]) -> tuple[dict[str, Fault], dict[str, str]]:
    """The faults that this machine can have; and why it cannot have the others."""
    faults = {name: FAULTS[name]() for name in wanted}
    missing = {name: why for name, fault in faults.items() if (why := fault.missing())}
    return {name: fault for name, fault in faults.items() if name not in missing}, missing


def run(
    *,
    seed: int,
    seconds: float,
    only: Sequence[str] = (),
    broken: Sequence[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    faults, missing = possible(only or list(FAULTS))
    behind = ["direct"]
    behind += ["proxy"] if "cable" in faults else []
    behind += ["pgbouncer"] if "pgbouncer" in faults else []
    behind += ["wire"] if "halfopen" in faults else []
    settings = {name: value for fault in faults.values() for name, value in fault.settings.items()}
    started = time.monotonic()
    with World(
        broken=list(broken),
        own_disk="disk" in faults,
        own_clock="pgclock" in faults,
        behind=tuple(behind),
        settings=settings,
    ) as world:
        world.until(lambda: world.ask("SELECT count(*) FROM _pgwerk_jobs"), 60)
        ends = time.monotonic() + seconds
        for strike in strikes(seed, list(faults)):
            if time.monotonic() >= ends:
                break
            say(f"{time.monotonic() - started:6.1f} s  {strike.fault}")
            faults[strike.fault].strike(world, random.Random(strike.seed))
            world.run_for(min(strike.pause, max(ends - time.monotonic(), 0)))
        say(f"{time.monotonic() - started:6.1f} s  no more faults; waiting until everything has drained")
        evidence = world.judged()
        return Report(seed, time.monotonic() - started, audit(evidence), world.notes, missing, list(broken), evidence)
