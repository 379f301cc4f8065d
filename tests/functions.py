"""Functions that tests schedule. They stand at the top level of a module, so that a worker can import them."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from django.core.mail.backends.base import BaseEmailBackend
from django.db import connection, transaction
from django.utils import timezone, translation

from pgwerk_django.exceptions import JobCancelled
from pgwerk_django.jobs import current_job


def folder() -> Path:
    """Where what runs in another process leaves word: the fixture `notes` makes it."""
    return Path(os.environ["PGWERK_TEST_FOLDER"])


def write(*values: Any) -> None:
    """One line, in one write: many processes share the file."""
    with (folder() / "notes").open("ab", buffering=0) as notes:
        notes.write(json.dumps(values).encode() + b"\n")


def read() -> list[Any]:
    notes = folder() / "notes"
    return [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []


def die_if_told(*args: Any, **event: Any) -> None:
    """Where a test says so, once: as by `kill -9`, right here."""
    told = folder() / "die"
    if told.exists():
        told.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


class NoMail(BaseEmailBackend):
    def send_messages(self, email_messages: Any) -> int:
        raise OSError("nobody takes it")


class Gate:
    """A door that a test opens, for whoever waits in another process."""

    def __init__(self, name: str = "gate") -> None:
        self._name = name

    def set(self) -> None:
        (folder() / self._name).touch()

    def wait(self, seconds: float = 60) -> None:
        pause = threading.Event()
        deadline = time.monotonic() + seconds
        while not (folder() / self._name).exists() and time.monotonic() < deadline:
            pause.wait(0.02)


gate = Gate()


def noop() -> None:
    pass


def add(a: int, b: int = 0) -> int:
    return a + b


def log_in(password: str, **kwargs: Any) -> None:
    pass


def remember(*args: Any, **kwargs: Any) -> None:
    write(*args)


def job_seen() -> dict[str, Any]:
    job = current_job()
    assert job is not None
    return {"name": job.schedule_name, "attempt": job.attempt, "meta": job.meta, "due_at": str(job.due_at)}


async def async_add(a: int, b: int = 0) -> int:
    return a + b


async def async_forever() -> None:
    import asyncio

    try:
        await asyncio.Event().wait()
    finally:
        write("cleaned up")


async def async_together(number: int) -> None:
    """Over once `number` of them run at the same time."""
    import asyncio

    write("here")
    while len(read()) < number:
        await asyncio.sleep(0.01)


def wait_for_gate() -> str:
    write("waiting", os.getpid())
    gate.wait()
    write("leaving")
    return "through"


def sleep(seconds: float = 3600) -> None:
    write("asleep", os.getpid())
    time.sleep(seconds)  # noqa: TID251  a job that hangs


def spin() -> None:
    write("spinning", os.getpid())
    try:
        while True:
            pass
    finally:
        write("cleaned up")


def hold_the_gil() -> None:
    """C code that hears no signal and lets no other thread run."""
    write("holding", os.getpid())
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    ctypes.PyDLL(None).sleep(3600)


def start_a_process() -> None:
    """A job that hangs because a program it started does."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"]) as program:
        write("started", program.pid)


async def block_the_loop() -> None:
    write("blocking", os.getpid())
    time.sleep(3600)  # noqa: TID251


def cancellable() -> str:
    job = current_job()
    assert job is not None
    write("running")
    pause = threading.Event()
    while not job.cancelled:
        pause.wait(0.02)
    raise JobCancelled("stopped half-way")


def finish_all_the_same() -> str:
    job = current_job()
    assert job is not None
    write("running")
    pause = threading.Event()
    while not job.cancelled:
        pause.wait(0.02)
    return "what there was"


def tell_progress(text: str) -> None:
    job = current_job()
    assert job is not None
    job.progress(1, 2, text)


def long_text(length: int) -> str:
    return "x" * length


def say_progress() -> None:
    job = current_job()
    assert job is not None
    job.progress(1, 3, "a third")
    write("said")
    gate.wait()
    job.progress(3, 3, "all of it")


def say_after_gate() -> None:
    """Say how far it is once the second gate is open, and end at the third one."""
    job = current_job()
    assert job is not None
    Gate("second gate").wait()
    job.progress(1, 2, "half")
    write("said")
    Gate("third gate").wait()


def process_id() -> int:
    return os.getpid()


def leave_a_transaction_open() -> None:
    transaction.atomic().__enter__()
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO _pgwerk_queues (name) VALUES ('of an open transaction')")


def switch_off_autocommit() -> None:
    transaction.set_autocommit(False)


async def async_leave_a_transaction_open() -> None:
    from asgiref.sync import sync_to_async

    await sync_to_async(leave_a_transaction_open)()


def change_the_language() -> None:
    translation.activate("fr")
    timezone.activate("Asia/Tokyo")


def surroundings() -> dict[str, Any]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_database()")
        database = cursor.fetchone()[0]
    return {
        "language": translation.get_language(),
        "zone": timezone.get_current_timezone_name(),
        "database": database,
        "queries": len(connection.queries_log),
        "path": sys.path[:1],
    }


def slow_add(a: int, seconds: float = 0.05) -> int:
    write(a)
    time.sleep(seconds)  # noqa: TID251  a job that takes its time
    return a


def fail(text: str = "no luck") -> None:
    raise ValueError(text)


def fail_with_nul() -> None:
    raise ValueError("a zero \0 byte and half a pair \ud800")


def fail_with_notes() -> None:
    error = ValueError("the first line\nthe second line")
    error.add_note("a note")
    raise error


def produce() -> Any:
    yield 1


def fail_first() -> str:
    job = current_job()
    assert job is not None
    if job.attempt == 1:
        raise ValueError("the first time")
    return f"attempt {job.attempt}"


def not_json() -> object:
    return object()


def nul_result() -> str:
    return "a\0b"


def leave() -> None:
    raise SystemExit(3)


def kill_own_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_own_worker() -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    sleep()


def leave_somebody_behind() -> None:
    """A process that holds on to what it inherited, in a session of its own, when the one that runs the job dies."""
    if os.fork() == 0:
        os.setsid()
        write("left behind", os.getpid())
        time.sleep(3600)  # noqa: TID251
    pause = threading.Event()
    while not read():
        pause.wait(0.02)
    kill_own_process()


def exit_at_once() -> None:
    os._exit(7)


not_a_function = 42


def returns_too_much() -> str:
    return "x" * (17 * 2**20)


def says_too_much() -> None:
    job = current_job()
    assert job is not None
    job.progress(10**5000)


def beat(seconds: float = 60) -> None:
    """Write when it was still running."""
    pause = threading.Event()
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        write("beat", time.monotonic())
        pause.wait(0.1)


def cancel_itself() -> None:
    raise JobCancelled("by itself")
