"""Our own worker: plain and async functions, called in its threads."""

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from asgiref.sync import async_to_sync
from django.utils.module_loading import import_string

from pgwerk_django.exceptions import FunctionNotFound, JobTimeout
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


def call(func: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], timeout: int | None) -> Any:
    """Call a plain or an async function in this thread. Raises `JobTimeout` when an async one takes too long.

    A plain function cannot be stopped from outside: its timeout is the worker's to keep.
    """
    if not inspect.iscoroutinefunction(func):
        return func(*args, **kwargs)

    async def within_timeout() -> Any:
        clock = asyncio.timeout(timeout)
        try:
            async with clock:
                return await func(*args, **kwargs)
        except TimeoutError:
            if clock.expired():
                raise JobTimeout(timeout or 0) from None
            raise  # its own

    return async_to_sync(within_timeout)()
