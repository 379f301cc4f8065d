"""`PGWERK["DATABASE"]` names another database than the default one: a site with two real ones, from `migrate` to the admin.

(`test_database` has one database under two aliases, so that the queries of both can be seen from one test.)
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core import checks
from django.db import connections

from tests.processes import ROOT, database_url
from tests.waiting import wait_until


@pytest.mark.process
@pytest.mark.parametrize("environment", [{}, {"PGWERK_TEST_NO_ROUTER": "1"}], ids=["with the router", "without"])
def test_all_of_it(environment: dict[str, str]) -> None:
    arguments = ["--ds=tests.two_databases", "--tb=short", "-q", "--no-cov"]
    modules = ["tests/on_two_databases.py", "tests/on_two_databases_unmarked.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments, *modules],
        cwd=ROOT,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.two_databases", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-3000:]
    assert " passed" in done.stdout


@pytest.fixture
def empty_database(other_session: psycopg.Connection) -> Iterator[str]:
    """The URL of a database that nothing has been done to."""
    name = f"pgwerk_empty_{os.getpid()}"
    other_session.execute(f"CREATE DATABASE {name}")
    yield f"{database_url().rpartition('/')[0]}/{name}"
    other_session.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_a_site_that_is_set_up_as_the_guide_says(empty_database: str, manage: Any, tmp_path: Path) -> None:
    environment = {
        "DATABASE_URL": empty_database,
        "DJANGO_SETTINGS_MODULE": "tests.two_databases",
        "PGWERK_TEST_SQLITE": str(tmp_path / "default.sqlite3"),
    }

    def done(*arguments: str) -> str:
        one = manage(*arguments, **environment)
        assert one.process.wait(60) == 0, one.text()
        return str(one.text())

    done("check", "--database", "default", "--database", "jobs", "--fail-level", "WARNING")
    done("migrate", "--verbosity", "0")
    done("migrate", "pgwerk_django", "--database", "jobs", "--verbosity", "0")
    assert "No changes" in done("makemigrations", "--check", "--dry-run")
    with psycopg.connect(empty_database) as session:
        rows = session.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1").fetchall()
        assert [name for (name,) in rows] == [
            "_pgwerk_alerts", "_pgwerk_jobs", "_pgwerk_processes", "_pgwerk_queues", "_pgwerk_schedules", "django_migrations",
        ]  # fmt: skip
        made = (
            "INSERT INTO _pgwerk_schedules (name, function, interval, origin)"
            " VALUES ('sql', 'tests.functions.noop', 60, 'api')"
        )
        session.execute(made)
    scheduler = manage("runscheduler", **environment)
    worker = manage("runworker", "--concurrency", "1", **environment)
    wait_until(lambda: scheduler.says("process_started"), 60)
    done("schedules", "trigger", "sql")
    with psycopg.connect(empty_database, autocommit=True) as session:
        counted = "SELECT count(*) FROM _pgwerk_jobs WHERE status = 'SUCCESSFUL'"
        wait_until(lambda: (session.execute(counted).fetchone() or (0,))[0], 60)
    assert (scheduler.stop(), worker.stop()) == (0, 0)


# -- what the checks say of routers --------------------------------------------------------------------------------------


def found() -> dict[str, str]:
    return {str(message.id): message.msg for message in checks.run_checks(tags=["pgwerk"])}


@pytest.fixture
def aliases(settings: Any) -> Iterator[dict[str, Any]]:
    """Aliases that a test may add."""
    before = dict(connections.databases)
    yield connections.databases
    for alias in connections.databases.keys() - before.keys():
        del connections.databases[alias]
        if hasattr(connections._connections, alias):
            del connections[alias]


class Nowhere:
    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool:
        return False


class Astray:
    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "replica"


def test_a_router_that_refuses_our_database(settings: Any) -> None:
    settings.DATABASE_ROUTERS = ["tests.test_two_databases.Nowhere"]
    assert "let no tables of pgwerk_django be made" in found()["pgwerk_django.E012"]


def test_tables_on_the_default_database_that_nothing_uses(aliases: Any, settings: Any) -> None:
    aliases["jobs"] = aliases["default"]
    settings.PGWERK = {"DATABASE": "jobs"}
    assert "would be made on 'default', too" in found()["pgwerk_django.W002"]
    settings.DATABASE_ROUTERS = ["pgwerk_django.routers.Router"]
    assert found() == {}


def test_a_default_database_that_cannot_have_our_tables(aliases: Any, settings: Any, tmp_path: Path) -> None:
    lite = {**aliases["default"], "ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "db")}
    aliases["jobs"] = aliases["default"]
    settings.PGWERK = {"DATABASE": "jobs"}
    was, connections.databases["default"] = connections["default"], lite
    connections["default"] = connections.create_connection("default")
    try:
        assert "cannot be: sqlite" in found()["pgwerk_django.E012"]
    finally:
        connections["default"], connections.databases["default"] = was, aliases["jobs"]


def test_another_database_that_cannot(aliases: Any, settings: Any) -> None:
    """Only a test run would migrate it."""
    aliases["legacy"] = {**aliases["default"], "ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
    assert "would be made on 'legacy', too" in found()["pgwerk_django.W002"]


def test_a_replica_is_nothing_to_warn_of(aliases: Any, settings: Any) -> None:
    aliases["replica"] = aliases["default"]
    assert found() == {}
    settings.DATABASE_ROUTERS = ["tests.test_two_databases.Astray"]
    assert "lead models of pgwerk_django to 'replica'" in found()["pgwerk_django.W002"]
