"""Statements that hang, and networks that go dead: time limits are kept, signals are obeyed, and work goes on.

A `Line` is dead without a word from one moment to the next. What hangs on it is like a server process that is frozen, or
that waits for a lock that nobody releases: no answer comes.
"""

import contextlib
import datetime as dt
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import OperationalError, connection, connections, transaction

from pgwerk_django import gauges, network, watchdog
from pgwerk_django.loop import Bell, Listener, Loop, longest_statement
from pgwerk_django.management.service import SAME_REQUEST
from pgwerk_django.models import Job, Process
from pgwerk_django.sqlstates import Refusal, refusal_of
from tests import django_tasks, functions
from tests.dead_lines import Line
from tests.processes import Started, database_url
from tests.time_travel import SECOND, make, now
from tests.waiting import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

LONG = 3600.0


@pytest.fixture
def line() -> Iterator[Line]:
    one = Line(database_url())
    yield one
    ports = one.close()
    wait_until(lambda: not any(port in ports for port in client_ports()))


def client_ports() -> list[int]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT client_port FROM pg_stat_activity WHERE datname = current_database()")
        return [port for (port,) in cursor.fetchall()]


def every_second() -> None:
    make(ago=SECOND, interval=1, _name="tick", _misfire="ALL", _overlap="ALLOW")


def noted(word: str) -> Any:
    wait_until(lambda: any(note[0] == word for note in functions.read()))
    return next(note[1] for note in functions.read() if note[0] == word)


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def another_signal(process: Started, number: int = signal.SIGTERM) -> None:
    before = time.monotonic()
    wait_until(lambda: time.monotonic() > before + 2 * SAME_REQUEST)  # later than that it is another request
    process.process.send_signal(number)


def seconds_to_end(process: Started) -> float:
    before = time.monotonic()
    process.process.wait(60)
    return time.monotonic() - before


# -- a job's time limit, and signals, need no database -----------------------------------------------------------------


def test_timeouts_are_kept_while_a_statement_of_the_worker_hangs(manage: Any, line: Line) -> None:
    beats = Job.objects.create(function="tests.functions.beat", timeout=1)
    stuck = Job.objects.create(function="tests.functions.sleep", timeout=1)  # only the end of its process stops it
    worker = manage("runworker", "--concurrency=2", DATABASE_URL=line.url)
    pid = noted("asleep")
    noted("beat")
    line.swallow()
    wait_until(lambda: time.monotonic() - functions.read()[-1][1] > 1, 10)
    wait_until(lambda: not is_alive(pid), 10)
    assert not worker.says("statement_hung")  # no new connection has helped
    worker.process.terminate()
    another_signal(worker)
    assert seconds_to_end(worker) < 10
    assert worker.process.returncode == 0, worker.text()
    for job in (beats, stuck):
        job.refresh_from_db()
        assert (job.status, job.error.splitlines()[0]) == ("FAILED", "timed out after 1 s")


@pytest.mark.parametrize("command", [["runworker"], ["runscheduler", "--with-worker"]], ids=" ".join)
def test_a_second_signal_ends_it_within_seconds_while_a_statement_hangs(
    manage: Any, line: Line, command: list[str]
) -> None:
    job = Job.objects.create(function="tests.functions.sleep")
    worker = manage(*command, "--concurrency=1", DATABASE_URL=line.url)
    pid = noted("asleep")
    line.swallow()
    worker.process.terminate()
    another_signal(worker, signal.SIGINT)
    assert seconds_to_end(worker) < 10
    assert worker.process.returncode == 3, worker.text()
    assert not is_alive(pid)
    job.refresh_from_db()
    assert (job.status, job.attempt) == ("READY", 0)  # over a new connection


def test_the_shutdown_timeout_counts_from_the_signal_while_a_statement_hangs(manage: Any, line: Line) -> None:
    Job.objects.create(function="tests.functions.sleep")
    worker = manage("runworker", "--concurrency=1", "--shutdown-timeout=1", DATABASE_URL=line.url)
    pid = noted("asleep")
    line.swallow()
    line.answer_nobody()
    worker.process.terminate()
    assert seconds_to_end(worker) < 15
    assert worker.process.returncode == 1, worker.text()
    assert not is_alive(pid)


def test_a_third_signal_kills_everything(manage: Any, line: Line) -> None:
    Job.objects.create(function="tests.functions.sleep")
    worker = manage("runworker", "--concurrency=1", "--shutdown-timeout=60", DATABASE_URL=line.url)
    pid = noted("asleep")
    line.swallow()
    line.answer_nobody()
    worker.process.terminate()
    another_signal(worker)
    another_signal(worker)
    assert seconds_to_end(worker) < 2
    assert worker.process.returncode == 128 + signal.SIGTERM
    wait_until(lambda: not is_alive(pid))


def test_a_signal_ends_it_while_it_connects(manage: Any, line: Line) -> None:
    line.answer_nobody()
    scheduler = manage("runscheduler", "--skip-checks", DATABASE_URL=f"{line.url}?connect_timeout=2")
    wait_until(lambda: scheduler.says("database_lost"))
    assert scheduler.stop() == 0
    assert not Process.objects.exists()


# -- work goes on ------------------------------------------------------------------------------------------------------


def test_a_statement_that_hangs_is_ended_and_nothing_is_left_of_it(manage: Any, line: Line) -> None:
    every_second()
    both = manage(
        "runscheduler",
        "--with-worker",
        "--concurrency=1",
        "--on-unregistered=keep",
        DATABASE_URL=line.url,
        PGWERK_LEASE="2",
    )
    wait_until(lambda: Job.objects.filter(status="SUCCESSFUL").count() >= 2)
    before = resources(both)
    for number in range(1, 3):
        line.swallow()
        dead_since = now()
        wait_until(lambda since=dead_since: Job.objects.filter(status="SUCCESSFUL", due_at__gt=since).exists())
        assert both.text().count("statement_hung") >= number
    wait_until(lambda: resources(both) == before)
    assert both.stop() == 0
    assert len(set(Job.objects.values_list("due_at", flat=True))) == Job.objects.count()
    assert Job.objects.filter(attempt__gt=1).count() == 0


def resources(process: Started) -> tuple[int, int]:
    """Its threads, and its open files."""
    proc = Path(f"/proc/{process.process.pid}")
    return len(list((proc / "task").iterdir())), len(list((proc / "fd").iterdir()))


def test_a_hand_over_goes_on_when_its_line_went_dead(manage: Any, line: Line) -> None:
    make(
        django_tasks.database,
        ago=SECOND,
        interval=1,
        _name="handed over",
        _target="django_tasks",
        _misfire="ALL",
        _overlap="ALLOW",
    )
    scheduler = manage("runscheduler", "--on-unregistered=keep", DATABASE_URL=line.url, PGWERK_LEASE="2")
    forwarded = Job.objects.filter(status="FORWARDED")
    wait_until(lambda: forwarded.exists())
    line.swallow()
    dead_since = now()
    wait_until(lambda: forwarded.filter(due_at__gt=dead_since).exists())
    assert scheduler.stop() == 0


def test_packets_that_are_dropped_are_noticed_by_the_options_of_the_connection(manage: Any, line: Line) -> None:
    """Here the site's own; `test_what_the_site_says_is_kept` has those that it gets otherwise."""
    every_second()
    scheduler = manage("runscheduler", "--on-unregistered=keep", DATABASE_URL=f"{line.url}?tcp_user_timeout=1000")
    wait_until(lambda: Job.objects.exists())
    line.drop()
    dead_since = now()
    wait_until(lambda: Job.objects.filter(due_at__gt=dead_since).exists(), 15)
    assert not scheduler.says("statement_hung")
    wait_until(lambda: scheduler.says("database_back"))
    assert scheduler.stop() == 0


# -- the watchdog ------------------------------------------------------------------------------------------------------


@pytest.fixture
def told() -> list[tuple[float, str]]:
    return []


@pytest.fixture
def watch(told: list[tuple[float, str]]) -> Iterator[watchdog.Watch]:
    """A limit of half a second on this thread's connection."""
    with watchdog.watching("default", limit=0.5, on_hung=lambda *event: told.append(event)) as one:
        yield one


def run(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def test_a_statement_is_cancelled_after_its_limit(watch: watchdog.Watch, told: list[tuple[float, str]]) -> None:
    run("SELECT 1")
    started = time.monotonic()
    with pytest.raises(OperationalError, match="canceling statement") as raised:
        run("SELECT pg_sleep(60)")
    assert 0.5 <= time.monotonic() - started < 5
    assert refusal_of(raised.value) is Refusal.TOO_LONG  # so that a tick tries with fewer
    run("SELECT 1")  # the connection has survived
    wait_until(lambda: told)
    ((seconds, statement),) = told
    assert seconds >= 0.5
    assert statement == "SELECT pg_sleep(60)"


def test_a_commit_is_cancelled_too(watch: watchdog.Watch) -> None:
    run("CREATE TABLE slow_commit (id integer)")
    try:
        run(
            "CREATE FUNCTION slow_commit() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(60); RETURN NULL; END'"
        )
        run(
            "CREATE CONSTRAINT TRIGGER slow_commit AFTER INSERT ON slow_commit DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION slow_commit()"
        )
        with pytest.raises(OperationalError, match="canceling statement"), transaction.atomic():
            run("INSERT INTO slow_commit VALUES (1)")
    finally:
        run("DROP TABLE slow_commit")
        run("DROP FUNCTION slow_commit")


def test_many_short_statements_are_no_long_one(watch: watchdog.Watch, told: list[tuple[float, str]]) -> None:
    started = time.monotonic()
    with transaction.atomic():
        while time.monotonic() - started < 1:
            run("SELECT pg_sleep(0.1)")
    assert told == []


def test_a_block_may_be_allowed_more(watch: watchdog.Watch) -> None:
    with watchdog.allowing(30):
        run("SELECT pg_sleep(1)")
    with pytest.raises(OperationalError):
        run("SELECT pg_sleep(60)")


def test_once_its_time_is_over_a_statement_is_not_waited_for(watch: watchdog.Watch) -> None:
    with watchdog.allowing(LONG):
        threading.Timer(0.3, lambda: watch.end_by(time.monotonic())).start()
        with pytest.raises(OperationalError):
            run("SELECT pg_sleep(60)")
    connection.close()


def test_where_no_cancel_arrives_the_socket_is_shut_down(
    line: Line, told: list[tuple[float, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "CANCEL_TAKES", 0.2)
    with through(line), watchdog.watching("default", limit=0.5, on_hung=lambda *event: told.append(event)):
        run("SELECT 1")
        line.answer_nobody()
        line.swallow()
        with pytest.raises(OperationalError):
            run("SELECT 1")
        assert connection.connection.closed
    wait_until(lambda: told)


@contextlib.contextmanager
def through(line: Line) -> Iterator[None]:
    """Have this thread connect over the line."""
    before = connection.settings_dict
    connection.close()
    connection.settings_dict = {**before, "HOST": "127.0.0.1", "PORT": line.port}
    try:
        yield
    finally:
        connection.close()
        connection.settings_dict = before


def test_no_thread_is_left_when_nothing_is_watched() -> None:
    with watchdog.watching("default", limit=LONG):
        assert "pgwerk-watchdog" in {thread.name for thread in threading.enumerate()}
    wait_until(lambda: "pgwerk-watchdog" not in {thread.name for thread in threading.enumerate()})


def test_the_limit_is_a_third_of_the_lease_or_what_systemd_waits_for(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    settings.PGWERK = {"LEASE": 60}
    assert longest_statement() == 20
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert longest_statement() == 7.5
    settings.PGWERK = {"LEASE": dt.timedelta(seconds=2)}
    assert longest_statement() == 1  # a commit on a busy disk takes a while


def test_metrics_come_back_after_a_server_that_did_not_answer(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "WITHIN", 0.2)
    monkeypatch.setattr(gauges, "LONGEST", 0.5)
    monkeypatch.setattr(gauges, "connection_parameters", lambda using: psycopg.conninfo.conninfo_to_dict(line.url))
    connect = psycopg.connect

    def connect_and_swallow(*args: Any, **options: Any) -> Any:
        session = connect(*args, **options)
        line.swallow()
        return session

    state = gauges.State()
    with monkeypatch.context() as patch:
        patch.setattr(gauges.psycopg, "connect", connect_and_swallow)
        assert up(state) == 0
    wait_until(lambda: up(state) == 1, 10)


def up(state: gauges.State) -> float:
    return next(reading.value for reading in state.readings() if reading.measure is gauges.UP)


# -- the options of our connections ------------------------------------------------------------------------------------

TO_SERVER = {"host": "db.example", "dbname": "site"}
ALL = dict(network.LIMITS)


@pytest.fixture
def service_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGSERVICE", "PGCONNECT_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "pg_service.conf"
    path.write_text(
        "[slow]\nhost=db.example\nhostaddr=192.0.2.1\nport=6543\ntcp_user_timeout=60000\nconnect_timeout=30\n"
        "[silent]\nhost=db.example\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", str(path))


@pytest.mark.usefixtures("service_file")
@pytest.mark.parametrize(
    ("parameters", "environment", "differs"),
    [
        ({}, {}, {}),
        ({"keepalives": 0}, {}, {"keepalives": 0}),
        ({"tcp_user_timeout": 0, "connect_timeout": 3}, {}, {"tcp_user_timeout": 0, "connect_timeout": 3}),
        ({"connect_timeout": None}, {}, {"connect_timeout": None}),
        ({"conninfo": "keepalives_idle=60"}, {}, {"keepalives_idle": None}),
        ({"conninfo": "postgres://h/?keepalives_count=9"}, {}, {"keepalives_count": None}),
        ({"service": "slow"}, {}, {"tcp_user_timeout": "60000", "connect_timeout": "30"}),
        ({"service": "slow", "connect_timeout": 5}, {}, {"tcp_user_timeout": "60000", "connect_timeout": 5}),
        ({"service": "silent"}, {}, {}),
        ({"service": "missing"}, {}, {}),
        ({}, {"PGSERVICE": "slow"}, {"tcp_user_timeout": "60000", "connect_timeout": "30"}),
        ({"conninfo": "service=slow"}, {}, {"tcp_user_timeout": "60000", "connect_timeout": "30"}),
        ({}, {"PGCONNECT_TIMEOUT": "7"}, {"connect_timeout": "7"}),
        ({"host": "a.example,b.example", "port": "5432,5433"}, {}, {}),
        ({"host": "/var/run/postgresql"}, {}, {}),
        ({"hostaddr": "192.0.2.1"}, {}, {}),
    ],
)
def test_what_the_site_says_is_kept(
    monkeypatch: pytest.MonkeyPatch, parameters: dict[str, Any], environment: dict[str, str], differs: dict[str, Any]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    given = {**TO_SERVER, **parameters}
    expected = {**ALL, **differs}
    found = network.limited(given)
    assert {name: found.get(name) for name in ALL} == expected
    assert {name: value for name, value in found.items() if name not in ALL} == {
        name: value for name, value in given.items() if name not in ALL
    }


class Looks:
    """Notes the options of the loop's socket, and stops it."""

    ready = True
    shutdown_timeout = 5.0

    def __init__(self) -> None:
        self.seen: tuple[int, ...] = ()
        self.loop = Loop(self, using="default")

    def step(self) -> float:
        connections["default"].ensure_connection()
        self.seen = socket_options()
        self.loop.stop()
        return 0

    def close(self) -> None:
        connections["default"].close()


def socket_options() -> tuple[int, ...]:
    import socket

    with socket.socket(fileno=os.dup(connections["default"].connection.pgconn.socket)) as one:
        names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
        return tuple(one.getsockopt(socket.IPPROTO_TCP, name) for name in names)


def test_the_loops_connection_has_limits_and_the_sites_own_have_none() -> None:
    before = dict(connection.settings_dict)
    connection.ensure_connection()
    usual = socket_options()
    looks = Looks()
    looks.loop.run()
    assert looks.seen == (10, 5, 3, 15_000)
    assert connection.settings_dict == before
    connection.ensure_connection()
    assert socket_options() == usual


def test_a_loop_that_is_stopped_waits_for_no_statement_for_longer_than_its_runners_may_take() -> None:
    hangs = Hangs()
    threading.Timer(0.2, hangs.loop.stop).start()
    started = time.monotonic()
    hangs.loop.run()
    assert 1 <= time.monotonic() - started < 5


class Hangs(Looks):
    shutdown_timeout = 0.3

    def step(self) -> float:
        run("SELECT pg_sleep(60)")
        return 0


def test_a_connection_amid_a_transaction_is_left_alone() -> None:
    with transaction.atomic():
        run("CREATE TEMPORARY TABLE mine ON COMMIT DROP AS SELECT 1")
        with network.limits_for("default"):
            run("SELECT * FROM mine")


# -- LISTEN ------------------------------------------------------------------------------------------------------------

LISTENERS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'tests-listener'"


class Heard:
    """A listener on the channel `tests`, and what becomes of it."""

    def __init__(self, url: str) -> None:
        self.failures: list[Exception] = []
        self.bell = Bell()
        self.listener = Listener(url, ["tests"], self.bell, self.failures.append)
        self.listener.start()
        wait_until(lambda: self.bell.wait(0))

    def comes(self) -> bool:
        run("NOTIFY tests")
        return self.bell.wait(5)

    def pids(self) -> list[int]:
        with connection.cursor() as cursor:
            cursor.execute(LISTENERS)
            return [pid for (pid,) in cursor.fetchall()]


@pytest.fixture
def listen() -> Iterator[Any]:
    started: list[Heard] = []

    def _listen(url: str) -> Heard:
        separator = "&" if "?" in url else "?"
        started.append(Heard(f"{url}{separator}application_name=tests-listener"))
        return started[-1]

    yield _listen
    for one in started:
        one.listener.stop()
    wait_until(lambda: not any(one.pids() for one in started))


def test_an_idle_session_timeout_does_not_end_the_listener(listen: Any) -> None:
    heard = listen(f"{database_url()}?options=-c%20idle_session_timeout%3D200")
    first = heard.pids()
    run("SELECT pg_sleep(0.6)")
    assert heard.comes()
    assert heard.pids() == first
    assert heard.failures == []


def test_a_listener_that_is_terminated_comes_back_at_once_and_silently(
    listen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgwerk_django.loop.STEADY", 0.0)
    monkeypatch.setattr("pgwerk_django.loop.FIRST_RETRY", LONG)
    heard = listen(database_url())
    (first,) = heard.pids()
    run(f"SELECT pg_terminate_backend({first})")
    wait_until(lambda: heard.bell.wait(0), 5)  # it rings when it listens again
    assert heard.comes()
    assert heard.failures == []


def test_a_listener_whose_line_went_dead_comes_back(listen: Any, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgwerk_django.loop.STEADY", 0.0)
    monkeypatch.setattr("pgwerk_django.loop.PROBE_EVERY", 0.5)
    monkeypatch.setattr("pgwerk_django.loop.PROBE_TAKES", 0.5)
    heard = listen(line.url)
    line.swallow()
    while heard.bell.wait(0):
        pass
    wait_until(lambda: heard.bell.wait(0), 10)
    assert heard.comes()
    assert heard.failures == []


def test_what_cannot_listen_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgwerk_django.loop.LONGEST_RETRY", 0.05)
    tries: list[object] = []
    failures: list[Exception] = []
    listener = Listener("postgres://nobody@127.0.0.1:1/nowhere", ["tests"], Bell(), failures.append)
    connect = listener._connect
    monkeypatch.setattr(listener, "_connect", lambda: (tries.append(1), connect())[1])
    listener.start()
    wait_until(lambda: len(tries) > 3)
    listener.stop()
    assert len(failures) == 1
