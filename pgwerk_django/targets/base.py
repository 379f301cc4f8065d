"""The seam: what a target is, and what it must be able to do."""

import contextlib
import difflib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar

from django.utils.module_loading import import_string

from pgwerk_django.exceptions import FunctionNotFound, named, shown
from pgwerk_django.models import Job
from pgwerk_django.policies import Overlap
from pgwerk_django.registry import body_of

# What a schedule may ask of whoever runs its jobs: the column, what is in it when it does not ask, what it asks for.
DEMANDS: Mapping[str, tuple[object, str]] = {
    "priority": (0, "put one job before another"),
    "timeout": (None, "stop a job that runs too long"),
    "max_attempts": (1, "try a job again"),
    "backoff": (None, "wait between attempts"),
    "start_within": (None, "leave out a job that does not start in time"),
}
EVERYTHING = frozenset(DEMANDS)


class Target(ABC):
    """One kind of engine that runs jobs."""

    name: str
    honours: ClassVar[frozenset[str]]  # of `DEMANDS`; a schedule that asks for another is refused by `manage.py check`
    tells_the_end: ClassVar[bool]  # whether we learn when a job has ended

    def accepts(self, found: Any) -> bool:
        """Whether what stands at a function's path is of its own kind, and so comes here without being told."""
        return False

    def says(self, found: Any, variant: Any) -> dict[str, Any]:
        """Columns that such an object decides by itself; `variant` is the one that was scheduled, if it is another."""
        return {}

    @abstractmethod
    def function_problems(self, function: str) -> Iterator[str]:
        """A sentence for each reason why what this dotted path leads to cannot run here."""

    def problems(self, row: Any) -> Iterator[str]:
        """A sentence for each reason why this schedule (or `Definition`) cannot be run here as it asks."""
        yield from self.function_problems(row.function)
        yield from self.demand_problems(row)

    def demand_problems(self, row: Any) -> Iterator[str]:
        """Those that can be told without the function."""
        for column, (usual, words) in DEMANDS.items():
            value = getattr(row, column)
            if value != usual and column not in self.honours:
                yield f"_{column} must not be given: the target {self.name!r} cannot {words}, got {shown(value)}"
        if row.overlap == Overlap.SKIP and not self.tells_the_end:
            yield (
                f"_overlap must be BUFFER_ONE or ALLOW: the target {self.name!r} does not tell when a job has ended,"
                f" got {row.overlap!r}"
            )


class ForeignTarget(Target):
    """An engine that jobs are handed over to. From then on they are its own."""

    tells_the_end = False

    def writes_to(self, job: Job) -> str | None:
        """The alias of the Django database that `send` writes to; None where it writes elsewhere.

        What is written to our own is committed together with our record of it, so the job is there exactly once.
        """
        return None

    def goes_together(self, job: Job) -> bool:
        """Whether `send_all` sends this one and others of its like all or none."""
        return self.writes_to(job) is not None

    @contextlib.contextmanager
    def connected(self) -> Iterator[Callable[[Sequence[Job]], list[str]]]:
        """`send_all`, for as long as there is something to send."""
        yield self.send_all

    def send_all(self, jobs: Sequence[Job]) -> list[str]:
        """Hand jobs over (one, or several that go together): their ids there."""
        return [self.send(job) for job in jobs]

    @abstractmethod
    def send(self, job: Job) -> str:
        """Hand a job over: the id that it has there. Raises what there is to raise; it is tried again later."""


def found_at(path: str) -> Any:
    """What stands at a dotted path. Raises `FunctionNotFound`."""
    try:
        return import_string(path)
    except Exception as error:
        raise FunctionNotFound(
            f"{path!r} cannot be imported: {named(error)}", unknown=_is_unknown(path, error)
        ) from error


def _is_unknown(path: str, error: Exception) -> bool:
    """Whether the module does not exist here, or has no such name. An error from inside the module is neither."""
    module, _dot, name = path.rpartition(".")
    if type(error) is ModuleNotFoundError:
        return f"{module}.".startswith(f"{error.name}.")
    # A module whose import fails is not in `sys.modules`.
    return type(error) is ImportError and module in sys.modules and not _has(sys.modules[module], name)


def _has(module: Any, name: str) -> bool:
    try:
        return hasattr(module, name)
    except Exception:  # noqa: BLE001  # from a `__getattr__` of the module's own
        return True


def missing_here(path: str) -> str:
    """Return why a dotted path leads to nothing that can be called, or "".

    A path whose module cannot be imported here is not judged: another service, or a worker, may have it.
    """
    module, _dot, attribute = path.rpartition(".")
    try:
        found = getattr(import_module(module), attribute, _NOTHING)
    except (Exception, SystemExit):  # noqa: BLE001
        return ""
    if found is _NOTHING:
        near = difflib.get_close_matches(attribute, dir(sys.modules[module]), 1)
        return f"{path!r} does not exist: {module} has no {attribute!r}" + (f" (but {near[0]!r})" if near else "")
    if not callable(found) and not callable(body_of(found)):
        return f"{path!r} is not a function, but {type(found).__name__}"
    return ""


_NOTHING = object()


def is_removed(path: str) -> bool:
    """Return whether the function at a dotted path was removed from code that is here.

    That is so if its module can be imported and lacks it, or if there is no such module in a package that can be imported.
    False if that package cannot be imported: it may belong to another service. A namespace package may be shared by several.
    """
    module, _dot, attribute = path.rpartition(".")
    try:
        return not hasattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        return error.name == module and _is_package(module.rpartition(".")[0])
    except (Exception, SystemExit):  # noqa: BLE001  # it is there, and cannot be imported in this process
        return False


def _is_package(path: str) -> bool:
    try:
        return getattr(import_module(path), "__file__", None) is not None
    except (Exception, SystemExit):  # noqa: BLE001
        return False
