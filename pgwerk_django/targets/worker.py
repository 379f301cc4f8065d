"""Our own worker: plain and async functions, called in its child processes."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from django.utils.module_loading import import_string

from pgwerk_django.exceptions import FunctionNotFound
from pgwerk_django.registry import body_of
from pgwerk_django.targets.base import Target


class WorkerTarget(Target):
    name = "worker"

    def problems(self, function: str) -> Iterator[str]:
        try:
            func = load(function)
        except FunctionNotFound as error:
            yield str(error)
            return
        if inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
            yield f"{function!r} is a generator: the target 'worker' calls a function once and keeps what it returns"
        if getattr(import_string(function), "takes_context", False):
            yield f"{function!r} takes a task's context, which the target 'worker' does not pass"


def load(path: str) -> Callable[..., Any]:
    """The function at a dotted path (of a Django Task, the one inside). Raises `FunctionNotFound`."""
    try:
        found = import_string(path)
    except Exception as error:
        raise FunctionNotFound(f"{path!r} cannot be imported: {type(error).__name__}: {error}") from error
    func = found if callable(found) else body_of(found)
    if not callable(func):
        raise FunctionNotFound(f"{path!r} is not a function, but {type(found).__name__}")
    return func
