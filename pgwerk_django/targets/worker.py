"""Our own worker: plain and async functions, called in its child processes, and Django Tasks of our own backend."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from pgwerk_django.exceptions import FunctionNotFound
from pgwerk_django.registry import body_of
from pgwerk_django.targets import django_tasks, results
from pgwerk_django.targets.base import EVERYTHING, Target, found_at


class WorkerTarget(Target):
    name = "worker"
    honours = EVERYTHING
    tells_the_end = True

    def accepts(self, found: Any) -> bool:
        return django_tasks.is_ours(found)

    def says(self, found: Any, variant: Any) -> dict[str, Any]:
        return {**django_tasks.columns_of(variant), **variant.get_backend().columns}

    def function_problems(self, function: str) -> Iterator[str]:
        try:
            func = load(function)
        except FunctionNotFound as error:
            yield str(error)
            return
        if inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
            yield f"{function!r} is a generator: the target 'worker' calls a function once and keeps what it returns"
        found = found_at(function)
        if getattr(found, "takes_context", False) and results.backend_of(found) is None:
            yield (
                f"{function!r} takes a task's context, for which the target 'worker' needs an alias in TASKS with the backend"
                f" 'pgwerk_django.backend.PgwerkBackend', got none"
            )


def load(path: str) -> Callable[..., Any]:
    """The function at a dotted path (of a Django Task, the one inside). Raises `FunctionNotFound`."""
    return function_of(found_at(path), path)


def function_of(found: Any, path: str) -> Callable[..., Any]:
    func = found if callable(found) else body_of(found)
    if not callable(func):
        raise FunctionNotFound(f"{path!r} is not a function, but {type(found).__name__}", unknown=True)
    return func
