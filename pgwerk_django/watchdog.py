"""End statements that hang: on somebody's lock, on a server process that is frozen, on a network that swallows packets.

A statement that has run for longer than its limit is cancelled. If that does not end it (behind a pooler a cancel may reach
nobody, and over a dead network it goes nowhere), its socket is shut down: then it fails with an `OperationalError` in the
thread that waits for it, whatever the server does. One thread watches all connections that are watched in a process.
"""

import contextlib
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
from django.db import connections
from psycopg.pq import TransactionStatus

CANCEL_TAKES = 2.0  # seconds that a cancelled statement gets to end, before its socket is shut down
LAST = 1.0  # seconds of each statement, once the time of its process is over
LOOK_EVERY = 0.5  # seconds, at most
LONGEST_SHOWN = 200  # characters of a statement

OnHung = Callable[[float, str], object]


def _nobody_told(seconds: float, statement: str) -> None:
    pass


class Watch:
    """Watches what one thread asks of one connection: each statement for itself, where they pass through `__call__`."""

    def __init__(
        self,
        connection: Callable[[], psycopg.Connection[Any] | None],
        limit: float,
        on_hung: OnHung = _nobody_told,
    ) -> None:
        """`on_hung` is called with the seconds and the beginning of each statement that is ended, on a thread of its own."""
        self._connection = connection
        self._limit = limit
        self._on_hung = on_hung
        self._statement: Any = ""
        self._since = time.monotonic()  # the last statement began, or ended
        self._lock = threading.Lock()  # while it is held, that statement does not end
        self._ends_at = math.inf
        # What the watching thread knows: the statement that it saw active, and what it has done about it.
        self._seen: float | None = None
        self._cancelled_at: float | None = None
        self._is_cut = False

    def __call__(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any) -> Any:
        """Run a statement: this is a wrapper for Django's `connection.execute_wrapper`."""
        self._mark(sql)
        try:
            return execute(sql, params, many, context)
        finally:
            self._mark(sql)

    def _mark(self, sql: Any) -> None:
        with self._lock:
            self._since, self._statement = time.monotonic(), sql

    def end_by(self, instant: float) -> None:
        """From this instant (of `time.monotonic`) on, each statement gets `LAST` seconds. Safe from signal handlers."""
        self._ends_at = min(self._ends_at, instant)

    @contextlib.contextmanager
    def allowing(self, seconds: float) -> Iterator[None]:
        """Let each statement in this block take so long, if that is longer than the limit."""
        before, self._limit = self._limit, max(self._limit, seconds)
        try:
            yield
        finally:
            self._limit = before

    # -- on the watching thread

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._ends_at

    @property
    def limit(self) -> float:
        return min(self._limit, LAST) if self.is_over else self._limit

    @property
    def pause(self) -> float:
        """Seconds to the next look."""
        return min(LOOK_EVERY, self._limit / 4)

    def look(self) -> None:
        """End the statement if it has hung for too long: cancel it first, and shut its socket down later."""
        with self._lock:
            since, statement = self._since, self._statement
        if since != self._seen:
            self._seen = self._cancelled_at = None
            self._is_cut = False
        now = time.monotonic()
        # The status is asked for late only: until then the thread that is watched might just be closing the connection.
        if self._is_cut or now - since < self.limit or not self._is_active():
            return
        if self._seen is None:  # look twice: a connection that is being set up runs statements that are not marked
            self._seen = since
        elif self._cancelled_at is None:
            self._cancelled_at = now
            self._start_cancel(now - since, statement)
        elif self.is_over or now - self._cancelled_at >= min(CANCEL_TAKES, self._limit / 2):
            self._is_cut = self._cut(since)

    def _is_active(self) -> bool:
        connection = self._connection()
        return connection is not None and connection.pgconn.transaction_status == TransactionStatus.ACTIVE

    def _start_cancel(self, seconds: float, statement: Any) -> None:
        def cancel() -> None:
            connection = self._connection()
            if connection is not None:
                with contextlib.suppress(psycopg.Error, OSError):
                    connection.cancel_safe(timeout=CANCEL_TAKES)
            self._on_hung(seconds, str(statement)[:LONGEST_SHOWN])

        # Over a dead network it may wait for long (with libpq before 17), and so may who is told.
        threading.Thread(target=cancel, name="pgwerk-cancel", daemon=True).start()

    def _cut(self, since: float) -> bool:
        """Shut the socket down. Never close it from here: its number might be another file's by the time it is used."""
        with self._lock:
            connection = self._connection()
            if self._since != since or connection is None or connection.closed:
                return False
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.pgconn.socket)) as line:
                line.shutdown(socket.SHUT_RDWR)
        return True


class _Watchdog:
    """The thread that looks, for as long as there is something to be watched."""

    def __init__(self) -> None:
        self._watches: list[Watch] = []
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, watch: Watch) -> None:
        with self._lock:
            self._watches.append(watch)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="pgwerk-watchdog", daemon=True)
                self._thread.start()
        self._changed.set()

    def remove(self, watch: Watch) -> None:
        with self._lock:
            self._watches.remove(watch)
        self._changed.set()

    def _run(self) -> None:
        while True:
            self._changed.clear()
            with self._lock:
                watches = list(self._watches)
                if not watches:
                    self._thread = None
                    return
            for watch in watches:
                with contextlib.suppress(psycopg.Error):  # it was closed at this very moment
                    watch.look()
            self._changed.wait(min(watch.pause for watch in watches))


_watchdog = _Watchdog()
_of_thread = threading.local()


@contextlib.contextmanager
def watching(using: str, *, limit: float, on_hung: OnHung = _nobody_told) -> Iterator[Watch]:
    """Let no statement of this thread on the connection `using` run for longer than `limit` seconds, and those to end it."""
    connection = connections[using]
    watch = Watch(lambda: connection.connection, limit, on_hung)
    before, _of_thread.watch = getattr(_of_thread, "watch", None), watch
    _watchdog.add(watch)
    try:
        with connection.execute_wrapper(watch):
            yield watch
    finally:
        _watchdog.remove(watch)
        _of_thread.watch = before


@contextlib.contextmanager
def within(seconds: float, connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Have all that this block asks of a connection of psycopg's end within so many seconds, and those to end it."""
    watch = Watch(lambda: connection, seconds)
    _watchdog.add(watch)
    try:
        yield
    finally:
        _watchdog.remove(watch)


@contextlib.contextmanager
def allowing(seconds: float) -> Iterator[None]:
    """Let each statement of this thread in this block take so long, where it is watched at all."""
    watch: Watch | None = getattr(_of_thread, "watch", None)
    with watch.allowing(seconds) if watch else contextlib.nullcontext():
        yield
