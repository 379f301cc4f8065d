"""What every test may use: an empty registry, and a second session of the same database."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import connection, connections

from pgwerk_django.registry import registry
from pgwerk_django.scheduler import Scheduler


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
    connections["elsewhere"].connect()  # before the test runner can say that it knows no such database
    yield "elsewhere"
    connections["elsewhere"].close()
    del connections["elsewhere"]
    del connections.databases["elsewhere"]
