"""A worker's child process: runs the jobs it is sent, plain functions on threads, async ones together on one event loop.

The worker starts this file as a program. Nothing here talks to the queue: outcomes go back to the worker, which writes
them. What hangs, leaks or crashes here is the worker's to end, and costs it this process.
"""

import asyncio
import contextlib
import ctypes
import importlib
import os
import queue
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from pgwerk_django.execution import Outcome
    from pgwerk_django.jobs import CurrentJob
    from pgwerk_django.models import Job

PR_SET_PDEATHSIG = 1


class _Stopped(BaseException):
    """Raised in a thread from outside. No `Exception`, so that few functions hold it up."""


def main(worker: "Connection[Any, Any]") -> None:
    given = worker.recv()
    die_with(given["parent"])
    prepare(given)
    Jobs(worker, given["threads"], given["using"]).serve()


def die_with(parent: int) -> None:
    """Where the kernel can see to it, be killed with the worker, even amid C code that no thread of ours interrupts."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def prepare(given: dict[str, Any]) -> None:
    from pgwerk_django import spans

    os.environ["DJANGO_SETTINGS_MODULE"] = given["settings"]
    if given["auto_instrumented"] and spans.AUTO_INSTRUMENTATION not in sys.modules:
        # The worker was started by `opentelemetry-instrument`, some versions of which see to no process that it starts.
        importlib.import_module(spans.AUTO_INSTRUMENTATION).initialize()
    import django
    from django.db import connections

    django.setup()
    for alias, name in given["databases"].items():
        if alias in connections.settings:
            connections.settings[alias]["NAME"] = name  # in a test run, the test database's
    importlib.import_module("pgwerk_django.execution")


class Jobs:
    """What runs in this process. A job goes by its id and its claim."""

    def __init__(self, worker: "Connection[Any, Any]", threads: int, using: str) -> None:
        self._worker = worker
        self._using = using
        self._sending = threading.Lock()
        self._todo: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        self._slots = threading.Semaphore(threads)
        self._lock = threading.Lock()
        self._running: dict[Any, Running] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        for number in range(threads):
            threading.Thread(target=self._work, name=f"pgwerk-job-{number}", daemon=True).start()

    def serve(self) -> None:
        """Do what the worker says until it hangs up, and end with it, whatever still runs."""
        from pgwerk_django import spans

        self._send("up", None, None)
        with contextlib.suppress(EOFError, OSError):
            while all(self._do(*message) for message in self._worker.recv()):
                pass
        spans.watch.flush()
        os._exit(0)

    def _do(self, word: str, key: Any, value: Any) -> bool:
        """Whether there is more to do."""
        if word == "run":
            self._todo.put((key, value))
        elif word == "cancel":
            self._tell(key, Running.ask)
        elif word == "stop":
            self._tell(key, Running.stop)
        elif word == "recall":
            self._send("back", None, list(self._not_started()))
        return word != "end"

    def _not_started(self) -> "Iterator[Any]":
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._todo.get_nowait()[0]

    def _send(self, word: str, key: Any, value: Any) -> None:
        # The worker always reads; should it be gone, so are we.
        with self._sending:
            try:
                self._worker.send((word, key, value))
            except OSError:
                os._exit(0)

    def _tell(self, key: Any, what: Any) -> None:
        with self._lock:
            if running := self._running.get(key):
                what(running)

    def _work(self) -> None:
        while True:
            self._slots.acquire()  # of those that run on the event loop too
            self._run(*self._todo.get())

    def _run(self, key: Any, row: Any) -> None:
        from django.utils.functional import SimpleLazyObject

        from pgwerk_django import claims, execution, jobs

        # Most functions ask nothing of their job: it is made for those that do.
        job = jobs.CurrentJob(
            cast("Job", SimpleLazyObject(lambda: claims.job_of(row, self._using))),
            report=lambda progress: self._send("progress", key, progress),
        )
        running = Running(job)
        with self._lock:
            self._running[key] = running
        outcome = None
        try:
            outcome = self._outcome(key, row, running)
            running.over()
        except _Stopped as stopped:  # just as the function had returned; it comes once at most
            running.over()
            outcome = outcome or execution.Outcome.failure(job.row, stopped)
        if outcome is not None:
            self._done(key, outcome)

    def _outcome(self, key: Any, row: Any, running: "Running") -> "Outcome | None":
        """None: it goes on, on the event loop."""
        from pgwerk_django import claims, execution

        job = running.job
        try:
            call = execution.Call(job, *claims.call_of(row))
        except BaseException as error:  # noqa: BLE001  # a module may raise what it likes, SystemExit too
            return execution.not_loaded(job, error)
        if not execution.is_async(call.func):
            return execution.run(call)
        running.go_async(self._event_loop(), execution.arun(call), lambda outcome: self._done(key, outcome))
        return None

    def _done(self, key: Any, outcome: "Outcome") -> None:
        with self._lock:
            running = self._running.pop(key)
        outcome.seconds = time.monotonic() - running.started
        self._send("done", key, outcome)
        self._slots.release()

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="pgwerk-async", daemon=True).start()
            return self._loop


class Running:
    """A job that runs here, and how to stop it."""

    def __init__(self, job: "CurrentJob") -> None:
        self.job = job
        self.started = time.monotonic()
        self._lock = threading.Lock()
        self._thread: int | None = threading.get_ident()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Outcome] | None = None

    def go_async(
        self,
        loop: asyncio.AbstractEventLoop,
        coroutine: "Coroutine[Any, Any, Outcome]",
        done: "Callable[[Outcome], None]",
    ) -> None:
        def start() -> None:
            self._task = loop.create_task(coroutine)
            self._task.add_done_callback(end)

        def end(task: "asyncio.Task[Outcome]") -> None:
            if task.cancelled():  # before its first step
                coroutine.close()
                done(execution.Outcome.failure(self.job.row, _Stopped()))
            else:
                done(task.result())

        from pgwerk_django import execution

        with self._lock:
            self._thread, self._loop = None, loop
        loop.call_soon_threadsafe(start)

    def ask(self) -> None:
        self.job.ask_to_stop()

    def stop(self) -> None:
        """Raise in its thread, or cancel its task. What waits in C hears of it when that returns."""
        self.ask()
        with self._lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(lambda: self._task and self._task.cancel())
            elif self._thread is not None:
                _raise_in(self._thread, _Stopped)

    def over(self) -> None:
        """Its thread goes on to another job: what was meant for this one must not reach that."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is not None:
                _raise_in(thread, None)


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Have an exception raised in a thread when it next runs bytecode; None takes back one that was not yet."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error and ctypes.py_object(error))


if __name__ == "__main__":
    # A terminal's Ctrl-C and a service manager's SIGTERM reach all processes; what follows from them is the worker's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection: "Connection[Any, Any]" = Connection(int(sys.argv[1]))
    sys.path[:] = connection.recv()
    from pgwerk_django.child import main

    main(connection)
