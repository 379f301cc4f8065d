"""Deliberately broken builds: each takes one guard away, in the harness's own processes. The auditor must notice."""

from collections.abc import Callable
from typing import Any

from pgwerk_django import claims, conf, housekeeping, scheduler, tick
from pgwerk_django.models import ScheduleQuerySet, atomic, due_at
from pgwerk_django.policies import Misfire, Overlap


def between(worth: object = True) -> None:
    """Where a build that commits twice may be killed; `points.arm` puts its own here."""


def _known(rows: ScheduleQuerySet) -> ScheduleQuerySet:
    return rows.filter(misfire__in=Misfire.values, overlap__in=Overlap.values).order_by(due_at())


def no_skip_locked() -> None:
    """Schedulers wait for each other's rows instead of passing over them."""
    ScheduleQuerySet.claim = lambda self, limit: _known(self).select_for_update(no_key=True)[:limit]  # type: ignore[method-assign]


def no_row_lock() -> None:
    """Schedulers read due rows, and lock none."""
    ScheduleQuerySet.claim = lambda self, limit: _known(self)[:limit]  # type: ignore[method-assign]


def key_not_unique() -> None:
    """Nothing in the database keeps a due time from being recorded twice. (The world drops the constraint.)"""
    _edit("ON CONFLICT (key) DO NOTHING", "")


def advance_before_insert() -> None:
    """Schedules advance in one transaction, and their jobs come in the next."""
    _two_commits(_advance_only, _insert_only)


def insert_before_advance() -> None:
    """Jobs come in one transaction, and their schedules advance in the next."""
    _two_commits(_insert_only, _advance_only)


def claims_unlocked() -> None:
    """Workers claim jobs without a lock on them."""
    _edit_statement(claims, "claims = claims + 1", "FOR UPDATE SKIP LOCKED", "")


def unbegun_attempts() -> None:
    """A job that a lost worker had only claimed spends an attempt."""
    claims.MOST_FALSE_STARTS = 0


def recovery_in_one_look() -> None:
    """A lease that has expired is lost at once: nobody has time to renew it after an outage."""

    def look(self: Any) -> None:
        if leases := claims.unrenewed_leases(using=self._using, limit=claims.RECOVERED_BATCH):
            claims.recover_lost(using=self._using, seen=leases)
        self._time_to_look.again(self._lease / 3)

    housekeeping.Recovery.look = look  # type: ignore[method-assign]


BREAKS: dict[str, Callable[[], None]] = {
    "no-skip-locked": no_skip_locked,
    "no-row-lock": no_row_lock,
    "key-not-unique": key_not_unique,
    "advance-before-insert": advance_before_insert,
    "insert-before-advance": insert_before_advance,
    "claims-unlocked": claims_unlocked,
    "unbegun-attempts": unbegun_attempts,
    "recovery-in-one-look": recovery_in_one_look,
}


def apply(names: list[str]) -> None:
    for name in names:
        BREAKS[name]()


def _edit_statement(module: Any, having: str, old: str, new: str) -> None:
    """Edit the statements of a module that have this in them, whatever they are called."""
    found = {
        name: text for name, text in vars(module).items() if isinstance(text, str) and having in text and old in text
    }
    if not found:
        raise AssertionError(f"no statement of {module.__name__} has {having!r} and {old!r}: the build is not broken")
    for name, text in found.items():
        setattr(module, name, text.replace(old, new))


def _edit(old: str, new: str) -> None:
    if old not in tick._WRITE_NEW:
        raise AssertionError(f"the statement of a tick has no {old!r} any more: the broken build is not broken")
    tick._WRITE_NEW = tick._WRITE_NEW.replace(old, new)


def _advance_only(statement: str) -> str:
    return statement.replace("    FROM timed\n", "    FROM timed WHERE false\n")


def _insert_only(statement: str) -> str:
    return statement.replace("WHERE plan.is_last AND s.ctid = held.place\n", "WHERE false\n")


def _two_commits(first: Callable[[str], str], second: Callable[[str], str]) -> None:
    def broken_tick(*, using: str, batch_size: int | None = None, now: Any = None, **since: Any) -> int:
        whole = tick._WRITE_NEW
        if whole in (first(whole), second(whole)):
            raise AssertionError("the statement of a tick has changed: the broken build is not broken")
        settings = conf.current()
        with atomic(using):
            rows = tick._claim(batch_size or settings.BATCH_SIZE, using=using, now=now)
            if not rows:
                return 0
            seen = rows[0].now
            plans = [tick.plan(row, now=seen, cap=settings.MAX_CATCH_UP) for row in rows]
            tick._WRITE_NEW = first(whole)
            try:
                tick._write(plans, now=seen, using=using, only_new=True)
            finally:
                tick._WRITE_NEW = whole
        between()
        with atomic(using):
            tick._WRITE_NEW = second(whole)
            try:
                tick._write(plans, now=seen, using=using, only_new=True)
            finally:
                tick._WRITE_NEW = whole
        return len(plans)

    scheduler.tick = broken_tick
