"""With `USE_THOUSAND_SEPARATOR`, numbers that machines read stay plain: in forms, links, `data-` attributes and drawings."""

import datetime as dt
import json
import re
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.utils import formats, translation

from pgwerk_django.models import Job, Process, Queue, Schedule, Status
from tests.test_admin import JOBS, LIST, browser, make, make_job
from tests.test_admin_lookups import OVERVIEW, QUEUES

pytestmark = pytest.mark.django_db
FIRST = 1_234_567
WORDS = {"title", "aria-label", "alt", "placeholder", "content"}  # attributes that people read
DRAWN = {"x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "width", "height", "value", "max"}
NUMBER = re.compile(r"-?\d+(\.\d+)?")


class Page(HTMLParser):
    """The attributes of a page, and its forms as a browser would send them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.forms: list[dict[str, str]] = []
        self._area = self._select = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.attributes += [(tag, name, value) for name, value in given.items()]
        name = given.get("name", "")
        if tag == "form":
            self.forms.append({"": given.get("action", "")})
        elif not self.forms or not (name or tag == "option"):
            return
        elif tag == "textarea":
            self._area = name
        elif tag == "select":
            self._select = name
        elif tag == "option" and "selected" in given:
            self.forms[-1][self._select] = given["value"]
        elif tag == "input" and given.get("type") in ("checkbox", "submit"):
            return
        elif tag in ("input", "button"):
            self.forms[-1][name] = given.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea":
            self._area = ""

    def handle_data(self, data: str) -> None:
        if self._area:
            self.forms[-1][self._area] = self.forms[-1].get(self._area, "") + data.lstrip("\r\n")


@pytest.fixture(params=["de", "en", "fr"])
def anna(settings: Any, request: Any) -> Client:
    """In a language that writes 1.234.567, 1,234,567 or 1 234 567."""
    settings.USE_THOUSAND_SEPARATOR, settings.LANGUAGE_CODE = True, request.param
    settings.PGWERK = {"AUTODISCOVER": (), "ALLOWED_FUNCTIONS": ["tests.functions.*"]}
    with connection.cursor() as cursor:
        for model in (Schedule, Queue, Process, LogEntry, User):
            cursor.execute("SELECT setval(pg_get_serial_sequence(%s, 'id'), %s)", [model._meta.db_table, FIRST])
    return browser(User.objects.create_superuser("anna"))


@pytest.fixture
def row(anna: Client) -> Schedule:
    """With as many jobs as charts are drawn of, and large numbers in each column."""
    found = make(
        "large", interval=7_654_321, max_runs=2_000_000, misfire_grace=1_500_000, priority=1_000_000, timeout=3_000_000,
        result_ttl=4_000_000, failure_ttl=5_000_000, max_attempts=12_000, kwargs={"b": 9_000_000}, jitter=100_000,
    )  # fmt: skip
    now = dt.datetime.now(dt.UTC)
    Job.objects.bulk_create(
        Job(
            key=f"large@{number}", schedule=found, schedule_name="large", kind="scheduled", function="tests.functions.add",
            due_at=now - dt.timedelta(minutes=number), status=[Status.SUCCESSFUL, Status.FAILED][number % 2],
            started_at=now - dt.timedelta(minutes=number), enqueued_at=now - dt.timedelta(minutes=number),
            finished_at=now - dt.timedelta(minutes=number) + dt.timedelta(seconds=1234.5 * (number % 7)),
        ) for number in range(60)
    )  # fmt: skip
    make_job("large", status=Status.RUNNING, progress={"done": 1_234_567, "total": 7_654_321}, started_at=now, claims=1)
    Process.objects.create(role="worker", host="web-1", pid=4_194_303, stats={"clock": 1})
    Queue.objects.create(name="mail")
    anna.post(LIST, {"action": "trigger", "_selected_action": found.pk, "_page": "yes"})  # a log entry
    return found


def page(client: Client, url: str, **data: Any) -> Page:
    answer = client.post(url, data) if data else client.get(url)
    assert answer.status_code == 200, url
    return Page(answer.content.decode())


def test_numbers_for_machines_are_plain(anna: Client, row: Schedule, settings: Any) -> None:
    job, queue, process = (
        Job.objects.filter(status="RUNNING").get(),
        Queue.objects.get(name="mail"),
        Process.objects.get(),
    )
    numbers = {
        row.pk,
        queue.pk,
        process.pk,
        LogEntry.objects.latest("pk").pk,
        row.interval,
        row.max_runs,
        row.priority,
        1_234_567,
        12_000,
    }
    with translation.override(settings.LANGUAGE_CODE):
        texts = {formats.number_format(number, use_l10n=True, force_grouping=True) for number in numbers if number}
    assert not any(text.isdecimal() for text in texts)
    schedule = f"{LIST}{row.pk}"
    pages = {
        url: page(anna, url)
        for url in (
            OVERVIEW, f"{OVERVIEW}?span=7d", LIST, f"{LIST}?_popup=1", f"{schedule}/change/", f"{schedule}/history/", f"{schedule}/delete/",
            f"{LIST}add/", JOBS, f"{JOBS}?schedule=large", f"{JOBS}{job.pk}/change/", QUEUES, f"{QUEUES}{queue.pk}/change/",
            "/admin/pgwerk_django/process/", f"/admin/pgwerk_django/process/{process.pk}/change/",
        )
    }  # fmt: skip
    pages["asked"] = page(anna, LIST, action="pause", _selected_action=row.pk)
    pages["asked of all"] = page(anna, JOBS, action="cancel", _selected_action=job.pk, select_across="1")
    pages["refused"] = page(
        anna, f"{schedule}/change/", **{**pages[f"{schedule}/change/"].forms[-1], "cron": "61 * * * *"}
    )
    for url, found in pages.items():
        assert len(found.attributes) > 50, url
        for tag, name, value in found.attributes:
            if name not in WORDS:
                assert not any(text in value for text in texts), (url, tag, name, value)
            if name in DRAWN and tag in ("rect", "circle", "line", "text", "progress"):
                assert NUMBER.fullmatch(value), (url, tag, name, value)
            if name in ("points", "viewbox"):
                assert all(NUMBER.fullmatch(number) for number in re.split(r"[ ,]", value)), (url, tag, name, value)


def test_the_forms_work(anna: Client, row: Schedule) -> None:
    """As a browser sends them: the buttons of a row's page, the question after an action, the form of a schedule."""
    change = f"{LIST}{row.pk}/change/"

    def sent(found: Page, action: str, **more: str) -> Any:
        (fields,) = [fields for fields in found.forms if fields.get("action") == action]
        return anna.post(fields[""] or LIST, {**fields, **more}, follow=True)

    asked = page(anna, change)
    assert sent(asked, "pause", reason="stocktaking").status_code == 200
    assert Schedule.objects.get(pk=row.pk).pause_reason == "stocktaking"
    entries = LogEntry.objects.count()
    assert sent(page(anna, change), "resume").status_code == 200
    assert not Schedule.objects.get(pk=row.pk).paused
    before = page(anna, change)
    assert sent(before, "trigger").status_code == 200
    assert sent(before, "trigger").status_code == 200  # clicked twice: done once
    assert LogEntry.objects.count() == entries + 2
    assert sent(page(anna, LIST, action="pause", _selected_action=row.pk), "pause").status_code == 200
    assert Schedule.objects.get(pk=row.pk).paused
    queue = Queue.objects.get(name="mail")
    answer = sent(page(anna, f"{QUEUES}{queue.pk}/change/"), "pause")
    assert urlsplit(answer.redirect_chain[-1][0]).path == f"{QUEUES}{queue.pk}/change/"
    assert Queue.objects.get(pk=queue.pk).paused
    (fields,) = [fields for fields in page(anna, change).forms if "interval" in fields]
    assert anna.post(change, fields).status_code == 302
    after = Schedule.objects.get(pk=row.pk)
    for column in (
        "interval",
        "max_runs",
        "misfire_grace",
        "priority",
        "timeout",
        "result_ttl",
        "max_attempts",
        "kwargs",
        "jitter",
    ):
        assert getattr(after, column) == getattr(row, column), column
    assert json.dumps(after.kwargs) == '{"b": 9000000}'
