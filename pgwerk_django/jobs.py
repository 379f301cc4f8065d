"""Ad-hoc jobs: `enqueue()` writes one in the caller's transaction, `current_job()` is the one that runs here; queues."""

import contextlib
import contextvars
import datetime as dt
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from asgiref.sync import sync_to_async
from django.db import IntegrityError, connections
from django.db.models.functions import Now

from pgwerk_django import conf, spans
from pgwerk_django import registry as declared
from pgwerk_django.exceptions import FunctionNotFound, PgwerkError, shown
from pgwerk_django.models import Job, Kind, Queue, Status, atomic, random_key
from pgwerk_django.starting import at_run_time
from pgwerk_django.targets.base import found_at, missing_here
from pgwerk_django.text import text

LONGEST_KEY = 255
LONGEST_NOTE = 200
MOST_AT_ONCE, LARGEST_MESSAGE = 5_000, 16_000_000  # jobs, and characters of arguments, in one statement
LARGEST_NUMBER = 2**53  # which JSON, and whoever reads it, still has exactly

_running: contextvars.ContextVar["CurrentJob | None"] = contextvars.ContextVar("pgwerk_job", default=None)


class CurrentJob:
    """The job that runs here: what its row says (`due_at`, `attempt`, `meta`, ...), and what its function may say and ask.

    `row` is the `Job` as it was claimed (in a worker made when it is first asked for).
    """

    def __init__(
        self,
        row: Job,
        report: Callable[[dict[str, Any]], None],
        now: dt.datetime | None = None,
    ) -> None:
        """A test may say at which instant it runs: what it enqueues is enqueued `now`."""
        self.row = row
        self._now = now
        self._report = report
        self._cancelled = False
        self.stopping: PgwerkError | None = None  # why its worker stops it

    def __getattr__(self, name: str) -> Any:
        return getattr(self.row, name)

    def __repr__(self) -> str:
        return f"<CurrentJob: {self.row}>"

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Say how far it is: `done` of `total`, or just `done`; shown in the admin, at once or half a second later.

        It is no part of the job's own transaction. Raises `TypeError` or `ValueError`, naming the argument.
        """
        for name, value in (("done", done), ("total", total)):
            if value is None and name == "total":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name} must be a number, got {shown(value)}")
            if not 0 <= value <= LARGEST_NUMBER:
                raise ValueError(f"{name} must be from 0 to 2**53, got {shown(value)}")
        if not isinstance(note, str):
            raise TypeError(f"note must be a string, got {shown(note)}")
        # Of a subclass, such as NumPy's, the value alone: the worker need not know the class.
        self._report({
            "done": _plain_number(done),
            "total": None if total is None else _plain_number(total),
            "note": declared.json_value(note[:LONGEST_NOTE], "note"),
        })  # fmt: skip

    def clock(self) -> dt.datetime:
        """The instant at which a test has it run, else what this host takes for now."""
        return self._now or dt.datetime.now(dt.UTC)

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked this job to stop. It may return what it has, or raise `exceptions.JobCancelled`."""
        return self._cancelled

    def ask_to_stop(self) -> None:
        """The worker's side of `cancelled`."""
        self._cancelled = True


def _plain_number(value: float) -> float:
    return int.__int__(value) if isinstance(value, int) else float.__float__(value)


def current_job() -> CurrentJob | None:
    """The job whose function is running here; None outside of one."""
    return _running.get()


def _now() -> dt.datetime | None:
    """The instant at which a test has this job run; None: PostgreSQL's now."""
    job = _running.get()
    return None if job is None else job._now


@contextlib.contextmanager
def running(job: CurrentJob) -> Iterator[None]:
    token = _running.set(job)
    try:
        yield
    finally:
        _running.reset(token)


@at_run_time
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
    job = _job(func, args, kwargs, {
        "_queue": _queue, "_priority": _priority, "_timeout": _timeout, "_max_attempts": _max_attempts,
        "_backoff": _backoff, "_meta": _meta, "_result_ttl": _result_ttl, "_failure_ttl": _failure_ttl,
    })  # fmt: skip
    if _key is not None:
        job.key = _read_key(_key, "_key")
    job.run_at = _run_at(_delay, _at)
    try:
        _write(func, job)
    except IntegrityError as error:
        if _key is None or "pgwerk_job_key" not in str(error):
            raise
        return None
    return job


@at_run_time
def enqueue_call(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], *, at: dt.datetime | None, options: Mapping[str, Any]
) -> Job:
    """`enqueue`, for who may not choose the names of the arguments: here they may be those of options."""
    job = _job_of_call(func, args, kwargs, options)
    job.run_at = _run_at(None, at)
    _write(func, job)
    return job


def _write(func: Any, job: Job) -> None:
    if now := _now():
        job.enqueued_at = now
    _check_calls(func, [job])
    using = conf.current().DATABASE
    with atomic(using):
        job.save(using=using, force_insert=True)


@at_run_time
def enqueue_many(
    func: Any,
    calls: Iterable[Sequence[Any] | Mapping[str, Any]],
    /,
    *,
    _keys: Sequence[str] | None = None,
    _delay: int | dt.timedelta | None = None,
    _at: dt.datetime | None = None,
    **options: Any,
) -> list[Job]:
    """Write one job for each of `calls`, a list of positional or a dict of keyword arguments, in one transaction.

    Options are those of `enqueue`, for all of them; `_keys` has one key for each call. Gives back the jobs written: those
    whose key exists already are not.
    """
    if "_key" in options:
        raise TypeError(f"enqueue_many() takes _keys, one for each call, got _key={shown(options['_key'])}")
    jobs = [_job(func, *_arguments(call), options) for call in _iterated(calls, "calls")]
    keys = (
        [random_key() for _ in jobs]
        if _keys is None
        else [_read_key(key, "_keys") for key in _iterated(_keys, "_keys")]
    )
    if len(keys) != len(jobs):
        raise ValueError(f"_keys must have one key for each of the {len(jobs)} calls, got {len(keys)}")
    _check_one(_delay, _at)
    _check_calls(func, jobs)
    if not jobs:
        return []
    using = conf.current().DATABASE
    parameters = {
        **{
            field.column: field.get_db_prep_save(getattr(jobs[0], field.attname), connections[using])
            for field in Job._meta.concrete_fields
            if field.column in _SHARED
        },
        "at": declared.instant(_at, "_at"),
        "delay": 0 if _delay is None else declared.duration(_delay, "_delay"),
        "now": _now(),
    }
    written: list[Job] = []
    calls_of_jobs = [(key, json.dumps(job.args), json.dumps(job.kwargs)) for key, job in zip(keys, jobs, strict=True)]
    with atomic(using):
        for portion in _portions(calls_of_jobs):
            columns = dict(zip(("keys", "args", "kwargs"), map(list, zip(*portion, strict=True)), strict=True))
            written += Job.objects.using(using).raw(_INSERT_MANY, {**parameters, **columns})
            if parameters["now"] is None and written:
                parameters["now"] = written[0].enqueued_at  # of all of them
    return written


def _portions(calls: Sequence[tuple[str, str, str]]) -> Iterator[list[tuple[str, str, str]]]:
    """What one statement is to write: a larger one may be too long for the server's time limit, or for one message."""
    portion: list[tuple[str, str, str]] = []
    characters = 0
    for call in calls:
        length = sum(map(len, call))
        if portion and (len(portion) >= MOST_AT_ONCE or characters + length > LARGEST_MESSAGE):
            yield portion
            portion, characters = [], 0
        portion.append(call)
        characters += length
    yield portion


async def aenqueue(func: Any, /, *args: Any, **options: Any) -> Job | None:
    return await sync_to_async(enqueue)(func, *args, **options)


async def aenqueue_many(func: Any, calls: Iterable[Sequence[Any] | Mapping[str, Any]], /, **options: Any) -> list[Job]:
    return await sync_to_async(enqueue_many)(func, calls, **options)


@at_run_time
def pause_queue(name: str, *, reason: str = "", by: str = "") -> bool:
    """Let no more jobs of a queue start, on any worker; what runs goes on. Whether it was not paused before.

    Jobs that a worker has claimed ahead may still start for at most one poll (`POLL_INTERVAL`); then it hands them back.
    """
    queues = Queue.objects.using(conf.current().DATABASE)
    with atomic(queues.db):
        queues.bulk_create([Queue(name=declared.queue(name, "name"))], ignore_conflicts=True)
        return queues.filter(name=name).pause(by=by, reason=reason) > 0


@at_run_time
def resume_queue(name: str, *, by: str = "") -> bool:
    """End such a pause. Whether there was one."""
    queues = Queue.objects.using(conf.current().DATABASE)
    return queues.filter(name=declared.queue(name, "name")).resume(by=by) > 0


async def apause_queue(name: str, *, reason: str = "", by: str = "") -> bool:
    return await sync_to_async(pause_queue)(name, reason=reason, by=by)


async def aresume_queue(name: str, *, by: str = "") -> bool:
    return await sync_to_async(resume_queue)(name, by=by)


# What all jobs of one `enqueue_many` have in common.
_SHARED = (
    "function", "queue", "priority", "max_attempts", "backoff", "timeout", "result_ttl", "failure_ttl", "meta",
    "traceparent",
)  # fmt: skip

_INSERT_MANY = f"""
INSERT INTO _pgwerk_jobs (key, args, kwargs, enqueued_at, run_at, {", ".join(_SHARED)})
SELECT call.key, call.args::jsonb, call.kwargs::jsonb, now.now,
    coalesce(%(at)s::timestamptz, now.now + %(delay)s * interval '1 second'),
    {", ".join(f"%({column})s" for column in _SHARED)}
FROM unnest(%(keys)s::text[], %(args)s::text[], %(kwargs)s::text[]) WITH ORDINALITY AS call (key, args, kwargs, place),
    coalesce(%(now)s::timestamptz, statement_timestamp()) AS now (now)
ORDER BY place
ON CONFLICT (key) DO NOTHING
RETURNING *
"""  # noqa: S608  our own column names


def _job(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]) -> Job:
    """A job in memory, and no argument of its function that looks like an option."""
    unknown = [key for key in [*kwargs, *options] if key.startswith("_") and (key in kwargs or key not in _OPTIONS)]
    if unknown or options.keys() - _OPTIONS.keys():
        name = unknown[0] if unknown else min(options.keys() - _OPTIONS.keys())
        raise TypeError(f"{shown(name)} is not an option of enqueue()")
    return _job_of_call(func, args, kwargs, options)


def _job_of_call(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]) -> Job:
    """A job in memory. Raises `ValueError` or `TypeError`, naming the option."""
    columns = {
        option.removeprefix("_"): read(options[option], option)
        for option, read in _OPTIONS.items()
        if option in options
    }
    return Job(
        function=declared.import_path(func),
        args=declared.json_args(args, "args"),
        kwargs=declared.json_dict(kwargs, "kwargs"),
        kind=Kind.ADHOC,
        status=Status.READY,
        traceparent=spans.watch.traceparent(),
        **columns,
    )


def _check_calls(func: Any, jobs: Iterable[Job]) -> None:
    """Refuse arguments that do not fit. A dotted path is judged if its module can be imported here."""
    if isinstance(func, str):
        if missing := missing_here(func):
            raise ValueError(f"func must be a callable or the dotted path of one: {missing}")
        try:
            func = found_at(func)
        except FunctionNotFound:
            return
    for job in jobs:
        declared.check_arguments(func, job.args, job.kwargs)


_OPTIONS: dict[str, Callable[[object, str], Any]] = {
    "_queue": declared.queue,
    "_priority": declared.priority,
    "_timeout": declared.timeout,
    "_max_attempts": declared.attempts,
    "_backoff": declared.backoff,
    "_meta": declared.json_dict,
    "_result_ttl": declared.ttl,
    "_failure_ttl": declared.ttl,
}


def _iterated(values: object, option: str) -> Iterable[Any]:
    """Text is one value, whatever Python takes it for."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise TypeError(f"{option} must be a list, got {shown(values)}")
    return values


def _arguments(call: object) -> tuple[Sequence[Any], Mapping[str, Any]]:
    if isinstance(call, Mapping) and all(isinstance(name, str) for name in call):
        return [], call
    if not isinstance(call, list | tuple):
        raise TypeError(f"calls must be lists of positional or dicts of keyword arguments, got {shown(call)}")
    return call, {}


def _read_key(key: object, option: str) -> str:
    return text(key, option, longest=LONGEST_KEY)


def _check_one(delay: object, at: object) -> None:
    if delay is not None and at is not None:
        raise ValueError(f"only one of _delay and _at may be given, got _delay={shown(delay)}, _at={shown(at)}")


def _run_at(delay: object, at: object) -> Any:
    _check_one(delay, at)
    now = _now() or Now()
    if delay is not None:
        return now + dt.timedelta(seconds=declared.duration(delay, "_delay"))
    return declared.instant(at, "_at") or now
