"""The admin, as people use it and as others abuse it: through Django's test client, on a real PostgreSQL."""

import datetime as dt
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.models import ADDITION, CHANGE, DELETION, LogEntry
from django.contrib.auth.models import Permission, User
from django.db import connection, connections
from django.db.models.functions import Now
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.urls import path, reverse
from django.utils.html import escape

from pgwerk_django.admin import JobAdmin, ProcessAdmin, ScheduleAdmin
from pgwerk_django.admin.display import span
from pgwerk_django.admin.pages import CappedPaginator
from pgwerk_django.history import failing_names, is_failing, jobs_named, last_runs
from pgwerk_django.masking import STARS
from pgwerk_django.models import Job, Kind, Origin, Process, Queue, Schedule, State, Status
from pgwerk_django.registry import registry, schedule
from pgwerk_django.scheduler import Scheduler
from tests import functions

pytestmark = pytest.mark.django_db

LIST = "/admin/pgwerk_django/schedule/"
ADD = f"{LIST}add/"
JOBS = "/admin/pgwerk_django/job/"
PROCESSES = "/admin/pgwerk_django/process/"
XSS = "<script>alert('x')</script>"
TRACEBACK = f"Traceback (most recent call last):\nValueError: {XSS}"
JAN = dt.datetime(2026, 1, 1, 9, tzinfo=dt.UTC)
END = dt.datetime(9000, 1, 1, tzinfo=dt.UTC)  # no schedule reaches further

second_site = admin.AdminSite(name="second")
second_site.register(Schedule, ScheduleAdmin)
urlpatterns = [path("admin/", admin.site.urls), path("second/", second_site.urls)]


def user(name: str, *permissions: str) -> User:
    person = User.objects.create_user(name, is_staff=True)
    found = Permission.objects.filter(content_type__app_label="pgwerk_django", codename__in=permissions)
    assert len(found) == len(permissions)
    person.user_permissions.set(found)
    return person


def browser(person: User) -> Client:
    client = Client()
    client.force_login(person)
    return client


@pytest.fixture
def anna() -> Client:
    """An administrator."""
    return browser(User.objects.create_superuser("anna"))


@pytest.fixture
def viewer() -> Client:
    return browser(user("victor", "view_schedule", "view_job", "view_process"))


@pytest.fixture
def allowed(settings: Any) -> None:
    settings.PGWERK = {"AUTODISCOVER": (), "ALLOWED_FUNCTIONS": ["tests.functions.*"]}


def make(name: str = "hourly", **columns: Any) -> Schedule:
    given = {"function": "tests.functions.add", "args": [1], "interval": 3600, "origin": Origin.ADMIN, **columns}
    row = Schedule.objects.create(name=name, next_run_at=columns.pop("next_run_at", None), **{**given, **columns})
    if "next_run_at" not in given:
        Schedule.objects.filter(pk=row.pk).update(next_run_at=Now() + dt.timedelta(hours=1), replan=False)
    return reread(row)


def reread(row: Schedule) -> Schedule:
    return Schedule.objects.get(pk=row.pk)


def make_job(name: str = "hourly", due_at: dt.datetime = JAN, **columns: Any) -> Job:
    key = f"{name}@{due_at.astimezone(dt.UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
    given = {"key": key, "schedule_name": name, "due_at": due_at, "kind": Kind.SCHEDULED, "function": "shop.run"}
    return Job.objects.create(**{**given, **columns})


def page_of(row: Schedule) -> str:
    return f"{LIST}{row.pk}/change/"


def post(client: Client, action: str, *rows: Schedule, url: str = LIST, **data: Any) -> Any:
    return client.post(url, {"action": action, "_selected_action": [row.pk for row in rows], **data})


def said(response: Any) -> list[str]:
    return [str(message) for message in response.context["messages"]]


def form(**fields: Any) -> dict[str, Any]:
    """What the add form sends, as it comes and with `fields` filled in."""
    return {
        "name": "mine", "description": "", "function": "tests.functions.add", "args": "[1]", "kwargs": "{}",
        "queue": "default", "cron": "", "interval": "", "timezone": "Europe/Paris", "next_run_at_0": "",
        "next_run_at_1": "", "starts_at_0": "", "starts_at_1": "", "ends_at_0": "", "ends_at_1": "", "max_runs": "",
        "jitter": "0", "misfire": "LATEST", "misfire_grace": "60", "overlap": "BUFFER_ONE", "target": "worker",
        "priority": "0", "timeout": "", "max_attempts": "1", "backoff": "", "result_ttl": "", "failure_ttl": "",
        "meta": "{}", **fields,
    }  # fmt: skip


def errors(response: Any) -> dict[str, list[str]]:
    assert response.status_code == 200, response.status_code
    return {name: list(each) for name, each in response.context["adminform"].form.errors.items()}


def queries(client: Client, url: str) -> int:
    with CaptureQueriesContext(connection) as captured:
        response = client.get(url)
    assert response.status_code == 200
    return len(captured)


# -- the list of schedules


def test_the_list_says_what_will_run_when(anna: Client) -> None:
    make("reports.daily", interval=None, cron="0 9 * * *", timezone="Europe/Paris", queue="reports")
    html = anna.get(LIST).content.decode()
    for text in ("reports.daily", "At 09:00 every day", "0 9 * * * (Europe/Paris)", "reports", "worker", "OK", "admin"):
        assert text in html
    assert " in 59 min" in html or "in 1 h" in html


@pytest.fixture
def one_of_each() -> dict[str, Schedule]:
    rows = {state: make(state.lower()) for state in State.values}
    Schedule.objects.filter(name="error").update(error=f"ValueError: {XSS}", next_run_at=None)
    Schedule.objects.filter(name="paused").pause(by="bob", reason="stocktaking")
    Schedule.objects.filter(name="ended").update(next_run_at=None)
    Schedule.objects.filter(name="late").update(next_run_at=Now() - dt.timedelta(seconds=61))
    make_job("failing", status=Status.FAILED)
    return {state: reread(row) for state, row in rows.items()}


def test_each_state_is_shown_and_says_why(anna: Client, one_of_each: dict[str, Schedule]) -> None:
    html = anna.get(LIST).content.decode()
    for state in State:
        assert f"pgwerk-{state.lower()}" in html
    assert 'title="by bob: stocktaking"' in html
    assert f'title="ValueError: {escape(XSS)}"' in html
    assert XSS not in html


@pytest.mark.parametrize("state", State.values)
def test_the_state_filter_agrees_with_the_rows(anna: Client, one_of_each: dict[str, Schedule], state: str) -> None:
    shown = anna.get(LIST, {"state": state}).context["cl"].result_list
    assert [row.name for row in shown] == [state.lower()]
    assert shown[0].state(shown[0].judged_at, failing=is_failing(shown[0].runs)) == state


def test_filters_by_origin_and_queue_and_search(anna: Client) -> None:
    make("a", queue="reports")
    make("b", origin=Origin.API, function="shop.tasks.noop", args=[])
    names = lambda **query: [row.name for row in anna.get(LIST, query).context["cl"].result_list]  # noqa: E731
    assert names(queue="reports") == ["a"]
    assert names(origin="api") == ["b"]
    assert names(q="noop") == ["b"]
    assert names(q="a") == ["a", "b"]  # the second by its function
    assert names(state="nonsense") == ["a", "b"]


FAILED_OK = (Status.FAILED, Status.SUCCESSFUL)


@pytest.mark.parametrize(
    ("statuses", "failing"),
    [
        ((), False),
        ((Status.SUCCESSFUL, Status.FAILED), True),
        ((Status.FAILED, Status.SUCCESSFUL), False),
        ((Status.FAILED, Status.SKIPPED, Status.CANCELLED, Status.READY, Status.RUNNING), True),  # undecided yet
        ((Status.SKIPPED,), False),
    ],
)
def test_a_schedule_fails_when_its_newest_decided_run_did(
    anna: Client, statuses: tuple[Status, ...], failing: bool
) -> None:
    make()
    make_job("other", status=Status.FAILED)  # of a schedule that is gone
    for day, status in enumerate(statuses):
        make_job(due_at=JAN + dt.timedelta(day), status=status)
    assert ("hourly" in failing_names("default")) == failing
    names = lambda **query: [row.name for row in anna.get(LIST, query).context["cl"].result_list]  # noqa: E731
    assert names(state="FAILING") == names(outcome="failed") == (["hourly"] if failing else [])
    assert names(state="OK") == ([] if failing else ["hourly"])
    assert (">Failing</span>" in anna.get(LIST).content.decode()) == failing


def test_the_outcome_filter(anna: Client) -> None:
    rows = {name: make(name, last_run_at=JAN) for name in ("failed", "fine", "running", "waiting")}
    make("never")
    for name, status in (("failed", "FAILED"), ("fine", "SUCCESSFUL"), ("running", "RUNNING"), ("waiting", "READY")):
        make_job(name, status=status, schedule=rows[name])
    found = lambda value: [row.name for row in anna.get(LIST, {"outcome": value}).context["cl"].result_list]  # noqa: E731
    for value in ("failed", "running", "waiting", "never"):
        assert found(value) == [value]
    assert found("fine") == ["fine", "running", "waiting"]
    assert len(found("nonsense")) == 5


def test_the_list_shows_the_last_thirty_runs(anna: Client) -> None:
    make()
    for number in range(33):
        make_job(due_at=JAN + dt.timedelta(minutes=number), status=FAILED_OK[number % 2])
    last = make_job(
        due_at=JAN + dt.timedelta(days=1), kind=Kind.TRIGGER, status=Status.SUCCESSFUL, reason=f"triggered by {XSS}",
        started_at=JAN + dt.timedelta(days=1, seconds=3), finished_at=JAN + dt.timedelta(days=1, seconds=5), claims=1,
    )  # fmt: skip
    html = anna.get(LIST).content.decode()
    assert html.count("<rect ") == 30
    assert html.count('class="pgwerk-dot"') == 1
    assert 'aria-label="The last 30 runs: 15 successful, 15 failed"' in html
    assert f"2026-01-02 10:00:00, Successful, triggered, 2.0 s: triggered by {escape(XSS)}" in html
    assert f'href="{JOBS}{last.pk}/change/"' in html
    assert "2.0 s, 3.0 s late" in html


def test_of_many_jobs_the_count_is_broken_off(anna: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CappedPaginator, "MOST", 2)
    for number in range(4):
        make_job(due_at=JAN + dt.timedelta(number))
    assert "2+ jobs" in anna.get(JOBS).content.decode()


def test_what_waits_is_found_among_much_that_ended(anna: Client) -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO _pgwerk_jobs (status) SELECT 'SUCCESSFUL' FROM generate_series(1, 5000)")
        cursor.execute(
            "INSERT INTO _pgwerk_jobs (queue, target) VALUES ('mail', 'worker'), ('mail', 'celery'), ('x', 'rq')"
        )
        cursor.execute("ANALYZE _pgwerk_jobs")
        with CaptureQueriesContext(connection) as captured:
            html = anna.get(JOBS, {"status__exact": "READY", "queue": "mail"}).content.decode()
        assert "\n2 jobs\n" in html
        plan = ""
        for query in captured:
            if "'READY'" in query["sql"]:
                cursor.execute("EXPLAIN " + query["sql"])
                plan += "\n".join(line for (line,) in cursor.fetchall())
    assert "pgwerk_claim" in plan
    assert "pgwerk_outbox" in plan
    assert "Seq Scan on _pgwerk_jobs" not in plan, plan


def test_the_history_is_read_by_the_index_on_keys() -> None:
    for number in range(200):
        make_job(f"s{number % 20}", due_at=JAN + dt.timedelta(minutes=number))
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE _pgwerk_jobs")
        cursor.execute("SET LOCAL enable_seqscan = off")
        with CaptureQueriesContext(connection) as captured:
            last_runs([f"s{number}" for number in range(20)], using="default")
        assert len(captured) == 1
        cursor.execute("EXPLAIN " + captured.captured_queries[0]["sql"])
        plan = " ".join(line for (line,) in cursor.fetchall())
    assert plan.count("pgwerk_job_key") == 20


def test_a_schedule_that_was_triggered_or_is_being_planned_says_so(anna: Client) -> None:
    triggered, planned = make("triggered"), make("planned")
    Schedule.objects.filter(pk=triggered.pk).trigger(by="bob")
    Schedule.objects.filter(pk=planned.pk).update(interval=None, cron="0 0 1 1 *")
    html = anna.get(LIST).content.decode()
    assert "-01-01 00:00:00" in html.partition("with the next tick it is planned anew")[0][-200:]  # and for when
    assert "triggered, starts with the next tick" in html
    assert "with the next tick it is planned anew" in html


@pytest.mark.parametrize("url", [LIST, JOBS, PROCESSES])
def test_the_number_of_queries_is_the_same_for_any_number_of_rows(anna: Client, url: str) -> None:
    def add(numbers: range) -> None:
        for number in numbers:
            row = make(f"s{number}", queue="reports" if number % 2 else "default")
            make_job(row.name, schedule=row, reason="because", result={"n": number})
            Process.objects.create(role="worker", host=f"h{number}")

    add(range(3))
    anna.get(url)  # content types and the like are read once
    few = queries(anna, url)
    add(range(3, 30))
    assert queries(anna, url) == few <= 9


def test_payloads_stay_in_the_database_for_a_list(anna: Client) -> None:
    make()
    make_job()
    for url, column in ((LIST, '"kwargs"'), (JOBS, '"result"'), (JOBS, '"error"')):
        with CaptureQueriesContext(connection) as captured:
            anna.get(url)
        assert not [query for query in captured.captured_queries if column in query["sql"]]


# -- pause, resume, trigger


def test_pause_asks_first_and_then_pauses(anna: Client) -> None:
    rows = [make("a"), make("b")]
    asked = post(anna, "pause", *rows)
    assert asked.status_code == 200
    assert not Schedule.objects.filter(paused=True).exists()
    html = asked.content.decode()
    assert '<input type="hidden" name="post" value="yes">' in html
    assert '<input type="hidden" name="action" value="pause">' in html
    assert "2 schedules will not run until somebody resumes them" in html
    done = post(anna, "pause", *rows, post="yes", reason="stocktaking")
    assert done.status_code == 302
    for row in map(reread, rows):
        assert (row.paused, row.paused_by, row.pause_reason) == (True, "anna", "stocktaking")
    assert said(anna.get(LIST)) == ["2 schedules were paused."]


def test_a_pause_needs_no_reason(anna: Client) -> None:
    row = make()
    post(anna, "pause", row, post="yes")
    assert (reread(row).paused, reread(row).paused_by, reread(row).pause_reason) == (True, "anna", "")
    assert [entry.change_message for entry in LogEntry.objects.all()] == ["Paused."]


def test_a_reason_that_cannot_be_stored_is_asked_for_again(anna: Client) -> None:
    row = make()
    for reason in ("a\0b", "x" * 501):
        asked = post(anna, "pause", row, post="yes", reason=reason)
        assert asked.status_code == 200
        assert "errorlist" in asked.content.decode()
    assert not reread(row).paused


@pytest.mark.parametrize("data", [{}, {"post": "yes"}])
def test_resume_acts_at_once(anna: Client, data: dict[str, str]) -> None:
    row = make()
    Schedule.objects.pause(by="bob", reason="stocktaking")
    assert post(anna, "resume", row, **data).status_code == 302
    assert (reread(row).paused, reread(row).paused_by, reread(row).pause_reason) == (False, "", "")
    assert said(anna.get(LIST)) == ["1 schedule was resumed."]


@pytest.mark.parametrize("data", [{}, {"post": "yes"}])
def test_trigger_acts_at_once_and_moves_no_due_time(anna: Client, data: dict[str, str]) -> None:
    row = make()
    assert post(anna, "trigger", row, **data).status_code == 302
    assert reread(row).triggered_by == "anna"
    assert reread(row).next_run_at == row.next_run_at
    Scheduler().tick()
    job = Job.objects.get()
    assert (job.kind, job.reason, job.schedule_name) == (Kind.TRIGGER, "triggered by anna", "hourly")


def test_each_row_that_changed_is_in_the_log(anna: Client) -> None:
    rows = [make("a"), make("b"), make("c")]
    Schedule.objects.filter(name="c").pause(by="bob")
    post(anna, "pause", *rows, post="yes", reason="50 % off")
    post(anna, "trigger", rows[0])
    post(anna, "resume", rows[1])
    log = LogEntry.objects.order_by("pk").values_list("object_id", "object_repr", "change_message", "action_flag")
    assert list(log) == [
        (str(rows[0].pk), "a", "Paused: 50 % off", CHANGE),
        (str(rows[1].pk), "b", "Paused: 50 % off", CHANGE),
        (str(rows[0].pk), "a", "Triggered.", CHANGE),
        (str(rows[1].pk), "b", "Resumed.", CHANGE),
    ]
    assert {entry.user.username for entry in LogEntry.objects.all()} == {"anna"}
    assert "Paused: 50 % off" in anna.get(f"{LIST}{rows[0].pk}/history/").content.decode()


def test_a_pause_of_somebody_else_stays_theirs(anna: Client) -> None:
    row = make()
    Schedule.objects.pause(by="bob", reason="stocktaking")
    post(anna, "pause", row, post="yes", reason="mine")
    assert (reread(row).paused_by, reread(row).pause_reason) == ("bob", "stocktaking")
    assert not LogEntry.objects.exists()
    assert said(anna.get(LIST)) == ["Nothing to pause: they were paused already."]


def test_all_that_a_filter_finds_can_be_selected(anna: Client) -> None:
    rows = [make(f"s{number:03}", queue="reports") for number in range(120)]
    other = make("other")
    url = f"{LIST}?queue=reports"
    asked = post(anna, "pause", rows[0], url=url, select_across="1")
    html = asked.content.decode()
    assert "120 schedules" in html
    assert "and 20 more" in html
    assert html.count('name="_selected_action"') == 1  # a form may have a thousand fields, and this could be more
    assert '<input type="hidden" name="select_across" value="1">' in html
    post(anna, "pause", rows[0], url=url, select_across="1", post="yes")
    assert Schedule.objects.filter(paused=True).count() == LogEntry.objects.count() == 120
    assert not reread(other).paused


def test_nothing_changes_by_get(anna: Client) -> None:
    row = make()
    for action in ("pause", "resume", "trigger"):
        anna.get(LIST, {"action": action, "_selected_action": row.pk, "post": "yes"})
    assert (reread(row).paused, reread(row).triggered_at) == (False, None)


@pytest.mark.parametrize(
    ("permissions", "may"),
    [
        (["view_schedule"], []),
        (["view_schedule", "change_schedule", "add_schedule", "delete_schedule"], []),
        (["view_schedule", "pause_schedule"], ["pause", "resume"]),
        (["view_schedule", "trigger_schedule"], ["trigger"]),
    ],
)
def test_each_action_has_its_permission(permissions: list[str], may: list[str]) -> None:
    client = browser(user("paula", *permissions))
    row = make()
    html = client.get(LIST).content.decode()
    page = client.get(page_of(row)).content.decode()
    for action in ("pause", "resume", "trigger"):
        assert (f'<option value="{action}">' in html) == (action in may)
        Schedule.objects.update(paused=action == "resume", triggered_at=None)
        before = reread(row)
        response = post(client, action, row, post="yes")
        after = reread(row)
        changed = (before.paused, before.triggered_at) != (after.paused, after.triggered_at)
        assert changed == (action in may)
        assert response.status_code == (302 if action in may else 403)
    assert ('value="pause"' in page) == ("pause" in may)
    assert ('value="trigger"' in page) == ("trigger" in may)
    assert LogEntry.objects.count() == len(may)


def test_who_may_not_see_the_page_may_not_act_on_it() -> None:
    row = make()
    client = browser(user("paula", "pause_schedule", "trigger_schedule"))
    for action in ("pause", "resume", "trigger"):
        assert post(client, action, row, post="yes").status_code == 403
    anonymous = post(Client(), "pause", row, post="yes")
    assert anonymous.status_code == 302
    assert "/login/" in anonymous["Location"]
    assert (reread(row).paused, reread(row).triggered_at) == (False, None)


def test_a_form_without_the_csrf_token_is_refused() -> None:
    row = make()
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.create_superuser("anna"))
    assert post(client, "trigger", row).status_code == 403
    assert reread(row).triggered_at is None


def test_the_buttons_of_a_page_lead_back_to_it(anna: Client) -> None:
    row = make()
    for action in ("pause", "resume", "trigger"):
        response = post(anna, action, row, post="yes", _page="yes", reason="why not")
        assert (response.status_code, response["Location"]) == (302, page_of(row))
    assert LogEntry.objects.count() == 3


# -- rows that code declares


@pytest.fixture
def declared() -> Schedule:
    schedule(cron="0 9 * * *", _name="declared", args=[1])(functions.add)
    Scheduler().sync()
    return Schedule.objects.get()


def test_a_declared_row_is_shown_but_not_edited(anna: Client, declared: Schedule) -> None:
    html = anna.get(page_of(declared)).content.decode()
    assert "Declared in code" in html
    assert "tests.functions.add" in html
    for button in ('name="_save"', 'name="_continue"', "deletelink", 'name="function"', 'name="cron"'):
        assert button not in html
    for button in ('value="pause"', 'value="trigger"'):
        assert button in html


def test_a_forged_post_changes_nothing_of_a_declared_row(anna: Client, declared: Schedule) -> None:
    before = Schedule.objects.filter(pk=declared.pk).values().get()
    assert anna.post(page_of(declared), form(name="other", cron="* * * * *")).status_code == 403
    assert anna.post(f"{LIST}{declared.pk}/delete/", {"post": "yes"}).status_code == 403
    post(anna, "delete_selected", declared, post="yes")
    assert Schedule.objects.filter(pk=declared.pk).values().get() == before


def test_a_declared_row_can_be_paused_resumed_and_triggered(anna: Client, declared: Schedule) -> None:
    post(anna, "pause", declared, post="yes", reason="stocktaking")
    assert reread(declared).paused_by == "anna"
    Scheduler().sync()
    assert reread(declared).paused
    post(anna, "trigger", declared)
    assert reread(declared).triggered_by == "anna"
    post(anna, "resume", declared)
    assert not reread(declared).paused


def test_a_deletion_of_many_names_the_declared_ones_and_stops(anna: Client, declared: Schedule) -> None:
    made = make("made")
    html = post(anna, "delete_selected", declared, made, post="yes").content.decode()
    assert "These are declared in code" in html
    assert "<li>declared</li>" in html
    assert Schedule.objects.count() == 2


# -- adding and editing


@pytest.mark.usefixtures("allowed")
def test_add_makes_a_row_that_the_next_tick_plans(anna: Client) -> None:
    response = anna.post(ADD, form(cron="0 9 * * *", args='["ü"]', kwargs='{"b": {"a": null}}', backoff="[1, 2]"))
    assert response.status_code == 302, errors(response)
    row = Schedule.objects.get()
    assert (row.name, row.origin, row.cron, row.interval) == ("mine", Origin.ADMIN, "0 9 * * *", None)
    assert (row.args, row.kwargs, row.backoff, row.meta) == (["ü"], {"b": {"a": None}}, [1, 2], {})
    assert [entry.action_flag for entry in LogEntry.objects.all()] == [ADDITION]
    assert row.replan
    Scheduler().tick()
    row = reread(row)
    assert row.next_run_at is not None
    assert row.next_run_at.astimezone(dt.timezone(dt.timedelta(hours=1))).hour in (9, 8)
    assert not Job.objects.exists()


def test_a_function_that_code_declares_is_allowed_without_any_setting(anna: Client, declared: Schedule) -> None:
    assert anna.post(ADD, form(interval="60")).status_code == 302
    assert Schedule.objects.get(name="mine").function == "tests.functions.add"
    assert '<option value="tests.functions.add">' in anna.get(ADD).content.decode()


@pytest.mark.parametrize("function", ["os.system", "subprocess.run", "tests.functions.noop", "builtins.eval"])
def test_any_other_function_is_refused_by_name(anna: Client, declared: Schedule, function: str) -> None:
    found = errors(anna.post(ADD, form(interval="60", function=function, args="[]")))
    assert list(found) == ["function"]
    assert function in found["function"][0]
    assert not Schedule.objects.filter(name="mine").exists()


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize(
    ("function", "why"),
    [
        ("tests.functions.missing", "cannot be imported"),
        ("tests.functions.not_a_function", "not a function"),
        ("tests.functions.current_job", "pgwerk_django.jobs.current_job"),  # imported there, at home elsewhere
        ("tests.functions.Any", "typing.Any"),
        ("nonsense", "nonsense"),
        ("tests.functions.a b", "tests.functions.a b"),
        ("", "required"),
    ],
)
def test_a_function_that_cannot_run_is_refused(anna: Client, function: str, why: str) -> None:
    found = errors(anna.post(ADD, form(interval="60", function=function, args="[]")))
    assert list(found) == ["function"]
    assert why in str(found["function"]) or "top level" in str(found["function"])


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize(
    ("fields", "field", "named"),
    [
        ({}, "cron", "exactly one of cron and interval"),
        ({"cron": "0 9 * * *", "interval": "60"}, "cron", "exactly one of cron and interval"),
        ({"cron": "61 * * * *"}, "cron", "61"),
        ({"cron": "nonsense"}, "cron", "nonsense"),
        ({"cron": "* " * 150}, "cron", ""),
        ({"interval": "0"}, "interval", "interval"),
        ({"interval": "-1"}, "interval", "interval"),
        ({"interval": "315360001"}, "interval", "315360001"),
        ({"interval": "9" * 30}, "interval", ""),
        ({"interval": "1.5"}, "interval", ""),
        ({"interval": "60", "timezone": "Mars/Olympus"}, "timezone", "Mars/Olympus"),
        ({"interval": "60", "timezone": "../../etc/passwd"}, "timezone", "timezone"),
        ({"interval": "60", "args": "{}"}, "args", "args"),
        ({"interval": "60", "args": '"x"'}, "args", "args"),
        ({"interval": "60", "args": "[1"}, "args", "JSON"),
        ({"interval": "60", "args": "[NaN]"}, "args", "args"),
        ({"interval": "60", "args": '["\\u0000"]'}, "args", "args"),
        ({"interval": "60", "args": '["\\ud800"]'}, "args", "args"),
        ({"interval": "60", "args": "[" + "1" * 5000 + "]"}, "args", "JSON"),
        ({"interval": "60", "args": "[" * 100_000}, "args", "JSON"),
        ({"interval": "60", "args": "[1, 2, 3]"}, "args", "must fit tests.functions.add"),
        ({"interval": "60", "kwargs": '{"c": 1}'}, "args", "must fit tests.functions.add"),
        ({"interval": "60", "kwargs": "[]"}, "kwargs", "kwargs"),
        ({"interval": "60", "meta": "3"}, "meta", "meta"),
        ({"interval": "60", "backoff": '"soon"'}, "backoff", "backoff"),
        ({"interval": "60", "backoff": "[]"}, "backoff", "backoff"),
        ({"interval": "60", "backoff": "-1"}, "backoff", "backoff"),
        ({"interval": "60", "timeout": "0"}, "timeout", ""),
        ({"interval": "60", "max_attempts": "0"}, "max_attempts", ""),
        ({"interval": "60", "max_runs": "0"}, "max_runs", ""),
        ({"interval": "60", "jitter": ""}, "jitter", ""),
        ({"interval": "60", "misfire": "MAYBE"}, "misfire", ""),
        ({"interval": "60", "target": "nowhere"}, "target", "nowhere"),
        ({"interval": "60", "target": "celery"}, "function", "is not a Celery task"),
        ({"interval": "60", "target": "celery", "max_attempts": "3"}, "target", "_max_attempts must not be given"),
        ({"interval": "60", "target": "django_tasks", "overlap": "SKIP"}, "target", "does not tell when a job has ended"),
        ({"interval": "60", "queue": "q" * 101}, "queue", ""),
        ({"interval": "60", "queue": "a\tb"}, "queue", "queue"),
        ({"interval": "60", "name": "a\tb"}, "name", "control characters"),
        ({"interval": "60", "name": "n" * 201}, "name", ""),
        ({"interval": "60", "name": "taken"}, "name", "exists"),
        ({"interval": "60", "name": "declared"}, "name", "Code declares"),
        ({"interval": "60", "description": "a\0b"}, "description", ""),
        ({"interval": "60", "ends_at_0": "soon", "ends_at_1": "late"}, "ends_at", ""),
        ({"interval": "60", "starts_at_0": "0001-01-01", "starts_at_1": "00:00"}, "starts_at", "year"),
        ({"interval": "60", "ends_at_0": "9999-12-31", "ends_at_1": "23:59:59"}, "ends_at", "year"),
        (
            {"interval": "60", "starts_at_0": "2026-02-01", "starts_at_1": "00:00", "ends_at_0": "2026-01-01",
             "ends_at_1": "00:00"}, "ends_at", "_ends_at must not be before _starts_at",
        ),
        (
            {"next_run_at_0": "2026-01-01", "next_run_at_1": "00:00", "starts_at_0": "2026-01-02",
             "starts_at_1": "00:00"}, "next_run_at", "between",
        ),
        ({"next_run_at_0": "2026-03-29", "next_run_at_1": "02:30"}, "next_run_at", ""),  # Paris has no such time
    ],
)  # fmt: skip
def test_bad_input_is_explained_at_its_field(anna: Client, fields: dict[str, str], field: str, named: str) -> None:
    make("taken")
    schedule(cron="0 9 * * *", _name="declared", args=[1])(functions.add)
    found = errors(anna.post(ADD, form(**fields)))
    assert list(found) == [field]
    assert named in str(found[field])
    assert Schedule.objects.count() == 1


@pytest.mark.usefixtures("allowed")
def test_a_one_off_has_a_first_run_and_no_recurrence(anna: Client) -> None:
    assert anna.post(ADD, form(next_run_at_0="2035-01-01", next_run_at_1="09:00:00")).status_code == 302
    row = Schedule.objects.get()
    assert row.next_run_at == dt.datetime(2035, 1, 1, 8, tzinfo=dt.UTC)  # as typed in Paris
    assert (row.rule, row.replan) == ("once", False)
    assert anna.post(page_of(row), form(description="changed")).status_code == 302
    assert (reread(row).description, reread(row).next_run_at) == ("changed", row.next_run_at)


@pytest.mark.usefixtures("allowed")
def test_an_interval_counts_from_its_first_run(anna: Client) -> None:
    anna.post(ADD, form(interval="3600", next_run_at_0="2035-01-01", next_run_at_1="09:00:00"))
    first = dt.datetime(2035, 1, 1, 8, tzinfo=dt.UTC)
    row = Schedule.objects.get()
    assert (row.next_run_at, row.anchor_at) == (first, first)
    assert row.recurrence.next_after(first) == first + dt.timedelta(hours=1)


@pytest.mark.usefixtures("allowed")
def test_no_one_sets_machine_columns(anna: Client) -> None:
    anna.post(
        ADD,
        form(interval="60", paused="on", paused_by="x", run_count="9", error="x", origin="code", replan="on", id="7"),
    )
    row = Schedule.objects.get()
    assert (row.paused, row.paused_by, row.run_count, row.error, row.origin) == (False, "", 0, "", Origin.ADMIN)
    anna.post(page_of(row), form(interval="90", origin="code", run_count="9", next_run_at_0="2001-01-01", name="x"))
    row = reread(row)
    assert (row.interval, row.origin, row.run_count, row.name) == (90, Origin.ADMIN, 0, "mine")
    assert row.next_run_at.year > 2001


@pytest.mark.usefixtures("allowed")
def test_an_edit_writes_what_was_changed_and_is_planned(anna: Client) -> None:
    row = make("mine", timezone="Europe/Paris")
    url = page_of(row)
    anna.get(url)
    Schedule.objects.filter(pk=row.pk).update(priority=5, run_count=3, paused=True, paused_by="bob")  # meanwhile
    assert anna.post(url, form(cron="0 9 * * *", priority="5")).status_code == 302
    row = reread(row)
    assert (row.cron, row.interval, row.priority, row.run_count) == ("0 9 * * *", None, 5, 3)
    assert (row.paused, row.paused_by) == (True, "bob")
    anna.post(url, form(interval="120"))
    post(anna, "resume", row)
    Scheduler().tick()
    assert (reread(row).interval, reread(row).cron) == (120, "")
    assert reread(row).next_run_at > dt.datetime.now(dt.UTC)


@pytest.mark.usefixtures("allowed")
def test_an_edit_loses_no_due_time_that_has_passed(anna: Client) -> None:
    row = make("mine", timezone="Europe/Paris")
    due = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=5)
    Schedule.objects.filter(pk=row.pk).update(next_run_at=due)
    assert anna.post(page_of(row), form(interval="7200")).status_code == 302
    Scheduler().tick()
    assert Job.objects.get().due_at == due


@pytest.mark.usefixtures("allowed")
def test_a_recurrence_cannot_be_taken_away_by_an_edit(anna: Client) -> None:
    row = make("mine")
    assert list(errors(anna.post(page_of(row), form()))) == ["cron"]
    assert reread(row).interval == 3600


@pytest.mark.usefixtures("allowed")
def test_an_edit_leaves_alone_what_a_form_cannot_show(anna: Client) -> None:
    starts_at = dt.datetime(2026, 1, 1, 9, 0, 0, 123456, tzinfo=dt.UTC)
    row = make("mine", starts_at=starts_at, timezone="Europe/Paris")
    sent = form(interval="3600", priority="7", starts_at_0="2026-01-01", starts_at_1="10:00:00")
    assert anna.post(page_of(row), sent).status_code == 302
    row = reread(row)
    assert (row.priority, row.starts_at, row.replan) == (7, starts_at, False)


def test_a_run_at_the_end_of_the_calendar_breaks_no_page(anna: Client) -> None:
    row = make(origin=Origin.CODE, ends_at=END, timezone="Asia/Tokyo")
    Schedule.objects.update(next_run_at=END, last_run_at=JAN)
    job = make_job(due_at=END, schedule=row)
    for url in (LIST, page_of(row), JOBS, f"{JOBS}{job.pk}/change/"):
        assert 'datetime="9000-01-01T' in anna.get(url).content.decode()


def test_the_payload_of_a_function_that_people_may_not_name_is_locked(anna: Client) -> None:
    row = make("mine", origin=Origin.API, function="shop.tasks.restock", args=["Acme"], timezone="Europe/Paris")
    html = anna.get(page_of(row)).content.decode()
    assert "function and arguments are read-only" in html
    assert 'name="args"' not in html
    assert "Acme" in html
    response = anna.post(page_of(row), form(interval="60", function="os.system", args='["rm -rf /"]'))
    assert response.status_code == 302
    row = reread(row)
    assert (row.interval, row.function, row.args, row.origin) == (60, "shop.tasks.restock", ["Acme"], Origin.API)


def test_a_form_needs_its_permission() -> None:
    row = make("mine")
    client = browser(user("paula", "view_schedule"))
    assert client.get(ADD).status_code == 403
    assert client.post(ADD, form(interval="60")).status_code == 403
    assert client.get(page_of(row)).status_code == 200
    assert client.post(page_of(row), form(interval="60")).status_code == 403
    assert client.post(f"{LIST}{row.pk}/delete/", {"post": "yes"}).status_code == 403
    assert reread(row).interval == 3600


@pytest.mark.usefixtures("allowed")
def test_who_may_only_add_gets_the_whole_form() -> None:
    client = browser(user("adam", "add_schedule"))
    assert 'name="name"' in client.get(ADD).content.decode()
    assert client.post(ADD, form(interval="60")).status_code == 302
    assert Schedule.objects.get().name == "mine"


@pytest.mark.usefixtures("allowed")
def test_what_was_typed_is_shown_again(anna: Client) -> None:
    html = anna.post(ADD, form(args="[" * 5000, kwargs='{"a":  "ü"}', name=XSS, cron="bad")).content.decode()
    assert "[" * 5000 in html
    assert escape('{"a":  "ü"}') in html
    assert escape(XSS) in html
    assert XSS not in html


# -- the page of one schedule


def test_the_page_shows_coming_runs_in_the_schedules_zone(anna: Client) -> None:
    row = make("ny", interval=None, cron="0 9 * * *", timezone="America/New_York")
    Schedule.objects.filter(pk=row.pk).update(next_run_at=dt.datetime(2035, 6, 1, 13, tzinfo=dt.UTC))
    html = anna.get(page_of(row)).content.decode()
    for day in range(1, 11):
        assert f"2035-06-{day:02} 09:00:00 EDT" in html
    assert "2035-06-11" not in html


def test_the_page_shows_the_last_jobs_in_one_query(anna: Client) -> None:
    row = make()
    url = page_of(row)
    anna.get(url)
    without = queries(anna, url)
    jobs = [make_job(due_at=JAN + dt.timedelta(minutes=n), schedule=row, reason=f"reason {n}") for n in range(25)]
    make_job("other")
    assert queries(anna, url) == without <= 8
    shown = anna.get(url).context["pgwerk"]["jobs"]
    assert len(shown) == 25
    assert str(jobs[-1].pk) in shown[0]["due"]
    html = anna.get(url).content.decode()
    assert "reason 24" in html
    assert f"{JOBS}?schedule=hourly" in html


@pytest.mark.parametrize("name", ["a.b", "a-b", "a", "A", "é@1", "a@", "%_", "x" * 200])
def test_the_jobs_of_a_schedule_are_found_by_their_keys(name: str) -> None:
    for other in ("a.b", "a-b", "a", "A", "a.b.c", "é@1", "a@", "%_", "x" * 200, "x" * 199):
        make_job(other, due_at=END)
        make_job(other, due_at=dt.datetime(1900, 1, 1, tzinfo=dt.UTC))
        make_job(other, key=f"{other}@2026-01-01T09:00:00.000000Z#trigger", kind=Kind.TRIGGER)
    found = jobs_named(Job.objects.all(), name).order_by("-key")
    assert [job.due_at.year for job in found] == [9000, 2026, 1900]
    assert {job.schedule_name for job in found} == {name}


def test_the_page_of_a_broken_row_still_opens(anna: Client) -> None:
    row = make(timezone="Mars/Olympus", interval=None, cron="0 9 * * *")
    assert "Mars/Olympus" in anna.get(page_of(row)).content.decode()
    Schedule.objects.filter(pk=row.pk).update(error=TRACEBACK, next_run_at=None)
    html = anna.get(page_of(row)).content.decode()
    assert escape(TRACEBACK) in html
    assert "it was set aside with an error" in html


def test_the_page_says_who_paused_and_who_triggered(anna: Client) -> None:
    row = make()
    Schedule.objects.pause(by="bob", reason=XSS)
    Schedule.objects.trigger(by="carol")
    html = anna.get(page_of(row)).content.decode()
    assert f"by bob: {escape(XSS)}" in html
    assert "carol" in html
    assert "None while it is paused" in html
    assert 'value="resume"' in html
    assert 'value="pause"' not in html


def test_where_the_clocks_change_is_marked(anna: Client) -> None:
    row = make("paris", interval=None, cron="30 2 * * *", timezone="Europe/Paris")
    Schedule.objects.filter(pk=row.pk).update(next_run_at=dt.datetime(2035, 3, 24, 1, 30, tzinfo=dt.UTC))
    html = anna.get(page_of(row)).content.decode()
    assert html.count("the clocks have gone forward by 1 h") == 1
    assert "2035-03-25 03:00:00 CEST" in html  # the first instant after the gap


def test_the_page_of_a_declared_row_says_where(anna: Client, declared: Schedule) -> None:
    line = functions.add.__code__.co_firstlineno
    assert f"add in tests.functions, line {line}" in anna.get(page_of(declared)).content.decode()
    registry.clear()
    assert "this process does not declare it" in anna.get(page_of(declared)).content.decode()


def test_charts_show_durations_and_lateness(anna: Client) -> None:
    row = make()
    for number in range(100):
        due = JAN + dt.timedelta(minutes=number)
        make_job(
            due_at=due, status=Status.SUCCESSFUL, claims=1, started_at=due + dt.timedelta(seconds=1),
            finished_at=due + dt.timedelta(seconds=3 if number % 10 else 9),
        )  # fmt: skip
    html = anna.get(page_of(row)).content.decode()
    assert "Duration of the last 100 runs: half of the newest within 2.0 s" in html
    assert "Lateness of the last 100 runs: half of the newest within 1.0 s, 95 % within 1.0 s" in html
    assert html.count('class="pgwerk-chart"') == 2


def why(client: Client, row: Schedule) -> dict[str, str]:
    return {finding.text: finding.kind for finding in client.get(page_of(row)).context["pgwerk"]["findings"]}


def test_why_it_did_not_run(anna: Client) -> None:
    row = make(queue="reports", overlap="SKIP")
    found = why(anna, row)
    assert found["No scheduler is alive, so nothing becomes a job: start manage.py runscheduler."] == "bad"
    assert found["No live worker serves the queue reports: its jobs wait."] == "bad"
    Process.objects.create(role="scheduler", host="a")
    Process.objects.create(role="worker", host="a", queues=["reports"])
    found = why(anna, row)
    assert set(found.values()) == {"ok"}
    assert "Nothing is in its way" in anna.get(page_of(row)).content.decode()
    assert found["1 scheduler is alive."] == found["1 worker serves the queue reports."] == "ok"
    make_job(schedule=row, status=Status.RUNNING, queue="reports")
    make_job(due_at=JAN + dt.timedelta(1), status=Status.SKIPPED, reason="overlap: job 7")
    Queue.objects.create(name="reports")
    Queue.objects.pause(by="bob")
    make_job("other", queue="reports")
    Schedule.objects.update(next_run_at=Now() - dt.timedelta(hours=1))
    found = why(anna, row)
    for text, kind in (
        ("The job of 2026-01-01 10:00:00 is not finished", "wait"),
        ("The last due time, 2026-01-02 10:00:00, was skipped: overlap: job 7", "wait"),
        ("The queue reports is paused", "bad"),
        ("1 jobs wait in the queue reports", "wait"),
        ("It has been due for 1 h", "bad"),
    ):
        assert [kind for said in found if said.startswith(text)] == [kind], text
    Schedule.objects.pause(by="bob", reason=XSS)
    Schedule.objects.update(starts_at=END, max_runs=0)
    found = why(anna, row)
    assert [said for said in found if said.endswith(f"by bob: {XSS}")]
    assert [said for said in found if said.startswith("It does not run before 9000")]
    assert found["It has had its 0 runs."] == "bad"


def test_a_schedule_whose_last_run_lies_ahead_says_so(anna: Client) -> None:
    row = make()
    Schedule.objects.update(last_run_at=Now() + dt.timedelta(seconds=5), next_run_at=Now() + dt.timedelta(days=2))
    assert not [said for said in why(anna, row) if "lies ahead" in said]
    Schedule.objects.update(last_run_at=Now() + dt.timedelta(days=1), next_run_at=Now() + dt.timedelta(days=2))
    (kind,) = (
        kind for said, kind in why(anna, row).items() if said.startswith("Its last run, ") and "lies ahead" in said
    )
    assert kind == "bad"


def test_a_trigger_that_no_scheduler_takes_is_why_it_did_not_run(anna: Client) -> None:
    """Also of a paused schedule, whose next run is not due."""
    row = make()
    Schedule.objects.update(paused=True, next_run_at=Now() - dt.timedelta(days=1))
    assert not [said for said in why(anna, row) if said.startswith("It has been due")]
    Schedule.objects.update(triggered_at=Now() - dt.timedelta(hours=1))
    assert [kind for said, kind in why(anna, row).items() if said.startswith("It has been due for 1 h")] == ["bad"]


def test_who_did_what_is_on_the_page(anna: Client) -> None:
    row = make()
    post(anna, "trigger", row, post="yes", reason="the feed is back")
    post(anna, "pause", row, post="yes", reason="stocktaking")
    post(anna, "resume", row, post="yes", reason="all counted")
    entries = [entry.change_message for entry in anna.get(page_of(row)).context["pgwerk"]["audit"]]
    assert entries == ["Resumed: all counted", "Paused: stocktaking", "Triggered: the feed is back"]
    html = anna.get(page_of(row)).content.decode()
    assert "<strong>anna</strong> Triggered: the feed is back" in html


def test_a_double_click_triggers_once(anna: Client) -> None:
    row = make()
    seen = anna.get(page_of(row)).context["pgwerk"]["seen"]
    post(anna, "trigger", row, post="yes", _page="yes", seen=seen)
    Scheduler().tick()  # it was quick
    post(anna, "trigger", row, post="yes", _page="yes", seen=seen)
    assert said(anna.get(page_of(row)))[-1] == "That was done already, a moment ago."
    Scheduler().tick()
    assert Job.objects.count() == LogEntry.objects.count() == 1
    post(anna, "trigger", row, post="yes", _page="yes", seen=anna.get(page_of(row)).context["pgwerk"]["seen"])
    Scheduler().tick()
    assert Job.objects.count() == 2
    post(browser(User.objects.create_superuser("bob")), "trigger", row, post="yes", seen=seen)  # another person
    assert LogEntry.objects.count() == 3


def test_data_is_never_markup(anna: Client) -> None:
    row = make(XSS, args=[XSS], kwargs={XSS: XSS}, description=XSS, queue=XSS, meta={"a": XSS})
    job = make_job(XSS, args=[XSS], reason=XSS, error=TRACEBACK, errors=[{"attempt": XSS, "at": XSS, "error": XSS}, XSS],
                   result=XSS, meta={XSS: 1}, queue=XSS, function=XSS, schedule=row, worker_name=XSS)  # fmt: skip
    process = Process.objects.create(role="worker", host=XSS, version=XSS, queues=[XSS], stats={XSS: 1})
    post(anna, "pause", row, post="yes", reason=XSS)
    for url in (
        LIST, page_of(row), JOBS, f"{JOBS}{job.pk}/change/", f"{JOBS}?schedule={XSS}", PROCESSES,
        f"{PROCESSES}{process.pk}/change/", f"{LIST}{row.pk}/delete/", f"{LIST}{row.pk}/history/",
    ):  # fmt: skip
        response = anna.get(url)
        assert response.status_code == 200
        assert XSS not in response.content.decode(), url
        assert escape(XSS) in response.content.decode(), url
    for action in ("pause", "delete_selected"):
        assert XSS not in post(anna, action, row).content.decode()


def test_no_page_needs_an_inline_script_or_style(anna: Client) -> None:
    row = make()
    job = make_job()
    for url in (LIST, page_of(row), ADD, JOBS, f"{JOBS}{job.pk}/change/"):
        html = anna.get(url).content.decode()
        assert " style=" not in html
        assert " onclick=" not in html
        assert "<script>" not in html
        assert 'href="/static/pgwerk_django/admin.css"' in html
    assert (Path(admin.__file__).parent / "static/admin/css/base.css").exists()
    css = (Path(__file__).parent.parent / "pgwerk_django/static/pgwerk_django/admin.css").read_text()
    assert css.count("{") == css.count("}")


# -- deleting


def test_deleting_cancels_waiting_jobs_and_keeps_history(anna: Client) -> None:
    row = make()
    waiting, done = make_job(schedule=row), make_job(due_at=JAN - dt.timedelta(1), schedule=row, status="SUCCESSFUL")
    url = f"{LIST}{row.pk}/delete/"
    asked = anna.get(url).content.decode()
    assert "hourly" in asked
    assert str(waiting.pk) not in asked
    assert anna.post(url, {"post": "yes"}).status_code == 302
    assert not Schedule.objects.exists()
    assert Job.objects.get(pk=waiting.pk).status == Status.CANCELLED
    assert Job.objects.get(pk=done.pk).status == Status.SUCCESSFUL
    assert [(entry.action_flag, entry.object_repr) for entry in LogEntry.objects.all()] == [(DELETION, "hourly")]


def test_deleting_many_goes_the_same_way(anna: Client) -> None:
    rows = [make(f"s{number}") for number in range(3)]
    waiting = make_job("s0", schedule=rows[0])
    asked = post(anna, "delete_selected", *rows).content.decode()
    assert "s2" in asked
    post(anna, "delete_selected", *rows, post="yes")
    assert not Schedule.objects.exists()
    assert Job.objects.get(pk=waiting.pk).status == Status.CANCELLED


def test_a_deletion_looks_at_no_job_and_needs_no_permission_for_them() -> None:
    client = browser(user("dora", "view_schedule", "delete_schedule"))
    row = make()
    url = f"{LIST}{row.pk}/delete/"
    client.get(url)
    without = queries(client, url)
    for number in range(30):
        make_job(due_at=JAN + dt.timedelta(minutes=number), schedule=row)
    assert queries(client, url) == without
    assert client.post(url, {"post": "yes"}).status_code == 302
    assert not Schedule.objects.exists()


def test_a_deletion_of_hundreds_names_a_hundred(anna: Client) -> None:
    for number in range(103):
        make_job(due_at=JAN + dt.timedelta(minutes=number), status="SUCCESSFUL")
    asked = anna.post(JOBS, {"action": "delete_selected", "_selected_action": [str(Job.objects.first().pk)],
                             "select_across": "1"}).content.decode()  # fmt: skip
    assert "and 3 more" in asked
    assert "Jobs: 103" in asked


# -- jobs


def test_the_list_of_jobs(anna: Client) -> None:
    row = make()
    make_job(schedule=row, status=Status.SUCCESSFUL, started_at=JAN + dt.timedelta(seconds=2),
             finished_at=JAN + dt.timedelta(seconds=200), attempt=1, max_attempts=3, claims=1)  # fmt: skip
    make_job(due_at=JAN + dt.timedelta(1), status=Status.SKIPPED, reason="overlap: it is running", kind=Kind.TRIGGER)
    Job.objects.create(function="shop.tasks.adhoc", queue="imports")
    make_job(due_at=JAN + dt.timedelta(2), status=Status.RUNNING, started_at=JAN + dt.timedelta(2))
    html = anna.get(JOBS).content.decode()
    for text in ("so far", "hourly", "Successful", "2026-01-01 10:00:00", "2.0 s", "3 min 18 s", "1 / 3", "Skipped", "trigger",
                 "overlap: it is running", "shop.tasks.adhoc", "ad hoc", "imports"):  # fmt: skip
        assert text in html, text


def test_the_newest_job_comes_first(anna: Client) -> None:
    for number in range(3):
        make_job(due_at=JAN + dt.timedelta(number))
        with connection.cursor() as cursor:  # a UUIDv7 is ordered from one millisecond to the next
            cursor.execute("SELECT pg_sleep(0.002)")
    shown = anna.get(JOBS).context["cl"].result_list
    assert [job.due_at.day for job in shown] == [3, 2, 1]


def test_jobs_are_filtered_and_searched(anna: Client) -> None:
    make("reports", queue="reports")
    job = make_job("a", status=Status.FAILED, queue="reports")
    make_job("ab", kind=Kind.TRIGGER)
    names = lambda **query: {job.schedule_name for job in anna.get(JOBS, query).context["cl"].result_list}  # noqa: E731
    assert names(status__exact="FAILED") == {"a"}
    assert names(kind__exact="trigger") == {"ab"}
    assert names(queue="reports") == {"a"}
    assert names(schedule="a") == {"a"}
    assert names(schedule="nothing") == set()
    assert names(q="b") == {"ab"}
    assert names(q=str(job.pk)) == {"a"}
    assert names(q="shop.run") == {"a", "ab"}
    assert "By schedule" not in anna.get(JOBS).content.decode()


def test_a_part_of_a_word_is_looked_for_among_the_newest_jobs(anna: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    make("hourly")
    monkeypatch.setattr("pgwerk_django.admin.jobs.MOST_SEARCHED", 1)
    make_job(due_at=JAN)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(0.002)")
    make_job(due_at=JAN + dt.timedelta(1))
    days = lambda q: [job.due_at.day for job in anna.get(JOBS, {"q": q}).context["cl"].result_list]  # noqa: E731
    assert days("hour") == [2]
    assert days("hourly") == [2, 1]  # a schedule's whole name leads to all of its jobs


def test_no_filter_asks_all_jobs_for_their_values(anna: Client) -> None:
    make_job()
    with CaptureQueriesContext(connection) as captured:
        anna.get(JOBS)
    assert not [q for q in captured.captured_queries if "DISTINCT" in q["sql"] and "_pgwerk_jobs" in q["sql"]]


def test_the_page_of_a_job_tells_all(anna: Client) -> None:
    row = make()
    job = make_job(
        schedule=row, status=Status.FAILED, error=TRACEBACK, args=["Acme"], kwargs={"n": 3}, meta={"tenant": "t1"},
        errors=[{"attempt": 1, "at": "2026-01-01T09:00:00+00:00", "error": "TimeoutError"}], reason="worker lost",
    )  # fmt: skip
    html = anna.get(f"{JOBS}{job.pk}/change/").content.decode()
    for text in (
        escape(TRACEBACK),
        "Acme",
        "tenant",
        "TimeoutError",
        "Attempt 1",
        "2026-01-01 10:00:00",
        "worker lost",
    ):
        assert text in html, text
    assert f'href="{page_of(row)}"' in html
    assert '<pre class="pgwerk-pre"' in html
    assert "Progress" not in html  # it has none
    row.delete()
    assert f'href="{page_of(row)}"' not in anna.get(f"{JOBS}{job.pk}/change/").content.decode()


def test_huge_values_are_cut(anna: Client) -> None:
    text = "first" + "x" * 50_000 + "last"
    job = make_job(result=text, error=text)
    html = anna.get(f"{JOBS}{job.pk}/change/").content.decode()
    assert len(html) < 60_000
    assert "Only the first 10000 of 50011 characters are shown." in html
    assert "Only the last 10000 of 50009 characters are shown." in html
    assert "xlast</pre>" in html  # a traceback ends with what happened
    for name, whole in (("result", json.dumps(text)), ("error", text)):
        assert f'href="../value/{name}/"' in html
        response = anna.get(f"{JOBS}{job.pk}/value/{name}/")
        assert (response.content.decode(), response["X-Content-Type-Options"]) == (whole, "nosniff")
        assert response["Content-Type"].startswith("text/plain")


def test_all_of_a_value_is_for_those_who_may_see_the_row(anna: Client) -> None:
    job, row = make_job(kwargs={"token": "s3cr3t"}, error="x"), make(kwargs={"token": "s3cr3t"})
    client = browser(user("paula", "view_schedule"))
    assert client.get(f"{JOBS}{job.pk}/value/error/").status_code == 403
    assert client.get(f"{LIST}{row.pk}/value/kwargs/").status_code == 200
    for url in (f"{JOBS}{job.pk}/value/key/", f"{JOBS}nonsense/value/error/", f"{LIST}{row.pk + 1}/value/args/"):
        assert anna.get(url).status_code == 404
    for url in (f"{JOBS}{job.pk}/value/kwargs/", f"{LIST}{row.pk}/value/kwargs/"):
        assert "s3cr3t" not in anna.get(url).content.decode()


# -- secrets


def test_secrets_are_stars(anna: Client) -> None:
    secrets = {
        "args": ["s3cr3t-1"],
        "kwargs": {"api_key": "s3cr3t-2", "to": [{"Password": "s3cr3t-3", "name": "Acme"}]},
        "meta": {"token": {"deep": "s3cr3t-4"}},
        "function": "tests.functions.log_in",
    }
    row = make(origin=Origin.CODE, **secrets)
    job = make_job(**secrets, result={"secret": "s3cr3t-5", "n": 7})
    for url in (page_of(row), f"{JOBS}{job.pk}/change/"):
        html = anna.get(url).content.decode()
        assert "s3cr3t" not in html
        assert html.count(STARS) >= 4
        assert "Acme" in html
    assert anna.get(f"{JOBS}{job.pk}/change/").content.decode().count(STARS) == 5


def test_what_is_secret_is_a_setting(anna: Client, settings: Any) -> None:
    settings.PGWERK = {"AUTODISCOVER": (), "MASK": ["^iban$"]}
    row = make(origin=Origin.CODE, kwargs={"iban": "DE02", "ibans": "many", "password": "told"})
    html = anna.get(page_of(row)).content.decode()
    assert "DE02" not in html
    assert "many" in html
    assert "told" in html
    settings.PGWERK = {"AUTODISCOVER": (), "MASK": []}
    assert "DE02" in anna.get(page_of(row)).content.decode()


@pytest.mark.usefixtures("allowed")
def test_stars_that_come_back_mean_what_they_stood_for(anna: Client) -> None:
    row = make(
        "mine", args=["hunter2"], kwargs={"user": "ada"}, function="tests.functions.log_in", timezone="Europe/Paris"
    )
    html = anna.get(page_of(row)).content.decode()
    assert "hunter2" not in html
    assert STARS in html
    sent = {"function": row.function, "interval": "90", "args": f'["{STARS}"]', "kwargs": '{"user": "bob"}'}
    assert anna.post(page_of(row), form(**sent)).status_code == 302
    row = reread(row)
    assert (row.args, row.kwargs, row.interval) == (["hunter2"], {"user": "bob"}, 90)
    refused = anna.post(page_of(row), form(**{**sent, "args": f'["{STARS}", 2, 3]'}))
    assert list(errors(refused)) == ["args"]
    assert "hunter2" not in refused.content.decode()
    assert anna.post(page_of(row), form(**{**sent, "args": '["new"]'})).status_code == 302
    assert reread(row).args == ["new"]


# -- progress


@pytest.mark.parametrize(
    ("progress", "told"),
    [
        ({"done": 3, "total": 12, "note": XSS}, ['<progress value="0.2500" max="1"', "3 / 12", escape(XSS)]),
        ({"done": 3, "total": None, "note": ""}, [">3</span>", " 3"]),
        ({"done": 30, "total": 12}, ['<progress value="1.0000"']),
        ({"done": 1, "total": 0}, ["1 / 0"]),
        ({"done": "x"}, ["pgwerk-progress"]),
        ([1, 2], ["pgwerk-pre"]),
    ],
)
def test_progress(anna: Client, progress: Any, told: list[str]) -> None:
    job = make_job(status=Status.RUNNING, started_at=JAN, progress=progress)
    for url in (JOBS, f"{JOBS}{job.pk}/change/"):
        html = anna.get(url).content.decode()
        assert any(text in html for text in told), url
        assert XSS not in html


# -- the preview of the form


def previewed(client: Client, **fields: Any) -> str:
    response = client.get(f"{LIST}preview/", {"timezone": "UTC", **fields})
    assert response.status_code == 200
    return response.content.decode()


def test_the_preview_says_what_it_would_be(anna: Client) -> None:
    html = previewed(anna, cron="0 9 * * mon-fri", timezone="Europe/Paris")
    assert "At 09:00 on weekdays" in html
    assert html.count("<li>") == 5
    assert "09:00:00 CE" in html
    assert "Every 5 minutes" in previewed(anna, interval="300")
    assert previewed(anna).strip() == ""
    assert "2035-01-01 09:00:00 CET" in previewed(
        anna, next_run_at_0="2035-01-01", next_run_at_1="09:00", timezone="Europe/Paris"
    )


@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        ({"interval": "59"}, "more often than each minute"),
        ({"cron": "0 9 1 * mon"}, "on days that match either"),
        ({"cron": "0 9 */2 * mon"}, "only on days that match both"),
        ({"cron": "30 2 * * *", "timezone": "Europe/Paris"}, "the clocks skip 02:30: it runs at 03:00 instead"),
        ({"cron": "*/15 2 * * *", "timezone": "Europe/Paris"}, "the clocks skip 02:00: it has no run then"),
        ({"cron": "0 9 * * *", "ends_at_0": "2001-01-01", "ends_at_1": "00:00"}, "It never runs"),
    ],
)
def test_the_preview_warns(anna: Client, fields: dict[str, str], warning: str) -> None:
    assert warning in previewed(anna, **fields)


@pytest.mark.parametrize("cron", ["0 9 * * *", "*/15 * * * mon", "30 2 * * *"])
def test_the_preview_warns_of_nothing_else(anna: Client, cron: str) -> None:
    assert "pgwerk-finding-wait" not in previewed(anna, cron=cron)  # UTC has no gaps


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"cron": "61 * * * *"}, "61"),
        ({"cron": XSS}, "cron"),
        ({"cron": "0 9 * * *", "interval": "60"}, "exactly one"),
        ({"interval": "x"}, "whole number"),
        ({"interval": "0"}, "interval"),
        ({"interval": "60", "timezone": "Mars/Olympus"}, "Mars/Olympus"),
        ({"interval": "60", "starts_at_0": "soon"}, "valid date"),
    ],
)
def test_the_preview_explains_bad_input(anna: Client, fields: dict[str, str], named: str) -> None:
    html = previewed(anna, **fields)
    assert named in html
    assert "errorlist" in html
    assert XSS not in html


def test_the_preview_of_an_interval_keeps_the_rows_grid(anna: Client) -> None:
    row = make(timezone="UTC")
    Schedule.objects.update(anchor_at=JAN + dt.timedelta(minutes=7))
    assert ":07:00 UTC" in previewed(anna, row=row.pk, interval="3600")


@pytest.mark.usefixtures("allowed")
def test_the_preview_shows_how_the_function_is_called(anna: Client) -> None:
    assert "add(a: int, b: int = 0) -&gt; int" in previewed(anna, function="tests.functions.add")
    assert previewed(anna, function="os.system").strip() == ""
    assert previewed(anna, function="tests.functions.missing").strip() == ""


def test_the_preview_is_for_those_who_may_write(viewer: Client, anna: Client, declared: Schedule) -> None:
    assert viewer.get(f"{LIST}preview/", {"cron": "0 9 * * *"}).status_code == 403
    assert anna.get(f"{LIST}preview/", {"cron": "0 9 * * *", "row": declared.pk}).status_code == 403
    assert "pgwerk-preview" not in viewer.get(page_of(declared)).content.decode()


def test_a_form_that_was_refused_shows_the_preview_without_javascript(anna: Client) -> None:
    html = anna.post(ADD, form(cron="30 2 * * *", function="os.system")).content.decode()
    assert "At 02:30 every day" in html
    assert "the clocks skip 02:30" in html


@pytest.mark.usefixtures("allowed")
def test_what_a_pattern_admits_is_suggested(anna: Client) -> None:
    html = anna.get(ADD).content.decode()
    assert '<option value="tests.functions.add">' in html
    assert "tests.functions.current_job" not in html  # at home elsewhere
    assert "os.system" not in html


def test_jobs_and_processes_are_never_written(anna: Client) -> None:
    job, process = make_job(), Process.objects.create(role="worker", host="h")
    for url in (f"{JOBS}add/", f"{PROCESSES}add/"):
        assert anna.get(url).status_code == 403
        assert anna.post(url, {}).status_code == 403
    for url in (f"{JOBS}{job.pk}/change/", f"{PROCESSES}{process.pk}/change/"):
        assert 'name="_save"' not in anna.get(url).content.decode()
        assert anna.post(url, {"status": "READY", "role": "x"}).status_code == 403
    assert anna.post(f"{PROCESSES}{process.pk}/delete/", {"post": "yes"}).status_code == 403


def test_a_job_is_deleted_by_who_may(anna: Client, viewer: Client) -> None:
    job = make_job(status="SUCCESSFUL")
    url = f"{JOBS}{job.pk}/delete/"
    assert viewer.post(url, {"post": "yes"}).status_code == 403
    assert viewer.get(JOBS).status_code == 200
    assert anna.post(url, {"post": "yes"}).status_code == 302
    assert not Job.objects.exists()


# -- processes


def test_processes_are_alive_or_silent(anna: Client) -> None:
    Process.objects.create(role="scheduler", host="web-1", pid=1, version="1.2.3", last_tick_at=JAN)
    silent = Process.objects.create(role="worker", host="web-2", pid=2, queues=["a", "b"], stats={"jobs": 7})
    Process.objects.filter(pk=silent.pk).update(heartbeat_at=Now() - dt.timedelta(seconds=31))
    html = anna.get(PROCESSES).content.decode()
    for text in ("web-1:1", "1.2.3", "Alive", "Silent", "a, b", "31 s ago"):
        assert text in html, text
    assert "&quot;jobs&quot;: 7" in anna.get(f"{PROCESSES}{silent.pk}/change/").content.decode()


# -- where it stands


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.12, "120 ms"),
        (1, "1.0 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (90_061, "1 d 1 h"),
    ],
)
def test_spans_have_two_units_at_most(seconds: float, text: str) -> None:
    assert span(dt.timedelta(seconds=seconds)) == text


@pytest.mark.urls("tests.test_admin")
def test_a_custom_site_keeps_people_on_it(anna: Client) -> None:
    row = make()
    make_job(schedule=row)
    url = reverse("second:pgwerk_django_schedule_changelist")
    response = post(anna, "trigger", row, url=url, _page="yes")
    assert response["Location"] == f"/second/pgwerk_django/schedule/{row.pk}/change/"
    html = anna.get(response["Location"]).content.decode()
    assert f'action="{url}"' in html
    assert 'href="/admin/' not in html  # jobs are not registered there
    asked = post(anna, "pause", row, url=url)
    assert 'href="/admin/' not in asked.content.decode()
    assert post(anna, "pause", row, url=url, post="yes").status_code == 302
    assert reread(row).paused_by == "anna"


@pytest.mark.process
def test_the_admin_is_the_only_one_who_needs_it() -> None:
    """Without `django.contrib.admin` in INSTALLED_APPS all the rest is imported, and this module is not."""
    program = (
        "import sys, django; from django.conf import settings;"
        "settings.configure(INSTALLED_APPS=['pgwerk_django'], USE_TZ=True, PGWERK={'AUTODISCOVER': ()},"
        " DATABASES={'default': {'ENGINE': 'django.db.backends.postgresql'}});"
        "django.setup(); import pgwerk_django.scheduler, pgwerk_django.worker, pgwerk_django.checks;"
        "assert 'pgwerk_django.admin' not in sys.modules and 'django.contrib.admin' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, cwd=Path(__file__).parent.parent)


def test_everything_happens_on_the_configured_database(elsewhere: str) -> None:
    anna = browser(User.objects.create_superuser("anna"))
    with CaptureQueriesContext(connections["default"]) as captured:
        assert anna.post(ADD, form(interval="60")).status_code == 302
        assert list(errors(anna.post(ADD, form(interval="60")))) == ["name"]
        row = Schedule.objects.using(elsewhere).get()
        Job.objects.using(elsewhere).create(schedule_name="mine", key="mine@2026-01-01T09:00:00.000000Z", due_at=JAN)
        anna.post(page_of(row), form(interval="90"))
        post(anna, "pause", row, post="yes")
        post(anna, "resume", row)
        post(anna, "trigger", row)
        for url in (LIST, f"{LIST}?state=LATE", page_of(row), JOBS, PROCESSES):
            assert anna.get(url).status_code == 200
        job = Job.objects.using(elsewhere).get()
        assert anna.get(f"{JOBS}{job.pk}/change/").status_code == 200
        post(anna, "delete_selected", row, post="yes")
    assert not [query["sql"] for query in captured.captured_queries if "_pgwerk" in query["sql"]]
    assert not Schedule.objects.using(elsewhere).exists()
    assert LogEntry.objects.count() == 6


def test_the_log_and_the_change_stand_or_fall_together(anna: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    row = make()

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no log")

    monkeypatch.setattr(type(LogEntry.objects), "log_actions", fail)
    with pytest.raises(RuntimeError, match="no log"):
        post(anna, "trigger", row)
    assert reread(row).triggered_at is None


def test_the_admins_pass_djangos_own_checks() -> None:
    for model, model_admin in ((Schedule, ScheduleAdmin), (Job, JobAdmin), (Process, ProcessAdmin)):
        assert model_admin(model, admin.site).check() == []


def test_payloads_survive_a_round_trip_through_the_form(anna: Client, allowed: None) -> None:
    row = make("mine", args=[1.5, "ü\n\"'<&", None, {"b": [], "a": 1}], function="tests.functions.remember")
    initial = anna.get(page_of(row)).context["adminform"].form
    sent = form(
        function=row.function, interval="3600", timezone=row.timezone, args=initial["args"].value(), kwargs="{}"
    )
    assert json.loads(sent["args"]) == row.args
    assert anna.post(page_of(row), sent).status_code == 302
    assert reread(row).args == row.args
    request = RequestFactory().get("/")
    assert ScheduleAdmin(Schedule, admin.site).get_queryset(request).ordered


@pytest.mark.parametrize(
    ("function", "target", "becomes"),
    [
        ("tests.functions.add", "", "worker"),
        ("tests.celery_app.remember", "", "celery"),
        ("tests.django_tasks.database", "", "django_tasks"),
        ("elsewhere.task", "celery", "celery"),  # known to Celery's workers only
    ],
)
def test_without_a_target_the_function_decides(
    anna: Client, settings: Any, function: str, target: str, becomes: str
) -> None:
    settings.PGWERK = {"ALLOWED_FUNCTIONS": ["tests.*", "elsewhere.*"]}
    response = anna.post(f"{LIST}add/", form(function=function, target=target, interval="60"))
    assert response.status_code == 302, errors(response)
    assert Schedule.objects.get().target == becomes


def test_the_form_leaves_the_target_to_the_function(anna: Client) -> None:
    assert 'name="target" value="worker"' not in anna.get(f"{LIST}add/").content.decode()
