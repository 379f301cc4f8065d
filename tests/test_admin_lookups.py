"""What the query strings of the admin's lists may ask: what the page shows, never what it hides; and nonsense is no error."""

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.db import models
from django.db.models.constants import LOOKUP_SEP
from django.test import Client, RequestFactory

from pgwerk_django.admin.pages import Page
from pgwerk_django.jobs import pause_queue
from pgwerk_django.models import Job, Origin, Process, Queue, Schedule, Status
from tests.hostile import TEXTS, some
from tests.test_admin import JOBS, LIST, PROCESSES, browser, make, make_job, user

pytestmark = pytest.mark.django_db
OVERVIEW = "/admin/pgwerk_django/overview/"
QUEUES = "/admin/pgwerk_django/queue/"
SECRET = "Tr0ub4dor-3"
# Columns that may hold a secret, or be huge.
HIDDEN = {
    Schedule: {"args", "kwargs", "meta", "backoff", "error", "description", "pause_reason"},
    Job: {"args", "kwargs", "meta", "backoff", "result", "error", "errors", "progress", "reason"},
    Queue: {"pause_reason"},
    Process: {"stats", "queues"},
}


@pytest.fixture
def viewer() -> Client:
    return browser(user("victor", "view_schedule", "view_job", "view_queue", "view_process"))


@pytest.fixture
def anna() -> Client:
    return browser(User.objects.create_superuser("anna"))


@pytest.fixture
def secretive() -> Schedule:
    """A row of each table, with a secret in each column that has names to know it by."""
    pause_queue("mail", by="bob", reason="stocktaking")
    secret = {"password": SECRET}
    process = Process.objects.create(role="worker", host="web-1", stats=secret)
    row = make("secretive", kwargs=secret, meta=secret)
    make_job(
        "secretive", kwargs=secret, meta=secret, result=secret, errors=[secret], progress=[secret], schedule=row,
        worker=process, status=Status.RUNNING,
    )  # fmt: skip
    return row


def pages() -> dict[type[models.Model], Page]:
    return {model: admin.site._registry[model] for model in HIDDEN}  # type: ignore[misc]


def hidden_lookups(model: type[models.Model], depth: int = 2) -> Iterator[str]:
    """Each lookup of each hidden column, on the value, on a key of it, and by the relations to and from the model."""
    for name in HIDDEN.get(model, ()):
        field: Any = model._meta.get_field(name)
        yield name
        for place in (name, f"{name}__password", f"{name}__0", f"{name}__0__password"):
            for lookup in field.get_lookups():
                yield f"{place}__{lookup}"
    if depth:
        for field in model._meta.get_fields():
            if field.is_relation and field.related_model in HIDDEN:
                for below in hidden_lookups(field.related_model, depth - 1):
                    yield f"{field.name}{LOOKUP_SEP}{below}"


def test_the_hidden_columns_are_all_that_may_hold_something() -> None:
    for model, columns in HIDDEN.items():
        large = {field.name for field in model._meta.fields if isinstance(field, models.JSONField | models.TextField)}
        shown = {"exception"} if model is Job else set()  # the name of a class
        assert columns >= large - shown


@pytest.mark.parametrize("model", HIDDEN)
def test_no_lookup_reaches_a_hidden_column(model: type[models.Model]) -> None:
    page, request = pages()[model], RequestFactory().get("/")
    request.user = User.objects.create_superuser("anna")  # not even theirs
    asked = list(hidden_lookups(model))
    assert len(asked) > 20
    assert [lookup for lookup in asked if page.lookup_allowed(lookup, "x", request)] == []


@pytest.mark.parametrize(("url", "lookup"), [
    (LIST, "kwargs__password__startswith"), (LIST, "kwargs__password"), (LIST, "kwargs__password__regex"),
    (LIST, "kwargs__has_key"), (LIST, "kwargs__contains"), (LIST, "kwargs__password__gt"), (LIST, "kwargs__password__isnull"),
    (LIST, "meta__password__startswith"), (LIST, "args__0__startswith"), (LIST, "jobs__result__password__startswith"),
    (LIST, "jobs__worker__stats__password__startswith"), (LIST, "description__startswith"),
    (JOBS, "kwargs__password__startswith"), (JOBS, "result__password__startswith"), (JOBS, "error__startswith"),
    (JOBS, "errors__0__password__startswith"), (JOBS, "progress__password__startswith"),
    (JOBS, "schedule__kwargs__password__startswith"), (JOBS, "worker__stats__password__startswith"),
    (PROCESSES, "stats__password__startswith"), (PROCESSES, "jobs__kwargs__password__startswith"),
    (QUEUES, "pause_reason__startswith"),
])  # fmt: skip
def test_no_secret_is_spelled_out(viewer: Client, secretive: Schedule, url: str, lookup: str) -> None:
    """The right guess is answered as the wrong one is, for the viewer as for anybody."""
    right, wrong = (viewer.get(url, {lookup: guess}) for guess in (SECRET[:1], "#"))
    assert (right.status_code, wrong.status_code) == (400, 400)
    assert SECRET.encode() not in right.content


def test_other_ways_to_a_secret(viewer: Client, secretive: Schedule) -> None:
    """Search, popups, facets, order and the choices of a foreign key."""
    for url in (LIST, JOBS, PROCESSES, QUEUES):
        for query in ("_popup=1", "_facets=True", "_to_field=id&_popup=1"):
            assert SECRET not in viewer.get(f"{url}?{query}").content.decode()
        for column in ("kwargs", "meta", "args", "stats", "pause_reason"):
            assert viewer.get(url, {"_to_field": column}).status_code == 400
        order = [column for place in range(12) for column in _ordered_by(viewer, f"{url}?o={place}")]
        assert not set(order) & set().union(*HIDDEN.values()), url
    for url in (LIST, JOBS, QUEUES):
        assert viewer.get(url, {"q": SECRET[:5]}).context["cl"].result_count == 0
    asked = {"app_label": "pgwerk_django", "model_name": "job", "field_name": "schedule", "term": SECRET[:5]}
    assert viewer.get("/admin/autocomplete/", asked).json()["results"] == []


def _ordered_by(client: Client, url: str) -> list[str]:
    columns = client.get(url).context["cl"].queryset.query.order_by
    return [str(column).lstrip("-") for column in columns]


def test_the_pages_show_stars(viewer: Client, secretive: Schedule) -> None:
    """Also all of a value, and the history."""
    job = Job.objects.get()
    row, ran = f"{LIST}{secretive.pk}", f"{JOBS}{job.pk}"
    for url in (
        LIST, JOBS, f"{row}/change/", f"{row}/history/", f"{row}/value/kwargs/", f"{row}/value/meta/", f"{ran}/change/",
        f"{ran}/history/", f"{ran}/value/kwargs/", f"{ran}/value/result/", f"{ran}/value/errors/",
        f"{PROCESSES}{job.worker_id}/change/",
    ):  # fmt: skip
        answer = viewer.get(url)
        assert (answer.status_code, SECRET in answer.content.decode()) == (200, False), url


def test_what_our_pages_link_to_is_admitted(anna: Client, secretive: Schedule) -> None:
    """Each filter's choices, each order, each link from page to page."""
    failed = make_job("failing", status=Status.FAILED, queue="mail")
    make_job("failing", due_at=failed.due_at.replace(year=2025), target="celery")
    Schedule.objects.filter(pk=make("code").pk).update(origin=Origin.CODE, queue="mail")
    found: set[str] = set()
    for url in (OVERVIEW, LIST, JOBS, QUEUES, PROCESSES, f"{LIST}{secretive.pk}/change/", f"{JOBS}?schedule=failing"):
        for link in re.findall(r'href="([^"]*\?[^"]+)"', anna.get(url).content.decode()):
            link = html.unescape(link)
            found.add(link if link.startswith("/") else url.partition("?")[0] + link)
    ours = sorted(link for link in found if link.startswith("/admin/pgwerk_django/"))
    assert len(ours) > 40
    refused = {link: answer.status_code for link in ours if (answer := anna.get(link)).status_code != 200}
    assert refused == {}


@pytest.mark.parametrize(("url", "query"), [
    (JOBS, {"exception": "TimeoutError"}), (JOBS, {"due_at__gte": "2026-01-01T00:00Z", "due_at__lt": "2027-01-01T00:00Z"}),
    (JOBS, {"schedule_name__in": "a,hourly"}), (JOBS, {"finished_at__isnull": "1"}), (LIST, {"name": "hourly"}),
    (LIST, {"function__exact": "tests.functions.add"}), (QUEUES, {"paused__exact": "0"}), (PROCESSES, {"host": "web-1"}),
])  # fmt: skip
def test_what_else_may_be_asked(viewer: Client, url: str, query: dict[str, str]) -> None:
    """The list of docs/security.md."""
    assert viewer.get(url, query).status_code == 200


def test_a_field_that_limits_its_choices_may_ask_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The popup of a site's own foreign key to a schedule, exactly as the site declared it."""
    monkeypatch.setitem(Schedule._meta.__dict__, "related_fkey_lookups", [{"meta__team": "shop"}])
    page = pages()[Schedule]
    assert page.lookup_allowed("meta__team", "shop", RequestFactory().get("/"))
    assert not page.lookup_allowed("meta__team", "warehouse", RequestFactory().get("/"))


# -- nonsense ----------------------------------------------------------------------------------------------------------------

VALUES = {
    **TEXTS, "half a regex": "(", "number": "7", "large": "99999999999", "larger": "9" * 30, "digits": "9" * 5000,
    "fraction": "99.99", "exponent": "1e400", "infinity": "inf", "not a number": "nan", "negative": "-1", "date": "2026-02-30",
    "first": "0001-01-01", "last": "9999-12-31 23:59:59", "offset": "9999-12-31T23:59:59-14:00", "uuid": "0" * 31,
    "list": "a,,b", "numbers": f"1,{'9' * 30}", "format": "%s%(x)s", "JSON": "[[[", "nonsense": "nonsense",
}  # fmt: skip
PLACES: dict[str, list[str]] = {
    LIST: ["q", "o", "p", "all", "e", "_facets", "_popup", "_to_field", "_source_model", "_changelist_filters", "state", "outcome",
           "origin__exact", "queue", "queue__isnull", "id__gt", "id__in", "name__regex", "name__startswith", "name__gt", "name__in",
           "next_run_at__gte", "next_run_at__isnull", "interval__gt", "kwargs__x", "nothing", "nothing__here", "judged_at__gt", "pk", "__", "id__id"],
    JOBS: ["q", "o", "p", "all", "schedule", "queue", "status__exact", "status__in", "kind__exact", "kind__isnull", "enqueued_at__gte",
           "enqueued_at__lt", "enqueued_at", "due_at__gte", "id__in", "id", "exception", "worker__id__exact", "schedule__id__exact", "attempt__gt"],
    QUEUES: ["q", "o", "p", "id", "id__lt", "name", "name__regex", "paused__exact", "waiting__gt", "oldest__gt"],
    PROCESSES: ["q", "o", "p", "pid", "pid__gt", "pid__in", "pid__isnull", "host", "heartbeat_at__lte", "version__in", "stats__x"],
    OVERVIEW: ["span", "q", "nothing"],
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:DateTimeField .* received a naive datetime:RuntimeWarning")
@pytest.mark.parametrize("url", PLACES)
def test_no_query_string_is_an_error_of_the_server(anna: Client, secretive: Schedule, url: str) -> None:
    """What cannot be asked leads back to the list (Django's `?e=1`) or is a bad request."""
    for parameter in PLACES[url]:
        for name, value in {"NUL": "\0", "half a regex": "(", **some(VALUES, parameter, share=14)}.items():
            sent = quote(value[:2000].encode("utf-8", "surrogatepass"))
            answer = anna.get(f"{url}?{parameter}={sent}")
            assert answer.status_code in (200, 302, 400), (parameter, name)
            if answer.status_code == 302:
                assert answer.url.endswith("?e=1"), (parameter, name)


@pytest.mark.parametrize("query", ["%", "%FF=%FF", "q=%FE%FF", "=&=", "&&&", "q=1&q=2", "o=1.-2.3.a", "p=1&p=x", "queue=a&queue=%00",
                                   "name=a&name=b", "state=OK&state=LATE", "q=%22", "q='", "q=%5C", "a[]=1", "q=" + "x" * 9000])  # fmt: skip
def test_no_odd_query_string_is_an_error_of_the_server(anna: Client, query: str) -> None:
    for url in PLACES:
        assert anna.get(f"{url}?{query}").status_code in (200, 302, 400), url


def test_an_action_with_a_hostile_query_string(anna: Client) -> None:
    row = make()
    for query in ("name__regex=(", "queue=%00", "id__gt=" + "9" * 30, "kwargs__password=x", urlencode({"q": "\0"})):
        answer = anna.post(f"{LIST}?{query}", {"action": "trigger", "_selected_action": row.pk, "index": 0})
        assert answer.status_code in (200, 302, 400), query


def test_the_list_of_the_documentation() -> None:
    """docs/security.md names what may be asked."""
    said = (Path(__file__).parent.parent / "docs" / "security.md").read_text()
    for model, page in pages().items():
        columns = ", ".join(f"`{column}`" for column in page.askable)
        assert f"| {model._meta.verbose_name_plural} | {columns} |" in said
