"""Named points of the product at which a process of the harness ends or freezes itself, wrapped around it from outside."""

import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from pgwerk_django import claims, outbox, sync, tick
from tests.chaos import workload
from tests.chaos.names import BETWEEN, KILL


class Armed:
    """Acts once: at the passage number `nth` of its point."""

    def __init__(self, action: str, nth: int) -> None:
        self._left = nth
        self._number = signal.SIGKILL if action == KILL else signal.SIGSTOP

    def __call__(self, worth: object = True) -> None:
        """`worth` is false for a passage that did nothing, such as a claim that found no job."""
        if not worth or self._left <= 0:
            return
        self._left -= 1
        if self._left == 0:
            (Path(os.environ["CHAOS_FOLDER"]) / f"reached-{os.getpid()}").touch()
            os.kill(os.getpid(), self._number)


Arm = Callable[[Armed], None]


def _after(place: Any, name: str, *, always: bool = False) -> Arm:
    """Where it gave nothing (a claim that found no job), it is no passage; unless `always`."""

    def arm(act: Armed) -> None:
        original = getattr(place, name)

        @functools.wraps(original)
        def wrapped(*args: Any, **options: Any) -> Any:
            given = original(*args, **options)
            act(always or given is None or given)
            return given

        setattr(place, name, wrapped)

    return arm


def _before(place: Any, name: str) -> Arm:
    def arm(act: Armed) -> None:
        original = getattr(place, name)

        @functools.wraps(original)
        def wrapped(*args: Any, **options: Any) -> Any:
            act()
            return original(*args, **options)

        setattr(place, name, wrapped)

    return arm


def _at_commit(*, before: bool) -> Arm:
    """Right around the COMMIT of a transaction in which a tick wrote."""

    def arm(act: Armed) -> None:
        write, commit = tick._write, BaseDatabaseWrapper._commit  # type: ignore[attr-defined]
        wrote = [False]

        def _write(*args: Any, **options: Any) -> Any:
            outcome = write(*args, **options)
            wrote[0] = True
            return outcome

        def _commit(self: Any) -> None:
            of_a_tick, wrote[0] = wrote[0], False
            if before:
                act(of_a_tick)
            commit(self)
            if not before:
                act(of_a_tick)

        tick._write, BaseDatabaseWrapper._commit = _write, _commit  # type: ignore[attr-defined]

    return arm


POINTS: dict[str, Arm] = {
    "sync: under its lock": _after(sync, "_difference", always=True),
    "sync: before COMMIT": _after(sync, "_refresh"),
    "tick: after claim": _after(tick, "_claim"),
    "tick: after insert": _after(tick, "_write"),
    "tick: before COMMIT": _at_commit(before=True),
    "tick: after COMMIT": _at_commit(before=False),
    "hand-over: after claim": _after(outbox.Outbox, "claim"),
    "hand-over: after sending": _after(workload.Engine, "send"),
    "hand-over: after marking": _after(outbox.Outbox, "forward"),
    "worker: after claim": _after(claims.Claims, "claim"),
    "worker: after a start": _after(claims.Claims, "begin"),
    "worker: before an end": _before(claims.Claims, "finish"),
    "worker: after an end": _after(claims.Claims, "finish"),
}


def arm(point: str, action: str, nth: int) -> None:
    armed = Armed(action, nth)
    if point == BETWEEN:
        from tests.chaos import broken

        broken.between = armed
    else:
        POINTS[point](armed)
