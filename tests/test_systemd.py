"""sd_notify: ready, alive with each pass of the loop, stopping. On a real socket, from real processes."""

import itertools
import os
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import OperationalError

from pgwerk_django.loop import Loop
from pgwerk_django.systemd import Notifier
from tests.time_travel import make
from tests.waiting import wait_until, waiting_for_a_lock


class Manager:
    """The service manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.setblocking(False)
        self.heard: list[str] = []

    def hears(self) -> list[str]:
        """All it was told so far, word by word."""
        try:
            while True:
                self.heard += self._socket.recv(4096).decode().split("\n")
        except BlockingIOError:
            return self.heard

    def hears_nothing(self, seconds: float) -> bool:
        return not select.select([self._socket], [], [], seconds)[0]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    address = str(tmp_path / "notify")
    one = Manager(address)
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    yield one
    one.close()


class Steps:
    """Runs `script`, one entry a step, and stops the loop at its end."""

    ready = True
    shutdown_timeout = 5.0

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.loop = Loop(self, using="default")

    def step(self) -> float:
        now = self.script.pop(0)
        if not self.script:
            self.loop.stop()
        if isinstance(now, Exception):
            raise now
        return float(now() if callable(now) else now)

    def close(self) -> None:
        pass


def test_a_loop_says_when_it_is_ready_and_when_it_stops(manager: Manager) -> None:
    Steps(0, 0, 0).loop.run()
    assert manager.hears() == ["READY=1", "STATUS=running", "STOPPING=1", "STATUS=stopping"]


def test_it_is_not_ready_before_each_of_its_runners_is(manager: Manager) -> None:
    before: list[list[str]] = []
    steps = Steps(0, lambda: before.append(list(manager.hears())) or 0, lambda: setattr(steps, "ready", True) or 0)
    steps.ready = False
    steps.loop.run()
    assert before == [[]]
    assert manager.hears() == ["READY=1", "STATUS=running", "STOPPING=1", "STATUS=stopping"]


def test_an_outage_is_a_status_and_no_reason_to_be_restarted(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2")
    Steps(0, OperationalError("gone\nfor good"), 0).loop.run()
    heard = manager.hears()
    assert [word for word in heard if word.startswith("STATUS")] == [
        "STATUS=running",
        "STATUS=waiting for the database: gone for good",
        "STATUS=running",
        "STATUS=stopping",
    ]
    assert heard.count("WATCHDOG=1") == 3


def test_a_step_that_hangs_tells_the_watchdog_nothing(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2")
    hung, free = threading.Event(), threading.Event()

    def hang() -> int:
        hung.set()
        free.wait(60)
        return 0

    steps = Steps(0, hang, 0)
    thread = threading.Thread(target=steps.loop.run)
    thread.start()
    assert hung.wait(20)
    before = list(manager.hears())
    assert before.count("WATCHDOG=1") == 1
    assert manager.hears_nothing(0.5)  # which is many times what the watchdog waits for
    free.set()
    thread.join(20)
    assert manager.hears().count("WATCHDOG=1") == 3


def test_a_long_poll_does_not_keep_the_watchdog_waiting(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "8000000")
    steps, waits = Steps(3600, 0.5, 0), []
    monkeypatch.setattr(steps.loop.bell, "wait", waits.append)
    steps.loop.run()
    assert waits == [2, 0.5]  # it hears of a pass when 4 s have gone: after 6 s at most
    assert manager.hears().count("WATCHDOG=1") == 1


def test_a_watchdog_of_another_process_is_not_told(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getppid()))
    Steps(0, 0).loop.run()
    assert "WATCHDOG=1" not in manager.hears()


def test_an_abstract_address(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"pgwerk-tests-{os.getpid()}"
    one = Manager(f"\0{name}")
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    Notifier().say(READY="1")
    assert one.hears() == ["READY=1"]
    one.close()


def test_a_manager_that_is_gone_or_does_not_read_harms_nothing(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    notifier = Notifier()
    for number in range(1000):  # more than its socket holds
        notifier.say(STATUS=str(number))
    assert manager.hears()[0] == "STATUS=0"
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/at/all")
    Notifier().say(READY="1")


# -- real processes


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("command", [["runscheduler"], ["runworker"], ["runscheduler", "--with-worker"]])
def test_our_services_notify(manage: Any, manager: Manager, command: list[str]) -> None:
    one = manage(*command, WATCHDOG_USEC="1000000")
    wait_until(lambda: manager.hears().count("WATCHDOG=1") >= 3)
    assert manager.heard.index("READY=1") < 3
    assert one.stop() == 0
    assert manager.hears()[-2:] == ["STOPPING=1", "STATUS=stopping"]
    assert manager.heard.count("READY=1") == 1


@pytest.mark.django_db(transaction=True)
def test_a_scheduler_whose_step_hangs_is_found_out(
    manage: Any, manager: Manager, other_session: psycopg.Connection
) -> None:
    make(_name="x")
    scheduler = manage("runscheduler", "--on-unregistered=keep", WATCHDOG_USEC="400000")
    wait_until(lambda: manager.hears().count("WATCHDOG=1") >= 3)
    with other_session.transaction():
        other_session.execute("LOCK TABLE _pgwerk_schedules")
        wait_until(waiting_for_a_lock)
        before = len(manager.hears())
        assert manager.hears_nothing(1)
    wait_until(lambda: len(manager.hears()) > before)
    assert scheduler.stop() == 0


def test_each_word_is_said_once_until_it_changes(manager: Manager) -> None:
    notifier = Notifier()
    for text in itertools.repeat("running", 3):
        notifier.say(READY="1", STATUS=text)
    notifier.say(READY="1", STATUS="stopping")
    assert manager.hears() == ["READY=1", "STATUS=running", "STATUS=stopping"]
