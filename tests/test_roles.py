"""The PostgreSQL roles of the security page: each can do its part with the grants that the page lists, and nothing beside it."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgwerk_django.models import Job, Schedule, Status
from pgwerk_django.scheduler import Scheduler
from tests import functions
from tests.processes import ROOT, database_url
from tests.waiting import wait_until

PAGE = Path(ROOT / "docs" / "security.md").read_text()
(GRANTS,) = [block for block in re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL) if "CREATE ROLE" in block]
ROLES = re.findall(r"CREATE ROLE (\w+)", GRANTS)


@pytest.fixture
def roles(other_session: psycopg.Connection) -> Iterator[dict[str, str]]:
    """The roles that the page makes, under names of this run's own: role to URL."""
    suffix = f"_{os.getpid()}"
    mine = re.sub(rf"\b({'|'.join(ROLES)})\b", rf"\1{suffix}", GRANTS)
    other_session.execute(mine)
    urls = {}
    for role in ROLES:
        other_session.execute(f"ALTER ROLE {role}{suffix} LOGIN PASSWORD 'secret'")
        place = database_url().partition("@")[2]
        urls[role] = f"postgres://{role}{suffix}:secret@{place}"
    yield urls
    for role in ROLES:
        other_session.execute(f"DROP OWNED BY {role}{suffix}")
        other_session.execute(f"DROP ROLE {role}{suffix}")


def test_a_scheduler_and_a_worker_do_with_their_grants(roles: dict[str, str], manage: Any) -> None:
    Scheduler().interval(3600, functions.noop, _name="one")
    scheduler = manage("runscheduler", "--on-unregistered=keep", DATABASE_URL=roles["pgwerk_scheduler"])
    worker = manage("runworker", "--concurrency", "1", DATABASE_URL=roles["pgwerk_worker"])
    wait_until(lambda: scheduler.says("process_started"), 60)
    with psycopg.connect(roles["pgwerk_web"], autocommit=True) as web:
        web.execute("UPDATE _pgwerk_schedules SET triggered_at = now(), triggered_by = 'web' WHERE name = 'one'")
        web.execute("INSERT INTO _pgwerk_jobs (function) VALUES ('tests.functions.noop')")
    wait_until(lambda: Job.objects.filter(status=Status.SUCCESSFUL).count() == 2, 60)
    assert (scheduler.stop(), worker.stop()) == (0, 0)
    for one in (scheduler, worker):
        assert "permission denied" not in one.text()
        assert "database_lost" not in one.text()


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        ("pgwerk_worker", "UPDATE _pgwerk_schedules SET function = 'os.system'"),
        ("pgwerk_worker", "DELETE FROM _pgwerk_schedules"),
        ("pgwerk_worker", "INSERT INTO _pgwerk_schedules (name) VALUES ('x')"),
        ("pgwerk_web", "DELETE FROM _pgwerk_processes"),
        ("pgwerk_web", "UPDATE _pgwerk_processes SET host = 'x'"),
        ("pgwerk_scheduler", "DROP TABLE _pgwerk_jobs"),
        ("pgwerk_worker", "ALTER TABLE _pgwerk_jobs DISABLE TRIGGER ALL"),
        ("pgwerk_web", "TRUNCATE _pgwerk_jobs"),
    ],
)  # fmt: skip
def test_and_can_do_no_more(roles: dict[str, str], role: str, statement: str) -> None:
    with psycopg.connect(roles[role]) as session, pytest.raises(psycopg.errors.InsufficientPrivilege):
        session.execute(statement)


def test_who_may_delete_schedules_alone_cancels_their_jobs_all_the_same(roles: dict[str, str]) -> None:
    """The function that does it has the rights of its owner, and nobody else can have it called."""
    row = Scheduler().interval(3600, functions.noop, _name="gone")
    job = Job.objects.create(schedule=row, schedule_name="gone")
    with psycopg.connect(roles["pgwerk_web"], autocommit=True) as web:
        user = web.info.user
        with psycopg.connect(database_url(), autocommit=True) as owner:
            owner.execute(f"REVOKE UPDATE ON _pgwerk_jobs FROM {user}")
        web.execute("DELETE FROM _pgwerk_schedules WHERE name = 'gone'")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            web.execute("UPDATE _pgwerk_jobs SET reason = ''")
        web.execute("CREATE TEMPORARY TABLE _pgwerk_schedules (id bigint)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            web.execute(
                "CREATE TRIGGER mine AFTER DELETE ON pg_temp._pgwerk_schedules REFERENCING OLD TABLE AS deleted"
                " FOR EACH STATEMENT EXECUTE FUNCTION _pgwerk_cancel_jobs_of_deleted()"
            )
    job.refresh_from_db()
    assert (job.status, job.reason) == ("CANCELLED", "schedule deleted")


WHAT_THE_API_DOES = """
from pgwerk_django.jobs import enqueue, enqueue_many
from pgwerk_django.models import Job
from pgwerk_django.scheduler import Scheduler
scheduler = Scheduler()
scheduler.interval(9, "tests.functions.noop", _name="two")
scheduler.update("two", queue="q")
scheduler.delete("two")
enqueue("tests.functions.noop").cancel()
enqueue_many("tests.functions.noop", [[]])
Job.objects.all().retry()
Job.objects.all().delete()
"""


def test_the_web_process_can_do_all_that_the_api_does(roles: dict[str, str], manage: Any) -> None:
    environment = {"DATABASE_URL": roles["pgwerk_web"]}
    Scheduler().interval(60, functions.noop, _name="one")
    for arguments in (
        ("schedules", "pause", "one"), ("schedules", "resume", "one"), ("schedules", "trigger", "one"), ("schedules", "list"),
        ("queues", "pause", "mail"), ("queues", "resume", "mail"), ("queues", "list"),
        ("shell", "-c", WHAT_THE_API_DOES),
    ):  # fmt: skip
        done = manage(*arguments, **environment)
        assert done.process.wait(60) == 0, done.text()
    assert Schedule.objects.get().name == "one"
