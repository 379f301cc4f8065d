"""Jobs that do what jobs should not: they fork, exit, end their process, and raise and return what cannot be shown."""

import os
import signal
import sys
import threading
import time

from tests.chaos.workload import began, done, note


class Unshowable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("it cannot be shown")

    __repr__ = __str__


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("it cannot be shown")


def forks_and_exits() -> None:
    began()
    if (copy := os.fork()) == 0:
        sys.exit(0)
    os.waitpid(copy, 0)
    done()


def forks_and_returns() -> None:
    began()
    if (copy := os.fork()) == 0:
        return
    os.waitpid(copy, 0)
    done()


def forks_and_raises() -> None:
    began()
    if (copy := os.fork()) == 0:
        raise Unshowable
    os.waitpid(copy, 0)
    done()


def exits() -> None:
    began()
    sys.exit(3)


def ends_its_process() -> None:
    began()
    note("exits", worker=os.getppid())
    os._exit(3)


def kills_its_process() -> None:
    began()
    note("exits", worker=os.getppid())
    os.kill(os.getpid(), signal.SIGKILL)


def raises_what_cannot_be_shown() -> None:
    began()
    raise Unshowable


def raises_a_surrogate() -> None:
    began()
    raise ValueError("half of one: \ud800, and a null: \0")


def returns_what_cannot_be_stored() -> object:
    began()
    return Unprintable()


def recurses() -> None:
    began()
    recurses_on()


def recurses_on() -> None:
    recurses_on()


def prints() -> None:
    began()
    done()


def leaves_a_thread() -> None:
    began()
    threading.Thread(target=threading.Event().wait, args=[5], daemon=True).start()
    done()


def runs_out_its_time() -> None:
    """Has one second."""
    began()
    ends = time.monotonic() + 20
    while time.monotonic() < ends:
        threading.Event().wait(0.01)
