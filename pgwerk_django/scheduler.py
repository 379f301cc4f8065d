"""`Scheduler`: the manual's API, and the loop around the tick."""

import asyncio
import datetime as dt
import math
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar, Unpack, overload

from asgiref.sync import sync_to_async
from django.db import OperationalError, connections

import pgwerk_django
from pgwerk_django import conf, prepared, signals, targets, watchdog
from pgwerk_django import registry as declared
from pgwerk_django.alerts import Watch
from pgwerk_django.exceptions import shown
from pgwerk_django.handover import HandOver, hand_over
from pgwerk_django.housekeeping import Housekeeping, keep_house, recover_old
from pgwerk_django.loop import STOPS_WITHIN, Bell, Every, Loop, Runner, guarded, listening
from pgwerk_django.models import (
    HEARTBEAT,
    Origin,
    Process,
    Schedule,
    ScheduleQuerySet,
    atomic,
    database_now,
)
from pgwerk_django.pace import Pace
from pgwerk_django.registry import Options
from pgwerk_django.starting import at_run_time
from pgwerk_django.sync import (
    AT_ONCE,
    Difference,
    StandBy,
    check_on_unregistered,
    is_held,
    orphan_grace,
    synchronise,
    tell_if_replaced,
)
from pgwerk_django.text import free_text
from pgwerk_django.tick import tick

Function = TypeVar("Function")

LOOK_ASIDE = dt.timedelta(hours=1)  # for what was set aside, and for what is left to newer code
# Seconds to wait when something is due, but another scheduler holds it.
HELD_BY_ANOTHER = (0.05, 0.25)
SYNC_PATIENCE = dt.timedelta(milliseconds=300)
# Seconds before a due time to wake up at: a process and a session that have slept take a while to be at full speed.
READY = 0.002
BEAT_AGAIN = 1.0  # seconds, when somebody locks its row
MINUTE = dt.timedelta(minutes=1)


class Floor:
    """Where looks at the index of what is due may begin, while it is full of dead entries.

    Somebody's long snapshot keeps PostgreSQL from removing the entries that ticks leave behind, and each look from the start
    walks over all of them: 100,000 took 40 ms, and 0.6 from here. So after a look that was slow, the next ones begin at the
    first entry it found alive; now and then one begins at the start again, as a person may set a due time before that, or
    trigger what has been paused since.
    """

    SLOW = 0.01  # seconds
    SHARE = 20  # of the time goes a twentieth into looks from the start
    LONGEST = 10.0  # seconds until the next of them

    def __init__(self) -> None:
        self._at: dt.datetime | None = None
        self._lifted_at = 0.0

    @property
    def at(self) -> dt.datetime | None:
        return self._at if time.monotonic() < self._lifted_at else None

    def saw(self, next_due_at: dt.datetime | None, now: dt.datetime, *, seconds: float) -> None:
        """What a look from the start has found, and how long it took."""
        # What people trigger or edit while it stands is due from then on: a minute is for clocks that step back.
        self._at = min(next_due_at or now, now - MINUTE) if seconds > self.SLOW else None
        self._lifted_at = time.monotonic() + min(self.SHARE * seconds, self.LONGEST)


class Coming(NamedTuple):
    """What a look saw that will be due before the next poll."""

    due_at: dt.datetime
    ready_at: float  # on our own clock


class _Service:
    """What `Scheduler.run()` gives to its loop: sync first, then ticks, with housekeeping in between."""

    shutdown_timeout = STOPS_WITHIN

    def __init__(self, scheduler: "Scheduler", batch_size: int | None) -> None:
        self._scheduler = scheduler
        self._batch_size = batch_size
        self._using = scheduler.using
        self._process = Process.here("scheduler", version=pgwerk_django.__version__)
        self._synced = False
        self._hand_over = HandOver(str(self._process), using=self._using)
        self._stand_by = StandBy(
            declared.registry, on_unregistered=scheduler.on_unregistered, using=self._using, process=self._process
        )
        self._watch = Watch(using=self._using)
        self._time_to_beat = Every(HEARTBEAT)
        self._housekeeping = Housekeeping(using=self._using)
        self._time_to_look_aside = Every(LOOK_ASIDE)
        self._floor = Floor()
        self._pace = scheduler._pace
        self._coming: Coming | None = None  # what the last look saw

    @property
    def ready(self) -> bool:
        return self._synced

    def step(self) -> float:
        if not self._synced:
            if not self._sync():
                return _held_by_another()
        # First of all: one whose ticks fail is to be told from one that is gone.
        elif self._time_to_beat() and not self._process.beat(using=self._using):
            self._time_to_beat.again(BEAT_AGAIN)
        if self._time_to_look_aside():
            self._look_aside()
        if self._coming is not None and time.monotonic() >= self._coming.ready_at:
            self._await(self._coming)
            self._tick()  # it is due by now: to look again first would only make it later
        asked = time.monotonic()  # before, not after: PostgreSQL's now is that of the statement's begin
        next_due_at, now, waiting = self._look()
        delay = self._until(next_due_at, now)
        self._coming = None
        if next_due_at is not None and 0 < delay < conf.current().POLL_INTERVAL:
            delay = max(delay - READY, 0)
            self._coming = Coming(next_due_at, asked + delay)
        elif delay <= 0:
            delay = 0 if self._tick() or self._pace.was_cut else _held_by_another()
        self._process.last_tick_at = now
        self._hand_over.step(waiting)
        self._care()
        return max(min(delay - (time.monotonic() - asked), self._hand_over.renews_in()), 0)

    def close(self) -> None:
        if self._synced:
            self._hand_over.close()
            self._watch.close()
            signals.send_now(signals.process_stopped, role="scheduler")
            self._process.end(using=self._using)

    def _sync(self) -> bool:
        """Whether it could be done: a row that somebody holds must not keep us from hearing that we are to stop."""
        try:
            with watchdog.allowing(conf.current().LEASE):  # it writes all that code declares at once
                self._scheduler._synchronise(self._stand_by.grace, lock_timeout=SYNC_PATIENCE, process=self._process)
        except OperationalError as error:
            if not is_held(error):
                raise
            return False
        self._stand_by.spoke()
        self._process.beat(using=self._using)  # before its first tick: what that does has a process to show for it
        signals.send_now(signals.process_started, role="scheduler")
        self._synced = True
        return True

    def _until(self, next_due_at: dt.datetime | None, now: dt.datetime) -> float:
        """Seconds from PostgreSQL's now, at most one poll: what becomes due earlier must not wait longer."""
        poll = conf.current().POLL_INTERVAL
        return poll if next_due_at is None else min(max((next_due_at - now).total_seconds(), 0), poll)

    def _look(self) -> tuple[dt.datetime | None, dt.datetime, list[str]]:
        """The one statement of an idle pass."""
        floor, started = self._floor.at, time.monotonic()
        next_due_at, now, waiting = Schedule.objects.using(self._using).look(floor)
        if floor is None:
            self._floor.saw(next_due_at, now, seconds=time.monotonic() - started)
        return next_due_at, now, waiting

    def _await(self, coming: Coming) -> None:
        """Until PostgreSQL's clock is about to show it: the tick's BEGIN is one more trip before it asks for the time."""
        asked = time.monotonic()
        now = database_now(self._using)
        trip = time.monotonic() - asked
        left = (coming.due_at - now).total_seconds() - trip
        if left > 0:
            # Not `time.sleep`, which asks for an instant of the clock, and fails where libfaketime moves that.
            threading.Event().wait(min(left, READY))

    def _tick(self) -> int:
        return tick(using=self._using, batch_size=self._batch_size, since=self._floor.at, pace=self._pace)

    def _look_aside(self) -> None:
        """Give what was set aside another chance, and say what is left to newer code."""
        self._scheduler._schedules.retry_set_aside()
        for name in self._scheduler._schedules.due().from_newer_code().values_list("name", flat=True):
            signals.send_now(signals.schedule_left_alone, name=name, why="a policy that this version does not know")

    def _care(self) -> None:
        self._housekeeping.step()
        self._watch.step()
        self._stand_by.step(lock_timeout=SYNC_PATIENCE)


def _held_by_another() -> float:
    return random.uniform(*HELD_BY_ANOTHER)  # noqa: S311  # not all schedulers at once; it guards nothing


class Scheduler:
    """Recurring jobs, declared in code or made at run time; any number of processes may run one.

    Each method has an async twin: `a` and its name (`acron`, `aget`, ...; that of `sync` is `a_sync`).
    `on_unregistered` says what `sync` does with rows that came from code and that this process does not declare:
    `"pause"` them (safe for rolling deploys), `"keep"` or `"delete"` them. The constructor touches no database.
    """

    def __init__(self, *, on_unregistered: str = "pause", using: str | None = None) -> None:
        self.on_unregistered = check_on_unregistered(on_unregistered)
        self._using = using
        self._loop: Loop | None = None
        self._once: watchdog.Watch | None = None
        self._stopped = False
        self._pace = Pace()

    @property
    def using(self) -> str:
        """The database alias: the one given, else `PGWERK["DATABASE"]`."""
        return self._using or conf.current().DATABASE

    @property
    def _schedules(self) -> ScheduleQuerySet:
        return Schedule.objects.using(self.using)

    # -- what code declares

    @overload
    def register(self, func: Function, /, **options: Unpack[Options]) -> Function: ...
    @overload
    def register(self, func: None = None, /, **options: Unpack[Options]) -> Callable[[Function], Function]: ...

    def register(self, func: Any = None, /, **options: Any) -> Any:
        """`@schedule` by another name: stage a schedule in this process; `sync` writes it."""
        return declared.schedule(func, **options)

    def unregister(self, name: str) -> bool:
        """Take a declaration back, before `sync`; whether there was one."""
        return declared.registry.remove(free_text(name, "name"))

    @at_run_time
    def sync(self) -> tuple[int, int, list[str]]:
        """Make the rows equal to what code declares: how many were inserted, how many updated, which orphans were reconciled."""
        found = self._synchronise()
        return len(found.inserted), len(found.updated), found.reconciled

    def _synchronise(
        self,
        grace: dt.timedelta = AT_ONCE,
        *,
        lock_timeout: dt.timedelta | None = None,
        process: Process | None = None,
    ) -> Difference:
        return synchronise(
            declared.registry,
            on_unregistered=self.on_unregistered,
            using=self.using,
            grace=grace,
            lock_timeout=lock_timeout,
            process=process,
        )

    # -- running

    def run_once(self, batch_size: int | None = None) -> None:
        """Sync, tick until nothing is due (or `stop()`), hand over, keep house: for sites that start it from cron."""
        with guarded(self.using, on_hung=signals.send_statement_hung) as (self._once, _):
            with watchdog.allowing(math.inf):
                self._synchronise(orphan_grace())
            self._schedules.retry_set_aside()
            while not self._stopped and self.tick(batch_size):
                pass
            recover_old(using=self.using)
            hand_over(str(Process.here("scheduler", version=pgwerk_django.__version__)), using=self.using)
            keep_house(using=self.using)
            watch = Watch(using=self.using)
            watch.look()
            watch.close()

    def tick(self, batch_size: int | None = None) -> int:
        """One batch of what is due: how many schedules it handled (0: nothing was due, or others hold it)."""
        while True:  # with less, where a batch was too much for a time limit of the database
            handled = tick(using=self.using, batch_size=batch_size, pace=self._pace)
            if not self._pace.was_cut or self._stopped:
                return handled

    def run(self, *others: Runner, batch_size: int | None = None, bell: Bell | None = None) -> None:
        """Sync, then tick until `stop()`. Runners given here (a worker) share the loop and its connection."""
        bell = bell or Bell()
        self._loop = Loop(
            _Service(self, batch_size),
            *others,
            using=self.using,
            bell=bell,
            on_lost=signals.send_database_lost,
            on_back=signals.send_database_back,
            on_refused=signals.send_statement_refused,
            on_hung=signals.send_statement_hung,
        )
        channels = ["pgwerk_schedules", *(["pgwerk_jobs"] if others else [])]
        try:
            with prepared.keeping(), listening(bell, *channels, on_failed=signals.send_listen_failed):
                if self._stopped:  # before it could start
                    self._loop.stop()
                self._loop.run()
        finally:
            self._stopped, self._loop = False, None
            if threading.current_thread() is not threading.main_thread():
                connections[self.using].close()  # it is this thread's own

    def stop(self) -> None:
        """End `run()` after the tick at hand. Safe from any thread and from signal handlers."""
        self._stopped = True
        if self._loop is not None:
            self._loop.stop()
        if self._once is not None:
            self._once.end_by(time.monotonic() + STOPS_WITHIN)

    def hurry(self) -> None:
        """End `run()` or `run_once()` now: a statement that hangs is given up. Safe from any thread and from signal handlers."""
        self.stop()
        if self._loop is not None:
            self._loop.hurry()
        if self._once is not None:
            self._once.end_by(time.monotonic())

    # -- schedules made at run time

    @at_run_time
    def cron(self, expr: str, func: Any, /, *args: Any, **kwargs: Any) -> Schedule:
        """Have `func(*args, **kwargs)` run by a cron expression; `_`-prefixed keywords are options."""
        return self._schedule(func, {"cron": expr, "args": args, **_split(kwargs)})

    @at_run_time
    def interval(self, seconds: Any, func: Any, /, *args: Any, **kwargs: Any) -> Schedule:
        """Have `func(*args, **kwargs)` run every so many seconds; `_`-prefixed keywords are options."""
        return self._schedule(func, {"interval": seconds, "args": args, **_split(kwargs)})

    @at_run_time
    def schedule(self, func: Any, /, **options: Unpack[Options]) -> Schedule:
        """Insert or update one schedule, with the options of `@schedule`, and plan its next run."""
        return self._schedule(func, options)

    @at_run_time
    def schedule_at(self, func: Any, when: dt.datetime, /, **options: Unpack[Options]) -> Schedule:
        """Like `schedule`, with the first run at `when` (UTC if naive). Without cron or interval it runs once."""
        first = declared.instant(when, "when")
        if first is None:
            raise TypeError("when must be a datetime, got None")
        return self._schedule(func, options, first=lambda now: first)

    @at_run_time
    def schedule_in(self, seconds: int | dt.timedelta, func: Any, /, **options: Unpack[Options]) -> Schedule:
        """Like `schedule_at`, so many seconds (or a `timedelta`) from now, by PostgreSQL's clock."""
        delay = dt.timedelta(seconds=declared.duration(seconds, "seconds"))
        return self._schedule(func, options, first=lambda now: now + delay)

    @at_run_time
    def update(self, name: str, /, **fields: Any) -> Schedule:
        """Change options of a schedule (with or without the leading underscore); cron replaces interval and the reverse.

        Raises `TypeError` for an unknown option and `Schedule.DoesNotExist` for an unknown name.
        """
        changes = declared.read_options(fields)
        if "name" in changes:
            raise TypeError(
                "name cannot be updated: it is the schedule's identity, under which its due times are recorded"
            )
        if changes.get("cron"):
            changes.setdefault("interval", None)
        elif changes.get("interval") is not None:
            changes.setdefault("cron", "")
        with atomic(self.using):
            row = self._named(name, self._schedules.select_for_update(no_key=True)).get()
            if changes.get("target") == "":
                changes["target"] = targets.resolved(declared.Definition(**{**row.definition, **changes})).target
            wanted = {**row.definition, **changes}
            declared.check_recurrence(wanted, once=not row.cron and row.interval is None)
            targets.check_payload(row.function, declared.Definition(**wanted))
            row.redefine(changes, now=database_now(self.using))
        return row

    def _schedule(
        self, func: Any, options: Mapping[str, Any], *, first: Callable[[dt.datetime], dt.datetime] | None = None
    ) -> Schedule:
        definition = targets.resolved(declared.define(func, options, once=first is not None))
        targets.check_payload(func, definition)
        with atomic(self.using):
            now = database_now(self.using)
            first_due_at = first(now) if first else None
            _check_first(first_due_at, definition)
            row, created = self._schedules.select_for_update(no_key=True).get_or_create(
                name=definition.name, defaults=_as_new(definition, now, first_due_at)
            )
            if not created:
                now = database_now(
                    self.using
                )  # once more: it may have waited for the row, and a due time may have passed
                first_due_at = first(now) if first else None
                changes = declared.differences(definition.columns, row.definition)
                if options.get("_name") is None:
                    tell_if_replaced(row, definition, changes, using=self.using)
                row.redefine(changes, now=now, first=first_due_at, plan=True)
        return row

    # -- by name

    @at_run_time
    def pause(self, name: str, reason: str = "", by: str = "") -> Schedule:
        """Let due times pass without jobs until `resume()`; sync leaves a person's pause alone."""
        self._named(name).pause(reason=reason, by=by)
        return self._schedules.get(name=name)

    @at_run_time
    def resume(self, name: str, by: str = "") -> Schedule:
        """End a pause. The next run is planned from now."""
        self._named(name).resume(by=by)
        return self._schedules.get(name=name)

    @at_run_time
    def trigger(self, name: str, by: str = "") -> Schedule:
        """One extra run, with the full payload, at the next tick; the cadence stays as it is."""
        self._named(name).trigger(by=by)
        return self._schedules.get(name=name)

    @at_run_time
    def delete(self, name: str) -> bool:
        """Delete a schedule; whether there was one. What it has run stays on record."""
        return self._schedules.filter(name=free_text(name, "name")).delete()[0] > 0

    @at_run_time
    def get(self, name: str) -> Schedule | None:
        return self._schedules.filter(name=free_text(name, "name")).first()

    @at_run_time
    def list_schedules(self) -> list[Schedule]:
        """All of them, by name."""
        return list(self._schedules.order_by("name"))

    def _named(self, name: str, among: ScheduleQuerySet | None = None) -> ScheduleQuerySet:
        found = (self._schedules if among is None else among).filter(name=free_text(name, "name"))
        if not found.exists():
            raise Schedule.DoesNotExist(f"there is no schedule named {shown(name)}")
        return found

    # -- the async twins

    async def a_sync(self) -> tuple[int, int, list[str]]:
        return await sync_to_async(self.sync)()

    async def atick(self, batch_size: int | None = None) -> int:
        return await sync_to_async(self.tick)(batch_size)

    async def arun(self, *others: Runner, batch_size: int | None = None, bell: Bell | None = None) -> None:
        """`run()` in a thread of its own; cancelling the task stops it."""
        run = sync_to_async(self.run, thread_sensitive=False)
        running = asyncio.ensure_future(run(*others, batch_size=batch_size, bell=bell))
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            self.stop()
            await running
            raise

    async def arun_once(self, batch_size: int | None = None) -> None:
        await sync_to_async(self.run_once)(batch_size)

    async def astop(self) -> None:
        self.stop()

    async def ahurry(self) -> None:
        self.hurry()

    async def acron(self, expr: str, func: Any, /, *args: Any, **kwargs: Any) -> Schedule:
        return await sync_to_async(self.cron)(expr, func, *args, **kwargs)

    async def ainterval(self, seconds: Any, func: Any, /, *args: Any, **kwargs: Any) -> Schedule:
        return await sync_to_async(self.interval)(seconds, func, *args, **kwargs)

    async def aschedule(self, func: Any, /, **options: Unpack[Options]) -> Schedule:
        return await sync_to_async(self.schedule)(func, **options)

    async def aschedule_at(self, func: Any, when: dt.datetime, /, **options: Unpack[Options]) -> Schedule:
        return await sync_to_async(self.schedule_at)(func, when, **options)

    async def aschedule_in(self, seconds: Any, func: Any, /, **options: Unpack[Options]) -> Schedule:
        return await sync_to_async(self.schedule_in)(seconds, func, **options)

    async def aupdate(self, name: str, /, **fields: Any) -> Schedule:
        return await sync_to_async(self.update)(name, **fields)

    async def apause(self, name: str, reason: str = "", by: str = "") -> Schedule:
        return await sync_to_async(self.pause)(name, reason, by)

    async def aresume(self, name: str, by: str = "") -> Schedule:
        return await sync_to_async(self.resume)(name, by)

    async def atrigger(self, name: str, by: str = "") -> Schedule:
        return await sync_to_async(self.trigger)(name, by)

    async def adelete(self, name: str) -> bool:
        return await sync_to_async(self.delete)(name)

    async def aget(self, name: str) -> Schedule | None:
        return await sync_to_async(self.get)(name)

    async def alist_schedules(self) -> list[Schedule]:
        return await sync_to_async(self.list_schedules)()

    async def aregister(self, func: Any = None, /, **options: Any) -> Any:
        return self.register(func, **options)

    async def aunregister(self, name: str) -> bool:
        return self.unregister(name)


def _split(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Options, and under `kwargs` what is the function's own."""
    own = {key: value for key, value in kwargs.items() if not key.startswith("_")}
    return {**{key: value for key, value in kwargs.items() if key.startswith("_")}, "kwargs": own}


def _check_first(first: dt.datetime | None, definition: declared.Definition) -> None:
    starts_at, ends_at = definition.starts_at, definition.ends_at
    if first and ((starts_at and first < starts_at) or (ends_at and first > ends_at)):
        raise ValueError(
            f"the first run must lie between _starts_at ({starts_at}) and _ends_at ({ends_at}), got {first}"
        )


def _as_new(definition: declared.Definition, now: dt.datetime, first: dt.datetime | None) -> dict[str, Any]:
    instants = {"anchor_at": first or now, "created_at": now}
    row = Schedule(**definition.columns, **instants)
    next_run_at = first or row.recurrence.next_after(now)
    return {**definition.columns, **instants, "origin": Origin.API, "next_run_at": next_run_at}
