"""Who runs a job. A schedule decides when; its target decides who.

A target is a small class; `get(name)` finds it, and `manage.py check` asks it what it cannot do.
"""

from pgwerk_django.targets.base import Target
from pgwerk_django.targets.worker import WorkerTarget

TARGETS: dict[str, Target] = {target.name: target for target in (WorkerTarget(),)}


def get(name: str) -> Target:
    """Raises `ValueError` for a target that this version does not have."""
    if name not in TARGETS:
        raise ValueError(f"_target must be one of {', '.join(TARGETS)}, got {name!r:.80}")
    return TARGETS[name]
