"""The loop: it sleeps no longer than needed, stops at once, and outlives the database's absences."""

import ctypes
import os
import signal
import threading
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError

from pgwerk_django.loop import Bell, Every, Loop, hearing
from tests.waiting import wait_until


class Steps:
    """Gives back the delays it was given, one a step, and stops its loop at the end; an exception is raised."""

    ready = True
    shutdown_timeout = 5.0

    def __init__(self, *script: float | Exception) -> None:
        self.script = list(script)
        self.loop: Loop | None = None
        self.closed = 0

    def step(self) -> float:
        if not self.script:
            assert self.loop is not None
            self.loop.stop()
            return 0
        now = self.script.pop(0)
        if isinstance(now, Exception):
            raise now
        return now

    def close(self) -> None:
        self.closed += 1


def run(steps: Steps, **options: object) -> list[object]:
    heard: list[object] = []
    steps.loop = Loop(
        steps,
        using="default",
        on_lost=lambda error: heard.append(str(error)),
        on_back=lambda seconds: heard.append("back"),
        **options,  # type: ignore[arg-type]
    )
    steps.loop.run()
    return heard


def test_it_steps_until_it_is_stopped_and_closes() -> None:
    steps = Steps(0, 0, 0)
    assert run(steps) == []
    assert steps.script == []
    assert steps.closed == 1


def test_an_outage_is_told_once_and_so_is_its_end() -> None:
    gone = OperationalError("gone")
    assert run(Steps(0, gone, gone, 0, 0, gone, 0)) == ["gone", "back", "gone", "back"]


class Canceled(OperationalError):
    sqlstate = "57014"


def test_a_statement_that_is_cancelled_is_no_outage() -> None:
    """It is told once, until a pass succeeds; an outage before it is over, as the database has answered."""
    late, gone = Canceled("too late"), OperationalError("gone")
    refused: list[str] = []
    told = run(Steps(0, late, late, 0, gone, late, 0), on_refused=lambda error: refused.append(str(error)))
    assert (refused, told) == (["too late", "too late"], ["gone", "back"])


def test_a_bug_is_no_outage() -> None:
    steps = Steps(0, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        run(steps)
    assert steps.closed == 1


def test_an_outage_while_closing_is_no_error() -> None:
    class Closing(Steps):
        def close(self) -> None:
            raise OperationalError("gone")

    run(Closing(0))


def test_a_bell_cuts_a_long_sleep_short() -> None:
    bell = Bell()
    steps = Steps(3600)
    thread = threading.Thread(target=run, args=[steps], kwargs={"bell": bell})
    thread.start()
    wait_until(lambda: steps.script == [])
    bell.ring()
    thread.join(10)
    assert not thread.is_alive()


def test_rings_are_counted_as_one() -> None:
    bell = Bell()
    for _ in range(3):
        bell.ring()
    assert bell.wait(0)
    assert not bell.wait(0)


def test_a_wait_that_is_over_before_it_begins_ends() -> None:
    """On Python 3.11 and 3.12 a `SimpleQueue` waits for ever, once in a few thousand times."""

    def waits() -> None:
        for _ in range(50_000):
            Bell().wait(1e-6)

    thread = threading.Thread(target=waits, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()


def test_a_bell_may_be_rung_by_a_signal_handler_at_any_moment() -> None:
    """With a lock inside, the handler would wait for the very thread it interrupted."""
    bell = Bell()
    before = signal.signal(signal.SIGUSR1, lambda *_: bell.ring())
    try:
        for _ in range(2000):
            os.kill(os.getpid(), signal.SIGUSR1)
            bell.wait(0)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_signal_is_heard_while_the_main_thread_is_blocked() -> None:
    """A handler in Python waits for bytecode; a process that was about to sleep when SIGTERM came slept on."""
    libc = ctypes.CDLL(None)
    mutex = ctypes.create_string_buffer(64)
    heard: list[int] = []

    def tell(number: int) -> None:
        heard.append(number)
        libc.pthread_mutex_unlock(mutex)

    rescue = threading.Timer(10, tell, [0])
    with hearing(signal.SIGUSR1, tell=tell):
        libc.pthread_mutex_lock(mutex)
        rescue.start()
        threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGUSR1]).start()
        libc.pthread_mutex_lock(mutex)  # no signal ends this wait
        assert heard == [signal.SIGUSR1]
    rescue.cancel()


def test_a_signal_is_heard_the_moment_it_kills_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []
    install = signal.signal

    def install_and_raise(number: int, handler: Any) -> Any:
        before = install(number, handler)
        if callable(handler):
            signal.raise_signal(number)
        return before

    with monkeypatch.context() as patch:
        patch.setattr("pgwerk_django.loop.signal.signal", install_and_raise)
        listening = hearing(signal.SIGUSR1, tell=heard.append)
        listening.__enter__()
    try:
        wait_until(lambda: heard == [signal.SIGUSR1], 5)
    finally:
        listening.__exit__(None, None, None)


def test_handlers_are_as_before_once_nobody_listens() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with hearing(signal.SIGUSR1, tell=print):
        assert signal.getsignal(signal.SIGUSR1) != before
    assert signal.getsignal(signal.SIGUSR1) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_every() -> None:
    rarely = Every(timedelta(hours=1))
    assert [rarely(), rarely()] == [True, False]
    rarely.again()
    assert rarely()
    always = Every(timedelta())
    assert [always(), always()] == [True, True]
