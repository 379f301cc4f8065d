"""A worker's child process: runs the jobs it is sent, plain functions on threads, async ones together on one event loop.

The worker starts this file as a program. Nothing here talks to the queue: outcomes go back to the worker, which writes
them. What hangs, leaks or crashes here is the worker's to end, and costs it this process.
"""

import asyncio
import atexit
import contextlib
import contextvars
import ctypes
import importlib
import os
import queue
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NoReturn, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from types import FrameType

    from pgwerk_django.exceptions import PgwerkError
    from pgwerk_django.execution import Outcome
    from pgwerk_django.jobs import CurrentJob
    from pgwerk_django.models import Job

PR_SET_PDEATHSIG = 1
BROKEN = 70  # the exit code of a process in which our own code failed: EX_SOFTWARE of sysexits.h


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
    """What runs in this process. A job goes by its id and its claim.

    Nothing that a job does or raises may end one of our threads: the process would be up, and run nothing. What escapes our
    own code is that job's failure. Where even that cannot be told, the process ends, which the worker notices.
    """

    def __init__(self, worker: "Connection[Any, Any]", threads: int, using: str) -> None:
        # Once, and kept: a job may empty `sys.modules`, and to import them again would register the models twice.
        from django.utils.functional import SimpleLazyObject

        from pgwerk_django import claims, exceptions, execution, jobs, spans

        self._exceptions = exceptions
        self._lazy, self._claims, self._execution, self._jobs = SimpleLazyObject, claims, execution, jobs
        self._spans = spans
        self._worker = worker
        self._using = using
        self._pid = os.getpid()
        self._pipe = _identity(worker.fileno())
        self._recursion_limit = sys.getrecursionlimit()
        self._sending = threading.Lock()
        self._todo: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        self._slots = threading.Semaphore(threads)
        self._lock = threading.Lock()
        self._running: dict[Any, Running] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread: threading.Thread | None = None
        os.register_at_fork(after_in_child=self._forked)
        for number in range(threads):
            threading.Thread(target=self._work, name=f"pgwerk-job-{number}", daemon=True).start()

    def serve(self) -> None:
        """Do what the worker says until it hangs up, and end with it, whatever still runs."""
        try:
            self._send("up", None, None)
            with contextlib.suppress(EOFError, OSError):
                while all(self._do(*message) for message in self._worker.recv()):
                    pass
        except BaseException as error:  # noqa: BLE001
            _break(error)
        end_well(self._spans.watch, self._execution.ENDS_WITHIN)

    def _do(self, word: str, key: Any, value: Any) -> bool:
        """Whether there is more to do."""
        if word == "run":
            self._todo.put((key, value))
        elif word == "cancel":
            self._tell(key, Running.ask)
        elif word == "stop":
            why = self._exceptions.JobCancelled() if value is None else self._exceptions.JobTimeout(value)
            self._tell_stack(key)
            self._tell(key, lambda running: running.stop(why))
        elif word == "recall":
            self._send("back", None, list(self._not_started()))
        return word != "end"

    def _not_started(self) -> "Iterator[Any]":
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._todo.get_nowait()[0]

    def _send(self, word: str, key: Any, value: Any) -> None:
        """Send what is made of Python's own types only: an object of another class might not be read where it arrives."""
        with self._sending:
            if _identity(self._worker.fileno()) != self._pipe:
                # Such as `os.closerange()`: under this number may be a file of the job's by now.
                raise RuntimeError("a job closed the pipe to the worker, which was not its own")
            try:
                self._worker.send((word, key, value))
            except OSError:  # the worker always reads; should it be gone, so are we
                os._exit(0)

    def _tell(self, key: Any, what: Any) -> None:
        with self._lock:
            if running := self._running.get(key):
                what(running)

    def _tell_stack(self, key: Any) -> None:
        """Tell where a job is that is about to be stopped: should it not stop, the process is killed, and nobody could."""
        with self._lock:
            running = self._running.get(key)
        if running is not None:
            stack = ""
            with contextlib.suppress(Exception):  # frames change while they are read
                stack = self._execution.shown_stack(running.frames())
            self._send("stack", key, stack)

    # -- a job

    def _work(self) -> None:
        while True:
            self._slots.acquire()  # of those that run on the event loop too
            key, row = self._todo.get()
            try:
                # A context for each job: what one sets in it, the next must not find.
                contextvars.Context().run(self._run, key, row)
            except BaseException as error:  # noqa: BLE001
                _break(error)
            del key, row

    def _run(self, key: Any, row: Any) -> None:
        # Most functions ask nothing of their job: it is made for those that do.
        job = self._jobs.CurrentJob(
            cast("Job", self._lazy(lambda: self._claims.job_of(row, self._using))),
            report=lambda progress: self._report(key, progress),
        )
        running = Running(job)
        outcome = None
        try:
            with self._lock:
                self._running[key] = running
            outcome = self._outcome(key, row, running)
            running.over()
        except BaseException as error:  # noqa: BLE001  # a stop just as the function had returned, or our own code failed
            running.over()  # a stop comes once at most
            outcome = outcome or self._execution.Outcome.failure(job.row, error)
            self._execution.forget_connections()
        if outcome is not None:
            self._done(key, outcome)

    def _outcome(self, key: Any, row: Any, running: "Running") -> "Outcome | None":
        """None: it goes on, on the event loop."""
        execution, job = self._execution, running.job
        try:
            call = execution.Call(job, *self._claims.call_of(row))
        except BaseException as error:  # noqa: BLE001  # a module may raise what it likes, SystemExit too
            return cast("Outcome", execution.not_loaded(job, error))
        if not execution.is_async(call.func):
            return cast("Outcome", execution.run(call))
        running.go_async(
            *self._event_loop(),
            execution.arun(call),
            lambda error: execution.Outcome.failure(job.row, error),
            lambda outcome: self._done(key, outcome),
        )
        return None

    def _done(self, key: Any, outcome: "Outcome") -> None:
        try:
            with self._lock:
                running = self._running.pop(key, None)
            if running is None:  # told already
                return
            outcome.seconds = time.monotonic() - running.started
            self._send("done", key, outcome.packed())
            if sys.getrecursionlimit() < self._recursion_limit:  # so low that no other job might run
                sys.setrecursionlimit(self._recursion_limit)
            self._slots.release()
        except BaseException as error:  # noqa: BLE001
            _break(error)

    def _report(self, key: Any, progress: dict[str, Any]) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError("progress() works in the process that runs the job, not in a copy made by os.fork()")
        self._send("progress", key, progress)

    # -- the event loop

    def _event_loop(self) -> "tuple[asyncio.AbstractEventLoop, threading.Thread]":
        with self._lock:
            if self._loop is None or self._loop_thread is None:
                self._loop = asyncio.new_event_loop()
                self._loop_thread = threading.Thread(
                    target=self._serve_loop, args=[self._loop], name="pgwerk-async", daemon=True
                )
                self._loop_thread.start()
            return self._loop, self._loop_thread

    def _serve_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run the loop for ever, although a job may stop it, or have a task raise what asyncio lets through."""
        try:
            while not loop.is_closed():
                with contextlib.suppress(SystemExit, KeyboardInterrupt):
                    loop.run_forever()
                if os.getpid() != self._pid:
                    break
            raise RuntimeError("a job closed the event loop of this process, which was not its own")
        except BaseException as error:  # noqa: BLE001
            if os.getpid() != self._pid:
                self._execution.end_copy(RuntimeError("a copy made by os.fork() cannot go on with the event loop"))
            _break(error)

    # -- a copy

    def _forked(self) -> None:
        """In a copy of this process that a job made by `os.fork()`: leave it nothing of ours that it could break."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._worker.close()
        self._execution.leave_connections_to_parent()
        if self._loop is not None:
            self._loop.stop()
            # The other jobs on the loop go on in the parent alone. That there is nothing left ends the loop's turn at once.
            getattr(self._loop, "_ready", []).clear()


class Running:
    """A job that runs here, and how to stop it."""

    def __init__(self, job: "CurrentJob") -> None:
        self.job = job
        self.started = time.monotonic()
        self._lock = threading.Lock()
        self._thread: int | None = threading.get_ident()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread: int | None = None
        self._task: asyncio.Task[Outcome] | None = None

    def go_async(
        self,
        loop: asyncio.AbstractEventLoop,
        thread: threading.Thread,
        coroutine: "Coroutine[Any, Any, Outcome]",
        failure: "Callable[[BaseException], Outcome]",
        done: "Callable[[Outcome], None]",
    ) -> None:
        def start() -> None:
            try:
                # Not `loop.create_task()`: a job may give the loop a task factory of its own.
                self._task = asyncio.Task(coroutine, loop=loop, context=contextvars.Context())
                self._task.add_done_callback(end)
            except BaseException as error:  # noqa: BLE001
                coroutine.close()
                done(failure(error))

        def end(task: "asyncio.Task[Outcome]") -> None:
            try:
                if task.cancelled():  # before its first step, or after its last
                    coroutine.close()
                    outcome = failure(_Stopped())
                else:
                    outcome = task.result()
            except BaseException as error:  # noqa: BLE001  # our own code failed
                outcome = failure(error)
            done(outcome)

        with self._lock:
            self._thread, self._loop, self._loop_thread = None, loop, thread.ident
        loop.call_soon_threadsafe(start)

    def ask(self) -> None:
        self.job.ask_to_stop()

    def frames(self) -> "Iterator[FrameType]":
        """Return the stack of the job as it is now, the outermost frame first."""
        task, thread = self._task, self._thread
        if task is not None:
            coroutine: Any = task.get_coro()
            chain = [*_awaited(coroutine)]
            if not getattr(chain[-1], "cr_running", False):
                return iter([frame for each in chain if (frame := _frame_of(each)) is not None])
            thread = self._loop_thread  # it does not wait: the loop itself is there
        frame = sys._current_frames().get(thread or 0)
        return iter([each for each, _line in traceback.walk_stack(frame)][::-1] if frame is not None else [])

    def stop(self, why: "PgwerkError") -> None:
        """Raise in its thread, or cancel its task. What waits in C hears of it when that returns."""
        self.job.stopping = why
        self.ask()
        with self._lock:
            if self._loop is not None:
                with contextlib.suppress(RuntimeError):  # a loop that is closed, which ends the process
                    self._loop.call_soon_threadsafe(lambda: self._task and self._task.cancel())
            elif self._thread is not None:
                _raise_in(self._thread, _Stopped)

    def over(self) -> None:
        """Its thread goes on to another job: what was meant for this one must not reach that."""
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is not None:
                _raise_in(thread, None)


def _awaited(coroutine: Any) -> "Iterator[Any]":
    """A coroutine, what it awaits, and so on."""
    for _ in range(200):
        yield coroutine
        for name in ("cr_await", "gi_yieldfrom", "ag_await"):
            inner = getattr(coroutine, name, None)
            if inner is not None:
                break
        else:
            return
        coroutine = inner


def _frame_of(coroutine: Any) -> "FrameType | None":
    for name in ("cr_frame", "gi_frame", "ag_frame"):
        frame: FrameType | None = getattr(coroutine, name, None)
        if frame is not None:
            return frame
    return None


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Have an exception raised in a thread when it next runs bytecode; None takes back one that was not yet."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error and ctypes.py_object(error))


def _identity(number: int) -> tuple[int, int] | None:
    """Return what is open under a file's number."""
    try:
        status = os.fstat(number)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _break(error: BaseException) -> NoReturn:
    """End this process: our own code failed in it. The worker sees the exit code, and the log the reason."""
    try:
        text = "".join(traceback.format_exception(error))
        os.write(2, f"A process that runs jobs ends, as its own code failed:\n{text}".encode("utf-8", "replace"))
    finally:
        os._exit(BROKEN)


def end_well(watch: Any, seconds: float) -> NoReturn:
    """End this process as Python ends one, so that what is still to be written or sent gets out, but within `seconds`.

    Not by returning: the interpreter would wait for any thread that a job has left, and might crash with those of ours.
    """
    late = threading.Timer(watch.patience + seconds, os._exit, [0])
    late.daemon = True
    late.start()
    # As at Python's own end: first threads and executors finish, then come the functions of `atexit`, `logging` among them.
    for step in (watch.flush, lambda: _join_threads(seconds / 2), atexit._run_exitfuncs, flush_streams):
        # Each has its turn, whatever those before it raise.
        with contextlib.suppress(BaseException):
            step()
    os._exit(0)


def _join_threads(seconds: float) -> None:
    # In a thread, as it has no time limit of its own.
    joining = threading.Thread(target=threading._shutdown, daemon=True)  # type: ignore[attr-defined]
    joining.start()
    joining.join(seconds)


def flush_streams() -> None:
    # A job may have put others in their place, closed them, or set them to None.
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.flush()  # type: ignore[union-attr]


if __name__ == "__main__":
    # A terminal's Ctrl-C and a service manager's SIGTERM reach all processes; what follows from them is the worker's to say.
    # By a handler, not SIG_IGN: a program that a job starts would inherit that, and could not be terminated.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: None)
    if sys.stdout is not None:
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    connection: "Connection[Any, Any]" = Connection(int(sys.argv[1]))
    os.set_inheritable(connection.fileno(), False)  # nor is the pipe for the programs of a job
    sys.path[:] = connection.recv()
    from pgwerk_django.child import main

    main(connection)
