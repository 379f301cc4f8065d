"""The processes that run a worker's jobs, seen from the worker: started, fed, told, and ended when they must be."""

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from django.conf import ENVIRONMENT_VARIABLE
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.utils.functional import SimpleLazyObject

from pgwerk_django import spans
from pgwerk_django.claims import FIELDS, Claim, job_of
from pgwerk_django.exceptions import JobTimeout, PgwerkError
from pgwerk_django.execution import ENDS_WITHIN
from pgwerk_django.models import Job

_KEY, _FUNCTION, _QUEUE = map(FIELDS.index, ("key", "function", "queue"))
_LOOK_AT_START = "see what it printed; settings and ready() of all apps run in it, and must neither fail nor exit there"
PROGRAM = Path(__file__).with_name("child.py")
LARGEST_MESSAGE = 50  # jobs
ANSWERS_WITHIN = 0.2  # seconds: a process that takes longer is busy, and gets no job until it has answered
QUICK = 0.02  # seconds; behind a job of a function that takes longer, or of which this is not known, no job waits
MOST_KNOWN = 10_000  # functions
SLOWEST_START = 30.0  # seconds between two, when they die before they are up


@dataclass(slots=True, eq=False)
class Held:
    """A job that this worker has claimed."""

    key: Claim
    row: tuple[Any, ...]
    timeout: int | None
    using: str
    claimed: float  # instants are `time.monotonic()`
    lease_ends: float
    child: "Child | None" = None
    given: float | None = None  # to the child
    started: float | None = None  # there, as far as can be told from here: jobs start in the order they were given
    begun: bool = False  # which its row says
    start_told: bool = False  # `job_started` was sent
    unsure: bool = False  # whether it is quick
    lost: bool = False
    asked: bool = False  # to stop, by `current_job().cancelled`
    stopping: PgwerkError | None = None  # why it was stopped
    stopped: float | None = None  # when
    stack: str = ""  # where it was then
    _job: Job | None = None

    @property
    def job(self) -> Job:
        if self._job is None:
            self._job = job_of(self.row, self.using)
        return self._job

    def told(self, **changes: Any) -> "ToldJob":
        """The job for whoever is told of it, with these columns as they are by now."""
        return ToldJob(self, changes)

    @property
    def deadline(self) -> float | None:
        return None if self.timeout is None or self.started is None else self.started + self.timeout


class ToldJob(SimpleLazyObject):  # type: ignore[type-arg]  # at run time it takes none
    """A `Job` that is only made for who wants more of it than its key: of thousands a second, most are just logged."""

    def __init__(self, held: Held, changes: dict[str, Any]) -> None:
        def make() -> Job:
            job = job_of(held.row, held.using)
            for name, value in changes.items():
                setattr(job, name, value)
            return job

        super().__init__(make)
        self.__dict__["_key"] = held.row[_KEY]

    def __str__(self) -> str:
        return str(self.__dict__["_key"])


class Child:
    """One process that runs jobs: a thread of ours writes to it, another reads."""

    def __init__(self, pool: "Children") -> None:
        self.running: dict[Claim, Held] = {}  # under the pool's lock
        self.up = self.was_up = False
        self.leaving = False
        self.condemned = False  # by us, to be killed
        self.retired = False  # gets no more jobs
        self.given = 0
        self.asked: float | None = None  # to give back what it has not started; None once it has answered
        self.unsent: set[Any] = set()
        self._unsure = 0  # jobs here that may take long
        self._pool = pool
        self._outbox: queue.SimpleQueue[tuple[str, Any, Any] | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._connection, theirs = Pipe()
        try:
            self.process = subprocess.Popen(  # noqa: S603  our own program
                [
                    sys.executable,
                    "-P",
                    *(f"-W{option}" for option in sys.warnoptions),
                    str(PROGRAM),
                    str(theirs.fileno()),
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # so that what its jobs start can be ended with it
            )
        finally:
            theirs.close()
        self._connection.send(sys.path)
        self._connection.send(pool.given)
        self._writer = threading.Thread(target=self._write, name=f"pgwerk-to-{self.process.pid}", daemon=True)
        self._reader = threading.Thread(target=self._read, name=f"pgwerk-from-{self.process.pid}", daemon=True)
        self._writer.start()
        self._reader.start()

    def room(self) -> int:
        if not self.up or self.retired:
            return 0
        if self.asked is not None and time.monotonic() - self.asked > ANSWERS_WITHIN:
            return 0
        extra = 0 if self._unsure else self._pool.extra
        room = max(self._pool.threads + extra - len(self.running), 0)
        most = self._pool.max_jobs
        return room if most is None else min(room, most - self.given)

    def give(self, held: Held) -> None:
        self.given += 1
        self.retired = self.given == self._pool.max_jobs
        held.child, held.given = self, time.monotonic()
        self.running[held.key] = held
        held.unsure = held.row[_FUNCTION] not in self._pool.quick
        self._unsure += held.unsure
        self.mark_started()
        self._outbox.put(("run", held.key, held.row))

    def take(self, key: Claim) -> Held | None:
        """It is no longer here."""
        held = self.running.pop(key, None)
        if held is not None:
            self._unsure -= held.unsure
        self.mark_started()
        return held

    def mark_started(self) -> None:
        for held in islice(self.running.values(), self._pool.threads):
            if held.started is None:
                held.started = time.monotonic()

    def tell(self, word: str, held: Held) -> None:
        timed_out = type(held.stopping) is JobTimeout
        self._outbox.put((word, held.key, held.timeout if timed_out else None))

    def recall(self) -> None:
        """Have it give back what it has not started. Until it answers it is not asked again."""
        if self.asked is None:
            self.asked = time.monotonic()
            self._outbox.put(("recall", None, None))

    def hang_up(self) -> None:
        """Have it end, once it has been sent what is still to be sent."""
        self._outbox.put(("end", None, None))
        self._outbox.put(None)

    def join(self) -> None:
        self._reader.join()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def is_dead(self) -> bool:
        return self.process.poll() is not None

    def cut(self) -> None:
        """It is dead, and somebody it left behind may keep the pipe open: the reader need not wait for them."""
        self.kill()  # the others of its session
        with self._closing:  # else the number may be another file's by now
            if not self._connection.closed:
                with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as pipe:
                    pipe.shutdown(socket.SHUT_RDWR)  # what is in it already can still be read

    def how_it_ended(self) -> str:
        code = self.process.wait()
        if code >= 0:
            return f"exit code {code}" + ("" if self.was_up else f" before it was up: {_LOOK_AT_START}")
        name = signal.Signals(-code).name
        return f"killed by {name} (was there memory left?)" if -code == signal.SIGKILL else f"killed by {name}"

    def _write(self) -> None:
        goes_on = True
        while goes_on:
            batch = [self._outbox.get()]
            with contextlib.suppress(queue.Empty):
                while len(batch) < LARGEST_MESSAGE:
                    batch.append(self._outbox.get_nowait())
            goes_on = None not in batch
            messages = [message for message in batch if message is not None]
            try:
                self._connection.send(messages)
            except OSError:  # it died, which the reader says
                self.unsent.update(key for _, key, _ in messages)

    def _read(self) -> None:
        try:
            while True:
                word, key, value = self._connection.recv()
                if word == "up":
                    self.up = self.was_up = True
                elif word == "done":
                    self._pool.feed_after(self, key)
                self._pool.report(word, self, key, value)
        except (EOFError, OSError):
            pass
        except Exception:  # noqa: BLE001  # what cannot be read: a job may have written to the pipe
            self.kill()
        self.up = False
        self.process.wait()
        self.kill()  # what its jobs have started
        self._outbox.put(None)
        self._writer.join()
        with self._closing:
            self._connection.close()
        self._pool.report("gone", self, None, None)


class Children:
    """The processes of one worker, and the jobs that wait for a place in them: whoever has room is fed at once."""

    def __init__(
        self,
        *,
        count: int,
        threads: int,
        max_jobs: int | None,
        using: str,
        report: Callable[[str, "Child | None", Any, Any], None],
    ) -> None:
        self.count = count
        self.threads = threads
        self.max_jobs = max_jobs
        self.report = report  # called from threads
        self.given = {
            "parent": os.getpid(),
            "settings": _settings_module(),
            "threads": threads,
            "using": using,
            "databases": {alias: connections[alias].settings_dict["NAME"] for alias in connections},
            "auto_instrumented": spans.AUTO_INSTRUMENTATION in sys.modules,
        }
        self._all: list[Child] = []
        self._waiting: deque[Held] = deque()
        self.extra = 0  # jobs that a process has at hand beyond those it runs, when they are short
        self._lock = threading.Lock()
        self._died_young = 0
        self._next_start = 0.0
        self.quick: dict[str, None] = {}  # functions whose last job was
        self.withheld: frozenset[str] = frozenset()  # queues that are paused
        self._last_up = self._last_free = time.monotonic()

    def __iter__(self) -> Iterator[Child]:
        return iter(list(self._all))

    def tend(self, *, replace: bool = True) -> None:
        """Start those that are missing, let go of those that have run their number of jobs, and notice who died."""
        while replace and self._is_short() and time.monotonic() >= self._next_start:
            try:
                self._all.append(Child(self))
            except OSError as error:  # no memory, or too many processes: there may be room later
                self._start_later()
                self.report("unborn", None, None, str(error))
        for child in self:
            if child.is_dead():
                child.cut()
            elif child.retired and not child.running and not child.leaving:
                child.leaving = True
                child.hang_up()
        self._note_state()

    def _note_state(self) -> None:
        now = time.monotonic()
        up = [child for child in self if child.up and not child.retired]
        if up:
            self._last_up = now
        if any(len(child.running) < self.threads for child in up):
            self._last_free = now

    def state(self) -> dict[str, Any]:
        """Return the figures by which `health` judges this worker. Durations are seconds; 0 means that nothing is wrong."""
        now = time.monotonic()
        up = [child for child in self if child.up and not child.retired]
        unanswered = [now - child.asked if child.asked is not None else 0 for child in up]
        return {
            "places": self.count * self.threads,
            "up": len(up) * self.threads,
            "down_for": 0 if up else round(now - self._last_up, 1),
            "died": self._died_young,
            "unanswered_for": round(min(unanswered, default=0), 1),
            "taken_for": round(now - self._last_free, 1) if up else 0,
        }

    def ask(self) -> None:
        """Have each process that has jobs show that it still answers. (It gives back what it has not started.)"""
        with self._lock:
            for child in self._all:
                if child.running and child.up:
                    child.recall()

    def _is_short(self) -> bool:
        return sum(not child.retired for child in self._all) < self.count

    def forget(self, child: Child) -> list[Held]:
        """It is gone: the jobs that went with it. Those that die before they are up are started again more and more slowly."""
        with self._lock:
            child.up, child.retired = False, True
            self._all.remove(child)
            went: list[Held] = []
            back: list[Held] = []
            for key, held in child.running.items():
                (back if held.started is None or key in child.unsent else went).append(held)
            child.running = {}
            self._wait_again(back)
        if child.was_up:
            self._died_young = 0
        else:
            self._start_later()
        return went

    def _start_later(self) -> None:
        self._died_young += 1
        self._next_start = time.monotonic() + min(2.0**self._died_young, SLOWEST_START)

    def room(self) -> int:
        """How many jobs they could take beyond those that wait."""
        with self._lock:
            return sum(child.room() for child in self._all) - len(self._waiting)

    @property
    def places(self) -> int:
        return sum(self.threads for child in self._all if child.up)

    def took(self, function: str, seconds: float) -> None:
        """A job of this function has run for so long."""
        if seconds > QUICK:
            self.quick.pop(function, None)
        elif len(self.quick) < MOST_KNOWN:
            self.quick[function] = None

    def withhold(self, queues: Iterable[str]) -> None:
        """Start no more jobs of these queues: those that wait, and those that processes give back, are reported."""
        self.withheld = frozenset(queues)
        with self._lock:
            for child in self._all:
                if any(held.started is None for held in child.running.values()):
                    child.recall()
            waiting, self._waiting = self._waiting, deque()
            for held in waiting:
                self._wait(held)

    def _wait(self, held: Held) -> None:
        if held.row[_QUEUE] in self.withheld:
            self.report("withheld", None, held.key, None)
        else:
            self._waiting.append(held)

    def waits_since(self) -> float | None:
        with self._lock:
            return self._waiting[0].claimed if self._waiting else None

    def put(self, claimed: Iterable[Held]) -> None:
        with self._lock:
            self._waiting.extend(claimed)
            self._feed_all()

    def _feed_all(self) -> None:
        while self._waiting and (child := max(self._all, key=Child.room, default=None)) and child.room() > 0:
            self._feed(child)

    def feed_after(self, child: Child, key: Claim) -> None:
        """A job of this child is done: give it others, without a look at the database."""
        self._last_free = time.monotonic()
        with self._lock:
            child.take(key)
            if child.room() > self.extra / 2 or len(child.running) < self.threads:
                while self._waiting and child.room() > 0:
                    self._feed(child)

    def recall(self, older_than: float) -> bool:
        """What a process was given and has not started since is for others to run. Whether there was any."""
        recalled = False
        oldest = time.monotonic() - older_than
        with self._lock:
            for child in self._all:
                if child.asked is None and any(
                    held.started is None and held.given is not None and held.given < oldest
                    for held in child.running.values()
                ):
                    child.recall()
                    recalled = True
        return recalled

    def came_back(self, child: Child, keys: Iterable[Claim]) -> None:
        with self._lock:
            child.asked = None
            self._wait_again([held for key in keys if (held := child.take(key)) is not None])
            self._feed_all()

    def _wait_again(self, back: list[Held]) -> None:
        for held in back:
            held.child = held.given = held.started = None
        self._waiting.extendleft(reversed(back))

    def _feed(self, child: Child) -> None:
        held = self._waiting.popleft()
        if time.monotonic() >= held.lease_ends or held.lost:  # we were frozen, and another may run it by now
            self.report("late", None, held.key, None)
        elif held.row[_QUEUE] in self.withheld:
            self.report("withheld", None, held.key, None)
        else:
            child.give(held)

    def take_back(self) -> list[Held]:
        """The jobs that wait, which wait no longer."""
        with self._lock:
            back = list(self._waiting)
            self._waiting.clear()
        return back

    def end(self) -> None:
        """End them all, in time for what is still to be written or sent, and wait until what they had said is reported."""
        for child in self:
            child.condemned = True
            child.hang_up()
        # They end within `ENDS_WITHIN` by themselves, if Python can.
        ends = time.monotonic() + spans.watch.patience + ENDS_WITHIN + 0.5
        for child in self:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(ends - time.monotonic(), 0))
            child.kill()
        for child in self:
            child.process.wait()
            child.cut()
            child.join()


def _settings_module() -> str:
    module = os.environ.get(ENVIRONMENT_VARIABLE)
    if not module:
        raise ImproperlyConfigured(
            f"a worker's processes read the settings anew: the environment variable {ENVIRONMENT_VARIABLE} must name their"
            " module, got none"
        )
    return module
