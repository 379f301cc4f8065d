"""Running one job in this process: import its function, call it, and leave Django as the next job should find it."""

import contextlib
import dataclasses
import functools
import inspect
import json
import random
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from asgiref.sync import SyncToAsync, ThreadSensitiveContext, sync_to_async
from django.db import connections
from django.utils import timezone, translation

from pgwerk_django import jobs, registry
from pgwerk_django.exceptions import JobCancelled, PgwerkError, TransactionLeftOpen
from pgwerk_django.models import Job, Status

LONGEST_ERROR = 50_000
LONGEST_SUMMARY = 1000
FIRST_BACKOFF = 10  # seconds before the second attempt, where the schedule says nothing else
LONGEST_BACKOFF = 3600


def backoff_before(attempt: int, backoff: int | list[int] | None) -> float:
    """Seconds from the failed attempt number `attempt` to the next: as the schedule says, else doubling, with jitter."""
    if isinstance(backoff, list):
        return backoff[min(attempt, len(backoff)) - 1]
    if backoff is not None:
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
    delay: float = 0  # seconds to the next attempt
    seconds: float = 0  # how long it ran
    ended: float = dataclasses.field(default_factory=time.monotonic)

    @classmethod
    def success(cls, value: object) -> "Outcome":
        try:
            return cls(Status.SUCCESSFUL, result=json.dumps(registry.json_value(value, "the job's result")))
        except (TypeError, ValueError) as error:
            # It ran; another attempt would run it again and return the same.
            summary = str(error)[:LONGEST_SUMMARY]
            return cls(Status.FAILED, error=str(error), summary=summary, exception=class_path(error))

    @classmethod
    def failure(cls, job: Job, error: BaseException) -> "Outcome":
        # What we raise says all there is to say; of what the job raised, the place matters too.
        text = str(error) if isinstance(error, PgwerkError) else "".join(traceback.format_exception(error))
        text = text.replace("\0", "\\0").encode("utf-8", "replace").decode()[-LONGEST_ERROR:]
        summary = f"{type(error).__name__}: {error}".splitlines()[0][:LONGEST_SUMMARY]
        failed = functools.partial(cls, error=text, summary=summary, exception=class_path(error))
        if isinstance(error, JobCancelled):
            return failed(Status.CANCELLED)
        if job.attempt < job.max_attempts:
            return failed(Status.READY, delay=backoff_before(job.attempt, job.backoff))
        return failed(Status.FAILED)


def class_path(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__qualname__}"


def is_async(func: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(getattr(func, "__call__", None))  # noqa: B004


def run(job: jobs.CurrentJob, func: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Outcome:
    """Call a plain function in this thread."""
    try:
        with jobs.running(job), _django():
            return Outcome.success(func(*args, **kwargs))
    except BaseException as error:  # noqa: BLE001  # a job that calls sys.exit() must not end its worker's thread
        return Outcome.failure(job.row, error)


async def arun(job: jobs.CurrentJob, func: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Outcome:
    """Call an async function on this loop. Its synchronous parts, so its database connections, get a thread of its own."""
    context = ThreadSensitiveContext()
    try:
        with jobs.running(job):
            async with context:
                try:
                    return Outcome.success(await func(*args, **kwargs))
                finally:
                    if context in SyncToAsync.context_to_thread_executor:  # it has such parts
                        await sync_to_async(leave_clean)()
    except BaseException as error:  # noqa: BLE001
        return Outcome.failure(job.row, error)


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


def is_left_open(connection: Any) -> bool:
    if connection.connection is None:
        return False
    return connection.in_atomic_block or (connection.settings_dict["AUTOCOMMIT"] and not connection.autocommit)
