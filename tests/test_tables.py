"""Tables of another version: what `check`, commands and `health` say, and whether their advice helps."""

import io
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from django.core import checks
from django.core.management import CommandError, call_command
from django.db import connection

from pgwerk_django import health, schema, targets
from pgwerk_django.exceptions import CalledTooEarly
from pgwerk_django.jobs import enqueue, pause_queue
from pgwerk_django.models import Schedule
from pgwerk_django.registry import registry
from pgwerk_django.scheduler import Scheduler
from tests import functions
from tests.time_travel import make

pytestmark = pytest.mark.django_db(transaction=True)


def warnings(number: str) -> list[str]:
    found = checks.run_checks(tags=["database"], databases=["default"])
    return [message.msg for message in found if message.id == f"pgwerk_django.{number}"]


@pytest.fixture
def sql(other_session: psycopg.Connection) -> Iterator[Any]:
    """Change the schema; what the second statement says is done at the end."""
    undo: list[str] = []

    def _run(statement: str, undoing: str) -> None:
        other_session.execute(statement)
        undo.append(undoing)

    yield _run
    for statement in reversed(undo):
        other_session.execute(statement)


def renamed(kind: str, name: str, on: str = "") -> tuple[str, str]:
    suffix = f" ON {on}" if on else ""
    return f"ALTER {kind} {name}{suffix} RENAME TO elsewhere", f"ALTER {kind} elsewhere{suffix} RENAME TO {name}"


COLUMN = (
    "ALTER TABLE _pgwerk_schedules RENAME COLUMN misfire_grace TO elsewhere",
    "ALTER TABLE _pgwerk_schedules RENAME COLUMN elsewhere TO misfire_grace",
)
WRONG = {
    "the table _pgwerk_alerts is missing": renamed("TABLE", "_pgwerk_alerts"),
    "the column _pgwerk_schedules.misfire_grace is missing": COLUMN,
    "the trigger pgwerk_replan is missing": renamed("TRIGGER", "pgwerk_replan", "_pgwerk_schedules"),
    "the index pgwerk_due is missing": renamed("INDEX", "pgwerk_due"),
    "the index pgwerk_job_key is missing": renamed("INDEX", "pgwerk_job_key"),
    "the column _pgwerk_jobs.newer is unknown, and has no default": (
        "ALTER TABLE _pgwerk_jobs ADD COLUMN newer integer NOT NULL",
        "ALTER TABLE _pgwerk_jobs DROP COLUMN newer",
    ),
}


def test_the_tables_of_this_version_are_right() -> None:
    assert schema.problem("default") == ""
    assert warnings("W004") == []
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT tgrelid::regclass::text, tgname FROM pg_trigger WHERE NOT tgisinternal AND tgname LIKE 'pgwerk%'"
        )
        found = cursor.fetchall()
    assert sorted(found) == sorted((table, name) for table, names in schema.TRIGGERS.items() for name in names)


@pytest.mark.parametrize("wrong", WRONG)
def test_tables_of_another_version_are_told_from_missing_ones(sql: Any, wrong: str) -> None:
    sql(*WRONG[wrong])
    said = schema.problem("default")
    assert said.startswith(wrong)
    assert "another version of pgwerk_django made these tables" in said
    assert "run 'manage.py migrate' first" not in said
    assert warnings("W004") == [said]


@pytest.mark.parametrize("wrong", [name for name in WRONG if "table" in name or "misfire_grace" in name])
def test_commands_and_health_say_the_same(sql: Any, wrong: str) -> None:
    sql(*WRONG[wrong])
    said = schema.problem("default")
    words = ("schedules", "list") if "column" in wrong else ("runscheduler", "--once")
    with pytest.raises(CommandError) as refused:
        call_command(*words, stdout=io.StringIO())
    assert str(refused.value) == said
    problems = health.judge(using="default").problems
    assert [problem.message for problem in problems if problem.check == "database"] == [said]


def test_more_columns_of_a_newer_version_do_no_harm(sql: Any) -> None:
    sql(
        "ALTER TABLE _pgwerk_jobs ADD COLUMN newer integer NOT NULL DEFAULT 0",
        "ALTER TABLE _pgwerk_jobs DROP COLUMN newer",
    )
    sql("ALTER TABLE _pgwerk_schedules ADD COLUMN newer text", "ALTER TABLE _pgwerk_schedules DROP COLUMN newer")
    assert schema.problem("default") == ""


def test_migrate_is_the_advice_only_if_it_has_something_to_do(sql: Any) -> None:
    sql(*COLUMN)
    name = "app = 'pgwerk_django'"
    sql(
        "INSERT INTO django_migrations (app, name, applied) VALUES ('pgwerk_django', '0099_newer', now())",
        f"DELETE FROM django_migrations WHERE {name} AND name = '0099_newer'",
    )
    assert "a newer version of pgwerk_django migrated these tables (0099_newer): install that version" in (
        schema.problem("default")
    )
    sql(
        f"UPDATE django_migrations SET app = 'elsewhere' WHERE {name}",
        "UPDATE django_migrations SET app = 'pgwerk_django' WHERE app = 'elsewhere'",
    )
    assert schema.problem("default") == (
        "the column _pgwerk_schedules.misfire_grace is missing: run 'manage.py migrate' first"
    )
    (said,) = warnings("W004")
    assert said.endswith("run 'manage.py migrate' first")


ON_A_NEW_DATABASE = """
import django, io, sys
django.setup()
from django.core import checks
from django.core.management import CommandError, call_command
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder

def tried(*words):
    try:
        call_command(*words, stdout=io.StringIO(), stderr=io.StringIO())
    except CommandError as error:
        return str(error)
    return "done"

def checked():
    return [each.id for each in checks.run_checks(tags=["database"], databases=["default"])]

print(tried("schedules", "list"))
print(checked())
print(tried("migrate", "pgwerk_django"))
print(tried("schedules", "list"), checked())
with connection.cursor() as cursor:
    cursor.execute("DROP TABLE _pgwerk_alerts")
print(tried("runscheduler", "--once"))
print(tried("migrate", "pgwerk_django"))
print(tried("runscheduler", "--once") == tried("schedules", "list"))
with connection.cursor() as cursor:
    cursor.execute("SELECT 'DROP TABLE ' || oid::regclass FROM pg_class WHERE relname LIKE '\\\\_pgwerk\\\\_%' AND relkind = 'r'")
    drops = [row[0] for row in cursor.fetchall()]
    cursor.execute("SELECT 'DROP FUNCTION ' || oid::regprocedure FROM pg_proc WHERE proname LIKE '\\\\_pgwerk\\\\_%'")
    for drop in [*drops, *(row[0] for row in cursor.fetchall())]:
        cursor.execute(drop)
print(tried("migrate", "--fake", "pgwerk_django", "zero"))
print(tried("migrate", "pgwerk_django"))
print(tried("runscheduler", "--once"), checked())
"""


@pytest.mark.process
def test_the_advice_helps(other_session: psycopg.Connection) -> None:
    from tests.processes import ROOT, database_url

    other_session.execute("DROP DATABASE IF EXISTS pgwerk_advice")
    other_session.execute("CREATE DATABASE pgwerk_advice")
    try:
        url = f"{database_url().rsplit('/', 1)[0]}/pgwerk_advice"
        import os

        done = subprocess.run(
            [sys.executable, "-c", ON_A_NEW_DATABASE],
            cwd=ROOT,
            env={**os.environ, "DATABASE_URL": url, "DJANGO_SETTINGS_MODULE": "tests.settings"},
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        other_session.execute("DROP DATABASE pgwerk_advice WITH (FORCE)")
    lines = done.stdout.splitlines()
    assert lines[:4] == ["the tables are missing: run 'manage.py migrate' first", "[]", "done", "done []"], done.stderr
    assert lines[4].startswith(
        "the table _pgwerk_alerts is missing: another version of pgwerk_django made these tables"
    )
    assert "'manage.py migrate --fake pgwerk_django zero', then 'manage.py migrate'" in lines[4]
    assert lines[5:] == ["done", "False", "done", "done", "done []"], done.stderr


# -- calls before there are tables -------------------------------------------------------------------------------------

CALLS: dict[str, Any] = {
    "Scheduler.cron": lambda: Scheduler().cron("* * * * *", functions.noop),
    "Scheduler.interval": lambda: Scheduler().interval(60, functions.noop),
    "Scheduler.schedule_in": lambda: Scheduler().schedule_in(60, functions.noop),
    "Scheduler.pause": lambda: Scheduler().pause("x"),
    "Scheduler.get": lambda: Scheduler().get("x"),
    "Scheduler.sync": lambda: Scheduler().sync(),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_before_migrate_says_where_it_belongs(sql: Any, name: str) -> None:
    sql(*renamed("TABLE", "_pgwerk_schedules"))
    with pytest.raises(CalledTooEarly, match=rf"{name}\(\) was called before 'manage.py migrate'.*use @schedule"):
        CALLS[name]()


def test_an_enqueue_before_migrate_says_where_it_belongs(sql: Any) -> None:
    sql(*renamed("TABLE", "_pgwerk_jobs"))
    with pytest.raises(CalledTooEarly, match=r"enqueue\(\) was called before .* a data migration"):
        enqueue(functions.noop)
    sql(*("ALTER TABLE _pgwerk_queues RENAME TO none", "ALTER TABLE none RENAME TO _pgwerk_queues"))
    with pytest.raises(CalledTooEarly, match=r"pause_queue\(\) was called before"):
        pause_queue("mail")


# -- functions that rows name -------------------------------------------------------------------------------------------

NO_FUNCTIONS = [
    "tests.functions.nope",
    "os.path",
    "tests.functions",
    "tests.functions.__name__",
    "tests.settings.DATABASES",
]
PERHAPS_ELSEWHERE = ["removed_app.tasks.f", "tests.nosuchmodule.f", "tests.broken_code.f"]


@pytest.mark.parametrize("path", NO_FUNCTIONS)
def test_a_path_to_no_function_is_refused_where_its_module_is(path: str, scheduler: Scheduler) -> None:
    for call in (
        lambda: scheduler.cron("* * * * *", path),
        lambda: scheduler.interval(60, path),
        lambda: scheduler.schedule(path, interval=60),
        lambda: scheduler.schedule_in(60, path),
        lambda: enqueue(path),
    ):
        with pytest.raises(ValueError, match=rf"^func must be a callable or the dotted path of one: '{path}'"):
            call()
    assert not Schedule.objects.exists()


@pytest.mark.parametrize("path", PERHAPS_ELSEWHERE)
def test_a_path_whose_module_is_not_here_may_be_anothers(path: str, scheduler: Scheduler) -> None:
    assert scheduler.cron("* * * * *", path).function == path
    job = enqueue(path, 1)
    assert job is not None
    assert job.function == path


def test_arguments_of_a_path_are_judged_where_its_function_is() -> None:
    with pytest.raises(TypeError, match=r"must fit tests\.functions\.add"):
        enqueue("tests.functions.add", 1, 2, 3)
    assert enqueue("tests.functions.add", 1)


def test_a_celery_task_may_have_any_name(scheduler: Scheduler) -> None:
    assert scheduler.cron("* * * * *", "tests.functions.nope", _target="celery").target == "celery"


def test_the_check_names_rows_whose_function_is_missing() -> None:
    for path in (*NO_FUNCTIONS, *PERHAPS_ELSEWHERE, "tests.functions.noop"):
        make(path, _name=path, interval=60)
    make("tests.functions.gone", _name="paused", interval=60)
    make("tests.functions.gone", _name="ended", interval=60)
    Schedule.objects.filter(name="paused").update(paused=True)
    Schedule.objects.filter(name="ended").update(next_run_at=None)
    said = warnings("W005")
    assert sorted(line.split("'")[1] for line in said) == sorted(NO_FUNCTIONS)
    assert targets.missing_here("tests.functions.nope") in said[-1] or any("has no 'nope'" in line for line in said)
    assert not registry.get("tests.functions.nope")
