"""Running one job in this process: import its function, call it, and leave Django as the next job should find it."""

import contextlib
import dataclasses
import functools
import inspect
import json
import os
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from asgiref.sync import SyncToAsync, ThreadSensitiveContext, sync_to_async
from django.db import close_old_connections, connections
from django.utils import timezone, translation

from pgwerk_django import jobs, registry, spans
from pgwerk_django.exceptions import (
    FunctionNotFound,
    JobCancelled,
    TransactionLeftOpen,
    class_path,
    is_ours,
    summary_of,
    text_of,
    traceback_of,
)
from pgwerk_django.models import Job, Status
from pgwerk_django.targets.base import found_at
from pgwerk_django.targets.django_tasks import is_task
from pgwerk_django.targets.results import TaskRun, enqueued
from pgwerk_django.targets.worker import function_of
from pgwerk_django.text import storable

LONGEST_ERROR = 50_000
LONGEST_SUMMARY = 1000
FIRST_BACKOFF = 10  # seconds before the second attempt, where the schedule says nothing else
LONGEST_BACKOFF = 3600
ENDS_WITHIN = 2.0  # seconds that a process has at its end for what is still to be written or sent


def backoff_before(attempt: int, backoff: Any) -> float:
    """Seconds from the failed attempt number `attempt` to the next: as the schedule says, else doubling, with jitter.

    What another program wrote there, and makes no sense, says nothing.
    """
    if isinstance(backoff, list) and backoff:
        backoff = backoff[min(attempt, len(backoff)) - 1]
    if isinstance(backoff, int | float) and not isinstance(backoff, bool) and 0 <= backoff <= registry.LARGEST_INTEGER:
        return backoff
    ceiling: int = min(FIRST_BACKOFF * 2 ** min(attempt - 1, 20), LONGEST_BACKOFF)
    return ceiling * random.uniform(0.5, 1)  # noqa: S311  # spreads retries, guards nothing


@dataclasses.dataclass(slots=True)
class Outcome:
    """How one run of a job ended."""

    status: str
    result: str | None = None  # JSON
    error: str = ""
    summary: str = ""  # the error in one line
    exception: str = ""  # the dotted path of its class
    told: bool = False  # to receivers of `task_finished`
    # What the code of this process does not have, and other code may: "function", or "arguments" that fit its signature.
    unknown: str = ""
    delay: float = 0  # seconds to the next attempt
    seconds: float = 0  # how long it ran
    ended: float = dataclasses.field(default_factory=time.monotonic)

    @classmethod
    def success(cls, value: object) -> "Outcome":
        try:
            read = registry.json_value(value, "the job's result", default=registry.plain)
            return cls(Status.SUCCESSFUL, result=json.dumps(read))
        except (TypeError, ValueError) as error:
            # It ran; another attempt would run it again and return the same.
            text = storable(text_of(error), LONGEST_ERROR)
            return cls(Status.FAILED, error=text, summary=text[:LONGEST_SUMMARY], exception=storable(class_path(error)))

    def packed(self) -> dict[str, Any]:
        """Return the fields, for `Outcome(**fields)` in another process: Python's own types, which can be read anywhere."""
        return {name: getattr(self, name) for name in self.__slots__} | {"status": str.__str__(self.status)}

    @classmethod
    def failure(cls, job: Job, error: BaseException) -> "Outcome":
        # What we raise says all there is to say; of what the job raised, the place matters too.
        text = text_of(error) if is_ours(error) else traceback_of(error)
        text = storable(text[-LONGEST_ERROR:])[-LONGEST_ERROR:]
        summary = storable(summary_of(error), LONGEST_SUMMARY)
        failed = functools.partial(cls, error=text, summary=summary, exception=storable(class_path(error)))
        if issubclass(type(error), JobCancelled):
            return failed(Status.CANCELLED)
        if job.attempt < job.max_attempts:
            return failed(Status.READY, delay=backoff_before(job.attempt, job.backoff))
        return failed(Status.FAILED)


def is_async(func: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(getattr(func, "__call__", None))  # noqa: B004


class Call:
    """What a job calls: to be made between `begin` and `end`, which tell of it where it is a Task of our own backend."""

    def __init__(self, job: jobs.CurrentJob, path: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raises whatever the function's module does."""
        found = found_at(path)
        task = enqueued(found, job.row) if is_task(found) else None
        self.job = job
        self.func = function_of(found, path)
        self.run = None if task is None else TaskRun(task, job.row, job.clock)
        self.args = args if self.run is None else [*self.run.context, *args]
        self.kwargs = kwargs

    def __call__(self) -> Any:
        """Call a plain function. Return what it returns, and end a copy of this process that returns here, too."""
        process = os.getpid()
        try:
            value = self.func(*self.args, **self.kwargs)
        except BaseException as error:
            if os.getpid() != process:
                end_copy(error)
            raise
        if os.getpid() != process:
            end_copy(None)
        return value

    async def acall(self) -> Any:
        """Call an async function, as `__call__` does a plain one."""
        process = os.getpid()
        try:
            value = await self.func(*self.args, **self.kwargs)
        except BaseException as error:
            if os.getpid() != process:
                end_copy(error)
            raise
        if os.getpid() != process:
            end_copy(None)
        return value

    def begin(self) -> None:
        if self.run is not None:
            self.run.started()

    def end(self, outcome: Outcome) -> Outcome:
        """Of a job that is to be tried again nothing is told; of one that was told to stop, the worker knows what it came to."""
        is_stopped = self.job.cancelled and outcome.status != Status.SUCCESSFUL
        if self.run is not None and outcome.status != Status.READY and not (is_stopped or outcome.unknown):
            self.run.finished(outcome.status, outcome.result, outcome.error, outcome.exception)
            outcome.told = True
        return outcome

    def failure(self, error: BaseException) -> Outcome:
        outcome = Outcome.failure(self.job.row, error)
        if self._does_not_fit(error):
            outcome.unknown = "arguments"
        return outcome

    def _does_not_fit(self, error: BaseException) -> bool:
        """Whether this is the TypeError of a call whose arguments do not fit the signature, so that the function never began.

        A decorator may pass other arguments than it gets, so the signature alone does not tell.
        """
        if type(error) is not TypeError or self._fits():
            return False
        codes = [frame.f_code for frame, _line in traceback.walk_tb(error.__traceback__)]
        ours = [code for code in (Call.__call__.__code__, Call.acall.__code__) if code in codes]
        if not ours:
            return False
        inside = codes[codes.index(ours[0]) + 1 :]  # decorators, and what they call
        func: Any = inspect.unwrap(self.func)
        return not inside or (
            getattr(func, "__code__", None) not in inside
            and text_of(error).startswith(f"{getattr(func, '__qualname__', '')}() ")
        )

    def _fits(self) -> bool:
        try:
            signature = inspect.signature(self.func)
        except Exception:  # noqa: BLE001  # a builtin may have none that can be read, and an object of others raise anything
            return True
        try:
            signature.bind(*self.args, **self.kwargs)
        except TypeError:
            return False
        return True


def not_loaded(job: jobs.CurrentJob, error: BaseException) -> Outcome:
    """There is no `Call`: what the function's module raised."""
    with spans.watch.job(job) as told:
        outcome: Outcome = told(Outcome.failure(job.row, error))
    if type(error) is FunctionNotFound and error.unknown:
        outcome.unknown = "function"
    return outcome


def run(call: Call) -> Outcome:
    """Call a plain function in this thread."""
    with spans.watch.job(call.job) as told:
        outcome: Outcome = told(_run(call))
    return outcome


async def arun(call: Call) -> Outcome:
    """Call an async function on this loop. Its synchronous parts, so its database connections, get a thread of its own."""
    with spans.watch.job(call.job) as told:
        outcome: Outcome = told(await _arun(call))
    return outcome


def _run(call: Call) -> Outcome:
    try:
        with jobs.running(call.job), _django():
            call.begin()
            outcome = Outcome.success(call())
    except BaseException as error:  # noqa: BLE001  # a job that calls sys.exit() must not end its worker's thread
        return _ended(call, call.failure(error))  # in here: receivers may ask for the exception
    return _ended(call, outcome)


async def _arun(call: Call) -> Outcome:
    context = ThreadSensitiveContext()
    async with context:
        try:
            with jobs.running(call.job):
                outcome = Outcome.success(await _called(call, context))
        except BaseException as error:  # noqa: BLE001
            return await _aended(call, call.failure(error))
        return await _aended(call, outcome)


async def _called(call: Call, context: ThreadSensitiveContext) -> Any:
    try:
        if call.run is not None:
            await sync_to_async(call.begin)()
        return await call.acall()
    finally:
        if context in SyncToAsync.context_to_thread_executor:  # it has synchronous parts
            await sync_to_async(leave_clean)()


def _ended(call: Call, outcome: Outcome) -> Outcome:
    if call.run is not None:
        call.end(outcome)
        close_old_connections()  # which receivers may have opened
    return outcome


async def _aended(call: Call, outcome: Outcome) -> Outcome:
    return outcome if call.run is None else await sync_to_async(_ended)(call, outcome)


@contextlib.contextmanager
def _django() -> Iterator[None]:
    """Between two jobs on one thread: no stale connection, no open transaction, no language of the job before."""
    for connection in connections.all(initialized_only=True):
        connection.close_if_unusable_or_obsolete()
    try:
        yield
    except BaseException:
        with contextlib.suppress(TransactionLeftOpen):  # the job's own error says more
            leave_clean()
        raise
    leave_clean()


def leave_clean() -> None:
    """Raises `TransactionLeftOpen`, naming the databases, once what was left open is rolled back."""
    translation.deactivate()
    timezone.deactivate()
    left_open = []
    for connection in connections.all(initialized_only=True):
        connection.queries_log.clear()
        if is_left_open(connection):
            left_open.append(connection.alias)
            connection.close()  # which rolls back
            del connections[connection.alias]  # and with it what Django remembers of the blocks
        else:
            connection.close_if_unusable_or_obsolete()
    if left_open:
        raise TransactionLeftOpen(left_open)


def forget_connections() -> None:
    """Close this thread's connections, whatever state they are in: our own clean-up after a job was cut short."""
    for connection in connections.all(initialized_only=True):
        with contextlib.suppress(Exception):
            connection.close()
        del connections[connection.alias]


# Never closed, nor collected: either would end the session that the parent goes on with.
_of_the_parent: list[Any] = []


def leave_connections_to_parent() -> None:
    """In a copy of the process, made by `os.fork()`: have the next query open a connection of the copy's own."""
    for connection in connections.all(initialized_only=True):
        _of_the_parent.append(connection)
        del connections[connection.alias]


def end_copy(error: BaseException | None) -> NoReturn:
    """End a copy of this process, made by `os.fork()` in a job, with the exit code that Python would give it.

    It must not run on as the worker's process that it is a copy of.
    """
    code = 1
    try:
        if error is None:
            code = 0
        elif not issubclass(type(error), SystemExit):
            sys.stderr.write(traceback_of(error))
        elif (asked := getattr(error, "code", None)) is None or isinstance(asked, int):
            code = (asked or 0) & 0xFF
        else:
            sys.stderr.write(f"{text_of(asked)}\n")
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(code)


def is_left_open(connection: Any) -> bool:
    if connection.connection is None:
        return False
    return connection.in_atomic_block or (connection.settings_dict["AUTOCOMMIT"] and not connection.autocommit)
