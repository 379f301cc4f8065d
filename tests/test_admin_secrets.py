"""Stars in the form of a schedule: what stands behind them goes where it went before, and nowhere else. And what may be deleted."""

import json
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.test import Client

from pgwerk_django.masking import STARS, masked_args
from pgwerk_django.models import Job, Schedule, Status
from tests import functions
from tests.test_admin import JOBS, browser, errors, form, make, make_job, page_of, reread, user
from tests.test_admin_actions import post

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("allowed")]
SECRET = "Tr0ub4dor-3"


@pytest.fixture
def allowed(settings: Any) -> None:
    settings.PGWERK = {"AUTODISCOVER": (), "ALLOWED_FUNCTIONS": ["tests.functions.*"]}


@pytest.fixture
def editor() -> Client:
    return browser(user("edith", "view_schedule", "change_schedule", "view_job"))


@pytest.fixture
def row() -> Schedule:
    return make(
        "mine",
        function="tests.functions.log_in",
        args=[SECRET],
        kwargs={"token": SECRET, "n": 1},
        meta={"key": SECRET},
        timezone="Europe/Paris",
    )


def stars(**changed: Any) -> dict[str, Any]:
    """The form as it was sent out, saved with something else in it."""
    sent = {
        "function": "tests.functions.log_in", "interval": "90", "args": json.dumps([STARS]), "target": "worker",
        "kwargs": json.dumps({"token": STARS, "n": 1}), "meta": json.dumps({"key": STARS}),
    }  # fmt: skip
    return form(**{**sent, **changed})


def stored(row: Schedule) -> tuple[Any, ...]:
    row = reread(row)
    return row.args, row.kwargs, row.meta


def test_stars_stay_what_they_stand_for(editor: Client, row: Schedule) -> None:
    assert editor.post(page_of(row), stars()).status_code == 302
    assert stored(row) == ([SECRET], {"token": SECRET, "n": 1}, {"key": SECRET})


@pytest.mark.parametrize(("changed", "refused"), [
    ({"function": "tests.functions.remember"}, {"args", "kwargs", "meta"}),
    ({"function": "tests.functions.add", "args": f'["{STARS}", "{STARS}"]', "kwargs": "{}", "meta": "{}"}, {"args"}),
    ({"function": "tests.functions.remember", "args": "[]", "meta": "{}"}, {"kwargs"}),
    ({"function": "tests.functions.remember", "args": "[]", "kwargs": json.dumps({"note": {"token": STARS}}), "meta": "{}"}, {"kwargs"}),
    ({"target": "celery"}, {"args", "kwargs", "meta", "target", "function"}),
    ({"function": "os.system"}, {"function", "args", "kwargs", "meta"}),
])  # fmt: skip
def test_another_function_or_target_gets_no_secret(
    editor: Client, row: Schedule, changed: dict[str, str], refused: set[str]
) -> None:
    """The page would show it by the other function's parameters, and the function may return it."""
    answer = editor.post(page_of(row), stars(**changed))
    told = errors(answer)
    assert told.keys() <= refused
    assert told
    assert SECRET not in answer.content.decode()
    assert stored(row) == ([SECRET], {"token": SECRET, "n": 1}, {"key": SECRET})
    assert reread(row).function == "tests.functions.log_in"


def test_typed_anew_it_is_taken(editor: Client, row: Schedule) -> None:
    sent = stars(function="tests.functions.remember", args='["a"]', kwargs='{"token": "b"}', meta="{}")
    assert editor.post(page_of(row), sent).status_code == 302
    assert stored(row) == (["a"], {"token": "b"}, {})
    assert reread(row).function == "tests.functions.remember"


@pytest.mark.parametrize("changed", [
    {"args": json.dumps([STARS, 2, 3])}, {"args": json.dumps([STARS, "\0"])}, {"kwargs": json.dumps({"token": STARS, "x": "\0"})},
    {"meta": json.dumps({"key": STARS, "x": "\0"})}, {"kwargs": json.dumps([STARS])}, {"args": json.dumps({"token": STARS})},
    {"cron": "61 * * * *"}, {"function": "tests.functions.nothing_here"}, {"timezone": "Nowhere"}, {"interval": "-1"},
    {"kwargs": json.dumps({"token": STARS}).replace("}", ', "x": ' + "[" * 101 + "]" * 101 + "}")},
])  # fmt: skip
def test_no_message_tells_what_is_behind_stars(editor: Client, row: Schedule, changed: dict[str, str]) -> None:
    answer = editor.post(page_of(row), stars(**changed))
    assert errors(answer)
    assert SECRET not in answer.content.decode()


@pytest.mark.parametrize("changed", [
    {"kwargs": json.dumps({"token": STARS, "password": STARS})}, {"args": "[]", "kwargs": json.dumps({"password": STARS})},
    {"meta": json.dumps({"other": [STARS]})}, {"kwargs": json.dumps({"token": [STARS]})},
])  # fmt: skip
def test_stars_that_stand_for_nothing_are_told(editor: Client, row: Schedule, changed: dict[str, str]) -> None:
    """Else the function would get twenty stars for a password, at 03:00."""
    assert set(errors(editor.post(page_of(row), stars(**changed)))) <= {"args", "kwargs", "meta"}
    assert stored(row)[0] == [SECRET]


def test_positional_secrets_are_found_by_any_kind_of_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    def many(host: str, *passwords: str) -> None: ...

    def only(host: str, *, password: str) -> None: ...

    class Task:
        """As Django's, with the context besides the arguments."""

        takes_context = True

        @staticmethod
        def func(context: Any, host: str, password: str) -> None: ...

    for name, function in (("many", many), ("only", only), ("contextual", Task())):
        monkeypatch.setattr(functions, name, function, raising=False)
    assert masked_args("tests.functions.many", ["db", "a", "b"]) == ["db", STARS, STARS]
    assert masked_args("tests.functions.contextual", ["db", "a"]) == ["db", STARS]
    assert masked_args("tests.functions.log_in", ["a", "b"]) == [STARS, "b"]
    assert masked_args("tests.functions.not_here", ["a"]) == ["a"]


# -- what may be deleted ---------------------------------------------------------------------------------------------------


@pytest.fixture
def cleaner() -> Client:
    return browser(user("carl", "view_job", "delete_job"))


OPEN = (Status.READY, Status.RUNNING)


@pytest.mark.parametrize("who", ["cleaner", "superuser"])
def test_only_jobs_that_have_ended_can_be_deleted(cleaner: Client, who: str) -> None:
    client = cleaner if who == "cleaner" else browser(User.objects.create_superuser("anna"))
    for number, status in enumerate(Status):
        job = make_job(f"s{number}", status=status, finished_at=None if status in OPEN else "2026-01-01T09:00Z")
        url = f"{JOBS}{job.pk}/"
        answer = client.get(f"{url}change/")
        assert ("/delete/" in answer.content.decode()) == (status not in OPEN), status
        assert client.get(f"{url}delete/").status_code == (403 if status in OPEN else 200)
        assert client.post(f"{url}delete/", {"post": "yes"}).status_code == (403 if status in OPEN else 302)
    assert set(Job.objects.values_list("status", flat=True)) == set(OPEN)


def test_a_job_whose_engine_will_tell_the_end_has_not_ended(cleaner: Client) -> None:
    job = make_job(status=Status.FORWARDED, target="celery", finished_at=None)
    assert cleaner.post(f"{JOBS}{job.pk}/delete/", {"post": "yes"}).status_code == 403
    assert Job.objects.exists()


@pytest.mark.parametrize("across", ["0", "1"])
def test_of_many_none_is_deleted_while_one_has_not_ended(cleaner: Client, across: str) -> None:
    done, waiting = make_job("done", status=Status.SUCCESSFUL), make_job("waiting", status=Status.READY)
    for more in ({}, {"post": "yes"}):
        answer = post(cleaner, JOBS, "delete_selected", done, waiting, select_across=across, **more)
        told = answer.content.decode()
        assert "cancel the others first" in told
        assert waiting.key in told
        assert done.key not in told
        assert 'value="delete_selected"' not in told
    assert Job.objects.count() == 2
    assert LogEntry.objects.count() == 0
    assert post(cleaner, JOBS, "delete_selected", done, post="yes").status_code == 302
    assert Job.objects.get() == waiting


def test_a_job_that_is_retried_meanwhile_is_not_deleted(cleaner: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the question and the statement."""
    from pgwerk_django.admin import JobAdmin

    job = make_job(status=Status.FAILED)
    monkeypatch.setattr(JobAdmin, "log_deletions", lambda self, request, rows: Job.objects.all().retry(by="bob"))
    post(cleaner, JOBS, "delete_selected", job, post="yes")
    assert Job.objects.get().status == Status.READY
    Job.objects.update(status=Status.FAILED)
    assert cleaner.post(f"{JOBS}{job.pk}/delete/", {"post": "yes"}).status_code == 403
    assert Job.objects.exists()
