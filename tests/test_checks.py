"""`manage.py check`: what would fail at 03:00, said at deploy time."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.core import checks
from django.db import connections

from pgwerk_django import schedule
from pgwerk_django.checks import COMMANDS
from pgwerk_django.registry import define, registry
from tests import functions


def found(tag: str = "pgwerk") -> dict[str, str]:
    return {str(message.id): message.msg for message in checks.run_checks(tags=[tag], databases=["default"])}


def test_a_healthy_project_has_nothing_to_hear() -> None:
    schedule(functions.noop, interval=5)
    assert found() == {}


def test_mails_to_nobody(settings: Any) -> None:
    settings.PGWERK = {"MAIL_ADMINS": True}
    assert found() == {}
    settings.ADMINS = []
    assert "nobody is told" in found()["pgwerk_django.W003"]


def test_naive_time(settings: Any) -> None:
    settings.USE_TZ = False
    assert "USE_TZ" in found()["pgwerk_django.E002"]


def test_an_alias_that_does_not_exist(settings: Any) -> None:
    settings.PGWERK = {"DATABASE": "nowhere"}
    assert "'nowhere'" in found()["pgwerk_django.E003"]


def test_another_database_than_postgresql(settings: Any) -> None:
    connections.databases["lite"] = {**connections.databases["default"], "ENGINE": "django.db.backends.sqlite3"}
    settings.PGWERK = {"DATABASE": "lite"}
    try:
        assert "needs PostgreSQL" in found()["pgwerk_django.E004"]
    finally:
        del connections.databases["lite"]
        del connections["lite"]


def test_another_isolation_level(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from psycopg import IsolationLevel

    monkeypatch.setitem(
        connections["default"].settings_dict, "OPTIONS", {"isolation_level": IsolationLevel.SERIALIZABLE}
    )
    assert "READ COMMITTED" in found()["pgwerk_django.E005"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nomodule.func", "cannot be imported"),
        ("tests.functions.gone", "cannot be imported"),
        ("tests.functions.not_a_function", "is not a function"),
    ],
)
def test_a_function_that_cannot_be_imported_back(path: str, said: str) -> None:
    registry.add(define(path, {"interval": 5, "_name": "lost"}))
    message = found()["pgwerk_django.E006"]
    assert said in message
    assert "'lost'" in message
    assert path in message


def test_a_generator_is_no_job() -> None:
    schedule(functions.produce, interval=5)
    assert "generator" in found()["pgwerk_django.E006"]


def test_listen_must_lead_somewhere(settings: Any) -> None:
    settings.PGWERK = {"LISTEN": "nowhere"}
    assert "got 'nowhere'" in found()["pgwerk_django.E008"]
    settings.PGWERK = {"LISTEN": "default"}
    assert found() == {}
    settings.PGWERK = {"LISTEN": "postgres://somewhere/else"}
    assert found() == {}


def test_a_target_that_does_not_exist() -> None:
    schedule(functions.noop, interval=5, _target="pigeon")
    assert "got 'pigeon'" in found()["pgwerk_django.E006"]


@pytest.mark.django_db
def test_the_server_itself() -> None:
    assert found(checks.Tags.database) == {}


# -- start-up --------------------------------------------------------------------------------------------------------

START = """
import django, sys
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["pgwerk_django", "anapp"], SECRET_KEY="x", USE_TZ=True, PGWERK={pgwerk},
    DATABASES={{"default": {{"ENGINE": "django.db.backends.postgresql", "NAME": "nowhere", "HOST": "127.0.0.1", "PORT": 1}}}},
)
django.setup()
from pgwerk_django.registry import registry
from django.core.management import call_command
print("declared", [definition.name for definition in registry])
call_command("check")
"""


def start(folder: Path, tasks: str, pgwerk: str = "{}") -> subprocess.CompletedProcess[str]:
    (folder / "anapp").mkdir()
    (folder / "anapp" / "__init__.py").touch()
    (folder / "anapp" / "tasks.py").write_text(tasks)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", START.format(pgwerk=pgwerk)],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip


DECLARES = "from pgwerk_django import schedule\n@schedule(interval=5)\ndef work(): ...\n"


@pytest.mark.process
def test_tasks_of_installed_apps_are_found_without_admin_auth_or_a_database(tmp_path: Path) -> None:
    done = start(tmp_path, DECLARES)
    assert done.returncode == 0, done.stderr
    assert "declared ['anapp.tasks.work']" in done.stdout


@pytest.mark.process
def test_autodiscovery_can_be_turned_off(tmp_path: Path) -> None:
    done = start(tmp_path, DECLARES, "{'AUTODISCOVER': ()}")
    assert "declared []" in done.stdout


@pytest.mark.process
def test_a_module_that_fails_to_import_fails_loudly(tmp_path: Path) -> None:
    done = start(tmp_path, "import nosuchmodule\n")
    assert done.returncode != 0
    assert "No module named 'nosuchmodule'" in done.stderr


@pytest.mark.process
def test_settings_that_cannot_be_read_are_the_checks_to_report(tmp_path: Path) -> None:
    done = start(tmp_path, DECLARES, "{'BATCH_SIZE': 'many'}")
    assert done.returncode != 0
    assert "pgwerk_django.E001" in done.stderr
    assert "PGWERK['BATCH_SIZE']" in done.stderr


def test_another_apps_command_of_the_same_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "pgwerk_django.W001" not in found()
    monkeypatch.setattr(
        "pgwerk_django.checks.get_commands",
        lambda: dict.fromkeys(COMMANDS, "pgwerk_django") | {"runworker": "channels"},
    )
    assert found()["pgwerk_django.W001"] == "'manage.py runworker' is that of channels, not ours"
