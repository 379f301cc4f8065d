"""The admin among hostile rows and with hostile input: every page is there, nothing on it is markup but ours, mistakes are told at their field."""

import datetime as dt
import html
import itertools
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.admin.utils import quote as admin_quote
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgwerk_django.models import Job, Process, Queue, Schedule
from pgwerk_django.scheduler import Scheduler
from tests import functions
from tests.hostile import FORMAT, IMAGE, SCRIPT, TEXTS, some
from tests.test_hostile_rows import BOMBS, rows  # noqa: F401  a fixture

BASE = "/admin/pgwerk_django"
PLANTED = f"{SCRIPT}{IMAGE}{FORMAT}"


@pytest.fixture
def anna(db: None, settings: Any) -> Client:
    settings.PGWERK = {"AUTODISCOVER": (), "ALLOWED_FUNCTIONS": ["tests.functions.*"]}
    client = Client()
    client.force_login(User.objects.create_superuser(IMAGE[:150]))
    return client


class Elements(HTMLParser):
    """What a browser makes of a page: elements and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        # Django's own pages have icons.
        if given.get("src") == "x" or any(name.startswith("on") for name in given):
            self.found.append(f"<{tag} {attributes}>")
        if tag == "a" and any((value or "").lower().startswith("javascript:") for _, value in attributes):
            self.found.append(f"<{tag} {attributes}>")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and "planted" in data:
            self.found.append(f"<script>{data}")


def check(response: Any) -> str:
    """The page, in which nothing planted has become markup."""
    text = str(response.content.decode())
    elements = Elements()
    elements.feed(text)
    assert elements.found == [], elements.found
    assert "<script>alert" not in text
    assert "onerror=alert(1)>" not in text
    return text


@pytest.fixture
def planted(anna: Client) -> dict[Any, Any]:
    """Every column of text, and everything in JSON, holds it."""
    name = PLANTED[:200]
    with connection.cursor() as cursor:
        pks = {}
        for model, columns in {
            Schedule: {"interval": 3600}, Job: {}, Queue: {}, Process: {},
        }.items():  # fmt: skip
            for field in model._meta.concrete_fields:
                kind = field.get_internal_type()
                if kind in ("CharField", "TextField") and field.name not in ("cron", "status", "overlap", "misfire"):
                    columns[field.column] = PLANTED[: field.max_length] if field.max_length else PLANTED
                elif kind == "JSONField" and field.name != "stats":
                    columns[field.column] = json.dumps(
                        [{"attempt": PLANTED, "at": PLANTED, "error": PLANTED}] if field.name in ("errors", "queues", "args")
                        else {PLANTED: PLANTED, "done": 10**400, "total": 1, "note": PLANTED}
                    )  # fmt: skip
            columns |= {"name": name} if model in (Schedule, Queue) else {}
            if model is Schedule:
                columns |= {"timezone": "UTC", "error": "", "function": "tests.functions.noop"}
            if model is Job:
                columns |= {
                    "schedule_name": name, "key": f"{name}@2026-01-01T09:00:00.000000Z", "due_at": "2026-01-01T09:00:00Z",
                    "status": "FAILED", "schedule_id": pks[Schedule], "started_at": "2026-01-01T09:00:00Z",
                    "finished_at": "2026-01-01T09:00:01Z",
                }  # fmt: skip
            if model is Queue:
                columns |= {"paused": True, "paused_at": "2026-01-01T09:00:00Z"}
            names = ", ".join(columns)
            places = ", ".join(["%s"] * len(columns))
            cursor.execute(
                f"INSERT INTO {model._meta.db_table} ({names}) VALUES ({places}) RETURNING id", [*columns.values()]
            )
            pks[model] = cursor.fetchone()[0]
        cursor.execute(
            "INSERT INTO _pgwerk_schedules (name, function, cron, error, next_run_at, timezone, origin)"
            " VALUES ('set aside', %s, %s, %s, NULL, %s, 'admin')",
            [PLANTED, PLANTED[:200], PLANTED, PLANTED[:100]],
        )
        cursor.execute(
            "UPDATE _pgwerk_schedules SET error = %s, next_run_at = NULL WHERE name = 'set aside'", [PLANTED]
        )
        cursor.execute(
            "INSERT INTO _pgwerk_jobs (function, target, status, error, attempt, queue) VALUES ('f', %s, 'READY', %s, 2, %s)",
            [PLANTED[:50], PLANTED, PLANTED[:100]],
        )
        cursor.execute(
            "INSERT INTO _pgwerk_jobs (key, function, status, progress, schedule_name, due_at, kind, reason, queue)"
            " VALUES (%s, 'f', 'RUNNING', %s, %s, now(), 'trigger', %s, %s)",
            [f"{name}@2026-01-01T10:00:00.000000Z#trigger", json.dumps({"done": 10**400, "total": 3, "note": PLANTED}),
             name, PLANTED, PLANTED[:100]],
        )  # fmt: skip
        cursor.execute("UPDATE _pgwerk_processes SET stats = '{\"clock\": 1e308}', role = 'worker'")
    user = User.objects.get()
    for model, pk in pks.items():
        row = model.objects.get(pk=pk)
        LogEntry.objects.log_actions(user.pk, [row], 2, PLANTED)
    return pks


def pages(pks: dict[Any, Any]) -> Iterator[str]:
    yield "/admin/"
    yield f"{BASE}/"
    for span in ("", "?span=1h", "?span=7d", f"?span={quote(PLANTED)}"):
        yield f"{BASE}/overview/{span}"
    for model, pk in pks.items():
        place = f"{BASE}/{model._meta.model_name}"
        yield f"{place}/"
        yield f"{place}/{admin_quote(pk)}/change/"
        yield f"{place}/{admin_quote(pk)}/history/"
        if model in (Schedule, Job):
            yield f"{place}/{admin_quote(pk)}/delete/"
            yield f"{place}/?q={quote(PLANTED)}"
    for pk in Schedule.objects.values_list("pk", flat=True):
        yield f"{BASE}/schedule/{pk}/change/"
    for pk in Job.objects.values_list("pk", flat=True):
        yield f"{BASE}/job/{admin_quote(pk)}/change/"
    for column in ("args", "kwargs", "meta", "error"):
        yield f"{BASE}/schedule/{pks[Schedule]}/value/{column}/"
    for column in ("args", "kwargs", "meta", "result", "error", "errors"):
        yield f"{BASE}/job/{admin_quote(pks[Job])}/value/{column}/"
    yield f"{BASE}/schedule/add/"
    yield f"{BASE}/queue/add/"
    yield f"{BASE}/job/?schedule={quote(PLANTED[:200])}"
    yield f"{BASE}/job/?queue={quote(PLANTED[:100])}"
    yield f"{BASE}/schedule/?queue={quote(PLANTED[:100])}"
    yield f"{BASE}/schedule/preview/?{urlencode({'cron': PLANTED, 'timezone': PLANTED, 'function': PLANTED})}"
    yield f"{BASE}/schedule/preview/?{urlencode({'interval': PLANTED, 'starts_at_0': PLANTED, 'starts_at_1': PLANTED})}"


@pytest.mark.parametrize("language", ["en", "de", "fr"])
def test_nothing_planted_becomes_markup(anna: Client, planted: Any, language: str, settings: Any) -> None:
    settings.LANGUAGE_CODE = language
    seen = ""
    for page in pages(planted):
        response = anna.get(page)
        assert response.status_code == 200, page
        if response["Content-Type"].startswith("text/plain"):
            assert response["X-Content-Type-Options"] == "nosniff"
        else:
            seen += check(response)
    assert seen.count(html.escape(SCRIPT)) > 50  # it was really there


def test_nothing_planted_becomes_markup_in_what_actions_say(anna: Client, planted: Any) -> None:
    for place, pk, actions in (
        ("schedule", planted[Schedule], ("pause", "resume", "trigger", "delete_selected")),
        ("job", planted[Job], ("retry", "cancel", "delete_selected")),
        ("queue", planted[Queue], ("resume", "pause")),
    ):
        for action in actions:
            given = {"action": action, "_selected_action": pk, "reason": PLANTED, "seen": PLANTED}
            check(anna.post(f"{BASE}/{place}/", given, follow=True))
            check(anna.post(f"{BASE}/{place}/", {**given, "post": "yes"}, follow=True))
    given = {**fields(), "name": "planted", "description": PLANTED, "kwargs": json.dumps({PLANTED: 1})}
    for name in fields():
        check(anna.post(f"{BASE}/schedule/add/", {**given, name: PLANTED}, follow=True))
    check(anna.post(f"{BASE}/queue/add/", {"name": IMAGE}, follow=True))


# -- rows that make no sense -----------------------------------------------------------------------------------------------


def test_every_page_shows_rows_that_nobody_can_run(anna: Client, rows: list[str]) -> None:  # noqa: F811
    with connection.cursor() as cursor:
        columns = ("args", "kwargs", "meta", "result", "progress", "errors", "backoff")
        for bomb in [*BOMBS.values(), '{"done": 1e5000}', '{"done": 1, "total": 1e400}', "[1, null, {}]", '"x"', "7"]:
            cursor.execute(
                f"INSERT INTO _pgwerk_jobs (status, {', '.join(columns)}) VALUES ('RUNNING'{', %s' * len(columns)})",
                [bomb] * len(columns),
            )
        clocks = ('{"clock": 1e308}', '{"clock": -1e15}', '{"clock": 1e5000}', '{"clock": "x"}')
        queues = itertools.cycle((*BOMBS.values(), "[null, [1]]"))
        for stats in (*BOMBS.values(), *clocks):
            cursor.execute(
                "INSERT INTO _pgwerk_processes (role, queues, stats) VALUES ('worker', %s, %s)", [next(queues), stats]
            )
    for place in ("overview", "schedule", "schedule/?all=", "job", "job/?all=", "process", "queue"):
        assert anna.get(f"{BASE}/{place}{'' if '?' in place else '/'}").status_code == 200, place
    for model in (Schedule, Job, Process):
        for pk in model.objects.values_list("pk", flat=True):
            page = f"{BASE}/{model._meta.model_name}/{admin_quote(pk)}/change/"
            assert anna.get(page).status_code == 200, page
    for model, columns in ((Schedule, ("args", "kwargs", "meta")), (Job, ("args", "result", "errors"))):
        for pk in model.objects.filter(**{f"{columns[0]}__isnull": False}).values_list("pk", flat=True)[:5]:
            for column in columns:
                assert anna.get(f"{BASE}/{model._meta.model_name}/{admin_quote(pk)}/value/{column}/").status_code == 200


def test_what_cannot_be_read_is_not_overwritten_by_an_edit_of_something_else(anna: Client) -> None:
    row = Scheduler().interval(60, functions.add, 1, _name="u")
    with connection.cursor() as cursor:
        cursor.execute("UPDATE _pgwerk_schedules SET meta = '{\"a\": 1e5000}'")
    page = anna.get(f"{BASE}/schedule/{row.pk}/change/").content.decode()
    shown = html.unescape(re.findall(r'<textarea name="meta"[^>]*>\s*(.*?)</textarea>', page, re.DOTALL)[0])
    given = {**fields(), "interval": "120", "args": "[1]", "meta": shown}
    assert anna.post(f"{BASE}/schedule/{row.pk}/change/", given).status_code == 302
    with connection.cursor() as cursor:
        cursor.execute("SELECT interval, (meta->>'a')::numeric = 1e5000 FROM _pgwerk_schedules")
        assert cursor.fetchone() == (120, True)


# -- what people send --------------------------------------------------------------------------------------------------------


def fields() -> dict[str, str]:
    return {
        "name": "made", "function": "tests.functions.remember", "args": "[]", "kwargs": "{}", "queue": "default", "cron": "",
        "interval": "60", "timezone": "UTC", "starts_at_0": "", "starts_at_1": "", "ends_at_0": "", "ends_at_1": "",
        "next_run_at_0": "", "next_run_at_1": "", "max_runs": "", "jitter": "0", "priority": "0", "overlap": "BUFFER_ONE",
        "misfire": "LATEST", "misfire_grace": "60", "max_attempts": "1", "backoff": "", "timeout": "", "start_within": "",
        "result_ttl": "", "failure_ttl": "", "target": "", "meta": "{}", "description": "",
    }  # fmt: skip


SENT = {
    **{name: text for name, text in TEXTS.items() if name != "half a pair"},  # no browser can send it
    "JSON deep": "[" * 20_000,
    "JSON closed": "[" * 5000 + "]" * 5000,
    "JSON 150 deep": "[" * 150 + "]" * 150,
    "JSON digits": "[" + "9" * 5000 + "]",
    "JSON exponent": '{"a": 1e400}',
    "JSON NaN": "[NaN, Infinity, -Infinity]",
    "JSON NUL": '["\\u0000"]',
    "JSON half": '{"\\ud800": "\\udfff"}',
    "JSON keys twice": '{"a": 1, "a": 2}',
    "JSON null": "null",
    "JSON text": '"x"',
    "JSON true": "true",
    "JSON stars": '["********************"]',
    "digits": "9" * 400,
    "5000 digits": "9" * 5000,
    "other digits": "\u0663\u0664",  # Arabic
    "less": "-1",
    "fraction": "1.5",
    "exponent": "1e9",
    "infinity": "inf",
    "date": "0001-01-01",
    "last date": "9999-12-31",
    "no date": "2026-02-30",
    "time": "23:59:59.999999",
    "cron": "0 0 30 2 *",
    "odd cron": "*/7,3-59/13 */23 29 2 0",
    "zone": "Pacific/Kiritimati",
    "module": "os.system",
    "private": "tests.functions.__builtins__",
    "imported": "tests.functions.os.system",
    "class": "tests.functions.Gate",
    "lambda": "tests.functions.<lambda>",
}


@pytest.mark.parametrize("field", fields())
def test_each_field_of_the_form(anna: Client, field: str) -> None:
    """It is saved (and then makes jobs), or said at a field, in a line or two."""
    for number, (name, value) in enumerate(some(SENT, field, share=12).items()):
        for place in ("add/",) if number % 2 else ("change",):
            Schedule.objects.all().delete()
            if place == "change":
                row = Scheduler().interval(60, functions.remember, _name="made")
                place = f"{row.pk}/change/"
            response = anna.post(f"{BASE}/schedule/{place}", {**fields(), field: value})
            if response.status_code == 302:
                Scheduler().run_once()
                assert Schedule.objects.get().error == "", name
                Schedule.objects.all().delete()
                continue
            assert response.status_code == 200, (name, place)
            check(response)
            errors = response.context["errors"]
            assert errors, name
            if field not in ("overlap", "misfire"):  # in Django's words for a choice the whole value is
                assert all(len(str(error)) < 1000 for listed in errors for error in listed), (name, errors)


@pytest.mark.parametrize("place", ["schedule", "job", "queue", "process", "overview", "schedule/preview"])
def test_each_query_string(anna: Client, place: str) -> None:
    Scheduler().interval(60, functions.remember)
    Job.objects.create(function="f")
    parameters = {
        "schedule": ["q", "o", "p", "all", "state", "outcome", "origin__exact", "queue", "_facets", "e", "_popup", "_to_field"],
        "job": ["q", "p", "schedule", "queue", "status__exact", "kind__exact", "enqueued_at__gte", "id__in", "o"],
        "queue": ["q", "o", "p"],
        "process": ["o", "p", "q", "nothing__here"],
        "overview": ["span"],
        "schedule/preview": [
            "row", "cron", "interval", "timezone", "function", "starts_at_0", "starts_at_1", "ends_at_0", "next_run_at_0",
        ],
    }[place]  # fmt: skip
    for parameter in parameters:
        for name, value in some(SENT, parameter, share=12).items():
            # As no UTF-8 half a pair may come.
            sent = "%ED%A0%80" if name == "JSON half" else quote(value[:2000])
            response = anna.get(f"{BASE}/{place}/?{parameter}={sent}")
            # Django sends those who filter by nonsense back to the list.
            assert response.status_code in (200, 302, 400), (parameter, name, response.status_code)
            check(response)


@pytest.mark.parametrize("place", ["schedule/{}/change/", "job/{}/change/", "job/{}/value/error/", "schedule/{}/value/args/",
                                   "schedule/{}/history/", "schedule/{}/delete/", "queue/{}/change/", "process/{}/change/"])  # fmt: skip
def test_ids_that_there_are_not(anna: Client, place: str) -> None:
    for name, value in some(SENT, place, share=4).items():
        if "half" not in name and value.strip():
            response = anna.get(f"{BASE}/{place.format(quote(admin_quote(value[:1000]), safe=''))}")
            assert response.status_code in (302, 404), (name, response.status_code)
            check(response)


def test_actions_that_make_no_sense(anna: Client) -> None:
    row = Scheduler().interval(60, functions.remember)
    for parameter in (
        "_selected_action",
        "action",
        "reason",
        "post",
        "seen",
        "select_across",
        "index",
        "_page",
        "force",
    ):
        for name, value in some(SENT, parameter, share=20).items():
            for place in ("schedule", "job", "queue"):
                given = {"action": "pause", "_selected_action": row.pk, "post": "yes", parameter: value}
                response = anna.post(f"{BASE}/{place}/", given)
                assert response.status_code in (200, 302, 400, 403), (place, parameter, name)
                check(response)


def test_a_person_named_as_sync_is_a_person(anna: Client) -> None:
    """Else the next deploy would lift the pause."""
    from pgwerk_django import schedule

    schedule(functions.noop, interval=60, _name="s")
    Scheduler().sync()
    anna.force_login(User.objects.create_superuser("sync"))
    pk = Schedule.objects.get().pk
    anna.post(f"{BASE}/schedule/", {"action": "pause", "_selected_action": pk, "post": "yes"})
    Scheduler().sync()
    row = Schedule.objects.get()
    assert (row.paused, row.paused_by) == (True, "sync (a person)")


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    given=st.dictionaries(
        st.sampled_from([*fields()]),
        st.text(max_size=60) | st.integers().map(str) | st.datetimes().map(str),
        max_size=5,
    )
)
def test_forms_at_random(anna: Client, given: dict[str, str]) -> None:
    usable = {name: value.encode("utf-8", "replace").decode() for name, value in given.items()}
    Schedule.objects.all().delete()
    response = anna.post(f"{BASE}/schedule/add/", {**fields(), **usable})
    assert response.status_code in (200, 302)
    check(response)


def test_instants_are_shown_in_any_zone(anna: Client) -> None:
    for zone in ("Pacific/Kiritimati", "Africa/Monrovia", "America/Adak"):
        for at in (dt.datetime(1900, 1, 1, tzinfo=dt.UTC), dt.datetime(8999, 12, 31, tzinfo=dt.UTC)):
            row = Scheduler().schedule_at(functions.remember, at, _timezone=zone, _name="far")
            assert anna.get(f"{BASE}/schedule/{row.pk}/change/").status_code == 200
    assert anna.get(f"{BASE}/overview/").status_code == 200
