"""Running one job in this process: import its function, call it, and leave Django as the next job should find it."""

import contextlib
import dataclasses
import functools
import inspect
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn, cast

from asgiref.sync import SyncToAsync, ThreadSensitiveContext, sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.db import close_old_connections, connections
from django.utils import timezone, translation
from django.utils.module_loading import import_string

from pgwerk_django import conf, jobs, registry, spans
from pgwerk_django.exceptions import (
    FunctionNotFound,
    JobCancelled,
    TransactionLeftOpen,
    class_path,
    exc_info_of,
    in_one_line,
    is_ours,
    named,
    shown,
    summary_of,
    text_of,
    traceback_of,
)
from pgwerk_django.models import Job, Status
from pgwerk_django.policies import backoff_delay
from pgwerk_django.targets.base import found_at
from pgwerk_django.targets.django_tasks import is_task
from pgwerk_django.targets.results import TaskRun, enqueued
from pgwerk_django.targets.worker import function_of
from pgwerk_django.text import LONGEST_ERROR, storable, storable_end

logger = logging.getLogger("pgwerk_django.job")

LONGEST_SUMMARY = 1000
LONGEST_STACK = 5000
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
    return backoff_delay(attempt - 1, first=FIRST_BACKOFF, longest=LONGEST_BACKOFF)


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
        """Raises `ValueError` or `TypeError` for a result that is no JSON."""
        read = registry.json_value(value, "the job's result", default=registry.plain)
        return cls(Status.SUCCESSFUL, result=json.dumps(read))

    @classmethod
    def refused(cls, error: BaseException) -> "Outcome":
        """Of a job whose result is no JSON. It ran; another attempt would run it again and return the same."""
        text = storable(text_of(error), LONGEST_ERROR)
        return cls(Status.FAILED, error=text, summary=text[:LONGEST_SUMMARY], exception=storable(class_path(error)))

    def packed(self) -> dict[str, Any]:
        """Return the fields, for `Outcome(**fields)` in another process: Python's own types, which can be read anywhere."""
        return {name: getattr(self, name) for name in self.__slots__} | {"status": str.__str__(self.status)}

    @classmethod
    def failure(cls, job: Job, error: BaseException) -> "Outcome":
        # What we raise says all there is to say; of what the job raised, the place matters too.
        text = text_of(error) if is_ours(error) else traceback_of(error)
        text = storable_end(text, LONGEST_ERROR)
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
        self._failure: tuple[int, Outcome] | None = None  # the last exception's id, and what came of it

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

    def success(self, value: object) -> Outcome:
        try:
            return Outcome.success(value)
        except (TypeError, ValueError) as error:
            outcome = Outcome.refused(error)
            if self.run is None:
                log_failure(self.job, outcome, error)
            return outcome

    def failure(self, error: BaseException) -> Outcome:
        """Return the outcome of a job that raised `error`, and log it. The same error, asked again, gives the same outcome."""
        # By its id: to keep the exception would keep the job's frames, with all that they hold.
        if self._failure is None or self._failure[0] != id(error):
            outcome = Outcome.failure(self.job.row, error)
            if self._does_not_fit(error):
                outcome.unknown = "arguments"
            self._failure = (id(error), outcome)
            # Of a Task's last attempt the framework leaves a record of its own.
            if self.run is None or outcome.status == Status.READY or self.job.stopping is not None:
                log_failure(self.job, outcome, error)
        return self._failure[1]

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
    log_failure(job, outcome, error)
    return outcome


def log_failure(job: Any, outcome: Outcome, error: BaseException) -> None:
    """Leave a record with the traceback: ERROR, or WARNING while attempts are left. Error trackers listen for these.

    None of a job that was cancelled, nor of one that newer code is to run. Never raises.
    """
    try:
        stopping = getattr(job, "stopping", None)
        if outcome.unknown or outcome.status == Status.CANCELLED or isinstance(stopping, JobCancelled):
            return
        if stopping is not None:  # the exception by which it was stopped says nothing; where it was does
            error = stopping.with_traceback(exc_info_of(error)[2])
        logger.log(
            logging.WARNING if outcome.status == Status.READY else logging.ERROR,
            "job %s failed: %s, attempt %s of %s",
            in_one_line(job.key), in_one_line(job.function), job.attempt, job.max_attempts,
            exc_info=exc_info_of(error),
            extra={"job_id": str(job.pk), "job_key": job.key, "job_function": job.function, "job_attempt": job.attempt},
        )  # fmt: skip
    except BaseException:  # noqa: BLE001, S110  # a handler of others, or a stream that a job closed
        pass


def shown_stack(frames: Iterator[FrameType]) -> str:
    """Return a stack as a traceback shows it, without our own frames at its top; of a long one the end."""
    shown = traceback.StackSummary.extract((frame, frame.f_lineno) for frame in frames)
    calls = [n for n, each in enumerate(shown) if each.filename == __file__ and each.name in ("__call__", "acall")]
    text = "".join(traceback.StackSummary.from_list(shown[calls[-1] + 1 if calls else 0 :]).format())
    lines = storable(text[-LONGEST_STACK:]).splitlines(keepends=True)
    return "".join(lines[1:] if len(text) > LONGEST_STACK else lines)


def with_stack(error: str, stack: str) -> str:
    """Return an error with the stack below it. All lines but the first are indented: it is still the only one of its kind."""
    return f"{error}\n  It was here (most recent call last):\n{stack}".rstrip() if stack else error


def around(job: jobs.CurrentJob) -> Any:
    """Return the context manager of `PGWERK["AROUND_JOB"]` for a job. Raises `ImproperlyConfigured`, and what it raises."""
    path = conf.current().AROUND_JOB
    if path is None:
        return _NOTHING
    manager = around_job(path)(job)
    if not (hasattr(manager, "__enter__") or (hasattr(manager, "__aenter__"))):
        raise ImproperlyConfigured(
            f"PGWERK['AROUND_JOB'] ({path!r}) must return a context manager, got {shown(manager)}"
        )
    return manager


_NOTHING = contextlib.nullcontext()


@functools.cache
def around_job(path: str) -> Callable[[jobs.CurrentJob], Any]:
    """Raises `ImproperlyConfigured`."""
    try:
        found = import_string(path)
    except Exception as error:
        raise ImproperlyConfigured(
            f"PGWERK['AROUND_JOB'] must lead to a function that returns a context manager, got {path!r}: {named(error)}"
        ) from error
    if not callable(found):
        raise ImproperlyConfigured(
            f"PGWERK['AROUND_JOB'] must lead to a function that returns a context manager, got {path!r}, which is"
            f" {shown(found)}"
        )
    return cast("Callable[[jobs.CurrentJob], Any]", found)


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


def called(call: Call) -> Outcome:
    """Call a plain function, within `PGWERK["AROUND_JOB"]`. Raises what that or the function raises."""
    with around(call.job):
        try:
            call.begin()
            return call.success(call())
        except BaseException as error:
            call.failure(error)  # in here: its record in the log is written within that context manager
            raise
    return Outcome(Status.SUCCESSFUL, result="null")  # which suppressed an exception


async def acalled(call: Call, awaited: Callable[[Call], Coroutine[Any, Any, Any]] = Call.acall) -> Outcome:
    """The same for an async function. An async context manager is entered as one."""
    manager = around(call.job)
    async with manager if hasattr(manager, "__aenter__") else _Async(manager):
        try:
            if call.run is not None:
                await sync_to_async(call.begin)()
            return call.success(await awaited(call))
        except BaseException as error:
            call.failure(error)
            raise
    return Outcome(Status.SUCCESSFUL, result="null")


class _Async:
    """A context manager, entered and left on the event loop."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager

    async def __aenter__(self) -> object:
        return self._manager.__enter__()

    async def __aexit__(self, *raised: Any) -> Any:
        return self._manager.__exit__(*raised)


def _run(call: Call) -> Outcome:
    try:
        with jobs.running(call.job), _django():
            outcome = called(call)
    except BaseException as error:  # noqa: BLE001  # a job that calls sys.exit() must not end its worker's thread
        return _ended(call, call.failure(error))  # in here: receivers may ask for the exception
    return _ended(call, outcome)


async def _arun(call: Call) -> Outcome:
    context = ThreadSensitiveContext()
    async with context:
        try:
            with jobs.running(call.job):
                outcome = await _called(call, context)
        except BaseException as error:  # noqa: BLE001
            return await _aended(call, call.failure(error))
        return await _aended(call, outcome)


async def _called(call: Call, context: ThreadSensitiveContext) -> Outcome:
    try:
        return await acalled(call)
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
            if connection.connection is None and connection.settings_dict["CONN_MAX_AGE"] == 0:
                # A session is opened for each job anyway. Django's object for it has a memory of its own, such as the
                # schema of django-tenants.
                del connections[connection.alias]
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
