"""For the tests of those who use this: what is due at an instant, run in the test's own thread and transaction.

Nothing here starts a process or sleeps, and all of it works in a plain `TestCase`. (So only async functions are stopped by
their `timeout`.) A `now` is an aware datetime; without one, what counts is PostgreSQL's clock.
"""

import contextlib
import datetime as dt
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from django.dispatch import Signal

from pgwerk_django import conf, cron, signals
from pgwerk_django import registry as declared
from pgwerk_django.exceptions import TooManyJobs, shown
from pgwerk_django.handover import senders
from pgwerk_django.inline import Inline
from pgwerk_django.models import Job, Kind, Schedule, Status, database_now, instant
from pgwerk_django.outbox import Outbox
from pgwerk_django.policies import INSTANT
from pgwerk_django.registry import Registry, registry
from pgwerk_django.sync import synchronise
from pgwerk_django.tick import tick

__all__ = ["assert_enqueued", "assert_not_enqueued", "isolated_registry", "run_due", "run_jobs"]

MAX_JOBS = 1000
MOST_LISTED = 20


def run_due(now: dt.datetime | None = None, *, max_jobs: int = MAX_JOBS, raising: bool = False) -> list[Job]:
    """Be a scheduler at `now`, and run or hand over the jobs of schedules that wait then: those jobs, as they ended.

    Schedules that code declares are synced first; those that are new exist from `now` on, if that has passed, so that a due
    time at `now` itself fires. What the jobs enqueue waits for `run_jobs`.

    What a job raises, or what keeps one from being handed over, is recorded on its row, as in production; with `raising`
    it is raised here too. Raises `TooManyJobs` when
    more than `max_jobs` become due.
    """
    at, using = _aware(now), conf.current().DATABASE
    _declare(at, using)
    of_schedules = Job.objects.using(using).exclude(kind=Kind.ADHOC)
    before = of_schedules.count()
    while tick(using=using, now=at):
        if of_schedules.count() - before > max_jobs:
            raise TooManyJobs(max_jobs, f"so many due times of schedules had passed at {at or 'this moment'}")
    worker = Inline(using=using, now=at, only=f"kind <> '{Kind.ADHOC.value}'")
    return [*worker.work(max_jobs=max_jobs, raising=raising), *_hand_over(at, using, raising=raising)]


def run_jobs(
    now: dt.datetime | None = None,
    *,
    queues: Sequence[str] = (),
    max_jobs: int = MAX_JOBS,
    raising: bool = False,
) -> list[Job]:
    """Be a worker at `now` until no job waits, those that jobs enqueue included: the jobs that ran, as they ended.

    Takes the first of `queues` before the second, or every queue; leaves those that are paused, and what is to run later,
    as are attempts after a back-off. `raising` is as in `run_due`. Raises `TooManyJobs` rather than run more than `max_jobs`.
    """
    if isinstance(queues, str):
        raise TypeError(f"queues must be a list of names, got {shown(queues)}")
    return Inline(using=conf.current().DATABASE, now=_aware(now)).work(
        queues=queues, max_jobs=max_jobs, raising=raising
    )


def _hand_over(now: dt.datetime | None, using: str, *, raising: bool) -> list[Job]:
    """Send what goes to Django Tasks, Celery or pgwerk: as they are configured in the tests."""
    keys: list[str] = []

    def tell(signal: Signal, **event: Any) -> None:
        if signal is signals.jobs_forwarded:
            keys.extend(event["jobs"])
        signals.send_now(signal, **event)

    for sender in senders(Outbox("test", using=using, now=now), tell):
        sender.drain()
        if raising and sender.error is not None:
            raise sender.error
    found = {job.key: job for job in Job.objects.using(using).filter(key__in=keys)}
    return [found[key] for key in keys if key in found]


def assert_enqueued(
    func: Callable[..., Any] | str | None = None,
    /,
    *,
    count: int | None = None,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    queue: str | None = None,
    key: str | None = None,
    schedule: Schedule | str | None = None,
    **lookups: Any,
) -> list[Job]:
    """The jobs that wait to run `func` (or the function at that dotted path): at least one, or exactly `count`.

    `args` and `kwargs` are all that it is called with, `schedule` is the one that it came from; anything else is a lookup of
    `Job`, as in `filter()`. Fails with a list of what does wait.
    """
    wanted = _wanted(func, args, kwargs, queue, key, schedule, lookups)
    jobs = Job.objects.using(conf.current().DATABASE).filter(**wanted)
    waiting = list(jobs.filter(status=Status.READY).order_by("enqueued_at", "pk"))
    if len(waiting) == count or (count is None and waiting):
        return waiting
    expected = "a waiting job" if count is None else f"{count} waiting job{'' if count == 1 else 's'}"
    others = Counter(jobs.exclude(status=Status.READY).values_list("status", flat=True))
    raise AssertionError(
        f"expected {expected}{_described(wanted)}, found {len(waiting)}"
        + (f" (and {', '.join(f'{n} {status}' for status, n in sorted(others.items()))})" if others else "")
        + f". {_what_waits()}"
    )


def assert_not_enqueued(func: Callable[..., Any] | str | None = None, /, **criteria: Any) -> None:
    """No job waits that `assert_enqueued` would find; without criteria, none at all."""
    assert_enqueued(func, **criteria, count=0)


@contextlib.contextmanager
def isolated_registry(*kept: Callable[..., Any] | str) -> Iterator[Registry]:
    """Within it code declares only the schedules of these functions or names, and what is declared meanwhile.

    So `run_due` meets no others, unless they are in the table. Raises `ValueError` for what code does not declare.
    """
    before = list(registry)
    wanted = {each if isinstance(each, str) else declared.path_of(each) for each in kept}
    if unknown := wanted - {name for each in before for name in (each.name, each.function)}:
        raise ValueError(f"kept must be functions or names of schedules that code declares, got {sorted(unknown)}")
    registry.clear()
    try:
        for definition in before:
            if wanted & {definition.name, definition.function}:
                registry.add(definition)
        yield registry
    finally:
        registry.clear()
        for definition in before:
            registry.add(definition)


def _aware(now: dt.datetime | None) -> dt.datetime | None:
    return None if now is None else declared.instant(cron.utc(now, "now"), "now")


def _declare(now: dt.datetime | None, using: str) -> None:
    """Sync as of `now`, where that has passed, and plan what no tick has planned yet from when it came to be."""
    real = database_now(using)
    since = min(now or real, real)
    new = synchronise(registry, on_unregistered="keep", using=using, now=since).inserted
    schedules = Schedule.objects.using(using)
    for row in schedules.filter(name__in=new):
        row.redefine({}, now=since - INSTANT, plan=True)
    unplanned = schedules.filter(replan=True, next_run_at__lte=instant(now)).exclude(cron="", interval=None)
    for row in unplanned:
        with contextlib.suppress(ValueError):  # which has the tick set it aside
            row.redefine({}, now=row.next_run_at or since, plan=True)


def _wanted(func: Any, args: Any, kwargs: Any, queue: Any, key: Any, schedule: Any, lookups: Any) -> dict[str, Any]:
    named = {
        "function": None if func is None else declared.import_path(func),
        "args": None if args is None else declared.json_args(args, "args"),
        "kwargs": None if kwargs is None else declared.json_dict(kwargs, "kwargs"),
        "queue": queue,
        "key": key,
        "schedule_name": None if schedule is None else str(schedule),
    }
    return {**{column: value for column, value in named.items() if value is not None}, **lookups}


def _described(wanted: Mapping[str, Any]) -> str:
    return " with " * bool(wanted) + ", ".join(f"{column}={value!r}" for column, value in wanted.items())


def _what_waits() -> str:
    waiting = Job.objects.using(conf.current().DATABASE).filter(status=Status.READY).order_by("enqueued_at", "pk")
    lines = [_line(job) for job in waiting[:MOST_LISTED]]
    if not lines:
        return "Nothing waits."
    rest = waiting.count() - len(lines)
    return "\n  ".join(["What waits:", *lines, *([f"and {rest} more"] if rest else [])])


def _line(job: Job) -> str:
    arguments = [*map(repr, job.args), *(f"{name}={value!r}" for name, value in job.kwargs.items())]
    origin = f" of schedule {job.schedule_name}" if job.schedule_name else ""
    return f"{job.function}({', '.join(arguments)}){origin}, queue={job.queue}, run_at={job.run_at}, key={job.key}"
