"""What people do to jobs and queues in the admin: permitted, recorded, and never by a GET."""

from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from pgwerk_django.jobs import pause_queue
from pgwerk_django.models import Job, Queue
from tests.test_admin import JOBS, XSS, anna, browser, make_job, said, user  # noqa: F401  fixtures among them

pytestmark = pytest.mark.django_db
QUEUES = "/admin/pgwerk_django/queue/"


def post(client: Client, url: str, action: str, *rows: Any, **data: Any) -> Any:
    return client.post(url, {"action": action, "_selected_action": [row.pk for row in rows], **data})


def again(row: Any) -> Any:
    row.refresh_from_db()
    return row


def audit() -> list[str]:
    return list(LogEntry.objects.order_by("pk").values_list("change_message", flat=True))


def test_failed_jobs_are_retried(anna: Client) -> None:  # noqa: F811
    failed = Job.objects.create(status="FAILED", attempt=1, error="no luck")
    done = Job.objects.create(status="SUCCESSFUL", attempt=1)
    response = anna.post(JOBS, {"action": "retry", "_selected_action": [failed.pk, done.pk]}, follow=True)
    assert said(response) == ["1 job runs again."]
    assert (again(failed).status, failed.reason, failed.max_attempts) == ("READY", "retried by anna", 2)
    assert again(done).status == "SUCCESSFUL"
    assert audit() == ["Retried."]


@pytest.mark.parametrize(("force", "forced"), [({}, False), ({"force": "on"}, True)])
def test_cancelling_asks_for_a_reason_and_whether_to_stop_what_runs(anna: Client, force: Any, forced: bool) -> None:  # noqa: F811
    waiting, running = Job.objects.create(), Job.objects.create(status="RUNNING", attempt=1)
    asked = post(anna, JOBS, "cancel", waiting, running)
    assert again(waiting).status == "READY"
    assert "Stop what runs" in asked.content.decode()
    assert waiting.key in asked.content.decode()
    post(anna, JOBS, "cancel", waiting, running, post="yes", reason="wrong customer", **force)
    assert (again(waiting).status, waiting.reason) == ("CANCELLED", "cancelled by anna: wrong customer")
    assert (again(running).status, running.cancel_forced) == ("RUNNING", forced)
    assert running.cancel_requested_at is not None
    assert audit() == ["Cancelled: wrong customer"] * 2


@pytest.mark.parametrize(("status", "buttons"), [
    ("READY", ["cancel"]), ("RUNNING", ["cancel"]), ("FAILED", ["retry"]), ("CANCELLED", ["retry"]), ("SUCCESSFUL", []),
])  # fmt: skip
def test_the_page_of_a_job_has_the_buttons_that_fit(anna: Client, status: str, buttons: list[str]) -> None:  # noqa: F811
    job = make_job(status=status, error=XSS)
    html = anna.get(f"{JOBS}{job.pk}/change/").content.decode()
    assert [name for name in ("retry", "cancel") if f'name="action" value="{name}"' in html] == buttons
    assert ('name="force"' in html) == (status == "RUNNING")
    assert XSS not in html


def test_a_button_leads_back_to_the_page_and_a_double_click_is_one(anna: Client) -> None:  # noqa: F811
    job = make_job(status="FAILED")
    first = post(anna, JOBS, "retry", job, post="yes", _page="yes", seen="0")
    assert first.url == f"{JOBS}{job.pk}/change/"
    Job.objects.update(status="FAILED")
    post(anna, JOBS, "retry", job, post="yes", _page="yes", seen="0")
    assert again(job).status == "FAILED"
    assert audit() == ["Retried."]


@pytest.mark.parametrize("action", ["retry", "cancel"])
def test_whoever_may_only_look_changes_no_job(action: str) -> None:
    victor = browser(user("victor", "view_job"))
    job = make_job(status="FAILED" if action == "retry" else "READY")
    assert post(victor, JOBS, action, job, post="yes").status_code == 403
    page = victor.get(f"{JOBS}{job.pk}/change/").content.decode()
    assert 'name="action"' not in page
    allowed = browser(user("carla", "view_job", f"{action}_job"))
    assert post(allowed, JOBS, action, job, post="yes").status_code == 302
    assert again(job).status == ("READY" if action == "retry" else "CANCELLED")


def test_queues_show_their_load(anna: Client) -> None:  # noqa: F811
    for _ in range(3):
        Job.objects.create(queue="mail")
    Job.objects.create(queue="mail", status="RUNNING")
    Queue.objects.all().discover()
    pause_queue("bank", reason=XSS, by="ada")
    html = anna.get(QUEUES).content.decode()
    assert '<td class="field-shown_running">1</td>' in html
    assert '?queue=mail&amp;status__exact=READY">3</a>' in html
    assert "Paused" in html
    assert XSS not in html
    with CaptureQueriesContext(
        connection,
    ) as few:
        anna.get(QUEUES)
    Queue.objects.bulk_create(Queue(name=f"q{n}") for n in range(50))
    with CaptureQueriesContext(connection) as many:
        anna.get(QUEUES)
    assert len(many) == len(few)


def test_a_queue_is_paused_with_a_reason_and_resumed(anna: Client) -> None:  # noqa: F811
    anna.post(f"{QUEUES}add/", {"name": "mail"})
    row = Queue.objects.get()
    assert "until somebody resumes it" in post(anna, QUEUES, "pause", row).content.decode()
    post(anna, QUEUES, "pause", row, post="yes", reason="the provider is down")
    assert (again(row).paused, row.paused_by, row.pause_reason) == (True, "anna", "the provider is down")
    page = anna.get(f"{QUEUES}{row.pk}/change/").content.decode()
    assert "the provider is down" in page
    assert 'value="resume"' in page
    post(anna, QUEUES, "resume", row)
    assert (again(row).paused, row.paused_by, row.pause_reason) == (False, "", "")
    assert audit()[1:] == ["Paused: the provider is down", "Resumed."]


def test_whoever_may_only_look_pauses_no_queue() -> None:
    victor = browser(user("victor", "view_queue"))
    row = Queue.objects.create(name="mail")
    for action in ("pause", "resume"):
        assert post(victor, QUEUES, action, row, post="yes").status_code == 403
    assert 'name="action"' not in victor.get(f"{QUEUES}{row.pk}/change/").content.decode()
    assert victor.post(f"{QUEUES}{row.pk}/delete/", {"post": "yes"}).status_code == 403
    pia = browser(user("pia", "view_queue", "pause_queue"))
    assert post(pia, QUEUES, "pause", row, post="yes").status_code == 302
    assert again(row).paused
