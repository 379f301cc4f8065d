"""Who runs a job. A schedule decides when; its target decides who.

What stands at a function's path decides its target: a Django Task goes to its backend, a Celery task to Celery, anything
else to our own worker; a schedule may say otherwise. `get(name)` finds a target, and `manage.py check` asks it what it
cannot do.
"""

import dataclasses
from typing import Any

from pgwerk_django.exceptions import FunctionNotFound, shown
from pgwerk_django.registry import Definition, check_arguments
from pgwerk_django.targets.base import DEMANDS, ForeignTarget, Target, found_at, missing_here
from pgwerk_django.targets.celery import CeleryTarget
from pgwerk_django.targets.django_tasks import DjangoTasksTarget
from pgwerk_django.targets.pgwerk import PgwerkTarget
from pgwerk_django.targets.worker import WorkerTarget, load
from pgwerk_django.text import text

__all__ = [
    "DEMANDS",
    "TARGETS",
    "ForeignTarget",
    "Target",
    "check_payload",
    "get",
    "missing_here",
    "register",
    "resolved",
    "target_of",
]

WORKER = WorkerTarget()
TARGETS: dict[str, Target] = {
    target.name: target for target in (WORKER, DjangoTasksTarget(), CeleryTarget(), PgwerkTarget())
}


def register(target: ForeignTarget) -> None:
    """Make an engine of your own known under its `name`: from the `ready()` of an app, so in each process.

    Raises `TypeError` for what is no `ForeignTarget`, `ValueError` for a name that is taken or cannot be one, and for an
    ability that there is not.
    """
    if not isinstance(target, ForeignTarget):
        raise TypeError(f"target must be a ForeignTarget, got {target!r:.80}")
    name = text(target.name, "name", longest=50)
    if ":" in name or type(TARGETS.get(name, target)) is not type(target):
        raise ValueError(f"name must be one that no other target has, without a colon, got {name!r}")
    if unknown := target.honours - DEMANDS.keys():
        raise ValueError(f"honours must name some of {', '.join(DEMANDS)}, got {min(unknown)!r}")
    TARGETS[name] = target


def get(name: str) -> Target:
    """Raises `ValueError` for a target that this version does not have."""
    kind, _colon, detail = name.partition(":")
    if kind == DjangoTasksTarget.name and detail:
        return DjangoTasksTarget(detail)
    if name not in TARGETS:
        raise ValueError(f"_target must be one of {', '.join(TARGETS)}, got {shown(name)}")
    return TARGETS[name]


def target_of(found: Any) -> Target:
    """The target that an object goes to without being told."""
    return next((target for target in TARGETS.values() if target.accepts(found)), WORKER)


def resolved(definition: Definition) -> Definition:
    """The definition with a target, and with what its object says and it does not itself.

    Asked of what stands at the path in the end, so it does not matter which decorator came first.
    """
    try:
        found = found_at(definition.function)
    except FunctionNotFound:  # it need not be here, but where it runs
        found = definition.func
    named = definition.target
    if named and named.partition(":")[0] not in TARGETS:
        return definition  # which the checks and the API refuse
    target = get(named) if named else target_of(found)
    said: dict[str, Any] = {}
    if target.accepts(found):
        variant = definition.func if target.accepts(definition.func) else found
        said = target.says(found, variant)
    usual = {each.name: each.default for each in dataclasses.fields(Definition)}
    changes = {column: value for column, value in said.items() if getattr(definition, column) == usual[column]}
    return dataclasses.replace(definition, **{"target": target.name, **changes})


def check_payload(func: Any, definition: Definition) -> None:
    """Refuse what the target cannot do, and arguments that do not fit a function that can be imported here."""
    for problem in get(definition.target).demand_problems(definition):
        raise ValueError(problem)
    if isinstance(func, str):
        # Celery's tasks may have any name, whatever module of it is here.
        if definition.target != CeleryTarget.name and (missing := missing_here(func)):
            raise ValueError(f"func must be a callable or the dotted path of one: {missing}")
        try:
            load(func)
            func = found_at(func)  # a Task, not the function inside, knows of its context
        except FunctionNotFound:  # it need not be here, but where it runs
            return
    check_arguments(func, definition.args, definition.kwargs)
