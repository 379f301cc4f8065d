"""What every test may use: an empty registry, and a second session of the same database."""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis as redis_client
from django.db import connection, connections
from django.db.backends.postgresql.operations import DatabaseOperations

from pgwerk_django.registry import registry
from pgwerk_django.scheduler import Scheduler
from tests.processes import Started
from tests.waiting import wait_until

# A test that asks for one of these fixtures gets the marker, so that nobody needs to remember it.
MARKED_BY_FIXTURE = {
    "process": {"start", "manage", "beat", "newcomer", "worlds", "figures"},
    "browser": {"driver"},
    "engine": {"redis", "engine"},
}
TRY_MANY_VALUES = ("test_hostile_", "test_admin_lookups", "test_admin_numbers")  # files: `property`, too
_started_processes: list[str] = []


def _note_started_process(event: str, arguments: tuple[Any, ...]) -> None:
    # Those of other threads, such as the worlds of chaos, are not this test's.
    if event == "subprocess.Popen" and threading.current_thread() is threading.main_thread():
        _started_processes.append(str(arguments[1]))


sys.addaudithook(_note_started_process)


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker, fixtures in MARKED_BY_FIXTURE.items():
            if fixtures.intersection(getattr(item, "fixturenames", ())):
                item.add_marker(marker)
        if item.path.name.startswith(TRY_MANY_VALUES) or getattr(
            getattr(item, "obj", None), "is_hypothesis_test", False
        ):
            item.add_marker("property")


@pytest.fixture(autouse=True)
def _started_processes_are_marked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that starts a process and has no marker for it: `make quick` would run it."""
    _started_processes.clear()
    yield
    if _started_processes and not any(map(request.node.get_closest_marker, MARKED_BY_FIXTURE)):
        pytest.fail("it starts a process: ask for the fixture `start`, or mark it `process`")


def _flush(operations: DatabaseOperations, style: Any, tables: list[str], **options: Any) -> list[str]:
    """What Django empties the tables with after each test: TRUNCATE makes new files for every index, which takes most of a test.

    The lock is TRUNCATE's: who still writes ends first. What a test has made large, or had analysed, which other plans would
    show, is truncated all the same.
    """
    quoted = {table: operations.quote_name(table) for table in tables}
    with operations.connection.cursor() as cursor:
        cursor.execute(
            "SELECT relname FROM pg_class"
            " WHERE relname = ANY(%s) AND (pg_relation_size(oid) > 200000 OR relpages > 0 OR reltuples >= 0)",
            [tables],
        )
        used = {name for (name,) in cursor if name.startswith("_pgwerk")}  # nobody's constraints lead to those
    return [
        f"LOCK TABLE {', '.join(quoted.values())}",
        *[f"TRUNCATE {name}" if table in used else f"DELETE FROM {name}" for table, name in quoted.items()],
    ]


@pytest.fixture(autouse=True, scope="session")
def _quick_flush() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DatabaseOperations, "sql_flush", _flush)
        yield


@pytest.fixture(autouse=True)
def _empty_registry() -> Iterator[None]:
    registry.clear()
    yield
    registry.clear()


@pytest.fixture(autouse=True)
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that processes share with their test: see `tests.functions.write`."""
    monkeypatch.setenv("PGWERK_TEST_FOLDER", str(tmp_path))
    return tmp_path


@pytest.fixture
def new_tables(transactional_db: None) -> None:
    """Files as a new installation has them: those that `_flush` leaves are as large as a test before made them, and show in plans."""
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE _pgwerk_schedules, _pgwerk_jobs, _pgwerk_alerts, _pgwerk_queues")


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler()


@pytest.fixture
def other_session(transactional_db: None) -> Iterator[psycopg.Connection]:
    """A connection of somebody else, in autocommit."""
    settings = connection.settings_dict
    with psycopg.connect(
        host=settings["HOST"],
        port=settings["PORT"] or None,
        user=settings["USER"],
        password=settings["PASSWORD"],
        dbname=settings["NAME"],
        autocommit=True,
    ) as session:
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '10s'")  # who waits for this session fails, and hangs no test
        yield session
        with connection.cursor() as cursor:
            cursor.execute("RESET lock_timeout")


@pytest.fixture
def elsewhere(transactional_db: None, settings: Any) -> Iterator[str]:
    """The test database under a second alias, which is where the app is told to be."""
    connections.databases["elsewhere"] = {**connections.databases["default"], **connection.settings_dict}
    settings.PGWERK = {"AUTODISCOVER": (), "DATABASE": "elsewhere", "ALLOWED_FUNCTIONS": ["tests.functions.*"]}
    wrapper = connections["elsewhere"]
    # Else the test runner says that it knows no such database, also when a loop connects anew.
    wrapper.ensure_connection = lambda: wrapper.connection or wrapper.connect()  # type: ignore[method-assign]
    yield "elsewhere"
    connections["elsewhere"].close()
    del connections["elsewhere"]
    del connections.databases["elsewhere"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    started: list[Started] = []

    def _start(*arguments: str, **environment: str) -> Started:
        one = Started(*arguments, log=tmp_path / f"{len(started)}.log", **environment)
        started.append(one)
        return one

    yield _start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


@pytest.fixture
def manage(start: Any) -> Any:
    return lambda *arguments, **environment: start("-m", "django", *arguments, **environment)


@pytest.fixture
def schema_of_pgwerk(transactional_db: None) -> Iterator[None]:
    """Where pgwerk makes its own tables: they go when the test does."""
    yield
    with connection.cursor() as cursor:
        cursor.execute("DROP SCHEMA IF EXISTS pgwerk CASCADE")


class RedisServer:
    """A Redis of this test run's own, on the port that the settings name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.port = int(os.environ["PGWERK_TEST_REDIS_PORT"])

    def start(self) -> None:
        if self._process is not None:
            return
        arguments = ["--port", str(self.port), "--save", "", "--bind", "127.0.0.1", "--dir", str(self._folder)]
        self._process = subprocess.Popen(["redis-server", *arguments], stdout=subprocess.DEVNULL)
        wait_until(self._answers)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        with contextlib.suppress(redis_client.ConnectionError):
            return bool(self.client(0).ping())
        return False

    def client(self, database: int) -> Any:
        return redis_client.Redis(port=self.port, db=database)

    def clear(self) -> None:
        self.start()
        self.client(0).flushall()


@pytest.fixture(scope="session")
def _redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    if shutil.which("redis-server") is None:
        pytest.skip("needs Debian's redis-server")
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def redis(_redis_server: RedisServer) -> RedisServer:
    """It runs, and is empty."""
    _redis_server.clear()
    return _redis_server
