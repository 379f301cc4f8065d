"""What `tests.test_two_databases` has pytest run with the settings of `tests.two_databases`."""

import datetime as dt
import json
import threading
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as site
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.core import checks
from django.core.management import call_command
from django.db import connections, transaction
from django.test import Client, TestCase

from pgwerk_django import conf, schedule, signals
from pgwerk_django.jobs import enqueue, enqueue_many, pause_queue, resume_queue
from pgwerk_django.models import Job, Process, Queue, Schedule, Status
from pgwerk_django.registry import registry
from pgwerk_django.scheduler import Scheduler
from pgwerk_django.targets.django_tasks import DjangoTasksTarget
from pgwerk_django.test import assert_enqueued, run_due, run_jobs
from pgwerk_django.worker import Worker
from tests import django_tasks, functions
from tests.waiting import wait_until

pytest_plugins = ["pgwerk_django.pytest_plugin"]
BOTH = ["default", "jobs"]
OURS = (Schedule, Job, Queue, Process)
pytestmark = pytest.mark.django_db(databases=BOTH)
committing = pytest.mark.django_db(databases=BOTH, transaction=True)
BASE = "/admin/pgwerk_django"
ROUTED = bool(site.DATABASE_ROUTERS)
routed = pytest.mark.skipif(not ROUTED, reason="needs a router")


@pytest.fixture(scope="session", autouse=True)
def _none_of_our_tables_on_the_default_database(django_db_setup: None, django_db_blocker: Any) -> None:
    """Without a router `migrate` makes them there, too: what goes astray is to be seen."""
    with django_db_blocker.unblock(), connections["default"].cursor() as cursor:
        for table in {model._meta.db_table for model in OURS} & set(connections["default"].introspection.table_names()):
            cursor.execute(f"DROP TABLE {table}")


def command(*arguments: str) -> str:
    out = StringIO()
    call_command(*arguments, stdout=out)
    return out.getvalue()


def test_our_tables_are_where_the_router_says_and_only_there() -> None:
    ours = {model._meta.db_table for model in OURS}
    assert ours & set(connections["default"].introspection.table_names()) == set()
    assert ours - set(connections["jobs"].introspection.table_names()) == set()


def test_the_checks_tell_of_a_router_that_is_missing() -> None:
    found = [each for each in checks.run_checks(databases=BOTH) if str(each.id).startswith("pgwerk_django")]
    assert [each.id for each in found] == ([] if ROUTED else ["pgwerk_django.W002"])


@routed
def test_models_are_found_without_naming_the_alias() -> None:
    Scheduler().interval(60, functions.noop)
    assert Schedule.objects.get()._state.db == "jobs"
    Schedule.objects.create(name="b", function="tests.functions.noop", interval=60).delete()


@pytest.mark.process
@committing
def test_from_declaration_to_result() -> None:
    schedule(functions.noop, interval=60, _name="one")
    scheduler = Scheduler()
    assert scheduler.sync() == (1, 0, [])
    scheduler.trigger("one")
    assert scheduler.tick() == 1
    enqueue(functions.add, 1, 2)
    assert len(enqueue_many(functions.add, [[1], [2]])) == 2
    Worker(burst=True, concurrency=1).run()
    assert set(Job.objects.using("jobs").values_list("status", flat=True)) == {Status.SUCCESSFUL}
    scheduler.pause("one")
    scheduler.resume("one")
    scheduler.update("one", queue="q")
    scheduler.run_once()
    registry.clear()
    assert scheduler.sync() == (0, 0, ["one"])
    assert scheduler.delete("one")


@committing
def test_enqueue_is_atomic_with_its_own_database_and_with_no_other() -> None:
    with transaction.atomic():  # the default database's
        enqueue(functions.noop, _key="stays")
        transaction.set_rollback(True)
    with transaction.atomic("jobs"):
        enqueue(functions.noop, _key="goes")
        transaction.set_rollback(True, using="jobs")
    with transaction.atomic():
        transaction.on_commit(lambda: enqueue(functions.noop, _key="never"))
        transaction.set_rollback(True)
    with transaction.atomic():
        transaction.on_commit(lambda: enqueue(functions.noop, _key="once committed"))
    assert set(Job.objects.using("jobs").values_list("key", flat=True)) == {"stays", "once committed"}


@committing
def test_events_wait_for_the_commit_on_ours() -> None:
    heard: list[Any] = []

    def hear(**event: Any) -> None:
        heard.append(event["names"])

    signals.schedules_paused.connect(hear)
    scheduler = Scheduler()
    scheduler.interval(60, functions.noop, _name="a")
    with transaction.atomic(), transaction.atomic("jobs"):
        scheduler.pause("a")
        assert heard == []
    assert heard == [["a"]]


@committing
def test_a_wake_up_comes_on_the_alias_that_listen_names(settings: Any) -> None:
    assert conf.current().LISTEN == "jobs"
    settings.PGWERK = {**settings.PGWERK, "POLL_INTERVAL": 3600}
    row = Scheduler().interval(3600, functions.noop)
    scheduler = Scheduler(on_unregistered="keep")
    ticked = threading.Event()

    def hear(**event: Any) -> None:
        ticked.set()

    signals.ticked.connect(hear)
    thread = threading.Thread(target=scheduler.run)
    thread.start()
    try:
        wait_until(lambda: Process.objects.using("jobs").exists())
        wait_until(_somebody_listens)
        Scheduler().trigger(row.name)
        assert ticked.wait(60)
    finally:
        scheduler.stop()
        thread.join(60)
    assert Job.objects.using("jobs").get().kind == "trigger"


def _somebody_listens() -> bool:
    with connections["jobs"].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN %' AND state = 'idle'")
        return bool(cursor.fetchone()[0])


# -- Django Tasks ----------------------------------------------------------------------------------------------------


def test_a_task_of_our_backend() -> None:
    result = django_tasks.ours.enqueue(1)
    assert run_jobs()[0].result == [[1], {}]
    again = django_tasks.ours.get_result(result.id)
    assert (again.status.name, again.return_value) == ("SUCCESSFUL", [[1], {}])


class TasksWithUs:
    """A router that puts the tables of django-tasks-db beside ours."""

    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        return "jobs" if model._meta.app_label == "django_tasks_database" else None

    db_for_read = db_for_write


def test_what_is_the_same_database_is_asked_of_the_router(settings: Any) -> None:
    job = Job(function="tests.django_tasks.database", args=[], kwargs={})
    assert DjangoTasksTarget().writes_to(job) == "default"
    settings.DATABASE_ROUTERS = ["tests.on_two_databases.TasksWithUs", *settings.DATABASE_ROUTERS]
    assert DjangoTasksTarget().writes_to(job) == "jobs"


@committing
@pytest.mark.parametrize("routers", [[], ["tests.on_two_databases.TasksWithUs"]], ids=["apart", "with us"])
def test_a_task_is_handed_over_to_either_database(settings: Any, routers: list[str]) -> None:
    settings.DATABASE_ROUTERS = [*routers, *settings.DATABASE_ROUTERS]
    Scheduler().schedule(django_tasks.database, interval=60, _name="t")
    Scheduler().trigger("t")
    Scheduler().run_once()
    job = Job.objects.using("jobs").get()
    assert (job.status, job.error) == (Status.FORWARDED, "")
    with connections["jobs" if routers else "default"].cursor() as cursor:
        cursor.execute("SELECT id FROM django_tasks_database_dbtaskresult")
        assert [str(row[0]).replace("-", "") for row in cursor.fetchall()] == [job.external_id.replace("-", "")]


# -- the helpers of tests ----------------------------------------------------------------------------------------------


class HelpersTest(TestCase):
    databases = {"jobs"}  # and Django refuses any other

    def test_a_plain_test_case(self) -> None:
        schedule(functions.add, interval=60, args=[1, 2], _name="sum")
        now = dt.datetime(2021, 6, 1, 9, 0, tzinfo=dt.UTC)
        run_due(now=now)
        (job,) = run_due(now=now + dt.timedelta(seconds=60))
        assert (job.result, job._state.db) == (3, "jobs")
        enqueue(functions.add, 3)
        assert_enqueued(functions.add, args=[3])
        assert [job.result for job in run_jobs()] == [3]

    def test_nothing_is_left_of_the_test_before(self) -> None:
        assert not Job.objects.using("jobs").exists()


# -- commands ----------------------------------------------------------------------------------------------------------


@pytest.mark.process
@committing
def test_commands() -> None:
    schedule(functions.noop, interval=3600, _name="one")
    assert "one" in command("syncschedules")
    command("schedules", "pause", "one")
    command("schedules", "resume", "one")
    command("schedules", "trigger", "one")
    assert "one" in command("schedules", "list")
    assert "one" in command("schedules", "next")
    command("runscheduler", "--once", "--with-worker", "--concurrency", "1")
    assert Job.objects.using("jobs").get().status == Status.SUCCESSFUL
    command("queues", "pause", "mail")
    assert "mail\tPAUSED" in command("queues", "list")
    command("queues", "resume", "mail")
    assert pause_queue("mail")
    assert resume_queue("mail")


def test_moving_in(settings: Any, tmp_path: Path) -> None:
    settings.CELERY_BEAT_SCHEDULE = {"beat's": {"task": "tests.celery_app.plain", "schedule": 60}}
    assert "inserted beat's" in command("schedules", "import")
    exported = command("schedules", "export")
    assert [each["name"] for each in json.loads(exported)["schedules"]] == ["beat's"]
    Schedule.objects.using("jobs").all().delete()
    source = tmp_path / "all.json"
    source.write_text(exported)
    assert "inserted beat's" in command("schedules", "import", str(source))
    assert Schedule.objects.using("jobs").get()._state.db == "jobs"


# -- the admin ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def anna() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("anna"))
    return client


@pytest.fixture
def row() -> Schedule:
    return Schedule.objects.using("jobs").create(
        name="hourly", function="tests.functions.add", interval=3600, origin="admin"
    )


@pytest.fixture
def job(row: Schedule) -> Job:
    return Job.objects.using("jobs").create(
        schedule_name="hourly", key="hourly@2026-01-01T09:00:00.000000Z", status=Status.FAILED, schedule=row,
        due_at="2026-01-01T09:00:00Z", kind="scheduled", error="no",
    )  # fmt: skip


def test_each_page_is_there(anna: Client, row: Schedule, job: Job) -> None:
    process = Process.objects.using("jobs").create(role="scheduler", host="a")
    queue = Queue.objects.using("jobs").create(name="mail")
    for page in (
        "/admin/", "/admin/pgwerk_django/", f"{BASE}/overview/", f"{BASE}/overview/?span=7d",
        f"{BASE}/schedule/", f"{BASE}/schedule/?q=our", f"{BASE}/schedule/?state=FAILING", f"{BASE}/schedule/?outcome=failed",
        f"{BASE}/schedule/?queue=default", f"{BASE}/schedule/add/", f"{BASE}/schedule/{row.pk}/change/",
        f"{BASE}/schedule/{row.pk}/history/", f"{BASE}/schedule/{row.pk}/delete/", f"{BASE}/schedule/{row.pk}/value/args/",
        f"{BASE}/schedule/preview/?row={row.pk}&cron=@daily", f"{BASE}/job/", f"{BASE}/job/?q=hourly", f"{BASE}/job/?q={job.pk}",
        f"{BASE}/job/?schedule=hourly", f"{BASE}/job/?queue=default", f"{BASE}/job/{job.pk}/change/",
        f"{BASE}/job/{job.pk}/delete/", f"{BASE}/job/{job.pk}/history/", f"{BASE}/job/{job.pk}/value/error/",
        f"{BASE}/queue/", f"{BASE}/queue/add/", f"{BASE}/queue/{queue.pk}/change/", f"{BASE}/queue/{queue.pk}/history/",
        f"{BASE}/process/", f"{BASE}/process/{process.pk}/change/",
    ):  # fmt: skip
        assert anna.get(page).status_code == 200, page
    assert "hourly" in anna.get(f"{BASE}/overview/").content.decode()


def fields(**given: Any) -> dict[str, Any]:
    return {
        "name": "made", "function": "tests.functions.add", "args": "[1]", "kwargs": "{}", "queue": "default", "interval": "60",
        "timezone": "UTC", "jitter": "0", "priority": "0", "overlap": "BUFFER_ONE", "misfire": "LATEST", "misfire_grace": "60",
        "max_attempts": "1", "meta": "{}", **given,
    }  # fmt: skip


def test_what_people_do_to_schedules(anna: Client) -> None:
    assert anna.post(f"{BASE}/schedule/add/", fields()).status_code == 302
    made = Schedule.objects.using("jobs").get()
    again = anna.post(f"{BASE}/schedule/add/", fields())
    assert "already exists" in again.content.decode()
    page = f"{BASE}/schedule/{made.pk}/change/"
    assert anna.post(page, fields(interval="120")).status_code == 302
    for action in ("pause", "resume", "trigger"):
        given = {"action": action, "_selected_action": made.pk, "post": "yes", "reason": "because"}
        assert anna.post(f"{BASE}/schedule/", given).status_code == 302
    made.refresh_from_db()
    assert (made.interval, made.paused, made.triggered_by) == (120, False, "anna")
    told = list(LogEntry.objects.using("default").order_by("pk").values_list("change_message", flat=True))
    assert told[2:] == ["Paused: because", "Resumed: because", "Triggered: because"]
    assert "because" in anna.get(page).content.decode()
    assert anna.post(f"{BASE}/schedule/{made.pk}/delete/", {"post": "yes"}).status_code == 302
    row = Scheduler().interval(60, functions.noop)
    given = {"action": "delete_selected", "_selected_action": row.pk, "post": "yes"}
    assert anna.post(f"{BASE}/schedule/", given).status_code == 302
    assert not Schedule.objects.using("jobs").exists()


def test_what_people_do_to_jobs_and_queues(anna: Client, job: Job) -> None:
    for action in ("retry", "cancel"):
        given = {"action": action, "_selected_action": job.pk, "post": "yes"}
        assert anna.post(f"{BASE}/job/", given).status_code == 302
    job.refresh_from_db()
    assert job.status == Status.CANCELLED
    assert anna.post(f"{BASE}/job/{job.pk}/delete/", {"post": "yes"}).status_code == 302
    assert not Job.objects.using("jobs").exists()
    assert anna.post(f"{BASE}/queue/add/", {"name": "mail"}).status_code == 302
    assert "already exists" in anna.post(f"{BASE}/queue/add/", {"name": "mail"}).content.decode()
    queue = Queue.objects.using("jobs").get()
    assert queue._state.db == "jobs"
    for action in ("pause", "resume"):
        given = {"action": action, "_selected_action": queue.pk, "post": "yes"}
        assert anna.post(f"{BASE}/queue/", given).status_code == 302
    assert LogEntry.objects.filter(object_repr="mail").count() == 3
