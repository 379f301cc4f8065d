"""Run steps until told to stop: wake early, sleep no longer than needed, outlive the database's absences."""

import contextlib
import math
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, Protocol

import psycopg
import psycopg.sql
from django.conf import settings
from django.db import InterfaceError, InternalError, OperationalError, connections, reset_queries
from psycopg.conninfo import conninfo_to_dict

from pgwerk_django import conf
from pgwerk_django.network import limited, limits_for
from pgwerk_django.sqlstates import Refusal, refusal_of
from pgwerk_django.systemd import Notifier, watchdog_seconds
from pgwerk_django.watchdog import OnHung, Watch, watching, within

FIRST_RETRY = 0.1
LONGEST_RETRY = 5.0
LONGEST_SLEEP = 10.0  # seconds, however long a poll is: heartbeats want to be written
SHORTEST_LIMIT = 1.0  # seconds of a statement, however short the lease: a commit on a busy disk takes a while
STOPS_WITHIN = 5.0  # seconds that the statements at hand get to end, where no jobs have to be waited for
LAST_CONNECT = 2  # seconds to connect for the last words, where the database has been away (psycopg takes no less)
STEADY = 1.0  # seconds of listening, after which a connection that is lost is made anew at once
PROBE_EVERY, PROBE_TAKES = 30.0, 10.0  # seconds: whether a connection that only listens is still there

# The last is what psycopg makes of a connection that ends amid a COMMIT, and of a database that only reads.
Lost = (OperationalError, InterfaceError, InternalError)


class Runner(Protocol):
    """What a loop runs."""

    @property
    def shutdown_timeout(self) -> float:
        """Seconds after `Loop.stop()`, from which on statements that still run are ended."""

    @property
    def ready(self) -> bool:
        """Whether it has begun its work."""

    def step(self) -> float:
        """Do what is to be done; give the seconds until there may be more (0: at once)."""

    def close(self) -> None:
        """The loop has ended: leave things as the next one should find them."""


class Bell:
    """Wakes a loop, from any thread and from signal handlers.

    A bare lock, locked while nothing has rung. A `threading.Event` would not do: its own lock may be held by the very thread
    that a handler interrupts. Nor would `SimpleQueue.get(timeout=…)`: on Python 3.11 and 3.12 it waits for ever if a short
    timeout is over before it begins to wait.
    """

    def __init__(self) -> None:
        self._silence = threading.Lock()
        self._silence.acquire()

    def ring(self) -> None:
        with contextlib.suppress(RuntimeError):  # it has rung already
            self._silence.release()

    def wait(self, seconds: float) -> bool:
        """Whether it rang within `seconds`; rings so far count as one."""
        return self._silence.acquire(timeout=seconds)


@contextlib.contextmanager
def hearing(*numbers: int, tell: Callable[[int], None]) -> Iterator[None]:
    """Have a thread call `tell(number)` at each of these signals. Only the main thread may ask for it.

    A handler in Python would come too late: it waits for the main thread to run bytecode, and one that was just about to
    block when the signal came blocks all the same. The handler in C writes to a socket at once.
    """
    heard, write = socket.socketpair()
    write.setblocking(False)

    def listen() -> None:
        while came := heard.recv(64):
            for number in came:
                if number in numbers:
                    tell(number)

    thread = threading.Thread(target=listen, name="pgwerk-signals", daemon=True)
    thread.start()
    # First where they are told, then that they are: a signal that comes between the two must not be lost.
    wakeup = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        write.close()  # which ends the thread
        thread.join()
        heard.close()


class Every:
    """Says that it is time once in each `interval` (seconds or a `timedelta`), the first time at once."""

    def __init__(self, interval: timedelta | float) -> None:
        self._seconds = interval.total_seconds() if isinstance(interval, timedelta) else interval
        self._next = time.monotonic()

    def __call__(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True

    @property
    def next(self) -> float:
        """When it is time again, by `time.monotonic()`."""
        return self._next

    def again(self, seconds: float = 0) -> None:
        """There is more to do: it is time at the next call too, or so many seconds from now."""
        self._next = time.monotonic() + seconds


@contextlib.contextmanager
def guarded(using: str, *, on_hung: OnHung) -> Iterator[tuple[Watch, dict[str, Any]]]:
    """Have this thread's connection to `using` notice a dead network, and its statements end in time.

    Yields what watches it, and the OPTIONS with which it connects.
    """
    with limits_for(using) as options, watching(using, limit=longest_statement(), on_hung=on_hung) as watch:
        yield watch, options


def longest_statement() -> float:
    """Return the seconds after which a statement of ours is taken to hang: a third of the lease, so that leases are renewed in time.

    Where systemd watches the process, it is not to be restarted for what a new connection mends.
    """
    limit = max(conf.current().LEASE / 3, SHORTEST_LIMIT)
    silence = watchdog_seconds()
    return min(limit, max(silence / 4, STOPS_WITHIN)) if silence else limit


class Loop:
    """Calls each runner's `step` again and again on one connection, until `stop()`.

    systemd's watchdog hears of each pass that comes to an end, be it that the database was away: to be restarted would not
    bring that back. A step that hangs ends no pass.
    """

    def __init__(
        self,
        *runners: Runner,
        using: str,
        bell: Bell | None = None,
        on_lost: Callable[[Exception], None] = lambda error: None,
        on_back: Callable[[float], None] = lambda seconds: None,
        on_refused: Callable[[Exception], None] = lambda error: None,
        on_hung: OnHung = lambda seconds, statement: None,
    ) -> None:
        self._runners = runners
        self._using = using
        self._on_lost = on_lost
        self._on_back = on_back
        self._on_refused = on_refused
        self._on_hung = on_hung
        self._stopping = False
        self._ends_at = math.inf
        self._watch: Watch | None = None
        self._options: dict[str, Any] = {}  # with which it connects
        self._lost_at: float | None = None
        self._is_refused = False
        self._retry = FIRST_RETRY
        self._notifier = Notifier()
        self.bell = bell or Bell()

    def stop(self) -> None:
        """Finish the step at hand and end. Safe from any thread and from signal handlers."""
        self._stopping = True
        self._end_by(time.monotonic() + max(runner.shutdown_timeout for runner in self._runners))
        self.bell.ring()

    def hurry(self) -> None:
        """Stop, and wait for no statement that hangs. Safe from any thread and from signal handlers."""
        self.stop()
        self._options["connect_timeout"] = LAST_CONNECT
        self._end_by(time.monotonic())

    def _end_by(self, instant: float) -> None:
        self._ends_at = min(self._ends_at, instant)
        if self._watch is not None:
            self._watch.end_by(self._ends_at)

    def run(self) -> None:
        with guarded(self._using, on_hung=self._on_hung) as (self._watch, self._options):
            self._end_by(self._ends_at)  # it may have been stopped before
            try:
                while not self._stopping:
                    delay = min(self._pass(), LONGEST_SLEEP, self._notifier.longest_silence)
                    self._notifier.live()
                    if delay > 0 and not self._stopping:
                        self.bell.wait(delay)
            finally:
                self._close()

    def _close(self) -> None:
        self._notifier.say(STOPPING="1", STATUS="stopping")
        if self._lost_at is not None:
            self._options["connect_timeout"] = LAST_CONNECT
        for runner in self._runners:
            # A database that is away now will find our leases and heartbeats run out.
            with contextlib.suppress(*Lost):
                runner.close()

    def _pass(self) -> float:
        if settings.DEBUG:
            reset_queries()
        try:
            delay = min(runner.step() for runner in self._runners)
        except Lost as error:
            return self._away(error) if refusal_of(error) is Refusal.OUTAGE else self._refused(error)
        self._returned()
        self._is_refused, self._retry = False, FIRST_RETRY
        if all(runner.ready for runner in self._runners):
            self._notifier.say(READY="1", STATUS="running")
        return delay

    def _away(self, error: Exception) -> float:
        connections[self._using].close()
        if self._lost_at is None:
            self._lost_at = time.monotonic()
            self._on_lost(error)
        self._notifier.say(STATUS=f"waiting for the database: {error}")
        return self._back_off()

    def _refused(self, error: Exception) -> float:
        """The database is there, but a statement of this pass was cancelled, or waited too long for a lock: try again later."""
        connections[self._using].close_if_unusable_or_obsolete()
        self._returned()
        if not self._is_refused:  # told once, until a pass succeeds
            self._is_refused = True
            self._on_refused(error)
        return self._back_off()

    def _back_off(self) -> float:
        # Within the time that others leave us to renew our leases.
        longest = min(LONGEST_RETRY, conf.current().LEASE / 6)
        delay, self._retry = min(self._retry, longest), min(self._retry * 2, LONGEST_RETRY)
        return delay * random.uniform(0.5, 1)  # noqa: S311  # spreads a fleet's reconnects, guards nothing

    def _returned(self) -> None:
        if self._lost_at is not None:
            self._on_back(time.monotonic() - self._lost_at)
            self._lost_at = None


@contextlib.contextmanager
def listening(bell: Bell, *channels: str, on_failed: Callable[[Exception], None]) -> Iterator[None]:
    """Ring the bell at each NOTIFY on the channels, where the settings have a connection for it (`LISTEN`)."""
    address = conf.current().LISTEN
    listener = Listener(address, channels, bell, on_failed) if address else None
    if listener:
        listener.start()
    try:
        yield
    finally:
        if listener:
            listener.stop()


class Listener:
    """Rings a bell for each NOTIFY on `channels`: an accelerator, never needed, so its failures are its own.

    `address` is a database alias or the URL of a direct connection (a pooler in transaction mode cannot LISTEN).
    """

    def __init__(
        self, address: str, channels: Iterable[str], bell: Bell, on_failed: Callable[[Exception], None]
    ) -> None:
        self._address = address
        self._on_failed = on_failed
        self._failing = False
        self._channels = tuple(channels)
        self._bell = bell
        self._listens_since: float | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pgwerk-listen", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        retry = 0.0
        while not self._stopped.is_set():
            self._listens_since = None
            try:
                self._listen()
            except psycopg.Error as error:
                if self._listens_since is not None and time.monotonic() - self._listens_since > STEADY:
                    retry = 0.0
                    continue
                if not self._failing:  # once, until it listens again
                    self._on_failed(error)
                self._failing = True
            retry = min(max(retry * 2, FIRST_RETRY), LONGEST_RETRY)
            self._stopped.wait(retry * random.uniform(0.5, 1))  # noqa: S311  # spreads a fleet's reconnects, guards nothing

    def _listen(self) -> None:
        with contextlib.closing(self._connect()) as connection:
            with within(PROBE_TAKES, connection):
                connection.execute(_NEVER_TOO_IDLE, [connection.info.backend_pid])
                for channel in self._channels:
                    connection.execute(psycopg.sql.SQL("LISTEN {}").format(psycopg.sql.Identifier(channel)))
            self._failing, self._listens_since = False, time.monotonic()
            self._bell.ring()  # what came while nobody listened
            time_to_probe = Every(PROBE_EVERY)
            time_to_probe()
            while not self._stopped.is_set():
                for _notify in connection.notifies(timeout=1, stop_after=1):
                    self._bell.ring()
                if time_to_probe():
                    with within(PROBE_TAKES, connection):
                        connection.execute("SELECT 1")
                    self._bell.ring()  # what came with the answer

    def _connect(self) -> psycopg.Connection[Any]:
        if "://" in self._address:
            parameters: dict[str, Any] = conninfo_to_dict(self._address)
        else:
            parameters = connection_parameters(self._address)
        return psycopg.connect(**{**limited(parameters), "autocommit": True})


# Not behind a pooler: the session is somebody else's next.
_NEVER_TOO_IDLE = """
SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout' AND pg_backend_pid() = %s
"""


def connection_parameters(alias: str) -> dict[str, Any]:
    """What psycopg connects with to the database of this alias."""
    parameters: dict[str, Any] = connections[alias].get_connection_params()
    # What Django adds for its own cursors means nothing elsewhere.
    return {name: value for name, value in parameters.items() if name not in ("cursor_factory", "context")}
