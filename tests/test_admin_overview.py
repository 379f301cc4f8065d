"""The overview: what it says, to whom, and at what cost."""

import datetime as dt
from types import SimpleNamespace
from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import User
from django.db import connection
from django.db.models.functions import Now
from django.test import Client
from django.urls import path
from django.utils.html import escape

from pgwerk_django.admin import forecast, register
from pgwerk_django.admin.forecast import Stretches
from pgwerk_django.models import Job, Process, Queue, Schedule, Status, database_now
from tests.test_admin import JAN, JOBS, XSS, browser, make, make_job, page_of, queries, user

pytestmark = pytest.mark.django_db

OVERVIEW = "/admin/pgwerk_django/overview/"
HOUR = dt.timedelta(hours=1)

second_site = admin.AdminSite(name="second")
register(second_site)
urlpatterns = [path("admin/", admin.site.urls), path("second/", second_site.urls)]


@pytest.fixture
def anna() -> Client:
    return browser(User.objects.create_superuser("anna"))


def now() -> dt.datetime:
    return database_now("default")


def shown(client: Client, **query: str) -> dict[str, Any]:
    response = client.get(OVERVIEW, query)
    assert response.status_code == 200
    return {name: value for layer in response.context for each in layer for name, value in each.items()}


def html(client: Client, **query: str) -> str:
    return client.get(OVERVIEW, query).content.decode()


def test_it_is_linked_from_the_index_and_the_app_list(anna: Client) -> None:
    for url in ("/admin/", "/admin/pgwerk_django/", "/admin/pgwerk_django/schedule/"):
        assert f'href="{OVERVIEW}"' in anna.get(url).content.decode()


def test_a_banner_says_that_nobody_is_alive(anna: Client) -> None:
    silent = Process.objects.create(role="scheduler", host="web-1")
    Process.objects.filter(pk=silent.pk).update(heartbeat_at=Now() - dt.timedelta(seconds=31))
    assert "No scheduler is alive" in html(anna)
    assert "No worker is alive" in html(anna)
    Process.objects.create(role="scheduler", host="web-2")
    Process.objects.create(role="worker", host="web-2")
    assert "is alive:" not in html(anna)


def test_processes_with_their_clocks(anna: Client) -> None:
    process = Process.here("worker", version="1.2.3", queues=["a"])
    process.beat(using="default")
    off = Process.objects.create(role="scheduler", host="web-2", stats={"clock": now().timestamp() - 60})
    Process.objects.filter(pk=off.pk).update(heartbeat_at=Now())
    scheduler, worker = shown(anna)["processes"]
    found = {"scheduler": scheduler, "worker": worker}
    assert (found["worker"]["offset"], found["worker"]["version"], found["worker"]["queues"]) == ("right", "1.2.3", "a")
    assert "−1 min" in found["scheduler"]["offset"]


def test_what_fails_comes_first(anna: Client) -> None:
    make("fine")
    make("failing", last_run_at=JAN)
    make_job("failing", status=Status.FAILED)
    Schedule.objects.filter(pk=make("aside").pk).update(error=f"ValueError: {XSS}", next_run_at=None)
    rows = shown(anna)["failing"]
    assert [("aside" in row["name"], "Error" in row["state"]) for row in rows] == [(True, True), (False, False)]
    page = html(anna)
    assert escape(XSS) in page
    assert XSS not in page
    assert page.index("What fails") < page.index("What ran and what will")
    assert page_of(Schedule.objects.get(name="failing")) in page


def test_queues_with_depth_and_age(anna: Client) -> None:
    Process.objects.create(role="worker", host="a", queues=["mail"])
    for number in range(3):
        make_job(due_at=JAN + dt.timedelta(number), queue="mail")
    Job.objects.update(run_at=Now() - HOUR)
    make_job("later", queue="mail", run_at=now() + HOUR)
    make_job("stuck", queue="lost & found")
    make_job("running", queue="mail", status=Status.RUNNING)
    Queue.objects.create(name="paused", paused=True, paused_by="bob")
    found = {queue["name"]: queue for queue in shown(anna)["queues"]}
    mail = found["mail"]
    assert (mail["waiting"], mail["later"], mail["running"], mail["workers"]) == ("3", 1, 1, 1)
    assert mail["oldest"].startswith(("1 h", "59 min"))
    assert "No worker" in found["lost & found"]["state"]
    assert "Paused" in found["paused"]["state"]
    assert f'href="{JOBS}?queue=lost%20%26%20found"' in html(anna)


def job_of(age: dt.timedelta, status: str) -> None:
    """One that was made so long ago, and so has an id of then."""
    then = now() - age
    make_job(
        f"{status}-{age}",
        pk=f"{int(then.timestamp() * 1000):012x}70008000000000000000",
        status=status,
        enqueued_at=then,
    )


def test_the_timeline_counts_what_ran(anna: Client) -> None:
    for age, status in ((HOUR / 6, "SUCCESSFUL"), (HOUR / 3, "FAILED"), (5 * HOUR, "FAILED"), (72 * HOUR, "SKIPPED"), (96 * HOUR, "FAILED")):  # fmt: skip
        job_of(age, status)
    legend = lambda span: {kind: number for kind, _label, number in shown(anna, span=span)["legend"]}  # noqa: E731
    assert legend("1h") == {"successful": 1, "failed": 1}
    assert legend("24h") == legend("nonsense") == {"successful": 1, "failed": 2}
    assert legend("7d") == {"successful": 1, "failed": 2, "skipped": 1}
    assert 'aria-label="Ran: 2 failed, 1 successful; to come: 0"' in html(anna)


def test_of_too_many_jobs_a_sample_is_taken_but_failures_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "MOST_READ", 100)
    for number in range(400):
        job_of(number * HOUR / 400, "FAILED" if number % 100 == 0 else "SUCCESSFUL")
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE _pgwerk_jobs")
    found = forecast.past(Stretches(now() - 2 * HOUR, HOUR, 3), 400, using="default")
    assert found.is_estimate
    assert sum(count["FAILED"] for count in found.counts) == 4


def row_of(**columns: Any) -> Any:
    return SimpleNamespace(
        **{"cron": "", "interval": None, "timezone": "UTC", "anchor_at": JAN, "created_at": JAN - HOUR, "starts_at": None,
           "ends_at": None, "max_runs": None, "run_count": 0, "next_run_at": JAN, **columns}
    )  # fmt: skip


def test_what_is_to_come_is_what_the_tick_will_make() -> None:
    stretches = Stretches(JAN, HOUR, 4)
    rows = [row_of(interval=1800), row_of(cron="0 10 * * *", next_run_at=JAN + HOUR), row_of(interval=60, max_runs=3)]
    assert forecast.coming(stretches, rows, 1).counts == [5, 3, 2, 2]
    assert forecast.coming(stretches, rows[1:2], 250) == ([0, 250, 0, 0], True)
    broken = row_of(cron="0 9 * * *", timezone="Mars/Olympus")
    assert forecast.coming(stretches, [broken, rows[1]], 1).counts[1] == 1


def test_what_is_due_too_often_goes_on_at_its_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "MOST_STEPS", 20)
    counts = forecast.coming(Stretches(JAN, HOUR, 4), [row_of(interval=60)], 1).counts
    assert counts[2:] == [60, 60]
    assert counts == pytest.approx([60, 60, 60, 60])


def test_what_runs_next(anna: Client) -> None:
    make("b")
    Schedule.objects.filter(pk=make("a").pk).update(next_run_at=Now() + dt.timedelta(minutes=1))
    Schedule.objects.filter(pk=make("paused").pk).pause()
    rows = shown(anna)["next"]
    assert [row["rule"] == "Every hour" for row in rows] == [True, True]
    assert ">a</a>" in rows[0]["name"]


def test_the_number_of_queries_does_not_grow(anna: Client) -> None:
    def add(numbers: range) -> None:
        for number in numbers:
            make(f"s{number}")
            make_job(f"s{number}", status=Status.FAILED, queue=f"q{number}")
            make_job(f"w{number}", queue=f"q{number}")
            Process.objects.create(role="worker", host=f"h{number}", queues=[f"q{number}"])

    add(range(2))
    anna.get(OVERVIEW)
    few = queries(anna, OVERVIEW)
    add(range(2, 20))
    assert queries(anna, OVERVIEW) == few <= 13


@pytest.mark.parametrize(
    ("permission", "parts"),
    [
        ("view_schedule", {"failing", "next", "load"}),
        ("view_job", {"queues"}),
        ("view_process", {"processes"}),
    ],
)
def test_each_part_needs_its_permission(permission: str, parts: set[str]) -> None:
    client = browser(user("vera", permission))
    found = shown(client)
    assert {part for part in ("failing", "next", "load", "queues", "processes") if part in found} == parts


def test_without_any_permission_there_is_no_overview() -> None:
    client = browser(user("paula"))
    assert client.get(OVERVIEW).status_code == 403
    assert OVERVIEW not in client.get("/admin/").content.decode()
    assert Client().get(OVERVIEW).status_code == 302


@pytest.mark.urls("tests.test_admin_overview")
def test_a_custom_site_shows_all_of_it(anna: Client) -> None:
    row = make()
    make_job(status=Status.FAILED, schedule=row)
    page = anna.get("/second/pgwerk_django/overview/").content.decode()
    assert 'href="/admin/' not in page
    assert f"/second/pgwerk_django/schedule/{row.pk}/change/" in page
    assert 'href="/second/pgwerk_django/overview/"' in anna.get("/second/").content.decode()


def test_it_needs_no_inline_script_or_style(anna: Client) -> None:
    make()
    page = html(anna)
    assert " style=" not in page
    assert "<script>" not in page
    assert 'src="/static/pgwerk_django/overview.js" defer' in page


def test_it_is_no_model_of_the_database() -> None:
    assert "overview" not in {model._meta.model_name for model in apps.get_models()}


def test_what_cannot_be_handed_over_is_said_first(anna: Client) -> None:
    make_job("mail", target="celery")
    failing = make_job("report", target="celery", attempt=3, error=f"Traceback\n  x\nOperationalError: {XSS}")
    Process.objects.create(role="scheduler", host="web-1")
    make("mail", target="celery")
    text = html(anna)
    assert escape(f"Hand-over to celery fails: OperationalError: {XSS}") in text
    assert XSS not in text
    assert "No worker is alive" not in text  # nothing is ours to run
    (row,) = shown(anna)["outgoing"]
    assert (row["target"], row["waiting"], row["failed"]) == ("celery", "2", 1)
    job = anna.get(f"/admin/pgwerk_django/job/{failing.pk}/change/").content.decode()
    assert "could not be handed over to celery, 3 tries so far" in job
    assert "cannot be handed over to celery" in anna.get("/admin/pgwerk_django/job/").content.decode()
    failing.delete()
    assert "Hand-over to celery fails" not in html(anna)


def test_a_job_that_was_handed_over_says_to_whom(anna: Client) -> None:
    job = make_job("mail", target="celery", status=Status.FORWARDED, external_id="their-id")
    text = anna.get(f"/admin/pgwerk_django/job/{job.pk}/change/").content.decode()
    assert "handed over to celery at" in text
    assert "their-id" in text


def test_why_a_schedule_of_another_target_did_not_run(anna: Client) -> None:
    row = make("mail", target="celery", function="tests.celery_app.remember")
    address = f"/admin/pgwerk_django/schedule/{row.pk}/change/"
    assert "Nothing waits to be handed over to celery." in anna.get(address).content.decode()
    job = make_job("mail", target="celery", schedule=row)
    assert "waits to be handed over to celery." in anna.get(address).content.decode()
    Job.objects.filter(pk=job.pk).update(error="Traceback\nConnectionError: down", attempt=1)
    assert "and is tried again: ConnectionError: down" in anna.get(address).content.decode()
