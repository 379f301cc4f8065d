"""Ad-hoc jobs: `enqueue()` writes one in the caller's transaction, `current_job()` is the one that runs here."""

import contextlib
import contextvars
import datetime as dt
from collections.abc import Iterator, Mapping
from typing import Any

from asgiref.sync import sync_to_async
from django.db import IntegrityError
from django.db.models.functions import Now

from pgwerk_django import conf
from pgwerk_django import registry as declared
from pgwerk_django.models import Job, Kind, Status, atomic

LONGEST_KEY = 255

_running: contextvars.ContextVar[Job | None] = contextvars.ContextVar("pgwerk_job", default=None)


def current_job() -> Job | None:
    """The job whose function is running here; None outside of one. Its `due_at`, `attempt` and `meta` are those of the row."""
    return _running.get()


@contextlib.contextmanager
def running(job: Job) -> Iterator[None]:
    token = _running.set(job)
    try:
        yield
    finally:
        _running.reset(token)


def enqueue(
    func: Any,
    /,
    *args: Any,
    _queue: str = "default",
    _priority: int = 0,
    _delay: int | dt.timedelta | None = None,
    _at: dt.datetime | None = None,
    _key: str | None = None,
    _timeout: int | dt.timedelta | None = None,
    _max_attempts: int = 1,
    _backoff: Any = None,
    _meta: Mapping[str, Any] | None = None,
    _result_ttl: int | dt.timedelta | None = None,
    _failure_ttl: int | dt.timedelta | None = None,
    **kwargs: Any,
) -> Job | None:
    """Write a job that calls `func` (or the function at that dotted path) with these arguments: now, `_delay` seconds from now, or `_at`.

    It is part of the caller's transaction. With a `_key` that exists already nothing is written, and None is given back.
    Raises `ValueError` or `TypeError`, naming the option, for what cannot be stored or does not fit the function.
    """
    unknown = [key for key in kwargs if key.startswith("_")]
    if unknown:
        raise TypeError(f"{unknown[0]!r} is not an option of enqueue()")
    function = declared.import_path(func)
    job = Job(
        function=function,
        args=declared.json_args(args, "args"),
        kwargs=declared.json_dict(kwargs, "kwargs"),
        queue=declared.queue(_queue, "_queue"),
        priority=declared.priority(_priority, "_priority"),
        max_attempts=declared.attempts(_max_attempts, "_max_attempts"),
        backoff=declared.backoff(_backoff, "_backoff"),
        timeout=declared.timeout(_timeout, "_timeout"),
        result_ttl=declared.ttl(_result_ttl, "_result_ttl"),
        failure_ttl=declared.ttl(_failure_ttl, "_failure_ttl"),
        meta=declared.json_dict(_meta, "_meta"),
        kind=Kind.ADHOC,
        status=Status.READY,
    )
    if _key is not None:
        job.key = declared.text(_key, "_key", longest=LONGEST_KEY)
    job.run_at = _run_at(_delay, _at)
    if not isinstance(func, str):
        declared.check_arguments(func, args, kwargs)
    using = conf.current().DATABASE
    try:
        with atomic(using):
            job.save(using=using, force_insert=True)
    except IntegrityError as error:
        if _key is None or "pgwerk_job_key" not in str(error):
            raise
        return None
    return job


async def aenqueue(func: Any, /, *args: Any, **options: Any) -> Job | None:
    return await sync_to_async(enqueue)(func, *args, **options)


def _run_at(delay: object, at: object) -> Any:
    if delay is not None and at is not None:
        raise ValueError(f"only one of _delay and _at may be given, got _delay={delay!r}, _at={at!r}")
    if delay is not None:
        return Now() + dt.timedelta(seconds=declared.duration(delay, "_delay"))
    instant = declared.instant(at, "_at")
    return Now() if instant is None else instant
